/* SPDX-License-Identifier: Apache-2.0
 * tests/bench/bench_bank.c - what attached memory blocks cost.
 *
 * Usage, from the top folder: bench_bank [MODEL [THREADS]]
 * Blocks have the default sizes (a tenth of the model, three levels of sixteen
 * children) and random weights. Decoding and prefill run with and without them
 * in turns, so that both see the same machine; medians of N_ROUNDS. Decoding
 * begins behind 64 rows. Attaching is the opening of three records. Training
 * is of one leaf on windows of 256 rows. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bank_block.h"
#include "mb_bank_train.h"
#include "mb_decoder.h"

#define N_ROUNDS  41
#define N_DECODED 64
#define N_PREFILL 256
#define N_STEPS   6

static void
check(mb_status st, const struct mb_error *err)
{
    if (st == MB_OK)
        return;
    fprintf(stderr, "bench_bank: %s\n", err->text);
    exit(1);
}

static int
compare(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double
median(double *x, size_t n)
{
    qsort(x, n, sizeof(*x), compare);
    return x[n / 2];
}

/* A record with random weights, also on the way out. */
static struct mb_slice
make_record(const struct mb_bank_shape *s, size_t level, mb_bank_type type)
{
    struct mb_error err = {0};
    struct mb_rng rng;
    struct mb_bank_block b;
    size_t rows = s->rows[level - 1];
    size_t size = mb_bank_record_bytes(s, rows, MB_BANK_F32);
    size_t served = mb_bank_record_bytes(s, rows, type);
    uint8_t *f32 = mb_alloc(size);
    uint8_t *record = mb_alloc(served);
    if (!f32 || !record)
        exit(1);
    check(mb_bank_draw(s, &(struct mb_bank_draw){.node = level, .level = level},
              f32, size, &err),
        &err);
    mb_rng_init(&rng, level);
    for (size_t at = MB_BANK_HEADER; at < size; at += 4)
        mb_put_lef32(f32 + at, (float)mb_rng_normal(&rng) * 0.02f);
    check(mb_bank_block_open(mb_slice_of(f32, size), &b, &err), &err);
    check(mb_bank_convert(&b, type, record, served, &err), &err);
    mb_free(f32);
    return mb_slice_of(record, served);
}

struct bench {
    struct mb_decoder *decoder;
    struct mb_cache *cache;
    struct mb_pass *pass;
    struct mb_sequence *seq;
    float *logits;
    mb_token_id tokens[N_PREFILL];
};

static void
run(struct bench *b, size_t n, mb_rows_kind kind,
    const struct mb_bank_path *path)
{
    struct mb_error err;
    struct mb_rows rows = {.seq = b->seq,
        .tokens = b->tokens,
        .n = n,
        .kind = kind,
        .logits = b->logits,
        .bank = path};
    check(mb_pass_run(b->pass, &rows, 1, &err), &err);
}

static double
time_prefill(struct bench *b, const struct mb_bank_path *path)
{
    mb_sequence_truncate(b->seq, 0);
    uint64_t start = mb_clock_ns();
    run(b, N_PREFILL, MB_ROWS_PREFILL, path);
    return (double)(mb_clock_ns() - start) / 1e3 / N_PREFILL;
}

static double
time_decode(struct bench *b, const struct mb_bank_path *path)
{
    mb_sequence_truncate(b->seq, 64);
    uint64_t start = mb_clock_ns();
    for (size_t i = 0; i < N_DECODED; i++)
        run(b, 1, MB_ROWS_DECODE, path);
    return (double)(mb_clock_ns() - start) / 1e3 / N_DECODED;
}

