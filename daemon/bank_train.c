/* SPDX-License-Identifier: Apache-2.0
 * daemon/bank_train.c - a run of training: what there is to do, in which order.
 *
 * Every segment is routed down the bank's tree; those of one subtree of the
 * first level make one job of the trainer (bank_job.c), and all together that
 * of the generic block. Stale subtrees come first, the generic block last. A
 * job that finds text gone meanwhile ends as STALE: then all is routed anew,
 * and what is finished by then is passed over.
 * Threads: the caller's. */
#include <stdlib.h>
#include <string.h>

#include "bank_job.h"
#include "bank_space.h"

#define BATCH     1024
#define MAX_TRIES 4 /* without a job that is finished between */

/* ---- time ---- */

mb_status
bank_run_look(
    struct bank_run *r, struct mb_snapshot **snap, struct mb_error *err)
{
    mb_status st = mb_snapshot_begin(r->t->store, snap, err);

    if (st == MB_OK)
        st = mb_collection_get(
            *snap, mb_slice_cstr(r->t->collection), &r->coll, err);
    return st;
}

double
bank_run_seconds(const struct bank_run *r)
{
    uint64_t waited = atomic_load_explicit(&r->waited_ns, memory_order_relaxed);
    uint64_t gone = mb_clock_ns() - r->started_ns;

    return gone > waited ? (double)(gone - waited) / 1e9 : 0;
}

bool
bank_run_is_over(struct bank_run *r)
{
    const struct mb_banker_train *t = r->t;

    r->is_over = r->is_over ||
                 (t->seconds > 0 && bank_run_seconds(r) >= t->seconds) ||
                 (t->tokens > 0 && t->at.n_tokens >= t->tokens) ||
                 (t->is_stopped != NULL && t->is_stopped(t->arg));
    return r->is_over;
}

/* ---- which segments go where ---- */

static int
compare_members(const void *a, const void *b)
{
    const struct bank_member *x = a;
    const struct bank_member *y = b;

    if (x->path[0] != y->path[0])
        return x->path[0] < y->path[0] ? -1 : 1;
    return x->segno < y->segno ? -1 : x->segno > y->segno;
}

static mb_status
route_segment(struct bank_run *r, struct bank_space *space,
    struct mb_snapshot *snap, const struct mb_segment *seg,
    struct mb_error *err)
{
    struct bank_member *m = &r->members[r->n_members];
    float vector[MB_MAX_DIM];
    struct mb_route route;
    mb_status st = bank_space_vector(space, snap, &r->coll, seg, vector, err);

    if (st == MB_ERR_NOT_FOUND)
        return MB_OK;
    if (st != MB_OK)
        return st;
    mb_router_vector(r->router, vector, &route);
    if (route.n != r->bank->n_levels)
        return MB_OK;
    *m = (struct bank_member){.segno = seg->segno, .docno = seg->docno};
    for (size_t l = 0; l < route.n; l++) {
        m->path[l] = route.steps[l].node;
    }
    r->n_members++;
    return MB_OK;
}

static mb_status
route_all(struct bank_run *r, struct mb_snapshot *snap, struct mb_error *err)
{
    struct bank_space space = {
        .lsa = router_lsa(r->router), .dim = r->bank->dim};
    struct mb_segment *segs = mb_calloc(BATCH, sizeof *segs);
    size_t n = 1;
    mb_segno at = 0;
    mb_status st = MB_OK;

    mb_free(r->members);
    r->n_members = 0;
    r->members = mb_calloc(r->coll.n_segments + 1, sizeof *r->members);
    if (segs == NULL || r->members == NULL)
        st = mb_error_set(err, MB_ERR_NOMEM, "%llu segments",
            (unsigned long long)r->coll.n_segments);
    while (st == MB_OK && n > 0) {
        st = mb_segment_scan(snap, &r->coll, at, BATCH, segs, &n, err);
        for (size_t i = 0; st == MB_OK && i < n; i++) {
            at = segs[i].segno + 1;
            st = route_segment(r, &space, snap, &segs[i], err);
        }
        if (st == MB_OK && bank_run_is_over(r))
            st = mb_error_set(err, MB_ERR_CANCELLED, "stopped");
    }
    space.lsa = NULL; // the router's
    bank_space_fini(&space);
    mb_free(segs);
    if (st == MB_OK)
        qsort(r->members, r->n_members, sizeof *r->members, compare_members);
    return st;
}

/* ---- the jobs ---- */

/* A subtree of the first level. */
struct subtree {
    uint32_t top;
    size_t from; /* of members */
    size_t n;
    bool is_stale;
    bool is_finished;
};

struct subtrees {
    struct subtree *list; /* (n) as the root has them */
    size_t n;
};

/* Which there are, with their members and what became of them. */
static mb_status
find_subtrees(struct bank_run *r, struct subtrees *out, struct mb_error *err)
{
    struct mb_node root;
    size_t at = 0;
    mb_status st = MB_OK;

    mb_tree_node(mb_router_tree(r->router), 0, &root);
    out->n = root.n_children;
    out->list = mb_calloc(out->n + 1, sizeof *out->list);
    if (out->list == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "%zu subtrees", out->n);
    for (uint32_t i = 0; st == MB_OK && i < root.n_children; i++) {
        struct subtree *s = &out->list[i];
        bool half;

        s->top = root.first_child + i;
        s->from = at;
        while (at < r->n_members && r->members[at].path[0] == s->top) {
            at++;
        }
        s->n = at - s->from;
        st = bank_job_is_stale(r, s->top, &s->is_stale, &half, err);
        // It is trained again from the start, if at all: let nothing of what
        // is gone lie in the store until then.
        if (st == MB_OK && half && !s->is_stale)
            st = bank_job_clear(r, s->top, err);
        if (st == MB_OK && s->is_stale && s->n == 0) {
            st = bank_job_clear(r, s->top, err);
            s->is_stale = false;
        }
    }
    return st;
}

