/* SPDX-License-Identifier: Apache-2.0
 * daemon/batch.c - many texts through the model for one caller.
 *
 * Invariants: n_open counts texts in the engine's hands and, while batch_run is
 * at work, one more for itself; who brings it to 0 calls done, and nobody looks
 * at the batch after that.
 * Threads: `lock` guards what follows it; texts are fixed once it runs. */
#include "batch.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#define MAX_TOKEN_BYTES ((size_t)1 << 30)
#define MAX_OPEN        16 /* in the engine's hands */
#define LOOK_MS         100

struct item {
    struct batch *b;
    size_t first; /* of its tokens */
    size_t n;
    size_t n_context;
    uint64_t id; /* of the engine's; 0: not begun */
    double nll;
    size_t n_scored;
};

struct batch {
    struct reader *r;
    mb_task task;
    uint64_t deadline_ns;
    struct mb_buffer tokens; /* mb_token_id of all items */
    struct mb_buffer items;  /* struct item */
    float *vectors;          /* (n, dim), embed */
    batch_done_fn done;
    void *arg;
    pthread_mutex_t lock;
    pthread_cond_t ended;
    size_t next; /* item to begin */
    size_t n_open;
    bool is_over; /* batch_wait: done has come */
    mb_status status;
    struct mb_error err;
};

static struct item *
item_at(const struct batch *b, size_t i)
{
    return (struct item *)(void *)b->items.data + i;
}

size_t
batch_size(const struct batch *b)
{
    return b->items.size / sizeof(struct item);
}

mb_status
batch_new(struct reader *r, mb_task task, uint64_t deadline_ns,
    struct batch **out, struct mb_error *err)
{
    struct batch *b = mb_calloc(1, sizeof *b);
    pthread_condattr_t attr;

    if (b == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "texts for the model");
    b->r = r;
    b->task = task;
    b->deadline_ns = deadline_ns;
    mb_buffer_init(&b->tokens, MAX_TOKEN_BYTES);
    mb_buffer_init(&b->items, MAX_TOKEN_BYTES);
    (void)pthread_mutex_init(&b->lock, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&b->ended, &attr);
    (void)pthread_condattr_destroy(&attr);
    *out = b;
    return MB_OK;
}

void
batch_free(struct batch *b)
{
    if (b == NULL)
        return;
    mb_buffer_fini(&b->tokens);
    mb_buffer_fini(&b->items);
    mb_free(b->vectors);
    (void)pthread_cond_destroy(&b->ended);
    (void)pthread_mutex_destroy(&b->lock);
    mb_free(b);
}

static size_t
n_tokens(const struct batch *b)
{
    return b->tokens.size / sizeof(mb_token_id);
}

/* Take tokens from behind the head until the item fits into the window, but
 * none of its text. */
static void
cut_context(struct batch *b, struct item *item, size_t n_head)
{
    size_t window = mb_engine_window(reader_engine(b->r));
    size_t over = item->n > window ? item->n - window : 0;
    mb_token_id *ids = (mb_token_id *)(void *)b->tokens.data + item->first;

    if (over > item->n_context - n_head)
        over = item->n_context - n_head;
    if (over == 0)
        return;
    memmove(ids + n_head, ids + n_head + over,
        (item->n - n_head - over) * sizeof *ids);
    item->n -= over;
    item->n_context -= over;
    b->tokens.size -= over * sizeof *ids;
}

mb_status
batch_add(struct batch *b, struct mb_slice context, struct mb_slice text,
    struct mb_error *err)
{
    struct item item = {.b = b, .first = n_tokens(b)};
    mb_status st = reader_encode_both(
        b->r, context, text, &b->tokens, &item.n_context, err);

    if (st != MB_OK)
        return st;
    item.n = n_tokens(b) - item.first;
    cut_context(b, &item, reader_n_head(b->r));
    st = mb_buffer_append(&b->items, &item, sizeof item);
    return st == MB_OK ? st : mb_error_set(err, st, "texts for the model");
}

/* ---- running ---- */

static void on_done(void *arg, const struct mb_engine_result *result);

static mb_status
submit(struct batch *b, const struct item *item, uint64_t *id,
    struct mb_error *err)
{
    const struct mb_engine_request q = {
        .task = b->task,
        .tokens =
            (const mb_token_id *)(const void *)b->tokens.data + item->first,
        .n = item->n,
        .n_head = reader_n_head(b->r),
        .n_context = item->n_context,
        .deadline_ns = b->deadline_ns,
        .on_done = on_done,
        .arg = (void *)item,
    };

    return mb_engine_submit(reader_engine(b->r), &q, id, err);
}

/* Keep the first failure. Under the lock. */
static void
fail(struct batch *b, mb_status st, const struct mb_error *err)
{
    if (b->status != MB_OK)
        return;
    b->status = st;
    b->err = *err;
}

