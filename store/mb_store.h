/* SPDX-License-Identifier: Apache-2.0
 * store/mb_store.h - the store: documents, segments, indexes, in one LMDB
 * environment, moved together by one writer thread.
 *
 * Life: mb_store_open -> snapshots to read, operations to write -> close.
 *
 *   struct mb_snapshot *snap;
 *   mb_snapshot_begin(store, &snap, &err);
 *   mb_search(snap, &query, arena, &hits, &err);   // views live until _end
 *   mb_snapshot_end(snap);
 *
 *   struct mb_op *op;
 *   mb_op_delete_new(collection, ids, n, &op);
 *   mb_store_apply(store, op, &err);               // durable when it returns
 *   mb_op_free(op);
 *
 * Writes are operations (mb_op) that one thread applies; those that wait
 * together commit together. Everything an operation does (text, postings,
 * codes, counters) is in one transaction. Reads are snapshots: consistent,
 * never blocked by the writer, from any number of threads and processes.
 * Vectors belong to a generation: one fit of the embedding with one tree and
 * its lists. A new generation is built beside the active one and switched to in
 * one transaction.
 * Threads: a store is shared by all; a snapshot and an op belong to one. */
#ifndef MB_STORE_H
#define MB_STORE_H

#include "mb_base.h"
#include "mb_wire.h"

typedef uint32_t mb_collection_id;
typedef uint32_t mb_docno; /* document number within its collection */
typedef uint32_t mb_segno; /* segment number within its collection */

#define MB_MAX_COLLECTION_NAME 128 /* bytes */
#define MB_MAX_DOCUMENT_ID     400 /* bytes */
#define MB_MAX_DIM             4096
#define MB_NO_SEGMENT          UINT32_MAX

struct mb_store;
struct mb_snapshot;
struct mb_op;

/* ---- open ---- */

struct mb_store_options {
    bool read_only;     /* other processes may write meanwhile */
    bool create;        /* make the folder and an empty store if absent */
    uint64_t map_bytes; /* address space; 0: 1 TiB, or what the system lets */
    bool no_sync;       /* tests only: durability is lost */
    /* Fingerprint of the tokenizer that measures segments. Kept at creation;
     * a store made with another is refused (MISMATCH). All zero: take any. */
    uint8_t tokenizer[16];
    size_t max_queued_ops; /* 0: 1,024 */
    bool helper;           /* start a thread for mb_query.helped */
};

/* Errors: NOT_FOUND (no store and not create), LOCKED (another writer), IO,
 * NO_SPACE, READ_ONLY, FORMAT (newer version, or not a store), CORRUPT,
 * MISMATCH, NOMEM. Starts the writer thread unless read_only. */
MB_MUST_USE mb_status mb_store_open(const char *path,
    const struct mb_store_options *opt, struct mb_store **out,
    struct mb_error *err);
/* Finishes queued operations first. */
void mb_store_close(struct mb_store *store);

struct mb_store_stats {
    uint64_t file_bytes; /* of data.mdb on disk */
    uint64_t used_bytes; /* pages in use */
    uint64_t free_bytes; /* pages on the free list */
    uint64_t map_bytes;
    uint64_t n_commits; /* since open */
    uint64_t n_ops;
    uint64_t last_commit_us;
    uint64_t queued_ops;
    uint64_t oldest_reader_lag; /* transactions since the oldest reader began */
    uint32_t n_readers;
    bool scrub_pending; /* deleted bytes not yet overwritten in the file */
    uint64_t last_txn;
};

MB_MUST_USE mb_status mb_store_stats(
    struct mb_store *store, struct mb_store_stats *out, struct mb_error *err);
/* Rows and bytes of one table, by position; false past the last. Read inside
 * a snapshot. */
bool mb_store_table_stats(struct mb_snapshot *snap, size_t i, const char **name,
    uint64_t *rows, uint64_t *bytes);
/* Consistent compacted copy into a new folder, while writes go on.
 * Errors: EXISTS (folder not empty), IO, NO_SPACE. Any thread. */
MB_MUST_USE mb_status mb_store_copy(
    struct mb_store *store, const char *to, struct mb_error *err);

