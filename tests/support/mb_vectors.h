/* SPDX-License-Identifier: Apache-2.0
 * tests/support/mb_vectors.h - byte strings that are kept as text.
 *
 * A vector file has one vector a line: name | hex bytes | what it means, and
 * perhaps more columns; spaces around a column do not count. Lines that are
 * empty or start with # are comments. Include after mb_test.h. */
#ifndef MB_VECTORS_H
#define MB_VECTORS_H

#include "mb_test.h"

#define MB_VECTOR_COLUMNS 4
#define MB_VECTOR_BYTES   4096

struct mb_vector {
    char *columns[MB_VECTOR_COLUMNS]; /* "" where the line has fewer */
    uint8_t bytes[MB_VECTOR_BYTES];   /* of column 1 */
    size_t size;
};

typedef void (*mb_vector_fn)(const struct mb_vector *v, void *arg);

static inline int
mb_vector_digit(char c)
{
    const char *digits = "0123456789abcdef";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* Hex digits in pairs, spaces between them as you like. */
static inline size_t
mb_vector_unhex(const char *text, uint8_t out[MB_VECTOR_BYTES])
{
    size_t n = 0;
    while (*text) {
        if (*text == ' ') {
            text++;
            continue;
        }
        int high = mb_vector_digit(text[0]);
        int low = mb_vector_digit(text[1]);
        if (high < 0 || low < 0 || n == MB_VECTOR_BYTES)
            fail_msg("bad hex: %s", text);
        out[n++] = (uint8_t)(high * 16 + low);
        text += 2;
    }
    return n;
}

static inline void
mb_vector_line(char *line, mb_vector_fn fn, void *arg)
{
    struct mb_vector *v = mb_calloc(1, sizeof *v);
    assert_non_null(v);
    for (size_t i = 0; i < MB_VECTOR_COLUMNS; i++) {
        while (*line == ' ')
            line++;
        v->columns[i] = line;
        char *bar = strchr(line, '|');
        char *end = bar ? bar : line + strlen(line);
        line = bar ? bar + 1 : end;
        while (end > v->columns[i] && end[-1] == ' ')
            end--;
        *end = '\0';
    }
    v->size = mb_vector_unhex(v->columns[1], v->bytes);
    fn(v, arg);
    mb_free(v);
}

/* Call fn for each vector of tests/fixtures/NAME; how many there were. */
static inline size_t
mb_vectors_read(const char *name, mb_vector_fn fn, void *arg)
{
    char path[MB_TEST_PATH];
    size_t size;
    size_t n = 0;
    char *text = (char *)mb_test_read_file(mb_test_fixture(name, path), &size);
    for (char *line = text; *line;) {
        char *end = strchr(line, '\n');
        char *next = end ? end + 1 : line + strlen(line);
        if (end)
            *end = '\0';
        if (*line && *line != '#') {
            mb_vector_line(line, fn, arg);
            n++;
        }
        line = next;
    }
    mb_free(text);
    return n;
}

#endif
