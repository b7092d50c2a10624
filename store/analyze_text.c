/* SPDX-License-Identifier: Apache-2.0
 * store/analyze_text.c - text to counted terms.
 *
 * Cuts text into words, asks analyze.c for the normal form of each and counts.
 * What is a word follows what people type into a search box; no character is
 * ever syntax:
 * - letters, digits and marks run together: E1042, covid19, naive with any
 *   mark; an apostrophe between letters is inside (don't), but for languages
 *   with elisions (l'homme);
 * - all else cuts: hyphens, slashes, @, underscores. A hyphen between two
 *   parts of which one is tiny gives the joined word too (e-mail: e, mail,
 *   email; covid-19: covid, 19, covid19);
 * - points stay inside numbers, and versions give their beginnings too (3.11.4
 *   also as 3.11); thousands lose their commas; u.s.a. is usa; c++ and c# give
 *   themselves beside c;
 * - scripts without spaces and Hangul give bigrams of characters, one alone
 *   gives itself; an emoji is a word.
 * Speed: most words are ASCII and seen before. Up to 24 bytes of a word are
 * its key in a bounded cache of normal forms, folded by one OR; an entry
 * remembers its place among the terms of this text (valid while its stamp is
 * the current one), so that a repeated word costs one probe.
 * Threads: an analyzer belongs to one thread at a time. */
#include "analyze.h"

#include <string.h>

#include "mb_store.h"

#define CACHE_SLOTS 32768u /* of 64 bytes: 2 MiB, two ways */
#define KEY_BYTES   24
#define CACHED_TERM 23

/* ---- the table of distinct terms and the cache of normal forms ---- */

/* A term of the text at hand. */
struct found {
    uint64_t hash;
    uint32_t offset; /* into bytes */
    uint32_t tf;
    uint32_t size;
};

/* Index into found, good while the stamp is the analyzer's. */
struct slot {
    uint32_t stamp;
    uint32_t index;
};

/* Raw word to term. An all-zero key is an empty entry: words have no NUL. */
struct cached {
    uint64_t key[KEY_BYTES / 8];
    uint64_t hash;
    uint32_t stamp; /* text in which index was set */
    uint32_t index;
    uint8_t size; /* 0: this word gives no term */
    uint8_t bytes[CACHED_TERM];
};

struct mb_analyzer {
    struct normaliser *normaliser;
    bool splits_apostrophes;
    bool folds_ascii;
    struct cached *cache; /* CACHE_SLOTS */
    uint32_t stamp;       /* of the text at hand; never 0 */
    struct found *found;
    size_t n_found;
    size_t max_found;
    struct slot *slots; /* n_slots, a power of two, at most half full */
    size_t n_slots;
    struct mb_buffer bytes; /* of the terms, one after another */
};

mb_status
mb_analyzer_new(
    const char *language, struct mb_analyzer **out, struct mb_error *err)
{
    struct mb_analyzer *an = mb_calloc(1, sizeof *an);
    if (an == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "analyzer: out of memory");
    mb_buffer_init(&an->bytes, UINT32_MAX);
    mb_status st = normaliser_new(language, &an->normaliser, err);
    if (st != MB_OK)
        goto out;
    an->splits_apostrophes = normaliser_splits_apostrophes(an->normaliser);
    an->folds_ascii = normaliser_folds_ascii(an->normaliser);
    an->n_slots = 1024;
    an->max_found = an->n_slots / 2;
    an->cache = mb_calloc(CACHE_SLOTS, sizeof *an->cache);
    an->slots = mb_calloc(an->n_slots, sizeof *an->slots);
    an->found = mb_calloc(an->max_found, sizeof *an->found);
    if (an->cache == NULL || an->slots == NULL || an->found == NULL) {
        st = mb_error_set(err, MB_ERR_NOMEM, "analyzer: out of memory");
        goto out;
    }
    *out = an;
    an = NULL;
out:
    mb_analyzer_free(an);
    return st;
}

