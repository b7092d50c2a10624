/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_document.c - putting, reading, replacing, deleting. */
#include "mb_test_store.h"

#include <math.h>

#include "document.h"

static struct mb_slice
none(void)
{
    return mb_slice_of(NULL, 0);
}

static void
begin(struct test_store *t, struct mb_snapshot **snap, struct mb_collection *c)
{
    assert_ok(mb_snapshot_begin(t->store, snap, NULL));
    assert_ok(mb_collection_get(*snap, mb_slice_cstr("notes"), c, NULL));
}

static int
setup(void **state)
{
    test_store_setup(state);
    test_create(*state, "notes", MB_EMBED_NONE, 0);
    return 0;
}

/* ---- put ---- */

static void
test_put_when_new_then_stored_and_read(void **state)
{
    struct test_store *t = *state;
    struct mb_put_result r =
        test_put(t, "notes", "a", "A title", "Some text about nothing.");
    assert_int_equal(1, r.stored);
    assert_int_equal(0, r.replaced);
    assert_int_equal(0, r.unchanged);
    assert_int_equal(1, r.segments);
    assert_string_equal("Some text about nothing.", test_text(t, "notes", "a"));
    struct mb_collection c = test_collection(t, "notes");
    assert_int_equal(1, c.n_documents);
    assert_int_equal(1, c.n_segments);
    assert_int_equal(24, c.text_bytes);
    assert_int_equal(6, c.n_tokens);
    // Four words, and two of the title twice: "A" counts too.
    assert_int_equal(8, c.sum_lengths);
}

static void
test_put_when_same_then_unchanged(void **state)
{
    struct test_store *t = *state;
    test_put(t, "notes", "a", "t", "text");
    struct mb_store_stats before;
    struct mb_store_stats after;
    assert_ok(mb_store_stats(t->store, &before, NULL));
    struct mb_put_result r = test_put(t, "notes", "a", "t", "text");
    assert_int_equal(1, r.unchanged);
    assert_int_equal(0, r.stored + r.replaced + r.segments);
    assert_ok(mb_store_stats(t->store, &after, NULL));
    assert_int_equal(before.n_commits, after.n_commits);
    assert_int_equal(1, test_collection(t, "notes").n_documents);
}

static void
test_put_when_other_content_then_replaced(void **state)
{
    struct test_store *t = *state;
    test_put(t, "notes", "a", "", "first version");
    struct mb_put_result r = test_put(t, "notes", "a", "", "second one");
    assert_int_equal(1, r.replaced);
    assert_string_equal("second one", test_text(t, "notes", "a"));
    struct mb_collection c = test_collection(t, "notes");
    assert_int_equal(1, c.n_documents);
    assert_int_equal(1, c.n_segments);
    assert_int_equal(2, c.n_terms);
    assert_int_equal(10, c.text_bytes);
    // Only the title or the metadata differing is a change too.
    assert_int_equal(1, test_put(t, "notes", "a", "x", "second one").replaced);
    test_verify(t);
}

static void
test_put_when_same_id_twice_in_one_op_then_last_wins(void **state)
{
    struct test_store *t = *state;
    const struct mb_span spans[] = {{0, 3, 1}};
    const struct mb_put_document docs[] = {
        {.id = mb_slice_cstr("a"),
            .text = mb_slice_cstr("one"),
            .segments = spans,
            .n_segments = 1},
        {.id = mb_slice_cstr("b"),
            .text = mb_slice_cstr("two"),
            .segments = spans,
            .n_segments = 1},
        {.id = mb_slice_cstr("a"),
            .text = mb_slice_cstr("six"),
            .segments = spans,
            .n_segments = 1},
    };
    struct mb_collection c = test_collection(t, "notes");
    struct mb_op *op;
    struct mb_put_result r;
    assert_ok(mb_op_put_new(&c, t->an, docs, 3, &op, NULL));
    assert_int_equal(2, mb_op_put_segments(op));
    assert_ok(mb_store_apply(t->store, op, NULL));
    mb_op_put_result(op, &r);
    mb_op_free(op);
    assert_int_equal(2, r.stored);
    assert_string_equal("six", test_text(t, "notes", "a"));
    assert_string_equal("two", test_text(t, "notes", "b"));
    test_verify(t);
}

