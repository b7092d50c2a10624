/* SPDX-License-Identifier: Apache-2.0
 * daemon/bank_route.c - texts down the tree of a memory bank.
 *
 * A bank routes by its own copy of the embedding it was built over, so that a
 * refit of the search's embedding leads no text astray. A text of which the
 * embedding knows nothing has no path: it gets no blocks.
 * Threads: see mb_banker.h. */
#include <math.h>
#include <string.h>

#include "bank_space.h"
#include "mb_banker.h"

#define MAX_EMBEDDING ((size_t)4 << 30)

struct mb_router {
    struct mb_banks bank;
    struct mb_tree *tree;
    struct mb_lsa *lsa; /* NULL: vectors are made elsewhere */
    size_t bytes;
};

/* ---- vectors ---- */

void
bank_space_fini(struct bank_space *s)
{
    mb_lsa_close(s->lsa);
    mb_free(s->ids);
    mb_free(s->tfs);
    *s = (struct bank_space){0};
}

static bool
is_zero(const float *v, size_t dim)
{
    for (size_t i = 0; i < dim; i++) {
        if (v[i] != 0)
            return false;
    }
    return true;
}

static mb_status
fold(const struct mb_lsa *lsa, const struct mb_segment *seg, uint32_t *ids,
    uint32_t *tfs, float *out, struct mb_error *err)
{
    size_t pos = 0;
    size_t n = 0;

    while (n < BANK_MAX_TERMS &&
           mb_forward_next(seg->forward, &pos, &ids[n], &tfs[n])) {
        n++;
    }
    mb_lsa_fold_ids(lsa, ids, tfs, n, out);
    if (is_zero(out, mb_lsa_dim(lsa)))
        return mb_error_set(
            err, MB_ERR_NOT_FOUND, "segment %u has no vector", seg->segno);
    return MB_OK;
}

mb_status
bank_space_vector(struct bank_space *s, struct mb_snapshot *snap,
    const struct mb_collection *coll, const struct mb_segment *seg, float *out,
    struct mb_error *err)
{
    if (s->lsa == NULL)
        return mb_vector_get(snap, coll, seg->segno, out, err);
    if (s->ids == NULL) {
        s->ids = mb_calloc(BANK_MAX_TERMS, sizeof *s->ids);
        s->tfs = mb_calloc(BANK_MAX_TERMS, sizeof *s->tfs);
    }
    if (s->ids == NULL || s->tfs == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "terms of a segment");
    return fold(s->lsa, seg, s->ids, s->tfs, out, err);
}

/* ---- life ---- */

void
mb_router_free(struct mb_router *r)
{
    if (r == NULL)
        return;
    mb_lsa_close(r->lsa);
    mb_tree_free(r->tree);
    mb_free(r);
}

static mb_status
open_lsa(struct mb_router *r, struct mb_snapshot *snap,
    const struct mb_collection *coll, struct mb_error *err)
{
    struct mb_arena *arena = mb_arena_new(MAX_EMBEDDING);
    struct mb_slice bytes;
    mb_status st;

    if (arena == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "embedding of a bank");
    st = mb_banks_embedding(snap, coll, &r->bank, arena, &bytes, err);
    if (st == MB_OK)
        st = mb_lsa_open(bytes, &r->lsa, err);
    mb_arena_free(arena);
    if (st == MB_OK && mb_lsa_dim(r->lsa) != r->bank.dim)
        st = mb_error_set(err, MB_ERR_CORRUPT,
            "collection %s: its bank and the bank's embedding differ",
            coll->name);
    return st;
}

mb_status
mb_router_new(struct mb_snapshot *snap, const struct mb_collection *coll,
    struct mb_router **out, struct mb_error *err)
{
    struct mb_router *r = mb_calloc(1, sizeof *r);
    mb_status st;

