/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_tools_json.c - the tools' JSON reader and writer. */
#include "mb_test.h"

#include <math.h>

#include "json.h"

static mb_status
parse(const char *text, bool repair, struct mb_arena *arena,
    const struct mb_value **out, struct mb_error *err)
{
    return json_parse(mb_slice_cstr(text), repair, arena, out, err);
}

/* Parse and write again. */
static void
assert_becomes(const char *text, const char *want)
{
    struct mb_arena *arena = mb_arena_new(1 << 20);
    const struct mb_value *v = NULL;
    struct mb_buffer buf;
    struct json_writer w;
    struct mb_error err;

    mb_buffer_init(&buf, 1 << 20);
    assert_status(MB_OK, parse(text, false, arena, &v, &err), &err);
    json_writer_init(&w, &buf);
    json_value(&w, v);
    assert_ok(w.status);
    assert_slice_str(want, mb_buffer_slice(&buf));
    mb_buffer_fini(&buf);
    mb_arena_free(arena);
}

static void
test_values_of_all_types_then_same_again(void **state)
{
    MB_TEST_UNUSED(state);
    assert_becomes(" null ", "null");
    assert_becomes("true", "true");
    assert_becomes("[false,true]", "[false,true]");
    assert_becomes("0", "0");
    assert_becomes("-0", "0");
    assert_becomes("-12", "-12");
    assert_becomes("1.5e2", "150");
    assert_becomes("0.1", "0.1");
    assert_becomes("\"\"", "\"\"");
    assert_becomes("{ }", "{}");
    assert_becomes("[ ]", "[]");
    assert_becomes("{\"b\" : [1, {\"a\":2}] ,\n\"c\":\"x\"}",
        "{\"b\":[1,{\"a\":2}],\"c\":\"x\"}");
    assert_becomes("[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]",
        "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]");
}

static void
test_whole_numbers_of_64_bits_then_exact(void **state)
{
    MB_TEST_UNUSED(state);
    assert_becomes("9007199254740993", "9007199254740993");
    assert_becomes("9223372036854775807", "9223372036854775807");
    assert_becomes("-9223372036854775808", "-9223372036854775808");
    assert_becomes("9223372036854775808", "9223372036854775808");
    assert_becomes("18446744073709551615", "18446744073709551615");
    assert_becomes("18446744073709551616", "1.8446744073709552e+19");
}

static void
test_escapes_then_characters(void **state)
{
    struct mb_arena *arena = mb_arena_new(1 << 20);
    const struct mb_value *v = NULL;
    struct mb_error err;

    MB_TEST_UNUSED(state);
    assert_status(MB_OK,
        parse(
            "\"a\\n\\t\\\"\\\\\\/\\u0041\\u00e9\\u20ac\\ud83d\\ude00\\u0000z\"",
            false, arena, &v, &err),
        &err);
    static const char want[] = "a\n\t\"\\/A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"
                               "\0z";
    assert_int_equal(sizeof want - 1, v->s.size);
    assert_memory_equal(want, v->s.data, v->s.size);
    mb_arena_free(arena);
}

static void
test_half_a_pair_then_refused_or_repaired(void **state)
{
    static const char *const halves[] = {"\"\\ud800\"", "\"\\udc00x\"",
        "\"\\ud800\\u0041\"", "\"\\ud800\\ud800\""};
    struct mb_arena *arena = mb_arena_new(1 << 20);
    const struct mb_value *v = NULL;
    struct mb_error err;

    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < 4; i++) {
        assert_status(
            MB_ERR_BAD_TEXT, parse(halves[i], false, arena, &v, &err), NULL);
        assert_status(MB_OK, parse(halves[i], true, arena, &v, &err), &err);
        assert_memory_equal("\xef\xbf\xbd", v->s.data, 3);
        assert_true(mb_utf8_is_valid(v->s, NULL));
    }
    mb_arena_free(arena);
}

