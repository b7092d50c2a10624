/* SPDX-License-Identifier: Apache-2.0
 * model/train/speed.c - the rate of sgemm at a model's shapes.
 *
 * Threads: one caller; the products run on a pool of its own, each thread with
 * its own matrices, as windows do in a step. */
#include "mb_train_speed.h"

#include "../blas.h"

#define MAX_PRODUCTS 8

/* Y (n, m) = X (n, k) W (m, k)^T. */
struct product {
    size_t m;
    size_t k;
};

/* Three matrices to read and three to write: what is read never changes, so
 * that no product meets infinities or denormals. */
struct worker {
    float *x; /* (n, largest k) */
    float *y; /* (n, largest m) */
    float *w; /* (m, k) of the largest product */
    float *to_x;
    float *to_y;
    float *to_w;
};

struct rate {
    struct product products[MAX_PRODUCTS];
    size_t n_products;
    size_t n_layers;
    size_t n_rows;
    struct worker *workers;
    size_t n_workers;
};

static void
run_product(const struct rate *r, const struct worker *v, struct product p)
{
    size_t n = r->n_rows;
    struct blas_matrix X = {v->x, p.k, false};
    struct blas_matrix W = {v->w, p.k, false};
    struct blas_matrix W_t = {v->w, p.k, true};
    struct blas_matrix Y = {v->y, p.m, false};
    struct blas_matrix Y_t = {v->y, p.m, true};
    blas_gemm(n, p.m, p.k, 1, X, W_t, 0, v->to_y, p.m);
    blas_gemm(n, p.k, p.m, 1, Y, W, 0, v->to_x, p.k);
    blas_gemm(p.m, p.k, n, 1, Y_t, X, 0, v->to_w, p.k);
}

/* All products of one window. */
static void
run_window(void *arg, size_t i)
{
    const struct rate *r = arg;
    for (size_t layer = 0; layer < r->n_layers; layer++) {
        for (size_t p = 0; p + 1 < r->n_products; p++)
            run_product(r, &r->workers[i], r->products[p]);
    }
    run_product(r, &r->workers[i], r->products[r->n_products - 1]);
}

static mb_status
fill(float **out, size_t n)
{
    *out = mb_alloc(n * sizeof **out);
    for (size_t i = 0; *out && i < n; i++)
        (*out)[i] = (float)(i % 17) / 17 - 0.5f;
    return *out ? MB_OK : MB_ERR_NOMEM;
}

static mb_status
make_workers(struct rate *r)
{
    size_t k = 0;
    size_t m = 0;
    size_t w = 0;
    mb_status st = MB_OK;
    for (size_t i = 0; i < r->n_products; i++) {
        struct product p = r->products[i];
        k = p.k > k ? p.k : k;
        m = p.m > m ? p.m : m;
        w = p.m * p.k > w ? p.m * p.k : w;
    }
    r->workers = mb_calloc(r->n_workers, sizeof *r->workers);
    if (!r->workers)
        return MB_ERR_NOMEM;
    for (size_t i = 0; st == MB_OK && i < r->n_workers; i++) {
        struct worker *v = &r->workers[i];
        float **const inputs[3] = {&v->x, &v->y, &v->w};
        float **const outputs[3] = {&v->to_x, &v->to_y, &v->to_w};
        const size_t sizes[3] = {r->n_rows * k, r->n_rows * m, w};
        for (size_t j = 0; st == MB_OK && j < 3; j++) {
            st = fill(inputs[j], sizes[j]);
            if (st == MB_OK)
                st = fill(outputs[j], sizes[j]);
        }
    }
    return st;
}

static void
free_workers(struct rate *r)
{
    for (size_t i = 0; r->workers && i < r->n_workers; i++) {
        struct worker *v = &r->workers[i];
        mb_free(v->x);
        mb_free(v->y);
        mb_free(v->w);
        mb_free(v->to_x);
        mb_free(v->to_y);
        mb_free(v->to_w);
    }
    mb_free(r->workers);
}

mb_status
train_sgemm_rate(const struct train_shape *s, size_t n_rows, unsigned n_threads,
    double seconds, double *out, struct mb_error *err)
{
    size_t d = s->d_model;
    size_t q = s->n_heads * s->head_dim;
    size_t kv = s->n_kv_heads * s->head_dim;
    struct rate r = {
        .products = {{q, d}, {kv, d}, {kv, d}, {d, q}, {s->d_ff, d},
            {s->d_ff, d}, {d, s->d_ff}, {s->n_vocab, d}},
        .n_products = MAX_PRODUCTS,
        .n_layers = s->n_layers,
        .n_rows = n_rows,
        .n_workers = n_threads > 0 ? n_threads : mb_cpu_count(),
    };
    struct mb_pool *pool = NULL;
    blas_begin();
    mb_status st = make_workers(&r);
    // The caller is one of the threads.
    if (st == MB_OK && r.n_workers > 1)
        st = mb_pool_new(
            &pool, "mb-sgemm", (unsigned)r.n_workers - 1, r.n_workers);
    if (st == MB_OK) {
        double flops = 0;
        for (size_t i = 0; i < r.n_products; i++)
            flops += 6.0 * (double)(n_rows * r.products[i].m) *
                     (double)r.products[i].k *
                     (i + 1 < r.n_products ? (double)r.n_layers : 1);
        mb_pool_for(pool, r.n_workers, run_window, &r); // warm-up
        uint64_t begun = mb_clock_ns();
        double spent = 0;
        double n = 0;
        while (spent < seconds) {
            mb_pool_for(pool, r.n_workers, run_window, &r);
            n += (double)r.n_workers;
            spent = (double)(mb_clock_ns() - begun) / 1e9;
        }
        *out = n * flops / spent;
    }
    mb_pool_free(pool);
    free_workers(&r);
    if (st != MB_OK)
        return mb_error_set(err, st, "matrices to measure sgemm with");
    return MB_OK;
}
