/* SPDX-License-Identifier: Apache-2.0
 * store/scan.c - plain twins of the scan kernels, and their choice.
 *
 * The plain twins define what each kernel means; they also serve CPUs that we
 * have no kernel for, big-endian ones included. Integer results are the same
 * on every level, floats differ by the order of their sums. */
#include "scan.h"

#include <math.h>
#include <string.h>

#include "scan_x86.h"

/* ---- plain twins ---- */

static void
plain_dot_i8(
    const int8_t *q, const int8_t *codes, size_t n, size_t stride, int32_t *out)
{
    for (size_t i = 0; i < n; i++) {
        const int8_t *row = codes + i * stride;
        int32_t sum = 0;

        for (size_t d = 0; d < stride; d++) {
            sum += (int32_t)q[d] * (int32_t)row[d];
        }
        out[i] = sum;
    }
}

static float
plain_scale(const int32_t *dots, float q_scale, const uint8_t *scales, size_t n,
    float *out, struct scan_sums *sums)
{
    float best = -INFINITY;
    double sum = 0;
    double sum_squares = 0;

    for (size_t i = 0; i < n; i++) {
        float s = (float)dots[i] * (q_scale * mb_get_lef32(scales + 4 * i));

        out[i] = s;
        best = s > best ? s : best;
        sum += (double)s;
        sum_squares += (double)s * (double)s;
    }
    sums->sum += sum;
    sums->sum_squares += sum_squares;
    sums->n += n;
    return best;
}

static float
plain_dot_f16(const float *q, const uint8_t *x, size_t dim)
{
    double sum = 0;

    for (size_t d = 0; d < dim; d++) {
        sum += (double)(q[d] * mb_half_to_float(mb_get_le16(x + 2 * d)));
    }
    return (float)sum;
}

static void
plain_dot_f32(
    const float *q, const float *rows, size_t n, size_t dim, float *out)
{
    for (size_t i = 0; i < n; i++) {
        double sum = 0;

        for (size_t d = 0; d < dim; d++) {
            sum += (double)(q[d] * rows[i * dim + d]);
        }
        out[i] = (float)sum;
    }
}

static void
plain_to_f16(const float *x, size_t n, uint8_t *out)
{
    for (size_t i = 0; i < n; i++) {
        mb_put_le16(out + 2 * i, mb_half_from_float(x[i]));
    }
}

static void
plain_from_f16(const uint8_t *x, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = mb_half_to_float(mb_get_le16(x + 2 * i));
    }
}

static const struct scan_kernels plain_kernels = {
    .name = "plain",
    .dot_i8 = plain_dot_i8,
    .scale = plain_scale,
    .dot_f16 = plain_dot_f16,
    .dot_f32 = plain_dot_f32,
    .to_f16 = plain_to_f16,
    .from_f16 = plain_from_f16,
};

/* ---- choice ---- */

const struct scan_kernels *
scan_at(scan_level level)
{
    switch (level) {
    case SCAN_PLAIN:
        return &plain_kernels;
    case SCAN_AVX2:
        return scan_x86_avx2();
    case SCAN_AVX512:
        return scan_x86_avx512();
    default:
        return NULL;
    }
}

const struct scan_kernels *
scan_best(void)
{
    const struct scan_kernels *best = scan_x86_avx512();

    if (best == NULL) {
        best = scan_x86_avx2();
    }
    return best != NULL ? best : &plain_kernels;
}

float
scan_quantize(const float *x, size_t dim, int8_t *codes)
{
    size_t stride = scan_stride(dim);
    float largest = 0;
    float scale;
    float inverse;

    for (size_t d = 0; d < dim; d++) {
        float a = fabsf(x[d]);

        largest = a > largest ? a : largest;
    }
    scale = largest / 127.0f;
    inverse = scale > 0 ? 1.0f / scale : 0.0f;
    if (!isfinite(inverse)) { // a vector of next to nothing
        inverse = 0;
        scale = 0;
    }
    for (size_t d = 0; d < dim; d++) {
        float v = x[d] * inverse;

        v = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v;
        // Adding and taking away 1.5 * 2^23 rounds to nearest even.
        codes[d] = (int8_t)((v + 12582912.0f) - 12582912.0f);
    }
    memset(codes + dim, 0, stride - dim);
    return scale;
}
