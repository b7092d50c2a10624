/* SPDX-License-Identifier: Apache-2.0
 * store/pages.c - see pages.h.
 *
 * LMDB never changes a page in use: a commit writes copies, and the old pages
 * become free. So the trees of two transactions share all pages but those on
 * the paths to what was changed, and a page stays at its height above the
 * leaves. pages_diff walks both trees downwards, height by height, and drops
 * at each what they have in common; the cost goes with the change, not with
 * the size of the store. Each page is read once, and old leaves only where
 * they may name overflow runs: reading is what a walk costs.
 *
 * Layout, all native little-endian. Page: number u64, pad u16, flags u16, then
 * lower u16 and upper u16 (bytes from the page's start: offsets of nodes lie
 * below lower, nodes from upper on, nothing between) or, of an overflow run,
 * its pages u32. Node: 8 bytes, key, data; in a branch the 8 bytes hold a page
 * number of 48 bits and the key's size, in a leaf the data's size u32, flags
 * u16 and the key's size u16.
 *
 * Invariants: every offset is checked against the page before it is followed;
 * a number that leads out of the file is CORRUPT.
 * Threads: the writer. */
#include "pages.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "folder.h"

#define MAGIC        0xBEEFC0DEu
#define DATA_VERSION 1u
#define PAGE_HEADER  16u
#define NODE_HEADER  8u
#define MAX_PAGE     65536u
#define MAX_DEPTH    32u
#define NO_PAGE      UINT64_MAX

#define PAGE_BRANCH   0x01u
#define PAGE_LEAF     0x02u
#define PAGE_OVERFLOW 0x04u
#define PAGE_META     0x08u

#define NODE_BIG      0x01u /* data lies in an overflow run */
#define NODE_SUB_TREE 0x02u /* data is the root of a named table */

#define TREE_RECORD 48u /* bytes of a root in a meta page or a node */

/* A growing list of numbers. */
struct numbers {
    uint64_t *data;
    size_t n;
    size_t max;
};

struct pages {
    int fd;
    size_t size;
    uint8_t *page;           /* the page at hand */
    struct numbers below[2]; /* children of the older and the newer pages */
    struct numbers at[2];    /* pages at this height */
    struct numbers set;      /* hash set of numbers + 1 */
};

/* ---- numbers ---- */

static mb_status
numbers_add(struct numbers *list, uint64_t v)
{
    if (list->n == list->max) {
        size_t max = list->max == 0 ? 256 : list->max * 2;
        uint64_t *data = mb_realloc(list->data, max * sizeof(*data));
        if (data == NULL)
            return MB_ERR_NOMEM;
        list->data = data;
        list->max = max;
    }
    list->data[list->n++] = v;
    return MB_OK;
}

static size_t
slot_of(const struct numbers *set, uint64_t v)
{
    uint64_t h = v * UINT64_C(0x9E3779B97F4A7C15);
    return (size_t)(h >> 32) & (set->n - 1);
}

/* set becomes the hash set of list. */
static mb_status
set_fill(struct numbers *set, const struct numbers *list)
{
    size_t n = 64;
    while (n < 2 * list->n) {
        n *= 2;
    }
    if (n > set->max) {
        mb_free(set->data);
        set->max = 0;
        set->data = mb_alloc(n * sizeof(*set->data));
        if (set->data == NULL)
            return MB_ERR_NOMEM;
        set->max = n;
    }
    set->n = n;
    memset(set->data, 0, n * sizeof(*set->data));
    for (size_t i = 0; i < list->n; i++) {
        size_t s = slot_of(set, list->data[i]);
        while (set->data[s] != 0) {
            s = (s + 1) & (n - 1);
        }
        set->data[s] = list->data[i] + 1;
    }
    return MB_OK;
}

static bool
set_has(const struct numbers *set, uint64_t v)
{
    size_t s = slot_of(set, v);
    for (; set->data[s] != 0; s = (s + 1) & (set->n - 1)) {
        if (set->data[s] == v + 1)
            return true;
    }
    return false;
}

/* Keep of list what is not in set, or what is (into common, may be NULL). */
static mb_status
thin(struct numbers *list, const struct numbers *set, struct numbers *common)
{
    size_t kept = 0;
    for (size_t i = 0; i < list->n; i++) {
        if (!set_has(set, list->data[i])) {
            list->data[kept++] = list->data[i];
        } else if (common != NULL) {
            mb_status st = numbers_add(common, list->data[i]);
            if (st != MB_OK)
                return st;
        }
    }
    list->n = kept;
    return MB_OK;
}

