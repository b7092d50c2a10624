/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_scan.c - scan kernels against their plain twins.
 *
 * Every level that this machine has is compared. Integer results are equal;
 * floats may differ by the order of a sum: at most 4,096 products of values
 * below 1 in f32, so 1e-5 absolute and 1e-5 of the value. */
#include "mb_test.h"

#include <math.h>

#include "scan.h"

#define ATOL 1e-5
#define RTOL 1e-5

static const size_t dims[] = {1, 3, 8, 31, 32, 33, 64, 100, 256, 300, 4096};
#define N_DIMS (sizeof dims / sizeof dims[0])

static void
assert_close(float want, float got)
{
    double gap = fabs((double)want - (double)got);
    if (!(gap <= ATOL + RTOL * fabs((double)want)))
        fail_msg("wanted %g, got %g", (double)want, (double)got);
}

static void
random_codes(struct mb_rng *rng, int8_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (int8_t)((int)mb_rng_below(rng, 255) - 127);
}

static void
random_floats(struct mb_rng *rng, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(mb_rng_double(rng) * 2.0 - 1.0);
}

/* Calls check for each level above plain that this machine has. */
static void
each_level(void (*check)(const struct scan_kernels *fast, uint64_t seed))
{
    uint64_t seed = mb_test_seed();
    for (int level = SCAN_PLAIN + 1; level < SCAN_N_LEVELS; level++) {
        const struct scan_kernels *fast = scan_at((scan_level)level);
        if (fast) {
            print_message("level %s\n", fast->name);
            check(fast, seed);
        }
    }
}

/* ---- int8 ---- */

static void
check_dot_i8(const struct scan_kernels *fast, uint64_t seed)
{
    enum { ROWS = 9 };
    const struct scan_kernels *plain = scan_at(SCAN_PLAIN);
    struct mb_rng rng;
    mb_rng_init(&rng, seed);
    for (size_t s = 0; s < N_DIMS; s++) {
        size_t stride = scan_stride(dims[s]);
        int8_t *q = mb_alloc(stride + 1);
        int8_t *rows = mb_alloc(ROWS * stride + 1);
        random_codes(&rng, q, stride + 1);
        random_codes(&rng, rows, ROWS * stride + 1);
        for (size_t n = 0; n <= ROWS; n++) {
            int32_t want[ROWS + 1] = {0};
            int32_t got[ROWS + 1] = {0};
            got[n] = want[n] = 77; // must stay
            // One byte off: the map promises no alignment.
            plain->dot_i8(q + 1, rows + 1, n, stride, want);
            fast->dot_i8(q + 1, rows + 1, n, stride, got);
            assert_memory_equal(want, got, sizeof want);
        }
        mb_free(rows);
        mb_free(q);
    }
}

static void
test_dot_i8_when_random_then_equals_plain(void **state)
{
    MB_TEST_UNUSED(state);
    each_level(check_dot_i8);
}

static void
check_extremes(const struct scan_kernels *fast, uint64_t seed)
{
    MB_TEST_UNUSED(seed);
    static const int8_t values[] = {-127, -1, 0, 1, 127};
    int8_t q[4096];
    int8_t x[4096];
    for (size_t a = 0; a < sizeof values; a++) {
        for (size_t b = 0; b < sizeof values; b++) {
            int32_t got;
            memset(q, values[a], sizeof q);
            memset(x, values[b], sizeof x);
            fast->dot_i8(q, x, 1, sizeof q, &got);
            assert_int_equal(4096 * values[a] * values[b], got);
        }
    }
}

static void
test_dot_i8_when_codes_are_extreme_then_nothing_saturates(void **state)
{
    MB_TEST_UNUSED(state);
    check_extremes(scan_at(SCAN_PLAIN), 0);
    each_level(check_extremes);
}

