/* SPDX-License-Identifier: Apache-2.0
 * model/segment.c - cutting a text into segments of at most 252 tokens.
 *
 * A segment is what search returns and what a model reads in one piece, so it
 * should begin and end where a reader would pause, and it must fit: n_tokens
 * is the number of tokens of the segment's text encoded on its own.
 *
 * The text is read unit by unit (tokenizer.h), each encoded once. A window of
 * units runs a little past the most that a segment may hold; in the window's
 * last third the best place for a cut is looked for (rank_at says what is
 * better than what; the latest of equals wins). When the window reaches the end of
 * the text with little more than a segment, the rest is shared out evenly.
 *
 * Counts are exact because units do not depend on each other: a cut's count is
 * that of the units before it, plus that of the part of a unit it cuts off. In
 * two cases units are only an estimate and a segment is counted afresh: units
 * that were cut at MAX_UNIT bytes (texts without any seam; the bound keeps the
 * work linear for hostile ones), and vocabularies with user-defined pieces.
 *
 * Invariants: the window's units follow one another from `start` to `filled`;
 * the first is counted with the space in front.
 * Threads: as encode. */
#include "tokenizer.h"

#include <string.h>

#define MAX_UNIT 2048 /* bytes */
#define MAX_CUT  MB_SEGMENT_TOKENS
#define MIN_CUT  (MB_SEGMENT_TOKENS * 2 / 3)
/* A rest of up to this many tokens is balanced with the segment before. */
#define SHORT_REST (MB_SEGMENT_TOKENS / 3)
#define MAX_UNITS  (MAX_CUT + SHORT_REST + 2)
/* How far back a run of white space is looked at. */
#define MAX_BLANKS 64

/* How good a place for a cut is. */
enum rank {
    RANK_NONE = 0, /* inside a character */
    RANK_CHAR,
    RANK_WORD,
    RANK_SENTENCE,
    RANK_LINE,
    RANK_PARAGRAPH,
};

struct unit {
    uint32_t start;
    uint32_t end;
    uint32_t n_tokens;
    bool is_forced; /* ends at MAX_UNIT, not at a seam */
};

struct cutter {
    const struct mb_tokenizer *tok;
    struct mb_token_cache *work;
    struct mb_slice text;
    size_t start;  /* of the segment that is being made */
    size_t filled; /* end of the last unit */
    size_t total;  /* tokens of all units */
    size_t n_units;
    struct unit units[MAX_UNITS];
};

/* ---- where a reader would pause ---- */

