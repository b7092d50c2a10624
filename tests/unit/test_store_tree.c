/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_tree.c - fitting, routing and keeping cluster trees. */
#include "mb_test.h"

#include <math.h>

#include "dense_data.h"
#include "internal.h"
#include "tree.h"
#include "vindex.h"

#define N   6000
#define DIM 32

static struct mb_tree *
fit(const float *x, size_t n, struct mb_tree_options opt)
{
    struct mb_error err;
    struct mb_tree *tree = NULL;
    opt.flat_below = opt.flat_below ? opt.flat_below : 1;
    opt.n_total = opt.n_total ? opt.n_total : n;
    assert_status(MB_OK, mb_tree_fit(x, n, DIM, &opt, &tree, &err), &err);
    return tree;
}

static bool
same_tree(const struct mb_tree *a, const struct mb_tree *b)
{
    return a->n_nodes == b->n_nodes && a->n_leaves == b->n_leaves &&
           memcmp(a->nodes, b->nodes, a->n_nodes * sizeof *a->nodes) == 0 &&
           memcmp(a->centroids, b->centroids,
               a->n_nodes * DIM * sizeof(float)) == 0;
}

/* ---- fitting ---- */

static void
test_fit_when_below_threshold_then_one_leaf(void **state)
{
    MB_TEST_UNUSED(state);
    float *x = data_uniform(500, DIM, mb_test_seed());
    struct mb_tree *tree = fit(
        x, 500, (struct mb_tree_options){.leaf_target = 50, .flat_below = 501});
    assert_int_equal(1, mb_tree_n_leaves(tree));
    mb_tree_free(tree);
    mb_free(x);
}

static void
test_fit_when_sample_is_empty_then_one_leaf(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_tree *tree =
        fit(NULL, 0, (struct mb_tree_options){.n_total = 100000});
    float v[DIM] = {1};
    uint32_t leaf = 9;
    mb_tree_route(tree, v, 1, &leaf);
    assert_int_equal(0, leaf);
    mb_tree_free(tree);
}

static void
test_fit_when_large_then_leaves_are_near_the_target(void **state)
{
    MB_TEST_UNUSED(state);
    float *x = data_clustered(N, 0, DIM, mb_test_seed());
    struct mb_tree *tree =
        fit(x, N, (struct mb_tree_options){.leaf_target = 100});
    uint32_t *leaf = mb_alloc(N * sizeof *leaf);
    uint32_t n_leaves = mb_tree_n_leaves(tree);
    size_t *count = mb_calloc(n_leaves, sizeof *count);
    mb_tree_route(tree, x, N, leaf);
    for (size_t i = 0; i < N; i++)
        count[leaf[i]]++;
    // 60 leaves would be exact.
    assert_in_range(n_leaves, 45, 120);
    for (size_t i = 0; i < n_leaves; i++)
        assert_in_range(count[i], 1, 400);
    mb_free(count);
    mb_free(leaf);
    mb_tree_free(tree);
    mb_free(x);
}

static void
test_fit_when_depth_is_bounded_then_no_level_is_deeper(void **state)
{
    MB_TEST_UNUSED(state);
    float *x = data_clustered(N, 0, DIM, mb_test_seed());
    struct mb_tree *tree = fit(x, N,
        (struct mb_tree_options){
            .leaf_target = 10, .fanout = 4, .max_depth = 2});
    assert_int_equal(2, tree->depth);
    assert_in_range(tree->n_leaves, 5, 16);
    mb_tree_free(tree);
    mb_free(x);
}

