/* SPDX-License-Identifier: Apache-2.0
 * model/train/mb_checkpoint.h - the state of a training run in one file.
 *
 * Named float arrays (weights and moments), named whole numbers (steps, windows
 * used, shape) and named texts. Windows are functions of their number, so no
 * state of a random generator is kept. The new file replaces the old one only
 * when it is whole and on disk: a full disk or a kill leaves the old one.
 * Bytes: model/FORMAT.md.
 * Threads: one for each object. */
#ifndef MB_CHECKPOINT_H
#define MB_CHECKPOINT_H

#include "mb_base.h"

/* ---- writing ---- */

struct checkpoint_writer;

/* Errors of the three: those of outfile_open; a failure to write waits for
 * finish. */
MB_MUST_USE mb_status checkpoint_begin(
    const char *path, struct checkpoint_writer **out, struct mb_error *err);
/* A name may stand once. Values are written at once. */
void checkpoint_add_floats(struct checkpoint_writer *w, const char *name,
    const float *values, size_t n_rows, size_t n_cols);
void checkpoint_add_number(
    struct checkpoint_writer *w, const char *name, uint64_t value);
void checkpoint_add_text(
    struct checkpoint_writer *w, const char *name, const char *text);
/* Takes w, whatever it returns. */
MB_MUST_USE mb_status checkpoint_finish(
    struct checkpoint_writer *w, struct mb_error *err);
/* Give up; takes NULL. */
void checkpoint_discard(struct checkpoint_writer *w);

/* ---- reading ---- */

struct checkpoint;

/* Map and check the whole file. Errors: NOT_FOUND, IO, FORMAT (another kind of
 * file or version), CORRUPT, NOMEM. */
MB_MUST_USE mb_status checkpoint_open(
    const char *path, struct checkpoint **out, struct mb_error *err);
void checkpoint_close(struct checkpoint *c);

struct checkpoint_array {
    const char *name;
    size_t n_rows;
    size_t n_cols;
    const float *values; /* in the map, aligned to 64 */
};

size_t checkpoint_n_arrays(const struct checkpoint *c);
/* Views that live as long as c. */
struct checkpoint_array checkpoint_array(const struct checkpoint *c, size_t i);
/* Copy the array of this name to out (n_rows, n_cols). Errors: NOT_FOUND,
 * MISMATCH (another shape; err says which). */
MB_MUST_USE mb_status checkpoint_floats(const struct checkpoint *c,
    const char *name, float *out, size_t n_rows, size_t n_cols,
    struct mb_error *err);
/* Errors: NOT_FOUND. */
MB_MUST_USE mb_status checkpoint_number(const struct checkpoint *c,
    const char *name, uint64_t *out, struct mb_error *err);
/* A view; NULL if there is none of this name. */
const char *checkpoint_text(const struct checkpoint *c, const char *name);

#endif
