/* SPDX-License-Identifier: Apache-2.0
 * tests/quality/test_dense_recall.c - recall@10 of dense search against brute
 * force in plain f32, whole and under filters, on clustered and uniform data.
 * ctest: timeout=300
 *
 * nprobe comes from mb_generation_measure with its default target of 0.97 on
 * stored vectors; queries here are fresh ones, so the floor is 0.95. */
#include "mb_test.h"

#include "dense_data.h"
#include "dense_rig.h"

#define N         24000
#define N_QUERIES 150
#define DIM       128
#define K         10

#define FLOOR_TREE   0.95
#define FLOOR_EXACT  0.995 /* fp16 may swap neighbours that are 1e-4 apart */
#define FLOOR_FILTER 0.95

/* One data set with its index. */
struct data {
    struct mb_test_dir dir;
    struct dense_rig rig;
    struct mb_arena *arena;
    struct mb_error err;
    float *x;   /* (N, DIM) */
    float *all; /* (N) scores of one query */
    uint64_t words[N / 64 + 1];
    struct bitset filter;
};

static struct data *
open_data(bool clustered, uint64_t flat_below)
{
    struct data *d = mb_calloc(1, sizeof *d);
    struct mb_tree_options opt = {
        .n_total = N, .flat_below = flat_below, .seed = 1};
    struct mb_probing probing;
    assert_non_null(d);
    d->dir = mb_test_dir_begin();
    d->arena = mb_arena_new(64 << 20);
    d->all = mb_alloc(N * sizeof *d->all);
    d->x = clustered ? data_clustered(N, N_QUERIES, DIM, mb_test_seed())
                     : data_uniform(N + N_QUERIES, DIM, mb_test_seed());
    assert_non_null(d->x);
    assert_status(MB_OK, rig_open(&d->rig, d->dir.path, &d->err), &d->err);
    assert_status(
        MB_OK, rig_build(&d->rig, d->x, N, DIM, &opt, N / 2, &d->err), &d->err);
    assert_status(MB_OK, rig_read(&d->rig, &d->err), &d->err);
    assert_status(MB_OK,
        mb_generation_measure(
            &d->rig.snap, &d->rig.wc.c, 1, 100, 0, 1, &probing, &d->err),
        &d->err);
    rig_end(&d->rig);
    assert_status(MB_OK, rig_write(&d->rig, &d->err), &d->err);
    assert_status(MB_OK,
        dense_generation_tune(&d->rig.w, &d->rig.wc, 1, &probing, &d->err),
        &d->err);
    assert_status(MB_OK, rig_commit(&d->rig, &d->err), &d->err);
    assert_status(MB_OK, rig_read(&d->rig, &d->err), &d->err);
    print_message("nprobe %u, gap %.3f, recall %.3f when measured\n",
        probing.nprobe, (double)probing.gap, probing.recall);
    return d;
}

static void
close_data(struct data *d)
{
    rig_close(&d->rig);
    mb_test_dir_end(&d->dir);
    mb_arena_free(d->arena);
    mb_free(d->x);
    mb_free(d->all);
    mb_free(d);
}

/* A random part of all segments; 1 or more: no filter. */
static void
set_filter(struct data *d, double part)
{
    struct mb_rng rng;
    mb_rng_init(&rng, 9);
    memset(d->words, 0, sizeof d->words);
    d->filter = (struct bitset){d->words, N, 0};
    for (size_t i = 0; i < N; i++) {
        if (mb_rng_double(&rng) < part) {
            d->words[i / 64] |= (uint64_t)1 << (i % 64);
            d->filter.n_set++;
        }
    }
}

/* How many of the K best (or of all, if the filter leaves fewer) were found:
 * a hit counts if its true score is not below the K-th best. */
static double
recall_of_one(struct data *d, const float *q, const struct dense_result *r)
{
    float best[K];
    size_t n_best = 0;
    size_t found = 0;
    scan_best()->dot_f32(q, d->x, N, DIM, d->all);
    for (uint32_t i = 0; i < N; i++) {
        if (!bitset_has(&d->filter, i))
            continue;
        size_t at = n_best;
        while (at > 0 && best[at - 1] < d->all[i])
            at--;
        if (at == K)
            continue;
        n_best += n_best < K ? 1 : 0;
        for (size_t j = n_best - 1; j > at; j--)
            best[j] = best[j - 1];
        best[at] = d->all[i];
    }
    if (n_best == 0)
        return 1;
    for (size_t j = 0; j < r->n; j++) {
        assert_true(bitset_has(&d->filter, r->hits[j].segno));
        found += d->all[r->hits[j].segno] >= best[n_best - 1] ? 1 : 0;
    }
    return (double)found / (double)n_best;
}

static double
recall(struct data *d, double part, bool exact)
{
    double sum = 0;
    set_filter(d, part);
    for (size_t i = 0; i < N_QUERIES; i++) {
        const float *q = d->x + (N + i) * DIM;
        struct dense_result r;
        mb_arena_reset(d->arena);
        assert_status(MB_OK,
            dense_search(&d->rig.snap, &d->rig.wc.c,
                &(struct dense_query){.vector = q,
                    .dim = DIM,
                    .k = K,
                    .exact = exact,
                    .filter = part < 1 ? &d->filter : NULL},
                d->arena, &r, &d->err),
            &d->err);
        sum += recall_of_one(d, q, &r);
    }
    print_message("part %g, %s: recall@%d %.4f\n", part,
        exact ? "exact" : "default nprobe", K, sum / N_QUERIES);
    return sum / N_QUERIES;
}

static void
check_filters(struct data *d)
{
    static const double parts[] = {0.5, 0.1, 0.01, 0.001};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        assert_true(recall(d, parts[i], false) >= FLOOR_FILTER);
        assert_true(recall(d, parts[i], true) >= FLOOR_EXACT);
    }
}

static void
test_recall_when_flat_then_exact(void **state)
{
    MB_TEST_UNUSED(state);
    struct data *d = open_data(true, N + 1);
    assert_true(recall(d, 1, false) >= FLOOR_EXACT);
    check_filters(d);
    close_data(d);
}

static void
test_recall_when_clustered_then_above_floor(void **state)
{
    MB_TEST_UNUSED(state);
    struct data *d = open_data(true, 1);
    assert_true(recall(d, 1, false) >= FLOOR_TREE);
    assert_true(recall(d, 1, true) >= FLOOR_EXACT);
    check_filters(d);
    close_data(d);
}

static void
test_recall_when_uniform_then_above_floor(void **state)
{
    MB_TEST_UNUSED(state);
    struct data *d = open_data(false, 1);
    assert_true(recall(d, 1, false) >= FLOOR_TREE);
    check_filters(d);
    close_data(d);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recall_when_flat_then_exact),
        cmocka_unit_test(test_recall_when_clustered_then_above_floor),
        cmocka_unit_test(test_recall_when_uniform_then_above_floor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
