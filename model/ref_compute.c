/* SPDX-License-Identifier: Apache-2.0
 * model/ref_compute.c - the plain twins of compute_x86*.c: no intrinsics, no
 * BLAS. They define the result and serve machines without AVX2.
 *
 * A block of 32 quantised values, of whatever type, is read into one form:
 * codes with a scale for each half, and an offset that is taken off all. The
 * layouts are those of ggml. Sums are double: what is compared with them
 * should not have to excuse them. */
#include "compute_x86.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define BLOCK 32

/* ---- reading weights ---- */

/* 32 values: code[i] * scale[i / 16] - offset. */
struct block {
    int8_t code[BLOCK];
    float scale[2];
    float offset;
};

static float
read_half(const uint8_t *p)
{
    return mb_half_to_float(mb_get_le16(p));
}

/* d f16; code int8[32]. */
static void
read_q8_0(const uint8_t *p, struct block *b)
{
    b->scale[0] = b->scale[1] = read_half(p);
    b->offset = 0;
    memcpy(b->code, p + 2, BLOCK);
}

/* d f16; 16 bytes, of which the low halves come first; code = half - 8. */
static void
read_q4_0(const uint8_t *p, struct block *b)
{
    b->scale[0] = b->scale[1] = read_half(p);
    b->offset = 0;
    for (size_t i = 0; i < 16; i++) {
        b->code[i] = (int8_t)((p[2 + i] & 15) - 8);
        b->code[16 + i] = (int8_t)((p[2 + i] >> 4) - 8);
    }
}

/* d f16; 32 bits, the fifth of each code; 16 bytes as in Q4_0; code = the five
 * bits - 16. */
static void
read_q5_0(const uint8_t *p, struct block *b)
{
    uint32_t fifth = mb_get_le32(p + 2);
    b->scale[0] = b->scale[1] = read_half(p);
    b->offset = 0;
    for (size_t i = 0; i < BLOCK; i++) {
        int low = i < 16 ? p[6 + i] & 15 : p[6 + i - 16] >> 4;
        b->code[i] = (int8_t)((low | (int)(fifth >> i & 1) << 4) - 16);
    }
}

/* d f16; dmin f16; 12 bytes with 8 scales and 8 offsets of 6 bits; 4 times 32
 * bytes, of which the low halves are one part and the high ones the next.
 * `part` of 0 to 7. */
static void
read_q4_k(const uint8_t *p, size_t part, struct block *b)
{
    const uint8_t *s = p + 4;
    const uint8_t *q = p + 16 + part / 2 * BLOCK;
    int scale;
    int offset;
    if (part < 4) {
        scale = s[part] & 63;
        offset = s[part + 4] & 63;
    } else {
        scale = (s[part + 4] & 15) | s[part - 4] >> 6 << 4;
        offset = s[part + 4] >> 4 | s[part] >> 6 << 4;
    }
    b->scale[0] = b->scale[1] = read_half(p) * (float)scale;
    b->offset = read_half(p + 2) * (float)offset;
    for (size_t i = 0; i < BLOCK; i++)
        b->code[i] = (int8_t)(part % 2 == 0 ? q[i] & 15 : q[i] >> 4);
}

/* 128 bytes with the low four bits; 64 with the upper two; 16 int8 scales; d
 * f16; code = bits - 32. Each 128 values take 64 and 32 of these bytes. */
static void
read_q6_k(const uint8_t *p, size_t part, struct block *b)
{
    size_t quarter = part % 4;
    const uint8_t *low = p + part / 4 * 64 + quarter % 2 * BLOCK;
    const uint8_t *high = p + 128 + part / 4 * BLOCK;
    float d = read_half(p + 208);
    for (size_t i = 0; i < 2; i++)
        b->scale[i] = d * (float)(int8_t)p[192 + 2 * part + i];
    b->offset = 0;
    for (size_t i = 0; i < BLOCK; i++) {
        int bits = quarter < 2 ? low[i] & 15 : low[i] >> 4;
        bits |= (high[i] >> 2 * quarter & 3) << 4;
        b->code[i] = (int8_t)(bits - 32);
    }
}

/* Values [32 i, 32 i + 32) of a row. */
static void
read_block(tensor_type type, const uint8_t *row, size_t i, struct block *b)
{
    size_t bytes = tensor_block_bytes(type);
    switch (type) {
    case TENSOR_Q8_0:
        read_q8_0(row + i * bytes, b);
        break;
    case TENSOR_Q4_0:
        read_q4_0(row + i * bytes, b);
        break;
    case TENSOR_Q5_0:
        read_q5_0(row + i * bytes, b);
        break;
    case TENSOR_Q4_K:
        read_q4_k(row + i / 8 * bytes, i % 8, b);
        break;
    case TENSOR_Q6_K:
        read_q6_k(row + i / 8 * bytes, i % 8, b);
        break;
    case TENSOR_F32:
    case TENSOR_F16:
    case TENSOR_BF16:
        memset(b, 0, sizeof(*b));
        break;
    }
}

static float
read_float(tensor_type type, const uint8_t *row, size_t i)
{
    uint32_t bits;
    float v;
    if (type == TENSOR_F32)
        return mb_get_lef32(row + 4 * i);
    if (type == TENSOR_F16)
        return read_half(row + 2 * i);
    bits = (uint32_t)mb_get_le16(row + 2 * i) << 16;
    memcpy(&v, &bits, sizeof(v));
    return v;
}

