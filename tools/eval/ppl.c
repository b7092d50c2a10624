/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/ppl.c - see ppl.h.
 *
 * Several windows go through one pass, as many as it has rows for: each is a
 * sequence of its own. Sums are in double, in the order of the text, so that a
 * figure does not depend on the number of threads. */
#include "ppl.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "display.h"
#include "json.h"
#include "landmarks.h"
#include "progress.h"
#include "source.h"
#include "tool.h"

#define PASS_ROWS   2048u /* of a pass, or one window if that is more */
#define MAX_WINDOWS 64u   /* of a pass */
#define LN2         0.69314718055994530942

/* Windows that wait for the next pass. */
struct batch {
    struct mb_rows items[MAX_WINDOWS];
    struct mb_sequence *seqs[MAX_WINDOWS];
    size_t n;
    size_t n_rows;
};

/* Sums over the documents of a file. */
struct totals {
    uint64_t n_documents;
    uint64_t n_bytes;
    uint64_t n_tokens; /* with bos and eos */
    uint64_t n_scored;
    double nll;
    double seconds;
};

struct ppl {
    const struct mb_cli *cli;
    const char *path; /* of the model */
    struct mb_gguf *gguf;
    struct mb_decoder *decoder;
    struct mb_tokenizer *tokenizer;
    struct mb_token_cache *words;
    struct mb_cache *cache;
    struct mb_pass *pass;
    bool has_landmarks; /* documents are contexts */
    struct landmarks landmarks;
    uint64_t window;
    uint64_t stride;
    uint64_t n_threads; /* 0: all */
    size_t max_rows;
    struct batch batch;
    mb_token_id *tokens; /* of the document (n, capacity) */
    mb_token_id *targets;
    float *nll;
    size_t n;
    size_t capacity;
    struct progress progress;
    FILE *csv; /* NULL: none */
    struct totals totals;
    bool has_header;
};

/* ---- the model ---- */

static mb_status
read_options(struct ppl *p, mb_cache_type *cache, struct mb_error *err)
{
    const char *name = mb_cli_str(p->cli, "context");
    mb_status st = mb_cli_u64(p->cli, "window", 2, 1 << 20, &p->window, err);

    p->stride = p->window;
    if (st == MB_OK)
        st = mb_cli_u64(p->cli, "stride", 1, p->window, &p->stride, err);
    if (st == MB_OK)
        st = mb_cli_u64(p->cli, "threads", 0, 1024, &p->n_threads, err);
    p->path = mb_cli_str(p->cli, "model");
    if (p->path == NULL)
        p->path = access(MB_MODEL_INSTALLED, R_OK) == 0 ? MB_MODEL_INSTALLED
                                                        : MB_MODEL_SOURCE;
    p->has_landmarks = landmarks_is_kind(name);
    p->landmarks.path = p->path;
    if (st == MB_OK && !p->has_landmarks && strcmp(name, "none") != 0)
        st = mb_error_set(err, MB_ERR_BAD_ARG,
            "--context %s: none, landmark, sensory, hmt or both", name);
    return st == MB_OK ? landmarks_cache_type(p->cli, cache, err) : st;
}

static mb_status
open_model(struct ppl *p, struct mb_error *err)
{
    mb_cache_type type = MB_CACHE_F16;
    mb_status st = read_options(p, &type, err);

    if (st == MB_OK)
        st = mb_gguf_open(p->path, &p->gguf, err);
    if (st == MB_OK)
        st = mb_decoder_open(p->gguf, &p->decoder, err);
    if (st == MB_OK)
        st = mb_tokenizer_new(p->gguf, &p->tokenizer, err);
    if (st == MB_OK)
        st = mb_token_cache_new(&p->words);
    if (st == MB_OK && p->window > mb_decoder_info(p->decoder)->n_ctx)
        st = mb_error_set(err, MB_ERR_BAD_ARG,
            "--window %llu: the model has a context of %zu",
            (unsigned long long)p->window, mb_decoder_info(p->decoder)->n_ctx);
    if (st != MB_OK)
        return st;
    p->max_rows = p->window > PASS_ROWS ? (size_t)p->window : PASS_ROWS;
    // Each window may fill its last block by one row.
    st = mb_cache_new(p->decoder, type,
        p->max_rows + (size_t)MAX_WINDOWS * MB_BLOCK_ROWS, &p->cache, err);
    if (st == MB_OK)
        st = mb_pass_new(
            p->decoder, p->max_rows, (unsigned)p->n_threads, &p->pass, err);
    for (size_t i = 0; i < MAX_WINDOWS && st == MB_OK; i++)
        st = mb_sequence_new(p->cache, &p->batch.seqs[i], err);
    if (st == MB_OK && p->has_landmarks)
        st = landmarks_open(
            &p->landmarks, p->cli, p->gguf, p->decoder, p->tokenizer, err);
    return st;
}

