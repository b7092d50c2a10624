/* SPDX-License-Identifier: Apache-2.0
 * model/train/bank_train.c - jobs: steps, checkpoints, and what came of it.
 *
 * A step's gradient is summed window by window in the order of the step, which
 * the plan fixes. Each block's gradient is the mean over the targets that went
 * through it in the step, and each block has its own step count: what happens
 * to a block depends on its own windows only (and on the blocks beside it).
 * States leave memory at checkpoints alone, so what is stored is always the
 * state of one step.
 * Threads: the caller's; passes run on the model's team. */
#include "bank_train.h"
#include "weights.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PROGRESS_BYTES 40u
#define LOSS_STEPS     50.0 /* over which the reported loss is a mean */
#define DEPTHS         (MB_BANK_MAX_LEVELS + 1u)

static const uint8_t progress_magic[8] = {
    'M', 'B', 'B', 'P', '1', '\r', '\n', 0};

/* Sums over held-out targets. */
struct gain_sums {
    uint64_t n;
    double before;
    double without;
    double with;
    double after;
};

struct mb_bank_trainer {
    struct bank_model model;
    struct mb_bank_train_options options;
    struct mb_bank_io io;
    struct mb_bank_draw draw; /* seed and anchor */
    struct bank_plan plan;
    bool has_job;
    uint64_t step;
    uint64_t saved_step;
    uint64_t saved_ns; /* when, or when run was called */
    uint64_t n_tokens;
    uint64_t first_token; /* n_tokens when run was called */
    double loss;
    double flops;
    uint64_t start_ns; /* of the run */
    bool is_given_up;  /* the step that run was at */
    /* Room of a step. */
    struct bank_window *windows; /* (batch) */
    struct bank_slot **touched;  /* (batch * MB_BANK_MAX_LEVELS) */
    size_t n_touched;
    /* Room of a chunk. */
    size_t path_rows; /* of the widest path */
    size_t n_floats;  /* of it */
    float *paths[BANK_CHUNK];
    float *grads[BANK_CHUNK];
    mb_token_id *tokens;  /* (BANK_CHUNK, n_ctx) */
    mb_token_id *targets; /* same */
    struct bank_pass passes[BANK_CHUNK * DEPTHS];
};

/* ---- life ---- */

static void
set_default(double *x, double value)
{
    if (*x == 0)
        *x = value;
}

static void
set_size(size_t *x, size_t value)
{
    if (*x == 0)
        *x = value;
}

static void
set_defaults(struct mb_bank_train_options *o, size_t n_ctx)
{
    set_size(&o->epochs, 3);
    set_size(&o->batch, 16);
    set_size(&o->n_ctx, 256);
    set_size(&o->resident_bytes, (size_t)512 << 20);
    set_size(&o->checkpoint_steps, 200);
    set_default(&o->rate, 3e-3);
    set_default(&o->warmup, 0.02);
    set_default(&o->final_rate, 0.01);
    set_default(&o->beta1, 0.9);
    set_default(&o->beta2, 0.95);
    set_default(&o->adam_eps, 1e-8);
    set_default(&o->decay, 1e-3);
    if (o->n_ctx > n_ctx)
        o->n_ctx = n_ctx;
}

static bool
make_room(struct mb_bank_trainer *t)
{
    const struct mb_bank_train_options *o = &t->options;
    size_t ids = BANK_CHUNK * o->n_ctx;
    t->path_rows = mb_bank_path_rows(&t->model.bank);
    t->n_floats = (size_t)mb_bank_n_params(&t->model.bank, t->path_rows);
    t->windows = mb_calloc(o->batch, sizeof(*t->windows));
    t->touched =
        mb_calloc(o->batch, MB_BANK_MAX_LEVELS * sizeof(struct bank_slot *));
    t->tokens = mb_calloc(ids, sizeof(*t->tokens));
    t->targets = mb_calloc(ids, sizeof(*t->targets));
    bool is_whole = t->windows && t->touched && t->tokens && t->targets;
    for (size_t i = 0; i < BANK_CHUNK && is_whole; i++) {
        t->paths[i] = mb_calloc(t->n_floats, sizeof(float));
        t->grads[i] = mb_calloc(t->n_floats, sizeof(float));
        is_whole = t->paths[i] && t->grads[i];
    }
    return is_whole;
}

