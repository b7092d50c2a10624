/* SPDX-License-Identifier: Apache-2.0
 * store/internal.h - what the files of the store share.
 *
 * The store is cut by kind of index: document.c (documents, texts, segments),
 * lexical.c (terms, postings, lengths), dense.c (generations, lists, tree),
 * fields.c (metadata index and filters). A write transaction (struct wtxn)
 * passes through them; each keeps its own tables. writer.c begins, flushes and
 * commits it. */
#ifndef STORE_INTERNAL_H
#define STORE_INTERNAL_H

#include "kv.h"
#include "mb_store.h"

struct lex_batch;     /* lexical.c: postings gathered until the flush */
struct dense_cache;   /* dense.c: trees and centroids by generation */
struct text_unpacker; /* text.c */

struct mb_snapshot {
    struct mb_store *store;
    struct kv_txn *txn;
    struct dense_cache *dense;      /* shared, the store's */
    struct text_unpacker *unpacker; /* taken from the store when needed */
};

/* A snapshot of the same state for the helper's thread; end it as any. Errors:
 * STALE, BUSY, NOMEM: do without. */
MB_MUST_USE mb_status snapshot_twin(
    const struct mb_snapshot *snap, struct mb_snapshot **out);
/* Call fn(arg, 0) and fn(arg, 1), at the same time if the helper is free. */
void snapshot_both(
    const struct mb_snapshot *snap, void (*fn)(void *arg, size_t i), void *arg);
/* Is there a helper? */
bool snapshot_has_helper(const struct mb_snapshot *snap);

/* mb_segment_get by a cursor in KV_SEGMENTS: for many segments in rising order.
 * Says nothing of the cause. Errors: NOT_FOUND, CORRUPT, IO. */
MB_MUST_USE mb_status segment_find(struct kv_cursor *c, mb_collection_id coll,
    mb_segno segno, struct mb_segment *out);

/* At the start of each public function that reads: inside, kv_txn_explain
 * leaves alone what a deeper function wrote, so nothing old may stand there. */
static inline void
error_begin(struct mb_error *err)
{
    if (err != NULL) {
        err->status = MB_OK;
        err->text[0] = '\0';
    }
}

/* A collection record as this write transaction changes it. */
struct wcoll {
    struct mb_collection c;
    bool dirty;
    bool gone; /* dropped in this transaction */
    struct wcoll *next;
};

/* One write transaction; writer thread only. */
struct wtxn {
    struct mb_store *store;
    struct kv_txn *txn;
    struct lex_batch *lex;
    struct dense_cache *dense;
    struct wcoll *colls;
    bool dropped; /* something was taken away: erase its rows in slices */
    bool erased;  /* users' bytes were deleted: scrub after the commit */
    bool changed; /* the present operation wrote something: set before the
                   * first write, so that a failure after it undoes all */
};

/* ---- collection.c ---- */

/* The record for changing; NOT_FOUND. Lives until the transaction ends. */
MB_MUST_USE mb_status wtxn_collection(struct wtxn *w, struct mb_slice name,
    struct wcoll **out, struct mb_error *err);
MB_MUST_USE mb_status wtxn_collection_by_id(struct wtxn *w, mb_collection_id id,
    struct wcoll **out, struct mb_error *err);

/* ---- lexical.c (see lexical.h for search) ---- */

/* Gathers postings of one transaction: each term is read once, changed in
 * memory, written once by the flush. Reused from one transaction to the next. */
MB_MUST_USE mb_status lex_batch_new(struct lex_batch **out);
void lex_batch_free(struct lex_batch *b);
/* Forget everything: the transaction was undone (or committed). */
void lex_batch_reset(struct lex_batch *b);
/* Instead of reset after a commit: numbers of terms that were looked up stay
 * known to the next transactions. */
void lex_batch_keep(struct lex_batch *b);
/* Number of a term, made if new (c->next_term grows). */
MB_MUST_USE mb_status lex_term_id(struct wtxn *w, struct wcoll *wc,
    struct mb_slice bytes, uint64_t hash, uint32_t *id, struct mb_error *err);