/* Take from each list what is in the other. */
static mb_status
drop_common(struct pages *p, struct numbers *a, struct numbers *b)
{
    struct numbers common = {NULL, 0, 0};
    if (a->n == 0 || b->n == 0)
        return MB_OK;
    mb_status st = set_fill(&p->set, a);
    if (st == MB_OK)
        st = thin(b, &p->set, &common);
    if (st == MB_OK)
        st = set_fill(&p->set, &common);
    if (st == MB_OK)
        st = thin(a, &p->set, NULL);
    mb_free(common.data);
    return st;
}

/* ---- the file ---- */

static mb_status
read_at(struct pages *p, uint64_t at, uint8_t *out, size_t size)
{
    ssize_t n = pread(p->fd, out, size, (off_t)at);
    if (n == (ssize_t)size)
        return MB_OK;
    return n < 0 ? folder_status(errno) : MB_ERR_CORRUPT;
}

static uint32_t
page_flags(const uint8_t *page)
{
    return mb_get_le16(page + 10);
}

/* Read a page of a tree into p->page and check its frame. */
static mb_status
read_page(struct pages *p, uint64_t number)
{
    if (number > (uint64_t)INT64_MAX / p->size)
        return MB_ERR_CORRUPT;
    mb_status st = read_at(p, number * p->size, p->page, p->size);
    if (st != MB_OK)
        return st;
    size_t lower = mb_get_le16(p->page + 12);
    size_t upper = mb_get_le16(p->page + 14);
    uint32_t kind = page_flags(p->page) & (PAGE_BRANCH | PAGE_LEAF);
    if (mb_get_le64(p->page) != number ||
        (kind != PAGE_BRANCH && kind != PAGE_LEAF) || lower < PAGE_HEADER ||
        lower > upper || upper > p->size)
        return MB_ERR_CORRUPT;
    return MB_OK;
}

static size_t
page_n_nodes(const struct pages *p)
{
    return (mb_get_le16(p->page + 12) - PAGE_HEADER) / 2;
}

/* Node i of the page at hand, taken apart. */
struct node {
    uint64_t child; /* branch */
    uint32_t flags; /* leaf */
    struct mb_slice key;
    uint64_t data_size;  /* leaf */
    const uint8_t *data; /* leaf: the data, or the number of a run */
};

static mb_status
read_node(const struct pages *p, size_t i, struct node *out)
{
    size_t at = mb_get_le16(p->page + PAGE_HEADER + 2 * i);
    size_t upper = mb_get_le16(p->page + 14);
    if (at < upper || at + NODE_HEADER > p->size)
        return MB_ERR_CORRUPT;
    const uint8_t *n = p->page + at;
    size_t key_size = mb_get_le16(n + 6);
    size_t room = p->size - at - NODE_HEADER;
    if (key_size > room)
        return MB_ERR_CORRUPT;
    out->key = mb_slice_of(n + NODE_HEADER, key_size);
    out->data = n + NODE_HEADER + key_size;
    if ((page_flags(p->page) & PAGE_BRANCH) != 0) {
        out->child = mb_get_le32(n) | (uint64_t)mb_get_le16(n + 4) << 32;
        return MB_OK;
    }
    out->data_size = mb_get_le32(n);
    out->flags = mb_get_le16(n + 4);
    uint64_t stored = (out->flags & NODE_BIG) != 0 ? 8 : out->data_size;
    return stored <= room - key_size ? MB_OK : MB_ERR_CORRUPT;
}

