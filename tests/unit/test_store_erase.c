/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_erase.c - what was deleted is not in the file. */
#include "mb_test_store.h"

static int
setup(void **state)
{
    test_store_setup(state);
    test_create(*state, "notes", MB_EMBED_NONE, 0);
    return 0;
}

static bool
scrub_done(struct test_store *t)
{
    struct mb_store_stats stats;
    assert_ok(mb_store_stats(t->store, &stats, NULL));
    return !stats.scrub_pending;
}

/* Wait, with a deadline, until erased bytes are overwritten. */
static void
wait_for_scrub(struct test_store *t)
{
    const struct timespec pause = {.tv_nsec = 5000000};
    uint64_t deadline = mb_clock_ns() + UINT64_C(20000000000);
    while (!scrub_done(t)) {
        assert_true(mb_clock_ns() < deadline);
        nanosleep(&pause, NULL);
    }
}

static bool
file_has(struct test_store *t, const char *text)
{
    char path[MB_TEST_PATH];
    size_t size;
    size_t n = strlen(text);
    bool found = false;
    uint8_t *data =
        mb_test_read_file(mb_test_path(&t->dir, "data.mdb", path), &size);
    for (size_t i = 0; !found && i + n <= size; i++) {
        found = memcmp(data + i, text, n) == 0;
    }
    mb_free(data);
    return found;
}

static void
test_delete_when_scrubbed_then_bytes_gone(void **state)
{
    struct test_store *t = *state;
    char id[16];
    for (int i = 0; i < 50; i++) {
        snprintf(id, sizeof(id), "d%d", i);
        test_put(t, "notes", id, "", "plain words here");
    }
    test_put(t, "notes", "secretid", "hiddentitle", "zanzibarq text");
    test_put(t, "notes", "other", "", "more words");
    assert_true(file_has(t, "secretid"));
    assert_true(file_has(t, "hiddentitle"));
    assert_true(file_has(t, "zanzibarq"));
    assert_int_equal(1, test_delete(t, "notes", "secretid"));
    wait_for_scrub(t);
    assert_false(file_has(t, "secretid"));
    assert_false(file_has(t, "hiddentitle"));
    assert_false(file_has(t, "zanzibarq"));
    test_verify(t);
}

#define N_MANY 1500

/* Words that only document i has, where they become keys of tables. */
static void
own_word(char out[24], const char *kind, int i)
{
    // Scattered, so that deletes hit the first row of many pages.
    snprintf(out, 24, "%s%05uq", kind, (unsigned)i * 7919u % 65536u);
}

static size_t
n_in_file(const uint8_t *data, size_t size, const char *text)
{
    size_t n = strlen(text);
    size_t found = 0;
    const uint8_t *p = data;
    const uint8_t *end = data + size;
    while ((size_t)(end - p) >= n &&
           (p = memchr(p, text[0], (size_t)(end - p) - n + 1)) != NULL) {
        found += memcmp(p, text, n) == 0;
        p++;
    }
    return found;
}

static void
put_many(struct test_store *t)
{
    for (int i = 0; i < N_MANY; i++) {
        char id[24];
        char text[24];
        char year[24];
        uint8_t meta[40];
        own_word(id, "idq", i);
        own_word(text, "xwq", i);
        own_word(year, "vaq", i);
        size_t n = strlen(year);
        // {"v": year}
        memcpy(meta, "\x81\xa1v", 3);
        meta[3] = (uint8_t)(0xa0 + n);
        memcpy(meta + 4, year, n);
        struct mb_collection c = test_collection(t, "notes");
        assert_ok(test_apply(t, test_put_op(t, &c, id, "", mb_slice_cstr(text),
                                    mb_slice_of(meta, 4 + n), NULL)));
    }
}

/* Two of three documents go, one by one or together. Their ids, words and
 * values were keys, and some of them were what branch pages steer by. */
