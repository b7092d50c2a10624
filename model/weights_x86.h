/* SPDX-License-Identifier: Apache-2.0
 * model/weights_x86.h - blocks of weights, read into AVX2 registers.
 *
 * Codes come as int16 in the order of the columns: 32 of a block in two
 * registers. What a code stands for is code * scale - offset; ref_compute.c
 * describes the layouts.
 *
 * Private to compute_x86*.c; only for x86-64. */
#ifndef MB_MODEL_WEIGHTS_X86_H
#define MB_MODEL_WEIGHTS_X86_H

#include "compute.h"

#include <immintrin.h>
#include <string.h>

#define AVX2   __attribute__((target("avx2,fma,f16c")))
#define INLINE __attribute__((always_inline)) static inline

/* Bytes of a block; values of one are tensor_block_values(). */
#define Q8_0_BYTES 34u
#define Q5_0_BYTES 22u
#define Q4_0_BYTES 18u
#define Q4_K_BYTES 144u
#define Q6_K_BYTES 210u
#define SUPER      256u /* values of a block of Q4_K and Q6_K */

/* Codes [0, 16) and [16, 32) of a block. */
struct words {
    __m256i first;
    __m256i second;
};

AVX2 INLINE __m128i
load_16(const void *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}

AVX2 INLINE __m256i
load_32(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

/* ---- floats ---- */

/* The binary16 at p, in all lanes. */
AVX2 INLINE __m256
half_at(const uint8_t *p)
{
    int16_t bits;
    memcpy(&bits, p, sizeof(bits));
    return _mm256_cvtph_ps(_mm_set1_epi16(bits));
}

/* Values [i, i + 8) of a row of floats. */
AVX2 INLINE __m256
load_floats(tensor_type type, const uint8_t *row, size_t i)
{
    if (type == TENSOR_F16)
        return _mm256_cvtph_ps(load_16(row + 2 * i));
    if (type == TENSOR_BF16)
        return _mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16(row + 2 * i)), 16));
    return _mm256_loadu_ps((const float *)(const void *)(row + 4 * i));
}

/* The same where only n < 8 are left: zeros behind. */
AVX2 INLINE __m256
load_last_floats(tensor_type type, const uint8_t *row, size_t i, size_t n)
{
    uint8_t copy[32] = {0};
    size_t bytes = type == TENSOR_F32 ? 4 : 2;
    memcpy(copy, row + bytes * i, bytes * n);
    return load_floats(type, copy, 0);
}

/* Sum of the eight lanes, always in the same order. */
AVX2 INLINE float
sum_of_lanes(__m256 v)
{
    __m128 x =
        _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    x = _mm_add_ss(x, _mm_movehdup_ps(x));
    return _mm_cvtss_f32(x);
}

/* ---- blocks of 32 ---- */

AVX2 INLINE struct words
words_q8_0(const uint8_t *block)
{
    return (struct words){_mm256_cvtepi8_epi16(load_16(block + 2)),
        _mm256_cvtepi8_epi16(load_16(block + 18))};
}

/* The low four bits of bytes in words, and the high ones. */
AVX2 INLINE __m256i
low_bits(__m256i w)
{
    return _mm256_and_si256(w, _mm256_set1_epi16(15));
}

AVX2 INLINE __m256i
high_bits(__m256i w)
{
    return _mm256_srli_epi16(w, 4);
}

AVX2 INLINE struct words
words_q4_0(const uint8_t *block)
{
    const __m256i eight = _mm256_set1_epi16(8);
    __m256i w = _mm256_cvtepu8_epi16(load_16(block + 2));
    return (struct words){_mm256_sub_epi16(low_bits(w), eight),
        _mm256_sub_epi16(high_bits(w), eight)};
}

AVX2 INLINE struct words
words_of_bytes(__m256i bytes)
{
    return (struct words){_mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes)),
        _mm256_cvtepi8_epi16(_mm256_extracti128_si256(bytes, 1))};
}

/* Without its fifth bit a code is 16 less: the byte's high half becomes ones,
 * as a small negative number has. */
