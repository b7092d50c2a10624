/* SPDX-License-Identifier: Apache-2.0
 * tests/support/decoder_rows.c - what a model says about given tokens, as files.
 *
 *     decoder_rows [OPTION]... MODEL TOKENS
 *
 * TOKENS holds int32 ids. The first ones are prefilled, the rest decoded one by
 * one. Writes float32 arrays: logits (T, vocabulary), NaN in rows whose logits
 * are not asked for (all but the last of a prefilled chunk); hidden (T, width);
 * nll (T), of the token after each. Prints one JSON object on what the model is
 * and which tokens follow. A failure prints the status's name and its text.
 *
 *   -c TYPE     cache: f32 (default), f16, q8_0
 *   -p N        prefill N tokens; default all
 *   -n N        rows of a prefilled chunk; default all
 *   -t N        threads; default 1
 *   -l LEVEL    kernels: plain, avx2, avx512; default the best; exit 77 if this
 *               CPU has it not
 *   -m N        sequences of other tokens that go along in each pass
 *   -g N        then choose N tokens, always the likeliest
 *   -u          do not ask for nll, so that logits go the way of sampling
 *   -w N        no arrays: the sum of nll over windows of N tokens, each read
 *               afresh, all tokens but the first of a window
 *   -x          TOKENS is UTF-8 text
 *   -o PREFIX   write PREFIX.tokens, PREFIX.logits, PREFIX.hidden, PREFIX.nll
 * Threads: the main thread; the pass has its own. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pass.h"

#define MAX_MATES 16

struct options {
    mb_cache_type cache;
    size_t n_prefill;
    size_t chunk;
    unsigned n_threads;
    int level; /* -1: the best */
    size_t n_mates;
    size_t n_greedy;
    size_t window; /* 0: none */
    bool is_unscored;
    bool is_text;
    const char *prefix;
    const char *model;
    const char *tokens;
};

/* Another sequence of a pass: reads its own text, all turned round by i. */
struct mate {
    struct mb_sequence *seq;
    mb_token_id *tokens; /* (T) */
    size_t at;
};

struct job {
    struct options opt;
    struct mb_gguf *gguf;
    struct mb_decoder *decoder;
    struct mb_cache *cache;
    struct mb_pass *pass;
    struct mb_sequence *seq;
    struct mate mates[MAX_MATES];
    mb_token_id *tokens; /* (T) */
    mb_token_id *targets;
    size_t n;
    size_t n_passes;
    float *logits; /* (T, n_vocab) */
    float *hidden; /* (T, d_model) */
    float *nll;    /* (T) */
};

/* ---- input and output ---- */

