/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_damage.c - verify against damage of every row.
 *
 * In a small store with rows in all tables each row in turn is changed in one
 * byte, cut by one byte, or taken away; verify must report it every time, and
 * searching and reading must end in an answer or an error. */
#include "mb_test_store.h"

#include "op.h"

#define DIM 8

enum damage { DAMAGE_FLIP, DAMAGE_CUT, DAMAGE_LOSE, DAMAGE_KINDS };

static const char *const damage_names[DAMAGE_KINDS] = {"flip", "cut", "lose"};

/* ---- rows, changed by an operation ---- */

struct set_op {
    struct mb_op base;
    enum kv_table table;
    struct mb_slice key;
    struct mb_slice val; /* no data: erase */
};

static mb_status
set_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct set_op *op = (struct set_op *)base;
    MB_TEST_UNUSED(err);
    w->changed = true;
    if (op->val.data == NULL)
        return kv_del(w->txn, op->table, op->key);
    return kv_put(w->txn, op->table, op->key, op->val);
}

static void
set_free(struct mb_op *op)
{
    mb_free(op);
}

static const struct op_class set_class = {"set", set_body, set_free};

static void
set_row(struct test_store *t, enum kv_table table, struct mb_slice key,
    struct mb_slice val)
{
    struct set_op *op = op_new(&set_class, sizeof(*op));
    assert_non_null(op);
    op->table = table;
    op->key = key;
    op->val = val;
    assert_ok(test_apply(t, &op->base));
}

struct row {
    enum kv_table table;
    struct mb_slice key;
    struct mb_slice val;
};

static struct mb_slice
copy_of(struct test_store *t, struct mb_slice s)
{
    uint8_t *p = mb_arena_alloc(t->arena, s.size + 1);
    assert_non_null(p);
    if (s.size > 0)
        memcpy(p, s.data, s.size);
    return mb_slice_of(p, s.size);
}

/* All rows of a collection's tables and its name, copied into the arena. */
static struct row *
all_rows(struct test_store *t, size_t *n)
{
    struct mb_snapshot *snap;
    size_t max = 4096;
    struct row *rows = mb_arena_alloc(t->arena, max * sizeof(*rows));
    assert_non_null(rows);
    *n = 0;
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    for (unsigned i = KV_COLLECTIONS; i < KV_N_TABLES; i++) {
        struct kv_cursor *c;
        struct mb_slice key;
        struct mb_slice val;
        assert_ok(kv_cursor_open(snap->txn, (enum kv_table)i, &c));
        mb_status st = kv_cursor_seek(c, mb_slice_of(NULL, 0), &key, &val);
        while (st == MB_OK) {
            assert_true(*n < max);
            rows[(*n)++] = (struct row){
                (enum kv_table)i, copy_of(t, key), copy_of(t, val)};
            st = kv_cursor_next(c, &key, &val);
        }
        assert_int_equal(MB_ERR_NOT_FOUND, st);
        kv_cursor_close(c);
    }
    mb_snapshot_end(snap);
    return rows;
}

/* ---- the store ---- */

static int
setup(void **state)
{
    test_store_setup(state);
    struct test_store *t = *state;
    // {"year": 7, "tag": "x"}
    static const uint8_t meta[] = {
        0x82, 0xa4, 'y', 'e', 'a', 'r', 7, 0xa3, 't', 'a', 'g', 0xa1, 'x'};
    struct mb_rng rng;
    char id[16];
    mb_rng_init(&rng, mb_test_seed());
    test_create(t, "vecs", MB_EMBED_CLIENT, DIM);
    for (int i = 0; i < 6; i++) {
        float v[DIM];
        for (int j = 0; j < DIM; j++)
            v[j] = (float)mb_rng_normal(&rng);
        struct mb_collection c = test_collection(t, "vecs");
        snprintf(id, sizeof(id), "d%d", i);
        struct mb_slice text = test_words(t->arena, &rng, i == 0 ? 900 : 60);
        assert_ok(test_apply(t, test_put_op(t, &c, id, "A title", text,
                                    mb_slice_of(meta, sizeof(meta)), v)));
    }
    return 0;
}

static void
count_broken(
    void *arg, const char *table, const char *key_hex, const char *what)
{
    MB_TEST_UNUSED(arg);
    assert_true(table[0] != '\0' && table[0] != '?');
    assert_true(key_hex[0] != '\0');
    assert_true(what[0] != '\0');
}

