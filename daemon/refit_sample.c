/* SPDX-License-Identifier: Apache-2.0
 * daemon/refit_sample.c - the matrix that latent semantic analysis is fitted on.
 *
 * Rows are read from the forward indexes that the store keeps with each
 * segment, so that no text is analysed again. Segments are drawn one from each
 * of max_rows equal stretches of segment numbers: even over the collection's
 * age, and the same for the same collection.
 * Invariants: row_start rises from 0 to the number of entries; CSR columns
 * refer to col_term.
 * Threads: mb-job. */
#include "refit_sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NO_COL       UINT32_MAX
#define SCAN_BATCH   512
#define MAX_ENTRIES  ((size_t)1 << 28)
#define ENTRY_BYTES  (MAX_ENTRIES * sizeof(uint32_t))
#define SAMPLE_SEED  0x6d656d62616e6b00u
#define MIN_IN_TERMS 2 /* rows that a term must be in */

void
sample_free(struct sample *s)
{
    mb_free(s->row_start);
    mb_free(s->term_id);
    mb_free(s->tf);
    mb_free(s->col_term);
    mb_free(s->col_hash);
    mb_free(s->idf);
    mb_free((void *)s->csr.row_start);
    mb_free((void *)s->csr.col);
    mb_free((void *)s->csr.val);
    memset(s, 0, sizeof *s);
}

/* ---- rows ---- */

/* Rows as they grow. */
struct drawing {
    struct mb_snapshot *snap;
    const struct mb_collection *coll;
    struct mb_buffer starts; /* size_t */
    struct mb_buffer ids;    /* uint32_t */
    struct mb_buffer tfs;    /* uint32_t */
    size_t n_rows;
};

static mb_status
add_row(struct drawing *d, const struct mb_segment *seg)
{
    mb_status st = MB_OK;
    uint32_t id;
    uint32_t tf;
    size_t pos = 0;
    size_t n;

    while (st == MB_OK && mb_forward_next(seg->forward, &pos, &id, &tf)) {
        st = mb_buffer_append(&d->ids, &id, sizeof id);
        if (st == MB_OK)
            st = mb_buffer_append(&d->tfs, &tf, sizeof tf);
    }
    n = d->ids.size / sizeof id;
    if (st == MB_OK)
        st = mb_buffer_append(&d->starts, &n, sizeof n);
    d->n_rows++;
    return st;
}

static mb_status
draw_all(struct drawing *d, struct mb_error *err)
{
    struct mb_segment *segs = mb_calloc(SCAN_BATCH, sizeof *segs);
    mb_segno from = 0;
    mb_status st = MB_OK;
    size_t n = 1;

    if (segs == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "sample");
    while (st == MB_OK && n > 0) {
        st = mb_segment_scan(d->snap, d->coll, from, SCAN_BATCH, segs, &n, err);
        for (size_t i = 0; i < n && st == MB_OK; i++) {
            st = add_row(d, &segs[i]);
        }
        if (n > 0)
            from = segs[n - 1].segno + 1;
    }
    mb_free(segs);
    return st;
}

static mb_status
draw_some(struct drawing *d, size_t max_rows, struct mb_error *err)
{
    struct mb_rng rng;
    uint64_t end = d->coll->next_segno;
    mb_segno next = 0; /* first number not looked at */
    mb_status st = MB_OK;

    mb_rng_init(&rng, SAMPLE_SEED);
    for (size_t i = 0; i < max_rows && st == MB_OK; i++) {
        uint64_t low = end * i / max_rows;
        uint64_t high = end * (i + 1) / max_rows;
        struct mb_segment seg;
        uint64_t from;
        size_t n;

        if (high <= low)
            continue;
        from = low + mb_rng_below(&rng, high - low);
        // Where segments are gone the next live one stands in, once.
        if (from < next)
            from = next;
        st =
            mb_segment_scan(d->snap, d->coll, (mb_segno)from, 1, &seg, &n, err);
        if (st != MB_OK || n == 0)
            break;
        next = seg.segno + 1;
        st = add_row(d, &seg);
    }
    return st;
}

static mb_status
draw_rows(struct mb_snapshot *snap, const struct mb_collection *coll,
    size_t max_rows, struct sample *out, struct mb_error *err)
{
    struct drawing d = {.snap = snap, .coll = coll};
    size_t zero = 0;
    mb_status st;

    mb_buffer_init(&d.starts, (max_rows + 2) * sizeof(size_t));
    mb_buffer_init(&d.ids, ENTRY_BYTES);
    mb_buffer_init(&d.tfs, ENTRY_BYTES);
    st = mb_buffer_append(&d.starts, &zero, sizeof zero);
    if (st == MB_OK)
        st = coll->n_segments <= max_rows ? draw_all(&d, err)
                                          : draw_some(&d, max_rows, err);
    if (st == MB_OK && d.n_rows < 2)
        st = mb_error_set(
            err, MB_ERR_BAD_ARG, "%zu segments are too few", d.n_rows);
    if (st != MB_OK) {
        mb_buffer_fini(&d.starts);
        mb_buffer_fini(&d.ids);
        mb_buffer_fini(&d.tfs);
        return st;
    }
    // Buffers are plain heap memory: the sample takes them over.
    out->n_rows = d.n_rows;
    out->row_start = (size_t *)(void *)d.starts.data;
    out->term_id = (uint32_t *)(void *)d.ids.data;
    out->tf = (uint32_t *)(void *)d.tfs.data;
    return MB_OK;
}

/* ---- columns ---- */

struct frequency {
    uint32_t term;
    uint32_t n_rows;
};

