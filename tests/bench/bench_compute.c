/* SPDX-License-Identifier: Apache-2.0
 * tests/bench/bench_compute.c - how fast tensors are read and multiplied.
 *
 *   bench_compute [-o jsonl] [--part read|few|many] [--type NAME]
 *                 [--level NAME] [--ms N] [--cols N] [--seed N]
 *
 * read: bytes a second by plain sums over a large buffer, one thread and two:
 * what memory gives. few: mul_few for n rows, from memory (192 MB of W) and
 * from the cache (2 MB), as GB/s of W and GFLOP/s. many: mul_many beside
 * OpenBLAS's sgemm, on one thread, with unpacking. Each figure is the best of
 * repetitions for --ms milliseconds (60), after one that is not counted: other
 * work on the machine only ever adds. Weights are made from the seed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blas.h"
#include "compute.h"
#include "tensor_data.h"

#define MEMORY_BYTES ((size_t)192 << 20)
#define CACHE_BYTES  ((size_t)2 << 20)
#define SEED_BYTES   ((size_t)1 << 20)
#define MAX_ROWS     512

struct options {
    bool json;
    const char *part;
    const char *type;
    const char *level;
    uint64_t ms;
    size_t cols;
    uint64_t seed;
};

struct bench {
    struct options opt;
    const struct compute *compute;
    struct mb_pool *pool; /* one worker: with the caller two threads */
    uint8_t *weights;     /* MEMORY_BYTES */
    struct activations a;
    float *x;
    float *y;
    float *room[2];
};

static void *
need(void *p)
{
    if (!p) {
        fprintf(stderr, "bench_compute: out of memory\n");
        exit(1);
    }
    return p;
}

static bool
is_wanted(const char *wish, const char *name)
{
    return !wish || strcmp(wish, name) == 0;
}

/* ---- timing ---- */

/* What is timed: shares [0, threads) of some work. */
struct work {
    struct bench *b;
    struct tensor W;
    size_t n;
    size_t threads;
    void (*share)(void *work, size_t i);
    uint64_t found; // of sums: so that they are computed
};

static void
run(struct work *w)
{
    mb_pool_for(w->threads > 1 ? w->b->pool : NULL, w->threads, w->share, w);
}

static double
best_seconds(struct work *w)
{
    double best = INFINITY;
    run(w);
    uint64_t end = mb_clock_ns() + w->b->opt.ms * 1000000;
    do {
        uint64_t start = mb_clock_ns();
        run(w);
        double s = (double)(mb_clock_ns() - start) / 1e9;
        best = s < best ? s : best;
    } while (mb_clock_ns() < end);
    return best;
}

/* ---- reading ---- */

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

__attribute__((target("avx2"))) static uint64_t
sum_bytes(const uint8_t *p, size_t n)
{
    __m256i sum[4] = {_mm256_setzero_si256()};
    uint64_t part[4];
    for (size_t i = 0; i + 128 <= n; i += 128) {
        _mm_prefetch((const char *)p + i + 4096, _MM_HINT_T0);
        _mm_prefetch((const char *)p + i + 4160, _MM_HINT_T0);
#pragma GCC unroll 4
        for (size_t k = 0; k < 4; k++)
            sum[k] = _mm256_add_epi64(
                sum[k], _mm256_loadu_si256(
                            (const __m256i *)(const void *)(p + i + 32 * k)));
    }
    sum[0] = _mm256_add_epi64(sum[0], sum[1]);
    sum[2] = _mm256_add_epi64(sum[2], sum[3]);
    _mm256_storeu_si256(
        (__m256i *)(void *)part, _mm256_add_epi64(sum[0], sum[2]));
    return part[0] + part[1] + part[2] + part[3];
}
#else
static uint64_t
sum_bytes(const uint8_t *p, size_t n)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += p[i];
    return sum;
}
#endif

static void
share_of_reading(void *arg, size_t i)
{
    struct work *w = arg;
    size_t bytes = MEMORY_BYTES / w->threads;
    uint64_t sum = sum_bytes(w->b->weights + i * bytes, bytes);
    if (i == 0)
        w->found += sum;
}

static void
bench_read(struct bench *b)
{
    for (size_t threads = 1; threads <= 2; threads++) {
        struct work w = {.b = b, .threads = threads, .share = share_of_reading};
        double rate = (double)MEMORY_BYTES / best_seconds(&w) / 1e9;
        if (b->opt.json)
            printf("{\"part\": \"read\", \"threads\": %zu, \"gb_s\": %.2f}\n",
                threads, rate);
        else
            printf("read, %zu thread%s: %.1f GB/s\n", threads,
                threads > 1 ? "s" : "", rate);
    }
}

/* ---- weights ---- */

/* A tensor of about `bytes`; the first million bytes of it come again and
 * again. */
