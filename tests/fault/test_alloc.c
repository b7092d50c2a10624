/* SPDX-License-Identifier: Apache-2.0
 * tests/fault/test_alloc.c - memory runs out at the n-th allocation.
 *
 * Each step of a store's life (open, create, put, search, read, verify, delete,
 * drop) is tried with the first, the second, ... allocation failing, and all
 * after it, until it gets through. Every failure must be NOMEM, leave the store
 * sound, and leave nothing behind for the leak checker. What the writer does
 * after its answer (scrubbing) meets the same failures, and must recover. */
#include "mb_test_store.h"

#define DIM 8

struct life {
    struct test_store *t;
    mb_status (*step)(struct life *l, struct mb_error *err);
    unsigned n_puts; /* so that each put is of something new */
    struct mb_slice text;
};

static struct mb_slice
none(void)
{
    return mb_slice_of(NULL, 0);
}

/* ---- steps: as few calls that may fail as can be ---- */

static mb_status
step_open(struct life *l, struct mb_error *err)
{
    const struct mb_store_options opt = {
        .create = true, .no_sync = true, .tokenizer = {1}};
    struct mb_store *store;
    mb_status st = mb_store_open(l->t->dir.path, &opt, &store, err);
    if (st == MB_OK)
        mb_store_close(store);
    return st;
}

static mb_status
apply(struct life *l, struct mb_op *op, struct mb_error *err)
{
    mb_status st = mb_store_apply(l->t->store, op, err);
    mb_op_free(op);
    return st;
}

static mb_status
step_create(struct life *l, struct mb_error *err)
{
    struct mb_collection_settings s;
    struct mb_op *op;
    mb_collection_settings_default(&s);
    mb_status st = mb_op_create_new(mb_slice_cstr("other"), &s, true, &op, err);
    return st == MB_OK ? apply(l, op, err) : st;
}

static mb_status
step_drop(struct life *l, struct mb_error *err)
{
    struct mb_op *op;
    mb_status st = mb_op_drop_new(mb_slice_cstr("other"), &op, err);
    return st == MB_OK ? apply(l, op, err) : st;
}

static mb_status
with_collection(struct life *l, struct mb_snapshot **snap,
    struct mb_collection *c, struct mb_error *err)
{
    mb_status st = mb_snapshot_begin(l->t->store, snap, err);
    if (st != MB_OK)
        return st;
    st = mb_collection_get(*snap, mb_slice_cstr("vecs"), c, err);
    if (st != MB_OK)
        mb_snapshot_end(*snap);
    return st;
}

/* Replaces one document and adds another. */
static mb_status
step_put(struct life *l, struct mb_error *err)
{
    // {"year": 7}
    static const uint8_t meta[] = {0x81, 0xa4, 'y', 'e', 'a', 'r', 7};
    static const float vectors[2 * DIM] = {1, [DIM + 1] = 1};
    struct mb_snapshot *snap;
    struct mb_collection c;
    struct mb_span spans[1];
    struct mb_op *op;
    char id[16];
    char title[32];
    l->n_puts++;
    snprintf(id, sizeof(id), "new%u", l->n_puts);
    snprintf(title, sizeof(title), "version%u", l->n_puts);
    struct mb_put_document docs[2] = {{.id = mb_slice_cstr("d0"),
                                          .title = mb_slice_cstr(title),
                                          .text = l->text,
                                          .segments = spans,
                                          .n_segments = 1,
                                          .vector = vectors},
        {.id = mb_slice_cstr(id),
            .text = l->text,
            .meta = mb_slice_of(meta, sizeof(meta)),
            .segments = spans,
            .n_segments = 1,
            .vector = vectors + DIM}};
    spans[0] = (struct mb_span){0, (uint32_t)l->text.size, 100};
    mb_status st = with_collection(l, &snap, &c, err);
    if (st != MB_OK)
        return st;
    mb_snapshot_end(snap);
    st = mb_op_put_new(&c, l->t->an, docs, 2, &op, err);
    return st == MB_OK ? apply(l, op, err) : st;
}