/* ---- snapshots ---- */

MB_MUST_USE mb_status mb_snapshot_begin(
    struct mb_store *store, struct mb_snapshot **out, struct mb_error *err);
void mb_snapshot_end(struct mb_snapshot *snap);

/* ---- collections ---- */

typedef enum mb_embedding_kind {
    MB_EMBED_NONE = 0,   /* lexical only */
    MB_EMBED_LSA = 1,    /* built in, the default */
    MB_EMBED_CLIENT = 2, /* vectors come with put and query */
    MB_EMBED_ANCHOR = 3  /* mean hidden rows of a model; added after the put */
} mb_embedding_kind;

struct mb_collection_settings {
    char language[32]; /* Snowball name; "" is "english"; "none": no stems */
    mb_embedding_kind embedding;
    uint32_t dim; /* wanted; 0: 256 for lsa, required for client, not said for
                     anchor: it is the model's */
    float k1;     /* BM25; 0: 1.5 */
    float b;      /* BM25; negative: 0.75 */
    uint32_t title_weight; /* how often a title's terms count; default 2 */
};

struct mb_collection {
    mb_collection_id id;
    char name[MB_MAX_COLLECTION_NAME + 1];
    struct mb_collection_settings settings;
    uint64_t created_ms;
    uint64_t n_documents;
    uint64_t n_segments;
    uint64_t n_tokens;
    uint64_t text_bytes;
    uint64_t sum_lengths; /* of all segments, in terms: avgdl = sum / n */
    uint32_t next_docno;
    uint32_t next_segno;
    uint32_t next_term;
    uint64_t n_terms;
    /* Dense state. generation 0: none yet. */
    uint32_t generation; /* served */
    uint32_t building;   /* being built, 0 if none */
    uint32_t next_generation;
    uint32_t dim;             /* of the served generation */
    uint64_t fitted_segments; /* n_segments when it was fitted */
    uint64_t n_vectors;       /* segments with a vector in it */
};

/* Settings with defaults in place. */
void mb_collection_settings_default(struct mb_collection_settings *s);
/* Errors: BAD_ARG with the field and what it may be. */
MB_MUST_USE mb_status mb_collection_settings_check(
    const struct mb_collection_settings *s, struct mb_error *err);
/* Errors: NOT_FOUND (names it). */
MB_MUST_USE mb_status mb_collection_get(struct mb_snapshot *snap,
    struct mb_slice name, struct mb_collection *out, struct mb_error *err);
/* All, by name; *out lives in arena. */
MB_MUST_USE mb_status mb_collection_list(struct mb_snapshot *snap,
    struct mb_arena *arena, struct mb_collection **out, size_t *n,
    struct mb_error *err);

/* ---- analysis: text to terms ---- */

/* Terms of texts in one language: Unicode words, case folded, stemmed; CJK by
 * bigram. Stop words stay. One thread; keep and reuse (it caches stems). */
struct mb_analyzer;
MB_MUST_USE mb_status mb_analyzer_new(
    const char *language, struct mb_analyzer **out, struct mb_error *err);
void mb_analyzer_free(struct mb_analyzer *an);
/* NULL-terminated list of languages, static. */
const char *const *mb_analyzer_languages(void);

struct mb_term {
    struct mb_slice bytes; /* at most 64 */
    uint64_t hash;         /* mb_hash64(bytes, 0) */
    uint32_t tf;
};

/* Distinct terms of one text, in order of first appearance; arrays live in
 * arena. Errors: NOMEM. Text must be valid UTF-8. */
MB_MUST_USE mb_status mb_analyze(struct mb_analyzer *an, struct mb_slice text,
    struct mb_arena *arena, struct mb_term **out, size_t *n,
    struct mb_error *err);

/* ---- operations ---- */

/* Called once on the writer thread, after the commit (or failure). It hands
 * the op back: read results, then free, or submit again after STALE. Must be
 * quick and must not call mb_store_apply. */
typedef void (*mb_op_done_fn)(
    void *arg, struct mb_op *op, mb_status st, const struct mb_error *err);

