/* SPDX-License-Identifier: Apache-2.0
 * daemon/jobs.c - work in the background, with progress to look at.
 *
 * mb-job sleeps until something changed, then looks at all collections: which
 * has grown enough since its last fit? A collection that has been quiet for a
 * while is refitted at twice its size, one that keeps growing at four times,
 * but not while it grows so fast that the fit would be outgrown at its end: a
 * bulk load would be fitted and written several times over. An idle daemon
 * wakes up for nothing.
 * mb-task runs what clients ask for, one after the other.
 * Invariants: a job is in the list from its start (or its request) until
 * KEPT_JOBS later ones have ended; a call waits in one place: at its job, or
 * in `waiters`.
 * Threads: `lock` guards everything but `stopping`; no store call and no reply
 * under it. */
#include "jobs.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "anchor.h"
#include "call.h"
#include "need.h"
#include "refit.h"

#define KEPT_JOBS    32
#define MAX_WAITING  32 /* snapshots and verifies that have not begun */
#define MAX_PROBLEMS 100
#define RETRY_NS     60000000000u /* after a refit that failed */
#define LOOK_MS      50           /* as often at most */
#define GROWTH_NS    1000000000u  /* over which growth is measured */
#define FAST_GROWTH  16           /* faster than a 16th of its size a second */
#define NO_TIME      UINT64_MAX

typedef enum job_state {
    JOB_WAITING,
    JOB_RUNNING,
    JOB_DONE,
    JOB_FAILED,
    JOB_CANCELLED
} job_state;

static const char *const kind_names[] = {
    "refit", "tree", "purge", "snapshot", "verify", "embed"};
static const char *const state_names[] = {
    "waiting", "running", "done", "failed", "cancelled"};

struct problem {
    char table[24];
    char key[96];
    char what[160];
};

struct job {
    struct job *next; /* newer first */
    struct jobs *jobs;
    uint64_t id;
    job_kind kind;
    job_state state;
    char collection[MB_MAX_COLLECTION_NAME + 1];
    char path[CONFIG_MAX_TEXT];
    const char *phase;
    double part;
    uint64_t started_ms;
    uint64_t ended_ms;
    struct mb_error err;
    struct call *call; /* that waits for its end, or NULL */
    struct mb_verify_result verified;
    struct problem *problems; /* (MAX_PROBLEMS), verify only */
    size_t n_problems;
};

/* What mb-job remembers of a collection. */
struct watch {
    struct watch *next;
    mb_collection_id id;
    uint64_t created_ms;
    uint32_t next_segno;
    uint64_t changed_ns;    /* when next_segno was seen to change */
    uint64_t not_before_ns; /* after a failure */
    uint64_t mark_ns;       /* growth is measured from here; 0: not yet */
    uint64_t mark_n;        /* size_of then */
    bool is_calm;           /* grew slowly when last measured */
    mb_segno embedded_to;   /* kind anchor: segments below have vectors */
    bool is_dormant;        /* kind anchor: they are another model's */
    bool wanted;            /* by rebuild, or by a put that waits */
    bool seen;              /* in this look */
};

struct jobs {
    struct daemon *d;
    struct mb_thread *job_thread;
    struct mb_thread *task_thread;
    atomic_bool stopping; /* release in stop, acquire in progress */

    pthread_mutex_t lock;
    pthread_cond_t job_wake;
    pthread_cond_t task_wake;
    bool changed;
    uint64_t next_id;
    uint64_t n_failed;
    struct job *newest;
    struct watch *watches;
    struct call *waiters; /* puts that wait for a first fit */
};

/* ---- life ---- */

struct jobs *
jobs_new(struct daemon *d)
{
    struct jobs *j = mb_calloc(1, sizeof *j);
    pthread_condattr_t attr;

    if (j == NULL)
        return NULL;
    j->d = d;
    j->next_id = 1;
    j->changed = true;
    (void)pthread_mutex_init(&j->lock, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&j->job_wake, &attr);
    (void)pthread_cond_init(&j->task_wake, &attr);
    (void)pthread_condattr_destroy(&attr);
    return j;
}

static bool
is_stopping(struct jobs *j)
{
    return atomic_load_explicit(&j->stopping, memory_order_acquire);
}

static void
job_free(struct job *job)
{
    mb_free(job->problems);
    mb_free(job);
}

void
jobs_free(struct jobs *j)
{
    if (j == NULL)
        return;
    MB_ASSERT(j->waiters == NULL);
    while (j->newest != NULL) {
        struct job *next = j->newest->next;

        job_free(j->newest);
        j->newest = next;
    }
    while (j->watches != NULL) {
        struct watch *next = j->watches->next;

        mb_free(j->watches);
        j->watches = next;
    }
    (void)pthread_cond_destroy(&j->job_wake);
    (void)pthread_cond_destroy(&j->task_wake);
    (void)pthread_mutex_destroy(&j->lock);
    mb_free(j);
}

