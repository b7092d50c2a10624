/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_hmt.c - memories of segments: gradients through three
 * segments against finite differences in double, causality, and the trainer. */
#include "mb_test.h"

#include "hmt_graph.h"
/* and once more, in double */
#define TRAIN_DOUBLE
#include "hmt_graph.h"

#include <math.h>

#define D       8u
#define DEPTH   3u
#define SEGMENT 70u /* a block, its landmark, and some */
#define VOCAB   11u
#define N_MODEL 20u /* matrices of the model */
#define N_OWN   5u  /* gain, T, M0, Wq, Wk */

static const struct train_shape tiny = {
    .n_layers = 2,
    .d_model = D,
    .n_heads = 2,
    .n_kv_heads = 1,
    .head_dim = 4,
    .d_ff = 12,
    .n_vocab = VOCAB,
    .n_ctx = 256,
    .rope_base = 100,
    .norm_eps = 1e-5,
};

static const struct hmt_shape shape = {
    .n_segment = SEGMENT,
    .n_summary = 65,
    .n_sensory = 5,
    .d_key = 3,
    .landmark = 10,
    .eos = 9,
};

struct rig {
    struct tape_var_f64 x[N_OWN + N_MODEL];
    struct graph_layer_f64 layers[2];
    struct graph_model_f64 graph;
    struct hmt_model_f64 model;
    mb_token_id tokens[DEPTH * SEGMENT + 1];
    struct hmt_sample sample;
    struct tape_f64 *t;
};

/* Sizes of all weights: own ones, embedding, last norm, layers. */
static void
list_shapes(size_t (*out)[2])
{
    const size_t all[N_OWN + 11][2] = {{1, 1}, {1, D}, {1, D}, {3, D}, {3, D},
        {VOCAB, D}, {1, D}, {1, D}, {D, D}, {4, D}, {4, D}, {D, D}, {1, D},
        {12, D}, {12, D}, {D, 12}};
    memcpy(out, all, sizeof all);
    memcpy(out + N_OWN + 11, all + N_OWN + 2, 9 * sizeof *all);
}

static int
setup(void **state)
{
    struct rig *r = mb_calloc(1, sizeof *r);
    size_t sizes[N_OWN + N_MODEL][2];
    struct mb_rng rng;
    if (!r)
        return -1;
    list_shapes(sizes);
    mb_rng_init(&rng, 3);
    for (size_t i = 0; i < N_OWN + N_MODEL; i++) {
        size_t n = sizes[i][0] * sizes[i][1];
        double scale = sizes[i][0] == 1 ? 1 : sizes[i][0] == 3 ? 0.1 : 0.6;
        r->x[i] = (struct tape_var_f64){sizes[i][0], sizes[i][1],
            mb_calloc(n, sizeof(double)), mb_calloc(n, sizeof(double))};
        for (size_t j = 0; j < n; j++)
            r->x[i].value[j] = mb_rng_normal(&rng) * scale;
    }
    for (size_t l = 0; l < 2; l++) {
        const struct tape_var_f64 *w = r->x + N_OWN + 2 + 9 * l;
        r->layers[l] = (struct graph_layer_f64){.attn_norm = w[0],
            .q = w[1],
            .k = w[2],
            .v = w[3],
            .o = w[4],
            .ffn_norm = w[5],
            .gate = w[6],
            .up = w[7],
            .down = w[8]};
    }
    r->graph = (struct graph_model_f64){.shape = &tiny,
        .embedding = r->x[N_OWN],
        .output_norm = r->x[N_OWN + 1],
        .layers = r->layers};
    r->model = (struct hmt_model_f64){
        &r->graph, &shape, r->x[0], r->x[1], r->x[2], r->x[3], r->x[4]};
    for (size_t i = 0; i <= DEPTH * SEGMENT; i++)
        r->tokens[i] = (mb_token_id)mb_rng_below(&rng, 10);
    r->sample = (struct hmt_sample){r->tokens, DEPTH};
    r->t = tape_new_f64((size_t)1 << 28);
    *state = r;
    return r->t ? 0 : -1;
}

static int
teardown(void **state)
{
    struct rig *r = *state;
    for (size_t i = 0; i < N_OWN + N_MODEL; i++) {
        mb_free(r->x[i].value);
        mb_free(r->x[i].grad);
    }
    tape_free_f64(r->t);
    mb_free(r);
    return 0;
}

static double
loss_of(struct rig *r, hmt_mode mode, double weight, bool is_training)
{
    double losses[DEPTH];
    double flops = 0;
    double sum = 0;
    assert_true(hmt_run_f64(r->t, &r->model, &r->sample, mode, weight,
        is_training, losses, &flops));
    assert_true(flops > 0);
    for (size_t i = 0; i < DEPTH; i++)
        sum += losses[i];
    return sum * weight;
}

/* Gradients of the first n inputs against central differences, relative to the
 * largest of a matrix: a step of 1e-5 leaves about 1e-8. */
