/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_context_engine.c - requests to contexts among others:
 * the same bits as a plain loop, and their errors. */
#include "mb_test_engine.h"

#define N_TEXT 700u
#define N_OUT  80u

struct both {
    struct rig rig;
    struct mb_context_memory *memories[2];
    struct mb_context *by_engine;
    struct mb_context *plain;
    struct mb_pass *pass;
    mb_token_id text[N_TEXT];
    float *logits;
    size_t n_vocab;
};

static struct mb_context *
open_context(struct both *b, size_t i)
{
    struct mb_context_options o = {.landmark = 10, .modes = {.k = 2}};
    struct mb_context_source source;
    struct mb_context *ctx = NULL;
    assert_ok(mb_context_memory_new(&b->memories[i], NULL));
    source = mb_context_memory_source(b->memories[i]);
    assert_ok(mb_context_new(b->rig.decoder, &o, &source, &ctx, NULL));
    return ctx;
}

static void
both_begin(struct both *b, const struct mb_engine_options *opt)
{
    struct mb_rng rng;
    b->rig = rig_begin(opt);
    b->by_engine = open_context(b, 0);
    b->plain = open_context(b, 1);
    assert_ok(mb_pass_new(b->rig.decoder, 300, 1, &b->pass, NULL));
    b->n_vocab = mb_tokenizer_n_vocab(b->rig.tokenizer);
    b->logits = mb_calloc(b->n_vocab, sizeof(float));
    assert_non_null(b->logits);
    mb_rng_init(&rng, 2);
    for (size_t i = 0; i < N_TEXT; i++)
        b->text[i] = 300 + (mb_token_id)mb_rng_below(&rng, 4000);
}

static void
both_end(struct both *b)
{
    rig_end(&b->rig);
    mb_context_free(b->by_engine);
    mb_context_free(b->plain);
    mb_context_memory_free(b->memories[0]);
    mb_context_memory_free(b->memories[1]);
    mb_pass_free(b->pass);
    mb_free(b->logits);
}

static mb_token_id
best_of(const struct both *b)
{
    size_t best = 0;
    for (size_t t = 1; t < b->n_vocab; t++)
        best = b->logits[t] > b->logits[best] ? t : best;
    return (mb_token_id)best;
}

/* Append, score, generate beyond a segment's end, while others run. */
static void
test_context_when_in_engine_then_as_plain_loop(void **state)
{
    struct both b;
    struct mb_engine_options opt = {
        .n_threads = 2, .max_rows = 100, .max_rows_busy = 40};
    static float nll[N_TEXT];
    MB_TEST_UNUSED(state);
    both_begin(&b, &opt);
    struct job append = {.request = {.task = MB_TASK_APPEND,
                             .tokens = b.text,
                             .n = 400,
                             .context = b.by_engine}};
    struct job score = {.request = {.task = MB_TASK_SCORE,
                            .tokens = b.text + 400,
                            .n = 290,
                            .n_context = 20,
                            .context = b.by_engine}};
    struct job more = {.request = {.tokens = b.text + 690,
                           .n = 10,
                           .max_tokens = N_OUT,
                           .context = b.by_engine}};
    struct job other = {
        .request = {.tokens = b.text, .n = 90, .max_tokens = 120}};
    job_submit(&b.rig, &append);
    job_wait(&append);
    job_submit(&b.rig, &other);
    job_submit(&b.rig, &score);
    job_wait(&score);
    job_submit(&b.rig, &more);
    job_wait(&more);
    job_wait(&other);
    assert_status(MB_OK, append.result.status, &append.result.err);
    assert_status(MB_OK, score.result.status, &score.result.err);
    assert_status(MB_OK, more.result.status, &more.result.err);
    assert_int_equal(400, append.result.n_read);
    assert_int_equal(N_OUT, more.result.n_tokens);

    struct mb_context_rows rows = {
        .tokens = b.text, .n = N_TEXT - 10, .targets = b.text + 1, .nll = nll};
    assert_ok(mb_context_read(b.plain, b.pass, &rows, NULL));
    assert_int_equal(20, score.result.first);
    assert_int_equal(270, score.result.n_scored);
    assert_memory_equal(nll + 419, score.result.nll, 270 * sizeof(float));
    rows = (struct mb_context_rows){
        .tokens = b.text + N_TEXT - 10, .n = 10, .logits = b.logits};
    for (size_t i = 0; i < N_OUT; i++) {
        mb_token_id best;
        assert_ok(mb_context_read(b.plain, b.pass, &rows, NULL));
        best = best_of(&b);
        assert_int_equal(best, more.result.tokens[i]);
        rows.kind = MB_ROWS_DECODE;
        rows.n = 1;
        b.text[0] = best;
        rows.tokens = b.text;
    }
    assert_int_equal(N_TEXT + N_OUT - 1, mb_context_length(b.by_engine));
    assert_int_equal(12, mb_context_n_blocks(b.by_engine));
    job_free(&append);
    job_free(&score);
    job_free(&more);
    job_free(&other);
    both_end(&b);
}

/* A block's last token takes a row more, for its landmark, also where a pass
 * has no row left. */
static void
test_context_when_pass_is_full_then_landmark_has_room(void **state)
{
    struct both b;
    const struct mb_engine_options opt = {.n_threads = 1, .max_rows = 1};
    MB_TEST_UNUSED(state);
    both_begin(&b, &opt);
    struct job job = {.request = {.tokens = b.text,
                          .n = 70,
                          .max_tokens = 70,
                          .context = b.by_engine}};
    job_submit(&b.rig, &job);
    job_wait(&job);
    assert_status(MB_OK, job.result.status, &job.result.err);
    assert_int_equal(70, job.result.n_tokens);
    assert_int_equal(139, mb_context_length(b.by_engine));
    job_free(&job);
    both_end(&b);
}

static void
test_context_request_when_wrong_then_refused(void **state)
{
    struct both b;
    struct mb_error err;
    MB_TEST_UNUSED(state);
    both_begin(&b, &(struct mb_engine_options){.n_threads = 1});
    struct job first = {.request = {.tokens = b.text,
                            .n = 10,
                            .max_tokens = 300,
                            .context = b.by_engine}};
    struct job second = first;
    struct job alone = {
        .request = {.task = MB_TASK_APPEND, .tokens = b.text, .n = 10}};
    uint64_t id = 0;
    alone.request.on_done = job_on_done;
    assert_status(MB_ERR_BAD_ARG,
        mb_engine_submit(b.rig.engine, &alone.request, &id, &err), &err);
    assert_error_has(err, "no context");
    alone.request.task = MB_TASK_EMBED;
    alone.request.context = b.by_engine;
    assert_status(MB_ERR_BAD_ARG,
        mb_engine_submit(b.rig.engine, &alone.request, &id, &err), &err);
    job_submit(&b.rig, &first);
    job_submit(&b.rig, &second);
    job_wait(&second);
    job_wait(&first);
    assert_status(MB_OK, first.result.status, &first.result.err);
    assert_status(MB_ERR_BUSY, second.result.status, &second.result.err);
    assert_int_equal(309, mb_context_length(b.by_engine));
    job_free(&first);
    job_free(&second);
    both_end(&b);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_context_when_in_engine_then_as_plain_loop),
        cmocka_unit_test(test_context_when_pass_is_full_then_landmark_has_room),
        cmocka_unit_test(test_context_request_when_wrong_then_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
