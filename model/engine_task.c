/* SPDX-License-Identifier: Apache-2.0
 * model/engine_task.c - one request: its windows of rows, what it makes of them.
 *
 * A text is read window by window. A window is the request's head (a bos, if
 * there is one) and then a run of its tokens. Generated texts have one window;
 * scored texts have overlapping ones, so that each token but those of the
 * first window is predicted from at least window - stride tokens; texts to
 * embed have adjoining ones.
 * Invariants: pos == rows of the sequence, but for a text that is generated,
 * whose sequence goes on growing after its one window is read.
 * Threads: request_new from any, all else mb-model. */
#include "engine.h"

#include <math.h>
#include <string.h>

#define MAX_TOKEN_BYTES 65536u /* text of one token */
#define BYTES_A_TOKEN   1024u  /* bound of a generated text */
#define MAX_TOKENS      ((size_t)1 << 26)
#define MAX_GENERATED   ((size_t)1 << 20) /* into a context */

const char *
mb_finish_name(mb_finish finish)
{
    static const char *const names[] = {
        "stop", "length", "window", "cancelled", "deadline"};

    return names[finish];
}

/* ---- checks ---- */

static mb_status
check_tokens(const struct mb_engine *e, const mb_token_id *tokens, size_t n,
    struct mb_error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || (size_t)tokens[i] >= e->n_vocab)
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "token %d at %zu, the vocabulary has %zu", (int)tokens[i], i,
                e->n_vocab);
    }
    return MB_OK;
}

static mb_status
check_generate(const struct mb_engine *e, const struct mb_engine_request *q,
    struct mb_error *err)
{
    struct mb_sampler sampler;

    if (q->max_tokens == 0)
        return mb_error_set(err, MB_ERR_BAD_ARG, "max_tokens is 0");
    if (q->context == NULL && q->n > e->window)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "prompt of %zu tokens, the window has room for %zu", q->n,
            e->window);
    if (q->n_stops > MB_ENGINE_MAX_STOPS)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "%zu stop strings, at most %d are possible", q->n_stops,
            MB_ENGINE_MAX_STOPS);
    for (size_t i = 0; i < q->n_stops; i++) {
        if (q->stops[i].size == 0 || q->stops[i].size > MB_ENGINE_MAX_STOP_SIZE)
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "stop string %zu has %zu bytes, it may have 1 to %d", i,
                q->stops[i].size, MB_ENGINE_MAX_STOP_SIZE);
    }
    return mb_sampler_init(&sampler, &q->sampling, err);
}

static mb_status
check(const struct mb_engine *e, const struct mb_engine_request *q,
    struct mb_error *err)
{
    mb_status st;

    if (q->n == 0 || q->on_done == NULL)
        return mb_error_set(err, MB_ERR_BAD_ARG, "a request without tokens");
    if (q->n > MAX_TOKENS)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "%zu tokens, at most %zu are possible", q->n, MAX_TOKENS);
    if (q->context != NULL ? q->task == MB_TASK_EMBED
                           : q->task == MB_TASK_APPEND)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            q->context != NULL ? "a context embeds no texts"
                               : "no context to append to");
    if (q->context != NULL) {
        st = check_tokens(e, q->tokens, q->n, err);
        if (st == MB_OK && q->task == MB_TASK_GENERATE)
            st = check_generate(e, q, err);
        return st;
    }
    if (q->n_head > q->n || q->n_head >= e->window)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "a head of %zu tokens, the window has %zu", q->n_head, e->window);
    if (q->stride > e->window - q->n_head)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "stride is %zu, it may be 0 to %zu", q->stride,
            e->window - q->n_head);
    st = check_tokens(e, q->tokens, q->n, err);
    if (st == MB_OK && q->task == MB_TASK_GENERATE)
        st = check_generate(e, q, err);
    return st;
}

/* ---- making ---- */

/* Lays arrays out in one block, behind one another, each aligned for any type.
 * With base NULL it only measures. */
