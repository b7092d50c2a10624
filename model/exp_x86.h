/* SPDX-License-Identifier: Apache-2.0
 * model/exp_x86.h - exp of eight floats.
 *
 * x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by a polynomial of degree 6
 * (coefficients of Cephes' expf, Moshier 1992), 2^n by its exponent bits.
 * Largest error 2 units in the last place. Below the smallest normal result
 * (x < -87.3, -inf too) it gives 0, above the largest (x > 88.7) +inf, for NaN
 * NaN. Private to this folder; only for x86-64. */
#ifndef MB_MODEL_EXP_X86_H
#define MB_MODEL_EXP_X86_H

#include <immintrin.h>

__attribute__((target("avx2,fma"))) static inline __m256
exp8(__m256 x)
{
    const __m256 low = _mm256_set1_ps(-87.33654f);
    const __m256 high = _mm256_set1_ps(88.72283f);
    const __m256 log2_e = _mm256_set1_ps(1.44269504088896341f);
    /* ln 2 in two parts, the first of few bits: n * first is exact. */
    const __m256 ln2_first = _mm256_set1_ps(0.693359375f);
    const __m256 ln2_rest = _mm256_set1_ps(-2.12194440e-4f);
    const __m256 one = _mm256_set1_ps(1.0f);
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, log2_e),
        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, ln2_first, x);
    r = _mm256_fnmadd_ps(n, ln2_rest, r);
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, one));
    /* In two halves, as 2^128 alone has no exponent. */
    __m256i whole = _mm256_cvtps_epi32(n);
    __m256i half = _mm256_srai_epi32(whole, 1);
    __m256i rest = _mm256_sub_epi32(whole, half);
    __m256i bias = _mm256_set1_epi32(127);
    __m256 a = _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    __m256 b = _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    __m256 y = _mm256_mul_ps(_mm256_mul_ps(p, a), b);
    __m256 is_small = _mm256_cmp_ps(x, low, _CMP_LT_OQ);
    __m256 is_large = _mm256_cmp_ps(x, high, _CMP_GT_OQ);
    __m256 is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    y = _mm256_andnot_ps(is_small, y);
    y = _mm256_blendv_ps(y, _mm256_set1_ps(__builtin_inff()), is_large);
    return _mm256_blendv_ps(y, x, is_nan);
}

#endif
