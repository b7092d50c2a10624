/* SPDX-License-Identifier: Apache-2.0
 * tools/common/json.c - the JSON reader and writer of the tools.
 *
 * Our own, since each C library that Debian 12 has would lose something of a
 * user's document: cJSON makes every number a double (9007199254740993 becomes
 * another) and ends strings at U+0000; Jansson knows no integer above 2^63 and
 * refuses raw control characters and bytes that are not UTF-8, which --repair
 * is there to mend; json-c lets the last of two equal keys win in silence.
 * yyjson would do, and is not packaged there.
 *
 * A plain recursive-descent parser (RFC 8259) over bytes with a depth limit.
 * Children of an array or object are gathered in arena blocks that double.
 * It takes one liberty: raw control characters within strings, which real
 * files hold. Keys that stand twice in an object are refused: one of the values
 * would be lost in silence.
 * Threads: any. */
#include "json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "display.h"

struct parser {
    const uint8_t *data;
    size_t size;
    size_t at;
    bool repair;
    struct mb_arena *arena;
    struct mb_error *err;
};

/* ---- reading ---- */

static mb_status
bad(struct parser *p, const char *what)
{
    return mb_error_set(p->err, MB_ERR_BAD_MESSAGE, "not JSON: %s at byte %zu",
        what, p->at + 1);
}

static mb_status
no_memory(struct parser *p)
{
    return mb_error_set(p->err, MB_ERR_NOMEM,
        "no memory for a JSON value of %zu bytes", p->size);
}

static void
skip_space(struct parser *p)
{
    while (p->at < p->size) {
        uint8_t c = p->data[p->at];

        if (c != ' ' && c != '\n' && c != '\t' && c != '\r')
            break;
        p->at++;
    }
}

static int
hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* Four hex digits at p->at; -1 if they are not there. */
static int32_t
read_hex4(struct parser *p)
{
    int32_t v = 0;

    if (p->size - p->at < 4)
        return -1;
    for (size_t i = 0; i < 4; i++) {
        int d = hex_digit(p->data[p->at + i]);

        if (d < 0)
            return -1;
        v = v * 16 + d;
    }
    p->at += 4;
    return v;
}

/* After "\u": the character, two escapes together if they are a pair. */
static mb_status
read_unicode(struct parser *p, uint32_t *out)
{
    int32_t high = read_hex4(p);
    int32_t low;

    if (high < 0)
        return bad(p, "\\u without four hex digits");
    *out = (uint32_t)high;
    if (high < 0xD800 || high > 0xDFFF)
        return MB_OK;
    if (high <= 0xDBFF && p->size - p->at >= 6 && p->data[p->at] == '\\' &&
        p->data[p->at + 1] == 'u') {
        size_t back = p->at;

        p->at += 2;
        low = read_hex4(p);
        if (low >= 0xDC00 && low <= 0xDFFF) {
            *out = 0x10000u + (((uint32_t)high & 0x3FFu) << 10) +
                   ((uint32_t)low & 0x3FFu);
            return MB_OK;
        }
        p->at = back;
    }
    if (!p->repair)
        return mb_error_set(p->err, MB_ERR_BAD_TEXT,
            "half a surrogate pair, \\u%04x, at byte %zu", (unsigned)high,
            p->at - 5);
    *out = 0xFFFD;
    return MB_OK;
}

/* What a single letter after a backslash stands for; 0 if nothing. */
static uint8_t
escape_of(uint8_t c)
{
    static const char from[] = "\"\\/bfnrt";
    static const char to[] = "\"\\/\b\f\n\r\t";
    const char *at = c != 0 ? strchr(from, c) : NULL;

    return at == NULL ? 0 : (uint8_t)to[at - from];
}

/* The string has escapes: copy it to the arena, unescaped. It never grows. */
static mb_status
unescape(struct parser *p, size_t end, struct mb_slice *out)
{
    uint8_t *to = mb_arena_alloc(p->arena, end - p->at + 1);
    size_t n = 0;

    if (to == NULL)
        return no_memory(p);
    while (p->at < end) {
        uint8_t c = p->data[p->at++];
        uint32_t code = 0;
        mb_status st;

        if (c != '\\') {
            to[n++] = c;
            continue;
        }
        c = p->data[p->at++];
        if (c == 'u') {
            st = read_unicode(p, &code);
            if (st != MB_OK)
                return st;
            n += utf8_encode(to + n, code);
        } else if (escape_of(c) != 0) {
            to[n++] = escape_of(c);
        } else {
            return bad(p, "unknown escape");
        }
    }
    *out = mb_slice_of(to, n);
    return MB_OK;
}

