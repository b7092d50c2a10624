/* SPDX-License-Identifier: Apache-2.0
 * tools/dump/banks.c - memory banks: the tree of blocks, and one block.
 *
 * A block's gain is what held-out text lost by it: nats a token with the blocks
 * above it, less those with it, too. The hash of a block's bytes tells whether
 * two stores hold the same.
 * Threads: the main thread. */
#include <stdio.h>
#include <string.h>

#include "display.h"
#include "dump.h"
#include "mb_bank.h"
#include "mb_banks.h"

#define PAGE_NODES 1000u /* with their norms, in the page */

/* A collection's bank as it is read. */
struct bank_view {
    const struct mb_collection *coll;
    struct mb_banks bank;
    struct mb_tree *tree;
    struct mb_banks_node *nodes; /* (n) by number; in the arena */
    size_t n;
};

static void
bank_view_fini(struct bank_view *v)
{
    mb_tree_free(v->tree);
}

/* Errors: NOT_FOUND (the collection has none), CORRUPT, NOMEM. */
static mb_status
bank_view_open(struct dump *d, const struct mb_collection *coll,
    struct bank_view *out, struct mb_error *err)
{
    mb_status st;

    *out = (struct bank_view){.coll = coll};
    st = mb_banks_get(d->snap, coll, &out->bank, err);
    if (st == MB_OK)
        st = mb_banks_tree(d->snap, coll, &out->bank, &out->tree, err);
    if (st == MB_OK)
        st = mb_banks_nodes(
            d->snap, coll, out->bank.bank, d->arena, &out->nodes, &out->n, err);
    return st;
}

static double
gain_of(const struct mb_banks_node *n)
{
    return n->n_held_out > 0 ? n->without - n->with : 0;
}

static uint32_t
parent_of(const struct bank_view *v, const struct mb_banks_node *n)
{
    struct mb_node node = {0};

    if (n->node != MB_BANKS_GENERIC && n->node < mb_tree_n_nodes(v->tree))
        mb_tree_node(v->tree, n->node, &node);
    return node.parent;
}

/* A node's block; NOT_FOUND if it has none. */
static mb_status
block_of(struct dump *d, const struct bank_view *v,
    const struct mb_banks_node *n, struct mb_slice *record,
    struct mb_bank_block *out, struct mb_error *err)
{
    mb_status st =
        mb_banks_block(d->snap, v->coll, v->bank.bank, n->node, record, err);

    return st == MB_OK ? mb_bank_block_open(*record, out, err) : st;
}

/* Loss of all held-out text, without and with the path. */
static void
losses(const struct bank_view *v, double *before, double *after)
{
    uint64_t n = 0;

    *before = *after = 0;
    for (size_t i = 0; i < v->n; i++) {
        const struct mb_banks_node *k = &v->nodes[i];

        if (k->level != 1)
            continue;
        n += k->n_held_out;
        *before += k->before * (double)k->n_held_out;
        *after += k->after * (double)k->n_held_out;
    }
    if (n > 0) {
        *before /= (double)n;
        *after /= (double)n;
    }
}

/* ---- JSON ---- */

static void
json_bank(struct json_writer *w, const struct bank_view *v)
{
    double before;
    double after;

    losses(v, &before, &after);
    json_kv_cstr(w, "collection", v->coll->name);
    json_kv_u64(w, "bank", v->bank.bank);
    json_kv_cstr(w, "model", v->bank.model);
    json_kv_bool(w, "disabled", v->bank.is_disabled);
    json_kv_u64(w, "levels", v->bank.n_levels);
    json_kv_u64(w, "leaves", v->bank.n_leaves);
    json_kv_u64(w, "first_layer", v->bank.first_layer);
    json_kv_u64(w, "layers", v->bank.n_layers);
    json_kv_f64(w, "before", before);
    json_kv_f64(w, "after", after);
    json_kv_u64(w, "created_ms", v->bank.created_ms);
}

