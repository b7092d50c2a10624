/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_kv.c - tables, transactions, the folder and its lock. */
#include "mb_test.h"

#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "kv.h"

struct fixture {
    struct mb_test_dir dir;
    struct kv *kv;
    struct mb_error err;
};

static struct kv *
open_kv(const char *path, const struct kv_options *opt)
{
    struct kv *kv = NULL;
    struct mb_error err;
    assert_status(MB_OK, kv_open(path, opt, &kv, &err), &err);
    return kv;
}

static int
setup(void **state)
{
    const struct kv_options opt = {.create = true, .no_sync = true};
    struct fixture *f = mb_calloc(1, sizeof(*f));
    f->dir = mb_test_dir_begin();
    f->kv = open_kv(f->dir.path, &opt);
    *state = f;
    return 0;
}

static int
teardown(void **state)
{
    struct fixture *f = *state;
    kv_close(f->kv);
    mb_test_dir_end(&f->dir);
    mb_free(f);
    return 0;
}

static struct mb_slice
str(const char *s)
{
    return mb_slice_cstr(s);
}

static void
put_one(struct kv *kv, const char *key, const char *val)
{
    struct kv_txn *txn;
    assert_ok(kv_begin(kv, true, &txn, NULL));
    assert_ok(kv_put(txn, KV_JOBS, str(key), str(val)));
    assert_ok(kv_commit(txn, NULL));
}

static mb_status
get_one(struct kv *kv, const char *key, char out[64])
{
    struct kv_txn *txn;
    struct mb_slice val;
    assert_ok(kv_begin(kv, false, &txn, NULL));
    mb_status st = kv_get(txn, KV_JOBS, str(key), &val);
    if (st == MB_OK) {
        assert_true(val.size < 64);
        memcpy(out, val.data, val.size);
        out[val.size] = '\0';
    }
    kv_abort(txn);
    return st;
}

/* ---- rows ---- */

static void
test_put_when_committed_then_read(void **state)
{
    struct fixture *f = *state;
    char val[64];
    put_one(f->kv, "a", "one");
    put_one(f->kv, "a", "two");
    assert_ok(get_one(f->kv, "a", val));
    assert_string_equal("two", val);
    assert_status(MB_ERR_NOT_FOUND, get_one(f->kv, "b", val), NULL);
}

static void
test_put_when_aborted_then_gone(void **state)
{
    struct fixture *f = *state;
    struct kv_txn *txn;
    char val[64];
    assert_ok(kv_begin(f->kv, true, &txn, NULL));
    assert_ok(kv_put(txn, KV_JOBS, str("a"), str("one")));
    kv_abort(txn);
    assert_status(MB_ERR_NOT_FOUND, get_one(f->kv, "a", val), NULL);
}

static void
test_snapshot_when_written_meanwhile_then_unchanged(void **state)
{
    struct fixture *f = *state;
    struct kv_txn *txn;
    struct mb_slice val;
    put_one(f->kv, "a", "old");
    assert_ok(kv_begin(f->kv, false, &txn, NULL));
    put_one(f->kv, "a", "new");
    assert_ok(kv_get(txn, KV_JOBS, str("a"), &val));
    assert_slice_str("old", val);
    kv_abort(txn);
}

static void
test_reserve_when_filled_then_read(void **state)
{
    struct fixture *f = *state;
    struct kv_txn *txn;
    uint8_t *p;
    char val[64];
    assert_ok(kv_begin(f->kv, true, &txn, NULL));
    assert_ok(kv_reserve(txn, KV_JOBS, str("r"), 3, &p));
    memcpy(p, "xyz", 3);
    assert_ok(kv_commit(txn, NULL));
    assert_ok(get_one(f->kv, "r", val));
    assert_string_equal("xyz", val);
}

static void
test_del_when_absent_then_not_found(void **state)
{
    struct fixture *f = *state;
    struct kv_txn *txn;
    put_one(f->kv, "a", "one");
    assert_ok(kv_begin(f->kv, true, &txn, NULL));
    assert_status(MB_ERR_NOT_FOUND, kv_del(txn, KV_JOBS, str("x")), NULL);
    assert_ok(kv_del(txn, KV_JOBS, str("a")));
    assert_status(MB_ERR_NOT_FOUND, kv_del(txn, KV_JOBS, str("a")), NULL);
    kv_abort(txn);
}

