/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_dense_build.c - the steps of a rebuild, the tree that
 * comes of it, and what a reader or a crash may meet in between. */
#include "mb_test.h"

#include <math.h>

#include "dense_data.h"
#include "dense_rig.h"

#define DIM 32
#define N   6000

struct fixture {
    struct mb_test_dir dir;
    struct dense_rig rig;
    struct mb_arena *arena;
    float *x; /* (N + 100, DIM): the last hundred are queries */
    struct mb_error err;
};

static int
setup(void **state)
{
    struct fixture *f = mb_calloc(1, sizeof *f);
    assert_non_null(f);
    f->dir = mb_test_dir_begin();
    assert_status(MB_OK, rig_open(&f->rig, f->dir.path, &f->err), &f->err);
    f->arena = mb_arena_new(64 << 20);
    f->x = data_clustered(N, 100, DIM, mb_test_seed());
    assert_non_null(f->arena);
    assert_non_null(f->x);
    *state = f;
    return 0;
}

static int
teardown(void **state)
{
    struct fixture *f = *state;
    rig_close(&f->rig);
    mb_test_dir_end(&f->dir);
    mb_arena_free(f->arena);
    mb_free(f->x);
    mb_free(f);
    return 0;
}

static const struct mb_tree_options small_leaves = {
    .leaf_target = 60, .flat_below = 1, .n_total = N, .seed = 2};

static void
build(struct fixture *f)
{
    assert_status(MB_OK,
        rig_build(&f->rig, f->x, N, DIM, &small_leaves, N, &f->err), &f->err);
}

static struct mb_tree *
fit(struct fixture *f)
{
    struct mb_tree *tree = NULL;
    assert_status(MB_OK,
        mb_tree_fit(f->x, N, DIM, &small_leaves, &tree, &f->err), &f->err);
    return tree;
}

static void
begin_write(struct fixture *f)
{
    assert_status(MB_OK, rig_write(&f->rig, &f->err), &f->err);
}

static void
commit(struct fixture *f)
{
    assert_status(MB_OK, rig_commit(&f->rig, &f->err), &f->err);
}

static void
begin_read(struct fixture *f)
{
    assert_status(MB_OK, rig_read(&f->rig, &f->err), &f->err);
}

static struct dense_result
search(struct fixture *f, struct dense_query q)
{
    struct dense_result result;
    assert_status(MB_OK,
        dense_search(
            &f->rig.snap, &f->rig.wc.c, &q, f->arena, &result, &f->err),
        &f->err);
    return result;
}

static uint64_t
count_broken(struct fixture *f)
{
    struct mb_verify_result result = {0};
    begin_read(f);
    struct verify v = {.snap = &f->rig.snap, .result = &result};
    assert_status(MB_OK, dense_verify(&v, &f->rig.wc.c, &f->err), &f->err);
    rig_end(&f->rig);
    return result.n_broken;
}

static uint64_t
rows_of(struct fixture *f, enum kv_table table)
{
    uint64_t rows;
    uint64_t bytes;
    begin_read(f);
    assert_ok(kv_table_stats(f->rig.snap.txn, table, &rows, &bytes));
    rig_end(&f->rig);
    return rows;
}

/* ---- what a build gives ---- */

static void
test_build_when_done_then_sound_and_each_finds_itself(void **state)
{
    struct fixture *f = *state;
    build(f);
    assert_int_equal(1, f->rig.wc.c.generation);
    assert_int_equal(0, f->rig.wc.c.building);
    assert_int_equal(N, f->rig.wc.c.n_vectors);
    assert_int_equal(N, f->rig.wc.c.fitted_segments);
    assert_int_equal(DIM, f->rig.wc.c.dim);
    assert_int_equal(0, count_broken(f));
    begin_read(f);
    size_t found = 0;
    for (size_t i = 0; i < N; i += 7) {
        struct dense_result r = search(
            f, (struct dense_query){
                   .vector = f->x + i * DIM, .dim = DIM, .k = 1, .nprobe = 4});
        found += r.n == 1 && r.hits[0].segno == i ? 1 : 0;
    }
    // Greedy descent may leave one in a leaf that is not the nearest.
    assert_true(found * 100 >= (N / 7) * 98);
}