static void
test_put_when_empty_text_then_one_segment(void **state)
{
    struct test_store *t = *state;
    test_put(t, "notes", "a", "only a title", "");
    assert_string_equal("", test_text(t, "notes", "a"));
    struct mb_snapshot *snap;
    struct mb_collection c;
    struct mb_segment seg;
    begin(t, &snap, &c);
    assert_ok(mb_segment_get(snap, &c, 0, &seg, NULL));
    assert_int_equal(0, seg.end);
    assert_int_equal(6, seg.length);
    mb_snapshot_end(snap);
    test_put(t, "notes", "b", "", "");
    test_verify(t);
}

static void
test_put_when_long_then_any_range_read(void **state)
{
    struct test_store *t = *state;
    struct mb_rng rng;
    struct mb_snapshot *snap;
    struct mb_collection c;
    struct mb_document doc;
    mb_rng_init(&rng, mb_test_seed());
    struct mb_slice text = test_words(t->arena, &rng, 300000);
    c = test_collection(t, "notes");
    assert_ok(
        test_apply(t, test_put_op(t, &c, "book", "", text, none(), NULL)));
    begin(t, &snap, &c);
    assert_ok(mb_document_find(snap, &c, mb_slice_cstr("book"), &doc, NULL));
    assert_int_equal(text.size, doc.text_bytes);
    assert_true(doc.n_segments > 400);
    for (size_t i = 0; i < 300; i++) {
        uint64_t start = mb_rng_below(&rng, text.size);
        uint64_t end = start + mb_rng_below(&rng, i < 200 ? 2000 : text.size);
        struct mb_slice got;
        assert_status(MB_OK,
            mb_document_text(
                snap, &c, &doc, start, end, t->arena, &got, &t->err),
            &t->err);
        if (end > text.size)
            end = text.size;
        assert_int_equal(end - start, got.size);
        assert_memory_equal(text.data + start, got.data, got.size);
    }
    struct mb_slice got;
    assert_ok(mb_document_text(
        snap, &c, &doc, text.size, text.size + 5, t->arena, &got, NULL));
    assert_int_equal(0, got.size);
    mb_snapshot_end(snap);
    test_verify(t);
}

static void
check_refused(struct test_store *t, mb_status want,
    const struct mb_put_document *doc, const char *cause)
{
    struct mb_collection c = test_collection(t, "notes");
    struct mb_op *op = NULL;
    assert_status(
        want, mb_op_put_new(&c, t->an, doc, 1, &op, &t->err), &t->err);
    assert_null(op);
    assert_error_has(t->err, cause);
}

static void
test_put_when_bad_then_refused_by_name(void **state)
{
    struct test_store *t = *state;
    const struct mb_span whole[] = {{0, 4, 1}};
    const struct mb_span gap[] = {{0, 2, 1}, {3, 4, 1}};
    const struct mb_span short_of[] = {{0, 3, 1}};
    const float vector[1] = {1};
    uint8_t long_id[MB_MAX_DOCUMENT_ID + 1];
    memset(long_id, 'x', sizeof(long_id));
    const struct mb_put_document good = {.id = mb_slice_cstr("doc-1"),
        .text = mb_slice_cstr("text"),
        .segments = whole,
        .n_segments = 1};
    struct mb_put_document d = good;
    d.id = none();
    check_refused(t, MB_ERR_BAD_ARG, &d, "id has 0 bytes");
    d.id = mb_slice_of(long_id, sizeof(long_id));
    check_refused(t, MB_ERR_TOO_LARGE, &d, "401");
    d = good;
    d.text = mb_slice_cstr("te\xff"
                           "t");
    check_refused(t, MB_ERR_BAD_TEXT, &d, "at byte 2");
    assert_error_has(t->err, "doc-1");
    d = good;
    d.title = mb_slice_cstr("\xc0");
    check_refused(t, MB_ERR_BAD_TEXT, &d, "title");
    d = good;
    d.segments = gap;
    d.n_segments = 2;
    check_refused(t, MB_ERR_BAD_ARG, &d, "should begin at 2");
    d = good;
    d.segments = short_of;
    check_refused(t, MB_ERR_BAD_ARG, &d, "segments end at 3");
    d = good;
    d.n_segments = 0;
    check_refused(t, MB_ERR_BAD_ARG, &d, "0 segments");
    d = good;
    d.vector = vector;
    check_refused(t, MB_ERR_MISMATCH, &d, "has a vector");
}

