/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/model.c - prefill, decoding and embedding, tokens a second.
 *
 * Passes of random tokens through a GGUF file: the arithmetic does not depend
 * on what they say. A figure is the median of passes; each series is run on one
 * thread and on all. Decoding reads all weights once a pass: bytes of weights a
 * second stand beside what the machine reads at best. (A model that a cache
 * holds may be read faster than memory is.) With generate, clients of the
 * engine end it: crowd.c.
 * Threads: the main thread; passes have their own. */
#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crowd.h"
#include "display.h"
#include "json.h"
#include "mb_decoder.h"
#include "times.h"
#include "tool.h"

#define CHUNK       512u  /* rows of a pass of prefill */
#define MAX_BATCH   16u   /* sequences that decode at once */
#define EMBED_ROWS  252u  /* of a segment: MB_SEGMENT_TOKENS */
#define EMBED_BATCH 8u    /* segments of a pass */
#define MAX_ROWS    20000 /* of cache: longer batches are left out */
#define MIN_NS      400000000u
#define MAX_NS      5000000000u /* then no further runs, were there few */
#define MIN_RUNS    3u
#define MAX_RUNS    64u

#define MAX_LIST 8u /* numbers of an option */

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* Numbers of an option, "128,512". */
struct list {
    size_t n;
    size_t v[MAX_LIST];
};

struct speed {
    const struct mb_cli *cli;
    struct list prompts;
    struct list contexts;
    struct list sequences;
    const char *path;
    struct mb_gguf *gguf;
    struct mb_decoder *decoder;
    const struct mb_decoder_info *info;
    struct mb_cache *cache;
    struct mb_pass *pass;
    struct mb_sequence *seqs[MAX_BATCH];
    unsigned n_threads;
    double bandwidth;    /* of so many threads */
    mb_token_id *tokens; /* random (CHUNK * EMBED_BATCH) */
    float *hidden;       /* (EMBED_BATCH * EMBED_ROWS, d_model) */
    float *logits;       /* (MAX_BATCH, n_vocab) */
    struct table *table;
    struct mb_buffer rows; /* JSON objects, comma between */
    mb_cache_type cache_type;
    struct table *crowds; /* with generate, or NULL */
    struct mb_buffer crowd_rows;
};

/* One line of the result. */
struct line {
    const char *what;
    size_t context; /* rows before */
    size_t n_seqs;
    size_t n_rows; /* of all sequences, a round */
    double seconds;
    bool reads_weights; /* one reading of the weights a round */
};

/* ---- result ---- */

static mb_status
add_json(struct speed *s, const struct line *l)
{
    struct json_writer w;

    if (s->rows.size > 0 && mb_buffer_append(&s->rows, ",", 1) != MB_OK)
        return MB_ERR_NOMEM;
    json_writer_init(&w, &s->rows);
    json_object_begin(&w);
    json_kv_cstr(&w, "what", l->what);
    json_kv_u64(&w, "threads", s->n_threads);
    json_kv_u64(&w, "context", l->context);
    json_kv_u64(&w, "sequences", l->n_seqs);
    json_kv_u64(&w, "tokens", l->n_rows);
    json_kv_f64(&w, "ms", l->seconds * 1e3);
    json_kv_f64(&w, "tokens_per_s", (double)l->n_rows / l->seconds);
    if (l->reads_weights)
        json_kv_f64(&w, "weight_bytes_per_s",
            (double)s->info->decode_bytes / l->seconds);
    json_kv_f64(&w, "read_bandwidth", s->bandwidth);
    json_object_end(&w);
    return w.status;
}

static mb_status
add_line(struct speed *s, const struct line *l)
{
    double weights = (double)s->info->decode_bytes / l->seconds;

    table_cell(s->table, "%s", l->what);
    table_cell(s->table, "%u", s->n_threads);
    table_cell(s->table, "%zu", l->context);
    table_cell(s->table, "%zu", l->n_seqs);
    table_cell(s->table, "%zu", l->n_rows);
    table_cell(s->table, "%.3f", l->seconds * 1e3);
    table_cell(s->table, "%.0f", (double)l->n_rows / l->seconds);
    if (l->reads_weights) {
        table_cell(s->table, "%.1f", weights / 1e9);
        table_cell(s->table, "%.0f%%", 100 * weights / s->bandwidth);
    } else {
        table_cell(s->table, "%s", "");
        table_cell(s->table, "%s", "");
    }
    return add_json(s, l);
}

