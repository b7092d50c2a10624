/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_tools_display.c - pages to text, text and figures to a
 * terminal, progress. */
#include "mb_test.h"

#include "display.h"
#include "htmltext.h"
#include "progress.h"

/* ---- HTML ---- */

struct page {
    const char *html;
    const char *text;
};

static void
test_html_then_readable_text(void **state)
{
    static const struct page pages[] = {
        {"", ""},
        {"plain", "plain"},
        {"<p>one</p>\n<p>two\n  three</p>", "one\n\ntwo three"},
        {"a<br>b<br/>c<br><br>d", "a\nb\nc\n\nd"},
        {"<h1>H</h1>text", "H\n\ntext"},
        {"<ul><li>a<li>b</ul>c", "- a\n- b\n\nc"},
        {"<table><tr><td>1<td>2<tr><td>3</table>", "1\t2\n3"},
        {"<pre>  x\n    y</pre>z", "  x\n    y\n\nz"},
        {"a<script>if (a < b) { '</p>' }</script>b", "ab"},
        {"a<SCRIPT>x</SCRIPT >b", "ab"},
        {"<style>p{}</style>x", "x"},
        {"a<script>never closed", "a"},
        {"<!-- <p>no</p> -->yes<!DOCTYPE html>", "yes"},
        {"<a href=\"x>y\">link</a>", "link"},
        {"a < b and c<d", "a < b and c"},
        {"1 < 2", "1 < 2"},
        {"&lt;&gt;&amp;&quot;&apos;&eacute;&euro;&nbsp;x",
            "<>&\"'\xc3\xa9\xe2\x82\xac x"},
        {"&#65;&#x42;&#x1F600;&#150;", "AB\xf0\x9f\x98\x80\xe2\x80\x93"},
        {"&unknown; &amp &;", "&unknown; &amp &;"},
        {"&#0;&#xD800;&#99999999;", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"soft&shy;hyphen", "softhyphen"},
        {"<p>unfinished <b", "unfinished"},
        {"x<", "x<"},
        {"x</", "x</"},
        {"x&", "x&"},
    };

    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < sizeof pages / sizeof pages[0]; i++) {
        struct mb_buffer text;
        struct mb_buffer title;

        mb_buffer_init(&text, 1 << 16);
        mb_buffer_init(&title, 1 << 16);
        assert_ok(html_to_text(mb_slice_cstr(pages[i].html), &text, &title));
        if (!mb_slice_equal(
                mb_slice_cstr(pages[i].text), mb_buffer_slice(&text)))
            fail_msg("page %s gave \"%.*s\"", pages[i].html, (int)text.size,
                (const char *)text.data);
        mb_buffer_fini(&text);
        mb_buffer_fini(&title);
    }
}

static void
test_html_title_then_apart_from_the_text(void **state)
{
    struct mb_buffer text;
    struct mb_buffer title;

    MB_TEST_UNUSED(state);
    mb_buffer_init(&text, 1 << 16);
    mb_buffer_init(&title, 1 << 16);
    assert_ok(html_to_text(
        mb_slice_cstr("<html><head><title> A &amp;\n B </title></head>"
                      "<body>x</body></html>"),
        &text, &title));
    assert_slice_str("x", mb_buffer_slice(&text));
    assert_slice_str("A & B", mb_buffer_slice(&title));
    mb_buffer_fini(&text);
    mb_buffer_fini(&title);
}

static void
test_html_in_latin1_when_declared_then_converted(void **state)
{
    struct mb_buffer text;
    struct mb_buffer title;

    MB_TEST_UNUSED(state);
    mb_buffer_init(&text, 1 << 16);
    mb_buffer_init(&title, 1 << 16);
    assert_ok(html_to_text(
        mb_slice_cstr("<meta charset=\"ISO-8859-1\">caf\xe9 \x93x\x94"), &text,
        &title));
    assert_slice_str(
        "caf\xc3\xa9 \xe2\x80\x9cx\xe2\x80\x9d", mb_buffer_slice(&text));
    mb_buffer_fini(&text);
    mb_buffer_fini(&title);
}

