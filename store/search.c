/* SPDX-License-Identifier: Apache-2.0
 * store/search.c - mb_search: from a query to hits.
 *
 * The modes lexical and dense are what they say: the order of BM25, the order
 * of the cosine. Hybrid takes the best of both as candidates, reads both
 * scores of every one of them exactly, and lets fusion.c make one score.
 * Candidates, their neighbours and a few control segments are rows of one
 * array sorted by segment number, so that a neighbour is the next row.
 *
 * The words bring most of what the fusion puts first, and with its exact
 * cosine, so that the vectors look half as far among the leaves as they would
 * alone: on 172,289 segments of books and manuals the first ten of 400
 * questions agree with those of an exact scan in 99.7% then, and a third as
 * many rows are read.
 *
 * What costs time: the two searches, and for short segments the scores of the
 * neighbours. A query that is alone (mb_query.helped) has them done by two
 * threads: each step's dense half goes to the store's helper, unless this
 * thread is done with its own before the helper wakes. A transaction is for one
 * thread, so the helper has a twin, which sees the same state or is not made.
 * Full segments inherit nothing (fusion_reach), and then nothing of it is read.
 *
 * One hit a document: a long document may fill the lists, so they are taken
 * longer until there are enough documents or no more segments.
 * Invariants: hits are live segments that pass the filter, score falling, ties
 * by segment number; hybrid's best hits do not depend on k.
 * Threads: any, each its own snapshot and arena; of struct search the helper
 * touches `vectors`, `dense`, `n_dense` and the rows' `dense` alone. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fusion.h"

/* How much longer the lists become when documents are missing. */
#define WIDEN_FACTOR 4
/* Handing over costs about as much as a search among so few segments. */
#define HELP_SEGMENTS 5000
/* Most memory for the helper's half. */
#define HELP_BYTES ((size_t)256 << 20)

/* What one thread works with. */
struct lane {
    struct mb_snapshot *snap;
    struct mb_arena *arena;
    struct mb_error *err;
};

struct search {
    struct mb_snapshot *snap;
    const struct mb_query *q;
    const struct mb_collection *coll;
    struct mb_arena *arena;
    struct mb_error *err;
    /* Of what is dense: the same three, or with `twin` a helper's own. */
    struct lane vectors;
    struct mb_snapshot *twin;
    struct mb_error twin_err;
    struct bitset filter;
    const struct bitset *set; /* &filter, or NULL: all */
    bool has_vector;
    /* Best of each index, at most `wanted` each. */
    size_t wanted;
    bool is_part; /* words bring hits as well */
    struct candidate *lexical;
    size_t n_lexical;
    struct candidate *dense;
    size_t n_dense;
    /* Hybrid: sorted by segno, none twice. */
    struct fusion_row *rows;
    size_t n_rows;
};

static mb_status
no_memory(const struct search *s)
{
    return mb_error_set(s->err, MB_ERR_NOMEM, "search: out of memory");
}

static struct lane
own_lane(const struct search *s)
{
    return (struct lane){s->snap, s->arena, s->err};
}

/* ---- candidates ---- */

/* What is wrong with a vector is said whether it will be used or not. One of
 * zeros (no term known to the embedding) is none. */
static mb_status
check_vector(struct search *s)
{
    double sum = 0;

    if (s->q->vector == NULL)
        return MB_OK;
    for (size_t i = 0; i < s->q->dim; i++)
        sum += (double)s->q->vector[i] * (double)s->q->vector[i];
    if (!isfinite(sum))
        return mb_error_set(
            s->err, MB_ERR_BAD_ARG, "vector has a value that is not finite");
    if (s->coll->generation == 0)
        return MB_OK; // nothing to compare it with
    if (s->q->dim != s->coll->dim)
        return mb_error_set(s->err, MB_ERR_MISMATCH,
            "vector of %zu dimensions, the collection has %u", s->q->dim,
            (unsigned)s->coll->dim);
    s->has_vector = sum > 1e-12;
    return MB_OK;
}

