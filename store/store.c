/* SPDX-License-Identifier: Apache-2.0
 * store/store.c - opening and closing, snapshots, figures, hot copies.
 *
 * A store joins the tables (kv.c), the writer thread (writer.c) and what
 * readers share: the cache of trees (dense.c) and idle unpackers. Opening
 * reads a handful of rows, whatever the size; nothing is loaded or rebuilt.
 * Threads: a store is shared by all; see mb_store.h. */
#include "store.h"

#include <pthread.h>
#include <string.h>

#include "collection.h"
#include "writer.h"

#define META_TOKENIZER     "tokenizer"
#define TOKENIZER_BYTES    16
#define DEFAULT_QUEUED_OPS 1024

/* Unpackers nobody uses just now. */
struct store_pool {
    pthread_mutex_t lock;
    struct text_unpacker *idle[STORE_MAX_UNPACKERS];
    size_t n;
};

/* ---- unpackers ---- */

static mb_status
pool_new(struct store_pool **out)
{
    struct store_pool *pool = mb_calloc(1, sizeof(*pool));
    if (pool == NULL)
        return MB_ERR_NOMEM;
    if (pthread_mutex_init(&pool->lock, NULL) != 0) {
        mb_free(pool);
        return MB_ERR_NOMEM;
    }
    *out = pool;
    return MB_OK;
}

static void
pool_free(struct store_pool *pool)
{
    if (pool == NULL)
        return;
    for (size_t i = 0; i < pool->n; i++) {
        text_unpacker_free(pool->idle[i]);
    }
    pthread_mutex_destroy(&pool->lock);
    mb_free(pool);
}

mb_status
store_unpacker_take(struct mb_store *store, struct text_unpacker **out)
{
    struct store_pool *pool = store->pool;
    struct text_unpacker *u = NULL;
    pthread_mutex_lock(&pool->lock);
    if (pool->n > 0)
        u = pool->idle[--pool->n];
    pthread_mutex_unlock(&pool->lock);
    if (u == NULL)
        return text_unpacker_new(out);
    *out = u;
    return MB_OK;
}

void
store_unpacker_give(struct mb_store *store, struct text_unpacker *u)
{
    struct store_pool *pool = store->pool;
    pthread_mutex_lock(&pool->lock);
    if (pool->n < STORE_MAX_UNPACKERS) {
        pool->idle[pool->n++] = u;
        u = NULL;
    }
    pthread_mutex_unlock(&pool->lock);
    text_unpacker_free(u);
}

/* ---- open and close ---- */

static bool
is_zero(const uint8_t *p, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (p[i] != 0)
            return false;
    }
    return true;
}

/* The tokenizer the store was made with must be the caller's, if he has one;
 * a writer of a new store leaves his mark. */
static mb_status
check_tokenizer(
    struct mb_store *store, const uint8_t tokenizer[16], struct mb_error *err)
{
    struct mb_slice key = mb_slice_cstr(META_TOKENIZER);
    struct mb_slice val;
    struct kv_txn *txn;
    if (is_zero(tokenizer, TOKENIZER_BYTES))
        return MB_OK;
    mb_status st = kv_begin(store->kv, false, &txn, err);
    if (st != MB_OK)
        return st;
    st = kv_get(txn, KV_META, key, &val);
    bool missing = st == MB_ERR_NOT_FOUND;
    if (st == MB_OK && val.size != TOKENIZER_BYTES) {
        st = mb_error_set(err, MB_ERR_CORRUPT,
            "tokenizer's fingerprint has %zu bytes", val.size);
    } else if (st == MB_OK &&
               memcmp(val.data, tokenizer, TOKENIZER_BYTES) != 0) {
        st = mb_error_set(err, MB_ERR_MISMATCH,
            "the store measures segments with another tokenizer: open it "
            "with the model it was made with");
    } else if (st != MB_OK && !missing) {
        st = kv_txn_explain(txn, st, err);
    }
    kv_abort(txn);
    if (!missing)
        return st;
    if (kv_is_read_only(store->kv))
        return MB_OK;
    st = kv_begin(store->kv, true, &txn, err);
    if (st != MB_OK)
        return st;
    st = kv_put(txn, KV_META, key, mb_slice_of(tokenizer, TOKENIZER_BYTES));
    if (st != MB_OK) {
        st = kv_txn_explain(txn, st, err);
        kv_abort(txn);
        return st;
    }
    return kv_commit(txn, err);
}

