/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_decoder.c - passes of the bundled model: what a row
 * gets depends on its own text and kind alone, and failures change nothing.
 *
 * That the numbers are right is shown by tests/integration against a pass in
 * double; here it is shown that they are always the same. */
#include "mb_test.h"

#include "mb_decoder.h"

#include <math.h>
#include <string.h>

#define N_TEXT 100u

struct rig {
    struct mb_gguf *gguf;
    struct mb_decoder *decoder;
    struct mb_cache *cache;
    struct mb_pass *pass;
    size_t n_vocab;
    mb_token_id text[N_TEXT];
};

static void
rig_begin(
    struct rig *rig, size_t cache_rows, size_t pass_rows, unsigned n_threads)
{
    struct mb_error err;
    struct mb_rng rng;
    assert_status(MB_OK,
        mb_gguf_open(
            MB_SOURCE_DIR "/model/weights/anchor.gguf", &rig->gguf, &err),
        &err);
    assert_status(MB_OK, mb_decoder_open(rig->gguf, &rig->decoder, &err), &err);
    assert_status(MB_OK,
        mb_cache_new(rig->decoder, MB_CACHE_F16, cache_rows, &rig->cache, &err),
        &err);
    assert_status(MB_OK,
        mb_pass_new(rig->decoder, pass_rows, n_threads, &rig->pass, &err),
        &err);
    rig->n_vocab = mb_decoder_info(rig->decoder)->n_vocab;
    mb_rng_init(&rng, 4);
    for (size_t i = 0; i < N_TEXT; i++)
        rig->text[i] = (mb_token_id)mb_rng_below(&rng, rig->n_vocab);
}

static void
rig_end(struct rig *rig)
{
    mb_pass_free(rig->pass);
    mb_cache_free(rig->cache);
    mb_decoder_close(rig->decoder);
    mb_gguf_close(rig->gguf);
}

static struct mb_sequence *
new_sequence(struct rig *rig)
{
    struct mb_sequence *seq = NULL;
    assert_ok(mb_sequence_new(rig->cache, &seq, NULL));
    return seq;
}

static float *
new_floats(size_t n)
{
    float *x = mb_calloc(n, sizeof(float));
    assert_non_null(x);
    return x;
}

/* Read [first, last) of the text in chunks. */
static void
read_text(struct rig *rig, struct mb_sequence *seq, size_t first, size_t last,
    size_t chunk, mb_rows_kind kind, float *logits)
{
    struct mb_error err;
    for (size_t i = first; i < last; i += chunk) {
        struct mb_rows rows = {
            .seq = seq,
            .tokens = rig->text + i,
            .n = last - i < chunk ? last - i : chunk,
            .kind = kind,
            .logits = logits,
        };
        assert_status(MB_OK, mb_pass_run(rig->pass, &rows, 1, &err), &err);
    }
}

static void
test_info_when_opened_then_says_shape(void **state)
{
    (void)state;
    struct rig rig;
    rig_begin(&rig, 64, 64, 1);
    const struct mb_decoder_info *info = mb_decoder_info(rig.decoder);
    assert_string_equal(info->arch, "llama");
    assert_string_equal(info->weights, "Q8_0");
    assert_int_equal(info->n_layers, 8);
    assert_int_equal(info->d_model, 256);
    assert_int_equal(info->n_heads, 8);
    assert_int_equal(info->n_kv_heads, 4);
    assert_int_equal(info->head_dim, 32);
    assert_int_equal(info->d_ff, 704);
    assert_int_equal(info->n_vocab, 8192);
    assert_true(info->n_params > 7000000 && info->n_params < 9000000);
    assert_int_equal(info->decode_bytes, info->weight_bytes); // tied
    assert_int_equal(mb_cache_block_bytes(rig.cache), 8 * 4 * 64 * 32 * 2 * 2);
    assert_true(mb_pass_bytes(rig.pass) > 0);
    rig_end(&rig);
}

