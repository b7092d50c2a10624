/* SPDX-License-Identifier: Apache-2.0
 * store/mb_banks.h - the memory banks of collections, as rows of the store.
 *
 * A bank is a cluster tree over a collection's embeddings with a memory block
 * for each of its nodes but the root, trained for one model. The store knows
 * neither models nor what stands in a block: it keeps bytes and says whose they
 * are, which segments a leaf was trained on, and what became of it.
 *
 * A collection has at most one bank, named by a number that is never given
 * twice. What a bank routes by (embedding and tree) is its own copy and never
 * changes: a refit of the search's embedding leaves the bank as it is.
 *
 * Forgetting: erasing a segment that a leaf was trained on marks this leaf and
 * all nodes above it as stale, in the transaction that erases the text. Their
 * versions rise, too, so that a training which is under way cannot be published
 * as if nothing had happened (STALE).
 *
 * Life: mb_op_banks_build_new -> edits (jobs, states, blocks) -> reset; rows of
 * a bank that is no longer the collection's are erased by purge.
 * Threads: as mb_store.h: reads in snapshots, writes as operations. */
#ifndef MB_BANKS_H
#define MB_BANKS_H

#include "mb_store.h"

#define MB_BANKS_MAX_LEVELS 8
#define MB_BANKS_MAX_MODEL  63         /* bytes of a model's name */
#define MB_BANKS_MAX_TERMS  160        /* bytes of what describes a node */
#define MB_BANKS_GENERIC    UINT32_MAX /* the node of the generic block */

/* ---- the bank ---- */

struct mb_banks {
    uint32_t bank; /* its number; given by the store */
    mb_embedding_kind embedding;
    uint32_t dim;
    uint32_t n_nodes; /* of the tree, root included; this and the next two are
                         the tree's */
    uint32_t n_leaves;
    uint32_t n_levels; /* of a path */
    uint32_t fan_out;  /* wanted */
    bool is_disabled;
    uint64_t created_ms;
    uint64_t fitted_segments; /* in the collection when the tree was fitted */
    uint64_t embedding_bytes;
    uint64_t seed; /* of blocks and trees */
    /* The model's, and the blocks' shape. */
    uint8_t anchor[16];
    char model[MB_BANKS_MAX_MODEL + 1];
    uint32_t d_model;
    uint32_t first_layer;
    uint32_t n_layers;
    uint32_t rows[MB_BANKS_MAX_LEVELS];
    uint32_t served_type; /* of records; numbers of the model side */
    /* How it is trained. */
    uint32_t epochs;
    uint32_t window;   /* tokens */
    uint32_t hold_out; /* one window in so many is not trained on */
    uint32_t reserved;
};

/* The collection's bank. Errors: NOT_FOUND (it has none), CORRUPT. */
MB_MUST_USE mb_status mb_banks_get(struct mb_snapshot *snap,
    const struct mb_collection *coll, struct mb_banks *out,
    struct mb_error *err);
/* Embedding bytes, joined in arena; empty for vectors that are not ours. */
MB_MUST_USE mb_status mb_banks_embedding(struct mb_snapshot *snap,
    const struct mb_collection *coll, const struct mb_banks *bank,
    struct mb_arena *arena, struct mb_slice *out, struct mb_error *err);
/* Free it with mb_tree_free. Errors: CORRUPT, NOMEM. */
MB_MUST_USE mb_status mb_banks_tree(struct mb_snapshot *snap,
    const struct mb_collection *coll, const struct mb_banks *bank,
    struct mb_tree **out, struct mb_error *err);

/* One step on the way down a tree. */
struct mb_tree_step {
    uint32_t node;
    float cosine; /* of the vector and the node's centroid */
};

/* Nodes from below the root to a leaf, by greedy descent; at most max. *leaf
 * (may be NULL) is the leaf's number. */
size_t mb_tree_path(const struct mb_tree *tree, const float *vector,
    struct mb_tree_step *out, size_t max, uint32_t *leaf);
uint32_t mb_tree_n_nodes(const struct mb_tree *tree);
uint32_t mb_tree_depth(const struct mb_tree *tree);
/* Node i; n_vectors is 0. */
void mb_tree_node(const struct mb_tree *tree, uint32_t i, struct mb_node *out);
/* The node of a leaf. */
uint32_t mb_tree_leaf_node(const struct mb_tree *tree, uint32_t leaf);

