/* SPDX-License-Identifier: Apache-2.0
 * tools/common/lines.h - lines of a file that may be compressed.
 *
 * Plain, zstd and gzip files, and standard input ("-"), told apart by their
 * first bytes, not by their names. Memory stays bounded whatever the file is:
 * a line past the limit is reported and skipped.
 * Threads: a reader belongs to one. */
#ifndef TOOLS_LINES_H
#define TOOLS_LINES_H

#include "mb_base.h"

struct lines;

/* max_line: bytes a line may have. Errors: NOT_FOUND, IO, NOMEM. */
MB_MUST_USE mb_status lines_open(const char *path, size_t max_line,
    struct lines **out, struct mb_error *err);
void lines_close(struct lines *l);

/* The next line without its end ("\n" or "\r\n"), a view that the next call
 * ends; a byte-order mark at the start of the file is left out. At the end *more
 * is false. Errors: TOO_LARGE (the line is skipped, one may go on), CORRUPT
 * (compressed bytes damaged or cut), IO, NOMEM; err says which file and line. */
MB_MUST_USE mb_status lines_next(
    struct lines *l, struct mb_slice *line, bool *more, struct mb_error *err);
/* Number of the last line given, from 1. */
uint64_t lines_number(const struct lines *l);
/* Bytes of the file, as they lie on disk, that the lines so far came from (an
 * estimate within packed ones); and its size, 0 where that is not known. */
uint64_t lines_bytes_read(const struct lines *l);
uint64_t lines_bytes_total(const struct lines *l);

/* A whole file as bytes appended to out. "-" is standard input.
 * Errors: NOT_FOUND, IO, TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status file_read(
    const char *path, struct mb_buffer *out, struct mb_error *err);
/* Size of a regular file, 0 for anything else. */
uint64_t file_size(const char *path);

#endif
