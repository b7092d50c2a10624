/* SPDX-License-Identifier: Apache-2.0
 * daemon/mb_banker.h - memory banks: where the store and the model meet.
 *
 * What the daemon and `membank-train bank` have in common: a tree fitted over a
 * collection's embeddings, texts routed down that tree, blocks found for them.
 * The store keeps the rows (mb_banks.h), the model side knows what a block is
 * (mb_bank.h).
 *
 * Life: mb_banker_build makes a collection's bank. mb_router_new reads what
 * routing needs; it serves until the bank is replaced.
 * Threads: a router is immutable and shared; the rest belongs to its caller. */
#ifndef MB_BANKER_H
#define MB_BANKER_H

#include "mb_bank.h"
#include "mb_banks.h"
#include "mb_decoder.h"
#include "mb_store.h"

/* ---- building ---- */

/* Zero stands for the default in [ ]. */
struct mb_banker_settings {
    uint32_t fan_out; /* children of a node [16, fewer of a small collection] */
    uint32_t levels;  /* below the root [3, fewer of a small collection] */
    uint32_t leaf;    /* segments of a leaf aimed at [32] */
    double fetch;     /* a path's parameters by the model's [0.1] */
    uint32_t first_layer; /* the first that has memory [0] */
    uint32_t epochs;      /* how often each window is trained on [3] */
    uint32_t window;      /* tokens of a window at most [320] */
    uint32_t hold_out;    /* one window in so many is held out [16] */
    uint64_t seed;        /* [20261124] */
    uint32_t served_type; /* mb_bank_type, + 1 [BF16] */
};

/* The model that a bank is for. */
struct mb_banker_model {
    const struct mb_decoder_info *info;
    uint8_t fingerprint[16];
    const char *name;
};

/* Fit a tree over the embeddings that coll has and make it the collection's
 * bank, all blocks fresh; *bank is its number. Errors: NOT_FOUND (no embedding
 * yet), BAD_ARG (settings, or fewer than two segments), CANCELLED (progress
 * said true; may be NULL), those of the store. */
MB_MUST_USE mb_status mb_banker_build(struct mb_store *store,
    const char *collection, const struct mb_banker_settings *settings,
    const struct mb_banker_model *model, mb_progress_fn progress, void *arg,
    uint32_t *bank, struct mb_error *err);
/* The shape of a bank's blocks, as the model side wants it. */
void mb_banker_shape(const struct mb_banks *bank, struct mb_bank_shape *out);

/* ---- routing ---- */

struct mb_router;

/* What a text was routed by. */
struct mb_route {
    size_t n; /* steps, from below the root; 0: nothing in the text is known */
    struct mb_tree_step steps[MB_BANKS_MAX_LEVELS];
};

/* The router of the collection's bank, copied from the snapshot. Errors:
 * NOT_FOUND (it has none), CORRUPT, NOMEM. */
MB_MUST_USE mb_status mb_router_new(struct mb_snapshot *snap,
    const struct mb_collection *coll, struct mb_router **out,
    struct mb_error *err);
void mb_router_free(struct mb_router *r);
const struct mb_banks *mb_router_bank(const struct mb_router *r);
const struct mb_tree *mb_router_tree(const struct mb_router *r);
size_t mb_router_bytes(const struct mb_router *r);
/* By the terms of a text. MISMATCH: the bank does not route by terms. */
MB_MUST_USE mb_status mb_router_terms(const struct mb_router *r,
    const struct mb_term *terms, size_t n, struct mb_route *out,
    struct mb_error *err);
/* By a unit vector of the collection's embedding (dim of the bank). */
void mb_router_vector(
    const struct mb_router *r, const float *vector, struct mb_route *out);
/* A stored segment's vector (dim of the bank). Errors: NOT_FOUND (it has none
 * yet), MISMATCH, CORRUPT. */
MB_MUST_USE mb_status mb_router_segment_vector(const struct mb_router *r,
    struct mb_snapshot *snap, const struct mb_collection *coll,
    const struct mb_segment *seg, float *out, struct mb_error *err);
/* A stored segment. Errors: NOT_FOUND (it has no vector yet), CORRUPT. */
MB_MUST_USE mb_status mb_router_segment(const struct mb_router *r,
    struct mb_snapshot *snap, const struct mb_collection *coll,
    const struct mb_segment *seg, struct mb_route *out, struct mb_error *err);

/* ---- training ---- */

struct mb_banker_progress {
    size_t n_subtrees; /* to be looked at: of the first level, with text; and
                          the generic block if it is wanted */
    size_t done;       /* of these, trained or as they should be */
    uint32_t node;     /* that is being trained, or MB_BANKS_GENERIC */
    uint64_t step;     /* of its training */
    uint64_t n_steps;
    uint64_t n_tokens; /* in this run */
    double loss;       /* of late, nats a token */
    double seconds;    /* of work: gives_way does not count */
};

/* One run over the collection's bank. Subtrees of the first level are trained
 * one after the other, stale ones first, each from fresh blocks on all text that
 * routes to it: what comes out depends on the text, the tree, the seed and the
 * settings alone. So a subtree whose text is the same is passed over, one that
 * was interrupted goes on where it was, and one that lost a document becomes
 * what it would be had the document never been there. */
struct mb_banker_train {
    struct mb_store *store;
    const char *collection;
    const struct mb_gguf *gguf; /* the bank's model */
    uint8_t fingerprint[16];    /* of it */
    const struct mb_tokenizer *tokenizer;
    unsigned n_threads;        /* 0: one for each CPU */
    size_t resident_bytes;     /* of block states; 0: the trainer's default */
    size_t checkpoint_steps;   /* 0: the trainer's default */
    double checkpoint_seconds; /* 0: no matter */
    /* Only what saw a text that is gone: stale subtrees, and what an
     * interrupted training left; the generic block becomes fresh. */
    bool only_stale;
    bool is_generic; /* the generic block too, after all others */
    /* Budget of this run: its end is a checkpoint, and the next run goes on. */
    double seconds;     /* of work; 0: no matter */
    uint64_t tokens;    /* 0: no matter */
    bool charges_run;   /* take what is used from the store's mb_banks_run */
    uint64_t run_asked; /* of that */
    bool (*is_stopped)(void *arg); /* before each step; NULL: never */
    /* As in mb_bank_io: before each window, on any thread; NULL: never. */
    bool (*gives_way)(void *arg);
    void (*progress)(void *arg, const struct mb_banker_progress *p);
    void *arg;
    /* Results. */
    struct mb_banker_progress at;
    bool is_finished; /* nothing is left to be trained */
};

/* Errors: NOT_FOUND (no bank), MISMATCH (another model's), STALE (the bank was
 * replaced, or text was deleted again and again while a subtree was trained),
 * those of the trainer and the store. What was trained until then stays. */
MB_MUST_USE mb_status mb_banker_train(
    struct mb_banker_train *t, struct mb_error *err);

#endif
