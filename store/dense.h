/* SPDX-License-Identifier: Apache-2.0
 * store/dense.h - private to dense*.c: generations and their trees.
 *
 * A generation is one fit of the embedding: its record (KV_GENERATIONS), the
 * embedding's bytes (KV_MODELS), a tree (KV_NODES), and for each vector its
 * leaf and fp16 values (KV_EMBEDDINGS) and its int8 codes in the leaf's list
 * (KV_LISTS). Reading in order: dense_record.c (records and keys),
 * dense_cache.c (trees in memory), dense.c (vectors in and out),
 * dense_build.c (steps of a rebuild), dense_search.c, dense_measure.c,
 * dense_view.c, dense_verify.c. */
#ifndef STORE_DENSE_H
#define STORE_DENSE_H

#include "internal.h"
#include "lists.h"
#include "record.h"
#include "scan.h"
#include "tree.h"

/* ---- dense_record.c ---- */

enum generation_state {
    GENERATION_BEGUN = 0,  /* a number, no tree yet */
    GENERATION_READY = 1,  /* has embedding and tree: vectors may come */
    GENERATION_PURGING = 2 /* rows are being erased */
};

struct generation {
    enum generation_state state;
    uint32_t dim;
    uint32_t n_nodes;
    uint32_t n_leaves; /* 1: one flat list, searched whole */
    uint32_t depth;
    struct mb_probing probing;
    /* Kept while it is not served; then the collection's record counts. */
    uint64_t n_vectors;
    uint64_t embedding_bytes;
    uint64_t tree_hash; /* of all node records: names a tree in the cache */
};

void generation_key(
    struct kv_key *key, mb_collection_id coll, uint32_t generation);
/* Errors: NOT_FOUND (names it), CORRUPT. */
MB_MUST_USE mb_status generation_read(struct kv_txn *txn, mb_collection_id coll,
    uint32_t generation, struct generation *out, struct mb_error *err);
MB_MUST_USE mb_status generation_write(struct kv_txn *txn,
    mb_collection_id coll, uint32_t generation, const struct generation *g);
/* Record bytes only; for verify. Errors: CORRUPT. */
MB_MUST_USE mb_status generation_decode(
    struct mb_slice record, struct generation *out);
/* Numbers of a collection's generations, rising, at most max.
 * Errors: CORRUPT, IO. */
MB_MUST_USE mb_status generation_list(struct kv_txn *txn, mb_collection_id coll,
    size_t max, uint32_t *out, size_t *n);

/* nprobe, where there is a gap: times what would do without one. */
#define DENSE_MOST_PROBED 2

/* Leaves that are read whatever the gap: queries may be other than those that
 * it was measured with. */
static inline uint32_t
dense_least_leaves(const struct mb_probing *probing)
{
    return (probing->nprobe + 3) / 4;
}

/* Embedding record: leaf u32, fp16 x dim, checksum. */
#define EMBEDDING_HEAD 4

static inline size_t
embedding_size(size_t dim)
{
    return EMBEDDING_HEAD + 2 * dim + RECORD_CHECKSUM;
}

void embedding_key(struct kv_key *key, mb_collection_id coll,
    uint32_t generation, mb_segno segno);
/* View of one record: its leaf and fp16 values. Errors: NOT_FOUND, CORRUPT
 * (size; the checksum is not looked at). */
MB_MUST_USE mb_status embedding_get(struct kv_txn *txn, mb_collection_id coll,
    uint32_t generation, mb_segno segno, size_t dim, uint32_t *leaf,
    const uint8_t **values);

/* The same by a cursor in KV_EMBEDDINGS: for many segments in rising order. */
MB_MUST_USE mb_status embedding_find(struct kv_cursor *c, mb_collection_id coll,
    uint32_t generation, mb_segno segno, size_t dim, const uint8_t **values);

/* Embedding bytes are cut into pieces of this size. */
#define MODEL_PIECE (16u * 4096u - 16u - RECORD_CHECKSUM)
void model_key(struct kv_key *key, mb_collection_id coll, uint32_t generation,
    uint32_t piece);

/* ---- dense_cache.c ---- */

/* A tree in use; fields are read only. */
struct dense_tree {
    const struct mb_tree *tree;
    struct mb_tree *owned;
    mb_collection_id coll;
    uint32_t generation;
    uint64_t hash;
    size_t bytes;
    unsigned refs; /* under the cache's lock; one is the cache's own */
    struct dense_tree *next;
};

/* The tree of a generation, loaded if need be; give it back with _put.
 * Errors: CORRUPT, NOMEM. Any thread. */
MB_MUST_USE mb_status dense_cache_get(struct dense_cache *cache,
    struct kv_txn *txn, mb_collection_id coll, uint32_t generation,
    const struct generation *g, struct dense_tree **out, struct mb_error *err);
/* Takes NULL. */
void dense_cache_put(struct dense_cache *cache, struct dense_tree *tree);
/* Forget a generation; those who have its tree keep it. */
void dense_cache_drop(
    struct dense_cache *cache, mb_collection_id coll, uint32_t generation);
const struct scan_kernels *dense_kernels(const struct dense_cache *cache);
/* Read a whole tree. Errors: CORRUPT (names the node), NOMEM. */
MB_MUST_USE mb_status dense_tree_load(struct kv_txn *txn, mb_collection_id coll,
    uint32_t generation, const struct generation *g, struct mb_tree **out,
    struct mb_error *err);
/* Write all nodes; *hash names the tree. Errors: NOMEM, those of kv_put. */
MB_MUST_USE mb_status dense_tree_store(struct kv_txn *txn,
    mb_collection_id coll, uint32_t generation, const struct mb_tree *tree,
    uint64_t *hash);

/* ---- dense.c ---- */

/* Where vectors go. */
struct dense_place {
    mb_collection_id coll;
    uint32_t generation;
    size_t dim;
};

/* Write one embedding record. Errors: those of kv_put. */
MB_MUST_USE mb_status dense_embedding_put(struct wtxn *w,
    const struct dense_place *place, mb_segno segno, uint32_t leaf,
    const float *unit);
/* Vectors with their leaves; segments that are gone, or have a vector there,
 * or whose vector is zero, are left out. Errors: NOMEM, CORRUPT, those of
 * kv_put. */
MB_MUST_USE mb_status dense_add_many(struct wtxn *w,
    const struct dense_place *place, const mb_segno *segnos,
    const float *vectors, const uint32_t *leaf, size_t n, uint64_t *n_added,
    struct mb_error *err);

/* ---- dense_search.c ---- */

/* dense_search in a given generation, served or not; n_vectors: how many it
 * has. leaf_order (may be NULL): see dense_measure.c. */
struct dense_target {
    struct kv_txn *txn;
    struct dense_cache *cache;
    mb_collection_id coll;
    uint32_t generation;
    uint64_t n_vectors;
    struct generation record;
};

MB_MUST_USE mb_status dense_search_in(const struct dense_target *target,
    const struct dense_query *q, struct mb_arena *arena,
    struct dense_result *out, struct mb_error *err);

#endif
