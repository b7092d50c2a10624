/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_engine.c - many requests at once on the bundled model.
 * ctest: timeout=300
 *
 * The rule behind most of it: a request gets the same bits as if it were alone,
 * whatever runs beside it, however rows are shared out, on one thread or two.
 * A plain loop over mb_pass_run says what alone means. */
#include "mb_test_engine.h"

#include <math.h>

#define N_MIXED 16
#define MAX_T   2048

static const char *const texts[] = {
    "The history of the world is the history of",
    "Once upon a time there lived in a small house by the sea an old man who "
    "had never in his life",
    "In economics, the price of a good is determined by supply and demand. "
    "When the supply falls",
    "Call me",
};

/* A long text: n tokens behind a bos. */
static size_t
long_text(const struct rig *r, mb_token_id *out, size_t n)
{
    struct mb_rng rng;

    mb_rng_init(&rng, 77);
    out[0] = mb_tokenizer_bos(r->tokenizer);
    for (size_t i = 1; i < n; i++)
        out[i] = (mb_token_id)(300 + mb_rng_below(&rng, 7000));
    return n;
}

/* ---- alone, in the plainest way ---- */

struct plain {
    struct mb_cache *cache;
    struct mb_pass *pass;
    struct mb_sequence *seq;
    float *logits;
};

static struct plain
plain_begin(const struct rig *r)
{
    struct plain p;

    assert_ok(mb_cache_new(r->decoder, MB_CACHE_F16, MAX_T, &p.cache, NULL));
    assert_ok(mb_pass_new(r->decoder, MAX_T, 1, &p.pass, NULL));
    assert_ok(mb_sequence_new(p.cache, &p.seq, NULL));
    p.logits = mb_calloc(mb_tokenizer_n_vocab(r->tokenizer), sizeof *p.logits);
    assert_non_null(p.logits);
    return p;
}

static void
plain_end(struct plain *p)
{
    mb_sequence_free(p->seq);
    mb_pass_free(p->pass);
    mb_cache_free(p->cache);
    mb_free(p->logits);
}

static void
test_generate_when_greedy_then_as_plain_loop(void **state)
{
    struct rig r = rig_begin(&(struct mb_engine_options){.n_threads = 1});
    struct plain p = plain_begin(&r);
    size_t n_vocab = mb_tokenizer_n_vocab(r.tokenizer);
    mb_token_id tokens[64];
    struct job j = {.request = {.tokens = tokens, .max_tokens = 40}};
    struct mb_rows item = {.seq = p.seq, .tokens = tokens, .logits = p.logits};
    mb_token_id best = 0;
    MB_TEST_UNUSED(state);

    item.n = j.request.n = rig_tokens(&r, texts[0], tokens, 64);
    job_run(&r, &j);
    assert_int_equal(MB_FINISH_LENGTH, j.result.finish);
    assert_int_equal(40, j.result.n_tokens);
    for (size_t i = 0; i < 40; i++) {
        assert_ok(mb_pass_run(p.pass, &item, 1, NULL));
        best = 0;
        for (size_t t = 1; t < n_vocab; t++)
            best = p.logits[t] > p.logits[best] ? (mb_token_id)t : best;
        assert_int_equal(best, j.result.tokens[i]);
        item.tokens = &best;
        item.n = 1;
        item.kind = MB_ROWS_DECODE;
    }
    job_free(&j);
    plain_end(&p);
    rig_end(&r);
}

