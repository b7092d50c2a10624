/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_base_log.c - the log hook and logfmt values. */
#include "mb_test.h"

struct seen {
    size_t n;
    mb_log_level level;
    char ev[64];
    char fields[4096];
};

static void
keep_event(void *arg, mb_log_level level, const char *ev, const char *fields)
{
    struct seen *seen = arg;
    seen->n++;
    seen->level = level;
    snprintf(seen->ev, sizeof seen->ev, "%s", ev);
    snprintf(seen->fields, sizeof seen->fields, "%s", fields);
}

static void
test_log_without_hook_is_silent(void **state)
{
    MB_TEST_UNUSED(state);
    mb_log_set_hook(NULL, NULL, MB_LOG_DEBUG);
    assert_false(mb_log_is_on(MB_LOG_ERR));
    mb_log(MB_LOG_ERR, "test.nobody", "n=%d", 1);
}

static void
test_log_passes_events_up_to_its_level(void **state)
{
    MB_TEST_UNUSED(state);
    struct seen seen = {0};
    mb_log_set_hook(keep_event, &seen, MB_LOG_INFO);
    assert_true(mb_log_is_on(MB_LOG_INFO));
    assert_false(mb_log_is_on(MB_LOG_DEBUG));
    mb_log(MB_LOG_INFO, "store.open", "path=%s ms=%d", "/x", 3);
    mb_log(MB_LOG_DEBUG, "store.detail", "n=1");
    mb_log_set_hook(NULL, NULL, MB_LOG_ERR);
    mb_log(MB_LOG_ERR, "store.late", "n=1");
    assert_int_equal(1, seen.n);
    assert_int_equal(MB_LOG_INFO, seen.level);
    assert_string_equal("store.open", seen.ev);
    assert_string_equal("path=/x ms=3", seen.fields);
}

static void
test_log_when_fields_are_long_then_cut_at_a_character(void **state)
{
    MB_TEST_UNUSED(state);
    static char text[6001];
    for (size_t i = 0; i < 2000; i++)
        memcpy(text + 3 * i, "\xe6\xbc\xa2", 3);
    struct seen seen = {0};
    mb_log_set_hook(keep_event, &seen, MB_LOG_INFO);
    mb_log(MB_LOG_INFO, "test.long", "%s", text);
    mb_log_set_hook(NULL, NULL, MB_LOG_ERR);
    size_t n = strlen(seen.fields);
    assert_in_range(n, 2000, 2048);
    assert_true(mb_utf8_is_valid(mb_slice_of(seen.fields, n), NULL));
}

static void
test_log_quote_only_what_needs_it(void **state)
{
    MB_TEST_UNUSED(state);

    const struct {
        const char *in;
        const char *out;
    } cases[] = {
        {"plain-1.0/x", "plain-1.0/x"},
        {"\xe6\xbc\xa2", "\xe6\xbc\xa2"},
        {"", "\"\""},
        {"two words", "\"two words\""},
        {"a=b", "\"a=b\""},
        {"say \"x\"\\", "\"say \\\"x\\\"\\\\\""},
        {"line\nand\ttab\r", "\"line\\nand\\ttab\\x0d\""},
        {"\x01\x7f\xff", "\"\\x01\\x7f\\xff\""},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct mb_buffer out;
        mb_buffer_init(&out, 1000);
        assert_ok(mb_log_quote(&out, mb_slice_cstr(cases[i].in)));
        assert_slice_str(cases[i].out, mb_buffer_slice(&out));
        mb_buffer_fini(&out);
    }
}

static void
test_log_quote_when_full_then_unchanged(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_buffer out;
    mb_buffer_init(&out, 6);
    assert_ok(mb_buffer_append_str(&out, "k="));
    assert_status(
        MB_ERR_TOO_LARGE, mb_log_quote(&out, mb_slice_cstr("a b c")), NULL);
    assert_slice_str("k=", mb_buffer_slice(&out));
    mb_buffer_fini(&out);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_log_without_hook_is_silent),
        cmocka_unit_test(test_log_passes_events_up_to_its_level),
        cmocka_unit_test(test_log_when_fields_are_long_then_cut_at_a_character),
        cmocka_unit_test(test_log_quote_only_what_needs_it),
        cmocka_unit_test(test_log_quote_when_full_then_unchanged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
