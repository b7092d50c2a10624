/* SPDX-License-Identifier: Apache-2.0
 * store/document_read.c - documents, texts and segments, read in a snapshot.
 *
 * What is handed out views the map: no copy is made of ids, titles, metadata
 * and forward indexes. Texts are unpacked block by block into the caller's
 * arena; a range inside one block (a passage) costs one block.
 * Threads: each snapshot's own. */
#include <string.h>

#include "document.h"
#include "record.h"
#include "store.h"

/* ---- documents ---- */

/* Record of a document, which must be there: `docno` came from the store. */
static mb_status
read_record(struct kv_txn *txn, const struct mb_collection *coll,
    mb_docno docno, struct document_record *out, struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice val;
    document_key(&key, coll->id, docno);
    mb_status st = kv_get(txn, KV_DOCUMENTS, kv_key_slice(&key), &val);
    if (st == MB_ERR_NOT_FOUND) {
        return mb_error_set(err, st, "no document %u in collection \"%s\"",
            (unsigned)docno, coll->name);
    }
    if (st == MB_OK)
        st = document_decode(val, out);
    if (st == MB_ERR_CORRUPT) {
        return mb_error_set(err, st,
            "document %u of collection \"%s\": record is damaged",
            (unsigned)docno, coll->name);
    }
    if (st == MB_OK)
        out->doc.docno = docno;
    return kv_txn_explain(txn, st, err);
}

mb_status
mb_document_get(struct mb_snapshot *snap, const struct mb_collection *coll,
    mb_docno docno, struct mb_document *out, struct mb_error *err)
{
    struct document_record rec;
    error_begin(err);
    mb_status st = read_record(snap->txn, coll, docno, &rec, err);
    if (st == MB_OK)
        *out = rec.doc;
    return st;
}

mb_status
mb_document_find(struct mb_snapshot *snap, const struct mb_collection *coll,
    struct mb_slice id, struct mb_document *out, struct mb_error *err)
{
    mb_docno docno;
    uint8_t hash[16];
    error_begin(err);
    mb_status st = MB_ERR_NOT_FOUND;
    if (id.size >= 1 && id.size <= MB_MAX_DOCUMENT_ID)
        st = document_lookup(snap->txn, coll->id, id, &docno, hash, err);
    if (st == MB_ERR_NOT_FOUND) {
        int size = (int)(id.size < 100 ? id.size : 100);
        return mb_error_set(err, st,
            "no document \"%.*s\" in collection "
            "\"%s\"",
            size, (const char *)id.data, coll->name);
    }
    if (st != MB_OK)
        return st;
    return mb_document_get(snap, coll, docno, out, err);
}

/* Segments that a filter lets through; NULL in *set without one. */
static mb_status
prepare_filter(struct mb_snapshot *snap, const struct mb_collection *coll,
    const struct mb_value *filter, struct mb_arena *arena, struct bitset **set,
    struct mb_error *err)
{
    *set = NULL;
    if (filter == NULL)
        return MB_OK;
    struct bitset *b = mb_arena_calloc(arena, 1, sizeof(*b));
    if (b == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "list: out of memory");
    mb_status st = filter_segments(snap->txn, coll, filter, arena, b, err);
    if (st == MB_OK)
        *set = b;
    return st;
}

mb_status
mb_document_list(struct mb_snapshot *snap, const struct mb_collection *coll,
    struct mb_slice after, const struct mb_value *filter, size_t max,
    struct mb_arena *arena, struct mb_document **out, size_t *n,
    struct mb_error *err)
{
    struct kv_key prefix;
    struct kv_key from;
    struct mb_slice key;
    struct mb_slice val;
    struct bitset *set;
    struct kv_cursor *c = NULL;
    size_t count = 0;
    error_begin(err);
    if (after.size > MB_MAX_DOCUMENT_ID) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "after: id has %zu bytes, at most %d", after.size,
            MB_MAX_DOCUMENT_ID);
    }
    if (max > coll->n_documents)
        max = (size_t)coll->n_documents;
    mb_status st = prepare_filter(snap, coll, filter, arena, &set, err);
    if (st != MB_OK)
        return st;
    struct mb_document *list = mb_arena_calloc(arena, max + 1, sizeof(*list));
    if (list == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "list: out of memory");
    document_id_key(&prefix, coll->id, mb_slice_of(NULL, 0));
    document_id_key(&from, coll->id, after);
    st = kv_cursor_open(snap->txn, KV_DOCUMENT_IDS, &c);
    if (st == MB_OK)
        st = kv_cursor_seek(c, kv_key_slice(&from), &key, &val);
    while (st == MB_OK && count < max &&
           kv_has_prefix(key, kv_key_slice(&prefix))) {
        struct document_record rec;
        if (!mb_slice_equal(key, kv_key_slice(&from))) {
            st = val.size < 4 ? MB_ERR_CORRUPT
                              : read_record(snap->txn, coll,
                                    mb_get_le32(val.data), &rec, err);
            if (st != MB_OK)
                break;
            if (set == NULL || bitset_has(set, rec.doc.first_segment))
                list[count++] = rec.doc;
        }
        st = kv_cursor_next(c, &key, &val);
    }
    kv_cursor_close(c);
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return kv_txn_explain(snap->txn, st, err);
    *out = list;
    *n = count;
    return MB_OK;
}

