/* SPDX-License-Identifier: Apache-2.0
 * model/unicode.c - the class of a code point, for pre-tokenizers.
 *
 * unicode_table.h has the runs of equal class, in order.
 * Threads: any. */
#include "unicode.h"

#include <string.h>

#include "unicode_table.h"

#define N_RUNS (sizeof(unicode_runs) / sizeof(unicode_runs[0]))

enum unicode_class
unicode_class_of(uint32_t code)
{
    size_t low = 0;
    size_t high = N_RUNS;
    if (code > 0x10ffff)
        return UNICODE_OTHER;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (unicode_runs[middle] >> 3 <= code)
            low = middle;
        else
            high = middle;
    }
    return (enum unicode_class)(unicode_runs[low] & 7);
}

void
unicode_fill_bmp(uint8_t out[UNICODE_BMP])
{
    for (size_t i = 0; i < N_RUNS; i++) {
        uint32_t first = unicode_runs[i] >> 3;
        uint32_t end = i + 1 < N_RUNS ? unicode_runs[i + 1] >> 3 : UNICODE_BMP;
        if (first >= UNICODE_BMP)
            break;
        end = end < UNICODE_BMP ? end : UNICODE_BMP;
        memset(out + first, (int)(unicode_runs[i] & 7), end - first);
    }
}
