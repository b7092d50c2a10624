/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_wire_parse.c - messages in: good ones, bad ones, limits. */
#include "mb_render.h"
#include "mb_test.h"
#include "mb_vectors.h"

#include "mb_wire.h"

#define ARENA_BYTES ((size_t)256 << 20)

static mb_status
parse(struct mb_slice message, struct mb_arena *arena,
    const struct mb_value **out, struct mb_error *err)
{
    return mb_wire_parse(message, NULL, false, arena, out, err);
}

/* ---- good values ---- */

static void
check_good(const struct mb_vector *vector, void *arg)
{
    MB_TEST_UNUSED(arg);
    struct mb_arena *arena = mb_arena_new(ARENA_BYTES);
    const struct mb_value *v = NULL;
    struct mb_error err;
    struct mb_slice message = mb_slice_of(vector->bytes, vector->size);
    assert_status(MB_OK, parse(message, arena, &v, &err), &err);
    struct mb_buffer text;
    mb_buffer_init(&text, 10000);
    mb_render(&text, v);
    assert_slice_str(vector->columns[2], mb_buffer_slice(&text));
    // Written again, it means the same.
    struct mb_buffer again;
    struct mb_writer w;
    mb_buffer_init(&again, 10000);
    mb_writer_init(&w, &again);
    mb_write_value(&w, v);
    assert_int_equal(MB_OK, w.status);
    assert_status(MB_OK, parse(mb_buffer_slice(&again), arena, &v, &err), &err);
    mb_buffer_clear(&text);
    mb_render(&text, v);
    assert_slice_str(vector->columns[2], mb_buffer_slice(&text));
    mb_buffer_fini(&again);
    mb_buffer_fini(&text);
    mb_arena_free(arena);
}

static void
test_good_vectors_mean_what_they_say(void **state)
{
    MB_TEST_UNUSED(state);
    assert_true(mb_vectors_read("wire/values.hex", check_good, NULL) > 50);
}

static void
check_every_cut(const struct mb_vector *vector, void *arg)
{
    MB_TEST_UNUSED(arg);
    struct mb_arena *arena = mb_arena_new(ARENA_BYTES);
    for (size_t n = 0; n < vector->size; n++) {
        const struct mb_value *v = NULL;
        // A copy of just this size, so that a sanitizer sees what runs over.
        uint8_t *cut = mb_alloc(n);
        memcpy(cut, vector->bytes, n);
        assert_status(MB_ERR_BAD_MESSAGE,
            parse(mb_slice_of(cut, n), arena, &v, NULL), NULL);
        assert_null(v);
        mb_free(cut);
    }
    mb_arena_free(arena);
}

static void
test_good_vectors_when_cut_anywhere_then_refused(void **state)
{
    MB_TEST_UNUSED(state);
    mb_vectors_read("wire/values.hex", check_every_cut, NULL);
}

/* ---- bad messages ---- */

static void
check_bad(const struct mb_vector *vector, void *arg)
{
    MB_TEST_UNUSED(arg);
    struct mb_arena *arena = mb_arena_new(ARENA_BYTES);
    const struct mb_value *v = NULL;
    struct mb_error err = {0};
    uint8_t *exact = mb_alloc(vector->size);
    memcpy(exact, vector->bytes, vector->size);
    mb_status st = parse(mb_slice_of(exact, vector->size), arena, &v, &err);
    if (strcmp(vector->columns[2], mb_status_name(st)) != 0 ||
        !strstr(err.text, vector->columns[3]))
        fail_msg(
            "%s: got %s, %s", vector->columns[0], mb_status_name(st), err.text);
    assert_null(v);
    mb_free(exact);
    mb_arena_free(arena);
}

static void
test_bad_messages_are_refused_by_name(void **state)
{
    MB_TEST_UNUSED(state);
    assert_true(mb_vectors_read("wire/bad.hex", check_bad, NULL) > 50);
}

static void
test_bad_message_takes_no_memory(void **state)
{
    MB_TEST_UNUSED(state);
    // Whatever it claims: nothing is allocated before all is checked.
    static const uint8_t claims[] = {0x93, 0xdd, 0x07, 0xff, 0xff, 0xff, 1};
    struct mb_arena *arena = mb_arena_new(ARENA_BYTES);
    const struct mb_value *v = NULL;
    mb_alloc_fail_after(1);
    mb_status st = parse(mb_slice_of(claims, sizeof claims), arena, &v, NULL);
    mb_alloc_fail_after(0);
    assert_int_equal(MB_ERR_BAD_MESSAGE, st);
    assert_int_equal(0, mb_arena_bytes(arena));
    mb_arena_free(arena);
}

/* ---- limits ---- */

