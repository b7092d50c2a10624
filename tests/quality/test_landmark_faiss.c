/* SPDX-License-Identifier: Apache-2.0
 * tests/quality/test_landmark_faiss.c - the search of landmark tables against
 * FAISS's exact inner products: the same blocks, the same logits.
 *
 * Tables are scanned by our own kernels, which read fp16 keys; FAISS has the
 * same keys in float. Where two logits lie closer than rounding either may come
 * first: then the logits of what was chosen decide. */
#include "mb_test.h"

#include <math.h>

#include <faiss/c_api/IndexFlat_c.h>

#include "landmark.h"

#define MAX_BLOCKS 3000u
#define MAX_DIM    128u
#define N_TABLES   2u
#define ROUNDS     60
/* Of fp32 sums of at most 128 products in another order, for each unit of the
 * norms of query and key. */
#define CLOSE 1e-5

struct rig {
    struct mb_rng rng;
    struct landmark_table table;
    size_t dim;
    size_t n;
    float *keys[N_TABLES]; /* (n, dim) as the table rounds them */
    FaissIndexFlatIP *index[N_TABLES];
    float *z;
};

static void
rig_begin(struct rig *rig, size_t dim, size_t n)
{
    static uint8_t bytes[N_TABLES * MAX_DIM * 2];

    rig->dim = dim;
    rig->n = n;
    rig->z = mb_calloc(MAX_BLOCKS + MB_BLOCK_ROWS, sizeof *rig->z);
    assert_non_null(rig->z);
    landmark_init(&rig->table, N_TABLES, dim);
    assert_ok(landmark_reserve(&rig->table, n));
    for (size_t t = 0; t < N_TABLES; t++) {
        rig->keys[t] = mb_calloc(n * dim, sizeof(float));
        assert_non_null(rig->keys[t]);
    }
    for (size_t b = 0; b < n; b++) {
        // Some keys are long: a norm has its meaning.
        float size = mb_rng_below(&rig->rng, 8) == 0 ? 5 : 1;

        for (size_t i = 0; i < N_TABLES * dim; i++) {
            uint16_t h =
                mb_half_from_float(size * (float)mb_rng_normal(&rig->rng));
            mb_put_le16(bytes + 2 * i, h);
            rig->keys[i / dim][b * dim + i % dim] = mb_half_to_float(h);
        }
        landmark_append(&rig->table, bytes);
    }
    for (size_t t = 0; t < N_TABLES; t++) {
        rig->index[t] = NULL;
        assert_int_equal(
            0, faiss_IndexFlatIP_new_with(&rig->index[t], (idx_t)dim));
        assert_int_equal(
            0, faiss_Index_add(rig->index[t], (idx_t)n, rig->keys[t]));
    }
}

static void
rig_end(struct rig *rig)
{
    landmark_fini(&rig->table);
    for (size_t t = 0; t < N_TABLES; t++) {
        faiss_Index_free(rig->index[t]);
        mb_free(rig->keys[t]);
    }
    mb_free(rig->z);
}

static double
norm(const float *x, size_t n)
{
    double sum = 0;

    for (size_t j = 0; j < n; j++) {
        sum += (double)x[j] * (double)x[j];
    }
    return sqrt(sum);
}

/* One query: the k blocks that each way chooses. */
static void
check_query(struct rig *rig, size_t t, const float *q, size_t k)
{
    static float room[ATTENTION_ROOM_FLOATS];
    float scores[LANDMARK_MAX_K];
    idx_t found[LANDMARK_MAX_K];
    struct landmark_choice choice;
    float least = INFINITY;

    landmark_scores(
        &rig->table, attention_best(), t, q, 1, rig->n, rig->z, 0, room);
    landmark_choose(rig->z, rig->n, k, &choice);
    assert_int_equal(
        0, faiss_Index_search(rig->index[t], 1, q, (idx_t)k, scores, found));
    assert_int_equal(k, choice.n);
    for (size_t i = 0; i < k; i++) {
        least = rig->z[choice.ordinals[i]] < least ? rig->z[choice.ordinals[i]]
                                                   : least;
    }
    for (size_t i = 0; i < k; i++) {
        const float *key = rig->keys[t] + (size_t)found[i] * rig->dim;
        double close = CLOSE * norm(q, rig->dim) * norm(key, rig->dim);
        bool is_chosen = false;

        assert_true(found[i] >= 0 && (size_t)found[i] < rig->n);
        if (fabs((double)scores[i] - (double)rig->z[found[i]]) > close)
            fail_msg("block %lld: %.7g here, %.7g in FAISS",
                (long long)found[i], (double)rig->z[found[i]],
                (double)scores[i]);
        for (size_t c = 0; c < k; c++) {
            is_chosen = is_chosen || choice.ordinals[c] == (uint32_t)found[i];
        }
        if (!is_chosen && (double)least - (double)scores[i] < -close)
            fail_msg(
                "block %lld of %zu is not chosen", (long long)found[i], rig->n);
    }
}

static void
test_search_when_any_table_then_as_faiss(void **state)
{
    static const size_t dims[] = {8, 16, 32, 64, 128};
    struct rig rig = {0};
    float q[MAX_DIM];

    MB_TEST_UNUSED(state);
    mb_rng_init(&rig.rng, mb_test_seed());
    for (int round = 0; round < ROUNDS; round++) {
        size_t n = 1 + mb_rng_below(&rig.rng, round % 2 ? 130 : MAX_BLOCKS);

        rig_begin(&rig, dims[round % 5], n);
        for (size_t i = 0; i < 20; i++) {
            size_t k = 1 + mb_rng_below(&rig.rng, LANDMARK_MAX_K);

            for (size_t j = 0; j < rig.dim; j++) {
                q[j] = (float)mb_rng_normal(&rig.rng);
            }
            check_query(&rig, i % N_TABLES, q, k < n ? k : n);
        }
        rig_end(&rig);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_search_when_any_table_then_as_faiss),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
