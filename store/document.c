/* SPDX-License-Identifier: Apache-2.0
 * store/document.c - see document.h; writing here, reading in document_read.c.
 *
 * One document is a record (KV_DOCUMENTS), a row from its id to its number
 * (KV_DOCUMENT_IDS), text blocks (KV_TEXTS) and a run of segments with numbers
 * in a row (KV_SEGMENTS). Replacing erases the old one and takes new numbers:
 * a number never means two things, so that nobody who still holds one can be
 * deceived.
 * Invariants: counters of the collection move with the rows (sum_lengths with
 * the length table, in lexical.c); a segment's length is the same number in
 * its record and there.
 * Threads: writer. */
#include "document.h"

#include <string.h>

#include "bank.h"
#include "record.h"

#define DOCUMENT_FIXED 64 /* bytes of a document record before block starts */
#define SEGMENT_FIXED  24 /* bytes of a segment record before the terms */
#define ID_ROW         8  /* docno and checksum */

/* ---- keys ---- */

void
document_key(struct kv_key *key, mb_collection_id coll, mb_docno docno)
{
    kv_key_init(key);
    kv_key_u32(key, coll);
    kv_key_u32(key, docno);
}

void
document_id_key(struct kv_key *key, mb_collection_id coll, struct mb_slice id)
{
    kv_key_init(key);
    kv_key_u32(key, coll);
    kv_key_bytes(key, id);
}

void
text_key(
    struct kv_key *key, mb_collection_id coll, mb_docno docno, uint32_t block)
{
    kv_key_init(key);
    kv_key_u32(key, coll);
    kv_key_u32(key, docno);
    kv_key_u32(key, block);
}

void
segment_key(struct kv_key *key, mb_collection_id coll, mb_segno segno)
{
    kv_key_init(key);
    kv_key_u32(key, coll);
    kv_key_u32(key, segno);
}

/* ---- bytes ---- */

void
content_hash(struct mb_slice title, struct mb_slice text, struct mb_slice meta,
    struct mb_slice vector, uint8_t out[16])
{
    const struct mb_slice parts[4] = {title, text, meta, vector};
    uint8_t all[4 * 24];
    for (size_t i = 0; i < 4; i++) {
        mb_put_le64(all + i * 24, parts[i].size);
        mb_hash128(parts[i].data, parts[i].size, all + i * 24 + 8);
    }
    mb_hash128(all, sizeof(all), out);
}

mb_status
document_decode(struct mb_slice record, struct document_record *out)
{
    const uint8_t *p = record.data;
    if (record.size < DOCUMENT_FIXED + RECORD_CHECKSUM)
        return MB_ERR_CORRUPT;
    uint64_t n_blocks = mb_get_le32(p + 44);
    uint64_t id_size = mb_get_le32(p + 48);
    uint64_t title_size = mb_get_le32(p + 52);
    uint64_t meta_size = mb_get_le32(p + 56);
    if (DOCUMENT_FIXED + 4 * n_blocks + id_size + title_size + meta_size +
            RECORD_CHECKSUM !=
        record.size)
        return MB_ERR_CORRUPT;
    memset(out, 0, sizeof(*out));
    out->doc.text_bytes = mb_get_le64(p);
    out->doc.added_ms = mb_get_le64(p + 8);
    out->hash = p + 16;
    out->doc.first_segment = mb_get_le32(p + 32);
    out->doc.n_segments = mb_get_le32(p + 36);
    out->doc.n_tokens = mb_get_le32(p + 40);
    out->n_blocks = (uint32_t)n_blocks;
    out->starts = p + DOCUMENT_FIXED;
    const uint8_t *at = out->starts + 4 * n_blocks;
    out->doc.id = mb_slice_of(at, (size_t)id_size);
    out->doc.title = mb_slice_of(at + id_size, (size_t)title_size);
    out->doc.meta = mb_slice_of(at + id_size + title_size, (size_t)meta_size);
    return MB_OK;
}

mb_status
segment_decode(struct mb_slice record, struct mb_segment *out)
{
    const uint8_t *p = record.data;
    if (record.size < SEGMENT_FIXED + RECORD_CHECKSUM)
        return MB_ERR_CORRUPT;
    out->docno = mb_get_le32(p);
    out->ordinal = mb_get_le32(p + 4);
    out->start = mb_get_le32(p + 8);
    out->end = mb_get_le32(p + 12);
    out->n_tokens = mb_get_le32(p + 16);
    out->length = mb_get_le32(p + 20);
    out->forward = mb_slice_of(
        p + SEGMENT_FIXED, record.size - SEGMENT_FIXED - RECORD_CHECKSUM);
    return MB_OK;
}

