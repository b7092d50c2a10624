/* SPDX-License-Identifier: Apache-2.0
 * tests/support/tensor_data.h - tensors and activations made from a seed.
 *
 * Bytes of codes are random; the scales in them are small positive numbers, as
 * in real files. Private to tests and benchmarks of model/compute.h. */
#ifndef TENSOR_DATA_H
#define TENSOR_DATA_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "compute.h"

static const tensor_type tensor_types[] = {TENSOR_F32, TENSOR_F16, TENSOR_BF16,
    TENSOR_Q8_0, TENSOR_Q5_0, TENSOR_Q4_0, TENSOR_Q4_K, TENSOR_Q6_K};
#define N_TENSOR_TYPES (sizeof(tensor_types) / sizeof(tensor_types[0]))

static inline float
tensor_random_float(struct mb_rng *rng)
{
    return (float)(mb_rng_double(rng) * 2 - 1);
}

/* One block of the type at p. */
static inline void
tensor_fill_block(tensor_type type, uint8_t *p, struct mb_rng *rng)
{
    uint16_t small = mb_half_from_float((float)(mb_rng_double(rng) / 64));
    float v = tensor_random_float(rng);
    uint32_t bits;
    for (size_t i = 0; i < tensor_block_bytes(type); i++)
        p[i] = (uint8_t)mb_rng_below(rng, 256);
    memcpy(&bits, &v, sizeof(bits));
    switch (type) {
    case TENSOR_F32:
        mb_put_lef32(p, v);
        break;
    case TENSOR_F16:
        mb_put_le16(p, mb_half_from_float(v));
        break;
    case TENSOR_BF16:
        mb_put_le16(p, (uint16_t)(bits >> 16));
        break;
    case TENSOR_Q8_0:
    case TENSOR_Q5_0:
    case TENSOR_Q4_0:
        mb_put_le16(p, small);
        break;
    case TENSOR_Q4_K:
        mb_put_le16(p, small);
        mb_put_le16(p + 2, mb_half_from_float((float)mb_rng_double(rng) / 64));
        break;
    case TENSOR_Q6_K:
        mb_put_le16(p + 208, small);
        break;
    }
}

/* Bytes of a tensor (n_rows, n_cols). */
static inline size_t
tensor_bytes(tensor_type type, size_t n_rows, size_t n_cols)
{
    return n_rows * (n_cols / tensor_block_values(type)) *
           tensor_block_bytes(type);
}

/* Fill `data` (tensor_bytes) and describe it. */
static inline struct tensor
tensor_make(tensor_type type, size_t n_rows, size_t n_cols, uint8_t *data,
    struct mb_rng *rng)
{
    size_t bytes = tensor_block_bytes(type);
    size_t blocks = n_rows * (n_cols / tensor_block_values(type));
    for (size_t i = 0; i < blocks; i++)
        tensor_fill_block(type, data + i * bytes, rng);
    return (struct tensor){
        data, n_rows, n_cols, n_cols / tensor_block_values(type) * bytes, type};
}

#endif