mb_status
mb_store_open(const char *path, const struct mb_store_options *opt,
    struct mb_store **out, struct mb_error *err)
{
    error_begin(err);
    const struct kv_options kv_opt = {.read_only = opt->read_only,
        .create = opt->create,
        .no_sync = opt->no_sync,
        .map_bytes = opt->map_bytes};
    uint64_t start = mb_clock_ns();
    struct mb_store *store = mb_calloc(1, sizeof(*store));
    if (store == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "open store: out of memory");
    mb_status st = kv_open(path, &kv_opt, &store->kv, err);
    if (st != MB_OK)
        goto out;
    st = pool_new(&store->pool);
    if (st == MB_OK) {
        store->dense = dense_cache_new();
        if (store->dense == NULL)
            st = MB_ERR_NOMEM;
    }
    if (st != MB_OK) {
        (void)mb_error_set(err, st, "open store: out of memory");
        goto out;
    }
    st = check_tokenizer(store, opt->tokenizer, err);
    if (st == MB_OK && !opt->read_only) {
        size_t max =
            opt->max_queued_ops != 0 ? opt->max_queued_ops : DEFAULT_QUEUED_OPS;
        st = writer_start(store, max, &store->writer, err);
    }
    if (st == MB_OK && opt->helper && mb_cpu_count() > 1)
        st = mb_pool_new(&store->helper, "mb-help", 1, 1);
    if (st != MB_OK)
        goto out;
    mb_log(MB_LOG_INFO, "store.open", "read_only=%d us=%llu",
        (int)opt->read_only,
        (unsigned long long)((mb_clock_ns() - start) / 1000));
    *out = store;
    store = NULL;
out:
    mb_store_close(store);
    return st;
}

void
mb_store_close(struct mb_store *store)
{
    if (store == NULL)
        return;
    writer_stop(store->writer);
    mb_pool_free(store->helper);
    dense_cache_free(store->dense);
    pool_free(store->pool);
    kv_close(store->kv);
    mb_free(store);
}

/* ---- snapshots ---- */

mb_status
mb_snapshot_begin(
    struct mb_store *store, struct mb_snapshot **out, struct mb_error *err)
{
    error_begin(err);
    struct mb_snapshot *snap = mb_calloc(1, sizeof(*snap));
    if (snap == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "snapshot: out of memory");
    snap->store = store;
    snap->dense = store->dense;
    mb_status st = kv_begin(store->kv, false, &snap->txn, err);
    if (st != MB_OK) {
        mb_free(snap);
        return st;
    }
    *out = snap;
    return MB_OK;
}

void
mb_snapshot_end(struct mb_snapshot *snap)
{
    if (snap == NULL)
        return;
    kv_abort(snap->txn);
    if (snap->unpacker != NULL)
        store_unpacker_give(snap->store, snap->unpacker);
    mb_free(snap);
}

/* ---- the helper ---- */

bool
snapshot_has_helper(const struct mb_snapshot *snap)
{
    return snap->store->helper != NULL;
}

mb_status
snapshot_twin(const struct mb_snapshot *snap, struct mb_snapshot **out)
{
    struct mb_snapshot *twin = mb_calloc(1, sizeof(*twin));
    if (twin == NULL)
        return MB_ERR_NOMEM;
    twin->store = snap->store;
    twin->dense = snap->dense;
    mb_status st = kv_begin_twin(snap->txn, &twin->txn);
    if (st != MB_OK) {
        mb_free(twin);
        return st;
    }
    *out = twin;
    return MB_OK;
}