static void
close_model(struct ppl *p)
{
    for (size_t i = 0; i < MAX_WINDOWS; i++)
        mb_sequence_free(p->batch.seqs[i]);
    landmarks_close(&p->landmarks);
    mb_pass_free(p->pass);
    mb_cache_free(p->cache);
    mb_token_cache_free(p->words);
    mb_tokenizer_free(p->tokenizer);
    mb_decoder_close(p->decoder);
    mb_gguf_close(p->gguf);
    mb_free(p->tokens);
    mb_free(p->targets);
    mb_free(p->nll);
}

/* ---- one document ---- */

static mb_status
make_room(struct ppl *p, size_t n, struct mb_error *err)
{
    if (n <= p->capacity)
        return MB_OK;
    mb_free(p->tokens);
    mb_free(p->targets);
    mb_free(p->nll);
    p->tokens = mb_calloc(n, sizeof *p->tokens);
    p->targets = mb_calloc(n, sizeof *p->targets);
    p->nll = mb_calloc(n, sizeof *p->nll);
    p->capacity = p->tokens && p->targets && p->nll ? n : 0;
    return p->capacity > 0
               ? MB_OK
               : mb_error_set(err, MB_ERR_NOMEM, "a text of %zu tokens", n);
}

/* Tokens of a text, with bos and eos around it. */
static mb_status
encode(struct ppl *p, struct mb_slice text, struct mb_error *err)
{
    mb_token_id bos = mb_tokenizer_bos(p->tokenizer);
    mb_token_id eos = mb_tokenizer_eos(p->tokenizer);
    struct mb_buffer tokens;
    mb_status st;

    mb_buffer_init(&tokens, SIZE_MAX / 2);
    st = mb_tokenizer_encode(p->tokenizer, p->words, text, &tokens, err);
    size_t n = tokens.size / sizeof(struct mb_token);
    if (st == MB_OK)
        st = make_room(p, n + 2, err);
    p->n = 0;
    if (st == MB_OK && bos >= 0)
        p->tokens[p->n++] = bos;
    for (size_t i = 0; st == MB_OK && i < n; i++) {
        struct mb_token token;

        memcpy(&token, tokens.data + i * sizeof token, sizeof token);
        p->tokens[p->n++] = token.id;
    }
    if (st == MB_OK && eos >= 0)
        p->tokens[p->n++] = eos;
    mb_buffer_fini(&tokens);
    return st;
}

static mb_status
run_batch(struct ppl *p, struct mb_error *err)
{
    mb_status st = MB_OK;

    if (p->batch.n > 0)
        st = mb_pass_run(p->pass, p->batch.items, p->batch.n, err);
    p->batch.n = 0;
    p->batch.n_rows = 0;
    return st;
}

/* Take rows [start, start + n) of the document along in the next pass; those
 * before `scored` are context. */
static mb_status
add_window(struct ppl *p, size_t start, size_t n, struct mb_error *err)
{
    struct batch *b = &p->batch;
    mb_status st = MB_OK;

    if (b->n == MAX_WINDOWS || b->n_rows + n > p->max_rows)
        st = run_batch(p, err);
    mb_sequence_truncate(b->seqs[b->n], 0);
    b->items[b->n] = (struct mb_rows){.seq = b->seqs[b->n],
        .tokens = p->tokens + start,
        .n = n,
        .kind = MB_ROWS_PREFILL,
        .targets = p->targets + start,
        .nll = p->nll + start};
    b->n++;
    b->n_rows += n;
    return st;
}

/* Windows that overlap score each token once: its target stands in the first
 * window that has it, and is masked before the next is run. */
static mb_status
score(struct ppl *p, struct mb_error *err)
{
    bool is_overlapping = p->stride < p->window;
    size_t n_inputs = p->n > 0 ? p->n - 1 : 0;
    size_t scored = 0; // targets before this one are done
    mb_status st = MB_OK;

    for (size_t i = 0; i < n_inputs; i++)
        p->targets[i] = p->tokens[i + 1];
    for (size_t start = 0; scored < n_inputs && st == MB_OK;
         start += (size_t)p->stride) {
        size_t n =
            n_inputs - start < p->window ? n_inputs - start : (size_t)p->window;

        st = add_window(p, start, n, err);
        if (st == MB_OK && is_overlapping)
            st = run_batch(p, err);
        for (size_t i = scored; is_overlapping && i < start + n; i++) {
            p->totals.nll += (double)p->nll[i];
            p->targets[i] = -1;
        }
        scored = start + n;
    }
    if (st == MB_OK)
        st = run_batch(p, err);
    for (size_t i = 0; !is_overlapping && i < n_inputs; i++)
        p->totals.nll += (double)p->nll[i];
    p->totals.n_scored += n_inputs;
    return st;
}