static mb_status
search_lexical(struct search *s)
{
    s->n_lexical = 0;
    if (s->q->n_terms == 0)
        return MB_OK;
    return lex_search(s->snap, s->coll, s->q->terms, s->q->n_terms, s->set,
        s->wanted, s->arena, &s->lexical, &s->n_lexical, s->err);
}

static mb_status
search_dense(struct search *s)
{
    const struct dense_query q = {.vector = s->q->vector,
        .dim = s->q->dim,
        .filter = s->set,
        .k = s->wanted,
        .exact = s->q->exact,
        .nprobe = s->q->nprobe,
        .is_part = s->is_part};
    struct dense_result result;
    mb_status st;

    s->n_dense = 0;
    if (!s->has_vector)
        return MB_OK;
    st = dense_search(s->vectors.snap, s->coll, &q, s->vectors.arena, &result,
        s->vectors.err);
    if (st == MB_OK) {
        s->dense = result.hits;
        s->n_dense = result.n;
    }
    return st;
}

/* ---- rows of a hybrid search ---- */

static int
compare_rows(const void *a, const void *b)
{
    const struct fusion_row *x = a, *y = b;

    return x->segno < y->segno ? -1 : x->segno > y->segno;
}

static bool
may_be_hit(const struct search *s, mb_segno segno)
{
    return segno < s->coll->next_segno &&
           (s->set == NULL || bitset_has(s->set, segno));
}

/* Append a row without scores; rows has room. Numbers out of range (those
 * before the first wrap round) are no rows: NULL. */
static struct fusion_row *
add_row(struct search *s, mb_segno segno, unsigned roles)
{
    struct fusion_row *row = &s->rows[s->n_rows];

    if (!may_be_hit(s, segno))
        return NULL;
    *row = (struct fusion_row){
        .segno = segno, .roles = roles, .lexical = NAN, .dense = NAN};
    s->n_rows++;
    return row;
}

/* Sort, and make one row of those with the same number. */
static void
merge_rows(struct search *s)
{
    size_t n = 0;

    qsort(s->rows, s->n_rows, sizeof *s->rows, compare_rows);
    for (size_t i = 0; i < s->n_rows; i++) {
        struct fusion_row *last = n > 0 ? &s->rows[n - 1] : NULL;

        if (last == NULL || last->segno != s->rows[i].segno) {
            s->rows[n++] = s->rows[i];
            continue;
        }
        last->roles |= s->rows[i].roles;
        if (isnan(last->lexical))
            last->lexical = s->rows[i].lexical;
        if (isnan(last->dense))
            last->dense = s->rows[i].dense;
    }
    s->n_rows = n;
}

/* Mean size in tokens of the best hits of both. */
static mb_status
best_size(const struct search *s, double *tokens)
{
    double sum = 0;
    size_t n = 0;

    for (int dense = 0; dense <= 1; dense++) {
        const struct candidate *list = dense ? s->dense : s->lexical;
        size_t n_list = dense ? s->n_dense : s->n_lexical;

        for (size_t i = 0; i < n_list && i < FUSION_SIZED; i++) {
            struct mb_segment segment;
            mb_status st = mb_segment_get(
                s->snap, s->coll, list[i].segno, &segment, s->err);

            if (st != MB_OK)
                return st == MB_ERR_NOT_FOUND ? MB_ERR_CORRUPT : st;
            sum += segment.n_tokens;
            n++;
        }
    }
    *tokens = n > 0 ? sum / (double)n : HUGE_VAL;
    return MB_OK;
}

