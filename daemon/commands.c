/* SPDX-License-Identifier: Apache-2.0
 * daemon/commands.c - the table of operations, and a request's way through it.
 *
 * mb-io looks only at op and id of a message and decides where it goes: a read
 * that will be quick is answered on the spot when nothing else waits, since
 * handing it to a worker and back costs two wake-ups; other reads go to the
 * quick queue, puts and large messages to the bulk queue. The message is
 * unpacked by whoever runs it.
 * Invariants: every request gets exactly one reply; a handler sees arguments
 * of the right types, and strings that are valid UTF-8 (but for put, which
 * looks at them itself).
 * Threads: as commands.h says. */
#include "commands.h"

#include <string.h>

#include "batch.h"

#define MAX_VALUES   4000000u /* in one message */
#define SMALL_BYTES  65536u   /* larger messages go to the bulk queue */
#define MAX_OP_SHOWN 40

/* clang-format off */
#define COLLECTION {"collection", ARG_STR, true}

const struct command commands[] = {
    {"ping", cmd_ping, COMMAND_READ, {{0}}},
    {"collections", cmd_collections, COMMAND_READ, {
        {"name", ARG_STR, false}}},
    {"create", cmd_create, COMMAND_WRITE, {
        {"name", ARG_STR, true},
        {"settings", ARG_MAP, false},
        {"exist_ok", ARG_BOOL, false}}},
    {"drop", cmd_drop, COMMAND_WRITE, {
        {"name", ARG_STR, true}}},
    {"put", cmd_put, COMMAND_BULK, {
        COLLECTION,
        {"documents", ARG_ARRAY, true},
        {"wait", ARG_STR, false},
        {"repair", ARG_BOOL, false}}},
    {"get", cmd_get, COMMAND_READ, {
        COLLECTION,
        {"id", ARG_STR, false},
        {"ids", ARG_ARRAY, false},
        {"start", ARG_INT, false},
        {"end", ARG_INT, false},
        {"fields", ARG_ARRAY, false}}},
    {"list", cmd_list, COMMAND_READ, {
        COLLECTION,
        {"after", ARG_STR, false},
        {"limit", ARG_INT, false},
        {"filter", ARG_MAP, false},
        {"fields", ARG_ARRAY, false}}},
    {"delete", cmd_delete, COMMAND_WRITE, {
        COLLECTION,
        {"ids", ARG_ARRAY, false},
        {"filter", ARG_MAP, false}}},
    {"query", cmd_query, COMMAND_READ, {
        COLLECTION,
        {"text", ARG_STR, false},
        {"vector", ARG_BIN | ARG_ARRAY, false},
        {"queries", ARG_ARRAY, false},
        {"k", ARG_INT, false},
        {"mode", ARG_STR, false},
        {"filter", ARG_MAP, false},
        {"fields", ARG_ARRAY, false},
        {"one_per_document", ARG_BOOL, false},
        {"exact", ARG_BOOL, false},
        {"nprobe", ARG_INT, false},
        {"explain", ARG_BOOL, false},
        {"rerank", ARG_INT, false}}},
    {"embed", cmd_embed, COMMAND_READ, {
        {"collection", ARG_STR, false},
        {"texts", ARG_ARRAY, true}}},
    {"stats", cmd_stats, COMMAND_READ, {
        {"collection", ARG_STR, false},
        {"format", ARG_STR, false}}},
    {"jobs", cmd_jobs, COMMAND_READ, {{0}}},
    {"snapshot", cmd_snapshot, COMMAND_SLOW, {
        {"to", ARG_STR, true},
        {"wait", ARG_BOOL, false}}},
    {"verify", cmd_verify, COMMAND_SLOW, {
        {"wait", ARG_BOOL, false}}},
    {"rebuild", cmd_rebuild, COMMAND_WRITE, {
        COLLECTION}},
    {"score", cmd_score, COMMAND_MODEL, {
        {"text", ARG_STR, true},
        {"context", ARG_STR, false},
        {"collection", ARG_STR, false},
        {"memory", ARG_MAP, false},
        {"per_token", ARG_BOOL, false},
        {"stride", ARG_INT, false}}},
    {"generate", cmd_generate, COMMAND_MODEL, {
        {"prompt", ARG_STR, false},
        {"messages", ARG_ARRAY, false},
        {"collection", ARG_STR, false},
        {"memory", ARG_MAP, false},
        {"max_tokens", ARG_INT, false},
        {"temperature", ARG_NUM, false},
        {"top_k", ARG_INT, false},
        {"top_p", ARG_NUM, false},
        {"min_p", ARG_NUM, false},
        {"repeat_penalty", ARG_NUM, false},
        {"repeat_window", ARG_INT, false},
        {"seed", ARG_INT, false},
        {"stop", ARG_STR | ARG_ARRAY, false},
        {"stream", ARG_BOOL, false},
        {"logprobs", ARG_BOOL, false}}},
    {"context.open", cmd_context_open, COMMAND_BULK, {
        {"name", ARG_STR, true},
        {"settings", ARG_MAP, false},
        {"quota", ARG_INT, false},
        {"create", ARG_BOOL, false}}},
    {"context.append", cmd_context_append, COMMAND_MODEL, {
        {"name", ARG_STR, true},
        {"text", ARG_STR, true},
        {"at", ARG_INT, false}}},
    {"context.score", cmd_context_score, COMMAND_MODEL, {
        {"name", ARG_STR, true},
        {"text", ARG_STR, true},
        {"keep", ARG_BOOL, false},
        {"per_token", ARG_BOOL, false},
        {"at", ARG_INT, false}}},
    {"context.generate", cmd_context_generate, COMMAND_MODEL, {
        {"name", ARG_STR, true},
        {"text", ARG_STR, false},
        {"keep", ARG_BOOL, false},
        {"at", ARG_INT, false},
        {"max_tokens", ARG_INT, false},
        {"temperature", ARG_NUM, false},
        {"top_k", ARG_INT, false},
        {"top_p", ARG_NUM, false},
        {"min_p", ARG_NUM, false},
        {"repeat_penalty", ARG_NUM, false},
        {"repeat_window", ARG_INT, false},
        {"seed", ARG_INT, false},
        {"stop", ARG_STR | ARG_ARRAY, false},
        {"stream", ARG_BOOL, false},
        {"logprobs", ARG_BOOL, false}}},
    {"context.fork", cmd_context_fork, COMMAND_WRITE, {
        {"name", ARG_STR, true},
        {"to", ARG_STR, true},
        {"at", ARG_INT, false},
        {"quota", ARG_INT, false}}},
    {"context.truncate", cmd_context_truncate, COMMAND_WRITE, {
        {"name", ARG_STR, true},
        {"at", ARG_INT, true}}},
    {"context.list", cmd_context_list, COMMAND_READ, {
        {"name", ARG_STR, false}}},
    {"context.close", cmd_context_close, COMMAND_WRITE, {
        {"name", ARG_STR, true}}},
    {"context.delete", cmd_context_delete, COMMAND_WRITE, {
        {"name", ARG_STR, true}}},
    {"bank.build", cmd_bank_build, COMMAND_BULK, {
        COLLECTION,
        {"settings", ARG_MAP, false}}},
    {"bank.train", cmd_bank_train, COMMAND_BULK, {
        COLLECTION,
        {"seconds", ARG_NUM, false},
        {"tokens", ARG_INT, false},
        {"generic", ARG_BOOL, false},
        {"wait", ARG_BOOL, false}}},
    {"bank.pause", cmd_bank_pause, COMMAND_BULK, {
        COLLECTION,
        {"pause", ARG_BOOL, false}}},
    {"bank.purge", cmd_bank_purge, COMMAND_BULK, {
        COLLECTION,
        {"wait", ARG_BOOL, false}}},
    {"bank.status", cmd_bank_status, COMMAND_READ, {
        COLLECTION,
        {"nodes", ARG_BOOL, false}}},
    {"bank.path", cmd_bank_path, COMMAND_READ, {
        COLLECTION,
        {"text", ARG_STR, true}}},
    {"bank.disable", cmd_bank_disable, COMMAND_BULK, {
        COLLECTION,
        {"node", ARG_INT, false},
        {"disable", ARG_BOOL, false}}},
    {"bank.reset", cmd_bank_reset, COMMAND_BULK, {
        COLLECTION}},
    {NULL, NULL, COMMAND_READ, {{0}}},
};

