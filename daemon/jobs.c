/* SPDX-License-Identifier: Apache-2.0
 * daemon/jobs.c - the list of jobs: what runs, waits, has ended.
 *
 * Work in the background has three threads. mb-job (jobs_fit.c) does what the
 * collections need, mb-task (jobs_task.c) what clients ask for, mb-train
 * (jobs_train.c) trains memory banks; jobs_wait.c keeps the puts that wait for
 * a fit.
 * Invariants: a job is in the list from its start (or its request) until
 * KEPT_JOBS later ones have ended; a call waits in one place: at its job, or
 * in `waiters`.
 * Threads: `lock` guards everything but `stopping`; no store call and no reply
 * under it. */
#include "job.h"

#include <stdio.h>
#include <time.h>

#define KEPT_JOBS 32

static const char *const kind_names[] = {"refit", "tree", "purge", "snapshot",
    "verify", "embed", "train", "bank_purge"};
static const char *const state_names[] = {
    "waiting", "running", "done", "failed", "cancelled"};

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
    j->train_changed = true;
    (void)pthread_mutex_init(&j->lock, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&j->job_wake, &attr);
    (void)pthread_cond_init(&j->task_wake, &attr);
    (void)pthread_cond_init(&j->train_wake, &attr);
    (void)pthread_condattr_destroy(&attr);
    return j;
}

bool
jobs_is_stopping(struct jobs *j)
{
    return atomic_load_explicit(&j->stopping, memory_order_acquire);
}

bool
jobs_look_begin(struct jobs *j, struct jobs_look *look)
{
    *look = (struct jobs_look){.arena = daemon_arena_take(j->d)};
    if (look->arena != NULL &&
        mb_snapshot_begin(j->d->store, &look->snap, NULL) == MB_OK &&
        mb_collection_list(
            look->snap, look->arena, &look->list, &look->n, NULL) == MB_OK)
        return true;
    look->n = 0;
    return false;
}

void
jobs_look_end(struct jobs *j, struct jobs_look *look)
{
    mb_snapshot_end(look->snap);
    if (look->arena != NULL)
        daemon_arena_give(j->d, look->arena);
}

void
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
    (void)pthread_cond_destroy(&j->train_wake);
    (void)pthread_mutex_destroy(&j->lock);
    mb_free(j);
}

/* ---- the list of jobs ---- */

/* Forget those after whose end KEPT_JOBS others have ended: not the oldest by
 * their start, for whoever ended one still looks at it. Under the lock. */
static void
trim(struct jobs *j)
{
    for (struct job **at = &j->newest; *at != NULL;) {
        struct job *job = *at;

        if (job->state >= JOB_DONE && j->n_ended - job->end_no >= KEPT_JOBS) {
            *at = job->next;
            job_free(job);
        } else {
            at = &job->next;
        }
    }
}

struct job *
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
void
job_add(struct jobs *j, struct job *job)
{
    job->id = j->next_id++;
    job->next = j->newest;
    j->newest = job;
    trim(j);
}

void
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
bool
job_progress(void *arg, const char *phase, double part)
{
    struct job *job = arg;
    struct jobs *j = job->jobs;

    (void)pthread_mutex_lock(&j->lock);
    job->phase = phase;
    job->part = part;
    (void)pthread_mutex_unlock(&j->lock);
    return jobs_is_stopping(j);
}

/* Record how it ended; the caller who waits for it, if any, is returned. */
struct call *
job_end(
    struct jobs *j, struct job *job, mb_status st, const struct mb_error *err)
{
    struct call *call;

    (void)pthread_mutex_lock(&j->lock);
    job->state = st == MB_OK                                    ? JOB_DONE
                 : st == MB_ERR_CANCELLED || st == MB_ERR_STALE ? JOB_CANCELLED
                                                                : JOB_FAILED;
    job->ended_ms = mb_clock_wall_ms();
    job->end_no = ++j->n_ended;
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

/* ---- start and stop ---- */

mb_status
jobs_start(struct jobs *j, struct mb_error *err)
{
    mb_status st = mb_thread_start(&j->job_thread, "mb-job", jobs_run_fits, j);

    if (st == MB_OK)
        st = mb_thread_start(&j->task_thread, "mb-task", jobs_run_tasks, j);
    if (st == MB_OK)
        st =
            mb_thread_start(&j->train_thread, "mb-train", jobs_run_training, j);
    return st == MB_OK ? st
                       : mb_error_set(err, st, "start a thread of the jobs");
}

/* A window of text may take long on a machine that is busy. */
static bool
wait_for_training(struct jobs *j, uint64_t wait_ms)
{
    uint64_t until = mb_clock_ns() + wait_ms * 1000000u;
    struct timespec ts = {
        (time_t)(until / 1000000000u), (long)(until % 1000000000u)};
    bool ended;
    int rc = 0;

    (void)pthread_mutex_lock(&j->lock);
    while (j->train_thread != NULL && !j->train_has_ended && rc == 0) {
        rc = pthread_cond_timedwait(&j->train_wake, &j->lock, &ts);
    }
    ended = j->train_thread == NULL || j->train_has_ended;
    (void)pthread_mutex_unlock(&j->lock);
    return ended;
}

bool
jobs_stop(struct jobs *j, uint64_t wait_ms)
{
    bool ended;

    (void)pthread_mutex_lock(&j->lock);
    atomic_store_explicit(&j->stopping, true, memory_order_release);
    (void)pthread_cond_broadcast(&j->job_wake);
    (void)pthread_cond_broadcast(&j->task_wake);
    (void)pthread_cond_broadcast(&j->train_wake);
    (void)pthread_mutex_unlock(&j->lock);
    mb_thread_join(j->job_thread);
    mb_thread_join(j->task_thread);
    j->job_thread = NULL;
    j->task_thread = NULL;
    ended = wait_for_training(j, wait_ms);
    if (ended) {
        mb_thread_join(j->train_thread);
        j->train_thread = NULL;
    }
    jobs_end_waiting(j);
    return ended;
}
