/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_layers.c - types of tensors against blocks that are
 * packed here by ggml's rules, and the arithmetic of layers beside products,
 * for each level. */
#include "mb_test.h"

#include <float.h>
#include <math.h>

#include "compute.h"
#include "tensor_data.h"

/* One multiplication, one rounding, and an exp that is off by two units. */
#define LAYER_RTOL 1e-6
/* exp(-x) of a float is infinite from x = -88.7 on: what is smaller is 0. */
#define SWIGLU_ATOL 1e-36

static const struct compute *levels[COMPUTE_N_LEVELS];
static size_t n_levels;

static void
assert_close(double want, float got, double atol, const char *what, size_t i)
{
    if (isnan(want)
            ? !isnan(got)
            : !((double)got == want ||
                  fabs((double)got - want) <= atol + LAYER_RTOL * fabs(want)))
        fail_msg("%s: value %zu is %.9g, not %.9g", what, i, (double)got, want);
}

/* ---- types ---- */

static void
test_types_when_asked_then_as_in_ggml(void **state)
{
    static const struct {
        tensor_type type;
        size_t values;
        size_t bytes;
        const char *name;
    } want[] = {{TENSOR_F32, 1, 4, "F32"}, {TENSOR_F16, 1, 2, "F16"},
        {TENSOR_BF16, 1, 2, "BF16"}, {TENSOR_Q8_0, 32, 34, "Q8_0"},
        {TENSOR_Q5_0, 32, 22, "Q5_0"}, {TENSOR_Q4_0, 32, 18, "Q4_0"},
        {TENSOR_Q4_K, 256, 144, "Q4_K"}, {TENSOR_Q6_K, 256, 210, "Q6_K"}};

    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
        assert_int_equal(want[i].values, tensor_block_values(want[i].type));
        assert_int_equal(want[i].bytes, tensor_block_bytes(want[i].type));
        assert_string_equal(want[i].name, tensor_type_name(want[i].type));
    }
    assert_int_equal(0, tensor_block_values((tensor_type)3)); // Q4_1
    assert_int_equal(0, tensor_block_bytes((tensor_type)3));
    assert_string_equal("unknown", tensor_type_name((tensor_type)3));
}

static void
test_levels_when_asked_then_best_is_the_highest(void **state)
{
    MB_TEST_UNUSED(state);
    assert_ptr_equal(levels[n_levels - 1], compute_best());
    assert_null(compute_at(COMPUTE_N_LEVELS));
}

/* Row 1 of two, at an odd address, must be the n values wanted. */
static void
check_row(tensor_type type, const uint8_t *block, size_t bytes, size_t n,
    const float *want)
{
    uint8_t data[2 * 256 + 1] = {0};
    float got[256];
    memcpy(data + 1 + bytes, block, bytes);
    for (size_t l = 0; l < n_levels; l++) {
        struct tensor W = {data + 1, 2, n, bytes, type};
        levels[l]->row(&W, 1, got);
        for (size_t i = 0; i < n; i++) {
            if (!(got[i] == want[i]))
                fail_msg("%s %s: value %zu is %.9g, not %.9g", levels[l]->name,
                    tensor_type_name(type), i, (double)got[i], (double)want[i]);
        }
    }
}

static void
test_floats_when_read_then_their_values(void **state)
{
    static const uint8_t f32[] = {0, 0, 128, 63, 0, 0, 0, 192, 1, 0, 0, 0};
    static const float f32_want[] = {1, -2, 0x1p-149f};
    static const uint8_t f16[] = {0x00, 0x3c, 0x00, 0xc0, 0x01, 0x00, 0xff,
        0x7b, 0x55, 0x35, 0x00, 0x7c, 0, 0, 0, 0x38, 0, 0xb8};
    static const float f16_want[] = {
        1, -2, 0x1p-24f, 65504, 0.333251953125f, INFINITY, 0, 0.5f, -0.5f};
    static const uint8_t bf16[] = {
        0x80, 0x3f, 0x49, 0xc0, 0x80, 0x7f, 0x80, 0x00};
    static const float bf16_want[] = {1, -3.140625f, INFINITY, 0x1p-126f};
    MB_TEST_UNUSED(state);
    check_row(TENSOR_F32, f32, sizeof(f32), 3, f32_want);
    check_row(TENSOR_F16, f16, sizeof(f16), 9, f16_want);
    check_row(TENSOR_BF16, bf16, sizeof(bf16), 4, bf16_want);
}