static void
test_put_terms_when_title_then_counted_twice(void **state)
{
    struct test_store *t = *state;
    struct mb_collection c = test_collection(t, "notes");
    struct mb_op *op = test_put_op(
        t, &c, "a", "whale", mb_slice_cstr("whale ship whale"), none(), NULL);
    const uint64_t *hash;
    const float *tf;
    size_t n;
    assert_int_equal(1, mb_op_put_segments(op));
    mb_op_put_terms(op, 0, &hash, &tf, &n);
    assert_int_equal(2, n);
    assert_true(hash[0] == mb_hash64("whale", 5, 0));
    assert_true(tf[0] == 4.0f);
    assert_true(hash[1] == mb_hash64("ship", 4, 0));
    assert_true(tf[1] == 1.0f);
    mb_op_free(op);
}

static void
test_put_when_collection_made_again_then_not_found(void **state)
{
    struct test_store *t = *state;
    struct mb_collection c = test_collection(t, "notes");
    struct mb_op *put =
        test_put_op(t, &c, "a", "", mb_slice_cstr("x"), none(), NULL);
    struct mb_op *drop;
    assert_ok(mb_op_drop_new(mb_slice_cstr("notes"), &drop, NULL));
    assert_ok(test_apply(t, drop));
    assert_status(
        MB_ERR_NOT_FOUND, mb_store_apply(t->store, put, &t->err), &t->err);
    assert_error_has(t->err, "notes");
    test_create(t, "notes", MB_EMBED_NONE, 0);
    assert_status(MB_ERR_NOT_FOUND, test_apply(t, put), &t->err);
    assert_error_has(t->err, "made again");
}

/* ---- client vectors ---- */

static void
test_put_when_client_vector_then_on_first_segment(void **state)
{
    struct test_store *t = *state;
    float v[8] = {1, 0, 0, 0, 0, 0, 0, 0};
    float got[8];
    struct mb_rng rng;
    mb_rng_init(&rng, 7);
    test_create(t, "vecs", MB_EMBED_CLIENT, 8);
    struct mb_collection c = test_collection(t, "vecs");
    assert_int_equal(1, c.generation);
    struct mb_slice text = test_words(t->arena, &rng, 2000);
    assert_ok(test_apply(t, test_put_op(t, &c, "a", "", text, none(), v)));
    assert_ok(test_apply(
        t, test_put_op(t, &c, "b", "", mb_slice_cstr("bare"), none(), NULL)));
    c = test_collection(t, "vecs");
    assert_int_equal(1, c.n_vectors);
    struct mb_snapshot *snap;
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_ok(mb_vector_get(snap, &c, 0, got, NULL));
    assert_true(got[0] > 0.99f);
    assert_status(
        MB_ERR_NOT_FOUND, mb_vector_get(snap, &c, 1, got, NULL), NULL);
    mb_snapshot_end(snap);
    test_verify(t);
    test_delete(t, "vecs", "a");
    assert_int_equal(0, test_collection(t, "vecs").n_vectors);
    v[3] = (float)NAN;
    struct mb_span span = {0, 1, 1};
    struct mb_put_document bad = {.id = mb_slice_cstr("n"),
        .text = mb_slice_cstr("x"),
        .segments = &span,
        .n_segments = 1,
        .vector = v};
    struct mb_op *op;
    assert_status(MB_ERR_BAD_ARG,
        mb_op_put_new(&c, t->an, &bad, 1, &op, &t->err), &t->err);
    assert_error_has(t->err, "not finite at 3");
}

static void
test_put_when_vectors_of_other_generation_then_stale(void **state)
{
    struct test_store *t = *state;
    const float v[4] = {1, 0, 0, 0};
    struct mb_collection c = test_collection(t, "notes");
    struct mb_op *op =
        test_put_op(t, &c, "a", "", mb_slice_cstr("x"), none(), NULL);
    assert_ok(mb_op_put_set_vectors(op, 3, 4, v));
    assert_status(MB_ERR_STALE, mb_store_apply(t->store, op, &t->err), &t->err);
    assert_error_has(t->err, "generation 3");
    mb_op_free(op);
    assert_null(test_text(t, "notes", "a"));
}

