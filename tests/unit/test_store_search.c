/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_search.c - mb_search: what all modes promise.
 *
 * Small collections whose answer is known beforehand: order and ties, limits,
 * queries with nothing in them, filters, one hit a document. How good results
 * are is the business of tests/quality. */
#include "mb_test_store.h"

#include <math.h>

#define DIM 4

static const char *const mode_names[] = {"hybrid", "lexical", "dense"};
static const mb_search_mode modes[] = {
    MB_SEARCH_HYBRID, MB_SEARCH_LEXICAL, MB_SEARCH_DENSE};

static const float x_axis[DIM] = {1, 0, 0, 0};

/* ---- documents ---- */

/* Vector at an angle in degrees from x_axis. */
static const float *
at_angle(double degrees)
{
    static float v[DIM];
    v[0] = (float)cos(degrees * 3.14159265 / 180);
    v[1] = (float)sin(degrees * 3.14159265 / 180);
    return v;
}

/* Put one document; meta {"n": n}. */
static void
put(struct test_store *t, const char *coll, const char *id, const char *text,
    int n, const float *vector)
{
    struct mb_collection c = test_collection(t, coll);
    struct mb_buffer meta;
    struct mb_writer w;
    mb_buffer_init(&meta, 64);
    mb_writer_init(&w, &meta);
    mb_write_map(&w, 1);
    mb_write_kv_uint(&w, "n", (uint64_t)n);
    assert_ok(w.status);
    struct mb_op *op = test_put_op(
        t, &c, id, "", mb_slice_cstr(text), mb_buffer_slice(&meta), vector);
    assert_ok(test_apply(t, op));
    mb_buffer_fini(&meta);
}

/* n documents of the same words and the same vector, d0, d1, ... */
static void
put_alike(struct test_store *t, const char *coll, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char id[16];
        snprintf(id, sizeof id, "d%zu", i);
        put(t, coll, id, "the whale swims", (int)i, at_angle(30));
    }
}

/* Ten documents: the higher i, the less of whales and the further away. */
static void
put_graded(struct test_store *t, const char *coll)
{
    for (int i = 0; i < 10; i++) {
        char text[] = "whale harbour harbour harbour harbour harbour harbour "
                      "harbour harbour harbour";
        char id[16];
        text[5 + 8 * i] = '\0';
        snprintf(id, sizeof id, "d%d", i);
        put(t, coll, id, text, i, at_angle(8.0 * i));
    }
}

/* ---- queries ---- */

struct found {
    struct mb_hit *hits;
    size_t n;
};

/* Filter {"n": {op: value}}. */
static const struct mb_value *
filter_n(struct test_store *t, const char *op, int value)
{
    struct mb_value *v = mb_arena_calloc(t->arena, 2, sizeof *v);
    struct mb_pair *pairs = mb_arena_calloc(t->arena, 2, sizeof *pairs);
    assert_non_null(v);
    assert_non_null(pairs);
    pairs[1] =
        (struct mb_pair){mb_slice_cstr(op), {.type = MB_TYPE_INT, .i = value}};
    v[1].type = MB_TYPE_MAP;
    v[1].map.pairs = &pairs[1];
    v[1].map.n = 1;
    pairs[0] = (struct mb_pair){mb_slice_cstr("n"), v[1]};
    v[0].type = MB_TYPE_MAP;
    v[0].map.pairs = &pairs[0];
    v[0].map.n = 1;
    return &v[0];
}

/* Ask q of a collection, with the terms of text. */
static mb_status
ask(struct test_store *t, const char *coll, const char *text, struct mb_query q,
    struct found *out)
{
    struct mb_collection c = test_collection(t, coll);
    struct mb_snapshot *snap;
    struct mb_term *terms = NULL;
    size_t n = 0;
    assert_ok(
        mb_analyze(t->an, mb_slice_cstr(text), t->arena, &terms, &n, &t->err));
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    q.coll = &c;
    q.terms = terms;
    q.n_terms = n;
    q.coverage = 1;
    if (q.dim == 0)
        q.dim = DIM;
    mb_status st = mb_search(snap, &q, t->arena, &out->hits, &out->n, &t->err);
    mb_snapshot_end(snap);
    return st;
}

static struct found
find(
    struct test_store *t, const char *coll, const char *text, struct mb_query q)
{
    struct found f = {0};
    assert_status(MB_OK, ask(t, coll, text, q, &f), &t->err);
    // What the order is by, in every mode.
    for (size_t i = 1; i < f.n; i++) {
        const struct mb_hit *a = &f.hits[i - 1];
        const struct mb_hit *b = &f.hits[i];
        assert_true(a->score > b->score ||
                    (a->score == b->score && a->segno < b->segno));
    }
    return f;
}

