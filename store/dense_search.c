/* SPDX-License-Identifier: Apache-2.0
 * store/dense_search.c - nearest vectors: which lists, which rows, which win.
 *
 * Three ways, by what costs least:
 * - direct: a filter that few segments pass; each is scored from its fp16
 *   values, exactly;
 * - whole: all lists, for a flat generation, an exact query or a narrow filter;
 * - probe: the leaves whose centroids are nearest, in falling order, until
 *   enough of them were read, or the next one is much further than the first
 *   was, and k were found. A filter raises their number: what it lets through
 *   lies further out.
 * The int8 scan keeps the best RESCORE(k) rows; their fp16 values decide, but
 * where the vectors are only part of a search (is_part).
 * The filter is tested inside the scan, so that k are found if k exist.
 *
 * Mean and deviation of the cosine are estimated for the whole collection even
 * when a part is read: a leaf that was not read counts with the share, the
 * mean and the spread that the tree knows of it.
 * Threads: any, each with its own snapshot. */
#include "dense.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Rows kept for rescoring: int8 scores alone misplace neighbours that are
 * closer to each other than about 0.001. */
#define RESCORE(k) ((k) + (k) / 8 + 12)
/* Records that are found before they are read. */
#define SCORE_BATCH 16
/* A lookup of one segment costs as much as passing over this many rows. */
#define DIRECT_COST 300
/* nprobe grows with the filter's selectivity s as s to minus this. */
#define FILTER_EXPONENT 0.5
/* From this part of the leaves on, all in their order on disk cost less. */
#define WHOLE_PART 0.6

/* One search. Arrays are in the arena of the request. */
struct search {
    const struct dense_target *t;
    const struct dense_query *q;
    const struct scan_kernels *kernels;
    size_t dim;
    size_t stride;
    int8_t *codes; /* (stride) of the query */
    float q_scale;
    struct candidate *heap; /* the worst kept on top */
    size_t n_heap;
    size_t max_heap;
    struct scan_sums sums; /* of all rows that passed the filter */
    int32_t *dots;         /* (chunk rows) */
    float *scores;         /* (chunk rows) */
    uint32_t *rows;        /* (chunk rows) those that pass the filter */
};

/* ---- the best so far ---- */

/* Order of results: score falling, then segment rising. */
static bool
is_worse(const struct candidate *a, const struct candidate *b)
{
    return a->score != b->score ? a->score < b->score : a->segno > b->segno;
}

