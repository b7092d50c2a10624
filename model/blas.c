/* SPDX-License-Identifier: Apache-2.0
 * model/blas.c - the only file that knows OpenBLAS and LAPACK.
 *
 * OpenBLAS has a thread pool of its own, whose workers spin; under our pool
 * two pools would multiply. So it is told to stay on the caller's thread, by
 * its API: the environment, which may choose a core type, is never touched.
 *
 * LAPACK comes through its Fortran symbols, which libopenblas exports: they
 * take everything by address, and behind the arguments the length of each
 * string. Column-major there, row-major here: a symmetric matrix is the same
 * in both but for its triangles, which swap. */
#include "blas.h"

#include <pthread.h>

#include <cblas.h>

/* Rows that are summed up in float before they go to the sum in double. */
#define GRAM_ROWS 512

extern void dsyevd_(const char *jobz, const char *uplo, const int *n, double *a,
    const int *lda, double *w, double *work, const int *lwork, int *iwork,
    const int *liwork, int *info, size_t jobz_size, size_t uplo_size);

static void
set_one_thread(void)
{
    openblas_set_num_threads(1);
}

void
blas_begin(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, set_one_thread);
}

const char *
blas_core(void)
{
    return openblas_get_corename();
}

void
blas_gram(
    size_t n, size_t k, const float *X, size_t ld, double *G, float *block)
{
    int width = (int)k;
    for (size_t row = 0; row < n; row += GRAM_ROWS) {
        size_t rows = n - row < GRAM_ROWS ? n - row : GRAM_ROWS;
        cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, width, (int)rows,
            1.0f, X + row * ld, (int)ld, 0.0f, block, width);
        for (size_t i = 0; i < k; i++) {
            for (size_t j = i; j < k; j++)
                G[i * k + j] += (double)block[i * k + j];
        }
    }
}

void
blas_mul(size_t n, size_t k, size_t m, const float *X, size_t ldx,
    const float *W, size_t ldw, float *Y, size_t ldy)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n, (int)m,
        (int)k, 1.0f, X, (int)ldx, W, (int)ldw, 0.0f, Y, (int)ldy);
}

void
blas_gemm(size_t m, size_t n, size_t k, float alpha, struct blas_matrix A,
    struct blas_matrix B, float beta, float *C, size_t ldc)
{
    cblas_sgemm(CblasRowMajor, A.transpose ? CblasTrans : CblasNoTrans,
        B.transpose ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k, alpha,
        A.data, (int)A.ld, B.data, (int)B.ld, beta, C, (int)ldc);
}

mb_status
blas_eigen(size_t k, double *G, double *values)
{
    int n = (int)k;
    int lwork = 1 + 6 * n + 2 * n * n; // what dsyevd asks for, with vectors
    int liwork = 3 + 5 * n;
    int info = 0;
    double *work = mb_alloc((size_t)lwork * sizeof(double));
    int *iwork = mb_alloc((size_t)liwork * sizeof(int));
    mb_status st = MB_ERR_NOMEM;
    if (work && iwork) {
        /* Our upper triangle is the lower one of a column-major matrix. */
        dsyevd_("V", "L", &n, G, &n, values, work, &lwork, iwork, &liwork,
            &info, 1, 1);
        st = info == 0 ? MB_OK : MB_ERR_INTERNAL;
    }
    mb_free(work);
    mb_free(iwork);
    return st;
}
