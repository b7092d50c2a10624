/* SPDX-License-Identifier: Apache-2.0
 * model/compute_x86.c - the levels for x86-64: all but the two ways to
 * multiply, which have files of their own, and which of them this CPU has. */
#include "compute_x86.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <float.h>
#include <math.h>

#include "exp_x86.h"
#include "weights_x86.h"

/* ---- activations ---- */

/* As in ref_compute.c, to the bit. */
#define LEAST_ACTIVATION 1e-30f

AVX2 INLINE float
largest_of_lanes(__m256 v)
{
    __m128 x =
        _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    x = _mm_max_ss(x, _mm_movehdup_ps(x));
    return _mm_cvtss_f32(x);
}

/* 32 values as four registers of floats, which become int16. */
AVX2 INLINE void
store_codes(const __m256 v[4], __m256 inverse, int16_t *code, int *total)
{
    __m256i q[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++)
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    /* Packing works in halves of registers: order is mended behind it. */
    __m256i a = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[0], q[1]), 0xd8);
    __m256i b = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[2], q[3]), 0xd8);
    __m256i one = _mm256_set1_epi16(1);
    __m256i sum =
        _mm256_add_epi32(_mm256_madd_epi16(a, one), _mm256_madd_epi16(b, one));
    __m128i s = _mm_add_epi32(
        _mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    _mm256_storeu_si256((__m256i *)(void *)code, a);
    _mm256_storeu_si256((__m256i *)(void *)(code + 16), b);
    *total = _mm_cvtsi128_si32(s);
}

AVX2 INLINE void
quantize_block(const float *x, int16_t *code, float *scale, float *sum)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 v[4];
    __m256 size = _mm256_setzero_ps();
    __m256 bad = _mm256_setzero_ps();
    int total = 0;
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        __m256 s = _mm256_andnot_ps(sign, v[i]);
        bad = _mm256_or_ps(
            bad, _mm256_cmp_ps(s, _mm256_set1_ps(FLT_MAX), _CMP_NLE_UQ));
        size = _mm256_max_ps(size, s);
    }
    float most = largest_of_lanes(size);
    if (_mm256_movemask_ps(bad) != 0 || most < LEAST_ACTIVATION) {
        memset(code, 0, ACT_BLOCK * sizeof(*code));
        *scale = _mm256_movemask_ps(bad) != 0 ? NAN : 0;
        *sum = *scale;
        return;
    }
    store_codes(v, _mm256_set1_ps(32767.0f / most), code, &total);
    *scale = most / 32767.0f;
    *sum = *scale * (float)total;
}

AVX2 static void
avx2_quantize(
    const struct activations *a, size_t n_cols, size_t first, size_t last)
{
    size_t blocks = n_cols / ACT_BLOCK;
    for (size_t r = first; r < last; r++) {
        for (size_t i = 0; i < blocks; i++) {
            size_t at = r * blocks + i;
            quantize_block(a->x + r * a->ld + i * ACT_BLOCK,
                a->code + at * ACT_BLOCK, a->scale + at, a->sum + at);
        }
    }
}

/* ---- rows of W ---- */

AVX2 INLINE void
store_words(
    struct words w, __m256 scale0, __m256 scale1, __m256 offset, float *out)
{
    __m128i part[4] = {_mm256_castsi256_si128(w.first),
        _mm256_extracti128_si256(w.first, 1), _mm256_castsi256_si128(w.second),
        _mm256_extracti128_si256(w.second, 1)};
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        __m256 v = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(part[i]));
        v = _mm256_mul_ps(v, i < 2 ? scale0 : scale1);
        _mm256_storeu_ps(out + 8 * i, _mm256_sub_ps(v, offset));
    }
}

AVX2 INLINE void
row_q_0(const struct tensor *W, const uint8_t *w, float *out)
{
    const __m256 zero = _mm256_setzero_ps();
    for (size_t k = 0; k < W->n_cols; k += 32) {
        __m256 d = half_at(w);
        store_words(words_of_block(W->type, w), d, d, zero, out + k);
        w += bytes_of_block(W->type);
    }
}

AVX2 INLINE void
row_q4_k(const struct tensor *W, const uint8_t *w, float *out)
{
    for (size_t k = 0; k < W->n_cols; k += SUPER, w += Q4_K_BYTES) {
        float scale[8];
        float offset[8];
        __m256 s;
        __m256 o;
        scales_q4_k(w, &s, &o);
        _mm256_storeu_ps(scale, s);
        _mm256_storeu_ps(offset, o);
        for (size_t i = 0; i < 8; i++) {
            struct words q[2];
            words_q4_k(w, i / 2, q);
            s = _mm256_broadcast_ss(scale + i);
            store_words(q[i % 2], s, s, _mm256_broadcast_ss(offset + i),
                out + k + 32 * i);
        }
    }
}