static mb_status
check(const struct mb_bank_shape *shape, const struct mb_bank_train_options *o,
    struct mb_error *err)
{
    bool is_fine = shape->n_levels > 0 && shape->n_levels <= MB_BANK_MAX_LEVELS;
    for (size_t l = 0; is_fine && l < shape->n_levels; l++)
        is_fine = shape->rows[l] <= MB_BANK_MAX_ROWS;
    size_t rows = is_fine ? mb_bank_path_rows(shape) : 0;
    if (rows == 0 || rows > MB_BANK_MAX_ROWS || o->batch > 65536 ||
        o->n_ctx > 1u << 20 || o->epochs > 1u << 20)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "train: no blocks of %zu levels, %zu rows, in %zu epochs of steps "
            "of %zu windows of %zu rows",
            shape->n_levels, rows, o->epochs, o->batch, o->n_ctx);
    return MB_OK;
}

mb_status
mb_bank_trainer_new(const struct mb_gguf *gguf,
    const struct mb_bank_shape *shape,
    const struct mb_bank_train_options *options, const struct mb_bank_io *io,
    struct mb_bank_trainer **out, struct mb_error *err)
{
    mb_status st = check(shape, options, err);
    if (st != MB_OK)
        return st;
    struct mb_bank_trainer *t = mb_calloc(1, sizeof(*t));
    if (!t)
        return mb_error_set(err, MB_ERR_NOMEM, "train: trainer");
    t->options = *options;
    t->io = *io;
    t->model.gives_way = io->gives_way;
    t->model.arg = io->arg;
    st = bank_model_init(&t->model, gguf, shape, options, err);
    if (st == MB_OK) {
        set_defaults(&t->options, t->model.shape.n_ctx);
        t->draw.seed = t->options.seed;
        mb_gguf_fingerprint((struct mb_gguf *)(uintptr_t)gguf, t->draw.anchor);
        if (!make_room(t))
            st = mb_error_set(err, MB_ERR_NOMEM,
                "train: paths of %zu weights each", t->n_floats);
    }
    if (st != MB_OK) {
        mb_bank_trainer_free(t);
        return st;
    }
    *out = t;
    return MB_OK;
}

void
mb_bank_trainer_free(struct mb_bank_trainer *t)
{
    if (!t)
        return;
    bank_plan_fini(&t->plan);
    bank_model_fini(&t->model);
    for (size_t i = 0; i < BANK_CHUNK; i++) {
        mb_free(t->paths[i]);
        mb_free(t->grads[i]);
    }
    mb_free(t->windows);
    mb_free(t->touched);
    mb_free(t->tokens);
    mb_free(t->targets);
    mb_free(t);
}

/* Bytes of resident states, and how many there are. */
static size_t
resident_bytes(const struct mb_bank_trainer *t, size_t *n)
{
    size_t bytes = 0;
    *n = 0;
    for (size_t i = 0; i < t->plan.n_slots; i++) {
        const struct bank_slot *s = &t->plan.slots[i];
        bytes += s->bytes ? s->size : 0;
        *n += s->bytes != NULL;
    }
    return bytes;
}

size_t
mb_bank_trainer_bytes(const struct mb_bank_trainer *t)
{
    size_t n = 0;
    return bank_model_bytes(&t->model) + resident_bytes(t, &n) +
           2 * BANK_CHUNK * t->n_floats * sizeof(float);
}

/* ---- progress ---- */

/* Magic, hash of the job u64, step u64, tokens u64, hash of all this u64. */
static void
put_progress(const struct mb_bank_trainer *t, uint8_t out[PROGRESS_BYTES])
{
    memcpy(out, progress_magic, sizeof(progress_magic));
    mb_put_le64(out + 8, t->plan.hash);
    mb_put_le64(out + 16, t->step);
    mb_put_le64(out + 24, t->n_tokens);
    mb_put_le64(out + 32, mb_hash64(out, PROGRESS_BYTES - 8, 0));
}

