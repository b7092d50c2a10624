/* SPDX-License-Identifier: Apache-2.0
 * model/tail.c - see tail.h.
 *
 * Logits of a panel of 64 blocks come from the kernel that scores landmarks:
 * the query and the halves of its squares against mean keys and variances, in
 * one product of twice the width. What follows is a small part of the work and
 * plain: a softmax over the panel, merged into what was seen before. */
#include "tail.h"

#include <math.h>
#include <string.h>

#define ROWS     ((size_t)MB_CONTEXT_BLOCK_TOKENS) /* of a block that count */
#define HALF_MAX 65504.0 /* statistics are kept in fp16 */

void
tail_measure(struct slice_shape shape, const uint8_t *slice, float *out)
{
    static const size_t n = ROWS;
    float key[ATTENTION_MAX_HEAD];
    float value[ATTENTION_MAX_HEAD];
    double sum[TAIL_PARTS][ATTENTION_MAX_HEAD] = {{0}};
    size_t dim = shape.head_dim;
    for (size_t r = 0; r < n; r++) {
        attention_plain_read(shape, slice, r, key, value);
        for (size_t j = 0; j < dim; j++) {
            sum[0][j] += (double)key[j];
            sum[1][j] += (double)key[j] * (double)key[j];
            sum[2][j] += (double)value[j];
        }
    }
    for (size_t j = 0; j < dim; j++) {
        double mean = sum[0][j] / (double)n;
        double variance = sum[1][j] / (double)n - mean * mean;
        out[j] = (float)mean;
        variance = variance > 0 ? variance : 0;
        out[dim + j] = (float)(variance < HALF_MAX ? variance : HALF_MAX);
        out[2 * dim + j] = (float)(sum[2][j] / (double)n);
    }
}

size_t
tail_room_floats(size_t head_dim)
{
    // Queries and their squares, logits; values of a panel.
    return ATTENTION_MAX_ROWS * (2 * head_dim + MB_BLOCK_ROWS) +
           MB_BLOCK_ROWS * head_dim;
}

/* Logits (n, 64) of a panel of blocks. */
static void
panel_logits(const struct tail_view *view, const float *q, const float *wide,
    size_t n, size_t first, float *z, float *room)
{
    size_t dim = view->landmarks->head_dim;
    if (view->kind == MB_TAIL_LANDMARK) {
        view->attention->scores(dim,
            landmark_panel(view->landmarks, view->table, first), q, n, z,
            MB_BLOCK_ROWS, room);
        return;
    }
    view->attention->scores(2 * dim,
        landmark_panel(view->tails, view->table, first), wide, n, z,
        MB_BLOCK_ROWS, room);
    for (size_t i = 0; i < n * MB_BLOCK_ROWS; i++)
        z[i] += logf((float)ROWS);
}

/* Merge one query's logits (64; -inf: not seen) into its partial. */
static void
merge_panel(const float *z, const float *values, size_t dim, struct partial to)
{
    float max = -INFINITY;
    for (size_t b = 0; b < MB_BLOCK_ROWS; b++)
        max = z[b] > max ? z[b] : max;
    if (max == -INFINITY)
        return;
    if (max > *to.m) {
        float shrink = expf(*to.m - max);
        *to.l *= shrink;
        for (size_t j = 0; j < dim; j++)
            to.o[j] *= shrink;
        *to.m = max;
    }
    for (size_t b = 0; b < MB_BLOCK_ROWS; b++) {
        float weight = expf(z[b] - *to.m);
        *to.l += weight;
        for (size_t j = 0; j < dim; j++)
            to.o[j] += weight * values[b * dim + j];
    }
}

/* Mean values (64, dim) of a panel, whose blocks lie side by side. */
static void
panel_values(const struct tail_view *view, size_t first, float *out)
{
    size_t dim = view->landmarks->head_dim;
    const uint8_t *halves = landmark_panel(view->tails, view->table, first) +
                            2 * (2 * dim) * MB_BLOCK_ROWS;
    for (size_t j = 0; j < dim; j++) {
        for (size_t b = 0; b < MB_BLOCK_ROWS; b++)
            out[b * dim + j] = mb_half_to_float(
                mb_get_le16(halves + 2 * (j * MB_BLOCK_ROWS + b)));
    }
}

static void
hide(
    float *z, size_t first, size_t n_blocks, const struct landmark_choice *skip)
{
    for (size_t b = n_blocks - first; b < MB_BLOCK_ROWS; b++)
        z[b] = -INFINITY;
    for (size_t c = 0; skip && c < skip->n; c++) {
        if (skip->ordinals[c] - first < MB_BLOCK_ROWS)
            z[skip->ordinals[c] - first] = -INFINITY;
    }
}

void
tail_attend(const struct tail_view *view, const float *q, size_t n,
    size_t n_blocks, const struct landmark_choice *const *skip,
    struct partial *to, float *room, float *more)
{
    size_t dim = view->landmarks->head_dim;
    float *wide = more;                    /* (n, 2, dim) */
    float *z = wide + n * 2 * dim;         /* (n, 64) */
    float *values = z + n * MB_BLOCK_ROWS; /* (64, dim) */
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < dim; j++) {
            float x = q[i * dim + j];
            wide[i * 2 * dim + j] = x;
            wide[(i * 2 + 1) * dim + j] = x * x / 2;
        }
    }
    for (size_t first = 0; first < n_blocks; first += MB_BLOCK_ROWS) {
        panel_values(view, first, values);
        panel_logits(view, q, wide, n, first, z, room);
        for (size_t i = 0; i < n; i++) {
            hide(z + i * MB_BLOCK_ROWS, first, n_blocks, skip[i]);
            merge_panel(z + i * MB_BLOCK_ROWS, values, dim,
                (struct partial){to->m + i, to->l + i, to->o + i * dim});
        }
    }
}

float
tail_block(
    const struct tail_view *view, const float *q, size_t block, float *value)
{
    float parts[TAIL_PARTS * ATTENTION_MAX_HEAD];
    float key[ATTENTION_MAX_HEAD];
    size_t dim = view->landmarks->head_dim;
    float z = view->kind == MB_TAIL_LANDMARK ? 0 : logf((float)ROWS);
    landmark_key(view->tails, view->table, block, parts);
    landmark_key(view->landmarks, view->table, block, key);
    for (size_t j = 0; j < dim; j++)
        z += view->kind == MB_TAIL_LANDMARK
                 ? q[j] * key[j]
                 : q[j] * (parts[j] + q[j] / 2 * parts[dim + j]);
    memcpy(value, parts + 2 * dim, dim * sizeof(float));
    return z;
}