AVX2 INLINE void
row_q6_k(const struct tensor *W, const uint8_t *w, float *out)
{
    const __m256 zero = _mm256_setzero_ps();
    for (size_t k = 0; k < W->n_cols; k += SUPER, w += Q6_K_BYTES) {
        __m256 d = half_at(w + 208);
        const int8_t *scale = (const int8_t *)(w + 192);
        for (size_t i = 0; i < 8; i++, scale += 2) {
            __m256i bytes[4];
            bytes_q6_k(w, i / 4, bytes);
            store_words(words_of_bytes(bytes[i % 4]),
                _mm256_mul_ps(d, _mm256_set1_ps(scale[0])),
                _mm256_mul_ps(d, _mm256_set1_ps(scale[1])), zero,
                out + k + 32 * i);
        }
    }
}

AVX2 INLINE void
row_of_floats(const struct tensor *W, const uint8_t *w, float *out)
{
    size_t k = 0;
    for (; k + 8 <= W->n_cols; k += 8)
        _mm256_storeu_ps(out + k, load_floats(W->type, w, k));
    if (k < W->n_cols) {
        float last[8];
        _mm256_storeu_ps(last, load_last_floats(W->type, w, k, W->n_cols - k));
        memcpy(out + k, last, (W->n_cols - k) * sizeof(float));
    }
}

AVX2 static void
avx2_row(const struct tensor *W, size_t row, float *out)
{
    const uint8_t *w = W->data + row * W->row_bytes;
    if (tensor_block_values(W->type) == 1)
        row_of_floats(W, w, out);
    else if (W->type == TENSOR_Q4_K)
        row_q4_k(W, w, out);
    else if (W->type == TENSOR_Q6_K)
        row_q6_k(W, w, out);
    else
        row_q_0(W, w, out);
}

/* ---- the rest of a layer ---- */

/* Four doubles a register: a float's square is exact in one. */
AVX2 static void
avx2_rms_norm(const float *x, const float *w, size_t n, float eps, float *out)
{
    __m256d a = _mm256_setzero_pd();
    __m256d b = _mm256_setzero_pd();
    double part[4];
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256d u = _mm256_cvtps_pd(_mm_loadu_ps(x + i));
        __m256d v = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4));
        a = _mm256_fmadd_pd(u, u, a);
        b = _mm256_fmadd_pd(v, v, b);
    }
    _mm256_storeu_pd(part, _mm256_add_pd(a, b));
    double sum = (part[0] + part[1]) + (part[2] + part[3]);
    for (; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    float factor = (float)(1 / sqrt(sum / (double)n + (double)eps));
    __m256 f = _mm256_set1_ps(factor);
    for (i = 0; i + 8 <= n; i += 8)
        _mm256_storeu_ps(
            out + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), f),
                         _mm256_loadu_ps(w + i)));
    for (; i < n; i++)
        out[i] = x[i] * factor * w[i];
}

static void
turn(float *a, float *b, float cosine, float sine)
{
    float x = *a;
    float y = *b;
    *a = x * cosine - y * sine;
    *b = x * sine + y * cosine;
}

/* Neighbours are parted, turned as halves are, and joined again. */
AVX2 static void
avx2_rope_pairs(float *x, size_t n_rot, const float *cosine, const float *sine)
{
    size_t i = 0;
    for (; i + 4 <= n_rot / 2; i += 4) {
        __m256 v = _mm256_loadu_ps(x + 2 * i); // a0 b0 a1 b1 | a2 b2 a3 b3
        const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
        __m256 c = _mm256_permutevar8x32_ps(
            _mm256_castps128_ps256(_mm_loadu_ps(cosine + i)), twice);
        __m256 s = _mm256_permutevar8x32_ps(
            _mm256_castps128_ps256(_mm_loadu_ps(sine + i)), twice);
        __m256 other = _mm256_permute_ps(v, 0xb1); // b0 a0 b1 a1 ...
        /* a c - b s in even lanes, b c + a s in odd ones */
        v = _mm256_addsub_ps(_mm256_mul_ps(v, c), _mm256_mul_ps(other, s));
        _mm256_storeu_ps(x + 2 * i, v);
    }
    for (; i < n_rot / 2; i++)
        turn(x + 2 * i, x + 2 * i + 1, cosine[i], sine[i]);
}

