/* SPDX-License-Identifier: Apache-2.0
 * store/filter.c - filters on metadata: from a map to a set of segments.
 *
 * A filter is a map like those of other vector stores:
 *
 *   {"lang": "en", "year": {"$gte": 1990, "$lt": 2000}}
 *   {"$or": [{"tag": {"$in": ["a", "b"]}}, {"$not": {"draft": true}}]}
 *
 * Pairs of one map must all hold; an empty map matches everything. The rules
 * where other systems leave room:
 * - Types never convert: "1" is not 1, and true is not 1. Integers and floats
 *   are one kind and compare exactly.
 * - A list in metadata matches when one of its elements does. $ne, $nin, $not
 *   and {"$exists": false} are complements: they also match documents that
 *   lack the field. null is a value that can be asked for.
 * - The bounds in one map ($gt, $gte, $lt, $lte) are one range, and one and the
 *   same value must lie in it. Strings compare by bytes, long ones by their
 *   first FIELD_STRING_BYTES bytes.
 * - Whatever cannot be understood is refused by name, never ignored.
 *
 * Each condition becomes a run of rows of the metadata index (fields.h) or a
 * few, its segments become bits, and the rest is word-wise and, or, and-not.
 * Complements are taken against the live segments, so a set never holds a
 * number that is free or deleted. Memory is three sets a level of nesting.
 * Threads: any; all state is in the caller's arena. */
#include "fields.h"

#include <string.h>

#define FILTER_MAX_DEPTH      16
#define FILTER_MAX_CONDITIONS 1024
#define FILTER_MAX_VALUES     65536

/* Sets kept for one level of nesting. */
enum scratch_use {
    SCRATCH_PAIR,      /* the pairs of a map after the first */
    SCRATCH_CLAUSE,    /* the clauses of $and, $or after the first */
    SCRATCH_CONDITION, /* the operators on one field after the first */
    SCRATCH_USES
};

struct filter {
    struct kv_txn *txn;
    const struct mb_collection *coll;
    struct kv_cursor *cursor; /* on KV_FIELDS */
    struct mb_arena *arena;
    struct mb_error *err;
    size_t n_bits;
    size_t n_words;
    uint64_t *live; /* made when the first complement is taken */
    uint64_t *scratch[FILTER_MAX_DEPTH + 1][SCRATCH_USES];
    size_t n_conditions;
    size_t n_values;
};

/* ---- sets ---- */

static mb_status
set_new(struct filter *f, uint64_t **out)
{
    *out = mb_arena_calloc(f->arena, f->n_words, sizeof **out);
    if (*out == NULL)
        return mb_error_set(f->err, MB_ERR_NOMEM, "filter: out of memory");
    return MB_OK;
}

static mb_status
scratch_get(
    struct filter *f, unsigned depth, enum scratch_use use, uint64_t **out)
{
    uint64_t **slot = &f->scratch[depth][use];

    if (*slot == NULL) {
        mb_status st = set_new(f, slot);

        if (st != MB_OK)
            return st;
    }
    *out = *slot;
    return MB_OK;
}

static void
set_clear(const struct filter *f, uint64_t *set)
{
    memset(set, 0, f->n_words * sizeof *set);
}

static void
set_and(const struct filter *f, uint64_t *set, const uint64_t *other)
{
    for (size_t i = 0; i < f->n_words; i++)
        set[i] &= other[i];
}

static void
set_or(const struct filter *f, uint64_t *set, const uint64_t *other)
{
    for (size_t i = 0; i < f->n_words; i++)
        set[i] |= other[i];
}

static mb_status
live_get(struct filter *f, const uint64_t **out)
{
    if (f->live == NULL) {
        mb_status st = set_new(f, &f->live);

        if (st == MB_OK)
            st = lex_live(f->txn, f->coll->id, f->live, f->n_bits, f->err);
        if (st != MB_OK) {
            f->live = NULL;
            return st;
        }
    }
    *out = f->live;
    return MB_OK;
}

/* The live segments that are not in set. */
static mb_status
set_complement(struct filter *f, uint64_t *set)
{
    const uint64_t *live;
    mb_status st = live_get(f, &live);

    if (st != MB_OK)
        return st;
    for (size_t i = 0; i < f->n_words; i++)
        set[i] = live[i] & ~set[i];
    return MB_OK;
}

/* ---- runs of rows ---- */

/* Set the bits of one row's segments. */
static mb_status
mark_row(
    struct filter *f, struct mb_slice key, struct mb_slice row, uint64_t *set)
{
    uint32_t first, n;