    if (r == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "router");
    st = mb_banks_get(snap, coll, &r->bank, err);
    if (st == MB_OK)
        st = mb_banks_tree(snap, coll, &r->bank, &r->tree, err);
    if (st == MB_OK && r->bank.embedding == MB_EMBED_LSA)
        st = open_lsa(r, snap, coll, err);
    if (st != MB_OK) {
        mb_router_free(r);
        return st;
    }
    r->bytes = sizeof *r + (size_t)r->bank.n_nodes * r->bank.dim * 8 +
               (r->lsa != NULL ? mb_lsa_bytes(r->lsa) : 0);
    *out = r;
    return MB_OK;
}

const struct mb_banks *
mb_router_bank(const struct mb_router *r)
{
    return &r->bank;
}

const struct mb_tree *
mb_router_tree(const struct mb_router *r)
{
    return r->tree;
}

struct mb_lsa *
router_lsa(const struct mb_router *r)
{
    return r->lsa;
}

size_t
mb_router_bytes(const struct mb_router *r)
{
    return r->bytes;
}

/* ---- routing ---- */

void
mb_router_vector(
    const struct mb_router *r, const float *vector, struct mb_route *out)
{
    float unit[MB_MAX_DIM]; // the steps' products are cosines then
    double square = 0;

    *out = (struct mb_route){0};
    for (size_t d = 0; d < r->bank.dim; d++)
        square += (double)vector[d] * (double)vector[d];
    if (!(square > 0))
        return;
    for (size_t d = 0; d < r->bank.dim; d++)
        unit[d] = (float)((double)vector[d] / sqrt(square));
    out->n = mb_tree_path(r->tree, unit, out->steps, MB_BANKS_MAX_LEVELS, NULL);
}

mb_status
mb_router_terms(const struct mb_router *r, const struct mb_term *terms,
    size_t n, struct mb_route *out, struct mb_error *err)
{
    float vector[MB_MAX_DIM];
    uint64_t *hash;
    float *tf;

    *out = (struct mb_route){0};
    if (r->lsa == NULL)
        return mb_error_set(
            err, MB_ERR_MISMATCH, "this bank does not route by words");
    if (n == 0)
        return MB_OK;
    hash = mb_calloc(n, sizeof *hash);
    tf = mb_calloc(n, sizeof *tf);
    if (hash == NULL || tf == NULL) {
        mb_free(hash);
        mb_free(tf);
        return mb_error_set(err, MB_ERR_NOMEM, "%zu terms", n);
    }
    for (size_t i = 0; i < n; i++) {
        hash[i] = terms[i].hash;
        tf[i] = (float)terms[i].tf;
    }
    mb_lsa_fold(r->lsa, hash, tf, n, vector, NULL);
    mb_router_vector(r, vector, out);
    mb_free(hash);
    mb_free(tf);
    return MB_OK;
}

mb_status
mb_router_segment_vector(const struct mb_router *r, struct mb_snapshot *snap,
    const struct mb_collection *coll, const struct mb_segment *seg, float *out,
    struct mb_error *err)
{
    struct bank_space space = {.lsa = r->lsa, .dim = r->bank.dim};
    mb_status st;

    if (r->lsa == NULL && coll->dim != r->bank.dim)
        return mb_error_set(err, MB_ERR_MISMATCH,
            "vectors of %u dimensions, the bank has %u", coll->dim,
            r->bank.dim);
    st = bank_space_vector(&space, snap, coll, seg, out, err);
    space.lsa = NULL; // the router's
    bank_space_fini(&space);
    return st;
}

mb_status
mb_router_segment(const struct mb_router *r, struct mb_snapshot *snap,
    const struct mb_collection *coll, const struct mb_segment *seg,
    struct mb_route *out, struct mb_error *err)
{
    float vector[MB_MAX_DIM];
    mb_status st = mb_router_segment_vector(r, snap, coll, seg, vector, err);

    if (st == MB_OK)
        mb_router_vector(r, vector, out);
    return st;
}
