/* SPDX-License-Identifier: Apache-2.0
 * model/many_x86.h - tiles of mul_many for x86-64: what goes over a panel.
 *
 * A panel has sixteen outputs, side by side. Of floats it is [column][output].
 * Of codes it is blocks of 32 columns: int16 [column / 2][output][column % 2],
 * then two times sixteen floats: scales [output]; behind them offsets in Q4_K;
 * in Q6_K scales of the first 16 columns, then of the others.
 *
 * Private to compute_x86*.c. */
#ifndef MB_MODEL_MANY_X86_H
#define MB_MODEL_MANY_X86_H

#include "compute.h"

#define PANEL         16u /* outputs */
#define BLOCK_COLUMNS 32u
#define SCALES_AT     1024u
#define OFFSETS_AT    (SCALES_AT + 64u)
#define BLOCK_BYTES   (SCALES_AT + 128u)

/* Rows of activations from a block on. */
struct code_rows {
    const int16_t *code;
    const float *scale;
    const float *sum;
    size_t n_cols;
    size_t n_blocks; /* floats from row to row of scale and sum */
};

/* y (n, PANEL) += n rows times a panel; n is the function's own. */
typedef void (*code_fn)(const uint8_t *panel, size_t n_blocks,
    const struct code_rows *x, float *y, size_t ldy);
typedef void (*float_fn)(const float *panel, size_t n_cols, const float *x,
    size_t ldx, float *y, size_t ldy);

/* Functions for n rows at [n - 1], up to code_rows or float_rows. */
struct tiles {
    const code_fn *q_0; /* Q8_0, Q5_0 and Q4_0 */
    const code_fn *q4_k;
    const code_fn *q6_k;
    const float_fn *floats;
    size_t code_rows;
    size_t float_rows;
};

#define MAX_TILE_ROWS 12u

void many_with_tiles(const struct tiles *tiles, const struct tensor *W,
    size_t first, size_t last, const struct activations *a, float *y,
    size_t ldy, float *room);

#endif