static void
test_key_when_built_then_big_endian(void **state)
{
    struct kv_key key;
    static const uint8_t want[] = {
        7, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 3, 4, 'a', 'b'};
    MB_TEST_UNUSED(state);
    kv_key_init(&key);
    kv_key_u8(&key, 7);
    kv_key_u32(&key, 0x102);
    kv_key_u64(&key, 0x304);
    kv_key_bytes(&key, str("ab"));
    assert_int_equal(sizeof(want), kv_key_slice(&key).size);
    assert_memory_equal(want, kv_key_slice(&key).data, sizeof(want));
}

static void
test_table_name_when_out_of_range_then_mark(void **state)
{
    MB_TEST_UNUSED(state);
    assert_string_equal("documents", kv_table_name(KV_DOCUMENTS));
    assert_string_equal("?", kv_table_name(KV_N_TABLES));
    for (unsigned i = 0; i < KV_N_TABLES; i++) {
        assert_non_null(kv_table_name((enum kv_table)i));
    }
}

/* ---- cursors ---- */

static void
fill(struct kv *kv)
{
    put_one(kv, "a1", "1");
    put_one(kv, "a2", "2");
    put_one(kv, "b1", "3");
    put_one(kv, "b2", "4");
    put_one(kv, "c1", "5");
}

static void
test_cursor_when_walked_then_in_order(void **state)
{
    struct fixture *f = *state;
    struct kv_txn *txn;
    struct kv_cursor *c;
    struct mb_slice k;
    struct mb_slice v;
    fill(f->kv);
    assert_ok(kv_begin(f->kv, false, &txn, NULL));
    assert_ok(kv_cursor_open(txn, KV_JOBS, &c));
    assert_ok(kv_cursor_seek(c, str(""), &k, NULL));
    assert_slice_str("a1", k);
    assert_ok(kv_cursor_seek(c, str("a3"), &k, &v));
    assert_slice_str("b1", k);
    assert_slice_str("3", v);
    assert_ok(kv_cursor_next(c, &k, NULL));
    assert_slice_str("b2", k);
    assert_ok(kv_cursor_prev(c, &k, NULL));
    assert_slice_str("b1", k);
    assert_ok(kv_cursor_last(c, &k, &v));
    assert_slice_str("c1", k);
    assert_status(MB_ERR_NOT_FOUND, kv_cursor_next(c, &k, &v), NULL);
    assert_status(MB_ERR_NOT_FOUND, kv_cursor_seek(c, str("d"), &k, &v), NULL);
    kv_cursor_close(c);
    kv_abort(txn);
}

static void
test_cursor_last_of_when_prefix_then_its_last(void **state)
{
    struct fixture *f = *state;
    struct kv_txn *txn;
    struct kv_cursor *c;
    struct mb_slice k;
    fill(f->kv);
    put_one(f->kv, "\xff\xff", "6");
    assert_ok(kv_begin(f->kv, false, &txn, NULL));
    assert_ok(kv_cursor_open(txn, KV_JOBS, &c));
    assert_ok(kv_cursor_last_of(c, str("a"), &k, NULL));
    assert_slice_str("a2", k);
    assert_ok(kv_cursor_last_of(c, str("c"), &k, NULL));
    assert_slice_str("c1", k);
    assert_ok(kv_cursor_last_of(c, str("\xff"), &k, NULL));
    assert_slice_str("\xff\xff", k);
    assert_status(
        MB_ERR_NOT_FOUND, kv_cursor_last_of(c, str("aa"), &k, NULL), NULL);
    assert_status(
        MB_ERR_NOT_FOUND, kv_cursor_last_of(c, str("0"), &k, NULL), NULL);
    kv_cursor_close(c);
    kv_abort(txn);
}

static void
test_cursor_del_when_next_then_row_after(void **state)
{
    struct fixture *f = *state;
    struct kv_txn *txn;
    struct kv_cursor *c;
    struct mb_slice k;
    struct mb_slice v;
    fill(f->kv);
    assert_ok(kv_begin(f->kv, true, &txn, NULL));
    assert_ok(kv_cursor_open(txn, KV_JOBS, &c));
    assert_ok(kv_cursor_seek(c, str("a2"), NULL, NULL));
    assert_ok(kv_cursor_del(c));
    assert_ok(kv_cursor_next(c, &k, &v));
    assert_slice_str("b1", k);
    assert_ok(kv_cursor_put(c, k, str("changed")));
    assert_ok(kv_get(txn, KV_JOBS, str("b1"), &v));
    assert_slice_str("changed", v);
    kv_cursor_close(c);
    kv_abort(txn);
}

