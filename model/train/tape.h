/* SPDX-License-Identifier: Apache-2.0
 * model/train/tape.h - reverse-mode differentiation of a transformer.
 *
 * A tape records operations as they are computed; tape_backward walks it in
 * reverse and adds to the gradients. Variables are matrices, row-major. Their
 * memory is the tape's and lives until it is reset, but for parameters, which
 * the caller owns. A variable whose grad is NULL takes part without a
 * gradient: frozen parameters cost nothing on the way back.
 *
 * Errors: memory may run out; then the tape is `failed`, operations return
 * empty variables and do nothing, and whoever runs the tape looks once, at the
 * end. Shapes that do not fit are a bug and end the process.
 *
 * Threads: a tape belongs to one thread; parameters' values may be shared.
 *
 * Both precisions: see real.h. */
#include "real.h"

#if !defined(MB_TAPE_COMMON_H)
#define MB_TAPE_COMMON_H

#include "mb_model.h"

/* Memory in chunks that grow and are kept; marks nest. */
struct tape_chunk;

struct tape_mark {
    size_t chunk;
    size_t used;
    size_t n_nodes;
};

/* How rows of a window are grouped in attention. Block b is rows [start[b],
 * start[b + 1]); its last row is a landmark, but for the last block, which may
 * be open. Rows before start[0] are of no block, and seen by all behind them.
 * n_blocks 0: plain causal attention. */
struct tape_blocks {
    const size_t *start; /* (n_blocks + 1) */
    size_t n_blocks;
    bool is_last_closed;
};

/* Heads of attention: queries (n, n_heads * dim), keys and values (n, n_kv *
 * dim). */
struct tape_heads {
    size_t n_heads;
    size_t n_kv_heads;
    size_t dim;
};

#endif

#if (defined(TRAIN_DOUBLE) && !defined(MB_TAPE_F64_H)) ||                      \
    (!defined(TRAIN_DOUBLE) && !defined(MB_TAPE_F32_H))
#ifdef TRAIN_DOUBLE
#define MB_TAPE_F64_H
#else
#define MB_TAPE_F32_H
#endif

#define tape     TRAIN(tape)
#define tape_var TRAIN(tape_var)
#define tape_fn  TRAIN(tape_fn)

struct tape;

struct tape_var {
    size_t rows;
    size_t cols;
    real *value; /* (rows, cols) */
    real *grad;  /* same, or NULL */
};

/* max_bytes bounds the tape's memory. NULL when memory is short. */
struct tape *TRAIN(tape_new)(size_t max_bytes);
void TRAIN(tape_free)(struct tape *t);
/* Forget all operations and variables, keep the memory. is_training false: no
 * operation is recorded and no gradient made. */
void TRAIN(tape_reset)(struct tape *t, bool is_training);
bool TRAIN(tape_failed)(const struct tape *t);
size_t TRAIN(tape_bytes)(const struct tape *t);
/* Multiplications and additions of matrices and attention since the reset,
 * forward and backward. */
double TRAIN(tape_flops)(const struct tape *t);

/* A matrix with undefined values; with a gradient of zeros if wanted and the
 * tape trains. */
struct tape_var TRAIN(tape_make)(
    struct tape *t, size_t rows, size_t cols, bool wants_grad);
/* Bytes that live as long as variables. NULL when failed. */
void *TRAIN(tape_alloc)(struct tape *t, size_t bytes);

/* Rows of `table` by number, (n, cols). index must outlive the tape's run. */
struct tape_var TRAIN(tape_gather)(
    struct tape *t, struct tape_var table, const int32_t *index, size_t n);
/* The opposite: to (rows, cols) with row index[i] += row i of x. */
struct tape_var TRAIN(tape_scatter)(
    struct tape *t, struct tape_var x, const int32_t *index, size_t rows);
/* x W^T: (n, k) by (m, k) gives (n, m). */
struct tape_var TRAIN(tape_linear)(
    struct tape *t, struct tape_var x, struct tape_var W);
