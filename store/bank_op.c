/* SPDX-License-Identifier: Apache-2.0
 * store/bank_op.c - operations on memory banks: build, edit, reset, purge.
 *
 * An edit is a list of rows to write or to take away, put together by the
 * trainer in any order and applied whole or not at all. It is refused as STALE
 * when the bank is no longer the collection's, a node was marked as stale since
 * the version that the trainer knows, or a segment that it assigns is gone: so
 * the trainer need not hold the store still while it works.
 * Threads: as for all operations, see op.h. */
#include <string.h>

#include "bank.h"
#include "op.h"

#define PURGE_ROWS    256 /* blocks may be large */
#define MAX_EDIT      ((size_t)8 << 30)
#define MAX_EDIT_ROWS ((size_t)64 << 20) /* bytes of struct edit */

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

static mb_status
put_row(struct wtxn *w, enum kv_table table, const struct kv_key *key,
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
        st = put_row(w, KV_BANKS, &key, mb_slice_of(op->embedding + at, n));
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

/* ---- edit ---- */

enum edit_what { EDIT_PUT, EDIT_DEL, EDIT_NODE, EDIT_ASSIGN, EDIT_DISABLE };

struct edit {
    enum edit_what what;
    enum kv_table table;
    unsigned kind;
    uint32_t number; /* of the row; EDIT_ASSIGN: the leaf; EDIT_DISABLE: 0, 1 */
    size_t at;       /* its data */
    size_t size;
};

struct expectation {
    uint32_t node;
    uint64_t version;
};

struct op_edit {
    struct mb_op base;
    struct op_name name;
    uint32_t bank;
    struct mb_buffer edits;    /* struct edit */
    struct mb_buffer expected; /* struct expectation */
    struct mb_buffer data;
};

static void
edit_free(struct mb_op *base)
{
    struct op_edit *op = (struct op_edit *)base;

    mb_buffer_fini(&op->edits);
    mb_buffer_fini(&op->expected);
    mb_buffer_fini(&op->data);
    mb_free(op);
}

static const struct edit *
edit_at(const struct op_edit *op, size_t i)
{
    return (const struct edit *)(const void *)op->edits.data + i;
}

static size_t
n_edits(const struct op_edit *op)
{
    return op->edits.size / sizeof(struct edit);
}

/* Is the segment still there? */
static mb_status
check_segments(struct wtxn *w, const struct wcoll *wc, const struct op_edit *op,
    const struct edit *e, struct mb_error *err)
{
    for (size_t i = 0; i + 4 <= e->size; i += 4) {
        mb_segno segno = mb_get_le32(op->data.data + e->at + i);
        struct kv_key key;
        struct mb_slice row;
        mb_status st;

        kv_key_init(&key);
        kv_key_u32(&key, wc->c.id);
        kv_key_u32(&key, segno);
        st = kv_get(w->txn, KV_SEGMENTS, kv_key_slice(&key), &row);
        if (st == MB_ERR_NOT_FOUND)
            return mb_error_set(err, MB_ERR_STALE, "segment %u is gone", segno);
        if (st != MB_OK)
            return st;
    }
    return MB_OK;
}

static mb_status
check_edit(struct wtxn *w, const struct wcoll *wc, const struct op_edit *op,
    struct mb_error *err)
{
    const struct expectation *x = (const void *)op->expected.data;
    size_t n = op->expected.size / sizeof *x;
    struct bank_head head;
    mb_status st = bank_head_read(w->txn, wc->c.id, &head);

    if (st == MB_OK && head.active != op->bank)
        return mb_error_set(err, MB_ERR_STALE,
            "bank %u is not that of collection %s any more", op->bank,
            wc->c.name);
    for (size_t i = 0; st == MB_OK && i < n; i++) {
        struct mb_banks_node node;

        st = bank_node_read(w->txn, wc->c.id, op->bank, x[i].node, &node);
        if (st == MB_OK && node.version != x[i].version)
            return mb_error_set(err, MB_ERR_STALE,
                "something that node %u was trained on is gone", x[i].node);
    }
    for (size_t i = 0; st == MB_OK && i < n_edits(op); i++) {
        const struct edit *e = edit_at(op, i);

        if (e->what == EDIT_ASSIGN && e->number != 0)
            st = check_segments(w, wc, op, e, err);
    }
    return st;
}

static mb_status
apply_node(struct wtxn *w, mb_collection_id coll, uint32_t bank,
    const struct mb_banks_node *wanted)
{
    struct mb_banks_node node = *wanted;
    struct mb_banks_node old = {0};
    mb_status st = bank_node_read(w->txn, coll, bank, node.node, &old);

    // The generic block has no place in the tree: its record comes with it.
    if (st == MB_ERR_NOT_FOUND && node.node == MB_BANKS_GENERIC)
        st = MB_OK;
    node.version = old.version;
    return st == MB_OK ? bank_node_write(w->txn, coll, bank, &node) : st;
}

static mb_status
apply_assign(struct wtxn *w, mb_collection_id coll, const struct op_edit *op,
    const struct edit *e)
{
    mb_status st = MB_OK;

    for (size_t i = 0; st == MB_OK && i + 4 <= e->size; i += 4) {
        mb_segno segno = mb_get_le32(op->data.data + e->at + i);
        uint8_t row[4];
        struct kv_key key;

        bank_key(&key, coll, op->bank, BANK_ROW_SEGMENT, segno);
        mb_put_le32(row, e->number);
        if (e->number != 0)
            st = put_row(w, KV_BANKS, &key, mb_slice_of(row, sizeof row));
        else
            st = kv_del(w->txn, KV_BANKS, kv_key_slice(&key));
        if (st == MB_ERR_NOT_FOUND)
            st = MB_OK;
    }
    return st;
}

static mb_status
apply_disable(
    struct wtxn *w, mb_collection_id coll, uint32_t bank, bool disable)
{
    uint8_t record[BANK_RECORD_SIZE];
    struct mb_banks b;
    struct kv_key key;
    struct mb_slice row;
    mb_status st;

    bank_key(&key, coll, bank, BANK_ROW_BANK, 0);
    st = kv_get(w->txn, KV_BANKS, kv_key_slice(&key), &row);
    if (st == MB_OK)
        st = bank_decode(row, &b);
    if (st != MB_OK)
        return st;
    b.is_disabled = disable;
    bank_record_encode(&b, record);
    return kv_put(w->txn, KV_BANKS, kv_key_slice(&key),
        mb_slice_of(record, sizeof record));
}

static mb_status
apply_edit(struct wtxn *w, mb_collection_id coll, const struct op_edit *op,
    const struct edit *e)
{
    struct kv_key key;
    mb_status st;

    switch (e->what) {
    case EDIT_NODE:
        return apply_node(w, coll, op->bank,
            (const struct mb_banks_node *)(const void *)(op->data.data +
                                                         e->at));
    case EDIT_ASSIGN:
        return apply_assign(w, coll, op, e);
    case EDIT_DISABLE:
        return apply_disable(w, coll, op->bank, e->number != 0);
    case EDIT_PUT:
    case EDIT_DEL:
        break;
    }
    bank_key(&key, coll, op->bank, e->kind, e->number);
    // What is written over was made of users' texts, too.
    w->erased = true;
    if (e->what == EDIT_PUT)
        return put_row(
            w, e->table, &key, mb_slice_of(op->data.data + e->at, e->size));
    st = kv_del(w->txn, e->table, kv_key_slice(&key));
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
}

static mb_status
edit_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_edit *op = (struct op_edit *)base;
    struct wcoll *wc;
    mb_status st = wtxn_collection(w, op_name_get(&op->name), &wc, err);

    if (st == MB_OK)
        st = check_edit(w, wc, op, err);
    if (st != MB_OK)
        return kv_txn_explain(w->txn, st, err);
    w->changed = true;
    for (size_t i = 0; st == MB_OK && i < n_edits(op); i++) {
        st = apply_edit(w, wc->c.id, op, edit_at(op, i));
    }
    return kv_txn_explain(w->txn, st, err);
}

