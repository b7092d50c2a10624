/* SPDX-License-Identifier: Apache-2.0
 * tools/train/run.c - open, judge and save a training run.
 *
 * What a checkpoint must hold follows from what windows are: functions of their
 * number. So weights, moments, and the counts of steps and windows are all.
 * Invariant: curve.csv never has points after the step that it was resumed from
 * but those made since.
 * Threads: the main thread. */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "mb_checkpoint.h"
#include "mb_outfile.h"
#include "score.h"

#define TASK_WINDOWS 8 /* of each kind and form, in a held-out loss */
#define MAX_NAME     72

double
run_seconds(const struct run *r)
{
    return r->seconds + (double)(mb_clock_ns() - r->begun_ns) / 1e9;
}

void
run_log(struct run *r, const char *fmt, ...)
{
    char when[32];
    struct tm tm;
    time_t now = time(NULL);
    va_list args;
    if (!r->log)
        return;
    if (!gmtime_r(&now, &tm) ||
        strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
        when[0] = '\0';
    (void)fprintf(r->log, "ts=%s ", when);
    va_start(args, fmt);
    (void)vfprintf(r->log, fmt, args);
    va_end(args);
    (void)fputc('\n', r->log);
    (void)fflush(r->log);
}

/* ---- opening ---- */

/* The folder, with its log, which is locked as long as the run lives. */
static mb_status
open_folder(struct run *r, bool resume, struct mb_error *err)
{
    char path[TRAIN_MAX_PATH];
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (mkdir(r->dir, 0777) != 0 && errno != EEXIST)
        return mb_error_set(
            err, MB_ERR_IO, "make folder %s: %s", r->dir, strerror(errno));
    mb_status st = train_path(r->dir, "log", path, err);
    if (st != MB_OK)
        return st;
    r->log = fopen(path, "a");
    if (!r->log)
        return mb_error_set(
            err, MB_ERR_IO, "open %s: %s", path, strerror(errno));
    if (fcntl(fileno(r->log), F_SETLK, &lock) != 0)
        return mb_error_set(err, MB_ERR_LOCKED,
            "%s: another process trains in this folder", r->dir);
    st = train_path(r->dir, "checkpoint", path, err);
    if (st == MB_OK && !resume && access(path, F_OK) == 0)
        return mb_error_set(err, MB_ERR_EXISTS,
            "%s has a checkpoint: --resume goes on from it", r->dir);
    return st;
}

static mb_status
open_data(struct run *r, struct mb_error *err)
{
    struct windows_source sources[CONFIG_MAX_SOURCES];
    const struct config *c = &r->config;
    mb_status st = train_open_vocab(c->tokenizer, &r->vocab, &r->tok, err);
    for (size_t i = 0; st == MB_OK && i < c->n_sources; i++) {
        st = shard_open(c->sources[i].path, &r->sources[i], err);
        sources[i] =
            (struct windows_source){r->sources[i], c->sources[i].weight};
    }
    for (size_t i = 0; st == MB_OK && i < c->n_heldout; i++) {
        st = shard_open(c->heldout[i].path, &r->heldout[i], err);
        if (st == MB_OK && !shard_is_of(r->heldout[i], r->tok))
            st = mb_error_set(err, MB_ERR_MISMATCH,
                "%s: tokens of another tokenizer", c->heldout[i].path);
    }
    if (st != MB_OK)
        return st;
    const struct windows_options o = {
        .tok = r->tok,
        .sources = sources,
        .n_sources = c->n_sources,
        .n_rows = (size_t)c->rows,
        .landmark_part = c->landmarks,
        .task_part = c->tasks,
        .repeat_part = c->repeats,
        .seed = c->seed,
    };
    return windows_new(&o, &r->windows, err);
}

static mb_status
make_trainer(struct run *r, struct mb_error *err)
{
    const struct config *c = &r->config;
    const struct train_shape shape =
        config_shape(c, mb_tokenizer_n_vocab(r->tok));
    const struct train_options o = {
        .n_threads = (unsigned)c->threads,
        .seed = c->seed,
        .optimizer = (train_optimizer)c->optimizer,
        .momentum = c->momentum,
        .beta1 = c->beta1,
        .beta2 = c->beta2,
        .adam_eps = c->adam_eps,
        .decay = c->weight_decay,
        .clip = c->clip,
        .activations = (train_activations)c->activations,
    };
    size_t n = (size_t)c->batch;
    r->batch = mb_calloc(n, sizeof *r->batch);
    r->views = mb_calloc(n, sizeof *r->views);
    if (!r->batch || !r->views)
        return mb_error_set(err, MB_ERR_NOMEM, "batch of %zu windows", n);
    for (size_t i = 0; i < n; i++) {
        mb_status st = window_init(&r->batch[i], (size_t)c->rows, err);
        if (st != MB_OK)
            return st;
    }
    return trainer_new(&shape, &o, &r->trainer, err);
}

/* ---- checkpoints ---- */

static void
moment_name(const struct train_weight *w, char letter, char out[MAX_NAME])
{
    (void)snprintf(out, MAX_NAME, "%s.%c", w->name, letter);
}

static mb_status
load_weights(struct run *r, const struct checkpoint *c, struct mb_error *err)
{
    char name[MAX_NAME];
    mb_status st = MB_OK;
    for (size_t i = 0; st == MB_OK && i < trainer_n_weights(r->trainer); i++) {
        struct train_weight *w = trainer_weight(r->trainer, i);
        st = checkpoint_floats(c, w->name, w->value, w->n_rows, w->n_cols, err);
        moment_name(w, 'm', name);
        if (st == MB_OK)
            st = checkpoint_floats(
                c, name, w->moment, w->n_rows, w->n_cols, err);
        moment_name(w, 'v', name);
        if (st == MB_OK)
            st = checkpoint_floats(
                c, name, w->square, w->n_rows, w->n_cols, err);
    }
    return st;
}

static void
fingerprint_text(const struct run *r, char out[33])
{
    uint8_t bytes[16];
    mb_tokenizer_fingerprint(r->tok, bytes);
    for (size_t i = 0; i < 16; i++)
        (void)snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

static mb_status
load(struct run *r, struct mb_error *err)
{
    char path[TRAIN_MAX_PATH];
    char tokenizer[33];
    struct checkpoint *c = NULL;
    uint64_t steps = 0;
    uint64_t ms = 0;
    mb_status st = train_path(r->dir, "checkpoint", path, err);
    if (st == MB_OK)
        st = checkpoint_open(path, &c, err);
    if (st == MB_OK)
        st = checkpoint_number(c, "steps", &steps, err);
    if (st == MB_OK)
        st = checkpoint_number(c, "windows", &r->n_windows, err);
    if (st == MB_OK)
        st = checkpoint_number(c, "rows", &r->n_rows, err);
    if (st == MB_OK)
        st = checkpoint_number(c, "milliseconds", &ms, err);
    if (st != MB_OK)
        goto out;
    fingerprint_text(r, tokenizer);
    const char *kept = checkpoint_text(c, "tokenizer");
    if (!kept || strcmp(kept, tokenizer) != 0) {
        st = mb_error_set(
            err, MB_ERR_MISMATCH, "%s: made with another tokenizer", path);
        goto out;
    }
    st = load_weights(r, c, err);
    trainer_set_n_steps(r->trainer, steps);
    r->seconds = (double)ms / 1000;
    kept = checkpoint_text(c, "config");
    if (st == MB_OK && kept &&
        !mb_slice_equal(mb_slice_cstr(kept), mb_buffer_slice(&r->config_text)))
        run_log(r, "ev=config.changed step=%llu", (unsigned long long)steps);
out:
    checkpoint_close(c);
    return st;
}

static mb_status
write_checkpoint(struct run *r, struct mb_error *err)
{
    char path[TRAIN_MAX_PATH];
    char tokenizer[33];
    char name[MAX_NAME];
    struct checkpoint_writer *w = NULL;
    mb_status st = train_path(r->dir, "checkpoint", path, err);
    if (st == MB_OK)
        st = checkpoint_begin(path, &w, err);
    if (st != MB_OK)
        return st;
    fingerprint_text(r, tokenizer);
    checkpoint_add_number(w, "steps", trainer_n_steps(r->trainer));
    checkpoint_add_number(w, "windows", r->n_windows);
    checkpoint_add_number(w, "rows", r->n_rows);
    checkpoint_add_number(w, "milliseconds", (uint64_t)(run_seconds(r) * 1000));
    checkpoint_add_text(w, "tokenizer", tokenizer);
    checkpoint_add_text(w, "config", (const char *)r->config_text.data);
    for (size_t i = 0; i < trainer_n_weights(r->trainer); i++) {
        const struct train_weight *x = trainer_weight(r->trainer, i);
        checkpoint_add_floats(w, x->name, x->value, x->n_rows, x->n_cols);
        moment_name(x, 'm', name);
        checkpoint_add_floats(w, name, x->moment, x->n_rows, x->n_cols);
        moment_name(x, 'v', name);
        checkpoint_add_floats(w, name, x->square, x->n_rows, x->n_cols);
    }
    return checkpoint_finish(w, err);
}

mb_status
run_save(struct run *r, struct mb_error *err)
{
    char path[TRAIN_MAX_PATH];
    mb_status st = write_checkpoint(r, err);
    if (st == MB_OK)
        st = train_path(r->dir, "curve.svg", path, err);
    if (st == MB_OK)
        st = curve_svg(r->curve, path, r->config.name, err);
    if (st == MB_OK)
        r->saved_ns = mb_clock_ns();
    return st;
}

/* ---- the whole ---- */

static mb_status
read_config(
    struct run *r, const char *config_path, bool resume, struct mb_error *err)
{
    char path[TRAIN_MAX_PATH] = "";
    mb_status st = MB_OK;
    if (!config_path && resume)
        st = train_path(r->dir, "config", path, err);
    if (st == MB_OK)
        st = train_read_config(
            config_path ? config_path : path, &r->config, &r->config_text, err);
    // The text ends with NUL behind it, as checkpoints want it.
    if (st == MB_OK)
        st = mb_buffer_append(&r->config_text, "", 1);
    if (st == MB_OK)
        r->config_text.size--;
    return st;
}

mb_status
run_open(struct run *r, const char *config_path, const char *dir, bool resume,
    struct mb_error *err)
{
    char path[TRAIN_MAX_PATH];
    *r = (struct run){0};
    mb_buffer_init(&r->config_text, CONFIG_MAX_FILE);
    r->begun_ns = mb_clock_ns();
    if (dir)
        (void)snprintf(r->dir, sizeof r->dir, "%s", dir);
    mb_status st = read_config(r, config_path, resume, err);
    if (st == MB_OK && dir)
        st = open_folder(r, resume, err);
    if (st == MB_OK)
        st = open_data(r, err);
    if (st == MB_OK)
        st = make_trainer(r, err);
    if (st != MB_OK)
        return st;
    r->n_steps = config_n_steps(&r->config);
    if (!dir)
        return MB_OK;
    if (resume)
        st = load(r, err);
    if (st == MB_OK)
        st = train_path(r->dir, "curve.csv", path, err);
    if (st == MB_OK)
        st = curve_open(
            path, resume, trainer_n_steps(r->trainer), &r->curve, err);
    if (st == MB_OK)
        st = train_path(r->dir, "config", path, err);
    if (st == MB_OK)
        st = outfile_put(path, r->config_text.data, r->config_text.size, err);
    r->begun_ns = mb_clock_ns();
    r->saved_ns = r->begun_ns;
    return st;
}

void
run_close(struct run *r)
{
    for (size_t i = 0; r->batch && i < r->config.batch; i++)
        window_fini(&r->batch[i]);
    mb_free(r->batch);
    mb_free(r->views);
    curve_close(r->curve);
    trainer_free(r->trainer);
    windows_free(r->windows);
    for (size_t i = 0; i < CONFIG_MAX_SOURCES; i++)
        shard_close(r->sources[i]);
    for (size_t i = 0; i < CONFIG_MAX_HELDOUT; i++)
        shard_close(r->heldout[i]);
    mb_tokenizer_free(r->tok);
    mb_gguf_close(r->vocab);
    if (r->log)
        (void)fclose(r->log);
    mb_buffer_fini(&r->config_text);
}

mb_status
run_next_batch(struct run *r, struct mb_error *err)
{
    mb_status st = MB_OK;
    for (size_t i = 0; st == MB_OK && i < r->config.batch; i++) {
        st = windows_get(r->windows, r->n_windows + i, &r->batch[i], err);
        r->views[i] = r->batch[i].view;
    }
    if (st == MB_OK)
        r->n_windows += r->config.batch;
    return st;
}

/* ---- held-out losses ---- */

/* What has been judged at one step; it becomes known all at once. */
struct verdict {
    const char *name;
    bool landmarks;
    const struct shard *text; /* NULL: a task */
    struct score score;
};

struct verdicts {
    struct verdict list[2 * (CONFIG_MAX_HELDOUT + WINDOW_N_TASKS)];
    size_t n;
};

/* A point of the curve and a line of the log. */
static mb_status
note(struct run *r, const struct verdict *v, struct mb_error *err)
{
    struct curve_point p = {
        .step = trainer_n_steps(r->trainer),
        .tokens = r->n_rows,
        .seconds = run_seconds(r),
        .loss = score_loss(&v->score),
        .bits_per_byte = (double)NAN,
        .rate = (double)NAN,
        .grad_norm = (double)NAN,
    };
    (void)snprintf(p.set, sizeof p.set, "%s%s", v->name,
        v->landmarks ? " +landmarks" : "");
    char more[80];
    if (v->text) {
        p.bits_per_byte = score_bits_per_byte(p.loss, v->text);
        (void)snprintf(
            more, sizeof more, "bits_per_byte=%.4f", p.bits_per_byte);
    } else {
        (void)snprintf(more, sizeof more, "answers=%zu exact=%zu right=%.4f",
            v->score.n_answers, v->score.n_exact,
            (double)v->score.n_right / (double)v->score.n_targets);
    }
    run_log(r, "ev=heldout step=%llu set=\"%s\" targets=%zu loss=%.4f %s",
        (unsigned long long)p.step, p.set, v->score.n_targets, p.loss, more);
    return curve_add(r->curve, &p, err);
}

static mb_status
judge_task(struct scorer *s, window_kind kind, bool landmarks,
    struct score *sum, struct mb_error *err)
{
    struct score by_distance[SCORE_N_DISTANCES];
    mb_status st =
        score_task(s, kind, landmarks, TASK_WINDOWS, by_distance, err);
    *sum = (struct score){0};
    for (size_t d = 0; st == MB_OK && d < SCORE_N_DISTANCES; d++)
        score_add(sum, &by_distance[d]);
    return st;
}

static mb_status
judge_form(struct run *r, struct scorer *s, bool landmarks, struct verdicts *v,
    struct mb_error *err)
{
    const struct config *c = &r->config;
    mb_status st = MB_OK;
    for (size_t i = 0; st == MB_OK && i < c->n_heldout; i++) {
        struct verdict *x = &v->list[v->n++];
        *x = (struct verdict){.name = c->heldout[i].name,
            .landmarks = landmarks,
            .text = r->heldout[i]};
        st = score_text(s, r->heldout[i], landmarks, (size_t)c->heldout_windows,
            &x->score, err);
    }
    for (int kind = 0; st == MB_OK && kind < WINDOW_N_TASKS && c->tasks > 0;
         kind++) {
        struct verdict *x = &v->list[v->n++];
        *x = (struct verdict){
            .name = score_task_name((window_kind)kind), .landmarks = landmarks};
        st = judge_task(s, (window_kind)kind, landmarks, &x->score, err);
    }
    return st;
}

/* The weights as they are now. */
static mb_status
open_judge(struct run *r, struct judge **out, struct mb_error *err)
{
    size_t n = trainer_n_weights(r->trainer);
    struct export_weight *weights = mb_calloc(n, sizeof *weights);
    if (!weights)
        return mb_error_set(err, MB_ERR_NOMEM, "weights");
    for (size_t i = 0; i < n; i++) {
        const struct train_weight *w = trainer_weight(r->trainer, i);
        weights[i] =
            (struct export_weight){w->name, w->n_rows, w->n_cols, w->value};
    }
    mb_status st = judge_new(trainer_shape(r->trainer), weights, n,
        (unsigned)r->config.threads, out, err);
    mb_free(weights);
    return st;
}

mb_status
run_heldout(struct run *r, struct mb_error *err)
{
    struct verdicts v = {.n = 0};
    struct judge *judge = NULL;
    struct scorer *s = NULL;
    mb_status st = open_judge(r, &judge, err);
    if (st == MB_OK)
        st = scorer_new(judge, r->windows, (size_t)r->config.rows, &s, err);
    if (st == MB_OK && r->config.landmarks < 1)
        st = judge_form(r, s, false, &v, err);
    if (st == MB_OK && r->config.landmarks > 0)
        st = judge_form(r, s, true, &v, err);
    // A run that is stopped here judges when it is taken up again: all or none.
    size_t n = train_is_stopped ? 0 : v.n;
    for (size_t i = 0; st == MB_OK && i < n; i++) {
        if (v.list[i].score.n_targets > 0)
            st = note(r, &v.list[i], err);
    }
    scorer_free(s);
    judge_free(judge);
    return st;
}
