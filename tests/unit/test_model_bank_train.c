/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_bank_train.c - training of memory blocks: what it
 * learns, and that its result depends on nothing that it should not. */
#include "mb_test_bank.h"

#include <math.h>

#define MAX_ITEMS 64u

/* Losses of the trainer's graph and of the decoder: sums in other orders. */
#define LOSS_ATOL 2e-4

static const uint64_t four_leaves[] = {11, 12, 21, 22};

static const struct mb_bank_train_options few_steps = {
    .n_threads = 1, .seed = 7, .epochs = 4, .batch = 5, .n_ctx = BANK_N_CTX};

/* A trainer with a job that goes on from progress, or begins (empty). */
static struct mb_bank_trainer *
begin(const struct mb_gguf *gguf, const struct mb_bank_train_options *o,
    const struct mb_bank_item *items, size_t n, struct bank_memory *m,
    struct mb_slice progress)
{
    struct mb_bank_trainer *t = NULL;
    struct mb_bank_io io = bank_io_of(m);
    struct mb_error err;
    assert_status(MB_OK,
        mb_bank_trainer_new(gguf, &bank_two_levels, o, &io, &t, &err), &err);
    assert_status(
        MB_OK, mb_bank_trainer_begin(t, items, n, progress, &err), &err);
    return t;
}

static struct mb_slice
progress_of(const struct bank_memory *m)
{
    return mb_slice_of(m->progress, m->progress_size);
}

/* Train a job from what the memory has; stops where the memory says. */
static struct mb_bank_progress
train(const struct mb_gguf *gguf, const struct mb_bank_train_options *o,
    const struct mb_bank_item *items, size_t n, struct bank_memory *m)
{
    struct mb_bank_trainer *t = begin(gguf, o, items, n, m, progress_of(m));
    struct mb_bank_progress p = {0};
    struct mb_error err;
    assert_status(MB_OK, mb_bank_trainer_run(t, 0, 0, &p, &err), &err);
    mb_bank_trainer_free(t);
    return p;
}

static void
assert_same_states(struct bank_memory *a, struct bank_memory *b)
{
    assert_int_equal(a->n_rows, b->n_rows);
    for (size_t i = 0; i < a->n_rows; i++) {
        struct bank_row *row = bank_row_of(b, a->rows[i].node);
        assert_int_equal(a->rows[i].size, row->size);
        assert_memory_equal(a->rows[i].bytes, row->bytes, row->size);
    }
}

/* ---- learning ---- */

struct gains {
    struct mb_bank_gain gain[BANK_MAX_NODES];
    uint8_t *record[BANK_MAX_NODES];
    size_t n;
};

static mb_status
keep_gain(void *arg, const struct mb_bank_gain *gain, struct mb_error *err)
{
    struct gains *g = arg;
    (void)err;
    assert_true(g->n < BANK_MAX_NODES);
    assert_ok(mb_bank_block_verify(gain->record, NULL));
    g->record[g->n] = mb_alloc(gain->record.size);
    assert_non_null(g->record[g->n]);
    memcpy(g->record[g->n], gain->record.data, gain->record.size);
    g->gain[g->n] = *gain;
    g->gain[g->n].record = mb_slice_of(g->record[g->n], gain->record.size);
    g->n++;
    return MB_OK;
}

static void
measure(const struct mb_gguf *gguf, const struct mb_bank_train_options *o,
    const struct mb_bank_item *items, size_t n, struct bank_memory *m,
    struct gains *out)
{
    struct mb_bank_trainer *t = begin(gguf, o, items, n, m, progress_of(m));
    struct mb_error err;
    *out = (struct gains){.n = 0};
    assert_status(
        MB_OK, mb_bank_trainer_measure(t, keep_gain, out, &err), &err);
    mb_bank_trainer_free(t);
}

static void
gains_fini(struct gains *g)
{
    for (size_t i = 0; i < g->n; i++)
        mb_free(g->record[i]);
}

/* Mean loss of a held-out window by the decoder, with blocks [0, n_blocks) of
 * a path of two gains. */
