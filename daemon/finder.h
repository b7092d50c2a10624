/* SPDX-License-Identifier: Apache-2.0
 * daemon/finder.h - from the text of a question to what mb_search wants.
 *
 * Life: finder_begin -> finder_prepare, mb_search ... -> finder_end.
 * Threads: as its call. */
#ifndef DAEMON_FINDER_H
#define DAEMON_FINDER_H

#include "anchor.h"
#include "cmd_read.h"

#define FINDER_MAX_TEXT 65536 /* bytes of a question */

struct finder {
    struct call *c;
    struct worker *w;
    struct mb_snapshot *snap;
    struct mb_collection coll;
    struct embedding *emb; /* NULL: none is served */
    anchor_state anchor;   /* collections of kind anchor */
    struct mb_slice model; /* that their vectors are of */
};

/* A snapshot of the collection that the call names, with its embedding.
 * finder_end must follow in any case. Errors: NOT_FOUND, CORRUPT, NOMEM. */
MB_MUST_USE mb_status finder_begin(
    struct finder *f, struct call *c, struct worker *w);
void finder_end(struct finder *f);

/* Fill in terms of text and, unless q has one or asks for lexical search, its
 * vector; all in the call's arena. q->mode must be set. *analyzed_ns (may be
 * NULL): when the terms were there. Errors: TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status finder_prepare(const struct finder *f,
    struct mb_slice text, struct mb_query *q, uint64_t *analyzed_ns);
/* The model makes the vectors of questions to a collection of kind anchor. If
 * it does and was not asked yet, note these texts in c->vectors and say true:
 * the caller ends the finder, calls call_ask and is run again. Errors: NOMEM. */
MB_MUST_USE mb_status finder_ask(
    struct finder *f, const struct mb_slice *texts, size_t n, bool *asks);
/* "hybrid", "dense", "lexical", or args' own. Errors: BAD_ARG. */
MB_MUST_USE mb_status finder_read_mode(
    const struct mb_value *args, mb_search_mode *out, struct mb_error *err);
extern const char *const finder_modes[3];

#endif
