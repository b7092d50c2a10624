/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_client_values.c - packing, reading values, status, version. */
#include "mb_test.h"

#include <math.h>

#include "client.h"

/* ---- packing ---- */

static void
test_pack_writes_every_type(void **state)
{
    MB_TEST_UNUSED(state);
    struct membank_pack *p = membank_pack_new();
    struct membank_bytes bytes;
    membank_pack_array(p, 10);
    membank_pack_nil(p);
    membank_pack_bool(p, true);
    membank_pack_i64(p, -1);
    membank_pack_u64(p, 200);
    membank_pack_f64(p, 1.0);
    membank_pack_str(p, "a");
    membank_pack_strn(p, "bcd", 2);
    membank_pack_bin(p, "e", 1);
    membank_pack_map(p, 1);
    membank_pack_str(p, "k");
    membank_pack_nil(p);
    membank_pack_raw(p, (struct membank_bytes){"\x07", 1});
    assert_int_equal(MEMBANK_OK, membank_pack_bytes(p, &bytes));
    static const uint8_t want[] = {0x9a, 0xc0, 0xc3, 0xff, 0xcc, 200, 0xcb,
        0x3f, 0xf0, 0, 0, 0, 0, 0, 0, 0xa1, 'a', 0xa2, 'b', 'c', 0xc4, 1, 'e',
        0x81, 0xa1, 'k', 0xc0, 0x07};
    assert_int_equal(sizeof want, bytes.size);
    assert_memory_equal(want, bytes.data, sizeof want);
    membank_pack_clear(p);
    membank_pack_u64(p, 1);
    assert_int_equal(MEMBANK_OK, membank_pack_bytes(p, &bytes));
    assert_int_equal(1, bytes.size);
    membank_pack_free(p);
}

static void
test_pack_when_not_one_whole_value_then_bad_arg(void **state)
{
    MB_TEST_UNUSED(state);
    struct membank_pack *p = membank_pack_new();
    struct membank_bytes bytes = {NULL, 99};
    assert_int_equal(MEMBANK_ERR_BAD_ARG, membank_pack_bytes(p, &bytes));
    membank_pack_map(p, 1);
    membank_pack_str(p, "key");
    assert_int_equal(MEMBANK_ERR_BAD_ARG, membank_pack_bytes(p, &bytes));
    membank_pack_nil(p);
    assert_int_equal(MEMBANK_OK, membank_pack_bytes(p, &bytes));
    membank_pack_nil(p); // one too many
    assert_int_equal(MEMBANK_ERR_BAD_ARG, membank_pack_bytes(p, &bytes));
    membank_pack_clear(p);
    membank_pack_map(p, 1);
    membank_pack_i64(p, 1); // no key
    membank_pack_nil(p);
    assert_int_equal(MEMBANK_ERR_BAD_ARG, membank_pack_bytes(p, &bytes));
    membank_pack_free(p);
}

static void
test_pack_when_memory_is_short_then_nomem_sticks(void **state)
{
    MB_TEST_UNUSED(state);
    struct membank_bytes bytes;
    mb_alloc_fail_after(1);
    struct membank_pack *none = membank_pack_new();
    mb_alloc_fail_after(0);
    assert_null(none);
    // All functions take NULL, so one check at the end is enough.
    membank_pack_map(NULL, 1);
    membank_pack_str(NULL, "a");
    membank_pack_strn(NULL, "a", 1);
    membank_pack_array(NULL, 0);
    membank_pack_bin(NULL, "", 0);
    membank_pack_bool(NULL, true);
    membank_pack_i64(NULL, 1);
    membank_pack_u64(NULL, 1);
    membank_pack_f64(NULL, 1);
    membank_pack_nil(NULL);
    membank_pack_raw(NULL, (struct membank_bytes){0});
    membank_pack_clear(NULL);
    membank_pack_free(NULL);
    assert_int_equal(MEMBANK_ERR_NOMEM, membank_pack_bytes(NULL, &bytes));
    struct membank_pack *p = membank_pack_new();
    mb_alloc_fail_after(1);
    membank_pack_nil(p);
    mb_alloc_fail_after(0);
    membank_pack_nil(p);
    assert_int_equal(MEMBANK_ERR_NOMEM, membank_pack_bytes(p, &bytes));
    membank_pack_free(p);
}

/* ---- reading values ---- */

/* The tree of what was packed; in the arena. */
static const struct membank_value *
parse(struct membank_pack *p, struct mb_arena *arena)
{
    struct membank_bytes bytes;
    const struct mb_value *v = NULL;
    assert_int_equal(MEMBANK_OK, membank_pack_bytes(p, &bytes));
    assert_ok(mb_wire_parse(
        mb_slice_of(bytes.data, bytes.size), NULL, false, arena, &v, NULL));
    return (const struct membank_value *)v;
}

