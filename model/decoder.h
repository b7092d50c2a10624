/* SPDX-License-Identifier: Apache-2.0
 * model/decoder.h - a model's shape and tensors, as the passes see them.
 *
 * Private to this folder. Immutable after mb_decoder_open. */
#ifndef MB_MODEL_DECODER_H
#define MB_MODEL_DECODER_H

#include "attention.h"
#include "compute.h"
#include "mb_decoder.h"
#include "rope.h"

/* Largest shapes that are read: room for the next size of small model, and a
 * bound for all products of them. */
#define DECODER_MAX_LAYERS  1024u
#define DECODER_MAX_WIDTH   65536u
#define DECODER_MAX_HEADS   512u
#define DECODER_MAX_HEAD    ATTENTION_MAX_HEAD
#define DECODER_MAX_FF      1048576u
#define DECODER_MAX_CONTEXT 16777216u

/* y = W x + bias; bias (n_rows) or NULL. */
struct linear {
    struct tensor W;
    const float *bias;
};

/* One layer. Norms are float arrays of the decoder's; q_norm and k_norm
 * (head_dim) are NULL but in qwen3. */
struct layer {
    const float *attn_norm; /* (d_model) */
    struct linear q;        /* (n_heads * head_dim, d_model) */
    struct linear k;        /* (n_kv_heads * head_dim, d_model) */
    struct linear v;        /* same */
    struct linear o;        /* (d_model, n_heads * head_dim) */
    const float *q_norm;
    const float *k_norm;
    const float *ffn_norm; /* (d_model) */
    struct linear gate;    /* (d_ff, d_model) */
    struct linear up;      /* same */
    struct linear down;    /* (d_model, d_ff) */
};

struct mb_decoder {
    struct mb_decoder_info info;
    const struct compute *compute;
    float norm_eps;
    float attn_scale; /* 1 / sqrt(head_dim) */
    struct rope rope;
    struct tensor embedding;  /* (n_vocab, d_model) */
    struct tensor output;     /* same; the embedding where they are tied */
    const float *output_norm; /* (d_model) */
    struct layer *layers;     /* (n_layers) */
    struct mb_arena *arena;   /* norms, biases, layers */
};

#endif
