/* SPDX-License-Identifier: Apache-2.0
 * model/pass.h - the room that a pass works in, and its rows.
 *
 * Rows of prefill come first, [0, n_many), then those of decoding,
 * [n_many, n_rows): each matrix is applied to both, to the former by mul_many,
 * to the latter by mul_few. Within a kind rows lie in the order of the items.
 * Private to this folder. */
#ifndef MB_MODEL_PASS_H
#define MB_MODEL_PASS_H

#include "attention.h"
#include "cache.h"
#include "decoder.h"
#include "pass_bank.h"
#include "pass_context.h"
#include "team.h"

/* Decoding attends in pieces of this many blocks, so that one request with few
 * heads keeps all threads busy. It is fixed: pieces must not depend on the
 * number of threads, or sums would. */
#define PASS_SPLIT_BLOCKS 8u

/* Rows of logits that are computed at a time. */
#define PASS_OUT_ROWS 64u

/* One row of the pass. */
struct pass_row {
    struct mb_sequence *seq;
    size_t position; /* in its sequence, or in its context's block */
    const struct context_item *context; /* instead of seq, or NULL */
    size_t in_window;                   /* row of its context's window */
    mb_token_id token;
    const float *input;   /* (d_model) instead of the token's, or NULL */
    float *hidden;        /* where the last norm's row is wanted, or NULL */
    size_t first_partial; /* few: its partials, [head][split][group] */
    size_t n_splits;
};

/* A piece of attention for one member: many: rows [row, row + n) of one
 * sequence; few: blocks [first, first + n) for one row. */
struct pass_piece {
    size_t row;
    size_t head; /* key-value head */
    size_t first;
    size_t n;
    size_t partial; /* few: where its partials lie, in queries */
};

/* A row whose logits are wanted, for one of two uses: an item's scores, or the
 * logits of its last row. */
struct pass_out {
    size_t row;
    float *logits; /* or NULL: */
    float *nll;    /* the other of the two */
    mb_token_id target;
};

struct mb_pass {
    const struct mb_decoder *decoder;
    const struct attention *attention;
    struct team *team;
    size_t max_rows;
    size_t bytes;

    /* The plan of a run. */
    size_t n_rows;
    size_t n_many;
    struct pass_row *rows; /* (max_rows) */
    struct pass_piece *pieces;
    size_t n_pieces;
    size_t pieces_capacity;
    struct pass_out *outs;
    size_t n_outs;
    size_t outs_capacity;
    struct partial partials; /* of decoding (n_partials queries) */
    size_t n_partials;
    size_t partials_capacity;
    struct pass_bank bank; /* attached memory blocks */
    struct pass_contexts contexts;

    /* Where the run is; written between barriers. */
    size_t first_out; /* outs [first_out, first_out + n_out_rows) */
    size_t n_out_rows;

    float *code_room; /* codes lie in it, 64-aligned */

    /* Rows; (max_rows, width), see pass_new. */
    float *x;          /* d_model: the residual stream */
    float *normed;     /* d_model */
    float *q;          /* n_heads * head_dim */
    float *k;          /* n_kv_heads * head_dim */
    float *v;          /* same */
    float *heads;      /* n_heads * head_dim: what attention gives */
    float *gate;       /* d_ff */
    float *up;         /* d_ff */
    float *y;          /* d_model */
    float *cosine;     /* n_rot / 2 */
    float *sine;       /* n_rot / 2 */
    int16_t *codes;    /* widest input */
    float *scales;     /* widest input / ACT_BLOCK */
    float *sums;       /* same */
    float *out_rows;   /* (PASS_OUT_ROWS, d_model) */
    float *out_logits; /* (PASS_OUT_ROWS, n_vocab), made when first wanted */
    float *room;       /* (members, room_floats) */
    size_t room_floats;
    const uint8_t **slices; /* (members, PASS_SPLIT_BLOCKS) */
};

/* Take the rows through all layers and write what is wanted. Cannot fail: all
 * room is there. Runs on the caller and the team. */
void pass_compute(struct mb_pass *pass);

#endif