static void
test_probe_when_all_leaves_then_as_exact(void **state)
{
    struct fixture *f = *state;
    build(f);
    begin_read(f);
    for (size_t i = 0; i < 50; i++) {
        struct dense_query q = {
            .vector = f->x + (N + i) * DIM, .dim = DIM, .k = 10};
        q.nprobe = 1000000;
        struct dense_result all = search(f, q);
        q.nprobe = 0;
        q.exact = true;
        struct dense_result exact = search(f, q);
        assert_int_equal(N, exact.n_scanned);
        assert_int_equal(10, exact.n);
        assert_memory_equal(all.hits, exact.hits, 10 * sizeof *exact.hits);
    }
}

/* The estimate from a few leaves and the tree, against a scan of all. */
static void
test_probe_when_few_leaves_then_mean_and_deviation_are_of_all(void **state)
{
    struct fixture *f = *state;
    double mean_gap = 0;
    double deviation_gap = 0;
    build(f);
    begin_read(f);
    for (size_t i = 0; i < 50; i++) {
        struct dense_query q = {
            .vector = f->x + (N + i) * DIM, .dim = DIM, .k = 10, .nprobe = 3};
        struct dense_result some = search(f, q);
        q.exact = true;
        struct dense_result all = search(f, q);
        assert_true(some.n_scanned < N / 4);
        mean_gap += fabs((double)some.mean - (double)all.mean);
        deviation_gap += fabs((double)some.deviation - (double)all.deviation);
    }
    // Cosines spread by about 0.2 here; the sum has 50 queries.
    assert_true(mean_gap / 50 < 0.01);
    assert_true(deviation_gap / 50 < 0.02);
}

static void
test_probe_when_filter_is_narrow_then_goes_on_until_k(void **state)
{
    struct fixture *f = *state;

    enum { WORDS = N / 64 + 1 };

    static const size_t steps[] = {3, 30, 300};
    build(f);
    begin_read(f);
    for (size_t s = 0; s < 3; s++) {
        uint64_t words[WORDS] = {0};
        struct bitset filter = {words, N, 0};
        for (size_t i = 0; i < N; i += steps[s]) {
            words[i / 64] |= (uint64_t)1 << (i % 64);
            filter.n_set++;
        }
        for (size_t i = 0; i < 20; i++) {
            struct dense_result r =
                search(f, (struct dense_query){.vector = f->x + (N + i) * DIM,
                              .dim = DIM,
                              .k = 15,
                              .nprobe = 1,
                              .filter = &filter});
            assert_int_equal(15, r.n);
            for (size_t j = 0; j < r.n; j++)
                assert_int_equal(0, r.hits[j].segno % steps[s]);
        }
    }
}

static void
test_measure_when_built_then_nprobe_reaches_the_target(void **state)
{
    struct fixture *f = *state;
    struct mb_probing low;
    struct mb_probing high;
    struct mb_probing bad = {.nprobe = 0, .recall = 1};
    struct mb_generation_info info;
    build(f);
    begin_read(f);
    assert_ok(mb_generation_measure(
        &f->rig.snap, &f->rig.wc.c, 1, 100, 0.5, 1, &low, &f->err));
    assert_true(low.recall >= 0.5 && low.recall < 1.0);
    assert_ok(mb_generation_measure(
        &f->rig.snap, &f->rig.wc.c, 1, 100, 1.0, 1, &high, &f->err));
    assert_true(high.recall >= 1.0);
    assert_true(low.nprobe < high.nprobe);
    assert_true(low.gap > 0 && low.gap < high.gap);
    rig_end(&f->rig);
    begin_write(f);
    assert_ok(dense_generation_tune(&f->rig.w, &f->rig.wc, 1, &high, &f->err));
    assert_status(MB_ERR_BAD_ARG,
        dense_generation_tune(&f->rig.w, &f->rig.wc, 1, &bad, &f->err),
        &f->err);
    bad = (struct mb_probing){.nprobe = 1, .gap = NAN, .recall = 1};
    assert_status(MB_ERR_BAD_ARG,
        dense_generation_tune(&f->rig.w, &f->rig.wc, 1, &bad, &f->err),
        &f->err);
    assert_status(MB_ERR_STALE,
        dense_generation_tune(&f->rig.w, &f->rig.wc, 9, &high, &f->err),
        &f->err);
    commit(f);
    begin_read(f);
    assert_ok(
        mb_generation_info_get(&f->rig.snap, &f->rig.wc.c, 1, &info, &f->err));
    assert_int_equal(high.nprobe, info.probing.nprobe);
    assert_true(info.probing.gap >= high.gap);
    assert_true(info.probing.gap < high.gap + 0.001f);
    assert_true(info.probing.recall >= 1.0);
}

