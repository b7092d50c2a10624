/* SPDX-License-Identifier: Apache-2.0
 * model/lsa_fit.c - truncated SVD of a sparse matrix by random projection.
 *
 * Halko, Martinsson, Tropp, "Finding structure with randomness" (2011). For
 * A (m, n), L = dim + oversample columns:
 *   1. Y = A W, W (n, L) of random signs           (algorithm 4.1, steps 1, 2)
 *   2. Q = orth(Y)                                 (step 3)
 *   3. q times: Y = A (A^T Q), Q = orth(Y)         (algorithm 4.4)
 *   4. Z = A^T Q, the transpose of algorithm 5.1's B = Q^T A
 *   5. Z^T Z = P S^2 P^T; V = Z P S^-1, sigma = S  (algorithm 5.1, by way of
 *      the Gram matrix, as only V is wanted)
 *
 * Time goes to the sparse products, which fetch a row of L floats for each
 * nonzero. So they run over blocks of 64 columns, for which the running sums
 * stay in registers and the dense matrix nearly in the cache.
 *
 * orth() goes by the eigenvectors of the Gram matrix with columns scaled to
 * length one: as cheap as Cholesky QR, and where the matrix has a lower rank
 * the columns that carry nothing fall away. Intermediate Q need not be exactly
 * orthonormal (they only span a space), the last one is made so by a second
 * pass, as its error would be one of sigma.
 *
 * All is float but for Gram matrices and eigenvectors, which are double: noise
 * is about 1e-6 of the largest singular value, and what lies below RANK_FLOOR
 * of it is taken for zero.
 *
 * The result does not depend on the number of threads: each row of a product
 * is made by one task, and Gram matrices are summed up over a fixed number of
 * parts in their order.
 * Threads: the caller's and its pool's; nothing is shared between two fits. */
#include "blas.h"
#include "kernels.h"
#include "mb_model.h"

#include <math.h>
#include <string.h>

#define DEFAULT_POWER      3u
#define DEFAULT_OVERSAMPLE 32u
#define RANK_FLOOR         1e-3 /* of the largest singular value */
/* Of the largest eigenvalue of a scaled Gram matrix: what float can tell. */
#define ORTH_FLOOR 1e-6
#define BLOCK      64   /* columns of a dense matrix at a time */
#define CHUNK      1024 /* rows a task */
#define GRAM_PARTS 8    /* tasks of a Gram matrix, whatever the threads */

struct fit {
    const struct mb_csr *a; /* (m, n) */
    struct mb_csr t;        /* its transpose (n, m) */
    const struct mb_lsa_options *opt;
    const struct kernels *kernels;
    size_t L;     /* columns, a multiple of KERNEL_WIDTH */
    size_t steps; /* for progress */
    size_t step;
    size_t *t_start;
    uint32_t *t_col;
    float *t_val;
    float *Q;          /* (m, L) */
    float *Y;          /* (m, L) */
    float *Z;          /* (n, L) */
    double *G;         /* (GRAM_PARTS, L, L) */
    float *gram_block; /* (GRAM_PARTS, L, L) */
    double *values;    /* (L) eigenvalues */
    double *scale;     /* (L) */
    float *P;          /* (L, L) what a matrix is multiplied by */
};

/* ---- tasks ---- */

struct product {
    const struct fit *f;
    const struct mb_csr *a;
    const float *X;
    float *out;
    size_t n_chunks;
};

/* Task i: a chunk of rows by a block of columns. Blocks come one after the
 * other, so that all threads work on the same columns of X. */
static void
product_task(void *arg, size_t i)
{
    const struct product *p = arg;
    size_t L = p->f->L;
    size_t column = i / p->n_chunks * BLOCK;
    size_t row = i % p->n_chunks * CHUNK;
    size_t end = row + CHUNK < p->a->n_rows ? row + CHUNK : p->a->n_rows;
    size_t width = L - column < BLOCK ? L - column : BLOCK;
    for (; row < end; row++) {
        size_t start = p->a->row_start[row];
        p->f->kernels->gather(p->a->col + start, p->a->val + start,
            p->a->row_start[row + 1] - start, p->X + column, L, width,
            p->out + row * L + column);
    }
}

