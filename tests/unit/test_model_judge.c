/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_judge.c - a judge sees what the trainer sees, and a
 * model that goes to a file comes back. */
#include "mb_test.h"

#include "mb_import.h"
#include "mb_judge.h"
#include "mb_test_gguf.h"

#include <math.h>

#define ROWS      70u
#define N_WINDOWS 3u
#define MAX_W     32u

static const struct train_shape tiny = {
    .n_layers = 2,
    .d_model = 32,
    .n_heads = 4,
    .n_kv_heads = 2,
    .head_dim = 8,
    .d_ff = 64,
    .n_vocab = 300,
    .n_ctx = ROWS,
    .rope_base = 10000,
    .norm_eps = 1e-5,
};

struct rig {
    struct mb_test_dir dir;
    struct trainer *trainer;
    struct export_weight weights[MAX_W];
    size_t n_weights;
    mb_token_id tokens[N_WINDOWS][ROWS];
    mb_token_id targets[N_WINDOWS][ROWS];
    bool is_landmark[ROWS];
    struct train_window windows[N_WINDOWS];
    float nll[2][N_WINDOWS][ROWS];
    mb_token_id best[N_WINDOWS][ROWS];
    float *nll_of[N_WINDOWS];
    mb_token_id *best_of[N_WINDOWS];
};

static int
setup(void **state)
{
    struct rig *rig = mb_calloc(1, sizeof *rig);
    struct train_options options = {.n_threads = 2, .seed = 3};
    assert_non_null(rig);
    rig->dir = mb_test_dir_begin();
    assert_ok(trainer_new(&tiny, &options, &rig->trainer, NULL));
    rig->n_weights = trainer_n_weights(rig->trainer);
    assert_true(rig->n_weights <= MAX_W);
    for (size_t i = 0; i < rig->n_weights; i++) {
        const struct train_weight *w = trainer_weight(rig->trainer, i);
        rig->weights[i] =
            (struct export_weight){w->name, w->n_rows, w->n_cols, w->value};
        // Far from even chances.
        for (size_t j = 0; j < w->n_rows * w->n_cols; j++)
            w->value[j] *= w->n_rows > 1 ? 8 : 1;
    }
    for (size_t r = 0; r < ROWS; r++)
        rig->is_landmark[r] = r == 20;
    for (size_t i = 0; i < N_WINDOWS; i++) {
        for (size_t r = 0; r < ROWS; r++) {
            rig->tokens[i][r] = (mb_token_id)((i + 3) * r * 7 % 300);
            rig->targets[i][r] =
                r % 9 == 2 ? -1 : (mb_token_id)((i + 3) * (r + 1) * 7 % 300);
        }
        rig->windows[i] = (struct train_window){ROWS, rig->tokens[i],
            rig->targets[i], i == 1 ? rig->is_landmark : NULL};
        rig->nll_of[i] = rig->nll[0][i];
        rig->best_of[i] = rig->best[i];
    }
    *state = rig;
    return 0;
}

static int
teardown(void **state)
{
    struct rig *rig = *state;
    trainer_free(rig->trainer);
    mb_test_dir_end(&rig->dir);
    mb_free(rig);
    return 0;
}

static void
judge_all(struct rig *rig, const struct export_weight *weights, size_t n,
    unsigned n_threads)
{
    struct judge *j = NULL;
    struct mb_error err;
    assert_status(
        MB_OK, judge_new(&tiny, weights, n, n_threads, &j, &err), &err);
    for (int again = 0; again < 2; again++)
        assert_status(MB_OK,
            judge_windows(
                j, rig->windows, N_WINDOWS, rig->nll_of, rig->best_of, &err),
            &err);
    judge_free(j);
}

/* The trainer's loss of every row: steps that move nothing, each with one
 * target alone. */
static void
train_rows(struct rig *rig, float nll[N_WINDOWS][ROWS])
{
    for (size_t i = 0; i < N_WINDOWS; i++) {
        struct train_window one = rig->windows[i];
        mb_token_id targets[ROWS];
        one.targets = targets;
        for (size_t r = 0; r < ROWS; r++) {
            struct train_result result = {0};
            for (size_t k = 0; k < ROWS; k++)
                targets[k] = k == r ? rig->targets[i][k] : -1;
            if (targets[r] >= 0)
                assert_ok(
                    trainer_step(rig->trainer, &one, 1, 0, &result, NULL));
            nll[i][r] = (float)result.loss;
        }
    }
}

static void
test_judge_when_asked_then_losses_are_the_trainers(void **state)
{
    struct rig *rig = *state;
    train_rows(rig, rig->nll[1]);
    for (unsigned n_threads = 1; n_threads < 4; n_threads += 2) {
        judge_all(rig, rig->weights, rig->n_weights, n_threads);
        assert_memory_equal(rig->nll[0], rig->nll[1], sizeof rig->nll[0]);
    }
}

/* A target's loss is least for the token that is called best: so it is when
 * the best tokens are made the targets, and no other target has less. */