/* ---- nodes ---- */

typedef enum mb_banks_state {
    MB_BANKS_FRESH = 0,    /* never trained, or reset: it changes nothing */
    MB_BANKS_TRAINING = 1, /* the first training of it is under way */
    MB_BANKS_READY = 2,
    MB_BANKS_STALE = 3 /* trained on something that was deleted since */
} mb_banks_state;

/* "fresh", "training", "ready", "stale". */
const char *mb_banks_state_name(mb_banks_state state);

struct mb_banks_node {
    uint32_t node; /* or MB_BANKS_GENERIC */
    uint32_t level;
    mb_banks_state state;
    bool is_disabled;    /* by a user */
    bool has_gained;     /* its held-out loss fell: it may be attached */
    uint64_t version;    /* how often it became stale */
    uint64_t n_segments; /* trained on, held-out ones aside */
    uint64_t n_documents;
    uint64_t n_tokens;   /* over all epochs */
    uint64_t n_held_out; /* tokens that the losses are of */
    double before;       /* nats a token: the model alone */
    double without;      /* with the blocks above this one */
    double with;         /* with this one, too */
    double after;        /* with the whole path */
    uint64_t trained_ms;
    uint64_t job;         /* what it was trained on and how: equal, equal */
    uint64_t block_bytes; /* 0: no block */
    uint64_t used_ms;     /* last attached to a request's rows; 0: never */
    char terms[MB_BANKS_MAX_TERMS + 1]; /* that tell it from others */
};

/* Errors: NOT_FOUND, CORRUPT. */
MB_MUST_USE mb_status mb_banks_node_get(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t bank, uint32_t node,
    struct mb_banks_node *out, struct mb_error *err);
/* All nodes but the root, by number, the generic one last if there is one; the
 * array lives in arena. Errors: CORRUPT, NOMEM. */
MB_MUST_USE mb_status mb_banks_nodes(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t bank, struct mb_arena *arena,
    struct mb_banks_node **out, size_t *n, struct mb_error *err);
/* A node's block as it is served: a view until the snapshot's end, of an
 * unspoilt size; its bytes are not looked at. Errors: NOT_FOUND, CORRUPT. */
MB_MUST_USE mb_status mb_banks_block(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t bank, uint32_t node,
    struct mb_slice *out, struct mb_error *err);
/* The leaf's node that a segment was given to when it was trained on.
 * Errors: NOT_FOUND (not trained on yet), CORRUPT. */
MB_MUST_USE mb_status mb_banks_leaf_of(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t bank, mb_segno segno,
    uint32_t *node, struct mb_error *err);
/* How many segments have a leaf. */
MB_MUST_USE mb_status mb_banks_n_trained(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t bank, uint64_t *n,
    struct mb_error *err);

/* ---- training ---- */

/* A training of all nodes below (and at) one node, as far as it has come. */
struct mb_banks_job {
    uint32_t node;    /* its top */
    uint64_t job;     /* see mb_banks_node.job */
    uint64_t version; /* of the top when it began: if it has risen, what was
                         trained has seen something that is gone */
    struct mb_slice progress; /* the trainer's; a view */
};

/* Errors: NOT_FOUND (none is under way), CORRUPT. */
MB_MUST_USE mb_status mb_banks_job_get(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t bank, uint32_t node,
    struct mb_banks_job *out, struct mb_error *err);
/* A node's training state, a view. Errors: NOT_FOUND, CORRUPT. */
MB_MUST_USE mb_status mb_banks_state_get(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t bank, uint32_t node,
    struct mb_slice *out, struct mb_error *err);

/* What was asked of the trainer and is not done yet. */
struct mb_banks_run {
    bool is_purge;    /* stale blocks are to be trained again, come what may */
    bool is_training; /* then whatever is not as it should be */
    bool is_generic;  /* and the generic block at last */
    bool is_paused;   /* the training; a purge is not */
    uint32_t purges;  /* counts MB_BANKS_RUN_PURGE; given by the store */
    uint64_t asked;   /* counts MB_BANKS_RUN_TRAIN; given by the store */
    uint64_t ms;      /* left of the training's budget; UINT64_MAX: no limit */
    uint64_t tokens;  /* same */
};