mb_status
mb_op_banks_edit_new(struct mb_slice collection, uint32_t bank,
    struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {"banks_edit", edit_body, edit_free};
    struct op_edit *op = op_new(&cls, sizeof *op);
    mb_status st;

    if (op == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "bank");
    mb_buffer_init(&op->edits, MAX_EDIT_ROWS);
    mb_buffer_init(&op->expected, MAX_EDIT_ROWS);
    mb_buffer_init(&op->data, MAX_EDIT);
    st = op_name_set(&op->name, collection, err);
    if (st != MB_OK) {
        mb_op_free(&op->base);
        return st;
    }
    op->bank = bank;
    *out = &op->base;
    return MB_OK;
}

/* Append an edit with its data, at a multiple of 16. */
static mb_status
add(struct mb_op *base, struct edit e, struct mb_slice data)
{
    static const uint8_t zeros[16];
    struct op_edit *op = (struct op_edit *)base;
    size_t pad = (16 - op->data.size % 16) % 16;
    mb_status st = mb_buffer_append(&op->data, zeros, pad);

    e.at = op->data.size;
    e.size = data.size;
    if (st == MB_OK)
        st = mb_buffer_append(&op->data, data.data, data.size);
    if (st == MB_OK)
        st = mb_buffer_append(&op->edits, &e, sizeof e);
    op->base.bytes = op->data.size;
    return st;
}