static void
json_node(struct json_writer *w, const struct bank_view *v,
    const struct mb_banks_node *n)
{
    json_kv_u64(w, "node", n->node);
    json_kv_u64(w, "parent", parent_of(v, n));
    json_kv_u64(w, "level", n->level);
    json_kv_cstr(w, "state", mb_banks_state_name(n->state));
    json_kv_bool(w, "disabled", n->is_disabled);
    json_kv_bool(w, "gained", n->has_gained);
    json_kv_f64(w, "gain", gain_of(n));
    json_kv_u64(w, "segments", n->n_segments);
    json_kv_u64(w, "documents", n->n_documents);
    json_kv_u64(w, "tokens", n->n_tokens);
    json_kv_u64(w, "held_out", n->n_held_out);
    json_kv_f64(w, "before", n->before);
    json_kv_f64(w, "without", n->without);
    json_kv_f64(w, "with", n->with);
    json_kv_f64(w, "after", n->after);
    json_kv_u64(w, "bytes", n->block_bytes);
    json_kv_u64(w, "trained_ms", n->trained_ms);
    json_kv_u64(w, "used_ms", n->used_ms);
    json_kv_cstr(w, "terms", n->terms);
}

static void
json_hash(struct json_writer *w, struct mb_slice record)
{
    char hex[17];

    (void)snprintf(hex, sizeof hex, "%016llx",
        (unsigned long long)mb_hash64(record.data, record.size, 0));
    json_kv_cstr(w, "hash", hex);
}

/* [[gate, up, down], ...] by layer. */
static void
json_norms(struct json_writer *w, const struct mb_bank_block *block)
{
    json_array_begin(w);
    for (size_t l = 0; l < block->n_layers; l++) {
        struct mb_bank_norms norms = mb_bank_block_norms(block, l);

        json_array_begin(w);
        json_f32(w, (float)norms.gate);
        json_f32(w, (float)norms.up);
        json_f32(w, (float)norms.down);
        json_array_end(w);
    }
    json_array_end(w);
}

static mb_status
json_nodes(struct dump *d, const struct bank_view *v, struct mb_error *err)
{
    mb_status st;

    json_object_begin(&d->w);
    json_bank(&d->w, v);
    json_object_end(&d->w);
    st = dump_flush_json(d, err);
    for (size_t i = 0; i < v->n && st == MB_OK; i++) {
        struct mb_slice record;

        json_object_begin(&d->w);
        json_kv_cstr(&d->w, "collection", v->coll->name);
        json_node(&d->w, v, &v->nodes[i]);
        st = mb_banks_block(
            d->snap, v->coll, v->bank.bank, v->nodes[i].node, &record, err);
        if (st == MB_OK)
            json_hash(&d->w, record);
        if (st == MB_ERR_NOT_FOUND)
            st = MB_OK;
        json_object_end(&d->w);
        if (st == MB_OK)
            st = dump_flush_json(d, err);
    }
    return st;
}

/* ---- all ---- */

static void
print_bank(const struct bank_view *v)
{
    double before;
    double after;

    losses(v, &before, &after);
    (void)printf("collection %s: bank %u for %s, %u levels, %u leaves, layers "
                 "%u to %u%s\n",
        v->coll->name, v->bank.bank, v->bank.model, v->bank.n_levels,
        v->bank.n_leaves, v->bank.first_layer,
        v->bank.first_layer + v->bank.n_layers - 1,
        v->bank.is_disabled ? ", disabled" : "");
    if (before > 0)
        (void)printf("held-out text: %.4f nats a token without its blocks, "
                     "%.4f with them\n",
            before, after);
}

static const char *
when(char out[DISPLAY_FIGURE], uint64_t ms)
{
    return ms > 0 ? show_time(out, ms) : "never";
}

static void
add_row(struct table *t, const struct mb_banks_node *n)
{
    char time[DISPLAY_FIGURE];

    if (n->node == MB_BANKS_GENERIC)
        table_cell(t, "generic");
    else
        table_cell(t, "%*s%u", (int)(2 * (n->level - 1)), "", n->node);
    table_cell(t, "%s%s", mb_banks_state_name(n->state),
        n->is_disabled                                 ? ", disabled"
        : n->state == MB_BANKS_READY && !n->has_gained ? ", no gain"
                                                       : "");
    table_cell_count(t, n->n_segments);
    table_cell(t, "%.4f", gain_of(n));
    table_cell_bytes(t, n->block_bytes);
    table_cell(t, "%s", when(time, n->used_ms));
    table_cell(t, "%s", n->terms);
}

