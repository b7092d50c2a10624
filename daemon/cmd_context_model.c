/* SPDX-License-Identifier: Apache-2.0
 * daemon/cmd_context_model.c - contexts: append, score, generate.
 *
 * A worker owns the context, makes tokens of the text and hands both to the
 * model, which reads them side by side with all other requests. Its result comes
 * on mb-model, is copied, and goes back to a worker: that one saves the context
 * or takes back what was only tried, replies, and leaves the context.
 * What the model is given begins with the carried token of the context (see
 * context_state.c), and the last token that it was given, or made, is carried.
 * Threads: a worker, mb-model, a worker; one after the other. */
#include "cmd_context.h"
#include "sampling.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_TEXT_BYTES   ((size_t)64 << 20)
#define MAX_TOKEN_BYTES  ((size_t)1 << 30)
#define MAX_RESULT_BYTES ((size_t)256 << 20)
#define DEFAULT_TOKENS   128
#define MAX_TOKENS       1000000
#define MAX_SHOWN        8 /* retrieved blocks in a reply */
#define TRACE_STEPS      64
#define LN2              0.69314718055994530942

/* One text on its way. */
struct reading {
    struct call *c;
    struct open_context *oc;
    struct dispatch_task task;
    mb_task kind;
    bool keep;
    bool per_token;
    bool stream;
    bool logprobs;
    uint64_t engine_id;
    size_t text_bytes;
    struct mb_buffer ids;   /* what the model is given */
    struct mb_buffer marks; /* u32: where each token of the text ends in it */
    size_t n_head;          /* ids before the text's */
    uint64_t length;        /* of the model's object before */
    uint64_t position;      /* of the context before */
    uint64_t seed;
    struct mb_slice stops[MB_ENGINE_MAX_STOPS];
    size_t n_stops;
    /* What was retrieved when. */
    struct mb_buffer picks; /* struct mb_stored_pick */
    struct mb_buffer seen;  /* u32 counts at the end of the last step */
    size_t step_tokens;
    uint32_t step;
    size_t n_out;
    /* Results, copied on mb-model. */
    mb_status status;
    struct mb_error err;
    mb_finish finish;
    double sum;
    size_t n_scored;
    uint64_t took_us;
    struct mb_buffer text;
    struct mb_buffer out;    /* mb_token_id */
    struct mb_buffer floats; /* nll or logprobs */
};

static void
reading_free(struct reading *r)
{
    if (r == NULL)
        return;
    mb_buffer_fini(&r->ids);
    mb_buffer_fini(&r->marks);
    mb_buffer_fini(&r->picks);
    mb_buffer_fini(&r->seen);
    mb_buffer_fini(&r->text);
    mb_buffer_fini(&r->out);
    mb_buffer_fini(&r->floats);
    mb_free(r);
}

static size_t
n_ids(const struct reading *r)
{
    return r->ids.size / sizeof(mb_token_id);
}

static const mb_token_id *
ids(const struct reading *r)
{
    return (const mb_token_id *)(const void *)r->ids.data;
}

/* ---- tokens ---- */

static mb_status
add_id(struct reading *r, mb_token_id id)
{
    return mb_buffer_append(&r->ids, &id, sizeof id);
}

/* What stands before the text: the carried token; in an empty context a bos. */
static mb_status
add_head(struct reading *r)
{
    const struct reader *reader = r->c->d->reader;
    mb_token_id carry = context_carry(r->oc);
    mb_status st = MB_OK;

    if (carry != MB_CONTEXT_NO_TOKEN)
        st = add_id(r, carry);
    else if (r->position == 0 && reader_n_head(reader) > 0)
        st = add_id(r, mb_tokenizer_bos(reader_tokenizer(reader)));
    r->n_head = n_ids(r);
    return st;
}

static mb_status
add_text(struct reading *r, struct mb_slice text)
{
    struct mb_buffer tokens;
    mb_status st;

    mb_buffer_init(&tokens, MAX_TOKEN_BYTES);
    st = mb_tokenizer_encode(
        reader_tokenizer(r->c->d->reader), NULL, text, &tokens, &r->c->err);
    for (size_t at = 0; at < tokens.size && st == MB_OK;
         at += sizeof(struct mb_token)) {
        struct mb_token t;
        uint32_t end;

        memcpy(&t, tokens.data + at, sizeof t);
        end = t.start + t.size;
        st = add_id(r, t.id);
        if (st == MB_OK)
            st = mb_buffer_append(&r->marks, &end, sizeof end);
    }
    mb_buffer_fini(&tokens);
    return st;
}

