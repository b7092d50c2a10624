/* SPDX-License-Identifier: Apache-2.0
 * tools/train/hmt.c - `membank-train hmt`: memories of segments for a model.
 *
 * Two stages (He et al. 2024, section 4): first two segments, the second of
 * which gets the memory of the first, so that rows learn to write and read;
 * then as many segments as `--depth` says, with recall. Every figure that is
 * needed to go on is the number of the step: samples are a function of it.
 * Threads: the main thread; the trainer has its own. */
#include "hmt.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "mb_curve.h"
#include "progress.h"

#define FIRST_DEPTH 2
#define MAX_NAME    72
#define MAX_TEXT    256

struct hmt_settings {
    uint64_t first_steps;
    uint64_t steps; /* of the second stage */
    uint64_t depth;
    uint64_t batch;
    uint64_t segment; /* blocks */
    uint64_t summary;
    uint64_t sensory;
    uint64_t key_width;
    uint64_t memories;
    uint64_t seed;
    uint64_t threads;
    uint64_t judged; /* held-out windows, each of twice the depth */
    uint64_t judge_steps;
    double rate;
    double backbone_rate;
    double checkpoint_minutes;
    hmt_mode mode; /* of the second stage */
    bool trains_backbone;
};

struct hmt_run {
    struct hmt_settings s;
    char text[MAX_TEXT]; /* those that make a run what it is */
    const char *model;
    const char *dir;
    char name[MAX_TEXT]; /* of the result, without .gguf */
    struct mb_gguf *gguf;
    struct mb_tokenizer *tok;
    struct imported imported;
    bool has_model;
    struct hmt_shape shape;
    struct hmt_data data;
    struct hmt_trainer *trainer;
    struct curve *curve;
    struct progress progress;
    uint64_t n_rows;
    double seconds;
    uint64_t begun_ns;
    uint64_t saved_ns;
};

/* ---- options ---- */

static mb_status
read_settings(
    struct hmt_settings *s, const struct mb_cli *cli, struct mb_error *err)
{
    const struct {
        const char *name;
        uint64_t min;
        uint64_t max;
        uint64_t *to;
    } counts[] = {
        {"first-steps", 0, 1000000, &s->first_steps},
        {"second-steps", 0, 1000000, &s->steps},
        {"depth", 2, HMT_MAX_DEPTH / 2, &s->depth},
        {"batch", 1, 4096, &s->batch},
        {"segment", 1, 64, &s->segment},
        {"summary", 1, COMPANION_MAX_TOKENS, &s->summary},
        {"sensory", 0, COMPANION_MAX_SENSORY, &s->sensory},
        {"key-width", 1, 4096, &s->key_width},
        {"memories", 1, UINT32_MAX, &s->memories},
        {"seed", 0, UINT32_MAX, &s->seed},
        {"threads", 0, 1024, &s->threads},
        {"judged", 1, 100000, &s->judged},
        {"judge-steps", 1, 1000000, &s->judge_steps},
    };

    const char *recall = mb_cli_str(cli, "recall");
    mb_status st = MB_OK;
    for (size_t i = 0; i < sizeof counts / sizeof *counts && st == MB_OK; i++)
        st = mb_cli_u64(cli, counts[i].name, counts[i].min, counts[i].max,
            counts[i].to, err);
    if (st == MB_OK)
        st = mb_cli_double(cli, "rate", 1e-9, 1, &s->rate, err);
    if (st == MB_OK)
        st = mb_cli_double(cli, "backbone-rate", 0, 10, &s->backbone_rate, err);
    s->checkpoint_minutes = 2;
    s->trains_backbone = mb_cli_has(cli, "train-backbone");
    s->mode = strcmp(recall, "last") == 0 ? HMT_DIRECT : HMT_RECALL;
    if (st == MB_OK && s->mode == HMT_RECALL && strcmp(recall, "all") != 0)
        st = mb_error_set(
            err, MB_ERR_BAD_ARG, "--recall %s: all or last", recall);
    return st;
}

static void
describe(struct hmt_run *r)
{
    const struct hmt_settings *s = &r->s;
    (void)snprintf(r->text, sizeof r->text,
        "first %llu second %llu depth %llu batch %llu segment %llu summary "
        "%llu sensory %llu key %llu seed %llu rate %g backbone %d %g mode %d",
        (unsigned long long)s->first_steps, (unsigned long long)s->steps,
        (unsigned long long)s->depth, (unsigned long long)s->batch,
        (unsigned long long)s->segment, (unsigned long long)s->summary,
        (unsigned long long)s->sensory, (unsigned long long)s->key_width,
        (unsigned long long)s->seed, s->rate, (int)s->trains_backbone,
        s->backbone_rate, (int)s->mode);
}