/* Rows that a query reads at a given tuning. */
static uint64_t
rows_read(struct fixture *f, struct mb_probing probing)
{
    struct dense_result r;
    begin_write(f);
    assert_ok(
        dense_generation_tune(&f->rig.w, &f->rig.wc, 1, &probing, &f->err));
    commit(f);
    begin_read(f);
    assert_ok(dense_search(&f->rig.snap, &f->rig.wc.c,
        &(struct dense_query){.vector = f->x, .dim = DIM, .k = 1}, f->arena, &r,
        &f->err));
    rig_end(&f->rig);
    return r.n_scanned;
}

static void
test_search_when_gap_is_small_then_a_quarter_of_the_leaves_is_read(void **state)
{
    struct fixture *f = *state;
    struct mb_generation_info info;
    build(f);
    begin_read(f);
    assert_ok(
        mb_generation_info_get(&f->rig.snap, &f->rig.wc.c, 1, &info, &f->err));
    rig_end(&f->rig);
    uint32_t n = info.n_leaves / 2;
    assert_true(n >= 8);
    uint64_t all = rows_read(f, (struct mb_probing){n, 2.0f, 1});
    uint64_t few = rows_read(f, (struct mb_probing){n, 0.0001f, 1});
    uint64_t quarter = rows_read(f, (struct mb_probing){(n + 3) / 4, 0, 1});
    assert_int_equal(quarter, few);
    assert_true(few < all);
    assert_int_equal(all, rows_read(f, (struct mb_probing){n, 0, 1}));
}

static void
test_nodes_when_walked_then_counts_add_up(void **state)
{
    struct fixture *f = *state;
    struct mb_generation_info info;
    struct mb_node root;
    uint64_t in_leaves = 0;
    uint64_t in_children = 0;
    size_t n_leaves = 0;
    mb_segno *segnos = mb_alloc(N * sizeof *segnos);
    build(f);
    begin_read(f);
    assert_ok(
        mb_generation_info_get(&f->rig.snap, &f->rig.wc.c, 1, &info, &f->err));
    assert_ok(mb_node_get(&f->rig.snap, &f->rig.wc.c, 1, 0, &root, &f->err));
    assert_int_equal(N, root.n_vectors);
    assert_int_equal(UINT32_MAX, root.parent);
    for (uint32_t i = 1; i < info.n_nodes; i++) {
        struct mb_node node;
        size_t n;
        assert_ok(
            mb_node_get(&f->rig.snap, &f->rig.wc.c, 1, i, &node, &f->err));
        if (node.level == 1)
            in_children += node.n_vectors;
        if (node.n_children > 0)
            continue;
        n_leaves++;
        assert_ok(mb_leaf_segments(
            &f->rig.snap, &f->rig.wc.c, 1, node.leaf, N, segnos, &n, &f->err));
        assert_int_equal(node.n_vectors, n);
        in_leaves += n;
    }
    assert_int_equal(info.n_leaves, n_leaves);
    assert_int_equal(N, in_leaves);
    assert_int_equal(N, in_children);
    assert_status(MB_ERR_NOT_FOUND,
        mb_node_get(
            &f->rig.snap, &f->rig.wc.c, 1, info.n_nodes, &root, &f->err),
        &f->err);
    assert_status(MB_ERR_NOT_FOUND,
        mb_leaf_segments(&f->rig.snap, &f->rig.wc.c, 1, info.n_leaves, N,
            segnos, &n_leaves, &f->err),
        &f->err);
    mb_free(segnos);
}

static void
test_put_when_tree_is_served_then_found_and_removable(void **state)
{
    struct fixture *f = *state;
    build(f);
    begin_write(f);
    assert_ok(rig_segments(&f->rig, N, N + 100));
    for (size_t i = N; i < N + 100; i++)
        assert_ok(dense_add(
            &f->rig.w, &f->rig.wc, (mb_segno)i, f->x + i * DIM, DIM, &f->err));
    for (size_t i = N; i < N + 100; i += 2)
        assert_ok(dense_remove(&f->rig.w, &f->rig.wc, (mb_segno)i, &f->err));
    commit(f);
    assert_int_equal(N + 50, f->rig.wc.c.n_vectors);
    begin_read(f);
    for (size_t i = N; i < N + 100; i++) {
        struct dense_result r = search(f,
            (struct dense_query){
                .vector = f->x + i * DIM, .dim = DIM, .k = 1, .exact = true});
        assert_true((r.hits[0].segno == i) == (i % 2 == 1));
    }
}

