/* SPDX-License-Identifier: Apache-2.0
 * tools/train/eval.c - `membank-train eval`: what a model knows, as a table.
 *
 * Of a run's folder or of a GGUF file: losses on held-out text and answers to
 * the synthetic tasks, without landmark rows and with them, by the code that
 * trains. The prose of the tasks comes from the held-out text, too.
 * Threads: the main thread; the judge has its own. */
#include <math.h>
#include <string.h>
#include <sys/stat.h>

#include "mb_checkpoint.h"
#include "mb_import.h"
#include "score.h"

#define DEFAULT_ROWS  640
#define DEFAULT_TASKS 64

struct eval {
    const char *model;
    struct config config; /* of a run */
    struct mb_buffer config_text;
    struct checkpoint *checkpoint; /* of a run */
    struct mb_gguf *gguf;          /* the model, or the vocabulary of a run */
    struct mb_tokenizer *tok;
    struct imported imported;
    struct export_weight *weights; /* of a run */
    size_t n_weights;
    struct train_shape shape;
    struct config_heldout texts[CONFIG_MAX_HELDOUT];
    size_t n_texts;
    struct shard *shards[CONFIG_MAX_HELDOUT];
    struct windows *windows;
    struct judge *judge;
    struct scorer *scorer;
    uint64_t rows;
    uint64_t text_tokens;
    uint64_t max_windows;
    uint64_t n_tasks;
    uint64_t threads;
    bool csv;
};

/* ---- the model ---- */

static mb_status
open_run(struct eval *e, struct mb_error *err)
{
    char path[TRAIN_MAX_PATH];
    mb_status st = train_path(e->model, "config", path, err);
    if (st == MB_OK)
        st = train_read_config(path, &e->config, &e->config_text, err);
    if (st == MB_OK)
        st = train_path(e->model, "checkpoint", path, err);
    if (st == MB_OK)
        st = checkpoint_open(path, &e->checkpoint, err);
    if (st == MB_OK)
        st = train_open_vocab(e->config.tokenizer, &e->gguf, &e->tok, err);
    if (st != MB_OK)
        return st;
    e->weights = train_checkpoint_weights(e->checkpoint, &e->n_weights);
    if (!e->weights)
        return mb_error_set(err, MB_ERR_NOMEM, "weights");
    e->shape = config_shape(&e->config, mb_tokenizer_n_vocab(e->tok));
    e->n_texts = e->config.n_heldout;
    memcpy(e->texts, e->config.heldout, sizeof e->texts);
    e->rows = e->config.rows;
    return MB_OK;
}

static mb_status
open_model(struct eval *e, struct mb_error *err)
{
    struct stat info;
    mb_status st = MB_OK;
    if (stat(e->model, &info) == 0 && S_ISDIR(info.st_mode)) {
        st = open_run(e, err);
    } else {
        st = train_open_vocab(e->model, &e->gguf, &e->tok, err);
        if (st == MB_OK)
            st = import_gguf(e->gguf, &e->imported, err);
        e->shape = e->imported.shape;
    }
    if (st != MB_OK)
        return st;
    if (e->shape.n_vocab != mb_tokenizer_n_vocab(e->tok))
        return mb_error_set(err, MB_ERR_MISMATCH,
            "%s: %zu rows of the embedding, %zu tokens", e->model,
            e->shape.n_vocab, mb_tokenizer_n_vocab(e->tok));
    return judge_new(&e->shape, e->weights ? e->weights : e->imported.weights,
        e->weights ? e->n_weights : e->imported.n_weights, (unsigned)e->threads,
        &e->judge, err);
}

/* ---- texts ---- */

/* NAME=SHARD arguments stand instead of a run's own texts. */
static mb_status
name_texts(struct eval *e, const struct mb_cli *cli, struct mb_error *err)
{
    size_t n = mb_cli_n_args(cli) - 2;
    if (n > CONFIG_MAX_HELDOUT)
        return mb_error_set(err, MB_ERR_BAD_ARG, "eval takes %d texts at most",
            CONFIG_MAX_HELDOUT);
    if (n > 0)
        e->n_texts = n;
    for (size_t i = 0; i < n; i++) {
        struct config_heldout *text = &e->texts[i];
        const char *arg = mb_cli_arg(cli, i + 2);
        const char *equals = strchr(arg, '=');
        size_t size = equals ? (size_t)(equals - arg) : 0;
        if (size == 0 || size >= sizeof text->name ||
            strlen(equals + 1) >= sizeof text->path)
            return mb_error_set(
                err, MB_ERR_BAD_ARG, "%s: NAME=SHARD is wanted", arg);
        *text = (struct config_heldout){{0}, {0}};
        memcpy(text->name, arg, size);
        memcpy(text->path, equals + 1, strlen(equals + 1));
    }
    if (e->n_texts == 0)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "eval wants texts: NAME=SHARD, a shard of the model's tokens");
    return MB_OK;
}

