/* SPDX-License-Identifier: Apache-2.0
 * model/context.c - contexts: life, reading, committing, cutting. See
 * mb_context.h for what they are, context.h for how they lie in memory.
 *
 * Invariants: rows of the window behind the last token are zero, or were
 * written by a pass that failed and are written again before they are seen.
 * The table has one key for each committed block; hits, fetched and touched
 * have room for as many. */
#include "context.h"

#include <string.h>

#include "context_hmt.h"
#include "mb_companion.h"
#include "pass.h"

#define DEFAULT_K          4u
#define DEFAULT_SEGMENT    4u
#define DEFAULT_MAX_BLOCKS ((size_t)1 << 24)
#define MAX_BLOCKS         ((size_t)1 << 31)
#define ALIGN              64u

/* ---- options ---- */

static size_t
or_default(size_t value, size_t fallback)
{
    return value > 0 ? value : fallback;
}

static struct mb_context_options
with_defaults(const struct mb_context_options *given)
{
    struct mb_context_options o = *given;
    o.segment_blocks = or_default(o.segment_blocks, DEFAULT_SEGMENT);
    o.max_blocks = or_default(o.max_blocks, DEFAULT_MAX_BLOCKS);
    o.modes.k = or_default(o.modes.k, DEFAULT_K);
    return o;
}

static size_t
k_of(const struct mb_context_modes *modes)
{
    return modes->k == MB_CONTEXT_NONE ? 0 : modes->k;
}

static bool
are_modes_known(const struct mb_context_modes *modes)
{
    return k_of(modes) <= MB_CONTEXT_MAX_K &&
           modes->prefill <= MB_SELECT_CHUNK &&
           modes->decode <= MB_SELECT_CHUNK && modes->tail <= MB_TAIL_LANDMARK;
}

static mb_status
check_options(const struct mb_decoder *decoder,
    const struct mb_context_options *o, struct mb_error *err)
{
    if (o->landmark < 0 || (size_t)o->landmark >= decoder->info.n_vocab)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "context: the landmark is token %d, the vocabulary has %zu",
            (int)o->landmark, decoder->info.n_vocab);
    if (cache_value_bytes(o->type) == 0 ||
        o->segment_blocks > MB_CONTEXT_MAX_SEGMENT ||
        o->max_blocks > MAX_BLOCKS)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "context: type %d, segments of %zu blocks, %zu blocks",
            (int)o->type, o->segment_blocks, o->max_blocks);
    if (!are_modes_known(&o->modes))
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "context: k is %zu, at most %d; or a mode that is not known",
            k_of(&o->modes), MB_CONTEXT_MAX_K);
    if (o->modes.tail != MB_TAIL_NONE && decoder->info.head_dim > TAIL_MAX_HEAD)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "context: a tail needs heads of at most %u, the model's have %zu",
            TAIL_MAX_HEAD, decoder->info.head_dim);
    return MB_OK;
}

size_t
mb_context_span(const struct mb_context_options *options)
{
    struct mb_context_options o = with_defaults(options);
    size_t k = k_of(&o.modes);
    size_t front = 0;
    if (o.memory != MB_MEMORY_NONE && o.companion)
        front = o.companion->n_sensory + (o.memory == MB_MEMORY_HMT ? 2 : 0);
    return front + (o.segment_blocks + (k > 0 ? k + 1 : 0)) * MB_BLOCK_ROWS;
}

static struct context_shape
shape_of(const struct mb_decoder *decoder, const struct mb_context_options *o)
{
    struct context_shape shape = {
        .n_layers = decoder->info.n_layers,
        .n_kv_heads = decoder->info.n_kv_heads,
        .head_dim = decoder->info.head_dim,
        .type = o->type,
        .has_tail = o->modes.tail != MB_TAIL_NONE,
    };
    memcpy(shape.weights, o->weights, sizeof(shape.weights));
    return shape;
}

