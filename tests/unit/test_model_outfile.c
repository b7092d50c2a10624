/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_outfile.c - files that appear whole, or not at all. */
#include "mb_test.h"

#include <signal.h>
#include <sys/resource.h>

#include "mb_outfile.h"

static size_t
files_in(const char *path)
{
    size_t n = 0;
    DIR *d = opendir(path);
    assert_non_null(d);
    for (struct dirent *e = readdir(d); e; e = readdir(d))
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void
assert_file(const char *path, const void *want, size_t want_size)
{
    size_t size;
    uint8_t *data = mb_test_read_file(path, &size);
    assert_int_equal(want_size, size);
    assert_memory_equal(want, data, size);
    mb_free(data);
}

static void
test_finish_when_all_is_well_then_file_is_whole(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct outfile *f = NULL;
    struct mb_error err;
    static uint8_t want[3000016] = {'H', 'E', 'A', 'D'};
    mb_test_path(&dir, "file", path);
    assert_status(MB_OK, outfile_open(path, 5, &f, &err), &err);
    outfile_pad(f, 16);
    for (size_t i = 16; i < 3000016; i++)
        want[i] = (uint8_t)(i * 7 + i / 1000);
    outfile_write(f, want + 16, 1);
    assert_int_equal(17, outfile_size(f));
    outfile_write(f, want + 17, 2999999);
    assert_int_equal(
        outfile_hash_of(want + 5, sizeof want - 5), outfile_hash(f));
    assert_false(mb_test_exists(path));
    assert_status(MB_OK, outfile_finish(f, "HEAD\0", &err), &err);
    assert_file(path, want, sizeof want);
    assert_int_equal(1, files_in(dir.path));

    struct mb_slice map;
    assert_status(MB_OK, outfile_map(path, &map, &err), &err);
    assert_int_equal(sizeof want, map.size);
    assert_memory_equal(want, map.data, map.size);
    outfile_unmap(map);
    mb_test_dir_end(&dir);
}

static void
test_discard_when_begun_then_old_file_stays(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct outfile *f = NULL;
    mb_test_path(&dir, "file", path);
    assert_ok(outfile_put(path, "old", 3, NULL));
    assert_ok(outfile_open(path, 0, &f, NULL));
    outfile_write(f, "new", 3);
    outfile_discard(f);
    outfile_discard(NULL);
    assert_file(path, "old", 3);
    assert_int_equal(1, files_in(dir.path));
    mb_test_dir_end(&dir);
}

static void
test_finish_when_disk_is_full_then_old_file_stays(void **state)
{
    MB_TEST_UNUSED(state);
    static uint8_t data[200000];
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct mb_error err;
    struct rlimit before;
    mb_test_path(&dir, "file", path);
    assert_ok(outfile_put(path, "old", 3, NULL));
    // A limit on the size of files stands for a disk that is full.
    (void)signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(0, getrlimit(RLIMIT_FSIZE, &before));
    struct rlimit limit = {100000, before.rlim_max};
    assert_int_equal(0, setrlimit(RLIMIT_FSIZE, &limit));
    mb_status st = outfile_put(path, data, sizeof data, &err);
    assert_int_equal(0, setrlimit(RLIMIT_FSIZE, &before));
    assert_status(MB_ERR_NO_SPACE, st, &err);
    assert_error_has(err, path);
    assert_file(path, "old", 3);
    assert_int_equal(1, files_in(dir.path));
    mb_test_dir_end(&dir);
}

static void
test_open_when_folder_is_missing_then_not_found(void **state)
{
    MB_TEST_UNUSED(state);
    struct outfile *f = NULL;
    struct mb_slice map;
    struct mb_error err;
    assert_status(MB_ERR_NOT_FOUND,
        outfile_open("/nonexistent/folder/file", 0, &f, &err), &err);
    assert_null(f);
    assert_status(
        MB_ERR_NOT_FOUND, outfile_map("/nonexistent", &map, &err), &err);
    assert_status(MB_ERR_IO, outfile_map("/", &map, &err), &err);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finish_when_all_is_well_then_file_is_whole),
        cmocka_unit_test(test_discard_when_begun_then_old_file_stays),
        cmocka_unit_test(test_finish_when_disk_is_full_then_old_file_stays),
        cmocka_unit_test(test_open_when_folder_is_missing_then_not_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
