/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_context.c - long contexts on disk.
 *
 * Blocks here are filled from their number, so that a test can tell whose bytes
 * it reads back. */
#include "mb_test_store.h"

#include "context_rows.h"
#include "op.h"

#define KV_BYTES     8000u
#define SUM_BYTES    200u
#define BLOCK_TOKENS 63u
#define SEGMENT      4u

static const struct mb_stored_shape shape = {
    .fingerprint = {1, 2, 3},
    .block_tokens = BLOCK_TOKENS,
    .n_layers = 2,
    .n_kv_heads = 1,
    .head_dim = 16,
    .kv_bytes = KV_BYTES,
};

/* Bytes that depend on a seed. */
static struct mb_slice
bytes_of(struct test_store *t, uint64_t seed, size_t size)
{
    struct mb_rng rng;
    uint8_t *p = mb_arena_alloc(t->arena, size);

    assert_non_null(p);
    mb_rng_init(&rng, seed);
    for (size_t i = 0; i < size; i++) {
        p[i] = (uint8_t)mb_rng_below(&rng, 256);
    }
    return mb_slice_of(p, size);
}

static void
create(struct test_store *t, const char *name, uint64_t quota)
{
    struct mb_op *op;

    assert_status(MB_OK,
        mb_op_context_create_new(mb_slice_cstr(name), &shape,
            mb_slice_cstr("settings"), quota, &op, &t->err),
        &t->err);
    assert_status(MB_OK, test_apply(t, op), &t->err);
}

static struct mb_stored_context
get(struct test_store *t, const char *name)
{
    struct mb_stored_context c;
    struct mb_snapshot *snap;

    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_status(MB_OK,
        mb_store_context_get(snap, mb_slice_cstr(name), t->arena, &c, &t->err),
        &t->err);
    mb_snapshot_end(snap);
    return c;
}

/* A segment whose blocks are made from seed + their number. */
static struct mb_op *
append_op(struct test_store *t, const struct mb_stored_context *c,
    uint64_t seed, uint64_t max_total)
{
    struct mb_stored_block blocks[SEGMENT];
    struct mb_stored_append a = {
        .ctx = c, .blocks = blocks, .n = SEGMENT, .max_total = max_total};
    struct mb_op *op = NULL;

    for (size_t i = 0; i < SEGMENT; i++) {
        uint64_t one = seed + c->n_blocks + i;

        blocks[i] = (struct mb_stored_block){
            .sum = bytes_of(t, one, SUM_BYTES),
            .kv = bytes_of(t, one + 1000000, KV_BYTES),
            .memory = i + 1 == SEGMENT ? bytes_of(t, one + 2000000, 64)
                                       : mb_slice_of(NULL, 0),
        };
    }
    assert_status(MB_OK, mb_op_context_append_new(&a, &op, &t->err), &t->err);
    return op;
}

static mb_status
append(struct test_store *t, const char *name, uint64_t seed)
{
    struct mb_stored_context c = get(t, name);

    return test_apply(t, append_op(t, &c, seed, 0));
}

struct seen {
    struct test_store *t;
    uint64_t seed;
    uint32_t next;
    uint32_t end;
};

static mb_status
see_sum(void *arg, const struct mb_stored_sum *sum)
{
    struct seen *seen = arg;
    struct mb_slice want =
        bytes_of(seen->t, seen->seed + sum->block, SUM_BYTES);

    if (sum->block >= seen->end)
        return MB_OK;
    assert_int_equal(seen->next++, sum->block);
    assert_int_equal(sum->block / SEGMENT, sum->segment);
    assert_int_equal(sum->block % SEGMENT == SEGMENT - 1, sum->ends_segment);
    assert_int_equal(sum->ends_segment ? 64 : 0, sum->memory.size);
    assert_true(mb_slice_equal(want, sum->sum));
    return MB_OK;
}

