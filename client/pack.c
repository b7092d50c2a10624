/* SPDX-License-Identifier: Apache-2.0
 * client/pack.c - msgpack values for those who have no library for it.
 *
 * A growing buffer behind the functions of the wire writer. Whether what was
 * written is one whole value is checked when the bytes are asked for, by the
 * same reader that checks messages, so that a count that was not kept is found
 * here and not by the daemon.
 * Threads: one at a time. */
#include "client.h"

struct membank_pack {
    struct mb_buffer buf;
    struct mb_writer w;
};

struct membank_pack *
membank_pack_new(void)
{
    struct membank_pack *p = mb_alloc(sizeof *p);
    if (!p)
        return NULL;
    mb_buffer_init(&p->buf, CLIENT_MAX_REQUEST);
    mb_writer_init(&p->w, &p->buf);
    return p;
}

void
membank_pack_free(struct membank_pack *p)
{
    if (!p)
        return;
    mb_buffer_fini(&p->buf);
    mb_free(p);
}

void
membank_pack_clear(struct membank_pack *p)
{
    if (!p)
        return;
    mb_buffer_clear(&p->buf);
    mb_writer_init(&p->w, &p->buf);
}

void
membank_pack_nil(struct membank_pack *p)
{
    if (p)
        mb_write_nil(&p->w);
}

void
membank_pack_bool(struct membank_pack *p, bool v)
{
    if (p)
        mb_write_bool(&p->w, v);
}

void
membank_pack_i64(struct membank_pack *p, int64_t v)
{
    if (p)
        mb_write_int(&p->w, v);
}

void
membank_pack_u64(struct membank_pack *p, uint64_t v)
{
    if (p)
        mb_write_uint(&p->w, v);
}

void
membank_pack_f64(struct membank_pack *p, double v)
{
    if (p)
        mb_write_f64(&p->w, v);
}

void
membank_pack_str(struct membank_pack *p, const char *s)
{
    if (p)
        mb_write_cstr(&p->w, s);
}

void
membank_pack_strn(struct membank_pack *p, const char *s, size_t size)
{
    if (p)
        mb_write_str(&p->w, mb_slice_of(s, size));
}

void
membank_pack_bin(struct membank_pack *p, const void *data, size_t size)
{
    if (p)
        mb_write_bin(&p->w, mb_slice_of(data, size));
}

void
membank_pack_array(struct membank_pack *p, size_t n)
{
    if (p)
        mb_write_array(&p->w, n);
}

void
membank_pack_map(struct membank_pack *p, size_t n)
{
    if (p)
        mb_write_map(&p->w, n);
}

void
membank_pack_raw(struct membank_pack *p, struct membank_bytes value)
{
    if (p)
        mb_write_raw(&p->w, client_slice(value));
}

membank_status
membank_pack_bytes(const struct membank_pack *p, struct membank_bytes *out)
{
    if (!p)
        return MEMBANK_ERR_NOMEM;
    if (p->w.status != MB_OK)
        return (membank_status)p->w.status;
    struct mb_wire_limits limits = {.max_depth = 64, .max_values = SIZE_MAX};
    struct mb_slice written = mb_buffer_slice(&p->buf);
    // Text that is not UTF-8 is the daemon's to refuse, or to repair.
    if (mb_wire_check(written, &limits, true, NULL) != MB_OK)
        return MEMBANK_ERR_BAD_ARG;
    *out = (struct membank_bytes){written.data, written.size};
    return MEMBANK_OK;
}
