/* SPDX-License-Identifier: Apache-2.0
 * store/dense_measure.c - how far a query must look among the leaves.
 *
 * Stored vectors serve as queries where vectors come from clients. Where text
 * is embedded, questions are short and lie between the clusters of what they
 * ask for: there a query is a stored vector with noise as long as NOISE times
 * itself, with which about as many leaves are needed as for real questions.
 * The exact neighbours of each are found by reading all lists once. Of the leaf
 * of each neighbour is noted: its place in the order in which a search would
 * probe, and its gap, how much less similar than the nearest its centroid is.
 *
 * Most queries need few leaves, some need many. The gap tells them apart: a
 * query near one centroid alone is done after a few, one between many has many
 * within the gap. So nprobe is twice what all queries would have to read if
 * each read as many, and the gap the least that then reaches the target, though
 * a quarter of nprobe is read in any case. On 100,000 vectors of 256 the mean
 * stays the same, but half of the queries read half as many.
 * Threads: any, with its own snapshot. */
#include "dense.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NEIGHBOURS     10 /* recall@10 */
#define DEFAULT_TARGET 0.955
#define NOISE          2.5 /* as found on questions over 150,000 segments */
#define GAP_SLACK      1e-4f
#define ARENA_BYTES    ((size_t)256 << 20)

/* Where a neighbour lies. */
struct finding {
    uint32_t place; /* of its leaf in the order of probing */
    float gap;
};

/* One measurement. */
struct measure {
    struct dense_target t;
    struct dense_tree *tree;
    struct mb_arena *arena;
    float *query;      /* (dim) */
    float *leaf_score; /* (n_leaves) */
    struct finding *found;
    size_t n_found;
};

/* A stored vector at or above a segment number. */
static mb_status
read_from(const struct measure *m, struct kv_cursor *c, mb_segno from,
    mb_segno *segno, float *out)
{
    struct kv_key prefix;
    struct kv_key key;
    struct mb_slice found;
    struct mb_slice value;
    mb_status st;

    generation_key(&prefix, m->t.coll, m->t.generation);
    embedding_key(&key, m->t.coll, m->t.generation, from);
    st = kv_cursor_seek(c, kv_key_slice(&key), &found, &value);
    if (st == MB_OK && !kv_has_prefix(found, kv_key_slice(&prefix))) {
        st = MB_ERR_NOT_FOUND;
    }
    if (st != MB_OK) {
        return st;
    }
    if (value.size != embedding_size(m->t.record.dim)) {
        return MB_ERR_CORRUPT;
    }
    *segno = mb_get_be32(found.data + prefix.size);
    dense_kernels(m->t.cache)
        ->from_f16(value.data + EMBEDDING_HEAD, m->t.record.dim, out);
    return MB_OK;
}

/* A stored vector drawn at random. NOT_FOUND: there is none at all. */
static mb_status
draw_vector(const struct measure *m, struct kv_cursor *c, struct mb_rng *rng,
    mb_segno next_segno, mb_segno *segno, float *out)
{
    mb_segno from = (mb_segno)mb_rng_below(rng, (uint64_t)next_segno + 1);
    mb_status st = read_from(m, c, from, segno, out);

    return st == MB_ERR_NOT_FOUND ? read_from(m, c, 0, segno, out) : st;
}

/* A query as this generation will meet them; *segno: what it is made of, and
 * not counted as found. */
static mb_status
draw_query(struct measure *m, struct kv_cursor *c, struct mb_rng *rng,
    mb_segno next_segno, mb_segno *segno)
{
    double part = NOISE / sqrt((double)m->t.record.dim);
    double sum = 0;
    mb_status st = draw_vector(m, c, rng, next_segno, segno, m->query);

    if (st != MB_OK || m->t.record.embedding_bytes == 0) {
        return st;
    }
    for (size_t d = 0; d < m->t.record.dim; d++) {
        m->query[d] += (float)(part * mb_rng_normal(rng));
        sum += (double)m->query[d] * (double)m->query[d];
    }
    for (size_t d = 0; sum > 0 && d < m->t.record.dim; d++) {
        m->query[d] = (float)((double)m->query[d] / sqrt(sum));
    }
    return MB_OK;
}

/* Where a leaf stands in the order of probing. */
static struct finding
standing(const struct measure *m, uint32_t leaf)
{
    float score = m->leaf_score[leaf];
    float best = score;
    struct finding f = {0};

    for (uint32_t i = 0; i < m->t.record.n_leaves; i++) {
        best = m->leaf_score[i] > best ? m->leaf_score[i] : best;
        f.place +=
            m->leaf_score[i] > score || (m->leaf_score[i] == score && i < leaf)
                ? 1
                : 0;
    }
    f.gap = best - score;
    return f;
}

static mb_status
measure_one(struct measure *m, mb_segno segno, struct mb_error *err)
{
    const struct dense_query q = {.vector = m->query,
        .dim = m->t.record.dim,
        .k = NEIGHBOURS + 1,
        .exact = true};
    struct dense_result result;
    size_t counted = 0;
    mb_status st;

    mb_arena_reset(m->arena);
    st = dense_search_in(&m->t, &q, m->arena, &result, err);
    if (st != MB_OK) {
        return st;
    }
    dense_kernels(m->t.cache)
        ->dot_f32(m->query, m->tree->tree->leaf_centroids, m->t.record.n_leaves,
            m->t.record.dim, m->leaf_score);
    for (size_t i = 0; i < result.n && counted < NEIGHBOURS; i++) {
        const uint8_t *values;
        uint32_t leaf;

        if (result.hits[i].segno == segno) {
            continue; // a query always finds itself
        }
        st = embedding_get(m->t.txn, m->t.coll, m->t.generation,
            result.hits[i].segno, m->t.record.dim, &leaf, &values);
        if (st != MB_OK || leaf >= m->t.record.n_leaves) {
            return mb_error_set(err, MB_ERR_CORRUPT, "vector of segment %u",
                result.hits[i].segno);
        }
        m->found[m->n_found++] = standing(m, leaf);
        counted++;
    }
    return MB_OK;
}