/* ---- states ---- */

static void
test_begin_when_one_is_building_then_busy(void **state)
{
    struct fixture *f = *state;
    uint32_t g;
    begin_write(f);
    assert_ok(dense_generation_begin(&f->rig.w, &f->rig.wc, &g, &f->err));
    assert_int_equal(g, f->rig.wc.c.building);
    assert_status(MB_ERR_BUSY,
        dense_generation_begin(&f->rig.w, &f->rig.wc, &g, &f->err), &f->err);
}

static void
test_steps_when_out_of_order_then_stale(void **state)
{
    struct fixture *f = *state;
    struct dense_rig *rig = &f->rig;
    struct mb_tree *tree = fit(f);
    struct mb_slice model = mb_slice_of("m", 1);
    mb_segno segno = 0;
    uint32_t g;
    begin_write(f);
    assert_status(MB_ERR_STALE,
        dense_generation_model(&rig->w, &rig->wc, 1, DIM, model, tree, &f->err),
        &f->err);
    assert_ok(dense_generation_begin(&rig->w, &rig->wc, &g, &f->err));
    assert_status(MB_ERR_STALE,
        dense_generation_add(
            &rig->w, &rig->wc, g, DIM, &segno, f->x, NULL, 1, &f->err),
        &f->err);
    assert_error_has(f->err, "has not got a tree");
    assert_status(MB_ERR_STALE,
        dense_generation_switch(&rig->w, &rig->wc, g, 0, 0, &f->err), &f->err);
    assert_status(MB_ERR_BAD_ARG,
        dense_generation_model(
            &rig->w, &rig->wc, g, DIM + 1, model, tree, &f->err),
        &f->err);
    assert_ok(dense_generation_model(
        &rig->w, &rig->wc, g, DIM, model, tree, &f->err));
    assert_status(MB_ERR_STALE,
        dense_generation_model(&rig->w, &rig->wc, g, DIM, model, tree, &f->err),
        &f->err);
    assert_status(MB_ERR_STALE,
        dense_generation_add(
            &rig->w, &rig->wc, g + 1, DIM, &segno, f->x, NULL, 1, &f->err),
        &f->err);
    assert_status(MB_ERR_MISMATCH,
        dense_generation_add(
            &rig->w, &rig->wc, g, DIM - 1, &segno, f->x, NULL, 1, &f->err),
        &f->err);
    uint32_t leaf = mb_tree_n_leaves(tree);
    assert_status(MB_ERR_BAD_ARG,
        dense_generation_add(
            &rig->w, &rig->wc, g, DIM, &segno, f->x, &leaf, 1, &f->err),
        &f->err);
    mb_tree_free(tree);
}

/* Begin and model, committed. */
static uint32_t
begin_generation(struct fixture *f, struct mb_slice model)
{
    struct mb_tree *tree = fit(f);
    uint32_t g = 0;
    begin_write(f);
    assert_ok(rig_segments(&f->rig, 0, 1000));
    assert_ok(dense_generation_begin(&f->rig.w, &f->rig.wc, &g, &f->err));
    assert_ok(dense_generation_model(
        &f->rig.w, &f->rig.wc, g, DIM, model, tree, &f->err));
    commit(f);
    mb_tree_free(tree);
    return g;
}

static void
test_add_when_gone_repeated_or_nothing_then_left_out(void **state)
{
    struct fixture *f = *state;
    struct dense_rig *rig = &f->rig;
    uint32_t g = begin_generation(f, mb_slice_of("m", 1));
    float rows[6 * DIM];
    static const mb_segno segnos[6] = {5, 3, 5, 5000, 7, 8};
    memcpy(rows, f->x, sizeof rows);
    memset(rows + 4 * DIM, 0, DIM * sizeof *rows); // segment 7: none
    begin_write(f);
    assert_ok(dense_generation_add(
        &rig->w, &rig->wc, g, DIM, segnos, rows, NULL, 6, &f->err));
    assert_ok(dense_generation_add(
        &rig->w, &rig->wc, g, DIM, segnos, rows, NULL, 2, &f->err));
    assert_ok(dense_generation_switch(&rig->w, &rig->wc, g, 1000, 3, &f->err));
    commit(f);
    assert_int_equal(3, rig->wc.c.n_vectors); // 3, 5, 8
    assert_int_equal(0, count_broken(f));
}