/* Serve another tree of a client's vectors; it has none in it. */
static void
switch_generation(struct test_store *t, const char *name)
{
    struct mb_slice coll = mb_slice_cstr(name);
    struct mb_tree *tree;
    struct mb_op *op;
    const float rows[8] = {1, 0, 0, 0, 0, 1, 0, 0};
    const struct mb_tree_options opt = {.n_total = 2, .seed = 1};
    assert_ok(mb_op_generation_begin_new(coll, &op, NULL));
    assert_ok(mb_store_apply(t->store, op, &t->err));
    uint32_t g = mb_op_generation_result(op);
    mb_op_free(op);
    assert_ok(mb_tree_fit(rows, 2, 4, &opt, &tree, NULL));
    assert_ok(mb_op_generation_model_new(
        coll, g, 4, mb_slice_of(NULL, 0), tree, &op, NULL));
    assert_ok(test_apply(t, op));
    mb_tree_free(tree);
    assert_ok(mb_op_generation_switch_new(coll, g, 0, 1, &op, NULL));
    assert_ok(test_apply(t, op));
}

static void
test_put_when_tree_switched_meanwhile_then_client_vector_in_it(void **state)
{
    struct test_store *t = *state;
    const float v[4] = {0, 1, 0, 0};
    float got[4];
    struct mb_snapshot *snap;
    test_create(t, "vecs", MB_EMBED_CLIENT, 4);
    struct mb_collection c = test_collection(t, "vecs");
    struct mb_op *op =
        test_put_op(t, &c, "a", "", mb_slice_cstr("x"), none(), v);
    switch_generation(t, "vecs");
    assert_ok(test_apply(t, op));
    c = test_collection(t, "vecs");
    assert_int_equal(2, c.generation);
    assert_int_equal(1, c.n_vectors);
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_ok(mb_vector_get(snap, &c, 0, got, NULL));
    mb_snapshot_end(snap);
    assert_true(got[1] > 0.99f);
    test_verify(t);
}

/* ---- delete ---- */

static void
test_delete_when_there_then_nothing_left(void **state)
{
    struct test_store *t = *state;
    struct mb_rng rng;
    mb_rng_init(&rng, 3);
    struct mb_snapshot *snap;
    uint64_t rows;
    uint64_t bytes;
    const char *name;
    struct mb_collection c = test_collection(t, "notes");
    struct mb_slice text = test_words(t->arena, &rng, 5000);
    assert_ok(
        test_apply(t, test_put_op(t, &c, "a", "a title", text, none(), NULL)));
    assert_int_equal(1, test_delete(t, "notes", "a"));
    assert_int_equal(0, test_delete(t, "notes", "a"));
    c = test_collection(t, "notes");
    assert_int_equal(0, c.n_documents);
    assert_int_equal(0, c.n_segments);
    assert_int_equal(0, c.n_tokens);
    assert_int_equal(0, c.text_bytes);
    assert_int_equal(0, c.sum_lengths);
    assert_int_equal(0, c.n_terms);
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    for (size_t i = 2; mb_store_table_stats(snap, i, &name, &rows, &bytes);
         i++) {
        if (rows != 0)
            fail_msg("%s has %llu rows", name, (unsigned long long)rows);
    }
    mb_snapshot_end(snap);
    test_verify(t);
}

static void
test_delete_when_some_absent_then_counts_those_there(void **state)
{
    struct test_store *t = *state;
    const struct mb_slice ids[] = {mb_slice_cstr("a"), mb_slice_cstr("zz"),
        mb_slice_cstr("b"), mb_slice_of(NULL, 0), mb_slice_cstr("a")};
    struct mb_op *op;
    test_put(t, "notes", "a", "", "one");
    test_put(t, "notes", "b", "", "two");
    test_put(t, "notes", "c", "", "three");
    assert_ok(mb_op_delete_new(mb_slice_cstr("notes"), ids, 5, &op, NULL));
    assert_ok(mb_store_apply(t->store, op, NULL));
    assert_int_equal(2, mb_op_delete_result(op));
    mb_op_free(op);
    assert_null(test_text(t, "notes", "a"));
    assert_string_equal("three", test_text(t, "notes", "c"));
    test_verify(t);
}

