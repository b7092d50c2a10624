/* SPDX-License-Identifier: Apache-2.0
 * tests/fault/test_store_bounded.c - the file stays bounded.
 *
 * Stores that keep versions, or that never take out what was replaced, grow
 * with each small write. Here documents come one by one, each with its own
 * commit, and are then replaced over and over: the file must stay within a
 * small factor of its compact copy, and replacing must not make it grow on.
 *
 * MB_PUTS  puts of each kind (default 1,500; bounded_slow.sh runs 100,000) */
#include "mb_test_store.h"

#define DIM 32
/* Pages are two thirds full on average when rows come one by one, and a commit
 * needs the pages that it replaces twice. */
#define MAX_OVER_COPY 2.5
/* From the first full round of replacements to the last. */
#define MAX_GROWTH 1.25

static unsigned
n_puts(void)
{
    const char *text = getenv("MB_PUTS");
    return text != NULL ? (unsigned)strtoul(text, NULL, 10) : 1500;
}

/* One put of document i, with new words and a new vector. */
static void
put_one(struct test_store *t, struct mb_rng *rng, struct mb_arena *arena,
    unsigned i)
{
    float v[DIM];
    char id[16];
    struct mb_op *op;
    struct mb_collection c = test_collection(t, "notes");
    mb_arena_reset(arena);
    struct mb_slice text =
        test_words(arena, rng, 50 + (size_t)mb_rng_below(rng, 500));
    for (int j = 0; j < DIM; j++)
        v[j] = (float)mb_rng_normal(rng);
    snprintf(id, sizeof(id), "d%u", i);
    struct mb_span span = {0, (uint32_t)text.size, 100};
    struct mb_put_document doc = {.id = mb_slice_cstr(id),
        .text = text,
        .segments = &span,
        .n_segments = 1,
        .vector = v};
    assert_status(
        MB_OK, mb_op_put_new(&c, t->an, &doc, 1, &op, &t->err), &t->err);
    assert_status(MB_OK, test_apply(t, op), &t->err);
}

static uint64_t
file_bytes(struct test_store *t)
{
    struct mb_store_stats stats;
    assert_ok(mb_store_stats(t->store, &stats, NULL));
    return stats.file_bytes;
}

static uint64_t
copy_bytes(struct test_store *t)
{
    struct mb_test_dir to = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct stat sb;
    assert_status(MB_OK, mb_store_copy(t->store, to.path, &t->err), &t->err);
    assert_int_equal(0, stat(mb_test_path(&to, "data.mdb", path), &sb));
    mb_test_dir_end(&to);
    return (uint64_t)sb.st_size;
}

static void
check_size(struct test_store *t, const char *when)
{
    uint64_t file = file_bytes(t);
    uint64_t copy = copy_bytes(t);
    print_message("%s: file %.2f MB, compact %.2f MB, text %.2f MB\n", when,
        (double)file / 1e6, (double)copy / 1e6,
        (double)test_collection(t, "notes").text_bytes / 1e6);
    assert_true((double)file <= MAX_OVER_COPY * (double)copy);
}

static void
test_puts_when_single_then_file_is_bounded(void **state)
{
    struct test_store *t = *state;
    struct mb_rng rng;
    unsigned n = n_puts();
    unsigned n_hot = n / 10; // documents that are replaced
    struct mb_arena *arena = mb_arena_new((size_t)1 << 20);
    assert_non_null(arena);
    mb_rng_init(&rng, mb_test_seed());
    test_create(t, "notes", MB_EMBED_CLIENT, DIM);
    for (unsigned i = 0; i < n; i++)
        put_one(t, &rng, arena, i);
    check_size(t, "put one by one");
    assert_int_equal(n, test_collection(t, "notes").n_documents);

    uint64_t first = 0;
    for (unsigned i = 0; i < n; i++) {
        put_one(t, &rng, arena, (unsigned)mb_rng_below(&rng, n_hot));
        if (i == n_hot)
            first = file_bytes(t);
    }
    check_size(t, "and replaced as often");
    assert_int_equal(n, test_collection(t, "notes").n_documents);
    assert_true((double)file_bytes(t) <= MAX_GROWTH * (double)first);
    test_verify(t);

    // What is deleted makes room for what comes.
    uint64_t before = file_bytes(t);
    for (int round = 0; round < 3; round++) {
        for (unsigned i = 0; i < n_hot; i++) {
            char id[16];
            snprintf(id, sizeof(id), "d%u", i);
            assert_int_equal(1, test_delete(t, "notes", id));
        }
        for (unsigned i = 0; i < n_hot; i++)
            put_one(t, &rng, arena, i);
    }
    check_size(t, "and a tenth deleted and put, three times");
    assert_true((double)file_bytes(t) <= MAX_GROWTH * (double)before);
    test_verify(t);
    mb_arena_free(arena);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            test_puts_when_single_then_file_is_bounded, test_store_setup,
            test_store_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
