/* SPDX-License-Identifier: Apache-2.0
 * tools/membank-query.c - ask a collection, read the passages.
 *
 * Two uses. One question: the passages with their scores for people, or the
 * daemon's reply as JSON. A file of questions: a run in the format of trec_eval,
 * document by document with each document's best segment, or JSON lines; several
 * questions are in flight at once, answers are written in the file's order.
 * Threads: the main thread. */
#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "display.h"
#include "json.h"
#include "lines.h"
#include "progress.h"
#include "tool.h"

#define MAX_K         10000
#define MAX_TEXT      ((size_t)16 * 1024 * 1024)
#define IN_FLIGHT     16
#define PASSAGE_LINES "6"

static const struct mb_cli_option options[] = {
    TOOL_CONNECT_OPTIONS,
    {"collection", 'c', "NAME", false, "collection to ask", "default"},
    {"top", 'k', "N", false, "how many hits", "10"},
    {"mode", 'm', "MODE", false, "hybrid, dense or lexical", "hybrid"},
    {"filter", 'f', "JSON", false,
        "only documents whose metadata match, see Filters in PROTOCOL.md",
        NULL},
    {"vector", 0, "JSON", false,
        "array of numbers, for collections with client vectors", NULL},
    {"lines", 'l', "N", false, "lines of each passage; 0 shows it whole",
        PASSAGE_LINES},
    {"queries", 0, "FILE", false,
        "ask all questions of a file of JSON lines with _id (or id) and text",
        NULL},
    {"trec", 0, "FILE", false,
        "with --queries: write a run for trec_eval; - is standard output",
        NULL},
    {"json", 0, NULL, false, "print JSON, one line a question", NULL},
    {NULL, 0, NULL, false, NULL, NULL},
};

static const struct mb_cli_example examples[] = {
    {"membank-query -c notes -k 3 \"what happens when the disk is full?\"",
        "the three best passages"},
    {"membank-query -c notes -f '{\"year\": {\"$gte\": 1900}}' whales",
        "only documents whose meta has a year from 1900 on"},
    {"membank-query -c cran -k 100 --queries queries.jsonl --trec run.txt",
        "a run for evaluation: document ids, best segment each"},
    {NULL, NULL},
};

static const struct mb_cli_program program = {
    .name = "membank-query",
    .summary = "find passages in a collection of membankd",
    .usage = "[OPTION]... TEXT...",
    .description =
        "Prints the passages that answer best: rank, score, the dense and the "
        "lexical score that made it, title, document id and segment, and the "
        "passage with the words of the question marked. The text is a "
        "question in plain words, or -, which reads it from standard input; no "
        "character has a special meaning. Several arguments are joined by "
        "blanks.\n\n"
        "score is what the order is by: in mode hybrid a fusion of both, for "
        "comparing hits of one question only; dense is a cosine from -1 to 1; "
        "lexical is BM25.\n\n"
        "The default endpoint is ipc://$XDG_RUNTIME_DIR/membank.sock, or "
        "ipc:///tmp/membank-UID.sock where that is unset.",
    .options = options,
    .examples = examples,
};

struct ask {
    struct mb_cli *cli;
    struct membank *client;
    const char *collection;
    const char *mode;
    uint64_t k;
    uint64_t max_lines;
    bool json;
    struct mb_buffer filter; /* msgpack, or empty */
    struct mb_buffer vector; /* msgpack bin, or empty */
    struct mb_buffer text;
    struct mb_buffer request;
    struct mb_arena *arena;
};

/* ---- requests ---- */

/* Arguments of op query in a->request. */
static mb_status
pack_query(
    struct ask *a, struct mb_slice text, bool by_document, struct mb_error *err)
{
    struct mb_writer w;
    size_t n = 3;

    n += text.size > 0 ? 1 : 0;
    n += a->vector.size > 0 ? 1 : 0;
    n += a->filter.size > 0 ? 1 : 0;
    n += by_document ? 2 : 0;
    mb_buffer_clear(&a->request);
    mb_writer_init(&w, &a->request);
    mb_write_map(&w, n);
    mb_write_kv_cstr(&w, "collection", a->collection);
    mb_write_kv_cstr(&w, "mode", a->mode);
    mb_write_kv_uint(&w, "k", a->k);
    if (text.size > 0)
        mb_write_kv_str(&w, "text", text);
    if (a->vector.size > 0) {
        mb_write_cstr(&w, "vector");
        mb_write_raw(&w, mb_buffer_slice(&a->vector));
    }
    if (a->filter.size > 0) {
        mb_write_cstr(&w, "filter");
        mb_write_raw(&w, mb_buffer_slice(&a->filter));
    }
    if (by_document) {
        mb_write_kv_bool(&w, "one_per_document", true);
        mb_write_cstr(&w, "fields");
        mb_write_array(&w, 0);
    }
    if (w.status != MB_OK)
        return mb_error_set(err, w.status, "question of %zu bytes", text.size);
    return MB_OK;
}

