/* SPDX-License-Identifier: Apache-2.0
 * tools/dump/page.c - a store as one page to walk through in a browser.
 *
 * The page (page.html, built into the program) gets its data as JSON: for each
 * collection the nodes of a tree with counts and top terms, and the text of a
 * sample of segments. Where the store's tree is one flat list, because the
 * collection is small, its vectors are clustered here; a collection without
 * vectors is shown by its documents.
 * Invariants: nodes stand behind their parents; at most --max-text bytes of
 * text go into the page; every string is escaped so that it can neither end the
 * script element nor become markup.
 * Threads: the main thread. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "display.h"
#include "page_html.h"
#include "progress.h"
#include "treeview.h"

#define MAX_FLAT      40000u /* vectors clustered here */
#define MAX_DOCUMENTS 400u   /* shown as nodes */
#define LEAF_SAMPLE   48u    /* segments for a node's terms */
#define MAX_PASSAGES  16u    /* of a leaf, in the page */
#define MAX_PASSAGE   1600u  /* bytes of one */
#define TOP_FANOUT    12u
#define SUB_FANOUT    8u
#define MIN_SPLIT     64u    /* segments of a cluster that is split again */
#define MIN_SHARE     65536u /* bytes of text of a collection */
#define DATA_MARK     "@DATA@"
#define BAG_TERMS     512

struct node {
    uint32_t parent; /* UINT32_MAX for the root */
    uint64_t count;  /* segments */
    struct bag *bag;
    char *name; /* NULL: its terms name it */
    mb_segno *sample;
    size_t n_sample;
    bool is_leaf;
};

/* One collection while it is written. */
struct page {
    struct dump *d;
    const struct mb_collection *coll;
    struct labels *labels;
    struct mb_arena *arena; /* reset for each passage */
    const char *how;
    struct node *nodes;
    size_t n_nodes;
    size_t capacity;
    uint64_t text_left;
    uint64_t n_passages;
};

/* ---- nodes ---- */

static mb_status
add_node(struct page *p, uint32_t parent, uint64_t count, uint32_t *out)
{
    struct node *node;

    if (p->n_nodes == p->capacity) {
        size_t more = p->capacity == 0 ? 64 : p->capacity * 2;
        struct node *nodes = mb_realloc(p->nodes, more * sizeof *nodes);

        if (nodes == NULL)
            return MB_ERR_NOMEM;
        p->nodes = nodes;
        p->capacity = more;
    }
    node = &p->nodes[p->n_nodes];
    *node = (struct node){.parent = parent, .count = count};
    node->bag = bag_new();
    if (node->bag == NULL)
        return MB_ERR_NOMEM;
    *out = (uint32_t)p->n_nodes++;
    return MB_OK;
}

static void
clear_nodes(struct page *p)
{
    for (size_t i = 0; i < p->n_nodes; i++) {
        bag_free(p->nodes[i].bag);
        mb_free(p->nodes[i].name);
        mb_free(p->nodes[i].sample);
    }
    p->n_nodes = 0;
}

/* Make a node a leaf with every n-th of these segments as its sample. */
static mb_status
set_leaf(struct page *p, uint32_t at, const mb_segno *segnos, size_t n)
{
    struct node *node = &p->nodes[at];
    size_t keep = n < LEAF_SAMPLE ? n : LEAF_SAMPLE;

    node->is_leaf = true;
    node->sample = mb_calloc(keep + 1, sizeof *node->sample);
    if (node->sample == NULL)
        return MB_ERR_NOMEM;
    for (size_t i = 0; i < keep; i++) {
        node->sample[i] = segnos[i * n / keep];
    }
    node->n_sample = keep;
    return MB_OK;
}

/* ---- from the store's tree ---- */

