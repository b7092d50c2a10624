/* SPDX-License-Identifier: Apache-2.0
 * model/context_hmt.c - see context_hmt.h. */
#include "context_hmt.h"

#include <math.h>
#include <string.h>

#include "mb_companion.h"
#include "pass.h"

#define LEAST 1e-12 /* as in training: HMT_EPS */

/* ---- life ---- */

static size_t
segment_tokens(const struct mb_context *ctx)
{
    return ctx->options.segment_blocks * BLOCK_TOKENS;
}

static size_t
width_of(const struct mb_context *ctx)
{
    return ctx->decoder->info.d_model;
}

static mb_status
check_companion(const struct mb_context *ctx, struct mb_error *err)
{
    const struct companion *c = ctx->options.companion;
    if (c->d_model != width_of(ctx))
        return mb_error_set(err, MB_ERR_MISMATCH,
            "context: memories of width %zu, the model has %zu", c->d_model,
            width_of(ctx));
    if (ctx->options.memory == MB_MEMORY_HMT &&
        c->n_segment != segment_tokens(ctx))
        return mb_error_set(err, MB_ERR_MISMATCH,
            "context: memories are of segments of %zu tokens, this one has %zu",
            c->n_segment, segment_tokens(ctx));
    if (c->n_sensory > COMPANION_MAX_SENSORY ||
        c->n_sensory > segment_tokens(ctx) || c->n_summary == 0 ||
        c->n_summary > c->n_segment || c->n_memories == 0)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "context: memories want a summary of %zu and %zu repeated tokens "
            "of a segment, this one has %zu; %zu are recalled",
            c->n_summary, c->n_sensory, segment_tokens(ctx), c->n_memories);
    return MB_OK;
}

/* The context that summaries are read in: one window, T in front. */
static mb_status
make_summary(
    struct mb_context *ctx, struct context_hmt *h, struct mb_error *err)
{
    struct mb_context_options o = {
        .landmark = ctx->options.landmark,
        .type = ctx->options.type,
        .segment_blocks =
            (h->weights->n_summary + BLOCK_TOKENS - 1) / BLOCK_TOKENS,
        .modes = {.k = MB_CONTEXT_NONE},
    };
    return context_new(ctx->decoder, &o, NULL, 1, &h->summary, err);
}

mb_status
hmt_new(struct mb_context *ctx, struct mb_error *err)
{
    const struct companion *c = ctx->options.companion;
    size_t d = width_of(ctx);
    if (ctx->options.memory == MB_MEMORY_NONE)
        return MB_OK;
    mb_status st = c ? check_companion(ctx, err)
                     : mb_error_set(err, MB_ERR_BAD_ARG,
                           "context: memory without a companion");
    if (st != MB_OK)
        return st;
    struct context_hmt *h = mb_calloc(1, sizeof(*h));
    if (!h)
        return mb_error_set(err, MB_ERR_NOMEM, "context: memory");
    ctx->hmt = h; // the context's from now on
    h->n_sensory = c->n_sensory;
    h->before = mb_calloc(segment_tokens(ctx), sizeof(*h->before));
    bool is_whole = h->before != NULL;
    if (ctx->options.memory == MB_MEMORY_HMT) {
        h->weights = c;
        h->hidden = mb_calloc(d, sizeof(float));
        h->P = mb_calloc(d, sizeof(float));
        h->S = mb_calloc(d, sizeof(float));
        h->query = mb_calloc(c->d_key, sizeof(float));
        h->bytes = mb_calloc(d, 4);
        is_whole =
            is_whole && h->hidden && h->P && h->S && h->query && h->bytes;
    }
    if (!is_whole)
        return mb_error_set(err, MB_ERR_NOMEM, "context: memory");
    return h->weights ? make_summary(ctx, h, err) : MB_OK;
}