/* Begin the next text that has tokens. False if there is none. */
static bool
begin_next(struct batch *b)
{
    struct item *item = NULL;
    struct mb_error err = {0};
    uint64_t id = 0;
    mb_status st;

    (void)pthread_mutex_lock(&b->lock);
    while (item == NULL && b->status == MB_OK && b->next < batch_size(b)) {
        item = item_at(b, b->next++);
        if (item->n == item->n_context)
            item = NULL; // nothing of it counts
    }
    b->n_open += item != NULL ? 1 : 0;
    (void)pthread_mutex_unlock(&b->lock);
    if (item == NULL)
        return false;
    st = submit(b, item, &id, &err);
    (void)pthread_mutex_lock(&b->lock);
    item->id = id;
    if (st != MB_OK) {
        fail(b, st, &err);
        b->n_open--;
    }
    (void)pthread_mutex_unlock(&b->lock);
    return st == MB_OK;
}

/* One less is open; the last one calls done. */
static void
release(struct batch *b)
{
    struct mb_error err;
    mb_status st;
    bool last;

    (void)pthread_mutex_lock(&b->lock);
    last = --b->n_open == 0;
    st = b->status;
    err = b->err;
    (void)pthread_mutex_unlock(&b->lock);
    if (last)
        b->done(b->arg, b, st, &err);
}

/* On mb-model. */
static void
on_done(void *arg, const struct mb_engine_result *result)
{
    struct item *item = arg;
    struct batch *b = item->b;
    size_t dim = mb_engine_dim(reader_engine(b->r));
    mb_status st = result->status;
    struct mb_error err = result->err;

    if (st == MB_OK && result->finish == MB_FINISH_DEADLINE)
        st = mb_error_set(&err, MB_ERR_TIMEOUT, "while the model read texts");
    if (st == MB_OK && result->finish == MB_FINISH_CANCELLED)
        st = mb_error_set(&err, MB_ERR_CANCELLED, "cancelled");
    if (st == MB_OK && b->task == MB_TASK_EMBED)
        memcpy(b->vectors + (size_t)(item - item_at(b, 0)) * dim,
            result->vector, dim * sizeof(float));
    item->nll = result->sum;
    item->n_scored = result->n_scored;
    if (st != MB_OK) {
        (void)pthread_mutex_lock(&b->lock);
        fail(b, st, &err);
        (void)pthread_mutex_unlock(&b->lock);
    }
    (void)begin_next(b);
    release(b);
}

void
batch_run(struct batch *b, batch_done_fn done, void *arg)
{
    size_t dim = mb_engine_dim(reader_engine(b->r));
    struct mb_error err;

    b->done = done;
    b->arg = arg;
    b->n_open = 1;
    if (b->task == MB_TASK_EMBED) {
        b->vectors = mb_calloc(batch_size(b) + 1, dim * sizeof *b->vectors);
        if (b->vectors == NULL)
            fail(b, mb_error_set(&err, MB_ERR_NOMEM, "vectors"), &err);
    }
    for (size_t i = 0; i < MAX_OPEN && begin_next(b); i++) {
    }
    release(b);
}

/* ---- waiting ---- */

static void
on_over(void *arg, struct batch *b, mb_status st, const struct mb_error *err)
{
    (void)arg;
    (void)st;
    (void)err;
    (void)pthread_mutex_lock(&b->lock);
    b->is_over = true;
    (void)pthread_cond_signal(&b->ended);
    (void)pthread_mutex_unlock(&b->lock);
}

/* Begin no more, end those that are under way. One that is just being begun is
 * missed, and ends by itself. */
static void
cancel(struct batch *b)
{
    struct mb_error err;

    (void)mb_error_set(&err, MB_ERR_CANCELLED, "cancelled");
    for (size_t i = 0; i < batch_size(b); i++) {
        uint64_t id;

        (void)pthread_mutex_lock(&b->lock);
        fail(b, MB_ERR_CANCELLED, &err);
        id = item_at(b, i)->id;
        (void)pthread_mutex_unlock(&b->lock);
        // 0 is nobody's.
        mb_engine_cancel(reader_engine(b->r), id);
    }
}

mb_status
batch_wait(
    struct batch *b, bool (*stop)(void *arg), void *arg, struct mb_error *err)
{
    bool stopped = false;
    bool over = false;

    batch_run(b, on_over, NULL);
    while (!over) {
        uint64_t until = mb_clock_ns() + LOOK_MS * 1000000u;
        struct timespec ts = {
            (time_t)(until / 1000000000u), (long)(until % 1000000000u)};

        (void)pthread_mutex_lock(&b->lock);
        if (!b->is_over)
            (void)pthread_cond_timedwait(&b->ended, &b->lock, &ts);
        over = b->is_over;
        (void)pthread_mutex_unlock(&b->lock);
        if (!over && !stopped && stop != NULL && stop(arg)) {
            stopped = true;
            cancel(b);
        }
    }
    if (b->status != MB_OK && err != NULL)
        *err = b->err;
    return b->status;
}

const float *
batch_vector(const struct batch *b, size_t i)
{
    return b->vectors + i * mb_engine_dim(reader_engine(b->r));
}

void
batch_nll(const struct batch *b, size_t i, double *nll, size_t *n)
{
    *nll = item_at(b, i)->nll;
    *n = item_at(b, i)->n_scored;
}