static mb_status
check_at(struct reading *r)
{
    struct call *c = r->c;
    uint64_t at;
    mb_status st =
        mb_arg_u64(c->args, "at", r->position, 0, UINT64_MAX, &at, &c->err);

    if (st != MB_OK || at == r->position)
        return st;
    return mb_error_set(&c->err, MB_ERR_MISMATCH,
        "at: is %llu, the context has %llu tokens", (unsigned long long)at,
        (unsigned long long)r->position);
}

/* The context loaded, the text as ids. */
static mb_status
prepare(struct reading *r, bool wants_text)
{
    struct call *c = r->c;
    struct mb_slice text = {0};
    mb_status st = mb_arg_str(c->args, "text", wants_text, &text, &c->err);

    if (st == MB_OK && text.size > MAX_TEXT_BYTES)
        st = mb_error_set(&c->err, MB_ERR_TOO_LARGE,
            "text of %zu bytes, at most %zu are possible", text.size,
            MAX_TEXT_BYTES);
    if (st == MB_OK)
        st = context_load(r->oc, &c->err);
    if (st != MB_OK)
        return st;
    r->text_bytes = text.size;
    r->length = mb_context_length(context_model(r->oc));
    r->position = context_position(r->oc);
    st = check_at(r);
    if (st != MB_OK)
        return st;
    if (text.size > 0 || !wants_text)
        st = add_head(r);
    if (st == MB_OK && text.size > 0)
        st = add_text(r, text);
    if (st != MB_OK && c->err.text[0] == 0)
        (void)mb_error_set(&c->err, st, "tokens of %zu bytes", text.size);
    return st;
}

/* ---- what was retrieved when ---- */

/* End a step: note how often each block was chosen in it. */
static void
end_step(struct reading *r)
{
    size_t n;
    const uint32_t *hits = mb_context_hits(context_model(r->oc), &n);
    size_t had = r->seen.size / sizeof *hits;
    const uint32_t *before = (const uint32_t *)(const void *)r->seen.data;

    for (size_t i = 0; i < n; i++) {
        uint32_t old = i < had ? before[i] : 0;
        struct mb_stored_pick pick = {r->step, (uint32_t)i, hits[i] - old};

        if (hits[i] > old &&
            mb_buffer_append(&r->picks, &pick, sizeof pick) != MB_OK)
            break; // enough to be looked at
    }
    mb_buffer_clear(&r->seen);
    if (mb_buffer_append(&r->seen, hits, n * sizeof *hits) != MB_OK)
        mb_buffer_clear(&r->seen);
    r->step++;
}

/* On mb-write. */
static void
on_trace_kept(
    void *arg, struct mb_op *op, mb_status st, const struct mb_error *err)
{
    (void)arg;
    (void)err;
    if (st != MB_OK)
        mb_log(MB_LOG_WARN, "context.trace", "status=%s", mb_status_name(st));
    mb_op_free(op);
}

/* Keep the trace with the context, in place of the last generation's. It is for
 * who looks: nobody waits for it, and a failure costs only that. */
static void
keep_trace(struct reading *r)
{
    struct mb_stored_trace trace = {
        .n_tokens = (uint32_t)r->n_out,
        .step_tokens = (uint32_t)r->step_tokens,
        .picks = (const struct mb_stored_pick *)(const void *)r->picks.data,
        .n = r->picks.size / sizeof(struct mb_stored_pick),
    };
    struct mb_op *op;
    mb_status st = mb_op_context_trace_new(
        mb_slice_cstr(context_stored(r->oc)->name), &trace, &op, NULL);

    if (st != MB_OK)
        return;
    st = mb_store_submit(r->c->d->store, op, on_trace_kept, NULL, NULL);
    if (st != MB_OK)
        on_trace_kept(NULL, op, st, NULL);
}