static double
decoder_loss(const struct mb_gguf *gguf, const struct mb_bank_gain *top,
    const struct mb_bank_gain *leaf, uint64_t key)
{
    struct mb_decoder *decoder = NULL;
    struct mb_cache *cache = NULL;
    struct mb_pass *pass = NULL;
    struct mb_sequence *seq = NULL;
    struct mb_bank_path path = {.n_blocks = 2};
    struct mb_bank_item item = {.key = key};
    mb_token_id tokens[BANK_N_CTX];
    mb_token_id targets[BANK_N_CTX];
    float nll[BANK_N_CTX];
    double sum = 0;
    size_t n = 0;
    assert_ok(mb_decoder_open(gguf, &decoder, NULL));
    assert_ok(mb_cache_new(decoder, MB_CACHE_F32, 64, &cache, NULL));
    assert_ok(mb_pass_new(decoder, 64, 1, &pass, NULL));
    assert_ok(mb_sequence_new(cache, &seq, NULL));
    assert_ok(mb_bank_block_open(top->record, &path.blocks[0], NULL));
    assert_ok(mb_bank_block_open(leaf->record, &path.blocks[1], NULL));
    assert_ok(bank_window(NULL, &item, 0, tokens, targets, &n, NULL));
    struct mb_rows rows = {.seq = seq,
        .tokens = tokens,
        .n = n,
        .targets = targets,
        .nll = nll,
        .bank = &path};
    assert_ok(mb_pass_run(pass, &rows, 1, NULL));
    for (size_t i = 0; i < n; i++)
        sum += (double)nll[i];
    mb_sequence_free(seq);
    mb_pass_free(pass);
    mb_cache_free(cache);
    mb_decoder_close(decoder);
    return sum / (double)(n - 1);
}

static void
test_run_when_leaves_repeat_then_learnt_and_served_alike(void **state)
{
    (void)state;
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = bank_tiny_model(&dir);
    struct mb_bank_item items[MAX_ITEMS];
    struct bank_memory m = {0};
    struct mb_bank_train_options o = few_steps;
    struct gains fresh;
    struct gains after;
    size_t n = bank_items(four_leaves, 4, 6, items);
    o.epochs = 30;
    o.rate = 0.02;
    measure(gguf, &o, items, n, &m, &fresh);
    struct mb_bank_progress p = train(gguf, &o, items, n, &m);
    measure(gguf, &o, items, n, &m, &after);
    assert_true(p.is_finished);
    assert_int_equal(p.step, 30 * 4); // 20 windows in steps of 5
    assert_int_equal(p.n_tokens, 30 * 20 * (BANK_N_CTX - 1));
    assert_int_equal(after.n, 6); // nodes 1, 2, 11, 12, 21, 22
    for (size_t i = 0; i < 6; i++) {
        const struct mb_bank_gain *g = &after.gain[i];
        assert_int_equal(g->level, i < 2 ? 1 : 2);
        assert_int_equal(g->n_windows, i < 2 ? 10 : 5);
        assert_int_equal(g->n_held_out, (i < 2 ? 2 : 1) * (BANK_N_CTX - 1));
        assert_true(fresh.gain[i].before == fresh.gain[i].after);
        assert_true(g->before == fresh.gain[i].before);
        assert_true(g->with < g->without);
        assert_true(g->after < 0.2 * g->before);
    }
    for (size_t i = 0; i < 4; i++) {
        const struct mb_bank_gain *leaf = &after.gain[2 + i];
        double loss = decoder_loss(
            gguf, &after.gain[i / 2], leaf, four_leaves[i] * 100 + 5);
        assert_true(fabs(loss - leaf->after) < LOSS_ATOL);
    }
    gains_fini(&fresh);
    gains_fini(&after);
    bank_memory_fini(&m);
    mb_gguf_close(gguf);
    mb_test_dir_end(&dir);
}

static void
test_run_when_generic_then_one_block(void **state)
{
    (void)state;
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = bank_tiny_model(&dir);
    struct mb_bank_item items[MAX_ITEMS];
    struct bank_memory m = {0};
    struct mb_bank_train_options o = few_steps;
    struct gains g;
    size_t n = bank_items(four_leaves, 4, 6, items);
    o.is_generic = true;
    (void)train(gguf, &o, items, n, &m);
    measure(gguf, &o, items, n, &m, &g);
    assert_int_equal(m.n_rows, 1);
    assert_true(m.rows[0].node == MB_BANK_GENERIC);
    assert_int_equal(g.n, 1);
    assert_int_equal(g.gain[0].level, 0);
    assert_true(g.gain[0].after < g.gain[0].before);
    gains_fini(&g);
    bank_memory_fini(&m);
    mb_gguf_close(gguf);
    mb_test_dir_end(&dir);
}

