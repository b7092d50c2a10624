/* SPDX-License-Identifier: Apache-2.0
 * client/wire/scan.c - is this message what it claims to be?
 *
 * One pass over the bytes, before anything is allocated. `pending` counts the
 * values that open containers still promise; each needs at least one byte, so
 * a promise larger than the bytes left is a lie and is refused where it is
 * made. Hence a message can never claim more values than it has bytes, and
 * memory for the tree is a fixed multiple of the message's size.
 * Invariants: at <= size; pending <= size - at after each head.
 * Threads: any. */
#include "head.h"

#define DEFAULT_DEPTH  16
#define DEFAULT_VALUES 4000000

/* An open container. */
struct frame {
    uint64_t left; /* values still to come, keys included */
    bool is_map;   /* then a key comes next while `left` is even */
};

struct scan {
    struct mb_slice message;
    size_t at;
    uint64_t pending;
    size_t n_values;
    size_t max_values;
    size_t max_depth;
    bool allow_bad_utf8;
    struct scan_counts counts;
    size_t depth;
    struct frame frames[WIRE_DEPTH_CAP];
    struct mb_error *err;
};

static mb_status
bad_head(struct scan *s, head_result result)
{
    const char *what = result == HEAD_CUT   ? "the message ends inside a value"
                       : result == HEAD_EXT ? "extension types are not taken"
                                            : "0xc1 is no msgpack type";
    return mb_error_set(
        s->err, MB_ERR_BAD_MESSAGE, "byte %zu: %s", s->at, what);
}

/* A string or binary of n bytes at `body`. */
static mb_status
scan_bytes(struct scan *s, const struct head *h, size_t body, bool is_key)
{
    size_t left = s->message.size - body;
    if (h->n > left)
        return mb_error_set(s->err, MB_ERR_BAD_MESSAGE,
            "byte %zu: %s claims %llu bytes, %zu are left", s->at,
            h->type == MB_TYPE_STR ? "string" : "binary",
            (unsigned long long)h->n, left);
    size_t n = (size_t)h->n;
    size_t offset = 0;
    if (h->type == MB_TYPE_STR && (is_key || !s->allow_bad_utf8) &&
        !mb_utf8_is_valid(mb_slice_of(s->message.data + body, n), &offset))
        return mb_error_set(s->err, MB_ERR_BAD_TEXT,
            "byte %zu: string is not UTF-8 at its byte %zu", s->at, offset);
    s->at = body + n;
    return MB_OK;
}

static mb_status
scan_container(struct scan *s, const struct head *h, size_t body)
{
    bool is_map = h->type == MB_TYPE_MAP;
    uint64_t n = is_map ? 2 * h->n : h->n;
    size_t left = s->message.size - body;
    if (n > left || n + s->pending > left)
        return mb_error_set(s->err, MB_ERR_BAD_MESSAGE,
            "byte %zu: %s claims %llu values, %zu bytes are left", s->at,
            is_map ? "map" : "array", (unsigned long long)n, left);
    if (s->depth >= s->max_depth)
        return mb_error_set(s->err, MB_ERR_TOO_LARGE,
            "byte %zu: nested deeper than %zu", s->at, s->max_depth);
    if (n > s->max_values - s->n_values)
        return mb_error_set(s->err, MB_ERR_TOO_LARGE,
            "byte %zu: more than %zu values", s->at, s->max_values);
    s->pending += n;
    s->n_values += (size_t)n;
    if (is_map)
        s->counts.n_pairs += (size_t)h->n;
    else
        s->counts.n_items += (size_t)h->n;
    s->at = body;
    s->frames[s->depth++] = (struct frame){.left = n, .is_map = is_map};
    return MB_OK;
}

/* One value of the innermost container, with its bytes but not its values. */
static mb_status
scan_value(struct scan *s)
{
    bool is_key = false;
    if (s->depth > 0) {
        struct frame *top = &s->frames[s->depth - 1];
        is_key = top->is_map && top->left % 2 == 0;
        top->left--;
    }
    s->pending--;
    struct head h;
    size_t size;
    head_result result =
        head_read(s->message.data + s->at, s->message.size - s->at, &h, &size);
    if (result != HEAD_OK)
        return bad_head(s, result);
    if (is_key && h.type != MB_TYPE_STR)
        return mb_error_set(s->err, MB_ERR_BAD_MESSAGE,
            "byte %zu: a map's key is no string", s->at);
    size_t body = s->at + size;
    if (h.type == MB_TYPE_STR || h.type == MB_TYPE_BIN)
        return scan_bytes(s, &h, body, is_key);
    if (h.type == MB_TYPE_ARRAY || h.type == MB_TYPE_MAP)
        return scan_container(s, &h, body);
    s->at = body;
    return MB_OK;
}

mb_status
scan_message(struct mb_slice message, const struct mb_wire_limits *limits,
    bool allow_bad_utf8, struct scan_counts *out, struct mb_error *err)
{
    struct scan s = {
        .message = message,
        .pending = 1,
        .n_values = 1,
        .max_values =
            limits && limits->max_values ? limits->max_values : DEFAULT_VALUES,
        .max_depth =
            limits && limits->max_depth ? limits->max_depth : DEFAULT_DEPTH,
        .allow_bad_utf8 = allow_bad_utf8,
        .err = err,
    };
    if (s.max_depth > WIRE_DEPTH_CAP)
        s.max_depth = WIRE_DEPTH_CAP;
    if (message.size == 0)
        return mb_error_set(err, MB_ERR_BAD_MESSAGE, "empty message");
    while (s.pending > 0) {
        mb_status st = scan_value(&s);
        if (st != MB_OK)
            return st;
        while (s.depth > 0 && s.frames[s.depth - 1].left == 0)
            s.depth--;
    }
    if (s.at < message.size)
        return mb_error_set(err, MB_ERR_BAD_MESSAGE,
            "byte %zu: %zu bytes after the value", s.at, message.size - s.at);
    *out = s.counts;
    return MB_OK;
}