/* Text of a block, as good as its tokens give it. */
static void
write_block_text(struct reading *r, struct mb_snapshot *snap, uint32_t block)
{
    struct mb_context_record record;
    struct mb_stored_sum sum;
    struct mb_buffer text;
    mb_token_id tokens[MB_BLOCK_ROWS];

    mb_buffer_init(&text, MAX_RESULT_BYTES);
    if (mb_store_context_sum(snap, context_stored(r->oc), block, &sum, NULL) ==
            MB_OK &&
        mb_context_record_read(sum.sum, false, &record, NULL) == MB_OK &&
        record.n_tokens <= MB_BLOCK_ROWS) {
        struct mb_buffer raw;

        for (uint32_t i = 0; i < record.n_tokens; i++) {
            tokens[i] =
                (mb_token_id)mb_get_le32(record.tokens.data + (size_t)i * 4);
        }
        mb_buffer_init(&raw, MAX_RESULT_BYTES);
        if (mb_tokenizer_decode(reader_tokenizer(r->c->d->reader), tokens,
                record.n_tokens, &raw, NULL) != MB_OK ||
            mb_utf8_repair(mb_buffer_slice(&raw), &text) != MB_OK)
            mb_buffer_clear(&text);
        mb_buffer_fini(&raw);
    }
    mb_write_kv_str(&r->c->w, "text", mb_buffer_slice(&text));
    mb_buffer_fini(&text);
}

/* "used": {"blocks": [...]}: those that were chosen most, most first. */
static void
write_used(struct reading *r)
{
    size_t n;
    const uint32_t *hits = mb_context_hits(context_model(r->oc), &n);
    uint32_t best[MAX_SHOWN];
    size_t n_best = 0;
    struct mb_writer *w = &r->c->w;
    struct mb_snapshot *snap = NULL;

    if (n > context_stored(r->oc)->n_blocks)
        n = context_stored(r->oc)->n_blocks;
    for (size_t i = 0; i < n; i++) {
        size_t at;

        if (hits[i] == 0 ||
            (n_best == MAX_SHOWN && hits[i] <= hits[best[n_best - 1]]))
            continue;
        at = n_best < MAX_SHOWN ? n_best++ : n_best - 1;
        for (; at > 0 && hits[best[at - 1]] < hits[i]; at--) {
            best[at] = best[at - 1];
        }
        best[at] = (uint32_t)i;
    }
    if (mb_snapshot_begin(r->c->d->store, &snap, NULL) != MB_OK)
        n_best = 0;
    mb_write_cstr(w, "used");
    mb_write_map(w, 1);
    mb_write_cstr(w, "blocks");
    mb_write_array(w, n_best);
    for (size_t i = 0; i < n_best; i++) {
        mb_write_map(w, 4);
        mb_write_kv_uint(w, "block", best[i]);
        mb_write_kv_uint(w, "at", (uint64_t)best[i] * MB_CONTEXT_BLOCK_TOKENS);
        mb_write_kv_uint(w, "hits", hits[best[i]]);
        write_block_text(r, snap, best[i]);
    }
    mb_snapshot_end(snap);
}

/* ---- replies ---- */

static void
write_f32s(struct mb_writer *w, const char *key, const struct mb_buffer *b)
{
    size_t n = b->size / sizeof(float);

    mb_write_cstr(w, key);
    mb_write_array(w, n);
    for (size_t i = 0; i < n; i++) {
        float f;

        memcpy(&f, b->data + i * sizeof f, sizeof f);
        mb_write_f32(w, f);
    }
}

static void
write_ids(struct mb_writer *w, const struct mb_buffer *b)
{
    const mb_token_id *id = (const mb_token_id *)(const void *)b->data;
    size_t n = b->size / sizeof *id;

    mb_write_cstr(w, "ids");
    mb_write_array(w, n);
    for (size_t i = 0; i < n; i++) {
        mb_write_int(w, id[i]);
    }
}

/* Behind what is each operation's own: where the context is now. */
static void
write_place(struct reading *r)
{
    struct mb_writer *w = &r->c->w;

    // What was only tried is not part of it.
    mb_write_kv_uint(
        w, "position", r->keep ? context_position(r->oc) : r->position);
    mb_write_kv_uint(w, "blocks", context_stored(r->oc)->n_blocks);
    mb_write_kv_uint(w, "took_us", r->took_us);
}

static void
write_appended(struct reading *r)
{
    struct mb_writer *w = &r->c->w;

    mb_write_map(w, 4);
    mb_write_kv_uint(w, "tokens", context_position(r->oc) - r->position);
    write_place(r);
}

