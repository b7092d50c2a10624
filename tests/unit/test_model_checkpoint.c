/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_checkpoint.c - the state of a run: round trip, damage,
 * a disk that is full. */
#include "mb_test.h"

#include <signal.h>
#include <sys/resource.h>

#include "mb_checkpoint.h"

static const float values[6] = {1, -2.5f, 0, 1e-30f, 7, -0.0f};

static mb_status
write_to(const char *path, uint64_t steps, struct mb_error *err)
{
    struct checkpoint_writer *w = NULL;
    mb_status st = checkpoint_begin(path, &w, err);
    if (st != MB_OK)
        return st;
    checkpoint_add_number(w, "steps", steps);
    checkpoint_add_floats(w, "weights", values, 2, 3);
    checkpoint_add_text(w, "config", "rate = 1\n");
    checkpoint_add_floats(w, "norm", values, 1, 1);
    return checkpoint_finish(w, err);
}

static void
test_open_when_written_then_same_state(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct checkpoint *c = NULL;
    struct mb_error err;
    float got[6];
    uint64_t steps = 0;
    mb_test_path(&dir, "c", path);
    assert_status(MB_OK, write_to(path, UINT64_MAX - 1, &err), &err);
    assert_status(MB_OK, checkpoint_open(path, &c, &err), &err);
    assert_status(MB_OK, checkpoint_number(c, "steps", &steps, &err), &err);
    assert_true(steps == UINT64_MAX - 1);
    assert_status(
        MB_OK, checkpoint_floats(c, "weights", got, 2, 3, &err), &err);
    assert_memory_equal(values, got, sizeof got);
    assert_string_equal("rate = 1\n", checkpoint_text(c, "config"));
    assert_int_equal(2, checkpoint_n_arrays(c));
    assert_string_equal("norm", checkpoint_array(c, 1).name);
    assert_int_equal(0, (uintptr_t)checkpoint_array(c, 1).values % 64);

    assert_status(MB_ERR_MISMATCH,
        checkpoint_floats(c, "weights", got, 3, 2, &err), &err);
    assert_error_has(err, "2 x 3");
    assert_status(
        MB_ERR_NOT_FOUND, checkpoint_floats(c, "x", got, 1, 1, &err), &err);
    // A name of another kind is none.
    assert_status(
        MB_ERR_NOT_FOUND, checkpoint_number(c, "norm", &steps, &err), &err);
    assert_null(checkpoint_text(c, "steps"));
    checkpoint_close(c);
    mb_test_dir_end(&dir);
}

static void
test_open_when_bytes_are_damaged_then_refused(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct checkpoint *c = NULL;
    size_t size;
    mb_test_path(&dir, "c", path);
    assert_ok(write_to(path, 5, NULL));
    uint8_t *data = mb_test_read_file(path, &size);
    for (size_t i = 0; i < size; i++) {
        data[i] ^= 1;
        mb_test_write_file(path, data, size);
        mb_status st = checkpoint_open(path, &c, NULL);
        data[i] ^= 1;
        if (st != (i < 12 ? MB_ERR_FORMAT : MB_ERR_CORRUPT))
            fail_msg("byte %zu flipped: %s", i, mb_status_name(st));
    }
    for (size_t n = 0; n < size; n++) {
        mb_test_write_file(path, data, n);
        mb_status st = checkpoint_open(path, &c, NULL);
        if (st != (n < 64 ? MB_ERR_FORMAT : MB_ERR_CORRUPT))
            fail_msg("cut to %zu bytes: %s", n, mb_status_name(st));
    }
    mb_free(data);
    assert_status(
        MB_ERR_NOT_FOUND, checkpoint_open("/nonexistent", &c, NULL), NULL);
    mb_test_dir_end(&dir);
}

/* Entries that lie, under checksums that are right. */
static void
test_open_when_an_entry_lies_then_corrupt(void **state)
{
    MB_TEST_UNUSED(state);

    static const struct {
        size_t at;
        uint64_t value;
    } lies[] = {
        {0, UINT64_C(10) << 32 | 9}, // a kind that is none
        {0, UINT64_C(0) << 32 | 1},  // a name of no bytes
        {0, UINT64_C(300) << 32 | 1},
        {0, UINT64_C(5) << 32 | 1}, // a name that ends without NUL
        {8, UINT64_MAX},
        {8, 1000},
        {16, 0},
        {16, UINT64_C(1) << 62},
    };
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct checkpoint_writer *w = NULL;
    struct checkpoint *c = NULL;
    size_t size;
    mb_test_path(&dir, "c", path);
    assert_ok(checkpoint_begin(path, &w, NULL));
    checkpoint_add_floats(w, "longer", values, 2, 3);
    assert_ok(checkpoint_finish(w, NULL));
    uint8_t *data = mb_test_read_file(path, &size);
    assert_int_equal(64 * 3, size);
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        uint8_t copy[192];
        memcpy(copy, data, size);
        mb_put_le64(copy + 64 + lies[i].at, lies[i].value);
        mb_put_le64(copy + 32, mb_hash64(copy + 64, 128, 0));
        mb_put_le64(copy + 56, mb_hash64(copy, 56, 0));
        mb_test_write_file(path, copy, size);
        mb_status st = checkpoint_open(path, &c, NULL);
        if (st != MB_ERR_CORRUPT)
            fail_msg("lie %zu: %s", i, mb_status_name(st));
    }
    mb_free(data);
    mb_test_dir_end(&dir);
}

static void
test_finish_when_disk_is_full_then_old_one_stays(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct mb_error err;
    struct rlimit before;
    struct checkpoint *c = NULL;
    uint64_t steps = 0;
    mb_test_path(&dir, "c", path);
    assert_ok(write_to(path, 1, &err));
    (void)signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(0, getrlimit(RLIMIT_FSIZE, &before));
    struct rlimit limit = {200, before.rlim_max};
    assert_int_equal(0, setrlimit(RLIMIT_FSIZE, &limit));
    mb_status st = write_to(path, 2, &err);
    assert_int_equal(0, setrlimit(RLIMIT_FSIZE, &before));
    assert_status(MB_ERR_NO_SPACE, st, &err);
    assert_status(MB_OK, checkpoint_open(path, &c, &err), &err);
    assert_ok(checkpoint_number(c, "steps", &steps, NULL));
    assert_int_equal(1, steps);
    checkpoint_close(c);
    assert_ok(write_to(path, 3, &err));
    assert_ok(checkpoint_open(path, &c, NULL));
    assert_ok(checkpoint_number(c, "steps", &steps, NULL));
    assert_int_equal(3, steps);
    checkpoint_close(c);
    mb_test_dir_end(&dir);
}

static void
test_discard_when_begun_then_no_file(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct checkpoint_writer *w = NULL;
    mb_test_path(&dir, "c", path);
    assert_ok(checkpoint_begin(path, &w, NULL));
    checkpoint_add_number(w, "n", 1);
    checkpoint_discard(w);
    checkpoint_discard(NULL);
    assert_false(mb_test_exists(path));
    mb_test_dir_end(&dir);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_when_written_then_same_state),
        cmocka_unit_test(test_open_when_bytes_are_damaged_then_refused),
        cmocka_unit_test(test_open_when_an_entry_lies_then_corrupt),
        cmocka_unit_test(test_finish_when_disk_is_full_then_old_one_stays),
        cmocka_unit_test(test_discard_when_begun_then_no_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