static mb_status
nodes_of_tree(struct page *p, const struct tree *t, struct mb_error *err)
{
    mb_status st = MB_OK;

    p->how = "clusters of its tree";
    for (size_t i = 0; i < t->n && st == MB_OK; i++) {
        mb_segno sample[LEAF_SAMPLE];
        size_t n = 0;
        uint32_t at;

        st = add_node(p,
            t->nodes[i].parent < i ? t->nodes[i].parent : UINT32_MAX,
            t->nodes[i].n_vectors, &at);
        if (st != MB_OK || t->nodes[i].n_children > 0)
            continue;
        st = leaf_sample(t, t->nodes[i].leaf, LEAF_SAMPLE, sample, &n, err);
        if (st == MB_OK)
            st = set_leaf(p, at, sample, n);
    }
    return st;
}

/* ---- clustered here ---- */

/* Segments with their vectors (n x dim, row-major). */
struct flat {
    mb_segno *segnos;
    float *vectors;
    size_t n;
    size_t dim;
};

static mb_status
load_flat(
    struct page *p, const struct tree *t, struct flat *f, struct mb_error *err)
{
    mb_segno *all = mb_calloc(MAX_FLAT, sizeof *all);
    size_t n = 0;
    mb_status st = MB_ERR_NOMEM;

    f->dim = t->info.dim;
    f->segnos = mb_calloc(MAX_FLAT, sizeof *f->segnos);
    f->vectors = mb_calloc(MAX_FLAT * f->dim, sizeof *f->vectors);
    if (all != NULL && f->segnos != NULL && f->vectors != NULL)
        st = mb_leaf_segments(p->d->snap, p->coll, t->info.generation,
            t->nodes[0].leaf, MAX_FLAT, all, &n, err);
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        mb_status found = mb_vector_get(
            p->d->snap, p->coll, all[i], f->vectors + f->n * f->dim, err);

        if (found == MB_OK)
            f->segnos[f->n++] = all[i];
        else if (found != MB_ERR_NOT_FOUND)
            st = found;
    }
    mb_free(all);
    return st;
}

static void
free_flat(struct flat *f)
{
    mb_free(f->segnos);
    mb_free(f->vectors);
}

/* Cluster of each row, in [0, *n_clusters). */
static mb_status
cluster_rows(const struct flat *f, uint32_t fanout, uint32_t *cluster,
    uint32_t *n_clusters, struct mb_error *err)
{
    struct mb_tree_options opt = {.fanout = fanout,
        .max_depth = 1,
        .leaf_target = (uint32_t)(f->n / fanout) + 1,
        .n_total = f->n,
        .flat_below = 1,
        .seed = 1};
    struct mb_tree *tree = NULL;
    mb_status st = mb_tree_fit(f->vectors, f->n, f->dim, &opt, &tree, err);

    if (st != MB_OK)
        return st;
    *n_clusters = mb_tree_n_leaves(tree);
    mb_tree_route(tree, f->vectors, f->n, cluster);
    mb_tree_free(tree);
    return MB_OK;
}

/* The rows of one cluster, copied. */
static mb_status
take_cluster(const struct flat *f, const uint32_t *cluster, uint32_t wanted,
    struct flat *out)
{
    size_t n = 0;

    for (size_t i = 0; i < f->n; i++) {
        n += cluster[i] == wanted ? 1 : 0;
    }
    out->dim = f->dim;
    out->segnos = mb_calloc(n + 1, sizeof *out->segnos);
    out->vectors = mb_calloc(n * f->dim + 1, sizeof *out->vectors);
    if (out->segnos == NULL || out->vectors == NULL)
        return MB_ERR_NOMEM;
    for (size_t i = 0; i < f->n; i++) {
        if (cluster[i] != wanted)
            continue;
        out->segnos[out->n] = f->segnos[i];
        memcpy(out->vectors + out->n * f->dim, f->vectors + i * f->dim,
            f->dim * sizeof *f->vectors);
        out->n++;
    }
    return MB_OK;
}

/* Split the rows of node `at` into clusters, large ones again. */
static mb_status
split_node(struct page *p, uint32_t at, const struct flat *f, unsigned level,
    struct mb_error *err)
{
    uint32_t *cluster = mb_calloc(f->n + 1, sizeof *cluster);
    uint32_t n = 1;
    mb_status st = MB_OK;