static void
test_del_prefix_when_max_then_in_slices(void **state)
{
    struct fixture *f = *state;
    struct kv_txn *txn;
    struct mb_slice val;
    size_t n;
    fill(f->kv);
    put_one(f->kv, "b3", "7");
    assert_ok(kv_begin(f->kv, true, &txn, NULL));
    assert_ok(kv_del_prefix(txn, KV_JOBS, str("b"), 2, &n));
    assert_int_equal(2, n);
    assert_ok(kv_del_prefix(txn, KV_JOBS, str("b"), 2, &n));
    assert_int_equal(1, n);
    assert_ok(kv_get(txn, KV_JOBS, str("a2"), &val));
    assert_ok(kv_get(txn, KV_JOBS, str("c1"), &val));
    kv_abort(txn);
}

/* ---- the folder ---- */

static void
test_open_when_absent_then_not_found(void **state)
{
    const struct kv_options opt = {.create = false};
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct kv *kv = NULL;
    struct mb_error err;
    MB_TEST_UNUSED(state);
    assert_status(MB_ERR_NOT_FOUND, kv_open(dir.path, &opt, &kv, &err), &err);
    assert_error_has(err, dir.path);
    mb_test_path(&dir, "none", path);
    assert_status(MB_ERR_NOT_FOUND, kv_open(path, &opt, &kv, &err), &err);
    mb_test_dir_end(&dir);
}

static void
test_open_when_file_in_the_way_then_format(void **state)
{
    const struct kv_options opt = {.create = true};
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct kv *kv = NULL;
    struct mb_error err;
    MB_TEST_UNUSED(state);
    mb_test_write_file(mb_test_path(&dir, "file", path), "x", 1);
    assert_status(MB_ERR_FORMAT, kv_open(path, &opt, &kv, &err), &err);
    mb_test_dir_end(&dir);
}

static void
test_open_when_written_elsewhere_then_locked(void **state)
{
    const struct kv_options opt = {.create = false};
    struct fixture *f = *state;
    struct kv *second = NULL;
    assert_status(
        MB_ERR_LOCKED, kv_open(f->dir.path, &opt, &second, &f->err), &f->err);
    assert_error_has(f->err, "another process");
}

static void
test_open_when_again_then_rows_there(void **state)
{
    const struct kv_options opt = {.create = false};
    struct fixture *f = *state;
    char val[64];
    put_one(f->kv, "a", "one");
    kv_close(f->kv);
    f->kv = open_kv(f->dir.path, &opt);
    assert_ok(get_one(f->kv, "a", val));
    assert_string_equal("one", val);
}

/* LMDB opens a file once a process: the reader is a child. */
static void
test_open_when_read_only_then_reads_a_live_store(void **state)
{
    const struct kv_options opt = {.read_only = true};
    struct fixture *f = *state;
    put_one(f->kv, "a", "one");
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct kv *kv = NULL;
        struct kv_txn *txn = NULL;
        struct mb_slice val;
        int code = 1;
        if (kv_open(f->dir.path, &opt, &kv, NULL) == MB_OK &&
            kv_is_read_only(kv) && kv_begin(kv, false, &txn, NULL) == MB_OK &&
            kv_get(txn, KV_JOBS, str("a"), &val) == MB_OK && val.size == 3)
            code = 0;
        _exit(code);
    }
    int status;
    assert_int_equal(pid, waitpid(pid, &status, 0));
    assert_true(WIFEXITED(status));
    assert_int_equal(0, WEXITSTATUS(status));
}

static void
test_open_when_not_lmdb_then_format(void **state)
{
    const struct kv_options opt = {.create = true};
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    uint8_t *bytes = mb_calloc(1, 16384);
    struct kv *kv = NULL;
    struct mb_error err;
    MB_TEST_UNUSED(state);
    memset(bytes, 'x', 16384);
    mb_test_write_file(mb_test_path(&dir, "data.mdb", path), bytes, 16384);
    mb_free(bytes);
    assert_status(MB_ERR_FORMAT, kv_open(dir.path, &opt, &kv, &err), &err);
    mb_test_dir_end(&dir);
}

static void
test_open_when_creation_was_cut_off_then_created(void **state)
{
    const struct kv_options opt = {.create = true, .no_sync = true};
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    MB_TEST_UNUSED(state);
    mb_test_write_file(mb_test_path(&dir, "data.mdb", path), "", 0);
    struct kv *kv = open_kv(dir.path, &opt);
    put_one(kv, "a", "one");
    kv_close(kv);
    mb_test_dir_end(&dir);
}

