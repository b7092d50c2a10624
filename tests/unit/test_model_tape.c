/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_tape.c - gradients against finite differences in
 * double, and the float tape against its twin in double. */
#include "mb_test.h"

#include "graph.h"
/* and once more, in double */
#define TRAIN_DOUBLE
#include "graph.h"

#include <math.h>

#define MAX_INPUTS 4u

/* A computation on inputs x that ends in one number. */
typedef struct tape_var_f64 (*compute_fn)(
    struct tape_f64 *t, const struct tape_var_f64 *x, void *arg);

static void
fill(struct mb_rng *rng, double *x, size_t n, double scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = mb_rng_normal(rng) * scale;
}

/* A number that depends on every value of y with another weight: without a
 * gradient of its own beyond y. */
static struct tape_var_f64
mix(struct tape_f64 *t, struct tape_var_f64 y)
{
    struct mb_rng rng;
    mb_rng_init(&rng, 99);
    struct tape_var_f64 R = tape_make_f64(t, 3, y.cols, false);
    struct tape_var_f64 U = tape_make_f64(t, y.rows, 3, false);
    fill(&rng, R.value, 3 * y.cols, 1);
    fill(&rng, U.value, y.rows * 3, 1);
    return tape_sum_f64(t, tape_swiglu_f64(t, tape_linear_f64(t, y, R), U));
}

/* Gradients of fn against central differences: relative to the largest of a
 * matrix, 1e-6, where a step of 1e-5 leaves about 1e-9. */
static void
check_gradients(
    compute_fn fn, struct tape_var_f64 *x, size_t n_inputs, void *arg)
{
    struct tape_f64 *t = tape_new_f64((size_t)1 << 30);
    assert_non_null(t);
    tape_reset_f64(t, true);
    struct tape_var_f64 loss = fn(t, x, arg);
    tape_backward_f64(t, loss);
    assert_false(tape_failed_f64(t));
    for (size_t k = 0; k < n_inputs; k++) {
        double largest = 0;
        for (size_t i = 0; x[k].grad && i < x[k].rows * x[k].cols; i++)
            largest = fmax(largest, fabs(x[k].grad[i]));
        for (size_t i = 0; x[k].grad && i < x[k].rows * x[k].cols; i++) {
            double before = x[k].value[i];
            double up = 0;
            double down = 0;
            tape_reset_f64(t, false);
            x[k].value[i] = before + 1e-5;
            up = fn(t, x, arg).value[0];
            tape_reset_f64(t, false);
            x[k].value[i] = before - 1e-5;
            down = fn(t, x, arg).value[0];
            x[k].value[i] = before;
            double want = (up - down) / 2e-5;
            if (fabs(want - x[k].grad[i]) > 1e-6 * (largest + 1e-3))
                fail_msg("input %zu value %zu: gradient %.12g, difference "
                         "quotient %.12g, largest %g",
                    k, i, x[k].grad[i], want, largest);
        }
    }
    tape_free_f64(t);
}

/* Random inputs of the given shapes. */
static void
make_inputs(struct tape_var_f64 *x, const size_t (*shape)[2], size_t n)
{
    struct mb_rng rng;
    mb_rng_init(&rng, 5);
    for (size_t i = 0; i < n; i++) {
        size_t size = shape[i][0] * shape[i][1];
        x[i] = (struct tape_var_f64){shape[i][0], shape[i][1],
            mb_calloc(size, sizeof(double)), mb_calloc(size, sizeof(double))};
        assert_true(x[i].value && x[i].grad);
        fill(&rng, x[i].value, size, 1);
    }
}

static void
free_inputs(struct tape_var_f64 *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        mb_free(x[i].value);
        mb_free(x[i].grad);
    }
}

static void
check_op(compute_fn fn, const size_t (*shape)[2], size_t n, void *arg)
{
    struct tape_var_f64 x[MAX_INPUTS];
    make_inputs(x, shape, n);
    check_gradients(fn, x, n, arg);
    free_inputs(x, n);
}

/* ---- operations ---- */

static const int32_t some_rows[] = {2, 0, 2, 4};

static struct tape_var_f64
do_gather(struct tape_f64 *t, const struct tape_var_f64 *x, void *arg)
{
    (void)arg;
    return mix(t, tape_gather_f64(t, x[0], some_rows, 4));
}

static struct tape_var_f64
do_scatter(struct tape_f64 *t, const struct tape_var_f64 *x, void *arg)
{
    (void)arg;
    return mix(t, tape_scatter_f64(t, x[0], some_rows, 5));
}

