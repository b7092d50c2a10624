/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_lsa.c - latent semantic analysis: fit, bytes, fold.
 *
 * The fit is held against an exact SVD of the same matrix (one-sided Jacobi in
 * double, below), folding against its formula in double, and fast kernels
 * against their plain twins. */
#include "mb_test.h"

#include <math.h>

#include "kernels.h"
#include "mb_model.h"

/* ---- matrices ---- */

struct sparse {
    struct mb_csr csr;
    size_t *row_start;
    uint32_t *col;
    float *val;
    double *dense; /* (n_rows, n_cols) the same */
};

/* The nonzeros of a dense matrix, which it takes. */
static struct sparse
sparse_of(double *dense, size_t m, size_t n)
{
    struct sparse s = {.dense = dense};
    size_t nnz = 0;
    s.row_start = mb_calloc(m + 1, sizeof(size_t));
    s.col = mb_calloc(m * n + 1, sizeof(uint32_t));
    s.val = mb_calloc(m * n + 1, sizeof(float));
    assert_true(s.row_start && s.col && s.val);
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            s.dense[i * n + j] = (double)(float)dense[i * n + j];
            if (dense[i * n + j] == 0.0)
                continue;
            s.col[nnz] = (uint32_t)j;
            s.val[nnz++] = (float)dense[i * n + j];
        }
        s.row_start[i + 1] = nnz;
    }
    s.csr = (struct mb_csr){m, n, s.row_start, s.col, s.val};
    return s;
}

static void
sparse_free(struct sparse *s)
{
    mb_free(s->row_start);
    mb_free(s->col);
    mb_free(s->val);
    mb_free(s->dense);
}

/* A matrix like those of texts: `topics` of them, each with words of its own,
 * each row a mixture with noise, a third of the places filled, unit rows. */
static struct sparse
random_texts(uint64_t seed, size_t m, size_t n, size_t topics)
{
    struct mb_rng rng;
    double *a = mb_calloc(m * n, sizeof(double));
    double *words = mb_calloc(topics * n, sizeof(double));
    assert_true(a && words);
    mb_rng_init(&rng, seed);
    for (size_t i = 0; i < topics * n; i++)
        words[i] = mb_rng_below(&rng, 4) == 0 ? mb_rng_double(&rng) : 0.0;
    for (size_t i = 0; i < m; i++) {
        double square = 0.0;
        for (size_t t = 0; t < topics; t++) {
            double part = mb_rng_below(&rng, 3) == 0 ? mb_rng_double(&rng) : 0;
            for (size_t j = 0; j < n; j++)
                a[i * n + j] += part / (double)(t + 1) * words[t * n + j];
        }
        for (size_t j = 0; j < n; j++) {
            a[i * n + j] += 0.02 * mb_rng_double(&rng);
            if (mb_rng_below(&rng, 3) != 0)
                a[i * n + j] = 0.0;
            square += a[i * n + j] * a[i * n + j];
        }
        for (size_t j = 0; j < n && square > 0.0; j++)
            a[i * n + j] /= sqrt(square);
    }
    mb_free(words);
    return sparse_of(a, m, n);
}

/* ---- exact SVD: one-sided Jacobi (Hestenes 1958) ---- */

/* Turn columns p and q of X (m, n) and of V (n, n) against each other until
 * they are at right angles. Returns how far they were from that. */
static double
rotate(double *X, size_t m, double *V, size_t n, size_t p, size_t q)
{
    double a = 0.0;
    double b = 0.0;
    double c = 0.0;
    for (size_t i = 0; i < m; i++) {
        a += X[i * n + p] * X[i * n + p];
        b += X[i * n + q] * X[i * n + q];
        c += X[i * n + p] * X[i * n + q];
    }
    if (fabs(c) <= 1e-15 * sqrt(a * b) || a * b == 0.0)
        return 0.0;
    double zeta = (b - a) / (2.0 * c);
    double t =
        (zeta >= 0.0 ? 1.0 : -1.0) / (fabs(zeta) + sqrt(1.0 + zeta * zeta));
    double cosine = 1.0 / sqrt(1.0 + t * t);
    double sine = cosine * t;
    for (size_t i = 0; i < m + n; i++) {
        double *row = i < m ? X + i * n : V + (i - m) * n;
        double x = row[p];
        row[p] = cosine * x - sine * row[q];
        row[q] = sine * x + cosine * row[q];
    }
    return fabs(c) / sqrt(a * b);
}

