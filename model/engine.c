/* SPDX-License-Identifier: Apache-2.0
 * model/engine.c - one model at work for many: threads, admission, ends.
 *
 * mb-model sleeps until there is a request; then, turn after turn: end those
 * that are cancelled or late, admit from the head of the queue while the cache
 * has room for all that they may need, run a pass. Admission keeps the order of
 * arrival: a large request at the head holds others back until it fits, which
 * it will, as those that run end in bounded time.
 * Invariants: a request is in the queue, or in `running`, or being finished by
 * mb-model; n_reserved is the sum of n_blocks over `running` and never more
 * than the cache has, so that a pass cannot fail for want of cache.
 * Threads: `lock` guards the queue, `running` and the counters beside them;
 * mb-model alone writes `running`, so it may read it without. Callbacks run
 * without the lock. */
#include "engine.h"

#include <string.h>

#define DEFAULT_ROWS      512
#define DEFAULT_ROWS_BUSY 128
#define DEFAULT_RUNNING   64
#define DEFAULT_QUEUED    1024
#define DEFAULT_WINDOWS   8 /* that the cache has room for */
#define MIN_CACHE_ROWS    4096
#define MAX_ROWS          65536
#define MAX_RUNNING       1024
#define MAX_CACHE_ROWS    ((size_t)1 << 30)

/* ---- admission ---- */

static size_t
blocks_of(size_t rows)
{
    return (rows + MB_BLOCK_ROWS - 1) / MB_BLOCK_ROWS;
}

/* Rows of the cache that a request may come to need. */
static size_t
rows_needed(const struct mb_engine *e, const struct mb_engine_request *q)
{
    size_t rows = q->n;

    if (q->context != NULL) // it has its own
        return 0;
    if (q->task == MB_TASK_GENERATE)
        rows += q->max_tokens - 1;
    return rows < e->window ? rows : e->window;
}

/* Take the oldest request off the queue if it fits. Under the lock. */
static struct request *
take_fitting(struct mb_engine *e)
{
    struct request *r = e->queue;

    if (r == NULL || e->n_running == e->opt.max_running ||
        e->n_reserved + r->n_blocks > mb_cache_max_blocks(e->cache))
        return NULL;
    e->queue = r->next;
    if (e->queue == NULL)
        e->queue_end = &e->queue;
    e->n_queued--;
    r->next = NULL;
    e->running[e->n_running++] = r;
    e->n_reserved += r->n_blocks;
    return r;
}

/* Take request i out of `running` and finish it. */
static void
finish_running(struct mb_engine *e, size_t i)
{
    struct request *r = e->running[i];

    (void)pthread_mutex_lock(&e->lock);
    e->n_reserved -= r->n_blocks;
    e->n_running--;
    // The order stays, so that turns go round.
    memmove(&e->running[i], &e->running[i + 1],
        (e->n_running - i) * sizeof(struct request *));
    (void)pthread_mutex_unlock(&e->lock);
    mb_sequence_free(r->seq);
    atomic_store_explicit(
        &e->cache_used_blocks, mb_cache_n_used(e->cache), memory_order_relaxed);
    request_finish(e, r);
    request_free(r);
}

/* May it use its context now, and is there room for a token? */
static mb_status
open_context(const struct mb_engine *e, struct request *r)
{
    for (size_t i = 0; i < e->n_running; i++) {
        if (e->running[i] != r && e->running[i]->q.context == r->q.context)
            return mb_error_set(
                &r->err, MB_ERR_BUSY, "another request is using the context");
    }
    return mb_context_prepare(r->q.context, e->pass, &r->err);
}

static void
admit(struct mb_engine *e)
{
    for (;;) {
        struct request *r;
        size_t i;

        (void)pthread_mutex_lock(&e->lock);
        r = take_fitting(e);
        i = e->n_running - 1;
        (void)pthread_mutex_unlock(&e->lock);
        if (r == NULL)
            return;
        r->status = r->q.context != NULL
                        ? open_context(e, r)
                        : mb_sequence_new(e->cache, &r->seq, &r->err);
        r->finish = MB_FINISH_STOP;
        if (r->status != MB_OK || !request_begin(e, r))
            finish_running(e, i);
    }
}

/* ---- ends ---- */

/* Must it end now? Sets why. */
static bool
is_over(struct request *r, uint64_t now)
{
    if (atomic_load_explicit(&r->cancelled, memory_order_relaxed))
        r->finish = MB_FINISH_CANCELLED;
    else if (r->q.deadline_ns != 0 && now > r->q.deadline_ns)
        r->finish = MB_FINISH_DEADLINE;
    else
        return false;
    return true;
}

