/* SPDX-License-Identifier: Apache-2.0
 * daemon/bank_windows.h - what the blocks of one subtree are trained on.
 *
 * A window is a segment of a document, seen in another phrasing each time: as it
 * stands, shifted by half, behind a question made of its title. So a fact is
 * not learnt at one place behind one beginning alone. */
#ifndef DAEMON_BANK_WINDOWS_H
#define DAEMON_BANK_WINDOWS_H

#include "mb_bank_train.h"
#include "mb_banks.h"

/* A segment and the nodes it routes to, from below the root. */
struct bank_member {
    mb_segno segno;
    mb_docno docno;
    uint32_t path[MB_BANKS_MAX_LEVELS];
};

struct bank_windows {
    const struct mb_tokenizer *tokenizer; /* set before; the rest by make */
    const struct bank_member *members;    /* (n) by segno */
    size_t n;
    size_t n_train;             /* not held out */
    struct mb_bank_item *items; /* (n) as members */
    uint32_t *by_key;           /* (n) indexes, keys rising */
    struct mb_token_cache *cache;
    struct mb_buffer ids;
    uint32_t window;
};

/* Keys, held-out windows. One in hold_out is held out by its key, and one of
 * each leaf that has at least four. Errors: STALE (a segment is gone), CORRUPT,
 * NOMEM. */
MB_MUST_USE mb_status bank_windows_make(struct bank_windows *w,
    struct mb_snapshot *snap, const struct mb_collection *coll,
    const struct mb_banks *bank, const struct bank_member *members, size_t n,
    struct mb_error *err);
/* Keeps the tokenizer. */
void bank_windows_fini(struct bank_windows *w);
/* Over keys, paths and what is held out, in the order of keys. */
uint64_t bank_windows_hash(const struct bank_windows *w, uint64_t seed);
/* Documents that these windows are of. */
uint64_t bank_windows_documents(
    const struct bank_windows *w, const uint64_t *keys, size_t n);
/* A window as mb_bank_io.window wants it. Errors: STALE (its text is gone),
 * CORRUPT, NOMEM. */
MB_MUST_USE mb_status bank_windows_get(struct bank_windows *w,
    struct mb_store *store, const struct mb_collection *coll, uint64_t key,
    uint64_t epoch, mb_token_id *tokens, mb_token_id *targets, size_t *n,
    struct mb_error *err);

#endif