void
mb_analyzer_free(struct mb_analyzer *an)
{
    if (an == NULL)
        return;
    normaliser_free(an->normaliser);
    mb_buffer_fini(&an->bytes);
    mb_free(an->cache);
    mb_free(an->slots);
    mb_free(an->found);
    mb_free(an);
}

/* Begin a text: everything with an older stamp is forgotten. */
static void
start_text(struct mb_analyzer *an)
{
    an->n_found = 0;
    mb_buffer_clear(&an->bytes);
    if (++an->stamp == 0) { // 4 billion texts: clear what could be mistaken
        for (size_t i = 0; i < CACHE_SLOTS; i++) {
            an->cache[i].stamp = 0;
        }
        memset(an->slots, 0, an->n_slots * sizeof *an->slots);
        an->stamp = 1;
    }
}

/* Twice the room for distinct terms. */
static mb_status
grow_table(struct mb_analyzer *an)
{
    if (an->n_slots > UINT32_MAX / 2)
        return MB_ERR_TOO_LARGE;
    size_t n_slots = an->n_slots * 2;
    struct found *found =
        mb_realloc(an->found, n_slots / 2 * sizeof *an->found);
    if (found == NULL)
        return MB_ERR_NOMEM;
    an->found = found;
    struct slot *slots = mb_calloc(n_slots, sizeof *slots);
    if (slots == NULL)
        return MB_ERR_NOMEM;
    for (size_t i = 0; i < an->n_found; i++) {
        size_t s = (size_t)an->found[i].hash & (n_slots - 1);
        while (slots[s].stamp != 0) {
            s = (s + 1) & (n_slots - 1);
        }
        slots[s] = (struct slot){an->stamp, (uint32_t)i};
    }
    mb_free(an->slots);
    an->slots = slots;
    an->n_slots = n_slots;
    an->max_found = n_slots / 2;
    return MB_OK;
}

/* Count a term; *index is its place in found. */
static mb_status
count_term(struct mb_analyzer *an, const uint8_t *bytes, size_t size,
    uint64_t hash, uint32_t *index)
{
    size_t s = (size_t)hash & (an->n_slots - 1);
    for (; an->slots[s].stamp == an->stamp; s = (s + 1) & (an->n_slots - 1)) {
        struct found *f = &an->found[an->slots[s].index];
        if (f->hash == hash && f->size == size &&
            memcmp(an->bytes.data + f->offset, bytes, size) == 0) {
            f->tf += f->tf < UINT32_MAX;
            *index = an->slots[s].index;
            return MB_OK;
        }
    }
    mb_status st = MB_OK;
    if (an->n_found == an->max_found) {
        st = grow_table(an);
        if (st != MB_OK)
            return st;
        s = (size_t)hash & (an->n_slots - 1);
        while (an->slots[s].stamp == an->stamp) {
            s = (s + 1) & (an->n_slots - 1);
        }
    }
    uint32_t offset = (uint32_t)an->bytes.size;
    st = mb_buffer_append(&an->bytes, bytes, size);
    if (st != MB_OK)
        return st;
    an->found[an->n_found] = (struct found){hash, offset, 1, (uint32_t)size};
    an->slots[s] = (struct slot){an->stamp, (uint32_t)an->n_found};
    *index = (uint32_t)an->n_found++;
    return MB_OK;
}

/* Up to 8 bytes, little-endian: one load for whole words on such machines. */
static inline uint64_t
load_bytes(const uint8_t *p, size_t size)
{
    if (size >= 8)
        return (uint64_t)p[0] | (uint64_t)p[1] << 8 | (uint64_t)p[2] << 16 |
               (uint64_t)p[3] << 24 | (uint64_t)p[4] << 32 |
               (uint64_t)p[5] << 40 | (uint64_t)p[6] << 48 |
               (uint64_t)p[7] << 56;
    uint64_t v = 0;
    for (size_t i = 0; i < size; i++) {
        v |= (uint64_t)p[i] << (8 * i);
    }
    return v;
}