/* clang-format on */

size_t
commands_count(void)
{
    return sizeof commands / sizeof commands[0] - 1;
}

const struct command *
commands_find(struct mb_slice name)
{
    for (const struct command *cmd = commands; cmd->name != NULL; cmd++) {
        if (mb_slice_equal(name, mb_slice_cstr(cmd->name)))
            return cmd;
    }
    return NULL;
}

/* ---- replies ---- */

enum head { HEAD_ERROR, HEAD_RESULT, HEAD_PART };

static void
write_head(struct call *c, enum head head)
{
    bool ok = head != HEAD_ERROR;

    mb_buffer_clear(&c->reply);
    mb_writer_init(&c->w, &c->reply);
    mb_write_map(&c->w, head == HEAD_PART ? 5 : 4);
    mb_write_kv_uint(&c->w, "v", DAEMON_PROTOCOL);
    mb_write_cstr(&c->w, "id");
    if (c->id_size > 0)
        mb_write_raw(&c->w, mb_slice_of(c->id, c->id_size));
    else
        mb_write_nil(&c->w);
    mb_write_kv_bool(&c->w, "ok", ok);
    if (head == HEAD_PART)
        mb_write_kv_bool(&c->w, "more", true);
    mb_write_cstr(&c->w, ok ? "result" : "error");
}

