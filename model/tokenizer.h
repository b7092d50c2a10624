/* SPDX-License-Identifier: Apache-2.0
 * model/tokenizer.h - the tokenizer's inner steps, for segment.c.
 *
 * A text is encoded unit by unit. A unit is a stretch of text whose tokens do
 * not depend on what stands around it (tokenizer.c says why that is exact), so
 * that whoever needs counts only, or only a part of a text, can go by units
 * too. Private to this folder. */
#ifndef MB_MODEL_TOKENIZER_H
#define MB_MODEL_TOKENIZER_H

#include "mb_model.h"
#include "special.h"

/* What one thread needs to encode: the words seen before, and room to work
 * in. A mb_token_cache is this with a table of words; encoding without a cache
 * makes one without. */
struct mb_token_cache {
    struct word *words; /* NULL: no table */
    uint8_t owner[16];  /* fingerprint of the tokenizer whose words they are */
    uint8_t *unit;      /* a first unit, with the space in front */
    size_t unit_room;
    void *symbols;
    size_t symbols_room;
    void *heap;
    size_t heap_room;
    mb_token_id *ids;
    size_t ids_room;
    struct special_scan scan; /* of user-defined pieces, by tok_unit_end */
};

/* Forget what belongs to another tokenizer. Call before the first unit. */
void tok_begin(const struct mb_tokenizer *tok, struct mb_token_cache *work);
/* Free the room to work in (not the table, nor the object). */
void tok_end(struct mb_token_cache *work);

/* Where the unit that begins at pos < text.size ends. A unit longer than
 * max_size is cut at a character, and *is_forced set: then the tokens on both
 * sides may differ from those of the whole. pos is the end of a unit, or the
 * beginning of a stretch that is to be encoded alone. Errors: NOMEM. */
MB_MUST_USE mb_status tok_unit_end(const struct mb_tokenizer *tok,
    struct mb_token_cache *work, struct mb_slice text, size_t pos,
    size_t max_size, size_t *end, bool *is_forced);

/* Tokens of one unit; at_start: with the space that the tokenizer puts in
 * front of a text. *ids stays valid until the next call. */
MB_MUST_USE mb_status tok_unit_encode(const struct mb_tokenizer *tok,
    struct mb_token_cache *work, struct mb_slice unit, bool at_start,
    const mb_token_id **ids, size_t *n);

/* All units of a text, as mb_tokenizer_encode. Between tok_begin and tok_end. */
MB_MUST_USE mb_status tok_encode(const struct mb_tokenizer *tok,
    struct mb_token_cache *work, struct mb_slice text, struct mb_buffer *out);

/* True if units go by rules that look at blanks ahead: a cut inside a unit, or
 * behind blanks, may move the ends of units around it. */
bool tok_looks_ahead(const struct mb_tokenizer *tok);

/* True if a piece is matched whole wherever it stands, which a cut through it
 * would undo. */
bool tok_has_user_pieces(const struct mb_tokenizer *tok);

/* Bytes of text a token stands for (the space in front counted as one). */
uint32_t tok_text_size(const struct mb_tokenizer *tok, mb_token_id id);

#endif
