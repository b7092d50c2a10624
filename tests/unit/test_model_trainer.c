/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_trainer.c - steps learn, repeat bit for bit, and leave
 * alone what they must. */
#include "mb_test.h"

#include "blas.h"
#include "mb_judge.h"
#include "muon.h"
#include "vector.h"

#include <math.h>

#define ROWS      70u
#define N_WINDOWS 5u

static const struct train_shape tiny = {
    .n_layers = 2,
    .d_model = 16,
    .n_heads = 4,
    .n_kv_heads = 2,
    .head_dim = 4,
    .d_ff = 24,
    .n_vocab = 32,
    .n_ctx = ROWS,
    .rope_base = 10000,
    .norm_eps = 1e-5,
};

struct data {
    mb_token_id tokens[N_WINDOWS][ROWS];
    mb_token_id targets[N_WINDOWS][ROWS];
    bool is_landmark[ROWS];
    struct train_window windows[N_WINDOWS];
};

/* A text with a rule: each token follows from the one before. Half of the
 * windows have landmarks. */
static void
make_data(struct data *d)
{
    for (size_t r = 0; r < ROWS; r++)
        d->is_landmark[r] = r == 20;
    for (size_t i = 0; i < N_WINDOWS; i++) {
        bool has_landmarks = i % 2 == 1;
        mb_token_id token = (mb_token_id)(i + 1);
        for (size_t r = 0; r < ROWS; r++) {
            bool is_landmark = has_landmarks && d->is_landmark[r];
            d->tokens[i][r] = is_landmark ? 31 : token;
            if (!is_landmark)
                token = (token * 7 + 3) % 31;
            d->targets[i][r] = is_landmark ? -1 : token;
        }
        d->windows[i] = (struct train_window){ROWS, d->tokens[i], d->targets[i],
            has_landmarks ? d->is_landmark : NULL};
    }
}

static struct trainer *
new_trainer_by(train_optimizer optimizer, unsigned n_threads,
    train_activations activations)
{
    struct mb_error err;
    struct trainer *t = NULL;
    struct train_options options = {.n_threads = n_threads,
        .seed = 3,
        .optimizer = optimizer,
        .decay = 0.1,
        .activations = activations};
    assert_status(MB_OK, trainer_new(&tiny, &options, &t, &err), &err);
    return t;
}

static struct trainer *
new_trainer(unsigned n_threads, bool recompute)
{
    return new_trainer_by(
        TRAIN_ADAMW, n_threads, recompute ? TRAIN_KEEP_NONE : TRAIN_KEEP_ALL);
}

static double
run_steps(struct trainer *t, const struct data *d, size_t n, double rate)
{
    struct train_result result = {0};
    struct mb_error err;
    for (size_t i = 0; i < n; i++)
        assert_status(MB_OK,
            trainer_step(t, d->windows, N_WINDOWS, rate, &result, &err), &err);
    return result.loss;
}

static void
assert_same_weights(struct trainer *a, struct trainer *b)
{
    for (size_t i = 0; i < trainer_n_weights(a); i++) {
        const struct train_weight *x = trainer_weight(a, i);
        const struct train_weight *y = trainer_weight(b, i);
        size_t bytes = x->n_rows * x->n_cols * sizeof(float);
        assert_memory_equal(x->value, y->value, bytes);
        assert_memory_equal(x->moment, y->moment, bytes);
        assert_memory_equal(x->square, y->square, bytes);
    }
}

static void
test_trainer_when_new_then_weights_are_named_and_drawn(void **state)
{
    (void)state;
    struct trainer *t = new_trainer(1, false);
    assert_int_equal(trainer_n_weights(t), 2 + 2 * 9);
    assert_string_equal(trainer_weight(t, 0)->name, "token_embd.weight");
    assert_string_equal(trainer_weight(t, 1)->name, "output_norm.weight");
    assert_string_equal(trainer_weight(t, 19)->name, "blk.1.ffn_down.weight");
    assert_int_equal(trainer_weight(t, 19)->n_rows, 16);
    assert_int_equal(trainer_weight(t, 19)->n_cols, 24);
    assert_true(trainer_weight(t, 19)->is_decayed);
    assert_false(trainer_weight(t, 1)->is_decayed);
    assert_true(trainer_weight(t, 1)->value[5] == 1);
    double sum = 0;
    for (size_t i = 0; i < 32 * 16; i++)
        sum += pow((double)trainer_weight(t, 0)->value[i], 2);
    assert_true(fabs(sqrt(sum / (32 * 16)) - 0.02) < 0.002);
    assert_int_equal(trainer_n_params(t),
        32 * 16 + 16 + 2 * (16 * 16 * 2 + 2 * 8 * 16 + 3 * 24 * 16 + 2 * 16));
    trainer_free(t);
    trainer_free(NULL);
}

