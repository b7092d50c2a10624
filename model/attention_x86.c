/* SPDX-License-Identifier: Apache-2.0
 * model/attention_x86.c - attention kernels with AVX2, FMA and F16C.
 *
 * A block has 64 rows. Its keys are transposed, so that a query's component,
 * broadcast, is multiplied with 16 rows at a time and sums never cross lanes.
 * In `few` a component of the keys is unpacked once for up to four queries
 * (the heads that share it); in `many` a slice is unpacked once to float, then
 * both products are small matrix products from registers: 4 queries x 16 rows,
 * then 4 queries x 16 components.
 *
 * What keeps results apart from company: each sum has one accumulator that
 * goes through components, or rows, in rising order, whatever the tile; rows
 * that are masked get weight 0, and 0 * finite adds nothing. */
#include "attention_x86.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "exp_x86.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define INLINE __attribute__((always_inline)) static inline

#define ROWS MB_BLOCK_ROWS

/* ---- reading slices ---- */

/* Eight elements from i on, as floats. */
TARGET INLINE __m256
load8(mb_cache_type type, const uint8_t *p, size_t i)
{
    if (type == MB_CACHE_F16)
        return _mm256_cvtph_ps(
            _mm_loadu_si128((const __m128i *)(const void *)(p + 2 * i)));
    if (type == MB_CACHE_Q8_0)
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(
            _mm_loadl_epi64((const __m128i *)(const void *)(p + i))));
    return _mm256_loadu_ps((const float *)(const void *)(p + 4 * i));
}

INLINE const uint8_t *
values_of(struct slice_shape shape, const uint8_t *slice)
{
    return slice + cache_slice_bytes(shape.type, shape.head_dim) / 2;
}

/* Scales of the 64 rows of an int8 half. */
INLINE const float *
scales_of(struct slice_shape shape, const uint8_t *half)
{
    return (const float *)(const void *)(half + ROWS * shape.head_dim);
}

/* ---- softmax of a block's logits ---- */

/* Rows [seen, 64) of z become -inf. */
INLINE void
mask_rows(float *z, size_t seen)
{
    for (size_t r = seen; r < ROWS; r++)
        z[r] = -INFINITY;
}

TARGET INLINE float
max_of(__m256 v)
{
    __m128 x =
        _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    x = _mm_max_ss(x, _mm_movehdup_ps(x));
    return _mm_cvtss_f32(x);
}

TARGET INLINE float
sum_of(__m256 v)
{
    __m128 x =
        _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    x = _mm_add_ss(x, _mm_movehdup_ps(x));
    return _mm_cvtss_f32(x);
}

/* z (64 logits, not all -inf) become weights exp(z - m); m and l are brought
 * up to date; returns the factor for o. */
TARGET INLINE float
soften(float *z, float *m, float *l)
{
    __m256 high = _mm256_loadu_ps(z);
    __m256 sum = _mm256_setzero_ps();
    for (size_t r = 8; r < ROWS; r += 8)
        high = _mm256_max_ps(high, _mm256_loadu_ps(z + r));
    float top = max_of(high);
    top = top <= *m ? *m : top; // a NaN comes through
    float keep = *m == -INFINITY ? 0.0f : expf(*m - top);
    __m256 shift = _mm256_set1_ps(top);
    for (size_t r = 0; r < ROWS; r += 8) {
        __m256 w = exp8(_mm256_sub_ps(_mm256_loadu_ps(z + r), shift));
        _mm256_storeu_ps(z + r, w);
        sum = _mm256_add_ps(sum, w);
    }
    *m = top;
    *l = *l * keep + sum_of(sum);
    return keep;
}

/* z *= scales, 64 of each. */
TARGET INLINE void
scale_rows(float *z, const float *scales)
{
    for (size_t r = 0; r < ROWS; r += 8)
        _mm256_storeu_ps(z + r,
            _mm256_mul_ps(_mm256_loadu_ps(z + r), _mm256_loadu_ps(scales + r)));
}

