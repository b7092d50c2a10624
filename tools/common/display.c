/* SPDX-License-Identifier: Apache-2.0
 * tools/common/display.c - text, figures and tables on a terminal.
 *
 * Whatever comes from a document may hold escape sequences that would drive the
 * user's terminal; here every control character is replaced before it is
 * printed. Columns are counted by a short table of wide and of combining ranges:
 * a terminal's own idea may differ for rare scripts, which costs a ragged line.
 * Threads: the main thread. */
#include "display.h"

#include <stdarg.h>
#include <string.h>
#include <time.h>

/* ---- characters ---- */

size_t
utf8_encode(uint8_t *out, uint32_t c)
{
    if (c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF))
        c = 0xFFFD;
    if (c < 0x80) {
        out[0] = (uint8_t)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (uint8_t)(0xC0 | (c >> 6));
        out[1] = (uint8_t)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (uint8_t)(0xE0 | (c >> 12));
        out[1] = (uint8_t)(0x80 | ((c >> 6) & 63));
        out[2] = (uint8_t)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (uint8_t)(0xF0 | (c >> 18));
    out[1] = (uint8_t)(0x80 | ((c >> 12) & 63));
    out[2] = (uint8_t)(0x80 | ((c >> 6) & 63));
    out[3] = (uint8_t)(0x80 | (c & 63));
    return 4;
}

