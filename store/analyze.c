/* SPDX-License-Identifier: Apache-2.0
 * store/analyze.c - characters and the normal form of a word.
 *
 * The only file that knows utf8proc and libstemmer. A word goes through case
 * folding and NFKC (so that full-width, ligatures and superscripts meet their
 * plain forms), the Snowball stemmer of the language, and then loses its
 * diacritics where the language treats them as ornaments: people leave them
 * out when they search. Stemmers see the marks, for some depend on them.
 * Invariants: the normal form depends on language and bytes alone, so that a
 * query meets the document; a term is valid UTF-8 of at most ANALYZE_MAX_TERM
 * bytes. Changing either asks for a new store version: terms are on disk.
 * Threads: see analyze.h. */
#include "analyze.h"

#include <string.h>

#include <libstemmer.h>
#include <utf8proc.h>

#include "mb_store.h"

/* Code points of one word: ANALYZE_MAX_RAW bytes, each of which may expand
 * (U+FDFA to 18). What does not fit falls back to its bytes. */
#define MAX_POINTS 1024

/* ---- languages ---- */

struct language {
    const char *name;
    bool keeps_marks; /* letters with marks are letters of their own */
    bool splits_apostrophes;
    bool own_ascii; /* I and i are not a pair */
};

/* "none" is ours; all others are Snowball's. */
static const struct language languages[] = {
    {"none", false, false, false},
    {"arabic", false, false, false},
    {"armenian", false, false, false},
    {"basque", false, false, false},
    {"catalan", false, true, false},
    {"danish", true, false, false},
    {"dutch", false, false, false},
    {"english", false, false, false},
    {"finnish", true, false, false},
    {"french", false, true, false},
    {"german", false, false, false},
    {"greek", false, false, false},
    {"hindi", false, false, false},
    {"hungarian", true, false, false},
    {"indonesian", false, false, false},
    {"irish", false, true, false},
    {"italian", false, true, false},
    {"lithuanian", true, false, false},
    {"nepali", false, false, false},
    {"norwegian", true, false, false},
    {"porter", false, false, false},
    {"portuguese", false, true, false},
    {"romanian", false, false, false},
    {"russian", false, false, false},
    {"serbian", false, false, false},
    {"spanish", false, false, false},
    {"swedish", true, false, false},
    {"tamil", false, false, false},
    {"turkish", true, false, true},
    {"yiddish", false, false, false},
};

#define N_LANGUAGES (sizeof languages / sizeof languages[0])

static const char *const language_names[N_LANGUAGES + 1] = {"none", "arabic",
    "armenian", "basque", "catalan", "danish", "dutch", "english", "finnish",
    "french", "german", "greek", "hindi", "hungarian", "indonesian", "irish",
    "italian", "lithuanian", "nepali", "norwegian", "porter", "portuguese",
    "romanian", "russian", "serbian", "spanish", "swedish", "tamil", "turkish",
    "yiddish", NULL};

const char *const *
mb_analyzer_languages(void)
{
    return language_names;
}

/* ---- characters ---- */

struct range {
    int32_t first;
    int32_t last;
};

static bool
in_ranges(const struct range *ranges, size_t n, int32_t cp)
{
    for (size_t i = 0; i < n; i++) {
        if (cp <= ranges[i].last)
            return cp >= ranges[i].first;
    }
    return false;
}

/* Scripts that set no spaces between words, and Hangul, whose words carry
 * particles that a search does not. Rising. */
