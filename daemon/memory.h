/* SPDX-License-Identifier: Apache-2.0
 * daemon/memory.h - what args.memory asks for, packed into what a model reads.
 *
 * retrieve: passages that a question finds stand in front of the prompt, the
 * best one last, next to it, by the collection's template. As many are taken
 * as fit: into the token budget, and into the window beside the prompt and the
 * tokens to be generated.
 * Life: memory_read -> memory_pack; all in the arena of the call.
 * Threads: as its call. */
#ifndef DAEMON_MEMORY_H
#define DAEMON_MEMORY_H

#include "call.h"
#include "dispatch.h"

struct bank_loan;

/* Memory blocks: those that help, none, or an error if there is no bank. */
enum memory_bank { MEMORY_BANK_AUTO, MEMORY_BANK_OFF, MEMORY_BANK_ON };

/* The forms of memory that a request wants. Zero: none. */
struct memory {
    size_t n_retrieve;     /* passages to look for; 0: none */
    struct mb_slice query; /* what to look for; empty: the prompt */
    size_t max_tokens;     /* of all passages together; 0: what fits */
    mb_search_mode mode;
    const struct mb_value *filter; /* NULL: none */
    enum memory_bank bank;
};

/* Read args.memory. Errors: BAD_ARG, NOT_IMPLEMENTED (landmark, hmt),
 * TOO_LARGE. */
MB_MUST_USE mb_status memory_read(struct call *c, struct memory *out);

/* If passages are looked for by vectors of the model's, and it was not asked
 * yet: note the question in c->vectors and say true; the caller calls call_ask
 * and is run again. prompt: as it will be packed. Errors: as memory_pack. */
MB_MUST_USE mb_status memory_ask(struct call *c, struct worker *w,
    const struct memory *m, struct mb_slice prompt, bool *asks);

/* A passage that was used. */
struct memory_passage {
    struct mb_slice id; /* of the document */
    uint32_t segment;
    uint32_t start;
    uint32_t end;
    float score;
    size_t n_tokens; /* of the passage as it is packed */
    struct mb_slice packed;
};

struct memory_packing {
    struct call *c;
    struct worker *w;
    const struct memory *memory;
    struct mb_slice prompt;
    size_t room; /* tokens for all that the model is to read */
    /* Append the tokens that the model reads for `text`, the prompt with its
     * passages, to tokens. */
    mb_status (*encode)(void *arg, struct mb_slice text,
        struct mb_buffer *tokens, struct mb_error *err);
    void *arg;
    /* Results: appended to tokens; the rest lives in the call's arena. */
    struct mb_buffer *tokens; /* mb_token_id */
    struct mb_slice text;
    struct memory_passage *used; /* best first */
    size_t n_used;
};

/* Find, choose, put together, encode. A prompt that alone is larger than the
 * room gets no passages. Errors: NOT_FOUND (collection), TOO_LARGE, CORRUPT,
 * NOMEM, those of encode. */
MB_MUST_USE mb_status memory_pack(struct memory_packing *p);
/* Lend the blocks that the request's memory asks for, routed by what is looked
 * for; *loan NULL: none. Errors: those of bank_loan_new. */
MB_MUST_USE mb_status memory_lend(struct call *c, struct worker *w,
    const struct memory *m, struct mb_slice prompt, struct bank_loan **loan);
/* "used": {"segments": [...], "bank"?: {...}}. loan may be NULL. */
void memory_write_used(struct mb_writer *w, const struct memory_passage *used,
    size_t n, const struct bank_loan *loan);

/* ---- templates ---- */

#define MEMORY_PROMPT_TEMPLATE  "{passages}{prompt}"
#define MEMORY_PASSAGE_TEMPLATE "{title}\n{passage}\n\n"
#define MEMORY_MAX_TEMPLATE     4096 /* bytes */

/* What a name in braces stands for. */
struct memory_value {
    const char *name; /* "{prompt}" */
    struct mb_slice value;
};

/* Append tmpl with the names of values replaced; other braces stay, and what a
 * value holds is not looked at again. A line that consists of names alone, all
 * of them empty, is left out. Errors: TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status memory_render(struct mb_slice tmpl,
    const struct memory_value *values, size_t n, struct mb_buffer *out);

#endif