void
hmt_free(struct context_hmt *h)
{
    if (!h)
        return;
    mb_context_free(h->summary);
    mb_free(h->before);
    mb_free(h->P);
    mb_free(h->S);
    mb_free(h->hidden);
    mb_free(h->query);
    mb_free(h->memories);
    mb_free(h->keys);
    mb_free(h->scores);
    mb_free(h->order);
    mb_free(h->bytes);
    mb_free(h);
}

size_t
hmt_bytes(const struct mb_context *ctx)
{
    const struct context_hmt *h = ctx->hmt;
    if (!h)
        return 0;
    size_t a_memory =
        h->weights ? (h->weights->d_model + h->weights->d_key + 2) * 4 : 0;
    size_t arrays =
        h->weights ? 4 * h->weights->d_model + h->weights->d_key : 0;
    return sizeof(*h) + segment_tokens(ctx) * sizeof(*h->before) +
           arrays * sizeof(float) + h->capacity * a_memory +
           (h->summary ? mb_context_bytes(h->summary) : 0);
}

/* ---- rows that are not the text's ---- */

/* Take n rows of a part through the model; edge: input of the first or only
 * one. */
static mb_status
run_part(struct mb_context *ctx, struct mb_pass *pass, context_part part,
    const mb_token_id *tokens, size_t n, const float *edge, float *hidden,
    struct mb_error *err)
{
    struct mb_rows rows = {
        .context = ctx, .tokens = tokens, .n = n, .hidden = hidden};
    if (n > pass->max_rows)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "context: a pass of %zu rows, memories need %zu", pass->max_rows,
            n);
    ctx->part = part;
    ctx->edge = edge;
    mb_status st = mb_pass_run(pass, &rows, 1, err);
    ctx->part = CONTEXT_TEXT;
    ctx->edge = NULL;
    return st;
}

/* Hidden state of the row behind the window's text. */
static mb_status
run_trail(struct mb_context *ctx, struct mb_pass *pass, const float *edge,
    float *hidden, struct mb_error *err)
{
    return run_part(
        ctx, pass, CONTEXT_TRAIL, &ctx->options.landmark, 1, edge, hidden, err);
}

/* S of the tokens before the window. */
static mb_status
summarise(struct mb_context *ctx, struct mb_pass *pass, struct mb_error *err)
{
    struct context_hmt *h = ctx->hmt;
    const struct companion *c = h->weights;
    struct mb_context *s = h->summary;
    const struct mb_context_rows rows = {
        .tokens = h->before + segment_tokens(ctx) - c->n_summary,
        .n = c->n_summary};
    mb_status st = mb_context_truncate(s, 0, err);
    if (st == MB_OK)
        st = run_part(s, pass, CONTEXT_FRONT, &s->options.landmark, 1,
            c->summary, NULL, err);
    if (st == MB_OK)
        st = context_read_text(s, pass, &rows, err);
    if (st == MB_OK)
        st = run_trail(s, pass, c->summary, h->S, err);
    return st;
}

/* ---- recall ---- */

/* y (n) = W (n, d) x. */
static void
project(const float *W, const float *x, size_t n, size_t d, float *y)
{
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (size_t j = 0; j < d; j++)
            sum += (double)W[i * d + j] * (double)x[j];
        y[i] = (float)sum;
    }
}

/* Move the best `most` of the order to its front: their scores, then age. */
static void
select_best(struct context_hmt *h, size_t most)
{
    for (size_t i = 0; i < most; i++) {
        size_t best = i;
        for (size_t j = i + 1; j < h->n; j++) {
            if (h->scores[h->order[j]] > h->scores[h->order[best]])
                best = j;
        }
        uint32_t kept = h->order[i];
        h->order[i] = h->order[best];
        h->order[best] = kept;
    }
}

/* P = gain * x over its root mean square. */
static void
set_length(const struct companion *c, const double *x, float *P)
{
    double sum = 0;
    for (size_t j = 0; j < c->d_model; j++)
        sum += x[j] * x[j];
    double by = (double)c->gain / sqrt(sum / (double)c->d_model + LEAST);
    for (size_t j = 0; j < c->d_model; j++)
        P[j] = (float)(x[j] * by);
}

