/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/subject.h - a model that is examined, and texts made for it.
 *
 * Life: zero the struct -> subject_open -> ... -> subject_close, also after a
 * failure.
 * Threads: the main thread; passes have their own. */
#ifndef TOOLS_EVAL_SUBJECT_H
#define TOOLS_EVAL_SUBJECT_H

#include "landmarks.h"

#define SUBJECT_MAX_NUMBERS 32u

/* Tokens of a growing text. Zero it before use; ids are freed by its owner. */
struct tokens {
    mb_token_id *ids;
    size_t n;
    size_t capacity;
};

struct subject {
    const struct mb_cli *cli;
    struct mb_gguf *gguf;
    struct mb_decoder *decoder;
    struct mb_tokenizer *tokenizer;
    struct mb_token_cache *words;
    struct mb_pass *pass;
    struct landmarks landmarks; /* as options ask for it */
    struct tokens filler;
    struct mb_buffer encoded; /* of the last text */
};

/* Opens --model on --threads, and a context. Errors: those of files and the
 * model, BAD_ARG. */
MB_MUST_USE mb_status subject_open(
    struct subject *s, const struct mb_cli *cli, struct mb_error *err);
void subject_close(struct subject *s);

/* Numbers of an option with commas between. Errors: BAD_ARG. */
MB_MUST_USE mb_status subject_read_numbers(const struct subject *s,
    const char *option, uint64_t min, uint64_t max,
    uint64_t out[SUBJECT_MAX_NUMBERS], size_t *n, struct mb_error *err);

MB_MUST_USE mb_status subject_add_ids(
    struct tokens *to, const mb_token_id *ids, size_t n, struct mb_error *err);
MB_MUST_USE mb_status subject_add_text(struct subject *s, struct tokens *to,
    struct mb_slice text, struct mb_error *err);
/* Fill `filler`: from --filler about n tokens of natural text, else five
 * sentences. Errors: NOT_FOUND (no text), those of files. */
MB_MUST_USE mb_status subject_read_filler(
    struct subject *s, uint64_t n, struct mb_error *err);
/* n tokens of filler from *at on, around its end. */
MB_MUST_USE mb_status subject_add_filler(struct subject *s, struct tokens *to,
    size_t *at, size_t n, struct mb_error *err);

#endif