/* ---- for people ---- */

static void
print_score(double v, const char *label)
{
    if (v != v)
        (void)printf("  %s -", label);
    else
        (void)printf("  %s %.3f", label, v);
}

static double
float_of(const struct mb_value *hit, const char *key)
{
    return value_f64(hit, key, (double)NAN);
}

static void
print_hit(const struct ask *a, const struct mb_value *hit, size_t rank,
    const struct display_words *words)
{
    bool color = mb_cli_has_color(STDOUT_FILENO);
    struct display_layout layout = {.indent = 4,
        .width = mb_cli_width(STDOUT_FILENO),
        .max_lines = (unsigned)a->max_lines,
        .marks = color ? words : NULL};
    struct mb_slice title = value_str(hit, "title");

    if (layout.width > 100)
        layout.width = 100;
    (void)printf("%2zu  ", rank);
    if (title.size > 0) {
        (void)fputs(color ? "\033[1;36m" : "", stdout);
        display_print(stdout, title, 0);
        (void)fputs(color ? "\033[0m" : "", stdout);
        (void)fputs("  ", stdout);
    }
    (void)fputc('[', stdout);
    display_print(stdout, value_str(hit, "id"), 0);
    (void)printf(", segment %llu]\n    score %.3f",
        (unsigned long long)value_u64(hit, "segment", 0),
        float_of(hit, "score"));
    print_score(float_of(hit, "dense"), "dense");
    print_score(float_of(hit, "lexical"), "lexical");
    (void)fputc('\n', stdout);
    display_wrap(stdout, value_str(hit, "text"), &layout);
    (void)fputc('\n', stdout);
}

static void
print_hits(
    const struct ask *a, const struct mb_value *result, struct mb_slice text)
{
    const struct mb_value *hits = mb_value_get(result, "hits");
    struct display_words words;

    display_words_of(&words, text);
    for (size_t i = 0; hits != NULL && i < hits->array.n; i++) {
        print_hit(a, &hits->array.items[i], i + 1, &words);
    }
    if (hits == NULL || hits->array.n == 0)
        (void)printf("no hits in %s\n", a->collection);
    else
        (void)printf("%zu hits in %.1f ms\n", hits->array.n,
            (double)value_u64(result, "took_us", 0) / 1000);
}

/* The daemon's result as it is; with the question's id in front of it. */
static mb_status
print_json(struct mb_slice id, const struct mb_value *result)
{
    struct mb_buffer buf;
    struct json_writer w;
    mb_status st;

    mb_buffer_init(&buf, SIZE_MAX);
    json_writer_init(&w, &buf);
    json_object_begin(&w);
    if (id.size > 0)
        json_kv_str(&w, "query", id);
    for (size_t i = 0; i < result->map.n; i++) {
        json_str(&w, result->map.pairs[i].key);
        if (w.status == MB_OK)
            w.status = mb_buffer_append(&buf, ":", 1);
        w.comma = false;
        json_value(&w, &result->map.pairs[i].value);
    }
    json_object_end(&w);
    st = w.status;
    if (st == MB_OK)
        tool_put_line(&buf);
    mb_buffer_fini(&buf);
    return st;
}

static mb_status
check_result(const struct mb_value *result, struct mb_error *err)
{
    const struct mb_value *hits = mb_value_get(result, "hits");

    if (hits == NULL || hits->type != MB_TYPE_ARRAY)
        return mb_error_set(
            err, MB_ERR_BAD_MESSAGE, "the reply to a query has no hits");
    return MB_OK;
}

static mb_status
ask_once(struct ask *a, struct mb_slice text, struct mb_error *err)
{
    struct membank_reply *reply = NULL;
    struct membank_error cause;
    const struct mb_value *result = NULL;
    mb_status st = pack_query(a, text, false, err);

    if (st != MB_OK)
        return st;
    if (membank_call(a->client, "query", tool_bytes(&a->request), &reply,
            &cause) != MEMBANK_OK)
        return tool_error(&cause, err);
    st = tool_result(reply, a->arena, &result, err);
    if (st == MB_OK)
        st = check_result(result, err);
    if (st == MB_OK && a->json)
        st = print_json(mb_slice_of(NULL, 0), result);
    else if (st == MB_OK)
        print_hits(a, result, text);
    membank_reply_free(reply);
    return st;
}

