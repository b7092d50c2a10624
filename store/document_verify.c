/* SPDX-License-Identifier: Apache-2.0
 * store/document_verify.c - checks documents, ids, texts and segments.
 *
 * From each document: its id leads back to it, its segments are there, follow
 * one another and cover the text, its text blocks are there and unpack, and
 * the content hash is that of what is stored (unless a client's vector went
 * into it, which is not kept as it came). From each id row, block and segment:
 * its document claims it. At last the counters of the collection.
 * Threads: as the snapshot's. */
#include <string.h>

#include "document.h"
#include "record.h"
#include "verify.h"

/* Documents between two looks at whether to go on. */
#define STEP_DOCUMENTS 256

struct document_check {
    struct verify *v;
    const struct mb_collection *coll;
    struct mb_error *err;
    struct text_unpacker *unpacker;
    struct mb_buffer text; /* of the document at hand */
    uint64_t n_documents;
    uint64_t n_segments;
    uint64_t n_tokens;
    uint64_t text_bytes;
    uint64_t sum_lengths;
};

/* Record of a document; false if there is none that can be read. */
static bool
find_document(
    struct document_check *c, mb_docno docno, struct document_record *rec)
{
    struct kv_key key;
    struct mb_slice val;
    document_key(&key, c->coll->id, docno);
    return kv_get(c->v->snap->txn, KV_DOCUMENTS, kv_key_slice(&key), &val) ==
               MB_OK &&
           document_decode(val, rec) == MB_OK;
}

/* ---- from a document ---- */

static mb_status
check_id(struct document_check *c, struct mb_slice key, mb_docno docno,
    const struct mb_document *d)
{
    struct kv_key id;
    struct mb_slice val;
    if (d->id.size == 0 || d->id.size > MB_MAX_DOCUMENT_ID) {
        verify_broken(c->v, KV_DOCUMENTS, key, "id has %zu bytes", d->id.size);
        return MB_OK;
    }
    document_id_key(&id, c->coll->id, d->id);
    mb_status st =
        kv_get(c->v->snap->txn, KV_DOCUMENT_IDS, kv_key_slice(&id), &val);
    if (st == MB_ERR_NOT_FOUND ||
        (st == MB_OK && (val.size < 4 || mb_get_le32(val.data) != docno))) {
        verify_broken(c->v, KV_DOCUMENTS, key, "its id does not lead to it");
        return MB_OK;
    }
    return st;
}

static mb_status
check_segments(struct document_check *c, struct mb_slice key, mb_docno docno,
    const struct mb_document *d)
{
    uint64_t n_tokens = 0;
    uint64_t at = 0;
    if (d->n_segments == 0)
        verify_broken(c->v, KV_DOCUMENTS, key, "has no segment");
    for (uint32_t i = 0; i < d->n_segments; i++) {
        struct kv_key seg_key;
        struct mb_slice val;
        struct mb_segment seg;
        segment_key(&seg_key, c->coll->id, d->first_segment + i);
        mb_status st =
            kv_get(c->v->snap->txn, KV_SEGMENTS, kv_key_slice(&seg_key), &val);
        if (st == MB_ERR_NOT_FOUND) {
            verify_broken(c->v, KV_DOCUMENTS, key, "segment %u is missing",
                (unsigned)(d->first_segment + i));
            return MB_OK;
        }
        if (st != MB_OK)
            return st;
        if (segment_decode(val, &seg) != MB_OK)
            return MB_OK; // reported with its row
        if (seg.docno != docno || seg.ordinal != i || seg.start != at ||
            seg.end < seg.start) {
            verify_broken(c->v, KV_SEGMENTS, kv_key_slice(&seg_key),
                "is not part %u of document %u from byte %llu on", (unsigned)i,
                (unsigned)docno, (unsigned long long)at);
        }
        at = seg.end;
        n_tokens += seg.n_tokens;
    }
    if (at != d->text_bytes || n_tokens != d->n_tokens) {
        verify_broken(c->v, KV_DOCUMENTS, key,
            "segments have %llu bytes and %llu tokens, the document %llu and "
            "%u",
            (unsigned long long)at, (unsigned long long)n_tokens,
            (unsigned long long)d->text_bytes, (unsigned)d->n_tokens);
    }
    return MB_OK;
}

