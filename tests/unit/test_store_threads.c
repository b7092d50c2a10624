/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_threads.c - many threads on one store: readers search
 * while the writer puts, deletes and switches generations; several threads
 * write at the same time. Run it under the thread sanitizer too.
 *
 * Documents come in pairs, a<i> and b<i>, that one operation writes with the
 * same version: a snapshot in which they differ is not one transaction.
 * ctest: timeout=300 */
#include "mb_test_store.h"

#include "mb_test_thread.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>

#define DIM         16
#define N_PAIRS     40
#define N_READERS   3
#define N_WRITERS   4
#define MIN_STEPS   300 /* of the writer */
#define MIN_ROUNDS  100 /* of each reader */
#define REBUILD_AT  12  /* steps between two generations */
#define DEADLINE_NS (120 * 1000000000ull)

/* ---- readers beside a writer ---- */

struct shared {
    struct mb_store *store;
    atomic_bool stop;
    /* Newest version of a pair whose commit is over. Release after the commit,
     * acquire before a snapshot: it must be in there. */
    atomic_uint committed[N_PAIRS];
};

struct reader {
    struct shared *shared;
    struct mb_thread *thread;
    struct mb_arena *arena;
    struct mb_analyzer *an;
    struct mb_rng rng;
    uint32_t generation; /* seen last */
    atomic_uint rounds;  /* relaxed: a count */
    unsigned n_generations;
    struct why why;
};

/* The vector that version of a pair has: unit length, like no other. */
static void
vector_of(unsigned pair, unsigned version, float out[DIM])
{
    struct mb_rng rng;
    double sum = 0;
    mb_rng_init(&rng, (uint64_t)pair << 32 | version);
    for (size_t i = 0; i < DIM; i++) {
        out[i] = (float)mb_rng_below(&rng, 2001) / 1000.0f - 1.0f;
        sum += (double)out[i] * (double)out[i];
    }
    for (size_t i = 0; i < DIM; i++) {
        out[i] = (float)((double)out[i] / sqrt(sum));
    }
}

/* Version that a document's text says; false if the text is not of ours. */
static bool
version_of(struct mb_slice text, unsigned pair, unsigned *version)
{
    char want[64];
    char have[64];
    size_t n = text.size < sizeof have - 1 ? text.size : sizeof have - 1;
    memcpy(have, text.data, n);
    have[n] = '\0';
    int size = snprintf(want, sizeof want, "common pair%u version ", pair);
    if (strncmp(have, want, (size_t)size) != 0)
        return false;
    *version = (unsigned)strtoul(have + size, NULL, 10);
    return true;
}

/* One half of a pair in a snapshot: its version, 0 if it is not there. */
static bool
read_half(struct reader *r, struct mb_snapshot *snap,
    const struct mb_collection *c, char half, unsigned pair, unsigned *version)
{
    char id[32];
    struct mb_error err = {0};
    struct mb_document doc;
    struct mb_slice text;
    float want[DIM];
    float have[DIM];
    double dot = 0;
    snprintf(id, sizeof id, "%c%u", half, pair);
    *version = 0;
    mb_status st = mb_document_find(snap, c, mb_slice_cstr(id), &doc, &err);
    if (st == MB_ERR_NOT_FOUND)
        return true;
    CHECK(&r->why, st == MB_OK, "%s: %s", id, err.text);
    st = mb_document_text(snap, c, &doc, 0, UINT64_MAX, r->arena, &text, &err);
    CHECK(&r->why, st == MB_OK, "%s: %s", id, err.text);
    CHECK(&r->why, version_of(text, pair, version), "%s: %.*s", id,
        (int)text.size, (const char *)text.data);
    st = mb_vector_get(snap, c, doc.first_segment, have, &err);
    CHECK(&r->why, st == MB_OK, "%s: %s", id, err.text);
    vector_of(pair, *version, want);
    for (size_t i = 0; i < DIM; i++) {
        dot += (double)want[i] * (double)have[i];
    }
    CHECK(
        &r->why, dot > 0.99, "%s: another one's vector, cosine %.3f", id, dot);
    return true;
}

