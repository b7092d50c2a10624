/* SPDX-License-Identifier: Apache-2.0
 * model/train/hmt_graph.h - segments that leave and recall memories, on a tape.
 *
 * The Hierarchical Memory Transformer (He et al. 2024, section 3) over a decoder
 * of graph.h. A sample is `depth` segments of a text. Of segment n the model
 * reads the rows
 *
 *     [P_n] [the last tokens before it] [its tokens, a landmark after each 63]
 *     [P_n]
 *
 * where P_n is a mix of the memories M_0 to M_{n-1}, or M0 while there are none;
 * the last row's hidden state is M_n. What is mixed is decided by a summary S_n:
 * the hidden state of the last row of [T] [tokens] [T], by softmax of
 * (Wq S_n).(Wk M_m) / sqrt(d_key). As a hidden state is much longer than an
 * input row, P_n is brought to a root mean square that is learnt, the gain.
 * Rows before the first token are in every row's shared group of the grouped
 * softmax, the row behind the last token is one of a block without a landmark.
 *
 * The paper summarises the first half of segment n itself, and so lets its
 * tokens know what comes behind them. Here the last tokens before the segment
 * are summarised, as the paper's generation does: nothing is seen too early,
 * and a text that is read piece by piece gives the same memories as one that is
 * read at once.
 *
 * Back-propagation goes through all segments, but holds activations of one: on
 * the way there only S, P and M are kept, on the way back each segment is
 * computed again and gets the gradient of its M.
 * Both precisions: see real.h. Private to model/train/. */
#include "graph.h"

#if !defined(MB_HMT_COMMON_H)
#define MB_HMT_COMMON_H
#include "mb_hmt_train.h"

/* Added to the mean square of a memory that is brought to its length. */
#define HMT_EPS 1e-12
#endif

#if (defined(TRAIN_DOUBLE) && !defined(MB_HMT_F64_H)) ||                       \
    (!defined(TRAIN_DOUBLE) && !defined(MB_HMT_F32_H))
#ifdef TRAIN_DOUBLE
#define MB_HMT_F64_H
#else
#define MB_HMT_F32_H
#endif

#define tape_var    TRAIN(tape_var)
#define tape        TRAIN(tape)
#define graph_model TRAIN(graph_model)
#define hmt_model   TRAIN(hmt_model)

/* Parameters; those without a gradient are frozen. */
struct hmt_model {
    const struct graph_model *graph;
    const struct hmt_shape *shape;
    struct tape_var gain;    /* (1, 1) */
    struct tape_var summary; /* (1, d_model) T */
    struct tape_var first;   /* (1, d_model) M0 */
    struct tape_var query;   /* (d_key, d_model) Wq */
    struct tape_var key;     /* (d_key, d_model) Wk */
};

/* losses[n]: sum over the targets of segment n, in nats. With is_training the
 * gradient of their sum times weight is added to that of all parameters. False:
 * memory was short. *flops grows by what was done. */
bool TRAIN(hmt_run)(struct tape *t, const struct hmt_model *model,
    const struct hmt_sample *sample, hmt_mode mode, double weight,
    bool is_training, double *losses, double *flops);

#undef tape_var
#undef tape
#undef graph_model
#undef hmt_model
#endif
