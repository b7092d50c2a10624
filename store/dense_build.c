/* SPDX-License-Identifier: Apache-2.0
 * store/dense_build.c - the steps of a rebuild, inside a write transaction.
 *
 * begin takes a number, model stores embedding and tree, add fills the lists,
 * tune stores what was measured, switch serves it, purge erases one that is
 * not served. Each checks the state it needs before it writes, so that a job
 * which was overtaken (by a drop, a restart, another job) gets STALE.
 * Threads: the writer. */
#include "dense.h"

#include <string.h>

/* ---- begin and model ---- */

mb_status
dense_generation_begin(struct wtxn *w, struct wcoll *wc, uint32_t *generation,
    struct mb_error *err)
{
    const struct generation g = {
        .state = GENERATION_BEGUN, .probing = {.recall = 1.0}};
    uint32_t number = wc->c.next_generation > 0 ? wc->c.next_generation : 1;
    mb_status st;

    if (wc->c.building != 0) {
        return mb_error_set(err, MB_ERR_BUSY,
            "generation %u of collection %s is being built", wc->c.building,
            wc->c.name);
    }
    w->changed = true;
    st = generation_write(w->txn, wc->c.id, number, &g);
    if (st != MB_OK) {
        return mb_error_set(err, st, "begin generation %u", number);
    }
    wc->c.building = number;
    wc->c.next_generation = number + 1;
    wc->dirty = true;
    *generation = number;
    return MB_OK;
}

/* STALE unless it is the one being built, in that state. */
static mb_status
check_building(struct wtxn *w, const struct wcoll *wc, uint32_t generation,
    enum generation_state state, struct generation *g, struct mb_error *err)
{
    mb_status st;

    if (generation == 0 || wc->c.building != generation) {
        return mb_error_set(err, MB_ERR_STALE,
            "generation %u of collection %s is not being built", generation,
            wc->c.name);
    }
    st = generation_read(w->txn, wc->c.id, generation, g, err);
    if (st == MB_OK && g->state != state) {
        return mb_error_set(err, MB_ERR_STALE,
            "generation %u of collection %s %s a tree", generation, wc->c.name,
            g->state == GENERATION_BEGUN ? "has not got" : "already has");
    }
    return st;
}

static mb_status
put_embedding_bytes(struct wtxn *w, mb_collection_id coll, uint32_t generation,
    struct mb_slice bytes)
{
    for (size_t from = 0; from < bytes.size; from += MODEL_PIECE) {
        size_t n = bytes.size - from;
        struct kv_key key;
        uint8_t *p;
        mb_status st;

        n = n < MODEL_PIECE ? n : MODEL_PIECE;
        model_key(&key, coll, generation, (uint32_t)(from / MODEL_PIECE));
        st = kv_reserve(
            w->txn, KV_MODELS, kv_key_slice(&key), n + RECORD_CHECKSUM, &p);
        if (st != MB_OK) {
            return st;
        }
        memcpy(p, bytes.data + from, n);
        record_seal(p, n + RECORD_CHECKSUM);
    }
    return MB_OK;
}

/* Tree, embedding bytes and record of a generation. */
static mb_status
put_model(struct wtxn *w, mb_collection_id coll, uint32_t generation,
    struct mb_slice embedding, const struct mb_tree *tree, struct generation *g)
{
    mb_status st;

    g->state = GENERATION_READY;
    g->dim = (uint32_t)tree->dim;
    g->n_nodes = tree->n_nodes;
    g->n_leaves = tree->n_leaves;
    g->depth = tree->depth;
    g->embedding_bytes = embedding.size;
    // Until it is tuned: all leaves of a small tree, a share of a large one.
    g->probing.nprobe =
        tree->n_leaves <= 16 ? tree->n_leaves : 8 + tree->n_leaves / 16;
    st = dense_tree_store(w->txn, coll, generation, tree, &g->tree_hash);
    if (st == MB_OK) {
        st = put_embedding_bytes(w, coll, generation, embedding);
    }
    if (st == MB_OK) {
        st = generation_write(w->txn, coll, generation, g);
    }
    return st;
}

mb_status
dense_generation_model(struct wtxn *w, struct wcoll *wc, uint32_t generation,
    size_t dim, struct mb_slice embedding, const struct mb_tree *tree,
    struct mb_error *err)
{
    struct mb_tree *flat = NULL;
    struct generation g;
    mb_status st;

    if (dim == 0 || dim > MB_MAX_DIM || (tree != NULL && tree->dim != dim)) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "generation of %zu dimensions, tree of %zu", dim,
            tree != NULL ? tree->dim : 0);
    }
    st = check_building(w, wc, generation, GENERATION_BEGUN, &g, err);
    if (st != MB_OK) {
        return st;
    }
    if (tree == NULL) {
        st = tree_flat_new(dim, &flat);
        tree = flat;
    }
    if (st == MB_OK) {
        w->changed = true;
        st = put_model(w, wc->c.id, generation, embedding, tree, &g);
    }
    mb_tree_free(flat);
    if (st != MB_OK) {
        return mb_error_set(
            err, st, "store the tree of generation %u", generation);
    }
    return MB_OK;
}

