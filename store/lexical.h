/* SPDX-License-Identifier: Apache-2.0
 * store/lexical.h - what the files of the lexical index share.
 *
 * lexical_codec.c knows the bytes of postings, heads, lengths and forward
 * indexes (FORMAT.md has them in full); lexical.c gathers the changes of a
 * transaction and writes them; lexical_search.c and lexical_lists.c answer;
 * lexical_verify.c compares everything with everything.
 *
 * A term's postings are blocks of up to 128 (segno rising, tf). Full blocks lie
 * in chunks, keyed (coll, term, last segno when the chunk was written), so that
 * one seek finds the chunk for a segno; the newest postings lie in the head,
 * keyed (coll, term, LEX_HEAD), which sorts after all chunks: one read gives df
 * and everything of a rare term, one write adds to it.
 *
 * Each block carries up to three points (tf, length) such that every posting
 * in it has at most the tf and at least the length of one of them. Since BM25
 * rises with tf and falls with length, the best of the points bounds the block
 * whatever k1, b and the average length are by then.
 * Invariants: points stay safe when postings are removed (they may be loose);
 * tf is cut at LEX_MAX_TF everywhere, forward index included. */
#ifndef STORE_LEXICAL_H
#define STORE_LEXICAL_H

#include "internal.h"

#define LEX_BLOCK      128 /* postings in a full block */
#define LEX_HEAD       UINT32_MAX
#define LEX_MAX_TF     255u
#define LEX_MAX_LENGTH 65535u
#define LEX_POINTS     3
/* A record stays below what LMDB would move to a page of its own. */
#define LEX_MAX_RECORD 2000
/* Full blocks move from the head to a chunk when they pass this. */
#define LEX_TAIL_BYTES 700
/* Largest block: 127 varints, 128 tf. */
#define LEX_BLOCK_BYTES (127 * 5 + 128)
#define LEX_ENTRY_BYTES 20
#define LEX_MAX_TERM    64
/* Segments in one row of the length table; its bytes with checksum. */
#define LEX_LENGTHS       2032u
#define LEX_LENGTHS_BYTES (2 * LEX_LENGTHS + 4)
/* Segments are below this, so that windows of them do not overflow. */
#define LEX_MAX_SEGNO (UINT32_MAX - 2 * LEX_LENGTHS)

/* Loads that a compiler turns into one instruction: the scans live on them. */
static inline uint32_t
lex_le16(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static inline uint32_t
lex_le32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
           (uint32_t)p[3] << 24;
}

static inline uint64_t
lex_le64(const uint8_t *p)
{
    return lex_le32(p) | (uint64_t)lex_le32(p + 4) << 32;
}

/* ---- bounds ---- */

/* tf and length of the postings that one point covers; tf 0: no point. */
struct lex_point {
    uint32_t tf;
    uint32_t length;
};

/* Builds the points of a set of postings: the shortest segment of each tf. */
struct lex_front {
    uint32_t max_tf;
    uint16_t shortest[LEX_MAX_TF + 1]; /* good from 1 to max_tf */
};

void lex_front_clear(struct lex_front *front);
void lex_front_add(struct lex_front *front, uint32_t tf, uint32_t length);
void lex_front_add_points(
    struct lex_front *front, const struct lex_point points[LEX_POINTS]);
/* Points, tf falling and length falling. */
void lex_front_points(
    const struct lex_front *front, struct lex_point points[LEX_POINTS]);

/* ---- blocks, chunks, heads ---- */

/* One block, payload in place. */
struct lex_block {
    uint32_t first;
    uint32_t last;
    uint32_t n;
    const uint8_t *payload;
    size_t size;
};

/* Blocks in a record: n entries, then their payloads one after another. */
struct lex_run {
    const uint8_t *entries;
    const uint8_t *payload;
    size_t payload_size;
    uint32_t n;
};

/* Block with this entry whose payload begins at `payload`. */
static inline struct lex_block
lex_run_block(const uint8_t *entry, const uint8_t *payload)
{
    return (struct lex_block){.first = lex_le32(entry),
        .last = lex_le32(entry + 4),
        .size = lex_le16(entry + 8),
        .n = entry[10] + 1u,
        .payload = payload};
}

/* Points of an entry. */
static inline void
lex_entry_points(const uint8_t *entry, struct lex_point points[LEX_POINTS])
{
    for (size_t i = 0; i < LEX_POINTS; i++) {
        points[i].tf = entry[11 + 3 * i];
        points[i].length = lex_le16(entry + 12 + 3 * i);
    }
}

/* The head of a term. Views its record. */
struct lex_head {
    uint32_t df;
    uint32_t last_chunk_bytes; /* of the newest chunk, or 0; a hint */
    struct mb_slice term;
    struct lex_point points[LEX_POINTS];      /* of all postings */
    struct lex_point rest_points[LEX_POINTS]; /* of rest */
    struct lex_run full;
    struct lex_block rest; /* not full; n may be 0 */
};

/* Segment numbers of a block, n of them; its tf are the last n bytes of the
 * payload. False if damaged (numbers may be written then). */
MB_MUST_USE bool lex_block_decode(
    const struct lex_block *block, uint32_t segnos[LEX_BLOCK]);

static inline const uint8_t *
lex_block_tfs(const struct lex_block *block)
{
    return block->payload + block->size - block->n;
}

/* Payload of n postings, at most LEX_BLOCK_BYTES; returns its bytes. */
size_t lex_block_encode(
    const uint32_t *segnos, const uint8_t *tfs, uint32_t n, uint8_t *out);
void lex_entry_encode(const struct lex_block *block,
    const struct lex_point points[LEX_POINTS], uint8_t out[LEX_ENTRY_BYTES]);

/* Take a record apart, all sizes checked, not the checksum. */
MB_MUST_USE bool lex_chunk_parse(struct mb_slice record, struct lex_run *out);
MB_MUST_USE bool lex_head_parse(struct mb_slice record, struct lex_head *out);
/* Bytes of a chunk of n blocks. */
size_t lex_chunk_bytes(size_t n, size_t payload_size);
/* Make a sealed record; out has LEX_MAX_RECORD bytes. Returns its size. */
size_t lex_chunk_encode(const struct lex_run *run, uint8_t *out);
size_t lex_head_encode(const struct lex_head *head, uint8_t *out);

/* Key (coll, id, chunk) of KV_POSTINGS; chunk LEX_HEAD is the head. */
void lex_posting_key(
    struct kv_key *key, mb_collection_id coll, uint32_t id, uint32_t chunk);
void lex_term_key(
    struct kv_key *key, mb_collection_id coll, struct mb_slice term);
/* Row `chunk` of the length table: lengths of segments from chunk *
 * LEX_LENGTHS on, u16 each. NULL in *lengths if there is no such row. */
MB_MUST_USE mb_status lex_lengths_row(struct kv_txn *txn, mb_collection_id coll,
    uint32_t chunk, const uint8_t **lengths);
/* Number of a term. Errors: NOT_FOUND, CORRUPT, IO. */
MB_MUST_USE mb_status lex_term_find(struct kv_txn *txn, mb_collection_id coll,
    struct mb_slice term, uint32_t *id);

#endif
