/* SPDX-License-Identifier: Apache-2.0
 * store/op_generation.c - operations that build, switch and purge generations
 * of the dense index. Their bodies are in dense.c; here are the copies that an
 * operation needs to outlive its caller.
 * Threads: as for all operations, see op.h. */
#include <string.h>

#include "op.h"

/* Rows erased by one purge: a few milliseconds. */
#define PURGE_ROWS 4096

/* One struct for all six steps; each uses its part. */
struct op_generation {
    struct mb_op base;
    struct op_name name;
    uint32_t generation;
    size_t dim;
    /* model */
    uint8_t *embedding;
    size_t embedding_size;
    struct mb_tree *tree;
    /* add */
    mb_segno *segnos;
    float *vectors;
    uint32_t *leaf;
    size_t n;
    /* tune */
    struct mb_probing probing;
    /* switch */
    mb_segno complete_to;
    uint64_t fitted_segments;
    /* results */
    uint32_t begun;
    bool done;
};

static void
generation_free(struct mb_op *base)
{
    struct op_generation *op = (struct op_generation *)base;
    mb_free(op->embedding);
    mb_tree_free(op->tree);
    mb_free(op->segnos);
    mb_free(op->vectors);
    mb_free(op->leaf);
    mb_free(op);
}

static mb_status
no_memory(struct op_generation *op, struct mb_error *err)
{
    if (op != NULL)
        mb_op_free(&op->base);
    return mb_error_set(err, MB_ERR_NOMEM, "generation: out of memory");
}

static mb_status
generation_new(const struct op_class *cls, struct mb_slice collection,
    uint32_t generation, struct op_generation **out, struct mb_error *err)
{
    struct op_generation *op = op_new(cls, sizeof(*op));
    if (op == NULL)
        return no_memory(NULL, err);
    mb_status st = op_name_set(&op->name, collection, err);
    if (st != MB_OK) {
        mb_op_free(&op->base);
        return st;
    }
    op->generation = generation;
    *out = op;
    return MB_OK;
}

/* Copy of count things of size bytes. */
static void *
copy_of(const void *data, size_t count, size_t size)
{
    size_t bytes;
    if (!mb_size_mul(count, size, &bytes))
        return NULL;
    void *copy = mb_alloc(bytes + 1);
    if (copy != NULL && bytes > 0)
        memcpy(copy, data, bytes);
    return copy;
}

static mb_status
find(const struct op_generation *op, struct wtxn *w, struct wcoll **wc,
    struct mb_error *err)
{
    return wtxn_collection(w, op_name_get(&op->name), wc, err);
}

/* What a body of dense.c gave: those that refuse have written nothing. */
static mb_status
refused_or_changed(struct wtxn *w, mb_status st)
{
    switch (st) {
    case MB_ERR_NOT_FOUND:
    case MB_ERR_STALE:
    case MB_ERR_MISMATCH:
    case MB_ERR_BAD_ARG:
    case MB_ERR_EXISTS:
        break;
    default:
        w->changed = true;
    }
    return st;
}

/* ---- begin ---- */

static mb_status
begin_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_generation *op = (struct op_generation *)base;
    struct wcoll *wc;
    mb_status st = find(op, w, &wc, err);
    if (st != MB_OK)
        return st;
    return refused_or_changed(
        w, dense_generation_begin(w, wc, &op->begun, err));
}

mb_status
mb_op_generation_begin_new(
    struct mb_slice collection, struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {
        "generation_begin", begin_body, generation_free};
    struct op_generation *op = NULL;
    mb_status st = generation_new(&cls, collection, 0, &op, err);
    if (st == MB_OK)
        *out = &op->base;
    return st;
}

uint32_t
mb_op_generation_result(const struct mb_op *op)
{
    return ((const struct op_generation *)op)->begun;
}

/* ---- model ---- */

static mb_status
model_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_generation *op = (struct op_generation *)base;
    struct wcoll *wc;
    mb_status st = find(op, w, &wc, err);
    if (st != MB_OK)
        return st;
    return refused_or_changed(
        w, dense_generation_model(w, wc, op->generation, op->dim,
               mb_slice_of(op->embedding, op->embedding_size), op->tree, err));
}

