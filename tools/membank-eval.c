/* SPDX-License-Identifier: Apache-2.0
 * tools/membank-eval.c - does search find what people judged relevant, and how
 * well does a model predict text?
 *
 * The latter is in eval/ppl.c. The former runs a folder of the BEIR layout the way a user would: a daemon of its own on
 * a temporary store (or one that runs, with --connect), membank-ingest for the
 * corpus, membank-query for the questions in each mode; then compares the best
 * segment of each document with the judgements. What is measured is the whole
 * product, through its socket.
 * Invariants: nothing stays behind: daemon, folder and collection go at the
 * end, also after a failure or SIGINT.
 * Threads: the main thread. */
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "facts.h"
#include "json.h"
#include "measure.h"
#include "own.h"
#include "passkey.h"
#include "ppl.h"
#include "tool.h"
#include "verbatim.h"

#define MAX_PATH OWN_MAX_PATH
#define N_MODES  3

static const struct mb_cli_option options[] = {
    {"connect", 'e', "ENDPOINT", false,
        "with ir: use this daemon instead of one of its own; a collection "
        "eval-PID is made and dropped",
        NULL},
    {"model", 0, "FILE", false,
        "the model: with ir, of its own daemon; with ppl, to measure; else the "
        "bundled one",
        NULL},
    {"language", 0, "NAME", false, "with ir: language of the collection",
        "english"},
    {"window", 0, "TOKENS", false, "with ppl: tokens that are read at once",
        "512"},
    {"stride", 0, "TOKENS", false,
        "with ppl: tokens from one window to the next; as many as the window "
        "if not given",
        NULL},
    {"context", 0, "KIND", false,
        "with ppl: none reads windows; landmark reads a document as one "
        "context, of segments that retrieve blocks of what came before; hmt "
        "gives segments memories of those before instead (of the model's "
        "companion), both does both; sensory repeats the last tokens alone, "
        "with -k 0 or landmarks: the control",
        "none"},
    {"k", 'k', "BLOCKS", false,
        "with landmarks: blocks that each choice retrieves; 0: none", "4"},
    {"segment", 0, "BLOCKS", false,
        "with landmarks: blocks of 63 tokens that are read together", "4"},
    {"select", 0, "MODE", false,
        "with landmarks: who chooses together while text is read: each row's "
        "head, a group of heads, a row, or a chunk's head",
        "chunk"},
    {"tail", 0, "KIND", false,
        "with landmarks: how blocks count that are not retrieved: none, "
        "moments "
        "(by mean and variance of their keys) or landmark (by their landmark)",
        "none"},
    {"lengths", 0, "TOKENS,...", false, "with passkey: how long texts are",
        "1024,4096,8192,16384,32768"},
    {"prompts", 'n', "N", false,
        "with passkey and verbatim: prompts of each length", "20"},
    {"decoys", 0, "N", false, "with passkey: keys of others in each text", "0"},
    {"distances", 0, "TOKENS,...", false,
        "with verbatim: tokens between the lists", "64,512,2048"},
    {"words", 0, "N", false, "with verbatim: nouns of a list, 2 to 16", "8"},
    {"digits", 0, "N", false, "with passkey: of a key, 1 to 9", "5"},
    {"filler", 0, "FILE", false,
        "with passkey: natural text around the keys; else five sentences "
        "again and again",
        NULL},
    {"seed", 0, "N", false,
        "with passkey and facts: other keys, another world for other numbers",
        "1"},
    {"seeds", 0, "N", false, "with facts: as many worlds, one after another",
        "1"},
    {"fan-out", 0, "N", false,
        "with facts: topics below a topic, on three levels; 2 to 8", "8"},
    {"tokens", 0, "N", false, "with facts: tokens of each training", "2048000"},
    {"batch", 0, "N", false, "with facts: windows of 64 tokens a step", "32"},
    {"route", 0, "KIND", false,
        "with facts: product routes texts as a daemon does, oracle by the "
        "topics that they were made from",
        "product"},
    {"csv", 0, "FILE", false,
        "with passkey and facts: write each prompt's, or each run's, outcome; "
        "with ppl: a line for each file",
        NULL},
    {"svg", 0, "FILE", false, "with passkey: draw right answers by depth",
        NULL},
    {"cache", 0, "TYPE", false, "with ppl: keys and values, f16, q8_0 or f32",
        "f16"},
    {"threads", 0, "N", false,
        "of the model: threads; 0: one for each processor", "0"},
    {"json", 0, NULL, false,
        "print JSON, one line a folder and mode, or a file", NULL},
    {NULL, 0, NULL, false, NULL, NULL},
};

