/* SPDX-License-Identifier: Apache-2.0
 * store/tree.c - the cluster tree: its shape, its bytes, the way down.
 *
 * tree_fit.c grows it. Here a tree is put together, from a fit or from node
 * records; vectors are routed through it; records are made of it. What comes
 * from disk is checked before use: a tree that tree_finish took has no loop,
 * every node but the root has the parent that claims it, and descents end.
 * Threads: see tree.h. */
#include "tree.h"

#include <string.h>

#include "internal.h"
#include "mb_banks.h"
#include "record.h"
#include "tree_fit.h"
#include "vindex.h"

/* Fields of a node record before the centroid. */
#define RECORD_HEAD 36

/* ---- making ---- */

mb_status
tree_new(size_t dim, uint32_t n_nodes, struct mb_tree **out)
{
    struct mb_tree *tree = mb_calloc(1, sizeof(*tree));

    if (tree == NULL) {
        return MB_ERR_NOMEM;
    }
    tree->dim = dim;
    tree->n_nodes = n_nodes;
    tree->nodes = mb_calloc(n_nodes, sizeof(*tree->nodes));
    tree->centroids = mb_calloc((size_t)n_nodes * dim, sizeof(float));
    if (tree->nodes == NULL || tree->centroids == NULL) {
        mb_tree_free(tree);
        return MB_ERR_NOMEM;
    }
    *out = tree;
    return MB_OK;
}

void
mb_tree_free(struct mb_tree *tree)
{
    if (tree == NULL) {
        return;
    }
    mb_free(tree->leaf_centroids);
    mb_free(tree->leaf_node);
    mb_free(tree->centroids);
    mb_free(tree->nodes);
    mb_free(tree);
}

mb_status
tree_flat_new(size_t dim, struct mb_tree **out)
{
    struct mb_tree *tree;
    mb_status st = tree_new(dim, 1, &tree);

    if (st != MB_OK) {
        return st;
    }
    tree->nodes[0].parent = TREE_NO_NODE;
    tree->nodes[0].share = 1.0f;
    st = tree_finish(tree, NULL);
    if (st != MB_OK) {
        mb_tree_free(tree);
        return st;
    }
    *out = tree;
    return MB_OK;
}

mb_status
mb_tree_copy(const struct mb_tree *tree, struct mb_tree **out)
{
    struct mb_tree *copy;
    mb_status st = tree_new(tree->dim, tree->n_nodes, &copy);

    if (st != MB_OK) {
        return st;
    }
    memcpy(copy->nodes, tree->nodes, tree->n_nodes * sizeof(*tree->nodes));
    memcpy(copy->centroids, tree->centroids,
        (size_t)tree->n_nodes * tree->dim * sizeof(float));
    st = tree_finish(copy, NULL);
    if (st != MB_OK) {
        mb_tree_free(copy);
        return st;
    }
    *out = copy;
    return MB_OK;
}

/* Children follow their parents, in the order of these, without gaps: then
 * every node but the root has exactly one parent and there is no loop. */
static mb_status
check_shape(const struct mb_tree *tree, struct mb_error *err)
{
    uint64_t next = 1; // the node that the next parent's children start at

    for (uint32_t i = 0; i < tree->n_nodes; i++) {
        const struct tree_node *node = &tree->nodes[i];

        if (i == 0 ? node->parent != TREE_NO_NODE || node->level != 0
                   : node->parent >= i) {
            return mb_error_set(
                err, MB_ERR_CORRUPT, "tree node %u: bad parent", i);
        }
        if (node->n_children == 0) {
            continue;
        }
        if (node->first_child != next || next <= i ||
            node->n_children > tree->n_nodes - next) {
            return mb_error_set(
                err, MB_ERR_CORRUPT, "tree node %u: bad children", i);
        }
        for (uint32_t c = 0; c < node->n_children; c++) {
            const struct tree_node *child = &tree->nodes[next + c];

            if (child->parent != i || child->level != node->level + 1) {
                return mb_error_set(
                    err, MB_ERR_CORRUPT, "tree node %u: not its child", i);
            }
        }
        next += node->n_children;
    }
    if (next != tree->n_nodes) {
        return mb_error_set(err, MB_ERR_CORRUPT,
            "tree: %u nodes, %llu in place", tree->n_nodes,
            (unsigned long long)next);
    }
    return MB_OK;
}

/* Leaf counts from the last node up, then first leaves from the root down. */
static void
number_leaves(struct mb_tree *tree)
{
    for (uint32_t i = 0; i < tree->n_nodes; i++) {
        tree->nodes[i].n_leaves = tree->nodes[i].n_children == 0 ? 1 : 0;
        tree->nodes[i].first_leaf = 0;
    }
    for (uint32_t i = tree->n_nodes - 1; i > 0; i--) {
        tree->nodes[tree->nodes[i].parent].n_leaves += tree->nodes[i].n_leaves;
    }
    for (uint32_t i = 0; i < tree->n_nodes; i++) {
        const struct tree_node *node = &tree->nodes[i];
        uint32_t first = node->first_leaf;

        for (uint32_t c = 0; c < node->n_children; c++) {
            struct tree_node *child = &tree->nodes[node->first_child + c];

            child->first_leaf = first;
            first += child->n_leaves;
        }
    }
}