static void
check_gradients(struct rig *r, hmt_mode mode, size_t n)
{
    for (size_t i = 0; i < N_OWN + N_MODEL; i++)
        memset(r->x[i].grad, 0, r->x[i].rows * r->x[i].cols * sizeof(double));
    double loss = loss_of(r, mode, 0.01, true);
    assert_true(fabs(loss - loss_of(r, mode, 0.01, false)) < 1e-10);
    for (size_t k = 0; k < n; k++) {
        struct tape_var_f64 *x = &r->x[k];
        double largest = 0;
        for (size_t i = 0; i < x->rows * x->cols; i++)
            largest = fmax(largest, fabs(x->grad[i]));
        bool is_used = mode == HMT_RECALL || k == 0 || k == 2 || k >= N_OWN;
        if (is_used != (largest > 1e-9))
            fail_msg("input %zu: largest gradient %g", k, largest);
        for (size_t i = 0; i < x->rows * x->cols; i++) {
            double before = x->value[i];
            x->value[i] = before + 1e-5;
            double up = loss_of(r, mode, 0.01, false);
            x->value[i] = before - 1e-5;
            double down = loss_of(r, mode, 0.01, false);
            x->value[i] = before;
            double want = (up - down) / 2e-5;
            if (fabs(want - x->grad[i]) > 1e-6 * (largest + 1e-3))
                fail_msg("input %zu value %zu: gradient %.12g, difference "
                         "quotient %.12g, largest %g",
                    k, i, x->grad[i], want, largest);
        }
    }
}

static void
test_gradient_when_recalling_through_segments_then_equals_difference(
    void **state)
{
    check_gradients(*state, HMT_RECALL, N_OWN + 1); // with the embedding
}

static void
test_gradient_when_recurrent_then_equals_difference(void **state)
{
    check_gradients(*state, HMT_DIRECT, N_OWN + 1);
}

static void
test_gradient_when_layers_are_recomputed_then_the_same(void **state)
{
    struct rig *r = *state;
    double grads[3 * D];
    (void)loss_of(r, HMT_RECALL, 0.01, true);
    memcpy(grads, r->x[3].grad, sizeof grads);
    memset(r->x[3].grad, 0, sizeof grads);
    r->graph.recompute = true;
    (void)loss_of(r, HMT_RECALL, 0.01, true);
    assert_memory_equal(grads, r->x[3].grad, sizeof grads);
}

/* A token changes what is predicted behind it, and nothing before. */
static void
test_losses_when_a_token_changes_then_earlier_segments_do_not(void **state)
{
    struct rig *r = *state;
    static const hmt_mode modes[] = {
        HMT_RECALL, HMT_DIRECT, HMT_SENSORY, HMT_NOTHING};
    for (size_t i = 0; i < 4; i++) {
        double before[DEPTH];
        double after[DEPTH];
        double flops = 0;
        mb_token_id kept = r->tokens[SEGMENT + 1];
        assert_true(hmt_run_f64(
            r->t, &r->model, &r->sample, modes[i], 1, false, before, &flops));
        r->tokens[SEGMENT + 1] = (kept + 1) % 9;
        assert_true(hmt_run_f64(
            r->t, &r->model, &r->sample, modes[i], 1, false, after, &flops));
        r->tokens[SEGMENT + 1] = kept;
        assert_true(before[0] == after[0]);
        assert_true(before[1] != after[1]);
        // It is not among the last five: only memories carry it on.
        bool is_carried = modes[i] == HMT_RECALL || modes[i] == HMT_DIRECT;
        assert_true(is_carried == (before[2] != after[2]));
    }
}

/* ---- the trainer ---- */

struct model {
    struct imported imported;
    struct export_weight weights[N_MODEL];
    float values[N_MODEL][VOCAB * D + 64];
    char names[N_MODEL][8];
};

static void
make_model(struct rig *r, struct model *m)
{
    *m = (struct model){.imported = {.shape = tiny}};
    m->imported.weights = m->weights;
    m->imported.n_weights = N_MODEL;
    for (size_t i = 0; i < N_MODEL; i++) {
        const struct tape_var_f64 *x = &r->x[N_OWN + i];
        (void)snprintf(m->names[i], sizeof m->names[i], "w%zu", i);
        assert_true(x->rows * x->cols <= VOCAB * D + 64);
        for (size_t j = 0; j < x->rows * x->cols; j++)
            m->values[i][j] = (float)x->value[j];
        m->weights[i] =
            (struct export_weight){m->names[i], x->rows, x->cols, m->values[i]};
    }
}

