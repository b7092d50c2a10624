/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_base_utf8.c - what is UTF-8, and repairing what is not. */
#include "mb_test.h"

static struct mb_slice
bytes_of(const char *s, size_t size)
{
    return mb_slice_of(s, size);
}

#define BYTES(s) bytes_of(s, sizeof(s) - 1)

static void
test_every_code_point_is_valid_but_surrogates(void **state)
{
    MB_TEST_UNUSED(state);
    for (uint32_t c = 0; c <= 0x10ffff; c++) {
        uint8_t p[4];
        size_t n;
        if (c < 0x80) {
            n = 1;
            p[0] = (uint8_t)c;
        } else if (c < 0x800) {
            n = 2;
            p[0] = (uint8_t)(0xc0 | c >> 6);
        } else if (c < 0x10000) {
            n = 3;
            p[0] = (uint8_t)(0xe0 | c >> 12);
        } else {
            n = 4;
            p[0] = (uint8_t)(0xf0 | c >> 18);
        }
        for (size_t i = 1; i < n; i++)
            p[i] = (uint8_t)(0x80 | (c >> 6 * (n - 1 - i) & 0x3f));
        bool surrogate = c >= 0xd800 && c <= 0xdfff;
        if (mb_utf8_is_valid(mb_slice_of(p, n), NULL) == surrogate)
            fail_msg("U+%04X", c);
    }
}

static void
test_bad_bytes_are_found_with_their_offset(void **state)
{
    MB_TEST_UNUSED(state);

    const struct {
        struct mb_slice text;
        size_t offset;
    } cases[] = {
        {BYTES("\x80"), 0},             // continuation alone
        {BYTES("abc\xff"), 3},          // never in UTF-8
        {BYTES("abcdefgh\xc3"), 8},     // cut, two bytes
        {BYTES("\xe2\x82"), 0},         // cut, three bytes
        {BYTES("\xf0\x9f\x98"), 0},     // cut, four bytes
        {BYTES("\xc0\x80"), 0},         // overlong NUL
        {BYTES("\xc1\xbf"), 0},         // overlong
        {BYTES("\xe0\x9f\xbf"), 0},     // overlong
        {BYTES("\xf0\x8f\xbf\xbf"), 0}, // overlong
        {BYTES("x\xed\xa0\x80"), 1},    // surrogate
        {BYTES("\xf4\x90\x80\x80"), 0}, // above U+10FFFF
        {BYTES("\xf5\x80\x80\x80"), 0}, // above U+10FFFF
        {BYTES("\xc3\xa9\xc3("), 2},    // second byte wrong
        {BYTES("0123456789abcdef\xc3\xa9\xe9"), 18},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t offset = 99;
        assert_false(mb_utf8_is_valid(cases[i].text, &offset));
        assert_int_equal(cases[i].offset, offset);
    }
}

static void
test_good_text_leaves_offset_alone(void **state)
{
    MB_TEST_UNUSED(state);
    size_t offset = 99;
    assert_true(mb_utf8_is_valid(
        mb_slice_cstr("plain, na\xc3\xafve, \xe6\xbc\xa2, \xf0\x9f\x98\x80"),
        &offset));
    assert_true(mb_utf8_is_valid(mb_slice_of(NULL, 0), &offset));
    assert_true(mb_utf8_is_valid(BYTES("a\0b"), &offset));
    assert_int_equal(99, offset);
}

static void
test_repair_replaces_each_maximal_subpart(void **state)
{
    MB_TEST_UNUSED(state);
#define R "\xef\xbf\xbd"

    const struct {
        const char *in;
        const char *out;
    } cases[] = {
        {"fine", "fine"},
        {"", ""},
        {"a\377b", "a" R "b"},
        {"\xe2\x82", R}, // one for a cut sequence
        {"\xe2\x82(", R "("},
        {"\xc0\xaf", R R},       // no lead at all: one each
        {"\xed\xa0\x80", R R R}, // surrogate: one each
        // The example of the Unicode standard, table 3-8.
        {"\x61\xf1\x80\x80\xe1\x80\xc2\x62\x80\x63\x80\xbf\x64",
            "a" R R R "b" R "c" R R "d"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct mb_buffer out;
        mb_buffer_init(&out, 1000);
        assert_ok(mb_utf8_repair(mb_slice_cstr(cases[i].in), &out));
        assert_slice_str(cases[i].out, mb_buffer_slice(&out));
        mb_buffer_fini(&out);
    }
#undef R
}

static void
test_repair_of_noise_is_always_valid(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_rng rng;
    mb_rng_init(&rng, mb_test_seed());
    struct mb_buffer out;
    mb_buffer_init(&out, 4096);
    for (size_t round = 0; round < 5000; round++) {
        uint8_t noise[64];
        for (size_t i = 0; i < sizeof noise; i++)
            noise[i] = (uint8_t)(mb_rng_u64(&rng) | (round % 2 ? 0x80 : 0));
        mb_buffer_clear(&out);
        assert_ok(mb_utf8_repair(mb_slice_of(noise, sizeof noise), &out));
        assert_true(mb_utf8_is_valid(mb_buffer_slice(&out), NULL));
    }
    mb_buffer_fini(&out);
}

static void
test_repair_when_buffer_is_full_then_too_large(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_buffer out;
    mb_buffer_init(&out, 3);
    assert_status(MB_ERR_TOO_LARGE, mb_utf8_repair(BYTES("a\xff"), &out), NULL);
    mb_buffer_fini(&out);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_code_point_is_valid_but_surrogates),
        cmocka_unit_test(test_bad_bytes_are_found_with_their_offset),
        cmocka_unit_test(test_good_text_leaves_offset_alone),
        cmocka_unit_test(test_repair_replaces_each_maximal_subpart),
        cmocka_unit_test(test_repair_of_noise_is_always_valid),
        cmocka_unit_test(test_repair_when_buffer_is_full_then_too_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