size_t
mb_context_block_bytes(
    const struct mb_decoder *decoder, const struct mb_context_options *options)
{
    struct context_shape shape = shape_of(decoder, options);
    return record_block_bytes(&shape);
}

size_t
mb_context_sum_bytes(
    const struct mb_decoder *decoder, const struct mb_context_options *options)
{
    struct context_shape shape = shape_of(decoder, options);
    return record_sum_bytes(&shape);
}

/* ---- life ---- */

/* Bytes behind one another, 64-aligned and zero; *memory is what to free. */
static uint8_t *
make_aligned(size_t size, uint8_t **memory)
{
    *memory = mb_calloc(size + ALIGN, 1);
    if (!*memory)
        return NULL;
    return *memory + (ALIGN - (uintptr_t)*memory % ALIGN) % ALIGN;
}

static bool
make_window(struct mb_context *ctx)
{
    size_t n = ctx->options.segment_blocks;
    size_t more = ctx->has_front_room ? 2 : 0;
    ctx->window = make_aligned((n + more) * ctx->block_bytes, &ctx->memory);
    ctx->landmarks = mb_calloc(
        n * context_n_tables(ctx), ctx->shape.head_dim * sizeof(float));
    ctx->tokens = mb_calloc(n * BLOCK_TOKENS, sizeof(*ctx->tokens));
    return ctx->window && ctx->landmarks && ctx->tokens;
}

mb_status
context_new(const struct mb_decoder *decoder,
    const struct mb_context_options *options,
    const struct mb_context_source *source, size_t n_front,
    struct mb_context **out, struct mb_error *err)
{
    struct mb_context_options o = with_defaults(options);
    mb_status st = check_options(decoder, &o, err);
    if (st != MB_OK)
        return st;
    struct mb_context *ctx = mb_calloc(1, sizeof(*ctx));
    if (!ctx)
        return mb_error_set(err, MB_ERR_NOMEM, "context");
    ctx->decoder = decoder;
    ctx->attention = attention_best();
    ctx->options = o;
    if (source)
        ctx->source = *source;
    ctx->shape = shape_of(decoder, &o);
    ctx->slice_bytes = cache_slice_bytes(o.type, ctx->shape.head_dim);
    ctx->block_bytes = record_block_bytes(&ctx->shape);
    ctx->sum_bytes = record_sum_bytes(&ctx->shape);
    landmark_init(&ctx->table, context_n_tables(ctx), ctx->shape.head_dim);
    landmark_init(
        &ctx->tails, context_n_tables(ctx), TAIL_PARTS * ctx->shape.head_dim);
    ctx->n_front = n_front;
    ctx->has_front_room = n_front > 0 || o.memory != MB_MEMORY_NONE;
    st = make_window(ctx) ? hmt_new(ctx, err)
                          : mb_error_set(err, MB_ERR_NOMEM, "context: window");
    if (st != MB_OK) {
        mb_context_free(ctx);
        return st;
    }
    *out = ctx;
    return MB_OK;
}

mb_status
mb_context_new(const struct mb_decoder *decoder,
    const struct mb_context_options *options,
    const struct mb_context_source *source, struct mb_context **out,
    struct mb_error *err)
{
    return context_new(decoder, options, source, 0, out, err);
}

void
mb_context_free(struct mb_context *ctx)
{
    if (!ctx)
        return;
    hmt_free(ctx->hmt);
    landmark_fini(&ctx->table);
    landmark_fini(&ctx->tails);
    mb_free(ctx->memory);
    mb_free(ctx->landmarks);
    mb_free(ctx->tokens);
    mb_free(ctx->sums);
    mb_free(ctx->statistics);
    mb_free(ctx->hits);
    mb_free(ctx->fetched);
    mb_free(ctx->touched);
    mb_free(ctx);
}

/* ---- figures ---- */

static size_t
segment_tokens(const struct mb_context *ctx)
{
    return ctx->options.segment_blocks * BLOCK_TOKENS;
}

