/* SPDX-License-Identifier: Apache-2.0
 * daemon/daemon.c - open the parts in order, close them in the other.
 *
 * Opening is cheap whatever the size of the store: the model's tokenizer is
 * read, the store is mapped, nothing is loaded that no request needs.
 * Stopping: refuse what is new; cancel jobs, which answers those that wait for
 * one; let what is in flight finish. Closing: end workers, then the store
 * (commits what is queued), and last the server, through which replies go.
 * Threads: main; daemon_config and the arenas from any. */
#include "daemon.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "banks.h"
#include "commands.h"
#include "contexts.h"

#define MAX_ARENA_BYTES  ((size_t)512 << 20)
#define MAX_KEPT_BYTES   ((size_t)1 << 20) /* larger arenas are given back */
#define MAX_KEPT_ARENAS  16
#define MAX_QUEUED_CALLS 4096
#define MAX_QUEUED_OPS   4096
#define CLOSE_MS         3600000u  /* for a training: it was not in flight */
#define QUIET_NS         50000000u /* after a reply, before it is quiet */

/* ---- arenas ---- */

struct arenas {
    pthread_mutex_t lock;
    size_t n;
    struct mb_arena *kept[MAX_KEPT_ARENAS];
};

struct mb_arena *
daemon_arena_take(struct daemon *d)
{
    struct mb_arena *arena = NULL;

    (void)pthread_mutex_lock(&d->arenas->lock);
    if (d->arenas->n > 0)
        arena = d->arenas->kept[--d->arenas->n];
    (void)pthread_mutex_unlock(&d->arenas->lock);
    return arena != NULL ? arena : mb_arena_new(MAX_ARENA_BYTES);
}

void
daemon_arena_give(struct daemon *d, struct mb_arena *arena)
{
    bool keep = mb_arena_bytes(arena) <= MAX_KEPT_BYTES;

    if (keep) {
        mb_arena_reset(arena);
        (void)pthread_mutex_lock(&d->arenas->lock);
        keep = d->arenas->n < MAX_KEPT_ARENAS;
        if (keep)
            d->arenas->kept[d->arenas->n++] = arena;
        (void)pthread_mutex_unlock(&d->arenas->lock);
    }
    if (!keep)
        mb_arena_free(arena);
}

static struct arenas *
arenas_new(void)
{
    struct arenas *a = mb_calloc(1, sizeof *a);

    if (a != NULL)
        (void)pthread_mutex_init(&a->lock, NULL);
    return a;
}

static void
arenas_free(struct arenas *a)
{
    if (a == NULL)
        return;
    for (size_t i = 0; i < a->n; i++) {
        mb_arena_free(a->kept[i]);
    }
    (void)pthread_mutex_destroy(&a->lock);
    mb_free(a);
}

/* ---- configuration ---- */

const struct config *
daemon_config(const struct daemon *d)
{
    return atomic_load_explicit(&d->config, memory_order_acquire);
}

static mb_status
use_config(struct daemon *d, struct config *cfg, struct mb_error *err)
{
    size_t max = sizeof d->configs / sizeof d->configs[0];

    if (d->n_configs == max)
        return mb_error_set(
            err, MB_ERR_TOO_LARGE, "reloaded %zu times: restart", max);
    d->configs[d->n_configs++] = cfg;
    atomic_store_explicit(&d->config, cfg, memory_order_release);
    return MB_OK;
}

mb_status
daemon_reload(struct daemon *d, const struct config *wanted, size_t *n_pending,
    struct mb_error *err)
{
    struct config *cfg = config_reload(daemon_config(d), wanted, n_pending);
    mb_status st;

    if (cfg == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "settings");
    st = server_reload_allowed(d->server, cfg->curve_allow_file, err);
    if (st == MB_OK)
        st = use_config(d, cfg, err);
    if (st != MB_OK) {
        config_free(cfg);
        return st;
    }
    server_set_limits(
        d->server, &(struct server_limits){cfg->max_client_requests,
                       cfg->max_client_bytes, cfg->max_pending_bytes});
    embedder_set_max(d->embedder, cfg->max_embedding_bytes);
    jobs_note_change(d->jobs);
    return MB_OK;
}

/* ---- parts ---- */

/* The model that is installed, else that of the tree this was built from. */
static const char *
bundled_path(void)
{
    return access(MB_MODEL_INSTALLED, R_OK) == 0 ? MB_MODEL_INSTALLED
                                                 : MB_MODEL_SOURCE;
}

/* The bundled model's tokenizer measures segments, whatever model reads. */
static mb_status
open_models(struct daemon *d, struct mb_error *err)
{
    const struct config *cfg = daemon_config(d);
    struct mb_gguf *gguf = NULL;
    mb_status st = mb_gguf_open(bundled_path(), &gguf, err);

    if (st == MB_OK)
        st = mb_tokenizer_new(gguf, &d->tokenizer, err);
    mb_gguf_close(gguf);
    if (st == MB_OK)
        st = reader_open(cfg, cfg->model[0] != 0 ? cfg->model : bundled_path(),
            &d->reader, err);
    return st;
}