static void *
make(size_t n, size_t size)
{
    void *p = mb_calloc(n > 0 ? n : 1, size);
    if (!p) {
        (void)fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return p;
}

static void
fail_usage(const char *what)
{
    (void)fprintf(stderr, "decoder_rows: %s\n", what);
    exit(2);
}

static size_t
number(const char *text)
{
    char *end = NULL;
    unsigned long v = strtoul(text, &end, 10);
    if (end == text || *end != '\0')
        fail_usage("an option wants a number");
    return v;
}

static int
choose(const char *text, const char *const *names, int n)
{
    for (int i = 0; i < n; i++) {
        if (strcmp(text, names[i]) == 0)
            return i;
    }
    fail_usage("an option has a value that it does not know");
    return 0;
}

static void
parse(int argc, char **argv, struct options *opt)
{
    static const char *const caches[] = {"f16", "q8_0", "f32"};
    static const char *const levels[] = {"plain", "avx2", "avx512"};
    int c;
    *opt = (struct options){.cache = MB_CACHE_F32,
        .n_prefill = SIZE_MAX,
        .chunk = SIZE_MAX,
        .n_threads = 1,
        .level = -1};
    while ((c = getopt(argc, argv, "c:p:n:t:l:m:g:uw:xo:")) != -1) {
        switch (c) {
        case 'c':
            opt->cache = (mb_cache_type)choose(optarg, caches, 3);
            break;
        case 'p':
            opt->n_prefill = number(optarg);
            break;
        case 'n':
            opt->chunk = number(optarg);
            break;
        case 't':
            opt->n_threads = (unsigned)number(optarg);
            break;
        case 'l':
            opt->level = choose(optarg, levels, 3);
            break;
        case 'm':
            opt->n_mates = number(optarg);
            break;
        case 'g':
            opt->n_greedy = number(optarg);
            break;
        case 'u':
            opt->is_unscored = true;
            break;
        case 'w':
            opt->window = number(optarg);
            break;
        case 'x':
            opt->is_text = true;
            break;
        case 'o':
            opt->prefix = optarg;
            break;
        default:
            fail_usage("see the head of its source");
        }
    }
    if (argc - optind != 2 || opt->chunk == 0 || opt->n_mates > MAX_MATES)
        fail_usage("MODEL and TOKENS, see the head of its source");
    opt->model = argv[optind];
    opt->tokens = argv[optind + 1];
}

static void
read_file(const char *path, struct mb_buffer *out)
{
    uint8_t part[4096];
    size_t n;
    FILE *f = fopen(path, "rb");
    mb_buffer_init(out, SIZE_MAX / 2);
    if (!f)
        fail_usage("cannot open TOKENS");
    while ((n = fread(part, 1, sizeof(part), f)) > 0) {
        if (mb_buffer_append(out, part, n) != MB_OK)
            fail_usage("TOKENS is too large");
    }
    (void)fclose(f);
}

static void
write_array(const struct job *job, const char *name, const void *x, size_t n)
{
    char path[4096];
    (void)snprintf(path, sizeof(path), "%s.%s", job->opt.prefix, name);
    FILE *f = fopen(path, "wb");
    bool is_written = f && fwrite(x, 4, n, f) == n;
    if ((f && fclose(f) != 0) || !is_written)
        fail_usage("cannot write an array");
}

/* ---- tokens ---- */

static mb_status
encode(struct job *job, struct mb_slice text, struct mb_error *err)
{
    struct mb_tokenizer *tok = NULL;
    struct mb_buffer tokens;
    mb_buffer_init(&tokens, SIZE_MAX / 2);
    mb_status st = mb_tokenizer_new(job->gguf, &tok, err);
    if (st == MB_OK)
        st = mb_tokenizer_encode(tok, NULL, text, &tokens, err);
    job->n = tokens.size / sizeof(struct mb_token);
    job->tokens = make(job->n, sizeof(*job->tokens));
    for (size_t i = 0; i < job->n; i++) {
        struct mb_token token;
        memcpy(&token, tokens.data + i * sizeof(token), sizeof(token));
        job->tokens[i] = token.id;
    }
    mb_buffer_fini(&tokens);
    mb_tokenizer_free(tok);
    return st;
}

static mb_status
read_tokens(struct job *job, struct mb_error *err)
{
    struct mb_buffer bytes;
    mb_status st = MB_OK;
    read_file(job->opt.tokens, &bytes);
    if (job->opt.is_text) {
        st = encode(job, mb_buffer_slice(&bytes), err);
    } else {
        job->n = bytes.size / 4;
        job->tokens = make(job->n, sizeof(*job->tokens));
        for (size_t i = 0; i < job->n; i++)
            job->tokens[i] = (mb_token_id)mb_get_le32(bytes.data + 4 * i);
    }
    mb_buffer_fini(&bytes);
    if (st == MB_OK && job->n == 0)
        fail_usage("TOKENS is empty");
    job->targets = make(job->n, sizeof(*job->targets));
    for (size_t i = 0; i < job->n; i++)
        job->targets[i] = i + 1 < job->n ? job->tokens[i + 1] : -1;
    return st;
}

/* ---- the model ---- */

static mb_status
open_model(struct job *job, struct mb_error *err)
{
    const struct options *opt = &job->opt;
    mb_status st = mb_gguf_open(opt->model, &job->gguf, err);
    if (st == MB_OK)
        st = mb_decoder_open(job->gguf, &job->decoder, err);
    if (st == MB_OK)
        st = read_tokens(job, err);
    size_t rows = (job->n + opt->n_greedy) * (opt->n_mates + 1);
    size_t cache_rows = rows + (opt->n_mates + 1) * MB_BLOCK_ROWS;
    if (opt->window > 0)
        rows = opt->window;
    if (st == MB_OK)
        st = mb_cache_new(
            job->decoder, opt->cache, cache_rows, &job->cache, err);
    if (st == MB_OK)
        st = mb_pass_new(
            job->decoder, rows + 64, opt->n_threads, &job->pass, err);
    if (st == MB_OK)
        st = mb_sequence_new(job->cache, &job->seq, err);
    if (st == MB_OK && opt->level >= 0) {
        compute_level level = (compute_level)opt->level;
        if (!compute_at(level))
            exit(77);
        job->decoder->compute = compute_at(level);
        // The best attention up to this level.
        for (int l = 0; l <= opt->level; l++) {
            if (attention_at((compute_level)l))
                job->pass->attention = attention_at((compute_level)l);
        }
    }
    return st;
}

static mb_status
make_mates(struct job *job, struct mb_error *err)
{
    mb_status st = MB_OK;
    for (size_t m = 0; m < job->opt.n_mates && st == MB_OK; m++) {
        struct mate *mate = &job->mates[m];
        mate->tokens = make(job->n, sizeof(*mate->tokens));
        for (size_t i = 0; i < job->n; i++)
            mate->tokens[i] = job->tokens[(i * 3 + m + 1) % job->n];
        st = mb_sequence_new(job->cache, &mate->seq, err);
    }
    return st;
}

static void
close_model(struct job *job)
{
    for (size_t m = 0; m < job->opt.n_mates; m++) {
        mb_sequence_free(job->mates[m].seq);
        mb_free(job->mates[m].tokens);
    }
    mb_sequence_free(job->seq);
    mb_pass_free(job->pass);
    mb_cache_free(job->cache);
    mb_decoder_close(job->decoder);
    mb_gguf_close(job->gguf);
    mb_free(job->tokens);
    mb_free(job->targets);
    mb_free(job->logits);
    mb_free(job->hidden);
    mb_free(job->nll);
}

/* ---- passes ---- */

/* Run our rows, with rows of the mates around them: each mate takes turns of
 * decoding and of chunks of prefill, of a length that changes. */
static mb_status
run_pass(struct job *job, const struct mb_rows *ours, struct mb_error *err)
{
    struct mb_rows items[MAX_MATES + 1];
    size_t n = 0;
    size_t turn = job->n_passes++;
    for (size_t m = 0; m < job->opt.n_mates; m++) {
        struct mate *mate = &job->mates[m];
        bool is_decoding = (turn + m) % 2 == 0;
        size_t rows = is_decoding ? 1 : (turn + 5 * m) % 7 + 1;
        if (m == job->opt.n_mates / 2)
            items[n++] = *ours;
        if (rows > job->n - mate->at)
            rows = job->n - mate->at;
        if (rows == 0)
            continue;
        items[n++] = (struct mb_rows){.seq = mate->seq,
            .tokens = mate->tokens + mate->at,
            .n = rows,
            .kind = is_decoding ? MB_ROWS_DECODE : MB_ROWS_PREFILL};
        mate->at += rows;
    }
    if (job->opt.n_mates == 0)
        items[n++] = *ours;
    return mb_pass_run(job->pass, items, n, err);
}

static mb_status
run_all(struct job *job, struct mb_error *err)
{
    const struct mb_decoder_info *info = mb_decoder_info(job->decoder);
    size_t n_prefill =
        job->opt.n_prefill < job->n ? job->opt.n_prefill : job->n;
    mb_status st = MB_OK;
    for (size_t at = 0; at < job->n && st == MB_OK;) {
        bool is_prefill = at < n_prefill;
        size_t rows = is_prefill ? n_prefill - at : 1;
        if (is_prefill && rows > job->opt.chunk)
            rows = job->opt.chunk;
        struct mb_rows ours = {.seq = job->seq,
            .tokens = job->tokens + at,
            .n = rows,
            .kind = is_prefill ? MB_ROWS_PREFILL : MB_ROWS_DECODE,
            .logits = job->logits + (at + rows - 1) * info->n_vocab,
            .targets = job->targets + at,
            .nll = job->opt.is_unscored ? NULL : job->nll + at,
            .hidden = job->hidden + at * info->d_model};
        st = run_pass(job, &ours, err);
        at += rows;
    }
    return st;
}

static mb_token_id
likeliest(const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++) {
        if (logits[i] > logits[best])
            best = i;
    }
    return (mb_token_id)best;
}

