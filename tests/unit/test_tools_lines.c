/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_tools_lines.c - lines of plain and of packed files. */
#include "mb_test.h"

#include <zlib.h>
#include <zstd.h>

#include "lines.h"

#define MAX_LINE ((size_t)4 * 1024 * 1024)

/* ---- making files ---- */

static void
write_zstd(const char *path, const void *data, size_t size)
{
    size_t max = ZSTD_compressBound(size);
    void *packed = malloc(max);
    size_t n;

    assert_non_null(packed);
    n = ZSTD_compress(packed, max, data, size, 3);
    assert_false(ZSTD_isError(n));
    mb_test_write_file(path, packed, n);
    free(packed);
}

static void
write_gzip(const char *path, const char *mode, const void *data, size_t size)
{
    gzFile f = gzopen(path, mode);

    assert_non_null(f);
    assert_int_equal((int)size, gzwrite(f, data, (unsigned)size));
    assert_int_equal(Z_OK, gzclose(f));
}

/* Every line joined by '|', with the count behind it. */
static mb_status
read_all(const char *path, size_t max_line, struct mb_buffer *out,
    struct mb_error *err)
{
    struct lines *l = NULL;
    bool more = true;
    mb_status st = lines_open(path, max_line, &l, err);

    while (st == MB_OK) {
        struct mb_slice line = {0};

        st = lines_next(l, &line, &more, err);
        if (st != MB_OK || !more)
            break;
        assert_ok(mb_buffer_append(out, line.data, line.size));
        assert_ok(mb_buffer_append(out, "|", 1));
    }
    if (st == MB_OK)
        assert_ok(
            mb_buffer_printf(out, "%llu", (unsigned long long)lines_number(l)));
    lines_close(l);
    return st;
}

static void
assert_lines(const char *path, const char *want)
{
    struct mb_buffer out;
    struct mb_error err;

    mb_buffer_init(&out, 1 << 24);
    assert_status(MB_OK, read_all(path, MAX_LINE, &out, &err), &err);
    assert_slice_str(want, mb_buffer_slice(&out));
    mb_buffer_fini(&out);
}

/* ---- plain ---- */

struct sample {
    const char *text;
    const char *lines;
};

static void
test_plain_lines_then_ends_are_cut(void **state)
{
    static const struct sample samples[] = {
        {"", "0"},
        {"\n", "|1"},
        {"a", "a|1"},
        {"a\n", "a|1"},
        {"a\nb", "a|b|2"},
        {"a\r\n\r\nb\r\n", "a||b|3"},
        {"\xEF\xBB\xBFx\ny", "x|y|2"},
        {"\xEF\xBB\xBF", "0"},
    };
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];

    MB_TEST_UNUSED(state);
    mb_test_path(&dir, "file", path);
    for (size_t i = 0; i < sizeof samples / sizeof samples[0]; i++) {
        mb_test_write_file(path, samples[i].text, strlen(samples[i].text));
        assert_lines(path, samples[i].lines);
    }
    mb_test_dir_end(&dir);
}

/* Lines of many sizes around the borders of the windows; the same text plain,
 * as zstd, as gzip of two members. */