static mb_status
run_subtree(struct bank_run *r, struct subtree *s, struct mb_error *err)
{
    if (s->is_finished || bank_run_is_over(r))
        return MB_OK;
    mb_status st = bank_job_run(
        r, false, r->members + s->from, s->n, &s->is_finished, err);

    if (st == MB_OK && s->is_finished)
        r->t->at.done++;
    return st;
}

static mb_status
run_generic(struct bank_run *r, bool *finished, struct mb_error *err)
{
    bool stale;
    bool half;
    mb_status st = bank_job_is_stale(r, MB_BANKS_GENERIC, &stale, &half, err);

    *finished = true;
    // It has seen every text: to forget one it would learn all others again.
    if (st == MB_OK && (stale || half) && !r->t->is_generic)
        return bank_job_clear(r, MB_BANKS_GENERIC, err);
    if (st != MB_OK || !r->t->is_generic || r->n_members == 0)
        return st;
    *finished = false;
    if (bank_run_is_over(r))
        return MB_OK;
    st = bank_job_run(r, true, r->members, r->n_members, finished, err);
    if (st == MB_OK && *finished)
        r->t->at.done++;
    return st;
}

/* Stale subtrees, all others, the generic block. */
static mb_status
run_jobs(struct bank_run *r, const struct subtrees *s, struct mb_error *err)
{
    struct mb_banker_train *t = r->t;
    bool finished = true;
    bool generic = true;
    mb_status st = MB_OK;

    t->at.n_subtrees = t->at.done = 0;
    for (size_t i = 0; i < s->n; i++) {
        t->at.n_subtrees +=
            s->list[i].n > 0 && (s->list[i].is_stale || !t->only_stale);
    }
    t->at.n_subtrees += t->is_generic && !t->only_stale;
    for (size_t i = 0; st == MB_OK && i < s->n; i++) {
        if (s->list[i].is_stale)
            st = run_subtree(r, &s->list[i], err);
    }
    for (size_t i = 0; st == MB_OK && i < s->n && !t->only_stale; i++) {
        if (s->list[i].n > 0)
            st = run_subtree(r, &s->list[i], err);
    }
    if (st == MB_OK)
        st = run_generic(r, &generic, err);
    for (size_t i = 0; i < s->n; i++) {
        if (s->list[i].n > 0 && (s->list[i].is_stale || !t->only_stale))
            finished = finished && s->list[i].is_finished;
    }
    t->is_finished = st == MB_OK && finished && generic;
    return st;
}

/* ---- the run ---- */

static mb_status
open_run(struct bank_run *r, struct mb_error *err)
{
    struct mb_snapshot *snap = NULL;
    mb_status st = bank_run_look(r, &snap, err);

    if (st == MB_OK)
        st = mb_router_new(snap, &r->coll, &r->router, err);
    if (st == MB_OK) {
        r->bank = mb_router_bank(r->router);
        if (memcmp(r->bank->anchor, r->t->fingerprint, 16) != 0)
            st = mb_error_set(err, MB_ERR_MISMATCH,
                "the memory bank of collection %s belongs to another model: %s",
                r->t->collection, r->bank->model);
    }
    mb_snapshot_end(snap);
    return st;
}

/* Route all, then run all; STALE where text was deleted meanwhile, or the bank
 * is another. */
static mb_status
run_once(struct bank_run *r, struct mb_error *err)
{
    struct subtrees s = {0};
    struct mb_snapshot *snap = NULL;
    struct mb_banks bank;
    mb_status st = bank_run_look(r, &snap, err);

    if (st == MB_OK)
        st = mb_banks_get(snap, &r->coll, &bank, err);
    if (st == MB_OK && bank.bank != r->bank->bank) {
        r->is_replaced = true;
        st = mb_error_set(err, MB_ERR_STALE,
            "the memory bank of collection %s was replaced", r->t->collection);
    }
    if (st == MB_OK)
        st = route_all(r, snap, err);
    mb_snapshot_end(snap);
    if (st == MB_OK)
        st = find_subtrees(r, &s, err);
    if (st == MB_OK)
        st = run_jobs(r, &s, err);
    mb_free(s.list);
    return st;
}

mb_status
mb_banker_train(struct mb_banker_train *t, struct mb_error *err)
{
    struct bank_run r = {.t = t, .started_ns = mb_clock_ns()};
    int tries = 0;
    mb_status st;

    t->at = (struct mb_banker_progress){0};
    t->is_finished = false;
    mb_buffer_init(&r.loaded, SIZE_MAX / 2);
    mb_buffer_init(&r.record, SIZE_MAX / 2);
    r.windows.tokenizer = t->tokenizer;
    st = open_run(&r, err);
    while (st == MB_OK) {
        size_t done = t->at.done;

        st = run_once(&r, err);
        tries = t->at.done > done ? 0 : tries + 1;
        if (st != MB_ERR_STALE || tries >= MAX_TRIES || r.is_replaced)
            break;
        st = MB_OK;
    }
    if (st == MB_ERR_CANCELLED)
        st = MB_OK; // what is there stays, and is not finished
    t->at.seconds = bank_run_seconds(&r);
    mb_bank_trainer_free(r.trainer);
    mb_router_free(r.router);
    mb_free(r.members);
    mb_buffer_fini(&r.loaded);
    mb_buffer_fini(&r.record);
    return st;
}
