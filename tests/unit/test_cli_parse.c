/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_cli_parse.c - options, values, and what a slip is told. */
#include "mb_test.h"

#include "mb_cli.h"

static const struct mb_cli_option options[] = {
    {"store", 's', "DIR", false, "where all is kept", NULL},
    {"listen", 'l', "ENDPOINT", true, "where to listen", NULL},
    {"top", 'k', "N", false, "how many", "10"},
    {"weight", 'w', "X", false, "of the titles", "0.5"},
    {"verbose", 'v', NULL, false, "say more", NULL},
    {"json", 0, NULL, false, "for machines", NULL},
    {NULL, 0, NULL, false, NULL, NULL},
};
static const struct mb_cli_example examples[] = {
    {"membank-try x", "tries x"}, {NULL, NULL}};
static const struct mb_cli_program program = {.name = "membank-try",
    .summary = "try it",
    .usage = "[OPTION]... TEXT",
    .description = "Tries.",
    .options = options,
    .examples = examples};

#define MAX_ARGS 16

/* Parse words up to NULL. */
static mb_status
parse(struct mb_cli **cli, struct mb_error *err, const char *const *words)
{
    static char *argv[MAX_ARGS];
    int argc = 1;

    argv[0] = (char *)(uintptr_t) "membank-try";
    for (; words[argc - 1] != NULL; argc++) {
        argv[argc] = (char *)(uintptr_t)words[argc - 1];
    }
    argv[argc] = NULL;
    return mb_cli_parse(&program, argc, argv, cli, err);
}

#define PARSE(cli, err, ...)                                                   \
    parse((cli), (err), (const char *const[]){__VA_ARGS__, NULL})

static void
test_values_in_all_forms_then_found(void **state)
{
    struct mb_cli *cli = NULL;
    struct mb_error err;

    MB_TEST_UNUSED(state);
    assert_status(MB_OK,
        PARSE(&cli, &err, "--store", "a", "-k5", "--weight=2", "-l", "x",
            "--listen=y", "-v", "text", "-", "--", "--json"),
        &err);
    assert_string_equal("a", mb_cli_str(cli, "store"));
    assert_string_equal("5", mb_cli_str(cli, "top"));
    assert_string_equal("2", mb_cli_str(cli, "weight"));
    assert_int_equal(2, mb_cli_count(cli, "listen"));
    assert_string_equal("x", mb_cli_nth(cli, "listen", 0));
    assert_string_equal("y", mb_cli_nth(cli, "listen", 1));
    assert_null(mb_cli_nth(cli, "listen", 2));
    assert_true(mb_cli_has(cli, "verbose"));
    assert_false(mb_cli_has(cli, "json"));
    assert_int_equal(3, mb_cli_n_args(cli));
    assert_string_equal("text", mb_cli_arg(cli, 0));
    assert_string_equal("-", mb_cli_arg(cli, 1));
    assert_string_equal("--json", mb_cli_arg(cli, 2));
    assert_null(mb_cli_arg(cli, 3));
    mb_cli_free(cli);
}

static void
test_value_when_absent_then_default(void **state)
{
    struct mb_cli *cli = NULL;
    struct mb_error err;

    MB_TEST_UNUSED(state);
    assert_status(MB_OK, PARSE(&cli, &err, "x"), &err);
    assert_string_equal("10", mb_cli_str(cli, "top"));
    assert_null(mb_cli_str(cli, "store"));
    assert_false(mb_cli_has(cli, "top"));
    mb_cli_free(cli);
}

static void
test_value_when_given_twice_then_last(void **state)
{
    struct mb_cli *cli = NULL;
    struct mb_error err;

    MB_TEST_UNUSED(state);
    assert_status(MB_OK, PARSE(&cli, &err, "-k", "1", "-k", "2"), &err);
    assert_string_equal("2", mb_cli_str(cli, "top"));
    mb_cli_free(cli);
}

static void
test_letters_when_joined_then_flags_and_value(void **state)
{
    struct mb_cli *cli = NULL;
    struct mb_error err;

    MB_TEST_UNUSED(state);
    assert_status(MB_OK, PARSE(&cli, &err, "-vvk7"), &err);
    assert_int_equal(2, mb_cli_count(cli, "verbose"));
    assert_string_equal("7", mb_cli_str(cli, "top"));
    mb_cli_free(cli);
}

struct slip {
    const char *words[4];
    const char *says;
};

static void
test_slip_then_bad_arg_that_helps(void **state)
{
    static const struct slip slips[] = {
        {{"--stroe", "x"}, "no such option: --stroe; did you mean --store?"},
        {{"--stor=x"}, "did you mean --store?"},
        {{"--jsn"}, "did you mean --json?"},
        {{"--hepl"}, "did you mean --help?"},
        {{"-top", "5"}, "no such option: -top; did you mean --top?"},
        {{"--zzzzzzzz"}, "no such option: --zzzzzzzz"},
        {{"-x"}, "no such option: -x"},
        {{"--top"}, "option --top needs a value: N"},
        {{"-k"}, "option -k (--top) needs a value: N"},
        {{"--json=1"}, "option --json takes no value"},
    };

    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < sizeof slips / sizeof slips[0]; i++) {
        struct mb_cli *cli = NULL;
        struct mb_error err;

        assert_status(MB_ERR_BAD_ARG, parse(&cli, &err, slips[i].words), NULL);
        assert_null(cli);
        assert_error_has(err, slips[i].says);
    }
}