static void
assert_segnos(const struct found *f, size_t n, const mb_segno *segnos)
{
    if (f->n != n)
        fail_msg("%zu hits, wanted %zu", f->n, n);
    for (size_t i = 0; i < n; i++) {
        if (f->hits[i].segno != segnos[i])
            fail_msg("hit %zu is segment %u, wanted %u", i,
                (unsigned)f->hits[i].segno, (unsigned)segnos[i]);
    }
}

static int
setup(void **state)
{
    int rc = test_store_setup(state);
    test_create(*state, "vecs", MB_EMBED_CLIENT, DIM);
    test_create(*state, "plain", MB_EMBED_NONE, 0);
    test_create(*state, "young", MB_EMBED_LSA, 0); // nothing fitted yet
    return rc;
}

/* ---- order ---- */

static void
test_order_when_graded_then_best_first_in_each_mode(void **state)
{
    static const mb_segno want[] = {0, 1, 2, 3, 4};
    struct test_store *t = *state;
    put_graded(t, "vecs");
    for (size_t m = 0; m < 3; m++) {
        struct found f = find(t, "vecs", "whale",
            (struct mb_query){.mode = modes[m], .k = 5, .vector = x_axis});
        print_message("%s\n", mode_names[m]);
        assert_segnos(&f, 5, want);
        for (size_t i = 0; i < f.n; i++) {
            const struct mb_hit *h = &f.hits[i];
            assert_int_equal(i, h->docno);
            assert_true(h->lexical > 0);
            assert_true(
                fabs((double)h->dense - cos(0.139626 * (double)i)) < 0.01);
            if (modes[m] == MB_SEARCH_LEXICAL)
                assert_true(h->score == h->lexical);
            if (modes[m] == MB_SEARCH_DENSE)
                assert_true(h->score == h->dense);
        }
    }
}

/* More alike than the lists of a hybrid search are long, and than a block of
 * postings: the first of them are taken, and always the same. */
static void
test_order_when_all_alike_then_lowest_numbers_in_each_mode(void **state)
{
    struct test_store *t = *state;
    put_alike(t, "vecs", 300);
    for (size_t m = 0; m < 3; m++) {
        for (size_t k = 1; k <= 300; k = 3 * k + 1) {
            struct found f = find(t, "vecs", "whale swims",
                (struct mb_query){.mode = modes[m], .k = k, .vector = x_axis});
            print_message("%s, k = %zu\n", mode_names[m], k);
            assert_int_equal(k, f.n);
            for (size_t i = 0; i < k; i++)
                assert_int_equal(i, f.hits[i].segno);
        }
    }
}

static void
test_order_when_asked_for_more_then_begins_the_same(void **state)
{
    struct test_store *t = *state;
    struct mb_rng rng;
    mb_rng_init(&rng, mb_test_seed());
    for (int i = 0; i < 400; i++) {
        char id[16];
        snprintf(id, sizeof id, "d%d", i);
        struct mb_slice text = test_words(t->arena, &rng, 200);
        put(t, "vecs", id, (const char *)text.data, i,
            at_angle((double)mb_rng_below(&rng, 180)));
    }
    for (size_t m = 0; m < 3; m++) {
        struct mb_query q = {.mode = modes[m], .vector = x_axis};
        q.k = 10;
        struct found few = find(t, "vecs", "ka lo mi ru ten", q);
        q.k = 300;
        struct found many = find(t, "vecs", "ka lo mi ru ten", q);
        assert_int_equal(10, few.n);
        assert_true(many.n > 10);
        for (size_t i = 0; i < few.n; i++) {
            assert_int_equal(few.hits[i].segno, many.hits[i].segno);
            assert_true(few.hits[i].score == many.hits[i].score);
        }
    }
}

/* ---- how many ---- */

static void
test_k_when_more_than_there_are_then_all(void **state)
{
    static const size_t ks[] = {11, 1000, SIZE_MAX / 2, SIZE_MAX};
    struct test_store *t = *state;
    put_graded(t, "vecs");
    for (size_t m = 0; m < 3; m++) {
        for (size_t i = 0; i < 4; i++) {
            struct mb_query q = {
                .mode = modes[m], .k = ks[i], .vector = x_axis};
            assert_int_equal(10, find(t, "vecs", "whale", q).n);
            q.one_per_document = true;
            assert_int_equal(10, find(t, "vecs", "whale", q).n);
        }
    }
}

