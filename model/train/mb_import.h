/* SPDX-License-Identifier: Apache-2.0
 * model/train/mb_import.h - a GGUF model as weights in F32: the way back of
 * mb_export.h.
 *
 * Of the `llama` architecture with tied output, as the trainer makes it; any
 * type of tensor that the decoder reads.
 * Threads: immutable once read. */
#ifndef MB_IMPORT_H
#define MB_IMPORT_H

#include "mb_export.h"

struct imported {
    struct train_shape shape; /* n_ctx: the context it was trained for */
    struct export_weight *weights;
    size_t n_weights;
    /* Private. */
    struct mb_arena *arena;
};

/* All weights that `llama` has, by their names. *out is to be freed after
 * success only. Errors: NOT_IMPLEMENTED (another architecture, a scaled RoPE, a
 * tensor's type), NOT_FOUND (a key or tensor), MISMATCH (a tensor's shape),
 * CORRUPT (an impossible shape of the whole), NOMEM. */
MB_MUST_USE mb_status import_gguf(
    const struct mb_gguf *gguf, struct imported *out, struct mb_error *err);
void imported_free(struct imported *m);

#endif