/* ---- the list of jobs ---- */

/* Forget the oldest that have ended. Under the lock. */
static void
trim(struct jobs *j)
{
    size_t n = 0;

    for (struct job **at = &j->newest; *at != NULL;) {
        struct job *job = *at;

        if (job->state >= JOB_DONE && ++n > KEPT_JOBS) {
            *at = job->next;
            job_free(job);
        } else {
            at = &job->next;
        }
    }
}

static struct job *
job_new(struct jobs *j, job_kind kind, const char *collection)
{
    struct job *job = mb_calloc(1, sizeof *job);

    if (job == NULL)
        return NULL;
    job->jobs = j;
    job->kind = kind;
    job->phase = "";
    (void)snprintf(job->collection, sizeof job->collection, "%s", collection);
    return job;
}

/* Under the lock. */
static void
job_add(struct jobs *j, struct job *job)
{
    job->id = j->next_id++;
    job->next = j->newest;
    j->newest = job;
    trim(j);
}

static void
job_begin(struct jobs *j, struct job *job)
{
    (void)pthread_mutex_lock(&j->lock);
    job->state = JOB_RUNNING;
    job->started_ms = mb_clock_wall_ms();
    (void)pthread_mutex_unlock(&j->lock);
    mb_log(MB_LOG_INFO, "job.begin", "id=%llu kind=%s collection=\"%s\"",
        (unsigned long long)job->id, kind_names[job->kind], job->collection);
}

/* The job's progress callback: true to stop. */
static bool
on_progress(void *arg, const char *phase, double part)
{
    struct job *job = arg;
    struct jobs *j = job->jobs;

    (void)pthread_mutex_lock(&j->lock);
    job->phase = phase;
    job->part = part;
    (void)pthread_mutex_unlock(&j->lock);
    return is_stopping(j);
}

/* Record how it ended; the caller who waits for it, if any, is returned. */
static struct call *
job_end(
    struct jobs *j, struct job *job, mb_status st, const struct mb_error *err)
{
    struct call *call;

    (void)pthread_mutex_lock(&j->lock);
    job->state = st == MB_OK                                    ? JOB_DONE
                 : st == MB_ERR_CANCELLED || st == MB_ERR_STALE ? JOB_CANCELLED
                                                                : JOB_FAILED;
    job->ended_ms = mb_clock_wall_ms();
    job->err = *err;
    if (st == MB_OK)
        job->part = 1;
    if (job->state == JOB_FAILED)
        j->n_failed++;
    call = job->call;
    job->call = NULL;
    (void)pthread_mutex_unlock(&j->lock);
    mb_log(job->state == JOB_FAILED ? MB_LOG_WARN : MB_LOG_INFO, "job.end",
        "id=%llu kind=%s collection=\"%s\" state=%s ms=%llu cause=\"%s\"",
        (unsigned long long)job->id, kind_names[job->kind], job->collection,
        state_names[job->state],
        (unsigned long long)(job->ended_ms - job->started_ms), err->text);
    return call;
}

static void
write_job(const struct job *job, struct mb_writer *w)
{
    bool ended = job->state >= JOB_DONE;
    bool failed = job->state == JOB_FAILED;
    uint64_t end_ms = ended ? job->ended_ms : mb_clock_wall_ms();

    mb_write_map(w, failed ? 8 : 7);
    mb_write_kv_uint(w, "job", job->id);
    mb_write_kv_cstr(w, "kind", kind_names[job->kind]);
    mb_write_kv_cstr(w, "collection", job->collection);
    mb_write_kv_cstr(w, "state", state_names[job->state]);
    mb_write_kv_cstr(w, "phase", ended ? "" : job->phase);
    mb_write_kv_f64(w, "progress", job->part);
    mb_write_kv_uint(w, "ms",
        job->state == JOB_WAITING || end_ms < job->started_ms
            ? 0
            : end_ms - job->started_ms);
    if (failed)
        mb_write_kv_cstr(w, "error", job->err.text);
}

void
jobs_write(struct jobs *j, struct mb_writer *w)
{
    size_t n = 0;

    (void)pthread_mutex_lock(&j->lock);
    for (const struct job *job = j->newest; job != NULL; job = job->next) {
        n++;
    }
    mb_write_array(w, n);
    for (const struct job *job = j->newest; job != NULL; job = job->next) {
        write_job(job, w);
    }
    (void)pthread_mutex_unlock(&j->lock);
}

