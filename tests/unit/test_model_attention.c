/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_attention.c - attention as partials: every level
 * against a softmax in double, and what must not change a bit. */
#include "mb_test.h"

#include "attention.h"

#include <math.h>
#include <string.h>

#define MAX_BLOCKS 5u
#define MAX_N      12u

/* Slices of one head with random rows, and the rows themselves. */
struct rig {
    struct slice_shape shape;
    uint8_t *slices[MAX_BLOCKS];
    float *keys;   /* (MAX_BLOCKS * 64, head_dim) as written */
    float *values; /* same */
    float *q;      /* (MAX_N, head_dim), scaled */
};

static const struct attention *
level_of(int level)
{
    return attention_at((compute_level)level);
}

static void
fill(struct mb_rng *rng, float *x, size_t n, double scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(mb_rng_normal(rng) * scale);
}

static void
rig_begin(struct rig *rig, mb_cache_type type, size_t head_dim, uint64_t seed)
{
    struct mb_rng rng;
    size_t rows = MAX_BLOCKS * MB_BLOCK_ROWS;
    mb_rng_init(&rng, seed);
    rig->shape = (struct slice_shape){type, head_dim};
    rig->keys = mb_alloc(rows * head_dim * sizeof(float));
    rig->values = mb_alloc(rows * head_dim * sizeof(float));
    rig->q = mb_alloc(MAX_N * head_dim * sizeof(float));
    assert_true(rig->keys && rig->values && rig->q);
    fill(&rng, rig->keys, rows * head_dim, 1);
    fill(&rng, rig->values, rows * head_dim, 1);
    fill(&rng, rig->q, MAX_N * head_dim, 2 / sqrt((double)head_dim));
    for (size_t b = 0; b < MAX_BLOCKS; b++) {
        rig->slices[b] = mb_calloc(1, cache_slice_bytes(type, head_dim));
        assert_non_null(rig->slices[b]);
    }
}

static void
rig_store(struct rig *rig, const struct attention *a, size_t n_rows)
{
    size_t dim = rig->shape.head_dim;
    for (size_t r = 0; r < n_rows; r++)
        a->store(rig->shape, rig->slices[r / MB_BLOCK_ROWS], r % MB_BLOCK_ROWS,
            rig->keys + r * dim, rig->values + r * dim);
}

static void
rig_end(struct rig *rig)
{
    for (size_t b = 0; b < MAX_BLOCKS; b++)
        mb_free(rig->slices[b]);
    mb_free(rig->keys);
    mb_free(rig->values);
    mb_free(rig->q);
}

/* softmax(q K^T) V over the first n_rows rows, in double. */
static void
exact(const struct rig *rig, size_t query, size_t n_rows, double *out)
{
    size_t dim = rig->shape.head_dim;
    double z[MAX_BLOCKS * MB_BLOCK_ROWS];
    double max = -INFINITY;
    double sum = 0;
    for (size_t r = 0; r < n_rows; r++) {
        z[r] = 0;
        for (size_t j = 0; j < dim; j++)
            z[r] += (double)rig->q[query * dim + j] *
                    (double)rig->keys[r * dim + j];
        max = fmax(max, z[r]);
    }
    for (size_t j = 0; j < dim; j++)
        out[j] = 0;
    for (size_t r = 0; r < n_rows; r++) {
        double w = exp(z[r] - max);
        sum += w;
        for (size_t j = 0; j < dim; j++)
            out[j] += w * (double)rig->values[r * dim + j];
    }
    for (size_t j = 0; j < dim; j++)
        out[j] /= sum;
}

/* What each type may cost: logits near 6 in float are 5e-7 off, weights as much; fp16
 * has 11 bits; int8 steps are 1/127 of a row's largest, and average out. */
static double
tolerance_of(mb_cache_type type)
{
    if (type == MB_CACHE_F32)
        return 1e-5;
    return type == MB_CACHE_F16 ? 3e-3 : 3e-2;
}

/* Attention of n queries by `few`, as decoding does it. */
static void
run_few(const struct rig *rig, const struct attention *a, size_t n_rows,
    size_t first, size_t n, float *out)
{
    size_t dim = rig->shape.head_dim;
    float m[MAX_N];
    float l[MAX_N];
    float *o = mb_alloc(n * dim * sizeof(float));
    assert_non_null(o);
    struct partial p = {m, l, o};
    size_t blocks = (n_rows + MB_BLOCK_ROWS - 1) / MB_BLOCK_ROWS;
    partial_clear(&p, n, dim);
    a->few(rig->shape, (const uint8_t *const *)rig->slices, blocks,
        n_rows - (blocks - 1) * MB_BLOCK_ROWS, rig->q + first * dim, n, &p);
    partial_finish(&p, n, dim, out);
    mb_free(o);
}