struct bad {
    const char *name;
    const char *text;
    mb_status status;
};

static void
test_bad_texts_then_refused(void **state)
{
    static const struct bad table[] = {
        {"empty", "", MB_ERR_BAD_MESSAGE},
        {"blank", "  ", MB_ERR_BAD_MESSAGE},
        {"two values", "1 2", MB_ERR_BAD_MESSAGE},
        {"open array", "[1", MB_ERR_BAD_MESSAGE},
        {"comma at end", "[1,]", MB_ERR_BAD_MESSAGE},
        {"comma first", "[,1]", MB_ERR_BAD_MESSAGE},
        {"open object", "{\"a\":1", MB_ERR_BAD_MESSAGE},
        {"key without quotes", "{a:1}", MB_ERR_BAD_MESSAGE},
        {"single quotes", "{'a':1}", MB_ERR_BAD_MESSAGE},
        {"no colon", "{\"a\" 1}", MB_ERR_BAD_MESSAGE},
        {"no value", "{\"a\":}", MB_ERR_BAD_MESSAGE},
        {"same key twice", "{\"a\":1,\"b\":2,\"a\":3}", MB_ERR_BAD_MESSAGE},
        {"open string", "\"abc", MB_ERR_BAD_MESSAGE},
        {"backslash at end", "\"abc\\", MB_ERR_BAD_MESSAGE},
        {"escaped quote at end", "\"abc\\\"", MB_ERR_BAD_MESSAGE},
        {"unknown escape", "\"\\x41\"", MB_ERR_BAD_MESSAGE},
        {"escape of NUL", "\"\\", MB_ERR_BAD_MESSAGE},
        {"short hex", "\"\\u12\"", MB_ERR_BAD_MESSAGE},
        {"bad hex", "\"\\u12g4\"", MB_ERR_BAD_MESSAGE},
        {"word", "nul", MB_ERR_BAD_MESSAGE},
        {"NaN", "NaN", MB_ERR_BAD_MESSAGE},
        {"plus", "+1", MB_ERR_BAD_MESSAGE},
        {"leading zero", "01", MB_ERR_BAD_MESSAGE},
        {"dot alone", "1.", MB_ERR_BAD_MESSAGE},
        {"dot first", ".5", MB_ERR_BAD_MESSAGE},
        {"no exponent", "1e", MB_ERR_BAD_MESSAGE},
        {"minus alone", "-", MB_ERR_BAD_MESSAGE},
        {"too large", "1e999", MB_ERR_BAD_MESSAGE},
    };

    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct mb_arena *arena = mb_arena_new(1 << 20);
        const struct mb_value *v = NULL;
        struct mb_error err;
        mb_status st = parse(table[i].text, false, arena, &v, &err);

        if (st != table[i].status)
            fail_msg("%s: %s", table[i].name, mb_status_name(st));
        assert_null(v);
        assert_error_has(err, "JSON");
        mb_arena_free(arena);
    }
}

static void
test_depth_past_the_limit_then_too_large(void **state)
{
    char text[2 * JSON_MAX_DEPTH + 3];
    struct mb_arena *arena = mb_arena_new(1 << 20);
    const struct mb_value *v = NULL;
    struct mb_error err;
    size_t n = JSON_MAX_DEPTH;

    MB_TEST_UNUSED(state);
    memset(text, '[', n);
    memset(text + n, ']', n);
    text[2 * n] = 0;
    assert_status(MB_OK, parse(text, false, arena, &v, &err), &err);
    memset(text, '[', n + 1);
    memset(text + n + 1, ']', n + 1);
    text[2 * n + 2] = 0;
    assert_status(MB_ERR_TOO_LARGE, parse(text, false, arena, &v, &err), NULL);
    mb_arena_free(arena);
}

