/* SPDX-License-Identifier: Apache-2.0
 * client/wire/parse.c - a message: first checked, then read.
 *
 * Beside the tree there are look-ups that work on checked bytes as they are,
 * for those who need one value of a message, or its bytes to pass them on.
 * Threads: any. */
#include "head.h"

mb_status
mb_wire_parse(struct mb_slice message, const struct mb_wire_limits *limits,
    bool allow_bad_utf8, struct mb_arena *arena, const struct mb_value **out,
    struct mb_error *err)
{
    struct scan_counts counts;
    mb_status st = scan_message(message, limits, allow_bad_utf8, &counts, err);
    if (st != MB_OK)
        return st;
    return tree_build(message, &counts, arena, out, err);
}

mb_status
mb_wire_check(struct mb_slice message, const struct mb_wire_limits *limits,
    bool allow_bad_utf8, struct mb_error *err)
{
    struct scan_counts counts;
    return scan_message(message, limits, allow_bad_utf8, &counts, err);
}

/* Read the head of checked bytes; the rest of them becomes *rest. */
static struct head
checked_head(struct mb_slice bytes, struct mb_slice *rest)
{
    struct head h;
    size_t size;
    MB_ASSERT(head_read(bytes.data, bytes.size, &h, &size) == HEAD_OK);
    *rest = mb_slice_of(bytes.data + size, bytes.size - size);
    return h;
}

/* Skip the first value of checked bytes, with all that is in it. */
static struct mb_slice
skip_value(struct mb_slice bytes)
{
    for (size_t pending = 1; pending > 0; pending--) {
        struct head h = checked_head(bytes, &bytes);
        size_t n = (size_t)h.n;
        if (h.type == MB_TYPE_STR || h.type == MB_TYPE_BIN)
            bytes = mb_slice_of(bytes.data + n, bytes.size - n);
        else if (h.type == MB_TYPE_ARRAY)
            pending += n;
        else if (h.type == MB_TYPE_MAP)
            pending += 2 * n;
    }
    return bytes;
}

bool
mb_wire_is_map(struct mb_slice message)
{
    struct head h;
    size_t size;
    return head_read(message.data, message.size, &h, &size) == HEAD_OK &&
           h.type == MB_TYPE_MAP;
}

struct mb_slice
mb_wire_map_body(struct mb_slice map, size_t *n_pairs)
{
    struct mb_slice body;
    struct head h = checked_head(map, &body);
    MB_ASSERT(h.type == MB_TYPE_MAP);
    *n_pairs = (size_t)h.n;
    return body;
}

struct mb_slice
mb_wire_find(struct mb_slice map, const char *key)
{
    if (!mb_wire_is_map(map))
        return mb_slice_of(NULL, 0);
    struct mb_slice wanted = mb_slice_cstr(key);
    size_t n;
    struct mb_slice rest = mb_wire_map_body(map, &n);
    for (size_t i = 0; i < n; i++) {
        struct head h = checked_head(rest, &rest);
        struct mb_slice name = mb_slice_of(rest.data, (size_t)h.n);
        struct mb_slice value =
            mb_slice_of(rest.data + name.size, rest.size - name.size);
        rest = skip_value(value);
        if (mb_slice_equal(name, wanted))
            return mb_slice_of(value.data, value.size - rest.size);
    }
    return mb_slice_of(NULL, 0);
}