/* The same by `many`: query i sees n_rows - i rows. */
static void
run_many(const struct rig *rig, const struct attention *a, size_t n_rows,
    size_t first, size_t n, float *out)
{
    size_t dim = rig->shape.head_dim;
    float m[MAX_N];
    float l[MAX_N];
    uint8_t seen[MAX_N];
    float *o = mb_alloc(n * dim * sizeof(float));
    float *room = mb_alloc(ATTENTION_ROOM_FLOATS * sizeof(float));
    assert_true(o && room);
    struct partial p = {m, l, o};
    partial_clear(&p, n, dim);
    for (size_t b = 0; b * MB_BLOCK_ROWS < n_rows; b++) {
        for (size_t i = 0; i < n; i++) {
            size_t end = n_rows - (first + i);
            size_t from = b * MB_BLOCK_ROWS;
            size_t here = end > from ? end - from : 0;
            seen[i] = (uint8_t)(here < MB_BLOCK_ROWS ? here : MB_BLOCK_ROWS);
        }
        a->many(rig->shape, rig->slices[b], rig->q + first * dim, seen, n, &p,
            room);
    }
    partial_finish(&p, n, dim, out);
    mb_free(o);
    mb_free(room);
}

static void
assert_close(const float *a, const double *b, size_t n, double tolerance)
{
    for (size_t i = 0; i < n; i++) {
        if (fabs((double)a[i] - b[i]) > tolerance)
            fail_msg("value %zu is %g, expected %g, tolerance %g", i,
                (double)a[i], b[i], tolerance);
    }
}

static void
check_shape(int level, mb_cache_type type, size_t dim, size_t n_rows)
{
    const struct attention *a = level_of(level);
    struct rig rig;
    float out[MAX_N * 512];
    double want[512];
    rig_begin(&rig, type, dim, 7 * dim + n_rows);
    rig_store(&rig, a, n_rows);
    run_few(&rig, a, n_rows, 0, 7, out);
    for (size_t i = 0; i < 7; i++) {
        exact(&rig, i, n_rows, want);
        assert_close(out + i * dim, want, dim, tolerance_of(type));
    }
    run_many(&rig, a, n_rows, 0, n_rows < 11 ? n_rows : 11, out);
    for (size_t i = 0; i < 11 && i < n_rows; i++) {
        exact(&rig, i, n_rows - i, want);
        assert_close(out + i * dim, want, dim, tolerance_of(type));
    }
    rig_end(&rig);
}

static void
test_attention_when_any_level_then_equals_softmax(void **state)
{
    static const size_t dims[] = {8, 24, 32, 64, 72, 128};
    static const size_t rows[] = {1, 5, 63, 64, 65, 200, 320};
    (void)state;
    for (int level = 0; level < COMPUTE_N_LEVELS; level++) {
        if (!level_of(level))
            continue;
        for (int type = MB_CACHE_F16; type <= MB_CACHE_F32; type++) {
            for (size_t d = 0; d < sizeof(dims) / sizeof(dims[0]); d++) {
                for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++)
                    check_shape(level, (mb_cache_type)type, dims[d], rows[r]);
            }
        }
    }
}

/* Each query alone, and all together: the same bits. */
static void
test_attention_when_company_changes_then_not_a_bit_does(void **state)
{
    (void)state;
    for (int level = 0; level < COMPUTE_N_LEVELS; level++) {
        const struct attention *a = level_of(level);
        for (int type = MB_CACHE_F16; a && type <= MB_CACHE_F32; type++) {
            struct rig rig;
            float all[MAX_N * 72];
            float one[72];
            rig_begin(&rig, (mb_cache_type)type, 72, 3);
            rig_store(&rig, a, 150);
            run_few(&rig, a, 150, 0, MAX_N, all);
            for (size_t i = 0; i < MAX_N; i++) {
                run_few(&rig, a, 150, i, 1, one);
                assert_memory_equal(one, all + i * 72, sizeof(one));
            }
            run_many(&rig, a, 150, 0, MAX_N, all);
            for (size_t i = 0; i < MAX_N; i++) {
                run_many(&rig, a, 150, i, 1, one);
                assert_memory_equal(one, all + i * 72, sizeof(one));
            }
            rig_end(&rig);
        }
    }
}

/* Rows that a query does not see may hold anything finite. */
static void
test_attention_when_masked_rows_change_then_not_a_bit_does(void **state)
{
    (void)state;
    for (int level = 0; level < COMPUTE_N_LEVELS; level++) {
        const struct attention *a = level_of(level);
        if (!a)
            continue;
        struct rig rig;
        float before[MAX_N * 32];
        float after[MAX_N * 32];
        rig_begin(&rig, MB_CACHE_F16, 32, 5);
        rig_store(&rig, a, 100);
        run_few(&rig, a, 100, 0, 4, before);
        run_many(&rig, a, 100, 0, 4, before + 4 * 32);
        rig_store(&rig, a, 128); // rows 100 to 127 of the second block
        run_few(&rig, a, 100, 0, 4, after);
        run_many(&rig, a, 100, 0, 4, after + 4 * 32);
        assert_memory_equal(before, after, 8 * 32 * sizeof(float));
        rig_end(&rig);
    }
}