static bool
is_unit(int32_t cp)
{
    static const struct range ranges[] = {
        {0x0E00, 0x0EFF},   /* Thai, Lao */
        {0x1000, 0x109F},   /* Myanmar */
        {0x1100, 0x11FF},   /* Hangul jamo */
        {0x1780, 0x17FF},   /* Khmer */
        {0x1950, 0x19DF},   /* Tai Le, New Tai Lue */
        {0x1A20, 0x1AAF},   /* Tai Tham */
        {0x2E80, 0x2FDF},   /* radicals */
        {0x3005, 0x3007},   /* iteration mark, ideographic zero */
        {0x3021, 0x3029},   /* Hangzhou numerals */
        {0x3031, 0x303C},   /* kana repeat marks */
        {0x3041, 0x312F},   /* Hiragana, Katakana, Bopomofo */
        {0x3130, 0x318F},   /* Hangul compatibility jamo */
        {0x31A0, 0x31BF},   /* Bopomofo extended */
        {0x31F0, 0x31FF},   /* Katakana extensions */
        {0x3400, 0x4DBF},   /* Han extension A */
        {0x4E00, 0x9FFF},   /* Han */
        {0xA960, 0xA97F},   /* Hangul jamo extended A */
        {0xA9E0, 0xA9FF},   /* Myanmar extended B */
        {0xAA60, 0xAADF},   /* Myanmar extended A, Tai Viet */
        {0xAC00, 0xD7FF},   /* Hangul syllables */
        {0xF900, 0xFAFF},   /* Han compatibility */
        {0xFF66, 0xFFDC},   /* half-width Katakana and Hangul */
        {0x1AFF0, 0x1B16F}, /* Kana extensions */
        {0x20000, 0x3FFFF}, /* Han extensions B and on */
    };
    return in_ranges(ranges, sizeof ranges / sizeof ranges[0], cp);
}

static enum char_class
class_of(int32_t cp)
{
    if (cp == 0x2019 || cp == 0x02BC || cp == 0xFF07)
        return CHAR_APOSTROPHE;
    switch (utf8proc_category(cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return is_unit(cp) ? CHAR_UNIT : CHAR_LETTER;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
        return CHAR_MARK;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return is_unit(cp) ? CHAR_UNIT : CHAR_DIGIT;
    case UTF8PROC_CATEGORY_SO:
        return cp >= 0x1F000 || (cp >= 0x2600 && cp <= 0x27BF) ? CHAR_SYMBOL
                                                               : CHAR_OTHER;
    case UTF8PROC_CATEGORY_CF:
        return CHAR_IGNORED;
    default:
        return CHAR_OTHER;
    }
}

enum char_class
analyze_class(const uint8_t *p, const uint8_t *end, size_t *size)
{
    int32_t cp = -1;
    utf8proc_ssize_t n = utf8proc_iterate(p, (utf8proc_ssize_t)(end - p), &cp);
    if (n <= 0) { // not UTF-8: the callers promised it is, but stay inside
        *size = 1;
        return CHAR_OTHER;
    }
    *size = (size_t)n;
    return class_of(cp);
}

/* ---- one word ---- */

struct normaliser {
    const struct language *language;
    struct sb_stemmer *stemmer; /* NULL: no stems */
};

mb_status
normaliser_new(
    const char *language, struct normaliser **out, struct mb_error *err)
{
    const struct language *found = NULL;
    if (language[0] == '\0')
        language = "english";
    for (size_t i = 0; i < N_LANGUAGES; i++) {
        if (strcmp(languages[i].name, language) == 0)
            found = &languages[i];
    }
    if (found == NULL)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "language %.40s: not known", language);

    struct normaliser *n = mb_calloc(1, sizeof *n);
    if (n == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "analyzer: out of memory");
    n->language = found;
    if (strcmp(found->name, "none") != 0) {
        n->stemmer = sb_stemmer_new(found->name, "UTF_8");
        if (n->stemmer == NULL) {
            mb_free(n);
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "language %s: this libstemmer does not have it", found->name);
        }
    }
    *out = n;
    return MB_OK;
}

void
normaliser_free(struct normaliser *n)
{
    if (n == NULL)
        return;
    sb_stemmer_delete(n->stemmer);
    mb_free(n);
}

bool
normaliser_splits_apostrophes(const struct normaliser *n)
{
    return n->language->splits_apostrophes;
}

bool
normaliser_folds_ascii(const struct normaliser *n)
{
    return !n->language->own_ascii;
}