static mb_status
recall(struct mb_context *ctx, struct mb_pass *pass, struct mb_error *err)
{
    struct context_hmt *h = ctx->hmt;
    const struct companion *c = h->weights;
    size_t d = c->d_model;
    double *x = mb_calloc(d, sizeof(*x));
    if (!x)
        return mb_error_set(err, MB_ERR_NOMEM, "context: recall");
    mb_status st = MB_OK;
    if (h->n == 0) {
        for (size_t j = 0; j < d; j++)
            x[j] = (double)c->first[j];
    } else {
        size_t most = h->n < c->n_memories ? h->n : c->n_memories;
        double scale = 1 / sqrt((double)c->d_key);
        double all = 0;
        // A single memory is recalled whatever the summary is.
        if (h->n > 1)
            st = summarise(ctx, pass, err);
        if (st != MB_OK)
            goto out;
        project(c->query, h->S, c->d_key, d, h->query);
        project(h->keys, h->query, h->n, c->d_key, h->scores);
        for (size_t m = 0; m < h->n; m++)
            h->order[m] = (uint32_t)m;
        if (most < h->n)
            select_best(h, most);
        double best = (double)h->scores[h->order[0]];
        for (size_t i = 1; i < most; i++)
            best = fmax(best, (double)h->scores[h->order[i]]);
        for (size_t i = 0; i < most; i++) {
            const float *M = h->memories + h->order[i] * d;
            double w = exp(((double)h->scores[h->order[i]] - best) * scale);
            all += w;
            for (size_t j = 0; j < d; j++)
                x[j] += w * (double)M[j];
        }
        for (size_t j = 0; j < d; j++)
            x[j] /= all;
    }
    set_length(c, x, h->P);
out:
    mb_free(x);
    return st;
}

/* ---- the front ---- */

mb_status
hmt_make_front(
    struct mb_context *ctx, struct mb_pass *pass, struct mb_error *err)
{
    struct context_hmt *h = ctx->hmt;
    size_t n_segments = ctx->table.n / ctx->options.segment_blocks;
    size_t n_edge = h->weights ? 1 : 0;
    size_t n_sensory = n_segments > 0 ? h->n_sensory : 0;
    mb_token_id ids[MB_BLOCK_ROWS];
    if (h->has_front)
        return MB_OK;
    if (h->weights && h->n != n_segments)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "context: %zu segments have %zu memories", n_segments, h->n);
    mb_status st = h->weights ? recall(ctx, pass, err) : MB_OK;
    ctx->n_front = n_edge + n_sensory;
    ids[0] = ctx->options.landmark;
    memcpy(ids + n_edge, h->before + segment_tokens(ctx) - n_sensory,
        n_sensory * sizeof(*ids));
    if (st == MB_OK && ctx->n_front > 0)
        st = run_part(
            ctx, pass, CONTEXT_FRONT, ids, ctx->n_front, h->P, NULL, err);
    h->has_front = st == MB_OK;
    return st;
}

/* ---- memories ---- */

static mb_status
reserve(struct context_hmt *h, size_t n, struct mb_error *err)
{
    if (n <= h->capacity)
        return MB_OK;
    size_t want = 2 * h->capacity > n ? 2 * h->capacity : n + 15;
    size_t d = h->weights->d_model;
    size_t k = h->weights->d_key;
    float *memories = mb_realloc(h->memories, want * d * sizeof(float));
    h->memories = memories ? memories : h->memories;
    float *keys = mb_realloc(h->keys, want * k * sizeof(float));
    h->keys = keys ? keys : h->keys;
    float *scores = mb_realloc(h->scores, want * sizeof(float));
    h->scores = scores ? scores : h->scores;
    uint32_t *order = mb_realloc(h->order, want * sizeof(*order));
    h->order = order ? order : h->order;
    if (!memories || !keys || !scores || !order)
        return mb_error_set(err, MB_ERR_NOMEM, "context: %zu memories", n);
    h->capacity = want;
    return MB_OK;
}