/* Singular values (n), falling, and V (n, n) with vectors as columns. */
static void
exact_svd(const struct sparse *s, double *sigma, double *V)
{
    size_t m = s->csr.n_rows;
    size_t n = s->csr.n_cols;
    double *X = mb_calloc(m * n, sizeof(double));
    assert_non_null(X);
    memcpy(X, s->dense, m * n * sizeof(double));
    for (size_t i = 0; i < n * n; i++)
        V[i] = i % (n + 1) == 0 ? 1.0 : 0.0;
    for (int sweep = 0; sweep < 60; sweep++) {
        double worst = 0.0;
        for (size_t p = 0; p + 1 < n; p++) {
            for (size_t q = p + 1; q < n; q++)
                worst = fmax(worst, rotate(X, m, V, n, p, q));
        }
        if (worst < 1e-13)
            break;
    }
    for (size_t j = 0; j < n; j++) {
        sigma[j] = 0.0;
        for (size_t i = 0; i < m; i++)
            sigma[j] += X[i * n + j] * X[i * n + j];
        sigma[j] = sqrt(sigma[j]);
    }
    for (size_t j = 0; j < n; j++) { // selection sort, columns with values
        size_t best = j;
        for (size_t k = j + 1; k < n; k++)
            best = sigma[k] > sigma[best] ? k : best;
        for (size_t i = 0; i <= n; i++) {
            double *row = i < n ? V + i * n : sigma;
            double x = row[j];
            row[j] = row[best];
            row[best] = x;
        }
    }
    mb_free(X);
}

/* ---- fit ---- */

struct result {
    float *V;
    float *sigma;
    size_t rank;
};

static struct result
fit(const struct sparse *s, const struct mb_lsa_options *opt)
{
    struct result r = {0};
    struct mb_error err;
    r.V = mb_calloc(s->csr.n_cols * opt->dim, sizeof(float));
    r.sigma = mb_calloc(opt->dim, sizeof(float));
    assert_true(r.V && r.sigma);
    assert_status(
        MB_OK, mb_lsa_fit(&s->csr, opt, r.V, r.sigma, &r.rank, &err), &err);
    return r;
}

static void
result_free(struct result *r)
{
    mb_free(r->V);
    mb_free(r->sigma);
}

/* Columns of V must be at right angles and of length one. */
static void
check_orthonormal(const struct result *r, size_t n, size_t dim)
{
    for (size_t p = 0; p < r->rank; p++) {
        for (size_t q = p; q < r->rank; q++) {
            double dot = 0.0;
            for (size_t i = 0; i < n; i++)
                dot += (double)r->V[i * dim + p] * (double)r->V[i * dim + q];
            /* Float vectors of a few hundred elements, made by way of a Gram
             * matrix in float: 1e-6 seen, ten times that allowed. */
            assert_true(fabs(dot - (p == q ? 1.0 : 0.0)) < 1e-5);
        }
    }
}

static void
test_fit_when_small_matrix_then_as_exact(void **state)
{
    enum { M = 300, N = 120, DIM = 8 };
    struct sparse s = random_texts(mb_test_seed(), M, N, 12);
    struct mb_lsa_options opt = {.dim = DIM, .n_power = 6, .seed = 3};
    double sigma[N];
    double *V = mb_calloc(N * N, sizeof(double));
    MB_TEST_UNUSED(state);
    assert_non_null(V);
    exact_svd(&s, sigma, V);
    struct result r = fit(&s, &opt);
    assert_int_equal(DIM, r.rank);
    check_orthonormal(&r, N, DIM);
    for (size_t k = 0; k < DIM; k++) {
        double dot = 0.0;
        for (size_t i = 0; i < N; i++)
            dot += (double)r.V[i * DIM + k] * V[i * N + k];
        /* 40 columns and six iterations leave nothing but float's noise,
         * 1e-6 of the first value; a vector also turns towards neighbours
         * whose values are near, hence 1e-3. */
        assert_true(fabs((double)r.sigma[k] - sigma[k]) < 1e-5 * sigma[0]);
        assert_true(fabs(fabs(dot) - 1.0) < 1e-3);
    }
    result_free(&r);
    sparse_free(&s);
    mb_free(V);
}

/* With the default settings the part of the matrix that is kept must come
 * within 2% of the best. */
