/* SPDX-License-Identifier: Apache-2.0
 * store/fields.c - the metadata index: which documents have which value.
 *
 * Every scalar of a document's metadata, and every scalar element of an array
 * in it, is one row of KV_FIELDS (keys: fields.h). A row names a document by
 * its run of segments, because that is what filters are for: filter.c turns
 * rows into a set of segment numbers that both searches test while they scan.
 * Maps inside metadata are kept and returned by document.c but not indexed.
 *
 * Rows follow from the document's metadata alone. Removing takes the same walk
 * as adding, so nothing is stored to find them again, and verify repeats it.
 * Invariants: the same value twice in an array is one row; a document's rows
 * go in the transaction that removes the document.
 * Threads: add and remove from the writer; check and verify from any. */
#include "fields.h"

#include <math.h>
#include <string.h>

/* Trees of metadata are small; a message's limit bounds them long before. */
#define FIELD_ARENA_BYTES ((size_t)256 << 20)

/* ---- keys ---- */

field_type
field_type_of(const struct mb_value *v)
{
    switch (v->type) {
    case MB_TYPE_NIL:
        return FIELD_NIL;
    case MB_TYPE_BOOL:
        return FIELD_BOOL;
    case MB_TYPE_INT:
    case MB_TYPE_UINT:
        return FIELD_NUMBER;
    case MB_TYPE_FLOAT:
        return isnan(v->f) ? FIELD_OTHER : FIELD_NUMBER;
    case MB_TYPE_STR:
        return FIELD_STRING;
    case MB_TYPE_BIN:
    case MB_TYPE_ARRAY:
    case MB_TYPE_MAP:
        break;
    }
    return FIELD_OTHER;
}

void
field_key_head(struct kv_key *key, mb_collection_id coll, struct mb_slice name)
{
    kv_key_init(key);
    kv_key_u32(key, coll);
    kv_key_u64(key, mb_hash64(name.data, name.size, 0));
}

/* Bits of d such that unsigned order is numeric order; -0 is 0. */
static uint64_t
ordered_bits(double d)
{
    const uint64_t sign = (uint64_t)1 << 63;
    double plain = d == 0.0 ? 0.0 : d;
    uint64_t bits;

    memcpy(&bits, &plain, sizeof bits);
    return (bits & sign) != 0 ? ~bits : bits | sign;
}

/* v - d for an integer v whose nearest f64 is d: at most 2^10 either way. The
 * difference modulo 2^64 is right even where d is 2^63 or 2^64, which no
 * integer type of ours holds. */
static int32_t
rounding_loss(const struct mb_value *v, double d)
{
    const double two63 = 9223372036854775808.0;
    uint64_t whole = v->type == MB_TYPE_UINT ? v->u : (uint64_t)v->i;
    uint64_t near_bits;

    if (d >= 2 * two63) {
        near_bits = 0;
    } else if (d >= two63) {
        near_bits = (uint64_t)d;
    } else {
        near_bits = (uint64_t)(int64_t)d;
    }
    return (int32_t)(int64_t)(whole - near_bits);
}

static void
append_number(struct kv_key *key, const struct mb_value *v)
{
    double d = v->type == MB_TYPE_FLOAT  ? v->f
               : v->type == MB_TYPE_UINT ? (double)v->u
                                         : (double)v->i;
    int32_t loss = v->type == MB_TYPE_FLOAT ? 0 : rounding_loss(v, d);
    uint32_t folded = (uint32_t)(loss + 0x8000);

    kv_key_u64(key, ordered_bits(d));
    kv_key_u8(key, (uint8_t)(folded >> 8));
    kv_key_u8(key, (uint8_t)(folded & 0xFF));
}

static void
append_string(struct kv_key *key, struct mb_slice s, bool bound)
{
    bool is_long = s.size > FIELD_STRING_BYTES;
    size_t n = is_long ? FIELD_STRING_BYTES : s.size;

    for (size_t i = 0; i < n; i++) {
        kv_key_u8(key, s.data[i]);
        if (s.data[i] == 0)
            kv_key_u8(key, 0xFF);
    }
    if (bound && n == FIELD_STRING_BYTES)
        return;
    kv_key_u8(key, 0);
    kv_key_u8(key, is_long ? 2 : 1);
    if (is_long)
        kv_key_u64(key, mb_hash64(s.data, s.size, 0));
}

static void
append_value(struct kv_key *key, const struct mb_value *v, bool bound)
{
    field_type type = field_type_of(v);

    kv_key_u8(key, (uint8_t)type);
    if (type == FIELD_BOOL) {
        kv_key_u8(key, v->b ? 1 : 0);
    } else if (type == FIELD_NUMBER) {
        append_number(key, v);
    } else if (type == FIELD_STRING) {
        append_string(key, v->s, bound);
    }
}

void
field_key_value(struct kv_key *key, const struct mb_value *v)
{
    append_value(key, v, false);
}

