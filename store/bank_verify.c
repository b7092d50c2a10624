/* SPDX-License-Identifier: Apache-2.0
 * store/bank_verify.c - verify: the rows of memory banks.
 *
 * Each row by itself, then the collection's bank as a whole: its tree, a record
 * for each node, blocks of the size that the records say, segments that are
 * there and belong to a leaf. Rows of other banks wait to be erased: only their
 * checksums are looked at.
 * Threads: as the snapshot's. */
#include "bank.h"
#include "verify.h"

struct bank_check {
    struct verify *v;
    const struct mb_collection *coll;
    struct bank_head head;
    struct mb_banks bank;
    struct mb_tree *tree; /* NULL: damaged, or none */
    uint32_t n_nodes;     /* records seen */
};

static void
check_node(struct bank_check *c, struct mb_slice key, struct mb_slice val)
{
    uint32_t number = mb_get_be32(key.data + 9);
    struct mb_banks_node node;

    if (bank_node_decode(val, &node) != MB_OK || node.node != number) {
        verify_broken(c->v, KV_BANKS, key, "damaged: %zu bytes", val.size);
        return;
    }
    if (number == MB_BANKS_GENERIC)
        return;
    c->n_nodes++;
    if (c->tree != NULL && (number == 0 || number >= c->tree->n_nodes ||
                               node.level != c->tree->nodes[number].level))
        verify_broken(
            c->v, KV_BANKS, key, "node %u is not in the tree", number);
}

static mb_status
check_segment(struct bank_check *c, struct mb_slice key, struct mb_slice val)
{
    mb_segno segno = mb_get_be32(key.data + 9);
    uint32_t node = val.size >= 4 ? mb_get_le32(val.data) : 0;
    struct mb_segment seg;
    mb_status st;

    if (val.size != BANK_SEGMENT_SIZE || !record_is_sound(val)) {
        verify_broken(c->v, KV_BANKS, key, "damaged: %zu bytes", val.size);
        return MB_OK;
    }
    if (c->tree != NULL && (node == 0 || node >= c->tree->n_nodes ||
                               c->tree->nodes[node].n_children != 0))
        verify_broken(c->v, KV_BANKS, key, "node %u is no leaf", node);
    st = mb_segment_get(c->v->snap, c->coll, segno, &seg, NULL);
    if (st == MB_ERR_NOT_FOUND) {
        verify_broken(c->v, KV_BANKS, key, "segment %u does not exist", segno);
        return MB_OK;
    }
    return st == MB_ERR_CORRUPT ? MB_OK : st; // reported with its own row
}

static mb_status
check_block(struct bank_check *c, struct mb_slice key, struct mb_slice val)
{
    uint32_t number = mb_get_be32(key.data + 9);
    struct mb_banks_node node;
    mb_status st;

    if (!record_is_sound(val)) {
        verify_broken(c->v, KV_BANKS, key, "damaged: %zu bytes", val.size);
        return MB_OK;
    }
    st = bank_node_read(
        c->v->snap->txn, c->coll->id, c->bank.bank, number, &node);
    if (st == MB_ERR_NOT_FOUND)
        verify_broken(c->v, KV_BANKS, key, "block of no node");
    else if (st == MB_OK && node.block_bytes != val.size - RECORD_CHECKSUM)
        verify_broken(c->v, KV_BANKS, key, "block of %zu bytes instead of %llu",
            val.size - RECORD_CHECKSUM, (unsigned long long)node.block_bytes);
    return st == MB_ERR_NOT_FOUND || st == MB_ERR_CORRUPT ? MB_OK : st;
}

static mb_status
check_row(void *arg, struct mb_slice key, struct mb_slice val)
{
    struct bank_check *c = arg;

    if (key.size == 8)
        return MB_OK; // the head: read at the start
    if (key.size != BANK_KEY_SIZE) {
        verify_broken(c->v, KV_BANKS, key, "key has %zu bytes", key.size);
        return MB_OK;
    }
    if (mb_get_be32(key.data + 4) == c->head.active) {
        switch (key.data[8]) {
        case BANK_ROW_NODE:
            check_node(c, key, val);
            return MB_OK;
        case BANK_ROW_SEGMENT:
            return check_segment(c, key, val);
        case BANK_ROW_BLOCK:
            return check_block(c, key, val);
        default:
            break;
        }
    }
    if (!record_is_sound(val))
        verify_broken(c->v, KV_BANKS, key, "damaged: %zu bytes", val.size);
    return MB_OK;
}

static mb_status
check_training(void *arg, struct mb_slice key, struct mb_slice val)
{
    struct bank_check *c = arg;

    struct mb_banks_run run;
    bool is_sound = key.size == BANK_KEY_SIZE && record_is_sound(val);

    if (is_sound && key.data[8] == BANK_TRAINING_RUN)
        is_sound = bank_run_decode(val, &run) == MB_OK;
    if (!is_sound)
        verify_broken(
            c->v, KV_BANK_TRAINING, key, "damaged: %zu bytes", val.size);
    return MB_OK;
}

/* The head, the bank, its embedding and its tree. */
static mb_status
check_bank(struct bank_check *c, struct mb_slice prefix, struct mb_error *err)
{
    struct kv_txn *txn = c->v->snap->txn;
    struct mb_error why = {0};
    struct mb_slice bytes;
    struct mb_arena *arena;
    mb_status st = bank_head_read(txn, c->coll->id, &c->head);

    if (st == MB_ERR_CORRUPT) {
        verify_broken(c->v, KV_BANKS, prefix, "the head is damaged");
        return MB_OK;
    }
    if (st != MB_OK || c->head.active == 0)
        return st;
    st = mb_banks_get(c->v->snap, c->coll, &c->bank, &why);
    if (st == MB_OK)
        st = bank_tree_load(txn, c->coll->id, &c->bank, &c->tree, &why);
    if (st == MB_OK) {
        arena = mb_arena_new(SIZE_MAX / 2);
        if (arena == NULL)
            return mb_error_set(err, MB_ERR_NOMEM, "verify");
        st = mb_banks_embedding(
            c->v->snap, c->coll, &c->bank, arena, &bytes, &why);
        mb_arena_free(arena);
    }
    if (st == MB_ERR_CORRUPT) {
        verify_broken(c->v, KV_BANKS, prefix, "%s", why.text);
        st = MB_OK;
    }
    return st;
}

mb_status
bank_verify(
    struct verify *v, const struct mb_collection *coll, struct mb_error *err)
{
    struct bank_check c = {.v = v, .coll = coll};
    struct kv_key prefix;
    mb_status st;

    kv_key_init(&prefix);
    kv_key_u32(&prefix, coll->id);
    st = check_bank(&c, kv_key_slice(&prefix), err);
    if (st == MB_OK)
        st =
            verify_walk(v, KV_BANKS, kv_key_slice(&prefix), check_row, &c, err);
    if (st == MB_OK && c.tree != NULL && c.n_nodes + 1 != c.tree->n_nodes)
        verify_broken(v, KV_BANKS, kv_key_slice(&prefix),
            "%u nodes have a record, the tree has %u", c.n_nodes,
            c.tree->n_nodes - 1);
    if (st == MB_OK)
        st = verify_walk(v, KV_BANK_TRAINING, kv_key_slice(&prefix),
            check_training, &c, err);
    mb_tree_free(c.tree);
    return st;
}
