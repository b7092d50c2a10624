/* SPDX-License-Identifier: Apache-2.0
 * model/compute.h - the arithmetic of a transformer's layers, for each CPU.
 *
 * Weights are read as they lie in the GGUF map. Two ways to multiply by them:
 * few rows of activations (decoding, bound by the reading of weights) and many
 * rows (prefill, bound by arithmetic).
 *
 * What must stay true: a row of a result depends on that row of the input and
 * on W alone, bit for bit: not on how many rows go together, on their place
 * among them, or on how [first, last) is cut. So results do not depend on
 * batch mates or on the number of threads. The two ways differ from one
 * another by rounding, and so do the levels.
 *
 * Against quantised weights activations are rounded to int16 with a scale for
 * 32 of them, which is 256 times finer than the int8 that llama.cpp takes. In
 * both ways: AVX2 multiplies int16 in pairs, twice as many at a time as floats.
 *
 * Private to this folder. Threads: stateless, call from any. */
#ifndef MB_MODEL_COMPUTE_H
#define MB_MODEL_COMPUTE_H

#include "mb_model.h"

/* ---- tensor types ---- */

/* Numbers of ggml. */
typedef enum tensor_type {
    TENSOR_F32 = 0,
    TENSOR_F16 = 1,
    TENSOR_Q4_0 = 2,
    TENSOR_Q5_0 = 6,
    TENSOR_Q8_0 = 8,
    TENSOR_Q4_K = 12,
    TENSOR_Q6_K = 14,
    TENSOR_BF16 = 30
} tensor_type;

/* A matrix (n_rows, n_cols) row-major in the map: y = W x has n_rows values.
 * n_cols is a multiple of the type's block. data may have any alignment. */
struct tensor {
    const uint8_t *data;
    size_t n_rows;
    size_t n_cols;
    size_t row_bytes;
    tensor_type type;
};

/* Values in a block and bytes of one; 0 for a type that is not read here. */
size_t tensor_block_values(tensor_type type);
size_t tensor_block_bytes(tensor_type type);
const char *tensor_type_name(tensor_type type);

/* ---- activations ---- */

#define ACT_BLOCK 32

/* n rows of n_cols activations. `x` is always there; the rest only if made by
 * act_quantize for quantised weights. All owned by the caller. */
struct activations {
    const float *x; /* (n, ld), ld >= n_cols */
    size_t ld;
    size_t n;
    int16_t *code; /* (n, n_cols): x = code * scale */
    float *scale;  /* (n, n_cols / ACT_BLOCK) */
    float *sum;    /* (n, n_cols / ACT_BLOCK): scale * sum of the codes */
};

/* Room that mul_many needs from each thread, in floats, whatever the shape. */
#define MUL_ROOM_FLOATS 65536

typedef enum compute_level {
    COMPUTE_PLAIN = 0,
    COMPUTE_AVX2 = 1,   /* with FMA and F16C */
    COMPUTE_AVX512 = 2, /* F and VNNI; same bits as AVX2 */
    COMPUTE_N_LEVELS
} compute_level;

struct compute {
    const char *name;

    /* Fill code, scale and sum of rows [first, last) from x. */
    void (*quantize)(
        const struct activations *a, size_t n_cols, size_t first, size_t last);

    /* Outputs [first, last) of W for all rows of a: y[r * ldy + o] for r < n.
     * a must be quantised if W is. */
    void (*mul_few)(const struct tensor *W, size_t first, size_t last,
        const struct activations *a, float *y, size_t ldy);

    /* The same for many rows, unpacking W; room as above, 64-aligned. */
    void (*mul_many)(const struct tensor *W, size_t first, size_t last,
        const struct activations *a, float *y, size_t ldy, float *room);

    /* Row `row` of W as floats (n_cols). */
    void (*row)(const struct tensor *W, size_t row, float *out);

    /* out = x / sqrt(mean(x^2) + eps) * w, n values; out may be x. */
    void (*rms_norm)(
        const float *x, const float *w, size_t n, float eps, float *out);

    /* Turn pairs of x (n_rot values of one head) by angles given as cosines and
     * sines (n_rot / 2): neighbours (2i, 2i+1), or halves (i, i + n_rot/2). */
    void (*rope_pairs)(
        float *x, size_t n_rot, const float *cosine, const float *sine);
    void (*rope_halves)(
        float *x, size_t n_rot, const float *cosine, const float *sine);

    /* out = gate / (1 + exp(-gate)) * up, n values; out may be gate. */
    void (*swiglu)(const float *gate, const float *up, size_t n, float *out);

    /* x += y. */
    void (*add)(float *x, const float *y, size_t n);

    /* Largest of n values, and log of the sum of their exponentials. NaN gives
     * NaN. */
    float (*log_sum_exp)(const float *x, size_t n);
};

/* Kernels of a level; NULL if this CPU or build has it not. */
const struct compute *compute_at(compute_level level);
/* The best that this CPU has. */
const struct compute *compute_best(void);

#endif
