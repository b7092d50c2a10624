/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/facts_train.c - the trainings of facts.h.
 *
 * Rates rise over the first fiftieth of the steps and fall as a cosine to a
 * hundredth. A document is a window; each is seen once. */
#include "facts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define RATE_FIRST  3e-3 /* of an anchor from scratch */
#define RATE_AGAIN  2e-3 /* of one that was trained before */
#define RATE_MEMORY 3e-3
#define DECAY       0.05
#define MAX_BATCH   256u
#define LATE_EPOCHS 6u
#define LATE_BATCH  4u

/* Windows of a step, and where their tokens are. */
struct windows {
    struct world_document *documents; /* (MAX_BATCH) */
    mb_token_id *targets;             /* (MAX_BATCH, WORLD_ROWS) */
};

static double
rate_at(uint64_t step, uint64_t n_steps, double peak)
{
    double n = (double)n_steps;
    double done = (double)step + 0.5;
    double rise = 0.02 * n;

    if (done < rise)
        return peak * done / rise;
    double wave =
        0.5 * (1 + cos(3.14159265358979323846 * (done - rise) / (n - rise)));
    return peak * (0.01 + 0.99 * wave);
}

static void
targets_of(const struct world_document *d, mb_token_id *out)
{
    for (size_t r = 0; r + 1 < WORLD_ROWS; r++)
        out[r] = d->tokens[r + 1];
    out[WORLD_ROWS - 1] = -1;
}

static void
show(struct facts *f, const char *name, uint64_t step, uint64_t n_steps,
    double loss)
{
    char text[96];
    double part = f->done + f->share * (double)step / (double)n_steps;

    (void)snprintf(text, sizeof text, "%s: step %llu of %llu, loss %.3f", name,
        (unsigned long long)step, (unsigned long long)n_steps, loss);
    progress_show(&f->progress, part < 1 ? part : 1, text);
}

static mb_status
stopped(struct mb_error *err)
{
    return mb_error_set(err, MB_ERR_CANCELLED, "stopped");
}

void
facts_path(const struct facts *f, const char *name, char out[512])
{
    (void)snprintf(out, 512, "%s/%s.gguf", f->folder, name);
}

static mb_status
write_model(const struct facts *f, const struct train_shape *shape,
    const struct export_weight *weights, size_t n, const char *name,
    struct mb_error *err)
{
    char path[512];

    facts_path(f, name, path);
    return export_gguf(path,
        &(struct export_options){.shape = shape,
            .weights = weights,
            .n_weights = n,
            .vocab = f->vocab,
            .type = GGUF_F32,
            .name = name},
        err);
}

static mb_status
windows_init(struct windows *w, struct mb_error *err)
{
    w->documents = mb_calloc(MAX_BATCH, sizeof *w->documents);
    w->targets = mb_calloc((size_t)MAX_BATCH * WORLD_ROWS, sizeof *w->targets);
    return w->documents != NULL && w->targets != NULL
               ? MB_OK
               : mb_error_set(err, MB_ERR_NOMEM, "windows");
}

static void
windows_fini(struct windows *w)
{
    mb_free(w->documents);
    mb_free(w->targets);
}

/* Document `number` of a stream as window i. */
static struct train_window
window_of(const struct facts *f, struct windows *w, size_t i, uint64_t stream,
    uint64_t number)
{
    mb_token_id *targets = w->targets + i * WORLD_ROWS;

    world_document(f->world, stream, number, &w->documents[i]);
    targets_of(&w->documents[i], targets);
    return (struct train_window){
        .n = WORLD_ROWS, .tokens = w->documents[i].tokens, .targets = targets};
}

static uint64_t
n_documents(const struct facts *f)
{
    return f->n_tokens / WORLD_ROWS;
}

/* ---- dense ---- */

static mb_status
write_trainer(const struct facts *f, struct trainer *t, const char *name,
    struct mb_error *err)
{
    size_t n = trainer_n_weights(t);
    struct export_weight *weights = mb_calloc(n, sizeof *weights);

    if (weights == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "weights");
    for (size_t i = 0; i < n; i++) {
        const struct train_weight *w = trainer_weight(t, i);

        weights[i] =
            (struct export_weight){w->name, w->n_rows, w->n_cols, w->value};
    }
    mb_status st = write_model(f, trainer_shape(t), weights, n, name, err);
    mb_free(weights);
    return st;
}