void
call_begin(struct call *c)
{
    write_head(c, HEAD_RESULT);
}

void
call_begin_part(struct call *c)
{
    write_head(c, HEAD_PART);
}

bool
call_send_part(struct call *c)
{
    return c->w.status == MB_OK && server_send_part(c->rq, &c->reply);
}

static void
write_error(struct call *c, mb_status st, const char *text)
{
    write_head(c, HEAD_ERROR);
    mb_write_map(&c->w, 3);
    mb_write_kv_cstr(&c->w, "code", mb_status_name(st));
    mb_write_kv_cstr(&c->w, "message", text);
    mb_write_kv_bool(&c->w, "retry", mb_status_may_retry(st));
}

/* Does it only look at how the daemon is? Who watches it keeps it from nothing.
 */
static bool
is_glance(const struct command *cmd)
{
    return cmd != NULL &&
           (cmd->fn == cmd_ping || cmd->fn == cmd_stats ||
               cmd->fn == cmd_jobs || cmd->fn == cmd_bank_status);
}

/* Something is done for a client, at this time. */
static void
note_activity(struct daemon *d, const struct command *cmd, uint64_t now_ns)
{
    if (!is_glance(cmd))
        atomic_store_explicit(&d->request_ns, now_ns, memory_order_relaxed);
}

void
call_finish(struct call *c, mb_status st, const struct mb_error *err)
{
    struct daemon *d = c->d;
    uint64_t now = mb_clock_ns();

    if (st == MB_OK && c->w.status != MB_OK) {
        st = c->w.status;
        err = NULL;
    }
    if (st != MB_OK)
        write_error(c, st,
            err != NULL && err->text[0] != 0 ? err->text : mb_status_text(st));
    if (st == MB_ERR_INTERNAL || st == MB_ERR_CORRUPT || st == MB_ERR_IO)
        mb_log(MB_LOG_ERR, "request.failed", "op=%s code=%s cause=\"%s\"",
            c->command != NULL ? c->command->name : "?", mb_status_name(st),
            err != NULL ? err->text : "");
    if (c->command != NULL)
        stats_count(d->stats, (size_t)(c->command - commands),
            (now - c->rq->arrived_ns) / 1000, st == MB_OK);
    note_activity(d, c->command, now);
    server_reply(c->rq, &c->reply);
    mb_buffer_fini(&c->reply);
    batch_free(c->vectors.batch);
    mb_free(c->vectors.keys);
    batch_free(c->scores.batch);
    mb_free(c->scores.keys);
    mb_free(c);
}