static const struct mb_cli_example examples[] = {
    {"membank-eval ir data/cranfield", "one collection, three modes"},
    {"membank-eval --json ir beir/* > results.jsonl",
        "several, for a program to read"},
    {"membank-eval --model m.gguf --stride 256 ppl a.txt b.jsonl",
        "perplexity, each token with 256 or more before it"},
    {"membank-eval --context landmark -k 2 ppl book.txt",
        "perplexity with two blocks retrieved from all that came before"},
    {"membank-eval -n 50 --lengths 32768 --svg depth.svg passkey",
        "how often a number in 32,768 tokens is found again"},
    {"membank-eval --fan-out 4 --tokens 256000 --batch 16 facts",
        "what memory blocks keep of a world with 640 facts"},
    {NULL, NULL},
};

static const struct mb_cli_program program = {
    .name = "membank-eval",
    .summary = "measure search against judgements, and models on texts",
    .usage = "[OPTION]... ir DIR... | ppl FILE... | passkey | verbatim | facts",
    .description =
        "ir: Each DIR holds corpus.jsonl (_id, title, text), queries.jsonl "
        "(_id, "
        "text) and qrels.tsv (a header, then query-id, corpus-id and grade "
        "with tabs between), the layout of BEIR. The corpus is put into a "
        "fresh daemon, the questions are asked by words (lexical), by meaning "
        "(dense) and by both (hybrid); nDCG@10, recall@100 and MRR are means "
        "over the questions that have a relevant document.\n\n"
        "ppl: Each FILE is a text, or JSON lines of documents with a text. A "
        "document is preceded by the beginning-of-text token and followed by "
        "the end-of-text token that the vocabulary has; it is read in windows, "
        "and each token but the first is predicted once. Perplexity is e to "
        "the mean of -log p; bits per byte do not depend on the vocabulary, so "
        "that models can be compared.\n\n"
        "passkey: A number of five digits, or --digits, hides in a long text, "
        "which is read as a "
        "context through landmarks; at its end the model is asked for it. "
        "Right answers have all digits right; found are those prompts whose "
        "key was in a block that was retrieved, or at hand, for the answer. "
        "-k 0 retrieves nothing: the control.\n\n\n\n"
        "verbatim: A list of nouns, other text, then a list with the same "
        "nouns "
        "(repeated), in another order (permuted), or with others (novel): the "
        "second list's -log p in percent of the first's, by each path on which "
        "it may be known: none at all, a window, landmarks, and a search whose "
        "best segment is pasted. Without memory all are about 100."
        "facts: A made-up world of entities, of which few texts speak of most "
        "and many of a few, and the 118 elements. A small model learns from "
        "its texts; then blocks are trained beside it, by the topics that a "
        "daemon finds in the texts, with the model frozen (A3, what the "
        "product does) and together with it (A2), beside a dense model with "
        "as many parameters a pass (B) and one of 2.6 times the size. Each is "
        "asked for all facts. The criteria are those of the paper on "
        "hierarchical memories, made small; what is missed is shown as missed. "
        "With the defaults a seed takes about an hour of one processor.",
    .options = options,
    .examples = examples,
};

static const char *const modes[N_MODES] = {"lexical", "dense", "hybrid"};

struct eval {
    struct mb_cli *cli;
    struct own own;
    char collection[64];
    bool json;
    bool has_header;
};

