/* SPDX-License-Identifier: Apache-2.0
 * tools/dump/treeview.c - the views of the cluster tree.
 *
 * Invariant: the store numbers a node's children behind it, so that one walk
 * from the last node to the first adds every bag to its parent's.
 * Threads: the main thread. */
#include "treeview.h"

#include <stdlib.h>
#include <string.h>

#include "display.h"

#define BAG_TERMS      512   /* kept of a node */
#define MAX_LEAF       65536 /* segments read of one leaf */
#define SAMPLE_DEFAULT 32
#define LEARN_TEXTS    4 /* of each leaf, for the words of stems */

/* ---- loading ---- */

mb_status
leaf_sample(const struct tree *t, uint32_t leaf, size_t max, mb_segno *out,
    size_t *n, struct mb_error *err)
{
    mb_segno *all = mb_calloc(MAX_LEAF, sizeof *all);
    size_t n_all = 0;
    mb_status st;

    if (all == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "segments of a leaf");
    st = mb_leaf_segments(t->d->snap, t->coll, t->info.generation, leaf,
        MAX_LEAF, all, &n_all, err);
    if (st == MB_OK) {
        *n = n_all < max ? n_all : max;
        for (size_t i = 0; i < *n; i++) {
            out[i] = all[i * n_all / *n];
        }
    }
    mb_free(all);
    return st;
}

static mb_status
learn_segment(
    struct tree *t, const struct mb_segment *segment, struct mb_error *err)
{
    struct mb_document doc;
    struct mb_slice text;
    struct mb_arena *arena = mb_arena_new(SIZE_MAX);
    mb_status st = MB_ERR_NOMEM;

    if (arena != NULL)
        st = mb_document_get(t->d->snap, t->coll, segment->docno, &doc, err);
    if (st == MB_OK)
        st = mb_document_text(t->d->snap, t->coll, &doc, segment->start,
            segment->end, arena, &text, err);
    if (st == MB_OK)
        st = labels_learn(t->labels, text);
    mb_arena_free(arena);
    return st;
}

static mb_status
fill_leaf(struct tree *t, size_t node, size_t per_leaf, struct mb_error *err)
{
    mb_segno *sample = mb_calloc(per_leaf + 1, sizeof *sample);
    size_t n = 0;
    mb_status st = MB_ERR_NOMEM;

    if (sample != NULL)
        st = leaf_sample(t, t->nodes[node].leaf, per_leaf, sample, &n, err);
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        struct mb_segment segment;

        st = mb_segment_get(t->d->snap, t->coll, sample[i], &segment, err);
        if (st == MB_OK)
            st = bag_add_segment(t->bags[node], t->labels, &segment);
        if (st == MB_OK && i < LEARN_TEXTS)
            st = learn_segment(t, &segment, err);
    }
    mb_free(sample);
    return st;
}

static mb_status
fill_bags(struct tree *t, size_t per_leaf, struct mb_error *err)
{
    mb_status st = MB_OK;

    for (size_t i = t->n; i-- > 0 && st == MB_OK;) {
        const struct mb_node *node = &t->nodes[i];

        if (node->n_children == 0)
            st = fill_leaf(t, i, per_leaf, err);
        if (st == MB_OK)
            st = bag_prune(t->bags[i], BAG_TERMS);
        if (st == MB_OK && node->parent < i)
            st = bag_add(t->bags[node->parent], t->bags[i]);
    }
    return st;
}

static mb_status
load_nodes(struct tree *t, struct mb_error *err)
{
    mb_status st = MB_OK;

    t->n = t->info.n_nodes;
    t->nodes = mb_calloc(t->n + 1, sizeof *t->nodes);
    t->bags = mb_calloc(t->n + 1, sizeof *t->bags);
    if (t->nodes == NULL || t->bags == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "%zu nodes", t->n);
    for (size_t i = 0; i < t->n && st == MB_OK; i++) {
        st = mb_node_get(t->d->snap, t->coll, t->info.generation, (uint32_t)i,
            &t->nodes[i], err);
        t->bags[i] = bag_new();
        if (st == MB_OK && t->bags[i] == NULL)
            st = mb_error_set(err, MB_ERR_NOMEM, "%zu nodes", t->n);
    }
    return st;
}

mb_status
tree_open(struct dump *d, const struct mb_collection *coll, size_t per_leaf,
    struct tree **out, struct mb_error *err)
{
    struct tree *t;
    mb_status st;

