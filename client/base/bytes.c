/* SPDX-License-Identifier: Apache-2.0
 * client/base/bytes.c - slices, checked sizes, numbers in byte strings.
 *
 * Files and messages are little-endian, keys of the store big-endian so that
 * their order is that of the numbers. Everything is read and written byte by
 * byte: no alignment is assumed, and compilers make single loads of it.
 * Threads: any. */
#include "mb_base.h"

#include <string.h>

/* ---- slices ---- */

struct mb_slice
mb_slice_of(const void *data, size_t size)
{
    return (struct mb_slice){.data = data, .size = size};
}

struct mb_slice
mb_slice_cstr(const char *s)
{
    return mb_slice_of(s, strlen(s));
}

bool
mb_slice_equal(struct mb_slice a, struct mb_slice b)
{
    // memcmp must not see NULL, which an empty slice may hold.
    return a.size == b.size &&
           (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

int
mb_slice_compare(struct mb_slice a, struct mb_slice b)
{
    size_t common = a.size < b.size ? a.size : b.size;
    int order = common == 0 ? 0 : memcmp(a.data, b.data, common);
    if (order != 0)
        return order;
    return (a.size > b.size) - (a.size < b.size);
}

/* ---- sizes ---- */

bool
mb_size_add(size_t a, size_t b, size_t *out)
{
    if (a > SIZE_MAX - b)
        return false;
    *out = a + b;
    return true;
}

bool
mb_size_mul(size_t a, size_t b, size_t *out)
{
    if (b != 0 && a > SIZE_MAX / b)
        return false;
    *out = a * b;
    return true;
}

/* ---- fixed width ---- */

void
mb_put_le16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

void
mb_put_le32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
    p[2] = (uint8_t)(v >> 16);
    p[3] = (uint8_t)(v >> 24);
}

void
mb_put_le64(uint8_t *p, uint64_t v)
{
    mb_put_le32(p, (uint32_t)v);
    mb_put_le32(p + 4, (uint32_t)(v >> 32));
}

uint64_t
mb_get_le64(const uint8_t *p)
{
    return (uint64_t)mb_get_le32(p) | (uint64_t)mb_get_le32(p + 4) << 32;
}

void
mb_put_be32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}

void
mb_put_be64(uint8_t *p, uint64_t v)
{
    mb_put_be32(p, (uint32_t)(v >> 32));
    mb_put_be32(p + 4, (uint32_t)v);
}

uint32_t
mb_get_be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 |
           (uint32_t)p[3];
}

uint64_t
mb_get_be64(const uint8_t *p)
{
    return (uint64_t)mb_get_be32(p) << 32 | (uint64_t)mb_get_be32(p + 4);
}

void
mb_put_lef32(uint8_t *p, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    mb_put_le32(p, bits);
}

float
mb_get_lef32(const uint8_t *p)
{
    uint32_t bits = mb_get_le32(p);
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* ---- varint ---- */

size_t
mb_put_varint(uint8_t *p, uint64_t v)
{
    size_t n = 0;
    while (v >= 0x80) {
        p[n++] = (uint8_t)(v | 0x80);
        v >>= 7;
    }
    p[n++] = (uint8_t)v;
    return n;
}

bool
mb_get_varint(const uint8_t *p, size_t size, size_t *pos, uint64_t *out)
{
    uint64_t v = 0;
    size_t at = *pos;
    for (unsigned shift = 0; shift < 70 && at < size; shift += 7) {
        uint8_t byte = p[at++];
        // The tenth byte holds bit 63 alone.
        if (shift == 63 && byte > 1)
            return false;
        v |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *pos = at;
            *out = v;
            return true;
        }
    }
    return false;
}