static void
test_fit_when_defaults_then_near_the_best(void **state)
{
    enum { M = 400, N = 200, DIM = 32 };
    struct sparse s = random_texts(mb_test_seed() + 1, M, N, 60);
    struct mb_lsa_options opt = {.dim = DIM};
    double sigma[N];
    double best = 0.0;
    double got = 0.0;
    double *V = mb_calloc(N * N, sizeof(double));
    MB_TEST_UNUSED(state);
    assert_non_null(V);
    exact_svd(&s, sigma, V);
    struct result r = fit(&s, &opt);
    for (size_t k = 0; k < DIM; k++) {
        best += sigma[k] * sigma[k];
        got += (double)r.sigma[k] * (double)r.sigma[k];
        assert_true(k == 0 || r.sigma[k] <= r.sigma[k - 1]);
    }
    assert_true(got > 0.98 * best);
    assert_true(got < 1.0001 * best);
    result_free(&r);
    sparse_free(&s);
    mb_free(V);
}

static void
test_fit_when_threads_then_the_same_bits(void **state)
{
    enum { M = 3000, N = 700, DIM = 40 };
    struct sparse s = random_texts(mb_test_seed(), M, N, 20);
    struct mb_lsa_options opt = {.dim = DIM, .seed = 5};
    MB_TEST_UNUSED(state);
    struct result alone = fit(&s, &opt);
    assert_ok(mb_pool_new(&opt.pool, "fit", 3, 16));
    struct result pooled = fit(&s, &opt);
    assert_int_equal(alone.rank, pooled.rank);
    assert_memory_equal(alone.V, pooled.V, (size_t)N * DIM * sizeof(float));
    assert_memory_equal(alone.sigma, pooled.sigma, DIM * sizeof(float));
    mb_pool_free(opt.pool);
    result_free(&alone);
    result_free(&pooled);
    sparse_free(&s);
}

/* Ten rows, each four times: rank ten, whatever is asked for. */
static void
test_fit_when_rank_is_low_then_zero_beyond(void **state)
{
    enum { M = 40, N = 30, DIM = 25, RANK = 10 };
    struct mb_lsa_options opt = {.dim = DIM};
    struct mb_rng rng;
    double *a = mb_calloc(M * N, sizeof(double));
    MB_TEST_UNUSED(state);
    assert_non_null(a);
    mb_rng_init(&rng, mb_test_seed());
    for (size_t i = 0; i < (size_t)M * N; i++)
        a[i] = i < RANK * N ? mb_rng_double(&rng) : a[i - RANK * N];
    struct sparse s = sparse_of(a, M, N);
    struct result r = fit(&s, &opt);
    assert_int_equal(RANK, r.rank);
    check_orthonormal(&r, N, DIM);
    for (size_t k = RANK; k < DIM; k++) {
        assert_true(r.sigma[k] == 0.0f);
        for (size_t i = 0; i < N; i++)
            assert_true(r.V[i * DIM + k] == 0.0f);
    }
    result_free(&r);
    sparse_free(&s);
}

static void
test_fit_when_one_value_then_rank_one(void **state)
{
    struct mb_lsa_options opt = {.dim = 4};
    double *a = mb_calloc(6, sizeof(double));
    MB_TEST_UNUSED(state);
    assert_non_null(a);
    a[4] = -2.0;
    struct sparse s = sparse_of(a, 2, 3);
    struct result r = fit(&s, &opt);
    assert_int_equal(1, r.rank);
    assert_true(fabsf(r.sigma[0] - 2.0f) < 1e-5f);
    assert_true(fabsf(fabsf(r.V[1 * 4]) - 1.0f) < 1e-5f);
    result_free(&r);
    sparse_free(&s);
}

static void
test_fit_when_bad_argument_then_refused(void **state)
{
    struct sparse s = random_texts(1, 10, 10, 2);
    struct mb_lsa_options opt = {.dim = 4};
    struct mb_csr none = s.csr;
    float V[40];
    float sigma[4];
    size_t rank = 77;
    struct mb_error err;
    MB_TEST_UNUSED(state);
    none.n_rows = 0;
    assert_status(
        MB_ERR_BAD_ARG, mb_lsa_fit(&none, &opt, V, sigma, &rank, &err), &err);
    assert_error_has(err, "empty");
    opt.dim = 0;
    assert_status(
        MB_ERR_BAD_ARG, mb_lsa_fit(&s.csr, &opt, V, sigma, &rank, &err), &err);
    opt.dim = MB_LSA_MAX_DIM + 1;
    assert_status(
        MB_ERR_BAD_ARG, mb_lsa_fit(&s.csr, &opt, V, sigma, &rank, &err), &err);
    opt.dim = 4;
    float value = s.val[3];
    s.val[3] = NAN;
    assert_status(
        MB_ERR_BAD_ARG, mb_lsa_fit(&s.csr, &opt, V, sigma, &rank, &err), &err);
    assert_error_has(err, "value 3");
    s.val[3] = value;
    s.col[2] = 10;
    assert_status(
        MB_ERR_BAD_ARG, mb_lsa_fit(&s.csr, &opt, V, sigma, &rank, &err), &err);
    s.col[2] = 0;
    s.row_start[1] = s.row_start[2] + 1;
    assert_status(
        MB_ERR_BAD_ARG, mb_lsa_fit(&s.csr, &opt, V, sigma, &rank, &err), &err);
    assert_error_has(err, "row 1");
    s.row_start[0] = 1;
    assert_status(
        MB_ERR_BAD_ARG, mb_lsa_fit(&s.csr, &opt, V, sigma, &rank, &err), &err);
    assert_int_equal(77, rank);
    sparse_free(&s);
}

