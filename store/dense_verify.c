/* SPDX-License-Identifier: Apache-2.0
 * store/dense_verify.c - checks the dense tables of a collection.
 *
 * Each record by itself (size, checksum), then one against another: the tree
 * holds together, every list row has an embedding that names its list, there
 * are as many rows as embeddings, no segment twice, every embedding has a live
 * segment, counters agree. Of a generation that is being purged only the
 * records by themselves.
 * Threads: as the snapshot. */
#include "dense.h"

#include <string.h>

/* One generation under test. */
struct dense_check {
    struct verify *v;
    const struct mb_collection *coll;
    uint32_t generation;
    struct generation g;
    bool whole; /* its tables must agree with one another */
    uint64_t n_embeddings;
    uint64_t n_rows;
    uint64_t *seen; /* bits by segment: met in a list */
    size_t n_bits;
};

/* Called for each row of a table whose key has the prefix. */
typedef mb_status (*row_fn)(
    struct dense_check *c, struct mb_slice key, struct mb_slice value);

static mb_status
walk(struct dense_check *c, enum kv_table table, row_fn fn)
{
    struct kv_cursor *cursor;
    struct kv_key prefix;
    struct mb_slice key;
    struct mb_slice value;
    mb_status st = kv_cursor_open(c->v->snap->txn, table, &cursor);

    if (st != MB_OK) {
        return st;
    }
    generation_key(&prefix, c->coll->id, c->generation);
    st = kv_cursor_seek(cursor, kv_key_slice(&prefix), &key, &value);
    while (st == MB_OK && kv_has_prefix(key, kv_key_slice(&prefix))) {
        c->v->result->n_records++;
        st = fn(c, key, value);
        if (st == MB_OK) {
            st = kv_cursor_next(cursor, &key, &value);
        }
    }
    kv_cursor_close(cursor);
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
}

/* The u32 at `index` behind collection and generation. */
static uint32_t
key_part(struct mb_slice key, size_t index)
{
    return mb_get_be32(key.data + 8 + 4 * index);
}

static mb_status
check_embedding(
    struct dense_check *c, struct mb_slice key, struct mb_slice value)
{
    struct mb_slice segment;
    struct kv_key segment_key;
    mb_status st;

    c->n_embeddings++;
    if (key.size != 12 || value.size != embedding_size(c->g.dim) ||
        !record_is_sound(value)) {
        verify_broken(
            c->v, KV_EMBEDDINGS, key, "damaged: %zu bytes", value.size);
        return MB_OK;
    }
    if (mb_get_le32(value.data) >= c->g.n_leaves) {
        verify_broken(c->v, KV_EMBEDDINGS, key, "leaf %u of %u",
            mb_get_le32(value.data), c->g.n_leaves);
    }
    if (!c->whole) {
        return MB_OK;
    }
    kv_key_init(&segment_key);
    kv_key_u32(&segment_key, c->coll->id);
    kv_key_u32(&segment_key, key_part(key, 0));
    st = kv_get(
        c->v->snap->txn, KV_SEGMENTS, kv_key_slice(&segment_key), &segment);
    if (st == MB_ERR_NOT_FOUND) {
        verify_broken(c->v, KV_EMBEDDINGS, key, "segment %u does not exist",
            key_part(key, 0));
        return MB_OK;
    }
    return st;
}

/* One row of a list against its embedding. */
static mb_status
check_row(struct dense_check *c, struct mb_slice key, mb_segno segno)
{
    const uint8_t *values;
    uint32_t leaf;
    mb_status st = embedding_get(c->v->snap->txn, c->coll->id, c->generation,
        segno, c->g.dim, &leaf, &values);

    if (st == MB_ERR_NOT_FOUND) {
        verify_broken(
            c->v, KV_LISTS, key, "segment %u has no embedding", segno);
    } else if (st == MB_OK && leaf != key_part(key, 0)) {
        verify_broken(
            c->v, KV_LISTS, key, "segment %u belongs to leaf %u", segno, leaf);
    } else if (st != MB_OK && st != MB_ERR_CORRUPT) {
        return st; // damage is reported by check_embedding
    }
    if (segno >= c->n_bits) {
        verify_broken(
            c->v, KV_LISTS, key, "segment %u was never given out", segno);
    } else if ((c->seen[segno / 64] >> (segno % 64) & 1u) != 0) {
        verify_broken(c->v, KV_LISTS, key, "segment %u is listed twice", segno);
    } else {
        c->seen[segno / 64] |= (uint64_t)1 << (segno % 64);
    }
    return MB_OK;
}

static mb_status
check_list(struct dense_check *c, struct mb_slice key, struct mb_slice value)
{
    struct list_chunk chunk;
    mb_status st = MB_OK;

    if (key.size != LIST_KEY_SIZE || !record_is_sound(value) ||
        list_chunk_view(value, c->g.dim, &chunk) != MB_OK) {
        verify_broken(c->v, KV_LISTS, key, "damaged: %zu bytes", value.size);
        return MB_OK;
    }
    c->n_rows += chunk.n;
    if (key_part(key, 0) >= c->g.n_leaves) {
        verify_broken(c->v, KV_LISTS, key, "leaf %u of %u", key_part(key, 0),
            c->g.n_leaves);
    }
    for (size_t i = 0; c->whole && st == MB_OK && i < chunk.n; i++) {
        st = check_row(c, key, list_segment(&chunk, i));
    }
    return st;
}