/* p->at is behind the opening quote. */
static mb_status
parse_string(struct parser *p, struct mb_slice *out)
{
    size_t end = p->at;
    bool escaped = false;
    mb_status st;

    while (end < p->size && p->data[end] != '"') {
        if (p->data[end] == '\\') {
            escaped = true;
            end++;
        }
        end++;
    }
    if (end >= p->size) {
        p->at = p->size;
        return bad(p, "string without end");
    }
    if (escaped) {
        st = unescape(p, end, out);
        if (st != MB_OK)
            return st;
    } else {
        *out = mb_slice_of(p->data + p->at, end - p->at);
    }
    p->at = end + 1;
    return MB_OK;
}

/* Digits at *at; false if there is none. */
static bool
skip_digits(const struct parser *p, size_t *at)
{
    size_t from = *at;

    while (*at < p->size && p->data[*at] >= '0' && p->data[*at] <= '9') {
        *at += 1;
    }
    return *at > from;
}

/* End of the number at p->at by JSON's grammar, 0 if it is none. */
static size_t
number_end(const struct parser *p, bool *is_whole)
{
    size_t at = p->at;

    *is_whole = true;
    if (p->data[at] == '-')
        at++;
    if (at < p->size && p->data[at] == '0')
        at++;
    else if (!skip_digits(p, &at))
        return 0;
    if (at < p->size && p->data[at] == '.') {
        at++;
        *is_whole = false;
        if (!skip_digits(p, &at))
            return 0;
    }
    if (at < p->size && (p->data[at] == 'e' || p->data[at] == 'E')) {
        at++;
        *is_whole = false;
        if (at < p->size && (p->data[at] == '+' || p->data[at] == '-'))
            at++;
        if (!skip_digits(p, &at))
            return 0;
    }
    return at;
}

/* Whole numbers that fit 64 bits; false if it does not fit. */
static bool
whole_number(const uint8_t *s, size_t n, struct mb_value *out)
{
    bool negative = s[0] == '-';
    uint64_t v = 0;

    for (size_t i = negative ? 1 : 0; i < n; i++) {
        uint64_t d = (uint64_t)(s[i] - '0');

        if (v > (UINT64_MAX - d) / 10)
            return false;
        v = v * 10 + d;
    }
    if (negative) {
        if (v > (uint64_t)INT64_MAX + 1)
            return false;
        out->type = MB_TYPE_INT;
        out->i = v == 0 ? 0 : -(int64_t)(v - 1) - 1;
    } else if (v <= INT64_MAX) {
        out->type = MB_TYPE_INT;
        out->i = (int64_t)v;
    } else {
        out->type = MB_TYPE_UINT;
        out->u = v;
    }
    return true;
}

static mb_status
parse_number(struct parser *p, struct mb_value *out)
{
    bool is_whole;
    size_t end = number_end(p, &is_whole);
    char *copy;

    if (end == 0)
        return bad(p, "unknown word");
    if (!is_whole || !whole_number(p->data + p->at, end - p->at, out)) {
        copy = mb_arena_strndup(
            p->arena, (const char *)p->data + p->at, end - p->at);
        if (copy == NULL)
            return no_memory(p);
        out->type = MB_TYPE_FLOAT;
        out->f = strtod(copy, NULL);
        if (!isfinite(out->f))
            return bad(p, "number out of range");
    }
    p->at = end;
    return MB_OK;
}

static bool
parse_word(struct parser *p, const char *word)
{
    size_t n = strlen(word);

    if (p->size - p->at < n || memcmp(p->data + p->at, word, n) != 0)
        return false;
    p->at += n;
    return true;
}

static mb_status parse_value(
    struct parser *p, size_t depth, struct mb_value *out);

/* Room for one more of n items of `size` bytes: NULL when memory is short. */
static void *
grow(struct parser *p, void *items, size_t n, size_t *capacity, size_t size)
{
    size_t more = *capacity == 0 ? 8 : *capacity * 2;
    void *to;

    if (n < *capacity)
        return items;
    to = mb_arena_alloc(p->arena, more * size);
    if (to != NULL && n > 0)
        memcpy(to, items, n * size);
    *capacity = more;
    return to;
}

