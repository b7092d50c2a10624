/* SPDX-License-Identifier: Apache-2.0
 * daemon/refit.h - build the next generation of a collection's dense index.
 *
 * lsa: sample -> terms -> truncated SVD -> tree -> fold all segments in ->
 * switch -> erase the old one. Client vectors: the same without the fit.
 * Search goes on with the old generation until the switch.
 * Threads: one refit at a time, on mb-job. */
#ifndef DAEMON_REFIT_H
#define DAEMON_REFIT_H

#include "config.h"
#include "indexer.h"

struct refit {
    struct mb_store *store;
    struct indexer *indexer;
    const struct config *cfg;
    struct mb_collection coll; /* as read when it became due */
    /* Called often with what is being done and the part done of all in [0, 1];
     * true stops (CANCELLED). */
    bool (*progress)(void *arg, const char *phase, double part);
    void *arg;
    /* Results, on MB_OK. */
    uint32_t generation;
    size_t dim;
    size_t n_terms;
    uint32_t n_leaves;
    struct mb_probing probing;
    uint64_t n_vectors;
};

/* Errors: CANCELLED, STALE (grew so fast that it is due again: begin anew),
 * NOT_FOUND (dropped meanwhile), NOMEM, NO_SPACE, ...; what
 * was built is erased again then, if it can be. */
MB_MUST_USE mb_status refit_run(struct refit *r, struct mb_error *err);
/* Erase a generation that is not served; progress may stop it between slices
 * (CANCELLED). */
MB_MUST_USE mb_status refit_purge(
    struct refit *r, uint32_t generation, struct mb_error *err);

#endif
