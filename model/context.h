/* SPDX-License-Identifier: Apache-2.0
 * model/context.h - a context as the passes see it.
 *
 *   context.c         life, reading, committing, cutting
 *   context_record.c  records as bytes
 *   context_memory.c  memory as a source
 *   landmark.c        the table of landmark keys, scores, choosing
 *   tail.c            blocks that are not chosen, by statistics
 *   context_hmt.c     memories, and what stands in front of a window
 *   pass_context.c    rows of contexts in a pass
 *
 * The window is laid out as the records that it becomes: `segment_blocks`
 * records behind one another. Keys lie turned by their row within the block, so
 * that a block can stand anywhere: a query that is turned by its distance from
 * the block's first row meets them as if both were turned by their positions,
 * since R(a) R(b) = R(a + b). Nothing is turned again when it is fetched.
 *
 * Positions of a segment's rows count from its first row, [0, 64 n). Retrieved
 * blocks stand in k + 1 slots in front of it: a block of slot s has its first
 * row at (s - k - 1) * 64. The newest k blocks have slots 1 to k, all older
 * ones are scored in slot 0; of those that are chosen the s-th oldest is used
 * in slot s, or s + 1 if it is one of the newest. So distances stay within
 * (k + 1) * 64 and the window, however long the text. (The paper's "stingy"
 * positions, Mohtashami and Jaggi 2023, appendix.)
 * Private to this folder. */
#ifndef MB_MODEL_CONTEXT_H
#define MB_MODEL_CONTEXT_H

#include "attention.h"
#include "decoder.h"
#include "landmark.h"
#include "mb_context.h"
#include "tail.h"

#define BLOCK_TOKENS MB_CONTEXT_BLOCK_TOKENS

/* Bytes of a record before its keys: a header, token ids, padding. A multiple
 * of 64, so that slices are aligned as the record is. */
#define RECORD_HEADER 64u
#define RECORD_FRONT  320u

/* Shape of the records of a context; what they are checked against. */
struct context_shape {
    size_t n_layers;
    size_t n_kv_heads;
    size_t head_dim;
    mb_cache_type type;
    uint8_t weights[16];
    bool has_tail; /* sums have statistics */
};

/* What rows of a pass are: the text's, those in front of the window, or the one
 * behind it. */
typedef enum context_part {
    CONTEXT_TEXT = 0,
    CONTEXT_FRONT,
    CONTEXT_TRAIL
} context_part;

struct context_hmt;

struct mb_context {
    const struct mb_decoder *decoder;
    const struct attention *attention; /* writes rows */
    struct mb_context_options options; /* without zeros for defaults */
    struct mb_context_source source;
    struct context_shape shape;
    size_t slice_bytes;
    size_t block_bytes; /* of a record */
    size_t sum_bytes;

    /* The window. */
    uint8_t *memory;  /* holds `window`, 64-aligned */
    uint8_t *window;  /* (segment_blocks, block_bytes), and two more with a
                         front */
    float *landmarks; /* (segment_blocks, tables, head_dim), rounded to fp16 */
    mb_token_id *tokens; /* (segment_blocks * 63) */
    size_t n_tokens;
    /* Made when first wanted: */
    uint8_t *sums;     /* (segment_blocks, sum_bytes) */
    float *statistics; /* (tables, 3, head_dim) of one block */
    struct mb_slice block_views[MB_CONTEXT_MAX_SEGMENT];
    struct mb_slice sum_views[MB_CONTEXT_MAX_SEGMENT];

    /* What is committed. */
    struct landmark_table table;
    struct landmark_table tails; /* statistics, 3 * head_dim, where wanted */
    uint32_t *hits;              /* (capacity) */

    /* Blocks that the running pass has fetched: where their records lie, NULL
     * for all others. */
    const uint8_t **fetched; /* (capacity) */
    uint64_t *touched;       /* (capacity) ordinals, to forget them by */
    size_t n_touched;
    size_t capacity; /* blocks */
    bool is_in_pass;

    /* In front of the window. */
    bool has_front_room;
    size_t n_front; /* rows that lie there */
    context_part part;
    const float *edge;       /* input of the first row of a part, or NULL */
    struct context_hmt *hmt; /* NULL: no memory */
};