/* Losses of all rows by the weights as they are. */
static void
judge_all(struct trainer *t, const struct data *d, float *const *nll)
{
    struct export_weight weights[2 + 2 * 9];
    struct judge *j = NULL;
    struct mb_error err;
    size_t n = trainer_n_weights(t);
    assert_true(n <= sizeof(weights) / sizeof(*weights));
    for (size_t i = 0; i < n; i++) {
        const struct train_weight *w = trainer_weight(t, i);
        weights[i] =
            (struct export_weight){w->name, w->n_rows, w->n_cols, w->value};
    }
    assert_status(MB_OK, judge_new(&tiny, weights, n, 2, &j, &err), &err);
    assert_status(
        MB_OK, judge_windows(j, d->windows, N_WINDOWS, nll, NULL, &err), &err);
    judge_free(j);
}

/* A uniform guess costs ln 32 = 3.47; the rule is learnt to near nothing. */
static void
test_step_when_text_has_a_rule_then_it_is_learnt(void **state)
{
    (void)state;
    struct data d;
    make_data(&d);
    struct trainer *t = new_trainer(2, false);
    double first = run_steps(t, &d, 1, 1e-2);
    double last = run_steps(t, &d, 150, 1e-2);
    assert_true(fabs(first - log(32)) < 0.1);
    assert_true(last < 0.3);
    assert_int_equal(trainer_n_steps(t), 151);
    struct train_result result;
    struct mb_error err;
    float nll[N_WINDOWS][ROWS];
    float *rows[N_WINDOWS];
    double sum = 0;
    for (size_t i = 0; i < N_WINDOWS; i++)
        rows[i] = nll[i];
    judge_all(t, &d, rows);
    assert_status(
        MB_OK, trainer_step(t, d.windows, N_WINDOWS, 0, &result, &err), &err);
    for (size_t i = 0; i < N_WINDOWS; i++) {
        for (size_t r = 0; r < ROWS; r++)
            sum += (double)nll[i][r];
    }
    assert_true(nll[1][20] == 0); // the landmark
    assert_true(fabs(sum / (double)result.n_targets - result.loss) < 1e-5);
    assert_int_equal(result.n_targets, N_WINDOWS * ROWS - 2);
    assert_int_equal(result.n_rows, N_WINDOWS * ROWS);
    trainer_free(t);
}

static void
test_step_when_repeated_then_same_bits(void **state)
{
    (void)state;
    struct data d;
    make_data(&d);
    for (unsigned threads = 1; threads <= 3; threads++) {
        struct trainer *a = new_trainer(threads, false);
        struct trainer *b = new_trainer(threads, false);
        run_steps(a, &d, 5, 1e-3);
        run_steps(b, &d, 5, 1e-3);
        assert_same_weights(a, b);
        trainer_free(a);
        trainer_free(b);
    }
}

/* Recomputed activations are the same numbers. */
static void
test_step_when_activations_are_recomputed_then_same_bits(void **state)
{
    (void)state;
    struct data d;
    make_data(&d);
    struct trainer *a = new_trainer(2, false);
    struct trainer *b = new_trainer(2, true);
    run_steps(a, &d, 4, 1e-3);
    run_steps(b, &d, 4, 1e-3);
    assert_same_weights(a, b);
    trainer_free(a);
    trainer_free(b);
}

/* Activations as bytes change no loss, and gradients but a little. */
static void
test_step_when_activations_are_bytes_then_nearly_the_same(void **state)
{
    (void)state;
    struct data d;
    make_data(&d);
    struct trainer *a = new_trainer(2, false);
    struct trainer *b = new_trainer_by(TRAIN_ADAMW, 2, TRAIN_KEEP_BYTES);
    struct train_result x = {0};
    struct train_result y = {0};
    // A rate of zero: the first moment is a tenth of the gradient.
    assert_ok(trainer_step(a, d.windows, N_WINDOWS, 0, &x, NULL));
    assert_ok(trainer_step(b, d.windows, N_WINDOWS, 0, &y, NULL));
    assert_true(x.loss == y.loss);
    double difference = 0;
    double size = 0;
    for (size_t i = 0; i < trainer_n_weights(a); i++) {
        const struct train_weight *p = trainer_weight(a, i);
        const struct train_weight *q = trainer_weight(b, i);
        for (size_t j = 0; j < p->n_rows * p->n_cols; j++) {
            double by = (double)(q->moment[j] - p->moment[j]);
            difference += by * by;
            size += (double)p->moment[j] * (double)p->moment[j];
        }
    }
    double relative = sqrt(difference / size);
    assert_true(relative > 0 && relative < 0.01);
    // And it learns as well.
    double exact = run_steps(a, &d, 40, 1e-3);
    double bytes = run_steps(b, &d, 40, 1e-3);
    assert_true(fabs(exact - bytes) < 0.01 * exact);
    trainer_free(a);
    trainer_free(b);
}

