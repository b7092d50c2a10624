/* SPDX-License-Identifier: Apache-2.0
 * model/kernels.c - AVX2 versions of the inner loops, and the choice.
 *
 * Both are sums of scaled rows. Blocks of 64 or 32 columns are summed in
 * registers over all rows before the next block begins, so that nothing is
 * written in between; the rows of the next few steps are fetched ahead, as
 * their addresses jump about. */
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define AHEAD 8 /* rows fetched ahead */

#define AVX2 __attribute__((target("avx2,fma")))

/* Fetch `bytes` of the row that comes AHEAD steps later. */
static inline void
fetch(const char *p, size_t bytes)
{
    for (size_t k = 0; k < bytes; k += 64)
        _mm_prefetch(p + k, _MM_HINT_T0);
}

AVX2 static void
gather_64(const uint32_t *index, const float *val, size_t n, const float *X,
    size_t ld, float *out)
{
    __m256 sum[8];
    for (size_t k = 0; k < 8; k++)
        sum[k] = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i++) {
        const float *x = X + index[i] * ld;
        __m256 v = _mm256_set1_ps(val[i]);
        if (i + AHEAD < n)
            fetch((const char *)(X + index[i + AHEAD] * ld), 256);
        for (size_t k = 0; k < 8; k++)
            sum[k] = _mm256_fmadd_ps(v, _mm256_loadu_ps(x + 8 * k), sum[k]);
    }
    for (size_t k = 0; k < 8; k++)
        _mm256_storeu_ps(out + 8 * k, sum[k]);
}

AVX2 static void
gather_32(const uint32_t *index, const float *val, size_t n, const float *X,
    size_t ld, float *out)
{
    __m256 sum[4];
    for (size_t k = 0; k < 4; k++)
        sum[k] = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i++) {
        const float *x = X + index[i] * ld;
        __m256 v = _mm256_set1_ps(val[i]);
        if (i + AHEAD < n)
            fetch((const char *)(X + index[i + AHEAD] * ld), 128);
        for (size_t k = 0; k < 4; k++)
            sum[k] = _mm256_fmadd_ps(v, _mm256_loadu_ps(x + 8 * k), sum[k]);
    }
    for (size_t k = 0; k < 4; k++)
        _mm256_storeu_ps(out + 8 * k, sum[k]);
}

static void
avx2_gather(const uint32_t *index, const float *val, size_t n, const float *X,
    size_t ld, size_t width, float *out)
{
    size_t j = 0;
    for (; j + 64 <= width; j += 64)
        gather_64(index, val, n, X + j, ld, out + j);
    for (; j < width; j += 32)
        gather_32(index, val, n, X + j, ld, out + j);
}

/* Eight codes as floats. */
AVX2 static inline __m256
eight_codes(const int8_t *p)
{
    __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)p);
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

/* 32 columns from j on. The first block also fetches ahead for those that
 * follow. */
AVX2 static void
fold_32(const uint32_t *row, const float *weight, size_t n, const int8_t *codes,
    size_t width, size_t j, float *out)
{
    __m256 sum[4];
    for (size_t k = 0; k < 4; k++)
        sum[k] = _mm256_loadu_ps(out + j + 8 * k);
    for (size_t i = 0; i < n; i++) {
        const int8_t *c = codes + row[i] * width + j;
        __m256 w = _mm256_set1_ps(weight[i]);
        if (j == 0 && i + AHEAD < n)
            fetch((const char *)(codes + row[i + AHEAD] * width), width);
        for (size_t k = 0; k < 4; k++)
            sum[k] = _mm256_fmadd_ps(w, eight_codes(c + 8 * k), sum[k]);
    }
    for (size_t k = 0; k < 4; k++)
        _mm256_storeu_ps(out + j + 8 * k, sum[k]);
}

static void
avx2_fold(const uint32_t *row, const float *weight, size_t n,
    const int8_t *codes, size_t width, float *out)
{
    for (size_t j = 0; j < width; j += 32)
        fold_32(row, weight, n, codes, width, j, out);
}

const struct kernels *
kernels_best(void)
{
    static const struct kernels avx2 = {"avx2", avx2_gather, avx2_fold};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &avx2;
    return kernels_plain();
}

#else

const struct kernels *
kernels_best(void)
{
    return kernels_plain();
}

#endif
