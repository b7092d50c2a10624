/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/passkey.c - see passkey.h.
 *
 * A prompt is read like any text: in segments, by rows of prefill, then the
 * answer row by row as it is generated, each time the likeliest token. An
 * answer counts if it is the key. How often the block that holds the key was
 * retrieved while the answer was made tells what failed where it is wrong. */
#include "passkey.h"

#include <stdio.h>
#include <string.h>

#include "heat.h"
#include "json.h"
#include "progress.h"
#include "subject.h"
#include "tool.h"

#define MAX_LENGTH  ((uint64_t)1 << 27)
#define MAX_LENGTHS SUBJECT_MAX_NUMBERS
#define MAX_DECOYS  15u
#define MAX_LINE    160u
#define MAX_ANSWER  32u /* tokens */
#define MAX_TEXT    64u
#define MIN_LENGTH  128u
#define MAX_DIGITS  9u

/* Whose keys they are; the first is asked for. */
static const char *const names[MAX_DECOYS + 1] = {"castle", "river", "doctor",
    "bridge", "garden", "soldier", "market", "window", "horse", "letter",
    "island", "kitchen", "mountain", "school", "violin", "ship"};

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
    uint64_t n_answered; /* tokens that were read one by one */
    size_t bytes;        /* of the context, at most */
};

struct passkey {
    const struct mb_cli *cli;
    struct subject subject;
    uint64_t lengths[MAX_LENGTHS];
    size_t n_lengths;
    uint64_t n_prompts;
    uint64_t n_decoys;
    uint64_t n_digits;
    uint64_t seed;
    struct tokens text; /* of the prompt */
    float *logits;
    struct heat heat;
    FILE *csv;
    struct progress progress;
};

/* ---- options ---- */

static mb_status
open_model(struct passkey *p, struct mb_error *err)
{
    mb_status st = subject_open(&p->subject, p->cli, err);

    if (st == MB_OK)
        st = subject_read_numbers(&p->subject, "lengths", MIN_LENGTH,
            MAX_LENGTH, p->lengths, &p->n_lengths, err);
    if (st == MB_OK)
        st = mb_cli_u64(p->cli, "prompts", 1, 100000, &p->n_prompts, err);
    if (st == MB_OK)
        st = mb_cli_u64(p->cli, "decoys", 0, MAX_DECOYS, &p->n_decoys, err);
    if (st == MB_OK)
        st = mb_cli_u64(p->cli, "digits", 1, MAX_DIGITS, &p->n_digits, err);
    if (st == MB_OK)
        st = mb_cli_u64(p->cli, "seed", 0, UINT64_MAX, &p->seed, err);
    if (st != MB_OK)
        return st;
    p->logits =
        mb_calloc(mb_decoder_info(p->subject.decoder)->n_vocab, sizeof(float));
    return p->logits ? MB_OK : mb_error_set(err, MB_ERR_NOMEM, "logits");
}

