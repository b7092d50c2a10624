/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_sampler.c - choosing tokens, against plain definitions.
 *
 * Distributions are compared with one worked out in the plainest way (sort all,
 * cut, divide) by many draws from a fixed seed: each token's share must lie
 * within five standard deviations, and what is cut away must never come. */
#include "mb_test.h"

#include <math.h>

#include "mb_sampler.h"

#define V       13u /* tokens of the small vocabulary */
#define N_DRAWS 20000u
#define SIGMAS  5.0 /* one of 3 million right tests would fail by chance */

/* One pick by a fresh sampler. */
static mb_status
pick_one(const struct mb_sampling *opt, const float *logits, size_t n,
    mb_token_id *id, float *logprob, struct mb_error *err)
{
    struct mb_sampler_room *room;
    struct mb_sampler s;
    mb_status st;

    assert_ok(mb_sampler_room_new(n, &room, NULL));
    assert_ok(mb_sampler_init(&s, opt, NULL));
    st = mb_sampler_pick(&s, room, logits, id, logprob, err);
    mb_sampler_room_free(room);
    return st;
}

/* ---- the plain definition ---- */

static const float *sort_by;

static int
compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a;
    uint32_t y = *(const uint32_t *)b;

    if (sort_by[x] != sort_by[y])
        return sort_by[x] > sort_by[y] ? -1 : 1;
    return x < y ? -1 : 1;
}

/* Divide p of the first n tokens in order by their sum. */
static void
divide(double *p, const uint32_t *order, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += p[order[i]];
    for (size_t i = 0; i < n; i++)
        p[order[i]] /= sum;
}

/* Probability of each token, without a penalty. */
static void
plain(const struct mb_sampling *opt, const float *logits, double p[V])
{
    uint32_t order[V];
    size_t n = V;
    double mass = 0;
    size_t i;

    for (i = 0; i < V; i++) {
        order[i] = (uint32_t)i;
        p[i] = exp((double)logits[i]);
    }
    sort_by = logits;
    qsort(order, V, sizeof order[0], compare);
    if (opt->top_k > 0 && opt->top_k < n)
        n = opt->top_k;
    divide(p, order, n);
    if (opt->top_p > 0 && opt->top_p < 1) {
        for (i = 0; i < n && (i == 0 || mass < (double)opt->top_p); i++)
            mass += p[order[i]];
        n = i;
    }
    for (i = n; opt->min_p > 0 && i > 1; i--) {
        if (p[order[i - 1]] < (double)opt->min_p * p[order[0]])
            n = i - 1;
    }
    for (i = 0; i < n; i++)
        p[order[i]] = exp((double)logits[order[i]] / (double)opt->temperature);
    divide(p, order, n);
    for (i = n; i < V; i++)
        p[order[i]] = 0;
}

/* Draw many times and compare. */
static void
compare_with_plain(const struct mb_sampling *opt, const float *logits)
{
    struct mb_sampler_room *room;
    struct mb_sampler s;
    size_t counts[V] = {0};
    double p[V];

    plain(opt, logits, p);
    assert_ok(mb_sampler_room_new(V, &room, NULL));
    assert_ok(mb_sampler_init(&s, opt, NULL));
    for (size_t i = 0; i < N_DRAWS; i++) {
        mb_token_id id = -1;
        float logprob;

        assert_ok(mb_sampler_pick(&s, room, logits, &id, &logprob, NULL));
        assert_in_range(id, 0, V - 1);
        counts[id]++;
    }
    mb_sampler_room_free(room);
    for (size_t i = 0; i < V; i++) {
        double got = (double)counts[i] / N_DRAWS;
        double sigma = sqrt(p[i] * (1 - p[i]) / N_DRAWS);

        if (p[i] == 0.0 ? counts[i] > 0 : fabs(got - p[i]) > SIGMAS * sigma)
            fail_msg("T %g k %u p %g m %g: token %zu came %g of the time, "
                     "wanted %g",
                (double)opt->temperature, opt->top_k, (double)opt->top_p,
                (double)opt->min_p, i, got, p[i]);
    }
}

