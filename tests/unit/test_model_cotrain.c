/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_cotrain.c - a model and its blocks trained together.
 *
 * Held against the two trainers that it lies between: without blocks it is the
 * trainer of models, with the anchor left alone that of blocks. */
#include "mb_test_bank.h"

#include "mb_cotrain.h"

#include <math.h>

#define N_STEPS   5u
#define N_WINDOWS 6u
#define RATE      1e-3
/* Sums run in another order: float keeps 7 digits, Adam's division by small
 * gradients costs some. */
#define TOLERANCE 1e-5

static const uint64_t leaves[N_WINDOWS] = {11, 11, 12, 21, 21, 22};

struct texts {
    mb_token_id tokens[N_WINDOWS][BANK_N_CTX];
    mb_token_id targets[N_WINDOWS][BANK_N_CTX];
    struct mb_cotrain_window windows[N_WINDOWS];
};

/* Windows of the leaves as bank_window gives them. */
static void
make_texts(struct texts *t, bool has_blocks)
{
    for (size_t i = 0; i < N_WINDOWS; i++) {
        const struct mb_bank_item item = {.key = leaves[i] * 100 + i};
        size_t n = 0;
        assert_ok(
            bank_window(NULL, &item, 0, t->tokens[i], t->targets[i], &n, NULL));
        t->windows[i] = (struct mb_cotrain_window){
            .rows = {.n = n, .tokens = t->tokens[i], .targets = t->targets[i]},
            .path = {has_blocks ? leaves[i] / 10 : MB_BANK_NONE, leaves[i]}};
    }
}

static struct mb_cotrainer *
new_cotrainer(struct mb_gguf *gguf, unsigned n_threads)
{
    struct mb_cotrainer *t = NULL;
    struct mb_error err;
    assert_status(MB_OK,
        mb_cotrainer_new(gguf, &bank_two_levels,
            &(struct mb_cotrain_options){
                .n_threads = n_threads, .seed = 7, .decay = 0.1},
            &t, &err),
        &err);
    return t;
}

/* The largest difference, by the largest value. */
static double
far(const float *a, const float *b, size_t n)
{
    double most = 0;
    double size = 0;
    for (size_t i = 0; i < n; i++) {
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
        size = fmax(size, fabs((double)b[i]));
    }
    return most / size;
}

static void
test_step_when_without_blocks_then_as_the_trainer(void **state)
{
    (void)state;
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = bank_tiny_model(&dir);
    struct mb_cotrainer *t = new_cotrainer(gguf, 2);
    struct trainer *plain = NULL;
    struct train_window windows[N_WINDOWS];
    struct texts texts;
    size_t n = 0;
    struct trainer *first = bank_tiny_trainer();
    make_texts(&texts, false);
    assert_ok(trainer_new(&bank_tiny,
        &(struct train_options){.n_threads = 1, .decay = 0.1}, &plain, NULL));
    for (size_t i = 0; i < trainer_n_weights(plain); i++) {
        struct train_weight *w = trainer_weight(plain, i);
        memcpy(w->value, trainer_weight(first, i)->value,
            w->n_rows * w->n_cols * sizeof(float));
    }
    for (size_t i = 0; i < N_WINDOWS; i++)
        windows[i] = texts.windows[i].rows;
    for (size_t s = 0; s < N_STEPS; s++) {
        struct train_result a;
        struct train_result b;
        struct mb_error err;
        assert_status(MB_OK,
            mb_cotrainer_step(
                t, texts.windows, N_WINDOWS, RATE, RATE, &a, &err),
            &err);
        assert_ok(trainer_step(plain, windows, N_WINDOWS, RATE, &b, NULL));
        assert_true(fabs(a.loss - b.loss) < TOLERANCE * b.loss);
        assert_true(
            fabs(a.grad_norm - b.grad_norm) < 10 * TOLERANCE * b.grad_norm);
        assert_int_equal(a.n_targets, b.n_targets);
    }
    const struct export_weight *w = mb_cotrainer_weights(t, &n);
    assert_int_equal(n, trainer_n_weights(plain));
    for (size_t i = 0; i < n; i++) {
        const struct train_weight *want = trainer_weight(plain, i);
        assert_string_equal(w[i].name, want->name);
        size_t size = w[i].n_rows * w[i].n_cols;
        assert_true(far(w[i].value, want->value, size) < 100 * TOLERANCE);
        assert_true(far(w[i].value, trainer_weight(first, i)->value, size) >
                    100 * TOLERANCE);
    }
    trainer_free(plain);
    trainer_free(first);
    mb_cotrainer_free(t);
    mb_gguf_close(gguf);
    mb_test_dir_end(&dir);
}

static const float *
weights_of(struct mb_slice record, size_t *n)
{
    struct mb_bank_block block;
    assert_ok(mb_bank_block_open(record, &block, NULL));
    *n = block.data_bytes / sizeof(float);
    return (const float *)(const void *)block.data;
}

