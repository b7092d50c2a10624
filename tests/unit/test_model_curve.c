/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_curve.c - losses as CSV lines, and their picture. */
#include "mb_test.h"

#include <math.h>

#include "mb_curve.h"

static struct curve_point
point(uint64_t step, const char *set, double loss)
{
    struct curve_point p = {.step = step,
        .tokens = step * 100,
        .seconds = (double)step / 2,
        .loss = loss,
        .bits_per_byte = NAN,
        .rate = 0.001,
        .grad_norm = 0.5};
    memcpy(p.set, set, strlen(set) + 1);
    return p;
}

static void
add(struct curve *c, uint64_t step, const char *set, double loss)
{
    struct curve_point p = point(step, set, loss);
    struct mb_error err;
    assert_status(MB_OK, curve_add(c, &p, &err), &err);
}

static void
test_add_when_points_come_then_lines_stand(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct curve *c = NULL;
    struct mb_error err;
    size_t size;
    mb_test_path(&dir, "c.csv", path);
    mb_test_write_file(path, "an old file\n", 12);
    assert_status(MB_OK, curve_open(path, false, 0, &c, &err), &err);
    add(c, 1, "train", 9.0123456789);
    struct curve_point p = point(1, "books", 4);
    p.bits_per_byte = 1.7;
    p.rate = NAN;
    p.grad_norm = NAN;
    assert_ok(curve_add(c, &p, NULL));
    char *text = (char *)mb_test_read_file(path, &size);
    assert_string_equal(
        "step,tokens,seconds,set,loss,bits_per_byte,rate,grad_norm\n"
        "1,100,0.500,train,9.012345679,,0.001,0.5\n"
        "1,100,0.500,books,4,1.7,,\n",
        text);
    mb_free(text);
    p.set[1] = ',';
    assert_status(MB_ERR_BAD_ARG, curve_add(c, &p, &err), &err);
    p.set[0] = '\0';
    assert_status(MB_ERR_BAD_ARG, curve_add(c, &p, &err), &err);
    assert_int_equal(2, curve_n_points(c));
    assert_true(curve_last(c, "books")->loss == 4);
    assert_null(curve_last(c, "wiki"));
    curve_close(c);
    mb_test_dir_end(&dir);
}

static void
test_open_when_resumed_then_later_points_are_gone(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct curve *c = NULL;
    struct mb_error err;
    size_t size;
    mb_test_path(&dir, "c.csv", path);
    assert_ok(curve_open(path, true, 7, &c, &err)); // there is none yet
    for (uint64_t i = 1; i <= 10; i++) {
        add(c, i, "train", 10.0 / (double)i);
        if (i % 3 == 0)
            add(c, i, "books", (double)i);
    }
    curve_close(c);
    // The last line was not written whole.
    FILE *f = fopen(path, "ab");
    assert_non_null(f);
    fputs("11,1100,5.5,tra", f);
    fclose(f);
    assert_status(MB_OK, curve_open(path, true, 7, &c, &err), &err);
    assert_int_equal(9, curve_n_points(c));
    assert_int_equal(7, curve_at(c, 8)->step);
    assert_true(fabs(curve_last(c, "train")->loss - 10.0 / 7) < 1e-9);
    assert_true(isnan(curve_last(c, "books")->bits_per_byte));
    add(c, 8, "train", 1);
    curve_close(c);
    char *text = (char *)mb_test_read_file(path, &size);
    assert_non_null(strstr(text, "\n7,700,3.500,train,1.428571429,,"));
    assert_null(strstr(text, "\n9,"));
    assert_null(strstr(text, "\n8,800,4.000,train,1.25"));
    assert_non_null(strstr(text, "\n8,800,4.000,train,1,,"));
    mb_free(text);
    mb_test_dir_end(&dir);
}

static void
test_open_when_lines_are_wrong_then_corrupt(void **state)
{
    MB_TEST_UNUSED(state);
    static const char *const bad[] = {"1,2,3,train,4,,,\n", "1,2,3,train,4\n",
        "1,2,3,,4,,,\n", "x,2,3,train,4,,,\n", "1,2,3,train,,,,\n",
        "-1,2,3,train,4,,,\n", "1,2,3,train,4,,,,\n", "1,2,3,train,4,,,z\n",
        "\n"};
    const char *header =
        "step,tokens,seconds,set,loss,bits_per_byte,rate,grad_norm\n";
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct curve *c = NULL;
    struct mb_error err;
    mb_test_path(&dir, "c.csv", path);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[256];
        // The first stands without its header.
        int n =
            snprintf(text, sizeof text, "%s%s", i == 0 ? "" : header, bad[i]);
        mb_test_write_file(path, text, (size_t)n);
        mb_status st = curve_open(path, true, 7, &c, &err);
        if (st != MB_ERR_CORRUPT)
            fail_msg("%s gave %s", bad[i], mb_status_name(st));
        assert_error_has(err, i == 0 ? "line 1" : "line 2");
    }
    mb_test_dir_end(&dir);
}

static void
test_smooth_when_level_then_mean_of_late(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct curve *c = NULL;
    mb_test_path(&dir, "c.csv", path);
    assert_ok(curve_open(path, false, 0, &c, NULL));
    assert_true(isnan(curve_smooth(c)));
    add(c, 1, "train", 8);
    assert_true(fabs(curve_smooth(c) - 8) < 1e-12);
    add(c, 1, "books", 1000);
    for (uint64_t i = 2; i < 500; i++)
        add(c, i, "train", i % 2 == 0 ? 3 : 5);
    assert_true(fabs(curve_smooth(c) - 4) < 0.05);
    curve_close(c);
    mb_test_dir_end(&dir);
}

static void
test_svg_when_drawn_then_sets_and_escapes(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    char svg[MB_TEST_PATH];
    struct curve *c = NULL;
    struct mb_error err;
    size_t size;
    mb_test_path(&dir, "c.csv", path);
    mb_test_path(&dir, "c.svg", svg);
    assert_ok(curve_open(path, false, 0, &c, NULL));
    // An empty curve makes a picture, too.
    assert_status(MB_OK, curve_svg(c, svg, "none", &err), &err);
    for (uint64_t i = 1; i < 3000; i++)
        add(c, i, "train", 3 + 6.0 / (double)i);
    add(c, 1000, "a<b", 4.25);
    add(c, 2000, "a<b", NAN);
    add(c, 2000, "a<b", 4.125);
    assert_status(MB_OK, curve_svg(c, svg, "t & u", &err), &err);
    char *text = (char *)mb_test_read_file(svg, &size);
    assert_int_equal(0, strncmp(text, "<svg ", 5));
    assert_string_equal("</svg>\n", text + size - 7);
    assert_non_null(strstr(text, ">t &amp; u</text>"));
    assert_non_null(strstr(text, ">a&lt;b 4.125</text>"));
    assert_non_null(strstr(text, ">train 3.00"));
    assert_null(strstr(text, "nan"));
    assert_null(strstr(text, "inf"));
    // Its size does not grow with the run.
    assert_in_range(size, 1000, 20000);
    mb_free(text);
    assert_status(
        MB_ERR_NOT_FOUND, curve_svg(c, "/nonexistent/c.svg", "t", &err), &err);
    curve_close(c);
    mb_test_dir_end(&dir);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add_when_points_come_then_lines_stand),
        cmocka_unit_test(test_open_when_resumed_then_later_points_are_gone),
        cmocka_unit_test(test_open_when_lines_are_wrong_then_corrupt),
        cmocka_unit_test(test_smooth_when_level_then_mean_of_late),
        cmocka_unit_test(test_svg_when_drawn_then_sets_and_escapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
