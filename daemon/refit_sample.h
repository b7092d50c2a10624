/* SPDX-License-Identifier: Apache-2.0
 * daemon/refit_sample.h - the matrix that latent semantic analysis is fitted on.
 * Threads: mb-job. */
#ifndef DAEMON_REFIT_SAMPLE_H
#define DAEMON_REFIT_SAMPLE_H

#include "refit.h"

/* Segments drawn from a collection, and the terms that were chosen. */
struct sample {
    size_t n_rows;
    size_t *row_start; /* (n_rows + 1) into term_id and tf */
    uint32_t *term_id; /* of the store, rising within a row */
    uint32_t *tf;
    size_t n_cols;
    uint32_t *col_term; /* (n_cols) store's term ids */
    uint64_t *col_hash; /* (n_cols) hashes of the terms' bytes */
    float *idf;         /* (n_cols) */
    struct mb_csr csr;  /* n_rows x n_cols, unit rows */
};

/* Draw at most max_rows segments evenly, choose at most max_terms terms that
 * at least two of them have, by how many have them, and weigh: log(1 + tf) *
 * idf, rows of unit length.
 * Errors: BAD_ARG (nothing to fit: fewer than two rows or terms), NOMEM, ... */
MB_MUST_USE mb_status sample_draw(struct mb_snapshot *snap,
    const struct mb_collection *coll, size_t max_rows, size_t max_terms,
    struct sample *out, struct mb_error *err);
void sample_free(struct sample *s);

#endif
