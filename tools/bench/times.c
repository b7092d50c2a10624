/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/times.c - sort times. Threads: any. */
#include "times.h"

#include <stdlib.h>

static int
compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

void
times_sort(uint64_t *ns, size_t n)
{
    qsort(ns, n, sizeof *ns, compare);
}
