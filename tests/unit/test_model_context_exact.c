/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_context_exact.c - a context that retrieves, against the
 * paper's formulas in double.
 *
 * The reference keeps keys as they come, turns each at the position that the
 * rules of mb_context.h give it, and weighs rows by the grouped softmax as it
 * is written: nothing of partials, of keys turned beforehand or of slices is
 * shared. Landmark keys alone are rounded to fp16 as contexts round them. */
#include "mb_test_context.h"

#include <math.h>

#define D          64u /* d_model */
#define H          4u  /* heads */
#define KV         2u  /* key-value heads */
#define DIM        16u
#define FF         96u
#define LAYERS     3u
#define B          64u /* rows of a block */
#define N_TEXT     693u
#define MAX_BLOCKS (N_TEXT / 63 + 1)
#define MAX_ROWS   (N_TEXT + N_TEXT / 63)

struct reference {
    const struct test_model *model;
    size_t segment; /* blocks */
    size_t k;
    mb_tail tail;
    double (*keys)[KV][DIM]; /* (LAYERS * MAX_ROWS), not turned */
    double (*values)[KV][DIM];
    size_t n_rows;
};

/* ---- the model ---- */

static const float *
weight(const struct reference *r, const char *format, size_t layer)
{
    char name[64];
    (void)snprintf(name, sizeof name, "blk.%zu.%s", layer, format);
    for (size_t i = 0; i < r->model->n_weights; i++) {
        if (strcmp(r->model->weights[i].name, name) == 0 ||
            strcmp(r->model->weights[i].name, format) == 0)
            return r->model->weights[i].value;
    }
    fail_msg("no weight %s", name);
    return NULL;
}

static void
product(const float *W, const double *x, size_t n_out, size_t n_in, double *y)
{
    for (size_t i = 0; i < n_out; i++) {
        y[i] = 0;
        for (size_t j = 0; j < n_in; j++)
            y[i] += (double)W[i * n_in + j] * x[j];
    }
}

static void
norm(const float *w, const double *x, double *y)
{
    double sum = 0;
    for (size_t j = 0; j < D; j++)
        sum += x[j] * x[j];
    for (size_t j = 0; j < D; j++)
        y[j] = (double)w[j] * x[j] / sqrt(sum / D + 1e-5);
}

/* y = x turned to a position, which may be negative. */
static void
turn(const double *x, double position, double *y)
{
    for (size_t i = 0; i < DIM / 2; i++) {
        double angle = position * pow(10000, -2.0 * (double)i / DIM);
        y[2 * i] = x[2 * i] * cos(angle) - x[2 * i + 1] * sin(angle);
        y[2 * i + 1] = x[2 * i] * sin(angle) + x[2 * i + 1] * cos(angle);
    }
}

static double
dot(const double *a, const double *b)
{
    double sum = 0;
    for (size_t j = 0; j < DIM; j++)
        sum += a[j] * b[j];
    return sum / sqrt(DIM);
}

/* ---- attention ---- */

/* Where a query and what it sees stand. */
struct query {
    const struct reference *r;
    size_t layer;
    size_t kv;
    size_t row;    /* of the text, landmarks counted */
    size_t origin; /* first row of its segment */
    double q[DIM]; /* turned to its position */
};

static const double *
key_of(const struct query *q, size_t row)
{
    return q->r->keys[q->layer * MAX_ROWS + row][q->kv];
}

/* Logit of a row of a block whose first row stands at `base`. */
static double
logit(const struct query *q, size_t row, double base)
{
    double turned[DIM];
    turn(key_of(q, row), base + (double)(row % B), turned);
    return dot(q->q, turned);
}

/* Logit of a block's landmark, its key rounded as it stands in its block. */
static double
landmark_logit(const struct query *q, size_t block, double base)
{
    double turned[DIM];
    turn(key_of(q, block * B + 63), 63, turned);
    for (size_t j = 0; j < DIM; j++)
        turned[j] =
            (double)mb_half_to_float(mb_half_from_float((float)turned[j]));
    double at_base[DIM];
    turn(turned, base, at_base);
    return dot(q->q, at_base);
}

/* What a query sees: own rows and blocks, each with its logit in the shared
 * group. */
struct seen {
    double z[MAX_BLOCKS + B];
    double o[MAX_BLOCKS + B][DIM];
    size_t n;
};

static void
see_block(const struct query *q, size_t block, double base, struct seen *seen)
{
    double sum = 0;
    double *o = seen->o[seen->n];
    memset(o, 0, sizeof seen->o[0]);
    for (size_t i = 0; i < 63; i++) {
        double w = exp(logit(q, block * B + i, base));
        const double *v =
            q->r->values[q->layer * MAX_ROWS + block * B + i][q->kv];
        sum += w;
        for (size_t j = 0; j < DIM; j++)
            o[j] += w * v[j];
    }
    for (size_t j = 0; j < DIM; j++)
        o[j] /= sum;
    seen->z[seen->n++] = landmark_logit(q, block, base);
}

static double
half(double x)
{
    return (double)mb_half_to_float(mb_half_from_float((float)x));
}