static void
test_limits_when_passed_then_too_large(void **state)
{
    MB_TEST_UNUSED(state);
    static const uint8_t nested[] = {0x92, 0x91, 0x01, 0x02}; // [[1],2]
    struct mb_slice message = mb_slice_of(nested, sizeof nested);
    struct mb_arena *arena = mb_arena_new(ARENA_BYTES);
    const struct mb_value *v = NULL;
    struct mb_error err;
    struct mb_wire_limits depth = {.max_depth = 1};
    struct mb_wire_limits values = {.max_values = 3};
    struct mb_wire_limits enough = {.max_depth = 2, .max_values = 4};
    assert_status(MB_ERR_TOO_LARGE,
        mb_wire_parse(message, &depth, false, arena, &v, &err), &err);
    assert_error_has(err, "deeper than 1");
    assert_status(MB_ERR_TOO_LARGE,
        mb_wire_parse(message, &values, false, arena, &v, &err), &err);
    assert_error_has(err, "more than 3 values");
    assert_status(
        MB_OK, mb_wire_parse(message, &enough, false, arena, &v, &err), &err);
    mb_arena_free(arena);
}

static void
test_depth_when_a_megabyte_deep_then_refused(void **state)
{
    MB_TEST_UNUSED(state);

    enum { N = 1 << 20 };

    uint8_t *bomb = mb_alloc(N);
    memset(bomb, 0x91, N);
    struct mb_arena *arena = mb_arena_new(ARENA_BYTES);
    const struct mb_value *v = NULL;
    struct mb_wire_limits limits = {.max_depth = SIZE_MAX};
    assert_status(MB_ERR_TOO_LARGE,
        mb_wire_parse(mb_slice_of(bomb, N), &limits, false, arena, &v, NULL),
        NULL);
    mb_arena_free(arena);
    mb_free(bomb);
}

static void
test_arena_when_too_small_then_too_large(void **state)
{
    MB_TEST_UNUSED(state);
    static const uint8_t message[] = {0x94, 1, 2, 3, 4};
    struct mb_arena *arena = mb_arena_new(64);
    const struct mb_value *v = NULL;
    assert_status(MB_ERR_TOO_LARGE,
        parse(mb_slice_of(message, sizeof message), arena, &v, NULL), NULL);
    mb_arena_free(arena);
}

/* ---- text ---- */

static void
test_bad_text_when_allowed_then_kept_but_not_in_keys(void **state)
{
    MB_TEST_UNUSED(state);
    static const uint8_t value[] = {0x81, 0xa1, 'a', 0xa2, 0xc3, 0x28};
    static const uint8_t key[] = {0x81, 0xa1, 0xff, 0x01};
    struct mb_arena *arena = mb_arena_new(ARENA_BYTES);
    const struct mb_value *v = NULL;
    assert_ok(mb_wire_parse(
        mb_slice_of(value, sizeof value), NULL, true, arena, &v, NULL));
    assert_slice_str("\xc3\x28", mb_value_get(v, "a")->s);
    assert_status(MB_ERR_BAD_TEXT,
        mb_wire_parse(
            mb_slice_of(key, sizeof key), NULL, true, arena, &v, NULL),
        NULL);
    mb_arena_free(arena);
}

/* ---- large maps and arrays ---- */

/* A map of n keys "k0", "k1", ...; the last is `last` instead. */
static void
write_large_map(struct mb_buffer *buf, size_t n, const char *last)
{
    struct mb_writer w;
    mb_writer_init(&w, buf);
    mb_write_map(&w, n);
    for (size_t i = 0; i < n; i++) {
        char key[32];
        snprintf(key, sizeof key, "k%zu", i);
        mb_write_kv_uint(&w, i == n - 1 ? last : key, i);
    }
    assert_int_equal(MB_OK, w.status);
}

static void
test_large_map_when_a_key_comes_twice_then_found(void **state)
{
    MB_TEST_UNUSED(state);
    const size_t sizes[] = {2, 16, 17, 1000, 100000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct mb_buffer buf;
        mb_buffer_init(&buf, (size_t)16 << 20);
        struct mb_arena *arena = mb_arena_new(ARENA_BYTES);
        const struct mb_value *v = NULL;
        struct mb_error err;
        write_large_map(&buf, sizes[i], "other");
        assert_status(
            MB_OK, parse(mb_buffer_slice(&buf), arena, &v, &err), &err);
        assert_int_equal(sizes[i], v->map.n);
        assert_int_equal(sizes[i] - 1, mb_value_get(v, "other")->i);
        mb_buffer_clear(&buf);
        write_large_map(&buf, sizes[i], "k0");
        assert_status(MB_ERR_BAD_MESSAGE,
            parse(mb_buffer_slice(&buf), arena, &v, &err), &err);
        assert_error_has(err, "key comes twice in one map: k0");
        mb_arena_free(arena);
        mb_buffer_fini(&buf);
    }
}

static void
test_array_of_many_numbers_is_read(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_buffer buf;
    struct mb_writer w;
    mb_buffer_init(&buf, (size_t)16 << 20);
    mb_writer_init(&w, &buf);
    mb_write_array(&w, 100000);
    for (size_t i = 0; i < 100000; i++)
        mb_write_f64(&w, (double)i / 4);
    struct mb_arena *arena = mb_arena_new(ARENA_BYTES);
    const struct mb_value *v = NULL;
    assert_ok(parse(mb_buffer_slice(&buf), arena, &v, NULL));
    assert_int_equal(100000, v->array.n);
    assert_true(v->array.items[99999].f == 99999 / 4.0);
    mb_arena_free(arena);
    mb_buffer_fini(&buf);
}

