/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_context_hmt.c - contexts with memories of segments:
 * against the trainer's own segments, and over restarts, forks and cuts. */
#include "mb_test_context.h"

#include <math.h>

#include "mb_companion.h"
#include "mb_hmt_train.h"

#define SEGMENT 126u /* tokens: two blocks */
#define DEPTH   5u
#define LENGTH  560u /* four segments and 56 tokens */
#define MORE    80u  /* into the segment behind these */

/* Of a segment's loss, relative. Landmark keys are F16 in a context. */
#define NEAR 3e-4

static const struct hmt_shape shape = {
    .n_segment = SEGMENT,
    .n_summary = 70,
    .n_sensory = 9,
    .d_key = 8,
    .landmark = TEST_LANDMARK,
    .eos = -1,
};

struct rig {
    struct test_model model;
    struct imported imported;
    struct hmt_trainer *trainer;
    struct companion companion;
    struct mb_context_options options;
    struct mb_context_memory *memory;
    struct mb_context *ctx;
    float nll[2][TEST_TOKENS];
    float logits[2][TEST_VOCAB];
};

static int
setup(void **state)
{
    struct rig *rig = mb_calloc(1, sizeof *rig);
    const struct hmt_train_options o = {.n_threads = 1, .seed = 2};
    struct mb_error err;
    struct mb_rng rng;
    assert_non_null(rig);
    test_model_begin(&rig->model, 600, 2);
    rig->imported = (struct imported){.shape = test_shape,
        .weights = rig->model.weights,
        .n_weights = rig->model.n_weights};
    assert_status(MB_OK,
        hmt_trainer_new(&rig->imported, &shape, &o, &rig->trainer, &err), &err);
    mb_rng_init(&rng, 8);
    // Queries and keys that differ, and scores that are far from even.
    for (size_t i = 3; i < 5; i++) {
        struct train_weight *w = hmt_trainer_weight(rig->trainer, i);
        for (size_t j = 0; j < w->n_rows * w->n_cols; j++)
            w->value[j] = (float)mb_rng_normal(&rng) * 0.3F;
    }
    hmt_trainer_companion(rig->trainer, &rig->companion);
    rig->companion.n_memories = 300;
    assert_ok(mb_context_memory_new(&rig->memory, NULL));
    rig->options = (struct mb_context_options){
        .landmark = TEST_LANDMARK,
        .segment_blocks = 2,
        .type = MB_CACHE_F32,
        .modes = {.k = MB_CONTEXT_NONE},
        .memory = MB_MEMORY_HMT,
        .companion = &rig->companion,
    };
    mb_gguf_fingerprint(rig->model.gguf, rig->options.weights);
    *state = rig;
    return 0;
}

static int
teardown(void **state)
{
    struct rig *rig = *state;
    mb_context_free(rig->ctx);
    mb_context_memory_free(rig->memory);
    hmt_trainer_free(rig->trainer);
    test_model_end(&rig->model);
    mb_free(rig);
    return 0;
}

static struct mb_context *
open_over(struct rig *rig, struct mb_context_memory *memory)
{
    struct mb_context_source source = mb_context_memory_source(memory);
    struct mb_context *ctx = NULL;
    struct mb_error err;
    assert_status(MB_OK,
        mb_context_new(rig->model.decoder, &rig->options, &source, &ctx, &err),
        &err);
    return ctx;
}

/* ---- against the trainer ---- */