static void
test_pick_with_filters_then_plain_distribution(void **state)
{
    static const struct mb_sampling cases[] = {
        {.temperature = 1},
        {.temperature = 0.5f},
        {.temperature = 2},
        {.temperature = 1, .top_k = 1},
        {.temperature = 1, .top_k = 4},
        {.temperature = 1, .top_k = V},
        {.temperature = 1, .top_k = 100},
        {.temperature = 1, .top_p = 0.5f},
        {.temperature = 1, .top_p = 0.95f},
        {.temperature = 1, .top_p = 1e-9f},
        {.temperature = 1, .min_p = 0.1f},
        {.temperature = 1, .min_p = 1},
        {.temperature = 0.7f, .top_k = 6, .top_p = 0.8f, .min_p = 0.05f},
        {.temperature = 3, .top_k = 9, .top_p = 0.9f, .min_p = 0.02f},
        {.temperature = 1.5f, .top_p = 0.9f, .min_p = 0.2f},
    };
    struct mb_rng rng;
    MB_TEST_UNUSED(state);

    mb_rng_init(&rng, mb_test_seed());
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct mb_sampling opt = cases[i];
        float logits[V];

        for (size_t j = 0; j < V; j++)
            logits[j] = (float)(2 * mb_rng_normal(&rng));
        opt.seed = mb_rng_u64(&rng);
        compare_with_plain(&opt, logits);
    }
}

/* top_p looks at what top_k left: of four tokens with 0.4 0.3 0.2 0.1, top_k 2
 * leaves 4/7 and 3/7, so that 0.5 of it is the first alone; of all four it
 * would be two. Temperature comes last: it does not change what is cut. */
static void
test_pick_then_top_k_before_top_p_before_temperature(void **state)
{
    const float logits[] = {logf(0.4f), logf(0.3f), logf(0.2f), logf(0.1f)};
    struct mb_sampling opt = {.temperature = 50, .top_k = 2, .top_p = 0.5f};
    struct mb_sampler_room *room;
    struct mb_sampler s;
    size_t n_second = 0;
    MB_TEST_UNUSED(state);

    assert_ok(mb_sampler_room_new(4, &room, NULL));
    for (int with_k = 0; with_k < 2; with_k++) {
        opt.top_k = with_k ? 2 : 0;
        assert_ok(mb_sampler_init(&s, &opt, NULL));
        for (int i = 0; i < 500; i++) {
            mb_token_id id;
            float logprob;

            assert_ok(mb_sampler_pick(&s, room, logits, &id, &logprob, NULL));
            if (with_k)
                assert_int_equal(0, id);
            assert_in_range(id, 0, 1);
            n_second += id == 1;
        }
    }
    // At temperature 50 both come about as often.
    assert_in_range(n_second, 180, 320);
    mb_sampler_room_free(room);
}

static void
test_pick_when_equal_then_lowest_id(void **state)
{
    const float logits[] = {0, 2, 1, 2, 2, -1};
    MB_TEST_UNUSED(state);

    for (uint64_t seed = 0; seed < 50; seed++) {
        struct mb_sampling greedy = {.seed = seed};
        struct mb_sampling top1 = {.temperature = 1, .top_k = 1, .seed = seed};
        struct mb_sampling tiny = {
            .temperature = 1, .top_p = 0.001f, .seed = seed};
        mb_token_id id;
        float logprob;

        assert_ok(pick_one(&greedy, logits, 6, &id, &logprob, NULL));
        assert_int_equal(1, id);
        assert_ok(pick_one(&top1, logits, 6, &id, &logprob, NULL));
        assert_int_equal(1, id);
        assert_ok(pick_one(&tiny, logits, 6, &id, &logprob, NULL));
        assert_int_equal(1, id);
    }
}

static void
test_pick_then_logprob_of_plain_softmax(void **state)
{
    const float logits[] = {1, 3, 2, 0};
    const struct mb_sampling cases[] = {
        {0},
        {.temperature = 0.3f, .top_k = 2, .seed = 3},
        {.temperature = 9, .repeat_penalty = 1.5f, .seed = 4},
    };
    double sum = exp(1) + exp(3) + exp(2) + exp(0);
    MB_TEST_UNUSED(state);

    for (size_t i = 0; i < 3; i++) {
        mb_token_id id;
        float logprob;

        assert_ok(pick_one(&cases[i], logits, 4, &id, &logprob, NULL));
        assert_float_equal(log(exp((double)logits[id]) / sum), logprob, 1e-6);
        mb_token_id unasked;
        assert_ok(pick_one(&cases[i], logits, 4, &unasked, NULL, NULL));
        assert_int_equal(id, unasked);
    }
}