/* Rows of one index's best, and if they may inherit, of their neighbours. */
static void
add_list(struct search *s, bool dense, bool spread)
{
    const struct candidate *list = dense ? s->dense : s->lexical;
    size_t n = dense ? s->n_dense : s->n_lexical;
    unsigned probe = dense ? FUSION_IS_DENSE_PROBE : FUSION_IS_LEXICAL_PROBE;

    for (size_t i = 0; i < n; i++) {
        mb_segno segno = list[i].segno;
        unsigned roles = FUSION_IS_CANDIDATE;
        struct fusion_row *row;

        if (i < FUSION_CORE)
            roles |= FUSION_IS_CORE;
        if (i < FUSION_PROBE)
            roles |= probe;
        row = add_row(s, segno, roles);
        // The vectors' scores are exact only if they had to decide alone.
        if (row != NULL && !(dense && s->is_part))
            *(dense ? &row->dense : &row->lexical) = list[i].score;
        if (!spread)
            continue;
        // What is a neighbour of the best is a candidate, and core: its own
        // neighbours are needed then.
        roles = i < FUSION_SPREAD ? FUSION_IS_CANDIDATE | FUSION_IS_CORE : 0;
        (void)add_row(s, segno - 1, roles);
        (void)add_row(s, segno + 1, roles);
        if (roles != 0) {
            (void)add_row(s, segno - 2, 0);
            (void)add_row(s, segno + 2, 0);
        }
    }
}

static mb_status
make_rows(struct search *s, bool spread)
{
    size_t most = s->n_lexical + s->n_dense;

    if (spread)
        most = 5 * most + FUSION_CONTROL;
    s->n_rows = 0;
    s->rows = mb_arena_alloc(s->arena, (most + 1) * sizeof *s->rows);
    if (s->rows == NULL)
        return no_memory(s);
    add_list(s, false, spread);
    add_list(s, true, spread);
    for (size_t i = 0; spread && i < FUSION_CONTROL; i++) {
        uint64_t segno = (uint64_t)s->coll->next_segno * i / FUSION_CONTROL;

        (void)add_row(s, (mb_segno)segno, FUSION_IS_CONTROL);
    }
    merge_rows(s);
    return MB_OK;
}

/* Documents of all rows; those of deleted segments are marked. */
static mb_status
find_documents(struct search *s)
{
    struct kv_cursor *c;
    mb_status st = kv_cursor_open(s->snap->txn, KV_SEGMENTS, &c);

    if (st != MB_OK)
        return mb_error_set(s->err, st, "open segments");
    for (size_t i = 0; i < s->n_rows && st == MB_OK; i++) {
        struct mb_segment segment;

        st = segment_find(c, s->coll->id, s->rows[i].segno, &segment);
        if (st == MB_OK) {
            s->rows[i].docno = segment.docno;
        } else if (st == MB_ERR_NOT_FOUND) {
            s->rows[i].roles = FUSION_IS_GONE;
            st = MB_OK;
        } else {
            st = mb_error_set(s->err, st, "read segment %u", s->rows[i].segno);
        }
    }
    kv_cursor_close(c);
    return st;
}

/* Read the scores that the lists did not bring. Touches no other field. */
static mb_status
score_rows(struct search *s, bool dense)
{
    struct lane lane = dense ? s->vectors : own_lane(s);
    mb_segno *segnos = mb_arena_alloc(lane.arena, (s->n_rows + 1) * 4);
    float *scores = mb_arena_alloc(lane.arena, (s->n_rows + 1) * 4);
    size_t n = 0;
    mb_status st = MB_OK;

    if (segnos == NULL || scores == NULL)
        return mb_error_set(lane.err, MB_ERR_NOMEM, "search: out of memory");
    for (size_t i = 0; i < s->n_rows; i++) {
        if (isnan(dense ? s->rows[i].dense : s->rows[i].lexical))
            segnos[n++] = s->rows[i].segno;
    }
    for (size_t i = 0; i < n; i++)
        scores[i] = dense ? NAN : 0;
    if (dense && s->has_vector) {
        st = dense_score(lane.snap, s->coll, s->q->vector, s->q->dim, segnos, n,
            scores, lane.err);
    } else if (!dense && s->n_lexical > 0) {
        st = lex_score(lane.snap, s->coll, s->q->terms, s->q->n_terms, segnos,
            n, lane.arena, scores, lane.err);
    }
    n = 0;
    for (size_t i = 0; st == MB_OK && i < s->n_rows; i++) {
        float *score = dense ? &s->rows[i].dense : &s->rows[i].lexical;

        if (isnan(*score))
            *score = scores[n++];
    }
    return st;
}