static struct tape_var_f64
do_linear(struct tape_f64 *t, const struct tape_var_f64 *x, void *arg)
{
    (void)arg;
    return mix(t, tape_linear_f64(t, x[0], x[1]));
}

static struct tape_var_f64
do_product(struct tape_f64 *t, const struct tape_var_f64 *x, void *arg)
{
    (void)arg;
    return mix(t, tape_product_f64(t, x[0], x[1]));
}

static struct tape_var_f64
do_norm(struct tape_f64 *t, const struct tape_var_f64 *x, void *arg)
{
    (void)arg;
    return mix(t, tape_rms_norm_f64(t, x[0], x[1], 1e-5));
}

/* Turning is in place: what it turns must not be an input. */
static struct tape_var_f64
do_rope(struct tape_f64 *t, const struct tape_var_f64 *x, void *arg)
{
    (void)arg;
    return mix(t, tape_rope_f64(t, tape_scale_f64(t, x[0], 0.7), 4, 3, 100.0));
}

static struct tape_var_f64
do_swiglu(struct tape_f64 *t, const struct tape_var_f64 *x, void *arg)
{
    (void)arg;
    return mix(t, tape_swiglu_f64(t, x[0], x[1]));
}

static struct tape_var_f64
do_add_twice(struct tape_f64 *t, const struct tape_var_f64 *x, void *arg)
{
    (void)arg;
    struct tape_var_f64 y = tape_add_f64(t, x[0], x[1]);
    return mix(t, tape_add_f64(t, y, x[0])); // x[0] is used twice
}

static const int32_t some_targets[] = {3, -1, 0, 6, 6};

static struct tape_var_f64
do_cross_entropy(struct tape_f64 *t, const struct tape_var_f64 *x, void *arg)
{
    (void)arg;
    return tape_cross_entropy_f64(t, x[0], x[1], some_targets, 0.3, NULL);
}

static const int32_t kl_index[] = {1, 4, 0, 2, 6, 5, 3, 1, 0, 6};
static const double kl_p[] = {.5, .5, .2, .3, 1, 0, .1, .6, .25, .25};

static struct tape_var_f64
do_kl(struct tape_f64 *t, const struct tape_var_f64 *x, void *arg)
{
    (void)arg;
    return tape_kl_f64(t, x[0], x[1], kl_index, kl_p, 2, 0.4);
}

static struct tape_var_f64
do_attention(struct tape_f64 *t, const struct tape_var_f64 *x, void *arg)
{
    struct tape_heads heads = {4, 2, 2};
    const struct tape_blocks *blocks = arg;
    return mix(t, tape_attention_f64(t, x[0], x[1], x[2], heads, *blocks));
}

static struct tape_var_f64
square_part(struct tape_f64 *t, void *arg, struct tape_var_f64 x)
{
    const struct tape_var_f64 *W = arg;
    return tape_swiglu_f64(t, tape_linear_f64(t, x, *W), x);
}

static struct tape_var_f64
do_recompute(struct tape_f64 *t, const struct tape_var_f64 *x, void *arg)
{
    (void)arg;
    struct tape_var_f64 y = tape_recompute_f64(
        t, square_part, (void *)(uintptr_t)&x[1], x[0], false);
    y = tape_recompute_f64(t, square_part, (void *)(uintptr_t)&x[1], y, false);
    return mix(t, y);
}

static void
test_gradient_when_any_operation_then_equals_difference(void **state)
{
    (void)state;
    static const size_t one[][2] = {{5, 4}};
    static const size_t four[][2] = {{4, 4}};
    static const size_t pair[][2] = {{5, 4}, {6, 4}};
    static const size_t inner[][2] = {{5, 4}, {4, 6}};
    static const size_t norm[][2] = {{5, 4}, {1, 4}};
    static const size_t same[][2] = {{5, 4}, {5, 4}};
    static const size_t output[][2] = {{5, 4}, {7, 4}};
    static const size_t square[][2] = {{5, 4}, {4, 4}};
    check_op(do_gather, one, 1, NULL);
    check_op(do_scatter, four, 1, NULL);
    check_op(do_linear, pair, 2, NULL);
    check_op(do_product, inner, 2, NULL);
    check_op(do_norm, norm, 2, NULL);
    check_op(do_rope, one, 1, NULL);
    check_op(do_swiglu, same, 2, NULL);
    check_op(do_add_twice, same, 2, NULL);
    check_op(do_cross_entropy, output, 2, NULL);
    check_op(do_kl, output, 2, NULL);
    check_op(do_recompute, square, 2, NULL);
}