static mb_status
dense_steps(struct facts *f, struct trainer *t, uint64_t n_windows,
    const char *name, struct mb_error *err)
{
    struct train_window batch[MAX_BATCH];
    struct train_result r = {0};
    struct windows w = {NULL, NULL};
    uint64_t n_steps = n_windows / f->batch;
    mb_status st = windows_init(&w, err);

    for (uint64_t s = 0; st == MB_OK && s < n_steps; s++) {
        for (size_t i = 0; i < f->batch; i++) {
            uint64_t number = s * f->batch + i;
            bool is_second = number >= n_documents(f);

            batch[i] = window_of(f, &w, i,
                is_second ? FACTS_STREAM_BANK : FACTS_STREAM_FIRST,
                is_second ? number - n_documents(f) : number);
        }
        st = own_is_stopped ? stopped(err)
                            : trainer_step(t, batch, f->batch,
                                  rate_at(s, n_steps, RATE_FIRST), &r, err);
        show(f, name, s + 1, n_steps, r.loss);
    }
    windows_fini(&w);
    return st;
}

mb_status
facts_train_dense(struct facts *f, const struct train_shape *shape,
    uint64_t n_tokens, const char *name, struct facts_score *out,
    struct mb_error *err)
{
    const struct train_options o = {
        .n_threads = f->n_threads, .seed = f->seed, .decay = DECAY};
    struct trainer *t = NULL;
    uint64_t start = mb_clock_ns();
    mb_status st = trainer_new(shape, &o, &t, err);

    if (st == MB_OK)
        st = dense_steps(f, t, n_tokens / WORLD_ROWS, name, err);
    if (st == MB_OK)
        st = write_trainer(f, t, name, err);
    if (st == MB_OK) {
        out->name = name;
        out->n_params = trainer_n_params(t);
        out->n_tokens = n_tokens;
        out->seconds = (double)(mb_clock_ns() - start) / 1e9;
    }
    trainer_free(t);
    f->done += f->share;
    return st;
}

/* ---- blocks ---- */

mb_status
facts_blocks_init(struct facts_blocks *b, size_t n_nodes, struct mb_error *err)
{
    *b = (struct facts_blocks){.n_nodes = n_nodes};
    b->state = mb_calloc(n_nodes + FACTS_EXTRA, sizeof *b->state);
    b->record = mb_calloc(n_nodes + FACTS_EXTRA, sizeof *b->record);
    return b->state != NULL && b->record != NULL
               ? MB_OK
               : mb_error_set(err, MB_ERR_NOMEM, "%zu blocks", n_nodes);
}

void
facts_blocks_fini(struct facts_blocks *b)
{
    for (size_t i = 0; b->state != NULL && i < b->n_nodes + FACTS_EXTRA; i++) {
        mb_free((void *)(uintptr_t)b->state[i].data);
        if (b->owns_records)
            mb_free((void *)(uintptr_t)b->record[i].data);
    }
    mb_free(b->state);
    mb_free(b->record);
    *b = (struct facts_blocks){0};
}

static size_t
place_of(const struct facts_blocks *b, uint64_t node)
{
    size_t i = node == MB_BANK_GENERIC ? b->n_nodes : (size_t)node;

    MB_ASSERT(i < b->n_nodes + FACTS_EXTRA);
    return i;
}

/* A copy; empty without memory. */
static struct mb_slice
copy_of(struct mb_slice s)
{
    uint8_t *to = mb_alloc(s.size);

    if (to == NULL)
        return mb_slice_of(NULL, 0);
    memcpy(to, s.data, s.size);
    return mb_slice_of(to, s.size);
}

struct route
facts_late_route(const struct facts *f)
{
    return (struct route){
        {f->routes.n_nodes + 1, f->routes.n_nodes + 2, f->routes.n_nodes + 3}};
}

/* ---- the bank, as the product trains it ---- */

struct bank_job {
    struct facts *f;
    struct facts_blocks *blocks;
    const char *name;
    bool is_late;
};

