/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_context_keep.c - what a source keeps of a context is
 * enough to go on with the same bits; what is damaged is refused by name. */
#include "mb_test_context.h"

#include <math.h>

#define SEGMENT 252u
#define LENGTH  1333u /* five segments, a block and ten tokens */
#define MORE    40u   /* tokens that are read after something happened */

struct rig {
    struct test_model model;
    struct mb_context_memory *memory;
    struct mb_context_options options;
    struct mb_context *ctx;
    float logits[2][TEST_VOCAB];
    float nll[2][TEST_TOKENS];
};

static int
setup(void **state)
{
    struct rig *rig = mb_calloc(1, sizeof *rig);
    assert_non_null(rig);
    test_model_begin(&rig->model, 600, 2);
    assert_ok(mb_context_memory_new(&rig->memory, NULL));
    rig->options = (struct mb_context_options){
        .landmark = TEST_LANDMARK,
        .modes = {.k = 3, .prefill = MB_SELECT_CHUNK},
    };
    mb_gguf_fingerprint(rig->model.gguf, rig->options.weights);
    *state = rig;
    return 0;
}

static int
teardown(void **state)
{
    struct rig *rig = *state;
    mb_context_free(rig->ctx);
    mb_context_memory_free(rig->memory);
    test_model_end(&rig->model);
    mb_free(rig);
    return 0;
}

static struct mb_context *
open_over(struct rig *rig, struct mb_context_memory *memory)
{
    struct mb_context_source source = mb_context_memory_source(memory);
    struct mb_context *ctx = NULL;
    struct mb_error err;
    assert_status(MB_OK,
        mb_context_new(rig->model.decoder, &rig->options, &source, &ctx, &err),
        &err);
    return ctx;
}

/* Read on from token `first`, prefill and decoding, and keep the figures. */
static void
read_on(struct rig *rig, struct mb_context *ctx, size_t first, int i)
{
    assert_int_equal(first, mb_context_length(ctx));
    test_read(&rig->model, ctx, first, first + MORE, MB_ROWS_PREFILL,
        rig->nll[i], rig->logits[i]);
    for (size_t t = first + MORE; t < first + 2 * MORE; t++)
        test_read(&rig->model, ctx, t, t + 1, MB_ROWS_DECODE, rig->nll[i],
            rig->logits[i]);
}

static void
assert_same_figures(struct rig *rig, size_t first)
{
    assert_memory_equal(rig->logits[0], rig->logits[1], sizeof rig->logits[0]);
    assert_memory_equal(
        rig->nll[0] + first, rig->nll[1] + first, 2 * MORE * sizeof(float));
    for (size_t t = first; t < first + 2 * MORE; t++)
        assert_true(isfinite(rig->nll[0][t]) && rig->nll[0][t] > 0);
}

/* A context that a process before left behind: LENGTH tokens, the last ones
 * decoded. */
static void
read_length(struct rig *rig, struct mb_context *ctx)
{
    test_read(&rig->model, ctx, 0, LENGTH - 90, MB_ROWS_PREFILL, NULL, NULL);
    for (size_t t = LENGTH - 90; t < LENGTH; t++)
        test_read(&rig->model, ctx, t, t + 1, MB_ROWS_DECODE, NULL, NULL);
}

static struct mb_context *
restore(struct rig *rig, uint64_t n_blocks)
{
    struct mb_context *ctx = open_over(rig, rig->memory);
    struct mb_error err;
    for (uint64_t b = 0; b < n_blocks; b++)
        assert_status(MB_OK,
            mb_context_restore(
                ctx, mb_context_memory_sum(rig->memory, b), &err),
            &err);
    return ctx;
}

