/* SPDX-License-Identifier: Apache-2.0
 * daemon/cmd_generate.c - generate: text that goes on from a prompt.
 *
 * A worker packs the prompt (with passages, where memory asks for them), and
 * the model has the call from then on. Its callbacks send the parts of a stream
 * and the reply. A client that is gone, or does not read its stream, is noticed
 * when a part cannot be sent: its text is not generated any further.
 * Threads: a worker, then mb-model. */
#include "banks.h"
#include "cmd_read.h"
#include "memory.h"
#include "sampling.h"

#include <float.h>
#include <string.h>

#define MAX_TOKEN_BYTES     ((size_t)64 << 20) /* of a prompt's ids */
#define DEFAULT_TOKENS      128
#define MAX_TOKENS          1000000
#define DEFAULT_TEMPERATURE 0.8 /* these four as llama.cpp has them */
#define DEFAULT_TOP_K       40
#define DEFAULT_TOP_P       0.95
#define DEFAULT_MIN_P       0.05

/* One text on its way; owned by mb-model once it is submitted. */
struct generation {
    struct call *c;
    uint64_t id; /* of the engine's; written before the first callback */
    bool stream;
    bool logprobs;
    bool asks; /* the model is to be asked what to look for first */
    size_t n_prompt;
    uint64_t seed;
    struct bank_loan *loan; /* NULL: no memory blocks */
    struct mb_buffer used;  /* msgpack: the pair "used" */
    struct mb_slice stops[MB_ENGINE_MAX_STOPS];
    size_t n_stops;
};

static void
generation_free(struct generation *g)
{
    if (g == NULL)
        return;
    mb_buffer_fini(&g->used);
    bank_loan_free(g->loan);
    mb_free(g);
}

/* ---- arguments ---- */

/* A different one each time. */
static uint64_t
any_seed(void)
{
    uint64_t now[] = {mb_clock_ns(), mb_clock_wall_ms()};

    // 53 bits: every msgpack library can read it back.
    return mb_hash64(now, sizeof now, 0) >> 11;
}

/* As a float that is not 0, which means off, unless p is. */
static float
small_part(double p)
{
    return p > 0 && p < (double)FLT_MIN ? FLT_MIN : (float)p;
}

mb_status
call_read_sampling(struct call *c, struct mb_sampling *out)
{
    const struct mb_value *args = c->args;
    struct mb_error *err = &c->err;
    double temperature;
    double top_p;
    double min_p;
    double penalty;
    uint64_t top_k;
    uint64_t window;
    mb_status st = mb_arg_double(args, "temperature", DEFAULT_TEMPERATURE, 0,
        (double)MB_SAMPLER_MAX_TEMPERATURE, &temperature, err);

    if (st == MB_OK)
        st = mb_arg_u64(
            args, "top_k", DEFAULT_TOP_K, 0, UINT32_MAX, &top_k, err);
    if (st == MB_OK)
        st = mb_arg_double(args, "top_p", DEFAULT_TOP_P, 0, 1, &top_p, err);
    if (st == MB_OK)
        st = mb_arg_double(args, "min_p", DEFAULT_MIN_P, 0, 1, &min_p, err);
    if (st == MB_OK)
        st = mb_arg_double(args, "repeat_penalty", 1, 0.01, 100, &penalty, err);
    if (st == MB_OK)
        st = mb_arg_u64(
            args, "repeat_window", 0, 0, MB_SAMPLER_MAX_WINDOW, &window, err);
    if (st == MB_OK)
        st = mb_arg_u64(
            args, "seed", any_seed(), 0, UINT64_MAX, &out->seed, err);
    if (st != MB_OK)
        return st;
    out->temperature = (float)temperature;
    out->top_k = (uint32_t)top_k;
    out->top_p = small_part(top_p);
    out->min_p = small_part(min_p);
    out->repeat_penalty = (float)penalty;
    out->repeat_window = (uint32_t)window;
    return MB_OK;
}

mb_status
call_read_stops(
    struct call *c, struct mb_slice stops[MB_ENGINE_MAX_STOPS], size_t *n_stops)
{
    const struct mb_value *stop = mb_value_get(c->args, "stop");
    const struct mb_value *items = stop;
    size_t n = 1;

