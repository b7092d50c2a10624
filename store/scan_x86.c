/* SPDX-License-Identifier: Apache-2.0
 * store/scan_x86.c - scan kernels with AVX2 and AVX-512 VNNI.
 *
 * Each function carries its own target attribute, so that the rest of the
 * program stays baseline x86-64 and a CPU without these never runs them.
 *
 * int8 x int8 on AVX2: vpmaddubsw wants one unsigned side, so |q| is
 * multiplied with sign(x, q). A pair sums to at most 2 * 127 * 127 = 32,258:
 * no saturation, the result is exact. On VNNI, vpdpbusd takes x + 128 (an xor
 * with 0x80) as the unsigned side; 128 * sum(q) is taken off once a query.
 * Four rows go through at a time: they share the loads of q and one transposed
 * horizontal sum. */
#include "scan_x86.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>
#include <math.h>

/* Lists lie in the map page by page, and hardware stops fetching ahead at a
 * page's end: lines of the rows to come are asked for this far ahead. Past the
 * last row that is harmless. */
#define PREFETCH_BYTES 2048

#define TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define TARGET_AVX512                                                          \
    __attribute__((                                                            \
        target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")))

static inline void
prefetch_rows(const int8_t *x, size_t bytes)
{
    const char *ahead = (const char *)x + PREFETCH_BYTES;

    for (size_t i = 0; i < bytes; i += 64) {
        _mm_prefetch(ahead + i, _MM_HINT_T0);
    }
}

/* ---- AVX2 ---- */

/* Sums of four vectors of eight int32, as one vector of four. */
TARGET_AVX2 static inline __m128i
sum4_epi32(__m256i a, __m256i b, __m256i c, __m256i d)
{
    __m256i ab = _mm256_hadd_epi32(a, b);
    __m256i cd = _mm256_hadd_epi32(c, d);
    __m256i abcd = _mm256_hadd_epi32(ab, cd);

    return _mm_add_epi32(
        _mm256_castsi256_si128(abcd), _mm256_extracti128_si256(abcd, 1));
}

/* acc + products of 32 codes, given |q| and q. */
TARGET_AVX2 static inline __m256i
madd_i8(__m256i acc, __m256i q_abs, __m256i q, const int8_t *x)
{
    __m256i row = _mm256_loadu_si256((const __m256i *)(const void *)x);
    __m256i pairs = _mm256_maddubs_epi16(q_abs, _mm256_sign_epi8(row, q));

    return _mm256_add_epi32(
        acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

TARGET_AVX2 static void
avx2_dot_i8(
    const int8_t *q, const int8_t *codes, size_t n, size_t stride, int32_t *out)
{
    size_t i = 0;

    for (; i + 4 <= n; i += 4) {
        const int8_t *x = codes + i * stride;
        __m256i a = _mm256_setzero_si256();
        __m256i b = _mm256_setzero_si256();
        __m256i c = _mm256_setzero_si256();
        __m256i e = _mm256_setzero_si256();

        prefetch_rows(x, 4 * stride);
        for (size_t d = 0; d < stride; d += 32) {
            __m256i v =
                _mm256_loadu_si256((const __m256i *)(const void *)(q + d));
            __m256i v_abs = _mm256_abs_epi8(v);

            a = madd_i8(a, v_abs, v, x + d);
            b = madd_i8(b, v_abs, v, x + stride + d);
            c = madd_i8(c, v_abs, v, x + 2 * stride + d);
            e = madd_i8(e, v_abs, v, x + 3 * stride + d);
        }
        _mm_storeu_si128((__m128i *)(void *)(out + i), sum4_epi32(a, b, c, e));
    }
    for (; i < n; i++) {
        __m256i a = _mm256_setzero_si256();

        for (size_t d = 0; d < stride; d += 32) {
            __m256i v =
                _mm256_loadu_si256((const __m256i *)(const void *)(q + d));

            a = madd_i8(a, _mm256_abs_epi8(v), v, codes + i * stride + d);
        }
        out[i] = _mm_cvtsi128_si32(sum4_epi32(a, a, a, a));
    }
}

/* Sum and largest of eight floats. */
TARGET_AVX2 static inline float
sum_ps(__m256 v)
{
    __m128 s =
        _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));

    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s = _mm_add_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}

TARGET_AVX2 static inline float
max_ps(__m256 v)
{
    __m128 s =
        _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));

    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    s = _mm_max_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}

