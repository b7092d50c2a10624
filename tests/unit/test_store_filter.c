/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_filter.c - the filter language, rule by rule.
 *
 * Ten documents, a table of filters, and for each the letters of those that
 * match. Random filters against a plain evaluator: tests/integration/filters.py.
 * Filters and metadata are values in static memory, written by macros. */
#include "mb_test_store.h"

#include <math.h>

#include "internal.h"

/* ---- values ---- */

#define N_OF(type, ...) (sizeof((const type[]){__VA_ARGS__}) / sizeof(type))
#define NIL                                                                    \
    {                                                                          \
        .type = MB_TYPE_NIL                                                    \
    }
#define BOOL(x)                                                                \
    {                                                                          \
        .type = MB_TYPE_BOOL, .b = (x)                                         \
    }
#define INT(x)                                                                 \
    {                                                                          \
        .type = MB_TYPE_INT, .i = (x)                                          \
    }
#define UINT(x)                                                                \
    {                                                                          \
        .type = MB_TYPE_UINT, .u = (x)                                         \
    }
#define NUM(x)                                                                 \
    {                                                                          \
        .type = MB_TYPE_FLOAT, .f = (x)                                        \
    }
#define TEXT(x)                                                                \
    {                                                                          \
        (const uint8_t *)("" x), sizeof(x) - 1                                 \
    }
#define STR(x)                                                                 \
    {                                                                          \
        .type = MB_TYPE_STR, .s = TEXT(x)                                      \
    }
#define BIN(x)                                                                 \
    {                                                                          \
        .type = MB_TYPE_BIN, .s = TEXT(x)                                      \
    }
#define NO_LIST                                                                \
    {                                                                          \
        .type = MB_TYPE_ARRAY                                                  \
    }
#define LIST(...)                                                              \
    {                                                                          \
        .type = MB_TYPE_ARRAY, .array = {                                      \
            .items = (const struct mb_value[]){__VA_ARGS__},                   \
            .n = N_OF(struct mb_value, __VA_ARGS__)                            \
        }                                                                      \
    }
#define NO_MAP                                                                 \
    {                                                                          \
        .type = MB_TYPE_MAP                                                    \
    }
#define MAP(...)                                                               \
    {                                                                          \
        .type = MB_TYPE_MAP, .map = {                                          \
            .pairs = (const struct mb_pair[]){__VA_ARGS__},                    \
            .n = N_OF(struct mb_pair, __VA_ARGS__)                             \
        }                                                                      \
    }
#define IS(key, ...)                                                           \
    {                                                                          \
        TEXT(key), __VA_ARGS__                                                 \
    }
/* {field: {op: value}} */
#define OP(field, op, ...) MAP(IS(field, MAP(IS(op, __VA_ARGS__))))

#define X25  "xxxxxxxxxxxxxxxxxxxxxxxxx"
#define LONG X25 X25 X25 X25 X25 X25
#define E53  9007199254740992

/* Document i has the id 'a' + i. */
static const struct mb_value metas[] = {
    /* a */ MAP(IS("year", INT(1990)), IS("lang", STR("en")),
        IS("tags", LIST(STR("red"), STR("blue")))),
    /* b */
    MAP(IS("year", NUM(2000.5)), IS("lang", STR("de")),
        IS("tags", LIST(STR("blue")))),
    /* c */
    MAP(IS("year", STR("1990")), IS("lang", STR("EN")),
        IS("draft", BOOL(true))),
    /* d */
    MAP(IS("year", NIL), IS("lang", LIST(STR("en"), STR("fr"))),
        IS("draft", BOOL(false))),
    /* e */ NO_MAP,
    /* f */
    MAP(IS("year", LIST(INT(1980), INT(2010))), IS("deep", MAP(IS("x", NIL))),
        IS("tags", NO_LIST)),
    /* g */ MAP(IS("big", INT(E53 + 1)), IS("n", INT(-1))),
    /* h */
    MAP(IS("big", NUM(E53)), IS("n", INT(0)), IS("lang", STR(LONG "1"))),
    /* i */
    MAP(IS("big", UINT(UINT64_MAX)), IS("lang", STR(LONG "2")),
        IS("n", NUM(-0.0)), IS("odd", NUM(NAN))),
    /* j */
    MAP(IS("n", INT(1)), IS("lang", STR("")), IS("$price", INT(3)),
        IS("", BOOL(true))),
};

