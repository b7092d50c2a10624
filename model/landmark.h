/* SPDX-License-Identifier: Apache-2.0
 * model/landmark.h - landmark keys of all committed blocks, and their search.
 *
 * A table for each layer and key-value head. Keys lie in fp16, as they were
 * rounded when their block was closed, 64 blocks to a panel, (head_dim, 64) as
 * in a slice: a scan reads each table's part of a panel in one run. Scores are
 * exact, all of them are computed: 32 tables of 16,000 keys, a million tokens,
 * are 31 MB to read.
 * Private to this folder. Threads: readers together, or one writer. */
#ifndef MB_MODEL_LANDMARK_H
#define MB_MODEL_LANDMARK_H

#include "attention.h"

#define LANDMARK_MAX_K 16u

struct landmark_table {
    size_t n_tables;
    size_t head_dim;
    size_t n; /* blocks */
    size_t n_panels;
    size_t capacity;  /* of panels */
    uint8_t **panels; /* each (n_tables, head_dim, 64) fp16 */
};

/* Ordinals that were chosen, rising. */
struct landmark_choice {
    uint32_t n;
    uint32_t ordinals[LANDMARK_MAX_K];
};

void landmark_init(struct landmark_table *t, size_t n_tables, size_t head_dim);
void landmark_fini(struct landmark_table *t);
size_t landmark_bytes(const struct landmark_table *t);
/* Room for blocks up to n. Errors: NOMEM. */
MB_MUST_USE mb_status landmark_reserve(struct landmark_table *t, size_t n);
/* Append one block's keys (n_tables, head_dim), fp16, little-endian. There is
 * room. */
void landmark_append(struct landmark_table *t, const uint8_t *keys);
/* Forget blocks from n on. */
void landmark_truncate(struct landmark_table *t, size_t n);
/* Make the empty table `to`, which has room, one of the first n blocks. */
void landmark_copy(
    struct landmark_table *to, const struct landmark_table *from, size_t n);
/* Keys of the 64 blocks from `first` on, a multiple of 64: (head_dim, 64) fp16,
 * of which those behind the last block are undefined, but finite. */
const uint8_t *landmark_panel(
    const struct landmark_table *t, size_t table, size_t first);
/* One key (head_dim). */
void landmark_key(
    const struct landmark_table *t, size_t table, size_t block, float *out);

/* z (n, ldz): logits of n queries q (n, head_dim) with the first n_blocks
 * blocks of a table. n up to ATTENTION_MAX_ROWS; z has room up to a multiple of
 * 64 blocks, what lies behind n_blocks is undefined. room as for `many`. */
void landmark_scores(const struct landmark_table *t,
    const struct attention *attention, size_t table, const float *q, size_t n,
    size_t n_blocks, float *z, size_t ldz, float *room);

/* The k largest of z (n), k at most LANDMARK_MAX_K; of equal ones the older.
 * NaN is never chosen. */
void landmark_choose(
    const float *z, size_t n, size_t k, struct landmark_choice *out);

/* Slots (see context.h) of one of n blocks where k are chosen, k <= n: the one
 * that it is scored in, and the one that it is used in as the chosen block
 * `rank`, counted from the oldest. */
static inline size_t
landmark_scored_slot(size_t n, size_t k, size_t block)
{
    return block < n - k ? 0 : block - (n - k) + 1;
}

static inline size_t
landmark_used_slot(size_t n, size_t k, size_t block, size_t rank)
{
    return block < n - k ? rank : rank + 1;
}

/* best[b] = max(best[b], log of z's softmax at b). */
void landmark_share(
    const struct compute *compute, const float *z, size_t n, float *best);

#endif
