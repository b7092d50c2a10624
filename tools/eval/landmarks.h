/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/landmarks.h - a context in memory, as options ask for it.
 *
 * Options of the program's table that are read here: context (which memory goes
 * along), k, segment, select, tail, cache.
 * Threads: the main thread. */
#ifndef TOOLS_EVAL_LANDMARKS_H
#define TOOLS_EVAL_LANDMARKS_H

#include "mb_cli.h"
#include "mb_companion.h"
#include "mb_context.h"

struct landmarks {
    struct mb_context_options options;
    struct mb_context_memory *memory;
    struct mb_context *ctx;
    const char *select; /* how --select was spelt */
    const char *tail;   /* and --tail */
    const char *path;   /* of the model: the caller's, before it is opened */
    struct companion companion; /* of memories */
    bool has_companion;
};

/* "f16", "q8_0" or "f32" of --cache. Errors: BAD_ARG. */
MB_MUST_USE mb_status landmarks_cache_type(
    const struct mb_cli *cli, mb_cache_type *out, struct mb_error *err);
/* Is --context one of them? "none" is not. */
bool landmarks_is_kind(const char *kind);
/* An empty context. Errors: BAD_ARG (options), NOT_FOUND (the vocabulary has no
 * landmark, or the model no companion), NOMEM. What was made is to be closed also after a failure. */
MB_MUST_USE mb_status landmarks_open(struct landmarks *l,
    const struct mb_cli *cli, struct mb_gguf *gguf,
    const struct mb_decoder *decoder, const struct mb_tokenizer *tokenizer,
    struct mb_error *err);
void landmarks_close(struct landmarks *l);
/* Blocks that are retrieved for each choice. */
size_t landmarks_k(const struct landmarks *l);

#endif