    if (stop == NULL)
        return MB_OK;
    if (stop->type == MB_TYPE_ARRAY) {
        items = stop->array.items;
        n = stop->array.n;
    }
    if (n > MB_ENGINE_MAX_STOPS)
        return mb_error_set(&c->err, MB_ERR_TOO_LARGE,
            "%zu stop strings, at most %d are possible", n,
            MB_ENGINE_MAX_STOPS);
    for (size_t i = 0; i < n; i++) {
        if (items[i].type != MB_TYPE_STR)
            return mb_error_set(
                &c->err, MB_ERR_BAD_ARG, "stop: item %zu is not a string", i);
        stops[i] = items[i].s;
    }
    *n_stops = n;
    return MB_OK;
}

/* ---- the prompt ---- */

static mb_status
encode_plain(void *arg, struct mb_slice text, struct mb_buffer *tokens,
    struct mb_error *err)
{
    const struct reader *r = arg;

    return reader_encode(r, true, text, tokens, err);
}

#define MAX_MESSAGES 1024
#define MAX_CHAT     ((size_t)64 << 20) /* bytes */

/* A conversation; what memory packs stands in the user's last message. */
struct conversation {
    const struct reader *r;
    struct mb_chat_message *messages; /* (n) in the call's arena */
    size_t n;
    size_t last_user;
};

static mb_status
encode_chat(void *arg, struct mb_slice text, struct mb_buffer *tokens,
    struct mb_error *err)
{
    const struct conversation *v = arg;
    const struct mb_chat_options opt = {0};
    struct mb_prompt prompt = {.flags = MB_PROMPT_SPECIAL | MB_PROMPT_ENDS};
    const struct mb_chat *chat;
    struct mb_buffer whole;
    struct mb_buffer plain;
    mb_status st = reader_chat(v->r, &chat, err);

    if (st != MB_OK)
        return st;
    mb_buffer_init(&whole, MAX_CHAT);
    mb_buffer_init(&plain, MAX_CHAT);
    v->messages[v->last_user].content = text;
    st = mb_chat_render(chat, v->messages, v->n, &opt, &whole, &plain, err);
    prompt.text = mb_buffer_slice(&whole);
    prompt.plain = (const struct mb_span *)(const void *)plain.data;
    prompt.n_plain = plain.size / sizeof *prompt.plain;
    if (st == MB_OK)
        st = mb_tokenizer_encode_prompt(
            reader_tokenizer(v->r), NULL, &prompt, tokens, err);
    mb_buffer_fini(&whole);
    mb_buffer_fini(&plain);
    return st;
}

/* Read args.messages; *last is the user's last one. */
static mb_status
read_messages(struct call *c, const struct mb_value *list,
    struct conversation *v, struct mb_slice *last)
{
    size_t n = list->array.n;
    mb_status st = MB_OK;

    v->r = c->d->reader;
    v->n = n;
    v->last_user = SIZE_MAX;
    if (n > MAX_MESSAGES)
        return mb_error_set(&c->err, MB_ERR_TOO_LARGE,
            "%zu messages, at most %d are possible", n, MAX_MESSAGES);
    v->messages = mb_arena_calloc(c->arena, n + 1, sizeof *v->messages);
    if (v->messages == NULL)
        return mb_error_set(&c->err, MB_ERR_NOMEM, "%zu messages", n);
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        struct mb_chat_message *m = &v->messages[i];

        if (list->array.items[i].type != MB_TYPE_MAP)
            return mb_error_set(
                &c->err, MB_ERR_BAD_ARG, "messages: item %zu is not a map", i);
        st = mb_arg_str(&list->array.items[i], "role", true, &m->role, &c->err);
        if (st == MB_OK)
            st = mb_arg_str(
                &list->array.items[i], "content", true, &m->content, &c->err);
        if (st == MB_OK && mb_slice_equal(m->role, mb_slice_cstr("user")))
            v->last_user = i;
    }
    if (st == MB_OK && v->last_user == SIZE_MAX)
        st = mb_error_set(
            &c->err, MB_ERR_BAD_ARG, "messages: none is of the user");
    if (st == MB_OK)
        *last = v->messages[v->last_user].content;
    return st;
}

