/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/times.h - times in nanoseconds, in order.
 *
 * Threads: any. */
#ifndef BENCH_TIMES_H
#define BENCH_TIMES_H

#include <stddef.h>
#include <stdint.h>

/* The shortest first. */
void times_sort(uint64_t *ns, size_t n);

#endif
