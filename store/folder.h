/* SPDX-License-Identifier: Apache-2.0
 * store/folder.h - the folder a store lives in: lock file, marks, free space.
 *
 * A store is a folder with data.mdb and lock.mdb (LMDB's) and membank.lock
 * (ours). The writer holds an exclusive flock on membank.lock for its life, so
 * that a second one gets a clear answer at once. Its first line is written after
 * the first commit: from then on an empty or short data.mdb means damage, not a
 * creation that was interrupted. Its second line says whether the last writer
 * ended in order. */
#ifndef STORE_FOLDER_H
#define STORE_FOLDER_H

#include "mb_base.h"

#define FOLDER_MAX_PATH 4096

struct folder {
    char path[FOLDER_MAX_PATH];
    int lock_fd;   /* -1: none */
    bool complete; /* a store was made here once */
    bool was_shut; /* by the last writer, in order; true of a new store */
    bool has_data; /* data.mdb is there with at least two pages */
    bool no_lock;  /* read-only without LMDB's reader table */
};

/* Find or make the folder and take the lock that fits. Errors: NOT_FOUND,
 * LOCKED, READ_ONLY, IO, NO_SPACE, CORRUPT (data.mdb is cut short). */
MB_MUST_USE mb_status folder_open(struct folder *f, const char *path,
    bool read_only, bool create, struct mb_error *err);
void folder_close(struct folder *f);
/* Note durably that the store exists (after the first commit) and is open. */
MB_MUST_USE mb_status folder_mark_open(struct folder *f, struct mb_error *err);
/* Note that it was shut in order. Failing is harmless: work is done again. */
void folder_mark_shut(struct folder *f);

/* "PATH/NAME" into out (FOLDER_MAX_PATH). Errors: TOO_LARGE. */
MB_MUST_USE mb_status folder_join(
    const char *path, const char *name, char *out, struct mb_error *err);
/* Make an empty folder for a copy; afterwards sync and mark it.
 * Errors: EXISTS (not empty), IO, NO_SPACE, READ_ONLY. */
MB_MUST_USE mb_status folder_make_empty(const char *path, struct mb_error *err);
MB_MUST_USE mb_status folder_finish_copy(
    const char *path, struct mb_error *err);
/* True if the file system has next to no room, or data.mdb is at the process's
 * file size limit: then a short write means just that. */
bool folder_is_full(const char *path);
/* Status for an errno of a file call. */
mb_status folder_status(int error);

#endif