static void
on_signal(int number)
{
    (void)number;
    own_is_stopped = 1;
}

/* ---- one folder ---- */

static mb_status
ingest(const struct eval *e, const char *dir, struct mb_error *err)
{
    char corpus[MAX_PATH];
    const char *language = mb_cli_str(e->cli, "language");
    char *argv[] = {(char *)"membank-ingest", (char *)"--connect",
        (char *)e->own.endpoint, (char *)"-c", (char *)e->collection,
        (char *)"--language", (char *)language, (char *)"--wait",
        (char *)"searchable", (char *)"--jsonl", corpus, NULL};
    pid_t pid = 0;
    mb_status st;

    (void)snprintf(corpus, sizeof corpus, "%s/corpus.jsonl", dir);
    st = own_run(&e->own, argv[0], argv, false, &pid, err);
    return st == MB_OK ? own_finish(pid, argv[0], err) : st;
}

static mb_status
ask(const struct eval *e, const char *dir, const char *mode, const char *run,
    struct mb_error *err)
{
    char queries[MAX_PATH];
    char *argv[] = {(char *)"membank-query", (char *)"--connect",
        (char *)e->own.endpoint, (char *)"-c", (char *)e->collection,
        (char *)"-k", (char *)"100", (char *)"--mode", (char *)mode,
        (char *)"--queries", queries, (char *)"--trec", (char *)run, NULL};
    pid_t pid = 0;
    mb_status st;

    (void)snprintf(queries, sizeof queries, "%s/queries.jsonl", dir);
    st = own_run(&e->own, argv[0], argv, false, &pid, err);
    return st == MB_OK ? own_finish(pid, argv[0], err) : st;
}

static mb_status
print_json(const char *dir, const char *mode, const struct measures *m)
{
    struct mb_buffer buf;
    struct json_writer w;

    mb_buffer_init(&buf, SIZE_MAX);
    json_writer_init(&w, &buf);
    json_object_begin(&w);
    json_kv_cstr(&w, "folder", dir);
    json_kv_cstr(&w, "mode", mode);
    json_kv_u64(&w, "queries", m->n_queries);
    json_kv_f64(&w, "ndcg10", m->ndcg10);
    json_kv_f64(&w, "recall100", m->recall100);
    json_kv_f64(&w, "mrr", m->mrr);
    json_object_end(&w);
    if (w.status == MB_OK)
        tool_put_line(&buf);
    mb_buffer_fini(&buf);
    return w.status;
}

static void
print_row(
    struct eval *e, const char *dir, const char *mode, const struct measures *m)
{
    if (!e->has_header)
        (void)printf("%-32s  %-8s  %7s  %8s  %10s  %8s\n", "folder", "mode",
            "queries", "nDCG@10", "recall@100", "MRR");
    e->has_header = true;
    (void)printf("%-32s  %-8s  %7zu  %8.4f  %10.4f  %8.4f\n", dir, mode,
        m->n_queries, m->ndcg10, m->recall100, m->mrr);
    (void)fflush(stdout);
}

static mb_status
measure_modes(struct eval *e, const char *dir, const struct judgements *j,
    struct mb_error *err)
{
    char run[MAX_PATH + 8];
    mb_status st = MB_OK;

    (void)snprintf(run, sizeof run, "%s/run", e->own.folder);
    for (size_t i = 0; st == MB_OK && i < N_MODES; i++) {
        struct measures m;

        st = ask(e, dir, modes[i], run, err);
        if (st == MB_OK)
            st = judgements_measure(j, run, &m, err);
        if (st == MB_OK && e->json)
            st = print_json(dir, modes[i], &m);
        else if (st == MB_OK)
            print_row(e, dir, modes[i], &m);
    }
    (void)unlink(run);
    return st;
}