static void
test_fit_when_repeated_or_pooled_then_the_same_tree(void **state)
{
    MB_TEST_UNUSED(state);
    float *x = data_clustered(N, 0, DIM, mb_test_seed());
    struct mb_pool *pool = NULL;
    assert_ok(mb_pool_new(&pool, "test", 2, 64));
    struct mb_tree_options opt = {.leaf_target = 100, .seed = 5};
    struct mb_tree *alone = fit(x, N, opt);
    opt.pool = pool;
    struct mb_tree *pooled = fit(x, N, opt);
    opt.seed = 6;
    struct mb_tree *other = fit(x, N, opt);
    assert_true(same_tree(alone, pooled));
    assert_false(same_tree(alone, other));
    mb_tree_free(other);
    mb_tree_free(pooled);
    mb_tree_free(alone);
    mb_pool_free(pool);
    mb_free(x);
}

static void
test_fit_when_all_alike_then_ends(void **state)
{
    MB_TEST_UNUSED(state);
    float *x = data_uniform(1, DIM, mb_test_seed());
    float *all = mb_alloc(1000 * DIM * sizeof *all);
    for (size_t i = 0; i < 1000; i++)
        memcpy(all + i * DIM, x, DIM * sizeof *x);
    struct mb_tree *tree =
        fit(all, 1000, (struct mb_tree_options){.leaf_target = 10});
    assert_true(mb_tree_n_leaves(tree) >= 1);
    mb_tree_free(tree);
    mb_free(all);
    mb_free(x);
}

static void
test_fit_when_options_are_bad_then_bad_arg(void **state)
{
    MB_TEST_UNUSED(state);
    static const struct mb_tree_options bad[] = {
        {.fanout = 1}, {.fanout = 5000}, {.max_depth = 9}};
    float v[DIM] = {1};
    struct mb_tree *tree = NULL;
    struct mb_error err;
    for (size_t i = 0; i < 3; i++)
        assert_status(
            MB_ERR_BAD_ARG, mb_tree_fit(v, 1, DIM, &bad[i], &tree, &err), &err);
    assert_status(MB_ERR_BAD_ARG,
        mb_tree_fit(v, 1, 0, &(struct mb_tree_options){0}, &tree, &err), &err);
    assert_null(tree);
}

static mb_status
fit_short(void *arg)
{
    struct mb_tree *tree = NULL;
    struct mb_tree *copy = NULL;
    struct mb_tree_options opt = {
        .leaf_target = 100, .flat_below = 1, .n_total = 600};
    mb_status st = mb_tree_fit(arg, 600, DIM, &opt, &tree, NULL);
    if (st == MB_OK)
        st = mb_tree_copy(tree, &copy);
    mb_tree_free(copy);
    mb_tree_free(tree);
    return st;
}

static void
test_fit_when_memory_is_short_then_no_memory(void **state)
{
    MB_TEST_UNUSED(state);
    float *x = data_clustered(600, 0, DIM, 1);
    mb_test_each_allocation(fit_short, x);
    mb_free(x);
}

/* ---- k-means ---- */

/* Clusters of Zipf sizes: left alone, the shares come out far apart. */
static void
test_kmeans_when_clusters_are_uneven_then_shares_are_balanced(void **state)
{
    MB_TEST_UNUSED(state);

    enum { K = 8 };
    struct mb_error err;
    float *x = data_clustered(4000, 0, DIM, mb_test_seed());
    float centroids[K * DIM];
    uint32_t *label = mb_alloc(4000 * sizeof *label);
    size_t count[K] = {0};
    assert_status(
        MB_OK, vindex_kmeans(x, 4000, DIM, K, 3, centroids, &err), &err);
    assert_status(
        MB_OK, vindex_assign(centroids, K, x, 4000, DIM, label, &err), &err);
    for (size_t i = 0; i < 4000; i++)
        count[label[i]]++;
    for (size_t c = 0; c < K; c++) {
        double norm = 0;
        for (size_t d = 0; d < DIM; d++)
            norm += pow((double)centroids[c * DIM + d], 2);
        assert_true(fabs(norm - 1) < 1e-4);
        // Twice the fair share; the rule aims at 1.5 times.
        assert_in_range(count[c], 4000 / K / 5, 2 * 4000 / K);
    }
    mb_free(label);
    mb_free(x);
}

