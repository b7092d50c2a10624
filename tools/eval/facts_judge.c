/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/facts_judge.c - what a model and its blocks know.
 *
 * Through the passes that serve requests, many sequences at once: a question's
 * tokens as prefill, its answer by the likeliest token, twice; held-out texts
 * with a loss for each token.
 * Threads: the main thread; passes have their own. */
#include "facts.h"

#include <math.h>
#include <string.h>

#define N_SEQS  16u
#define N_FRESH 8u /* texts of the test of fresh blocks */
#define ARENA   ((size_t)1 << 30)

/* A model that is judged. */
struct subject {
    struct mb_gguf *gguf;
    struct mb_decoder *decoder;
    struct mb_cache *cache;
    struct mb_pass *pass;
    struct mb_sequence *seqs[N_SEQS];
    struct mb_bank_path paths[N_SEQS];
    struct mb_rows rows[N_SEQS];
    float *logits; /* (N_SEQS, n_vocab) */
    size_t n_vocab;
};

static void
subject_close(struct subject *s)
{
    for (size_t i = 0; i < N_SEQS; i++)
        mb_sequence_free(s->seqs[i]);
    mb_pass_free(s->pass);
    mb_cache_free(s->cache);
    mb_decoder_close(s->decoder);
    mb_gguf_close(s->gguf);
    mb_free(s->logits);
}

static mb_status
subject_open(const struct facts *f, const char *name, struct subject *s,
    struct mb_error *err)
{
    char path[512];

    *s = (struct subject){0};
    facts_path(f, name, path);
    mb_status st = mb_gguf_open(path, &s->gguf, err);
    if (st == MB_OK)
        st = mb_decoder_open(s->gguf, &s->decoder, err);
    if (st == MB_OK)
        st = mb_cache_new(s->decoder, MB_CACHE_F32,
            (size_t)N_SEQS * 2 * MB_BLOCK_ROWS, &s->cache, err);
    if (st == MB_OK)
        st = mb_pass_new(s->decoder, (size_t)N_SEQS * WORLD_ROWS, f->n_threads,
            &s->pass, err);
    for (size_t i = 0; st == MB_OK && i < N_SEQS; i++)
        st = mb_sequence_new(s->cache, &s->seqs[i], err);
    if (st != MB_OK)
        return st;
    s->n_vocab = mb_decoder_info(s->decoder)->n_vocab;
    s->logits = mb_calloc(N_SEQS * s->n_vocab, sizeof *s->logits);
    return s->logits != NULL ? MB_OK
                             : mb_error_set(err, MB_ERR_NOMEM, "logits");
}

/* ---- paths ---- */

static mb_status
add_block(const struct facts_blocks *b, size_t i, struct mb_bank_path *out,
    struct mb_error *err)
{
    if (i >= b->n_nodes + FACTS_EXTRA || b->record[i].size == 0)
        return MB_OK; // fresh: it would change nothing
    return mb_bank_block_open(b->record[i], &out->blocks[out->n_blocks++], err);
}

/* The blocks of a route, or the one that is always attached. */
static mb_status
attach(const struct facts_attached *a, const struct route *route,
    struct mb_bank_path *out, struct mb_error *err)
{
    mb_status st = MB_OK;

    out->n_blocks = 0;
    if (a->blocks == NULL)
        return MB_OK;
    if (a->is_generic)
        return add_block(a->blocks, a->blocks->n_nodes, out, err);
    for (size_t l = 0; st == MB_OK && l < WORLD_LEVELS; l++)
        st = add_block(a->blocks, route->node[l], out, err);
    return st;
}

static const struct mb_bank_path *
path_of(const struct subject *s, size_t i)
{
    return s->paths[i].n_blocks > 0 ? &s->paths[i] : NULL;
}

/* ---- questions ---- */

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

/* Are entities [first, first + n) answered? routes: of the first. */
static mb_status
ask(const struct facts *f, struct subject *s, const struct facts_attached *a,
    const struct route *routes, size_t first, size_t n, bool right[N_SEQS],
    struct mb_error *err)
{
    mb_token_id tokens[N_SEQS][WORLD_PROMPT];
    mb_token_id answers[N_SEQS];
    char text[WORLD_MAX_TEXT];
    mb_status st = MB_OK;

