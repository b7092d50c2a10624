/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_lexical_verify.c - every kind of damage to terms,
 * postings, lengths and forward indexes is found and named.
 *
 * Each test changes rows in a write transaction, looks, and gives it up. */
#include "mb_test_store.h"

#include "document.h"
#include "lexical.h"
#include "record.h"

struct fixture {
    struct test_store *t;
    struct mb_collection coll;
    struct kv *kv;
    struct mb_snapshot snap; /* over a write transaction */
    char reports[8192];      /* "table: what\n" each */
    size_t n_broken;
    size_t n_records;
};

/* 150 documents that all have "common", each a word of its own, some deleted
 * and replaced, so that chunks, heads and gaps exist. */
static int
setup(void **state)
{
    struct fixture *f = mb_calloc(1, sizeof *f);
    assert_non_null(f);
    test_store_setup((void **)&f->t);
    test_create(f->t, "notes", MB_EMBED_NONE, 0);
    char *text = mb_alloc(20000);
    assert_non_null(text);
    for (int d = 0; d < 150; d++) {
        char id[16];
        size_t n = 0;
        snprintf(id, sizeof id, "d%d", d);
        for (int w = 0; w < 600; w++) {
            n += (size_t)snprintf(text + n, 20000 - n, "common w%d %s",
                (w * 7 + d) % 900, w % 50 == 0 ? "twice twice " : "");
        }
        test_put(f->t, "notes", id, "Title", text);
    }
    for (int d = 0; d < 150; d += 10) {
        char id[16];
        snprintf(id, sizeof id, "d%d", d);
        if (d % 20 == 0)
            test_delete(f->t, "notes", id);
        else
            test_put(f->t, "notes", id, "Other", "short common text");
    }
    mb_free(text);
    f->coll = test_collection(f->t, "notes");
    mb_store_close(f->t->store);
    f->t->store = NULL;
    struct kv_options opt = {.no_sync = true};
    struct mb_error err = {0};
    assert_status(MB_OK, kv_open(f->t->dir.path, &opt, &f->kv, &err), &err);
    assert_status(MB_OK, kv_begin(f->kv, true, &f->snap.txn, &err), &err);
    *state = f;
    return 0;
}

static int
teardown(void **state)
{
    struct fixture *f = *state;
    void *t = f->t;
    kv_abort(f->snap.txn);
    kv_close(f->kv);
    test_store_teardown(&t);
    mb_free(f);
    return 0;
}

static void
report(void *arg, const char *table, const char *key_hex, const char *what)
{
    struct fixture *f = arg;
    size_t n = strlen(f->reports);
    assert_true(strlen(key_hex) % 2 == 0);
    snprintf(f->reports + n, sizeof f->reports - n, "%s: %s\n", table, what);
}

static void
verify(struct fixture *f)
{
    struct mb_error err = {0};
    struct mb_verify_result result = {0};
    struct verify v = {
        .snap = &f->snap, .report = report, .arg = f, .result = &result};
    f->reports[0] = '\0';
    assert_status(MB_OK, lex_verify(&v, &f->coll, &err), &err);
    f->n_broken = result.n_broken;
    f->n_records = result.n_records;
}

static void
assert_reported(struct fixture *f, const char *part)
{
    verify(f);
    if (f->n_broken == 0 || strstr(f->reports, part) == NULL)
        fail_msg("\"%s\" is not among %zu reports:\n%s", part, f->n_broken,
            f->reports);
}

/* ---- rows ---- */

static uint32_t
id_of(struct fixture *f, const char *term)
{
    uint32_t id = 0;
    assert_ok(lex_term_find(f->snap.txn, f->coll.id, mb_slice_cstr(term), &id));
    return id;
}

/* A copy of the row, in the arena. */
static struct mb_slice
row(struct fixture *f, enum kv_table table, const struct kv_key *key)
{
    struct mb_slice v;
    assert_ok(kv_get(f->snap.txn, table, kv_key_slice(key), &v));
    void *copy = mb_arena_dup(f->t->arena, v.data, v.size);
    assert_non_null(copy);
    return mb_slice_of(copy, v.size);
}

/* Write the row again with byte `at` raised by `by`; sealed or not. */
static void
change(struct fixture *f, enum kv_table table, const struct kv_key *key,
    size_t at, int by, bool seal)
{
    struct mb_slice r = row(f, table, key);
    uint8_t *bytes = mb_arena_dup(f->t->arena, r.data, r.size);
    assert_non_null(bytes);
    assert_true(at < r.size);
    bytes[at] = (uint8_t)(bytes[at] + by);
    if (seal)
        record_seal(bytes, r.size);
    assert_ok(kv_put(
        f->snap.txn, table, kv_key_slice(key), mb_slice_of(bytes, r.size)));
}

static void
erase(struct fixture *f, enum kv_table table, const struct kv_key *key)
{
    assert_ok(kv_del(f->snap.txn, table, kv_key_slice(key)));
}