    if (key.size < FIELD_KEY_HEAD + 1 + FIELD_KEY_TAIL ||
        row.size != FIELD_ROW_BYTES)
        goto damaged;
    first = mb_get_be32(key.data + key.size - FIELD_KEY_TAIL);
    n = mb_get_le32(row.data + 4);
    if (first > f->n_bits || n > f->n_bits - first)
        goto damaged;
    if (n == 1) {
        set[first >> 6] |= (uint64_t)1 << (first & 63);
        return MB_OK;
    }
    for (uint32_t i = first; i < first + n; i++)
        set[i >> 6] |= (uint64_t)1 << (i & 63);
    return MB_OK;

damaged:
    return mb_error_set(f->err, MB_ERR_CORRUPT,
        "metadata index of collection %s: damaged row", f->coll->name);
}

static mb_status
rows_failed(struct filter *f, mb_status st)
{
    if (st == MB_ERR_NOT_FOUND)
        return MB_OK; // the end of the table ends every run
    return mb_error_set(
        f->err, st, "read the metadata index of collection %s", f->coll->name);
}

/* Add the segments of all rows whose key begins with prefix. */
static mb_status
add_rows(struct filter *f, const struct kv_key *prefix, uint64_t *set)
{
    struct mb_slice want = kv_key_slice(prefix);
    struct mb_slice key, row;
    mb_status st = kv_cursor_seek(f->cursor, want, &key, &row);

    while (st == MB_OK && kv_has_prefix(key, want)) {
        st = mark_row(f, key, row, set);
        if (st != MB_OK)
            return st;
        st = kv_cursor_next(f->cursor, &key, &row);
    }
    return st == MB_OK ? MB_OK : rows_failed(f, st);
}

static mb_status
add_equal(struct filter *f, struct mb_slice field, const struct mb_value *v,
    uint64_t *set)
{
    struct kv_key key;

    field_key_head(&key, f->coll->id, field);
    field_key_value(&key, v);
    return add_rows(f, &key, set);
}

struct range {
    const struct mb_value *low; /* NULL: from the first of the type */
    const struct mb_value *high;
    bool low_open;
    bool high_open;
};

/* Where a key lies against a bound: 0 if it begins with the bound's bytes. */
static int
compare_bound(struct mb_slice key, const struct kv_key *bound)
{
    size_t n = key.size < bound->size ? key.size : bound->size;
    int order = memcmp(key.data, bound->bytes, n);

    return order != 0 || key.size >= bound->size ? order : -1;
}

static mb_status
add_range(struct filter *f, struct mb_slice field, const struct range *r,
    uint64_t *set)
{
    struct kv_key type, low, high;
    struct mb_slice key, row;
    mb_status st;

    field_key_head(&type, f->coll->id, field);
    kv_key_u8(&type, (uint8_t)field_type_of(r->low ? r->low : r->high));
    low = type;
    if (r->low != NULL) {
        field_key_head(&low, f->coll->id, field);
        field_key_bound(&low, r->low);
    }
    if (r->high != NULL) {
        field_key_head(&high, f->coll->id, field);
        field_key_bound(&high, r->high);
    }
    st = kv_cursor_seek(f->cursor, kv_key_slice(&low), &key, &row);
    while (st == MB_OK && kv_has_prefix(key, kv_key_slice(&type))) {
        int above = r->high == NULL ? -1 : compare_bound(key, &high);

        if (above > 0 || (above == 0 && r->high_open))
            break;
        if (!r->low_open || compare_bound(key, &low) != 0) {
            st = mark_row(f, key, row, set);
            if (st != MB_OK)
                return st;
        }
        st = kv_cursor_next(f->cursor, &key, &row);
    }
    return st == MB_OK ? MB_OK : rows_failed(f, st);
}

/* ---- conditions on one field ---- */

typedef enum filter_op {
    OP_EQ,
    OP_NE,
    OP_GT,
    OP_GTE,
    OP_LT,
    OP_LTE,
    OP_IN,
    OP_NIN,
    OP_EXISTS,
    OP_UNKNOWN
} filter_op;

static filter_op
op_find(struct mb_slice name)
{
    static const char *const names[OP_UNKNOWN] = {
        "$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists"};

    for (int i = 0; i < OP_UNKNOWN; i++) {
        if (mb_slice_equal(name, mb_slice_cstr(names[i])))
            return (filter_op)i;
    }
    return OP_UNKNOWN;
}

/* How much of a name goes into an error text. */
static int
name_width(struct mb_slice name)
{
    return name.size < 64 ? (int)name.size : 64;
}

/* BAD_ARG: `filter: field "year": what`. */
static mb_status
refuse_field(struct filter *f, struct mb_slice field, const char *what)
{
    return mb_error_set(f->err, MB_ERR_BAD_ARG, "filter: field \"%.*s\": %s",
        name_width(field), (const char *)field.data, what);
}

