/* SPDX-License-Identifier: Apache-2.0
 * tools/common/display.h - what the tools show to people.
 *
 * Text of documents is shown on terminals, so it is made harmless (no escape
 * sequences), measured in columns, wrapped, and its query words are marked.
 * Here are also figures in the form people read, and tables.
 * Threads: the main thread. */
#ifndef TOOLS_DISPLAY_H
#define TOOLS_DISPLAY_H

#include "mb_base.h"

#include <stdio.h>

/* ---- characters ---- */

/* Bytes of one code point, at most 4 (3 below U+10000); returns how many. What
 * is no scalar value becomes U+FFFD. */
size_t utf8_encode(uint8_t *out, uint32_t c);
/* The code point at s[0..size), size > 0, and its bytes; a bad byte is U+FFFD
 * and one byte. */
uint32_t utf8_decode(const uint8_t *s, size_t size, size_t *n);
/* Columns it takes on a terminal: 0, 1 or 2. */
unsigned char_columns(uint32_t c);

/* ---- lines of text ---- */

/* Columns of a line as display_print shows it. */
size_t display_columns(struct mb_slice text);
/* Print as one line: line ends and tabs become blanks, control characters and
 * bad bytes U+FFFD. max_columns cuts it with "..."; 0 does not. */
void display_print(FILE *out, struct mb_slice text, size_t max_columns);

/* Words to mark in a passage: those of a query, compared without case and the
 * common English endings. */
#define DISPLAY_MAX_WORDS 64

struct display_words {
    size_t n;

    struct {
        char stem[48];
        size_t size;
    } word[DISPLAY_MAX_WORDS];
};

void display_words_of(struct display_words *words, struct mb_slice query);

struct display_layout {
    unsigned indent;
    unsigned width;     /* columns of the screen */
    unsigned max_lines; /* 0: all; else cut with "..." */
    /* Marked with bold letters if not NULL. */
    const struct display_words *marks;
};

/* Print text wrapped at blanks, paragraphs kept, each line indented. */
void display_wrap(
    FILE *out, struct mb_slice text, const struct display_layout *layout);

/* ---- figures ---- */

#define DISPLAY_FIGURE 32 /* bytes for any of these */

/* "12.3 MB" (decimal units), "1,234", "2:05" or "1:02:05", "12 ms". */
const char *show_bytes(char out[DISPLAY_FIGURE], uint64_t bytes);
const char *show_count(char out[DISPLAY_FIGURE], uint64_t n);
const char *show_seconds(char out[DISPLAY_FIGURE], double seconds);
/* UTC: "2026-01-31 12:00:05". */
const char *show_time(char out[DISPLAY_FIGURE], uint64_t wall_ms);

/* ---- tables ---- */

struct table;

/* heads: n_columns headings, "" for none; align: "lr..." left or right, one
 * letter a column. NULL when memory is short. */
struct table *table_new(
    size_t n_columns, const char *const *heads, const char *align);
void table_free(struct table *t);
/* The next cell of the row; rows follow one another. Memory that is short
 * makes cells empty. */
void table_cell(struct table *t, const char *fmt, ...) MB_PRINTF(2, 3);
void table_cell_slice(struct table *t, struct mb_slice text);
void table_cell_count(struct table *t, uint64_t n);
void table_cell_bytes(struct table *t, uint64_t bytes);
/* The last column is cut to the width; 0 does not cut. */
void table_print(const struct table *t, FILE *out, unsigned width);

#endif
