/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_daemon_config.c - the table of settings and what it makes. */
#include "mb_test.h"

#include "config.h"

static struct mb_buffer
written(const struct config *cfg, bool sample)
{
    struct mb_buffer out;

    mb_buffer_init(&out, 1u << 20);
    assert_ok(config_write(cfg, sample, &out));
    return out;
}

static void
test_sample_when_written_then_equals_the_file(void **state)
{
    MB_TEST_UNUSED(state);
    struct config *cfg = config_new();
    struct mb_buffer out = written(cfg, true);
    size_t size;
    uint8_t *file =
        mb_test_read_file(MB_SOURCE_DIR "/daemon/membankd.conf", &size);

    assert_true(mb_slice_equal(mb_buffer_slice(&out), mb_slice_of(file, size)));
    mb_free(file);
    mb_buffer_fini(&out);
    config_free(cfg);
}

static void
test_print_when_read_back_then_same(void **state)
{
    MB_TEST_UNUSED(state);
    struct config *a = config_new();
    struct config *b = config_new();

    assert_ok(config_set(a, "store", "/x y", NULL));
    assert_ok(config_set(a, "listen", "ipc:///a", NULL));
    assert_ok(config_set(a, "listen", "tcp://127.0.0.1:1", NULL));
    assert_ok(config_set(a, "ipc_mode", "0660", NULL));
    assert_ok(config_set(a, "log_level", "debug", NULL));
    assert_ok(config_set(a, "max_message_bytes", "3M", NULL));
    assert_ok(config_set(a, "recall_target", "0.9", NULL));
    struct mb_buffer x = written(a, false);
    assert_ok(config_read_text(b, "x", mb_buffer_slice(&x), NULL));
    struct mb_buffer y = written(b, false);
    assert_true(mb_slice_equal(mb_buffer_slice(&x), mb_buffer_slice(&y)));
    assert_int_equal(3u << 20, b->max_message_bytes);
    assert_int_equal(2, b->listen.n);
    mb_buffer_fini(&x);
    mb_buffer_fini(&y);
    config_free(a);
    config_free(b);
}

static void
test_text_when_bad_then_line_is_named(void **state)
{
    MB_TEST_UNUSED(state);

    static const struct {
        const char *text;
        const char *cause;
    } bad[] = {
        {"\n# c\nstor = x\n", "f:3: no such option: stor (nearest: store)"},
        {"max_k = 0\n", "f:1: max_k: 0 is not a whole number from 1"},
        {"max_k = -1\n", "f:1: max_k"},
        {"max_k = 1x\n", "f:1: max_k"},
        {"max_k = 99999999999999999999\n", "f:1: max_k"},
        {"refit = maybe\n", "refit: maybe is not yes or no"},
        {"log_level = loud\n", "not one of err|warn|info|debug"},
        {"recall_target = nan\n", "recall_target"},
        {"ipc_mode = 0999\n", "octal"},
        {"store\n", "f:1: a line is"},
        {"= x\n", "f:1: a line is"},
    };

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct config *cfg = config_new();
        struct mb_error err = {0};

        assert_status(MB_ERR_BAD_ARG,
            config_read_text(cfg, "f", mb_slice_cstr(bad[i].text), &err), &err);
        assert_error_has(err, bad[i].cause);
        config_free(cfg);
    }
}

static void
test_flags_when_parsed_then_stand_above_defaults(void **state)
{
    MB_TEST_UNUSED(state);
    char *argv[] = {"membankd", "--store", "s", "-l", "tcp://0.0.0.0:1",
        "--insecure", "--refit=no", "--max-k", "7"};
    struct config_program *p = config_program_new();
    struct config *cfg = config_new();
    struct mb_cli *cli = NULL;

    assert_ok(mb_cli_parse(&p->program, 9, argv, &cli, NULL));
    assert_ok(config_read_flags(cfg, cli, NULL));
    assert_ok(config_check(cfg, NULL));
    assert_string_equal("s", cfg->store);
    assert_true(cfg->insecure);
    assert_false(cfg->refit);
    assert_int_equal(7, cfg->max_k);
    mb_cli_free(cli);
    config_free(cfg);
    config_program_free(p);
}

static void
test_check_when_open_to_a_network_then_denied(void **state)
{
    MB_TEST_UNUSED(state);
    struct config *cfg = config_new();
    struct mb_error err = {0};

    assert_status(MB_ERR_BAD_ARG, config_check(cfg, &err), &err);
    assert_error_has(err, "--store");
    assert_ok(config_set(cfg, "store", "s", NULL));
    assert_ok(config_set(cfg, "listen", "tcp://*:7777", NULL));
    assert_status(MB_ERR_DENIED, config_check(cfg, &err), &err);
    assert_error_has(err, "--insecure");
    cfg->insecure = true;
    assert_ok(config_check(cfg, &err));
    cfg->insecure = false;
    assert_ok(config_set(cfg, "curve_secret_key_file", "k", NULL));
    assert_ok(config_check(cfg, &err));
    assert_false(config_endpoint_is_open("tcp://127.0.0.1:5"));
    assert_false(config_endpoint_is_open("tcp://127.1.2.3:*"));
    assert_false(config_endpoint_is_open("tcp://[::1]:5"));
    assert_false(config_endpoint_is_open("ipc:///x"));
    assert_true(config_endpoint_is_open("tcp://10.0.0.1:5"));
    assert_true(config_endpoint_is_open("tcp://127.0.0.1.example.org:5"));
    assert_true(config_endpoint_is_open("tcp://127.0.0.1"));
    config_free(cfg);
}

static void
test_reload_when_not_live_then_counted(void **state)
{
    MB_TEST_UNUSED(state);
    struct config *a = config_new();
    struct config *b = config_new();
    size_t n_pending;

    assert_ok(config_set(b, "max_k", "5", NULL));
    assert_ok(config_set(b, "workers", "9", NULL));
    struct config *c = config_reload(a, b, &n_pending);
    assert_int_equal(1, n_pending);
    assert_int_equal(5, c->max_k);
    assert_int_equal(a->workers, c->workers);
    config_free(a);
    config_free(b);
    config_free(c);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sample_when_written_then_equals_the_file),
        cmocka_unit_test(test_print_when_read_back_then_same),
        cmocka_unit_test(test_text_when_bad_then_line_is_named),
        cmocka_unit_test(test_flags_when_parsed_then_stand_above_defaults),
        cmocka_unit_test(test_check_when_open_to_a_network_then_denied),
        cmocka_unit_test(test_reload_when_not_live_then_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