/* Blocks [from, end) of a context were made from seed. */
static void
assert_blocks(struct test_store *t, const char *name, uint64_t seed,
    uint32_t from, uint32_t end)
{
    struct mb_stored_context c = get(t, name);
    struct seen seen = {t, seed, from, end};
    struct mb_snapshot *snap;

    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_status(MB_OK,
        mb_store_context_scan(snap, &c, from, see_sum, &seen, &t->err),
        &t->err);
    assert_int_equal(end, seen.next);
    for (uint32_t i = from; i < end; i++) {
        struct mb_slice kv;

        assert_status(
            MB_OK, mb_store_context_kv(snap, &c, i, &kv, &t->err), &t->err);
        assert_true((uintptr_t)kv.data % 16 == 0);
        assert_true(
            mb_slice_equal(bytes_of(t, seed + i + 1000000, KV_BYTES), kv));
    }
    mb_snapshot_end(snap);
}

static const struct mb_stored_tail no_tail = {.carry = MB_CONTEXT_NO_TOKEN};

static mb_status
cut(struct test_store *t, const char *name, uint32_t n_blocks)
{
    struct mb_stored_context c = get(t, name);
    struct mb_op *op;

    assert_ok(mb_op_context_cut_new(&c, n_blocks, &no_tail, &op, &t->err));
    return test_apply(t, op);
}

static mb_status
fork_of(
    struct test_store *t, const char *from, const char *name, uint32_t n_blocks)
{
    struct mb_stored_context c = get(t, from);
    struct mb_op *op;

    assert_ok(mb_op_context_fork_new(
        &c, mb_slice_cstr(name), n_blocks, &no_tail, NULL, &op, &t->err));
    return test_apply(t, op);
}

static mb_status
erase(struct test_store *t, const char *name)
{
    struct mb_op *op;

    assert_ok(mb_op_context_delete_new(mb_slice_cstr(name), &op, &t->err));
    return test_apply(t, op);
}

static uint64_t
rows(struct test_store *t, enum kv_table table)
{
    struct mb_snapshot *snap;
    uint64_t n;
    uint64_t bytes;

    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_ok(kv_table_stats(snap->txn, table, &n, &bytes));
    mb_snapshot_end(snap);
    return n;
}

static uint64_t
total(struct test_store *t)
{
    struct mb_snapshot *snap;
    uint64_t bytes;
    uint64_t n;

    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_ok(mb_store_context_total(snap, &bytes, &n, NULL));
    mb_snapshot_end(snap);
    return bytes;
}

/* Closing waits for nothing, so let the writer erase what is noted. */
static void
wait_until_rows(struct test_store *t, uint64_t n)
{
    uint64_t end = mb_clock_ns() + 20000000000u;

    while (rows(t, KV_BLOCKS) != n && mb_clock_ns() < end) {
        struct mb_op *op; // passes through the writer

        assert_ok(mb_op_context_delete_new(mb_slice_cstr("?"), &op, NULL));
        assert_int_equal(MB_ERR_NOT_FOUND, test_apply(t, op));
    }
    assert_int_equal(n, rows(t, KV_BLOCKS));
}

/* ---- tests ---- */

static void
test_append_when_reopened_then_reads_back(void **state)
{
    struct test_store *t = *state;

    create(t, "book", 0);
    assert_ok(append(t, "book", 7));
    assert_ok(append(t, "book", 7));
    test_store_reopen(t);
    struct mb_stored_context c = get(t, "book");
    assert_int_equal(8, c.n_blocks);
    assert_int_equal(2, c.n_segments);
    assert_int_equal(8 * BLOCK_TOKENS, c.n_tokens);
    assert_true(mb_slice_equal(mb_slice_cstr("settings"), c.settings));
    assert_memory_equal(&shape, &c.shape, sizeof shape);
    assert_int_equal(1, c.n_runs);
    assert_int_equal(c.bytes, total(t));
    assert_blocks(t, "book", 7, 0, 8);
    assert_blocks(t, "book", 7, 5, 8);
    test_verify(t);
}

static void
test_append_when_state_is_old_then_stale(void **state)
{
    struct test_store *t = *state;

    create(t, "book", 0);
    struct mb_stored_context c = get(t, "book");
    assert_ok(append(t, "book", 7));
    assert_int_equal(MB_ERR_STALE, test_apply(t, append_op(t, &c, 8, 0)));
    assert_blocks(t, "book", 7, 0, 4);
    test_verify(t);
}

