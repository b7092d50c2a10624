/* SPDX-License-Identifier: Apache-2.0
 * model/context_hmt.h - what stands in front of a context's window: memories.
 *
 * A segment of a context with memory is read behind a front of rows,
 *
 *     [P] [the last tokens of the segment before] | its blocks | [P]
 *
 * which all its rows see and which no table ever holds: P is what a summary of
 * the tokens before the segment recalls of the memories of all segments so far
 * (model/train/hmt_graph.h tells how it is trained). When the segment is full,
 * a last row, P again, gives its memory, which is kept with its last block.
 * Neither the front's rows nor that last one retrieve blocks: so they are what
 * they were in training, and a front depends on tokens and memories alone. It is
 * made anew, to the same bits, whenever it is wanted.
 *
 * In the window two more blocks lie behind those of the text: the first takes
 * the last row where the text's are full, the second is the front.
 * Private to this folder. Threads: those of the context. */
#ifndef MB_MODEL_CONTEXT_HMT_H
#define MB_MODEL_CONTEXT_HMT_H

#include "context.h"

struct context_hmt {
    const struct companion *weights; /* NULL: tokens are repeated, no more */
    struct mb_context *summary;      /* reads what is summarised */
    size_t n_sensory;
    mb_token_id *before; /* (segment's tokens) of the segment before */
    bool has_front;      /* its rows lie in the window */
    float *P;            /* (d_model), as an input row */
    float *S;            /* (d_model) */
    float *hidden;       /* (d_model) of the row behind the window */
    float *query;        /* (d_key) */
    float *memories;     /* (n, d_model) */
    float *keys;         /* (n, d_key) */
    float *scores;       /* (n) */
    uint32_t *order;     /* (n) */
    size_t n;            /* segments with a memory */
    size_t capacity;
    uint8_t *bytes; /* (d_model) f32: the last memory, for the source */
};

/* What the options want; ctx->hmt stays NULL where they want nothing. */
MB_MUST_USE mb_status hmt_new(struct mb_context *ctx, struct mb_error *err);
void hmt_free(struct context_hmt *h);
size_t hmt_bytes(const struct mb_context *ctx);

/* Have the front in the window. */
MB_MUST_USE mb_status hmt_make_front(
    struct mb_context *ctx, struct mb_pass *pass, struct mb_error *err);
/* The memory of the full window, to be kept with it: a view. Empty where there
 * are none. */
MB_MUST_USE mb_status hmt_make_memory(struct mb_context *ctx,
    struct mb_pass *pass, struct mb_slice *out, struct mb_error *err);
/* The window is kept: its memory is the next one, its tokens stand before. */
MB_MUST_USE mb_status hmt_commit(
    struct mb_context *ctx, struct mb_slice memory, struct mb_error *err);
/* Memories of the first n segments are left; before: tokens of the last of
 * these. */
void hmt_cut(struct mb_context *ctx, size_t n, const mb_token_id *before);
/* Take over the first n segments' memories of another context. */
MB_MUST_USE mb_status hmt_copy(struct mb_context *to,
    const struct mb_context *from, size_t n, const mb_token_id *before,
    struct mb_error *err);

#endif