/* The longest start of s with at most max bytes that ends at a character. */
static size_t
cut_utf8(const uint8_t *s, size_t size, size_t max)
{
    if (size <= max)
        return size;
    while (max > 0 && (s[max] & 0xC0) == 0x80) {
        max--;
    }
    return max;
}

static bool
is_ascii(const uint8_t *s, size_t size)
{
    uint8_t any = 0;
    for (size_t i = 0; i < size; i++) {
        any |= s[i];
    }
    return any < 0x80;
}

/* UTF-8 of points, composed, into out; false if it is nothing usable. points
 * has room for one more than n. */
static bool
encode_points(int32_t *points, utf8proc_ssize_t n,
    uint8_t out[ANALYZE_MAX_TERM], size_t *size)
{
    utf8proc_ssize_t bytes = utf8proc_reencode(
        points, n, (utf8proc_option_t)(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    if (bytes < 0)
        return false;
    const uint8_t *s = (const uint8_t *)points;
    *size = cut_utf8(s, (size_t)bytes, ANALYZE_MAX_TERM);
    memcpy(out, s, *size);
    return true;
}

/* In Turkish I is the capital of U+0131, and U+0130 that of i. */
static size_t
pair_turkish(const uint8_t *word, size_t size, uint8_t out[2 * ANALYZE_MAX_RAW])
{
    size_t k = 0;
    memset(out, 0, 2 * ANALYZE_MAX_RAW);
    for (size_t i = 0; i < size; i++) {
        if (word[i] == 'I') {
            out[k++] = 0xC4;
            out[k++] = 0xB1;
        } else if (word[i] == 0xC4 && i + 1 < size && word[i + 1] == 0xB0) {
            out[k++] = 'i';
            i++;
        } else {
            out[k++] = word[i];
        }
    }
    return k;
}

/* Case folding and NFKC of any word. */
static void
fold_unicode(const struct normaliser *n, const uint8_t *word, size_t word_size,
    uint8_t out[ANALYZE_MAX_TERM], size_t *size)
{
    int32_t points[MAX_POINTS + 1];
    uint8_t paired[2 * ANALYZE_MAX_RAW];
    if (n->language->own_ascii) {
        word_size = pair_turkish(word, word_size, paired);
        word = paired;
    }
    const utf8proc_option_t options =
        (utf8proc_option_t)(UTF8PROC_COMPAT | UTF8PROC_DECOMPOSE |
                            UTF8PROC_CASEFOLD | UTF8PROC_IGNORE);
    utf8proc_ssize_t np = utf8proc_decompose(
        word, (utf8proc_ssize_t)word_size, points, MAX_POINTS, options);
    if (np < 0 || np > MAX_POINTS)
        goto raw;
    utf8proc_ssize_t kept = 0;
    for (utf8proc_ssize_t i = 0; i < np; i++) {
        int32_t cp = points[i];
        if (class_of(cp) == CHAR_APOSTROPHE)
            cp = '\'';
        // Compatibility forms may bring separators of their own: a space
        // would make two words of what the text writes as one character.
        enum char_class class = class_of(cp);
        bool ours = cp == '\'' || cp == '.' || cp == '+' || cp == '#';
        if (class == CHAR_IGNORED || (class == CHAR_OTHER && !ours))
            continue;
        points[kept++] = cp;
    }
    if (kept == 0 && np > 0)
        goto raw;
    if (encode_points(points, kept, out, size))
        return;
raw:
    *size = cut_utf8(word, word_size, ANALYZE_MAX_TERM);
    memcpy(out, word, *size);
}

/* Letters that have no decomposition but are typed without their strokes. */
static const char *
plain_letter(int32_t cp)
{
    switch (cp) {
    case 0x00E6:
        return "ae";
    case 0x0153:
        return "oe";
    case 0x00F8:
        return "o";
    case 0x0111:
    case 0x00F0:
        return "d";
    case 0x0142:
        return "l";
    case 0x0131:
        return "i";
    case 0x0127:
        return "h";
    default:
        return NULL;
    }
}

/* Takes Latin, Greek, Hebrew and Arabic marks away. Elsewhere marks are
 * vowels or make other letters: they stay. */
static void
fold_marks(uint8_t term[ANALYZE_MAX_TERM], size_t *size)
{
    int32_t points[2 * ANALYZE_MAX_TERM + 1];
    int32_t kept[2 * ANALYZE_MAX_TERM + 1];
    utf8proc_ssize_t np = utf8proc_decompose(term, (utf8proc_ssize_t)*size,
        points, 2 * ANALYZE_MAX_TERM, (utf8proc_option_t)UTF8PROC_DECOMPOSE);
    if (np < 0 || np > 2 * ANALYZE_MAX_TERM)
        return;
    utf8proc_ssize_t k = 0;
    bool foldable = false; // the last base character is Latin or Greek
    for (utf8proc_ssize_t i = 0; i < np && k + 1 < 2 * ANALYZE_MAX_TERM; i++) {
        int32_t cp = points[i];
        bool diacritic = cp >= 0x0300 && cp <= 0x036F;
        bool semitic = (cp >= 0x0591 && cp <= 0x05C7) ||
                       (cp >= 0x064B && cp <= 0x065F) || cp == 0x0670;
        if ((diacritic && foldable) || (semitic && class_of(cp) == CHAR_MARK))
            continue;
        if (!diacritic)
            foldable = cp < 0x0400 || (cp >= 0x1E00 && cp <= 0x1FFF);
        const char *plain = plain_letter(cp);
        if (plain != NULL) {
            for (; *plain != '\0' && k + 1 < 2 * ANALYZE_MAX_TERM; plain++) {
                kept[k++] = *plain;
            }
        } else {
            kept[k++] = cp;
        }
    }
    uint8_t folded[ANALYZE_MAX_TERM];
    size_t folded_size;
    if (k > 0 && encode_points(kept, k, folded, &folded_size)) {
        memcpy(term, folded, folded_size);
        *size = folded_size;
    }
}

static bool
is_letter(uint8_t c)
{
    return (uint8_t)((c | 0x20) - 'a') < 26;
}

/* ASCII words: lower case; 1,000 loses its comma, u.s. its points, v3.11 its
 * v (people search for either form). */
static void
fold_ascii(const uint8_t *word, size_t word_size, uint8_t out[ANALYZE_MAX_TERM],
    size_t *size)
{
    bool digit = false;
    bool point = false;
    for (size_t i = 0; i < word_size; i++) {
        digit |= (uint8_t)(word[i] - '0') < 10;
        point |= word[i] == '.';
    }
    size_t i = 0;
    if (digit && point && word_size > 1 && (word[0] | 0x20) == 'v' &&
        !is_letter(word[1]))
        i = 1;
    size_t k = 0;
    for (; i < word_size && k < ANALYZE_MAX_TERM; i++) {
        uint8_t c = word[i];
        if (c == ',' || (c == '.' && !digit))
            continue;
        if ((uint8_t)(c - 'A') < 26)
            c |= 0x20;
        out[k++] = c;
    }
    *size = k;
}

mb_status
normaliser_apply(struct normaliser *n, const uint8_t *word, size_t word_size,
    enum word_kind kind, uint8_t out[ANALYZE_MAX_TERM], size_t *size)
{
    word_size = cut_utf8(word, word_size, ANALYZE_MAX_RAW);
    if (is_ascii(word, word_size) && !n->language->own_ascii) {
        fold_ascii(word, word_size, out, size);
    } else {
        fold_unicode(n, word, word_size, out, size);
    }
    if (kind == WORD_PLAIN && n->stemmer != NULL && *size > 0) {
        const sb_symbol *stem = sb_stemmer_stem(n->stemmer, out, (int)*size);
        if (stem == NULL)
            return MB_ERR_NOMEM;
        int length = sb_stemmer_length(n->stemmer);
        if (length > 0) {
            *size = cut_utf8(stem, (size_t)length, ANALYZE_MAX_TERM);
            memcpy(out, stem, *size);
        }
    }
    if (!n->language->keeps_marks && !is_ascii(out, *size))
        fold_marks(out, size);
    return MB_OK;
}
