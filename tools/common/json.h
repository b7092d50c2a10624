/* SPDX-License-Identifier: Apache-2.0
 * tools/common/json.h - JSON text to wire values and back.
 *
 * The tools read documents, filters and queries as JSON and send msgpack, so
 * the reader makes mb_values at once: whole numbers keep all 64 bits, strings
 * may hold NUL, depth and memory are bounded, errors give the byte.
 * Threads: any; a writer belongs to one. */
#ifndef TOOLS_JSON_H
#define TOOLS_JSON_H

#include "mb_base.h"
#include "mb_wire.h"

#define JSON_MAX_DEPTH 64

/* Parse one value that fills `text` (white space around it is skipped). The
 * tree lives in arena; strings without escapes are views of text. Bytes of
 * strings are not checked to be UTF-8. An escape of half a surrogate pair
 * becomes U+FFFD if `repair`, else it is refused.
 * Errors: BAD_MESSAGE (what, and the byte's number from 1), BAD_TEXT (half a
 * pair), TOO_LARGE (depth), NOMEM. */
MB_MUST_USE mb_status json_parse(struct mb_slice text, bool repair,
    struct mb_arena *arena, const struct mb_value **out, struct mb_error *err);

/* Writes JSON text, without white space. The first failure sticks in status.
 */
struct json_writer {
    struct mb_buffer *buf;
    mb_status status;
    bool comma; /* the next value needs one before it */
    bool html;  /* escape < > & so that it may stand inside <script> */
};

void json_writer_init(struct json_writer *w, struct mb_buffer *buf);
void json_object_begin(struct json_writer *w);
void json_object_end(struct json_writer *w);
void json_array_begin(struct json_writer *w);
void json_array_end(struct json_writer *w);
void json_key(struct json_writer *w, const char *key);
void json_null(struct json_writer *w);
void json_bool(struct json_writer *w, bool v);
void json_i64(struct json_writer *w, int64_t v);
void json_u64(struct json_writer *w, uint64_t v);
/* The fewest digits that give the same number; not finite: null. */
void json_f64(struct json_writer *w, double v);
void json_f32(struct json_writer *w, float v);
/* Bad UTF-8 becomes U+FFFD. */
void json_str(struct json_writer *w, struct mb_slice s);
void json_cstr(struct json_writer *w, const char *s);
/* Binaries become strings of hex digits. */
void json_value(struct json_writer *w, const struct mb_value *v);
/* A msgpack value, {} if empty or damaged. */
void json_msgpack(struct json_writer *w, struct mb_slice msgpack);
/* Key and value in one line. */
void json_kv_cstr(struct json_writer *w, const char *key, const char *v);
void json_kv_str(struct json_writer *w, const char *key, struct mb_slice v);
void json_kv_u64(struct json_writer *w, const char *key, uint64_t v);
void json_kv_f64(struct json_writer *w, const char *key, double v);
void json_kv_bool(struct json_writer *w, const char *key, bool v);

#endif