/* ---- few ---- */

/* Lines of memory that will be read later, asked for a few at a time while
 * something else is computed: slices lie apart, so that hardware does not fetch
 * ahead from one to the next. */
struct ahead {
    const char *p;
    const char *end;
    size_t step; /* bytes at a time */
};

INLINE struct ahead
ahead_of(const uint8_t *p, size_t bytes, size_t n_times)
{
    size_t step = (bytes / n_times + 63) / 64 * 64;
    return (struct ahead){(const char *)p, (const char *)p + bytes, step};
}

INLINE void
fetch_some(struct ahead *ahead)
{
    const char *stop = ahead->p + ahead->step;
    if (stop > ahead->end)
        stop = ahead->end;
    for (; ahead->p < stop; ahead->p += 64)
        _mm_prefetch(ahead->p, _MM_HINT_T0);
}

/* Accumulators that are in use at a time: enough to hide the latency of an
 * addition, few enough for sixteen registers. */
#define CHAINS 8

/* z (n, 64) = q (n, head_dim) x keys; n is a constant, 1, 2 or 4. */
TARGET INLINE void
few_logits(mb_cache_type type, size_t head_dim, const uint8_t *keys,
    const float *q, size_t n, struct ahead ahead, float *z)
{
    size_t width = CHAINS / n; // registers of eight rows
    for (size_t r = 0; r < ROWS; r += 8 * width) {
        __m256 sum[CHAINS];
#pragma GCC unroll 8
        for (size_t c = 0; c < CHAINS; c++)
            sum[c] = _mm256_setzero_ps();
        for (size_t j = 0; j < head_dim; j++) {
            __m256 x[4];
            fetch_some(&ahead);
#pragma GCC unroll 8
            for (size_t i = 0; i < n; i++)
                x[i] = _mm256_broadcast_ss(q + i * head_dim + j);
#pragma GCC unroll 8
            for (size_t c = 0; c < width; c++) {
                __m256 k = load8(type, keys, j * ROWS + r + 8 * c);
#pragma GCC unroll 8
                for (size_t i = 0; i < n; i++)
                    sum[i * width + c] =
                        _mm256_fmadd_ps(x[i], k, sum[i * width + c]);
            }
        }
#pragma GCC unroll 8
        for (size_t c = 0; c < CHAINS; c++)
            _mm256_storeu_ps(
                z + c / width * ROWS + r + 8 * (c % width), sum[c]);
    }
}

/* Components [j, j + 8 width) of o (n, head_dim) = o * keep + weights (n, 64)
 * x the first `rows` values. */
TARGET INLINE void
few_values_at(mb_cache_type type, size_t head_dim, const uint8_t *values,
    const float *w, const float *keep, size_t rows, size_t n, size_t j,
    size_t width, struct ahead *ahead, float *o)
{
    __m256 sum[CHAINS];
#pragma GCC unroll 8
    for (size_t i = 0; i < n; i++) {
        __m256 k = _mm256_set1_ps(keep[i]);
#pragma GCC unroll 8
        for (size_t c = 0; c < width; c++)
            sum[i * width + c] =
                _mm256_mul_ps(k, _mm256_loadu_ps(o + i * head_dim + j + 8 * c));
    }
    for (size_t r = 0; r < rows; r++) {
        __m256 x[4];
        fetch_some(ahead);
#pragma GCC unroll 8
        for (size_t i = 0; i < n; i++)
            x[i] = _mm256_broadcast_ss(w + i * ROWS + r);
#pragma GCC unroll 8
        for (size_t c = 0; c < width; c++) {
            __m256 v = load8(type, values, r * head_dim + j + 8 * c);
#pragma GCC unroll 8
            for (size_t i = 0; i < n; i++)
                sum[i * width + c] =
                    _mm256_fmadd_ps(x[i], v, sum[i * width + c]);
        }
    }
#pragma GCC unroll 8
    for (size_t i = 0; i < n; i++) {
#pragma GCC unroll 8
        for (size_t c = 0; c < width; c++)
            _mm256_storeu_ps(o + i * head_dim + j + 8 * c, sum[i * width + c]);
    }
}