static void
write_scored(struct reading *r)
{
    struct mb_writer *w = &r->c->w;
    double bits = r->text_bytes > 0 ? r->sum / LN2 / (double)r->text_bytes : 0;

    mb_write_map(w, r->per_token ? 7 : 6);
    mb_write_kv_uint(w, "tokens", r->n_scored);
    mb_write_kv_f64(w, "nll", r->sum);
    mb_write_kv_f64(w, "bits_per_byte", bits);
    if (r->per_token)
        write_f32s(w, "per_token", &r->floats);
    write_place(r);
}

static void
write_generated(struct reading *r)
{
    struct mb_writer *w = &r->c->w;

    mb_write_map(w, r->logprobs ? 11 : 9);
    mb_write_kv_str(w, "text", mb_buffer_slice(&r->text));
    mb_write_kv_uint(w, "tokens", r->n_out);
    mb_write_kv_uint(w, "prompt_tokens", n_ids(r) - r->n_head);
    mb_write_kv_cstr(w, "finish", mb_finish_name(r->finish));
    if (r->logprobs) {
        write_ids(w, &r->out);
        write_f32s(w, "logprobs", &r->floats);
    }
    write_used(r);
    mb_write_kv_uint(w, "seed", r->seed);
    write_place(r);
}

/* ---- the end ---- */

/* The token that stands behind the last one that was read. */
static mb_status
carry_next(struct reading *r, struct mb_error *err)
{
    struct mb_context *model = context_model(r->oc);
    uint64_t n_read = mb_context_length(model) - r->length;
    size_t n_given = n_ids(r);
    size_t n_all = n_given + r->out.size / sizeof(mb_token_id);
    const mb_token_id *out = (const mb_token_id *)(const void *)r->out.data;
    mb_status st = MB_OK;

    if (n_all == 0)
        return MB_OK;
    // Where the text ended by a stop token all others were read.
    if (n_read >= n_all) {
        n_read = n_all - 1;
        st = mb_context_truncate(model, r->length + n_read, err);
    }
    context_set_carry(
        r->oc, n_read < n_given ? ids(r)[n_read] : out[n_read - n_given]);
    return st;
}

/* Tell how far it came, for who wants to go on. */
static mb_status
tell_progress(struct reading *r, mb_status st)
{
    uint64_t n_text = context_position(r->oc) - r->position;
    size_t n_marks = r->marks.size / sizeof(uint32_t);
    uint32_t bytes = 0;
    char cause[MB_ERROR_TEXT];

    // A bos of an empty context is none of the text's.
    if (r->position == 0 && r->n_head > 0 && n_text > 0)
        n_text--;
    if (n_text > n_marks)
        n_text = n_marks;
    if (n_text > 0)
        memcpy(
            &bytes, r->marks.data + (n_text - 1) * sizeof bytes, sizeof bytes);
    (void)snprintf(cause, sizeof cause, "%s",
        r->err.text[0] != 0 ? r->err.text : mb_status_text(st));
    return mb_error_set(&r->err, st,
        "%llu of %zu tokens were appended, up to byte %u: %s",
        (unsigned long long)n_text, n_marks, (unsigned)bytes, cause);
}

/* What became of the text itself. */
static mb_status
judge(struct reading *r)
{
    if (r->status == MB_OK && r->kind != MB_TASK_GENERATE &&
        r->finish == MB_FINISH_DEADLINE)
        return mb_error_set(&r->err, MB_ERR_TIMEOUT, "the time was over");
    return r->status;
}

/* Have the context as it was read from now on. */
static mb_status
settle(struct reading *r)
{
    mb_status st = judge(r);
    struct mb_error err = {0};
    mb_status saved = carry_next(r, &err);

    if (saved == MB_OK)
        saved = context_save(r->oc, &err);
    else
        context_unload(r->oc);
    if (saved != MB_OK && st == MB_OK) {
        r->err = err;
        return saved;
    }
    return st != MB_OK && saved == MB_OK ? tell_progress(r, st) : st;
}

static void
write_result(struct reading *r)
{
    call_begin(r->c);
    if (r->kind == MB_TASK_APPEND)
        write_appended(r);
    else if (r->kind == MB_TASK_SCORE)
        write_scored(r);
    else
        write_generated(r);
}

/* On a worker: what is left to do once the model is done. */
static void
finish(void *arg, struct worker *w)
{
    struct reading *r = arg;
    struct call *c = r->c;
    struct open_context *oc = r->oc;
    mb_status st;

    (void)w;
    st = r->keep ? settle(r) : judge(r);
    if (st == MB_OK && r->kind == MB_TASK_GENERATE)
        keep_trace(r);
    if (st == MB_OK)
        write_result(r);
    if (!r->keep) {
        struct mb_error err = {0};
        mb_status back = context_end_scratch(oc, &err);

        if (back != MB_OK && st == MB_OK) {
            st = back;
            r->err = err;
        }
    }
    contexts_leave(oc);
    call_finish(c, st, &r->err);
    reading_free(r);
}