/* Rows enough for two tiles, blocks of several sizes: one of a landmark alone,
 * the last open, then closed. */
static void
test_gradient_when_attention_then_equals_difference(void **state)
{
    (void)state;
    static const size_t small[][2] = {{9, 8}, {9, 4}, {9, 4}};
    static const size_t large[][2] = {{70, 8}, {70, 4}, {70, 4}};
    static const size_t starts[] = {0, 3, 4, 7, 9};
    static const size_t behind[] = {3, 4, 7, 9}; // three rows in front
    struct tape_blocks plain = {NULL, 0, false};
    struct tape_blocks fronted = {behind, 3, false};
    struct tape_blocks open = {starts, 4, false};
    struct tape_blocks closed = {starts, 4, true};
    check_op(do_attention, small, 3, &plain);
    check_op(do_attention, small, 3, &open);
    check_op(do_attention, small, 3, &closed);
    check_op(do_attention, small, 3, &fronted);
    check_op(do_attention, large, 3, &plain);
}

/* ---- attention against its definition ---- */

/* Weights of query i by the groups' definition, one head; rows before start[0]
 * are seen like own ones. */
static void
defined_weights(const double *z, size_t i, const size_t *start, size_t n_blocks,
    bool is_last_closed, double *a)
{
    size_t own = 0;
    double Z = 0;
    while (start[own + 1] <= i)
        own++;
    for (size_t j = 0; j <= i; j++) {
        a[j] = j < start[0] ? exp(z[j]) : 0;
        Z += a[j];
    }
    bool is_closed = own + 1 < n_blocks || is_last_closed;
    for (size_t j = start[own]; j <= i; j++) {
        if (!(is_closed && j + 1 == start[own + 1]))
            Z += exp(z[j]);
    }
    for (size_t b = 0; b < own; b++) {
        if (start[b + 1] - start[b] > 1)
            Z += exp(z[start[b + 1] - 1]);
    }
    for (size_t j = start[own]; j <= i; j++) {
        if (!(is_closed && j + 1 == start[own + 1]))
            a[j] = exp(z[j]) / Z;
    }
    for (size_t j = 0; j < start[0] && j <= i; j++)
        a[j] /= Z;
    for (size_t b = 0; b < own; b++) {
        double inside = 0;
        size_t l = start[b + 1] - 1;
        for (size_t j = start[b]; j < l; j++)
            inside += exp(z[j]);
        for (size_t j = start[b]; j < l; j++)
            a[j] = exp(z[l]) / Z * exp(z[j]) / inside;
    }
}

static void
test_attention_when_grouped_then_weights_are_as_defined(void **state)
{
    (void)state;
    static const size_t all[][6] = {{0, 2, 6, 7, 11, 12}, {2, 4, 6, 7, 11, 12}};
    struct tape_var_f64 x[3];
    static const size_t shape[][2] = {{12, 2}, {12, 2}, {12, 2}};
    struct tape_f64 *t = tape_new_f64((size_t)1 << 26);
    assert_non_null(t);
    make_inputs(x, shape, 3);
    for (int form = 0; form < 4; form++) {
        const size_t *starts = all[form / 2];
        int closed = form % 2;
        tape_reset_f64(t, false);
        struct tape_var_f64 y = tape_attention_f64(t, x[0], x[1], x[2],
            (struct tape_heads){1, 1, 2},
            (struct tape_blocks){starts, 5, closed == 1});
        for (size_t i = 0; i < 12; i++) {
            double z[12];
            double a[12];
            double sum = 0;
            double want[2] = {0, 0};
            for (size_t j = 0; j <= i; j++)
                z[j] = (x[0].value[2 * i] * x[1].value[2 * j] +
                           x[0].value[2 * i + 1] * x[1].value[2 * j + 1]) /
                       sqrt(2);
            defined_weights(z, i, starts, 5, closed == 1, a);
            for (size_t j = 0; j <= i; j++) {
                sum += a[j];
                want[0] += a[j] * x[2].value[2 * j];
                want[1] += a[j] * x[2].value[2 * j + 1];
            }
            assert_true(fabs(sum - 1) < 1e-12);
            assert_true(fabs(want[0] - y.value[2 * i]) < 1e-12);
            assert_true(fabs(want[1] - y.value[2 * i + 1]) < 1e-12);
        }
    }
    free_inputs(x, 3);
    tape_free_f64(t);
}

/* ---- a whole model ---- */

#define MODEL_MATRICES 30u

