/* SPDX-License-Identifier: Apache-2.0
 * store/bank_op.c - operations on memory banks: build, reset, purge.
 * What trains a bank uses edits: bank_edit.c.
 * Threads: as for all operations, see op.h. */
#include <string.h>

#include "bank.h"
#include "op.h"

#define PURGE_ROWS 256 /* blocks may be large */

/* ---- build ---- */

struct op_build {
    struct mb_op base;
    struct op_name name;
    struct mb_banks bank;
    uint8_t *embedding;
    struct mb_tree *tree;
    char (*terms)[MB_BANKS_MAX_TERMS + 1]; /* (n_nodes), or NULL */
    uint32_t number;                       /* result */
};

static void
build_free(struct mb_op *base)
{
    struct op_build *op = (struct op_build *)base;

    mb_free(op->embedding);
    mb_tree_free(op->tree);
    mb_free(op->terms);
    mb_free(op);
}

mb_status
bank_row_put(struct wtxn *w, enum kv_table table, const struct kv_key *key,
    struct mb_slice bytes)
{
    uint8_t *row;
    mb_status st = kv_reserve(
        w->txn, table, kv_key_slice(key), bytes.size + RECORD_CHECKSUM, &row);

    if (st != MB_OK)
        return st;
    if (bytes.size > 0)
        memcpy(row, bytes.data, bytes.size);
    record_seal(row, bytes.size + RECORD_CHECKSUM);
    return MB_OK;
}

static mb_status
put_embedding(struct wtxn *w, mb_collection_id coll, const struct op_build *op)
{
    size_t size = (size_t)op->bank.embedding_bytes;
    mb_status st = MB_OK;

    for (size_t at = 0; st == MB_OK && at < size; at += BANK_PIECE) {
        size_t n = size - at < BANK_PIECE ? size - at : BANK_PIECE;
        struct kv_key key;

        bank_key(&key, coll, op->number, BANK_ROW_EMBEDDING,
            (uint32_t)(at / BANK_PIECE));
        st =
            bank_row_put(w, KV_BANKS, &key, mb_slice_of(op->embedding + at, n));
    }
    return st;
}

static mb_status
put_tree(struct wtxn *w, mb_collection_id coll, const struct op_build *op)
{
    size_t size = tree_record_size(op->tree->dim);
    uint8_t *row = mb_alloc(size);
    mb_status st = row != NULL ? MB_OK : MB_ERR_NOMEM;

    for (uint32_t i = 0; st == MB_OK && i < op->tree->n_nodes; i++) {
        struct mb_banks_node node = {
            .node = i, .level = op->tree->nodes[i].level};
        struct kv_key key;

        tree_record_encode(op->tree, i, row);
        bank_key(&key, coll, op->number, BANK_ROW_TREE, i);
        st = kv_put(
            w->txn, KV_BANKS, kv_key_slice(&key), mb_slice_of(row, size));
        if (op->terms != NULL)
            memcpy(node.terms, op->terms[i], sizeof node.terms);
        if (st == MB_OK && i > 0)
            st = bank_node_write(w->txn, coll, op->number, &node);
    }
    mb_free(row);
    return st;
}

static mb_status
build_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_build *op = (struct op_build *)base;
    uint8_t row[BANK_RECORD_SIZE];
    struct bank_head head;
    struct kv_key key;
    struct wcoll *wc;
    mb_status st = wtxn_collection(w, op_name_get(&op->name), &wc, err);

    if (st == MB_OK)
        st = bank_head_read(w->txn, wc->c.id, &head);
    if (st != MB_OK)
        return kv_txn_explain(w->txn, st, err);
    op->number = head.next;
    op->bank.bank = head.next;
    head.active = head.next++;
    bank_record_encode(&op->bank, row);
    bank_key(&key, wc->c.id, op->number, BANK_ROW_BANK, 0);
    w->changed = true;
    st = kv_put(
        w->txn, KV_BANKS, kv_key_slice(&key), mb_slice_of(row, sizeof row));
    if (st == MB_OK)
        st = put_embedding(w, wc->c.id, op);
    if (st == MB_OK)
        st = put_tree(w, wc->c.id, op);
    if (st == MB_OK)
        st = bank_head_write(w->txn, wc->c.id, &head);
    return kv_txn_explain(w->txn, st, err);
}

static mb_status
copy_terms(struct op_build *op, const char *const *terms)
{
    op->terms = mb_calloc(op->tree->n_nodes, sizeof *op->terms);
    if (op->terms == NULL)
        return MB_ERR_NOMEM;
    for (uint32_t i = 0; i < op->tree->n_nodes; i++) {
        size_t n = terms[i] != NULL ? strlen(terms[i]) : 0;

        // A cut must not fall into a character.
        while (n > MB_BANKS_MAX_TERMS ||
               (n > 0 && n == MB_BANKS_MAX_TERMS &&
                   ((uint8_t)terms[i][n] & 0xc0) == 0x80)) {
            n--;
        }
        if (n > 0)
            memcpy(op->terms[i], terms[i], n);
    }
    return MB_OK;
}

