/* SPDX-License-Identifier: Apache-2.0
 * client/wire/peek.c - look into a message without unpacking it.
 *
 * The daemon decides by a request's op on which thread to unpack it, and wants
 * its id even if the rest of it is broken. Both stand in the outermost map, so
 * it is enough to walk over its values. Nothing is allocated and nothing is
 * believed: counts are checked against the bytes that are left.
 * Threads: any. */
#include "mb_wire.h"

#include <string.h>

struct walk {
    const uint8_t *data;
    size_t size;
    size_t pos;
};

/* Big-endian number of n bytes at pos; false past the end. */
static bool
read_be(struct walk *w, size_t n, uint64_t *out)
{
    uint64_t v = 0;

    if (w->size - w->pos < n)
        return false;
    for (size_t i = 0; i < n; i++) {
        v = v << 8 | w->data[w->pos + i];
    }
    w->pos += n;
    *out = v;
    return true;
}

/* Head of one value: bytes that follow it, values that follow it. */
static bool
read_head(struct walk *w, uint64_t *bytes, uint64_t *values)
{
    /* Size of length field, bytes of body, for 0xc0 to 0xdf. */
    static const uint8_t length[32] = {0, 0, 0, 0, 1, 2, 4, 1, 2, 4, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 2, 4, 2, 4};
    static const uint8_t body[32] = {0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 4, 8, 1, 2,
        4, 8, 1, 2, 4, 8, 2, 3, 5, 9, 17, 0, 0, 0, 0, 0, 0, 0};
    uint64_t tag;
    uint64_t n;

    *bytes = 0;
    *values = 0;
    if (!read_be(w, 1, &tag))
        return false;
    if (tag < 0x80 || tag >= 0xe0)
        return true;
    if (tag < 0x90) {
        *values = 2 * (tag & 15);
    } else if (tag < 0xa0) {
        *values = tag & 15;
    } else if (tag < 0xc0) {
        *bytes = tag & 31;
    } else {
        if (!read_be(w, length[tag - 0xc0], &n))
            return false;
        if (tag >= 0xde)
            *values = 2 * n;
        else if (tag >= 0xdc)
            *values = n;
        else
            *bytes = n + body[tag - 0xc0];
    }
    return true;
}

/* Step over one whole value; false if it is cut. */
static bool
skip_value(struct walk *w)
{
    uint64_t pending = 1;

    while (pending > 0) {
        uint64_t bytes;
        uint64_t values;

        if (!read_head(w, &bytes, &values) || bytes > w->size - w->pos)
            return false;
        w->pos += (size_t)bytes;
        pending += values - 1;
        // Each value has at least one byte.
        if (pending > w->size - w->pos)
            return false;
    }
    return true;
}

struct mb_slice
mb_wire_raw_str(struct mb_slice raw)
{
    struct walk w = {raw.data, raw.size, 0};
    uint64_t bytes;
    uint64_t values;
    bool is_str;

    if (raw.size == 0)
        return mb_slice_of(NULL, 0);
    is_str = (raw.data[0] >= 0xa0 && raw.data[0] < 0xc0) ||
             (raw.data[0] >= 0xd9 && raw.data[0] <= 0xdb);
    if (!is_str || !read_head(&w, &bytes, &values) || bytes > raw.size - w.pos)
        return mb_slice_of(NULL, 0);
    return mb_slice_of(raw.data + w.pos, (size_t)bytes);
}

void
mb_wire_peek(struct mb_slice message, const char *const *keys,
    struct mb_slice *values, size_t n)
{
    struct walk w = {message.data, message.size, 0};
    uint64_t bytes;
    uint64_t n_left;

    for (size_t i = 0; i < n; i++) {
        values[i] = mb_slice_of(NULL, 0);
    }
    if (message.size == 0 ||
        !((message.data[0] & 0xf0) == 0x80 || message.data[0] >= 0xde) ||
        message.data[0] >= 0xe0 || !read_head(&w, &bytes, &n_left))
        return;
    for (; n_left >= 2; n_left -= 2) {
        size_t key_at = w.pos;
        size_t value_at;
        struct mb_slice key;

        if (!skip_value(&w))
            return;
        value_at = w.pos;
        if (!skip_value(&w))
            return;
        key = mb_wire_raw_str(
            mb_slice_of(message.data + key_at, value_at - key_at));
        for (size_t i = 0; i < n; i++) {
            if (values[i].size == 0 &&
                mb_slice_equal(key, mb_slice_cstr(keys[i])))
                values[i] =
                    mb_slice_of(message.data + value_at, w.pos - value_at);
        }
    }
}