static void
reap(struct mb_engine *e)
{
    struct request *over = NULL;
    struct request **over_end = &over;
    uint64_t now = mb_clock_ns();

    (void)pthread_mutex_lock(&e->lock);
    for (struct request **at = &e->queue; *at != NULL;) {
        struct request *r = *at;

        if (is_over(r, now)) {
            *at = r->next;
            r->next = NULL;
            *over_end = r;
            over_end = &r->next;
            e->n_queued--;
        } else {
            at = &r->next;
        }
    }
    e->queue_end = &e->queue;
    while (*e->queue_end != NULL) {
        e->queue_end = &(*e->queue_end)->next;
    }
    (void)pthread_mutex_unlock(&e->lock);
    while (over != NULL) {
        struct request *next = over->next;

        request_finish(e, over);
        request_free(over);
        over = next;
    }
    for (size_t i = e->n_running; i > 0; i--) {
        if (is_over(e->running[i - 1], now))
            finish_running(e, i - 1);
    }
}

/* End everything: the engine is being freed. */
static void
end_all(struct mb_engine *e)
{
    struct request *queue;

    (void)pthread_mutex_lock(&e->lock);
    queue = e->queue;
    e->queue = NULL;
    e->queue_end = &e->queue;
    e->n_queued = 0;
    (void)pthread_mutex_unlock(&e->lock);
    while (e->n_running > 0) {
        struct request *r = e->running[e->n_running - 1];

        r->finish = MB_FINISH_CANCELLED;
        r->status =
            mb_error_set(&r->err, MB_ERR_SHUTTING_DOWN, "the engine is ending");
        finish_running(e, e->n_running - 1);
    }
    while (queue != NULL) {
        struct request *next = queue->next;

        queue->finish = MB_FINISH_CANCELLED;
        queue->status = mb_error_set(
            &queue->err, MB_ERR_SHUTTING_DOWN, "the engine is ending");
        request_finish(e, queue);
        request_free(queue);
        queue = next;
    }
}

/* ---- the thread ---- */

/* Sleep until there is something to do; false: end. */
static bool
wait_for_work(struct mb_engine *e)
{
    bool goes_on;

    (void)pthread_mutex_lock(&e->lock);
    while (!e->stopping && e->queue == NULL && e->n_running == 0) {
        (void)pthread_cond_wait(&e->wake, &e->lock);
    }
    goes_on = !e->stopping;
    (void)pthread_mutex_unlock(&e->lock);
    return goes_on;
}

static void
run(void *arg)
{
    struct mb_engine *e = arg;

    while (wait_for_work(e)) {
        reap(e);
        admit(e);
        if (e->n_running == 0)
            continue;
        memset(e->ended, 0, e->n_running * sizeof *e->ended);
        engine_turn(e, e->ended);
        for (size_t i = e->n_running; i > 0; i--) {
            if (e->ended[i - 1])
                finish_running(e, i - 1);
        }
        atomic_store_explicit(&e->cache_used_blocks, mb_cache_n_used(e->cache),
            memory_order_relaxed);
    }
    end_all(e);
}

/* ---- life ---- */

static size_t
or_default(size_t value, size_t def)
{
    return value > 0 ? value : def;
}

static mb_status
set_options(struct mb_engine *e, const struct mb_engine_options *given,
    size_t n_ctx, struct mb_error *err)
{
    struct mb_engine_options *opt = &e->opt;
    size_t cache_rows = DEFAULT_WINDOWS * n_ctx;

    *opt = *given;
    opt->max_rows = or_default(opt->max_rows, DEFAULT_ROWS);
    opt->max_rows_busy = or_default(opt->max_rows_busy, DEFAULT_ROWS_BUSY);
    opt->max_running = or_default(opt->max_running, DEFAULT_RUNNING);
    opt->max_queued = or_default(opt->max_queued, DEFAULT_QUEUED);
    if (cache_rows < MIN_CACHE_ROWS)
        cache_rows = MIN_CACHE_ROWS;
    opt->cache_rows = or_default(opt->cache_rows, cache_rows);
    if (opt->max_rows_busy > opt->max_rows)
        opt->max_rows_busy = opt->max_rows;
    if (opt->max_running > opt->max_rows)
        opt->max_running = opt->max_rows;
    if (opt->max_rows > MAX_ROWS || opt->max_running > MAX_RUNNING ||
        opt->cache_rows > MAX_CACHE_ROWS)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "%zu rows, %zu running, %zu rows of cache: at most %d, %d, %zu are "
            "possible",
            opt->max_rows, opt->max_running, opt->cache_rows, MAX_ROWS,
            MAX_RUNNING, MAX_CACHE_ROWS);
    e->window = n_ctx < opt->cache_rows ? n_ctx : opt->cache_rows;
    return MB_OK;
}