static mb_status
step_search(struct life *l, struct mb_error *err)
{
    static const float v[DIM] = {1};
    struct mb_snapshot *snap;
    struct mb_collection c;
    struct mb_term *terms;
    struct mb_hit *hits;
    size_t n_terms;
    size_t n;
    struct mb_arena *arena = mb_arena_new((size_t)1 << 30);
    if (arena == NULL)
        return MB_ERR_NOMEM;
    mb_status st = with_collection(l, &snap, &c, err);
    if (st == MB_OK) {
        st = mb_analyze(l->t->an, mb_slice_cstr("kalo mi ru version2 tensa"),
            arena, &terms, &n_terms, err);
        if (st == MB_OK) {
            struct mb_query query = {.coll = &c,
                .k = 10,
                .terms = terms,
                .n_terms = n_terms,
                .vector = v,
                .dim = DIM,
                .coverage = 1};
            st = mb_search(snap, &query, arena, &hits, &n, err);
        }
        mb_snapshot_end(snap);
    }
    if (st == MB_OK && n == 0)
        st = mb_error_set(err, MB_ERR_INTERNAL, "nothing found");
    mb_arena_free(arena);
    return st;
}

static mb_status
step_read(struct life *l, struct mb_error *err)
{
    struct mb_snapshot *snap;
    struct mb_collection c;
    struct mb_document *docs;
    struct mb_slice text;
    size_t n;
    struct mb_arena *arena = mb_arena_new((size_t)1 << 30);
    if (arena == NULL)
        return MB_ERR_NOMEM;
    mb_status st = with_collection(l, &snap, &c, err);
    if (st == MB_OK) {
        st =
            mb_document_list(snap, &c, none(), NULL, 10, arena, &docs, &n, err);
        for (size_t i = 0; st == MB_OK && i < n; i++)
            st = mb_document_text(
                snap, &c, &docs[i], 0, UINT64_MAX, arena, &text, err);
        mb_snapshot_end(snap);
    }
    mb_arena_free(arena);
    return st;
}

static mb_status
step_verify(struct life *l, struct mb_error *err)
{
    struct mb_snapshot *snap;
    struct mb_verify_result result;
    mb_status st = mb_snapshot_begin(l->t->store, &snap, err);
    if (st != MB_OK)
        return st;
    st = mb_store_verify(snap, NULL, NULL, NULL, &result, err);
    mb_snapshot_end(snap);
    if (st == MB_OK && result.n_broken > 0)
        st = mb_error_set(err, MB_ERR_CORRUPT, "verify found damage");
    return st;
}

static mb_status
step_delete(struct life *l, struct mb_error *err)
{
    struct mb_slice ids[] = {mb_slice_cstr("d1"), mb_slice_cstr("d2")};
    struct mb_op *op;
    mb_status st = mb_op_delete_new(mb_slice_cstr("vecs"), ids, 2, &op, err);
    return st == MB_OK ? apply(l, op, err) : st;
}

static mb_status
step_copy(struct life *l, struct mb_error *err)
{
    struct mb_test_dir to = mb_test_dir_begin();
    mb_status st = mb_store_copy(l->t->store, to.path, err);
    mb_test_dir_end(&to);
    return st;
}

/* ---- the frame ---- */

/* One try, for mb_test_each_allocation; memory is short on entry. */
static mb_status
try_step(void *arg)
{
    struct life *l = arg;
    struct mb_error err = {.status = MB_OK};
    mb_status st = l->step(l, &err);
    mb_alloc_fail_after(0);
    if (st != MB_OK && st != MB_ERR_NOMEM)
        fail_msg("%s: %s", mb_status_name(st), err.text);
    if (l->t->store != NULL)
        test_verify(l->t);
    return st;
}

static void
each_allocation(
    struct life *l, mb_status (*step)(struct life *, struct mb_error *))
{
    l->step = step;
    mb_test_each_allocation(try_step, l);
}

static int
setup(void **state)
{
    test_store_setup(state);
    struct test_store *t = *state;
    struct life *l = mb_calloc(1, sizeof(*l));
    struct mb_rng rng;
    char id[16];
    assert_non_null(l);
    l->t = t;
    mb_rng_init(&rng, mb_test_seed());
    l->text = test_words(t->arena, &rng, 500);
    test_create(t, "vecs", MB_EMBED_CLIENT, DIM);
    struct mb_collection c = test_collection(t, "vecs");
    for (int i = 0; i < 5; i++) {
        float v[DIM] = {1, (float)i};
        struct mb_slice text = test_words(t->arena, &rng, 1500);
        snprintf(id, sizeof(id), "d%d", i);
        assert_ok(
            test_apply(t, test_put_op(t, &c, id, "A title", text, none(), v)));
    }
    *state = l;
    return 0;
}

