/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_gguf_write.c - GGUF files that we write, read back. */
#include "mb_test.h"

#include <math.h>

#include "mb_decoder.h"
#include "mb_export.h"
#include "mb_gguf_write.h"
#include "mb_test_gguf.h"

static void
test_finish_when_keys_of_all_types_then_read_back(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct gguf_writer *w = NULL;
    struct mb_gguf *g = NULL;
    struct mb_error err;
    const float floats[2] = {1.5f, -2};
    const int32_t ints[3] = {-1, 7, INT32_MAX};
    const struct mb_slice strings[2] = {
        mb_slice_cstr("one"), mb_slice_cstr("")};
    mb_test_path(&dir, "f.gguf", path);
    assert_ok(gguf_writer_new(&w, &err));
    gguf_writer_str(w, "s", mb_slice_cstr("text"));
    gguf_writer_u32(w, "u", 4000000000u);
    gguf_writer_f32(w, "f", 0.25f);
    gguf_writer_bool(w, "b", true);
    gguf_writer_strings(w, "ss", strings, 2);
    gguf_writer_f32s(w, "ff", floats, 2);
    gguf_writer_i32s(w, "ii", ints, 3);
    assert_status(MB_OK, gguf_writer_finish(w, path, &err), &err);

    struct mb_slice s;
    struct mb_slice got[2];
    uint64_t u;
    uint64_t n64;
    size_t n;
    double f;
    bool b = false;
    assert_status(MB_OK, mb_gguf_open(path, &g, &err), &err);
    assert_int_equal(7, mb_gguf_n_keys(g));
    assert_ok(mb_gguf_str(g, "s", &s, NULL));
    assert_slice_str("text", s);
    assert_ok(mb_gguf_u64(g, "u", &u, NULL));
    assert_int_equal(4000000000u, u);
    assert_ok(mb_gguf_f64(g, "f", &f, NULL));
    assert_true(f == 0.25);
    assert_ok(mb_gguf_bool(g, "b", &b, NULL));
    assert_true(b);
    assert_ok(mb_gguf_strings(g, "ss", got, 2, &n, NULL));
    assert_int_equal(2, n);
    assert_slice_str("one", got[0]);
    assert_slice_str("", got[1]);
    assert_ok(mb_gguf_array(g, "ff", MB_GGUF_F32, &s, &n64, NULL));
    assert_int_equal(2, n64);
    assert_true(mb_get_lef32(s.data + 4) == -2);
    assert_ok(mb_gguf_array(g, "ii", MB_GGUF_I32, &s, &n64, NULL));
    assert_int_equal(3, n64);
    assert_int_equal(UINT32_MAX, mb_get_le32(s.data));
    mb_gguf_close(g);
    mb_test_dir_end(&dir);
}

static void
test_copy_when_vocabulary_then_same_tokenizer(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct gguf_writer *w = NULL;
    struct mb_gguf *from = NULL;
    struct mb_error err;
    uint8_t a[16];
    uint8_t b[16];
    const char *bundled = MB_SOURCE_DIR "/model/weights/anchor.gguf";
    mb_test_path(&dir, "f.gguf", path);
    assert_ok(mb_gguf_open(bundled, &from, NULL));
    assert_ok(gguf_writer_new(&w, &err));
    gguf_writer_copy(w, from, "tokenizer.");
    assert_status(MB_OK, gguf_writer_finish(w, path, &err), &err);
    struct mb_tokenizer *old = test_tokenizer_open(bundled);
    struct mb_tokenizer *new = test_tokenizer_open(path);
    mb_tokenizer_fingerprint(old, a);
    mb_tokenizer_fingerprint(new, b);
    assert_memory_equal(a, b, 16);
    assert_int_equal(mb_tokenizer_bos(old), mb_tokenizer_bos(new));
    assert_int_equal(mb_tokenizer_adds_bos(old), mb_tokenizer_adds_bos(new));
    mb_tokenizer_free(old);
    mb_tokenizer_free(new);

    // Nothing but these keys.
    struct mb_gguf *copy = NULL;
    assert_ok(mb_gguf_open(path, &copy, NULL));
    for (size_t i = 0; i < mb_gguf_n_keys(copy); i++) {
        struct mb_slice key = mb_gguf_key(copy, i);
        assert_true(key.size > 10);
        assert_memory_equal("tokenizer.", key.data, 10);
    }
    mb_gguf_close(copy);
    mb_gguf_close(from);
    mb_test_dir_end(&dir);
}

/* ---- tensors ---- */