/* A new process goes on where another one stopped. */
static void
check_restart(struct rig *rig, mb_cache_type type)
{
    struct mb_context_segment tail;
    struct mb_context *again;
    struct mb_error err;
    rig->options.type = type;
    rig->ctx = open_over(rig, rig->memory);
    read_length(rig, rig->ctx);
    assert_int_equal(20, mb_context_n_blocks(rig->ctx));
    again = restore(rig, 20);
    assert_ok(mb_context_tail(rig->ctx, &tail, NULL));
    assert_int_equal(20, tail.first);
    assert_int_equal(2, tail.n_blocks);
    for (size_t i = 0; i < tail.n_blocks; i++)
        assert_status(MB_OK,
            mb_context_restore_tail(again, tail.blocks[i], tail.sums[i], &err),
            &err);
    read_on(rig, rig->ctx, LENGTH, 0);
    // The other one fetches from the same source, which has not lost a block.
    read_on(rig, again, LENGTH, 1);
    assert_same_figures(rig, LENGTH);
    mb_context_free(again);
}

static void
test_context_when_restored_then_same_bits(void **state)
{
    check_restart(*state, MB_CACHE_F16);
}

static void
test_context_when_restored_with_a_tail_then_same_bits(void **state)
{
    struct rig *rig = *state;
    size_t plain =
        mb_context_sum_bytes(rig->model.decoder, &rig->options) - 320;
    rig->options.modes.tail = MB_TAIL_MOMENTS;
    assert_int_equal(4 * plain,
        mb_context_sum_bytes(rig->model.decoder, &rig->options) - 320);
    check_restart(rig, MB_CACHE_F16);
    // Sums of the one kind are none of the other.
    struct mb_context *other = NULL;
    struct mb_error err;
    rig->options.modes.tail = MB_TAIL_NONE;
    assert_ok(
        mb_context_new(rig->model.decoder, &rig->options, NULL, &other, NULL));
    assert_status(MB_ERR_MISMATCH,
        mb_context_restore(other, mb_context_memory_sum(rig->memory, 0), &err),
        &err);
    assert_error_has(err, "statistics");
    mb_context_free(other);
}

static void
test_context_when_restored_of_int8_then_same_bits(void **state)
{
    check_restart(*state, MB_CACHE_Q8_0);
}

/* The window is lost, and its text is read again in the same chunks. */
static void
test_context_when_tail_is_lost_then_rereading_gives_same_bits(void **state)
{
    struct rig *rig = *state;
    size_t start = 5 * SEGMENT;
    struct mb_context *again;
    rig->ctx = open_over(rig, rig->memory);
    test_read(&rig->model, rig->ctx, 0, start, MB_ROWS_PREFILL, NULL, NULL);
    again = restore(rig, 20);
    read_on(rig, rig->ctx, start, 0);
    read_on(rig, again, start, 1);
    assert_same_figures(rig, start);
    mb_context_free(again);
}

/* Cut anywhere and go on: as if the rest had never been read. */
static void
test_context_when_cut_then_same_bits_as_never_read(void **state)
{
    struct rig *rig = *state;
    static const size_t cuts[] = {LENGTH - 5, 5 * SEGMENT + 63, 5 * SEGMENT,
        3 * SEGMENT + 100, 2 * SEGMENT, 63, 0};
    struct mb_error err;
    rig->options.modes.prefill = MB_SELECT_ROW_HEAD; // chunks are not the same
    rig->ctx = open_over(rig, rig->memory);
    test_read(&rig->model, rig->ctx, 0, LENGTH, MB_ROWS_PREFILL, NULL, NULL);
    for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        struct mb_context_memory *memory = NULL;
        size_t n;
        assert_status(
            MB_OK, mb_context_truncate(rig->ctx, cuts[i], &err), &err);
        assert_int_equal(cuts[i], mb_context_length(rig->ctx));
        assert_int_equal(mb_context_blocks_of(&rig->options, cuts[i]),
            mb_context_n_blocks(rig->ctx));
        const mb_token_id *window = mb_context_window(rig->ctx, &n);
        assert_memory_equal(
            window, rig->model.text + cuts[i] - n, n * sizeof(mb_token_id));
        assert_ok(mb_context_memory_new(&memory, NULL));
        struct mb_context *fresh = open_over(rig, memory);
        if (cuts[i] > 0)
            test_read(
                &rig->model, fresh, 0, cuts[i], MB_ROWS_PREFILL, NULL, NULL);
        read_on(rig, rig->ctx, cuts[i], 0);
        read_on(rig, fresh, cuts[i], 1);
        assert_same_figures(rig, cuts[i]);
        mb_context_free(fresh);
        mb_context_memory_free(memory);
    }
    assert_status(
        MB_ERR_BAD_ARG, mb_context_truncate(rig->ctx, 100000, &err), &err);
}

