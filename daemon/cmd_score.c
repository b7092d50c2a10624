/* SPDX-License-Identifier: Apache-2.0
 * daemon/cmd_score.c - score: how likely the model finds a text.
 *
 * Threads: a worker, then mb-model. */
#include "banks.h"
#include "cmd_read.h"
#include "memory.h"

#include <math.h>
#include <string.h>

#define MAX_TEXT_BYTES  (4u << 20) /* of context and text */
#define MAX_TOKEN_BYTES ((size_t)256 << 20)
#define LN2             0.69314718055994530942

/* One text on its way; owned by mb-model once it is submitted. */
struct scoring {
    struct call *c;
    bool per_token;
    bool asks; /* the model is to be asked what to look for first */
    size_t text_bytes;
    size_t n_context;
    size_t window;
    size_t stride; /* 0: it is read in one window */
    struct mb_buffer used;
    struct bank_loan *loan; /* NULL: no memory blocks */
    /* For memory_pack. */
    struct mb_slice text;
};

static void
scoring_free(struct scoring *s)
{
    if (s == NULL)
        return;
    mb_buffer_fini(&s->used);
    bank_loan_free(s->loan);
    mb_free(s);
}

/* ---- tokens ---- */

struct encoding {
    const struct reader *r;
    struct mb_slice text;
};

/* What the model reads when `context` is put together: for memory_pack. */
static mb_status
encode_context(void *arg, struct mb_slice context, struct mb_buffer *tokens,
    struct mb_error *err)
{
    const struct encoding *e = arg;
    size_t n_context;

    return reader_encode_both(e->r, context, e->text, tokens, &n_context, err);
}

/* ---- the reply ---- */

static void
write_per_token(struct mb_writer *w, const struct mb_engine_result *r)
{
    mb_write_cstr(w, "per_token");
    mb_write_array(w, r->n_scored);
    for (size_t i = 0; i < r->n_scored; i++) {
        mb_write_f32(w, r->nll[i]);
    }
}

static void
write_result(struct scoring *s, const struct mb_engine_result *r)
{
    struct mb_writer *w = &s->c->w;
    double bits = s->text_bytes > 0 ? r->sum / LN2 / (double)s->text_bytes : 0;

    call_begin(s->c);
    mb_write_map(w, s->per_token ? 9 : 8);
    mb_write_kv_uint(w, "tokens", r->n_scored);
    mb_write_kv_f64(w, "nll", r->sum);
    mb_write_kv_f64(w, "bits_per_byte", bits);
    if (s->per_token)
        write_per_token(w, r);
    mb_write_kv_uint(w, "context_tokens", s->n_context);
    mb_write_kv_uint(w, "window", s->window);
    mb_write_kv_uint(w, "stride", s->stride);
    mb_write_raw(w, mb_buffer_slice(&s->used));
    mb_write_kv_uint(w, "took_us", r->total_us);
}

static void
on_done(void *arg, const struct mb_engine_result *r)
{
    struct scoring *s = arg;
    struct mb_error err = r->err;
    mb_status st = r->status;

    if (st == MB_OK && r->finish == MB_FINISH_DEADLINE)
        st =
            mb_error_set(&err, MB_ERR_TIMEOUT, "after %zu tokens", r->n_scored);
    if (st == MB_OK && !isfinite(r->sum))
        st = mb_error_set(&err, MB_ERR_CORRUPT,
            "a score is not a number: the model is damaged");
    if (st == MB_OK)
        write_result(s, r);
    call_finish(s->c, st, &err);
    scoring_free(s);
}

/* ---- the command ---- */