static uint64_t
n_steps(const struct mb_bank_trainer *t)
{
    return t->plan.steps_an_epoch * t->options.epochs;
}

static mb_status
take_progress(
    struct mb_bank_trainer *t, struct mb_slice progress, struct mb_error *err)
{
    const uint8_t *p = progress.data;
    if (progress.size == 0)
        return MB_OK;
    if (progress.size != PROGRESS_BYTES ||
        memcmp(p, progress_magic, sizeof(progress_magic)) != 0 ||
        mb_get_le64(p + 32) != mb_hash64(p, PROGRESS_BYTES - 8, 0) ||
        mb_get_le64(p + 8) != t->plan.hash || mb_get_le64(p + 16) > n_steps(t))
        return mb_error_set(err, MB_ERR_MISMATCH,
            "train: the progress of %zu bytes is of another job",
            progress.size);
    t->step = mb_get_le64(p + 16);
    t->n_tokens = mb_get_le64(p + 24);
    return MB_OK;
}

mb_status
mb_bank_trainer_begin(struct mb_bank_trainer *t,
    const struct mb_bank_item *items, size_t n, struct mb_slice progress,
    struct mb_error *err)
{
    bank_plan_fini(&t->plan);
    t->has_job = false;
    t->step = t->n_tokens = 0;
    t->loss = 0;
    mb_status st =
        bank_plan_make(&t->model.bank, &t->options, items, n, &t->plan, err);
    if (st == MB_OK)
        st = take_progress(t, progress, err);
    if (st != MB_OK)
        return st;
    t->saved_step = t->step;
    t->has_job = true;
    bank_plan_seek(&t->plan, &t->options, t->step);
    return MB_OK;
}

/* ---- states ---- */

static mb_status
checkpoint(struct mb_bank_trainer *t, struct mb_error *err)
{
    uint8_t progress[PROGRESS_BYTES];
    mb_status st = MB_OK;
    if (t->step == t->saved_step)
        return MB_OK;
    for (size_t i = 0; i < t->plan.n_slots && st == MB_OK; i++) {
        struct bank_slot *s = &t->plan.slots[i];
        if (s->is_dirty)
            st = t->io.save(t->io.arg, s->node, s->level,
                bank_slot_seal(s, &t->model.bank), err);
    }
    put_progress(t, progress);
    if (st == MB_OK)
        st = t->io.commit(
            t->io.arg, mb_slice_of(progress, sizeof(progress)), err);
    if (st != MB_OK)
        return st;
    for (size_t i = 0; i < t->plan.n_slots; i++)
        t->plan.slots[i].is_dirty = false;
    t->saved_step = t->step;
    t->saved_ns = mb_clock_ns();
    return MB_OK;
}

/* Forget states; all must be saved. */
static void
drop_states(struct mb_bank_trainer *t)
{
    for (size_t i = 0; i < t->plan.n_slots; i++) {
        if (!t->plan.slots[i].is_dirty)
            bank_slot_drop(&t->plan.slots[i]);
    }
}

static mb_status
need_slot(struct mb_bank_trainer *t, struct bank_slot *s, struct mb_error *err)
{
    struct mb_slice state = {NULL, 0};
    struct mb_slice record = {NULL, 0};
    if (s->bytes)
        return MB_OK;
    mb_status st = t->io.load(t->io.arg, s->node, &state, &record, err);
    if (st != MB_OK)
        return st;
    t->draw.node = s->node;
    t->draw.level = s->level;
    return bank_slot_load(s, &t->model.bank, &t->draw, state, record, err);
}

/* ---- windows ---- */

/* Blocks of a window's path into a chunk's room. Windows of the same path share
 * one. */