/* ---- finding ---- */

mb_status
document_lookup(struct kv_txn *txn, mb_collection_id coll, struct mb_slice id,
    mb_docno *docno, uint8_t hash[16], struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice val;
    struct document_record rec;
    document_id_key(&key, coll, id);
    mb_status st = kv_get(txn, KV_DOCUMENT_IDS, kv_key_slice(&key), &val);
    if (st == MB_ERR_NOT_FOUND)
        return st;
    if (st != MB_OK)
        return kv_txn_explain(txn, st, err);
    if (val.size != ID_ROW || !record_is_sound(val)) {
        return mb_error_set(err, MB_ERR_CORRUPT,
            "id row of a document in collection %u is damaged", (unsigned)coll);
    }
    mb_docno n = mb_get_le32(val.data);
    document_key(&key, coll, n);
    st = kv_get(txn, KV_DOCUMENTS, kv_key_slice(&key), &val);
    if (st == MB_OK)
        st = document_decode(val, &rec);
    if (st == MB_ERR_NOT_FOUND || st == MB_ERR_CORRUPT) {
        return mb_error_set(err, MB_ERR_CORRUPT,
            "document %u of collection %u: record is missing or damaged",
            (unsigned)n, (unsigned)coll);
    }
    if (st != MB_OK)
        return kv_txn_explain(txn, st, err);
    *docno = n;
    memcpy(hash, rec.hash, 16);
    return MB_OK;
}

/* ---- inserting ---- */

/* Record of document i, and the row that leads to it. */
static mb_status
put_record(struct wtxn *w, struct wcoll *wc, const struct new_document *d,
    mb_docno docno, mb_segno first, uint32_t n_tokens)
{
    struct kv_key key;
    uint8_t row[ID_ROW];
    uint8_t *p;
    size_t size = DOCUMENT_FIXED + 4 * d->n_blocks + d->id.size +
                  d->title.size + d->meta.size + RECORD_CHECKSUM;
    document_key(&key, wc->c.id, docno);
    mb_status st =
        kv_reserve(w->txn, KV_DOCUMENTS, kv_key_slice(&key), size, &p);
    if (st != MB_OK)
        return st;
    mb_put_le64(p, d->text_bytes);
    mb_put_le64(p + 8, mb_clock_wall_ms());
    memcpy(p + 16, d->hash, 16);
    mb_put_le32(p + 32, first);
    mb_put_le32(p + 36, (uint32_t)d->n_spans);
    mb_put_le32(p + 40, n_tokens);
    mb_put_le32(p + 44, (uint32_t)d->n_blocks);
    mb_put_le32(p + 48, (uint32_t)d->id.size);
    mb_put_le32(p + 52, (uint32_t)d->title.size);
    mb_put_le32(p + 56, (uint32_t)d->meta.size);
    mb_put_le32(p + 60, 0);
    uint8_t *at = p + DOCUMENT_FIXED;
    for (size_t b = 0; b < d->n_blocks; b++, at += 4) {
        mb_put_le32(at, d->blocks[b].start);
    }
    const struct mb_slice tail[3] = {d->id, d->title, d->meta};
    for (size_t t = 0; t < 3; t++) {
        if (tail[t].size > 0)
            memcpy(at, tail[t].data, tail[t].size);
        at += tail[t].size;
    }
    record_seal(p, size);
    mb_put_le32(row, docno);
    record_seal(row, sizeof(row));
    document_id_key(&key, wc->c.id, d->id);
    return kv_put(w->txn, KV_DOCUMENT_IDS, kv_key_slice(&key),
        mb_slice_of(row, sizeof(row)));
}

/* Numbers of a segment's terms into batch->ids, counts into batch->tfs; each
 * becomes a posting. */
static mb_status
add_terms(struct wtxn *w, struct wcoll *wc, struct new_batch *batch,
    const struct new_segment *s, mb_segno segno, struct mb_error *err)
{
    for (size_t i = 0; i < s->n; i++) {
        struct new_term *t = &batch->terms[s->term[i]];
        mb_status st = MB_OK;
        if (t->id == UINT32_MAX) {
            st = lex_term_id(
                w, wc, mb_slice_of(t->bytes, t->size), t->hash, &t->id, err);
        }
        batch->ids[i] = t->id;
        batch->tfs[i] = (uint32_t)s->tf[i];
        if (st == MB_OK)
            st = lex_add(w, wc, t->id, segno, batch->tfs[i], s->length);
        if (st != MB_OK)
            return st;
    }
    return MB_OK;
}