/* ---- what the result does not depend on ---- */

static void
test_run_when_listed_otherwise_or_on_more_threads_then_same_bits(void **state)
{
    (void)state;
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = bank_tiny_model(&dir);
    struct mb_bank_item items[MAX_ITEMS];
    struct mb_bank_item mixed[MAX_ITEMS];
    struct bank_memory a = {0};
    struct bank_memory b = {0};
    struct mb_bank_train_options o = few_steps;
    size_t n = bank_items(four_leaves, 4, 6, items);
    for (size_t i = 0; i < n; i++)
        mixed[i] = items[i * 7 % n];
    (void)train(gguf, &o, items, n, &a);
    o.n_threads = 3;
    (void)train(gguf, &o, mixed, n, &b);
    assert_same_states(&a, &b);
    bank_memory_fini(&b);
    o.seed++; // the comparison can fail
    (void)train(gguf, &o, items, n, &b);
    assert_memory_not_equal(a.rows[0].bytes,
        bank_row_of(&b, a.rows[0].node)->bytes, a.rows[0].size);
    bank_memory_fini(&a);
    bank_memory_fini(&b);
    mb_gguf_close(gguf);
    mb_test_dir_end(&dir);
}

static void
test_run_when_stopped_anywhere_then_same_bits_as_unbroken(void **state)
{
    (void)state;
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = bank_tiny_model(&dir);
    struct mb_bank_item items[MAX_ITEMS];
    struct bank_memory a = {0};
    size_t n = bank_items(four_leaves, 4, 6, items);
    struct mb_bank_progress whole = train(gguf, &few_steps, items, n, &a);
    for (uint64_t stop = 1; stop <= 9; stop += 4) {
        struct bank_memory b = {.stop_after = stop};
        struct mb_bank_progress p = {0};
        size_t n_parts = 0;
        do {
            b.n_asked = 0;
            p = train(gguf, &few_steps, items, n, &b);
            n_parts++;
        } while (!p.is_finished);
        assert_int_equal(n_parts, (whole.n_steps + stop - 1) / stop);
        assert_int_equal(p.n_tokens, whole.n_tokens);
        assert_same_states(&a, &b);
        bank_memory_fini(&b);
    }
    bank_memory_fini(&a);
    mb_gguf_close(gguf);
    mb_test_dir_end(&dir);
}

/* Given up amid a step, on two threads: the step is done again. */
static void
test_run_when_it_gives_way_then_same_bits_as_unbroken(void **state)
{
    (void)state;
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = bank_tiny_model(&dir);
    struct mb_bank_item items[MAX_ITEMS];
    struct mb_bank_train_options o = few_steps;
    struct bank_memory a = {0};
    struct bank_memory b = {.gives_way_after = 21};
    struct mb_bank_progress p = {0};
    size_t n = bank_items(four_leaves, 4, 6, items);
    size_t n_parts = 0;
    o.n_threads = 2;
    struct mb_bank_progress whole = train(gguf, &o, items, n, &a);
    assert_int_equal(a.n_steps_told, whole.n_steps);
    do {
        uint64_t before = p.n_tokens;
        atomic_store(&b.n_windows, 0);
        p = train(gguf, &o, items, n, &b);
        assert_int_equal(p.n_run_tokens, p.n_tokens - before);
        n_parts++;
    } while (!p.is_finished);
    assert_true(n_parts > 2);
    assert_int_equal(b.n_steps_told, whole.n_steps);
    assert_same_states(&a, &b);
    struct mb_bank_trainer *t = begin(gguf, &o, items, n, &b, progress_of(&b));
    struct gains g = {.n = 0};
    b.gives_way_after = 1;
    assert_int_equal(
        MB_ERR_CANCELLED, mb_bank_trainer_measure(t, keep_gain, &g, NULL));
    assert_int_equal(g.n, 0);
    mb_bank_trainer_free(t);
    bank_memory_fini(&a);
    bank_memory_fini(&b);
    mb_gguf_close(gguf);
    mb_test_dir_end(&dir);
}

/* Room for the states of one leaf: groups of leaves, other order, but as exact
 * when it is stopped, and never more states than there is room for. */