static mb_status
lay_path(struct mb_bank_trainer *t, const struct bank_window *w, size_t i,
    size_t *shared, struct mb_error *err)
{
    const struct bank_window *before = i > 0 ? w - 1 : NULL;
    if (before && before->n_blocks == w->n_blocks &&
        memcmp(before->slots, w->slots, sizeof(w->slots)) == 0)
        return MB_OK;
    size_t row = 0;
    *shared = i;
    for (size_t l = 0; l < w->n_blocks; l++) {
        struct bank_slot *s = &t->plan.slots[w->slots[l]];
        mb_status st = need_slot(t, s, err);
        if (st != MB_OK)
            return st;
        bank_path_put(&t->model.bank, s, t->paths[i], t->path_rows, row);
        row += s->rows;
    }
    return MB_OK;
}

static mb_status
read_window(struct mb_bank_trainer *t, const struct bank_window *w, size_t i,
    uint64_t epoch, struct train_window *out, struct mb_error *err)
{
    size_t n_ctx = t->options.n_ctx;
    mb_token_id *tokens = t->tokens + i * n_ctx;
    mb_token_id *targets = t->targets + i * n_ctx;
    size_t n = 0;
    mb_status st = t->io.window(
        t->io.arg, &t->plan.items[w->item], epoch, tokens, targets, &n, err);
    if (st != MB_OK)
        return st;
    if (n == 0 || n > n_ctx)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "train: window %llu has %zu rows, must be 1 to %zu",
            (unsigned long long)w->key, n, n_ctx);
    *out = (struct train_window){.n = n, .tokens = tokens, .targets = targets};
    return weights_check_tokens(&t->model.shape, out, w->key, err);
}

static size_t
count_targets(const struct train_window *w)
{
    size_t n = 0;
    for (size_t r = 0; r < w->n; r++)
        n += w->targets[r] >= 0;
    return n;
}

/* Rows of the first n blocks of a path. */
static size_t
rows_of(const struct mb_bank_trainer *t, const struct bank_window *w, size_t n)
{
    size_t rows = 0;
    for (size_t l = 0; l < n; l++)
        rows += t->plan.slots[w->slots[l]].rows;
    return rows;
}

/* ---- a step ---- */

/* Add a window's gradient to those of its blocks. */
static mb_status
take_gradient(struct mb_bank_trainer *t, const struct bank_window *w,
    const struct bank_pass *p, struct mb_error *err)
{
    size_t row = 0;
    size_t n = count_targets(&p->window);
    if (n == 0)
        return MB_OK;
    for (size_t l = 0; l < w->n_blocks; l++) {
        struct bank_slot *s = &t->plan.slots[w->slots[l]];
        if (!s->grad) {
            s->grad = mb_calloc(bank_slot_n(s, &t->model.bank), sizeof(float));
            if (!s->grad)
                return mb_error_set(
                    err, MB_ERR_NOMEM, "train: gradient of a block");
            t->touched[t->n_touched++] = s;
        }
        bank_path_take(&t->model.bank, s, p->grad, t->path_rows, row);
        s->n_targets += n;
        row += s->rows;
    }
    return MB_OK;
}

static mb_status
run_chunk(struct mb_bank_trainer *t, const struct bank_window *w, size_t n,
    uint64_t epoch, double *loss, size_t *n_targets, struct mb_error *err)
{
    size_t shared = 0;
    mb_status st = MB_OK;
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        struct bank_pass *p = &t->passes[i];
        st = lay_path(t, w + i, i, &shared, err);
        *p = (struct bank_pass){
            .path = t->paths[shared],
            .grad = t->grads[i],
            .path_rows = t->path_rows,
            .rows = rows_of(t, w + i, w[i].n_blocks),
        };
        memset(t->grads[i], 0, t->n_floats * sizeof(float));
        if (st == MB_OK)
            st = read_window(t, w + i, i, epoch, &p->window, err);
    }
    if (st == MB_OK) {
        // Given up is no error, that of a callback before is one.
        struct mb_error why = {0};
        st = bank_model_run(&t->model, t->passes, n, &t->flops, &why);
        t->is_given_up = st == MB_ERR_CANCELLED;
        if (t->is_given_up)
            return MB_OK;
        if (st != MB_OK && err)
            *err = why;
    }
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        st = take_gradient(t, w + i, &t->passes[i], err);
        *loss += t->passes[i].loss;
        *n_targets += count_targets(&t->passes[i].window);
    }
    return st;
}

