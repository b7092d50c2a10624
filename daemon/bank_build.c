/* SPDX-License-Identifier: Apache-2.0
 * daemon/bank_build.c - the tree of a memory bank, over what a collection has.
 *
 * The tree is fitted by the code that fits the search's (mb_tree_fit), with all
 * leaves on one level: a path then has a block of each size. Depth and fan-out
 * are what the number of segments needs, so that a leaf has enough text to be
 * trained on. Each node is described by the words that its segments have more
 * often than others.
 * Threads: the caller's. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bank_space.h"
#include "mb_banker.h"

#define SAMPLE        50000 /* segments that the tree is fitted on */
#define BATCH         1024
#define MAX_MODEL     ((size_t)4 << 30)
#define N_WORDS       6   /* that describe a node */
#define MAX_NODE_SEGS 400 /* that they are taken from */
#define DEFAULT_LEAF  32
#define DEFAULT_SEED  20261124u

/* One build under way. */
struct build {
    struct mb_store *store;
    const char *name;
    struct mb_banker_settings set;
    mb_progress_fn progress;
    void *arg;
    struct mb_snapshot *snap;
    struct mb_collection coll;
    struct bank_space space;
    struct mb_buffer embedding;
    struct mb_tree *tree;
    float *rows;     /* (n, dim) sample */
    mb_segno *segno; /* (n) */
    size_t n;
    char (*terms)[MB_BANKS_MAX_TERMS + 1]; /* (n_nodes) */
};

static mb_status
step(struct build *b, double part, struct mb_error *err)
{
    if (b->progress != NULL && b->progress(b->arg, part))
        return mb_error_set(err, MB_ERR_CANCELLED, "cancelled");
    return MB_OK;
}

/* ---- the embedding ---- */

static mb_status
open_space(struct build *b, struct mb_error *err)
{
    struct mb_arena *arena;
    struct mb_slice bytes;
    mb_status st;

    if (b->coll.generation == 0)
        return mb_error_set(err, MB_ERR_NOT_FOUND,
            "collection %s has no embedding yet: a bank is built over one",
            b->name);
    b->space.dim = b->coll.dim;
    if (b->coll.settings.embedding != MB_EMBED_LSA)
        return MB_OK;
    arena = mb_arena_new(MAX_MODEL);
    if (arena == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "embedding");
    st = mb_generation_embedding(
        b->snap, &b->coll, b->coll.generation, arena, &bytes, err);
    if (st == MB_OK)
        st = mb_buffer_append(&b->embedding, bytes.data, bytes.size);
    if (st == MB_OK)
        st = mb_lsa_open(bytes, &b->space.lsa, err);
    mb_arena_free(arena);
    return st;
}

/* Vectors of segments, evenly over all of them. */
static mb_status
draw_sample(struct build *b, struct mb_error *err)
{
    uint64_t every = b->coll.n_segments / SAMPLE + 1;
    struct mb_segment *segs = mb_calloc(BATCH, sizeof *segs);
    size_t room = (size_t)(b->coll.n_segments / every) + 1;
    mb_segno at = 0;
    uint64_t i = 0;
    size_t n_segs = 1;
    mb_status st = MB_OK;

    b->rows = mb_calloc(room, b->space.dim * sizeof *b->rows);
    b->segno = mb_calloc(room, sizeof *b->segno);
    if (segs == NULL || b->rows == NULL || b->segno == NULL)
        st = mb_error_set(err, MB_ERR_NOMEM, "%zu vectors", room);
    while (st == MB_OK && n_segs > 0) {
        st = mb_segment_scan(b->snap, &b->coll, at, BATCH, segs, &n_segs, err);
        for (size_t s = 0; st == MB_OK && s < n_segs; s++, i++) {
            at = segs[s].segno + 1;
            if (i % every != 0 || b->n == room)
                continue;
            st = bank_space_vector(&b->space, b->snap, &b->coll, &segs[s],
                b->rows + b->n * b->space.dim, err);
            if (st == MB_OK)
                b->segno[b->n++] = segs[s].segno;
            else if (st == MB_ERR_NOT_FOUND)
                st = MB_OK;
        }
    }
    mb_free(segs);
    if (st == MB_OK && b->n < 2)
        st = mb_error_set(err, MB_ERR_BAD_ARG,
            "collection %s has %zu vectors: too few for a bank", b->name, b->n);
    return st;
}