static void
test_pick_with_same_seed_then_same_tokens(void **state)
{
    struct mb_sampling opt = {.temperature = 2, .min_p = 0.001f, .seed = 7};
    struct mb_sampler_room *room;
    struct mb_sampler a;
    struct mb_sampler b;
    struct mb_sampler c;
    float logits[300];
    struct mb_rng rng;
    size_t n_other = 0;
    MB_TEST_UNUSED(state);

    mb_rng_init(&rng, 5);
    for (size_t i = 0; i < 300; i++)
        logits[i] = (float)mb_rng_normal(&rng);
    assert_ok(mb_sampler_room_new(300, &room, NULL));
    assert_ok(mb_sampler_init(&a, &opt, NULL));
    assert_ok(mb_sampler_init(&b, &opt, NULL));
    opt.seed = 8;
    assert_ok(mb_sampler_init(&c, &opt, NULL));
    for (int i = 0; i < 100; i++) {
        mb_token_id x;
        mb_token_id y;
        mb_token_id z;
        float logprob;

        assert_ok(mb_sampler_pick(&a, room, logits, &x, &logprob, NULL));
        assert_ok(mb_sampler_pick(&b, room, logits, &y, &logprob, NULL));
        assert_ok(mb_sampler_pick(&c, room, logits, &z, &logprob, NULL));
        assert_int_equal(x, y);
        n_other += x != z;
    }
    assert_in_range(n_other, 50, 100);
    mb_sampler_room_free(room);
}

/* ---- penalty ---- */

static void
test_penalty_then_once_each_and_signs_apart(void **state)
{
    const float logits[] = {1.0f, 1.9f, 0.8f, -1.0f};
    struct mb_sampling opt = {.repeat_penalty = 2};
    struct mb_sampler_room *room;
    struct mb_sampler s;
    mb_token_id id;
    float logprob;
    MB_TEST_UNUSED(state);

    assert_ok(mb_sampler_room_new(4, &room, NULL));
    // Twice in the window: 1.9 / 2 = 0.95 lies below 1 and above 0.8; were it
    // divided twice, the next pick would be 2.
    assert_ok(mb_sampler_init(&s, &opt, NULL));
    mb_sampler_accept(&s, 1);
    mb_sampler_accept(&s, 1);
    assert_ok(mb_sampler_pick(&s, room, logits, &id, &logprob, NULL));
    assert_int_equal(0, id);
    assert_ok(mb_sampler_pick(&s, room, logits, &id, &logprob, NULL));
    assert_int_equal(1, id); // 0 is in the window now with 0.5
    // A negative logit goes down, too.
    const float negative[] = {-1.0f, -1.5f, -9.0f, -9.0f};
    assert_ok(mb_sampler_init(&s, &opt, NULL));
    mb_sampler_accept(&s, 0);
    assert_ok(mb_sampler_pick(&s, room, negative, &id, &logprob, NULL));
    assert_int_equal(1, id);
    mb_sampler_room_free(room);
}

static void
test_penalty_when_out_of_window_then_none(void **state)
{
    const float logits[] = {1.0f, 1.5f, -3.0f, -3.0f};
    struct mb_sampling opt = {.repeat_penalty = 2, .repeat_window = 2};
    struct mb_sampler_room *room;
    struct mb_sampler s;
    mb_token_id id;
    float logprob;
    MB_TEST_UNUSED(state);

    assert_ok(mb_sampler_room_new(4, &room, NULL));
    assert_ok(mb_sampler_init(&s, &opt, NULL));
    mb_sampler_accept(&s, 1);
    mb_sampler_accept(&s, 2);
    assert_ok(mb_sampler_pick(&s, room, logits, &id, &logprob, NULL));
    assert_int_equal(0, id);
    assert_ok(mb_sampler_init(&s, &opt, NULL));
    mb_sampler_accept(&s, 1);
    mb_sampler_accept(&s, 2);
    mb_sampler_accept(&s, 3);
    assert_ok(mb_sampler_pick(&s, room, logits, &id, &logprob, NULL));
    assert_int_equal(1, id);
    // Tokens that the vocabulary has not are passed over.
    mb_sampler_accept(&s, -1);
    mb_sampler_accept(&s, 4);
    assert_ok(mb_sampler_pick(&s, room, logits, &id, &logprob, NULL));
    assert_int_equal(1, id);
    mb_sampler_room_free(room);
}

/* ---- edges ---- */