/* ---- opening ---- */

static mb_status
find_landmark(struct hmt_run *r, struct mb_error *err)
{
    r->shape.landmark = mb_tokenizer_find(r->tok, "<landmark>");
    r->shape.eos = mb_tokenizer_eos(r->tok);
    if (r->shape.landmark < 0)
        return mb_error_set(err, MB_ERR_NOT_FOUND,
            "%s has no token <landmark>: segments are blocks with landmarks",
            r->model);
    return MB_OK;
}

/* The model's name without folder and .gguf. */
static void
name_result(struct hmt_run *r)
{
    const char *slash = strrchr(r->model, '/');
    (void)snprintf(
        r->name, sizeof r->name, "%.200s", slash ? slash + 1 : r->model);
    size_t n = strlen(r->name);
    if (n > 5 && strcmp(r->name + n - 5, ".gguf") == 0)
        r->name[n - 5] = '\0';
}

static mb_status
open_model(struct hmt_run *r, struct mb_error *err)
{
    mb_status st = train_open_vocab(r->model, &r->gguf, &r->tok, err);
    if (st == MB_OK)
        st = import_gguf(r->gguf, &r->imported, err);
    r->has_model = st == MB_OK;
    if (st == MB_OK)
        st = find_landmark(r, err);
    r->shape.n_segment = (size_t)r->s.segment * (MB_BLOCK_ROWS - 1);
    r->shape.n_summary = (size_t)r->s.summary;
    r->shape.n_sensory = (size_t)r->s.sensory;
    r->shape.d_key = (size_t)r->s.key_width;
    return st;
}

static mb_status
open_data(struct hmt_run *r, const struct mb_cli *cli, struct mb_error *err)
{
    const char *paths[HMT_MAX_SHARDS + 1];
    size_t n = 0;
    for (size_t i = 1; i < mb_cli_n_args(cli) && n <= HMT_MAX_SHARDS; i++)
        paths[n++] = mb_cli_arg(cli, i);
    r->data.shape = &r->shape;
    r->data.seed = r->s.seed;
    mb_status st = hmt_data_open(
        &r->data, r->tok, paths, n, mb_cli_str(cli, "heldout"), err);
    if (st == MB_OK)
        st = hmt_data_room(&r->data, (size_t)r->s.batch, (size_t)r->s.depth,
            (size_t)r->s.judged, 2 * (size_t)r->s.depth, err);
    return st;
}

static mb_status
make_trainer(struct hmt_run *r, struct mb_error *err)
{
    const struct hmt_train_options o = {
        .n_threads = (unsigned)r->s.threads,
        .seed = r->s.seed,
        .trains_backbone = r->s.trains_backbone,
        .backbone_rate = r->s.backbone_rate,
    };
    return hmt_trainer_new(&r->imported, &r->shape, &o, &r->trainer, err);
}

/* ---- checkpoints ---- */

static double
seconds_of(const struct hmt_run *r)
{
    return r->seconds + (double)(mb_clock_ns() - r->begun_ns) / 1e9;
}

static mb_status
load_weight(
    const struct checkpoint *c, struct train_weight *w, struct mb_error *err)
{
    float *const values[] = {w->value, w->moment, w->square};
    static const char *const ends[] = {"", ".m", ".v"};
    mb_status st = MB_OK;
    for (size_t i = 0; i < 3 && st == MB_OK; i++) {
        char name[MAX_NAME];
        (void)snprintf(name, sizeof name, "%s%s", w->name, ends[i]);
        st = checkpoint_floats(c, name, values[i], w->n_rows, w->n_cols, err);
    }
    return st;
}

static mb_status
load(struct hmt_run *r, struct mb_error *err)
{
    char path[TRAIN_MAX_PATH];
    struct checkpoint *c = NULL;
    uint64_t steps = 0;
    uint64_t ms = 0;
    mb_status st = train_path(r->dir, "checkpoint", path, err);
    if (st == MB_OK)
        st = checkpoint_open(path, &c, err);
    if (st != MB_OK)
        return st;
    const char *text = checkpoint_text(c, "settings");
    if (!text || strcmp(text, r->text) != 0)
        st = mb_error_set(err, MB_ERR_MISMATCH,
            "%s: begun with \"%s\", now \"%s\"", path, text ? text : "",
            r->text);
    if (st == MB_OK)
        st = checkpoint_number(c, "steps", &steps, err);
    if (st == MB_OK)
        st = checkpoint_number(c, "rows", &r->n_rows, err);
    if (st == MB_OK)
        st = checkpoint_number(c, "milliseconds", &ms, err);
    for (size_t i = 0; st == MB_OK && i < hmt_trainer_n_weights(r->trainer);
         i++)
        st = load_weight(c, hmt_trainer_weight(r->trainer, i), err);
    checkpoint_close(c);
    hmt_trainer_set_n_steps(r->trainer, steps);
    r->seconds = (double)ms / 1000;
    return st;
}