static void
check_losses(struct rig *rig, mb_memory memory, hmt_mode mode)
{
    const struct hmt_sample sample = {rig->model.text, DEPTH};
    double want[HMT_MAX_DEPTH];
    assert_ok(hmt_trainer_judge(rig->trainer, &sample, 1, mode, want, NULL));
    rig->options.memory = memory;
    mb_context_free(rig->ctx);
    rig->ctx = open_over(rig, rig->memory);
    // Cut where no segment ends.
    test_read(
        &rig->model, rig->ctx, 0, 300, MB_ROWS_PREFILL, rig->nll[0], NULL);
    for (size_t t = 300; t < 320; t++)
        test_read(
            &rig->model, rig->ctx, t, t + 1, MB_ROWS_DECODE, rig->nll[0], NULL);
    test_read(&rig->model, rig->ctx, 320, DEPTH * SEGMENT, MB_ROWS_PREFILL,
        rig->nll[0], NULL);
    for (size_t i = 0; i < DEPTH; i++) {
        double got = 0;
        for (size_t t = 0; t < SEGMENT; t++)
            got += (double)rig->nll[0][i * SEGMENT + t];
        if (fabs(got - want[i]) > NEAR * want[i])
            fail_msg(
                "segment %zu: loss %.6f, the trainer's %.6f", i, got, want[i]);
    }
}

static void
test_losses_when_segments_recall_then_those_of_the_trainer(void **state)
{
    check_losses(*state, MB_MEMORY_HMT, HMT_RECALL);
}

static void
test_losses_when_tokens_are_repeated_then_those_of_the_trainer(void **state)
{
    check_losses(*state, MB_MEMORY_SENSORY, HMT_SENSORY);
}

static void
test_losses_when_there_is_no_memory_then_those_of_the_trainer(void **state)
{
    check_losses(*state, MB_MEMORY_NONE, HMT_NOTHING);
}

/* A recall of the best two is not one of all. */
static void
test_losses_when_fewer_are_recalled_then_others(void **state)
{
    struct rig *rig = *state;
    for (int i = 0; i < 2; i++) {
        rig->ctx = open_over(rig, rig->memory);
        test_read(&rig->model, rig->ctx, 0, DEPTH * SEGMENT, MB_ROWS_PREFILL,
            rig->nll[i], NULL);
        mb_context_free(rig->ctx);
        rig->ctx = NULL;
        rig->companion.n_memories = 2;
    }
    assert_memory_equal(rig->nll[0], rig->nll[1], 3 * SEGMENT * sizeof(float));
    assert_memory_not_equal(rig->nll[0] + 3 * SEGMENT,
        rig->nll[1] + 3 * SEGMENT, SEGMENT * sizeof(float));
}

/* ---- a segment's memory ---- */

/* Row by row or at once: the same memory (U7). */
static void
test_memory_when_rows_come_one_by_one_then_that_of_a_batch(void **state)
{
    struct rig *rig = *state;
    struct mb_context_memory *other = NULL;
    struct mb_context *ctx;
    assert_ok(mb_context_memory_new(&other, NULL));
    rig->ctx = open_over(rig, rig->memory);
    ctx = open_over(rig, other);
    test_read(&rig->model, rig->ctx, 0, SEGMENT, MB_ROWS_PREFILL, NULL, NULL);
    for (size_t t = 0; t < SEGMENT; t++)
        test_read(&rig->model, ctx, t, t + 1, MB_ROWS_DECODE, NULL, NULL);
    struct mb_slice batch = mb_context_memory_kept(rig->memory, 1);
    struct mb_slice rows = mb_context_memory_kept(other, 1);
    assert_int_equal(4 * test_shape.d_model, batch.size);
    assert_int_equal(batch.size, rows.size);
    assert_int_equal(0, mb_context_memory_kept(rig->memory, 0).size);
    for (size_t j = 0; j < test_shape.d_model; j++) {
        float a = mb_get_lef32(batch.data + 4 * j);
        float b = mb_get_lef32(rows.data + 4 * j);
        if (!(fabsf(a - b) <= 1e-5F * fmaxf(1, fabsf(a))))
            fail_msg("value %zu: %.9g in a batch, %.9g by rows", j, (double)a,
                (double)b);
    }
    mb_context_free(ctx);
    mb_context_memory_free(other);
}

/* ---- restarts, forks, cuts ---- */

static void
read_on(struct rig *rig, struct mb_context *ctx, size_t first, int i)
{
    assert_int_equal(first, mb_context_length(ctx));
    test_read(&rig->model, ctx, first, first + MORE, MB_ROWS_PREFILL,
        rig->nll[i], rig->logits[i]);
    for (size_t t = first + MORE; t < first + 2 * MORE; t++)
        test_read(&rig->model, ctx, t, t + 1, MB_ROWS_DECODE, rig->nll[i],
            rig->logits[i]);
}

