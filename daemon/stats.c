/* SPDX-License-Identifier: Apache-2.0
 * daemon/stats.c - how often each command ran, how long it took.
 * Threads: any; counters are relaxed atomics, each right by itself. */
#include "stats.h"

static uint64_t
load(const atomic_uint_fast64_t *v)
{
    return atomic_load_explicit(v, memory_order_relaxed);
}

static void
add(atomic_uint_fast64_t *v, uint64_t n)
{
    (void)atomic_fetch_add_explicit(v, n, memory_order_relaxed);
}

struct stats *
stats_new(size_t n)
{
    struct stats *s = mb_calloc(1, sizeof *s + n * sizeof s->counters[0]);

    if (s != NULL)
        s->n = n;
    return s;
}

void
stats_free(struct stats *s)
{
    mb_free(s);
}

static size_t
bucket_of(uint64_t us)
{
    size_t i = 0;

    while (i + 1 < STATS_BUCKETS && us >> i != 0) {
        i++;
    }
    return i;
}

void
stats_count(struct stats *s, size_t i, uint64_t total_us, bool ok)
{
    struct stats_counter *c = &s->counters[i];
    uint64_t max = load(&c->max_us);

    add(&c->n, 1);
    if (!ok)
        add(&c->n_errors, 1);
    add(&c->sum_us, total_us);
    add(&c->buckets[bucket_of(total_us)], 1);
    while (total_us > max &&
           !atomic_compare_exchange_weak_explicit(&c->max_us, &max, total_us,
               memory_order_relaxed, memory_order_relaxed)) {
    }
}

void
stats_expect(struct stats *s, size_t i, uint64_t run_us)
{
    struct stats_counter *c = &s->counters[i];
    uint64_t old = load(&c->expected);

    // A lost update between threads costs nothing: it is an estimate.
    atomic_store_explicit(
        &c->expected, old - old / 8 + 16 * run_us / 8, memory_order_relaxed);
}

uint64_t
stats_expected_us(const struct stats *s, size_t i)
{
    return load(&s->counters[i].expected) / 16;
}

double
stats_quantile_us(const struct stats_counter *c, double q)
{
    uint64_t n = 0;
    double wanted;
    double below = 0;

    for (size_t i = 0; i < STATS_BUCKETS; i++) {
        n += load(&c->buckets[i]);
    }
    wanted = q * (double)n;
    for (size_t i = 0; i < STATS_BUCKETS && n > 0; i++) {
        double here = (double)load(&c->buckets[i]);
        double low = i == 0 ? 0 : (double)((uint64_t)1 << (i - 1));
        double high = (double)((uint64_t)1 << i);

        if (here > 0 && below + here >= wanted)
            return low + (high - low) * (wanted - below) / here;
        below += here;
    }
    return 0;
}