/* Queue op for the writer, which owns it until done is called.
 * Errors: BUSY (queue full), READ_ONLY, SHUTTING_DOWN; the op stays the
 * caller's then. */
MB_MUST_USE mb_status mb_store_submit(struct mb_store *store, struct mb_op *op,
    mb_op_done_fn done, void *arg, struct mb_error *err);
/* Submit and wait for the commit; the op stays the caller's. */
MB_MUST_USE mb_status mb_store_apply(
    struct mb_store *store, struct mb_op *op, struct mb_error *err);
void mb_op_free(struct mb_op *op);

/* Create: EXISTS unless exist_ok (then settings must agree, or MISMATCH).
 * Drop: NOT_FOUND. Name and settings are copied. Drop takes the collection away
 * at once and erases its rows in slices between other operations. */
MB_MUST_USE mb_status mb_op_create_new(struct mb_slice name,
    const struct mb_collection_settings *settings, bool exist_ok,
    struct mb_op **out, struct mb_error *err);
MB_MUST_USE mb_status mb_op_drop_new(
    struct mb_slice name, struct mb_op **out, struct mb_error *err);

#define MB_MAX_NOTE      16384 /* bytes */
#define MB_MAX_NOTE_NAME 32    /* bytes */

/* Keep a small text with a collection, under a name; an empty one takes it
 * away. It goes when the collection is dropped. Slices are copied.
 * Errors: TOO_LARGE, NOMEM; on apply NOT_FOUND. */
MB_MUST_USE mb_status mb_op_note_new(struct mb_slice collection,
    const char *name, struct mb_slice text, struct mb_op **out,
    struct mb_error *err);
/* *out is a view until the snapshot's end. Errors: NOT_FOUND, CORRUPT. */
MB_MUST_USE mb_status mb_note_get(struct mb_snapshot *snap,
    const struct mb_collection *coll, const char *name, struct mb_slice *out,
    struct mb_error *err);

/* One document to put. Everything is borrowed until mb_op_put_new returns. */
struct mb_put_document {
    struct mb_slice id; /* 1..MB_MAX_DOCUMENT_ID bytes, valid UTF-8 */
    struct mb_slice title;
    struct mb_slice text; /* valid UTF-8, below 4 GiB */
    struct mb_slice meta; /* one msgpack map, or empty */
    /* Spans as cut by the model's segmenter; at least one. */
    const struct mb_span *segments;
    size_t n_segments;
    const float *vector; /* client embedding: dim of the collection, or NULL */
};

/* Prepare documents for one collection: hash, compress, analyse; the work of
 * a put that needs no transaction. coll: as read from a snapshot now. Same ids
 * twice in one op: the last wins. Any thread, its own analyzer.
 * Errors: BAD_ARG, BAD_TEXT, TOO_LARGE (names document and limit), NOMEM; on
 * apply NOT_FOUND if the collection was dropped, made again or not. */
MB_MUST_USE mb_status mb_op_put_new(const struct mb_collection *coll,
    struct mb_analyzer *an, const struct mb_put_document *docs, size_t n,
    struct mb_op **out, struct mb_error *err);
/* Terms of its segments, for the embedding: segment i of mb_op_put_segments().
 * Arrays live as long as the op. */
size_t mb_op_put_segments(const struct mb_op *op);
void mb_op_put_terms(const struct mb_op *op, size_t i, const uint64_t **hash,
    const float **tf, size_t *n);
/* Vectors (n_segments x dim, copied) of generation `generation`; a row of
 * zeros means none. Without this call segments get no vector (unless client
 * vectors came). Replaces earlier ones.
 * On apply: STALE if the collection serves another generation by then. Vectors
 * of clients are of all generations. */
MB_MUST_USE mb_status mb_op_put_set_vectors(
    struct mb_op *op, uint32_t generation, size_t dim, const float *vectors);

struct mb_put_result {
    uint64_t stored;    /* new documents */
    uint64_t replaced;  /* id existed with other content */
    uint64_t unchanged; /* same id and content: nothing written */
    uint64_t segments;  /* written */
};