void
jobs_counts(struct jobs *j, uint64_t *n_active, uint64_t *n_failed)
{
    *n_active = 0;
    (void)pthread_mutex_lock(&j->lock);
    for (const struct job *job = j->newest; job != NULL; job = job->next) {
        *n_active += job->state < JOB_DONE ? 1 : 0;
    }
    *n_failed = j->n_failed;
    (void)pthread_mutex_unlock(&j->lock);
}

/* ---- those who wait for a fit ---- */

void
jobs_note_change(struct jobs *j)
{
    (void)pthread_mutex_lock(&j->lock);
    if (!j->changed)
        (void)pthread_cond_signal(&j->job_wake);
    j->changed = true;
    (void)pthread_mutex_unlock(&j->lock);
}

/* Under the lock; NULL when memory is short. */
static struct watch *
watch_of(struct jobs *j, mb_collection_id id)
{
    struct watch *w;

    for (w = j->watches; w != NULL; w = w->next) {
        if (w->id == id)
            return w;
    }
    w = mb_calloc(1, sizeof *w);
    if (w == NULL)
        return NULL;
    w->id = id;
    w->next = j->watches;
    j->watches = w;
    return w;
}

void
jobs_want_refit(struct jobs *j, mb_collection_id coll)
{
    struct watch *w;

    (void)pthread_mutex_lock(&j->lock);
    w = watch_of(j, coll);
    if (w != NULL) {
        w->wanted = true;
        w->not_before_ns = 0;
    }
    j->changed = true;
    (void)pthread_cond_signal(&j->job_wake);
    (void)pthread_mutex_unlock(&j->lock);
}

/* Are vectors of the model's missing, which it will make? Under the lock. */
static bool
is_behind(struct jobs *j, const struct mb_collection *coll)
{
    const struct watch *w;

    if (coll->settings.embedding != MB_EMBED_ANCHOR ||
        reader_absence(j->d->reader) != NULL || !daemon_config(j->d)->refit)
        return false;
    w = watch_of(j, coll->id);
    return w != NULL && !w->is_dormant &&
           (w->created_ms != coll->created_ms ||
               coll->next_segno > w->embedded_to);
}

/* Has a waiting put what it waits for? One that brought documents: a served
 * generation, as their vectors are written with them (but those of the
 * model's, which follow). An empty one is a barrier and waits until nothing is
 * due. Under the lock. */
static bool
is_served(
    struct jobs *j, const struct mb_collection *coll, const struct call *c)
{
    enum need need = need_of(daemon_config(j->d), coll);

    if (is_behind(j, coll))
        return false;
    return need == NEED_NOTHING || (!c->is_barrier && coll->generation != 0);
}

/* Must this put wait for a fit? On a worker. */
static bool
must_wait(struct jobs *j, const struct call *c)
{
    struct mb_snapshot *snap;
    struct mb_collection coll;
    bool wait;

    if (mb_snapshot_begin(j->d->store, &snap, NULL) != MB_OK)
        return false;
    wait = mb_collection_get(snap, mb_slice_cstr(c->collection), &coll, NULL) ==
               MB_OK &&
           coll.id == c->collection_id;
    (void)pthread_mutex_lock(&j->lock);
    wait = wait && !is_served(j, &coll, c);
    (void)pthread_mutex_unlock(&j->lock);
    mb_snapshot_end(snap);
    return wait;
}

static void
finish_or_wait(void *arg, struct worker *w)
{
    struct call *c = arg;
    struct jobs *j = c->d->jobs;
    bool waits = must_wait(j, c);

    (void)w;
    (void)pthread_mutex_lock(&j->lock);
    // Once it is in the list, mb-job or jobs_stop may finish it any time.
    waits = waits && !is_stopping(j);
    if (waits) {
        c->next = j->waiters;
        j->waiters = c;
        j->changed = true;
        (void)pthread_cond_signal(&j->job_wake);
    }
    (void)pthread_mutex_unlock(&j->lock);
    if (!waits)
        call_finish(c, MB_OK, NULL);
}

void
jobs_finish_when_searchable(
    struct jobs *j, struct call *c, const struct mb_collection *coll)
{
    (void)snprintf(c->collection, sizeof c->collection, "%s", coll->name);
    c->collection_id = coll->id;
    c->task.fn = finish_or_wait;
    c->task.arg = c;
    jobs_note_change(j);
    dispatch_post(j->d->dispatch, false, &c->task);
}

/* Take the waiters for which `pick` is true out of the list. */
static struct call *
take_waiters(struct jobs *j,
    bool (*pick)(const struct call *c, const void *arg), const void *arg)
{
    struct call *taken = NULL;

    (void)pthread_mutex_lock(&j->lock);
    for (struct call **at = &j->waiters; *at != NULL;) {
        struct call *c = *at;

        if (pick(c, arg)) {
            *at = c->next;
            c->next = taken;
            taken = c;
        } else {
            at = &c->next;
        }
    }
    (void)pthread_mutex_unlock(&j->lock);
    return taken;
}

