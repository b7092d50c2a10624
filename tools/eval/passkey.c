/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/passkey.c - see passkey.h.
 *
 * A prompt is read like any text: in segments, by rows of prefill, then the
 * answer row by row as it is generated, each time the likeliest token. An
 * answer counts if it is the key. How often the block that holds the key was
 * retrieved while the answer was made tells what failed where it is wrong. */
#include "passkey.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "heat.h"
#include "json.h"
#include "landmarks.h"
#include "progress.h"
#include "source.h"
#include "tool.h"

#define PASS_ROWS   1100u /* a window of the largest segment */
#define MAX_LENGTHS 32u
#define MAX_LENGTH  ((uint64_t)1 << 27)
#define MAX_DECOYS  15u
#define MAX_LINE    160u
#define MAX_ANSWER  32u /* tokens */
#define MAX_TEXT    64u
#define MIN_LENGTH  128u

static const char lines[] =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. "
    "There and back again.";

/* Whose keys they are; the first is asked for. */
static const char *const names[MAX_DECOYS + 1] = {"castle", "river", "doctor",
    "bridge", "garden", "soldier", "market", "window", "horse", "letter",
    "island", "kitchen", "mountain", "school", "violin", "ship"};

/* Tokens of a growing text. */
struct tokens {
    mb_token_id *ids;
    size_t n;
    size_t capacity;
};

/* What came of one prompt. */
struct outcome {
    uint64_t length;
    double depth; /* 0 to 1 */
    bool is_right;
    bool is_found; /* a block of the key was retrieved, or is in the window */
    char answer[MAX_TEXT];
};

struct totals {
    uint64_t n;
    uint64_t n_right;
    uint64_t n_found;
    double read_s;
    uint64_t n_read;
    double answer_s;
    uint64_t n_answered; /* tokens */
    size_t bytes;        /* of the context, at most */
};

struct passkey {
    const struct mb_cli *cli;
    struct mb_gguf *gguf;
    struct mb_decoder *decoder;
    struct mb_tokenizer *tokenizer;
    struct mb_token_cache *words;
    struct mb_pass *pass;
    struct landmarks landmarks;
    uint64_t lengths[MAX_LENGTHS];
    size_t n_lengths;
    uint64_t n_prompts;
    uint64_t n_decoys;
    uint64_t seed;
    struct tokens filler;
    struct tokens text; /* of the prompt */
    struct mb_buffer encoded;
    float *logits;
    struct heat heat;
    FILE *csv;
    struct progress progress;
};

/* ---- options ---- */

static mb_status
read_lengths(struct passkey *p, struct mb_error *err)
{
    const char *at = mb_cli_str(p->cli, "lengths");

    for (;;) {
        char *end = NULL;
        unsigned long long v = strtoull(at, &end, 10);

        if (end == at || v < MIN_LENGTH || v > MAX_LENGTH ||
            p->n_lengths == MAX_LENGTHS || (*end != ',' && *end != '\0'))
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "--lengths: up to %u numbers of tokens, %u to %llu, with "
                "commas between",
                MAX_LENGTHS, MIN_LENGTH, (unsigned long long)MAX_LENGTH);
        p->lengths[p->n_lengths++] = v;
        if (*end == '\0')
            return MB_OK;
        at = end + 1;
    }
}

