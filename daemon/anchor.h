/* SPDX-License-Identifier: Apache-2.0
 * daemon/anchor.h - embeddings made by the model that reads.
 *
 * A collection of kind anchor has one flat generation (a tree later, as it
 * grows) whose embedding bytes name the model by its fingerprint. Segments are
 * put without vectors, and those are added in the background. Under another
 * model the vectors stay as they are and lie dormant: search is lexical, and
 * segments put meanwhile get their vectors when the model is back.
 * Threads: as said below. */
#ifndef DAEMON_ANCHOR_H
#define DAEMON_ANCHOR_H

#include "mb_store.h"
#include "reader.h"

typedef enum anchor_state {
    ANCHOR_NONE,    /* no generation yet */
    ANCHOR_LIVE,    /* vectors are this model's */
    ANCHOR_DORMANT, /* another's, or the model cannot be used */
} anchor_state;

/* How the generation that coll serves stands to the model. name (may be NULL)
 * gets the name of the model that it belongs to, in arena. Any thread.
 * Errors: CORRUPT, FORMAT, NOMEM. */
MB_MUST_USE mb_status anchor_state_of(struct reader *r,
    struct mb_snapshot *snap, const struct mb_collection *coll,
    struct mb_arena *arena, anchor_state *out, struct mb_slice *name,
    struct mb_error *err);

struct anchor_sync {
    struct mb_store *store;
    struct reader *reader;
    struct mb_collection coll;
    mb_segno from; /* segments below have their vectors */
    bool renew;    /* replace a generation of another model */
    bool (*progress)(void *arg, const char *phase, double part);
    void *arg;
    /* Results. */
    mb_segno done_to;
    uint64_t n_added;
    anchor_state state;
    uint32_t replaced; /* generation to purge; 0: none */
};

/* Make the generation if there is none, then the vectors that are missing.
 * A dormant one is left as it is. On failure done_to is valid, too. mb-job.
 * Errors: CANCELLED, NOT_FOUND (dropped), BUSY, SHUTTING_DOWN, ... */
MB_MUST_USE mb_status anchor_sync_run(
    struct anchor_sync *s, struct mb_error *err);

#endif