static mb_status
save(struct hmt_run *r, struct mb_error *err)
{
    char path[TRAIN_MAX_PATH];
    struct checkpoint_writer *w = NULL;
    mb_status st = train_path(r->dir, "checkpoint", path, err);
    if (st == MB_OK)
        st = checkpoint_begin(path, &w, err);
    if (st != MB_OK)
        return st;
    checkpoint_add_number(w, "steps", hmt_trainer_n_steps(r->trainer));
    checkpoint_add_number(w, "rows", r->n_rows);
    checkpoint_add_number(w, "milliseconds", (uint64_t)(seconds_of(r) * 1000));
    checkpoint_add_text(w, "settings", r->text);
    for (size_t i = 0; i < hmt_trainer_n_weights(r->trainer); i++) {
        const struct train_weight *x = hmt_trainer_weight(r->trainer, i);
        char name[MAX_NAME];
        checkpoint_add_floats(w, x->name, x->value, x->n_rows, x->n_cols);
        (void)snprintf(name, sizeof name, "%s.m", x->name);
        checkpoint_add_floats(w, name, x->moment, x->n_rows, x->n_cols);
        (void)snprintf(name, sizeof name, "%s.v", x->name);
        checkpoint_add_floats(w, name, x->square, x->n_rows, x->n_cols);
    }
    st = checkpoint_finish(w, err);
    if (st == MB_OK)
        st = train_path(r->dir, "curve.svg", path, err);
    if (st == MB_OK)
        st = curve_svg(r->curve, path, "memories of segments", err);
    r->saved_ns = mb_clock_ns();
    return st;
}

static mb_status
open_all(struct hmt_run *r, const struct mb_cli *cli, struct mb_error *err)
{
    char path[TRAIN_MAX_PATH];
    bool resume = mb_cli_has(cli, "resume");
    mb_status st = read_settings(&r->s, cli, err);
    r->model = mb_cli_str(cli, "model");
    r->dir = mb_cli_str(cli, "out");
    if (st == MB_OK && (!r->model || !r->dir || mb_cli_n_args(cli) < 2))
        st = mb_error_set(err, MB_ERR_BAD_ARG,
            "hmt wants --model GGUF, --out DIR and shards to learn from");
    if (st != MB_OK)
        return st;
    describe(r);
    name_result(r);
    st = open_model(r, err);
    if (st == MB_OK)
        st = open_data(r, cli, err);
    if (st == MB_OK)
        st = make_trainer(r, err);
    if (st == MB_OK && mkdir(r->dir, 0777) != 0 && errno != EEXIST)
        st = mb_error_set(
            err, MB_ERR_IO, "make folder %s: %s", r->dir, strerror(errno));
    if (st == MB_OK && resume)
        st = load(r, err);
    if (st == MB_OK)
        st = train_path(r->dir, "curve.csv", path, err);
    if (st == MB_OK)
        st = curve_open(
            path, resume, hmt_trainer_n_steps(r->trainer), &r->curve, err);
    r->begun_ns = mb_clock_ns();
    r->saved_ns = r->begun_ns;
    return st;
}

static void
close_all(struct hmt_run *r)
{
    curve_close(r->curve);
    hmt_trainer_free(r->trainer);
    hmt_data_close(&r->data);
    if (r->has_model)
        imported_free(&r->imported);
    mb_tokenizer_free(r->tok);
    mb_gguf_close(r->gguf);
}

/* ---- steps ---- */

static uint64_t
n_steps(const struct hmt_run *r)
{
    return r->s.first_steps + r->s.steps;
}

/* Each stage begins with a short rise and falls by a cosine to a tenth. */
static double
rate_of(const struct hmt_run *r, uint64_t step)
{
    const double pi = 3.14159265358979323846;
    bool is_first = step < r->s.first_steps;
    double n = (double)(is_first ? r->s.first_steps : r->s.steps);
    double i = (double)(is_first ? step : step - r->s.first_steps);
    double rise = n < 100 ? n / 10 : 10;
    if (i < rise)
        return r->s.rate * (i + 1) / (rise + 1);
    return r->s.rate * (0.1 + 0.45 * (1 + cos(pi * i / n)));
}