/* After an item: true if another follows, false at `close`. */
static mb_status
next_item(struct parser *p, uint8_t close, bool *more)
{
    skip_space(p);
    if (p->at < p->size && p->data[p->at] == ',') {
        p->at++;
        *more = true;
        return MB_OK;
    }
    if (p->at < p->size && p->data[p->at] == close) {
        p->at++;
        *more = false;
        return MB_OK;
    }
    return bad(p, close == ']' ? "no , or ]" : "no , or }");
}

/* True (and past it) if the array or object ends at once. */
static bool
is_empty(struct parser *p, uint8_t close)
{
    skip_space(p);
    if (p->at >= p->size || p->data[p->at] != close)
        return false;
    p->at++;
    return true;
}

static mb_status
parse_array(struct parser *p, size_t depth, struct mb_value *out)
{
    struct mb_value *items = NULL;
    size_t capacity = 0;
    size_t n = 0;
    bool more = !is_empty(p, ']');

    while (more) {
        mb_status st;

        items = grow(p, items, n, &capacity, sizeof *items);
        if (items == NULL)
            return no_memory(p);
        st = parse_value(p, depth, &items[n]);
        if (st != MB_OK)
            return st;
        n++;
        st = next_item(p, ']', &more);
        if (st != MB_OK)
            return st;
    }
    out->type = MB_TYPE_ARRAY;
    out->array.items = items;
    out->array.n = n;
    return MB_OK;
}

static int
compare_keys(const void *a, const void *b)
{
    const struct mb_pair *const *x = a;
    const struct mb_pair *const *y = b;

    return mb_slice_compare((*x)->key, (*y)->key);
}

/* A key that stands twice, or NULL. Few keys: every pair of them; many: sorted
 * pointers in the arena. */
static mb_status
check_keys(struct parser *p, const struct mb_pair *pairs, size_t n)
{
    const struct mb_pair **sorted;
    const struct mb_pair *twice = NULL;

    if (n < 2)
        return MB_OK;
    sorted = mb_arena_alloc(p->arena, n * sizeof(struct mb_pair *));
    if (sorted == NULL)
        return no_memory(p);
    for (size_t i = 0; i < n; i++) {
        sorted[i] = &pairs[i];
    }
    qsort(sorted, n, sizeof(struct mb_pair *), compare_keys);
    for (size_t i = 1; i < n && twice == NULL; i++) {
        if (mb_slice_equal(sorted[i - 1]->key, sorted[i]->key))
            twice = sorted[i];
    }
    if (twice == NULL)
        return MB_OK;
    return mb_error_set(p->err, MB_ERR_BAD_MESSAGE,
        "not JSON: key \"%.*s\" stands twice in one object",
        (int)(twice->key.size < 80 ? twice->key.size : 80),
        (const char *)twice->key.data);
}

static mb_status
parse_pair(struct parser *p, size_t depth, struct mb_pair *out)
{
    mb_status st;

    skip_space(p);
    if (p->at >= p->size || p->data[p->at] != '"')
        return bad(p, "no key in quotes");
    p->at++;
    st = parse_string(p, &out->key);
    if (st != MB_OK)
        return st;
    skip_space(p);
    if (p->at >= p->size || p->data[p->at] != ':')
        return bad(p, "no : after a key");
    p->at++;
    return parse_value(p, depth, &out->value);
}

static mb_status
parse_object(struct parser *p, size_t depth, struct mb_value *out)
{
    struct mb_pair *pairs = NULL;
    size_t capacity = 0;
    size_t n = 0;
    bool more = !is_empty(p, '}');
    mb_status st;

    while (more) {
        pairs = grow(p, pairs, n, &capacity, sizeof *pairs);
        if (pairs == NULL)
            return no_memory(p);
        st = parse_pair(p, depth, &pairs[n]);
        if (st != MB_OK)
            return st;
        n++;
        st = next_item(p, '}', &more);
        if (st != MB_OK)
            return st;
    }
    st = check_keys(p, pairs, n);
    if (st != MB_OK)
        return st;
    out->type = MB_TYPE_MAP;
    out->map.pairs = pairs;
    out->map.n = n;
    return MB_OK;
}

