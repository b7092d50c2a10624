/* SPDX-License-Identifier: Apache-2.0
 * tests/support/dense_rig.h - a store with nothing but a dense index.
 *
 * Tests and benchmarks of the dense index use its functions inside
 * transactions of their own, without documents, text or a writer thread.
 * Segments are rows with nothing in them: their existence is what counts.
 * Calls return mb_status, for benchmarks as for tests.
 * Threads: one. */
#ifndef DENSE_RIG_H
#define DENSE_RIG_H

#include <string.h>

#include "dense.h"
#include "mb_store.h"

struct dense_rig {
    struct kv *kv;
    struct dense_cache *cache;
    struct wcoll wc; /* the only collection, number 1 */
    struct wtxn w;
    struct mb_snapshot snap;
};

static inline mb_status
rig_open(struct dense_rig *rig, const char *path, struct mb_error *err)
{
    const struct kv_options opt = {.create = true, .no_sync = true};

    memset(rig, 0, sizeof(*rig));
    rig->wc.c.id = 1;
    memcpy(rig->wc.c.name, "rig", 4);
    rig->wc.c.next_generation = 1;
    rig->cache = dense_cache_new();
    if (rig->cache == NULL) {
        return MB_ERR_NOMEM;
    }
    return kv_open(path, &opt, &rig->kv, err);
}

static inline void
rig_close(struct dense_rig *rig)
{
    kv_abort(rig->w.txn);
    kv_abort(rig->snap.txn);
    dense_cache_free(rig->cache);
    kv_close(rig->kv);
}

static inline mb_status
rig_write(struct dense_rig *rig, struct mb_error *err)
{
    memset(&rig->w, 0, sizeof(rig->w));
    rig->w.dense = rig->cache;
    return kv_begin(rig->kv, true, &rig->w.txn, err);
}

static inline mb_status
rig_commit(struct dense_rig *rig, struct mb_error *err)
{
    struct kv_txn *txn = rig->w.txn;

    rig->w.txn = NULL;
    return kv_commit(txn, err);
}

static inline void
rig_abort(struct dense_rig *rig)
{
    kv_abort(rig->w.txn);
    rig->w.txn = NULL;
}

static inline mb_status
rig_read(struct dense_rig *rig, struct mb_error *err)
{
    memset(&rig->snap, 0, sizeof(rig->snap));
    rig->snap.dense = rig->cache;
    return kv_begin(rig->kv, false, &rig->snap.txn, err);
}

static inline void
rig_end(struct dense_rig *rig)
{
    kv_abort(rig->snap.txn);
    rig->snap.txn = NULL;
}

/* Segments [from, to) exist from now on. Inside a write transaction. */
static inline mb_status
rig_segments(struct dense_rig *rig, mb_segno from, mb_segno to)
{
    for (mb_segno i = from; i < to; i++) {
        struct kv_key key;
        mb_status st;

        kv_key_init(&key);
        kv_key_u32(&key, rig->wc.c.id);
        kv_key_u32(&key, i);
        st = kv_put(rig->w.txn, KV_SEGMENTS, kv_key_slice(&key),
            mb_slice_of("segment", 7));
        if (st != MB_OK) {
            return st;
        }
    }
    if (rig->wc.c.next_segno < to) {
        rig->wc.c.next_segno = to;
    }
    return MB_OK;
}

/* Build and serve a generation of all n vectors (n x dim), in batches, with a
 * tree fitted on at most max_sample of them. Takes its own transactions. */
static inline mb_status
rig_build(struct dense_rig *rig, const float *vectors, size_t n, size_t dim,
    const struct mb_tree_options *opt, size_t max_sample, struct mb_error *err)
{
    enum { BATCH = 4096 };

    struct mb_tree *tree = NULL;
    uint32_t generation = 0;
    mb_segno segnos[BATCH];
    mb_status st = mb_tree_fit(
        vectors, n < max_sample ? n : max_sample, dim, opt, &tree, err);

    if (st == MB_OK) {
        st = rig_write(rig, err);
    }
    if (st != MB_OK) {
        mb_tree_free(tree);
        return st;
    }
    st = rig_segments(rig, 0, (mb_segno)n);
    if (st == MB_OK) {
        st = dense_generation_begin(&rig->w, &rig->wc, &generation, err);
    }
    if (st == MB_OK) {
        st = dense_generation_model(&rig->w, &rig->wc, generation, dim,
            mb_slice_of("model", 5), tree, err);
    }
    mb_tree_free(tree);
    if (st == MB_OK) {
        st = rig_commit(rig, err);
    }
    for (size_t from = 0; st == MB_OK && from < n; from += BATCH) {
        size_t m = n - from < BATCH ? n - from : BATCH;

        for (size_t i = 0; i < m; i++) {
            segnos[i] = (mb_segno)(from + i);
        }
        st = rig_write(rig, err);
        if (st == MB_OK) {
            st = dense_generation_add(&rig->w, &rig->wc, generation, dim,
                segnos, vectors + from * dim, NULL, m, err);
        }
        if (st == MB_OK) {
            st = rig_commit(rig, err);
        }
    }
    if (st == MB_OK) {
        st = rig_write(rig, err);
    }
    if (st == MB_OK) {
        st = dense_generation_switch(
            &rig->w, &rig->wc, generation, (mb_segno)n, n, err);
    }
    return st == MB_OK ? rig_commit(rig, err) : st;
}

#endif