struct layout {
    uint8_t *base;
    size_t size;
    bool overflow;
};

static void *
lay(struct layout *l, size_t n, size_t size)
{
    size_t at = l->size;
    size_t bytes;

    if (!mb_size_mul(n, size, &bytes) ||
        !mb_size_add(bytes, sizeof(max_align_t) - 1, &bytes) ||
        !mb_size_add(
            at, bytes / sizeof(max_align_t) * sizeof(max_align_t), &l->size))
        l->overflow = true;
    return l->base != NULL ? l->base + at : NULL;
}

/* The arrays of a request of q, in l; measured if l->base is NULL. */
static void
lay_out(const struct mb_engine *e, const struct mb_engine_request *q,
    struct layout *l, struct request *r)
{
    bool generates = q->task == MB_TASK_GENERATE;
    bool embeds = q->task == MB_TASK_EMBED;
    size_t n_out = generates ? q->max_tokens : 0;

    r->q.tokens = lay(l, q->n, sizeof *q->tokens);
    r->q.stop_tokens = lay(l, q->n_stop_tokens, sizeof *q->stop_tokens);
    r->q.stops = lay(l, q->n_stops, sizeof *q->stops);
    r->out = lay(l, n_out, sizeof *r->out);
    r->logprobs = lay(l, n_out, sizeof *r->logprobs);
    r->nll = lay(l, q->task == MB_TASK_SCORE ? q->n : 0, sizeof *r->nll);
    r->sum = lay(l, embeds ? e->dim : 0, sizeof *r->sum);
    r->vector = lay(l, embeds ? e->dim : 0, sizeof *r->vector);
}

/* Copy what q points to; the strings of stops lie at the end of the room. */
static void
copy_into(struct request *r, const struct mb_engine_request *q,
    struct mb_slice *stops, uint8_t *strings)
{
    memcpy((void *)r->q.tokens, q->tokens, q->n * sizeof *q->tokens);
    if (q->n_stop_tokens > 0)
        memcpy((void *)r->q.stop_tokens, q->stop_tokens,
            q->n_stop_tokens * sizeof *q->stop_tokens);
    for (size_t i = 0; i < q->n_stops; i++) {
        memcpy(strings, q->stops[i].data, q->stops[i].size);
        stops[i] = mb_slice_of(strings, q->stops[i].size);
        strings += q->stops[i].size;
    }
}

mb_status
request_new(const struct mb_engine *e, const struct mb_engine_request *given,
    struct request **out, struct mb_error *err)
{
    struct mb_engine_request q = *given;
    struct layout l = {0};
    struct request measured = {0};
    struct request *r = NULL;
    size_t string_bytes = 0;
    mb_status st = check(e, &q, err);

    if (st != MB_OK)
        return st;
    if (q.context == NULL && q.max_tokens > e->window)
        q.max_tokens = e->window;
    if (q.max_tokens > MAX_GENERATED)
        q.max_tokens = MAX_GENERATED;
    if (q.context != NULL)
        q.n_head = 0;
    for (size_t i = 0; i < q.n_stops; i++) {
        string_bytes += q.stops[i].size;
    }
    lay_out(e, &q, &l, &measured);
    (void)lay(&l, string_bytes, 1);
    if (!l.overflow)
        r = mb_calloc(1, sizeof *r + l.size);
    if (r == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "request of %zu tokens", q.n);
    r->q = q;
    l = (struct layout){.base = (uint8_t *)r->room};
    lay_out(e, &q, &l, r);
    copy_into(r, &q, (struct mb_slice *)r->q.stops, l.base + l.size);
    r->submitted_ns = mb_clock_ns();
    if (q.task == MB_TASK_GENERATE)
        st = mb_sampler_init(&r->sampler, &q.sampling, err);
    MB_ASSERT(st == MB_OK); // checked above
    stream_init(&r->stream, r->q.stops, q.n_stops,
        q.max_tokens * BYTES_A_TOKEN + MAX_TOKEN_BYTES);
    *out = r;
    return MB_OK;
}

