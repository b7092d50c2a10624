/* SPDX-License-Identifier: Apache-2.0
 * store/lexicon.h - the distinct terms of one put, numbered.
 *
 * An open-addressed table from a term's hash to its number in this operation;
 * equal hashes are told apart by their bytes. It also merges the terms of a
 * title into those of a segment: `stamp` says in which bag a term was last
 * seen, `pos` where in it.
 * Threads: one. */
#ifndef STORE_LEXICON_H
#define STORE_LEXICON_H

#include "document.h"

struct lexicon {
    struct mb_arena *arena; /* borrowed: bytes of the terms */
    struct new_term *terms;
    uint32_t *stamp;
    uint32_t *pos;
    size_t n;
    size_t capacity;
    uint32_t *slots; /* number + 1; 0: empty */
    size_t n_slots;  /* power of two, at least twice n */
};

/* Errors: NOMEM. */
MB_MUST_USE mb_status lexicon_init(struct lexicon *lex, struct mb_arena *arena);
void lexicon_fini(struct lexicon *lex);
/* Number of a term, new or known. Errors: NOMEM. */
MB_MUST_USE mb_status lexicon_add(
    struct lexicon *lex, const struct mb_term *term, uint32_t *number);

#endif
