/* SPDX-License-Identifier: Apache-2.0
 * store/writer.c - the writer thread: group commit, and work in the pauses.
 *
 * The thread takes what is queued, up to BATCH_BYTES, into one transaction:
 * the cost of a sync is shared by all who wait. An operation that refuses
 * before it wrote anything fails alone. When one fails after it wrote, or the
 * commit does, the transaction is undone and each operation runs again in its
 * own, so that each gets its own answer and the rest is kept. When the map was
 * full it is enlarged first and all run again.
 *
 * Between batches the thread erases a slice of what was dropped, and
 * overwrites deleted bytes in the file (scrub.c); with nothing queued it goes
 * on with that until done. The scrub must see each commit before the next one
 * begins, but those who wait for a commit are told first.
 *
 * Invariants: an operation is the writer's from submit until its `done` is
 * called; `done` is called once, after the commit; the queue is first in,
 * first out.
 * Threads: the queue and the figures are guarded by `lock`; all else belongs
 * to the thread. No callback runs under the lock. */
#include "writer.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "collection.h"
#include "context_rows.h"
#include "scrub.h"
#include "store.h"

/* Prepared bytes that go into one commit. */
#define BATCH_BYTES ((size_t)64 << 20)
#define BATCH_OPS   4096
/* Rows erased at once: with others waiting, and without. */
#define DROP_ROWS_BUSY 2000
#define DROP_ROWS_IDLE 20000
/* Blocks of contexts, which are large. */
#define DROP_BLOCKS_BUSY 16
#define DROP_BLOCKS_IDLE 128
/* Growing the map gives up after this many doublings in one batch. */
#define MAX_GROWTH 8

struct writer {
    struct mb_store *store;
    struct mb_thread *thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct mb_op *first; /* queue, under lock */
    struct mb_op **last;
    size_t n_queued;
    size_t max_queued;
    bool stopping;
    struct writer_stats stats; /* under lock; queued_ops unused */
    /* The thread's own. */
    struct wtxn w;
    struct scrub *scrub;
    bool dropping;
    bool drop_waits; /* it failed: to be gone on with after a commit */
    bool unseen;     /* the scrub has not seen the last commit */
    bool unseen_erased;
};

/* ---- one transaction ---- */

/* Show the last commit to the scrub. */
static void
see_commit(struct writer *wr)
{
    if (!wr->unseen)
        return;
    wr->unseen = false;
    scrub_committed(wr->scrub, wr->unseen_erased);
}

static mb_status
txn_begin(struct writer *wr, struct mb_error *err)
{
    struct wtxn *w = &wr->w;
    MB_ASSERT(w->colls == NULL);
    see_commit(wr);
    w->erased = false;
    w->changed = false;
    w->dropped = false;
    return kv_begin(wr->store->kv, true, &w->txn, err);
}

/* The transaction is over: forget what was gathered for it. */
static void
txn_end(struct writer *wr, bool committed)
{
    collection_forget(&wr->w);
    if (committed)
        lex_batch_keep(wr->w.lex);
    else
        lex_batch_reset(wr->w.lex);
    wr->w.txn = NULL;
}

static void
txn_abort(struct writer *wr)
{
    kv_abort(wr->w.txn);
    txn_end(wr, false);
}

static mb_status
txn_commit(struct writer *wr, struct mb_error *err)
{
    struct wtxn *w = &wr->w;
    uint64_t start = mb_clock_ns();
    mb_status st = lex_flush(w, err);
    if (st == MB_OK)
        st = collection_flush(w);
    if (st == MB_OK && w->erased)
        st = scrub_mark(w->txn);
    if (st != MB_OK) {
        st = kv_txn_explain(w->txn, st, err);
        txn_abort(wr);
        return st;
    }
    bool erased = w->erased;
    bool dropped = w->dropped;
    st = kv_commit(w->txn, err);
    txn_end(wr, st == MB_OK);
    if (st != MB_OK)
        return st;
    wr->unseen = true;
    wr->unseen_erased = erased;
    wr->dropping = wr->dropping || dropped || wr->drop_waits;
    wr->drop_waits = false;
    pthread_mutex_lock(&wr->lock);
    wr->stats.n_commits++;
    wr->stats.last_commit_us = (mb_clock_ns() - start) / 1000;
    wr->stats.scrub_pending = wr->stats.scrub_pending || erased;
    pthread_mutex_unlock(&wr->lock);
    return MB_OK;
}

