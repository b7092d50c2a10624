/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_bank_pass.c - memory blocks attached to a pass: without
 * effect when fresh, the same as wider layers, and of no matter to others. */
#include "mb_test_bank.h"

#include "mb_test_engine.h"

#include <math.h>

#include "bank_block.h"

/* Sums of the same products in another order, of logits around 1. */
#define CONCAT_ATOL 1e-5

#define N_TEXT 70u

static const mb_bank_type types[] = {MB_BANK_F32, MB_BANK_BF16, MB_BANK_Q8_0};

/* A model with what passes need. */
struct model {
    struct mb_decoder *decoder;
    struct mb_cache *cache;
    struct mb_pass *pass;
    size_t n_vocab;
};

static struct model
model_begin(const struct mb_gguf *gguf, mb_cache_type type, unsigned n_threads)
{
    struct model m;
    assert_ok(mb_decoder_open(gguf, &m.decoder, NULL));
    assert_ok(mb_cache_new(m.decoder, type, 4096, &m.cache, NULL));
    assert_ok(mb_pass_new(m.decoder, 512, n_threads, &m.pass, NULL));
    m.n_vocab = mb_decoder_info(m.decoder)->n_vocab;
    return m;
}

static void
model_end(struct model *m)
{
    mb_pass_free(m->pass);
    mb_cache_free(m->cache);
    mb_decoder_close(m->decoder);
}

static struct mb_bank_shape
shape_of(const struct model *m, size_t first_layer, size_t r1, size_t r2)
{
    const struct mb_decoder_info *info = mb_decoder_info(m->decoder);
    return (struct mb_bank_shape){.d_model = info->d_model,
        .first_layer = first_layer,
        .n_layers = info->n_layers - first_layer,
        .n_levels = 2,
        .rows = {r1, r2}};
}

/* A record of the bank; with `down` not zero unless it is to be fresh. */
static uint8_t *
make_record(const struct mb_bank_shape *s, uint64_t node, size_t level,
    mb_bank_type type, bool is_fresh, struct mb_bank_block *out)
{
    size_t rows = s->rows[level - 1];
    size_t size = mb_bank_record_bytes(s, rows, MB_BANK_F32);
    size_t served = mb_bank_record_bytes(s, rows, type);
    uint8_t *f32 = mb_alloc(size);
    uint8_t *record = mb_alloc(served);
    struct mb_bank_block b;
    struct mb_rng rng;
    assert_true(f32 && record);
    assert_ok(mb_bank_draw(s,
        &(struct mb_bank_draw){.seed = 1, .node = node, .level = level}, f32,
        size, NULL));
    assert_ok(mb_bank_block_open(mb_slice_of(f32, size), &b, NULL));
    mb_rng_init(&rng, node);
    for (size_t l = 0; l < b.n_layers && !is_fresh; l++) {
        struct tensor down = bank_matrix(&b, l, BANK_DOWN);
        for (size_t i = 0; i < down.n_rows * down.n_cols; i++)
            mb_put_lef32((uint8_t *)(uintptr_t)down.data + 4 * i,
                (float)mb_rng_normal(&rng) * 0.1f);
    }
    bank_seal(b, f32);
    assert_ok(mb_bank_convert(&b, type, record, served, NULL));
    assert_ok(mb_bank_block_open(mb_slice_of(record, served), out, NULL));
    mb_free(f32);
    return record;
}

/* A path of two blocks; record[] is to be freed. */
struct two {
    struct mb_bank_path path;
    uint8_t *record[2];
};

static struct two
make_two(const struct mb_bank_shape *s, uint64_t node, mb_bank_type type,
    bool is_fresh)
{
    struct two t = {.path = {.n_blocks = 2}};
    for (size_t i = 0; i < 2; i++)
        t.record[i] = make_record(s, i > 0 ? node : node / 10, i + 1, type,
            is_fresh, &t.path.blocks[i]);
    return t;
}

static void
free_two(struct two *t)
{
    mb_free(t->record[0]);
    mb_free(t->record[1]);
}

static mb_token_id
token(size_t seed, size_t i, size_t n_vocab)
{
    uint64_t key[] = {seed, i};
    return (mb_token_id)(mb_hash64(key, sizeof(key), 0) % n_vocab);
}