/* ---- files of questions ---- */

/* A question under way: replies come in any order, output keeps the file's. */
struct question {
    char *id;
    uint64_t ticket;
    struct membank_reply *reply; /* NULL until it is there */
};

struct run {
    struct ask *ask;
    struct lines *lines;
    FILE *out;    /* of the run, NULL for JSON */
    bool is_open; /* out is a file of ours */
    struct question ring[IN_FLIGHT];
    size_t first;
    size_t n;
    uint64_t n_done;
    struct progress progress;
};

/* A word of the run: blanks would break its columns. */
static void
put_word(FILE *out, struct mb_slice s)
{
    for (size_t i = 0; i < s.size; i++) {
        if (s.data[i] <= ' ')
            (void)fprintf(out, "%%%02X", s.data[i]);
        else
            (void)fputc(s.data[i], out);
    }
}

static void
write_run(FILE *out, const char *query, const struct mb_value *result)
{
    const struct mb_value *hits = mb_value_get(result, "hits");
    size_t rank = 0;

    for (size_t i = 0; i < hits->array.n; i++) {
        const struct mb_value *hit = &hits->array.items[i];
        struct mb_slice id = value_str(hit, "id");
        bool seen = false;

        // A daemon that gives several segments of a document: the best counts.
        for (size_t j = 0; j < i && !seen; j++) {
            seen = mb_slice_equal(value_str(&hits->array.items[j], "id"), id);
        }
        if (seen)
            continue;
        put_word(out, mb_slice_cstr(query));
        (void)fputs(" Q0 ", out);
        put_word(out, id);
        (void)fprintf(
            out, " %zu %.6f membank\n", ++rank, float_of(hit, "score"));
    }
}

/* Write the answer to the oldest question and take it out of the ring. */
static mb_status
finish_question(struct run *r, struct mb_error *err)
{
    struct question *q = &r->ring[r->first];
    const struct mb_value *result = NULL;
    membank_status ms = membank_reply_status(q->reply);
    mb_status st;

    mb_arena_reset(r->ask->arena);
    if (ms != MEMBANK_OK)
        st = mb_error_set(err, (mb_status)ms, "query %s: %s", q->id,
            membank_reply_error(q->reply));
    else
        st = tool_result(q->reply, r->ask->arena, &result, err);
    if (st == MB_OK)
        st = check_result(result, err);
    if (st == MB_OK && r->out != NULL)
        write_run(r->out, q->id, result);
    else if (st == MB_OK)
        st = print_json(mb_slice_cstr(q->id), result);
    mb_free(q->id);
    membank_reply_free(q->reply);
    *q = (struct question){0};
    r->first = (r->first + 1) % IN_FLIGHT;
    r->n--;
    r->n_done++;
    return st;
}

/* Wait for one reply, then write all that are due. */
static mb_status
take_reply(struct run *r, struct mb_error *err)
{
    struct membank_reply *reply = NULL;
    struct membank_error cause;
    mb_status st = MB_OK;
    char text[64];
    membank_status ms = membank_poll(r->ask->client, 200, &reply, &cause);
    uint64_t total = lines_bytes_total(r->lines);

    (void)snprintf(
        text, sizeof text, "%llu queries", (unsigned long long)r->n_done);
    progress_show(&r->progress,
        total > 0 ? (double)lines_bytes_read(r->lines) / (double)total : -1,
        text);
    if (ms == MEMBANK_ERR_TIMEOUT)
        return MB_OK;
    if (ms != MEMBANK_OK)
        return tool_error(&cause, err);
    for (size_t i = 0; i < r->n; i++) {
        struct question *q = &r->ring[(r->first + i) % IN_FLIGHT];

        if (q->reply == NULL && q->ticket == membank_reply_ticket(reply)) {
            q->reply = reply;
            reply = NULL;
            break;
        }
    }
    membank_reply_free(reply);
    while (st == MB_OK && r->n > 0 && r->ring[r->first].reply != NULL) {
        st = finish_question(r, err);
    }
    return st;
}