static void
test_delete_when_filter_then_those_that_match(void **state)
{
    struct test_store *t = *state;
    struct mb_collection c = test_collection(t, "notes");
    struct mb_op *op;
    // {"year": 1990 + i}
    for (uint8_t i = 0; i < 20; i++) {
        uint8_t meta[] = {0x81, 0xa4, 'y', 'e', 'a', 'r', 0xcd, 7, 0};
        char id[8];
        meta[8] = (uint8_t)(0xc6 + i);
        snprintf(id, sizeof(id), "d%02u", i);
        assert_ok(test_apply(
            t, test_put_op(t, &c, id, "", mb_slice_cstr("same words"),
                   mb_slice_of(meta, sizeof(meta)), NULL)));
    }
    // {"year": {"$lt": 1995}}
    static const uint8_t filter[] = {0x81, 0xa4, 'y', 'e', 'a', 'r', 0x81, 0xa3,
        '$', 'l', 't', 0xcd, 7, 0xcb};
    const struct mb_value *tree;
    assert_ok(mb_wire_parse(mb_slice_of(filter, sizeof(filter)), NULL, false,
        t->arena, &tree, NULL));
    assert_ok(
        mb_op_delete_where_new(mb_slice_cstr("notes"), tree, &op, &t->err));
    assert_status(MB_OK, mb_store_apply(t->store, op, &t->err), &t->err);
    assert_int_equal(5, mb_op_delete_result(op));
    mb_op_free(op);
    assert_null(test_text(t, "notes", "d04"));
    assert_string_equal("same words", test_text(t, "notes", "d05"));
    test_verify(t);
    // A filter that cannot be understood deletes nothing.
    static const uint8_t bad[] = {
        0x81, 0xa4, 'y', 'e', 'a', 'r', 0x81, 0xa3, '$', 'x', 'x', 1};
    assert_ok(mb_wire_parse(
        mb_slice_of(bad, sizeof(bad)), NULL, false, t->arena, &tree, NULL));
    assert_ok(
        mb_op_delete_where_new(mb_slice_cstr("notes"), tree, &op, &t->err));
    assert_status(
        MB_ERR_BAD_ARG, mb_store_apply(t->store, op, &t->err), &t->err);
    mb_op_free(op);
    assert_int_equal(15, test_collection(t, "notes").n_documents);
}

/* ---- list, find, segments ---- */

static void
test_list_when_paged_then_in_order_of_id(void **state)
{
    struct test_store *t = *state;
    const char *const ids[] = {"b", "a", "d", "ab", "c"};
    const char *const want[] = {"a", "ab", "b", "c", "d"};
    for (size_t i = 0; i < 5; i++) {
        test_put(t, "notes", ids[i], "", ids[i]);
    }
    test_create(t, "other", MB_EMBED_NONE, 0);
    test_put(t, "other", "bb", "", "elsewhere");
    struct mb_snapshot *snap;
    struct mb_collection c;
    struct mb_document *docs;
    size_t n;
    size_t seen = 0;
    struct mb_slice after = none();
    begin(t, &snap, &c);
    do {
        assert_ok(mb_document_list(
            snap, &c, after, NULL, 2, t->arena, &docs, &n, NULL));
        for (size_t i = 0; i < n; i++) {
            assert_slice_str(want[seen], docs[i].id);
            seen++;
        }
        if (n > 0)
            after = docs[n - 1].id;
    } while (n > 0);
    assert_int_equal(5, seen);
    struct mb_document doc;
    assert_status(MB_ERR_NOT_FOUND,
        mb_document_find(snap, &c, mb_slice_cstr("bb"), &doc, &t->err),
        &t->err);
    assert_error_has(t->err, "\"bb\"");
    assert_status(
        MB_ERR_NOT_FOUND, mb_document_find(snap, &c, none(), &doc, NULL), NULL);
    assert_status(
        MB_ERR_NOT_FOUND, mb_document_get(snap, &c, 99, &doc, NULL), NULL);
    mb_snapshot_end(snap);
}