/* Append the text of one block. False if it is broken (reported). */
static mb_status
take_block(struct document_check *c, mb_docno docno,
    const struct document_record *rec, uint32_t b, bool *sound)
{
    struct kv_key key;
    struct mb_slice val;
    size_t size;
    *sound = false;
    uint64_t start = mb_get_le32(rec->starts + 4 * (size_t)b);
    uint64_t end = b + 1 < rec->n_blocks
                       ? mb_get_le32(rec->starts + 4 * ((size_t)b + 1))
                       : rec->doc.text_bytes;
    text_key(&key, c->coll->id, docno, b);
    mb_status st = kv_get(c->v->snap->txn, KV_TEXTS, kv_key_slice(&key), &val);
    if (st == MB_ERR_NOT_FOUND) {
        verify_broken(c->v, KV_TEXTS, kv_key_slice(&key), "block is missing");
        return MB_OK;
    }
    if (st != MB_OK)
        return st;
    if (!record_is_sound(val) || text_block_size(val, &size) != MB_OK)
        return MB_OK; // reported with its row
    if (start != c->text.size || end < start || size != end - start) {
        verify_broken(c->v, KV_TEXTS, kv_key_slice(&key),
            "has %zu bytes of text, the document says %llu to %llu", size,
            (unsigned long long)start, (unsigned long long)end);
        return MB_OK;
    }
    st = mb_buffer_reserve(&c->text, size);
    if (st != MB_OK)
        return st;
    st = text_unpack(c->unpacker, val, c->text.data + start, size);
    if (st == MB_OK) {
        c->text.size += size;
        *sound = true;
        return MB_OK;
    }
    verify_broken(c->v, KV_TEXTS, kv_key_slice(&key), "does not unpack");
    return MB_OK;
}

static mb_status
check_text(struct document_check *c, struct mb_slice key, mb_docno docno,
    const struct document_record *rec)
{
    const struct mb_document *d = &rec->doc;
    uint8_t hash[16];
    bool sound = true;
    mb_buffer_clear(&c->text);
    if ((rec->n_blocks == 0) != (d->text_bytes == 0)) {
        verify_broken(c->v, KV_DOCUMENTS, key, "%u blocks for %llu bytes",
            (unsigned)rec->n_blocks, (unsigned long long)d->text_bytes);
        return MB_OK;
    }
    for (uint32_t b = 0; sound && b < rec->n_blocks; b++) {
        mb_status st = take_block(c, docno, rec, b, &sound);
        if (st != MB_OK)
            return st;
    }
    if (!sound || c->coll->settings.embedding == MB_EMBED_CLIENT)
        return MB_OK;
    content_hash(d->title, mb_buffer_slice(&c->text), d->meta,
        mb_slice_of(NULL, 0), hash);
    if (memcmp(hash, rec->hash, sizeof(hash)) != 0)
        verify_broken(c->v, KV_DOCUMENTS, key, "content hash differs");
    return MB_OK;
}

static mb_status
check_document_row(void *arg, struct mb_slice key, struct mb_slice val)
{
    struct document_check *c = arg;
    struct document_record rec;
    if (key.size != 8 || !record_is_sound(val) ||
        document_decode(val, &rec) != MB_OK) {
        verify_broken(c->v, KV_DOCUMENTS, key, "damaged: %zu bytes", val.size);
        return MB_OK;
    }
    mb_docno docno = mb_get_be32(key.data + 4);
    c->text_bytes += rec.doc.text_bytes;
    c->n_tokens += rec.doc.n_tokens;
    if (docno >= c->coll->next_docno)
        verify_broken(c->v, KV_DOCUMENTS, key, "number was never given");
    mb_status st = check_id(c, key, docno, &rec.doc);
    if (st == MB_OK)
        st = check_segments(c, key, docno, &rec.doc);
    if (st == MB_OK)
        st = check_text(c, key, docno, &rec);
    if (st == MB_OK && ++c->n_documents % STEP_DOCUMENTS == 0) {
        st = verify_step(c->v,
            (double)c->n_documents / ((double)c->coll->n_documents + 1),
            c->err);
    }
    return st;
}

/* ---- towards a document ---- */