struct stopper {
    size_t calls;
    size_t stop_at; /* call that stops, 0: none */
    double last;
};

static bool
on_progress(void *arg, double part)
{
    struct stopper *s = arg;
    assert_true(part > s->last && part <= 1.0);
    s->last = part;
    return ++s->calls == s->stop_at;
}

static void
test_fit_when_stopped_then_cancelled(void **state)
{
    struct sparse s = random_texts(1, 60, 50, 5);
    struct stopper stop = {0};
    struct mb_lsa_options opt = {
        .dim = 4, .progress = on_progress, .progress_arg = &stop};
    float V[200];
    float sigma[4];
    size_t rank = 0;
    MB_TEST_UNUSED(state);
    assert_ok(mb_lsa_fit(&s.csr, &opt, V, sigma, &rank, NULL));
    assert_true(stop.last == 1.0);
    size_t all = stop.calls;
    for (size_t i = 1; i <= all; i++) {
        stop = (struct stopper){.stop_at = i};
        assert_status(MB_ERR_CANCELLED,
            mb_lsa_fit(&s.csr, &opt, V, sigma, &rank, NULL), NULL);
    }
    sparse_free(&s);
}

static mb_status
fit_once(void *arg)
{
    const struct sparse *s = arg;
    struct mb_lsa_options opt = {.dim = 4};
    static float V[200];
    float sigma[4];
    size_t rank = 0;
    return mb_lsa_fit(&s->csr, &opt, V, sigma, &rank, NULL);
}

static void
test_fit_when_memory_is_short_then_no_memory(void **state)
{
    struct sparse s = random_texts(1, 60, 50, 5);
    MB_TEST_UNUSED(state);
    mb_test_each_allocation(fit_once, &s);
    sparse_free(&s);
}

/* ---- kernels ---- */

static void
test_gather_when_fast_then_as_plain(void **state)
{
    enum { ROWS = 50, LD = 160, NNZ = 40 };

    static float X[ROWS * LD];
    struct mb_rng rng;
    uint32_t index[NNZ];
    float val[NNZ];
    MB_TEST_UNUSED(state);
    mb_rng_init(&rng, mb_test_seed());
    for (size_t i = 0; i < sizeof(X) / sizeof(X[0]); i++)
        X[i] = (float)mb_rng_normal(&rng);
    for (size_t i = 0; i < NNZ; i++) {
        index[i] = (uint32_t)mb_rng_below(&rng, ROWS);
        val[i] = (float)mb_rng_normal(&rng);
    }
    for (size_t width = KERNEL_WIDTH; width <= LD; width += KERNEL_WIDTH) {
        for (size_t n = 0; n <= NNZ; n += 5) {
            float fast[LD];
            float plain[LD];
            kernels_best()->gather(index, val, n, X, LD, width, fast);
            kernels_plain()->gather(index, val, n, X, LD, width, plain);
            /* Fused multiply-add rounds once where the twin rounds twice. */
            for (size_t j = 0; j < width; j++)
                assert_true(fabsf(fast[j] - plain[j]) < 1e-5f);
        }
    }
}

