/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_cli_help.c - help and man page say the same, and fit. */
#include "mb_test.h"

#include <ctype.h>

#include "cli.h"

static const struct mb_cli_option options[] = {
    {"store", 's', "DIR", false, "folder of the store, made if it is absent",
        NULL},
    {"listen", 'l', "ENDPOINT", true,
        "where to listen, a text that is long enough to be wrapped because it "
        "goes on and on",
        "ipc:///run/user/1000/membank.sock"},
    {"a-rather-long-option-name", 0, "VALUE", false, "it's 'quoted' \\ so",
        NULL},
    {NULL, 0, NULL, false, NULL, NULL},
};
static const struct mb_cli_example examples[] = {
    {"tryd --store x", "starts it"}, {NULL, NULL}};
static const struct mb_cli_program program = {.name = "tryd",
    .summary = "a daemon that tries",
    .usage = "--store DIR [OPTION]...",
    .description = "First paragraph, with enough words that it has to be "
                   "wrapped at the right margin of the page.\n\n"
                   "  kept   as it   is\n  second line\n\n"
                   ".dots at the start.",
    .options = options,
    .examples = examples};

static char *
written(void (*write)(FILE *out))
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);

    assert_non_null(out);
    write(out);
    assert_int_equal(0, fclose(out));
    return text;
}

static void
write_help(FILE *out)
{
    cli_write_help(&program, out, false);
}

static void
write_man(FILE *out)
{
    cli_write_man(&program, out);
}

static void
test_help_then_at_most_80_columns(void **state)
{
    char *text = written(write_help);
    size_t column = 0;

    MB_TEST_UNUSED(state);
    for (const char *c = text; *c != 0; c++) {
        column = *c == '\n' ? 0 : column + 1;
        assert_true(column <= 80);
    }
    assert_non_null(strstr(text, "Usage: tryd --store DIR [OPTION]...\n"));
    assert_non_null(strstr(text, "  kept   as it   is\n  second line\n"));
    assert_non_null(strstr(text, "  -s, --store DIR"));
    assert_non_null(strstr(text, "  -h, --help"));
    assert_null(strchr(text, '\033'));
    free(text);
}

/* Words of a text with roff's marks taken out. */
static char *
plain_words(const char *text)
{
    char *out = malloc(strlen(text) + 2);
    size_t n = 0;

    assert_non_null(out);
    for (const char *c = text; *c != 0; c++) {
        if (c[0] == '\\' && c[1] == 'f') {
            c += 2;
        } else if (c[0] == '\\' && c[1] == '&') {
            c += 1;
        } else if (strncmp(c, "\\(aq", 4) == 0) {
            out[n++] = '\'';
            c += 3;
        } else if (c[0] == '\\' && c[1] == 'e') {
            out[n++] = '\\';
            c += 1;
        } else if (c[0] == '\\' && c[1] == '-') {
            out[n++] = '-';
            c += 1;
        } else if (isspace((unsigned char)*c) && n > 0 && out[n - 1] == ' ') {
            continue;
        } else {
            out[n++] = isspace((unsigned char)*c) ? ' ' : *c;
        }
    }
    out[n] = 0;
    return out;
}

static void
test_man_then_same_words_as_help(void **state)
{
    char *help_text = written(write_help);
    char *man_text = written(write_man);
    char *help = plain_words(help_text);
    char *man = plain_words(man_text);
    char pair[200];

    MB_TEST_UNUSED(state);
    assert_non_null(strstr(man_text, ".TH TRYD 8 "));
    assert_non_null(strstr(man_text, "\n\\&.dots at the start."));
    assert_non_null(strstr(man, program.summary));
    for (const struct mb_cli_option *o = options; o->name != NULL; o++) {
        assert_non_null(strstr(help, o->help));
        assert_non_null(strstr(man, o->help));
        snprintf(pair, sizeof pair, "--%s %s", o->name, o->value);
        assert_non_null(strstr(help, pair));
        assert_non_null(strstr(man, pair));
        if (o->def != NULL) {
            snprintf(pair, sizeof pair, "(default: %s)", o->def);
            assert_non_null(strstr(help, pair));
            assert_non_null(strstr(man, pair));
        }
    }
    assert_non_null(strstr(help, "tryd --store x starts it"));
    assert_non_null(strstr(man, "tryd --store x starts it"));
    assert_non_null(strstr(man, "0 success, 1 failure, 2 wrong usage."));
    assert_non_null(strstr(help, "0 success, 1 failure, 2 wrong usage."));
    free(help_text);
    free(man_text);
    free(help);
    free(man);
}

static void
test_man_then_no_line_is_an_unknown_request(void **state)
{
    static const char *const known[] = {
        ".TH ", ".SH ", ".TP", ".PP", ".nf", ".fi"};
    char *man = written(write_man);

    MB_TEST_UNUSED(state);
    for (char *line = man; line != NULL && *line != 0;) {
        char *end = strchr(line, '\n');
        bool ok = line[0] != '.' && line[0] != '\'';

        for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
            ok = ok || strncmp(line, known[i], strlen(known[i])) == 0;
        }
        if (!ok)
            fail_msg("unknown request: %.40s", line);
        line = end != NULL ? end + 1 : NULL;
    }
    free(man);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_help_then_at_most_80_columns),
        cmocka_unit_test(test_man_then_same_words_as_help),
        cmocka_unit_test(test_man_then_no_line_is_an_unknown_request),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
