/* SPDX-License-Identifier: Apache-2.0
 * daemon/jobs_task.c - mb-task: snapshots and verifies, one after the other.
 *
 * A client asks and either waits for the reply, which comes at the job's end,
 * or takes the job's number and looks at the list.
 * Threads: mb-task; jobs_submit from any. */
#include "job.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "call.h"

#define MAX_WAITING  32 /* tasks that have not begun */
#define MAX_PROBLEMS 100

struct problem {
    char table[24];
    char key[96];
    char what[160];
};

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
    return job_progress(arg, "verify", part);
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

    (void)job_progress(job, "copy", 0);
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

static bool
is_waiting_task(const struct job *job)
{
    return job->state == JOB_WAITING &&
           (job->kind == JOB_SNAPSHOT || job->kind == JOB_VERIFY);
}

/* The oldest task that has not begun; NULL at the end. */
static struct job *
next_task(struct jobs *j)
{
    struct job *found = NULL;

    (void)pthread_mutex_lock(&j->lock);
    while (!jobs_is_stopping(j)) {
        for (struct job *job = j->newest; job != NULL; job = job->next) {
            if (is_waiting_task(job))
                found = job;
        }
        if (found != NULL)
            break;
        (void)pthread_cond_wait(&j->task_wake, &j->lock);
    }
    (void)pthread_mutex_unlock(&j->lock);
    return found;
}

void
jobs_run_tasks(void *arg)
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
        n += is_waiting_task(o);
    }
    if (jobs_is_stopping(j)) {
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
