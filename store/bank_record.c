/* SPDX-License-Identifier: Apache-2.0
 * store/bank_record.c - keys and bytes of the rows of memory banks.
 *
 * FORMAT.md has the offsets. Every row ends with a checksum; that of a block is
 * looked at by verify alone, since a fetch must not read what it attaches.
 * Threads: any; in the write transaction the writer. */
#include <string.h>

#include "bank.h"

/* ---- keys ---- */

void
bank_prefix(struct kv_key *key, mb_collection_id coll, uint32_t bank)
{
    kv_key_init(key);
    kv_key_u32(key, coll);
    kv_key_u32(key, bank);
}

void
bank_key(struct kv_key *key, mb_collection_id coll, uint32_t bank,
    unsigned kind, uint32_t number)
{
    bank_prefix(key, coll, bank);
    kv_key_u8(key, (uint8_t)kind);
    kv_key_u32(key, number);
}

/* ---- rows ---- */

mb_status
bank_row_get(struct kv_txn *txn, enum kv_table table, mb_collection_id coll,
    uint32_t bank, unsigned kind, uint32_t number, struct mb_slice *out)
{
    struct kv_key key;
    struct mb_slice row;
    mb_status st;

    bank_key(&key, coll, bank, kind, number);
    st = kv_get(txn, table, kv_key_slice(&key), &row);
    if (st != MB_OK)
        return st;
    if (!record_is_sound(row))
        return MB_ERR_CORRUPT;
    *out = mb_slice_of(row.data, row.size - RECORD_CHECKSUM);
    return MB_OK;
}

mb_status
bank_head_read(struct kv_txn *txn, mb_collection_id coll, struct bank_head *out)
{
    struct kv_key key;
    struct mb_slice row;
    mb_status st;

    bank_prefix(&key, coll, 0);
    st = kv_get(txn, KV_BANKS, kv_key_slice(&key), &row);
    if (st == MB_ERR_NOT_FOUND) {
        *out = (struct bank_head){.active = 0, .next = 1};
        return MB_OK;
    }
    if (st != MB_OK)
        return st;
    if (row.size != BANK_HEAD_SIZE || !record_is_sound(row))
        return MB_ERR_CORRUPT;
    out->active = mb_get_le32(row.data);
    out->next = mb_get_le32(row.data + 4);
    return out->active < out->next ? MB_OK : MB_ERR_CORRUPT;
}

mb_status
bank_head_write(
    struct kv_txn *txn, mb_collection_id coll, const struct bank_head *head)
{
    struct kv_key key;
    uint8_t row[BANK_HEAD_SIZE];

    bank_prefix(&key, coll, 0);
    mb_put_le32(row, head->active);
    mb_put_le32(row + 4, head->next);
    record_seal(row, sizeof row);
    return kv_put(
        txn, KV_BANKS, kv_key_slice(&key), mb_slice_of(row, sizeof row));
}

/* ---- the bank ---- */

#define BANK_VERSION     1
#define BANK_IS_DISABLED 1u

void
bank_record_encode(const struct mb_banks *b, uint8_t out[BANK_RECORD_SIZE])
{
    memset(out, 0, BANK_RECORD_SIZE);
    out[0] = BANK_VERSION;
    out[1] = b->is_disabled ? BANK_IS_DISABLED : 0;
    out[2] = (uint8_t)b->embedding;
    out[3] = (uint8_t)b->served_type;
    mb_put_le32(out + 4, b->bank);
    mb_put_le32(out + 8, b->dim);
    mb_put_le32(out + 12, b->n_nodes);
    mb_put_le32(out + 16, b->n_leaves);
    mb_put_le32(out + 20, b->n_levels);
    mb_put_le32(out + 24, b->fan_out);
    mb_put_le32(out + 28, b->epochs);
    mb_put_le32(out + 32, b->window);
    mb_put_le32(out + 36, b->hold_out);
    mb_put_le64(out + 40, b->created_ms);
    mb_put_le64(out + 48, b->fitted_segments);
    mb_put_le64(out + 56, b->embedding_bytes);
    mb_put_le64(out + 64, b->seed);
    memcpy(out + 72, b->anchor, 16);
    mb_put_le32(out + 88, b->d_model);
    mb_put_le32(out + 92, b->first_layer);
    mb_put_le32(out + 96, b->n_layers);
    for (size_t i = 0; i < MB_BANKS_MAX_LEVELS; i++) {
        mb_put_le32(out + 100 + 4 * i, b->rows[i]);
    }
    memcpy(out + 132, b->model, strnlen(b->model, MB_BANKS_MAX_MODEL));
    record_seal(out, BANK_RECORD_SIZE);
}

