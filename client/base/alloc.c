/* SPDX-License-Identifier: Apache-2.0
 * client/base/alloc.c - the heap, and a way to make it fail.
 *
 * All memory of membank comes through here, so that fault tests can fail the
 * n-th allocation for n = 1, 2, ... until everything passes. While that is
 * switched off, the cost is one relaxed load.
 * Invariants: no call returns NULL for size 0; a count times a size that
 * overflows is a failed allocation.
 * Threads: any. The two counters are the only state; they order nothing else,
 * so relaxed is enough. */
#include "mb_base.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static atomic_uint_fast64_t alloc_fail_at; /* 0: never */
static atomic_uint_fast64_t alloc_seen;    /* since the switch was set */

static bool
alloc_must_fail(void)
{
    uint64_t at = atomic_load_explicit(&alloc_fail_at, memory_order_relaxed);
    if (at == 0)
        return false;
    uint64_t seen =
        atomic_fetch_add_explicit(&alloc_seen, 1, memory_order_relaxed) + 1;
    return seen >= at;
}

void
mb_alloc_fail_after(uint64_t n)
{
    atomic_store_explicit(&alloc_fail_at, 0, memory_order_relaxed);
    atomic_store_explicit(&alloc_seen, 0, memory_order_relaxed);
    atomic_store_explicit(&alloc_fail_at, n, memory_order_relaxed);
}

void *
mb_alloc(size_t size)
{
    if (size > PTRDIFF_MAX || alloc_must_fail())
        return NULL;
    return malloc(size == 0 ? 1 : size);
}

void *
mb_calloc(size_t count, size_t size)
{
    size_t total;
    if (!mb_size_mul(count, size, &total) || total > PTRDIFF_MAX ||
        alloc_must_fail())
        return NULL;
    return calloc(1, total == 0 ? 1 : total);
}

void *
mb_realloc(void *p, size_t size)
{
    if (size > PTRDIFF_MAX || alloc_must_fail())
        return NULL;
    return realloc(p, size == 0 ? 1 : size);
}

void
mb_free(void *p)
{
    free(p);
}

char *
mb_strndup(const char *s, size_t n)
{
    size_t size;
    if (!mb_size_add(n, 1, &size))
        return NULL;
    char *copy = mb_alloc(size);
    if (!copy)
        return NULL;
    if (n > 0)
        memcpy(copy, s, n);
    copy[n] = '\0';
    return copy;
}
