/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_tools_source.c - files and lines become documents; what is
 * bad is reported with its place, and the rest goes on. */
#include "mb_test.h"

#include "json.h"
#include "source.h"

struct fixture {
    struct mb_test_dir dir;
    struct walk_list files;
    struct source *source;
    struct mb_buffer out;
};

static void
begin(struct fixture *f)
{
    f->dir = mb_test_dir_begin();
    f->source = NULL;
    walk_list_init(&f->files);
    mb_buffer_init(&f->out, 1 << 24);
}

static void
end(struct fixture *f)
{
    source_free(f->source);
    walk_list_fini(&f->files);
    mb_buffer_fini(&f->out);
    mb_test_dir_end(&f->dir);
}

static void
add_text(struct fixture *f, const char *name, const char *text)
{
    char path[MB_TEST_PATH];
    struct mb_error err;

    mb_test_write_file(mb_test_path(&f->dir, name, path), text, strlen(text));
    assert_status(MB_OK, walk_add(&f->files, path, &err), &err);
}

/* All documents as JSON, and "!cause" for each that was refused, a line each.
 * The folder's path becomes D. */
static const char *
documents(struct fixture *f, bool repair)
{
    struct source_options opt = {.repair = repair};
    struct json_writer w;
    struct mb_error err;
    char *at;
    bool more = true;

    assert_status(MB_OK, source_new(&f->files, &opt, &f->source, &err), &err);
    for (;;) {
        struct source_document doc;
        mb_status st = source_next(f->source, &doc, &more, &err);

        if (!more)
            break;
        json_writer_init(&w, &f->out);
        if (st == MB_OK)
            json_msgpack(&w, doc.msgpack);
        else
            assert_ok(mb_buffer_printf(&f->out, "!%s", err.text));
        assert_ok(mb_buffer_append(&f->out, "\n", 1));
    }
    if (source_bytes_total(f->source) > 0)
        assert_int_equal(
            source_bytes_total(f->source), source_bytes_read(f->source));
    assert_ok(mb_buffer_append(&f->out, "", 1));
    while ((at = strstr((char *)f->out.data, f->dir.path)) != NULL) {
        size_t n = strlen(f->dir.path);

        *at = 'D';
        memmove(at + 1, at + n, strlen(at + n) + 1);
    }
    return (const char *)f->out.data;
}

static void
test_lines_then_documents(void **state)
{
    struct fixture f;

    MB_TEST_UNUSED(state);
    begin(&f);
    add_text(&f, "a.jsonl",
        "{\"id\":\"1\",\"title\":\"T\",\"text\":\"x\",\"meta\":{\"y\":1}}\n"
        "\n"
        "{\"_id\":7,\"text\":\"\"}\n"
        "{\"text\":\"no id\",\"title\":null,\"meta\":null}\n"
        "{\"id\":\"2\",\"text\":\"v\",\"vector\":[1,0.5]}\n");
    assert_string_equal(
        "{\"id\":\"1\",\"title\":\"T\",\"text\":\"x\",\"meta\":{\"y\":1}}\n"
        "{\"id\":\"7\",\"text\":\"\"}\n"
        "{\"id\":\"a.jsonl:4\",\"text\":\"no id\"}\n"
        "{\"id\":\"2\",\"text\":\"v\",\"vector\":\"0000803f0000003f\"}\n",
        documents(&f, false));
    end(&f);
}

static void
test_other_keys_then_in_meta(void **state)
{
    struct fixture f;

    MB_TEST_UNUSED(state);
    begin(&f);
    add_text(&f, "a.jsonl",
        "{\"id\":\"1\",\"text\":\"x\",\"year\":1913,\"tags\":[\"a\",\"b\"]}\n"
        "{\"id\":\"2\",\"text\":\"x\",\"year\":1913,\"meta\":{\"year\":2,"
        "\"z\":true}}\n"
        "{\"id\":\"3\",\"_id\":\"o\",\"text\":\"x\",\"metadata\":{\"z\":1}}\n");
    assert_string_equal(
        "{\"id\":\"1\",\"text\":\"x\",\"meta\":{\"year\":1913,"
        "\"tags\":[\"a\",\"b\"]}}\n"
        "{\"id\":\"2\",\"text\":\"x\",\"meta\":{\"year\":2,\"z\":true}}\n"
        "{\"id\":\"3\",\"text\":\"x\",\"meta\":{\"z\":1,\"_id\":\"o\"}}\n",
        documents(&f, false));
    end(&f);
}

