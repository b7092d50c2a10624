/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_landmark.c - the table of landmark keys: what is chosen
 * is what sorting all scores chooses. */
#include "mb_test.h"

#include "landmark.h"

#include <math.h>

#define DIM      32u
#define N_TABLES 3u
#define N_BLOCKS 300u
#define N_Q      20u

struct rig {
    struct landmark_table table;
    float keys[N_BLOCKS][N_TABLES][DIM];
    float q[N_Q][DIM];
};

static int
setup(void **state)
{
    struct rig *rig = mb_calloc(1, sizeof *rig);
    struct mb_rng rng;
    assert_non_null(rig);
    mb_rng_init(&rng, mb_test_seed());
    landmark_init(&rig->table, N_TABLES, DIM);
    assert_ok(landmark_reserve(&rig->table, N_BLOCKS));
    for (size_t b = 0; b < N_BLOCKS; b++) {
        uint8_t bytes[N_TABLES * DIM * 2];
        for (size_t i = 0; i < N_TABLES * DIM; i++) {
            uint16_t h = mb_half_from_float((float)mb_rng_normal(&rng));
            rig->keys[b][i / DIM][i % DIM] = mb_half_to_float(h);
            mb_put_le16(bytes + 2 * i, h);
        }
        landmark_append(&rig->table, bytes);
    }
    for (size_t i = 0; i < N_Q * DIM; i++)
        rig->q[i / DIM][i % DIM] = (float)mb_rng_normal(&rng);
    *state = rig;
    return 0;
}

static int
teardown(void **state)
{
    struct rig *rig = *state;
    landmark_fini(&rig->table);
    mb_free(rig);
    return 0;
}

static void
test_key_when_asked_then_as_appended(void **state)
{
    const struct rig *rig = *state;
    float key[DIM];
    for (size_t b = 0; b < N_BLOCKS; b++) {
        for (size_t t = 0; t < N_TABLES; t++) {
            landmark_key(&rig->table, t, b, key);
            assert_memory_equal(rig->keys[b][t], key, sizeof key);
        }
    }
}

/* Scores of all levels, one query or many: bits do not depend on how many. */
static void
test_scores_when_any_level_then_inner_products(void **state)
{
    const struct rig *rig = *state;
    static float room[ATTENTION_ROOM_FLOATS];
    static float many[N_Q][320];
    static float one[320];
    for (int level = 0; level < COMPUTE_N_LEVELS; level++) {
        const struct attention *a = attention_at((compute_level)level);
        if (a == NULL)
            continue;
        for (size_t t = 0; t < N_TABLES; t++) {
            landmark_scores(&rig->table, a, t, rig->q[0], N_Q, N_BLOCKS,
                many[0], 320, room);
            for (size_t i = 0; i < N_Q; i++) {
                landmark_scores(
                    &rig->table, a, t, rig->q[i], 1, N_BLOCKS, one, 0, room);
                assert_memory_equal(one, many[i], N_BLOCKS * sizeof one[0]);
                for (size_t b = 0; b < N_BLOCKS; b++) {
                    double want = 0;
                    for (size_t j = 0; j < DIM; j++)
                        want +=
                            (double)rig->q[i][j] * (double)rig->keys[b][t][j];
                    assert_true(fabs(want - (double)one[b]) < 1e-4);
                }
            }
        }
    }
}

/* The k largest by sorting, the older of equal ones. */
static void
test_choose_when_any_then_as_sorting(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_rng rng;
    float z[100];
    mb_rng_init(&rng, mb_test_seed());
    for (size_t run = 0; run < 2000; run++) {
        size_t n = mb_rng_below(&rng, 100) + 1;
        size_t k = mb_rng_below(&rng, LANDMARK_MAX_K + 1);
        size_t n_numbers = n;
        struct landmark_choice c;
        for (size_t b = 0; b < n; b++) // few values: many are equal
            z[b] = (float)mb_rng_below(&rng, run % 2 ? 10 : 100000);
        for (size_t b = 0; b < n && run % 5 == 0; b += 7) {
            z[b] = NAN;
            n_numbers--;
        }
        landmark_choose(z, n, k, &c);
        assert_int_equal(k < n_numbers ? k : n_numbers, c.n);
        for (size_t i = 0; i < c.n; i++) {
            size_t larger = 0; // how many stand before it
            size_t b = c.ordinals[i];
            assert_true(i == 0 || c.ordinals[i - 1] < b);
            for (size_t other = 0; other < n; other++)
                larger += z[other] > z[b] || (z[other] == z[b] && other < b);
            assert_true(larger < k && !isnan(z[b]));
        }
    }
}

