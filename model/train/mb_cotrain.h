/* SPDX-License-Identifier: Apache-2.0
 * model/train/mb_cotrain.h - training a model and its memory blocks together.
 *
 * For experiments that compare a frozen anchor (mb_bank_train.h, what the
 * product does) with one that learns beside its blocks ("Pretraining with
 * hierarchical memories", Pouransari et al. 2025, rows A2 of table 1), and with
 * a dense model that has a block of a path's size always attached. Everything
 * is held in memory: weights, blocks, moments of both.
 *
 * The anchor moves by AdamW on the mean loss of a step, its gradient clipped;
 * blocks by lazy Adam on the mean over their own targets, as mb_bank_train.h
 * has it.
 *
 *     mb_cotrainer_new -> mb_cotrainer_step ... -> mb_cotrainer_weights,
 *     mb_cotrainer_record -> mb_cotrainer_free
 *
 * Deterministic for a number of threads. Threads: one caller at a time. */
#ifndef MB_COTRAIN_H
#define MB_COTRAIN_H

#include "mb_bank_train.h"
#include "mb_export.h"

struct mb_cotrainer;

/* Zero stands for the default in [ ]. */
struct mb_cotrain_options {
    unsigned n_threads;  /* [one for each CPU] */
    uint64_t seed;       /* of fresh blocks */
    double beta1;        /* [0.9] of both */
    double beta2;        /* [0.95] */
    double adam_eps;     /* [1e-8] */
    double decay;        /* of the anchor, used as given */
    double memory_decay; /* of blocks, where a step touches them [1e-3] */
    double clip;         /* largest norm of the anchor's gradient [1.0] */
};

/* A window and the nodes whose blocks are attached to it, as
 * mb_bank_item.path; MB_BANK_NONE in front: none, MB_BANK_GENERIC: that block
 * alone. */
struct mb_cotrain_window {
    struct train_window rows; /* plain: without landmarks */
    uint64_t path[MB_BANK_MAX_LEVELS];
};

/* From the weights of gguf, which may be closed afterwards; all blocks are
 * fresh. Errors: as mb_bank_trainer_new. */
MB_MUST_USE mb_status mb_cotrainer_new(const struct mb_gguf *gguf,
    const struct mb_bank_shape *shape, const struct mb_cotrain_options *options,
    struct mb_cotrainer **out, struct mb_error *err);
void mb_cotrainer_free(struct mb_cotrainer *t);

/* One step with learning rate `rate` for the anchor (0: it is left as it is)
 * and memory_rate for blocks. Of out, grad_norm is the anchor's. Errors:
 * BAD_ARG (no targets, a token or a path that does not fit), CORRUPT (a loss or
 * gradient that is not finite; nothing is changed then), NOMEM. */
MB_MUST_USE mb_status mb_cotrainer_step(struct mb_cotrainer *t,
    const struct mb_cotrain_window *windows, size_t n, double rate,
    double memory_rate, struct train_result *out, struct mb_error *err);

/* All weights of the anchor; the trainer's, their values change with steps. */
const struct export_weight *mb_cotrainer_weights(
    const struct mb_cotrainer *t, size_t *n);
const struct train_shape *mb_cotrainer_shape(const struct mb_cotrainer *t);
/* A node's block as an F32 record, until the next step. Errors: NOT_FOUND (no
 * window had it). */
MB_MUST_USE mb_status mb_cotrainer_record(struct mb_cotrainer *t, uint64_t node,
    struct mb_slice *out, struct mb_error *err);

#endif