/* ---- texts ---- */

/* One range of a text being read. */
struct text_range {
    struct mb_snapshot *snap;
    const struct mb_collection *coll;
    const struct document_record *rec;
    struct mb_arena *arena;
    uint64_t start;
    uint64_t end;
};

static uint64_t
block_start(const struct document_record *rec, size_t b)
{
    return b < rec->n_blocks ? mb_get_le32(rec->starts + 4 * b)
                             : rec->doc.text_bytes;
}

/* Last block that begins at or before `at`. */
static size_t
find_block(const struct document_record *rec, uint64_t at)
{
    size_t low = 0;
    size_t high = rec->n_blocks;
    while (high - low > 1) {
        size_t mid = low + (high - low) / 2;
        if (block_start(rec, mid) <= at)
            low = mid;
        else
            high = mid;
    }
    return low;
}

/* The stored record of block b, its text size checked against the table of the
 * document. */
static mb_status
read_block(
    const struct text_range *r, size_t b, struct mb_slice *record, size_t *size)
{
    struct kv_key key;
    uint64_t start = block_start(r->rec, b);
    uint64_t end = block_start(r->rec, b + 1);
    text_key(&key, r->coll->id, r->rec->doc.docno, (uint32_t)b);
    mb_status st = kv_get(r->snap->txn, KV_TEXTS, kv_key_slice(&key), record);
    if (st == MB_ERR_NOT_FOUND)
        return MB_ERR_CORRUPT;
    if (st != MB_OK)
        return st;
    if (!record_is_sound(*record))
        return MB_ERR_CORRUPT;
    st = text_block_size(*record, size);
    if (st == MB_OK && (end <= start || *size != end - start))
        st = MB_ERR_CORRUPT;
    return st;
}

/* Unpack block b; its part of the range goes to out, or, if out is NULL, the
 * whole block to the arena and *view onto it. */
static mb_status
unpack_block(
    const struct text_range *r, size_t b, uint8_t *out, struct mb_slice *view)
{
    struct mb_slice record;
    size_t size;
    mb_status st = read_block(r, b, &record, &size);
    if (st != MB_OK)
        return st;
    uint64_t start = block_start(r->rec, b);
    uint64_t from = r->start > start ? r->start - start : 0;
    uint64_t to = r->end - start < size ? r->end - start : size;
    if (out != NULL && from == 0 && to == size)
        return text_unpack(r->snap->unpacker, record, out, size);
    uint8_t *all = mb_arena_alloc(r->arena, size);
    if (all == NULL)
        return MB_ERR_NOMEM;
    st = text_unpack(r->snap->unpacker, record, all, size);
    if (st != MB_OK)
        return st;
    if (out != NULL)
        memcpy(out, all + from, (size_t)(to - from));
    else
        *view = mb_slice_of(all + from, (size_t)(to - from));
    return MB_OK;
}

static mb_status
read_range(const struct text_range *r, struct mb_slice *out)
{
    size_t first = find_block(r->rec, r->start);
    size_t last = find_block(r->rec, r->end - 1);
    if (first == last)
        return unpack_block(r, first, NULL, out);
    size_t size = (size_t)(r->end - r->start);
    uint8_t *all = mb_arena_alloc(r->arena, size);
    if (all == NULL)
        return MB_ERR_NOMEM;
    for (size_t b = first; b <= last; b++) {
        uint64_t start = block_start(r->rec, b);
        size_t at = start > r->start ? (size_t)(start - r->start) : 0;
        mb_status st = unpack_block(r, b, all + at, NULL);
        if (st != MB_OK)
            return st;
    }
    *out = mb_slice_of(all, size);
    return MB_OK;
}

