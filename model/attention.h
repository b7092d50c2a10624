/* SPDX-License-Identifier: Apache-2.0
 * model/attention.h - attention over blocks of cached rows, as partials.
 *
 * The softmax of a query over some rows is kept as (m, l, o): the largest
 * logit, the sum of exp(logit - m), and the sum of exp(logit - m) * value.
 * Two partials over different rows merge into one over both, in any grouping;
 * (-inf, 0, 0) is the partial over no rows. So a long range is cut into pieces
 * that different threads take, and ranges of different origin (a sequence's
 * window, retrieved blocks, other rows) meet in one softmax. (The online
 * softmax of Milakov and Gimelshein 2018, as in FlashAttention, Dao 2022.)
 *
 * Two kernels, as for matrices: `few` for one row of a sequence (decoding,
 * bound by reading keys and values), `many` for a tile of rows (prefill).
 * Both go through the rows block by block in order; what a query gets depends
 * on the query and on the rows that it sees alone, bit for bit: not on which
 * other queries are in the tile, and not on rows that are masked, provided
 * these are finite (cache.h clears blocks for that).
 *
 * Private to this folder. Threads: stateless, call from any. */
#ifndef MB_MODEL_ATTENTION_H
#define MB_MODEL_ATTENTION_H

#include "cache.h"
#include "compute.h"

/* Queries of a tile in `many`, at most; heads that share a key-value head in
 * `few`, at most. */
#define ATTENTION_MAX_ROWS  64u
#define ATTENTION_MAX_GROUP 64u
#define ATTENTION_MAX_HEAD  512u /* head_dim, a multiple of 8 */

/* Partials of n queries: o (n, head_dim). The caller's. */
struct partial {
    float *m;
    float *l;
    float *o;
};

/* A kind of slice: see cache.h. */
struct slice_shape {
    mb_cache_type type;
    size_t head_dim;
};

struct attention {
    const char *name;

    /* Write keys and values (head_dim each) of one row into a slice. */
    void (*store)(struct slice_shape shape, uint8_t *slice, size_t row,
        const float *key, const float *value);

    /* Merge into `to` what n queries, q (n, head_dim) and already scaled, see
     * in n_slices slices, of which the last has last_rows rows (1 or more). */
    void (*few)(struct slice_shape shape, const uint8_t *const *slices,
        size_t n_slices, size_t last_rows, const float *q, size_t n,
        struct partial *to);

    /* The same of one slice for n queries, of which query i sees the first
     * seen[i] rows, 0 to MB_BLOCK_ROWS. room: ATTENTION_ROOM_FLOATS. */
    void (*many)(struct slice_shape shape, const uint8_t *slice, const float *q,
        const uint8_t *seen, size_t n, struct partial *to, float *room);

    /* z (n, 64), in steps of ldz = q (n, head_dim) x keys (head_dim, 64) in
     * fp16; n up to ATTENTION_MAX_ROWS, room as for `many`. */
    void (*scores)(size_t head_dim, const uint8_t *keys, const float *q,
        size_t n, float *z, size_t ldz, float *room);
};

/* Room for keys and values of a slice in float, and scores of a tile. */
#define ATTENTION_ROOM_FLOATS                                                  \
    (2 * MB_BLOCK_ROWS * ATTENTION_MAX_HEAD +                                  \
        ATTENTION_MAX_ROWS * MB_BLOCK_ROWS)

/* Kernels of a level; NULL if this CPU or build has it not. */
const struct attention *attention_at(compute_level level);
const struct attention *attention_best(void);

/* Make n partials empty; width of o is head_dim. */
void partial_clear(struct partial *p, size_t n, size_t head_dim);
/* to = merge(to, from), query by query. */
void partial_merge(
    struct partial *to, const struct partial *from, size_t n, size_t head_dim);
/* out (n, head_dim) = o / l; zero where nothing was seen. */
void partial_finish(
    const struct partial *p, size_t n, size_t head_dim, float *out);

/* The plain level, from ref_attention.c. */
extern const struct attention attention_plain;
void attention_plain_store(struct slice_shape shape, uint8_t *slice, size_t row,
    const float *key, const float *value);
/* A row as it was stored. */
void attention_plain_read(struct slice_shape shape, const uint8_t *slice,
    size_t row, float *key, float *value);

#endif
