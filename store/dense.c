/* SPDX-License-Identifier: Apache-2.0
 * store/dense.c - vectors in and out of generations.
 *
 * A put adds to the served generation only: the job that builds another one
 * catches up in order of segments. A delete takes the segment out of every
 * generation there is, so that no copy of a user's vector outlives it.
 * Invariant: a segment's row is in the list of the leaf that its embedding
 * record names. Threads: the writer. */
#include "dense.h"

#include <math.h>
#include <string.h>

#define MAX_GENERATIONS                                                        \
    16 /* of one collection, leftovers of crashes included */

/* ---- adding ---- */

/* Unit length into out; false if v is all zeros or not finite. */
static bool
unit_vector(const float *v, size_t dim, float *out)
{
    double sum = 0;
    float inverse;

    for (size_t d = 0; d < dim; d++) {
        sum += (double)v[d] * (double)v[d];
    }
    if (!(sum > 0) || !isfinite(sum)) {
        return false;
    }
    inverse = (float)(1.0 / sqrt(sum));
    for (size_t d = 0; d < dim; d++) {
        out[d] = v[d] * inverse;
    }
    return true;
}

mb_status
dense_embedding_put(struct wtxn *w, const struct dense_place *place,
    mb_segno segno, uint32_t leaf, const float *unit)
{
    size_t size = embedding_size(place->dim);
    struct kv_key key;
    uint8_t *p;
    mb_status st;

    embedding_key(&key, place->coll, place->generation, segno);
    st = kv_reserve(w->txn, KV_EMBEDDINGS, kv_key_slice(&key), size, &p);
    if (st != MB_OK) {
        return st;
    }
    mb_put_le32(p, leaf);
    dense_kernels(w->dense)->to_f16(unit, place->dim, p + EMBEDDING_HEAD);
    record_seal(p, size);
    return MB_OK;
}

/* Leaf of a vector in a generation. */
static mb_status
route(struct wtxn *w, const struct dense_place *place,
    const struct generation *g, const float *unit, uint32_t *leaf,
    struct mb_error *err)
{
    struct dense_tree *tree;
    mb_status st;

    *leaf = 0;
    if (g->n_leaves <= 1) {
        return MB_OK;
    }
    st = dense_cache_get(
        w->dense, w->txn, place->coll, place->generation, g, &tree, err);
    if (st == MB_OK) {
        *leaf = tree_route_one(tree->tree, dense_kernels(w->dense), unit);
        dense_cache_put(w->dense, tree);
    }
    return st;
}

/* One vector into embeddings and lists. */
static mb_status
add_unit(struct wtxn *w, const struct dense_place *place, mb_segno segno,
    uint32_t leaf, const float *unit, struct mb_error *err)
{
    int8_t codes[MB_MAX_DIM];
    float scale = scan_quantize(unit, place->dim, codes);
    const struct list_id list = {place->coll, place->generation, leaf};
    const struct list_rows rows = {
        .n = 1, .codes = codes, .scales = &scale, .segments = &segno};
    mb_status st = dense_embedding_put(w, place, segno, leaf, unit);

    if (st != MB_OK) {
        return mb_error_set(err, st, "vector of segment %u", segno);
    }
    return list_append(w->txn, &list, place->dim, &rows, err);
}

mb_status
dense_add(struct wtxn *w, struct wcoll *wc, mb_segno segno, const float *vector,
    size_t dim, struct mb_error *err)
{
    const struct dense_place place = {wc->c.id, wc->c.generation, dim};
    struct generation g;
    float unit[MB_MAX_DIM];
    uint32_t leaf;
    mb_status st;

    if (wc->c.generation == 0) {
        return mb_error_set(
            err, MB_ERR_STALE, "collection %s has no vectors yet", wc->c.name);
    }
    st = generation_read(w->txn, wc->c.id, wc->c.generation, &g, err);
    if (st != MB_OK) {
        return st;
    }
    if (dim != g.dim) {
        return mb_error_set(err, MB_ERR_MISMATCH,
            "vector of %zu dimensions, collection %s has %u", dim, wc->c.name,
            g.dim);
    }
    if (!unit_vector(vector, dim, unit)) {
        return MB_OK;
    }
    st = route(w, &place, &g, unit, &leaf, err);
    if (st != MB_OK) {
        return st;
    }
    w->changed = true;
    st = add_unit(w, &place, segno, leaf, unit, err);
    if (st == MB_OK) {
        wc->c.n_vectors++;
        wc->dirty = true;
    }
    return st;
}

mb_status
dense_create_flat(
    struct wtxn *w, struct wcoll *wc, size_t dim, struct mb_error *err)
{
    struct generation g = {.state = GENERATION_READY,
        .dim = (uint32_t)dim,
        .n_nodes = 1,
        .n_leaves = 1,
        .probing = {.nprobe = 1, .recall = 1.0}};
    struct mb_tree *tree;
    mb_status st;