static bool
check_pair(struct reader *r, struct mb_snapshot *snap,
    const struct mb_collection *c, unsigned pair, unsigned at_least)
{
    unsigned a;
    unsigned b;
    if (!read_half(r, snap, c, 'a', pair, &a) ||
        !read_half(r, snap, c, 'b', pair, &b))
        return false;
    CHECK(&r->why, a == b, "pair %u: versions %u and %u", pair, a, b);
    CHECK(&r->why, a == 0 || a >= at_least, "pair %u: %u, %u was committed",
        pair, a, at_least);
    return true;
}

/* Every hit is there whole, in the order that the header promises. */
static bool
check_hits(struct reader *r, struct mb_snapshot *snap,
    const struct mb_collection *c, const struct mb_hit *hits, size_t n)
{
    struct mb_error err = {0};
    for (size_t i = 0; i < n; i++) {
        struct mb_segment seg;
        struct mb_document doc;
        mb_status st = mb_segment_get(snap, c, hits[i].segno, &seg, &err);
        CHECK(&r->why, st == MB_OK, "hit %zu: %s", i, err.text);
        st = mb_document_get(snap, c, hits[i].docno, &doc, &err);
        CHECK(&r->why, st == MB_OK, "hit %zu: %s", i, err.text);
        CHECK(&r->why, seg.docno == doc.docno, "hit %zu", i);
        CHECK(&r->why, !isnan(hits[i].dense), "hit %zu has no vector", i);
        CHECK(&r->why, i == 0 || hits[i - 1].score >= hits[i].score,
            "hits %zu and %zu", i - 1, i);
    }
    return true;
}

static bool
search(struct reader *r, struct mb_snapshot *snap,
    const struct mb_collection *c, mb_search_mode mode, const float *vector)
{
    struct mb_error err = {0};
    struct mb_term *terms = NULL;
    struct mb_hit *hits = NULL;
    size_t n_terms = 0;
    size_t n = 0;
    mb_status st = mb_analyze(r->an, mb_slice_cstr("a common version"),
        r->arena, &terms, &n_terms, &err);
    CHECK(&r->why, st == MB_OK, "%s", err.text);
    // All of them, so that how many there are can be told from the counters.
    struct mb_query q = {.coll = c,
        .mode = mode,
        .k = 2 * N_PAIRS,
        .terms = terms,
        .n_terms = n_terms,
        .vector = vector,
        .dim = DIM,
        .coverage = 1,
        .exact = true};
    st = mb_search(snap, &q, r->arena, &hits, &n, &err);
    CHECK(&r->why, st == MB_OK, "%s", err.text);
    CHECK(&r->why, n == c->n_segments, "mode %d: %zu of %" PRIu64, (int)mode, n,
        c->n_segments);
    if (!check_hits(r, snap, c, hits, n))
        return false;
    // And down the tree, which readers share with each other and the writer.
    q.exact = false;
    q.nprobe = 2;
    q.k = 10;
    st = mb_search(snap, &q, r->arena, &hits, &n, &err);
    CHECK(&r->why, st == MB_OK, "%s", err.text);
    return check_hits(r, snap, c, hits, n);
}