/* x W: (n, k) by (k, m) gives (n, m): the way back out of memory rows, which
 * are kept (rows, width) like the way in. */
struct tape_var TRAIN(tape_product)(
    struct tape *t, struct tape_var x, struct tape_var W);
/* Each row over its root mean square, times w (1, cols). */
struct tape_var TRAIN(tape_rms_norm)(
    struct tape *t, struct tape_var x, struct tape_var w, double eps);
/* Turn pairs (2i, 2i+1) of each head of dim values by position * base^(-2i/dim);
 * row r has position first + r. In place: x is the result. */
struct tape_var TRAIN(tape_rope)(
    struct tape *t, struct tape_var x, size_t dim, size_t first, double base);
/* Causal attention, or by groups over landmarks: "Landmark Attention"
 * (Mohtashami and Jaggi 2023), equations 2 to 4. (n, n_heads * dim). */
struct tape_var TRAIN(tape_attention)(struct tape *t, struct tape_var q,
    struct tape_var k, struct tape_var v, struct tape_heads heads,
    struct tape_blocks blocks);
/* silu(gate) * up. */
struct tape_var TRAIN(tape_swiglu)(
    struct tape *t, struct tape_var gate, struct tape_var up);
struct tape_var TRAIN(tape_add)(
    struct tape *t, struct tape_var a, struct tape_var b);
struct tape_var TRAIN(tape_scale)(
    struct tape *t, struct tape_var x, double factor);
/* Sum of all values, (1, 1). */
struct tape_var TRAIN(tape_sum)(struct tape *t, struct tape_var x);

/* Cross-entropy of softmax(x W^T) against targets (n; -1: none), in chunks of
 * rows: (n, n_vocab) logits never exist whole. Gives the sum over rows times
 * `weight`, (1, 1). The gradient of x and W is made at once, as if the result's
 * gradient were 1: so it must be the tape's last result, or be added to it by
 * tape_add alone. nll (n) gets each row's loss unless NULL. */
struct tape_var TRAIN(tape_cross_entropy)(struct tape *t, struct tape_var x,
    struct tape_var W, const int32_t *targets, double weight, real *nll);
/* The same for distributions: row r has the probabilities p[r * k + i] at
 * tokens index[r * k + i], i < k; the rest of the mass counts nothing. Sum over
 * rows of sum p (log p - log q), times weight. Same rule for the gradient. */
struct tape_var TRAIN(tape_kl)(struct tape *t, struct tape_var x,
    struct tape_var W, const int32_t *index, const real *p, size_t k,
    double weight);

/* The token to which softmax(x W^T) gives most, for each row: best (n); the
 * first of those that tie. Nothing is recorded. */
void TRAIN(tape_best)(
    struct tape *t, struct tape_var x, struct tape_var W, int32_t *best);

/* fn(t, arg, x) without keeping what it computes on the way: it runs again on
 * the way back. Its result must have x's shape. arg must outlive the run. fn
 * must do the same operations each time. is_kept: the results of its products
 * and attention are kept as a byte a value, with each row's exact ends (like
 * Mesa, Pan et al. 2022), and not computed again: a quarter of their memory and
 * nearly no time, for gradients that are right to a few thousandths. */
typedef struct tape_var (*tape_fn)(
    struct tape *t, void *arg, struct tape_var x);
struct tape_var TRAIN(tape_recompute)(
    struct tape *t, tape_fn fn, void *arg, struct tape_var x, bool is_kept);

/* Gradient of `loss` (1, 1) with respect to everything it was made from, added
 * to what the gradients hold. */
void TRAIN(tape_backward)(struct tape *t, struct tape_var loss);
/* The same from whatever gradients the caller has written into variables: of
 * several results, or of a part of one. */
void TRAIN(tape_backward_from)(struct tape *t);

#undef tape
#undef tape_var
#undef tape_fn
#endif
