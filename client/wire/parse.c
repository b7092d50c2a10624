/* SPDX-License-Identifier: Apache-2.0
 * client/wire/parse.c - a message: first checked, then read.
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
