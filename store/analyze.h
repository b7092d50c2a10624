/* SPDX-License-Identifier: Apache-2.0
 * store/analyze.h - between the two halves of the analyzer.
 *
 * analyze.c knows Unicode and stemming: the class of a character, the normal
 * form of one word. analyze_text.c cuts text into words, remembers the normal
 * form of frequent ones and counts.
 * Threads: a normaliser belongs to one thread at a time. */
#ifndef STORE_ANALYZE_H
#define STORE_ANALYZE_H

#include "mb_base.h"

/* A term is at most this long; longer ones are cut at a character. */
#define ANALYZE_MAX_TERM 64
/* Bytes of a raw word that its term may depend on. */
#define ANALYZE_MAX_RAW 192

/* What a character is to the cutter. */
enum char_class {
    CHAR_OTHER,      /* ends a word */
    CHAR_LETTER,     /* letters of scripts that set spaces between words */
    CHAR_DIGIT,      /* decimal and other numbers */
    CHAR_MARK,       /* combining: belongs to the character before it */
    CHAR_UNIT,       /* script without spaces, and Hangul: cut to bigrams */
    CHAR_SYMBOL,     /* emoji and their like: each a word of its own */
    CHAR_APOSTROPHE, /* inside a word only */
    CHAR_IGNORED     /* soft hyphen, joiners: not there at all */
};

/* Class of the character at p (p < end, valid UTF-8); *size is its bytes. */
enum char_class analyze_class(
    const uint8_t *p, const uint8_t *end, size_t *size);

/* How to treat a word beyond case and compatibility forms. */
enum word_kind {
    WORD_PLAIN, /* stemmed */
    WORD_EXACT  /* numbers with points, bigrams, c++: as it is */
};

/* Normal form of words in one language. */
struct normaliser;

/* Errors: BAD_ARG (names the language), NOMEM. */
MB_MUST_USE mb_status normaliser_new(
    const char *language, struct normaliser **out, struct mb_error *err);
void normaliser_free(struct normaliser *n);
/* True where an apostrophe ends a word (l'homme) instead of being in it. */
bool normaliser_splits_apostrophes(const struct normaliser *n);
/* True if ASCII letters fold as in English: not so in Turkish. */
bool normaliser_folds_ascii(const struct normaliser *n);
/* Term of a raw word; *size may become 0 (nothing left). NOMEM. */
MB_MUST_USE mb_status normaliser_apply(struct normaliser *n,
    const uint8_t *word, size_t word_size, enum word_kind kind,
    uint8_t out[ANALYZE_MAX_TERM], size_t *size);

#endif
