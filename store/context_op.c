/* SPDX-License-Identifier: Apache-2.0
 * store/context_op.c - operations on long contexts.
 *
 * Appending is the one that counts: a segment's blocks and the record in one
 * transaction, so that after a crash a context ends with a whole segment or a
 * whole tail. Rows are encoded when the operation is made; the epoch in the
 * record says on apply whether they still fit.
 * Invariants: a row of a block is written once and never changed; the figure
 * `context_bytes` in meta is the size of all rows of blocks that some context
 * names (tails aside).
 * Threads: made and read by the caller's, run by the writer (op.h). */
#include <string.h>

#include "context_rows.h"
#include "op.h"

#define MAX_OP_BYTES ((size_t)1 << 30)
#define TOUCH_MS     60000 /* used_ms is this exact */

/* One struct for all of them; each uses its part. */
struct op_context {
    struct mb_op base;
    struct mb_arena *arena; /* of one run of the body */
    uint8_t name[MB_MAX_CONTEXT_NAME];
    size_t name_size;
    uint64_t quota;
    bool sets_quota;
    /* create */
    struct mb_stored_shape shape;
    /* create: settings; append: rows of blocks; trace: bytes. */
    struct mb_buffer bytes;
    /* append, fork, cut: which context, in which state */
    uint64_t id;
    uint64_t epoch;
    uint64_t max_total;
    struct mb_stored_context expect; /* append: its figures afterwards */
    size_t n_blocks; /* append: new ones; fork, cut: those that stay */
    uint64_t row_bytes;
    bool sets_tail;
    uint32_t tail_first;
    uint32_t tail_n;
    uint32_t tail_tokens;
    int32_t carry;
    struct mb_buffer tail; /* (tail_n) u32 size, row */
    /* results */
    struct mb_stored_context result;
};

static void
context_free(struct mb_op *base)
{
    struct op_context *op = (struct op_context *)base;

    mb_arena_free(op->arena);
    mb_buffer_fini(&op->bytes);
    mb_buffer_fini(&op->tail);
    mb_free(op);
}

static mb_status
context_op_new(
    const struct op_class *cls, struct op_context **out, struct mb_error *err)
{
    struct op_context *op = op_new(cls, sizeof *op);

    if (op == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "context: out of memory");
    mb_buffer_init(&op->bytes, MAX_OP_BYTES);
    mb_buffer_init(&op->tail, MAX_OP_BYTES);
    op->arena = mb_arena_new(MAX_OP_BYTES);
    if (op->arena == NULL) {
        mb_op_free(&op->base);
        return mb_error_set(err, MB_ERR_NOMEM, "context: out of memory");
    }
    *out = op;
    return MB_OK;
}

/* A name that a new context may have. */
static mb_status
check_name(struct mb_slice name, struct mb_error *err)
{
    if (name.size == 0 || name.size > MB_MAX_CONTEXT_NAME)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "context name has %zu bytes, must have 1 to %d", name.size,
            MB_MAX_CONTEXT_NAME);
    if (!mb_utf8_is_valid(name, NULL))
        return mb_error_set(
            err, MB_ERR_BAD_TEXT, "context name is not valid UTF-8");
    for (size_t i = 0; i < name.size; i++) {
        if (name.data[i] < 0x20 || name.data[i] == 0x7f)
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "context name has a control character at byte %zu", i);
    }
    return MB_OK;
}

/* A name to look for; one that no context can have is found nowhere. */
static void
set_name(struct op_context *op, struct mb_slice name)
{
    op->name_size = name.size <= MB_MAX_CONTEXT_NAME ? name.size : 0;
    if (op->name_size > 0)
        memcpy(op->name, name.data, op->name_size);
}

static struct mb_slice
name_of(const struct op_context *op)
{
    return mb_slice_of(op->name, op->name_size);
}

/* ---- rows that all write ---- */

static mb_status
put_u64(struct wtxn *w, const char *name, uint64_t value)
{
    uint8_t bytes[8];

    mb_put_le64(bytes, value);
    return kv_put(
        w->txn, KV_META, mb_slice_cstr(name), mb_slice_of(bytes, sizeof bytes));
}