TARGET INLINE void
few_values(mb_cache_type type, size_t head_dim, const uint8_t *values,
    const float *w, const float *keep, size_t rows, size_t n,
    struct ahead ahead, float *o)
{
    size_t width = n == 4 ? 2 : 4;
    size_t j = 0;
    for (; j + 8 * width <= head_dim; j += 8 * width)
        few_values_at(
            type, head_dim, values, w, keep, rows, n, j, width, &ahead, o);
    for (; j < head_dim; j += 8)
        few_values_at(
            type, head_dim, values, w, keep, rows, n, j, 1, &ahead, o);
}

TARGET INLINE void
few_block(struct slice_shape shape, const uint8_t *slice, const uint8_t *next,
    size_t rows, const float *q, size_t n, struct partial *to, size_t first)
{
    size_t half = cache_slice_bytes(shape.type, shape.head_dim) / 2;
    const uint8_t *values = values_of(shape, slice);
    float z[4 * ROWS];
    float keep[4];
    few_logits(shape.type, shape.head_dim, slice, q, n,
        ahead_of(values, half, shape.head_dim * n * ROWS / (8 * CHAINS)), z);
    for (size_t i = 0; i < n; i++) {
        if (shape.type == MB_CACHE_Q8_0)
            scale_rows(z + i * ROWS, scales_of(shape, slice));
        mask_rows(z + i * ROWS, rows);
        keep[i] = soften(z + i * ROWS, to->m + first + i, to->l + first + i);
        if (shape.type == MB_CACHE_Q8_0)
            scale_rows(z + i * ROWS, scales_of(shape, values));
    }
    few_values(shape.type, shape.head_dim, values, z, keep, rows, n,
        ahead_of(next ? next : slice, next ? half : 0, ROWS),
        to->o + first * shape.head_dim);
}

/* The compiler makes one version for each type and number of queries. */
#define DEFINE_FEW(suffix, cache_type)                                         \
    TARGET static void few_##suffix(struct slice_shape shape,                  \
        const uint8_t *const *slices, size_t n_slices, size_t last_rows,       \
        const float *q, size_t n, struct partial *to)                          \
    {                                                                          \
        size_t dim = shape.head_dim;                                           \
        shape.type = (cache_type);                                             \
        for (size_t s = 0; s < n_slices; s++) {                                \
            bool is_last = s + 1 == n_slices;                                  \
            size_t rows = is_last ? last_rows : ROWS;                          \
            const uint8_t *x = slices[s];                                      \
            const uint8_t *next = is_last ? NULL : slices[s + 1];              \
            size_t i = 0;                                                      \
            for (; i + 4 <= n; i += 4)                                         \
                few_block(shape, x, next, rows, q + i * dim, 4, to, i);        \
            for (; i + 2 <= n; i += 2)                                         \
                few_block(shape, x, next, rows, q + i * dim, 2, to, i);        \
            if (i < n)                                                         \
                few_block(shape, x, next, rows, q + i * dim, 1, to, i);        \
        }                                                                      \
    }

DEFINE_FEW(f16, MB_CACHE_F16)
DEFINE_FEW(q8_0, MB_CACHE_Q8_0)
DEFINE_FEW(f32, MB_CACHE_F32)

static void
avx2_few(struct slice_shape shape, const uint8_t *const *slices,
    size_t n_slices, size_t last_rows, const float *q, size_t n,
    struct partial *to)
{
    if (shape.type == MB_CACHE_F16)
        few_f16(shape, slices, n_slices, last_rows, q, n, to);
    else if (shape.type == MB_CACHE_Q8_0)
        few_q8_0(shape, slices, n_slices, last_rows, q, n, to);
    else
        few_f32(shape, slices, n_slices, last_rows, q, n, to);
}

