/* SPDX-License-Identifier: Apache-2.0
 * tools/common/htmltext.h - the readable text of an HTML page.
 *
 * For ingesting pages as documents: tags go, blocks become lines and
 * paragraphs, entities become characters, scripts and styles vanish. Any bytes
 * are taken; broken markup gives odd text, never an error.
 * Threads: any. */
#ifndef TOOLS_HTMLTEXT_H
#define TOOLS_HTMLTEXT_H

#include "mb_base.h"

/* Append the text of `html` to text, and what <title> holds to title. Pages
 * that are not UTF-8 but declare Latin-1 (or windows-1252) are converted; other
 * bytes are kept as they are. Errors: TOO_LARGE (buffers), NOMEM. */
MB_MUST_USE mb_status html_to_text(
    struct mb_slice html, struct mb_buffer *text, struct mb_buffer *title);

#endif
