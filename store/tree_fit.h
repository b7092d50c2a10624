/* SPDX-License-Identifier: Apache-2.0
 * store/tree_fit.h - private to tree.c and tree_fit.c. */
#ifndef STORE_TREE_FIT_H
#define STORE_TREE_FIT_H

#include "mb_store.h"

/* Below this many vectors a whole exact scan is as fast as a tree. */
#define TREE_FLAT_BELOW 20000

/* Reorder order[0..n) (rows of vectors) by the nearest of k centroids;
 * count[c] says how many went to each. Errors: NOMEM, INTERNAL. */
MB_MUST_USE mb_status tree_partition(const float *vectors, size_t dim,
    uint32_t *order, size_t n, const float *centroids, uint32_t k,
    size_t *count, struct mb_error *err);

#endif