TARGET_AVX2 static float
avx2_scale(const int32_t *dots, float q_scale, const uint8_t *scales, size_t n,
    float *out, struct scan_sums *sums)
{
    __m256 factor = _mm256_set1_ps(q_scale);
    __m256 best8 = _mm256_set1_ps(-INFINITY);
    __m256 sum8 = _mm256_setzero_ps();
    __m256 squares8 = _mm256_setzero_ps();
    float best;
    float sum;
    float squares;
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        __m256 d = _mm256_cvtepi32_ps(
            _mm256_loadu_si256((const __m256i *)(const void *)(dots + i)));
        __m256 c =
            _mm256_loadu_ps((const float *)(const void *)(scales + 4 * i));
        __m256 s = _mm256_mul_ps(d, _mm256_mul_ps(factor, c));

        _mm256_storeu_ps(out + i, s);
        best8 = _mm256_max_ps(best8, s);
        sum8 = _mm256_add_ps(sum8, s);
        squares8 = _mm256_fmadd_ps(s, s, squares8);
    }
    best = max_ps(best8);
    sum = sum_ps(sum8);
    squares = sum_ps(squares8);
    for (; i < n; i++) {
        float s = (float)dots[i] * (q_scale * mb_get_lef32(scales + 4 * i));

        out[i] = s;
        best = s > best ? s : best;
        sum += s;
        squares += s * s;
    }
    sums->sum += (double)sum;
    sums->sum_squares += (double)squares;
    sums->n += n;
    return best;
}

TARGET_AVX2 static inline __m256
load_f16(const uint8_t *x)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)x));
}

TARGET_AVX2 static inline float
one_from_f16(const uint8_t *x)
{
    return _cvtsh_ss(mb_get_le16(x));
}

TARGET_AVX2 static float
avx2_dot_f16(const float *q, const uint8_t *x, size_t dim)
{
    __m256 a = _mm256_setzero_ps();
    __m256 b = _mm256_setzero_ps();
    float sum;
    size_t d = 0;

    for (; d + 16 <= dim; d += 16) {
        a = _mm256_fmadd_ps(_mm256_loadu_ps(q + d), load_f16(x + 2 * d), a);
        b = _mm256_fmadd_ps(
            _mm256_loadu_ps(q + d + 8), load_f16(x + 2 * d + 16), b);
    }
    sum = sum_ps(_mm256_add_ps(a, b));
    for (; d < dim; d++) {
        sum += q[d] * one_from_f16(x + 2 * d);
    }
    return sum;
}

TARGET_AVX2 static float
dot_f32_row(const float *q, const float *x, size_t dim)
{
    __m256 a = _mm256_setzero_ps();
    __m256 b = _mm256_setzero_ps();
    float sum;
    size_t d = 0;

    for (; d + 16 <= dim; d += 16) {
        a = _mm256_fmadd_ps(_mm256_loadu_ps(q + d), _mm256_loadu_ps(x + d), a);
        b = _mm256_fmadd_ps(
            _mm256_loadu_ps(q + d + 8), _mm256_loadu_ps(x + d + 8), b);
    }
    sum = sum_ps(_mm256_add_ps(a, b));
    for (; d < dim; d++) {
        sum += q[d] * x[d];
    }
    return sum;
}

/* Sums of four vectors of eight floats, as one vector of four. */
TARGET_AVX2 static inline __m128
sum4_ps(__m256 a, __m256 b, __m256 c, __m256 d)
{
    __m256 abcd = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));

    return _mm_add_ps(
        _mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

/* acc + products of eight floats. */
TARGET_AVX2 static inline __m256
madd_ps(__m256 acc, __m256 q, const float *x)
{
    return _mm256_fmadd_ps(q, _mm256_loadu_ps(x), acc);
}

TARGET_AVX2 static void
dot_f32_rows4(const float *q, const float *x, size_t dim, float *out)
{
    __m256 a = _mm256_setzero_ps();
    __m256 b = _mm256_setzero_ps();
    __m256 c = _mm256_setzero_ps();
    __m256 e = _mm256_setzero_ps();
    size_t d = 0;

    for (; d + 8 <= dim; d += 8) {
        __m256 v = _mm256_loadu_ps(q + d);

        a = madd_ps(a, v, x + d);
        b = madd_ps(b, v, x + dim + d);
        c = madd_ps(c, v, x + 2 * dim + d);
        e = madd_ps(e, v, x + 3 * dim + d);
    }
    _mm_storeu_ps(out, sum4_ps(a, b, c, e));
    for (; d < dim; d++) {
        for (size_t r = 0; r < 4; r++) {
            out[r] += q[d] * x[r * dim + d];
        }
    }
}

TARGET_AVX2 static void
avx2_dot_f32(
    const float *q, const float *rows, size_t n, size_t dim, float *out)
{
    size_t i = 0;

    for (; i + 4 <= n; i += 4) {
        dot_f32_rows4(q, rows + i * dim, dim, out + i);
    }
    for (; i < n; i++) {
        out[i] = dot_f32_row(q, rows + i * dim, dim);
    }
}

TARGET_AVX2 static void
avx2_to_f16(const float *x, size_t n, uint8_t *out)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        _mm_storeu_si128((__m128i *)(void *)(out + 2 * i),
            _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
    }
    for (; i < n; i++) {
        mb_put_le16(out + 2 * i, _cvtss_sh(x[i], _MM_FROUND_TO_NEAREST_INT));
    }
}

