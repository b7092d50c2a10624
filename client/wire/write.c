/* SPDX-License-Identifier: Apache-2.0
 * client/wire/write.c - msgpack into a buffer, by msgpack-c's packer.
 *
 * msgpack-c chooses the shortest form of each number and length; we hand it
 * the buffer as a sink and remember the sink's first failure.
 * Threads: a writer belongs to one. */
#include "mb_wire.h"

#include <msgpack/pack.h>

/* The sink: called by msgpack-c with a few bytes at a time. */
static int
write_sink(void *arg, const char *data, size_t size)
{
    struct mb_writer *w = arg;
    if (w->status == MB_OK)
        w->status = mb_buffer_append(w->buf, data, size);
    return w->status == MB_OK ? 0 : -1;
}

static msgpack_packer
packer_of(struct mb_writer *w)
{
    return (msgpack_packer){.data = w, .callback = write_sink};
}

void
mb_writer_init(struct mb_writer *w, struct mb_buffer *buf)
{
    w->buf = buf;
    w->status = MB_OK;
}

void
mb_write_nil(struct mb_writer *w)
{
    msgpack_packer pk = packer_of(w);
    msgpack_pack_nil(&pk);
}

void
mb_write_bool(struct mb_writer *w, bool v)
{
    msgpack_packer pk = packer_of(w);
    if (v)
        msgpack_pack_true(&pk);
    else
        msgpack_pack_false(&pk);
}

void
mb_write_int(struct mb_writer *w, int64_t v)
{
    msgpack_packer pk = packer_of(w);
    msgpack_pack_int64(&pk, v);
}

void
mb_write_uint(struct mb_writer *w, uint64_t v)
{
    msgpack_packer pk = packer_of(w);
    msgpack_pack_uint64(&pk, v);
}

void
mb_write_f32(struct mb_writer *w, float v)
{
    msgpack_packer pk = packer_of(w);
    msgpack_pack_float(&pk, v);
}

void
mb_write_f64(struct mb_writer *w, double v)
{
    msgpack_packer pk = packer_of(w);
    msgpack_pack_double(&pk, v);
}

/* msgpack has 32 bits for lengths and counts. */
static bool
fits(struct mb_writer *w, size_t n)
{
    if (n <= UINT32_MAX)
        return true;
    if (w->status == MB_OK)
        w->status = MB_ERR_TOO_LARGE;
    return false;
}

void
mb_write_str(struct mb_writer *w, struct mb_slice s)
{
    msgpack_packer pk = packer_of(w);
    if (!fits(w, s.size))
        return;
    msgpack_pack_str(&pk, s.size);
    write_sink(w, (const char *)s.data, s.size);
}

void
mb_write_cstr(struct mb_writer *w, const char *s)
{
    mb_write_str(w, mb_slice_cstr(s));
}

void
mb_write_bin(struct mb_writer *w, struct mb_slice s)
{
    msgpack_packer pk = packer_of(w);
    if (!fits(w, s.size))
        return;
    msgpack_pack_bin(&pk, s.size);
    write_sink(w, (const char *)s.data, s.size);
}

void
mb_write_array(struct mb_writer *w, size_t n)
{
    msgpack_packer pk = packer_of(w);
    if (fits(w, n))
        msgpack_pack_array(&pk, n);
}

void
mb_write_map(struct mb_writer *w, size_t n)
{
    msgpack_packer pk = packer_of(w);
    if (fits(w, n))
        msgpack_pack_map(&pk, n);
}

void
mb_write_raw(struct mb_writer *w, struct mb_slice msgpack)
{
    write_sink(w, (const char *)msgpack.data, msgpack.size);
}

void
mb_write_value(struct mb_writer *w, const struct mb_value *v)
{
    switch (v->type) {
    case MB_TYPE_NIL:
        mb_write_nil(w);
        break;
    case MB_TYPE_BOOL:
        mb_write_bool(w, v->b);
        break;
    case MB_TYPE_INT:
        mb_write_int(w, v->i);
        break;
    case MB_TYPE_UINT:
        mb_write_uint(w, v->u);
        break;
    case MB_TYPE_FLOAT:
        mb_write_f64(w, v->f);
        break;
    case MB_TYPE_STR:
        mb_write_str(w, v->s);
        break;
    case MB_TYPE_BIN:
        mb_write_bin(w, v->s);
        break;
    case MB_TYPE_ARRAY:
        mb_write_array(w, v->array.n);
        for (size_t i = 0; i < v->array.n; i++)
            mb_write_value(w, &v->array.items[i]);
        break;
    case MB_TYPE_MAP:
        mb_write_map(w, v->map.n);
        for (size_t i = 0; i < v->map.n; i++) {
            mb_write_str(w, v->map.pairs[i].key);
            mb_write_value(w, &v->map.pairs[i].value);
        }
        break;
    }
}

void
mb_write_kv_cstr(struct mb_writer *w, const char *key, const char *v)
{
    mb_write_cstr(w, key);
    mb_write_cstr(w, v);
}

void
mb_write_kv_str(struct mb_writer *w, const char *key, struct mb_slice v)
{
    mb_write_cstr(w, key);
    mb_write_str(w, v);
}

void
mb_write_kv_uint(struct mb_writer *w, const char *key, uint64_t v)
{
    mb_write_cstr(w, key);
    mb_write_uint(w, v);
}

void
mb_write_kv_f64(struct mb_writer *w, const char *key, double v)
{
    mb_write_cstr(w, key);
    mb_write_f64(w, v);
}

void
mb_write_kv_bool(struct mb_writer *w, const char *key, bool v)
{
    mb_write_cstr(w, key);
    mb_write_bool(w, v);
}
