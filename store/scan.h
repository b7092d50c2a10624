/* SPDX-License-Identifier: Apache-2.0
 * store/scan.h - the inner loops of dense search, for each kind of CPU.
 *
 * A vector is stored twice: as int8 codes with one scale (what a scan reads)
 * and as fp16 (what the best of a scan are rescored with). All kernels take
 * unaligned bytes straight from the memory map. Each has a plain twin that
 * tests compare the others with; scan_best() picks at run time.
 * Threads: stateless, call from any. */
#ifndef STORE_SCAN_H
#define STORE_SCAN_H

#include "mb_base.h"

/* Codes of one vector fill a row of this many bytes, zeros behind dim: kernels
 * need no tail. */
#define SCAN_ROW_ALIGN 32

static inline size_t
scan_stride(size_t dim)
{
    return (dim + SCAN_ROW_ALIGN - 1) / SCAN_ROW_ALIGN * SCAN_ROW_ALIGN;
}

typedef enum scan_level {
    SCAN_PLAIN = 0,
    SCAN_AVX2 = 1,   /* with FMA and F16C */
    SCAN_AVX512 = 2, /* with BW, VL and VNNI */
    SCAN_N_LEVELS
} scan_level;

/* Running sums over all scores of a scan. */
struct scan_sums {
    double sum;
    double sum_squares;
    uint64_t n;
};

struct scan_kernels {
    const char *name;
    /* out[i] = q . codes[i], both int8 within [-127, 127], for n rows of
     * `stride` bytes (a multiple of SCAN_ROW_ALIGN, below 2^16). */
    void (*dot_i8)(const int8_t *q, const int8_t *codes, size_t n,
        size_t stride, int32_t *out);
    /* out[i] = dots[i] * (q_scale * scales[i]), scales little-endian f32.
     * Adds to sums; returns the largest score (-INFINITY if n is 0). */
    float (*scale)(const int32_t *dots, float q_scale, const uint8_t *scales,
        size_t n, float *out, struct scan_sums *sums);
    /* q . x, x as dim little-endian fp16. */
    float (*dot_f16)(const float *q, const uint8_t *x, size_t dim);
    /* out[i] = q . rows[i], n rows of dim floats. */
    void (*dot_f32)(
        const float *q, const float *rows, size_t n, size_t dim, float *out);
    /* To and from little-endian fp16, rounding to nearest even. */
    void (*to_f16)(const float *x, size_t n, uint8_t *out);
    void (*from_f16)(const uint8_t *x, size_t n, float *out);
};

/* Kernels of a level; NULL if this CPU or build has it not. */
const struct scan_kernels *scan_at(scan_level level);
/* The best that this CPU has. */
const struct scan_kernels *scan_best(void);

/* int8 codes of x (dim) into a row of scan_stride(dim) bytes; returns the
 * scale: x[i] is about scale * codes[i]. All zero: scale 0. */
float scan_quantize(const float *x, size_t dim, int8_t *codes);

#endif