/* Weights, moments and the count of steps are all that a resume needs. */
static void
test_step_when_resumed_then_same_bits(void **state)
{
    (void)state;
    struct data d;
    make_data(&d);
    struct trainer *a = new_trainer(2, false);
    struct trainer *b = new_trainer(2, false);
    run_steps(a, &d, 3, 1e-3);
    for (size_t i = 0; i < trainer_n_weights(a); i++) {
        const struct train_weight *x = trainer_weight(a, i);
        struct train_weight *y = trainer_weight(b, i);
        size_t bytes = x->n_rows * x->n_cols * sizeof(float);
        memcpy(y->value, x->value, bytes);
        memcpy(y->moment, x->moment, bytes);
        memcpy(y->square, x->square, bytes);
    }
    trainer_set_n_steps(b, trainer_n_steps(a));
    run_steps(a, &d, 3, 1e-3);
    run_steps(b, &d, 3, 1e-3);
    assert_same_weights(a, b);
    trainer_free(a);
    trainer_free(b);
}

static void
test_step_when_weights_are_frozen_then_they_stay(void **state)
{
    (void)state;
    struct data d;
    make_data(&d);
    struct trainer *t = new_trainer(2, false);
    struct trainer *fresh = new_trainer(1, false);
    for (size_t i = 0; i < trainer_n_weights(t); i++)
        trainer_weight(t, i)->is_frozen = i != 5; // blk.0.attn_v alone learns
    run_steps(t, &d, 3, 1e-2);
    for (size_t i = 0; i < trainer_n_weights(t); i++) {
        const struct train_weight *x = trainer_weight(t, i);
        const struct train_weight *y = trainer_weight(fresh, i);
        size_t bytes = x->n_rows * x->n_cols * sizeof(float);
        bool is_same = memcmp(x->value, y->value, bytes) == 0;
        assert_int_equal(is_same, i != 5);
    }
    trainer_free(t);
    trainer_free(fresh);
}

static void
test_step_when_input_is_bad_then_named_and_unchanged(void **state)
{
    (void)state;
    struct data d;
    struct train_result result;
    struct mb_error err;
    make_data(&d);
    struct trainer *t = new_trainer(2, false);
    struct trainer *fresh = new_trainer(1, false);
    d.tokens[2][9] = 32;
    assert_int_equal(trainer_step(t, d.windows, N_WINDOWS, 1e-3, &result, &err),
        MB_ERR_BAD_ARG);
    assert_non_null(strstr(err.text, "window 2 row 9"));
    d.tokens[2][9] = 1;
    d.windows[1].n = ROWS + 1;
    assert_int_equal(trainer_step(t, d.windows, N_WINDOWS, 1e-3, &result, &err),
        MB_ERR_BAD_ARG);
    d.windows[1].n = ROWS;
    for (size_t r = 0; r < ROWS; r++)
        d.targets[0][r] = -1;
    assert_int_equal(
        trainer_step(t, d.windows, 1, 1e-3, &result, &err), MB_ERR_BAD_ARG);
    assert_same_weights(t, fresh);
    /* A weight that is not finite stops the step and moves nothing. */
    make_data(&d);
    trainer_weight(t, 9)->value[3] = NAN;
    trainer_weight(fresh, 9)->value[3] = NAN;
    assert_int_equal(trainer_step(t, d.windows, N_WINDOWS, 1e-3, &result, &err),
        MB_ERR_CORRUPT);
    assert_same_weights(t, fresh);
    assert_int_equal(trainer_n_steps(t), 0);
    trainer_free(t);
    trainer_free(fresh);
}

/* Muon moves matrices of the layers (no squares are kept for them), AdamW the
 * rest; it learns and repeats as AdamW does. */