void
snapshot_both(
    const struct mb_snapshot *snap, void (*fn)(void *arg, size_t i), void *arg)
{
    mb_pool_for(snap->store->helper, 2, fn, arg);
}

/* ---- operations ---- */

mb_status
mb_store_submit(struct mb_store *store, struct mb_op *op, mb_op_done_fn done,
    void *arg, struct mb_error *err)
{
    if (store->writer == NULL)
        return mb_error_set(err, MB_ERR_READ_ONLY, "store is open read-only");
    return writer_submit(store->writer, op, done, arg, err);
}

/* Who waits in mb_store_apply. */
struct waiter {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool done;
    mb_status status;
    struct mb_error error;
};

static void
wake_waiter(
    void *arg, struct mb_op *op, mb_status st, const struct mb_error *err)
{
    struct waiter *wait = arg;
    (void)op;
    pthread_mutex_lock(&wait->lock);
    wait->status = st;
    wait->error = *err;
    wait->done = true;
    pthread_cond_signal(&wait->wake);
    pthread_mutex_unlock(&wait->lock);
}

mb_status
mb_store_apply(struct mb_store *store, struct mb_op *op, struct mb_error *err)
{
    struct waiter wait = {.done = false};
    error_begin(err);
    if (pthread_mutex_init(&wait.lock, NULL) != 0)
        return mb_error_set(err, MB_ERR_NOMEM, "apply: no lock to be had");
    if (pthread_cond_init(&wait.wake, NULL) != 0) {
        pthread_mutex_destroy(&wait.lock);
        return mb_error_set(err, MB_ERR_NOMEM, "apply: no lock to be had");
    }
    mb_status st = mb_store_submit(store, op, wake_waiter, &wait, err);
    if (st == MB_OK) {
        pthread_mutex_lock(&wait.lock);
        while (!wait.done) {
            pthread_cond_wait(&wait.wake, &wait.lock);
        }
        pthread_mutex_unlock(&wait.lock);
        st = wait.status;
        if (st != MB_OK && err != NULL)
            *err = wait.error;
    }
    pthread_cond_destroy(&wait.wake);
    pthread_mutex_destroy(&wait.lock);
    return st;
}

/* ---- figures and copies ---- */

mb_status
mb_store_stats(
    struct mb_store *store, struct mb_store_stats *out, struct mb_error *err)
{
    struct kv_stats kv;
    struct writer_stats wr = {0};
    error_begin(err);
    mb_status st = kv_stats(store->kv, &kv, err);
    if (st != MB_OK)
        return st;
    if (store->writer != NULL)
        writer_stats(store->writer, &wr);
    *out = (struct mb_store_stats){.file_bytes = kv.file_bytes,
        .used_bytes = kv.used_bytes,
        .free_bytes = kv.free_bytes,
        .map_bytes = kv.map_bytes,
        .n_commits = wr.n_commits,
        .n_ops = wr.n_ops,
        .last_commit_us = wr.last_commit_us,
        .queued_ops = wr.queued_ops,
        .oldest_reader_lag = kv.oldest_reader_lag,
        .n_readers = kv.n_readers,
        .scrub_pending = wr.scrub_pending,
        .last_txn = kv.last_txn};
    return MB_OK;
}

bool
mb_store_table_stats(struct mb_snapshot *snap, size_t i, const char **name,
    uint64_t *rows, uint64_t *bytes)
{
    if (i >= KV_N_TABLES)
        return false;
    *name = kv_table_name((enum kv_table)i);
    *rows = 0;
    *bytes = 0;
    return kv_table_stats(snap->txn, (enum kv_table)i, rows, bytes) == MB_OK;
}

mb_status
mb_store_copy(struct mb_store *store, const char *to, struct mb_error *err)
{
    return kv_copy(store->kv, to, err);
}
