/* SPDX-License-Identifier: Apache-2.0
 * model/cache.h - keys and values in blocks of MB_BLOCK_ROWS rows.
 *
 * A block holds one slice for each layer and key-value head. In a slice lie
 * the keys transposed, (head_dim, rows), then the values, (rows, head_dim):
 * scores of many rows are summed up side by side, without horizontal sums, and
 * values are added row by row. int8 slices have a float scale for each row
 * behind the keys and behind the values.
 *
 * A block is cleared when it is lent: rows that are not written yet are
 * finite, and attention may compute on them before it masks them.
 * Private to this folder. */
#ifndef MB_MODEL_CACHE_H
#define MB_MODEL_CACHE_H

#include "mb_decoder.h"

/* Values of one element of keys and values in a slice, without scales. */
size_t cache_value_bytes(mb_cache_type type);
/* Bytes of a slice; a multiple of 64. */
size_t cache_slice_bytes(mb_cache_type type, size_t head_dim);

struct mb_cache {
    mb_cache_type type;
    size_t n_layers;
    size_t n_kv_heads;
    size_t head_dim;
    size_t slice_bytes;
    size_t block_bytes;
    size_t max_blocks;
    size_t n_blocks; /* that exist */
    size_t n_used;   /* that sequences hold */
    size_t n_sequences;
    void *free_list; /* blocks that exist and are not lent */
};

struct mb_sequence {
    struct mb_cache *cache;
    size_t length; /* rows */
    size_t n_blocks;
    size_t capacity;  /* of blocks */
    uint8_t **blocks; /* 64-aligned; the last may be partly filled */
    bool is_in_pass;  /* while mb_pass_run looks for doubles */
};

/* Blocks for n more rows. On failure the sequence has as many as before.
 * Errors: TOO_LARGE (the cache lends no more), NOMEM. */
MB_MUST_USE mb_status sequence_reserve(
    struct mb_sequence *seq, size_t n, struct mb_error *err);
/* Give back what is reserved beyond the length. */
void sequence_trim(struct mb_sequence *seq);

static inline uint8_t *
sequence_slice(
    const struct mb_sequence *seq, size_t block, size_t layer, size_t head)
{
    const struct mb_cache *cache = seq->cache;
    return seq->blocks[block] +
           (layer * cache->n_kv_heads + head) * cache->slice_bytes;
}

#endif
