/* SPDX-License-Identifier: Apache-2.0
 * model/ref_bank.c - the plain twin of bank_x86.c: no intrinsics. Sums are
 * double, as in ref_compute.c. */
#include "bank_block.h"

#include <string.h>

/* Weight (j, c) of the types that memory blocks have. */
static float
weight_at(const struct tensor *W, size_t j, size_t c)
{
    const uint8_t *row = W->data + j * W->row_bytes;
    if (W->type == TENSOR_Q8_0) {
        const uint8_t *block = row + c / 32 * 34;
        return mb_half_to_float(mb_get_le16(block)) *
               (float)(int8_t)block[2 + c % 32];
    }
    if (W->type == TENSOR_F32)
        return mb_get_lef32(row + 4 * c);
    uint32_t bits = (uint32_t)mb_get_le16(row + 2 * c) << 16;
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

void
bank_out_plain(const struct tensor *W, size_t first, size_t last,
    const float *h, size_t ldh, size_t n, float *y, size_t ldy, float *room)
{
    (void)room;
    for (size_t r = 0; r < n; r++) {
        for (size_t c = first; c < last; c++) {
            double sum = 0;
            for (size_t j = 0; j < W->n_rows; j++)
                sum += (double)h[r * ldh + j] * (double)weight_at(W, j, c);
            y[r * ldy + c] = (float)((double)y[r * ldy + c] + sum);
        }
    }
}
