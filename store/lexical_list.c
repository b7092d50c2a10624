/* SPDX-License-Identifier: Apache-2.0
 * store/lexical_list.c - reads the postings of one term; see lexical_list.h.
 *
 * Invariants: a list stands on a block or is at its end; blocks are visited in
 * rising order; everything read is a view of the snapshot, never copied but
 * for the unpacked segment numbers.
 * Threads: see lexical_list.h. */
#include "lexical_list.h"

#include <math.h>
#include <stdlib.h>

/* Sums of whole scores stay below this, so that a float holds them exactly:
 * two scores are equal as floats if and only if they are equal. */
#define SCORE_RANGE 16777216.0f
/* A bound is computed by other operations than a score: give it more than
 * what rounding can differ. */
#define BOUND_SLACK 1.00001f
/* Blocks that a window bound looks at. */
#define WINDOW_BLOCKS 4
#define CACHE_LINE    64

/* ---- bounds ---- */

static float
points_bound(
    const struct lex_list *l, const struct lex_point points[LEX_POINTS])
{
    float best = 0.0f;
    for (size_t i = 0; i < LEX_POINTS && points[i].tf > 0; i++) {
        float t = (float)points[i].tf;
        float norm = l->norm_base + l->norm_slope * (float)points[i].length;
        float s = t / (t + norm);
        if (s > best)
            best = s;
    }
    return best * BOUND_SLACK * l->weight;
}

static int32_t
entry_bound(const struct lex_list *l, const uint8_t *entry)
{
    struct lex_point points[LEX_POINTS];
    lex_entry_points(entry, points);
    return (int32_t)points_bound(l, points) + 2;
}

int32_t
lex_list_block_bound(struct lex_list *l)
{
    if (l->block_bound < 0)
        l->block_bound =
            l->entry != NULL
                ? entry_bound(l, l->entry)
                : (int32_t)points_bound(l, l->head.rest_points) + 2;
    return l->block_bound;
}

int32_t
lex_list_window_bound(struct lex_list *l, uint32_t end)
{
    if (l->end || l->block.first >= end)
        return 0;
    if (l->dense)
        return l->bound;
    int32_t best = lex_list_block_bound(l);
    if (l->block.last >= end - 1 || l->entry == NULL)
        return best;
    const uint8_t *entry = l->entry;
    for (size_t i = 1;; i++) {
        entry += LEX_ENTRY_BYTES;
        if (i == WINDOW_BLOCKS || entry == l->entries_end)
            return l->bound; // unknown what follows: the term's bound holds
        if (lex_le32(entry) >= end)
            return best;
        int32_t bound = entry_bound(l, entry);
        if (bound > best)
            best = bound;
        if (lex_le32(entry + 4) >= end - 1)
            return best;
    }
}

/* ---- moving ---- */

static void
stand_on(struct lex_list *l, const uint8_t *entry, const uint8_t *payload)
{
    l->entry = entry;
    l->block = lex_run_block(entry, payload);
    l->block_bound = -1;
    l->unpacked = false;
}

/* The head's postings come after those of all chunks. */
static void
enter_head(struct lex_list *l)
{
    l->in_head = true;
    l->entries_end = NULL;
    if (l->head.full.n > 0) {
        l->entries_end =
            l->head.full.entries + l->head.full.n * (size_t)LEX_ENTRY_BYTES;
        stand_on(l, l->head.full.entries, l->head.full.payload);
        return;
    }
    l->entry = NULL;
    l->block = l->head.rest;
    l->block_bound = -1;
    l->unpacked = false;
    l->end = l->head.rest.n == 0;
}

/* Take the record that the cursor is on: a chunk of this term or its head. */
static mb_status
enter_record(struct lex_list *l, struct mb_slice key, struct mb_slice record)
{
    struct lex_run run;
    if (key.size != 12 || mb_get_be32(key.data + 4) != l->id)
        return MB_ERR_CORRUPT;
    if (mb_get_be32(key.data + 8) == LEX_HEAD) {
        enter_head(l);
        return MB_OK;
    }
    // Most of it will be read, and it lies in memory that nobody was near.
    for (size_t i = 0; i < record.size; i += CACHE_LINE) {
        __builtin_prefetch(record.data + i);
    }
    if (!lex_chunk_parse(record, &run))
        return MB_ERR_CORRUPT;
    l->entries_end = run.entries + run.n * (size_t)LEX_ENTRY_BYTES;
    stand_on(l, run.entries, run.payload);
    return MB_OK;
}

/* To the record that holds postings at or above segno: the next one if it
 * does (dense lists go on there), else by a seek. */
