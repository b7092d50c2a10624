/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_bank.c - rows of memory banks: made, read, forgotten.
 */
#include "mb_test.h"

#include <math.h>

#include "mb_test_store.h"

#include "bank.h"

#define DIM    4
#define N_DOCS 64

/* Vectors in four bundles, each around one axis. */
static void
vector_of(size_t i, float out[DIM])
{
    double norm = 0;
    for (size_t d = 0; d < DIM; d++) {
        uint64_t h[2] = {i, d};
        out[d] = (float)(mb_hash64(h, sizeof h, 7) % 1000) / 5000.0f;
        if (d == i % DIM)
            out[d] += 1;
        norm += (double)out[d] * (double)out[d];
    }
    for (size_t d = 0; d < DIM; d++)
        out[d] /= (float)sqrt(norm);
}

static void
put_documents(struct test_store *t)
{
    test_create(t, "c", MB_EMBED_CLIENT, DIM);
    struct mb_collection c = test_collection(t, "c");
    for (size_t i = 0; i < N_DOCS; i++) {
        char id[16];
        float v[DIM];
        vector_of(i, v);
        (void)snprintf(id, sizeof id, "d%zu", i);
        assert_ok(test_apply(
            t, test_put_op(t, &c, id, "title", mb_slice_cstr("text of it"),
                   mb_slice_of(NULL, 0), v)));
    }
}

static struct mb_tree *
fit(struct test_store *t, uint32_t fanout, uint32_t depth)
{
    float *rows = mb_alloc(N_DOCS * DIM * sizeof *rows);
    const struct mb_tree_options opt = {.fanout = fanout,
        .max_depth = depth,
        .leaf_target = 4,
        .flat_below = 1,
        .even_depth = true};
    struct mb_tree *tree = NULL;
    assert_non_null(rows);
    for (size_t i = 0; i < N_DOCS; i++)
        vector_of(i, rows + i * DIM);
    assert_status(
        MB_OK, mb_tree_fit(rows, N_DOCS, DIM, &opt, &tree, &t->err), &t->err);
    mb_free(rows);
    return tree;
}

static const uint8_t embedding_bytes[100000] = {1, 2, 3};

static uint32_t
build(struct test_store *t)
{
    struct mb_tree *tree = fit(t, 4, 2);
    const struct mb_banks b = {.embedding = MB_EMBED_CLIENT,
        .fan_out = 4,
        .seed = 9,
        .model = "m",
        .rows = {8, 4},
        .epochs = 3};
    struct mb_op *op = NULL;
    assert_ok(mb_op_banks_build_new(mb_slice_cstr("c"), &b,
        mb_slice_of(embedding_bytes, sizeof embedding_bytes), tree, NULL, &op,
        &t->err));
    assert_ok(mb_store_apply(t->store, op, &t->err));
    uint32_t number = mb_op_banks_build_result(op);
    mb_op_free(op);
    mb_tree_free(tree);
    return number;
}

/* What a test looks at. */
struct look {
    struct mb_snapshot *snap;
    struct mb_collection c;
    struct mb_banks b;
    mb_status has;
};

static void
look(struct test_store *t, struct look *l)
{
    assert_ok(mb_snapshot_begin(t->store, &l->snap, NULL));
    assert_ok(mb_collection_get(l->snap, mb_slice_cstr("c"), &l->c, NULL));
    l->has = mb_banks_get(l->snap, &l->c, &l->b, &t->err);
}

static struct mb_banks_node
node_of(struct test_store *t, uint32_t node)
{
    struct look l;
    struct mb_banks_node n;
    look(t, &l);
    assert_ok(l.has);
    assert_ok(mb_banks_node_get(l.snap, &l.c, l.b.bank, node, &n, &t->err));
    mb_snapshot_end(l.snap);
    return n;
}

static uint64_t
broken(struct test_store *t)
{
    struct mb_verify_result r;
    struct mb_snapshot *snap;
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_ok(mb_store_verify(snap, NULL, NULL, NULL, &r, NULL));
    mb_snapshot_end(snap);
    return r.n_broken;
}

/* The way down of a document's vector. */
static size_t
path_of(struct test_store *t, size_t i, uint32_t out[2])
{
    struct mb_tree_step steps[2];
    struct mb_tree *tree;
    struct look l;
    float v[DIM];
    look(t, &l);
    assert_ok(mb_banks_tree(l.snap, &l.c, &l.b, &tree, &t->err));
    vector_of(i, v);
    size_t n = mb_tree_path(tree, v, steps, 2, NULL);
    for (size_t s = 0; s < n; s++)
        out[s] = steps[s].node;
    mb_tree_free(tree);
    mb_snapshot_end(l.snap);
    return n;
}

