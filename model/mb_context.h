/* SPDX-License-Identifier: Apache-2.0
 * model/mb_context.h - a text without end, read through landmarks.
 *
 * A context is a text that the model goes on reading at constant cost a token.
 * Its tokens lie in blocks: MB_CONTEXT_BLOCK_TOKENS tokens and a landmark,
 * which the context inserts by itself. `segment_blocks` blocks make a segment.
 * The segment that is being read is the window: its keys and values are in
 * memory. Once it is full it is committed: its blocks go to a source (a store,
 * or memory), and only their landmark keys, one for each layer and key-value
 * head, stay here. From then on each layer chooses by them, for each row and
 * head, the k blocks that it attends to, and fetches these from the source.
 * (Landmark attention: Mohtashami and Jaggi 2023.)
 *
 * Life:
 *     mb_context_new -> [mb_context_restore for each block that is stored,
 *     mb_context_restore_tail for the window's] -> mb_context_read, or items of
 *     mb_pass_run and mb_context_prepare -> mb_context_free
 *
 * A pass takes a context in an item (struct mb_rows) in the place of a sequence
 * and side by side with others. An item may have mb_context_room tokens at
 * most; at 0 the window is full and mb_context_prepare must come first (or
 * mb_context_commit; a context with memory wants mb_context_prepare always).
 *     while (n > 0) {
 *         mb_context_prepare(ctx, pass, &err);
 *         take = n < mb_context_room(ctx) ? n : mb_context_room(ctx);
 *         mb_pass_run(pass, &(struct mb_rows){.context = ctx, ...}, 1, &err);
 *     }
 *
 * What is lost when the process dies is the window alone, and that only if its
 * tail (mb_context_tail) was not kept. A context that is restored gives the
 * same bits as one that was never interrupted, for all types of keys and
 * values: they are rounded when they are written into the window, and a block
 * is committed as it lies there. Choosing for a whole chunk (MB_SELECT_CHUNK)
 * makes numbers depend on how the text is cut into items; all else does not.
 *
 * Threads: a context belongs to the thread of its passes; so do calls of its
 * source. Functions that only encode or check records are pure. */
#ifndef MB_CONTEXT_H
#define MB_CONTEXT_H

#include "mb_decoder.h"

#define MB_CONTEXT_BLOCK_TOKENS 63 /* and a landmark: MB_BLOCK_ROWS rows */
#define MB_CONTEXT_MAX_SEGMENT  16 /* blocks of a window */
#define MB_CONTEXT_MAX_K        16
#define MB_CONTEXT_NONE         SIZE_MAX /* a k: retrieve nothing */

struct mb_context;
struct companion;

/* ---- where blocks are kept ---- */

/* A full segment. All of it is borrowed and ends with the call. */
struct mb_context_segment {
    uint64_t first;                /* ordinal of its first block */
    size_t n_blocks;               /* segment_blocks, fewer in a tail */
    const struct mb_slice *blocks; /* (n_blocks) keys and values: records of
                                      mb_context_block_bytes bytes */
    const struct mb_slice *sums;   /* (n_blocks) landmark keys and token ids:
                                      mb_context_sum_bytes bytes */
    struct mb_slice memory;        /* of the segment: f32, little-endian
                                      (d_model); empty where it has none */
};

/* Calls never overlap. They come on the thread of the pass, but for fetch,
 * which may come on any of the pass's threads, one at a time: an LMDB read
 * transaction of an environment with MDB_NOTLS serves them. */
struct mb_context_source {
    void *arg;
    /* The block record of an ordinal that was committed or restored, as it was
     * handed to commit, at an address that is a multiple of 4. It stays valid
     * and unchanged until release. Errors: any; the pass then fails with it and
     * no item of it has changed. */
    mb_status (*fetch)(void *arg, uint64_t ordinal, struct mb_slice *out,
        struct mb_error *err);
    /* Nothing that was fetched is used any more: the pass is over. Called once
     * after a pass that fetched something. May be NULL. */
    void (*release)(void *arg);
    /* Keep a segment. When it returns MB_OK, fetch must serve its blocks,
     * whether they are on disk already or not; blocks from `first` on that were
     * kept before (mb_context_truncate) are replaced. Not called within a pass.
     * Errors: any; the window then stays full, and commit may be tried again.
     * NULL: the context ends with its first window. */
    mb_status (*commit)(void *arg, const struct mb_context_segment *segment,
        struct mb_error *err);
};

/* ---- options ---- */

/* For what rows and heads blocks are chosen together. Within a set the scores
 * of each row and head become shares (a softmax over all blocks), and a block's
 * score is its largest. */
typedef enum mb_select {
    MB_SELECT_ROW_HEAD = 0, /* each row and query head by itself: as trained */
    MB_SELECT_ROW_GROUP,    /* heads that share a key-value head */
    MB_SELECT_ROW,          /* all heads */
    MB_SELECT_CHUNK         /* each query head, all rows of the item */
} mb_select;

/* How a block that a row does not choose counts for it: by one row more in the
 * softmax, which has the mean of the block's values. Its logit: */