static void
check_scale(const struct scan_kernels *fast, uint64_t seed)
{
    enum { MAX = 40 };
    const struct scan_kernels *plain = scan_at(SCAN_PLAIN);
    struct mb_rng rng;
    mb_rng_init(&rng, seed);
    for (size_t n = 0; n <= MAX; n++) {
        int32_t dots[MAX];
        uint8_t scales[4 * MAX + 1];
        float want[MAX];
        float got[MAX];
        struct scan_sums want_sums = {0.5, 0.25, 3};
        struct scan_sums got_sums = want_sums;
        for (size_t i = 0; i < MAX; i++) {
            dots[i] = (int32_t)mb_rng_below(&rng, 2000001) - 1000000;
            mb_put_lef32(
                scales + 1 + 4 * i, (float)mb_rng_double(&rng) * 1e-3f);
        }
        float want_best =
            plain->scale(dots, 1e-3f, scales + 1, n, want, &want_sums);
        float got_best =
            fast->scale(dots, 1e-3f, scales + 1, n, got, &got_sums);
        assert_true(n > 0 || (isinf(want_best) && want_best < 0));
        if (n > 0)
            assert_close(want_best, got_best);
        else
            assert_true(isinf(got_best) && got_best < 0);
        for (size_t i = 0; i < n; i++)
            assert_close(want[i], got[i]);
        assert_close((float)want_sums.sum, (float)got_sums.sum);
        assert_close((float)want_sums.sum_squares, (float)got_sums.sum_squares);
        assert_int_equal(3 + n, got_sums.n);
    }
}

static void
test_scale_when_random_then_close_to_plain(void **state)
{
    MB_TEST_UNUSED(state);
    each_level(check_scale);
}

/* ---- floats ---- */

static void
check_dots(const struct scan_kernels *fast, uint64_t seed)
{
    enum { ROWS = 6 };
    const struct scan_kernels *plain = scan_at(SCAN_PLAIN);
    struct mb_rng rng;
    mb_rng_init(&rng, seed);
    for (size_t s = 0; s < N_DIMS; s++) {
        size_t dim = dims[s];
        float *q = mb_alloc(dim * sizeof *q);
        float *rows = mb_alloc(ROWS * dim * sizeof *rows);
        uint8_t *half = mb_alloc(2 * dim + 1);
        float want[ROWS];
        float got[ROWS];
        random_floats(&rng, q, dim);
        random_floats(&rng, rows, ROWS * dim);
        for (size_t d = 0; d < dim; d++)
            q[d] /= sqrtf((float)dim); // sums stay near 1
        plain->dot_f32(q, rows, ROWS, dim, want);
        fast->dot_f32(q, rows, ROWS, dim, got);
        for (size_t i = 0; i < ROWS; i++)
            assert_close(want[i], got[i]);
        plain->to_f16(rows, dim, half + 1);
        assert_close(
            plain->dot_f16(q, half + 1, dim), fast->dot_f16(q, half + 1, dim));
        mb_free(half);
        mb_free(rows);
        mb_free(q);
    }
}

static void
test_dots_when_random_then_close_to_plain(void **state)
{
    MB_TEST_UNUSED(state);
    each_level(check_dots);
}

/* ---- fp16 ---- */

static void
check_all_halves(const struct scan_kernels *k, uint64_t seed)
{
    MB_TEST_UNUSED(seed);
    for (uint32_t h = 0; h < 0x10000; h++) {
        uint8_t in[2];
        uint8_t back[2];
        float f;
        mb_put_le16(in, (uint16_t)h);
        k->from_f16(in, 1, &f);
        k->to_f16(&f, 1, back);
        if ((h & 0x7c00) == 0x7c00 && (h & 0x3ff) != 0) {
            assert_true(isnan(f));
            continue;
        }
        if (mb_get_le16(back) != h)
            fail_msg(
                "%s: %04x came back as %04x", k->name, h, mb_get_le16(back));
    }
}

static void
test_f16_when_any_value_then_comes_back_whole(void **state)
{
    MB_TEST_UNUSED(state);
    check_all_halves(scan_at(SCAN_PLAIN), 0);
    each_level(check_all_halves);
}

/* Values by hand: IEEE 754 binary16, round to nearest even. */
static const struct {
    float in;
    uint16_t out;
} halves[] = {
    {0.0f, 0x0000},
    {-0.0f, 0x8000},
    {1.0f, 0x3c00},
    {-2.0f, 0xc000},
    {65504.0f, 0x7bff},
    {65519.0f, 0x7bff},
    {65520.0f, 0x7c00},
    {1e30f, 0x7c00},
    {0x1p-14f, 0x0400},
    {0x1p-24f, 0x0001},
    {0x1p-25f, 0x0000},
    {0x1.8p-25f, 0x0001},
    {0x1.8p-24f, 0x0002},
    {0x1.ff8p-15f, 0x03ff},
    {0x1.ffcp-15f, 0x0400},
    {1.0f + 0x1p-11f, 0x3c00},
    {1.0f + 0x1.8p-10f, 0x3c02},
    {1.0f + 0x1.8p-11f, 0x3c01},
    {0x1.fffp0f, 0x4000},
};