static mb_status
put_segment(struct wtxn *w, struct wcoll *wc, struct new_batch *batch,
    const struct new_segment *s, const struct mb_segment *at,
    struct mb_error *err)
{
    struct kv_key key;
    uint8_t head[SEGMENT_FIXED];
    static const uint8_t sum[RECORD_CHECKSUM];
    struct mb_buffer *rec = &batch->record;
    mb_status st = add_terms(w, wc, batch, s, at->segno, err);
    if (st == MB_OK)
        st = lex_set_length(w, wc, at->segno, s->length);
    if (st != MB_OK)
        return st;
    mb_put_le32(head, at->docno);
    mb_put_le32(head + 4, at->ordinal);
    mb_put_le32(head + 8, at->start);
    mb_put_le32(head + 12, at->end);
    mb_put_le32(head + 16, at->n_tokens);
    mb_put_le32(head + 20, s->length);
    mb_buffer_clear(rec);
    st = mb_buffer_append(rec, head, sizeof(head));
    if (st == MB_OK)
        st = lex_forward_encode(batch->ids, batch->tfs, s->n, rec);
    if (st == MB_OK)
        st = mb_buffer_append(rec, sum, sizeof(sum));
    if (st != MB_OK)
        return st;
    record_seal(rec->data, rec->size);
    segment_key(&key, wc->c.id, at->segno);
    return kv_put(
        w->txn, KV_SEGMENTS, kv_key_slice(&key), mb_buffer_slice(rec));
}

static mb_status
put_texts(struct wtxn *w, struct wcoll *wc, const struct new_document *d,
    mb_docno docno)
{
    struct kv_key key;
    for (size_t b = 0; b < d->n_blocks; b++) {
        text_key(&key, wc->c.id, docno, (uint32_t)b);
        mb_status st =
            kv_put(w->txn, KV_TEXTS, kv_key_slice(&key), d->blocks[b].record);
        if (st != MB_OK)
            return st;
    }
    return MB_OK;
}

static mb_status
take_numbers(struct wcoll *wc, const struct new_document *d, mb_docno *docno,
    mb_segno *first, struct mb_error *err)
{
    if (wc->c.next_docno == UINT32_MAX ||
        d->n_spans >= UINT32_MAX - wc->c.next_segno) {
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "collection \"%s\" has used up its numbers: put its documents "
            "into a new one",
            wc->c.name);
    }
    *docno = wc->c.next_docno++;
    *first = wc->c.next_segno;
    wc->c.next_segno += (uint32_t)d->n_spans;
    return MB_OK;
}

mb_status
document_insert(struct wtxn *w, struct wcoll *wc, struct new_batch *batch,
    size_t i, struct mb_error *err)
{
    const struct new_document *d = &batch->documents[i];
    mb_docno docno = 0;
    mb_segno first = 0;
    uint32_t n_tokens = 0;
    wc->dirty = true;
    mb_status st = take_numbers(wc, d, &docno, &first, err);
    for (size_t s = 0; st == MB_OK && s < d->n_spans; s++) {
        size_t at = d->first_segment + s;
        const struct mb_segment seg = {.segno = first + (uint32_t)s,
            .docno = docno,
            .ordinal = (uint32_t)s,
            .start = d->spans[s].start,
            .end = d->spans[s].end,
            .n_tokens = d->spans[s].n_tokens};
        st = put_segment(w, wc, batch, &batch->segments[at], &seg, err);
        if (st == MB_OK && batch->vectors != NULL) {
            st = dense_add(w, wc, seg.segno, batch->vectors + at * batch->dim,
                batch->dim, err);
        }
        n_tokens += seg.n_tokens;
    }
    if (st == MB_OK)
        st = put_texts(w, wc, d, docno);
    if (st == MB_OK)
        st = put_record(w, wc, d, docno, first, n_tokens);
    if (st == MB_OK) {
        st =
            fields_add(w, wc, d->meta, first, (uint32_t)d->n_spans, docno, err);
    }
    if (st != MB_OK)
        return kv_txn_explain(w->txn, st, err);
    wc->c.n_documents++;
    wc->c.n_segments += d->n_spans;
    wc->c.n_tokens += n_tokens;
    wc->c.text_bytes += d->text_bytes;
    return MB_OK;
}

