/* SPDX-License-Identifier: Apache-2.0
 * model/blas.h - the dense linear algebra that model/ needs from OpenBLAS.
 *
 * Matrices are row-major, `ld` floats from row to row. All calls compute on
 * the calling thread alone; those who want more threads call from several.
 * Private to this folder. Threads: any, on outputs of their own. */
#ifndef MB_MODEL_BLAS_H
#define MB_MODEL_BLAS_H

#include "mb_base.h"

/* Switch OpenBLAS to one thread for this process; call before the others.
 * Again and from several threads is fine. */
void blas_begin(void);

/* The kind of CPU that its kernels are for, such as "Zen". */
const char *blas_core(void);

/* G (k, k) += X^T X of X (n, k), in double over blocks of rows; only the
 * elements G[i][j] with i <= j. block (k, k) is room to work in. */
void blas_gram(
    size_t n, size_t k, const float *X, size_t ld, double *G, float *block);

/* Y (n, m) = X (n, k) W (k, m). */
void blas_mul(size_t n, size_t k, size_t m, const float *X, size_t ldx,
    const float *W, size_t ldw, float *Y, size_t ldy);

/* C (m, n) = alpha op(A) op(B) + beta C, where op(A) is (m, k): A itself, or
 * with `transpose` A^T, A then being (k, m); B likewise (k, n) or (n, k). */
struct blas_matrix {
    const float *data;
    size_t ld;
    bool transpose;
};

void blas_gemm(size_t m, size_t n, size_t k, float alpha, struct blas_matrix A,
    struct blas_matrix B, float beta, float *C, size_t ldc);

/* Eigenvalues (k), rising, of the symmetric G (k, k), of which the upper
 * triangle is given; row i of G becomes the eigenvector of value i.
 * Errors: NOMEM, INTERNAL (no convergence, or NaN in G). */
MB_MUST_USE mb_status blas_eigen(size_t k, double *G, double *values);

#endif