static void
test_step_when_by_muon_then_learnt_and_same_bits(void **state)
{
    (void)state;
    struct data d;
    make_data(&d);
    struct trainer *a = new_trainer_by(TRAIN_MUON, 2, TRAIN_KEEP_ALL);
    struct trainer *b = new_trainer_by(TRAIN_MUON, 2, TRAIN_KEEP_ALL);
    double first = run_steps(a, &d, 1, 1e-2);
    double last = run_steps(a, &d, 80, 1e-2);
    run_steps(b, &d, 81, 1e-2);
    assert_same_weights(a, b);
    assert_true(fabs(first - log(32)) < 0.1);
    assert_true(last < 0.3);
    for (size_t i = 0; i < trainer_n_weights(a); i++) {
        const struct train_weight *w = trainer_weight(a, i);
        bool is_matrix = i >= 2 && w->n_rows > 1;
        bool has_square = false;
        for (size_t j = 0; j < w->n_rows * w->n_cols; j++)
            has_square |= w->square[j] != 0;
        assert_int_equal(has_square, !is_matrix);
    }
    trainer_free(a);
    trainer_free(b);
}

static void
test_trainer_when_shape_is_impossible_then_refused(void **state)
{
    (void)state;
    struct train_options options = {.n_threads = 1};
    struct train_shape shape = tiny;
    struct trainer *t = NULL;
    struct mb_error err;
    shape.n_kv_heads = 3;
    assert_int_equal(trainer_new(&shape, &options, &t, &err), MB_ERR_BAD_ARG);
    shape = tiny;
    shape.head_dim = 5;
    assert_int_equal(trainer_new(&shape, &options, &t, &err), MB_ERR_BAD_ARG);
    assert_null(t);
}

/* ---- loops ---- */

static void
fill(struct mb_rng *rng, float *x, size_t n, double scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(mb_rng_normal(rng) * scale);
}

static void
assert_near(const float *a, const float *b, size_t n, double rtol)
{
    for (size_t i = 0; i < n; i++)
        assert_true(fabs((double)a[i] - (double)b[i]) <=
                    1e-6 + rtol * fabs((double)b[i]));
}

/* Vector exponentials are 2 units off at most; a sum of 100 adds little. */
static void
test_vector_when_compared_then_near_plain(void **state)
{
    (void)state;
    const struct vector *fast = vector_best();
    const struct vector *plain = vector_plain();
    struct mb_rng rng;
    float x[4][103];
    float y[4][103];
    mb_rng_init(&rng, 8);
    for (size_t i = 0; i < 4; i++)
        fill(&rng, x[i], 103, 3);
    memcpy(y, x, sizeof(x));
    float a = fast->exp_sum(x[0], 103, 2);
    float b = plain->exp_sum(y[0], 103, 2);
    assert_near(x[0], y[0], 103, 1e-6);
    assert_near(&a, &b, 1, 1e-6);
    fast->swiglu_back(x[1], x[2], x[3], 103, x[0], NULL);
    plain->swiglu_back(y[1], y[2], y[3], 103, y[0], NULL);
    fast->swiglu_back(x[1], x[2], x[3], 103, NULL, x[2]);
    plain->swiglu_back(y[1], y[2], y[3], 103, NULL, y[2]);
    assert_near(x[0], y[0], 103, 2e-5);
    assert_near(x[2], y[2], 103, 2e-5);
    struct adam adam = {.rate = 0.01f,
        .beta1 = 0.9f,
        .beta2 = 0.95f,
        .eps = 1e-8f,
        .decay = 0.1f,
        .scale = 0.5f,
        .fix1 = 10,
        .fix2 = 20};
    for (size_t i = 0; i < 103; i++)
        x[3][i] = y[3][i] = fabsf(x[3][i]);
    memcpy(y, x, sizeof(x));
    fast->adam(&adam, x[0], x[1], x[2], x[3], 103);
    plain->adam(&adam, y[0], y[1], y[2], y[3], 103);
    assert_near(x[0], y[0], 103, 2e-6);
    assert_near(x[2], y[2], 103, 2e-6);
    assert_near(x[3], y[3], 103, 2e-6);
}

/* The first step of AdamW moves each weight by the rate against the sign of
 * its gradient, whatever its size. */
static void
test_adam_when_first_step_then_moves_by_rate(void **state)
{
    (void)state;
    float w[3] = {1, 1, 1};
    float g[3] = {5, -0.001f, 0};
    float m[3] = {0};
    float v[3] = {0};
    struct adam adam = {.rate = 0.1f,
        .beta1 = 0.9f,
        .beta2 = 0.95f,
        .eps = 1e-8f,
        .scale = 1,
        .fix1 = 1 / (1 - 0.9f),
        .fix2 = 1 / (1 - 0.95f)};
    vector_best()->adam(&adam, w, g, m, v, 3);
    assert_true(fabsf(w[0] - 0.9f) < 1e-5f);
    assert_true(fabsf(w[1] - 1.1f) < 1e-4f);
    assert_true(w[2] == 1);
    adam.decay = 0.5f;
    g[2] = 0;
    vector_best()->adam(&adam, w + 2, g + 2, m + 2, v + 2, 1);
    assert_true(fabsf(w[2] - 0.95f) < 1e-6f);
}

