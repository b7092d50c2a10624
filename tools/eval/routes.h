/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/routes.h - which nodes texts of a made-up world lead to.
 *
 * By the product: the documents are put into a daemon of its own, which fits
 * its embedding and builds a bank over them; documents go where the bank's
 * training would take them, questions where bank.path says. Or by the topics
 * that the documents were made from, which no program can know: the oracle.
 * Node 0 is the root; all others have a level.
 * Threads: the main thread. */
#ifndef EVAL_ROUTES_H
#define EVAL_ROUTES_H

#include "own.h"
#include "world.h"

/* Nodes from below the root; UINT32_MAX: no path. */
struct route {
    uint32_t node[WORLD_LEVELS];
};

struct routes {
    uint32_t n_nodes;
    size_t n_documents;
    size_t n_prompts;
    size_t n_held_out;
    struct route *documents; /* (n_documents) stream `stream` of the world */
    struct route *prompts;   /* (n_prompts) entities of the world */
    struct route *held_out;  /* (n_held_out) of the stream held out */
};

struct routes_options {
    const struct world *world;
    uint32_t fan_out;
    uint64_t stream;
    size_t n_documents;
    uint64_t held_out_stream;
    size_t n_held_out;
    uint32_t dim; /* of the embedding; 0: the product's default */
    bool is_oracle;
};

/* *out is to be ended in any case. Errors: those of the daemon and the store,
 * CORRUPT (a document has no vector), CANCELLED. */
MB_MUST_USE mb_status routes_make(
    const struct routes_options *o, struct routes *out, struct mb_error *err);
void routes_fini(struct routes *r);

#endif