static void
sift_down(struct candidate *heap, size_t n, size_t i)
{
    struct candidate moved = heap[i];

    for (;;) {
        size_t child = 2 * i + 1;

        if (child >= n) {
            break;
        }
        if (child + 1 < n && is_worse(&heap[child + 1], &heap[child])) {
            child++;
        }
        if (!is_worse(&heap[child], &moved)) {
            break;
        }
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moved;
}

static void
keep(struct search *s, mb_segno segno, float score)
{
    const struct candidate fresh = {segno, score};
    size_t i;

    if (s->n_heap == s->max_heap) {
        if (is_worse(&s->heap[0], &fresh)) {
            s->heap[0] = fresh;
            sift_down(s->heap, s->n_heap, 0);
        }
        return;
    }
    for (i = s->n_heap++; i > 0; i = (i - 1) / 2) {
        if (!is_worse(&fresh, &s->heap[(i - 1) / 2])) {
            break;
        }
        s->heap[i] = s->heap[(i - 1) / 2];
    }
    s->heap[i] = fresh;
}

/* Scores below this need no look. */
static float
threshold(const struct search *s)
{
    return s->n_heap == s->max_heap ? s->heap[0].score : -INFINITY;
}

static int
compare_results(const void *a, const void *b)
{
    const struct candidate *x = (const struct candidate *)a;
    const struct candidate *y = (const struct candidate *)b;

    return is_worse(y, x) ? -1 : is_worse(x, y) ? 1 : 0;
}

/* Do the exact scores decide? A caller that has candidates from elsewhere too
 * reads those of all of them itself, and a candidate more or less at the end of
 * the list is nothing to it. */
static bool
is_exact(const struct search *s)
{
    return !s->q->is_part || s->q->exact;
}

/* ---- scanning ---- */

static void
scan_all_rows(struct search *s, const struct list_chunk *chunk)
{
    float least = threshold(s);
    float best;

    s->kernels->dot_i8(s->codes, chunk->codes, chunk->n, s->stride, s->dots);
    best = s->kernels->scale(
        s->dots, s->q_scale, chunk->scales, chunk->n, s->scores, &s->sums);
    if (best < least) {
        return;
    }
    for (size_t i = 0; i < chunk->n; i++) {
        if (s->scores[i] >= least) {
            keep(s, list_segment(chunk, i), s->scores[i]);
            least = threshold(s);
        }
    }
}

/* Rows that pass the filter, into s->rows. */
static size_t
pass_filter(struct search *s, const struct list_chunk *chunk)
{
    const struct bitset *filter = s->q->filter;
    size_t n = 0;

    for (size_t i = 0; i < chunk->n; i++) {
        s->rows[n] = (uint32_t)i;
        n += bitset_has(filter, list_segment(chunk, i)) ? 1 : 0;
    }
    return n;
}

/* Score the first n of s->rows. Where many of a chunk passed, all its rows in
 * one go are cheaper than each alone. */
static void
scan_some_rows(struct search *s, const struct list_chunk *chunk, size_t n)
{
    bool all = n * 3 >= chunk->n;
    float least = threshold(s);

    if (all) {
        struct scan_sums ignored = {0};

        s->kernels->dot_i8(
            s->codes, chunk->codes, chunk->n, s->stride, s->dots);
        (void)s->kernels->scale(
            s->dots, s->q_scale, chunk->scales, chunk->n, s->scores, &ignored);
    }
    for (size_t i = 0; i < n; i++) {
        size_t row = s->rows[i];
        float score;

        if (!all) {
            s->kernels->dot_i8(s->codes, chunk->codes + row * s->stride, 1,
                s->stride, &s->dots[row]);
            (void)s->kernels->scale(&s->dots[row], s->q_scale,
                chunk->scales + 4 * row, 1, &s->scores[row], &s->sums);
        }
        score = s->scores[row];
        if (all) {
            s->sums.sum += (double)score;
            s->sums.sum_squares += (double)score * (double)score;
            s->sums.n++;
        }
        if (score >= least) {
            keep(s, list_segment(chunk, row), score);
            least = threshold(s);
        }
    }
}

static mb_status
scan_chunk(struct search *s, struct mb_slice value)
{
    struct list_chunk chunk;
    mb_status st = list_chunk_view(value, s->dim, &chunk);

    if (st != MB_OK) {
        return st;
    }
    if (s->q->filter == NULL) {
        scan_all_rows(s, &chunk);
    } else {
        size_t n = pass_filter(s, &chunk);

        if (n > 0) {
            scan_some_rows(s, &chunk, n);
        }
    }
    return MB_OK;
}

/* One list, or all of the generation. */
static mb_status
scan_lists(
    struct search *s, struct kv_cursor *c, uint32_t leaf, struct mb_error *err)
{
    const struct list_id id = {s->t->coll, s->t->generation, leaf};
    struct kv_key prefix;
    struct mb_slice key;
    struct mb_slice value;
    mb_status st;

    list_key_prefix(&prefix, &id);
    st = kv_cursor_seek(c, kv_key_slice(&prefix), &key, &value);
    while (st == MB_OK && kv_has_prefix(key, kv_key_slice(&prefix))) {
        st = scan_chunk(s, value);
        if (st == MB_OK) {
            st = kv_cursor_next(c, &key, &value);
        }
    }
    if (st != MB_OK && st != MB_ERR_NOT_FOUND) {
        return mb_error_set(err, st, "scan lists of generation %u: %s",
            s->t->generation, mb_status_text(st));
    }
    return MB_OK;
}

/* ---- probing ---- */

/* Leaves by falling similarity of their centroids: a heap that is emptied as
 * far as needed. */
struct leaf_queue {
    struct candidate *heap; /* segno stands for the leaf; best on top */
    size_t n;
};

static void
queue_sift(struct leaf_queue *queue, size_t i)
{
    struct candidate *heap = queue->heap;
    struct candidate moved = heap[i];

    for (;;) {
        size_t child = 2 * i + 1;

        if (child >= queue->n) {
            break;
        }
        if (child + 1 < queue->n && is_worse(&heap[child], &heap[child + 1])) {
            child++;
        }
        if (!is_worse(&moved, &heap[child])) {
            break;
        }
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moved;
}

static struct candidate
queue_pop(struct leaf_queue *queue)
{
    struct candidate top = queue->heap[0];

    queue->heap[0] = queue->heap[--queue->n];
    if (queue->n > 0) {
        queue_sift(queue, 0);
    }
    return top;
}

static mb_status
queue_leaves(const struct search *s, const struct mb_tree *tree,
    struct mb_arena *arena, struct leaf_queue *queue)
{
    float *scores = mb_arena_alloc(arena, tree->n_leaves * sizeof(*scores));

    queue->n = tree->n_leaves;
    queue->heap = mb_arena_alloc(arena, queue->n * sizeof(*queue->heap));
    if (scores == NULL || queue->heap == NULL) {
        return MB_ERR_NOMEM;
    }
    s->kernels->dot_f32(
        s->q->vector, tree->leaf_centroids, queue->n, s->dim, scores);
    for (size_t i = 0; i < queue->n; i++) {
        queue->heap[i] = (struct candidate){(uint32_t)i, scores[i]};
    }
    for (size_t i = queue->n / 2; i-- > 0;) {
        queue_sift(queue, i);
    }
    return MB_OK;
}

/* Count the leaves still in the queue with what the tree knows of them. */
static void
add_unread(const struct leaf_queue *queue, const struct mb_tree *tree,
    double n_total, struct scan_sums *sums, double *weight)
{
    for (size_t i = 0; i < queue->n; i++) {
        const struct tree_node *node =
            &tree->nodes[tree->leaf_node[queue->heap[i].segno]];
        double mean = (double)queue->heap[i].score * (double)node->mean_norm;
        double w = (double)node->share * n_total;

        sums->sum += w * mean;
        sums->sum_squares += w * (mean * mean + (double)node->spread);
        *weight += w;
    }
}

/* How far to look. */
struct reach {
    size_t least; /* leaves, whatever their gap */
    size_t most;  /* leaves; at least 1 */
    float gap;    /* past the least, none further below the nearest than this */
};

/* As measured, the filter's narrowness in mind. A number that was asked for,
 * or is widened for a filter, has no other end. */
static struct reach
reach_of(const struct search *s, double selectivity)
{
    const struct mb_probing *probing = &s->t->record.probing;
    bool by_gap = s->q->nprobe == 0 && probing->gap > 0;
    size_t n_leaves = s->t->record.n_leaves;
    double n = s->q->nprobe > 0 ? s->q->nprobe : probing->nprobe;

    if (s->q->exact) {
        return (struct reach){n_leaves, n_leaves, INFINITY};
    }
    if (by_gap && s->q->filter == NULL) {
        uint32_t least = dense_least_leaves(probing);

        return s->q->is_part
                   ? (struct reach){(least + 3) / 4, (probing->nprobe + 1) / 2,
                         probing->gap / 2}
                   : (struct reach){least, probing->nprobe, probing->gap};
    }
    if (by_gap && probing->nprobe < n_leaves) {
        n /= DENSE_MOST_PROBED;
    }
    if (s->q->is_part && s->q->nprobe == 0) {
        n /= 2;
    }
    n = ceil(n * pow(selectivity, -FILTER_EXPONENT));
    if (n >= WHOLE_PART * (double)n_leaves) {
        return (struct reach){n_leaves, n_leaves, INFINITY};
    }
    return (struct reach){(size_t)n, (size_t)n, INFINITY};
}

static mb_status
probe(struct search *s, struct kv_cursor *c, struct reach reach, double n_total,
    struct mb_arena *arena, double *weight, struct mb_error *err)
{
    struct dense_tree *tree = NULL;
    struct leaf_queue queue;
    size_t n_read = 0;
    float least = -INFINITY;
    mb_status st = dense_cache_get(s->t->cache, s->t->txn, s->t->coll,
        s->t->generation, &s->t->record, &tree, err);

    if (st != MB_OK) {
        return st;
    }
    st = queue_leaves(s, tree->tree, arena, &queue);
    if (st != MB_OK) {
        (void)mb_error_set(err, st, "order %u leaves", s->t->record.n_leaves);
    } else {
        least = queue.heap[0].score - reach.gap;
    }
    while (st == MB_OK && queue.n > 0 &&
           (n_read < reach.least || s->sums.n < s->q->k ||
               (n_read < reach.most && queue.heap[0].score >= least))) {
        struct candidate leaf = queue_pop(&queue);

        st = scan_lists(s, c, leaf.segno, err);
        n_read++;
    }
    *weight = (double)s->sums.n;
    if (st == MB_OK) {
        add_unread(&queue, tree->tree, n_total, &s->sums, weight);
    }
    dense_cache_put(s->t->cache, tree);
    return st;
}

/* ---- exact scores ---- */

static int
compare_segments(const void *a, const void *b)
{
    mb_segno x = ((const struct candidate *)a)->segno;
    mb_segno y = ((const struct candidate *)b)->segno;

    return x < y ? -1 : x > y;
}

/* Exact scores of at most SCORE_BATCH segments, best in rising order; NaN where
 * there is no vector. Their records lie anywhere in the map: all are found and
 * asked for before the first is read. Errors: CORRUPT, IO (*at: whose). */
static mb_status
score_batch(const struct dense_target *t, struct kv_cursor *c,
    const float *vector, struct candidate *batch, size_t n, mb_segno *at)
{
    const size_t dim = t->record.dim;
    const uint8_t *values[SCORE_BATCH];

    for (size_t i = 0; i < n; i++) {
        mb_status st = embedding_find(
            c, t->coll, t->generation, batch[i].segno, dim, &values[i]);

        if (st == MB_ERR_NOT_FOUND) {
            values[i] = NULL;
        } else if (st != MB_OK) {
            *at = batch[i].segno;
            return st;
        }
        for (size_t b = 0; values[i] != NULL && b < 2 * dim; b += 64) {
            __builtin_prefetch(values[i] + b);
        }
    }
    for (size_t i = 0; i < n; i++) {
        batch[i].score = values[i] != NULL ? dense_kernels(t->cache)->dot_f16(
                                                 vector, values[i], dim)
                                           : NAN;
    }
    return MB_OK;
}

/* fp16 scores in place of int8 ones. In order of segments: neighbours in a
 * document are often close in meaning, and then lie on the same page. */
static mb_status
rescore(struct search *s, struct mb_error *err)
{
    struct kv_cursor *c;
    mb_status st = kv_cursor_open(s->t->txn, KV_EMBEDDINGS, &c);

    if (st != MB_OK) {
        return mb_error_set(err, st, "open vectors");
    }
    qsort(s->heap, s->n_heap, sizeof(*s->heap), compare_segments);
    for (size_t i = 0; st == MB_OK && i < s->n_heap; i += SCORE_BATCH) {
        size_t n = s->n_heap - i < SCORE_BATCH ? s->n_heap - i : SCORE_BATCH;
        mb_segno at = 0;

        st = score_batch(s->t, c, s->q->vector, s->heap + i, n, &at);
        for (size_t j = i; st == MB_OK && j < i + n; j++) {
            if (isnan(s->heap[j].score)) {
                at = s->heap[j].segno;
                st = MB_ERR_CORRUPT;
            }
        }
        if (st != MB_OK) {
            st = mb_error_set(err, st,
                "vector of segment %u is in a list but cannot be read", at);
        }
    }
    kv_cursor_close(c);
    return st;
}

/* Score each segment of the filter from its own record. */
static mb_status
search_direct(struct search *s, struct mb_error *err)
{
    const struct bitset *filter = s->q->filter;

    for (size_t w = 0; w < (filter->n_bits + 63) / 64; w++) {
        for (uint64_t word = filter->words[w]; word != 0; word &= word - 1) {
            mb_segno segno = (mb_segno)(w * 64 + (size_t)__builtin_ctzll(word));
            const uint8_t *values;
            uint32_t leaf;
            float score;
            mb_status st = embedding_get(s->t->txn, s->t->coll,
                s->t->generation, segno, s->dim, &leaf, &values);

            if (st == MB_ERR_NOT_FOUND) {
                continue; // has no vector
            }
            if (st != MB_OK) {
                return mb_error_set(err, st, "vector of segment %u", segno);
            }
            score = s->kernels->dot_f16(s->q->vector, values, s->dim);
            s->sums.sum += (double)score;
            s->sums.sum_squares += (double)score * (double)score;
            s->sums.n++;
            keep(s, segno, score);
        }
    }
    return MB_OK;
}

/* ---- one search ---- */

static mb_status
search_init(struct search *s, const struct dense_target *t,
    const struct dense_query *q, struct mb_arena *arena, struct mb_error *err)
{
    size_t rows = list_chunk_rows(q->dim);
    uint64_t most = q->k < t->n_vectors ? q->k : t->n_vectors;

    memset(s, 0, sizeof(*s));
    s->t = t;
    s->q = q;
    s->kernels = dense_kernels(t->cache);
    s->dim = q->dim;
    s->stride = scan_stride(q->dim);
    s->max_heap = is_exact(s) ? RESCORE((size_t)most) : (size_t)most;
    s->codes = mb_arena_alloc(arena, s->stride);
    s->heap = mb_arena_alloc(arena, s->max_heap * sizeof(*s->heap));
    s->dots = mb_arena_alloc(arena, rows * sizeof(*s->dots));
    s->scores = mb_arena_alloc(arena, rows * sizeof(*s->scores));
    s->rows = mb_arena_alloc(arena, (rows + 1) * sizeof(*s->rows));
    if (s->codes == NULL || s->heap == NULL || s->dots == NULL ||
        s->scores == NULL || s->rows == NULL) {
        return mb_error_set(err, MB_ERR_NOMEM, "dense search for %zu", q->k);
    }
    s->q_scale = scan_quantize(q->vector, q->dim, s->codes);
    return MB_OK;
}

/* Read lists, all or some; *weight is how many vectors the sums stand for. */
static mb_status
search_lists(struct search *s, double selectivity, struct mb_arena *arena,
    double *weight, struct mb_error *err)
{
    size_t n_leaves = s->t->record.n_leaves;
    struct reach reach = reach_of(s, selectivity);
    struct kv_cursor *c;
    mb_status st = kv_cursor_open(s->t->txn, KV_LISTS, &c);

    if (st != MB_OK) {
        return mb_error_set(err, st, "open lists");
    }
    if (n_leaves == 1 || reach.least >= n_leaves) {
        st = scan_lists(s, c, LIST_ALL_LEAVES, err);
        *weight = (double)s->sums.n;
    } else {
        st = probe(s, c, reach, (double)s->t->n_vectors * selectivity, arena,
            weight, err);
    }
    kv_cursor_close(c);
    return st == MB_OK && is_exact(s) ? rescore(s, err) : st;
}

mb_status
dense_search_in(const struct dense_target *t, const struct dense_query *q,
    struct mb_arena *arena, struct dense_result *out, struct mb_error *err)
{
    struct search s;
    double weight = 0;
    double selectivity = 1.0;
    mb_status st;

    memset(out, 0, sizeof(*out));
    if (q->dim != t->record.dim) {
        return mb_error_set(err, MB_ERR_MISMATCH,
            "vector of %zu dimensions, the collection has %u", q->dim,
            t->record.dim);
    }
    if (q->k == 0 || t->n_vectors == 0 ||
        (q->filter != NULL && q->filter->n_set == 0)) {
        return MB_OK;
    }
    st = search_init(&s, t, q, arena, err);
    if (st != MB_OK) {
        return st;
    }
    if (q->filter != NULL && (double)q->filter->n_set < (double)t->n_vectors) {
        selectivity = (double)q->filter->n_set / (double)t->n_vectors;
    }
    if (q->filter != NULL &&
        (double)q->filter->n_set * DIRECT_COST <= (double)t->n_vectors) {
        st = search_direct(&s, err);
        weight = (double)s.sums.n;
    } else {
        st = search_lists(&s, selectivity, arena, &weight, err);
    }
    if (st != MB_OK) {
        return st;
    }
    qsort(s.heap, s.n_heap, sizeof(*s.heap), compare_results);
    out->hits = s.heap;
    out->n = s.n_heap < q->k ? s.n_heap : q->k;
    out->n_scanned = s.sums.n;
    if (weight > 0) {
        double mean = s.sums.sum / weight;
        double variance = s.sums.sum_squares / weight - mean * mean;

        out->mean = (float)mean;
        out->deviation = variance > 0 ? (float)sqrt(variance) : 0.0f;
    }
    return MB_OK;
}

/* ---- what search.c calls ---- */

/* The served generation, ready to be searched. */
static mb_status
served_target(struct mb_snapshot *snap, const struct mb_collection *coll,
    struct dense_target *t, struct mb_error *err)
{
    *t = (struct dense_target){.txn = snap->txn,
        .cache = snap->dense,
        .coll = coll->id,
        .generation = coll->generation,
        .n_vectors = coll->n_vectors};
    return generation_read(
        snap->txn, coll->id, coll->generation, &t->record, err);
}

mb_status
dense_search(struct mb_snapshot *snap, const struct mb_collection *coll,
    const struct dense_query *q, struct mb_arena *arena,
    struct dense_result *out, struct mb_error *err)
{
    struct dense_target t;
    mb_status st;

    memset(out, 0, sizeof(*out));
    if (coll->generation == 0) {
        return MB_OK;
    }
    st = served_target(snap, coll, &t, err);
    return st == MB_OK ? dense_search_in(&t, q, arena, out, err) : st;
}

mb_status
dense_score(struct mb_snapshot *snap, const struct mb_collection *coll,
    const float *vector, size_t dim, const mb_segno *segnos, size_t n,
    float *scores, struct mb_error *err)
{
    struct dense_target t;
    struct kv_cursor *c;
    mb_status st;

    for (size_t i = 0; i < n; i++) {
        scores[i] = NAN;
    }
    if (coll->generation == 0 || n == 0) {
        return MB_OK;
    }
    st = served_target(snap, coll, &t, err);
    if (st != MB_OK) {
        return st;
    }
    if (dim != t.record.dim) {
        return mb_error_set(err, MB_ERR_MISMATCH,
            "vector of %zu dimensions, the collection has %u", dim,
            t.record.dim);
    }
    st = kv_cursor_open(snap->txn, KV_EMBEDDINGS, &c);
    if (st != MB_OK) {
        return mb_error_set(err, st, "open vectors");
    }
    for (size_t i = 0; st == MB_OK && i < n; i += SCORE_BATCH) {
        size_t n_batch = n - i < SCORE_BATCH ? n - i : SCORE_BATCH;
        struct candidate batch[SCORE_BATCH];
        mb_segno at = 0;

        for (size_t j = 0; j < n_batch; j++) {
            batch[j] = (struct candidate){segnos[i + j], NAN};
        }
        st = score_batch(&t, c, vector, batch, n_batch, &at);
        if (st != MB_OK) {
            st = mb_error_set(err, st, "vector of segment %u", at);
        }
        for (size_t j = 0; st == MB_OK && j < n_batch; j++) {
            scores[i + j] = batch[j].score;
        }
    }
    kv_cursor_close(c);
    return st;
}
