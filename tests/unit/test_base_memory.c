/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_base_memory.c - heap with its failure hook, arena, buffer. */
#include "mb_test.h"

/* ---- heap ---- */

static void
test_alloc_when_size_is_zero_then_not_null(void **state)
{
    MB_TEST_UNUSED(state);
    void *p = mb_alloc(0);
    assert_non_null(p);
    p = mb_realloc(p, 0);
    assert_non_null(p);
    mb_free(p);
    p = mb_calloc(0, 8);
    assert_non_null(p);
    mb_free(p);
    mb_free(NULL);
}

static void
test_alloc_when_size_is_absurd_then_null(void **state)
{
    MB_TEST_UNUSED(state);
    assert_null(mb_alloc(SIZE_MAX));
    assert_null(mb_realloc(NULL, SIZE_MAX));
    assert_null(mb_calloc(SIZE_MAX / 2, 3));
    assert_null(mb_strndup("x", SIZE_MAX));
}

static void
test_strndup_copies_and_terminates(void **state)
{
    MB_TEST_UNUSED(state);
    char *s = mb_strndup("abcdef", 3);
    assert_string_equal("abc", s);
    mb_free(s);
    s = mb_strndup(NULL, 0);
    assert_string_equal("", s);
    mb_free(s);
}

static void
test_fail_after_n_then_nth_and_later_fail(void **state)
{
    MB_TEST_UNUSED(state);
    mb_alloc_fail_after(3);
    void *a = mb_alloc(1);
    void *b = mb_calloc(1, 1);
    void *c = mb_alloc(1);
    void *d = mb_realloc(b, 2);
    mb_alloc_fail_after(0);
    void *e = mb_alloc(1);
    assert_non_null(a);
    assert_non_null(b);
    assert_null(c);
    assert_null(d); // b is still there
    assert_non_null(e);
    mb_free(a);
    mb_free(b);
    mb_free(e);
}

/* ---- arena ---- */

static void
test_arena_gives_aligned_memory_that_stays(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_arena *arena = mb_arena_new((size_t)64 << 20);
    struct mb_rng rng;
    mb_rng_init(&rng, mb_test_seed());

    enum { N = 2000 };

    uint8_t *blocks[N];
    size_t sizes[N];
    for (size_t i = 0; i < N; i++) {
        // Mostly small ones, now and then one larger than any chunk.
        sizes[i] = mb_rng_below(&rng, i % 100 == 0 ? 100000 : 300);
        blocks[i] = mb_arena_alloc(arena, sizes[i]);
        assert_non_null(blocks[i]);
        assert_int_equal(0, (uintptr_t)blocks[i] % 16);
        memset(blocks[i], (int)(i % 251), sizes[i]);
    }
    for (size_t i = 0; i < N; i++) {
        for (size_t j = 0; j < sizes[i]; j++)
            assert_int_equal(i % 251, blocks[i][j]);
    }
    mb_arena_free(arena);
}

static void
test_arena_when_maximum_is_reached_then_null(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_arena *arena = mb_arena_new(100);
    assert_non_null(mb_arena_alloc(arena, 60)); // counts as 64
    assert_int_equal(64, mb_arena_bytes(arena));
    assert_int_equal(36, mb_arena_room(arena));
    assert_null(mb_arena_alloc(arena, 37));
    assert_null(mb_arena_alloc(arena, SIZE_MAX));
    assert_null(mb_arena_calloc(arena, SIZE_MAX / 4, 8));
    assert_non_null(mb_arena_alloc(arena, 32));
    assert_null(mb_arena_alloc(arena, 8));
    mb_arena_reset(arena);
    assert_int_equal(0, mb_arena_bytes(arena));
    assert_non_null(mb_arena_alloc(arena, 96));
    mb_arena_free(arena);
    mb_arena_free(NULL);
}

static void
test_arena_reset_after_large_use_can_be_used_again(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_arena *arena = mb_arena_new(SIZE_MAX);
    mb_arena_reset(arena); // of an empty one
    for (size_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < 100; i++) {
            uint8_t *p = mb_arena_calloc(arena, i * 1000, 1);
            for (size_t j = 0; j < i * 1000; j++)
                assert_int_equal(0, p[j]);
            memset(p, 0xff, i * 1000);
        }
        mb_arena_reset(arena);
    }
    mb_arena_free(arena);
}

static void
test_arena_copies_bytes_and_strings(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_arena *arena = mb_arena_new(1000);
    char *s = mb_arena_strndup(arena, "abcdef", 3);
    assert_string_equal("abc", s);
    assert_string_equal("", mb_arena_strndup(arena, NULL, 0));
    assert_null(mb_arena_strndup(arena, "x", SIZE_MAX));
    const uint8_t bytes[] = {1, 0, 2};
    assert_memory_equal(bytes, mb_arena_dup(arena, bytes, 3), 3);
    assert_non_null(mb_arena_dup(arena, NULL, 0));
    mb_arena_free(arena);
}