/* The same, read as a context from its first token on. */
static mb_status
score_context(struct ppl *p, struct mb_error *err)
{
    size_t n = p->n > 0 ? p->n - 1 : 0;
    struct mb_context_rows rows = {
        .tokens = p->tokens, .n = n, .targets = p->tokens + 1, .nll = p->nll};
    mb_status st = mb_context_truncate(p->landmarks.ctx, 0, err);

    if (st == MB_OK)
        st = mb_context_read(p->landmarks.ctx, p->pass, &rows, err);
    for (size_t i = 0; st == MB_OK && i < n; i++)
        p->totals.nll += (double)p->nll[i];
    p->totals.n_scored += n;
    return st;
}

static mb_status
add_document(
    struct ppl *p, const struct source_document *doc, struct mb_error *err)
{
    struct mb_slice text = mb_wire_raw_str(mb_wire_find(doc->msgpack, "text"));
    uint64_t start = mb_clock_ns();
    mb_status st = encode(p, text, err);

    if (st == MB_OK)
        st = p->has_landmarks ? score_context(p, err) : score(p, err);
    p->totals.n_documents++;
    p->totals.n_bytes += text.size;
    p->totals.n_tokens += p->n;
    p->totals.seconds += (double)(mb_clock_ns() - start) / 1e9;
    return st;
}

/* ---- results ---- */

/* What is derived from the sums; NaN while nothing was predicted. */
struct figures {
    double nats; /* a token */
    double perplexity;
    double bytes; /* a token */
    double bits;  /* a byte */
    double rate;  /* tokens a second */
};

static struct figures
figures_of(const struct totals *t)
{
    double n = t->n_scored > 0 ? (double)t->n_scored : (double)NAN;
    double bytes = t->n_bytes > 0 ? (double)t->n_bytes : (double)NAN;

    return (struct figures){.nats = t->nll / n,
        .perplexity = exp(t->nll / n),
        .bytes = bytes / (double)t->n_tokens,
        .bits = t->nll / LN2 / bytes,
        .rate = (double)t->n_tokens / t->seconds};
}

static void
print_header(const struct ppl *p, const struct mb_decoder_info *info)
{
    (void)printf("%s: %s, %s, ", p->path, info->arch, info->weights);
    if (p->has_landmarks)
        (void)printf("%s, segments of %zu blocks, %zu retrieved by %s, tail %s",
            mb_cli_str(p->cli, "context"), p->landmarks.options.segment_blocks,
            landmarks_k(&p->landmarks), p->landmarks.select, p->landmarks.tail);
    else
        (void)printf("windows of %llu every %llu tokens",
            (unsigned long long)p->window, (unsigned long long)p->stride);
    (void)printf(", cache %s\n%-32s  %9s  %9s  %10s  %10s  %11s  %9s  %8s\n",
        mb_cli_str(p->cli, "cache"), "file", "documents", "tokens",
        "nats/token", "perplexity", "bytes/token", "bits/byte", "tokens/s");
}

static void
print_row(struct ppl *p, const char *file)
{
    struct figures f = figures_of(&p->totals);
    const struct mb_decoder_info *info = mb_decoder_info(p->decoder);

    if (!p->has_header) {
        print_header(p, info);
        p->has_header = true;
    }
    (void)printf("%-32s  %9llu  %9llu  %10.4f  %10.3f  %11.3f  %9.4f  %8.0f\n",
        file, (unsigned long long)p->totals.n_documents,
        (unsigned long long)p->totals.n_tokens, f.nats, f.perplexity, f.bytes,
        f.bits, f.rate);
    (void)fflush(stdout);
}

static mb_status
print_json(const struct ppl *p, const char *file)
{
    const struct mb_decoder_info *info = mb_decoder_info(p->decoder);
    struct figures f = figures_of(&p->totals);
    struct mb_buffer buf;
    struct json_writer w;

    mb_buffer_init(&buf, SIZE_MAX / 2);
    json_writer_init(&w, &buf);
    json_object_begin(&w);
    json_kv_cstr(&w, "file", file);
    json_kv_cstr(&w, "model", p->path);
    json_kv_cstr(&w, "arch", info->arch);
    json_kv_cstr(&w, "weights", info->weights);
    json_kv_cstr(&w, "cache", mb_cli_str(p->cli, "cache"));
    json_kv_cstr(&w, "context", mb_cli_str(p->cli, "context"));
    if (p->has_landmarks) {
        json_kv_u64(&w, "k", landmarks_k(&p->landmarks));
        json_kv_u64(&w, "segment", p->landmarks.options.segment_blocks);
        json_kv_cstr(&w, "select", p->landmarks.select);
        json_kv_cstr(&w, "tail", p->landmarks.tail);
    } else {
        json_kv_u64(&w, "window", p->window);
        json_kv_u64(&w, "stride", p->stride);
    }
    json_kv_u64(&w, "documents", p->totals.n_documents);
    json_kv_u64(&w, "bytes", p->totals.n_bytes);
    json_kv_u64(&w, "tokens", p->totals.n_tokens);
    json_kv_u64(&w, "scored", p->totals.n_scored);
    json_kv_f64(&w, "nll", p->totals.nll);
    json_kv_f64(&w, "nats_per_token", f.nats);
    json_kv_f64(&w, "perplexity", f.perplexity);
    json_kv_f64(&w, "bytes_per_token", f.bytes);
    json_kv_f64(&w, "bits_per_byte", f.bits);
    json_kv_f64(&w, "tokens_per_s", f.rate);
    json_object_end(&w);
    if (w.status == MB_OK)
        tool_put_line(&buf);
    mb_buffer_fini(&buf);
    return w.status;
}

