/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_dense.c - vectors in, out and found, in the served
 * generation. Building others: test_store_dense_build.c. */
#include "mb_test.h"

#include <math.h>

#include "dense_data.h"
#include "dense_rig.h"

#define DIM 24

/* What each test has: a rig in a folder of its own, and vectors. */
struct fixture {
    struct mb_test_dir dir;
    struct dense_rig rig;
    struct mb_arena *arena;
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
    assert_non_null(f->arena);
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
    mb_free(f);
    return 0;
}

/* A flat generation with segments [0, n). */
static void
fill_flat(struct fixture *f, const float *x, size_t n, size_t dim)
{
    struct dense_rig *rig = &f->rig;
    assert_status(MB_OK, rig_write(rig, &f->err), &f->err);
    assert_status(
        MB_OK, dense_create_flat(&rig->w, &rig->wc, dim, &f->err), &f->err);
    assert_ok(rig_segments(rig, 0, (mb_segno)n));
    for (size_t i = 0; i < n; i++)
        assert_status(MB_OK,
            dense_add(
                &rig->w, &rig->wc, (mb_segno)i, x + i * dim, dim, &f->err),
            &f->err);
    assert_status(MB_OK, rig_commit(rig, &f->err), &f->err);
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

static void
begin_read(struct fixture *f)
{
    assert_status(MB_OK, rig_read(&f->rig, &f->err), &f->err);
}

/* Broken records by dense_verify. */
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

/* ---- adding and finding ---- */

static void
test_search_when_flat_then_order_is_that_of_brute_force(void **state)
{
    struct fixture *f = *state;

    enum { N = 700, K = 10 };

    float *x = data_uniform(N + 20, DIM, mb_test_seed());
    fill_flat(f, x, N, DIM);
    begin_read(f);
    for (size_t i = 0; i < 20; i++) {
        const float *q = x + (N + i) * DIM;
        struct dense_result r =
            search(f, (struct dense_query){.vector = q, .dim = DIM, .k = K});
        assert_int_equal(K, r.n);
        assert_int_equal(N, r.n_scanned);
        for (size_t j = 0; j < K; j++) {
            float want;
            size_t better = 0;
            scan_at(SCAN_PLAIN)
                ->dot_f32(q, x + r.hits[j].segno * DIM, 1, DIM, &want);
            // fp16 keeps eleven bits of each of 24 values.
            assert_true(fabsf(want - r.hits[j].score) < 1e-3f);
            for (size_t n = 0; n < N; n++) {
                float s;
                scan_at(SCAN_PLAIN)->dot_f32(q, x + n * DIM, 1, DIM, &s);
                better += s > want + 2e-3f ? 1 : 0;
            }
            assert_true(better <= j);
        }
    }
    mb_free(x);
}

static void
test_search_when_scores_tie_then_lower_segment_first(void **state)
{
    struct fixture *f = *state;
    float x[40 * DIM] = {0};
    for (size_t i = 0; i < 40; i++)
        x[i * DIM] = 1;
    fill_flat(f, x, 40, DIM);
    begin_read(f);
    struct dense_result r =
        search(f, (struct dense_query){.vector = x, .dim = DIM, .k = 5});
    assert_int_equal(5, r.n);
    for (uint32_t i = 0; i < 5; i++)
        assert_int_equal(i, r.hits[i].segno);
}

static void
test_search_when_k_is_more_than_there_are_then_all(void **state)
{
    struct fixture *f = *state;
    float *x = data_uniform(7, DIM, mb_test_seed());
    fill_flat(f, x, 7, DIM);
    begin_read(f);
    struct dense_result r = search(
        f, (struct dense_query){.vector = x, .dim = DIM, .k = SIZE_MAX / 64});
    assert_int_equal(7, r.n);
    r = search(f, (struct dense_query){.vector = x, .dim = DIM, .k = 0});
    assert_int_equal(0, r.n);
    mb_free(x);
}

static void
test_search_when_no_generation_then_nothing(void **state)
{
    struct fixture *f = *state;
    float q[DIM] = {1};
    float score;
    mb_segno segno = 3;
    begin_read(f);
    struct dense_result r =
        search(f, (struct dense_query){.vector = q, .dim = DIM, .k = 5});
    assert_int_equal(0, r.n);
    assert_ok(dense_score(
        &f->rig.snap, &f->rig.wc.c, q, DIM, &segno, 1, &score, &f->err));
    assert_true(isnan(score));
    assert_status(MB_ERR_NOT_FOUND,
        mb_vector_get(&f->rig.snap, &f->rig.wc.c, 0, q, &f->err), &f->err);
}

static void
test_search_when_dim_differs_then_mismatch(void **state)
{
    struct fixture *f = *state;
    float *x = data_uniform(3, DIM, mb_test_seed());
    struct dense_result r;
    fill_flat(f, x, 3, DIM);
    begin_read(f);
    assert_status(MB_ERR_MISMATCH,
        dense_search(&f->rig.snap, &f->rig.wc.c,
            &(struct dense_query){.vector = x, .dim = DIM - 1, .k = 1},
            f->arena, &r, &f->err),
        &f->err);
    assert_error_has(f->err, "24");
    mb_free(x);
}

static void
test_add_when_wrong_then_says_which(void **state)
{
    struct fixture *f = *state;
    struct dense_rig *rig = &f->rig;
    float v[DIM] = {1};
    assert_ok(rig_write(rig, &f->err));
    assert_status(MB_ERR_STALE,
        dense_add(&rig->w, &rig->wc, 0, v, DIM, &f->err), &f->err);
    assert_status(MB_ERR_BAD_ARG,
        dense_create_flat(&rig->w, &rig->wc, MB_MAX_DIM + 1, &f->err), &f->err);
    assert_ok(dense_create_flat(&rig->w, &rig->wc, DIM, &f->err));
    rig->w.changed = false;
    assert_status(MB_ERR_MISMATCH,
        dense_add(&rig->w, &rig->wc, 0, v, DIM + 1, &f->err), &f->err);
    assert_false(rig->w.changed);
}

static void
test_add_when_vector_is_nothing_then_no_row(void **state)
{
    struct fixture *f = *state;
    float x[3 * DIM] = {0};
    x[DIM] = 0.25f; // kept, and made unit length
    x[2 * DIM] = NAN;
    fill_flat(f, x, 3, DIM);
    assert_int_equal(1, f->rig.wc.c.n_vectors);
    assert_int_equal(1, rows_of(f, KV_EMBEDDINGS));
    float out[DIM];
    begin_read(f);
    assert_ok(mb_vector_get(&f->rig.snap, &f->rig.wc.c, 1, out, &f->err));
    assert_true(out[0] == 1.0f);
    assert_status(MB_ERR_NOT_FOUND,
        mb_vector_get(&f->rig.snap, &f->rig.wc.c, 0, out, &f->err), &f->err);
}

static void
test_score_when_some_have_no_vector_then_nan_there(void **state)
{
    struct fixture *f = *state;
    float *x = data_uniform(5, DIM, mb_test_seed());
    mb_segno segnos[] = {4, 99, 2};
    float scores[3];
    fill_flat(f, x, 5, DIM);
    begin_read(f);
    assert_ok(dense_score(&f->rig.snap, &f->rig.wc.c, x + 4 * DIM, DIM, segnos,
        3, scores, &f->err));
    assert_true(fabsf(scores[0] - 1.0f) < 1e-3f);
    assert_true(isnan(scores[1]));
    assert_true(fabsf(scores[2]) < 1.0f);
    mb_free(x);
}

/* ---- lists ---- */

/* One by one, in all sizes of rows: every vector is found by itself. */
static void
test_lists_when_filled_one_by_one_then_few_chunks_and_all_there(void **state)
{
    struct fixture *f = *state;

    enum { N = 600, WIDE = 96 };

    float *x = data_uniform(N, WIDE, mb_test_seed());
    fill_flat(f, x, N, WIDE);
    // Rows are 104 bytes: 314 a chunk, 39 in the tail.
    assert_in_range(rows_of(f, KV_LISTS), 2, 4);
    assert_int_equal(0, count_broken(f));
    begin_read(f);
    for (size_t i = 0; i < N; i++) {
        struct dense_result r = search(f,
            (struct dense_query){.vector = x + i * WIDE, .dim = WIDE, .k = 1});
        assert_int_equal(i, r.hits[0].segno);
    }
    mb_free(x);
}

static void
test_lists_when_dim_is_largest_then_works(void **state)
{
    struct fixture *f = *state;
    float *x = data_uniform(20, MB_MAX_DIM, mb_test_seed());
    fill_flat(f, x, 20, MB_MAX_DIM);
    assert_int_equal(3, rows_of(f, KV_LISTS)); // seven rows a chunk, no tail
    assert_int_equal(0, count_broken(f));
    begin_read(f);
    struct dense_result r = search(
        f, (struct dense_query){
               .vector = x + 13 * MB_MAX_DIM, .dim = MB_MAX_DIM, .k = 3});
    assert_int_equal(13, r.hits[0].segno);
    mb_free(x);
}

static void
test_lists_when_segments_come_out_of_order_then_still_removable(void **state)
{
    struct fixture *f = *state;
    struct dense_rig *rig = &f->rig;

    enum { N = 1200 };

    float *x = data_uniform(N, DIM, mb_test_seed());
    fill_flat(f, x, 0, DIM);
    assert_ok(rig_write(rig, &f->err));
    assert_ok(rig_segments(rig, 0, N));
    for (size_t i = 0; i < N; i++) {
        size_t s = (i * 719) % N; // 719 and 1200 have no common factor
        assert_ok(dense_add(
            &rig->w, &rig->wc, (mb_segno)s, x + s * DIM, DIM, &f->err));
    }
    for (size_t i = 0; i < N; i += 2)
        assert_status(MB_OK,
            dense_remove(&rig->w, &rig->wc, (mb_segno)i, &f->err), &f->err);
    assert_ok(rig_commit(rig, &f->err));
    assert_int_equal(N / 2, rig->wc.c.n_vectors);
    begin_read(f);
    for (size_t i = 0; i < N; i++) {
        struct dense_result r = search(
            f, (struct dense_query){.vector = x + i * DIM, .dim = DIM, .k = 1});
        assert_true((r.hits[0].segno == i) == (i % 2 == 1));
    }
    mb_free(x);
}

/* ---- removing ---- */

static void
test_remove_when_all_go_then_nothing_is_left(void **state)
{
    struct fixture *f = *state;
    struct dense_rig *rig = &f->rig;

    enum { N = 500 };

    float *x = data_uniform(N, DIM, mb_test_seed());
    fill_flat(f, x, N, DIM);
    assert_ok(rig_write(rig, &f->err));
    for (size_t i = 0; i < N; i++)
        assert_ok(
            dense_remove(&rig->w, &rig->wc, (mb_segno)((i * 7) % N), &f->err));
    assert_true(rig->w.erased);
    assert_ok(rig_commit(rig, &f->err));
    assert_int_equal(0, rig->wc.c.n_vectors);
    assert_int_equal(0, rows_of(f, KV_EMBEDDINGS));
    assert_int_equal(0, rows_of(f, KV_LISTS));
    mb_free(x);
}

static void
test_remove_when_thinned_out_then_chunks_merge(void **state)
{
    struct fixture *f = *state;
    struct dense_rig *rig = &f->rig;

    enum { N = 8000 };

    float *x = data_uniform(N, DIM, mb_test_seed());
    fill_flat(f, x, N, DIM);
    uint64_t before = rows_of(f, KV_LISTS);
    assert_ok(rig_write(rig, &f->err));
    for (size_t i = 0; i < N; i++) {
        if (i % 20 != 0)
            assert_ok(dense_remove(&rig->w, &rig->wc, (mb_segno)i, &f->err));
    }
    // The rows go with their segments.
    for (size_t i = 0; i < N; i++) {
        struct kv_key key;
        kv_key_init(&key);
        kv_key_u32(&key, 1);
        kv_key_u32(&key, (uint32_t)i);
        if (i % 20 != 0)
            assert_ok(kv_del(rig->w.txn, KV_SEGMENTS, kv_key_slice(&key)));
    }
    assert_ok(rig_commit(rig, &f->err));
    assert_true(rows_of(f, KV_LISTS) <= before / 3);
    assert_int_equal(0, count_broken(f));
    mb_free(x);
}

static void
test_remove_when_absent_then_nothing_happens(void **state)
{
    struct fixture *f = *state;
    float *x = data_uniform(5, DIM, mb_test_seed());
    fill_flat(f, x, 5, DIM);
    assert_ok(rig_write(&f->rig, &f->err));
    assert_ok(dense_remove(&f->rig.w, &f->rig.wc, 77, &f->err));
    assert_false(f->rig.w.changed);
    assert_int_equal(5, f->rig.wc.c.n_vectors);
    mb_free(x);
}

static void
test_remove_when_list_row_is_missing_then_goes_through(void **state)
{
    struct fixture *f = *state;
    struct dense_rig *rig = &f->rig;
    float *x = data_uniform(5, DIM, mb_test_seed());
    fill_flat(f, x, 5, DIM);
    assert_ok(rig_write(rig, &f->err));
    assert_ok(
        list_remove(rig->w.txn, &(struct list_id){1, 1, 0}, DIM, 3, &f->err));
    assert_status(MB_OK, dense_remove(&rig->w, &rig->wc, 3, &f->err), &f->err);
    assert_int_equal(4, rig->wc.c.n_vectors);
    mb_free(x);
}

/* ---- filters ---- */

struct filter {
    struct bitset set;
    uint64_t words[4096];
};

/* Every step-th segment below n. */
static void
filter_make(struct filter *filter, size_t n, size_t step)
{
    memset(filter, 0, sizeof *filter);
    assert_true(n <= 64 * 4096);
    filter->set.words = filter->words;
    filter->set.n_bits = n;
    for (size_t i = 0; i < n; i += step) {
        filter->words[i / 64] |= (uint64_t)1 << (i % 64);
        filter->set.n_set++;
    }
}

static void
test_filter_when_of_any_width_then_only_its_best(void **state)
{
    struct fixture *f = *state;

    enum { N = 3000, K = 10 };

    static const size_t steps[] = {1, 2, 10, 100, 1000, 2999};
    struct filter *filter = mb_alloc(sizeof *filter);
    float *x = data_uniform(N + 1, DIM, mb_test_seed());
    const float *q = x + N * DIM;
    fill_flat(f, x, N, DIM);
    begin_read(f);
    for (size_t s = 0; s < sizeof steps / sizeof steps[0]; s++) {
        filter_make(filter, N, steps[s]);
        struct dense_result r = search(
            f, (struct dense_query){
                   .vector = q, .dim = DIM, .k = K, .filter = &filter->set});
        size_t want = filter->set.n_set < K ? filter->set.n_set : K;
        assert_int_equal(want, r.n);
        assert_int_equal(filter->set.n_set, r.n_scanned);
        float worst = r.hits[r.n - 1].score;
        size_t better = 0;
        for (size_t i = 0; i < N; i += steps[s]) {
            float score;
            scan_at(SCAN_PLAIN)->dot_f32(q, x + i * DIM, 1, DIM, &score);
            better += score > worst + 2e-3f ? 1 : 0;
        }
        assert_true(better < K);
        for (size_t i = 0; i < r.n; i++)
            assert_int_equal(0, r.hits[i].segno % steps[s]);
    }
    mb_free(x);
    mb_free(filter);
}

static void
test_filter_when_empty_then_nothing(void **state)
{
    struct fixture *f = *state;
    uint64_t word = 0;
    struct bitset none = {&word, 64, 0};
    float *x = data_uniform(5, DIM, mb_test_seed());
    fill_flat(f, x, 5, DIM);
    begin_read(f);
    struct dense_result r = search(f,
        (struct dense_query){.vector = x, .dim = DIM, .k = 3, .filter = &none});
    assert_int_equal(0, r.n);
    mb_free(x);
}

/* ---- damage and want ---- */

/* Flip a byte in the middle of a table's first row. */
static void
damage(struct fixture *f, enum kv_table table)
{
    struct kv_cursor *c;
    struct mb_slice key;
    struct mb_slice value;
    uint8_t copy[65536];
    assert_ok(rig_write(&f->rig, &f->err));
    assert_ok(kv_cursor_open(f->rig.w.txn, table, &c));
    assert_ok(kv_cursor_seek(c, mb_slice_of(NULL, 0), &key, &value));
    assert_true(value.size <= sizeof copy);
    memcpy(copy, value.data, value.size);
    copy[value.size / 2] ^= 1;
    assert_ok(kv_cursor_put(c, key, mb_slice_of(copy, value.size)));
    kv_cursor_close(c);
    assert_ok(rig_commit(&f->rig, &f->err));
}

static void
test_verify_when_a_record_is_damaged_then_reported(void **state)
{
    struct fixture *f = *state;

    static const enum kv_table tables[] = {
        KV_EMBEDDINGS, KV_LISTS, KV_NODES, KV_GENERATIONS};

    float *x = data_uniform(50, DIM, mb_test_seed());
    fill_flat(f, x, 50, DIM);
    assert_int_equal(0, count_broken(f));
    for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++) {
        uint64_t before = count_broken(f);
        damage(f, tables[i]);
        if (tables[i] != KV_GENERATIONS)
            assert_true(count_broken(f) > before);
        else // a generation whose record is gone cannot be looked into
            assert_int_equal(1, count_broken(f));
    }
    mb_free(x);
}

