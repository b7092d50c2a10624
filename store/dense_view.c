/* SPDX-License-Identifier: Apache-2.0
 * store/dense_view.c - generations, nodes and vectors, for looking.
 *
 * What the dump tool shows and the daemon loads at start. Counts of nodes are
 * summed from the lists, so that nothing else has to be kept up to date.
 * Threads: any, each with its own snapshot. */
#include "dense.h"

#include <string.h>

mb_status
mb_generation_embedding(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t generation,
    struct mb_arena *arena, struct mb_slice *out, struct mb_error *err)
{
    struct generation g;
    uint8_t *bytes;
    mb_status st = generation_read(snap->txn, coll->id, generation, &g, err);

    if (st != MB_OK) {
        return st;
    }
    if (g.embedding_bytes == 0) {
        *out = mb_slice_of(NULL, 0);
        return MB_OK;
    }
    bytes = g.embedding_bytes > SIZE_MAX
                ? NULL
                : mb_arena_alloc(arena, (size_t)g.embedding_bytes);
    if (bytes == NULL) {
        return mb_error_set(err, MB_ERR_NOMEM, "embedding of %llu bytes",
            (unsigned long long)g.embedding_bytes);
    }
    for (size_t from = 0; from < g.embedding_bytes; from += MODEL_PIECE) {
        size_t n = (size_t)g.embedding_bytes - from;
        uint32_t piece = (uint32_t)(from / MODEL_PIECE);
        struct mb_slice value;
        struct kv_key key;

        n = n < MODEL_PIECE ? n : MODEL_PIECE;
        model_key(&key, coll->id, generation, piece);
        st = kv_get(snap->txn, KV_MODELS, kv_key_slice(&key), &value);
        if (st != MB_OK || value.size != n + RECORD_CHECKSUM ||
            !record_is_sound(value)) {
            return mb_error_set(err, MB_ERR_CORRUPT,
                "embedding of generation %u: piece %u missing or damaged",
                generation, piece);
        }
        memcpy(bytes + from, value.data, n);
    }
    *out = mb_slice_of(bytes, (size_t)g.embedding_bytes);
    return MB_OK;
}

mb_status
mb_vector_get(struct mb_snapshot *snap, const struct mb_collection *coll,
    mb_segno segno, float *out, struct mb_error *err)
{
    const uint8_t *values;
    struct generation g;
    uint32_t leaf;
    mb_status st;

    if (coll->generation == 0) {
        return mb_error_set(
            err, MB_ERR_NOT_FOUND, "collection %s has no vectors", coll->name);
    }
    st = generation_read(snap->txn, coll->id, coll->generation, &g, err);
    if (st != MB_OK) {
        return st;
    }
    st = embedding_get(
        snap->txn, coll->id, coll->generation, segno, g.dim, &leaf, &values);
    if (st != MB_OK) {
        return mb_error_set(err, st, "vector of segment %u", segno);
    }
    dense_kernels(snap->dense)->from_f16(values, g.dim, out);
    return MB_OK;
}

/* ---- the tree ---- */

mb_status
mb_generation_info_get(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t generation,
    struct mb_generation_info *out, struct mb_error *err)
{
    struct generation g;
    mb_status st = generation_read(snap->txn, coll->id, generation, &g, err);

    if (st != MB_OK) {
        return st;
    }
    *out = (struct mb_generation_info){.generation = generation,
        .dim = g.dim,
        .n_nodes = g.n_nodes,
        .n_leaves = g.n_leaves,
        .depth = g.depth,
        .probing = g.probing};
    return MB_OK;
}

