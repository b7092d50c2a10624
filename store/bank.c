/* SPDX-License-Identifier: Apache-2.0
 * store/bank.c - reading memory banks, and forgetting.
 *
 * A fetch is one look-up a level: mb_banks_block gives a view of the map, and
 * nothing of the block is read. bank_forget runs inside the transaction that
 * erases a segment, so that no block can count as good which has seen a text
 * that is gone.
 * Threads: readers any; bank_forget the writer. */
#include "bank.h"

#include <string.h>

const char *
mb_banks_state_name(mb_banks_state state)
{
    static const char *const names[] = {"fresh", "training", "ready", "stale"};

    return (unsigned)state < 4 ? names[state] : "?";
}

/* ---- the bank ---- */

mb_status
mb_banks_get(struct mb_snapshot *snap, const struct mb_collection *coll,
    struct mb_banks *out, struct mb_error *err)
{
    struct bank_head head;
    struct kv_key key;
    struct mb_slice row;
    mb_status st;

    error_begin(err);
    st = bank_head_read(snap->txn, coll->id, &head);
    if (st == MB_OK && head.active == 0)
        return mb_error_set(err, MB_ERR_NOT_FOUND,
            "collection %s has no memory bank", coll->name);
    if (st == MB_OK) {
        bank_key(&key, coll->id, head.active, BANK_ROW_BANK, 0);
        st = kv_get(snap->txn, KV_BANKS, kv_key_slice(&key), &row);
        if (st == MB_ERR_NOT_FOUND)
            st = MB_ERR_CORRUPT;
    }
    if (st == MB_OK)
        st = bank_decode(row, out);
    if (st == MB_OK && out->bank != head.active)
        st = MB_ERR_CORRUPT;
    if (st == MB_ERR_CORRUPT)
        return mb_error_set(
            err, st, "the memory bank of collection %s is damaged", coll->name);
    return kv_txn_explain(snap->txn, st, err);
}

mb_status
mb_banks_embedding(struct mb_snapshot *snap, const struct mb_collection *coll,
    const struct mb_banks *bank, struct mb_arena *arena, struct mb_slice *out,
    struct mb_error *err)
{
    size_t size = (size_t)bank->embedding_bytes;
    uint8_t *bytes = mb_arena_alloc(arena, size + 1);
    size_t at = 0;
    mb_status st = MB_OK;

    error_begin(err);
    if (bytes == NULL)
        return mb_error_set(
            err, MB_ERR_NOMEM, "embedding of a bank, %zu bytes", size);
    for (uint32_t i = 0; st == MB_OK && at < size; i++) {
        struct mb_slice piece;

        st = bank_row_get(snap->txn, KV_BANKS, coll->id, bank->bank,
            BANK_ROW_EMBEDDING, i, &piece);
        if (st == MB_OK && (piece.size == 0 || piece.size > size - at))
            st = MB_ERR_CORRUPT;
        if (st == MB_OK) {
            memcpy(bytes + at, piece.data, piece.size);
            at += piece.size;
        }
    }
    if (st == MB_ERR_NOT_FOUND || st == MB_ERR_CORRUPT)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "the embedding of a bank of collection %s is damaged", coll->name);
    if (st != MB_OK)
        return kv_txn_explain(snap->txn, st, err);
    *out = mb_slice_of(bytes, size);
    return MB_OK;
}

mb_status
bank_tree_load(struct kv_txn *txn, mb_collection_id coll,
    const struct mb_banks *bank, struct mb_tree **out, struct mb_error *err)
{
    struct mb_tree *tree = NULL;
    mb_status st = tree_new(bank->dim, bank->n_nodes, &tree);

    if (st != MB_OK)
        return mb_error_set(err, st, "tree of %u nodes", bank->n_nodes);
    for (uint32_t i = 0; st == MB_OK && i < bank->n_nodes; i++) {
        struct kv_key key;
        struct mb_slice row;

        bank_key(&key, coll, bank->bank, BANK_ROW_TREE, i);
        st = kv_get(txn, KV_BANKS, kv_key_slice(&key), &row);
        if (st == MB_OK)
            st = tree_record_decode(row, bank->dim, &tree->nodes[i],
                tree->centroids + (size_t)i * bank->dim);
        if (st == MB_ERR_NOT_FOUND || st == MB_ERR_CORRUPT)
            st = mb_error_set(err, MB_ERR_CORRUPT,
                "bank %u: node %u of its tree is missing or damaged",
                bank->bank, i);
    }
    if (st == MB_OK)
        st = tree_finish(tree, err);
    if (st == MB_OK &&
        (tree->n_leaves != bank->n_leaves || tree->depth != bank->n_levels))
        st = mb_error_set(err, MB_ERR_CORRUPT,
            "bank %u: a tree of %u leaves instead of %u", bank->bank,
            tree->n_leaves, bank->n_leaves);
    if (st != MB_OK) {
        mb_tree_free(tree);
        return kv_txn_explain(txn, st, err);
    }
    *out = tree;
    return MB_OK;
}