static mb_status
run_greedy(struct job *job, struct mb_error *err)
{
    size_t n_vocab = mb_decoder_info(job->decoder)->n_vocab;
    float *logits = job->logits + (job->n - 1) * n_vocab;
    float *next = make(n_vocab, sizeof(*next));
    mb_status st = MB_OK;
    memcpy(next, logits, n_vocab * sizeof(*next));
    (void)printf(", \"greedy\": [");
    for (size_t i = 0; i < job->opt.n_greedy && st == MB_OK; i++) {
        mb_token_id token = likeliest(next, n_vocab);
        struct mb_rows ours = {.seq = job->seq,
            .tokens = &token,
            .n = 1,
            .kind = MB_ROWS_DECODE,
            .logits = next};
        (void)printf(i > 0 ? ", %d" : "%d", (int)token);
        st = run_pass(job, &ours, err);
    }
    (void)printf("]");
    mb_free(next);
    return st;
}

static mb_status
run_windows(struct job *job, struct mb_error *err)
{
    size_t window = job->opt.window;
    float *nll = make(window, sizeof(*nll));
    double sum = 0;
    size_t n_scored = 0;
    mb_status st = MB_OK;
    for (size_t at = 0; at < job->n && st == MB_OK; at += window) {
        size_t n = job->n - at < window ? job->n - at : window;
        struct mb_rows ours = {.seq = job->seq,
            .tokens = job->tokens + at,
            .n = n,
            .kind = MB_ROWS_PREFILL,
            .targets = job->targets + at,
            .nll = nll};
        mb_sequence_truncate(job->seq, 0);
        st = mb_pass_run(job->pass, &ours, 1, err);
        for (size_t i = 0; i + 1 < n && st == MB_OK; i++, n_scored++)
            sum += (double)nll[i];
    }
    (void)printf(", \"nll\": %.9g, \"scored\": %zu", sum, n_scored);
    mb_free(nll);
    return st;
}