/* ---- memory ---- */

static mb_status
parse_large_map(void *arg)
{
    struct mb_arena *arena = mb_arena_new(ARENA_BYTES);
    if (!arena)
        return MB_ERR_NOMEM;
    const struct mb_value *v = NULL;
    mb_status st = parse(mb_buffer_slice(arg), arena, &v, NULL);
    mb_arena_free(arena);
    return st;
}

static void
test_parse_when_memory_is_short_then_nomem(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_buffer buf;
    mb_buffer_init(&buf, 100000);
    write_large_map(&buf, 100, "other");
    mb_test_each_allocation(parse_large_map, &buf);
    mb_buffer_fini(&buf);
}

/* ---- without a tree ---- */

static void
test_find_gives_the_bytes_of_a_value(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_buffer buf;
    struct mb_writer w;
    mb_buffer_init(&buf, 1000);
    mb_writer_init(&w, &buf);
    mb_write_map(&w, 3);
    mb_write_cstr(&w, "a");
    mb_write_array(&w, 2);
    mb_write_cstr(&w, "b"); // no key of the map
    mb_write_map(&w, 1);
    mb_write_kv_uint(&w, "c", 1);
    mb_write_kv_uint(&w, "b", 300);
    mb_write_kv_cstr(&w, "d", "x");
    struct mb_slice map = mb_buffer_slice(&buf);
    assert_ok(mb_wire_check(map, NULL, false, NULL));
    assert_true(mb_wire_is_map(map));
    assert_slice_str("\x92\xa1"
                     "b\x81\xa1"
                     "c\x01",
        mb_wire_find(map, "a"));
    assert_slice_str("\xcd\x01\x2c", mb_wire_find(map, "b"));
    assert_null(mb_wire_find(map, "c").data);
    size_t n = 0;
    assert_int_equal(map.size - 1, mb_wire_map_body(map, &n).size);
    assert_int_equal(3, n);
    struct mb_slice number = mb_slice_cstr("\x07");
    assert_false(mb_wire_is_map(number));
    assert_false(mb_wire_is_map(mb_slice_of(NULL, 0)));
    assert_null(mb_wire_find(number, "a").data);
    mb_buffer_fini(&buf);
}

static void
test_peek_sees_what_stands_before_the_damage(void **state)
{
    MB_TEST_UNUSED(state);
    // {"id": 7, "op": "ping", "args": <a lie>, ...
    static const uint8_t broken[] = {0x84, 0xa2, 'i', 'd', 0x07, 0xa2, 'o', 'p',
        0xa4, 'p', 'i', 'n', 'g', 0xa4, 'a', 'r', 'g', 's', 0xdd, 0xff, 0xff,
        0xff, 0xff};
    static const char *const keys[] = {"op", "id", "args", "v"};
    struct mb_slice values[4];
    mb_wire_peek(mb_slice_of(broken, sizeof broken), keys, values, 4);
    assert_slice_str("ping", mb_wire_raw_str(values[0]));
    assert_slice_str("\x07", values[1]);
    assert_int_equal(0, values[2].size);
    assert_int_equal(0, values[3].size);
    // Of what is no string there is no text.
    assert_int_equal(0, mb_wire_raw_str(values[1]).size);
    // At every cut it stays inside.
    for (size_t n = 0; n < sizeof broken; n++) {
        uint8_t *cut = mb_alloc(n);
        memcpy(cut, broken, n);
        mb_wire_peek(mb_slice_of(cut, n), keys, values, 4);
        assert_true((values[1].size > 0) == (n >= 5));
        assert_true((values[0].size > 0) == (n >= 13));
        mb_free(cut);
    }
    mb_wire_peek(mb_slice_cstr("\x93\x01"), keys, values, 4);
    assert_int_equal(0, values[0].size);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_vectors_mean_what_they_say),
        cmocka_unit_test(test_good_vectors_when_cut_anywhere_then_refused),
        cmocka_unit_test(test_bad_messages_are_refused_by_name),
        cmocka_unit_test(test_bad_message_takes_no_memory),
        cmocka_unit_test(test_limits_when_passed_then_too_large),
        cmocka_unit_test(test_depth_when_a_megabyte_deep_then_refused),
        cmocka_unit_test(test_arena_when_too_small_then_too_large),
        cmocka_unit_test(test_bad_text_when_allowed_then_kept_but_not_in_keys),
        cmocka_unit_test(test_large_map_when_a_key_comes_twice_then_found),
        cmocka_unit_test(test_array_of_many_numbers_is_read),
        cmocka_unit_test(test_parse_when_memory_is_short_then_nomem),
        cmocka_unit_test(test_find_gives_the_bytes_of_a_value),
        cmocka_unit_test(test_peek_sees_what_stands_before_the_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