static mb_status
count_values(struct filter *f, size_t n)
{
    f->n_values += n;
    if (f->n_values <= FILTER_MAX_VALUES)
        return MB_OK;
    return mb_error_set(f->err, MB_ERR_BAD_ARG,
        "filter: more than %d values in lists", FILTER_MAX_VALUES);
}

/* A value that a row can equal. */
static mb_status
check_scalar(struct filter *f, struct mb_slice field, const struct mb_value *v)
{
    if (field_type_of(v) != FIELD_OTHER)
        return MB_OK;
    return refuse_field(
        f, field, "compared with what is no string, number, bool or null");
}

static mb_status
eval_in(struct filter *f, struct mb_slice field, const struct mb_value *list,
    uint64_t *set)
{
    mb_status st;

    if (list->type != MB_TYPE_ARRAY)
        return refuse_field(f, field, "$in and $nin take a list");
    st = count_values(f, list->array.n);
    for (size_t i = 0; st == MB_OK && i < list->array.n; i++) {
        const struct mb_value *v = &list->array.items[i];

        st = check_scalar(f, field, v);
        if (st == MB_OK)
            st = add_equal(f, field, v, set);
    }
    return st;
}

static mb_status
eval_exists(struct filter *f, struct mb_slice field, const struct mb_value *v,
    uint64_t *set)
{
    struct kv_key key;
    mb_status st;

    if (v->type != MB_TYPE_BOOL)
        return refuse_field(f, field, "$exists takes true or false");
    field_key_head(&key, f->coll->id, field);
    st = add_rows(f, &key, set);
    if (st == MB_OK && !v->b)
        st = set_complement(f, set);
    return st;
}

/* One operator that is not a bound; set is empty on entry. */
static mb_status
eval_op(struct filter *f, struct mb_slice field, filter_op op,
    const struct mb_value *v, uint64_t *set)
{
    mb_status st;

    if (op == OP_EXISTS)
        return eval_exists(f, field, v, set);
    if (op == OP_IN || op == OP_NIN) {
        st = eval_in(f, field, v, set);
    } else {
        st = check_scalar(f, field, v);
        if (st == MB_OK)
            st = add_equal(f, field, v, set);
    }
    if (st == MB_OK && (op == OP_NE || op == OP_NIN))
        st = set_complement(f, set);
    return st;
}

/* Put one bound into the range. */
static mb_status
range_bound(struct filter *f, struct mb_slice field, filter_op op,
    const struct mb_value *v, struct range *r)
{
    bool low = op == OP_GT || op == OP_GTE;
    const struct mb_value **slot = low ? &r->low : &r->high;
    const struct mb_value *other = low ? r->high : r->low;
    field_type type = field_type_of(v);

    if (type != FIELD_NUMBER && type != FIELD_STRING)
        return refuse_field(f, field, "ranges take numbers or strings");
    if (*slot != NULL)
        return refuse_field(f, field, "two bounds on the same side");
    if (other != NULL && field_type_of(other) != type)
        return refuse_field(f, field, "bounds of two types");
    *slot = v;
    *(low ? &r->low_open : &r->high_open) = op == OP_GT || op == OP_LT;
    return MB_OK;
}

/* {"$gte": 1, "$ne": 5}: every operator must hold. set is empty on entry. */
static mb_status
eval_operators(struct filter *f, struct mb_slice field,
    const struct mb_value *map, unsigned depth, uint64_t *set)
{
    struct range range = {0};
    uint64_t *next = set;
    mb_status st = MB_OK;

    if (map->map.n == 0)
        return refuse_field(f, field, "empty condition");
    for (size_t i = 0; st == MB_OK && i < map->map.n; i++) {
        const struct mb_pair *pair = &map->map.pairs[i];
        filter_op op = op_find(pair->key);

        if (op == OP_UNKNOWN) {
            return mb_error_set(f->err, MB_ERR_BAD_ARG,
                "filter: field \"%.*s\": unknown operator \"%.*s\"",
                name_width(field), (const char *)field.data,
                name_width(pair->key), (const char *)pair->key.data);
        }
        if (op >= OP_GT && op <= OP_LTE) {
            st = range_bound(f, field, op, &pair->value, &range);
            continue;
        }
        set_clear(f, next);
        st = eval_op(f, field, op, &pair->value, next);
        if (next != set)
            set_and(f, set, next);
        if (st == MB_OK)
            st = scratch_get(f, depth, SCRATCH_CONDITION, &next);
    }
    if (st == MB_OK && (range.low != NULL || range.high != NULL)) {
        set_clear(f, next);
        st = add_range(f, field, &range, next);
        if (next != set)
            set_and(f, set, next);
    }
    return st;
}