static void
test_assign_when_few_or_many_then_the_same(void **state)
{
    MB_TEST_UNUSED(state);

    enum { K = 16, MANY = 5000 };

    float *x = data_uniform(MANY, DIM, mb_test_seed());
    float *c = data_uniform(K, DIM, 77);
    uint32_t *many = mb_alloc(MANY * sizeof *many);
    assert_ok(vindex_assign(c, K, x, MANY, DIM, many, NULL));
    for (size_t i = 0; i < MANY; i += 10) {
        uint32_t few[10]; // below FAISS's threshold for BLAS
        assert_ok(vindex_assign(c, K, x + i * DIM, 10, DIM, few, NULL));
        assert_memory_equal(few, many + i, sizeof few);
    }
    mb_free(many);
    mb_free(c);
    mb_free(x);
}

static void
test_kmeans_when_not_a_number_then_an_error_and_no_exception(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_error err = {0};
    float *x = data_uniform(100, DIM, 1);
    float centroids[2 * DIM];
    x[5] = NAN;
    assert_status(MB_ERR_INTERNAL,
        vindex_kmeans(x, 100, DIM, 2, 1, centroids, &err), &err);
    assert_error_has(err, "cluster vectors");
    mb_free(x);
}

/* ---- routing ---- */

static void
test_route_when_batched_then_as_one_by_one(void **state)
{
    MB_TEST_UNUSED(state);
    float *x = data_clustered(N, 0, DIM, mb_test_seed());
    struct mb_tree *tree =
        fit(x, N, (struct mb_tree_options){.leaf_target = 100});
    uint32_t *leaf = mb_alloc(N * sizeof *leaf);
    size_t differ = 0;
    mb_tree_route(tree, x, N, leaf);
    for (size_t i = 0; i < N; i++)
        differ += tree_route_one(tree, scan_best(), x + i * DIM) != leaf[i];
    // Sums in another order may tip a tie.
    assert_in_range(differ, 0, 3);
    mb_free(leaf);
    mb_tree_free(tree);
    mb_free(x);
}

static void
test_route_when_memory_is_short_then_still_routes(void **state)
{
    MB_TEST_UNUSED(state);
    float *x = data_clustered(N, 0, DIM, mb_test_seed());
    struct mb_tree *tree =
        fit(x, N, (struct mb_tree_options){.leaf_target = 100});
    uint32_t want[50];
    uint32_t got[50];
    mb_tree_route(tree, x, 50, want);
    for (uint64_t n = 1; n < 5; n++) {
        mb_alloc_fail_after(n);
        mb_tree_route(tree, x, 50, got);
        mb_alloc_fail_after(0);
        assert_memory_equal(want, got, sizeof want);
    }
    mb_tree_free(tree);
    mb_free(x);
}

/* ---- records and shape ---- */

static void
test_record_when_encoded_then_decodes_and_finds_damage(void **state)
{
    MB_TEST_UNUSED(state);
    float *x = data_clustered(N, 0, DIM, mb_test_seed());
    struct mb_tree *tree =
        fit(x, N, (struct mb_tree_options){.leaf_target = 500});
    size_t size = tree_record_size(DIM);
    uint8_t *record = mb_alloc(size);
    for (uint32_t i = 0; i < tree->n_nodes; i++) {
        struct tree_node node;
        float centroid[DIM];
        tree_record_encode(tree, i, record);
        assert_ok(tree_record_decode(
            mb_slice_of(record, size), DIM, &node, centroid));
        assert_memory_equal(&tree->nodes[i], &node, sizeof node);
        assert_memory_equal(
            tree->centroids + i * DIM, centroid, sizeof centroid);
    }
    for (size_t i = 0; i < size; i++) {
        struct tree_node node;
        record[i] ^= 0x10;
        assert_status(MB_ERR_CORRUPT,
            tree_record_decode(mb_slice_of(record, size), DIM, &node, NULL),
            NULL);
        record[i] ^= 0x10;
    }
    struct tree_node node;
    assert_status(MB_ERR_CORRUPT,
        tree_record_decode(mb_slice_of(record, size - 1), DIM, &node, NULL),
        NULL);
    mb_free(record);
    mb_tree_free(tree);
    mb_free(x);
}