static void
write_big(struct kv *kv, size_t size)
{
    struct kv_txn *txn;
    uint8_t *out;
    assert_ok(kv_begin(kv, true, &txn, NULL));
    if (size == 0) {
        assert_ok(kv_del(txn, KV_JOBS, str("big")));
    } else {
        assert_ok(kv_reserve(txn, KV_JOBS, str("big"), size, &out));
        memset(out, 'b', size);
    }
    assert_ok(kv_commit(txn, NULL));
}

/* The same by someone who may not write, as on a read-only disk. */
static void
open_where_nothing_may_be_written(const struct mb_test_dir *dir)
{
    char data[MB_TEST_PATH];
    char lock[MB_TEST_PATH];
    int status;
    (void)mb_test_path(dir, "data.mdb", data);
    (void)mb_test_path(dir, "lock.mdb", lock);
    assert_int_equal(0, chmod(data, 0444));
    assert_int_equal(0, chmod(lock, 0444));
    assert_int_equal(0, chmod(dir->path, 0555));
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const struct kv_options opt = {.read_only = true};
        struct kv *kv;
        // Root may write anything: become nobody.
        if (geteuid() == 0 && setuid(65534) != 0)
            _exit(2);
        _exit(kv_open(dir->path, &opt, &kv, NULL) == MB_OK ? 42 : 1);
    }
    assert_int_equal(child, waitpid(child, &status, 0));
    assert_int_equal(0, chmod(dir->path, 0755));
    assert_int_equal(0, chmod(data, 0644));
    assert_int_equal(0, chmod(lock, 0644));
    assert_true(WIFEXITED(status));
    assert_int_equal(42, WEXITSTATUS(status));
}

/* A crash between a commit and its padding leaves a file that ends before its
 * last page number, with nothing in the pages that lack. */
static void
test_open_when_only_free_pages_are_cut_off_then_opened(void **state)
{
    const struct kv_options opt = {.create = true, .no_sync = true};
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct stat sb;
    struct mb_error err;
    MB_TEST_UNUSED(state);
    (void)mb_test_path(&dir, "data.mdb", path);
    struct kv *kv = open_kv(dir.path, &opt);
    // The value's pages come last; once free, and with small commits moved to
    // the pages that earlier ones freed, the file ends in free pages.
    put_one(kv, "a", "one");
    write_big(kv, 400000);
    for (int i = 0; i < 4; i++)
        put_one(kv, "a", "two");
    write_big(kv, 0);
    for (int i = 0; i < 4; i++)
        put_one(kv, "a", "three");
    kv_close(kv);
    assert_int_equal(0, stat(path, &sb));
    assert_int_equal(0, truncate(path, sb.st_size - 4096));
    open_where_nothing_may_be_written(&dir);
    kv = open_kv(dir.path, &opt);
    put_one(kv, "b", "four");
    kv_close(kv);

    // The first half has pages in use, or the cut is no cut.
    assert_int_equal(0, truncate(path, 3 * 4096));
    assert_status(MB_ERR_CORRUPT, kv_open(dir.path, &opt, &kv, &err), &err);
    mb_test_dir_end(&dir);
}

static void
test_open_when_newer_format_then_refused(void **state)
{
    const struct kv_options opt = {.create = true, .no_sync = true};
    struct fixture *f = *state;
    struct kv_txn *txn;
    uint8_t two[4];
    mb_put_le32(two, KV_FORMAT + 1);
    assert_ok(kv_begin(f->kv, true, &txn, NULL));
    assert_ok(kv_put(txn, KV_META, str("format"), mb_slice_of(two, 4)));
    assert_ok(kv_commit(txn, NULL));
    kv_close(f->kv);
    f->kv = NULL;
    assert_status(
        MB_ERR_FORMAT, kv_open(f->dir.path, &opt, &f->kv, &f->err), &f->err);
    assert_error_has(f->err, "format 2");
}

/* ---- map, figures, copy ---- */