static bool
is_quantised(tensor_type type)
{
    return tensor_block_values(type) > 1;
}

static const uint8_t *
row_of(const struct tensor *W, size_t row)
{
    return W->data + row * W->row_bytes;
}

static void
plain_row(const struct tensor *W, size_t row, float *out)
{
    const uint8_t *p = row_of(W, row);
    struct block b;
    for (size_t i = 0; i < W->n_cols && !is_quantised(W->type); i++)
        out[i] = read_float(W->type, p, i);
    for (size_t i = 0; i < W->n_cols && is_quantised(W->type); i += BLOCK) {
        read_block(W->type, p, i / BLOCK, &b);
        for (size_t j = 0; j < BLOCK; j++)
            out[i + j] = b.scale[j / 16] * (float)b.code[j] - b.offset;
    }
}

/* ---- activations ---- */

/* What lies below is 0: its scale would be no normal number. */
#define LEAST_ACTIVATION 1e-30f

/* One block. If a value is no finite number, nor will the result be. */
static void
quantize_block(const float *x, int16_t *code, float *scale, float *sum)
{
    float most = 0;
    bool is_finite = true;
    int total = 0;
    for (size_t i = 0; i < ACT_BLOCK; i++) {
        float size = fabsf(x[i]);
        is_finite &= size <= FLT_MAX;
        most = size > most ? size : most;
    }
    bool is_zero = !is_finite || most < LEAST_ACTIVATION;
    float inverse = is_zero ? 0 : 32767.0f / most;
    for (size_t i = 0; i < ACT_BLOCK; i++) {
        code[i] = is_zero ? 0 : (int16_t)lrintf(x[i] * inverse);
        total += code[i];
    }
    *scale = !is_finite ? NAN : is_zero ? 0 : most / 32767.0f;
    *sum = *scale * (float)total;
}

static void
plain_quantize(
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

/* ---- products ---- */

static int32_t
dot_half(const int8_t *w, const int16_t *x)
{
    int32_t sum = 0;
    for (size_t i = 0; i < BLOCK / 2; i++)
        sum += w[i] * x[i];
    return sum;
}

static float
dot_quantised(const struct tensor *W, const uint8_t *row,
    const struct activations *a, size_t r)
{
    size_t blocks = W->n_cols / BLOCK;
    double y = 0;
    struct block b;
    for (size_t i = 0; i < blocks; i++) {
        size_t at = r * blocks + i;
        const int16_t *x = a->code + at * BLOCK;
        read_block(W->type, row, i, &b);
        double part = (double)b.scale[0] * dot_half(b.code, x) +
                      (double)b.scale[1] * dot_half(b.code + 16, x + 16);
        y +=
            part * (double)a->scale[at] - (double)b.offset * (double)a->sum[at];
    }
    return (float)y;
}

static void
plain_mul_few(const struct tensor *W, size_t first, size_t last,
    const struct activations *a, float *y, size_t ldy)
{
    for (size_t o = first; o < last; o++) {
        const uint8_t *row = row_of(W, o);
        for (size_t r = 0; r < a->n; r++) {
            double sum = 0;
            if (is_quantised(W->type)) {
                y[r * ldy + o] = dot_quantised(W, row, a, r);
                continue;
            }
            for (size_t i = 0; i < W->n_cols; i++) {
                sum += (double)a->x[r * a->ld + i] *
                       (double)read_float(W->type, row, i);
            }
            y[r * ldy + o] = (float)sum;
        }
    }
}

static void
plain_mul_many(const struct tensor *W, size_t first, size_t last,
    const struct activations *a, float *y, size_t ldy, float *room)
{
    (void)room;
    plain_mul_few(W, first, last, a, y, ldy);
}

/* ---- the rest of a layer ---- */

static void
plain_rms_norm(const float *x, const float *w, size_t n, float eps, float *out)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    float factor = (float)(1 / sqrt(sum / (double)n + (double)eps));
    for (size_t i = 0; i < n; i++)
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

static void
plain_rope_pairs(float *x, size_t n_rot, const float *cosine, const float *sine)
{
    for (size_t i = 0; i < n_rot / 2; i++)
        turn(x + 2 * i, x + 2 * i + 1, cosine[i], sine[i]);
}

static void
plain_rope_halves(
    float *x, size_t n_rot, const float *cosine, const float *sine)
{
    for (size_t i = 0; i < n_rot / 2; i++)
        turn(x + i, x + i + n_rot / 2, cosine[i], sine[i]);
}

static void
plain_swiglu(const float *gate, const float *up, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

static void
plain_add(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] += y[i];
}

static float
plain_log_sum_exp(const float *x, size_t n)
{
    float most = -INFINITY;
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        most = x[i] > most ? x[i] : most;
    /* An infinity taken from itself would be NaN, as only a NaN may be. */
    float base = fabsf(most) <= FLT_MAX ? most : 0;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)x[i] - (double)base);
    return (float)((double)base + log(sum));
}

const struct compute *
compute_plain(void)
{
    static const struct compute plain = {
        .name = "plain",
        .quantize = plain_quantize,
        .mul_few = plain_mul_few,
        .mul_many = plain_mul_many,
        .row = plain_row,
        .rms_norm = plain_rms_norm,
        .rope_pairs = plain_rope_pairs,
        .rope_halves = plain_rope_halves,
        .swiglu = plain_swiglu,
        .add = plain_add,
        .log_sum_exp = plain_log_sum_exp,
    };
    return &plain;
}