static void
test_append_when_expected_state_is_used_then_goes_on(void **state)
{
    struct test_store *t = *state;

    create(t, "book", 0);
    struct mb_stored_context c = get(t, "book");
    struct mb_op *first = append_op(t, &c, 7, 0);
    mb_op_context_append_expect(first, &c);
    struct mb_op *second = append_op(t, &c, 7, 0);
    mb_op_context_append_expect(second, &c);
    assert_ok(test_apply(t, first));
    assert_ok(test_apply(t, second));
    struct mb_stored_context now = get(t, "book");
    assert_int_equal(now.epoch, c.epoch);
    assert_int_equal(now.bytes, c.bytes);
    assert_int_equal(now.n_tokens, c.n_tokens);
    assert_int_equal(now.n_segments, c.n_segments);
    assert_blocks(t, "book", 7, 0, 8);
}

static void
test_append_when_quota_is_passed_then_refused_by_name(void **state)
{
    struct test_store *t = *state;

    create(t, "book", SEGMENT * (KV_BYTES + SUM_BYTES + 500));
    assert_ok(append(t, "book", 7));
    assert_int_equal(MB_ERR_TOO_LARGE, append(t, "book", 7));
    assert_non_null(strstr(t->err.text, "\"book\""));
    assert_non_null(strstr(t->err.text, "quota"));
    create(t, "other", 0);
    struct mb_stored_context c = get(t, "other");
    assert_int_equal(MB_ERR_TOO_LARGE,
        test_apply(t, append_op(t, &c, 7, total(t) + KV_BYTES)));
    assert_non_null(strstr(t->err.text, "context_bytes"));
    assert_int_equal(4, rows(t, KV_BLOCKS));

    uint64_t quota = 0;
    struct mb_op *op;
    assert_ok(
        mb_op_context_touch_new(mb_slice_cstr("book"), &quota, &op, &t->err));
    assert_ok(test_apply(t, op));
    assert_ok(append(t, "book", 7));
    test_verify(t);
}

static void
test_create_when_name_is_taken_or_bad_then_refused(void **state)
{
    struct test_store *t = *state;
    struct mb_op *op;

    create(t, "book", 0);
    assert_ok(mb_op_context_create_new(
        mb_slice_cstr("book"), &shape, mb_slice_of(NULL, 0), 0, &op, NULL));
    assert_int_equal(MB_ERR_EXISTS, test_apply(t, op));
    assert_int_equal(
        MB_ERR_BAD_ARG, mb_op_context_create_new(mb_slice_cstr(""), &shape,
                            mb_slice_of(NULL, 0), 0, &op, NULL));
    assert_int_equal(
        MB_ERR_BAD_ARG, mb_op_context_create_new(mb_slice_cstr("a\nb"), &shape,
                            mb_slice_of(NULL, 0), 0, &op, NULL));
    assert_int_equal(
        MB_ERR_BAD_TEXT, mb_op_context_create_new(mb_slice_cstr("a\xff"),
                             &shape, mb_slice_of(NULL, 0), 0, &op, NULL));
}