static int
teardown(void **state)
{
    struct life *l = *state;
    void *t = l->t;
    mb_alloc_fail_after(0);
    mb_free(l);
    return test_store_teardown(&t);
}

/* ---- tests ---- */

static void
test_open_when_memory_is_short_then_no_memory(void **state)
{
    struct life *l = *state;
    mb_store_close(l->t->store);
    l->t->store = NULL;
    each_allocation(l, step_open);
    test_store_open(l->t);
    test_verify(l->t);
}

static void
test_open_when_new_and_memory_is_short_then_no_memory(void **state)
{
    struct life *l = *state;
    mb_store_close(l->t->store);
    l->t->store = NULL;
    mb_test_dir_end(&l->t->dir);
    each_allocation(l, step_open);
    test_store_open(l->t);
    test_verify(l->t);
}

static void
test_put_when_memory_is_short_then_no_memory(void **state)
{
    struct life *l = *state;
    each_allocation(l, step_put);
    // Failed ones left nothing; the last replaced one and added one. The
    // answer may be lost after the commit, never the other way round.
    assert_true(test_collection(l->t, "vecs").n_documents >= 6);
    char id[16];
    snprintf(id, sizeof(id), "new%u", l->n_puts);
    assert_non_null(test_text(l->t, "vecs", id));
}

static void
test_search_when_memory_is_short_then_no_memory(void **state)
{
    each_allocation(*state, step_search);
    test_store_reopen(((struct life *)*state)->t); // with cold caches
    each_allocation(*state, step_search);
}

static void
test_read_when_memory_is_short_then_no_memory(void **state)
{
    each_allocation(*state, step_read);
}

static void
test_verify_when_memory_is_short_then_no_memory(void **state)
{
    each_allocation(*state, step_verify);
}

static bool
scrub_done(void *arg)
{
    struct test_store *t = arg;
    struct mb_store_stats stats;
    assert_ok(mb_store_stats(t->store, &stats, NULL));
    return !stats.scrub_pending;
}

static void
test_delete_when_memory_is_short_then_no_memory_and_scrubbed(void **state)
{
    struct life *l = *state;
    each_allocation(l, step_delete);
    assert_int_equal(3, test_collection(l->t, "vecs").n_documents);
    assert_true(mb_test_wait(scrub_done, l->t, 20000));
}

static void
test_create_and_drop_when_memory_is_short_then_no_memory(void **state)
{
    struct life *l = *state;
    each_allocation(l, step_create);
    each_allocation(l, step_drop);
    test_create(l->t, "other", MB_EMBED_NONE, 0);
    assert_true(mb_test_wait(scrub_done, l->t, 20000));
}

static void
test_copy_when_memory_is_short_then_copied(void **state)
{
    struct life *l = *state;
    struct mb_error err = {.status = MB_OK};
    // It needs none of ours.
    mb_alloc_fail_after(1);
    mb_status st = step_copy(l, &err);
    mb_alloc_fail_after(0);
    assert_status(MB_OK, st, &err);
}

int
main(void)
{
#define WITH_STORE(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH_STORE(test_open_when_memory_is_short_then_no_memory),
        WITH_STORE(test_open_when_new_and_memory_is_short_then_no_memory),
        WITH_STORE(test_put_when_memory_is_short_then_no_memory),
        WITH_STORE(test_search_when_memory_is_short_then_no_memory),
        WITH_STORE(test_read_when_memory_is_short_then_no_memory),
        WITH_STORE(test_verify_when_memory_is_short_then_no_memory),
        WITH_STORE(
            test_delete_when_memory_is_short_then_no_memory_and_scrubbed),
        WITH_STORE(test_create_and_drop_when_memory_is_short_then_no_memory),
        WITH_STORE(test_copy_when_memory_is_short_then_copied),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
