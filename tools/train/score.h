/* SPDX-License-Identifier: Apache-2.0
 * tools/train/score.h - a model against held-out text and synthetic tasks.
 *
 * Of a task the answers alone count, all given the true tokens before them: an
 * answer is right if each of its tokens is the one that the model takes for the
 * most likely, the end of the answer included.
 * Threads: the main thread; the judge has its own. */
#ifndef TRAIN_SCORE_H
#define TRAIN_SCORE_H

#include "mb_judge.h"
#include "train.h"

/* Answers by how many tokens before them their fact begins: fewer than 64, 128,
 * 256, 384, 512, or as many or more. */
#define SCORE_N_DISTANCES 6

struct score {
    double nats; /* sum over targets */
    size_t n_windows;
    size_t n_targets;
    size_t n_right; /* targets that the model would have said */
    size_t n_answers;
    size_t n_exact; /* answers that are right from end to end */
};

struct scorer;

/* Both are borrowed; n_rows are those of the windows. Errors: NOMEM. */
MB_MUST_USE mb_status scorer_new(struct judge *judge,
    const struct windows *windows, size_t n_rows, struct scorer **out,
    struct mb_error *err);
void scorer_free(struct scorer *s);

/* At most max_windows windows of a shard, spread over it. A signal ends it
 * early, with what is known. */
MB_MUST_USE mb_status score_text(struct scorer *s, const struct shard *shard,
    bool landmarks, size_t max_windows, struct score *out,
    struct mb_error *err);
/* n_windows windows of a task, by distance. */
MB_MUST_USE mb_status score_task(struct scorer *s, window_kind kind,
    bool landmarks, size_t n_windows, struct score out[SCORE_N_DISTANCES],
    struct mb_error *err);

/* "passkey", ... */
const char *score_task_name(window_kind kind);
/* "<64", ..., ">=512" */
const char *score_distance_name(size_t i);
void score_add(struct score *to, const struct score *from);
/* Mean loss of a target in nats. */
double score_loss(const struct score *s);
/* A mean loss of a shard's targets as bits a byte of its text. */
double score_bits_per_byte(double loss, const struct shard *shard);

#endif
