/* SPDX-License-Identifier: Apache-2.0
 * model/train/weights.c - names, sizes and places of a model's weights.
 * Threads: any. */
#include "weights.h"

#include <stdio.h>

#define N_OUTER 2 /* embedding and last norm */

/* Of a layer, in this order. */
enum part {
    ATTN_NORM,
    ATTN_Q,
    ATTN_K,
    ATTN_V,
    ATTN_OUTPUT,
    FFN_NORM,
    FFN_GATE,
    FFN_UP,
    FFN_DOWN,
    N_PARTS
};

static const char *const part_names[N_PARTS] = {"attn_norm", "attn_q", "attn_k",
    "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"};

size_t
weights_count(const struct train_shape *shape)
{
    return N_OUTER + shape->n_layers * N_PARTS;
}

static void
part_size(const struct train_shape *s, size_t part, size_t *rows, size_t *cols)
{
    *cols = s->d_model;
    switch (part) {
    case ATTN_NORM:
    case FFN_NORM:
        *rows = 1;
        break;
    case ATTN_Q:
        *rows = s->n_heads * s->head_dim;
        break;
    case ATTN_K:
    case ATTN_V:
        *rows = s->n_kv_heads * s->head_dim;
        break;
    case ATTN_OUTPUT:
        *rows = s->d_model;
        *cols = s->n_heads * s->head_dim;
        break;
    case FFN_DOWN:
        *rows = s->d_model;
        *cols = s->d_ff;
        break;
    default: // FFN_GATE, FFN_UP
        *rows = s->d_ff;
        break;
    }
}

void
weights_at(const struct train_shape *shape, size_t i, struct weight_shape *out)
{
    MB_ASSERT(i < weights_count(shape));
    if (i == 0) {
        *out = (struct weight_shape){
            "token_embd.weight", shape->n_vocab, shape->d_model};
        return;
    }
    if (i == 1) {
        *out = (struct weight_shape){"output_norm.weight", 1, shape->d_model};
        return;
    }
    size_t layer = (i - N_OUTER) / N_PARTS;
    size_t part = (i - N_OUTER) % N_PARTS;
    *out = (struct weight_shape){.n_rows = 0};
    (void)snprintf(out->name, sizeof out->name, "blk.%zu.%s.weight", layer,
        part_names[part]);
    part_size(shape, part, &out->n_rows, &out->n_cols);
}

mb_status
weights_check_tokens(const struct train_shape *shape,
    const struct train_window *w, uint64_t number, struct mb_error *err)
{
    for (size_t r = 0; r < w->n; r++) {
        if (w->tokens[r] < 0 || (size_t)w->tokens[r] >= shape->n_vocab ||
            w->targets[r] < -1 ||
            (w->targets[r] >= 0 && (size_t)w->targets[r] >= shape->n_vocab))
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "train: window %llu row %zu has token %d and target %d, the "
                "vocabulary has %zu",
                (unsigned long long)number, r, (int)w->tokens[r],
                (int)w->targets[r], shape->n_vocab);
    }
    return MB_OK;
}

struct tape_var_f32 *
weights_slot(struct graph_model_f32 *model, size_t i)
{
    MB_ASSERT(i < weights_count(model->shape));
    if (i == 0)
        return &model->embedding;
    if (i == 1)
        return &model->output_norm;
    struct graph_layer_f32 *l = &model->layers[(i - N_OUTER) / N_PARTS];
    struct tape_var_f32 *const slots[N_PARTS] = {&l->attn_norm, &l->q, &l->k,
        &l->v, &l->o, &l->ffn_norm, &l->gate, &l->up, &l->down};
    return slots[(i - N_OUTER) % N_PARTS];
}