mb_status
mb_document_text(struct mb_snapshot *snap, const struct mb_collection *coll,
    const struct mb_document *doc, uint64_t start, uint64_t end,
    struct mb_arena *arena, struct mb_slice *out, struct mb_error *err)
{
    struct document_record rec;
    error_begin(err);
    mb_status st = read_record(snap->txn, coll, doc->docno, &rec, err);
    if (st != MB_OK)
        return st;
    if (end > rec.doc.text_bytes)
        end = rec.doc.text_bytes;
    if (start >= end) {
        *out = mb_slice_of("", 0);
        return MB_OK;
    }
    struct text_range r = {snap, coll, &rec, arena, start, end};
    st = rec.n_blocks == 0 ? MB_ERR_CORRUPT : MB_OK;
    if (st == MB_OK && snap->unpacker == NULL)
        st = store_unpacker_take(snap->store, &snap->unpacker);
    if (st == MB_OK)
        st = read_range(&r, out);
    if (st == MB_OK)
        return MB_OK;
    return mb_error_set(err, st,
        "text of document %u of collection \"%s\", bytes %llu to %llu: %s",
        (unsigned)doc->docno, coll->name, (unsigned long long)start,
        (unsigned long long)end, mb_status_text(st));
}

/* ---- segments ---- */

static mb_status
damaged_segment(
    const struct mb_collection *coll, mb_segno segno, struct mb_error *err)
{
    return mb_error_set(err, MB_ERR_CORRUPT,
        "segment %u of collection \"%s\": record is damaged", (unsigned)segno,
        coll->name);
}

mb_status
mb_segment_get(struct mb_snapshot *snap, const struct mb_collection *coll,
    mb_segno segno, struct mb_segment *out, struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice val;
    struct mb_segment seg;
    error_begin(err);
    segment_key(&key, coll->id, segno);
    mb_status st = kv_get(snap->txn, KV_SEGMENTS, kv_key_slice(&key), &val);
    if (st == MB_ERR_NOT_FOUND) {
        return mb_error_set(err, st, "no segment %u in collection \"%s\"",
            (unsigned)segno, coll->name);
    }
    if (st != MB_OK)
        return kv_txn_explain(snap->txn, st, err);
    if (segment_decode(val, &seg) != MB_OK)
        return damaged_segment(coll, segno, err);
    seg.segno = segno;
    *out = seg;
    return MB_OK;
}

mb_status
segment_find(struct kv_cursor *c, mb_collection_id coll, mb_segno segno,
    struct mb_segment *out)
{
    struct kv_key key;
    struct mb_slice val;
    segment_key(&key, coll, segno);
    mb_status st = kv_cursor_find(c, kv_key_slice(&key), &val);
    if (st == MB_OK)
        st = segment_decode(val, out);
    if (st == MB_OK)
        out->segno = segno;
    return st;
}

mb_status
mb_segment_scan(struct mb_snapshot *snap, const struct mb_collection *coll,
    mb_segno from, size_t max, struct mb_segment *out, size_t *n,
    struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice k;
    struct mb_slice v;
    struct kv_cursor *c;
    size_t count = 0;
    error_begin(err);
    mb_status st = kv_cursor_open(snap->txn, KV_SEGMENTS, &c);
    if (st != MB_OK)
        return kv_txn_explain(snap->txn, st, err);
    segment_key(&key, coll->id, from);
    struct mb_slice prefix = mb_slice_of(key.bytes, 4);
    st = kv_cursor_seek(c, kv_key_slice(&key), &k, &v);
    while (st == MB_OK && count < max && kv_has_prefix(k, prefix)) {
        mb_segno segno = k.size == 8 ? mb_get_be32(k.data + 4) : 0;
        if (k.size != 8 || segment_decode(v, &out[count]) != MB_OK) {
            kv_cursor_close(c);
            return damaged_segment(coll, segno, err);
        }
        out[count++].segno = segno;
        if (count < max)
            st = kv_cursor_next(c, &k, &v);
    }
    kv_cursor_close(c);
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return kv_txn_explain(snap->txn, st, err);
    *n = count;
    return MB_OK;
}