AVX2 static void
avx2_rope_halves(float *x, size_t n_rot, const float *cosine, const float *sine)
{
    size_t half = n_rot / 2;
    size_t i = 0;
    for (; i + 8 <= half; i += 8) {
        __m256 a = _mm256_loadu_ps(x + i);
        __m256 b = _mm256_loadu_ps(x + i + half);
        __m256 c = _mm256_loadu_ps(cosine + i);
        __m256 s = _mm256_loadu_ps(sine + i);
        _mm256_storeu_ps(
            x + i, _mm256_sub_ps(_mm256_mul_ps(a, c), _mm256_mul_ps(b, s)));
        _mm256_storeu_ps(x + i + half,
            _mm256_add_ps(_mm256_mul_ps(a, s), _mm256_mul_ps(b, c)));
    }
    for (; i < half; i++)
        turn(x + i, x + i + half, cosine[i], sine[i]);
}

AVX2 INLINE __m256
swiglu_8(__m256 gate, __m256 up)
{
    const __m256 one = _mm256_set1_ps(1.0f);
    __m256 minus = _mm256_xor_ps(gate, _mm256_set1_ps(-0.0f));
    return _mm256_mul_ps(
        _mm256_div_ps(gate, _mm256_add_ps(one, exp8(minus))), up);
}

AVX2 static void
avx2_swiglu(const float *gate, const float *up, size_t n, float *out)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i,
            swiglu_8(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    /* The last ones by the same arithmetic, as a tile may end anywhere. */
    if (i < n) {
        float g[8] = {0};
        float u[8] = {0};
        memcpy(g, gate + i, (n - i) * sizeof(float));
        memcpy(u, up + i, (n - i) * sizeof(float));
        _mm256_storeu_ps(g, swiglu_8(_mm256_loadu_ps(g), _mm256_loadu_ps(u)));
        memcpy(out + i, g, (n - i) * sizeof(float));
    }
}

AVX2 static void
avx2_add(float *x, const float *y, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(x + i,
            _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
    for (; i < n; i++)
        x[i] += y[i];
}

/* Values of which the exponentials are summed as floats before the sum goes
 * on as double. */
#define SUM_FLOATS 256

AVX2 static float
avx2_log_sum_exp(const float *x, size_t n)
{
    __m256 top = _mm256_set1_ps(-INFINITY);
    size_t whole = n / 8 * 8;
    double sum = 0;
    for (size_t i = 0; i < whole; i += 8)
        top = _mm256_max_ps(_mm256_loadu_ps(x + i), top); // no NaN gets in
    float most = largest_of_lanes(top);
    for (size_t i = whole; i < n; i++)
        most = x[i] > most ? x[i] : most;
    float base = fabsf(most) <= FLT_MAX ? most : 0;
    __m256 shift = _mm256_set1_ps(base);
    for (size_t i = 0; i < whole;) {
        size_t end = whole - i < SUM_FLOATS ? whole : i + SUM_FLOATS;
        __m256 part = _mm256_setzero_ps();
        for (; i < end; i += 8)
            part = _mm256_add_ps(
                part, exp8(_mm256_sub_ps(_mm256_loadu_ps(x + i), shift)));
        sum += (double)sum_of_lanes(part);
    }
    for (size_t i = whole; i < n; i++)
        sum += exp((double)x[i] - (double)base);
    return (float)((double)base + log(sum));
}

/* ---- levels ---- */

#define AVX2_KERNELS                                                           \
    .quantize = avx2_quantize, .mul_few = avx2_mul_few, .row = avx2_row,       \
    .rms_norm = avx2_rms_norm, .rope_pairs = avx2_rope_pairs,                  \
    .rope_halves = avx2_rope_halves, .swiglu = avx2_swiglu, .add = avx2_add,   \
    .log_sum_exp = avx2_log_sum_exp

const struct compute *
compute_x86_avx2(void)
{
    static const struct compute avx2 = {
        .name = "avx2", .mul_many = avx2_mul_many, AVX2_KERNELS};
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                   mb_cpu_has_f16c()
               ? &avx2
               : NULL;
}

/* Only mul_many is bound by arithmetic; the rest waits for memory. */
const struct compute *
compute_x86_avx512(void)
{
    static const struct compute avx512 = {
        .name = "avx512", .mul_many = avx512_mul_many, AVX2_KERNELS};
    return compute_x86_avx2() && __builtin_cpu_supports("avx512f") &&
                   __builtin_cpu_supports("avx512vnni")
               ? &avx512
               : NULL;
}

#else

const struct compute *
compute_x86_avx2(void)
{
    return NULL;
}

const struct compute *
compute_x86_avx512(void)
{
    return NULL;
}

#endif
