/* SPDX-License-Identifier: Apache-2.0
 * model/compute_x86_many.c - many rows of activations times W, with AVX2.
 *
 * Sixteen outputs make a panel, in which the weights of a column lie side by
 * side, so that a lane of a register is an output and no sum crosses lanes.
 * As many panels as the room holds are unpacked at once, then all rows go over
 * them: four at a time as int16 against quantised weights, in pairs of columns
 * (vpmaddwd does 16 products, an FMA eight: half the time), six at a time as
 * floats against floats.
 *
 * What keeps a result apart from company: products of a block of codes are
 * summed as integers, exactly; floats in rising order of blocks, or columns,
 * by one chain for each output of each row. Where columns are cut into stretches
 * the chain waits in y, which changes no bit of it. */
#include "compute_x86.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "many_x86.h"
#include "weights_x86.h"

/* Rows that go over a panel together: of codes, of floats. */
#define CODE_ROWS  4u
#define FLOAT_ROWS 6u

static size_t
least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- transposing ---- */

/* Eight registers of eight 32-bit elements change rows and columns. */
AVX2 INLINE void
transpose_8(__m256i r[8])
{
    __m256i a[8];
    __m256i b[8];
#pragma GCC unroll 4
    for (size_t i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (size_t i = 0; i < 8; i += 4) {
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        r[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        r[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

/* ---- panels of codes ---- */

/* Blocks that are unpacked together: a part of a row of Q4_K and Q6_K is read
 * for several. */
AVX2 INLINE size_t
unit_of(tensor_type type)
{
    return type == TENSOR_Q4_K ? 2 : type == TENSOR_Q6_K ? 4 : 1;
}

/* Blocks [b, b + unit) of a row. */
AVX2 INLINE void
read_unit(tensor_type type, const uint8_t *row, size_t b, struct words *out)
{
    if (type == TENSOR_Q4_K) {
        words_q4_k(row + b / 8 * Q4_K_BYTES, b % 8 / 2, out);
    } else if (type != TENSOR_Q6_K) {
        out[0] = words_of_block(type, row + b * bytes_of_block(type));
    } else {
        __m256i bytes[4];
        bytes_q6_k(row + b / 8 * Q6_K_BYTES, b % 8 / 4, bytes);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++)
            out[i] = words_of_bytes(bytes[i]);
    }
}

AVX2 INLINE void
store_32(void *p, __m256i v)
{
    _mm256_storeu_si256((__m256i *)p, v);
}

/* Codes of blocks [b, b + unit) of eight rows, for outputs [half, half + 8) of
 * the panel's block at `out`. */
AVX2 INLINE void
put_codes(tensor_type type, const uint8_t *const rows[8], size_t b, size_t half,
    uint8_t *out)
{
    struct words w[8][4];
    __m256i r[8];
    size_t unit = unit_of(type);
    for (size_t i = 0; i < 8; i++)
        read_unit(type, rows[i], b, w[i]);
    for (size_t u = 0; u < unit; u++, out += BLOCK_BYTES) {
        uint8_t *to = out + 4 * half;
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++)
            r[i] = w[i][u].first;
        transpose_8(r);
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++)
            store_32(to + 64 * i, r[i]);
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++)
            r[i] = w[i][u].second;
        transpose_8(r);
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++)
            store_32(to + 512 + 64 * i, r[i]);
    }
}

/* Eight rows with one float each for eight blocks. */
AVX2 INLINE void
put_floats(__m256 v[8], size_t step, uint8_t *out)
{
    __m256i r[8];
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++)
        r[i] = _mm256_castps_si256(v[i]);
    transpose_8(r);
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++)
        store_32(out + i * step, r[i]);
}

/* Scales of the 256 columns of Q4_K from block b on. */
AVX2 INLINE void
put_scales_q4_k(const uint8_t *const rows[8], size_t b, uint8_t *out)
{
    __m256 scale[8];
    __m256 offset[8];
    for (size_t i = 0; i < 8; i++)
        scales_q4_k(rows[i] + b / 8 * Q4_K_BYTES, &scale[i], &offset[i]);
    put_floats(scale, BLOCK_BYTES, out + SCALES_AT);
    put_floats(offset, BLOCK_BYTES, out + OFFSETS_AT);
}