void
request_free(struct request *r)
{
    if (r == NULL)
        return;
    stream_fini(&r->stream);
    mb_free(r);
}

/* ---- windows ---- */

/* Number of the token that stands in row `row` of the window. */
static size_t
token_at(const struct request *r, size_t row)
{
    return row < r->q.n_head ? row : r->start + row - r->q.n_head;
}

/* Tokens that are read at all: what follows the last one is not asked for in
 * a score, but a context is to have it. */
static size_t
n_to_read(const struct request *r)
{
    bool is_short = r->q.task == MB_TASK_SCORE && r->q.context == NULL;

    return is_short ? r->q.n - 1 : r->q.n;
}

/* Begin a window at token `start` (not before the head's end). */
static void
open_window(const struct mb_engine *e, struct request *r, size_t start)
{
    size_t room = e->window - r->q.n_head;

    if (r->q.context != NULL) // it takes them all
        room = r->q.n;
    r->start = start;
    r->end = start + room;
    if (r->end > n_to_read(r))
        r->end = n_to_read(r);
    r->n_window = r->q.n_head + r->end - start;
    r->pos = 0;
}

/* The next window that has something to count; false if there is none. */
static bool
next_window(const struct mb_engine *e, struct request *r)
{
    size_t room = e->window - r->q.n_head;
    size_t step = room;

    if (r->q.task == MB_TASK_GENERATE || r->q.context != NULL)
        return false;
    if (r->q.task == MB_TASK_SCORE)
        step = r->q.stride > 0 ? r->q.stride : (room + 1) / 2;
    do {
        if (r->end >= n_to_read(r))
            return false;
        open_window(e, r, r->start + step);
        // Row of token t predicts t + 1; the last row is that of end - 1.
    } while (r->q.task == MB_TASK_SCORE ? r->end < r->next_score
                                        : r->end <= r->q.n_context);
    return true;
}

bool
request_begin(const struct mb_engine *e, struct request *r)
{
    size_t n = n_to_read(r);

    r->next_score = r->q.n_context > 0 ? r->q.n_context : 1;
    if (r->q.task == MB_TASK_GENERATE) {
        for (size_t i = 0; i < r->q.n; i++) {
            mb_sampler_accept(&r->sampler, r->q.tokens[i]);
        }
    }
    if (n < r->q.n_head || (r->q.task == MB_TASK_SCORE && n < r->next_score) ||
        (r->q.task == MB_TASK_EMBED && n <= r->q.n_context))
        return false;
    open_window(e, r, r->q.n_head);
    if (r->q.context != NULL)
        return true;
    if (r->q.task == MB_TASK_SCORE && r->end < r->next_score)
        return next_window(e, r);
    if (r->q.task == MB_TASK_EMBED && r->end <= r->q.n_context)
        return next_window(e, r);
    return r->n_window > 0;
}

/* Of the next n tokens of a context, how many have room in max_rows rows, now
 * that landmarks come between them? */
static size_t
fitting(const struct mb_context *ctx, size_t n, size_t max_rows)
{
    size_t most = context_fitting(ctx, max_rows);

    return n < most ? n : most;
}

size_t
request_rows_left(const struct request *r)
{
    size_t n = r->n_window - r->pos;

    if (r->decoding)
        return 1;
    return r->q.context != NULL
               ? context_rows_for(r->q.context, fitting(r->q.context, n, n * 2))
               : n;
}

