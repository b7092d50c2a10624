/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_format.c - the example of FORMAT.md, byte by byte.
 *
 * tests/fixtures/store/format-1.hex has all rows of a store with one document.
 * The same document put today makes the same rows; rows put into an empty store
 * as they are make a store that reads, finds and verifies: so neither the
 * writer nor the reader leaves format 1 unnoticed. FORMAT.md quotes the rows.
 * context-1.hex is the same for a store with one context.
 * Times are set to one moment, their records' checksums made anew.
 * A line: table | key | value, in hex; 00*N stands for N zeros. */
#include "mb_test_store.h"

#include "context_rows.h"
#include "op.h"

#define DIM      4
#define MAX_ROWS 64
#define RUN      16            /* zeros in a row that are shown as 00*N */
#define TIME_MS  1767225600000 /* 2026-01-01 */

static const char text_of_a[] = "Nothing to fear but fear.";

/* ---- rows as text ---- */

struct row {
    enum kv_table table;
    struct mb_slice key;
    struct mb_slice val;
};

static void
print_bytes(struct mb_buffer *out, struct mb_slice s)
{
    for (size_t i = 0; i < s.size;) {
        size_t n = 0;
        while (i + n < s.size && s.data[i + n] == 0)
            n++;
        if (n >= RUN) {
            assert_ok(mb_buffer_printf(out, " 00*%zu", n));
            i += n;
        } else {
            assert_ok(mb_buffer_printf(out, " %02x", s.data[i++]));
        }
    }
}

static void
print_row(struct mb_buffer *out, const struct row *row)
{
    mb_buffer_clear(out);
    assert_ok(mb_buffer_printf(out, "%s |", kv_table_name(row->table)));
    print_bytes(out, row->key);
    assert_ok(mb_buffer_append_str(out, " |"));
    print_bytes(out, row->val);
    assert_ok(mb_buffer_append(out, "", 1));
}

/* Bytes of " 01 02 00*20" up to its end or a bar, in the arena. */
static struct mb_slice
parse_bytes(struct test_store *t, const char **at)
{
    uint8_t *out = mb_arena_alloc(t->arena, 8192);
    size_t size = 0;
    const char *p = *at;
    assert_non_null(out);
    while (*p == ' ' && p[1] != '|' && p[1] != '\0') {
        char *end;
        unsigned long byte = strtoul(p + 1, &end, 16);
        unsigned long n = 1;
        if (*end == '*')
            n = strtoul(end + 1, &end, 10);
        assert_true(byte < 256 && size + n <= 8192 && end > p + 1);
        memset(out + size, (int)byte, n);
        size += n;
        p = end;
    }
    *at = *p == ' ' ? p + 1 : p;
    return mb_slice_of(out, size);
}

static struct row
parse_row(struct test_store *t, const char *line)
{
    struct row row = {KV_N_TABLES, {0}, {0}};
    size_t n = strcspn(line, " ");
    const char *at = line + n + 2;
    for (unsigned i = 0; i < KV_N_TABLES; i++) {
        const char *name = kv_table_name((enum kv_table)i);
        if (strlen(name) == n && memcmp(name, line, n) == 0)
            row.table = (enum kv_table)i;
    }
    if (row.table == KV_N_TABLES || line[n] != ' ' || line[n + 1] != '|')
        fail_msg("no row: %s", line);
    row.key = parse_bytes(t, &at);
    assert_int_equal('|', *at++);
    row.val = parse_bytes(t, &at);
    return row;
}

/* The lines of a fixture, in the arena. */
static size_t
lines_of(struct test_store *t, const char *name, const char *lines[MAX_ROWS])
{
    char path[MB_TEST_PATH];
    size_t size;
    size_t n = 0;
    char *all = (char *)mb_test_read_file(mb_test_fixture(name, path), &size);
    for (char *line = all; *line != '\0';) {
        size_t length = strcspn(line, "\n");
        if (length > 0 && line[0] != '#') {
            assert_true(n < MAX_ROWS);
            lines[n++] = mb_arena_strndup(t->arena, line, length);
        }
        line += length + (line[length] == '\n' ? 1 : 0);
    }
    mb_free(all);
    return n;
}

static size_t
fixture_lines(struct test_store *t, const char *lines[MAX_ROWS])
{
    return lines_of(t, "store/format-1.hex", lines);
}

/* ---- rows of a store ---- */

/* Records that say when; their time becomes the same everywhere. */
static void
set_time(struct row *row)
{
    uint8_t *val = (uint8_t *)(uintptr_t)row->val.data; // the arena's copy
    size_t at = row->table == KV_COLLECTIONS ? 0 : 8;
    if (row->table == KV_CONTEXTS && row->key.data[8] == CONTEXT_ROW_RECORD) {
        for (size_t i = 0; i < 24; i += 8) {
            mb_put_le64(val + i, TIME_MS);
        }
        record_seal(val, row->val.size);
    }
    if (row->table != KV_COLLECTIONS && row->table != KV_DOCUMENTS)
        return;
    assert_true(row->val.size > at + 12);
    mb_put_le64(val + at, TIME_MS);
    mb_put_le32(val + row->val.size - 4,
        (uint32_t)mb_hash64(val, row->val.size - 4, 0));
}

