/* SPDX-License-Identifier: Apache-2.0
 * store/verify.c - verify: every table, and the tables against one another.
 *
 * Here is the frame: names and collections, rows that belong to no collection,
 * and the walk over the collections. Each kind of index checks its own tables:
 * document_verify.c, lexical_verify.c, dense_verify.c, fields.c; contexts belong
 * to no collection: context_verify.c.
 * A broken record is reported and counted, and the walk goes on; only failing
 * to read (or being told to stop) ends it.
 * Threads: as the snapshot's. */
#include "verify.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "bank.h"
#include "collection.h"
#include "context_rows.h"
#include "record.h"

#define MAX_WHAT 256

void
verify_broken(struct verify *v, enum kv_table table, struct mb_slice key,
    const char *fmt, ...)
{
    static const char digits[] = "0123456789abcdef";
    char hex[2 * KV_MAX_KEY + 1];
    char what[MAX_WHAT];
    size_t n = key.size < KV_MAX_KEY ? key.size : KV_MAX_KEY;
    va_list args;
    v->result->n_broken++;
    if (v->report == NULL)
        return;
    for (size_t i = 0; i < n; i++) {
        hex[2 * i] = digits[key.data[i] >> 4];
        hex[2 * i + 1] = digits[key.data[i] & 15];
    }
    hex[2 * n] = '\0';
    va_start(args, fmt);
    (void)vsnprintf(what, sizeof(what), fmt, args);
    va_end(args);
    v->report(v->arg, kv_table_name(table), hex, what);
}

mb_status
verify_step(struct verify *v, double part, struct mb_error *err)
{
    if (v->progress == NULL)
        return MB_OK;
    double all = v->done + part * v->share;
    if (v->progress(v->arg, all < 1 ? all : 1))
        return mb_error_set(err, MB_ERR_CANCELLED, "verify: stopped");
    return MB_OK;
}

mb_status
verify_walk(struct verify *v, enum kv_table table, struct mb_slice prefix,
    verify_row_fn fn, void *arg, struct mb_error *err)
{
    struct kv_cursor *c;
    struct mb_slice key;
    struct mb_slice val;
    mb_status st = kv_cursor_open(v->snap->txn, table, &c);
    if (st != MB_OK)
        return kv_txn_explain(v->snap->txn, st, err);
    st = kv_cursor_seek(c, prefix, &key, &val);
    while (st == MB_OK && kv_has_prefix(key, prefix)) {
        v->result->n_records++;
        st = fn(arg, key, val);
        if (st == MB_OK)
            st = kv_cursor_next(c, &key, &val);
    }
    kv_cursor_close(c);
    if (st == MB_ERR_NOT_FOUND)
        st = MB_OK;
    return kv_txn_explain(v->snap->txn, st, err);
}

/* ---- names and collections ---- */

static mb_status
check_note(struct verify *v, struct mb_slice key, struct mb_slice val)
{
    size_t head = strlen(META_NOTE_PREFIX);
    struct mb_collection c;
    if (key.size <= head + 4 || !record_is_sound(val)) {
        verify_broken(v, KV_META, key, "damaged note: %zu bytes", val.size);
        return MB_OK;
    }
    mb_status st = collection_read_id(
        v->snap->txn, mb_get_be32(key.data + head), &c, NULL);
    if (st == MB_ERR_NOT_FOUND)
        verify_broken(v, KV_META, key, "note of no collection");
    return st == MB_ERR_NOT_FOUND || st == MB_ERR_CORRUPT ? MB_OK : st;
}

static mb_status
check_meta_row(void *arg, struct mb_slice key, struct mb_slice val)
{
    struct verify *v = arg;
    struct mb_slice prefix = mb_slice_cstr(META_NAME_PREFIX);
    struct mb_collection c;
    if (kv_has_prefix(key, mb_slice_cstr(META_NOTE_PREFIX)))
        return check_note(v, key, val);
    if (!kv_has_prefix(key, prefix))
        return MB_OK;
    struct mb_slice name =
        mb_slice_of(key.data + prefix.size, key.size - prefix.size);
    if (val.size != 4) {
        verify_broken(v, KV_META, key, "name row has %zu bytes", val.size);
        return MB_OK;
    }
    mb_status st =
        collection_read_id(v->snap->txn, mb_get_le32(val.data), &c, NULL);
    if (st == MB_ERR_NOT_FOUND) {
        verify_broken(v, KV_META, key, "collection %u has no record",
            (unsigned)mb_get_le32(val.data));
    } else if (st == MB_OK && !mb_slice_equal(name, mb_slice_cstr(c.name))) {
        verify_broken(
            v, KV_META, key, "collection %u has another name", (unsigned)c.id);
    } else if (st != MB_OK && st != MB_ERR_CORRUPT) {
        return st;
    }
    return MB_OK;
}