static void
test_run_when_room_is_small_then_groups_of_leaves(void **state)
{
    (void)state;
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = bank_tiny_model(&dir);
    struct mb_bank_item items[MAX_ITEMS];
    struct bank_memory a = {0};
    struct bank_memory b = {.stop_after = 3};
    struct mb_bank_train_options o = few_steps;
    struct mb_bank_progress p = {0};
    size_t n = bank_items(four_leaves, 4, 6, items);
    o.resident_bytes = 1;
    p = train(gguf, &o, items, n, &a);
    assert_int_equal(p.n_resident, 2);
    assert_true(a.n_commits >= 16); // four groups, four epochs
    do {
        b.n_asked = 0;
        p = train(gguf, &o, items, n, &b);
    } while (!p.is_finished);
    assert_same_states(&a, &b);
    bank_memory_fini(&a);
    bank_memory_fini(&b);
    mb_gguf_close(gguf);
    mb_test_dir_end(&dir);
}

/* All windows of the job in each step: what the other subtree does must not
 * show, to the bit; and its records are not even asked for. */
static void
test_run_when_subtrees_are_apart_then_as_together(void **state)
{
    (void)state;
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = bank_tiny_model(&dir);
    struct mb_bank_item items[MAX_ITEMS];
    struct bank_memory together = {0};
    struct bank_memory apart = {0};
    struct mb_bank_train_options o = few_steps;
    o.batch = 64;
    size_t n = bank_items(four_leaves, 4, 6, items);
    (void)train(gguf, &o, items, n, &together);
    n = bank_items(four_leaves, 2, 6, items);
    (void)train(gguf, &o, items, n, &apart);
    assert_int_equal(apart.n_rows, 3);
    apart.progress_size = 0;
    n = bank_items(four_leaves + 2, 2, 6, items);
    size_t n_loads = bank_row_of(&apart, 11)->n_loads;
    (void)train(gguf, &o, items, n, &apart);
    assert_int_equal(bank_row_of(&apart, 11)->n_loads, n_loads);
    assert_same_states(&together, &apart);
    bank_memory_fini(&together);
    bank_memory_fini(&apart);
    mb_gguf_close(gguf);
    mb_test_dir_end(&dir);
}

/* ---- refusals ---- */

static void
test_begin_when_items_are_wrong_then_refused(void **state)
{
    (void)state;
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = bank_tiny_model(&dir);
    struct mb_bank_item items[MAX_ITEMS];
    struct bank_memory m = {0};
    struct mb_bank_io io = bank_io_of(&m);
    struct mb_bank_trainer *t = NULL;
    struct mb_slice none = {NULL, 0};
    struct mb_error err;
    size_t n = bank_items(four_leaves, 2, 3, items);
    assert_ok(
        mb_bank_trainer_new(gguf, &bank_two_levels, &few_steps, &io, &t, NULL));
    assert_int_equal(
        MB_ERR_BAD_ARG, mb_bank_trainer_begin(t, items, 0, none, NULL));
    items[1].key = items[0].key;
    assert_status(
        MB_ERR_BAD_ARG, mb_bank_trainer_begin(t, items, n, none, &err), &err);
    assert_error_has(err, "key");
    n = bank_items(four_leaves, 2, 3, items);
    items[0].path[0] = 12;
    assert_status(
        MB_ERR_BAD_ARG, mb_bank_trainer_begin(t, items, n, none, &err), &err);
    assert_error_has(err, "node 12");
    n = bank_items(four_leaves, 2, 1, items); // all held out
    assert_status(
        MB_ERR_BAD_ARG, mb_bank_trainer_begin(t, items, n, none, &err), &err);
    n = bank_items(four_leaves, 2, 3, items);
    assert_int_equal(
        MB_ERR_MISMATCH, mb_bank_trainer_begin(t, items, n,
                             mb_slice_of("not of this job", 15), NULL));
    mb_bank_trainer_free(t);
    bank_memory_fini(&m);
    mb_gguf_close(gguf);
    mb_test_dir_end(&dir);
}

