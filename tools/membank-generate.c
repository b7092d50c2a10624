/* SPDX-License-Identifier: Apache-2.0
 * tools/membank-generate.c - let the daemon's model go on from a prompt.
 *
 * The text goes to standard output, on a terminal as it comes; the passages
 * that it was given, and what else one may want to know of it, to standard
 * error. So the output of a script is the text and nothing else.
 * Threads: the main thread. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "json.h"
#include "lines.h"
#include "tool.h"

#define MAX_TEXT   ((size_t)16 * 1024 * 1024)
#define MAX_TOKENS 1000000
#define MAX_STOPS  16

static const struct mb_cli_option options[] = {
    TOOL_CONNECT_OPTIONS,
    {"collection", 'c', "NAME", false, "collection that memory looks in", NULL},
    {"retrieve", 'r', "N", false,
        "put so many passages of the collection before the prompt", "0"},
    {"memory", 'm', "JSON", false,
        "what of the memory to use, see Memory in PROTOCOL.md", NULL},
    {"tokens", 'n', "N", false, "generate at most so many tokens", "128"},
    {"temperature", 0, "T", false, "0 takes the most likely token each time",
        "0.8"},
    {"top-k", 0, "N", false, "only so many of the most likely; 0: all", "40"},
    {"top-p", 0, "P", false, "only the fewest with this probability", "0.95"},
    {"min-p", 0, "P", false, "only those with this part of the best one's",
        "0.05"},
    {"repeat-penalty", 0, "X", false, "above 1 makes late tokens less likely",
        "1"},
    {"seed", 0, "N", false, "the same seed gives the same text; any if absent",
        NULL},
    {"stop", 's', "TEXT", true, "end before this text", NULL},
    {"chat", 0, NULL, false, "the prompt is a user's message, for chat models",
        NULL},
    {"system", 0, "TEXT", false, "with --chat: the system's message", NULL},
    {"stream", 0, NULL, false, "write the text as it comes, as on a terminal",
        NULL},
    {"quiet", 'q', NULL, false, "write the text and nothing else", NULL},
    {"json", 0, NULL, false, "print the daemon's reply as JSON", NULL},
    {NULL, 0, NULL, false, NULL, NULL},
};

static const struct mb_cli_example examples[] = {
    {"membank-generate -n 40 \"The history of the world is\"",
        "go on from these words"},
    {"membank-generate -c notes -r 3 \"What happens when the disk is full?\"",
        "with the three best passages before the question"},
    {"membank-generate --chat --system \"Be brief.\" \"Who wrote Faust?\"",
        "a question to a chat model (membankd --model FILE)"},
    {NULL, NULL},
};

static const struct mb_cli_program program = {
    .name = "membank-generate",
    .summary = "let membankd's model go on from a prompt",
    .usage = "[OPTION]... PROMPT...",
    .description =
        "Prints the text that the model makes. The prompt is plain text, or -, "
        "which reads it from standard input; several arguments are joined by "
        "blanks. With --retrieve, passages that the prompt finds stand before "
        "it, as the collection's template says; standard error tells which "
        "were used.\n\n"
        "The default endpoint is ipc://$XDG_RUNTIME_DIR/membank.sock, or "
        "ipc:///tmp/membank-UID.sock where that is unset.",
    .options = options,
    .examples = examples,
};

struct generate {
    struct mb_cli *cli;
    struct membank *client;
    bool json;
    bool stream;
    bool quiet;
    bool ends_line; /* what was written ends with a line feed */
    struct mb_buffer prompt;
    struct mb_buffer memory; /* msgpack, or empty */
    struct mb_buffer request;
    struct mb_arena *arena;
};

/* ---- the request ---- */

/* Numbers that are sent if they were given: the daemon has the same defaults.
 */
struct number {
    const char *option;
    const char *arg;
    double min;
    double max;
    bool whole;
};