static void
test_q8_0_when_read_then_codes_times_scale(void **state)
{
    uint8_t block[34] = {0x00, 0x38}; // 0.5
    float want[32];
    MB_TEST_UNUSED(state);
    for (int i = 0; i < 32; i++) {
        int code = i == 0 ? -128 : i == 1 ? 127 : i - 16;
        block[2 + i] = (uint8_t)code;
        want[i] = 0.5f * (float)code;
    }
    check_row(TENSOR_Q8_0, block, sizeof(block), 32, want);
}

static void
test_q4_0_when_read_then_low_halves_first(void **state)
{
    uint8_t block[18] = {0x00, 0xc0}; // -2
    float want[32];
    MB_TEST_UNUSED(state);
    for (int i = 0; i < 16; i++) {
        int low = i;
        int high = (3 * i + 1) % 16;
        block[2 + i] = (uint8_t)(low + 16 * high);
        want[i] = -2.0f * (float)(low - 8);
        want[16 + i] = -2.0f * (float)(high - 8);
    }
    check_row(TENSOR_Q4_0, block, sizeof(block), 32, want);
}

static void
test_q5_0_when_read_then_fifth_bits_apart(void **state)
{
    uint8_t block[22] = {0x00, 0x34}; // 0.25
    float want[32];
    MB_TEST_UNUSED(state);
    for (int i = 0; i < 32; i++) {
        int code = (7 * i + 3) % 32;
        block[6 + i % 16] |= (uint8_t)((code & 15) << (i < 16 ? 0 : 4));
        block[2 + i / 8] |= (uint8_t)((code >> 4) << i % 8);
        want[i] = 0.25f * (float)(code - 16);
    }
    check_row(TENSOR_Q5_0, block, sizeof(block), 32, want);
}

static void
test_q4_k_when_read_then_scales_and_offsets_of_six_bits(void **state)
{
    static const int scale[8] = {1, 2, 33, 63, 17, 34, 48, 62};
    static const int offset[8] = {3, 5, 40, 63, 20, 33, 51, 60};
    /* d 1, dmin 0.5; then the above: byte 4 is 1 + 64 * (17 >> 4), byte 8 is
     * 3 + 64 * (20 >> 4), byte 12 is 17 % 16 + 16 * (20 % 16), ... */
    uint8_t block[144] = {0x00, 0x3c, 0x00, 0x38, 65, 130, 225, 255, 67, 133,
        232, 255, 65, 18, 48, 206};
    float want[256];
    MB_TEST_UNUSED(state);
    for (int c = 0; c < 4; c++) {
        for (int i = 0; i < 32; i++) {
            int low = (i + c) % 16;
            int high = (3 * i + c + 2) % 16;
            block[16 + 32 * c + i] = (uint8_t)(low + 16 * high);
            want[64 * c + i] =
                (float)(scale[2 * c] * low) - 0.5f * (float)offset[2 * c];
            want[64 * c + 32 + i] = (float)(scale[2 * c + 1] * high) -
                                    0.5f * (float)offset[2 * c + 1];
        }
    }
    check_row(TENSOR_Q4_K, block, sizeof(block), 256, want);
}

static void
test_q6_k_when_read_then_six_bits_from_two_places(void **state)
{
    uint8_t block[210] = {0};
    float want[256];
    MB_TEST_UNUSED(state);
    for (int i = 0; i < 16; i++)
        block[192 + i] = (uint8_t)(i == 0 ? -128 : i == 1 ? 127 : 5 * i - 40);
    block[208] = 0x00;
    block[209] = 0x34; // 0.25
    for (int i = 0; i < 256; i++) {
        int code = (7 * i + i / 64 + 5) % 64;
        int half = i / 128;
        int quarter = i % 128 / 32;
        int column = i % 32;
        block[64 * half + 32 * (quarter % 2) + column] |=
            (uint8_t)((code & 15) << (quarter < 2 ? 0 : 4));
        block[128 + 32 * half + column] |=
            (uint8_t)((code >> 4) << (2 * quarter));
        want[i] =
            0.25f * (float)(int8_t)block[192 + i / 16] * (float)(code - 32);
    }
    check_row(TENSOR_Q6_K, block, sizeof(block), 256, want);
}

/* ---- activations ---- */

#define N_BLOCKS 9

/* Blocks: common values, one that stands out, zeros, too small, nearly so,
 * huge, NaN, infinite, an exact tie for rounding. */