/* out (a->n_rows, L) = a X */
static void
multiply_sparse(
    const struct fit *f, const struct mb_csr *a, const float *X, float *out)
{
    struct product p = {f, a, X, out, (a->n_rows + CHUNK - 1) / CHUNK};
    size_t n_blocks = (f->L + BLOCK - 1) / BLOCK;
    mb_pool_for(f->opt->pool, p.n_chunks * n_blocks, product_task, &p);
}

struct dense {
    const struct fit *f;
    size_t n;       /* rows */
    const float *X; /* (n, L) */
    size_t k;       /* columns of P and of the result */
    float *out;     /* (n, ld) */
    size_t ld;
};

static void
gram_task(void *arg, size_t part)
{
    const struct dense *d = arg;
    size_t L = d->f->L;
    size_t row = d->n * part / GRAM_PARTS;
    size_t end = d->n * (part + 1) / GRAM_PARTS;
    double *G = d->f->G + part * L * L;
    memset(G, 0, L * L * sizeof(double));
    blas_gram(
        end - row, L, d->X + row * L, L, G, d->f->gram_block + part * L * L);
}

static void
dense_task(void *arg, size_t i)
{
    const struct dense *d = arg;
    size_t row = i * CHUNK;
    size_t rows = d->n - row < CHUNK ? d->n - row : CHUNK;
    blas_mul(rows, d->f->L, d->k, d->X + row * d->f->L, d->f->L, d->f->P, d->k,
        d->out + row * d->ld, d->ld);
}

/* G = X^T X, upper triangle, in the first part. */
static void
gram(const struct fit *f, const float *X, size_t n)
{
    struct dense d = {f, n, X, 0, NULL, 0};
    size_t size = f->L * f->L;
    mb_pool_for(f->opt->pool, GRAM_PARTS, gram_task, &d);
    for (size_t part = 1; part < GRAM_PARTS; part++) {
        for (size_t i = 0; i < size; i++)
            f->G[i] += f->G[part * size + i];
    }
}

/* out (n, k) = X P[L, k], rows of out ld apart. */
static void
multiply_dense(const struct fit *f, const float *X, size_t n, size_t k,
    float *out, size_t ld)
{
    struct dense d = {f, n, X, k, out, ld};
    mb_pool_for(f->opt->pool, (n + CHUNK - 1) / CHUNK, dense_task, &d);
}

/* ---- steps ---- */

static mb_status
advance(struct fit *f, struct mb_error *err)
{
    f->step++;
    double part = (double)f->step / (double)f->steps;
    if (f->opt->progress && f->opt->progress(f->opt->progress_arg, part))
        return mb_error_set(err, MB_ERR_CANCELLED, "lsa: fit cancelled");
    return MB_OK;
}

/* Transpose by counting: rows of a stay in order within each column. */
static mb_status
transpose(struct fit *f, struct mb_error *err)
{
    const struct mb_csr *a = f->a;
    size_t nnz = a->row_start[a->n_rows];
    f->t_start = mb_calloc(a->n_cols + 2, sizeof(size_t));
    f->t_col = mb_calloc(nnz + 1, sizeof(uint32_t));
    f->t_val = mb_calloc(nnz + 1, sizeof(float));
    if (!f->t_start || !f->t_col || !f->t_val)
        return mb_error_set(err, MB_ERR_NOMEM,
            "lsa: no memory for a transpose of %zu values", nnz);
    /* Counts two places on, so that after the fill, which moves each start
     * to its end, starts stand where they belong. */
    size_t *start = f->t_start + 1;
    for (size_t i = 0; i < nnz; i++) {
        if (a->col[i] + 1 < a->n_cols)
            start[a->col[i] + 1]++;
    }
    for (size_t c = 1; c < a->n_cols; c++)
        start[c] += start[c - 1];
    for (size_t row = 0; row < a->n_rows; row++) {
        for (size_t i = a->row_start[row]; i < a->row_start[row + 1]; i++) {
            size_t at = start[a->col[i]]++;
            f->t_col[at] = (uint32_t)row;
            f->t_val[at] = a->val[i];
        }
    }
    f->t =
        (struct mb_csr){a->n_cols, a->n_rows, f->t_start, f->t_col, f->t_val};
    return MB_OK;
}

