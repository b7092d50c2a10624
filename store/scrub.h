/* SPDX-License-Identifier: Apache-2.0
 * store/scrub.h - overwriting erased bytes in the file.
 *
 * Erasing a row in LMDB leaves its bytes in the file: in pages that became
 * free, and in the gaps of pages that are in use. After a commit that erased
 * users' bytes the writer overwrites both. A mark in meta, set by the erasing
 * transaction itself, makes that resume after a crash.
 * Threads: writer; scrub_new before it starts, scrub_free after it ended. */
#ifndef STORE_SCRUB_H
#define STORE_SCRUB_H

#include "kv.h"

struct scrub;

/* txn: any, to read the mark. Errors: NOMEM, IO. */
MB_MUST_USE mb_status scrub_new(
    struct kv *kv, struct kv_txn *txn, struct scrub **out);
/* Cleans what is known and notes that the file was left clean; takes NULL. */
void scrub_free(struct scrub *scrub);
/* In the transaction that erases: set the mark. */
MB_MUST_USE mb_status scrub_mark(struct kv_txn *txn);
/* After every commit. */
void scrub_committed(struct scrub *scrub, bool erased);
bool scrub_is_pending(const struct scrub *scrub);
/* How long to wait before scrub_slice is worth a call when nothing else
 * happens, in ms; 0: for ever. */
unsigned scrub_wait_ms(const struct scrub *scrub);
/* Do a part of what is pending; outside a transaction. busy: operations wait.
 * idle: scrub_wait_ms have passed without any. True if more can be done at
 * once, false if nothing is left or a reader must end first. */
bool scrub_slice(struct scrub *scrub, bool busy, bool idle);

#endif