static mb_status
open_model(struct passkey *p, struct mb_error *err)
{
    const char *path = mb_cli_str(p->cli, "model");
    uint64_t n_threads = 0;
    mb_status st = read_lengths(p, err);

    if (path == NULL)
        path = access(MB_MODEL_INSTALLED, R_OK) == 0 ? MB_MODEL_INSTALLED
                                                     : MB_MODEL_SOURCE;
    if (st == MB_OK)
        st = mb_cli_u64(p->cli, "prompts", 1, 100000, &p->n_prompts, err);
    if (st == MB_OK)
        st = mb_cli_u64(p->cli, "decoys", 0, MAX_DECOYS, &p->n_decoys, err);
    if (st == MB_OK)
        st = mb_cli_u64(p->cli, "seed", 0, UINT64_MAX, &p->seed, err);
    if (st == MB_OK)
        st = mb_cli_u64(p->cli, "threads", 0, 1024, &n_threads, err);
    if (st == MB_OK)
        st = mb_gguf_open(path, &p->gguf, err);
    if (st == MB_OK)
        st = mb_decoder_open(p->gguf, &p->decoder, err);
    if (st == MB_OK)
        st = mb_tokenizer_new(p->gguf, &p->tokenizer, err);
    if (st == MB_OK)
        st = mb_token_cache_new(&p->words);
    if (st == MB_OK)
        st = mb_pass_new(
            p->decoder, PASS_ROWS, (unsigned)n_threads, &p->pass, err);
    if (st == MB_OK)
        st = landmarks_open(
            &p->landmarks, p->cli, p->gguf, p->decoder, p->tokenizer, err);
    if (st != MB_OK)
        return st;
    p->logits = mb_calloc(mb_decoder_info(p->decoder)->n_vocab, sizeof(float));
    return p->logits ? MB_OK : mb_error_set(err, MB_ERR_NOMEM, "logits");
}

static void
close_model(struct passkey *p)
{
    landmarks_close(&p->landmarks);
    mb_pass_free(p->pass);
    mb_token_cache_free(p->words);
    mb_tokenizer_free(p->tokenizer);
    mb_decoder_close(p->decoder);
    mb_gguf_close(p->gguf);
    mb_buffer_fini(&p->encoded);
    mb_free(p->filler.ids);
    mb_free(p->text.ids);
    mb_free(p->logits);
    heat_fini(&p->heat);
    if (p->csv != NULL)
        (void)fclose(p->csv);
}

/* ---- texts ---- */

static mb_status
add_ids(struct tokens *t, const mb_token_id *ids, size_t n)
{
    if (t->n + n > t->capacity) {
        size_t capacity =
            2 * t->capacity > t->n + n ? 2 * t->capacity : t->n + n;
        mb_token_id *more = mb_realloc(t->ids, capacity * sizeof *more);

        if (more == NULL)
            return MB_ERR_NOMEM;
        t->ids = more;
        t->capacity = capacity;
    }
    if (n > 0)
        memcpy(t->ids + t->n, ids, n * sizeof *ids);
    t->n += n;
    return MB_OK;
}

static mb_status
add_text(struct passkey *p, struct tokens *to, struct mb_slice text,
    struct mb_error *err)
{
    mb_status st;

    mb_buffer_clear(&p->encoded);
    st = mb_tokenizer_encode(p->tokenizer, p->words, text, &p->encoded, err);
    for (size_t i = 0;
         st == MB_OK && i < p->encoded.size / sizeof(struct mb_token); i++) {
        struct mb_token token;

        memcpy(&token, p->encoded.data + i * sizeof token, sizeof token);
        st = add_ids(to, &token.id, 1);
        if (st != MB_OK)
            (void)mb_error_set(err, st, "a text of %zu tokens", to->n);
    }
    return st;
}

static uint64_t
longest(const struct passkey *p)
{
    uint64_t most = 0;

    for (size_t i = 0; i < p->n_lengths; i++) {
        most = p->lengths[i] > most ? p->lengths[i] : most;
    }
    return most;
}

/* Natural text from a file, as much as the longest prompt wants. */
static mb_status
read_filler(struct passkey *p, const char *path, struct mb_error *err)
{
    struct source_options opt = {.repair = true};
    struct source_document doc;
    struct source *source = NULL;
    struct walk_list list;
    bool more = true;
    mb_status st;

    walk_list_init(&list);
    st = walk_add(&list, path, err);
    if (st == MB_OK)
        st = source_new(&list, &opt, &source, err);
    while (st == MB_OK && more && p->filler.n < 2 * longest(p)) {
        st = source_next(source, &doc, &more, err);
        if (st == MB_OK && more)
            st = add_text(p, &p->filler,
                mb_wire_raw_str(mb_wire_find(doc.msgpack, "text")), err);
    }
    source_free(source);
    walk_list_fini(&list);
    if (st == MB_OK && p->filler.n == 0)
        st = mb_error_set(err, MB_ERR_NOT_FOUND, "%s: no text", path);
    return st;
}