/* ---- many ---- */

/* c (n, 8 width) += a (n, k) x b (k, 8 width); n is a constant, 1 to 6, width
 * one, 1 or 2. */
TARGET INLINE void
product_tile(const float *a, size_t lda, size_t n, size_t k, const float *b,
    size_t ldb, size_t width, float *c, size_t ldc)
{
    __m256 sum[12];
#pragma GCC unroll 8
    for (size_t i = 0; i < n; i++) {
#pragma GCC unroll 8
        for (size_t v = 0; v < width; v++)
            sum[i * width + v] = _mm256_loadu_ps(c + i * ldc + 8 * v);
    }
    for (size_t j = 0; j < k; j++) {
        __m256 y[2];
#pragma GCC unroll 8
        for (size_t v = 0; v < width; v++)
            y[v] = _mm256_loadu_ps(b + j * ldb + 8 * v);
#pragma GCC unroll 8
        for (size_t i = 0; i < n; i++) {
            __m256 x = _mm256_broadcast_ss(a + i * lda + j);
#pragma GCC unroll 8
            for (size_t v = 0; v < width; v++)
                sum[i * width + v] =
                    _mm256_fmadd_ps(x, y[v], sum[i * width + v]);
        }
    }
#pragma GCC unroll 8
    for (size_t i = 0; i < n; i++) {
#pragma GCC unroll 8
        for (size_t v = 0; v < width; v++)
            _mm256_storeu_ps(c + i * ldc + 8 * v, sum[i * width + v]);
    }
}

/* All n rows of a tile's columns. */
TARGET INLINE void
product_columns(const float *a, size_t lda, size_t n, size_t k, const float *b,
    size_t ldb, size_t width, float *c)
{
    size_t i = 0;
    for (; i + 6 <= n; i += 6)
        product_tile(a + i * lda, lda, 6, k, b, ldb, width, c + i * ldb, ldb);
    for (; i + 2 <= n; i += 2)
        product_tile(a + i * lda, lda, 2, k, b, ldb, width, c + i * ldb, ldb);
    if (i < n)
        product_tile(a + i * lda, lda, 1, k, b, ldb, width, c + i * ldb, ldb);
}

/* c (n, width) += a (n, k) x b (k, width), width a multiple of 8. */
TARGET static void
product(const float *a, size_t lda, size_t n, size_t k, const float *b,
    size_t width, float *c)
{
    size_t j = 0;
    for (; j + 16 <= width; j += 16)
        product_columns(a, lda, n, k, b + j, width, 2, c + j);
    if (j < width)
        product_columns(a, lda, n, k, b + j, width, 1, c + j);
}

TARGET static void
unpack(mb_cache_type type, const uint8_t *p, size_t n, float *out)
{
    for (size_t i = 0; i < n; i += 8)
        _mm256_storeu_ps(out + i, load8(type, p, i));
}

TARGET static void
scale_outputs(float *o, float keep, size_t n)
{
    __m256 k = _mm256_set1_ps(keep);
    for (size_t j = 0; j < n; j += 8)
        _mm256_storeu_ps(o + j, _mm256_mul_ps(_mm256_loadu_ps(o + j), k));
}