static bool
is_blank(uint8_t c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool
is_letter(uint8_t c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c >= 0x80;
}

/* A punctuation mark beyond ASCII. */
struct mark {
    char text[4];
    uint8_t size;
};

#define MARK(s)                                                                \
    {                                                                          \
        s, sizeof(s) - 1                                                       \
    }

/* p[0..n) without one mark at its end, an ASCII one of the string or one of
 * the list (which ends with size 0); n if there is none. */
static size_t
without_mark(
    const uint8_t *p, size_t n, const char *ascii, const struct mark *list)
{
    if (n == 0)
        return 0;
    if (p[n - 1] < 0x80)
        return p[n - 1] != 0 && strchr(ascii, p[n - 1]) ? n - 1 : n;
    for (; list->size > 0; list++) {
        if (n >= list->size &&
            memcmp(p + n - list->size, list->text, list->size) == 0) {
            return n - list->size;
        }
    }
    return n;
}

/* p[0..n) without closing quotes and brackets. */
static size_t
without_closers(const uint8_t *p, size_t n)
{
    static const struct mark closers[] = {MARK("\u201d"), MARK("\u2019"),
        MARK("\u00bb"), MARK("\u300d"), MARK("\u300f"), MARK("\uff09"),
        {"", 0}};
    for (size_t i = 0; i < 4; i++) {
        size_t shorter = without_mark(p, n, "\"')]}", closers);
        if (shorter == n)
            break;
        n = shorter;
    }
    return n;
}

/* Does p[0..n), which has no blank at its end, end a sentence? A full stop
 * after a single letter is an initial ("J. Smith"). */
static bool
is_sentence(const uint8_t *p, size_t n)
{
    static const struct mark marks[] = {MARK("\u2026"), MARK("\u3002"),
        MARK("\uff01"), MARK("\uff1f"), MARK("\u0964"), MARK("\u06d4"),
        MARK("\u061f"), {"", 0}};
    n = without_closers(p, n);
    if (n == 0)
        return false;
    if (p[n - 1] != '.')
        return without_mark(p, n, "!?", marks) < n;
    return n < 3 || !is_letter(p[n - 2]) || is_letter(p[n - 3]) ||
           p[n - 3] == '.';
}

/* Does a sentence end here without a blank, as in Chinese or Japanese? */
static bool
is_wide_sentence(const uint8_t *p, size_t n, size_t size)
{
    static const struct mark wide[] = {
        MARK("\u3002"), MARK("\uff01"), MARK("\uff1f"), {"", 0}};
    if (n == 0 || p[n - 1] < 0x80)
        return false;
    size_t mark = without_closers(p, n);
    if (without_mark(p, mark, "", wide) == mark)
        return false;
    /* Not before a closing mark: it belongs to the sentence. */
    size_t next = n + 3 <= size ? n + 3 : size;
    return without_closers(p + n, next - n) == next - n;
}

/* A line that goes on below is wrapped, not ended: a letter, a digit or a
 * comma before the break and a letter after it. */
static bool
is_wrapped(uint8_t before, uint8_t after)
{
    return (is_letter(before) || before == ',' || before == '-' ||
               (before >= '0' && before <= '9')) &&
           is_letter(after);
}

/* Does the line that begins at p hold something? */
static bool
is_line(struct mb_slice text, size_t p)
{
    size_t end = p;
    while (
        end < text.size && end - p < MAX_BLANKS && is_blank(text.data[end])) {
        if (text.data[end] == '\n')
            return false;
        end++;
    }
    return true;
}

/* How good is a cut before text[p], 0 < p < size? Blanks go with what stands
 * before them, but the indent of a line with the line. */
static enum rank
rank_at(struct mb_slice text, size_t p)
{
    const uint8_t *b = text.data;
    bool is_new_line = b[p - 1] == '\n';
    if ((b[p] & 0xc0) == 0x80)
        return RANK_NONE;
    if (!is_blank(b[p - 1]))
        return is_wide_sentence(b, p, text.size) ? RANK_SENTENCE : RANK_CHAR;
    if (is_new_line ? !is_line(text, p) : is_blank(b[p]))
        return RANK_CHAR;
    size_t end = p; // of what stands before the blanks
    size_t lines = 0;
    while (end > 0 && p - end < MAX_BLANKS && is_blank(b[end - 1])) {
        end--;
        lines += b[end] == '\n';
    }
    if (lines > 0 && !is_new_line)
        return RANK_CHAR;
    if (lines > 1)
        return RANK_PARAGRAPH;
    bool is_end = is_sentence(b, end);
    if (lines == 1 && (is_end || end == 0 || !is_wrapped(b[end - 1], b[p])))
        return RANK_LINE;
    return is_end && (b[p] < 'a' || b[p] > 'z') ? RANK_SENTENCE : RANK_WORD;
}

/* ---- the window ---- */

static mb_status
count_unit(struct cutter *c, struct unit *u)
{
    const mb_token_id *ids = NULL;
    size_t n = 0;
    struct mb_slice bytes =
        mb_slice_of(c->text.data + u->start, u->end - u->start);
    mb_status st =
        tok_unit_encode(c->tok, c->work, bytes, u->start == c->start, &ids, &n);
    u->n_tokens = (uint32_t)n;
    return st;
}

/* Add units until the window can tell whether a short rest follows. */
static mb_status
fill(struct cutter *c)
{
    while (c->filled < c->text.size && c->total <= MAX_CUT + SHORT_REST &&
           c->n_units < MAX_UNITS) {
        struct unit *u = &c->units[c->n_units];
        u->start = (uint32_t)c->filled;
        size_t end = 0;
        mb_status st = tok_unit_end(
            c->tok, c->work, c->text, c->filled, MAX_UNIT, &end, &u->is_forced);
        if (st != MB_OK)
            return st;
        u->end = (uint32_t)end;
        st = count_unit(c, u);
        if (st != MB_OK)
            return st;
        c->total += u->n_tokens;
        c->filled = u->end;
        c->n_units++;
    }
    return MB_OK;
}

/* Begin the next segment at `cut`: forget what lies before it, and count the
 * first unit that is left anew, as it now stands at a start. */
static mb_status
advance(struct cutter *c, size_t cut)
{
    size_t first = 0;
    while (first < c->n_units && c->units[first].end <= cut)
        first++;
    c->n_units -= first;
    if (tok_looks_ahead(c->tok) && c->n_units > 0 &&
        c->units[first].start < cut) {
        /* What is left of a unit need not be one. */
        c->n_units = 0;
        c->filled = cut;
    }
    memmove(c->units, c->units + first, c->n_units * sizeof(c->units[0]));
    c->start = cut;
    c->total = 0;
    if (c->n_units > 0) {
        c->units[0].start = (uint32_t)cut;
        mb_status st = count_unit(c, &c->units[0]);
        if (st != MB_OK)
            return st;
    }
    for (size_t i = 0; i < c->n_units; i++)
        c->total += c->units[i].n_tokens;
    return MB_OK;
}

/* ---- counting ---- */

/* Tokens of text[from, to), by units of that stretch alone. */
static mb_status
count_range(struct cutter *c, size_t from, size_t to, size_t *out)
{
    struct mb_slice part = mb_slice_of(c->text.data, to);
    size_t sum = 0;
    while (from < to) {
        const mb_token_id *ids = NULL;
        size_t n = 0;
        bool is_forced = false;
        size_t end = 0;
        mb_status st = tok_unit_end(
            c->tok, c->work, part, from, SIZE_MAX, &end, &is_forced);
        if (st != MB_OK)
            return st;
        st = tok_unit_encode(c->tok, c->work,
            mb_slice_of(part.data + from, end - from), from == c->start, &ids,
            &n);
        if (st != MB_OK)
            return st;
        sum += n;
        from = end;
    }
    *out = sum;
    return MB_OK;
}

/* Tokens of the segment if it ended at `cut`, exactly. */
static mb_status
count_to(struct cutter *c, size_t cut, size_t *out)
{
    size_t sum = 0;
    bool is_exact = !tok_has_user_pieces(c->tok);
    size_t i = 0;
    for (; i < c->n_units && c->units[i].end <= cut; i++) {
        sum += c->units[i].n_tokens;
        /* A forced end that is the cut itself does no harm. */
        if (c->units[i].is_forced && c->units[i].end != cut)
            is_exact = false;
    }
    if (!is_exact)
        return count_range(c, c->start, cut, out);
    /* Blanks right before the cut may now be fewer units. Beyond ASCII no blank
     * is told from a letter. */
    while (tok_looks_ahead(c->tok) && i > 0) {
        uint8_t last = c->text.data[c->units[i - 1].end - 1];
        if (!is_blank(last) && last < 128)
            break;
        i--;
        sum -= c->units[i].n_tokens;
    }
    size_t from = i > 0 ? c->units[i - 1].end : c->start;
    size_t part = 0;
    mb_status st = count_range(c, from, cut, &part);
    if (st == MB_OK)
        *out = sum + part;
    return st;
}

/* The last place up to which the window has at most n tokens: an estimate
 * inside a unit, and never its first byte. */
static mb_status
place_of(struct cutter *c, size_t n, size_t *out)
{
    size_t sum = 0;
    size_t i = 0;
    for (; i < c->n_units && sum + c->units[i].n_tokens <= n; i++)
        sum += c->units[i].n_tokens;
    size_t place = i > 0 ? c->units[i - 1].end : c->start;
    if (i < c->n_units) {
        const struct unit *u = &c->units[i];
        const mb_token_id *ids = NULL;
        size_t n_ids = 0;
        mb_status st = tok_unit_encode(c->tok, c->work,
            mb_slice_of(c->text.data + u->start, u->end - u->start), false,
            &ids, &n_ids);
        if (st != MB_OK)
            return st;
        for (size_t k = 0; k < n_ids && sum < n; k++, sum++)
            place += tok_text_size(c->tok, ids[k]);
    }
    *out = place > c->start ? place : c->start + 1;
    return MB_OK;
}

/* ---- cuts ---- */

/* The best place in [low, high], or one character if there is none. */
static size_t
best_cut(const struct cutter *c, size_t low, size_t high)
{
    size_t best = 0;
    enum rank best_rank = RANK_NONE;
    for (size_t p = high; p >= low && p > c->start; p--) {
        enum rank rank = rank_at(c->text, p);
        if (rank > best_rank) {
            best = p;
            best_rank = rank;
        }
        if (rank == RANK_PARAGRAPH)
            break;
    }
    if (best_rank == RANK_NONE) {
        best = c->start + 1;
        while (best < c->text.size && rank_at(c->text, best) == RANK_NONE)
            best++;
    }
    return best;
}

/* Choose where the segment that begins at c->start ends, knowing that the
 * window holds more than one segment. */
static mb_status
choose_cut(struct cutter *c, size_t *cut, size_t *n_tokens)
{
    size_t most = MAX_CUT;
    size_t least = MIN_CUT;
    size_t low = 0;
    size_t high = 0;
    if (c->filled == c->text.size && c->total <= MAX_CUT + SHORT_REST) {
        most = c->total * 3 / 5;
        least = c->total * 2 / 5;
    }
    mb_status st = place_of(c, least, &low);
    if (st == MB_OK)
        st = place_of(c, most, &high);
    if (high >= c->text.size)
        high = c->text.size - 1; // estimates may run past; a rest must stay
    while (st == MB_OK) {
        size_t p = best_cut(c, low, high);
        size_t n = 0;
        st = count_to(c, p, &n);
        if (st != MB_OK)
            break;
        if (n <= MAX_CUT) {
            *cut = p;
            *n_tokens = n;
            return MB_OK;
        }
        /* One too many is common (the blank before a word counts), far too
         * many only where counts were estimates: then step back in
         * proportion. One character always fits, so this ends. */
        size_t size = p - c->start;
        size_t next = n > MAX_CUT + 8 ? size * MAX_CUT / n : size - 1;
        high = c->start + (next > 0 ? next : 1);
        if (low > high)
            low = c->start + (high - c->start) / 2;
    }
    return st;
}

static mb_status
emit(struct mb_buffer *out, size_t start, size_t end, size_t n_tokens)
{
    struct mb_span span = {(uint32_t)start, (uint32_t)end, (uint32_t)n_tokens};
    return mb_buffer_append(out, &span, sizeof(span));
}

static mb_status
cut_all(struct cutter *c, struct mb_buffer *out)
{
    if (c->text.size == 0)
        return emit(out, 0, 0, 0);
    while (c->start < c->text.size) {
        size_t cut = c->text.size;
        size_t n = 0;
        mb_status st = fill(c);
        if (st != MB_OK)
            return st;
        if (c->filled == c->text.size && c->total <= MAX_CUT)
            st = count_to(c, cut, &n);
        if (st == MB_OK && (n == 0 || n > MAX_CUT))
            st = choose_cut(c, &cut, &n);
        if (st == MB_OK)
            st = emit(out, c->start, cut, n);
        if (st == MB_OK)
            st = advance(c, cut);
        if (st != MB_OK)
            return st;
    }
    return MB_OK;
}

mb_status
mb_segment_text(const struct mb_tokenizer *tok, struct mb_token_cache *cache,
    struct mb_slice text, struct mb_buffer *out, struct mb_error *err)
{
    struct mb_token_cache local = {0};
    struct cutter c;
    size_t before = out->size;
    if (text.size > UINT32_MAX)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "segment: text of %zu bytes, at most %lu can be cut", text.size,
            (unsigned long)UINT32_MAX);
    c.tok = tok;
    c.work = cache ? cache : &local;
    c.text = text;
    c.start = 0;
    c.filled = 0;
    c.total = 0;
    c.n_units = 0;
    tok_begin(tok, c.work);
    mb_status st = cut_all(&c, out);
    tok_end(&local);
    if (st != MB_OK) {
        out->size = before;
        mb_error_set(err, st, "segment: text of %zu bytes: %s", text.size,
            mb_status_text(st));
    }
    return st;
}
