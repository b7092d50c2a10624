/* SPDX-License-Identifier: Apache-2.0
 * client/wire/mb_wire.h - msgpack, read with bounds and written into buffers.
 *
 * msgpack-c trusts the counts in a message (six bytes make it map 4 GiB), so
 * every message is first scanned by our own reader: counts against the bytes
 * left, depth, number of values, UTF-8 of strings, duplicate keys, trailing
 * bytes. Only then it becomes a tree of mb_value in the request's arena.
 * Strings and binaries in the tree are views of the message.
 *
 * Threads: values are immutable; writers belong to one thread. */
#ifndef MB_WIRE_H
#define MB_WIRE_H

#include "mb_base.h"

/* What a message may hold at most; 0 means the default in brackets. */
struct mb_wire_limits {
    size_t max_depth;  /* nested arrays and maps [16], at most 64 */
    size_t max_values; /* values in all, keys included [4,000,000] */
};

typedef enum mb_type {
    MB_TYPE_NIL,
    MB_TYPE_BOOL,
    MB_TYPE_INT,  /* i is exact */
    MB_TYPE_UINT, /* above INT64_MAX only: u is exact */
    MB_TYPE_FLOAT,
    MB_TYPE_STR, /* valid UTF-8 unless raw strings were allowed */
    MB_TYPE_BIN,
    MB_TYPE_ARRAY,
    MB_TYPE_MAP
} mb_type;

struct mb_pair;

struct mb_value {
    mb_type type;

    union {
        bool b;
        int64_t i;
        uint64_t u;
        double f;
        struct mb_slice s; /* STR and BIN: view of the message */

        struct {
            const struct mb_value *items;
            size_t n;
        } array;

        struct {
            const struct mb_pair *pairs; /* keys are strings, none twice */
            size_t n;
        } map;
    };
};

struct mb_pair {
    struct mb_slice key;
    struct mb_value value;
};

/* Parse exactly one value that fills `message`. The tree lives in `arena` and
 * views `message`, which must outlive it. A string that is not UTF-8 is kept
 * as it is if allow_bad_utf8 (the op decides), else refused.
 * Errors: BAD_MESSAGE (with the byte offset), BAD_TEXT, TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status mb_wire_parse(struct mb_slice message,
    const struct mb_wire_limits *limits, bool allow_bad_utf8,
    struct mb_arena *arena, const struct mb_value **out, struct mb_error *err);

/* The same checks but for keys that come twice, without a tree. */
MB_MUST_USE mb_status mb_wire_check(struct mb_slice message,
    const struct mb_wire_limits *limits, bool allow_bad_utf8,
    struct mb_error *err);

/* Raw bytes of what the outermost map has under each of n keys, without
 * unpacking or checking; size 0 where there is nothing, or where the message is
 * broken before it. Views of message. */
void mb_wire_peek(struct mb_slice message, const char *const *keys,
    struct mb_slice *values, size_t n);
/* Bytes of a raw string value; empty for other types. */
struct mb_slice mb_wire_raw_str(struct mb_slice raw);

/* The same for one key. */
struct mb_slice mb_wire_find(struct mb_slice map, const char *key);
/* Is it a map (by its first byte)? The number of its pairs and the bytes behind
 * its head, which are those of the pairs if it passed mb_wire_check. */
bool mb_wire_is_map(struct mb_slice message);
struct mb_slice mb_wire_map_body(struct mb_slice map, size_t *n_pairs);

/* The value under key, NULL if v is no map or lacks it. */
const struct mb_value *mb_value_get(const struct mb_value *v, const char *key);

/* Typed look-ups in an argument map. Absent key: *out becomes the default, OK.
 * Wrong type or out of range: BAD_ARG, the text names key and range. */
MB_MUST_USE mb_status mb_arg_str(const struct mb_value *map, const char *key,
    bool required, struct mb_slice *out, struct mb_error *err);
MB_MUST_USE mb_status mb_arg_u64(const struct mb_value *map, const char *key,
    uint64_t def, uint64_t min, uint64_t max, uint64_t *out,
    struct mb_error *err);
MB_MUST_USE mb_status mb_arg_double(const struct mb_value *map, const char *key,
    double def, double min, double max, double *out, struct mb_error *err);
MB_MUST_USE mb_status mb_arg_bool(const struct mb_value *map, const char *key,
    bool def, bool *out, struct mb_error *err);
/* Array or map under key; NULL in *out if absent and not required. */
MB_MUST_USE mb_status mb_arg_array(const struct mb_value *map, const char *key,
    bool required, const struct mb_value **out, struct mb_error *err);
MB_MUST_USE mb_status mb_arg_map(const struct mb_value *map, const char *key,
    bool required, const struct mb_value **out, struct mb_error *err);
/* A vector of dim floats: bin of little-endian f32, or array of numbers.
 * dim 0 takes any. *out lives in arena. Errors: BAD_ARG (type, NaN, infinity),
 * MISMATCH (dimension: names both), NOMEM. */
MB_MUST_USE mb_status mb_value_vector(const struct mb_value *v,
    const char *what, size_t dim, struct mb_arena *arena, const float **out,
    size_t *out_dim, struct mb_error *err);

/* ---- writing ---- */

/* Appends msgpack to buf. The first failure (TOO_LARGE, NOMEM) sticks in
 * status; later calls do nothing, so that one check at the end is enough. */
struct mb_writer {
    struct mb_buffer *buf;
    mb_status status;
};

void mb_writer_init(struct mb_writer *w, struct mb_buffer *buf);
void mb_write_nil(struct mb_writer *w);
void mb_write_bool(struct mb_writer *w, bool v);
void mb_write_int(struct mb_writer *w, int64_t v);
void mb_write_uint(struct mb_writer *w, uint64_t v);
void mb_write_f32(struct mb_writer *w, float v);
void mb_write_f64(struct mb_writer *w, double v);
void mb_write_str(struct mb_writer *w, struct mb_slice s);
void mb_write_cstr(struct mb_writer *w, const char *s);
void mb_write_bin(struct mb_writer *w, struct mb_slice s);
void mb_write_array(struct mb_writer *w, size_t n); /* n values follow */
void mb_write_map(struct mb_writer *w, size_t n);   /* n key, value pairs */
/* Bytes that are one whole msgpack value already. */
void mb_write_raw(struct mb_writer *w, struct mb_slice msgpack);
void mb_write_value(struct mb_writer *w, const struct mb_value *v);
/* Key and value in one line. */
void mb_write_kv_cstr(struct mb_writer *w, const char *key, const char *v);
void mb_write_kv_str(struct mb_writer *w, const char *key, struct mb_slice v);
void mb_write_kv_uint(struct mb_writer *w, const char *key, uint64_t v);
void mb_write_kv_f64(struct mb_writer *w, const char *key, double v);
void mb_write_kv_bool(struct mb_writer *w, const char *key, bool v);

#endif