typedef enum mb_tail {
    MB_TAIL_NONE = 0, /* it does not count: as in the paper */
    MB_TAIL_MOMENTS,  /* from mean and variance of the block's keys */
    MB_TAIL_LANDMARK  /* that of the block's landmark */
} mb_tail;

/* Zero stands for the default in [ ]. */
struct mb_context_modes {
    size_t k;          /* blocks for each choice [4]; MB_CONTEXT_NONE: none */
    mb_select prefill; /* of rows of MB_ROWS_PREFILL */
    mb_select decode;  /* of rows of MB_ROWS_DECODE */
    mb_tail tail;      /* others than none: sums are 3 vectors a key longer,
                          in memory as well */
};

/* What stands in front of a segment, seen by all its rows (context_hmt.h). */
typedef enum mb_memory {
    MB_MEMORY_NONE = 0,
    MB_MEMORY_SENSORY, /* the last tokens of the segment before */
    MB_MEMORY_HMT      /* and what is recalled of all segments */
} mb_memory;

/* Zero stands for the default in [ ]. */
struct mb_context_options {
    mb_token_id landmark;  /* what closes a block: MB_LANDMARK_PIECE */
    uint8_t weights[16];   /* mb_gguf_fingerprint: records of others are
                              refused */
    mb_cache_type type;    /* of keys and values; landmark keys are F16 */
    size_t segment_blocks; /* of a window [4] */
    size_t max_blocks;     /* that may be committed [2^24] */
    struct mb_context_modes modes;
    mb_memory memory;
    const struct companion *companion; /* with memory: its weights, which must
                                          outlive the context (mb_companion.h) */
};

/* Rows that a row may attend to from its own segment's first to its last and k
 * retrieved blocks before it: (k + 1) * 64 + segment_blocks * 64, and those of
 * memory: one on either side and the tokens between. A model does
 * not know positions beyond the rows that it was trained on; a context that is
 * larger is not refused. */
size_t mb_context_span(const struct mb_context_options *options);

/* ---- life ---- */

/* An empty context. decoder is borrowed; source is copied, its arg borrowed;
 * source NULL: one window only. Errors: BAD_ARG (options), NOMEM. */
MB_MUST_USE mb_status mb_context_new(const struct mb_decoder *decoder,
    const struct mb_context_options *options,
    const struct mb_context_source *source, struct mb_context **out,
    struct mb_error *err);
/* Takes NULL. What is in the window is gone unless its tail was kept. */
void mb_context_free(struct mb_context *ctx);

/* Take in the sum record of the next block that the source has: ordinals rise
 * by one from 0. The number of blocks must be whole segments before anything is
 * read. Errors: as mb_context_check_sum; BAD_ARG (another ordinal, or rows were
 * read already), TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status mb_context_restore(
    struct mb_context *ctx, struct mb_slice sum, struct mb_error *err);
/* With the last block of each segment, the memory that was kept with it; of a
 * context without memories nothing is done. Errors: CORRUPT, NOMEM. */
MB_MUST_USE mb_status mb_context_restore_memory(
    struct mb_context *ctx, struct mb_slice memory, struct mb_error *err);
/* Put a block that mb_context_tail gave back into the window, with its sum; in
 * order, all but the last are full. Errors: as mb_context_check_block and
 * _check_sum; BAD_ARG (more than a window, or behind one that is not full). */
MB_MUST_USE mb_status mb_context_restore_tail(struct mb_context *ctx,
    struct mb_slice block, struct mb_slice sum, struct mb_error *err);

/* Tokens read so far, without landmarks. */
uint64_t mb_context_length(const struct mb_context *ctx);
/* Blocks that are committed: the source has ordinals [0, n). */
uint64_t mb_context_n_blocks(const struct mb_context *ctx);
/* Tokens that the window has room for. */
size_t mb_context_room(const struct mb_context *ctx);
/* Tokens of the window, oldest first; a view until the next call. */
const mb_token_id *mb_context_window(const struct mb_context *ctx, size_t *n);
/* Memory that it holds: window and table. */
size_t mb_context_bytes(const struct mb_context *ctx);

/* ---- reading ---- */

/* Hand the full window to the source and begin an empty one. A window that is
 * not full is left alone. Errors: those of the source; TOO_LARGE (max_blocks,
 * or no source), NOMEM. */
MB_MUST_USE mb_status mb_context_commit(
    struct mb_context *ctx, struct mb_error *err);
/* The same for any context, with memory or without: be ready for a pass. A full
 * window leaves its memory and is committed, and what stands in front of the
 * next tokens is made, in passes of its own. mb_context_commit refuses
 * contexts with memory (BAD_ARG). Errors: also those of mb_pass_run, CORRUPT (a
 * segment without its memory). */
MB_MUST_USE mb_status mb_context_prepare(
    struct mb_context *ctx, struct mb_pass *pass, struct mb_error *err);