static mb_status
add_point(struct hmt_run *r, const char *set, double loss, double rate,
    double grad_norm, struct mb_error *err)
{
    struct curve_point p = {
        .step = hmt_trainer_n_steps(r->trainer),
        .tokens = r->n_rows,
        .seconds = seconds_of(r),
        .loss = loss,
        .bits_per_byte = (double)NAN,
        .rate = rate,
        .grad_norm = grad_norm,
    };
    (void)snprintf(p.set, sizeof p.set, "%s", set);
    return curve_add(r->curve, &p, err);
}

static mb_status
one_step(struct hmt_run *r, struct mb_error *err)
{
    uint64_t step = hmt_trainer_n_steps(r->trainer);
    bool is_first = step < r->s.first_steps;
    struct train_result result;
    double rate = rate_of(r, step);
    hmt_data_batch(&r->data, step, is_first ? FIRST_DEPTH : (size_t)r->s.depth);
    mb_status st = hmt_trainer_step(r->trainer, r->data.batch, r->data.n_batch,
        is_first ? HMT_DIRECT : r->s.mode, rate, &result, err);
    if (st != MB_OK)
        return st;
    r->n_rows += result.n_rows;
    return add_point(r, CURVE_TRAIN, result.loss, rate, result.grad_norm, err);
}

/* Loss of segments that may remember. */
static mb_status
judge(struct hmt_run *r, hmt_mode mode, const char *set, struct mb_error *err)
{
    struct hmt_verdict v;
    if (r->data.n_judged == 0)
        return MB_OK;
    mb_status st = hmt_data_judge(&r->data, r->trainer, mode, &v, err);
    return st == MB_OK
               ? add_point(r, set, v.later, (double)NAN, (double)NAN, err)
               : st;
}

/* All that can be told without memory; of a model that does not change, once. */
static mb_status
judge_controls(struct hmt_run *r, struct mb_error *err)
{
    mb_status st = judge(r, HMT_NOTHING, "nothing", err);
    return st == MB_OK ? judge(r, HMT_SENSORY, "sensory", err) : st;
}

static void
tell(struct hmt_run *r)
{
    uint64_t step = hmt_trainer_n_steps(r->trainer);
    const struct curve_point *judged = curve_last(r->curve, "memories");
    char text[160];
    (void)snprintf(text, sizeof text,
        "step %llu of %llu  loss %.3f  held out %.4f", (unsigned long long)step,
        (unsigned long long)n_steps(r), curve_smooth(r->curve),
        judged ? judged->loss : (double)NAN);
    progress_show(&r->progress, (double)step / (double)n_steps(r), text);
}

static mb_status
loop(struct hmt_run *r, uint64_t max_steps, struct mb_error *err)
{
    mb_status st = MB_OK;
    uint64_t done = hmt_trainer_n_steps(r->trainer);
    uint64_t last =
        max_steps < n_steps(r) - done ? done + max_steps : n_steps(r);
    if (hmt_trainer_n_steps(r->trainer) == 0) {
        st = judge_controls(r, err);
        if (st == MB_OK)
            st = judge(r, r->s.mode, "memories", err);
    }
    while (st == MB_OK && hmt_trainer_n_steps(r->trainer) < last &&
           !train_is_stopped) {
        st = one_step(r, err);
        if (st != MB_OK)
            break;
        uint64_t step = hmt_trainer_n_steps(r->trainer);
        bool is_end = step == n_steps(r);
        if (is_end && r->s.trains_backbone)
            st = judge_controls(r, err);
        if (st == MB_OK && (is_end || step % r->s.judge_steps == 0))
            st = judge(r, r->s.mode, "memories", err);
        tell(r);
        if (st == MB_OK && (double)(mb_clock_ns() - r->saved_ns) / 60e9 >=
                               r->s.checkpoint_minutes)
            st = save(r, err);
    }
    progress_clear(&r->progress);
    return st;
}

/* ---- the result ---- */

/* The model as it was trained along. */
static mb_status
write_model(
    struct hmt_run *r, const char *type, const char *path, struct mb_error *err)
{
    size_t n = r->imported.n_weights;
    size_t own = hmt_trainer_n_weights(r->trainer) - n;
    struct export_weight *weights = mb_calloc(n, sizeof *weights);
    struct export_options o = {.shape = &r->imported.shape,
        .weights = weights,
        .n_weights = n,
        .vocab = r->gguf,
        .name = r->name};
    if (!weights)
        return mb_error_set(err, MB_ERR_NOMEM, "hmt: weights");
    for (size_t i = 0; i < n; i++) {
        const struct train_weight *w = hmt_trainer_weight(r->trainer, own + i);
        weights[i] =
            (struct export_weight){w->name, w->n_rows, w->n_cols, w->value};
    }
    mb_status st = train_type_of(type, &o.type, err);
    if (st == MB_OK)
        st = export_gguf(path, &o, err);
    mb_free(weights);
    return st;
}