static void
fill_blocks(float *x)
{
    struct mb_rng rng;
    mb_rng_init(&rng, mb_test_seed());
    for (size_t i = 0; i < N_BLOCKS * ACT_BLOCK; i++)
        x[i] = tensor_random_float(&rng);
    x[32 + 7] = -1000;
    for (size_t i = 0; i < 32; i++) {
        x[64 + i] = 0;
        x[96 + i] *= 1e-38f;
        x[128 + i] *= 1e-29f;
        x[160 + i] *= FLT_MAX / 32; // the sum is finite
        x[256 + i] = (float)i + 0.5f;
    }
    x[192 + 31] = NAN;
    x[224] = -INFINITY;
    x[256] = 32767;
}

static void
test_activations_when_quantised_then_within_half_a_step(void **state)
{
    float x[N_BLOCKS * ACT_BLOCK];
    int16_t code[N_BLOCKS * ACT_BLOCK];
    float scale[N_BLOCKS];
    float sum[N_BLOCKS];
    struct activations a = {x, N_BLOCKS * ACT_BLOCK, 1, code, scale, sum};
    MB_TEST_UNUSED(state);
    fill_blocks(x);
    for (size_t l = 0; l < n_levels; l++) {
        levels[l]->quantize(&a, N_BLOCKS * ACT_BLOCK, 0, 1);
        for (size_t b = 0; b < N_BLOCKS; b++) {
            bool is_finite = b != 6 && b != 7;
            double total = 0;
            assert_int_equal(is_finite, !isnan(scale[b]));
            assert_int_equal(is_finite, !isnan(sum[b]));
            for (size_t i = 32 * b; is_finite && i < 32 * b + 32; i++) {
                double error = fabs((double)x[i] - code[i] * (double)scale[b]);
                /* Units of 2^-24 of the value and of the step are on top. */
                assert_true(error <= 0.501 * (double)scale[b] + 1e-30);
                assert_true(code[i] >= -32767);
                total += code[i] * (double)scale[b];
            }
            /* One rounding of up to 32 codes of the largest size. */
            if (is_finite)
                assert_true(fabs(total - (double)sum[b]) <=
                            0x1p-23 * 32 * 32767 * (double)scale[b]);
        }
        assert_true(scale[2] == 0 && scale[3] == 0 && scale[4] > 0);
        assert_int_equal(-32767, code[32 + 7]);
        assert_int_equal(2, code[256 + 2]); // 2.5 to even
    }
}

static void
test_activations_when_quantised_then_each_level_gives_the_same(void **state)
{
    float x[2][N_BLOCKS * ACT_BLOCK + 1];
    int16_t code[2][3][N_BLOCKS * ACT_BLOCK];
    float scale[2][3][N_BLOCKS];
    float sum[2][3][N_BLOCKS];
    MB_TEST_UNUSED(state);
    fill_blocks(x[0]);
    fill_blocks(x[1]);
    for (size_t l = 1; l < n_levels; l++) {
        memset(code, 9, sizeof(code));
        memset(scale, 9, sizeof(scale));
        memset(sum, 9, sizeof(sum));
        for (size_t i = 0; i < 2; i++) {
            struct activations a = {x[0], N_BLOCKS * ACT_BLOCK + 1, 3,
                code[i][0], scale[i][0], sum[i][0]};
            a.n = 2;
            /* Row 0 stays as it is. */
            levels[i == 0 ? 0 : l]->quantize(&a, N_BLOCKS * ACT_BLOCK, 1, 2);
        }
        assert_memory_equal(code[0], code[1], sizeof(code[0]));
        for (size_t i = 0; i < 3 * N_BLOCKS; i++) {
            const float *s = scale[0][0];
            const float *t = scale[1][0];
            assert_true(s[i] == t[i] || (isnan(s[i]) && isnan(t[i])));
            s = sum[0][0];
            t = sum[1][0];
            assert_true(s[i] == t[i] || (isnan(s[i]) && isnan(t[i])));
        }
    }
}

/* ---- norms, rotations, sums ---- */

#define MAX_N 577

static const size_t sizes[] = {1, 2, 7, 8, 15, 64, 256, MAX_N};
#define N_SIZES (sizeof(sizes) / sizeof(sizes[0]))

static void
fill(float *x, size_t n, float size)
{
    struct mb_rng rng;
    mb_rng_init(&rng, n);
    for (size_t i = 0; i < n; i++)
        x[i] = size * tensor_random_float(&rng);
}

static void
check_norm(const struct compute *c, size_t n, float size)
{
    float x[MAX_N + 1];
    float w[MAX_N];
    float got[MAX_N + 1];
    double sum = 0;
    fill(x, n, size);
    fill(w, n, 2);
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    double factor = 1 / sqrt(sum / (double)n + 1e-5);
    got[n] = 7;
    c->rms_norm(x, w, n, 1e-5f, got);
    for (size_t i = 0; i < n; i++)
        assert_close(
            (double)x[i] * factor * (double)w[i], got[i], 0, "rms_norm", i);
    assert_true(got[n] == 7);
    c->rms_norm(x, w, n, 1e-5f, x);
    assert_memory_equal(x, got, n * sizeof(float));
}

