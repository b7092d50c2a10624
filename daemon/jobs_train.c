/* SPDX-License-Identifier: Apache-2.0
 * daemon/jobs_train.c - mb-train: memory banks, trained while nobody asks.
 *
 * What is to be trained stands in the store (mb_banks_run) and nowhere else: a
 * client's wish is a row there, and what is left of its budget goes down with
 * each checkpoint. So a training goes on by itself after a restart, also a
 * sudden one, and a paused one stays paused.
 * The thread has a low priority, and BLAS runs on one thread inside it. It
 * waits before each window of text while requests are under way, but not for
 * ever: a daemon that is never idle trains one window in MAX_WAIT_NS.
 * Threads: mb-train; gives_way on the trainer's threads; what is in jobs.h from
 * any. */
#include "job.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "banks.h"
#include "call.h"
#include "reader.h"

#define MAX_WAITING    32
#define MAX_WAIT_NS    1000000000u  /* for requests, a window */
#define MAX_MODEL_NS   10000000000u /* while the model works for some */
#define POLL_MS        5
#define RETRY_NS       60000000000u /* after a failure */
#define STALE_RETRY_NS 2000000000u  /* after text was deleted all the time */
#define NO_TIME        UINT64_MAX

/* What there is to do. */
struct todo {
    job_kind kind; /* JOB_TRAIN or JOB_BANK_PURGE */
    struct mb_collection coll;
    uint32_t bank;
    struct mb_banks_run run;
};

/* ---- the queue ---- */

static bool
is_training_kind(job_kind kind)
{
    return kind == JOB_TRAIN || kind == JOB_BANK_PURGE;
}

/* Let the job that runs for the collection look again; a purge lets go of all
 * trainings, which go on behind it. Under the lock. */
static void
let_go(struct jobs *j, const struct mb_collection *coll, bool purge)
{
    struct watch *w = jobs_watch_of(j, coll->id);

    for (struct job *job = j->newest; job != NULL; job = job->next) {
        bool other = strcmp(job->collection, coll->name) != 0;

        if (job->state != JOB_RUNNING || !is_training_kind(job->kind) ||
            (other && !(purge && job->kind == JOB_TRAIN)))
            continue;
        atomic_store_explicit(&job->is_let_go, true, memory_order_relaxed);
    }
    if (w != NULL)
        w->train_after_ns = 0;
    j->train_changed = true;
    (void)pthread_cond_broadcast(&j->train_wake);
}

void
jobs_train_again(struct jobs *j, const struct mb_collection *coll)
{
    (void)pthread_mutex_lock(&j->lock);
    let_go(j, coll, false);
    (void)pthread_mutex_unlock(&j->lock);
}

mb_status
jobs_train(struct jobs *j, job_kind kind, const struct mb_collection *coll,
    struct call *call, uint64_t *id, struct mb_error *err)
{
    struct job *job = job_new(j, kind, coll->name);
    mb_status st = MB_OK;
    size_t n = 0;

    if (job == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "job");
    job->call = call;
    (void)pthread_mutex_lock(&j->lock);
    for (const struct job *o = j->newest; o != NULL; o = o->next) {
        n += o->state == JOB_WAITING && is_training_kind(o->kind);
    }
    if (jobs_is_stopping(j)) {
        st = mb_error_set(err, MB_ERR_SHUTTING_DOWN, "the daemon is ending");
    } else if (n >= MAX_WAITING) {
        st = mb_error_set(err, MB_ERR_BUSY, "%zu trainings wait already", n);
    } else {
        job_add(j, job);
        *id = job->id;
        job = NULL;
        let_go(j, coll, kind == JOB_BANK_PURGE);
    }
    (void)pthread_mutex_unlock(&j->lock);
    if (job != NULL)
        job_free(job);
    return st;
}

uint64_t
jobs_training(struct jobs *j, const char *collection,
    struct mb_banker_progress *out, bool *gives_way)
{
    uint64_t id = 0;

    (void)pthread_mutex_lock(&j->lock);
    for (const struct job *job = j->newest; job != NULL; job = job->next) {
        if (job->state != JOB_RUNNING || !is_training_kind(job->kind) ||
            strcmp(job->collection, collection) != 0)
            continue;
        id = job->id;
        *out = job->at;
        *gives_way = job->gives_way;
    }
    (void)pthread_mutex_unlock(&j->lock);
    return id;
}

/* The oldest job of these that waits; NULL if there is none. Under the lock. */
static struct job *
waiting_job(struct jobs *j, job_kind kind, const char *collection)
{
    struct job *found = NULL;

    for (struct job *job = j->newest; job != NULL; job = job->next) {
        if (job->state == JOB_WAITING && job->kind == kind &&
            (collection == NULL || strcmp(job->collection, collection) == 0))
            found = job;
    }
    return found;
}