    if (cluster == NULL)
        return MB_ERR_NOMEM;
    if (level < 2 && f->n >= MIN_SPLIT)
        st = cluster_rows(
            f, level == 0 ? TOP_FANOUT : SUB_FANOUT, cluster, &n, err);
    if (st == MB_OK && n < 2)
        st = set_leaf(p, at, f->segnos, f->n);
    for (uint32_t c = 0; n >= 2 && c < n && st == MB_OK; c++) {
        struct flat part = {0};
        uint32_t child;

        st = take_cluster(f, cluster, c, &part);
        if (st == MB_OK && part.n > 0) {
            st = add_node(p, at, part.n, &child);
            if (st == MB_OK)
                st = split_node(p, child, &part, level + 1, err);
        }
        free_flat(&part);
    }
    mb_free(cluster);
    return st;
}

static mb_status
nodes_of_flat(struct page *p, const struct tree *t, struct mb_error *err)
{
    struct flat f = {0};
    uint32_t root;
    mb_status st = load_flat(p, t, &f, err);

    p->how = "one flat list in the store, clustered for this page";
    if (st == MB_OK)
        st = add_node(p, UINT32_MAX, p->coll->n_segments, &root);
    if (st == MB_OK)
        st = split_node(p, root, &f, 0, err);
    free_flat(&f);
    return st;
}

/* ---- by documents ---- */

static mb_status
add_document(struct page *p, uint32_t root, const struct mb_document *doc)
{
    struct mb_slice name = doc->title.size > 0 ? doc->title : doc->id;
    size_t n = doc->n_segments < LEAF_SAMPLE ? doc->n_segments : LEAF_SAMPLE;
    mb_segno sample[LEAF_SAMPLE];
    uint32_t at;
    mb_status st = add_node(p, root, doc->n_segments, &at);

    if (st != MB_OK)
        return st;
    for (size_t i = 0; i < n; i++) {
        sample[i] = doc->first_segment + (mb_segno)(i * doc->n_segments / n);
    }
    p->nodes[at].name = mb_strndup((const char *)name.data, name.size);
    if (p->nodes[at].name == NULL)
        return MB_ERR_NOMEM;
    return set_leaf(p, at, sample, n);
}

static mb_status
nodes_of_documents(struct page *p, struct mb_error *err)
{
    struct mb_document *docs = NULL;
    uint64_t left = p->coll->n_segments;
    size_t n = 0;
    uint32_t root;
    uint32_t rest;
    mb_status st = add_node(p, UINT32_MAX, left, &root);

    p->how = "no vectors yet, shown by its documents";
    mb_arena_reset(p->arena);
    if (st == MB_OK)
        st = mb_document_list(p->d->snap, p->coll, mb_slice_of(NULL, 0), NULL,
            MAX_DOCUMENTS, p->arena, &docs, &n, err);
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        st = add_document(p, root, &docs[i]);
        left -= docs[i].n_segments <= left ? docs[i].n_segments : left;
    }
    if (st != MB_OK || p->coll->n_documents <= n || left == 0)
        return st;
    st = add_node(p, root, left, &rest);
    if (st == MB_OK) {
        p->nodes[rest].is_leaf = true;
        p->nodes[rest].name = mb_strndup("other documents", 15);
    }
    return st;
}

/* ---- terms ---- */

/* Text of a segment in p->arena, which is reset first. */
static mb_status
read_passage(struct page *p, mb_segno segno, struct mb_segment *segment,
    struct mb_document *doc, struct mb_slice *text, struct mb_error *err)
{
    mb_status st = mb_segment_get(p->d->snap, p->coll, segno, segment, err);

    mb_arena_reset(p->arena);
    if (st == MB_OK)
        st = mb_document_get(p->d->snap, p->coll, segment->docno, doc, err);
    if (st == MB_OK)
        st = mb_document_text(p->d->snap, p->coll, doc, segment->start,
            segment->end, p->arena, text, err);
    return st;
}

