/* SPDX-License-Identifier: Apache-2.0
 * store/pages.h - the pages of data.mdb, read beneath LMDB for the scrub.
 *
 * LMDB offers no way to see which pages a commit wrote or to overwrite what it
 * leaves behind. This reads the file's own structure (LMDB 0.9, data version
 * 1): two meta pages, B+ trees of branch, leaf and overflow pages, and the tree
 * of free pages. Nothing of it is used to find or change rows: only bytes that
 * no row lives in are ever written, with zeros.
 * A file of another version or page size is not understood (NOT_IMPLEMENTED),
 * and then not scrubbed. */
#ifndef STORE_PAGES_H
#define STORE_PAGES_H

#include "mb_base.h"

struct pages;

/* Root of a tree and its height in levels; root UINT64_MAX: empty. */
struct pages_tree {
    uint64_t root;
    uint64_t n_overflow; /* pages in overflow runs */
    uint32_t depth;
};

/* One meta page: what a committed transaction left. */
struct pages_meta {
    uint64_t txn;
    uint64_t last_page;
    struct pages_tree free;
    struct pages_tree main;
};

/* A file that may not be written is opened for reading.
 * Errors: IO, NOT_IMPLEMENTED, NOMEM. */
MB_MUST_USE mb_status pages_open(const char *path, struct pages **out);
void pages_close(struct pages *p);
/* The two newest transactions, older first. Errors: IO, CORRUPT. */
MB_MUST_USE mb_status pages_metas(struct pages *p, struct pages_meta out[2]);

/* Runs of pages that one of two transactions has and the other has not. */
struct pages_visitor {
    /* The newer one wrote n pages from `page` on; [gap_start, gap_end), in
     * bytes from the start of the first, is not in use. */
    mb_status (*written)(void *arg, uint64_t page, uint64_t n,
        uint64_t gap_start, uint64_t gap_end);
    /* The newer one no longer has the run that begins at `page`. May be NULL. */
    mb_status (*gone)(void *arg, uint64_t page);
    void *arg;
    /* A key in a branch page that the newer one wrote, of a named table; height
     * is 2 just above the leaves. It must not use p. May be NULL. */
    mb_status (*separator)(
        void *arg, struct mb_slice table, uint32_t height, struct mb_slice key);
};

/* What a transaction wrote, in all tables, against the one just before.
 * Errors: CORRUPT, IO, NOMEM, those of the visitor. */
MB_MUST_USE mb_status pages_diff(struct pages *p,
    const struct pages_meta *older, const struct pages_meta *newer,
    const struct pages_visitor *visitor);
/* All pages in use, as `written`. */
MB_MUST_USE mb_status pages_walk(struct pages *p, const struct pages_meta *meta,
    const struct pages_visitor *visitor);

/* Called for each page that transaction `txn` (or an earlier one, when LMDB
 * joined records) freed. */
typedef mb_status (*pages_free_fn)(void *arg, uint64_t txn, uint64_t page);
MB_MUST_USE mb_status pages_free_list(struct pages *p,
    const struct pages_meta *meta, pages_free_fn fn, void *arg);

/* Overwrite [start, end) of a run of pages with zeros unless they are zeros
 * already. Errors: IO, NO_SPACE. */
MB_MUST_USE mb_status pages_zero(
    struct pages *p, uint64_t page, uint64_t start, uint64_t end);
size_t pages_size(const struct pages *p);

#endif