static const struct number numbers[] = {
    {"tokens", "max_tokens", 1, MAX_TOKENS, true},
    {"temperature", "temperature", 0, 100, false},
    {"top-k", "top_k", 0, UINT32_MAX, true},
    {"top-p", "top_p", 0, 1, false},
    {"min-p", "min_p", 0, 1, false},
    {"repeat-penalty", "repeat_penalty", 0.01, 100, false},
    {"seed", "seed", 0, 9007199254740992.0, true},
};

#define N_NUMBERS (sizeof numbers / sizeof numbers[0])

static mb_status
write_numbers(struct generate *g, struct mb_writer *w, struct mb_error *err)
{
    mb_status st = MB_OK;

    for (size_t i = 0; i < N_NUMBERS && st == MB_OK; i++) {
        const struct number *n = &numbers[i];
        uint64_t whole = 0;
        double value = 0;

        if (!mb_cli_has(g->cli, n->option))
            continue;
        if (n->whole) {
            st = mb_cli_u64(g->cli, n->option, (uint64_t)n->min,
                (uint64_t)n->max, &whole, err);
            mb_write_kv_uint(w, n->arg, whole);
        } else {
            st = mb_cli_double(g->cli, n->option, n->min, n->max, &value, err);
            mb_write_kv_f64(w, n->arg, value);
        }
    }
    return st;
}

static size_t
count_numbers(const struct generate *g)
{
    size_t n = 0;

    for (size_t i = 0; i < N_NUMBERS; i++) {
        n += mb_cli_has(g->cli, numbers[i].option) ? 1 : 0;
    }
    return n;
}

static void
write_message(struct mb_writer *w, const char *role, struct mb_slice content)
{
    mb_write_map(w, 2);
    mb_write_kv_cstr(w, "role", role);
    mb_write_kv_str(w, "content", content);
}

/* "prompt" or "messages". */
static void
write_prompt(struct generate *g, struct mb_writer *w)
{
    const char *system = mb_cli_str(g->cli, "system");
    struct mb_slice prompt = mb_buffer_slice(&g->prompt);

    if (!mb_cli_has(g->cli, "chat")) {
        mb_write_kv_str(w, "prompt", prompt);
        return;
    }
    mb_write_cstr(w, "messages");
    mb_write_array(w, system != NULL ? 2 : 1);
    if (system != NULL)
        write_message(w, "system", mb_slice_cstr(system));
    write_message(w, "user", prompt);
}

/* Arguments of op generate in g->request. */
static mb_status
pack_request(struct generate *g, struct mb_error *err)
{
    const char *collection = mb_cli_str(g->cli, "collection");
    size_t n_stops = mb_cli_count(g->cli, "stop");
    struct mb_writer w;
    mb_status st;

    mb_writer_init(&w, &g->request);
    mb_write_map(&w, 2 + count_numbers(g) + (collection != NULL ? 1 : 0) +
                         (g->memory.size > 0 ? 1 : 0) + (n_stops > 0 ? 1 : 0));
    write_prompt(g, &w);
    mb_write_kv_bool(&w, "stream", g->stream);
    if (collection != NULL)
        mb_write_kv_cstr(&w, "collection", collection);
    if (g->memory.size > 0) {
        mb_write_cstr(&w, "memory");
        mb_write_raw(&w, mb_buffer_slice(&g->memory));
    }
    if (n_stops > 0) {
        mb_write_cstr(&w, "stop");
        mb_write_array(&w, n_stops);
    }
    for (size_t i = 0; i < n_stops; i++) {
        mb_write_cstr(&w, mb_cli_nth(g->cli, "stop", i));
    }
    st = write_numbers(g, &w, err);
    if (st != MB_OK)
        return st;
    return w.status == MB_OK
               ? MB_OK
               : mb_error_set(err, w.status, "the prompt is too long");
}

/* ---- replies ---- */

static void
put_text(struct generate *g, struct mb_slice text)
{
    if (text.size == 0)
        return;
    (void)fwrite(text.data, 1, text.size, stdout);
    (void)fflush(stdout);
    g->ends_line = text.data[text.size - 1] == '\n';
}