/* ---- erasing ---- */

/* A copy of a row, since writing moves what was read. */
static mb_status
copy_row(struct wtxn *w, enum kv_table table, const struct kv_key *key,
    struct mb_slice *out)
{
    struct mb_slice val;
    mb_status st = kv_get(w->txn, table, kv_key_slice(key), &val);
    if (st != MB_OK)
        return st == MB_ERR_NOT_FOUND ? MB_ERR_CORRUPT : st;
    if (!record_is_sound(val))
        return MB_ERR_CORRUPT;
    uint8_t *copy = mb_alloc(val.size);
    if (copy == NULL)
        return MB_ERR_NOMEM;
    memcpy(copy, val.data, val.size);
    *out = mb_slice_of(copy, val.size);
    return MB_OK;
}

static void
free_row(struct mb_slice row)
{
    mb_free((void *)(uintptr_t)row.data);
}

static mb_status
erase_segment(
    struct wtxn *w, struct wcoll *wc, mb_segno segno, struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice row = {NULL, 0};
    struct mb_segment seg;
    uint32_t term;
    uint32_t tf;
    size_t pos = 0;
    segment_key(&key, wc->c.id, segno);
    mb_status st = copy_row(w, KV_SEGMENTS, &key, &row);
    if (st == MB_OK)
        st = segment_decode(row, &seg);
    while (st == MB_OK && mb_forward_next(seg.forward, &pos, &term, &tf)) {
        st = lex_remove(w, wc, term, segno);
    }
    if (st == MB_OK && pos < seg.forward.size)
        st = MB_ERR_CORRUPT;
    if (st == MB_OK)
        st = lex_set_length(w, wc, segno, 0);
    if (st == MB_OK)
        st = dense_remove(w, wc, segno, err);
    if (st == MB_OK)
        st = bank_forget(w, wc, segno);
    if (st == MB_OK)
        st = kv_del(w->txn, KV_SEGMENTS, kv_key_slice(&key));
    if (st == MB_OK) {
        wc->c.n_segments--;
    } else if (st == MB_ERR_CORRUPT && err != NULL && err->text[0] == '\0') {
        (void)mb_error_set(err, st,
            "segment %u of collection \"%s\": record "
            "is missing or damaged",
            (unsigned)segno, wc->c.name);
    }
    free_row(row);
    return st;
}

mb_status
document_erase(
    struct wtxn *w, struct wcoll *wc, mb_docno docno, struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice row = {NULL, 0};
    struct document_record rec;
    size_t n;
    document_key(&key, wc->c.id, docno);
    mb_status st = copy_row(w, KV_DOCUMENTS, &key, &row);
    if (st == MB_OK)
        st = document_decode(row, &rec);
    if (st == MB_ERR_CORRUPT) {
        (void)mb_error_set(err, st,
            "document %u of collection \"%s\": record "
            "is missing or damaged",
            (unsigned)docno, wc->c.name);
    }
    if (st != MB_OK)
        goto out;
    const struct mb_document *d = &rec.doc;
    wc->dirty = true;
    w->changed = true;
    w->erased = true;
    for (uint32_t s = 0; st == MB_OK && s < d->n_segments; s++) {
        st = erase_segment(w, wc, d->first_segment + s, err);
    }
    if (st == MB_OK) {
        st = kv_del_prefix(w->txn, KV_TEXTS, kv_key_slice(&key), SIZE_MAX, &n);
    }
    if (st == MB_OK) {
        st = fields_remove(
            w, wc, d->meta, d->first_segment, d->n_segments, docno, err);
    }
    if (st == MB_OK)
        st = kv_del(w->txn, KV_DOCUMENTS, kv_key_slice(&key));
    document_id_key(&key, wc->c.id, d->id);
    if (st == MB_OK)
        st = kv_del(w->txn, KV_DOCUMENT_IDS, kv_key_slice(&key));
    if (st != MB_OK)
        goto out;
    wc->c.n_documents--;
    wc->c.n_tokens -= d->n_tokens;
    wc->c.text_bytes -= d->text_bytes;
out:
    free_row(row);
    return kv_txn_explain(w->txn, st, err);
}
