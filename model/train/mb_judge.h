/* SPDX-License-Identifier: Apache-2.0
 * model/train/mb_judge.h - what a trained model makes of windows.
 *
 * The trainer's own forward pass without its gradients and moments: losses, and
 * whether the model would have said each target. So plain windows and those
 * with landmarks are judged by the code that trained them.
 * Threads: one caller at a time; a judge brings a team of its own. */
#ifndef MB_JUDGE_H
#define MB_JUDGE_H

#include "mb_export.h"

struct judge;

/* Weights under the trainer's names, borrowed: their values may change between
 * calls. n_threads 0: one for each CPU. Errors: NOT_FOUND (a weight), MISMATCH
 * (its shape), NOMEM, INTERNAL (threads). */
MB_MUST_USE mb_status judge_new(const struct train_shape *shape,
    const struct export_weight *weights, size_t n_weights, unsigned n_threads,
    struct judge **out, struct mb_error *err);
void judge_free(struct judge *j);

/* nll[i] (rows of window i): each row's loss in nats, 0 where there is no
 * target. best[i] (the same): the token that the model takes for the most
 * likely; best may be NULL. Errors: BAD_ARG (a token out of range), NOMEM. */
MB_MUST_USE mb_status judge_windows(struct judge *j,
    const struct train_window *windows, size_t n, float *const *nll,
    mb_token_id *const *best, struct mb_error *err);

#endif