    for (size_t i = 0; st == MB_OK && i < n; i++) {
        mb_sequence_truncate(s->seqs[i], 0);
        st = attach(a, routes != NULL ? &routes[i] : NULL, &s->paths[i], err);
        s->rows[i] = (struct mb_rows){.seq = s->seqs[i],
            .tokens = tokens[i],
            .n = world_prompt(f->world, first + i, tokens[i], text),
            .kind = MB_ROWS_PREFILL,
            .logits = s->logits + i * s->n_vocab,
            .bank = path_of(s, i)};
    }
    for (size_t k = 0; st == MB_OK && k < 2; k++) {
        st = mb_pass_run(s->pass, s->rows, n, err);
        for (size_t i = 0; st == MB_OK && i < n; i++) {
            const struct world_entity *e = world_entity(f->world, first + i);

            answers[i] = likeliest(s->rows[i].logits, s->n_vocab);
            right[i] = (k == 0 || right[i]) && answers[i] == e->code[k];
            s->rows[i].tokens = &answers[i];
            s->rows[i].n = 1;
            s->rows[i].kind = MB_ROWS_DECODE;
        }
    }
    return st;
}

static mb_status
judge_questions(const struct facts *f, struct subject *s,
    const struct facts_attached *a, struct facts_score *out,
    struct mb_error *err)
{
    size_t n = f->routes.n_prompts;
    bool right[N_SEQS];
    mb_status st = MB_OK;

    for (size_t i = 0; st == MB_OK && i < n; i += N_SEQS) {
        size_t part = n - i < N_SEQS ? n - i : N_SEQS;

        st = ask(f, s, a, a->prompts != NULL ? a->prompts + i : NULL, i, part,
            right, err);
        for (size_t k = 0; st == MB_OK && k < part; k++) {
            const struct world_entity *e = world_entity(f->world, i + k);

            out->n[e->is_element][e->bucket]++;
            out->n_right[e->is_element][e->bucket] += right[k];
        }
    }
    return st;
}

/* ---- texts ---- */

static mb_status
read_texts(const struct facts *f, struct subject *s,
    const struct facts_attached *a, size_t first, double sums[2],
    uint64_t counts[2], struct mb_error *err)
{
    struct world_document *d = mb_calloc(N_SEQS, sizeof *d);
    mb_token_id targets[N_SEQS][WORLD_ROWS];
    float nll[N_SEQS][WORLD_ROWS];
    mb_status st = d != NULL ? MB_OK : mb_error_set(err, MB_ERR_NOMEM, "texts");

    for (size_t i = 0; st == MB_OK && i < N_SEQS; i++) {
        world_document(f->world, FACTS_STREAM_HELD, first + i, &d[i]);
        for (size_t r = 0; r < WORLD_ROWS; r++)
            targets[i][r] = r + 1 < WORLD_ROWS ? d[i].tokens[r + 1] : -1;
        mb_sequence_truncate(s->seqs[i], 0);
        st = attach(a, a->held_out != NULL ? &a->held_out[first + i] : NULL,
            &s->paths[i], err);
        s->rows[i] = (struct mb_rows){.seq = s->seqs[i],
            .tokens = d[i].tokens,
            .n = WORLD_ROWS,
            .kind = MB_ROWS_PREFILL,
            .targets = targets[i],
            .nll = nll[i],
            .bank = path_of(s, i)};
    }
    if (st == MB_OK)
        st = mb_pass_run(s->pass, s->rows, N_SEQS, err);
    for (size_t i = 0; st == MB_OK && i < N_SEQS; i++) {
        for (size_t r = 0; r + 1 < WORLD_ROWS; r++) {
            bool is_common = d[i].kinds[r + 1] == WORLD_COMMON;

            sums[0] += (double)nll[i][r];
            counts[0]++;
            sums[1] += is_common ? (double)nll[i][r] : 0;
            counts[1] += is_common;
        }
    }
    mb_free(d);
    return st;
}

mb_status
facts_judge(struct facts *f, const char *name, const struct facts_attached *a,
    struct facts_score *out, struct mb_error *err)
{
    struct subject s;
    double sums[2] = {0, 0};
    uint64_t counts[2] = {0, 0};
    mb_status st = subject_open(f, name, &s, err);

    if (st == MB_OK)
        st = judge_questions(f, &s, a, out, err);
    for (size_t i = 0; st == MB_OK && i < f->routes.n_held_out; i += N_SEQS)
        st = read_texts(f, &s, a, i, sums, counts, err);
    if (st == MB_OK) {
        out->n_params = mb_decoder_info(s.decoder)->n_params;
        out->nll = sums[0] / (double)counts[0];
        out->nll_common = sums[1] / (double)counts[1];
    }
    subject_close(&s);
    return st;
}

