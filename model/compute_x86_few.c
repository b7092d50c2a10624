/* SPDX-License-Identifier: Apache-2.0
 * model/compute_x86_few.c - few rows of activations times W, with AVX2.
 *
 * W streams by once, a row of it at a time; its codes are unpacked once for up
 * to four rows of activations. More rows take W in chunks that stay in the
 * cache while each four go over it.
 *
 * What keeps a result apart from company: products of 32 codes are summed as
 * integers, exactly; a sum of floats belongs to one output of one row, in two
 * accumulators for even and odd blocks, whatever goes along beside it. */
#include "compute_x86.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "weights_x86.h"

/* Rows of activations that go together. */
#define GROUP 4

/* Bytes of W that are to stay in the cache while groups go over them. */
#define CHUNK_BYTES 65536u

/* Lines of W are asked for this far ahead, as the hardware stops at the end of
 * a page. Behind the last row that is harmless. */
#define AHEAD_BYTES 4096u

/* What one row of W meets: a group of rows, from a column on. */
struct group {
    const int16_t *code;
    const float *scale;
    const float *sum;
    size_t n_cols;
    size_t n_blocks; /* floats from row to row of scale and sum */
};

AVX2 INLINE void
ask_ahead(const uint8_t *p, size_t bytes)
{
#pragma GCC unroll 4
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)p + AHEAD_BYTES + i, _MM_HINT_T0);
}

/* Products of 32 codes, four to a lane. */
AVX2 INLINE __m256
dot_block(struct words w, const int16_t *x)
{
    return _mm256_cvtepi32_ps(
        _mm256_add_epi32(_mm256_madd_epi16(w.first, load_32(x)),
            _mm256_madd_epi16(w.second, load_32(x + 16))));
}

/* ---- types with a scale for 32 ---- */

/* Block b of n rows onto acc[2 i + b % 2]. */
AVX2 INLINE void
add_block(struct words w, __m256 d, const struct group *g, size_t b, size_t n,
    __m256 *acc)
{
#pragma GCC unroll 4
    for (size_t i = 0; i < n; i++) {
        __m256 factor = _mm256_mul_ps(
            d, _mm256_broadcast_ss(g->scale + i * g->n_blocks + b));
        acc[2 * i] = _mm256_fmadd_ps(
            dot_block(w, g->code + i * g->n_cols + 32 * b), factor, acc[2 * i]);
    }
}

/* A row of Q8_0, Q5_0 or Q4_0. */
AVX2 INLINE void
row_q_0(tensor_type type, const uint8_t *w, const struct group *g, size_t n,
    __m256 *acc)
{
    const size_t bytes = bytes_of_block(type);
    size_t b = 0;
    for (; b + 2 <= g->n_blocks; b += 2, w += 2 * bytes) {
        ask_ahead(w, 2 * bytes);
        add_block(words_of_block(type, w), half_at(w), g, b, n, acc);
        add_block(words_of_block(type, w + bytes), half_at(w + bytes), g, b + 1,
            n, acc + 1);
    }
    if (b < g->n_blocks)
        add_block(words_of_block(type, w), half_at(w), g, b, n, acc);
}

/* ---- types with scales in a block of 256 ---- */

/* Factors of the eight blocks for each row, w_scale * x_scale. It takes long
 * until they are there (bits to integers to floats, through memory): each block
 * of 256 prepares those of the next, so that nothing waits. */
struct factors {
    float of[GROUP][8];
};

/* Block b of n rows, the `part`th of eight. */
AVX2 INLINE void
add_part(struct words w, const struct factors *f, const struct group *g,
    size_t b, size_t part, size_t n, __m256 *acc)
{
#pragma GCC unroll 4
    for (size_t i = 0; i < n; i++)
        acc[2 * i] = _mm256_fmadd_ps(
            dot_block(w, g->code + i * g->n_cols + 32 * (b + part)),
            _mm256_broadcast_ss(&f->of[i][part]), acc[2 * i]);
}