/* Linear rise, then a cosine to what is left at the end. */
static double
rate_at(const struct mb_bank_trainer *t)
{
    const struct mb_bank_train_options *o = &t->options;
    double n = (double)n_steps(t);
    double done = (double)t->step + 0.5;
    double rise = o->warmup * n;
    if (done < rise)
        return o->rate * done / rise;
    double part = (done - rise) / (n - rise);
    double wave = 0.5 * (1 + cos(3.14159265358979323846 * part));
    return o->rate * (o->final_rate + (1 - o->final_rate) * wave);
}

/* After an error nothing of the step may be left. */
static void
forget_gradients(struct mb_bank_trainer *t)
{
    for (size_t i = 0; i < t->n_touched; i++) {
        mb_free(t->touched[i]->grad);
        t->touched[i]->grad = NULL;
        t->touched[i]->n_targets = 0;
    }
}

/* A finite loss may have a gradient that is not, and Adam would keep it for
 * ever. Its square must fit a float, too: that is what Adam sums up. */
static mb_status
check_gradients(const struct mb_bank_trainer *t, struct mb_error *err)
{
    for (size_t i = 0; i < t->n_touched; i++) {
        const struct bank_slot *s = t->touched[i];
        size_t n = bank_slot_n(s, &t->model.bank);
        double square = 0;
        for (size_t j = 0; j < n; j++)
            square += (double)s->grad[j] * (double)s->grad[j];
        if (!(square <= (double)FLT_MAX)) // NaN is refused, too
            return mb_error_set(err, MB_ERR_CORRUPT,
                "train: step %llu: the gradient of node %llu is not finite",
                (unsigned long long)t->step, (unsigned long long)s->node);
    }
    return MB_OK;
}

static mb_status
step(struct mb_bank_trainer *t, struct mb_error *err)
{
    bool is_new = false;
    size_t n = bank_plan_next(&t->plan, &t->options, t->windows, &is_new);
    uint64_t epoch = t->plan.epoch;
    double loss = 0;
    size_t n_targets = 0;
    mb_status st = MB_OK;
    t->n_touched = 0;
    if (is_new && t->plan.n_groups > 1) {
        st = checkpoint(t, err);
        if (st == MB_OK)
            drop_states(t);
    }
    for (size_t i = 0; i < n && st == MB_OK && !t->is_given_up; i += BANK_CHUNK)
        st = run_chunk(t, t->windows + i,
            n - i < BANK_CHUNK ? n - i : BANK_CHUNK, epoch, &loss, &n_targets,
            err);
    if (t->is_given_up) {
        forget_gradients(t);
        bank_plan_seek(&t->plan, &t->options, t->step);
        return MB_OK;
    }
    if (st == MB_OK)
        st = check_gradients(t, err);
    if (st != MB_OK) {
        forget_gradients(t);
        return st;
    }
    bank_model_move(
        &t->model, t->touched, t->n_touched, &t->options, rate_at(t));
    if (n_targets > 0) {
        double mean = loss / (double)n_targets;
        t->loss = t->loss == 0 ? mean : t->loss + (mean - t->loss) / LOSS_STEPS;
    }
    t->n_tokens += n_targets;
    t->step++;
    return MB_OK;
}

static void
report(const struct mb_bank_trainer *t, struct mb_bank_progress *out)
{
    *out = (struct mb_bank_progress){
        .step = t->step,
        .n_steps = n_steps(t),
        .n_tokens = t->n_tokens,
        .n_run_tokens = t->n_tokens - t->first_token,
        .loss = t->loss,
        .seconds = (double)(mb_clock_ns() - t->start_ns) / 1e9,
        .flops = t->flops,
        .is_finished = t->step == n_steps(t) && t->saved_step == t->step,
    };
    out->resident_bytes = resident_bytes(t, &out->n_resident);
}