static void
test_bad_lines_then_reported_and_passed(void **state)
{
    struct fixture f;

    MB_TEST_UNUSED(state);
    begin(&f);
    add_text(&f, "a.jsonl",
        "{\"id\":\"1\",\"text\":\"good\"}\n"
        "{\"id\":\"2\",\"text\":\n"
        "[1]\n"
        "{\"id\":\"3\"}\n"
        "{\"id\":\"4\",\"text\":5}\n"
        "{\"id\":1.5,\"text\":\"x\"}\n"
        "{\"id\":\"5\",\"text\":\"x\",\"meta\":[]}\n"
        "{\"id\":\"6\",\"text\":\"x\",\"title\":1}\n"
        "{\"id\":\"7\",\"text\":\"\xff\"}\n"
        "{\"id\":\"8\",\"text\":\"x\",\"vector\":[\"y\"]}\n"
        "{\"id\":\"9\",\"text\":\"good too\"}\n");
    const char *got = documents(&f, false);

    assert_non_null(strstr(got, "{\"id\":\"1\",\"text\":\"good\"}\n"));
    assert_non_null(strstr(got, "!D/a.jsonl, line 2: not JSON: "));
    assert_non_null(strstr(got, "!D/a.jsonl, line 3: not a JSON object\n"));
    assert_non_null(strstr(got, "line 4: the object has no \"text\"\n"));
    assert_non_null(strstr(got, "line 5: \"text\" is not a string\n"));
    assert_non_null(strstr(got, "line 6: the id is neither"));
    assert_non_null(strstr(got, "line 7: \"meta\" is not an object\n"));
    assert_non_null(strstr(got, "line 8: \"title\" is not a string\n"));
    assert_non_null(strstr(got, "line 9: byte 19 is not UTF-8; --repair"));
    assert_non_null(strstr(got, "line 10: "));
    assert_non_null(strstr(got, "{\"id\":\"9\",\"text\":\"good too\"}\n"));
    end(&f);
}

static void
test_bad_utf8_when_repaired_then_replaced(void **state)
{
    struct fixture f;

    MB_TEST_UNUSED(state);
    begin(&f);
    add_text(&f, "a.jsonl",
        "{\"id\":\"7\",\"text\":\"a\xff"
        "b\\ud800\"}\n");
    add_text(&f, "b.txt", "caf\xe9");
    assert_string_equal("{\"id\":\"7\",\"text\":\"a\xef\xbf\xbd"
                        "b\xef\xbf\xbd"
                        "\"}\n"
                        "{\"id\":\"D/b.txt\",\"title\":\"b\",\"text\":\"caf"
                        "\xef\xbf\xbd\",\"meta\":{\"path\":\"D/b.txt\","
                        "\"format\":\"text\"}}\n",
        documents(&f, true));
    end(&f);
}

static void
test_files_then_title_text_and_format(void **state)
{
    struct fixture f;

    MB_TEST_UNUSED(state);
    begin(&f);
    add_text(&f, "n.txt", "\xEF\xBB\xBFplain\n");
    add_text(&f, "m.md", "\n## Head ##\n\ntext");
    add_text(&f, "s.md", "Under\n=====\ntext");
    add_text(&f, "h.html", "<title>A &amp; B</title><p>one<p>two");
    assert_string_equal(
        "{\"id\":\"D/n.txt\",\"title\":\"n\",\"text\":\"plain\\n\","
        "\"meta\":{\"path\":\"D/n.txt\",\"format\":\"text\"}}\n"
        "{\"id\":\"D/m.md\",\"title\":\"Head\",\"text\":\"\\n## Head "
        "##\\n\\ntext\",\"meta\":{\"path\":\"D/m.md\",\"format\":\"markdown\"}}"
        "\n"
        "{\"id\":\"D/s.md\",\"title\":\"Under\",\"text\":\"Under\\n=====\\ntext"
        "\",\"meta\":{\"path\":\"D/s.md\",\"format\":\"markdown\"}}\n"
        "{\"id\":\"D/h.html\",\"title\":\"A & B\",\"text\":\"one\\n\\ntwo\","
        "\"meta\":{\"path\":\"D/h.html\",\"format\":\"html\"}}\n",
        documents(&f, false));
    end(&f);
}

