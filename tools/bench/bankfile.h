/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/bankfile.h - a memory bank with random weights in a store of its
 * own, to be fetched from.
 *
 * All blocks of a level have the same bytes: a fetch looks at nothing but their
 * headers.
 * Threads: the main thread, beside the store's own. */
#ifndef BENCH_BANKFILE_H
#define BENCH_BANKFILE_H

#include "mb_bank.h"
#include "mb_banks.h"
#include "tool.h"

struct bankfile {
    char folder[TOOL_MAX_FOLDER]; /* temporary: goes with the bank */
    struct mb_store *store;
    struct mb_tree *tree;
    struct mb_bank_shape shape;
    mb_bank_type type;
    uint32_t bank;
    uint64_t n_blocks;
    uint64_t bytes; /* of all blocks */
};

/* One block of each level, random on the way out, too, as records in `arena`.
 * Errors: NOMEM. */
MB_MUST_USE mb_status bankfile_records(const struct mb_bank_shape *shape,
    mb_bank_type type, uint64_t seed, struct mb_arena *arena,
    struct mb_slice out[MB_BANK_MAX_LEVELS], struct mb_error *err);

/* Make a store with a bank over a tree of fan_out children a node. *b is to be
 * ended in any case. Errors: those of files and the store. */
MB_MUST_USE mb_status bankfile_init(struct bankfile *b,
    const struct mb_bank_shape *shape, uint32_t fan_out, mb_bank_type type,
    uint64_t seed, struct mb_error *err);
void bankfile_fini(struct bankfile *b);

/* Nodes that a random text would route to, from below the root, into out;
 * returns how many. */
size_t bankfile_draw(const struct bankfile *b, struct mb_rng *rng,
    uint32_t out[MB_BANKS_MAX_LEVELS]);
/* A path's blocks, looked up and viewed as the daemon does it for each pass.
 * Errors: those of the store. */
MB_MUST_USE mb_status bankfile_fetch(const struct bankfile *b,
    struct mb_snapshot *snap, const uint32_t *nodes, size_t n,
    struct mb_bank_path *out, struct mb_error *err);

#endif