static mb_status
job_window(void *arg, const struct mb_bank_item *item, uint64_t epoch,
    mb_token_id *tokens, mb_token_id *targets, size_t *n, struct mb_error *err)
{
    const struct bank_job *job = arg;
    struct world_document d;

    (void)epoch;
    (void)err;
    if (job->is_late)
        world_late_document(job->f->world, item->key, &d);
    else
        world_document(job->f->world, FACTS_STREAM_BANK, item->key, &d);
    memcpy(tokens, d.tokens, sizeof d.tokens);
    targets_of(&d, targets);
    *n = WORLD_ROWS;
    return MB_OK;
}

static mb_status
job_load(void *arg, uint64_t node, struct mb_slice *state,
    struct mb_slice *record, struct mb_error *err)
{
    const struct bank_job *job = arg;

    (void)err;
    *state = job->blocks->state[place_of(job->blocks, node)];
    *record = mb_slice_of(NULL, 0);
    return MB_OK;
}

static mb_status
job_save(void *arg, uint64_t node, size_t level, struct mb_slice state,
    struct mb_error *err)
{
    const struct bank_job *job = arg;
    size_t i = place_of(job->blocks, node);
    struct mb_slice copy = copy_of(state);

    (void)level;
    if (copy.data == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "a state");
    mb_free((void *)(uintptr_t)job->blocks->state[i].data);
    job->blocks->state[i] = copy;
    return mb_bank_state_record(copy, &job->blocks->record[i], NULL, err);
}

static mb_status
job_commit(void *arg, struct mb_slice progress, struct mb_error *err)
{
    (void)arg;
    (void)progress;
    (void)err;
    return MB_OK;
}

static bool
job_is_stopped(void *arg)
{
    (void)arg;
    return own_is_stopped != 0;
}

static void
job_on_step(void *arg, const struct mb_bank_progress *p)
{
    const struct bank_job *job = arg;

    show(job->f, job->name, p->step, p->n_steps, p->loss);
}

static void
fill_items(
    const struct facts *f, bool is_late, struct mb_bank_item *items, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct route r = is_late ? facts_late_route(f) : f->routes.documents[i];

        items[i] = (struct mb_bank_item){.key = i};
        for (size_t l = 0; l < WORLD_LEVELS; l++)
            items[i].path[l] = r.node[l];
    }
}

static mb_status
run_job(struct bank_job *job, const char *from,
    const struct mb_bank_shape *shape, struct mb_bank_train_options o, size_t n,
    struct mb_error *err)
{
    const struct mb_bank_io io = {.window = job_window,
        .load = job_load,
        .save = job_save,
        .commit = job_commit,
        .is_stopped = job_is_stopped,
        .on_step = job_on_step,
        .arg = job};
    struct mb_bank_item *items = mb_calloc(n, sizeof *items);
    struct mb_bank_trainer *t = NULL;
    struct mb_gguf *gguf = NULL;
    struct mb_bank_progress p = {0};
    char path[512];

    facts_path(job->f, from, path);
    o.n_threads = job->f->n_threads;
    o.seed = job->f->seed;
    o.n_ctx = WORLD_ROWS;
    o.rate = RATE_MEMORY;
    o.resident_bytes = (size_t)2 << 30;
    o.checkpoint_steps = SIZE_MAX;
    mb_status st = items != NULL
                       ? mb_gguf_open(path, &gguf, err)
                       : mb_error_set(err, MB_ERR_NOMEM, "%zu windows", n);
    if (st == MB_OK)
        fill_items(job->f, job->is_late, items, n);
    if (st == MB_OK)
        st = mb_bank_trainer_new(gguf, shape, &o, &io, &t, err);
    if (st == MB_OK)
        st = mb_bank_trainer_begin(t, items, n, mb_slice_of(NULL, 0), err);
    if (st == MB_OK)
        st = mb_bank_trainer_run(t, 0, 0, &p, err);
    if (st == MB_OK && !p.is_finished)
        st = stopped(err);
    mb_bank_trainer_free(t);
    mb_gguf_close(gguf);
    mb_free(items);
    return st;
}

mb_status
facts_train_bank(struct facts *f, const char *from,
    const struct mb_bank_shape *shape, bool is_generic,
    struct facts_blocks *blocks, struct facts_score *out, struct mb_error *err)
{
    struct bank_job job = {
        .f = f, .blocks = blocks, .name = is_generic ? "A3g" : "A3"};
    uint64_t start = mb_clock_ns();
    mb_status st = run_job(&job, from, shape,
        (struct mb_bank_train_options){
            .epochs = 1, .batch = f->batch, .is_generic = is_generic},
        f->routes.n_documents, err);