static void
test_verify_when_tables_disagree_then_reported(void **state)
{
    struct fixture *f = *state;
    struct dense_rig *rig = &f->rig;
    struct kv_key key;
    float *x = data_uniform(50, DIM, mb_test_seed());
    fill_flat(f, x, 50, DIM);
    // An embedding goes, its list row stays.
    assert_ok(rig_write(rig, &f->err));
    embedding_key(&key, 1, 1, 7);
    assert_ok(kv_del(rig->w.txn, KV_EMBEDDINGS, kv_key_slice(&key)));
    assert_ok(rig_commit(rig, &f->err));
    assert_int_equal(3, count_broken(f)); // row, both counts
    // A segment goes, its vector stays.
    assert_ok(rig_write(rig, &f->err));
    kv_key_init(&key);
    kv_key_u32(&key, 1);
    kv_key_u32(&key, 9);
    assert_ok(kv_del(rig->w.txn, KV_SEGMENTS, kv_key_slice(&key)));
    assert_ok(rig_commit(rig, &f->err));
    assert_int_equal(4, count_broken(f));
    mb_free(x);
}

static void
test_search_when_a_list_is_damaged_then_corrupt(void **state)
{
    struct fixture *f = *state;
    struct dense_rig *rig = &f->rig;
    struct dense_result r;
    struct kv_key key;
    float *x = data_uniform(50, DIM, mb_test_seed());
    fill_flat(f, x, 50, DIM);
    assert_ok(rig_write(rig, &f->err));
    list_key_prefix(&key, &(struct list_id){1, 1, 0});
    kv_key_u32(&key, 5);
    assert_ok(kv_put(
        rig->w.txn, KV_LISTS, kv_key_slice(&key), mb_slice_of("too short", 9)));
    assert_ok(rig_commit(rig, &f->err));
    begin_read(f);
    assert_status(MB_ERR_CORRUPT,
        dense_search(&rig->snap, &rig->wc.c,
            &(struct dense_query){.vector = x, .dim = DIM, .k = 1}, f->arena,
            &r, &f->err),
        &f->err);
    assert_error_has(f->err, "scan lists");
    mb_free(x);
}

