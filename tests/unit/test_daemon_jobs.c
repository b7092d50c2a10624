/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_daemon_jobs.c - what of a collection waits for a refit. */
#include "mb_test.h"

#include "config.h"
#include "jobs.h"

/* An LSA collection; fitted 0: no generation is served. */
static struct mb_collection
collection(uint64_t n_segments, uint64_t fitted, uint64_t n_vectors)
{
    struct mb_collection c = {
        .settings = {.embedding = MB_EMBED_LSA},
        .n_segments = n_segments,
        .fitted_segments = fitted,
        .n_vectors = n_vectors,
        .generation = fitted > 0 ? 1 : 0,
    };

    return c;
}

static void
test_pending_when_first_fit_is_due_then_all(void **state)
{
    MB_TEST_UNUSED(state);
    struct config *cfg = config_new();
    struct mb_collection c = collection(64, 0, 0);

    assert_int_equal(64, cfg->refit_min_segments);
    assert_int_equal(64, jobs_pending(cfg, &c));
    config_free(cfg);
}

static void
test_pending_when_too_few_to_fit_then_none(void **state)
{
    MB_TEST_UNUSED(state);
    struct config *cfg = config_new();
    struct mb_collection c = collection(63, 0, 0);

    assert_int_equal(0, jobs_pending(cfg, &c));
    config_free(cfg);
}

static void
test_pending_when_embedding_knows_no_term_then_none(void **state)
{
    MB_TEST_UNUSED(state);
    struct config *cfg = config_new();
    struct mb_collection c = collection(101, 100, 100);

    assert_int_equal(0, jobs_pending(cfg, &c));
    config_free(cfg);
}

static void
test_pending_when_doubled_then_those_without_vector(void **state)
{
    MB_TEST_UNUSED(state);
    struct config *cfg = config_new();
    struct mb_collection c = collection(200, 100, 190);

    assert_int_equal(10, jobs_pending(cfg, &c));
    c.fitted_segments = 200; // the refit did not know them either
    assert_int_equal(0, jobs_pending(cfg, &c));
    config_free(cfg);
}

static void
test_pending_when_refits_are_off_then_none(void **state)
{
    MB_TEST_UNUSED(state);
    struct config *cfg = config_new();
    struct mb_collection c = collection(200, 0, 0);

    assert_ok(config_set(cfg, "refit", "no", NULL));
    assert_int_equal(0, jobs_pending(cfg, &c));
    config_free(cfg);
}

static void
test_pending_when_clients_send_vectors_then_none(void **state)
{
    MB_TEST_UNUSED(state);
    struct config *cfg = config_new();
    struct mb_collection c = collection(3 * cfg->flat_below, 1, 0);

    c.settings.embedding = MB_EMBED_CLIENT;
    c.n_vectors = 2 * cfg->flat_below; // a tree is due, yet all are found
    assert_int_equal(0, jobs_pending(cfg, &c));
    config_free(cfg);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pending_when_first_fit_is_due_then_all),
        cmocka_unit_test(test_pending_when_too_few_to_fit_then_none),
        cmocka_unit_test(test_pending_when_embedding_knows_no_term_then_none),
        cmocka_unit_test(test_pending_when_doubled_then_those_without_vector),
        cmocka_unit_test(test_pending_when_refits_are_off_then_none),
        cmocka_unit_test(test_pending_when_clients_send_vectors_then_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
