/* SPDX-License-Identifier: Apache-2.0
 * model/ref_attention.c - attention kernels in plain C: they define the result
 * and serve machines without AVX2. */
#include "attention.h"

#include <math.h>
#include <string.h>

#define HALF_MAX 65504.0f

/* ---- slices ---- */

/* Keys begin at 0, values in the middle; scales of int8 behind each. */
static const uint8_t *
values_of(struct slice_shape shape, const uint8_t *slice)
{
    return slice + cache_slice_bytes(shape.type, shape.head_dim) / 2;
}

static float
read_scale(const uint8_t *half, struct slice_shape shape, size_t row)
{
    float scale;
    memcpy(&scale, half + MB_BLOCK_ROWS * shape.head_dim + 4 * row, 4);
    return scale;
}

static float
read_value(mb_cache_type type, const uint8_t *p, size_t i)
{
    float v;
    switch (type) {
    case MB_CACHE_F16:
        return mb_half_to_float(mb_get_le16(p + 2 * i));
    case MB_CACHE_Q8_0:
        return (float)(int8_t)p[i];
    default:
        memcpy(&v, p + 4 * i, 4);
        return v;
    }
}

/* The largest of fp16 instead of infinity, which a masked row's weight of 0
 * would turn into NaN. NaN stays. */
static float
within_half(float v)
{
    if (v > HALF_MAX)
        return HALF_MAX;
    return v < -HALF_MAX ? -HALF_MAX : v;
}

static void
write_value(mb_cache_type type, uint8_t *p, size_t i, float v)
{
    switch (type) {
    case MB_CACHE_F16:
        mb_put_le16(p + 2 * i, mb_half_from_float(within_half(v)));
        break;
    case MB_CACHE_Q8_0:
        p[i] = (uint8_t)(int8_t)lrintf(v);
        break;
    default:
        memcpy(p + 4 * i, &v, 4);
    }
}

/* int8 needs a scale; a row with NaN or infinity becomes zeros, as it has no
 * code: the other types carry them. */
static float
scale_of(const float *x, size_t n)
{
    float max = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(x[i]))
            return 0;
        max = fmaxf(max, fabsf(x[i]));
    }
    return max / 127;
}

/* A row of keys lies in steps of MB_BLOCK_ROWS, one of values in steps of 1. */
static void
store_row(struct slice_shape shape, uint8_t *half, size_t row, size_t first,
    size_t step, const float *x)
{
    float factor = 1;
    if (shape.type == MB_CACHE_Q8_0) {
        float scale = scale_of(x, shape.head_dim);
        memcpy(half + MB_BLOCK_ROWS * shape.head_dim + 4 * row, &scale, 4);
        if (scale == 0) {
            for (size_t j = 0; j < shape.head_dim; j++)
                half[first + j * step] = 0;
            return;
        }
        factor = 1 / scale;
    }
    for (size_t j = 0; j < shape.head_dim; j++)
        write_value(shape.type, half, first + j * step, x[j] * factor);
}

void
attention_plain_store(struct slice_shape shape, uint8_t *slice, size_t row,
    const float *key, const float *value)
{
    uint8_t *values = slice + cache_slice_bytes(shape.type, shape.head_dim) / 2;
    store_row(shape, slice, row, row, MB_BLOCK_ROWS, key);
    store_row(shape, values, row, row * shape.head_dim, 1, value);
}

static void
read_row(struct slice_shape shape, const uint8_t *half, size_t row,
    size_t first, size_t step, float *x)
{
    float scale =
        shape.type == MB_CACHE_Q8_0 ? read_scale(half, shape, row) : 1;
    for (size_t j = 0; j < shape.head_dim; j++)
        x[j] = scale * read_value(shape.type, half, first + j * step);
}

void
attention_plain_read(struct slice_shape shape, const uint8_t *slice, size_t row,
    float *key, float *value)
{
    read_row(shape, slice, row, row, MB_BLOCK_ROWS, key);
    read_row(
        shape, values_of(shape, slice), row, row * shape.head_dim, 1, value);
}

/* ---- attention ---- */

static float
logit(
    struct slice_shape shape, const uint8_t *slice, size_t row, const float *q)
{
    float sum = 0;
    for (size_t j = 0; j < shape.head_dim; j++)
        sum += q[j] * read_value(shape.type, slice, j * MB_BLOCK_ROWS + row);
    return shape.type == MB_CACHE_Q8_0 ? sum * read_scale(slice, shape, row)
                                       : sum;
}

/* Merge rows [0, n_rows) of a slice into query i of `to`. */
static void
see_rows(struct slice_shape shape, const uint8_t *slice, size_t n_rows,
    const float *q, size_t i, struct partial *to)
{
    const uint8_t *values = values_of(shape, slice);
    float z[MB_BLOCK_ROWS];
    float m = to->m[i];
    float *o = to->o + i * shape.head_dim;
    for (size_t r = 0; r < n_rows; r++) {
        z[r] = logit(shape, slice, r, q);
        m = z[r] <= m ? m : z[r];
    }
    float keep = to->m[i] == -INFINITY ? 0.0f : expf(to->m[i] - m);
    to->m[i] = m;
    to->l[i] *= keep;
    for (size_t j = 0; j < shape.head_dim; j++)
        o[j] *= keep;
    for (size_t r = 0; r < n_rows; r++) {
        float p = expf(z[r] - m);
        to->l[i] += p;
        if (shape.type == MB_CACHE_Q8_0)
            p *= read_scale(values, shape, r);
        for (size_t j = 0; j < shape.head_dim; j++)
            o[j] += p * read_value(shape.type, values, r * shape.head_dim + j);
    }
}

static void
plain_few(struct slice_shape shape, const uint8_t *const *slices,
    size_t n_slices, size_t last_rows, const float *q, size_t n,
    struct partial *to)
{
    for (size_t s = 0; s < n_slices; s++) {
        size_t rows = s + 1 == n_slices ? last_rows : MB_BLOCK_ROWS;
        for (size_t i = 0; i < n; i++)
            see_rows(shape, slices[s], rows, q + i * shape.head_dim, i, to);
    }
}

static void
plain_many(struct slice_shape shape, const uint8_t *slice, const float *q,
    const uint8_t *seen, size_t n, struct partial *to, float *room)
{
    (void)room;
    for (size_t i = 0; i < n; i++) {
        if (seen[i] > 0)
            see_rows(shape, slice, seen[i], q + i * shape.head_dim, i, to);
    }
}

static void
plain_scores(size_t head_dim, const uint8_t *keys, const float *q, size_t n,
    float *z, size_t ldz, float *room)
{
    struct slice_shape shape = {MB_CACHE_F16, head_dim};
    (void)room;
    for (size_t i = 0; i < n; i++) {
        for (size_t r = 0; r < MB_BLOCK_ROWS; r++)
            z[i * ldz + r] = logit(shape, keys, r, q + i * head_dim);
    }
}

const struct attention attention_plain = {
    "plain", attention_plain_store, plain_few, plain_many, plain_scores};
