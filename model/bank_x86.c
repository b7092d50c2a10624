/* SPDX-License-Identifier: Apache-2.0
 * model/bank_x86.c - the way out of a memory block with AVX2.
 *
 * Weights lie with the hidden units as rows, so that a hidden unit's share goes
 * to all columns at once: y += h[j] W[j]. Sixteen columns of two registers are
 * taken for up to four rows of activations; for more rows the weights of a tile
 * are unpacked to floats once. Every sum runs over j in order with one fused
 * step each, whatever goes beside it, so tiles and batch mates do not show. */
#include "bank_block.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "weights_x86.h"

#define COLUMNS   16u /* of a tile: two registers */
#define MAX_ROWS  4u  /* of activations at a time */
#define FEW       4u  /* rows up to which weights are not unpacked before */
#define UNPACKED  (BANK_ROOM_FLOATS / COLUMNS) /* rows of W at a time */
#define Q8_VALUES 32u

/* Eight weights of a row, from column c on, c a multiple of 8. */
AVX2 INLINE __m256
load_weights(tensor_type type, const uint8_t *row, size_t c)
{
    if (type != TENSOR_Q8_0)
        return load_floats(type, row, c);
    const uint8_t *block = row + c / Q8_VALUES * Q8_0_BYTES;
    __m128i codes = _mm_loadl_epi64(
        (const __m128i *)(const void *)(block + 2 + c % Q8_VALUES));
    return _mm256_mul_ps(
        half_at(block), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)));
}

/* Where the next weights come from: the tensor, or floats (rows, COLUMNS). */
struct source {
    const struct tensor *W;
    const float *unpacked;
    size_t column;
    size_t first; /* row of W that comes first */
    size_t n;     /* rows of W */
};

AVX2 INLINE __m256
next_weights(const struct source *s, tensor_type type, size_t j, size_t half)
{
    if (s->unpacked)
        return _mm256_loadu_ps(s->unpacked + j * COLUMNS + 8 * half);
    return load_weights(type, s->W->data + (s->first + j) * s->W->row_bytes,
        s->column + 8 * half);
}

/* y (n_rows, 8 n_halves columns) += h W. n_rows and n_halves are constants
 * where this is inlined. */
AVX2 INLINE void
tile(const struct source *s, tensor_type type, const float *h, size_t ldh,
    float *y, size_t ldy, size_t n_rows, size_t n_halves)
{
    __m256 sum[MAX_ROWS][2];
#pragma GCC unroll 4
    for (size_t r = 0; r < n_rows; r++) {
#pragma GCC unroll 2
        for (size_t i = 0; i < n_halves; i++)
            sum[r][i] = _mm256_loadu_ps(y + r * ldy + 8 * i);
    }
    for (size_t j = 0; j < s->n; j++) {
        __m256 w[2];
#pragma GCC unroll 2
        for (size_t i = 0; i < n_halves; i++)
            w[i] = next_weights(s, type, j, i);
#pragma GCC unroll 4
        for (size_t r = 0; r < n_rows; r++) {
            __m256 x = _mm256_broadcast_ss(h + r * ldh + j);
#pragma GCC unroll 2
            for (size_t i = 0; i < n_halves; i++)
                sum[r][i] = _mm256_fmadd_ps(x, w[i], sum[r][i]);
        }
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < n_rows; r++) {
#pragma GCC unroll 2
        for (size_t i = 0; i < n_halves; i++)
            _mm256_storeu_ps(y + r * ldy + 8 * i, sum[r][i]);
    }
}

/* All rows of activations for one source. */
AVX2 INLINE void
all_rows(const struct source *s, tensor_type type, const float *h, size_t ldh,
    size_t n, float *y, size_t ldy, size_t n_halves)
{
    size_t r = 0;
    for (; r + 4 <= n; r += 4)
        tile(s, type, h + r * ldh, ldh, y + r * ldy, ldy, 4, n_halves);
    for (; r + 2 <= n; r += 2)
        tile(s, type, h + r * ldh, ldh, y + r * ldy, ldy, 2, n_halves);
    if (r < n)
        tile(s, type, h + r * ldh, ldh, y + r * ldy, ldy, 1, n_halves);
}

/* Columns [column, column + 8 n_halves). */
AVX2 INLINE void
columns(const struct tensor *W, tensor_type type, size_t column, const float *h,
    size_t ldh, size_t n, float *y, size_t ldy, float *room, size_t n_halves)
{
    for (size_t first = 0; first < W->n_rows; first += UNPACKED) {
        size_t left = W->n_rows - first;
        struct source s = {
            W, NULL, column, first, left < UNPACKED ? left : UNPACKED};
        if (n > FEW) {
            for (size_t j = 0; j < s.n; j++) {
                for (size_t i = 0; i < n_halves; i++)
                    _mm256_storeu_ps(room + j * COLUMNS + 8 * i,
                        next_weights(&s, type, j, i));
            }
            s.unpacked = room;
        }
        all_rows(&s, type, h + first, ldh, n, y + column, ldy, n_halves);
    }
}

/* The last columns of a width that is no multiple of 8: with copies whose
 * missing columns are zero. Q8_0 has whole blocks, so none of these. */
AVX2 static void
last_columns(const struct tensor *W, size_t column, const float *h, size_t ldh,
    size_t n, float *y, size_t ldy)
{
    size_t left = W->n_cols - column;
    for (size_t r = 0; r < n; r++) {
        float copy[8] = {0};
        memcpy(copy, y + r * ldy + column, left * sizeof(float));
        __m256 sum = _mm256_loadu_ps(copy);
        for (size_t j = 0; j < W->n_rows; j++) {
            __m256 w = load_last_floats(
                W->type, W->data + j * W->row_bytes, column, left);
            sum = _mm256_fmadd_ps(_mm256_broadcast_ss(h + r * ldh + j), w, sum);
        }
        _mm256_storeu_ps(copy, sum);
        memcpy(y + r * ldy + column, copy, left * sizeof(float));
    }
}

AVX2 INLINE void
out_of(const struct tensor *W, tensor_type type, size_t first, size_t last,
    const float *h, size_t ldh, size_t n, float *y, size_t ldy, float *room)
{
    size_t c = first;
    for (; c + COLUMNS <= last; c += COLUMNS)
        columns(W, type, c, h, ldh, n, y, ldy, room, 2);
    if (c + 8 <= last) {
        columns(W, type, c, h, ldh, n, y, ldy, room, 1);
        c += 8;
    }
    if (c < last)
        last_columns(W, c, h, ldh, n, y, ldy);
}

AVX2 static void
out_avx2(const struct tensor *W, size_t first, size_t last, const float *h,
    size_t ldh, size_t n, float *y, size_t ldy, float *room)
{
    MB_ASSERT(first % 8 == 0 && (last % 8 == 0 || last == W->n_cols));
    switch (W->type) {
    case TENSOR_F32:
        out_of(W, TENSOR_F32, first, last, h, ldh, n, y, ldy, room);
        break;
    case TENSOR_BF16:
        out_of(W, TENSOR_BF16, first, last, h, ldh, n, y, ldy, room);
        break;
    default:
        out_of(W, TENSOR_Q8_0, first, last, h, ldh, n, y, ldy, room);
        break;
    }
}

bank_out_fn
bank_out_best(void)
{
    return compute_at(COMPUTE_AVX2) ? out_avx2 : bank_out_plain;
}

#else

bank_out_fn
bank_out_best(void)
{
    return bank_out_plain;
}

#endif