static struct tensor
make_weights(struct bench *b, tensor_type type, size_t cols, size_t bytes)
{
    struct mb_rng rng;
    size_t row_bytes =
        cols / tensor_block_values(type) * tensor_block_bytes(type);
    size_t n_rows = bytes / row_bytes;
    size_t rows_made = SEED_BYTES / row_bytes;
    rows_made = rows_made < n_rows ? rows_made : n_rows;
    mb_rng_init(&rng, b->opt.seed);
    struct tensor W = tensor_make(type, rows_made, cols, b->weights, &rng);
    for (size_t at = rows_made; at < n_rows; at += rows_made) {
        size_t n = n_rows - at < rows_made ? n_rows - at : rows_made;
        memcpy(b->weights + at * row_bytes, b->weights, n * row_bytes);
    }
    W.n_rows = n_rows;
    return W;
}

static void
set_rows(struct bench *b, size_t n, size_t cols)
{
    b->a.x = b->x;
    b->a.ld = cols;
    b->a.n = n;
    b->compute->quantize(&b->a, cols, 0, n);
}

/* ---- few ---- */

static void
share_of_few(void *arg, size_t i)
{
    struct work *w = arg;
    size_t half = (w->W.n_rows / w->threads + 15) / 16 * 16;
    size_t last = i + 1 == w->threads ? w->W.n_rows : half;
    w->b->compute->mul_few(
        &w->W, i * half, last, &w->b->a, w->b->y, w->W.n_rows);
}

static void
bench_few_of(struct bench *b, tensor_type type, bool in_cache)
{
    static const size_t rows[] = {1, 2, 4, 8, 16};
    const char *place = in_cache ? "cache" : "memory";
    struct tensor W = make_weights(
        b, type, b->opt.cols, in_cache ? CACHE_BYTES : MEMORY_BYTES);
    if (!b->opt.json)
        printf("%-5s %-7s", tensor_type_name(type), place);
    for (size_t threads = 1; threads <= 2; threads++) {
        for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
            struct work w = {.b = b,
                .W = W,
                .n = rows[i],
                .threads = threads,
                .share = share_of_few};
            set_rows(b, rows[i], W.n_cols);
            double s = best_seconds(&w);
            double gb = (double)(W.n_rows * W.row_bytes) / s / 1e9;
            double flops = 2.0 * (double)(W.n_rows * W.n_cols * rows[i]);
            if (b->opt.json)
                printf("{\"part\": \"few\", \"type\": \"%s\", \"from\": "
                       "\"%s\", \"threads\": %zu, \"n\": %zu, \"gb_s\": %.2f, "
                       "\"gflop_s\": %.1f}\n",
                    tensor_type_name(type), place, threads, rows[i], gb,
                    flops / s / 1e9);
            else
                printf(" %5.1f/%-4.0f", gb, flops / s / 1e9);
        }
        if (!b->opt.json)
            printf(" |");
    }
    if (!b->opt.json)
        printf("\n");
}

static void
bench_few(struct bench *b)
{
    if (!b->opt.json)
        printf("\nmul_few, %zu columns: GB/s of W / GFLOP/s for n = 1, 2, 4, "
               "8, 16 rows; one thread | two\n",
            b->opt.cols);
    for (size_t t = 0; t < N_TENSOR_TYPES; t++) {
        if (!is_wanted(b->opt.type, tensor_type_name(tensor_types[t])))
            continue;
        bench_few_of(b, tensor_types[t], false);
        bench_few_of(b, tensor_types[t], true);
    }
}

/* ---- many ---- */

static void
share_of_many(void *arg, size_t i)
{
    struct work *w = arg;
    w->b->compute->mul_many(
        &w->W, 0, w->W.n_rows, &w->b->a, w->b->y, w->W.n_rows, w->b->room[i]);
}

/* W lies as (columns, outputs) here, which suits OpenBLAS well. */
static void
share_of_sgemm(void *arg, size_t i)
{
    struct work *w = arg;
    (void)i;
    blas_mul(w->n, w->W.n_cols, w->W.n_rows, w->b->x, w->W.n_cols,
        (const float *)(const void *)w->b->weights, w->W.n_rows, w->b->y,
        w->W.n_rows);
}

static void
bench_many_at(struct bench *b, size_t n, size_t cols, size_t outputs)
{
    double flops = 2.0 * (double)(n * cols * outputs);
    if (!b->opt.json)
        printf("%4zu %5zu %6zu", n, cols, outputs);
    for (size_t t = 0; t <= N_TENSOR_TYPES; t++) {
        bool is_blas = t == N_TENSOR_TYPES;
        tensor_type type = is_blas ? TENSOR_F32 : tensor_types[t];
        const char *name = is_blas ? "sgemm" : tensor_type_name(type);
        if (!is_blas && !is_wanted(b->opt.type, name))
            continue;
        double rate = NAN;
        if (cols % tensor_block_values(type) == 0) {
            size_t bytes = tensor_bytes(type, outputs, cols);
            struct work w = {.b = b,
                .W = make_weights(b, type, cols, bytes),
                .n = n,
                .threads = 1,
                .share = is_blas ? share_of_sgemm : share_of_many};
            set_rows(b, n, cols);
            rate = flops / best_seconds(&w) / 1e9;
        }
        if (!b->opt.json)
            printf(" %6.1f", rate);
        else if (!isnan(rate))
            printf("{\"part\": \"many\", \"type\": \"%s\", \"n\": %zu, "
                   "\"cols\": %zu, \"outputs\": %zu, \"gflop_s\": %.1f}\n",
                name, n, cols, outputs, rate);
    }
    if (!b->opt.json)
        printf("\n");
}

