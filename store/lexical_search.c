/* SPDX-License-Identifier: Apache-2.0
 * store/lexical_search.c - best segments by BM25, without scoring all.
 *
 * MaxScore by windows. Segments are taken in windows as wide as a row of the
 * length table. For each window every term has a bound, that of its blocks
 * there. The terms of lowest bound whose bounds together do not reach the k-th
 * best score so far are optional: a segment with none but these cannot enter.
 * Postings of the other terms are read one after another into a table of
 * scores; optional terms are added, the highest bound first, for the segments
 * that could still enter, whose number shrinks with each. When all terms are optional the window is passed over unread, and
 * single blocks are passed over by their own bounds. Where a filter leaves few
 * segments in a window, these are looked up directly.
 * Invariants: segments are met in rising order, so of equal scores the lower
 * segment wins by coming first; the result is exactly that of scoring all.
 * Threads: any, each its own snapshot and arena. */
#include "lexical_list.h"

#include <stdlib.h>
#include <string.h>

/* In a window with fewer segments left by the filter than this, each of them
 * is looked up in all lists. */
#define FEW_SEGMENTS 24
/* Segments of a window in groups; only groups that were met are looked at. */
#define MET_GROUP 64
#define N_GROUPS  ((LEX_LENGTHS + MET_GROUP - 1) / MET_GROUP)
/* A look-up costs about as much as this many postings read in a row. */
#define LOOKUP_COST 6
/* Postings that are scored together; LEX_BLOCK is a multiple. */
#define GROUP 16

/* The best k so far. An entry is score << 32 | ~segno: higher is better. */
struct heap {
    uint64_t *entries; /* the worst first */
    size_t n;
    size_t k;
};

/* Where a search stands. */
struct search {
    struct lex_query q;
    struct kv_txn *txn;
    mb_collection_id coll;
    const struct bitset *filter;
    uint32_t n_rows; /* windows */
    struct heap heap;
    int32_t threshold; /* a segment must score more */
    /* The window [base, base + LEX_LENGTHS). */
    uint32_t base;
    const uint8_t *lengths;
    size_t n_optional;                    /* order[0..n_optional) */
    struct lex_list **order;              /* by bound in the window, rising */
    int32_t *bounds;                      /* of order */
    int32_t *sums;                        /* sums[i]: bounds of order[0..i) */
    int32_t scores[N_GROUPS * MET_GROUP]; /* of its segments, so far */
    uint8_t met[N_GROUPS];                /* 1: some score of the group is */
    uint16_t survivors[N_GROUPS * MET_GROUP];
};

/* ---- the best k ---- */

static void
heap_sift_down(struct heap *h, size_t i)
{
    uint64_t e = h->entries[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= h->n)
            break;
        if (child + 1 < h->n && h->entries[child + 1] < h->entries[child])
            child++;
        if (e <= h->entries[child])
            break;
        h->entries[i] = h->entries[child];
        i = child;
    }
    h->entries[i] = e;
}

