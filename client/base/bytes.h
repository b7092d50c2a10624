/* SPDX-License-Identifier: Apache-2.0
 * client/base/bytes.h - helpers that base's own files share.
 * Threads: any. */
#ifndef BYTES_H
#define BYTES_H

#include "mb_base.h"

/* Length of the well-formed UTF-8 sequence at p (left > 0 bytes follow), or 0
 * if it is ill-formed; then *bad is the length of the maximal subpart that a
 * decoder replaces as one (Unicode 15, section 3.9, table 3-7). */
size_t utf8_sequence(const uint8_t *p, size_t left, size_t *bad);

/* s holds `size` bytes of a text that was cut there and a NUL after them: take
 * away the part of a sequence that the cut left at the end. */
void bytes_cut_utf8(char *s, size_t size);

#endif
