/* SPDX-License-Identifier: Apache-2.0
 * daemon/jobs_wait.c - calls that wait: puts for a fit, others for their job.
 *
 * A put may ask to be answered once dense search finds what it brought. It
 * lies in the list of waiters from the moment it is stored until mb-job sees
 * that its collection is served, gives up, or its deadline passes.
 * Threads: any; the lock of struct jobs guards the list. */
#include "job.h"

#include <stdio.h>

#include "call.h"
#include "dispatch.h"
#include "need.h"
#include "reader.h"

/* ---- what they wait for ---- */

/* Are vectors of the model's missing, which it will make? Under the lock. */
bool
jobs_is_behind(struct jobs *j, const struct mb_collection *coll)
{
    const struct watch *w;

    if (coll->settings.embedding != MB_EMBED_ANCHOR ||
        reader_absence(j->d->reader) != NULL || !daemon_config(j->d)->refit)
        return false;
    w = jobs_watch_of(j, coll->id);
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

    if (jobs_is_behind(j, coll))
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
    waits = waits && !jobs_is_stopping(j);
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

/* Does a put wait for this collection's dense search? Under the lock. */
bool
jobs_is_waited_for(const struct jobs *j, mb_collection_id coll)
{
    for (const struct call *c = j->waiters; c != NULL; c = c->next) {
        if (c->collection_id == coll)
            return true;
    }
    return false;
}

/* ---- their end ---- */

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

void
jobs_give_up(struct jobs *j, const struct mb_collection *coll, const char *text)
{
    finish_all(take_waiters(j, is_of_collection, coll), MB_ERR_TIMEOUT, text);
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

void
jobs_release_waiters(struct jobs *j, const struct mb_collection *list, size_t n)
{
    const struct census census = {j, list, n};
    struct call *c = take_waiters(j, is_settled, &census);

    while (c != NULL) {
        struct call *next = c->next;

        call_finish(c, MB_OK, NULL);
        c = next;
    }
}

static bool
is_late(const struct call *c, const void *arg)
{
    const uint64_t *now_ns = arg;

    return c->deadline_ns != 0 && *now_ns > c->deadline_ns;
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

static bool
is_any(const struct call *c, const void *arg)
{
    (void)c;
    (void)arg;
    return true;
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
jobs_end_waiting(struct jobs *j)
{
    finish_all(take_waiters(j, is_any, NULL), MB_ERR_SHUTTING_DOWN,
        "stored, but the daemon ends before dense search is ready");
    finish_all(
        take_waiting_calls(j), MB_ERR_SHUTTING_DOWN, "the daemon is ending");
}