/* The first `size` bytes at p, of which `room` may be read, as one number.
 * An ASCII word is folded: every character of such a word but the capitals
 * has this bit already. */
static inline uint64_t
load_key(const uint8_t *p, size_t size, size_t room, bool fold)
{
    uint64_t mask = size >= 8 ? UINT64_MAX : ((uint64_t)1 << (8 * size)) - 1;
    uint64_t v = load_bytes(p, room >= 8 ? 8 : size) & mask;
    return fold ? v | (UINT64_C(0x2020202020202020) & mask) : v;
}

static mb_status
fill_cached(struct mb_analyzer *an, struct cached *c, const uint64_t key[3],
    const uint8_t *word, size_t size, enum word_kind kind)
{
    uint8_t term[ANALYZE_MAX_TERM];
    size_t term_size = 0;
    mb_status st =
        normaliser_apply(an->normaliser, word, size, kind, term, &term_size);
    if (st != MB_OK)
        return st;
    uint64_t hash = mb_hash64(term, term_size, 0);
    uint32_t index = 0;
    if (term_size > 0)
        st = count_term(an, term, term_size, hash, &index);
    if (st == MB_OK && c != NULL && term_size <= CACHED_TERM) {
        memcpy(c->key, key, sizeof c->key);
        c->hash = hash;
        c->stamp = an->stamp;
        c->index = index;
        c->size = (uint8_t)term_size;
        memcpy(c->bytes, term, term_size);
    }
    return st;
}

/* Count one raw word. `end` is where reading must stop; folds: the word is
 * ASCII, and its case does not matter. */
static mb_status
take_word(struct mb_analyzer *an, const uint8_t *word, size_t size,
    const uint8_t *end, bool folds, enum word_kind kind)
{
    if (size > KEY_BYTES)
        return fill_cached(an, NULL, NULL, word, size, kind);
    size_t room = (size_t)(end - word);
    uint64_t key[3] = {load_key(word, size, room, folds), 0, 0};
    if (size > 8)
        key[1] = load_key(word + 8, size - 8, room - 8, folds);
    if (size > 16)
        key[2] = load_key(word + 16, size - 16, room - 16, folds);
    uint64_t h = (key[0] ^ (key[1] * UINT64_C(0x9FB21C651E98DF25)) ^
                     (key[2] * UINT64_C(0xC2B2AE3D27D4EB4F))) *
                 UINT64_C(0x9E3779B97F4A7C15);
    struct cached *set = &an->cache[(h >> 40) & (CACHE_SLOTS - 2)];
    struct cached *c = set;
    if (memcmp(c->key, key, sizeof key) != 0) {
        c = set + 1;
        if (memcmp(c->key, key, sizeof key) != 0) {
            // The newer word goes first: what is frequent comes back there.
            set[1] = set[0];
            memset(set[0].key, 0, sizeof set[0].key);
            return fill_cached(an, set, key, word, size, kind);
        }
    }
    if (c->size == 0)
        return MB_OK;
    if (c->stamp == an->stamp) {
        an->found[c->index].tf += an->found[c->index].tf < UINT32_MAX;
        return MB_OK;
    }
    uint32_t index = 0;
    mb_status st = count_term(an, c->bytes, c->size, c->hash, &index);
    if (st == MB_OK) {
        c->stamp = an->stamp;
        c->index = index;
    }
    return st;
}

/* ---- cutting ---- */

/* ASCII: 1 letter, 2 digit, 0 all else. */
#define LETTER 1
#define DIGIT  2