static void
test_k_when_zero_then_none(void **state)
{
    struct test_store *t = *state;
    put_graded(t, "vecs");
    for (size_t m = 0; m < 3; m++) {
        struct mb_query q = {.mode = modes[m], .vector = x_axis};
        assert_int_equal(0, find(t, "vecs", "whale", q).n);
    }
}

static void
test_collection_when_empty_then_none(void **state)
{
    struct test_store *t = *state;
    for (size_t m = 0; m < 3; m++) {
        struct mb_query q = {.mode = modes[m], .k = 10, .vector = x_axis};
        assert_int_equal(0, find(t, "vecs", "whale", q).n);
        assert_int_equal(0, find(t, "plain", "whale", q).n);
    }
}

static void
test_documents_when_deleted_then_not_found(void **state)
{
    static const mb_segno want[] = {1, 3, 5, 7, 9};
    struct test_store *t = *state;
    put_graded(t, "vecs");
    for (int i = 0; i < 10; i += 2) {
        char id[16];
        snprintf(id, sizeof id, "d%d", i);
        assert_int_equal(1, test_delete(t, "vecs", id));
    }
    for (size_t m = 0; m < 3; m++) {
        struct found f = find(t, "vecs", "whale",
            (struct mb_query){.mode = modes[m], .k = 10, .vector = x_axis});
        assert_segnos(&f, 5, want);
    }
}

/* ---- one part of the query alone ---- */

static void
test_query_when_without_words_then_by_vector_alone(void **state)
{
    static const char *const texts[] = {"", " .,;! ", "zyzzogeton quux"};
    static const mb_segno want[] = {0, 1, 2};
    struct test_store *t = *state;
    put_graded(t, "vecs");
    for (size_t i = 0; i < 3; i++) {
        struct mb_query q = {
            .mode = MB_SEARCH_LEXICAL, .k = 3, .vector = x_axis};
        assert_int_equal(0, find(t, "vecs", texts[i], q).n);
        q.mode = MB_SEARCH_DENSE;
        struct found f = find(t, "vecs", texts[i], q);
        assert_segnos(&f, 3, want);
        assert_true(f.hits[0].lexical == 0);
        q.mode = MB_SEARCH_HYBRID;
        f = find(t, "vecs", texts[i], q);
        assert_segnos(&f, 3, want);
        assert_true(f.hits[0].lexical == 0);
    }
}

static void
test_query_when_without_vector_then_by_words_alone(void **state)
{
    static const float zeros[DIM] = {0};
    static const mb_segno want[] = {0, 1, 2};
    struct test_store *t = *state;
    put_graded(t, "vecs");
    for (int with_zeros = 0; with_zeros <= 1; with_zeros++) {
        struct mb_query q = {.mode = MB_SEARCH_DENSE,
            .k = 3,
            .vector = with_zeros ? zeros : NULL};
        assert_int_equal(0, find(t, "vecs", "whale", q).n);
        q.mode = MB_SEARCH_LEXICAL;
        struct found f = find(t, "vecs", "whale", q);
        assert_segnos(&f, 3, want);
        assert_true(isnan(f.hits[0].dense));
        q.mode = MB_SEARCH_HYBRID;
        f = find(t, "vecs", "whale", q);
        assert_segnos(&f, 3, want);
        assert_true(isnan(f.hits[0].dense));
    }
}

static void
test_query_when_nothing_in_it_then_none(void **state)
{
    struct test_store *t = *state;
    put_graded(t, "vecs");
    for (size_t m = 0; m < 3; m++) {
        struct mb_query q = {.mode = modes[m], .k = 3};
        assert_int_equal(0, find(t, "vecs", "", q).n);
    }
}

static void
test_collection_when_without_vectors_then_by_words_alone(void **state)
{
    static const char *const names[] = {"plain", "young"};
    static const mb_segno want[] = {0, 1, 2};
    struct test_store *t = *state;
    for (size_t i = 0; i < 2; i++) {
        for (int d = 0; d < 5; d++) {
            static const char *const texts[] = {"whale", "whale and port",
                "whale in the far port", "port", "harbour"};
            char id[16];
            snprintf(id, sizeof id, "d%d", d);
            put(t, names[i], id, texts[d], d, NULL);
        }
        struct mb_query q = {.mode = MB_SEARCH_DENSE, .k = 5, .vector = x_axis};
        assert_int_equal(0, find(t, names[i], "whale", q).n);
        q.mode = MB_SEARCH_LEXICAL;
        struct found f = find(t, names[i], "whale", q);
        assert_segnos(&f, 3, want);
        q.mode = MB_SEARCH_HYBRID;
        f = find(t, names[i], "whale", q);
        assert_true(f.n >= 3);
        f.n = 3; // what stands beside them may follow
        assert_segnos(&f, 3, want);
        assert_true(isnan(f.hits[0].dense));
    }
}

