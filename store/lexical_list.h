/* SPDX-License-Identifier: Apache-2.0
 * store/lexical_list.h - the postings of one term, read forward.
 *
 * A list stands on a block; it is unpacked only when a posting of it is asked
 * for. Skipping goes by entries inside a record and by seeks between records.
 * Scores are whole numbers: a posting gives its BM25 part times a power of two
 * that is fixed for the query, cut, plus one. Sums of them do not depend on
 * their order, so every way of computing a score gives the same one, ties are
 * ties, and tests compare for equality.
 * Threads: a list belongs to one thread; many may read one snapshot. */
#ifndef STORE_LEXICAL_LIST_H
#define STORE_LEXICAL_LIST_H

#include "lexical.h"

struct lex_list {
    /* In use while scoring, hot. */
    float weight; /* idf, (k1 + 1), count in the query, scale */
    uint32_t pos; /* in segnos, while unpacked */
    bool unpacked;
    bool end;   /* no block is left */
    bool dense; /* many blocks in a window: bounded by the whole term */
    struct lex_block block;
    int32_t block_bound; /* -1: not computed for this block */
    int32_t bound;       /* of any posting of the term */
    const uint8_t *tfs;
    uint32_t segnos[LEX_BLOCK];
    /* The record that holds the block. */
    const uint8_t *entry;       /* of the block; NULL: it is the head's rest */
    const uint8_t *entries_end; /* after the last entry of the record */
    bool in_head;
    /* The term. */
    struct kv_txn *txn;
    mb_collection_id coll;
    uint32_t id;
    struct kv_cursor *cursor; /* NULL: all is in the head */
    struct lex_head head;
    float norm_base;  /* k1 (1 - b) */
    float norm_slope; /* k1 b / average length */
};

/* The terms of a query over one collection. */
struct lex_query {
    struct lex_list *lists; /* arena */
    size_t n;
    float norm_base;
    float norm_slope;
    float scale; /* whole scores are scores times this */
};

/* Open the lists of all terms that the collection has (the LEX_MAX_LISTS of
 * highest bound), each on its first block. Close it in any case.
 * Errors: CORRUPT, IO, NOMEM. */
#define LEX_MAX_LISTS 256
MB_MUST_USE mb_status lex_query_open(struct lex_query *q, struct kv_txn *txn,
    const struct mb_collection *coll, const struct mb_term *terms,
    size_t n_terms, struct mb_arena *arena, struct mb_error *err);
void lex_query_close(struct lex_query *q);

/* Stand on the first block, from the present one on, whose last segment is
 * `segno` or above. Sets end if there is none. Errors: CORRUPT, IO. */
MB_MUST_USE mb_status lex_list_seek(struct lex_list *l, uint32_t segno);
/* To the next block. */
MB_MUST_USE mb_status lex_list_next(struct lex_list *l);
/* Unpack the block: segnos, tfs, pos 0. */
MB_MUST_USE mb_status lex_list_unpack(struct lex_list *l);
/* Highest score of a posting in the block. */
int32_t lex_list_block_bound(struct lex_list *l);
/* Bound for segments below `end`, from the present block on: of its blocks
 * where these are few, else of the term. */
int32_t lex_list_window_bound(struct lex_list *l, uint32_t end);

/* Score of a posting in a segment of this length. */
static inline int32_t
lex_posting_score(float weight, float norm_base, float norm_slope, uint32_t tf,
    uint32_t length)
{
    float t = (float)tf;
    float norm = norm_base + norm_slope * (float)length;
    return (int32_t)(weight * t / (t + norm)) + 1;
}

/* Add the score of segment segno, of this length, to *score if the term is in
 * it. Segments asked for must not fall. */
MB_MUST_USE mb_status lex_list_lookup(
    struct lex_list *l, uint32_t segno, uint32_t length, int32_t *score);

#endif