static void
test_run_when_state_is_damaged_then_corrupt(void **state)
{
    (void)state;
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = bank_tiny_model(&dir);
    struct mb_bank_item items[MAX_ITEMS];
    struct bank_memory m = {0};
    struct mb_bank_progress p;
    struct mb_error err;
    size_t n = bank_items(four_leaves, 1, 3, items);
    (void)train(gguf, &few_steps, items, n, &m);
    struct bank_row *row = bank_row_of(&m, 11);
    for (size_t at = 0; at < row->size; at += at < 120 ? 3 : 997) {
        row->bytes[at] ^= 0x40;
        struct mb_bank_trainer *t =
            begin(gguf, &few_steps, items, n, &m, mb_slice_of(NULL, 0));
        assert_status(
            MB_ERR_CORRUPT, mb_bank_trainer_run(t, 0, 0, &p, &err), &err);
        mb_bank_trainer_free(t);
        row->bytes[at] ^= 0x40;
    }
    bank_memory_fini(&m);
    mb_gguf_close(gguf);
    mb_test_dir_end(&dir);
}

static void
assert_finite_states(const struct bank_memory *m)
{
    for (size_t i = 0; i < m->n_rows; i++) {
        const struct bank_row *row = &m->rows[i];
        struct mb_slice record;
        if (row->size == 0)
            continue; // never saved
        assert_ok(mb_bank_state_record(
            mb_slice_of(row->bytes, row->size), &record, NULL, NULL));
        // Weights, moments and squares follow the record's header.
        const uint8_t *end = row->bytes + row->size - 4;
        for (const uint8_t *p = (const uint8_t *)record.data + MB_BANK_HEADER;
             p < end; p += 4)
            assert_true((mb_get_le32(p) >> 23 & 0xff) != 0xff);
    }
}

/* Make "up" of the first layer of a saved state huge. What the block gives
 * stays small, as long as "down" is almost nothing. */
static void
make_huge(struct bank_row *row, size_t rows)
{
    size_t n = rows * bank_two_levels.d_model;
    struct mb_slice record;
    assert_ok(mb_bank_state_record(
        mb_slice_of(row->bytes, row->size), &record, NULL, NULL));
    uint8_t *p = row->bytes + ((const uint8_t *)record.data - row->bytes) +
                 MB_BANK_HEADER + 4 * n;
    const float huge = 1e25f;
    for (size_t i = 0; i < n; i++)
        memcpy(p + 4 * i, &huge, sizeof(huge));
    mb_put_le32(row->bytes + row->size - 4,
        (uint32_t)mb_hash64(row->bytes, row->size - 4, 0));
}

static void
test_run_when_gradient_is_too_large_then_refused_and_not_saved(void **state)
{
    (void)state;
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = bank_tiny_model(&dir);
    struct mb_bank_item items[MAX_ITEMS];
    struct mb_bank_train_options o = few_steps;
    struct bank_memory m = {0};
    struct mb_bank_progress p;
    struct mb_error err;
    size_t n = bank_items(four_leaves, 1, 3, items);
    o.rate = o.decay = 1e-36;
    (void)train(gguf, &o, items, n, &m);
    make_huge(bank_row_of(&m, 11), bank_two_levels.rows[1]);
    size_t n_commits = m.n_commits;
    o.checkpoint_steps = 1;
    struct mb_bank_trainer *t =
        begin(gguf, &o, items, n, &m, mb_slice_of(NULL, 0));
    assert_status(MB_ERR_CORRUPT, mb_bank_trainer_run(t, 0, 0, &p, &err), &err);
    assert_error_has(err, "gradient of node");
    assert_int_equal(m.n_commits, n_commits);
    assert_finite_states(&m);
    mb_bank_trainer_free(t);
    bank_memory_fini(&m);
    mb_gguf_close(gguf);
    mb_test_dir_end(&dir);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_run_when_leaves_repeat_then_learnt_and_served_alike),
        cmocka_unit_test(test_run_when_generic_then_one_block),
        cmocka_unit_test(
            test_run_when_listed_otherwise_or_on_more_threads_then_same_bits),
        cmocka_unit_test(
            test_run_when_stopped_anywhere_then_same_bits_as_unbroken),
        cmocka_unit_test(test_run_when_it_gives_way_then_same_bits_as_unbroken),
        cmocka_unit_test(test_run_when_room_is_small_then_groups_of_leaves),
        cmocka_unit_test(test_run_when_subtrees_are_apart_then_as_together),
        cmocka_unit_test(test_begin_when_items_are_wrong_then_refused),
        cmocka_unit_test(test_run_when_state_is_damaged_then_corrupt),
        cmocka_unit_test(
            test_run_when_gradient_is_too_large_then_refused_and_not_saved),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
