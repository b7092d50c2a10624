/* SPDX-License-Identifier: Apache-2.0
 * store/vindex.h - private to the store: clustering and coarse assignment of
 * vectors, through FAISS and BLAS. */
#ifndef STORE_VINDEX_H
#define STORE_VINDEX_H

#include "mb_base.h"

/* Balanced spherical k-means: k unit centroids (k x dim) of n unit vectors
 * (n x dim), 2 <= k <= n. The same input and seed give the same result.
 * Errors: NOMEM, INTERNAL (FAISS's text). */
MB_MUST_USE mb_status vindex_kmeans(const float *x, size_t n, size_t dim,
    size_t k, uint64_t seed, float *centroids, struct mb_error *err);

/* label[i] = the centroid (k x dim) with the largest inner product with x[i].
 * Errors: NOMEM, INTERNAL. */
MB_MUST_USE mb_status vindex_assign(const float *centroids, size_t k,
    const float *x, size_t n, size_t dim, uint32_t *label,
    struct mb_error *err);

#endif