/* Rows for mb_context_read; see struct mb_rows. */
struct mb_context_rows {
    const mb_token_id *tokens; /* (n) */
    size_t n;
    mb_rows_kind kind;
    const mb_token_id *targets; /* (n), or NULL */
    float *nll;                 /* (n), or NULL */
    float *logits;              /* (n_vocab) of the last row, or NULL */
};

/* Read n tokens alone, in items that are cut at the ends of segments and of the
 * pass's room; commits each window once it is full. On failure the context has
 * read some of the tokens: mb_context_length says how many. Errors: those of
 * mb_pass_run and mb_context_prepare. */
MB_MUST_USE mb_status mb_context_read(struct mb_context *ctx,
    struct mb_pass *pass, const struct mb_context_rows *rows,
    struct mb_error *err);

/* ---- cutting and copying ---- */

/* Forget all tokens from n on. If n lies in a segment that is committed, its
 * blocks are fetched back into the window; the source may forget ordinals from
 * mb_context_n_blocks on afterwards, and must take the same ordinals again.
 * Errors: BAD_ARG (n is more than there are), those of fetch and of
 * mb_context_check_block: the context has not changed then. */
MB_MUST_USE mb_status mb_context_truncate(
    struct mb_context *ctx, uint64_t n, struct mb_error *err);
/* A new context with the first n tokens of this one, over another source, which
 * has, or shares, the first mb_context_n_blocks blocks of the new one; none of
 * them is read now. Errors: as mb_context_truncate, NOMEM. */
MB_MUST_USE mb_status mb_context_fork(struct mb_context *ctx, uint64_t n,
    const struct mb_context_source *source, struct mb_context **out,
    struct mb_error *err);
/* Blocks that are committed once a context of n tokens has committed all that
 * it can: those of its whole segments. */
uint64_t mb_context_blocks_of(
    const struct mb_context_options *options, uint64_t n_tokens);

/* The window as records: full blocks and a last one that is not, for a source
 * that keeps it across a restart. The views end with the next call; n_blocks is
 * 0 if the window is empty. Errors: NOMEM. */
MB_MUST_USE mb_status mb_context_tail(struct mb_context *ctx,
    struct mb_context_segment *out, struct mb_error *err);

/* ---- what was retrieved ---- */

/* How often each committed block was chosen, by any layer, row and head, since
 * the counts were last cleared: (*n) counts, a view until the next call. */
const uint32_t *mb_context_hits(const struct mb_context *ctx, size_t *n);
void mb_context_clear_hits(struct mb_context *ctx);

/* ---- records ---- */

/* Sizes for a decoder and options; constant for a context. Of the bundled
 * model: 262,464 and 2,368 bytes (F16). */
size_t mb_context_block_bytes(
    const struct mb_decoder *decoder, const struct mb_context_options *options);
size_t mb_context_sum_bytes(
    const struct mb_decoder *decoder, const struct mb_context_options *options);

/* What a record says of itself. */
struct mb_context_record {
    bool is_sum; /* else a block */
    uint8_t weights[16];
    uint64_t ordinal;
    mb_cache_type type;
    uint32_t block_rows; /* MB_BLOCK_ROWS */
    uint32_t n_tokens;   /* fewer than block_rows - 1 in a tail's last */
    uint32_t n_layers;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    bool has_tail;          /* of a sum: statistics for the tail */
    struct mb_slice tokens; /* (n_tokens) u32, little-endian, in the record */
};

/* Read any bytes as a record: magic, version, every size, and, if `is_deep`,
 * the checksum over all of it and that all numbers are finite. For who looks at
 * a store without a model. Errors: FORMAT (no record, another version), CORRUPT
 * (names what). */
MB_MUST_USE mb_status mb_context_record_read(struct mb_slice bytes,
    bool is_deep, struct mb_context_record *out, struct mb_error *err);
/* The same, and that it belongs to this context as block `ordinal`. Errors:
 * also MISMATCH (other weights, shape or type). */
MB_MUST_USE mb_status mb_context_check_block(const struct mb_context *ctx,
    struct mb_slice bytes, uint64_t ordinal, bool is_deep,
    struct mb_error *err);
MB_MUST_USE mb_status mb_context_check_sum(const struct mb_context *ctx,
    struct mb_slice bytes, uint64_t ordinal, bool is_deep,
    struct mb_error *err);

/* ---- memory as a source ---- */

/* Keeps all segments in memory: for tests and measurements. */
struct mb_context_memory;

MB_MUST_USE mb_status mb_context_memory_new(
    struct mb_context_memory **out, struct mb_error *err);
void mb_context_memory_free(struct mb_context_memory *memory);
/* The source; it ends with the memory. Several contexts may share one as long
 * as only one of them commits. */
struct mb_context_source mb_context_memory_source(
    struct mb_context_memory *memory);
/* The sum record of a block; empty if there is none. */
struct mb_slice mb_context_memory_sum(
    const struct mb_context_memory *memory, uint64_t ordinal);
size_t mb_context_memory_bytes(const struct mb_context_memory *memory);
/* The memory that was kept with a block; empty if there is none. */
struct mb_slice mb_context_memory_kept(
    const struct mb_context_memory *memory, uint64_t ordinal);

#endif