/* Which passages stood before the prompt, and how it ended, on stderr. */
static void
tell_about(const struct mb_value *result)
{
    const struct mb_value *segments =
        mb_value_get(mb_value_get(result, "used"), "segments");
    size_t n = segments != NULL ? segments->array.n : 0;
    struct mb_slice finish = value_str(result, "finish");

    for (size_t i = 0; i < n; i++) {
        const struct mb_value *s = &segments->array.items[i];
        struct mb_slice id = value_str(s, "id");

        (void)fprintf(stderr, "used: %.*s, segment %llu, score %.3f\n",
            (int)id.size, (const char *)id.data,
            (unsigned long long)value_u64(s, "segment", 0),
            value_f64(s, "score", 0));
    }
    (void)fprintf(stderr,
        "%llu tokens read, %llu generated in %.2f s; ended by: %.*s; seed "
        "%llu\n",
        (unsigned long long)value_u64(result, "prompt_tokens", 0),
        (unsigned long long)value_u64(result, "tokens", 0),
        value_f64(result, "took_us", 0) / 1e6, (int)finish.size,
        (const char *)finish.data,
        (unsigned long long)value_u64(result, "seed", 0));
}

static mb_status
print_json(const struct mb_value *result, struct mb_error *err)
{
    struct mb_buffer text;
    struct json_writer w;

    mb_buffer_init(&text, 16 * MAX_TEXT);
    json_writer_init(&w, &text);
    json_value(&w, result);
    if (w.status == MB_OK)
        tool_put_line(&text);
    mb_buffer_fini(&text);
    return w.status == MB_OK ? MB_OK
                             : mb_error_set(err, w.status, "the reply as JSON");
}

/* A part, or the end (*done). Takes reply. */
static mb_status
take_reply(struct generate *g, struct membank_reply *reply, bool *done,
    struct mb_error *err)
{
    membank_status ms = membank_reply_status(reply);
    const struct mb_value *result = NULL;
    mb_status st;

    *done = !membank_reply_has_more(reply);
    mb_arena_reset(g->arena);
    if (ms != MEMBANK_OK)
        st = mb_error_set(err, (mb_status)ms, "%s", membank_reply_error(reply));
    else
        st = tool_result(reply, g->arena, &result, err);
    if (st == MB_OK && !*done && !g->json)
        put_text(g, value_str(result, "text"));
    if (st == MB_OK && *done && g->json)
        st = print_json(result, err);
    if (st == MB_OK && *done && !g->json) {
        if (!g->stream)
            put_text(g, value_str(result, "text"));
        if (!g->ends_line)
            (void)fputc('\n', stdout);
        (void)fflush(stdout);
        if (!g->quiet)
            tell_about(result);
    }
    membank_reply_free(reply);
    return st;
}

static mb_status
ask(struct generate *g, struct mb_error *err)
{
    struct membank_error cause;
    uint64_t ticket;
    bool done = false;
    mb_status st = MB_OK;

    if (membank_send(g->client, "generate", tool_bytes(&g->request), &ticket,
            &cause) != MEMBANK_OK)
        return tool_error(&cause, err);
    while (st == MB_OK && !done) {
        struct membank_reply *reply = NULL;
        membank_status ms = membank_poll(g->client, 1000, &reply, &cause);

        if (ms == MEMBANK_OK)
            st = take_reply(g, reply, &done, err);
        else if (ms != MEMBANK_ERR_TIMEOUT)
            st = tool_error(&cause, err);
    }
    // What came before an error stays on a line of its own.
    if (st != MB_OK && !g->ends_line)
        (void)fputc('\n', stdout);
    return st;
}

/* ---- arguments ---- */