static void
test_large_file_in_all_packings_then_same_lines(void **state)
{
    static const char *const names[] = {"plain", "zstd", "gzip"};
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_buffer text;
    struct mb_buffer got;
    struct mb_error err;
    struct mb_rng rng;
    char path[MB_TEST_PATH];
    uint64_t n_lines = 0;
    size_t half;

    MB_TEST_UNUSED(state);
    mb_buffer_init(&text, 1 << 24);
    mb_buffer_init(&got, 1 << 24);
    mb_rng_init(&rng, mb_test_seed());
    while (text.size < 5u << 20) {
        uint64_t n = mb_rng_below(&rng, n_lines % 50 == 0 ? 1500000 : 300);

        for (uint64_t i = 0; i < n; i++) {
            char c = (char)('a' + mb_rng_below(&rng, 26));

            assert_ok(mb_buffer_append(&text, &c, 1));
        }
        assert_ok(mb_buffer_append(&text, "\n", 1));
        n_lines++;
    }
    half = text.size / 2;
    mb_test_write_file(mb_test_path(&dir, "plain", path), text.data, text.size);
    write_zstd(mb_test_path(&dir, "zstd", path), text.data, text.size);
    write_gzip(mb_test_path(&dir, "gzip", path), "wb", text.data, half);
    write_gzip(path, "ab", text.data + half, text.size - half);
    for (size_t i = 0; i < 3; i++) {
        char number[32];

        mb_buffer_clear(&got);
        assert_status(MB_OK,
            read_all(mb_test_path(&dir, names[i], path), MAX_LINE, &got, &err),
            &err);
        snprintf(number, sizeof number, "%llu", (unsigned long long)n_lines);
        assert_int_equal(text.size + strlen(number), got.size);
        for (size_t j = 0; j < text.size; j++) {
            if (got.data[j] != (text.data[j] == '\n' ? '|' : text.data[j]))
                fail_msg("%s differs at byte %zu", names[i], j);
        }
        assert_memory_equal(number, got.data + text.size, strlen(number));
    }
    mb_buffer_fini(&text);
    mb_buffer_fini(&got);
    mb_test_dir_end(&dir);
}

static void
test_line_past_the_limit_then_skipped(void **state)
{
    static const char text[] = "short\n0123456789abcdef\nnext\n"
                               "0123456789abcdef";
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct lines *l = NULL;
    struct mb_slice line;
    struct mb_error err;
    bool more;

    MB_TEST_UNUSED(state);
    mb_test_path(&dir, "file", path);
    mb_test_write_file(path, text, sizeof text - 1);
    assert_status(MB_OK, lines_open(path, 10, &l, &err), &err);
    assert_status(MB_OK, lines_next(l, &line, &more, &err), &err);
    assert_slice_str("short", line);
    assert_status(MB_ERR_TOO_LARGE, lines_next(l, &line, &more, &err), NULL);
    assert_error_has(err, "line 2: longer than 10 bytes");
    assert_status(MB_OK, lines_next(l, &line, &more, &err), &err);
    assert_slice_str("next", line);
    assert_int_equal(3, lines_number(l));
    assert_status(MB_ERR_TOO_LARGE, lines_next(l, &line, &more, &err), NULL);
    assert_status(MB_OK, lines_next(l, &line, &more, &err), &err);
    assert_false(more);
    assert_status(MB_OK, lines_next(l, &line, &more, &err), &err);
    assert_false(more);
    lines_close(l);
    mb_test_dir_end(&dir);
}

static void
test_bytes_read_then_reach_the_total(void **state)
{
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct lines *l = NULL;
    struct mb_slice line;
    bool more = true;

    MB_TEST_UNUSED(state);
    mb_test_path(&dir, "file", path);
    write_zstd(path, "a\nb\n", 4);
    assert_ok(lines_open(path, 10, &l, NULL));
    while (more) {
        assert_ok(lines_next(l, &line, &more, NULL));
    }
    assert_int_equal(file_size(path), lines_bytes_total(l));
    assert_int_equal(lines_bytes_total(l), lines_bytes_read(l));
    lines_close(l);
    mb_test_dir_end(&dir);
}

static void
test_bytes_read_of_plain_lines_then_exact(void **state)
{
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct lines *l = NULL;
    struct mb_slice line;
    bool more;

    MB_TEST_UNUSED(state);
    mb_test_path(&dir, "file", path);
    mb_test_write_file(path, "abc\nde\n", 7);
    assert_ok(lines_open(path, 10, &l, NULL));
    assert_int_equal(0, lines_bytes_read(l));
    assert_ok(lines_next(l, &line, &more, NULL));
    assert_int_equal(4, lines_bytes_read(l));
    assert_ok(lines_next(l, &line, &more, NULL));
    assert_int_equal(7, lines_bytes_read(l));
    lines_close(l);
    mb_test_dir_end(&dir);
}

/* ---- damage ---- */