static void
test_tail_when_kept_then_replaced_and_gone(void **state)
{
    struct test_store *t = *state;
    struct mb_slice kv[2];
    const struct mb_slice sums[2] = {
        mb_slice_cstr("one"), mb_slice_cstr("and two")};
    struct mb_stored_tail tail = {
        .kv = kv, .sum = sums, .n = 2, .n_tokens = 70, .carry = 42};
    struct mb_stored_append a = {.tail = &tail};
    struct mb_snapshot *snap;
    struct mb_slice got;
    struct mb_slice sum;
    struct mb_op *op;

    create(t, "book", 0);
    struct mb_stored_context c = get(t, "book");
    kv[0] = bytes_of(t, 1, KV_BYTES);
    kv[1] = bytes_of(t, 2, KV_BYTES);
    a.ctx = &c;
    assert_ok(mb_op_context_append_new(&a, &op, &t->err));
    assert_ok(test_apply(t, op));
    c = get(t, "book");
    assert_int_equal(71, c.n_tokens);
    assert_int_equal(42, c.carry);

    // None there that it could stand behind.
    tail.first = 3;
    assert_int_equal(
        MB_ERR_BAD_ARG, mb_op_context_append_new(&a, &op, &t->err));
    tail.first = UINT32_MAX;
    assert_int_equal(
        MB_ERR_BAD_ARG, mb_op_context_append_new(&a, &op, &t->err));

    // One more behind the first.
    kv[0] = bytes_of(t, 3, KV_BYTES);
    tail = (struct mb_stored_tail){.first = 1,
        .kv = kv,
        .sum = &sums[1],
        .n = 1,
        .n_tokens = 80,
        .carry = 43};
    assert_ok(mb_op_context_append_new(&a, &op, &t->err));
    assert_ok(test_apply(t, op));
    test_store_reopen(t);
    c = get(t, "book");
    assert_int_equal(2, c.tail_blocks);
    assert_int_equal(80, c.n_tail);
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_ok(mb_store_context_tail(snap, &c, 0, &got, &sum, NULL));
    assert_true(mb_slice_equal(bytes_of(t, 1, KV_BYTES), got));
    assert_ok(mb_store_context_tail(snap, &c, 1, &got, &sum, NULL));
    assert_true(mb_slice_equal(bytes_of(t, 3, KV_BYTES), got));
    assert_true(mb_slice_equal(mb_slice_cstr("and two"), sum));
    assert_int_equal(
        MB_ERR_NOT_FOUND, mb_store_context_tail(snap, &c, 2, &got, &sum, NULL));
    mb_snapshot_end(snap);
    test_verify(t);

    // A segment takes the tail's place.
    assert_ok(append(t, "book", 7));
    c = get(t, "book");
    assert_int_equal(0, c.tail_blocks);
    assert_int_equal(MB_CONTEXT_NO_TOKEN, c.carry);
    assert_int_equal(4 * BLOCK_TOKENS, c.n_tokens);
    assert_int_equal(1 + 4, rows(t, KV_CONTEXTS));
    test_verify(t);
}

static void
test_fork_when_both_go_on_then_apart(void **state)
{
    struct test_store *t = *state;

    create(t, "a", 0);
    assert_ok(append(t, "a", 7));
    assert_ok(append(t, "a", 7));
    uint64_t before = total(t);
    assert_ok(fork_of(t, "a", "b", 4));
    assert_ok(fork_of(t, "a", "c", 8));
    assert_int_equal(before, total(t)); // nothing was copied
    assert_ok(append(t, "a", 100));
    assert_ok(append(t, "b", 200));
    assert_ok(append(t, "c", 300));
    test_store_reopen(t);
    assert_blocks(t, "a", 7, 0, 8);
    assert_blocks(t, "a", 100, 8, 12);
    assert_blocks(t, "b", 7, 0, 4);
    assert_blocks(t, "b", 200, 4, 8);
    assert_blocks(t, "c", 7, 0, 8);
    assert_blocks(t, "c", 300, 8, 12);
    struct mb_stored_context b = get(t, "b");
    assert_int_equal(get(t, "a").id, b.parent);
    assert_int_equal(4 * BLOCK_TOKENS, b.fork_tokens);
    test_verify(t);
    assert_int_equal(MB_ERR_EXISTS, fork_of(t, "a", "b", 4));
    assert_int_equal(MB_ERR_BAD_ARG, fork_of(t, "a", "d", 3));
    assert_int_equal(MB_ERR_BAD_ARG, fork_of(t, "a", "d", 16));
}

static void
test_delete_when_forked_then_shared_blocks_stay(void **state)
{
    struct test_store *t = *state;

    create(t, "a", 0);
    for (int i = 0; i < 3; i++) {
        assert_ok(append(t, "a", 7));
    }
    assert_ok(fork_of(t, "a", "b", 8));
    assert_ok(erase(t, "a"));
    wait_until_rows(t, 8);
    test_verify(t);
    assert_blocks(t, "b", 7, 0, 8);
    assert_int_equal(get(t, "b").bytes, total(t));
    // The place behind is free again.
    assert_ok(append(t, "b", 9));
    assert_int_equal(1, get(t, "b").n_runs);
    assert_ok(erase(t, "b"));
    wait_until_rows(t, 0);
    assert_int_equal(0, rows(t, KV_CONTEXTS));
    assert_int_equal(0, total(t));
    test_verify(t);
}