/* One text in chunks of many sizes, on one and three threads: the same bits. */
static void
test_pass_when_cut_otherwise_then_same_bits(void **state)
{
    (void)state;
    static const size_t chunks[] = {N_TEXT, 64, 17, 1};
    float *want = NULL;
    for (unsigned threads = 1; threads <= 3; threads += 2) {
        struct rig rig;
        rig_begin(&rig, 1024, N_TEXT, threads);
        float *got = new_floats(rig.n_vocab);
        want = want ? want : new_floats(rig.n_vocab);
        for (size_t c = 0; c < sizeof(chunks) / sizeof(chunks[0]); c++) {
            struct mb_sequence *seq = new_sequence(&rig);
            bool is_first = threads == 1 && c == 0;
            read_text(&rig, seq, 0, N_TEXT, chunks[c], MB_ROWS_PREFILL,
                is_first ? want : got);
            assert_int_equal(mb_sequence_length(seq), N_TEXT);
            if (!is_first)
                assert_memory_equal(got, want, rig.n_vocab * sizeof(float));
            mb_sequence_free(seq);
        }
        mb_free(got);
        rig_end(&rig);
    }
    mb_free(want);
}

/* Four texts of different lengths together, decoding and prefill mixed. */
static void
test_pass_when_batched_then_same_bits_as_alone(void **state)
{
    (void)state;
    struct rig rig;
    float *alone[4];
    float *batch[4];
    struct mb_rows rows[4];
    rig_begin(&rig, 4096, 256, 2);
    for (size_t i = 0; i < 4; i++) {
        size_t start = 30 * i + 1;
        mb_rows_kind kind = i % 2 ? MB_ROWS_DECODE : MB_ROWS_PREFILL;
        size_t n = kind == MB_ROWS_DECODE ? 1 : 20 + i;
        struct mb_sequence *seq = new_sequence(&rig);
        alone[i] = new_floats(rig.n_vocab);
        batch[i] = new_floats(rig.n_vocab);
        read_text(&rig, seq, 0, start, 256, MB_ROWS_PREFILL, NULL);
        read_text(&rig, seq, start, start + n, 256, kind, alone[i]);
        mb_sequence_truncate(seq, start);
        rows[i] = (struct mb_rows){
            .seq = seq,
            .tokens = rig.text + start,
            .n = n,
            .kind = kind,
            .logits = batch[i],
        };
    }
    assert_ok(mb_pass_run(rig.pass, rows, 4, NULL));
    for (size_t i = 0; i < 4; i++) {
        assert_memory_equal(alone[i], batch[i], rig.n_vocab * sizeof(float));
        mb_free(alone[i]);
        mb_free(batch[i]);
        mb_sequence_free(rows[i].seq);
    }
    rig_end(&rig);
}

/* Decoding rounds, so it is near prefill, not equal. */
static void
test_pass_when_decoding_then_near_prefill(void **state)
{
    (void)state;
    struct rig rig;
    rig_begin(&rig, 1024, N_TEXT, 1);
    float *many = new_floats(rig.n_vocab);
    float *few = new_floats(rig.n_vocab);
    struct mb_sequence *seq = new_sequence(&rig);
    read_text(&rig, seq, 0, N_TEXT, N_TEXT, MB_ROWS_PREFILL, many);
    mb_sequence_truncate(seq, 0);
    read_text(&rig, seq, 0, N_TEXT, 1, MB_ROWS_DECODE, few);
    for (size_t i = 0; i < rig.n_vocab; i++)
        assert_true(fabsf(many[i] - few[i]) < 0.05f); // of a range of 17
    mb_sequence_free(seq);
    mb_free(many);
    mb_free(few);
    rig_end(&rig);
}