/* A fork reads shared blocks from the same source and goes its own way; the
 * first one does not notice. */
static void
test_context_when_forked_then_same_bits_as_read_alone(void **state)
{
    struct rig *rig = *state;
    static const size_t at[] = {LENGTH, 5 * SEGMENT + 20, 4 * SEGMENT, 300};
    struct mb_error err;
    rig->ctx = open_over(rig, rig->memory);
    read_length(rig, rig->ctx);
    for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
        struct mb_context_source source = mb_context_memory_source(rig->memory);
        struct mb_context *fork = NULL;
        struct mb_context *twin = NULL;
        assert_status(MB_OK,
            mb_context_fork(rig->ctx, at[i], &source, &fork, &err), &err);
        assert_int_equal(LENGTH, mb_context_length(rig->ctx));
        assert_status(MB_OK,
            mb_context_fork(rig->ctx, LENGTH, &source, &twin, &err), &err);
        assert_status(MB_OK, mb_context_truncate(twin, at[i], &err), &err);
        read_on(rig, fork, at[i], 0);
        read_on(rig, twin, at[i], 1);
        assert_same_figures(rig, at[i]);
        mb_context_free(fork);
        mb_context_free(twin);
    }
}

/* ---- in company ---- */

static void
test_contexts_when_in_one_pass_then_same_bits_as_alone(void **state)
{
    struct rig *rig = *state;
    struct mb_context_memory *memories[3];
    struct mb_context *alone[2];
    struct mb_cache *cache = NULL;
    struct mb_sequence *seqs[2];
    float logits[3][TEST_VOCAB];
    struct mb_error err;
    for (size_t i = 0; i < 2; i++) {
        assert_ok(mb_context_memory_new(&memories[i], NULL));
        alone[i] = open_over(rig, memories[i]);
    }
    rig->ctx = open_over(rig, rig->memory);
    assert_ok(mb_context_memory_new(&memories[2], NULL));
    struct mb_context *other = open_over(rig, memories[2]);
    assert_ok(
        mb_cache_new(rig->model.decoder, MB_CACHE_F16, 4096, &cache, NULL));
    assert_ok(mb_sequence_new(cache, &seqs[0], NULL));
    assert_ok(mb_sequence_new(cache, &seqs[1], NULL));
    for (size_t t = 0; t < 900; t += 21) {
        mb_rows_kind kind = t % 2 ? MB_ROWS_DECODE : MB_ROWS_PREFILL;
        const mb_token_id *text = rig->model.text;
        struct mb_rows together[] = {
            {.context = rig->ctx,
                .tokens = text + t,
                .n = 21,
                .kind = kind,
                .logits = rig->logits[0]},
            {.seq = seqs[0],
                .tokens = text + 2 * t / 3,
                .n = 14,
                .logits = logits[0]},
            {.context = other,
                .tokens = text + 300 + t,
                .n = 21,
                .logits = logits[1]},
        };
        struct mb_rows single[] = {together[0], together[1], together[2]};
        assert_status(
            MB_OK, mb_pass_run(rig->model.pass, together, 3, &err), &err);
        single[0].context = alone[0];
        single[0].logits = rig->logits[1];
        single[1].seq = seqs[1];
        single[1].logits = logits[2];
        for (size_t i = 0; i < 2; i++)
            assert_ok(mb_pass_run(rig->model.pass, &single[i], 1, NULL));
        assert_memory_equal(
            rig->logits[0], rig->logits[1], sizeof rig->logits[0]);
        assert_memory_equal(logits[0], logits[2], sizeof logits[0]);
        single[2].context = alone[1];
        single[2].logits = logits[0];
        assert_ok(mb_pass_run(rig->model.pass, &single[2], 1, NULL));
        assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
        struct mb_context *all[] = {rig->ctx, other, alone[0], alone[1]};
        for (size_t i = 0; i < 4; i++)
            assert_ok(mb_context_commit(all[i], NULL));
    }
    assert_int_equal(12, mb_context_n_blocks(rig->ctx));
    mb_sequence_free(seqs[0]);
    mb_sequence_free(seqs[1]);
    mb_cache_free(cache);
    mb_context_free(other);
    for (size_t i = 0; i < 2; i++)
        mb_context_free(alone[i]);
    for (size_t i = 0; i < 3; i++)
        mb_context_memory_free(memories[i]);
}

