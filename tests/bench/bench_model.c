/* SPDX-License-Identifier: Apache-2.0
 * tests/bench/bench_model.c - speed of tokenizer, segmenter and LSA.
 *
 * Usage, from the top folder: bench_model TEXTFILE [MODEL]
 * The text is cut into documents of 1 MB. One pass before the timed one fills
 * the cache of words. LSA runs on a random matrix whose columns are as uneven
 * as words (by a power law): its time is that of texts, its quality is not.
 * One thread. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "mb_model.h"

#define DOCUMENT_BYTES 1000000
#define N_ROWS         30000
#define N_COLS         60000
#define ROW_TERMS      100
#define DIM            256
#define N_FOLDS        20000

static void
check(mb_status st, const struct mb_error *err)
{
    if (st == MB_OK)
        return;
    fprintf(stderr, "bench_model: %s\n", err->text);
    exit(1);
}

static double
seconds_since(uint64_t start)
{
    return (double)(mb_clock_ns() - start) / 1e9;
}

static struct mb_buffer
read_file(const char *path)
{
    struct mb_buffer text;
    static char part[65536];
    FILE *f = fopen(path, "rb");
    if (!f) {
        fprintf(stderr, "bench_model: cannot read %s\n", path);
        exit(1);
    }
    mb_buffer_init(&text, (size_t)1 << 32);
    for (size_t n; (n = fread(part, 1, sizeof(part), f)) > 0;)
        check(mb_buffer_append(&text, part, n),
            &(struct mb_error){.text = "text too large"});
    fclose(f);
    return text;
}

typedef mb_status (*text_fn)(const struct mb_tokenizer *tok,
    struct mb_token_cache *cache, struct mb_slice text, struct mb_buffer *out,
    struct mb_error *err);

static void
bench_text(const char *name, text_fn fn, size_t element,
    const struct mb_tokenizer *tok, struct mb_token_cache *cache,
    const struct mb_buffer *text)
{
    struct mb_buffer out;
    struct mb_error err;
    size_t n = 0;
    mb_buffer_init(&out, (size_t)1 << 30);
    uint64_t start = mb_clock_ns();
    for (size_t at = 0; at < text->size;) {
        size_t end = at + DOCUMENT_BYTES;
        if (end > text->size)
            end = text->size;
        while (end < text->size && (text->data[end] & 0xc0) == 0x80)
            end++;
        mb_buffer_clear(&out);
        check(
            fn(tok, cache, mb_slice_of(text->data + at, end - at), &out, &err),
            &err);
        n += out.size / element;
        at = end;
    }
    double s = seconds_since(start);
    printf("%-24s %8.1f MB/s  %zu pieces\n", name, (double)text->size / 1e6 / s,
        n);
    mb_buffer_fini(&out);
}

static void
bench_tokenizer(const char *text_path, const char *model_path)
{
    struct mb_buffer text = read_file(text_path);
    struct mb_gguf *gguf = NULL;
    struct mb_tokenizer *tok = NULL;
    struct mb_token_cache *cache = NULL;
    struct mb_error err = {.text = "no memory"};
    uint64_t start = mb_clock_ns();
    check(mb_gguf_open(model_path, &gguf, &err), &err);
    check(mb_tokenizer_new(gguf, &tok, &err), &err);
    printf("%-24s %8.2f ms\n", "open and load", seconds_since(start) * 1e3);
    check(mb_token_cache_new(&cache), &err);
    bench_text("encode (warm-up)", mb_tokenizer_encode, sizeof(struct mb_token),
        tok, cache, &text);
    bench_text("encode", mb_tokenizer_encode, sizeof(struct mb_token), tok,
        cache, &text);
    bench_text("encode without cache", mb_tokenizer_encode,
        sizeof(struct mb_token), tok, NULL, &text);
    bench_text(
        "segment", mb_segment_text, sizeof(struct mb_span), tok, cache, &text);
    mb_token_cache_free(cache);
    mb_tokenizer_free(tok);
    mb_gguf_close(gguf);
    mb_buffer_fini(&text);
}

struct lsa_bench {
    struct mb_rng rng;
    size_t *row_start;
    uint32_t *col;
    float *val;
    float *V;
    float *sigma;
    uint64_t *hash;
    uint32_t *id;
    uint32_t *tf;
    float *idf;
};

static void *
array(size_t n, size_t element)
{
    void *p = mb_calloc(n, element);
    check(p ? MB_OK : MB_ERR_NOMEM, &(struct mb_error){.text = "no memory"});
    return p;
}

static void
bench_fit(struct lsa_bench *b, const struct mb_csr *a)
{
    static const unsigned powers[] = {MB_LSA_NO_POWER, 1, 2, 3};
    for (size_t i = 0; i < sizeof(powers) / sizeof(powers[0]); i++) {
        struct mb_lsa_options opt = {
            .dim = DIM, .n_power = powers[i], .seed = 1};
        struct mb_error err;
        size_t rank = 0;
        double kept = 0.0;
        uint64_t start = mb_clock_ns();
        check(mb_lsa_fit(a, &opt, b->V, b->sigma, &rank, &err), &err);
        double s = seconds_since(start);
        for (size_t k = 0; k < DIM; k++)
            kept += (double)b->sigma[k] * (double)b->sigma[k];
        printf("fit, %u power iterations  %8.2f s  rank %zu, keeps %.4f\n",
            powers[i] == MB_LSA_NO_POWER ? 0 : powers[i], s, rank,
            kept / N_ROWS);
    }
}

static void
bench_fold(struct lsa_bench *b)
{
    struct mb_buffer bytes;
    struct mb_lsa *lsa = NULL;
    struct mb_error err;
    float out[DIM];
    mb_buffer_init(&bytes, (size_t)1 << 30);
    for (size_t i = 0; i < N_COLS; i++) {
        b->hash[i] = mb_rng_u64(&b->rng);
        b->id[i] = (uint32_t)i;
        b->idf[i] = 1.0f;
    }
    check(
        mb_lsa_encode(N_COLS, DIM, b->hash, b->id, b->idf, b->V, &bytes, &err),
        &err);
    check(mb_lsa_open(mb_buffer_slice(&bytes), &lsa, &err), &err);
    for (size_t i = 0; i < ROW_TERMS; i++)
        b->tf[i] = 1;
    uint64_t start = mb_clock_ns();
    for (size_t i = 0; i < N_FOLDS; i++)
        mb_lsa_fold_ids(lsa, b->col + i * ROW_TERMS, b->tf, ROW_TERMS, out);
    printf("%-24s %8.2f us  %d terms, %d dimensions\n", "fold in",
        seconds_since(start) * 1e6 / N_FOLDS, ROW_TERMS, DIM);
    mb_lsa_close(lsa);
    mb_buffer_fini(&bytes);
}

static void
bench_lsa(void)
{
    struct lsa_bench b = {
        .row_start = array(N_ROWS + 1, sizeof(size_t)),
        .col = array((size_t)N_ROWS * ROW_TERMS, sizeof(uint32_t)),
        .val = array((size_t)N_ROWS * ROW_TERMS, sizeof(float)),
        .V = array((size_t)N_COLS * DIM, sizeof(float)),
        .sigma = array(DIM, sizeof(float)),
        .hash = array(N_COLS, sizeof(uint64_t)),
        .id = array(N_COLS, sizeof(uint32_t)),
        .tf = array(ROW_TERMS, sizeof(uint32_t)),
        .idf = array(N_COLS, sizeof(float)),
    };
    mb_rng_init(&b.rng, 1);
    for (size_t i = 0; i < (size_t)N_ROWS * ROW_TERMS; i++) {
        double u = mb_rng_double(&b.rng);
        b.col[i] = (uint32_t)(u * u * u * u * N_COLS);
        b.val[i] = 1.0f / sqrtf(ROW_TERMS);
    }
    for (size_t i = 0; i <= N_ROWS; i++)
        b.row_start[i] = i * ROW_TERMS;
    struct mb_csr a = {N_ROWS, N_COLS, b.row_start, b.col, b.val};
    bench_fit(&b, &a);
    bench_fold(&b);
    mb_free(b.row_start);
    mb_free(b.col);
    mb_free(b.val);
    mb_free(b.V);
    mb_free(b.sigma);
    mb_free(b.hash);
    mb_free(b.id);
    mb_free(b.tf);
    mb_free(b.idf);
}

int
main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: bench_model TEXTFILE [MODEL]\n");
        return 2;
    }
    printf("bench_model %s, %u cores, one used\n", MB_VERSION, mb_cpu_count());
    bench_tokenizer(argv[1], argc > 2 ? argv[2] : "model/weights/anchor.gguf");
    bench_lsa();
    return 0;
}