static void
print_json(const struct speed *s, const char *what)
{
    struct mb_buffer buf;
    struct json_writer w;

    mb_buffer_init(&buf, SIZE_MAX / 2);
    json_writer_init(&w, &buf);
    json_object_begin(&w);
    json_kv_cstr(&w, "measured", what);
    json_kv_cstr(&w, "model", s->path);
    json_kv_cstr(&w, "arch", s->info->arch);
    json_kv_cstr(&w, "weights", s->info->weights);
    json_kv_cstr(&w, "cache", mb_cli_str(s->cli, "cache"));
    json_kv_u64(&w, "parameters", s->info->n_params);
    json_kv_u64(&w, "weight_bytes", s->info->weight_bytes);
    json_kv_u64(&w, "decode_bytes", s->info->decode_bytes);
    json_kv_u64(&w, "cpus", mb_cpu_count());
    json_key(&w, "series");
    json_array_begin(&w);
    if (w.status == MB_OK)
        w.status = mb_buffer_append(&buf, s->rows.data, s->rows.size);
    json_array_end(&w);
    if (s->crowds != NULL) {
        json_key(&w, "clients");
        json_array_begin(&w);
        if (w.status == MB_OK)
            w.status =
                mb_buffer_append(&buf, s->crowd_rows.data, s->crowd_rows.size);
        json_array_end(&w);
    }
    json_object_end(&w);
    tool_put_line(&buf);
    mb_buffer_fini(&buf);
}

static void
print_table(const struct speed *s)
{
    char params[DISPLAY_FIGURE], bytes[DISPLAY_FIGURE];

    (void)printf("%s: %s, %s, %s parameters, %s read for a token, cache %s, "
                 "%u processors\n",
        s->path, s->info->arch, s->info->weights,
        show_count(params, s->info->n_params),
        show_bytes(bytes, s->info->decode_bytes), mb_cli_str(s->cli, "cache"),
        mb_cpu_count());
    table_print(s->table, stdout, 0);
    if (s->crowds != NULL)
        table_print(s->crowds, stdout, 0);
}

/* ---- passes ---- */

/* n rows to the end of each of n_seqs sequences, in one pass. */
static mb_status
run_rows(struct speed *s, size_t n_seqs, size_t n, mb_rows_kind kind,
    struct mb_error *err)
{
    struct mb_rows items[MAX_BATCH];

    for (size_t i = 0; i < n_seqs; i++) {
        items[i] = (struct mb_rows){.seq = s->seqs[i],
            .tokens = s->tokens + i * n,
            .n = n,
            .kind = kind};
        if (kind == MB_ROWS_DECODE)
            items[i].logits = s->logits + i * s->info->n_vocab;
    }
    return mb_pass_run(s->pass, items, n_seqs, err);
}

/* Make each of n_seqs sequences `length` rows long. */
static mb_status
extend(struct speed *s, size_t n_seqs, size_t length, struct mb_error *err)
{
    mb_status st = MB_OK;

    for (size_t i = 0; i < n_seqs; i++) {
        struct mb_rows item = {.seq = s->seqs[i], .tokens = s->tokens};

        if (mb_sequence_length(s->seqs[i]) > length)
            mb_sequence_truncate(s->seqs[i], length);
        while (st == MB_OK && mb_sequence_length(s->seqs[i]) < length) {
            size_t left = length - mb_sequence_length(s->seqs[i]);

            item.n = left < CHUNK ? left : CHUNK;
            st = mb_pass_run(s->pass, &item, 1, err);
        }
    }
    return st;
}

/* Run `round` until it took long enough in all; the median of its times. */
static mb_status
time_rounds(struct speed *s, struct line *l,
    mb_status (*round)(struct speed *, const struct line *, struct mb_error *),
    struct mb_error *err)
{
    uint64_t times[MAX_RUNS];
    uint64_t sum = 0;
    size_t n = 0;
    mb_status st = round(s, l, err); // warm up

    while (st == MB_OK && n < MAX_RUNS && sum < MAX_NS &&
           (n < MIN_RUNS || sum < MIN_NS)) {
        uint64_t start = mb_clock_ns();

        st = round(s, l, err);
        times[n] = mb_clock_ns() - start;
        sum += times[n++];
    }
    if (st != MB_OK)
        return st;
    times_sort(times, n);
    l->seconds = (double)times[n / 2] / 1e9;
    return add_line(s, l);
}