static void
test_score_then_as_plain_pass(void **state)
{
    struct rig r =
        rig_begin(&(struct mb_engine_options){.n_threads = 1, .max_rows = 50});
    struct plain p = plain_begin(&r);
    mb_token_id tokens[512];
    float nll[512];
    size_t n = long_text(&r, tokens, 170);
    struct job j = {.request = {
                        .task = MB_TASK_SCORE,
                        .tokens = tokens,
                        .n = n,
                        .n_head = 1,
                        .n_context = 20,
                    }};
    struct mb_rows item = {.seq = p.seq,
        .tokens = tokens,
        .n = n - 1,
        .targets = tokens + 1,
        .nll = nll};
    double sum = 0;
    MB_TEST_UNUSED(state);

    job_run(&r, &j);
    assert_ok(mb_pass_run(p.pass, &item, 1, NULL));
    assert_int_equal(20, j.result.first);
    assert_int_equal(n - 20, j.result.n_scored);
    for (size_t i = 20; i < n; i++) {
        assert_memory_equal(&nll[i - 1], &j.result.nll[i - 20], sizeof nll[0]);
        sum += (double)nll[i - 1];
    }
    assert_true(sum == j.result.sum);
    assert_true(sum > 0);
    job_free(&j);
    plain_end(&p);
    rig_end(&r);
}

/* ---- many at once ---- */

/* Requests of all kinds, the same for the same i. */
static void
mixed(const struct rig *r, size_t i, mb_token_id *tokens, struct job *j)
{
    struct mb_engine_request *q = &j->request;

    *j = (struct job){0};
    q->tokens = tokens;
    if (i % 4 == 3) {
        q->task = i % 8 == 3 ? MB_TASK_SCORE : MB_TASK_EMBED;
        q->n = long_text(r, tokens, 10 * i + 5);
        q->n_head = 1;
        q->n_context = 1;
        return;
    }
    q->n = i % 4 == 2 ? long_text(r, tokens, 6 * i + 30)
                      : rig_tokens(r, texts[i % 4 + i % 2], tokens, MAX_T);
    q->max_tokens = 5 + i;
    q->sampling = (struct mb_sampling){
        .temperature = i % 3 == 0 ? 0 : 0.9f,
        .top_k = i % 3 == 1 ? 40 : 0,
        .top_p = i % 3 == 2 ? 0.9f : 0,
        .repeat_penalty = i % 5 == 0 ? 1.2f : 0,
        .seed = i,
    };
}

static void
compare(const struct job *a, const struct job *b, size_t dim)
{
    assert_status(MB_OK, a->result.status, &a->result.err);
    assert_status(MB_OK, b->result.status, &b->result.err);
    assert_int_equal(a->result.finish, b->result.finish);
    assert_int_equal(a->result.n_tokens, b->result.n_tokens);
    assert_memory_equal(a->result.tokens, b->result.tokens,
        a->result.n_tokens * sizeof a->result.tokens[0]);
    assert_memory_equal(a->result.logprobs, b->result.logprobs,
        a->result.n_tokens * sizeof a->result.logprobs[0]);
    assert_true(mb_slice_equal(a->result.text, b->result.text));
    assert_int_equal(a->result.n_scored, b->result.n_scored);
    assert_memory_equal(a->result.nll, b->result.nll,
        a->result.n_scored * sizeof a->result.nll[0]);
    if (a->request.task == MB_TASK_EMBED)
        assert_memory_equal(
            a->result.vector, b->result.vector, dim * sizeof(float));
}

static void
test_mixed_requests_then_equal_to_single_runs(void **state)
{
    static const struct mb_engine_options options[] = {
        {.n_threads = 1},
        {.n_threads = 2},
        {.n_threads = 2, .max_rows = 70, .max_rows_busy = 33},
        {.n_threads = 1, .max_running = 3, .cache_rows = 1024},
    };
    static mb_token_id tokens[N_MIXED][MAX_T];
    struct job alone[N_MIXED];
    struct rig r = rig_begin(&options[0]);
    MB_TEST_UNUSED(state);

    for (size_t i = 0; i < N_MIXED; i++) {
        mixed(&r, i, tokens[i], &alone[i]);
        job_run(&r, &alone[i]);
    }
    rig_end(&r);
    for (size_t o = 0; o < sizeof options / sizeof options[0]; o++) {
        struct job jobs[N_MIXED];
        struct mb_engine_stats stats;

        r = rig_begin(&options[o]);
        for (size_t i = 0; i < N_MIXED; i++)
            mixed(&r, i, tokens[i], &jobs[i]);
        for (size_t i = 0; i < N_MIXED; i++)
            job_submit(&r, &jobs[i]);
        for (size_t i = 0; i < N_MIXED; i++) {
            job_wait(&jobs[i]);
            compare(&alone[i], &jobs[i], mb_engine_dim(r.engine));
        }
        mb_engine_stats(r.engine, &stats);
        assert_int_equal(N_MIXED, stats.n_done);
        // They did run together.
        assert_true(stats.n_passes * 2 < stats.rows_out);
        for (size_t i = 0; i < N_MIXED; i++)
            job_free(&jobs[i]);
        rig_end(&r);
    }
    for (size_t i = 0; i < N_MIXED; i++)
        job_free(&alone[i]);
}