/* The next number of a context or strip. */
static mb_status
next_number(struct wtxn *w, uint64_t *out)
{
    mb_status st = context_meta_u64(w->txn, META_NEXT_CONTEXT, out);

    if (st == MB_OK && *out == 0)
        *out = 1;
    return st == MB_OK ? put_u64(w, META_NEXT_CONTEXT, *out + 1) : st;
}

static mb_status
put_record(struct wtxn *w, const struct mb_stored_context *c)
{
    struct mb_buffer bytes;
    struct kv_key key;

    mb_buffer_init(&bytes, MAX_OP_BYTES);
    context_key(&key, c->id, CONTEXT_ROW_RECORD);
    mb_status st = context_encode(c, &bytes);
    if (st == MB_OK)
        st = kv_put(
            w->txn, KV_CONTEXTS, kv_key_slice(&key), mb_buffer_slice(&bytes));
    mb_buffer_fini(&bytes);
    return st;
}

/* Trace of the context; body without a checksum. Empty: none. */
static mb_status
put_trace(struct wtxn *w, uint64_t id, struct mb_slice body)
{
    struct kv_key key;
    uint8_t *row;

    context_key(&key, id, CONTEXT_ROW_TRACE);
    if (body.size == 0) {
        mb_status st = kv_del(w->txn, KV_CONTEXTS, kv_key_slice(&key));
        return st == MB_ERR_NOT_FOUND ? MB_OK : st;
    }
    mb_status st = kv_reserve(w->txn, KV_CONTEXTS, kv_key_slice(&key),
        body.size + RECORD_CHECKSUM, &row);
    if (st != MB_OK)
        return st;
    memcpy(row, body.data, body.size);
    record_seal(row, body.size + RECORD_CHECKSUM);
    return MB_OK;
}

static mb_status
del_tail(struct wtxn *w, uint64_t id, uint32_t from, uint32_t end)
{
    for (uint32_t i = from; i < end; i++) {
        struct kv_key key;

        context_tail_key(&key, id, i);
        mb_status st = kv_del(w->txn, KV_CONTEXTS, kv_key_slice(&key));
        if (st != MB_OK && st != MB_ERR_NOT_FOUND)
            return st;
    }
    return MB_OK;
}

/* The tail of op as rows of c. */
static mb_status
put_tail(
    const struct op_context *op, struct wtxn *w, struct mb_stored_context *c)
{
    uint32_t end = op->tail_first + op->tail_n;
    mb_status st = MB_OK;
    size_t at = 0;

    for (uint32_t i = 0; i < op->tail_n && st == MB_OK; i++) {
        size_t row = mb_get_le32(op->tail.data + at);
        struct kv_key key;

        context_tail_key(&key, c->id, op->tail_first + i);
        st = kv_put(w->txn, KV_CONTEXTS, kv_key_slice(&key),
            mb_slice_of(op->tail.data + at + 4, row));
        at += 4 + row;
    }
    if (st == MB_OK)
        st = del_tail(w, c->id, end, c->tail_blocks);
    c->tail_blocks = end;
    c->n_tail = op->tail_tokens;
    c->carry = op->carry;
    return st;
}

/* It changed: a new epoch. */
static void
mark_changed(struct mb_stored_context *c)
{
    c->epoch++;
    c->changed_ms = mb_clock_wall_ms();
    c->used_ms = c->changed_ms;
    context_count(c);
}

/* ---- create ---- */

static mb_status
check_absent(struct wtxn *w, struct mb_slice name, struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice val;

    context_name_key(&key, name);
    mb_status st = kv_get(w->txn, KV_META, kv_key_slice(&key), &val);
    if (st == MB_OK)
        return mb_error_set(err, MB_ERR_EXISTS,
            "context \"%.*s\" exists already", (int)name.size,
            (const char *)name.data);
    return st == MB_ERR_NOT_FOUND ? MB_OK : kv_txn_explain(w->txn, st, err);
}

/* Number, name row and record of a context that is new. */
static mb_status
put_new(struct wtxn *w, struct mb_slice name, struct mb_stored_context *c)
{
    uint8_t bytes[8];
    struct kv_key key;

    w->changed = true;
    mb_status st = next_number(w, &c->id);
    if (st != MB_OK)
        return st;
    memset(c->name, 0, sizeof c->name);
    memcpy(c->name, name.data, name.size);
    mark_changed(c);
    c->created_ms = c->changed_ms;
    mb_put_le64(bytes, c->id);
    context_name_key(&key, name);
    return kv_put(
        w->txn, KV_META, kv_key_slice(&key), mb_slice_of(bytes, sizeof bytes));
}

