/* SPDX-License-Identifier: Apache-2.0
 * model/compute_x86.h - private to compute*.c: the levels beside the plain
 * one. */
#ifndef MB_MODEL_COMPUTE_X86_H
#define MB_MODEL_COMPUTE_X86_H

#include "compute.h"

/* The plain twins, which every CPU has. */
const struct compute *compute_plain(void);

/* NULL where the CPU, or this build, has them not. */
const struct compute *compute_x86_avx2(void);
const struct compute *compute_x86_avx512(void);

/* Parts of the levels that have files of their own. */
void avx512_mul_many(const struct tensor *W, size_t first, size_t last,
    const struct activations *a, float *y, size_t ldy, float *room);
void avx2_mul_few(const struct tensor *W, size_t first, size_t last,
    const struct activations *a, float *y, size_t ldy);
void avx2_mul_many(const struct tensor *W, size_t first, size_t last,
    const struct activations *a, float *y, size_t ldy, float *room);

#endif