/* ---- what is refused ---- */

static void
test_vector_when_not_finite_then_refused_in_each_mode(void **state)
{
    static const char *const names[] = {"vecs", "plain", "young"};
    static const float bad[][DIM] = {
        {NAN, 0, 0, 0}, {0, INFINITY, 0, 0}, {1, 0, 0, -INFINITY}};
    struct test_store *t = *state;
    for (size_t c = 0; c < 3; c++) {
        put(t, names[c], "a", "whale", 0, c == 0 ? x_axis : NULL);
        for (size_t i = 0; i < 9; i++) {
            struct found f = {.n = 77};
            struct mb_query q = {
                .mode = modes[i % 3], .k = 3, .vector = bad[i / 3]};
            assert_status(
                MB_ERR_BAD_ARG, ask(t, names[c], "whale", q, &f), &t->err);
            assert_error_has(t->err, "not finite");
            assert_int_equal(77, f.n);
        }
    }
}

static void
test_vector_when_of_other_size_then_mismatch_in_each_mode(void **state)
{
    static const float longer[DIM + 1] = {1};
    struct test_store *t = *state;
    put(t, "vecs", "a", "whale", 0, x_axis);
    for (size_t i = 0; i < 6; i++) {
        struct found f = {.n = 77};
        struct mb_query q = {.mode = modes[i % 3],
            .k = i < 3 ? 3 : 0,
            .vector = longer,
            .dim = DIM + 1};
        assert_status(MB_ERR_MISMATCH, ask(t, "vecs", "whale", q, &f), &t->err);
        assert_error_has(t->err, "5");
        assert_error_has(t->err, "4");
        assert_int_equal(77, f.n);
    }
}

static void
test_filter_when_not_understood_then_refused_in_each_mode(void **state)
{
    struct test_store *t = *state;
    put(t, "vecs", "a", "whale", 0, x_axis);
    for (size_t i = 0; i < 6; i++) {
        struct found f = {.n = 77};
        struct mb_query q = {.mode = modes[i % 3],
            .k = i < 3 ? 3 : 0,
            .vector = x_axis,
            .filter = filter_n(t, "$near", 1)};
        assert_status(MB_ERR_BAD_ARG, ask(t, "vecs", "whale", q, &f), &t->err);
        assert_error_has(t->err, "$near");
        assert_int_equal(77, f.n);
    }
}

/* ---- filters ---- */

static void
test_filter_when_none_match_then_none_in_each_mode(void **state)
{
    struct test_store *t = *state;
    put_graded(t, "vecs");
    for (size_t m = 0; m < 3; m++) {
        struct mb_query q = {.mode = modes[m],
            .k = 10,
            .vector = x_axis,
            .filter = filter_n(t, "$gt", 1000)};
        assert_int_equal(0, find(t, "vecs", "whale", q).n);
    }
}

static void
test_filter_when_one_matches_then_it_in_each_mode(void **state)
{
    static const mb_segno want[] = {290};
    struct test_store *t = *state;
    put_alike(t, "vecs", 300);
    for (size_t m = 0; m < 3; m++) {
        struct mb_query q = {.mode = modes[m],
            .k = 10,
            .vector = x_axis,
            .filter = filter_n(t, "$eq", 290)};
        struct found f = find(t, "vecs", "whale", q);
        assert_segnos(&f, 1, want);
        assert_true(f.hits[0].lexical > 0);
        assert_true(f.hits[0].dense > 0.8f);
    }
}

static void
test_filter_when_some_match_then_best_of_these_in_each_mode(void **state)
{
    static const mb_segno want[] = {4, 5, 6, 7, 8, 9};
    struct test_store *t = *state;
    put_graded(t, "vecs");
    for (size_t m = 0; m < 3; m++) {
        struct mb_query q = {.mode = modes[m],
            .k = 10,
            .vector = x_axis,
            .filter = filter_n(t, "$gte", 4)};
        struct found f = find(t, "vecs", "whale", q);
        assert_segnos(&f, 6, want);
        q.k = 2;
        f = find(t, "vecs", "whale", q);
        assert_segnos(&f, 2, want);
    }
}