static bool
read_snapshot(struct reader *r, struct mb_snapshot *snap, unsigned pair,
    unsigned at_least)
{
    static const mb_search_mode modes[] = {
        MB_SEARCH_HYBRID, MB_SEARCH_DENSE, MB_SEARCH_LEXICAL};
    struct mb_error err = {0};
    struct mb_collection c;
    float vector[DIM];
    mb_status st = mb_collection_get(snap, mb_slice_cstr("pairs"), &c, &err);
    CHECK(&r->why, st == MB_OK, "%s", err.text);
    CHECK(&r->why, c.n_documents % 2 == 0, "%" PRIu64, c.n_documents);
    CHECK(&r->why, c.n_vectors == c.n_segments, "%" PRIu64, c.n_vectors);
    CHECK(&r->why, c.generation >= r->generation, "%u after %u", c.generation,
        r->generation);
    r->n_generations += c.generation > r->generation;
    r->generation = c.generation;
    if (!check_pair(r, snap, &c, pair, at_least))
        return false;
    vector_of(pair, at_least + 1, vector);
    for (size_t i = 0; i < 3; i++) {
        if (!search(r, snap, &c, modes[i], vector))
            return false;
    }
    // It is the same snapshot still, whatever was committed meanwhile.
    return check_pair(r, snap, &c, pair, at_least);
}

static bool
read_once(struct reader *r)
{
    struct mb_error err = {0};
    struct mb_snapshot *snap = NULL;
    unsigned pair = (unsigned)mb_rng_below(&r->rng, N_PAIRS);
    unsigned at_least =
        atomic_load_explicit(&r->shared->committed[pair], memory_order_acquire);
    mb_arena_reset(r->arena);
    mb_status st = mb_snapshot_begin(r->shared->store, &snap, &err);
    CHECK(&r->why, st == MB_OK, "%s", err.text);
    bool ok = read_snapshot(r, snap, pair, at_least);
    mb_snapshot_end(snap);
    return ok;
}

static void
reader_main(void *arg)
{
    struct reader *r = arg;
    while (!atomic_load_explicit(&r->shared->stop, memory_order_relaxed)) {
        if (!read_once(r)) {
            atomic_store_explicit(&r->shared->stop, true, memory_order_relaxed);
            return;
        }
        atomic_fetch_add_explicit(&r->rounds, 1, memory_order_relaxed);
    }
}

static void
put_pair(
    struct test_store *t, struct shared *s, unsigned pair, unsigned version)
{
    struct mb_collection c = test_collection(t, "pairs");
    char text[96];
    char ids[2][32];
    float vector[DIM];
    struct mb_put_document docs[2];
    struct mb_op *op = NULL;
    int size =
        snprintf(text, sizeof text, "common pair%u version %u", pair, version);
    struct mb_span span = {0, (uint32_t)size, 4};
    vector_of(pair, version, vector);
    for (size_t i = 0; i < 2; i++) {
        snprintf(ids[i], sizeof ids[i], "%c%u", i == 0 ? 'a' : 'b', pair);
        docs[i] = (struct mb_put_document){.id = mb_slice_cstr(ids[i]),
            .text = mb_slice_cstr(text),
            .segments = &span,
            .n_segments = 1,
            .vector = vector};
    }
    assert_status(
        MB_OK, mb_op_put_new(&c, t->an, docs, 2, &op, &t->err), &t->err);
    assert_status(MB_OK, test_apply(t, op), &t->err);
    atomic_store_explicit(&s->committed[pair], version, memory_order_release);
}

static void
delete_pair(struct test_store *t, unsigned pair)
{
    char ids[2][32];
    struct mb_slice slices[2];
    struct mb_op *op = NULL;
    for (size_t i = 0; i < 2; i++) {
        snprintf(ids[i], sizeof ids[i], "%c%u", i == 0 ? 'a' : 'b', pair);
        slices[i] = mb_slice_cstr(ids[i]);
    }
    assert_ok(mb_op_delete_new(mb_slice_cstr("pairs"), slices, 2, &op, NULL));
    assert_status(MB_OK, test_apply(t, op), &t->err);
}

/* Vectors of all live segments: how many. */
static size_t
collect(struct test_store *t, mb_segno *segnos, float *vectors)
{
    struct mb_collection c = test_collection(t, "pairs");
    struct mb_segment segs[2 * N_PAIRS];
    struct mb_snapshot *snap;
    size_t n;
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_ok(mb_segment_scan(snap, &c, 0, 2 * N_PAIRS, segs, &n, NULL));
    for (size_t i = 0; i < n; i++) {
        segnos[i] = segs[i].segno;
        assert_status(MB_OK,
            mb_vector_get(snap, &c, segnos[i], vectors + i * DIM, &t->err),
            &t->err);
    }
    mb_snapshot_end(snap);
    return n;
}

