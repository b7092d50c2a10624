/* SPDX-License-Identifier: Apache-2.0
 * model/train/vector.c - the plain loops, and those with AVX2. */
#include "vector.h"

#include <math.h>

/* ---- plain ---- */

static float
plain_exp_sum(float *x, size_t n, float shift)
{
    float sum = 0;
    for (size_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - shift);
        sum += x[i];
    }
    return sum;
}

static void
plain_swiglu_back(const float *gate, const float *up, const float *dy, size_t n,
    float *dgate, float *dup)
{
    for (size_t i = 0; i < n; i++) {
        float s = 1 / (1 + expf(-gate[i]));
        if (dgate)
            dgate[i] += dy[i] * up[i] * s * (1 + gate[i] * (1 - s));
        if (dup)
            dup[i] += dy[i] * gate[i] * s;
    }
}

static void
plain_adam(const struct adam *a, float *w, const float *g, float *m, float *v,
    size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float d = g[i] * a->scale;
        m[i] = a->beta1 * m[i] + (1 - a->beta1) * d;
        v[i] = a->beta2 * v[i] + (1 - a->beta2) * d * d;
        float step = m[i] * a->fix1 / (sqrtf(v[i] * a->fix2) + a->eps);
        w[i] -= a->rate * (step + a->decay * w[i]);
    }
}

const struct vector *
vector_plain(void)
{
    static const struct vector plain = {
        "plain", plain_exp_sum, plain_swiglu_back, plain_adam};
    return &plain;
}

/* ---- AVX2 ---- */

#if defined(__x86_64__) && defined(__GNUC__)

#include "../exp_x86.h"

#define TARGET __attribute__((target("avx2,fma")))

TARGET static float
avx2_exp_sum(float *x, size_t n, float shift)
{
    __m256 s = _mm256_set1_ps(shift);
    __m256 sum = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 y = exp8(_mm256_sub_ps(_mm256_loadu_ps(x + i), s));
        _mm256_storeu_ps(x + i, y);
        sum = _mm256_add_ps(sum, y);
    }
    float parts[8];
    _mm256_storeu_ps(parts, sum);
    float rest = plain_exp_sum(x + i, n - i, shift);
    return ((parts[0] + parts[4]) + (parts[1] + parts[5])) +
           ((parts[2] + parts[6]) + (parts[3] + parts[7])) + rest;
}

TARGET static inline __m256
sigmoid8(__m256 g)
{
    __m256 one = _mm256_set1_ps(1);
    __m256 e = exp8(_mm256_sub_ps(_mm256_setzero_ps(), g));
    return _mm256_div_ps(one, _mm256_add_ps(one, e));
}

TARGET static void
avx2_swiglu_back(const float *gate, const float *up, const float *dy, size_t n,
    float *dgate, float *dup)
{
    __m256 one = _mm256_set1_ps(1);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 g = _mm256_loadu_ps(gate + i);
        __m256 d = _mm256_loadu_ps(dy + i);
        __m256 s = sigmoid8(g);
        if (dgate) {
            __m256 slope = _mm256_mul_ps(
                s, _mm256_fmadd_ps(g, _mm256_sub_ps(one, s), one));
            __m256 x = _mm256_mul_ps(d, _mm256_loadu_ps(up + i));
            _mm256_storeu_ps(dgate + i,
                _mm256_fmadd_ps(x, slope, _mm256_loadu_ps(dgate + i)));
        }
        if (dup)
            _mm256_storeu_ps(dup + i, _mm256_fmadd_ps(d, _mm256_mul_ps(g, s),
                                          _mm256_loadu_ps(dup + i)));
    }
    plain_swiglu_back(gate + i, up + i, dy + i, n - i, dgate ? dgate + i : NULL,
        dup ? dup + i : NULL);
}

TARGET static void
avx2_adam(const struct adam *a, float *w, const float *g, float *m, float *v,
    size_t n)
{
    __m256 beta1 = _mm256_set1_ps(a->beta1);
    __m256 beta2 = _mm256_set1_ps(a->beta2);
    __m256 rest1 = _mm256_set1_ps(1 - a->beta1);
    __m256 rest2 = _mm256_set1_ps(1 - a->beta2);
    __m256 eps = _mm256_set1_ps(a->eps);
    __m256 decay = _mm256_set1_ps(a->decay);
    __m256 rate = _mm256_set1_ps(a->rate);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 d =
            _mm256_mul_ps(_mm256_loadu_ps(g + i), _mm256_set1_ps(a->scale));
        __m256 m1 = _mm256_fmadd_ps(
            beta1, _mm256_loadu_ps(m + i), _mm256_mul_ps(rest1, d));
        __m256 v1 = _mm256_fmadd_ps(beta2, _mm256_loadu_ps(v + i),
            _mm256_mul_ps(rest2, _mm256_mul_ps(d, d)));
        __m256 root =
            _mm256_sqrt_ps(_mm256_mul_ps(v1, _mm256_set1_ps(a->fix2)));
        __m256 step = _mm256_div_ps(_mm256_mul_ps(m1, _mm256_set1_ps(a->fix1)),
            _mm256_add_ps(root, eps));
        __m256 x = _mm256_loadu_ps(w + i);
        step = _mm256_fmadd_ps(decay, x, step);
        _mm256_storeu_ps(m + i, m1);
        _mm256_storeu_ps(v + i, v1);
        _mm256_storeu_ps(w + i, _mm256_fnmadd_ps(rate, step, x));
    }
    plain_adam(a, w + i, g + i, m + i, v + i, n - i);
}

const struct vector *
vector_best(void)
{
    static const struct vector avx2 = {
        "avx2", avx2_exp_sum, avx2_swiglu_back, avx2_adam};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &avx2;
    return vector_plain();
}

#else

const struct vector *
vector_best(void)
{
    return vector_plain();
}

#endif
