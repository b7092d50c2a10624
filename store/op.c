/* SPDX-License-Identifier: Apache-2.0
 * store/op.c - operations: what all share, and create, drop, delete.
 * Puts are in op_put.c, generations in op_generation.c.
 * Threads: made and read by the caller's, run by the writer (op.h). */
#include "op.h"

#include <string.h>

#include "collection.h"
#include "document.h"

#define MAX_DELETE_IDS   1000000
#define MAX_DELETE_BYTES ((size_t)256 << 20)
/* What erasing one document weighs in a commit, roughly. */
#define DELETE_WEIGHT 16384

void *
op_new(const struct op_class *cls, size_t size)
{
    struct mb_op *op = mb_calloc(1, size);
    if (op != NULL)
        op->cls = cls;
    return op;
}

void
mb_op_free(struct mb_op *op)
{
    if (op != NULL)
        op->cls->free(op);
}

mb_status
op_name_set(struct op_name *out, struct mb_slice name, struct mb_error *err)
{
    if (name.size == 0 || name.size > sizeof(out->bytes)) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "collection name has %zu bytes, must have 1 to %d", name.size,
            MB_MAX_COLLECTION_NAME);
    }
    out->size = (uint16_t)name.size;
    memcpy(out->bytes, name.data, name.size);
    return MB_OK;
}

struct mb_slice
op_name_get(const struct op_name *name)
{
    return mb_slice_of(name->bytes, name->size);
}

static void
free_plain(struct mb_op *op)
{
    mb_free(op);
}

/* ---- create and drop ---- */

struct op_create {
    struct mb_op base;
    struct op_name name;
    struct mb_collection_settings settings;
    bool exist_ok;
};

static mb_status
create_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    const struct op_create *op = (const struct op_create *)base;
    return collection_create(
        w, op_name_get(&op->name), &op->settings, op->exist_ok, err);
}

mb_status
mb_op_create_new(struct mb_slice name,
    const struct mb_collection_settings *settings, bool exist_ok,
    struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {"create", create_body, free_plain};
    mb_status st = mb_collection_settings_check(settings, err);
    if (st != MB_OK)
        return st;
    struct op_create *op = op_new(&cls, sizeof(*op));
    if (op == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "create: out of memory");
    st = op_name_set(&op->name, name, err);
    if (st != MB_OK) {
        mb_op_free(&op->base);
        return st;
    }
    op->settings = *settings;
    op->exist_ok = exist_ok;
    *out = &op->base;
    return MB_OK;
}

struct op_drop {
    struct mb_op base;
    struct op_name name;
};

static mb_status
drop_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    const struct op_drop *op = (const struct op_drop *)base;
    return collection_drop(w, op_name_get(&op->name), err);
}

mb_status
mb_op_drop_new(struct mb_slice name, struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {"drop", drop_body, free_plain};
    struct op_drop *op = op_new(&cls, sizeof(*op));
    if (op == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "drop: out of memory");
    mb_status st = op_name_set(&op->name, name, err);
    if (st != MB_OK) {
        mb_op_free(&op->base);
        return st;
    }
    *out = &op->base;
    return MB_OK;
}

/* ---- delete ---- */

/* By ids, or (n_ids 0, filter set) by filter. */
struct op_delete {
    struct mb_op base;
    struct op_name name;
    struct mb_arena *arena; /* ids and filter */
    struct mb_slice *ids;
    size_t n_ids;
    const struct mb_value *filter;
    uint64_t n_deleted;
};

static void
delete_free(struct mb_op *base)
{
    struct op_delete *op = (struct op_delete *)base;
    mb_arena_free(op->arena);
    mb_free(op);
}

static mb_status
delete_ids(struct op_delete *op, struct wtxn *w, struct wcoll *wc,
    struct mb_error *err)
{
    for (size_t i = 0; i < op->n_ids; i++) {
        mb_docno docno;
        uint8_t hash[16];
        mb_status st =
            document_lookup(w->txn, wc->c.id, op->ids[i], &docno, hash, err);
        if (st == MB_ERR_NOT_FOUND)
            continue;
        if (st == MB_OK)
            st = document_erase(w, wc, docno, err);
        if (st != MB_OK)
            return st;
        op->n_deleted++;
    }
    return MB_OK;
}

/* Erase the documents whose segments are in set. A document has at least one
 * segment; its first one stands for it. */