mb_status
facts_judge_late(struct facts *f, const char *name,
    const struct facts_blocks *blocks, uint64_t *n_right, struct mb_error *err)
{
    const struct facts_attached a = {.blocks = blocks};
    struct route routes[N_SEQS] = {{{0}}};
    struct subject s;
    bool right[N_SEQS] = {false};
    size_t n = world_n_late(f->world);
    mb_status st = subject_open(f, name, &s, err);

    MB_ASSERT(n <= N_SEQS);
    for (size_t i = 0; i < n; i++)
        routes[i] = facts_late_route(f);
    if (st == MB_OK)
        st = ask(f, &s, &a, routes, f->routes.n_prompts, n, right, err);
    *n_right = 0;
    for (size_t i = 0; i < n; i++)
        *n_right += right[i];
    subject_close(&s);
    return st;
}

/* ---- fresh blocks ---- */

static mb_status
draw_path(const struct facts *f, struct subject *s,
    const struct mb_bank_shape *shape, struct mb_arena *arena,
    struct mb_bank_path *out, struct mb_error *err)
{
    mb_status st = MB_OK;

    out->n_blocks = 0;
    for (size_t l = 1; st == MB_OK && l <= shape->n_levels; l++) {
        struct mb_bank_draw draw = {.seed = f->seed, .node = l, .level = l};
        size_t size =
            mb_bank_record_bytes(shape, shape->rows[l - 1], MB_BANK_F32);
        uint8_t *record = mb_arena_alloc(arena, size);

        if (record == NULL)
            return mb_error_set(err, MB_ERR_NOMEM, "a block");
        mb_gguf_fingerprint(s->gguf, draw.anchor);
        st = mb_bank_draw(shape, &draw, record, size, err);
        if (st == MB_OK)
            st = mb_bank_block_open(
                mb_slice_of(record, size), &out->blocks[out->n_blocks++], err);
    }
    return st;
}

/* Logits behind text i, and behind its likeliest next token. */
static mb_status
read_fresh(const struct facts *f, struct subject *s, size_t i,
    const struct mb_bank_path *path, float *logits, struct mb_error *err)
{
    struct world_document d;
    mb_token_id next;

    world_document(f->world, FACTS_STREAM_HELD, i, &d);
    mb_sequence_truncate(s->seqs[0], 0);
    struct mb_rows rows = {.seq = s->seqs[0],
        .tokens = d.tokens,
        .n = WORLD_ROWS,
        .kind = MB_ROWS_PREFILL,
        .logits = logits,
        .bank = path};
    mb_status st = mb_pass_run(s->pass, &rows, 1, err);
    next = likeliest(logits, s->n_vocab);
    rows.tokens = &next;
    rows.n = 1;
    rows.kind = MB_ROWS_DECODE;
    rows.logits = logits + s->n_vocab;
    return st == MB_OK ? mb_pass_run(s->pass, &rows, 1, err) : st;
}

mb_status
facts_judge_fresh(struct facts *f, const char *name,
    const struct mb_bank_shape *shape, bool *is_equal, struct mb_error *err)
{
    struct mb_arena *arena = mb_arena_new(ARENA);
    struct mb_bank_path path;
    struct subject s;
    mb_status st = subject_open(f, name, &s, err);

    if (st == MB_OK && arena == NULL)
        st = mb_error_set(err, MB_ERR_NOMEM, "blocks");
    if (st == MB_OK)
        st = draw_path(f, &s, shape, arena, &path, err);
    *is_equal = true;
    for (size_t i = 0; st == MB_OK && i < N_FRESH; i++) {
        float *without = s.logits;
        float *with = s.logits + 2 * s.n_vocab;

        st = read_fresh(f, &s, i, NULL, without, err);
        if (st == MB_OK)
            st = read_fresh(f, &s, i, &path, with, err);
        if (st == MB_OK &&
            memcmp(without, with, 2 * s.n_vocab * sizeof *without) != 0)
            *is_equal = false;
    }
    subject_close(&s);
    mb_arena_free(arena);
    return st;
}

/* ---- figures ---- */

double
facts_accuracy(const struct facts_score *s)
{
    uint64_t n = 0;
    uint64_t right = 0;

    for (size_t b = 0; b < WORLD_BUCKETS; b++) {
        n += s->n[0][b];
        right += s->n_right[0][b];
    }
    return n > 0 ? 100.0 * (double)right / (double)n : 0;
}

double
facts_bucket(const struct facts_score *s, size_t bucket)
{
    uint64_t n = s->n[0][bucket];

    return n > 0 ? 100.0 * (double)s->n_right[0][bucket] / (double)n : 0;
}