/* Shares of several rows: the largest of each block's softmax. */
static void
test_share_when_merged_then_largest_of_softmaxes(void **state)
{
    MB_TEST_UNUSED(state);
    const float z[2][3] = {{1, 2, 3}, {50, 50, 40}};
    float best[3] = {-INFINITY, -INFINITY, -INFINITY};
    for (size_t i = 0; i < 2; i++)
        landmark_share(compute_best(), z[i], 3, best);
    double sum = exp(1) + exp(2) + exp(3);
    assert_true(fabs((double)best[0] - log(0.5)) < 1e-4);
    assert_true(fabs((double)best[1] - log(0.5)) < 1e-4);
    assert_true(fabs((double)best[2] - log(exp(3) / sum)) < 1e-4);
}

/* The paper's example: k is 2, of the blocks A to E any two are chosen. D and E
 * are the newest: they are scored in slots 1 and 2, all others in slot 0. */
static void
test_slots_when_two_of_five_then_as_in_the_table(void **state)
{
    static const size_t scored[5] = {0, 0, 0, 1, 2};

    static const struct {
        const char *chosen;
        size_t used[2];
    } table[] = {{"AB", {0, 1}}, {"AC", {0, 1}}, {"AD", {0, 2}}, {"AE", {0, 2}},
        {"BC", {0, 1}}, {"BD", {0, 2}}, {"BE", {0, 2}}, {"CD", {0, 2}},
        {"CE", {0, 2}}, {"DE", {1, 2}}};

    MB_TEST_UNUSED(state);
    for (size_t b = 0; b < 5; b++)
        assert_int_equal(scored[b], landmark_scored_slot(5, 2, b));
    for (size_t i = 0; i < 10; i++) {
        for (size_t s = 0; s < 2; s++)
            assert_int_equal(
                table[i].used[s], landmark_used_slot(5, 2,
                                      (size_t)(table[i].chosen[s] - 'A'), s));
    }
    // Where all are chosen each stands where it is scored, and at its place.
    for (size_t b = 0; b < 4; b++) {
        assert_int_equal(b + 1, landmark_scored_slot(4, 4, b));
        assert_int_equal(b + 1, landmark_used_slot(4, 4, b, b));
    }
}

static void
test_table_when_cut_then_grows_again(void **state)
{
    struct rig *rig = *state;
    uint8_t bytes[N_TABLES * DIM * 2];
    float key[DIM];
    size_t before = landmark_bytes(&rig->table);
    landmark_truncate(&rig->table, 100);
    assert_int_equal(100, rig->table.n);
    assert_true(landmark_bytes(&rig->table) < before);
    landmark_key(&rig->table, 1, 99, key);
    assert_memory_equal(rig->keys[99][1], key, sizeof key);
    for (size_t i = 0; i < N_TABLES * DIM; i++)
        mb_put_le16(bytes + 2 * i, mb_half_from_float(0.5f));
    assert_ok(landmark_reserve(&rig->table, 129));
    for (size_t b = 100; b < 129; b++)
        landmark_append(&rig->table, bytes);
    landmark_key(&rig->table, 2, 128, key);
    assert_true(key[0] == 0.5f && key[DIM - 1] == 0.5f);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_key_when_asked_then_as_appended),
        TEST(test_scores_when_any_level_then_inner_products),
        cmocka_unit_test(test_choose_when_any_then_as_sorting),
        cmocka_unit_test(test_share_when_merged_then_largest_of_softmaxes),
        cmocka_unit_test(test_slots_when_two_of_five_then_as_in_the_table),
        TEST(test_table_when_cut_then_grows_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
