/* SPDX-License-Identifier: Apache-2.0
 * store/dense_cache.c - trees in memory, shared by searches and the writer.
 *
 * A tree never changes once stored, so it is cached by collection, generation
 * and the hash of its nodes. The hash keeps a tree that an aborted transaction
 * has left here from being taken for another that got the same numbers. What
 * was used last stands first; above MAX_BYTES the last ones go. Readers of an
 * older snapshot keep theirs by its reference.
 * Threads: all; the lock is held for list work only, never while loading. */
#include "dense.h"

#include <pthread.h>
#include <string.h>

#define MAX_BYTES ((size_t)256 << 20)

struct dense_cache {
    pthread_mutex_t lock; /* list, bytes, refs of all trees */
    struct dense_tree *first;
    size_t bytes;
    const struct scan_kernels *kernels; /* asked for once: CPUID is slow */
};

struct dense_cache *
dense_cache_new(void)
{
    struct dense_cache *cache = mb_calloc(1, sizeof(*cache));

    if (cache == NULL) {
        return NULL;
    }
    if (pthread_mutex_init(&cache->lock, NULL) != 0) {
        mb_free(cache);
        return NULL;
    }
    cache->kernels = scan_best();
    return cache;
}

const struct scan_kernels *
dense_kernels(const struct dense_cache *cache)
{
    return cache->kernels;
}

static void
free_tree(struct dense_tree *t)
{
    mb_tree_free(t->owned);
    mb_free(t);
}

void
dense_cache_free(struct dense_cache *cache)
{
    if (cache == NULL) {
        return;
    }
    while (cache->first != NULL) {
        struct dense_tree *t = cache->first;

        MB_ASSERT(t->refs == 1);
        cache->first = t->next;
        free_tree(t);
    }
    (void)pthread_mutex_destroy(&cache->lock);
    mb_free(cache);
}

/* Take one reference off; the tree dies with the last. Under the lock. */
static void
unref_locked(struct dense_tree *t)
{
    if (--t->refs == 0) {
        free_tree(t);
    }
}

/* The entry, moved to the front and referenced, or NULL. Under the lock. */
static struct dense_tree *
find_locked(struct dense_cache *cache, mb_collection_id coll,
    uint32_t generation, uint64_t hash)
{
    for (struct dense_tree **at = &cache->first; *at != NULL;
         at = &(*at)->next) {
        struct dense_tree *t = *at;

        if (t->coll == coll && t->generation == generation && t->hash == hash) {
            *at = t->next;
            t->next = cache->first;
            cache->first = t;
            t->refs++;
            return t;
        }
    }
    return NULL;
}

/* Let go of what was used longest ago. The first stays. Under the lock. */
static void
shrink_locked(struct dense_cache *cache)
{
    while (cache->bytes > MAX_BYTES && cache->first->next != NULL) {
        struct dense_tree **at = &cache->first->next;
        struct dense_tree *last;

        while ((*at)->next != NULL) {
            at = &(*at)->next;
        }
        last = *at;
        *at = NULL;
        cache->bytes -= last->bytes;
        unref_locked(last);
    }
}

mb_status
dense_cache_get(struct dense_cache *cache, struct kv_txn *txn,
    mb_collection_id coll, uint32_t generation, const struct generation *g,
    struct dense_tree **out, struct mb_error *err)
{
    struct dense_tree *fresh;
    struct dense_tree *t;
    mb_status st;

    (void)pthread_mutex_lock(&cache->lock);
    t = find_locked(cache, coll, generation, g->tree_hash);
    (void)pthread_mutex_unlock(&cache->lock);
    if (t != NULL) {
        *out = t;
        return MB_OK;
    }
    fresh = mb_calloc(1, sizeof(*fresh));
    if (fresh == NULL) {
        return mb_error_set(err, MB_ERR_NOMEM, "tree of %u nodes", g->n_nodes);
    }
    st = dense_tree_load(txn, coll, generation, g, &fresh->owned, err);
    if (st != MB_OK) {
        mb_free(fresh);
        return st;
    }
    fresh->tree = fresh->owned;
    fresh->coll = coll;
    fresh->generation = generation;
    fresh->hash = g->tree_hash;
    fresh->bytes = tree_bytes(fresh->tree);
    fresh->refs = 2; // the cache's and the caller's

