/* SPDX-License-Identifier: Apache-2.0
 * model/stream.h - the bytes of a growing text, delivered as whole characters.
 *
 * Bytes come in as tokens give them: half characters, invalid ones, parts of a
 * stop string. Text goes out that is valid UTF-8 and will stay: what may yet
 * become a character or a stop string is held back. Where a stop string ends
 * first, the text ends before it. What comes out in all depends on the bytes
 * alone, not on where they were cut.
 *
 * Private to this folder. One thread. */
#ifndef MB_MODEL_STREAM_H
#define MB_MODEL_STREAM_H

#include "mb_base.h"

#define STREAM_MAX_STOPS     16
#define STREAM_MAX_STOP_SIZE 256 /* bytes of one */

struct stream {
    struct mb_buffer held;        /* bytes not delivered yet */
    struct mb_buffer text;        /* all that may be delivered, valid UTF-8 */
    const struct mb_slice *stops; /* borrowed; none is empty */
    size_t n_stops;
    bool is_stopped; /* a stop string came: the text is complete */
};

void stream_init(struct stream *s, const struct mb_slice *stops, size_t n_stops,
    size_t max_bytes);
void stream_fini(struct stream *s);
/* More bytes; none are taken once it is stopped. Errors: TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status stream_feed(struct stream *s, struct mb_slice bytes);
/* No more come: what is held back is text, too. Errors: the same. */
MB_MUST_USE mb_status stream_end(struct stream *s);

#endif