/* On the writer's thread. */
static void
on_applied(
    void *arg, struct mb_op *op, mb_status st, const struct mb_error *err)
{
    struct call *c = arg;

    if (st == MB_OK) {
        call_begin(c);
        c->write_result(c, op);
    }
    call_finish(c, st, err);
    mb_op_free(op); // err lies in it
}

uint64_t
call_model_deadline(const struct call *c)
{
    uint64_t latest = c->rq->arrived_ns +
                      daemon_config(c->d)->model_timeout * UINT64_C(1000000000);

    return c->deadline_ns != 0 && c->deadline_ns < latest ? c->deadline_ns
                                                          : latest;
}

mb_status
call_submit(struct call *c, struct mb_op *op)
{
    return mb_store_submit(c->d->store, op, on_applied, c, &c->err);
}

/* ---- checks ---- */

static unsigned
type_bit(const struct mb_value *v)
{
    switch (v->type) {
    case MB_TYPE_BOOL:
        return ARG_BOOL;
    case MB_TYPE_INT:
    case MB_TYPE_UINT:
        return ARG_INT | ARG_NUM;
    case MB_TYPE_FLOAT:
        return ARG_NUM;
    case MB_TYPE_STR:
        return ARG_STR;
    case MB_TYPE_BIN:
        return ARG_BIN;
    case MB_TYPE_ARRAY:
        return ARG_ARRAY;
    case MB_TYPE_MAP:
        return ARG_MAP;
    case MB_TYPE_NIL:
        break;
    }
    return 0;
}

static const char *
type_words(unsigned types)
{
    return (types & ARG_STR) != 0    ? "a string"
           : (types & ARG_INT) != 0  ? "an integer"
           : (types & ARG_NUM) != 0  ? "a number"
           : (types & ARG_BOOL) != 0 ? "a boolean"
           : (types & ARG_MAP) != 0  ? "a map"
           : (types & ARG_BIN) != 0  ? "binary or an array of numbers"
                                     : "an array";
}

static mb_status
check_args(struct call *c)
{
    for (const struct command_arg *a = c->command->args; a->name; a++) {
        const struct mb_value *v = mb_value_get(c->args, a->name);

        if (v == NULL && a->required)
            return mb_error_set(&c->err, MB_ERR_BAD_ARG,
                "%s: argument %s is missing", c->command->name, a->name);
        if (v != NULL && (type_bit(v) & a->types) == 0)
            return mb_error_set(&c->err, MB_ERR_BAD_ARG, "%s: %s is not %s",
                c->command->name, a->name, type_words(a->types));
    }
    return MB_OK;
}

/* All strings below v; depth is bounded by the parser. */
static mb_status
check_strings(const struct mb_value *v, struct mb_error *err)
{
    mb_status st = MB_OK;
    size_t offset;

    if (v->type == MB_TYPE_STR && !mb_utf8_is_valid(v->s, &offset))
        return mb_error_set(err, MB_ERR_BAD_TEXT,
            "a string is not valid UTF-8 at byte %zu of it", offset);
    if (v->type == MB_TYPE_ARRAY) {
        for (size_t i = 0; i < v->array.n && st == MB_OK; i++) {
            st = check_strings(&v->array.items[i], err);
        }
    }
    if (v->type == MB_TYPE_MAP) {
        for (size_t i = 0; i < v->map.n && st == MB_OK; i++) {
            if (!mb_utf8_is_valid(v->map.pairs[i].key, NULL))
                return mb_error_set(
                    err, MB_ERR_BAD_TEXT, "a key is not valid UTF-8");
            st = check_strings(&v->map.pairs[i].value, err);
        }
    }
    return st;
}

