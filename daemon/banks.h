/* SPDX-License-Identifier: Apache-2.0
 * daemon/banks.h - memory banks at work: routers kept, blocks lent.
 *
 * A loan is what one request has of a bank: the path that its text routes to.
 * The blocks on it are looked up before each pass, in a read transaction that
 * lives as long as the pass, and lie where LMDB has them. So a block that was
 * retrained, disabled or spoilt by a deletion meanwhile is what the next pass
 * sees; and the store's file does not grow while a long text is generated.
 *
 * Life: bank_loan_new -> bank_loan_lender (while the request is under way) ->
 * bank_loan_free.
 * Threads: banks any. A loan belongs to its call, and to mb-model from submit
 * to on_done. */
#ifndef DAEMON_BANKS_H
#define DAEMON_BANKS_H

#include "call.h"
#include "dispatch.h"
#include "mb_banker.h"

struct banks;
struct bank_loan;
struct bank_entry; /* a router in use */

/* NULL when memory is short. */
struct banks *banks_new(struct daemon *d);
/* All loans must have been given back. Takes NULL. */
void banks_free(struct banks *b);

/* The router of coll's bank as the snapshot has it; give it back with
 * banks_unref. Errors: NOT_FOUND (it has none), CORRUPT, NOMEM. */
MB_MUST_USE mb_status banks_ref(struct banks *b, struct mb_snapshot *snap,
    const struct mb_collection *coll, struct bank_entry **out,
    struct mb_error *err);
void banks_unref(struct banks *b, struct bank_entry *entry);
const struct mb_router *bank_entry_router(const struct bank_entry *entry);

/* Is the bank for the model that reads? */
bool banks_is_live(struct daemon *d, const struct mb_banks *bank);
/* Is a node's block attached where a path has it? */
bool banks_is_attached(struct daemon *d, const struct mb_banks *bank,
    const struct mb_banks_node *node);
/* Does the subtree help held-out text? top: its node of the first level. */
bool banks_helps(const struct mb_banks_node *top);
/* Route a text: to the node of the segments that its words find best, or where
 * they find none by the words alone. Errors: CORRUPT, NOMEM, MISMATCH (a bank
 * that does not route by words, and none are found). */
MB_MUST_USE mb_status banks_route(struct call *c, struct worker *w,
    struct mb_snapshot *snap, const struct mb_collection *coll,
    const struct bank_entry *entry, struct mb_slice text, struct mb_route *out);

/* The loan of a call for its text; *out NULL: there is nothing to lend.
 * must: a bank that is missing, or another model's, is an error (NOT_FOUND,
 * MISMATCH); else blocks are lent only of subtrees that help. Errors: also those
 * of banks_route and the store. */
MB_MUST_USE mb_status bank_loan_new(struct call *c, struct worker *w, bool must,
    struct mb_slice text, struct bank_loan **out);
/* Takes NULL. */
void bank_loan_free(struct bank_loan *loan);
/* For mb_engine_request.bank; loan may be NULL: none. */
struct mb_bank_lender bank_loan_lender(struct bank_loan *loan);
/* "bank": {...}: the path, and what its blocks weigh. */
void bank_loan_write(struct mb_writer *w, const struct bank_loan *loan);

#endif
