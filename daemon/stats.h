/* SPDX-License-Identifier: Apache-2.0
 * daemon/stats.h - how often each command ran, how long it took.
 *
 * Times fall into buckets a factor of two apart, so that percentiles cost
 * nothing to keep and are exact to a factor of two, and to better by
 * interpolation.
 * Threads: any; counters are relaxed atomics. */
#ifndef DAEMON_STATS_H
#define DAEMON_STATS_H

#include <stdatomic.h>

#include "mb_base.h"

#define STATS_BUCKETS 32 /* bucket i: below 2^i microseconds */

struct stats_counter {
    atomic_uint_fast64_t n;
    atomic_uint_fast64_t n_errors;
    atomic_uint_fast64_t sum_us;
    atomic_uint_fast64_t max_us;
    atomic_uint_fast64_t buckets[STATS_BUCKETS];
    /* What the next run will likely take: moving average of the time spent
     * in the handler, in units of 1/16 us. */
    atomic_uint_fast64_t expected;
};

struct stats {
    size_t n;
    struct stats_counter counters[];
};

/* NULL when memory is short. */
struct stats *stats_new(size_t n);
void stats_free(struct stats *s);
/* One run of command i: from arrival to reply. */
void stats_count(struct stats *s, size_t i, uint64_t total_us, bool ok);
/* One run of its handler. */
void stats_expect(struct stats *s, size_t i, uint64_t run_us);
/* Microseconds a handler is likely to take. */
uint64_t stats_expected_us(const struct stats *s, size_t i);
/* Time that a part q of runs stayed below, interpolated; 0 without runs. */
double stats_quantile_us(const struct stats_counter *c, double q);

#endif
