/* SPDX-License-Identifier: Apache-2.0
 * model/train/muon.c - Newton-Schulz by OpenBLAS. */
#include "muon.h"

#include "../blas.h"

#include <math.h>
#include <string.h>

#define ITERATIONS 5
#define STEP_RMS   0.2

/* The odd polynomial a x + b x^3 + c x^5 that carries singular values of
 * (0, 1] towards 1 fastest, not exactly onto it (Jordan et al. 2024). */
static const float poly_a = 3.4445f;
static const float poly_b = -4.7750f;
static const float poly_c = 2.0315f;

size_t
muon_room(size_t rows, size_t cols)
{
    size_t small = rows < cols ? rows : cols;
    return 3 * rows * cols + 2 * small * small;
}

/* to = from^T, from being (rows, cols). */
static void
transpose(const float *from, size_t rows, size_t cols, float *to)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++)
            to[c * rows + r] = from[r * cols + c];
}

/* One iteration of x (n, k), n <= k: a x + (b A + c A^2) x with A = x x^T.
 * A and B (n, n), y (n, k): room. */
static void
iterate(float *x, size_t n, size_t k, float *A, float *B, float *y)
{
    struct blas_matrix as_x = {x, k, false};
    struct blas_matrix as_A = {A, n, false};

    blas_gemm(n, n, k, 1, as_x, (struct blas_matrix){x, k, true}, 0, A, n);
    memcpy(B, A, n * n * sizeof(*B));
    blas_gemm(n, n, n, poly_c, as_A, as_A, poly_b, B, n);
    memcpy(y, x, n * k * sizeof(*y));
    blas_gemm(
        n, k, n, 1, (struct blas_matrix){B, n, false}, as_x, poly_a, y, k);
    memcpy(x, y, n * k * sizeof(*x));
}

void
muon_orthogonalise(float *x, size_t rows, size_t cols, float *room)
{
    bool is_tall = rows > cols;
    size_t n = is_tall ? cols : rows;
    size_t k = is_tall ? rows : cols;
    float *work = room;
    float *y = work + n * k;
    float *A = y + n * k;
    float *B = A + n * n;
    double square = 0;

    for (size_t i = 0; i < n * k; i++)
        square += (double)x[i] * (double)x[i];
    float unit = (float)(1 / (sqrt(square) + 1e-12));
    for (size_t i = 0; i < n * k; i++)
        x[i] *= unit;
    if (is_tall)
        transpose(x, rows, cols, work);
    else
        memcpy(work, x, n * k * sizeof(*work));
    for (int i = 0; i < ITERATIONS; i++)
        iterate(work, n, k, A, B, y);
    if (is_tall)
        transpose(work, cols, rows, x);
    else
        memcpy(x, work, n * k * sizeof(*x));
}

void
muon_step(const struct muon *muon, float *w, const float *g, float *m,
    size_t rows, size_t cols, float *room)
{
    size_t n = rows * cols;
    float *step = room;
    float kept = muon->momentum;
    /* The rows or columns of U V^T are of length one: its mean square is
     * 1 / max(rows, cols). */
    float length =
        (float)(STEP_RMS * sqrt((double)(rows > cols ? rows : cols)));

    /* The gradient looks ahead by one step of momentum (Nesterov). */
    for (size_t i = 0; i < n; i++) {
        float d = g[i] * muon->scale;
        m[i] = kept * m[i] + (1 - kept) * d;
        step[i] = kept * m[i] + (1 - kept) * d;
    }
    muon_orthogonalise(step, rows, cols, room + n);
    for (size_t i = 0; i < n; i++)
        w[i] -= muon->rate * (length * step[i] + muon->decay * w[i]);
}