static void
finish_all(struct call *list, mb_status st, const char *text)
{
    while (list != NULL) {
        struct call *next = list->next;
        struct mb_error err;

        (void)mb_error_set(&err, st, "%s", text);
        call_finish(list, st, &err);
        list = next;
    }
}

static bool
is_of_collection(const struct call *c, const void *arg)
{
    const struct mb_collection *coll = arg;

    return c->collection_id == coll->id;
}

static bool
is_late(const struct call *c, const void *arg)
{
    const uint64_t *now_ns = arg;

    return c->deadline_ns != 0 && *now_ns > c->deadline_ns;
}

static bool
is_any(const struct call *c, const void *arg)
{
    (void)c;
    (void)arg;
    return true;
}

/* The deadline of a call that waits at a job. */
static struct call *
take_late_job_call(struct jobs *j, uint64_t now_ns)
{
    struct call *late = NULL;

    (void)pthread_mutex_lock(&j->lock);
    for (struct job *job = j->newest; job != NULL; job = job->next) {
        if (job->call != NULL && is_late(job->call, &now_ns)) {
            job->call->next = late;
            late = job->call;
            job->call = NULL;
        }
    }
    (void)pthread_mutex_unlock(&j->lock);
    return late;
}

void
jobs_expire(struct jobs *j, uint64_t now_ns)
{
    finish_all(take_waiters(j, is_late, &now_ns), MB_ERR_TIMEOUT,
        "stored, but dense search is not ready yet");
    finish_all(take_late_job_call(j, now_ns), MB_ERR_TIMEOUT,
        "the job goes on; jobs tells its end");
}

/* ---- mb-job: when is a refit due? ---- */

/* Does a put wait for this collection's dense search? Under the lock. */
static bool
is_waited_for(const struct jobs *j, mb_collection_id coll)
{
    for (const struct call *c = j->waiters; c != NULL; c = c->next) {
        if (c->collection_id == coll)
            return true;
    }
    return false;
}

/* Rows that a fit would take in. */
static uint64_t
size_of(const struct mb_collection *coll)
{
    return coll->settings.embedding == MB_EMBED_CLIENT ? coll->n_vectors
                                                       : coll->n_segments;
}

/* Note how fast the collection grows. Under the lock. */
static void
measure_growth(struct watch *w, const struct mb_collection *coll, uint64_t now)
{
    uint64_t n = size_of(coll);

    if (w->mark_ns != 0 && now - w->mark_ns < GROWTH_NS)
        return;
    if (w->mark_ns != 0) {
        double seconds = (double)(now - w->mark_ns) * 1e-9;
        double grown = n > w->mark_n ? (double)(n - w->mark_n) : 0;

        w->is_calm = grown * FAST_GROWTH <= (double)n * seconds;
    }
    w->mark_ns = now;
    w->mark_n = n;
}

/* The time at which coll is due for a refit: 0 now, NO_TIME not as it is.
 * Under the lock. */
static uint64_t
due_at(const struct jobs *j, const struct config *cfg,
    const struct mb_collection *coll, const struct watch *w)
{
    enum need need = need_of(cfg, coll);
    uint64_t n = size_of(coll);
    uint64_t at;

    if (w->wanted && n >= 2)
        return 0;
    if (need == NEED_NOTHING)
        return NO_TIME;
    at = w->changed_ns + cfg->refit_quiet_ms * 1000000u;
    if (is_waited_for(j, coll->id) || (need == NEED_NOW && w->is_calm))
        at = 0;
    else if (need == NEED_NOW && w->mark_ns + GROWTH_NS < at)
        at = w->mark_ns + GROWTH_NS; // it may have become calm by then
    return at < w->not_before_ns ? w->not_before_ns : at;
}

/* Look at one collection; true if it is due. Else *next may become sooner. */
static bool
look_at(struct jobs *j, const struct mb_collection *coll, uint64_t now,
    uint64_t *next)
{
    const struct config *cfg = daemon_config(j->d);
    struct watch *w;
    uint64_t at = NO_TIME;

    (void)pthread_mutex_lock(&j->lock);
    w = watch_of(j, coll->id);
    if (w != NULL) {
        if (w->created_ms != coll->created_ms ||
            w->next_segno != coll->next_segno) {
            if (w->created_ms != coll->created_ms) {
                w->embedded_to = 0;
                w->is_dormant = false;
            }
            w->created_ms = coll->created_ms;
            w->next_segno = coll->next_segno;
            w->changed_ns = now;
        }
        measure_growth(w, coll, now);
        at = due_at(j, cfg, coll, w);
        if (at <= now)
            w->wanted = false;
    }
    (void)pthread_mutex_unlock(&j->lock);
    if (at <= now)
        return true;
    if (at < *next)
        *next = at;
    return false;
}

