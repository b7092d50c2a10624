/* SPDX-License-Identifier: Apache-2.0
 * daemon/bank_space.h - the vectors that banks are built over and route by. */
#ifndef DAEMON_BANK_SPACE_H
#define DAEMON_BANK_SPACE_H

#include "mb_banker.h"
#include "mb_model.h"
#include "mb_store.h"

#define BANK_MAX_TERMS 65536 /* of a segment */

/* Zero it before use. */
struct bank_space {
    struct mb_lsa *lsa; /* NULL: vectors are made elsewhere */
    size_t dim;
    uint32_t *ids; /* (BANK_MAX_TERMS) of one segment; NULL until needed */
    uint32_t *tfs;
};

void bank_space_fini(struct bank_space *s);
/* A segment's unit vector (dim). Errors: NOT_FOUND (it has none), CORRUPT,
 * NOMEM. */
MB_MUST_USE mb_status bank_space_vector(struct bank_space *s,
    struct mb_snapshot *snap, const struct mb_collection *coll,
    const struct mb_segment *seg, float *out, struct mb_error *err);

/* What a router folds texts in with; NULL: vectors are made elsewhere. */
struct mb_lsa *router_lsa(const struct mb_router *r);

#endif
