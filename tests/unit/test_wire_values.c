/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_wire_values.c - arguments, vectors, and writing. */
#include "mb_test.h"

#include <math.h>

#include "mb_wire.h"

/* ---- a message to look into ---- */

struct fixture {
    struct mb_arena *arena;
    struct mb_buffer buf;
    struct mb_writer w;
    const struct mb_value *map;
};

static void
fixture_begin(struct fixture *f)
{
    f->arena = mb_arena_new((size_t)1 << 20);
    mb_buffer_init(&f->buf, (size_t)1 << 20);
    mb_writer_init(&f->w, &f->buf);
}

static void
fixture_parse(struct fixture *f)
{
    struct mb_error err;
    assert_int_equal(MB_OK, f->w.status);
    assert_status(MB_OK,
        mb_wire_parse(
            mb_buffer_slice(&f->buf), NULL, false, f->arena, &f->map, &err),
        &err);
}

static void
fixture_end(struct fixture *f)
{
    mb_arena_free(f->arena);
    mb_buffer_fini(&f->buf);
}

static void
fixture_of_all_types(struct fixture *f)
{
    fixture_begin(f);
    mb_write_map(&f->w, 10);
    mb_write_kv_cstr(&f->w, "str", "text");
    mb_write_kv_uint(&f->w, "n", 7);
    mb_write_cstr(&f->w, "negative");
    mb_write_int(&f->w, -7);
    mb_write_kv_uint(&f->w, "huge", UINT64_MAX);
    mb_write_kv_f64(&f->w, "half", 0.5);
    mb_write_kv_f64(&f->w, "seven", 7.0);
    mb_write_kv_bool(&f->w, "yes", true);
    mb_write_cstr(&f->w, "nil");
    mb_write_nil(&f->w);
    mb_write_cstr(&f->w, "array");
    mb_write_array(&f->w, 0);
    mb_write_cstr(&f->w, "map");
    mb_write_map(&f->w, 0);
    fixture_parse(f);
}

/* ---- arguments ---- */

static void
test_arg_when_absent_then_default(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    fixture_of_all_types(&f);
    struct mb_slice s = mb_slice_cstr("before");
    uint64_t n = 0;
    double d = 0;
    bool b = false;
    const struct mb_value *v = f.map;
    assert_ok(mb_arg_str(f.map, "none", false, &s, NULL));
    assert_int_equal(0, s.size);
    assert_ok(mb_arg_u64(f.map, "none", 5, 1, 10, &n, NULL));
    assert_int_equal(5, n);
    assert_ok(mb_arg_double(f.map, "none", 0.25, 0, 1, &d, NULL));
    assert_true(d == 0.25);
    assert_ok(mb_arg_bool(f.map, "none", true, &b, NULL));
    assert_true(b);
    assert_ok(mb_arg_array(f.map, "none", false, &v, NULL));
    assert_null(v);
    v = f.map;
    assert_ok(mb_arg_map(f.map, "none", false, &v, NULL));
    assert_null(v);
    // No map at all is a map without keys.
    assert_ok(mb_arg_u64(NULL, "none", 5, 1, 10, &n, NULL));
    fixture_end(&f);
}

static void
test_arg_when_required_and_absent_then_named(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    fixture_of_all_types(&f);
    struct mb_slice s = mb_slice_cstr("before");
    const struct mb_value *v = f.map;
    struct mb_error err;
    assert_status(
        MB_ERR_BAD_ARG, mb_arg_str(f.map, "none", true, &s, &err), &err);
    assert_error_has(err, "none is missing");
    assert_slice_str("before", s);
    assert_status(
        MB_ERR_BAD_ARG, mb_arg_array(f.map, "none", true, &v, &err), &err);
    assert_status(
        MB_ERR_BAD_ARG, mb_arg_map(f.map, "none", true, &v, &err), &err);
    assert_ptr_equal(f.map, v);
    fixture_end(&f);
}

