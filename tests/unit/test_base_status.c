/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_base_status.c - the status table and error texts. */
#include "mb_test.h"

static void
test_names_for_every_status_are_unique(void **state)
{
    MB_TEST_UNUSED(state);
    for (int i = 0; i <= MB_ERR_DENIED; i++) {
        mb_status st = (mb_status)i;
        assert_non_null(mb_status_name(st));
        assert_true(strlen(mb_status_text(st)) > 0);
        assert_int_equal(st, mb_status_from_name(mb_status_name(st)));
    }
}

static void
test_numbers_stay_what_they_are(void **state)
{
    MB_TEST_UNUSED(state);
    // A change here breaks every client that is out there.
    assert_int_equal(0, MB_OK);
    assert_int_equal(3, MB_ERR_BAD_ARG);
    assert_int_equal(8, MB_ERR_NOT_FOUND);
    assert_int_equal(15, MB_ERR_NO_SPACE);
    assert_int_equal(19, MB_ERR_BAD_TEXT);
    assert_int_equal(25, MB_ERR_DENIED);
    assert_string_equal("not_found", mb_status_name(MB_ERR_NOT_FOUND));
    assert_string_equal("no_space", mb_status_name(MB_ERR_NO_SPACE));
}

static void
test_retry_only_where_it_may_help(void **state)
{
    MB_TEST_UNUSED(state);
    assert_true(mb_status_may_retry(MB_ERR_BUSY));
    assert_true(mb_status_may_retry(MB_ERR_TIMEOUT));
    assert_false(mb_status_may_retry(MB_ERR_BAD_ARG));
    assert_false(mb_status_may_retry(MB_OK));
}

static void
test_unknown_number_or_name_is_internal(void **state)
{
    MB_TEST_UNUSED(state);
    assert_string_equal("internal", mb_status_name((mb_status)999));
    assert_string_equal("internal", mb_status_name((mb_status)-1));
    assert_false(mb_status_may_retry((mb_status)999));
    assert_int_equal(MB_ERR_INTERNAL, mb_status_from_name("no such name"));
    assert_int_equal(MB_ERR_INTERNAL, mb_status_from_name(""));
}

static void
test_error_set_formats_and_returns_status(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_error err = {0};
    assert_int_equal(
        MB_ERR_IO, mb_error_set(&err, MB_ERR_IO, "open %s: %d", "/x", 13));
    assert_int_equal(MB_ERR_IO, err.status);
    assert_string_equal("open /x: 13", err.text);
    assert_int_equal(MB_ERR_IO, mb_error_set(NULL, MB_ERR_IO, "nobody asks"));
}

static void
test_error_set_cuts_at_utf8_boundary(void **state)
{
    MB_TEST_UNUSED(state);
    // Whatever the phase of the cut, what is left is valid UTF-8.
    for (size_t lead = 0; lead < 4; lead++) {
        char text[800];
        memset(text, 'x', lead);
        for (size_t i = 0; i < 180; i++)
            memcpy(text + lead + 4 * i, "\xf0\x9f\x98\x80", 4);
        text[lead + 720] = '\0';
        struct mb_error err;
        mb_error_set(&err, MB_ERR_IO, "%s", text);
        size_t n = strlen(err.text);
        assert_true(mb_utf8_is_valid(mb_slice_of(err.text, n), NULL));
        assert_in_range(n, MB_ERROR_TEXT - 5, MB_ERROR_TEXT - 1);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_for_every_status_are_unique),
        cmocka_unit_test(test_numbers_stay_what_they_are),
        cmocka_unit_test(test_retry_only_where_it_may_help),
        cmocka_unit_test(test_unknown_number_or_name_is_internal),
        cmocka_unit_test(test_error_set_formats_and_returns_status),
        cmocka_unit_test(test_error_set_cuts_at_utf8_boundary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