static void
test_pass_when_item_does_not_fit_then_named_and_unchanged(void **state)
{
    struct rig *rig = *state;
    struct mb_error err;
    rig->ctx = open_over(rig, rig->memory);
    struct mb_rows item = {
        .context = rig->ctx, .tokens = rig->model.text, .n = SEGMENT + 1};
    assert_status(
        MB_ERR_TOO_LARGE, mb_pass_run(rig->model.pass, &item, 1, &err), &err);
    assert_error_has(err, "room for 252");
    item.n = 0;
    assert_status(
        MB_ERR_BAD_ARG, mb_pass_run(rig->model.pass, &item, 1, &err), &err);
    struct mb_rows twice[] = {item, item};
    twice[0].n = twice[1].n = 3;
    assert_status(
        MB_ERR_BAD_ARG, mb_pass_run(rig->model.pass, twice, 2, &err), &err);
    assert_error_has(err, "twice");
    assert_int_equal(0, mb_context_length(rig->ctx));
}

/* ---- sources that fail ---- */

struct bad_source {
    struct mb_context_source under;
    bool commit_fails;
    uint64_t fetch_fails; /* ordinal */
    size_t n_released;
    size_t n_fetched;
};

static mb_status
bad_fetch(
    void *arg, uint64_t ordinal, struct mb_slice *out, struct mb_error *err)
{
    struct bad_source *s = arg;
    s->n_fetched++;
    if (ordinal == s->fetch_fails)
        return mb_error_set(err, MB_ERR_IO, "disk");
    return s->under.fetch(s->under.arg, ordinal, out, err);
}

static void
bad_release(void *arg)
{
    struct bad_source *s = arg;
    s->n_released++;
}

static mb_status
bad_commit(
    void *arg, const struct mb_context_segment *segment, struct mb_error *err)
{
    struct bad_source *s = arg;
    if (s->commit_fails)
        return mb_error_set(err, MB_ERR_NO_SPACE, "full");
    return s->under.commit(s->under.arg, segment, err);
}