static int
compare_places(const void *a, const void *b)
{
    const struct finding *x = a, *y = b;

    return x->place < y->place ? -1 : x->place > y->place;
}

static int
compare_gaps(const void *a, const void *b)
{
    const struct finding *x = a, *y = b;

    return x->gap < y->gap ? -1 : x->gap > y->gap;
}

/* The least nprobe and gap whose recall reaches the target. */
static void
choose(struct measure *m, double target, struct mb_probing *out)
{
    size_t n = m->n_found;
    size_t needed = (size_t)ceil(target * (double)n);
    size_t within = 0;
    uint32_t most;

    *out = (struct mb_probing){.nprobe = m->t.record.n_leaves, .recall = 1.0};
    if (n == 0 || needed == 0 || needed > n) {
        return;
    }
    qsort(m->found, n, sizeof(*m->found), compare_places);
    most = DENSE_MOST_PROBED * (m->found[needed - 1].place + 1);
    if (most < out->nprobe) {
        out->nprobe = most;
    }
    for (size_t i = 0; i < n && m->found[i].place < out->nprobe; i++) {
        if (m->found[i].place < dense_least_leaves(out)) {
            m->found[i].gap = 0;
        }
        within++;
    }
    qsort(m->found, within, sizeof(*m->found), compare_gaps);
    // Some more than measured: of 0 it would be no end at all.
    out->gap = m->found[needed - 1].gap + GAP_SLACK;
    while (needed < within && m->found[needed].gap <= out->gap) {
        needed++;
    }
    out->recall = (double)needed / (double)n;
}

static mb_status
measure_all(struct measure *m, mb_segno next_segno, size_t n_queries,
    uint64_t seed, struct mb_error *err)
{
    struct mb_rng rng;
    struct kv_cursor *c;
    mb_status st = kv_cursor_open(m->t.txn, KV_EMBEDDINGS, &c);

    if (st != MB_OK) {
        return mb_error_set(err, st, "open embeddings");
    }
    mb_rng_init(&rng, seed);
    for (size_t i = 0; st == MB_OK && i < n_queries; i++) {
        mb_segno segno;

        st = draw_query(m, c, &rng, next_segno, &segno);
        if (st == MB_ERR_NOT_FOUND) {
            st = MB_OK; // no vectors at all
            break;
        }
        if (st != MB_OK) {
            (void)mb_error_set(err, st, "draw a query");
            break;
        }
        st = measure_one(m, segno, err);
    }
    kv_cursor_close(c);
    return st;
}

static mb_status
measure_init(struct measure *m, size_t n_queries, struct mb_error *err)
{
    mb_status st = dense_cache_get(m->t.cache, m->t.txn, m->t.coll,
        m->t.generation, &m->t.record, &m->tree, err);

    if (st != MB_OK) {
        return st;
    }
    m->arena = mb_arena_new(ARENA_BYTES);
    m->query = mb_alloc(m->t.record.dim * sizeof(*m->query));
    m->leaf_score = mb_alloc(m->t.record.n_leaves * sizeof(*m->leaf_score));
    m->found = mb_calloc(n_queries * NEIGHBOURS + 1, sizeof(*m->found));
    if (m->arena == NULL || m->query == NULL || m->leaf_score == NULL ||
        m->found == NULL) {
        return mb_error_set(err, MB_ERR_NOMEM, "measure recall");
    }
    return MB_OK;
}

static void
measure_fini(struct measure *m)
{
    mb_free(m->found);
    mb_free(m->leaf_score);
    mb_free(m->query);
    mb_arena_free(m->arena);
    dense_cache_put(m->t.cache, m->tree);
}

mb_status
mb_generation_measure(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t generation, size_t n_queries,
    double recall_target, uint64_t seed, struct mb_probing *out,
    struct mb_error *err)
{
    struct measure m;
    double target = recall_target > 0 ? recall_target : DEFAULT_TARGET;
    mb_status st;

    memset(&m, 0, sizeof(m));
    m.t = (struct dense_target){.txn = snap->txn,
        .cache = snap->dense,
        .coll = coll->id,
        .generation = generation};
    st = generation_read(snap->txn, coll->id, generation, &m.t.record, err);
    if (st != MB_OK) {
        return st;
    }
    if (m.t.record.state != GENERATION_READY) {
        return mb_error_set(
            err, MB_ERR_NOT_FOUND, "generation %u has no tree", generation);
    }
    if (m.t.record.n_leaves == 1) {
        *out = (struct mb_probing){.nprobe = 1, .recall = 1.0};
        return MB_OK;
    }
    m.t.n_vectors =
        generation == coll->generation ? coll->n_vectors : m.t.record.n_vectors;
    st = measure_init(&m, n_queries, err);
    if (st == MB_OK) {
        st = measure_all(&m, coll->next_segno, n_queries, seed, err);
    }
    if (st == MB_OK) {
        choose(&m, target, out);
    }
    measure_fini(&m);
    return st;
}