/* Posting (segno, tf) of term id. Segment numbers rise within a batch.
 * length: of the segment in terms. */
MB_MUST_USE mb_status lex_add(struct wtxn *w, struct wcoll *wc, uint32_t id,
    mb_segno segno, uint32_t tf, uint32_t length);
MB_MUST_USE mb_status lex_remove(
    struct wtxn *w, struct wcoll *wc, uint32_t id, mb_segno segno);
/* Length table: 0 marks a segment as gone. */
MB_MUST_USE mb_status lex_set_length(
    struct wtxn *w, struct wcoll *wc, mb_segno segno, uint32_t length);
/* Set the bits of all live segments below n_bits (words cleared by the caller).
 * txn may be a read or the write transaction. */
MB_MUST_USE mb_status lex_live(struct kv_txn *txn, mb_collection_id coll,
    uint64_t *words, size_t n_bits, struct mb_error *err);
/* Write all gathered changes; before the commit. */
MB_MUST_USE mb_status lex_flush(struct wtxn *w, struct mb_error *err);
/* Forward index: pairs (id rising, tf). ids need no order on entry. */
MB_MUST_USE mb_status lex_forward_encode(
    uint32_t *ids, uint32_t *tfs, size_t n, struct mb_buffer *out);

/* ---- dense.c ---- */

struct dense_cache *dense_cache_new(void);
void dense_cache_free(struct dense_cache *cache);
/* Append the vector of a new segment to the served generation (a row of zeros:
 * none). MISMATCH, STALE. */
MB_MUST_USE mb_status dense_add(struct wtxn *w, struct wcoll *wc,
    mb_segno segno, const float *vector, size_t dim, struct mb_error *err);
/* Take the segment out of the served generation and of the one being built. */
MB_MUST_USE mb_status dense_remove(
    struct wtxn *w, struct wcoll *wc, mb_segno segno, struct mb_error *err);
/* At creation of a collection with client vectors: generation 1, one flat
 * list, served at once. */
MB_MUST_USE mb_status dense_create_flat(
    struct wtxn *w, struct wcoll *wc, size_t dim, struct mb_error *err);

/* A copy of a fitted tree, for an op that outlives the caller's. Free it with
 * mb_tree_free. Errors: NOMEM. */
MB_MUST_USE mb_status mb_tree_copy(
    const struct mb_tree *tree, struct mb_tree **out);

/* Bodies of the generation operations of mb_store.h (opgen.c makes the ops). */
MB_MUST_USE mb_status dense_generation_begin(struct wtxn *w, struct wcoll *wc,
    uint32_t *generation, struct mb_error *err);
MB_MUST_USE mb_status dense_generation_model(struct wtxn *w, struct wcoll *wc,
    uint32_t generation, size_t dim, struct mb_slice embedding,
    const struct mb_tree *tree, struct mb_error *err);
MB_MUST_USE mb_status dense_generation_add(struct wtxn *w, struct wcoll *wc,
    uint32_t generation, size_t dim, const mb_segno *segnos,
    const float *vectors, const uint32_t *leaf, size_t n, struct mb_error *err);
MB_MUST_USE mb_status dense_generation_tune(struct wtxn *w, struct wcoll *wc,
    uint32_t generation, const struct mb_probing *probing,
    struct mb_error *err);
MB_MUST_USE mb_status dense_generation_switch(struct wtxn *w, struct wcoll *wc,
    uint32_t generation, mb_segno complete_to, uint64_t fitted_segments,
    struct mb_error *err);
/* Erases at most max rows. */
MB_MUST_USE mb_status dense_generation_purge(struct wtxn *w, struct wcoll *wc,
    uint32_t generation, size_t max, bool *done, struct mb_error *err);

/* ---- fields.c ---- */

/* Set of segment numbers below n_bits. */
struct bitset {
    uint64_t *words; /* arena */
    size_t n_bits;
    size_t n_set;
};

static inline bool
bitset_has(const struct bitset *b, uint32_t i)
{
    return i < b->n_bits && ((b->words[i >> 6] >> (i & 63)) & 1u) != 0;
}