/* Ingest, ask, measure; the collection is dropped in any case. */
static mb_status
evaluate(struct eval *e, const char *dir, struct mb_error *err)
{
    struct judgements *j = NULL;
    struct membank *client = NULL;
    char path[MAX_PATH];
    mb_status st;

    (void)snprintf(path, sizeof path, "%s/qrels.tsv", dir);
    st = judgements_load(path, &j, err);
    if (st == MB_OK)
        st = own_reach(&e->own, &client, err);
    if (st == MB_OK) {
        st = ingest(e, dir, err);
        if (st == MB_OK)
            st = measure_modes(e, dir, j, err);
        // It may not be there; the evaluation's own failure says more.
        if (membank_drop(client, e->collection, NULL) != MEMBANK_OK &&
            st == MB_OK)
            st = mb_error_set(
                err, MB_ERR_IO, "collection %s stays behind", e->collection);
    }
    membank_close(client);
    judgements_free(j);
    return st;
}

/* ---- the whole ---- */

static int
run(struct eval *e)
{
    const char *connect = mb_cli_str(e->cli, "connect");
    size_t n = mb_cli_n_args(e->cli);
    struct mb_error err;
    mb_status st;

    if (n >= 2 && strcmp(mb_cli_arg(e->cli, 0), "ppl") == 0)
        return ppl_run(e->cli, 1, &err) == MB_OK ? 0
                                                 : mb_cli_fail(&program, &err);
    if (n == 1 && strcmp(mb_cli_arg(e->cli, 0), "verbatim") == 0)
        return verbatim_run(e->cli, &err) == MB_OK
                   ? 0
                   : mb_cli_fail(&program, &err);
    if (n == 1 && strcmp(mb_cli_arg(e->cli, 0), "passkey") == 0)
        return passkey_run(e->cli, &err) == MB_OK ? 0
                                                  : mb_cli_fail(&program, &err);
    if (n == 1 && strcmp(mb_cli_arg(e->cli, 0), "facts") == 0)
        return facts_run(e->cli, &err) == MB_OK ? 0
                                                : mb_cli_fail(&program, &err);
    if (n < 2 || strcmp(mb_cli_arg(e->cli, 0), "ir") != 0) {
        (void)mb_error_set(&err, MB_ERR_BAD_ARG,
            "what to measure: ir DIR..., ppl FILE..., passkey or facts");
        return mb_cli_usage(&program, &err);
    }
    e->json = mb_cli_has(e->cli, "json");
    own_find_tools(&e->own);
    (void)snprintf(
        e->collection, sizeof e->collection, "eval-%ld", (long)getpid());
    st = tool_temp_folder("membank-eval", e->own.folder, &err);
    if (st == MB_OK && connect != NULL)
        (void)snprintf(e->own.endpoint, sizeof e->own.endpoint, "%s", connect);
    else if (st == MB_OK)
        st = own_start(&e->own, mb_cli_str(e->cli, "model"), &err);
    for (size_t i = 1; st == MB_OK && i < n; i++)
        st = evaluate(e, mb_cli_arg(e->cli, i), &err);
    own_stop(&e->own);
    if (e->own.folder[0] != '\0')
        tool_remove_folder(e->own.folder);
    return st == MB_OK ? 0 : mb_cli_fail(&program, &err);
}

/* Must what it does be ended in order? All else just ends by a signal. */
static bool
leaves_something(const struct mb_cli *cli)
{
    const char *what = mb_cli_n_args(cli) > 0 ? mb_cli_arg(cli, 0) : "";

    return strcmp(what, "ir") == 0 || strcmp(what, "facts") == 0;
}

int
main(int argc, char **argv)
{
    struct eval e = {0};
    struct mb_error err;
    struct sigaction act = {.sa_handler = on_signal};
    mb_status st = mb_cli_parse(&program, argc, argv, &e.cli, &err);
    int code;

    if (st != MB_OK)
        return tool_parse_failed(&program, st, &err);
    if (leaves_something(e.cli)) {
        (void)sigaction(SIGINT, &act, NULL);
        (void)sigaction(SIGTERM, &act, NULL);
    }
    code = run(&e);
    mb_cli_free(e.cli);
    return tool_finish(&program, code);
}
