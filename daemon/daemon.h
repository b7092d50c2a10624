/* SPDX-License-Identifier: Apache-2.0
 * daemon/daemon.h - what the parts of membankd share.
 *
 * daemon.c opens and closes the parts in order; commands.c is what clients
 * see of them.
 * Threads: parts are thread-safe by themselves; fields are set before the
 * server starts and stay, but where it is said. */
#ifndef DAEMON_DAEMON_H
#define DAEMON_DAEMON_H

#include <stdatomic.h>

#include "config.h"
#include "dispatch.h"
#include "embedder.h"
#include "indexer.h"
#include "jobs.h"
#include "mb_model.h"
#include "mb_store.h"
#include "reader.h"
#include "server.h"
#include "stats.h"

#define DAEMON_PROTOCOL 1

struct arenas;
struct banks;
struct contexts;

struct daemon {
    /* The settings in force; replaced as a whole by daemon_reload, and old
     * ones live until the end. Read through daemon_config. */
    _Atomic(const struct config *) config;
    struct config *configs[64];
    size_t n_configs;

    struct mb_store *store;
    struct mb_tokenizer *tokenizer; /* of the bundled model: cuts segments */
    struct reader *reader;

    struct dispatch *dispatch;
    struct embedder *embedder;
    struct indexer *indexer;
    struct jobs *jobs;
    struct stats *stats; /* a counter for each command */
    struct arenas *arenas;
    struct contexts *contexts;
    struct banks *banks;
    struct server *server;
    struct worker io_worker; /* for requests answered on mb-io */
    uint64_t started_ns;
    /* relaxed: when a request arrived last, or was answered */
    atomic_uint_fast64_t request_ns;
    atomic_bool shutting_down; /* relaxed: refuse what is new */
};

/* Open everything and serve. cfg becomes the daemon's.
 * Errors: those of mb_store_open, mb_gguf_open, server_open. */
MB_MUST_USE mb_status daemon_open(
    struct config *cfg, struct daemon **out, struct mb_error *err);
/* Refuse what is new and answer what is in flight. False if that takes longer
 * than shutdown_ms: what was acknowledged is on disk, but threads are still at
 * work, so that all one can do is to end the process. */
bool daemon_stop(struct daemon *d);
/* Commit and close; nothing may be in flight. Takes NULL. */
void daemon_close(struct daemon *d);

const struct config *daemon_config(const struct daemon *d);
/* Is anything being done for a client, or was a moment ago? *model: by the
 * model. Any thread. */
bool daemon_is_busy(struct daemon *d, bool *model);
/* Take the live settings of `wanted` over. Main thread. Errors: NOMEM,
 * TOO_LARGE (reloaded too often). */
MB_MUST_USE mb_status daemon_reload(struct daemon *d,
    const struct config *wanted, size_t *n_pending, struct mb_error *err);

/* ---- arenas: memory of requests, used again ---- */

/* Never fails for want of a cached one; NULL when memory is short. */
struct mb_arena *daemon_arena_take(struct daemon *d);
void daemon_arena_give(struct daemon *d, struct mb_arena *arena);

#endif