/* ---- a batch ---- */

/* Run the ops of a list in one transaction. MB_OK: it was committed and each
 * op has its status. Else nothing was kept and no status means anything. */
static mb_status
try_batch(struct writer *wr, struct mb_op *ops, struct mb_error *err)
{
    bool any_change = false;
    mb_status st = txn_begin(wr, err);
    if (st != MB_OK)
        return st;
    for (struct mb_op *op = ops; op != NULL; op = op->next) {
        wr->w.changed = false;
        op->error.status = MB_OK;
        op->error.text[0] = '\0';
        op->status = op->cls->body(op, &wr->w, &op->error);
        any_change = any_change || wr->w.changed;
        if (op->status != MB_OK && wr->w.changed) {
            st = kv_txn_explain(wr->w.txn, op->status, &op->error);
            if (err != NULL)
                *err = op->error;
            txn_abort(wr);
            return st;
        }
        if (op->status != MB_OK)
            (void)kv_txn_explain(wr->w.txn, op->status, &op->error);
    }
    if (!any_change) {
        txn_abort(wr);
        return MB_OK;
    }
    return txn_commit(wr, err);
}

/* try_batch, with the map enlarged as often as that is what is missing. */
static mb_status
run_batch(struct writer *wr, struct mb_op *ops, struct mb_error *err)
{
    struct kv *kv = wr->store->kv;
    for (unsigned i = 0;; i++) {
        mb_status st = try_batch(wr, ops, err);
        if (st == MB_OK || !kv_map_is_full(kv) || i == MAX_GROWTH)
            return st;
        struct mb_error why = {.status = MB_OK};
        if (kv_grow(kv, &why) != MB_OK)
            return mb_error_set(err, MB_ERR_NO_SPACE, "%s", why.text);
    }
}

static void
finish_op(struct mb_op *op)
{
    mb_op_done_fn done = op->done;
    op->next = NULL;
    if (op->status != MB_OK) {
        mb_log(MB_LOG_DEBUG, "store.op", "op=%s status=%s", op->cls->name,
            mb_status_name(op->status));
    }
    done(op->arg, op, op->status, &op->error);
}

/* One operation in its own transaction. */
static void
run_alone(struct writer *wr, struct mb_op *op)
{
    struct mb_error err = {.status = MB_OK};
    op->next = NULL;
    mb_status st = run_batch(wr, op, &err);
    if (st != MB_OK) {
        op->status = st;
        op->error = err;
        mb_log(MB_LOG_WARN, "store.fail", "op=%s status=%s", op->cls->name,
            mb_status_name(st));
    }
}

static void
apply_ops(struct writer *wr, struct mb_op *ops)
{
    struct mb_error err = {.status = MB_OK};
    mb_status st = MB_OK;
    bool together = ops->next != NULL;
    if (together)
        st = run_batch(wr, ops, &err);
    uint64_t n = 0;
    while (ops != NULL) {
        struct mb_op *op = ops;
        ops = op->next;
        if (!together || st != MB_OK)
            run_alone(wr, op);
        n++;
        pthread_mutex_lock(&wr->lock);
        wr->stats.n_ops++;
        pthread_mutex_unlock(&wr->lock);
        finish_op(op);
    }
}

/* ---- work in the pauses ---- */

/* Erase a slice of a dropped collection or, if there is none, of blocks that no
 * context has any more. w.changed stays false if there is nothing at all. */
static mb_status
erase_slice(struct writer *wr, bool busy, mb_collection_id *id, bool *done)
{
    mb_status st = collection_dropping(wr->w.txn, id);
    if (st == MB_OK)
        return collection_erase_slice(
            &wr->w, *id, busy ? DROP_ROWS_BUSY : DROP_ROWS_IDLE, done);
    if (st != MB_ERR_NOT_FOUND)
        return st;
    bool all;
    return context_erase_slice(
        &wr->w, busy ? DROP_BLOCKS_BUSY : DROP_BLOCKS_IDLE, &all);
}

