/* SPDX-License-Identifier: Apache-2.0
 * client/wire/head.c - the type bytes of msgpack.
 *
 * After the specification (github.com/msgpack/msgpack, spec.md): numbers are
 * big-endian, a type byte says how many bytes follow. Integers become INT
 * where they fit in 63 bits and a sign, so that one number has one form.
 * Threads: any. */
#include "head.h"

#include <string.h>

static uint64_t
read_be(const uint8_t *p, size_t size)
{
    switch (size) {
    case 1:
        return p[0];
    case 2:
        return (uint64_t)p[0] << 8 | p[1];
    case 4:
        return mb_get_be32(p);
    default:
        return mb_get_be64(p);
    }
}

static void
set_uint(struct head *out, uint64_t v)
{
    if (v <= INT64_MAX) {
        out->type = MB_TYPE_INT;
        out->i = (int64_t)v;
    } else {
        out->type = MB_TYPE_UINT;
        out->u = v;
    }
}

/* Two's complement of `size` bytes. */
static void
set_int(struct head *out, uint64_t v, size_t size)
{
    uint64_t sign = UINT64_C(1) << (8 * size - 1);
    v = (v ^ sign) - sign;
    out->type = MB_TYPE_INT;
    memcpy(&out->i, &v, sizeof out->i);
}

static void
set_float(struct head *out, uint64_t bits, size_t size)
{
    out->type = MB_TYPE_FLOAT;
    if (size == 4) {
        uint32_t bits32 = (uint32_t)bits;
        float f;
        memcpy(&f, &bits32, sizeof f);
        out->f = (double)f;
    } else {
        memcpy(&out->f, &bits, sizeof out->f);
    }
}

/* Types 0xc0 to 0xdf: how many bytes follow the type byte, -1 for extensions,
 * -2 for the unused one. */
static const int8_t head_follow[32] = {
    0, -2, 0, 0, 1, 2, 4, -1, -1, -1, 4, 8, 1, 2, 4, 8, /* c0: nil..uint64 */
    1, 2, 4, 8, -1, -1, -1, -1, -1, 1, 2, 4, 2, 4, 2, 4 /* d0: int8..map32 */
};

/* Type bytes that hold their small number, length or count themselves. */
static bool
read_fix(uint8_t byte, struct head *out)
{
    if (byte <= 0x7f) {
        out->type = MB_TYPE_INT;
        out->i = byte;
    } else if (byte >= 0xe0) {
        out->type = MB_TYPE_INT;
        out->i = (int64_t)byte - 256;
    } else if (byte <= 0x8f) {
        out->type = MB_TYPE_MAP;
        out->n = byte & 0x0f;
    } else if (byte <= 0x9f) {
        out->type = MB_TYPE_ARRAY;
        out->n = byte & 0x0f;
    } else if (byte <= 0xbf) {
        out->type = MB_TYPE_STR;
        out->n = byte & 0x1f;
    } else {
        return false;
    }
    return true;
}

head_result
head_read(const uint8_t *p, size_t left, struct head *out, size_t *size)
{
    if (left == 0)
        return HEAD_CUT;
    uint8_t byte = p[0];
    *size = 1;
    if (read_fix(byte, out))
        return HEAD_OK;
    int follow = head_follow[byte - 0xc0];
    if (follow < 0)
        return follow == -1 ? HEAD_EXT : HEAD_BAD;
    size_t width = (size_t)follow;
    if (left - 1 < width)
        return HEAD_CUT;
    *size = 1 + width;
    uint64_t v = width > 0 ? read_be(p + 1, width) : 0;
    out->n = v;
    if (byte == 0xc0) {
        out->type = MB_TYPE_NIL;
    } else if (byte <= 0xc3) {
        out->type = MB_TYPE_BOOL;
        out->b = byte == 0xc3;
    } else if (byte <= 0xc6) {
        out->type = MB_TYPE_BIN;
    } else if (byte <= 0xcb) {
        set_float(out, v, width);
    } else if (byte <= 0xcf) {
        set_uint(out, v);
    } else if (byte <= 0xd3) {
        set_int(out, v, width);
    } else {
        out->type = byte <= 0xdb   ? MB_TYPE_STR
                    : byte <= 0xdd ? MB_TYPE_ARRAY
                                   : MB_TYPE_MAP;
    }
    return HEAD_OK;
}
