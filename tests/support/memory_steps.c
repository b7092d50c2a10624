/* SPDX-License-Identifier: Apache-2.0
 * tests/support/memory_steps.c - some steps of training memory blocks, for a
 * script to repeat.
 *
 *     memory_steps OUT VOCAB N_STEPS ROWS SHAPE...
 *
 * VOCAB is a model whose vocabulary is borrowed; SHAPE as of train_steps. The
 * anchor's first weights are made five times as large, so that layers matter.
 * Blocks stand in all layers but the first, 8 and 4 rows, with random weights
 * on the way out, too. Window i of 4 is that of train_steps, without targets in
 * its first two rows; windows 0 and 1 have the path 1, 11; 2 has 1, 12; 3 has
 * 2, 21. All are in each step.
 *
 * Writes to OUT, as float32: the anchor's weights in the trainer's order; for
 * each node its weights before, Adam's moments after the first step (a tenth
 * of the gradient), its weights after N_STEPS. Prints one JSON object that
 * names them. */
#include "mb_bank_train.h"
#include "mb_export.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_WINDOWS 4u
#define N_NODES   5u
#define MAX_ROWS  512u
#define SCALE     5.0f
#define DEVIATION 0.2f

struct node {
    uint64_t node;
    size_t level;
    struct mb_slice record; /* random, F32 */
    uint8_t *state;
    size_t size;
};

struct memory {
    struct node nodes[N_NODES];
    size_t n_rows;
    size_t n_vocab;
};

static void
check(mb_status st, const struct mb_error *err)
{
    if (st == MB_OK)
        return;
    fprintf(stderr, "memory_steps: %s\n", err->text);
    exit(1);
}

/* ---- callbacks ---- */

static mb_status
get_window(void *arg, const struct mb_bank_item *item, uint64_t epoch,
    mb_token_id *tokens, mb_token_id *targets, size_t *n, struct mb_error *err)
{
    const struct memory *m = arg;
    (void)epoch;
    (void)err;
    *n = m->n_rows;
    for (size_t r = 0; r < *n; r++) {
        size_t next = r + 1;
        tokens[r] =
            (mb_token_id)((item->key * 131 + r * r * 7 + r) % m->n_vocab);
        targets[r] =
            r < 2 ? -1
                  : (mb_token_id)((item->key * 131 + next * next * 7 + next) %
                                  m->n_vocab);
    }
    return MB_OK;
}

static struct node *
find(struct memory *m, uint64_t node)
{
    for (size_t i = 0; i < N_NODES; i++) {
        if (m->nodes[i].node == node)
            return &m->nodes[i];
    }
    abort();
}

static mb_status
load(void *arg, uint64_t node, struct mb_slice *state, struct mb_slice *record,
    struct mb_error *err)
{
    const struct node *x = find(arg, node);
    (void)err;
    *state = mb_slice_of(x->state, x->size);
    *record = x->record;
    return MB_OK;
}

static mb_status
save(void *arg, uint64_t node, size_t level, struct mb_slice state,
    struct mb_error *err)
{
    struct node *x = find(arg, node);
    (void)level;
    (void)err;
    mb_free(x->state);
    x->size = state.size;
    x->state = mb_alloc(state.size);
    MB_ASSERT(x->state);
    memcpy(x->state, state.data, state.size);
    return MB_OK;
}

static mb_status
commit(void *arg, struct mb_slice progress, struct mb_error *err)
{
    (void)arg;
    (void)progress;
    (void)err;
    return MB_OK;
}

/* ---- what is written ---- */

static void
put_floats(FILE *f, const void *from, size_t n, const char *name, size_t rows)
{
    static const char *comma = "";
    MB_ASSERT(fwrite(from, sizeof(float), n, f) == n);
    printf("%s[\"%s\", %zu, %zu]", comma, name, rows, n / rows);
    comma = ", ";
}

static void
put_anchor(FILE *f, struct trainer *t, const char *vocab, const char *path)
{
    struct export_weight weights[64];
    struct mb_gguf *gguf = NULL;
    struct mb_error err;
    size_t n = trainer_n_weights(t);
    MB_ASSERT(n <= 64);
    for (size_t i = 0; i < n; i++) {
        const struct train_weight *w = trainer_weight(t, i);
        for (size_t j = 0; w->n_rows > 1 && j < w->n_rows * w->n_cols; j++)
            w->value[j] *= SCALE;
        put_floats(f, w->value, w->n_rows * w->n_cols, w->name, w->n_rows);
        weights[i] =
            (struct export_weight){w->name, w->n_rows, w->n_cols, w->value};
    }
    check(mb_gguf_open(vocab, &gguf, &err), &err);
    check(export_gguf(path,
              &(struct export_options){.shape = trainer_shape(t),
                  .weights = weights,
                  .n_weights = n,
                  .vocab = gguf,
                  .type = GGUF_F32},
              &err),
        &err);
    mb_gguf_close(gguf);
}

