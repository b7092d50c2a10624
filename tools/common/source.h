/* SPDX-License-Identifier: Apache-2.0
 * tools/common/source.h - documents from files, ready to be put.
 *
 * One stream over all inputs of membank-ingest: a line of JSONL is a document,
 * any other file is one. A line is an object; its keys:
 *   id or _id  string or whole number; absent: "FILE:LINE"
 *   title      string, may be absent
 *   text       string
 *   meta       object, may be absent ("metadata" is the same)
 *   vector     array of numbers, for collections with client vectors
 * All other keys are kept in meta as well; those that meta has itself win.
 * A file's id is its path, its title the <title>, the first heading or the
 * name, its meta {"path", "format"}.
 * Threads: one. */
#ifndef TOOLS_SOURCE_H
#define TOOLS_SOURCE_H

#include "mb_base.h"
#include "mb_wire.h"
#include "walk.h"

struct source;

struct source_options {
    bool repair;               /* replace bad UTF-8 instead of refusing it */
    size_t max_document_bytes; /* of a line or file; 0: 256 MiB */
};

/* Slices live until the next call of source_next. */
struct source_document {
    struct mb_slice id;
    struct mb_slice msgpack; /* the whole document, as op put wants it */
    size_t text_bytes;
    const char *path; /* lives as long as the list */
    uint64_t line;    /* 0: the file is the document */
};

/* files must outlive the source. Errors: NOMEM. */
MB_MUST_USE mb_status source_new(const struct walk_list *files,
    const struct source_options *opt, struct source **out,
    struct mb_error *err);
void source_free(struct source *s);
/* The next document; *more is false at the end. An error concerns one document
 * or one file, err says which: one may always go on with the next call. */
MB_MUST_USE mb_status source_next(struct source *s, struct source_document *out,
    bool *more, struct mb_error *err);
/* Bytes of all input, as they lie on disk: those that the documents so far came
 * from, and in all; 0 if that is not known, as for standard input. */
uint64_t source_bytes_read(const struct source *s);
uint64_t source_bytes_total(const struct source *s);

#endif