static void
test_fold_kernel_when_fast_then_as_plain(void **state)
{
    enum { ROWS = 50, WIDTH = 160, N = 40 };

    static int8_t codes[ROWS * WIDTH];
    struct mb_rng rng;
    uint32_t row[N];
    float weight[N];
    MB_TEST_UNUSED(state);
    mb_rng_init(&rng, mb_test_seed());
    for (size_t i = 0; i < sizeof(codes); i++)
        codes[i] = (int8_t)((int)mb_rng_below(&rng, 255) - 127);
    for (size_t width = KERNEL_WIDTH; width <= WIDTH; width += KERNEL_WIDTH) {
        for (size_t i = 0; i < N; i++) {
            row[i] = (uint32_t)mb_rng_below(&rng, ROWS);
            weight[i] = (float)mb_rng_normal(&rng) / 127.0f;
        }
        for (size_t n = 0; n <= N; n += 5) {
            float fast[WIDTH];
            float plain[WIDTH];
            for (size_t j = 0; j < width; j++)
                fast[j] = plain[j] = (float)j;
            kernels_best()->fold(row, weight, n, codes, width, fast);
            kernels_plain()->fold(row, weight, n, codes, width, plain);
            /* Sums start at up to 160: one unit in the last place is 1e-5. */
            for (size_t j = 0; j < width; j++)
                assert_true(fabsf(fast[j] - plain[j]) < 2e-4f);
        }
    }
}

/* ---- a model ---- */

struct model {
    size_t n;
    size_t dim;
    uint64_t *hash;
    uint32_t *id;
    float *idf;
    float *V;
    struct mb_buffer bytes;
    struct mb_lsa *lsa;
};

static struct model
make_model(size_t n, size_t dim)
{
    struct model m = {.n = n, .dim = dim};
    struct mb_rng rng;
    struct mb_error err;
    mb_rng_init(&rng, 9);
    m.hash = mb_calloc(n, sizeof(uint64_t));
    m.id = mb_calloc(n, sizeof(uint32_t));
    m.idf = mb_calloc(n, sizeof(float));
    m.V = mb_calloc(n * dim, sizeof(float));
    assert_true(m.hash && m.id && m.idf && m.V);
    for (size_t i = 0; i < n; i++) {
        m.hash[i] = mb_rng_u64(&rng);
        m.id[i] = (uint32_t)(i * 977 + 5);
        m.idf[i] = 0.5f + (float)mb_rng_double(&rng) * 8.0f;
    }
    for (size_t i = 0; i < n * dim; i++)
        m.V[i] = (float)mb_rng_normal(&rng) * 0.1f;
    mb_buffer_init(&m.bytes, 64u << 20);
    assert_status(MB_OK,
        mb_lsa_encode(n, dim, m.hash, m.id, m.idf, m.V, &m.bytes, &err), &err);
    assert_status(
        MB_OK, mb_lsa_open(mb_buffer_slice(&m.bytes), &m.lsa, &err), &err);
    return m;
}

static void
model_free(struct model *m)
{
    mb_lsa_close(m->lsa);
    mb_buffer_fini(&m->bytes);
    mb_free(m->hash);
    mb_free(m->id);
    mb_free(m->idf);
    mb_free(m->V);
}

static void
test_open_when_encoded_then_facts(void **state)
{
    struct model m = make_model(1000, 50);
    MB_TEST_UNUSED(state);
    assert_int_equal(1000, mb_lsa_n_terms(m.lsa));
    assert_int_equal(50, mb_lsa_dim(m.lsa));
    assert_true(mb_lsa_bytes(m.lsa) >= m.bytes.size);
    model_free(&m);
    mb_lsa_close(NULL);
}

/* By hash, by id, and by the formula in double: all the same direction. */
static void
test_fold_when_known_terms_then_the_formula(void **state)
{
    struct mb_rng rng;
    MB_TEST_UNUSED(state);
    mb_rng_init(&rng, mb_test_seed());
    for (size_t dim = 1; dim < 300; dim += 61) {
        struct model m = make_model(2000, dim);
        float *by_hash = mb_calloc(dim, sizeof(float));
        float *by_id = mb_calloc(dim, sizeof(float));
        double *want = mb_calloc(dim, sizeof(double));
        assert_true(by_hash && by_id && want);
        for (size_t n = 1; n < 1000; n = n * 3 + 1) { // beyond one batch
            uint64_t hash[1000];
            uint32_t id[1000];
            uint32_t tf[1000];
            float tf_float[1000];
            float coverage = 0.0f;
            double square = 0.0;
            double mass = 0.0;
            double dot = 0.0;
            memset(want, 0, dim * sizeof(double));
            for (size_t i = 0; i < n; i++) {
                size_t t = mb_rng_below(&rng, m.n);
                hash[i] = m.hash[t];
                id[i] = m.id[t];
                tf[i] = 1 + (uint32_t)mb_rng_below(&rng, 3);
                tf_float[i] = (float)tf[i];
                double weight = log(1.0 + tf[i]) * (double)m.idf[t];
                mass += weight * weight;
                for (size_t j = 0; j < dim; j++)
                    want[j] += weight * (double)m.V[t * dim + j];
            }
            mb_lsa_fold(m.lsa, hash, tf_float, n, by_hash, &coverage);
            mb_lsa_fold_ids(m.lsa, id, tf, n, by_id);
            assert_memory_equal(by_hash, by_id, dim * sizeof(float));
            for (size_t j = 0; j < dim; j++)
                square += want[j] * want[j];
            for (size_t j = 0; j < dim; j++)
                dot += want[j] / sqrt(square) * (double)by_id[j];
            double kept = fmin(sqrt(square / mass), 1.0);
            assert_true(fabs((double)coverage - kept) < 0.01);
            /* An int8 code is off by 0.3% of its row's largest value. */
            assert_true(dot > 0.9999 && dot < 1.00001);
        }
        mb_free(by_hash);
        mb_free(by_id);
        mb_free(want);
        model_free(&m);
    }
}

