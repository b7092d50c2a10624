/* SPDX-License-Identifier: Apache-2.0
 * client/base/clock.c - what time it is, three ways.
 * Threads: any. */
#include "mb_base.h"

#include <time.h>

static uint64_t
read_clock(clockid_t id)
{
    struct timespec t;
    MB_ASSERT(clock_gettime(id, &t) == 0);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

uint64_t
mb_clock_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

uint64_t
mb_clock_wall_ms(void)
{
    return read_clock(CLOCK_REALTIME) / 1000000;
}

uint64_t
mb_clock_cpu_ns(void)
{
    return read_clock(CLOCK_PROCESS_CPUTIME_ID);
}
