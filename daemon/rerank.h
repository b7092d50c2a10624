/* SPDX-License-Identifier: Apache-2.0
 * daemon/rerank.h - order hits by how likely they make the question.
 *
 * Ponte and Croft 1998, with a transformer: the model reads a passage, then the
 * question; the passage after which the question is most likely comes first.
 * Threads: as its call. */
#ifndef DAEMON_RERANK_H
#define DAEMON_RERANK_H

#include "finder.h"

/* Note the passages of n hits, with the question, in c->scores: the caller ends
 * the finder, calls call_ask and is run again. Errors: NOT_IMPLEMENTED (the
 * model cannot be used), CORRUPT, NOMEM. */
MB_MUST_USE mb_status rerank_prepare(const struct finder *f,
    struct mb_slice question, const struct mb_hit *hits, size_t n);
/* Give n hits the mean log-likelihood of a token of the question as their
 * score, and put them in order of it. Those that the model was not asked about
 * (they are new) are left out. Returns how many are left. */
size_t rerank_order(const struct finder *f, struct mb_hit *hits, size_t n);

#endif