static void
test_fold_when_nothing_known_then_zero(void **state)
{
    struct model m = make_model(100, 40);
    uint64_t hash[2] = {12345, 67890};
    uint32_t id[2] = {1, 2};
    uint32_t tf[2] = {1, 1};
    float tf_float[2] = {1.0f, 1.0f};
    float out[40];
    float coverage = 5.0f;
    MB_TEST_UNUSED(state);
    memset(out, 0xff, sizeof(out));
    mb_lsa_fold(m.lsa, hash, tf_float, 2, out, &coverage);
    assert_true(coverage == 0.0f);
    for (size_t j = 0; j < 40; j++)
        assert_true(out[j] == 0.0f);
    memset(out, 0xff, sizeof(out));
    mb_lsa_fold_ids(m.lsa, id, tf, 2, out);
    for (size_t j = 0; j < 40; j++)
        assert_true(out[j] == 0.0f);
    mb_lsa_fold(m.lsa, hash, tf_float, 0, out, &coverage);
    assert_true(coverage == 0.0f && out[0] == 0.0f);
    model_free(&m);
}

static void
test_fold_when_half_known_then_coverage_between(void **state)
{
    struct model m = make_model(100, 40);
    uint64_t hash[2] = {m.hash[7], 12345};
    float tf[2] = {1.0f, 1.0f};
    float out[40];
    float coverage = 0.0f;
    float largest = 0.0f;
    float kept = 0.0f;
    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < m.n; i++)
        largest = fmaxf(largest, m.idf[i]);
    for (size_t j = 0; j < 40; j++)
        kept += m.V[7 * 40 + j] * m.V[7 * 40 + j];
    mb_lsa_fold(m.lsa, hash, tf, 2, out, &coverage);
    float want =
        m.idf[7] * sqrtf(kept) / sqrtf(m.idf[7] * m.idf[7] + largest * largest);
    assert_true(fabsf(coverage - want) < 0.01f);
    tf[0] = NAN; // weighs nothing, does no harm
    mb_lsa_fold(m.lsa, hash, tf, 1, out, &coverage);
    assert_true(out[0] == 0.0f && coverage == 0.0f);
    model_free(&m);
}

/* Order of the terms does not show in the bytes. */
static void
test_encode_when_terms_in_other_order_then_same_bytes(void **state)
{
    enum { N = 50, DIM = 3 };
    struct model m = make_model(N, DIM);
    struct mb_buffer other;
    uint64_t hash[N];
    uint32_t id[N];
    float idf[N];
    float V[N * DIM];
    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < N; i++) {
        hash[i] = m.hash[N - 1 - i];
        id[i] = m.id[N - 1 - i];
        idf[i] = m.idf[N - 1 - i];
        memcpy(V + i * DIM, m.V + (N - 1 - i) * DIM, DIM * sizeof(float));
    }
    mb_buffer_init(&other, 1u << 20);
    assert_ok(mb_lsa_encode(N, DIM, hash, id, idf, V, &other, NULL));
    assert_true(
        mb_slice_equal(mb_buffer_slice(&m.bytes), mb_buffer_slice(&other)));
    mb_buffer_fini(&other);
    model_free(&m);
}