/* A node's record by its number: nodes are numbered without gaps from 1. */
static const struct mb_banks_node *
node_at(const struct bank_view *v, uint32_t number)
{
    for (size_t i = number > 0 && number <= v->n ? number - 1 : 0; i < v->n;
         i++) {
        if (v->nodes[i].node == number)
            return &v->nodes[i];
    }
    return NULL;
}

/* The children of a node and what is below them, depth first. */
static void
add_below(struct table *t, const struct bank_view *v, uint32_t number)
{
    struct mb_node node;

    mb_tree_node(v->tree, number, &node);
    for (uint32_t i = 0; i < node.n_children; i++) {
        const struct mb_banks_node *n = node_at(v, node.first_child + i);

        if (n == NULL)
            continue;
        add_row(t, n);
        add_below(t, v, n->node);
    }
}

static mb_status
print_nodes(struct dump *d, const struct bank_view *v, struct mb_error *err)
{
    static const char *const heads[] = {"node", "state", "segments", "gain",
        "bytes", "last used (UTC)", "terms"};
    struct table *t = table_new(7, heads, "llrrrll");
    const struct mb_banks_node *generic = node_at(v, MB_BANKS_GENERIC);

    if (t == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "table");
    print_bank(v);
    add_below(t, v, 0);
    if (generic != NULL)
        add_row(t, generic);
    table_print(t, stdout, d->width);
    table_free(t);
    return MB_OK;
}

mb_status
view_banks(struct dump *d, const char *arg, struct mb_error *err)
{
    const char *name = mb_cli_str(d->cli, "collection");
    const struct mb_collection *only = NULL;
    size_t n_shown = 0;
    mb_status st = name != NULL ? dump_collection(d, &only, err) : MB_OK;

    (void)arg;
    for (size_t i = 0; st == MB_OK && i < d->n_colls; i++) {
        struct bank_view v;

        if (only != NULL && only != &d->colls[i])
            continue;
        st = bank_view_open(d, &d->colls[i], &v, err);
        if (st == MB_OK) {
            st = d->json ? json_nodes(d, &v, err) : print_nodes(d, &v, err);
            n_shown++;
        } else if (st == MB_ERR_NOT_FOUND) {
            st = MB_OK;
        }
        bank_view_fini(&v);
    }
    if (st == MB_OK && n_shown == 0 && !d->json)
        (void)printf("no memory bank; bank.build makes one\n");
    return st;
}

/* ---- one ---- */

static mb_status
print_norms(const struct mb_bank_block *block, struct mb_error *err)
{
    static const char *const heads[] = {"layer", "gate", "up", "down"};
    struct table *t = table_new(4, heads, "rrrr");

    if (t == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "table");
    for (size_t l = 0; l < block->n_layers; l++) {
        struct mb_bank_norms norms = mb_bank_block_norms(block, l);

        table_cell(t, "%zu", block->first_layer + l);
        table_cell(t, "%.4f", norms.gate);
        table_cell(t, "%.4f", norms.up);
        table_cell(t, "%.4f", norms.down);
    }
    (void)printf("block     %zu rows in %s\nnorms of its weights:\n",
        block->rows, mb_bank_type_name(block->type));
    table_print(t, stdout, 0);
    table_free(t);
    return MB_OK;
}