static bool
is_checkpoint_due(const struct mb_bank_trainer *t)
{
    const struct mb_bank_train_options *o = &t->options;
    return t->step - t->saved_step >= o->checkpoint_steps ||
           (o->checkpoint_seconds > 0 &&
               (double)(mb_clock_ns() - t->saved_ns) / 1e9 >=
                   o->checkpoint_seconds);
}

static void
tell_step(struct mb_bank_trainer *t)
{
    struct mb_bank_progress p;
    if (!t->io.on_step)
        return;
    report(t, &p);
    t->io.on_step(t->io.arg, &p);
}

mb_status
mb_bank_trainer_run(struct mb_bank_trainer *t, uint64_t max_steps,
    double seconds, struct mb_bank_progress *out, struct mb_error *err)
{
    uint64_t done = 0;
    mb_status st = MB_OK;
    if (!t->has_job)
        return mb_error_set(err, MB_ERR_BAD_ARG, "train: no job has begun");
    t->start_ns = t->saved_ns = mb_clock_ns();
    t->first_token = t->n_tokens;
    t->flops = 0;
    t->is_given_up = false;
    while (st == MB_OK && t->step < n_steps(t) &&
           (max_steps == 0 || done < max_steps) &&
           (seconds <= 0 ||
               (double)(mb_clock_ns() - t->start_ns) / 1e9 < seconds)) {
        if (t->io.is_stopped && t->io.is_stopped(t->io.arg))
            break;
        st = step(t, err);
        if (st == MB_OK && t->is_given_up)
            break;
        done++;
        if (st == MB_OK)
            tell_step(t);
        if (st == MB_OK && is_checkpoint_due(t))
            st = checkpoint(t, err);
    }
    if (st == MB_OK)
        st = checkpoint(t, err);
    if (st != MB_OK) {
        t->has_job = false; // what is in memory is of no step
        return st;
    }
    report(t, out);
    return MB_OK;
}

/* ---- what held-out windows say ---- */

/* Losses of n windows at all depths: the anchor alone, with one block, ... */
static mb_status
measure_chunk(struct mb_bank_trainer *t, const struct bank_window *w, size_t n,
    struct gain_sums *sums, struct mb_error *err)
{
    size_t shared = 0;
    size_t n_passes = 0;
    mb_status st = MB_OK;
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        struct train_window window = {0};
        st = lay_path(t, w + i, i, &shared, err);
        if (st == MB_OK)
            st = read_window(t, w + i, i, 0, &window, err);
        for (size_t depth = 0; depth <= w[i].n_blocks; depth++)
            t->passes[n_passes++] = (struct bank_pass){
                .window = window,
                .path = t->paths[shared],
                .path_rows = t->path_rows,
                .rows = rows_of(t, w + i, depth),
            };
    }
    if (st == MB_OK)
        st = bank_model_run(&t->model, t->passes, n_passes, &t->flops, err);
    const struct bank_pass *p = t->passes;
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        size_t n_targets = count_targets(&p->window);
        for (size_t l = 0; l < w[i].n_blocks; l++) {
            struct gain_sums *s = &sums[w[i].slots[l]];
            s->n += n_targets;
            s->before += p[0].loss;
            s->without += p[l].loss;
            s->with += p[l + 1].loss;
            s->after += p[w[i].n_blocks].loss;
        }
        p += w[i].n_blocks + 1;
    }
    return st;
}

static mb_status
measure_all(
    struct mb_bank_trainer *t, struct gain_sums *sums, struct mb_error *err)
{
    const struct bank_plan *p = &t->plan;
    mb_status st = MB_OK;
    for (size_t i = 0; i < p->n_held_out && st == MB_OK; i += BANK_CHUNK) {
        size_t n_resident = 0;
        size_t left = p->n_held_out - i;
        if (resident_bytes(t, &n_resident) > t->options.resident_bytes)
            drop_states(t);
        st = measure_chunk(t, p->held_out + i,
            left < BANK_CHUNK ? left : BANK_CHUNK, sums, err);
    }
    return st;
}