    if (dim == 0 || dim > MB_MAX_DIM) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "%zu dimensions are not within 1 to %d", dim, MB_MAX_DIM);
    }
    st = tree_flat_new(dim, &tree);
    if (st != MB_OK) {
        return mb_error_set(err, st, "flat list of %zu dimensions", dim);
    }
    w->changed = true;
    st = dense_tree_store(w->txn, wc->c.id, 1, tree, &g.tree_hash);
    if (st == MB_OK) {
        st = generation_write(w->txn, wc->c.id, 1, &g);
    }
    mb_tree_free(tree);
    if (st != MB_OK) {
        return mb_error_set(err, st, "flat list of %zu dimensions", dim);
    }
    wc->c.generation = 1;
    wc->c.next_generation = 2;
    wc->c.dim = (uint32_t)dim;
    wc->c.n_vectors = 0;
    wc->dirty = true;
    return MB_OK;
}

/* ---- removing ---- */

/* Out of one generation; *removed says whether it was there. */
static mb_status
remove_from(struct wtxn *w, mb_collection_id coll, uint32_t generation,
    const struct generation *g, mb_segno segno, bool *removed,
    struct mb_error *err)
{
    struct list_id list = {coll, generation, 0};
    const uint8_t *values;
    struct kv_key key;
    mb_status st;

    *removed = false;
    st = embedding_get(
        w->txn, coll, generation, segno, g->dim, &list.leaf, &values);
    if (st == MB_ERR_NOT_FOUND) {
        return MB_OK;
    }
    if (st != MB_OK) {
        return mb_error_set(err, st, "vector of segment %u", segno);
    }
    w->changed = true;
    w->erased = true;
    embedding_key(&key, coll, generation, segno);
    st = kv_del(w->txn, KV_EMBEDDINGS, kv_key_slice(&key));
    if (st != MB_OK) {
        return mb_error_set(err, st, "erase vector of segment %u", segno);
    }
    *removed = true;
    st = list_remove(w->txn, &list, g->dim, segno, err);
    if (st == MB_ERR_NOT_FOUND) {
        // Its list is being purged, or is damaged: a delete must go through.
        if (g->state != GENERATION_PURGING) {
            mb_log(MB_LOG_WARN, "store.list_row_missing",
                "collection=%u generation=%u segment=%u", coll, generation,
                segno);
        }
        return MB_OK;
    }
    return st;
}

mb_status
dense_remove(
    struct wtxn *w, struct wcoll *wc, mb_segno segno, struct mb_error *err)
{
    uint32_t generations[MAX_GENERATIONS];
    size_t n;
    mb_status st =
        generation_list(w->txn, wc->c.id, MAX_GENERATIONS, generations, &n);

    if (st != MB_OK) {
        return mb_error_set(err, st, "generations of %s", wc->c.name);
    }
    for (size_t i = 0; i < n; i++) {
        struct generation g;
        bool removed;

        st = generation_read(w->txn, wc->c.id, generations[i], &g, err);
        if (st == MB_OK && g.dim > 0) {
            st = remove_from(
                w, wc->c.id, generations[i], &g, segno, &removed, err);
        } else {
            removed = false;
        }
        if (st != MB_OK) {
            return st;
        }
        if (!removed) {
            continue;
        }
        if (generations[i] == wc->c.generation) {
            wc->c.n_vectors -= wc->c.n_vectors > 0 ? 1 : 0;
            wc->dirty = true;
        } else {
            g.n_vectors -= g.n_vectors > 0 ? 1 : 0;
            st = generation_write(w->txn, wc->c.id, generations[i], &g);
            if (st != MB_OK) {
                return mb_error_set(err, st, "generation %u", generations[i]);
            }
        }
    }
    return MB_OK;
}

/* ---- adding many ---- */

/* Vectors of one batch while they are sorted: rows point into it. */
struct batch {
    size_t n;
    uint32_t *order;    /* (n) rows in order of (leaf, segment) or segment */
    int8_t *codes;      /* (n, stride), in the order of lists */
    float *scales;      /* (n) */
    mb_segno *segments; /* (n) */
    uint32_t *leaf;     /* (n), by row of the input */
};

static mb_status
batch_init(struct batch *b, size_t n, size_t dim)
{
    memset(b, 0, sizeof(*b));
    b->n = n;
    b->order = mb_alloc(n * sizeof(*b->order));
    b->codes = mb_alloc(n * scan_stride(dim));
    b->scales = mb_alloc(n * sizeof(*b->scales));
    b->segments = mb_alloc(n * sizeof(*b->segments));
    b->leaf = mb_alloc(n * sizeof(*b->leaf));
    return b->order == NULL || b->codes == NULL || b->scales == NULL ||
                   b->segments == NULL || b->leaf == NULL
               ? MB_ERR_NOMEM
               : MB_OK;
}

static void
batch_fini(struct batch *b)
{
    mb_free(b->leaf);
    mb_free(b->segments);
    mb_free(b->scales);
    mb_free(b->codes);
    mb_free(b->order);
}