static void
test_cut_when_forked_then_others_keep_theirs(void **state)
{
    struct test_store *t = *state;

    create(t, "a", 0);
    for (int i = 0; i < 4; i++) {
        assert_ok(append(t, "a", 7));
    }
    assert_ok(fork_of(t, "a", "b", 8));
    assert_ok(cut(t, "a", 4));
    wait_until_rows(t, 8);
    test_verify(t);
    assert_ok(append(t, "a", 100)); // at 4, where b's blocks lie
    assert_ok(append(t, "b", 200));
    assert_blocks(t, "a", 7, 0, 4);
    assert_blocks(t, "a", 100, 4, 8);
    assert_blocks(t, "b", 7, 0, 8);
    assert_blocks(t, "b", 200, 8, 12);
    assert_int_equal(2, get(t, "a").n_runs);
    assert_ok(cut(t, "b", 0));
    wait_until_rows(t, 8);
    assert_blocks(t, "a", 7, 0, 4);
    assert_int_equal(MB_ERR_BAD_ARG, cut(t, "a", 5));
    test_verify(t);
}

/* Whatever is done in whatever order: each context has what it was given, and
 * verify finds nothing. */
static void
test_random_operations_then_as_a_model_says(void **state)
{
    struct test_store *t = *state;

    struct {
        char name[8];
        bool is;
        uint32_t n;
        uint64_t seeds[64]; /* of each segment */
    } model[6];
    struct mb_rng rng;
    uint64_t seed = mb_test_seed();

    memset(model, 0, sizeof model);
    mb_rng_init(&rng, seed);
    for (int step = 0; step < 150; step++) {
        size_t i = (size_t)mb_rng_below(&rng, 6);
        size_t k = (size_t)mb_rng_below(&rng, 6);
        uint64_t what = mb_rng_below(&rng, 10);

        (void)snprintf(model[i].name, sizeof model[i].name, "c%zu", i);
        if (!model[i].is && what < 8 && model[k].is && k != i) {
            uint32_t n = (uint32_t)mb_rng_below(&rng, model[k].n + 1);
            assert_ok(fork_of(t, model[k].name, model[i].name, n * SEGMENT));
            memcpy(model[i].seeds, model[k].seeds, sizeof model[i].seeds);
            model[i].n = n;
            model[i].is = true;
        } else if (!model[i].is) {
            create(t, model[i].name, 0);
            model[i].is = true;
            model[i].n = 0;
        } else if (what == 9) {
            assert_ok(erase(t, model[i].name));
            model[i].is = false;
        } else if (what == 8 || model[i].n == 20) {
            model[i].n = (uint32_t)mb_rng_below(&rng, model[i].n + 1);
            assert_ok(cut(t, model[i].name, model[i].n * SEGMENT));
        } else {
            model[i].seeds[model[i].n] = 1000 * (uint64_t)(step + 1);
            assert_ok(append(t, model[i].name, model[i].seeds[model[i].n]));
            model[i].n++;
        }
        if (step % 25 == 24)
            test_verify(t);
        if (step == 75)
            test_store_reopen(t);
    }
    for (size_t i = 0; i < 6; i++) {
        for (uint32_t s = 0; model[i].is && s < model[i].n; s++) {
            assert_blocks(t, model[i].name, model[i].seeds[s], s * SEGMENT,
                (s + 1) * SEGMENT);
        }
        mb_arena_reset(t->arena);
    }
}

static void
keep_trace(struct test_store *t, const struct mb_stored_trace *trace)
{
    struct mb_op *op;

    assert_ok(mb_op_context_trace_new(mb_slice_cstr("book"), trace, &op, NULL));
    assert_ok(test_apply(t, op));
}