/* ---- two at once ---- */

/* The lexical and the dense half of a step. */
struct halves {
    struct search *s;
    mb_status (*half)(struct search *s, bool dense);
    mb_status st[2];
};

static void
run_half(void *arg, size_t dense)
{
    struct halves *h = arg;

    h->st[dense] = h->half(h->s, dense != 0);
}

static mb_status
search_half(struct search *s, bool dense)
{
    return dense ? search_dense(s) : search_lexical(s);
}

/* Both halves, by two threads if there is a twin. */
static mb_status
both(struct search *s, mb_status (*half)(struct search *s, bool dense))
{
    struct halves h = {.s = s, .half = half};

    if (s->twin == NULL) {
        mb_status st = half(s, false);

        return st == MB_OK ? half(s, true) : st;
    }
    snapshot_both(s->snap, run_half, &h);
    if (h.st[0] != MB_OK)
        return h.st[0];
    if (h.st[1] != MB_OK)
        return mb_error_set(s->err, h.st[1], "%s", s->twin_err.text);
    return MB_OK;
}

/* Get what a helper needs. Without it all is done here. */
static void
ask_help(struct search *s)
{
    struct mb_arena *arena;

    if (!s->q->helped || s->q->mode != MB_SEARCH_HYBRID || !s->has_vector ||
        s->q->n_terms == 0 || s->coll->n_segments < HELP_SEGMENTS ||
        !snapshot_has_helper(s->snap))
        return;
    arena = mb_arena_new(HELP_BYTES);
    if (arena == NULL)
        return;
    if (snapshot_twin(s->snap, &s->twin) != MB_OK) {
        mb_arena_free(arena);
        return;
    }
    s->vectors = (struct lane){s->twin, arena, &s->twin_err};
}

static void
end_help(struct search *s)
{
    if (s->twin == NULL)
        return;
    mb_snapshot_end(s->twin);
    mb_arena_free(s->vectors.arena);
}

/* ---- hits ---- */

static int
compare_hits(const void *a, const void *b)
{
    const struct mb_hit *x = a, *y = b;

    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->segno < y->segno ? -1 : x->segno > y->segno;
}

/* Slots for n keys or more, a power of two, half empty. */
static size_t
slots_for(size_t n)
{
    size_t slots = 16;

    while (slots < 2 * n)
        slots *= 2;
    return slots;
}

/* True if docno was not in the set yet; it is then. */
static bool
docno_add(uint64_t *set, size_t n_slots, mb_docno docno)
{
    size_t i = (size_t)(docno * 0x9E3779B97F4A7C15u >> 20) & (n_slots - 1);

    while (set[i] != 0) {
        if (set[i] == (uint64_t)docno + 1)
            return false;
        i = (i + 1) & (n_slots - 1);
    }
    set[i] = (uint64_t)docno + 1;
    return true;
}

/* Keep the first k (of each document the first), with their documents. */
static mb_status
cut_hits(struct search *s, struct mb_hit *hits, size_t *n)
{
    size_t n_slots = slots_for(*n < s->q->k ? *n : s->q->k);
    uint64_t *seen = NULL;
    size_t kept = 0;

    if (s->q->one_per_document) {
        seen = mb_arena_calloc(s->arena, n_slots, sizeof *seen);
        if (seen == NULL)
            return no_memory(s);
    }
    for (size_t i = 0; i < *n && kept < s->q->k; i++) {
        struct mb_segment segment;
        mb_status st =
            mb_segment_get(s->snap, s->coll, hits[i].segno, &segment, s->err);

        if (st != MB_OK)
            return st == MB_ERR_NOT_FOUND ? MB_ERR_CORRUPT : st;
        if (seen != NULL && !docno_add(seen, n_slots, segment.docno))
            continue;
        hits[kept] = hits[i];
        hits[kept++].docno = segment.docno;
    }
    *n = kept;
    return MB_OK;
}