static void
heap_sift_up(struct heap *h, size_t i)
{
    uint64_t e = h->entries[i];
    while (i > 0 && e < h->entries[(i - 1) / 2]) {
        h->entries[i] = h->entries[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h->entries[i] = e;
}

/* score is above the threshold. */
static void
offer(struct search *s, uint32_t segno, int32_t score)
{
    struct heap *h = &s->heap;
    uint64_t e = (uint64_t)(uint32_t)score << 32 | (uint32_t)~segno;
    if (h->n < h->k) {
        h->entries[h->n] = e;
        heap_sift_up(h, h->n++);
    } else {
        h->entries[0] = e;
        heap_sift_down(h, 0);
    }
    if (h->n == h->k)
        s->threshold = (int32_t)(h->entries[0] >> 32);
}

static int
compare_entries(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return x > y ? -1 : x < y;
}

/* ---- one window ---- */

static uint32_t
length_at(const struct search *s, uint32_t i)
{
    return lex_le16(s->lengths + 2 * (size_t)i);
}

/* Stand all lists on the window, sort them by their bounds in it, and find
 * which are optional. */
static mb_status
order_lists(struct search *s)
{
    uint32_t end = s->base + LEX_LENGTHS;
    for (size_t i = 0; i < s->q.n; i++) {
        struct lex_list *l = s->order[i];
        if (!l->end && l->block.last < s->base) {
            mb_status st = lex_list_seek(l, s->base);
            if (st != MB_OK)
                return st;
        }
        int32_t bound = lex_list_window_bound(l, end);
        // Insertion: the order hardly changes from one window to the next.
        size_t j = i;
        for (; j > 0 && s->bounds[j - 1] > bound; j--) {
            s->bounds[j] = s->bounds[j - 1];
            s->order[j] = s->order[j - 1];
        }
        s->bounds[j] = bound;
        s->order[j] = l;
    }
    s->n_optional = 0;
    for (size_t i = 0; i < s->q.n; i++) {
        s->sums[i + 1] = s->sums[i] + s->bounds[i];
        if (s->sums[i + 1] <= s->threshold)
            s->n_optional = i + 1;
    }
    return MB_OK;
}

/* Postings of an unpacked block from l->pos on that lie before `end`. */
static uint32_t
count_before(const struct lex_list *l, uint32_t end)
{
    uint32_t n = l->block.n - l->pos;
    if (l->block.last < end)
        return n;
    n = 0;
    while (l->pos + n < l->block.n && l->segnos[l->pos + n] < end) {
        n++;
    }
    return n;
}

/* lex_posting_score of GROUP postings, so that compilers make vectors of it. */
static void
score_group(float weight, float norm_base, float norm_slope,
    const int32_t tfs[restrict GROUP], const int32_t lengths[restrict GROUP],
    int32_t scores[restrict GROUP])
{
    for (size_t i = 0; i < GROUP; i++) {
        float t = (float)tfs[i];
        float norm = norm_base + norm_slope * (float)lengths[i];
        scores[i] = (int32_t)(weight * t / (t + norm)) + 1;
    }
}

/* Add the postings of the block that lie in the window to the scores. */
static void
add_block(struct search *s, struct lex_list *l)
{
    const uint32_t n = count_before(l, s->base + LEX_LENGTHS);
    const uint32_t *segnos = l->segnos + l->pos;
    int32_t lengths[LEX_BLOCK];
    int32_t tfs[LEX_BLOCK];
    int32_t scores[LEX_BLOCK];
    for (uint32_t i = 0; i < n; i++) {
        tfs[i] = l->tfs[l->pos + i];
        lengths[i] = (int32_t)length_at(s, segnos[i] - s->base);
    }
    for (uint32_t i = n; i % GROUP != 0; i++) {
        tfs[i] = 1;
        lengths[i] = 1;
    }
    for (uint32_t i = 0; i < n; i += GROUP) {
        score_group(l->weight, s->q.norm_base, s->q.norm_slope, tfs + i,
            lengths + i, scores + i);
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t d = segnos[i] - s->base;
        s->scores[d] += scores[i];
        s->met[d / MET_GROUP] = 1;
    }
    l->pos += n;
}

/* Add all postings of a list in the window; those of blocks that cannot lift a
 * segment above the threshold are left out: others is what all other lists
 * may add. */
static mb_status
add_list(struct search *s, struct lex_list *l, int32_t others)
{
    uint32_t end = s->base + LEX_LENGTHS;
    mb_status st = MB_OK;
    while (!l->end && l->block.first < end && st == MB_OK) {
        if (l->unpacked || lex_list_block_bound(l) + others > s->threshold) {
            if (!l->unpacked)
                st = lex_list_unpack(l);
            if (st != MB_OK)
                return st;
            while (l->pos < l->block.n && l->segnos[l->pos] < s->base) {
                l->pos++;
            }
            add_block(s, l);
        }
        if (l->block.last >= end)
            break; // the rest of it belongs to the next window
        st = lex_list_next(l);
    }
    return st;
}

/* Bit i: scores[i] > need, for a group. In steps that compilers turn into
 * vectors: flags first, then eight of them at a time into bits. */
static uint64_t
above(const int32_t scores[MET_GROUP], int32_t need)
{
    uint8_t flags[MET_GROUP];
    uint64_t bits = 0;
    for (uint32_t i = 0; i < MET_GROUP; i++) {
        flags[i] = scores[i] > need;
    }
    for (uint32_t i = 0; i < MET_GROUP; i += 8) {
        // The product moves flag j to bit 56 + j; no sum carries.
        bits |= (lex_le64(flags + i) * 0x0102040810204080u >> 56) << i;
    }
    return bits;
}

/* Segments met whose score is above `need`, in s->survivors, rising. */
static size_t
gather(struct search *s, int32_t need)
{
    size_t n = 0;
    for (uint32_t g = 0; g < N_GROUPS; g++) {
        uint32_t first = g * MET_GROUP;
        if (s->met[g] == 0)
            continue;
        for (uint64_t b = above(s->scores + first, need); b != 0; b &= b - 1) {
            s->survivors[n++] =
                (uint16_t)(first + (uint32_t)__builtin_ctzll(b));
        }
    }
    if (s->filter == NULL)
        return n;
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        s->survivors[kept] = s->survivors[i];
        kept += bitset_has(s->filter, s->base + s->survivors[i]);
    }
    return kept;
}

/* Those of n survivors whose score is above need. */
static size_t
thin_out(struct search *s, size_t n, int32_t need)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        uint16_t d = s->survivors[i];
        s->survivors[kept] = d;
        kept += s->scores[d] > need;
    }
    return kept;
}

