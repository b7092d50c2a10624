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
        WITH_STORE(test_scrub_when_reader_holds_it_then_pending),
        WITH_STORE(test_scrub_when_closed_before_then_resumed),
        WITH_STORE(test_drop_when_done_then_rows_and_bytes_gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