/* Any bytes are taken. */
static void
test_html_of_random_markup_then_no_error(void **state)
{
    static const char pieces[] = "<>&;/!-\"'= \npretilscb#x1\xff\x80";
    struct mb_rng rng;

    MB_TEST_UNUSED(state);
    mb_rng_init(&rng, mb_test_seed());
    for (int round = 0; round < 2000; round++) {
        size_t n = (size_t)mb_rng_below(&rng, 200);
        struct mb_buffer text;
        struct mb_buffer title;
        // On the heap, so that a read past the end is seen.
        uint8_t *html = malloc(n + 1);

        assert_non_null(html);
        for (size_t i = 0; i < n; i++) {
            html[i] = (uint8_t)pieces[mb_rng_below(&rng, sizeof pieces)];
        }
        html = realloc(html, n > 0 ? n : 1);
        mb_buffer_init(&text, 1 << 16);
        mb_buffer_init(&title, 1 << 16);
        assert_ok(html_to_text(mb_slice_of(html, n), &text, &title));
        mb_buffer_fini(&text);
        mb_buffer_fini(&title);
        free(html);
    }
}

/* ---- lines ---- */

static void
test_columns_then_wide_and_combining_counted(void **state)
{
    MB_TEST_UNUSED(state);
    assert_int_equal(3, display_columns(mb_slice_cstr("abc")));
    assert_int_equal(1, display_columns(mb_slice_cstr("\xc3\xa9")));
    assert_int_equal(1, display_columns(mb_slice_cstr("e\xcc\x81")));
    assert_int_equal(
        4, display_columns(mb_slice_cstr("\xe6\xbc\xa2\xe5\xad\x97")));
    assert_int_equal(2, display_columns(mb_slice_cstr("\xff\xfe")));
}

static char *
printed(void (*print)(FILE *out, const void *arg), const void *arg)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);

    assert_non_null(out);
    print(out, arg);
    assert_int_equal(0, fclose(out));
    return text;
}

static void
print_cut(FILE *out, const void *arg)
{
    display_print(out, mb_slice_cstr(arg), 8);
}

static void
test_print_then_harmless_and_cut(void **state)
{
    static const struct page lines[] = {
        {"short", "short"},
        {"12345678", "12345678"},
        {"123456789", "12345..."},
        {"a\033[2Jb", "a\xef\xbf\xbd[2Jb"},
        {"a\nb\tc\rd", "a b c d"},
        {"a\xc2\x9b"
         "b",
            "a\xef\xbf\xbd"
            "b"},
        {"\xff", "\xef\xbf\xbd"},
        {"a\xe2\x80\xae"
         "b",
            "a\xef\xbf\xbd"
            "b"},
    };

    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        char *got = printed(print_cut, lines[i].html);

        assert_string_equal(lines[i].text, got);
        free(got);
    }
}

struct wrapped {
    struct display_layout layout;
    const char *text;
};

static void
print_wrapped(FILE *out, const void *arg)
{
    const struct wrapped *w = arg;

    display_wrap(out, mb_slice_cstr(w->text), &w->layout);
}

static void
test_wrap_then_lines_fit(void **state)
{
    static const struct wrapped one = {
        {.indent = 2, .width = 24}, "the quick  brown fox jumps\nover"};
    static const struct wrapped two = {
        {.indent = 2, .width = 24, .max_lines = 1},
        "the quick brown fox jumps"};
    static const struct wrapped wide = {{.indent = 0, .width = 20},
        "0123456789012345678901234567890123456789012"};
    char *got = printed(print_wrapped, &one);

    MB_TEST_UNUSED(state);
    assert_string_equal("  the quick brown fox\n  jumps\n  over\n", got);
    free(got);
    got = printed(print_wrapped, &two);
    assert_string_equal("  the quick brown fox ...\n", got);
    free(got);
    got = printed(print_wrapped, &wide);
    assert_string_equal(
        "01234567890123456789\n01234567890123456789\n012\n", got);
    free(got);
}

static void
test_wrap_with_marks_then_query_words_are_bold(void **state)
{
    struct display_words words;
    struct wrapped w = {{.width = 60}, "He fears nothing; the FEAR itself."};
    char *got;

    MB_TEST_UNUSED(state);
    display_words_of(&words, mb_slice_cstr("What is the fear?"));
    w.layout.marks = &words;
    got = printed(print_wrapped, &w);
    assert_string_equal("He \033[1mfears\033[0m nothing; the "
                        "\033[1mFEAR\033[0m itself.\n",
        got);
    free(got);
}