static void
test_packed_file_when_cut_then_corrupt(void **state)
{
    struct mb_test_dir dir = mb_test_dir_begin();
    static const char text[] = "one line of text\nand another line of it\n";
    char path[MB_TEST_PATH];

    MB_TEST_UNUSED(state);
    mb_test_path(&dir, "file", path);
    for (int gzip = 0; gzip < 2; gzip++) {
        uint8_t *whole;
        size_t size;

        if (gzip)
            write_gzip(path, "wb", text, sizeof text - 1);
        else
            write_zstd(path, text, sizeof text - 1);
        whole = mb_test_read_file(path, &size);
        // Shorter than its magic it is a plain file.
        for (size_t n = 4; n < size; n++) {
            struct mb_buffer out;
            struct mb_error err;

            mb_buffer_init(&out, 1 << 20);
            mb_test_write_file(path, whole, n);
            assert_status(
                MB_ERR_CORRUPT, read_all(path, MAX_LINE, &out, &err), NULL);
            assert_error_has(err, path);
            mb_buffer_fini(&out);
        }
        mb_free(whole);
    }
    mb_test_dir_end(&dir);
}

static void
test_zstd_file_when_bytes_are_wrong_then_corrupt(void **state)
{
    static const uint8_t bytes[] = {
        0x28, 0xB5, 0x2F, 0xFD, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct mb_buffer out;
    struct mb_error err;

    MB_TEST_UNUSED(state);
    mb_buffer_init(&out, 1 << 20);
    mb_test_path(&dir, "file", path);
    mb_test_write_file(path, bytes, sizeof bytes);
    assert_status(MB_ERR_CORRUPT, read_all(path, MAX_LINE, &out, &err), NULL);
    mb_buffer_fini(&out);
    mb_test_dir_end(&dir);
}

static void
test_open_when_absent_then_not_found(void **state)
{
    struct lines *l = NULL;
    struct mb_error err;

    MB_TEST_UNUSED(state);
    assert_status(
        MB_ERR_NOT_FOUND, lines_open("/no/such/file", 10, &l, &err), NULL);
    assert_null(l);
    assert_error_has(err, "/no/such/file");
    assert_status(MB_ERR_IO, lines_open("/", 10, &l, &err), NULL);
}

static void
test_file_read_whole_then_within_its_limit(void **state)
{
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct mb_buffer out;
    struct mb_error err;

    MB_TEST_UNUSED(state);
    mb_test_path(&dir, "file", path);
    mb_test_write_file(path, "0123456789", 10);
    mb_buffer_init(&out, 1 << 20);
    assert_status(MB_OK, file_read(path, &out, &err), &err);
    assert_slice_str("0123456789", mb_buffer_slice(&out));
    mb_buffer_fini(&out);
    mb_buffer_init(&out, 5);
    assert_status(MB_ERR_TOO_LARGE, file_read(path, &out, &err), NULL);
    assert_error_has(err, "larger than 5 bytes");
    mb_buffer_fini(&out);
    assert_int_equal(10, file_size(path));
    assert_int_equal(0, file_size(dir.path));
    mb_test_dir_end(&dir);
}

static mb_status
read_packed(void *arg)
{
    struct mb_buffer out;
    mb_status st;

    mb_buffer_init(&out, 1 << 20);
    st = mb_buffer_reserve(&out, 4096);
    if (st == MB_OK)
        st = read_all(arg, MAX_LINE, &out, NULL);
    mb_buffer_fini(&out);
    return st;
}

static void
test_read_when_memory_is_short_then_no_memory(void **state)
{
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];

    MB_TEST_UNUSED(state);
    mb_test_path(&dir, "file", path);
    write_gzip(path, "wb", "a\nb\n", 4);
    mb_test_each_allocation(read_packed, path);
    mb_test_dir_end(&dir);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_lines_then_ends_are_cut),
        cmocka_unit_test(test_large_file_in_all_packings_then_same_lines),
        cmocka_unit_test(test_line_past_the_limit_then_skipped),
        cmocka_unit_test(test_bytes_read_then_reach_the_total),
        cmocka_unit_test(test_bytes_read_of_plain_lines_then_exact),
        cmocka_unit_test(test_packed_file_when_cut_then_corrupt),
        cmocka_unit_test(test_zstd_file_when_bytes_are_wrong_then_corrupt),
        cmocka_unit_test(test_open_when_absent_then_not_found),
        cmocka_unit_test(test_file_read_whole_then_within_its_limit),
        cmocka_unit_test(test_read_when_memory_is_short_then_no_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