    if (coll->generation == 0)
        return mb_error_set(err, MB_ERR_NOT_FOUND,
            "collection %s has no tree yet: it is too small or still being "
            "fitted",
            coll->name);
    t = mb_calloc(1, sizeof *t);
    if (t == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "tree");
    t->d = d;
    t->coll = coll;
    st = mb_generation_info_get(d->snap, coll, coll->generation, &t->info, err);
    if (st == MB_OK)
        st = labels_new(d->snap, coll, &t->labels, err);
    if (st == MB_OK)
        st = load_nodes(t, err);
    if (st == MB_OK && per_leaf > 0)
        st = fill_bags(t, per_leaf, err);
    if (st != MB_OK) {
        tree_close(t);
        return st;
    }
    *out = t;
    return MB_OK;
}

void
tree_close(struct tree *t)
{
    if (t == NULL)
        return;
    for (size_t i = 0; t->bags != NULL && i < t->n; i++) {
        bag_free(t->bags[i]);
    }
    mb_free((void *)t->bags);
    mb_free(t->nodes);
    labels_free(t->labels);
    mb_free(t);
}

size_t
tree_labels(const struct tree *t, uint32_t node, struct label out[TREE_LABELS])
{
    uint32_t parent = t->nodes[node].parent;

    return bag_labels(t->bags[node], parent < t->n ? t->bags[parent] : NULL,
        t->labels, out, TREE_LABELS);
}

/* ---- printing ---- */

static void
print_labels(const struct tree *t, uint32_t node)
{
    struct label labels[TREE_LABELS];
    size_t n = tree_labels(t, node, labels);

    for (size_t i = 0; i < n; i++) {
        (void)fputs(i > 0 ? ", " : "", stdout);
        display_print(stdout, mb_slice_cstr(labels[i].word), 0);
    }
}

static void
json_node(struct json_writer *w, const struct tree *t, uint32_t node)
{
    const struct mb_node *x = &t->nodes[node];
    struct label labels[TREE_LABELS];
    size_t n = tree_labels(t, node, labels);

    json_kv_u64(w, "node", node);
    json_key(w, "parent");
    if (x->parent < t->n)
        json_u64(w, x->parent);
    else
        json_null(w);
    json_kv_u64(w, "level", x->level);
    json_kv_u64(w, "vectors", x->n_vectors);
    json_kv_u64(w, "first_child", x->first_child);
    json_kv_u64(w, "children", x->n_children);
    json_key(w, "terms");
    json_array_begin(w);
    for (size_t i = 0; i < n; i++) {
        json_cstr(w, labels[i].word);
    }
    json_array_end(w);
}

/* A node and what is below it, depth first. */
static void
print_below(const struct tree *t, uint32_t node, uint64_t depth)
{
    const struct mb_node *x = &t->nodes[node];
    char count[DISPLAY_FIGURE];

    (void)printf("%*s%u  %s  ", (int)(2 * x->level), "", node,
        show_count(count, x->n_vectors));
    print_labels(t, node);
    (void)fputc('\n', stdout);
    for (uint32_t i = 0; x->level < depth && i < x->n_children; i++) {
        if (x->first_child + i > node && x->first_child + i < t->n)
            print_below(t, x->first_child + i, depth);
    }
}

mb_status
view_tree(struct dump *d, const char *arg, struct mb_error *err)
{
    const struct mb_collection *coll;
    struct tree *t = NULL;
    uint64_t depth = 16;
    mb_status st = mb_cli_u64(d->cli, "depth", 0, 16, &depth, err);

    (void)arg;
    if (st == MB_OK)
        st = dump_collection(d, &coll, err);
    if (st == MB_OK)
        st = tree_open(d, coll, SAMPLE_DEFAULT, &t, err);
    if (st != MB_OK)
        return st;
    for (uint32_t i = 0; d->json && i < t->n && st == MB_OK; i++) {
        if (t->nodes[i].level > depth)
            continue;
        json_object_begin(&d->w);
        json_node(&d->w, t, i);
        json_object_end(&d->w);
        st = dump_flush_json(d, err);
    }
    if (!d->json) {
        (void)printf("generation %u: %u nodes, %u leaves, depth %u, nprobe %u "
                     "for recall@10 %.3f\n",
            t->info.generation, t->info.n_nodes, t->info.n_leaves,
            t->info.depth, t->info.probing.nprobe, t->info.probing.recall);
        (void)printf("node  segments  terms\n");
        if (t->n > 0)
            print_below(t, 0, depth);
    }
    tree_close(t);
    return st;
}

/* ---- one node ---- */

static mb_status
json_leaf(struct dump *d, const mb_segno *segnos, size_t n)
{
    json_key(&d->w, "segments");
    json_array_begin(&d->w);
    for (size_t i = 0; i < n; i++) {
        json_u64(&d->w, segnos[i]);
    }
    json_array_end(&d->w);
    return d->w.status;
}