static void
test_arg_when_of_its_type_then_read(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    fixture_of_all_types(&f);
    struct mb_slice s;
    uint64_t n;
    double d;
    bool b;
    const struct mb_value *v;
    assert_ok(mb_arg_str(f.map, "str", true, &s, NULL));
    assert_slice_str("text", s);
    assert_ok(mb_arg_u64(f.map, "n", 0, 0, 10, &n, NULL));
    assert_int_equal(7, n);
    assert_ok(mb_arg_u64(f.map, "huge", 0, 0, UINT64_MAX, &n, NULL));
    assert_true(n == UINT64_MAX);
    // A language without integers sends 7.0.
    assert_ok(mb_arg_u64(f.map, "seven", 0, 0, 10, &n, NULL));
    assert_int_equal(7, n);
    assert_ok(mb_arg_double(f.map, "n", 0, 0, 10, &d, NULL));
    assert_true(d == 7.0);
    assert_ok(mb_arg_double(f.map, "half", 0, 0, 10, &d, NULL));
    assert_true(d == 0.5);
    assert_ok(mb_arg_bool(f.map, "yes", false, &b, NULL));
    assert_true(b);
    assert_ok(mb_arg_array(f.map, "array", true, &v, NULL));
    assert_ok(mb_arg_map(f.map, "map", true, &v, NULL));
    fixture_end(&f);
}

static void
test_arg_when_of_another_type_then_both_named(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    fixture_of_all_types(&f);
    struct mb_slice s;
    uint64_t n = 99;
    double d;
    bool b;
    const struct mb_value *v;
    struct mb_error err;
    assert_status(MB_ERR_BAD_ARG, mb_arg_str(f.map, "n", true, &s, &err), &err);
    assert_error_has(err, "n must be a string, not an integer");
    assert_status(
        MB_ERR_BAD_ARG, mb_arg_u64(f.map, "str", 0, 0, 10, &n, &err), &err);
    assert_error_has(err, "str must be an integer, not a string");
    assert_status(
        MB_ERR_BAD_ARG, mb_arg_double(f.map, "nil", 0, 0, 10, &d, &err), &err);
    assert_error_has(err, "nil must be a number, not nil");
    assert_status(
        MB_ERR_BAD_ARG, mb_arg_bool(f.map, "n", true, &b, &err), &err);
    assert_error_has(err, "n must be a bool");
    assert_status(
        MB_ERR_BAD_ARG, mb_arg_array(f.map, "map", true, &v, &err), &err);
    assert_error_has(err, "map must be an array, not a map");
    assert_status(
        MB_ERR_BAD_ARG, mb_arg_map(f.map, "half", true, &v, &err), &err);
    assert_error_has(err, "half must be a map, not a float");
    assert_int_equal(99, n);
    fixture_end(&f);
}

static void
test_arg_when_out_of_range_then_range_named(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    fixture_of_all_types(&f);
    uint64_t n;
    double d;
    struct mb_error err;
    assert_status(
        MB_ERR_BAD_ARG, mb_arg_u64(f.map, "n", 0, 8, 10, &n, &err), &err);
    assert_error_has(err, "n must be an integer from 8 to 10");
    assert_status(
        MB_ERR_BAD_ARG, mb_arg_u64(f.map, "n", 0, 1, 6, &n, &err), &err);
    assert_status(MB_ERR_BAD_ARG,
        mb_arg_u64(f.map, "negative", 0, 0, 10, &n, &err), &err);
    assert_status(
        MB_ERR_BAD_ARG, mb_arg_u64(f.map, "half", 0, 0, 10, &n, &err), &err);
    assert_status(MB_ERR_BAD_ARG,
        mb_arg_double(f.map, "half", 0, 0.75, 1, &d, &err), &err);
    assert_error_has(err, "half must be a number from 0.75 to 1");
    fixture_end(&f);
}

static void
test_arg_double_when_nan_then_out_of_range(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    double d;
    fixture_begin(&f);
    mb_write_map(&f.w, 1);
    mb_write_kv_f64(&f.w, "x", (double)NAN);
    fixture_parse(&f);
    assert_status(MB_ERR_BAD_ARG,
        mb_arg_double(f.map, "x", 0, -INFINITY, INFINITY, &d, NULL), NULL);
    fixture_end(&f);
}

static void
test_get_from_what_is_no_map_gives_null(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    fixture_of_all_types(&f);
    assert_non_null(mb_value_get(f.map, "nil"));
    assert_null(mb_value_get(f.map, "none"));
    assert_null(mb_value_get(mb_value_get(f.map, "str"), "x"));
    assert_null(mb_value_get(NULL, "x"));
    fixture_end(&f);
}

