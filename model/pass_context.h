/* SPDX-License-Identifier: Apache-2.0
 * model/pass_context.h - rows of contexts in a pass.
 *
 * In each layer, once keys and values of all rows lie in their windows:
 *     choose  each row and head, or a set of them, picks blocks by their
 *             landmark keys (all members, divided by sets)
 *     fetch   the source is asked for those that are not here yet (one member,
 *             at the barrier: a source is never called twice at a time)
 *     attend  the grouped softmax over what was chosen, the window's blocks and
 *             the own block's rows (all members, pieces of attention)
 *
 * Grouped softmax by partials: rows of the own block merge as they are. Of any
 * other block the rows' partial (m, l, o) becomes (z, 1, o / l), z the logit of
 * its landmark: one row whose value is what the block's own softmax gives.
 * (Mohtashami and Jaggi 2023, section 3.1.)
 *
 * A source that fails cannot stop the members in the middle of a layer: the
 * pass goes on without the block and fails at its end.
 * Private to this folder. Threads: the plan by the pass's caller; the rest as
 * said above. */
#ifndef MB_MODEL_PASS_CONTEXT_H
#define MB_MODEL_PASS_CONTEXT_H

#include "context.h"

struct mb_pass;
struct pass_piece;

/* A context in the pass: rows [row, row + n). */
struct context_item {
    struct mb_context *ctx;
    const mb_token_id *tokens; /* (n_tokens) */
    size_t n_tokens;
    size_t row;
    size_t n; /* rows, landmarks included */
    size_t k; /* blocks of each choice; 0: none */
    mb_select select;
    size_t choice; /* its first; see choice_of */
    size_t n_choices;
};

/* A set that chooses together: rows and heads of an item. */
struct context_set {
    size_t item;
    size_t choice;
    size_t row; /* of the pass */
    size_t n_rows;
    size_t head;
    size_t n_heads;
};

struct pass_contexts {
    struct context_item *items;
    size_t n_items;
    size_t items_capacity;
    struct context_set *sets;
    size_t n_sets;
    size_t sets_capacity;
    struct landmark_choice *choices;
    size_t n_choices;
    size_t choices_capacity;
    float *turns; /* (CONTEXT_TURNS, n_rot / 2) cosines, then sines */
    float *room;  /* (members, room_floats) for choosing */
    size_t room_floats;
    size_t room_capacity; /* floats in all */
    mb_status status;     /* of fetching */
    struct mb_error err;
};

/* Can the context take these rows? Errors: BAD_ARG, TOO_LARGE. */
MB_MUST_USE mb_status context_check_item(const struct mb_pass *pass,
    const struct mb_rows *item, size_t i, struct mb_error *err);
/* Rows of the pass that an item takes; row of its token i, from its first. */
size_t context_item_rows(const struct mb_rows *item);
size_t context_item_row(const struct mb_rows *item, size_t i);

/* The plan of a run: forget items, room for n; add one whose rows begin at
 * `row` (fills pass->rows); make room for choosing. */
MB_MUST_USE mb_status context_plan_begin(
    struct mb_pass *pass, size_t n_items, struct mb_error *err);
MB_MUST_USE mb_status context_plan_add(struct mb_pass *pass,
    const struct mb_rows *item, size_t row, struct mb_error *err);
MB_MUST_USE mb_status context_plan_end(
    struct mb_pass *pass, struct mb_error *err);
void context_plan_free(struct mb_pass *pass);
/* Let go of what sources lent; if st is OK, contexts take over their tokens.
 * Returns st, or how fetching failed. */
MB_MUST_USE mb_status context_end_run(
    struct mb_pass *pass, mb_status st, struct mb_error *err);

/* ---- in a layer ---- */

/* Take sets until there are none; room: for attention. */
void context_choose(
    struct mb_pass *pass, size_t layer, unsigned member, float *room);
/* Fetch what was chosen; the step of a barrier, arg is the pass. */
void context_fetch_chosen(void *arg);
/* A tile: rows [piece->row, + piece->n) and n_heads heads from first_head on,
 * which share key-value head piece->head; room_floats of the pass. */
void context_attend(struct mb_pass *pass, size_t layer,
    const struct pass_piece *piece, size_t first_head, size_t n_heads,
    float *room);
/* Floats of room that context_attend needs behind ATTENTION_ROOM_FLOATS. */
size_t context_room_floats(size_t head_dim);

#endif