#define N_DOCS (sizeof metas / sizeof metas[0])
/* The document that has several segments. */
#define LONG_DOC 9

struct rule {
    const char *name;
    struct mb_value filter;
    const char *want; /* letters; or what the refusal says */
};

static const struct rule rules[] = {
    {"empty map", NO_MAP, "abcdefghij"},
    // Equality, and that types never convert.
    {"int", MAP(IS("year", INT(1990))), "a"},
    {"int as float", MAP(IS("year", NUM(1990))), "a"},
    {"int as string", MAP(IS("year", STR("1990"))), "c"},
    {"float", OP("year", "$eq", NUM(2000.5)), "b"},
    {"null", MAP(IS("year", NIL)), "d"},
    {"true", MAP(IS("draft", BOOL(true))), "c"},
    {"false is not 0", MAP(IS("n", BOOL(false))), ""},
    {"0 is -0.0", MAP(IS("n", INT(0))), "hi"},
    {"case counts", MAP(IS("lang", STR("EN"))), "c"},
    {"empty string", MAP(IS("lang", STR(""))), "j"},
    {"empty name", MAP(IS("", BOOL(true))), "j"},
    {"absent field", MAP(IS("colour", STR("red"))), ""},
    {"string with NUL", MAP(IS("lang", STR("en\0"))), ""},
    // Every 64-bit integer is itself.
    {"2^53", MAP(IS("big", INT(E53))), "h"},
    {"2^53 + 1", MAP(IS("big", INT(E53 + 1))), "g"},
    {"2^64 - 1", MAP(IS("big", UINT(UINT64_MAX))), "i"},
    {"2^64", MAP(IS("big", NUM(18446744073709551616.0))), ""},
    {"above 2^53", OP("big", "$gt", NUM(E53)), "gi"},
    // Long strings.
    {"long", MAP(IS("lang", STR(LONG "1"))), "h"},
    {"long, its beginning", MAP(IS("lang", STR(LONG))), ""},
    {"long, by the first bytes", OP("lang", "$gte", STR(LONG "2")), "hi"},
    // Lists.
    {"an element", MAP(IS("tags", STR("blue"))), "ab"},
    {"another element", MAP(IS("lang", STR("en"))), "ad"},
    {"$ne: no element", OP("tags", "$ne", STR("red")), "bcdefghij"},
    {"$in", OP("lang", "$in", LIST(STR("de"), STR("fr"), INT(1))), "bd"},
    {"$in nothing", OP("lang", "$in", NO_LIST), ""},
    {"$nin", OP("lang", "$nin", LIST(STR("en"), STR("de"))), "cefghij"},
    {"$nin nothing", OP("lang", "$nin", NO_LIST), "abcdefghij"},
    {"$in with null", OP("year", "$in", LIST(NIL, INT(1990))), "ad"},
    // Complements match what lacks the field.
    {"$ne", OP("year", "$ne", INT(1990)), "bcdefghij"},
    {"$ne null", OP("year", "$ne", NIL), "abcefghij"},
    {"$exists", OP("year", "$exists", BOOL(true)), "abcdf"},
    {"$exists not", OP("year", "$exists", BOOL(false)), "eghij"},
    {"$exists: map", OP("deep", "$exists", BOOL(true)), "f"},
    {"$exists: empty list", OP("tags", "$exists", BOOL(true)), "abf"},
    {"$exists: NaN", OP("odd", "$exists", BOOL(true)), "i"},
    {"$not", MAP(IS("$not", MAP(IS("n", INT(1))))), "abcdefghi"},
    {"$not of all", MAP(IS("$not", NO_MAP)), ""},
    {"$not twice", MAP(IS("$not", MAP(IS("$not", MAP(IS("n", INT(1))))))), "j"},
    // Ranges.
    {"$gt", OP("year", "$gt", INT(1990)), "bf"},
    {"$gte", OP("year", "$gte", INT(1990)), "abf"},
    {"$lt", OP("year", "$lt", INT(1990)), "f"},
    {"$lte", OP("year", "$lte", INT(1990)), "af"},
    {"$lt below zero", OP("n", "$lt", INT(0)), "g"},
    {"$gt minus infinity", OP("n", "$gt", NUM(-INFINITY)), "ghij"},
    {"within",
        MAP(IS("year", MAP(IS("$gte", INT(1990)), IS("$lt", INT(2001))))),
        "ab"}, // f has one value on either side
    {"within nothing",
        MAP(IS("year", MAP(IS("$gt", INT(2)), IS("$lt", INT(1))))), ""},
    {"open at one point",
        MAP(IS("year", MAP(IS("$gt", INT(1990)), IS("$lte", INT(1990))))), ""},
    {"strings", OP("lang", "$gt", STR("de")), "adhi"},
    {"strings from the first", OP("lang", "$gte", STR("")), "abcdhij"},
    {"a range and a value",
        MAP(IS("year", MAP(IS("$ne", INT(1990)), IS("$lt", INT(2100))))), "bf"},
    // Together.
    {"two pairs", MAP(IS("lang", STR("en")), IS("draft", BOOL(false))), "d"},
    {"$and",
        MAP(IS("$and",
            LIST(OP("year", "$gte", INT(1990)), MAP(IS("tags", STR("blue")))))),
        "ab"},
    {"$or",
        MAP(IS("$or", LIST(MAP(IS("draft", BOOL(true))), MAP(IS("n", INT(1))),
                          MAP(IS("tags", STR("red")))))),
        "acj"},
    {"$or of nothing and all", MAP(IS("$or", LIST(NO_MAP, NO_MAP))),
        "abcdefghij"},
    {"$and, $or and a pair",
        MAP(IS("$and", LIST(OP("lang", "$exists", BOOL(true)),
                           OP("n", "$exists", BOOL(false)))),
            IS("$or", LIST(MAP(IS("lang", STR("en"))), MAP(IS("year", NIL)),
                          MAP(IS("lang", STR("de"))))),
            IS("tags", STR("blue"))),
        "ab"},
    {"$or in $and in $not",
        MAP(IS("$not",
            MAP(IS("$and", LIST(MAP(IS("$or", LIST(MAP(IS("lang", STR("en"))),
                                                  MAP(IS("lang", STR("de")))))),
                               OP("year", "$ne", NIL)))))),
        "cdefghij"},
};