mb_status
bank_decode(struct mb_slice row, struct mb_banks *out)
{
    const uint8_t *p = row.data;

    if (row.size != BANK_RECORD_SIZE || !record_is_sound(row) ||
        p[0] != BANK_VERSION || p[2] > MB_EMBED_ANCHOR)
        return MB_ERR_CORRUPT;
    *out = (struct mb_banks){
        .is_disabled = (p[1] & BANK_IS_DISABLED) != 0,
        .embedding = (mb_embedding_kind)p[2],
        .served_type = p[3],
        .bank = mb_get_le32(p + 4),
        .dim = mb_get_le32(p + 8),
        .n_nodes = mb_get_le32(p + 12),
        .n_leaves = mb_get_le32(p + 16),
        .n_levels = mb_get_le32(p + 20),
        .fan_out = mb_get_le32(p + 24),
        .epochs = mb_get_le32(p + 28),
        .window = mb_get_le32(p + 32),
        .hold_out = mb_get_le32(p + 36),
        .created_ms = mb_get_le64(p + 40),
        .fitted_segments = mb_get_le64(p + 48),
        .embedding_bytes = mb_get_le64(p + 56),
        .seed = mb_get_le64(p + 64),
        .d_model = mb_get_le32(p + 88),
        .first_layer = mb_get_le32(p + 92),
        .n_layers = mb_get_le32(p + 96),
    };
    memcpy(out->anchor, p + 72, 16);
    for (size_t i = 0; i < MB_BANKS_MAX_LEVELS; i++) {
        out->rows[i] = mb_get_le32(p + 100 + 4 * i);
    }
    memcpy(out->model, p + 132, MB_BANKS_MAX_MODEL);
    if (out->dim == 0 || out->dim > MB_MAX_DIM || out->n_nodes < 2 ||
        out->n_nodes > BANK_MAX_NODES || out->n_levels == 0 ||
        out->n_levels > MB_BANKS_MAX_LEVELS ||
        out->embedding_bytes > BANK_MAX_EMBEDDING)
        return MB_ERR_CORRUPT;
    return MB_OK;
}

/* ---- nodes ---- */

#define NODE_IS_DISABLED 1u
#define NODE_HAS_GAINED  2u

static void
put_f64(uint8_t *p, double v)
{
    uint64_t bits;

    memcpy(&bits, &v, sizeof bits);
    mb_put_le64(p, bits);
}

static double
get_f64(const uint8_t *p)
{
    uint64_t bits = mb_get_le64(p);
    double v;

    memcpy(&v, &bits, sizeof v);
    return v;
}

size_t
bank_node_encode(const struct mb_banks_node *n, uint8_t out[BANK_NODE_MAX])
{
    size_t size = strnlen(n->terms, MB_BANKS_MAX_TERMS);

    out[0] = (uint8_t)n->state;
    out[1] = (uint8_t)((n->is_disabled ? NODE_IS_DISABLED : 0) |
                       (n->has_gained ? NODE_HAS_GAINED : 0));
    out[2] = (uint8_t)n->level;
    out[3] = 0;
    mb_put_le32(out + 4, n->node);
    mb_put_le64(out + 8, n->version);
    mb_put_le64(out + 16, n->n_segments);
    mb_put_le64(out + 24, n->n_documents);
    mb_put_le64(out + 32, n->n_tokens);
    mb_put_le64(out + 40, n->n_held_out);
    put_f64(out + 48, n->before);
    put_f64(out + 56, n->without);
    put_f64(out + 64, n->with);
    put_f64(out + 72, n->after);
    mb_put_le64(out + 80, n->trained_ms);
    mb_put_le64(out + 88, n->job);
    mb_put_le64(out + 96, n->block_bytes);
    mb_put_le64(out + 104, n->used_ms);
    mb_put_le16(out + 112, (uint16_t)size);
    memcpy(out + BANK_NODE_FIXED, n->terms, size);
    record_seal(out, BANK_NODE_FIXED + size + RECORD_CHECKSUM);
    return BANK_NODE_FIXED + size + RECORD_CHECKSUM;
}