uint64_t
mb_context_length(const struct mb_context *ctx)
{
    return (uint64_t)ctx->table.n * BLOCK_TOKENS + ctx->n_tokens;
}

uint64_t
mb_context_n_blocks(const struct mb_context *ctx)
{
    return ctx->table.n;
}

size_t
mb_context_room(const struct mb_context *ctx)
{
    return segment_tokens(ctx) - ctx->n_tokens;
}

const mb_token_id *
mb_context_window(const struct mb_context *ctx, size_t *n)
{
    *n = ctx->n_tokens;
    return ctx->tokens;
}

size_t
mb_context_bytes(const struct mb_context *ctx)
{
    size_t n = ctx->options.segment_blocks;
    size_t landmarks =
        context_n_tables(ctx) * ctx->shape.head_dim * sizeof(float);
    size_t a_block =
        sizeof(*ctx->hits) + sizeof(*ctx->fetched) + sizeof(*ctx->touched);
    return sizeof(*ctx) + hmt_bytes(ctx) +
           (ctx->has_front_room ? 2 * ctx->block_bytes : 0) +
           n * (ctx->block_bytes + landmarks +
                   BLOCK_TOKENS * sizeof(*ctx->tokens)) +
           (ctx->sums ? n * ctx->sum_bytes : 0) + ctx->capacity * a_block +
           landmark_bytes(&ctx->table) + landmark_bytes(&ctx->tails);
}

const uint32_t *
mb_context_hits(const struct mb_context *ctx, size_t *n)
{
    *n = ctx->table.n;
    return ctx->hits;
}

void
mb_context_clear_hits(struct mb_context *ctx)
{
    if (ctx->table.n > 0)
        memset(ctx->hits, 0, ctx->table.n * sizeof(*ctx->hits));
}

size_t
context_k(const struct mb_context *ctx)
{
    size_t k = k_of(&ctx->options.modes);
    return k < ctx->table.n ? k : ctx->table.n;
}

/* ---- committed blocks ---- */

/* Room for n committed blocks. */
static mb_status
reserve(struct mb_context *ctx, size_t n, struct mb_error *err)
{
    mb_status st = landmark_reserve(&ctx->table, n);
    if (st == MB_OK && ctx->shape.has_tail)
        st = landmark_reserve(&ctx->tails, n);
    if (st == MB_OK && n > ctx->capacity) {
        size_t want = ctx->capacity > 0 ? 2 * ctx->capacity : 64;
        if (want < n)
            want = n;
        size_t old = ctx->capacity;
        uint32_t *hits = mb_realloc(ctx->hits, want * sizeof(*hits));
        ctx->hits = hits ? hits : ctx->hits;
        const uint8_t **fetched =
            mb_realloc(ctx->fetched, want * sizeof(*fetched));
        ctx->fetched = fetched ? fetched : ctx->fetched;
        uint64_t *touched = mb_realloc(ctx->touched, want * sizeof(*touched));
        ctx->touched = touched ? touched : ctx->touched;
        if (hits && fetched && touched) {
            memset(hits + old, 0, (want - old) * sizeof(*hits));
            for (size_t i = old; i < want; i++)
                fetched[i] = NULL;
            ctx->capacity = want;
        } else {
            st = MB_ERR_NOMEM;
        }
    }
    return st == MB_OK
               ? MB_OK
               : mb_error_set(err, st, "context: landmarks of %zu blocks", n);
}

/* Take in a committed block's sum; there is room. */
static void
append(struct mb_context *ctx, struct mb_slice sum)
{
    landmark_append(&ctx->table, record_landmarks(sum));
    if (ctx->shape.has_tail)
        landmark_append(&ctx->tails, record_tails(&ctx->shape, sum));
}