/* Between switch and purge, with vectors that came while the first generation
 * was served. */
static void
test_switch_when_old_one_not_purged_then_verify_is_clean(void **state)
{
    struct fixture *f = *state;
    struct dense_rig *rig = &f->rig;
    static const mb_segno segnos[4] = {3, 5, 8, 9};
    for (size_t n = 3; n <= 4; n++) {
        uint32_t g = begin_generation(f, mb_slice_of("m", 1));
        begin_write(f);
        assert_ok(dense_generation_add(
            &rig->w, &rig->wc, g, DIM, segnos, f->x, NULL, n, &f->err));
        assert_ok(
            dense_generation_switch(&rig->w, &rig->wc, g, 1000, n, &f->err));
        if (n == 3)
            assert_ok(dense_add(
                &rig->w, &rig->wc, segnos[3], f->x + 3 * DIM, DIM, &f->err));
        commit(f);
        assert_int_equal(4, rig->wc.c.n_vectors);
        assert_int_equal(0, count_broken(f));
    }
}

static void
test_switch_when_newer_segments_exist_then_stale(void **state)
{
    struct fixture *f = *state;
    uint32_t g = begin_generation(f, mb_slice_of("m", 1));
    begin_write(f);
    assert_status(MB_ERR_STALE,
        dense_generation_switch(&f->rig.w, &f->rig.wc, g, 999, 9, &f->err),
        &f->err);
    assert_false(f->rig.w.changed);
    assert_int_equal(g, f->rig.wc.c.building);
    assert_ok(
        dense_generation_switch(&f->rig.w, &f->rig.wc, g, 1000, 9, &f->err));
}

static void
test_remove_when_two_generations_then_out_of_both(void **state)
{
    struct fixture *f = *state;
    struct dense_rig *rig = &f->rig;
    mb_segno segno = 11;
    build(f);
    uint32_t g = begin_generation(f, mb_slice_of("m", 1));
    begin_write(f);
    assert_ok(dense_generation_add(
        &rig->w, &rig->wc, g, DIM, &segno, f->x + 11 * DIM, NULL, 1, &f->err));
    assert_ok(dense_remove(&rig->w, &rig->wc, segno, &f->err));
    struct kv_key key;
    kv_key_init(&key);
    kv_key_u32(&key, 1);
    kv_key_u32(&key, segno);
    assert_ok(kv_del(rig->w.txn, KV_SEGMENTS, kv_key_slice(&key)));
    commit(f);
    assert_int_equal(N - 1, rows_of(f, KV_EMBEDDINGS));
    assert_int_equal(0, count_broken(f));
}

/* ---- embedding bytes ---- */

static void
test_model_when_of_many_pieces_then_comes_back_whole(void **state)
{
    struct fixture *f = *state;

    enum { SIZE = 200001 };
    struct mb_slice back;
    uint8_t *bytes = mb_alloc(SIZE);
    for (size_t i = 0; i < SIZE; i++)
        bytes[i] = (uint8_t)(i * 7 + (i >> 8));
    uint32_t g = begin_generation(f, mb_slice_of(bytes, SIZE));
    begin_read(f);
    assert_ok(mb_generation_embedding(
        &f->rig.snap, &f->rig.wc.c, g, f->arena, &back, &f->err));
    assert_int_equal(SIZE, back.size);
    assert_memory_equal(bytes, back.data, SIZE);
    assert_status(MB_ERR_NOT_FOUND,
        mb_generation_embedding(
            &f->rig.snap, &f->rig.wc.c, 77, f->arena, &back, &f->err),
        &f->err);
    rig_end(&f->rig);
    assert_int_equal(0, count_broken(f));

    // A piece that is lost is missed by a reader and by verify.
    struct kv_key key;
    begin_write(f);
    model_key(&key, 1, g, 2);
    assert_ok(kv_del(f->rig.w.txn, KV_MODELS, kv_key_slice(&key)));
    commit(f);
    begin_read(f);
    assert_status(MB_ERR_CORRUPT,
        mb_generation_embedding(
            &f->rig.snap, &f->rig.wc.c, g, f->arena, &back, &f->err),
        &f->err);
    rig_end(&f->rig);
    assert_int_equal(1, count_broken(f));
    mb_free(bytes);
}