/* ---- windows ---- */

static void
test_score_when_longer_than_window_then_strides(void **state)
{
    enum { N = 330, STRIDE = 60, W = 128 };

    struct rig r =
        rig_begin(&(struct mb_engine_options){.n_threads = 1, .cache_rows = W});
    struct plain p = plain_begin(&r);
    static mb_token_id tokens[MAX_T];
    struct job j = {.request = {
                        .task = MB_TASK_SCORE,
                        .tokens = tokens,
                        .n = long_text(&r, tokens, N),
                        .n_head = 1,
                        .n_context = 1,
                        .stride = STRIDE,
                    }};
    size_t scored = 1; /* tokens below have been */
    MB_TEST_UNUSED(state);

    assert_int_equal(W, mb_engine_window(r.engine));
    job_run(&r, &j);
    assert_int_equal(N - 1, j.result.n_scored);
    for (size_t start = 1; scored < N; start += STRIDE) {
        mb_token_id row[W];
        mb_token_id target[W];
        float nll[W];
        struct mb_rows item = {
            .seq = p.seq, .tokens = row, .targets = target, .nll = nll};

        row[0] = tokens[0];
        target[0] = start == 1 ? tokens[1] : -1;
        for (item.n = 1; item.n < W && start + item.n - 1 < N - 1; item.n++) {
            row[item.n] = tokens[start + item.n - 1];
            target[item.n] = tokens[start + item.n];
        }
        mb_sequence_truncate(p.seq, 0);
        assert_ok(mb_pass_run(p.pass, &item, 1, NULL));
        for (size_t i = 0; i < item.n; i++) {
            size_t t = start + i; /* what row i predicts */

            if (t < scored || target[i] < 0)
                continue;
            assert_int_equal(t, scored);
            assert_memory_equal(&nll[i], &j.result.nll[t - 1], sizeof nll[0]);
            scored++;
        }
    }
    job_free(&j);
    plain_end(&p);
    rig_end(&r);
}

static void
test_score_when_context_long_then_only_the_rest(void **state)
{
    struct rig r = rig_begin(
        &(struct mb_engine_options){.n_threads = 1, .cache_rows = 128});
    static mb_token_id tokens[MAX_T];
    struct job j = {.request = {
                        .task = MB_TASK_SCORE,
                        .tokens = tokens,
                        .n = long_text(&r, tokens, 1000),
                        .n_head = 1,
                        .n_context = 990,
                    }};
    struct job none = j;
    struct job one = j;
    MB_TEST_UNUSED(state);

    job_run(&r, &j);
    assert_int_equal(990, j.result.first);
    assert_int_equal(10, j.result.n_scored);
    // Windows in which nothing is scored are not read.
    assert_in_range(j.result.n_read, 64, 2 * 128);
    for (size_t i = 0; i < 10; i++)
        assert_true(j.result.nll[i] > 0);
    none.request.n_context = 1000;
    job_run(&r, &none);
    assert_int_equal(0, none.result.n_scored);
    assert_int_equal(0, none.result.n_read);
    one.request.n = 1;
    one.request.n_context = 1;
    job_run(&r, &one);
    assert_int_equal(0, one.result.n_scored);
    job_free(&one);
    job_free(&none);
    job_free(&j);
    rig_end(&r);
}