/* All collections, to see which waiters have nothing to wait for. */
struct census {
    struct jobs *j;
    const struct mb_collection *list;
    size_t n;
};

/* Is dense search ready, or no fit coming? (Its collection may be gone.) */
static bool
is_settled(const struct call *c, const void *arg)
{
    const struct census *census = arg;

    for (size_t i = 0; i < census->n; i++) {
        if (census->list[i].id == c->collection_id)
            return is_served(census->j, &census->list[i], c);
    }
    return true;
}

static void
release_waiters(struct jobs *j, const struct mb_collection *list, size_t n)
{
    const struct census census = {j, list, n};
    struct call *c = take_waiters(j, is_settled, &census);

    while (c != NULL) {
        struct call *next = c->next;

        call_finish(c, MB_OK, NULL);
        c = next;
    }
}

/* The collection that is due, if any; when to look again otherwise. */
static bool
find_due(struct jobs *j, struct mb_collection *out, uint64_t *next)
{
    struct mb_arena *arena = daemon_arena_take(j->d);
    struct mb_snapshot *snap = NULL;
    struct mb_collection *list;
    uint64_t now = mb_clock_ns();
    bool found = false;
    size_t n = 0;

    *next = NO_TIME;
    if (arena == NULL || mb_snapshot_begin(j->d->store, &snap, NULL) != MB_OK ||
        mb_collection_list(snap, arena, &list, &n, NULL) != MB_OK)
        *next = now + RETRY_NS;
    else
        release_waiters(j, list, n);
    for (size_t i = 0; i < n; i++) {
        if (!found && look_at(j, &list[i], now, next)) {
            *out = list[i];
            found = true;
        }
    }
    mb_snapshot_end(snap);
    if (arena != NULL)
        daemon_arena_give(j->d, arena);
    return found;
}

/* Purge what a new generation has taken the place of. */
static void
purge_replaced(struct jobs *j, struct job *job,
    const struct mb_collection *coll, uint32_t generation)
{
    struct refit r = {.store = j->d->store,
        .coll = *coll,
        .progress = on_progress,
        .arg = job};

    if (generation != 0 && refit_purge(&r, generation, NULL) != MB_OK)
        mb_log(
            MB_LOG_INFO, "job.left", "generation=%u until=restart", generation);
}

/* Make the vectors that the model owes a collection; renew: even if those that
 * it has are of another model. */
static void
embed(struct jobs *j, const struct mb_collection *coll, bool renew)
{
    struct job *job = job_new(j, JOB_EMBED, coll->name);
    struct mb_error err = {0};
    struct anchor_sync s = {
        .store = j->d->store,
        .reader = j->d->reader,
        .coll = *coll,
        .renew = renew,
        .progress = on_progress,
        .arg = job,
    };
    struct watch *w;
    mb_status st;

    if (job == NULL)
        return;
    (void)pthread_mutex_lock(&j->lock);
    job_add(j, job);
    w = watch_of(j, coll->id);
    if (w != NULL && !renew)
        s.from = w->embedded_to;
    (void)pthread_mutex_unlock(&j->lock);
    job_begin(j, job);
    st = anchor_sync_run(&s, &err);
    purge_replaced(j, job, coll, s.replaced);
    (void)pthread_mutex_lock(&j->lock);
    if (w != NULL) {
        w->embedded_to = s.done_to;
        w->is_dormant = s.state == ANCHOR_DORMANT;
        if (st != MB_OK)
            w->not_before_ns = mb_clock_ns() + RETRY_NS;
    }
    j->changed = true;
    (void)pthread_mutex_unlock(&j->lock);
    if (s.state == ANCHOR_DORMANT)
        mb_log(MB_LOG_WARN, "embedding.dormant",
            "collection=\"%s\" vectors=%llu cause=\"another model made them\"",
            coll->name, (unsigned long long)coll->n_vectors);
    (void)job_end(j, job, st, &err);
    finish_all(st == MB_OK || is_stopping(j)
                   ? NULL
                   : take_waiters(j, is_of_collection, coll),
        MB_ERR_TIMEOUT, "stored, but the model made no vectors");
}