/* A line of --csv, behind its header. */
static mb_status
add_csv(struct ppl *p, const char *file, struct mb_error *err)
{
    struct figures f = figures_of(&p->totals);
    size_t k = p->has_landmarks ? landmarks_k(&p->landmarks) : 0;
    size_t segment = p->has_landmarks ? p->landmarks.options.segment_blocks : 0;

    if (p->csv == NULL)
        return MB_OK;
    (void)fprintf(p->csv, "\"%s\",%s,%zu,%zu,%llu,%llu,%.6f,%.6f,%.6f,%.1f\n",
        file, mb_cli_str(p->cli, "context"), k, segment,
        (unsigned long long)p->totals.n_documents,
        (unsigned long long)p->totals.n_scored, f.nats, f.perplexity, f.bits,
        f.rate);
    return fflush(p->csv) == 0 ? MB_OK
                               : mb_error_set(err, MB_ERR_IO, "write --csv");
}

static mb_status
open_csv(struct ppl *p, struct mb_error *err)
{
    const char *path = mb_cli_str(p->cli, "csv");

    if (path == NULL)
        return MB_OK;
    p->csv = fopen(path, "w");
    if (p->csv == NULL)
        return mb_error_set(err, MB_ERR_IO, "open %s", path);
    (void)fprintf(p->csv, "file,context,k,segment,documents,scored,"
                          "nats_per_token,perplexity,bits_per_byte,"
                          "tokens_per_s\n");
    return MB_OK;
}

/* ---- files ---- */

static void
show_progress(struct ppl *p, const struct source *source, const char *file)
{
    struct figures f = figures_of(&p->totals);
    uint64_t total = source_bytes_total(source);
    double part =
        total > 0 ? (double)source_bytes_read(source) / (double)total : -1;
    char text[120];

    (void)snprintf(text, sizeof text, "%.60s: %.3f nats/token, %.0f tokens/s",
        file, f.nats, f.rate);
    progress_show(&p->progress, part, text);
}

static mb_status
measure_file(struct ppl *p, const char *file, struct mb_error *err)
{
    struct source_options opt = {.repair = true};
    struct source_document doc;
    struct source *source = NULL;
    struct walk_list list;
    bool more = true;
    mb_status st;

    p->totals = (struct totals){0};
    walk_list_init(&list);
    st = walk_add(&list, file, err);
    if (st == MB_OK)
        st = source_new(&list, &opt, &source, err);
    while (st == MB_OK && more) {
        st = source_next(source, &doc, &more, err);
        if (st == MB_OK && more)
            st = add_document(p, &doc, err);
        if (st == MB_OK)
            show_progress(p, source, file);
    }
    if (st == MB_OK && p->totals.n_scored == 0)
        st =
            mb_error_set(err, MB_ERR_NOT_FOUND, "%s: no text to predict", file);
    progress_clear(&p->progress);
    source_free(source);
    walk_list_fini(&list);
    if (st == MB_OK && mb_cli_has(p->cli, "json"))
        st = print_json(p, file);
    else if (st == MB_OK)
        print_row(p, file);
    return st == MB_OK ? add_csv(p, file, err) : st;
}

mb_status
ppl_run(const struct mb_cli *cli, size_t first, struct mb_error *err)
{
    struct ppl p = {.cli = cli};
    mb_status st = open_model(&p, err);

    if (st == MB_OK)
        st = open_csv(&p, err);
    progress_init(&p.progress, stderr, false);
    for (size_t i = first; i < mb_cli_n_args(cli) && st == MB_OK; i++)
        st = measure_file(&p, mb_cli_arg(cli, i), err);
    close_model(&p);
    if (p.csv != NULL && fclose(p.csv) != 0 && st == MB_OK)
        st = mb_error_set(err, MB_ERR_IO, "write --csv");
    return st;
}