static void
test_rms_norm_when_any_size_then_as_defined(void **state)
{
    MB_TEST_UNUSED(state);
    for (size_t l = 0; l < n_levels; l++) {
        for (size_t i = 0; i < N_SIZES; i++) {
            check_norm(levels[l], sizes[i], 3);
            check_norm(levels[l], sizes[i], 1e30f); // squares fit no float
            check_norm(levels[l], sizes[i], 0);
        }
    }
}

static void
check_rope(const struct compute *c, size_t n, bool is_halves)
{
    float x[MAX_N];
    float got[MAX_N];
    float cosine[MAX_N];
    float sine[MAX_N];
    fill(x, MAX_N, 3);
    memcpy(got, x, sizeof(x));
    for (size_t i = 0; i < n / 2; i++) {
        cosine[i] = cosf((float)i * 0.7f + 0.1f);
        sine[i] = sinf((float)i * 0.7f + 0.1f);
    }
    if (is_halves)
        c->rope_halves(got, n, cosine, sine);
    else
        c->rope_pairs(got, n, cosine, sine);
    for (size_t i = 0; i < n / 2; i++) {
        size_t p = is_halves ? i : 2 * i;
        size_t q = is_halves ? i + n / 2 : 2 * i + 1;
        double a = (double)x[p];
        double b = (double)x[q];
        double cc = (double)cosine[i];
        double ss = (double)sine[i];
        /* Differences of products of up to 3. */
        assert_close(a * cc - b * ss, got[p], 1e-6, "rope", p);
        assert_close(a * ss + b * cc, got[q], 1e-6, "rope", q);
    }
    assert_memory_equal(x + n, got + n, (MAX_N - n) * sizeof(float));
}

static void
test_rope_when_any_size_then_pairs_are_turned(void **state)
{
    static const size_t n_rot[] = {2, 6, 8, 14, 16, 20, 64, 128};
    MB_TEST_UNUSED(state);
    for (size_t l = 0; l < n_levels; l++) {
        for (size_t i = 0; i < sizeof(n_rot) / sizeof(n_rot[0]); i++) {
            check_rope(levels[l], n_rot[i], false);
            check_rope(levels[l], n_rot[i], true);
        }
    }
}

static void
check_swiglu(const struct compute *c, size_t n, float size)
{
    float gate[MAX_N + 1];
    float up[MAX_N];
    float got[MAX_N + 1];
    fill(gate, n, size);
    fill(up, n, 2);
    got[n] = 7;
    c->swiglu(gate, up, n, got);
    for (size_t i = 0; i < n; i++) {
        double g = (double)gate[i];
        assert_close(g / (1 + exp(-g)) * (double)up[i], got[i], SWIGLU_ATOL,
            "swiglu", i);
    }
    assert_true(got[n] == 7);
    /* In place, and cut anywhere, each value is the same. */
    c->swiglu(gate, up, n / 3, gate);
    c->swiglu(gate + n / 3, up + n / 3, n - n / 3, gate + n / 3);
    assert_memory_equal(gate, got, n * sizeof(float));
}

static void
test_swiglu_when_any_size_then_as_defined(void **state)
{
    MB_TEST_UNUSED(state);
    for (size_t l = 0; l < n_levels; l++) {
        for (size_t i = 0; i < N_SIZES; i++) {
            check_swiglu(levels[l], sizes[i], 4);
            check_swiglu(levels[l], sizes[i], 300);
        }
    }
}

static void
test_swiglu_when_not_finite_then_as_the_plain_one(void **state)
{
    static const float gate[] = {
        NAN, INFINITY, 1, -INFINITY, -FLT_MAX, FLT_MAX, 0, -100, 100};
    static const float up[] = {1, 1, NAN, 1, 1, 0.5f, INFINITY, -2, 2};
    float want[9];
    float got[9];
    MB_TEST_UNUSED(state);
    compute_at(COMPUTE_PLAIN)->swiglu(gate, up, 9, want);
    assert_true(isnan(want[0]) && isnan(want[2]));
    assert_true(want[1] == INFINITY && want[4] == 0 && want[8] == 200);
    for (size_t l = 1; l < n_levels; l++) {
        levels[l]->swiglu(gate, up, 9, got);
        for (size_t i = 0; i < 9; i++)
            assert_close((double)want[i], got[i], 0, "swiglu", i);
    }
}

