/* SPDX-License-Identifier: Apache-2.0
 * tools/dump/treeview.h - a collection's cluster tree in memory, with labels.
 *
 * Bags of terms are filled from a sample of each leaf's segments and summed
 * from the leaves up, so that a node's label stands for all below it.
 * Threads: one. */
#ifndef DUMP_TREEVIEW_H
#define DUMP_TREEVIEW_H

#include "dump.h"
#include "labels.h"

#define TREE_LABELS 8

struct tree {
    struct dump *d;
    const struct mb_collection *coll;
    struct mb_generation_info info;
    struct mb_node *nodes; /* (n), by number; children behind their parents */
    struct bag **bags;     /* (n) */
    size_t n;
    struct labels *labels;
};

/* The served generation's tree. per_leaf: segments sampled for the labels.
 * Errors: NOT_FOUND (no generation is served yet), CORRUPT, NOMEM. */
MB_MUST_USE mb_status tree_open(struct dump *d,
    const struct mb_collection *coll, size_t per_leaf, struct tree **out,
    struct mb_error *err);
void tree_close(struct tree *t);
/* Labels of a node; returns how many. */
size_t tree_labels(
    const struct tree *t, uint32_t node, struct label out[TREE_LABELS]);
/* At most max segments of a leaf, spread evenly over it.
 * Errors: CORRUPT, NOMEM. */
MB_MUST_USE mb_status leaf_sample(const struct tree *t, uint32_t leaf,
    size_t max, mb_segno *out, size_t *n, struct mb_error *err);

#endif
