/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/bandwidth.c - how fast this machine reads memory.
 *
 * Each thread sums up a part of its own, in eight sums that do not wait for one
 * another: a decoder reads weights in the same manner, in order and once.
 * Threads: a pool of the call's own. */
#include "mb_base.h"
#include "model.h"

#define BLOCK_BYTES ((size_t)512 << 20)
#define N_ROUNDS    5
#define N_SUMS      8u
#define STEP_BYTES  (N_SUMS * sizeof(uint64_t))

struct reading {
    const uint64_t *words;
    size_t n_words; /* of one thread */
    uint64_t *sums; /* one a thread: the reading has a result */
};

static void
read_part(void *arg, size_t i)
{
    const struct reading *r = arg;
    const uint64_t *w = r->words + i * r->n_words;
    uint64_t sum[N_SUMS] = {0};

    for (size_t j = 0; j < r->n_words; j += N_SUMS) {
        for (size_t k = 0; k < N_SUMS; k++)
            sum[k] += w[j + k];
    }
    for (size_t k = 0; k < N_SUMS; k++)
        r->sums[i] += sum[k];
}

mb_status
bench_bandwidth(unsigned n_threads, double *bytes_per_s, struct mb_error *err)
{
    size_t part = BLOCK_BYTES / n_threads / STEP_BYTES * STEP_BYTES;
    uint64_t *words = mb_alloc(BLOCK_BYTES);
    uint64_t *sums = mb_calloc(n_threads, sizeof *sums);
    struct mb_pool *pool = NULL;
    double best = 0;
    mb_status st = words != NULL && sums != NULL ? MB_OK : MB_ERR_NOMEM;

    if (st == MB_OK && n_threads > 1)
        st = mb_pool_new(&pool, "bench", n_threads - 1, n_threads);
    for (size_t i = 0; st == MB_OK && i < BLOCK_BYTES / sizeof *words; i++)
        words[i] = i; // a page that was never written is not read from memory
    for (int round = 0; st == MB_OK && round < N_ROUNDS; round++) {
        struct reading r = {words, part / sizeof *words, sums};
        uint64_t start = mb_clock_ns();
        double rate;

        mb_pool_for(pool, n_threads, read_part, &r);
        rate =
            (double)part * n_threads / ((double)(mb_clock_ns() - start) / 1e9);
        best = rate > best ? rate : best;
    }
    mb_pool_free(pool);
    mb_free(sums);
    mb_free(words);
    if (st != MB_OK)
        return mb_error_set(err, st, "measure the reading of memory");
    *bytes_per_s = best;
    return MB_OK;
}