/* The collection whose vectors are behind, if any. */
static bool
find_behind(struct jobs *j, struct mb_collection *out, uint64_t *next)
{
    struct mb_arena *arena = daemon_arena_take(j->d);
    struct mb_snapshot *snap = NULL;
    struct mb_collection *list;
    uint64_t now = mb_clock_ns();
    bool found = false;
    size_t n = 0;

    if (arena == NULL || mb_snapshot_begin(j->d->store, &snap, NULL) != MB_OK ||
        mb_collection_list(snap, arena, &list, &n, NULL) != MB_OK)
        n = 0;
    (void)pthread_mutex_lock(&j->lock);
    for (size_t i = 0; i < n && !found; i++) {
        const struct watch *w;

        if (!is_behind(j, &list[i]))
            continue;
        w = watch_of(j, list[i].id);
        found = w != NULL && w->not_before_ns <= now;
        if (found)
            *out = list[i];
        else if (w != NULL && w->not_before_ns < *next)
            *next = w->not_before_ns;
    }
    (void)pthread_mutex_unlock(&j->lock);
    mb_snapshot_end(snap);
    if (arena != NULL)
        daemon_arena_give(j->d, arena);
    return found;
}

static void
refit(struct jobs *j, const struct mb_collection *coll)
{
    bool is_lsa = coll->settings.embedding == MB_EMBED_LSA;
    struct job *job = job_new(j, is_lsa ? JOB_REFIT : JOB_TREE, coll->name);
    struct mb_error err = {0};
    struct watch *w;
    mb_status st;

    if (job == NULL)
        return;
    struct refit r = {
        .store = j->d->store,
        .indexer = j->d->indexer,
        .cfg = daemon_config(j->d),
        .coll = *coll,
        .progress = on_progress,
        .arg = job,
    };
    (void)pthread_mutex_lock(&j->lock);
    job_add(j, job);
    (void)pthread_mutex_unlock(&j->lock);
    job_begin(j, job);
    st = refit_run(&r, &err);
    if (st == MB_OK)
        mb_log(MB_LOG_INFO, "job.refit",
            "id=%llu generation=%u dim=%zu terms=%zu vectors=%llu leaves=%u "
            "nprobe=%u recall=%.3f",
            (unsigned long long)job->id, r.generation, r.dim, r.n_terms,
            (unsigned long long)r.n_vectors, r.n_leaves, r.probing.nprobe,
            r.probing.recall);
    (void)job_end(j, job, st, &err);
    (void)pthread_mutex_lock(&j->lock);
    j->changed = true;
    w = watch_of(j, coll->id);
    if (w != NULL && st != MB_OK && st != MB_ERR_STALE)
        w->not_before_ns = mb_clock_ns() + RETRY_NS;
    (void)pthread_mutex_unlock(&j->lock);
    // Dense search is ready, or will not be soon: either way nobody waits.
    finish_all(st == MB_OK || st == MB_ERR_STALE || is_stopping(j)
                   ? NULL
                   : take_waiters(j, is_of_collection, coll),
        MB_ERR_TIMEOUT, "stored, but the embedding could not be fitted");
}

/* Generations that a crash or an end left behind. */
static void
purge_leftovers(struct jobs *j, const struct mb_collection *coll)
{
    for (uint32_t g = 1; g < coll->next_generation && !is_stopping(j); g++) {
        struct mb_generation_info info;
        struct mb_snapshot *snap = NULL;
        struct mb_error err = {0};
        struct job *job;
        bool there = g == coll->building;

        if (g == coll->generation)
            continue;
        if (mb_snapshot_begin(j->d->store, &snap, NULL) != MB_OK)
            return;
        there = there || mb_generation_info_get(snap, coll, g, &info, NULL) !=
                             MB_ERR_NOT_FOUND;
        mb_snapshot_end(snap);
        if (!there || (job = job_new(j, JOB_PURGE, coll->name)) == NULL)
            continue;
        (void)pthread_mutex_lock(&j->lock);
        job_add(j, job);
        (void)pthread_mutex_unlock(&j->lock);
        job_begin(j, job);
        struct refit r = {.store = j->d->store,
            .coll = *coll,
            .progress = on_progress,
            .arg = job};
        (void)job_end(j, job, refit_purge(&r, g, &err), &err);
    }
}

static void
purge_all(struct jobs *j)
{
    struct mb_arena *arena = daemon_arena_take(j->d);
    struct mb_snapshot *snap = NULL;
    struct mb_collection *list;
    size_t n = 0;

    if (arena == NULL || mb_snapshot_begin(j->d->store, &snap, NULL) != MB_OK ||
        mb_collection_list(snap, arena, &list, &n, NULL) != MB_OK)
        n = 0;
    mb_snapshot_end(snap);
    for (size_t i = 0; i < n; i++) {
        purge_leftovers(j, &list[i]);
    }
    if (arena != NULL)
        daemon_arena_give(j->d, arena);
}