static void
test_embed_then_unit_mean_of_rows(void **state)
{
    enum { W = 64, N = 150, SKIP = 3 };

    struct rig r =
        rig_begin(&(struct mb_engine_options){.n_threads = 1, .cache_rows = W});
    struct plain p = plain_begin(&r);
    size_t dim = mb_engine_dim(r.engine);
    mb_token_id tokens[N];
    struct job j = {.request = {
                        .task = MB_TASK_EMBED,
                        .tokens = tokens,
                        .n = long_text(&r, tokens, N),
                        .n_head = 1,
                        .n_context = SKIP,
                    }};
    struct job empty = j;
    double *sum = mb_calloc(dim, sizeof *sum);
    float *hidden = mb_calloc(W * dim, sizeof *hidden);
    double square = 0;
    MB_TEST_UNUSED(state);

    assert_true(sum && hidden);
    job_run(&r, &j);
    for (size_t start = 1; start < N; start += W - 1) {
        mb_token_id row[W] = {tokens[0]};
        struct mb_rows item = {
            .seq = p.seq, .tokens = row, .n = 1, .hidden = hidden};

        for (; item.n < W && start + item.n - 1 < N; item.n++)
            row[item.n] = tokens[start + item.n - 1];
        mb_sequence_truncate(p.seq, 0);
        assert_ok(mb_pass_run(p.pass, &item, 1, NULL));
        for (size_t i = start == 1 ? SKIP : 1; i < item.n; i++) {
            for (size_t k = 0; k < dim; k++)
                sum[k] += (double)hidden[i * dim + k];
        }
    }
    for (size_t k = 0; k < dim; k++)
        square += sum[k] * sum[k];
    for (size_t k = 0; k < dim; k++)
        assert_true((float)(sum[k] / sqrt(square)) == j.result.vector[k]);
    empty.request.n = SKIP;
    job_run(&r, &empty);
    for (size_t k = 0; k < dim; k++)
        assert_true(empty.result.vector[k] == 0.0f);
    mb_free(sum);
    mb_free(hidden);
    job_free(&empty);
    job_free(&j);
    plain_end(&p);
    rig_end(&r);
}

static void
test_generate_when_window_full_then_window(void **state)
{
    struct rig r = rig_begin(
        &(struct mb_engine_options){.n_threads = 1, .cache_rows = 64});
    static mb_token_id tokens[MAX_T];
    struct job j = {.request = {
                        .tokens = tokens,
                        .n = long_text(&r, tokens, 60),
                        .max_tokens = 1000,
                        .sampling = {.temperature = 1, .seed = 3},
                    }};
    struct job full = j;
    struct job over = j;
    struct mb_error err;
    MB_TEST_UNUSED(state);

    job_run(&r, &j);
    assert_int_equal(MB_FINISH_WINDOW, j.result.finish);
    assert_int_equal(5, j.result.n_tokens); // 60 + 4 rows, the fifth has none
    full.request.n = long_text(&r, tokens, 64);
    job_run(&r, &full);
    assert_int_equal(1, full.result.n_tokens);
    over.request.n = long_text(&r, tokens, 65);
    assert_status(MB_ERR_TOO_LARGE, job_try(&r, &over, &err), &err);
    assert_error_has(err, "65");
    assert_error_has(err, "64");
    job_free(&full);
    job_free(&j);
    rig_end(&r);
}

/* ---- text ---- */

static void
test_generate_then_pieces_make_the_text(void **state)
{
    struct rig r = rig_begin(&(struct mb_engine_options){.n_threads = 1});
    mb_token_id tokens[64];
    MB_TEST_UNUSED(state);

    // At a high temperature byte tokens and halves of characters come, too.
    for (uint64_t seed = 0; seed < 6; seed++) {
        struct job j = {
            .request = {
                .tokens = tokens,
                .n = rig_tokens(&r, texts[3], tokens, 64),
                .max_tokens = 60,
                .sampling = {.temperature = 1.f + (float)seed, .seed = seed},
            }};

        job_run(&r, &j);
        assert_int_equal(0, j.n_bad_pieces);
        assert_int_equal(j.result.n_tokens, j.n_tokens);
        assert_memory_equal(
            j.tokens, j.result.tokens, j.n_tokens * sizeof tokens[0]);
        assert_true(
            mb_slice_equal(j.result.text, mb_slice_of(j.text, j.text_size)));
        assert_true(j.n_pieces > 20);
        job_free(&j);
    }
    rig_end(&r);
}