/* ---- series ---- */

static mb_status
round_prefill(struct speed *s, const struct line *l, struct mb_error *err)
{
    mb_sequence_truncate(s->seqs[0], 0);
    return extend(s, 1, l->n_rows, err);
}

static mb_status
round_decode(struct speed *s, const struct line *l, struct mb_error *err)
{
    return run_rows(s, l->n_seqs, 1, MB_ROWS_DECODE, err);
}

static mb_status
round_embed(struct speed *s, const struct line *l, struct mb_error *err)
{
    struct mb_rows items[EMBED_BATCH];

    for (size_t i = 0; i < l->n_seqs; i++) {
        mb_sequence_truncate(s->seqs[i], 0);
        items[i] = (struct mb_rows){.seq = s->seqs[i],
            .tokens = s->tokens + i * EMBED_ROWS,
            .n = EMBED_ROWS,
            .hidden = s->hidden + i * EMBED_ROWS * s->info->d_model};
    }
    return mb_pass_run(s->pass, items, l->n_seqs, err);
}

static mb_status
measure_decode(struct speed *s, size_t n_seqs, struct mb_error *err)
{
    mb_status st = MB_OK;

    for (size_t i = 0; i < s->contexts.n && st == MB_OK; i++) {
        struct line l = {.what = "decode",
            .context = s->contexts.v[i],
            .n_seqs = n_seqs,
            .n_rows = n_seqs,
            .reads_weights = true};

        if (n_seqs * (l.context + MAX_RUNS + 1) > MAX_ROWS)
            continue;
        st = extend(s, n_seqs, l.context, err);
        if (st == MB_OK)
            st = time_rounds(s, &l, round_decode, err);
    }
    return st;
}

static void
forget_all(struct speed *s)
{
    for (size_t i = 0; i < MAX_BATCH; i++)
        mb_sequence_truncate(s->seqs[i], 0);
}

static mb_status
measure_generate(struct speed *s, struct mb_error *err)
{
    mb_status st = MB_OK;

    for (size_t i = 0; i < s->prompts.n && st == MB_OK; i++) {
        struct line l = {
            .what = "prefill", .n_seqs = 1, .n_rows = s->prompts.v[i]};

        st = time_rounds(s, &l, round_prefill, err);
    }
    for (size_t i = 0; i < s->sequences.n && st == MB_OK; i++) {
        forget_all(s);
        st = measure_decode(s, s->sequences.v[i], err);
    }
    return st;
}

static mb_status
measure_embed(struct speed *s, struct mb_error *err)
{
    struct line one = {.what = "embed", .n_seqs = 1, .n_rows = EMBED_ROWS};
    struct line many = {.what = "embed",
        .n_seqs = EMBED_BATCH,
        .n_rows = EMBED_BATCH * EMBED_ROWS};
    mb_status st = time_rounds(s, &one, round_embed, err);

    return st == MB_OK ? time_rounds(s, &many, round_embed, err) : st;
}

/* ---- many clients ---- */

static mb_status
add_crowd(struct speed *s, size_t n_clients, const struct crowd_result *r)
{
    double rate = (double)r->n_tokens / r->seconds;
    struct json_writer w;

    table_cell(s->crowds, "%zu", n_clients);
    table_cell(s->crowds, "%zu", r->prompt);
    table_cell(s->crowds, "%zu", r->n_tokens);
    table_cell(s->crowds, "%.0f", rate);
    table_cell(s->crowds, "%.1f", r->first_s * 1e3);
    table_cell(s->crowds, "%.1f", r->median_s * 1e3);
    table_cell(s->crowds, "%.1f", r->pause_s * 1e3);
    table_cell(s->crowds, "%.1f", r->fastest_s * 1e3);
    table_cell(s->crowds, "%.1f", r->seconds * 1e3);
    if (s->crowd_rows.size > 0 &&
        mb_buffer_append(&s->crowd_rows, ",", 1) != MB_OK)
        return MB_ERR_NOMEM;
    json_writer_init(&w, &s->crowd_rows);
    json_object_begin(&w);
    json_kv_u64(&w, "clients", n_clients);
    json_kv_u64(&w, "threads", s->n_threads);
    json_kv_u64(&w, "prompt", r->prompt);
    json_kv_u64(&w, "tokens", r->n_tokens);
    json_kv_f64(&w, "tokens_per_s", rate);
    json_kv_f64(&w, "longest_first_ms", r->first_s * 1e3);
    json_kv_f64(&w, "median_pause_ms", r->median_s * 1e3);
    json_kv_f64(&w, "longest_pause_ms", r->pause_s * 1e3);
    json_kv_f64(&w, "first_end_ms", r->fastest_s * 1e3);
    json_kv_f64(&w, "last_end_ms", r->seconds * 1e3);
    json_object_end(&w);
    return w.status;
}