static const uint8_t ascii_class[256] = {
    ['0'] = DIGIT,
    ['1'] = DIGIT,
    ['2'] = DIGIT,
    ['3'] = DIGIT,
    ['4'] = DIGIT,
    ['5'] = DIGIT,
    ['6'] = DIGIT,
    ['7'] = DIGIT,
    ['8'] = DIGIT,
    ['9'] = DIGIT,
    ['a'] = LETTER,
    ['b'] = LETTER,
    ['c'] = LETTER,
    ['d'] = LETTER,
    ['e'] = LETTER,
    ['f'] = LETTER,
    ['g'] = LETTER,
    ['h'] = LETTER,
    ['i'] = LETTER,
    ['j'] = LETTER,
    ['k'] = LETTER,
    ['l'] = LETTER,
    ['m'] = LETTER,
    ['n'] = LETTER,
    ['o'] = LETTER,
    ['p'] = LETTER,
    ['q'] = LETTER,
    ['r'] = LETTER,
    ['s'] = LETTER,
    ['t'] = LETTER,
    ['u'] = LETTER,
    ['v'] = LETTER,
    ['w'] = LETTER,
    ['x'] = LETTER,
    ['y'] = LETTER,
    ['z'] = LETTER,
    ['A'] = LETTER,
    ['B'] = LETTER,
    ['C'] = LETTER,
    ['D'] = LETTER,
    ['E'] = LETTER,
    ['F'] = LETTER,
    ['G'] = LETTER,
    ['H'] = LETTER,
    ['I'] = LETTER,
    ['J'] = LETTER,
    ['K'] = LETTER,
    ['L'] = LETTER,
    ['M'] = LETTER,
    ['N'] = LETTER,
    ['O'] = LETTER,
    ['P'] = LETTER,
    ['Q'] = LETTER,
    ['R'] = LETTER,
    ['S'] = LETTER,
    ['T'] = LETTER,
    ['U'] = LETTER,
    ['V'] = LETTER,
    ['W'] = LETTER,
    ['X'] = LETTER,
    ['Y'] = LETTER,
    ['Z'] = LETTER,
};

/* The text being cut, and the word just cut from it. */
struct cutter {
    struct mb_analyzer *an;
    const uint8_t *end;
    const uint8_t *word;
    const uint8_t *stop;
    unsigned has;    /* LETTER, DIGIT */
    unsigned points; /* inside a number */
    bool unicode;    /* has bytes above ASCII */
    /* A compound with hyphens: its first part, NULL if not fit to be joined,
     * whether that has letters, and how many parts there were. */
    const uint8_t *left;
    bool left_letters;
    unsigned n_parts;
};

static bool
is_letter_at(const uint8_t *p, const uint8_t *end)
{
    if (p >= end)
        return false;
    if (*p < 0x80)
        return ascii_class[*p] == LETTER;
    size_t size;
    return analyze_class(p, end, &size) == CHAR_LETTER;
}

static bool
is_digit_at(const uint8_t *p, const uint8_t *end)
{
    return p < end && ascii_class[*p] == DIGIT;
}

/* p is at the comma of a number: three digits follow, not four, and at most
 * three stand before it. */
static bool
is_thousands(const struct cutter *c, const uint8_t *p)
{
    const uint8_t *q = p;
    while (q > c->word && ascii_class[q[-1]] == DIGIT) {
        q--;
    }
    bool whole = q == c->word || q[-1] == ',';
    return whole && p - q >= 1 && p - q <= 3 && is_digit_at(p + 1, c->end) &&
           is_digit_at(p + 2, c->end) && is_digit_at(p + 3, c->end) &&
           !is_digit_at(p + 4, c->end);
}

/* p is at the point of an abbreviation of single letters: a letter before it
 * that stands alone, and one after it. */
static bool
is_initials(const struct cutter *c, const uint8_t *p)
{
    bool alone = p - c->word == 1 || (p - c->word >= 3 && p[-2] == '.');
    return alone && c->has == LETTER && !c->unicode && p + 1 < c->end &&
           ascii_class[p[1]] == LETTER &&
           (p + 2 == c->end || (ascii_class[p[2]] == 0 && p[2] < 0x80));
}

/* Does the word go on over the character at p, which is neither letter nor
 * digit in ASCII? *size is its length then. */
