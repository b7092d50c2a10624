/* SPDX-License-Identifier: Apache-2.0
 * client/base/buffer.c - growing bytes that know their maximum.
 *
 * Capacity doubles, clipped by the maximum; nothing is allocated before the
 * first byte. A failed append leaves the buffer as it was.
 * Invariants: size <= capacity <= max.
 * Threads: one at a time. */
#include "mb_base.h"

#include <stdio.h>
#include <string.h>

#define BUFFER_FIRST 256

void
mb_buffer_init(struct mb_buffer *buf, size_t max_bytes)
{
    *buf = (struct mb_buffer){.max = max_bytes};
}

void
mb_buffer_fini(struct mb_buffer *buf)
{
    if (!buf)
        return;
    mb_free(buf->data);
    *buf = (struct mb_buffer){0};
}

void
mb_buffer_clear(struct mb_buffer *buf)
{
    buf->size = 0;
}

mb_status
mb_buffer_reserve(struct mb_buffer *buf, size_t more)
{
    if (more <= buf->capacity - buf->size)
        return MB_OK;
    size_t need;
    if (!mb_size_add(buf->size, more, &need) || need > buf->max)
        return MB_ERR_TOO_LARGE;
    size_t capacity = buf->capacity;
    if (!mb_size_mul(capacity, 2, &capacity) || capacity > buf->max)
        capacity = buf->max;
    if (capacity < BUFFER_FIRST)
        capacity = buf->max < BUFFER_FIRST ? buf->max : BUFFER_FIRST;
    if (capacity < need)
        capacity = need;
    uint8_t *data = mb_realloc(buf->data, capacity);
    if (!data)
        return MB_ERR_NOMEM;
    buf->data = data;
    buf->capacity = capacity;
    return MB_OK;
}

mb_status
mb_buffer_append(struct mb_buffer *buf, const void *data, size_t size)
{
    mb_status st = mb_buffer_reserve(buf, size);
    if (st != MB_OK)
        return st;
    if (size > 0)
        memcpy(buf->data + buf->size, data, size);
    buf->size += size;
    return MB_OK;
}

mb_status
mb_buffer_append_str(struct mb_buffer *buf, const char *s)
{
    return mb_buffer_append(buf, s, strlen(s));
}

mb_status
mb_buffer_printf(struct mb_buffer *buf, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    va_list again;
    va_copy(again, args);
    // Most texts are short: format into the stack first, then copy.
    char small[256];
    int n = vsnprintf(small, sizeof small, fmt, args);
    va_end(args);
    mb_status st = MB_OK;
    if (n < 0) {
        st = MB_ERR_INTERNAL;
    } else if ((size_t)n < sizeof small) {
        st = mb_buffer_append(buf, small, (size_t)n);
    } else {
        // vsnprintf writes a NUL as well; it gets room but does not count.
        st = (size_t)n > buf->max - buf->size ? MB_ERR_TOO_LARGE : MB_OK;
        char *large = st == MB_OK ? mb_alloc((size_t)n + 1) : NULL;
        if (st == MB_OK && !large)
            st = MB_ERR_NOMEM;
        if (st == MB_OK) {
            vsnprintf(large, (size_t)n + 1, fmt, again);
            st = mb_buffer_append(buf, large, (size_t)n);
        }
        mb_free(large);
    }
    va_end(again);
    return st;
}

struct mb_slice
mb_buffer_slice(const struct mb_buffer *buf)
{
    return mb_slice_of(buf->data, buf->size);
}