/* One index alone: its list is the order. */
static mb_status
plain_hits(struct search *s, bool dense, struct mb_hit **out, size_t *n)
{
    const struct candidate *list;
    struct mb_hit *hits;
    mb_status st = dense ? search_dense(s) : search_lexical(s);

    if (st != MB_OK)
        return st;
    list = dense ? s->dense : s->lexical;
    *n = dense ? s->n_dense : s->n_lexical;
    hits = mb_arena_alloc(s->arena, (*n + 1) * sizeof *hits);
    if (hits == NULL)
        return no_memory(s);
    for (size_t i = 0; i < *n; i++) {
        hits[i] = (struct mb_hit){.segno = list[i].segno,
            .score = list[i].score,
            .dense = dense ? list[i].score : NAN,
            .lexical = dense ? 0 : list[i].score};
    }
    *out = hits;
    return cut_hits(s, hits, n);
}

/* The other index's score of hits that one index gave. */
static mb_status
complete_hits(struct search *s, bool dense, struct mb_hit *hits, size_t n)
{
    mb_segno *segnos = mb_arena_alloc(s->arena, (n + 1) * sizeof *segnos);
    float *scores = mb_arena_alloc(s->arena, (n + 1) * sizeof *scores);
    mb_status st;

    if (segnos == NULL || scores == NULL)
        return no_memory(s);
    if (n == 0 || (dense ? s->q->n_terms == 0 : !s->has_vector))
        return MB_OK;
    for (size_t i = 0; i < n; i++)
        segnos[i] = hits[i].segno;
    if (dense) {
        st = lex_score(s->snap, s->coll, s->q->terms, s->q->n_terms, segnos, n,
            s->arena, scores, s->err);
    } else {
        st = dense_score(s->snap, s->coll, s->q->vector, s->q->dim, segnos, n,
            scores, s->err);
    }
    for (size_t i = 0; st == MB_OK && i < n; i++)
        *(dense ? &hits[i].lexical : &hits[i].dense) = scores[i];
    return st;
}

static mb_status
rows_to_hits(struct search *s, struct mb_hit **out, size_t *n)
{
    struct mb_hit *hits =
        mb_arena_alloc(s->arena, (s->n_rows + 1) * sizeof *hits);

    if (hits == NULL)
        return no_memory(s);
    *n = 0;
    for (size_t i = 0; i < s->n_rows; i++) {
        const struct fusion_row *row = &s->rows[i];

        if ((row->roles & FUSION_IS_CANDIDATE) == 0)
            continue;
        hits[(*n)++] = (struct mb_hit){.segno = row->segno,
            .score = row->score,
            .dense = row->dense,
            .lexical = row->lexical};
    }
    qsort(hits, *n, sizeof *hits, compare_hits);
    *out = hits;
    return cut_hits(s, hits, n);
}

