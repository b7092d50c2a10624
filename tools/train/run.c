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

#define TASK_WINDOWS 8 /* of each kind and form, in a held-out loss */
#define MAX_NAME     72

static const char *const task_names[WINDOW_N_TASKS] = {
    "passkey", "lookup", "copy", "list"};

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
        .recompute = c->recompute != 0,
    };
    size_t n = (size_t)c->batch;
    r->batch = mb_calloc(n, sizeof *r->batch);
    r->views = mb_calloc(n, sizeof *r->views);
    r->nll = mb_calloc(n, sizeof *r->nll);
    if (!r->batch || !r->views || !r->nll)
        return mb_error_set(err, MB_ERR_NOMEM, "batch of %zu windows", n);
    for (size_t i = 0; i < n; i++) {
        mb_status st = window_init(&r->batch[i], (size_t)c->rows, err);
        if (st != MB_OK)
            return st;
        r->nll[i] = mb_calloc((size_t)c->rows, sizeof **r->nll);
        if (!r->nll[i])
            return mb_error_set(err, MB_ERR_NOMEM, "losses of %zu windows", n);
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
    for (size_t i = 0; r->nll && i < r->config.batch; i++)
        mb_free(r->nll[i]);
    mb_free(r->batch);
    mb_free(r->views);
    mb_free(r->nll);
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

struct judged {
    double sum; /* nats */
    size_t n;   /* targets */
};

/* Judge the first n windows of the batch; of tasks the answers alone. */
static mb_status
judge_batch(struct run *r, size_t n, bool answers, struct judged *sum,
    struct mb_error *err)
{
    struct train_result result;
    for (size_t i = 0; i < n; i++)
        r->views[i] = r->batch[i].view;
    mb_status st = trainer_eval(r->trainer, r->views, n, r->nll, &result, err);
    for (size_t i = 0; st == MB_OK && i < n; i++) {
        const struct window *w = &r->batch[i];
        for (size_t row = 0; row < w->view.n; row++) {
            bool counts =
                answers ? w->is_answer[row] : w->view.targets[row] >= 0;
            sum->sum += counts ? (double)r->nll[i][row] : 0;
            sum->n += counts ? 1 : 0;
        }
    }
    return st;
}

static mb_status
judge_text(struct run *r, const struct shard *s, bool landmarks,
    struct judged *sum, struct mb_error *err)
{
    size_t all = windows_heldout_count(r->windows, s);
    size_t n = r->config.heldout_windows < all
                   ? (size_t)r->config.heldout_windows
                   : all;
    mb_status st = MB_OK;
    *sum = (struct judged){0};
    for (size_t i = 0; st == MB_OK && i < n && !train_is_stopped;) {
        size_t k = 0;
        for (; k < r->config.batch && i < n; i++, k++)
            windows_heldout(
                r->windows, s, landmarks, i * all / n, &r->batch[k]);
        st = judge_batch(r, k, false, sum, err);
    }
    return st;
}

static mb_status
judge_tasks(struct run *r, window_kind kind, bool landmarks, struct judged *sum,
    struct mb_error *err)
{
    mb_status st = MB_OK;
    *sum = (struct judged){0};
    for (uint64_t i = 0; st == MB_OK && i < TASK_WINDOWS;) {
        size_t k = 0;
        for (; st == MB_OK && k < r->config.batch && i < TASK_WINDOWS; k++)
            st = windows_task(
                r->windows, kind, landmarks, i++, &r->batch[k], err);
        if (st == MB_OK)
            st = judge_batch(r, k, true, sum, err);
    }
    return st;
}

/* A point of the curve and a line of the log. */
static mb_status
note(struct run *r, const char *name, bool landmarks, const struct judged *sum,
    double bytes_per_target, struct mb_error *err)
{
    struct curve_point p = {
        .step = trainer_n_steps(r->trainer),
        .tokens = r->n_rows,
        .seconds = run_seconds(r),
        .loss = sum->sum / (double)sum->n,
        .bits_per_byte = (double)NAN,
        .rate = (double)NAN,
        .grad_norm = (double)NAN,
    };
    (void)snprintf(
        p.set, sizeof p.set, "%s%s", name, landmarks ? " +landmarks" : "");
    if (bytes_per_target > 0)
        p.bits_per_byte = p.loss / log(2) / bytes_per_target;
    char bits[40] = "";
    if (!isnan(p.bits_per_byte))
        (void)snprintf(
            bits, sizeof bits, " bits_per_byte=%.4f", p.bits_per_byte);
    run_log(r, "ev=heldout step=%llu set=\"%s\" targets=%zu loss=%.4f%s",
        (unsigned long long)p.step, p.set, sum->n, p.loss, bits);
    return curve_add(r->curve, &p, err);
}

/* What has been judged at one step; it becomes known all at once. */
struct verdicts {
    struct {
        const char *name;
        bool landmarks;
        struct judged sum;
        double bytes_per_target; /* 0: not known */
    } list[2 * (CONFIG_MAX_HELDOUT + WINDOW_N_TASKS)];

    size_t n;
};

static mb_status
judge_form(
    struct run *r, bool landmarks, struct verdicts *v, struct mb_error *err)
{
    mb_status st = MB_OK;
    for (size_t i = 0; st == MB_OK && i < r->config.n_heldout; i++) {
        const struct shard *s = r->heldout[i];
        // All tokens but the first are targets, but what follows each </s>.
        uint64_t n_targets = shard_n_tokens(s) - shard_n_documents(s);
        v->list[v->n].name = r->config.heldout[i].name;
        v->list[v->n].landmarks = landmarks;
        v->list[v->n].bytes_per_target =
            (double)shard_text_bytes(s) / (double)n_targets;
        st = judge_text(r, s, landmarks, &v->list[v->n++].sum, err);
    }
    for (int kind = 0; st == MB_OK && kind < WINDOW_N_TASKS &&
                       r->config.tasks > 0 && !train_is_stopped;
         kind++) {
        v->list[v->n].name = task_names[kind];
        v->list[v->n].landmarks = landmarks;
        v->list[v->n].bytes_per_target = 0;
        st = judge_tasks(
            r, (window_kind)kind, landmarks, &v->list[v->n++].sum, err);
    }
    return st;
}

mb_status
run_heldout(struct run *r, struct mb_error *err)
{
    struct verdicts v = {.n = 0};
    mb_status st = MB_OK;
    if (r->config.landmarks < 1)
        st = judge_form(r, false, &v, err);
    if (st == MB_OK && r->config.landmarks > 0)
        st = judge_form(r, true, &v, err);
    // A run that is stopped here judges when it is taken up again.
    for (size_t i = 0; st == MB_OK && !train_is_stopped && i < v.n; i++) {
        if (v.list[i].sum.n > 0)
            st = note(r, v.list[i].name, v.list[i].landmarks, &v.list[i].sum,
                v.list[i].bytes_per_target, err);
    }
    return st;
}