mb_status
bank_node_decode(struct mb_slice row, struct mb_banks_node *out)
{
    const uint8_t *p = row.data;
    size_t size;

    if (row.size < BANK_NODE_FIXED + RECORD_CHECKSUM || !record_is_sound(row))
        return MB_ERR_CORRUPT;
    size = mb_get_le16(p + 112);
    if (size > MB_BANKS_MAX_TERMS ||
        row.size != BANK_NODE_FIXED + size + RECORD_CHECKSUM ||
        p[0] > MB_BANKS_STALE || p[2] > MB_BANKS_MAX_LEVELS)
        return MB_ERR_CORRUPT;
    *out = (struct mb_banks_node){
        .state = (mb_banks_state)p[0],
        .is_disabled = (p[1] & NODE_IS_DISABLED) != 0,
        .has_gained = (p[1] & NODE_HAS_GAINED) != 0,
        .level = p[2],
        .node = mb_get_le32(p + 4),
        .version = mb_get_le64(p + 8),
        .n_segments = mb_get_le64(p + 16),
        .n_documents = mb_get_le64(p + 24),
        .n_tokens = mb_get_le64(p + 32),
        .n_held_out = mb_get_le64(p + 40),
        .before = get_f64(p + 48),
        .without = get_f64(p + 56),
        .with = get_f64(p + 64),
        .after = get_f64(p + 72),
        .trained_ms = mb_get_le64(p + 80),
        .job = mb_get_le64(p + 88),
        .block_bytes = mb_get_le64(p + 96),
        .used_ms = mb_get_le64(p + 104),
    };
    memcpy(out->terms, p + BANK_NODE_FIXED, size);
    return MB_OK;
}

mb_status
bank_node_read(struct kv_txn *txn, mb_collection_id coll, uint32_t bank,
    uint32_t node, struct mb_banks_node *out)
{
    struct kv_key key;
    struct mb_slice row;
    mb_status st;

    bank_key(&key, coll, bank, BANK_ROW_NODE, node);
    st = kv_get(txn, KV_BANKS, kv_key_slice(&key), &row);
    if (st == MB_OK)
        st = bank_node_decode(row, out);
    return st == MB_OK && out->node != node ? MB_ERR_CORRUPT : st;
}

mb_status
bank_node_write(struct kv_txn *txn, mb_collection_id coll, uint32_t bank,
    const struct mb_banks_node *node)
{
    uint8_t row[BANK_NODE_MAX];
    size_t size = bank_node_encode(node, row);
    struct kv_key key;

    bank_key(&key, coll, bank, BANK_ROW_NODE, node->node);
    return kv_put(txn, KV_BANKS, kv_key_slice(&key), mb_slice_of(row, size));
}

/* ---- runs ---- */

#define RUN_IS_PURGE    1u
#define RUN_IS_TRAINING 2u
#define RUN_IS_GENERIC  4u
#define RUN_IS_PAUSED   8u

void
bank_run_encode(const struct mb_banks_run *run, uint8_t out[BANK_RUN_SIZE])
{
    memset(out, 0, BANK_RUN_SIZE);
    out[0] = (uint8_t)((run->is_purge ? RUN_IS_PURGE : 0) |
                       (run->is_training ? RUN_IS_TRAINING : 0) |
                       (run->is_generic ? RUN_IS_GENERIC : 0) |
                       (run->is_paused ? RUN_IS_PAUSED : 0));
    mb_put_le32(out + 4, run->purges);
    mb_put_le64(out + 8, run->asked);
    mb_put_le64(out + 16, run->ms);
    mb_put_le64(out + 24, run->tokens);
    record_seal(out, BANK_RUN_SIZE);
}

mb_status
bank_run_decode(struct mb_slice row, struct mb_banks_run *out)
{
    const uint8_t *p = row.data;

    if (row.size != BANK_RUN_SIZE || !record_is_sound(row))
        return MB_ERR_CORRUPT;
    *out = (struct mb_banks_run){
        .is_purge = (p[0] & RUN_IS_PURGE) != 0,
        .is_training = (p[0] & RUN_IS_TRAINING) != 0,
        .is_generic = (p[0] & RUN_IS_GENERIC) != 0,
        .is_paused = (p[0] & RUN_IS_PAUSED) != 0,
        .purges = mb_get_le32(p + 4),
        .asked = mb_get_le64(p + 8),
        .ms = mb_get_le64(p + 16),
        .tokens = mb_get_le64(p + 24),
    };
    return MB_OK;
}
