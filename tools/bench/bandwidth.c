/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/bandwidth.c - how fast this machine reads memory.
 *
 * Each thread looks through a part of its own for a byte that is not there: the
 * C library's memchr is written for each processor, and takes what memory gives.
 * (A plain loop of sums reached 12 GB/s where this and vector loads reach 18.)
 * Threads: a pool of the call's own. */
#include "model.h"

#include <string.h>

#define BLOCK_BYTES ((size_t)512 << 20)
#define N_ROUNDS    8

struct reading {
    const uint8_t *bytes;
    size_t part; /* of one thread */
    bool *found; /* one a thread: the reading has a result */
};

static void
read_part(void *arg, size_t i)
{
    const struct reading *r = arg;

    r->found[i] = memchr(r->bytes + i * r->part, 0, r->part) != NULL;
}

mb_status
bench_bandwidth(unsigned n_threads, double *bytes_per_s, struct mb_error *err)
{
    size_t part = BLOCK_BYTES / n_threads;
    uint8_t *bytes = mb_alloc(BLOCK_BYTES);
    bool *found = mb_calloc(n_threads, sizeof *found);
    struct mb_pool *pool = NULL;
    double best = 0;
    mb_status st = bytes != NULL && found != NULL ? MB_OK : MB_ERR_NOMEM;

    if (st == MB_OK && n_threads > 1)
        st = mb_pool_new(&pool, "bench", n_threads - 1, n_threads);
    // A page that was never written is not read from memory.
    if (st == MB_OK)
        memset(bytes, 1, BLOCK_BYTES);
    for (int round = 0; st == MB_OK && round < N_ROUNDS; round++) {
        struct reading r = {bytes, part, found};
        uint64_t start = mb_clock_ns();
        double rate;

        mb_pool_for(pool, n_threads, read_part, &r);
        rate =
            (double)part * n_threads / ((double)(mb_clock_ns() - start) / 1e9);
        best = rate > best ? rate : best;
    }
    mb_pool_free(pool);
    mb_free(found);
    mb_free(bytes);
    if (st != MB_OK)
        return mb_error_set(err, st, "measure the reading of memory");
    *bytes_per_s = best;
    return MB_OK;
}