/* Root with two leaves, and one thing wrong. */
static const struct {
    const char *name;
    struct tree_node nodes[3];
} bad_trees[] = {

#define ROOT                                                                   \
    {                                                                          \
        .parent = TREE_NO_NODE, .first_child = 1, .n_children = 2              \
    }
#define LEAF                                                                   \
    {                                                                          \
        .parent = 0, .level = 1                                                \
    }
    {"root has a parent",
        {{.parent = 0, .first_child = 1, .n_children = 2}, LEAF, LEAF}},
    {"child names another parent", {ROOT, LEAF, {.parent = 1, .level = 1}}},
    {"parent after its child", {ROOT, LEAF, {.parent = 2, .level = 1}}},
    {"wrong level", {ROOT, LEAF, {.parent = 0, .level = 2}}},
    {"too many children",
        {{.parent = TREE_NO_NODE, .first_child = 1, .n_children = 3}, LEAF,
            LEAF}},
    {"huge count",
        {{.parent = TREE_NO_NODE, .first_child = 1, .n_children = UINT32_MAX},
            LEAF, LEAF}},
    {"child out of place",
        {{.parent = TREE_NO_NODE, .first_child = 2, .n_children = 1}, LEAF,
            LEAF}},
    {"a node nobody claims",
        {{.parent = TREE_NO_NODE, .first_child = 1, .n_children = 1}, LEAF,
            LEAF}},
    {"its own child",
        {{.parent = TREE_NO_NODE, .first_child = 0, .n_children = 2}, LEAF,
            LEAF}},
};

static void
test_finish_when_nodes_make_no_tree_then_corrupt(void **state)
{
    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < sizeof bad_trees / sizeof bad_trees[0]; i++) {
        struct mb_tree *tree = NULL;
        struct mb_error err = {0};
        assert_ok(tree_new(DIM, 3, &tree));
        memcpy(tree->nodes, bad_trees[i].nodes, sizeof bad_trees[i].nodes);
        if (tree_finish(tree, &err) != MB_ERR_CORRUPT)
            fail_msg("%s was taken", bad_trees[i].name);
        mb_tree_free(tree);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fit_when_below_threshold_then_one_leaf),
        cmocka_unit_test(test_fit_when_sample_is_empty_then_one_leaf),
        cmocka_unit_test(test_fit_when_large_then_leaves_are_near_the_target),
        cmocka_unit_test(
            test_fit_when_depth_is_bounded_then_no_level_is_deeper),
        cmocka_unit_test(test_fit_when_repeated_or_pooled_then_the_same_tree),
        cmocka_unit_test(test_fit_when_all_alike_then_ends),
        cmocka_unit_test(test_fit_when_options_are_bad_then_bad_arg),
        cmocka_unit_test(test_fit_when_memory_is_short_then_no_memory),
        cmocka_unit_test(
            test_kmeans_when_clusters_are_uneven_then_shares_are_balanced),
        cmocka_unit_test(test_assign_when_few_or_many_then_the_same),
        cmocka_unit_test(
            test_kmeans_when_not_a_number_then_an_error_and_no_exception),
        cmocka_unit_test(test_route_when_batched_then_as_one_by_one),
        cmocka_unit_test(test_route_when_memory_is_short_then_still_routes),
        cmocka_unit_test(
            test_record_when_encoded_then_decodes_and_finds_damage),
        cmocka_unit_test(test_finish_when_nodes_make_no_tree_then_corrupt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