static const struct train_shape tiny = {
    .n_layers = 2,
    .d_model = 8,
    .n_heads = 4,
    .n_kv_heads = 2,
    .head_dim = 4,
    .d_ff = 12,
    .n_vocab = 11,
    .n_ctx = 16,
    .rope_base = 100,
    .norm_eps = 1e-5,
};

/* Parameters of the tiny model, in the order of `place`. */
struct tiny_model {
    struct graph_model_f64 model;
    struct graph_layer_f64 layers[2];
    struct train_window window;
};

static size_t
shapes_of_model(size_t (*shape)[2], size_t memory_rows)
{
    size_t n = 0;
    size_t q = tiny.n_heads * tiny.head_dim;
    size_t kv = tiny.n_kv_heads * tiny.head_dim;
    const size_t layer[][2] = {{1, tiny.d_model}, {q, tiny.d_model},
        {kv, tiny.d_model}, {kv, tiny.d_model}, {tiny.d_model, q},
        {1, tiny.d_model}, {tiny.d_ff, tiny.d_model}, {tiny.d_ff, tiny.d_model},
        {tiny.d_model, tiny.d_ff}, {memory_rows, tiny.d_model},
        {memory_rows, tiny.d_model}, {memory_rows, tiny.d_model}};
    shape[n][0] = tiny.n_vocab;
    shape[n++][1] = tiny.d_model;
    shape[n][0] = 1;
    shape[n++][1] = tiny.d_model;
    for (size_t l = 0; l < 2; l++) {
        for (size_t i = 0; i < 12; i++, n++) {
            shape[n][0] = layer[i][0];
            shape[n][1] = layer[i][1];
        }
    }
    return n;
}

static void
place(struct tiny_model *m, const struct tape_var_f64 *x)
{
    m->model.embedding = x[0];
    m->model.output_norm = x[1];
    memcpy(m->layers, x + 2, sizeof(m->layers));
    m->model.layers = m->layers;
    m->model.shape = &tiny;
}

static struct tape_var_f64
do_model(struct tape_f64 *t, const struct tape_var_f64 *x, void *arg)
{
    struct tiny_model *m = arg;
    place(m, x);
    return graph_loss_f64(t, &m->model, &m->window, 0.2);
}

static const mb_token_id text[] = {1, 4, 2, 10, 3, 4, 7, 10, 5, 1};
static const mb_token_id next_token[] = {4, 2, 3, -1, 4, 7, 5, -1, 1, 0};
static const bool landmarks[] = {
    false, false, false, true, false, false, false, true, false, false};

static void
check_model(
    bool has_landmarks, size_t memory_rows, bool recompute, bool freezes_anchor)
{
    struct tape_var_f64 x[MODEL_MATRICES];
    size_t shape[MODEL_MATRICES][2];
    struct tiny_model m = {.model = {.recompute = recompute},
        .window = {10, text, next_token, has_landmarks ? landmarks : NULL}};
    size_t n = shapes_of_model(shape, memory_rows);
    make_inputs(x, (const size_t(*)[2])shape, n);
    for (size_t i = 0; i < n; i++) {
        bool is_memory = i >= 2 && (i - 2) % 12 >= 9;
        for (size_t j = 0; j < x[i].rows * x[i].cols; j++)
            x[i].value[j] *= x[i].rows == 1 ? 1 : 0.5;
        if (freezes_anchor && !is_memory) {
            mb_free(x[i].grad);
            x[i].grad = NULL;
        }
    }
    check_gradients(do_model, x, n, &m);
    free_inputs(x, n);
}

static void
test_model_when_differentiated_then_equals_difference(void **state)
{
    (void)state;
    check_model(false, 0, false, false);
    check_model(true, 0, false, false);
    check_model(false, 3, false, false);
    check_model(true, 3, true, false);
    check_model(false, 3, false, true);
    check_model(true, 3, true, true);
}

/* ---- the float tape ---- */

/* Copy a double matrix into a float one with a gradient of zeros. */
static struct tape_var_f32
to_float(struct tape_var_f64 x)
{
    size_t n = x.rows * x.cols;
    struct tape_var_f32 y = {x.rows, x.cols, mb_calloc(n + 1, sizeof(float)),
        mb_calloc(n + 1, sizeof(float))};
    assert_true(y.value && y.grad);
    for (size_t i = 0; i < n; i++) {
        y.value[i] = (float)x.value[i];
        x.value[i] = (double)y.value[i];
    }
    return y;
}

/* Float keeps 7 digits; sums over 150 rows, two layers and softmaxes that
 * amplify cost two. */