static mb_status
create_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_context *op = (struct op_context *)base;
    mb_status st = check_absent(w, name_of(op), err);

    if (st != MB_OK)
        return st;
    op->result = (struct mb_stored_context){.shape = op->shape,
        .quota = op->quota,
        .carry = MB_CONTEXT_NO_TOKEN,
        .settings = mb_buffer_slice(&op->bytes)};
    st = put_new(w, name_of(op), &op->result);
    if (st == MB_OK)
        st = put_record(w, &op->result);
    return kv_txn_explain(w->txn, st, err);
}

mb_status
mb_op_context_create_new(struct mb_slice name,
    const struct mb_stored_shape *shape, struct mb_slice settings,
    uint64_t quota, struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {
        "context_create", create_body, context_free};
    struct op_context *op = NULL;
    mb_status st = check_name(name, err);

    if (st == MB_OK && (shape->block_tokens == 0 || shape->kv_bytes == 0))
        st = mb_error_set(err, MB_ERR_BAD_ARG,
            "context: blocks of %u tokens and %u bytes",
            (unsigned)shape->block_tokens, (unsigned)shape->kv_bytes);
    if (st == MB_OK && settings.size > MB_MAX_CONTEXT_SETTINGS)
        st = mb_error_set(err, MB_ERR_TOO_LARGE,
            "context: settings of %zu bytes, at most %d are possible",
            settings.size, MB_MAX_CONTEXT_SETTINGS);
    if (st == MB_OK)
        st = context_op_new(&cls, &op, err);
    if (st != MB_OK)
        return st;
    set_name(op, name);
    op->shape = *shape;
    op->quota = quota;
    st = mb_buffer_append(&op->bytes, settings.data, settings.size);
    if (st != MB_OK) {
        mb_op_free(&op->base);
        return mb_error_set(err, st, "context: out of memory");
    }
    *out = &op->base;
    return MB_OK;
}

/* ---- encoding blocks ---- */

/* A row of keys and values behind those in `out`. */
static mb_status
encode_kv(struct mb_buffer *out, struct mb_slice kv)
{
    size_t row = context_kv_row(kv.size);
    mb_status st = mb_buffer_reserve(out, row);

    if (st != MB_OK)
        return st;
    uint8_t *p = out->data + out->size;
    memcpy(p, kv.data, kv.size);
    memset(p + kv.size, 0, row - kv.size);
    record_seal(p, row);
    out->size += row;
    return MB_OK;
}

static mb_status
check_kv(
    const struct mb_stored_context *c, struct mb_slice kv, struct mb_error *err)
{
    if (kv.size == c->shape.kv_bytes)
        return MB_OK;
    return mb_error_set(err, MB_ERR_BAD_ARG,
        "context \"%s\": a block of %zu bytes, not %u", c->name, kv.size,
        (unsigned)c->shape.kv_bytes);
}

/* Size and row of a block of a tail behind those in `out`. */
static mb_status
encode_tail(struct mb_buffer *out, struct mb_slice kv, struct mb_slice sum)
{
    size_t row = kv.size + sum.size + TAIL_END;

    if (row < KV_MIN_ROW)
        row = KV_MIN_ROW;
    mb_status st = mb_buffer_reserve(out, 4 + row);
    if (st != MB_OK)
        return st;
    uint8_t *p = out->data + out->size;
    mb_put_le32(p, (uint32_t)row);
    p += 4;
    memset(p, 0, row);
    memcpy(p, kv.data, kv.size);
    if (sum.size > 0)
        memcpy(p + kv.size, sum.data, sum.size);
    mb_put_le32(p + row - TAIL_END, (uint32_t)sum.size);
    record_seal(p, row);
    out->size += 4 + row;
    return MB_OK;
}

