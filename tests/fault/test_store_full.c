/* SPDX-License-Identifier: Apache-2.0
 * tests/fault/test_store_full.c - a store that may not write any more.
 *
 * The limit on the size of files stands in for a full disk: it needs no root,
 * can be set between any two steps, and the store answers both alike. What a
 * real full disk does to the daemon is in disk_full.py. */
#include "mb_test_store.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>

#define NOTHING_FITS 8192 /* not even the first pages */

static void
limit_files(uint64_t bytes)
{
    struct rlimit limit;
    assert_int_equal(0, getrlimit(RLIMIT_FSIZE, &limit));
    limit.rlim_cur = bytes == 0 ? limit.rlim_max : (rlim_t)bytes;
    assert_int_equal(0, setrlimit(RLIMIT_FSIZE, &limit));
}

static uint64_t
file_bytes(struct test_store *t)
{
    struct mb_store_stats stats;
    assert_ok(mb_store_stats(t->store, &stats, NULL));
    return stats.file_bytes;
}

static int
setup(void **state)
{
    test_store_setup(state);
    test_create(*state, "notes", MB_EMBED_NONE, 0);
    return 0;
}

static int
teardown(void **state)
{
    limit_files(0);
    return test_store_teardown(state);
}

/* Put one document; the status is the answer. */
static mb_status
try_put(struct test_store *t, const char *coll, int i, struct mb_slice text)
{
    char id[16];
    snprintf(id, sizeof(id), "d%d", i);
    struct mb_collection c = test_collection(t, coll);
    return test_apply(
        t, test_put_op(t, &c, id, "", text, mb_slice_of(NULL, 0), NULL));
}

static void
test_put_when_full_then_no_space_and_intact(void **state)
{
    struct test_store *t = *state;
    struct mb_rng rng;
    int n = 0;
    mb_rng_init(&rng, mb_test_seed());
    limit_files(file_bytes(t) + (2 << 20));
    for (;;) {
        mb_status st =
            try_put(t, "notes", n, test_words(t->arena, &rng, 20000));
        if (st != MB_OK) {
            assert_status(MB_ERR_NO_SPACE, st, &t->err);
            assert_error_has(t->err, "no space left");
            break;
        }
        assert_true(++n < 900);
    }
    assert_true(n > 10);
    // Some may fit between what is there; none does harm.
    int kept = n;
    for (int i = 0; i < 20; i++) {
        mb_status st =
            try_put(t, "notes", n + i, test_words(t->arena, &rng, 20000));
        if (st == MB_OK)
            kept++;
        else
            assert_status(MB_ERR_NO_SPACE, st, &t->err);
    }
    assert_int_equal(kept, test_collection(t, "notes").n_documents);
    assert_non_null(test_text(t, "notes", "d3"));
    test_verify(t);

    limit_files(0);
    assert_ok(try_put(t, "notes", 999, test_words(t->arena, &rng, 20000)));
    assert_int_equal(1, test_delete(t, "notes", "d3"));
    assert_int_equal(kept, test_collection(t, "notes").n_documents);
    test_verify(t);
    test_store_reopen(t);
    assert_int_equal(kept, test_collection(t, "notes").n_documents);
    test_verify(t);
}

static void
test_copy_when_full_then_no_space_and_no_half_copy(void **state)
{
    struct test_store *t = *state;
    struct mb_rng rng;
    struct mb_test_dir to = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    mb_rng_init(&rng, mb_test_seed());
    for (int i = 0; i < 20; i++)
        assert_ok(try_put(t, "notes", i, test_words(t->arena, &rng, 20000)));
    limit_files(1 << 16);
    assert_status(
        MB_ERR_NO_SPACE, mb_store_copy(t->store, to.path, &t->err), &t->err);
    assert_error_has(t->err, "no space left");
    limit_files(0);
    assert_false(mb_test_exists(mb_test_path(&to, "data.mdb", path)));
    assert_ok(mb_store_copy(t->store, to.path, &t->err));
    mb_test_dir_end(&to);
}

/* ---- a drop that meets a full disk ---- */

