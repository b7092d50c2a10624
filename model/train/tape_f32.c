/* SPDX-License-Identifier: Apache-2.0
 * model/train/tape_f32.c - the tape in float, which trains: BLAS for products,
 * vector instructions for exponentials. */
#include "hmt_graph.h"

#include "../blas.h"
#include "../compute.h"
#include "vector.h"

#include <math.h>
#include <string.h>

struct operand {
    const float *data;
    size_t ld;
    bool transpose;
};

/* C (m, n) = alpha op(A) (m, k) op(B) (k, n) + beta C. */
static void
gemm(size_t m, size_t n, size_t k, float alpha, struct operand A,
    struct operand B, float beta, float *C, size_t ldc)
{
    blas_gemm(m, n, k, alpha, (struct blas_matrix){A.data, A.ld, A.transpose},
        (struct blas_matrix){B.data, B.ld, B.transpose}, beta, C, ldc);
}

static void
add_to(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] += y[i];
}

static float
exp_sum(float *x, size_t n, float shift)
{
    return vector_best()->exp_sum(x, n, shift);
}

static void
forward_swiglu(const float *gate, const float *up, size_t n, float *out)
{
    compute_best()->swiglu(gate, up, n, out);
}

static void
back_swiglu(const float *gate, const float *up, const float *dy, size_t n,
    float *dgate, float *dup)
{
    vector_best()->swiglu_back(gate, up, dy, n, dgate, dup);
}

#include "tape.inc"