/* A block that was not chosen: one row of the mean of its values. Keys as they
 * lie in their block; statistics are kept in fp16. */
static void
see_tail(const struct query *q, size_t block, double base, struct seen *seen)
{
    double mean[DIM] = {0};
    double variance[DIM] = {0};
    double at_base[DIM];
    double key[DIM];
    double z = landmark_logit(q, block, base);
    double *o = seen->o[seen->n];
    memset(o, 0, sizeof seen->o[0]);
    for (size_t i = 0; i < 63; i++) {
        turn(key_of(q, block * B + i), (double)i, key);
        for (size_t j = 0; j < DIM; j++) {
            mean[j] += key[j] / 63;
            variance[j] += key[j] * key[j] / 63;
            o[j] +=
                q->r->values[q->layer * MAX_ROWS + block * B + i][q->kv][j] /
                63;
        }
    }
    for (size_t j = 0; j < DIM; j++) {
        variance[j] = half(variance[j] - mean[j] * mean[j]);
        mean[j] = half(mean[j]);
        o[j] = half(o[j]);
    }
    if (q->r->tail == MB_TAIL_MOMENTS) {
        turn(q->q, -base, at_base); // the query as the block's rows meet it
        z = dot(at_base, mean) + log(63);
        for (size_t j = 0; j < DIM; j++)
            z += at_base[j] * at_base[j] / DIM * variance[j] / 2;
    }
    seen->z[seen->n++] = z;
}

/* The spec's slots: of n blocks the newest k have their own, older ones are
 * scored in slot 0. */
static void
see_chosen(const struct query *q, size_t n, struct seen *seen)
{
    size_t k = q->r->k < n ? q->r->k : n;
    bool is_chosen[MAX_BLOCKS] = {false};
    for (size_t turns = 0; turns < k; turns++) {
        size_t best = n;
        double most = -INFINITY;
        for (size_t b = 0; b < n; b++) {
            double slot = b >= n - k ? (double)(b - (n - k) + 1) : 0;
            double z =
                landmark_logit(q, b, (slot - (double)(k + 1)) * (double)B);
            if (!is_chosen[b] && z > most) {
                most = z;
                best = b;
            }
        }
        is_chosen[best] = true;
    }
    size_t rank = 0;
    for (size_t b = 0; b < n; b++) {
        double scored = b >= n - k ? (double)(b - (n - k) + 1) : 0;
        if (!is_chosen[b] && q->r->tail != MB_TAIL_NONE)
            see_tail(q, b, (scored - (double)(k + 1)) * (double)B, seen);
        if (!is_chosen[b])
            continue;
        double slot = (double)rank++ + (b >= n - k ? 1 : 0);
        see_block(q, b, (slot - (double)(k + 1)) * (double)B, seen);
    }
}

static void
attend(const struct query *q, double *out)
{
    struct seen seen = {.n = 0};
    size_t own = q->row / B;
    double sum = 0;
    see_chosen(q, q->origin / B, &seen);
    for (size_t b = q->origin / B; b < own; b++)
        see_block(q, b, (double)(b * B - q->origin), &seen);
    for (size_t row = own * B; row <= q->row && row % B < 63; row++) {
        seen.z[seen.n] = logit(q, row, (double)(own * B - q->origin));
        memcpy(seen.o[seen.n++], q->r->values[q->layer * MAX_ROWS + row][q->kv],
            sizeof seen.o[0]);
    }
    memset(out, 0, DIM * sizeof *out);
    for (size_t i = 0; i < seen.n; i++)
        sum += exp(seen.z[i]);
    for (size_t i = 0; i < seen.n; i++) {
        for (size_t j = 0; j < DIM; j++)
            out[j] += exp(seen.z[i]) / sum * seen.o[i][j];
    }
}

/* ---- a row ---- */

static void
layer_row(struct reference *r, size_t l, double x[D])
{
    double h[D];
    double q[H * DIM];
    double heads[H * DIM];
    double gate[FF];
    double up[FF];
    size_t origin = r->n_rows / (r->segment * B) * (r->segment * B);
    norm(weight(r, "attn_norm.weight", l), x, h);
    product(weight(r, "attn_q.weight", l), h, H * DIM, D, q);
    product(weight(r, "attn_k.weight", l), h, KV * DIM, D,
        r->keys[l * MAX_ROWS + r->n_rows][0]);
    product(weight(r, "attn_v.weight", l), h, KV * DIM, D,
        r->values[l * MAX_ROWS + r->n_rows][0]);
    for (size_t head = 0; head < H; head++) {
        struct query query = {r, l, head / (H / KV), r->n_rows, origin, {0}};
        turn(q + head * DIM, (double)(r->n_rows - origin), query.q);
        attend(&query, heads + head * DIM);
    }
    product(weight(r, "attn_output.weight", l), heads, D, H * DIM, h);
    for (size_t j = 0; j < D; j++)
        x[j] += h[j];
    norm(weight(r, "ffn_norm.weight", l), x, h);
    product(weight(r, "ffn_gate.weight", l), h, FF, D, gate);
    product(weight(r, "ffn_up.weight", l), h, FF, D, up);
    for (size_t i = 0; i < FF; i++)
        gate[i] *= up[i] / (1 + exp(-gate[i]));
    product(weight(r, "ffn_down.weight", l), gate, D, FF, h);
    for (size_t j = 0; j < D; j++)
        x[j] += h[j];
}