static void
drop_slice(struct writer *wr, bool busy)
{
    struct mb_error err = {.status = MB_OK};
    mb_collection_id id = 0;
    bool done = false;
    mb_status st = txn_begin(wr, &err);
    if (st == MB_OK) {
        st = erase_slice(wr, busy, &id, &done);
        if (st == MB_OK && !wr->w.changed) {
            wr->dropping = false;
            txn_abort(wr);
            return;
        }
        if (st == MB_OK) {
            st = txn_commit(wr, &err);
        } else {
            (void)kv_txn_explain(wr->w.txn, st, &err);
            txn_abort(wr);
        }
    }
    if (st == MB_OK && done)
        mb_log(MB_LOG_INFO, "store.dropped", "collection=%u", (unsigned)id);
    if (st != MB_OK && kv_map_is_full(wr->store->kv) &&
        kv_grow(wr->store->kv, &err) == MB_OK)
        return;
    if (st != MB_OK) {
        // Not worth trying again at once (a full disk, damage); when a commit
        // works again, or at the next start, it goes on.
        wr->dropping = false;
        wr->drop_waits = true;
        mb_log(
            MB_LOG_WARN, "store.drop_failed", "status=%s", mb_status_name(st));
    }
}

/* A slice of each kind of pending work; true if more can be done now. */
static bool
work_in_pause(struct writer *wr, bool busy, bool idle)
{
    see_commit(wr);
    if (wr->dropping) {
        drop_slice(wr, busy);
        see_commit(wr);
        return true;
    }
    bool more = scrub_slice(wr->scrub, busy, idle);
    pthread_mutex_lock(&wr->lock);
    wr->stats.scrub_pending = scrub_is_pending(wr->scrub);
    pthread_mutex_unlock(&wr->lock);
    return more;
}

/* ---- the thread ---- */

/* Under lock: the head of the queue as one batch, NULL if it is empty. */
static struct mb_op *
take_batch(struct writer *wr)
{
    struct mb_op *ops = wr->first;
    struct mb_op **end = &wr->first;
    size_t bytes = 0;
    size_t n = 0;
    while (*end != NULL && n < BATCH_OPS &&
           (n == 0 || bytes + (*end)->bytes <= BATCH_BYTES)) {
        bytes += (*end)->bytes;
        end = &(*end)->next;
        n++;
    }
    if (n == 0)
        return NULL;
    wr->first = *end;
    *end = NULL;
    if (wr->first == NULL)
        wr->last = &wr->first;
    wr->n_queued -= n;
    return ops;
}

/* Under lock: sleep until something is queued or it ends, at most wait_ms (0:
 * for ever). True if the time has passed. */
static bool
sleep_until_work(struct writer *wr, unsigned wait_ms)
{
    if (wait_ms == 0) {
        pthread_cond_wait(&wr->wake, &wr->lock);
        return false;
    }
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)wait_ms * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_nsec -= 1000000000L;
        until.tv_sec++;
    }
    return pthread_cond_timedwait(&wr->wake, &wr->lock, &until) == ETIMEDOUT;
}

static void
writer_main(void *arg)
{
    struct writer *wr = arg;
    bool more = true; // work in the pauses, to be found out
    pthread_mutex_lock(&wr->lock);
    for (;;) {
        bool idle = false;
        struct mb_op *ops = take_batch(wr);
        if (ops == NULL && wr->stopping)
            break;
        bool busy = wr->first != NULL;
        if (ops == NULL && !more)
            idle = sleep_until_work(wr, scrub_wait_ms(wr->scrub));
        pthread_mutex_unlock(&wr->lock);
        if (ops != NULL)
            apply_ops(wr, ops);
        more = work_in_pause(wr, busy, idle);
        pthread_mutex_lock(&wr->lock);
    }
    pthread_mutex_unlock(&wr->lock);
}

/* ---- start, stop, submit ---- */

