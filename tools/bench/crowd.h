/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/crowd.h - many clients of one model: what each of them waits.
 *
 * Threads: the main thread; the engine has its own. */
#ifndef BENCH_CROWD_H
#define BENCH_CROWD_H

#include "mb_engine.h"
#include "mb_model.h"

struct crowd_options {
    size_t n_clients;
    unsigned n_threads;
    mb_cache_type cache;
    uint64_t seed;
};

/* Times from the moment at which all ask. A delivery is what a client gets at
 * once: a token, or several where text becomes sure only with the last. */
struct crowd_result {
    size_t prompt;    /* tokens of each client */
    size_t n_tokens;  /* that all of them got */
    double seconds;   /* until the last one has all */
    double first_s;   /* longest wait for a first delivery */
    double pause_s;   /* longest between two deliveries of a client */
    double median_s;  /* of these pauses */
    double fastest_s; /* the first client that had all */
};

/* All clients ask at once for a text of the same length, after prompts of the
 * same length and different tokens. Errors: those of the engine; BAD_ARG (its
 * window is too small). */
MB_MUST_USE mb_status bench_crowd(const struct mb_decoder *decoder,
    const struct mb_tokenizer *tokenizer, const struct crowd_options *options,
    struct crowd_result *out, struct mb_error *err);

#endif