/* A generation with a tree of its own, served; the old one erased. */
static void
rebuild(struct test_store *t, uint64_t seed)
{
    const struct mb_slice name = mb_slice_cstr("pairs");
    const struct mb_tree_options opt = {
        .fanout = 4, .leaf_target = 8, .flat_below = 1, .seed = seed};
    struct mb_collection c = test_collection(t, "pairs");
    mb_segno segnos[2 * N_PAIRS];
    float vectors[2 * N_PAIRS * DIM];
    size_t n = collect(t, segnos, vectors);
    struct mb_tree *tree = NULL;
    struct mb_op *op;
    bool done = false;
    assert_ok(mb_op_generation_begin_new(name, &op, NULL));
    assert_status(MB_OK, mb_store_apply(t->store, op, &t->err), &t->err);
    uint32_t g = mb_op_generation_result(op);
    mb_op_free(op);
    assert_status(
        MB_OK, mb_tree_fit(vectors, n, DIM, &opt, &tree, &t->err), &t->err);
    assert_ok(mb_op_generation_model_new(
        name, g, DIM, mb_slice_of(NULL, 0), tree, &op, NULL));
    mb_tree_free(tree);
    assert_status(MB_OK, test_apply(t, op), &t->err);
    assert_ok(mb_op_generation_add_new(
        name, g, DIM, segnos, vectors, NULL, n, &op, NULL));
    assert_status(MB_OK, test_apply(t, op), &t->err);
    assert_ok(mb_op_generation_switch_new(name, g, c.next_segno, n, &op, NULL));
    assert_status(MB_OK, test_apply(t, op), &t->err);
    while (!done) {
        assert_ok(mb_op_generation_purge_new(name, c.generation, &op, NULL));
        assert_status(MB_OK, mb_store_apply(t->store, op, &t->err), &t->err);
        done = mb_op_generation_purge_is_done(op);
        mb_op_free(op);
    }
}

static void
readers_start(struct shared *s, struct reader *readers, uint64_t seed)
{
    for (size_t i = 0; i < N_READERS; i++) {
        struct reader *r = &readers[i];
        r->shared = s;
        mb_rng_init(&r->rng, seed + 1 + i);
        r->arena = mb_arena_new((size_t)64 << 20);
        assert_non_null(r->arena);
        assert_ok(mb_analyzer_new("english", &r->an, NULL));
        assert_ok(mb_thread_start(&r->thread, "mb-reader", reader_main, r));
    }
}

/* Has one found something wrong, or have all read enough? Atomics are all that
 * may be looked at while they run. */
static bool
readers_are_done(const struct shared *s, const struct reader *readers)
{
    if (atomic_load_explicit(&s->stop, memory_order_relaxed))
        return true;
    for (size_t i = 0; i < N_READERS; i++) {
        if (atomic_load_explicit(&readers[i].rounds, memory_order_relaxed) <
            MIN_ROUNDS)
            return false;
    }
    return true;
}

