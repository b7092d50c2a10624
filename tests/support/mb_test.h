/* SPDX-License-Identifier: Apache-2.0
 * tests/support/mb_test.h - what every test includes, and first.
 *
 * cmocka with what it needs before it, and the few things that all tests want:
 * asserts on mb_status that print the cause, a temporary folder that goes away
 * again, an endpoint nobody else has, files, fixtures, a seed that can be set,
 * waiting for a condition with a deadline.
 *
 *     static void
 *     test_put_when_full_then_no_space(void **state)
 *     {
 *         struct mb_test_dir dir = mb_test_dir_begin();
 *         struct mb_error err;
 *         assert_status(MB_ERR_NO_SPACE, store_fill(dir.path, &err), &err);
 *         mb_test_dir_end(&dir);
 *     }
 *
 * Threads: the main thread; cmocka's asserts jump out of the test. */
#ifndef MB_TEST_H
#define MB_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "mb_base.h"

/* Use in every test function that ignores its argument. */
#define MB_TEST_UNUSED(x) ((void)(x))

/* ---- status ---- */

static inline void
mb_test_check_status(mb_status want, mb_status got, const struct mb_error *err,
    const char *call, const char *file, int line)
{
    if (got == want)
        return;
    print_error("%s\n  wanted %s, got %s%s%s\n", call, mb_status_name(want),
        mb_status_name(got), err && got != MB_OK ? ": " : "",
        err && got != MB_OK ? err->text : "");
    _fail(file, line);
}

/* The call must return `want`; err (may be NULL) is printed if it does not. */
#define assert_status(want, call, err)                                         \
    mb_test_check_status((want), (call), (err), #call, __FILE__, __LINE__)
/* The call must return MB_OK. */
#define assert_ok(call) assert_status(MB_OK, (call), NULL)
/* The cause must contain this text. */
#define assert_error_has(err, part)                                            \
    do {                                                                       \
        if (!strstr((err).text, (part)))                                       \
            fail_msg("\"%s\" is not in \"%s\"", (part), (err).text);           \
    } while (0)
#define assert_slice_str(want, slice)                                          \
    do {                                                                       \
        struct mb_slice got_ = (slice);                                        \
        if (!mb_slice_equal(mb_slice_cstr(want), got_))                        \
            fail_msg("wanted \"%s\", got \"%.*s\"", (want), (int)got_.size,    \
                (const char *)got_.data);                                      \
    } while (0)

/* ---- seeds ---- */

/* MB_TEST_SEED of the environment, or 1; printed, so that a failure can be had
 * again. */
static inline uint64_t
mb_test_seed(void)
{
    const char *text = getenv("MB_TEST_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : 1;
    print_message("MB_TEST_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

/* ---- folders and files ---- */

#define MB_TEST_PATH 512

struct mb_test_dir {
    char path[64]; /* short: the path of an ipc socket has at most 107 bytes */
};

/* A new empty folder in TMPDIR or /tmp. */
static inline struct mb_test_dir
mb_test_dir_begin(void)
{
    struct mb_test_dir dir;
    const char *base = getenv("TMPDIR");
    if (!base || strlen(base) > 40)
        base = "/tmp";
    snprintf(dir.path, sizeof dir.path, "%s/mbtestXXXXXX", base);
    if (!mkdtemp(dir.path))
        fail_msg("mkdtemp %s failed", dir.path);
    return dir;
}

static inline void
mb_test_remove(int parent, const char *name)
{
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (fd < 0) {
        (void)unlinkat(parent, name, 0);
        return;
    }
    DIR *d = fdopendir(fd);
    for (struct dirent *e = readdir(d); e; e = readdir(d)) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            mb_test_remove(fd, e->d_name);
    }
    closedir(d);
    (void)unlinkat(parent, name, AT_REMOVEDIR);
}

/* Remove the folder and all in it. */
static inline void
mb_test_dir_end(struct mb_test_dir *dir)
{
    mb_test_remove(AT_FDCWD, dir->path);
}

/* "DIR/NAME" into out; returns out. */
static inline const char *
mb_test_path(
    const struct mb_test_dir *dir, const char *name, char out[MB_TEST_PATH])
{
    int n = snprintf(out, MB_TEST_PATH, "%s/%s", dir->path, name);
    assert_true(n > 0 && n < MB_TEST_PATH);
    return out;
}

/* An ipc endpoint that nobody else has, one for each folder and name. */
static inline const char *
mb_test_endpoint(
    const struct mb_test_dir *dir, const char *name, char out[MB_TEST_PATH])
{
    int n = snprintf(out, MB_TEST_PATH, "ipc://%s/%s", dir->path, name);
    assert_true(n > 0 && n < 112);
    return out;
}

/* Path of tests/fixtures/NAME in the source tree. */
static inline const char *
mb_test_fixture(const char *name, char out[MB_TEST_PATH])
{
    int n =
        snprintf(out, MB_TEST_PATH, MB_SOURCE_DIR "/tests/fixtures/%s", name);
    assert_true(n > 0 && n < MB_TEST_PATH);
    return out;
}

static inline void
mb_test_write_file(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    if (!f)
        fail_msg("cannot write %s", path);
    assert_int_equal(size, fwrite(data, 1, size, f));
    assert_int_equal(0, fclose(f));
}

/* The whole file, with a NUL behind it; free with mb_free. */
static inline uint8_t *
mb_test_read_file(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("cannot read %s", path);
    size_t n = 0;
    size_t capacity = 4096;
    uint8_t *data = mb_alloc(capacity + 1);
    assert_non_null(data);
    for (;;) {
        n += fread(data + n, 1, capacity - n, f);
        if (n < capacity)
            break;
        capacity *= 2;
        data = mb_realloc(data, capacity + 1);
        assert_non_null(data);
    }
    assert_int_equal(0, ferror(f));
    fclose(f);
    data[n] = 0;
    *size = n;
    return data;
}

static inline bool
mb_test_exists(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0;
}

/* ---- waiting ---- */

/* Ask again every 2 ms until the condition holds; false after the deadline. */
static inline bool
mb_test_wait(bool (*condition)(void *arg), void *arg, unsigned timeout_ms)
{
    uint64_t end = mb_clock_ns() + (uint64_t)timeout_ms * 1000000;
    while (!condition(arg)) {
        if (mb_clock_ns() > end)
            return false;
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
    return true;
}

/* ---- fault tests ---- */

/* Run `body` with the first, the second, ... allocation failing, until it gets
 * through: it returns MB_OK, or one of the errors of memory that is short. */
static inline void
mb_test_each_allocation(mb_status (*body)(void *arg), void *arg)
{
    for (uint64_t n = 1;; n++) {
        mb_alloc_fail_after(n);
        mb_status st = body(arg);
        mb_alloc_fail_after(0);
        if (st == MB_OK) {
            // Something must have failed before, or the test tests nothing.
            assert_true(n > 1);
            return;
        }
        if (st != MB_ERR_NOMEM && st != MB_ERR_TOO_LARGE)
            fail_msg("allocation %llu failed: got %s", (unsigned long long)n,
                mb_status_name(st));
        assert_true(n < 1000000);
    }
}

#endif