/* Add an optional list to the scores of n survivors: looked up one by one if
 * they are few against the postings that the list has in a window, else all
 * its postings in a row, which is much cheaper for each. */
static mb_status
add_optional(struct search *s, struct lex_list *l, size_t n)
{
    mb_status st = MB_OK;
    if (n * LOOKUP_COST > l->head.df / s->n_rows + LEX_BLOCK / 2)
        return add_list(s, l, s->threshold + 1);
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        uint32_t d = s->survivors[i];
        st = lex_list_lookup(l, s->base + d, length_at(s, d), &s->scores[d]);
    }
    return st;
}

static mb_status
search_window(struct search *s)
{
    mb_status st = MB_OK;
    int32_t all = s->sums[s->q.n];
    for (size_t i = s->n_optional; i < s->q.n && st == MB_OK; i++) {
        st = add_list(s, s->order[i], all - s->bounds[i]);
    }
    size_t i = s->n_optional;
    size_t n = st == MB_OK ? gather(s, s->threshold - s->sums[i]) : 0;
    while (i > 0 && n > 0 && st == MB_OK) {
        i--;
        st = add_optional(s, s->order[i], n);
        n = thin_out(s, n, s->threshold - s->sums[i]);
    }
    for (size_t j = 0; j < n && st == MB_OK; j++) {
        uint32_t d = s->survivors[j];
        if (s->scores[d] > s->threshold && length_at(s, d) != 0)
            offer(s, s->base + d, s->scores[d]);
    }
    memset(s->scores, 0, sizeof s->scores);
    memset(s->met, 0, sizeof s->met);
    return st;
}

/* Look segment d of the window up in all lists, the highest bound first, while
 * it can still pass the threshold. */
static mb_status
search_segment(struct search *s, uint32_t d)
{
    uint32_t segno = s->base + d;
    uint32_t length = length_at(s, d);
    int32_t score = 0;
    size_t n = length > 0 ? s->q.n : 0;
    while (n > 0 && score + s->sums[n] > s->threshold) {
        n--;
        mb_status st = lex_list_lookup(s->order[n], segno, length, &score);
        if (st != MB_OK)
            return st;
    }
    if (n == 0 && score > s->threshold)
        offer(s, segno, score);
    return MB_OK;
}

/* Segments of the window that the filter lets pass: up to max of them in out;
 * more than max are not counted further. */
static size_t
filtered(const struct search *s, uint32_t out[FEW_SEGMENTS], size_t max)
{
    const struct bitset *f = s->filter;
    size_t n = 0;
    size_t at = s->base;
    size_t end = at + LEX_LENGTHS < f->n_bits ? at + LEX_LENGTHS : f->n_bits;
    while (at < end) {
        uint64_t word = f->words[at >> 6] >> (at & 63);
        if (word == 0) {
            at = (at | 63) + 1;
            continue;
        }
        at += (size_t)__builtin_ctzll(word);
        if (at >= end)
            break;
        if (n == max)
            return n + 1;
        out[n++] = (uint32_t)(at - s->base);
        at++;
    }
    return n;
}

static mb_status
search_windows(struct search *s)
{
    for (uint32_t row = 0; row < s->n_rows; row++) {
        uint32_t few[FEW_SEGMENTS];
        size_t n_few = FEW_SEGMENTS + 1;
        s->base = row * LEX_LENGTHS;
        if (s->filter != NULL)
            n_few = filtered(s, few, FEW_SEGMENTS);
        if (n_few == 0)
            continue;
        mb_status st = order_lists(s);
        if (st != MB_OK)
            return st;
        if (s->n_optional == s->q.n)
            continue; // nothing here can enter
        st = lex_lengths_row(s->txn, s->coll, row, &s->lengths);
        if (st != MB_OK)
            return st;
        if (s->lengths == NULL)
            continue; // no segment here was ever live
        if (n_few > FEW_SEGMENTS)
            st = search_window(s);
        for (size_t i = 0; n_few <= FEW_SEGMENTS && i < n_few; i++) {
            if (st == MB_OK)
                st = search_segment(s, few[i]);
        }
        if (st != MB_OK)
            return st;
    }
    return MB_OK;
}

/* ---- for search.c ---- */

static mb_status
search_new(
    struct lex_query *q, size_t k, struct mb_arena *arena, struct search **out)
{
    struct search *s = mb_arena_calloc(arena, 1, sizeof *s);
    if (s == NULL)
        return MB_ERR_NOMEM;
    s->q = *q;
    s->order = mb_arena_calloc(arena, q->n, sizeof *s->order);
    s->bounds = mb_arena_calloc(arena, q->n, sizeof *s->bounds);
    s->sums = mb_arena_calloc(arena, q->n + 1, sizeof *s->sums);
    s->heap.k = k;
    s->heap.entries = mb_arena_calloc(arena, k, sizeof *s->heap.entries);
    if (s->order == NULL || s->bounds == NULL || s->sums == NULL ||
        s->heap.entries == NULL)
        return MB_ERR_NOMEM;
    for (size_t i = 0; i < q->n; i++) {
        s->order[i] = &q->lists[i];
    }
    *out = s;
    return MB_OK;
}