typedef enum mb_banks_run_change {
    MB_BANKS_RUN_TRAIN,   /* begin, or begin anew: is_generic, ms, tokens */
    MB_BANKS_RUN_PURGE,   /* begin, or begin anew */
    MB_BANKS_RUN_PAUSE,   /* NOT_FOUND on apply where there is no training;
                           * with a run: only if `asked` is that of now */
    MB_BANKS_RUN_RESUME,  /* same */
    MB_BANKS_RUN_SPEND,   /* ms and tokens less, if `asked` is that of now */
    MB_BANKS_RUN_TRAINED, /* the training is over, if `asked` is that of now */
    MB_BANKS_RUN_PURGED   /* the purge is over, if `purges` is that of now */
} mb_banks_run_change;

/* Errors: NOT_FOUND (nothing was), CORRUPT. */
MB_MUST_USE mb_status mb_banks_run_get(struct mb_snapshot *snap,
    const struct mb_collection *coll, uint32_t bank, struct mb_banks_run *out,
    struct mb_error *err);

/* ---- operations ---- */

/* Make a bank, which takes the place of the one that the collection has. Of
 * `bank`, what the store gives is passed over. Embedding and tree are copied.
 * terms (n_nodes of the tree, may be NULL) describe the nodes. On apply:
 * NOT_FOUND. */
MB_MUST_USE mb_status mb_op_banks_build_new(struct mb_slice collection,
    const struct mb_banks *bank, struct mb_slice embedding,
    const struct mb_tree *tree, const char *const *terms, struct mb_op **out,
    struct mb_error *err);
uint32_t mb_op_banks_build_result(const struct mb_op *op);
/* The collection has no bank any more. On apply: NOT_FOUND. */
MB_MUST_USE mb_status mb_op_banks_reset_new(
    struct mb_slice collection, struct mb_op **out, struct mb_error *err);
/* Erase rows of banks that are not the collection's, a slice a call, until
 * is_done. */
MB_MUST_USE mb_status mb_op_banks_purge_new(
    struct mb_slice collection, struct mb_op **out, struct mb_error *err);
bool mb_op_banks_purge_is_done(const struct mb_op *op);

/* Changes to one bank, all of them or none. On apply: NOT_FOUND (collection),
 * STALE (another bank, or a version that does not fit). All data is copied. */
MB_MUST_USE mb_status mb_op_banks_edit_new(struct mb_slice collection,
    uint32_t bank, struct mb_op **out, struct mb_error *err);
/* STALE unless the node has this version when it is applied. */
MB_MUST_USE mb_status mb_banks_edit_expect(
    struct mb_op *op, uint32_t node, uint64_t version);
/* Write a node's record but for its version, its being disabled and its last
 * use, which stay as they are. */
MB_MUST_USE mb_status mb_banks_edit_node(
    struct mb_op *op, const struct mb_banks_node *node);
/* Empty slices take the row away. */
MB_MUST_USE mb_status mb_banks_edit_block(
    struct mb_op *op, uint32_t node, struct mb_slice record);
MB_MUST_USE mb_status mb_banks_edit_state(
    struct mb_op *op, uint32_t node, struct mb_slice state);
/* Change what was asked for. run: what the change says, else NULL. */
MB_MUST_USE mb_status mb_banks_edit_run(struct mb_op *op,
    mb_banks_run_change change, const struct mb_banks_run *run);
MB_MUST_USE mb_status mb_banks_edit_job(
    struct mb_op *op, const struct mb_banks_job *job);
MB_MUST_USE mb_status mb_banks_edit_end_job(struct mb_op *op, uint32_t node);
/* Segments go to the leaf that is this node (0: to none). If one of them is gone
 * when it is applied: STALE. */
MB_MUST_USE mb_status mb_banks_edit_assign(
    struct mb_op *op, const mb_segno *segnos, size_t n, uint32_t node);
/* A node, or the bank (node 0). */
MB_MUST_USE mb_status mb_banks_edit_disable(
    struct mb_op *op, uint32_t node, bool disable);
/* Raise the time of a node's last use to used_ms. A node that is not there any
 * more is passed over. */
MB_MUST_USE mb_status mb_banks_edit_used(
    struct mb_op *op, uint32_t node, uint64_t used_ms);
/* About how many bytes it holds. */
size_t mb_banks_edit_bytes(const struct mb_op *op);

#endif