mb_status
pages_open(const char *path, struct pages **out)
{
    char name[FOLDER_MAX_PATH];
    uint8_t head[PAGE_HEADER + 32];
    mb_status st = folder_join(path, "data.mdb", name, NULL);
    struct pages *p = st == MB_OK ? mb_calloc(1, sizeof(*p)) : NULL;
    if (p == NULL)
        return st != MB_OK ? st : MB_ERR_NOMEM;
    p->fd = open(name, O_RDWR | O_CLOEXEC);
    if (p->fd < 0 && folder_status(errno) == MB_ERR_READ_ONLY)
        p->fd = open(name, O_RDONLY | O_CLOEXEC); // to look only
    if (p->fd < 0) {
        st = folder_status(errno);
        goto out;
    }
    st = read_at(p, 0, head, sizeof(head));
    if (st != MB_OK)
        goto out;
    p->size = mb_get_le32(head + 40);
    if ((page_flags(head) & PAGE_META) == 0 ||
        mb_get_le32(head + 16) != MAGIC ||
        mb_get_le32(head + 20) != DATA_VERSION || p->size < 512 ||
        p->size > MAX_PAGE || (p->size & (p->size - 1)) != 0) {
        st = MB_ERR_NOT_IMPLEMENTED;
        goto out;
    }
    p->page = mb_alloc(p->size);
    if (p->page == NULL) {
        st = MB_ERR_NOMEM;
        goto out;
    }
    *out = p;
    p = NULL;
out:
    pages_close(p);
    return st;
}

void
pages_close(struct pages *p)
{
    if (p == NULL)
        return;
    if (p->fd >= 0)
        close(p->fd);
    for (size_t i = 0; i < 2; i++) {
        mb_free(p->below[i].data);
        mb_free(p->at[i].data);
    }
    mb_free(p->set.data);
    mb_free(p->page);
    mb_free(p);
}

size_t
pages_size(const struct pages *p)
{
    return p->size;
}

static struct pages_tree
tree_of(const uint8_t record[TREE_RECORD])
{
    struct pages_tree tree = {.root = mb_get_le64(record + 40),
        .n_overflow = mb_get_le64(record + 24),
        .depth = mb_get_le16(record + 6)};
    return tree;
}

mb_status
pages_metas(struct pages *p, struct pages_meta out[2])
{
    for (uint64_t i = 0; i < 2; i++) {
        mb_status st = read_at(p, i * p->size, p->page, 512);
        if (st != MB_OK)
            return st;
        if (mb_get_le32(p->page + 16) != MAGIC)
            return MB_ERR_CORRUPT;
        out[i] = (struct pages_meta){.free = tree_of(p->page + 40),
            .main = tree_of(p->page + 88),
            .last_page = mb_get_le64(p->page + 136),
            .txn = mb_get_le64(p->page + 144)};
        if (out[i].free.depth > MAX_DEPTH || out[i].main.depth > MAX_DEPTH)
            return MB_ERR_CORRUPT;
    }
    if (out[0].txn > out[1].txn) {
        struct pages_meta newer = out[0];
        out[0] = out[1];
        out[1] = newer;
    }
    return MB_OK;
}

mb_status
pages_zero(struct pages *p, uint64_t page, uint64_t start, uint64_t end)
{
    uint8_t *room = p->page;
    bool dirty = false;
    uint64_t base = page * p->size;
    for (uint64_t at = start; at < end; at += p->size) {
        size_t n = end - at < p->size ? (size_t)(end - at) : p->size;
        ssize_t got = pread(p->fd, room, n, (off_t)(base + at));
        if (got < 0)
            return folder_status(errno);
        // Behind the end of the file there is nothing to overwrite.
        n = (size_t)got;
        dirty = false;
        for (size_t i = 0; i < n && !dirty; i++) {
            dirty = room[i] != 0;
        }
        if (!dirty)
            continue;
        memset(room, 0, n);
        if (pwrite(p->fd, room, n, (off_t)(base + at)) != (ssize_t)n)
            return folder_status(errno);
    }
    return MB_OK;
}

/* ---- what a commit wrote ---- */

struct diff {
    struct pages *p;
    const struct pages_visitor *v;
    struct mb_slice table; /* name of the tree's table; empty: LMDB's own */
};

/* Read a page; its children, or of a leaf the overflow runs it names. */
static mb_status
take_page(struct pages *p, uint64_t number, bool leaf, struct numbers *out)
{
    mb_status st = read_page(p, number);
    if (st != MB_OK)
        return st;
    if (((page_flags(p->page) & PAGE_LEAF) != 0) != leaf)
        return MB_ERR_CORRUPT;
    size_t n = page_n_nodes(p);
    for (size_t k = 0; k < n; k++) {
        struct node node = {0};
        st = read_node(p, k, &node);
        if (st == MB_OK && !leaf)
            st = numbers_add(out, node.child);
        else if (st == MB_OK && (node.flags & NODE_BIG) != 0)
            st = numbers_add(out, mb_get_le64(node.data));
        if (st != MB_OK)
            return st;
    }
    return MB_OK;
}

