/* SPDX-License-Identifier: Apache-2.0
 * daemon/dispatch.h - the workers: two queues, and what each worker keeps.
 *
 * Quick tasks (reads) go before bulk ones (puts and large messages), and one
 * worker never takes bulk tasks, so that a read waits for other reads at most.
 * Life: dispatch_new -> submit ... -> dispatch_free, which runs what is queued.
 * Threads: submit from any. */
#ifndef DAEMON_DISPATCH_H
#define DAEMON_DISPATCH_H

#include "mb_base.h"
#include "mb_model.h"
#include "mb_store.h"

/* ---- worker: what one thread keeps from task to task ---- */

#define WORKER_ANALYZERS 4

struct worker {
    struct mb_token_cache *tokens;
    struct mb_buffer spans;   /* struct mb_span of a document */
    struct mb_buffer vectors; /* float rows of a put */

    struct worker_analyzer {
        char language[32];
        struct mb_analyzer *analyzer;
        uint64_t last_use;
    } analyzers[WORKER_ANALYZERS];

    uint64_t n_uses;
};

/* Errors: NOMEM. */
MB_MUST_USE mb_status worker_init(struct worker *w);
void worker_fini(struct worker *w);
/* The worker's own analyzer of a language; made at first use, the one unused
 * for longest makes room. Errors: BAD_ARG, NOMEM. */
MB_MUST_USE mb_status worker_analyzer(struct worker *w, const char *language,
    struct mb_analyzer **out, struct mb_error *err);

/* ---- dispatch ---- */

struct dispatch;
typedef void (*dispatch_fn)(void *arg, struct worker *w);

/* n_workers 0: one more than processors. max_queued bounds tasks that come
 * from clients. Errors: NOMEM, INTERNAL. */
MB_MUST_USE mb_status dispatch_new(unsigned n_workers, size_t max_queued,
    struct dispatch **out, struct mb_error *err);
/* Runs all queued tasks, and those that they submit; ends the workers. */
void dispatch_free(struct dispatch *d);
/* Errors: BUSY (queue full), NOMEM. */
MB_MUST_USE mb_status dispatch_submit(
    struct dispatch *d, bool bulk, dispatch_fn fn, void *arg);

/* A task whose memory is the submitter's: cannot fail, has no limit. It must
 * stay in place until it runs; fn gets arg. For work already accepted. */
struct dispatch_task {
    dispatch_fn fn;
    void *arg;
    struct dispatch_task *next;
    bool owned; /* by dispatch.c */
};

void dispatch_post(struct dispatch *d, bool bulk, struct dispatch_task *task);
/* True if nothing is queued and nobody works on quick tasks. */
bool dispatch_is_idle(struct dispatch *d);
void dispatch_depth(struct dispatch *d, size_t *n_quick, size_t *n_bulk);

#endif
