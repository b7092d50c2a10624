/* SPDX-License-Identifier: Apache-2.0
 * tests/support/mb_test_bank.h - a tiny model in F32 and a bank in memory.
 *
 * Texts of a leaf repeat a sequence of tokens that is the leaf's own, which the
 * model cannot know and a block can learn.
 * Threads: the main thread. */
#ifndef MB_TEST_BANK_H
#define MB_TEST_BANK_H

#include <stdatomic.h>

#include "mb_test.h"

#include "mb_bank_train.h"
#include "mb_decoder.h"
#include "mb_export.h"
#include "mb_gguf_write.h"

#define BANK_MAX_NODES 16u
#define BANK_N_CTX     32u

static const struct train_shape bank_tiny = {.n_layers = 3,
    .d_model = 32,
    .n_heads = 2,
    .n_kv_heads = 1,
    .head_dim = 16,
    .d_ff = 48,
    .n_vocab = 64,
    .n_ctx = 64,
    .rope_base = 10000,
    .norm_eps = 1e-5};

static const struct mb_bank_shape bank_two_levels = {.d_model = 32,
    .first_layer = 1,
    .n_layers = 2,
    .n_levels = 2,
    .rows = {8, 4}};

/* Write the trainer's weights as a model in F32. */
static inline void
bank_write_model(struct trainer *t, const char *path)
{
    struct export_weight weights[64];
    struct mb_gguf *vocab = NULL;
    struct mb_error err;
    size_t n = trainer_n_weights(t);
    assert_true(n <= 64);
    for (size_t i = 0; i < n; i++) {
        const struct train_weight *w = trainer_weight(t, i);
        weights[i] =
            (struct export_weight){w->name, w->n_rows, w->n_cols, w->value};
    }
    assert_ok(
        mb_gguf_open(MB_SOURCE_DIR "/model/weights/anchor.gguf", &vocab, NULL));
    assert_status(MB_OK,
        export_gguf(path,
            &(struct export_options){.shape = trainer_shape(t),
                .weights = weights,
                .n_weights = n,
                .vocab = vocab,
                .type = GGUF_F32},
            &err),
        &err);
    mb_gguf_close(vocab);
}

/* Weights ten times as large as fresh ones, so that layers matter. */
static inline struct trainer *
bank_tiny_trainer(void)
{
    struct trainer *t = NULL;
    assert_ok(trainer_new(&bank_tiny,
        &(struct train_options){.n_threads = 1, .seed = 3}, &t, NULL));
    for (size_t i = 0; i < trainer_n_weights(t); i++) {
        struct train_weight *w = trainer_weight(t, i);
        for (size_t j = 0; w->n_rows > 1 && j < w->n_rows * w->n_cols; j++)
            w->value[j] *= 10;
    }
    return t;
}

static inline struct mb_gguf *
bank_tiny_model(const struct mb_test_dir *dir)
{
    char path[1024];
    struct trainer *t = bank_tiny_trainer();
    struct mb_gguf *gguf = NULL;
    (void)snprintf(path, sizeof(path), "%s/tiny.gguf", dir->path);
    bank_write_model(t, path);
    assert_ok(mb_gguf_open(path, &gguf, NULL));
    trainer_free(t);
    return gguf;
}

/* ---- a bank in memory ---- */

struct bank_row {
    uint64_t node;
    uint8_t *bytes;
    size_t size;
    size_t n_loads;
};

struct bank_memory {
    struct bank_row rows[BANK_MAX_NODES];
    size_t n_rows;
    uint8_t progress[64];
    size_t progress_size;
    size_t n_commits;
    uint64_t stop_after; /* steps; 0: never */
    uint64_t n_asked;
    uint64_t gives_way_after;       /* windows; 0: never */
    atomic_uint_fast64_t n_windows; /* that gives_way was asked for */
    uint64_t n_steps_told;
};

static inline struct bank_row *
bank_row_of(struct bank_memory *m, uint64_t node)
{
    for (size_t i = 0; i < m->n_rows; i++) {
        if (m->rows[i].node == node)
            return &m->rows[i];
    }
    assert_true(m->n_rows < BANK_MAX_NODES);
    m->rows[m->n_rows] = (struct bank_row){.node = node};
    return &m->rows[m->n_rows++];
}