static mb_status
eval_field(struct filter *f, struct mb_slice field, const struct mb_value *v,
    unsigned depth, uint64_t *set)
{
    mb_status st;

    if (++f->n_conditions > FILTER_MAX_CONDITIONS) {
        return mb_error_set(f->err, MB_ERR_BAD_ARG,
            "filter: more than %d conditions", FILTER_MAX_CONDITIONS);
    }
    if (v->type == MB_TYPE_MAP)
        return eval_operators(f, field, v, depth, set);
    if (v->type == MB_TYPE_ARRAY)
        return refuse_field(f, field, "a list needs $in or $nin");
    st = check_scalar(f, field, v);
    return st != MB_OK ? st : add_equal(f, field, v, set);
}

/* ---- maps and clauses ---- */

static mb_status eval_map(struct filter *f, const struct mb_value *map,
    unsigned depth, uint64_t *set);

/* $and and $or: a list of maps. */
static mb_status
eval_clauses(struct filter *f, const struct mb_pair *pair, bool all,
    unsigned depth, uint64_t *set)
{
    const struct mb_value *list = &pair->value;
    uint64_t *next = set;
    mb_status st = MB_OK;

    if (list->type != MB_TYPE_ARRAY || list->array.n == 0) {
        return mb_error_set(f->err, MB_ERR_BAD_ARG,
            "filter: %s takes a list of maps, not an empty one",
            all ? "$and" : "$or");
    }
    for (size_t i = 0; st == MB_OK && i < list->array.n; i++) {
        st = eval_map(f, &list->array.items[i], depth + 1, next);
        if (next != set && all) {
            set_and(f, set, next);
        } else if (next != set) {
            set_or(f, set, next);
        }
        if (st == MB_OK)
            st = scratch_get(f, depth, SCRATCH_CLAUSE, &next);
    }
    return st;
}

/* One pair of a map; set is empty on entry. */
static mb_status
eval_pair(
    struct filter *f, const struct mb_pair *pair, unsigned depth, uint64_t *set)
{
    mb_status st;

    if (pair->key.size == 0 || pair->key.data[0] != '$')
        return eval_field(f, pair->key, &pair->value, depth, set);
    if (mb_slice_equal(pair->key, mb_slice_cstr("$and")))
        return eval_clauses(f, pair, true, depth, set);
    if (mb_slice_equal(pair->key, mb_slice_cstr("$or")))
        return eval_clauses(f, pair, false, depth, set);
    if (mb_slice_equal(pair->key, mb_slice_cstr("$not"))) {
        st = eval_map(f, &pair->value, depth + 1, set);
        return st != MB_OK ? st : set_complement(f, set);
    }
    return mb_error_set(f->err, MB_ERR_BAD_ARG,
        "filter: unknown operator \"%.*s\"", name_width(pair->key),
        (const char *)pair->key.data);
}

/* Segments for which every pair holds; whatever set held is overwritten. */
static mb_status
eval_map(
    struct filter *f, const struct mb_value *map, unsigned depth, uint64_t *set)
{
    uint64_t *next = set;
    mb_status st = MB_OK;

    if (map->type != MB_TYPE_MAP) {
        return mb_error_set(f->err, MB_ERR_BAD_ARG,
            "filter: a map is wanted where there is none");
    }
    if (depth > FILTER_MAX_DEPTH) {
        return mb_error_set(f->err, MB_ERR_BAD_ARG,
            "filter: nested deeper than %d", FILTER_MAX_DEPTH);
    }
    set_clear(f, set);
    if (map->map.n == 0)
        return set_complement(f, set); // of nothing: all that live
    for (size_t i = 0; st == MB_OK && i < map->map.n; i++) {
        set_clear(f, next);
        st = eval_pair(f, &map->map.pairs[i], depth, next);
        if (next != set)
            set_and(f, set, next);
        if (st == MB_OK)
            st = scratch_get(f, depth, SCRATCH_PAIR, &next);
    }
    return st;
}

mb_status
filter_segments(struct kv_txn *txn, const struct mb_collection *coll,
    const struct mb_value *filter, struct mb_arena *arena, struct bitset *out,
    struct mb_error *err)
{
    struct filter f = {.txn = txn,
        .coll = coll,
        .arena = arena,
        .err = err,
        .n_bits = coll->next_segno,
        // One word at least, so that an empty collection has a set too.
        .n_words = (size_t)coll->next_segno / 64 + 1};
    struct bitset result = {.n_bits = f.n_bits};
    mb_status st = kv_cursor_open(txn, KV_FIELDS, &f.cursor);

    if (st != MB_OK)
        return mb_error_set(err, st, "open a cursor on fields");
    st = set_new(&f, &result.words);
    if (st == MB_OK)
        st = eval_map(&f, filter, 0, result.words);
    kv_cursor_close(f.cursor);
    if (st != MB_OK)
        return st;
    for (size_t i = 0; i < f.n_words; i++)
        result.n_set += (size_t)__builtin_popcountll(result.words[i]);
    *out = result;
    return MB_OK;
}