/* Id and text of a line. */
static mb_status
read_question(struct run *r, struct mb_slice line, char **id,
    struct mb_slice *text, struct mb_error *err)
{
    const struct mb_value *v = NULL;
    const struct mb_value *name;
    struct mb_error cause;
    char number[32];
    unsigned long long at = (unsigned long long)lines_number(r->lines);
    mb_status st = json_parse(line, false, r->ask->arena, &v, &cause);

    if (st != MB_OK)
        return mb_error_set(err, st, "queries, line %llu: %s", at, cause.text);
    name = mb_value_get(v, "_id");
    if (name == NULL)
        name = mb_value_get(v, "id");
    *text = value_str(v, "text");
    if (text->size == 0)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "queries, line %llu: an object with \"_id\" and \"text\" is wanted",
            at);
    (void)snprintf(number, sizeof number, "%lld",
        name != NULL && name->type == MB_TYPE_INT ? (long long)name->i
                                                  : (long long)at);
    if (name != NULL && name->type == MB_TYPE_STR)
        *id = mb_strndup((const char *)name->s.data, name->s.size);
    else
        *id = mb_strndup(number, strlen(number));
    return *id != NULL ? MB_OK
                       : mb_error_set(err, MB_ERR_NOMEM, "id of a query");
}

static mb_status
send_question(struct run *r, struct mb_slice line, struct mb_error *err)
{
    struct membank_error cause;
    struct question q = {0};
    struct mb_slice text;
    mb_status st = MB_OK;

    while (st == MB_OK && r->n == IN_FLIGHT) {
        st = take_reply(r, err);
    }
    mb_arena_reset(r->ask->arena);
    if (st == MB_OK)
        st = read_question(r, line, &q.id, &text, err);
    if (st == MB_OK)
        st = pack_query(r->ask, text, true, err);
    if (st == MB_OK &&
        membank_send(r->ask->client, "query", tool_bytes(&r->ask->request),
            &q.ticket, &cause) != MEMBANK_OK)
        st = tool_error(&cause, err);
    if (st != MB_OK) {
        mb_free(q.id);
        return st;
    }
    r->ring[(r->first + r->n) % IN_FLIGHT] = q;
    r->n++;
    return MB_OK;
}

static mb_status
ask_all(struct run *r, struct mb_error *err)
{
    mb_status st = MB_OK;
    bool more = true;

    while (st == MB_OK) {
        struct mb_slice line = {0};

        st = lines_next(r->lines, &line, &more, err);
        if (st != MB_OK || !more)
            break;
        if (line.size > 0)
            st = send_question(r, line, err);
    }
    while (st == MB_OK && r->n > 0) {
        st = take_reply(r, err);
    }
    for (; r->n > 0; r->n--, r->first = (r->first + 1) % IN_FLIGHT) {
        mb_free(r->ring[r->first].id);
        membank_reply_free(r->ring[r->first].reply);
    }
    return st;
}

static mb_status
ask_file(struct ask *a, const char *path, struct mb_error *err)
{
    struct run r = {.ask = a};
    const char *to = mb_cli_str(a->cli, "trec");
    mb_status st = lines_open(path, MAX_TEXT, &r.lines, err);

    if (st != MB_OK)
        return st;
    if (to != NULL && strcmp(to, "-") == 0) {
        r.out = stdout;
    } else if (to != NULL) {
        r.out = fopen(to, "w");
        r.is_open = r.out != NULL;
        if (r.out == NULL)
            st = mb_error_set(
                err, MB_ERR_IO, "create %s: %s", to, strerror(errno));
    }
    progress_init(&r.progress, stderr, false);
    if (st == MB_OK)
        st = ask_all(&r, err);
    progress_clear(&r.progress);
    if (r.is_open && fclose(r.out) != 0 && st == MB_OK)
        st = mb_error_set(err, MB_ERR_IO, "write %s: %s", to, strerror(errno));
    if (st == MB_OK && r.is_open)
        (void)fprintf(stderr, "%llu queries in %.2f s\n",
            (unsigned long long)r.n_done, progress_elapsed(&r.progress));
    lines_close(r.lines);
    return st;
}

/* ---- arguments ---- */