mb_status
hmt_make_memory(struct mb_context *ctx, struct mb_pass *pass,
    struct mb_slice *out, struct mb_error *err)
{
    struct context_hmt *h = ctx->hmt;
    *out = (struct mb_slice){0};
    if (!h || !h->weights)
        return MB_OK;
    mb_status st = hmt_make_front(ctx, pass, err);
    if (st == MB_OK)
        st = run_trail(ctx, pass, h->P, h->hidden, err);
    for (size_t j = 0; st == MB_OK && j < width_of(ctx); j++) {
        mb_put_lef32(h->bytes + 4 * j, h->hidden[j]);
        if (!isfinite(h->hidden[j]))
            st = mb_error_set(err, MB_ERR_CORRUPT,
                "context: memory of segment %zu is not finite", h->n);
    }
    if (st == MB_OK) // so that taking it in cannot fail once it is kept
        st = reserve(h, h->n + 1, err);
    if (st == MB_OK)
        *out = mb_slice_of(h->bytes, 4 * width_of(ctx));
    return st;
}

/* The next memory, as it was kept. */
static mb_status
add_memory(struct mb_context *ctx, struct mb_slice memory, struct mb_error *err)
{
    struct context_hmt *h = ctx->hmt;
    size_t d = width_of(ctx);
    if (memory.size != 4 * d)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "context: memory of segment %zu has %zu bytes, not %zu", h->n,
            memory.size, 4 * d);
    mb_status st = reserve(h, h->n + 1, err);
    if (st != MB_OK)
        return st;
    float *M = h->memories + h->n * d;
    for (size_t j = 0; j < d; j++) {
        M[j] = mb_get_lef32(memory.data + 4 * j);
        if (!isfinite(M[j]))
            return mb_error_set(err, MB_ERR_CORRUPT,
                "context: memory of segment %zu is not finite", h->n);
    }
    project(h->weights->key, M, h->weights->d_key, d,
        h->keys + h->n * h->weights->d_key);
    h->n++;
    return MB_OK;
}

mb_status
hmt_commit(struct mb_context *ctx, struct mb_slice memory, struct mb_error *err)
{
    struct context_hmt *h = ctx->hmt;
    if (!h)
        return MB_OK;
    memcpy(h->before, ctx->tokens, segment_tokens(ctx) * sizeof(*h->before));
    h->has_front = false;
    return h->weights ? add_memory(ctx, memory, err) : MB_OK;
}

void
hmt_cut(struct mb_context *ctx, size_t n, const mb_token_id *before)
{
    struct context_hmt *h = ctx->hmt;
    h->n = n < h->n ? n : h->n;
    h->has_front = false;
    memcpy(h->before, before, segment_tokens(ctx) * sizeof(*h->before));
}

mb_status
hmt_copy(struct mb_context *to, const struct mb_context *from, size_t n,
    const mb_token_id *before, struct mb_error *err)
{
    struct context_hmt *h = to->hmt;
    if (h->weights) {
        mb_status st = reserve(h, n, err);
        if (st != MB_OK)
            return st;
        size_t d = h->weights->d_model;
        size_t k = h->weights->d_key;
        n = n < from->hmt->n ? n : from->hmt->n;
        if (n > 0) {
            memcpy(h->memories, from->hmt->memories, n * d * sizeof(float));
            memcpy(h->keys, from->hmt->keys, n * k * sizeof(float));
        }
        h->n = n;
    }
    hmt_cut(to, n, before);
    return MB_OK;
}

mb_status
mb_context_restore_memory(
    struct mb_context *ctx, struct mb_slice memory, struct mb_error *err)
{
    if (!ctx->hmt || !ctx->hmt->weights)
        return MB_OK;
    return add_memory(ctx, memory, err);
}
