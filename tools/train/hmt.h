/* SPDX-License-Identifier: Apache-2.0
 * tools/train/hmt.h - the parts of `membank-train hmt`.
 *
 *   hmt.c       the command: options, steps, checkpoints, the result
 *   hmt_data.c  texts: samples to learn from, held-out ones to judge by
 *
 * Private to membank-train. Threads: the main thread. */
#ifndef TRAIN_HMT_H
#define TRAIN_HMT_H

#include "mb_hmt_train.h"
#include "mb_shard.h"
#include "train.h"

#define HMT_MAX_SHARDS 32

struct hmt_data {
    const struct hmt_shape *shape;
    uint64_t seed;
    struct shard *sources[HMT_MAX_SHARDS];
    size_t n_sources;
    struct shard *heldout; /* NULL: none */
    struct mb_arena *arena;
    struct hmt_sample *batch; /* (n_batch) room */
    size_t n_batch;
    struct hmt_sample *judged; /* (n_judged) held-out windows */
    size_t n_judged;
};

/* What a held-out text says: nats a token, of the first segments and of those
 * behind them, which may remember. */
struct hmt_verdict {
    double first;
    double later;
};

/* Open the shards and make room. Errors: those of shard_open; MISMATCH (tokens
 * of another tokenizer), TOO_LARGE (more shards), BAD_ARG (a shard is too
 * short), NOMEM. */
MB_MUST_USE mb_status hmt_data_open(struct hmt_data *d,
    const struct mb_tokenizer *tok, const char *const *paths, size_t n_paths,
    const char *heldout, struct mb_error *err);
void hmt_data_close(struct hmt_data *d);
/* Room for batches of n samples of at most `depth` segments, and n_judged
 * windows of the held-out text, evenly spread, of `judged_depth`. */
MB_MUST_USE mb_status hmt_data_room(struct hmt_data *d, size_t n, size_t depth,
    size_t n_judged, size_t judged_depth, struct mb_error *err);
/* The samples of a step, into batch: a function of seed and step alone. As long
 * as documents suffice, a sample lies within one. */
void hmt_data_batch(struct hmt_data *d, uint64_t step, size_t depth);
/* Judge by the held-out windows. Errors: those of the trainer. */
MB_MUST_USE mb_status hmt_data_judge(const struct hmt_data *d,
    struct hmt_trainer *t, hmt_mode mode, struct hmt_verdict *out,
    struct mb_error *err);

#endif
