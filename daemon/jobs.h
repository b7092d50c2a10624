/* SPDX-License-Identifier: Apache-2.0
 * daemon/jobs.h - work in the background, with progress to look at.
 *
 * Three threads of low priority: mb-job fits embeddings and builds trees as
 * collections grow, and erases generations that are no longer served; mb-task
 * makes snapshots and verifies, as clients ask for them; mb-train (priority:
 * bank_nice) trains memory banks, one at a time, and gives way to requests: of a
 * daemon that is never idle it takes a window of text now and then.
 * Life: jobs_new -> jobs_start -> ... -> jobs_stop -> jobs_free.
 * Threads: all functions from any thread. */
#ifndef DAEMON_JOBS_H
#define DAEMON_JOBS_H

#include "mb_banker.h"
#include "mb_store.h"
#include "mb_wire.h"

struct call;
struct config;
struct daemon;
struct jobs;

typedef enum job_kind {
    JOB_REFIT,    /* fit the embedding, build the tree, fold in, switch */
    JOB_TREE,     /* the same for vectors of clients */
    JOB_PURGE,    /* erase a generation that is not served */
    JOB_SNAPSHOT, /* hot copy */
    JOB_VERIFY,
    JOB_EMBED,     /* vectors of segments by the model that reads */
    JOB_TRAIN,     /* a memory bank */
    JOB_BANK_PURGE /* of a memory bank: what saw a text that is gone, anew */
} job_kind;

/* NULL when memory is short. d must outlive it. */
struct jobs *jobs_new(struct daemon *d);
/* Errors: NOMEM, INTERNAL. */
MB_MUST_USE mb_status jobs_start(struct jobs *jobs, struct mb_error *err);
/* Cancel what runs, answer who waits, end the threads. False: a training is
 * still amid a window of text after wait_ms; all else has ended. */
bool jobs_stop(struct jobs *jobs, uint64_t wait_ms);
void jobs_free(struct jobs *jobs);

/* Something was put into (or deleted from) a collection: see whether it is due
 * for a refit. Quick, no store call. */
void jobs_note_change(struct jobs *jobs);
/* Answer `call` (a put; takes it, with its result) once dense search finds
 * what coll holds now: at once if a generation is served or none is due. With
 * call->is_barrier: once no refit is due. */
void jobs_finish_when_searchable(
    struct jobs *jobs, struct call *call, const struct mb_collection *coll);
/* Segments that dense search does not find yet, but will once the refit that is
 * due is done. What no refit can or will do anything about does not count. */
uint64_t jobs_pending(
    const struct config *cfg, const struct mb_collection *coll);
/* Refit this collection soon, due or not. */
void jobs_want_refit(struct jobs *jobs, mb_collection_id coll);

/* Queue a snapshot to `path`, or a verify (path NULL). With call, its reply
 * comes at the end (takes it, unless it fails); *id is the job's number.
 * Errors: BUSY (too many wait), NOMEM. */
MB_MUST_USE mb_status jobs_submit(struct jobs *jobs, job_kind kind,
    const char *path, struct call *call, uint64_t *id, struct mb_error *err);

/* What was asked of a collection's bank has changed in the store (mb_banks_run):
 * do it soon, and let go of what runs. With kind JOB_TRAIN or JOB_BANK_PURGE a
 * job is queued, whose number is *id; with call, its reply comes at the end
 * (takes it, unless it fails). Errors: SHUTTING_DOWN, BUSY, NOMEM. */
MB_MUST_USE mb_status jobs_train(struct jobs *jobs, job_kind kind,
    const struct mb_collection *coll, struct call *call, uint64_t *id,
    struct mb_error *err);
/* A training is paused, or goes on, or its bank is gone. */
void jobs_train_again(struct jobs *jobs, const struct mb_collection *coll);
/* The job that trains the collection's bank just now, 0: none; how far it is,
 * and whether it waits for requests. */
uint64_t jobs_training(struct jobs *jobs, const char *collection,
    struct mb_banker_progress *out, bool *gives_way);

/* Write the array of jobs: those that run or wait, and the last that ended. */
void jobs_write(struct jobs *jobs, struct mb_writer *w);
/* Jobs that run or wait; the number that failed since the start. */
void jobs_counts(struct jobs *jobs, uint64_t *n_active, uint64_t *n_failed);
/* Answer those whose deadline has passed. mb-io, now and then. */
void jobs_expire(struct jobs *jobs, uint64_t now_ns);

#endif