static void
test_grow_when_map_full_then_room(void **state)
{
    const struct kv_options opt = {
        .create = true, .no_sync = true, .map_bytes = 1 << 20};
    struct mb_test_dir dir = mb_test_dir_begin();
    struct kv *kv = open_kv(dir.path, &opt);
    struct kv_txn *txn;
    struct mb_error err = {.status = MB_OK};
    uint8_t *p;
    MB_TEST_UNUSED(state);
    assert_ok(kv_begin(kv, true, &txn, NULL));
    assert_status(MB_ERR_NO_SPACE,
        kv_reserve(txn, KV_JOBS, str("big"), 3 << 20, &p), NULL);
    assert_status(
        MB_ERR_NO_SPACE, kv_txn_explain(txn, MB_ERR_NO_SPACE, &err), NULL);
    assert_error_has(err, "map is full");
    kv_abort(txn);
    assert_true(kv_map_is_full(kv));
    assert_ok(kv_grow(kv, &err));
    assert_ok(kv_grow(kv, &err));
    assert_ok(kv_grow(kv, &err));
    assert_false(kv_map_is_full(kv));
    assert_ok(kv_begin(kv, true, &txn, NULL));
    assert_ok(kv_reserve(txn, KV_JOBS, str("big"), 3 << 20, &p));
    memset(p, 1, 3 << 20);
    assert_ok(kv_commit(txn, NULL));
    kv_close(kv);
    mb_test_dir_end(&dir);
}

static void
test_stats_when_old_reader_then_lag(void **state)
{
    struct fixture *f = *state;
    struct kv_txn *txn;
    struct kv_stats stats;
    uint64_t rows;
    uint64_t bytes;
    put_one(f->kv, "a", "1");
    assert_ok(kv_begin(f->kv, false, &txn, NULL));
    assert_ok(kv_table_stats(txn, KV_JOBS, &rows, &bytes));
    assert_int_equal(1, rows);
    assert_true(bytes >= 4096);
    put_one(f->kv, "b", "2");
    put_one(f->kv, "c", "3");
    assert_ok(kv_stats(f->kv, &stats, NULL));
    assert_int_equal(2, stats.oldest_reader_lag);
    assert_int_equal(1, stats.n_readers);
    assert_int_equal(kv_txn_id(txn) + 2, stats.last_txn);
    assert_true(stats.used_bytes > 0 && stats.free_bytes > 0);
    assert_true(stats.file_bytes >= stats.used_bytes + stats.free_bytes);
    kv_abort(txn);
    assert_ok(kv_stats(f->kv, &stats, NULL));
    assert_int_equal(0, stats.oldest_reader_lag);
}

static void
test_copy_when_folder_not_empty_then_exists(void **state)
{
    const struct kv_options opt = {.create = false};
    struct fixture *f = *state;
    struct mb_test_dir to = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    char val[64];
    put_one(f->kv, "a", "one");
    mb_test_write_file(mb_test_path(&to, "file", path), "x", 1);
    assert_status(MB_ERR_EXISTS, kv_copy(f->kv, to.path, &f->err), &f->err);
    mb_test_path(&to, "copy", path);
    assert_status(MB_OK, kv_copy(f->kv, path, &f->err), &f->err);
    struct kv *copy = open_kv(path, &opt);
    assert_ok(get_one(copy, "a", val));
    assert_string_equal("one", val);
    kv_close(copy);
    mb_test_dir_end(&to);
}

int
main(void)
{
#define WITH_STORE(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH_STORE(test_put_when_committed_then_read),
        WITH_STORE(test_put_when_aborted_then_gone),
        WITH_STORE(test_snapshot_when_written_meanwhile_then_unchanged),
        WITH_STORE(test_reserve_when_filled_then_read),
        WITH_STORE(test_del_when_absent_then_not_found),
        cmocka_unit_test(test_key_when_built_then_big_endian),
        cmocka_unit_test(test_table_name_when_out_of_range_then_mark),
        WITH_STORE(test_cursor_when_walked_then_in_order),
        WITH_STORE(test_cursor_last_of_when_prefix_then_its_last),
        WITH_STORE(test_cursor_del_when_next_then_row_after),
        WITH_STORE(test_del_prefix_when_max_then_in_slices),
        cmocka_unit_test(test_open_when_absent_then_not_found),
        cmocka_unit_test(test_open_when_file_in_the_way_then_format),
        WITH_STORE(test_open_when_written_elsewhere_then_locked),
        WITH_STORE(test_open_when_again_then_rows_there),
        WITH_STORE(test_open_when_read_only_then_reads_a_live_store),
        cmocka_unit_test(test_open_when_not_lmdb_then_format),
        cmocka_unit_test(test_open_when_creation_was_cut_off_then_created),
        cmocka_unit_test(
            test_open_when_only_free_pages_are_cut_off_then_opened),
        WITH_STORE(test_open_when_newer_format_then_refused),
        cmocka_unit_test(test_grow_when_map_full_then_room),
        WITH_STORE(test_stats_when_old_reader_then_lag),
        WITH_STORE(test_copy_when_folder_not_empty_then_exists),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