AVX2 INLINE struct words
words_q5_0(const uint8_t *block)
{
    const __m256i byte_of_bit = _mm256_setr_epi64x(
        0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    int32_t fifth;
    memcpy(&fifth, block + 2, sizeof(fifth));
    __m256i bits = _mm256_shuffle_epi8(_mm256_set1_epi32(fifth), byte_of_bit);
    __m256i is_off =
        _mm256_cmpeq_epi8(_mm256_and_si256(bits, bit), _mm256_setzero_si256());
    __m128i q = load_16(block + 6);
    __m256i low = _mm256_and_si256(
        _mm256_set_m128i(_mm_srli_epi16(q, 4), q), _mm256_set1_epi8(15));
    return words_of_bytes(_mm256_or_si256(
        low, _mm256_and_si256(is_off, _mm256_set1_epi8((char)0xf0))));
}

/* Any of the three; type is a constant. */
AVX2 INLINE struct words
words_of_block(tensor_type type, const uint8_t *block)
{
    if (type == TENSOR_Q8_0)
        return words_q8_0(block);
    return type == TENSOR_Q5_0 ? words_q5_0(block) : words_q4_0(block);
}

AVX2 INLINE size_t
bytes_of_block(tensor_type type)
{
    if (type == TENSOR_Q8_0)
        return Q8_0_BYTES;
    return type == TENSOR_Q5_0 ? Q5_0_BYTES : Q4_0_BYTES;
}

/* ---- parts of 64 of a block of Q4_K ---- */

/* Blocks 2 pair and 2 pair + 1 of the eight. */
AVX2 INLINE void
words_q4_k(const uint8_t *block, size_t pair, struct words out[2])
{
    const uint8_t *q = block + 16 + 32 * pair;
    __m256i a = _mm256_cvtepu8_epi16(load_16(q));
    __m256i b = _mm256_cvtepu8_epi16(load_16(q + 16));
    out[0] = (struct words){low_bits(a), low_bits(b)};
    out[1] = (struct words){high_bits(a), high_bits(b)};
}

AVX2 INLINE __m256
floats_of_bytes(uint64_t bytes)
{
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes)));
}

/* Scales and offsets of the eight blocks. */
AVX2 INLINE void
scales_q4_k(const uint8_t *block, __m256 *scale, __m256 *offset)
{
    const uint32_t low_six = 0x3f3f3f3f;
    const uint32_t low_four = 0x0f0f0f0f;
    const uint32_t top_two = 0x30303030;
    uint32_t s[3];
    memcpy(s, block + 4, sizeof(s));
    uint32_t scales = (s[2] & low_four) | (s[0] >> 2 & top_two);
    uint32_t offsets = (s[2] >> 4 & low_four) | (s[1] >> 2 & top_two);
    *scale = _mm256_mul_ps(half_at(block),
        floats_of_bytes((uint64_t)scales << 32 | (s[0] & low_six)));
    *offset = _mm256_mul_ps(half_at(block + 2),
        floats_of_bytes((uint64_t)offsets << 32 | (s[1] & low_six)));
}

/* ---- halves of 128 of a block of Q6_K ---- */

/* Codes of four blocks of 32 as int8. */
AVX2 INLINE void
bytes_q6_k(const uint8_t *block, size_t half, __m256i out[4])
{
    const __m256i low_four = _mm256_set1_epi8(15);
    const __m256i top_two = _mm256_set1_epi8(0x30);
    const __m256i middle = _mm256_set1_epi8(32);
    __m256i a = load_32(block + 64 * half);
    __m256i b = load_32(block + 64 * half + 32);
    __m256i high = load_32(block + 128 + 32 * half);
    __m256i low[4] = {a, b, _mm256_srli_epi16(a, 4), _mm256_srli_epi16(b, 4)};
    __m256i top[4] = {_mm256_slli_epi16(high, 4), _mm256_slli_epi16(high, 2),
        high, _mm256_srli_epi16(high, 2)};
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        __m256i bits = _mm256_or_si256(_mm256_and_si256(low[i], low_four),
            _mm256_and_si256(top[i], top_two));
        out[i] = _mm256_sub_epi8(bits, middle);
    }
}

#endif