/* What the model is to read, as args have it: prompt or messages. */
static mb_status
read_prompt(struct call *c, struct memory_packing *p, struct conversation *v)
{
    const struct mb_value *messages = mb_value_get(c->args, "messages");

    if ((messages == NULL) == (mb_value_get(c->args, "prompt") == NULL))
        return mb_error_set(&c->err, MB_ERR_BAD_ARG,
            "generate: wants either prompt or messages");
    if (messages == NULL)
        return mb_arg_str(c->args, "prompt", true, &p->prompt, &c->err);
    p->encode = encode_chat;
    p->arg = v;
    return read_messages(c, messages, v, &p->prompt);
}

/* Tokens of the prompt, with the passages that memory asks for. */
static mb_status
pack_prompt(struct call *c, struct worker *w, struct generation *g,
    size_t max_tokens, struct mb_buffer *tokens)
{
    struct reader *r = c->d->reader;
    size_t window = mb_engine_window(reader_engine(r));
    struct conversation conversation;
    struct memory memory;
    struct memory_packing p = {
        .c = c,
        .w = w,
        .memory = &memory,
        // A text that may fill the window leaves half of it to the prompt.
        .room = window - (max_tokens < window / 2 ? max_tokens : window / 2),
        .encode = encode_plain,
        .arg = r,
        .tokens = tokens,
    };
    struct mb_writer used;
    mb_status st = read_prompt(c, &p, &conversation);

    if (st == MB_OK)
        st = memory_read(c, &memory);
    if (st == MB_OK)
        st = memory_ask(c, w, &memory, p.prompt, &g->asks);
    if (st != MB_OK || g->asks)
        return st;
    st = memory_pack(&p);
    if (st == MB_OK)
        st = memory_lend(c, w, &memory, p.prompt, &g->loan);
    if (st != MB_OK)
        return st;
    mb_writer_init(&used, &g->used);
    memory_write_used(&used, p.used, p.n_used, g->loan);
    g->n_prompt = tokens->size / sizeof(mb_token_id);
    return used.status == MB_OK
               ? MB_OK
               : mb_error_set(&c->err, used.status, "passages");
}

/* ---- replies ---- */

void
call_write_tokens(struct mb_writer *w, const mb_token_id *ids,
    const float *logprobs, size_t n)
{
    mb_write_cstr(w, "ids");
    mb_write_array(w, n);
    for (size_t i = 0; i < n; i++) {
        mb_write_int(w, ids[i]);
    }
    mb_write_cstr(w, "logprobs");
    mb_write_array(w, n);
    for (size_t i = 0; i < n; i++) {
        mb_write_f32(w, logprobs[i]);
    }
}

static void
on_piece(void *arg, const struct mb_engine_piece *piece)
{
    struct generation *g = arg;
    struct call *c = g->c;

    if (!g->stream || (piece->text.size == 0 && !g->logprobs))
        return;
    call_begin_part(c);
    mb_write_map(&c->w, g->logprobs ? 3 : 1);
    mb_write_kv_str(&c->w, "text", piece->text);
    if (g->logprobs)
        call_write_tokens(&c->w, piece->tokens, piece->logprobs, piece->n);
    if (!call_send_part(c))
        mb_engine_cancel(reader_engine(c->d->reader), g->id);
}

static void
write_result(struct generation *g, const struct mb_engine_result *r)
{
    struct mb_writer *w = &g->c->w;

    call_begin(g->c);
    mb_write_map(w, g->logprobs ? 10 : 8);
    mb_write_kv_str(w, "text", r->text);
    mb_write_kv_uint(w, "tokens", r->n_tokens);
    mb_write_kv_uint(w, "prompt_tokens", g->n_prompt);
    mb_write_kv_cstr(w, "finish", mb_finish_name(r->finish));
    mb_write_raw(w, mb_buffer_slice(&g->used));
    if (g->logprobs)
        call_write_tokens(w, r->tokens, r->logprobs, r->n_tokens);
    mb_write_kv_uint(w, "seed", g->seed);
    mb_write_kv_uint(w, "wait_us", r->wait_us);
    mb_write_kv_uint(w, "took_us", r->total_us);
}