/* Filters that make no sense, and a part of what is said. */
static const struct rule refused[] = {
    {"no map", LIST(INT(1)), "map is wanted"},
    {"unknown on a field", OP("year", "$near", INT(1)), "$near"},
    {"unknown above", MAP(IS("$nor", LIST(NO_MAP))), "$nor"},
    {"field that begins with $", MAP(IS("$price", INT(3))), "$price"},
    {"operator without $", OP("deep", "x", INT(1)), "\"x\""},
    {"empty condition", MAP(IS("year", NO_MAP)), "\"year\": empty"},
    {"list for equality", MAP(IS("tags", LIST(STR("red")))), "$in"},
    {"$eq a list", OP("tags", "$eq", LIST(STR("red"))), "\"tags\""},
    {"binary", MAP(IS("year", BIN("x"))), "\"year\""},
    {"NaN", MAP(IS("year", NUM(NAN))), "\"year\""},
    {"range to NaN", OP("year", "$lt", NUM(NAN)), "numbers or strings"},
    {"range to true", OP("year", "$lt", BOOL(true)), "numbers or strings"},
    {"range to null", OP("year", "$gte", NIL), "numbers or strings"},
    {"two types", MAP(IS("year", MAP(IS("$gt", INT(1)), IS("$lt", STR("z"))))),
        "two types"},
    {"two lower bounds",
        MAP(IS("year", MAP(IS("$gt", INT(1)), IS("$gte", INT(2))))),
        "same side"},
    {"$in no list", OP("year", "$in", INT(1)), "take a list"},
    {"$nin a map", OP("year", "$nin", NO_MAP), "take a list"},
    {"$in with a list", OP("year", "$in", LIST(NO_LIST)), "\"year\""},
    {"$exists 1", OP("year", "$exists", INT(1)), "true or false"},
    {"$and a map", MAP(IS("$and", NO_MAP)), "$and takes a list"},
    {"$or nothing", MAP(IS("$or", NO_LIST)), "$or takes a list"},
    {"$or a number", MAP(IS("$or", LIST(INT(1)))), "map is wanted"},
    {"$not a list", MAP(IS("$not", NO_LIST)), "map is wanted"},
    // What comes after what is false is looked at all the same.
    {"second clause",
        MAP(IS("$and", LIST(MAP(IS("n", INT(77))), OP("n", "$near", NIL)))),
        "$near"},
};