/* One client alone, then --clients together, through the engine. A file that
 * cannot write text has no clients. */
static mb_status
measure_clients(struct speed *s, struct mb_error *err)
{
    static const char *const heads[] = {"clients", "prompt", "tokens",
        "tokens/s", "first ms, longest", "pause ms, median", "longest",
        "first end ms", "last"};
    struct crowd_options o = {.n_clients = 1,
        .n_threads = s->n_threads,
        .cache = s->cache_type,
        .seed = 1};
    struct mb_tokenizer *tokenizer = NULL;
    struct crowd_result r;
    uint64_t most = 0;
    mb_status st = mb_cli_u64(s->cli, "clients", 1, 1000, &most, err);

    if (st != MB_OK || mb_tokenizer_new(s->gguf, &tokenizer, NULL) != MB_OK)
        return st;
    s->crowds = table_new(COUNT(heads), heads, "rrrrrrrrr");
    if (s->crowds == NULL)
        st = mb_error_set(err, MB_ERR_NOMEM, "table");
    while (st == MB_OK) {
        st = bench_crowd(s->decoder, tokenizer, &o, &r, err);
        if (st == MB_OK)
            st = add_crowd(s, o.n_clients, &r);
        if (o.n_clients >= most)
            break;
        o.n_clients = (size_t)most;
    }
    mb_tokenizer_free(tokenizer);
    return st;
}

/* ---- the model ---- */

mb_status
bench_cache_type(
    const struct mb_cli *cli, mb_cache_type *out, struct mb_error *err)
{
    static const char *const names[] = {"f16", "q8_0", "f32"};
    struct mb_slice name = mb_slice_cstr(mb_cli_str(cli, "cache"));

    for (size_t i = 0; i < COUNT(names); i++) {
        if (mb_slice_equal(name, mb_slice_cstr(names[i]))) {
            *out = (mb_cache_type)i;
            return MB_OK;
        }
    }
    return mb_error_set(err, MB_ERR_BAD_ARG, "--cache %s: f16, q8_0 or f32",
        mb_cli_str(cli, "cache"));
}

/* The numbers of an option, each from 1 to max. */
static mb_status
read_list(const struct mb_cli *cli, const char *name, size_t max,
    struct list *out, struct mb_error *err)
{
    const char *text = mb_cli_str(cli, name);
    const char *at = text;

    for (out->n = 0; out->n < MAX_LIST; at++) {
        char *end = NULL;
        unsigned long v = strtoul(at, &end, 10);

        if (end == at || v < 1 || v > max || (*end != ',' && *end != '\0'))
            break;
        out->v[out->n++] = v;
        at = end;
        if (*at == '\0')
            return MB_OK;
    }
    return mb_error_set(err, MB_ERR_BAD_ARG,
        "--%s %s: at most %u numbers from 1 to %zu with commas between", name,
        text, MAX_LIST, max);
}

static mb_status
read_options(struct speed *s, mb_cache_type *cache, struct mb_error *err)
{
    mb_status st = bench_cache_type(s->cli, cache, err);

    if (st == MB_OK)
        st = read_list(s->cli, "prompts", MAX_ROWS, &s->prompts, err);
    if (st == MB_OK)
        st = read_list(s->cli, "contexts", MAX_ROWS, &s->contexts, err);
    if (st == MB_OK)
        st = read_list(s->cli, "sequences", MAX_BATCH, &s->sequences, err);
    return st;
}

