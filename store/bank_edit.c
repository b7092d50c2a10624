/* SPDX-License-Identifier: Apache-2.0
 * store/bank_edit.c - edits: what training changes in a memory bank.
 *
 * An edit is a list of rows to write or to take away, put together in any order
 * and applied whole or not at all. It is refused as STALE when the bank is no
 * longer the collection's, a node was marked as stale since the version that
 * the trainer knows, or a segment that it assigns is gone: so the trainer need
 * not hold the store still while it works.
 * What several write without knowing of each other is changed where it lies,
 * in the transaction: a node's being disabled, its last use, what is left of a
 * run's budget.
 * Threads: as for all operations, see op.h. */
#include <string.h>

#include "bank.h"
#include "op.h"

#define MAX_EDIT      ((size_t)8 << 30)
#define MAX_EDIT_ROWS ((size_t)64 << 20) /* bytes of struct edit */

/* ---- what an edit is ---- */

enum edit_what {
    EDIT_PUT,
    EDIT_DEL,
    EDIT_NODE,
    EDIT_ASSIGN,
    EDIT_DISABLE,
    EDIT_USED,
    EDIT_RUN
};

struct edit {
    enum edit_what what;
    enum kv_table table;
    unsigned kind;
    uint32_t number; /* of the row; EDIT_ASSIGN: the leaf; EDIT_RUN: change */
    uint64_t value;  /* EDIT_DISABLE: 0, 1; EDIT_USED: when */
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
        // The generic block comes with its first training.
        if (st == MB_ERR_NOT_FOUND && x[i].node == MB_BANKS_GENERIC) {
            node = (struct mb_banks_node){0};
            st = MB_OK;
        }
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
    node.is_disabled = old.is_disabled;
    node.used_ms = old.used_ms;
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
            st = bank_row_put(w, KV_BANKS, &key, mb_slice_of(row, sizeof row));
        else
            st = kv_del(w->txn, KV_BANKS, kv_key_slice(&key));
        if (st == MB_ERR_NOT_FOUND)
            st = MB_OK;
    }
    return st;
}

/* Change one thing of a node's record. */
static mb_status
apply_to_node(
    struct wtxn *w, mb_collection_id coll, uint32_t bank, const struct edit *e)
{
    struct mb_banks_node node;
    mb_status st = bank_node_read(w->txn, coll, bank, e->number, &node);

    if (st == MB_ERR_NOT_FOUND && e->what == EDIT_USED)
        return MB_OK;
    if (st != MB_OK)
        return st;
    if (e->what == EDIT_DISABLE)
        node.is_disabled = e->value != 0;
    else if (node.used_ms < e->value)
        node.used_ms = e->value;
    return bank_node_write(w->txn, coll, bank, &node);
}

static uint64_t
less(uint64_t left, uint64_t spent)
{
    return left == UINT64_MAX ? left : left > spent ? left - spent : 0;
}

/* NOT_FOUND: it is about a training, and there is none. */
static mb_status
change_run(struct mb_banks_run *run, mb_banks_run_change change,
    const struct mb_banks_run *said)
{
    switch (change) {
    case MB_BANKS_RUN_TRAIN:
        *run = (struct mb_banks_run){.is_purge = run->is_purge,
            .purges = run->purges,
            .is_training = true,
            .is_generic = said->is_generic,
            .asked = run->asked + 1,
            .ms = said->ms,
            .tokens = said->tokens};
        return MB_OK;
    case MB_BANKS_RUN_PURGE:
        run->is_purge = true;
        run->purges++;
        return MB_OK;
    case MB_BANKS_RUN_PURGED:
        // Asked for again meanwhile: what is over did not see all.
        if (said->purges == run->purges)
            run->is_purge = false;
        return MB_OK;
    case MB_BANKS_RUN_PAUSE:
        if (said->asked != 0 && said->asked != run->asked)
            return MB_OK;
        run->is_paused = true;
        return run->is_training ? MB_OK : MB_ERR_NOT_FOUND;
    case MB_BANKS_RUN_RESUME:
        run->is_paused = false;
        return run->is_training ? MB_OK : MB_ERR_NOT_FOUND;
    case MB_BANKS_RUN_SPEND:
        if (said->asked != run->asked)
            return MB_OK;
        run->ms = less(run->ms, said->ms);
        run->tokens = less(run->tokens, said->tokens);
        return MB_OK;
    case MB_BANKS_RUN_TRAINED:
        if (said->asked == run->asked)
            run->is_training = false;
        return MB_OK;
    }
    return MB_ERR_BAD_ARG;
}

static mb_status
apply_run(struct wtxn *w, mb_collection_id coll, const struct op_edit *op,
    const struct edit *e)
{
    struct mb_banks_run said = {0};
    struct mb_banks_run run = {0};
    uint8_t record[BANK_RUN_SIZE];
    struct kv_key key;
    struct mb_slice row;
    mb_status st;

    if (e->size > 0)
        memcpy(&said, op->data.data + e->at, sizeof said);
    bank_key(&key, coll, op->bank, BANK_TRAINING_RUN, 0);
    st = kv_get(w->txn, KV_BANK_TRAINING, kv_key_slice(&key), &row);
    if (st == MB_OK)
        st = bank_run_decode(row, &run);
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return st;
    st = change_run(&run, (mb_banks_run_change)e->number, &said);
    if (st != MB_OK)
        return st;
    if (run.is_training || run.is_purge) {
        bank_run_encode(&run, record);
        return kv_put(w->txn, KV_BANK_TRAINING, kv_key_slice(&key),
            mb_slice_of(record, sizeof record));
    }
    st = kv_del(w->txn, KV_BANK_TRAINING, kv_key_slice(&key));
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
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
        if (e->number == 0)
            return apply_disable(w, coll, op->bank, e->value != 0);
        return apply_to_node(w, coll, op->bank, e);
    case EDIT_USED:
        return apply_to_node(w, coll, op->bank, e);
    case EDIT_RUN:
        return apply_run(w, coll, op, e);
    case EDIT_PUT:
    case EDIT_DEL:
        break;
    }
    bank_key(&key, coll, op->bank, e->kind, e->number);
    // What is written over was made of users' texts, too.
    w->erased = true;
    if (e->what == EDIT_PUT)
        return bank_row_put(
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
        const struct edit *e = edit_at(op, i);

        st = apply_edit(w, wc->c.id, op, e);
        if (st == MB_ERR_NOT_FOUND)
            return mb_error_set(err, st,
                e->what == EDIT_RUN ? "the bank of collection %s is not trained"
                                    : "the bank of collection %s lacks a node",
                wc->c.name);
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
mb_banks_edit_run(struct mb_op *op, mb_banks_run_change change,
    const struct mb_banks_run *run)
{
    return add(op, (struct edit){.what = EDIT_RUN, .number = (uint32_t)change},
        mb_slice_of(run, run != NULL ? sizeof *run : 0));
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
mb_banks_edit_disable(struct mb_op *op, uint32_t node, bool disable)
{
    return add(op,
        (struct edit){.what = EDIT_DISABLE, .number = node, .value = disable},
        mb_slice_of(NULL, 0));
}

mb_status
mb_banks_edit_used(struct mb_op *op, uint32_t node, uint64_t used_ms)
{
    return add(op,
        (struct edit){.what = EDIT_USED, .number = node, .value = used_ms},
        mb_slice_of(NULL, 0));
}

size_t
mb_banks_edit_bytes(const struct mb_op *op)
{
    return op->bytes;
}
