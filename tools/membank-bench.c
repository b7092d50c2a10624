/* SPDX-License-Identifier: Apache-2.0
 * tools/membank-bench.c - measure a running daemon, or a model.
 *
 * Prints what was measured, on what, and the times of single calls as
 * percentiles; the measurements lie in bench/.
 * Threads: the main thread, and one for each client of a series. */
#include <string.h>

#include "bench.h"
#include "fetch.h"
#include "model.h"

static const struct mb_cli_option options[] = {
    TOOL_CONNECT_OPTIONS,
    {"collection", 'c', "NAME", false,
        "with query: collection to ask by text; without it no text is asked",
        NULL},
    {"queries", 0, "FILE", false,
        "with query: JSON lines with text; else pieces of stored documents",
        NULL},
    {"calls", 'n', "N", false, "calls of each series", "1000"},
    {"clients", 'j', "N", false,
        "clients that call at once; with generate, of a model's engine", "8"},
    {"seconds", 0, "S", false, "length of a series of several clients", "5"},
    {"top", 'k', "N", false, "hits of a query", "10"},
    {"vectors", 0, "N", false,
        "with query: client vectors in a collection of their own; 0: none",
        "100000"},
    {"dim", 0, "N", false, "size of these vectors", "256"},
    {"bytes", 0, "N", false, "with put: text of a document", "1024"},
    {"seed", 0, "N", false, "of all that is random", "1"},
    {"model", 0, "FILE", false,
        "with generate, embed, fetch: the model; else the bundled one", NULL},
    {"cache", 0, "TYPE", false,
        "with generate, embed, fetch: keys and values, f16, q8_0 or f32",
        "f16"},
    {"threads", 0, "N", false,
        "with generate, embed, fetch: threads; 0: all processors, generate and "
        "embed first with one",
        "0"},
    {"prompts", 0, "N,N", false, "with generate: tokens of a prefill",
        "128,512,2048"},
    {"contexts", 0, "N,N", false, "with generate: tokens before decoding",
        "128,2048,8192"},
    {"sequences", 0, "N,N", false,
        "with generate: sequences that decode at once", "1,8,16"},
    {"drop", 0, NULL, false, "drop the collections that were made", NULL},
    {"json", 0, NULL, false, "print JSON", NULL},
    {NULL, 0, NULL, false, NULL, NULL},
};

static const struct mb_cli_example examples[] = {
    {"membank-bench -c wiki query",
        "ping, text in three modes, 100,000 vectors with their recall"},
    {"membank-bench -c wiki --vectors 0 --queries q.jsonl query",
        "text alone, with questions from a file"},
    {"membank-bench --model m.gguf generate",
        "tokens a second of a model, without a daemon"},
    {"membank-bench --threads 1 fetch",
        "what memory blocks cost, warm, cold and in decoding"},
    {"membank-bench --drop put", "durable puts: single, batched, together"},
    {NULL, NULL},
};

static const struct mb_cli_program program = {
    .name = "membank-bench",
    .summary = "measure a running membankd, or a model",
    .usage = "[OPTION]... query|put|generate|embed|fetch",
    .description =
        "query measures the ping, then questions of text to --collection, "
        "hybrid, dense and lexical, with the passages in the reply, then "
        "queries by client vectors, which it makes from the seed and puts into "
        "a collection bench-... of its own. Their recall is measured against a "
        "plain scan. The limits are those of the project: hybrid p50 2 ms and "
        "p99 10 ms, vectors p50 0.25 ms above the ping.\n\n"
        "put measures durable puts of made-up text into the collection "
        "bench-put: one document a request, one client; the same from several "
        "clients at once; 100 documents a request. Rates are documents a "
        "second.\n\n"
        "Each series of one client follows 50 calls that are not counted "
        "(query), times are those seen by the client, in milliseconds.\n\n"
        "generate and embed need no daemon: they run random tokens through a "
        "model. generate measures prefill, then decoding after a context, of "
        "one "
        "sequence and of several at once (of which the longest, beyond 20,000 "
        "tokens in all, are left out); embed measures segments of 252 tokens, "
        "one and 8 at once. "
        "Times are medians of passes. Beside decoding stand the bytes of "
        "weights that it reads a second, and their part of what plain reading "
        "of memory reaches on as many threads.\n\n"
        "fetch needs no daemon either: it makes a memory bank with random "
        "weights for the model, three levels with a tenth of its parameters a "
        "path, in a store of its own. Warm fetches are those of the daemon "
        "before each pass: three records looked up in the store's map and "
        "viewed. Cold ones are simulated: a level's bytes take as long as its "
        "tier needs for them, and a flat bank has as many bytes on the "
        "slowest. Then prefill and decoding with blocks of each type, in turns "
        "with passes without.",
    .options = options,
    .examples = examples,
};

