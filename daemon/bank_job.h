/* SPDX-License-Identifier: Apache-2.0
 * daemon/bank_job.h - one run of training, for the two files that share it.
 *
 *   bank_train.c   the run: what there is to train, in which order, how long
 *   bank_job.c     one job of it: a subtree, or the generic block
 *
 * Threads: the caller's, and the trainer's own where it is said. */
#ifndef DAEMON_BANK_JOB_H
#define DAEMON_BANK_JOB_H

#include <stdatomic.h>

#include "bank_windows.h"
#include "mb_bank_train.h"
#include "mb_banker.h"

/* One run. */
struct bank_run {
    struct mb_banker_train *t;
    struct mb_router *router;
    const struct mb_banks *bank; /* the router's */
    struct mb_collection coll;
    struct bank_member *members; /* (n_members) by subtree, then segno */
    size_t n_members;
    /* At most one of the two; made when first needed. */
    struct mb_bank_trainer *trainer;
    bool trains_generic; /* what the trainer is made for */
    uint64_t started_ns;
    atomic_uint_fast64_t waited_ns; /* relaxed: in gives_way, over all threads
                                     * by their number */
    uint64_t charged_ms;            /* of the run's budget so far */
    uint64_t charged_tokens;
    bool is_over;     /* its budget, or the user's patience */
    bool is_replaced; /* the collection has another bank by now */
    /* The job at hand. */
    struct bank_windows windows;
    uint32_t top; /* of the subtree, or MB_BANKS_GENERIC */
    uint64_t version;
    uint64_t job;
    uint64_t tokens_before; /* in this run */
    struct mb_op *pending;  /* states of a checkpoint */
    struct mb_buffer loaded;
    struct mb_buffer record; /* as it is served */
};

/* A snapshot, and the collection as it is in it; the caller ends it. */
MB_MUST_USE mb_status bank_run_look(
    struct bank_run *r, struct mb_snapshot **snap, struct mb_error *err);
/* Seconds of work. */
double bank_run_seconds(const struct bank_run *r);
/* Has somebody stopped it, is its budget used up? */
bool bank_run_is_over(struct bank_run *r);

/* What the trainer asks; arg is the run. */
struct mb_bank_io bank_job_io(struct bank_run *r);

/* Train and publish what members (n, of one subtree, or all with generic) make,
 * unless it is as it should be. *finished: it is now. Errors: STALE (text is
 * gone meanwhile, or the bank was replaced), CANCELLED, those of the trainer
 * and the store. */
MB_MUST_USE mb_status bank_job_run(struct bank_run *r, bool generic,
    const struct bank_member *members, size_t n, bool *finished,
    struct mb_error *err);
/* Make all blocks at and below a node fresh, and forget their training. Errors:
 * STALE, those of the store. */
MB_MUST_USE mb_status bank_job_clear(
    struct bank_run *r, uint32_t top, struct mb_error *err);
/* Has what was trained at a node (and below), or is half trained, seen a text
 * that is gone? */
MB_MUST_USE mb_status bank_job_is_stale(struct bank_run *r, uint32_t top,
    bool *stale, bool *half, struct mb_error *err);

#endif