/* The same of all pages in `at`. */
static mb_status
gather_below(
    struct pages *p, const struct numbers *at, bool leaves, struct numbers *out)
{
    mb_status st = MB_OK;
    out->n = 0;
    for (size_t i = 0; st == MB_OK && i < at->n; i++) {
        st = take_page(p, at->data[i], leaves, out);
    }
    return st;
}

/* Tell of the keys in the branch page at hand. */
static mb_status
visit_separators(struct diff *d, uint32_t height)
{
    size_t n = page_n_nodes(d->p);
    for (size_t k = 0; k < n; k++) {
        struct node node;
        mb_status st = read_node(d->p, k, &node);
        if (st == MB_OK && node.key.size > 0)
            st = d->v->separator(d->v->arg, d->table, height, node.key);
        if (st != MB_OK)
            return st;
    }
    return MB_OK;
}

/* Tell of the new pages, p->at[1]; their gap lies between lower and upper. What
 * is below them goes to p->below[1]. */
static mb_status
visit_written(struct diff *d, uint32_t height)
{
    struct pages *p = d->p;
    mb_status st = MB_OK;
    p->below[1].n = 0;
    for (size_t i = 0; st == MB_OK && i < p->at[1].n; i++) {
        uint64_t number = p->at[1].data[i];
        st = take_page(p, number, height == 1, &p->below[1]);
        if (st == MB_OK && height > 1 && d->table.size > 0 &&
            d->v->separator != NULL)
            st = visit_separators(d, height);
        // Last, as the visitor may use p->page.
        if (st == MB_OK)
            st = d->v->written(d->v->arg, number, 1, mb_get_le16(p->page + 12),
                mb_get_le16(p->page + 14));
    }
    return st;
}

static mb_status
visit_gone(struct diff *d, const struct numbers *at)
{
    mb_status st = MB_OK;
    for (size_t i = 0; d->v->gone != NULL && st == MB_OK && i < at->n; i++) {
        st = d->v->gone(d->v->arg, at->data[i]);
    }
    return st;
}

/* Tell of one overflow run that a leaf names. */
static mb_status
visit_run(struct diff *d, uint64_t run, uint64_t data_size)
{
    uint8_t head[PAGE_HEADER];
    struct pages *p = d->p;
    if (run > (uint64_t)INT64_MAX / p->size)
        return MB_ERR_CORRUPT;
    mb_status st = read_at(p, run * p->size, head, sizeof(head));
    uint64_t n = mb_get_le32(head + 12);
    if (st != MB_OK)
        return st;
    if ((page_flags(head) & PAGE_OVERFLOW) == 0 ||
        PAGE_HEADER + data_size > n * p->size)
        return MB_ERR_CORRUPT;
    return d->v->written(
        d->v->arg, run, n, PAGE_HEADER + data_size, n * p->size);
}

/* Tell of the runs in p->set that the leaves name. */
static mb_status
visit_runs(struct diff *d, const struct numbers *leaves)
{
    struct pages *p = d->p;
    for (size_t i = 0; i < leaves->n; i++) {
        mb_status st = read_page(p, leaves->data[i]);
        if (st != MB_OK)
            return st;
        size_t n = page_n_nodes(p);
        for (size_t k = 0; k < n; k++) {
            struct node node;
            st = read_node(p, k, &node);
            if (st != MB_OK)
                return st;
            if ((node.flags & NODE_BIG) == 0 ||
                !set_has(&p->set, mb_get_le64(node.data)))
                continue;
            st = visit_run(d, mb_get_le64(node.data), node.data_size);
            if (st == MB_OK) // the visitor may have used p->page
                st = read_page(p, leaves->data[i]);
            if (st != MB_OK)
                return st;
        }
    }
    return MB_OK;
}

