/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_base_bytes.c - slices, checked sizes, numbers in bytes. */
#include "mb_test.h"

static void
test_slices_compare_like_memcmp_then_size(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_slice a = mb_slice_cstr("abc");
    assert_true(mb_slice_equal(a, mb_slice_of("abcd", 3)));
    assert_false(mb_slice_equal(a, mb_slice_cstr("abd")));
    assert_false(mb_slice_equal(a, mb_slice_cstr("abcd")));
    assert_true(mb_slice_compare(a, mb_slice_cstr("abd")) < 0);
    assert_true(mb_slice_compare(a, mb_slice_cstr("ab")) > 0);
    assert_true(mb_slice_compare(a, mb_slice_cstr("abcd")) < 0);
    assert_int_equal(0, mb_slice_compare(a, a));
    // Bytes are unsigned.
    assert_true(
        mb_slice_compare(mb_slice_cstr("\x80"), mb_slice_cstr("\x7f")) > 0);
}

static void
test_empty_slices_are_equal_whatever_their_pointer(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_slice none = mb_slice_of(NULL, 0);
    assert_true(mb_slice_equal(none, mb_slice_cstr("")));
    assert_int_equal(0, mb_slice_compare(none, mb_slice_cstr("")));
    assert_true(mb_slice_compare(none, mb_slice_cstr("a")) < 0);
}

static void
test_sizes_when_they_overflow_then_refused(void **state)
{
    MB_TEST_UNUSED(state);
    size_t n = 7;
    assert_false(mb_size_add(SIZE_MAX, 1, &n));
    assert_false(mb_size_mul(SIZE_MAX / 2, 3, &n));
    assert_int_equal(7, n);
    assert_true(mb_size_add(SIZE_MAX - 1, 1, &n));
    assert_true(n == SIZE_MAX);
    assert_true(mb_size_mul(SIZE_MAX, 0, &n));
    assert_int_equal(0, n);
    assert_true(mb_size_mul(0, SIZE_MAX, &n));
    assert_true(mb_size_mul(6, 7, &n));
    assert_int_equal(42, n);
}

static void
test_fixed_width_bytes_are_in_the_named_order(void **state)
{
    MB_TEST_UNUSED(state);
    uint8_t p[9] = {0};
    mb_put_le16(p + 1, 0x0102);
    assert_memory_equal(p + 1, "\x02\x01", 2);
    assert_int_equal(0x0102, mb_get_le16(p + 1));
    mb_put_le32(p + 1, 0x81020304);
    assert_memory_equal(p + 1, "\x04\x03\x02\x81", 4);
    assert_true(mb_get_le32(p + 1) == 0x81020304);
    mb_put_le64(p + 1, UINT64_C(0x8102030405060708));
    assert_memory_equal(p + 1, "\x08\x07\x06\x05\x04\x03\x02\x81", 8);
    assert_true(mb_get_le64(p + 1) == UINT64_C(0x8102030405060708));
    mb_put_be32(p + 1, 0x81020304);
    assert_memory_equal(p + 1, "\x81\x02\x03\x04", 4);
    assert_true(mb_get_be32(p + 1) == 0x81020304);
    mb_put_be64(p + 1, UINT64_C(0x8102030405060708));
    assert_memory_equal(p + 1, "\x81\x02\x03\x04\x05\x06\x07\x08", 8);
    assert_true(mb_get_be64(p + 1) == UINT64_C(0x8102030405060708));
    mb_put_lef32(p + 1, -2.5f);
    assert_memory_equal(p + 1, "\x00\x00\x20\xc0", 4);
    assert_true(mb_get_lef32(p + 1) == -2.5f);
}

static void
test_varint_when_written_then_read_again(void **state)
{
    MB_TEST_UNUSED(state);

    const struct {
        uint64_t v;
        size_t size;
    } cases[] = {{0, 1}, {127, 1}, {128, 2}, {16383, 2}, {16384, 3},
        {UINT32_MAX, 5}, {UINT64_C(1) << 63, 10}, {UINT64_MAX, 10}};

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint8_t p[MB_VARINT_MAX + 1];
        size_t n = mb_put_varint(p, cases[i].v);
        assert_int_equal(cases[i].size, n);
        size_t pos = 0;
        uint64_t v = 0;
        assert_true(mb_get_varint(p, n, &pos, &v));
        assert_int_equal(n, pos);
        assert_true(v == cases[i].v);
        // Cut anywhere it is refused, and nothing moves.
        for (size_t cut = 0; cut < n; cut++) {
            pos = 0;
            assert_false(mb_get_varint(p, cut, &pos, &v));
            assert_int_equal(0, pos);
        }
    }
}

static void
test_varint_when_too_long_then_refused(void **state)
{
    MB_TEST_UNUSED(state);
    uint8_t p[12];
    size_t pos = 0;
    uint64_t v;
    memset(p, 0x80, sizeof p);
    assert_false(mb_get_varint(p, sizeof p, &pos, &v));
    // The tenth byte may hold one bit.
    memset(p, 0xff, 9);
    p[9] = 0x02;
    assert_false(mb_get_varint(p, 10, &pos, &v));
    assert_int_equal(0, pos);
    p[9] = 0x01;
    assert_true(mb_get_varint(p, 10, &pos, &v));
    assert_true(v == UINT64_MAX);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slices_compare_like_memcmp_then_size),
        cmocka_unit_test(test_empty_slices_are_equal_whatever_their_pointer),
        cmocka_unit_test(test_sizes_when_they_overflow_then_refused),
        cmocka_unit_test(test_fixed_width_bytes_are_in_the_named_order),
        cmocka_unit_test(test_varint_when_written_then_read_again),
        cmocka_unit_test(test_varint_when_too_long_then_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