/* Some for the tests below. */
static const struct mb_value all = NO_MAP;
static const struct mb_value n_is_1 = MAP(IS("n", INT(1)));
static const struct mb_value without_n = OP("n", "$exists", BOOL(false));
static const struct mb_value not_red =
    MAP(IS("$not", MAP(IS("colour", STR("red")))));

/* ---- the store ---- */

static struct mb_slice
text_of(struct test_store *t, size_t i)
{
    struct mb_rng rng;
    mb_rng_init(&rng, i);
    return i == LONG_DOC ? test_words(t->arena, &rng, 3 * TEST_SEGMENT_BYTES)
                         : mb_slice_cstr("short");
}

static void
put(struct test_store *t, size_t i, const struct mb_value *value)
{
    struct mb_collection c = test_collection(t, "notes");
    const char id[2] = {(char)('a' + i), 0};
    struct mb_buffer meta;
    struct mb_writer w;
    mb_buffer_init(&meta, 4096);
    mb_writer_init(&w, &meta);
    mb_write_value(&w, value);
    assert_ok(w.status);
    assert_ok(test_apply(t, test_put_op(t, &c, id, "", text_of(t, i),
                                mb_buffer_slice(&meta), NULL)));
    mb_buffer_fini(&meta);
}

static int
setup(void **state)
{
    int rc = test_store_setup(state);
    test_create(*state, "notes", MB_EMBED_NONE, 0);
    for (size_t i = 0; i < N_DOCS; i++)
        put(*state, i, &metas[i]);
    return rc;
}

/* Letters of the documents that match, in order. All segments of a document
 * must be in the set, or none. */
static mb_status
match(struct test_store *t, const struct mb_value *filter, char *letters)
{
    struct mb_collection c = test_collection(t, "notes");
    struct mb_snapshot *snap;
    struct bitset set;
    size_t n_set = 0;
    size_t n = 0;
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    mb_status st =
        filter_segments(snap->txn, &c, filter, t->arena, &set, &t->err);
    for (size_t i = 0; st == MB_OK && i < N_DOCS; i++) {
        const char id[2] = {(char)('a' + i), 0};
        struct mb_document doc;
        if (mb_document_find(snap, &c, mb_slice_cstr(id), &doc, NULL) != MB_OK)
            continue;
        bool has = bitset_has(&set, doc.first_segment);
        if (has)
            letters[n++] = id[0];
        for (uint32_t s = 0; s < doc.n_segments; s++) {
            assert_int_equal(has, bitset_has(&set, doc.first_segment + s));
            n_set += has;
        }
    }
    letters[n] = '\0';
    mb_snapshot_end(snap);
    // Nothing but live segments.
    if (st == MB_OK)
        assert_int_equal(n_set, set.n_set);
    return st;
}

