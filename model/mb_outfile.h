/* SPDX-License-Identifier: Apache-2.0
 * model/mb_outfile.h - files that appear whole, or not at all.
 *
 * Model files, token shards and checkpoints are written under a temporary name
 * in their own folder, synced, and renamed over the old file as the last step:
 * whatever happens before, a full disk or the end of the process, the old file
 * stays as it was.
 *
 *     outfile_open(path, 0, &f, err);
 *     outfile_write(f, data, size);      // errors wait for the end
 *     outfile_finish(f, NULL, err);      // takes f, whatever it returns
 *
 * Threads: an outfile belongs to one. */
#ifndef MB_OUTFILE_H
#define MB_OUTFILE_H

#include "mb_base.h"

struct outfile;

/* header_bytes: room at the start that outfile_finish fills, when what it says
 * is known. Errors: IO, NO_SPACE, READ_ONLY, NOT_FOUND (folder), NOMEM. */
MB_MUST_USE mb_status outfile_open(const char *path, size_t header_bytes,
    struct outfile **out, struct mb_error *err);
/* The first failure is kept, later calls do nothing. */
void outfile_write(struct outfile *f, const void *data, size_t size);
/* Zeros up to a multiple of `alignment` bytes of the whole file. */
void outfile_pad(struct outfile *f, size_t alignment);
/* Size so far, header included. */
uint64_t outfile_size(const struct outfile *f);
/* outfile_hash_of all bytes behind the header so far. Writes them out: for the
 * end, before the header is made. */
uint64_t outfile_hash(struct outfile *f);
/* Write the header (header_bytes, or NULL if that is 0), sync, rename. On
 * failure the temporary file is gone and what was at path is untouched.
 * Errors: as open. */
MB_MUST_USE mb_status outfile_finish(
    struct outfile *f, const void *header, struct mb_error *err);
/* Give up; takes NULL. */
void outfile_discard(struct outfile *f);

/* A whole file of `size` bytes at once. */
MB_MUST_USE mb_status outfile_put(
    const char *path, const void *data, size_t size, struct mb_error *err);

/* Checksum of what a file holds behind its header: XXH3-64 of each MiB, seeded
 * by the one before (the first by 0). */
uint64_t outfile_hash_of(const void *data, size_t size);

/* A whole file mapped for reading; an empty file has size 0. Errors: NOT_FOUND,
 * IO. */
MB_MUST_USE mb_status outfile_map(
    const char *path, struct mb_slice *out, struct mb_error *err);
void outfile_unmap(struct mb_slice map);

#endif