#define FLOAT_TOLERANCE 3e-5

/* The same model, data and weights in float: loss and gradients near those in
 * double, relative to the largest of a matrix. */
static void
check_float_model(bool has_landmarks, bool recompute)
{
    struct tape_var_f64 x[MODEL_MATRICES];
    struct tape_var_f32 y[MODEL_MATRICES];
    size_t shape[MODEL_MATRICES][2];
    mb_token_id tokens[150];
    mb_token_id targets[150];
    bool is_landmark[150];
    struct graph_layer_f32 layers[2];
    struct tiny_model m = {0};
    for (size_t i = 0; i < 150; i++) {
        tokens[i] = (mb_token_id)(i * 7 % 11);
        targets[i] = i % 64 == 40 ? -1 : (mb_token_id)(i * 5 % 11);
        is_landmark[i] = i % 64 == 40;
    }
    m.window = (struct train_window){
        150, tokens, targets, has_landmarks ? is_landmark : NULL};
    size_t n = shapes_of_model(shape, 3);
    make_inputs(x, (const size_t(*)[2])shape, n);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < x[i].rows * x[i].cols; j++)
            x[i].value[j] *= x[i].rows == 1 ? 1 : 0.5;
        y[i] = to_float(x[i]);
    }
    struct tape_f64 *t64 = tape_new_f64((size_t)1 << 28);
    struct tape_f32 *t32 = tape_new_f32((size_t)1 << 28);
    assert_true(t64 && t32);
    tape_reset_f64(t64, true);
    tape_reset_f32(t32, true);
    struct tape_var_f64 want = do_model(t64, x, &m);
    tape_backward_f64(t64, want);
    memcpy(layers, y + 2, sizeof(layers));
    struct graph_model_f32 model = {
        &tiny, y[0], y[1], layers, recompute, false};
    struct tape_var_f32 got = graph_loss_f32(t32, &model, &m.window, 0.2);
    tape_backward_f32(t32, got);
    assert_false(tape_failed_f32(t32));
    assert_true(
        fabs((double)got.value[0] - want.value[0]) < 1e-5 * want.value[0]);
    assert_true(tape_flops_f32(t32) > 0);
    for (size_t i = 0; i < n; i++) {
        double largest = 1e-6;
        for (size_t j = 0; j < x[i].rows * x[i].cols; j++)
            largest = fmax(largest, fabs(x[i].grad[j]));
        for (size_t j = 0; j < x[i].rows * x[i].cols; j++) {
            double off = fabs((double)y[i].grad[j] - x[i].grad[j]);
            if (off > FLOAT_TOLERANCE * largest)
                fail_msg("matrix %zu value %zu is %g off, largest %g", i, j,
                    off, largest);
        }
        mb_free(y[i].value);
        mb_free(y[i].grad);
    }
    free_inputs(x, n);
    tape_free_f64(t64);
    tape_free_f32(t32);
}

static void
test_float_tape_when_compared_then_near_its_twin(void **state)
{
    (void)state;
    check_float_model(false, false);
    check_float_model(true, false);
    check_float_model(true, true);
}

/* ---- memory ---- */

static void
test_tape_when_memory_is_short_then_fails_and_recovers(void **state)
{
    (void)state;
    struct tape_f32 *t = tape_new_f32((size_t)20 << 20);
    assert_non_null(t);
    tape_reset_f32(t, true);
    struct tape_var_f32 x = tape_make_f32(t, 1024, 1024, true);
    assert_false(tape_failed_f32(t));
    x = tape_make_f32(t, 4096, 4096, false);
    assert_true(tape_failed_f32(t));
    x = tape_scale_f32(t, x, 2); // does nothing, and does not crash
    tape_backward_f32(t, tape_sum_f32(t, x));
    tape_reset_f32(t, true);
    x = tape_make_f32(t, 10, 10, true);
    assert_false(tape_failed_f32(t));
    assert_non_null(x.value);
    assert_true(tape_bytes_f32(t) <= (size_t)20 << 20);
    tape_free_f32(t);
    tape_free_f32(NULL);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_gradient_when_any_operation_then_equals_difference),
        cmocka_unit_test(test_gradient_when_attention_then_equals_difference),
        cmocka_unit_test(
            test_attention_when_grouped_then_weights_are_as_defined),
        cmocka_unit_test(test_model_when_differentiated_then_equals_difference),
        cmocka_unit_test(test_float_tape_when_compared_then_near_its_twin),
        cmocka_unit_test(
            test_tape_when_memory_is_short_then_fails_and_recovers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