static void
test_values_when_of_another_type_then_nothing(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_arena *arena = mb_arena_new(100000);
    struct membank_pack *p = membank_pack_new();
    membank_pack_array(p, 9);
    membank_pack_nil(p);
    membank_pack_bool(p, true);
    membank_pack_i64(p, -5);
    membank_pack_u64(p, UINT64_MAX);
    membank_pack_f64(p, 2.75);
    membank_pack_str(p, "ab");
    membank_pack_bin(p, "\0\1\2", 3);
    membank_pack_array(p, 0);
    membank_pack_map(p, 1);
    membank_pack_str(p, "k");
    membank_pack_u64(p, 7);
    const struct membank_value *all = parse(p, arena);
    const membank_type types[] = {MEMBANK_TYPE_NIL, MEMBANK_TYPE_BOOL,
        MEMBANK_TYPE_INT, MEMBANK_TYPE_UINT, MEMBANK_TYPE_FLOAT,
        MEMBANK_TYPE_STR, MEMBANK_TYPE_BIN, MEMBANK_TYPE_ARRAY,
        MEMBANK_TYPE_MAP};
    const size_t sizes[] = {0, 0, 0, 0, 0, 2, 3, 0, 1};
    assert_int_equal(9, membank_value_size(all));
    for (size_t i = 0; i < 9; i++) {
        const struct membank_value *v = membank_value_at(all, i);
        size_t n = 99;
        assert_int_equal(types[i], membank_value_type(v));
        assert_int_equal(sizes[i], membank_value_size(v));
        assert_int_equal(i == 1, membank_value_bool(v, false));
        assert_int_equal(i == 2   ? -5
                         : i == 4 ? 2
                                  : 99,
            membank_value_i64(v, 99));
        assert_true(membank_value_u64(v, 99) == (i == 3      ? UINT64_MAX
                                                    : i == 4 ? 2
                                                             : 99));
        bool text = i == 5 || i == 6;
        assert_int_equal(text, membank_value_str(v, &n) != NULL);
        assert_int_equal(text ? sizes[i] : 99, n);
        assert_int_equal(i == 8, membank_value_get(v, "k") != NULL);
        assert_int_equal(i == 8, membank_value_key(v, 0, &n) != NULL);
        assert_int_equal(i == 8, membank_value_at(v, 0) != NULL);
        assert_null(membank_value_at(v, 1));
    }
    assert_true(membank_value_f64(membank_value_at(all, 4), 0) == 2.75);
    assert_true(membank_value_f64(membank_value_at(all, 2), 0) == -5);
    assert_true(membank_value_f64(membank_value_at(all, 3), 0) == 0x1p64);
    assert_true(membank_value_f64(membank_value_at(all, 5), 9) == 9);
    assert_null(membank_value_at(all, 9));
    membank_pack_free(p);
    mb_arena_free(arena);
}

static void
test_values_of_null_are_nothing(void **state)
{
    MB_TEST_UNUSED(state);
    size_t n = 99;
    assert_int_equal(MEMBANK_TYPE_NIL, membank_value_type(NULL));
    assert_null(membank_value_get(NULL, "k"));
    assert_null(membank_value_at(NULL, 0));
    assert_null(membank_value_key(NULL, 0, &n));
    assert_null(membank_value_str(NULL, &n));
    assert_int_equal(0, membank_value_size(NULL));
    assert_true(membank_value_bool(NULL, true));
    assert_int_equal(-3, membank_value_i64(NULL, -3));
    assert_int_equal(3, membank_value_u64(NULL, 3));
    assert_true(membank_value_f64(NULL, 0.5) == 0.5);
    // So are results that there are none of.
    assert_int_equal(0, membank_hits_count(NULL));
    assert_null(membank_hits_at(NULL, 0));
    assert_int_equal(0, membank_hits_took_us(NULL));
    assert_int_equal(0, membank_documents_count(NULL));
    assert_null(membank_documents_at(NULL, 0));
    assert_int_equal(0, membank_vectors_count(NULL));
    assert_int_equal(0, membank_vectors_dim(NULL));
    assert_null(membank_vectors_row(NULL, 0));
    membank_hits_free(NULL);
    membank_documents_free(NULL);
    membank_vectors_free(NULL);
    membank_reply_free(NULL);
}

static void
test_numbers_when_they_do_not_fit_then_default(void **state)
{
    MB_TEST_UNUSED(state);
    const double floats[] = {
        1e30, -1e30, (double)NAN, (double)INFINITY, -0x1p63, 0x1p63};
    const int64_t as_i64[] = {9, 9, 9, 9, INT64_MIN, 9};
    const uint64_t as_u64[] = {9, 9, 9, 9, 9, UINT64_C(1) << 63};
    for (size_t i = 0; i < 6; i++) {
        struct mb_value v = {.type = MB_TYPE_FLOAT, .f = floats[i]};
        const struct membank_value *p = (const struct membank_value *)&v;
        assert_true(membank_value_i64(p, 9) == as_i64[i]);
        assert_true(membank_value_u64(p, 9) == as_u64[i]);
    }
}

/* ---- status ---- */

static void
test_status_has_name_text_and_retry(void **state)
{
    MB_TEST_UNUSED(state);
    assert_string_equal(
        "not_found", membank_status_name(MEMBANK_ERR_NOT_FOUND));
    assert_string_equal("success", membank_status_text(MEMBANK_OK));
    assert_true(membank_status_may_retry(MEMBANK_ERR_UNREACHABLE));
    assert_false(membank_status_may_retry(MEMBANK_ERR_DENIED));
    assert_string_equal(MB_VERSION, membank_version());
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pack_writes_every_type),
        cmocka_unit_test(test_pack_when_not_one_whole_value_then_bad_arg),
        cmocka_unit_test(test_pack_when_memory_is_short_then_nomem_sticks),
        cmocka_unit_test(test_values_when_of_another_type_then_nothing),
        cmocka_unit_test(test_values_of_null_are_nothing),
        cmocka_unit_test(test_numbers_when_they_do_not_fit_then_default),
        cmocka_unit_test(test_status_has_name_text_and_retry),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
