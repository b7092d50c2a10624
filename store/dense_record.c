/* SPDX-License-Identifier: Apache-2.0
 * store/dense_record.c - records and keys of the dense tables.
 *
 * Bytes: FORMAT.md, generations, embeddings, models. A generation record is
 * read at every search, so that nothing about it is cached but its tree.
 * Threads: as the transaction. */
#include "dense.h"

#include <math.h>
#include <string.h>

#define GENERATION_VERSION 1
#define GENERATION_SIZE    (56 + RECORD_CHECKSUM)
#define GAP_STEP           1e-4 /* gaps are whole numbers of these */

void
generation_key(struct kv_key *key, mb_collection_id coll, uint32_t generation)
{
    kv_key_init(key);
    kv_key_u32(key, coll);
    kv_key_u32(key, generation);
}

void
embedding_key(struct kv_key *key, mb_collection_id coll, uint32_t generation,
    mb_segno segno)
{
    generation_key(key, coll, generation);
    kv_key_u32(key, segno);
}

void
model_key(struct kv_key *key, mb_collection_id coll, uint32_t generation,
    uint32_t piece)
{
    generation_key(key, coll, generation);
    kv_key_u32(key, piece);
}

/* ---- generations ---- */

/* Numbers as bytes: a double by its IEEE bits. */
static uint64_t
bits_of(double v)
{
    uint64_t bits;

    memcpy(&bits, &v, sizeof(bits));
    return bits;
}

static double
double_of(uint64_t bits)
{
    double v;

    memcpy(&v, &bits, sizeof(v));
    return v;
}

/* Rounded up: a gap that was measured is not lost. Cosines differ by 2. */
static uint16_t
gap_steps(float gap)
{
    return (uint16_t)ceil((double)gap / GAP_STEP);
}

mb_status
generation_decode(struct mb_slice record, struct generation *out)
{
    const uint8_t *p = record.data;

    if (record.size != GENERATION_SIZE || !record_is_sound(record) ||
        p[0] != GENERATION_VERSION || p[1] > GENERATION_PURGING) {
        return MB_ERR_CORRUPT;
    }
    out->state = (enum generation_state)p[1];
    out->dim = mb_get_le32(p + 4);
    out->n_nodes = mb_get_le32(p + 8);
    out->n_leaves = mb_get_le32(p + 12);
    out->depth = mb_get_le32(p + 16);
    out->probing.gap = (float)(mb_get_le16(p + 2) * GAP_STEP);
    out->probing.nprobe = mb_get_le32(p + 20);
    out->probing.recall = double_of(mb_get_le64(p + 24));
    out->n_vectors = mb_get_le64(p + 32);
    out->embedding_bytes = mb_get_le64(p + 40);
    out->tree_hash = mb_get_le64(p + 48);
    if (out->dim > MB_MAX_DIM || out->n_nodes > TREE_MAX_NODES ||
        out->n_leaves > out->n_nodes ||
        (out->state == GENERATION_READY &&
            (out->dim == 0 || out->n_leaves == 0))) {
        return MB_ERR_CORRUPT;
    }
    return MB_OK;
}

mb_status
generation_read(struct kv_txn *txn, mb_collection_id coll, uint32_t generation,
    struct generation *out, struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice value;
    mb_status st;

    generation_key(&key, coll, generation);
    st = kv_get(txn, KV_GENERATIONS, kv_key_slice(&key), &value);
    if (st == MB_OK) {
        st = generation_decode(value, out);
    }
    if (st != MB_OK) {
        return mb_error_set(err, st, "generation %u: %s", generation,
            st == MB_ERR_CORRUPT ? "damaged record" : mb_status_text(st));
    }
    return MB_OK;
}

mb_status
generation_write(struct kv_txn *txn, mb_collection_id coll, uint32_t generation,
    const struct generation *g)
{
    uint8_t p[GENERATION_SIZE] = {GENERATION_VERSION, (uint8_t)g->state};
    struct kv_key key;

    mb_put_le16(p + 2, gap_steps(g->probing.gap));
    mb_put_le32(p + 4, g->dim);
    mb_put_le32(p + 8, g->n_nodes);
    mb_put_le32(p + 12, g->n_leaves);
    mb_put_le32(p + 16, g->depth);
    mb_put_le32(p + 20, g->probing.nprobe);
    mb_put_le64(p + 24, bits_of(g->probing.recall));
    mb_put_le64(p + 32, g->n_vectors);
    mb_put_le64(p + 40, g->embedding_bytes);
    mb_put_le64(p + 48, g->tree_hash);
    record_seal(p, sizeof(p));
    generation_key(&key, coll, generation);
    return kv_put(
        txn, KV_GENERATIONS, kv_key_slice(&key), mb_slice_of(p, sizeof(p)));
}

mb_status
generation_list(struct kv_txn *txn, mb_collection_id coll, size_t max,
    uint32_t *out, size_t *n)
{
    struct kv_cursor *c;
    struct kv_key prefix;
    struct mb_slice key;
    size_t found = 0;
    mb_status st = kv_cursor_open(txn, KV_GENERATIONS, &c);

    if (st != MB_OK) {
        return st;
    }
    kv_key_init(&prefix);
    kv_key_u32(&prefix, coll);
    st = kv_cursor_seek(c, kv_key_slice(&prefix), &key, NULL);
    while (st == MB_OK && found < max &&
           kv_has_prefix(key, kv_key_slice(&prefix))) {
        if (key.size != prefix.size + 4u) {
            st = MB_ERR_CORRUPT;
            break;
        }
        out[found++] = mb_get_be32(key.data + prefix.size);
        st = kv_cursor_next(c, &key, NULL);
    }
    kv_cursor_close(c);
    if (st != MB_OK && st != MB_ERR_NOT_FOUND) {
        return st;
    }
    *n = found;
    return MB_OK;
}

/* ---- embeddings ---- */

static mb_status
embedding_view(
    struct mb_slice value, size_t dim, uint32_t *leaf, const uint8_t **values)
{
    if (value.size != embedding_size(dim)) {
        return MB_ERR_CORRUPT;
    }
    *leaf = mb_get_le32(value.data);
    *values = value.data + EMBEDDING_HEAD;
    return MB_OK;
}

mb_status
embedding_get(struct kv_txn *txn, mb_collection_id coll, uint32_t generation,
    mb_segno segno, size_t dim, uint32_t *leaf, const uint8_t **values)
{
    struct kv_key key;
    struct mb_slice value;
    mb_status st;

    embedding_key(&key, coll, generation, segno);
    st = kv_get(txn, KV_EMBEDDINGS, kv_key_slice(&key), &value);
    if (st != MB_OK) {
        return st;
    }
    return embedding_view(value, dim, leaf, values);
}

mb_status
embedding_find(struct kv_cursor *c, mb_collection_id coll, uint32_t generation,
    mb_segno segno, size_t dim, const uint8_t **values)
{
    struct kv_key key;
    struct mb_slice value;
    uint32_t leaf;
    mb_status st;

    embedding_key(&key, coll, generation, segno);
    st = kv_cursor_find(c, kv_key_slice(&key), &value);
    if (st != MB_OK) {
        return st;
    }
    return embedding_view(value, dim, &leaf, values);
}
