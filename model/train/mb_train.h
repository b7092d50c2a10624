/* SPDX-License-Identifier: Apache-2.0
 * model/train/mb_train.h - training a transformer of the decoder's shape.
 *
 * A trainer owns the weights in F32, their gradients and the optimizer's
 * moments. A step takes windows (rows of tokens with targets), runs them
 * forward and backward on several threads, one window at a time on each, sums
 * the gradients in the order of the windows, clips, and moves the weights by
 * AdamW or Muon. It knows no files: data come as windows, weights go out by name.
 *
 * Deterministic: the same weights, windows and number of threads give the same
 * bits. Threads: one caller at a time. */
#ifndef MB_TRAIN_H
#define MB_TRAIN_H

#include "mb_model.h"

/* ---- windows ---- */

/* One training window of n rows. Rows carry positions 0, 1, 2, ... */
struct train_window {
    size_t n;
    const mb_token_id *tokens;  /* (n) */
    const mb_token_id *targets; /* (n) what follows; -1: no loss here */
    /* Rows that are landmarks close a block of MB_BLOCK_ROWS rows (the first
     * block of a window may be shorter); their target is -1. NULL: ordinary
     * causal attention. See spec of Landmark Attention (Mohtashami and Jaggi
     * 2023, section 3). */
    const bool *is_landmark;
};

/* ---- shape and weights ---- */

struct train_shape {
    size_t n_layers;
    size_t d_model;
    size_t n_heads;
    size_t n_kv_heads;
    size_t head_dim;
    size_t d_ff;
    size_t n_vocab;
    size_t n_ctx;     /* rows of a window at most */
    double rope_base; /* pairs (2i, 2i+1), as llama files have them */
    double norm_eps;
};

struct trainer;

/* A named weight matrix, row-major (n_rows, n_cols), names as in GGUF
 * ("blk.3.attn_q.weight"); norms have one row. */
struct train_weight {
    const char *name;
    size_t n_rows;
    size_t n_cols;
    float *value;  /* all three (n_rows, n_cols), the trainer's */
    float *moment; /* AdamW's m, or Muon's momentum */
    float *square; /* AdamW's v; Muon leaves it zero */
    bool is_decayed;
    bool is_frozen; /* no gradient is computed; may be set between steps */
};

typedef enum train_optimizer {
    TRAIN_ADAMW = 0,
    TRAIN_MUON = 1 /* for the matrices of the layers; AdamW for the others */
} train_optimizer;

/* What is kept of a layer's forward pass for the way back. */
typedef enum train_activations {
    TRAIN_KEEP_ALL = 0,
    TRAIN_KEEP_BYTES = 1, /* results of products, a byte a value; the rest is
                           * made again: inexact gradients */
    TRAIN_KEEP_NONE = 2   /* all is computed again: least memory */
} train_activations;

struct train_options {
    unsigned n_threads; /* 0: one for each CPU */
    uint64_t seed;      /* of the first weights */
    train_optimizer optimizer;
    double momentum; /* of Muon [0.95] */
    double beta1;    /* [0.9] zero stands for the default */
    double beta2;    /* [0.95] */
    double adam_eps; /* [1e-8] */
    double decay;    /* weight decay, used as given */
    double clip;     /* largest norm of the gradient [1.0] */
    train_activations activations;
};

/* Weights drawn from N(0, 0.02), those before a residual sum smaller by
 * sqrt(2 n_layers); norms 1. Errors: BAD_ARG (a shape that does not fit),
 * NOMEM. */
MB_MUST_USE mb_status trainer_new(const struct train_shape *shape,
    const struct train_options *options, struct trainer **out,
    struct mb_error *err);
void trainer_free(struct trainer *t);
const struct train_shape *trainer_shape(const struct trainer *t);
size_t trainer_n_weights(const struct trainer *t);
struct train_weight *trainer_weight(struct trainer *t, size_t i);
size_t trainer_n_params(const struct trainer *t);
/* Steps taken: the optimizer's bias correction needs it after a resume. */
uint64_t trainer_n_steps(const struct trainer *t);
void trainer_set_n_steps(struct trainer *t, uint64_t n);
/* Bytes that the trainer holds. */
size_t trainer_bytes(const struct trainer *t);

/* ---- steps ---- */

struct train_result {
    double loss;      /* mean nats over rows with a target */
    double grad_norm; /* before clipping */
    size_t n_targets;
    size_t n_rows;
    double flops; /* of the matrix products and attention, counted */
};

/* One step with learning rate `rate` on the mean loss of all windows' targets.
 * A loss that is not finite changes nothing. Errors: BAD_ARG (a token or a
 * window that does not fit, no targets), CORRUPT (loss or gradient is not
 * finite: the text says which weight), NOMEM. */
MB_MUST_USE mb_status trainer_step(struct trainer *t,
    const struct train_window *windows, size_t n, double rate,
    struct train_result *out, struct mb_error *err);

#endif