static int
by_frequency(const void *pa, const void *pb)
{
    const struct frequency *a = pa;
    const struct frequency *b = pb;

    if (a->n_rows != b->n_rows)
        return a->n_rows > b->n_rows ? -1 : 1;
    return a->term < b->term ? -1 : a->term > b->term;
}

/* Terms that at least MIN_IN_TERMS rows have, most frequent first. */
static mb_status
count_terms(const struct sample *s, uint32_t n_ids, struct frequency **out,
    size_t *n, struct mb_error *err)
{
    uint32_t *counts = mb_calloc(n_ids + (size_t)1, sizeof *counts);
    struct frequency *list = NULL;
    size_t n_list = 0;
    mb_status st = MB_OK;

    if (counts == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "%u terms", n_ids);
    for (size_t i = 0; i < s->row_start[s->n_rows]; i++) {
        if (s->term_id[i] < n_ids && ++counts[s->term_id[i]] == MIN_IN_TERMS)
            n_list++;
    }
    list = mb_calloc(n_list + 1, sizeof *list);
    if (list == NULL) {
        st = mb_error_set(err, MB_ERR_NOMEM, "%zu terms", n_list);
        goto out;
    }
    n_list = 0;
    for (uint32_t id = 0; id < n_ids; id++) {
        if (counts[id] >= MIN_IN_TERMS)
            list[n_list++] = (struct frequency){id, counts[id]};
    }
    qsort(list, n_list, sizeof *list, by_frequency);
    *out = list;
    *n = n_list;
out:
    mb_free(counts);
    return st;
}

static mb_status
choose_terms(struct mb_snapshot *snap, const struct mb_collection *coll,
    size_t max_terms, struct sample *s, struct mb_error *err)
{
    struct frequency *list = NULL;
    size_t n = 0;
    mb_status st = count_terms(s, coll->next_term, &list, &n, err);

    if (st != MB_OK)
        return st;
    if (n > max_terms)
        n = max_terms;
    s->col_term = mb_calloc(n + 1, sizeof *s->col_term);
    s->col_hash = mb_calloc(n + 1, sizeof *s->col_hash);
    s->idf = mb_calloc(n + 1, sizeof *s->idf);
    if (s->col_term == NULL || s->col_hash == NULL || s->idf == NULL)
        st = mb_error_set(err, MB_ERR_NOMEM, "%zu terms", n);
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        struct mb_slice bytes;
        uint32_t df;

        st = mb_term_get(snap, coll, list[i].term, &bytes, &df, err);
        if (st != MB_OK)
            break;
        s->col_term[i] = list[i].term;
        s->col_hash[i] = mb_hash64(bytes.data, bytes.size, 0);
        s->idf[i] =
            (float)log(((double)coll->n_segments + 1) / ((double)df + 0.5));
        s->n_cols++;
    }
    mb_free(list);
    if (st == MB_OK && s->n_cols < 2)
        st = mb_error_set(err, MB_ERR_BAD_ARG, "no terms in common");
    return st;
}

/* ---- the matrix ---- */

/* Column of each term id, NO_COL for those not chosen. */
static uint32_t *
invert_columns(const struct sample *s, uint32_t n_ids)
{
    uint32_t *cols = mb_alloc((n_ids + (size_t)1) * sizeof *cols);

    if (cols == NULL)
        return NULL;
    memset(cols, 0xff, (n_ids + (size_t)1) * sizeof *cols);
    for (size_t i = 0; i < s->n_cols; i++) {
        cols[s->col_term[i]] = (uint32_t)i;
    }
    return cols;
}

static void
scale_row(float *val, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++) {
        sum += (double)val[i] * (double)val[i];
    }
    for (size_t i = 0; i < n && sum > 0; i++) {
        val[i] = (float)((double)val[i] / sqrt(sum));
    }
}

static mb_status
build_matrix(struct sample *s, uint32_t n_ids, struct mb_error *err)
{
    size_t n_entries = s->row_start[s->n_rows];
    size_t *start = mb_calloc(s->n_rows + 1, sizeof *start);
    uint32_t *col = mb_calloc(n_entries + 1, sizeof *col);
    float *val = mb_calloc(n_entries + 1, sizeof *val);
    uint32_t *cols = invert_columns(s, n_ids);
    size_t n = 0;

    s->csr = (struct mb_csr){s->n_rows, s->n_cols, start, col, val};
    if (start == NULL || col == NULL || val == NULL || cols == NULL) {
        mb_free(cols);
        return mb_error_set(err, MB_ERR_NOMEM, "%zu entries", n_entries);
    }
    for (size_t row = 0; row < s->n_rows; row++) {
        size_t first = n;

        for (size_t i = s->row_start[row]; i < s->row_start[row + 1]; i++) {
            uint32_t c = s->term_id[i] < n_ids ? cols[s->term_id[i]] : NO_COL;

            if (c == NO_COL)
                continue;
            col[n] = c;
            val[n] = (float)log1p((double)s->tf[i]) * s->idf[c];
            n++;
        }
        scale_row(val + first, n - first);
        start[row + 1] = n;
    }
    mb_free(cols);
    return MB_OK;
}

mb_status
sample_draw(struct mb_snapshot *snap, const struct mb_collection *coll,
    size_t max_rows, size_t max_terms, struct sample *out, struct mb_error *err)
{
    struct sample s = {0};
    mb_status st = draw_rows(snap, coll, max_rows, &s, err);

    if (st == MB_OK)
        st = choose_terms(snap, coll, max_terms, &s, err);
    if (st == MB_OK)
        st = build_matrix(&s, coll->next_term, err);
    if (st == MB_OK)
        *out = s;
    else
        sample_free(&s);
    return st;
}