/* Publish a path's blocks as if they had been trained on one segment. */
static mb_status
publish(struct test_store *t, uint32_t bank, const uint32_t path[2],
    mb_segno segno, uint64_t version)
{
    struct mb_op *op = NULL;
    assert_ok(mb_op_banks_edit_new(mb_slice_cstr("c"), bank, &op, &t->err));
    for (size_t i = 0; i < 2; i++) {
        struct mb_banks_node n = node_of(t, path[i]);
        n.state = MB_BANKS_READY;
        n.has_gained = true;
        n.block_bytes = 5;
        assert_ok(mb_banks_edit_expect(op, path[i], version));
        assert_ok(mb_banks_edit_node(op, &n));
        assert_ok(mb_banks_edit_block(op, path[i], mb_slice_cstr("block")));
    }
    assert_ok(mb_banks_edit_assign(op, &segno, 1, path[1]));
    return test_apply(t, op);
}

static void
test_tree_when_even_then_all_leaves_are_as_deep(void **state)
{
    struct test_store *t = *state;
    struct mb_tree *tree = fit(t, 4, 3);
    assert_int_equal(3, mb_tree_depth(tree));
    for (uint32_t i = 0; i < mb_tree_n_nodes(tree); i++) {
        struct mb_node n;
        mb_tree_node(tree, i, &n);
        assert_true(n.n_children > 0 || n.level == 3);
    }
    mb_tree_free(tree);
}

static void
test_build_when_read_back_then_same(void **state)
{
    struct test_store *t = *state;
    struct mb_slice bytes;
    struct mb_banks_node *nodes;
    struct look l;
    size_t n;

    put_documents(t);
    look(t, &l);
    assert_int_equal(MB_ERR_NOT_FOUND, l.has);
    mb_snapshot_end(l.snap);
    uint32_t bank = build(t);
    test_store_reopen(t);
    look(t, &l);
    assert_ok(l.has);
    assert_int_equal(bank, l.b.bank);
    assert_int_equal(2, l.b.n_levels);
    assert_string_equal("m", l.b.model);
    assert_int_equal(4, l.b.rows[1]);
    assert_ok(mb_banks_embedding(l.snap, &l.c, &l.b, t->arena, &bytes, NULL));
    assert_int_equal(sizeof embedding_bytes, bytes.size);
    assert_memory_equal(embedding_bytes, bytes.data, bytes.size);
    assert_ok(mb_banks_nodes(l.snap, &l.c, bank, t->arena, &nodes, &n, NULL));
    assert_int_equal(l.b.n_nodes - 1, n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(i + 1, nodes[i].node);
        assert_int_equal(MB_BANKS_FRESH, nodes[i].state);
    }
    mb_snapshot_end(l.snap);
    assert_int_equal(0, broken(t));
}

static void
test_delete_when_trained_on_then_path_is_stale_and_no_other(void **state)
{
    struct test_store *t = *state;
    struct mb_slice id = mb_slice_cstr("d5");
    uint32_t path[2];
    uint32_t other[2];
    struct mb_op *op;

    put_documents(t);
    uint32_t bank = build(t);
    assert_int_equal(2, path_of(t, 5, path));
    assert_int_equal(2, path_of(t, 6, other));
    assert_int_not_equal(path[0], other[0]);
    assert_ok(publish(t, bank, path, 5, 0));
    assert_ok(publish(t, bank, other, 6, 0));
    // A document that nothing was trained on changes nothing.
    struct mb_slice free_id = mb_slice_cstr("d9");
    assert_ok(mb_op_delete_new(mb_slice_cstr("c"), &free_id, 1, &op, NULL));
    assert_ok(test_apply(t, op));
    assert_int_equal(MB_BANKS_READY, node_of(t, path[0]).state);
    assert_ok(mb_op_delete_new(mb_slice_cstr("c"), &id, 1, &op, NULL));
    assert_ok(test_apply(t, op));
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(MB_BANKS_STALE, node_of(t, path[i]).state);
        assert_int_equal(1, node_of(t, path[i]).version);
        assert_int_equal(MB_BANKS_READY, node_of(t, other[i]).state);
    }
    assert_int_equal(0, broken(t));
    // Who trained on it cannot publish; who begins anew can.
    assert_int_equal(MB_ERR_STALE, publish(t, bank, path, 13, 0));
    assert_int_equal(MB_ERR_STALE, publish(t, bank, path, 5, 1));
    assert_int_equal(MB_BANKS_STALE, node_of(t, path[1]).state);
    assert_ok(publish(t, bank, path, 13, 1));
    assert_int_equal(MB_BANKS_READY, node_of(t, path[1]).state);
    assert_int_equal(1, node_of(t, path[1]).version);
    assert_int_equal(0, broken(t));
}