static void
test_segment_scan_when_holes_then_live_ones(void **state)
{
    struct test_store *t = *state;
    test_put(t, "notes", "a", "", "one");
    test_put(t, "notes", "b", "", "two");
    test_put(t, "notes", "c", "", "three");
    test_delete(t, "notes", "b");
    struct mb_snapshot *snap;
    struct mb_collection c;
    struct mb_segment segs[8];
    struct mb_segment seg;
    size_t n;
    begin(t, &snap, &c);
    assert_ok(mb_segment_scan(snap, &c, 0, 8, segs, &n, NULL));
    assert_int_equal(2, n);
    assert_int_equal(0, segs[0].segno);
    assert_int_equal(2, segs[1].segno);
    assert_ok(mb_segment_scan(snap, &c, 1, 8, segs, &n, NULL));
    assert_int_equal(1, n);
    assert_ok(mb_segment_scan(snap, &c, 3, 8, segs, &n, NULL));
    assert_int_equal(0, n);
    assert_status(
        MB_ERR_NOT_FOUND, mb_segment_get(snap, &c, 1, &seg, NULL), NULL);
    assert_ok(mb_segment_get(snap, &c, 2, &seg, NULL));
    assert_int_equal(2, seg.docno);
    uint32_t id;
    uint32_t tf;
    size_t pos = 0;
    struct mb_slice bytes;
    uint32_t df;
    assert_true(mb_forward_next(seg.forward, &pos, &id, &tf));
    assert_ok(mb_term_get(snap, &c, id, &bytes, &df, NULL));
    assert_slice_str("three", bytes);
    assert_int_equal(1, df);
    assert_false(mb_forward_next(seg.forward, &pos, &id, &tf));
    mb_snapshot_end(snap);
}

static void
test_snapshot_when_replaced_meanwhile_then_old_text(void **state)
{
    struct test_store *t = *state;
    struct mb_snapshot *snap;
    struct mb_collection c;
    struct mb_document doc;
    struct mb_slice text;
    test_put(t, "notes", "a", "", "before");
    begin(t, &snap, &c);
    test_put(t, "notes", "a", "", "after");
    assert_ok(mb_document_find(snap, &c, mb_slice_cstr("a"), &doc, NULL));
    assert_ok(
        mb_document_text(snap, &c, &doc, 0, UINT64_MAX, t->arena, &text, NULL));
    assert_slice_str("before", text);
    mb_snapshot_end(snap);
}

/* ---- records ---- */

static void
test_decode_when_cut_then_corrupt(void **state)
{
    struct test_store *t = *state;
    struct mb_snapshot *snap;
    struct mb_collection c;
    struct mb_document doc;
    MB_TEST_UNUSED(state);
    test_put(t, "notes", "a", "title", "text");
    begin(t, &snap, &c);
    assert_ok(mb_document_find(snap, &c, mb_slice_cstr("a"), &doc, NULL));
    // The id lies in the record behind the fixed part and one block start.
    struct mb_slice rec = mb_slice_of(doc.id.data - 68, 68 + 1 + 5 + 4);
    struct document_record out;
    struct mb_segment seg;
    assert_ok(document_decode(rec, &out));
    for (size_t size = 0; size < rec.size; size++) {
        assert_status(MB_ERR_CORRUPT,
            document_decode(mb_slice_of(rec.data, size), &out), NULL);
    }
    for (size_t size = 0; size < 28; size++) {
        assert_status(MB_ERR_CORRUPT,
            segment_decode(mb_slice_of(rec.data, size), &seg), NULL);
    }
    mb_snapshot_end(snap);
}

int
main(void)
{
#define WITH_STORE(fn)                                                         \
    cmocka_unit_test_setup_teardown(fn, setup, test_store_teardown)
    const struct CMUnitTest tests[] = {
        WITH_STORE(test_put_when_new_then_stored_and_read),
        WITH_STORE(test_put_when_same_then_unchanged),
        WITH_STORE(test_put_when_other_content_then_replaced),
        WITH_STORE(test_put_when_same_id_twice_in_one_op_then_last_wins),
        WITH_STORE(test_put_when_empty_text_then_one_segment),
        WITH_STORE(test_put_when_long_then_any_range_read),
        WITH_STORE(test_put_when_bad_then_refused_by_name),
        WITH_STORE(test_put_terms_when_title_then_counted_twice),
        WITH_STORE(test_put_when_collection_made_again_then_not_found),
        WITH_STORE(test_put_when_client_vector_then_on_first_segment),
        WITH_STORE(test_put_when_vectors_of_other_generation_then_stale),
        WITH_STORE(
            test_put_when_tree_switched_meanwhile_then_client_vector_in_it),
        WITH_STORE(test_delete_when_there_then_nothing_left),
        WITH_STORE(test_delete_when_some_absent_then_counts_those_there),
        WITH_STORE(test_delete_when_filter_then_those_that_match),
        WITH_STORE(test_list_when_paged_then_in_order_of_id),
        WITH_STORE(test_segment_scan_when_holes_then_live_ones),
        WITH_STORE(test_snapshot_when_replaced_meanwhile_then_old_text),
        WITH_STORE(test_decode_when_cut_then_corrupt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
