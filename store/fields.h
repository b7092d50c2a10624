/* SPDX-License-Identifier: Apache-2.0
 * store/fields.h - keys of the metadata index, shared by fields.c (writes and
 * verifies rows) and filter.c (reads them).
 *
 * A row of KV_FIELDS says: the document whose segments begin at first_segment
 * has this value under this field. Its key is
 *
 *   coll u32, mb_hash64(field name) u64, type u8, value bytes, first_segment u32
 *
 * big-endian, so that the rows of one field lie in the order of type and
 * value, and equality and ranges are each one run of rows. Value bytes:
 *
 *   nil      none
 *   bool     0 or 1
 *   number   10 bytes: the nearest f64 with the sign folded so that byte order
 *            is numeric order, then what that rounding lost as u16 + 0x8000.
 *            Integers and floats are one order, and every 64-bit integer
 *            stays itself. NaN is no number here: it is of type other.
 *   string   the first FIELD_STRING_BYTES bytes with 00 written as 00 FF, then
 *            00 01, or for a longer string 00 02 and mb_hash64 of all of it
 *   other    none: a map, a binary, NaN or an empty array; the row says only
 *            that the field is there
 *
 * The string form is free of prefixes and sorts as the strings do, so longer
 * strings are told apart exactly by equality but compared by their first
 * FIELD_STRING_BYTES bytes in ranges. */
#ifndef STORE_FIELDS_H
#define STORE_FIELDS_H

#include "internal.h"

#define FIELD_STRING_BYTES 128
/* Rows that one document may have; a put beyond is refused. */
#define FIELD_MAX_ROWS 1024

typedef enum field_type {
    FIELD_NIL = 0,
    FIELD_BOOL = 1,
    FIELD_NUMBER = 2,
    FIELD_STRING = 3,
    FIELD_OTHER = 4
} field_type;

/* Bytes of a key before the type, and after the value. */
#define FIELD_KEY_HEAD 12
#define FIELD_KEY_TAIL 4
/* Size of a row's value: docno u32, n_segments u32, checksum u32. */
#define FIELD_ROW_BYTES 12

/* The index type of a value; arrays count as FIELD_OTHER here. */
field_type field_type_of(const struct mb_value *v);
/* Begin a key: collection and field name. */
void field_key_head(
    struct kv_key *key, mb_collection_id coll, struct mb_slice name);
/* Append type and value bytes of v, whole: equality. */
void field_key_value(struct kv_key *key, const struct mb_value *v);
/* Append type and the bytes by which ranges compare: those of
 * field_key_value, but of a long string only the common beginning. A row
 * compares equal when its value bytes begin with these. */
void field_key_bound(struct kv_key *key, const struct mb_value *v);

/* Check metadata before a put takes it: one msgpack map (or empty) with at most
 * FIELD_MAX_ROWS index rows. document: its id, for the error's text.
 * Errors: BAD_ARG, TOO_LARGE, NOMEM. Any thread. */
MB_MUST_USE mb_status fields_check(
    const char *document, struct mb_slice meta, struct mb_error *err);

#endif