/* Sleep until something changed or `next` is reached. */
static void
wait_for_change(struct jobs *j, uint64_t next)
{
    struct timespec ts = {
        (time_t)(next / 1000000000u), (long)(next % 1000000000u)};
    int rc = 0;

    (void)pthread_mutex_lock(&j->lock);
    while (!j->changed && !is_stopping(j) && rc != ETIMEDOUT) {
        if (next == NO_TIME)
            rc = pthread_cond_wait(&j->job_wake, &j->lock);
        else
            rc = pthread_cond_timedwait(&j->job_wake, &j->lock, &ts);
    }
    (void)pthread_mutex_unlock(&j->lock);
}

/* A short pause, so that a stream of puts is not followed one by one. */
static void
pause_a_little(struct jobs *j)
{
    uint64_t until = mb_clock_ns() + LOOK_MS * 1000000u;
    struct timespec ts = {
        (time_t)(until / 1000000000u), (long)(until % 1000000000u)};
    int rc = 0;

    (void)pthread_mutex_lock(&j->lock);
    while (!is_stopping(j) && j->waiters == NULL && rc != ETIMEDOUT) {
        rc = pthread_cond_timedwait(&j->job_wake, &j->lock, &ts);
    }
    j->changed = false;
    (void)pthread_mutex_unlock(&j->lock);
}

static void
run_jobs(void *arg)
{
    struct jobs *j = arg;
    uint64_t next = NO_TIME;

    mb_thread_set_background();
    purge_all(j);
    while (!is_stopping(j)) {
        struct mb_collection coll;

        wait_for_change(j, next);
        pause_a_little(j);
        while (!is_stopping(j) && find_due(j, &coll, &next)) {
            if (coll.settings.embedding == MB_EMBED_ANCHOR &&
                need_of(daemon_config(j->d), &coll) == NEED_NOTHING)
                embed(j, &coll, true); // by rebuild
            else
                refit(j, &coll);
        }
        while (!is_stopping(j) && find_behind(j, &coll, &next)) {
            embed(j, &coll, false);
        }
    }
}

/* ---- mb-task: what clients ask for ---- */

static void
on_problem(void *arg, const char *table, const char *key_hex, const char *what)
{
    struct job *job = arg;
    struct problem *p;

    mb_log(MB_LOG_ERR, "verify.broken", "table=%s key=%.64s what=\"%s\"", table,
        key_hex, what);
    if (job->n_problems == MAX_PROBLEMS)
        return;
    p = &job->problems[job->n_problems++];
    (void)snprintf(p->table, sizeof p->table, "%s", table);
    (void)snprintf(p->key, sizeof p->key, "%s", key_hex);
    (void)snprintf(p->what, sizeof p->what, "%s", what);
}

static bool
on_verify_progress(void *arg, double part)
{
    return on_progress(arg, "verify", part);
}

static mb_status
verify(struct jobs *j, struct job *job, struct mb_error *err)
{
    struct mb_snapshot *snap = NULL;
    mb_status st;

    job->problems = mb_calloc(MAX_PROBLEMS, sizeof *job->problems);
    if (job->problems == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "verify");
    st = mb_snapshot_begin(j->d->store, &snap, err);
    if (st == MB_OK)
        st = mb_store_verify(
            snap, on_problem, on_verify_progress, job, &job->verified, err);
    mb_snapshot_end(snap);
    return st;
}

/* The folder above `path`, made if it is not there. */
static mb_status
make_parent(const char *path, struct mb_error *err)
{
    char parent[CONFIG_MAX_TEXT];
    char *slash;

    (void)snprintf(parent, sizeof parent, "%s", path);
    slash = strrchr(parent, '/');
    if (slash == NULL || slash == parent)
        return MB_OK;
    *slash = 0;
    if (mkdir(parent, 0700) != 0 && errno != EEXIST)
        return mb_error_set(
            err, MB_ERR_IO, "mkdir %s: %s", parent, strerror(errno));
    return MB_OK;
}

static mb_status
snapshot(struct jobs *j, struct job *job, struct mb_error *err)
{
    mb_status st = make_parent(job->path, err);

    (void)on_progress(job, "copy", 0);
    return st == MB_OK ? mb_store_copy(j->d->store, job->path, err) : st;
}