/* Logits of the last of n rows read and 3 more decoded, (4, n_vocab). */
static float *
logits_of(struct model *m, const struct mb_bank_path *path, size_t seed)
{
    mb_token_id tokens[N_TEXT + 3];
    struct mb_sequence *seq = NULL;
    float *logits = mb_calloc(4 * m->n_vocab, sizeof(float));
    assert_non_null(logits);
    assert_ok(mb_sequence_new(m->cache, &seq, NULL));
    for (size_t i = 0; i < N_TEXT + 3; i++)
        tokens[i] = token(seed, i, m->n_vocab);
    for (size_t i = 0; i < 4; i++) {
        struct mb_rows rows = {.seq = seq,
            .tokens = i > 0 ? tokens + N_TEXT + i - 1 : tokens,
            .n = i > 0 ? 1 : N_TEXT,
            .kind = i > 0 ? MB_ROWS_DECODE : MB_ROWS_PREFILL,
            .logits = logits + i * m->n_vocab,
            .bank = path};
        struct mb_error err;
        assert_status(MB_OK, mb_pass_run(m->pass, &rows, 1, &err), &err);
    }
    mb_sequence_free(seq);
    return logits;
}

static void
test_pass_when_blocks_are_fresh_then_same_bits_as_without(void **state)
{
    (void)state;
    struct mb_gguf *gguf = NULL;
    assert_ok(mb_gguf_open(TEST_ANCHOR, &gguf, NULL));
    struct model m = model_begin(gguf, MB_CACHE_F16, 2);
    struct mb_bank_shape s = shape_of(&m, 0, 72, 20);
    float *plain = logits_of(&m, NULL, 1);
    for (size_t t = 0; t < 3; t++) {
        struct two fresh = make_two(&s, 12, types[t], true);
        struct two full = make_two(&s, 12, types[t], false);
        float *a = logits_of(&m, &fresh.path, 1);
        float *b = logits_of(&m, &full.path, 1);
        assert_memory_equal(plain, a, 4 * m.n_vocab * sizeof(float));
        assert_memory_not_equal(plain, b, m.n_vocab * sizeof(float));
        mb_free(a);
        mb_free(b);
        free_two(&fresh);
        free_two(&full);
    }
    mb_free(plain);
    model_end(&m);
    mb_gguf_close(gguf);
}

/* ---- as wider layers ---- */

/* Copy rows of a block's matrix behind those of the layer. */
static void
widen(struct trainer *t, const char *part, size_t layer, const struct tensor *W,
    size_t at)
{
    char name[64];
    (void)snprintf(name, sizeof(name), "blk.%zu.%s.weight", layer, part);
    for (size_t i = 0; i < trainer_n_weights(t); i++) {
        struct train_weight *w = trainer_weight(t, i);
        if (strcmp(w->name, name) != 0)
            continue;
        bool is_down = strcmp(part, "ffn_down") == 0;
        for (size_t r = 0; r < W->n_rows; r++) {
            for (size_t c = 0; c < W->n_cols; c++) {
                size_t to =
                    is_down ? c * w->n_cols + at + r : (at + r) * w->n_cols + c;
                w->value[to] = mb_get_lef32(W->data + r * W->row_bytes + 4 * c);
            }
        }
        return;
    }
    fail_msg("no weight %s", name);
}

/* The tiny model's weights in one of other d_ff. */
static void
copy_weights(struct trainer *from, struct trainer *to)
{
    for (size_t i = 0; i < trainer_n_weights(from); i++) {
        struct train_weight *a = trainer_weight(from, i);
        struct train_weight *b = trainer_weight(to, i);
        memset(b->value, 0, b->n_rows * b->n_cols * sizeof(float));
        for (size_t r = 0; r < a->n_rows; r++)
            memcpy(b->value + r * b->n_cols, a->value + r * a->n_cols,
                a->n_cols * sizeof(float));
    }
}

static struct mb_gguf *
wide_model(const struct mb_test_dir *dir, const struct mb_bank_path *path)
{
    struct train_shape wide = bank_tiny;
    struct trainer *narrow = NULL;
    struct trainer *t = NULL;
    struct mb_gguf *gguf = NULL;
    char file[1024];
    size_t at = bank_tiny.d_ff;
    for (size_t i = 0; i < path->n_blocks; i++)
        wide.d_ff += path->blocks[i].rows;
    assert_ok(
        trainer_new(&wide, &(struct train_options){.n_threads = 1}, &t, NULL));
    narrow = bank_tiny_trainer();
    copy_weights(narrow, t);
    for (size_t i = 0; i < path->n_blocks; i++) {
        const struct mb_bank_block *b = &path->blocks[i];
        for (size_t l = 0; l < b->n_layers; l++) {
            struct tensor gate = bank_matrix(b, l, BANK_GATE);
            struct tensor up = bank_matrix(b, l, BANK_UP);
            struct tensor down = bank_matrix(b, l, BANK_DOWN);
            widen(t, "ffn_gate", b->first_layer + l, &gate, at);
            widen(t, "ffn_up", b->first_layer + l, &up, at);
            widen(t, "ffn_down", b->first_layer + l, &down, at);
        }
        at += b->rows;
    }
    (void)snprintf(file, sizeof(file), "%s/wide.gguf", dir->path);
    bank_write_model(t, file);
    assert_ok(mb_gguf_open(file, &gguf, NULL));
    trainer_free(t);
    trainer_free(narrow);
    return gguf;
}