/* Factors of the blocks from b on; their offsets are taken off. */
AVX2 INLINE void
prepare_q4_k(const uint8_t *w, const struct group *g, size_t b, size_t n,
    struct factors *f, __m256 *acc)
{
    __m256 scale;
    __m256 offset;
    scales_q4_k(w, &scale, &offset);
#pragma GCC unroll 4
    for (size_t i = 0; i < n; i++) {
        size_t at = i * g->n_blocks + b;
        _mm256_storeu_ps(
            f->of[i], _mm256_mul_ps(scale, _mm256_loadu_ps(g->scale + at)));
        acc[2 * i + 1] = _mm256_fnmadd_ps(
            offset, _mm256_loadu_ps(g->sum + at), acc[2 * i + 1]);
    }
}

AVX2 INLINE void
row_q4_k(const uint8_t *w, const struct group *g, size_t n, __m256 *acc)
{
    struct factors factors[2];
    prepare_q4_k(w, g, 0, n, &factors[0], acc);
    for (size_t b = 0; b < g->n_blocks; b += 8, w += Q4_K_BYTES) {
        const struct factors *f = &factors[b / 8 % 2];
        ask_ahead(w, Q4_K_BYTES);
        if (b + 8 < g->n_blocks)
            prepare_q4_k(
                w + Q4_K_BYTES, g, b + 8, n, &factors[(b / 8 + 1) % 2], acc);
#pragma GCC unroll 4
        for (size_t pair = 0; pair < 4; pair++) {
            struct words q[2];
            words_q4_k(w, pair, q);
            add_part(q[0], f, g, b, 2 * pair, n, acc);
            add_part(q[1], f, g, b, 2 * pair + 1, n, acc + 1);
        }
    }
}

/* Scales are int8, codes have six bits: their products are int16. */
AVX2 INLINE struct words
scaled_words(__m256i bytes, const int16_t *scale)
{
    struct words w = words_of_bytes(bytes);
    return (struct words){
        _mm256_mullo_epi16(w.first, _mm256_set1_epi16(scale[0])),
        _mm256_mullo_epi16(w.second, _mm256_set1_epi16(scale[1]))};
}

/* What a block of Q6_K has before its codes. */
struct scales_q6_k {
    int16_t of[16];
};

AVX2 INLINE void
prepare_q6_k(const uint8_t *w, const struct group *g, size_t b, size_t n,
    struct factors *f, struct scales_q6_k *s)
{
    __m256 d = half_at(w + 208);
    _mm256_storeu_si256(
        (__m256i *)(void *)s->of, _mm256_cvtepi8_epi16(load_16(w + 192)));
#pragma GCC unroll 4
    for (size_t i = 0; i < n; i++)
        _mm256_storeu_ps(f->of[i],
            _mm256_mul_ps(d, _mm256_loadu_ps(g->scale + i * g->n_blocks + b)));
}

AVX2 INLINE void
row_q6_k(const uint8_t *w, const struct group *g, size_t n, __m256 *acc)
{
    struct factors factors[2];
    struct scales_q6_k scales[2];
    prepare_q6_k(w, g, 0, n, &factors[0], &scales[0]);
    for (size_t b = 0; b < g->n_blocks; b += 8, w += Q6_K_BYTES) {
        size_t now = b / 8 % 2;
        ask_ahead(w, Q6_K_BYTES);
        if (b + 8 < g->n_blocks)
            prepare_q6_k(w + Q6_K_BYTES, g, b + 8, n, &factors[1 - now],
                &scales[1 - now]);
#pragma GCC unroll 2
        for (size_t half = 0; half < 2; half++) {
            __m256i q[4];
            bytes_q6_k(w, half, q);
#pragma GCC unroll 4
            for (size_t i = 0; i < 4; i++) {
                size_t part = 4 * half + i;
                add_part(scaled_words(q[i], scales[now].of + 2 * part),
                    &factors[now], g, b, part, n, acc + i % 2);
            }
        }
    }
}

/* ---- all rows of a group ---- */

