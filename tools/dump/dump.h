/* SPDX-License-Identifier: Apache-2.0
 * tools/dump/dump.h - what the views of membank-dump share.
 *
 * One snapshot of a store opened read-only; each view prints what it shows, as
 * text or as JSON. A daemon may write to the store meanwhile: the snapshot stays
 * as it is, and holds back the reuse of pages while it is open.
 * Threads: the main thread. */
#ifndef DUMP_DUMP_H
#define DUMP_DUMP_H

#include "json.h"
#include "mb_cli.h"
#include "mb_store.h"

struct dump {
    const struct mb_cli_program *prog;
    struct mb_cli *cli;
    struct mb_store *store;
    struct mb_snapshot *snap;
    struct mb_arena *arena;
    struct mb_collection *colls; /* all, by name */
    size_t n_colls;
    bool json;
    unsigned width;
    struct mb_buffer buf; /* JSON output */
    struct json_writer w; /* into buf */
};

/* A view: arg is what follows its name, or NULL. */
typedef mb_status (*dump_view_fn)(
    struct dump *d, const char *arg, struct mb_error *err);

/* The collection that --collection names, or the only one. Errors: NOT_FOUND
 * (names those there are). */
MB_MUST_USE mb_status dump_collection(
    struct dump *d, const struct mb_collection **out, struct mb_error *err);
/* A whole number that an argument gives. Errors: BAD_ARG. */
MB_MUST_USE mb_status dump_number(
    const char *arg, const char *what, uint32_t *out, struct mb_error *err);
/* "lsa", "client", "none". */
const char *embedding_name(mb_embedding_kind kind);
/* Write one JSON line and forget it. */
MB_MUST_USE mb_status dump_flush_json(struct dump *d, struct mb_error *err);

/* ---- views.c ---- */

mb_status view_collections(
    struct dump *d, const char *arg, struct mb_error *err);
mb_status view_documents(struct dump *d, const char *arg, struct mb_error *err);
mb_status view_document(struct dump *d, const char *arg, struct mb_error *err);
mb_status view_segment(struct dump *d, const char *arg, struct mb_error *err);
mb_status view_block(struct dump *d, const char *arg, struct mb_error *err);
mb_status view_stats(struct dump *d, const char *arg, struct mb_error *err);
mb_status view_verify(struct dump *d, const char *arg, struct mb_error *err);

/* ---- contexts.c ---- */

mb_status view_contexts(struct dump *d, const char *arg, struct mb_error *err);
mb_status view_context(struct dump *d, const char *arg, struct mb_error *err);

/* ---- banks.c ---- */

mb_status view_banks(struct dump *d, const char *arg, struct mb_error *err);
mb_status view_bank(struct dump *d, const char *arg, struct mb_error *err);
/* "bank": {...} into d->w, nothing if the collection has none. */
mb_status page_bank(
    struct dump *d, const struct mb_collection *coll, struct mb_error *err);

/* ---- treeview.c ---- */

mb_status view_tree(struct dump *d, const char *arg, struct mb_error *err);
mb_status view_node(struct dump *d, const char *arg, struct mb_error *err);

/* ---- page.c ---- */

mb_status view_html(struct dump *d, const char *arg, struct mb_error *err);

#endif