/* Tokens of a block that stands before the window, or will. */
static void
note_tokens(struct mb_context *ctx, struct mb_slice record, size_t ordinal)
{
    struct mb_context_record r;
    size_t i = ordinal % ctx->options.segment_blocks;
    if (mb_context_record_read(record, false, &r, NULL) != MB_OK)
        return; // it has been checked
    for (size_t t = 0; t < r.n_tokens && t < BLOCK_TOKENS; t++)
        ctx->hmt->before[i * BLOCK_TOKENS + t] =
            (mb_token_id)mb_get_le32(r.tokens.data + 4 * t);
}

mb_status
mb_context_restore(
    struct mb_context *ctx, struct mb_slice sum, struct mb_error *err)
{
    size_t n = ctx->table.n;
    if (ctx->n_tokens > 0)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "context: block %zu restored behind rows that were read", n);
    mb_status st = mb_context_check_sum(ctx, sum, n, true, err);
    if (st == MB_OK && n == ctx->options.max_blocks)
        st = mb_error_set(err, MB_ERR_TOO_LARGE,
            "context: more than %zu blocks", ctx->options.max_blocks);
    if (st == MB_OK)
        st = reserve(ctx, n + 1, err);
    if (st == MB_OK)
        append(ctx, sum);
    if (st == MB_OK && ctx->hmt)
        note_tokens(ctx, sum, n);
    return st;
}

mb_status
context_fetch(struct mb_context *ctx, uint64_t ordinal, struct mb_error *err)
{
    struct mb_slice bytes = {0};
    if (ctx->fetched[ordinal])
        return MB_OK;
    mb_status st = ctx->source.fetch(ctx->source.arg, ordinal, &bytes, err);
    if (st == MB_OK)
        st = mb_context_check_block(ctx, bytes, ordinal, false, err);
    if (st != MB_OK)
        return st;
    ctx->fetched[ordinal] = bytes.data;
    ctx->touched[ctx->n_touched++] = ordinal;
    return MB_OK;
}

void
context_release(struct mb_context *ctx)
{
    for (size_t i = 0; i < ctx->n_touched; i++)
        ctx->fetched[ctx->touched[i]] = NULL;
    if (ctx->n_touched > 0 && ctx->source.release)
        ctx->source.release(ctx->source.arg);
    ctx->n_touched = 0;
}

/* ---- rows of the window ---- */

/* A number as fp16 keeps it. */
static float
through_half(float v)
{
    uint16_t h = mb_half_from_float(v);
    if ((h & 0x7fff) == 0x7c00) // beyond the largest: as rows are written
        h = (uint16_t)((h & 0x8000) | 0x7bff);
    return mb_half_to_float(h);
}

void
context_store(struct mb_context *ctx, size_t row, size_t table,
    const float *key, const float *value)
{
    struct slice_shape shape = {ctx->shape.type, ctx->shape.head_dim};
    size_t block = row / MB_BLOCK_ROWS;
    if (row % MB_BLOCK_ROWS < BLOCK_TOKENS) {
        ctx->attention->store(shape, context_slice(ctx, block, table),
            row % MB_BLOCK_ROWS, key, value);
        return;
    }
    float *landmark = context_landmark(ctx, block, table);
    for (size_t j = 0; j < shape.head_dim; j++)
        landmark[j] = through_half(key[j]);
}

void
context_took(struct mb_context *ctx, const mb_token_id *tokens, size_t n)
{
    memcpy(ctx->tokens + ctx->n_tokens, tokens, n * sizeof(*tokens));
    ctx->n_tokens += n;
}

/* Forget rows [row, 63) of a block. */
static void
clear_rows(struct mb_context *ctx, size_t block, size_t row)
{
    static const float zeros[ATTENTION_MAX_HEAD];
    struct slice_shape shape = {ctx->shape.type, ctx->shape.head_dim};
    for (size_t t = 0; t < context_n_tables(ctx); t++) {
        for (size_t r = row; r < BLOCK_TOKENS; r++)
            ctx->attention->store(
                shape, context_slice(ctx, block, t), r, zeros, zeros);
    }
}