static void
first_chunk_key(struct fixture *f, const char *term, struct kv_key *key)
{
    struct kv_cursor *c;
    struct mb_slice k;
    uint32_t id = id_of(f, term);
    lex_posting_key(key, f->coll.id, id, 0);
    assert_ok(kv_cursor_open(f->snap.txn, KV_POSTINGS, &c));
    assert_ok(kv_cursor_seek(c, kv_key_slice(key), &k, NULL));
    uint32_t chunk = mb_get_be32(k.data + 8);
    assert_true(chunk != LEX_HEAD);
    kv_cursor_close(c);
    lex_posting_key(key, f->coll.id, id, chunk);
}

static void
head_key(struct fixture *f, const char *term, struct kv_key *key)
{
    lex_posting_key(key, f->coll.id, id_of(f, term), LEX_HEAD);
}

static void
some_segment_key(struct fixture *f, struct kv_key *key)
{
    struct kv_cursor *c;
    struct mb_slice k;
    segment_key(key, f->coll.id, f->coll.next_segno / 2);
    assert_ok(kv_cursor_open(f->snap.txn, KV_SEGMENTS, &c));
    assert_ok(kv_cursor_seek(c, kv_key_slice(key), &k, NULL));
    segment_key(key, f->coll.id, mb_get_be32(k.data + 4));
    kv_cursor_close(c);
}

/* ---- tests ---- */

static void
test_verify_when_sound_then_clean(void **state)
{
    struct fixture *f = *state;
    verify(f);
    assert_string_equal("", f->reports);
    assert_int_equal(0, f->n_broken);
    assert_true(f->n_records > 2 * f->coll.n_terms);
}

static void
test_verify_when_bytes_are_damaged_then_named(void **state)
{
    struct fixture *f = *state;
    struct kv_key key;
    head_key(f, "common", &key);
    change(f, KV_POSTINGS, &key, 20, 1, false);
    assert_reported(f, "postings: term");
    assert_reported(f, "head damaged");
    first_chunk_key(f, "common", &key);
    change(f, KV_POSTINGS, &key, 30, 1, false);
    assert_reported(f, "chunk damaged");
    lex_term_key(&key, f->coll.id, mb_slice_cstr("w5"));
    change(f, KV_TERMS, &key, 0, 1, false);
    assert_reported(f, "terms: damaged");
    kv_key_init(&key);
    kv_key_u32(&key, f->coll.id);
    kv_key_u32(&key, 0);
    change(f, KV_LENGTHS, &key, 0, 1, false);
    assert_reported(f, "lengths: damaged");
}

static void
test_verify_when_a_count_is_changed_then_named(void **state)
{
    struct fixture *f = *state;
    struct kv_key key;
    first_chunk_key(f, "common", &key); // the last tf of the chunk
    struct mb_slice r = row(f, KV_POSTINGS, &key);
    change(f, KV_POSTINGS, &key, r.size - RECORD_CHECKSUM - 1, 1, true);
    assert_reported(f, "segments: forward index and postings");
}

static void
test_verify_when_a_count_is_above_its_bound_then_named(void **state)
{
    struct fixture *f = *state;
    struct kv_key key;
    first_chunk_key(f, "common", &key);
    struct mb_slice r = row(f, KV_POSTINGS, &key);
    change(f, KV_POSTINGS, &key, r.size - RECORD_CHECKSUM - 1, 200, true);
    assert_reported(f, "above the bound of its block");
}

static void
test_verify_when_the_bound_of_a_term_is_low_then_named(void **state)
{
    struct fixture *f = *state;
    struct kv_key key;
    struct mb_slice v;
    struct lex_head head;
    uint8_t bytes[LEX_MAX_RECORD];
    head_key(f, "common", &key);
    v = row(f, KV_POSTINGS, &key);
    assert_true(lex_head_parse(v, &head));
    for (size_t i = 0; i < LEX_POINTS; i++) {
        head.points[i].tf -= head.points[i].tf > 1;
    }
    size_t size = lex_head_encode(&head, bytes);
    assert_ok(kv_put(f->snap.txn, KV_POSTINGS, kv_key_slice(&key),
        mb_slice_of(bytes, size)));
    assert_reported(f, "above the bound of the term");
}

static void
test_verify_when_df_is_wrong_then_named(void **state)
{
    struct fixture *f = *state;
    struct kv_key key;
    head_key(f, "common", &key);
    change(f, KV_POSTINGS, &key, 0, 1, true);
    assert_reported(f, "not as many postings as the head says");
}

static void
test_verify_when_a_chunk_is_lost_then_named(void **state)
{
    struct fixture *f = *state;
    struct kv_key key;
    first_chunk_key(f, "common", &key);
    erase(f, KV_POSTINGS, &key);
    assert_reported(f, "not as many postings as the head says");
    assert_reported(f, "forward index and postings");
}

static void
test_verify_when_a_head_is_lost_then_named(void **state)
{
    struct fixture *f = *state;
    struct kv_key key;
    head_key(f, "common", &key);
    erase(f, KV_POSTINGS, &key);
    assert_reported(f, "postings: chunks without a head");
    assert_reported(f, "has no head");
}

