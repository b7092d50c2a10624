/* SPDX-License-Identifier: Apache-2.0
 * model/unicode.h - the class of a code point, for pre-tokenizers.
 *
 * A table of our own and not the system's utf8proc: tokens belong to a model,
 * so the classes must be those of its makers (Unicode 15.1 gives llama.cpp's
 * for all code points, 15.0 of Debian 12 differs in 627) and the same on every
 * machine. Private to this folder. Threads: any. */
#ifndef MB_MODEL_UNICODE_H
#define MB_MODEL_UNICODE_H

#include "mb_base.h"

/* Numbers as in unicode_table.h. */
enum unicode_class {
    UNICODE_OTHER = 0, /* controls, formats, unassigned */
    UNICODE_LETTER = 1,
    UNICODE_NUMBER = 2,
    UNICODE_PUNCTUATION = 3,
    UNICODE_SYMBOL = 4,
    UNICODE_MARK = 5,
    UNICODE_SPACE = 6, /* White_Space, whatever its category */
    UNICODE_END = 7,   /* no code point: the end of a text */
};

#define UNICODE_BMP 0x10000u

/* By search; a code point that does not exist is UNICODE_OTHER. */
enum unicode_class unicode_class_of(uint32_t code);
/* The classes of the code points below UNICODE_BMP, one byte each. */
void unicode_fill_bmp(uint8_t out[UNICODE_BMP]);

#endif
