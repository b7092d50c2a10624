/* SPDX-License-Identifier: Apache-2.0
 * model/special.h - pieces that are found in a text before all else.
 *
 * User-defined pieces stand for themselves wherever they occur; control tokens
 * do so in prompts only. Which of overlapping ones counts: the longest of the
 * whole text first, of equals the leftmost, as llama.cpp has it.
 *
 * A text is searched as far as its reader needs: hits come in regions, the
 * stretches that overlapping pieces cover, and a region is always resolved
 * whole. From the end of any hit, or of any word between hits, the search may
 * begin anew and finds the same. Private to this folder. */
#ifndef MB_MODEL_SPECIAL_H
#define MB_MODEL_SPECIAL_H

#include "mb_model.h"

struct piece_slot;

/* Texts of some tokens, found by hash; immutable once made. */
struct special_set {
    size_t n;
    struct piece_slot *slots;
    size_t slot_mask;
    uint32_t *sizes;        /* for each first byte the sizes, falling */
    uint32_t sizes_at[257]; /* where those of a first byte begin */
    uint64_t pairs[256][4]; /* bits of the first two bytes that occur; all of
                               a first byte that is a text of its own */
    uint32_t *all_sizes;    /* without repetition, falling */
    size_t n_sizes;
};

/* Is a token of this name a control token, whatever the file says? Such names
 * would let a text end a generation, or open a message. */
bool special_is_control(struct mb_slice piece);
/* Does it end a generation? */
bool special_is_end(struct mb_slice piece);

/* What a token looks like in a text: of a control token its name. */
struct mb_slice special_text(const struct mb_tokenizer *tok, mb_token_id id);

/* The set of these tokens (n_ids, none with an empty text); of two with one
 * text the later counts. Errors: NOMEM. */
MB_MUST_USE mb_status special_set_init(struct special_set *set,
    const struct mb_tokenizer *tok, const mb_token_id *ids, size_t n_ids);
void special_set_fini(struct special_set *set);

/* The token whose text is exactly this, or -1. */
mb_token_id special_find(const struct special_set *set,
    const struct mb_tokenizer *tok, const uint8_t *text, size_t size);
/* The longest that begins at text[pos], or -1. */
mb_token_id special_longest(const struct special_set *set,
    const struct mb_tokenizer *tok, struct mb_slice text, size_t pos);

struct special_hit {
    size_t start;
    size_t end;
    mb_token_id id;
};

/* A search of one text. Begins as all zero. */
struct special_scan {
    const struct special_set *set;
    struct mb_slice text;
    size_t from;    /* hits that begin from here ... */
    size_t scanned; /* ... to here are known */
    struct special_hit *hits;
    size_t n_hits;
    size_t first; /* hit that was not passed yet */
    size_t room;
};

void special_scan_fini(struct special_scan *scan);
/* The first hit that begins at pos or later, if it begins before `upto`; else
 * *out is NULL. *out stays valid until the next call. pos must be the end of a
 * hit or of a word. Errors: NOMEM. */
MB_MUST_USE mb_status special_scan_next(struct special_scan *scan,
    const struct special_set *set, const struct mb_tokenizer *tok,
    struct mb_slice text, size_t pos, size_t upto,
    const struct special_hit **out);

#endif
