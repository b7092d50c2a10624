/* SPDX-License-Identifier: Apache-2.0
 * tests/bench/bench_bank.c - how fast memory blocks are trained.
 *
 * Usage, from the top folder: bench_bank [MODEL [THREADS]]
 * Blocks have the default sizes: a tenth of the model, three levels of sixteen
 * children. A step has 16 windows of 256 rows, of eight leaves. What blocks cost
 * where they are used, `membank-bench fetch` measures. */
#include <stdio.h>
#include <stdlib.h>

#include "mb_bank_train.h"
#include "mb_decoder.h"

#define N_ROWS  256
#define N_STEPS 6

static void
check(mb_status st, const struct mb_error *err)
{
    if (st == MB_OK)
        return;
    fprintf(stderr, "bench_bank: %s\n", err->text);
    exit(1);
}

static mb_status
next_window(void *arg, const struct mb_bank_item *item, uint64_t epoch,
    mb_token_id *tokens, mb_token_id *targets, size_t *n, struct mb_error *err)
{
    (void)arg;
    (void)err;
    *n = N_ROWS;
    for (size_t r = 0; r < *n; r++) {
        tokens[r] = (mb_token_id)((item->key * 131 + r * r * 7 + epoch) % 4000);
        targets[r] =
            (mb_token_id)((item->key * 131 + (r + 1) * (r + 1) * 7) % 4000);
    }
    return MB_OK;
}

static mb_status
load_nothing(void *arg, uint64_t node, struct mb_slice *state,
    struct mb_slice *record, struct mb_error *err)
{
    (void)arg;
    (void)node;
    (void)err;
    *state = *record = mb_slice_of(NULL, 0);
    return MB_OK;
}

static mb_status
save_nothing(void *arg, uint64_t node, size_t level, struct mb_slice state,
    struct mb_error *err)
{
    (void)arg;
    (void)node;
    (void)level;
    (void)state;
    (void)err;
    return MB_OK;
}

static mb_status
commit_nothing(void *arg, struct mb_slice progress, struct mb_error *err)
{
    (void)arg;
    (void)progress;
    (void)err;
    return MB_OK;
}

static void
bench_training(const struct mb_gguf *gguf, const struct mb_bank_shape *s,
    unsigned n_threads)
{
    struct mb_bank_item items[64];
    struct mb_bank_trainer *t = NULL;
    struct mb_bank_progress p;
    struct mb_error err;
    struct mb_bank_io io = {.window = next_window,
        .load = load_nothing,
        .save = save_nothing,
        .commit = commit_nothing};
    for (size_t i = 0; i < 64; i++)
        items[i] = (struct mb_bank_item){
            .key = i, .path = {1, 10 + i / 32, 100 + i / 8}};
    check(mb_bank_trainer_new(gguf, s,
              &(struct mb_bank_train_options){
                  .n_threads = n_threads, .epochs = 100},
              &io, &t, &err),
        &err);
    check(
        mb_bank_trainer_begin(t, items, 64, mb_slice_of(NULL, 0), &err), &err);
    check(mb_bank_trainer_run(t, 1, 0, &p, &err), &err); // warm-up
    check(mb_bank_trainer_run(t, N_STEPS, 0, &p, &err), &err);
    printf("training %.0f tokens/s, %.1f GFLOP/s, %.0f MB held\n",
        N_STEPS * 16 * N_ROWS / p.seconds, p.flops / p.seconds / 1e9,
        (double)mb_bank_trainer_bytes(t) / 1e6);
    mb_bank_trainer_free(t);
}

int
main(int argc, char **argv)
{
    const char *model = argc > 1 ? argv[1] : "model/weights/anchor.gguf";
    unsigned n_threads = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 1;
    struct mb_decoder *decoder = NULL;
    struct mb_gguf *gguf = NULL;
    struct mb_bank_shape s;
    struct mb_error err;
    check(mb_gguf_open(model, &gguf, &err), &err);
    check(mb_decoder_open(gguf, &decoder, &err), &err);
    const struct mb_decoder_info *info = mb_decoder_info(decoder);
    check(mb_bank_shape_make(&(struct mb_bank_budget){.d_model = info->d_model,
                                 .n_layers = info->n_layers,
                                 .n_params = info->n_params,
                                 .fan_out = 16,
                                 .n_levels = 3},
              &s, &err),
        &err);
    printf(
        "bench_bank %s, %u cores, %u threads, %s; rows %zu, %zu, %zu: %.1f%% "
        "of %.2f M parameters; %u steps, one of warm-up before\n",
        MB_VERSION, mb_cpu_count(), n_threads, info->weights, s.rows[0],
        s.rows[1], s.rows[2],
        100 * (double)mb_bank_n_params(&s, mb_bank_path_rows(&s)) /
            (double)info->n_params,
        (double)info->n_params / 1e6, N_STEPS);
    bench_training(gguf, &s, n_threads);
    mb_decoder_close(decoder);
    mb_gguf_close(gguf);
    return 0;
}
