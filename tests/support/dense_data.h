/* SPDX-License-Identifier: Apache-2.0
 * tests/support/dense_data.h - vectors from a seed, for tests and benchmarks.
 *
 * Clustered: 3 * sqrt(n) clusters of unequal size (Zipf, exponent 0.7); a
 * point is its centre and 0.6 times noise of the same law, whose spectrum
 * decays as that of real embeddings does, turned at random so that no
 * dimension stands out. Uniform: directions drawn evenly, the hard case, in
 * which nothing is near anything. Unit length both. */
#ifndef DENSE_DATA_H
#define DENSE_DATA_H

#include <math.h>
#include <string.h>

#include "mb_base.h"

static inline void
data_normalize(float *x, size_t dim)
{
    double sum = 0;

    for (size_t d = 0; d < dim; d++) {
        sum += (double)x[d] * (double)x[d];
    }
    for (size_t d = 0; d < dim; d++) {
        x[d] = (float)((double)x[d] / sqrt(sum));
    }
}

/* n rows of dim; NULL without memory; free with mb_free. */
static inline float *
data_uniform(size_t n, size_t dim, uint64_t seed)
{
    float *x = mb_alloc(n * dim * sizeof(*x));
    struct mb_rng rng;

    mb_rng_init(&rng, seed);
    for (size_t i = 0; x != NULL && i < n; i++) {
        for (size_t d = 0; d < dim; d++) {
            x[i * dim + d] = (float)mb_rng_normal(&rng);
        }
        data_normalize(x + i * dim, dim);
    }
    return x;
}

/* Sum of 16 random reflections: cheap, and mixes all dimensions. */
#define DATA_MIRRORS 16

/* Turn x by reflections at mirrors (DATA_MIRRORS, dim), unit rows. */
static inline void
data_turn(float *x, const float *mirrors, size_t dim)
{
    for (size_t m = 0; m < DATA_MIRRORS; m++) {
        const float *v = mirrors + m * dim;
        float dot = 0;

        for (size_t d = 0; d < dim; d++) {
            dot += v[d] * x[d];
        }
        for (size_t d = 0; d < dim; d++) {
            x[d] -= 2.0f * dot * v[d];
        }
    }
}

/* Cluster of one point: chances by a running sum of weights. */
static inline size_t
data_draw(struct mb_rng *rng, const double *until, size_t n)
{
    double mark = mb_rng_double(rng) * until[n - 1];
    size_t low = 0;
    size_t high = n - 1;

    while (low < high) {
        size_t middle = (low + high) / 2;

        if (until[middle] > mark) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

/* n rows and behind them n_queries more of the same law. */
static inline float *
data_clustered(size_t n, size_t n_queries, size_t dim, uint64_t seed)
{
    size_t n_clusters = (size_t)(3.0 * sqrt((double)n)) + 8;
    float *mirrors = data_uniform(DATA_MIRRORS, dim, seed + 1);
    float *centre = mb_alloc(n_clusters * dim * sizeof(*centre));
    double *until = mb_alloc(n_clusters * sizeof(*until));
    float *x = mb_alloc((n + n_queries) * dim * sizeof(*x));
    double sum = 0;
    struct mb_rng rng;

    if (mirrors == NULL || centre == NULL || until == NULL || x == NULL) {
        mb_free(x);
        x = NULL;
        goto out;
    }
    mb_rng_init(&rng, seed);
    for (size_t c = 0; c < n_clusters; c++) {
        sum += pow((double)c + 1.0, -0.7);
        until[c] = sum;
        for (size_t d = 0; d < dim; d++) {
            centre[c * dim + d] =
                (float)(mb_rng_normal(&rng) / sqrt(1.0 + (double)d / 8.0));
        }
    }
    for (size_t i = 0; i < n + n_queries; i++) {
        float *row = x + i * dim;
        size_t c = data_draw(&rng, until, n_clusters);

        for (size_t d = 0; d < dim; d++) {
            row[d] = centre[c * dim + d] + (float)(0.6 * mb_rng_normal(&rng) /
                                                   sqrt(1.0 + (double)d / 8.0));
        }
        data_turn(row, mirrors, dim);
        data_normalize(row, dim);
    }
out:
    mb_free(until);
    mb_free(centre);
    mb_free(mirrors);
    return x;
}

#endif