static void
test_pass_when_blocks_are_attached_then_as_wider_layers(void **state)
{
    (void)state;
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = bank_tiny_model(&dir);
    struct model m = model_begin(gguf, MB_CACHE_F32, 1);
    struct mb_bank_shape s = shape_of(&m, 1, 8, 5);
    struct two two = make_two(&s, 12, MB_BANK_F32, false);
    struct mb_gguf *wide_gguf = wide_model(&dir, &two.path);
    struct model wide = model_begin(wide_gguf, MB_CACHE_F32, 1);
    float *none = logits_of(&m, NULL, 2);
    float *attached = logits_of(&m, &two.path, 2);
    float *concat = logits_of(&wide, NULL, 2);
    double change = 0;
    for (size_t i = 0; i < 4 * m.n_vocab; i++) {
        double size = fmax(1, fabs((double)concat[i]));
        assert_true(fabs((double)attached[i] - (double)concat[i]) <=
                    CONCAT_ATOL * size);
        change = fmax(change, fabs((double)attached[i] - (double)none[i]));
    }
    assert_true(change > 0.01);
    mb_free(none);
    mb_free(attached);
    mb_free(concat);
    free_two(&two);
    model_end(&m);
    model_end(&wide);
    mb_gguf_close(gguf);
    mb_gguf_close(wide_gguf);
    mb_test_dir_end(&dir);
}

/* ---- together with others ---- */

#define N_MATES 8u

/* Eight texts of several paths, some shared in part, some of none, read and
 * then decoded together. */
static void
test_pass_when_paths_differ_then_same_bits_as_alone(void **state)
{
    (void)state;
    /* The leaf of each text; 0: none. Types go with leaves. */
    static const uint64_t leaf[N_MATES] = {11, 11, 12, 21, 0, 21, 11, 12};
    struct mb_gguf *gguf = NULL;
    assert_ok(mb_gguf_open(TEST_ANCHOR, &gguf, NULL));
    struct model m = model_begin(gguf, MB_CACHE_F16, 3);
    struct mb_bank_shape s = shape_of(&m, 3, 72, 20);
    struct two two[22] = {0};
    struct mb_sequence *seq[N_MATES];
    struct mb_rows rows[N_MATES];
    mb_token_id tokens[N_MATES][N_TEXT];
    float *got = mb_calloc(N_MATES * m.n_vocab, sizeof(float));
    float *alone[N_MATES];
    two[11] = make_two(&s, 11, MB_BANK_Q8_0, false);
    two[12] = make_two(&s, 12, MB_BANK_Q8_0, false);
    two[12].path.blocks[0] = two[11].path.blocks[0]; // one level in common
    two[21] = make_two(&s, 21, MB_BANK_BF16, false);
    assert_non_null(got);
    for (int step = 0; step < 4; step++) {
        for (size_t i = 0; i < N_MATES; i++) {
            if (step == 0) {
                assert_ok(mb_sequence_new(m.cache, &seq[i], NULL));
                alone[i] =
                    logits_of(&m, leaf[i] ? &two[leaf[i]].path : NULL, i);
                for (size_t r = 0; r < N_TEXT; r++)
                    tokens[i][r] = token(i, r, m.n_vocab);
            } else {
                tokens[i][0] = token(i, N_TEXT + (size_t)step - 1, m.n_vocab);
            }
            rows[i] = (struct mb_rows){.seq = seq[i],
                .tokens = tokens[i],
                .n = step == 0 ? N_TEXT / 2 : 1,
                .kind = step == 0 ? MB_ROWS_PREFILL : MB_ROWS_DECODE,
                .logits = got + i * m.n_vocab,
                .bank = leaf[i] ? &two[leaf[i]].path : NULL};
        }
        assert_ok(mb_pass_run(m.pass, rows, N_MATES, NULL));
        if (step == 0) {
            for (size_t i = 0; i < N_MATES; i++) {
                rows[i].tokens += N_TEXT / 2;
                rows[i].n = N_TEXT - N_TEXT / 2;
            }
            assert_ok(mb_pass_run(m.pass, rows, N_MATES, NULL));
        }
        for (size_t i = 0; i < N_MATES; i++)
            assert_memory_equal(alone[i] + (size_t)step * m.n_vocab,
                got + i * m.n_vocab, m.n_vocab * sizeof(float));
    }
    for (size_t i = 0; i < N_MATES; i++) {
        mb_sequence_free(seq[i]);
        mb_free(alone[i]);
    }
    for (size_t i = 0; i < 22; i++)
        free_two(&two[i]);
    mb_free(got);
    model_end(&m);
    mb_gguf_close(gguf);
}

