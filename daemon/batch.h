/* SPDX-License-Identifier: Apache-2.0
 * daemon/batch.h - many texts through the model for one caller.
 *
 * A few are in the engine's hands at a time, so that a large batch does not
 * fill its queue.
 * Life: batch_new -> batch_add ... -> batch_run, done (or batch_wait) ->
 * batch_vector, batch_nll -> batch_free.
 * Threads: one caller; done comes on mb-model, or from batch_run itself where
 * there is nothing to do. */
#ifndef DAEMON_BATCH_H
#define DAEMON_BATCH_H

#include "reader.h"

struct batch;
/* Once; the caller may free the batch in it. */
typedef void (*batch_done_fn)(
    void *arg, struct batch *b, mb_status st, const struct mb_error *err);

/* task: MB_TASK_SCORE or MB_TASK_EMBED. Errors: NOMEM. */
MB_MUST_USE mb_status batch_new(struct reader *r, mb_task task,
    uint64_t deadline_ns, struct batch **out, struct mb_error *err);
/* Nothing of it may be under way. Takes NULL. */
void batch_free(struct batch *b);
/* One more text, behind a context that is read but not counted (score; may be
 * empty). A context too long for the window loses its beginning.
 * Errors: TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status batch_add(struct batch *b, struct mb_slice context,
    struct mb_slice text, struct mb_error *err);
size_t batch_size(const struct batch *b);
/* Begin. If one text fails, no more are begun, and done gets its error. */
void batch_run(struct batch *b, batch_done_fn done, void *arg);
/* Run and wait. stop (may be NULL) is asked now and then; true cancels. */
MB_MUST_USE mb_status batch_wait(
    struct batch *b, bool (*stop)(void *arg), void *arg, struct mb_error *err);

/* Results of text i, as long as the batch: a unit vector (the engine's dim),
 * all zero for a text without tokens; and -log p of a text and its tokens. */
const float *batch_vector(const struct batch *b, size_t i);
void batch_nll(const struct batch *b, size_t i, double *nll, size_t *n_tokens);

#endif