/* Context and text as ids; passages in front of the context. */
static mb_status
pack(struct scoring *s, struct worker *w, struct mb_buffer *ids)
{
    struct call *c = s->c;
    struct reader *r = c->d->reader;
    struct encoding e = {r, s->text};
    struct memory memory;
    struct memory_packing p = {
        .c = c,
        .w = w,
        .memory = &memory,
        .room = s->window,
        .encode = encode_context,
        .arg = &e,
        .tokens = ids,
    };
    struct mb_writer used;
    mb_status st = mb_arg_str(c->args, "context", false, &p.prompt, &c->err);

    if (st == MB_OK && p.prompt.size + s->text.size > MAX_TEXT_BYTES)
        st = mb_error_set(&c->err, MB_ERR_TOO_LARGE,
            "context and text of %zu bytes, at most %u are possible",
            p.prompt.size + s->text.size, MAX_TEXT_BYTES);
    if (st == MB_OK)
        st = memory_read(c, &memory);
    // Without a context the text itself is what is looked for.
    if (st == MB_OK && memory.query.size == 0 && p.prompt.size == 0)
        memory.query = s->text;
    if (st == MB_OK)
        st = memory_ask(c, w, &memory, p.prompt, &s->asks);
    if (st != MB_OK || s->asks)
        return st;
    st = memory_pack(&p);
    if (st != MB_OK)
        return st;
    // Blocks of the context's path; without a context, of the text's.
    st = memory_lend(
        c, w, &memory, p.prompt.size > 0 ? p.prompt : s->text, &s->loan);
    if (st != MB_OK)
        return st;
    mb_writer_init(&used, &s->used);
    memory_write_used(&used, p.used, p.n_used, s->loan);
    mb_buffer_clear(ids);
    st = reader_encode_both(r, p.text, s->text, ids, &s->n_context, &c->err);
    if (st == MB_OK && used.status != MB_OK)
        st = mb_error_set(&c->err, used.status, "passages");
    return st;
}

static mb_status
submit(struct scoring *s, struct worker *w, bool *later)
{
    struct call *c = s->c;
    struct reader *r = c->d->reader;
    size_t n_head = reader_n_head(r);
    uint64_t stride;
    struct mb_buffer ids;
    struct mb_error err = {0};
    uint64_t id;
    mb_status st;

    s->window = mb_engine_window(reader_engine(r));
    mb_buffer_init(&ids, MAX_TOKEN_BYTES);
    st = mb_arg_u64(c->args, "stride", (s->window - n_head + 1) / 2, 1,
        s->window - n_head, &stride, &c->err);
    if (st == MB_OK)
        st = pack(s, w, &ids);
    if (st == MB_OK && !s->asks && ids.size == 0)
        st = mb_error_set(&c->err, MB_ERR_BAD_ARG, "text has no tokens");
    if (st == MB_OK && !s->asks) {
        struct mb_engine_request q = {
            .task = MB_TASK_SCORE,
            .tokens = (const mb_token_id *)(const void *)ids.data,
            .n = ids.size / sizeof(mb_token_id),
            .n_head = n_head,
            .n_context = s->n_context,
            .stride = (size_t)stride,
            .deadline_ns = call_model_deadline(c),
            .on_done = on_done,
            .arg = s,
            .bank = bank_loan_lender(s->loan),
        };

        s->stride = q.n > s->window + 1 ? q.stride : 0;
        *later = true;
        // Once it is submitted the call may be gone any time.
        st = mb_engine_submit(reader_engine(r), &q, &id, &err);
        if (st != MB_OK) {
            *later = false;
            c->err = err;
        }
    }
    mb_buffer_fini(&ids);
    return st;
}

COMMAND_HANDLER(cmd_score)
{
    struct scoring *s;
    mb_status st = reader_check(c->d->reader, "score", &c->err);

    if (st != MB_OK)
        return st;
    s = mb_calloc(1, sizeof *s);
    if (s == NULL)
        return mb_error_set(&c->err, MB_ERR_NOMEM, "score");
    s->c = c;
    mb_buffer_init(&s->used, CALL_MAX_REPLY);
    st = mb_arg_str(c->args, "text", true, &s->text, &c->err);
    s->text_bytes = s->text.size;
    if (st == MB_OK)
        st = mb_arg_bool(c->args, "per_token", false, &s->per_token, &c->err);
    if (st == MB_OK)
        st = submit(s, w, later);
    // Once it is submitted, s is no longer ours to look at.
    if (st != MB_OK || !*later) {
        scoring_free(s);
        *later = st == MB_OK;
        if (st == MB_OK)
            call_ask(c, &c->vectors);
    }
    return st;
}