static void
test_source_when_it_fails_then_context_is_unchanged(void **state)
{
    struct rig *rig = *state;
    struct bad_source bad = {
        .under = mb_context_memory_source(rig->memory),
        .fetch_fails = UINT64_MAX,
    };
    struct mb_context_source source = {
        &bad, bad_fetch, bad_release, bad_commit};
    struct mb_error err;
    const mb_token_id *text = rig->model.text;
    rig->options.modes.k = 4; // as many as a segment has
    assert_ok(mb_context_new(
        rig->model.decoder, &rig->options, &source, &rig->ctx, NULL));
    struct mb_rows item = {.context = rig->ctx, .tokens = text, .n = SEGMENT};
    assert_ok(mb_pass_run(rig->model.pass, &item, 1, NULL));
    bad.commit_fails = true;
    assert_status(MB_ERR_NO_SPACE, mb_context_commit(rig->ctx, &err), &err);
    assert_int_equal(SEGMENT, mb_context_length(rig->ctx));
    assert_int_equal(0, mb_context_n_blocks(rig->ctx));
    bad.commit_fails = false;
    assert_ok(mb_context_commit(rig->ctx, NULL));
    assert_int_equal(4, mb_context_n_blocks(rig->ctx));
    assert_int_equal(0, bad.n_fetched + bad.n_released);
    item.tokens = text + SEGMENT;
    item.n = 50;
    bad.fetch_fails = 3; // the newest: chosen by some head for sure
    item.logits = rig->logits[0];
    assert_status(
        MB_ERR_IO, mb_pass_run(rig->model.pass, &item, 1, &err), &err);
    assert_int_equal(SEGMENT, mb_context_length(rig->ctx));
    assert_int_equal(1, bad.n_released);
    bad.fetch_fails = UINT64_MAX;
    bad.n_fetched = 0;
    assert_ok(mb_pass_run(rig->model.pass, &item, 1, NULL));
    assert_int_equal(2, bad.n_released);
    assert_int_equal(4, bad.n_fetched); // once each, for all layers and heads
    struct mb_context_memory *memory = NULL;
    assert_ok(mb_context_memory_new(&memory, NULL));
    struct mb_context *fresh = open_over(rig, memory);
    test_read(&rig->model, fresh, 0, SEGMENT, MB_ROWS_PREFILL, NULL, NULL);
    test_read(&rig->model, fresh, SEGMENT, SEGMENT + 50, MB_ROWS_PREFILL, NULL,
        rig->logits[1]);
    assert_memory_equal(rig->logits[0], rig->logits[1], sizeof rig->logits[0]);
    mb_context_free(fresh);
    mb_context_memory_free(memory);
}

static void
test_context_when_without_source_then_ends_with_its_window(void **state)
{
    struct rig *rig = *state;
    struct mb_error err;
    assert_ok(mb_context_new(
        rig->model.decoder, &rig->options, NULL, &rig->ctx, NULL));
    test_read(&rig->model, rig->ctx, 0, SEGMENT, MB_ROWS_PREFILL, NULL, NULL);
    struct mb_context_rows rows = {.tokens = rig->model.text, .n = 1};
    assert_status(MB_ERR_TOO_LARGE,
        mb_context_read(rig->ctx, rig->model.pass, &rows, &err), &err);
    assert_ok(mb_context_truncate(rig->ctx, 0, NULL));
    test_read(&rig->model, rig->ctx, 0, SEGMENT, MB_ROWS_PREFILL, NULL, NULL);
}

/* Two segments with a pass of its own, a fork, and what it reads. */
static mb_status
read_and_fork(void *arg)
{
    struct rig *rig = arg;
    struct mb_context_memory *memory = NULL;
    struct mb_context_source source;
    struct mb_context *ctx = NULL;
    struct mb_context *fork = NULL;
    struct mb_pass *pass = NULL;
    struct mb_context_rows rows = {
        .tokens = rig->model.text, .n = 300, .logits = rig->logits[0]};
    mb_status st = mb_context_memory_new(&memory, NULL);
    if (st != MB_OK)
        return st;
    source = mb_context_memory_source(memory);
    st = mb_pass_new(rig->model.decoder, 300, 1, &pass, NULL);
    if (st == MB_OK)
        st = mb_context_new(
            rig->model.decoder, &rig->options, &source, &ctx, NULL);
    if (st == MB_OK)
        st = mb_context_read(ctx, pass, &rows, NULL);
    if (st == MB_OK)
        st = mb_context_fork(ctx, 100, &source, &fork, NULL);
    rows.n = 40;
    if (st == MB_OK)
        st = mb_context_read(fork, pass, &rows, NULL);
    mb_context_free(fork);
    mb_context_free(ctx);
    mb_pass_free(pass);
    mb_context_memory_free(memory);
    return st;
}

static void
test_context_when_memory_is_short_then_no_memory(void **state)
{
    mb_test_each_allocation(read_and_fork, *state);
}

/* ---- records ---- */