/* ---- vectors ---- */

static void
write_bin_vector(struct mb_writer *w, const float *x, size_t n)
{
    uint8_t bytes[64];
    for (size_t i = 0; i < n; i++)
        mb_put_lef32(bytes + 4 * i, x[i]);
    mb_write_bin(w, mb_slice_of(bytes, 4 * n));
}

static void
test_vector_from_binary_and_from_array(void **state)
{
    MB_TEST_UNUSED(state);
    const float x[] = {0.5f, -1.0f, 2.0f};
    struct fixture f;
    fixture_begin(&f);
    mb_write_array(&f.w, 2);
    write_bin_vector(&f.w, x, 3);
    mb_write_array(&f.w, 3);
    mb_write_f64(&f.w, 0.5);
    mb_write_int(&f.w, -1);
    mb_write_f32(&f.w, 2.0f);
    fixture_parse(&f);
    for (size_t i = 0; i < 2; i++) {
        const float *out = NULL;
        size_t dim = 0;
        assert_ok(mb_value_vector(&f.map->array.items[i], "vector",
            i == 0 ? 3 : 0, f.arena, &out, &dim, NULL));
        assert_int_equal(3, dim);
        assert_memory_equal(x, out, sizeof x);
    }
    fixture_end(&f);
}

static void
check_bad_vector(
    struct fixture *f, size_t dim, mb_status want, const char *part)
{
    const float *out = NULL;
    struct mb_error err = {0};
    fixture_parse(f);
    assert_status(want,
        mb_value_vector(f->map, "vector", dim, f->arena, &out, NULL, &err),
        &err);
    assert_error_has(err, part);
    assert_null(out);
    fixture_end(f);
}

static void
test_vector_when_bad_then_refused_by_name(void **state)
{
    MB_TEST_UNUSED(state);
    const float nan_inside[] = {0.5f, (float)NAN};
    const float inf_inside[] = {0.5f, (float)-INFINITY};
    struct fixture f;
    fixture_begin(&f);
    write_bin_vector(&f.w, nan_inside, 2);
    check_bad_vector(&f, 0, MB_ERR_BAD_ARG, "element 1 is not finite");
    fixture_begin(&f);
    write_bin_vector(&f.w, inf_inside, 2);
    check_bad_vector(&f, 0, MB_ERR_BAD_ARG, "element 1 is not finite");
    fixture_begin(&f);
    mb_write_array(&f.w, 1);
    mb_write_f64(&f.w, 1e300); // beyond the range of float
    check_bad_vector(&f, 0, MB_ERR_BAD_ARG, "not finite");
    fixture_begin(&f);
    mb_write_array(&f.w, 1);
    mb_write_cstr(&f.w, "1");
    check_bad_vector(&f, 0, MB_ERR_BAD_ARG, "element 0 is a string");
    fixture_begin(&f);
    write_bin_vector(&f.w, inf_inside, 2);
    check_bad_vector(&f, 3, MB_ERR_MISMATCH, "2 dimensions, wanted are 3");
    fixture_begin(&f);
    mb_write_bin(&f.w, mb_slice_cstr("12345"));
    check_bad_vector(&f, 0, MB_ERR_BAD_ARG, "5 bytes");
    fixture_begin(&f);
    mb_write_array(&f.w, 0);
    check_bad_vector(&f, 0, MB_ERR_BAD_ARG, "empty");
    fixture_begin(&f);
    mb_write_cstr(&f.w, "text");
    check_bad_vector(&f, 0, MB_ERR_BAD_ARG, "not a string");
}

static void
test_vector_when_absent_or_no_memory_then_error(void **state)
{
    MB_TEST_UNUSED(state);
    const float x[] = {1, 2, 3, 4, 5, 6, 7, 8};
    const float *out = NULL;
    struct fixture f;
    fixture_begin(&f);
    write_bin_vector(&f.w, x, 8);
    fixture_parse(&f);
    struct mb_arena *tiny = mb_arena_new(16);
    assert_status(MB_ERR_BAD_ARG,
        mb_value_vector(NULL, "vector", 0, tiny, &out, NULL, NULL), NULL);
    assert_status(MB_ERR_NOMEM,
        mb_value_vector(f.map, "vector", 0, tiny, &out, NULL, NULL), NULL);
    mb_arena_free(tiny);
    fixture_end(&f);
}

