/* SPDX-License-Identifier: Apache-2.0
 * tools/common/walk.h - the files that a path stands for.
 *
 * A file stands for itself; a folder for all .txt, .md and .html files below
 * it, in order of name, so that two runs see the same. Hidden entries are left
 * out, symbolic links within a folder are not followed.
 * Threads: any. */
#ifndef TOOLS_WALK_H
#define TOOLS_WALK_H

#include "mb_base.h"

typedef enum walk_kind {
    WALK_TEXT,
    WALK_MARKDOWN,
    WALK_HTML,
    WALK_JSONL /* .jsonl .ndjson, with .zst or .gz behind or not */
} walk_kind;

/* "text", "markdown", "html", "jsonl". */
const char *walk_kind_name(walk_kind kind);

struct walk_file {
    char *path; /* as given and below, without "./" and double slashes */
    walk_kind kind;
    uint64_t bytes; /* on disk */
};

struct walk_list {
    struct walk_file *files;
    size_t n;
    size_t capacity;
};

void walk_list_init(struct walk_list *list);
void walk_list_fini(struct walk_list *list);
/* Append what `path` stands for. A file that is named itself may have any name:
 * text if its ending says nothing. JSONL files are taken only if named.
 * Errors: NOT_FOUND, IO (names the path), TOO_LARGE (deeper than 64), NOMEM. */
MB_MUST_USE mb_status walk_add(
    struct walk_list *list, const char *path, struct mb_error *err);
/* Append one file as JSONL whatever its name; "-" is standard input. */
MB_MUST_USE mb_status walk_add_jsonl(
    struct walk_list *list, const char *path, struct mb_error *err);

#endif