mb_status
tree_finish(struct mb_tree *tree, struct mb_error *err)
{
    mb_status st = check_shape(tree, err);

    if (st != MB_OK) {
        return st;
    }
    number_leaves(tree);
    tree->n_leaves = tree->nodes[0].n_leaves;
    tree->depth = tree->nodes[tree->n_nodes - 1].level;
    tree->leaf_node = mb_alloc(tree->n_leaves * sizeof(*tree->leaf_node));
    tree->leaf_centroids =
        mb_alloc((size_t)tree->n_leaves * tree->dim * sizeof(float));
    if (tree->leaf_node == NULL || tree->leaf_centroids == NULL) {
        return mb_error_set(
            err, MB_ERR_NOMEM, "tree of %u nodes", tree->n_nodes);
    }
    for (uint32_t i = 0; i < tree->n_nodes; i++) {
        if (tree->nodes[i].n_children == 0) {
            uint32_t leaf = tree->nodes[i].first_leaf;

            tree->leaf_node[leaf] = i;
            memcpy(tree->leaf_centroids + (size_t)leaf * tree->dim,
                tree->centroids + (size_t)i * tree->dim,
                tree->dim * sizeof(float));
        }
    }
    return MB_OK;
}

size_t
tree_bytes(const struct mb_tree *tree)
{
    return sizeof(*tree) +
           tree->n_nodes * (sizeof(*tree->nodes) + tree->dim * sizeof(float)) +
           tree->n_leaves * (sizeof(uint32_t) + tree->dim * sizeof(float));
}

uint32_t
mb_tree_n_leaves(const struct mb_tree *tree)
{
    return tree->n_leaves;
}

/* ---- routing ---- */

uint32_t
tree_route_one(const struct mb_tree *tree, const struct scan_kernels *kernels,
    const float *vector)
{
    const struct tree_node *node = &tree->nodes[0];

    while (node->n_children > 0) {
        const float *centroids =
            tree->centroids + (size_t)node->first_child * tree->dim;
        uint32_t best = 0;
        float best_score = 0;

        for (uint32_t c = 0; c < node->n_children; c++) {
            float s;

            kernels->dot_f32(
                vector, centroids + c * tree->dim, 1, tree->dim, &s);
            if (c == 0 || s > best_score) {
                best_score = s;
                best = c;
            }
        }
        node = &tree->nodes[node->first_child + best];
    }
    return node->first_leaf;
}

size_t
mb_tree_path(const struct mb_tree *tree, const float *vector,
    struct mb_tree_step *out, size_t max, uint32_t *leaf)
{
    const struct scan_kernels *kernels = scan_best();
    const struct tree_node *node = &tree->nodes[0];
    size_t n = 0;

    while (node->n_children > 0) {
        struct mb_tree_step best = {0};

        for (uint32_t c = 0; c < node->n_children; c++) {
            uint32_t child = node->first_child + c;
            float s;

            kernels->dot_f32(vector,
                tree->centroids + (size_t)child * tree->dim, 1, tree->dim, &s);
            if (c == 0 || s > best.cosine)
                best = (struct mb_tree_step){.node = child, .cosine = s};
        }
        if (n < max)
            out[n++] = best;
        node = &tree->nodes[best.node];
    }
    if (leaf != NULL)
        *leaf = node->first_leaf;
    return n;
}

uint32_t
mb_tree_n_nodes(const struct mb_tree *tree)
{
    return tree->n_nodes;
}

uint32_t
mb_tree_depth(const struct mb_tree *tree)
{
    return tree->depth;
}

void
mb_tree_node(const struct mb_tree *tree, uint32_t i, struct mb_node *out)
{
    const struct tree_node *node = &tree->nodes[i];

    *out = (struct mb_node){
        .node = i,
        .parent = node->parent,
        .level = node->level,
        .first_child = node->first_child,
        .n_children = node->n_children,
        .leaf = node->first_leaf,
    };
}

uint32_t
mb_tree_leaf_node(const struct mb_tree *tree, uint32_t leaf)
{
    return tree->leaf_node[leaf];
}

/* One batch on its way down. */
struct router {
    const struct mb_tree *tree;
    const float *vectors; /* (n, dim) */
    uint32_t *leaf;       /* the result, by vector */
};