static void
test_generate_when_stop_string_then_text_before_it(void **state)
{
    struct rig r = rig_begin(&(struct mb_engine_options){.n_threads = 1});
    mb_token_id tokens[64];
    struct job all = {.request = {
                          .tokens = tokens,
                          .n = rig_tokens(&r, texts[1], tokens, 64),
                          .max_tokens = 40,
                      }};
    MB_TEST_UNUSED(state);

    job_run(&r, &all);
    assert_true(all.result.text.size > 40);
    // Wherever it is cut out of the text: within a token or across several.
    for (size_t at = 1; at < 30; at += 3) {
        struct mb_slice stops[] = {
            mb_slice_cstr("never in this text"),
            mb_slice_of(all.result.text.data + at, 9),
        };
        struct job j = {.request = all.request};
        size_t first = 0;

        while (memcmp(all.result.text.data + first, stops[1].data, 9) != 0)
            first++;
        j.request.stops = stops;
        j.request.n_stops = 2;
        job_run(&r, &j);
        assert_int_equal(MB_FINISH_STOP, j.result.finish);
        assert_true(mb_slice_equal(
            j.result.text, mb_slice_of(all.result.text.data, first)));
        assert_int_equal(first, j.text_size);
        job_free(&j);
    }
    job_free(&all);
    rig_end(&r);
}

static void
test_generate_when_stop_token_then_not_in_result(void **state)
{
    struct rig r = rig_begin(&(struct mb_engine_options){.n_threads = 1});
    mb_token_id tokens[64];
    struct job all = {.request = {
                          .tokens = tokens,
                          .n = rig_tokens(&r, texts[0], tokens, 64),
                          .max_tokens = 20,
                      }};
    struct job j = all;
    mb_token_id stop[2] = {8000, 0};
    size_t first = 0;
    MB_TEST_UNUSED(state);

    job_run(&r, &all);
    stop[1] = all.result.tokens[7];
    while (all.result.tokens[first] != stop[1])
        first++;
    j.request.stop_tokens = stop;
    j.request.n_stop_tokens = 2;
    job_run(&r, &j);
    assert_int_equal(MB_FINISH_STOP, j.result.finish);
    assert_int_equal(first, j.result.n_tokens);
    job_free(&j);
    job_free(&all);
    rig_end(&r);
}

/* ---- ends, limits ---- */

static void
cancel_after_three(struct job *j)
{
    if (j->n_tokens == 3)
        mb_engine_cancel(((struct rig *)j->arg)->engine, j->id);
}

static void
test_cancel_when_running_then_what_it_has(void **state)
{
    struct rig r = rig_begin(&(struct mb_engine_options){.n_threads = 1});
    mb_token_id tokens[64];
    struct job j = {.request = {
                        .tokens = tokens,
                        .n = rig_tokens(&r, texts[0], tokens, 64),
                        .max_tokens = 400,
                    }};
    struct job other = j;
    struct mb_engine_stats stats;
    MB_TEST_UNUSED(state);

    other.request.max_tokens = 30;
    job_submit(&r, &other);
    j.on_piece = cancel_after_three;
    j.arg = &r;
    // The id is not known in the first callbacks: it is the next one.
    j.id = other.id + 1;
    job_run(&r, &j);
    assert_int_equal(MB_FINISH_CANCELLED, j.result.finish);
    assert_int_equal(3, j.result.n_tokens);
    job_wait(&other);
    assert_int_equal(MB_FINISH_LENGTH, other.result.finish);
    mb_engine_cancel(r.engine, j.id); // done already
    mb_engine_cancel(r.engine, 123456);
    mb_engine_stats(r.engine, &stats);
    assert_int_equal(1, stats.n_cancelled);
    assert_int_equal(0, stats.cache_used_blocks);
    job_free(&j);
    job_free(&other);
    rig_end(&r);
}