static mb_status
check_envelope(struct call *c, const struct mb_value *message)
{
    const struct mb_value *v = mb_value_get(message, "v");
    struct mb_slice op;
    uint64_t timeout_ms;
    mb_status st;

    if (message->type != MB_TYPE_MAP)
        return mb_error_set(
            &c->err, MB_ERR_BAD_MESSAGE, "a request is one map");
    if (v == NULL || v->type != MB_TYPE_INT)
        return mb_error_set(&c->err, MB_ERR_BAD_MESSAGE,
            "a request has v, the protocol version: %d", DAEMON_PROTOCOL);
    if (v->i != DAEMON_PROTOCOL)
        return mb_error_set(&c->err, MB_ERR_BAD_VERSION,
            "version %lld is not spoken here, version %d is", (long long)v->i,
            DAEMON_PROTOCOL);
    st = mb_arg_str(message, "op", true, &op, &c->err);
    if (st == MB_OK)
        st = mb_arg_map(message, "args", false, &c->args, &c->err);
    if (st == MB_OK)
        st = mb_arg_u64(
            message, "timeout_ms", 0, 0, 86400000, &timeout_ms, &c->err);
    if (st != MB_OK)
        return st;
    if (timeout_ms > 0)
        c->deadline_ns = c->rq->arrived_ns + timeout_ms * 1000000u;
    if (c->deadline_ns != 0 && mb_clock_ns() > c->deadline_ns)
        return mb_error_set(&c->err, MB_ERR_TIMEOUT,
            "%llu ms had passed before it could be begun",
            (unsigned long long)timeout_ms);
    return MB_OK;
}

static const struct mb_value no_args = {.type = MB_TYPE_MAP};

/* Unpack, check, run the handler. */
static mb_status
run(struct call *c, struct worker *w, bool *later)
{
    const struct mb_wire_limits limits = {.max_values = MAX_VALUES};
    const struct mb_value *message;
    uint64_t start;
    mb_status st =
        mb_wire_parse(c->rq->body, &limits, true, c->arena, &message, &c->err);

    if (st == MB_OK)
        st = check_envelope(c, message);
    if (st != MB_OK)
        return st;
    if (c->args == NULL)
        c->args = &no_args;
    MB_ASSERT(c->command != NULL && c->command->fn != NULL);
    st = check_args(c);
    if (st == MB_OK && c->command->kind != COMMAND_BULK)
        st = check_strings(c->args, &c->err);
    if (st != MB_OK)
        return st;
    call_begin(c);
    start = mb_clock_ns();
    // The command may not be read through c after the handler: it may be gone.
    const struct command *command = c->command;
    struct stats *stats = c->d->stats;
    st = command->fn(c, w, later);
    stats_expect(
        stats, (size_t)(command - commands), (mb_clock_ns() - start) / 1000);
    return st;
}

static void
run_call(void *arg, struct worker *w)
{
    struct call *c = arg;
    struct daemon *d = c->d;
    struct mb_arena *arena = daemon_arena_take(d);
    bool later = false;
    mb_status st;

    c->arena = arena;
    if (arena == NULL)
        st = mb_error_set(&c->err, MB_ERR_NOMEM, "memory for a request");
    else
        st = run(c, w, &later);
    if (!later)
        call_finish(c, st, &c->err);
    if (arena != NULL)
        daemon_arena_give(d, arena);
}

void
call_again(struct call *c)
{
    c->task.fn = run_call;
    c->task.arg = c;
    dispatch_post(c->d->dispatch, false, &c->task);
}

/* On mb-model. */
static void
on_answers(void *arg, struct batch *b, mb_status st, const struct mb_error *err)
{
    struct call *c = arg;

    (void)b;
    if (st != MB_OK) {
        call_finish(c, st, err);
        return;
    }
    call_again(c);
}

void
call_ask(struct call *c, struct call_answers *answers)
{
    batch_run(answers->batch, on_answers, c);
}

size_t
call_answer(const struct call_answers *answers, uint64_t key)
{
    size_t n = answers->batch != NULL ? batch_size(answers->batch) : 0;

    for (size_t i = 0; i < n; i++) {
        if (answers->keys[i] == key)
            return i;
    }
    return SIZE_MAX;
}

/* ---- arrival ---- */

