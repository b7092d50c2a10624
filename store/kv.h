/* SPDX-License-Identifier: Apache-2.0
 * store/kv.h - named tables with ordered keys: the only face of LMDB.
 *
 * One environment a process and folder. Write transactions: the writer thread
 * only. Read transactions are not bound to a thread. Slices read from a
 * transaction end with it (in a write transaction: with the next write).
 * Keys are built with kv_key: big-endian integers and bytes, so that byte
 * order is the wanted order. */
#ifndef STORE_KV_H
#define STORE_KV_H

#include "mb_base.h"

enum kv_table {
    KV_META,          /* name -> value: format version, tokenizer, counters */
    KV_COLLECTIONS,   /* coll u32 -> collection record */
    KV_DOCUMENTS,     /* coll, docno -> document record */
    KV_DOCUMENT_IDS,  /* coll, id bytes -> docno */
    KV_TEXTS,         /* coll, docno, block u32 -> compressed text */
    KV_SEGMENTS,      /* coll, segno -> segment record with forward index */
    KV_EMBEDDINGS,    /* coll, generation, segno -> leaf, fp16 vector */
    KV_LISTS,         /* coll, generation, leaf, chunk -> int8 codes */
    KV_NODES,         /* coll, generation, node -> tree node, centroid */
    KV_GENERATIONS,   /* coll, generation -> generation record */
    KV_MODELS,        /* coll, generation, chunk -> embedding bytes */
    KV_TERMS,         /* coll, term bytes -> term id */
    KV_POSTINGS,      /* coll, term id, chunk -> postings; see lexical.h */
    KV_LENGTHS,       /* coll, chunk -> u16 length of each segment */
    KV_FIELDS,        /* coll, field, value, first segment -> docno, n */
    KV_BLOCKS,        /* strip, block -> keys and values; see context_rows.h */
    KV_BANKS,         /* coll, bank, kind, number; see bank.h */
    KV_BANK_TRAINING, /* coll, bank, kind, number; see bank.h */
    KV_CONTEXTS,      /* context or strip, kind, ... -> see context_rows.h */
    KV_JOBS,          /* reserved: background jobs that survive a restart */
    KV_N_TABLES
};

/* "documents"; "?" out of range. */
const char *kv_table_name(enum kv_table table);

struct kv;
struct kv_txn;
struct kv_cursor;

struct kv_options {
    bool read_only;
    bool create;
    bool no_sync;
    uint64_t map_bytes; /* 0: 1 TiB, halved until the system agrees */
};

/* Errors: NOT_FOUND, LOCKED, IO, NO_SPACE, READ_ONLY, FORMAT, CORRUPT. */
MB_MUST_USE mb_status kv_open(const char *path, const struct kv_options *opt,
    struct kv **out, struct mb_error *err);
void kv_close(struct kv *kv);
bool kv_is_read_only(const struct kv *kv);
const char *kv_path(const struct kv *kv); /* the folder */
/* Was it shut in order the last time (kv_mark_shut), or is it new? Until the
 * mark is set again it counts as open. For the scrub. */
bool kv_was_shut(const struct kv *kv);
void kv_mark_shut(struct kv *kv);
/* Transaction of the oldest reader, in all processes; UINT64_MAX if there is
 * none. */
uint64_t kv_oldest_reader(struct kv *kv);

MB_MUST_USE mb_status kv_begin(
    struct kv *kv, bool write, struct kv_txn **out, struct mb_error *err);
/* A second reader of the very state that txn reads, for another thread. Never
 * waits. Errors: STALE (there is a newer state), BUSY, NOMEM: do without. */
MB_MUST_USE mb_status kv_begin_twin(
    const struct kv_txn *txn, struct kv_txn **out);
/* Ends txn in any case. Errors: NO_SPACE, IO: nothing was kept then. */
MB_MUST_USE mb_status kv_commit(struct kv_txn *txn, struct mb_error *err);
void kv_abort(struct kv_txn *txn);
uint64_t kv_txn_id(const struct kv_txn *txn);
/* The cause of the last failure inside txn, for those calls that take no err:
 * written into err if nobody wrote there yet. Returns st. */
mb_status kv_txn_explain(
    const struct kv_txn *txn, mb_status st, struct mb_error *err);

/* True after a transaction failed because the map (not the disk) was full. */
bool kv_map_is_full(const struct kv *kv);
/* Double the map, waiting a while for this process's transactions to end.
 * Not inside a transaction. Errors: NO_SPACE (cannot grow), BUSY. */
MB_MUST_USE mb_status kv_grow(struct kv *kv, struct mb_error *err);

/* Version of all bytes in the store: FORMAT.md. */
#define KV_FORMAT 1u

#define KV_MAX_KEY 511

struct kv_key {
    uint16_t size;
    uint8_t bytes[KV_MAX_KEY];
};