static void
test_step_when_the_anchor_is_left_then_as_the_bank_trainer(void **state)
{
    (void)state;
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = bank_tiny_model(&dir);
    struct mb_cotrainer *t = new_cotrainer(gguf, 2);
    struct mb_bank_trainer *bank = NULL;
    struct bank_memory m = {0};
    struct mb_bank_io io = bank_io_of(&m);
    struct mb_bank_item items[N_WINDOWS];
    struct mb_bank_progress p;
    struct texts texts;
    // One step, all windows in it, at the middle of the rates' cosine.
    const struct mb_bank_train_options o = {.n_threads = 1,
        .seed = 7,
        .epochs = 1,
        .batch = N_WINDOWS,
        .n_ctx = BANK_N_CTX,
        .rate = RATE,
        .warmup = 0.5,
        .final_rate = 1};
    struct train_result r;
    make_texts(&texts, true);
    assert_ok(
        mb_cotrainer_step(t, texts.windows, N_WINDOWS, 0, RATE, &r, NULL));
    for (size_t i = 0; i < N_WINDOWS; i++)
        items[i] = (struct mb_bank_item){
            .key = leaves[i] * 100 + i, .path = {leaves[i] / 10, leaves[i]}};
    assert_ok(
        mb_bank_trainer_new(gguf, &bank_two_levels, &o, &io, &bank, NULL));
    assert_ok(mb_bank_trainer_begin(
        bank, items, N_WINDOWS, mb_slice_of(NULL, 0), NULL));
    assert_ok(mb_bank_trainer_run(bank, 0, 0, &p, NULL));
    assert_true(p.is_finished);
    assert_int_equal(m.n_rows, 6);
    for (size_t i = 0; i < m.n_rows; i++) {
        struct mb_slice want;
        struct mb_slice got;
        size_t n = 0;
        assert_ok(mb_bank_state_record(
            mb_slice_of(m.rows[i].bytes, m.rows[i].size), &want, NULL, NULL));
        assert_ok(mb_cotrainer_record(t, m.rows[i].node, &got, NULL));
        const float *a = weights_of(got, &n);
        assert_true(far(a, weights_of(want, &n), n) < TOLERANCE);
    }
    struct mb_slice none;
    assert_int_equal(MB_ERR_NOT_FOUND, mb_cotrainer_record(t, 99, &none, NULL));
    bank_memory_fini(&m);
    mb_bank_trainer_free(bank);
    mb_cotrainer_free(t);
    mb_gguf_close(gguf);
    mb_test_dir_end(&dir);
}

static void
test_step_when_both_learn_then_loss_falls_and_repeats(void **state)
{
    (void)state;
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = bank_tiny_model(&dir);
    struct mb_cotrainer *a = new_cotrainer(gguf, 2);
    struct mb_cotrainer *b = new_cotrainer(gguf, 2);
    struct train_result first;
    struct train_result r;
    struct texts texts;
    struct mb_slice x;
    struct mb_slice y;
    make_texts(&texts, true);
    texts.windows[5].path[0] = MB_BANK_GENERIC;
    assert_ok(mb_cotrainer_step(
        a, texts.windows, N_WINDOWS, RATE, RATE, &first, NULL));
    assert_ok(
        mb_cotrainer_step(b, texts.windows, N_WINDOWS, RATE, RATE, &r, NULL));
    for (size_t s = 0; s < 3 * N_STEPS; s++) {
        assert_ok(mb_cotrainer_step(
            a, texts.windows, N_WINDOWS, RATE, RATE, &r, NULL));
        assert_ok(mb_cotrainer_step(
            b, texts.windows, N_WINDOWS, RATE, RATE, &r, NULL));
    }
    assert_true(r.loss < 0.9 * first.loss);
    assert_ok(mb_cotrainer_record(a, 11, &x, NULL));
    assert_ok(mb_cotrainer_record(b, 11, &y, NULL));
    assert_int_equal(x.size, y.size);
    assert_memory_equal(x.data, y.data, x.size);
    assert_ok(mb_cotrainer_record(a, MB_BANK_GENERIC, &x, NULL));
    assert_int_equal(
        x.size, mb_bank_record_bytes(&bank_two_levels,
                    mb_bank_path_rows(&bank_two_levels), MB_BANK_F32));
    mb_cotrainer_free(a);
    mb_cotrainer_free(b);
    mb_gguf_close(gguf);
    mb_test_dir_end(&dir);
}

static void
test_step_when_nothing_is_to_learn_then_refused(void **state)
{
    (void)state;
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = bank_tiny_model(&dir);
    struct mb_cotrainer *t = new_cotrainer(gguf, 1);
    struct mb_bank_shape wide = bank_two_levels;
    struct mb_cotrainer *none = NULL;
    struct train_result r;
    struct texts texts;
    struct mb_error err;
    make_texts(&texts, true);
    for (size_t k = 0; k < BANK_N_CTX; k++)
        texts.targets[0][k] = -1;
    assert_status(MB_ERR_BAD_ARG,
        mb_cotrainer_step(t, texts.windows, 1, RATE, RATE, &r, &err), &err);
    assert_error_has(err, "no targets");
    texts.tokens[1][0] = (mb_token_id)bank_tiny.n_vocab;
    assert_status(MB_ERR_BAD_ARG,
        mb_cotrainer_step(t, texts.windows + 1, 1, RATE, RATE, &r, &err), &err);
    assert_error_has(err, "vocabulary");
    wide.d_model = 64;
    assert_status(MB_ERR_BAD_ARG,
        mb_cotrainer_new(
            gguf, &wide, &(struct mb_cotrain_options){0}, &none, &err),
        &err);
    mb_cotrainer_free(t);
    mb_gguf_close(gguf);
    mb_test_dir_end(&dir);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step_when_without_blocks_then_as_the_trainer),
        cmocka_unit_test(
            test_step_when_the_anchor_is_left_then_as_the_bank_trainer),
        cmocka_unit_test(test_step_when_both_learn_then_loss_falls_and_repeats),
        cmocka_unit_test(test_step_when_nothing_is_to_learn_then_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