static void
test_pick_when_not_numbers_then_corrupt(void **state)
{
    const float with_nan[] = {1, NAN, 2};
    const float with_inf[] = {1, INFINITY, 2};
    const float nothing[] = {-INFINITY, -INFINITY, -INFINITY};
    const float some[] = {-INFINITY, 1, -INFINITY};
    const struct mb_sampling cases[] = {{0}, {.temperature = 1},
        {.temperature = 1, .top_k = 3}, {.temperature = 1, .top_p = 0.9f}};
    struct mb_error err;
    mb_token_id id = 77;
    float logprob = 5;
    MB_TEST_UNUSED(state);

    for (size_t i = 0; i < 4; i++) {
        const struct mb_sampling *opt = &cases[i];

        assert_status(MB_ERR_CORRUPT,
            pick_one(opt, with_nan, 3, &id, &logprob, &err), &err);
        assert_error_has(err, "token 1");
        assert_status(MB_ERR_CORRUPT,
            pick_one(opt, with_inf, 3, &id, &logprob, &err), &err);
        assert_status(MB_ERR_CORRUPT,
            pick_one(opt, nothing, 3, &id, &logprob, &err), &err);
        assert_int_equal(77, id);
        assert_ok(pick_one(opt, some, 3, &id, &logprob, &err));
        assert_int_equal(1, id);
        assert_float_equal(0, logprob, 0);
        id = 77;
    }
}

static void
test_init_when_out_of_range_then_bad_arg(void **state)
{
    static const struct {
        const char *name;
        struct mb_sampling opt;
    } cases[] = {
        {"temperature", {.temperature = -0.1f}},
        {"temperature", {.temperature = 101}},
        {"temperature", {.temperature = NAN}},
        {"top_p", {.top_p = 1.1f}},
        {"min_p", {.min_p = -1}},
        {"repeat_penalty", {.repeat_penalty = -1}},
        {"repeat_penalty", {.repeat_penalty = 0.001f}},
        {"repeat_window", {.repeat_window = MB_SAMPLER_MAX_WINDOW + 1}},
    };
    struct mb_sampler_room *room;
    struct mb_sampler s;
    struct mb_error err;
    MB_TEST_UNUSED(state);

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_status(
            MB_ERR_BAD_ARG, mb_sampler_init(&s, &cases[i].opt, &err), &err);
        assert_error_has(err, cases[i].name);
    }
    assert_status(MB_ERR_BAD_ARG, mb_sampler_room_new(0, &room, &err), &err);
}

static void
test_pick_when_vocabulary_large_then_as_sorted(void **state)
{
    enum { N = 150000 };

    struct mb_sampling opt = {.temperature = 1, .top_k = 3, .top_p = 0.999f};
    float *logits = mb_alloc(N * sizeof *logits);
    bool came[3] = {false};
    struct mb_rng rng;
    MB_TEST_UNUSED(state);

    assert_non_null(logits);
    mb_rng_init(&rng, 9);
    for (size_t i = 0; i < N; i++)
        logits[i] = (float)mb_rng_double(&rng);
    logits[149999] = 2.0f;
    logits[0] = 1.9f;
    logits[70000] = 1.8f;
    logits[70001] = 1.8f; // not among the first three: a tie, higher id
    for (opt.seed = 0; opt.seed < 40; opt.seed++) {
        mb_token_id id;
        float logprob;

        assert_ok(pick_one(&opt, logits, N, &id, &logprob, NULL));
        assert_true(id == 149999 || id == 0 || id == 70000);
        came[id == 0 ? 0 : id == 70000 ? 1 : 2] = true;
    }
    assert_true(came[0] && came[1] && came[2]);
    mb_free(logits);
}

static void
test_room_when_memory_short_then_nomem(void **state)
{
    struct mb_sampler_room *room;
    MB_TEST_UNUSED(state);

    for (uint64_t n = 1; n <= 4; n++) {
        mb_alloc_fail_after(n);
        mb_status st = mb_sampler_room_new(10, &room, NULL);
        mb_alloc_fail_after(0);
        assert_int_equal(MB_ERR_NOMEM, st);
    }
    assert_ok(mb_sampler_room_new(10, &room, NULL));
    mb_sampler_room_free(room);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pick_with_filters_then_plain_distribution),
        cmocka_unit_test(test_pick_then_top_k_before_top_p_before_temperature),
        cmocka_unit_test(test_pick_when_equal_then_lowest_id),
        cmocka_unit_test(test_pick_then_logprob_of_plain_softmax),
        cmocka_unit_test(test_pick_with_same_seed_then_same_tokens),
        cmocka_unit_test(test_penalty_then_once_each_and_signs_apart),
        cmocka_unit_test(test_penalty_when_out_of_window_then_none),
        cmocka_unit_test(test_pick_when_not_numbers_then_corrupt),
        cmocka_unit_test(test_init_when_out_of_range_then_bad_arg),
        cmocka_unit_test(test_pick_when_vocabulary_large_then_as_sorted),
        cmocka_unit_test(test_room_when_memory_short_then_nomem),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