static void
close_model(struct passkey *p)
{
    subject_close(&p->subject);
    mb_free(p->text.ids);
    mb_free(p->logits);
    heat_fini(&p->heat);
    if (p->csv != NULL)
        (void)fclose(p->csv);
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

/* ---- a prompt ---- */

/* What a prompt asks for, and where it says it. */
struct prompt {
    char key[MAX_DECOYS + 1][MAX_DIGITS + 1];
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

        for (size_t d = 0; d < p->n_digits; d++) {
            out->key[i][d] = "0123456789"[mb_rng_below(rng, 10)];
        }
        out->key[i][p->n_digits] = '\0';
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
    st = subject_add_text(&p->subject, &p->text, mb_slice_cstr(line), err);
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
    return subject_add_text(&p->subject, &p->text, mb_slice_cstr(line), err);
}

/* A text of about `length` tokens: filler, facts at their depths, question. */
static mb_status
write_prompt(struct passkey *p, struct mb_rng *rng, uint64_t length,
    struct prompt *prompt, struct mb_error *err)
{
    mb_token_id bos = mb_tokenizer_bos(p->subject.tokenizer);
    size_t facts = 40 * ((size_t)p->n_decoys + 1);
    size_t room = length > facts ? (size_t)length - facts : 1;
    size_t at = (size_t)mb_rng_below(rng, p->subject.filler.n);
    size_t done = 0;
    mb_status st = MB_OK;

    p->text.n = 0;
    if (mb_cli_str(p->cli, "filler") == NULL)
        at = 0;
    if (bos >= 0)
        st = subject_add_ids(&p->text, &bos, 1, err);
    for (size_t i = 0; i <= p->n_decoys && st == MB_OK; i++) {
        size_t fact = prompt->order[i];
        size_t here = (size_t)(prompt->depth[fact] * (double)room);

        st = subject_add_filler(&p->subject, &p->text, &at, here - done, err);
        done = here;
        if (st == MB_OK)
            st = add_fact(p, prompt, fact, err);
    }
    if (st == MB_OK)
        st = subject_add_filler(&p->subject, &p->text, &at, room - done, err);
    prompt->question = p->text.n;
    return st == MB_OK ? add_question(p, err) : st;
}

/* ---- asking ---- */

static mb_token_id
best_of(const struct passkey *p)
{
    size_t n = mb_decoder_info(p->subject.decoder)->n_vocab;
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
            st = mb_context_read(
                p->subject.landmarks.ctx, p->subject.pass, &rows, err);
    }
    mb_buffer_clear(&p->subject.encoded);
    if (st == MB_OK)
        st = mb_tokenizer_decode(
            p->subject.tokenizer, ids, n, &p->subject.encoded, err);
    if (st != MB_OK)
        return st;
    out->is_right = memcmp(ids, key->ids, n * sizeof ids[0]) == 0;
    keep_answer(mb_buffer_slice(&p->subject.encoded), out->answer);
    return MB_OK;
}

/* Was a block that holds a token of the key retrieved, or is one at hand? */
static bool
is_found(const struct passkey *p, const struct prompt *prompt)
{
    size_t n = 0;
    const uint32_t *hits = mb_context_hits(p->subject.landmarks.ctx, &n);

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
    struct mb_context *ctx = p->subject.landmarks.ctx;
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
        st = mb_context_read(ctx, p->subject.pass, &text, err);
    totals->read_s += seconds_since(start);
    totals->n_read += text.n;
    mb_context_clear_hits(ctx);
    if (st == MB_OK)
        st = mb_context_read(ctx, p->subject.pass, &question, err);
    if (st == MB_OK)
        st = subject_add_text(
            &p->subject, &key, mb_slice_cstr(prompt->key[0]), err);
    start = mb_clock_ns();
    if (st == MB_OK)
        st = answer(p, &key, out, err);
    totals->answer_s += seconds_since(start);
    totals->n_answered += key.n > 1 ? key.n - 1 : 0;
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

/* Of a token of an answer: each is read alone. */
static double
ms_per_token(const struct totals *t)
{
    return t->n_answered > 0 ? 1e3 * t->answer_s / (double)t->n_answered : 0;
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
    json_kv_u64(&w, "digits", p->n_digits);
    json_kv_u64(&w, "k", landmarks_k(&p->subject.landmarks));
    json_kv_u64(&w, "segment", p->subject.landmarks.options.segment_blocks);
    json_kv_cstr(&w, "select", p->subject.landmarks.select);
    json_kv_cstr(&w, "tail", p->subject.landmarks.tail);
    json_kv_cstr(&w, "cache", mb_cli_str(p->cli, "cache"));
    json_kv_f64(&w, "right", part_of(t->n_right, t->n));
    json_kv_f64(&w, "found", part_of(t->n_found, t->n));
    json_kv_f64(&w, "read_tokens_per_s", (double)t->n_read / t->read_s);
    json_kv_f64(&w, "answer_ms_per_token", ms_per_token(t));
    json_kv_u64(&w, "context_bytes", t->bytes);
    json_kv_u64(&w, "block_bytes",
        mb_context_memory_bytes(p->subject.landmarks.memory));
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
        (double)t->n_read / t->read_s, ms_per_token(t),
        (double)t->bytes / 1048576);
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

    heat_init(&p.heat);
    progress_init(&p.progress, stderr, false);
    st = open_model(&p, err);
    if (st == MB_OK)
        st = subject_read_filler(&p.subject, 2 * longest(&p), err);
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