static void
test_submit_when_cache_is_full_then_in_order(void **state)
{
    enum { N = 6 };

    struct rig r = rig_begin(
        &(struct mb_engine_options){.n_threads = 1, .cache_rows = 256});
    static mb_token_id tokens[N][MAX_T];
    struct job jobs[N] = {0};
    struct mb_engine_stats stats;
    MB_TEST_UNUSED(state);

    job_order = 0;
    for (size_t i = 0; i < N; i++) {
        // Each wants more than half of the cache, so that none run together.
        jobs[i].request = (struct mb_engine_request){
            .tokens = tokens[i],
            .n = long_text(&r, tokens[i], 130),
            .max_tokens = 8 + N - i,
        };
        job_submit(&r, &jobs[i]);
    }
    for (size_t i = 0; i < N; i++) {
        job_wait(&jobs[i]);
        assert_int_equal(i + 1, jobs[i].order);
        assert_int_equal(MB_FINISH_LENGTH, jobs[i].result.finish);
    }
    mb_engine_stats(r.engine, &stats);
    assert_in_range(stats.cache_bytes, 1, stats.cache_max_bytes);
    assert_int_equal(4, stats.cache_max_blocks);
    assert_int_equal(N * 130, stats.rows_in);
    assert_true(stats.longest_wait_us >= jobs[N - 1].result.wait_us);
    assert_true(jobs[N - 1].result.wait_us > jobs[0].result.wait_us);
    for (size_t i = 0; i < N; i++)
        job_free(&jobs[i]);
    rig_end(&r);
}

static void
test_submit_when_queue_is_full_then_busy_and_late_ones_end(void **state)
{
    struct rig r = rig_begin(&(struct mb_engine_options){
        .n_threads = 1, .max_running = 1, .max_queued = 2});
    static mb_token_id tokens[MAX_T];
    struct mb_engine_request q = {
        .tokens = tokens,
        .n = long_text(&r, tokens, 100),
        .max_tokens = 400,
        .sampling = {.temperature = 1},
    };
    struct job jobs[3] = {{.request = q}, {.request = q}, {.request = q}};
    struct job over = {.request = q};
    struct mb_engine_stats stats;
    struct mb_error err;
    MB_TEST_UNUSED(state);

    job_submit(&r, &jobs[0]);
    do {
        mb_engine_stats(r.engine, &stats);
    } while (stats.n_running == 0);
    jobs[1].request.deadline_ns = mb_clock_ns() + 1000000;
    job_submit(&r, &jobs[1]);
    job_submit(&r, &jobs[2]);
    mb_status st = job_try(&r, &over, &err);
    // The late one may have left the queue by now.
    if (st == MB_OK) {
        mb_engine_cancel(r.engine, over.id);
        job_wait(&over);
        job_free(&over);
    } else {
        assert_status(MB_ERR_BUSY, st, &err);
    }
    job_wait(&jobs[1]);
    assert_int_equal(MB_FINISH_DEADLINE, jobs[1].result.finish);
    assert_int_equal(0, jobs[1].result.n_tokens);
    mb_engine_cancel(r.engine, jobs[2].id);
    job_wait(&jobs[2]);
    assert_int_equal(MB_FINISH_CANCELLED, jobs[2].result.finish);
    // What runs and waits when the engine ends is told so.
    struct job last = {.request = q};
    job_submit(&r, &last);
    rig_end(&r);
    job_wait(&jobs[0]);
    job_wait(&last);
    assert_int_equal(MB_ERR_SHUTTING_DOWN, last.result.status);
    for (size_t i = 0; i < 3; i++)
        job_free(&jobs[i]);
    job_free(&last);
}