uint32_t
utf8_decode(const uint8_t *s, size_t size, size_t *n)
{
    static const uint8_t first[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    size_t k = s[0] < 0x80 ? 1 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    uint32_t c;

    if (k > size || !mb_utf8_is_valid(mb_slice_of(s, k), NULL)) {
        *n = 1;
        return 0xFFFD;
    }
    c = s[0] & first[k];
    for (size_t i = 1; i < k; i++) {
        c = (c << 6) | (s[i] & 63);
    }
    *n = k;
    return c;
}

struct char_range {
    uint32_t from;
    uint32_t to;
};

static bool
in_ranges(const struct char_range *r, size_t n, uint32_t c)
{
    for (size_t i = 0; i < n; i++) {
        if (c >= r[i].from && c <= r[i].to)
            return true;
    }
    return false;
}

unsigned
char_columns(uint32_t c)
{
    static const struct char_range wide[] = {{0x1100, 0x115F}, {0x2E80, 0x303E},
        {0x3041, 0xA4CF}, {0xAC00, 0xD7A3}, {0xF900, 0xFAFF}, {0xFE30, 0xFE6F},
        {0xFF00, 0xFF60}, {0xFFE0, 0xFFE6}, {0x1F300, 0x1F64F},
        {0x1F900, 0x1F9FF}, {0x20000, 0x3FFFD}};
    static const struct char_range none[] = {{0x0300, 0x036F}, {0x0483, 0x0489},
        {0x0591, 0x05BD}, {0x0610, 0x061A}, {0x064B, 0x065F}, {0x0E31, 0x0E31},
        {0x0E34, 0x0E3A}, {0x1AB0, 0x1AFF}, {0x200B, 0x200F}, {0x20D0, 0x20FF},
        {0xFE00, 0xFE0F}, {0xFE20, 0xFE2F}};

    if (c < 0x300)
        return 1;
    if (in_ranges(none, sizeof none / sizeof none[0], c))
        return 0;
    return in_ranges(wide, sizeof wide / sizeof wide[0], c) ? 2 : 1;
}

/* The character as it may be shown: blanks for white space, U+FFFD for what
 * would be taken as a command (and for marks that turn the direction). */
static uint32_t
harmless(uint32_t c)
{
    if (c == '\n' || c == '\t' || c == '\r')
        return ' ';
    if (c < 0x20 || (c >= 0x7F && c < 0xA0) || (c >= 0x202A && c <= 0x202E) ||
        (c >= 0x2066 && c <= 0x2069))
        return 0xFFFD;
    return c;
}

static void
put_char(FILE *out, uint32_t c)
{
    uint8_t utf8[4];

    (void)fwrite(utf8, 1, utf8_encode(utf8, harmless(c)), out);
}

/* ---- lines of text ---- */

size_t
display_columns(struct mb_slice text)
{
    size_t columns = 0;

    for (size_t i = 0, n; i < text.size; i += n) {
        columns += char_columns(
            harmless(utf8_decode(text.data + i, text.size - i, &n)));
    }
    return columns;
}

void
display_print(FILE *out, struct mb_slice text, size_t max_columns)
{
    bool cut = max_columns > 0 && display_columns(text) > max_columns;
    size_t room = !cut ? SIZE_MAX : max_columns > 3 ? max_columns - 3 : 0;

    for (size_t i = 0, n; i < text.size; i += n) {
        uint32_t c = utf8_decode(text.data + i, text.size - i, &n);
        unsigned columns = char_columns(harmless(c));

        if (columns > room)
            break;
        room -= columns;
        put_char(out, c);
    }
    if (cut)
        (void)fputs("...", out);
}

static bool
is_word_byte(uint8_t c)
{
    return c >= 0x80 || (c >= '0' && c <= '9') ||
           ((c | 32) >= 'a' && (c | 32) <= 'z');
}

/* Lower case (ASCII) without a common ending, cut to size bytes of `out`. */
static size_t
stem_of(const uint8_t *s, size_t size, char *out, size_t max)
{
    static const char *const endings[] = {
        "ingly", "edly", "ing", "ies", "ed", "es", "ly", "s", "y", "e"};
    size_t n = 0;

    for (; n < size && n < max; n++) {
        out[n] = (char)(s[n] >= 'A' && s[n] <= 'Z' ? s[n] | 32 : s[n]);
    }
    for (size_t i = 0; i < sizeof endings / sizeof endings[0]; i++) {
        size_t k = strlen(endings[i]);

        if (n >= k + 3 && memcmp(out + n - k, endings[i], k) == 0)
            return n - k;
    }
    return n;
}

/* Words that every English text has say nothing. */
static bool
is_common(const char *s, size_t size)
{
    static const char words[] =
        " the and for are was were with that this from what which who whom "
        "how why when where did does has have had not but you your his her "
        "its their they them been being can could would should will about "
        "into than then there these those also any all ";
    char spaced[52];

    if (size < 3)
        return true;
    spaced[0] = ' ';
    memcpy(spaced + 1, s, size);
    spaced[size + 1] = ' ';
    spaced[size + 2] = 0;
    return strstr(words, spaced) != NULL;
}

void
display_words_of(struct display_words *words, struct mb_slice query)
{
    size_t i = 0;

    words->n = 0;
    while (i < query.size && words->n < DISPLAY_MAX_WORDS) {
        size_t from = i;
        char lower[48];
        size_t size;

        while (i < query.size && is_word_byte(query.data[i])) {
            i++;
        }
        size = i - from;
        if (size == 0) {
            i++;
            continue;
        }
        for (size_t j = 0; j < size && j < sizeof lower; j++) {
            lower[j] = (char)(query.data[from + j] | 32);
        }
        if (is_common(lower, size < sizeof lower ? size : sizeof lower))
            continue;
        words->word[words->n].size = stem_of(query.data + from, size,
            words->word[words->n].stem, sizeof words->word[0].stem);
        words->n++;
    }
}

static bool
is_marked(const struct display_words *words, const uint8_t *s, size_t size)
{
    char stem[48];
    size_t n;

    if (words == NULL || size == 0)
        return false;
    n = stem_of(s, size, stem, sizeof stem);
    for (size_t i = 0; i < words->n; i++) {
        if (words->word[i].size == n &&
            memcmp(words->word[i].stem, stem, n) == 0)
            return true;
    }
    return false;
}

/* A run of bytes without a blank, its query words in bold. */
static void
put_run(
    FILE *out, const uint8_t *s, size_t size, const struct display_words *marks)
{
    size_t i = 0;

    while (i < size) {
        size_t n = 0;
        bool mark;

        while (i + n < size && is_word_byte(s[i + n])) {
            n++;
        }
        mark = is_marked(marks, s + i, n);
        if (n == 0)
            n = 1;
        if (mark)
            (void)fputs("\033[1m", out);
        for (size_t j = 0, k; j < n; j += k) {
            put_char(out, utf8_decode(s + i + j, n - j, &k));
        }
        if (mark)
            (void)fputs("\033[0m", out);
        i += n;
    }
}

/* Bytes of s that fit `room` columns, at least one character. */
static size_t
fitting(const uint8_t *s, size_t size, size_t room)
{
    size_t i = 0;
    size_t n;

    while (i < size) {
        unsigned columns =
            char_columns(harmless(utf8_decode(s + i, size - i, &n)));

        if (columns > room && i > 0)
            break;
        room -= columns <= room ? columns : room;
        i += n;
    }
    return i;
}

struct wrap_state {
    FILE *out;
    const struct display_layout *layout;
    size_t column; /* 0: nothing on this line yet */
    unsigned lines;
    unsigned feeds; /* line feeds seen since the last run */
    bool cut;
};

/* Begin a new line; false if there may be no more. */
static bool
break_line(struct wrap_state *w)
{
    if (w->layout->max_lines > 0 && w->lines >= w->layout->max_lines) {
        (void)fputs(" ...", w->out);
        w->cut = true;
        return false;
    }
    if (w->lines > 0)
        (void)fputc('\n', w->out);
    (void)fprintf(w->out, "%*s", (int)w->layout->indent, "");
    w->lines++;
    w->column = 0;
    return true;
}

static void
wrap_run(struct wrap_state *w, const uint8_t *s, size_t size)
{
    size_t room = w->layout->width > w->layout->indent + 20
                      ? w->layout->width - w->layout->indent
                      : 20;
    size_t columns = display_columns(mb_slice_of(s, size));

    if (w->lines == 0 || w->feeds > 0 || w->column + 1 + columns > room) {
        if (!break_line(w))
            return;
    } else if (w->column > 0) {
        (void)fputc(' ', w->out);
        w->column++;
    }
    w->feeds = 0;
    // A run wider than the screen is broken where it must be.
    while (columns > room) {
        size_t n = fitting(s, size, room);

        put_run(w->out, s, n, w->layout->marks);
        s += n;
        size -= n;
        columns = display_columns(mb_slice_of(s, size));
        if (size == 0 || !break_line(w))
            return;
    }
    put_run(w->out, s, size, w->layout->marks);
    w->column += columns;
}

void
display_wrap(
    FILE *out, struct mb_slice text, const struct display_layout *layout)
{
    struct wrap_state w = {.out = out, .layout = layout};
    size_t i = 0;

    while (i < text.size && !w.cut) {
        size_t n = 0;

        for (;
             i < text.size && (text.data[i] == ' ' || text.data[i] == '\n' ||
                                  text.data[i] == '\t' || text.data[i] == '\r');
             i++) {
            w.feeds += text.data[i] == '\n' ? 1 : 0;
        }
        while (i + n < text.size && text.data[i + n] != ' ' &&
               text.data[i + n] != '\n' && text.data[i + n] != '\t' &&
               text.data[i + n] != '\r') {
            n++;
        }
        if (n > 0)
            wrap_run(&w, text.data + i, n);
        i += n;
    }
    if (w.lines > 0)
        (void)fputc('\n', out);
}

/* ---- figures ---- */

const char *
show_bytes(char out[DISPLAY_FIGURE], uint64_t bytes)
{
    static const char *const units[] = {"kB", "MB", "GB", "TB", "PB"};
    double v = (double)bytes;
    size_t u = 0;

    if (bytes < 1000) {
        (void)snprintf(out, DISPLAY_FIGURE, "%u B", (unsigned)bytes);
        return out;
    }
    v /= 1000;
    for (; v >= 999.95 && u + 1 < sizeof units / sizeof units[0]; u++) {
        v /= 1000;
    }
    (void)snprintf(out, DISPLAY_FIGURE, "%.1f %s", v, units[u]);
    return out;
}

const char *
show_count(char out[DISPLAY_FIGURE], uint64_t n)
{
    char digits[24];
    size_t size =
        (size_t)snprintf(digits, sizeof digits, "%llu", (unsigned long long)n);
    size_t to = 0;

    for (size_t i = 0; i < size; i++) {
        if (i > 0 && (size - i) % 3 == 0)
            out[to++] = ',';
        out[to++] = digits[i];
    }
    out[to] = 0;
    return out;
}

const char *
show_seconds(char out[DISPLAY_FIGURE], double seconds)
{
    unsigned long s;

    if (!(seconds >= 0) || seconds > 1e9) {
        (void)snprintf(out, DISPLAY_FIGURE, "-:--");
        return out;
    }
    s = (unsigned long)(seconds + 0.5);
    if (s >= 3600)
        (void)snprintf(out, DISPLAY_FIGURE, "%lu:%02lu:%02lu", s / 3600,
            s / 60 % 60, s % 60);
    else
        (void)snprintf(out, DISPLAY_FIGURE, "%lu:%02lu", s / 60, s % 60);
    return out;
}

const char *
show_time(char out[DISPLAY_FIGURE], uint64_t wall_ms)
{
    time_t t = (time_t)(wall_ms / 1000);
    struct tm tm;

    if (gmtime_r(&t, &tm) == NULL ||
        strftime(out, DISPLAY_FIGURE, "%Y-%m-%d %H:%M:%S", &tm) == 0)
        (void)snprintf(out, DISPLAY_FIGURE, "?");
    return out;
}

/* ---- tables ---- */

struct table {
    size_t n_columns;
    const char *const *heads;
    const char *align;
    struct mb_arena *arena;
    struct mb_slice *cells;
    size_t n_cells;
    size_t capacity;
};

struct table *
table_new(size_t n_columns, const char *const *heads, const char *align)
{
    struct table *t = mb_calloc(1, sizeof *t);

    if (t == NULL)
        return NULL;
    t->n_columns = n_columns;
    t->heads = heads;
    t->align = align;
    t->arena = mb_arena_new(SIZE_MAX);
    if (t->arena == NULL) {
        mb_free(t);
        return NULL;
    }
    return t;
}

void
table_free(struct table *t)
{
    if (t == NULL)
        return;
    mb_arena_free(t->arena);
    mb_free(t->cells);
    mb_free(t);
}

void
table_cell_slice(struct table *t, struct mb_slice text)
{
    void *copy = mb_arena_dup(t->arena, text.data, text.size);

    if (t->n_cells == t->capacity) {
        size_t more = t->capacity == 0 ? 64 : t->capacity * 2;
        struct mb_slice *cells = mb_realloc(t->cells, more * sizeof *cells);

        if (cells == NULL)
            return;
        t->cells = cells;
        t->capacity = more;
    }
    t->cells[t->n_cells++] = mb_slice_of(copy, copy != NULL ? text.size : 0);
}

void
table_cell(struct table *t, const char *fmt, ...)
{
    char text[512];
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    table_cell_slice(t, mb_slice_cstr(text));
}

void
table_cell_count(struct table *t, uint64_t n)
{
    char text[DISPLAY_FIGURE];

    table_cell_slice(t, mb_slice_cstr(show_count(text, n)));
}

void
table_cell_bytes(struct table *t, uint64_t bytes)
{
    char text[DISPLAY_FIGURE];

    table_cell_slice(t, mb_slice_cstr(show_bytes(text, bytes)));
}

static size_t
column_width(const struct table *t, size_t column)
{
    size_t width = strlen(t->heads[column]);

    for (size_t i = column; i < t->n_cells; i += t->n_columns) {
        size_t w = display_columns(t->cells[i]);

        width = w > width ? w : width;
    }
    return width;
}

static void
print_row(const struct table *t, FILE *out, const struct mb_slice *cells,
    const size_t *widths, unsigned width)
{
    size_t at = 0;

    for (size_t c = 0; c < t->n_columns; c++) {
        bool last = c + 1 == t->n_columns;
        size_t columns = display_columns(cells[c]);
        size_t pad = widths[c] > columns ? widths[c] - columns : 0;
        size_t room = last && width > at + 8 ? width - at : 0;

        if (t->align[c] == 'r')
            (void)fprintf(out, "%*s", (int)pad, "");
        display_print(out, cells[c], room);
        if (t->align[c] != 'r' && !last)
            (void)fprintf(out, "%*s", (int)pad, "");
        if (!last)
            (void)fputs("  ", out);
        at += widths[c] + 2;
    }
    (void)fputc('\n', out);
}

void
table_print(const struct table *t, FILE *out, unsigned width)
{
    size_t *widths = mb_calloc(t->n_columns, sizeof *widths);
    struct mb_slice *heads = mb_calloc(t->n_columns, sizeof *heads);
    bool has_heads = false;

    if (widths != NULL && heads != NULL) {
        for (size_t c = 0; c < t->n_columns; c++) {
            widths[c] = column_width(t, c);
            heads[c] = mb_slice_cstr(t->heads[c]);
            has_heads = has_heads || heads[c].size > 0;
        }
        if (has_heads)
            print_row(t, out, heads, widths, width);
        for (size_t i = 0; i + t->n_columns <= t->n_cells; i += t->n_columns) {
            print_row(t, out, t->cells + i, widths, width);
        }
    }
    mb_free(heads);
    mb_free(widths);
}
