/* SPDX-License-Identifier: Apache-2.0
 * store/note.c - notes: small texts that a collection keeps under a name.
 *
 * For settings that may change at any time and that the store itself has no
 * use for, such as templates of prompts. Rows of the meta table: "note:", the
 * collection's number, the note's name -> text and checksum.
 * Threads: as for all operations, see op.h. */
#include <string.h>

#include "collection.h"
#include "op.h"
#include "record.h"

struct op_note {
    struct mb_op base;
    struct op_name collection;
    size_t name_size;
    size_t text_size;
    char name[MB_MAX_NOTE_NAME];
    uint8_t text[]; /* the row: text, checksum */
};

static void
note_key(struct kv_key *key, mb_collection_id coll, const void *name,
    size_t name_size)
{
    kv_key_init(key);
    kv_key_bytes(key, mb_slice_cstr(META_NOTE_PREFIX));
    kv_key_u32(key, coll);
    kv_key_bytes(key, mb_slice_of(name, name_size));
}

static void
note_free(struct mb_op *op)
{
    mb_free(op);
}

static mb_status
note_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    const struct op_note *op = (const struct op_note *)base;
    struct kv_key key;
    struct wcoll *wc;
    mb_status st = wtxn_collection(w, op_name_get(&op->collection), &wc, err);

    if (st != MB_OK)
        return st;
    note_key(&key, wc->c.id, op->name, op->name_size);
    w->changed = true;
    // A note may hold what a user wrote: what it was is overwritten, too.
    w->erased = true;
    if (op->text_size > 0)
        st = kv_put(w->txn, KV_META, kv_key_slice(&key),
            mb_slice_of(op->text, op->text_size + RECORD_CHECKSUM));
    else
        st = kv_del(w->txn, KV_META, kv_key_slice(&key));
    if (st == MB_ERR_NOT_FOUND)
        st = MB_OK;
    return kv_txn_explain(w->txn, st, err);
}

mb_status
mb_op_note_new(struct mb_slice collection, const char *name,
    struct mb_slice text, struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {"note", note_body, note_free};
    size_t name_size = strlen(name);
    struct op_note *op;
    mb_status st;

    if (name_size == 0 || name_size > MB_MAX_NOTE_NAME ||
        text.size > MB_MAX_NOTE)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "note %.32s has %zu bytes, at most %d are possible", name,
            text.size, MB_MAX_NOTE);
    op = op_new(&cls, sizeof *op + text.size + RECORD_CHECKSUM);
    if (op == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "note");
    st = op_name_set(&op->collection, collection, err);
    if (st != MB_OK) {
        mb_op_free(&op->base);
        return st;
    }
    memcpy(op->name, name, name_size);
    op->name_size = name_size;
    op->text_size = text.size;
    if (text.size > 0)
        memcpy(op->text, text.data, text.size);
    record_seal(op->text, text.size + RECORD_CHECKSUM);
    *out = &op->base;
    return MB_OK;
}

mb_status
mb_note_get(struct mb_snapshot *snap, const struct mb_collection *coll,
    const char *name, struct mb_slice *out, struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice row;
    mb_status st;

    error_begin(err);
    note_key(&key, coll->id, name, strlen(name));
    st = kv_get(snap->txn, KV_META, kv_key_slice(&key), &row);
    if (st == MB_ERR_NOT_FOUND)
        return mb_error_set(
            err, st, "collection %s has no note %s", coll->name, name);
    if (st == MB_OK && !record_is_sound(row))
        return mb_error_set(err, MB_ERR_CORRUPT,
            "note %s of collection %s is damaged", name, coll->name);
    if (st != MB_OK)
        return kv_txn_explain(snap->txn, st, err);
    *out = mb_slice_of(row.data, row.size - RECORD_CHECKSUM);
    return MB_OK;
}

mb_status
note_drop_all(struct wtxn *w, mb_collection_id coll)
{
    struct kv_key key;
    size_t n = 1;
    mb_status st = MB_OK;

    note_key(&key, coll, "", 0);
    while (st == MB_OK && n > 0) {
        st = kv_del_prefix(w->txn, KV_META, kv_key_slice(&key), 64, &n);
    }
    return st;
}