static mb_status
init_lock(struct writer *wr)
{
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr) != 0)
        return MB_ERR_NOMEM;
    int rc = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    if (rc == 0)
        rc = pthread_cond_init(&wr->wake, &attr);
    pthread_condattr_destroy(&attr);
    if (rc != 0)
        return MB_ERR_NOMEM;
    if (pthread_mutex_init(&wr->lock, NULL) != 0) {
        pthread_cond_destroy(&wr->wake);
        return MB_ERR_NOMEM;
    }
    return MB_OK;
}

/* Is a drop unfinished since the last run? */
static mb_status
find_pending(struct writer *wr, struct mb_error *err)
{
    struct kv_txn *txn;
    mb_collection_id id;
    mb_status st = kv_begin(wr->store->kv, false, &txn, err);
    if (st != MB_OK)
        return st;
    st = collection_dropping(txn, &id);
    wr->dropping = st == MB_OK;
    if (st == MB_ERR_NOT_FOUND)
        st = context_is_erasing(txn, &wr->dropping);
    if (st == MB_OK)
        st = scrub_new(wr->store->kv, txn, &wr->scrub);
    st = kv_txn_explain(txn, st, err);
    kv_abort(txn);
    return st;
}

mb_status
writer_start(struct mb_store *store, size_t max_queued_ops, struct writer **out,
    struct mb_error *err)
{
    struct writer *wr = mb_calloc(1, sizeof(*wr));
    if (wr == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "writer: out of memory");
    if (init_lock(wr) != MB_OK) {
        mb_free(wr);
        return mb_error_set(err, MB_ERR_NOMEM, "writer: no lock to be had");
    }
    wr->store = store;
    wr->max_queued = max_queued_ops;
    wr->last = &wr->first;
    wr->w.store = store;
    wr->w.dense = store->dense;
    mb_status st = lex_batch_new(&wr->w.lex);
    if (st != MB_OK)
        (void)mb_error_set(err, st, "writer: %s", mb_status_text(st));
    if (st == MB_OK)
        st = find_pending(wr, err);
    if (st == MB_OK) {
        wr->stats.scrub_pending = scrub_is_pending(wr->scrub);
        st = mb_thread_start(&wr->thread, "mb-write", writer_main, wr);
        if (st != MB_OK)
            (void)mb_error_set(err, st, "writer: no thread to be had");
    }
    if (st != MB_OK) {
        writer_stop(wr);
        return st;
    }
    *out = wr;
    return MB_OK;
}

void
writer_stop(struct writer *wr)
{
    if (wr == NULL)
        return;
    if (wr->thread != NULL) {
        pthread_mutex_lock(&wr->lock);
        wr->stopping = true;
        pthread_cond_signal(&wr->wake);
        pthread_mutex_unlock(&wr->lock);
        mb_thread_join(wr->thread);
    }
    scrub_free(wr->scrub);
    lex_batch_free(wr->w.lex);
    pthread_cond_destroy(&wr->wake);
    pthread_mutex_destroy(&wr->lock);
    mb_free(wr);
}

mb_status
writer_submit(struct writer *wr, struct mb_op *op, mb_op_done_fn done,
    void *arg, struct mb_error *err)
{
    mb_status st = MB_OK;
    op->done = done;
    op->arg = arg;
    op->next = NULL;
    pthread_mutex_lock(&wr->lock);
    if (wr->stopping) {
        st = MB_ERR_SHUTTING_DOWN;
    } else if (wr->n_queued >= wr->max_queued) {
        st = MB_ERR_BUSY;
    } else {
        *wr->last = op;
        wr->last = &op->next;
        wr->n_queued++;
        pthread_cond_signal(&wr->wake);
    }
    pthread_mutex_unlock(&wr->lock);
    if (st == MB_ERR_BUSY) {
        return mb_error_set(
            err, st, "%zu operations are queued already", wr->max_queued);
    }
    if (st != MB_OK)
        return mb_error_set(err, st, "the store is being closed");
    return MB_OK;
}

void
writer_stats(struct writer *wr, struct writer_stats *out)
{
    pthread_mutex_lock(&wr->lock);
    *out = wr->stats;
    out->queued_ops = wr->n_queued;
    pthread_mutex_unlock(&wr->lock);
}