/* The filter lets through what has no vector: words still find it. */
static void
test_filter_when_the_one_has_no_vector_then_found_by_words(void **state)
{
    static const mb_segno want[] = {10};
    struct test_store *t = *state;
    put_graded(t, "vecs");
    put(t, "vecs", "bare", "a whale without vector", 99, NULL);
    struct mb_query q = {.mode = MB_SEARCH_DENSE,
        .k = 10,
        .vector = x_axis,
        .filter = filter_n(t, "$eq", 99)};
    assert_int_equal(0, find(t, "vecs", "whale", q).n);
    q.mode = MB_SEARCH_LEXICAL;
    struct found f = find(t, "vecs", "whale", q);
    assert_segnos(&f, 1, want);
    assert_true(isnan(f.hits[0].dense));
    q.mode = MB_SEARCH_HYBRID;
    f = find(t, "vecs", "whale", q);
    assert_segnos(&f, 1, want);
    assert_true(isnan(f.hits[0].dense));
}

/* ---- one hit a document ---- */

/* A book of many segments that are all better than the others' only one. */
static void
put_book(struct test_store *t)
{
    const char sentence[] = "The whale and the whale. ";
    char *text = mb_arena_calloc(t->arena, 1000, sizeof sentence);
    assert_non_null(text);
    for (size_t i = 0; i < 1000; i++)
        memcpy(text + i * (sizeof sentence - 1), sentence, sizeof sentence);
    put(t, "plain", "book", text, 0, NULL);
}

static void
test_one_per_document_when_a_book_fills_the_list_then_others_too(void **state)
{
    struct test_store *t = *state;
    put_book(t);
    for (int i = 0; i < 20; i++) {
        char id[16];
        snprintf(id, sizeof id, "d%d", i);
        put(t, "plain", id, "one whale among many other things of the sea", i,
            NULL);
    }
    struct mb_query q = {.mode = MB_SEARCH_LEXICAL, .k = SIZE_MAX};
    struct found all = find(t, "plain", "whale", q);
    assert_true(all.n > 40);
    q.one_per_document = true;
    for (size_t m = 0; m < 2; m++) {
        q.mode = modes[m];
        q.k = 15;
        struct found f = find(t, "plain", "whale", q);
        bool seen[32] = {false};
        assert_int_equal(15, f.n);
        for (size_t i = 0; i < f.n; i++) {
            assert_true(f.hits[i].docno < 32);
            assert_false(seen[f.hits[i].docno]);
            seen[f.hits[i].docno] = true;
        }
        // The best of all is the best of its document.
        if (modes[m] == MB_SEARCH_LEXICAL)
            assert_int_equal(all.hits[0].segno, f.hits[0].segno);
        q.k = 100;
        assert_int_equal(21, find(t, "plain", "whale", q).n);
    }
}

int
main(void)
{
#define TEST(name)                                                             \
    cmocka_unit_test_setup_teardown(name, setup, test_store_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_order_when_graded_then_best_first_in_each_mode),
        TEST(test_order_when_all_alike_then_lowest_numbers_in_each_mode),
        TEST(test_order_when_asked_for_more_then_begins_the_same),
        TEST(test_k_when_more_than_there_are_then_all),
        TEST(test_k_when_zero_then_none),
        TEST(test_collection_when_empty_then_none),
        TEST(test_documents_when_deleted_then_not_found),
        TEST(test_query_when_without_words_then_by_vector_alone),
        TEST(test_query_when_without_vector_then_by_words_alone),
        TEST(test_query_when_nothing_in_it_then_none),
        TEST(test_collection_when_without_vectors_then_by_words_alone),
        TEST(test_vector_when_not_finite_then_refused_in_each_mode),
        TEST(test_vector_when_of_other_size_then_mismatch_in_each_mode),
        TEST(test_filter_when_not_understood_then_refused_in_each_mode),
        TEST(test_filter_when_none_match_then_none_in_each_mode),
        TEST(test_filter_when_one_matches_then_it_in_each_mode),
        TEST(test_filter_when_some_match_then_best_of_these_in_each_mode),
        TEST(test_filter_when_the_one_has_no_vector_then_found_by_words),
        TEST(test_one_per_document_when_a_book_fills_the_list_then_others_too),
    };
#undef TEST
    return cmocka_run_group_tests(tests, NULL, NULL);
}
