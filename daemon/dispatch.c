/* SPDX-License-Identifier: Apache-2.0
 * daemon/dispatch.c - the workers: two queues, and what each worker keeps.
 *
 * mb_pool of base has one queue; here reads must not stand behind a hundred
 * puts. Tasks are linked, so that work that was accepted once (a put folded
 * in anew) can be queued again without memory and without a limit.
 * Invariants: worker 0 takes bulk tasks only if it is the only worker;
 * n_queued counts the owned tasks, those that came through dispatch_submit.
 * Threads: `lock` guards queues and counters; a worker's state is its own. No
 * task runs under the lock. */
#include "dispatch.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define MAX_SPAN_BYTES   ((size_t)1 << 30)
#define MAX_VECTOR_BYTES ((size_t)1 << 30)

struct queue {
    struct dispatch_task *head;
    struct dispatch_task *tail;
    size_t n;
};

struct dispatch {
    pthread_mutex_t lock;
    pthread_cond_t work[2]; /* [0]: takes quick tasks only; [1]: takes both */
    struct queue quick;
    struct queue bulk;
    size_t n_queued;
    size_t max_queued;
    unsigned n_running_quick;
    bool ending;
    unsigned n_workers;

    struct seat {
        struct dispatch *dispatch;
        struct mb_thread *thread;
        struct worker worker;
        bool takes_bulk;
    } seats[];
};

/* ---- worker ---- */

mb_status
worker_init(struct worker *w)
{
    memset(w, 0, sizeof *w);
    mb_buffer_init(&w->spans, MAX_SPAN_BYTES);
    mb_buffer_init(&w->vectors, MAX_VECTOR_BYTES);
    return mb_token_cache_new(&w->tokens);
}

void
worker_fini(struct worker *w)
{
    mb_token_cache_free(w->tokens);
    mb_buffer_fini(&w->spans);
    mb_buffer_fini(&w->vectors);
    for (size_t i = 0; i < WORKER_ANALYZERS; i++) {
        mb_analyzer_free(w->analyzers[i].analyzer);
    }
}

mb_status
worker_analyzer(struct worker *w, const char *language,
    struct mb_analyzer **out, struct mb_error *err)
{
    struct worker_analyzer *oldest = &w->analyzers[0];
    struct mb_analyzer *analyzer;
    mb_status st;

    w->n_uses++;
    for (size_t i = 0; i < WORKER_ANALYZERS; i++) {
        struct worker_analyzer *a = &w->analyzers[i];

        if (a->analyzer != NULL && strcmp(a->language, language) == 0) {
            a->last_use = w->n_uses;
            *out = a->analyzer;
            return MB_OK;
        }
        if (a->last_use < oldest->last_use)
            oldest = a;
    }
    st = mb_analyzer_new(language, &analyzer, err);
    if (st != MB_OK)
        return st;
    mb_analyzer_free(oldest->analyzer);
    oldest->analyzer = analyzer;
    oldest->last_use = w->n_uses;
    (void)snprintf(oldest->language, sizeof oldest->language, "%s", language);
    *out = analyzer;
    return MB_OK;
}

/* ---- queues ---- */

static void
queue_push(struct queue *q, struct dispatch_task *task)
{
    task->next = NULL;
    if (q->tail != NULL)
        q->tail->next = task;
    else
        q->head = task;
    q->tail = task;
    q->n++;
}

static struct dispatch_task *
queue_pop(struct queue *q)
{
    struct dispatch_task *task = q->head;

    if (task == NULL)
        return NULL;
    q->head = task->next;
    if (q->head == NULL)
        q->tail = NULL;
    q->n--;
    return task;
}

/* Next task for this seat, waiting for one; NULL at the end. Under the lock,
 * which is let go while it waits. */
static struct dispatch_task *
next_task(struct seat *seat, bool *quick)
{
    struct dispatch *d = seat->dispatch;

    for (;;) {
        struct dispatch_task *task = queue_pop(&d->quick);

        *quick = task != NULL;
        if (task == NULL && seat->takes_bulk)
            task = queue_pop(&d->bulk);
        if (task != NULL || d->ending)
            return task;
        (void)pthread_cond_wait(&d->work[seat->takes_bulk], &d->lock);
    }
}

