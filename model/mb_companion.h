/* SPDX-License-Identifier: Apache-2.0
 * model/mb_companion.h - what membank adds to a model: NAME.membank.gguf beside
 * NAME.gguf.
 *
 * The model's own file stays one that llama.cpp loads; weights that only
 * membank knows lie in a second file, which names the first by its fingerprint.
 * Today these are those of the Hierarchical Memory Transformer (He et al. 2024,
 * section 3): segments of a text leave memories, and a summary of what comes
 * before a segment recalls from them (model/train/hmt_graph.h).
 *
 * Bytes: model/FORMAT.md. Threads: immutable once read; writing from any. */
#ifndef MB_COMPANION_H
#define MB_COMPANION_H

#include "mb_model.h"

#define COMPANION_MAX_WIDTH  65536u
#define COMPANION_MAX_TOKENS 65536u
/* They and the memory stand in one block in front of a segment. */
#define COMPANION_MAX_SENSORY 62u

struct companion {
    uint8_t model[16]; /* mb_gguf_fingerprint of the model's file */
    size_t d_model;
    size_t d_key;
    size_t n_segment;     /* tokens of a segment */
    size_t n_summary;     /* that are summarised: the last before a segment */
    size_t n_sensory;     /* tokens of the segment before that stand in front */
    size_t n_memories;    /* that one recall mixes at most: the best of all */
    float gain;           /* root mean square of a recalled memory, as input */
    const float *summary; /* (d_model) the prompt T on both sides */
    const float *first;   /* (d_model) the memory M0 while there is none */
    const float *query;   /* (d_key, d_model) Wq */
    const float *key;     /* (d_key, d_model) Wk */
    struct mb_arena *arena; /* of what was read; NULL else */
};

/* Errors: BAD_ARG (a size out of range), and those of gguf_writer_finish. */
MB_MUST_USE mb_status companion_write(
    const char *path, const struct companion *c, struct mb_error *err);
/* Copies what it needs, the file may be closed after. *out is to be freed after
 * success only. Errors: FORMAT (another kind of file, or version), NOT_FOUND (a
 * key or tensor), CORRUPT (a size out of range, a tensor of another shape or
 * type, a value that is not finite), NOMEM. */
MB_MUST_USE mb_status companion_read(
    const struct mb_gguf *gguf, struct companion *out, struct mb_error *err);
void companion_free(struct companion *c);
/* The one beside the model's file: NAME.membank.gguf beside NAME.gguf, read and
 * checked; and its own fingerprint, unless that is NULL. Errors: those of
 * mb_gguf_open (NOT_FOUND: there is none), companion_read and companion_check. */
MB_MUST_USE mb_status companion_open(const char *model_path,
    struct mb_gguf *model, size_t d_model, struct companion *out,
    uint8_t fingerprint[16], struct mb_error *err);
/* Errors: MISMATCH (made for another model file, or width). */
MB_MUST_USE mb_status companion_check(const struct companion *c,
    const uint8_t model[16], size_t d_model, struct mb_error *err);

#endif