static void
test_submit_when_wrong_then_refused(void **state)
{
    struct rig r = rig_begin(&(struct mb_engine_options){.n_threads = 1});
    const mb_token_id tokens[] = {5, 6, 7};
    const mb_token_id far[] = {5, 600000};
    struct mb_slice empty = mb_slice_cstr("");
    struct mb_engine_request good = {.tokens = tokens, .n = 3, .max_tokens = 1};
    struct job jobs[8] = {0};
    struct mb_error err;
    MB_TEST_UNUSED(state);

    for (size_t i = 0; i < 8; i++)
        jobs[i].request = good;
    jobs[0].request.n = 0;
    jobs[1].request.tokens = far;
    jobs[2].request.max_tokens = 0;
    jobs[3].request.sampling.top_p = 2;
    jobs[4].request.stops = &empty;
    jobs[4].request.n_stops = 1;
    jobs[5].request.stride = 100000;
    jobs[6].request.n_head = 4;
    jobs[7].request.n_stops = MB_ENGINE_MAX_STOPS + 1;
    for (size_t i = 0; i < 7; i++)
        assert_status(MB_ERR_BAD_ARG, job_try(&r, &jobs[i], &err), &err);
    assert_status(MB_ERR_TOO_LARGE, job_try(&r, &jobs[7], &err), &err);
    rig_end(&r);
}

static void
test_new_when_memory_short_then_nomem(void **state)
{
    struct rig r = rig_begin(&(struct mb_engine_options){.n_threads = 1});
    const struct mb_engine_options opt = {.n_threads = 1, .max_rows = 64};
    const mb_token_id tokens[] = {5, 6, 7};
    bool ok = false;
    MB_TEST_UNUSED(state);

    for (uint64_t n = 1; !ok; n++) {
        struct mb_engine *e = NULL;

        mb_alloc_fail_after(n);
        mb_status st = mb_engine_new(r.decoder, r.tokenizer, &opt, &e, NULL);
        mb_alloc_fail_after(0);
        ok = st == MB_OK;
        assert_true(ok || st == MB_ERR_NOMEM);
        mb_engine_free(e);
        assert_true(n < 1000);
    }
    // A request for which memory is short fails alone.
    for (uint64_t n = 1; n < 12; n++) {
        struct job j = {.request = {.tokens = tokens, .n = 3, .max_tokens = 5}};
        struct job after = j;

        (void)pthread_mutex_init(&j.lock, NULL);
        (void)pthread_cond_init(&j.changed, NULL);
        j.text = mb_calloc(TEST_TEXT, 1);
        j.tokens = mb_calloc(TEST_TEXT, sizeof *j.tokens);
        j.request.on_done = job_on_done;
        j.request.arg = &j;
        mb_alloc_fail_after(n);
        mb_status st = mb_engine_submit(r.engine, &j.request, &j.id, NULL);
        if (st == MB_OK)
            job_wait(&j);
        mb_alloc_fail_after(0);
        assert_true(st == MB_OK || st == MB_ERR_NOMEM);
        job_free(&j);
        job_run(&r, &after);
        assert_int_equal(5, after.result.n_tokens);
        job_free(&after);
    }
    rig_end(&r);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generate_when_greedy_then_as_plain_loop),
        cmocka_unit_test(test_score_then_as_plain_pass),
        cmocka_unit_test(test_mixed_requests_then_equal_to_single_runs),
        cmocka_unit_test(test_score_when_longer_than_window_then_strides),
        cmocka_unit_test(test_score_when_context_long_then_only_the_rest),
        cmocka_unit_test(test_embed_then_unit_mean_of_rows),
        cmocka_unit_test(test_generate_when_window_full_then_window),
        cmocka_unit_test(test_generate_then_pieces_make_the_text),
        cmocka_unit_test(test_generate_when_stop_string_then_text_before_it),
        cmocka_unit_test(test_generate_when_stop_token_then_not_in_result),
        cmocka_unit_test(test_cancel_when_running_then_what_it_has),
        cmocka_unit_test(test_submit_when_cache_is_full_then_in_order),
        cmocka_unit_test(
            test_submit_when_queue_is_full_then_busy_and_late_ones_end),
        cmocka_unit_test(test_submit_when_wrong_then_refused),
        cmocka_unit_test(test_new_when_memory_short_then_nomem),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