static mb_status
make_filler(struct passkey *p, struct mb_error *err)
{
    const char *path = mb_cli_str(p->cli, "filler");

    if (path != NULL)
        return read_filler(p, path, err);
    return add_text(p, &p->filler, mb_slice_cstr(lines), err);
}

/* n tokens of filler from `*at` on, around its end. */
static mb_status
add_filler(struct passkey *p, size_t *at, size_t n, struct mb_error *err)
{
    mb_status st = MB_OK;

    while (n > 0 && st == MB_OK) {
        size_t left = p->filler.n - *at;
        size_t part = n < left ? n : left;

        st = add_ids(&p->text, p->filler.ids + *at, part);
        *at = (*at + part) % p->filler.n;
        n -= part;
    }
    return st == MB_OK
               ? MB_OK
               : mb_error_set(err, st, "a text of %zu tokens", p->text.n);
}

/* ---- a prompt ---- */

/* What a prompt asks for, and where it says it. */
struct prompt {
    char key[MAX_DECOYS + 1][8];
    double depth[MAX_DECOYS + 1];
    size_t order[MAX_DECOYS + 1]; /* of the facts, by depth */
    size_t first;                 /* token of the fact that is asked for */
    size_t end;
    size_t question; /* its first token */
};

static void
draw(const struct passkey *p, struct mb_rng *rng, double depth,
    struct prompt *out)
{
    size_t n = (size_t)p->n_decoys + 1;

    for (size_t i = 0; i < n; i++) {
        size_t at = i;

        for (size_t d = 0; d < 5; d++) {
            out->key[i][d] = "0123456789"[mb_rng_below(rng, 10)];
        }
        out->key[i][5] = '\0';
        out->depth[i] =
            i == 0 ? depth : (double)mb_rng_below(rng, 1000000) / 1e6;
        for (; at > 0 && out->depth[out->order[at - 1]] > out->depth[i]; at--) {
            out->order[at] = out->order[at - 1];
        }
        out->order[at] = i;
    }
}

static mb_status
add_fact(
    struct passkey *p, struct prompt *prompt, size_t i, struct mb_error *err)
{
    char line[MAX_LINE];
    const char *key = prompt->key[i];
    size_t first = p->text.n;
    mb_status st;

    if (p->n_decoys > 0)
        (void)snprintf(line, sizeof line,
            "The pass key of the %s is %s. Remember it.", names[i], key);
    else
        (void)snprintf(line, sizeof line,
            "The pass key is %s. Remember it. %s is the pass key.", key, key);
    st = add_text(p, &p->text, mb_slice_cstr(line), err);
    if (i == 0) {
        prompt->first = first;
        prompt->end = p->text.n;
    }
    return st;
}

static mb_status
add_question(struct passkey *p, struct mb_error *err)
{
    char line[MAX_LINE];

    if (p->n_decoys > 0)
        (void)snprintf(line, sizeof line,
            "What is the pass key of the %s? The pass key of the %s is",
            names[0], names[0]);
    else
        (void)snprintf(
            line, sizeof line, "What is the pass key? The pass key is");
    return add_text(p, &p->text, mb_slice_cstr(line), err);
}

/* A text of about `length` tokens: filler, facts at their depths, question. */
static mb_status
write_prompt(struct passkey *p, struct mb_rng *rng, uint64_t length,
    struct prompt *prompt, struct mb_error *err)
{
    mb_token_id bos = mb_tokenizer_bos(p->tokenizer);
    size_t facts = 40 * ((size_t)p->n_decoys + 1);
    size_t room = length > facts ? (size_t)length - facts : 1;
    size_t at = (size_t)mb_rng_below(rng, p->filler.n);
    size_t done = 0;
    mb_status st = MB_OK;