static atomic_bool drop_failed;
static atomic_bool drop_done;

static void
watch_log(void *arg, mb_log_level level, const char *ev, const char *fields)
{
    MB_TEST_UNUSED(arg);
    MB_TEST_UNUSED(level);
    MB_TEST_UNUSED(fields);
    if (strcmp(ev, "store.drop_failed") == 0)
        atomic_store(&drop_failed, true);
    else if (strcmp(ev, "store.dropped") == 0)
        atomic_store(&drop_done, true);
}

static bool
is_set(void *flag)
{
    return atomic_load((atomic_bool *)flag);
}

/* On the writer, after the commit of the drop and before it erases rows. */
static void
fill_disk(void *arg, struct mb_op *op, mb_status st, const struct mb_error *err)
{
    const struct rlimit limit = *(const struct rlimit *)arg;
    MB_TEST_UNUSED(op);
    MB_TEST_UNUSED(st);
    MB_TEST_UNUSED(err);
    (void)setrlimit(RLIMIT_FSIZE, &limit);
}

static void
test_drop_when_full_then_goes_on_with_the_next_commit(void **state)
{
    struct test_store *t = *state;
    struct rlimit limit;
    struct mb_op *op;
    assert_int_equal(0, getrlimit(RLIMIT_FSIZE, &limit));
    limit.rlim_cur = NOTHING_FITS;
    test_create(t, "big", MB_EMBED_NONE, 0);
    for (int i = 0; i < 50; i++)
        assert_ok(try_put(t, "big", i, mb_slice_cstr("several plain words")));
    mb_log_set_hook(watch_log, NULL, MB_LOG_INFO);
    assert_ok(mb_op_drop_new(mb_slice_cstr("big"), &op, NULL));
    assert_ok(mb_store_submit(t->store, op, fill_disk, &limit, NULL));
    assert_true(mb_test_wait(is_set, &drop_failed, 20000));
    assert_false(atomic_load(&drop_done));
    test_verify(t);

    limit_files(0);
    assert_ok(try_put(t, "notes", 1, mb_slice_cstr("room again")));
    assert_true(mb_test_wait(is_set, &drop_done, 20000));
    mb_log_set_hook(NULL, NULL, MB_LOG_ERR);
    assert_int_equal(1, test_collection(t, "notes").n_documents);
    test_verify(t);
    mb_op_free(op);
}

static void
test_open_when_full_then_no_space_or_opened(void **state)
{
    struct test_store *t = *state;
    const struct mb_store_options opt = {.create = true, .no_sync = true};
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_store *other;
    // A new one cannot be made, and what was begun is not in the way later.
    limit_files(NOTHING_FITS);
    assert_status(MB_ERR_NO_SPACE,
        mb_store_open(dir.path, &opt, &other, &t->err), &t->err);
    limit_files(0);
    assert_status(
        MB_OK, mb_store_open(dir.path, &opt, &other, &t->err), &t->err);
    mb_store_close(other);

    // One that is there opens, answers, and refuses to write.
    assert_ok(try_put(t, "notes", 1, mb_slice_cstr("kept words")));
    mb_store_close(t->store);
    t->store = NULL;
    limit_files(NOTHING_FITS);
    test_store_open(t);
    assert_string_equal("kept words", test_text(t, "notes", "d1"));
    assert_status(MB_ERR_NO_SPACE,
        try_put(t, "notes", 2, mb_slice_cstr("no room")), &t->err);
    test_verify(t);
    limit_files(0);
    assert_ok(try_put(t, "notes", 2, mb_slice_cstr("room")));
    mb_test_dir_end(&dir);
}

int
main(void)
{
#define WITH_STORE(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH_STORE(test_put_when_full_then_no_space_and_intact),
        WITH_STORE(test_copy_when_full_then_no_space_and_no_half_copy),
        WITH_STORE(test_drop_when_full_then_goes_on_with_the_next_commit),
        WITH_STORE(test_open_when_full_then_no_space_or_opened),
    };
    // A write over the limit is an error, not the end.
    (void)signal(SIGXFSZ, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