/* Keys of the windows trained on, by node: slot i has keys[first[i]] to
 * keys[first[i + 1]], rising. */
struct keys_of {
    uint64_t *keys;
    size_t *first; /* (n_slots + 1) */
};

static int
compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static mb_status
collect_keys(
    const struct bank_plan *p, struct keys_of *out, struct mb_error *err)
{
    size_t n = 0;
    for (size_t w = 0; w < p->n_windows; w++)
        n += p->windows[w].n_blocks;
    out->keys = mb_calloc(n + 1, sizeof(*out->keys));
    out->first = mb_calloc(p->n_slots + 2, sizeof(*out->first));
    if (!out->keys || !out->first)
        return mb_error_set(err, MB_ERR_NOMEM, "train: keys of %zu nodes", n);
    /* Counts, then where each slot's keys begin; filling moves that to where
     * they end, which is where the next slot's begin. */
    size_t *at = out->first + 1;
    for (size_t w = 0; w < p->n_windows; w++) {
        for (size_t l = 0; l < p->windows[w].n_blocks; l++)
            at[p->windows[w].slots[l] + 1]++;
    }
    for (size_t i = 1; i <= p->n_slots; i++)
        at[i] += at[i - 1];
    for (size_t w = 0; w < p->n_windows; w++) {
        for (size_t l = 0; l < p->windows[w].n_blocks; l++)
            out->keys[at[p->windows[w].slots[l]]++] = p->windows[w].key;
    }
    for (size_t i = 0; i < p->n_slots; i++)
        qsort(out->keys + out->first[i], out->first[i + 1] - out->first[i],
            sizeof(*out->keys), compare_u64);
    return MB_OK;
}

/* Tell of one node. */
static mb_status
tell(struct mb_bank_trainer *t, size_t i, const struct gain_sums *s,
    const struct keys_of *k, mb_bank_gain_fn on_node, void *arg,
    struct mb_error *err)
{
    struct bank_slot *slot = &t->plan.slots[i];
    struct mb_slice record = {NULL, 0};
    double n = s->n > 0 ? (double)s->n : 1;
    size_t n_keys = k->first[i + 1] - k->first[i];
    mb_status st = need_slot(t, slot, err);
    if (st == MB_OK)
        st = mb_bank_state_record(
            bank_slot_seal(slot, &t->model.bank), &record, NULL, err);
    if (st != MB_OK)
        return st;
    const struct mb_bank_gain gain = {
        .node = slot->node,
        .level = slot->level,
        .n_windows = n_keys,
        .n_tokens = slot->n_tokens,
        .n_held_out = s->n,
        .before = s->before / n,
        .without = s->without / n,
        .with = s->with / n,
        .after = s->after / n,
        .keys = k->keys + k->first[i],
        .n_keys = n_keys,
        .record = record,
    };
    return on_node(arg, &gain, err);
}

mb_status
mb_bank_trainer_measure(struct mb_bank_trainer *t, mb_bank_gain_fn on_node,
    void *arg, struct mb_error *err)
{
    if (!t->has_job)
        return mb_error_set(err, MB_ERR_BAD_ARG, "train: no job has begun");
    struct gain_sums *sums = mb_calloc(t->plan.n_slots, sizeof(*sums));
    struct keys_of keys = {NULL, NULL};
    size_t n_resident = 0;
    mb_status st = sums ? measure_all(t, sums, err)
                        : mb_error_set(err, MB_ERR_NOMEM, "train: gains");
    if (st == MB_OK)
        st = collect_keys(&t->plan, &keys, err);
    size_t resident = resident_bytes(t, &n_resident);
    for (size_t i = 0; i < t->plan.n_slots && st == MB_OK; i++) {
        if (resident > t->options.resident_bytes) {
            drop_states(t);
            resident = 0;
        }
        bool is_new = t->plan.slots[i].bytes == NULL;
        st = tell(t, i, &sums[i], &keys, on_node, arg, err);
        resident += is_new ? t->plan.slots[i].size : 0;
    }
    mb_free(sums);
    mb_free(keys.keys);
    mb_free(keys.first);
    return st;
}
