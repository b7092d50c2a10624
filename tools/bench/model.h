/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/model.h - a model's speed, without a daemon.
 *
 * Threads: the main thread; passes and the measure of memory have their own. */
#ifndef BENCH_MODEL_H
#define BENCH_MODEL_H

#include "mb_base.h"
#include "mb_cli.h"
#include "mb_decoder.h"

/* Measure --model at `what`, "generate" or "embed", and print the result.
 * Errors: those of the model, BAD_ARG. */
MB_MUST_USE mb_status bench_model(
    const struct mb_cli *cli, const char *what, struct mb_error *err);

/* What --cache says. Errors: BAD_ARG. */
MB_MUST_USE mb_status bench_cache_type(
    const struct mb_cli *cli, mb_cache_type *out, struct mb_error *err);
/* Bytes a second that n threads read together from memory, from a block that
 * no cache holds; the best of several rounds. */
MB_MUST_USE mb_status bench_bandwidth(
    unsigned n_threads, double *bytes_per_s, struct mb_error *err);

#endif