/* Bags of the leaves from their samples, then of all above. The first few
 * texts of each leaf teach the words that stems stand for. */
static mb_status
fill_bags(struct page *p, struct mb_error *err)
{
    size_t n_learn = p->n_nodes < 500 ? 12 : 4;
    mb_status st = MB_OK;

    for (size_t i = p->n_nodes; i-- > 0 && st == MB_OK;) {
        struct node *node = &p->nodes[i];

        for (size_t j = 0; j < node->n_sample && st == MB_OK; j++) {
            struct mb_segment segment;
            struct mb_document doc;
            struct mb_slice text;

            if (j < n_learn) {
                st = read_passage(
                    p, node->sample[j], &segment, &doc, &text, err);
                if (st == MB_OK)
                    st = labels_learn(p->labels, text);
            } else {
                st = mb_segment_get(
                    p->d->snap, p->coll, node->sample[j], &segment, err);
            }
            if (st == MB_OK)
                st = bag_add_segment(node->bag, p->labels, &segment);
        }
        if (st == MB_OK)
            st = bag_prune(node->bag, BAG_TERMS);
        if (st == MB_OK && node->parent < i)
            st = bag_add(p->nodes[node->parent].bag, node->bag);
    }
    return st;
}

/* ---- writing ---- */

/* Documents that the passages come from, each written once. */
struct doc_list {
    mb_docno *docnos;
    size_t n;
    size_t capacity;
};

static mb_status
doc_position(struct doc_list *list, mb_docno docno, size_t *out)
{
    // Passages of a leaf often share documents: look at the last ones first.
    for (size_t i = list->n, seen = 0; i-- > 0 && seen < 256; seen++) {
        if (list->docnos[i] == docno) {
            *out = i;
            return MB_OK;
        }
    }
    if (list->n == list->capacity) {
        size_t more = list->capacity == 0 ? 256 : list->capacity * 2;
        mb_docno *docnos = mb_realloc(list->docnos, more * sizeof *docnos);

        if (docnos == NULL)
            return MB_ERR_NOMEM;
        list->docnos = docnos;
        list->capacity = more;
    }
    list->docnos[list->n] = docno;
    *out = list->n++;
    return MB_OK;
}

static struct mb_slice
cut_text(struct mb_slice text)
{
    if (text.size <= MAX_PASSAGE)
        return text;
    text.size = MAX_PASSAGE;
    while (text.size > 0 && (text.data[text.size] & 0xC0) == 0x80) {
        text.size--;
    }
    return text;
}

static mb_status
write_passages(struct page *p, const struct node *node, size_t max,
    struct doc_list *docs, struct mb_error *err)
{
    struct json_writer *w = &p->d->w;
    mb_status st = MB_OK;

    json_array_begin(w);
    for (size_t i = 0; i < node->n_sample && i < max && st == MB_OK; i++) {
        struct mb_segment segment;
        struct mb_document doc;
        struct mb_slice text;
        size_t at = 0;

        st = read_passage(p, node->sample[i], &segment, &doc, &text, err);
        if (st != MB_OK)
            break;
        text = cut_text(text);
        if (text.size > p->text_left)
            break;
        p->text_left -= text.size;
        st = doc_position(docs, segment.docno, &at);
        json_array_begin(w);
        json_u64(w, at);
        json_u64(w, segment.ordinal);
        json_str(w, text);
        json_array_end(w);
        p->n_passages++;
    }
    json_array_end(w);
    return st;
}

static mb_status
write_node(struct page *p, size_t i, size_t max, struct doc_list *docs,
    struct mb_error *err)
{
    struct json_writer *w = &p->d->w;
    const struct node *node = &p->nodes[i];
    struct label labels[TREE_LABELS];
    size_t n = bag_labels(node->bag,
        node->parent < i ? p->nodes[node->parent].bag : NULL, p->labels, labels,
        TREE_LABELS);
    mb_status st;