    p->text.n = 0;
    if (mb_cli_str(p->cli, "filler") == NULL)
        at = 0;
    if (bos >= 0)
        st = add_ids(&p->text, &bos, 1);
    for (size_t i = 0; i <= p->n_decoys && st == MB_OK; i++) {
        size_t fact = prompt->order[i];
        size_t here = (size_t)(prompt->depth[fact] * (double)room);

        st = add_filler(p, &at, here - done, err);
        done = here;
        if (st == MB_OK)
            st = add_fact(p, prompt, fact, err);
    }
    if (st == MB_OK)
        st = add_filler(p, &at, room - done, err);
    prompt->question = p->text.n;
    return st == MB_OK ? add_question(p, err) : st;
}

/* ---- asking ---- */

static mb_token_id
best_of(const struct passkey *p)
{
    size_t n = mb_decoder_info(p->decoder)->n_vocab;
    size_t best = 0;

    for (size_t i = 1; i < n; i++) {
        best = p->logits[i] > p->logits[best] ? i : best;
    }
    return (mb_token_id)best;
}

/* What fits of a text, with what would break a line of CSV taken out. */
static void
keep_answer(struct mb_slice text, char out[MAX_TEXT])
{
    size_t n = 0;

    for (size_t i = 0; i < text.size && n + 1 < MAX_TEXT; i++) {
        if (text.data[i] >= ' ' && text.data[i] < 127 && text.data[i] != '"')
            out[n++] = (char)text.data[i];
    }
    out[n] = '\0';
}

/* Let the model go on for as many tokens as the key has. */
static mb_status
answer(struct passkey *p, const struct tokens *key, struct outcome *out,
    struct mb_error *err)
{
    mb_token_id ids[MAX_ANSWER];
    size_t n = key->n < MAX_ANSWER ? key->n : MAX_ANSWER;
    mb_status st = MB_OK;

    for (size_t i = 0; i < n && st == MB_OK; i++) {
        struct mb_context_rows rows = {.tokens = ids + i,
            .n = 1,
            .kind = MB_ROWS_DECODE,
            .logits = p->logits};

        ids[i] = best_of(p);
        if (i + 1 < n)
            st = mb_context_read(p->landmarks.ctx, p->pass, &rows, err);
    }
    mb_buffer_clear(&p->encoded);
    if (st == MB_OK)
        st = mb_tokenizer_decode(p->tokenizer, ids, n, &p->encoded, err);
    if (st != MB_OK)
        return st;
    out->is_right = memcmp(ids, key->ids, n * sizeof ids[0]) == 0;
    keep_answer(mb_buffer_slice(&p->encoded), out->answer);
    return MB_OK;
}

/* Was a block that holds a token of the key retrieved, or is one at hand? */
static bool
is_found(const struct passkey *p, const struct prompt *prompt)
{
    size_t n = 0;
    const uint32_t *hits = mb_context_hits(p->landmarks.ctx, &n);

    for (size_t b = prompt->first / MB_CONTEXT_BLOCK_TOKENS;
         b <= (prompt->end - 1) / MB_CONTEXT_BLOCK_TOKENS; b++) {
        if (b >= n || hits[b] > 0)
            return true;
    }
    return false;
}

static double
seconds_since(uint64_t start)
{
    return (double)(mb_clock_ns() - start) / 1e9;
}

/* Read a prompt and ask. The question is read apart from the text, as whoever
 * asks does it. */