/* ---- the tree ---- */

/* Depth and fan-out that give leaves of about set.leaf segments. */
static void
choose_shape(struct build *b)
{
    struct mb_banker_settings *s = &b->set;
    double leaves;

    if (s->leaf == 0)
        s->leaf = DEFAULT_LEAF;
    leaves = (double)b->coll.n_segments / s->leaf;
    if (s->levels == 0)
        s->levels = leaves >= 27 ? 3 : leaves >= 4 ? 2 : 1;
    if (s->fan_out == 0) {
        double k = floor(pow(leaves, 1.0 / s->levels) + 0.5);

        s->fan_out = k < 2 ? 2 : k > 16 ? 16 : (uint32_t)k;
    }
}

static mb_status
fit(struct build *b, struct mb_error *err)
{
    struct mb_tree_options opt = {
        .fanout = b->set.fan_out,
        .max_depth = b->set.levels,
        .n_total = b->coll.n_segments,
        .flat_below = 1,
        .even_depth = true,
        .seed = b->set.seed,
    };
    double leaves = pow(b->set.fan_out, b->set.levels);
    double target = (double)b->coll.n_segments / leaves / 2;

    // The fan-out bounds the tree; a leaf is not cut below half its share.
    opt.leaf_target = target < 2 ? 2 : (uint32_t)target;
    return mb_tree_fit(b->rows, b->n, b->space.dim, &opt, &b->tree, err);
}

/* ---- words for nodes ---- */

struct member {
    uint32_t node;
    uint32_t row;
};

struct word {
    uint32_t id;
    double score;
};

static int
compare_member(const void *a, const void *b)
{
    const struct member *x = a;
    const struct member *y = b;

    if (x->node != y->node)
        return x->node < y->node ? -1 : 1;
    return x->row < y->row ? -1 : x->row > y->row;
}

