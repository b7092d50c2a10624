/* SPDX-License-Identifier: Apache-2.0
 * daemon/need.c - what the dense index of a collection needs.
 *
 * An embedding of the collection itself is fitted anew as that grows; vectors
 * that are made elsewhere want a tree once there are many.
 * Threads: any. */
#include "need.h"

#include "jobs.h"

enum need
need_of(const struct config *cfg, const struct mb_collection *coll)
{
    uint64_t fitted = coll->fitted_segments > 0 ? coll->fitted_segments : 1;

    if (!cfg->refit)
        return NEED_NOTHING;
    // Vectors that are made elsewhere want a tree when there are many.
    if (coll->settings.embedding == MB_EMBED_CLIENT ||
        coll->settings.embedding == MB_EMBED_ANCHOR)
        return coll->n_vectors >= cfg->flat_below &&
                       coll->n_vectors >= 4 * fitted
                   ? NEED_NOW
                   : NEED_NOTHING;
    if (coll->settings.embedding != MB_EMBED_LSA ||
        coll->n_segments < cfg->refit_min_segments)
        return NEED_NOTHING;
    if (coll->generation == 0 || coll->n_segments >= 4 * fitted)
        return NEED_NOW;
    return coll->n_segments >= 2 * fitted ? NEED_WHEN_QUIET : NEED_NOTHING;
}

uint64_t
jobs_pending(const struct config *cfg, const struct mb_collection *coll)
{
    // A client decides which documents have a vector, and it comes with them.
    if (coll->settings.embedding == MB_EMBED_CLIENT ||
        coll->settings.embedding == MB_EMBED_NONE ||
        (coll->settings.embedding == MB_EMBED_LSA &&
            need_of(cfg, coll) == NEED_NOTHING))
        return 0;
    return coll->n_segments > coll->n_vectors
               ? coll->n_segments - coll->n_vectors
               : 0;
}