mb_status
tree_partition(const float *vectors, size_t dim, uint32_t *order, size_t n,
    const float *centroids, uint32_t k, size_t *count, struct mb_error *err)
{
    enum { BATCH = 4096 };

    size_t batch = n < BATCH ? n : BATCH;
    float *rows = mb_alloc(batch * dim * sizeof(*rows));
    uint32_t *label = mb_alloc(n * sizeof(*label));
    uint32_t *sorted = mb_alloc(n * sizeof(*sorted));
    size_t *next = mb_calloc(k, sizeof(*next));
    mb_status st = MB_OK;

    if (rows == NULL || label == NULL || sorted == NULL || next == NULL) {
        st = mb_error_set(err, MB_ERR_NOMEM, "route %zu vectors", n);
        goto out;
    }
    for (size_t i = 0; st == MB_OK && i < n; i += BATCH) {
        size_t m = n - i < BATCH ? n - i : BATCH;

        for (size_t j = 0; j < m; j++) {
            memcpy(rows + j * dim, vectors + (size_t)order[i + j] * dim,
                dim * sizeof(float));
        }
        st = vindex_assign(centroids, k, rows, m, dim, label + i, err);
    }
    if (st != MB_OK) {
        goto out;
    }
    memset(count, 0, k * sizeof(*count));
    for (size_t i = 0; i < n; i++) {
        count[label[i]]++;
    }
    for (uint32_t c = 1; c < k; c++) {
        next[c] = next[c - 1] + count[c - 1];
    }
    for (size_t i = 0; i < n; i++) {
        sorted[next[label[i]]++] = order[i];
    }
    memcpy(order, sorted, n * sizeof(*order));
out:
    mb_free(next);
    mb_free(sorted);
    mb_free(label);
    mb_free(rows);
    return st;
}

/* All of order[0..n) is at this node: sort it by what is below, down to the
 * leaves. */
static mb_status
route_below(
    const struct router *r, uint32_t node_number, uint32_t *order, size_t n)
{
    const struct tree_node *node = &r->tree->nodes[node_number];
    size_t *count;
    mb_status st;

    if (node->n_children == 0) {
        for (size_t i = 0; i < n; i++) {
            r->leaf[order[i]] = node->first_leaf;
        }
        return MB_OK;
    }
    count = mb_alloc(node->n_children * sizeof(*count));
    if (count == NULL) {
        return MB_ERR_NOMEM;
    }
    st = tree_partition(r->vectors, r->tree->dim, order, n,
        r->tree->centroids + (size_t)node->first_child * r->tree->dim,
        node->n_children, count, NULL);
    for (uint32_t c = 0; st == MB_OK && c < node->n_children; c++) {
        if (count[c] > 0) {
            st = route_below(r, node->first_child + c, order, count[c]);
        }
        order += count[c];
    }
    mb_free(count);
    return st;
}

void
mb_tree_route(
    const struct mb_tree *tree, const float *vectors, size_t n, uint32_t *leaf)
{
    const struct router r = {.tree = tree, .vectors = vectors, .leaf = leaf};
    uint32_t *order = mb_alloc((n > 0 ? n : 1) * sizeof(*order));
    mb_status st = MB_ERR_NOMEM;

    if (order != NULL) {
        for (size_t i = 0; i < n; i++) {
            order[i] = (uint32_t)i;
        }
        st = n > 0 ? route_below(&r, 0, order, n) : MB_OK;
    }
    if (st != MB_OK) { // no memory for batches: slower, but the same way down
        const struct scan_kernels *kernels = scan_best();

        for (size_t i = 0; i < n; i++) {
            leaf[i] = tree_route_one(tree, kernels, vectors + i * tree->dim);
        }
    }
    mb_free(order);
}

/* ---- records ---- */

size_t
tree_record_size(size_t dim)
{
    return RECORD_HEAD + 4 * dim + RECORD_CHECKSUM;
}

void
tree_record_encode(const struct mb_tree *tree, uint32_t node, uint8_t *out)
{
    const struct tree_node *n = &tree->nodes[node];
    const float *centroid = tree->centroids + (size_t)node * tree->dim;

    mb_put_le32(out, n->parent);
    mb_put_le32(out + 4, n->level);
    mb_put_le32(out + 8, n->first_child);
    mb_put_le32(out + 12, n->n_children);
    mb_put_le32(out + 16, n->first_leaf);
    mb_put_le32(out + 20, n->n_leaves);
    mb_put_lef32(out + 24, n->share);
    mb_put_lef32(out + 28, n->mean_norm);
    mb_put_lef32(out + 32, n->spread);
    for (size_t d = 0; d < tree->dim; d++) {
        mb_put_lef32(out + RECORD_HEAD + 4 * d, centroid[d]);
    }
    record_seal(out, tree_record_size(tree->dim));
}

mb_status
tree_record_decode(
    struct mb_slice record, size_t dim, struct tree_node *node, float *centroid)
{
    const uint8_t *p = record.data;

    if (record.size != tree_record_size(dim) || !record_is_sound(record)) {
        return MB_ERR_CORRUPT;
    }
    node->parent = mb_get_le32(p);
    node->level = mb_get_le32(p + 4);
    node->first_child = mb_get_le32(p + 8);
    node->n_children = mb_get_le32(p + 12);
    node->first_leaf = mb_get_le32(p + 16);
    node->n_leaves = mb_get_le32(p + 20);
    node->share = mb_get_lef32(p + 24);
    node->mean_norm = mb_get_lef32(p + 28);
    node->spread = mb_get_lef32(p + 32);
    for (size_t d = 0; centroid != NULL && d < dim; d++) {
        centroid[d] = mb_get_lef32(p + RECORD_HEAD + 4 * d);
    }
    return MB_OK;
}