/* Sort order[0..n) by key of row, ties by position: a merge sort, bottom up. */
static mb_status
sort_rows(uint32_t *order, size_t n, const uint32_t *key)
{
    uint32_t *from = order;
    uint32_t *spare = mb_alloc((n > 0 ? n : 1) * sizeof(*spare));
    uint32_t *to = spare;

    if (spare == NULL) {
        return MB_ERR_NOMEM;
    }
    for (size_t width = 1; width < n; width *= 2) {
        uint32_t *swap;

        for (size_t begin = 0; begin < n; begin += 2 * width) {
            size_t middle = begin + width < n ? begin + width : n;
            size_t end = begin + 2 * width < n ? begin + 2 * width : n;
            size_t a = begin;
            size_t b = middle;

            for (size_t i = begin; i < end; i++) {
                bool left =
                    a < middle && (b >= end || key[from[a]] <= key[from[b]]);

                to[i] = left ? from[a++] : from[b++];
            }
        }
        swap = from;
        from = to;
        to = swap;
    }
    if (from != order) {
        memcpy(order, from, n * sizeof(*order));
    }
    mb_free(spare);
    return MB_OK;
}

/* Write the embeddings of new, live segments in order of segment: they go to
 * the end of the table. Leaves only those rows in order. */
static mb_status
put_embeddings(struct wtxn *w, const struct dense_place *place,
    const mb_segno *segnos, const float *vectors, struct batch *b,
    struct mb_error *err)
{
    size_t n = 0;

    for (size_t i = 0; i < b->n; i++) {
        uint32_t row = b->order[i];
        float unit[MB_MAX_DIM];
        const uint8_t *values;
        struct mb_slice value;
        struct kv_key key;
        uint32_t leaf;
        mb_status st;

        kv_key_init(&key);
        kv_key_u32(&key, place->coll);
        kv_key_u32(&key, segnos[row]);
        st = kv_get(w->txn, KV_SEGMENTS, kv_key_slice(&key), &value);
        if (st == MB_ERR_NOT_FOUND) {
            continue; // deleted meanwhile
        }
        if (st == MB_OK) {
            st = embedding_get(w->txn, place->coll, place->generation,
                segnos[row], place->dim, &leaf, &values);
        }
        if (st == MB_OK ||
            (st == MB_ERR_NOT_FOUND &&
                !unit_vector(vectors + row * place->dim, place->dim, unit))) {
            continue; // there already, or no vector
        }
        if (st == MB_ERR_NOT_FOUND) {
            st = dense_embedding_put(w, place, segnos[row], b->leaf[row], unit);
        }
        if (st != MB_OK) {
            return mb_error_set(err, st, "vector of segment %u", segnos[row]);
        }
        b->order[n++] = row;
    }
    b->n = n;
    return MB_OK;
}

/* Append the rows kept to their lists, each list once. */
static mb_status
put_lists(struct wtxn *w, const struct dense_place *place,
    const mb_segno *segnos, const float *vectors, struct batch *b,
    struct mb_error *err)
{
    size_t stride = scan_stride(place->dim);
    mb_status st = sort_rows(b->order, b->n, b->leaf);

    if (st != MB_OK) {
        return mb_error_set(err, st, "add %zu vectors", b->n);
    }
    for (size_t i = 0; i < b->n; i++) {
        uint32_t row = b->order[i];
        float unit[MB_MAX_DIM];

        (void)unit_vector(vectors + row * place->dim, place->dim, unit);
        b->scales[i] = scan_quantize(unit, place->dim, b->codes + i * stride);
        b->segments[i] = segnos[row];
    }
    for (size_t from = 0; st == MB_OK && from < b->n;) {
        struct list_id list = {
            place->coll, place->generation, b->leaf[b->order[from]]};
        size_t to = from + 1;

        while (to < b->n && b->leaf[b->order[to]] == list.leaf) {
            to++;
        }
        st = list_append(w->txn, &list, place->dim,
            &(struct list_rows){.n = to - from,
                .codes = b->codes + from * stride,
                .scales = b->scales + from,
                .segments = b->segments + from},
            err);
        from = to;
    }
    return st;
}

mb_status
dense_add_many(struct wtxn *w, const struct dense_place *place,
    const mb_segno *segnos, const float *vectors, const uint32_t *leaf,
    size_t n, uint64_t *n_added, struct mb_error *err)
{
    struct batch b;
    mb_status st;

    *n_added = 0;
    if (n == 0) {
        return MB_OK;
    }
    st = batch_init(&b, n, place->dim);
    if (st == MB_OK) {
        memcpy(b.leaf, leaf, n * sizeof(*b.leaf));
        for (size_t i = 0; i < n; i++) {
            b.order[i] = (uint32_t)i;
        }
        st = sort_rows(b.order, n, segnos);
    }
    if (st != MB_OK) {
        (void)mb_error_set(err, st, "add %zu vectors", n);
        goto out;
    }
    w->changed = true;
    st = put_embeddings(w, place, segnos, vectors, &b, err);
    if (st == MB_OK) {
        st = put_lists(w, place, segnos, vectors, &b, err);
    }
    if (st == MB_OK) {
        *n_added = b.n;
    }
out:
    batch_fini(&b);
    return st;
}