    json_array_begin(w);
    json_i64(w, node->parent < i ? (int64_t)node->parent : -1);
    json_u64(w, node->count);
    json_array_begin(w);
    for (size_t j = 0; j < n; j++) {
        json_cstr(w, labels[j].word);
    }
    json_array_end(w);
    st = write_passages(p, node, max, docs, err);
    if (node->name != NULL)
        json_cstr(w, node->name);
    json_array_end(w);
    return st;
}

static mb_status
write_documents(
    struct page *p, const struct doc_list *docs, struct mb_error *err)
{
    struct json_writer *w = &p->d->w;
    mb_status st = MB_OK;

    json_key(w, "docs");
    json_array_begin(w);
    for (size_t i = 0; i < docs->n && st == MB_OK; i++) {
        struct mb_document doc;

        st = mb_document_get(p->d->snap, p->coll, docs->docnos[i], &doc, err);
        if (st != MB_OK)
            break;
        json_array_begin(w);
        json_str(w, doc.id);
        json_str(w, doc.title);
        json_array_end(w);
    }
    json_array_end(w);
    return st;
}

/* How many passages of each leaf fit the collection's share of the text. */
static size_t
passages_a_leaf(const struct page *p)
{
    uint64_t n_segments = p->coll->n_segments > 0 ? p->coll->n_segments : 1;
    uint64_t each = p->coll->text_bytes / n_segments + 1;
    uint64_t n_leaves = 0;
    uint64_t n;

    for (size_t i = 0; i < p->n_nodes; i++) {
        n_leaves += p->nodes[i].is_leaf ? 1 : 0;
    }
    if (each > MAX_PASSAGE)
        each = MAX_PASSAGE;
    n = p->text_left / each / (n_leaves > 0 ? n_leaves : 1);
    return n < 1 ? 1 : n > MAX_PASSAGES ? MAX_PASSAGES : (size_t)n;
}

static mb_status
write_collection(struct page *p, struct mb_error *err)
{
    struct json_writer *w = &p->d->w;
    const struct mb_collection *c = p->coll;
    struct doc_list docs = {0};
    size_t max = passages_a_leaf(p);
    mb_status st = MB_OK;

    json_object_begin(w);
    json_kv_cstr(w, "name", c->name);
    json_kv_cstr(w, "embedding", embedding_name(c->settings.embedding));
    json_kv_cstr(w, "language", c->settings.language);
    json_kv_u64(w, "documents", c->n_documents);
    json_kv_u64(w, "segments", c->n_segments);
    json_kv_u64(w, "text_bytes", c->text_bytes);
    json_kv_cstr(w, "how", p->how);
    json_key(w, "nodes");
    json_array_begin(w);
    for (size_t i = 0; i < p->n_nodes && st == MB_OK; i++) {
        st = write_node(p, i, max, &docs, err);
    }
    json_array_end(w);
    if (st == MB_OK)
        st = write_documents(p, &docs, err);
    if (st == MB_OK)
        st = page_bank(p->d, c, err);
    json_object_end(w);
    mb_free(docs.docnos);
    return st;
}

/* Nodes of one collection, whatever it has to make them from. */
static mb_status
make_nodes(struct page *p, struct mb_error *err)
{
    struct tree *t = NULL;
    mb_status st = MB_OK;

    if (p->coll->generation == 0 || p->coll->n_vectors == 0)
        return nodes_of_documents(p, err);
    st = tree_open(p->d, p->coll, 0, &t, err);
    if (st == MB_OK)
        st = t->n > 1 ? nodes_of_tree(p, t, err) : nodes_of_flat(p, t, err);
    tree_close(t);
    return st;
}

static mb_status
add_collection(struct dump *d, const struct mb_collection *coll,
    uint64_t max_text, uint64_t *n_passages, struct mb_error *err)
{
    struct page p = {.d = d, .coll = coll, .text_left = max_text};
    mb_status st = labels_new(d->snap, coll, &p.labels, err);

    p.arena = mb_arena_new(SIZE_MAX);
    if (st == MB_OK && p.arena == NULL)
        st = MB_ERR_NOMEM;
    if (st == MB_OK)
        st = make_nodes(&p, err);
    if (st == MB_OK)
        st = fill_bags(&p, err);
    if (st == MB_OK)
        st = write_collection(&p, err);
    *n_passages += p.n_passages;
    clear_nodes(&p);
    mb_free(p.nodes);
    labels_free(p.labels);
    mb_arena_free(p.arena);
    return st;
}