static void
test_pass_when_block_is_of_another_model_then_refused(void **state)
{
    (void)state;
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = bank_tiny_model(&dir);
    struct model m = model_begin(gguf, MB_CACHE_F32, 1);
    mb_token_id one = 1;
    struct mb_sequence *seq = NULL;
    assert_ok(mb_sequence_new(m.cache, &seq, NULL));
    for (int i = 0; i < 2; i++) {
        struct mb_bank_shape s = shape_of(&m, 0, 8, 8);
        struct mb_error err;
        s.d_model += i == 0 ? 32 : 0;
        s.n_layers += i == 1;
        struct two two = make_two(&s, 1, MB_BANK_F32, false);
        struct mb_rows rows = {
            .seq = seq, .tokens = &one, .n = 1, .bank = &two.path};
        assert_status(
            MB_ERR_BAD_ARG, mb_pass_run(m.pass, &rows, 1, &err), &err);
        assert_error_has(err, "memory block");
        free_two(&two);
    }
    mb_sequence_free(seq);
    model_end(&m);
    mb_gguf_close(gguf);
    mb_test_dir_end(&dir);
}

/* ---- requests ---- */

struct lender {
    const struct mb_bank_path *path;
    size_t n_begun; /* on mb-model */
    size_t n_ended;
    size_t fail_at; /* begin number that fails; 0: none */
};

static mb_status
lend(void *arg, struct mb_bank_path *out, struct mb_error *err)
{
    struct lender *l = arg;
    if (++l->n_begun == l->fail_at)
        return mb_error_set(err, MB_ERR_NOT_FOUND, "no such path");
    *out = *l->path;
    return MB_OK;
}

static void
take_back(void *arg)
{
    struct lender *l = arg;
    l->n_ended++;
}

static void
test_engine_when_paths_are_lent_then_results_as_alone(void **state)
{
    (void)state;
    struct rig r = rig_begin(&(struct mb_engine_options){.n_threads = 2});
    struct mb_gguf *gguf = r.gguf;
    struct model m = model_begin(gguf, MB_CACHE_F16, 1);
    struct mb_bank_shape s = shape_of(&m, 0, 32, 8);
    struct two a = make_two(&s, 11, MB_BANK_Q8_0, false);
    struct two b = make_two(&s, 22, MB_BANK_Q8_0, false);
    struct lender lenders[4] = {{.path = &a.path}, {.path = &b.path},
        {.path = &a.path, .fail_at = 3}, {.path = &a.path}};
    static mb_token_id tokens[N_TEXT];
    struct job jobs[4];
    struct job alone[2];
    for (size_t i = 0; i < N_TEXT; i++)
        tokens[i] = token(9, i, m.n_vocab);
    const struct mb_engine_request request = {.tokens = tokens,
        .n = N_TEXT,
        .task = MB_TASK_GENERATE,
        .max_tokens = 12,
        .logprobs = true};
    for (size_t i = 0; i < 2; i++) {
        alone[i] = (struct job){.request = request};
        alone[i].request.bank =
            (struct mb_bank_lender){lend, take_back, &lenders[i]};
        job_run(&r, &alone[i]);
    }
    for (size_t i = 0; i < 4; i++) {
        jobs[i] = (struct job){.request = request};
        if (i < 3)
            jobs[i].request.bank =
                (struct mb_bank_lender){lend, take_back, &lenders[i]};
        job_submit(&r, &jobs[i]);
    }
    for (size_t i = 0; i < 4; i++)
        job_wait(&jobs[i]);
    for (size_t i = 0; i < 2; i++) {
        size_t n = alone[i].result.n_tokens;
        assert_int_equal(jobs[i].result.n_tokens, n);
        assert_memory_equal(jobs[i].result.logprobs, alone[i].result.logprobs,
            n * sizeof(float));
        assert_int_equal(lenders[i].n_begun, lenders[i].n_ended);
    }
    assert_int_equal(jobs[2].result.status, MB_ERR_NOT_FOUND);
    assert_int_equal(lenders[2].n_begun, 3);
    assert_int_equal(lenders[2].n_ended, 2);
    assert_int_equal(jobs[3].result.status, MB_OK);
    assert_memory_not_equal(
        jobs[3].result.logprobs, alone[0].result.logprobs, sizeof(float));
    for (size_t i = 0; i < 4; i++)
        job_free(&jobs[i]);
    job_free(&alone[0]);
    job_free(&alone[1]);
    free_two(&a);
    free_two(&b);
    model_end(&m);
    rig_end(&r);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_pass_when_blocks_are_fresh_then_same_bits_as_without),
        cmocka_unit_test(
            test_pass_when_blocks_are_attached_then_as_wider_layers),
        cmocka_unit_test(test_pass_when_paths_differ_then_same_bits_as_alone),
        cmocka_unit_test(test_pass_when_block_is_of_another_model_then_refused),
        cmocka_unit_test(test_engine_when_paths_are_lent_then_results_as_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