/* Index rows for a document's metadata (msgpack map, may be empty). */
MB_MUST_USE mb_status fields_add(struct wtxn *w, struct wcoll *wc,
    struct mb_slice meta, mb_segno first_segment, uint32_t n_segments,
    mb_docno docno, struct mb_error *err);
MB_MUST_USE mb_status fields_remove(struct wtxn *w, struct wcoll *wc,
    struct mb_slice meta, mb_segno first_segment, uint32_t n_segments,
    mb_docno docno, struct mb_error *err);
/* Segments whose document matches. Syntax: daemon/PROTOCOL.md, filters.
 * Errors: BAD_ARG. txn may be a read or the write transaction. */
MB_MUST_USE mb_status filter_segments(struct kv_txn *txn,
    const struct mb_collection *coll, const struct mb_value *filter,
    struct mb_arena *arena, struct bitset *out, struct mb_error *err);

/* ---- candidates: what the two indexes give to search.c ---- */

struct candidate {
    mb_segno segno;
    float score;
};

/* Best k by BM25 (score falling, ties by segno rising). filter may be NULL. */
MB_MUST_USE mb_status lex_search(struct mb_snapshot *snap,
    const struct mb_collection *coll, const struct mb_term *terms,
    size_t n_terms, const struct bitset *filter, size_t k,
    struct mb_arena *arena, struct candidate **out, size_t *n,
    struct mb_error *err);
/* BM25 of given segments (any order), 0 where nothing matches. */
MB_MUST_USE mb_status lex_score(struct mb_snapshot *snap,
    const struct mb_collection *coll, const struct mb_term *terms,
    size_t n_terms, const mb_segno *segnos, size_t n, struct mb_arena *arena,
    float *scores, struct mb_error *err);

/* Best k by cosine: int8 scan then fp16 rescoring. With is_part it looks at
 * half as far among the leaves, and scores are those of int8, within about 0.001: of
 * candidates of several indexes dense_score reads the exact ones. */
struct dense_query {
    const float *vector;
    size_t dim;
    const struct bitset *filter;
    size_t k;
    bool exact;
    uint32_t nprobe; /* leaves; 0: as measured, or with is_part a part of it */
    bool is_part;    /* another index brings candidates too */
};

struct dense_result {
    struct candidate *hits; /* arena */
    size_t n;
    /* Mean and deviation of the cosine over all vectors scanned. */
    float mean;
    float deviation;
    uint64_t n_scanned;
};

MB_MUST_USE mb_status dense_search(struct mb_snapshot *snap,
    const struct mb_collection *coll, const struct dense_query *q,
    struct mb_arena *arena, struct dense_result *out, struct mb_error *err);
/* Cosine of given segments, NaN where there is no vector. */
MB_MUST_USE mb_status dense_score(struct mb_snapshot *snap,
    const struct mb_collection *coll, const float *vector, size_t dim,
    const mb_segno *segnos, size_t n, float *scores, struct mb_error *err);

/* ---- verify: each checks its own tables ---- */

struct verify {
    struct mb_snapshot *snap;
    mb_verify_fn report;
    void *arg;
    struct mb_verify_result *result;
    mb_progress_fn progress; /* may be NULL; see verify.h */
    double done;             /* part of all that is behind us */
    double share;            /* of the step at hand */
};

/* Count and report one broken record. */
void verify_broken(struct verify *v, enum kv_table table, struct mb_slice key,
    const char *fmt, ...) MB_PRINTF(4, 5);
MB_MUST_USE mb_status document_verify(
    struct verify *v, const struct mb_collection *coll, struct mb_error *err);
MB_MUST_USE mb_status lex_verify(
    struct verify *v, const struct mb_collection *coll, struct mb_error *err);
MB_MUST_USE mb_status dense_verify(
    struct verify *v, const struct mb_collection *coll, struct mb_error *err);
MB_MUST_USE mb_status fields_verify(
    struct verify *v, const struct mb_collection *coll, struct mb_error *err);

#endif