static mb_status
next_record(struct lex_list *l, uint32_t segno)
{
    struct mb_slice k;
    struct mb_slice v;
    if (l->in_head) {
        l->end = true;
        return MB_OK;
    }
    mb_status st = kv_cursor_next(l->cursor, &k, &v);
    if (st == MB_OK && k.size == 12 && mb_get_be32(k.data + 8) < segno) {
        struct kv_key key;
        lex_posting_key(&key, l->coll, l->id, segno);
        st = kv_cursor_seek(l->cursor, kv_key_slice(&key), &k, &v);
    }
    if (st == MB_ERR_NOT_FOUND)
        return MB_ERR_CORRUPT; // the head comes last, and it was there
    return st == MB_OK ? enter_record(l, k, v) : st;
}

/* The next block of this record, or false. */
static bool
next_in_record(struct lex_list *l)
{
    if (l->entry == NULL)
        return false;
    const uint8_t *payload = l->block.payload + l->block.size;
    const uint8_t *entry = l->entry + LEX_ENTRY_BYTES;
    if (entry < l->entries_end) {
        stand_on(l, entry, payload);
        return true;
    }
    if (!l->in_head || l->head.rest.n == 0)
        return false;
    l->entry = NULL;
    l->block = l->head.rest;
    l->block_bound = -1;
    l->unpacked = false;
    return true;
}

mb_status
lex_list_next(struct lex_list *l)
{
    if (next_in_record(l))
        return MB_OK;
    return next_record(l, 0);
}

mb_status
lex_list_seek(struct lex_list *l, uint32_t segno)
{
    while (!l->end && l->block.last < segno) {
        if (!next_in_record(l)) {
            mb_status st = next_record(l, segno);
            if (st != MB_OK)
                return st;
        }
    }
    return MB_OK;
}

mb_status
lex_list_unpack(struct lex_list *l)
{
    if (!lex_block_decode(&l->block, l->segnos))
        return MB_ERR_CORRUPT;
    l->tfs = lex_block_tfs(&l->block);
    l->pos = 0;
    l->unpacked = true;
    return MB_OK;
}

mb_status
lex_list_lookup(
    struct lex_list *l, uint32_t segno, uint32_t length, int32_t *score)
{
    mb_status st = MB_OK;
    if (!l->end && l->block.last < segno)
        st = lex_list_seek(l, segno);
    if (st != MB_OK || l->end || l->block.first > segno)
        return st;
    if (!l->unpacked) {
        st = lex_list_unpack(l);
        if (st != MB_OK)
            return st;
    }
    // The first posting at or above segno; the last one is, as block.last is.
    // Nobody could predict the way, so a step is a sum, not a branch.
    uint32_t low = l->pos;
    uint32_t n = l->block.n - low;
    while (n > 1) {
        uint32_t half = n / 2;
        low += half & (0u - (uint32_t)(l->segnos[low + half - 1] < segno));
        n -= half;
    }
    l->pos = low;
    if (l->segnos[low] == segno)
        *score += lex_posting_score(
            l->weight, l->norm_base, l->norm_slope, l->tfs[low], length);
    return MB_OK;
}

/* ---- the terms of a query ---- */

/* A term of the query that the collection has. */
struct found_term {
    struct mb_slice head;
    float weight;
    uint32_t id;
};

/* Find a term's head; weight 0 if the collection does not have it. */
static mb_status
find_term(struct kv_txn *txn, const struct mb_collection *coll,
    const struct mb_term *term, struct found_term *out)
{
    struct kv_key key;
    out->weight = 0.0f;
    if (term->bytes.size == 0 || term->bytes.size > LEX_MAX_TERM ||
        term->tf == 0)
        return MB_OK;
    mb_status st = lex_term_find(txn, coll->id, term->bytes, &out->id);
    if (st == MB_ERR_NOT_FOUND)
        return MB_OK;
    if (st != MB_OK)
        return st;
    lex_posting_key(&key, coll->id, out->id, LEX_HEAD);
    st = kv_get(txn, KV_POSTINGS, kv_key_slice(&key), &out->head);
    if (st == MB_ERR_NOT_FOUND || (st == MB_OK && out->head.size < 4))
        return MB_ERR_CORRUPT;
    if (st != MB_OK)
        return st;
    double df = (double)lex_le32(out->head.data);
    double n = (double)coll->n_segments;
    double idf = log(1.0 + ((n > df ? n - df : 0.0) + 0.5) / (df + 0.5));
    out->weight = (float)(idf * (coll->settings.k1 + 1.0) * term->tf);
    return MB_OK;
}