static mb_status
search_short(void *arg)
{
    struct fixture *f = arg;
    float q[DIM] = {1};
    struct dense_result r;
    struct mb_arena *arena = mb_arena_new(1 << 20);
    if (arena == NULL)
        return MB_ERR_NOMEM;
    mb_status st = dense_search(&f->rig.snap, &f->rig.wc.c,
        &(struct dense_query){.vector = q, .dim = DIM, .k = 5}, arena, &r,
        NULL);
    mb_arena_free(arena);
    return st;
}

static void
test_search_when_memory_is_short_then_no_memory(void **state)
{
    struct fixture *f = *state;
    float *x = data_uniform(50, DIM, mb_test_seed());
    fill_flat(f, x, 50, DIM);
    begin_read(f);
    mb_test_each_allocation(search_short, f);
    mb_free(x);
}

#define DENSE_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        DENSE_TEST(test_search_when_flat_then_order_is_that_of_brute_force),
        DENSE_TEST(test_search_when_scores_tie_then_lower_segment_first),
        DENSE_TEST(test_search_when_k_is_more_than_there_are_then_all),
        DENSE_TEST(test_search_when_no_generation_then_nothing),
        DENSE_TEST(test_search_when_dim_differs_then_mismatch),
        DENSE_TEST(test_add_when_wrong_then_says_which),
        DENSE_TEST(test_add_when_vector_is_nothing_then_no_row),
        DENSE_TEST(test_score_when_some_have_no_vector_then_nan_there),
        DENSE_TEST(
            test_lists_when_filled_one_by_one_then_few_chunks_and_all_there),
        DENSE_TEST(test_lists_when_dim_is_largest_then_works),
        DENSE_TEST(
            test_lists_when_segments_come_out_of_order_then_still_removable),
        DENSE_TEST(test_remove_when_all_go_then_nothing_is_left),
        DENSE_TEST(test_remove_when_thinned_out_then_chunks_merge),
        DENSE_TEST(test_remove_when_absent_then_nothing_happens),
        DENSE_TEST(test_remove_when_list_row_is_missing_then_goes_through),
        DENSE_TEST(test_filter_when_of_any_width_then_only_its_best),
        DENSE_TEST(test_filter_when_empty_then_nothing),
        DENSE_TEST(test_verify_when_a_record_is_damaged_then_reported),
        DENSE_TEST(test_verify_when_tables_disagree_then_reported),
        DENSE_TEST(test_search_when_a_list_is_damaged_then_corrupt),
        DENSE_TEST(test_search_when_memory_is_short_then_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