/* Token r of a leaf's text. */
static inline mb_token_id
bank_token(uint64_t leaf, size_t r)
{
    uint64_t key[] = {leaf, r % 8};
    return (mb_token_id)(mb_hash64(key, sizeof(key), 0) % bank_tiny.n_vocab);
}

/* key / 100 is the leaf, key % 100 where the window begins. */
static inline mb_status
bank_window(void *arg, const struct mb_bank_item *item, uint64_t epoch,
    mb_token_id *tokens, mb_token_id *targets, size_t *n, struct mb_error *err)
{
    (void)arg;
    (void)err;
    *n = BANK_N_CTX;
    for (size_t r = 0; r < *n; r++) {
        size_t at = item->key % 100 + epoch + r;
        tokens[r] = bank_token(item->key / 100, at);
        targets[r] = r > 0 ? bank_token(item->key / 100, at + 1) : -1;
    }
    return MB_OK;
}

static inline mb_status
bank_load(void *arg, uint64_t node, struct mb_slice *state,
    struct mb_slice *record, struct mb_error *err)
{
    struct bank_row *row = bank_row_of(arg, node);
    (void)err;
    row->n_loads++;
    *state = mb_slice_of(row->bytes, row->size);
    *record = mb_slice_of(NULL, 0);
    return MB_OK;
}

static inline mb_status
bank_save(void *arg, uint64_t node, size_t level, struct mb_slice state,
    struct mb_error *err)
{
    struct bank_row *row = bank_row_of(arg, node);
    (void)level;
    (void)err;
    mb_free(row->bytes);
    row->bytes = mb_alloc(state.size);
    row->size = state.size;
    if (!row->bytes)
        return MB_ERR_NOMEM;
    memcpy(row->bytes, state.data, state.size);
    return MB_OK;
}

static inline mb_status
bank_commit(void *arg, struct mb_slice progress, struct mb_error *err)
{
    struct bank_memory *m = arg;
    (void)err;
    memcpy(m->progress, progress.data, progress.size);
    m->progress_size = progress.size;
    m->n_commits++;
    return MB_OK;
}

static inline bool
bank_is_stopped(void *arg)
{
    struct bank_memory *m = arg;
    return m->stop_after > 0 && ++m->n_asked > m->stop_after;
}

/* Comes on any thread. */
static inline bool
bank_gives_way(void *arg)
{
    struct bank_memory *m = arg;
    return m->gives_way_after > 0 &&
           atomic_fetch_add(&m->n_windows, 1) >= m->gives_way_after;
}

static inline void
bank_on_step(void *arg, const struct mb_bank_progress *p)
{
    struct bank_memory *m = arg;
    assert_true(p->step > 0 && p->step <= p->n_steps);
    m->n_steps_told++;
}

static inline struct mb_bank_io
bank_io_of(struct bank_memory *m)
{
    return (struct mb_bank_io){.window = bank_window,
        .load = bank_load,
        .save = bank_save,
        .commit = bank_commit,
        .is_stopped = bank_is_stopped,
        .gives_way = bank_gives_way,
        .on_step = bank_on_step,
        .arg = m};
}

static inline void
bank_memory_fini(struct bank_memory *m)
{
    for (size_t i = 0; i < m->n_rows; i++)
        mb_free(m->rows[i].bytes);
    *m = (struct bank_memory){0};
}

/* ---- jobs ---- */

/* n_windows windows of each of the leaves, the last one held out; leaf 11 has
 * the path 1, 11. */
static inline size_t
bank_items(const uint64_t *leaves, size_t n_leaves, size_t n_windows,
    struct mb_bank_item *out)
{
    size_t n = 0;
    for (size_t i = 0; i < n_leaves; i++) {
        for (size_t w = 0; w < n_windows; w++)
            out[n++] = (struct mb_bank_item){.key = leaves[i] * 100 + w,
                .path = {leaves[i] / 10, leaves[i]},
                .is_held_out = w + 1 == n_windows};
    }
    return n;
}

#endif
