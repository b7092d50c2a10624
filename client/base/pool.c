/* SPDX-License-Identifier: Apache-2.0
 * client/base/pool.c - workers that sleep until there is work.
 *
 * Two kinds of work share the workers. Tasks wait in a ring of fixed size, so
 * that whoever submits learns at once that it is full. Loops (mb_pool_for) are
 * a list of ranges that live on their callers' stacks: a caller puts its loop
 * on the list, wakes idle workers, and does the work itself like any of them.
 * Indices are handed out one by one by an atomic counter. When the counter is
 * used up the caller takes the loop off the list, so that nobody can join any
 * more, and sleeps until the helpers that had joined are done. A loop thus
 * never waits for a worker that is busy with something else, and nobody spins.
 * Invariants: a loop on the list is alive; `n_helpers` counts the workers that
 * hold a pointer to it.
 * Threads: `lock` guards all fields; loop->next alone is atomic (relaxed: the
 * lock, taken before and after, orders what the iterations wrote). No task
 * runs under the lock. */
#include "mb_base.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

struct task {
    mb_task_fn fn;
    void *arg;
};

struct loop {
    void (*fn)(void *arg, size_t i);
    void *arg;
    size_t n;
    atomic_size_t next;  /* first index nobody has taken */
    unsigned n_helpers;  /* workers inside */
    pthread_cond_t done; /* n_helpers became 0 */
    struct loop *after;  /* next in the list */
};

struct mb_pool {
    pthread_mutex_t lock;
    pthread_cond_t work; /* a task, a loop, or the end */
    struct task *ring;
    size_t ring_size;
    size_t head; /* oldest task */
    size_t n_queued;
    struct loop *loops;
    unsigned n_idle; /* workers that wait on `work` */
    bool ending;
    unsigned n_threads;
    struct mb_thread *threads[]; /* n_threads */
};

static void
lock_pool(struct mb_pool *pool)
{
    MB_ASSERT(pthread_mutex_lock(&pool->lock) == 0);
}

static void
unlock_pool(struct mb_pool *pool)
{
    MB_ASSERT(pthread_mutex_unlock(&pool->lock) == 0);
}

static void
run_indices(struct loop *loop)
{
    for (;;) {
        size_t i =
            atomic_fetch_add_explicit(&loop->next, 1, memory_order_relaxed);
        if (i >= loop->n)
            return;
        loop->fn(loop->arg, i);
    }
}

/* A loop with indices left, or NULL. Under the lock. */
static struct loop *
find_loop(struct mb_pool *pool)
{
    struct loop *loop = pool->loops;
    while (loop &&
           atomic_load_explicit(&loop->next, memory_order_relaxed) >= loop->n)
        loop = loop->after;
    return loop;
}

/* Called and left with the lock held, which is open meanwhile. */
static void
help_loop(struct mb_pool *pool, struct loop *loop)
{
    loop->n_helpers++;
    unlock_pool(pool);
    run_indices(loop);
    lock_pool(pool);
    loop->n_helpers--;
    if (loop->n_helpers == 0)
        pthread_cond_signal(&loop->done);
}

static void
run_task(struct mb_pool *pool)
{
    struct task task = pool->ring[pool->head];
    pool->head = (pool->head + 1) % pool->ring_size;
    pool->n_queued--;
    unlock_pool(pool);
    task.fn(task.arg);
    lock_pool(pool);
}

static void
worker_main(void *arg)
{
    struct mb_pool *pool = arg;
    lock_pool(pool);
    for (;;) {
        struct loop *loop = find_loop(pool);
        if (loop) {
            help_loop(pool, loop);
        } else if (pool->n_queued > 0) {
            run_task(pool);
        } else if (pool->ending) {
            break;
        } else {
            pool->n_idle++;
            pthread_cond_wait(&pool->work, &pool->lock);
            pool->n_idle--;
        }
    }
    unlock_pool(pool);
}

mb_status
mb_pool_new(struct mb_pool **out, const char *name, unsigned n_threads,
    size_t max_queued)
{
    if (n_threads == 0)
        return MB_ERR_BAD_ARG;
    size_t bytes;
    if (!mb_size_mul(n_threads, sizeof(struct mb_thread *), &bytes) ||
        !mb_size_add(bytes, sizeof(struct mb_pool), &bytes))
        return MB_ERR_NOMEM;
    struct mb_pool *pool = mb_calloc(1, bytes);
    if (!pool)
        return MB_ERR_NOMEM;
    MB_ASSERT(pthread_mutex_init(&pool->lock, NULL) == 0);
    MB_ASSERT(pthread_cond_init(&pool->work, NULL) == 0);
    pool->ring_size = max_queued;
    pool->ring = mb_calloc(max_queued, sizeof *pool->ring);
    mb_status st = pool->ring ? MB_OK : MB_ERR_NOMEM;
    for (unsigned i = 0; i < n_threads && st == MB_OK; i++) {
        char thread_name[16];
        snprintf(thread_name, sizeof thread_name, "%.10s-%u", name, i % 10000);
        st = mb_thread_start(&pool->threads[i], thread_name, worker_main, pool);
        if (st == MB_OK)
            pool->n_threads++;
    }
    if (st != MB_OK) {
        mb_pool_free(pool);
        return st;
    }
    *out = pool;
    return MB_OK;
}

void
mb_pool_free(struct mb_pool *pool)
{
    if (!pool)
        return;
    lock_pool(pool);
    pool->ending = true;
    pthread_cond_broadcast(&pool->work);
    unlock_pool(pool);
    for (unsigned i = 0; i < pool->n_threads; i++)
        mb_thread_join(pool->threads[i]);
    MB_ASSERT(pool->n_queued == 0 && !pool->loops);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    mb_free(pool->ring);
    mb_free(pool);
}

mb_status
mb_pool_submit(struct mb_pool *pool, mb_task_fn fn, void *arg)
{
    lock_pool(pool);
    if (pool->n_queued == pool->ring_size) {
        unlock_pool(pool);
        return MB_ERR_BUSY;
    }
    size_t tail = (pool->head + pool->n_queued) % pool->ring_size;
    pool->ring[tail] = (struct task){.fn = fn, .arg = arg};
    pool->n_queued++;
    if (pool->n_idle > 0)
        pthread_cond_signal(&pool->work);
    unlock_pool(pool);
    return MB_OK;
}

/* Take the loop off the list and wait for those inside. */
static void
leave_loop(struct mb_pool *pool, struct loop *loop)
{
    lock_pool(pool);
    struct loop **at = &pool->loops;
    while (*at != loop)
        at = &(*at)->after;
    *at = loop->after;
    while (loop->n_helpers > 0)
        pthread_cond_wait(&loop->done, &pool->lock);
    unlock_pool(pool);
}

void
mb_pool_for(
    struct mb_pool *pool, size_t n, void (*fn)(void *arg, size_t i), void *arg)
{
    if (!pool || n < 2) {
        for (size_t i = 0; i < n; i++)
            fn(arg, i);
        return;
    }
    struct loop loop = {.fn = fn, .arg = arg, .n = n};
    atomic_init(&loop.next, 0);
    MB_ASSERT(pthread_cond_init(&loop.done, NULL) == 0);
    lock_pool(pool);
    loop.after = pool->loops;
    pool->loops = &loop;
    for (size_t i = 0; i < pool->n_idle && i < n - 1; i++)
        pthread_cond_signal(&pool->work);
    unlock_pool(pool);
    run_indices(&loop);
    leave_loop(pool, &loop);
    pthread_cond_destroy(&loop.done);
}