/* ---- giving way ---- */

static bool
must_stop(struct job *job)
{
    return jobs_is_stopping(job->jobs) ||
           atomic_load_explicit(&job->is_let_go, memory_order_relaxed);
}

/* Sleep for a moment, less if jobs_stop or let_go wake the thread up. */
static void
nap(struct jobs *j)
{
    uint64_t until = mb_clock_ns() + POLL_MS * 1000000u;
    struct timespec ts = {
        (time_t)(until / 1000000000u), (long)(until % 1000000000u)};

    (void)pthread_mutex_lock(&j->lock);
    if (!jobs_is_stopping(j))
        (void)pthread_cond_timedwait(&j->train_wake, &j->lock, &ts);
    (void)pthread_mutex_unlock(&j->lock);
}

static void
set_gives_way(struct job *job, bool gives_way)
{
    (void)pthread_mutex_lock(&job->jobs->lock);
    job->gives_way = gives_way;
    (void)pthread_mutex_unlock(&job->jobs->lock);
}

/* mb_banker_train.gives_way: wait while requests are under way. */
static bool
gives_way(void *arg)
{
    struct job *job = arg;
    uint64_t start = mb_clock_ns();
    uint64_t waited = 0;
    bool model;

    if (!must_stop(job) && !daemon_is_busy(job->jobs->d, &model))
        return false;
    set_gives_way(job, true);
    while (!must_stop(job) && daemon_is_busy(job->jobs->d, &model) &&
           waited < (model ? MAX_MODEL_NS : MAX_WAIT_NS)) {
        nap(job->jobs);
        waited = mb_clock_ns() - start;
    }
    set_gives_way(job, false);
    return must_stop(job);
}

static bool
is_stopped(void *arg)
{
    return must_stop(arg);
}

static void
on_progress(void *arg, const struct mb_banker_progress *p)
{
    struct job *job = arg;
    double n = p->n_subtrees > 0 ? (double)p->n_subtrees : 1;
    double step = p->n_steps > 0 ? (double)p->step / (double)p->n_steps : 0;

    (void)pthread_mutex_lock(&job->jobs->lock);
    job->at = *p;
    job->phase = p->step < p->n_steps ? "train" : "measure";
    job->part =
        ((double)p->done + step) / n < 1 ? ((double)p->done + step) / n : 1;
    (void)pthread_mutex_unlock(&job->jobs->lock);
}

/* ---- what there is to do ---- */

/* Is there something to do for this collection? out->coll is set before. */
static bool
look_at(struct jobs *j, struct mb_snapshot *snap, struct todo *out)
{
    struct mb_banks bank;

    if (mb_banks_get(snap, &out->coll, &bank, NULL) != MB_OK ||
        !banks_is_live(j->d, &bank) ||
        mb_banks_run_get(snap, &out->coll, bank.bank, &out->run, NULL) != MB_OK)
        return false;
    out->bank = bank.bank;
    out->kind = out->run.is_purge ? JOB_BANK_PURGE : JOB_TRAIN;
    return out->run.is_purge || (out->run.is_training && !out->run.is_paused);
}

/* The first that is due; when to look again otherwise. A purge goes first. */
static bool
find_todo(struct jobs *j, struct todo *out, uint64_t *next)
{
    struct jobs_look look;
    uint64_t now = mb_clock_ns();
    bool found = false;

    *next = NO_TIME;
    if (!jobs_look_begin(j, &look))
        *next = now + RETRY_NS;
    for (size_t i = 0; i < look.n; i++) {
        struct todo todo = {.coll = look.list[i]};
        struct watch *w;
        uint64_t after;

        if (!look_at(j, look.snap, &todo))
            continue;
        (void)pthread_mutex_lock(&j->lock);
        w = jobs_watch_of(j, todo.coll.id);
        after = w != NULL ? w->train_after_ns : 0;
        (void)pthread_mutex_unlock(&j->lock);
        if (after > now) {
            *next = after < *next ? after : *next;
            continue;
        }
        if (!found || (todo.kind == JOB_BANK_PURGE && out->kind == JOB_TRAIN))
            *out = todo;
        found = true;
    }
    jobs_look_end(j, &look);
    return found;
}

/* ---- the work ---- */

/* Look at the collection's bank no sooner than in ns. */
static void
retry_later(struct jobs *j, const struct mb_collection *coll, uint64_t ns)
{
    struct watch *w;

    (void)pthread_mutex_lock(&j->lock);
    w = jobs_watch_of(j, coll->id);
    if (w != NULL)
        w->train_after_ns = mb_clock_ns() + ns;
    (void)pthread_mutex_unlock(&j->lock);
}

