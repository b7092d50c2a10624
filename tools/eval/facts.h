/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/facts.h - do memory blocks hold the long tail of a text?
 *
 * The miniature of "Pretraining with hierarchical memories" (Pouransari et al.
 * 2025): models are trained on a made-up world of facts (world.h) with and
 * without blocks, then asked for each fact. What is compared:
 *
 *     A1     an anchor, N tokens
 *     A3     the anchor frozen, blocks of the tree trained, N tokens (product)
 *     A3g    the same with one block for all texts, as large as a path
 *     A3s    the same with a small block at the leaves alone
 *     A2     anchor and blocks trained together, N tokens
 *     B      a dense model, the anchor and a block always attached, N tokens
 *     dense  a model of 2.6 times the anchor's size, 2 N tokens
 *
 * Threads: the main thread; trainers and passes have their own. */
#ifndef EVAL_FACTS_H
#define EVAL_FACTS_H

#include "mb_bank_train.h"
#include "mb_cotrain.h"
#include "mb_decoder.h"
#include "mb_train.h"
#include "progress.h"
#include "routes.h"

/* Options of the program's table that are read here: fan-out, tokens, batch,
 * seed, seeds, route, threads, csv, json. Prints a table of criteria and one of
 * accuracies for each seed. Errors: those of training, BAD_ARG. */
MB_MUST_USE mb_status facts_run(const struct mb_cli *cli, struct mb_error *err);

/* ---- shared by facts*.c ---- */

#define FACTS_STREAM_FIRST 1u /* what the anchor learns */
#define FACTS_STREAM_BANK  2u /* the collection */
#define FACTS_STREAM_HELD  3u
#define FACTS_N_HELD       256u
#define FACTS_N_LATE_DOCS  80u

/* Records by node: those of the tree, then three of its own. */
struct facts_blocks {
    size_t n_nodes;          /* of the tree, root included */
    struct mb_slice *state;  /* (n_nodes + FACTS_EXTRA) of the bank trainer */
    struct mb_slice *record; /* same; views of states, or owned */
    bool owns_records;
};

#define FACTS_EXTRA 4u /* the generic block, and a path of a late topic */

struct facts {
    const struct mb_cli *cli;
    uint32_t fan_out;
    uint64_t n_tokens; /* of a training, N */
    size_t batch;      /* windows of a step */
    uint64_t seed;
    unsigned n_threads;
    bool is_oracle;
    struct world *world;
    struct routes routes;
    char folder[TOOL_MAX_FOLDER];
    struct mb_gguf *vocab; /* any model: its vocabulary fills files */
    struct progress progress;
    double done;  /* part of all training that is over */
    double share; /* of all training, what runs now */
};

/* Blocks that are attached: to each prompt or text those of its route, or one
 * that is always attached, or none. */
struct facts_attached {
    const struct facts_blocks *blocks; /* NULL: none */
    const struct route *prompts;
    const struct route *held_out;
    bool is_generic;
};

struct facts_score {
    const char *name;
    uint64_t n_params; /* that take part in a pass */
    uint64_t n_tokens; /* trained on, all in all */
    double seconds;
    /* Questions by [is_element][bucket]. */
    uint64_t n[2][WORLD_BUCKETS];
    uint64_t n_right[2][WORLD_BUCKETS];
    double nll;        /* mean of all held-out tokens */
    double nll_common; /* of those within phrases */
};

double facts_accuracy(const struct facts_score *s);
/* Of one bucket, made-up entities alone. */
double facts_bucket(const struct facts_score *s, size_t bucket);

/* ---- training ---- */

void facts_blocks_fini(struct facts_blocks *b);
MB_MUST_USE mb_status facts_blocks_init(
    struct facts_blocks *b, size_t n_nodes, struct mb_error *err);

/* Where a run's model is written. */
void facts_path(const struct facts *f, const char *name, char out[512]);
/* A dense model of the shape, on `n_tokens` of the first stream and then of the
 * bank's, written under the name. */
MB_MUST_USE mb_status facts_train_dense(struct facts *f,
    const struct train_shape *shape, uint64_t n_tokens, const char *name,
    struct facts_score *out, struct mb_error *err);
/* Blocks beside the frozen model `from`. */
MB_MUST_USE mb_status facts_train_bank(struct facts *f, const char *from,
    const struct mb_bank_shape *shape, bool is_generic,
    struct facts_blocks *blocks, struct facts_score *out, struct mb_error *err);
/* The late facts into a path of their own, beside blocks that were trained by
 * facts_train_bank. */
MB_MUST_USE mb_status facts_train_late(struct facts *f, const char *from,
    const struct mb_bank_shape *shape, struct facts_blocks *blocks,
    struct mb_error *err);
/* Model and blocks together, from the model `from`; is_generic: the always
 * attached block alone. */
MB_MUST_USE mb_status facts_train_both(struct facts *f, const char *from,
    const struct mb_bank_shape *shape, bool is_generic, const char *name,
    struct facts_blocks *blocks, struct facts_score *out, struct mb_error *err);
/* Nodes of the late path. */
struct route facts_late_route(const struct facts *f);

/* ---- judging ---- */

/* Questions and held-out text through the model `name` as it is served. */
MB_MUST_USE mb_status facts_judge(struct facts *f, const char *name,
    const struct facts_attached *attached, struct facts_score *out,
    struct mb_error *err);
/* The late questions: how many of them are answered. */
MB_MUST_USE mb_status facts_judge_late(struct facts *f, const char *name,
    const struct facts_blocks *blocks, uint64_t *n_right, struct mb_error *err);
/* Are logits with fresh blocks those without, to the bit? */
MB_MUST_USE mb_status facts_judge_fresh(struct facts *f, const char *name,
    const struct mb_bank_shape *shape, bool *is_equal, struct mb_error *err);

#endif