static void
test_judge_when_asked_then_best_has_least_loss(void **state)
{
    struct rig *rig = *state;
    mb_token_id best[N_WINDOWS][ROWS];
    size_t n_right = 0;
    judge_all(rig, rig->weights, rig->n_weights, 2);
    memcpy(best, rig->best, sizeof best);
    memcpy(rig->targets, best, sizeof best);
    judge_all(rig, rig->weights, rig->n_weights, 2);
    memcpy(rig->nll[1], rig->nll[0], sizeof rig->nll[1]);
    assert_memory_equal(best, rig->best, sizeof best);
    for (mb_token_id other = 0; other < 300; other++) {
        for (size_t i = 0; i < N_WINDOWS; i++) {
            for (size_t r = 0; r < ROWS; r++)
                rig->targets[i][r] = other;
        }
        judge_all(rig, rig->weights, rig->n_weights, 2);
        for (size_t i = 0; i < N_WINDOWS; i++) {
            for (size_t r = 0; r < ROWS; r++) {
                bool is_less = rig->nll[0][i][r] < rig->nll[1][i][r] - 1e-5f;
                assert_false(is_less);
                n_right += best[i][r] == other;
            }
        }
    }
    assert_int_equal(N_WINDOWS * ROWS, n_right);
}

static void
test_judge_when_weights_do_not_fit_then_named(void **state)
{
    struct rig *rig = *state;
    struct judge *j = NULL;
    struct mb_error err;
    assert_status(MB_ERR_NOT_FOUND,
        judge_new(&tiny, rig->weights, rig->n_weights - 1, 1, &j, &err), &err);
    assert_non_null(strstr(err.text, "ffn_down"));
    rig->weights[2].n_rows++;
    assert_status(MB_ERR_MISMATCH,
        judge_new(&tiny, rig->weights, rig->n_weights, 1, &j, &err), &err);
    rig->weights[2].n_rows--;
    assert_null(j);
    assert_ok(judge_new(&tiny, rig->weights, rig->n_weights, 1, &j, NULL));
    rig->tokens[2][5] = 300;
    assert_status(MB_ERR_BAD_ARG,
        judge_windows(j, rig->windows, N_WINDOWS, rig->nll_of, NULL, &err),
        &err);
    assert_non_null(strstr(err.text, "window 2 row 5"));
    judge_free(j);
}

/* ---- files ---- */

static struct mb_gguf *
write_model(struct rig *rig, gguf_tensor_type type)
{
    char path[MB_TEST_PATH];
    struct test_gguf vocab;
    struct mb_gguf *v = NULL;
    struct mb_gguf *g = NULL;
    struct mb_error err;
    test_vocab_file(&vocab, NULL, 0, true);
    assert_ok(mb_gguf_open_memory(mb_buffer_slice(&vocab.file), &v, NULL));
    const struct export_options o = {
        .shape = &tiny,
        .weights = rig->weights,
        .n_weights = rig->n_weights,
        .vocab = v,
        .type = type,
    };
    mb_test_path(&rig->dir, "model.gguf", path);
    assert_status(MB_OK, export_gguf(path, &o, &err), &err);
    assert_ok(mb_gguf_open(path, &g, NULL));
    mb_gguf_close(v);
    test_gguf_free(&vocab);
    return g;
}

static void
test_import_when_exported_then_same_model(void **state)
{
    struct rig *rig = *state;
    static const gguf_tensor_type types[] = {GGUF_F32, GGUF_F16, GGUF_Q8_0};
    static const double limits[] = {0, 1e-3, 8e-3}; // of the largest value
    for (size_t k = 0; k < 3; k++) {
        struct mb_gguf *g = write_model(rig, types[k]);
        struct imported m;
        struct mb_error err;
        assert_status(MB_OK, import_gguf(g, &m, &err), &err);
        assert_int_equal(tiny.n_layers, m.shape.n_layers);
        assert_int_equal(tiny.head_dim, m.shape.head_dim);
        assert_int_equal(tiny.n_vocab, m.shape.n_vocab);
        assert_int_equal(tiny.n_ctx, m.shape.n_ctx);
        assert_true(m.shape.norm_eps == (double)(float)tiny.norm_eps);
        assert_int_equal(rig->n_weights, m.n_weights);
        for (size_t i = 0; i < m.n_weights; i++) {
            const struct export_weight *a = &m.weights[i];
            const struct export_weight *b = &rig->weights[i];
            double largest = 0;
            assert_string_equal(b->name, a->name);
            assert_int_equal(b->n_rows, a->n_rows);
            for (size_t x = 0; x < a->n_rows * a->n_cols; x++)
                largest = fmax(largest, fabs((double)b->value[x]));
            for (size_t x = 0; x < a->n_rows * a->n_cols; x++)
                assert_true(fabs((double)a->value[x] - (double)b->value[x]) <=
                            limits[k] * largest);
        }
        judge_all(rig, m.weights, m.n_weights, 1);
        imported_free(&m);
        mb_gguf_close(g);
    }
}