mb_status
mb_op_banks_build_new(struct mb_slice collection, const struct mb_banks *bank,
    struct mb_slice embedding, const struct mb_tree *tree,
    const char *const *terms, struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {"banks_build", build_body, build_free};
    struct op_build *op;
    mb_status st;

    if (tree->depth == 0 || tree->depth > MB_BANKS_MAX_LEVELS)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "a bank's tree has 1 to %d levels, not %u", MB_BANKS_MAX_LEVELS,
            tree->depth);
    op = op_new(&cls, sizeof *op);
    if (op == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "bank");
    st = op_name_set(&op->name, collection, err);
    if (st != MB_OK) {
        mb_op_free(&op->base);
        return st;
    }
    op->bank = *bank;
    op->bank.dim = (uint32_t)tree->dim;
    op->bank.n_nodes = tree->n_nodes;
    op->bank.n_leaves = tree->n_leaves;
    op->bank.n_levels = tree->depth;
    op->bank.created_ms = mb_clock_wall_ms();
    op->bank.embedding_bytes = embedding.size;
    op->embedding = mb_alloc(embedding.size + 1);
    st = op->embedding != NULL ? mb_tree_copy(tree, &op->tree) : MB_ERR_NOMEM;
    if (st == MB_OK && terms != NULL)
        st = copy_terms(op, terms);
    if (st != MB_OK) {
        mb_op_free(&op->base);
        return mb_error_set(err, st, "bank of %u nodes", tree->n_nodes);
    }
    if (embedding.size > 0)
        memcpy(op->embedding, embedding.data, embedding.size);
    op->base.bytes = embedding.size + tree_bytes(tree);
    *out = &op->base;
    return MB_OK;
}

uint32_t
mb_op_banks_build_result(const struct mb_op *op)
{
    return ((const struct op_build *)op)->number;
}

/* ---- reset and purge ---- */

struct op_plain {
    struct mb_op base;
    struct op_name name;
    bool done;
};

static void
plain_free(struct mb_op *base)
{
    mb_free(base);
}

static mb_status
plain_new(const struct op_class *cls, struct mb_slice collection,
    struct mb_op **out, struct mb_error *err)
{
    struct op_plain *op = op_new(cls, sizeof *op);
    mb_status st;

    if (op == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "bank");
    st = op_name_set(&op->name, collection, err);
    if (st != MB_OK) {
        mb_op_free(&op->base);
        return st;
    }
    *out = &op->base;
    return MB_OK;
}

static mb_status
reset_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_plain *op = (struct op_plain *)base;
    struct bank_head head;
    struct wcoll *wc;
    mb_status st = wtxn_collection(w, op_name_get(&op->name), &wc, err);

    if (st == MB_OK)
        st = bank_head_read(w->txn, wc->c.id, &head);
    if (st == MB_OK && head.active == 0)
        return mb_error_set(err, MB_ERR_NOT_FOUND,
            "collection %s has no memory bank", wc->c.name);
    if (st == MB_OK) {
        head.active = 0;
        w->changed = true;
        st = bank_head_write(w->txn, wc->c.id, &head);
    }
    return kv_txn_explain(w->txn, st, err);
}

mb_status
mb_op_banks_reset_new(
    struct mb_slice collection, struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {"banks_reset", reset_body, plain_free};

    return plain_new(&cls, collection, out, err);
}

/* The first bank that has rows in a table and is not `active`; 0: none. */
static mb_status
find_leftover(struct wtxn *w, enum kv_table table, mb_collection_id coll,
    uint32_t active, uint32_t *out)
{
    struct kv_cursor *c;
    struct mb_slice key;
    struct kv_key from;
    uint32_t bank = 1;
    mb_status st = kv_cursor_open(w->txn, table, &c);

    *out = 0;
    while (st == MB_OK && *out == 0) {
        bank_prefix(&from, coll, bank);
        st = kv_cursor_seek(c, kv_key_slice(&from), &key, NULL);
        if (st != MB_OK || key.size < 8 || mb_get_be32(key.data) != coll)
            break;
        bank = mb_get_be32(key.data + 4);
        if (bank != active)
            *out = bank;
        else if (bank == UINT32_MAX)
            break;
        else
            bank++;
    }
    kv_cursor_close(c);
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
}

static mb_status
purge_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    static const enum kv_table tables[] = {KV_BANKS, KV_BANK_TRAINING};
    struct op_plain *op = (struct op_plain *)base;
    size_t left = PURGE_ROWS;
    struct bank_head head;
    struct wcoll *wc;
    mb_status st = wtxn_collection(w, op_name_get(&op->name), &wc, err);

    op->done = false;
    if (st == MB_OK)
        st = bank_head_read(w->txn, wc->c.id, &head);
    for (size_t i = 0; st == MB_OK && i < 2 && left > 0;) {
        struct kv_key prefix;
        uint32_t bank;
        size_t n = 0;

        st = find_leftover(w, tables[i], wc->c.id, head.active, &bank);
        if (st != MB_OK)
            break;
        if (bank == 0) {
            i++;
            continue;
        }
        bank_prefix(&prefix, wc->c.id, bank);
        w->changed = true;
        w->erased = true; // blocks are made of users' texts
        st = kv_del_prefix(w->txn, tables[i], kv_key_slice(&prefix), left, &n);
        left -= n;
    }
    op->done = left > 0;
    return kv_txn_explain(w->txn, st, err);
}

mb_status
mb_op_banks_purge_new(
    struct mb_slice collection, struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {"banks_purge", purge_body, plain_free};

    return plain_new(&cls, collection, out, err);
}

bool
mb_op_banks_purge_is_done(const struct mb_op *op)
{
    return ((const struct op_plain *)op)->done;
}