/* Overflow runs: p->below[1] has those that the new leaves name. */
static mb_status
diff_runs(struct diff *d, bool had_runs)
{
    struct pages *p = d->p;
    mb_status st = MB_OK;
    p->below[0].n = 0;
    if (had_runs)
        st = gather_below(p, &p->at[0], true, &p->below[0]);
    if (st == MB_OK)
        st = drop_common(p, &p->below[0], &p->below[1]);
    if (st == MB_OK && p->below[1].n > 0) {
        st = set_fill(&p->set, &p->below[1]);
        if (st == MB_OK)
            st = visit_runs(d, &p->at[1]);
    }
    if (st == MB_OK)
        st = visit_gone(d, &p->below[0]);
    return st;
}

static void
swap_down(struct pages *p, size_t side)
{
    struct numbers t = p->at[side];
    p->at[side] = p->below[side];
    p->below[side] = t;
}

/* One tree of both transactions, downwards by height. p->at[0] and p->at[1] are
 * the pages at a height that the other tree has not; either may be empty. */
static mb_status
diff_tree(struct diff *d, struct pages_tree older, struct pages_tree newer)
{
    struct pages *p = d->p;
    const struct pages_tree trees[2] = {older, newer};
    uint32_t height = 0;
    mb_status st = MB_OK;
    if (newer.root == older.root)
        return MB_OK;
    for (size_t i = 0; i < 2; i++) {
        p->at[i].n = 0;
        if (trees[i].root == NO_PAGE)
            continue;
        if (trees[i].depth == 0 || trees[i].depth > MAX_DEPTH)
            return MB_ERR_CORRUPT;
        if (trees[i].depth > height)
            height = trees[i].depth;
    }
    for (; st == MB_OK && height > 0; height--) {
        for (size_t i = 0; st == MB_OK && i < 2; i++) {
            if (trees[i].root != NO_PAGE && trees[i].depth == height)
                st = numbers_add(&p->at[i], trees[i].root);
        }
        if (st == MB_OK)
            st = drop_common(p, &p->at[0], &p->at[1]);
        if (st == MB_OK)
            st = visit_gone(d, &p->at[0]);
        if (st == MB_OK)
            st = visit_written(d, height);
        if (st == MB_OK && height == 1)
            return diff_runs(d, older.root != NO_PAGE && older.n_overflow > 0);
        if (st == MB_OK)
            st = gather_below(p, &p->at[0], false, &p->below[0]);
        swap_down(p, 0);
        swap_down(p, 1);
    }
    return st;
}

/* ---- named tables ---- */

#define MAX_TABLES     64
#define MAX_TABLE_NAME 32

struct table {
    uint8_t name_size;
    uint8_t name[MAX_TABLE_NAME];
    struct pages_tree tree;
};

struct tables {
    struct table list[MAX_TABLES];
    size_t n;
};

/* Roots of the named tables in a leaf of the main tree. */
static mb_status
take_tables(struct pages *p, struct tables *out)
{
    size_t n = page_n_nodes(p);
    for (size_t i = 0; i < n; i++) {
        struct node node;
        mb_status st = read_node(p, i, &node);
        if (st != MB_OK)
            return st;
        if ((node.flags & NODE_SUB_TREE) == 0)
            continue;
        if (node.data_size != TREE_RECORD || node.key.size > MAX_TABLE_NAME ||
            out->n == MAX_TABLES)
            return MB_ERR_CORRUPT;
        struct table *t = &out->list[out->n++];
        t->name_size = (uint8_t)node.key.size;
        memcpy(t->name, node.key.data, node.key.size);
        t->tree = tree_of(node.data);
    }
    return MB_OK;
}

static mb_status
read_tables(struct pages *p, struct pages_tree main, struct tables *out)
{
    out->n = 0;
    if (main.root == NO_PAGE)
        return MB_OK;
    p->at[0].n = 0;
    mb_status st = numbers_add(&p->at[0], main.root);
    for (uint32_t height = main.depth; st == MB_OK && height > 1; height--) {
        st = gather_below(p, &p->at[0], false, &p->below[0]);
        swap_down(p, 0);
    }
    for (size_t i = 0; st == MB_OK && i < p->at[0].n; i++) {
        st = read_page(p, p->at[0].data[i]);
        if (st == MB_OK && (page_flags(p->page) & PAGE_LEAF) == 0)
            st = MB_ERR_CORRUPT;
        if (st == MB_OK)
            st = take_tables(p, out);
    }
    return st;
}