/* On mb-model. */
static void
on_piece(void *arg, const struct mb_engine_piece *piece)
{
    struct reading *r = arg;
    struct call *c = r->c;

    r->n_out += piece->n;
    if (r->n_out >= (r->step + 1) * r->step_tokens)
        end_step(r);
    if (!r->stream || (piece->text.size == 0 && !r->logprobs))
        return;
    call_begin_part(c);
    mb_write_map(&c->w, r->logprobs ? 3 : 1);
    mb_write_kv_str(&c->w, "text", piece->text);
    if (r->logprobs)
        call_write_tokens(&c->w, piece->tokens, piece->logprobs, piece->n);
    if (!call_send_part(c))
        mb_engine_cancel(reader_engine(c->d->reader), r->engine_id);
}

/* On mb-model: copy what ends with this call. */
static void
on_done(void *arg, const struct mb_engine_result *e)
{
    struct reading *r = arg;
    const char *lost = server_lost(r->c->rq);
    mb_status st = e->status;

    r->err = e->err;
    r->finish = e->finish;
    r->sum = e->sum;
    r->n_scored = e->n_scored;
    r->n_out = e->n_tokens;
    r->took_us = e->total_us;
    if (st == MB_OK && lost != NULL && r->kind == MB_TASK_GENERATE)
        st = mb_error_set(&r->err, MB_ERR_CANCELLED, "%s", lost);
    if (st == MB_OK && r->kind == MB_TASK_SCORE && !isfinite(r->sum))
        st = mb_error_set(&r->err, MB_ERR_CORRUPT,
            "a score is not a number: the model is damaged");
    if (st == MB_OK)
        st = mb_buffer_append(&r->text, e->text.data, e->text.size);
    if (st == MB_OK && e->n_tokens > 0)
        st = mb_buffer_append(
            &r->out, e->tokens, e->n_tokens * sizeof *e->tokens);
    if (st == MB_OK && r->per_token)
        st = mb_buffer_append(&r->floats, e->nll, e->n_scored * sizeof *e->nll);
    if (st == MB_OK && r->logprobs)
        st = mb_buffer_append(
            &r->floats, e->logprobs, e->n_tokens * sizeof *e->logprobs);
    if (st != MB_OK && r->err.text[0] == 0)
        (void)mb_error_set(&r->err, st, "a result");
    r->status = st;
    if (r->kind == MB_TASK_GENERATE && r->step_tokens > 0)
        end_step(r);
    r->task.fn = finish;
    r->task.arg = r;
    dispatch_post(r->c->d->dispatch, false, &r->task);
}

/* ---- the commands ---- */

static struct reading *
reading_new(struct call *c, mb_task kind)
{
    struct reading *r = mb_calloc(1, sizeof *r);

    if (r == NULL)
        return NULL;
    r->c = c;
    r->kind = kind;
    mb_buffer_init(&r->ids, MAX_TOKEN_BYTES);
    mb_buffer_init(&r->marks, MAX_TOKEN_BYTES);
    mb_buffer_init(
        &r->picks, MB_MAX_CONTEXT_PICKS * sizeof(struct mb_stored_pick));
    mb_buffer_init(&r->seen, MAX_TOKEN_BYTES);
    mb_buffer_init(&r->text, MAX_RESULT_BYTES);
    mb_buffer_init(&r->out, MAX_RESULT_BYTES);
    mb_buffer_init(&r->floats, MAX_RESULT_BYTES);
    return r;
}

/* Give q, filled but for what all share, to the model. */
static mb_status
submit(struct reading *r, struct mb_engine_request *q, bool *later)
{
    struct call *c = r->c;
    struct mb_error err = {0};
    mb_status st;

    q->task = r->kind;
    q->tokens = ids(r);
    q->context = context_model(r->oc);
    q->deadline_ns = call_model_deadline(c);
    q->on_done = on_done;
    q->arg = r;
    mb_context_clear_hits(q->context);
    if (!r->keep)
        context_begin_scratch(r->oc);
    *later = true;
    // Once it is submitted the call may be gone any time.
    st = mb_engine_submit(reader_engine(c->d->reader), q, &r->engine_id, &err);
    if (st == MB_OK)
        return MB_OK;
    *later = false;
    c->err = err;
    if (!r->keep && context_end_scratch(r->oc, &err) != MB_OK)
        c->err = err;
    return st;
}

