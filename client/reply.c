/* SPDX-License-Identifier: Apache-2.0
 * client/reply.c - replies and the values in them, as the caller sees them.
 *
 * struct membank_value is struct mb_value under a public name: the body stays
 * private, so it may change while the functions here do not. Accessors answer
 * "nothing" to NULL and to other types, so that a program can look for what
 * may be absent without a check at every step.
 * Invariants: a reply owns its message and its tree; views end with it.
 * Threads: whoever holds the reply. */
#include "client.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* The tree takes at most 40 bytes for each byte of the message (an array of
 * one-byte values takes 24, a map of empty keys 20), and a little more. */
#define TREE_PER_BYTE ((size_t)40)

/* ---- errors ---- */

#define MB_X(name, number, wire, text, retry)                                  \
    _Static_assert((int)MEMBANK_##name == (int)MB_##name, "same number");
MB_STATUS_TABLE(MB_X)
#undef MB_X

_Static_assert(MEMBANK_ERROR_TEXT == MB_ERROR_TEXT, "same size");

const char *
membank_status_name(membank_status st)
{
    return mb_status_name((mb_status)st);
}

const char *
membank_status_text(membank_status st)
{
    return mb_status_text((mb_status)st);
}

bool
membank_status_may_retry(membank_status st)
{
    return mb_status_may_retry((mb_status)st);
}

membank_status
client_error(struct membank_error *err, const struct mb_error *e)
{
    if (err) {
        err->status = (membank_status)e->status;
        memcpy(err->text, e->text, sizeof err->text);
    }
    return (membank_status)e->status;
}

membank_status
client_fail(struct membank_error *err, membank_status st, const char *fmt, ...)
{
    if (!err)
        return st;
    err->status = st;
    va_list args;
    va_start(args, fmt);
    vsnprintf(err->text, sizeof err->text, fmt, args);
    va_end(args);
    return st;
}

/* ---- reading ---- */

/* The daemon's error: {"code": ..., "message": ...}. */
static mb_status
read_error(struct membank_reply *reply, const struct mb_value *error,
    struct mb_error *err)
{
    struct mb_slice code = {0};
    struct mb_slice text = {0};
    if (!error || error->type != MB_TYPE_MAP ||
        mb_arg_str(error, "code", true, &code, NULL) != MB_OK ||
        mb_arg_str(error, "message", false, &text, NULL) != MB_OK)
        return mb_error_set(err, MB_ERR_BAD_MESSAGE,
            "the reply has neither a result nor an error");
    char name[32];
    snprintf(name, sizeof name, "%.*s", code.size > 31 ? 31 : (int)code.size,
        (const char *)code.data);
    mb_status st = mb_status_from_name(name);
    // A code of a newer daemon must not read as success.
    reply->status = (membank_status)(st == MB_OK ? MB_ERR_INTERNAL : st);
    struct mb_error whole;
    mb_error_set(&whole, st, "%.*s",
        text.size > INT32_MAX ? INT32_MAX : (int)text.size,
        (const char *)text.data);
    memcpy(reply->error, whole.text, sizeof reply->error);
    return MB_OK;
}

static mb_status
read_envelope(struct membank_reply *reply, const struct mb_value *root,
    struct mb_error *err)
{
    uint64_t version = 0;
    bool ok = false;
    if (root->type != MB_TYPE_MAP || !mb_value_get(root, "ok") ||
        mb_arg_bool(root, "ok", false, &ok, NULL) != MB_OK ||
        mb_arg_bool(root, "more", false, &reply->has_more, NULL) != MB_OK)
        return mb_error_set(
            err, MB_ERR_BAD_MESSAGE, "what answers is no membankd");
    if (mb_arg_u64(root, "v", 0, 0, UINT32_MAX, &version, NULL) != MB_OK ||
        version != CLIENT_PROTOCOL)
        return mb_error_set(err, MB_ERR_BAD_MESSAGE,
            "the reply has protocol version %llu, wanted is %d",
            (unsigned long long)version, CLIENT_PROTOCOL);
    // Ticket 0 is nobody's: an id that is nil, or not one of ours.
    const struct mb_value *id = mb_value_get(root, "id");
    reply->ticket =
        id && id->type == MB_TYPE_INT && id->i > 0 ? (uint64_t)id->i : 0;
    reply->status = MEMBANK_OK;
    reply->error[0] = '\0';
    reply->result = ok ? mb_value_get(root, "result") : NULL;
    return ok ? MB_OK : read_error(reply, mb_value_get(root, "error"), err);
}

mb_status
reply_read(struct membank_reply *reply, struct mb_error *err)
{
    size_t max;
    if (!mb_size_mul(reply->message.size, TREE_PER_BYTE, &max) ||
        !mb_size_add(max, 4096, &max))
        max = SIZE_MAX;
    reply->arena = mb_arena_new(max);
    if (!reply->arena)
        return mb_error_set(err, MB_ERR_NOMEM, "reply");
    // The bytes bound the values; the daemon's own limits do not concern us.
    struct mb_wire_limits limits = {.max_depth = 64, .max_values = SIZE_MAX};
    const struct mb_value *root;
    mb_status st =
        mb_wire_parse(reply->message, &limits, false, reply->arena, &root, err);
    if (st == MB_OK)
        st = read_envelope(reply, root, err);
    if (st != MB_OK) {
        mb_arena_free(reply->arena);
        reply->arena = NULL;
        reply->result = NULL;
        return st == MB_ERR_NOMEM ? st : MB_ERR_BAD_MESSAGE;
    }
    return MB_OK;
}

void
reply_fini(struct membank_reply *reply)
{
    mb_arena_free(reply->arena);
    if (reply->release)
        reply->release(reply->owner);
    *reply = (struct membank_reply){0};
}

/* ---- replies ---- */

void
membank_reply_free(struct membank_reply *reply)
{
    if (!reply)
        return;
    reply_fini(reply);
    mb_free(reply);
}

uint64_t
membank_reply_ticket(const struct membank_reply *reply)
{
    return reply->ticket;
}

membank_status
membank_reply_status(const struct membank_reply *reply)
{
    return reply->status;
}

const char *
membank_reply_error(const struct membank_reply *reply)
{
    return reply->error;
}

bool
membank_reply_has_more(const struct membank_reply *reply)
{
    return reply->has_more;
}

const struct membank_value *
membank_reply_result(const struct membank_reply *reply)
{
    return (const struct membank_value *)reply->result;
}

struct membank_bytes
membank_reply_bytes(const struct membank_reply *reply)
{
    struct mb_slice found = {0};
    if (reply->result)
        found = mb_wire_find(reply->message, "result");
    return (struct membank_bytes){found.data, found.size};
}

/* ---- values ---- */

static const struct mb_value *
value_of(const struct membank_value *v)
{
    static const struct mb_value nothing = {.type = MB_TYPE_NIL};
    return v ? (const struct mb_value *)v : &nothing;
}

static const struct membank_value *
public_value(const struct mb_value *v)
{
    return (const struct membank_value *)v;
}

membank_type
membank_value_type(const struct membank_value *v)
{
    // Spelled out: the numbers of the inner enum are nobody's promise.
    switch (value_of(v)->type) {
    case MB_TYPE_NIL:
        return MEMBANK_TYPE_NIL;
    case MB_TYPE_BOOL:
        return MEMBANK_TYPE_BOOL;
    case MB_TYPE_INT:
        return MEMBANK_TYPE_INT;
    case MB_TYPE_UINT:
        return MEMBANK_TYPE_UINT;
    case MB_TYPE_FLOAT:
        return MEMBANK_TYPE_FLOAT;
    case MB_TYPE_STR:
        return MEMBANK_TYPE_STR;
    case MB_TYPE_BIN:
        return MEMBANK_TYPE_BIN;
    case MB_TYPE_ARRAY:
        return MEMBANK_TYPE_ARRAY;
    case MB_TYPE_MAP:
        return MEMBANK_TYPE_MAP;
    }
    return MEMBANK_TYPE_NIL;
}

const struct membank_value *
membank_value_get(const struct membank_value *v, const char *key)
{
    return public_value(mb_value_get(value_of(v), key));
}

size_t
membank_value_size(const struct membank_value *v)
{
    const struct mb_value *value = value_of(v);
    switch (value->type) {
    case MB_TYPE_ARRAY:
        return value->array.n;
    case MB_TYPE_MAP:
        return value->map.n;
    case MB_TYPE_STR:
    case MB_TYPE_BIN:
        return value->s.size;
    default:
        return 0;
    }
}

const struct membank_value *
membank_value_at(const struct membank_value *v, size_t i)
{
    const struct mb_value *value = value_of(v);
    if (value->type == MB_TYPE_ARRAY && i < value->array.n)
        return public_value(&value->array.items[i]);
    if (value->type == MB_TYPE_MAP && i < value->map.n)
        return public_value(&value->map.pairs[i].value);
    return NULL;
}

const char *
membank_value_key(const struct membank_value *v, size_t i, size_t *size)
{
    const struct mb_value *value = value_of(v);
    if (value->type != MB_TYPE_MAP || i >= value->map.n)
        return NULL;
    *size = value->map.pairs[i].key.size;
    return (const char *)value->map.pairs[i].key.data;
}

bool
membank_value_bool(const struct membank_value *v, bool def)
{
    const struct mb_value *value = value_of(v);
    return value->type == MB_TYPE_BOOL ? value->b : def;
}

int64_t
membank_value_i64(const struct membank_value *v, int64_t def)
{
    const struct mb_value *value = value_of(v);
    if (value->type == MB_TYPE_INT)
        return value->i;
    // 2^63 itself is too large; NaN fails both comparisons.
    if (value->type == MB_TYPE_FLOAT && value->f >= -0x1p63 &&
        value->f < 0x1p63)
        return (int64_t)value->f;
    return def;
}

uint64_t
membank_value_u64(const struct membank_value *v, uint64_t def)
{
    const struct mb_value *value = value_of(v);
    if (value->type == MB_TYPE_INT && value->i >= 0)
        return (uint64_t)value->i;
    if (value->type == MB_TYPE_UINT)
        return value->u;
    if (value->type == MB_TYPE_FLOAT && value->f >= 0 && value->f < 0x1p64)
        return (uint64_t)value->f;
    return def;
}

double
membank_value_f64(const struct membank_value *v, double def)
{
    const struct mb_value *value = value_of(v);
    if (value->type == MB_TYPE_FLOAT)
        return value->f;
    if (value->type == MB_TYPE_INT)
        return (double)value->i;
    if (value->type == MB_TYPE_UINT)
        return (double)value->u;
    return def;
}

const char *
membank_value_str(const struct membank_value *v, size_t *size)
{
    const struct mb_value *value = value_of(v);
    if (value->type != MB_TYPE_STR && value->type != MB_TYPE_BIN)
        return NULL;
    *size = value->s.size;
    return (const char *)value->s.data;
}