static void
check_rounding(const struct scan_kernels *k, uint64_t seed)
{
    MB_TEST_UNUSED(seed);
    for (size_t i = 0; i < sizeof halves / sizeof halves[0]; i++) {
        // Eight at once and one alone take different ways in a kernel.
        float in[9];
        uint8_t out[18];
        for (size_t j = 0; j < 9; j++)
            in[j] = halves[i].in;
        k->to_f16(in, 9, out);
        for (size_t j = 0; j < 9; j++) {
            if (mb_get_le16(out + 2 * j) != halves[i].out)
                fail_msg("%s: %a gave %04x, not %04x", k->name,
                    (double)halves[i].in, mb_get_le16(out + 2 * j),
                    halves[i].out);
        }
    }
}

static void
test_to_f16_when_between_values_then_rounds_to_even(void **state)
{
    MB_TEST_UNUSED(state);
    check_rounding(scan_at(SCAN_PLAIN), 0);
    each_level(check_rounding);
}

static void
check_random_halves(const struct scan_kernels *fast, uint64_t seed)
{
    const struct scan_kernels *plain = scan_at(SCAN_PLAIN);
    struct mb_rng rng;
    mb_rng_init(&rng, seed);
    for (size_t i = 0; i < 100000; i++) {
        uint32_t bits = (uint32_t)mb_rng_u64(&rng);
        float in;
        uint8_t want[2];
        uint8_t got[2];
        memcpy(&in, &bits, sizeof in);
        if (isnan(in))
            continue;
        plain->to_f16(&in, 1, want);
        fast->to_f16(&in, 1, got);
        if (memcmp(want, got, 2) != 0)
            fail_msg("%a: plain %04x, %s %04x", (double)in, mb_get_le16(want),
                fast->name, mb_get_le16(got));
    }
}

static void
test_to_f16_when_random_bits_then_equals_plain(void **state)
{
    MB_TEST_UNUSED(state);
    each_level(check_random_halves);
}

/* ---- quantizing ---- */

static void
test_quantize_when_random_then_within_half_a_step(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_rng rng;
    mb_rng_init(&rng, mb_test_seed());
    for (size_t s = 0; s < N_DIMS; s++) {
        float x[4096];
        int8_t codes[4096];
        random_floats(&rng, x, dims[s]);
        memset(codes, 99, sizeof codes);
        float scale = scan_quantize(x, dims[s], codes);
        for (size_t d = 0; d < dims[s]; d++) {
            float back = scale * (float)codes[d];
            assert_true(codes[d] >= -127);
            assert_true(fabsf(back - x[d]) <= scale * 0.5001f);
        }
        for (size_t d = dims[s]; d < scan_stride(dims[s]); d++)
            assert_int_equal(0, codes[d]);
    }
}

static void
test_quantize_when_next_to_nothing_then_zero(void **state)
{
    MB_TEST_UNUSED(state);
    static const float smallest[] = {0.0f, 1e-44f, -1e-40f};
    for (size_t i = 0; i < 3; i++) {
        float x[3] = {0, smallest[i], 0};
        int8_t codes[32];
        float scale = scan_quantize(x, 3, codes);
        assert_true(isfinite(scale));
        assert_true(fabsf(scale * (float)codes[1] - x[1]) <= 1e-40f);
    }
}

static void
test_best_when_asked_then_the_highest_level_there_is(void **state)
{
    MB_TEST_UNUSED(state);
    const struct scan_kernels *best = NULL;
    for (int level = 0; level < SCAN_N_LEVELS; level++) {
        if (scan_at((scan_level)level))
            best = scan_at((scan_level)level);
    }
    assert_ptr_equal(best, scan_best());
    assert_null(scan_at(SCAN_N_LEVELS));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dot_i8_when_random_then_equals_plain),
        cmocka_unit_test(
            test_dot_i8_when_codes_are_extreme_then_nothing_saturates),
        cmocka_unit_test(test_scale_when_random_then_close_to_plain),
        cmocka_unit_test(test_dots_when_random_then_close_to_plain),
        cmocka_unit_test(test_f16_when_any_value_then_comes_back_whole),
        cmocka_unit_test(test_to_f16_when_between_values_then_rounds_to_even),
        cmocka_unit_test(test_to_f16_when_random_bits_then_equals_plain),
        cmocka_unit_test(test_quantize_when_random_then_within_half_a_step),
        cmocka_unit_test(test_quantize_when_next_to_nothing_then_zero),
        cmocka_unit_test(test_best_when_asked_then_the_highest_level_there_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