static mb_status
open_texts(struct eval *e, struct mb_error *err)
{
    struct windows_source sources[CONFIG_MAX_HELDOUT];
    mb_status st = MB_OK;
    for (size_t i = 0; st == MB_OK && i < e->n_texts; i++) {
        st = shard_open(e->texts[i].path, &e->shards[i], err);
        if (st == MB_OK && !shard_is_of(e->shards[i], e->tok))
            st = mb_error_set(err, MB_ERR_MISMATCH,
                "%s: tokens of another tokenizer", e->texts[i].path);
        sources[i] = (struct windows_source){e->shards[i], 1};
    }
    if (st != MB_OK)
        return st;
    const struct windows_options o = {
        .tok = e->tok,
        .sources = sources,
        .n_sources = e->n_texts,
        .n_rows = (size_t)e->rows,
        .seed = 1,
        .heldout_tokens = (size_t)e->text_tokens,
    };
    st = windows_new(&o, &e->windows, err);
    if (st == MB_OK)
        st = scorer_new(e->judge, e->windows, (size_t)e->rows, &e->scorer, err);
    return st;
}

/* ---- tables ---- */

static const char *
form_name(bool landmarks)
{
    return landmarks ? "with" : "without";
}

static mb_status
show_text(const struct eval *e, size_t i, bool landmarks, double *plain,
    struct mb_error *err)
{
    struct score s;
    char change[24] = "";
    const char *name = e->texts[i].name;
    mb_status st = score_text(
        e->scorer, e->shards[i], landmarks, (size_t)e->max_windows, &s, err);
    if (st != MB_OK)
        return st;
    double loss = score_loss(&s);
    double bits = score_bits_per_byte(loss, e->shards[i]);
    if (landmarks)
        (void)snprintf(
            change, sizeof change, "%+.2f%%", 100 * (exp(loss - *plain) - 1));
    else
        *plain = loss;
    if (e->csv)
        (void)printf("text,%s,%s,,%zu,%zu,%.6f,%.6f,%.4f,%zu,,\n", name,
            form_name(landmarks), s.n_windows, s.n_targets, loss, bits,
            exp(loss), s.n_right);
    else
        (void)printf("%-16s  %9s  %8zu  %8zu  %10.4f  %9.4f  %10.2f  %s\n",
            name, form_name(landmarks), s.n_windows, s.n_targets, loss, bits,
            exp(loss), change);
    (void)fflush(stdout);
    return MB_OK;
}

static void
show_answers(const struct eval *e, window_kind kind, bool landmarks,
    const char *distance, const struct score *s)
{
    const char *name = score_task_name(kind);
    if (s->n_answers == 0)
        return;
    if (e->csv)
        (void)printf("task,%s,%s,%s,%zu,%zu,%.6f,,,%zu,%zu,%zu\n", name,
            form_name(landmarks), distance, s->n_windows, s->n_targets,
            score_loss(s), s->n_right, s->n_answers, s->n_exact);
    else
        (void)printf("%-16s  %9s  %8s  %8zu  %9.1f%%  %8.1f%%  %10.4f\n", name,
            form_name(landmarks), distance, s->n_answers,
            100.0 * (double)s->n_exact / (double)s->n_answers,
            100.0 * (double)s->n_right / (double)s->n_targets, score_loss(s));
}

static mb_status
show_task(const struct eval *e, window_kind kind, bool landmarks,
    struct mb_error *err)
{
    struct score s[SCORE_N_DISTANCES];
    struct score all = {0};
    mb_status st =
        score_task(e->scorer, kind, landmarks, (size_t)e->n_tasks, s, err);
    for (size_t d = 0; st == MB_OK && d < SCORE_N_DISTANCES; d++)
        score_add(&all, &s[d]);
    if (st == MB_OK)
        show_answers(e, kind, landmarks, "all", &all);
    for (size_t d = 0; st == MB_OK && d < SCORE_N_DISTANCES; d++)
        show_answers(e, kind, landmarks, score_distance_name(d), &s[d]);
    (void)fflush(stdout);
    return st;
}

