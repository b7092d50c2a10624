/* SPDX-License-Identifier: Apache-2.0
 * client/base/utf8.c - is it UTF-8, and if not, make it so.
 *
 * Well-formed is what table 3-7 of the Unicode standard lists: no overlong
 * forms, no surrogates, nothing above U+10FFFF. ASCII runs, most of all text,
 * go eight bytes at a time.
 * Threads: any. */
#include "mb_base.h"

#include <string.h>

#include "bytes.h"

/* Range of the second byte after a lead byte; the others are 80..BF. */
static void
second_range(uint8_t lead, uint8_t *low, uint8_t *high)
{
    *low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    *high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
}

size_t
utf8_sequence(const uint8_t *p, size_t left, size_t *bad)
{
    uint8_t lead = p[0];
    if (lead < 0x80)
        return 1;
    size_t size = lead >= 0xc2 && lead <= 0xdf   ? 2
                  : lead >= 0xe0 && lead <= 0xef ? 3
                  : lead >= 0xf0 && lead <= 0xf4 ? 4
                                                 : 0;
    *bad = 1;
    if (size == 0)
        return 0;
    uint8_t low;
    uint8_t high;
    second_range(lead, &low, &high);
    for (size_t i = 1; i < size; i++) {
        if (i >= left || p[i] < low || p[i] > high) {
            *bad = i;
            return 0;
        }
        low = 0x80;
        high = 0xbf;
    }
    return size;
}

/* How many of the first bytes are ASCII. */
static size_t
ascii_run(const uint8_t *p, size_t size)
{
    size_t i = 0;
    while (size - i >= 8) {
        uint64_t word;
        memcpy(&word, p + i, sizeof word);
        if (word & UINT64_C(0x8080808080808080))
            break;
        i += 8;
    }
    while (i < size && p[i] < 0x80)
        i++;
    return i;
}

bool
mb_utf8_is_valid(struct mb_slice text, size_t *offset)
{
    size_t i = 0;
    while (i < text.size) {
        if (text.data[i] < 0x80) {
            i += ascii_run(text.data + i, text.size - i);
            continue;
        }
        size_t bad;
        size_t n = utf8_sequence(text.data + i, text.size - i, &bad);
        if (n == 0) {
            if (offset)
                *offset = i;
            return false;
        }
        i += n;
    }
    return true;
}

mb_status
mb_utf8_repair(struct mb_slice text, struct mb_buffer *out)
{
    static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */
    size_t i = 0;
    while (i < text.size) {
        struct mb_slice rest = mb_slice_of(text.data + i, text.size - i);
        size_t good = rest.size;
        bool whole = mb_utf8_is_valid(rest, &good);
        mb_status st = mb_buffer_append(out, rest.data, good);
        if (st != MB_OK || whole)
            return st;
        size_t bad = 1;
        (void)utf8_sequence(rest.data + good, rest.size - good, &bad);
        st = mb_buffer_append(out, replacement, sizeof replacement - 1);
        if (st != MB_OK)
            return st;
        i += good + bad;
    }
    return MB_OK;
}

void
bytes_cut_utf8(char *s, size_t size)
{
    const uint8_t *p = (const uint8_t *)s;
    // A sequence has at most three bytes after its lead.
    size_t back = 0;
    while (back < 3 && back < size && (p[size - 1 - back] & 0xc0) == 0x80)
        back++;
    if (back >= size)
        return;
    size_t lead = size - 1 - back;
    size_t bad;
    if (p[lead] >= 0xc2 && utf8_sequence(p + lead, size - lead, &bad) == 0)
        s[lead] = '\0';
}