/* ---- purging ---- */

static void
test_purge_when_served_then_refused(void **state)
{
    struct fixture *f = *state;
    bool done = true;
    build(f);
    begin_write(f);
    assert_status(MB_ERR_BAD_ARG,
        dense_generation_purge(&f->rig.w, &f->rig.wc, 1, 100, &done, &f->err),
        &f->err);
}

static void
test_purge_when_in_slices_then_all_goes_with_leftovers(void **state)
{
    struct fixture *f = *state;
    struct dense_rig *rig = &f->rig;
    bool done = false;
    size_t slices = 0;
    build(f);
    build(f); // leaves generation 1 behind, as a crash would
    build(f);
    assert_int_equal(3, rig->wc.c.generation);
    assert_int_equal(3, rows_of(f, KV_GENERATIONS));
    while (!done) {
        begin_write(f);
        assert_status(MB_OK,
            dense_generation_purge(&rig->w, &rig->wc, 2, 1000, &done, &f->err),
            &f->err);
        commit(f);
        if (slices++ % 5 == 0)
            assert_int_equal(0, count_broken(f));
        assert_true(slices < 100);
    }
    assert_true(slices >= 2 * N / 1000);
    assert_int_equal(1, rows_of(f, KV_GENERATIONS));
    assert_int_equal(N, rows_of(f, KV_EMBEDDINGS));
    assert_int_equal(0, count_broken(f));
}

static void
test_purge_when_building_then_the_number_is_free_again(void **state)
{
    struct fixture *f = *state;
    bool done = false;
    uint32_t g = begin_generation(f, mb_slice_of("m", 1));
    uint32_t next;
    begin_write(f);
    assert_ok(dense_generation_purge(
        &f->rig.w, &f->rig.wc, g, 100000, &done, &f->err));
    assert_true(done);
    assert_int_equal(0, f->rig.wc.c.building);
    assert_ok(dense_generation_begin(&f->rig.w, &f->rig.wc, &next, &f->err));
    assert_true(next > g);
}

static void
test_snapshot_when_generation_is_purged_then_still_searches(void **state)
{
    struct fixture *f = *state;
    struct dense_rig *rig = &f->rig;
    bool done = false;
    build(f);
    struct mb_collection old = rig->wc.c;
    begin_read(f);
    struct mb_snapshot snap = rig->snap;
    rig->snap.txn = NULL;
    struct dense_query q = {.vector = f->x, .dim = DIM, .k = 10, .nprobe = 3};
    struct dense_result before;
    assert_ok(dense_search(&snap, &old, &q, f->arena, &before, &f->err));

    build(f);
    begin_write(f);
    assert_ok(
        dense_generation_purge(&rig->w, &rig->wc, 1, SIZE_MAX, &done, &f->err));
    commit(f);
    assert_true(done);
    struct dense_result after;
    assert_ok(dense_search(&snap, &old, &q, f->arena, &after, &f->err));
    assert_int_equal(before.n, after.n);
    assert_memory_equal(
        before.hits, after.hits, before.n * sizeof *before.hits);
    kv_abort(snap.txn);
}

/* A transaction that failed leaves its tree in the cache; the numbers it had
 * are given out again, for another tree. */
static void
test_cache_when_transaction_was_undone_then_takes_the_new_tree(void **state)
{
    struct fixture *f = *state;
    struct dense_rig *rig = &f->rig;
    struct mb_tree *tree = fit(f);
    struct wcoll before = rig->wc;
    mb_segno segno = 0;
    uint32_t g;
    begin_write(f);
    assert_ok(rig_segments(rig, 0, 1));
    assert_ok(dense_generation_begin(&rig->w, &rig->wc, &g, &f->err));
    assert_ok(dense_generation_model(
        &rig->w, &rig->wc, g, DIM, mb_slice_of("m", 1), tree, &f->err));
    assert_ok(dense_generation_add(
        &rig->w, &rig->wc, g, DIM, &segno, f->x, NULL, 1, &f->err));
    rig_abort(rig);
    mb_tree_free(tree);
    rig->wc = before;

    struct mb_tree_options other = small_leaves;
    other.leaf_target = 700;
    assert_status(
        MB_OK, rig_build(rig, f->x, N, DIM, &other, N, &f->err), &f->err);
    assert_int_equal(g, rig->wc.c.generation);
    assert_int_equal(0, count_broken(f));
    begin_read(f);
    struct dense_result r =
        search(f, (struct dense_query){
                      .vector = f->x, .dim = DIM, .k = 1, .nprobe = 1000});
    assert_int_equal(0, r.hits[0].segno);
}