static void
test_verify_when_a_term_row_is_lost_then_named(void **state)
{
    struct fixture *f = *state;
    struct kv_key key;
    lex_term_key(&key, f->coll.id, mb_slice_cstr("w5"));
    erase(f, KV_TERMS, &key);
    assert_reported(f, "its term does not lead to it");
    assert_reported(f, "the collection counts");
}

static void
test_verify_when_a_term_row_leads_astray_then_named(void **state)
{
    struct fixture *f = *state;
    struct kv_key key;
    uint8_t value[4 + RECORD_CHECKSUM];
    lex_term_key(&key, f->coll.id, mb_slice_cstr("w5"));
    mb_put_le32(value, id_of(f, "w6"));
    record_seal(value, sizeof value);
    assert_ok(kv_put(f->snap.txn, KV_TERMS, kv_key_slice(&key),
        mb_slice_of(value, sizeof value)));
    assert_reported(f, "is another one");
}

static void
test_verify_when_a_length_is_changed_then_named(void **state)
{
    struct fixture *f = *state;
    struct kv_key key;
    uint32_t segno;
    some_segment_key(f, &key);
    segno = mb_get_be32(key.bytes + 4);
    kv_key_init(&key);
    kv_key_u32(&key, f->coll.id);
    kv_key_u32(&key, segno / LEX_LENGTHS);
    change(f, KV_LENGTHS, &key, 2 * (segno % LEX_LENGTHS), 1, true);
    assert_reported(f, "lengths sum to");
    assert_reported(f, "the length table says");
}

static void
test_verify_when_a_segment_row_is_lost_then_named(void **state)
{
    struct fixture *f = *state;
    struct kv_key key;
    some_segment_key(f, &key);
    erase(f, KV_SEGMENTS, &key);
    assert_reported(f, "is live but has no sound row");
}

static void
test_verify_when_a_segment_is_gone_from_lengths_then_named(void **state)
{
    struct fixture *f = *state;
    struct kv_key key;
    uint32_t segno;
    some_segment_key(f, &key);
    segno = mb_get_be32(key.bytes + 4);
    kv_key_init(&key);
    kv_key_u32(&key, f->coll.id);
    kv_key_u32(&key, segno / LEX_LENGTHS);
    struct mb_slice r = row(f, KV_LENGTHS, &key);
    size_t at = 2 * (size_t)(segno % LEX_LENGTHS);
    change(f, KV_LENGTHS, &key, at, -(int)r.data[at], true);
    assert_reported(f, "segments live, the collection counts");
    assert_reported(f, "a posting of a segment that is gone");
}

static void
test_verify_when_a_forward_index_is_cut_then_named(void **state)
{
    struct fixture *f = *state;
    struct kv_key key;
    some_segment_key(f, &key);
    struct mb_slice r = row(f, KV_SEGMENTS, &key);
    uint8_t *bytes = mb_arena_dup(f->t->arena, r.data, r.size);
    assert_non_null(bytes);
    size_t size = r.size - 3; // what ends with a gap of 7 bits loses pairs
    record_seal(bytes, size);
    assert_ok(kv_put(f->snap.txn, KV_SEGMENTS, kv_key_slice(&key),
        mb_slice_of(bytes, size)));
    assert_reported(f, "segments: forward index");
}

static void
test_verify_when_memory_is_short_then_no_memory(void **state)
{
    struct fixture *f = *state;
    struct mb_verify_result result = {0};
    struct mb_error err = {0};
    struct verify v = {.snap = &f->snap, .result = &result};
    uint64_t n = 1;
    for (;; n++) {
        mb_alloc_fail_after(n);
        mb_status st = lex_verify(&v, &f->coll, &err);
        mb_alloc_fail_after(0);
        if (st == MB_OK)
            break;
        assert_status(MB_ERR_NOMEM, st, NULL);
    }
    assert_true(n > 4);
    assert_int_equal(0, result.n_broken);
}

#define VERIFY_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        VERIFY_TEST(test_verify_when_sound_then_clean),
        VERIFY_TEST(test_verify_when_bytes_are_damaged_then_named),
        VERIFY_TEST(test_verify_when_a_count_is_changed_then_named),
        VERIFY_TEST(test_verify_when_a_count_is_above_its_bound_then_named),
        VERIFY_TEST(test_verify_when_the_bound_of_a_term_is_low_then_named),
        VERIFY_TEST(test_verify_when_df_is_wrong_then_named),
        VERIFY_TEST(test_verify_when_a_chunk_is_lost_then_named),
        VERIFY_TEST(test_verify_when_a_head_is_lost_then_named),
        VERIFY_TEST(test_verify_when_a_term_row_is_lost_then_named),
        VERIFY_TEST(test_verify_when_a_term_row_leads_astray_then_named),
        VERIFY_TEST(test_verify_when_a_length_is_changed_then_named),
        VERIFY_TEST(test_verify_when_a_segment_row_is_lost_then_named),
        VERIFY_TEST(test_verify_when_a_segment_is_gone_from_lengths_then_named),
        VERIFY_TEST(test_verify_when_a_forward_index_is_cut_then_named),
        VERIFY_TEST(test_verify_when_memory_is_short_then_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