/* y[i * ldy + o] for n rows; n is a constant, 1 to GROUP. */
AVX2 INLINE void
few_outputs(tensor_type type, const struct tensor *W, size_t first, size_t last,
    const struct group *g, size_t n, float *y, size_t ldy)
{
    for (size_t o = first; o < last; o++) {
        const uint8_t *w = W->data + o * W->row_bytes;
        __m256 acc[2 * GROUP];
#pragma GCC unroll 8
        for (size_t i = 0; i < 2 * n; i++)
            acc[i] = _mm256_setzero_ps();
        if (type == TENSOR_Q4_K)
            row_q4_k(w, g, n, acc);
        else if (type == TENSOR_Q6_K)
            row_q6_k(w, g, n, acc);
        else
            row_q_0(type, w, g, n, acc);
#pragma GCC unroll 4
        for (size_t i = 0; i < n; i++)
            y[i * ldy + o] =
                sum_of_lanes(_mm256_add_ps(acc[2 * i], acc[2 * i + 1]));
    }
}

typedef void (*few_fn)(const struct tensor *W, size_t first, size_t last,
    const struct group *g, float *y, size_t ldy);

/* The compiler makes one version for each type and number of rows. */
#define DEFINE_FEW(name, type, n)                                              \
    AVX2 static void name##_##n(const struct tensor *W, size_t first,          \
        size_t last, const struct group *g, float *y, size_t ldy)              \
    {                                                                          \
        few_outputs(type, W, first, last, g, n, y, ldy);                       \
    }