static void
delete_many(struct test_store *t, bool together)
{
    static char ids[N_MANY][24];
    struct mb_slice slices[N_MANY];
    struct mb_op *op;
    size_t n = 0;
    for (int i = 0; i < N_MANY; i++) {
        if (i % 3 == 0)
            continue;
        own_word(ids[n], "idq", i);
        slices[n] = mb_slice_cstr(ids[n]);
        if (!together)
            assert_int_equal(1, test_delete(t, "notes", ids[n]));
        n++;
    }
    if (together) {
        assert_ok(
            mb_op_delete_new(mb_slice_cstr("notes"), slices, n, &op, NULL));
        assert_ok(test_apply(t, op));
    }
}

static void
check_many_are_gone(struct test_store *t)
{
    static const char *const kinds[] = {"idq", "xwq", "vaq"};
    char path[MB_TEST_PATH];
    size_t size;
    size_t left = 0;
    wait_for_scrub(t);
    uint8_t *data =
        mb_test_read_file(mb_test_path(&t->dir, "data.mdb", path), &size);
    for (int i = 0; i < N_MANY; i++) {
        for (size_t k = 0; i % 3 != 0 && k < 3; k++) {
            char word[24];
            own_word(word, kinds[k], i);
            size_t n = n_in_file(data, size, word);
            if (n > 0)
                print_error("%s is in the file %zu times\n", word, n);
            left += n;
        }
    }
    mb_free(data);
    assert_int_equal(0, left);
    assert_int_equal(N_MANY / 3, test_collection(t, "notes").n_documents);
    test_verify(t);
}

static void
test_delete_when_many_one_by_one_then_no_key_is_left(void **state)
{
    struct test_store *t = *state;
    put_many(t);
    delete_many(t, false);
    check_many_are_gone(t);
}

static void
test_delete_when_many_at_once_then_no_key_is_left(void **state)
{
    struct test_store *t = *state;
    put_many(t);
    delete_many(t, true);
    check_many_are_gone(t);
}

static void
test_delete_when_many_and_closed_at_once_then_no_key_is_left(void **state)
{
    struct test_store *t = *state;
    put_many(t);
    delete_many(t, true);
    test_store_reopen(t);
    check_many_are_gone(t);
}

static void
test_scrub_when_reader_holds_it_then_pending(void **state)
{
    struct test_store *t = *state;
    struct mb_snapshot *snap;
    test_put(t, "notes", "secretid", "", "zanzibarq text");
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_int_equal(1, test_delete(t, "notes", "secretid"));
    assert_false(scrub_done(t));
    assert_true(file_has(t, "zanzibarq"));
    mb_snapshot_end(snap);
    wait_for_scrub(t);
    assert_false(file_has(t, "zanzibarq"));
}

static void
test_scrub_when_closed_before_then_resumed(void **state)
{
    struct test_store *t = *state;
    test_put(t, "notes", "secretid", "", "zanzibarq text");
    assert_int_equal(1, test_delete(t, "notes", "secretid"));
    test_store_reopen(t);
    wait_for_scrub(t);
    assert_false(file_has(t, "zanzibarq"));
    test_verify(t);
}

static void
test_drop_when_done_then_rows_and_bytes_gone(void **state)
{
    struct test_store *t = *state;
    struct mb_op *op;
    test_put(t, "notes", "secretid", "", "zanzibarq text");
    assert_ok(mb_op_drop_new(mb_slice_cstr("notes"), &op, NULL));
    assert_ok(test_apply(t, op));
    wait_for_scrub(t);
    assert_false(file_has(t, "zanzibarq"));
    test_verify(t);
}

int
main(void)
{
#define WITH_STORE(fn)                                                         \
    cmocka_unit_test_setup_teardown(fn, setup, test_store_teardown)
    const struct CMUnitTest tests[] = {
        WITH_STORE(test_delete_when_scrubbed_then_bytes_gone),
        WITH_STORE(test_delete_when_many_one_by_one_then_no_key_is_left),
        WITH_STORE(test_delete_when_many_at_once_then_no_key_is_left),
        WITH_STORE(
            test_delete_when_many_and_closed_at_once_then_no_key_is_left),
        WITH_STORE(test_scrub_when_reader_holds_it_then_pending),
        WITH_STORE(test_scrub_when_closed_before_then_resumed),
        WITH_STORE(test_drop_when_done_then_rows_and_bytes_gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