    out->name = job.name;
    out->n_tokens = 2 * f->n_tokens;
    out->seconds = (double)(mb_clock_ns() - start) / 1e9;
    f->done += f->share;
    return st;
}

mb_status
facts_train_late(struct facts *f, const char *from,
    const struct mb_bank_shape *shape, struct facts_blocks *blocks,
    struct mb_error *err)
{
    struct bank_job job = {
        .f = f, .blocks = blocks, .name = "late", .is_late = true};

    f->share = 0;
    return run_job(&job, from, shape,
        (struct mb_bank_train_options){
            .epochs = LATE_EPOCHS, .batch = LATE_BATCH},
        FACTS_N_LATE_DOCS, err);
}

/* ---- together ---- */

static mb_status
both_steps(struct facts *f, struct mb_cotrainer *t, bool is_generic,
    const char *name, struct mb_error *err)
{
    struct mb_cotrain_window batch[MAX_BATCH];
    struct train_result r = {0};
    struct windows w = {NULL, NULL};
    uint64_t n_steps = n_documents(f) / f->batch;
    mb_status st = windows_init(&w, err);

    for (uint64_t s = 0; st == MB_OK && s < n_steps; s++) {
        for (size_t i = 0; i < f->batch; i++) {
            uint64_t number = s * f->batch + i;

            batch[i].rows = window_of(f, &w, i, FACTS_STREAM_BANK, number);
            batch[i].path[0] = MB_BANK_GENERIC;
            for (size_t l = 0; !is_generic && l < WORLD_LEVELS; l++)
                batch[i].path[l] = f->routes.documents[number].node[l];
        }
        st = own_is_stopped ? stopped(err)
                            : mb_cotrainer_step(t, batch, f->batch,
                                  rate_at(s, n_steps, RATE_AGAIN),
                                  rate_at(s, n_steps, RATE_MEMORY), &r, err);
        show(f, name, s + 1, n_steps, r.loss);
    }
    windows_fini(&w);
    return st;
}

static mb_status
keep_records(
    struct mb_cotrainer *t, struct facts_blocks *blocks, struct mb_error *err)
{
    blocks->owns_records = true;
    for (size_t i = 1; i <= blocks->n_nodes; i++) {
        struct mb_slice record;
        mb_status st = mb_cotrainer_record(
            t, i == blocks->n_nodes ? MB_BANK_GENERIC : i, &record, err);

        if (st == MB_ERR_NOT_FOUND)
            continue;
        if (st == MB_OK) {
            blocks->record[i] = copy_of(record);
            if (blocks->record[i].data == NULL)
                st = mb_error_set(err, MB_ERR_NOMEM, "a block");
        }
        if (st != MB_OK)
            return st;
    }
    return MB_OK;
}

mb_status
facts_train_both(struct facts *f, const char *from,
    const struct mb_bank_shape *shape, bool is_generic, const char *name,
    struct facts_blocks *blocks, struct facts_score *out, struct mb_error *err)
{
    const struct mb_cotrain_options o = {
        .n_threads = f->n_threads, .seed = f->seed, .decay = DECAY};
    struct mb_cotrainer *t = NULL;
    struct mb_gguf *gguf = NULL;
    uint64_t start = mb_clock_ns();
    char path[512];
    size_t n = 0;

    facts_path(f, from, path);
    mb_status st = mb_gguf_open(path, &gguf, err);
    if (st == MB_OK)
        st = mb_cotrainer_new(gguf, shape, &o, &t, err);
    if (st == MB_OK)
        st = both_steps(f, t, is_generic, name, err);
    if (st == MB_OK) {
        const struct export_weight *weights = mb_cotrainer_weights(t, &n);

        st = write_model(f, mb_cotrainer_shape(t), weights, n, name, err);
    }
    if (st == MB_OK)
        st = keep_records(t, blocks, err);
    mb_cotrainer_free(t);
    mb_gguf_close(gguf);
    out->name = name;
    out->n_tokens = 2 * f->n_tokens;
    out->seconds = (double)(mb_clock_ns() - start) / 1e9;
    f->done += f->share;
    return st;
}