/* Keys in one line: kv_key_init(&k); kv_key_u32(&k, coll); ... Past KV_MAX_KEY
 * is a broken invariant: callers bound their bytes. */
void kv_key_init(struct kv_key *key);
void kv_key_u8(struct kv_key *key, uint8_t v);
void kv_key_u32(struct kv_key *key, uint32_t v);
void kv_key_u64(struct kv_key *key, uint64_t v);
void kv_key_bytes(struct kv_key *key, struct mb_slice s);
struct mb_slice kv_key_slice(const struct kv_key *key);

/* Errors: NOT_FOUND (not logged, err untouched), CORRUPT, IO. */
MB_MUST_USE mb_status kv_get(struct kv_txn *txn, enum kv_table table,
    struct mb_slice key, struct mb_slice *val);
/* Insert or replace. The key may view a row of this transaction, the value must
 * not. Errors: NO_SPACE (map or disk), IO, READ_ONLY. */
MB_MUST_USE mb_status kv_put(struct kv_txn *txn, enum kv_table table,
    struct mb_slice key, struct mb_slice val);
/* Insert or replace with `size` bytes that the caller fills before its next
 * call on txn. */
MB_MUST_USE mb_status kv_reserve(struct kv_txn *txn, enum kv_table table,
    struct mb_slice key, size_t size, uint8_t **out);
/* Errors: NOT_FOUND. The erased bytes are overwritten in the file by the next
 * kv_scrub. */
MB_MUST_USE mb_status kv_del(
    struct kv_txn *txn, enum kv_table table, struct mb_slice key);

MB_MUST_USE mb_status kv_cursor_open(
    struct kv_txn *txn, enum kv_table table, struct kv_cursor **out);
void kv_cursor_close(struct kv_cursor *c);
/* First row with key >= `key` (empty: the first of all), next, previous, last.
 * key and val may be NULL. Errors: NOT_FOUND at the end. */
MB_MUST_USE mb_status kv_cursor_seek(struct kv_cursor *c, struct mb_slice key,
    struct mb_slice *k, struct mb_slice *v);
MB_MUST_USE mb_status kv_cursor_next(
    struct kv_cursor *c, struct mb_slice *k, struct mb_slice *v);
MB_MUST_USE mb_status kv_cursor_prev(
    struct kv_cursor *c, struct mb_slice *k, struct mb_slice *v);
MB_MUST_USE mb_status kv_cursor_last(
    struct kv_cursor *c, struct mb_slice *k, struct mb_slice *v);
/* Row with just this key. For many keys in rising order: cheaper than kv_get
 * where one lies on the page of the one before. */
MB_MUST_USE mb_status kv_cursor_find(
    struct kv_cursor *c, struct mb_slice key, struct mb_slice *v);
/* Last row whose key starts with prefix. */
MB_MUST_USE mb_status kv_cursor_last_of(struct kv_cursor *c,
    struct mb_slice prefix, struct mb_slice *k, struct mb_slice *v);
/* Write through the cursor at a key just sought (saves a descent). */
MB_MUST_USE mb_status kv_cursor_put(
    struct kv_cursor *c, struct mb_slice key, struct mb_slice val);
/* Erase the row the cursor is on; kv_cursor_next goes to the one after it. */
MB_MUST_USE mb_status kv_cursor_del(struct kv_cursor *c);

/* True if key begins with prefix. */
bool kv_has_prefix(struct mb_slice key, struct mb_slice prefix);

/* Erase at most max rows whose key starts with prefix; *n says how many. */
MB_MUST_USE mb_status kv_del_prefix(struct kv_txn *txn, enum kv_table table,
    struct mb_slice prefix, size_t max, size_t *n);

/* Erase the rows from key `from` on, `bytes` of them or a little more, and put
 * them again. LMDB may steer by a key that is no longer there; this makes it
 * take others, of rows that are. After a failure rows are missing: abort.
 * Errors: NO_SPACE, NOMEM, TOO_LARGE (a row above 1 MiB). */
MB_MUST_USE mb_status kv_rewrite(struct kv_txn *txn, enum kv_table table,
    struct mb_slice from, size_t bytes);

struct kv_stats {
    uint64_t file_bytes;
    uint64_t map_bytes;
    uint64_t used_bytes;
    uint64_t free_bytes;
    uint64_t last_txn;
    uint64_t oldest_reader_lag;
    uint32_t n_readers;
};

MB_MUST_USE mb_status kv_stats(
    struct kv *kv, struct kv_stats *out, struct mb_error *err);
MB_MUST_USE mb_status kv_table_stats(
    struct kv_txn *txn, enum kv_table table, uint64_t *rows, uint64_t *bytes);
MB_MUST_USE mb_status kv_copy(
    struct kv *kv, const char *to, struct mb_error *err);

#endif