static bool
is_row(const struct row *row, const char *name)
{
    return row->table == KV_META &&
           mb_slice_equal(row->key, mb_slice_cstr(name));
}

static struct mb_slice
copy_of(struct test_store *t, struct mb_slice s)
{
    uint8_t *p = mb_arena_alloc(t->arena, s.size + 1);
    assert_non_null(p);
    if (s.size > 0)
        memcpy(p, s.data, s.size);
    return mb_slice_of(p, s.size);
}

/* All rows, copied; but the mark of the scrub, which comes and goes. */
static size_t
all_rows(struct test_store *t, struct row rows[MAX_ROWS])
{
    struct mb_snapshot *snap;
    size_t n = 0;
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    for (unsigned i = 0; i < KV_N_TABLES; i++) {
        struct kv_cursor *c;
        struct row row = {(enum kv_table)i, {0}, {0}};
        assert_ok(kv_cursor_open(snap->txn, row.table, &c));
        mb_status st =
            kv_cursor_seek(c, mb_slice_of(NULL, 0), &row.key, &row.val);
        for (; st == MB_OK; st = kv_cursor_next(c, &row.key, &row.val)) {
            if (is_row(&row, "scrub"))
                continue;
            assert_true(n < MAX_ROWS);
            rows[n] = (struct row){
                row.table, copy_of(t, row.key), copy_of(t, row.val)};
            set_time(&rows[n++]);
        }
        assert_int_equal(MB_ERR_NOT_FOUND, st);
        kv_cursor_close(c);
    }
    mb_snapshot_end(snap);
    return n;
}

/* ---- rows put as they are ---- */

struct set_op {
    struct mb_op base;
    const struct row *row;
};

static mb_status
set_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    const struct row *row = ((struct set_op *)base)->row;
    MB_TEST_UNUSED(err);
    w->changed = true;
    return kv_put(w->txn, row->table, row->key, row->val);
}

static void
set_free(struct mb_op *op)
{
    mb_free(op);
}

static const struct op_class set_class = {"set", set_body, set_free};

static void
set_row(struct test_store *t, const struct row *row)
{
    struct set_op *op = op_new(&set_class, sizeof(*op));
    assert_non_null(op);
    op->row = row;
    assert_ok(test_apply(t, &op->base));
}

/* ---- tests ---- */

static void
put_example(struct test_store *t)
{
    // {"year": 1933}
    static const uint8_t meta[] = {
        0x81, 0xa4, 'y', 'e', 'a', 'r', 0xcd, 7, 0x8d};
    static const float vector[DIM] = {3, 0, -4, 0};
    test_create(t, "notes", MB_EMBED_CLIENT, DIM);
    struct mb_collection c = test_collection(t, "notes");
    assert_ok(
        test_apply(t, test_put_op(t, &c, "a", "Fear", mb_slice_cstr(text_of_a),
                          mb_slice_of(meta, sizeof(meta)), vector)));
}

static void
assert_rows(struct test_store *t, const char *fixture)
{
    struct row rows[MAX_ROWS];
    const char *lines[MAX_ROWS];
    struct mb_buffer got;
    size_t n_wrong = 0;
    size_t n = all_rows(t, rows);
    size_t n_lines = lines_of(t, fixture, lines);
    mb_buffer_init(&got, (size_t)1 << 20);
    for (size_t i = 0; i < n; i++) {
        print_row(&got, &rows[i]);
        if (i < n_lines && strcmp(lines[i], (char *)got.data) == 0)
            continue;
        n_wrong++;
        print_error("%s\n", (char *)got.data);
    }
    mb_buffer_fini(&got);
    if (n_wrong > 0 || n != n_lines)
        fail_msg("%zu of %zu rows are not those of the fixture", n_wrong, n);
}

static void
test_rows_when_example_is_put_then_as_in_the_fixture(void **state)
{
    struct test_store *t = *state;
    put_example(t);
    assert_rows(t, "store/format-1.hex");
}

#define CONTEXT_FIXTURE "store/context-1.hex"

/* A block of 3 tokens, then a tail of one, and a carried token. */
static void
test_rows_when_context_is_made_then_as_in_the_fixture(void **state)
{
    static const struct mb_stored_shape shape = {.fingerprint = {0xf8, 0xd4},
        .block_tokens = 3,
        .n_layers = 1,
        .n_kv_heads = 1,
        .head_dim = 2,
        .kv_bytes = 4};
    struct test_store *t = *state;
    const struct mb_slice kv = mb_slice_cstr("keys");
    const struct mb_slice sum = mb_slice_cstr("sum");
    const struct mb_stored_block block = {.sum = sum, .kv = kv};
    const struct mb_stored_tail tail = {
        .kv = &kv, .sum = &sum, .n = 1, .n_tokens = 1, .carry = 42};
    struct mb_stored_append a = {.blocks = &block, .n = 1, .tail = &tail};
    struct mb_stored_context c;
    struct mb_snapshot *snap;
    struct mb_op *op;
    static const uint8_t settings[] = {0x81, 0xa1, 'k', 3};
    assert_ok(mb_op_context_create_new(mb_slice_cstr("book"), &shape,
        mb_slice_of(settings, sizeof settings), 1000000, &op, NULL));
    assert_ok(test_apply(t, op));
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_ok(
        mb_store_context_get(snap, mb_slice_cstr("book"), t->arena, &c, NULL));
    mb_snapshot_end(snap);
    a.ctx = &c;
    assert_ok(mb_op_context_append_new(&a, &op, NULL));
    assert_ok(test_apply(t, op));
    assert_rows(t, CONTEXT_FIXTURE);
}