TARGET_AVX2 static void
avx2_from_f16(const uint8_t *x, size_t n, float *out)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(out + i, load_f16(x + 2 * i));
    }
    for (; i < n; i++) {
        out[i] = one_from_f16(x + 2 * i);
    }
}

static const struct scan_kernels avx2_kernels = {
    .name = "avx2",
    .dot_i8 = avx2_dot_i8,
    .scale = avx2_scale,
    .dot_f16 = avx2_dot_f16,
    .dot_f32 = avx2_dot_f32,
    .to_f16 = avx2_to_f16,
    .from_f16 = avx2_from_f16,
};

const struct scan_kernels *
scan_x86_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                   mb_cpu_has_f16c()
               ? &avx2_kernels
               : NULL;
}

/* ---- AVX-512 VNNI ---- */

/* acc + products of 64 codes; codes become unsigned by their top bit. */
TARGET_AVX512 static inline __m512i
dp_i8(__m512i acc, __m512i q, __m512i row)
{
    return _mm512_dpbusd_epi32(
        acc, _mm512_xor_si512(row, _mm512_set1_epi8((char)0x80)), q);
}

/* 64 codes, or the 32 that are left with zeros behind. */
TARGET_AVX512 static inline __m512i
load_codes(const int8_t *x, __mmask64 mask)
{
    return _mm512_maskz_loadu_epi8(mask, x);
}

TARGET_AVX512 static inline __m512i
dot_row_avx512(const int8_t *q, const int8_t *x, size_t stride)
{
    __m512i acc = _mm512_setzero_si512();
    size_t d = 0;

    for (; d + 64 <= stride; d += 64) {
        acc = dp_i8(acc, _mm512_loadu_si512(q + d), _mm512_loadu_si512(x + d));
    }
    if (d < stride) {
        acc = dp_i8(acc, load_codes(q + d, 0xffffffffu),
            load_codes(x + d, 0xffffffffu));
    }
    return acc;
}

/* Sixteen int32 folded to eight. */
TARGET_AVX512 static inline __m256i
fold_epi32(__m512i v)
{
    return _mm256_add_epi32(
        _mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
}

TARGET_AVX512 static inline __m128i
fold4_epi32(__m512i a, __m512i b, __m512i c, __m512i d)
{
    __m256i ab = _mm256_hadd_epi32(fold_epi32(a), fold_epi32(b));
    __m256i cd = _mm256_hadd_epi32(fold_epi32(c), fold_epi32(d));
    __m256i abcd = _mm256_hadd_epi32(ab, cd);

    return _mm_add_epi32(
        _mm256_castsi256_si128(abcd), _mm256_extracti128_si256(abcd, 1));
}

TARGET_AVX512 static void
avx512_dot_i8(
    const int8_t *q, const int8_t *codes, size_t n, size_t stride, int32_t *out)
{
    int32_t q_sum = 0;
    __m128i bias;
    size_t i = 0;

    for (size_t d = 0; d < stride; d++) {
        q_sum += q[d];
    }
    bias = _mm_set1_epi32(128 * q_sum);
    for (; i + 4 <= n; i += 4) {
        const int8_t *x = codes + i * stride;
        __m128i sums;

        prefetch_rows(x, 4 * stride);
        sums = fold4_epi32(dot_row_avx512(q, x, stride),
            dot_row_avx512(q, x + stride, stride),
            dot_row_avx512(q, x + 2 * stride, stride),
            dot_row_avx512(q, x + 3 * stride, stride));

        _mm_storeu_si128(
            (__m128i *)(void *)(out + i), _mm_sub_epi32(sums, bias));
    }
    for (; i < n; i++) {
        __m512i a = dot_row_avx512(q, codes + i * stride, stride);

        out[i] =
            _mm_cvtsi128_si32(_mm_sub_epi32(fold4_epi32(a, a, a, a), bias));
    }
}

/* Only the int8 product gains from the wider registers: the rest waits for
 * memory. */
static const struct scan_kernels avx512_kernels = {
    .name = "avx512-vnni",
    .dot_i8 = avx512_dot_i8,
    .scale = avx2_scale,
    .dot_f16 = avx2_dot_f16,
    .dot_f32 = avx2_dot_f32,
    .to_f16 = avx2_to_f16,
    .from_f16 = avx2_from_f16,
};

const struct scan_kernels *
scan_x86_avx512(void)
{
    return scan_x86_avx2() != NULL && __builtin_cpu_supports("avx512f") &&
                   __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512vnni")
               ? &avx512_kernels
               : NULL;
}

#else /* another CPU: the plain twins serve */

const struct scan_kernels *
scan_x86_avx2(void)
{
    return NULL;
}

const struct scan_kernels *
scan_x86_avx512(void)
{
    return NULL;
}

#endif