static struct pages_tree
find_table(const struct tables *tables, const struct table *like)
{
    static const struct pages_tree none = {.root = NO_PAGE};
    for (size_t i = 0; i < tables->n; i++) {
        const struct table *t = &tables->list[i];
        if (t->name_size == like->name_size &&
            memcmp(t->name, like->name, t->name_size) == 0)
            return t->tree;
    }
    return none;
}

mb_status
pages_diff(struct pages *p, const struct pages_meta *older,
    const struct pages_meta *newer, const struct pages_visitor *visitor)
{
    struct diff d = {.p = p, .v = visitor};
    struct tables was;
    struct tables is;
    mb_status st = read_tables(p, older->main, &was);
    if (st == MB_OK)
        st = read_tables(p, newer->main, &is);
    for (size_t i = 0; st == MB_OK && i < is.n; i++) {
        d.table = mb_slice_of(is.list[i].name, is.list[i].name_size);
        st = diff_tree(&d, find_table(&was, &is.list[i]), is.list[i].tree);
    }
    d.table = mb_slice_of(NULL, 0);
    if (st == MB_OK)
        st = diff_tree(&d, older->main, newer->main);
    if (st == MB_OK)
        st = diff_tree(&d, older->free, newer->free);
    return st;
}

mb_status
pages_walk(struct pages *p, const struct pages_meta *meta,
    const struct pages_visitor *visitor)
{
    const struct pages_meta nothing = {
        .free = {.root = NO_PAGE}, .main = {.root = NO_PAGE}};
    return pages_diff(p, &nothing, meta, visitor);
}

/* ---- free pages ---- */

/* The page numbers of one record: a count, then as many numbers. */
static mb_status
visit_free(const uint8_t *data, uint64_t size, uint64_t txn, pages_free_fn fn,
    void *arg)
{
    if (size < 8 || mb_get_le64(data) > size / 8 - 1)
        return MB_ERR_CORRUPT;
    uint64_t n = mb_get_le64(data);
    for (uint64_t i = 1; i <= n; i++) {
        mb_status st = fn(arg, txn, mb_get_le64(data + 8 * i));
        if (st != MB_OK)
            return st;
    }
    return MB_OK;
}

/* A record of the tree of free pages, copied out of its page. */
static mb_status
visit_free_node(
    struct pages *p, const struct node *node, pages_free_fn fn, void *arg)
{
    if (node->key.size != 8 || node->data_size > ((uint64_t)1 << 32))
        return MB_ERR_CORRUPT;
    uint64_t txn = mb_get_le64(node->key.data);
    uint8_t *copy = mb_alloc((size_t)node->data_size + 1);
    if (copy == NULL)
        return MB_ERR_NOMEM;
    mb_status st = MB_OK;
    if ((node->flags & NODE_BIG) != 0) {
        uint64_t run = mb_get_le64(node->data);
        st = run > (uint64_t)INT64_MAX / p->size
                 ? MB_ERR_CORRUPT
                 : read_at(p, run * p->size + PAGE_HEADER, copy,
                       (size_t)node->data_size);
    } else {
        memcpy(copy, node->data, (size_t)node->data_size);
    }
    if (st == MB_OK)
        st = visit_free(copy, node->data_size, txn, fn, arg);
    mb_free(copy);
    return st;
}

mb_status
pages_free_list(
    struct pages *p, const struct pages_meta *meta, pages_free_fn fn, void *arg)
{
    if (meta->free.root == NO_PAGE)
        return MB_OK;
    p->at[0].n = 0;
    mb_status st = numbers_add(&p->at[0], meta->free.root);
    for (uint32_t height = meta->free.depth; st == MB_OK && height > 1;
         height--) {
        st = gather_below(p, &p->at[0], false, &p->below[0]);
        swap_down(p, 0);
    }
    for (size_t i = 0; st == MB_OK && i < p->at[0].n; i++) {
        st = read_page(p, p->at[0].data[i]);
        size_t n = st == MB_OK ? page_n_nodes(p) : 0;
        for (size_t k = 0; st == MB_OK && k < n; k++) {
            struct node node;
            // fn may use p->page: read it anew for each record.
            st = read_page(p, p->at[0].data[i]);
            if (st == MB_OK)
                st = read_node(p, k, &node);
            if (st == MB_OK)
                st = visit_free_node(p, &node, fn, arg);
        }
    }
    return st;
}