static mb_status
open_store(struct daemon *d, struct mb_error *err)
{
    const struct config *cfg = daemon_config(d);
    struct mb_store_options opt = {
        .create = true,
        .map_bytes = cfg->map_bytes,
        .max_queued_ops = MAX_QUEUED_OPS,
        .helper = true,
    };

    mb_tokenizer_fingerprint(d->tokenizer, opt.tokenizer);
    return mb_store_open(cfg->store, &opt, &d->store, err);
}

static void
on_tick(void *arg, uint64_t now_ns)
{
    struct daemon *d = arg;

    jobs_expire(d->jobs, now_ns);
}

bool
daemon_is_busy(struct daemon *d, bool *model)
{
    uint64_t last = atomic_load_explicit(&d->request_ns, memory_order_relaxed);
    struct mb_engine_stats engine = {0};

    if (reader_absence(d->reader) == NULL)
        mb_engine_stats(reader_engine(d->reader), &engine);
    *model = engine.n_running + engine.n_queued > 0;
    return *model || mb_clock_ns() - last < QUIET_NS ||
           !dispatch_is_idle(d->dispatch);
}

static mb_status
open_parts(struct daemon *d, struct mb_error *err)
{
    const struct config *cfg = daemon_config(d);
    struct server_handler handler = {commands_on_request, on_tick, d};
    mb_status st;

    st = worker_init(&d->io_worker);
    if (st == MB_OK)
        st = dispatch_new(
            (unsigned)cfg->workers, MAX_QUEUED_CALLS, &d->dispatch, err);
    if (st != MB_OK)
        return mb_error_set(err, st, "start the workers");
    d->arenas = arenas_new();
    d->stats = stats_new(commands_count());
    d->embedder = embedder_new(cfg->max_embedding_bytes);
    d->indexer = indexer_new(&(struct indexer_options){
        d->store, d->tokenizer, d->embedder, d->dispatch});
    d->jobs = jobs_new(d);
    d->contexts = contexts_new(d);
    d->banks = banks_new(d);
    if (d->arenas == NULL || d->stats == NULL || d->embedder == NULL ||
        d->indexer == NULL || d->jobs == NULL || d->contexts == NULL ||
        d->banks == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "start");
    st = server_open(cfg, &handler, &d->server, err);
    if (st == MB_OK)
        st = jobs_start(d->jobs, err);
    if (st == MB_OK)
        server_start(d->server);
    return st;
}

mb_status
daemon_open(struct config *cfg, struct daemon **out, struct mb_error *err)
{
    struct daemon *d = mb_calloc(1, sizeof *d);
    mb_status st;

    if (d == NULL) {
        config_free(cfg);
        return mb_error_set(err, MB_ERR_NOMEM, "start");
    }
    d->started_ns = mb_clock_ns();
    st = use_config(d, cfg, err);
    if (st == MB_OK)
        st = open_models(d, err);
    if (st == MB_OK)
        st = open_store(d, err);
    if (st == MB_OK)
        st = open_parts(d, err);
    if (st == MB_OK) {
        *out = d;
        d = NULL;
    }
    daemon_close(d);
    return st;
}

bool
daemon_stop(struct daemon *d)
{
    uint64_t half_ms = daemon_config(d)->shutdown_ms / 2;
    bool ended;

    atomic_store_explicit(&d->shutting_down, true, memory_order_relaxed);
    // A training that ends late has saved all but what it is at.
    ended = jobs_stop(d->jobs, half_ms);
    if (server_drain(d->server, half_ms))
        return ended;
    // What is left are long texts of the model.
    reader_stop(d->reader);
    return server_drain(d->server, half_ms) && ended;
}

void
daemon_close(struct daemon *d)
{
    if (d == NULL)
        return;
    if (d->jobs != NULL)
        (void)jobs_stop(d->jobs, CLOSE_MS);
    // Its callbacks reply, or hand over to a worker.
    if (d->reader != NULL)
        reader_stop(d->reader);
    dispatch_free(d->dispatch);
    contexts_free(d->contexts); // waits for what it wrote
    banks_free(d->banks);
    mb_store_close(d->store);
    server_close(d->server);
    jobs_free(d->jobs);
    indexer_free(d->indexer);
    embedder_free(d->embedder);
    stats_free(d->stats);
    arenas_free(d->arenas);
    worker_fini(&d->io_worker);
    reader_close(d->reader);
    mb_tokenizer_free(d->tokenizer);
    for (size_t i = 0; i < d->n_configs; i++) {
        config_free(d->configs[i]);
    }
    mb_free(d);
}