static void
bench_many(struct bench *b)
{
    static const size_t rows[] = {16, 128, 512};
    static const size_t shapes[][2] = {{256, 256}, {256, 704}, {704, 256},
        {256, 8192}, {576, 576}, {576, 1536}, {1536, 576}, {576, 49152}};
    if (!b->opt.json) {
        printf("\nmul_many, one thread, GFLOP/s\n   n  cols  outputs");
        for (size_t t = 0; t < N_TENSOR_TYPES; t++) {
            if (is_wanted(b->opt.type, tensor_type_name(tensor_types[t])))
                printf(" %6s", tensor_type_name(tensor_types[t]));
        }
        printf("  sgemm\n");
    }
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        for (size_t j = 0; j < sizeof(rows) / sizeof(rows[0]); j++)
            bench_many_at(b, rows[j], shapes[i][0], shapes[i][1]);
    }
}

/* ---- options ---- */

static void
usage(const char *what)
{
    fprintf(stderr,
        "bench_compute: %s\nbench_compute [-o jsonl] [--part read|few|many] "
        "[--type NAME] [--level NAME] [--ms N] [--cols N] [--seed N]\n",
        what);
    exit(2);
}

static uint64_t
number(const char *text)
{
    char *end;
    unsigned long long v = strtoull(text, &end, 10);
    if (*end != '\0' || v == 0)
        usage("a number above 0 is wanted");
    return v;
}

static struct options
parse(int argc, char **argv)
{
    struct options opt = {.ms = 60, .cols = 1536, .seed = 42};
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i];
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(name, "-o") == 0 && strcmp(value, "jsonl") == 0)
            opt.json = true;
        else if (strcmp(name, "--part") == 0)
            opt.part = value;
        else if (strcmp(name, "--type") == 0)
            opt.type = value;
        else if (strcmp(name, "--level") == 0)
            opt.level = value;
        else if (strcmp(name, "--ms") == 0)
            opt.ms = number(value);
        else if (strcmp(name, "--cols") == 0)
            opt.cols = number(value);
        else if (strcmp(name, "--seed") == 0)
            opt.seed = number(value);
        else
            usage(name);
    }
    if (opt.cols % 256 != 0 || opt.cols > 16384)
        usage("--cols is a multiple of 256 up to 16384");
    return opt;
}

static const struct compute *
level_of(const char *name)
{
    for (int i = 0; name && i < COMPUTE_N_LEVELS; i++) {
        const struct compute *c = compute_at((compute_level)i);
        if (c && strcmp(c->name, name) == 0)
            return c;
    }
    if (name)
        usage("no such level here");
    return compute_best();
}

int
main(int argc, char **argv)
{
    struct bench b = {.opt = parse(argc, argv)};
    size_t widest = b.opt.cols > 1536 ? b.opt.cols : 1536;
    struct mb_rng rng;
    b.compute = level_of(b.opt.level);
    blas_begin();
    if (mb_pool_new(&b.pool, "mb-bench", 1, 8) != MB_OK)
        usage("cannot start a thread");
    b.weights = need(aligned_alloc(64, MEMORY_BYTES + 8192));
    memset(b.weights, 1, MEMORY_BYTES + 8192);
    b.x = need(aligned_alloc(64, MAX_ROWS * widest * sizeof(float)));
    mb_rng_init(&rng, b.opt.seed);
    for (size_t i = 0; i < MAX_ROWS * widest; i++)
        b.x[i] = tensor_random_float(&rng);
    b.a.code = need(aligned_alloc(64, MAX_ROWS * widest * sizeof(int16_t)));
    b.a.scale = need(mb_calloc(MAX_ROWS * widest / 32, sizeof(float)));
    b.a.sum = need(mb_calloc(MAX_ROWS * widest / 32, sizeof(float)));
    b.y = need(mb_calloc(MAX_ROWS * (size_t)49152, sizeof(float)));
    for (size_t i = 0; i < 2; i++)
        b.room[i] = need(aligned_alloc(64, MUL_ROOM_FLOATS * sizeof(float)));
    if (!b.opt.json)
        printf("membank %s, kernels %s, OpenBLAS %s, %u CPUs, seed %llu, best "
               "of %llu ms\n",
            MB_VERSION, b.compute->name, blas_core(), mb_cpu_count(),
            (unsigned long long)b.opt.seed, (unsigned long long)b.opt.ms);
    if (is_wanted(b.opt.part, "read"))
        bench_read(&b);
    if (is_wanted(b.opt.part, "few"))
        bench_few(&b);
    if (is_wanted(b.opt.part, "many"))
        bench_many(&b);
    mb_pool_free(b.pool);
    free(b.weights);
    free(b.room[0]);
    free(b.room[1]);
    free(b.x);
    mb_free(b.y);
    free(b.a.code);
    mb_free(b.a.scale);
    mb_free(b.a.sum);
    return 0;
}
