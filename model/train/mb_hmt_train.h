/* SPDX-License-Identifier: Apache-2.0
 * model/train/mb_hmt_train.h - training what the Hierarchical Memory Transformer
 * adds to a model.
 *
 * A sample is a text cut into segments: each leaves a memory, and recalls from
 * those before it (hmt_graph.h tells how). What is trained is the prompt of
 * summaries T, the first memory M0, the projections Wq and Wk of recall, and
 * the gain of what is recalled; the model itself stays as it is, or learns
 * along. The result is a companion file (mb_companion.h).
 *
 * Deterministic: the same weights, samples and number of threads give the same
 * bits. Threads: one caller at a time; the trainer brings a team of its own. */
#ifndef MB_HMT_TRAIN_H
#define MB_HMT_TRAIN_H

#include "mb_companion.h"
#include "mb_import.h"

#define HMT_MAX_DEPTH 64

/* Where P_n, that stands on both sides of a segment, comes from. */
typedef enum hmt_mode {
    HMT_RECALL = 0, /* from all memories, by the summary of what came before */
    HMT_DIRECT,     /* the last memory: a recurrence, the first stage */
    HMT_SENSORY,    /* there is none, but the last tokens are repeated */
    HMT_NOTHING     /* segments know nothing of each other */
} hmt_mode;

struct hmt_shape {
    size_t n_segment;     /* tokens of a segment */
    size_t n_summary;     /* that are summarised: the last before a segment */
    size_t n_sensory;     /* that are repeated in front of it */
    size_t d_key;         /* width of recall's queries and keys */
    mb_token_id landmark; /* its row stands behind each 63 tokens */
    mb_token_id eos;      /* nothing is predicted behind it; -1: no such */
};

/* `depth` segments of a text and the token behind them. */
struct hmt_sample {
    const mb_token_id *tokens; /* (depth * n_segment + 1) */
    size_t depth;
};

struct hmt_train_options {
    unsigned n_threads; /* 0: one for each CPU */
    uint64_t seed;
    double beta1;         /* [0.9] zero stands for the default */
    double beta2;         /* [0.95] */
    double adam_eps;      /* [1e-8] */
    double clip;          /* largest norm of the gradient [1.0] */
    bool trains_backbone; /* the model's own weights move, too */
    double backbone_rate; /* their part of the rate [0.1] */
    bool recompute;       /* keep no activations of a layer */
};

struct hmt_trainer;

/* The model is copied if it is trained, else borrowed. Errors: BAD_ARG (sizes
 * that do not fit), NOMEM. */
MB_MUST_USE mb_status hmt_trainer_new(const struct imported *model,
    const struct hmt_shape *shape, const struct hmt_train_options *options,
    struct hmt_trainer **out, struct mb_error *err);
void hmt_trainer_free(struct hmt_trainer *t);

/* Weights that are trained: "hmt.gain", "hmt.summary", "hmt.first",
 * "hmt.query.weight", "hmt.key.weight", then the model's if these are. */
size_t hmt_trainer_n_weights(const struct hmt_trainer *t);
struct train_weight *hmt_trainer_weight(struct hmt_trainer *t, size_t i);
uint64_t hmt_trainer_n_steps(const struct hmt_trainer *t);
void hmt_trainer_set_n_steps(struct hmt_trainer *t, uint64_t n);
size_t hmt_trainer_bytes(const struct hmt_trainer *t);

/* One step on the mean loss of all segments' targets. A loss that is not finite
 * changes nothing. Errors: BAD_ARG (a token, a depth, no targets), CORRUPT (loss or
 * gradient is not finite), NOMEM. */
MB_MUST_USE mb_status hmt_trainer_step(struct hmt_trainer *t,
    const struct hmt_sample *samples, size_t n, hmt_mode mode, double rate,
    struct train_result *out, struct mb_error *err);
/* Losses alone: losses[i * HMT_MAX_DEPTH + j] is the sum over the targets of
 * segment j of sample i, in nats. Errors: as of a step. */
MB_MUST_USE mb_status hmt_trainer_judge(struct hmt_trainer *t,
    const struct hmt_sample *samples, size_t n, hmt_mode mode, double *losses,
    struct mb_error *err);
/* Targets of segment j of a sample. */
size_t hmt_n_targets(
    const struct hmt_shape *shape, const struct hmt_sample *sample, size_t j);

/* What was learnt, as views; model and n_memories are the caller's to set. */
void hmt_trainer_companion(const struct hmt_trainer *t, struct companion *out);

#endif