/* Forget the window's tokens from n on; what they left in memory too. */
static void
cut_window(struct mb_context *ctx, size_t n)
{
    size_t first = n / BLOCK_TOKENS;
    for (size_t b = first; b < ctx->options.segment_blocks; b++)
        clear_rows(ctx, b, b == first ? n % BLOCK_TOKENS : 0);
    memset(
        ctx->tokens + n, 0, (segment_tokens(ctx) - n) * sizeof(*ctx->tokens));
    ctx->n_tokens = n;
}

/* ---- records of the window ---- */

/* Statistics (tables, 3, head_dim) of a block of the window. */
static void
measure_block(struct mb_context *ctx, size_t block)
{
    struct slice_shape shape = {ctx->shape.type, ctx->shape.head_dim};
    for (size_t t = 0; t < context_n_tables(ctx); t++)
        tail_measure(shape, context_slice(ctx, block, t),
            ctx->statistics + t * TAIL_PARTS * shape.head_dim);
}

mb_status
mb_context_tail(struct mb_context *ctx, struct mb_context_segment *out,
    struct mb_error *err)
{
    size_t n = (ctx->n_tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    if (!ctx->sums)
        ctx->sums = mb_calloc(ctx->options.segment_blocks, ctx->sum_bytes);
    if (!ctx->statistics)
        ctx->statistics = mb_calloc(context_n_tables(ctx) * TAIL_PARTS,
            ctx->shape.head_dim * sizeof(float));
    if (!ctx->sums || !ctx->statistics)
        return mb_error_set(err, MB_ERR_NOMEM, "context: records");
    for (size_t i = 0; i < n; i++) {
        uint8_t *block = ctx->window + i * ctx->block_bytes;
        uint8_t *sum = ctx->sums + i * ctx->sum_bytes;
        const mb_token_id *tokens = ctx->tokens + i * BLOCK_TOKENS;
        size_t left = ctx->n_tokens - i * BLOCK_TOKENS;
        size_t n_tokens = left < BLOCK_TOKENS ? left : BLOCK_TOKENS;
        if (n_tokens < BLOCK_TOKENS) // it has no landmark yet
            memset(context_landmark(ctx, i, 0), 0,
                context_n_tables(ctx) * ctx->shape.head_dim * sizeof(float));
        if (ctx->shape.has_tail)
            measure_block(ctx, i);
        record_seal_block(block, ctx->block_bytes, &ctx->shape,
            ctx->table.n + i, tokens, n_tokens);
        record_write_sum(sum, ctx->sum_bytes, &ctx->shape, ctx->table.n + i,
            tokens, n_tokens, context_landmark(ctx, i, 0), ctx->statistics);
        ctx->block_views[i] = mb_slice_of(block, ctx->block_bytes);
        ctx->sum_views[i] = mb_slice_of(sum, ctx->sum_bytes);
    }
    *out = (struct mb_context_segment){
        .first = ctx->table.n,
        .n_blocks = n,
        .blocks = ctx->block_views,
        .sums = ctx->sum_views,
    };
    return MB_OK;
}

/* Hand the full window over with its memory. */
static mb_status
commit(struct mb_context *ctx, struct mb_slice memory, struct mb_error *err)
{
    struct mb_context_segment segment;
    size_t n = ctx->table.n + ctx->options.segment_blocks;
    if (!ctx->source.commit || n > ctx->options.max_blocks)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "context: no room for more than %zu tokens",
            (size_t)mb_context_length(ctx));
    mb_status st = reserve(ctx, n, err);
    if (st == MB_OK)
        st = mb_context_tail(ctx, &segment, err);
    segment.memory = memory;
    if (st == MB_OK)
        st = ctx->source.commit(ctx->source.arg, &segment, err);
    if (st == MB_OK)
        st = hmt_commit(ctx, memory, err);
    if (st != MB_OK)
        return st;
    for (size_t i = 0; i < segment.n_blocks; i++)
        append(ctx, segment.sums[i]);
    cut_window(ctx, 0);
    return MB_OK;
}