static mb_status
delete_matching(struct op_delete *op, struct wtxn *w, struct wcoll *wc,
    const struct bitset *set, struct mb_error *err)
{
    for (size_t i = 0; i < set->n_bits; i++) {
        struct kv_key key;
        struct mb_slice val;
        struct mb_segment seg;
        if ((i & 63) == 0 && set->words[i >> 6] == 0) {
            i += 63;
            continue;
        }
        if (!bitset_has(set, (uint32_t)i))
            continue;
        segment_key(&key, wc->c.id, (mb_segno)i);
        mb_status st = kv_get(w->txn, KV_SEGMENTS, kv_key_slice(&key), &val);
        if (st == MB_ERR_NOT_FOUND)
            continue; // erased with its document just now
        if (st == MB_OK)
            st = segment_decode(val, &seg);
        if (st == MB_OK)
            st = document_erase(w, wc, seg.docno, err);
        if (st != MB_OK)
            return kv_txn_explain(w->txn, st, err);
        op->n_deleted++;
    }
    return MB_OK;
}

static mb_status
delete_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_delete *op = (struct op_delete *)base;
    struct wcoll *wc;
    struct bitset set;
    op->n_deleted = 0;
    mb_status st = wtxn_collection(w, op_name_get(&op->name), &wc, err);
    if (st != MB_OK)
        return st;
    if (op->filter == NULL)
        return delete_ids(op, w, wc, err);
    // A filter's complements look at the length table, which must be current.
    st = lex_flush(w, err);
    if (st != MB_OK)
        return kv_txn_explain(w->txn, st, err);
    struct mb_arena *arena = mb_arena_new(MAX_DELETE_BYTES);
    if (arena == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "delete: out of memory");
    st = filter_segments(w->txn, &wc->c, op->filter, arena, &set, err);
    if (st == MB_OK)
        st = delete_matching(op, w, wc, &set, err);
    mb_arena_free(arena);
    return st;
}

static mb_status
delete_new(
    struct mb_slice collection, struct op_delete **out, struct mb_error *err)
{
    static const struct op_class cls = {"delete", delete_body, delete_free};
    struct op_delete *op = op_new(&cls, sizeof(*op));
    if (op == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "delete: out of memory");
    op->arena = mb_arena_new(MAX_DELETE_BYTES);
    mb_status st = op->arena != NULL ? op_name_set(&op->name, collection, err)
                                     : mb_error_set(err, MB_ERR_NOMEM,
                                           "delete: out of memory");
    if (st != MB_OK) {
        mb_op_free(&op->base);
        return st;
    }
    *out = op;
    return MB_OK;
}

mb_status
mb_op_delete_new(struct mb_slice collection, const struct mb_slice *ids,
    size_t n, struct mb_op **out, struct mb_error *err)
{
    struct op_delete *op = NULL;
    if (n > MAX_DELETE_IDS) {
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "delete: %zu ids, at most %d at once", n, MAX_DELETE_IDS);
    }
    mb_status st = delete_new(collection, &op, err);
    if (st != MB_OK)
        return st;
    op->ids = mb_arena_calloc(op->arena, n + 1, sizeof(*op->ids));
    if (op->ids == NULL)
        goto nomem;
    for (size_t i = 0; i < n; i++) {
        // An id that no document can have is one that is absent.
        if (ids[i].size == 0 || ids[i].size > MB_MAX_DOCUMENT_ID)
            continue;
        const uint8_t *copy = mb_arena_dup(op->arena, ids[i].data, ids[i].size);
        if (copy == NULL)
            goto nomem;
        op->ids[op->n_ids++] = mb_slice_of(copy, ids[i].size);
    }
    op->base.bytes = op->n_ids * DELETE_WEIGHT;
    *out = &op->base;
    return MB_OK;
nomem:
    mb_op_free(&op->base);
    return mb_error_set(err, MB_ERR_NOMEM, "delete: out of memory");
}

mb_status
mb_op_delete_where_new(struct mb_slice collection,
    const struct mb_value *filter, struct mb_op **out, struct mb_error *err)
{
    struct op_delete *op = NULL;
    struct mb_buffer bytes;
    struct mb_writer w;
    mb_status st = delete_new(collection, &op, err);
    if (st != MB_OK)
        return st;
    // The tree is copied by writing and parsing it again.
    mb_buffer_init(&bytes, MAX_DELETE_BYTES);
    mb_writer_init(&w, &bytes);
    mb_write_value(&w, filter);
    st = w.status;
    void *copy = NULL;
    if (st == MB_OK) {
        copy = mb_arena_dup(op->arena, bytes.data, bytes.size);
        if (copy == NULL)
            st = MB_ERR_NOMEM;
    }
    size_t size = bytes.size;
    mb_buffer_fini(&bytes);
    if (st == MB_OK) {
        st = mb_wire_parse(
            mb_slice_of(copy, size), NULL, true, op->arena, &op->filter, err);
    } else {
        (void)mb_error_set(err, st, "delete: filter: %s", mb_status_text(st));
    }
    if (st != MB_OK) {
        mb_op_free(&op->base);
        return st;
    }
    op->base.bytes = DELETE_WEIGHT;
    *out = &op->base;
    return MB_OK;
}

uint64_t
mb_op_delete_result(const struct mb_op *op)
{
    return ((const struct op_delete *)op)->n_deleted;
}