/* Weights ("start", "end") or moments ("moment") of all nodes. */
static void
put_nodes(FILE *f, struct memory *m, const char *what, bool is_moment)
{
    for (size_t i = 0; i < N_NODES; i++) {
        struct node *x = &m->nodes[i];
        struct mb_bank_block block;
        struct mb_slice record = x->record;
        struct mb_error err;
        char name[64];
        if (x->state)
            check(mb_bank_state_record(
                      mb_slice_of(x->state, x->size), &record, NULL, &err),
                &err);
        check(mb_bank_block_open(record, &block, &err), &err);
        size_t n = block.data_bytes / sizeof(float);
        // Moments lie behind the record (bank_state.c).
        const uint8_t *from =
            is_moment ? record.data + record.size : block.data;
        (void)snprintf(
            name, sizeof(name), "%s.%llu", what, (unsigned long long)x->node);
        put_floats(f, from, n, name, block.n_layers * 3 * block.rows);
    }
}

/* ---- the whole ---- */

static void
make_nodes(struct memory *m, const struct mb_bank_shape *s, struct mb_gguf *g)
{
    static const uint64_t nodes[N_NODES][2] = {
        {1, 1}, {2, 1}, {11, 2}, {12, 2}, {21, 2}};
    struct mb_error err;
    struct mb_rng rng;
    mb_rng_init(&rng, 5);
    for (size_t i = 0; i < N_NODES; i++) {
        struct mb_bank_draw draw = {
            .node = nodes[i][0], .level = (size_t)nodes[i][1]};
        struct mb_bank_block block;
        size_t size =
            mb_bank_record_bytes(s, s->rows[draw.level - 1], MB_BANK_F32);
        uint8_t *raw = mb_alloc(size);
        uint8_t *record = mb_alloc(size);
        MB_ASSERT(raw && record);
        mb_gguf_fingerprint(g, draw.anchor);
        check(mb_bank_draw(s, &draw, raw, size, &err), &err);
        for (size_t at = MB_BANK_HEADER; at < size; at += 4)
            mb_put_lef32(raw + at, (float)mb_rng_normal(&rng) * DEVIATION);
        check(mb_bank_block_open(mb_slice_of(raw, size), &block, &err), &err);
        check(mb_bank_convert(&block, MB_BANK_F32, record, size, &err), &err);
        mb_free(raw);
        m->nodes[i] = (struct node){.node = draw.node,
            .level = draw.level,
            .record = mb_slice_of(record, size)};
    }
}

static void
train(struct memory *m, const struct mb_bank_shape *s, struct mb_gguf *gguf,
    size_t n_steps, FILE *f)
{
    static const uint64_t paths[N_WINDOWS][2] = {
        {1, 11}, {1, 11}, {1, 12}, {2, 21}};
    struct mb_bank_item items[N_WINDOWS];
    struct mb_bank_trainer *t = NULL;
    struct mb_bank_progress p;
    struct mb_error err;
    const struct mb_bank_io io = {.window = get_window,
        .load = load,
        .save = save,
        .commit = commit,
        .arg = m};
    const struct mb_bank_train_options options = {.n_threads = 2,
        .epochs = n_steps,
        .batch = N_WINDOWS,
        .n_ctx = m->n_rows};
    for (size_t i = 0; i < N_WINDOWS; i++)
        items[i] =
            (struct mb_bank_item){.key = i, .path = {paths[i][0], paths[i][1]}};
    check(mb_bank_trainer_new(gguf, s, &options, &io, &t, &err), &err);
    check(
        mb_bank_trainer_begin(t, items, N_WINDOWS, mb_slice_of(NULL, 0), &err),
        &err);
    check(mb_bank_trainer_run(t, 1, 0, &p, &err), &err);
    put_nodes(f, m, "moment", true);
    check(mb_bank_trainer_run(t, 0, 0, &p, &err), &err);
    put_nodes(f, m, "end", false);
    MB_ASSERT(p.is_finished && p.n_steps == n_steps);
    mb_bank_trainer_free(t);
}

int
main(int argc, char **argv)
{
    size_t number[9];
    char path[1024];
    struct trainer *t = NULL;
    struct mb_gguf *gguf = NULL;
    struct mb_error err;
    MB_ASSERT(argc == 12);
    for (int i = 0; i < 9; i++)
        number[i] = strtoul(argv[i + 3], NULL, 10);
    MB_ASSERT(number[1] <= MAX_ROWS && number[2] > 1);
    struct train_shape shape = {number[2], number[3], number[4], number[5],
        number[6], number[7], number[8], number[1], 10000, 1e-5};
    struct mb_bank_shape bank = {.d_model = shape.d_model,
        .first_layer = 1,
        .n_layers = shape.n_layers - 1,
        .n_levels = 2,
        .rows = {8, 4}};
    struct memory m = {.n_rows = number[1], .n_vocab = shape.n_vocab};
    FILE *f = fopen(argv[1], "wb");
    MB_ASSERT(f);
    check(trainer_new(&shape,
              &(struct train_options){.n_threads = 1, .seed = 1}, &t, &err),
        &err);
    (void)snprintf(path, sizeof(path), "%s.gguf", argv[1]);
    printf("{\"arrays\": [");
    put_anchor(f, t, argv[2], path);
    check(mb_gguf_open(path, &gguf, &err), &err);
    make_nodes(&m, &bank, gguf);
    put_nodes(f, &m, "start", false);
    train(&m, &bank, gguf, number[0], f);
    printf("]}\n");
    MB_ASSERT(fclose(f) == 0);
    (void)remove(path);
    for (size_t i = 0; i < N_NODES; i++) {
        mb_free((void *)(uintptr_t)m.nodes[i].record.data);
        mb_free(m.nodes[i].state);
    }
    mb_gguf_close(gguf);
    trainer_free(t);
    return 0;
}