/* Random signs: as good as normal numbers here, and far cheaper. */
static void
fill_signs(struct fit *f)
{
    struct mb_rng rng;
    size_t n = f->a->n_cols * f->L;
    mb_rng_init(&rng, f->opt->seed);
    for (size_t i = 0; i < n; i += 32) { // L is a multiple of 32
        uint64_t bits = mb_rng_u64(&rng) >> 32;
        for (size_t k = 0; k < 32; k++)
            f->Z[i + k] = bits >> k & 1 ? 1.0f : -1.0f;
    }
}

/* Q = an orthonormal basis of what X spans; columns beyond its rank zero. X
 * and Q may not be the same. */
static mb_status
orthonormalize(struct fit *f, const float *X, float *Q, struct mb_error *err)
{
    size_t L = f->L;
    gram(f, X, f->a->n_rows);
    for (size_t i = 0; i < L; i++) {
        double g = f->G[i * L + i];
        f->scale[i] = g > 0.0 ? 1.0 / sqrt(g) : 0.0;
    }
    for (size_t i = 0; i < L; i++) {
        for (size_t j = i; j < L; j++)
            f->G[i * L + j] *= f->scale[i] * f->scale[j];
    }
    mb_status st = blas_eigen(L, f->G, f->values);
    if (st != MB_OK)
        return mb_error_set(
            err, st, "lsa: eigenvectors: %s", mb_status_text(st));
    double floor = f->values[L - 1] * ORTH_FLOOR;
    for (size_t k = 0; k < L; k++) { // largest first
        const double *vector = f->G + (L - 1 - k) * L;
        double value = f->values[L - 1 - k];
        double s = value > floor && value > 0.0 ? 1.0 / sqrt(value) : 0.0;
        for (size_t i = 0; i < L; i++)
            f->P[i * L + k] = (float)(f->scale[i] * vector[i] * s);
    }
    multiply_dense(f, X, f->a->n_rows, L, Q, L);
    return MB_OK;
}

/* Step 5: V (n, dim) and sigma from Z. */
static mb_status
finish(
    struct fit *f, float *V, float *sigma, size_t *rank, struct mb_error *err)
{
    size_t L = f->L;
    size_t dim = f->opt->dim;
    size_t found = 0;
    gram(f, f->Z, f->a->n_cols);
    mb_status st = blas_eigen(L, f->G, f->values);
    if (st != MB_OK)
        return mb_error_set(
            err, st, "lsa: eigenvectors: %s", mb_status_text(st));
    double floor = f->values[L - 1] * RANK_FLOOR * RANK_FLOOR;
    for (size_t k = 0; k < dim; k++) {
        double value = k < L ? f->values[L - 1 - k] : 0.0;
        bool is_there = value > floor && value > 0.0;
        sigma[k] = is_there ? (float)sqrt(value) : 0.0f;
        found += is_there;
        for (size_t i = 0; i < L; i++) {
            f->P[i * dim + k] =
                is_there ? (float)(f->G[(L - 1 - k) * L + i] / sqrt(value))
                         : 0.0f;
        }
    }
    multiply_dense(f, f->Z, f->a->n_cols, dim, V, dim);
    *rank = found;
    return MB_OK;
}

static mb_status
run(struct fit *f, unsigned n_power, float *V, float *sigma, size_t *rank,
    struct mb_error *err)
{
    mb_status st = transpose(f, err);
    if (st != MB_OK)
        return st;
    fill_signs(f);
    multiply_sparse(f, f->a, f->Z, f->Y);
    for (unsigned i = 0;; i++) {
        st = advance(f, err);
        if (st == MB_OK)
            st = orthonormalize(f, f->Y, f->Q, err);
        if (st != MB_OK)
            return st;
        if (i == n_power)
            break;
        multiply_sparse(f, &f->t, f->Q, f->Z);
        st = advance(f, err);
        if (st != MB_OK)
            return st;
        multiply_sparse(f, f->a, f->Z, f->Y);
    }
    st = orthonormalize(f, f->Q, f->Y, err);
    if (st != MB_OK)
        return st;
    multiply_sparse(f, &f->t, f->Y, f->Z);
    st = advance(f, err);
    if (st != MB_OK)
        return st;
    return finish(f, V, sigma, rank, err);
}

/* ---- begin and end ---- */