AVX2 INLINE void
put_scales_q6_k(const uint8_t *const rows[8], size_t b, uint8_t *out)
{
    __m256 scale[8];
    /* Blocks 0 to 3 of eight, then the others; scales come in pairs. */
    for (size_t part = 0; part < 2; part++) {
        for (size_t i = 0; i < 8; i++) {
            const uint8_t *block = rows[i] + b / 8 * Q6_K_BYTES;
            /* Eight bytes, no more: a file may end with the block. */
            __m256i codes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(
                (const __m128i *)(const void *)(block + 192 + 8 * part)));
            /* Even ones in front of odd ones. */
            codes = _mm256_permutevar8x32_epi32(
                codes, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
            scale[i] =
                _mm256_mul_ps(half_at(block + 208), _mm256_cvtepi32_ps(codes));
        }
        uint8_t room[8 * 32];
        put_floats(scale, 32, room);
        for (size_t i = 0; i < 8; i++)
            memcpy(out + (4 * part + i % 4) * BLOCK_BYTES + SCALES_AT +
                       64 * (i / 4),
                room + 32 * i, 32);
    }
}

/* Scales of blocks from b on, of one block or of eight. */
AVX2 INLINE void
put_scales(
    tensor_type type, const uint8_t *const rows[8], size_t b, uint8_t *out)
{
    if (type == TENSOR_Q4_K) {
        put_scales_q4_k(rows, b, out);
    } else if (type == TENSOR_Q6_K) {
        put_scales_q6_k(rows, b, out);
    } else {
        size_t bytes = bytes_of_block(type);
        uint8_t half[16];
        for (size_t i = 0; i < 8; i++)
            memcpy(half + 2 * i, rows[i] + b * bytes, 2);
        store_32(out + SCALES_AT,
            _mm256_castps_si256(_mm256_cvtph_ps(load_16(half))));
    }
}

/* Blocks [b, b + n) of the sixteen rows. */
AVX2 INLINE void
unpack_codes(tensor_type type, const uint8_t *const rows[PANEL], size_t b,
    size_t n, uint8_t *out)
{
    size_t unit = unit_of(type);
    size_t scale_unit = unit == 1 ? 1 : 8;
    for (size_t half = 0; half < PANEL; half += 8) {
        for (size_t i = 0; i < n; i += unit)
            put_codes(type, rows + half, b + i, half, out + i * BLOCK_BYTES);
        for (size_t i = 0; i < n; i += scale_unit)
            put_scales(
                type, rows + half, b + i, out + i * BLOCK_BYTES + 4 * half);
    }
}

#define DEFINE_UNPACK(name, type)                                              \
    AVX2 static void name(                                                     \
        const uint8_t *const rows[PANEL], size_t b, size_t n, uint8_t *out)    \
    {                                                                          \
        unpack_codes(type, rows, b, n, out);                                   \
    }

DEFINE_UNPACK(unpack_q8_0, TENSOR_Q8_0)
DEFINE_UNPACK(unpack_q5_0, TENSOR_Q5_0)
DEFINE_UNPACK(unpack_q4_0, TENSOR_Q4_0)
DEFINE_UNPACK(unpack_q4_k, TENSOR_Q4_K)
DEFINE_UNPACK(unpack_q6_k, TENSOR_Q6_K)

/* ---- rows over a panel of codes ---- */

/* Eight outputs += sums * scales of W * scale of the row, less offsets of W *
 * sum of the row if the type has them. */
AVX2 INLINE void
add_scaled(tensor_type type, float *y, __m256i sums, const float *scales,
    __m256 x_scale, __m256 x_sum)
{
    __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_loadu_ps(scales));
    v = _mm256_fmadd_ps(v, x_scale, _mm256_loadu_ps(y));
    if (type == TENSOR_Q4_K)
        v = _mm256_fnmadd_ps(_mm256_loadu_ps(scales + PANEL), x_sum, v);
    _mm256_storeu_ps(y, v);
}

/* Two columns at p of a row. */
AVX2 INLINE __m256i
pair_at(const int16_t *p)
{
    int32_t pair;
    memcpy(&pair, p, sizeof(pair));
    return _mm256_set1_epi32(pair);
}

/* Integers may be added in any order, and gcc does so: more sums are under way
 * than there are registers. This ties a sum to its place. */
#define KEEP(v) __asm__("" : "+x"(v))

/* One pair of columns onto sums (n, 16). */
AVX2 INLINE void
add_pair(const uint8_t *w, const int16_t *code, size_t n_cols, size_t n,
    __m256i *sums)
{
    __m256i w0 = load_32(w);
    __m256i w1 = load_32(w + 32);
#pragma GCC unroll 4
    for (size_t i = 0; i < n; i++) {
        __m256i v = pair_at(code + i * n_cols);
        sums[2 * i] = _mm256_add_epi32(sums[2 * i], _mm256_madd_epi16(w0, v));
        sums[2 * i + 1] =
            _mm256_add_epi32(sums[2 * i + 1], _mm256_madd_epi16(w1, v));
        KEEP(sums[2 * i]);
        KEEP(sums[2 * i + 1]);
    }
}