void
request_fill(const struct mb_engine *e, struct request *r, size_t n,
    mb_token_id *row_tokens, mb_token_id *targets, float *nll, float *hidden,
    float *logits, struct mb_rows *item)
{
    bool last;

    (void)e;
    if (r->q.context != NULL && !r->decoding)
        n = fitting(r->q.context, r->n_window - r->pos, n);
    last = r->pos + n == r->n_window;
    *item = (struct mb_rows){
        .seq = r->seq,
        .context = r->q.context,
        .tokens = row_tokens,
        .n = n,
        .kind = r->decoding ? MB_ROWS_DECODE : MB_ROWS_PREFILL,
    };
    if (r->q.task == MB_TASK_GENERATE && (r->decoding || last))
        item->logits = logits;
    if (r->decoding) {
        row_tokens[0] = r->last;
        return;
    }
    for (size_t i = 0; i < n; i++) {
        size_t t = token_at(r, r->pos + i);

        row_tokens[i] = r->q.tokens[t];
        if (r->q.task == MB_TASK_SCORE)
            targets[i] = t + 1 >= r->next_score && t + 1 < r->q.n
                             ? r->q.tokens[t + 1]
                             : -1;
    }
    if (r->q.task == MB_TASK_SCORE) {
        item->targets = targets;
        item->nll = nll;
    }
    if (r->q.task == MB_TASK_EMBED)
        item->hidden = hidden;
}

/* ---- results ---- */

static bool
end(struct request *r, mb_status st, mb_finish finish)
{
    r->status = st;
    r->finish = finish;
    return true;
}

/* Bytes that a token adds to the text before it. Decoding drops the space that
 * some tokenizers put in front of a text, hence the token in front. */
static mb_status
token_bytes(struct mb_engine *e, mb_token_id id, struct mb_slice *out,
    struct mb_error *err)
{
    const mb_token_id pair[] = {e->glue, id};
    mb_status st;

    mb_buffer_clear(&e->bytes);
    st = mb_tokenizer_decode(e->tokenizer, pair, 2, &e->bytes, err);
    if (st == MB_OK)
        *out = mb_slice_of(
            e->bytes.data + e->glue_bytes, e->bytes.size - e->glue_bytes);
    return st;
}

static void
deliver(struct request *r)
{
    struct mb_engine_piece piece = {
        .text = mb_slice_of(r->stream.text.data + r->text_sent,
            r->stream.text.size - r->text_sent),
        .tokens = r->out + r->n_sent,
        .logprobs = r->logprobs + r->n_sent,
        .n = r->n_out - r->n_sent,
    };

    if (r->q.on_piece != NULL && (piece.text.size > 0 || piece.n > 0))
        r->q.on_piece(r->q.arg, &piece);
    r->text_sent = r->stream.text.size;
    r->n_sent = r->n_out;
}

static bool
is_stop_token(const struct request *r, mb_token_id id)
{
    for (size_t i = 0; i < r->q.n_stop_tokens; i++) {
        if (r->q.stop_tokens[i] == id)
            return true;
    }
    return false;
}

/* Choose the next token; true if it is the end. */
static bool
take_logits(struct mb_engine *e, struct request *r, const float *logits)
{
    struct mb_slice bytes;
    mb_token_id id;
    float logprob = 0;
    mb_status st = mb_sampler_pick(&r->sampler, e->room, logits, &id,
        r->q.logprobs ? &logprob : NULL, &r->err);

    if (st != MB_OK)
        return end(r, st, MB_FINISH_STOP);
    count(&e->rows_out, 1);
    if (is_stop_token(r, id))
        return end(r, MB_OK, MB_FINISH_STOP);
    r->out[r->n_out] = id;
    r->logprobs[r->n_out++] = logprob;
    st = token_bytes(e, id, &bytes, &r->err);
    if (st != MB_OK)
        return end(r, st, MB_FINISH_STOP);
    st = stream_feed(&r->stream, bytes);
    if (st != MB_OK)
        return end(r,
            mb_error_set(&r->err, st, "a text of %zu tokens", r->n_out),
            MB_FINISH_STOP);
    if (r->stream.is_stopped)
        return end(r, MB_OK, MB_FINISH_STOP);
    if (r->n_out == r->q.max_tokens)
        return end(r, MB_OK, MB_FINISH_LENGTH);
    if (r->seq != NULL && mb_sequence_length(r->seq) == e->window)
        return end(r, MB_OK, MB_FINISH_WINDOW);
    deliver(r);
    r->decoding = true;
    r->last = id;
    return false;
}