static mb_status
fill_arena(void *arg)
{
    MB_TEST_UNUSED(arg);
    struct mb_arena *arena = mb_arena_new(SIZE_MAX);
    if (!arena)
        return MB_ERR_NOMEM;
    mb_status st = MB_OK;
    for (size_t i = 0; i < 50 && st == MB_OK; i++) {
        if (!mb_arena_calloc(arena, 1000, 1))
            st = MB_ERR_NOMEM;
    }
    mb_arena_free(arena);
    return st;
}

static void
test_arena_when_memory_is_short_then_null(void **state)
{
    MB_TEST_UNUSED(state);
    mb_test_each_allocation(fill_arena, NULL);
}

/* ---- buffer ---- */

static void
test_buffer_grows_up_to_its_maximum(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_buffer buf;
    mb_buffer_init(&buf, 1000);
    for (size_t i = 0; i < 1000; i++)
        assert_ok(mb_buffer_append(&buf, "x", 1));
    assert_int_equal(1000, buf.size);
    assert_true(buf.capacity <= 1000);
    assert_status(MB_ERR_TOO_LARGE, mb_buffer_append(&buf, "x", 1), NULL);
    assert_status(MB_ERR_TOO_LARGE, mb_buffer_reserve(&buf, SIZE_MAX), NULL);
    assert_int_equal(1000, buf.size);
    mb_buffer_clear(&buf);
    assert_ok(mb_buffer_append_str(&buf, "again"));
    assert_slice_str("again", mb_buffer_slice(&buf));
    mb_buffer_fini(&buf);
    mb_buffer_fini(&buf);
    mb_buffer_fini(NULL);
}

static void
test_buffer_takes_nothing_from_nowhere(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_buffer buf;
    mb_buffer_init(&buf, 10);
    assert_ok(mb_buffer_append(&buf, NULL, 0));
    assert_int_equal(0, mb_buffer_slice(&buf).size);
    mb_buffer_fini(&buf);
}

static void
test_buffer_printf_short_long_and_too_long(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_buffer buf;
    mb_buffer_init(&buf, 1000);
    assert_ok(mb_buffer_printf(&buf, "%d-%s;", 42, "x"));
    assert_slice_str("42-x;", mb_buffer_slice(&buf));
    assert_ok(mb_buffer_printf(&buf, "%0900d", 7)); // longer than its stack
    assert_int_equal(905, buf.size);
    assert_int_equal('7', buf.data[904]);
    assert_status(MB_ERR_TOO_LARGE, mb_buffer_printf(&buf, "%0900d", 7), NULL);
    assert_status(MB_ERR_TOO_LARGE, mb_buffer_printf(&buf, "%096d", 7), NULL);
    assert_ok(mb_buffer_printf(&buf, "%095d", 7));
    assert_int_equal(1000, buf.size);
    mb_buffer_fini(&buf);
}

static mb_status
fill_buffer(void *arg)
{
    MB_TEST_UNUSED(arg);
    struct mb_buffer buf;
    mb_buffer_init(&buf, 100000);
    mb_status st = MB_OK;
    for (size_t i = 0; i < 20 && st == MB_OK; i++) {
        size_t before = buf.size;
        st = mb_buffer_printf(&buf, "%0600zu", i);
        if (st != MB_OK)
            assert_int_equal(before, buf.size);
    }
    mb_buffer_fini(&buf);
    return st;
}

static void
test_buffer_when_memory_is_short_then_unchanged(void **state)
{
    MB_TEST_UNUSED(state);
    mb_test_each_allocation(fill_buffer, NULL);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alloc_when_size_is_zero_then_not_null),
        cmocka_unit_test(test_alloc_when_size_is_absurd_then_null),
        cmocka_unit_test(test_strndup_copies_and_terminates),
        cmocka_unit_test(test_fail_after_n_then_nth_and_later_fail),
        cmocka_unit_test(test_arena_gives_aligned_memory_that_stays),
        cmocka_unit_test(test_arena_when_maximum_is_reached_then_null),
        cmocka_unit_test(test_arena_reset_after_large_use_can_be_used_again),
        cmocka_unit_test(test_arena_copies_bytes_and_strings),
        cmocka_unit_test(test_arena_when_memory_is_short_then_null),
        cmocka_unit_test(test_buffer_grows_up_to_its_maximum),
        cmocka_unit_test(test_buffer_takes_nothing_from_nowhere),
        cmocka_unit_test(test_buffer_printf_short_long_and_too_long),
        cmocka_unit_test(test_buffer_when_memory_is_short_then_unchanged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