static void
test_quantize_when_halves_then_away_from_zero(void **state)
{
    MB_TEST_UNUSED(state);
    float x[64] = {127, -127, 0.5f, -0.5f, 1.5f, 2.4999f, 126.4f};
    uint8_t out[68];
    const int8_t want[7] = {127, -127, 1, -1, 2, 2, 126};
    // The second block: a scale that F16 rounds; codes go by the exact one.
    x[32] = 0.1f;
    x[33] = -0.05f;
    gguf_quantize_q8_0(x, 64, out);
    assert_int_equal(0x3c00, mb_get_le16(out)); // 1.0
    for (size_t i = 0; i < 7; i++)
        assert_int_equal(want[i], (int8_t)out[2 + i]);
    assert_int_equal(mb_half_from_float(0.1f / 127.0f), mb_get_le16(out + 34));
    assert_int_equal(127, (int8_t)out[36]);
    assert_int_equal(-64, (int8_t)out[37]); // -63.5 by 1 / (0.1 / 127)
    for (size_t i = 2; i < 32; i++)
        assert_int_equal(0, out[36 + i]);
    // Zeros have a scale of zero.
    memset(x, 0, sizeof x);
    gguf_quantize_q8_0(x, 32, out);
    for (size_t i = 0; i < 34; i++)
        assert_int_equal(0, out[i]);
}

static void
test_tensor_when_each_type_then_values_stand(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct gguf_writer *w = NULL;
    struct mb_gguf *g = NULL;
    struct mb_error err;
    struct mb_rng rng;
    float x[3 * 64];
    const gguf_tensor_type types[3] = {GGUF_F32, GGUF_F16, GGUF_Q8_0};
    const char *const names[3] = {"a", "b", "c"};
    mb_rng_init(&rng, mb_test_seed());
    for (size_t i = 0; i < 192; i++)
        x[i] = (float)mb_rng_normal(&rng);
    mb_test_path(&dir, "f.gguf", path);
    assert_ok(gguf_writer_new(&w, &err));
    gguf_writer_tensor(w, "norm", 1, 1, 5, x, GGUF_F32); // 20 bytes: padded
    for (size_t i = 0; i < 3; i++)
        gguf_writer_tensor(w, names[i], 2, 3, 64, x, types[i]);
    assert_status(MB_OK, gguf_writer_finish(w, path, &err), &err);
    assert_status(MB_OK, mb_gguf_open(path, &g, &err), &err);
    assert_int_equal(4, mb_gguf_n_tensors(g));
    const struct mb_gguf_tensor *t = mb_gguf_find_tensor(g, "norm");
    assert_int_equal(1, t->n_dims);
    assert_int_equal(5, t->dims[0]);
    assert_true(mb_get_lef32(t->data.data + 16) == x[4]);
    for (size_t i = 0; i < 3; i++) {
        t = mb_gguf_find_tensor(g, names[i]);
        assert_non_null(t);
        assert_int_equal(types[i], t->type);
        assert_int_equal(64, t->dims[0]);
        assert_int_equal(3, t->dims[1]);
        const uint8_t *p = t->data.data;
        for (size_t k = 0; k < 192; k++) {
            const uint8_t *block = p + k / 32 * 34;
            float v = types[i] == GGUF_F32 ? mb_get_lef32(p + k * 4)
                      : types[i] == GGUF_F16
                          ? mb_half_to_float(mb_get_le16(p + k * 2))
                          : (float)(int8_t)block[2 + k % 32] *
                                mb_half_to_float(mb_get_le16(block));
            float off = types[i] == GGUF_F32   ? 0
                        : types[i] == GGUF_F16 ? fabsf(x[k]) / 2048
                                               : 4.0f / 127 / 2;
            assert_true(fabsf(v - x[k]) <= off);
        }
    }
    mb_gguf_close(g);
    mb_test_dir_end(&dir);
}

static void
test_finish_when_something_was_wrong_then_no_file(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct gguf_writer *w = NULL;
    struct mb_error err;
    float x[33] = {0};
    mb_test_path(&dir, "f.gguf", path);
    assert_ok(gguf_writer_new(&w, &err));
    gguf_writer_tensor(w, "odd", 2, 1, 33, x, GGUF_Q8_0);
    assert_status(MB_ERR_BAD_ARG, gguf_writer_finish(w, path, &err), &err);
    assert_error_has(err, "odd");
    assert_false(mb_test_exists(path));
    assert_ok(gguf_writer_new(&w, &err));
    gguf_writer_tensor(w, "a", 2, 1, 33, x, GGUF_F16);
    assert_status(MB_ERR_NOT_FOUND,
        gguf_writer_finish(w, "/nonexistent/f.gguf", &err), &err);
    mb_test_dir_end(&dir);
}

