/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_daemon_memory.c - templates of prompts. */
#include "mb_test.h"

#include "memory.h"

static void
check(
    const char *tmpl, const char *title, const char *passage, const char *want)
{
    const struct memory_value values[] = {
        {"{title}", mb_slice_cstr(title)},
        {"{passage}", mb_slice_cstr(passage)},
    };
    struct mb_buffer out;

    mb_buffer_init(&out, 4096);
    assert_ok(memory_render(mb_slice_cstr(tmpl), values, 2, &out));
    assert_slice_str(want, mb_buffer_slice(&out));
    mb_buffer_fini(&out);
}

static void
test_render_then_names_are_replaced(void **state)
{
    MB_TEST_UNUSED(state);
    check("", "T", "P", "");
    check("{title}: {passage}", "T", "P", "T: P");
    check("{passage}{passage}", "T", "P", "PP");
    check("{\"a\": {passage}} {other} {title", "T", "P",
        "{\"a\": P} {other} {title");
    check("{{title}}", "T", "P", "{T}");
}

/* What a document holds must not be able to write into the prompt's frame. */
static void
test_render_when_a_value_has_names_then_not_replaced(void **state)
{
    MB_TEST_UNUSED(state);
    check("{title} {passage}", "{passage}", "{title}", "{passage} {title}");
    check("{title}", "{tit", "le}", "{tit");
}

static void
test_render_when_a_line_is_empty_then_left_out(void **state)
{
    MB_TEST_UNUSED(state);
    check(MEMORY_PASSAGE_TEMPLATE, "T", "P", "T\nP\n\n");
    check(MEMORY_PASSAGE_TEMPLATE, "", "P", "P\n\n");
    // Lines with other text, and the last without a line feed, stay.
    check("a {title}\n{passage}", "", "", "a \n");
    check("{title}{passage}\nb\n\nc", "", "", "b\n\nc");
}

static void
test_render_when_too_large_then_error(void **state)
{
    const struct memory_value value = {"{p}", mb_slice_cstr("12345")};
    struct mb_buffer out;
    MB_TEST_UNUSED(state);

    mb_buffer_init(&out, 8);
    assert_status(MB_ERR_TOO_LARGE,
        memory_render(mb_slice_cstr("{p}{p}"), &value, 1, &out), NULL);
    mb_buffer_fini(&out);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_render_then_names_are_replaced),
        cmocka_unit_test(test_render_when_a_value_has_names_then_not_replaced),
        cmocka_unit_test(test_render_when_a_line_is_empty_then_left_out),
        cmocka_unit_test(test_render_when_too_large_then_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
