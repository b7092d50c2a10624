/* SPDX-License-Identifier: Apache-2.0
 * model/pretoken.h - where a byte-level BPE vocabulary cuts a text into words.
 *
 * Such a vocabulary merges inside words only, and names the rule that makes
 * them (tokenizer.ggml.pre). The rules were published as regular expressions;
 * here each is a function that finds the end of the word at a place.
 *
 * A rule has no memory: from the end of one word it goes on as if the text
 * began there. And a word that no blank ends stays the same when the text is
 * cut at its end.
 * Private to this folder. Threads: any. */
#ifndef MB_MODEL_PRETOKEN_H
#define MB_MODEL_PRETOKEN_H

#include "mb_base.h"

struct pretoken_text {
    const uint8_t *data;
    size_t size;
    const uint8_t *classes; /* unicode_fill_bmp() */
    bool reached; /* set if a rule saw the end: more text might change words */
};

struct pretokenizer {
    const char *name;
    size_t (*end)(struct pretoken_text *text, size_t pos);
    bool ignore_merges; /* a word that is a piece is one token */
    bool add_bos;       /* where the file does not say */
};

/* The rule of a name, or NULL. */
const struct pretokenizer *pretoken_find(struct mb_slice name);

/* Where the word that begins at pos < text->size ends. */
static inline size_t
pretoken_end(
    const struct pretokenizer *pre, struct pretoken_text *text, size_t pos)
{
    return pre->end(text, pos);
}

#endif
