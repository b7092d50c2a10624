/* SPDX-License-Identifier: Apache-2.0
 * model/train/bank_train.h - what the parts of training memory blocks share.
 *
 *   bank_train.c   life, checkpoints, steps, what held-out windows say
 *   bank_plan.c    a job: its nodes, its windows, the order of both
 *   bank_state.c   the state of one block, its bytes, its optimizer
 *   bank_run.c     windows through the model, forward and backward
 *
 * Private to this folder. */
#ifndef MB_BANK_TRAIN_PRIVATE_H
#define MB_BANK_TRAIN_PRIVATE_H

#include "../bank_block.h"
#include "../team.h"
#include "graph.h"
#include "mb_bank_train.h"
#include "mb_import.h"
#include "vector.h"

/* Windows that go through the model before their gradients are summed up: it
 * bounds memory, and must not depend on the number of threads. */
#define BANK_CHUNK 8u

/* ---- states ---- */

/* A block that is being trained. Its bytes are what `save` gets: header, F32
 * record, moments, squares, checksum. */
struct bank_slot {
    uint64_t node;
    size_t level;
    size_t rows;
    uint8_t *bytes; /* NULL: not resident */
    size_t size;
    uint64_t n_steps;
    uint64_t n_tokens;
    bool is_dirty;
    /* Within a step. */
    float *grad;      /* like the weights; NULL: not touched */
    size_t n_targets; /* that the gradient is of */
};

/* Weights, moments, squares: (n_layers, 3, rows, d_model) each. */
float *bank_slot_weights(const struct bank_slot *s);
float *bank_slot_moments(const struct bank_slot *s);
float *bank_slot_squares(const struct bank_slot *s);
size_t bank_slot_n(
    const struct bank_slot *s, const struct mb_bank_shape *shape);
/* Bytes of the state of a block. */
size_t bank_state_bytes(const struct mb_bank_shape *shape, size_t rows);
/* Make it resident from a state, a record or nothing. Errors: CORRUPT,
 * MISMATCH (another shape or model), NOMEM. */
MB_MUST_USE mb_status bank_slot_load(struct bank_slot *s,
    const struct mb_bank_shape *shape, const struct mb_bank_draw *draw,
    struct mb_slice state, struct mb_slice record, struct mb_error *err);
/* Its bytes with all checksums. */
struct mb_slice bank_slot_seal(
    struct bank_slot *s, const struct mb_bank_shape *shape);
void bank_slot_drop(struct bank_slot *s);

/* ---- plan ---- */

/* A window of the job. */
struct bank_window {
    uint64_t key;
    uint32_t item;     /* of the caller's list */
    uint32_t n_blocks; /* of its path */
    uint32_t slots[MB_BANK_MAX_LEVELS];
};

/* Windows whose blocks are resident together. */
struct bank_group {
    size_t first; /* of `windows` */
    size_t n;
};

struct bank_plan {
    struct mb_bank_item *items; /* the caller's, copied */
    size_t n_items;
    struct bank_slot *slots; /* (n_slots) by level, then by node */
    size_t n_slots;
    struct bank_window *windows; /* (n_windows) to train on, by path and key */
    size_t n_windows;
    struct bank_window *held_out; /* same */
    size_t n_held_out;
    struct bank_group *groups;
    size_t n_groups;
    uint64_t steps_an_epoch;
    uint64_t hash; /* of all this */
    /* Where the job is. */
    uint64_t epoch;
    size_t *group_order; /* (n_groups) of the epoch */
    size_t group_place;  /* in group_order */
    size_t step_in_group;
    uint32_t *order; /* (n_windows) of the group's windows */
};

MB_MUST_USE mb_status bank_plan_make(const struct mb_bank_shape *shape,
    const struct mb_bank_train_options *options,
    const struct mb_bank_item *items, size_t n, struct bank_plan *out,
    struct mb_error *err);
void bank_plan_fini(struct bank_plan *p);
/* Go to a step of the job. */
void bank_plan_seek(struct bank_plan *p,
    const struct mb_bank_train_options *options, uint64_t step);
/* Windows of the step that comes, in the order of their paths, into out (batch);
 * returns how many. Then go on. *is_new: the first step of a group. */
size_t bank_plan_next(struct bank_plan *p,
    const struct mb_bank_train_options *options, struct bank_window *out,
    bool *is_new);

/* ---- running windows ---- */

/* One window on its way through the model. */
struct bank_pass {
    struct train_window window;
    const float *path; /* (n_layers, 3, n_path_rows, d_model), or NULL */
    float *grad;       /* same, or NULL: no training */
    size_t path_rows;
    size_t rows; /* of them, the first: those of the blocks that take part */
    double loss; /* sum over targets */
    bool failed;
};

struct bank_member {
    struct tape_f32 *tape;
    struct graph_layer_f32 *layers;
    double flops;
};

struct bank_model {
    struct imported anchor;
    struct train_shape shape;
    struct mb_bank_shape bank;
    struct graph_model_f32 graph; /* layers are those of a member */
    struct graph_layer_f32 *layers;
    struct team *team;
    struct bank_member *members;
    bool recompute;
    bool (*gives_way)(void *arg); /* as in mb_bank_io, may be NULL */
    void *arg;
};

MB_MUST_USE mb_status bank_model_init(struct bank_model *m,
    const struct mb_gguf *gguf, const struct mb_bank_shape *bank,
    const struct mb_bank_train_options *options, struct mb_error *err);
void bank_model_fini(struct bank_model *m);
size_t bank_model_bytes(const struct bank_model *m);
/* Run the passes, any of them on any member. Errors: NOMEM, CORRUPT (a loss
 * that is not finite), CANCELLED (by gives_way: what passes hold is nothing). */
MB_MUST_USE mb_status bank_model_run(struct bank_model *m,
    struct bank_pass *passes, size_t n, double *flops, struct mb_error *err);

/* Copy the weights of a block into rows [row, row + its own) of a path with
 * path_rows rows, or add such rows of a path's gradient to the block's. */
void bank_path_put(const struct mb_bank_shape *shape,
    const struct bank_slot *slot, float *path, size_t path_rows, size_t row);
void bank_path_take(const struct mb_bank_shape *shape, struct bank_slot *slot,
    const float *grad, size_t path_rows, size_t row);
/* One step of lazy Adam for all slots with a gradient, which is then freed. */
void bank_model_move(struct bank_model *m, struct bank_slot *const *slots,
    size_t n, const struct mb_bank_train_options *options, double rate);

#endif