/* Ranges apart, then merged in any order, are the range as a whole. */
static void
test_partials_when_merged_then_equal_whole(void **state)
{
    (void)state;
    struct rig rig;
    const struct attention *a = attention_best();
    double want[32];
    float m[3];
    float l[3];
    float o[3 * 32];
    float out[32];
    rig_begin(&rig, MB_CACHE_F32, 32, 11);
    rig_store(&rig, a, 192);
    for (int order = 0; order < 2; order++) {
        struct partial all = {m, l, o};
        struct partial part = {m + 1, l + 1, o + 32};
        partial_clear(&all, 1, 32);
        for (size_t i = 0; i < 3; i++) {
            size_t b = order == 0 ? i : 2 - i;
            const uint8_t *slice = rig.slices[b];
            partial_clear(&part, 1, 32);
            a->few(rig.shape, &slice, 1, 64, rig.q, 1, &part);
            partial_merge(&all, &part, 1, 32);
        }
        partial_finish(&all, 1, 32, out);
        exact(&rig, 0, 192, want);
        assert_close(out, want, 32, 2e-6);
    }
    rig_end(&rig);
}

static void
test_partials_when_empty_then_neutral_and_zero(void **state)
{
    (void)state;
    float m[2];
    float l[2];
    float o[16];
    float out[8];
    struct partial a = {m, l, o};
    struct partial b = {m + 1, l + 1, o + 8};
    partial_clear(&a, 1, 8);
    partial_clear(&b, 1, 8);
    partial_merge(&a, &b, 1, 8);
    partial_finish(&a, 1, 8, out);
    for (size_t j = 0; j < 8; j++)
        assert_true(out[j] == 0);
    m[0] = 3;
    l[0] = 2;
    for (size_t j = 0; j < 8; j++)
        o[j] = (float)j;
    partial_merge(&a, &b, 1, 8);
    assert_true(m[0] == 3 && l[0] == 2 && o[7] == 7);
    partial_merge(&b, &a, 1, 8);
    assert_true(m[1] == 3 && l[1] == 2 && o[8 + 7] == 7);
}

/* NaN in a query that is seen must not vanish; int8 keys hold no NaN. */
static void
test_attention_when_query_is_nan_then_result_is(void **state)
{
    (void)state;
    for (int level = 0; level < COMPUTE_N_LEVELS; level++) {
        const struct attention *a = level_of(level);
        if (!a)
            continue;
        struct rig rig;
        float out[2 * 32];
        rig_begin(&rig, MB_CACHE_F16, 32, 13);
        rig_store(&rig, a, 70);
        rig.q[0] = NAN;
        run_few(&rig, a, 70, 0, 2, out);
        assert_true(isnan(out[0]) && !isnan(out[32]));
        run_many(&rig, a, 70, 0, 2, out);
        assert_true(isnan(out[0]) && !isnan(out[32]));
        rig_end(&rig);
    }
}

static void
test_store_when_int8_row_is_infinite_then_zeros(void **state)
{
    (void)state;
    struct rig rig;
    const struct attention *a = attention_best();
    float out[32];
    rig_begin(&rig, MB_CACHE_Q8_0, 32, 17);
    rig.keys[3] = INFINITY;
    rig.values[5] = NAN;
    rig_store(&rig, a, 2);
    run_few(&rig, a, 2, 0, 1, out);
    for (size_t j = 0; j < 32; j++)
        assert_true(isfinite(out[j]));
    rig_end(&rig);
}

/* All levels write the same bytes: a cache may outlive its CPU. */
static void
test_store_when_any_level_then_same_bytes(void **state)
{
    (void)state;
    for (int level = 1; level < COMPUTE_N_LEVELS; level++) {
        for (int type = MB_CACHE_F16; type <= MB_CACHE_F32; type++) {
            struct rig plain;
            struct rig fast;
            size_t size = cache_slice_bytes((mb_cache_type)type, 72);
            if (!level_of(level))
                continue;
            rig_begin(&plain, (mb_cache_type)type, 72, 19);
            rig_begin(&fast, (mb_cache_type)type, 72, 19);
            plain.keys[0] = fast.keys[0] = 1e30f; // past the largest fp16
            plain.keys[2] = fast.keys[2] = -INFINITY;
            plain.values[0] = fast.values[0] = INFINITY;
            plain.keys[1] = fast.keys[1] = 1e-7f; // below the normal ones
            rig_store(&plain, level_of(COMPUTE_PLAIN), 70);
            rig_store(&fast, level_of(level), 70);
            for (size_t b = 0; b < 2; b++)
                assert_memory_equal(plain.slices[b], fast.slices[b], size);
            rig_end(&plain);
            rig_end(&fast);
        }
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_when_any_level_then_equals_softmax),
        cmocka_unit_test(
            test_attention_when_company_changes_then_not_a_bit_does),
        cmocka_unit_test(
            test_attention_when_masked_rows_change_then_not_a_bit_does),
        cmocka_unit_test(test_partials_when_merged_then_equal_whole),
        cmocka_unit_test(test_partials_when_empty_then_neutral_and_zero),
        cmocka_unit_test(test_attention_when_query_is_nan_then_result_is),
        cmocka_unit_test(test_store_when_any_level_then_same_bytes),
        cmocka_unit_test(test_store_when_int8_row_is_infinite_then_zeros),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