static bool
goes_on(struct cutter *c, const uint8_t *p, size_t *size)
{
    *size = 1;
    uint8_t before = p > c->word ? p[-1] : 0;
    if (*p == '\'')
        return !c->an->splits_apostrophes && ascii_class[before] != DIGIT &&
               is_letter_at(p + 1, c->end);
    if (*p == '.') {
        if (ascii_class[before] == DIGIT && is_digit_at(p + 1, c->end)) {
            c->points++;
            return true;
        }
        return is_initials(c, p);
    }
    if (*p == ',')
        return ascii_class[before] == DIGIT && is_thousands(c, p);
    if (*p < 0x80)
        return false;
    switch (analyze_class(p, c->end, size)) {
    case CHAR_LETTER:
        c->has |= LETTER;
        break;
    case CHAR_DIGIT:
        c->has |= DIGIT;
        break;
    case CHAR_MARK:
    case CHAR_IGNORED:
        break;
    case CHAR_APOSTROPHE:
        if (c->an->splits_apostrophes || !is_letter_at(p + *size, c->end))
            return false;
        break;
    default:
        return false;
    }
    c->unicode = true;
    return true;
}

/* Cut the word that begins at p. */
static void
cut_word(struct cutter *c, const uint8_t *p)
{
    c->word = p;
    c->has = 0;
    c->points = 0;
    c->unicode = false;
    for (;;) {
        unsigned class;
        while (p < c->end && (class = ascii_class[*p]) != 0) {
            c->has |= class;
            p++;
        }
        size_t size;
        if (p == c->end || !goes_on(c, p, &size))
            break;
        p += size;
    }
    c->stop = p;
}

/* 3.11.4 counts as 3.11 too: what stands before each point but the first. */
static mb_status
take_beginnings(struct cutter *c)
{
    mb_status st = MB_OK;
    unsigned points = 0;
    for (const uint8_t *p = c->word; p < c->stop && st == MB_OK; p++) {
        if (*p == '.' && points++ > 0)
            st = take_word(c->an, c->word, (size_t)(p - c->word), c->end,
                c->an->folds_ascii && !c->unicode, WORD_EXACT);
    }
    return st;
}

/* c++, c#: the sign belongs to what stands before it. Moves *p past it. */
static mb_status
take_signs(struct cutter *c, const uint8_t **p)
{
    size_t signs = 0;
    const uint8_t *q = c->stop;
    if (q + 1 < c->end && q[0] == '+' && q[1] == '+')
        signs = 2;
    else if (q < c->end && *q == '#' && c->stop - c->word == 1)
        signs = 1;
    if (signs == 0 || c->unicode || (c->has & LETTER) == 0 ||
        (q + signs < c->end && ascii_class[q[signs]] != 0))
        return MB_OK;
    *p = q + signs;
    return take_word(c->an, c->word, (size_t)(*p - c->word), c->end,
        c->an->folds_ascii, WORD_EXACT);
}

/* e-mail: the first part and the word just cut, joined, if one is tiny. */
static mb_status
take_joined(struct cutter *c)
{
    uint8_t joined[2 * KEY_BYTES];
    size_t n1 = (size_t)(c->word - 1 - c->left);
    size_t n2 = (size_t)(c->stop - c->word);
    if ((n1 > 2 && n2 > 2) || n1 + n2 > KEY_BYTES || c->points > 0 ||
        c->unicode || (!c->left_letters && (c->has & LETTER) == 0))
        return MB_OK;
    memset(joined, 0, sizeof joined);
    memcpy(joined, c->left, n1);
    memcpy(joined + n1, c->word, n2);
    return take_word(c->an, joined, n1 + n2, joined + sizeof joined,
        c->an->folds_ascii, WORD_PLAIN);
}

