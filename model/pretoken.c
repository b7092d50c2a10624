/* SPDX-License-Identifier: Apache-2.0
 * model/pretoken.c - the rules that cut a text into words for BPE.
 *
 * Written by hand from the expressions that models were published with, as
 * llama.cpp applies them: some models give a list of expressions, each of which
 * cuts the pieces that the one before left, what it matches and what it does
 * not. A rule here says what all of them do at one place. What looks like an
 * end of text to an expression (its piece ends) is told by a set of characters
 * at which the reader stops.
 * Invariant: a rule returns more than pos, at most size, at a character's end.
 * Threads: any. */
#include "pretoken.h"

#include "unicode.h"

/* ---- reading characters ---- */

#define BIT(class) (1u << (class))
/* All but space, letter and number: what the expressions call [^\s\p{L}\p{N}].
 */
#define OTHERS                                                                 \
    (BIT(UNICODE_OTHER) | BIT(UNICODE_PUNCTUATION) | BIT(UNICODE_SYMBOL) |     \
        BIT(UNICODE_MARK))

/* Which characters end the piece that a rule reads in. */
enum stop {
    STOP_NONE,
    STOP_NUMBER,
    STOP_SIGN,          /* punctuation and ASCII symbols, but for ` */
    STOP_SIGN_BACKTICK, /* and ` */
};

struct reader {
    struct pretoken_text *text;
    enum stop stop;
};

struct letter {
    uint32_t code;
    uint32_t size;
    enum unicode_class class;
};

static bool
is_tail(uint8_t b)
{
    return (b & 0xc0) == 0x80;
}

/* A character of more than one byte; a byte that begins none is a symbol of
 * its own, as U+FFFD is one. */