static mb_status
print_leaf(struct dump *d, const struct tree *t, const mb_segno *segnos,
    size_t n, struct mb_error *err)
{
    static const char *const heads[] = {"segment", "document", "text"};
    struct table *table = table_new(3, heads, "rll");
    mb_status st = MB_OK;

    if (table == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "table");
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        struct mb_segment s;
        struct mb_document doc;
        struct mb_slice text = {0};

        st = mb_segment_get(d->snap, t->coll, segnos[i], &s, err);
        if (st == MB_OK)
            st = mb_document_get(d->snap, t->coll, s.docno, &doc, err);
        if (st == MB_OK)
            st = mb_document_text(d->snap, t->coll, &doc, s.start,
                s.end < s.start + 300 ? s.end : s.start + 300, d->arena, &text,
                err);
        if (st != MB_OK)
            break;
        table_cell(table, "%u", segnos[i]);
        table_cell_slice(table,
            mb_slice_of(doc.id.data, doc.id.size < 40 ? doc.id.size : 40));
        table_cell_slice(table, text);
    }
    if (st == MB_OK)
        table_print(table, stdout, d->width);
    table_free(table);
    return st;
}

static mb_status
show_leaf(struct dump *d, const struct tree *t, uint32_t node, uint64_t limit,
    struct mb_error *err)
{
    size_t max = limit > 0 && limit < MAX_LEAF ? (size_t)limit : MAX_LEAF;
    mb_segno *segnos = mb_calloc(max, sizeof *segnos);
    size_t n = 0;
    mb_status st = MB_ERR_NOMEM;

    if (segnos != NULL)
        st = mb_leaf_segments(d->snap, t->coll, t->info.generation,
            t->nodes[node].leaf, max, segnos, &n, err);
    if (st == MB_OK && d->json)
        st = json_leaf(d, segnos, n);
    else if (st == MB_OK) {
        (void)printf("leaf      %u, %zu of %llu segments\n\n",
            t->nodes[node].leaf, n,
            (unsigned long long)t->nodes[node].n_vectors);
        st = print_leaf(d, t, segnos, n, err);
    }
    mb_free(segnos);
    return st;
}

static void
print_node(const struct tree *t, uint32_t node)
{
    const struct mb_node *x = &t->nodes[node];

    (void)printf("node      %u, level %u", node, x->level);
    if (x->parent < t->n)
        (void)printf(", below node %u", x->parent);
    (void)printf(
        "\nsegments  %llu\nterms     ", (unsigned long long)x->n_vectors);
    print_labels(t, node);
    (void)fputc('\n', stdout);
    if (x->n_children == 0)
        return;
    (void)printf("children  %u:\n", x->n_children);
    for (uint32_t i = 0; i < x->n_children; i++) {
        uint32_t child = x->first_child + i;
        char count[DISPLAY_FIGURE];

        if (child >= t->n)
            break;
        (void)printf(
            "  %u  %s  ", child, show_count(count, t->nodes[child].n_vectors));
        print_labels(t, child);
        (void)fputc('\n', stdout);
    }
}

mb_status
view_node(struct dump *d, const char *arg, struct mb_error *err)
{
    const struct mb_collection *coll;
    struct tree *t = NULL;
    uint64_t limit = 0;
    uint32_t node;
    bool is_leaf;
    mb_status st = dump_number(arg, "node", &node, err);

    if (st == MB_OK)
        st = mb_cli_u64(d->cli, "limit", 0, UINT64_MAX, &limit, err);
    if (st == MB_OK)
        st = dump_collection(d, &coll, err);
    if (st == MB_OK)
        st = tree_open(d, coll, SAMPLE_DEFAULT, &t, err);
    if (st == MB_OK && node >= t->n)
        st = mb_error_set(err, MB_ERR_NOT_FOUND,
            "the tree of %s has nodes 0 to %zu", coll->name,
            t->n > 0 ? t->n - 1 : 0);
    if (st != MB_OK) {
        tree_close(t);
        return st;
    }
    is_leaf = t->nodes[node].n_children == 0;
    if (d->json) {
        json_object_begin(&d->w);
        json_node(&d->w, t, node);
        if (is_leaf)
            st = show_leaf(d, t, node, limit, err);
        json_object_end(&d->w);
        if (st == MB_OK)
            st = dump_flush_json(d, err);
    } else {
        print_node(t, node);
        if (is_leaf)
            st = show_leaf(d, t, node, limit, err);
    }
    tree_close(t);
    return st;
}