mb_status
mb_banks_tree(struct mb_snapshot *snap, const struct mb_collection *coll,
    const struct mb_banks *bank, struct mb_tree **out, struct mb_error *err)
{
    error_begin(err);
    return bank_tree_load(snap->txn, coll->id, bank, out, err);
}

/* ---- nodes and blocks ---- */

/* A row's failure, in words. */
static mb_status
explain(struct mb_snapshot *snap, mb_status st, uint32_t bank, const char *what,
    uint32_t number, struct mb_error *err)
{
    if (st == MB_ERR_NOT_FOUND)
        return mb_error_set(
            err, st, "bank %u has no %s %u", bank, what, number);
    if (st == MB_ERR_CORRUPT)
        return mb_error_set(
            err, st, "bank %u: %s %u is damaged", bank, what, number);
    return kv_txn_explain(snap->txn, st, err);
}

mb_status
mb_banks_node_get(struct mb_snapshot *snap, const struct mb_collection *coll,
    uint32_t bank, uint32_t node, struct mb_banks_node *out,
    struct mb_error *err)
{
    error_begin(err);
    return explain(snap, bank_node_read(snap->txn, coll->id, bank, node, out),
        bank, "node", node, err);
}

mb_status
mb_banks_nodes(struct mb_snapshot *snap, const struct mb_collection *coll,
    uint32_t bank, struct mb_arena *arena, struct mb_banks_node **out,
    size_t *n, struct mb_error *err)
{
    struct kv_cursor *c = NULL;
    struct mb_slice key;
    struct mb_slice row;
    struct kv_key prefix;
    size_t found = 0;
    mb_status st;

    error_begin(err);
    bank_prefix(&prefix, coll->id, bank);
    kv_key_u8(&prefix, BANK_ROW_NODE);
    st = kv_cursor_open(snap->txn, KV_BANKS, &c);
    // Twice: to count, then to read.
    for (int round = 0; round < 2 && st == MB_OK; round++) {
        size_t i = 0;

        if (round == 1) {
            *out = mb_arena_calloc(arena, found + 1, sizeof **out);
            if (*out == NULL) {
                st = mb_error_set(err, MB_ERR_NOMEM, "%zu nodes", found);
                break;
            }
        }
        st = kv_cursor_seek(c, kv_key_slice(&prefix), &key, &row);
        while (st == MB_OK && kv_has_prefix(key, kv_key_slice(&prefix))) {
            if (round == 1)
                st = bank_node_decode(row, &(*out)[i]);
            i++;
            if (st == MB_OK)
                st = kv_cursor_next(c, &key, &row);
        }
        found = i;
        if (st == MB_ERR_NOT_FOUND)
            st = MB_OK;
    }
    kv_cursor_close(c);
    if (st == MB_ERR_CORRUPT)
        return mb_error_set(err, st, "bank %u: a node is damaged", bank);
    if (st != MB_OK)
        return kv_txn_explain(snap->txn, st, err);
    *n = found;
    return MB_OK;
}

mb_status
mb_banks_block(struct mb_snapshot *snap, const struct mb_collection *coll,
    uint32_t bank, uint32_t node, struct mb_slice *out, struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice row;
    mb_status st;

    error_begin(err);
    bank_key(&key, coll->id, bank, BANK_ROW_BLOCK, node);
    st = kv_get(snap->txn, KV_BANKS, kv_key_slice(&key), &row);
    if (st == MB_OK && row.size <= RECORD_CHECKSUM)
        st = MB_ERR_CORRUPT;
    if (st != MB_OK)
        return explain(snap, st, bank, "block", node, err);
    *out = mb_slice_of(row.data, row.size - RECORD_CHECKSUM);
    return MB_OK;
}

mb_status
mb_banks_leaf_of(struct mb_snapshot *snap, const struct mb_collection *coll,
    uint32_t bank, mb_segno segno, uint32_t *node, struct mb_error *err)
{
    struct mb_slice row;
    mb_status st;

    error_begin(err);
    st = bank_row_get(
        snap->txn, KV_BANKS, coll->id, bank, BANK_ROW_SEGMENT, segno, &row);
    if (st == MB_OK && row.size != BANK_SEGMENT_SIZE - RECORD_CHECKSUM)
        st = MB_ERR_CORRUPT;
    if (st != MB_OK)
        return explain(snap, st, bank, "segment", segno, err);
    *node = mb_get_le32(row.data);
    return MB_OK;
}

mb_status
mb_banks_n_trained(struct mb_snapshot *snap, const struct mb_collection *coll,
    uint32_t bank, uint64_t *n, struct mb_error *err)
{
    struct kv_cursor *c = NULL;
    struct mb_slice key;
    struct kv_key prefix;
    uint64_t found = 0;
    mb_status st;

    error_begin(err);
    bank_prefix(&prefix, coll->id, bank);
    kv_key_u8(&prefix, BANK_ROW_SEGMENT);
    st = kv_cursor_open(snap->txn, KV_BANKS, &c);
    if (st == MB_OK)
        st = kv_cursor_seek(c, kv_key_slice(&prefix), &key, NULL);
    while (st == MB_OK && kv_has_prefix(key, kv_key_slice(&prefix))) {
        found++;
        st = kv_cursor_next(c, &key, NULL);
    }
    kv_cursor_close(c);
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return kv_txn_explain(snap->txn, st, err);
    *n = found;
    return MB_OK;
}