static mb_status
check_id_row(void *arg, struct mb_slice key, struct mb_slice val)
{
    struct document_check *c = arg;
    struct document_record rec;
    if (val.size != 8 || !record_is_sound(val)) {
        verify_broken(
            c->v, KV_DOCUMENT_IDS, key, "damaged: %zu bytes", val.size);
        return MB_OK;
    }
    struct mb_slice id = mb_slice_of(key.data + 4, key.size - 4);
    if (!find_document(c, mb_get_le32(val.data), &rec) ||
        !mb_slice_equal(rec.doc.id, id)) {
        verify_broken(c->v, KV_DOCUMENT_IDS, key,
            "document %u is missing or has another id",
            (unsigned)mb_get_le32(val.data));
    }
    return MB_OK;
}

static mb_status
check_text_row(void *arg, struct mb_slice key, struct mb_slice val)
{
    struct document_check *c = arg;
    struct document_record rec;
    size_t size;
    if (key.size != 12 || !record_is_sound(val) ||
        text_block_size(val, &size) != MB_OK) {
        verify_broken(c->v, KV_TEXTS, key, "damaged: %zu bytes", val.size);
        return MB_OK;
    }
    if (!find_document(c, mb_get_be32(key.data + 4), &rec) ||
        mb_get_be32(key.data + 8) >= rec.n_blocks)
        verify_broken(c->v, KV_TEXTS, key, "belongs to no document");
    return MB_OK;
}

static mb_status
check_segment_row(void *arg, struct mb_slice key, struct mb_slice val)
{
    struct document_check *c = arg;
    struct document_record rec;
    struct mb_segment seg;
    if (key.size != 8 || !record_is_sound(val) ||
        segment_decode(val, &seg) != MB_OK) {
        verify_broken(c->v, KV_SEGMENTS, key, "damaged: %zu bytes", val.size);
        return MB_OK;
    }
    mb_segno segno = mb_get_be32(key.data + 4);
    c->n_segments++;
    c->sum_lengths += seg.length;
    if (segno >= c->coll->next_segno)
        verify_broken(c->v, KV_SEGMENTS, key, "number was never given");
    if (seg.length == 0 || seg.length > MAX_SEGMENT_LENGTH) {
        verify_broken(
            c->v, KV_SEGMENTS, key, "length is %u", (unsigned)seg.length);
    }
    if (!find_document(c, seg.docno, &rec) || segno < rec.doc.first_segment ||
        segno - rec.doc.first_segment >= rec.doc.n_segments) {
        verify_broken(c->v, KV_SEGMENTS, key, "document %u does not claim it",
            (unsigned)seg.docno);
    }
    return MB_OK;
}

/* ---- counters ---- */

static void
check_counter(struct document_check *c, const char *what, uint64_t found,
    uint64_t counted)
{
    struct kv_key key;
    if (found == counted)
        return;
    kv_key_init(&key);
    kv_key_u32(&key, c->coll->id);
    verify_broken(c->v, KV_COLLECTIONS, kv_key_slice(&key),
        "%s: %llu counted, %llu found", what, (unsigned long long)counted,
        (unsigned long long)found);
}

mb_status
document_verify(
    struct verify *v, const struct mb_collection *coll, struct mb_error *err)
{
    struct document_check c = {.v = v, .coll = coll, .err = err};
    struct kv_key key;
    mb_status st = text_unpacker_new(&c.unpacker);
    if (st != MB_OK)
        return mb_error_set(err, st, "verify: out of memory");
    mb_buffer_init(&c.text, (size_t)UINT32_MAX);
    kv_key_init(&key);
    kv_key_u32(&key, coll->id);
    struct mb_slice prefix = kv_key_slice(&key);
    st = verify_walk(v, KV_DOCUMENTS, prefix, check_document_row, &c, err);
    if (st == MB_OK)
        st = verify_walk(v, KV_DOCUMENT_IDS, prefix, check_id_row, &c, err);
    if (st == MB_OK)
        st = verify_walk(v, KV_TEXTS, prefix, check_text_row, &c, err);
    if (st == MB_OK)
        st = verify_walk(v, KV_SEGMENTS, prefix, check_segment_row, &c, err);
    if (st == MB_OK) {
        check_counter(&c, "documents", c.n_documents, coll->n_documents);
        check_counter(&c, "segments", c.n_segments, coll->n_segments);
        check_counter(&c, "tokens", c.n_tokens, coll->n_tokens);
        check_counter(&c, "text bytes", c.text_bytes, coll->text_bytes);
        check_counter(&c, "lengths", c.sum_lengths, coll->sum_lengths);
    }
    mb_buffer_fini(&c.text);
    text_unpacker_free(c.unpacker);
    return st;
}