mb_status
mb_op_generation_model_new(struct mb_slice collection, uint32_t generation,
    size_t dim, struct mb_slice embedding, const struct mb_tree *tree,
    struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {
        "generation_model", model_body, generation_free};
    struct op_generation *op = NULL;
    mb_status st = generation_new(&cls, collection, generation, &op, err);
    if (st != MB_OK)
        return st;
    op->dim = dim;
    op->embedding_size = embedding.size;
    op->embedding = copy_of(embedding.data, embedding.size, 1);
    if (op->embedding == NULL ||
        (tree != NULL && mb_tree_copy(tree, &op->tree) != MB_OK))
        return no_memory(op, err);
    op->base.bytes = embedding.size;
    *out = &op->base;
    return MB_OK;
}

/* ---- add ---- */

static mb_status
add_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_generation *op = (struct op_generation *)base;
    struct wcoll *wc;
    mb_status st = find(op, w, &wc, err);
    if (st != MB_OK)
        return st;
    return refused_or_changed(
        w, dense_generation_add(w, wc, op->generation, op->dim, op->segnos,
               op->vectors, op->leaf, op->n, err));
}

mb_status
mb_op_generation_add_new(struct mb_slice collection, uint32_t generation,
    size_t dim, const mb_segno *segnos, const float *vectors,
    const uint32_t *leaf, size_t n, struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {
        "generation_add", add_body, generation_free};
    struct op_generation *op = NULL;
    size_t n_floats;
    mb_status st = generation_new(&cls, collection, generation, &op, err);
    if (st != MB_OK)
        return st;
    if (!mb_size_mul(n, dim, &n_floats))
        return no_memory(op, err);
    op->dim = dim;
    op->n = n;
    op->segnos = copy_of(segnos, n, sizeof(*segnos));
    op->vectors = copy_of(vectors, n_floats, sizeof(*vectors));
    if (leaf != NULL)
        op->leaf = copy_of(leaf, n, sizeof(*leaf));
    if (op->segnos == NULL || op->vectors == NULL ||
        (leaf != NULL && op->leaf == NULL))
        return no_memory(op, err);
    op->base.bytes = n_floats * 4;
    *out = &op->base;
    return MB_OK;
}

/* ---- tune ---- */

static mb_status
tune_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_generation *op = (struct op_generation *)base;
    struct wcoll *wc;
    mb_status st = find(op, w, &wc, err);
    if (st != MB_OK)
        return st;
    return refused_or_changed(
        w, dense_generation_tune(w, wc, op->generation, &op->probing, err));
}

mb_status
mb_op_generation_tune_new(struct mb_slice collection, uint32_t generation,
    const struct mb_probing *probing, struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {
        "generation_tune", tune_body, generation_free};
    struct op_generation *op = NULL;
    mb_status st = generation_new(&cls, collection, generation, &op, err);
    if (st != MB_OK)
        return st;
    op->probing = *probing;
    *out = &op->base;
    return MB_OK;
}

/* ---- switch ---- */

static mb_status
switch_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_generation *op = (struct op_generation *)base;
    struct wcoll *wc;
    mb_status st = find(op, w, &wc, err);
    if (st != MB_OK)
        return st;
    return refused_or_changed(
        w, dense_generation_switch(w, wc, op->generation, op->complete_to,
               op->fitted_segments, err));
}

mb_status
mb_op_generation_switch_new(struct mb_slice collection, uint32_t generation,
    mb_segno complete_to, uint64_t fitted_segments, struct mb_op **out,
    struct mb_error *err)
{
    static const struct op_class cls = {
        "generation_switch", switch_body, generation_free};
    struct op_generation *op = NULL;
    mb_status st = generation_new(&cls, collection, generation, &op, err);
    if (st != MB_OK)
        return st;
    op->complete_to = complete_to;
    op->fitted_segments = fitted_segments;
    *out = &op->base;
    return MB_OK;
}

/* ---- purge ---- */

static mb_status
purge_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_generation *op = (struct op_generation *)base;
    struct wcoll *wc;
    op->done = false;
    mb_status st = find(op, w, &wc, err);
    if (st != MB_OK)
        return st;
    // Vectors and term vectors come from users' texts: they are scrubbed too.
    w->erased = true;
    return refused_or_changed(w, dense_generation_purge(w, wc, op->generation,
                                     PURGE_ROWS, &op->done, err));
}

mb_status
mb_op_generation_purge_new(struct mb_slice collection, uint32_t generation,
    struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {
        "generation_purge", purge_body, generation_free};
    struct op_generation *op = NULL;
    mb_status st = generation_new(&cls, collection, generation, &op, err);
    if (st == MB_OK)
        *out = &op->base;
    return st;
}

bool
mb_op_generation_purge_is_done(const struct mb_op *op)
{
    return ((const struct op_generation *)op)->done;
}