/* Rows in lists [first, first + n) of a generation. */
static mb_status
count_rows(struct mb_snapshot *snap, const struct mb_collection *coll,
    uint32_t generation, size_t dim, uint32_t first, uint32_t n, uint64_t *rows)
{
    const struct list_id id = {coll->id, generation, first};
    struct kv_key all;
    struct kv_key from;
    struct mb_slice key;
    struct mb_slice value;
    struct kv_cursor *c;
    mb_status st = kv_cursor_open(snap->txn, KV_LISTS, &c);

    if (st != MB_OK) {
        return st;
    }
    *rows = 0;
    generation_key(&all, coll->id, generation);
    list_key_prefix(&from, &id);
    st = kv_cursor_seek(c, kv_key_slice(&from), &key, &value);
    while (st == MB_OK && kv_has_prefix(key, kv_key_slice(&all)) &&
           key.size == LIST_KEY_SIZE &&
           mb_get_be32(key.data + all.size) - first < n) {
        struct list_chunk chunk;

        st = list_chunk_view(value, dim, &chunk);
        if (st == MB_OK) {
            *rows += chunk.n;
            st = kv_cursor_next(c, &key, &value);
        }
    }
    kv_cursor_close(c);
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
}

mb_status
mb_node_get(struct mb_snapshot *snap, const struct mb_collection *coll,
    uint32_t generation, uint32_t node, struct mb_node *out,
    struct mb_error *err)
{
    struct generation g;
    struct tree_node n;
    struct kv_key key;
    struct mb_slice value;
    uint64_t rows = 0;
    mb_status st = generation_read(snap->txn, coll->id, generation, &g, err);

    if (st != MB_OK) {
        return st;
    }
    generation_key(&key, coll->id, generation);
    kv_key_u32(&key, node);
    st = kv_get(snap->txn, KV_NODES, kv_key_slice(&key), &value);
    if (st == MB_OK) {
        st = tree_record_decode(value, g.dim, &n, NULL);
    }
    if (st == MB_OK) {
        st = count_rows(
            snap, coll, generation, g.dim, n.first_leaf, n.n_leaves, &rows);
    }
    if (st != MB_OK) {
        return mb_error_set(
            err, st, "node %u of generation %u", node, generation);
    }
    *out = (struct mb_node){.node = node,
        .parent = n.parent,
        .level = n.level,
        .first_child = n.first_child,
        .n_children = n.n_children,
        .leaf = n.first_leaf,
        .n_vectors = rows};
    return MB_OK;
}

mb_status
mb_leaf_segments(struct mb_snapshot *snap, const struct mb_collection *coll,
    uint32_t generation, uint32_t leaf, size_t max, mb_segno *out, size_t *n,
    struct mb_error *err)
{
    const struct list_id id = {coll->id, generation, leaf};
    struct generation g;
    struct kv_key prefix;
    struct mb_slice key;
    struct mb_slice value;
    struct kv_cursor *c;
    size_t found = 0;
    mb_status st = generation_read(snap->txn, coll->id, generation, &g, err);

    if (st != MB_OK) {
        return st;
    }
    if (leaf >= g.n_leaves) {
        return mb_error_set(err, MB_ERR_NOT_FOUND,
            "leaf %u of generation %u, which has %u", leaf, generation,
            g.n_leaves);
    }
    st = kv_cursor_open(snap->txn, KV_LISTS, &c);
    if (st != MB_OK) {
        return mb_error_set(err, st, "open lists");
    }
    list_key_prefix(&prefix, &id);
    st = kv_cursor_seek(c, kv_key_slice(&prefix), &key, &value);
    while (st == MB_OK && found < max &&
           kv_has_prefix(key, kv_key_slice(&prefix))) {
        struct list_chunk chunk;

        st = list_chunk_view(value, g.dim, &chunk);
        for (size_t i = 0; st == MB_OK && i < chunk.n && found < max; i++) {
            out[found++] = list_segment(&chunk, i);
        }
        if (st == MB_OK) {
            st = kv_cursor_next(c, &key, &value);
        }
    }
    kv_cursor_close(c);
    if (st != MB_OK && st != MB_ERR_NOT_FOUND) {
        return mb_error_set(
            err, st, "leaf %u of generation %u", leaf, generation);
    }
    *n = found;
    return MB_OK;
}
