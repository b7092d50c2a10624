/* SPDX-License-Identifier: Apache-2.0
 * model/train/ref_tape.c - the tape in double with plain loops: its float
 * twin is compared with it, and it with finite differences. */
#define TRAIN_DOUBLE
#include "hmt_graph.h"

#include <math.h>
#include <string.h>

struct operand {
    const double *data;
    size_t ld;
    bool transpose;
};

static double
at(struct operand A, size_t i, size_t j)
{
    return A.transpose ? A.data[j * A.ld + i] : A.data[i * A.ld + j];
}

static void
gemm(size_t m, size_t n, size_t k, double alpha, struct operand A,
    struct operand B, double beta, double *C, size_t ldc)
{
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            double sum = 0;
            for (size_t l = 0; l < k; l++)
                sum += at(A, i, l) * at(B, l, j);
            double *c = &C[i * ldc + j];
            *c = alpha * sum + (beta == 0 ? 0 : beta * *c);
        }
    }
}

static void
add_to(double *x, const double *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] += y[i];
}

/* x becomes exp(x - shift); the sum of it. */
static double
exp_sum(double *x, size_t n, double shift)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        x[i] = exp(x[i] - shift);
        sum += x[i];
    }
    return sum;
}

static void
forward_swiglu(const double *gate, const double *up, size_t n, double *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
}

/* d silu(g) = s (1 + g (1 - s)) with s = sigmoid(g). */
static void
back_swiglu(const double *gate, const double *up, const double *dy, size_t n,
    double *dgate, double *dup)
{
    for (size_t i = 0; i < n; i++) {
        double s = 1 / (1 + exp(-gate[i]));
        if (dgate)
            dgate[i] += dy[i] * up[i] * s * (1 + gate[i] * (1 - s));
        if (dup)
            dup[i] += dy[i] * gate[i] * s;
    }
}

#include "tape.inc"
