/* SPDX-License-Identifier: Apache-2.0
 * model/compute_x86_wide.c - tiles of mul_many for AVX-512 with VNNI.
 *
 * A pair of columns of a panel is one register, and vpdpwssd multiplies and
 * adds it in one go. Panels, sums and their order are those of AVX2, lane by
 * lane: so are the bits of the results. */
#include "compute_x86.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "many_x86.h"
#include "weights_x86.h"

#define AVX512 __attribute__((target("avx512f,avx512vnni")))

/* Of 32 registers: sums, and what is on its way. */
#define CODE_ROWS  8u
#define FLOAT_ROWS 12u

/* Sums (n, 16) over the pairs at w, which are 8 or 16. */
AVX512 INLINE void
sum_pairs(const uint8_t *w, size_t pairs, const int16_t *code, size_t n_cols,
    size_t n, __m512i *sums)
{
#pragma GCC unroll 8
    for (size_t i = 0; i < n; i++)
        sums[i] = _mm512_setzero_si512();
    for (size_t k = 0; k < pairs; k++) {
        __m512i v = _mm512_loadu_si512(w + 64 * k);
#pragma GCC unroll 8
        for (size_t i = 0; i < n; i++) {
            int32_t pair;
            memcpy(&pair, code + i * n_cols + 2 * k, sizeof(pair));
            sums[i] = _mm512_dpwssd_epi32(sums[i], v, _mm512_set1_epi32(pair));
        }
    }
}

/* y (n, 16) += n rows times a panel; type and n are constants. */
AVX512 INLINE void
code_tile(tensor_type type, const uint8_t *panel, size_t n_blocks,
    const struct code_rows *x, size_t n, float *y, size_t ldy)
{
    const size_t parts = type == TENSOR_Q6_K ? 2 : 1;
    const size_t pairs = 16 / parts;
    for (size_t b = 0; b < n_blocks; b++, panel += BLOCK_BYTES) {
        const float *scales = (const float *)(const void *)(panel + SCALES_AT);
        for (size_t part = 0; part < parts; part++, scales += PANEL) {
            __m512i sums[CODE_ROWS];
            sum_pairs(panel + 64 * pairs * part, pairs,
                x->code + BLOCK_COLUMNS * b + 16 * part, x->n_cols, n, sums);
#pragma GCC unroll 8
            for (size_t i = 0; i < n; i++) {
                size_t at = i * x->n_blocks + b;
                __m512 v = _mm512_mul_ps(
                    _mm512_cvtepi32_ps(sums[i]), _mm512_loadu_ps(scales));
                v = _mm512_fmadd_ps(v, _mm512_set1_ps(x->scale[at]),
                    _mm512_loadu_ps(y + i * ldy));
                if (type == TENSOR_Q4_K)
                    v = _mm512_fnmadd_ps(_mm512_loadu_ps(scales + PANEL),
                        _mm512_set1_ps(x->sum[at]), v);
                _mm512_storeu_ps(y + i * ldy, v);
            }
        }
    }
}

#define DEFINE_TILE(name, type, n)                                             \
    AVX512 static void name##_##n(const uint8_t *panel, size_t n_blocks,       \
        const struct code_rows *x, float *y, size_t ldy)                       \
    {                                                                          \
        code_tile(type, panel, n_blocks, x, n, y, ldy);                        \
    }

#define DEFINE_TILES(name, type)                                               \
    DEFINE_TILE(name, type, 1)                                                 \
    DEFINE_TILE(name, type, 2)                                                 \
    DEFINE_TILE(name, type, 3)                                                 \
    DEFINE_TILE(name, type, 4)                                                 \
    DEFINE_TILE(name, type, 5)                                                 \
    DEFINE_TILE(name, type, 6)                                                 \
    DEFINE_TILE(name, type, 7)                                                 \
    DEFINE_TILE(name, type, 8)                                                 \
    static const code_fn name[CODE_ROWS] = {name##_1, name##_2, name##_3,      \
        name##_4, name##_5, name##_6, name##_7, name##_8};

DEFINE_TILES(tile_q_0, TENSOR_Q8_0)
DEFINE_TILES(tile_q4_k, TENSOR_Q4_K)
DEFINE_TILES(tile_q6_k, TENSOR_Q6_K)

/* y (n, 16) += x (n, k) times a panel; n is a constant. */
AVX512 INLINE void
float_tile(const float *panel, size_t n_cols, const float *x, size_t ldx,
    size_t n, float *y, size_t ldy)
{
    __m512 sum[FLOAT_ROWS];
#pragma GCC unroll 12
    for (size_t i = 0; i < n; i++)
        sum[i] = _mm512_loadu_ps(y + i * ldy);
    for (size_t k = 0; k < n_cols; k++) {
        __m512 w = _mm512_loadu_ps(panel + PANEL * k);
#pragma GCC unroll 12
        for (size_t i = 0; i < n; i++)
            sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(x[i * ldx + k]), w, sum[i]);
    }
#pragma GCC unroll 12
    for (size_t i = 0; i < n; i++)
        _mm512_storeu_ps(y + i * ldy, sum[i]);
}

#define DEFINE_FLOAT_TILE(n)                                                   \
    AVX512 static void float_tile_##n(const float *panel, size_t n_cols,       \
        const float *x, size_t ldx, float *y, size_t ldy)                      \
    {                                                                          \
        float_tile(panel, n_cols, x, ldx, n, y, ldy);                          \
    }

DEFINE_FLOAT_TILE(1)
DEFINE_FLOAT_TILE(2)
DEFINE_FLOAT_TILE(3)
DEFINE_FLOAT_TILE(4)
DEFINE_FLOAT_TILE(5)
DEFINE_FLOAT_TILE(6)
DEFINE_FLOAT_TILE(7)
DEFINE_FLOAT_TILE(8)
DEFINE_FLOAT_TILE(9)
DEFINE_FLOAT_TILE(10)
DEFINE_FLOAT_TILE(11)
DEFINE_FLOAT_TILE(12)

void
avx512_mul_many(const struct tensor *W, size_t first, size_t last,
    const struct activations *a, float *y, size_t ldy, float *room)
{
    static const float_fn floats[FLOAT_ROWS] = {float_tile_1, float_tile_2,
        float_tile_3, float_tile_4, float_tile_5, float_tile_6, float_tile_7,
        float_tile_8, float_tile_9, float_tile_10, float_tile_11,
        float_tile_12};
    static const struct tiles tiles = {
        tile_q_0, tile_q4_k, tile_q6_k, floats, CODE_ROWS, FLOAT_ROWS};
    many_with_tiles(&tiles, W, first, last, a, y, ldy, room);
}

#endif
