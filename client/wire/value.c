/* SPDX-License-Identifier: Apache-2.0
 * client/wire/value.c - look-ups in a parsed message.
 *
 * An argument that is absent has its default; one of the wrong type is an
 * error, and nil is not absent. Texts of errors name the argument and what it
 * may be, so that whoever reads only the reply can mend the request.
 * Threads: any; values never change. */
#include "mb_wire.h"

#include <math.h>

const struct mb_value *
mb_value_get(const struct mb_value *v, const char *key)
{
    if (!v || v->type != MB_TYPE_MAP)
        return NULL;
    struct mb_slice wanted = mb_slice_cstr(key);
    for (size_t i = 0; i < v->map.n; i++) {
        if (mb_slice_equal(v->map.pairs[i].key, wanted))
            return &v->map.pairs[i].value;
    }
    return NULL;
}

static const char *
type_name(mb_type type)
{
    static const char *const names[] = {[MB_TYPE_NIL] = "nil",
        [MB_TYPE_BOOL] = "a bool",
        [MB_TYPE_INT] = "an integer",
        [MB_TYPE_UINT] = "an integer",
        [MB_TYPE_FLOAT] = "a float",
        [MB_TYPE_STR] = "a string",
        [MB_TYPE_BIN] = "a binary",
        [MB_TYPE_ARRAY] = "an array",
        [MB_TYPE_MAP] = "a map"};
    return names[type];
}

static mb_status
missing(const char *key, struct mb_error *err)
{
    return mb_error_set(err, MB_ERR_BAD_ARG, "%s is missing", key);
}

static mb_status
wrong_type(const char *key, const char *wanted, const struct mb_value *v,
    struct mb_error *err)
{
    return mb_error_set(err, MB_ERR_BAD_ARG, "%s must be %s, not %s", key,
        wanted, type_name(v->type));
}

/* Any number as a double; false for other types. */
static bool
to_double(const struct mb_value *v, double *out)
{
    switch (v->type) {
    case MB_TYPE_INT:
        *out = (double)v->i;
        return true;
    case MB_TYPE_UINT:
        *out = (double)v->u;
        return true;
    case MB_TYPE_FLOAT:
        *out = v->f;
        return true;
    default:
        return false;
    }
}

/* Whole numbers from 0; a float counts if it is exactly one (some languages
 * have no other numbers). */
static bool
to_u64(const struct mb_value *v, uint64_t *out)
{
    if (v->type == MB_TYPE_INT && v->i >= 0) {
        *out = (uint64_t)v->i;
        return true;
    }
    if (v->type == MB_TYPE_UINT) {
        *out = v->u;
        return true;
    }
    if (v->type == MB_TYPE_FLOAT && v->f >= 0 && v->f <= 0x1p53 &&
        floor(v->f) == v->f) {
        *out = (uint64_t)v->f;
        return true;
    }
    return false;
}

mb_status
mb_arg_str(const struct mb_value *map, const char *key, bool required,
    struct mb_slice *out, struct mb_error *err)
{
    const struct mb_value *v = mb_value_get(map, key);
    if (!v && required)
        return missing(key, err);
    if (v && v->type != MB_TYPE_STR)
        return wrong_type(key, "a string", v, err);
    *out = v ? v->s : mb_slice_of(NULL, 0);
    return MB_OK;
}

mb_status
mb_arg_u64(const struct mb_value *map, const char *key, uint64_t def,
    uint64_t min, uint64_t max, uint64_t *out, struct mb_error *err)
{
    const struct mb_value *v = mb_value_get(map, key);
    uint64_t n = def;
    if (v && (!to_u64(v, &n) || n < min || n > max)) {
        if (v->type == MB_TYPE_INT || v->type == MB_TYPE_UINT ||
            v->type == MB_TYPE_FLOAT)
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "%s must be an integer from %llu to %llu", key,
                (unsigned long long)min, (unsigned long long)max);
        return wrong_type(key, "an integer", v, err);
    }
    *out = n;
    return MB_OK;
}