/* ---- writing ---- */

static void
test_writer_uses_the_shortest_forms(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_buffer buf;
    struct mb_writer w;
    mb_buffer_init(&buf, 1000);
    mb_writer_init(&w, &buf);
    mb_write_uint(&w, 7);
    mb_write_int(&w, -1);
    mb_write_uint(&w, 200);
    mb_write_cstr(&w, "a");
    mb_write_bin(&w, mb_slice_cstr("b"));
    mb_write_nil(&w);
    mb_write_bool(&w, false);
    mb_write_f32(&w, 1.0f);
    mb_write_raw(&w, mb_slice_cstr("\x93"));
    mb_write_array(&w, 3);
    mb_write_map(&w, 2);
    assert_int_equal(MB_OK, w.status);
    static const uint8_t want[] = {0x07, 0xff, 0xcc, 200, 0xa1, 'a', 0xc4, 1,
        'b', 0xc0, 0xc2, 0xca, 0x3f, 0x80, 0, 0, 0x93, 0x93, 0x82};
    assert_int_equal(sizeof want, buf.size);
    assert_memory_equal(want, buf.data, sizeof want);
    mb_buffer_fini(&buf);
}

static void
test_writer_when_full_then_failure_sticks(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_buffer buf;
    struct mb_writer w;
    mb_buffer_init(&buf, 4);
    mb_writer_init(&w, &buf);
    mb_write_uint(&w, 1);
    mb_write_cstr(&w, "too long");
    size_t size = buf.size;
    mb_write_uint(&w, 2); // would fit
    assert_int_equal(MB_ERR_TOO_LARGE, w.status);
    assert_int_equal(size, buf.size);
    mb_buffer_fini(&buf);
}

static void
test_writer_when_memory_is_short_then_nomem(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_buffer buf;
    struct mb_writer w;
    mb_buffer_init(&buf, 1000);
    mb_writer_init(&w, &buf);
    mb_alloc_fail_after(1);
    mb_write_uint(&w, 1);
    mb_alloc_fail_after(0);
    assert_int_equal(MB_ERR_NOMEM, w.status);
    mb_buffer_fini(&buf);
}

static void
test_writer_when_a_length_passes_32_bits_then_too_large(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_buffer buf;
    struct mb_writer w;
    mb_buffer_init(&buf, 1000);
    mb_writer_init(&w, &buf);
    mb_write_array(&w, (size_t)UINT32_MAX + 1);
    assert_int_equal(MB_ERR_TOO_LARGE, w.status);
    assert_int_equal(0, buf.size);
    mb_writer_init(&w, &buf);
    // The size alone decides; the bytes are never looked at.
    mb_write_str(&w, mb_slice_of("", (size_t)UINT32_MAX + 1));
    assert_int_equal(MB_ERR_TOO_LARGE, w.status);
    mb_buffer_fini(&buf);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arg_when_absent_then_default),
        cmocka_unit_test(test_arg_when_required_and_absent_then_named),
        cmocka_unit_test(test_arg_when_of_its_type_then_read),
        cmocka_unit_test(test_arg_when_of_another_type_then_both_named),
        cmocka_unit_test(test_arg_when_out_of_range_then_range_named),
        cmocka_unit_test(test_arg_double_when_nan_then_out_of_range),
        cmocka_unit_test(test_get_from_what_is_no_map_gives_null),
        cmocka_unit_test(test_vector_from_binary_and_from_array),
        cmocka_unit_test(test_vector_when_bad_then_refused_by_name),
        cmocka_unit_test(test_vector_when_absent_or_no_memory_then_error),
        cmocka_unit_test(test_writer_uses_the_shortest_forms),
        cmocka_unit_test(test_writer_when_full_then_failure_sticks),
        cmocka_unit_test(test_writer_when_memory_is_short_then_nomem),
        cmocka_unit_test(
            test_writer_when_a_length_passes_32_bits_then_too_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
