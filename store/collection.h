/* SPDX-License-Identifier: Apache-2.0
 * store/collection.h - collection records, their names, and dropping.
 *
 * Names are rows of the meta table ("name:" and the name -> number), so that a
 * name is found without a scan and the list is in order of name. A dropped
 * collection loses its name and record at once; "drop:" and its number stays
 * in meta until all its rows are erased. */
#ifndef STORE_COLLECTION_H
#define STORE_COLLECTION_H

#include "internal.h"

#define META_NAME_PREFIX     "name:"
#define META_DROP_PREFIX     "drop:"
#define META_NOTE_PREFIX     "note:"
#define META_NEXT_COLLECTION "next_collection"

/* Bytes of a collection record (MAX_COLLECTION_RECORD at most). */
#define MAX_COLLECTION_RECORD 512
size_t collection_encode(
    const struct mb_collection *c, uint8_t out[MAX_COLLECTION_RECORD]);
/* Errors: CORRUPT. */
MB_MUST_USE mb_status collection_decode(
    struct mb_slice record, struct mb_collection *out);

/* By name, in any transaction; by number likewise. Errors: NOT_FOUND, CORRUPT */
MB_MUST_USE mb_status collection_read(struct kv_txn *txn, struct mb_slice name,
    struct mb_collection *out, struct mb_error *err);
MB_MUST_USE mb_status collection_read_id(struct kv_txn *txn,
    mb_collection_id id, struct mb_collection *out, struct mb_error *err);

/* Bodies of the operations of mb_store.h. */
MB_MUST_USE mb_status collection_create(struct wtxn *w, struct mb_slice name,
    const struct mb_collection_settings *settings, bool exist_ok,
    struct mb_error *err);
MB_MUST_USE mb_status collection_drop(
    struct wtxn *w, struct mb_slice name, struct mb_error *err);

/* Erase all notes of a collection (note.c). */
MB_MUST_USE mb_status note_drop_all(struct wtxn *w, mb_collection_id coll);

/* Write the records that changed; before the commit. */
MB_MUST_USE mb_status collection_flush(struct wtxn *w);
/* Forget the records of a transaction. */
void collection_forget(struct wtxn *w);

/* Number of a collection that is being erased, in any transaction.
 * NOT_FOUND if there is none. */
MB_MUST_USE mb_status collection_dropping(
    struct kv_txn *txn, mb_collection_id *id);
bool collection_is_dropping(struct kv_txn *txn, mb_collection_id id);
/* Erase at most max rows of a dropped collection; *done when none is left. */
MB_MUST_USE mb_status collection_erase_slice(
    struct wtxn *w, mb_collection_id id, size_t max, bool *done);

#endif