static mb_status
make_room(struct mb_engine *e, struct mb_error *err)
{
    size_t rows = e->opt.max_rows;
    size_t running = e->opt.max_running;

    e->shares = mb_calloc(running, sizeof *e->shares);
    e->given = mb_calloc(running, sizeof *e->given);
    e->ended = mb_calloc(running, sizeof *e->ended);
    e->items = mb_calloc(running, sizeof *e->items);
    e->paths = mb_calloc(running, sizeof *e->paths);
    e->running = mb_calloc(running, sizeof(struct request *));
    e->row_tokens = mb_calloc(rows, sizeof *e->row_tokens);
    e->targets = mb_calloc(rows, sizeof *e->targets);
    e->nll = mb_calloc(rows, sizeof *e->nll);
    e->hidden = mb_calloc(rows, e->dim * sizeof *e->hidden);
    e->logits = mb_calloc(running, e->n_vocab * sizeof *e->logits);
    if (e->shares == NULL || e->given == NULL || e->ended == NULL ||
        e->items == NULL || e->paths == NULL || e->running == NULL ||
        e->row_tokens == NULL || e->targets == NULL || e->nll == NULL ||
        e->hidden == NULL || e->logits == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "engine of %zu rows", rows);
    return MB_OK;
}

/* A token that stands for text, whatever follows it. */
static mb_status
find_glue(struct mb_engine *e, struct mb_error *err)
{
    mb_status st = MB_OK;

    mb_buffer_init(&e->bytes, (size_t)1 << 20);
    for (size_t i = 0; i < e->n_vocab && st == MB_OK; i++) {
        e->glue = (mb_token_id)i;
        mb_buffer_clear(&e->bytes);
        st = mb_tokenizer_decode(e->tokenizer, &e->glue, 1, &e->bytes, err);
        e->glue_bytes = e->bytes.size;
        if (e->glue_bytes > 0)
            return st;
    }
    return st != MB_OK
               ? st
               : mb_error_set(err, MB_ERR_BAD_ARG, "no token stands for text");
}

mb_status
mb_engine_new(const struct mb_decoder *decoder,
    const struct mb_tokenizer *tokenizer,
    const struct mb_engine_options *options, struct mb_engine **out,
    struct mb_error *err)
{
    const struct mb_decoder_info *info = mb_decoder_info(decoder);
    struct mb_engine *e = mb_calloc(1, sizeof *e);
    mb_status st;

    if (e == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "engine");
    (void)pthread_mutex_init(&e->lock, NULL);
    (void)pthread_cond_init(&e->wake, NULL);
    e->decoder = decoder;
    e->tokenizer = tokenizer;
    e->n_vocab = info->n_vocab;
    e->dim = info->d_model;
    e->next_id = 1;
    e->queue_end = &e->queue;
    st = set_options(e, options, info->n_ctx, err);
    if (st == MB_OK && mb_tokenizer_n_vocab(tokenizer) != e->n_vocab)
        st = mb_error_set(err, MB_ERR_MISMATCH,
            "tokenizer of %zu tokens, model of %zu",
            mb_tokenizer_n_vocab(tokenizer), e->n_vocab);
    if (st == MB_OK)
        st = find_glue(e, err);
    if (st == MB_OK)
        st = make_room(e, err);
    if (st == MB_OK)
        st = mb_sampler_room_new(e->n_vocab, &e->room, err);
    if (st == MB_OK)
        st = mb_cache_new(
            decoder, e->opt.cache_type, e->opt.cache_rows, &e->cache, err);
    // A text may take one row more than it was given: a block's landmark.
    if (st == MB_OK)
        st = mb_pass_new(decoder, e->opt.max_rows + e->opt.max_running,
            e->opt.n_threads, &e->pass, err);
    if (st == MB_OK) {
        count(&e->pass_bytes, mb_pass_bytes(e->pass));
        st = mb_thread_start(&e->thread, "mb-model", run, e);
        if (st != MB_OK)
            (void)mb_error_set(err, st, "start thread mb-model");
    }
    if (st == MB_OK) {
        *out = e;
        e = NULL;
    }
    mb_engine_free(e);
    return st;
}