static mb_status
check_node(struct dense_check *c, struct mb_slice key, struct mb_slice value)
{
    struct tree_node node;

    if (key.size != 12 ||
        tree_record_decode(value, c->g.dim, &node, NULL) != MB_OK) {
        verify_broken(c->v, KV_NODES, key, "damaged: %zu bytes", value.size);
    }
    return MB_OK;
}

static mb_status
check_model(struct dense_check *c, struct mb_slice key, struct mb_slice value)
{
    if (key.size != 12 || !record_is_sound(value)) {
        verify_broken(c->v, KV_MODELS, key, "damaged: %zu bytes", value.size);
    }
    return MB_OK;
}

/* ---- a generation as a whole ---- */

static mb_status
check_tree(struct dense_check *c, struct mb_slice key)
{
    struct mb_error why = {0};
    struct mb_tree *tree;
    mb_status st = dense_tree_load(
        c->v->snap->txn, c->coll->id, c->generation, &c->g, &tree, &why);

    if (st == MB_OK) {
        mb_tree_free(tree);
    } else if (st == MB_ERR_CORRUPT) {
        verify_broken(c->v, KV_GENERATIONS, key, "%s", why.text);
        st = MB_OK;
    }
    return st;
}

static mb_status
check_embedding_bytes(
    struct dense_check *c, struct mb_slice key, struct mb_error *err)
{
    struct mb_arena *arena = mb_arena_new((size_t)4 << 30);
    struct mb_slice bytes;
    mb_status st;

    if (arena == NULL) {
        return mb_error_set(err, MB_ERR_NOMEM, "verify");
    }
    st = mb_generation_embedding(
        c->v->snap, c->coll, c->generation, arena, &bytes, NULL);
    if (st == MB_ERR_CORRUPT) {
        verify_broken(
            c->v, KV_GENERATIONS, key, "its embedding is not complete");
        st = MB_OK;
    }
    mb_arena_free(arena);
    return st;
}

static void
check_counts(struct dense_check *c, struct mb_slice key)
{
    uint64_t counted = c->generation == c->coll->generation ? c->coll->n_vectors
                                                            : c->g.n_vectors;

    if (c->n_rows != c->n_embeddings) {
        verify_broken(c->v, KV_GENERATIONS, key,
            "%llu rows in lists, %llu embeddings",
            (unsigned long long)c->n_rows, (unsigned long long)c->n_embeddings);
    }
    if (counted != c->n_embeddings) {
        verify_broken(c->v, KV_GENERATIONS, key,
            "%llu vectors by its record, %llu embeddings",
            (unsigned long long)counted, (unsigned long long)c->n_embeddings);
    }
}

static mb_status
check_generation(struct dense_check *c, struct mb_slice key,
    struct mb_slice value, struct mb_error *err)
{
    mb_status st;

    c->v->result->n_records++;
    if (key.size != 8 || generation_decode(value, &c->g) != MB_OK) {
        verify_broken(
            c->v, KV_GENERATIONS, key, "damaged: %zu bytes", value.size);
        return MB_OK;
    }
    c->whole = c->g.state == GENERATION_READY;
    c->n_bits = c->coll->next_segno;
    c->seen = mb_calloc(c->n_bits / 64 + 1, sizeof(*c->seen));
    if (c->seen == NULL) {
        return mb_error_set(err, MB_ERR_NOMEM, "verify");
    }
    st = walk(c, KV_EMBEDDINGS, check_embedding);
    if (st == MB_OK) {
        st = walk(c, KV_LISTS, check_list);
    }
    if (st == MB_OK) {
        st = walk(c, KV_NODES, check_node);
    }
    if (st == MB_OK) {
        st = walk(c, KV_MODELS, check_model);
    }
    if (st == MB_OK && c->whole) {
        check_counts(c, key);
        st = check_tree(c, key);
    }
    if (st == MB_OK && c->whole) {
        st = check_embedding_bytes(c, key, err);
    }
    mb_free(c->seen);
    return st;
}

mb_status
dense_verify(
    struct verify *v, const struct mb_collection *coll, struct mb_error *err)
{
    struct kv_cursor *cursor;
    struct kv_key prefix;
    struct mb_slice key;
    struct mb_slice value;
    bool has_served = coll->generation == 0;
    mb_status st = kv_cursor_open(v->snap->txn, KV_GENERATIONS, &cursor);

    if (st != MB_OK) {
        return mb_error_set(err, st, "open generations");
    }
    kv_key_init(&prefix);
    kv_key_u32(&prefix, coll->id);
    st = kv_cursor_seek(cursor, kv_key_slice(&prefix), &key, &value);
    while (st == MB_OK && kv_has_prefix(key, kv_key_slice(&prefix))) {
        struct dense_check c = {.v = v, .coll = coll};

        if (key.size == 8) {
            c.generation = mb_get_be32(key.data + 4);
            has_served = has_served || c.generation == coll->generation;
        }
        st = check_generation(&c, key, value, err);
        if (st == MB_OK) {
            st = kv_cursor_next(cursor, &key, &value);
        }
    }
    kv_cursor_close(cursor);
    if (st != MB_OK && st != MB_ERR_NOT_FOUND) {
        return mb_error_set(err, st, "verify generations");
    }
    if (!has_served) {
        verify_broken(v, KV_GENERATIONS, kv_key_slice(&prefix),
            "served generation %u has no record", coll->generation);
    }
    return MB_OK;
}