static void
print_info(const struct job *job)
{
    const struct mb_decoder_info *info = mb_decoder_info(job->decoder);
    (void)printf("{\"arch\": \"%s\", \"weights\": \"%s\", \"n_vocab\": %zu, "
                 "\"d_model\": %zu, \"n_params\": %llu, \"kernels\": \"%s\"",
        info->arch, info->weights, info->n_vocab, info->d_model,
        (unsigned long long)info->n_params, job->decoder->compute->name);
}

static mb_status
run_arrays(struct job *job, struct mb_error *err)
{
    size_t n_vocab = mb_decoder_info(job->decoder)->n_vocab;
    size_t d_model = mb_decoder_info(job->decoder)->d_model;
    job->logits = make(job->n * n_vocab, sizeof(float));
    job->hidden = make(job->n * d_model, sizeof(float));
    job->nll = make(job->n, sizeof(float));
    for (size_t i = 0; i < job->n * n_vocab; i++)
        job->logits[i] = NAN;
    mb_status st = run_all(job, err);
    if (st == MB_OK && job->opt.n_greedy > 0)
        st = run_greedy(job, err);
    if (st == MB_OK && job->opt.prefix) {
        write_array(job, "logits", job->logits, job->n * n_vocab);
        write_array(job, "hidden", job->hidden, job->n * d_model);
        write_array(job, "nll", job->nll, job->n);
    }
    return st;
}

static mb_status
run(struct job *job, struct mb_error *err)
{
    mb_status st = open_model(job, err);
    if (st == MB_OK)
        st = make_mates(job, err);
    if (st != MB_OK)
        return st;
    print_info(job);
    if (job->opt.prefix)
        write_array(job, "tokens", job->tokens, job->n);
    st = job->opt.window > 0 ? run_windows(job, err) : run_arrays(job, err);
    (void)printf("}\n");
    return st;
}

int
main(int argc, char **argv)
{
    struct job job = {0};
    struct mb_error err = {0};
    parse(argc, argv, &job.opt);
    mb_status st = run(&job, &err);
    if (st != MB_OK)
        (void)fprintf(stderr, "%s: %s\n", mb_status_name(st), err.text);
    close_model(&job);
    return st == MB_OK ? 0 : 1;
}