static uint64_t
n_broken(struct test_store *t)
{
    struct mb_snapshot *snap;
    struct mb_verify_result result;
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_status(MB_OK,
        mb_store_verify(snap, count_broken, NULL, NULL, &result, &t->err),
        &t->err);
    mb_snapshot_end(snap);
    return result.n_broken;
}

/* Read and search as a client would; any answer will do but a crash. */
static void
use_store(struct test_store *t)
{
    struct mb_snapshot *snap;
    struct mb_collection c;
    struct mb_term *terms;
    struct mb_hit *hits;
    struct mb_document *docs;
    struct mb_slice text;
    size_t n_terms;
    size_t n;
    const float v[DIM] = {1};
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    if (mb_collection_get(snap, mb_slice_cstr("vecs"), &c, NULL) == MB_OK) {
        assert_ok(mb_analyze(t->an, mb_slice_cstr("title kalo mi ru"), t->arena,
            &terms, &n_terms, NULL));
        struct mb_query query = {.coll = &c,
            .k = 10,
            .terms = terms,
            .n_terms = n_terms,
            .vector = v,
            .dim = DIM,
            .coverage = 1};
        (void)!mb_search(snap, &query, t->arena, &hits, &n, NULL);
        if (mb_document_list(snap, &c, mb_slice_of(NULL, 0), NULL, 10, t->arena,
                &docs, &n, NULL) != MB_OK)
            n = 0;
        for (size_t i = 0; i < n; i++) {
            (void)!mb_document_text(
                snap, &c, &docs[i], 0, UINT64_MAX, t->arena, &text, NULL);
        }
    }
    mb_snapshot_end(snap);
}

/* ---- tests ---- */

/* Damaged value of a row, in the arena; no data for a row to be lost. */
static struct mb_slice
damaged(struct test_store *t, const struct row *row, enum damage kind,
    struct mb_rng *rng)
{
    struct mb_slice val = copy_of(t, row->val);
    if (kind == DAMAGE_LOSE)
        return mb_slice_of(NULL, 0);
    if (kind == DAMAGE_CUT)
        return mb_slice_of(val.data, val.size - 1);
    uint8_t *bytes = mb_arena_alloc(t->arena, val.size);
    assert_non_null(bytes);
    memcpy(bytes, val.data, val.size);
    bytes[mb_rng_below(rng, val.size)] ^= (uint8_t)(1u << mb_rng_below(rng, 8));
    return mb_slice_of(bytes, val.size);
}

static void
damage_each(struct test_store *t, enum damage kind)
{
    struct mb_rng rng;
    size_t n;
    size_t missed = 0;
    struct row *rows = all_rows(t, &n);
    mb_rng_init(&rng, 11);
    assert_true(n > 50);
    for (size_t i = 0; i < n; i++) {
        if (rows[i].val.size == 0 && kind != DAMAGE_LOSE)
            continue;
        set_row(
            t, rows[i].table, rows[i].key, damaged(t, &rows[i], kind, &rng));
        if (n_broken(t) == 0) {
            print_error("missed: %s of row %zu (%zu bytes) in %s\n",
                damage_names[kind], i, rows[i].val.size,
                kv_table_name(rows[i].table));
            missed++;
        }
        use_store(t);
        set_row(t, rows[i].table, rows[i].key, rows[i].val);
    }
    test_verify(t);
    print_message("%zu rows\n", n);
    assert_int_equal(0, missed);
}

static void
test_verify_when_a_byte_is_changed_then_reported(void **state)
{
    damage_each(*state, DAMAGE_FLIP);
}

static void
test_verify_when_a_row_is_cut_then_reported(void **state)
{
    damage_each(*state, DAMAGE_CUT);
}

static void
test_verify_when_a_row_is_lost_then_reported(void **state)
{
    damage_each(*state, DAMAGE_LOSE);
}

int
main(void)
{
#define WITH_STORE(fn)                                                         \
    cmocka_unit_test_setup_teardown(fn, setup, test_store_teardown)
    const struct CMUnitTest tests[] = {
        WITH_STORE(test_verify_when_a_byte_is_changed_then_reported),
        WITH_STORE(test_verify_when_a_row_is_cut_then_reported),
        WITH_STORE(test_verify_when_a_row_is_lost_then_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