/* ---- training ---- */

mb_status
mb_banks_job_get(struct mb_snapshot *snap, const struct mb_collection *coll,
    uint32_t bank, uint32_t node, struct mb_banks_job *out,
    struct mb_error *err)
{
    struct mb_slice row;
    mb_status st;

    error_begin(err);
    st = bank_row_get(snap->txn, KV_BANK_TRAINING, coll->id, bank,
        BANK_TRAINING_JOB, node, &row);
    if (st == MB_OK && row.size < BANK_JOB_FIXED)
        st = MB_ERR_CORRUPT;
    if (st != MB_OK)
        return explain(snap, st, bank, "training of node", node, err);
    out->node = node;
    out->job = mb_get_le64(row.data);
    out->version = mb_get_le64(row.data + 8);
    out->progress =
        mb_slice_of(row.data + BANK_JOB_FIXED, row.size - BANK_JOB_FIXED);
    return MB_OK;
}

mb_status
mb_banks_state_get(struct mb_snapshot *snap, const struct mb_collection *coll,
    uint32_t bank, uint32_t node, struct mb_slice *out, struct mb_error *err)
{
    error_begin(err);
    return explain(snap,
        bank_row_get(snap->txn, KV_BANK_TRAINING, coll->id, bank,
            BANK_TRAINING_STATE, node, out),
        bank, "training state of node", node, err);
}

mb_status
mb_banks_run_get(struct mb_snapshot *snap, const struct mb_collection *coll,
    uint32_t bank, struct mb_banks_run *out, struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice row;
    mb_status st;

    error_begin(err);
    bank_key(&key, coll->id, bank, BANK_TRAINING_RUN, 0);
    st = kv_get(snap->txn, KV_BANK_TRAINING, kv_key_slice(&key), &row);
    if (st == MB_OK)
        st = bank_run_decode(row, out);
    return explain(snap, st, bank, "run", 0, err);
}

/* ---- forgetting ---- */

/* A leaf's node and its parents, bottom up, without the root. */
static mb_status
mark_path(struct wtxn *w, mb_collection_id coll, uint32_t bank, uint32_t node)
{
    mb_status st = MB_OK;

    for (size_t i = 0; st == MB_OK && node != 0; i++) {
        struct mb_banks_node n;
        struct mb_slice tree;
        uint32_t parent = 0;

        if (i == MB_BANKS_MAX_LEVELS)
            return MB_ERR_CORRUPT;
        st = bank_row_get(
            w->txn, KV_BANKS, coll, bank, BANK_ROW_TREE, node, &tree);
        if (st == MB_OK && tree.size < 4)
            st = MB_ERR_CORRUPT;
        if (st == MB_OK) {
            parent = mb_get_le32(tree.data);
            st = bank_node_read(w->txn, coll, bank, node, &n);
        }
        if (st != MB_OK)
            break;
        n.version++;
        if (n.state == MB_BANKS_READY)
            n.state = MB_BANKS_STALE;
        st = bank_node_write(w->txn, coll, bank, &n);
        node = parent;
    }
    return st == MB_ERR_NOT_FOUND ? MB_ERR_CORRUPT : st;
}

/* The generic block has seen every text. */
static mb_status
mark_generic(struct wtxn *w, mb_collection_id coll, uint32_t bank)
{
    struct mb_banks_node n;
    mb_status st = bank_node_read(w->txn, coll, bank, MB_BANKS_GENERIC, &n);

    if (st == MB_ERR_NOT_FOUND)
        return MB_OK;
    if (st != MB_OK)
        return st;
    n.version++;
    if (n.state == MB_BANKS_READY)
        n.state = MB_BANKS_STALE;
    return bank_node_write(w->txn, coll, bank, &n);
}

mb_status
bank_forget(struct wtxn *w, struct wcoll *wc, mb_segno segno)
{
    struct bank_head head;
    struct kv_key key;
    struct mb_slice row;
    uint32_t node = 0;
    mb_status st = bank_head_read(w->txn, wc->c.id, &head);

    if (st != MB_OK || head.active == 0)
        return st;
    bank_key(&key, wc->c.id, head.active, BANK_ROW_SEGMENT, segno);
    st = kv_get(w->txn, KV_BANKS, kv_key_slice(&key), &row);
    if (st == MB_ERR_NOT_FOUND)
        return MB_OK; // never trained on
    if (st == MB_OK && row.size != BANK_SEGMENT_SIZE)
        st = MB_ERR_CORRUPT;
    if (st == MB_OK) {
        node = mb_get_le32(row.data);
        st = kv_del(w->txn, KV_BANKS, kv_key_slice(&key));
    }
    if (st == MB_OK)
        st = mark_path(w, wc->c.id, head.active, node);
    if (st == MB_OK)
        st = mark_generic(w, wc->c.id, head.active);
    return st;
}
