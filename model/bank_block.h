/* SPDX-License-Identifier: Apache-2.0
 * model/bank_block.h - memory blocks as the passes and the trainer see them.
 *
 * Private to this folder and model/train/. Threads: stateless. */
#ifndef MB_MODEL_BANK_BLOCK_H
#define MB_MODEL_BANK_BLOCK_H

#include "compute.h"
#include "mb_bank.h"

typedef enum bank_part {
    BANK_GATE = 0,
    BANK_UP = 1,
    BANK_DOWN = 2,
    BANK_N_PARTS = 3
} bank_part;

/* A matrix (rows, d_model) of the block, where it lies. layer counts from the
 * block's first. */
struct tensor bank_matrix(
    const struct mb_bank_block *block, size_t layer, bank_part part);
/* Whether a model of this shape can have the block attached. Errors: BAD_ARG
 * (says what does not fit). */
MB_MUST_USE mb_status bank_check_fits(const struct mb_bank_block *block,
    size_t d_model, size_t n_layers, struct mb_error *err);
/* Write the header of a record whose weights lie behind it already. */
void bank_seal(struct mb_bank_block block, uint8_t *record);
/* Write n weights into data in the type; n a multiple of its block. */
void bank_encode(mb_bank_type type, const float *x, size_t n, uint8_t *data);

/* ---- the way out of a block ---- */

/* y (n, ldy), columns [first, last) += h (n, ldh) W, for W (rows, d_model) of
 * type F32, BF16 or Q8_0: y[r][c] += sum over j of h[r][j] W[j][c], in the
 * order of j. What a column gets does not depend on n, first and last: results
 * do not depend on batch mates or tiles. first is a multiple of 8. room:
 * BANK_ROOM_FLOATS. */
typedef void (*bank_out_fn)(const struct tensor *W, size_t first, size_t last,
    const float *h, size_t ldh, size_t n, float *y, size_t ldy, float *room);

#define BANK_ROOM_FLOATS 32768u

void bank_out_plain(const struct tensor *W, size_t first, size_t last,
    const float *h, size_t ldh, size_t n, float *y, size_t ldy, float *room);
/* The best that this CPU has. */
bank_out_fn bank_out_best(void);

#endif