mb_status
mb_arg_double(const struct mb_value *map, const char *key, double def,
    double min, double max, double *out, struct mb_error *err)
{
    const struct mb_value *v = mb_value_get(map, key);
    double n = def;
    if (v && !to_double(v, &n))
        return wrong_type(key, "a number", v, err);
    // Written so that NaN is out of range.
    if (v && !(n >= min && n <= max))
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "%s must be a number from %g to %g", key, min, max);
    *out = n;
    return MB_OK;
}

mb_status
mb_arg_bool(const struct mb_value *map, const char *key, bool def, bool *out,
    struct mb_error *err)
{
    const struct mb_value *v = mb_value_get(map, key);
    if (v && v->type != MB_TYPE_BOOL)
        return wrong_type(key, "a bool", v, err);
    *out = v ? v->b : def;
    return MB_OK;
}

static mb_status
arg_container(const struct mb_value *map, const char *key, mb_type type,
    bool required, const struct mb_value **out, struct mb_error *err)
{
    const struct mb_value *v = mb_value_get(map, key);
    if (!v && required)
        return missing(key, err);
    if (v && v->type != type)
        return wrong_type(key, type_name(type), v, err);
    *out = v;
    return MB_OK;
}

mb_status
mb_arg_array(const struct mb_value *map, const char *key, bool required,
    const struct mb_value **out, struct mb_error *err)
{
    return arg_container(map, key, MB_TYPE_ARRAY, required, out, err);
}

mb_status
mb_arg_map(const struct mb_value *map, const char *key, bool required,
    const struct mb_value **out, struct mb_error *err)
{
    return arg_container(map, key, MB_TYPE_MAP, required, out, err);
}

/* ---- vectors ---- */

/* Element i of a vector's value; false if it is no number. */
static bool
vector_element(const struct mb_value *v, size_t i, float *out)
{
    if (v->type == MB_TYPE_BIN) {
        *out = mb_get_lef32(v->s.data + 4 * i);
        return true;
    }
    double n;
    if (!to_double(&v->array.items[i], &n))
        return false;
    // A double beyond the range of float becomes infinite and is refused.
    *out = (float)n;
    return true;
}

static mb_status
vector_dim(const struct mb_value *v, const char *what, size_t dim, size_t *n,
    struct mb_error *err)
{
    if (v->type == MB_TYPE_BIN && v->s.size % 4 == 0)
        *n = v->s.size / 4;
    else if (v->type == MB_TYPE_BIN)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "%s has %zu bytes, no multiple of 4", what, v->s.size);
    else if (v->type == MB_TYPE_ARRAY)
        *n = v->array.n;
    else
        return wrong_type(
            what, "a binary of f32 or an array of numbers", v, err);
    if (*n == 0)
        return mb_error_set(err, MB_ERR_BAD_ARG, "%s is empty", what);
    if (dim != 0 && *n != dim)
        return mb_error_set(err, MB_ERR_MISMATCH,
            "%s has %zu dimensions, wanted are %zu", what, *n, dim);
    return MB_OK;
}

mb_status
mb_value_vector(const struct mb_value *v, const char *what, size_t dim,
    struct mb_arena *arena, const float **out, size_t *out_dim,
    struct mb_error *err)
{
    if (!v)
        return missing(what, err);
    size_t n = 0;
    mb_status st = vector_dim(v, what, dim, &n, err);
    if (st != MB_OK)
        return st;
    size_t bytes;
    float *vector = mb_size_mul(n, sizeof *vector, &bytes)
                        ? mb_arena_alloc(arena, bytes)
                        : NULL;
    if (!vector)
        return mb_error_set(err, MB_ERR_NOMEM, "%s of %zu dimensions", what, n);
    for (size_t i = 0; i < n; i++) {
        if (!vector_element(v, i, &vector[i]))
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "%s: element %zu is %s, not a number", what, i,
                type_name(v->array.items[i].type));
        if (!isfinite(vector[i]))
            return mb_error_set(
                err, MB_ERR_BAD_ARG, "%s: element %zu is not finite", what, i);
    }
    *out = vector;
    if (out_dim)
        *out_dim = n;
    return MB_OK;
}