static mb_status
parse_value(struct parser *p, size_t depth, struct mb_value *out)
{
    uint8_t c;

    skip_space(p);
    if (p->at >= p->size)
        return bad(p, "it ends too early");
    c = p->data[p->at];
    if (c == '{' || c == '[') {
        if (depth >= JSON_MAX_DEPTH)
            return mb_error_set(p->err, MB_ERR_TOO_LARGE,
                "JSON nested deeper than %d at byte %zu", JSON_MAX_DEPTH,
                p->at + 1);
        p->at++;
        return c == '{' ? parse_object(p, depth + 1, out)
                        : parse_array(p, depth + 1, out);
    }
    if (c == '"') {
        p->at++;
        out->type = MB_TYPE_STR;
        return parse_string(p, &out->s);
    }
    if (parse_word(p, "null")) {
        out->type = MB_TYPE_NIL;
        return MB_OK;
    }
    if (parse_word(p, "true") || parse_word(p, "false")) {
        out->type = MB_TYPE_BOOL;
        out->b = c == 't';
        return MB_OK;
    }
    return parse_number(p, out);
}

mb_status
json_parse(struct mb_slice text, bool repair, struct mb_arena *arena,
    const struct mb_value **out, struct mb_error *err)
{
    struct parser p = {text.data, text.size, 0, repair, arena, err};
    struct mb_value *v = mb_arena_calloc(arena, 1, sizeof *v);
    mb_status st;

    if (v == NULL)
        return no_memory(&p);
    st = parse_value(&p, 0, v);
    if (st != MB_OK)
        return st;
    skip_space(&p);
    if (p.at < p.size)
        return bad(&p, "more text behind the value");
    *out = v;
    return MB_OK;
}

/* ---- writing ---- */

static void
put(struct json_writer *w, const void *data, size_t size)
{
    if (w->status == MB_OK)
        w->status = mb_buffer_append(w->buf, data, size);
}

static void
put_str(struct json_writer *w, const char *s)
{
    put(w, s, strlen(s));
}

/* Every value comes through here first. */
static void
begin_value(struct json_writer *w)
{
    if (w->comma)
        put(w, ",", 1);
    w->comma = true;
}

void
json_writer_init(struct json_writer *w, struct mb_buffer *buf)
{
    w->buf = buf;
    w->status = MB_OK;
    w->comma = false;
    w->html = false;
}

void
json_object_begin(struct json_writer *w)
{
    begin_value(w);
    put(w, "{", 1);
    w->comma = false;
}

void
json_object_end(struct json_writer *w)
{
    put(w, "}", 1);
    w->comma = true;
}

void
json_array_begin(struct json_writer *w)
{
    begin_value(w);
    put(w, "[", 1);
    w->comma = false;
}

void
json_array_end(struct json_writer *w)
{
    put(w, "]", 1);
    w->comma = true;
}

void
json_null(struct json_writer *w)
{
    begin_value(w);
    put_str(w, "null");
}

void
json_bool(struct json_writer *w, bool v)
{
    begin_value(w);
    put_str(w, v ? "true" : "false");
}

void
json_i64(struct json_writer *w, int64_t v)
{
    char s[32];

    begin_value(w);
    (void)snprintf(s, sizeof s, "%lld", (long long)v);
    put_str(w, s);
}

void
json_u64(struct json_writer *w, uint64_t v)
{
    char s[32];

    begin_value(w);
    (void)snprintf(s, sizeof s, "%llu", (unsigned long long)v);
    put_str(w, s);
}

void
json_f64(struct json_writer *w, double v)
{
    char s[40];

    if (!isfinite(v)) {
        json_null(w);
        return;
    }
    begin_value(w);
    for (int digits = 15; digits <= 17; digits++) {
        (void)snprintf(s, sizeof s, "%.*g", digits, v);
        if (strtod(s, NULL) == v)
            break;
    }
    put_str(w, s);
}

void
json_f32(struct json_writer *w, float v)
{
    char s[40];

    if (!isfinite(v)) {
        json_null(w);
        return;
    }
    begin_value(w);
    for (int digits = 6; digits <= 9; digits++) {
        (void)snprintf(s, sizeof s, "%.*g", digits, (double)v);
        if (strtof(s, NULL) == v)
            break;
    }
    put_str(w, s);
}

static bool
needs_escape(const struct json_writer *w, uint8_t c)
{
    if (c < 0x20 || c == '"' || c == '\\' || c == 0x7F)
        return true;
    return w->html && (c == '<' || c == '>' || c == '&');
}

