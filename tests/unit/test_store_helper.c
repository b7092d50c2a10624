/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_helper.c - a search by two threads is the same search.
 *
 * Each question is asked twice, with and without the helper, of a collection
 * that is large enough for help: hits and scores must be equal to the bit, also
 * for an old snapshot, which the helper cannot share, and errors as well. */
#include "mb_test_store.h"

#include "internal.h"

#define DIM    16
#define N_DOCS 6000
#define WORDS  12

static int
setup(void **state)
{
    const struct mb_store_options opt = {
        .create = true, .no_sync = true, .helper = true};
    test_store_setup(state);
    struct test_store *t = *state;
    struct mb_rng rng;
    mb_store_close(t->store);
    t->store = NULL;
    assert_status(
        MB_OK, mb_store_open(t->dir.path, &opt, &t->store, &t->err), &t->err);
    mb_rng_init(&rng, mb_test_seed());
    test_create(t, "vecs", MB_EMBED_CLIENT, DIM);

    struct mb_collection c = test_collection(t, "vecs");
    struct mb_put_document *docs =
        mb_arena_calloc(t->arena, N_DOCS, sizeof *docs);
    struct mb_span *spans = mb_arena_calloc(t->arena, N_DOCS, sizeof *spans);
    float *vectors = mb_arena_alloc(t->arena, sizeof(float) * DIM * N_DOCS);
    for (size_t i = 0; i < N_DOCS; i++) {
        char *id = mb_arena_alloc(t->arena, 16);
        struct mb_slice text = test_words(t->arena, &rng, WORDS);
        snprintf(id, 16, "d%zu", i);
        for (size_t j = 0; j < DIM; j++)
            vectors[i * DIM + j] = (float)mb_rng_normal(&rng);
        assert_int_equal(1, test_spans(text, &spans[i]));
        docs[i] = (struct mb_put_document){.id = mb_slice_cstr(id),
            .text = text,
            .segments = &spans[i],
            .n_segments = 1,
            .vector = vectors + i * DIM};
    }
    struct mb_op *op;
    assert_status(
        MB_OK, mb_op_put_new(&c, t->an, docs, N_DOCS, &op, &t->err), &t->err);
    assert_ok(test_apply(t, op));
    return 0;
}

struct answer {
    struct mb_hit *hits;
    size_t n;
    mb_status st;
    struct mb_error err;
};

static struct answer
ask(struct test_store *t, struct mb_snapshot *snap, struct mb_slice text,
    struct mb_query q)
{
    struct answer a = {0};
    struct mb_collection c;
    struct mb_term *terms;
    assert_ok(mb_collection_get(snap, mb_slice_cstr("vecs"), &c, &t->err));
    assert_ok(mb_analyze(t->an, text, t->arena, &terms, &q.n_terms, &t->err));
    q.coll = &c;
    q.terms = terms;
    q.coverage = 1;
    a.st = mb_search(snap, &q, t->arena, &a.hits, &a.n, &a.err);
    return a;
}

static void
assert_same(struct test_store *t, struct mb_snapshot *snap,
    struct mb_slice text, struct mb_query q, mb_status want)
{
    struct answer alone = ask(t, snap, text, q);
    q.helped = true;
    struct answer helped = ask(t, snap, text, q);
    assert_int_equal(want, alone.st);
    assert_int_equal(want, helped.st);
    if (want != MB_OK) {
        assert_string_equal(alone.err.text, helped.err.text);
        return;
    }
    assert_int_equal(alone.n, helped.n);
    for (size_t i = 0; i < alone.n; i++) {
        assert_int_equal(alone.hits[i].segno, helped.hits[i].segno);
        assert_true(alone.hits[i].score == helped.hits[i].score);
        assert_true(alone.hits[i].dense == helped.hits[i].dense);
        assert_true(alone.hits[i].lexical == helped.hits[i].lexical);
    }
}