mb_status
mb_context_commit(struct mb_context *ctx, struct mb_error *err)
{
    if (ctx->hmt)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "context: memories are made by a pass");
    return mb_context_room(ctx) == 0 ? commit(ctx, (struct mb_slice){0}, err)
                                     : MB_OK;
}

/* Put a checked record into block i of the window. */
static void
take_block(struct mb_context *ctx, size_t i, struct mb_slice bytes,
    const struct mb_context_record *record)
{
    memcpy(ctx->window + i * ctx->block_bytes, bytes.data, bytes.size);
    for (size_t t = 0; t < record->n_tokens; t++)
        ctx->tokens[i * BLOCK_TOKENS + t] =
            (mb_token_id)mb_get_le32(record->tokens.data + 4 * t);
    ctx->n_tokens = i * BLOCK_TOKENS + record->n_tokens;
}

/* Check a record that becomes part of a window. */
static mb_status
check_window_block(const struct mb_context *ctx, struct mb_slice bytes,
    uint64_t ordinal, struct mb_context_record *out, struct mb_error *err)
{
    mb_status st =
        record_check(&ctx->shape, bytes, false, ordinal, true, out, err);
    for (size_t t = 0; st == MB_OK && t < out->n_tokens; t++) {
        uint32_t id = mb_get_le32(out->tokens.data + 4 * t);
        if (id >= ctx->decoder->info.n_vocab)
            st = mb_error_set(err, MB_ERR_CORRUPT,
                "context: block %llu has token %u, the vocabulary %zu",
                (unsigned long long)ordinal, (unsigned)id,
                ctx->decoder->info.n_vocab);
    }
    return st;
}

mb_status
mb_context_restore_tail(struct mb_context *ctx, struct mb_slice block,
    struct mb_slice sum, struct mb_error *err)
{
    struct mb_context_record record = {0};
    size_t i = ctx->n_tokens / BLOCK_TOKENS;
    uint64_t ordinal = ctx->table.n + i;
    if (mb_context_room(ctx) == 0 || ctx->n_tokens % BLOCK_TOKENS != 0)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "context: block %llu does not follow a window of %zu tokens",
            (unsigned long long)ordinal, ctx->n_tokens);
    mb_status st = check_window_block(ctx, block, ordinal, &record, err);
    if (st == MB_OK)
        st = mb_context_check_sum(ctx, sum, ordinal, true, err);
    if (st != MB_OK)
        return st;
    take_block(ctx, i, block, &record);
    float *landmark = context_landmark(ctx, i, 0);
    for (size_t j = 0; j < context_n_tables(ctx) * ctx->shape.head_dim; j++)
        landmark[j] =
            mb_half_to_float(mb_get_le16(record_landmarks(sum) + 2 * j));
    return MB_OK;
}

/* ---- cutting and copying ---- */

uint64_t
mb_context_blocks_of(const struct mb_context_options *options, uint64_t n)
{
    size_t blocks = or_default(options->segment_blocks, DEFAULT_SEGMENT);
    return n / (blocks * BLOCK_TOKENS) * blocks;
}

/* Make the window of `to` from n tokens of committed blocks of `from`, from
 * block `first` on. On failure `to` has not changed. */
