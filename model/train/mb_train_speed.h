/* SPDX-License-Identifier: Apache-2.0
 * model/train/mb_train_speed.h - what plain sgemm reaches, to compare with. */
#ifndef MB_TRAIN_SPEED_H
#define MB_TRAIN_SPEED_H

#include "mb_train.h"

/* Floating-point operations a second (a multiplication and an addition are two)
 * of BLAS alone at the shapes that a training step has: every layer's products
 * and that of the vocabulary, forward, by input and by weight, over windows of
 * n_rows rows, on n_threads threads (0: one for each CPU) for about `seconds`.
 * Errors: NOMEM. Threads: one caller at a time. */
MB_MUST_USE mb_status train_sgemm_rate(const struct train_shape *shape,
    size_t n_rows, unsigned n_threads, double seconds, double *out,
    struct mb_error *err);

#endif