/* Losses of some steps by so many threads. */
static void
train(struct rig *r, bool backbone, unsigned n_threads, float *summary,
    double out[2])
{
    struct model *m = mb_calloc(1, sizeof *m);
    struct hmt_trainer *t = NULL;
    struct train_result result;
    const struct hmt_train_options o = {.n_threads = n_threads,
        .seed = 4,
        .trains_backbone = backbone,
        .backbone_rate = 1};
    const struct hmt_sample samples[] = {r->sample, {r->tokens, 2}, r->sample};
    assert_non_null(m);
    make_model(r, m);
    assert_ok(hmt_trainer_new(&m->imported, &shape, &o, &t, NULL));
    for (size_t i = 0; i < 12; i++) {
        assert_ok(
            hmt_trainer_step(t, samples, 3, HMT_RECALL, 0.02, &result, NULL));
        assert_true(result.grad_norm > 0 && result.n_targets > 400);
        out[i > 0] = result.loss;
    }
    assert_int_equal(12, hmt_trainer_n_steps(t));
    assert_string_equal("hmt.summary", hmt_trainer_weight(t, 1)->name);
    assert_int_equal(
        backbone ? N_OWN + N_MODEL : N_OWN, (int)hmt_trainer_n_weights(t));
    memcpy(summary, hmt_trainer_weight(t, 1)->value, D * sizeof *summary);
    hmt_trainer_free(t);
    mb_free(m);
}

static void
test_trainer_when_it_steps_then_the_loss_falls_and_repeats(void **state)
{
    double loss[2];
    double again[2];
    float a[D];
    float b[D];
    for (unsigned backbone = 0; backbone < 2; backbone++) {
        train(*state, backbone == 1, 2, a, loss);
        train(*state, backbone == 1, 2, b, again);
        assert_true(loss[1] < loss[0] - (backbone ? 0.05 : 0.001));
        assert_true(loss[1] == again[1]);
        assert_memory_equal(a, b, sizeof a);
    }
}

/* The float twin: losses by the trainer are those in double. */
static void
test_trainer_when_it_judges_then_near_the_twin_in_double(void **state)
{
    struct rig *r = *state;
    struct model *m = mb_calloc(1, sizeof *m);
    struct hmt_trainer *t = NULL;
    const struct hmt_train_options o = {.n_threads = 1};
    double got[HMT_MAX_DEPTH];
    double want[DEPTH];
    double flops = 0;
    assert_non_null(m);
    make_model(r, m);
    assert_ok(hmt_trainer_new(&m->imported, &shape, &o, &t, NULL));
    for (size_t i = 0; i < N_OWN; i++) {
        struct train_weight *w = hmt_trainer_weight(t, i);
        for (size_t j = 0; j < w->n_rows * w->n_cols; j++)
            w->value[j] = (float)r->x[i].value[j];
    }
    assert_ok(hmt_trainer_judge(t, &r->sample, 1, HMT_RECALL, got, NULL));
    assert_true(hmt_run_f64(
        r->t, &r->model, &r->sample, HMT_RECALL, 1, false, want, &flops));
    for (size_t i = 0; i < DEPTH; i++)
        assert_true(fabs(got[i] - want[i]) < 1e-4 * want[i]);
    hmt_trainer_free(t);
    mb_free(m);
}

static void
test_trainer_when_input_does_not_fit_then_refused(void **state)
{
    struct rig *r = *state;
    struct model *m = mb_calloc(1, sizeof *m);
    struct hmt_trainer *t = NULL;
    struct train_result result;
    struct mb_error err;
    const struct hmt_train_options o = {.n_threads = 1};
    struct hmt_shape bad = shape;
    struct hmt_sample sample = r->sample;
    assert_non_null(m);
    make_model(r, m);
    bad.n_summary = SEGMENT + 1;
    assert_status(MB_ERR_BAD_ARG,
        hmt_trainer_new(&m->imported, &bad, &o, &t, &err), &err);
    bad = shape;
    bad.landmark = VOCAB;
    assert_status(MB_ERR_BAD_ARG,
        hmt_trainer_new(&m->imported, &bad, &o, &t, &err), &err);
    assert_ok(hmt_trainer_new(&m->imported, &shape, &o, &t, NULL));
    sample.depth = 0;
    assert_status(MB_ERR_BAD_ARG,
        hmt_trainer_step(t, &sample, 1, HMT_RECALL, 0.1, &result, &err), &err);
    sample.depth = DEPTH;
    r->tokens[7] = VOCAB;
    assert_status(MB_ERR_BAD_ARG,
        hmt_trainer_step(t, &sample, 1, HMT_RECALL, 0.1, &result, &err), &err);
    assert_int_equal(0, hmt_trainer_n_steps(t));
    hmt_trainer_free(t);
    mb_free(m);
}

int
main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(
            test_gradient_when_recalling_through_segments_then_equals_difference),
        TEST(test_gradient_when_recurrent_then_equals_difference),
        TEST(test_gradient_when_layers_are_recomputed_then_the_same),
        TEST(test_losses_when_a_token_changes_then_earlier_segments_do_not),
        TEST(test_trainer_when_it_steps_then_the_loss_falls_and_repeats),
        TEST(test_trainer_when_it_judges_then_near_the_twin_in_double),
        TEST(test_trainer_when_input_does_not_fit_then_refused),
    };
#undef TEST
    return cmocka_run_group_tests(tests, NULL, NULL);
}