/* Nothing for the model to do: settle and reply at once. */
static mb_status
finish_now(struct reading *r)
{
    mb_status st = MB_OK;

    if (r->keep)
        st = settle(r);
    if (st != MB_OK) {
        r->c->err = r->err;
        return st;
    }
    write_result(r);
    return MB_OK;
}

static mb_status
append(struct reading *r, bool *later)
{
    struct mb_engine_request q = {0};
    mb_status st;

    r->keep = true;
    st = prepare(r, true);
    if (st != MB_OK)
        return st;
    if (n_ids(r) < 2)
        return finish_now(r);
    q.n = n_ids(r) - 1;
    return submit(r, &q, later);
}

static mb_status
score(struct reading *r, bool *later)
{
    struct call *c = r->c;
    struct mb_engine_request q = {0};
    mb_status st = mb_arg_bool(c->args, "keep", false, &r->keep, &c->err);

    if (st == MB_OK)
        st = mb_arg_bool(c->args, "per_token", false, &r->per_token, &c->err);
    if (st == MB_OK)
        st = prepare(r, true);
    if (st != MB_OK)
        return st;
    if (n_ids(r) < 2)
        return finish_now(r);
    q.n = n_ids(r);
    q.n_context = r->n_head;
    return submit(r, &q, later);
}

static mb_status
generate(struct reading *r, bool *later)
{
    struct call *c = r->c;
    struct mb_engine_request q = {.on_piece = on_piece};
    uint64_t max_tokens = 0;
    mb_status st = mb_arg_u64(c->args, "max_tokens", DEFAULT_TOKENS, 1,
        MAX_TOKENS, &max_tokens, &c->err);

    if (st == MB_OK)
        st = mb_arg_bool(c->args, "keep", false, &r->keep, &c->err);
    if (st == MB_OK)
        st = mb_arg_bool(c->args, "stream", false, &r->stream, &c->err);
    if (st == MB_OK)
        st = mb_arg_bool(c->args, "logprobs", false, &r->logprobs, &c->err);
    if (st == MB_OK)
        st = call_read_sampling(c, &q.sampling);
    if (st == MB_OK)
        st = call_read_stops(c, r->stops, &r->n_stops);
    if (st == MB_OK)
        st = prepare(r, false);
    if (st == MB_OK && n_ids(r) == 0)
        st = mb_error_set(&c->err, MB_ERR_BAD_ARG,
            "text: there is none, and the context is empty");
    if (st != MB_OK)
        return st;
    q.n = n_ids(r);
    q.max_tokens = (size_t)max_tokens;
    q.logprobs = r->logprobs;
    q.stops = r->stops;
    q.n_stops = r->n_stops;
    q.stop_tokens = reader_ends(c->d->reader, &q.n_stop_tokens);
    r->seed = q.sampling.seed;
    r->step_tokens = ((size_t)max_tokens + TRACE_STEPS - 1) / TRACE_STEPS;
    return submit(r, &q, later);
}

static mb_status
run(struct call *c, mb_task kind,
    mb_status (*fn)(struct reading *r, bool *later), bool *later)
{
    struct open_context *oc = NULL;
    struct reading *r;
    mb_status st = context_enter(c, &oc, later);

    if (st != MB_OK || *later)
        return st;
    r = reading_new(c, kind);
    if (r == NULL) {
        contexts_leave(oc);
        return mb_error_set(&c->err, MB_ERR_NOMEM, "%s", c->command->name);
    }
    r->oc = oc;
    st = fn(r, later);
    // Once it is submitted, r is no longer ours to look at.
    if (*later)
        return st;
    contexts_leave(oc);
    reading_free(r);
    return st;
}

COMMAND_HANDLER(cmd_context_append)
{
    (void)w;
    return run(c, MB_TASK_APPEND, append, later);
}

COMMAND_HANDLER(cmd_context_score)
{
    (void)w;
    return run(c, MB_TASK_SCORE, score, later);
}

COMMAND_HANDLER(cmd_context_generate)
{
    (void)w;
    return run(c, MB_TASK_GENERATE, generate, later);
}