static void
test_error_then_names_the_byte(void **state)
{
    struct mb_arena *arena = mb_arena_new(1 << 20);
    const struct mb_value *v = NULL;
    struct mb_error err;

    MB_TEST_UNUSED(state);
    assert_status(
        MB_ERR_BAD_MESSAGE, parse("{\"a\": ?}", false, arena, &v, &err), NULL);
    assert_error_has(err, "at byte 7");
    mb_arena_free(arena);
}

static void
test_string_written_then_escaped(void **state)
{
    struct mb_buffer buf;
    struct json_writer w;

    MB_TEST_UNUSED(state);
    mb_buffer_init(&buf, 1 << 16);
    json_writer_init(&w, &buf);
    json_str(&w, mb_slice_of("a\"\\\n\t\r\x01\x7f</b>\xff\0", 14));
    assert_ok(w.status);
    assert_slice_str(
        "\"a\\\"\\\\\\n\\t\\r\\u0001\\u007f</b>\xef\xbf\xbd\\u0000\"",
        mb_buffer_slice(&buf));
    mb_buffer_clear(&buf);
    json_writer_init(&w, &buf);
    w.html = true;
    json_cstr(&w, "</script><!--&");
    assert_slice_str(
        "\"\\u003c/script\\u003e\\u003c!--\\u0026\"", mb_buffer_slice(&buf));
    mb_buffer_fini(&buf);
}

static void
test_figures_written_then_shortest(void **state)
{
    struct mb_buffer buf;
    struct json_writer w;

    MB_TEST_UNUSED(state);
    mb_buffer_init(&buf, 1 << 16);
    json_writer_init(&w, &buf);
    json_array_begin(&w);
    json_f64(&w, 0.1);
    json_f32(&w, 0.1f);
    json_f64(&w, 1.0 / 3);
    json_f64(&w, (double)NAN);
    json_i64(&w, INT64_MIN);
    json_u64(&w, UINT64_MAX);
    json_array_end(&w);
    assert_ok(w.status);
    assert_slice_str("[0.1,0.1,0.3333333333333333,null,"
                     "-9223372036854775808,18446744073709551615]",
        mb_buffer_slice(&buf));
    mb_buffer_fini(&buf);
}

static void
test_writer_when_buffer_is_full_then_error_sticks(void **state)
{
    struct mb_buffer buf;
    struct json_writer w;

    MB_TEST_UNUSED(state);
    mb_buffer_init(&buf, 4);
    json_writer_init(&w, &buf);
    json_array_begin(&w);
    json_cstr(&w, "too long");
    json_array_end(&w);
    assert_status(MB_ERR_TOO_LARGE, w.status, NULL);
    mb_buffer_fini(&buf);
}

static mb_status
parse_in_memory(void *arg)
{
    struct mb_arena *arena = mb_arena_new(1 << 20);
    const struct mb_value *v = NULL;
    mb_status st = MB_ERR_NOMEM;

    MB_TEST_UNUSED(arg);
    if (arena != NULL)
        st = parse("{\"a\":[1,2,3],\"b\":\"\\u0041\",\"c\":1.5}", false, arena,
            &v, NULL);
    mb_arena_free(arena);
    return st;
}

static void
test_parse_when_memory_is_short_then_no_memory(void **state)
{
    MB_TEST_UNUSED(state);
    mb_test_each_allocation(parse_in_memory, NULL);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_of_all_types_then_same_again),
        cmocka_unit_test(test_whole_numbers_of_64_bits_then_exact),
        cmocka_unit_test(test_escapes_then_characters),
        cmocka_unit_test(test_half_a_pair_then_refused_or_repaired),
        cmocka_unit_test(test_bad_texts_then_refused),
        cmocka_unit_test(test_depth_past_the_limit_then_too_large),
        cmocka_unit_test(test_error_then_names_the_byte),
        cmocka_unit_test(test_string_written_then_escaped),
        cmocka_unit_test(test_figures_written_then_shortest),
        cmocka_unit_test(test_writer_when_buffer_is_full_then_error_sticks),
        cmocka_unit_test(test_parse_when_memory_is_short_then_no_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
