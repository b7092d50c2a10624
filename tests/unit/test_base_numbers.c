/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_base_numbers.c - hashes and random numbers. */
#include "mb_test.h"

#include <math.h>

static void
test_hashes_are_those_of_xxh3(void **state)
{
    MB_TEST_UNUSED(state);
    // XXH3_64bits("") and XXH3_128bits("") as published; a store that was
    // written with other numbers could not be read.
    assert_true(mb_hash64("", 0, 0) == UINT64_C(0x2d06800538d394c2));
    assert_true(mb_hash64(NULL, 0, 0) == UINT64_C(0x2d06800538d394c2));
    uint8_t h[16];
    mb_hash128("", 0, h);
    assert_memory_equal(h,
        "\x99\xaa\x06\xd3\x01\x47\x98\xd8\x60\x01\xc3\x24\x46\x8d\x49\x7f", 16);
    assert_true(mb_hash64("membank", 7, 0) == mb_hash64("membank", 7, 0));
    assert_true(mb_hash64("membank", 7, 0) != mb_hash64("membank", 7, 1));
}

static void
test_rng_is_xoshiro256starstar_from_splitmix64(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_rng rng;
    mb_rng_init(&rng, 0);
    // The state is splitmix64 of seed 0 (known values).
    assert_true(rng.s[0] == UINT64_C(0xe220a8397b1dcdaf));
    assert_true(rng.s[1] == UINT64_C(0x6e789e6aa1b965f4));
    // First output by hand: rotl(s1 * 5, 7) * 9.
    uint64_t x = rng.s[1] * 5;
    uint64_t want = ((x << 7) | (x >> 57)) * 9;
    assert_true(mb_rng_u64(&rng) == want);
}

static void
test_rng_same_seed_same_numbers(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_rng a;
    struct mb_rng b;
    struct mb_rng c;
    mb_rng_init(&a, 5);
    mb_rng_init(&b, 5);
    mb_rng_init(&c, 6);
    size_t same = 0;
    for (size_t i = 0; i < 100; i++) {
        uint64_t x = mb_rng_u64(&a);
        assert_true(x == mb_rng_u64(&b));
        same += x == mb_rng_u64(&c);
    }
    assert_int_equal(0, same);
}

static void
test_rng_below_is_even(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_rng rng;
    mb_rng_init(&rng, mb_test_seed());
    size_t counts[7] = {0};
    for (size_t i = 0; i < 70000; i++)
        counts[mb_rng_below(&rng, 7)]++;
    // Six standard deviations of a binomial(70000, 1/7) are 555.
    for (size_t i = 0; i < 7; i++)
        assert_in_range(counts[i], 10000 - 555, 10000 + 555);
    assert_int_equal(0, mb_rng_below(&rng, 1));
    for (size_t i = 0; i < 100; i++)
        assert_true(
            mb_rng_below(&rng, UINT64_MAX / 2 + 2) <= UINT64_MAX / 2 + 1);
}

static void
test_rng_double_and_normal_have_their_moments(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_rng rng;
    mb_rng_init(&rng, mb_test_seed());

    enum { N = 100000 };

    double sum = 0;
    double normal_sum = 0;
    double normal_square = 0;
    for (size_t i = 0; i < N; i++) {
        double u = mb_rng_double(&rng);
        assert_true(u >= 0 && u < 1);
        sum += u;
        double z = mb_rng_normal(&rng);
        assert_true(isfinite(z));
        normal_sum += z;
        normal_square += z * z;
    }
    // Six standard errors each.
    assert_true(fabs(sum / N - 0.5) < 6 * 0.2887 / sqrt(N));
    assert_true(fabs(normal_sum / N) < 6 / sqrt(N));
    assert_true(fabs(normal_square / N - 1) < 6 * sqrt(2.0 / N));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hashes_are_those_of_xxh3),
        cmocka_unit_test(test_rng_is_xoshiro256starstar_from_splitmix64),
        cmocka_unit_test(test_rng_same_seed_same_numbers),
        cmocka_unit_test(test_rng_below_is_even),
        cmocka_unit_test(test_rng_double_and_normal_have_their_moments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