/* Sums (n, 16) over the pairs at w, which are 8 or 16. */
AVX2 INLINE void
sum_pairs(const uint8_t *w, size_t pairs, const int16_t *code, size_t n_cols,
    size_t n, __m256i *sums)
{
#pragma GCC unroll 8
    for (size_t i = 0; i < 2 * n; i++)
        sums[i] = _mm256_setzero_si256();
    /* Four written out, no more: gcc would move sums about. */
    for (size_t k = 0; k < pairs; k += 4) {
#pragma GCC unroll 4
        for (size_t j = k; j < k + 4; j++)
            add_pair(w + 64 * j, code + 2 * j, n_cols, n, sums);
    }
}

/* y (n, 16) += n rows times a panel; n is a constant, 1 to CODE_ROWS, and so
 * is the type. */
AVX2 INLINE void
code_tile(tensor_type type, const uint8_t *panel, size_t n_blocks,
    const struct code_rows *x, size_t n, float *y, size_t ldy)
{
    const size_t parts = type == TENSOR_Q6_K ? 2 : 1;
    for (size_t b = 0; b < n_blocks; b++, panel += BLOCK_BYTES) {
        const float *scales = (const float *)(const void *)(panel + SCALES_AT);
        for (size_t part = 0; part < parts; part++, scales += PANEL) {
            __m256i sums[2 * CODE_ROWS];
            size_t pairs = 16 / parts;
            sum_pairs(panel + part * 512, pairs,
                x->code + BLOCK_COLUMNS * b + part * 16, x->n_cols, n, sums);
#pragma GCC unroll 4
            for (size_t i = 0; i < n; i++) {
                size_t at = i * x->n_blocks + b;
                __m256 scale = _mm256_broadcast_ss(x->scale + at);
                __m256 sum = _mm256_broadcast_ss(x->sum + at);
                float *to = y + i * ldy;
                add_scaled(type, to, sums[2 * i], scales, scale, sum);
                add_scaled(
                    type, to + 8, sums[2 * i + 1], scales + 8, scale, sum);
            }
        }
    }
}

/* The compiler makes one version for each kind and number of rows. */
#define DEFINE_TILE(name, type, n)                                             \
    AVX2 static void name##_##n(const uint8_t *panel, size_t n_blocks,         \
        const struct code_rows *x, float *y, size_t ldy)                       \
    {                                                                          \
        code_tile(type, panel, n_blocks, x, n, y, ldy);                        \
    }