static void
test_file_that_is_gone_then_reported_and_passed(void **state)
{
    struct fixture f;
    char path[MB_TEST_PATH];

    MB_TEST_UNUSED(state);
    begin(&f);
    add_text(&f, "a.jsonl", "{\"id\":\"1\",\"text\":\"x\"}\n");
    add_text(&f, "b.txt", "x");
    add_text(&f, "c.txt", "y");
    assert_int_equal(0, unlink(mb_test_path(&f.dir, "a.jsonl", path)));
    assert_int_equal(0, unlink(mb_test_path(&f.dir, "b.txt", path)));
    const char *got = documents(&f, false);

    assert_non_null(strstr(got, "!open D/a.jsonl: "));
    assert_non_null(strstr(got, "!open D/b.txt: "));
    assert_non_null(strstr(got, "\"text\":\"y\""));
    end(&f);
}

static void
test_walk_then_sorted_and_only_ours(void **state)
{
    struct mb_test_dir dir = mb_test_dir_begin();
    static const char *const names[] = {"b.txt", "a.MD", "c.html", "x.jsonl",
        "y.c", ".hidden.txt", "sub/z.htm", "sub/deep/q.txt", ".git/r.txt"};
    struct walk_list list;
    struct mb_error err;
    char path[MB_TEST_PATH];

    MB_TEST_UNUSED(state);
    walk_list_init(&list);
    assert_int_equal(0, mkdir(mb_test_path(&dir, "sub", path), 0700));
    assert_int_equal(0, symlink(dir.path, mb_test_path(&dir, "sub/up", path)));
    assert_int_equal(0, mkdir(mb_test_path(&dir, "sub/deep", path), 0700));
    assert_int_equal(0, mkdir(mb_test_path(&dir, ".git", path), 0700));
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        mb_test_write_file(mb_test_path(&dir, names[i], path), "x", 1);
    }
    snprintf(path, sizeof path, "%s//", dir.path);
    assert_status(MB_OK, walk_add(&list, path, &err), &err);
    static const char *const want[] = {
        "a.MD", "b.txt", "c.html", "sub/deep/q.txt", "sub/z.htm"};

    assert_int_equal(5, list.n);
    for (size_t i = 0; i < 5; i++) {
        assert_string_equal(
            mb_test_path(&dir, want[i], path), list.files[i].path);
        assert_int_equal(1, list.files[i].bytes);
    }
    assert_int_equal(WALK_MARKDOWN, list.files[0].kind);
    assert_int_equal(WALK_HTML, list.files[4].kind);
    // A file that is named is taken whatever it is called.
    assert_status(
        MB_OK, walk_add(&list, mb_test_path(&dir, "y.c", path), &err), &err);
    assert_int_equal(WALK_TEXT, list.files[5].kind);
    assert_status(MB_OK,
        walk_add(&list, mb_test_path(&dir, "x.jsonl", path), &err), &err);
    assert_int_equal(WALK_JSONL, list.files[6].kind);
    assert_status(MB_ERR_NOT_FOUND,
        walk_add(&list, mb_test_path(&dir, "none", path), &err), NULL);
    walk_list_fini(&list);
    mb_test_dir_end(&dir);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines_then_documents),
        cmocka_unit_test(test_other_keys_then_in_meta),
        cmocka_unit_test(test_bad_lines_then_reported_and_passed),
        cmocka_unit_test(test_bad_utf8_when_repaired_then_replaced),
        cmocka_unit_test(test_files_then_title_text_and_format),
        cmocka_unit_test(test_file_that_is_gone_then_reported_and_passed),
        cmocka_unit_test(test_walk_then_sorted_and_only_ours),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
