/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/fetch.h - what memory blocks cost where they are used.
 *
 * Threads: the main thread; passes and a store have their own. */
#ifndef BENCH_FETCH_H
#define BENCH_FETCH_H

#include "mb_base.h"
#include "mb_cli.h"

/* Options of the program's table that are read here: model, cache, threads,
 * calls, seed, json. Prints warm fetches from a store's map, cold ones by tiers
 * of storage, decoding and prefill with blocks and without. Errors: those of
 * the model and the store, BAD_ARG. */
MB_MUST_USE mb_status bench_fetch(
    const struct mb_cli *cli, struct mb_error *err);

#endif