static void
random_vector(struct mb_rng *rng, float v[DIM])
{
    for (size_t i = 0; i < DIM; i++)
        v[i] = (float)mb_rng_normal(rng);
}

static void
test_hybrid_when_helped_then_same_hits(void **state)
{
    struct test_store *t = *state;
    struct mb_rng rng;
    float v[DIM];
    struct mb_query q = {.k = 10, .vector = v, .dim = DIM};
    mb_rng_init(&rng, mb_test_seed() + 1);
    for (int i = 0; i < 100; i++) {
        struct mb_snapshot *snap;
        assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
        struct mb_slice words = test_words(t->arena, &rng, 1 + (size_t)i % 9);
        random_vector(&rng, v);
        q.k = i % 10 == 0 ? 400 : 10;
        q.one_per_document = i % 3 == 0;
        q.mode = i % 7 == 6 ? MB_SEARCH_DENSE : MB_SEARCH_HYBRID;
        assert_same(t, snap, words, q, MB_OK);
        mb_snapshot_end(snap);
    }
}

static void
test_hybrid_when_helped_and_no_word_is_known_then_by_vector(void **state)
{
    struct test_store *t = *state;
    struct mb_snapshot *snap;
    struct mb_rng rng;
    float v[DIM];
    const struct mb_query q = {.k = 10, .vector = v, .dim = DIM};
    mb_rng_init(&rng, mb_test_seed() + 2);
    random_vector(&rng, v);
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_same(t, snap, mb_slice_cstr("xyzzyplugh"), q, MB_OK);
    assert_int_equal(10, ask(t, snap, mb_slice_cstr("xyzzyplugh"), q).n);
    mb_snapshot_end(snap);
}

static void
test_hybrid_when_helped_and_vector_is_wrong_then_same_error(void **state)
{
    struct test_store *t = *state;
    struct mb_snapshot *snap;
    const float v[DIM + 1] = {1};
    const struct mb_query q = {.k = 10, .vector = v, .dim = DIM + 1};
    struct mb_rng rng;
    mb_rng_init(&rng, mb_test_seed() + 3);
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_same(t, snap, test_words(t->arena, &rng, 4), q, MB_ERR_MISMATCH);
    mb_snapshot_end(snap);
}

/* Between the twin and its original there must be no commit. */
static void
test_twin_when_the_store_went_on_then_none_and_the_search_the_same(void **state)
{
    struct test_store *t = *state;
    struct mb_snapshot *snap;
    struct mb_snapshot *twin = NULL;
    struct mb_rng rng;
    float v[DIM];
    const struct mb_query q = {.k = 10, .vector = v, .dim = DIM};
    mb_rng_init(&rng, mb_test_seed() + 4);
    random_vector(&rng, v);
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_ok(snapshot_twin(snap, &twin));
    assert_int_equal(kv_txn_id(snap->txn), kv_txn_id(twin->txn));
    mb_snapshot_end(twin);
    struct mb_slice words = test_words(t->arena, &rng, 5);
    struct answer before = ask(t, snap, words, q);
    assert_true(before.n > 0);
    char id[16];
    snprintf(id, sizeof id, "d%u", (unsigned)before.hits[0].docno);
    assert_int_equal(1, test_delete(t, "vecs", id));
    assert_int_equal(MB_ERR_STALE, snapshot_twin(snap, &twin));
    assert_same(t, snap, words, q, MB_OK);
    assert_int_equal(
        before.hits[0].segno, ask(t, snap, words, q).hits[0].segno);
    mb_snapshot_end(snap);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hybrid_when_helped_then_same_hits),
        cmocka_unit_test(
            test_hybrid_when_helped_and_no_word_is_known_then_by_vector),
        cmocka_unit_test(
            test_hybrid_when_helped_and_vector_is_wrong_then_same_error),
        cmocka_unit_test(
            test_twin_when_the_store_went_on_then_none_and_the_search_the_same),
    };
    return cmocka_run_group_tests(tests, setup, test_store_teardown);
}