static mb_status
load_window(struct mb_context *to, struct mb_context *from, size_t first,
    size_t n, struct mb_error *err)
{
    struct mb_slice bytes[MB_CONTEXT_MAX_SEGMENT];
    struct mb_context_record records[MB_CONTEXT_MAX_SEGMENT];
    size_t n_blocks = (n + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    mb_status st = MB_OK;
    for (size_t i = 0; i < n_blocks && st == MB_OK; i++) {
        st = from->source.fetch(from->source.arg, first + i, &bytes[i], err);
        if (st == MB_OK)
            st =
                check_window_block(from, bytes[i], first + i, &records[i], err);
        if (st == MB_OK && records[i].n_tokens < BLOCK_TOKENS)
            st = mb_error_set(err, MB_ERR_CORRUPT,
                "context: block %zu has %u tokens only", first + i,
                (unsigned)records[i].n_tokens);
    }
    for (size_t i = 0; i < n_blocks && st == MB_OK; i++) {
        take_block(to, i, bytes[i], &records[i]);
        for (size_t t = 0; t < context_n_tables(to); t++)
            landmark_key(
                &from->table, t, first + i, context_landmark(to, i, t));
    }
    if (n_blocks > 0 && from->source.release)
        from->source.release(from->source.arg);
    if (st == MB_OK)
        cut_window(to, n);
    return st;
}

/* Tokens of the segment that ends with block `end` of `from`, into before; of
 * the first nothing. */
static mb_status
load_before(struct mb_context *from, size_t end, mb_token_id *before,
    struct mb_error *err)
{
    size_t n = from->options.segment_blocks;
    mb_status st = MB_OK;
    if (!from->hmt || end < n)
        return MB_OK;
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        struct mb_context_record record;
        struct mb_slice bytes;
        st = from->source.fetch(from->source.arg, end - n + i, &bytes, err);
        if (st == MB_OK)
            st = check_window_block(from, bytes, end - n + i, &record, err);
        for (size_t t = 0; st == MB_OK && t < record.n_tokens; t++)
            before[i * BLOCK_TOKENS + t] =
                (mb_token_id)mb_get_le32(record.tokens.data + 4 * t);
    }
    if (from->source.release)
        from->source.release(from->source.arg);
    return st;
}

mb_status
mb_context_truncate(struct mb_context *ctx, uint64_t n, struct mb_error *err)
{
    mb_token_id before[MB_CONTEXT_MAX_SEGMENT * BLOCK_TOKENS] = {0};
    uint64_t start = (uint64_t)ctx->table.n * BLOCK_TOKENS;
    if (n > mb_context_length(ctx))
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "context: cut at token %llu of %llu", (unsigned long long)n,
            (unsigned long long)mb_context_length(ctx));
    if (n >= start) {
        cut_window(ctx, (size_t)(n - start));
        return MB_OK;
    }
    size_t keep = (size_t)mb_context_blocks_of(&ctx->options, n);
    size_t rest = (size_t)(n - (uint64_t)keep * BLOCK_TOKENS);
    mb_status st = load_before(ctx, keep, before, err);
    if (st == MB_OK)
        st = load_window(ctx, ctx, keep, rest, err);
    if (st != MB_OK)
        return st;
    if (ctx->hmt)
        hmt_cut(ctx, keep / ctx->options.segment_blocks, before);
    memset(ctx->hits + keep, 0, (ctx->table.n - keep) * sizeof(*ctx->hits));
    landmark_truncate(&ctx->table, keep);
    if (ctx->shape.has_tail)
        landmark_truncate(&ctx->tails, keep);
    return MB_OK;
}

/* Landmark keys of the first n blocks of `from`. */
static mb_status
copy_table(struct mb_context *to, const struct mb_context *from, size_t n,
    struct mb_error *err)
{
    mb_status st = n > 0 ? reserve(to, n, err) : MB_OK;
    if (st == MB_OK)
        landmark_copy(&to->table, &from->table, n);
    if (st == MB_OK && to->shape.has_tail)
        landmark_copy(&to->tails, &from->tails, n);
    return st;
}