static void
test_add_when_any_size_then_sums(void **state)
{
    float x[MAX_N + 1];
    float y[MAX_N];
    MB_TEST_UNUSED(state);
    for (size_t l = 0; l < n_levels; l++) {
        for (size_t s = 0; s < N_SIZES; s++) {
            fill(x, sizes[s], 3);
            fill(y, sizes[s], 2);
            x[sizes[s]] = 7;
            levels[l]->add(x, y, sizes[s]);
            for (size_t i = 0; i < sizes[s]; i++)
                assert_true(x[i] == 1.5f * y[i] + y[i]);
            assert_true(x[sizes[s]] == 7);
        }
    }
}

static void
check_log_sum_exp(const struct compute *c, size_t n, float size, float shift)
{
    float *x = mb_calloc(n, sizeof(*x));
    double most = -INFINITY;
    double sum = 0;
    assert_non_null(x);
    fill(x, n, size);
    for (size_t i = 0; i < n; i++) {
        x[i] += shift;
        most = (double)x[i] > most ? (double)x[i] : most;
    }
    for (size_t i = 0; i < n; i++)
        sum += exp((double)x[i] - most);
    /* A logarithm near 0 is off by as much as the sum is. */
    assert_close(most + log(sum), c->log_sum_exp(x, n), 1e-6, c->name, n);
    mb_free(x);
}

static void
test_log_sum_exp_when_any_size_then_as_defined(void **state)
{
    MB_TEST_UNUSED(state);
    for (size_t l = 0; l < n_levels; l++) {
        for (size_t i = 0; i < N_SIZES; i++) {
            check_log_sum_exp(levels[l], sizes[i], 5, 0);
            check_log_sum_exp(levels[l], sizes[i], 200, 1e4f);
            check_log_sum_exp(levels[l], sizes[i], 0, -3e38f);
        }
        check_log_sum_exp(levels[l], 50021, 10, 0);
    }
}

static void
test_log_sum_exp_when_not_finite_then_known(void **state)
{
    float x[19];
    MB_TEST_UNUSED(state);
    for (size_t l = 0; l < n_levels; l++) {
        const struct compute *c = levels[l];
        for (size_t at = 0; at < 19; at++) {
            for (size_t i = 0; i < 19; i++)
                x[i] = -INFINITY;
            assert_true(c->log_sum_exp(x, 19) == -INFINITY);
            x[at] = 5;
            assert_true(c->log_sum_exp(x, 19) == 5);
            x[at] = INFINITY;
            assert_true(c->log_sum_exp(x, 19) == INFINITY);
            x[(at + 7) % 19] = NAN;
            assert_true(isnan(c->log_sum_exp(x, 19)));
            x[at] = 5;
            assert_true(isnan(c->log_sum_exp(x, 19)));
        }
        assert_true(c->log_sum_exp(x, 0) == -INFINITY);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types_when_asked_then_as_in_ggml),
        cmocka_unit_test(test_levels_when_asked_then_best_is_the_highest),
        cmocka_unit_test(test_floats_when_read_then_their_values),
        cmocka_unit_test(test_q8_0_when_read_then_codes_times_scale),
        cmocka_unit_test(test_q4_0_when_read_then_low_halves_first),
        cmocka_unit_test(test_q5_0_when_read_then_fifth_bits_apart),
        cmocka_unit_test(
            test_q4_k_when_read_then_scales_and_offsets_of_six_bits),
        cmocka_unit_test(test_q6_k_when_read_then_six_bits_from_two_places),
        cmocka_unit_test(
            test_activations_when_quantised_then_within_half_a_step),
        cmocka_unit_test(
            test_activations_when_quantised_then_each_level_gives_the_same),
        cmocka_unit_test(test_rms_norm_when_any_size_then_as_defined),
        cmocka_unit_test(test_rope_when_any_size_then_pairs_are_turned),
        cmocka_unit_test(test_swiglu_when_any_size_then_as_defined),
        cmocka_unit_test(test_swiglu_when_not_finite_then_as_the_plain_one),
        cmocka_unit_test(test_add_when_any_size_then_sums),
        cmocka_unit_test(test_log_sum_exp_when_any_size_then_as_defined),
        cmocka_unit_test(test_log_sum_exp_when_not_finite_then_known),
    };
    for (int l = 0; l < COMPUTE_N_LEVELS; l++) {
        if (compute_at((compute_level)l))
            levels[n_levels++] = compute_at((compute_level)l);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