static mb_status
set_tail(struct op_context *op, const struct mb_stored_context *c,
    const struct mb_stored_tail *tail, struct mb_error *err)
{
    mb_status st = MB_OK;

    op->sets_tail = true;
    op->tail_first = tail->first;
    op->tail_n = tail->n;
    op->tail_tokens = tail->n_tokens;
    op->carry = tail->carry;
    if (tail->first > c->tail_blocks)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "context \"%s\": block %u of a tail that has %u", c->name,
            (unsigned)tail->first, (unsigned)c->tail_blocks);
    if (tail->n > MB_MAX_CONTEXT_TAIL ||
        tail->first + tail->n > MB_MAX_CONTEXT_TAIL)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "context \"%s\": a tail of %u blocks, at most %d are possible",
            c->name, (unsigned)(tail->first + tail->n), MB_MAX_CONTEXT_TAIL);
    for (uint32_t i = 0; i < tail->n && st == MB_OK; i++) {
        st = check_kv(c, tail->kv[i], err);
        if (st == MB_OK)
            st = encode_tail(&op->tail, tail->kv[i], tail->sum[i]);
    }
    op->base.bytes += op->tail.size;
    return st;
}

/* Both rows of one block behind those before: u32 sizes of both, then both. */
static mb_status
encode_block(struct op_context *op, const struct mb_stored_context *c,
    const struct mb_stored_block *b, size_t i, size_t n, struct mb_buffer *room)
{
    struct mb_stored_sum sum = {
        .block = c->n_blocks + (uint32_t)i,
        .segment = c->n_segments,
        .ends_segment = i + 1 == n,
        .sum = b->sum,
        .memory = b->memory,
    };
    size_t row = context_kv_row(b->kv.size);
    uint8_t sizes[8];
    mb_status st = context_sum_encode(&sum, room);

    mb_put_le32(sizes, (uint32_t)room->size);
    mb_put_le32(sizes + 4, (uint32_t)row);
    if (st == MB_OK)
        st = mb_buffer_append(&op->bytes, sizes, sizeof sizes);
    if (st == MB_OK)
        st = mb_buffer_append(&op->bytes, room->data, room->size);
    op->row_bytes += room->size + row;
    return st == MB_OK ? encode_kv(&op->bytes, b->kv) : st;
}

static mb_status
encode_blocks(struct op_context *op, const struct mb_stored_append *a,
    struct mb_error *err)
{
    struct mb_buffer room;
    mb_status st = MB_OK;

    mb_buffer_init(&room, MAX_OP_BYTES);
    for (size_t i = 0; i < a->n && st == MB_OK; i++) {
        st = check_kv(a->ctx, a->blocks[i].kv, err);
        if (st == MB_OK)
            st = encode_block(op, a->ctx, &a->blocks[i], i, a->n, &room);
    }
    mb_buffer_fini(&room);
    return st;
}

/* ---- append ---- */

struct rows {
    struct mb_slice sum;
    struct mb_slice kv;
};

static struct rows
next_rows(const struct op_context *op, size_t *at)
{
    const uint8_t *p = op->bytes.data + *at;
    size_t sum = mb_get_le32(p);
    size_t kv = mb_get_le32(p + 4);

    *at += 8 + sum + kv;
    return (struct rows){mb_slice_of(p + 8, sum), mb_slice_of(p + 8 + sum, kv)};
}

/* Is there no row at [first, first + n) of the strip? */
static mb_status
is_free(struct wtxn *w, uint64_t strip, uint32_t first, size_t n, bool *out)
{
    *out = true;
    for (size_t i = 0; i < n && *out; i++) {
        struct kv_key key;
        struct mb_slice val;

        context_sum_key(&key, strip, first + (uint32_t)i);
        mb_status st = kv_get(w->txn, KV_CONTEXTS, kv_key_slice(&key), &val);
        if (st != MB_OK && st != MB_ERR_NOT_FOUND)
            return st;
        *out = st == MB_ERR_NOT_FOUND;
    }
    return MB_OK;
}

/* The runs of c with n more blocks: in the strip of the last one, or its own
 * if it has none yet, unless something lies there already. */