mb_status
mb_context_fork(struct mb_context *ctx, uint64_t n,
    const struct mb_context_source *source, struct mb_context **out,
    struct mb_error *err)
{
    mb_token_id before[MB_CONTEXT_MAX_SEGMENT * BLOCK_TOKENS] = {0};
    struct mb_context *fork = NULL;
    uint64_t start = (uint64_t)ctx->table.n * BLOCK_TOKENS;
    size_t keep = (size_t)mb_context_blocks_of(&ctx->options, n);
    if (n > mb_context_length(ctx))
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "context: fork at token %llu of %llu", (unsigned long long)n,
            (unsigned long long)mb_context_length(ctx));
    mb_status st =
        mb_context_new(ctx->decoder, &ctx->options, source, &fork, err);
    if (st != MB_OK)
        return st;
    if (n >= start) {
        keep = ctx->table.n;
        st = copy_table(fork, ctx, keep, err);
        memcpy(fork->window, ctx->window,
            ctx->options.segment_blocks * ctx->block_bytes);
        memcpy(fork->landmarks, ctx->landmarks,
            ctx->options.segment_blocks * context_n_tables(ctx) *
                ctx->shape.head_dim * sizeof(float));
        memcpy(fork->tokens, ctx->tokens,
            segment_tokens(ctx) * sizeof(*ctx->tokens));
        cut_window(fork, (size_t)(n - start));
        if (ctx->hmt)
            memcpy(before, ctx->hmt->before,
                segment_tokens(ctx) * sizeof(*before));
    } else {
        size_t rest = (size_t)(n - (uint64_t)keep * BLOCK_TOKENS);
        st = copy_table(fork, ctx, keep, err);
        if (st == MB_OK)
            st = load_before(ctx, keep, before, err);
        if (st == MB_OK)
            st = load_window(fork, ctx, keep, rest, err);
    }
    if (st == MB_OK && ctx->hmt)
        st = hmt_copy(
            fork, ctx, keep / ctx->options.segment_blocks, before, err);
    if (st == MB_OK) {
        *out = fork;
        fork = NULL;
    }
    mb_context_free(fork);
    return st;
}

/* ---- reading alone ---- */

size_t
context_rows_for(const struct mb_context *ctx, size_t n)
{
    return context_rows_of(ctx->n_tokens + n) - context_rows_of(ctx->n_tokens);
}

size_t
context_fitting(const struct mb_context *ctx, size_t max_rows)
{
    size_t n = mb_context_room(ctx);
    while (n > 1 && context_rows_for(ctx, n) > max_rows)
        n--;
    return n;
}

mb_status
mb_context_prepare(
    struct mb_context *ctx, struct mb_pass *pass, struct mb_error *err)
{
    struct mb_slice memory = {0};
    mb_status st = MB_OK;
    if (mb_context_room(ctx) == 0) {
        st = hmt_make_memory(ctx, pass, &memory, err);
        if (st == MB_OK)
            st = commit(ctx, memory, err);
    }
    return st == MB_OK && ctx->hmt ? hmt_make_front(ctx, pass, err) : st;
}

/* Items of a text, each after `prepare`. */
static mb_status
read_items(struct mb_context *ctx, struct mb_pass *pass,
    const struct mb_context_rows *rows, bool prepares, struct mb_error *err)
{
    mb_status st = MB_OK;
    for (size_t at = 0; at < rows->n && st == MB_OK;) {
        size_t left = rows->n - at;
        size_t n;
        if (prepares)
            st = mb_context_prepare(ctx, pass, err);
        n = context_fitting(ctx, pass->max_rows);
        n = n < left ? n : left;
        struct mb_rows item = {
            .context = ctx,
            .tokens = rows->tokens + at,
            .n = n,
            .kind = rows->kind,
            .targets = rows->targets ? rows->targets + at : NULL,
            .nll = rows->nll ? rows->nll + at : NULL,
            .logits = n == left ? rows->logits : NULL,
        };
        if (st == MB_OK)
            st = mb_pass_run(pass, &item, 1, err);
        at += n;
    }
    return st;
}

mb_status
context_read_text(struct mb_context *ctx, struct mb_pass *pass,
    const struct mb_context_rows *rows, struct mb_error *err)
{
    return read_items(ctx, pass, rows, false, err);
}

mb_status
mb_context_read(struct mb_context *ctx, struct mb_pass *pass,
    const struct mb_context_rows *rows, struct mb_error *err)
{
    mb_status st = read_items(ctx, pass, rows, true, err);
    if (st == MB_OK && ctx->source.commit)
        st = mb_context_prepare(ctx, pass, err);
    return st;
}