static void
test_edit_when_rows_are_kept_and_taken_away(void **state)
{
    struct test_store *t = *state;
    const struct mb_banks_job job = {
        .node = 1, .job = 77, .version = 3, .progress = mb_slice_cstr("half")};
    const struct mb_banks_run wanted = {.ms = 9, .tokens = UINT64_MAX};
    struct mb_banks_job got;
    struct mb_banks_run run;
    struct mb_slice bytes;
    struct mb_op *op;
    struct look l;

    put_documents(t);
    uint32_t bank = build(t);
    assert_ok(mb_op_banks_edit_new(mb_slice_cstr("c"), bank, &op, NULL));
    assert_ok(mb_banks_edit_job(op, &job));
    assert_ok(mb_banks_edit_state(op, 2, mb_slice_cstr("moments")));
    assert_ok(mb_banks_edit_run(op, MB_BANKS_RUN_TRAIN, &wanted));
    assert_ok(mb_banks_edit_disable(op, 0, true));
    assert_ok(test_apply(t, op));
    look(t, &l);
    assert_true(l.b.is_disabled);
    assert_ok(mb_banks_job_get(l.snap, &l.c, bank, 1, &got, NULL));
    assert_int_equal(77, got.job);
    assert_int_equal(3, got.version);
    assert_slice_str("half", got.progress);
    assert_ok(mb_banks_state_get(l.snap, &l.c, bank, 2, &bytes, NULL));
    assert_slice_str("moments", bytes);
    assert_ok(mb_banks_run_get(l.snap, &l.c, bank, &run, NULL));
    assert_true(run.is_training && !run.is_purge && !run.is_paused);
    assert_int_equal(9, run.ms);
    mb_snapshot_end(l.snap);
    assert_ok(mb_op_banks_edit_new(mb_slice_cstr("c"), bank, &op, NULL));
    assert_ok(mb_banks_edit_end_job(op, 1));
    assert_ok(mb_banks_edit_state(op, 2, mb_slice_of(NULL, 0)));
    assert_ok(mb_banks_edit_run(op, MB_BANKS_RUN_TRAINED, &run));
    assert_ok(test_apply(t, op));
    look(t, &l);
    assert_int_equal(
        MB_ERR_NOT_FOUND, mb_banks_job_get(l.snap, &l.c, bank, 1, &got, NULL));
    assert_int_equal(MB_ERR_NOT_FOUND,
        mb_banks_state_get(l.snap, &l.c, bank, 2, &bytes, NULL));
    assert_int_equal(
        MB_ERR_NOT_FOUND, mb_banks_run_get(l.snap, &l.c, bank, &run, NULL));
    mb_snapshot_end(l.snap);
}

/* Change what was asked for by *run, which is then what it has become. */
static mb_status
change_run(struct test_store *t, uint32_t bank, mb_banks_run_change change,
    struct mb_banks_run *run)
{
    struct mb_op *op;
    struct look l;
    assert_ok(mb_op_banks_edit_new(mb_slice_cstr("c"), bank, &op, NULL));
    assert_ok(mb_banks_edit_run(op, change, run));
    mb_status st = test_apply(t, op);
    look(t, &l);
    mb_status got = mb_banks_run_get(l.snap, &l.c, bank, run, NULL);
    assert_true(got == MB_OK || got == MB_ERR_NOT_FOUND);
    mb_snapshot_end(l.snap);
    return st != MB_OK ? st : got;
}