static mb_status
read_prompt(struct generate *g, struct mb_error *err)
{
    mb_status st = MB_OK;

    if (mb_cli_n_args(g->cli) == 1 && strcmp(mb_cli_arg(g->cli, 0), "-") == 0)
        return file_read("-", &g->prompt, err);
    for (size_t i = 0; i < mb_cli_n_args(g->cli) && st == MB_OK; i++) {
        if (i > 0)
            st = mb_buffer_append(&g->prompt, " ", 1);
        if (st == MB_OK)
            st = mb_buffer_append_str(&g->prompt, mb_cli_arg(g->cli, i));
    }
    return st == MB_OK ? st : mb_error_set(err, st, "the prompt is too long");
}

/* --memory, or what --retrieve stands for. */
static mb_status
read_memory(struct generate *g, struct mb_error *err)
{
    struct mb_writer w;
    uint64_t n = 0;
    mb_status st = mb_cli_u64(g->cli, "retrieve", 0, 10000, &n, err);

    if (st == MB_OK)
        st = tool_json_map(g->cli, "memory", &g->memory, err);
    if (st != MB_OK || n == 0)
        return st;
    if (g->memory.size > 0)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "either --retrieve or --memory, not both");
    mb_writer_init(&w, &g->memory);
    mb_write_map(&w, 1);
    mb_write_kv_uint(&w, "retrieve", n);
    return w.status == MB_OK ? MB_OK
                             : mb_error_set(err, w.status, "--retrieve");
}

static mb_status
read_options(struct generate *g, struct mb_error *err)
{
    mb_status st = read_memory(g, err);

    g->json = mb_cli_has(g->cli, "json");
    g->quiet = mb_cli_has(g->cli, "quiet");
    g->stream = !g->json &&
                (mb_cli_has(g->cli, "stream") || isatty(STDOUT_FILENO) == 1);
    g->ends_line = true;
    if (st != MB_OK)
        return st;
    if (mb_cli_n_args(g->cli) == 0)
        return mb_error_set(err, MB_ERR_BAD_ARG, "no prompt");
    if (mb_cli_has(g->cli, "system") && !mb_cli_has(g->cli, "chat"))
        return mb_error_set(err, MB_ERR_BAD_ARG, "--system needs --chat");
    if (g->memory.size > 0 && !mb_cli_has(g->cli, "collection"))
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "--retrieve and --memory need --collection");
    if (mb_cli_count(g->cli, "stop") > MAX_STOPS)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "--stop: at most %d", MAX_STOPS);
    return MB_OK;
}

static int
run(struct generate *g)
{
    struct mb_error err = {0};
    mb_status st = read_options(g, &err);

    if (st == MB_OK)
        st = read_prompt(g, &err);
    if (st == MB_OK)
        st = pack_request(g, &err);
    if (st == MB_ERR_BAD_ARG)
        return mb_cli_usage(&program, &err);
    if (st == MB_OK)
        st = tool_connect(g->cli, &g->client, &err);
    if (st == MB_OK)
        st = ask(g, &err);
    return st == MB_OK ? 0 : mb_cli_fail(&program, &err);
}

int
main(int argc, char **argv)
{
    struct generate g = {0};
    struct mb_error err;
    mb_status st = mb_cli_parse(&program, argc, argv, &g.cli, &err);
    int code;

    if (st != MB_OK)
        return tool_parse_failed(&program, st, &err);
    mb_buffer_init(&g.prompt, MAX_TEXT);
    mb_buffer_init(&g.memory, MAX_TEXT);
    mb_buffer_init(&g.request, 4 * MAX_TEXT);
    g.arena = mb_arena_new(SIZE_MAX);
    if (g.arena == NULL) {
        (void)mb_error_set(&err, MB_ERR_NOMEM, "no memory to start");
        code = mb_cli_fail(&program, &err);
    } else {
        code = run(&g);
    }
    mb_arena_free(g.arena);
    mb_buffer_fini(&g.prompt);
    mb_buffer_fini(&g.memory);
    mb_buffer_fini(&g.request);
    membank_close(g.client);
    mb_cli_free(g.cli);
    return tool_finish(&program, code);
}