static void
print_node(const struct bank_view *v, const struct mb_banks_node *n)
{
    char a[DISPLAY_FIGURE];
    char b[DISPLAY_FIGURE];
    uint32_t parent = parent_of(v, n);

    if (n->node == MB_BANKS_GENERIC)
        (void)printf("node      generic, the same for every text\n");
    else if (parent == 0)
        (void)printf("node      %u, level %u\n", n->node, n->level);
    else
        (void)printf("node      %u, level %u, below node %u\n", n->node,
            n->level, parent);
    (void)printf("terms     %s\nstate     %s%s\n", n->terms,
        mb_banks_state_name(n->state), n->is_disabled ? ", disabled" : "");
    (void)printf("trained   %s, on %s segments", when(a, n->trained_ms),
        show_count(b, n->n_segments));
    (void)printf(" of %s documents", show_count(a, n->n_documents));
    (void)printf(", %s tokens\n", show_count(a, n->n_tokens));
    (void)printf("last used %s\n", when(a, n->used_ms));
    (void)printf("held out  %s tokens: %.4f nats each by the model alone, "
                 "%.4f with the blocks above,\n          %.4f with this one "
                 "too (gain %.4f), %.4f with the whole path\n",
        show_count(a, n->n_held_out), n->before, n->without, n->with,
        gain_of(n), n->after);
}

static mb_status
show_bank_node(struct dump *d, const struct bank_view *v, const char *arg,
    struct mb_error *err)
{
    const struct mb_banks_node *n;
    struct mb_bank_block block;
    struct mb_slice record;
    uint32_t number = MB_BANKS_GENERIC;
    bool has_block;
    mb_status st = strcmp(arg, "generic") == 0
                       ? MB_OK
                       : dump_number(arg, "node", &number, err);

    if (st != MB_OK)
        return st;
    n = node_at(v, number);
    if (n == NULL)
        return mb_error_set(err, MB_ERR_NOT_FOUND,
            "the bank of %s has nodes 1 to %u, and no node %s", v->coll->name,
            mb_tree_n_nodes(v->tree) - 1, arg);
    st = block_of(d, v, n, &record, &block, err);
    has_block = st == MB_OK;
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return st;
    if (!d->json) {
        print_node(v, n);
        return has_block ? print_norms(&block, err) : MB_OK;
    }
    json_object_begin(&d->w);
    json_kv_cstr(&d->w, "collection", v->coll->name);
    json_node(&d->w, v, n);
    if (has_block) {
        json_hash(&d->w, record);
        json_kv_u64(&d->w, "rows", block.rows);
        json_kv_cstr(&d->w, "type", mb_bank_type_name(block.type));
        json_kv_u64(&d->w, "first_layer", block.first_layer);
        json_key(&d->w, "norms");
        json_norms(&d->w, &block);
    }
    json_object_end(&d->w);
    return dump_flush_json(d, err);
}

mb_status
view_bank(struct dump *d, const char *arg, struct mb_error *err)
{
    const struct mb_collection *coll;
    struct bank_view v = {0};
    mb_status st = dump_collection(d, &coll, err);

    if (st == MB_OK)
        st = bank_view_open(d, coll, &v, err);
    if (st == MB_OK)
        st = show_bank_node(d, &v, arg, err);
    bank_view_fini(&v);
    return st;
}

/* ---- in the page ---- */

mb_status
page_bank(
    struct dump *d, const struct mb_collection *coll, struct mb_error *err)
{
    struct json_writer *w = &d->w;
    struct bank_view v;
    mb_status st = bank_view_open(d, coll, &v, err);

    if (st == MB_OK) {
        json_key(w, "bank");
        json_object_begin(w);
        json_bank(w, &v);
        json_key(w, "nodes");
        json_array_begin(w);
    }
    for (size_t i = 0; st == MB_OK && i < v.n && i < PAGE_NODES; i++) {
        struct mb_bank_block block;
        struct mb_slice record;

        json_object_begin(w);
        json_node(w, &v, &v.nodes[i]);
        st = block_of(d, &v, &v.nodes[i], &record, &block, err);
        if (st == MB_OK) {
            json_key(w, "norms");
            json_norms(w, &block);
        }
        if (st == MB_ERR_NOT_FOUND)
            st = MB_OK;
        json_object_end(w);
    }
    if (st == MB_OK) {
        json_array_end(w);
        json_object_end(w);
    }
    bank_view_fini(&v);
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
}