/* Write what became of what was asked; failures are only logged, since all it
 * means is that the training is looked at once more, later. */
static void
change_run(struct jobs *j, const struct todo *todo, mb_banks_run_change change)
{
    struct mb_op *op = NULL;
    struct mb_error err = {0};
    mb_status st = mb_op_banks_edit_new(
        mb_slice_cstr(todo->coll.name), todo->bank, &op, &err);

    if (st == MB_OK)
        st = mb_banks_edit_run(op, change, &todo->run);
    if (st == MB_OK)
        st = mb_store_apply(j->d->store, op, &err);
    mb_op_free(op);
    if (st == MB_OK || st == MB_ERR_STALE || st == MB_ERR_NOT_FOUND)
        return;
    mb_log(MB_LOG_WARN, "job.left", "collection=\"%s\" cause=\"%s\"",
        todo->coll.name, err.text);
    retry_later(j, &todo->coll, RETRY_NS);
}

static void
write_result(struct call *c, const struct job *job)
{
    struct mb_writer *w = &c->w;

    call_begin(c);
    mb_write_map(w, 5);
    mb_write_kv_uint(w, "job", job->id);
    mb_write_kv_bool(w, "finished", job->is_finished);
    mb_write_kv_uint(w, "subtrees", job->at.n_subtrees);
    mb_write_kv_uint(w, "done", job->at.done);
    mb_write_kv_uint(w, "tokens", job->at.n_tokens);
}

static void
finish(struct jobs *j, struct job *job, mb_status st, struct mb_error *err)
{
    struct call *c = job_end(j, job, st, err);

    if (c == NULL)
        return;
    if (st == MB_OK)
        write_result(c, job);
    call_finish(c, st, err);
}

/* Is it what the store wants now? `otherwise`, where the store cannot say. */
static bool
is_wanted(struct jobs *j, const struct todo *todo, bool otherwise)
{
    struct mb_snapshot *snap = NULL;
    struct todo now = {.coll = todo->coll};

    if (mb_snapshot_begin(j->d->store, &snap, NULL) != MB_OK)
        return otherwise;
    (void)look_at(j, snap, &now);
    mb_snapshot_end(snap);
    return now.bank == todo->bank &&
           (todo->kind == JOB_BANK_PURGE
                   ? now.run.is_purge
                   : now.run.is_training && !now.run.is_paused &&
                         now.run.asked == todo->run.asked);
}

/* It was let go for something else, and is wanted still: it waits again. */
static bool
goes_on_later(struct jobs *j, const struct todo *todo, struct job *job)
{
    bool wanted = !jobs_is_stopping(j) && is_wanted(j, todo, false);

    (void)pthread_mutex_lock(&j->lock);
    atomic_store_explicit(&job->is_let_go, false, memory_order_relaxed);
    if (wanted)
        job->state = JOB_WAITING;
    (void)pthread_mutex_unlock(&j->lock);
    return wanted;
}

/* What is left to be said of a run that ended with st. */
static mb_status
conclude(struct jobs *j, const struct todo *todo, bool is_cut, mb_status st,
    struct mb_error *err)
{
    bool purge = todo->kind == JOB_BANK_PURGE;

    if (is_cut)
        return mb_error_set(err, MB_ERR_CANCELLED,
            jobs_is_stopping(j)
                ? "the daemon is ending; it goes on at the next "
                  "start"
                : "paused, or asked for anew");
    if (st == MB_OK) {
        change_run(j, todo, purge ? MB_BANKS_RUN_PURGED : MB_BANKS_RUN_TRAINED);
        return st;
    }
    retry_later(j, &todo->coll, st == MB_ERR_STALE ? STALE_RETRY_NS : RETRY_NS);
    if (st == MB_ERR_NOT_FOUND)
        return mb_error_set(err, MB_ERR_CANCELLED, "its bank is gone");
    // A training that cannot go on waits for somebody to look at it; a purge
    // is tried until it is done, and so is what fails for want of a moment.
    if (st != MB_ERR_STALE && !purge && !mb_status_may_retry(st))
        change_run(j, todo, MB_BANKS_RUN_PAUSE);
    return st;
}

