/* SPDX-License-Identifier: Apache-2.0
 * client/wire/head.h - the first bytes of a msgpack value, for wire's files.
 *
 * The one place that knows msgpack's type bytes for reading. A head is the
 * type byte with the number, or the length, or the count that follows; after
 * it come the bytes of a string or the values of a container.
 * Threads: any. */
#ifndef HEAD_H
#define HEAD_H

#include "mb_wire.h"

/* Depth that no limit may exceed: readers keep a frame for each level. */
#define WIRE_DEPTH_CAP 64

struct head {
    mb_type type;
    uint64_t n; /* bytes of STR and BIN, elements of ARRAY, pairs of MAP */

    union {
        bool b;
        int64_t i;
        uint64_t u;
        double f;
    };
};

typedef enum head_result {
    HEAD_OK,
    HEAD_CUT, /* the bytes end before it does */
    HEAD_EXT, /* an extension type */
    HEAD_BAD  /* the byte 0xc1, which msgpack does not use */
} head_result;

/* Read the head at p, of which `left` bytes may be touched; *size becomes its
 * length. The payload that it announces is not looked at. */
head_result head_read(
    const uint8_t *p, size_t left, struct head *out, size_t *size);

/* What the scan learned: how many structs the tree needs. */
struct scan_counts {
    size_t n_items; /* elements of all arrays */
    size_t n_pairs; /* pairs of all maps */
};

/* Check a whole message; see mb_wire_parse. All checks but duplicate keys. */
mb_status scan_message(struct mb_slice message,
    const struct mb_wire_limits *limits, bool allow_bad_utf8,
    struct scan_counts *out, struct mb_error *err);

/* Build the tree of a message that passed the scan. */
mb_status tree_build(struct mb_slice message, const struct scan_counts *counts,
    struct mb_arena *arena, const struct mb_value **out, struct mb_error *err);

#endif