static void
write_task_result(struct call *c, const struct job *job)
{
    uint64_t ms = job->ended_ms - job->started_ms;
    struct mb_writer *w = &c->w;

    call_begin(c);
    if (job->kind == JOB_SNAPSHOT) {
        mb_write_map(w, 3);
        mb_write_kv_uint(w, "job", job->id);
        mb_write_kv_cstr(w, "path", job->path);
        mb_write_kv_uint(w, "ms", ms);
        return;
    }
    mb_write_map(w, 5);
    mb_write_kv_uint(w, "job", job->id);
    mb_write_kv_uint(w, "records", job->verified.n_records);
    mb_write_kv_uint(w, "broken", job->verified.n_broken);
    mb_write_cstr(w, "problems");
    mb_write_array(w, job->n_problems);
    for (size_t i = 0; i < job->n_problems; i++) {
        mb_write_map(w, 3);
        mb_write_kv_cstr(w, "table", job->problems[i].table);
        mb_write_kv_cstr(w, "key", job->problems[i].key);
        mb_write_kv_cstr(w, "what", job->problems[i].what);
    }
    mb_write_kv_uint(w, "ms", ms);
}

/* The oldest task that has not begun; NULL at the end. */
static struct job *
next_task(struct jobs *j)
{
    struct job *found = NULL;

    (void)pthread_mutex_lock(&j->lock);
    while (!is_stopping(j)) {
        for (struct job *job = j->newest; job != NULL; job = job->next) {
            if (job->state == JOB_WAITING && job->kind >= JOB_SNAPSHOT)
                found = job;
        }
        if (found != NULL)
            break;
        (void)pthread_cond_wait(&j->task_wake, &j->lock);
    }
    (void)pthread_mutex_unlock(&j->lock);
    return found;
}

static void
run_tasks(void *arg)
{
    struct jobs *j = arg;
    struct job *job;

    mb_thread_set_background();
    while ((job = next_task(j)) != NULL) {
        struct mb_error err = {0};
        struct call *c;
        mb_status st;

        job_begin(j, job);
        st = job->kind == JOB_VERIFY ? verify(j, job, &err)
                                     : snapshot(j, job, &err);
        if (st == MB_ERR_CANCELLED)
            st = mb_error_set(&err, st, "the daemon is ending");
        c = job_end(j, job, st, &err);
        if (c == NULL)
            continue;
        if (st == MB_OK)
            write_task_result(c, job);
        call_finish(c, st, &err);
    }
}

mb_status
jobs_submit(struct jobs *j, job_kind kind, const char *path, struct call *call,
    uint64_t *id, struct mb_error *err)
{
    struct job *job = job_new(j, kind, "");
    mb_status st = MB_OK;
    size_t n = 0;

    if (job == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "job");
    if (path != NULL)
        (void)snprintf(job->path, sizeof job->path, "%s", path);
    job->call = call;
    (void)pthread_mutex_lock(&j->lock);
    for (const struct job *o = j->newest; o != NULL; o = o->next) {
        n += o->state == JOB_WAITING ? 1 : 0;
    }
    if (is_stopping(j)) {
        st = mb_error_set(err, MB_ERR_SHUTTING_DOWN, "the daemon is ending");
    } else if (n >= MAX_WAITING) {
        st = mb_error_set(err, MB_ERR_BUSY, "%zu jobs wait already", n);
    } else {
        job_add(j, job);
        *id = job->id;
        (void)pthread_cond_signal(&j->task_wake);
    }
    (void)pthread_mutex_unlock(&j->lock);
    if (st != MB_OK)
        job_free(job);
    return st;
}

/* ---- start and stop ---- */

mb_status
jobs_start(struct jobs *j, struct mb_error *err)
{
    mb_status st = mb_thread_start(&j->job_thread, "mb-job", run_jobs, j);

    if (st == MB_OK)
        st = mb_thread_start(&j->task_thread, "mb-task", run_tasks, j);
    return st == MB_OK ? st : mb_error_set(err, st, "start mb-job");
}

/* Calls of tasks that will not begin any more. */
static struct call *
take_waiting_calls(struct jobs *j)
{
    struct call *list = NULL;

    (void)pthread_mutex_lock(&j->lock);
    for (struct job *job = j->newest; job != NULL; job = job->next) {
        if (job->call != NULL) {
            job->call->next = list;
            list = job->call;
            job->call = NULL;
        }
    }
    (void)pthread_mutex_unlock(&j->lock);
    return list;
}

void
jobs_stop(struct jobs *j)
{
    (void)pthread_mutex_lock(&j->lock);
    atomic_store_explicit(&j->stopping, true, memory_order_release);
    (void)pthread_cond_broadcast(&j->job_wake);
    (void)pthread_cond_broadcast(&j->task_wake);
    (void)pthread_mutex_unlock(&j->lock);
    mb_thread_join(j->job_thread);
    mb_thread_join(j->task_thread);
    j->job_thread = NULL;
    j->task_thread = NULL;
    finish_all(take_waiters(j, is_any, NULL), MB_ERR_SHUTTING_DOWN,
        "stored, but the daemon ends before dense search is ready");
    finish_all(
        take_waiting_calls(j), MB_ERR_SHUTTING_DOWN, "the daemon is ending");
}