static struct letter
wide_at(struct pretoken_text *text, size_t pos)
{
    const uint8_t *p = text->data + pos;
    size_t room = text->size - pos;
    struct letter c = {0xfffd, 1, UNICODE_SYMBOL};
    if (room < 4)
        text->reached = true; // it may be the part of a character
    if (p[0] >= 0xc0 && p[0] < 0xe0 && room > 1 && is_tail(p[1])) {
        c.code = (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
        c.size = 2;
    } else if (p[0] >= 0xe0 && p[0] < 0xf0 && room > 2 && is_tail(p[1]) &&
               is_tail(p[2])) {
        c.code = (p[0] & 0xfu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
        c.size = 3;
    } else if (p[0] >= 0xf0 && p[0] < 0xf8 && room > 3 && is_tail(p[1]) &&
               is_tail(p[2]) && is_tail(p[3])) {
        c.code = (p[0] & 7u) << 18 | (p[1] & 0x3fu) << 12 |
                 (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
        c.size = 4;
    }
    if (c.code < UNICODE_BMP)
        c.class = (enum unicode_class)text->classes[c.code];
    else
        c.class = unicode_class_of(c.code);
    return c;
}

static inline struct letter
letter_at(struct pretoken_text *text, size_t pos)
{
    if (pos >= text->size) {
        text->reached = true;
        return (struct letter){0, 0, UNICODE_END};
    }
    uint8_t b = text->data[pos];
    if (b < 128)
        return (struct letter){b, 1, (enum unicode_class)text->classes[b]};
    return wide_at(text, pos);
}

/* Punctuation, and the symbols that a keyboard has. */
static bool
is_sign(struct letter c, bool with_backtick)
{
    if (c.class == UNICODE_PUNCTUATION)
        return true;
    return c.class == UNICODE_SYMBOL && c.code < 128 &&
           (with_backtick || c.code != '`');
}

static inline struct letter
read_at(const struct reader *r, size_t pos)
{
    struct letter c = letter_at(r->text, pos);
    bool is_end = false;
    if (r->stop == STOP_NUMBER)
        is_end = c.class == UNICODE_NUMBER;
    else if (r->stop != STOP_NONE)
        is_end = is_sign(c, r->stop == STOP_SIGN_BACKTICK);
    if (is_end)
        return (struct letter){0, 0, UNICODE_END};
    return c;
}

/* Where the run of these classes that begins at pos ends. */
static inline size_t
run_end(const struct reader *r, size_t pos, unsigned classes)
{
    struct letter c = read_at(r, pos);
    while (classes & BIT(c.class)) {
        pos += c.size;
        c = read_at(r, pos);
    }
    return pos;
}

/* Size of 's 't 're 've 'm 'll 'd at pos, or 0. */
static size_t
contraction(const struct reader *r, size_t pos, bool any_case)
{
    struct pretoken_text *text = r->text;
    uint8_t fold = any_case ? 0x20 : 0;
    if (text->size - pos < 3)
        text->reached = true;
    if (text->data[pos] != '\'' || text->size - pos < 2)
        return 0;
    uint8_t a = text->data[pos + 1] | fold;
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return 2;
    if (text->size - pos < 3)
        return 0;
    uint8_t b = text->data[pos + 2] | fold;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') ||
        (a == 'l' && b == 'l')) {
        return 3;
    }
    return 0;
}

/* \s+(?!\S)|\s+ : all spaces at an end, else all but the last, which goes with
 * what follows it. */
static size_t
spaces_end(const struct reader *r, size_t pos)
{
    size_t last = pos;
    size_t end = pos;
    struct letter c = read_at(r, pos);
    while (c.class == UNICODE_SPACE) {
        last = end;
        end += c.size;
        c = read_at(r, end);
    }
    return c.class == UNICODE_END || last == pos ? end : last;
}

/* ---- gpt-2 and its kin ---- */

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t
gpt2_end(const struct reader *r, size_t pos)
{
    struct letter c = read_at(r, pos);
    size_t start = pos;
    if (c.code == '\'') {
        size_t size = contraction(r, pos, false);
        if (size > 0)
            return pos + size;
    }
    if (c.code == ' ')
        c = read_at(r, ++start);
    if (c.class == UNICODE_LETTER)
        return run_end(r, start, BIT(UNICODE_LETTER));
    if (c.class == UNICODE_NUMBER)
        return run_end(r, start, BIT(UNICODE_NUMBER));
    if (BIT(c.class) & OTHERS)
        return run_end(r, start, OTHERS);
    return spaces_end(r, pos);
}

static size_t
end_gpt2(struct pretoken_text *text, size_t pos)
{
    struct reader r = {text, STOP_NONE};
    return gpt2_end(&r, pos);
}

/* \p{N}, then as gpt-2. */
static size_t
end_starcoder(struct pretoken_text *text, size_t pos)
{
    struct reader r = {text, STOP_NUMBER};
    struct letter c = letter_at(text, pos);
    return c.class == UNICODE_NUMBER ? pos + c.size : gpt2_end(&r, pos);
}

/* A run of signs. */
static size_t
signs_end(struct pretoken_text *text, size_t pos, bool with_backtick)
{
    struct letter c = letter_at(text, pos);
    while (is_sign(c, with_backtick)) {
        pos += c.size;
        c = letter_at(text, pos);
    }
    return pos;
}

static bool
is_digit(struct pretoken_text *text, size_t pos)
{
    struct letter c = letter_at(text, pos);
    return c.code >= '0' && c.code <= '9';
}

/* [0-9][0-9][0-9] inside the run of numbers at pos: the end of the first piece
 * that this leaves of it. Goes no further than that, as a run may be long. */
static size_t
triple_end(struct pretoken_text *text, size_t pos)
{
    size_t p = pos;
    struct letter c = letter_at(text, p);
    while (c.class == UNICODE_NUMBER) {
        if (is_digit(text, p) && is_digit(text, p + 1) && is_digit(text, p + 2))
            return p > pos ? p : p + 3;
        p += c.size;
        c = letter_at(text, p);
    }
    return p;
}

/* As gpt-2 and then by three digits, with signs apart before; numbers go apart
 * from the space in front of them always, or with a triple only. */
static size_t
triples_end(struct pretoken_text *text, size_t pos, enum stop stop, bool apart)
{
    struct reader r = {text, stop};
    size_t end = signs_end(text, pos, stop == STOP_SIGN_BACKTICK);
    if (end > pos)
        return end;
    struct letter c = letter_at(text, pos);
    if (c.class == UNICODE_NUMBER)
        return triple_end(text, pos);
    if (c.code != ' ' || letter_at(text, pos + 1).class != UNICODE_NUMBER)
        return gpt2_end(&r, pos);
    if (apart || (is_digit(text, pos + 1) && is_digit(text, pos + 2) &&
                     is_digit(text, pos + 3))) {
        return pos + 1;
    }
    return triple_end(text, pos + 1);
}

/* [\p{P}\$\+<=>\^~\|`]+, then as gpt-2, then [0-9][0-9][0-9] */
static size_t
end_falcon(struct pretoken_text *text, size_t pos)
{
    return triples_end(text, pos, STOP_SIGN_BACKTICK, false);
}

/* [\p{P}\$\+<=>\^~\|]+, then as gpt-2, then \p{N}+, then [0-9][0-9][0-9] */
static size_t
end_default(struct pretoken_text *text, size_t pos)
{
    return triples_end(text, pos, STOP_SIGN, true);
}

/* ---- llama 3 and qwen 2 ---- */

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,max}|
 *  ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t
llama3_end(struct pretoken_text *text, size_t pos, unsigned max_digits)
{
    struct reader r = {text, STOP_NONE};
    struct letter c = letter_at(text, pos);
    if (c.code == '\'') {
        size_t size = contraction(&r, pos, true);
        if (size > 0)
            return pos + size;
    }
    if (c.class == UNICODE_NUMBER) {
        for (; c.class == UNICODE_NUMBER && max_digits > 0; max_digits--) {
            pos += c.size;
            c = letter_at(text, pos);
        }
        return pos;
    }
    if (c.code != '\r' && c.code != '\n' &&
        (c.class == UNICODE_LETTER ||
            letter_at(text, pos + c.size).class == UNICODE_LETTER)) {
        return run_end(&r, pos + c.size, BIT(UNICODE_LETTER));
    }
    size_t start = c.code == ' ' ? pos + 1 : pos;
    size_t end = run_end(&r, start, OTHERS);
    if (end > start) {
        while (end < text->size &&
               (text->data[end] == '\r' || text->data[end] == '\n'))
            end++;
        text->reached = text->reached || end == text->size;
        return end;
    }
    size_t after_newline = 0;
    for (end = pos; c.class == UNICODE_SPACE; c = letter_at(text, end)) {
        end += c.size;
        if (c.code == '\r' || c.code == '\n')
            after_newline = end;
    }
    return after_newline > 0 ? after_newline : spaces_end(&r, pos);
}

static size_t
end_llama3(struct pretoken_text *text, size_t pos)
{
    return llama3_end(text, pos, 3);
}

static size_t
end_qwen2(struct pretoken_text *text, size_t pos)
{
    return llama3_end(text, pos, 1);
}

/* ---- deepseek ---- */

struct range {
    uint32_t first;
    uint32_t last;
};

static bool
is_in(const struct range *ranges, size_t n, uint32_t code)
{
    size_t low = 0;
    while (low < n) {
        size_t middle = low + (n - low) / 2;
        if (ranges[middle].last < code)
            low = middle + 1;
        else if (ranges[middle].first > code)
            n = middle;
        else
            return true;
    }
    return false;
}

/* [\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff] : spaces are in no set. */
static bool
is_east(struct letter c)
{
    if (c.class == UNICODE_SPACE)
        return false;
    return (c.code >= 0x800 && c.code <= 0x9fa5) ||
           (c.code >= 0xac00 && c.code <= 0xd7ff);
}

/* The letters with case of the deepseek-llm expression. */
static bool
is_cased(struct letter c)
{
    static const struct range ranges[] = {{'A', 'Z'}, {'a', 'z'}, {0xb5, 0xb5},
        {0xc0, 0xd6}, {0xd8, 0xf6}, {0xf8, 0x1ba}, {0x1bc, 0x1bf},
        {0x1c4, 0x293}, {0x295, 0x2af}, {0x370, 0x373}, {0x376, 0x377},
        {0x37b, 0x37d}, {0x37f, 0x37f}, {0x386, 0x386}, {0x388, 0x38a},
        {0x38c, 0x38c}, {0x38e, 0x3a1}, {0x3a3, 0x3f5}, {0x3f7, 0x481},
        {0x48a, 0x52f}, {0x531, 0x556}, {0x10a0, 0x10c5}, {0x13a0, 0x13f5},
        {0x13f8, 0x13fd}, {0x1c90, 0x1cba}, {0x1cbd, 0x1cbf}, {0x1d00, 0x1d2b},
        {0x1d6b, 0x1d77}, {0x1d79, 0x1d9a}, {0x1e00, 0x1f15}, {0x1f18, 0x1f1d},
        {0x1f20, 0x1f45}, {0x1f48, 0x1f4d}, {0x1f50, 0x1f57}, {0x1f59, 0x1f59},
        {0x1f5b, 0x1f5b}, {0x1f5d, 0x1f5d}, {0x1f5f, 0x1f7d}, {0x1f80, 0x1fb4},
        {0x1fb6, 0x1fbc}, {0x1fbe, 0x1fbe}, {0x1fc2, 0x1fc4}, {0x1fc6, 0x1fcc},
        {0x1fd0, 0x1fd3}, {0x1fd6, 0x1fdb}, {0x1fe0, 0x1fec}, {0x1ff2, 0x1ff4},
        {0x1ff6, 0x1ffc}, {0x2102, 0x2102}, {0x2107, 0x2107}, {0x210a, 0x2113},
        {0x2115, 0x2115}, {0x2119, 0x211d}, {0x2124, 0x2124}, {0x2126, 0x2126},
        {0x2128, 0x2128}, {0x212a, 0x212d}, {0x212f, 0x2134}, {0x2139, 0x2139},
        {0x213c, 0x213f}, {0x2145, 0x2149}, {0x214e, 0x214e}, {0x2183, 0x2184},
        {0x2c00, 0x2c7b}, {0x2c7e, 0x2ce4}, {0x2ceb, 0x2cee}, {0x2cf2, 0x2cf3},
        {0xa640, 0xa66d}, {0xa680, 0xa69b}, {0xa722, 0xa76f}, {0xa771, 0xa787},
        {0xa78b, 0xa78e}, {0xab70, 0xabbf}, {0xfb00, 0xfb06}, {0xfb13, 0xfb17},
        {0xff21, 0xff3a}, {0xff41, 0xff5a}, {0x10400, 0x1044f},
        {0x104b0, 0x104d3}, {0x104d8, 0x104fb}, {0x10c80, 0x10cb2},
        {0x10cc0, 0x10cf2}, {0x118a0, 0x118df}, {0x1e900, 0x1e943}};
    return is_in(ranges, sizeof(ranges) / sizeof(ranges[0]), c.code);
}

/* [!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]; the letters
 * in it are taken before. */
static bool
is_mark(struct letter c)
{
    static const struct range ranges[] = {{'!', '/'}, {':', '~'},
        {0x2018, 0x201f}, {0x3001, 0x3002}, {0xff01, 0xff0f}, {0xff1a, 0xff5e}};
    return is_in(ranges, sizeof(ranges) / sizeof(ranges[0]), c.code);
}

static bool
is_letter(struct letter c)
{
    return c.class == UNICODE_LETTER;
}

static bool
is_punctuation(struct letter c)
{
    return c.class == UNICODE_PUNCTUATION;
}

/* What the two expressions differ in. */
struct deepseek {
    bool (*is_word)(struct letter c); /* \s?X+ */
    bool (*is_sign)(struct letter c); /* \s?Y+ after that */
    bool one_number;                  /* \p{N}, not \p{N}+ */
    bool cut_spaces;                  /* \s+$ */
};

/* What the last two expressions cut apart: eastern scripts, and numbers. */
static unsigned
script_of(struct letter c)
{
    return (unsigned)is_east(c) | (unsigned)(c.class == UNICODE_NUMBER) << 1;
}

/* Does what no expression matches end before c? */
static bool
ends_rest(struct pretoken_text *text, const struct deepseek *d, size_t pos)
{
    struct letter c = letter_at(text, pos);
    if (c.class == UNICODE_END || c.code == '\r' || c.code == '\n' ||
        d->is_word(c) || d->is_sign(c)) {
        return true;
    }
    struct letter next = letter_at(text, pos + c.size);
    return c.class == UNICODE_SPACE && next.class != UNICODE_END &&
           (d->is_word(next) || d->is_sign(next));
}

/* [\r\n], \s?X+, \s?Y+, (\s+$,) [east]+, \p{N} one after the other. */
static size_t
deepseek_end(struct pretoken_text *text, const struct deepseek *d, size_t pos)
{
    struct letter c = letter_at(text, pos);
    unsigned script = script_of(c);
    size_t end = pos + c.size;
    if (c.code == '\r' || c.code == '\n' ||
        (d->one_number && c.class == UNICODE_NUMBER)) {
        return end;
    }
    struct letter head = c;
    struct letter next = letter_at(text, end);
    if (c.class == UNICODE_SPACE && next.class != UNICODE_END)
        head = next;
    bool (*is_same)(struct letter) = NULL;
    if (d->is_word(head))
        is_same = d->is_word;
    else if (d->is_sign(head))
        is_same = d->is_sign;
    if (is_same) {
        while (next.class != UNICODE_END && is_same(next) &&
               script_of(next) == script) {
            end += next.size;
            next = letter_at(text, end);
        }
        return end;
    }
    size_t spaces = c.class == UNICODE_SPACE ? pos : end; // at the end
    while (!ends_rest(text, d, end)) {
        if (script_of(next) != script)
            return end;
        end += next.size;
        if (next.class != UNICODE_SPACE)
            spaces = end;
        next = letter_at(text, end);
    }
    return d->cut_spaces && spaces > pos ? spaces : end;
}

static size_t
end_deepseek_llm(struct pretoken_text *text, size_t pos)
{
    static const struct deepseek d = {is_cased, is_mark, false, true};
    return deepseek_end(text, &d, pos);
}

static size_t
end_deepseek_coder(struct pretoken_text *text, size_t pos)
{
    static const struct deepseek d = {is_letter, is_punctuation, true, false};
    return deepseek_end(text, &d, pos);
}

/* ---- names ---- */

const struct pretokenizer *
pretoken_find(struct mb_slice name)
{
    static const struct pretokenizer rules[] = {
        {"default", end_default, false, false},
        {"gpt-2", end_gpt2, false, false},
        {"phi-2", end_gpt2, false, false},
        {"mpt", end_gpt2, false, false},
        {"olmo", end_gpt2, false, false},
        {"starcoder", end_starcoder, false, false},
        {"refact", end_starcoder, false, false},
        {"smollm", end_starcoder, false, false},
        {"command-r", end_starcoder, false, false},
        {"codeshell", end_starcoder, false, false},
        {"exaone", end_starcoder, false, false},
        {"minerva-7b", end_starcoder, false, false},
        {"falcon", end_falcon, false, false},
        {"llama-bpe", end_llama3, true, true},
        {"llama3", end_llama3, true, true},
        {"llama-v3", end_llama3, true, true},
        {"falcon3", end_llama3, true, true},
        {"pixtral", end_llama3, true, true},
        {"dbrx", end_llama3, false, false},
        {"smaug-bpe", end_llama3, false, false},
        {"chatglm-bpe", end_llama3, false, false},
        {"qwen2", end_qwen2, false, false},
        {"deepseek-r1-qwen", end_qwen2, false, false},
        {"megrez", end_qwen2, false, false},
        {"stablelm2", end_qwen2, false, false},
        {"deepseek-llm", end_deepseek_llm, false, false},
        {"deepseek-coder", end_deepseek_coder, false, false},
    };
    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
        if (mb_slice_equal(name, mb_slice_cstr(rules[i].name)))
            return &rules[i];
    }
    return NULL;
}