static mb_status
load_short(void *arg)
{
    struct fixture *f = arg;
    struct generation g;
    struct dense_tree *tree;
    struct dense_cache *cache = dense_cache_new();
    if (cache == NULL)
        return MB_ERR_NOMEM;
    mb_status st = generation_read(f->rig.snap.txn, 1, 1, &g, NULL);
    if (st == MB_OK)
        st = dense_cache_get(cache, f->rig.snap.txn, 1, 1, &g, &tree, NULL);
    if (st == MB_OK)
        dense_cache_put(cache, tree);
    dense_cache_free(cache);
    return st;
}

static void
test_cache_when_memory_is_short_then_no_memory(void **state)
{
    struct fixture *f = *state;
    build(f);
    begin_read(f);
    mb_test_each_allocation(load_short, f);
}

static mb_status
add_short(void *arg)
{
    struct fixture *f = arg;
    struct dense_rig *rig = &f->rig;
    struct wcoll before = rig->wc;
    static const mb_segno segnos[3] = {1, 2, 3};
    if (rig_write(rig, NULL) != MB_OK)
        return MB_ERR_NOMEM;
    mb_status st = dense_generation_add(&rig->w, &rig->wc, rig->wc.c.building,
        DIM, segnos, f->x, NULL, 3, NULL);
    if (st == MB_OK)
        st = dense_remove(&rig->w, &rig->wc, 2, NULL);
    rig_abort(rig);
    rig->wc = before;
    return st;
}

static void
test_add_when_memory_is_short_then_no_memory(void **state)
{
    struct fixture *f = *state;
    (void)begin_generation(f, mb_slice_of("m", 1));
    mb_test_each_allocation(add_short, f);
    assert_int_equal(0, count_broken(f));
}

#define DENSE_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        DENSE_TEST(test_build_when_done_then_sound_and_each_finds_itself),
        DENSE_TEST(test_probe_when_all_leaves_then_as_exact),
        DENSE_TEST(
            test_probe_when_few_leaves_then_mean_and_deviation_are_of_all),
        DENSE_TEST(test_probe_when_filter_is_narrow_then_goes_on_until_k),
        DENSE_TEST(test_measure_when_built_then_nprobe_reaches_the_target),
        DENSE_TEST(
            test_search_when_gap_is_small_then_a_quarter_of_the_leaves_is_read),
        DENSE_TEST(test_nodes_when_walked_then_counts_add_up),
        DENSE_TEST(test_put_when_tree_is_served_then_found_and_removable),
        DENSE_TEST(test_begin_when_one_is_building_then_busy),
        DENSE_TEST(test_steps_when_out_of_order_then_stale),
        DENSE_TEST(test_add_when_gone_repeated_or_nothing_then_left_out),
        DENSE_TEST(test_switch_when_old_one_not_purged_then_verify_is_clean),
        DENSE_TEST(test_switch_when_newer_segments_exist_then_stale),
        DENSE_TEST(test_remove_when_two_generations_then_out_of_both),
        DENSE_TEST(test_model_when_of_many_pieces_then_comes_back_whole),
        DENSE_TEST(test_purge_when_served_then_refused),
        DENSE_TEST(test_purge_when_in_slices_then_all_goes_with_leftovers),
        DENSE_TEST(test_purge_when_building_then_the_number_is_free_again),
        DENSE_TEST(test_snapshot_when_generation_is_purged_then_still_searches),
        DENSE_TEST(
            test_cache_when_transaction_was_undone_then_takes_the_new_tree),
        DENSE_TEST(test_cache_when_memory_is_short_then_no_memory),
        DENSE_TEST(test_add_when_memory_is_short_then_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
