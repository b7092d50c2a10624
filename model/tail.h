/* SPDX-License-Identifier: Apache-2.0
 * model/tail.h - the blocks that were not chosen, by their statistics.
 *
 * A block that a row does not choose still has a share of its attention. The
 * tail gives it one row in the shared softmax: its value the mean of the block's
 * values, its logit either that of its landmark, or what the block's rows would
 * sum up to if their keys were normally distributed:
 *     q . mean key + log 63 + 1/2 sum_j q_j^2 variance_j        (q scaled)
 * (The indirect term of Combiner, Ren et al. 2021, over landmark blocks.)
 * Statistics are of keys as they lie, turned by their row in the block, so that
 * the same turned query meets them as it meets the block's landmark.
 * Private to this folder. Threads: stateless. */
#ifndef MB_MODEL_TAIL_H
#define MB_MODEL_TAIL_H

#include "landmark.h"
#include "mb_context.h"

/* For each value of head_dim: a mean key, a variance of keys, a mean value. */
#define TAIL_PARTS 3u
/* Largest head_dim: two parts are a query's. */
#define TAIL_MAX_HEAD (ATTENTION_MAX_HEAD / 2)

/* Statistics (3, head_dim) of the first 63 rows of a slice. */
void tail_measure(struct slice_shape shape, const uint8_t *slice, float *out);

/* Queries that see blocks by a table of statistics (width 3 * head_dim). */
struct tail_view {
    const struct landmark_table *tails;
    const struct landmark_table *landmarks;
    const struct attention *attention;
    size_t table;
    mb_tail kind;
};

/* Merge into `to` what n queries, q (n, head_dim), see of blocks
 * [0, n_blocks) but those in skip[i], which may be NULL. room: for attention,
 * more: tail_room_floats. n up to ATTENTION_MAX_ROWS. */
void tail_attend(const struct tail_view *view, const float *q, size_t n,
    size_t n_blocks, const struct landmark_choice *const *skip,
    struct partial *to, float *room, float *more);
size_t tail_room_floats(size_t head_dim);
/* One query and block: its logit; value (head_dim) is its mean value. */
float tail_block(
    const struct tail_view *view, const float *q, size_t block, float *value);

#endif
