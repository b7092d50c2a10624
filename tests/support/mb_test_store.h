/* SPDX-License-Identifier: Apache-2.0
 * tests/support/mb_test_store.h - a store in a temporary folder, and documents
 * put into it in one line. Segments here are cut every TEST_SEGMENT_BYTES, at
 * a space; tests of the store need no tokenizer. */
#ifndef MB_TEST_STORE_H
#define MB_TEST_STORE_H

#include "mb_test.h"

#include "mb_store.h"

#define TEST_SEGMENT_BYTES 600
#define TEST_MAX_SEGMENTS  4096

struct test_store {
    struct mb_test_dir dir;
    struct mb_store *store;
    struct mb_analyzer *an;
    struct mb_arena *arena; /* for whatever a test reads */
    struct mb_error err;
};

static inline void
test_store_open(struct test_store *t)
{
    const struct mb_store_options opt = {.create = true, .no_sync = true};
    assert_status(
        MB_OK, mb_store_open(t->dir.path, &opt, &t->store, &t->err), &t->err);
}

static inline int
test_store_setup(void **state)
{
    struct test_store *t = mb_calloc(1, sizeof(*t));
    assert_non_null(t);
    t->dir = mb_test_dir_begin();
    test_store_open(t);
    assert_ok(mb_analyzer_new("english", &t->an, NULL));
    t->arena = mb_arena_new((size_t)1 << 30);
    assert_non_null(t->arena);
    *state = t;
    return 0;
}

static inline int
test_store_teardown(void **state)
{
    struct test_store *t = *state;
    mb_store_close(t->store);
    mb_analyzer_free(t->an);
    mb_arena_free(t->arena);
    mb_test_dir_end(&t->dir);
    mb_free(t);
    return 0;
}

static inline void
test_store_reopen(struct test_store *t)
{
    mb_store_close(t->store);
    t->store = NULL;
    test_store_open(t);
}

/* Spans of text into out (TEST_MAX_SEGMENTS); returns how many. */
static inline size_t
test_spans(struct mb_slice text, struct mb_span *out)
{
    size_t n = 0;
    uint32_t at = 0;
    do {
        size_t end = at + TEST_SEGMENT_BYTES;
        if (end >= text.size) {
            end = text.size;
        } else {
            while (end > at + 1 && text.data[end - 1] != ' ') {
                end--;
            }
            if (end == at + 1)
                end = at + TEST_SEGMENT_BYTES;
            // Never inside a UTF-8 sequence.
            while ((text.data[end] & 0xc0) == 0x80) {
                end--;
            }
        }
        assert_true(n < TEST_MAX_SEGMENTS);
        out[n++] =
            (struct mb_span){at, (uint32_t)end, (uint32_t)((end - at + 3) / 4)};
        at = (uint32_t)end;
    } while (at < text.size);
    return n;
}

static inline struct mb_collection
test_collection(struct test_store *t, const char *name)
{
    struct mb_snapshot *snap;
    struct mb_collection c;
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_status(MB_OK,
        mb_collection_get(snap, mb_slice_cstr(name), &c, &t->err), &t->err);
    mb_snapshot_end(snap);
    return c;
}

static inline void
test_create(struct test_store *t, const char *name, mb_embedding_kind kind,
    uint32_t dim)
{
    struct mb_collection_settings s;
    struct mb_op *op;
    mb_collection_settings_default(&s);
    s.embedding = kind;
    s.dim = dim;
    assert_status(MB_OK,
        mb_op_create_new(mb_slice_cstr(name), &s, false, &op, &t->err),
        &t->err);
    assert_status(MB_OK, mb_store_apply(t->store, op, &t->err), &t->err);
    mb_op_free(op);
}

/* Apply and free. */
static inline mb_status
test_apply(struct test_store *t, struct mb_op *op)
{
    mb_status st = mb_store_apply(t->store, op, &t->err);
    mb_op_free(op);
    return st;
}

