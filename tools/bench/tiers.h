/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/tiers.h - cold fetches from storage of several speeds.
 *
 * The tiers are those by which "Pretraining with hierarchical memories"
 * (Pouransari et al. 2025, figure 5) compares a tree of blocks with a flat
 * bank: the first level at 4 GB/s, the second at 2, deeper ones at 0.5. They are
 * simulated: bytes are read from a file that the system has in memory, and a
 * read of n bytes is held back until n / rate is over.
 * Threads: the main thread. */
#ifndef BENCH_TIERS_H
#define BENCH_TIERS_H

#include "mb_base.h"

#define TIERS_MAX 8u

/* Bytes of a path's blocks by level, top first. */
struct tiers {
    size_t n;
    size_t bytes[TIERS_MAX];
};

typedef enum tiers_case {
    TIERS_COLD = 0, /* each level from its own tier */
    TIERS_HELD = 1, /* the first level is in memory, the rest on the slowest */
    TIERS_FLAT = 2, /* as many bytes in one block, from the slowest */
    TIERS_N = 3
} tiers_case;

/* Fetch n_calls paths of each kind; ns[c] (n_calls) gets the time of each, *plain_ns the
 * median without holding back. folder: for a temporary file. Errors: IO, NOMEM. */
MB_MUST_USE mb_status tiers_measure(const struct tiers *t, const char *folder,
    size_t n_calls, uint64_t *const ns[TIERS_N], uint64_t *plain_ns,
    struct mb_error *err);

#endif