void mb_op_put_result(const struct mb_op *op, struct mb_put_result *out);

/* Delete by ids (those absent are skipped) or by filter (map as in queries).
 * Slices are copied. */
MB_MUST_USE mb_status mb_op_delete_new(struct mb_slice collection,
    const struct mb_slice *ids, size_t n, struct mb_op **out,
    struct mb_error *err);
MB_MUST_USE mb_status mb_op_delete_where_new(struct mb_slice collection,
    const struct mb_value *filter, struct mb_op **out, struct mb_error *err);
uint64_t mb_op_delete_result(const struct mb_op *op); /* documents deleted */

/* ---- documents ---- */

struct mb_document {
    mb_docno docno;
    struct mb_slice id;
    struct mb_slice title;
    struct mb_slice meta; /* msgpack map, or empty */
    uint64_t text_bytes;
    uint64_t added_ms; /* wall clock of the put */
    mb_segno first_segment;
    uint32_t n_segments;
    uint32_t n_tokens;
};

/* Views live until the snapshot's end. Errors: NOT_FOUND. */
MB_MUST_USE mb_status mb_document_find(struct mb_snapshot *snap,
    const struct mb_collection *coll, struct mb_slice id,
    struct mb_document *out, struct mb_error *err);
MB_MUST_USE mb_status mb_document_get(struct mb_snapshot *snap,
    const struct mb_collection *coll, mb_docno docno, struct mb_document *out,
    struct mb_error *err);
/* Documents in order of id, those above `after` (empty: from the start), at
 * most max; and if filter is not NULL only those that match. */
MB_MUST_USE mb_status mb_document_list(struct mb_snapshot *snap,
    const struct mb_collection *coll, struct mb_slice after,
    const struct mb_value *filter, size_t max, struct mb_arena *arena,
    struct mb_document **out, size_t *n, struct mb_error *err);
/* Bytes [start, end) of a document's text, unpacked into arena (only the
 * blocks that hold them). end is cut to the text's size. */
MB_MUST_USE mb_status mb_document_text(struct mb_snapshot *snap,
    const struct mb_collection *coll, const struct mb_document *doc,
    uint64_t start, uint64_t end, struct mb_arena *arena, struct mb_slice *out,
    struct mb_error *err);

struct mb_segment {
    mb_segno segno;
    mb_docno docno;
    uint32_t ordinal; /* within its document, from 0 */
    uint32_t start;   /* bytes of the document's text */
    uint32_t end;
    uint32_t n_tokens;
    uint32_t length;         /* in terms, title included */
    struct mb_slice forward; /* term ids and counts; mb_forward_next */
};

/* Errors: NOT_FOUND, CORRUPT. */
MB_MUST_USE mb_status mb_segment_get(struct mb_snapshot *snap,
    const struct mb_collection *coll, mb_segno segno, struct mb_segment *out,
    struct mb_error *err);
/* Live segments from segno on, at most max; *n may be 0 at the end. Arrays are
 * the caller's. */
MB_MUST_USE mb_status mb_segment_scan(struct mb_snapshot *snap,
    const struct mb_collection *coll, mb_segno from, size_t max,
    struct mb_segment *out, size_t *n, struct mb_error *err);
/* Walk a forward index: ids rise. *pos starts at 0; false at the end (or at
 * damage: then *pos < forward.size). In between *pos is not a byte offset. */
bool mb_forward_next(
    struct mb_slice forward, size_t *pos, uint32_t *term_id, uint32_t *tf);

/* A term by its number: bytes (view) and how many segments have it.
 * Errors: NOT_FOUND. */
MB_MUST_USE mb_status mb_term_get(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t term_id, struct mb_slice *bytes,
    uint32_t *df, struct mb_error *err);

/* ---- search ---- */

typedef enum mb_search_mode {
    MB_SEARCH_HYBRID = 0,
    MB_SEARCH_DENSE = 1,
    MB_SEARCH_LEXICAL = 2
} mb_search_mode;