static void
bench_type(struct bench *b, const struct mb_bank_shape *s, mb_bank_type type)
{
    struct mb_slice records[3];
    struct mb_bank_path path = {.n_blocks = 3};
    double with[2][N_ROUNDS];
    double without[2][N_ROUNDS];
    double attach[N_ROUNDS];
    struct mb_error err;
    size_t bytes = 0;
    for (size_t l = 0; l < 3; l++) {
        records[l] = make_record(s, l + 1, type);
        bytes += records[l].size;
    }
    for (size_t i = 0; i < N_ROUNDS; i++) {
        uint64_t start = mb_clock_ns();
        for (size_t l = 0; l < 3; l++)
            check(mb_bank_block_open(records[l], &path.blocks[l], &err), &err);
        attach[i] = (double)(mb_clock_ns() - start) / 1e3;
        without[0][i] = time_prefill(b, NULL);
        with[0][i] = time_prefill(b, &path);
        without[1][i] = time_decode(b, NULL);
        with[1][i] = time_decode(b, &path);
    }
    printf("%-5s %9zu bytes, attach %.2f us;", mb_bank_type_name(type), bytes,
        median(attach, N_ROUNDS));
    for (int kind = 0; kind < 2; kind++) {
        double w = median(with[kind], N_ROUNDS);
        double o = median(without[kind], N_ROUNDS);
        printf(" %s %.1f us a row, %.1f without: %.3f%s",
            kind == 0 ? "prefill" : "decode", w, o, w / o,
            kind == 0 ? ";" : "\n");
    }
    for (size_t l = 0; l < 3; l++)
        mb_free((void *)(uintptr_t)records[l].data);
}

/* ---- training ---- */

static mb_status
next_window(void *arg, const struct mb_bank_item *item, uint64_t epoch,
    mb_token_id *tokens, mb_token_id *targets, size_t *n, struct mb_error *err)
{
    (void)arg;
    (void)err;
    *n = N_PREFILL;
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
        N_STEPS * 16 * N_PREFILL / p.seconds, p.flops / p.seconds / 1e9,
        (double)mb_bank_trainer_bytes(t) / 1e6);
    mb_bank_trainer_free(t);
}

int
main(int argc, char **argv)
{
    const char *model = argc > 1 ? argv[1] : "model/weights/anchor.gguf";
    unsigned n_threads = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 1;
    struct bench b = {0};
    struct mb_gguf *gguf = NULL;
    struct mb_bank_shape s;
    struct mb_error err;
    check(mb_gguf_open(model, &gguf, &err), &err);
    check(mb_decoder_open(gguf, &b.decoder, &err), &err);
    check(mb_cache_new(b.decoder, MB_CACHE_F16, 1024, &b.cache, &err), &err);
    check(mb_pass_new(b.decoder, N_PREFILL, n_threads, &b.pass, &err), &err);
    check(mb_sequence_new(b.cache, &b.seq, &err), &err);
    const struct mb_decoder_info *info = mb_decoder_info(b.decoder);
    b.logits = mb_calloc(info->n_vocab, sizeof(float));
    for (size_t i = 0; i < N_PREFILL; i++)
        b.tokens[i] = (mb_token_id)(i * 37 % info->n_vocab);
    check(mb_bank_shape_make(&(struct mb_bank_budget){.d_model = info->d_model,
                                 .n_layers = info->n_layers,
                                 .n_params = info->n_params,
                                 .fan_out = 16,
                                 .n_levels = 3},
              &s, &err),
        &err);
    printf(
        "bench_bank %s, %u cores, %u threads, %s; rows %zu, %zu, %zu: %.1f%% "
        "of %.2f M parameters\n",
        MB_VERSION, mb_cpu_count(), n_threads, info->weights, s.rows[0],
        s.rows[1], s.rows[2],
        100 * (double)mb_bank_n_params(&s, mb_bank_path_rows(&s)) /
            (double)info->n_params,
        (double)info->n_params / 1e6);
    for (int type = MB_BANK_F32; type <= MB_BANK_Q8_0; type++)
        bench_type(&b, &s, (mb_bank_type)type);
    bench_training(gguf, &s, n_threads);
    mb_free(b.logits);
    mb_sequence_free(b.seq);
    mb_pass_free(b.pass);
    mb_cache_free(b.cache);
    mb_decoder_close(b.decoder);
    mb_gguf_close(gguf);
    return 0;
}