static void
test_import_when_file_is_of_another_kind_then_refused(void **state)
{
    (void)state;
    struct test_gguf file;
    struct mb_gguf *g = NULL;
    struct imported m;
    struct mb_error err;
    test_vocab_file(&file, NULL, 0, true);
    assert_ok(mb_gguf_open_memory(mb_buffer_slice(&file.file), &g, NULL));
    assert_status(MB_ERR_NOT_FOUND, import_gguf(g, &m, &err), &err);
    mb_gguf_close(g);
    test_gguf_str(&file, "general.architecture", "qwen3");
    test_gguf_end(&file);
    assert_ok(mb_gguf_open_memory(mb_buffer_slice(&file.file), &g, NULL));
    assert_status(MB_ERR_NOT_IMPLEMENTED, import_gguf(g, &m, &err), &err);
    mb_gguf_close(g);
    test_gguf_free(&file);
}

/* Keys of the tiny model, and an embedding, in a file of its own. */
static mb_status
import_heads(const char *key, uint32_t n_kv_heads, uint32_t head_dim,
    const char *scaling, struct mb_error *err)
{
    static const float embedding[300 * 32];
    const uint64_t dims[] = {32, 300};
    struct test_gguf file;
    struct mb_gguf *g = NULL;
    struct imported m;
    test_gguf_begin(&file);
    test_gguf_str(&file, "general.architecture", "llama");
    test_gguf_u32(&file, "llama.block_count", 2);
    test_gguf_u32(&file, "llama.embedding_length", 32);
    test_gguf_u32(&file, "llama.attention.head_count", 4);
    test_gguf_u32(&file, "llama.attention.head_count_kv", n_kv_heads);
    test_gguf_u32(&file, "llama.attention.key_length", head_dim);
    test_gguf_u32(&file, "llama.feed_forward_length", 64);
    test_gguf_u32(&file, "llama.context_length", 70);
    if (scaling)
        test_gguf_str(&file, "llama.rope.scaling.type", scaling);
    if (key)
        test_gguf_u32(&file, key, 4);
    test_gguf_tensor(&file, "token_embd.weight", GGUF_F32, 2, dims, embedding,
        sizeof embedding);
    test_gguf_end(&file);
    assert_ok(mb_gguf_open_memory(mb_buffer_slice(&file.file), &g, NULL));
    mb_status st = import_gguf(g, &m, err);
    mb_gguf_close(g);
    test_gguf_free(&file);
    return st;
}

/* What the trainer's attention cannot do is refused before it is asked. */
static void
test_import_when_heads_do_not_fit_then_refused(void **state)
{
    (void)state;
    struct mb_error err;
    assert_status(MB_ERR_NOT_FOUND, import_heads(NULL, 2, 8, NULL, &err), &err);
    assert_non_null(strstr(err.text, "output_norm.weight"));
    assert_status(MB_ERR_CORRUPT, import_heads(NULL, 3, 8, NULL, &err), &err);
    assert_status(MB_ERR_CORRUPT, import_heads(NULL, 8, 8, NULL, &err), &err);
    assert_status(MB_ERR_CORRUPT, import_heads(NULL, 2, 7, NULL, &err), &err);
    assert_status(MB_ERR_NOT_IMPLEMENTED,
        import_heads("llama.rope.dimension_count", 2, 8, NULL, &err), &err);
    assert_status(MB_ERR_NOT_IMPLEMENTED,
        import_heads("llama.rope.scaling.factor", 2, 8, "linear", &err), &err);
    assert_status(MB_ERR_NOT_IMPLEMENTED,
        import_heads("llama.rope.scaling.factor", 2, 8, "yarn", &err), &err);
}

static mb_status
read_and_judge(void *arg)
{
    struct rig *rig = arg;
    char path[MB_TEST_PATH];
    struct mb_gguf *g = NULL;
    struct imported m;
    struct judge *j = NULL;
    mb_status st =
        mb_gguf_open(mb_test_path(&rig->dir, "model.gguf", path), &g, NULL);
    if (st != MB_OK)
        return st;
    st = import_gguf(g, &m, NULL);
    if (st == MB_OK) {
        st = judge_new(&tiny, m.weights, m.n_weights, 1, &j, NULL);
        if (st == MB_OK)
            st = judge_windows(
                j, rig->windows, N_WINDOWS, rig->nll_of, NULL, NULL);
        judge_free(j);
        imported_free(&m);
    }
    mb_gguf_close(g);
    return st;
}

static void
test_judge_when_memory_is_short_then_no_memory(void **state)
{
    struct rig *rig = *state;
    mb_gguf_close(write_model(rig, GGUF_F32));
    mb_test_each_allocation(read_and_judge, rig);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_judge_when_asked_then_losses_are_the_trainers),
        TEST(test_judge_when_asked_then_best_has_least_loss),
        TEST(test_judge_when_weights_do_not_fit_then_named),
        TEST(test_import_when_exported_then_same_model),
        TEST(test_import_when_file_is_of_another_kind_then_refused),
        TEST(test_import_when_heads_do_not_fit_then_refused),
        TEST(test_judge_when_memory_is_short_then_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