/* How many picks are kept; they are those of trace. */
static size_t
kept_picks(struct test_store *t, const struct mb_stored_trace *trace)
{
    struct mb_stored_context c = get(t, "book");
    struct mb_stored_trace got;
    struct mb_snapshot *snap;

    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_ok(mb_store_context_trace(snap, &c, t->arena, &got, NULL));
    mb_snapshot_end(snap);
    if (got.n > 0) {
        assert_int_equal(trace->n, got.n);
        assert_int_equal(trace->n_tokens, got.n_tokens);
        assert_int_equal(trace->step_tokens, got.step_tokens);
        assert_memory_equal(trace->picks, got.picks, got.n * sizeof *got.picks);
    }
    return got.n;
}

static void
test_trace_when_kept_then_read_and_taken_away_by_a_cut(void **state)
{
    static const struct mb_stored_pick picks[] = {{0, 1, 2}, {3, 4, 5}};
    const struct mb_stored_trace trace = {7, 8, picks, 2};
    struct test_store *t = *state;

    create(t, "book", 0);
    assert_ok(append(t, "book", 7));
    for (int round = 0; round < 2; round++) {
        assert_int_equal(0, kept_picks(t, &trace));
        keep_trace(t, &trace);
        assert_int_equal(2, kept_picks(t, &trace));
        test_verify(t);
        assert_ok(cut(t, "book", 0));
    }
}

/* A generation that retrieves nothing leaves no older trace behind; where there
 * is none, nothing is written. */
static void
test_trace_when_empty_then_older_one_is_gone(void **state)
{
    static const struct mb_stored_pick picks[] = {{0, 1, 2}};
    const struct mb_stored_trace trace = {7, 8, picks, 1};
    const struct mb_stored_trace none = {.n_tokens = 7};
    struct test_store *t = *state;

    struct mb_store_stats before;
    struct mb_store_stats after;

    create(t, "book", 0);
    assert_ok(mb_store_stats(t->store, &before, NULL));
    keep_trace(t, &none);
    assert_ok(mb_store_stats(t->store, &after, NULL));
    assert_int_equal(before.n_commits, after.n_commits);
    keep_trace(t, &trace);
    keep_trace(t, &none);
    assert_int_equal(0, kept_picks(t, &trace));
}

static void
test_trace_when_too_long_then_refused(void **state)
{
    const struct mb_stored_trace trace = {.n = MB_MAX_CONTEXT_PICKS + 1};
    struct test_store *t = *state;
    struct mb_op *op;

    assert_int_equal(MB_ERR_TOO_LARGE,
        mb_op_context_trace_new(mb_slice_cstr("book"), &trace, &op, &t->err));
}

/* ---- damage ---- */

struct spoil_op {
    struct mb_op base;
    enum kv_table table;
    struct kv_key key;
    size_t at; /* SIZE_MAX: take the row away */
};

static mb_status
spoil_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    const struct spoil_op *op = (const struct spoil_op *)base;
    struct mb_slice key = kv_key_slice(&op->key);
    static uint8_t copy[KV_BYTES + 64];
    struct mb_slice val;

    MB_TEST_UNUSED(err);
    w->changed = true;
    if (op->at == SIZE_MAX)
        return kv_del(w->txn, op->table, key);
    mb_status st = kv_get(w->txn, op->table, key, &val);
    assert_true(val.size <= sizeof copy && op->at < val.size);
    memcpy(copy, val.data, val.size);
    copy[op->at] ^= 1;
    return st == MB_OK
               ? kv_put(w->txn, op->table, key, mb_slice_of(copy, val.size))
               : st;
}

static void
spoil_free(struct mb_op *op)
{
    mb_free(op);
}

