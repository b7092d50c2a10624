/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_scrub.c - erased bytes are overwritten bit by bit.
 *
 * What is overwritten in the end is tested in test_store_erase.c. Here: that
 * the writer can do it between other things. */
#include "mb_test.h"

#include "kv.h"
#include "scrub.h"

#define N_ROWS    15000
#define ROW_BYTES 3000 /* an overflow page each */

struct fixture {
    struct mb_test_dir dir;
    struct kv *kv;
    struct scrub *scrub;
};

static int
setup(void **state)
{
    static struct fixture f;
    const struct kv_options opt = {.create = true, .no_sync = true};
    struct kv_txn *txn;
    f.dir = mb_test_dir_begin();
    assert_ok(kv_open(f.dir.path, &opt, &f.kv, NULL));
    assert_ok(kv_begin(f.kv, false, &txn, NULL));
    assert_ok(scrub_new(f.kv, txn, &f.scrub));
    kv_abort(txn);
    *state = &f;
    return 0;
}

static int
teardown(void **state)
{
    struct fixture *f = *state;
    scrub_free(f->scrub);
    kv_close(f->kv);
    mb_test_dir_end(&f->dir);
    return 0;
}

static void
put_rows(struct fixture *f)
{
    static uint8_t row[ROW_BYTES];
    struct kv_txn *txn;
    memset(row, 0xee, sizeof row);
    assert_ok(kv_begin(f->kv, true, &txn, NULL));
    for (uint32_t i = 0; i < N_ROWS; i++) {
        struct kv_key key;
        kv_key_init(&key);
        kv_key_u32(&key, i);
        assert_ok(kv_put(
            txn, KV_TEXTS, kv_key_slice(&key), mb_slice_of(row, sizeof row)));
    }
    assert_ok(kv_commit(txn, NULL));
    scrub_committed(f->scrub, false);
}

/* Every `step`th row, from 0. */
static void
erase_rows(struct fixture *f, uint32_t step)
{
    struct kv_txn *txn;
    assert_ok(kv_begin(f->kv, true, &txn, NULL));
    for (uint32_t i = 0; i < N_ROWS; i += step) {
        struct kv_key key;
        kv_key_init(&key);
        kv_key_u32(&key, i);
        assert_ok(kv_del(txn, KV_TEXTS, kv_key_slice(&key)));
    }
    assert_ok(scrub_mark(txn));
    assert_ok(kv_commit(txn, NULL));
    scrub_committed(f->scrub, true);
}

/* Slices until nothing is left. */
static size_t
count_slices(struct fixture *f, bool busy)
{
    size_t n = 1;
    while (scrub_slice(f->scrub, busy, false)) {
        // Whoever was waiting commits.
        struct kv_txn *txn;
        if (n++ % 3 != 0)
            continue;
        assert_ok(kv_begin(f->kv, true, &txn, NULL));
        assert_ok(kv_put(
            txn, KV_META, mb_slice_cstr("n"), mb_slice_of(&n, sizeof n)));
        assert_ok(kv_commit(txn, NULL));
        scrub_committed(f->scrub, false);
    }
    assert_false(scrub_is_pending(f->scrub));
    return n;
}

/* Pages of the file that hold a row. */
static size_t
rows_in_file(struct fixture *f)
{
    char path[MB_TEST_PATH];
    size_t size;
    size_t n = 0;
    uint8_t *data =
        mb_test_read_file(mb_test_path(&f->dir, "data.mdb", path), &size);
    for (size_t at = 0; at + 4096 <= size; at += 4096) {
        n += data[at + 1000] == 0xee && data[at + 2000] == 0xee;
    }
    mb_free(data);
    return n;
}

static void
test_slice_when_many_pages_are_free_then_several(void **state)
{
    struct fixture *f = *state;
    put_rows(f);
    assert_true(rows_in_file(f) >= N_ROWS);
    erase_rows(f, 1);
    assert_true(scrub_is_pending(f->scrub));
    assert_true(count_slices(f, false) >= 3);
    assert_int_equal(0, rows_in_file(f));
}

static void
test_slice_when_others_wait_then_more_and_shorter(void **state)
{
    struct fixture *f = *state;
    put_rows(f);
    erase_rows(f, 2);
    assert_true(count_slices(f, true) >= 6);
    assert_int_equal(N_ROWS / 2, rows_in_file(f));
}

/* Erasing again and again while the scrub is behind. */
static void
test_slice_when_erased_meanwhile_then_all_in_the_end(void **state)
{
    struct fixture *f = *state;
    put_rows(f);
    erase_rows(f, 4);
    for (int i = 0; i < 2; i++)
        (void)scrub_slice(f->scrub, true, false);
    put_rows(f);
    for (int i = 0; i < 2; i++)
        (void)scrub_slice(f->scrub, true, false);
    erase_rows(f, 1);
    (void)count_slices(f, true);
    assert_int_equal(0, rows_in_file(f));
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_slice_when_many_pages_are_free_then_several),
        TEST(test_slice_when_others_wait_then_more_and_shorter),
        TEST(test_slice_when_erased_meanwhile_then_all_in_the_end),
    };
#undef TEST
    return cmocka_run_group_tests(tests, NULL, NULL);
}
