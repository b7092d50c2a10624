/* SPDX-License-Identifier: Apache-2.0
 * model/train/weights.h - which weights a shape has, in one fixed order.
 *
 * The embedding, the last norm, then those of each layer in the order of struct
 * graph_layer. Files, optimizers and graphs walk them by number.
 *
 * Private to this folder. Threads: any. */
#ifndef MB_TRAIN_WEIGHTS_H
#define MB_TRAIN_WEIGHTS_H

#include "graph.h"
#include "mb_train.h"

#define WEIGHTS_MAX_NAME 48

struct weight_shape {
    char name[WEIGHTS_MAX_NAME]; /* as in GGUF: "blk.3.attn_q.weight" */
    size_t n_rows;               /* 1: the scales of a norm */
    size_t n_cols;
};

size_t weights_count(const struct train_shape *shape);
/* Weight i, below the count. */
void weights_at(
    const struct train_shape *shape, size_t i, struct weight_shape *out);
/* Are all tokens and targets of the vocabulary? Else BAD_ARG; number is the
 * window's in the message. */
MB_MUST_USE mb_status weights_check_tokens(const struct train_shape *shape,
    const struct train_window *window, uint64_t number, struct mb_error *err);
/* Where a graph has weight i; its layers must have room. */
struct tape_var_f32 *weights_slot(struct graph_model_f32 *model, size_t i);

#endif
