/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/bench.h - what the measurements of membank-bench share.
 *
 * A series is a list of times of single calls, or of the calls of several
 * clients over a while; it becomes one row of the result. Input comes from a
 * seed. Latency of a search that may miss is never given without its recall.
 * Threads: the main thread, but where a client thread is named. */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include "display.h"
#include "json.h"
#include "tool.h"

struct bench {
    const struct mb_cli *cli;
    struct membank *client;
    const char *collection;
    uint64_t n;       /* calls of each series */
    uint64_t clients; /* that call at once */
    uint64_t k;
    uint64_t seed;
    double seconds; /* of a series with several clients */
    bool json;
    double ping_ms; /* median, once it is measured */
    struct table *table;
    struct mb_buffer rows; /* JSON objects, comma between */
};

/* Times of calls. */
struct series {
    uint64_t *ns;
    size_t n;
    size_t capacity;
    double wall_s; /* from the first call to the last */
};

MB_MUST_USE mb_status series_add(struct series *s, uint64_t ns);
MB_MUST_USE mb_status series_join(struct series *s, const struct series *other);
void series_fini(struct series *s);

/* What is asked of a row beside its times; 0 or NaN: nothing. */
struct row {
    const char *name;
    double recall;    /* NaN: none */
    double limit_p50; /* ms */
    double limit_p99; /* ms */
    uint64_t bytes;   /* moved in all; 0: not said */
    uint64_t items;   /* in all; 0: one a call */
};

/* Sorts s and adds it to the result. */
MB_MUST_USE mb_status bench_row(struct bench *b, struct series *s,
    const struct row *row, struct mb_error *err);
/* Part q of sorted times, in ms. */
double series_ms(const struct series *s, double q);

/* One request, timed; the reply is checked and dropped, or given out. */
MB_MUST_USE mb_status bench_call(struct membank *client, const char *op,
    const struct mb_buffer *args, uint64_t *ns, struct membank_reply **reply,
    struct mb_error *err);

/* A client thread calls fn again and again, i counting up, until time is up or
 * fn fails; fn packs the i-th request of client c into args. */
typedef mb_status (*bench_pack_fn)(
    void *arg, uint64_t c, uint64_t i, struct mb_buffer *args);
MB_MUST_USE mb_status bench_clients(struct bench *b, const char *op,
    bench_pack_fn pack, void *arg, struct series *out, struct mb_error *err);

/* ---- query.c, put.c ---- */

mb_status bench_query(struct bench *b, struct mb_error *err);
mb_status bench_put(struct bench *b, struct mb_error *err);

#endif
