/* SPDX-License-Identifier: Apache-2.0
 * client/wire/peek.c - look into a message without unpacking it.
 *
 * The daemon decides by a request's op on which thread to unpack it, and wants
 * its id even if the rest of it is broken; the client passes on the bytes of a
 * result as they came. All of it stands in an outermost map, so it is enough
 * to walk over that map's values. Nothing is allocated and nothing is
 * believed: counts are checked against the bytes that are left, so that these
 * functions may be used before any check; what they cannot read ends the walk.
 * Threads: any. */
#include "head.h"

/* Take the first head off *rest; false if it is none. */
static bool
take_head(struct mb_slice *rest, struct head *h)
{
    size_t size;
    if (head_read(rest->data, rest->size, h, &size) != HEAD_OK)
        return false;
    *rest = mb_slice_of(rest->data + size, rest->size - size);
    return true;
}

/* Take the bytes of a string or binary off *rest; false if they are cut. */
static bool
take_bytes(struct mb_slice *rest, const struct head *h, struct mb_slice *out)
{
    if (h->n > rest->size)
        return false;
    *out = mb_slice_of(rest->data, (size_t)h->n);
    *rest = mb_slice_of(rest->data + out->size, rest->size - out->size);
    return true;
}

/* Take the first value off *rest, with all that is in it. */
static bool
skip_value(struct mb_slice *rest)
{
    uint64_t pending = 1;
    while (pending > 0) {
        struct head h;
        struct mb_slice body;
        if (!take_head(rest, &h))
            return false;
        pending--;
        if (h.type == MB_TYPE_ARRAY)
            pending += h.n;
        else if (h.type == MB_TYPE_MAP)
            pending += 2 * h.n;
        else if ((h.type == MB_TYPE_STR || h.type == MB_TYPE_BIN) &&
                 !take_bytes(rest, &h, &body))
            return false;
        // Each value has at least one byte.
        if (pending > rest->size)
            return false;
    }
    return true;
}

struct mb_slice
mb_wire_raw_str(struct mb_slice raw)
{
    struct head h;
    struct mb_slice str;
    if (take_head(&raw, &h) && h.type == MB_TYPE_STR &&
        take_bytes(&raw, &h, &str))
        return str;
    return mb_slice_of(NULL, 0);
}

bool
mb_wire_is_map(struct mb_slice message)
{
    struct head h;
    return take_head(&message, &h) && h.type == MB_TYPE_MAP;
}

struct mb_slice
mb_wire_map_body(struct mb_slice map, size_t *n_pairs)
{
    struct head h;
    *n_pairs = 0;
    if (!take_head(&map, &h) || h.type != MB_TYPE_MAP)
        return mb_slice_of(NULL, 0);
    *n_pairs = (size_t)h.n;
    return map;
}

void
mb_wire_peek(struct mb_slice message, const char *const *keys,
    struct mb_slice *values, size_t n)
{
    for (size_t i = 0; i < n; i++)
        values[i] = mb_slice_of(NULL, 0);
    size_t n_pairs;
    struct mb_slice rest = mb_wire_map_body(message, &n_pairs);
    for (; n_pairs > 0; n_pairs--) {
        struct mb_slice key = rest;
        if (!skip_value(&rest))
            return;
        struct mb_slice value = rest;
        if (!skip_value(&rest))
            return;
        key = mb_wire_raw_str(mb_slice_of(key.data, key.size - value.size));
        value.size -= rest.size;
        for (size_t i = 0; i < n; i++) {
            if (values[i].size == 0 &&
                mb_slice_equal(key, mb_slice_cstr(keys[i])))
                values[i] = value;
        }
    }
}

struct mb_slice
mb_wire_find(struct mb_slice map, const char *key)
{
    struct mb_slice value;
    mb_wire_peek(map, &key, &value, 1);
    return value;
}