/* Landmark tables of a layer and key-value head are numbered like slices. */
static inline size_t
context_n_tables(const struct mb_context *ctx)
{
    return ctx->shape.n_layers * ctx->shape.n_kv_heads;
}

/* Rows that the window's first n tokens take, landmarks included. */
static inline size_t
context_rows_of(size_t n_tokens)
{
    return n_tokens + n_tokens / BLOCK_TOKENS;
}

/* The window's row that is the front's first. */
static inline size_t
context_front_row(const struct mb_context *ctx)
{
    return (ctx->options.segment_blocks + 1) * MB_BLOCK_ROWS;
}

static inline uint8_t *
context_slice(const struct mb_context *ctx, size_t block, size_t table)
{
    return ctx->window + block * ctx->block_bytes + RECORD_FRONT +
           table * ctx->slice_bytes;
}

static inline float *
context_landmark(const struct mb_context *ctx, size_t block, size_t table)
{
    return ctx->landmarks +
           (block * context_n_tables(ctx) + table) * ctx->shape.head_dim;
}

/* As mb_context_new; n_front: rows that lie in front of its window from the
 * start, 0: none, or as the memory of the options wants. */
MB_MUST_USE mb_status context_new(const struct mb_decoder *decoder,
    const struct mb_context_options *options,
    const struct mb_context_source *source, size_t n_front,
    struct mb_context **out, struct mb_error *err);
/* Read tokens that the window has room for, without committing it. */
MB_MUST_USE mb_status context_read_text(struct mb_context *ctx,
    struct mb_pass *pass, const struct mb_context_rows *rows,
    struct mb_error *err);
/* Blocks that rows of the context choose now: k, or fewer if there are not so
 * many. */
size_t context_k(const struct mb_context *ctx);
/* Write the key and value (head_dim) of a row of the window: row 63 of a block
 * is its landmark, whose value is not kept. */
void context_store(struct mb_context *ctx, size_t row, size_t table,
    const float *key, const float *value);
/* Make fetched[ordinal] the record of a block that was chosen, if it is not yet.
 * Errors: those of the source, of mb_context_check_block. One caller at a
 * time. */
mb_status context_fetch(
    struct mb_context *ctx, uint64_t ordinal, struct mb_error *err);
/* The pass is over: forget what was fetched. */
void context_release(struct mb_context *ctx);
/* Rows that the next n tokens take; how many tokens fit into so many rows and
 * the window (one at least, if the window has room). */
size_t context_rows_for(const struct mb_context *ctx, size_t n);
size_t context_fitting(const struct mb_context *ctx, size_t max_rows);
/* Take over tokens whose rows a pass has computed. */
void context_took(struct mb_context *ctx, const mb_token_id *tokens, size_t n);

/* ---- context_record.c ---- */

/* Write header, tokens and checksum around the keys and values that lie in a
 * block record already. */
void record_seal_block(uint8_t *record, size_t size,
    const struct context_shape *shape, uint64_t ordinal,
    const mb_token_id *tokens, size_t n_tokens);
/* Write a sum record with landmarks (tables, head_dim) and, where the shape has
 * a tail, statistics (tables, 3, head_dim). */
void record_write_sum(uint8_t *record, size_t size,
    const struct context_shape *shape, uint64_t ordinal,
    const mb_token_id *tokens, size_t n_tokens, const float *landmarks,
    const float *tails);
/* Sizes of records. */
size_t record_block_bytes(const struct context_shape *shape);
size_t record_sum_bytes(const struct context_shape *shape);
/* Is it a record of this shape and ordinal? Errors: FORMAT, CORRUPT,
 * MISMATCH. */
MB_MUST_USE mb_status record_check(const struct context_shape *shape,
    struct mb_slice bytes, bool is_sum, uint64_t ordinal, bool is_deep,
    struct mb_context_record *out, struct mb_error *err);
/* Landmark keys of a sum, (tables, head_dim) fp16, little-endian. */
const uint8_t *record_landmarks(struct mb_slice sum);
/* Its statistics, (tables, 3, head_dim). */
const uint8_t *record_tails(
    const struct context_shape *shape, struct mb_slice sum);

#endif
