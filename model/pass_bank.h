/* SPDX-License-Identifier: Apache-2.0
 * model/pass_bank.h - memory blocks that are attached to rows of a pass.
 *
 * A span is a block beside rows of one kind that lie together; requests that
 * stand side by side and have the same block share one. Hidden units of a row
 * lie behind one another in the order of its path.
 * Private to this folder. Threads: the plan by the pass's caller; bank_in and
 * bank_out by all members, who divide the tiles. */
#ifndef MB_MODEL_PASS_BANK_H
#define MB_MODEL_PASS_BANK_H

#include "bank_block.h"

struct mb_pass;

struct bank_span {
    const struct mb_bank_block *block;
    size_t row; /* rows [row, row + n) of the pass */
    size_t n;
    size_t column; /* where its hidden units begin */
};

struct pass_bank {
    struct bank_span *spans;
    size_t n_spans;
    size_t spans_capacity;
    size_t width;    /* hidden units of the longest path */
    bool has_codes;  /* some block is quantised: rows are rounded for it */
    float *gate;     /* (rows of the pass, width) */
    float *up;       /* same */
    size_t capacity; /* floats of each */
    bank_out_fn out;
};

/* The plan of a run: forget spans; add an item's rows; make room. */
void bank_plan_begin(struct mb_pass *pass);
MB_MUST_USE mb_status bank_plan_add(struct mb_pass *pass,
    const struct mb_bank_path *path, size_t row, size_t n,
    struct mb_error *err);
MB_MUST_USE mb_status bank_plan_end(struct mb_pass *pass, struct mb_error *err);
void bank_plan_free(struct mb_pass *pass);

/* Hidden units of all spans in a layer. tile: the member's last team_next, of
 * which the first `before` were another step's. Inputs are the normalised rows
 * and their codes. */
void bank_in(const struct mb_pass *pass, size_t layer, size_t tile,
    size_t before, float *room);
/* pass->y, columns [first, last), += what the hidden units give. */
void bank_out(const struct mb_pass *pass, size_t layer, size_t first,
    size_t last, float *room);

#endif
