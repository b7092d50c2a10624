/* SPDX-License-Identifier: Apache-2.0
 * store/bank.h - private to bank*.c: rows of memory banks.
 *
 * KV_BANKS and KV_BANK_TRAINING have keys {coll, bank, kind u8, number u32};
 * bank 0 is the head, which says which bank is the collection's. Every bank but
 * that one is on its way out. Reading in order: bank_record.c (keys and bytes),
 * bank.c (reading, forgetting), bank_op.c (operations), bank_edit.c (those of
 * training), bank_verify.c. */
#ifndef STORE_BANK_H
#define STORE_BANK_H

#include "internal.h"
#include "mb_banks.h"
#include "record.h"
#include "tree.h"

/* Kinds of rows in KV_BANKS. */
enum bank_row {
    BANK_ROW_BANK = 0,      /* one: struct mb_banks */
    BANK_ROW_EMBEDDING = 1, /* piece */
    BANK_ROW_TREE = 2,      /* node: as in KV_NODES */
    BANK_ROW_NODE = 3,      /* node: struct mb_banks_node */
    BANK_ROW_SEGMENT = 4,   /* segno: its leaf */
    BANK_ROW_BLOCK = 5      /* node: the block */
};

/* Kinds of rows in KV_BANK_TRAINING. */
enum bank_training_row {
    BANK_TRAINING_RUN = 0,  /* one */
    BANK_TRAINING_JOB = 1,  /* top node */
    BANK_TRAINING_STATE = 2 /* node */
};

#define BANK_KEY_SIZE      13
#define BANK_HEAD_SIZE     (8 + RECORD_CHECKSUM)
#define BANK_RECORD_SIZE   (256 + RECORD_CHECKSUM)
#define BANK_SEGMENT_SIZE  (4 + RECORD_CHECKSUM)
#define BANK_NODE_FIXED    114
#define BANK_NODE_MAX      (BANK_NODE_FIXED + MB_BANKS_MAX_TERMS + 4)
#define BANK_JOB_FIXED     16
#define BANK_RUN_SIZE      (32 + RECORD_CHECKSUM)
#define BANK_PIECE         (16u * 4096u - 16u - RECORD_CHECKSUM)
#define BANK_MAX_NODES     TREE_MAX_NODES
#define BANK_MAX_EMBEDDING ((uint64_t)4 << 30)

struct bank_head {
    uint32_t active; /* 0: none */
    uint32_t next;
};

/* {coll, bank}, then kind, then number. */
void bank_prefix(struct kv_key *key, mb_collection_id coll, uint32_t bank);
void bank_key(struct kv_key *key, mb_collection_id coll, uint32_t bank,
    unsigned kind, uint32_t number);

/* A collection that never had a bank: {0, 1}. Errors: CORRUPT, IO. */
MB_MUST_USE mb_status bank_head_read(
    struct kv_txn *txn, mb_collection_id coll, struct bank_head *out);
MB_MUST_USE mb_status bank_head_write(
    struct kv_txn *txn, mb_collection_id coll, const struct bank_head *head);

void bank_record_encode(
    const struct mb_banks *bank, uint8_t out[BANK_RECORD_SIZE]);
/* Errors: CORRUPT. */
MB_MUST_USE mb_status bank_decode(struct mb_slice row, struct mb_banks *out);
size_t bank_node_encode(
    const struct mb_banks_node *node, uint8_t out[BANK_NODE_MAX]);
MB_MUST_USE mb_status bank_node_decode(
    struct mb_slice row, struct mb_banks_node *out);

void bank_run_encode(
    const struct mb_banks_run *run, uint8_t out[BANK_RUN_SIZE]);
/* Errors: CORRUPT. */
MB_MUST_USE mb_status bank_run_decode(
    struct mb_slice row, struct mb_banks_run *out);

/* Write a row with its checksum. */
MB_MUST_USE mb_status bank_row_put(struct wtxn *w, enum kv_table table,
    const struct kv_key *key, struct mb_slice bytes);
/* A sound row without its checksum. Errors: NOT_FOUND, CORRUPT, IO. */
MB_MUST_USE mb_status bank_row_get(struct kv_txn *txn, enum kv_table table,
    mb_collection_id coll, uint32_t bank, unsigned kind, uint32_t number,
    struct mb_slice *out);
/* In the write transaction, too. Errors: NOT_FOUND, CORRUPT, IO. */
MB_MUST_USE mb_status bank_node_read(struct kv_txn *txn, mb_collection_id coll,
    uint32_t bank, uint32_t node, struct mb_banks_node *out);
MB_MUST_USE mb_status bank_node_write(struct kv_txn *txn, mb_collection_id coll,
    uint32_t bank, const struct mb_banks_node *node);

/* A segment is being erased: whatever was trained on it becomes stale. Cheap
 * for a collection without a bank. Errors: CORRUPT, those of kv_put. */
MB_MUST_USE mb_status bank_forget(
    struct wtxn *w, struct wcoll *wc, mb_segno segno);

MB_MUST_USE mb_status bank_tree_load(struct kv_txn *txn, mb_collection_id coll,
    const struct mb_banks *bank, struct mb_tree **out, struct mb_error *err);

MB_MUST_USE mb_status bank_verify(
    struct verify *v, const struct mb_collection *coll, struct mb_error *err);

#endif