static void
check_rules(struct test_store *t)
{
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        char got[N_DOCS + 1];
        assert_status(MB_OK, match(t, &rules[i].filter, got), &t->err);
        if (strcmp(got, rules[i].want) != 0)
            fail_msg("%s: matches \"%s\", wanted \"%s\"", rules[i].name, got,
                rules[i].want);
    }
}

/* ---- tests ---- */

static void
test_filter_when_of_each_rule_then_its_documents(void **state)
{
    check_rules(*state);
}

static void
test_filter_when_not_understood_then_refused_by_name(void **state)
{
    struct test_store *t = *state;
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        char got[N_DOCS + 1];
        mb_status st = match(t, &refused[i].filter, got);
        if (st != MB_ERR_BAD_ARG)
            fail_msg("%s: %s", refused[i].name, mb_status_name(st));
        assert_error_has(t->err, "filter");
        assert_error_has(t->err, refused[i].want);
    }
}

/* All documents replaced by others, then by the first ones again. */
static void
test_filter_when_documents_replaced_then_no_old_value_matches(void **state)
{
    struct test_store *t = *state;
    for (size_t i = 0; i < N_DOCS; i++)
        put(t, i, &metas[(i + 3) % N_DOCS]);
    for (size_t i = 0; i < N_DOCS; i++)
        put(t, i, &metas[i]);
    check_rules(t);
    test_verify(t);
}

static void
test_filter_when_documents_deleted_then_complements_leave_them_out(void **state)
{
    struct test_store *t = *state;
    char got[N_DOCS + 1];
    for (size_t i = 0; i < N_DOCS; i += 2) {
        const char id[2] = {(char)('a' + i), 0};
        assert_int_equal(1, test_delete(t, "notes", id));
    }
    assert_ok(match(t, &all, got));
    assert_string_equal("bdfhj", got);
    assert_ok(match(t, &not_red, got));
    assert_string_equal("bdfhj", got);
    assert_ok(match(t, &without_n, got));
    assert_string_equal("bdf", got);
}

/* Maps within $not: depth levels below the first. */
static struct mb_value
nested(struct test_store *t, size_t depth)
{
    struct mb_value v = n_is_1;
    for (size_t i = 0; i < depth; i++) {
        struct mb_pair *pair = mb_arena_alloc(t->arena, sizeof *pair);
        assert_non_null(pair);
        *pair = (struct mb_pair){mb_slice_cstr("$not"), v};
        v = (struct mb_value){
            .type = MB_TYPE_MAP, .map = {.pairs = pair, .n = 1}};
    }
    return v;
}

static void
test_filter_when_nested_then_up_to_a_limit(void **state)
{
    struct test_store *t = *state;
    char got[N_DOCS + 1];
    struct mb_value v = nested(t, 16);
    assert_status(MB_OK, match(t, &v, got), &t->err);
    assert_string_equal("j", got);
    v = nested(t, 17);
    assert_status(MB_ERR_BAD_ARG, match(t, &v, got), &t->err);
    assert_error_has(t->err, "deeper than 16");
}

/* $or of n times the same clause. */
static struct mb_value
repeated(
    struct test_store *t, size_t n, struct mb_pair *any, struct mb_value clause)
{
    struct mb_value *items = mb_arena_alloc(t->arena, n * sizeof *items);
    assert_non_null(items);
    for (size_t i = 0; i < n; i++)
        items[i] = clause;
    *any = (struct mb_pair){mb_slice_cstr("$or"),
        {.type = MB_TYPE_ARRAY, .array = {.items = items, .n = n}}};
    return (struct mb_value){
        .type = MB_TYPE_MAP, .map = {.pairs = any, .n = 1}};
}