static void
run(struct jobs *j, const struct todo *todo)
{
    const struct config *cfg = daemon_config(j->d);
    struct mb_error err = {0};
    struct job *job;
    bool is_cut;
    mb_status st;

    (void)pthread_mutex_lock(&j->lock);
    job = waiting_job(j, todo->kind, todo->coll.name);
    if (job == NULL && (job = job_new(j, todo->kind, todo->coll.name)) != NULL)
        job_add(j, job);
    (void)pthread_mutex_unlock(&j->lock);
    if (job == NULL) {
        retry_later(j, &todo->coll, RETRY_NS);
        return;
    }
    struct mb_banker_train t = {
        .store = j->d->store,
        .collection = todo->coll.name,
        .gguf = reader_gguf(j->d->reader),
        .tokenizer = reader_tokenizer(j->d->reader),
        .n_threads = (unsigned)cfg->bank_threads,
        .checkpoint_seconds = (double)cfg->bank_checkpoint,
        .only_stale = todo->kind == JOB_BANK_PURGE,
        .is_stopped = is_stopped,
        .gives_way = gives_way,
        .progress = on_progress,
        .arg = job,
    };
    reader_fingerprint(j->d->reader, t.fingerprint);
    if (todo->kind == JOB_TRAIN) {
        t.is_generic = todo->run.is_generic;
        t.charges_run = true;
        t.run_asked = todo->run.asked;
        if (todo->run.ms != UINT64_MAX)
            t.seconds = (double)todo->run.ms / 1e3 + 1e-9;
        if (todo->run.tokens != UINT64_MAX)
            t.tokens = todo->run.tokens > 0 ? todo->run.tokens : 1;
    }
    job_begin(j, job);
    // From here on a new wish lets it go; one that came before is seen here.
    if (!is_wanted(j, todo, true)) {
        st = mb_error_set(&err, MB_ERR_CANCELLED, "paused, or asked for anew");
        finish(j, job, st, &err);
        return;
    }
    st = mb_banker_train(&t, &err);
    job->is_finished = t.is_finished;
    (void)pthread_mutex_lock(&j->lock);
    job->at = t.at;
    (void)pthread_mutex_unlock(&j->lock);
    if (st == MB_OK)
        err = (struct mb_error){0}; // of look-ups that found nothing
    is_cut = st == MB_OK && !t.is_finished && must_stop(job);
    if (is_cut && goes_on_later(j, todo, job))
        return;
    st = conclude(j, todo, is_cut, st, &err);
    finish(j, job, st, &err);
}

/* ---- the thread ---- */

/* A job that waits although nothing was found to do. NULL: there is none, or
 * something came since the look. */
static struct job *
idle_job(struct jobs *j)
{
    struct job *job = NULL;

    (void)pthread_mutex_lock(&j->lock);
    if (!j->train_changed)
        job = waiting_job(j, JOB_TRAIN, NULL);
    if (!j->train_changed && job == NULL)
        job = waiting_job(j, JOB_BANK_PURGE, NULL);
    (void)pthread_mutex_unlock(&j->lock);
    return job;
}

/* Jobs of which nothing is left in the store: another one did it, or a later
 * wish took its place. */
static void
finish_idle_jobs(struct jobs *j)
{
    struct job *job;

    while ((job = idle_job(j)) != NULL) {
        struct mb_error err = {0};

        job_begin(j, job);
        finish(j, job,
            mb_error_set(&err, MB_ERR_CANCELLED, "nothing is left of it"),
            &err);
    }
}

static void
tell_end(struct jobs *j)
{
    (void)pthread_mutex_lock(&j->lock);
    j->train_has_ended = true;
    (void)pthread_cond_broadcast(&j->train_wake);
    (void)pthread_mutex_unlock(&j->lock);
}

/* Sleep until something changed or `next` is reached; false at the end. */
static bool
wait_for_wish(struct jobs *j, uint64_t next)
{
    struct timespec ts = {
        (time_t)(next / 1000000000u), (long)(next % 1000000000u)};
    int rc = 0;

    (void)pthread_mutex_lock(&j->lock);
    while (!j->train_changed && !jobs_is_stopping(j) && rc != ETIMEDOUT) {
        if (next == NO_TIME)
            rc = pthread_cond_wait(&j->train_wake, &j->lock);
        else
            rc = pthread_cond_timedwait(&j->train_wake, &j->lock, &ts);
    }
    j->train_changed = false;
    (void)pthread_mutex_unlock(&j->lock);
    return !jobs_is_stopping(j);
}

void
jobs_run_training(void *arg)
{
    struct jobs *j = arg;
    uint64_t next = NO_TIME;

    // What it starts inherits this.
    mb_thread_set_nice((int)daemon_config(j->d)->bank_nice);
    // Without a reader bank.train is refused, too.
    while (reader_absence(j->d->reader) == NULL && wait_for_wish(j, next)) {
        struct todo todo = {0};

        while (!jobs_is_stopping(j) && find_todo(j, &todo, &next)) {
            run(j, &todo);
        }
        if (next == NO_TIME && !jobs_is_stopping(j))
            finish_idle_jobs(j);
    }
    tell_end(j);
}
