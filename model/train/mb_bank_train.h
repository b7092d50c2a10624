/* SPDX-License-Identifier: Apache-2.0
 * model/train/mb_bank_train.h - training memory blocks, the anchor frozen.
 *
 * A trainer holds the anchor's weights in F32 (read from a GGUF, never changed)
 * and the state of the blocks that it works on: weights in F32, Adam's moments,
 * and each block's own count of steps (lazy Adam: a block that a step does not
 * touch does not move). States come and go through callbacks, so a bank may be
 * much larger than memory.
 *
 * A job is a set of windows (tokens with the path that their document routes
 * to). What one job makes depends on its windows, the shape, the options and
 * the states that it found: not on the order in which windows are listed, on
 * the number of threads, on pauses or on other jobs. So let one job be one
 * subtree below the root, with all windows of its leaves: then other subtrees
 * keep every byte, and to forget a document is to train its subtree's fresh
 * blocks again on what remains, which gives the same bits as if the document
 * had never been there.
 *
 *     mb_bank_trainer_new -> mb_bank_trainer_begin (items, state of the last
 *     checkpoint or nothing) -> mb_bank_trainer_run until is_finished, with
 *     pauses as you like -> mb_bank_trainer_measure -> for each node keep
 *     mb_bank_state_record converted to BF16 or Q8_0 if it gained ->
 *     mb_bank_trainer_begin (next subtree) ... -> mb_bank_trainer_free
 *
 * Threads: one caller at a time; callbacks come on the caller's thread. */
#ifndef MB_BANK_TRAIN_H
#define MB_BANK_TRAIN_H

#include "mb_bank.h"

/* The node of the generic block: as large as a whole path, the same for every
 * text. It shows what more parameters and more training do without routing. */
#define MB_BANK_GENERIC UINT64_MAX
/* Stands behind the last node of a path that ends above the lowest level. */
#define MB_BANK_NONE (UINT64_MAX - 1)

struct mb_bank_trainer;
struct mb_bank_progress;

/* ---- what the caller gives ---- */

/* A window of a job. */
struct mb_bank_item {
    uint64_t key; /* the caller's; no two windows of a job have the same */
    uint64_t path[MB_BANK_MAX_LEVELS]; /* node of level l in [l - 1] */
    bool is_held_out;                  /* for mb_bank_trainer_measure alone */
};

/* All callbacks get arg. An error of theirs ends the call that they came in. */
struct mb_bank_io {
    /* Write the window's rows and what follows each (-1: no loss) into tokens
     * and targets, which have room for n_ctx, and their number into *n (1 to
     * n_ctx). epoch counts how often the window was seen before: another
     * phrasing may be given for each. The same (item, epoch) must give the same
     * rows in every run. Held-out windows are read with epoch 0. */
    mb_status (*window)(void *arg, const struct mb_bank_item *item,
        uint64_t epoch, mb_token_id *tokens, mb_token_id *targets, size_t *n,
        struct mb_error *err);
    /* The node's state as save had it, or empty; and, if there is none, its
     * record of any type, or empty. Both empty: the block is fresh. Slices stay
     * valid until the next callback. */
    mb_status (*load)(void *arg, uint64_t node, struct mb_slice *state,
        struct mb_slice *record, struct mb_error *err);
    /* A checkpoint: save for each block that has changed, then commit with the
     * job's progress, which must become durable with them or not at all (one
     * transaction). Slices end with the call. */
    mb_status (*save)(void *arg, uint64_t node, size_t level,
        struct mb_slice state, struct mb_error *err);
    mb_status (*commit)(
        void *arg, struct mb_slice progress, struct mb_error *err);
    /* Asked before each step; true: run saves and returns. May wait (a pause).
     * NULL: never. */
    bool (*is_stopped)(void *arg);
    /* Asked before each window, on any of the trainer's threads and on several
     * at once. May wait while others need the machine. True: the step at hand
     * is given up, to be done again by the next run; this one saves the steps
     * before it and returns, and measure ends with CANCELLED. NULL: never. */
    bool (*gives_way)(void *arg);
    /* Told after each step. NULL: nobody listens. */
    void (*on_step)(void *arg, const struct mb_bank_progress *progress);
    void *arg;
};

