/* SPDX-License-Identifier: Apache-2.0
 * daemon/context_open.h - an open context, for the files that share it.
 *
 *   contexts.c         who owns which, what stays open
 *   context_source.c   where the model's object finds and puts its blocks
 *   context_state.c    load, save, cut, fork
 *   context_settings.c how a context is read
 */
#ifndef DAEMON_CONTEXT_OPEN_H
#define DAEMON_CONTEXT_OPEN_H

#include <pthread.h>

#include "contexts.h"

/* A segment in memory: on its way to the disk, or of scratch. */
struct kept_segment {
    struct kept_segment *next;
    struct open_context *oc;
    uint64_t first;
    size_t n_blocks;
    struct mb_op *op; /* NULL: scratch */
    bool done;        /* under the lock: op was applied, or failed: */
    mb_status status;
    struct mb_error err;
    const uint8_t *bytes; /* (n_blocks, block_bytes) behind this struct */
};

struct open_context {
    struct open_context *next; /* in the table; under its lock, as are: */
    struct contexts *cs;
    char name[MB_MAX_CONTEXT_NAME + 1];
    size_t name_size;
    bool owned;
    struct call *parked; /* first to wait first, by c->next */
    uint64_t last_use;
    size_t bytes; /* of the model's object, 0: not loaded */

    /* The owner's. */
    struct mb_context *model;
    struct mb_arena *arena; /* settings, runs */
    /* As the store will have it once all that was submitted is applied, but its
     * runs: as it has them now. */
    struct mb_stored_context stored;
    struct mb_buffer runs; /* where stored.runs lie */
    size_t block_bytes;
    uint64_t max_total;
    mb_token_id carry;
    struct mb_snapshot *snap;     /* while a pass fetches */
    struct kept_segment *pending; /* oldest first */
    struct kept_segment **pending_end;
    size_t n_pending;
    bool is_scratch;
    uint64_t scratch_length; /* tokens of the model's object before it */
    struct kept_segment *scratch;
    size_t scratch_bytes;
    bool is_broken; /* a write failed: what is in memory is not on disk */
    struct mb_error broken;
    pthread_mutex_t lock; /* guards `done` of pending ones */
    pthread_cond_t wake;
};

struct contexts {
    struct daemon *d;
    pthread_mutex_t lock;
    struct open_context *list;
    uint64_t n_uses;
    uint64_t n_opened;
    uint64_t n_closed;
};

/* ---- contexts.c ---- */

/* Before a context takes so many bytes of memory: close unused ones until there
 * is room. Errors: BUSY (those in use leave none). */
MB_MUST_USE mb_status contexts_make_room(
    struct open_context *oc, size_t bytes, struct mb_error *err);

/* ---- context_source.c ---- */

/* What the model's object is made with. */
struct mb_context_source context_source(struct open_context *oc);
/* Wait until nothing is pending. The first failure since the load. */
MB_MUST_USE mb_status context_wait(
    struct open_context *oc, struct mb_error *err);
/* The same, whatever comes of it. */
void context_finish(struct open_context *oc);
/* Forget segments of scratch. */
void context_drop_scratch(struct open_context *oc);
/* Take figures and runs over from what the store has. */
MB_MUST_USE mb_status context_take_runs(
    struct open_context *oc, const struct mb_stored_context *from);

#endif
