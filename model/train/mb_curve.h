/* SPDX-License-Identifier: Apache-2.0
 * model/train/mb_curve.h - the losses of a run, as CSV and as a picture.
 *
 * Points of several sets: "train", and each held-out text by its name. The CSV
 * grows by a line a point, in the order of their making:
 *
 *     step,tokens,seconds,set,loss,bits_per_byte,rate,grad_norm
 *
 * A resumed run goes back to its checkpoint: points made after it are dropped,
 * as they are about to be made again.
 * Threads: a curve belongs to one. */
#ifndef MB_CURVE_H
#define MB_CURVE_H

#include "mb_base.h"

#define CURVE_TRAIN   "train"
#define CURVE_MAX_SET 64

struct curve_point {
    uint64_t step;
    uint64_t tokens;         /* rows that the steps so far have read */
    double seconds;          /* spent so far */
    char set[CURVE_MAX_SET]; /* without commas and line ends */
    double loss;             /* nats a token */
    double bits_per_byte;    /* NAN: not known */
    double rate;             /* learning rate; NAN: none */
    double grad_norm;        /* NAN: none */
};

struct curve;

/* The CSV at path: made anew, or with resume read and cut behind step
 * `last_step` (a line that is not whole, at its end, is dropped).
 * Errors: IO, NO_SPACE, READ_ONLY, CORRUPT (line number), NOMEM. */
MB_MUST_USE mb_status curve_open(const char *path, bool resume,
    uint64_t last_step, struct curve **out, struct mb_error *err);
void curve_close(struct curve *c);
/* Keep a point and append its line. Errors: BAD_ARG (name), IO, NO_SPACE,
 * NOMEM. */
MB_MUST_USE mb_status curve_add(
    struct curve *c, const struct curve_point *point, struct mb_error *err);
size_t curve_n_points(const struct curve *c);
const struct curve_point *curve_at(const struct curve *c, size_t i);
/* The last point of a set, or NULL. */
const struct curve_point *curve_last(const struct curve *c, const char *set);
/* Training loss of late: mean that forgets, of about the last 50 steps; NAN
 * before the first. */
double curve_smooth(const struct curve *c);
/* A picture of all losses over tokens. Errors: IO, NO_SPACE, NOMEM. */
MB_MUST_USE mb_status curve_svg(const struct curve *c, const char *path,
    const char *title, struct mb_error *err);

#endif