static void
assert_same_figures(struct rig *rig, size_t first)
{
    assert_memory_equal(rig->logits[0], rig->logits[1], sizeof rig->logits[0]);
    assert_memory_equal(
        rig->nll[0] + first, rig->nll[1] + first, 2 * MORE * sizeof(float));
}

/* A new object over the first n_blocks blocks, memories included. */
static struct mb_context *
restore(struct rig *rig, uint64_t n_blocks)
{
    struct mb_context *ctx = open_over(rig, rig->memory);
    struct mb_error err;
    for (uint64_t b = 0; b < n_blocks; b++) {
        struct mb_slice memory = mb_context_memory_kept(rig->memory, b);
        assert_status(MB_OK,
            mb_context_restore(
                ctx, mb_context_memory_sum(rig->memory, b), &err),
            &err);
        if (memory.size > 0)
            assert_status(
                MB_OK, mb_context_restore_memory(ctx, memory, &err), &err);
    }
    return ctx;
}

static void
check_restart(struct rig *rig)
{
    struct mb_context_segment tail;
    struct mb_context *again;
    rig->ctx = open_over(rig, rig->memory);
    test_read(&rig->model, rig->ctx, 0, LENGTH, MB_ROWS_PREFILL, NULL, NULL);
    again = restore(rig, 8);
    assert_ok(mb_context_tail(rig->ctx, &tail, NULL));
    assert_int_equal(1, tail.n_blocks);
    assert_ok(
        mb_context_restore_tail(again, tail.blocks[0], tail.sums[0], NULL));
    read_on(rig, rig->ctx, LENGTH, 0);
    read_on(rig, again, LENGTH, 1);
    assert_same_figures(rig, LENGTH);
    mb_context_free(again);
}

static void
test_restart_when_there_are_memories_then_the_same_bits(void **state)
{
    check_restart(*state);
}

/* Blocks are retrieved over what stands in front, too. */
static void
test_restart_when_blocks_are_retrieved_then_the_same_bits(void **state)
{
    struct rig *rig = *state;
    rig->options.modes = (struct mb_context_modes){.k = 3};
    rig->options.type = MB_CACHE_F16;
    check_restart(rig);
    float with = rig->nll[0][LENGTH + 5];
    mb_context_free(rig->ctx);
    rig->options.memory = MB_MEMORY_NONE;
    check_restart(rig);
    assert_true(isfinite(with) && with != rig->nll[0][LENGTH + 5]);
}

static void
check_cut(struct rig *rig, size_t n)
{
    struct mb_context_memory *other = NULL;
    struct mb_context *whole;
    struct mb_context *fork = NULL;
    struct mb_context_source source = mb_context_memory_source(rig->memory);
    struct mb_error err;
    assert_ok(mb_context_memory_new(&other, NULL));
    whole = open_over(rig, other); // never saw more
    test_read(&rig->model, whole, 0, n, MB_ROWS_PREFILL, NULL, NULL);
    read_on(rig, whole, n, 0);
    rig->ctx = open_over(rig, rig->memory);
    test_read(&rig->model, rig->ctx, 0, LENGTH, MB_ROWS_PREFILL, NULL, NULL);
    assert_status(
        MB_OK, mb_context_fork(rig->ctx, n, &source, &fork, &err), &err);
    // It may not commit into what the other one has: it reads in its window.
    size_t room = mb_context_room(fork);
    size_t more = room < MORE ? room : MORE;
    test_read(
        &rig->model, fork, n, n + more, MB_ROWS_PREFILL, rig->nll[1], NULL);
    assert_memory_equal(rig->nll[0] + n, rig->nll[1] + n, more * sizeof(float));
    mb_context_free(fork);
    assert_status(MB_OK, mb_context_truncate(rig->ctx, n, &err), &err);
    read_on(rig, rig->ctx, n, 1);
    assert_same_figures(rig, n);
    mb_context_free(rig->ctx);
    rig->ctx = NULL;
    mb_context_free(whole);
    mb_context_memory_free(other);
}

