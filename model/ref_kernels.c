/* SPDX-License-Identifier: Apache-2.0
 * model/ref_kernels.c - the plain twins of kernels.c: no intrinsics, no BLAS.
 * They define the result and serve machines without AVX2. */
#include "kernels.h"

static void
plain_gather(const uint32_t *index, const float *val, size_t n, const float *X,
    size_t ld, size_t width, float *out)
{
    for (size_t j = 0; j < width; j++)
        out[j] = 0.0f;
    for (size_t i = 0; i < n; i++) {
        const float *x = X + index[i] * ld;
        for (size_t j = 0; j < width; j++)
            out[j] += val[i] * x[j];
    }
}

static void
plain_fold(const uint32_t *row, const float *weight, size_t n,
    const int8_t *codes, size_t width, float *out)
{
    for (size_t i = 0; i < n; i++) {
        const int8_t *c = codes + row[i] * width;
        for (size_t j = 0; j < width; j++)
            out[j] += weight[i] * (float)c[j];
    }
}

const struct kernels *
kernels_plain(void)
{
    static const struct kernels plain = {"plain", plain_gather, plain_fold};
    return &plain;
}