static void
test_context_fixture_when_put_as_rows_then_reads(void **state)
{
    struct test_store *t = *state;
    const char *lines[MAX_ROWS];
    struct row rows[MAX_ROWS];
    struct mb_stored_context c;
    struct mb_snapshot *snap;
    struct mb_slice kv;
    struct mb_slice sum;
    size_t n = lines_of(t, CONTEXT_FIXTURE, lines);
    for (size_t i = 0; i < n; i++) {
        rows[i] = parse_row(t, lines[i]);
        set_row(t, &rows[i]);
    }
    test_store_reopen(t);
    test_verify(t);
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_ok(
        mb_store_context_get(snap, mb_slice_cstr("book"), t->arena, &c, NULL));
    assert_int_equal(5, c.n_tokens);
    assert_int_equal(42, c.carry);
    assert_int_equal(1000000, c.quota);
    assert_ok(mb_store_context_kv(snap, &c, 0, &kv, NULL));
    assert_true(mb_slice_equal(mb_slice_cstr("keys"), kv));
    assert_ok(mb_store_context_tail(snap, &c, 0, &kv, &sum, NULL));
    assert_true(mb_slice_equal(mb_slice_cstr("sum"), sum));
    mb_snapshot_end(snap);
}

static void
test_fixture_when_put_as_rows_then_a_store(void **state)
{
    struct test_store *t = *state;
    const char *lines[MAX_ROWS];
    struct row rows[MAX_ROWS];
    size_t n = fixture_lines(t, lines);
    assert_true(n >= 20);
    for (size_t i = 0; i < n; i++) {
        rows[i] = parse_row(t, lines[i]);
        set_row(t, &rows[i]);
    }
    test_store_reopen(t);
    assert_true(test_verify(t) >= n - 3); // of meta three have no checksum
    assert_string_equal(text_of_a, test_text(t, "notes", "a"));

    struct mb_collection c = test_collection(t, "notes");
    const float vector[DIM] = {3, 0, -4, 0};
    struct mb_snapshot *snap;
    struct mb_term *terms;
    struct mb_hit *hits;
    size_t n_terms;
    size_t n_hits;
    assert_ok(mb_analyze(
        t->an, mb_slice_cstr("fears"), t->arena, &terms, &n_terms, NULL));
    struct mb_query query = {.coll = &c,
        .k = 10,
        .terms = terms,
        .n_terms = n_terms,
        .vector = vector,
        .dim = DIM,
        .coverage = 1};
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_ok(mb_search(snap, &query, t->arena, &hits, &n_hits, NULL));
    assert_int_equal(1, n_hits);
    assert_true(hits[0].dense > 0.999f && hits[0].lexical > 0);
    mb_snapshot_end(snap);
}

/* In place: nothing but what is no blank. */
static char *
without_blanks(char *text)
{
    char *out = text;
    for (const char *p = text; *p != '\0'; p++) {
        if (*p != ' ' && *p != '\n')
            *out++ = *p;
    }
    *out = '\0';
    return text;
}

static void
assert_quoted(struct test_store *t, const char *fixture)
{
    const char *lines[MAX_ROWS];
    size_t size;
    size_t n = lines_of(t, fixture, lines);
    char *document = without_blanks(
        (char *)mb_test_read_file(MB_SOURCE_DIR "/store/FORMAT.md", &size));
    for (size_t i = 0; i < n; i++) {
        char *line = mb_arena_strndup(t->arena, lines[i], strlen(lines[i]));
        if (strstr(document, without_blanks(line)) == NULL)
            fail_msg("not in FORMAT.md: %s", lines[i]);
    }
    mb_free(document);
}

static void
test_fixtures_then_quoted_by_the_document(void **state)
{
    assert_quoted(*state, "store/format-1.hex");
    assert_quoted(*state, CONTEXT_FIXTURE);
}

int
main(void)
{
#define TEST(name)                                                             \
    cmocka_unit_test_setup_teardown(name, test_store_setup, test_store_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_rows_when_example_is_put_then_as_in_the_fixture),
        TEST(test_fixture_when_put_as_rows_then_a_store),
        TEST(test_rows_when_context_is_made_then_as_in_the_fixture),
        TEST(test_context_fixture_when_put_as_rows_then_reads),
        TEST(test_fixtures_then_quoted_by_the_document),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
