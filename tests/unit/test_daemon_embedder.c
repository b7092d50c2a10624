/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_daemon_embedder.c - the cache of embeddings: what it gives,
 * what it keeps, and many threads that use it while generations change.
 *
 * The embedding of generation g has N_TERMS + g terms here: so whoever is
 * given one can tell whether it is the right one. */
#include "mb_test_store.h"

#include "mb_test_thread.h"

#include <stdatomic.h>

#include "embedder.h"

#define DIM           8
#define N_TERMS       20
#define MAX_TERMS     256
#define N_THREADS     4
#define N_COLLECTIONS 2
#define N_GENERATIONS 40
#define MUCH          ((size_t)1 << 30)

static const char *const names[N_COLLECTIONS] = {"one", "two"};

/* The bytes of generation g's embedding, appended to out. */
static void
encode(uint32_t g, struct mb_buffer *out)
{
    uint64_t hash[MAX_TERMS];
    uint32_t id[MAX_TERMS];
    float idf[MAX_TERMS];
    float V[MAX_TERMS * DIM];
    size_t n = N_TERMS + g;
    struct mb_rng rng;
    struct mb_error err;
    assert_true(n <= MAX_TERMS);
    mb_rng_init(&rng, g);
    for (size_t i = 0; i < n; i++) {
        hash[i] = i; // found again by the threads
        id[i] = (uint32_t)i;
        idf[i] = 1;
    }
    for (size_t i = 0; i < n * DIM; i++) {
        V[i] = (float)mb_rng_normal(&rng);
    }
    assert_status(
        MB_OK, mb_lsa_encode(n, DIM, hash, id, idf, V, out, &err), &err);
}

/* A new generation, served; the one before it is erased. */
static void
serve_next(struct test_store *t, const char *coll)
{
    const struct mb_slice name = mb_slice_cstr(coll);
    const struct mb_tree_options opt = {0};
    const float unit[DIM] = {1};
    uint32_t old = test_collection(t, coll).generation;
    struct mb_tree *tree = NULL;
    struct mb_buffer model;
    struct mb_op *op;
    assert_ok(mb_op_generation_begin_new(name, &op, NULL));
    assert_status(MB_OK, mb_store_apply(t->store, op, &t->err), &t->err);
    uint32_t g = mb_op_generation_result(op);
    mb_op_free(op);
    mb_buffer_init(&model, MUCH);
    encode(g, &model);
    assert_status(
        MB_OK, mb_tree_fit(unit, 1, DIM, &opt, &tree, &t->err), &t->err);
    assert_ok(mb_op_generation_model_new(
        name, g, DIM, mb_buffer_slice(&model), tree, &op, NULL));
    mb_tree_free(tree);
    mb_buffer_fini(&model);
    assert_status(MB_OK, test_apply(t, op), &t->err);
    assert_ok(mb_op_generation_switch_new(name, g, 0, 0, &op, NULL));
    assert_status(MB_OK, test_apply(t, op), &t->err);
    for (bool done = old == 0; !done;) {
        assert_ok(mb_op_generation_purge_new(name, old, &op, NULL));
        assert_status(MB_OK, mb_store_apply(t->store, op, &t->err), &t->err);
        done = mb_op_generation_purge_is_done(op);
        mb_op_free(op);
    }
}

/* The embedding that coll serves now, with a reference. */
static struct embedding *
ref(struct test_store *t, struct embedder *e, const char *coll)
{
    struct mb_collection c;
    struct mb_snapshot *snap;
    struct embedding *emb = NULL;
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_ok(mb_collection_get(snap, mb_slice_cstr(coll), &c, NULL));
    assert_status(MB_OK, embedder_ref(e, snap, &c, &emb, &t->err), &t->err);
    mb_snapshot_end(snap);
    assert_int_equal(
        N_TERMS + c.generation, mb_lsa_n_terms(embedding_lsa(emb)));
    return emb;
}

static uint64_t
n_held(struct embedder *e)
{
    uint64_t bytes;
    uint64_t n;
    embedder_stats(e, &bytes, &n);
    assert_int_equal(n == 0, bytes == 0);
    return n;
}

static int
setup(void **state)
{
    test_store_setup(state);
    for (size_t i = 0; i < N_COLLECTIONS; i++) {
        test_create(*state, names[i], MB_EMBED_LSA, DIM);
    }
    return 0;
}

/* ---- one thread ---- */

static void
test_ref_when_nothing_is_served_then_not_found(void **state)
{
    struct test_store *t = *state;
    struct embedder *e = embedder_new(MUCH);
    struct mb_collection c = test_collection(t, "one");
    struct mb_snapshot *snap;
    struct embedding *emb = NULL;
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_status(
        MB_ERR_NOT_FOUND, embedder_ref(e, snap, &c, &emb, &t->err), &t->err);
    mb_snapshot_end(snap);
    assert_error_has(t->err, "one");
    assert_null(emb);
    embedder_free(e);
}

static void
test_ref_when_again_then_the_same(void **state)
{
    struct test_store *t = *state;
    struct embedder *e = embedder_new(MUCH);
    serve_next(t, "one");
    struct embedding *first = ref(t, e, "one");
    struct embedding *second = ref(t, e, "one");
    assert_ptr_equal(first, second);
    embedder_unref(e, first);
    embedder_unref(e, second);
    // Kept although nobody uses it: there is room.
    assert_int_equal(1, n_held(e));
    embedder_free(e);
}