struct mb_query {
    const struct mb_collection *coll; /* from the same snapshot */
    mb_search_mode mode;
    size_t k;
    const struct mb_term *terms; /* of the query text; may be none */
    size_t n_terms;
    const float *vector; /* (dim), unit length, NULL if none */
    size_t dim;
    float coverage; /* lsa: part of the query the embedding knows; or 1 */
    const struct mb_value *filter; /* NULL: all */
    bool exact;                    /* dense: scan all leaves */
    uint32_t nprobe;       /* dense: leaves to scan; 0: the measured default */
    bool one_per_document; /* best segment of each document only */
    /* Hybrid: halve the time by the store's helper thread. For a query that is
     * alone: among many at once the handing over is only lost. */
    bool helped;
};

struct mb_hit {
    mb_segno segno;
    mb_docno docno;
    float score;   /* what the order is by */
    float dense;   /* cosine in [-1, 1]; NaN if the segment has no vector */
    float lexical; /* BM25; 0 if no term matches */
};

/* Best k, score falling, ties by segno rising. *hits lives in arena.
 * Errors: BAD_ARG (filter syntax, vector not finite), MISMATCH (dim), CORRUPT,
 * NOMEM. */
MB_MUST_USE mb_status mb_search(struct mb_snapshot *snap,
    const struct mb_query *query, struct mb_arena *arena, struct mb_hit **hits,
    size_t *n, struct mb_error *err);

/* ---- generations: the dense index ---- */

/* Steps of a rebuild, driven by a background job of the daemon:
 * 1. mb_op_generation_begin_new  -> reserves a number (coll.building)
 * 2. fit the embedding (model side), mb_tree_fit on a sample (here)
 * 3. mb_op_generation_model_new  -> stores embedding bytes and the tree
 * 4. mb_op_generation_add_new    -> vectors of live segments, in batches
 * 5. mb_op_generation_switch_new -> adds the rest and serves it; STALE if more
 *    than its rest is missing: go on with 4
 * 6. mb_op_generation_purge_new  -> erases rows of one that is not served, a
 *    slice a call, until result says done
 * A number left in `building` by a crash is discarded with 6. */
struct mb_tree; /* a fitted tree, not stored yet */

struct mb_tree_options {
    uint32_t fanout;      /* 0: 16 */
    uint32_t max_depth;   /* 0: 3 */
    uint32_t leaf_target; /* vectors a leaf aimed at; 0: by n_total */
    uint64_t n_total;     /* vectors that the tree will hold */
    uint64_t flat_below;  /* one leaf below this many; 0: the default */
    double recall_target; /* recall@10 for nprobe; 0: 0.955 */
    uint64_t seed;
    struct mb_pool *pool;
    bool even_depth; /* all leaves at max_depth: a node that is not worth a
                        split has one child */
};

/* Balanced hierarchical k-means over sample (n x dim, unit rows), FAISS
 * clustering at each node; spec hierarchical-memories section 3. */
MB_MUST_USE mb_status mb_tree_fit(const float *sample, size_t n, size_t dim,
    const struct mb_tree_options *opt, struct mb_tree **out,
    struct mb_error *err);
void mb_tree_free(struct mb_tree *tree);
uint32_t mb_tree_n_leaves(const struct mb_tree *tree);
/* Leaf of each of n unit vectors by greedy descent. Batched through BLAS. */
void mb_tree_route(
    const struct mb_tree *tree, const float *vectors, size_t n, uint32_t *leaf);

MB_MUST_USE mb_status mb_op_generation_begin_new(
    struct mb_slice collection, struct mb_op **out, struct mb_error *err);
uint32_t mb_op_generation_result(const struct mb_op *op);
/* embedding: bytes for mb_generation_embedding (empty for client vectors);
 * tree is copied; NULL: one flat list. */
MB_MUST_USE mb_status mb_op_generation_model_new(struct mb_slice collection,
    uint32_t generation, size_t dim, struct mb_slice embedding,
    const struct mb_tree *tree, struct mb_op **out, struct mb_error *err);
/* n vectors (n x dim, copied) with their segments, and their leaves (NULL:
 * routed here). Segments that are gone meanwhile, or have theirs already, are
 * skipped. The generation is being built, or served: vectors of a model's that
 * are made after their segments were put. */