/* Stand on the first block. Only terms with chunks need a cursor. */
static mb_status
open_blocks(struct lex_list *l)
{
    uint64_t in_head = l->head.rest.n;
    for (uint32_t i = 0; i < l->head.full.n; i++) {
        in_head += l->head.full.entries[i * LEX_ENTRY_BYTES + 10] + 1u;
    }
    if (in_head >= l->head.df) {
        enter_head(l);
        return MB_OK;
    }
    struct kv_key key;
    struct mb_slice k;
    struct mb_slice v;
    mb_status st = kv_cursor_open(l->txn, KV_POSTINGS, &l->cursor);
    lex_posting_key(&key, l->coll, l->id, 0);
    if (st == MB_OK)
        st = kv_cursor_seek(l->cursor, kv_key_slice(&key), &k, &v);
    if (st == MB_ERR_NOT_FOUND)
        return MB_ERR_CORRUPT;
    return st == MB_OK ? enter_record(l, k, v) : st;
}

static int
compare_weight(const void *a, const void *b)
{
    float x = ((const struct found_term *)a)->weight;
    float y = ((const struct found_term *)b)->weight;
    return x > y ? -1 : x < y;
}

/* Choose the scale and turn weights and bounds into whole scores. */
static void
set_scale(struct lex_query *q, const struct mb_collection *coll)
{
    float sum = 0.0f;
    for (size_t i = 0; i < q->n; i++) {
        sum += q->lists[i].weight;
    }
    // A part is below its weight; each may be cut up by 3 in bounds.
    int exponent;
    (void)frexpf((SCORE_RANGE - 4096.0f) / sum, &exponent);
    q->scale = ldexpf(1.0f, exponent - 1);
    for (size_t i = 0; i < q->n; i++) {
        struct lex_list *l = &q->lists[i];
        l->weight *= q->scale;
        l->bound = (int32_t)points_bound(l, l->head.points) + 2;
        uint64_t blocks = (uint64_t)l->head.df / LEX_BLOCK;
        uint64_t windows = coll->next_segno / LEX_LENGTHS + 1;
        l->dense = blocks > (WINDOW_BLOCKS - 1) * windows;
    }
}

/* Those of the terms that the collection has, at most LEX_MAX_LISTS. */
static mb_status
find_terms(struct kv_txn *txn, const struct mb_collection *coll,
    const struct mb_term *terms, size_t n_terms, struct found_term *found,
    size_t *n)
{
    *n = 0;
    for (size_t i = 0; i < n_terms; i++) {
        mb_status st = find_term(txn, coll, &terms[i], &found[*n]);
        if (st != MB_OK)
            return st;
        *n += found[*n].weight > 0.0f;
    }
    if (*n > LEX_MAX_LISTS) {
        qsort(found, *n, sizeof *found, compare_weight);
        *n = LEX_MAX_LISTS;
    }
    return MB_OK;
}

mb_status
lex_query_open(struct lex_query *q, struct kv_txn *txn,
    const struct mb_collection *coll, const struct mb_term *terms,
    size_t n_terms, struct mb_arena *arena, struct mb_error *err)
{
    *q = (struct lex_query){.scale = 1.0f};
    if (coll->n_segments == 0 || n_terms == 0)
        return MB_OK;
    const float k1 = coll->settings.k1;
    const float b = coll->settings.b;
    double average = (double)coll->sum_lengths / (double)coll->n_segments;
    q->norm_base = k1 * (1.0f - b);
    q->norm_slope = average > 0 ? (float)(k1 * b / average) : 0.0f;
    size_t n;
    struct found_term *found = mb_arena_calloc(arena, n_terms, sizeof *found);
    if (found == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "query: out of memory");
    mb_status st = find_terms(txn, coll, terms, n_terms, found, &n);
    if (st != MB_OK || n == 0)
        return kv_txn_explain(txn, st, err);
    q->lists = mb_arena_calloc(arena, n, sizeof *q->lists);
    if (q->lists == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "query: out of memory");
    for (; q->n < n && st == MB_OK; q->n++) {
        struct lex_list *l = &q->lists[q->n];
        l->txn = txn;
        l->coll = coll->id;
        l->id = found[q->n].id;
        l->weight = found[q->n].weight;
        l->norm_base = q->norm_base;
        l->norm_slope = q->norm_slope;
        if (!lex_head_parse(found[q->n].head, &l->head) || l->head.df == 0)
            st = MB_ERR_CORRUPT;
    }
    if (st == MB_OK)
        set_scale(q, coll);
    for (size_t i = 0; i < q->n && st == MB_OK; i++) {
        st = open_blocks(&q->lists[i]);
    }
    return kv_txn_explain(txn, st, err);
}

void
lex_query_close(struct lex_query *q)
{
    for (size_t i = 0; i < q->n; i++) {
        kv_cursor_close(q->lists[i].cursor);
    }
    q->n = 0;
}