static void
spoil(struct test_store *t, enum kv_table table, const struct kv_key *key,
    size_t at)
{
    static const struct op_class cls = {"spoil", spoil_body, spoil_free};
    struct spoil_op *op = op_new(&cls, sizeof *op);

    assert_non_null(op);
    op->table = table;
    op->key = *key;
    op->at = at;
    assert_ok(test_apply(t, &op->base));
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

static void
test_verify_when_rows_are_damaged_then_reported(void **state)
{
    struct test_store *t = *state;
    struct kv_key key;

    create(t, "book", 0);
    assert_ok(append(t, "book", 7));
    assert_int_equal(0, broken(t));
    context_kv_key(&key, get(t, "book").id, 1);
    spoil(t, KV_BLOCKS, &key, 100);
    assert_true(broken(t) > 0);
    spoil(t, KV_BLOCKS, &key, 100);
    assert_int_equal(0, broken(t));
    context_sum_key(&key, get(t, "book").id, 2);
    spoil(t, KV_CONTEXTS, &key, 30);
    assert_true(broken(t) > 0);
    struct mb_stored_context c = get(t, "book");
    struct seen seen = {t, 7, 0, 4};
    struct mb_snapshot *snap;
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_int_equal(MB_ERR_CORRUPT,
        mb_store_context_scan(snap, &c, 0, see_sum, &seen, &t->err));
    assert_non_null(strstr(t->err.text, "block 2"));
    mb_snapshot_end(snap);
    spoil(t, KV_CONTEXTS, &key, 30);
    context_key(&key, c.id, CONTEXT_ROW_RECORD);
    spoil(t, KV_CONTEXTS, &key, 8);
    assert_true(broken(t) > 0);
    spoil(t, KV_CONTEXTS, &key, 8);
    assert_int_equal(0, broken(t));
    context_kv_key(&key, c.id, 3);
    spoil(t, KV_BLOCKS, &key, SIZE_MAX);
    assert_true(broken(t) > 0);
}

static void
test_record_when_cut_anywhere_then_corrupt(void **state)
{
    struct test_store *t = *state;
    struct mb_stored_context c;
    struct mb_buffer bytes;

    create(t, "book", 0);
    assert_ok(append(t, "book", 7));
    c = get(t, "book");
    mb_buffer_init(&bytes, 1 << 20);
    assert_ok(context_encode(&c, &bytes));
    for (size_t n = 0; n < bytes.size; n++) {
        assert_int_equal(MB_ERR_CORRUPT,
            context_decode(mb_slice_of(bytes.data, n), t->arena, &c));
    }
    // Counts that lie, with a checksum that is right.
    static const size_t counts[] = {80, 120, 124, 128, 132};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        c = get(t, "book");
        assert_ok(context_encode(&c, &bytes));
        mb_put_le32(bytes.data + counts[i], 0xfffffff0u);
        record_seal(bytes.data, bytes.size);
        assert_int_equal(MB_ERR_CORRUPT,
            context_decode(mb_buffer_slice(&bytes), t->arena, &c));
    }
    mb_buffer_fini(&bytes);
}

static void
test_drop_of_a_collection_then_contexts_stay(void **state)
{
    struct test_store *t = *state;
    struct mb_op *op;

    create(t, "book", 0);
    assert_ok(append(t, "book", 7));
    test_create(t, "notes", MB_EMBED_NONE, 0);
    assert_ok(mb_op_drop_new(mb_slice_cstr("notes"), &op, NULL));
    assert_ok(test_apply(t, op));
    test_store_reopen(t);
    assert_blocks(t, "book", 7, 0, 4);
    test_verify(t);
}

int
main(void)
{
#define TEST(name)                                                             \
    cmocka_unit_test_setup_teardown(name, test_store_setup, test_store_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_append_when_reopened_then_reads_back),
        TEST(test_append_when_state_is_old_then_stale),
        TEST(test_append_when_expected_state_is_used_then_goes_on),
        TEST(test_append_when_quota_is_passed_then_refused_by_name),
        TEST(test_create_when_name_is_taken_or_bad_then_refused),
        TEST(test_tail_when_kept_then_replaced_and_gone),
        TEST(test_fork_when_both_go_on_then_apart),
        TEST(test_delete_when_forked_then_shared_blocks_stay),
        TEST(test_cut_when_forked_then_others_keep_theirs),
        TEST(test_random_operations_then_as_a_model_says),
        TEST(test_trace_when_kept_then_read_and_taken_away_by_a_cut),
        TEST(test_trace_when_empty_then_older_one_is_gone),
        TEST(test_trace_when_too_long_then_refused),
        TEST(test_verify_when_rows_are_damaged_then_reported),
        TEST(test_record_when_cut_anywhere_then_corrupt),
        TEST(test_drop_of_a_collection_then_contexts_stay),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