static mb_status
extend_runs(struct op_context *op, struct wtxn *w, struct mb_stored_context *c,
    size_t n, struct mb_error *err)
{
    uint64_t strip = c->n_runs > 0 ? c->runs[c->n_runs - 1].strip : c->id;
    bool goes_on;
    mb_status st = is_free(w, strip, c->n_blocks, n, &goes_on);

    if (st != MB_OK)
        return kv_txn_explain(w->txn, st, err);
    size_t n_runs = c->n_runs + (goes_on && c->n_runs > 0 ? 0 : 1);
    if (n_runs > MB_MAX_CONTEXT_RUNS)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "context \"%s\" is a fork of a fork, %d times over", c->name,
            MB_MAX_CONTEXT_RUNS);
    struct mb_stored_run *runs =
        mb_arena_calloc(op->arena, n_runs, sizeof *runs);
    if (runs == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "context: out of memory");
    if (c->n_runs > 0)
        memcpy(runs, c->runs, c->n_runs * sizeof *runs);
    w->changed = true;
    if (!goes_on)
        st = next_number(w, &strip);
    if (n_runs > c->n_runs)
        runs[n_runs - 1] = (struct mb_stored_run){strip, c->n_blocks, 0};
    runs[n_runs - 1].end = c->n_blocks + (uint32_t)n;
    c->runs = runs;
    c->n_runs = n_runs;
    return kv_txn_explain(w->txn, st, err);
}

static mb_status
put_blocks(
    const struct op_context *op, struct wtxn *w, struct mb_stored_context *c)
{
    uint64_t strip = c->runs[c->n_runs - 1].strip;
    mb_status st = MB_OK;
    size_t at = 0;

    for (size_t i = 0; i < op->n_blocks && st == MB_OK; i++) {
        struct rows rows = next_rows(op, &at);
        struct kv_key key;

        context_sum_key(&key, strip, c->n_blocks);
        st = kv_put(w->txn, KV_CONTEXTS, kv_key_slice(&key), rows.sum);
        context_kv_key(&key, strip, c->n_blocks);
        if (st == MB_OK)
            st = kv_put(w->txn, KV_BLOCKS, kv_key_slice(&key), rows.kv);
        c->n_blocks++;
    }
    c->n_segments++;
    c->bytes += op->row_bytes;
    return st;
}

/* The context that op is about, in the state that it was made for. */
static mb_status
find(struct op_context *op, struct wtxn *w, struct mb_stored_context *c,
    struct mb_error *err)
{
    mb_arena_reset(op->arena);
    mb_status st = context_read_id(w->txn, op->id, op->arena, c, err);
    if (st == MB_OK && c->epoch != op->epoch)
        return mb_error_set(err, MB_ERR_STALE,
            "context \"%s\" was changed by another", c->name);
    return st;
}

static mb_status
append_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_context *op = (struct op_context *)base;
    struct mb_stored_context c;
    uint64_t total = 0;
    mb_status st = find(op, w, &c, err);

    if (st != MB_OK)
        return st;
    st = context_meta_u64(w->txn, META_CONTEXT_BYTES, &total);
    if (st == MB_OK)
        st =
            mb_store_context_room(&c, total, op->row_bytes, op->max_total, err);
    if (st == MB_OK && op->n_blocks > 0)
        st = extend_runs(op, w, &c, op->n_blocks, err);
    if (st != MB_OK)
        return kv_txn_explain(w->txn, st, err);
    w->changed = true;
    if (op->n_blocks > 0) {
        st = put_blocks(op, w, &c);
        if (st == MB_OK)
            st = put_u64(w, META_CONTEXT_BYTES, total + op->row_bytes);
    }
    if (st == MB_OK && op->sets_tail)
        st = put_tail(op, w, &c);
    mark_changed(&c);
    if (st == MB_OK)
        st = put_record(w, &c);
    op->result = c;
    return kv_txn_explain(w->txn, st, err);
}

/* What append_body will make of c. */
static void
expect(struct op_context *op, const struct mb_stored_context *c)
{
    op->expect = *c;
    op->expect.epoch++;
    op->expect.n_blocks += (uint32_t)op->n_blocks;
    op->expect.n_segments += op->n_blocks > 0 ? 1 : 0;
    op->expect.bytes += op->row_bytes;
    if (op->sets_tail) {
        op->expect.tail_blocks = op->tail_first + op->tail_n;
        op->expect.n_tail = op->tail_tokens;
        op->expect.carry = op->carry;
    }
    op->expect.runs = NULL;
    op->expect.n_runs = 0;
    context_count(&op->expect);
}