/* The page's data as JSON in d->buf. */
static mb_status
write_data(struct dump *d, uint64_t max_text, struct mb_error *err)
{
    uint64_t n_segments = 0;
    uint64_t n_passages = 0;
    char shown[DISPLAY_FIGURE];
    char total[DISPLAY_FIGURE];
    char time[DISPLAY_FIGURE];
    char about[256];
    mb_status st = MB_OK;

    for (size_t i = 0; i < d->n_colls; i++) {
        n_segments += d->colls[i].n_segments;
    }
    d->w.html = true;
    json_object_begin(&d->w);
    json_kv_cstr(&d->w, "store", mb_cli_str(d->cli, "store"));
    json_key(&d->w, "collections");
    json_array_begin(&d->w);
    for (size_t i = 0; i < d->n_colls && st == MB_OK; i++) {
        uint64_t share =
            n_segments == 0
                ? 0
                : (uint64_t)((double)max_text * (double)d->colls[i].n_segments /
                             (double)n_segments);

        if (share < MIN_SHARE && d->n_colls * MIN_SHARE < max_text)
            share = MIN_SHARE;
        st = add_collection(d, &d->colls[i], share, &n_passages, err);
        if (st != MB_OK && d->w.status != MB_OK)
            st = d->w.status;
    }
    json_array_end(&d->w);
    (void)snprintf(about, sizeof about,
        "%s segments, of which the page holds the text of %s; made %s UTC by "
        "membank-dump %s",
        show_count(total, n_segments), show_count(shown, n_passages),
        show_time(time, mb_clock_wall_ms()), MB_VERSION);
    json_kv_cstr(&d->w, "about", about);
    json_object_end(&d->w);
    return st == MB_OK ? d->w.status : st;
}

static mb_status
write_page(struct dump *d, const char *path, struct mb_error *err)
{
    const char *page = (const char *)page_html;
    const char *mark = strstr(page, DATA_MARK);
    FILE *out = strcmp(path, "-") == 0 ? stdout : fopen(path, "wb");
    bool failed;

    MB_ASSERT(mark != NULL);
    if (out == NULL)
        return mb_error_set(
            err, MB_ERR_IO, "create %s: %s", path, strerror(errno));
    (void)fwrite(page, 1, (size_t)(mark - page), out);
    (void)fwrite(d->buf.data, 1, d->buf.size, out);
    (void)fputs(mark + strlen(DATA_MARK), out);
    failed = fflush(out) != 0 || ferror(out) != 0;
    if (out != stdout && fclose(out) != 0)
        failed = true;
    if (failed)
        return mb_error_set(
            err, MB_ERR_IO, "write %s: %s", path, strerror(errno));
    return MB_OK;
}

mb_status
view_html(struct dump *d, const char *arg, struct mb_error *err)
{
    uint64_t max_text = 0;
    struct mb_error cause = {.text = ""};
    char size[DISPLAY_FIGURE];
    mb_status st =
        mb_cli_u64(d->cli, "max-text", 0, (uint64_t)1 << 30, &max_text, err);

    if (st != MB_OK)
        return st;
    st = write_data(d, max_text, &cause);
    if (st != MB_OK)
        return mb_error_set(err, st, "page: %s",
            cause.text[0] != 0 ? cause.text : mb_status_text(st));
    st = write_page(d, arg, err);
    if (st == MB_OK && d->json)
        (void)printf("{\"bytes\":%zu}\n", d->buf.size + sizeof page_html - 1);
    else if (st == MB_OK && strcmp(arg, "-") != 0)
        (void)printf("%s, %s\n", arg,
            show_bytes(size, d->buf.size + sizeof page_html - 1));
    return st;
}