static mb_status
make_input(struct speed *s, struct mb_error *err)
{
    struct mb_rng rng;
    size_t n = (size_t)CHUNK * EMBED_BATCH;

    s->tokens = mb_calloc(n, sizeof *s->tokens);
    s->hidden = mb_calloc(
        (size_t)EMBED_BATCH * EMBED_ROWS * s->info->d_model, sizeof *s->hidden);
    s->logits = mb_calloc(MAX_BATCH * s->info->n_vocab, sizeof *s->logits);
    if (s->tokens == NULL || s->hidden == NULL || s->logits == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "room for results");
    mb_rng_init(&rng, 1);
    for (size_t i = 0; i < n; i++)
        s->tokens[i] = (mb_token_id)mb_rng_below(&rng, s->info->n_vocab);
    return MB_OK;
}

static mb_status
open_model(struct speed *s, struct mb_error *err)
{
    static const char *const heads[] = {"pass", "threads", "context",
        "sequences", "tokens", "ms", "tokens/s", "weights GB/s", "of memory's"};
    mb_status st = read_options(s, &s->cache_type, err);

    s->path = mb_cli_str(s->cli, "model");
    if (s->path == NULL)
        s->path = access(MB_MODEL_INSTALLED, R_OK) == 0 ? MB_MODEL_INSTALLED
                                                        : MB_MODEL_SOURCE;
    if (st == MB_OK)
        st = mb_gguf_open(s->path, &s->gguf, err);
    if (st == MB_OK)
        st = mb_decoder_open(s->gguf, &s->decoder, err);
    if (st != MB_OK)
        return st;
    s->info = mb_decoder_info(s->decoder);
    s->table = table_new(COUNT(heads), heads, "lrrrrrrrr");
    if (s->table == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "table");
    st = mb_cache_new(s->decoder, s->cache_type,
        MAX_ROWS + (size_t)MAX_BATCH * MB_BLOCK_ROWS, &s->cache, err);
    for (size_t i = 0; i < MAX_BATCH && st == MB_OK; i++)
        st = mb_sequence_new(s->cache, &s->seqs[i], err);
    return st == MB_OK ? make_input(s, err) : st;
}

static void
close_model(struct speed *s)
{
    for (size_t i = 0; i < MAX_BATCH; i++)
        mb_sequence_free(s->seqs[i]);
    mb_pass_free(s->pass);
    mb_cache_free(s->cache);
    mb_decoder_close(s->decoder);
    mb_gguf_close(s->gguf);
    mb_free(s->tokens);
    mb_free(s->hidden);
    mb_free(s->logits);
    table_free(s->table);
    table_free(s->crowds);
    mb_buffer_fini(&s->rows);
    mb_buffer_fini(&s->crowd_rows);
}

static mb_status
measure(
    struct speed *s, unsigned n_threads, const char *what, struct mb_error *err)
{
    mb_status st = bench_bandwidth(n_threads, &s->bandwidth, err);

    s->n_threads = n_threads;
    mb_pass_free(s->pass);
    s->pass = NULL;
    forget_all(s);
    if (st == MB_OK)
        st = mb_pass_new(s->decoder, (size_t)EMBED_BATCH * EMBED_ROWS,
            n_threads, &s->pass, err);
    if (st != MB_OK)
        return st;
    return mb_slice_equal(mb_slice_cstr(what), mb_slice_cstr("embed"))
               ? measure_embed(s, err)
               : measure_generate(s, err);
}

mb_status
bench_model(const struct mb_cli *cli, const char *what, struct mb_error *err)
{
    struct speed s = {.cli = cli};
    uint64_t n_threads = 0;
    mb_status st = mb_cli_u64(cli, "threads", 0, 1024, &n_threads, err);

    mb_buffer_init(&s.rows, SIZE_MAX / 2);
    mb_buffer_init(&s.crowd_rows, SIZE_MAX / 2);
    if (st == MB_OK)
        st = open_model(&s, err);
    if (st == MB_OK)
        st = measure(&s, n_threads > 0 ? (unsigned)n_threads : 1, what, err);
    if (st == MB_OK && n_threads == 0 && mb_cpu_count() > 1)
        st = measure(&s, mb_cpu_count(), what, err);
    if (st == MB_OK && strcmp(what, "generate") == 0)
        st = measure_clients(&s, err);
    if (st == MB_OK && mb_cli_has(cli, "json"))
        print_json(&s, what);
    else if (st == MB_OK)
        print_table(&s);
    close_model(&s);
    return st;
}