static void
test_unknown_when_nothing_is_near_then_no_suggestion(void **state)
{
    struct mb_cli *cli = NULL;
    struct mb_error err;

    MB_TEST_UNUSED(state);
    assert_status(MB_ERR_BAD_ARG, PARSE(&cli, &err, "--zzzzzzzz"), NULL);
    assert_null(strstr(err.text, "did you mean"));
}

static mb_status
number(const char *text, uint64_t *out, struct mb_error *err)
{
    struct mb_cli *cli = NULL;
    mb_status st;

    assert_status(MB_OK, PARSE(&cli, err, "--top", text), err);
    st = mb_cli_u64(cli, "top", 1, (uint64_t)1 << 40, out, err);
    mb_cli_free(cli);
    return st;
}

static void
test_u64_with_suffix_then_multiplied(void **state)
{
    struct mb_error err;
    uint64_t v = 0;

    MB_TEST_UNUSED(state);
    assert_status(MB_OK, number("7", &v, &err), &err);
    assert_int_equal(7, v);
    assert_status(MB_OK, number("64k", &v, &err), &err);
    assert_int_equal(65536, v);
    assert_status(MB_OK, number("2M", &v, &err), &err);
    assert_int_equal(2097152, v);
    assert_status(MB_OK, number("3G", &v, &err), &err);
    assert_int_equal((uint64_t)3 << 30, v);
}

static void
test_u64_when_wrong_then_bad_arg_and_untouched(void **state)
{
    static const char *const wrong[] = {"", "-1", "+1", " 1", "1.5", "x", "1kk",
        "0", "2000G", "99999999999999999999999", "18446744073709551615G"};

    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct mb_error err;
        uint64_t v = 42;

        assert_status(MB_ERR_BAD_ARG, number(wrong[i], &v, &err), NULL);
        assert_int_equal(42, v);
        assert_error_has(err, "--top");
    }
}

static void
test_u64_when_absent_without_default_then_untouched(void **state)
{
    struct mb_cli *cli = NULL;
    struct mb_error err;
    uint64_t v = 42;

    MB_TEST_UNUSED(state);
    assert_status(MB_OK, PARSE(&cli, &err, "x"), &err);
    assert_status(MB_OK, mb_cli_u64(cli, "store", 0, 1, &v, &err), &err);
    assert_int_equal(42, v);
    assert_status(MB_OK, mb_cli_u64(cli, "top", 0, 100, &v, &err), &err);
    assert_int_equal(10, v);
    mb_cli_free(cli);
}

static void
test_double_in_and_out_of_range(void **state)
{
    static const char *const wrong[] = {
        "", "x", "1x", "nan", "inf", "-0.1", "9"};
    struct mb_cli *cli = NULL;
    struct mb_error err;
    double v = 7;

    MB_TEST_UNUSED(state);
    assert_status(MB_OK, PARSE(&cli, &err, "-w", "0.25"), &err);
    assert_status(MB_OK, mb_cli_double(cli, "weight", 0, 1, &v, &err), &err);
    assert_true(v == 0.25);
    mb_cli_free(cli);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_status(MB_OK, PARSE(&cli, &err, "-w", wrong[i]), &err);
        assert_status(
            MB_ERR_BAD_ARG, mb_cli_double(cli, "weight", 0, 1, &v, &err), NULL);
        assert_true(v == 0.25);
        mb_cli_free(cli);
    }
}

static void
test_default_endpoint_from_environment(void **state)
{
    char out[256];

    MB_TEST_UNUSED(state);
    assert_int_equal(0, setenv("XDG_RUNTIME_DIR", "/run/x", 1));
    mb_cli_default_endpoint(out, sizeof out);
    assert_string_equal("ipc:///run/x/membank.sock", out);
    assert_int_equal(0, unsetenv("XDG_RUNTIME_DIR"));
    mb_cli_default_endpoint(out, sizeof out);
    assert_non_null(strstr(out, "ipc:///tmp/membank-"));
}

static void
test_color_when_no_terminal_or_no_color_then_none(void **state)
{
    int fds[2];

    MB_TEST_UNUSED(state);
    assert_int_equal(0, pipe(fds));
    assert_int_equal(0, setenv("TERM", "xterm", 1));
    assert_false(mb_cli_has_color(fds[1]));
    assert_int_equal(80, mb_cli_width(fds[1]));
    close(fds[0]);
    close(fds[1]);
}

static mb_status
parse_many(void *arg)
{
    struct mb_cli *cli = NULL;
    struct mb_error err;
    mb_status st = PARSE(&cli, &err, "-k", "1", "a", "b");

    MB_TEST_UNUSED(arg);
    mb_cli_free(cli);
    return st;
}

static void
test_parse_when_memory_is_short_then_no_memory(void **state)
{
    MB_TEST_UNUSED(state);
    mb_test_each_allocation(parse_many, NULL);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_in_all_forms_then_found),
        cmocka_unit_test(test_value_when_absent_then_default),
        cmocka_unit_test(test_value_when_given_twice_then_last),
        cmocka_unit_test(test_letters_when_joined_then_flags_and_value),
        cmocka_unit_test(test_slip_then_bad_arg_that_helps),
        cmocka_unit_test(test_unknown_when_nothing_is_near_then_no_suggestion),
        cmocka_unit_test(test_u64_with_suffix_then_multiplied),
        cmocka_unit_test(test_u64_when_wrong_then_bad_arg_and_untouched),
        cmocka_unit_test(test_u64_when_absent_without_default_then_untouched),
        cmocka_unit_test(test_double_in_and_out_of_range),
        cmocka_unit_test(test_default_endpoint_from_environment),
        cmocka_unit_test(test_color_when_no_terminal_or_no_color_then_none),
        cmocka_unit_test(test_parse_when_memory_is_short_then_no_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