static void
test_encode_when_bad_argument_then_refused(void **state)
{
    struct model m = make_model(4, 2);
    struct mb_buffer out;
    struct mb_error err;
    MB_TEST_UNUSED(state);
    mb_buffer_init(&out, 1u << 16);
    assert_status(MB_ERR_BAD_ARG,
        mb_lsa_encode(0, 2, m.hash, m.id, m.idf, m.V, &out, &err), &err);
    assert_status(MB_ERR_BAD_ARG,
        mb_lsa_encode(4, 0, m.hash, m.id, m.idf, m.V, &out, &err), &err);
    m.V[3] = INFINITY;
    assert_status(MB_ERR_BAD_ARG,
        mb_lsa_encode(4, 2, m.hash, m.id, m.idf, m.V, &out, &err), &err);
    assert_error_has(err, "term 1");
    m.V[3] = 0.0f;
    m.idf[2] = -1.0f;
    assert_status(MB_ERR_BAD_ARG,
        mb_lsa_encode(4, 2, m.hash, m.id, m.idf, m.V, &out, &err), &err);
    assert_error_has(err, "idf of term 2");
    m.idf[2] = 1.0f;
    m.hash[3] = m.hash[0];
    assert_status(MB_ERR_BAD_ARG,
        mb_lsa_encode(4, 2, m.hash, m.id, m.idf, m.V, &out, &err), &err);
    assert_error_has(err, "same hash");
    m.hash[3]++;
    mb_buffer_fini(&out);
    mb_buffer_init(&out, 50);
    assert_status(MB_ERR_TOO_LARGE,
        mb_lsa_encode(4, 2, m.hash, m.id, m.idf, m.V, &out, &err), &err);
    assert_int_equal(0, out.size);
    mb_buffer_fini(&out);
    model_free(&m);
}

/* ---- bytes ---- */

/* Hex digits of a fixture, blanks and lines that begin with # left out. */
static size_t
read_hex(const char *name, uint8_t *out, size_t max)
{
    char path[MB_TEST_PATH];
    size_t size = 0;
    size_t n = 0;
    char *text = (char *)mb_test_read_file(mb_test_fixture(name, path), &size);
    for (char *p = text; *p;) {
        if (*p == '#') {
            p = strchr(p, '\n');
            assert_non_null(p);
        } else if (*p == ' ' || *p == '\n') {
            p++;
        } else {
            char pair[3] = {p[0], p[1], 0};
            assert_true(n < max);
            out[n++] = (uint8_t)strtoul(pair, NULL, 16);
            p += 2;
        }
    }
    mb_free(text);
    return n;
}

static void
test_encode_when_example_then_bytes_of_the_document(void **state)
{
    static const uint64_t hash[2] = {0x1122334455667788, 0x0102030405060708};
    static const uint32_t id[2] = {7, 9};
    static const float idf[2] = {2.0f, 0.5f};
    static const float V[6] = {127.0f, -64.0f, 0.0f, 0.0f, 0.0f, -1.0f};
    struct mb_buffer out;
    uint8_t want[256];
    MB_TEST_UNUSED(state);
    size_t n = read_hex("model/lsa-v1.hex", want, sizeof(want));
    mb_buffer_init(&out, 1024);
    assert_ok(mb_lsa_encode(2, 3, hash, id, idf, V, &out, NULL));
    for (size_t i = 0; n != out.size && i < out.size; i++)
        print_message("%02x%s", out.data[i], i % 16 == 15 ? "\n" : " ");
    assert_int_equal(n, out.size);
    assert_memory_equal(want, out.data, n);
    mb_buffer_fini(&out);
}

/* Open a copy in an allocation of its exact size. */
static mb_status
try_bytes(const uint8_t *data, size_t size)
{
    struct mb_lsa *lsa = NULL;
    uint8_t *copy = mb_alloc(size > 0 ? size : 1);
    assert_non_null(copy);
    memcpy(copy, data, size);
    mb_status st = mb_lsa_open(mb_slice_of(copy, size), &lsa, NULL);
    mb_lsa_close(lsa);
    mb_free(copy);
    return st;
}

static void
test_open_when_any_byte_changes_then_refused(void **state)
{
    struct model m = make_model(9, 5);
    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < m.bytes.size; i++) {
        m.bytes.data[i] ^= 0x41;
        mb_status st = try_bytes(m.bytes.data, m.bytes.size);
        m.bytes.data[i] ^= 0x41;
        if (st != MB_ERR_CORRUPT && st != MB_ERR_FORMAT)
            fail_msg("byte %zu: got %s", i, mb_status_name(st));
    }
    for (size_t size = 0; size < m.bytes.size; size++)
        assert_status(MB_ERR_CORRUPT, try_bytes(m.bytes.data, size), NULL);
    model_free(&m);
}