static void
put_escaped(struct json_writer *w, uint8_t c)
{
    char s[8];

    if (c == '"' || c == '\\')
        (void)snprintf(s, sizeof s, "\\%c", c);
    else if (c == '\n')
        (void)snprintf(s, sizeof s, "\\n");
    else if (c == '\t')
        (void)snprintf(s, sizeof s, "\\t");
    else if (c == '\r')
        (void)snprintf(s, sizeof s, "\\r");
    else
        (void)snprintf(s, sizeof s, "\\u%04x", c);
    put_str(w, s);
}

static void
put_string(struct json_writer *w, struct mb_slice s)
{
    size_t from = 0;

    put(w, "\"", 1);
    for (size_t i = 0; i < s.size; i++) {
        if (!needs_escape(w, s.data[i]))
            continue;
        put(w, s.data + from, i - from);
        put_escaped(w, s.data[i]);
        from = i + 1;
    }
    if (from < s.size)
        put(w, s.data + from, s.size - from);
    put(w, "\"", 1);
}

void
json_str(struct json_writer *w, struct mb_slice s)
{
    struct mb_buffer repaired;

    begin_value(w);
    if (mb_utf8_is_valid(s, NULL)) {
        put_string(w, s);
        return;
    }
    mb_buffer_init(&repaired, SIZE_MAX);
    if (w->status == MB_OK)
        w->status = mb_utf8_repair(s, &repaired);
    if (w->status == MB_OK)
        put_string(w, mb_buffer_slice(&repaired));
    mb_buffer_fini(&repaired);
}

void
json_cstr(struct json_writer *w, const char *s)
{
    json_str(w, mb_slice_cstr(s));
}

void
json_key(struct json_writer *w, const char *key)
{
    json_cstr(w, key);
    put(w, ":", 1);
    w->comma = false;
}

static void
put_bin(struct json_writer *w, struct mb_slice s)
{
    begin_value(w);
    put(w, "\"", 1);
    for (size_t i = 0; i < s.size; i++) {
        char hex[4];

        (void)snprintf(hex, sizeof hex, "%02x", s.data[i]);
        put_str(w, hex);
    }
    put(w, "\"", 1);
}

void
json_value(struct json_writer *w, const struct mb_value *v)
{
    switch (v->type) {
    case MB_TYPE_NIL:
        json_null(w);
        break;
    case MB_TYPE_BOOL:
        json_bool(w, v->b);
        break;
    case MB_TYPE_INT:
        json_i64(w, v->i);
        break;
    case MB_TYPE_UINT:
        json_u64(w, v->u);
        break;
    case MB_TYPE_FLOAT:
        json_f64(w, v->f);
        break;
    case MB_TYPE_STR:
        json_str(w, v->s);
        break;
    case MB_TYPE_BIN:
        put_bin(w, v->s);
        break;
    case MB_TYPE_ARRAY:
        json_array_begin(w);
        for (size_t i = 0; i < v->array.n; i++) {
            json_value(w, &v->array.items[i]);
        }
        json_array_end(w);
        break;
    case MB_TYPE_MAP:
        json_object_begin(w);
        for (size_t i = 0; i < v->map.n; i++) {
            json_str(w, v->map.pairs[i].key);
            put(w, ":", 1);
            w->comma = false;
            json_value(w, &v->map.pairs[i].value);
        }
        json_object_end(w);
        break;
    }
}

void
json_msgpack(struct json_writer *w, struct mb_slice msgpack)
{
    struct mb_arena *arena = NULL;
    const struct mb_value *v = NULL;

    if (msgpack.size > 0)
        arena = mb_arena_new(SIZE_MAX);
    if (arena != NULL &&
        mb_wire_parse(msgpack, NULL, true, arena, &v, NULL) == MB_OK) {
        json_value(w, v);
    } else {
        json_object_begin(w);
        json_object_end(w);
    }
    mb_arena_free(arena);
}

void
json_kv_cstr(struct json_writer *w, const char *key, const char *v)
{
    json_key(w, key);
    json_cstr(w, v);
}

void
json_kv_str(struct json_writer *w, const char *key, struct mb_slice v)
{
    json_key(w, key);
    json_str(w, v);
}

void
json_kv_u64(struct json_writer *w, const char *key, uint64_t v)
{
    json_key(w, key);
    json_u64(w, v);
}

void
json_kv_f64(struct json_writer *w, const char *key, double v)
{
    json_key(w, key);
    json_f64(w, v);
}

void
json_kv_bool(struct json_writer *w, const char *key, bool v)
{
    json_key(w, key);
    json_bool(w, v);
}