/* ---- whole models ---- */

#define D     64
#define N_FF  96
#define VOCAB 8192

/* Weights of one layer and what goes round it. */
static size_t
make_weights(struct export_weight *out, float *values)
{
    static const struct {
        const char *name;
        size_t n_rows;
        size_t n_cols;
    } list[] = {
        {"token_embd.weight", VOCAB, D},
        {"blk.0.attn_norm.weight", 1, D},
        {"blk.0.attn_q.weight", 64, D},
        {"blk.0.attn_k.weight", 32, D},
        {"blk.0.attn_v.weight", 32, D},
        {"blk.0.attn_output.weight", D, 64},
        {"blk.0.ffn_norm.weight", 1, D},
        {"blk.0.ffn_gate.weight", N_FF, D},
        {"blk.0.ffn_up.weight", N_FF, D},
        {"blk.0.ffn_down.weight", D, N_FF},
        {"output_norm.weight", 1, D},
    };

    size_t n = sizeof list / sizeof *list;
    for (size_t i = 0; i < n; i++)
        out[i] = (struct export_weight){
            list[i].name, list[i].n_rows, list[i].n_cols, values};
    return n;
}

static void
test_export_when_loaded_then_shape_stands(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct mb_error err;
    struct mb_gguf *vocab = NULL;
    struct export_weight weights[16];
    const struct train_shape shape = {
        1, D, 4, 2, 16, N_FF, VOCAB, 640, 10000, 1e-5};
    const gguf_tensor_type types[3] = {GGUF_F32, GGUF_F16, GGUF_Q8_0};
    const char *const names[3] = {"F32", "F16", "Q8_0"};
    float *values = mb_calloc((size_t)VOCAB * D, sizeof *values);
    assert_non_null(values);
    for (size_t i = 0; i < (size_t)VOCAB * D; i++)
        values[i] = (float)(i % 97) / 97;
    assert_ok(
        mb_gguf_open(MB_SOURCE_DIR "/model/weights/anchor.gguf", &vocab, NULL));
    struct export_options o = {&shape, weights, make_weights(weights, values),
        vocab, GGUF_F32, "a name", "what", "Apache-2.0"};
    for (size_t i = 0; i < 3; i++) {
        struct mb_gguf *g = NULL;
        struct mb_decoder *d = NULL;
        o.type = types[i];
        mb_test_path(&dir, names[i], path);
        assert_status(MB_OK, export_gguf(path, &o, &err), &err);
        assert_status(MB_OK, mb_gguf_open(path, &g, &err), &err);
        assert_status(MB_OK, mb_decoder_open(g, &d, &err), &err);
        const struct mb_decoder_info *info = mb_decoder_info(d);
        assert_string_equal("llama", info->arch);
        assert_string_equal("a name", info->name);
        assert_string_equal(names[i], info->weights);
        assert_int_equal(1, info->n_layers);
        assert_int_equal(D, info->d_model);
        assert_int_equal(4, info->n_heads);
        assert_int_equal(2, info->n_kv_heads);
        assert_int_equal(16, info->head_dim);
        assert_int_equal(N_FF, info->d_ff);
        assert_int_equal(VOCAB, info->n_vocab);
        assert_int_equal(640, info->n_ctx);
        mb_decoder_close(d);
        mb_gguf_close(g);
    }
    mb_free(values);
    mb_gguf_close(vocab);
    mb_test_dir_end(&dir);
}

static mb_status
write_all(void *arg)
{
    const char *path = arg;
    float x[32] = {0};
    struct gguf_writer *w = NULL;
    mb_status st = gguf_writer_new(&w, NULL);
    if (st != MB_OK)
        return st;
    gguf_writer_str(w, "s", mb_slice_cstr("text"));
    gguf_writer_tensor(w, "a", 2, 1, 32, x, GGUF_Q8_0);
    return gguf_writer_finish(w, path, NULL);
}

static void
test_write_when_memory_is_short_then_no_memory(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    mb_test_each_allocation(
        write_all, (void *)(uintptr_t)mb_test_path(&dir, "f", path));
    mb_test_dir_end(&dir);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finish_when_keys_of_all_types_then_read_back),
        cmocka_unit_test(test_copy_when_vocabulary_then_same_tokenizer),
        cmocka_unit_test(test_quantize_when_halves_then_away_from_zero),
        cmocka_unit_test(test_tensor_when_each_type_then_values_stand),
        cmocka_unit_test(test_finish_when_something_was_wrong_then_no_file),
        cmocka_unit_test(test_export_when_loaded_then_shape_stands),
        cmocka_unit_test(test_write_when_memory_is_short_then_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