mb_status
mb_banks_edit_expect(struct mb_op *base, uint32_t node, uint64_t version)
{
    struct op_edit *op = (struct op_edit *)base;
    const struct expectation x = {.node = node, .version = version};

    return mb_buffer_append(&op->expected, &x, sizeof x);
}

mb_status
mb_banks_edit_node(struct mb_op *op, const struct mb_banks_node *node)
{
    return add(
        op, (struct edit){.what = EDIT_NODE}, mb_slice_of(node, sizeof *node));
}

/* A row, or its end if there is nothing to put. */
static mb_status
add_row(struct mb_op *op, enum kv_table table, unsigned kind, uint32_t number,
    struct mb_slice data)
{
    const struct edit e = {
        .what = data.size > 0 ? EDIT_PUT : EDIT_DEL,
        .table = table,
        .kind = kind,
        .number = number,
    };

    return add(op, e, data);
}

mb_status
mb_banks_edit_block(struct mb_op *op, uint32_t node, struct mb_slice record)
{
    return add_row(op, KV_BANKS, BANK_ROW_BLOCK, node, record);
}

mb_status
mb_banks_edit_state(struct mb_op *op, uint32_t node, struct mb_slice state)
{
    return add_row(op, KV_BANK_TRAINING, BANK_TRAINING_STATE, node, state);
}

mb_status
mb_banks_edit_run(struct mb_op *op, struct mb_slice run)
{
    if (run.size > MB_BANKS_MAX_RUN)
        return MB_ERR_TOO_LARGE;
    return add_row(op, KV_BANK_TRAINING, BANK_TRAINING_RUN, 0, run);
}

mb_status
mb_banks_edit_job(struct mb_op *op, const struct mb_banks_job *job)
{
    struct mb_buffer row;
    uint8_t head[BANK_JOB_FIXED];
    mb_status st;

    mb_put_le64(head, job->job);
    mb_put_le64(head + 8, job->version);
    mb_buffer_init(&row, MAX_EDIT);
    st = mb_buffer_append(&row, head, sizeof head);
    if (st == MB_OK)
        st = mb_buffer_append(&row, job->progress.data, job->progress.size);
    if (st == MB_OK)
        st = add_row(op, KV_BANK_TRAINING, BANK_TRAINING_JOB, job->node,
            mb_buffer_slice(&row));
    mb_buffer_fini(&row);
    return st;
}

mb_status
mb_banks_edit_end_job(struct mb_op *op, uint32_t node)
{
    return add_row(
        op, KV_BANK_TRAINING, BANK_TRAINING_JOB, node, mb_slice_of(NULL, 0));
}

mb_status
mb_banks_edit_assign(
    struct mb_op *op, const mb_segno *segnos, size_t n, uint32_t node)
{
    uint8_t *bytes = mb_alloc(4 * n + 1);
    mb_status st;

    if (bytes == NULL)
        return MB_ERR_NOMEM;
    for (size_t i = 0; i < n; i++) {
        mb_put_le32(bytes + 4 * i, segnos[i]);
    }
    st = add(op, (struct edit){.what = EDIT_ASSIGN, .number = node},
        mb_slice_of(bytes, 4 * n));
    mb_free(bytes);
    return st;
}

mb_status
mb_banks_edit_disable(struct mb_op *op, bool disable)
{
    return add(op, (struct edit){.what = EDIT_DISABLE, .number = disable},
        mb_slice_of(NULL, 0));
}

size_t
mb_banks_edit_bytes(const struct mb_op *op)
{
    return op->bytes;
}