static void
test_run_when_asked_anew_then_nothing_is_spent_twice(void **state)
{
    struct test_store *t = *state;
    struct mb_banks_run run = {.ms = 100, .tokens = UINT64_MAX};

    put_documents(t);
    uint32_t bank = build(t);
    assert_int_equal(
        MB_ERR_NOT_FOUND, change_run(t, bank, MB_BANKS_RUN_PAUSE, &run));
    run = (struct mb_banks_run){.ms = 100, .tokens = UINT64_MAX};
    assert_ok(change_run(t, bank, MB_BANKS_RUN_TRAIN, &run));
    struct mb_banks_run spent = {.asked = run.asked, .ms = 30, .tokens = 5};
    run = spent;
    assert_ok(change_run(t, bank, MB_BANKS_RUN_SPEND, &run));
    assert_int_equal(70, run.ms);
    assert_true(run.tokens == UINT64_MAX);
    assert_ok(change_run(t, bank, MB_BANKS_RUN_PAUSE, &run));
    assert_true(run.is_paused);
    run = (struct mb_banks_run){.ms = 500, .tokens = 50, .is_generic = true};
    assert_ok(change_run(t, bank, MB_BANKS_RUN_TRAIN, &run));
    assert_true(!run.is_paused && run.is_generic);
    run = spent; // of the run before
    assert_ok(change_run(t, bank, MB_BANKS_RUN_SPEND, &run));
    assert_int_equal(500, run.ms);
    run = spent;
    assert_ok(change_run(t, bank, MB_BANKS_RUN_TRAINED, &run));
    assert_true(run.is_training);
    assert_ok(change_run(t, bank, MB_BANKS_RUN_PURGE, &run));
    assert_true(run.is_training && run.is_purge);
    assert_ok(change_run(t, bank, MB_BANKS_RUN_TRAINED, &run));
    assert_true(!run.is_training && run.is_purge);
    // Asked for again while the first purge ran: its end is not that of both.
    struct mb_banks_run first = run;
    assert_ok(change_run(t, bank, MB_BANKS_RUN_PURGE, &run));
    struct mb_banks_run second = run;
    run = first;
    assert_ok(change_run(t, bank, MB_BANKS_RUN_PURGED, &run));
    assert_true(run.is_purge);
    // A pause that is about a training of before changes nothing.
    run = (struct mb_banks_run){.ms = 1};
    assert_ok(change_run(t, bank, MB_BANKS_RUN_TRAIN, &run));
    run.asked++;
    assert_ok(change_run(t, bank, MB_BANKS_RUN_PAUSE, &run));
    assert_true(!run.is_paused && run.is_purge);
    assert_ok(change_run(t, bank, MB_BANKS_RUN_TRAINED, &run));
    run = second;
    assert_int_equal(
        MB_ERR_NOT_FOUND, change_run(t, bank, MB_BANKS_RUN_PURGED, &run));
}

/* What the trainer read before is written after: neither is lost. */
static void
test_node_when_disabled_and_used_meanwhile_then_both_stay(void **state)
{
    struct test_store *t = *state;
    struct mb_op *op;

    put_documents(t);
    uint32_t bank = build(t);
    struct mb_banks_node before = node_of(t, 1);
    assert_ok(mb_op_banks_edit_new(mb_slice_cstr("c"), bank, &op, NULL));
    assert_ok(mb_banks_edit_disable(op, 1, true));
    assert_ok(mb_banks_edit_used(op, 1, 50));
    assert_ok(mb_banks_edit_used(op, 1, 40));
    assert_ok(mb_banks_edit_used(op, 12345, 40)); // a node of another bank
    assert_ok(test_apply(t, op));
    before.state = MB_BANKS_READY;
    assert_ok(mb_op_banks_edit_new(mb_slice_cstr("c"), bank, &op, NULL));
    assert_ok(mb_banks_edit_node(op, &before));
    assert_ok(test_apply(t, op));
    struct mb_banks_node after = node_of(t, 1);
    assert_int_equal(MB_BANKS_READY, after.state);
    assert_true(after.is_disabled);
    assert_int_equal(50, after.used_ms);
    assert_ok(mb_op_banks_edit_new(mb_slice_cstr("c"), bank, &op, NULL));
    assert_ok(mb_banks_edit_disable(op, 12345, true));
    assert_int_equal(MB_ERR_NOT_FOUND, test_apply(t, op));
}