static bool
is_measured(const struct mb_cli *cli)
{
    static const char *const names[] = {
        "query", "put", "generate", "embed", "fetch"};

    for (size_t i = 0; mb_cli_n_args(cli) == 1 && i < 5; i++) {
        if (strcmp(mb_cli_arg(cli, 0), names[i]) == 0)
            return true;
    }
    return false;
}

static mb_status
read_options(struct bench *b, struct mb_error *err)
{
    mb_status st = mb_cli_u64(b->cli, "calls", 1, 10000000, &b->n, err);

    b->collection = mb_cli_str(b->cli, "collection");
    b->json = mb_cli_has(b->cli, "json");
    if (st == MB_OK)
        st = mb_cli_u64(b->cli, "clients", 1, 1000, &b->clients, err);
    if (st == MB_OK)
        st = mb_cli_u64(b->cli, "top", 1, 1000, &b->k, err);
    if (st == MB_OK)
        st = mb_cli_u64(b->cli, "seed", 0, UINT64_MAX, &b->seed, err);
    if (st == MB_OK)
        st = mb_cli_double(b->cli, "seconds", 0.01, 3600, &b->seconds, err);
    if (st == MB_OK && !is_measured(b->cli))
        st = mb_error_set(err, MB_ERR_BAD_ARG,
            "what to measure: query, put, generate, embed or fetch");
    return st;
}

static bool
is_of_model(const char *what)
{
    return strcmp(what, "generate") == 0 || strcmp(what, "embed") == 0;
}

static void
print_json(const struct bench *b, const struct membank_server *server)
{
    struct mb_buffer buf;
    struct json_writer w;

    mb_buffer_init(&buf, SIZE_MAX / 2);
    json_writer_init(&w, &buf);
    json_object_begin(&w);
    json_kv_cstr(&w, "measured", mb_cli_arg(b->cli, 0));
    json_kv_cstr(&w, "version", server->version);
    json_kv_cstr(&w, "endpoint", membank_endpoint(b->client));
    json_kv_u64(&w, "cpus", mb_cpu_count());
    json_kv_u64(&w, "seed", b->seed);
    json_kv_u64(&w, "k", b->k);
    json_kv_u64(&w, "clients", b->clients);
    json_key(&w, "series");
    json_array_begin(&w);
    if (w.status == MB_OK)
        w.status = mb_buffer_append(&buf, b->rows.data, b->rows.size);
    json_array_end(&w);
    json_object_end(&w);
    tool_put_line(&buf);
    mb_buffer_fini(&buf);
}

static int
run(struct bench *b)
{
    static const char *const heads[] = {
        "ms", "calls", "p50", "p90", "p99", "max", "per s", "recall", "limit"};
    struct membank_server server = {0};
    struct membank_error cause;
    struct mb_error err;
    mb_status st = read_options(b, &err);

    if (st != MB_OK)
        return mb_cli_usage(&program, &err);
    if (is_of_model(mb_cli_arg(b->cli, 0))) {
        st = bench_model(b->cli, mb_cli_arg(b->cli, 0), &err);
        return st == MB_OK ? 0 : mb_cli_fail(&program, &err);
    }
    if (strcmp(mb_cli_arg(b->cli, 0), "fetch") == 0)
        return bench_fetch(b->cli, &err) == MB_OK ? 0
                                                  : mb_cli_fail(&program, &err);
    st = tool_connect(b->cli, &b->client, &err);
    if (st == MB_OK && membank_ping(b->client, &server, &cause) != MEMBANK_OK)
        st = tool_error(&cause, &err);
    b->table = table_new(9, heads, "lrrrrrrrl");
    if (st == MB_OK && b->table == NULL)
        st = mb_error_set(&err, MB_ERR_NOMEM, "table");
    if (st == MB_OK)
        st = strcmp(mb_cli_arg(b->cli, 0), "query") == 0 ? bench_query(b, &err)
                                                         : bench_put(b, &err);
    // What was measured before a failure is shown all the same.
    if (b->table != NULL && b->client != NULL && !b->json && b->rows.size > 0) {
        (void)printf("membankd %s at %s, %u processors, seed %llu, k %llu\n",
            server.version, membank_endpoint(b->client), mb_cpu_count(),
            (unsigned long long)b->seed, (unsigned long long)b->k);
        table_print(b->table, stdout, 0);
    } else if (b->json && st == MB_OK) {
        print_json(b, &server);
    }
    return st == MB_OK ? 0 : mb_cli_fail(&program, &err);
}

int
main(int argc, char **argv)
{
    struct bench b = {0};
    struct mb_cli *cli = NULL;
    struct mb_error err;
    mb_status st = mb_cli_parse(&program, argc, argv, &cli, &err);
    int code;

    if (st != MB_OK)
        return tool_parse_failed(&program, st, &err);
    b.cli = cli;
    mb_buffer_init(&b.rows, SIZE_MAX / 2);
    code = run(&b);
    table_free(b.table);
    mb_buffer_fini(&b.rows);
    membank_close(b.client);
    mb_cli_free(cli);
    return tool_finish(&program, code);
}