    (void)pthread_mutex_lock(&cache->lock);
    t = find_locked(cache, coll, generation, g->tree_hash);
    if (t == NULL) {
        fresh->next = cache->first;
        cache->first = fresh;
        cache->bytes += fresh->bytes;
        t = fresh;
        fresh = NULL;
        shrink_locked(cache);
    }
    (void)pthread_mutex_unlock(&cache->lock);
    if (fresh != NULL) { // another thread was faster
        free_tree(fresh);
    }
    *out = t;
    return MB_OK;
}

void
dense_cache_put(struct dense_cache *cache, struct dense_tree *tree)
{
    if (tree == NULL) {
        return;
    }
    (void)pthread_mutex_lock(&cache->lock);
    unref_locked(tree);
    (void)pthread_mutex_unlock(&cache->lock);
}

void
dense_cache_drop(
    struct dense_cache *cache, mb_collection_id coll, uint32_t generation)
{
    (void)pthread_mutex_lock(&cache->lock);
    for (struct dense_tree **at = &cache->first; *at != NULL;) {
        struct dense_tree *t = *at;

        if (t->coll == coll && t->generation == generation) {
            *at = t->next;
            cache->bytes -= t->bytes;
            unref_locked(t);
        } else {
            at = &t->next;
        }
    }
    (void)pthread_mutex_unlock(&cache->lock);
}

/* ---- trees to and from their records ---- */

/* Record i of the walk into node i of the tree. */
static mb_status
load_nodes(struct kv_cursor *c, const struct kv_key *prefix,
    struct mb_tree *tree, struct mb_error *err)
{
    struct mb_slice key;
    struct mb_slice value;
    mb_status st = kv_cursor_seek(c, kv_key_slice(prefix), &key, &value);

    for (uint32_t i = 0; i < tree->n_nodes; i++) {
        if (st == MB_OK && (!kv_has_prefix(key, kv_key_slice(prefix)) ||
                               key.size != prefix->size + 4u ||
                               mb_get_be32(key.data + prefix->size) != i)) {
            st = MB_ERR_NOT_FOUND;
        }
        if (st == MB_OK) {
            st = tree_record_decode(value, tree->dim, &tree->nodes[i],
                tree->centroids + (size_t)i * tree->dim);
        }
        if (st != MB_OK) {
            st = st == MB_ERR_NOT_FOUND ? MB_ERR_CORRUPT : st;
            return mb_error_set(err, st, "tree node %u: missing or damaged", i);
        }
        st = kv_cursor_next(c, &key, &value);
    }
    return MB_OK;
}

mb_status
dense_tree_load(struct kv_txn *txn, mb_collection_id coll, uint32_t generation,
    const struct generation *g, struct mb_tree **out, struct mb_error *err)
{
    struct kv_cursor *c = NULL;
    struct mb_tree *tree = NULL;
    struct kv_key prefix;
    mb_status st = tree_new(g->dim, g->n_nodes, &tree);

    if (st != MB_OK) {
        return mb_error_set(err, st, "tree of %u nodes", g->n_nodes);
    }
    st = kv_cursor_open(txn, KV_NODES, &c);
    if (st == MB_OK) {
        generation_key(&prefix, coll, generation);
        st = load_nodes(c, &prefix, tree, err);
    }
    if (st == MB_OK) {
        st = tree_finish(tree, err);
    }
    if (st == MB_OK && tree->n_leaves != g->n_leaves) {
        st = mb_error_set(err, MB_ERR_CORRUPT, "tree: %u leaves instead of %u",
            tree->n_leaves, g->n_leaves);
    }
    kv_cursor_close(c);
    if (st != MB_OK) {
        mb_tree_free(tree);
        return st;
    }
    *out = tree;
    return MB_OK;
}

mb_status
dense_tree_store(struct kv_txn *txn, mb_collection_id coll, uint32_t generation,
    const struct mb_tree *tree, uint64_t *hash)
{
    size_t size = tree_record_size(tree->dim);
    uint8_t *record = mb_alloc(size);
    uint8_t count[4];
    uint64_t sum;
    mb_status st = record == NULL ? MB_ERR_NOMEM : MB_OK;

    mb_put_le32(count, tree->n_nodes);
    sum = mb_hash64(count, sizeof(count), 0);
    for (uint32_t i = 0; st == MB_OK && i < tree->n_nodes; i++) {
        struct kv_key key;

        tree_record_encode(tree, i, record);
        sum = mb_hash64(record, size, sum);
        generation_key(&key, coll, generation);
        kv_key_u32(&key, i);
        st = kv_put(
            txn, KV_NODES, kv_key_slice(&key), mb_slice_of(record, size));
    }
    mb_free(record);
    if (st == MB_OK) {
        *hash = sum;
    }
    return st;
}