/* The word at p and what its neighbourhood adds. */
static mb_status
take_at(struct cutter *c, const uint8_t **p)
{
    cut_word(c, *p);
    mb_status st = take_word(c->an, c->word, (size_t)(c->stop - c->word),
        c->end, c->an->folds_ascii && !c->unicode,
        c->points > 0 ? WORD_EXACT : WORD_PLAIN);
    if (st == MB_OK && c->points > 1)
        st = take_beginnings(c);
    const uint8_t *next = c->stop;
    if (next + 1 < c->end && *next == '-' && ascii_class[next[1]] != 0) {
        bool fit = !c->unicode && c->points == 0;
        if (++c->n_parts == 1) {
            c->left = fit ? c->word : NULL;
            c->left_letters = (c->has & LETTER) != 0;
        }
        *p = next + 1;
        return st;
    }
    // Only compounds of two parts are joined: state-of-the-art is not.
    if (st == MB_OK && c->n_parts == 1 && c->left != NULL)
        st = take_joined(c);
    c->n_parts = 0;
    if (st == MB_OK && next < c->end && (*next == '+' || *next == '#'))
        st = take_signs(c, &next);
    *p = next;
    return st;
}

/* A run of units at p: each two neighbours, or the only one. */
static mb_status
take_units(struct cutter *c, const uint8_t **p)
{
    const uint8_t *start = *p; // of the unit before
    const uint8_t *q = *p;
    const uint8_t *unit = NULL;
    size_t n = 0;
    mb_status st = MB_OK;
    while (q < c->end && st == MB_OK) {
        size_t size;
        enum char_class class = analyze_class(q, c->end, &size);
        if (class != CHAR_UNIT)
            break;
        unit = q;
        do { // its marks
            q += size;
            class = q < c->end ? analyze_class(q, c->end, &size) : CHAR_OTHER;
        } while (class == CHAR_MARK || class == CHAR_IGNORED);
        if (++n > 1)
            st = take_word(
                c->an, start, (size_t)(q - start), c->end, false, WORD_EXACT);
        start = unit;
    }
    if (n == 1 && st == MB_OK)
        st = take_word(
            c->an, start, (size_t)(q - start), c->end, false, WORD_EXACT);
    *p = q;
    return st;
}

static mb_status
cut_text(struct mb_analyzer *an, struct mb_slice text)
{
    struct cutter c = {.an = an};
    const uint8_t *p = text.data;
    c.end = text.size > 0 ? p + text.size : p;
    mb_status st = MB_OK;
    while (p < c.end && st == MB_OK) {
        if (ascii_class[*p] != 0) {
            st = take_at(&c, &p);
            continue;
        }
        c.n_parts = 0;
        if (*p < 0x80) {
            p++;
            continue;
        }
        size_t size;
        switch (analyze_class(p, c.end, &size)) {
        case CHAR_LETTER:
        case CHAR_DIGIT:
            st = take_at(&c, &p);
            break;
        case CHAR_UNIT:
            st = take_units(&c, &p);
            break;
        case CHAR_SYMBOL:
            st = take_word(an, p, size, c.end, false, WORD_EXACT);
            p += size;
            break;
        default:
            p += size;
        }
    }
    return st;
}

/* ---- public ---- */

mb_status
mb_analyze(struct mb_analyzer *an, struct mb_slice text, struct mb_arena *arena,
    struct mb_term **out, size_t *n, struct mb_error *err)
{
    start_text(an);
    mb_status st = cut_text(an, text);
    if (st != MB_OK)
        return mb_error_set(
            err, st, "analyze %zu bytes: out of memory", text.size);
    // At least one byte each, so that an empty text is no special case.
    struct mb_term *terms =
        mb_arena_alloc(arena, (an->n_found + 1) * sizeof *terms);
    uint8_t *bytes = mb_arena_alloc(arena, an->bytes.size + 1);
    if (terms == NULL || bytes == NULL)
        return mb_error_set(
            err, MB_ERR_NOMEM, "analyze %zu bytes: arena is full", text.size);
    if (an->bytes.size > 0)
        memcpy(bytes, an->bytes.data, an->bytes.size);
    for (size_t i = 0; i < an->n_found; i++) {
        const struct found *f = &an->found[i];
        terms[i].bytes = mb_slice_of(bytes + f->offset, f->size);
        terms[i].hash = f->hash;
        terms[i].tf = f->tf;
    }
    *out = terms;
    *n = an->n_found;
    return MB_OK;
}