static mb_status
take_results(
    struct search *s, struct mb_arena *arena, struct candidate **out, size_t *n)
{
    struct heap *h = &s->heap;
    struct candidate *hits = mb_arena_alloc(arena, (h->n + 1) * sizeof *hits);
    if (hits == NULL)
        return MB_ERR_NOMEM;
    qsort(h->entries, h->n, sizeof *h->entries, compare_entries);
    for (size_t i = 0; i < h->n; i++) {
        hits[i].segno = (uint32_t)~h->entries[i];
        hits[i].score = (float)(h->entries[i] >> 32) / s->q.scale;
    }
    *out = hits;
    *n = h->n;
    return MB_OK;
}

mb_status
lex_search(struct mb_snapshot *snap, const struct mb_collection *coll,
    const struct mb_term *terms, size_t n_terms, const struct bitset *filter,
    size_t k, struct mb_arena *arena, struct candidate **out, size_t *n,
    struct mb_error *err)
{
    struct lex_query q;
    struct search *s = NULL;
    if (k > coll->n_segments)
        k = (size_t)coll->n_segments;
    mb_status st =
        lex_query_open(&q, snap->txn, coll, terms, n_terms, arena, err);
    if (st == MB_OK && (q.n == 0 || k == 0)) {
        *out = NULL;
        *n = 0;
        goto out;
    }
    if (st != MB_OK)
        goto out;
    st = search_new(&q, k, arena, &s);
    if (st == MB_OK) {
        s->txn = snap->txn;
        s->coll = coll->id;
        s->filter = filter;
        s->n_rows = coll->next_segno / LEX_LENGTHS + 1;
        st = search_windows(s);
    }
    if (st == MB_OK)
        st = take_results(s, arena, out, n);
    if (st == MB_ERR_NOMEM)
        mb_error_set(err, st, "search: out of memory");
    else
        st = kv_txn_explain(snap->txn, st, err);
out:
    lex_query_close(&q);
    return st;
}

/* A segment to score, and where its score goes. */
struct wanted {
    uint32_t segno;
    uint32_t index;
};

static int
compare_wanted(const void *a, const void *b)
{
    uint32_t x = ((const struct wanted *)a)->segno;
    uint32_t y = ((const struct wanted *)b)->segno;
    return x < y ? -1 : x > y;
}

static mb_status
score_wanted(struct lex_query *q, struct kv_txn *txn, mb_collection_id coll,
    const struct wanted *wanted, size_t n, float *scores)
{
    uint32_t row = UINT32_MAX;
    const uint8_t *lengths = NULL;
    for (size_t i = 0; i < n; i++) {
        uint32_t segno = wanted[i].segno;
        int32_t score = 0;
        mb_status st = MB_OK;
        if (segno / LEX_LENGTHS != row) {
            row = segno / LEX_LENGTHS;
            st = lex_lengths_row(txn, coll, row, &lengths);
        }
        uint32_t length =
            st == MB_OK && lengths != NULL
                ? lex_le16(lengths + 2 * (size_t)(segno % LEX_LENGTHS))
                : 0;
        for (size_t j = 0; j < q->n && length > 0 && st == MB_OK; j++) {
            st = lex_list_lookup(&q->lists[j], segno, length, &score);
        }
        if (st != MB_OK)
            return st;
        scores[wanted[i].index] = (float)score / q->scale;
    }
    return MB_OK;
}

mb_status
lex_score(struct mb_snapshot *snap, const struct mb_collection *coll,
    const struct mb_term *terms, size_t n_terms, const mb_segno *segnos,
    size_t n, struct mb_arena *arena, float *scores, struct mb_error *err)
{
    struct lex_query q = {0};
    struct wanted *wanted = mb_arena_calloc(arena, n + 1, sizeof *wanted);
    if (wanted == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "score: out of memory");
    for (size_t i = 0; i < n; i++) {
        wanted[i] = (struct wanted){segnos[i], (uint32_t)i};
    }
    qsort(wanted, n, sizeof *wanted, compare_wanted);
    mb_status st =
        lex_query_open(&q, snap->txn, coll, terms, n_terms, arena, err);
    if (st == MB_OK) {
        st = score_wanted(&q, snap->txn, coll->id, wanted, n, scores);
        st = kv_txn_explain(snap->txn, st, err);
    }
    lex_query_close(&q);
    return st;
}
