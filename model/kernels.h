/* SPDX-License-Identifier: Apache-2.0
 * model/kernels.h - inner loops that exist in several versions.
 *
 * kernels_best() gives the fastest that this machine runs; kernels_plain() the
 * plain twins of ref_kernels.c, which say in a few lines what is computed.
 * Tests compare the two. Private to this folder. Threads: any. */
#ifndef MB_MODEL_KERNELS_H
#define MB_MODEL_KERNELS_H

#include "mb_base.h"

/* Widths are multiples of this many columns. */
#define KERNEL_WIDTH 32

struct kernels {
    const char *name;
    /* out (width) = sum over i < n of val[i] * X[index[i]][0..width), where
     * rows of X are ld floats apart: one row of sparse x dense. */
    void (*gather)(const uint32_t *index, const float *val, size_t n,
        const float *X, size_t ld, size_t width, float *out);
    /* out (width) += sum over i < n of weight[i] * codes[row[i]][0..width),
     * rows of codes being width bytes apart: folding in. */
    void (*fold)(const uint32_t *row, const float *weight, size_t n,
        const int8_t *codes, size_t width, float *out);
};

const struct kernels *kernels_best(void);
const struct kernels *kernels_plain(void);

#endif