/* Read op and id off the message. Fills c->err and returns why it cannot be
 * worked on. */
static mb_status
identify(struct call *c)
{
    static const char *const keys[] = {"id", "op"};
    struct mb_slice values[2];
    struct mb_slice op;

    mb_wire_peek(c->rq->body, keys, values, 2);
    op = mb_wire_raw_str(values[1]);
    if (values[0].size > CALL_MAX_ID)
        return mb_error_set(&c->err, MB_ERR_TOO_LARGE,
            "id of %zu bytes, at most %d are possible", values[0].size,
            CALL_MAX_ID);
    if (values[0].size > 0)
        memcpy(c->id, values[0].data, values[0].size);
    c->id_size = values[0].size;
    if (c->rq->verdict != MB_OK)
        return mb_error_set(&c->err, c->rq->verdict, "%s", c->rq->why);
    if (op.size == 0)
        return MB_OK; // run() finds out what is wrong with it
    c->command = commands_find(op);
    if (c->command == NULL && mb_utf8_is_valid(op, NULL))
        return mb_error_set(&c->err, MB_ERR_UNKNOWN_OP,
            "no such operation: %.*s",
            (int)(op.size < MAX_OP_SHOWN ? op.size : MAX_OP_SHOWN),
            (const char *)op.data);
    if (c->command == NULL)
        return mb_error_set(&c->err, MB_ERR_UNKNOWN_OP, "no such operation");
    if (atomic_load_explicit(&c->d->shutting_down, memory_order_relaxed))
        return mb_error_set(
            &c->err, MB_ERR_SHUTTING_DOWN, "the daemon is ending");
    return MB_OK;
}

/* Is it best to answer right here? */
static bool
runs_inline(const struct call *c)
{
    struct daemon *d = c->d;
    uint64_t limit_us = daemon_config(d)->inline_us;

    if (c->command->kind != COMMAND_READ || c->rq->body.size > SMALL_BYTES)
        return false;
    return limit_us > 0 &&
           stats_expected_us(d->stats, (size_t)(c->command - commands)) <
               limit_us &&
           dispatch_is_idle(d->dispatch) && !server_has_waiting(d->server);
}

/* A message whose op cannot be read: say what is wrong with it. */
static mb_status
diagnose(struct call *c)
{
    const struct mb_wire_limits limits = {.max_values = MAX_VALUES};
    const struct mb_value *message;
    struct mb_arena *arena = daemon_arena_take(c->d);
    mb_status st;

    if (arena == NULL)
        return mb_error_set(&c->err, MB_ERR_NOMEM, "memory for a request");
    st = mb_wire_parse(c->rq->body, &limits, true, arena, &message, &c->err);
    if (st == MB_OK)
        st = check_envelope(c, message);
    if (st == MB_OK)
        st = mb_error_set(&c->err, MB_ERR_BAD_MESSAGE, "op is empty");
    daemon_arena_give(c->d, arena);
    return st;
}

void
commands_on_request(void *arg, struct server_request *rq)
{
    struct daemon *d = arg;
    struct call *c = mb_calloc(1, sizeof *c);
    mb_status st;

    if (c == NULL) {
        struct mb_buffer nothing;

        mb_buffer_init(&nothing, 1);
        server_reply(rq, &nothing);
        return;
    }
    c->d = d;
    c->rq = rq;
    mb_buffer_init(&c->reply, CALL_MAX_REPLY);
    st = identify(c);
    note_activity(d, c->command, rq->arrived_ns);
    if (st == MB_OK && c->command == NULL)
        st = diagnose(c);
    if (st == MB_OK && runs_inline(c)) {
        run_call(c, &d->io_worker);
        return;
    }
    if (st == MB_OK) {
        bool bulk =
            c->command->kind == COMMAND_BULK || rq->body.size > SMALL_BYTES;

        st = dispatch_submit(d->dispatch, bulk, run_call, c);
        if (st == MB_OK)
            return;
        (void)mb_error_set(&c->err, st, "too many requests wait for a worker");
    }
    call_finish(c, st, &c->err);
}