static void
test_unref_when_no_room_then_freed_with_the_last(void **state)
{
    struct test_store *t = *state;
    struct embedder *e = embedder_new(0);
    serve_next(t, "one");
    serve_next(t, "two");
    struct embedding *one = ref(t, e, "one");
    struct embedding *again = ref(t, e, "one");
    struct embedding *two = ref(t, e, "two");
    assert_int_equal(2, n_held(e));
    embedder_unref(e, one);
    embedder_unref(e, two);
    assert_int_equal(1, n_held(e));
    assert_ptr_equal(again, ref(t, e, "one"));
    embedder_unref(e, again);
    embedder_unref(e, again);
    assert_int_equal(0, n_held(e));
    embedder_free(e);
}

static void
test_set_max_when_lowered_then_unused_go_at_once(void **state)
{
    struct test_store *t = *state;
    struct embedder *e = embedder_new(MUCH);
    serve_next(t, "one");
    struct embedding *used = ref(t, e, "one");
    serve_next(t, "one");
    embedder_unref(e, ref(t, e, "one"));
    assert_int_equal(2, n_held(e));
    embedder_set_max(e, 0);
    assert_int_equal(1, n_held(e));
    // What is used stays as it was, though its rows are gone from the store.
    assert_int_equal(N_TERMS + 1, mb_lsa_n_terms(embedding_lsa(used)));
    embedder_unref(e, used);
    assert_int_equal(0, n_held(e));
    embedder_free(e);
}

/* ---- many threads ---- */

struct user {
    struct mb_store *store;
    struct embedder *embedder;
    atomic_bool *stop; /* relaxed: no data goes with it */
    struct mb_thread *thread;
    struct mb_rng rng;
    atomic_uint rounds; /* relaxed: a count */
    struct why why;
};

/* A reference is held beyond the snapshot, as a query does. */
static bool
use_once(struct user *u)
{
    struct mb_error err = {0};
    struct mb_snapshot *snap = NULL;
    struct mb_collection c = {0};
    struct embedding *emb = NULL;
    const uint64_t hash[] = {0, 5};
    const float tf[] = {1, 2};
    float out[DIM];
    float coverage = 0;
    const char *name = names[mb_rng_below(&u->rng, N_COLLECTIONS)];
    mb_status st = mb_snapshot_begin(u->store, &snap, &err);
    CHECK(&u->why, st == MB_OK, "%s", err.text);
    st = mb_collection_get(snap, mb_slice_cstr(name), &c, &err);
    if (st == MB_OK)
        st = embedder_ref(u->embedder, snap, &c, &emb, &err);
    mb_snapshot_end(snap);
    CHECK(&u->why, st == MB_OK, "%s: %s", name, err.text);
    const struct mb_lsa *lsa = embedding_lsa(emb);
    size_t n = mb_lsa_n_terms(lsa);
    mb_lsa_fold(lsa, hash, tf, 2, out, &coverage);
    if (mb_rng_below(&u->rng, 8) == 0)
        embedder_set_max(u->embedder, mb_rng_below(&u->rng, 2) == 0 ? 0 : MUCH);
    embedder_unref(u->embedder, emb);
    CHECK(&u->why, n == N_TERMS + c.generation, "%s: generation %u, %zu terms",
        name, c.generation, n);
    CHECK(&u->why, coverage > 0.99f, "%s: %f", name, (double)coverage);
    return true;
}

static void
user_main(void *arg)
{
    struct user *u = arg;
    while (
        !atomic_load_explicit(u->stop, memory_order_relaxed) && use_once(u)) {
        atomic_fetch_add_explicit(&u->rounds, 1, memory_order_relaxed);
    }
}

static void
test_ref_when_generations_change_then_each_gets_its_own(void **state)
{
    struct test_store *t = *state;
    struct embedder *e = embedder_new(MUCH);
    struct user users[N_THREADS] = {0};
    atomic_bool stop = false;
    uint64_t seed = mb_test_seed();
    for (size_t i = 0; i < N_COLLECTIONS; i++) {
        serve_next(t, names[i]);
    }
    for (size_t i = 0; i < N_THREADS; i++) {
        users[i].store = t->store;
        users[i].embedder = e;
        users[i].stop = &stop;
        mb_rng_init(&users[i].rng, seed + i);
        assert_ok(
            mb_thread_start(&users[i].thread, "mb-user", user_main, &users[i]));
    }
    for (size_t i = 0; i < N_GENERATIONS; i++) {
        serve_next(t, names[i % N_COLLECTIONS]);
        (void)n_held(e);
    }
    atomic_store_explicit(&stop, true, memory_order_relaxed);
    for (size_t i = 0; i < N_THREADS; i++) {
        mb_thread_join(users[i].thread);
    }
    for (size_t i = 0; i < N_THREADS; i++) {
        assert_string_equal("", users[i].why.text);
        assert_true(users[i].rounds > 0);
    }
    embedder_set_max(e, 0);
    assert_int_equal(0, n_held(e));
    embedder_free(e);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            test_ref_when_nothing_is_served_then_not_found, setup,
            test_store_teardown),
        cmocka_unit_test_setup_teardown(
            test_ref_when_again_then_the_same, setup, test_store_teardown),
        cmocka_unit_test_setup_teardown(
            test_unref_when_no_room_then_freed_with_the_last, setup,
            test_store_teardown),
        cmocka_unit_test_setup_teardown(
            test_set_max_when_lowered_then_unused_go_at_once, setup,
            test_store_teardown),
        cmocka_unit_test_setup_teardown(
            test_ref_when_generations_change_then_each_gets_its_own, setup,
            test_store_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