static void
test_reset_and_purge_then_nothing_is_left(void **state)
{
    struct test_store *t = *state;
    uint64_t rows = 0;
    uint64_t bytes;
    const char *name;
    uint32_t path[2];
    bool done = false;
    struct mb_op *op;
    struct look l;

    put_documents(t);
    uint32_t first = build(t);
    (void)path_of(t, 5, path);
    assert_ok(publish(t, first, path, 5, 0));
    uint32_t second = build(t);
    assert_true(second > first);
    // The first one's rows are of nobody's now, and its edits come too late.
    assert_int_equal(0, broken(t));
    assert_int_equal(MB_ERR_STALE, publish(t, first, path, 5, 0));
    assert_ok(mb_op_banks_reset_new(mb_slice_cstr("c"), &op, NULL));
    assert_ok(test_apply(t, op));
    while (!done) {
        assert_ok(mb_op_banks_purge_new(mb_slice_cstr("c"), &op, NULL));
        assert_ok(mb_store_apply(t->store, op, &t->err));
        done = mb_op_banks_purge_is_done(op);
        mb_op_free(op);
    }
    look(t, &l);
    assert_int_equal(MB_ERR_NOT_FOUND, l.has);
    for (size_t i = 0; mb_store_table_stats(l.snap, i, &name, &rows, &bytes);
         i++) {
        if (strcmp(name, "banks") == 0)
            assert_int_equal(1, rows); // the head
    }
    mb_snapshot_end(l.snap);
    assert_true(build(t) > second);
    assert_int_equal(0, broken(t));
}

static void
test_decode_when_a_bit_is_wrong_then_corrupt(void **state)
{
    const struct mb_banks bank = {
        .bank = 1, .dim = 4, .n_nodes = 5, .n_levels = 1, .n_leaves = 4};
    const struct mb_banks_node node = {.node = 3, .level = 1, .terms = "ab"};
    uint8_t row[BANK_RECORD_SIZE];
    uint8_t other[BANK_NODE_MAX];
    struct mb_banks b;
    struct mb_banks_node n;

    MB_TEST_UNUSED(state);
    bank_record_encode(&bank, row);
    assert_ok(bank_decode(mb_slice_of(row, sizeof row), &b));
    size_t size = bank_node_encode(&node, other);
    assert_ok(bank_node_decode(mb_slice_of(other, size), &n));
    assert_string_equal("ab", n.terms);
    for (size_t i = 0; i < sizeof row; i++) {
        row[i] ^= 4;
        assert_int_equal(
            MB_ERR_CORRUPT, bank_decode(mb_slice_of(row, sizeof row), &b));
        row[i] ^= 4;
    }
    for (size_t i = 0; i < size; i++) {
        other[i] ^= 4;
        assert_int_equal(
            MB_ERR_CORRUPT, bank_node_decode(mb_slice_of(other, size), &n));
        other[i] ^= 4;
        assert_int_equal(
            MB_ERR_CORRUPT, bank_node_decode(mb_slice_of(other, i), &n));
    }
}

/* The rows that FORMAT.md shows. */
static void
test_rows_when_encoded_then_as_in_the_manual(void **state)
{
    static const uint8_t segment[] = {0x07, 0, 0, 0, 0x4c, 0xc1, 0x28, 0x16};
    struct test_store *t = *state;
    uint32_t path[2];
    struct kv_key key;

    put_documents(t);
    uint32_t bank = build(t);
    (void)path_of(t, 5, path);
    bank_key(&key, 1, bank, BANK_ROW_SEGMENT, 5);
    static const uint8_t want[] = {0, 0, 0, 1, 0, 0, 0, 1, 4, 0, 0, 0, 5};
    assert_int_equal(sizeof want, key.size);
    assert_memory_equal(want, key.bytes, sizeof want);
    uint8_t row[8];
    mb_put_le32(row, 7);
    record_seal(row, sizeof row);
    assert_memory_equal(segment, row, sizeof row);
}

#define WITH_STORE(f)                                                          \
    cmocka_unit_test_setup_teardown(f, test_store_setup, test_store_teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_STORE(test_tree_when_even_then_all_leaves_are_as_deep),
        WITH_STORE(test_build_when_read_back_then_same),
        WITH_STORE(test_delete_when_trained_on_then_path_is_stale_and_no_other),
        WITH_STORE(test_edit_when_rows_are_kept_and_taken_away),
        WITH_STORE(test_run_when_asked_anew_then_nothing_is_spent_twice),
        WITH_STORE(test_node_when_disabled_and_used_meanwhile_then_both_stay),
        WITH_STORE(test_reset_and_purge_then_nothing_is_left),
        cmocka_unit_test(test_decode_when_a_bit_is_wrong_then_corrupt),
        WITH_STORE(test_rows_when_encoded_then_as_in_the_manual),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