static void
test_search_while_written_then_each_snapshot_is_whole(void **state)
{
    struct test_store *t = *state;
    struct shared s = {.store = t->store};
    struct reader readers[N_READERS] = {0};
    struct mb_rng rng;
    unsigned version = 1;
    unsigned steps = 0;
    uint64_t seed = mb_test_seed();
    uint64_t end = mb_clock_ns() + DEADLINE_NS;
    mb_rng_init(&rng, seed);
    test_create(t, "pairs", MB_EMBED_CLIENT, DIM);
    for (unsigned i = 0; i < N_PAIRS; i++) {
        put_pair(t, &s, i, version);
    }
    readers_start(&s, readers, seed);
    while (steps < MIN_STEPS ||
           (!readers_are_done(&s, readers) && mb_clock_ns() < end)) {
        unsigned pair = (unsigned)mb_rng_below(&rng, N_PAIRS);
        if (mb_rng_below(&rng, 4) == 0)
            delete_pair(t, pair);
        else
            put_pair(t, &s, pair, ++version);
        if (++steps % REBUILD_AT == 0)
            rebuild(t, seed + steps);
    }
    atomic_store_explicit(&s.stop, true, memory_order_relaxed);
    for (size_t i = 0; i < N_READERS; i++) {
        mb_thread_join(readers[i].thread);
        mb_analyzer_free(readers[i].an);
        mb_arena_free(readers[i].arena);
    }
    for (size_t i = 0; i < N_READERS; i++) {
        assert_string_equal("", readers[i].why.text);
        assert_true(readers[i].rounds >= MIN_ROUNDS);
        assert_true(readers[i].n_generations >= 2);
    }
    test_verify(t);
}

/* ---- several that write ---- */

struct author {
    struct mb_store *store;
    struct mb_thread *thread;
    struct mb_analyzer *an;
    unsigned number;
    struct why why;
};

#define N_OWN 30 /* documents an author puts; every third it deletes again */

static bool
read_back(struct author *a, const char *id, mb_status want)
{
    struct mb_error err = {0};
    struct mb_snapshot *snap = NULL;
    struct mb_collection c;
    struct mb_document doc;
    mb_status st = mb_snapshot_begin(a->store, &snap, &err);
    CHECK(&a->why, st == MB_OK, "%s", err.text);
    st = mb_collection_get(snap, mb_slice_cstr("notes"), &c, &err);
    if (st == MB_OK)
        st = mb_document_find(snap, &c, mb_slice_cstr(id), &doc, &err);
    mb_snapshot_end(snap);
    CHECK(&a->why, st == want, "%s: %s", id, mb_status_name(st));
    return true;
}

static bool
write_one(struct author *a, unsigned i)
{
    struct mb_error err = {0};
    struct mb_snapshot *snap = NULL;
    struct mb_collection c;
    struct mb_op *op = NULL;
    char id[32];
    char text[64];
    snprintf(id, sizeof id, "%u-%u", a->number, i);
    int size =
        snprintf(text, sizeof text, "note %u of author %u", i, a->number);
    struct mb_span span = {0, (uint32_t)size, 5};
    struct mb_put_document doc = {.id = mb_slice_cstr(id),
        .text = mb_slice_cstr(text),
        .segments = &span,
        .n_segments = 1};
    mb_status st = mb_snapshot_begin(a->store, &snap, &err);
    CHECK(&a->why, st == MB_OK, "%s", err.text);
    st = mb_collection_get(snap, mb_slice_cstr("notes"), &c, &err);
    mb_snapshot_end(snap);
    if (st == MB_OK)
        st = mb_op_put_new(&c, a->an, &doc, 1, &op, &err);
    if (st == MB_OK)
        st = mb_store_apply(a->store, op, &err);
    mb_op_free(op);
    CHECK(&a->why, st == MB_OK, "%s: %s", id, err.text);
    if (!read_back(a, id, MB_OK))
        return false;
    if (i % 3 != 0)
        return true;
    st = mb_op_delete_new(mb_slice_cstr("notes"), &doc.id, 1, &op, &err);
    CHECK(&a->why, st == MB_OK, "%s: %s", id, err.text);
    st = mb_store_apply(a->store, op, &err);
    uint64_t n = mb_op_delete_result(op);
    mb_op_free(op);
    CHECK(&a->why, st == MB_OK && n == 1, "%s: %s", id, err.text);
    return read_back(a, id, MB_ERR_NOT_FOUND);
}

static void
author_main(void *arg)
{
    struct author *a = arg;
    for (unsigned i = 0; i < N_OWN && write_one(a, i); i++) {
    }
}