static void
test_record_when_read_then_says_what_it_is(void **state)
{
    struct rig *rig = *state;
    struct mb_context_segment tail;
    struct mb_context_record r;
    rig->ctx = open_over(rig, rig->memory);
    test_read(&rig->model, rig->ctx, 0, 300, MB_ROWS_PREFILL, NULL, NULL);
    assert_ok(mb_context_tail(rig->ctx, &tail, NULL));
    assert_int_equal(mb_context_block_bytes(rig->model.decoder, &rig->options),
        tail.blocks[0].size);
    assert_int_equal(mb_context_sum_bytes(rig->model.decoder, &rig->options),
        tail.sums[0].size);
    assert_ok(mb_context_record_read(tail.blocks[0], true, &r, NULL));
    assert_false(r.is_sum);
    assert_int_equal(4, r.ordinal);
    assert_int_equal(48, r.n_tokens);
    assert_int_equal(64, r.block_rows);
    assert_int_equal(3, r.n_layers);
    assert_int_equal(2, r.n_kv_heads);
    assert_int_equal(16, r.head_dim);
    assert_int_equal(MB_CACHE_F16, r.type);
    assert_memory_equal(rig->options.weights, r.weights, 16);
    for (size_t t = 0; t < 48; t++)
        assert_int_equal(
            rig->model.text[SEGMENT + t], mb_get_le32(r.tokens.data + 4 * t));
    assert_ok(mb_context_record_read(
        mb_context_memory_sum(rig->memory, 3), true, &r, NULL));
    assert_true(r.is_sum);
    assert_int_equal(3, r.ordinal);
    assert_int_equal(63, r.n_tokens);
}

/* One byte that changes a block's record, and what is said. */
static void
test_record_when_damaged_then_refused_by_name(void **state)
{
    struct rig *rig = *state;

    static const struct {
        size_t at;
        uint8_t to;
        mb_status status;
        const char *part;
    } bad[] = {
        {0, 'X', MB_ERR_FORMAT, "no record"},
        {4, 9, MB_ERR_FORMAT, "version 9"},
        {8, 0xAA, MB_ERR_MISMATCH, "other weights"},
        {24, 7, MB_ERR_CORRUPT, "block 7"},
        {32, 200, MB_ERR_CORRUPT, "type 200"},
        {32, MB_CACHE_F32, MB_ERR_MISMATCH, "type 2"},
        {36, 63, MB_ERR_CORRUPT, "63 rows"},
        {38, 64, MB_ERR_CORRUPT, "64 tokens"},
        {40, 0, MB_ERR_CORRUPT, "0 layers"},
        {40, 4, MB_ERR_CORRUPT, "bytes, expected"},
        {44, 1, MB_ERR_CORRUPT, "bytes, expected"},
        {48, 7, MB_ERR_CORRUPT, "heads of 7"},
        {48, 24, MB_ERR_CORRUPT, "bytes, expected"},
    };
    struct mb_error err;
    struct mb_slice sum;
    rig->ctx = open_over(rig, rig->memory);
    test_read(&rig->model, rig->ctx, 0, SEGMENT, MB_ROWS_PREFILL, NULL, NULL);
    sum = mb_context_memory_sum(rig->memory, 2);
    uint8_t *copy = mb_alloc(sum.size);
    assert_non_null(copy);
    assert_ok(mb_context_check_sum(rig->ctx, sum, 2, true, &err));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        memcpy(copy, sum.data, sum.size);
        copy[bad[i].at] = bad[i].to;
        assert_status(bad[i].status,
            mb_context_check_sum(
                rig->ctx, mb_slice_of(copy, sum.size), 2, false, &err),
            &err);
        assert_error_has(err, bad[i].part);
    }
    for (size_t size = 0; size < sum.size; size++)
        assert_status(MB_ERR_CORRUPT,
            mb_context_check_sum(
                rig->ctx, mb_slice_of(sum.data, size), 2, false, &err),
            &err);
    for (size_t at = 8; at < sum.size; at++) { // any byte, by the checksum
        memcpy(copy, sum.data, sum.size);
        copy[at] ^= 0x10;
        assert_true(mb_context_check_sum(rig->ctx, mb_slice_of(copy, sum.size),
                        2, true, NULL) != MB_OK);
    }
    memcpy(copy, sum.data, sum.size);
    copy[321] = 0x7c; // infinity
    copy[320] = 0;
    assert_status(MB_ERR_CORRUPT,
        mb_context_check_sum(
            rig->ctx, mb_slice_of(copy, sum.size), 2, false, &err),
        &err);
    assert_error_has(err, "no numbers");
    mb_free(copy);
}