static mb_status
ask(struct passkey *p, const struct prompt *prompt, struct outcome *out,
    struct totals *totals, struct mb_error *err)
{
    struct mb_context *ctx = p->landmarks.ctx;
    struct tokens key = {0};
    struct mb_context_rows text = {
        .tokens = p->text.ids, .n = prompt->question};
    struct mb_context_rows question = {
        .tokens = p->text.ids + prompt->question,
        .n = p->text.n - prompt->question,
        .kind = MB_ROWS_DECODE,
        .logits = p->logits,
    };
    uint64_t start = mb_clock_ns();
    mb_status st = mb_context_truncate(ctx, 0, err);

    if (st == MB_OK)
        st = mb_context_read(ctx, p->pass, &text, err);
    totals->read_s += seconds_since(start);
    totals->n_read += text.n;
    start = mb_clock_ns();
    mb_context_clear_hits(ctx);
    if (st == MB_OK)
        st = mb_context_read(ctx, p->pass, &question, err);
    if (st == MB_OK)
        st = add_text(p, &key, mb_slice_cstr(prompt->key[0]), err);
    if (st == MB_OK)
        st = answer(p, &key, out, err);
    totals->answer_s += seconds_since(start);
    totals->n_answered += question.n + key.n - 1;
    out->is_found = is_found(p, prompt);
    if (mb_context_bytes(ctx) > totals->bytes)
        totals->bytes = mb_context_bytes(ctx);
    mb_free(key.ids);
    return st;
}

/* ---- results ---- */

static double
part_of(uint64_t n, uint64_t all)
{
    return all > 0 ? (double)n / (double)all : 0;
}

static mb_status
print_json(const struct passkey *p, uint64_t length, const struct totals *t)
{
    struct mb_buffer buf;
    struct json_writer w;

    mb_buffer_init(&buf, SIZE_MAX / 2);
    json_writer_init(&w, &buf);
    json_object_begin(&w);
    json_kv_u64(&w, "length", length);
    json_kv_u64(&w, "prompts", t->n);
    json_kv_u64(&w, "decoys", p->n_decoys);
    json_kv_u64(&w, "k", landmarks_k(&p->landmarks));
    json_kv_u64(&w, "segment", p->landmarks.options.segment_blocks);
    json_kv_cstr(&w, "select", p->landmarks.select);
    json_kv_cstr(&w, "tail", p->landmarks.tail);
    json_kv_cstr(&w, "cache", mb_cli_str(p->cli, "cache"));
    json_kv_f64(&w, "right", part_of(t->n_right, t->n));
    json_kv_f64(&w, "found", part_of(t->n_found, t->n));
    json_kv_f64(&w, "read_tokens_per_s", (double)t->n_read / t->read_s);
    json_kv_f64(
        &w, "answer_ms_per_token", 1e3 * t->answer_s / (double)t->n_answered);
    json_kv_u64(&w, "context_bytes", t->bytes);
    json_kv_u64(
        &w, "block_bytes", mb_context_memory_bytes(p->landmarks.memory));
    json_object_end(&w);
    if (w.status == MB_OK)
        tool_put_line(&buf);
    mb_buffer_fini(&buf);
    return w.status;
}

static mb_status
print_length(struct passkey *p, uint64_t length, const struct totals *t)
{
    progress_clear(&p->progress);
    if (mb_cli_has(p->cli, "json"))
        return print_json(p, length, t);
    (void)printf("%9llu  %7llu  %6.1f %%  %6.1f %%  %10.0f  %12.2f  %10.1f\n",
        (unsigned long long)length, (unsigned long long)t->n,
        100 * part_of(t->n_right, t->n), 100 * part_of(t->n_found, t->n),
        (double)t->n_read / t->read_s,
        1e3 * t->answer_s / (double)t->n_answered, (double)t->bytes / 1048576);
    (void)fflush(stdout);
    return MB_OK;
}

static mb_status
keep_outcome(struct passkey *p, const struct outcome *o, const char *key,
    struct mb_error *err)
{
    char column[32];