void
mb_engine_stop(struct mb_engine *e)
{
    struct mb_thread *thread;

    if (e == NULL)
        return;
    (void)pthread_mutex_lock(&e->lock);
    e->stopping = true;
    thread = e->thread;
    e->thread = NULL;
    (void)pthread_cond_signal(&e->wake);
    (void)pthread_mutex_unlock(&e->lock);
    mb_thread_join(thread);
}

void
mb_engine_free(struct mb_engine *e)
{
    if (e == NULL)
        return;
    mb_engine_stop(e);
    mb_pass_free(e->pass);
    mb_cache_free(e->cache);
    mb_sampler_room_free(e->room);
    mb_buffer_fini(&e->bytes);
    mb_free(e->shares);
    mb_free(e->given);
    mb_free(e->ended);
    mb_free(e->items);
    mb_free(e->paths);
    mb_free(e->running);
    mb_free(e->row_tokens);
    mb_free(e->targets);
    mb_free(e->nll);
    mb_free(e->hidden);
    mb_free(e->logits);
    (void)pthread_cond_destroy(&e->wake);
    (void)pthread_mutex_destroy(&e->lock);
    mb_free(e);
}

size_t
mb_engine_window(const struct mb_engine *e)
{
    return e->window;
}

size_t
mb_engine_dim(const struct mb_engine *e)
{
    return e->dim;
}

/* ---- requests ---- */

/* Under the lock. */
static mb_status
enqueue(struct mb_engine *e, struct request *r, struct mb_error *err)
{
    if (e->stopping)
        return mb_error_set(err, MB_ERR_SHUTTING_DOWN, "the engine is ending");
    if (e->n_queued >= e->opt.max_queued)
        return mb_error_set(err, MB_ERR_BUSY,
            "%zu requests wait for the model, as many as may", e->n_queued);
    r->id = e->next_id++;
    *e->queue_end = r;
    e->queue_end = &r->next;
    e->n_queued++;
    (void)pthread_cond_signal(&e->wake);
    return MB_OK;
}

mb_status
mb_engine_submit(struct mb_engine *e, const struct mb_engine_request *request,
    uint64_t *id, struct mb_error *err)
{
    struct request *r = NULL;
    mb_status st = request_new(e, request, &r, err);

    if (st != MB_OK)
        return st;
    r->n_blocks = blocks_of(rows_needed(e, &r->q));
    (void)pthread_mutex_lock(&e->lock);
    st = enqueue(e, r, err);
    if (st == MB_OK)
        *id = r->id;
    (void)pthread_mutex_unlock(&e->lock);
    if (st != MB_OK)
        request_free(r);
    return st;
}

void
mb_engine_cancel(struct mb_engine *e, uint64_t id)
{
    (void)pthread_mutex_lock(&e->lock);
    for (struct request *r = e->queue; r != NULL; r = r->next) {
        if (r->id == id)
            atomic_store_explicit(&r->cancelled, true, memory_order_relaxed);
    }
    for (size_t i = 0; i < e->n_running; i++) {
        if (e->running[i]->id == id)
            atomic_store_explicit(
                &e->running[i]->cancelled, true, memory_order_relaxed);
    }
    (void)pthread_mutex_unlock(&e->lock);
}

/* ---- figures ---- */

static uint64_t
load(const atomic_uint_fast64_t *v)
{
    return atomic_load_explicit(v, memory_order_relaxed);
}

void
mb_engine_stats(struct mb_engine *e, struct mb_engine_stats *out)
{
    uint64_t now;
    uint64_t oldest = 0;

    (void)pthread_mutex_lock(&e->lock);
    now = mb_clock_ns(); // not before a request that is in the queue by now
    out->n_requests = e->next_id - 1;
    out->n_running = e->n_running;
    out->n_queued = e->n_queued;
    if (e->queue != NULL)
        oldest = (now - e->queue->submitted_ns) / 1000;
    (void)pthread_mutex_unlock(&e->lock);
    out->n_done = load(&e->n_done);
    out->n_cancelled = load(&e->n_cancelled);
    out->n_passes = load(&e->n_passes);
    out->rows_in = load(&e->rows_in);
    out->rows_out = load(&e->rows_out);
    out->busy_us = load(&e->busy_us);
    out->longest_wait_us = load(&e->longest_wait_us);
    if (oldest > out->longest_wait_us)
        out->longest_wait_us = oldest;
    out->cache_bytes = load(&e->cache_bytes);
    out->cache_used_blocks = load(&e->cache_used_blocks);
    out->pass_bytes = load(&e->pass_bytes);
    // These do not change.
    out->cache_max_blocks = mb_cache_max_blocks(e->cache);
    out->cache_max_bytes =
        out->cache_max_blocks * mb_cache_block_bytes(e->cache);
}