static void
run(void *arg)
{
    struct seat *seat = arg;
    struct dispatch *d = seat->dispatch;
    struct dispatch_task *task;
    bool quick;

    (void)pthread_mutex_lock(&d->lock);
    while ((task = next_task(seat, &quick)) != NULL) {
        dispatch_fn fn = task->fn;
        void *task_arg = task->arg;
        bool owned = task->owned;

        if (owned)
            d->n_queued--;
        if (quick)
            d->n_running_quick++;
        (void)pthread_mutex_unlock(&d->lock);
        if (owned)
            mb_free(task);
        fn(task_arg, &seat->worker);
        (void)pthread_mutex_lock(&d->lock);
        if (quick)
            d->n_running_quick--;
    }
    (void)pthread_mutex_unlock(&d->lock);
}

/* Under the lock. Quick tasks prefer the worker that is kept for them. */
static void
push(struct dispatch *d, bool bulk, struct dispatch_task *task)
{
    queue_push(bulk ? &d->bulk : &d->quick, task);
    if (bulk) {
        (void)pthread_cond_signal(&d->work[1]);
    } else {
        (void)pthread_cond_signal(&d->work[0]);
        // A lone worker waits for both kinds.
        if (d->n_workers == 1 || d->quick.n + d->n_running_quick > 1)
            (void)pthread_cond_signal(&d->work[1]);
    }
}

mb_status
dispatch_submit(struct dispatch *d, bool bulk, dispatch_fn fn, void *arg)
{
    struct dispatch_task *task = mb_alloc(sizeof *task);
    mb_status st = MB_OK;

    if (task == NULL)
        return MB_ERR_NOMEM;
    task->fn = fn;
    task->arg = arg;
    task->owned = true;
    (void)pthread_mutex_lock(&d->lock);
    if (d->n_queued >= d->max_queued) {
        st = MB_ERR_BUSY;
    } else {
        d->n_queued++;
        push(d, bulk, task);
    }
    (void)pthread_mutex_unlock(&d->lock);
    if (st != MB_OK)
        mb_free(task);
    return st;
}

void
dispatch_post(struct dispatch *d, bool bulk, struct dispatch_task *task)
{
    task->owned = false;
    (void)pthread_mutex_lock(&d->lock);
    push(d, bulk, task);
    (void)pthread_mutex_unlock(&d->lock);
}

bool
dispatch_is_idle(struct dispatch *d)
{
    bool idle;

    (void)pthread_mutex_lock(&d->lock);
    idle = d->quick.n == 0 && d->n_running_quick == 0;
    (void)pthread_mutex_unlock(&d->lock);
    return idle;
}

void
dispatch_depth(struct dispatch *d, size_t *n_quick, size_t *n_bulk)
{
    (void)pthread_mutex_lock(&d->lock);
    *n_quick = d->quick.n;
    *n_bulk = d->bulk.n;
    (void)pthread_mutex_unlock(&d->lock);
}

/* ---- life ---- */

mb_status
dispatch_new(unsigned n_workers, size_t max_queued, struct dispatch **out,
    struct mb_error *err)
{
    unsigned n = n_workers > 0 ? n_workers : mb_cpu_count() + 1;
    struct dispatch *d = mb_calloc(1, sizeof *d + n * sizeof d->seats[0]);
    mb_status st = MB_OK;

    if (d == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "workers");
    (void)pthread_mutex_init(&d->lock, NULL);
    (void)pthread_cond_init(&d->work[0], NULL);
    (void)pthread_cond_init(&d->work[1], NULL);
    d->max_queued = max_queued;
    for (unsigned i = 0; i < n && st == MB_OK; i++) {
        struct seat *seat = &d->seats[i];
        char name[16];

        d->n_workers++;
        seat->dispatch = d;
        seat->takes_bulk = i > 0 || n == 1;
        (void)snprintf(name, sizeof name, "mb-work-%u", i % 1000);
        st = worker_init(&seat->worker);
        if (st == MB_OK)
            st = mb_thread_start(&seat->thread, name, run, seat);
    }
    if (st != MB_OK) {
        dispatch_free(d);
        return mb_error_set(err, st, "start %u workers", n);
    }
    *out = d;
    return MB_OK;
}

void
dispatch_free(struct dispatch *d)
{
    if (d == NULL)
        return;
    (void)pthread_mutex_lock(&d->lock);
    d->ending = true;
    (void)pthread_cond_broadcast(&d->work[0]);
    (void)pthread_cond_broadcast(&d->work[1]);
    (void)pthread_mutex_unlock(&d->lock);
    for (unsigned i = 0; i < d->n_workers; i++) {
        mb_thread_join(d->seats[i].thread);
        worker_fini(&d->seats[i].worker);
    }
    (void)pthread_cond_destroy(&d->work[0]);
    (void)pthread_cond_destroy(&d->work[1]);
    (void)pthread_mutex_destroy(&d->lock);
    mb_free(d);
}
