/* SPDX-License-Identifier: Apache-2.0
 * daemon/job.h - a job, for the files that share it.
 *
 *   jobs.c       the list: begin, progress, end; life of the threads
 *   jobs_fit.c   mb-job: when a fit is due, and the fit
 *   jobs_task.c  mb-task: snapshot, verify
 *   jobs_train.c mb-train: memory banks
 *   jobs_wait.c  calls that wait for either
 * "Under the lock" is that of struct jobs. */
#ifndef DAEMON_JOB_H
#define DAEMON_JOB_H

#include <pthread.h>
#include <stdatomic.h>

#include "config.h"
#include "daemon.h"
#include "jobs.h"

struct problem; /* jobs_task.c */

typedef enum job_state {
    JOB_WAITING,
    JOB_RUNNING,
    JOB_DONE,
    JOB_FAILED,
    JOB_CANCELLED
} job_state;

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
    uint64_t end_no; /* counts ends, of all jobs */
    struct mb_error err;
    struct call *call; /* that waits for its end, or NULL */
    struct mb_verify_result verified;
    struct problem *problems; /* (MAX_PROBLEMS), verify only */
    size_t n_problems;
    /* Training only. */
    struct mb_banker_progress at;
    bool is_finished;
    bool gives_way;        /* it waits for requests */
    atomic_bool is_let_go; /* relaxed: see what is asked of it now */
};

/* What mb-job remembers of a collection. */
struct watch {
    struct watch *next;
    mb_collection_id id;
    uint64_t created_ms;
    uint32_t next_segno;
    uint64_t changed_ns;     /* when next_segno was seen to change */
    uint64_t not_before_ns;  /* after a failure */
    uint64_t mark_ns;        /* growth is measured from here; 0: not yet */
    uint64_t mark_n;         /* size_of then */
    bool is_calm;            /* grew slowly when last measured */
    mb_segno embedded_to;    /* kind anchor: segments below have vectors */
    bool is_dormant;         /* kind anchor: they are another model's */
    uint64_t train_after_ns; /* after a failure of a bank's training */
    bool wanted;             /* by rebuild, or by a put that waits */
};

struct jobs {
    struct daemon *d;
    struct mb_thread *job_thread;
    struct mb_thread *task_thread;
    struct mb_thread *train_thread;
    atomic_bool stopping; /* release in stop, acquire in progress */

    pthread_mutex_t lock;
    pthread_cond_t job_wake;
    pthread_cond_t task_wake;
    pthread_cond_t train_wake;
    bool changed;
    bool train_changed;
    bool train_has_ended; /* mb-train, but for its last instructions */
    uint64_t next_id;
    uint64_t n_ended;
    uint64_t n_failed;
    struct job *newest;
    struct watch *watches;
    struct call *waiters; /* puts that wait for a first fit */
};

/* All collections at one moment. */
struct jobs_look {
    struct mb_arena *arena;
    struct mb_snapshot *snap; /* may be ended (and NULL) before the look is */
    struct mb_collection *list;
    size_t n;
};

/* ---- jobs.c ---- */

/* False: memory or store do not allow it now, there are none. To be ended
 * either way. */
bool jobs_look_begin(struct jobs *j, struct jobs_look *look);
void jobs_look_end(struct jobs *j, struct jobs_look *look);
bool jobs_is_stopping(struct jobs *j);
/* A job that is in no list yet; NULL when memory is short. */
struct job *job_new(struct jobs *j, job_kind kind, const char *collection);
void job_free(struct job *job);
/* Into the list, which takes it. Under the lock. */
void job_add(struct jobs *j, struct job *job);
void job_begin(struct jobs *j, struct job *job);
/* The job's progress callback (arg: the job): true to stop. */
bool job_progress(void *arg, const char *phase, double part);
/* Record how it ended; the call that waits for it, if any, is returned. */
struct call *job_end(
    struct jobs *j, struct job *job, mb_status st, const struct mb_error *err);

/* ---- jobs_fit.c ---- */

/* Under the lock; NULL when memory is short. */
struct watch *jobs_watch_of(struct jobs *j, mb_collection_id id);
/* mb-job, until jobs_is_stopping. */
void jobs_run_fits(void *jobs);

/* ---- jobs_task.c ---- */

/* mb-task, until jobs_is_stopping. */
void jobs_run_tasks(void *jobs);

/* ---- jobs_train.c ---- */

/* mb-train, until jobs_is_stopping. */
void jobs_run_training(void *jobs);

/* ---- jobs_wait.c ---- */

/* Are vectors of the model's missing, which it will make? Under the lock. */
bool jobs_is_behind(struct jobs *j, const struct mb_collection *coll);
/* Does a put wait for this collection's dense search? Under the lock. */
bool jobs_is_waited_for(const struct jobs *j, mb_collection_id coll);
/* Answer the puts whose collection (of all, in list) is served now. */
void jobs_release_waiters(
    struct jobs *j, const struct mb_collection *list, size_t n);
/* Answer those who wait for coll: TIMEOUT, for the reason of text. */
void jobs_give_up(
    struct jobs *j, const struct mb_collection *coll, const char *text);
/* Answer all who wait, for the daemon is ending. */
void jobs_end_waiting(struct jobs *j);

#endif