static void
test_fork_and_cut_when_anywhere_then_as_if_no_more_was_read(void **state)
{
    check_cut(*state, LENGTH - 10);     // in the window
    check_cut(*state, 2 * SEGMENT + 7); // in a segment that is kept
    check_cut(*state, 3 * SEGMENT);     // at its end
    check_cut(*state, 50);              // in the first
}

/* ---- what is refused ---- */

static void
test_context_when_memories_do_not_fit_then_refused(void **state)
{
    struct rig *rig = *state;
    struct mb_context *ctx = NULL;
    struct mb_error err;
    rig->options.companion = NULL;
    assert_status(MB_ERR_BAD_ARG,
        mb_context_new(rig->model.decoder, &rig->options, NULL, &ctx, &err),
        &err);
    rig->options.companion = &rig->companion;
    rig->companion.d_model++;
    assert_status(MB_ERR_MISMATCH,
        mb_context_new(rig->model.decoder, &rig->options, NULL, &ctx, &err),
        &err);
    rig->companion.d_model--;
    rig->options.segment_blocks++; // trained on others
    assert_status(MB_ERR_MISMATCH,
        mb_context_new(rig->model.decoder, &rig->options, NULL, &ctx, &err),
        &err);
    rig->options.segment_blocks--;
    rig->companion.n_memories = 0;
    assert_status(MB_ERR_BAD_ARG,
        mb_context_new(rig->model.decoder, &rig->options, NULL, &ctx, &err),
        &err);
    rig->companion.n_memories = 300;
    rig->companion.n_sensory = 63;
    assert_status(MB_ERR_BAD_ARG,
        mb_context_new(rig->model.decoder, &rig->options, NULL, &ctx, &err),
        &err);
}

static void
test_restore_when_a_memory_is_missing_or_bad_then_refused(void **state)
{
    struct rig *rig = *state;
    struct mb_context *again;
    struct mb_error err;
    uint8_t bad[4 * 64];
    rig->ctx = open_over(rig, rig->memory);
    test_read(
        &rig->model, rig->ctx, 0, 3 * SEGMENT, MB_ROWS_PREFILL, NULL, NULL);
    assert_status(MB_ERR_BAD_ARG, mb_context_commit(rig->ctx, &err), &err);
    again = restore(rig, 4);
    memset(bad, 0xff, sizeof bad); // not a number
    assert_status(MB_ERR_CORRUPT,
        mb_context_restore_memory(again, mb_slice_of(bad, sizeof bad), &err),
        &err);
    assert_status(MB_ERR_CORRUPT,
        mb_context_restore_memory(again, mb_slice_of(bad, 8), &err), &err);
    assert_ok(
        mb_context_restore(again, mb_context_memory_sum(rig->memory, 4), NULL));
    assert_ok(
        mb_context_restore(again, mb_context_memory_sum(rig->memory, 5), NULL));
    assert_status(
        MB_ERR_CORRUPT, mb_context_prepare(again, rig->model.pass, &err), &err);
    mb_context_free(again);
}

int
main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_losses_when_segments_recall_then_those_of_the_trainer),
        TEST(test_losses_when_tokens_are_repeated_then_those_of_the_trainer),
        TEST(test_losses_when_there_is_no_memory_then_those_of_the_trainer),
        TEST(test_losses_when_fewer_are_recalled_then_others),
        TEST(test_memory_when_rows_come_one_by_one_then_that_of_a_batch),
        TEST(test_restart_when_there_are_memories_then_the_same_bits),
        TEST(test_restart_when_blocks_are_retrieved_then_the_same_bits),
        TEST(test_fork_and_cut_when_anywhere_then_as_if_no_more_was_read),
        TEST(test_context_when_memories_do_not_fit_then_refused),
        TEST(test_restore_when_a_memory_is_missing_or_bad_then_refused),
    };
#undef TEST
    return cmocka_run_group_tests(tests, NULL, NULL);
}