static mb_status
write_result(struct hmt_run *r, const struct mb_cli *cli, struct mb_error *err)
{
    const char *type = mb_cli_str(cli, "type");
    char name[MAX_TEXT + 16];
    char path[TRAIN_MAX_PATH];
    struct mb_gguf *made = NULL;
    struct companion c;
    mb_status st = MB_OK;
    hmt_trainer_companion(r->trainer, &c);
    c.n_memories = (size_t)r->s.memories;
    if (r->s.trains_backbone) {
        (void)snprintf(name, sizeof name, "%s.gguf", r->name);
        st = train_path(r->dir, name, path, err);
        if (st == MB_OK)
            st = write_model(r, type ? type : "q8_0", path, err);
        if (st == MB_OK)
            st = mb_gguf_open(path, &made, err);
    }
    if (st == MB_OK) {
        mb_gguf_fingerprint(made ? made : r->gguf, c.model);
        (void)snprintf(name, sizeof name, "%s.membank.gguf", r->name);
        st = train_path(r->dir, name, path, err);
    }
    if (st == MB_OK)
        st = companion_write(path, &c, err);
    mb_gguf_close(made);
    return st;
}

static double
last_loss(const struct hmt_run *r, const char *set)
{
    const struct curve_point *p = curve_last(r->curve, set);
    return p ? p->loss : (double)NAN;
}

static void
put_number(const char *key, double x)
{
    if (isfinite(x))
        (void)printf(",\"%s\":%.6f", key, x);
    else
        (void)printf(",\"%s\":null", key);
}

static void
print_summary(const struct hmt_run *r, bool json)
{
    uint64_t step = hmt_trainer_n_steps(r->trainer);
    double nothing = last_loss(r, "nothing");
    double sensory = last_loss(r, "sensory");
    double memories = last_loss(r, "memories");
    const float *gain = hmt_trainer_weight(r->trainer, 0)->value;
    if (json) {
        (void)printf("{\"step\":%llu,\"steps\":%llu,\"tokens\":%llu,"
                     "\"seconds\":%.1f,\"gain\":%.6f",
            (unsigned long long)step, (unsigned long long)n_steps(r),
            (unsigned long long)r->n_rows, seconds_of(r), (double)gain[0]);
        put_number("loss", curve_smooth(r->curve));
        put_number("nothing", nothing);
        put_number("sensory", sensory);
        put_number("memories", memories);
        (void)printf("}\n");
        return;
    }
    (void)printf("step %llu of %llu, %.2fM tokens, %.0f s, loss %.4f\n"
                 "held-out segments but the first, nats a token:\n"
                 "  nothing before them  %.4f\n"
                 "  the last tokens      %.4f  perplexity %+.2f%%\n"
                 "  and memories         %.4f  perplexity %+.2f%%\n",
        (unsigned long long)step, (unsigned long long)n_steps(r),
        (double)r->n_rows / 1e6, seconds_of(r), curve_smooth(r->curve), nothing,
        sensory, 100 * (exp(sensory - nothing) - 1), memories,
        100 * (exp(memories - sensory) - 1));
    if (step < n_steps(r))
        (void)printf("to go on: the same with --resume\n");
    (void)printf("result: %s/%s.membank.gguf\n", r->dir, r->name);
}

mb_status
train_hmt(const struct mb_cli *cli, struct mb_error *err)
{
    struct hmt_run r = {0};
    uint64_t max_steps = UINT64_MAX / 2;
    mb_status st = mb_cli_u64(cli, "steps", 1, max_steps, &max_steps, err);
    if (st == MB_OK)
        st = open_all(&r, cli, err);
    if (st == MB_OK) {
        progress_init(&r.progress, stderr, mb_cli_has(cli, "quiet"));
        st = loop(&r, max_steps, err);
    }
    if (st == MB_OK)
        st = save(&r, err);
    if (st == MB_OK) // of a run that was stopped, too: it can be tried
        st = write_result(&r, cli, err);
    if (st == MB_OK)
        print_summary(&r, mb_cli_has(cli, "json"));
    close_all(&r);
    return st;
}