/* The question from the arguments, or from standard input. */
static mb_status
read_text(struct ask *a, struct mb_error *err)
{
    mb_status st = MB_OK;

    if (mb_cli_n_args(a->cli) == 1 && strcmp(mb_cli_arg(a->cli, 0), "-") == 0)
        return file_read("-", &a->text, err);
    for (size_t i = 0; i < mb_cli_n_args(a->cli) && st == MB_OK; i++) {
        if (i > 0)
            st = mb_buffer_append(&a->text, " ", 1);
        if (st == MB_OK)
            st = mb_buffer_append_str(&a->text, mb_cli_arg(a->cli, i));
    }
    if (st != MB_OK)
        return mb_error_set(err, st, "the question is too long");
    return MB_OK;
}

static mb_status
read_vector(struct ask *a, struct mb_error *err)
{
    const char *text = mb_cli_str(a->cli, "vector");
    const struct mb_value *v = NULL;
    struct mb_writer w;
    mb_status st;

    if (text == NULL)
        return MB_OK;
    st = json_parse(mb_slice_cstr(text), false, a->arena, &v, err);
    if (st == MB_OK && v->type != MB_TYPE_ARRAY)
        st = MB_ERR_BAD_ARG;
    if (st != MB_OK)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "--vector: an array of numbers is wanted");
    mb_writer_init(&w, &a->vector);
    mb_write_value(&w, v);
    return w.status;
}

static mb_status
read_options(struct ask *a, struct mb_error *err)
{
    bool many = mb_cli_has(a->cli, "queries");
    mb_status st;

    a->collection = mb_cli_str(a->cli, "collection");
    a->mode = mb_cli_str(a->cli, "mode");
    a->json = mb_cli_has(a->cli, "json");
    if (strcmp(a->mode, "hybrid") != 0 && strcmp(a->mode, "dense") != 0 &&
        strcmp(a->mode, "lexical") != 0)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "--mode %s: hybrid, dense or lexical", a->mode);
    st = mb_cli_u64(a->cli, "top", 1, MAX_K, &a->k, err);
    if (st == MB_OK)
        st = mb_cli_u64(a->cli, "lines", 0, 100000, &a->max_lines, err);
    if (st == MB_OK)
        st = tool_json_map(a->cli, "filter", &a->filter, err);
    if (st == MB_OK)
        st = read_vector(a, err);
    if (st != MB_OK)
        return st;
    if (many && mb_cli_n_args(a->cli) > 0)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "either a question or --queries FILE, not both");
    if (!many && mb_cli_has(a->cli, "trec"))
        return mb_error_set(err, MB_ERR_BAD_ARG, "--trec needs --queries FILE");
    if (many && !a->json && !mb_cli_has(a->cli, "trec"))
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "--queries needs --trec FILE or --json");
    if (!many && mb_cli_n_args(a->cli) == 0 && a->vector.size == 0)
        return mb_error_set(err, MB_ERR_BAD_ARG, "no question");
    return MB_OK;
}

static int
run(struct ask *a)
{
    struct mb_error err;
    mb_status st = read_options(a, &err);

    if (st == MB_ERR_BAD_ARG)
        return mb_cli_usage(&program, &err);
    if (st == MB_OK)
        st = tool_connect(a->cli, &a->client, &err);
    if (st == MB_OK && mb_cli_has(a->cli, "queries"))
        st = ask_file(a, mb_cli_str(a->cli, "queries"), &err);
    else if (st == MB_OK) {
        st = read_text(a, &err);
        if (st == MB_OK)
            st = ask_once(a, mb_buffer_slice(&a->text), &err);
    }
    return st == MB_OK ? 0 : mb_cli_fail(&program, &err);
}

int
main(int argc, char **argv)
{
    struct ask a = {0};
    struct mb_error err;
    mb_status st = mb_cli_parse(&program, argc, argv, &a.cli, &err);
    int code;

    if (st != MB_OK)
        return tool_parse_failed(&program, st, &err);
    mb_buffer_init(&a.filter, MAX_TEXT);
    mb_buffer_init(&a.vector, MAX_TEXT);
    mb_buffer_init(&a.text, MAX_TEXT);
    mb_buffer_init(&a.request, 4 * MAX_TEXT);
    a.arena = mb_arena_new(SIZE_MAX);
    if (a.arena == NULL) {
        (void)mb_error_set(&err, MB_ERR_NOMEM, "no memory to start");
        code = mb_cli_fail(&program, &err);
    } else {
        code = run(&a);
    }
    mb_arena_free(a.arena);
    mb_buffer_fini(&a.filter);
    mb_buffer_fini(&a.vector);
    mb_buffer_fini(&a.text);
    mb_buffer_fini(&a.request);
    membank_close(a.client);
    mb_cli_free(a.cli);
    return tool_finish(&program, code);
}