void
field_key_bound(struct kv_key *key, const struct mb_value *v)
{
    append_value(key, v, true);
}

/* ---- walk over metadata ---- */

/* Called with the key of each row, first_segment included. */
typedef mb_status (*row_fn)(void *arg, const struct kv_key *key);

struct walk {
    mb_collection_id coll;
    mb_segno first_segment;
    row_fn fn;
    void *arg;
    size_t n_rows;
};

static mb_status
walk_value(struct walk *w, struct mb_slice name, const struct mb_value *v)
{
    struct kv_key key;

    w->n_rows++;
    field_key_head(&key, w->coll, name);
    field_key_value(&key, v);
    kv_key_u32(&key, w->first_segment);
    return w->fn == NULL ? MB_OK : w->fn(w->arg, &key);
}

/* Rows of one pair of the metadata: its scalar, or the array's elements. */
static mb_status
walk_pair(struct walk *w, const struct mb_pair *pair)
{
    const struct mb_value *v = &pair->value;

    if (v->type != MB_TYPE_ARRAY || v->array.n == 0)
        return walk_value(w, pair->key, v);
    for (size_t i = 0; i < v->array.n; i++) {
        mb_status st = walk_value(w, pair->key, &v->array.items[i]);

        if (st != MB_OK)
            return st;
    }
    return MB_OK;
}

static mb_status
walk_meta(struct walk *w, struct mb_slice meta, struct mb_error *err)
{
    const struct mb_value *map = NULL;
    struct mb_arena *arena = NULL;
    mb_status st;

    if (meta.size == 0)
        return MB_OK;
    arena = mb_arena_new(FIELD_ARENA_BYTES);
    if (arena == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "out of memory");
    st = mb_wire_parse(meta, NULL, false, arena, &map, err);
    if (st == MB_OK && map->type != MB_TYPE_MAP)
        st = mb_error_set(err, MB_ERR_BAD_ARG, "not a map");
    for (size_t i = 0; st == MB_OK && i < map->map.n; i++)
        st = walk_pair(w, &map->map.pairs[i]);
    mb_arena_free(arena);
    return st;
}

mb_status
fields_check(const char *document, struct mb_slice meta, struct mb_error *err)
{
    struct walk w = {0};
    struct mb_error cause = {.status = MB_OK};
    mb_status st = walk_meta(&w, meta, &cause);

    if (st == MB_OK && w.n_rows > FIELD_MAX_ROWS) {
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "document %s: meta has %zu values, the most is %d", document,
            w.n_rows, FIELD_MAX_ROWS);
    }
    if (st == MB_OK)
        return MB_OK;
    if (st == MB_ERR_BAD_MESSAGE || st == MB_ERR_BAD_TEXT)
        st = MB_ERR_BAD_ARG;
    return mb_error_set(err, st, "document %s: meta: %s", document, cause.text);
}

/* ---- add and remove ---- */

struct change {
    struct kv_txn *txn;
    uint8_t row[FIELD_ROW_BYTES];
};

static void
row_encode(uint8_t row[FIELD_ROW_BYTES], mb_docno docno, uint32_t n_segments)
{
    mb_put_le32(row, docno);
    mb_put_le32(row + 4, n_segments);
    mb_put_le32(row + 8, (uint32_t)mb_hash64(row, 8, 0));
}

static mb_status
add_row(void *arg, const struct kv_key *key)
{
    struct change *c = arg;

    return kv_put(c->txn, KV_FIELDS, kv_key_slice(key),
        mb_slice_of(c->row, sizeof c->row));
}

static mb_status
remove_row(void *arg, const struct kv_key *key)
{
    struct change *c = arg;
    mb_status st = kv_del(c->txn, KV_FIELDS, kv_key_slice(key));

    // Gone already when an array holds the same value twice.
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
}

static mb_status
change_rows(struct wtxn *w, struct wcoll *wc, struct mb_slice meta,
    mb_segno first_segment, struct change *c, row_fn fn, struct mb_error *err)
{
    struct walk walk = {
        .coll = wc->c.id, .first_segment = first_segment, .fn = fn, .arg = c};

    c->txn = w->txn;
    return walk_meta(&walk, meta, err);
}

mb_status
fields_add(struct wtxn *w, struct wcoll *wc, struct mb_slice meta,
    mb_segno first_segment, uint32_t n_segments, mb_docno docno,
    struct mb_error *err)
{
    struct change c = {0};

    row_encode(c.row, docno, n_segments);
    return change_rows(w, wc, meta, first_segment, &c, add_row, err);
}

mb_status
fields_remove(struct wtxn *w, struct wcoll *wc, struct mb_slice meta,
    mb_segno first_segment, uint32_t n_segments, mb_docno docno,
    struct mb_error *err)
{
    struct change c = {0};

    (void)n_segments;
    (void)docno;
    return change_rows(w, wc, meta, first_segment, &c, remove_row, err);
}

/* ---- verify ---- */