static void
take_nll(struct request *r, const struct mb_rows *item)
{
    for (size_t i = 0; i < item->n; i++) {
        if (item->targets[i] < 0)
            continue;
        r->nll[r->next_score++] = item->nll[i];
    }
}

static void
take_hidden(
    const struct mb_engine *e, struct request *r, const struct mb_rows *item)
{
    for (size_t i = 0; i < item->n; i++) {
        size_t row = r->pos + i;
        const float *hidden = item->hidden + i * e->dim;

        if (row < r->q.n_head || token_at(r, row) < r->q.n_context)
            continue;
        for (size_t j = 0; j < e->dim; j++) {
            r->sum[j] += (double)hidden[j];
        }
    }
}

bool
request_took(struct mb_engine *e, struct request *r, const struct mb_rows *item)
{
    if (r->decoding)
        return take_logits(e, r, item->logits);
    if (r->q.task == MB_TASK_SCORE)
        take_nll(r, item);
    if (r->q.task == MB_TASK_EMBED)
        take_hidden(e, r, item);
    r->pos += item->n;
    r->n_read += item->n;
    count(&e->rows_in, item->n);
    if (r->pos < r->n_window)
        return false;
    if (r->q.task == MB_TASK_GENERATE)
        return take_logits(e, r, item->logits);
    if (!next_window(e, r))
        return end(r, MB_OK, MB_FINISH_STOP);
    mb_sequence_truncate(r->seq, 0);
    return false;
}

/* ---- the end ---- */

static void
scale_to_unit(const struct mb_engine *e, struct request *r)
{
    double square = 0;

    for (size_t j = 0; j < e->dim; j++) {
        square += r->sum[j] * r->sum[j];
    }
    for (size_t j = 0; j < e->dim && square > 0; j++) {
        r->vector[j] = (float)(r->sum[j] / sqrt(square));
    }
    if (!isfinite(square)) {
        memset(r->vector, 0, e->dim * sizeof *r->vector);
        r->status = mb_error_set(&r->err, MB_ERR_CORRUPT,
            "a hidden row is not a number: the model is damaged");
    }
}

static void
sum_up(const struct request *r, struct mb_engine_result *out)
{
    out->first = r->q.n_context > 0 ? r->q.n_context : 1;
    if (out->first > r->q.n)
        out->first = r->q.n;
    out->nll = r->nll + out->first;
    out->n_scored = r->next_score > out->first ? r->next_score - out->first : 0;
    for (size_t i = 0; i < out->n_scored; i++) {
        out->sum += (double)out->nll[i];
    }
}

void
request_finish(struct mb_engine *e, struct request *r)
{
    struct mb_engine_result result = {0};
    uint64_t now = mb_clock_ns();
    mb_status st = MB_OK;

    if (r->q.task == MB_TASK_GENERATE && r->status == MB_OK) {
        st = stream_end(&r->stream);
        if (st == MB_OK)
            deliver(r);
    }
    if (st != MB_OK)
        r->status = mb_error_set(&r->err, st, "a text of %zu tokens", r->n_out);
    if (r->q.task == MB_TASK_EMBED && r->status == MB_OK)
        scale_to_unit(e, r);
    if (r->q.task == MB_TASK_SCORE)
        sum_up(r, &result);
    result.status = r->status;
    result.err = r->err;
    result.finish = r->finish;
    result.n_read = r->n_read;
    result.text = mb_buffer_slice(&r->stream.text);
    result.tokens = r->out;
    result.logprobs = r->logprobs;
    result.n_tokens = r->n_out;
    result.vector = r->vector;
    result.wait_us =
        ((r->first_ns != 0 ? r->first_ns : now) - r->submitted_ns) / 1000;
    result.total_us = (now - r->submitted_ns) / 1000;
    count(&e->n_done, 1);
    if (r->finish == MB_FINISH_CANCELLED || r->finish == MB_FINISH_DEADLINE)
        count(&e->n_cancelled, 1);
    r->q.on_done(r->q.arg, &result);
}