#define DEFINE_TILES(name, type)                                               \
    DEFINE_TILE(name, type, 1)                                                 \
    DEFINE_TILE(name, type, 2)                                                 \
    DEFINE_TILE(name, type, 3)                                                 \
    DEFINE_TILE(name, type, 4)                                                 \
    static const code_fn name[CODE_ROWS] = {                                   \
        name##_1, name##_2, name##_3, name##_4};

DEFINE_TILES(tile_q_0, TENSOR_Q8_0)
DEFINE_TILES(tile_q4_k, TENSOR_Q4_K)
DEFINE_TILES(tile_q6_k, TENSOR_Q6_K)

/* ---- panels of floats ---- */

/* Columns [first, last) of sixteen rows as out[column][output]. */
AVX2 INLINE void
unpack_floats(tensor_type type, const uint8_t *const rows[PANEL], size_t first,
    size_t last, float *out)
{
    __m256i r[8];
    for (size_t half = 0; half < PANEL; half += 8) {
        for (size_t k = first; k < last; k += 8) {
            size_t n = least(last - k, 8);
#pragma GCC unroll 8
            for (size_t i = 0; i < 8; i++)
                r[i] = _mm256_castps_si256(
                    n == 8 ? load_floats(type, rows[half + i], k)
                           : load_last_floats(type, rows[half + i], k, n));
            transpose_8(r);
            for (size_t i = 0; i < n; i++)
                store_32(out + (k - first + i) * PANEL + half, r[i]);
        }
    }
}

AVX2 static void
unpack_f32(
    const uint8_t *const rows[PANEL], size_t first, size_t last, float *out)
{
    unpack_floats(TENSOR_F32, rows, first, last, out);
}

AVX2 static void
unpack_f16(
    const uint8_t *const rows[PANEL], size_t first, size_t last, float *out)
{
    unpack_floats(TENSOR_F16, rows, first, last, out);
}

AVX2 static void
unpack_bf16(
    const uint8_t *const rows[PANEL], size_t first, size_t last, float *out)
{
    unpack_floats(TENSOR_BF16, rows, first, last, out);
}

/* y (n, 16) += x (n, k) times a panel; n is a constant, 1 to FLOAT_ROWS. */
AVX2 INLINE void
float_tile(const float *panel, size_t n_cols, const float *x, size_t ldx,
    size_t n, float *y, size_t ldy)
{
    __m256 sum[2 * FLOAT_ROWS];
#pragma GCC unroll 8
    for (size_t i = 0; i < n; i++) {
        sum[2 * i] = _mm256_loadu_ps(y + i * ldy);
        sum[2 * i + 1] = _mm256_loadu_ps(y + i * ldy + 8);
    }
    for (size_t k = 0; k < n_cols; k++) {
        __m256 w0 = _mm256_loadu_ps(panel + PANEL * k);
        __m256 w1 = _mm256_loadu_ps(panel + PANEL * k + 8);
#pragma GCC unroll 8
        for (size_t i = 0; i < n; i++) {
            __m256 v = _mm256_broadcast_ss(x + i * ldx + k);
            sum[2 * i] = _mm256_fmadd_ps(v, w0, sum[2 * i]);
            sum[2 * i + 1] = _mm256_fmadd_ps(v, w1, sum[2 * i + 1]);
        }
    }
#pragma GCC unroll 8
    for (size_t i = 0; i < n; i++) {
        _mm256_storeu_ps(y + i * ldy, sum[2 * i]);
        _mm256_storeu_ps(y + i * ldy + 8, sum[2 * i + 1]);
    }
}

#define DEFINE_FLOAT_TILE(n)                                                   \
    AVX2 static void float_tile_##n(const float *panel, size_t n_cols,         \
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

/* ---- all panels ---- */

/* A stretch of columns of some panels in the room. */
struct stretch {
    const struct tiles *tiles;
    const struct tensor *W;
    const struct activations *a;
    float *room;
    size_t first; /* output of the first panel */
    size_t last;  /* behind the last output */
    size_t from;  /* column */
    size_t to;
    size_t panel_floats; /* from panel to panel */
    float *y;
    size_t ldy;
};

/* n rows from r on over a panel, into y or a tile of sixteen outputs. */
static void
run_tile(const struct stretch *s, const float *panel, size_t r, size_t n,
    float *y, size_t ldy)
{
    const struct activations *a = s->a;
    size_t n_cols = s->W->n_cols;
    size_t n_blocks = n_cols / ACT_BLOCK;
    size_t b = s->from / ACT_BLOCK;
    if (tensor_block_values(s->W->type) == 1) {
        s->tiles->floats[n - 1](
            panel, s->to - s->from, a->x + r * a->ld + s->from, a->ld, y, ldy);
        return;
    }
    struct code_rows x = {
        .code = a->code + r * n_cols + s->from,
        .scale = a->scale + r * n_blocks + b,
        .sum = a->sum + r * n_blocks + b,
        .n_cols = n_cols,
        .n_blocks = n_blocks,
    };
    const code_fn *codes = s->W->type == TENSOR_Q4_K   ? s->tiles->q4_k
                           : s->W->type == TENSOR_Q6_K ? s->tiles->q6_k
                                                       : s->tiles->q_0;
    codes[n - 1]((const uint8_t *)(const void *)panel,
        (s->to - s->from) / ACT_BLOCK, &x, y, ldy);
}

/* The last panel may lack outputs: neither read nor write what lies behind. */
static void
run_cut_tile(const struct stretch *s, const float *panel, size_t r, size_t n,
    float *y, size_t n_outputs)
{
    float tile[MAX_TILE_ROWS * PANEL] = {0};
    for (size_t i = 0; i < n; i++)
        memcpy(tile + i * PANEL, y + i * s->ldy, n_outputs * sizeof(float));
    run_tile(s, panel, r, n, tile, PANEL);
    for (size_t i = 0; i < n; i++)
        memcpy(y + i * s->ldy, tile + i * PANEL, n_outputs * sizeof(float));
}

static void
run_rows(const struct stretch *s)
{
    size_t step = tensor_block_values(s->W->type) == 1 ? s->tiles->float_rows
                                                       : s->tiles->code_rows;
    for (size_t r = 0; r < s->a->n; r += step) {
        size_t n = least(s->a->n - r, step);
        const float *panel = s->room;
        size_t bytes = (s->last - s->first) * sizeof(float);
        for (size_t i = 0; i < n && s->from == 0; i++)
            memset(s->y + (r + i) * s->ldy + s->first, 0, bytes);
        for (size_t o = s->first; o < s->last; o += PANEL) {
            float *y = s->y + r * s->ldy + o;
            if (s->last - o < PANEL)
                run_cut_tile(s, panel, r, n, y, s->last - o);
            else
                run_tile(s, panel, r, n, y, s->ldy);
            panel += s->panel_floats;
        }
    }
}

/* Sixteen rows side by side are more than the hardware fetches ahead: ask for
 * those of a panel while the one before it is unpacked. */
static void
ask_for_panel(const struct stretch *s, size_t o)
{
    const struct tensor *W = s->W;
    size_t values = tensor_block_values(W->type);
    size_t bytes = tensor_block_bytes(W->type);
    size_t end = least(o + PANEL, W->n_rows);
    for (; o < end; o++) {
        const uint8_t *p = W->data + o * W->row_bytes;
        for (size_t i = s->from / values * bytes; i < s->to / values * bytes;
             i += 64)
            __builtin_prefetch(p + i);
    }
}

static void
unpack_panels(const struct stretch *s)
{
    const struct tensor *W = s->W;
    float *panel = s->room;
    for (size_t o = s->first; o < s->last; o += PANEL) {
        const uint8_t *rows[PANEL];
        size_t b = s->from / ACT_BLOCK;
        size_t n = (s->to - s->from) / ACT_BLOCK;
        uint8_t *codes = (uint8_t *)(void *)panel;
        /* Outputs that are not there repeat the last one. */
        for (size_t i = 0; i < PANEL; i++)
            rows[i] = W->data + least(o + i, s->last - 1) * W->row_bytes;
        ask_for_panel(s, o + PANEL);
        if (W->type == TENSOR_F32)
            unpack_f32(rows, s->from, s->to, panel);
        else if (W->type == TENSOR_F16)
            unpack_f16(rows, s->from, s->to, panel);
        else if (W->type == TENSOR_BF16)
            unpack_bf16(rows, s->from, s->to, panel);
        else if (W->type == TENSOR_Q8_0)
            unpack_q8_0(rows, b, n, codes);
        else if (W->type == TENSOR_Q5_0)
            unpack_q5_0(rows, b, n, codes);
        else if (W->type == TENSOR_Q4_0)
            unpack_q4_0(rows, b, n, codes);
        else if (W->type == TENSOR_Q4_K)
            unpack_q4_k(rows, b, n, codes);
        else
            unpack_q6_k(rows, b, n, codes);
        panel += s->panel_floats;
    }
}

/* Columns of a stretch at most: so that several panels fit in the room. */
#define MAX_FLOAT_COLUMNS 384u
#define MAX_CODE_COLUMNS  2048u

void
many_with_tiles(const struct tiles *tiles, const struct tensor *W, size_t first,
    size_t last, const struct activations *a, float *y, size_t ldy, float *room)
{
    bool is_float = tensor_block_values(W->type) == 1;
    size_t most = is_float ? MAX_FLOAT_COLUMNS : MAX_CODE_COLUMNS;
    size_t align = is_float ? 8 : SUPER;
    size_t n = (W->n_cols + most - 1) / most;
    size_t columns = ((W->n_cols + n - 1) / n + align - 1) / align * align;
    size_t panel_floats =
        is_float ? columns * PANEL
                 : columns / BLOCK_COLUMNS * BLOCK_BYTES / sizeof(float);
    size_t outputs = MUL_ROOM_FLOATS / panel_floats * PANEL;
    for (size_t o = first; o < last; o += outputs) {
        for (size_t k = 0; k < W->n_cols; k += columns) {
            struct stretch s = {
                .tiles = tiles,
                .W = W,
                .a = a,
                .room = room,
                .first = o,
                .last = least(o + outputs, last),
                .from = k,
                .to = least(k + columns, W->n_cols),
                .panel_floats = panel_floats,
                .y = y,
                .ldy = ldy,
            };
            unpack_panels(&s);
            run_rows(&s);
        }
    }
}

void
avx2_mul_many(const struct tensor *W, size_t first, size_t last,
    const struct activations *a, float *y, size_t ldy, float *room)
{
    static const float_fn floats[FLOAT_ROWS] = {float_tile_1, float_tile_2,
        float_tile_3, float_tile_4, float_tile_5, float_tile_6};
    static const struct tiles tiles = {
        tile_q_0, tile_q4_k, tile_q6_k, floats, CODE_ROWS, FLOAT_ROWS};
    many_with_tiles(&tiles, W, first, last, a, y, ldy, room);
}

#endif
