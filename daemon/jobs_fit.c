/* SPDX-License-Identifier: Apache-2.0
 * daemon/jobs_fit.c - mb-job: fits, trees and purges, as collections need them.
 *
 * It sleeps until something changed, then looks at all collections: which
 * has grown enough since its last fit? A collection that has been quiet for a
 * while is refitted at twice its size, one that keeps growing at four times,
 * but not while it grows so fast that the fit would be outgrown at its end: a
 * bulk load would be fitted and written several times over. An idle daemon
 * wakes up for nothing.
 * Threads: mb-job, but for what marks a change: that from any. */
#include "job.h"

#include <errno.h>
#include <time.h>

#include "anchor.h"
#include "call.h"
#include "need.h"
#include "refit.h"

#define RETRY_NS    60000000000u /* after a refit that failed */
#define LOOK_MS     50           /* as often at most */
#define GROWTH_NS   1000000000u  /* over which growth is measured */
#define FAST_GROWTH 16           /* faster than a 16th of its size a second */
#define NO_TIME     UINT64_MAX

/* ---- what changed ---- */

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
struct watch *
jobs_watch_of(struct jobs *j, mb_collection_id id)
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
    w = jobs_watch_of(j, coll);
    if (w != NULL) {
        w->wanted = true;
        w->not_before_ns = 0;
    }
    j->changed = true;
    (void)pthread_cond_signal(&j->job_wake);
    (void)pthread_mutex_unlock(&j->lock);
}

/* ---- when is a refit due? ---- */

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
    if (jobs_is_waited_for(j, coll->id) || (need == NEED_NOW && w->is_calm))
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
    w = jobs_watch_of(j, coll->id);
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

/* The collection that is due, if any; when to look again otherwise. */
static bool
find_due(struct jobs *j, struct mb_collection *out, uint64_t *next)
{
    struct jobs_look look;
    uint64_t now = mb_clock_ns();
    bool found = false;

    *next = NO_TIME;
    if (jobs_look_begin(j, &look))
        jobs_release_waiters(j, look.list, look.n);
    else
        *next = now + RETRY_NS;
    for (size_t i = 0; i < look.n && !found; i++) {
        found = look_at(j, &look.list[i], now, next);
        if (found)
            *out = look.list[i];
    }
    jobs_look_end(j, &look);
    return found;
}

/* ---- the work ---- */

/* Purge what a new generation has taken the place of. */
static void
purge_replaced(struct jobs *j, struct job *job,
    const struct mb_collection *coll, uint32_t generation)
{
    struct refit r = {.store = j->d->store,
        .coll = *coll,
        .progress = job_progress,
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
        .progress = job_progress,
        .arg = job,
    };
    struct watch *w;
    mb_status st;

    if (job == NULL)
        return;
    (void)pthread_mutex_lock(&j->lock);
    job_add(j, job);
    w = jobs_watch_of(j, coll->id);
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
    if (st != MB_OK && !jobs_is_stopping(j))
        jobs_give_up(j, coll, "stored, but the model made no vectors");
}

/* The collection whose vectors are behind, if any. */
static bool
find_behind(struct jobs *j, struct mb_collection *out, uint64_t *next)
{
    struct jobs_look look;
    uint64_t now = mb_clock_ns();
    bool found = false;

    (void)jobs_look_begin(j, &look); // none: the next look finds them
    (void)pthread_mutex_lock(&j->lock);
    for (size_t i = 0; i < look.n && !found; i++) {
        const struct watch *w;

        if (!jobs_is_behind(j, &look.list[i]))
            continue;
        w = jobs_watch_of(j, look.list[i].id);
        found = w != NULL && w->not_before_ns <= now;
        if (found)
            *out = look.list[i];
        else if (w != NULL && w->not_before_ns < *next)
            *next = w->not_before_ns;
    }
    (void)pthread_mutex_unlock(&j->lock);
    jobs_look_end(j, &look);
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
        .progress = job_progress,
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
    w = jobs_watch_of(j, coll->id);
    if (w != NULL && st != MB_OK && st != MB_ERR_STALE)
        w->not_before_ns = mb_clock_ns() + RETRY_NS;
    (void)pthread_mutex_unlock(&j->lock);
    // Dense search is ready, or will not be soon: either way nobody waits.
    if (st != MB_OK && st != MB_ERR_STALE && !jobs_is_stopping(j))
        jobs_give_up(j, coll, "stored, but the embedding could not be fitted");
}

/* Generations that a crash or an end left behind. */
static void
purge_leftovers(struct jobs *j, const struct mb_collection *coll)
{
    for (uint32_t g = 1; g < coll->next_generation && !jobs_is_stopping(j);
         g++) {
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
            .progress = job_progress,
            .arg = job};
        (void)job_end(j, job, refit_purge(&r, g, &err), &err);
    }
}

static void
purge_all(struct jobs *j)
{
    struct jobs_look look;

    (void)jobs_look_begin(j, &look); // none: the next start purges
    mb_snapshot_end(look.snap);      // it would keep pages while this works
    look.snap = NULL;
    for (size_t i = 0; i < look.n; i++) {
        purge_leftovers(j, &look.list[i]);
    }
    jobs_look_end(j, &look);
}

/* ---- the thread ---- */

/* Sleep until something changed or `next` is reached. */
static void
wait_for_change(struct jobs *j, uint64_t next)
{
    struct timespec ts = {
        (time_t)(next / 1000000000u), (long)(next % 1000000000u)};
    int rc = 0;

    (void)pthread_mutex_lock(&j->lock);
    while (!j->changed && !jobs_is_stopping(j) && rc != ETIMEDOUT) {
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
    while (!jobs_is_stopping(j) && j->waiters == NULL && rc != ETIMEDOUT) {
        rc = pthread_cond_timedwait(&j->job_wake, &j->lock, &ts);
    }
    j->changed = false;
    (void)pthread_mutex_unlock(&j->lock);
}

void
jobs_run_fits(void *arg)
{
    struct jobs *j = arg;
    uint64_t next = NO_TIME;

    mb_thread_set_background();
    purge_all(j);
    while (!jobs_is_stopping(j)) {
        struct mb_collection coll;

        wait_for_change(j, next);
        pause_a_little(j);
        while (!jobs_is_stopping(j) && find_due(j, &coll, &next)) {
            if (coll.settings.embedding == MB_EMBED_ANCHOR &&
                need_of(daemon_config(j->d), &coll) == NEED_NOTHING)
                embed(j, &coll, true); // by rebuild
            else
                refit(j, &coll);
        }
        while (!jobs_is_stopping(j) && find_behind(j, &coll, &next)) {
            embed(j, &coll, false);
        }
    }
}