/* A row that the metadata of a document asks for: looked up as it stands, or
 * compared with one that was found. */
struct expect {
    struct verify *v;
    struct kv_txn *txn;
    struct mb_slice sought; /* empty: every row must be in the table */
    bool found;
};

static mb_status
expect_row(void *arg, const struct kv_key *key)
{
    struct expect *e = arg;
    struct mb_slice row;
    mb_status st;

    if (e->sought.size > 0) {
        e->found |= mb_slice_equal(e->sought, kv_key_slice(key));
        return MB_OK;
    }
    st = kv_get(e->txn, KV_FIELDS, kv_key_slice(key), &row);
    if (st == MB_ERR_NOT_FOUND) {
        verify_broken(e->v, KV_FIELDS, kv_key_slice(key),
            "row of a document's metadata is missing");
        return MB_OK;
    }
    return st;
}

/* Check one row against its document. */
static mb_status
verify_row(struct verify *v, const struct mb_collection *coll,
    struct mb_slice key, struct mb_slice row, struct mb_error *err)
{
    struct expect e = {.v = v, .txn = v->snap->txn, .sought = key};
    struct walk walk = {.coll = coll->id, .fn = expect_row, .arg = &e};
    struct mb_document doc;
    mb_docno docno;
    mb_status st;

    if (key.size < FIELD_KEY_HEAD + 1 + FIELD_KEY_TAIL ||
        row.size != FIELD_ROW_BYTES ||
        mb_get_le32(row.data + 8) != (uint32_t)mb_hash64(row.data, 8, 0)) {
        verify_broken(v, KV_FIELDS, key, "size or checksum is wrong");
        return MB_OK;
    }
    docno = mb_get_le32(row.data);
    walk.first_segment = mb_get_be32(key.data + key.size - FIELD_KEY_TAIL);
    st = mb_document_get(v->snap, coll, docno, &doc, err);
    if (st == MB_ERR_NOT_FOUND || st == MB_ERR_CORRUPT) {
        verify_broken(
            v, KV_FIELDS, key, "document %u: %s", docno, mb_status_text(st));
        return MB_OK;
    }
    if (st != MB_OK)
        return st;
    if (doc.first_segment != walk.first_segment ||
        doc.n_segments != mb_get_le32(row.data + 4)) {
        verify_broken(
            v, KV_FIELDS, key, "document %u has other segments", docno);
        return MB_OK;
    }
    // Damaged metadata is document_verify's to report.
    if (walk_meta(&walk, doc.meta, NULL) == MB_OK && !e.found) {
        verify_broken(
            v, KV_FIELDS, key, "document %u has no such value", docno);
    }
    return MB_OK;
}

/* Check that every document's rows are there. */
static mb_status
verify_documents(
    struct verify *v, const struct mb_collection *coll, struct mb_error *err)
{
    struct kv_cursor *cursor = NULL;
    struct kv_key prefix;
    struct mb_slice key;
    mb_status st = kv_cursor_open(v->snap->txn, KV_DOCUMENTS, &cursor);

    if (st != MB_OK)
        return mb_error_set(err, st, "open a cursor on documents");
    kv_key_init(&prefix);
    kv_key_u32(&prefix, coll->id);
    st = kv_cursor_seek(cursor, kv_key_slice(&prefix), &key, NULL);
    while (st == MB_OK && kv_has_prefix(key, kv_key_slice(&prefix))) {
        struct expect e = {.v = v, .txn = v->snap->txn};
        struct walk walk = {.coll = coll->id, .fn = expect_row, .arg = &e};
        struct mb_document doc;

        if (key.size == 8 &&
            mb_document_get(v->snap, coll, mb_get_be32(key.data + 4), &doc,
                NULL) == MB_OK) {
            walk.first_segment = doc.first_segment;
            (void)walk_meta(&walk, doc.meta, NULL);
        }
        st = kv_cursor_next(cursor, &key, NULL);
    }
    kv_cursor_close(cursor);
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
}

mb_status
fields_verify(
    struct verify *v, const struct mb_collection *coll, struct mb_error *err)
{
    struct kv_cursor *cursor = NULL;
    struct kv_key prefix;
    struct mb_slice key, row;
    mb_status st = kv_cursor_open(v->snap->txn, KV_FIELDS, &cursor);

    if (st != MB_OK)
        return mb_error_set(err, st, "open a cursor on fields");
    kv_key_init(&prefix);
    kv_key_u32(&prefix, coll->id);
    st = kv_cursor_seek(cursor, kv_key_slice(&prefix), &key, &row);
    while (st == MB_OK && kv_has_prefix(key, kv_key_slice(&prefix))) {
        v->result->n_records++;
        st = verify_row(v, coll, key, row, err);
        if (st == MB_OK)
            st = kv_cursor_next(cursor, &key, &row);
    }
    kv_cursor_close(cursor);
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return st;
    return verify_documents(v, coll, err);
}
