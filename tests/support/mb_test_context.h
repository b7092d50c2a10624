/* SPDX-License-Identifier: Apache-2.0
 * tests/support/mb_test_context.h - a small random model that reads contexts,
 * and the trainer's own forward pass to compare it with.
 *
 * Weights are large, so that attention is far from even and a wrong position or
 * block shows at once. The landmark is token 0.
 * Threads: the main thread. */
#ifndef MB_TEST_CONTEXT_H
#define MB_TEST_CONTEXT_H

#include "mb_test.h"

#include "mb_context.h"
#include "mb_judge.h"
#include "mb_test_gguf.h"

#define TEST_LANDMARK 0
#define TEST_VOCAB    300u
#define TEST_MAX_W    40u
#define TEST_TOKENS   1600u /* of the text */

static const struct train_shape test_shape = {
    .n_layers = 3,
    .d_model = 64,
    .n_heads = 4,
    .n_kv_heads = 2,
    .head_dim = 16,
    .d_ff = 96,
    .n_vocab = TEST_VOCAB,
    .n_ctx = 2048,
    .rope_base = 10000,
    .norm_eps = 1e-5,
};

struct test_model {
    struct mb_test_dir dir;
    struct trainer *trainer;
    struct export_weight weights[TEST_MAX_W];
    size_t n_weights;
    struct mb_gguf *gguf;
    struct mb_decoder *decoder;
    struct mb_pass *pass;
    mb_token_id text[TEST_TOKENS];
    mb_token_id targets[TEST_TOKENS]; /* the text, one on */
};

static inline void
test_model_write(struct test_model *m)
{
    char path[MB_TEST_PATH];
    struct test_gguf vocab;
    struct mb_gguf *v = NULL;
    struct mb_error err;
    test_vocab_file(&vocab, NULL, 0, true);
    assert_ok(mb_gguf_open_memory(mb_buffer_slice(&vocab.file), &v, NULL));
    const struct export_options o = {
        .shape = &test_shape,
        .weights = m->weights,
        .n_weights = m->n_weights,
        .vocab = v,
        .type = GGUF_F32,
    };
    mb_test_path(&m->dir, "model.gguf", path);
    assert_status(MB_OK, export_gguf(path, &o, &err), &err);
    assert_ok(mb_gguf_open(path, &m->gguf, NULL));
    mb_gguf_close(v);
    test_gguf_free(&vocab);
}

static inline void
test_model_begin(struct test_model *m, size_t pass_rows, unsigned n_threads)
{
    struct train_options options = {.n_threads = 1, .seed = 11};
    struct mb_error err;
    struct mb_rng rng;
    *m = (struct test_model){.dir = mb_test_dir_begin()};
    assert_ok(trainer_new(&test_shape, &options, &m->trainer, NULL));
    m->n_weights = trainer_n_weights(m->trainer);
    assert_true(m->n_weights <= TEST_MAX_W);
    for (size_t i = 0; i < m->n_weights; i++) {
        const struct train_weight *w = trainer_weight(m->trainer, i);
        m->weights[i] =
            (struct export_weight){w->name, w->n_rows, w->n_cols, w->value};
        for (size_t j = 0; j < w->n_rows * w->n_cols; j++)
            w->value[j] *= w->n_rows > 1 ? 8 : 1;
    }
    test_model_write(m);
    assert_status(MB_OK, mb_decoder_open(m->gguf, &m->decoder, &err), &err);
    assert_status(MB_OK,
        mb_pass_new(m->decoder, pass_rows, n_threads, &m->pass, &err), &err);
    mb_rng_init(&rng, 5);
    for (size_t i = 0; i < TEST_TOKENS; i++)
        m->text[i] = 1 + (mb_token_id)mb_rng_below(&rng, TEST_VOCAB - 1);
    for (size_t i = 0; i < TEST_TOKENS; i++)
        m->targets[i] = m->text[(i + 1) % TEST_TOKENS];
}

static inline void
test_model_end(struct test_model *m)
{
    mb_pass_free(m->pass);
    mb_decoder_close(m->decoder);
    mb_gguf_close(m->gguf);
    trainer_free(m->trainer);
    mb_test_dir_end(&m->dir);
}

/* Losses of the first n tokens by the trainer's grouped softmax over all of
 * them, landmarks inserted. */
static inline void
test_model_judge(const struct test_model *m, size_t n, float *nll)
{
    struct judge *j = NULL;
    struct mb_error err;
    size_t rows = n + n / MB_CONTEXT_BLOCK_TOKENS;
    mb_token_id *tokens = mb_calloc(rows, sizeof *tokens);
    mb_token_id *targets = mb_calloc(rows, sizeof *targets);
    bool *is_landmark = mb_calloc(rows, sizeof *is_landmark);
    float *by_row = mb_calloc(rows, sizeof *by_row);
    float *nll_of[] = {by_row};
    assert_true(tokens && targets && is_landmark && by_row);
    for (size_t r = 0, t = 0; r < rows; r++) {
        is_landmark[r] = r % MB_BLOCK_ROWS == MB_CONTEXT_BLOCK_TOKENS;
        tokens[r] = is_landmark[r] ? TEST_LANDMARK : m->text[t];
        targets[r] = is_landmark[r] ? -1 : m->targets[t++];
    }
    struct train_window window = {rows, tokens, targets, is_landmark};
    assert_status(MB_OK,
        judge_new(&test_shape, m->weights, m->n_weights, 1, &j, &err), &err);
    assert_status(
        MB_OK, judge_windows(j, &window, 1, nll_of, NULL, &err), &err);
    for (size_t r = 0, t = 0; r < rows; r++) {
        if (!is_landmark[r])
            nll[t++] = by_row[r];
    }
    judge_free(j);
    mb_free(tokens);
    mb_free(targets);
    mb_free(is_landmark);
    mb_free(by_row);
}

/* Read tokens [first, last) of the text; nll (by token of the text) and logits
 * may be NULL. */
static inline void
test_read(struct test_model *m, struct mb_context *ctx, size_t first,
    size_t last, mb_rows_kind kind, float *nll, float *logits)
{
    struct mb_error err;
    const struct mb_context_rows rows = {
        .tokens = m->text + first,
        .n = last - first,
        .kind = kind,
        .targets = nll ? m->targets + first : NULL,
        .nll = nll ? nll + first : NULL,
        .logits = logits,
    };
    assert_status(MB_OK, mb_context_read(ctx, m->pass, &rows, &err), &err);
}

#endif
