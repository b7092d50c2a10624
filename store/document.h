/* SPDX-License-Identifier: Apache-2.0
 * store/document.h - documents, their texts and their segments, as rows.
 *
 * Inside a write transaction a document comes (document_insert) and goes
 * (document_erase) whole: record, id row, text blocks, segments, and through
 * the other files its postings, lengths, vectors and fields. */
#ifndef STORE_DOCUMENT_H
#define STORE_DOCUMENT_H

#include "internal.h"
#include "text.h"

#define MAX_TITLE_BYTES    16384
#define MAX_META_BYTES     (1u << 20)
#define MAX_SEGMENT_LENGTH 65535 /* terms; the length table has u16 */

/* A document ready to be written; all of it belongs to the put operation. */
struct new_document {
    struct mb_slice id;
    struct mb_slice title;
    struct mb_slice meta;
    uint8_t hash[16]; /* content_hash */
    uint64_t text_bytes;
    const struct mb_span *spans;
    size_t n_spans;
    const struct text_block *blocks;
    size_t n_blocks;
    size_t first_segment; /* index into new_batch.segments */
};

/* Terms of one segment: parallel arrays. */
struct new_segment {
    const uint32_t *term; /* index into new_batch.terms */
    const uint64_t *hash;
    const float *tf;
    size_t n;
    uint32_t length; /* 1..MAX_SEGMENT_LENGTH */
};

struct new_term {
    uint64_t hash;
    const uint8_t *bytes;
    uint32_t size;
    uint32_t id; /* the store's, UINT32_MAX until asked for */
};

/* What a put brings, and scratch memory for writing it. */
struct new_batch {
    struct new_document *documents;
    size_t n_documents;
    struct new_segment *segments;
    size_t n_segments;
    struct new_term *terms;
    size_t n_terms;
    const float *vectors; /* (n_segments, dim) row-major, or NULL */
    size_t dim;
    uint32_t *ids; /* room for the terms of the largest segment */
    uint32_t *tfs;
    struct mb_buffer record;
};

/* Hash of all that makes a document equal to another. */
void content_hash(struct mb_slice title, struct mb_slice text,
    struct mb_slice meta, struct mb_slice vector, uint8_t out[16]);

/* Number and content hash of the document with this id. NOT_FOUND. */
MB_MUST_USE mb_status document_lookup(struct kv_txn *txn, mb_collection_id coll,
    struct mb_slice id, mb_docno *docno, uint8_t hash[16],
    struct mb_error *err);
MB_MUST_USE mb_status document_insert(struct wtxn *w, struct wcoll *wc,
    struct new_batch *batch, size_t i, struct mb_error *err);
MB_MUST_USE mb_status document_erase(
    struct wtxn *w, struct wcoll *wc, mb_docno docno, struct mb_error *err);

/* ---- bytes of records ---- */

/* A document record taken apart; slices view the record. */
struct document_record {
    struct mb_document doc; /* docno is the caller's to set */
    const uint8_t *hash;    /* 16 bytes */
    uint32_t n_blocks;
    const uint8_t *starts; /* (n_blocks) u32 little-endian */
};

/* Bounds are checked, the checksum is not. Errors: CORRUPT. */
MB_MUST_USE mb_status document_decode(
    struct mb_slice record, struct document_record *out);
/* The same for a segment; segno is the caller's to set. */
MB_MUST_USE mb_status segment_decode(
    struct mb_slice record, struct mb_segment *out);

/* Keys. */
void document_key(struct kv_key *key, mb_collection_id coll, mb_docno docno);
void document_id_key(
    struct kv_key *key, mb_collection_id coll, struct mb_slice id);
void text_key(
    struct kv_key *key, mb_collection_id coll, mb_docno docno, uint32_t block);
void segment_key(struct kv_key *key, mb_collection_id coll, mb_segno segno);

#endif