static void
test_filter_when_many_conditions_then_up_to_a_limit(void **state)
{
    struct test_store *t = *state;
    struct mb_pair any;
    char got[N_DOCS + 1];
    struct mb_value v = repeated(t, 1024, &any, n_is_1);
    assert_status(MB_OK, match(t, &v, got), &t->err);
    assert_string_equal("j", got);
    v = repeated(t, 1025, &any, n_is_1);
    assert_status(MB_ERR_BAD_ARG, match(t, &v, got), &t->err);
    assert_error_has(t->err, "1024 conditions");
}

static void
test_filter_when_many_values_then_up_to_a_limit(void **state)
{
    enum { MAX = 65536 };

    struct test_store *t = *state;
    char got[N_DOCS + 1];
    struct mb_value *items = mb_arena_calloc(t->arena, MAX + 1, sizeof *items);
    assert_non_null(items);
    for (int i = 0; i <= MAX; i++)
        items[i] = (struct mb_value){.type = MB_TYPE_INT, .i = i};
    struct mb_pair in = {mb_slice_cstr("$in"),
        {.type = MB_TYPE_ARRAY, .array = {.items = items, .n = MAX}}};
    struct mb_pair field = {mb_slice_cstr("n"),
        {.type = MB_TYPE_MAP, .map = {.pairs = &in, .n = 1}}};
    struct mb_value v = {.type = MB_TYPE_MAP, .map = {.pairs = &field, .n = 1}};
    assert_status(MB_OK, match(t, &v, got), &t->err);
    assert_string_equal("hij", got);
    in.value.array.n = MAX + 1;
    assert_status(MB_ERR_BAD_ARG, match(t, &v, got), &t->err);
    assert_error_has(t->err, "65536 values");
}

static void
test_filter_when_collection_empty_then_nothing(void **state)
{
    struct test_store *t = *state;
    struct mb_snapshot *snap;
    struct bitset set = {.n_set = 77};
    test_create(t, "empty", MB_EMBED_NONE, 0);
    struct mb_collection c = test_collection(t, "empty");
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_ok(
        filter_segments(snap->txn, &c, &not_red, t->arena, &set, &t->err));
    mb_snapshot_end(snap);
    assert_int_equal(0, set.n_set);
    assert_false(bitset_has(&set, 0));
}

/* The same field and value in another collection is not ours. */
static void
test_filter_when_two_collections_then_each_its_own(void **state)
{
    struct test_store *t = *state;
    char got[N_DOCS + 1];
    struct mb_op *op;
    test_create(t, "other", MB_EMBED_NONE, 0);
    assert_ok(
        mb_op_delete_where_new(mb_slice_cstr("other"), &n_is_1, &op, &t->err));
    assert_ok(test_apply(t, op));
    assert_ok(match(t, &n_is_1, got));
    assert_string_equal("j", got);
}

int
main(void)
{
#define TEST(name)                                                             \
    cmocka_unit_test_setup_teardown(name, setup, test_store_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_filter_when_of_each_rule_then_its_documents),
        TEST(test_filter_when_not_understood_then_refused_by_name),
        TEST(test_filter_when_documents_replaced_then_no_old_value_matches),
        TEST(
            test_filter_when_documents_deleted_then_complements_leave_them_out),
        TEST(test_filter_when_nested_then_up_to_a_limit),
        TEST(test_filter_when_many_conditions_then_up_to_a_limit),
        TEST(test_filter_when_many_values_then_up_to_a_limit),
        TEST(test_filter_when_collection_empty_then_nothing),
        TEST(test_filter_when_two_collections_then_each_its_own),
    };
#undef TEST
    return cmocka_run_group_tests(tests, NULL, NULL);
}