/* Read a row; its loss on the target. */
static double
read_row(struct reference *r, mb_token_id token, mb_token_id target)
{
    const float *E = weight(r, "token_embd.weight", 0);
    double x[D];
    double h[D];
    double logits[TEST_VOCAB];
    double sum = 0;
    for (size_t j = 0; j < D; j++)
        x[j] = (double)E[(size_t)token * D + j];
    for (size_t l = 0; l < LAYERS; l++)
        layer_row(r, l, x);
    r->n_rows++;
    norm(weight(r, "output_norm.weight", 0), x, h);
    product(E, h, TEST_VOCAB, D, logits);
    for (size_t i = 0; i < TEST_VOCAB; i++)
        sum += exp(logits[i]);
    return log(sum) - logits[target];
}

static void
read_text(struct reference *r, double *nll, size_t n)
{
    for (size_t t = 0; t < n; t++) {
        nll[t] = read_row(r, r->model->text[t], r->model->targets[t]);
        if (r->n_rows % B == 63)
            (void)read_row(r, TEST_LANDMARK, 0);
    }
}

/* ---- tests ---- */

/* Where two blocks have nearly the same logit, float may choose the other one,
 * and the row's loss is another: a few rows may differ, as few as there are
 * such draws. A wrong place or block changes nearly all. */
#define DRAWS (N_TEXT / 50)

/* The first n losses of a context; all but `max_far` are within `limit`. */
static void
check(size_t segment, size_t k, mb_tail tail, size_t n, double limit,
    size_t max_far)
{
    static float got[TEST_TOKENS];
    static double want[N_TEXT];
    struct test_model model;
    struct mb_context_memory *memory = NULL;
    struct mb_context *ctx = NULL;
    struct mb_context_options o = {
        .landmark = TEST_LANDMARK,
        .type = MB_CACHE_F32,
        .segment_blocks = segment,
        .modes = {.k = k > 0 ? k : MB_CONTEXT_NONE, .tail = tail},
    };
    size_t n_far = 0;
    test_model_begin(&model, 600, 2);
    struct reference r = {&model, segment, k, tail, NULL, NULL, 0};
    r.keys = mb_calloc(LAYERS * MAX_ROWS, sizeof *r.keys);
    r.values = mb_calloc(LAYERS * MAX_ROWS, sizeof *r.values);
    assert_true(r.keys && r.values);
    read_text(&r, want, n);
    assert_ok(mb_context_memory_new(&memory, NULL));
    struct mb_context_source source = mb_context_memory_source(memory);
    assert_ok(mb_context_new(model.decoder, &o, &source, &ctx, NULL));
    test_read(&model, ctx, 0, n, MB_ROWS_PREFILL, got, NULL);
    for (size_t t = 0; t < n; t++) {
        double far = fabs(want[t] - (double)got[t]);
        assert_true(isfinite(far));
        n_far += far > limit ? 1 : 0;
    }
    if (n_far > max_far)
        fail_msg("%zu of %zu losses differ", n_far, n);
    mb_context_free(ctx);
    mb_context_memory_free(memory);
    mb_free(r.keys);
    mb_free(r.values);
    test_model_end(&model);
}

static void
test_context_when_one_block_is_retrieved_then_as_formulas(void **state)
{
    (void)state;
    check(1, 1, MB_TAIL_NONE, N_TEXT, 2e-3, DRAWS);
}

static void
test_context_when_few_of_many_are_retrieved_then_as_formulas(void **state)
{
    (void)state;
    check(2, 3, MB_TAIL_NONE, N_TEXT, 2e-3, DRAWS);
}

/* All blocks are chosen, each at its true place: the grouped softmax over the
 * whole text, as it is trained. No row may differ but by rounding of sums. */
static void
test_context_when_all_are_retrieved_then_as_trained(void **state)
{
    (void)state;
    check(4, 4, MB_TAIL_NONE, 8 * (B - 1), 1e-4, 0);
}

static void
test_context_when_with_a_tail_then_as_formulas(void **state)
{
    (void)state;
    check(1, 2, MB_TAIL_MOMENTS, N_TEXT, 2e-3, DRAWS);
    check(2, 3, MB_TAIL_LANDMARK, N_TEXT, 2e-3, DRAWS);
    check(2, 0, MB_TAIL_MOMENTS, N_TEXT, 2e-3, 0); // all blocks are its
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_context_when_one_block_is_retrieved_then_as_formulas),
        cmocka_unit_test(
            test_context_when_few_of_many_are_retrieved_then_as_formulas),
        cmocka_unit_test(test_context_when_all_are_retrieved_then_as_trained),
        cmocka_unit_test(test_context_when_with_a_tail_then_as_formulas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