/* Of the authors, when all are done. */
static void
check_written(struct test_store *t)
{
    struct mb_store_stats stats;
    assert_int_equal(N_WRITERS * (N_OWN - N_OWN / 3),
        test_collection(t, "notes").n_documents);
    assert_ok(mb_store_stats(t->store, &stats, NULL));
    assert_int_equal(0, stats.queued_ops);
    // One more made the collection.
    assert_int_equal(1 + N_WRITERS * (N_OWN + N_OWN / 3), stats.n_ops);
    test_verify(t);
}

static void
test_apply_when_from_many_threads_then_each_reads_its_own(void **state)
{
    struct test_store *t = *state;
    struct author authors[N_WRITERS] = {0};
    struct mb_store_stats stats;
    char copy[MB_TEST_PATH];
    test_create(t, "notes", MB_EMBED_NONE, 0);
    for (unsigned i = 0; i < N_WRITERS; i++) {
        authors[i].store = t->store;
        authors[i].number = i;
        assert_ok(mb_analyzer_new("english", &authors[i].an, NULL));
        assert_ok(mb_thread_start(
            &authors[i].thread, "mb-author", author_main, &authors[i]));
    }
    // Whoever looks on sees whole states.
    for (int i = 0; i < 3; i++) {
        assert_ok(mb_store_stats(t->store, &stats, NULL));
        test_verify(t);
    }
    assert_status(MB_OK,
        mb_store_copy(t->store, mb_test_path(&t->dir, "copy", copy), &t->err),
        &t->err);
    for (size_t i = 0; i < N_WRITERS; i++) {
        mb_thread_join(authors[i].thread);
        mb_analyzer_free(authors[i].an);
    }
    for (size_t i = 0; i < N_WRITERS; i++) {
        assert_string_equal("", authors[i].why.text);
    }
    check_written(t);
    // The copy was taken in between: a store of its own, whole.
    const struct mb_store_options opt = {.read_only = true};
    struct mb_store *main_store = t->store;
    assert_status(
        MB_OK, mb_store_open(copy, &opt, &t->store, &t->err), &t->err);
    test_verify(t);
    mb_store_close(t->store);
    t->store = main_store;
}

/* ---- closing ---- */

struct tally {
    atomic_uint n_done; /* relaxed; the join of the writer orders it */
    atomic_uint n_bad;
};

static void
count_done(
    void *arg, struct mb_op *op, mb_status st, const struct mb_error *err)
{
    struct tally *tally = arg;
    MB_TEST_UNUSED(err);
    atomic_fetch_add_explicit(&tally->n_done, 1, memory_order_relaxed);
    if (st != MB_OK)
        atomic_fetch_add_explicit(&tally->n_bad, 1, memory_order_relaxed);
    mb_op_free(op);
}

static void
test_close_when_operations_wait_then_all_are_done(void **state)
{
    enum { N = 50 };

    struct test_store *t = *state;
    struct tally tally = {0};
    test_create(t, "notes", MB_EMBED_NONE, 0);
    struct mb_collection c = test_collection(t, "notes");
    for (unsigned i = 0; i < N; i++) {
        char id[16];
        snprintf(id, sizeof id, "d%u", i);
        struct mb_op *op = test_put_op(t, &c, id, "",
            mb_slice_cstr("left in the queue"), mb_slice_of(NULL, 0), NULL);
        assert_status(MB_OK,
            mb_store_submit(t->store, op, count_done, &tally, &t->err),
            &t->err);
    }
    test_store_reopen(t);
    assert_int_equal(N, tally.n_done);
    assert_int_equal(0, tally.n_bad);
    assert_int_equal(N, test_collection(t, "notes").n_documents);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            test_search_while_written_then_each_snapshot_is_whole,
            test_store_setup, test_store_teardown),
        cmocka_unit_test_setup_teardown(
            test_apply_when_from_many_threads_then_each_reads_its_own,
            test_store_setup, test_store_teardown),
        cmocka_unit_test_setup_teardown(
            test_close_when_operations_wait_then_all_are_done, test_store_setup,
            test_store_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