/* What a checksum does not catch: bytes that were written so. */
static const struct defect {
    const char *name;
    size_t at; /* of a u32 in the example of two terms of three dimensions */
    uint32_t value;
    mb_status status;
} defects[] = {
    {"other magic", 0, 0, MB_ERR_FORMAT},
    {"version 2", 8, 2, MB_ERR_FORMAT},
    {"no terms", 16, 0, MB_ERR_CORRUPT},
    {"2^32 terms", 16, UINT32_MAX, MB_ERR_CORRUPT},
    {"no dimensions", 20, 0, MB_ERR_CORRUPT},
    {"2^32 dimensions", 20, UINT32_MAX, MB_ERR_CORRUPT},
    {"another size", 24, 9, MB_ERR_CORRUPT},
    {"terms out of order", 44, 0x7fffffff, MB_ERR_CORRUPT},
    {"idf NaN", 64, 0x7fc00000, MB_ERR_CORRUPT},
    {"idf below zero", 64, 0xbf800000, MB_ERR_CORRUPT},
    {"scale infinite", 72, 0x7f800000, MB_ERR_CORRUPT},
    {"product infinite", 72, 0x7f7fffff, MB_ERR_CORRUPT},
};

static void
test_open_when_defect_then_its_error(void **state)
{
    uint8_t bytes[256];
    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < sizeof(defects) / sizeof(defects[0]); i++) {
        const struct defect *d = &defects[i];
        size_t n = read_hex("model/lsa-v1.hex", bytes, sizeof(bytes));
        assert_ok(try_bytes(bytes, n));
        mb_put_le32(bytes + d->at, d->value);
        if (strcmp(d->name, "product infinite") == 0)
            mb_put_lef32(bytes + 64, 8.0f);
        mb_put_le64(bytes + n - 8, mb_hash64(bytes, n - 8, 0));
        mb_status st = try_bytes(bytes, n);
        if (st != d->status)
            fail_msg("%s: got %s", d->name, mb_status_name(st));
    }
}

static mb_status
open_once(void *arg)
{
    const struct model *m = arg;
    struct mb_lsa *lsa = NULL;
    struct mb_buffer out;
    mb_buffer_init(&out, 1u << 20);
    mb_status st =
        mb_lsa_encode(m->n, m->dim, m->hash, m->id, m->idf, m->V, &out, NULL);
    if (st == MB_OK)
        st = mb_lsa_open(mb_buffer_slice(&out), &lsa, NULL);
    mb_lsa_close(lsa);
    mb_buffer_fini(&out);
    return st;
}

static void
test_open_when_memory_is_short_then_no_memory(void **state)
{
    struct model m = make_model(20, 5);
    MB_TEST_UNUSED(state);
    mb_test_each_allocation(open_once, &m);
    model_free(&m);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fit_when_small_matrix_then_as_exact),
        cmocka_unit_test(test_fit_when_defaults_then_near_the_best),
        cmocka_unit_test(test_fit_when_threads_then_the_same_bits),
        cmocka_unit_test(test_fit_when_rank_is_low_then_zero_beyond),
        cmocka_unit_test(test_fit_when_one_value_then_rank_one),
        cmocka_unit_test(test_fit_when_bad_argument_then_refused),
        cmocka_unit_test(test_fit_when_stopped_then_cancelled),
        cmocka_unit_test(test_fit_when_memory_is_short_then_no_memory),
        cmocka_unit_test(test_gather_when_fast_then_as_plain),
        cmocka_unit_test(test_fold_kernel_when_fast_then_as_plain),
        cmocka_unit_test(test_open_when_encoded_then_facts),
        cmocka_unit_test(test_fold_when_known_terms_then_the_formula),
        cmocka_unit_test(test_fold_when_nothing_known_then_zero),
        cmocka_unit_test(test_fold_when_half_known_then_coverage_between),
        cmocka_unit_test(test_encode_when_terms_in_other_order_then_same_bytes),
        cmocka_unit_test(test_encode_when_bad_argument_then_refused),
        cmocka_unit_test(test_encode_when_example_then_bytes_of_the_document),
        cmocka_unit_test(test_open_when_any_byte_changes_then_refused),
        cmocka_unit_test(test_open_when_defect_then_its_error),
        cmocka_unit_test(test_open_when_memory_is_short_then_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
