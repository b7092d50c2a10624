/* SPDX-License-Identifier: Apache-2.0
 * tests/support/mb_render.h - a msgpack value as text, to compare and to read.
 *
 * Much like JSON, but no two values look the same: nil, floats end in f,
 * integers above INT64_MAX begin with u, binaries are hex in <>. A NUL inside a
 * string shows as ?. The notation of tests/fixtures/wire/values.hex.
 * Include after mb_test.h. */
#ifndef MB_RENDER_H
#define MB_RENDER_H

#include "mb_test.h"

#include "mb_wire.h"

static inline void
mb_render_str(struct mb_buffer *out, struct mb_slice s)
{
    assert_ok(mb_buffer_append_str(out, "\""));
    for (size_t i = 0; i < s.size; i++)
        assert_ok(mb_buffer_append(
            out, s.data[i] ? &s.data[i] : (const uint8_t *)"?", 1));
    assert_ok(mb_buffer_append_str(out, "\""));
}

/* Append v as text. */
static inline void
mb_render(struct mb_buffer *out, const struct mb_value *v)
{
    switch (v->type) {
    case MB_TYPE_NIL:
        assert_ok(mb_buffer_append_str(out, "nil"));
        break;
    case MB_TYPE_BOOL:
        assert_ok(mb_buffer_append_str(out, v->b ? "true" : "false"));
        break;
    case MB_TYPE_INT:
        assert_ok(mb_buffer_printf(out, "%lld", (long long)v->i));
        break;
    case MB_TYPE_UINT:
        assert_ok(mb_buffer_printf(out, "u%llu", (unsigned long long)v->u));
        break;
    case MB_TYPE_FLOAT:
        assert_ok(mb_buffer_printf(out, "%gf", v->f));
        break;
    case MB_TYPE_STR:
        mb_render_str(out, v->s);
        break;
    case MB_TYPE_BIN:
        assert_ok(mb_buffer_append_str(out, "<"));
        for (size_t i = 0; i < v->s.size; i++)
            assert_ok(mb_buffer_printf(out, "%02x", v->s.data[i]));
        assert_ok(mb_buffer_append_str(out, ">"));
        break;
    case MB_TYPE_ARRAY:
        for (size_t i = 0; i < v->array.n; i++) {
            assert_ok(mb_buffer_append_str(out, i ? "," : "["));
            mb_render(out, &v->array.items[i]);
        }
        assert_ok(mb_buffer_append_str(out, v->array.n ? "]" : "[]"));
        break;
    case MB_TYPE_MAP:
        for (size_t i = 0; i < v->map.n; i++) {
            assert_ok(mb_buffer_append_str(out, i ? "," : "{"));
            mb_render_str(out, v->map.pairs[i].key);
            assert_ok(mb_buffer_append_str(out, ":"));
            mb_render(out, &v->map.pairs[i].value);
        }
        assert_ok(mb_buffer_append_str(out, v->map.n ? "}" : "{}"));
        break;
    }
}

#endif