/* Singular values of orthogonalised matrices, by the eigenvalues of x x^T. */
static void
test_muon_when_orthogonalised_then_singular_values_near_one(void **state)
{
    (void)state;
    static const size_t shapes[][2] = {{24, 24}, {16, 40}, {40, 16}, {1, 8}};
    struct mb_rng rng;
    mb_rng_init(&rng, 11);
    blas_begin();
    for (size_t s = 0; s < sizeof(shapes) / sizeof(*shapes); s++) {
        size_t rows = shapes[s][0];
        size_t cols = shapes[s][1];
        size_t n = rows < cols ? rows : cols;
        float x[40 * 40];
        double gram[40 * 40] = {0};
        double values[40];
        float *room = mb_calloc(muon_room(rows, cols), sizeof(*room));
        assert_non_null(room);
        fill(&rng, x, rows * cols, 7);
        muon_orthogonalise(x, rows, cols, room);
        for (size_t i = 0; i < n; i++) {
            for (size_t j = 0; j < n; j++) {
                for (size_t k = 0; k < rows * cols / n; k++) {
                    float a = rows <= cols ? x[i * cols + k] : x[k * cols + i];
                    float b = rows <= cols ? x[j * cols + k] : x[k * cols + j];
                    gram[i * n + j] += (double)a * (double)b;
                }
            }
        }
        assert_int_equal(blas_eigen(n, gram, values), MB_OK);
        /* A square random matrix may have one value too near zero. */
        assert_true(values[rows == cols ? 1 : 0] > 0.3 * 0.3);
        assert_true(values[n - 1] < 1.3 * 1.3);
        mb_free(room);
    }
}

/* A step has the direction of U V^T: along one pair of vectors it is their
 * product, whatever the gradient's size, with a mean square of 0.2^2. */
static void
test_muon_when_gradient_is_scaled_then_same_step(void **state)
{
    (void)state;
    struct muon muon = {.rate = 0.1f, .momentum = 0.95f, .scale = 1};
    struct mb_rng rng;
    float g[12 * 20];
    float w[2][12 * 20] = {{0}};
    float m[2][12 * 20] = {{0}};
    double square = 0;
    float *room = mb_calloc(muon_room(12, 20), sizeof(*room));
    assert_non_null(room);
    blas_begin();
    mb_rng_init(&rng, 12);
    fill(&rng, g, 12 * 20, 1);
    muon_step(&muon, w[0], g, m[0], 12, 20, room);
    muon.scale = 1e-3f;
    muon_step(&muon, w[1], g, m[1], 12, 20, room);
    for (size_t i = 0; i < 12 * 20; i++) {
        assert_true(fabsf(w[0][i] - w[1][i]) < 1e-4f);
        square += (double)w[0][i] * (double)w[0][i];
    }
    double rms = sqrt(square / (12 * 20)) / 0.1;
    assert_true(rms > 0.14 && rms < 0.26);
    mb_free(room);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_trainer_when_new_then_weights_are_named_and_drawn),
        cmocka_unit_test(test_step_when_text_has_a_rule_then_it_is_learnt),
        cmocka_unit_test(test_step_when_repeated_then_same_bits),
        cmocka_unit_test(
            test_step_when_activations_are_recomputed_then_same_bits),
        cmocka_unit_test(
            test_step_when_activations_are_bytes_then_nearly_the_same),
        cmocka_unit_test(test_step_when_resumed_then_same_bits),
        cmocka_unit_test(test_step_when_weights_are_frozen_then_they_stay),
        cmocka_unit_test(test_step_when_input_is_bad_then_named_and_unchanged),
        cmocka_unit_test(test_step_when_by_muon_then_learnt_and_same_bits),
        cmocka_unit_test(test_trainer_when_shape_is_impossible_then_refused),
        cmocka_unit_test(test_vector_when_compared_then_near_plain),
        cmocka_unit_test(test_adam_when_first_step_then_moves_by_rate),
        cmocka_unit_test(
            test_muon_when_orthogonalised_then_singular_values_near_one),
        cmocka_unit_test(test_muon_when_gradient_is_scaled_then_same_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