mb_status
mb_op_context_append_new(
    const struct mb_stored_append *a, struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {
        "context_append", append_body, context_free};
    static const struct mb_stored_tail no_tail = {.carry = MB_CONTEXT_NO_TOKEN};
    const struct mb_stored_context *c = a->ctx;
    struct op_context *op = NULL;
    mb_status st;

    error_begin(err);
    if (a->n > UINT32_MAX - c->n_blocks)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "context \"%s\": %zu blocks more", c->name, a->n);
    st = context_op_new(&cls, &op, err);
    if (st != MB_OK)
        return st;
    op->id = c->id;
    op->epoch = c->epoch;
    op->max_total = a->max_total;
    op->n_blocks = a->n;
    st = encode_blocks(op, a, err);
    op->base.bytes = op->bytes.size;
    if (st == MB_OK && (a->tail != NULL || a->n > 0))
        st = set_tail(op, c, a->tail != NULL ? a->tail : &no_tail, err);
    if (st != MB_OK) {
        mb_op_free(&op->base);
        if (err != NULL && err->text[0] != '\0')
            return st;
        return mb_error_set(err, st, "context: %zu blocks", a->n);
    }
    expect(op, c);
    *out = &op->base;
    return MB_OK;
}

void
mb_op_context_append_expect(
    const struct mb_op *op, struct mb_stored_context *out)
{
    *out = ((const struct op_context *)op)->expect;
}

/* ---- fork, cut ---- */

/* Is n_blocks the end of a segment of c? Its number of segments. */
static mb_status
check_end(struct wtxn *w, const struct mb_stored_context *c, uint32_t n_blocks,
    uint32_t *n_segments, struct mb_error *err)
{
    struct mb_stored_sum sum;

    *n_segments = 0;
    if (n_blocks == 0)
        return MB_OK;
    if (n_blocks > c->n_blocks)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "context \"%s\" has %u blocks, not %u", c->name,
            (unsigned)c->n_blocks, (unsigned)n_blocks);
    mb_status st = context_sum_read(w->txn, c, n_blocks - 1, &sum, err);
    if (st != MB_OK)
        return st;
    if (!sum.ends_segment)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "context \"%s\": no segment ends at block %u", c->name,
            (unsigned)n_blocks);
    *n_segments = sum.segment + 1;
    return MB_OK;
}

/* Shorten c to n_blocks: runs, bytes. `lost`: what it had beyond, in arena. */
static mb_status
cut_runs(struct op_context *op, struct wtxn *w, struct mb_stored_context *c,
    uint32_t n_blocks, struct mb_stored_run **lost, size_t *n_lost)
{
    struct mb_stored_run *runs =
        mb_arena_calloc(op->arena, 2 * c->n_runs + 1, sizeof *runs);
    size_t n = 0;

    *n_lost = 0;
    if (runs == NULL)
        return MB_ERR_NOMEM;
    *lost = runs + c->n_runs;
    for (size_t i = 0; i < c->n_runs; i++) {
        struct mb_stored_run run = c->runs[i];

        if (run.first < n_blocks) {
            runs[n] = run;
            if (run.end > n_blocks)
                runs[n].end = n_blocks;
            n++;
        }
        if (run.end > n_blocks) {
            if (run.first < n_blocks)
                run.first = n_blocks;
            (*lost)[(*n_lost)++] = run;
        }
    }
    for (size_t i = 0; i < *n_lost; i++) {
        for (uint32_t b = (*lost)[i].first; b < (*lost)[i].end; b++) {
            uint64_t bytes;
            mb_status st =
                context_row_bytes(w->txn, (*lost)[i].strip, b, &bytes);
            if (st != MB_OK)
                return st;
            c->bytes -= bytes < c->bytes ? bytes : c->bytes;
        }
    }
    c->runs = runs;
    c->n_runs = n;
    c->n_blocks = n_blocks;
    return MB_OK;
}

static mb_status
fork_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_context *op = (struct op_context *)base;
    struct mb_stored_context c;
    struct mb_stored_run *lost;
    uint32_t n_segments;
    size_t n_lost;
    mb_status st = find(op, w, &c, err);

    if (st == MB_OK)
        st = check_absent(w, name_of(op), err);
    if (st == MB_OK)
        st = check_end(w, &c, (uint32_t)op->n_blocks, &n_segments, err);
    if (st == MB_OK)
        st = cut_runs(op, w, &c, (uint32_t)op->n_blocks, &lost, &n_lost);
    if (st != MB_OK)
        return kv_txn_explain(w->txn, st, err);
    c.n_segments = n_segments;
    c.parent = c.id;
    c.epoch = 0;
    c.tail_blocks = 0;
    if (op->sets_quota)
        c.quota = op->quota;
    st = put_new(w, name_of(op), &c);
    if (st == MB_OK)
        st = put_tail(op, w, &c);
    context_count(&c);
    c.fork_tokens = c.n_tokens;
    if (st == MB_OK)
        st = put_record(w, &c);
    op->result = c;
    return kv_txn_explain(w->txn, st, err);
}

