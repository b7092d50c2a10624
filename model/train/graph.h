/* SPDX-License-Identifier: Apache-2.0
 * model/train/graph.h - the decoder's layers as operations of a tape.
 *
 * The same computation as model/pass_layers.c for the llama architecture with
 * tied embedding, with the memory rows of Hierarchical Memories beside the
 * feed-forward rows: h += (silu(x G^T) * (x U^T)) D, each of G, U, D (r, width).
 * Both precisions: see real.h. Private to model/train/. */
#include "tape.h"

#if !defined(MB_GRAPH_COMMON_H)
#define MB_GRAPH_COMMON_H
#include "mb_train.h"
#endif

#if (defined(TRAIN_DOUBLE) && !defined(MB_GRAPH_F64_H)) ||                     \
    (!defined(TRAIN_DOUBLE) && !defined(MB_GRAPH_F32_H))
#ifdef TRAIN_DOUBLE
#define MB_GRAPH_F64_H
#else
#define MB_GRAPH_F32_H
#endif

#define tape_var    TRAIN(tape_var)
#define tape        TRAIN(tape)
#define graph_layer TRAIN(graph_layer)
#define graph_model TRAIN(graph_model)

/* Parameters; those without a gradient are frozen. memory_* have no rows where
 * there is no memory. */
struct graph_layer {
    struct tape_var attn_norm;   /* (1, d_model) */
    struct tape_var q;           /* (n_heads * head_dim, d_model) */
    struct tape_var k;           /* (n_kv_heads * head_dim, d_model) */
    struct tape_var v;           /* same */
    struct tape_var o;           /* (d_model, n_heads * head_dim) */
    struct tape_var ffn_norm;    /* (1, d_model) */
    struct tape_var gate;        /* (d_ff, d_model) */
    struct tape_var up;          /* same */
    struct tape_var down;        /* (d_model, d_ff) */
    struct tape_var memory_gate; /* (r, d_model) */
    struct tape_var memory_up;   /* same */
    struct tape_var memory_down; /* same */
};

struct graph_model {
    const struct train_shape *shape;
    struct tape_var embedding;   /* (n_vocab, d_model), also the output */
    struct tape_var output_norm; /* (1, d_model) */
    struct graph_layer *layers;  /* (n_layers) */
    bool recompute;              /* keep no activations of a layer */
    bool keeps_bytes;            /* with recompute: but those of products */
};

/* Rows after the last norm, (n, d_model). The window must outlive the run. */
struct tape_var TRAIN(graph_hidden)(struct tape *t,
    const struct graph_model *model, const struct train_window *window);
/* The same of rows that are given (n, d_model), grouped as blocks say. */
struct tape_var TRAIN(graph_rows)(struct tape *t,
    const struct graph_model *model, struct tape_var x,
    struct tape_blocks blocks);
/* Sum of the window's losses times weight. */
struct tape_var TRAIN(graph_loss)(struct tape *t,
    const struct graph_model *model, const struct train_window *window,
    double weight);

#undef tape_var
#undef tape
#undef graph_layer
#undef graph_model
#endif