static mb_status
check_collection_row(void *arg, struct mb_slice key, struct mb_slice val)
{
    struct verify *v = arg;
    struct mb_collection c;
    struct mb_collection named;
    if (key.size != 4 || collection_decode(val, &c) != MB_OK ||
        c.id != mb_get_be32(key.data)) {
        verify_broken(v, KV_COLLECTIONS, key, "damaged: %zu bytes", val.size);
        return MB_OK;
    }
    mb_status st =
        collection_read(v->snap->txn, mb_slice_cstr(c.name), &named, NULL);
    if (st == MB_ERR_NOT_FOUND || (st == MB_OK && named.id != c.id)) {
        verify_broken(v, KV_COLLECTIONS, key, "its name does not lead to it");
    } else if (st != MB_OK && st != MB_ERR_CORRUPT) {
        return st;
    }
    return MB_OK;
}

/* ---- rows that belong to nobody ---- */

/* Is this the number of a collection, or of one that is being erased? */
static mb_status
check_owner(struct verify *v, enum kv_table table, struct mb_slice key)
{
    struct mb_collection c;
    mb_collection_id id = mb_get_be32(key.data);
    mb_status st = collection_read_id(v->snap->txn, id, &c, NULL);
    if (st == MB_ERR_NOT_FOUND && !collection_is_dropping(v->snap->txn, id)) {
        v->result->n_records++;
        verify_broken(
            v, table, key, "collection %u does not exist", (unsigned)id);
    }
    return st == MB_ERR_NOT_FOUND || st == MB_ERR_CORRUPT ? MB_OK : st;
}

/* One look at each collection number that has rows in a table. */
static mb_status
check_owners(struct verify *v, enum kv_table table)
{
    struct kv_cursor *c;
    struct mb_slice key;
    struct kv_key next;
    mb_status st = kv_cursor_open(v->snap->txn, table, &c);
    if (st != MB_OK)
        return st;
    st = kv_cursor_seek(c, mb_slice_of(NULL, 0), &key, NULL);
    while (st == MB_OK) {
        if (key.size < 4) {
            v->result->n_records++;
            verify_broken(v, table, key, "key has %zu bytes", key.size);
            st = kv_cursor_next(c, &key, NULL);
            continue;
        }
        mb_collection_id id = mb_get_be32(key.data);
        st = check_owner(v, table, key);
        if (st != MB_OK || id == UINT32_MAX)
            break;
        kv_key_init(&next);
        kv_key_u32(&next, id + 1);
        st = kv_cursor_seek(c, kv_key_slice(&next), &key, NULL);
    }
    kv_cursor_close(c);
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
}

/* ---- all ---- */

static mb_status
check_collection(
    struct verify *v, const struct mb_collection *c, struct mb_error *err)
{
    typedef mb_status (*part_fn)(
        struct verify *, const struct mb_collection *, struct mb_error *);

    // What each costs, about: documents unpack texts, postings are many.
    static const struct {
        part_fn fn;
        double part;
    } parts[] = {
        {document_verify, 0.3},
        {lex_verify, 0.5},
        {dense_verify, 0.15},
        {fields_verify, 0.03},
        {bank_verify, 0.02},
    };

    double whole = v->share;
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        v->share = whole * parts[i].part;
        mb_status st = verify_step(v, 0, err);
        if (st == MB_OK)
            st = parts[i].fn(v, c, err);
        if (st != MB_OK)
            return kv_txn_explain(v->snap->txn, st, err);
        v->done += v->share;
    }
    v->share = whole;
    return MB_OK;
}

static mb_status
check_collections(
    struct verify *v, struct mb_arena *arena, struct mb_error *err)
{
    struct mb_collection *list;
    size_t n;
    double segments = 0;
    mb_status st = mb_collection_list(v->snap, arena, &list, &n, err);
    if (st == MB_ERR_CORRUPT)
        return MB_OK; // reported with its row
    if (st != MB_OK)
        return st;
    for (size_t i = 0; i < n; i++) {
        segments += (double)list[i].n_segments + 1;
    }
    for (size_t i = 0; i < n; i++) {
        v->share = ((double)list[i].n_segments + 1) / segments;
        st = check_collection(v, &list[i], err);
        if (st != MB_OK)
            return st;
    }
    return MB_OK;
}

mb_status
mb_store_verify(struct mb_snapshot *snap, mb_verify_fn report,
    mb_progress_fn progress, void *arg, struct mb_verify_result *out,
    struct mb_error *err)
{
    struct mb_slice all = mb_slice_of(NULL, 0);
    struct mb_verify_result result = {0};
    struct verify v = {.snap = snap,
        .report = report,
        .progress = progress,
        .arg = arg,
        .result = &result};
    error_begin(err);
    struct mb_arena *arena = mb_arena_new(SIZE_MAX / 2);
    if (arena == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "verify: out of memory");
    mb_status st = verify_walk(&v, KV_META, all, check_meta_row, &v, err);
    if (st == MB_OK) {
        st =
            verify_walk(&v, KV_COLLECTIONS, all, check_collection_row, &v, err);
    }
    for (unsigned t = KV_DOCUMENTS; st == MB_OK && t < KV_N_TABLES; t++) {
        if (t == KV_BLOCKS || t == KV_CONTEXTS)
            continue; // of no collection
        st = kv_txn_explain(snap->txn, check_owners(&v, (enum kv_table)t), err);
    }
    if (st == MB_OK)
        st = context_verify(&v, err);
    if (st == MB_OK)
        st = check_collections(&v, arena, err);
    mb_arena_free(arena);
    if (st == MB_OK)
        *out = result;
    return st;
}
