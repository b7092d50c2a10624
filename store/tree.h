/* SPDX-License-Identifier: Apache-2.0
 * store/tree.h - private to the store: the cluster tree in memory.
 *
 * Nodes are numbered from the root (0) level by level, the children of a node
 * in a row; leaves are numbered from left to right, so that the leaves below
 * any node are a range too. Centroids are unit vectors.
 * Threads: a finished tree never changes; share it freely. */
#ifndef STORE_TREE_H
#define STORE_TREE_H

#include "mb_store.h"
#include "scan.h"

#define TREE_NO_NODE   UINT32_MAX
#define TREE_MAX_NODES (1u << 24)

struct tree_node {
    uint32_t parent; /* TREE_NO_NODE for the root */
    uint32_t level;
    uint32_t first_child;
    uint32_t n_children; /* 0: a leaf */
    uint32_t first_leaf; /* leaves below it: [first_leaf, + n_leaves) */
    uint32_t n_leaves;
    float share;     /* part of the sample that was below it */
    float mean_norm; /* length of the mean of that part: 1 if all are alike */
    float spread;    /* leaves: variance of the cosine with a query like them */
};

struct mb_tree {
    size_t dim;
    uint32_t n_nodes;
    uint32_t n_leaves;
    uint32_t depth; /* largest level */
    struct tree_node *nodes;
    float *centroids;      /* (n_nodes, dim) */
    uint32_t *leaf_node;   /* (n_leaves) */
    float *leaf_centroids; /* (n_leaves, dim) */
};

/* One leaf that takes everything. Errors: NOMEM. */
MB_MUST_USE mb_status tree_flat_new(size_t dim, struct mb_tree **out);

/* Room for n_nodes nodes, cleared; fill nodes (but first_leaf and n_leaves)
 * and centroids, then call tree_finish. Errors: NOMEM. */
MB_MUST_USE mb_status tree_new(
    size_t dim, uint32_t n_nodes, struct mb_tree **out);
/* Check that the nodes make a tree, number its leaves, gather their centroids.
 * Errors: CORRUPT (names the node), NOMEM. */
MB_MUST_USE mb_status tree_finish(struct mb_tree *tree, struct mb_error *err);

size_t tree_bytes(const struct mb_tree *tree);

/* Leaf of one unit vector, by greedy descent. Never fails. */
uint32_t tree_route_one(const struct mb_tree *tree,
    const struct scan_kernels *kernels, const float *vector);

/* Node record: bytes of one node and its centroid, with checksum. */
size_t tree_record_size(size_t dim);
void tree_record_encode(
    const struct mb_tree *tree, uint32_t node, uint8_t *out);
/* centroid (dim) may be NULL. Errors: CORRUPT. */
MB_MUST_USE mb_status tree_record_decode(struct mb_slice record, size_t dim,
    struct tree_node *node, float *centroid);

#endif