TARGET static void
avx2_many(struct slice_shape shape, const uint8_t *slice, const float *q,
    const uint8_t *seen, size_t n, struct partial *to, float *room)
{
    size_t head_dim = shape.head_dim;
    const uint8_t *packed_values = values_of(shape, slice);
    float *keys = room;                     /* (head_dim, 64) */
    float *values = keys + ROWS * head_dim; /* (64, head_dim) */
    float *z = values + ROWS * head_dim;    /* (n, 64) */
    unpack(shape.type, slice, ROWS * head_dim, keys);
    unpack(shape.type, packed_values, ROWS * head_dim, values);
    memset(z, 0, n * ROWS * sizeof(float));
    product(q, head_dim, n, head_dim, keys, ROWS, z);
    for (size_t i = 0; i < n; i++) {
        if (seen[i] == 0) { // all weights 0: o stays as it is
            memset(z + i * ROWS, 0, ROWS * sizeof(float));
            continue;
        }
        if (shape.type == MB_CACHE_Q8_0)
            scale_rows(z + i * ROWS, scales_of(shape, slice));
        mask_rows(z + i * ROWS, seen[i]);
        float keep = soften(z + i * ROWS, to->m + i, to->l + i);
        scale_outputs(to->o + i * head_dim, keep, head_dim);
        if (shape.type == MB_CACHE_Q8_0)
            scale_rows(z + i * ROWS, scales_of(shape, packed_values));
    }
    product(z, ROWS, n, ROWS, values, head_dim, to->o);
}

/* ---- keys alone ---- */

/* Many queries are worth unpacking the keys for; sums run alike either way. */
TARGET static void
avx2_scores(size_t head_dim, const uint8_t *keys, const float *q, size_t n,
    float *z, size_t ldz, float *room)
{
    float *unpacked = room;                  /* (head_dim, 64) */
    float *all = unpacked + ROWS * head_dim; /* (n, 64) */
    if (n == 1) {
        few_logits(MB_CACHE_F16, head_dim, keys, q, 1, ahead_of(keys, 0, 1), z);
        return;
    }
    unpack(MB_CACHE_F16, keys, ROWS * head_dim, unpacked);
    memset(all, 0, n * ROWS * sizeof(float));
    product(q, head_dim, n, head_dim, unpacked, ROWS, all);
    for (size_t i = 0; i < n; i++)
        memcpy(z + i * ldz, all + i * ROWS, ROWS * sizeof(float));
}

/* ---- writing ---- */

/* The largest of fp16 instead of infinity; NaN, second operand, stays. */
TARGET INLINE __m128i
to_half8(__m256 x)
{
    __m256 max = _mm256_set1_ps(65504.0f);
    x = _mm256_min_ps(max, x);
    x = _mm256_max_ps(_mm256_sub_ps(_mm256_setzero_ps(), max), x);
    return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
}

/* Rows of fp16 are as many as there are tokens times heads; int8 is left to
 * the plain twin. */
TARGET static void
avx2_store(struct slice_shape shape, uint8_t *slice, size_t row,
    const float *key, const float *value)
{
    size_t dim = shape.head_dim;
    uint8_t *values = slice + cache_slice_bytes(shape.type, dim) / 2;
    uint16_t halves[ATTENTION_MAX_HEAD];
    if (shape.type != MB_CACHE_F16) {
        attention_plain_store(shape, slice, row, key, value);
        return;
    }
    for (size_t j = 0; j < dim; j += 8) {
        __m128i k = to_half8(_mm256_loadu_ps(key + j));
        __m128i v = to_half8(_mm256_loadu_ps(value + j));
        _mm_storeu_si128((__m128i *)(void *)(halves + j), k);
        _mm_storeu_si128((__m128i *)(void *)(values + 2 * (row * dim + j)), v);
    }
    for (size_t j = 0; j < dim; j++)
        memcpy(slice + 2 * (j * ROWS + row), halves + j, 2);
}

/* ---- the table ---- */

const struct attention *
attention_x86_at(compute_level level)
{
    static const struct attention avx2 = {
        "avx2", avx2_store, avx2_few, avx2_many, avx2_scores};
    /* Products of the same level know whether this CPU has it. */
    if (level != COMPUTE_AVX2 || !compute_at(level))
        return NULL;
    return &avx2;
}

#else

const struct attention *
attention_x86_at(compute_level level)
{
    (void)level;
    return NULL;
}

#endif