/* Free what c does not name any more; all records are as they will be. */
static mb_status
release(struct op_context *op, struct wtxn *w, const struct mb_stored_run *lost,
    size_t n_lost, struct mb_error *err)
{
    struct mb_stored_context *all;
    size_t n;

    if (n_lost == 0)
        return MB_OK;
    mb_status st = context_read_all(w->txn, op->arena, &all, &n, err);
    if (st == MB_OK)
        st = context_rows_release(w, lost, n_lost, all, n);
    return st;
}

static mb_status
cut_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_context *op = (struct op_context *)base;
    struct mb_stored_context c;
    struct mb_stored_run *lost;
    size_t n_lost;
    mb_status st = find(op, w, &c, err);

    if (st == MB_OK)
        st = check_end(w, &c, (uint32_t)op->n_blocks, &c.n_segments, err);
    if (st == MB_OK)
        st = cut_runs(op, w, &c, (uint32_t)op->n_blocks, &lost, &n_lost);
    if (st != MB_OK)
        return kv_txn_explain(w->txn, st, err);
    w->changed = true;
    w->erased = true;
    st = put_tail(op, w, &c);
    if (st == MB_OK)
        st = put_trace(w, c.id, mb_slice_of(NULL, 0));
    mark_changed(&c);
    if (st == MB_OK)
        st = put_record(w, &c);
    if (st == MB_OK)
        st = release(op, w, lost, n_lost, err);
    op->result = c;
    return kv_txn_explain(w->txn, st, err);
}

/* An operation that leaves n_blocks of ctx, and a tail. */
static mb_status
cut_new(const struct op_class *cls, const struct mb_stored_context *ctx,
    uint32_t n_blocks, const struct mb_stored_tail *tail,
    struct op_context **out, struct mb_error *err)
{
    struct op_context *op = NULL;

    error_begin(err);
    if (tail->first != 0)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "context \"%s\": a part of a tail", ctx->name);
    mb_status st = context_op_new(cls, &op, err);
    if (st != MB_OK)
        return st;
    op->id = ctx->id;
    op->epoch = ctx->epoch;
    op->n_blocks = n_blocks;
    st = set_tail(op, ctx, tail, err);
    if (st != MB_OK) {
        mb_op_free(&op->base);
        if (err != NULL && err->text[0] != '\0')
            return st;
        return mb_error_set(err, st, "context: a tail");
    }
    *out = op;
    return MB_OK;
}

mb_status
mb_op_context_fork_new(const struct mb_stored_context *ctx,
    struct mb_slice name, uint32_t n_blocks, const struct mb_stored_tail *tail,
    const uint64_t *quota, struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {
        "context_fork", fork_body, context_free};
    struct op_context *op = NULL;
    mb_status st = check_name(name, err);

    if (st == MB_OK)
        st = cut_new(&cls, ctx, n_blocks, tail, &op, err);
    if (st != MB_OK)
        return st;
    set_name(op, name);
    op->sets_quota = quota != NULL;
    op->quota = quota != NULL ? *quota : 0;
    *out = &op->base;
    return MB_OK;
}

mb_status
mb_op_context_cut_new(const struct mb_stored_context *ctx, uint32_t n_blocks,
    const struct mb_stored_tail *tail, struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {"context_cut", cut_body, context_free};
    struct op_context *op = NULL;
    mb_status st = cut_new(&cls, ctx, n_blocks, tail, &op, err);

    if (st == MB_OK)
        *out = &op->base;
    return st;
}

/* ---- delete, touch, trace: by name ---- */

static mb_status
named_new(const struct op_class *cls, struct mb_slice name,
    struct op_context **out, struct mb_error *err)
{
    mb_status st = context_op_new(cls, out, err);

    if (st == MB_OK)
        set_name(*out, name);
    return st;
}