/* ---- figures, tables ---- */

static void
test_figures_then_as_people_read(void **state)
{
    char s[DISPLAY_FIGURE];

    MB_TEST_UNUSED(state);
    assert_string_equal("0 B", show_bytes(s, 0));
    assert_string_equal("999 B", show_bytes(s, 999));
    assert_string_equal("1.0 kB", show_bytes(s, 1000));
    assert_string_equal("1.0 MB", show_bytes(s, 999999));
    assert_string_equal("140.1 MB", show_bytes(s, 140123456));
    assert_string_equal("18446.7 PB", show_bytes(s, UINT64_MAX));
    assert_string_equal("0", show_count(s, 0));
    assert_string_equal("999", show_count(s, 999));
    assert_string_equal("1,000", show_count(s, 1000));
    assert_string_equal(
        "18,446,744,073,709,551,615", show_count(s, UINT64_MAX));
    assert_string_equal("0:05", show_seconds(s, 5));
    assert_string_equal("2:05", show_seconds(s, 125));
    assert_string_equal("1:02:05", show_seconds(s, 3725));
    assert_string_equal("-:--", show_seconds(s, -1));
    assert_string_equal("2001-09-09 01:46:40", show_time(s, 1000000000000u));
}

static void
print_table(FILE *out, const void *arg)
{
    static const char *const heads[] = {"name", "n", "what"};
    struct table *t = table_new(3, heads, "lrl");

    MB_TEST_UNUSED(arg);
    assert_non_null(t);
    table_cell(t, "a");
    table_cell_count(t, 1234);
    table_cell(t, "text that is cut");
    table_cell_slice(t, mb_slice_cstr("\xe6\xbc\xa2"));
    table_cell(t, "%d", 5);
    table_cell(t, "x");
    table_print(t, out, 24);
    table_free(t);
}

static void
test_table_then_aligned(void **state)
{
    char *got = printed(print_table, NULL);

    MB_TEST_UNUSED(state);
    assert_string_equal("name      n  what\n"
                        "a     1,234  text tha...\n"
                        "\xe6\xbc\xa2        5  x\n",
        got);
    free(got);
}

/* ---- progress ---- */

static void
print_progress(FILE *out, const void *arg)
{
    struct progress p;

    // A memory stream is no terminal, and ten seconds have not passed.
    MB_TEST_UNUSED(arg);
    progress_init(&p, out, false);
    progress_show(&p, 0.5, "half");
    assert_true(progress_left(&p, 0.5) < 0);
    p.shown_ns = 0;
    p.rate_ns -= 1000000000u;
    progress_show(&p, 0.5, "half");
    assert_true(progress_left(&p, 0.5) > 0.9 && progress_left(&p, 0.5) < 1.1);
    p.shown_ns = 0;
    progress_show(&p, -1, "unknown");
    progress_clear(&p);
    progress_init(&p, out, true);
    p.shown_ns = 0;
    progress_show(&p, 0.5, "quiet");
}

static void
test_progress_without_terminal_then_plain_lines(void **state)
{
    char *got = printed(print_progress, NULL);

    MB_TEST_UNUSED(state);
    assert_string_equal(" 50%  half  0:01 left\nunknown\n", got);
    free(got);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_html_then_readable_text),
        cmocka_unit_test(test_html_title_then_apart_from_the_text),
        cmocka_unit_test(test_html_in_latin1_when_declared_then_converted),
        cmocka_unit_test(test_html_of_random_markup_then_no_error),
        cmocka_unit_test(test_columns_then_wide_and_combining_counted),
        cmocka_unit_test(test_print_then_harmless_and_cut),
        cmocka_unit_test(test_wrap_then_lines_fit),
        cmocka_unit_test(test_wrap_with_marks_then_query_words_are_bold),
        cmocka_unit_test(test_figures_then_as_people_read),
        cmocka_unit_test(test_table_then_aligned),
        cmocka_unit_test(test_progress_without_terminal_then_plain_lines),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