    (void)snprintf(
        column, sizeof column, "%llu", (unsigned long long)o->length);
    if (p->csv != NULL &&
        fprintf(p->csv, "%llu,%.4f,%d,%d,%s,\"%s\"\n",
            (unsigned long long)o->length, o->depth, (int)o->is_right,
            (int)o->is_found, key, o->answer) < 0)
        return mb_error_set(err, MB_ERR_IO, "write --csv");
    return heat_add(&p->heat, column, o->depth, o->is_right ? 1 : 0, err);
}

/* ---- lengths ---- */

static mb_status
run_prompt(struct passkey *p, uint64_t length, uint64_t i,
    struct totals *totals, struct mb_error *err)
{
    struct prompt prompt = {0};
    struct mb_rng rng;
    double depth = ((double)i + 0.5) / (double)p->n_prompts;
    struct outcome out = {.length = length, .depth = depth};
    mb_status st;

    mb_rng_init(&rng, p->seed ^ (length << 24) ^ i);
    draw(p, &rng, depth, &prompt);
    st = write_prompt(p, &rng, length, &prompt, err);
    if (st == MB_OK)
        st = ask(p, &prompt, &out, totals, err);
    if (st == MB_OK)
        st = keep_outcome(p, &out, prompt.key[0], err);
    totals->n++;
    totals->n_right += out.is_right ? 1 : 0;
    totals->n_found += out.is_found ? 1 : 0;
    return st;
}

static mb_status
run_lengths(struct passkey *p, struct mb_error *err)
{
    mb_status st = MB_OK;

    if (!mb_cli_has(p->cli, "json"))
        (void)printf("%9s  %7s  %8s  %8s  %10s  %12s  %10s\n", "tokens",
            "prompts", "right", "found", "tokens/s", "ms/token", "MiB");
    for (size_t l = 0; l < p->n_lengths && st == MB_OK; l++) {
        struct totals totals = {0};

        for (uint64_t i = 0; i < p->n_prompts && st == MB_OK; i++) {
            char text[80];

            (void)snprintf(text, sizeof text,
                "%llu tokens, prompt %llu of %llu",
                (unsigned long long)p->lengths[l], (unsigned long long)i + 1,
                (unsigned long long)p->n_prompts);
            progress_show(&p->progress, part_of(i, p->n_prompts), text);
            st = run_prompt(p, p->lengths[l], i, &totals, err);
        }
        if (st == MB_OK)
            st = print_length(p, p->lengths[l], &totals);
    }
    progress_clear(&p->progress);
    return st;
}

static mb_status
open_csv(struct passkey *p, struct mb_error *err)
{
    const char *path = mb_cli_str(p->cli, "csv");

    if (path == NULL)
        return MB_OK;
    p->csv = fopen(path, "w");
    if (p->csv == NULL ||
        fprintf(p->csv, "length,depth,right,found,key,answer\n") < 0)
        return mb_error_set(err, MB_ERR_IO, "write %s", path);
    return MB_OK;
}

static mb_status
close_csv(struct passkey *p, mb_status st, struct mb_error *err)
{
    int failed = p->csv != NULL ? fclose(p->csv) : 0;

    p->csv = NULL;
    if (st == MB_OK && failed != 0)
        return mb_error_set(err, MB_ERR_IO, "write --csv");
    return st;
}

mb_status
passkey_run(const struct mb_cli *cli, struct mb_error *err)
{
    struct passkey p = {.cli = cli};
    const char *svg = mb_cli_str(cli, "svg");
    mb_status st;

    mb_buffer_init(&p.encoded, SIZE_MAX / 2);
    heat_init(&p.heat);
    progress_init(&p.progress, stderr, false);
    st = open_model(&p, err);
    if (st == MB_OK)
        st = make_filler(&p, err);
    if (st == MB_OK)
        st = open_csv(&p, err);
    if (st == MB_OK)
        st = run_lengths(&p, err);
    st = close_csv(&p, st, err);
    if (st == MB_OK && svg != NULL)
        st = heat_svg(&p.heat, svg, "Passkeys found, by length and depth",
            "tokens", "depth", err);
    close_model(&p);
    return st;
}