/* An operation that puts one document. */
static inline struct mb_op *
test_put_op(struct test_store *t, const struct mb_collection *c, const char *id,
    const char *title, struct mb_slice text, struct mb_slice meta,
    const float *vector)
{
    struct mb_span *spans = mb_alloc(TEST_MAX_SEGMENTS * sizeof(*spans));
    assert_non_null(spans);
    struct mb_put_document doc = {.id = mb_slice_cstr(id),
        .title = mb_slice_cstr(title),
        .text = text,
        .meta = meta,
        .segments = spans,
        .n_segments = test_spans(text, spans),
        .vector = vector};
    struct mb_op *op = NULL;
    assert_status(
        MB_OK, mb_op_put_new(c, t->an, &doc, 1, &op, &t->err), &t->err);
    mb_free(spans);
    return op;
}

static inline struct mb_put_result
test_put(struct test_store *t, const char *coll, const char *id,
    const char *title, const char *text)
{
    struct mb_collection c = test_collection(t, coll);
    struct mb_put_result result;
    struct mb_op *op = test_put_op(
        t, &c, id, title, mb_slice_cstr(text), mb_slice_of(NULL, 0), NULL);
    assert_status(MB_OK, mb_store_apply(t->store, op, &t->err), &t->err);
    mb_op_put_result(op, &result);
    mb_op_free(op);
    return result;
}

static inline uint64_t
test_delete(struct test_store *t, const char *coll, const char *id)
{
    struct mb_slice slice = mb_slice_cstr(id);
    struct mb_op *op;
    assert_ok(mb_op_delete_new(mb_slice_cstr(coll), &slice, 1, &op, NULL));
    assert_status(MB_OK, mb_store_apply(t->store, op, &t->err), &t->err);
    uint64_t n = mb_op_delete_result(op);
    mb_op_free(op);
    return n;
}

/* Text of a document as a string in the arena; NULL if there is none. */
static inline const char *
test_text(struct test_store *t, const char *coll, const char *id)
{
    struct mb_collection c = test_collection(t, coll);
    struct mb_snapshot *snap;
    struct mb_document doc;
    struct mb_slice text;
    const char *out = NULL;
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    mb_status st = mb_document_find(snap, &c, mb_slice_cstr(id), &doc, &t->err);
    if (st == MB_OK) {
        assert_status(MB_OK,
            mb_document_text(
                snap, &c, &doc, 0, UINT64_MAX, t->arena, &text, &t->err),
            &t->err);
        out = mb_arena_strndup(t->arena, (const char *)text.data, text.size);
    } else {
        assert_int_equal(MB_ERR_NOT_FOUND, st);
    }
    mb_snapshot_end(snap);
    return out;
}

static inline void
test_print_broken(
    void *arg, const char *table, const char *key_hex, const char *what)
{
    MB_TEST_UNUSED(arg);
    print_error("broken: %s %s: %s\n", table, key_hex, what);
}

/* verify must find nothing. Returns the number of records. */
static inline uint64_t
test_verify(struct test_store *t)
{
    struct mb_snapshot *snap;
    struct mb_verify_result result;
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_status(MB_OK,
        mb_store_verify(snap, test_print_broken, NULL, NULL, &result, &t->err),
        &t->err);
    mb_snapshot_end(snap);
    assert_int_equal(0, result.n_broken);
    return result.n_records;
}

/* Words of a made-up language from a seed: n bytes about, in the arena. */
static inline struct mb_slice
test_words(struct mb_arena *arena, struct mb_rng *rng, size_t n)
{
    static const char *const parts[] = {"ka", "lo", "mi", "ru", "ten", "sa",
        "vor", "ne", "pi", "dul", "gra", "he"};
    char *text = mb_arena_alloc(arena, n + 64);
    assert_non_null(text);
    size_t at = 0;
    while (at < n) {
        // Skewed, as words are.
        uint64_t word = mb_rng_below(rng, 1 + mb_rng_below(rng, 4000));
        do {
            const char *p = parts[word % 12];
            memcpy(text + at, p, strlen(p));
            at += strlen(p);
            word /= 12;
        } while (word > 0);
        text[at++] = mb_rng_below(rng, 12) == 0 ? '.' : ' ';
        if (text[at - 1] == '.')
            text[at++] = ' ';
    }
    text[at] = '\0';
    return mb_slice_of(text, at);
}

#endif