MB_MUST_USE mb_status mb_op_generation_add_new(struct mb_slice collection,
    uint32_t generation, size_t dim, const mb_segno *segnos,
    const float *vectors, const uint32_t *leaf, size_t n, struct mb_op **out,
    struct mb_error *err);
/* Serve it. complete_to: all live segments below this number were added (or
 * have no vector). STALE if segments at or above it exist.
 * fitted_segments is kept for the decision to refit. */
MB_MUST_USE mb_status mb_op_generation_switch_new(struct mb_slice collection,
    uint32_t generation, mb_segno complete_to, uint64_t fitted_segments,
    struct mb_op **out, struct mb_error *err);
MB_MUST_USE mb_status mb_op_generation_purge_new(struct mb_slice collection,
    uint32_t generation, struct mb_op **out, struct mb_error *err);
bool mb_op_generation_purge_is_done(const struct mb_op *op);

/* Embedding bytes of a generation, joined in arena. Errors: NOT_FOUND. */
MB_MUST_USE mb_status mb_generation_embedding(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t generation,
    struct mb_arena *arena, struct mb_slice *out, struct mb_error *err);
/* Vector of a segment in the served generation (dim, unit). NOT_FOUND. */
MB_MUST_USE mb_status mb_vector_get(struct mb_snapshot *snap,
    const struct mb_collection *coll, mb_segno segno, float *out,
    struct mb_error *err);

/* How far a query looks among the leaves, the nearest centroid first. */
struct mb_probing {
    uint32_t nprobe; /* leaves at most */
    float gap; /* none whose cosine is further below the best; 0: no such end */
    double recall; /* recall@10 that was measured with these */
};

/* Choose them for a built (not yet served) generation by measuring recall@10
 * of n_queries stored vectors against an exact scan; result is stored by op. */
MB_MUST_USE mb_status mb_op_generation_tune_new(struct mb_slice collection,
    uint32_t generation, const struct mb_probing *probing, struct mb_op **out,
    struct mb_error *err);
MB_MUST_USE mb_status mb_generation_measure(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t generation, size_t n_queries,
    double recall_target, uint64_t seed, struct mb_probing *out,
    struct mb_error *err);

/* ---- the tree, for looking ---- */

struct mb_node {
    uint32_t node;   /* 0 is the root */
    uint32_t parent; /* UINT32_MAX for the root */
    uint32_t level;
    uint32_t first_child; /* children are numbered in a row */
    uint32_t n_children;  /* 0: a leaf */
    uint32_t leaf;        /* list number, leaves only */
    uint64_t n_vectors;   /* below it */
};

struct mb_generation_info {
    uint32_t generation;
    uint32_t dim;
    uint32_t n_nodes;
    uint32_t n_leaves;
    uint32_t depth;
    struct mb_probing probing; /* recall 1 for a flat list */
};

MB_MUST_USE mb_status mb_generation_info_get(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t generation,
    struct mb_generation_info *out, struct mb_error *err);
MB_MUST_USE mb_status mb_node_get(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t generation, uint32_t node,
    struct mb_node *out, struct mb_error *err);
/* Segments of a leaf, at most max. */
MB_MUST_USE mb_status mb_leaf_segments(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t generation, uint32_t leaf,
    size_t max, mb_segno *out, size_t *n, struct mb_error *err);

/* ---- verify ---- */

/* One broken record: table, its key as hex, what is wrong. */
typedef void (*mb_verify_fn)(
    void *arg, const char *table, const char *key_hex, const char *what);
/* Part done in [0, 1]; true stops (CANCELLED). */
typedef bool (*mb_progress_fn)(void *arg, double part);

struct mb_verify_result {
    uint64_t n_records;
    uint64_t n_broken;
};

/* Walk every table and compare them with one another. Broken records do not
 * make it fail: they are reported and counted. */
MB_MUST_USE mb_status mb_store_verify(struct mb_snapshot *snap,
    mb_verify_fn report, mb_progress_fn progress, void *arg,
    struct mb_verify_result *out, struct mb_error *err);

#endif