#define DEFINE_FEW_OF(name, type)                                              \
    DEFINE_FEW(name, type, 1)                                                  \
    DEFINE_FEW(name, type, 2)                                                  \
    DEFINE_FEW(name, type, 3)                                                  \
    DEFINE_FEW(name, type, 4)                                                  \
    static const few_fn name[GROUP] = {name##_1, name##_2, name##_3, name##_4};

DEFINE_FEW_OF(few_q8_0, TENSOR_Q8_0)
DEFINE_FEW_OF(few_q5_0, TENSOR_Q5_0)
DEFINE_FEW_OF(few_q4_0, TENSOR_Q4_0)
DEFINE_FEW_OF(few_q4_k, TENSOR_Q4_K)
DEFINE_FEW_OF(few_q6_k, TENSOR_Q6_K)

static const few_fn *
few_of(tensor_type type)
{
    if (type == TENSOR_Q8_0)
        return few_q8_0;
    if (type == TENSOR_Q5_0)
        return few_q5_0;
    if (type == TENSOR_Q4_0)
        return few_q4_0;
    return type == TENSOR_Q4_K ? few_q4_k : few_q6_k;
}

static void
few_quantised(const struct tensor *W, size_t first, size_t last,
    const struct activations *a, float *y, size_t ldy)
{
    const few_fn *few = few_of(W->type);
    size_t n_blocks = W->n_cols / ACT_BLOCK;
    for (size_t r = 0; r < a->n; r += GROUP) {
        size_t n = a->n - r < GROUP ? a->n - r : GROUP;
        struct group g = {
            .code = a->code + r * W->n_cols,
            .scale = a->scale + r * n_blocks,
            .sum = a->sum + r * n_blocks,
            .n_cols = W->n_cols,
            .n_blocks = n_blocks,
        };
        few[n - 1](W, first, last, &g, y + r * ldy, ldy);
    }
}

/* ---- floats ---- */

/* Rows of W that go together are several streams, which the hardware follows
 * worse than one: so lines behind them all are asked for in the order in which
 * they lie, this far ahead. */
#define FLOAT_AHEAD_BYTES 8192u

/* m outputs of n rows, both constants, m * n <= 8; one sum of eight lanes for
 * each. */
AVX2 INLINE void
float_tile(tensor_type type, const struct tensor *W, size_t o, size_t m,
    const float *x, size_t ldx, size_t n, float *y, size_t ldy)
{
    const uint8_t *w = W->data + o * W->row_bytes;
    const size_t step = m * (type == TENSOR_F32 ? 32 : 16); // bytes
    const char *ahead = (const char *)w + FLOAT_AHEAD_BYTES;
    size_t k = 0;
    __m256 acc[8];
#pragma GCC unroll 8
    for (size_t i = 0; i < m * n; i++)
        acc[i] = _mm256_setzero_ps();
    for (; k + 8 <= W->n_cols; k += 8, ahead += step) {
#pragma GCC unroll 2
        for (size_t i = 0; i < step; i += 64)
            _mm_prefetch(ahead + i, _MM_HINT_T0);
#pragma GCC unroll 4
        for (size_t j = 0; j < m; j++) {
            const uint8_t *row = w + j * W->row_bytes;
            __m256 v = load_floats(type, row, k);
#pragma GCC unroll 4
            for (size_t i = 0; i < n; i++)
                acc[j * n + i] = _mm256_fmadd_ps(
                    v, _mm256_loadu_ps(x + i * ldx + k), acc[j * n + i]);
        }
    }
    if (k < W->n_cols) {
        size_t left = W->n_cols - k;
#pragma GCC unroll 4
        for (size_t i = 0; i < n; i++) {
            __m256 v = load_last_floats(TENSOR_F32,
                (const uint8_t *)(const void *)(x + i * ldx), k, left);
#pragma GCC unroll 4
            for (size_t j = 0; j < m; j++)
                acc[j * n + i] = _mm256_fmadd_ps(
                    load_last_floats(type, w + j * W->row_bytes, k, left), v,
                    acc[j * n + i]);
        }
    }
#pragma GCC unroll 8
    for (size_t i = 0; i < m * n; i++)
        y[i % n * ldy + o + i / n] = sum_of_lanes(acc[i]);
}

/* All outputs for n rows, m outputs at a time. */
AVX2 INLINE void
float_outputs(tensor_type type, const struct tensor *W, size_t first,
    size_t last, size_t m, const float *x, size_t ldx, size_t n, float *y,
    size_t ldy)
{
    size_t o = first;
    for (; o + m <= last; o += m)
        float_tile(type, W, o, m, x, ldx, n, y, ldy);
    for (; o < last; o++)
        float_tile(type, W, o, 1, x, ldx, n, y, ldy);
}

AVX2 INLINE void
few_floats(tensor_type type, const struct tensor *W, size_t first, size_t last,
    const struct activations *a, float *y, size_t ldy)
{
    size_t r = 0;
    for (; r + 4 <= a->n; r += 4)
        float_outputs(type, W, first, last, 2, a->x + r * a->ld, a->ld, 4,
            y + r * ldy, ldy);
    for (; r + 2 <= a->n; r += 2)
        float_outputs(type, W, first, last, 4, a->x + r * a->ld, a->ld, 2,
            y + r * ldy, ldy);
    if (r < a->n)
        float_outputs(type, W, first, last, 4, a->x + r * a->ld, a->ld, 1,
            y + r * ldy, ldy);
}

#define DEFINE_FLOATS(name, type)                                              \
    AVX2 static void name(const struct tensor *W, size_t first, size_t last,   \
        const struct activations *a, float *y, size_t ldy)                     \
    {                                                                          \
        few_floats(type, W, first, last, a, y, ldy);                           \
    }

DEFINE_FLOATS(few_f32, TENSOR_F32)
DEFINE_FLOATS(few_f16, TENSOR_F16)
DEFINE_FLOATS(few_bf16, TENSOR_BF16)

/* ---- the way in ---- */

static void
few_chunk(const struct tensor *W, size_t first, size_t last,
    const struct activations *a, float *y, size_t ldy)
{
    if (W->type == TENSOR_F32)
        few_f32(W, first, last, a, y, ldy);
    else if (W->type == TENSOR_F16)
        few_f16(W, first, last, a, y, ldy);
    else if (W->type == TENSOR_BF16)
        few_bf16(W, first, last, a, y, ldy);
    else
        few_quantised(W, first, last, a, y, ldy);
}

void
avx2_mul_few(const struct tensor *W, size_t first, size_t last,
    const struct activations *a, float *y, size_t ldy)
{
    size_t step = last - first;
    if (a->n > GROUP) {
        step = CHUNK_BYTES / W->row_bytes / GROUP * GROUP;
        step = step > 0 ? step : GROUP;
    }
    for (size_t o = first; o < last; o += step)
        few_chunk(W, o, last - o < step ? last : o + step, a, y, ldy);
}

#endif