/* ---- add, tune, switch ---- */

static mb_status
check_leaves(const struct generation *g, const uint32_t *leaf, size_t n,
    struct mb_error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (leaf[i] >= g->n_leaves) {
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "leaf %u of a tree of %u leaves", leaf[i], g->n_leaves);
        }
    }
    return MB_OK;
}

/* Leaves of n vectors by the stored tree. */
static mb_status
route_many(struct wtxn *w, const struct dense_place *place,
    const struct generation *g, const float *vectors, size_t n, uint32_t *leaf,
    struct mb_error *err)
{
    struct dense_tree *tree;
    mb_status st;

    if (g->n_leaves == 1) {
        memset(leaf, 0, n * sizeof(*leaf));
        return MB_OK;
    }
    st = dense_cache_get(
        w->dense, w->txn, place->coll, place->generation, g, &tree, err);
    if (st == MB_OK) {
        mb_tree_route(tree->tree, vectors, n, leaf);
        dense_cache_put(w->dense, tree);
    }
    return st;
}

mb_status
dense_generation_add(struct wtxn *w, struct wcoll *wc, uint32_t generation,
    size_t dim, const mb_segno *segnos, const float *vectors,
    const uint32_t *leaf, size_t n, struct mb_error *err)
{
    const struct dense_place place = {wc->c.id, generation, dim};
    uint32_t *routed = NULL;
    struct generation g;
    uint64_t added = 0;
    bool is_served = generation != 0 && generation == wc->c.generation;
    mb_status st =
        is_served
            ? generation_read(w->txn, wc->c.id, generation, &g, err)
            : check_building(w, wc, generation, GENERATION_READY, &g, err);

    if (st != MB_OK || n == 0) {
        return st;
    }
    if (dim != g.dim) {
        return mb_error_set(err, MB_ERR_MISMATCH,
            "vectors of %zu dimensions, generation %u has %u", dim, generation,
            g.dim);
    }
    if (leaf == NULL) {
        routed = mb_alloc(n * sizeof(*routed));
        st = routed == NULL
                 ? mb_error_set(err, MB_ERR_NOMEM, "route %zu vectors", n)
                 : route_many(w, &place, &g, vectors, n, routed, err);
        leaf = routed;
    } else {
        st = check_leaves(&g, leaf, n, err);
    }
    if (st == MB_OK) {
        st = dense_add_many(w, &place, segnos, vectors, leaf, n, &added, err);
    }
    mb_free(routed);
    if (st != MB_OK) {
        return st;
    }
    if (is_served) {
        wc->c.n_vectors += added;
        wc->dirty = true;
        return MB_OK;
    }
    g.n_vectors += added;
    st = generation_write(w->txn, wc->c.id, generation, &g);
    return st == MB_OK ? MB_OK
                       : mb_error_set(err, st, "generation %u", generation);
}

mb_status
dense_generation_tune(struct wtxn *w, struct wcoll *wc, uint32_t generation,
    const struct mb_probing *probing, struct mb_error *err)
{
    struct generation g;
    mb_status st;

    if (generation != wc->c.building && generation != wc->c.generation) {
        return mb_error_set(err, MB_ERR_STALE,
            "generation %u of collection %s is neither built nor served",
            generation, wc->c.name);
    }
    st = generation_read(w->txn, wc->c.id, generation, &g, err);
    if (st != MB_OK) {
        return st;
    }
    if (probing->nprobe == 0 || probing->nprobe > g.n_leaves ||
        !(probing->gap >= 0 && probing->gap <= 2) ||
        !(probing->recall >= 0 && probing->recall <= 1)) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "nprobe %u of %u leaves, gap %g, recall %g", probing->nprobe,
            g.n_leaves, (double)probing->gap, probing->recall);
    }
    g.probing = *probing;
    w->changed = true;
    st = generation_write(w->txn, wc->c.id, generation, &g);
    return st == MB_OK ? MB_OK
                       : mb_error_set(err, st, "generation %u", generation);
}

/* Is there a live segment numbered `from` or above? */
static mb_status
has_segments_from(struct wtxn *w, const struct wcoll *wc, mb_segno from,
    bool *has, struct mb_error *err)
{
    struct kv_cursor *c;
    struct kv_key prefix;
    struct kv_key key;
    struct mb_slice found;
    mb_status st = kv_cursor_open(w->txn, KV_SEGMENTS, &c);

    if (st == MB_OK) {
        kv_key_init(&prefix);
        kv_key_u32(&prefix, wc->c.id);
        key = prefix;
        kv_key_u32(&key, from);
        st = kv_cursor_seek(c, kv_key_slice(&key), &found, NULL);
        *has = st == MB_OK && kv_has_prefix(found, kv_key_slice(&prefix));
        kv_cursor_close(c);
    }
    if (st != MB_OK && st != MB_ERR_NOT_FOUND) {
        return mb_error_set(err, st, "look for segments from %u on", from);
    }
    return MB_OK;
}