static mb_status
show_all(const struct eval *e, bool has_landmarks, struct mb_error *err)
{
    int n_forms = has_landmarks ? 2 : 1;
    mb_status st = MB_OK;
    if (e->csv)
        (void)printf("kind,name,landmarks,distance,windows,targets,nats,"
                     "bits_per_byte,perplexity,right,answers,exact\n");
    else
        (void)printf("%-16s  %9s  %8s  %8s  %10s  %9s  %10s\n", "text",
            "landmarks", "windows", "targets", "nats/token", "bits/byte",
            "perplexity");
    for (size_t i = 0; i < e->n_texts; i++) {
        double plain = 0;
        for (int f = 0; st == MB_OK && f < n_forms && !train_is_stopped; f++)
            st = show_text(e, i, f == 1, &plain, err);
    }
    if (!e->csv && e->n_tasks > 0)
        (void)printf("\n%-16s  %9s  %8s  %8s  %10s  %9s  %10s\n", "task",
            "landmarks", "distance", "answers", "exact", "tokens",
            "nats/token");
    for (int kind = 0; e->n_tasks > 0 && kind < WINDOW_N_TASKS; kind++) {
        for (int f = 0; st == MB_OK && f < n_forms && !train_is_stopped; f++)
            st = show_task(e, (window_kind)kind, f == 1, err);
    }
    if (st == MB_OK && train_is_stopped)
        st = mb_error_set(err, MB_ERR_CANCELLED, "stopped");
    return st;
}

/* ---- the whole ---- */

static mb_status
read_options(struct eval *e, const struct mb_cli *cli, struct mb_error *err)
{
    mb_status st =
        mb_cli_u64(cli, "rows", WINDOWS_MIN_ROWS, 65536, &e->rows, err);
    if (st == MB_OK)
        st = mb_cli_u64(cli, "text-tokens", 1, e->rows, &e->text_tokens, err);
    if (st == MB_OK)
        st =
            mb_cli_u64(cli, "windows", 1, UINT64_MAX / 2, &e->max_windows, err);
    if (st == MB_OK)
        st = mb_cli_u64(cli, "tasks", 0, 1000000, &e->n_tasks, err);
    return st;
}

static void
eval_fini(struct eval *e)
{
    scorer_free(e->scorer);
    judge_free(e->judge);
    windows_free(e->windows);
    for (size_t i = 0; i < CONFIG_MAX_HELDOUT; i++)
        shard_close(e->shards[i]);
    mb_free(e->weights);
    imported_free(&e->imported);
    checkpoint_close(e->checkpoint);
    mb_tokenizer_free(e->tok);
    mb_gguf_close(e->gguf);
    mb_buffer_fini(&e->config_text);
}

mb_status
train_eval(const struct mb_cli *cli, struct mb_error *err)
{
    struct eval e = {
        .model = mb_cli_arg(cli, 1),
        .rows = DEFAULT_ROWS,
        .max_windows = UINT64_MAX / 2,
        .n_tasks = DEFAULT_TASKS,
        .csv = mb_cli_has(cli, "csv"),
    };
    if (!e.model)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "eval wants the folder of a run or a GGUF file");
    mb_buffer_init(&e.config_text, CONFIG_MAX_FILE);
    mb_status st = mb_cli_u64(cli, "threads", 0, 1024, &e.threads, err);
    if (st == MB_OK)
        st = open_model(&e, err);
    if (st == MB_OK)
        st = name_texts(&e, cli, err);
    if (st == MB_OK)
        st = read_options(&e, cli, err);
    if (st == MB_OK)
        st = open_texts(&e, err);
    // Landmarks want rows of their own and a token.
    bool has_landmarks =
        st == MB_OK && windows_has_landmark(e.windows) &&
        e.text_tokens + e.text_tokens / (MB_BLOCK_ROWS - 1) + 1 <= e.rows;
    if (st == MB_OK && !e.csv)
        (void)printf("%s: %zu layers of %zu, windows of %llu rows%s\n\n",
            e.model, e.shape.n_layers, e.shape.d_model,
            (unsigned long long)e.rows, has_landmarks ? "" : ", no landmarks");
    if (st == MB_OK)
        st = show_all(&e, has_landmarks, err);
    eval_fini(&e);
    return st;
}
