/* SPDX-License-Identifier: Apache-2.0
 * client/base/thread.c - named threads.
 *
 * A thread is started with a name, which logs and ps show, and is joined by
 * whoever started it. It inherits the signal mask of its starter: a program
 * that handles signals in one thread blocks them before it starts others.
 * Invariants: each started thread is joined exactly once.
 * Threads: start and join from any, join not from the thread itself. */
#include "mb_base.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>

#include "platform.h"

#define THREAD_NAME_SIZE 16 /* what Linux shows, NUL included */

struct mb_thread {
    pthread_t id;
    void (*fn)(void *arg);
    void *arg;
    char name[THREAD_NAME_SIZE];
};

static _Thread_local const char *thread_own_name;

static void *
thread_main(void *arg)
{
    struct mb_thread *thread = arg;
    thread_own_name = thread->name;
    platform_name_thread(thread->name);
    thread->fn(thread->arg);
    return NULL;
}

mb_status
mb_thread_start(
    struct mb_thread **out, const char *name, void (*fn)(void *arg), void *arg)
{
    struct mb_thread *thread = mb_alloc(sizeof *thread);
    if (!thread)
        return MB_ERR_NOMEM;
    thread->fn = fn;
    thread->arg = arg;
    snprintf(thread->name, sizeof thread->name, "%s", name);
    // Published first: the new thread may end before create returns here.
    int rc = pthread_create(&thread->id, NULL, thread_main, thread);
    if (rc != 0) {
        mb_free(thread);
        return rc == EAGAIN ? MB_ERR_NOMEM : MB_ERR_INTERNAL;
    }
    *out = thread;
    return MB_OK;
}

void
mb_thread_join(struct mb_thread *thread)
{
    if (!thread)
        return;
    MB_ASSERT(pthread_join(thread->id, NULL) == 0);
    mb_free(thread);
}

const char *
mb_thread_name(void)
{
    return thread_own_name ? thread_own_name : "main";
}
