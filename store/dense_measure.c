/* SPDX-License-Identifier: Apache-2.0
 * store/dense_measure.c - how many leaves a query must probe.
 *
 * Stored vectors serve as queries where vectors come from clients. Where text
 * is embedded, questions are short and lie between the clusters of what they
 * ask for: there a query is a stored vector with noise as long as NOISE times
 * itself, with which about as many leaves are needed as for real questions. The exact neighbours of each are found by
 * reading all lists once; the place of their leaves in the order in which a
 * search would probe says at which nprobe each would have been found. So one
 * pass gives the recall at every nprobe.
 * Threads: any, with its own snapshot. */
#include "dense.h"

#include <math.h>
#include <string.h>

#define NEIGHBOURS     10 /* recall@10 */
#define DEFAULT_TARGET 0.955
#define NOISE          2.5 /* as found on questions over 150,000 segments */
#define ARENA_BYTES    ((size_t)256 << 20)

/* One measurement. */
struct measure {
    struct dense_target t;
    struct dense_tree *tree;
    struct mb_arena *arena;
    float *query;      /* (dim) */
    float *leaf_score; /* (n_leaves) */
    uint64_t *found;   /* (n_leaves) neighbours whose leaf has this place */
    uint64_t n_found;
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

/* Place of a leaf in the order of probing. */
static uint32_t
place_of(const struct measure *m, uint32_t leaf)
{
    float score = m->leaf_score[leaf];
    uint32_t place = 0;

    for (uint32_t i = 0; i < m->t.record.n_leaves; i++) {
        place +=
            m->leaf_score[i] > score || (m->leaf_score[i] == score && i < leaf)
                ? 1
                : 0;
    }
    return place;
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
        m->found[place_of(m, leaf)]++;
        m->n_found++;
        counted++;
    }
    return MB_OK;
}

/* The smallest nprobe whose recall reaches the target. */
static void
choose(const struct measure *m, double target, uint32_t *nprobe, double *recall)
{
    uint64_t sum = 0;

    *nprobe = m->t.record.n_leaves;
    *recall = 1.0;
    for (uint32_t i = 0; i < m->t.record.n_leaves && m->n_found > 0; i++) {
        sum += m->found[i];
        if ((double)sum >= target * (double)m->n_found) {
            *nprobe = i + 1;
            *recall = (double)sum / (double)m->n_found;
            return;
        }
    }
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
measure_init(struct measure *m, struct mb_error *err)
{
    mb_status st = dense_cache_get(m->t.cache, m->t.txn, m->t.coll,
        m->t.generation, &m->t.record, &m->tree, err);

    if (st != MB_OK) {
        return st;
    }
    m->arena = mb_arena_new(ARENA_BYTES);
    m->query = mb_alloc(m->t.record.dim * sizeof(*m->query));
    m->leaf_score = mb_alloc(m->t.record.n_leaves * sizeof(*m->leaf_score));
    m->found = mb_calloc(m->t.record.n_leaves, sizeof(*m->found));
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
    double recall_target, uint64_t seed, uint32_t *nprobe, double *recall,
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
        *nprobe = 1;
        *recall = 1.0;
        return MB_OK;
    }
    m.t.n_vectors =
        generation == coll->generation ? coll->n_vectors : m.t.record.n_vectors;
    st = measure_init(&m, err);
    if (st == MB_OK) {
        st = measure_all(&m, coll->next_segno, n_queries, seed, err);
    }
    if (st == MB_OK) {
        choose(&m, target, nprobe, recall);
    }
    measure_fini(&m);
    return st;
}
