/* SPDX-License-Identifier: Apache-2.0
 * model/stream.c - the bytes of a growing text, delivered as whole characters.
 *
 * Invariants: `held` is short (a stop string and a character at most) between
 * calls, so that searching it by brute force costs nothing; no stop string
 * began in bytes that are delivered, as those that could are held.
 * Threads: one. */
#include "stream.h"

#include <string.h>

void
stream_init(struct stream *s, const struct mb_slice *stops, size_t n_stops,
    size_t max_bytes)
{
    mb_buffer_init(&s->held, max_bytes);
    // An invalid byte becomes a character of three.
    mb_buffer_init(&s->text, 3 * max_bytes);
    s->stops = stops;
    s->n_stops = n_stops;
    s->is_stopped = false;
}

void
stream_fini(struct stream *s)
{
    mb_buffer_fini(&s->held);
    mb_buffer_fini(&s->text);
}

/* Where the stop string that ends first begins; SIZE_MAX if there is none. Of
 * several that end there the longest counts. */
static size_t
find_stop(const struct stream *s)
{
    const struct mb_buffer *held = &s->held;

    for (size_t end = 1; end <= held->size; end++) {
        size_t longest = 0;

        for (size_t i = 0; i < s->n_stops; i++) {
            size_t size = s->stops[i].size;

            if (size <= end && size > longest &&
                memcmp(held->data + end - size, s->stops[i].data, size) == 0)
                longest = size;
        }
        if (longest > 0)
            return end - longest;
    }
    return SIZE_MAX;
}

/* Bytes at the end of `held` with which a stop string may begin. */
static size_t
stop_begun(const struct stream *s)
{
    const struct mb_buffer *held = &s->held;
    size_t most = 0;

    for (size_t i = 0; i < s->n_stops; i++) {
        size_t size = s->stops[i].size - 1;

        if (size > held->size)
            size = held->size;
        while (size > most && memcmp(held->data + held->size - size,
                                  s->stops[i].data, size) != 0) {
            size--;
        }
        if (size > most)
            most = size;
    }
    return most;
}

/* Bytes at the end of [0, size) of data that are the beginning of a character
 * whose rest is missing. */
static size_t
character_begun(const uint8_t *data, size_t size)
{
    for (size_t n = 1; n <= 3 && n <= size; n++) {
        uint8_t lead = data[size - n];
        size_t want = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
        uint8_t full[4];

        if (lead < 0x80)
            return 0;
        if (lead < 0xc0)
            continue;
        if (n >= want)
            return 0;
        // It can be completed if it is valid with the lowest or the highest
        // bytes that may follow.
        for (int high = 0; high < 2; high++) {
            memset(full, high ? 0xbf : 0x80, sizeof full);
            memcpy(full, data + size - n, n);
            if (mb_utf8_is_valid(mb_slice_of(full, want), NULL))
                return n;
        }
        return 0;
    }
    return 0;
}

/* Deliver the first n bytes of what is held. */
static mb_status
deliver(struct stream *s, size_t n)
{
    mb_status st = mb_utf8_repair(mb_slice_of(s->held.data, n), &s->text);

    if (st != MB_OK)
        return st;
    if (n < s->held.size)
        memmove(s->held.data, s->held.data + n, s->held.size - n);
    s->held.size -= n;
    return MB_OK;
}

mb_status
stream_feed(struct stream *s, struct mb_slice bytes)
{
    size_t stop;
    size_t n;
    mb_status st;

    if (s->is_stopped || bytes.size == 0)
        return MB_OK;
    st = mb_buffer_append(&s->held, bytes.data, bytes.size);
    if (st != MB_OK)
        return st;
    stop = find_stop(s);
    if (stop != SIZE_MAX) {
        s->is_stopped = true;
        st = deliver(s, stop);
        mb_buffer_clear(&s->held);
        return st;
    }
    n = s->held.size - stop_begun(s);
    n -= character_begun(s->held.data, n);
    return n > 0 ? deliver(s, n) : MB_OK;
}

mb_status
stream_end(struct stream *s)
{
    return s->held.size > 0 ? deliver(s, s->held.size) : MB_OK;
}