static void
test_restore_when_out_of_order_then_refused(void **state)
{
    struct rig *rig = *state;
    struct mb_context_segment tail;
    struct mb_error err;
    rig->ctx = open_over(rig, rig->memory);
    test_read(
        &rig->model, rig->ctx, 0, SEGMENT + 70, MB_ROWS_PREFILL, NULL, NULL);
    struct mb_context *again = open_over(rig, rig->memory);
    assert_status(MB_ERR_CORRUPT,
        mb_context_restore(again, mb_context_memory_sum(rig->memory, 1), &err),
        &err);
    for (uint64_t b = 0; b < 4; b++)
        assert_ok(mb_context_restore(
            again, mb_context_memory_sum(rig->memory, b), NULL));
    assert_ok(mb_context_tail(rig->ctx, &tail, NULL));
    assert_status(MB_ERR_CORRUPT,
        mb_context_restore_tail(again, tail.blocks[1], tail.sums[1], &err),
        &err);
    assert_ok(
        mb_context_restore_tail(again, tail.blocks[0], tail.sums[0], NULL));
    assert_ok(
        mb_context_restore_tail(again, tail.blocks[1], tail.sums[1], NULL));
    assert_status(MB_ERR_BAD_ARG,
        mb_context_restore_tail(again, tail.blocks[1], tail.sums[1], &err),
        &err);
    assert_status(MB_ERR_BAD_ARG,
        mb_context_restore(again, mb_context_memory_sum(rig->memory, 0), &err),
        &err);
    mb_context_free(again);
}

static void
test_context_when_options_are_wrong_then_named(void **state)
{
    struct rig *rig = *state;
    struct mb_error err;
    struct mb_context *ctx = NULL;
    struct mb_context_options bad[6];
    for (size_t i = 0; i < 6; i++)
        bad[i] = rig->options;
    bad[0].landmark = -1;
    bad[1].landmark = TEST_VOCAB;
    bad[2].modes.k = MB_CONTEXT_MAX_K + 1;
    bad[3].segment_blocks = MB_CONTEXT_MAX_SEGMENT + 1;
    bad[4].type = (mb_cache_type)9;
    bad[5].modes.decode = (mb_select)9;
    for (size_t i = 0; i < 6; i++) {
        assert_status(MB_ERR_BAD_ARG,
            mb_context_new(rig->model.decoder, &bad[i], NULL, &ctx, &err),
            &err);
        assert_null(ctx);
    }
    assert_int_equal(576, mb_context_span(&(struct mb_context_options){0}));
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_context_when_restored_then_same_bits),
        TEST(test_context_when_restored_with_a_tail_then_same_bits),
        TEST(test_context_when_restored_of_int8_then_same_bits),
        TEST(test_context_when_tail_is_lost_then_rereading_gives_same_bits),
        TEST(test_context_when_cut_then_same_bits_as_never_read),
        TEST(test_context_when_forked_then_same_bits_as_read_alone),
        TEST(test_contexts_when_in_one_pass_then_same_bits_as_alone),
        TEST(test_pass_when_item_does_not_fit_then_named_and_unchanged),
        TEST(test_source_when_it_fails_then_context_is_unchanged),
        TEST(test_context_when_without_source_then_ends_with_its_window),
        TEST(test_context_when_memory_is_short_then_no_memory),
        TEST(test_record_when_read_then_says_what_it_is),
        TEST(test_record_when_damaged_then_refused_by_name),
        TEST(test_restore_when_out_of_order_then_refused),
        TEST(test_context_when_options_are_wrong_then_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
