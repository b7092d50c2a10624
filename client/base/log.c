/* SPDX-License-Identifier: Apache-2.0
 * client/base/log.c - events go to a hook, or nowhere.
 *
 * Libraries write nothing of their own. A program sets one hook before it
 * starts threads; it adds time, level and thread, and writes the line.
 * Invariants: fields handed to the hook are at most LOG_FIELDS_MAX bytes, cut
 * at a UTF-8 boundary; nothing is formatted for a level that is off.
 * Threads: mb_log from any. The hook is published by the level (release) and
 * read after it (acquire). */
#include "mb_base.h"

#include <stdatomic.h>
#include <stdio.h>

#include "bytes.h"

#define LOG_FIELDS_MAX 2048
#define LOG_OFF        (-1)

static mb_log_fn log_fn;
static void *log_arg;
static atomic_int log_max_level = LOG_OFF; /* partner: mb_log_is_on */

void
mb_log_set_hook(mb_log_fn fn, void *arg, mb_log_level max_level)
{
    atomic_store_explicit(&log_max_level, LOG_OFF, memory_order_release);
    log_fn = fn;
    log_arg = arg;
    if (fn)
        atomic_store_explicit(
            &log_max_level, (int)max_level, memory_order_release);
}

void
mb_log_set_level(mb_log_level max_level)
{
    if (atomic_load_explicit(&log_max_level, memory_order_acquire) != LOG_OFF)
        atomic_store_explicit(
            &log_max_level, (int)max_level, memory_order_release);
}

bool
mb_log_is_on(mb_log_level level)
{
    return (int)level <=
           atomic_load_explicit(&log_max_level, memory_order_acquire);
}

void
mb_log(mb_log_level level, const char *ev, const char *fmt, ...)
{
    if (!mb_log_is_on(level))
        return;
    char fields[LOG_FIELDS_MAX + 1];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(fields, sizeof fields, fmt, args);
    va_end(args);
    if (n < 0)
        fields[0] = '\0';
    else if ((size_t)n >= sizeof fields)
        bytes_cut_utf8(fields, LOG_FIELDS_MAX);
    log_fn(log_arg, level, ev, fields);
}

static bool
is_bare(struct mb_slice s)
{
    for (size_t i = 0; i < s.size; i++) {
        uint8_t c = s.data[i];
        if (c <= 0x20 || c == '"' || c == '=' || c == '\\' || c == 0x7f)
            return false;
    }
    return s.size > 0 && mb_utf8_is_valid(s, NULL);
}

static mb_status
quote_byte(struct mb_buffer *out, uint8_t c)
{
    switch (c) {
    case '"':
        return mb_buffer_append_str(out, "\\\"");
    case '\\':
        return mb_buffer_append_str(out, "\\\\");
    case '\n':
        return mb_buffer_append_str(out, "\\n");
    case '\t':
        return mb_buffer_append_str(out, "\\t");
    default:
        return mb_buffer_printf(out, "\\x%02x", (unsigned)c);
    }
}

mb_status
mb_log_quote(struct mb_buffer *out, struct mb_slice s)
{
    if (is_bare(s))
        return mb_buffer_append(out, s.data, s.size);
    size_t before = out->size;
    mb_status st = mb_buffer_append_str(out, "\"");
    for (size_t i = 0; i < s.size && st == MB_OK;) {
        uint8_t c = s.data[i];
        size_t bad;
        size_t n = utf8_sequence(s.data + i, s.size - i, &bad);
        bool plain = n > 0 && c >= 0x20 && c != '"' && c != '\\' && c != 0x7f;
        if (plain)
            st = mb_buffer_append(out, s.data + i, n);
        else
            st = quote_byte(out, c);
        i += plain ? n : 1;
    }
    if (st == MB_OK)
        st = mb_buffer_append_str(out, "\"");
    if (st != MB_OK)
        out->size = before;
    return st;
}