static mb_status
find_named(struct op_context *op, struct wtxn *w, struct mb_stored_context *c,
    struct mb_error *err)
{
    mb_arena_reset(op->arena);
    return context_read(w->txn, name_of(op), op->arena, c, err);
}

static mb_status
delete_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_context *op = (struct op_context *)base;
    struct mb_stored_context c;
    struct kv_key key;
    mb_status st = find_named(op, w, &c, err);

    if (st != MB_OK)
        return st;
    w->changed = true;
    w->erased = true;
    context_name_key(&key, name_of(op));
    st = kv_del(w->txn, KV_META, kv_key_slice(&key));
    context_key(&key, c.id, CONTEXT_ROW_RECORD);
    if (st == MB_OK)
        st = kv_del(w->txn, KV_CONTEXTS, kv_key_slice(&key));
    if (st == MB_OK)
        st = del_tail(w, c.id, 0, c.tail_blocks);
    if (st == MB_OK)
        st = put_trace(w, c.id, mb_slice_of(NULL, 0));
    if (st == MB_OK)
        st = release(op, w, c.runs, c.n_runs, err);
    return kv_txn_explain(w->txn, st, err);
}

mb_status
mb_op_context_delete_new(
    struct mb_slice name, struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {
        "context_delete", delete_body, context_free};
    struct op_context *op = NULL;
    mb_status st = named_new(&cls, name, &op, err);

    if (st == MB_OK)
        *out = &op->base;
    return st;
}

static mb_status
touch_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_context *op = (struct op_context *)base;
    uint64_t now = mb_clock_wall_ms();
    struct mb_stored_context c;
    mb_status st = find_named(op, w, &c, err);

    if (st != MB_OK)
        return st;
    if ((op->sets_quota && op->quota != c.quota) ||
        now >= c.used_ms + TOUCH_MS) {
        if (op->sets_quota)
            c.quota = op->quota;
        c.used_ms = now;
        w->changed = true;
        st = put_record(w, &c);
    }
    op->result = c;
    return kv_txn_explain(w->txn, st, err);
}

mb_status
mb_op_context_touch_new(struct mb_slice name, const uint64_t *quota,
    struct mb_op **out, struct mb_error *err)
{
    static const struct op_class cls = {
        "context_touch", touch_body, context_free};
    struct op_context *op = NULL;
    mb_status st = named_new(&cls, name, &op, err);

    if (st != MB_OK)
        return st;
    op->sets_quota = quota != NULL;
    op->quota = quota != NULL ? *quota : 0;
    *out = &op->base;
    return MB_OK;
}

static mb_status
trace_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_context *op = (struct op_context *)base;
    struct mb_slice had;
    struct kv_key key;
    mb_status st = find_named(op, w, &op->result, err);

    if (st != MB_OK)
        return st;
    context_key(&key, op->result.id, CONTEXT_ROW_TRACE);
    st = kv_get(w->txn, KV_CONTEXTS, kv_key_slice(&key), &had);
    if (st == MB_ERR_NOT_FOUND && op->bytes.size == 0)
        return MB_OK; // as it was: nothing to write
    w->changed = true;
    w->erased = st == MB_OK;
    if (st == MB_OK || st == MB_ERR_NOT_FOUND)
        st = put_trace(w, op->result.id, mb_buffer_slice(&op->bytes));
    return kv_txn_explain(w->txn, st, err);
}

mb_status
mb_op_context_trace_new(struct mb_slice name,
    const struct mb_stored_trace *trace, struct mb_op **out,
    struct mb_error *err)
{
    static const struct op_class cls = {
        "context_trace", trace_body, context_free};
    struct op_context *op = NULL;

    if (trace->n > MB_MAX_CONTEXT_PICKS)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "context: a trace of %zu picks, at most %u are possible", trace->n,
            MB_MAX_CONTEXT_PICKS);
    mb_status st = named_new(&cls, name, &op, err);
    if (st != MB_OK)
        return st;
    if (trace->n > 0)
        st = context_trace_encode(trace, &op->bytes);
    op->base.bytes = op->bytes.size;
    if (st != MB_OK) {
        mb_op_free(&op->base);
        return mb_error_set(err, st, "context: out of memory");
    }
    *out = &op->base;
    return MB_OK;
}

const struct mb_stored_context *
mb_op_context_result(const struct mb_op *op)
{
    return &((const struct op_context *)op)->result;
}