/* Zero stands for the default in [ ]. */
struct mb_bank_train_options {
    unsigned n_threads;      /* [one for each CPU] */
    uint64_t seed;           /* of fresh blocks, and of the order of windows */
    size_t epochs;           /* how often each window is seen [3] */
    size_t batch;            /* windows of a step [16] */
    size_t n_ctx;            /* rows of a window at most [256] */
    double rate;             /* Adam's, at its peak [3e-3] */
    double warmup;           /* part of the steps that it rises in [0.02] */
    double final_rate;       /* part of it that is left at the end [0.01] */
    double beta1;            /* [0.9] */
    double beta2;            /* [0.95] */
    double adam_eps;         /* [1e-8] */
    double decay;            /* of weights, where a step touches them [1e-3] */
    size_t resident_bytes;   /* of block states, about; leaves are worked
                              * through in groups that fit [512 MiB] */
    size_t checkpoint_steps; /* from one to the next [200] */
    double checkpoint_seconds; /* or so long [no matter] */
    bool is_generic;           /* all windows train the generic block */
    bool recompute;            /* keep no activations: less memory, slower */
};

/* ---- life ---- */

/* gguf is read and may be closed afterwards; io is copied. Errors: BAD_ARG (a
 * shape that does not fit the model), NOT_IMPLEMENTED (an architecture that is
 * not trained here: says what), NOMEM, and those of mb_decoder_open. */
MB_MUST_USE mb_status mb_bank_trainer_new(const struct mb_gguf *gguf,
    const struct mb_bank_shape *shape,
    const struct mb_bank_train_options *options, const struct mb_bank_io *io,
    struct mb_bank_trainer **out, struct mb_error *err);
void mb_bank_trainer_free(struct mb_bank_trainer *t);
/* Bytes held just now: anchor, activations, block states. */
size_t mb_bank_trainer_bytes(const struct mb_bank_trainer *t);

/* ---- jobs ---- */

/* Begin a job, dropping the one before and all states. items are copied.
 * progress: what the last commit of this very job had, or empty to start.
 * Errors: BAD_ARG (no windows to train on, two with the same key, a node that
 * stands at two levels), MISMATCH (progress is of another job), NOMEM. */
MB_MUST_USE mb_status mb_bank_trainer_begin(struct mb_bank_trainer *t,
    const struct mb_bank_item *items, size_t n, struct mb_slice progress,
    struct mb_error *err);

struct mb_bank_progress {
    uint64_t step; /* of n_steps */
    uint64_t n_steps;
    uint64_t n_tokens;     /* targets trained on, from the job's beginning */
    uint64_t n_run_tokens; /* in this call */
    double loss;           /* mean nats over the last steps, about 50 */
    double seconds;        /* in this call */
    double flops;          /* of this call */
    size_t n_resident;     /* blocks */
    size_t resident_bytes;
    bool is_finished; /* all steps are done and saved */
};

/* Train until the job is finished, max_steps (0: no matter) or seconds (0: no
 * matter) are over, or is_stopped or gives_way says so; then save. Errors:
 * those of the callbacks, CORRUPT (a state that is damaged, a loss or a
 * gradient that is not finite: no such step is saved), NOMEM. After an error
 * begin again from the last commit. */
MB_MUST_USE mb_status mb_bank_trainer_run(struct mb_bank_trainer *t,
    uint64_t max_steps, double seconds, struct mb_bank_progress *out,
    struct mb_error *err);

/* What the held-out windows of one node say: means in nats a token. */
struct mb_bank_gain {
    uint64_t node;
    size_t level;           /* 0: generic */
    uint64_t n_windows;     /* of the job, trained, through this node */
    uint64_t n_tokens;      /* trained on since it was fresh */
    uint64_t n_held_out;    /* targets; 0: the losses below are 0 too */
    double before;          /* the anchor alone */
    double without;         /* with the blocks above this one */
    double with;            /* and with this one */
    double after;           /* with the whole path */
    const uint64_t *keys;   /* (n_keys) of the windows trained on, rising */
    size_t n_keys;          /* */
    struct mb_slice record; /* F32 record as trained; see mb_bank_convert */
};

/* Run the held-out windows with the blocks as they are and call on_node for
 * each node that the job trained, top first, by node within a level. A block
 * should be attached only where with < without. What the gain points to ends
 * with the call. Errors: as run, CANCELLED. */
typedef mb_status (*mb_bank_gain_fn)(
    void *arg, const struct mb_bank_gain *gain, struct mb_error *err);
MB_MUST_USE mb_status mb_bank_trainer_measure(struct mb_bank_trainer *t,
    mb_bank_gain_fn on_node, void *arg, struct mb_error *err);

/* ---- states ---- */

/* The F32 record in a state as save gave it; borrowed from it. Errors: CORRUPT
 * (header, size or checksum). */
MB_MUST_USE mb_status mb_bank_state_record(struct mb_slice state,
    struct mb_slice *record, uint64_t *n_steps, struct mb_error *err);

#endif
