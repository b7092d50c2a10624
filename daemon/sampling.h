/* SPDX-License-Identifier: Apache-2.0
 * daemon/sampling.h - arguments and replies that generate and context.generate
 * share.
 * Threads: the call's. */
#ifndef DAEMON_SAMPLING_H
#define DAEMON_SAMPLING_H

#include "call.h"
#include "mb_engine.h"

/* temperature, top_k, ... , seed (a different one each time if it is absent).
 * Errors: BAD_ARG. */
MB_MUST_USE mb_status call_read_sampling(
    struct call *c, struct mb_sampling *out);
/* stop: views of the message. Errors: BAD_ARG, TOO_LARGE. */
MB_MUST_USE mb_status call_read_stops(
    struct call *c, struct mb_slice stops[MB_ENGINE_MAX_STOPS], size_t *n);
/* "ids" and "logprobs". */
void call_write_tokens(struct mb_writer *w, const mb_token_id *ids,
    const float *logprobs, size_t n);

#endif