static mb_status
check(const struct mb_csr *a, const struct mb_lsa_options *opt,
    struct mb_error *err)
{
    if (opt->dim == 0 || opt->dim > MB_LSA_MAX_DIM ||
        opt->oversample > MB_LSA_MAX_DIM)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "lsa: dim %zu and oversample %zu, at most %u each", opt->dim,
            opt->oversample, MB_LSA_MAX_DIM);
    if (a->n_rows == 0 || a->n_cols == 0 || a->row_start[a->n_rows] == 0)
        return mb_error_set(err, MB_ERR_BAD_ARG, "lsa: empty matrix");
    if (a->row_start[0] != 0)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "lsa: the first row does not start at 0");
    if (a->n_rows > UINT32_MAX || a->n_cols > UINT32_MAX)
        return mb_error_set(err, MB_ERR_BAD_ARG, "lsa: matrix of %zu x %zu",
            a->n_rows, a->n_cols);
    for (size_t row = 0; row < a->n_rows; row++) {
        if (a->row_start[row] > a->row_start[row + 1])
            return mb_error_set(
                err, MB_ERR_BAD_ARG, "lsa: row %zu ends before it starts", row);
    }
    for (size_t i = a->row_start[0]; i < a->row_start[a->n_rows]; i++) {
        if (a->col[i] >= a->n_cols || !isfinite(a->val[i]))
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "lsa: value %zu: column %u of %zu, or not a number", i,
                a->col[i], a->n_cols);
    }
    return MB_OK;
}

/* rows * columns floats or doubles, or NULL. */
static void *
matrix(size_t rows, size_t columns, size_t element)
{
    size_t n = 0;
    if (!mb_size_mul(rows, columns, &n))
        return NULL;
    return mb_calloc(n, element);
}

static mb_status
alloc_fit(struct fit *f, struct mb_error *err)
{
    size_t L = f->L;
    size_t widest = f->opt->dim > L ? f->opt->dim : L;
    f->Q = matrix(f->a->n_rows, L, sizeof(float));
    f->Y = matrix(f->a->n_rows, L, sizeof(float));
    f->Z = matrix(f->a->n_cols, L, sizeof(float));
    f->G = matrix(GRAM_PARTS * L, L, sizeof(double));
    f->gram_block = matrix(GRAM_PARTS * L, L, sizeof(float));
    f->values = matrix(L, 1, sizeof(double));
    f->scale = matrix(L, 1, sizeof(double));
    f->P = matrix(L, widest, sizeof(float));
    if (!f->Q || !f->Y || !f->Z || !f->G || !f->gram_block || !f->values ||
        !f->scale || !f->P) {
        return mb_error_set(err, MB_ERR_NOMEM,
            "lsa: no memory for a fit of %zu x %zu, %zu columns", f->a->n_rows,
            f->a->n_cols, L);
    }
    return MB_OK;
}

static void
free_fit(struct fit *f)
{
    mb_free(f->t_start);
    mb_free(f->t_col);
    mb_free(f->t_val);
    mb_free(f->Q);
    mb_free(f->Y);
    mb_free(f->Z);
    mb_free(f->G);
    mb_free(f->gram_block);
    mb_free(f->values);
    mb_free(f->scale);
    mb_free(f->P);
}

mb_status
mb_lsa_fit(const struct mb_csr *a, const struct mb_lsa_options *opt, float *V,
    float *sigma, size_t *rank, struct mb_error *err)
{
    mb_status st = check(a, opt, err);
    if (st != MB_OK)
        return st;
    blas_begin();
    unsigned n_power = opt->n_power > 0 ? opt->n_power : DEFAULT_POWER;
    if (opt->n_power == MB_LSA_NO_POWER)
        n_power = 0;
    size_t smaller = a->n_rows < a->n_cols ? a->n_rows : a->n_cols;
    size_t over = opt->oversample > 0 ? opt->oversample : DEFAULT_OVERSAMPLE;
    size_t L = opt->dim + over < smaller ? opt->dim + over : smaller;
    struct fit f = {
        .a = a,
        .opt = opt,
        .kernels = kernels_best(),
        .L = (L + KERNEL_WIDTH - 1) / KERNEL_WIDTH * KERNEL_WIDTH,
        .steps = 2 + 2 * (size_t)n_power,
    };
    st = alloc_fit(&f, err);
    if (st == MB_OK)
        st = run(&f, n_power, V, sigma, rank, err);
    free_fit(&f);
    return st;
}