static void
on_done(void *arg, const struct mb_engine_result *r)
{
    struct generation *g = arg;
    struct call *c = g->c;
    const char *lost = server_lost(c->rq);
    struct mb_error err = r->err;
    mb_status st = r->status;

    if (st == MB_OK && lost != NULL)
        st = mb_error_set(&err, MB_ERR_CANCELLED, "%s", lost);
    else if (st == MB_OK && r->finish == MB_FINISH_DEADLINE && r->n_tokens == 0)
        st = mb_error_set(
            &err, MB_ERR_TIMEOUT, "before the first token was generated");
    if (st == MB_OK)
        write_result(g, r);
    call_finish(c, st, &err);
    generation_free(g);
}

/* ---- the command ---- */

static mb_status
submit(struct call *c, struct worker *w, struct generation *g, bool *later)
{
    struct reader *r = c->d->reader;
    struct mb_engine_request q = {
        .task = MB_TASK_GENERATE,
        .n_head = reader_n_head(r),
        .deadline_ns = call_model_deadline(c),
        .on_piece = on_piece,
        .on_done = on_done,
        .arg = g,
    };
    struct mb_buffer tokens;
    struct mb_error err = {0};
    uint64_t max_tokens;
    mb_status st = mb_arg_u64(c->args, "max_tokens", DEFAULT_TOKENS, 1,
        MAX_TOKENS, &max_tokens, &c->err);

    mb_buffer_init(&tokens, MAX_TOKEN_BYTES);
    if (st == MB_OK)
        st = call_read_sampling(c, &q.sampling);
    if (st == MB_OK)
        st = call_read_stops(c, g->stops, &g->n_stops);
    if (st == MB_OK)
        st = pack_prompt(c, w, g, (size_t)max_tokens, &tokens);
    if (st == MB_OK && !g->asks && tokens.size == 0)
        st = mb_error_set(&c->err, MB_ERR_BAD_ARG, "prompt has no tokens");
    if (st == MB_OK && !g->asks) {
        // Buffers come from malloc: aligned for ids.
        q.tokens = (const mb_token_id *)(const void *)tokens.data;
        q.n = g->n_prompt;
        q.max_tokens = (size_t)max_tokens;
        q.logprobs = g->logprobs;
        q.stops = g->stops;
        q.n_stops = g->n_stops;
        q.bank = bank_loan_lender(g->loan);
        q.stop_tokens = reader_ends(r, &q.n_stop_tokens);
        g->seed = q.sampling.seed;
        *later = true;
        // Once it is submitted the call may be gone any time.
        st = mb_engine_submit(reader_engine(r), &q, &g->id, &err);
        if (st != MB_OK) {
            *later = false;
            c->err = err;
        }
    }
    mb_buffer_fini(&tokens);
    return st;
}

COMMAND_HANDLER(cmd_generate)
{
    struct generation *g = NULL;
    mb_status st = reader_check(c->d->reader, "generate", &c->err);

    if (st == MB_OK) {
        g = mb_calloc(1, sizeof *g);
        if (g == NULL)
            return mb_error_set(&c->err, MB_ERR_NOMEM, "generate");
        g->c = c;
        mb_buffer_init(&g->used, CALL_MAX_REPLY);
        st = mb_arg_bool(c->args, "stream", false, &g->stream, &c->err);
    }
    if (st == MB_OK)
        st = mb_arg_bool(c->args, "logprobs", false, &g->logprobs, &c->err);
    if (st == MB_OK)
        st = submit(c, w, g, later);
    // Once it is submitted, g is no longer ours to look at.
    if (st != MB_OK || !*later) {
        generation_free(g);
        *later = st == MB_OK;
        if (st == MB_OK)
            call_ask(c, &c->vectors);
    }
    return st;
}