/* What is no longer served waits for its purge. Its record says so at once:
 * vectors that came while it was served are counted in the collection alone,
 * so that its own count is not that of its rows any more. A damaged record, or
 * none, must not keep the rest from going. */
static mb_status
mark_purging(struct wtxn *w, const struct wcoll *wc, uint32_t generation)
{
    struct generation g;
    mb_status st = generation_read(w->txn, wc->c.id, generation, &g, NULL);

    if (st == MB_OK && g.state != GENERATION_PURGING) {
        g.state = GENERATION_PURGING;
        st = generation_write(w->txn, wc->c.id, generation, &g);
    }
    return st == MB_ERR_NOT_FOUND || st == MB_ERR_CORRUPT ? MB_OK : st;
}

mb_status
dense_generation_switch(struct wtxn *w, struct wcoll *wc, uint32_t generation,
    mb_segno complete_to, uint64_t fitted_segments, struct mb_error *err)
{
    struct generation g;
    bool has_more;
    mb_status st = check_building(w, wc, generation, GENERATION_READY, &g, err);

    if (st == MB_OK) {
        st = has_segments_from(w, wc, complete_to, &has_more, err);
    }
    if (st != MB_OK) {
        return st;
    }
    if (has_more) {
        return mb_error_set(err, MB_ERR_STALE,
            "generation %u lacks segments from %u on", generation, complete_to);
    }
    w->changed = true;
    if (wc->c.generation != 0) {
        st = mark_purging(w, wc, wc->c.generation);
    }
    if (st != MB_OK) {
        return mb_error_set(err, st, "generation %u", wc->c.generation);
    }
    wc->c.generation = generation;
    wc->c.building = 0;
    wc->c.dim = g.dim;
    wc->c.fitted_segments = fitted_segments;
    wc->c.n_vectors = g.n_vectors;
    wc->dirty = true;
    return MB_OK;
}

/* ---- purge ---- */

/* Erase at most *left rows of all tables of a generation; *left falls. */
static mb_status
erase_rows(
    struct wtxn *w, mb_collection_id coll, uint32_t generation, size_t *left)
{
    static const enum kv_table tables[] = {
        KV_EMBEDDINGS, KV_LISTS, KV_NODES, KV_MODELS};
    struct kv_key prefix;

    generation_key(&prefix, coll, generation);
    for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]) && *left > 0;
         i++) {
        size_t n = 0;
        mb_status st =
            kv_del_prefix(w->txn, tables[i], kv_key_slice(&prefix), *left, &n);

        if (st != MB_OK) {
            return st;
        }
        *left -= n;
    }
    return MB_OK;
}

/* One slice of one generation; *done when nothing is left of it. */
static mb_status
purge_one(struct wtxn *w, struct wcoll *wc, uint32_t generation, size_t *left,
    bool *done)
{
    struct kv_key key;
    mb_status st = mark_purging(w, wc, generation);

    if (st == MB_OK) {
        st = erase_rows(w, wc->c.id, generation, left);
    }
    if (st != MB_OK || *left == 0) {
        *done = false;
        return st;
    }
    generation_key(&key, wc->c.id, generation);
    st = kv_del(w->txn, KV_GENERATIONS, kv_key_slice(&key));
    dense_cache_drop(w->dense, wc->c.id, generation);
    *done = st == MB_OK || st == MB_ERR_NOT_FOUND;
    return *done ? MB_OK : st;
}

/* Another generation that is neither served nor being built: a crash between
 * switch and purge left it. 0 if there is none. */
static mb_status
find_leftover(struct wtxn *w, const struct wcoll *wc, uint32_t *out)
{
    enum { MAX = 16 };

    uint32_t numbers[MAX];
    size_t n;
    mb_status st = generation_list(w->txn, wc->c.id, MAX, numbers, &n);

    *out = 0;
    for (size_t i = 0; st == MB_OK && i < n; i++) {
        if (numbers[i] != wc->c.generation && numbers[i] != wc->c.building) {
            *out = numbers[i];
            break;
        }
    }
    return st;
}

mb_status
dense_generation_purge(struct wtxn *w, struct wcoll *wc, uint32_t generation,
    size_t max, bool *done, struct mb_error *err)
{
    size_t left = max;
    mb_status st = MB_OK;

    if (generation == wc->c.generation && generation != 0) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "generation %u of collection %s is served", generation, wc->c.name);
    }
    w->changed = true;
    if (generation != 0 && generation == wc->c.building) {
        wc->c.building = 0;
        wc->dirty = true;
    }
    *done = false;
    while (st == MB_OK && left > 0) {
        bool one_done = true;

        if (generation != 0) {
            st = purge_one(w, wc, generation, &left, &one_done);
        }
        if (st != MB_OK || !one_done) {
            break;
        }
        st = find_leftover(w, wc, &generation);
        if (st == MB_OK && generation == 0) {
            *done = true;
            break;
        }
    }
    return st == MB_OK
               ? MB_OK
               : mb_error_set(err, st, "purge generation %u of collection %s",
                     generation, wc->c.name);
}