/* nll of a text is what its logits say, row by row; -1 gives 0. */
static void
test_nll_when_asked_then_agrees_with_logits(void **state)
{
    (void)state;
    struct rig rig;
    float nll[N_TEXT];
    mb_token_id targets[N_TEXT];
    rig_begin(&rig, 1024, N_TEXT, 2);
    float *logits = new_floats(rig.n_vocab);
    float *hidden = new_floats(N_TEXT * 256);
    struct mb_sequence *seq = new_sequence(&rig);
    for (size_t i = 0; i < N_TEXT; i++) {
        targets[i] = i + 1 < N_TEXT ? rig.text[i + 1] : -1;
        nll[i] = 99;
    }
    targets[7] = -1;
    struct mb_rows rows = {.seq = seq,
        .tokens = rig.text,
        .n = N_TEXT,
        .targets = targets,
        .nll = nll,
        .hidden = hidden};
    assert_ok(mb_pass_run(rig.pass, &rows, 1, NULL));
    assert_true(nll[7] == 0 && nll[N_TEXT - 1] == 0);
    for (size_t i = 0; i < N_TEXT; i += 31) {
        double sum = 0;
        if (targets[i] < 0)
            continue;
        mb_sequence_truncate(seq, 0);
        read_text(&rig, seq, 0, i + 1, N_TEXT, MB_ROWS_PREFILL, logits);
        for (size_t v = 0; v < rig.n_vocab; v++)
            sum += exp((double)logits[v]);
        double want = log(sum) - (double)logits[targets[i]];
        assert_true(fabs(want - (double)nll[i]) < 2e-3);
    }
    for (size_t i = 0; i < N_TEXT * 256; i++)
        assert_true(isfinite(hidden[i]));
    assert_true(hidden[0] != 0 && hidden[N_TEXT * 256 - 1] != 0);
    mb_sequence_free(seq);
    mb_free(logits);
    mb_free(hidden);
    rig_end(&rig);
}

static void
test_pass_when_input_is_bad_then_named_and_unchanged(void **state)
{
    (void)state;
    struct rig rig;
    struct mb_error err;
    mb_token_id bad[2] = {1, 8192};
    rig_begin(&rig, 128, 100, 1);
    struct mb_sequence *seq = new_sequence(&rig);
    struct mb_sequence *other = new_sequence(&rig);
    struct mb_rows rows[2] = {
        {.seq = seq, .tokens = rig.text, .n = 60},
        {.seq = other, .tokens = bad, .n = 2},
    };
    assert_int_equal(mb_pass_run(rig.pass, rows, 0, &err), MB_ERR_BAD_ARG);
    assert_int_equal(mb_pass_run(rig.pass, rows, 2, &err), MB_ERR_BAD_ARG);
    assert_non_null(strstr(err.text, "8192"));
    bad[1] = -2;
    assert_int_equal(mb_pass_run(rig.pass, rows, 2, &err), MB_ERR_BAD_ARG);
    rows[1].n = 0;
    assert_int_equal(mb_pass_run(rig.pass, rows, 2, &err), MB_ERR_BAD_ARG);
    rows[1] = rows[0];
    rows[1].n = 1;
    assert_int_equal(mb_pass_run(rig.pass, rows, 2, &err), MB_ERR_BAD_ARG);
    assert_non_null(strstr(err.text, "twice"));
    rows[1].seq = other;
    rows[1].n = 41;
    assert_int_equal(mb_pass_run(rig.pass, rows, 2, &err), MB_ERR_TOO_LARGE);
    assert_int_equal(mb_sequence_length(seq), 0);
    assert_int_equal(mb_sequence_length(other), 0);
    assert_int_equal(mb_cache_n_used(rig.cache), 0);
    mb_sequence_free(seq);
    mb_sequence_free(other);
    rig_end(&rig);
}

