/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_context.c - contexts give what the trainer's grouped
 * softmax gives where both see the same, and the same bits whatever happened to
 * them in between. */
#include "mb_test_context.h"

#include "landmark.h"

#include <math.h>

#define SEGMENT 252u
#define SMALL   1e-4 /* of logits near 10 in float, sums in another order */

struct rig {
    struct test_model model;
    struct mb_context_memory *memory;
    struct mb_context_source source;
    float nll[TEST_TOKENS];
    float want[TEST_TOKENS];
    float logits[2][TEST_VOCAB];
};

static int
setup(void **state)
{
    struct rig *rig = mb_calloc(1, sizeof *rig);
    assert_non_null(rig);
    test_model_begin(&rig->model, 1100, 2);
    assert_ok(mb_context_memory_new(&rig->memory, NULL));
    rig->source = mb_context_memory_source(rig->memory);
    *state = rig;
    return 0;
}

static int
teardown(void **state)
{
    struct rig *rig = *state;
    mb_context_memory_free(rig->memory);
    test_model_end(&rig->model);
    mb_free(rig);
    return 0;
}

static const struct mb_context_options f32 = {
    .landmark = TEST_LANDMARK,
    .type = MB_CACHE_F32,
};

static struct mb_context *
open_context(struct rig *rig, const struct mb_context_options *options)
{
    struct mb_context *ctx = NULL;
    struct mb_error err;
    assert_status(MB_OK,
        mb_context_new(rig->model.decoder, options, &rig->source, &ctx, &err),
        &err);
    return ctx;
}

static void
assert_near(const float *want, const float *got, size_t n, double limit)
{
    for (size_t i = 0; i < n; i++) {
        if (!(fabs((double)want[i] - (double)got[i]) <= limit))
            fail_msg("at %zu: wanted %.6f, got %.6f", i, (double)want[i],
                (double)got[i]);
    }
}

/* ---- against the trainer ---- */

/* Landmark keys are rounded to fp16 even where all else is float. */
#define ROUNDED_KEYS 4e-3

static void
test_window_when_read_then_losses_are_the_trainers(void **state)
{
    struct rig *rig = *state;
    struct mb_context_options o = f32;
    o.segment_blocks = 10;
    o.modes.k = MB_CONTEXT_NONE;
    struct mb_context *ctx = open_context(rig, &o);
    test_model_judge(&rig->model, 600, rig->want);
    test_read(&rig->model, ctx, 0, 600, MB_ROWS_PREFILL, rig->nll, NULL);
    assert_near(rig->want, rig->nll, 600, ROUNDED_KEYS);
    assert_near(rig->want, rig->nll, 63, SMALL); // no landmark seen yet
    mb_context_free(ctx);
}

/* As long as all blocks are chosen, each at its true place, a
 * context is one long window; in pieces as in whole segments. */
static void
test_context_when_all_blocks_are_chosen_then_as_one_window(void **state)
{
    struct rig *rig = *state;
    static const size_t steps[] = {SEGMENT, 100, 7};
    static const mb_select modes[] = {
        MB_SELECT_ROW_HEAD, MB_SELECT_CHUNK, MB_SELECT_ROW};
    test_model_judge(&rig->model, 2 * SEGMENT, rig->want);
    for (size_t i = 0; i < 3; i++) {
        struct mb_context_options o = f32;
        o.modes.prefill = modes[i];
        struct mb_context *ctx = open_context(rig, &o);
        for (size_t t = 0; t < 2 * SEGMENT; t += steps[i])
            test_read(&rig->model, ctx, t, t + steps[i], MB_ROWS_PREFILL,
                rig->nll, NULL);
        assert_near(rig->want, rig->nll, 2 * SEGMENT, ROUNDED_KEYS);
        assert_int_equal(8, mb_context_n_blocks(ctx));
        mb_context_free(ctx);
    }
}

static double
loss_of(const float *logits, mb_token_id target)
{
    double sum = 0;
    for (size_t i = 0; i < TEST_VOCAB; i++)
        sum += exp((double)logits[i]);
    return log(sum) - (double)logits[target];
}

/* Token by token as in chunks, where each row chooses by itself; also when
 * there is more to choose from than k. */
static void
test_context_when_decoded_then_as_prefilled(void **state)
{
    struct rig *rig = *state;
    static const mb_select modes[] = {
        MB_SELECT_ROW_HEAD, MB_SELECT_ROW_GROUP, MB_SELECT_ROW};
    size_t n = 5 * SEGMENT + 70;
    for (size_t i = 0; i < 3; i++) {
        struct mb_context_options o = f32;
        o.modes = (struct mb_context_modes){
            .k = 3, .prefill = modes[i], .decode = modes[i]};
        struct mb_context *ctx = open_context(rig, &o);
        test_read(&rig->model, ctx, 0, n, MB_ROWS_PREFILL, rig->nll, NULL);
        mb_context_free(ctx);
        ctx = open_context(rig, &o);
        for (size_t t = 0; t < n; t++) {
            test_read(&rig->model, ctx, t, t + 1, MB_ROWS_DECODE, NULL,
                rig->logits[0]);
            assert_true(fabs(loss_of(rig->logits[0], rig->model.targets[t]) -
                             (double)rig->nll[t]) < 2e-3);
        }
        mb_context_free(ctx);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            test_window_when_read_then_losses_are_the_trainers, setup,
            teardown),
        cmocka_unit_test_setup_teardown(
            test_context_when_all_blocks_are_chosen_then_as_one_window, setup,
            teardown),
        cmocka_unit_test_setup_teardown(
            test_context_when_decoded_then_as_prefilled, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