/* Candidates of both, one score. */
static mb_status
hybrid_hits(struct search *s, struct mb_hit **out, size_t *n)
{
    struct fusion_query q = {.coverage = s->q->coverage,
        .n_terms = s->q->n_terms,
        .is_folded = s->coll->settings.embedding == MB_EMBED_LSA};
    double tokens, reach, kinship = 0;
    mb_status st;

    s->is_part = s->q->n_terms > 0;
    st = both(s, search_half);
    if (st == MB_OK && s->is_part && s->n_lexical == 0) {
        s->is_part = false; // none of the words is known
        st = search_dense(s);
    }
    if (st == MB_OK)
        st = best_size(s, &tokens);
    if (st != MB_OK)
        return st;
    q.has_lexical = s->n_lexical > 0;
    q.has_dense = s->n_dense > 0;
    q.segment_tokens =
        (double)s->coll->n_tokens /
        (double)(s->coll->n_segments + (s->coll->n_segments == 0));
    q.depth = (double)s->coll->n_segments / (double)(s->q->dim + 1);
    reach = fusion_reach(tokens);
    st = make_rows(s, reach > 0);
    if (st == MB_OK && reach > 0)
        st = find_documents(s);
    if (st == MB_OK)
        st = both(s, score_rows);
    if (st != MB_OK)
        return st;
    if (reach > 0)
        kinship = fusion_kinship(s->rows, s->n_rows, q.has_dense);
    fusion_inherit(s->rows, s->n_rows, reach, kinship);
    fusion_score(s->rows, s->n_rows, &q);
    return rows_to_hits(s, out, n);
}

static mb_status
mode_hits(struct search *s, struct mb_hit **out, size_t *n)
{
    switch (s->q->mode) {
    case MB_SEARCH_DENSE:
        return plain_hits(s, true, out, n);
    case MB_SEARCH_LEXICAL:
        return plain_hits(s, false, out, n);
    case MB_SEARCH_HYBRID:
        break;
    }
    return hybrid_hits(s, out, n);
}

/* How long the lists are at first. */
static size_t
first_wanted(const struct mb_query *q)
{
    if (q->mode == MB_SEARCH_HYBRID) {
        return q->k < FUSION_CORE / 2 ? FUSION_CORE
               : q->k < SIZE_MAX / 2  ? 2 * q->k
                                      : q->k;
    }
    // Some more, so that the first try is often enough.
    return q->one_per_document && q->k < SIZE_MAX / 4 ? 2 * q->k + 10 : q->k;
}

/* Search with longer lists until there are k hits, or no more to be had. */
static mb_status
find_hits(struct search *s, struct mb_hit **out, size_t *n)
{
    uint64_t n_segments = s->coll->n_segments;
    size_t wanted = first_wanted(s->q);

    for (;;) {
        bool is_all;
        mb_status st;

        s->wanted = wanted < n_segments ? wanted : (size_t)n_segments;
        st = mode_hits(s, out, n);
        is_all = s->wanted >= n_segments ||
                 (s->n_lexical < s->wanted && s->n_dense < s->wanted);
        if (st != MB_OK || *n >= s->q->k || is_all)
            return st;
        wanted = s->wanted * WIDEN_FACTOR;
    }
}

mb_status
mb_search(struct mb_snapshot *snap, const struct mb_query *query,
    struct mb_arena *arena, struct mb_hit **hits, size_t *n,
    struct mb_error *err)
{
    struct search s = {.snap = snap,
        .q = query,
        .coll = query->coll,
        .arena = arena,
        .err = err,
        .vectors = {snap, arena, err}};
    struct mb_hit *found = NULL;
    size_t n_found = 0;
    mb_status st = MB_OK;

    if (query->filter != NULL) {
        st = filter_segments(
            snap->txn, s.coll, query->filter, arena, &s.filter, err);
        s.set = &s.filter;
    }
    if (st == MB_OK)
        st = check_vector(&s);
    if (st != MB_OK)
        return st;
    if (query->k > 0 && s.coll->n_segments > 0 &&
        (s.set == NULL || s.set->n_set > 0)) {
        ask_help(&s);
        st = find_hits(&s, &found, &n_found);
        end_help(&s);
    }
    if (st == MB_OK && query->mode != MB_SEARCH_HYBRID)
        st = complete_hits(&s, query->mode == MB_SEARCH_DENSE, found, n_found);
    if (st != MB_OK)
        return st;
    *hits = found;
    *n = n_found;
    return MB_OK;
}
