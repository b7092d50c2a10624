/* SPDX-License-Identifier: Apache-2.0
 * store/context_rows.h - records of long contexts, for the files that share them.
 *
 *   context.c         records as bytes; reading
 *   context_op.c      operations: create, append, fork, cut, delete
 *   context_trace.c   what was retrieved, as bytes
 *   context_erase.c   rows that no context names any more
 *   context_verify.c  are records, rows and figures what they must be?
 *
 * Rows of a block lie in a strip, a number of their own, under the block's
 * number. A context is a list of runs: blocks [first, end) are those of a
 * strip. It appends to the strip of its last run as long as nothing lies there
 * behind its end, else it begins a new strip. So blocks are written once, a
 * fork copies the list, and cutting is shortening it. What was taken from a list
 * is compared with all others: rows that none of them names are noted in meta
 * and erased from their end, so that the place behind a context's end is either
 * free or taken, never both. */
#ifndef STORE_CONTEXT_ROWS_H
#define STORE_CONTEXT_ROWS_H

#include "internal.h"
#include "mb_store_context.h"
#include "record.h"

#define META_CONTEXT_PREFIX "context:"
#define META_ERASE_PREFIX   "erase:"
#define META_NEXT_CONTEXT   "next_context"
#define META_CONTEXT_BYTES  "context_bytes"

/* Kinds of rows in KV_CONTEXTS, behind the number of a context or strip. */
enum {
    CONTEXT_ROW_RECORD = 0,
    CONTEXT_ROW_SUM = 1,  /* and the block's number */
    CONTEXT_ROW_TAIL = 2, /* and the block's place in it */
    CONTEXT_ROW_TRACE = 3
};

#define CONTEXT_FIXED 144 /* bytes of a record before its runs */
#define CONTEXT_RUN   16
#define SUM_FIXED     20
#define SUM_ENDS      1u /* flag: the last block of its segment */
/* A row of keys and values is padded to this, so that LMDB gives it pages of its
 * own and it is aligned. */
#define KV_MIN_ROW 4080u

void context_key(struct kv_key *key, uint64_t id, uint8_t kind);
void context_tail_key(struct kv_key *key, uint64_t id, uint32_t i);
void context_sum_key(struct kv_key *key, uint64_t strip, uint32_t block);
void context_kv_key(struct kv_key *key, uint64_t strip, uint32_t block);
void context_name_key(struct kv_key *key, struct mb_slice name);
void context_erase_key(struct kv_key *key, uint64_t strip, uint32_t first);
/* Bytes at the end of a row of a tail: size of the sum u32, checksum. */
#define TAIL_END (4 + RECORD_CHECKSUM)
bool context_tail_decode(struct mb_slice row,
    const struct mb_stored_context *ctx, struct mb_slice *kv,
    struct mb_slice *sum);
/* Bytes of a row of keys and values, checksum included. */
size_t context_kv_row(size_t kv_bytes);

/* Set n_tokens from what it is made of. */
void context_count(struct mb_stored_context *c);
/* Runs and settings of *out lie in arena. Errors: CORRUPT, NOMEM. */
MB_MUST_USE mb_status context_decode(struct mb_slice record,
    struct mb_arena *arena, struct mb_stored_context *out);
/* Errors: TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status context_encode(
    const struct mb_stored_context *c, struct mb_buffer *out);
/* Errors: CORRUPT. */
MB_MUST_USE mb_status context_sum_decode(
    struct mb_slice record, struct mb_stored_sum *out);
MB_MUST_USE mb_status context_sum_encode(
    const struct mb_stored_sum *sum, struct mb_buffer *out);

/* In any transaction. Errors: NOT_FOUND, CORRUPT, NOMEM. */
MB_MUST_USE mb_status context_read(struct kv_txn *txn, struct mb_slice name,
    struct mb_arena *arena, struct mb_stored_context *out,
    struct mb_error *err);
MB_MUST_USE mb_status context_read_id(struct kv_txn *txn, uint64_t id,
    struct mb_arena *arena, struct mb_stored_context *out,
    struct mb_error *err);
MB_MUST_USE mb_status context_read_all(struct kv_txn *txn,
    struct mb_arena *arena, struct mb_stored_context **out, size_t *n,
    struct mb_error *err);
/* The run that has a block; NULL if none has. */
const struct mb_stored_run *context_run_of(
    const struct mb_stored_context *ctx, uint32_t block);
MB_MUST_USE mb_status context_sum_read(struct kv_txn *txn,
    const struct mb_stored_context *ctx, uint32_t block,
    struct mb_stored_sum *out, struct mb_error *err);
/* Both rows of a block; 0 where there is none. */
MB_MUST_USE mb_status context_row_bytes(
    struct kv_txn *txn, uint64_t strip, uint32_t block, uint64_t *bytes);
/* A number in meta; 0 if it is not there. */
MB_MUST_USE mb_status context_meta_u64(
    struct kv_txn *txn, const char *name, uint64_t *out);

/* ---- context_trace.c ---- */

MB_MUST_USE mb_status context_trace_encode(
    const struct mb_stored_trace *t, struct mb_buffer *out);

/* ---- context_erase.c ---- */

/* After a context has lost `lost`: note for erasing what none of all (n) names.
 * Those of `all` are as they are from now on. */
MB_MUST_USE mb_status context_rows_release(struct wtxn *w,
    const struct mb_stored_run *lost, size_t n_lost,
    const struct mb_stored_context *all, size_t n);
/* Is anything noted? */
MB_MUST_USE mb_status context_is_erasing(struct kv_txn *txn, bool *out);
/* Is this row noted? */
bool context_row_is_erasing(struct kv_txn *txn, uint64_t strip, uint32_t block);
/* Erase at most max blocks; *done when nothing is noted any more. */
MB_MUST_USE mb_status context_erase_slice(
    struct wtxn *w, size_t max, bool *done);

/* ---- context_verify.c ---- */

MB_MUST_USE mb_status context_verify(struct verify *v, struct mb_error *err);

#endif