/* Two blocks: a second text finds one left, a third none; nothing is lost. */
static void
test_pass_when_cache_is_full_then_refused_and_unchanged(void **state)
{
    (void)state;
    struct rig rig;
    struct mb_error err;
    rig_begin(&rig, 128, 100, 1);
    float *before = new_floats(rig.n_vocab);
    float *after = new_floats(rig.n_vocab);
    struct mb_sequence *a = new_sequence(&rig);
    struct mb_sequence *b = new_sequence(&rig);
    read_text(&rig, a, 0, 64, 100, MB_ROWS_PREFILL, NULL);
    read_text(&rig, b, 0, 63, 100, MB_ROWS_PREFILL, NULL);
    read_text(&rig, b, 63, 64, 1, MB_ROWS_PREFILL, before);
    struct mb_rows rows = {.seq = b, .tokens = rig.text, .n = 1};
    assert_int_equal(mb_pass_run(rig.pass, &rows, 1, &err), MB_ERR_TOO_LARGE);
    assert_non_null(strstr(err.text, "0 of 2 are free"));
    assert_int_equal(mb_sequence_length(b), 64);
    mb_sequence_truncate(b, 63);
    read_text(&rig, b, 63, 64, 1, MB_ROWS_PREFILL, after);
    assert_memory_equal(before, after, rig.n_vocab * sizeof(float));
    mb_sequence_free(a);
    assert_int_equal(mb_cache_n_used(rig.cache), 1);
    assert_ok(mb_pass_run(rig.pass, &rows, 1, NULL));
    assert_int_equal(mb_cache_n_blocks(rig.cache), 2);
    mb_sequence_free(b);
    mb_free(before);
    mb_free(after);
    rig_end(&rig);
}

/* Each allocation of opening and of a pass fails once: a clean error. */
static void
test_decoder_when_memory_is_short_then_no_memory(void **state)
{
    (void)state;
    struct mb_gguf *gguf = NULL;
    struct mb_error err;
    bool is_done = false;
    assert_status(MB_OK,
        mb_gguf_open(MB_SOURCE_DIR "/model/weights/anchor.gguf", &gguf, &err),
        &err);
    for (uint64_t n = 1; !is_done; n++) {
        struct mb_decoder *decoder = NULL;
        struct mb_cache *cache = NULL;
        struct mb_pass *pass = NULL;
        struct mb_sequence *seq = NULL;
        float logits[8192];
        mb_token_id token = 5;
        mb_alloc_fail_after(n);
        mb_status st = mb_decoder_open(gguf, &decoder, &err);
        if (st == MB_OK)
            st = mb_cache_new(decoder, MB_CACHE_Q8_0, 64, &cache, &err);
        if (st == MB_OK)
            st = mb_pass_new(decoder, 4, 2, &pass, &err);
        if (st == MB_OK)
            st = mb_sequence_new(cache, &seq, &err);
        if (st == MB_OK) {
            struct mb_rows rows = {.seq = seq,
                .tokens = &token,
                .n = 1,
                .kind = MB_ROWS_DECODE,
                .logits = logits};
            st = mb_pass_run(pass, &rows, 1, &err);
        }
        mb_alloc_fail_after(0);
        is_done = st == MB_OK;
        assert_true(is_done || st == MB_ERR_NOMEM);
        assert_true(n < 1000);
        mb_sequence_free(seq);
        mb_pass_free(pass);
        mb_cache_free(cache);
        mb_decoder_close(decoder);
    }
    mb_gguf_close(gguf);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_info_when_opened_then_says_shape),
        cmocka_unit_test(test_pass_when_cut_otherwise_then_same_bits),
        cmocka_unit_test(test_pass_when_batched_then_same_bits_as_alone),
        cmocka_unit_test(test_pass_when_decoding_then_near_prefill),
        cmocka_unit_test(test_nll_when_asked_then_agrees_with_logits),
        cmocka_unit_test(test_pass_when_input_is_bad_then_named_and_unchanged),
        cmocka_unit_test(
            test_pass_when_cache_is_full_then_refused_and_unchanged),
        cmocka_unit_test(test_decoder_when_memory_is_short_then_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