static int
compare_id(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a;
    uint32_t y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

/* Words of the best score into terms. */
static mb_status
write_words(struct build *b, const struct word *best, size_t n, char *out,
    struct mb_error *err)
{
    size_t size = 0;

    for (size_t i = 0; i < n; i++) {
        struct mb_slice word;
        uint32_t df;
        mb_status st =
            mb_term_get(b->snap, &b->coll, best[i].id, &word, &df, err);

        if (st == MB_ERR_NOT_FOUND)
            continue;
        if (st != MB_OK)
            return st;
        if (size + word.size + 1 > MB_BANKS_MAX_TERMS)
            break;
        if (size > 0)
            out[size++] = ' ';
        memcpy(out + size, word.data, word.size);
        size += word.size;
    }
    out[size] = '\0';
    return MB_OK;
}

/* Words that the segments of one node have more often than others. */
static mb_status
describe(struct build *b, const struct member *m, size_t n,
    struct mb_buffer *ids, struct mb_error *err)
{
    struct word best[N_WORDS] = {{0}};
    size_t n_best = 0;
    size_t stride = n / MAX_NODE_SEGS + 1;
    double n_read = 0;
    mb_status st = MB_OK;

    mb_buffer_clear(ids);
    for (size_t i = 0; st == MB_OK && i < n; i += stride, n_read++) {
        struct mb_segment seg;
        uint32_t id;
        uint32_t tf;
        size_t pos = 0;

        st = mb_segment_get(b->snap, &b->coll, b->segno[m[i].row], &seg, err);
        while (st == MB_OK && mb_forward_next(seg.forward, &pos, &id, &tf)) {
            st = mb_buffer_append(ids, &id, sizeof id);
        }
    }
    if (st != MB_OK)
        return st;
    uint32_t *list = (uint32_t *)(void *)ids->data;
    size_t n_ids = ids->size / sizeof *list;
    if (n_ids > 0)
        qsort(list, n_ids, sizeof *list, compare_id);
    for (size_t i = 0; i < n_ids;) {
        size_t end = i;
        uint32_t df;
        struct mb_slice word;
        struct word w;

        while (end < n_ids && list[end] == list[i]) {
            end++;
        }
        w = (struct word){.id = list[i], .score = (double)(end - i) / n_read};
        i = end;
        if (w.score < 0.1 && n > 10)
            continue;
        if (mb_term_get(b->snap, &b->coll, w.id, &word, &df, NULL) != MB_OK ||
            word.size < 3)
            continue;
        w.score *= log((double)b->coll.n_segments / (df > 0 ? df : 1));
        for (size_t k = 0; k < N_WORDS; k++) {
            if (k == n_best || w.score > best[k].score) {
                size_t last = n_best < N_WORDS ? n_best++ : N_WORDS - 1;

                memmove(&best[k + 1], &best[k], (last - k) * sizeof best[0]);
                best[k] = w;
                break;
            }
        }
    }
    return write_words(b, best, n_best, b->terms[m[0].node], err);
}

static mb_status
describe_all(struct build *b, struct mb_error *err)
{
    uint32_t n_nodes = mb_tree_n_nodes(b->tree);
    uint32_t depth = mb_tree_depth(b->tree);
    struct member *m = mb_calloc(b->n * depth, sizeof *m);
    uint32_t *leaf = mb_calloc(b->n, sizeof *leaf);
    struct mb_buffer ids;
    size_t n = 0;
    mb_status st = MB_OK;

    b->terms = mb_calloc(n_nodes, sizeof *b->terms);
    mb_buffer_init(&ids, (size_t)1 << 30);
    if (m == NULL || leaf == NULL || b->terms == NULL)
        st = mb_error_set(err, MB_ERR_NOMEM, "words of %u nodes", n_nodes);
    if (st == MB_OK)
        mb_tree_route(b->tree, b->rows, b->n, leaf);
    for (size_t i = 0; st == MB_OK && i < b->n; i++) {
        uint32_t node = mb_tree_leaf_node(b->tree, leaf[i]);

        while (node != 0) {
            struct mb_node info;

            m[n++] = (struct member){.node = node, .row = (uint32_t)i};
            mb_tree_node(b->tree, node, &info);
            node = info.parent;
        }
    }
    if (st == MB_OK)
        qsort(m, n, sizeof *m, compare_member);
    for (size_t i = 0; st == MB_OK && i < n;) {
        size_t end = i;

        while (end < n && m[end].node == m[i].node) {
            end++;
        }
        st = describe(b, m + i, end - i, &ids, err);
        i = end;
    }
    mb_buffer_fini(&ids);
    mb_free(leaf);
    mb_free(m);
    return st;
}

/* ---- the bank ---- */

void
mb_banker_shape(const struct mb_banks *bank, struct mb_bank_shape *out)
{
    *out = (struct mb_bank_shape){
        .d_model = bank->d_model,
        .first_layer = bank->first_layer,
        .n_layers = bank->n_layers,
        .n_levels = bank->n_levels,
    };
    for (size_t i = 0; i < bank->n_levels && i < MB_BANK_MAX_LEVELS; i++) {
        out->rows[i] = bank->rows[i];
    }
}

static mb_status
make_record(const struct build *b, const struct mb_banker_model *model,
    struct mb_banks *out, struct mb_error *err)
{
    const struct mb_banker_settings *s = &b->set;
    struct mb_bank_budget budget = {
        .d_model = model->info->d_model,
        .n_layers = model->info->n_layers,
        .n_params = model->info->n_params,
        .fan_out = s->fan_out,
        .n_levels = s->levels,
        .fetch = s->fetch,
        .first_layer = s->first_layer,
    };
    struct mb_bank_shape shape;
    mb_status st = mb_bank_shape_make(&budget, &shape, err);

    if (st != MB_OK)
        return st;
    *out = (struct mb_banks){
        .embedding = b->coll.settings.embedding,
        .fan_out = s->fan_out,
        .fitted_segments = b->coll.n_segments,
        .seed = s->seed,
        .d_model = (uint32_t)shape.d_model,
        .first_layer = (uint32_t)shape.first_layer,
        .n_layers = (uint32_t)shape.n_layers,
        .served_type = s->served_type > 0 ? s->served_type - 1 : MB_BANK_BF16,
        .epochs = s->epochs > 0 ? s->epochs : 3,
        .window = s->window > 0 ? s->window : 320,
        .hold_out = s->hold_out > 0 ? s->hold_out : 16,
    };
    memcpy(out->anchor, model->fingerprint, sizeof out->anchor);
    (void)snprintf(out->model, sizeof out->model, "%s", model->name);
    for (size_t i = 0; i < shape.n_levels && i < MB_BANKS_MAX_LEVELS; i++) {
        out->rows[i] = (uint32_t)shape.rows[i];
    }
    return MB_OK;
}

static mb_status
store_bank(struct build *b, const struct mb_banks *record, uint32_t *number,
    struct mb_error *err)
{
    uint32_t n_nodes = mb_tree_n_nodes(b->tree);
    const char **terms = mb_calloc(n_nodes, sizeof *terms);
    struct mb_op *op = NULL;
    mb_status st;

    if (terms == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "%u nodes", n_nodes);
    for (uint32_t i = 0; i < n_nodes; i++) {
        terms[i] = b->terms[i];
    }
    st = mb_op_banks_build_new(mb_slice_cstr(b->name), record,
        mb_buffer_slice(&b->embedding), b->tree, terms, &op, err);
    if (st == MB_OK)
        st = mb_store_apply(b->store, op, err);
    if (st == MB_OK)
        *number = mb_op_banks_build_result(op);
    mb_op_free(op);
    mb_free((void *)terms);
    return st;
}

static mb_status
prepare(struct build *b, struct mb_error *err)
{
    mb_status st = mb_snapshot_begin(b->store, &b->snap, err);

    if (st == MB_OK)
        st = mb_collection_get(b->snap, mb_slice_cstr(b->name), &b->coll, err);
    if (st == MB_OK)
        st = open_space(b, err);
    if (st == MB_OK)
        st = step(b, 0.05, err);
    if (st == MB_OK)
        st = draw_sample(b, err);
    if (st == MB_OK)
        st = step(b, 0.3, err);
    if (st != MB_OK)
        return st;
    choose_shape(b);
    st = fit(b, err);
    if (st == MB_OK)
        st = step(b, 0.7, err);
    return st == MB_OK ? describe_all(b, err) : st;
}

mb_status
mb_banker_build(struct mb_store *store, const char *collection,
    const struct mb_banker_settings *settings,
    const struct mb_banker_model *model, mb_progress_fn progress, void *arg,
    uint32_t *bank, struct mb_error *err)
{
    struct build b = {
        .store = store,
        .name = collection,
        .set = *settings,
        .progress = progress,
        .arg = arg,
    };
    struct mb_banks record;
    mb_status st;

    if (b.set.seed == 0)
        b.set.seed = DEFAULT_SEED;
    if (b.set.levels > MB_BANKS_MAX_LEVELS || b.set.fan_out > 1024 ||
        b.set.fan_out == 1 || b.set.served_type > MB_BANK_Q8_0 + 1)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "a bank has 1 to %d levels and a fan-out of 2 to 1024",
            MB_BANKS_MAX_LEVELS);
    mb_buffer_init(&b.embedding, MAX_MODEL);
    st = prepare(&b, err);
    mb_snapshot_end(b.snap);
    if (st == MB_OK)
        st = make_record(&b, model, &record, err);
    if (st == MB_OK)
        st = store_bank(&b, &record, bank, err);
    bank_space_fini(&b.space);
    mb_buffer_fini(&b.embedding);
    mb_tree_free(b.tree);
    mb_free(b.rows);
    mb_free(b.segno);
    mb_free(b.terms);
    return st;
}
