/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_tail.c - statistics of blocks, and what queries see of
 * blocks that they did not choose, against sums in double. */
#include "mb_test.h"

#include "tail.h"

#include <math.h>

#define DIM      16u
#define N_TABLES 2u
#define N_BLOCKS 150u
#define N_Q      9u

struct rig {
    struct landmark_table landmarks;
    struct landmark_table tails;
    float keys[N_BLOCKS][N_TABLES][DIM];
    float parts[N_BLOCKS][N_TABLES][TAIL_PARTS][DIM];
    float q[N_Q][DIM];
};

static void
put(struct mb_rng *rng, float *x, size_t n, bool is_positive, uint8_t *bytes)
{
    for (size_t i = 0; i < n; i++) {
        double v = mb_rng_normal(rng);
        uint16_t h = mb_half_from_float((float)(is_positive ? v * v : v));
        x[i] = mb_half_to_float(h);
        mb_put_le16(bytes + 2 * i, h);
    }
}

static int
setup(void **state)
{
    struct rig *rig = mb_calloc(1, sizeof *rig);
    struct mb_rng rng;
    assert_non_null(rig);
    mb_rng_init(&rng, mb_test_seed());
    landmark_init(&rig->landmarks, N_TABLES, DIM);
    landmark_init(&rig->tails, N_TABLES, TAIL_PARTS * DIM);
    assert_ok(landmark_reserve(&rig->landmarks, N_BLOCKS));
    assert_ok(landmark_reserve(&rig->tails, N_BLOCKS));
    for (size_t b = 0; b < N_BLOCKS; b++) {
        uint8_t keys[N_TABLES * DIM * 2];
        uint8_t parts[N_TABLES * TAIL_PARTS * DIM * 2];
        put(&rng, rig->keys[b][0], N_TABLES * DIM, false, keys);
        for (size_t i = 0; i < N_TABLES * TAIL_PARTS; i++)
            put(&rng, rig->parts[b][i / TAIL_PARTS][i % TAIL_PARTS], DIM,
                i % TAIL_PARTS == 1, parts + i * DIM * 2);
        landmark_append(&rig->landmarks, keys);
        landmark_append(&rig->tails, parts);
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
    landmark_fini(&rig->landmarks);
    landmark_fini(&rig->tails);
    mb_free(rig);
    return 0;
}

/* ---- statistics ---- */

static void
test_measure_when_any_type_then_moments_of_rows(void **state)
{
    static uint8_t slice[65536];
    static float key[63][DIM];
    static float value[63][DIM];
    MB_TEST_UNUSED(state);
    struct mb_rng rng;
    mb_rng_init(&rng, mb_test_seed());
    for (int type = 0; type < 3; type++) {
        struct slice_shape shape = {(mb_cache_type)type, DIM};
        float got[TAIL_PARTS * DIM];
        assert_true(cache_slice_bytes(shape.type, DIM) <= sizeof slice);
        memset(slice, 0xff, sizeof slice); // the landmark's row does not count
        for (size_t r = 0; r < 63; r++) {
            for (size_t j = 0; j < DIM; j++) {
                key[r][j] = (float)(mb_rng_normal(&rng) * 2 + 1);
                value[r][j] = (float)mb_rng_normal(&rng);
            }
            attention_plain.store(shape, slice, r, key[r], value[r]);
        }
        tail_measure(shape, slice, got);
        // Of int8 a row's largest value has a code of 127.
        double close = type == MB_CACHE_Q8_0 ? 0.05 : 1e-2;
        if (type == MB_CACHE_F32)
            close = 1e-5;
        for (size_t j = 0; j < DIM; j++) {
            double mean = 0;
            double variance = 0;
            double mean_value = 0;
            for (size_t r = 0; r < 63; r++) {
                mean += (double)key[r][j] / 63;
                mean_value += (double)value[r][j] / 63;
            }
            for (size_t r = 0; r < 63; r++)
                variance += pow((double)key[r][j] - mean, 2) / 63;
            assert_true(fabs(mean - (double)got[j]) < close);
            assert_true(fabs(variance - (double)got[DIM + j]) < 4 * close);
            assert_true(fabs(mean_value - (double)got[2 * DIM + j]) < close);
        }
    }
}

/* ---- attention ---- */

static double
logit(const struct rig *rig, mb_tail kind, size_t t, size_t b, const float *q)
{
    double z = kind == MB_TAIL_MOMENTS ? log(63) : 0;
    for (size_t j = 0; j < DIM; j++) {
        double x = (double)q[j];
        z += kind == MB_TAIL_LANDMARK
                 ? x * (double)rig->keys[b][t][j]
                 : x * (double)rig->parts[b][t][0][j] +
                       x * x * (double)rig->parts[b][t][1][j] / 2;
    }
    return z;
}

/* A row that was seen before, and all blocks but those that were chosen. */
static void
attend(const struct rig *rig, mb_tail kind, size_t t, size_t i, size_t n,
    const struct landmark_choice *skip, double out[DIM])
{
    double sum = exp(1.0);
    for (size_t j = 0; j < DIM; j++)
        out[j] = exp(1.0) * 2;
    for (size_t b = 0; b < n; b++) {
        bool is_chosen = false;
        for (size_t c = 0; skip && c < skip->n; c++)
            is_chosen = is_chosen || skip->ordinals[c] == b;
        if (is_chosen)
            continue;
        double w = exp(logit(rig, kind, t, b, rig->q[i]));
        sum += w;
        for (size_t j = 0; j < DIM; j++)
            out[j] += w * (double)rig->parts[b][t][2][j];
    }
    for (size_t j = 0; j < DIM; j++)
        out[j] /= sum;
}

static void
check(const struct rig *rig, const struct attention *a, mb_tail kind,
    size_t n_blocks)
{
    static float room[ATTENTION_ROOM_FLOATS];
    const struct landmark_choice chosen = {3, {2, 64, 70}};
    const struct landmark_choice *skip[N_Q];
    float more[20000];
    float m[N_Q];
    float l[N_Q];
    float o[N_Q][DIM];
    struct partial to = {m, l, o[0]};
    assert_true(tail_room_floats(DIM) <= 20000);
    for (size_t t = 0; t < N_TABLES; t++) {
        const struct tail_view view = {
            &rig->tails, &rig->landmarks, a, t, kind};
        for (size_t i = 0; i < N_Q; i++) {
            skip[i] = i % 2 ? &chosen : NULL;
            m[i] = 1; // a row of logit 1 whose values are 2
            l[i] = 1;
            for (size_t j = 0; j < DIM; j++)
                o[i][j] = 2;
        }
        tail_attend(&view, rig->q[0], N_Q, n_blocks, skip, &to, room, more);
        partial_finish(&to, N_Q, DIM, o[0]);
        for (size_t i = 0; i < N_Q; i++) {
            double want[DIM];
            attend(rig, kind, t, i, n_blocks, skip[i], want);
            for (size_t j = 0; j < DIM; j++)
                assert_true(fabs(want[j] - (double)o[i][j]) < 1e-5);
        }
    }
}

static void
test_attend_when_any_level_then_as_sums_in_double(void **state)
{
    static const size_t n_blocks[] = {0, 1, 63, 64, 65, N_BLOCKS};
    const struct rig *rig = *state;
    for (int level = 0; level < COMPUTE_N_LEVELS; level++) {
        const struct attention *a = attention_at((compute_level)level);
        for (size_t i = 0; a && i < 6; i++) {
            check(rig, a, MB_TAIL_MOMENTS, n_blocks[i]);
            check(rig, a, MB_TAIL_LANDMARK, n_blocks[i]);
        }
    }
}

static void
test_block_when_alone_then_its_logit_and_value(void **state)
{
    const struct rig *rig = *state;
    for (int kind = MB_TAIL_MOMENTS; kind <= MB_TAIL_LANDMARK; kind++) {
        const struct tail_view view = {
            &rig->tails, &rig->landmarks, &attention_plain, 1, (mb_tail)kind};
        float value[DIM];
        float z = tail_block(&view, rig->q[3], 77, value);
        double want = logit(rig, (mb_tail)kind, 1, 77, rig->q[3]);
        assert_true(fabs(want - (double)z) < 1e-4);
        assert_memory_equal(rig->parts[77][1][2], value, sizeof value);
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_measure_when_any_type_then_moments_of_rows),
        TEST(test_attend_when_any_level_then_as_sums_in_double),
        TEST(test_block_when_alone_then_its_logit_and_value),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
