/* SPDX-License-Identifier: Apache-2.0
 * store/context.c - records of long contexts as bytes, and reading them.
 *
 * A record is small (its runs, its settings) and read whole; the halves of its
 * blocks lie in two tables, so that a walk over the small ones does not pass
 * the large ones.
 * Invariants: the runs of a context join without gaps and begin with block 0;
 * every number in a record that bounds something is compared with its size.
 * Threads: any; a transaction's own. */
#include "context_rows.h"

#include <stdio.h>
#include <string.h>

/* ---- keys ---- */

void
context_key(struct kv_key *key, uint64_t id, uint8_t kind)
{
    kv_key_init(key);
    kv_key_u64(key, id);
    kv_key_u8(key, kind);
}

void
context_sum_key(struct kv_key *key, uint64_t strip, uint32_t block)
{
    context_key(key, strip, CONTEXT_ROW_SUM);
    kv_key_u32(key, block);
}

void
context_tail_key(struct kv_key *key, uint64_t id, uint32_t i)
{
    context_key(key, id, CONTEXT_ROW_TAIL);
    kv_key_u32(key, i);
}

void
context_kv_key(struct kv_key *key, uint64_t strip, uint32_t block)
{
    kv_key_init(key);
    kv_key_u64(key, strip);
    kv_key_u32(key, block);
}

void
context_name_key(struct kv_key *key, struct mb_slice name)
{
    kv_key_init(key);
    kv_key_bytes(key, mb_slice_cstr(META_CONTEXT_PREFIX));
    kv_key_bytes(key, name);
}

void
context_erase_key(struct kv_key *key, uint64_t strip, uint32_t first)
{
    kv_key_init(key);
    kv_key_bytes(key, mb_slice_cstr(META_ERASE_PREFIX));
    kv_key_u64(key, strip);
    kv_key_u32(key, first);
}

size_t
context_kv_row(size_t kv_bytes)
{
    return kv_bytes + RECORD_CHECKSUM < KV_MIN_ROW ? KV_MIN_ROW
                                                   : kv_bytes + RECORD_CHECKSUM;
}

void
context_count(struct mb_stored_context *c)
{
    c->n_tokens = (uint64_t)c->n_blocks * c->shape.block_tokens + c->n_tail +
                  (c->carry != MB_CONTEXT_NO_TOKEN ? 1 : 0);
}

/* ---- bytes of a record ---- */

mb_status
context_encode(const struct mb_stored_context *c, struct mb_buffer *out)
{
    size_t name_size = strlen(c->name);
    size_t size = CONTEXT_FIXED + c->n_runs * CONTEXT_RUN + name_size +
                  c->settings.size + RECORD_CHECKSUM;

    mb_buffer_clear(out);
    mb_status st = mb_buffer_reserve(out, size);
    if (st != MB_OK)
        return st;
    uint8_t *p = out->data;
    memset(p, 0, size);
    mb_put_le64(p, c->created_ms);
    mb_put_le64(p + 8, c->used_ms);
    mb_put_le64(p + 16, c->changed_ms);
    mb_put_le64(p + 24, c->epoch);
    mb_put_le64(p + 32, c->bytes);
    mb_put_le64(p + 40, c->quota);
    mb_put_le64(p + 48, c->parent);
    mb_put_le64(p + 56, c->fork_tokens);
    memcpy(p + 64, c->shape.fingerprint, 16);
    mb_put_le32(p + 80, c->n_blocks);
    mb_put_le32(p + 84, c->n_segments);
    mb_put_le32(p + 88, c->n_tail);
    mb_put_le32(p + 92, c->shape.block_tokens);
    mb_put_le32(p + 96, c->shape.n_layers);
    mb_put_le32(p + 100, c->shape.n_kv_heads);
    mb_put_le32(p + 104, c->shape.head_dim);
    mb_put_le32(p + 108, c->shape.kv_type);
    mb_put_le32(p + 112, c->shape.memory_dim);
    mb_put_le32(p + 116, c->shape.kv_bytes);
    mb_put_le32(p + 120, (uint32_t)c->n_runs);
    mb_put_le32(p + 124, (uint32_t)name_size);
    mb_put_le32(p + 128, (uint32_t)c->settings.size);
    mb_put_le32(p + 132, c->tail_blocks);
    mb_put_le32(p + 136, (uint32_t)c->carry);
    uint8_t *at = p + CONTEXT_FIXED;
    for (size_t i = 0; i < c->n_runs; i++, at += CONTEXT_RUN) {
        mb_put_le64(at, c->runs[i].strip);
        mb_put_le32(at + 8, c->runs[i].first);
        mb_put_le32(at + 12, c->runs[i].end);
    }
    memcpy(at, c->name, name_size);
    if (c->settings.size > 0)
        memcpy(at + name_size, c->settings.data, c->settings.size);
    record_seal(p, size);
    out->size = size;
    return MB_OK;
}

/* Runs at `at`, checked: they join, from 0 to n_blocks. */
static mb_status
decode_runs(
    const uint8_t *at, struct mb_stored_context *c, struct mb_arena *arena)
{
    struct mb_stored_run *runs =
        mb_arena_calloc(arena, c->n_runs + 1, sizeof *runs);
    uint32_t next = 0;

    if (runs == NULL)
        return MB_ERR_NOMEM;
    for (size_t i = 0; i < c->n_runs; i++, at += CONTEXT_RUN) {
        struct mb_stored_run run = {
            mb_get_le64(at), mb_get_le32(at + 8), mb_get_le32(at + 12)};

        if (run.first != next || run.end <= run.first)
            return MB_ERR_CORRUPT;
        next = run.end;
        runs[i] = run;
    }
    c->runs = runs;
    return next == c->n_blocks ? MB_OK : MB_ERR_CORRUPT;
}

/* The fields of fixed size, and their limits. */
static mb_status
decode_fixed(const uint8_t *p, struct mb_stored_context *c)
{
    memset(c, 0, sizeof *c);
    c->created_ms = mb_get_le64(p);
    c->used_ms = mb_get_le64(p + 8);
    c->changed_ms = mb_get_le64(p + 16);
    c->epoch = mb_get_le64(p + 24);
    c->bytes = mb_get_le64(p + 32);
    c->quota = mb_get_le64(p + 40);
    c->parent = mb_get_le64(p + 48);
    c->fork_tokens = mb_get_le64(p + 56);
    memcpy(c->shape.fingerprint, p + 64, 16);
    c->n_blocks = mb_get_le32(p + 80);
    c->n_segments = mb_get_le32(p + 84);
    c->n_tail = mb_get_le32(p + 88);
    c->shape.block_tokens = mb_get_le32(p + 92);
    c->shape.n_layers = mb_get_le32(p + 96);
    c->shape.n_kv_heads = mb_get_le32(p + 100);
    c->shape.head_dim = mb_get_le32(p + 104);
    c->shape.kv_type = mb_get_le32(p + 108);
    c->shape.memory_dim = mb_get_le32(p + 112);
    c->shape.kv_bytes = mb_get_le32(p + 116);
    c->n_runs = mb_get_le32(p + 120);
    c->tail_blocks = mb_get_le32(p + 132);
    c->carry = (int32_t)mb_get_le32(p + 136);
    context_count(c);
    return c->n_runs <= MB_MAX_CONTEXT_RUNS &&
                   c->tail_blocks <= MB_MAX_CONTEXT_TAIL
               ? MB_OK
               : MB_ERR_CORRUPT;
}

mb_status
context_decode(struct mb_slice record, struct mb_arena *arena,
    struct mb_stored_context *out)
{
    struct mb_stored_context c;
    const uint8_t *p = record.data;

    if (record.size < CONTEXT_FIXED + RECORD_CHECKSUM ||
        !record_is_sound(record))
        return MB_ERR_CORRUPT;
    mb_status st = decode_fixed(p, &c);
    size_t name_size = mb_get_le32(p + 124);
    size_t settings_size = mb_get_le32(p + 128);
    size_t names_at = CONTEXT_FIXED + c.n_runs * CONTEXT_RUN;
    if (st != MB_OK || name_size > MB_MAX_CONTEXT_NAME ||
        settings_size > MB_MAX_CONTEXT_SETTINGS ||
        record.size != names_at + name_size + settings_size + RECORD_CHECKSUM)
        return MB_ERR_CORRUPT;
    memcpy(c.name, p + names_at, name_size);
    if (settings_size > 0) {
        const uint8_t *copy =
            mb_arena_dup(arena, p + names_at + name_size, settings_size);
        if (copy == NULL)
            return MB_ERR_NOMEM;
        c.settings = mb_slice_of(copy, settings_size);
    }
    st = decode_runs(p + CONTEXT_FIXED, &c, arena);
    if (st == MB_OK)
        *out = c;
    return st;
}

/* ---- bytes of a block's small half ---- */

mb_status
context_sum_encode(const struct mb_stored_sum *sum, struct mb_buffer *out)
{
    uint8_t head[SUM_FIXED];
    uint8_t none[RECORD_CHECKSUM] = {0};

    mb_put_le32(head, sum->block);
    mb_put_le32(head + 4, sum->segment);
    mb_put_le32(head + 8, sum->ends_segment ? SUM_ENDS : 0);
    mb_put_le32(head + 12, (uint32_t)sum->sum.size);
    mb_put_le32(head + 16, (uint32_t)sum->memory.size);
    mb_buffer_clear(out);
    mb_status st = mb_buffer_append(out, head, sizeof head);
    if (st == MB_OK)
        st = mb_buffer_append(out, sum->sum.data, sum->sum.size);
    if (st == MB_OK)
        st = mb_buffer_append(out, sum->memory.data, sum->memory.size);
    if (st == MB_OK)
        st = mb_buffer_append(out, none, sizeof none);
    if (st == MB_OK)
        record_seal(out->data, out->size);
    return st;
}

mb_status
context_sum_decode(struct mb_slice record, struct mb_stored_sum *out)
{
    const uint8_t *p = record.data;

    if (record.size < SUM_FIXED + RECORD_CHECKSUM || !record_is_sound(record))
        return MB_ERR_CORRUPT;
    uint64_t sum = mb_get_le32(p + 12);
    uint64_t memory = mb_get_le32(p + 16);
    if (record.size != SUM_FIXED + sum + memory + RECORD_CHECKSUM)
        return MB_ERR_CORRUPT;
    *out = (struct mb_stored_sum){
        .block = mb_get_le32(p),
        .segment = mb_get_le32(p + 4),
        .ends_segment = (mb_get_le32(p + 8) & SUM_ENDS) != 0,
        .sum = mb_slice_of(p + SUM_FIXED, (size_t)sum),
        .memory = mb_slice_of(p + SUM_FIXED + sum, (size_t)memory),
    };
    return MB_OK;
}

/* ---- records in any transaction ---- */

static mb_status
no_context(struct mb_slice name, struct mb_error *err)
{
    int size = (int)(name.size < MB_MAX_CONTEXT_NAME ? name.size
                                                     : MB_MAX_CONTEXT_NAME);

    return mb_error_set(err, MB_ERR_NOT_FOUND, "no context \"%.*s\"", size,
        (const char *)name.data);
}

mb_status
context_read_id(struct kv_txn *txn, uint64_t id, struct mb_arena *arena,
    struct mb_stored_context *out, struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice val;

    context_key(&key, id, CONTEXT_ROW_RECORD);
    mb_status st = kv_get(txn, KV_CONTEXTS, kv_key_slice(&key), &val);
    if (st == MB_ERR_NOT_FOUND)
        return mb_error_set(err, st, "no context %llu", (unsigned long long)id);
    if (st != MB_OK)
        return kv_txn_explain(txn, st, err);
    st = context_decode(val, arena, out);
    if (st != MB_OK)
        return mb_error_set(err, st, "record of context %llu: %s",
            (unsigned long long)id, mb_status_text(st));
    out->id = id;
    return MB_OK;
}

mb_status
context_read(struct kv_txn *txn, struct mb_slice name, struct mb_arena *arena,
    struct mb_stored_context *out, struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice val;

    if (name.size == 0 || name.size > MB_MAX_CONTEXT_NAME)
        return no_context(name, err);
    context_name_key(&key, name);
    mb_status st = kv_get(txn, KV_META, kv_key_slice(&key), &val);
    if (st == MB_ERR_NOT_FOUND)
        return no_context(name, err);
    if (st != MB_OK)
        return kv_txn_explain(txn, st, err);
    if (val.size != 8)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "name row of a context has %zu bytes", val.size);
    uint64_t id = mb_get_le64(val.data);
    st = context_read_id(txn, id, arena, out, err);
    if (st == MB_ERR_NOT_FOUND)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "context %llu has a name but no record", (unsigned long long)id);
    return st;
}

/* Names that there are. */
static mb_status
count_names(struct kv_cursor *c, struct mb_slice prefix, size_t *n)
{
    struct mb_slice key;
    mb_status st = kv_cursor_seek(c, prefix, &key, NULL);

    *n = 0;
    while (st == MB_OK && kv_has_prefix(key, prefix)) {
        *n += 1;
        st = kv_cursor_next(c, &key, NULL);
    }
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
}

mb_status
context_read_all(struct kv_txn *txn, struct mb_arena *arena,
    struct mb_stored_context **out, size_t *n, struct mb_error *err)
{
    struct mb_slice prefix = mb_slice_cstr(META_CONTEXT_PREFIX);
    struct mb_stored_context *list = NULL;
    struct mb_slice key;
    struct mb_slice val;
    struct kv_cursor *c;
    size_t count = 0;
    mb_status st = kv_cursor_open(txn, KV_META, &c);

    if (st != MB_OK)
        return kv_txn_explain(txn, st, err);
    st = count_names(c, prefix, n);
    if (st == MB_OK) {
        list = mb_arena_calloc(arena, *n + 1, sizeof *list);
        if (list == NULL)
            st = mb_error_set(err, MB_ERR_NOMEM, "%zu contexts", *n);
    }
    if (st == MB_OK)
        st = kv_cursor_seek(c, prefix, &key, &val);
    while (st == MB_OK && kv_has_prefix(key, prefix) && count < *n) {
        st = val.size == 8
                 ? context_read_id(
                       txn, mb_get_le64(val.data), arena, &list[count++], err)
                 : mb_error_set(err, MB_ERR_CORRUPT,
                       "name row of a context has %zu bytes", val.size);
        if (st == MB_OK)
            st = kv_cursor_next(c, &key, &val);
        else if (st == MB_ERR_NOT_FOUND)
            st = MB_ERR_CORRUPT; // a name without a record
    }
    kv_cursor_close(c);
    if (st == MB_ERR_NOT_FOUND)
        st = MB_OK;
    if (st == MB_OK) {
        *out = list;
        *n = count;
    }
    return kv_txn_explain(txn, st, err);
}

mb_status
context_meta_u64(struct kv_txn *txn, const char *name, uint64_t *out)
{
    struct mb_slice val;
    mb_status st = kv_get(txn, KV_META, mb_slice_cstr(name), &val);

    if (st == MB_OK && val.size != 8)
        return MB_ERR_CORRUPT;
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return st;
    *out = st == MB_OK ? mb_get_le64(val.data) : 0;
    return MB_OK;
}

/* ---- blocks ---- */

const struct mb_stored_run *
context_run_of(const struct mb_stored_context *ctx, uint32_t block)
{
    size_t low = 0;
    size_t high = ctx->n_runs;

    while (low < high) {
        size_t mid = low + (high - low) / 2;

        if (block >= ctx->runs[mid].end)
            low = mid + 1;
        else
            high = mid;
    }
    return low < ctx->n_runs ? &ctx->runs[low] : NULL;
}

mb_status
context_row_bytes(
    struct kv_txn *txn, uint64_t strip, uint32_t block, uint64_t *bytes)
{
    struct kv_key key;
    struct mb_slice sum;
    struct mb_slice kv;

    *bytes = 0;
    context_sum_key(&key, strip, block);
    mb_status st = kv_get(txn, KV_CONTEXTS, kv_key_slice(&key), &sum);
    if (st == MB_OK) {
        *bytes += sum.size;
        context_kv_key(&key, strip, block);
        st = kv_get(txn, KV_BLOCKS, kv_key_slice(&key), &kv);
    }
    if (st == MB_OK)
        *bytes += kv.size;
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
}

static mb_status
no_block(const struct mb_stored_context *ctx, uint32_t block, mb_status st,
    struct mb_error *err)
{
    return mb_error_set(err, st, "context \"%s\": block %u %s", ctx->name,
        (unsigned)block,
        st == MB_ERR_NOT_FOUND ? "is not there" : "is damaged");
}

mb_status
context_sum_read(struct kv_txn *txn, const struct mb_stored_context *ctx,
    uint32_t block, struct mb_stored_sum *out, struct mb_error *err)
{
    const struct mb_stored_run *run = context_run_of(ctx, block);
    struct kv_key key;
    struct mb_slice val;

    if (run == NULL)
        return no_block(ctx, block, MB_ERR_NOT_FOUND, err);
    context_sum_key(&key, run->strip, block);
    mb_status st = kv_get(txn, KV_CONTEXTS, kv_key_slice(&key), &val);
    if (st == MB_OK)
        st = context_sum_decode(val, out);
    if (st == MB_OK && out->block != block)
        st = MB_ERR_CORRUPT;
    if (st == MB_ERR_NOT_FOUND || st == MB_ERR_CORRUPT)
        return no_block(ctx, block, st, err);
    return kv_txn_explain(txn, st, err);
}

/* ---- public reading ---- */

mb_status
mb_store_context_get(struct mb_snapshot *snap, struct mb_slice name,
    struct mb_arena *arena, struct mb_stored_context *out, struct mb_error *err)
{
    error_begin(err);
    return context_read(snap->txn, name, arena, out, err);
}

mb_status
mb_store_context_list(struct mb_snapshot *snap, struct mb_arena *arena,
    struct mb_stored_context **out, size_t *n, struct mb_error *err)
{
    error_begin(err);
    return context_read_all(snap->txn, arena, out, n, err);
}

mb_status
mb_store_context_room(const struct mb_stored_context *ctx, uint64_t total,
    uint64_t more, uint64_t max_total, struct mb_error *err)
{
    if (ctx->quota != 0 && more > 0 && ctx->bytes + more > ctx->quota)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "context \"%s\" has %llu bytes of its quota of %llu, %llu more are "
            "wanted: truncate it, or open it with a larger quota",
            ctx->name, (unsigned long long)ctx->bytes,
            (unsigned long long)ctx->quota, (unsigned long long)more);
    if (max_total != 0 && more > 0 && total + more > max_total)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "all contexts have %llu bytes of %llu, \"%s\" wants %llu more: "
            "delete one, or raise context_bytes",
            (unsigned long long)total, (unsigned long long)max_total, ctx->name,
            (unsigned long long)more);
    return MB_OK;
}

mb_status
mb_store_context_total(struct mb_snapshot *snap, uint64_t *bytes, uint64_t *n,
    struct mb_error *err)
{
    struct kv_cursor *c;
    size_t count = 0;

    error_begin(err);
    mb_status st = context_meta_u64(snap->txn, META_CONTEXT_BYTES, bytes);
    if (st == MB_OK)
        st = kv_cursor_open(snap->txn, KV_META, &c);
    if (st == MB_OK) {
        st = count_names(c, mb_slice_cstr(META_CONTEXT_PREFIX), &count);
        kv_cursor_close(c);
    }
    *n = count;
    return kv_txn_explain(snap->txn, st, err);
}

/* Blocks [from, run->end) of one run, by one cursor. */
static mb_status
scan_run(struct kv_txn *txn, struct kv_cursor *c,
    const struct mb_stored_context *ctx, const struct mb_stored_run *run,
    uint32_t from, mb_stored_sum_fn fn, void *arg, struct mb_error *err)
{
    struct kv_key want;
    struct mb_slice key;
    struct mb_slice val;

    context_sum_key(&want, run->strip, from);
    mb_status st = kv_cursor_seek(c, kv_key_slice(&want), &key, &val);
    for (uint32_t block = from; block < run->end; block++) {
        struct mb_stored_sum sum;

        context_sum_key(&want, run->strip, block);
        if (st == MB_ERR_NOT_FOUND ||
            (st == MB_OK && !mb_slice_equal(key, kv_key_slice(&want))))
            return no_block(ctx, block, MB_ERR_CORRUPT, err);
        if (st == MB_OK)
            st = context_sum_decode(val, &sum);
        if (st == MB_ERR_CORRUPT || (st == MB_OK && sum.block != block))
            return no_block(ctx, block, MB_ERR_CORRUPT, err);
        if (st != MB_OK)
            return kv_txn_explain(txn, st, err);
        st = fn(arg, &sum);
        if (st != MB_OK)
            return kv_txn_explain(txn, st, err);
        st = kv_cursor_next(c, &key, &val);
    }
    return MB_OK;
}

mb_status
mb_store_context_scan(struct mb_snapshot *snap,
    const struct mb_stored_context *ctx, uint32_t from, mb_stored_sum_fn fn,
    void *arg, struct mb_error *err)
{
    struct kv_cursor *c;

    error_begin(err);
    if (from > ctx->n_blocks)
        return no_block(ctx, from, MB_ERR_NOT_FOUND, err);
    mb_status st = kv_cursor_open(snap->txn, KV_CONTEXTS, &c);
    if (st != MB_OK)
        return kv_txn_explain(snap->txn, st, err);
    for (size_t i = 0; i < ctx->n_runs && st == MB_OK; i++) {
        const struct mb_stored_run *run = &ctx->runs[i];

        if (run->end > from)
            st = scan_run(snap->txn, c, ctx, run,
                run->first > from ? run->first : from, fn, arg, err);
    }
    kv_cursor_close(c);
    return st;
}

mb_status
mb_store_context_kv(struct mb_snapshot *snap,
    const struct mb_stored_context *ctx, uint32_t block, struct mb_slice *out,
    struct mb_error *err)
{
    const struct mb_stored_run *run = context_run_of(ctx, block);
    struct kv_key key;
    struct mb_slice val;

    error_begin(err);
    if (run == NULL)
        return no_block(ctx, block, MB_ERR_NOT_FOUND, err);
    context_kv_key(&key, run->strip, block);
    mb_status st = kv_get(snap->txn, KV_BLOCKS, kv_key_slice(&key), &val);
    if (st == MB_ERR_NOT_FOUND)
        return no_block(ctx, block, st, err);
    if (st == MB_OK && val.size != context_kv_row(ctx->shape.kv_bytes))
        return no_block(ctx, block, MB_ERR_CORRUPT, err);
    if (st != MB_OK)
        return kv_txn_explain(snap->txn, st, err);
    *out = mb_slice_of(val.data, ctx->shape.kv_bytes);
    return MB_OK;
}

/* Halves of a row of a tail; false if it is damaged. */
bool
context_tail_decode(struct mb_slice row, const struct mb_stored_context *ctx,
    struct mb_slice *kv, struct mb_slice *sum)
{
    size_t kv_bytes = ctx->shape.kv_bytes;

    if (row.size < kv_bytes + TAIL_END || !record_is_sound(row))
        return false;
    size_t sum_bytes = mb_get_le32(row.data + row.size - TAIL_END);
    if (sum_bytes > row.size - kv_bytes - TAIL_END)
        return false;
    *kv = mb_slice_of(row.data, kv_bytes);
    *sum = mb_slice_of(row.data + kv_bytes, sum_bytes);
    return true;
}

mb_status
mb_store_context_tail(struct mb_snapshot *snap,
    const struct mb_stored_context *ctx, uint32_t i, struct mb_slice *kv,
    struct mb_slice *sum, struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice val;

    error_begin(err);
    context_tail_key(&key, ctx->id, i);
    mb_status st = kv_get(snap->txn, KV_CONTEXTS, kv_key_slice(&key), &val);
    if (st == MB_ERR_NOT_FOUND || (st == MB_OK && i >= ctx->tail_blocks))
        return mb_error_set(err, MB_ERR_NOT_FOUND,
            "context \"%s\": no block %u of its tail", ctx->name, (unsigned)i);
    if (st == MB_OK && !context_tail_decode(val, ctx, kv, sum))
        return mb_error_set(err, MB_ERR_CORRUPT,
            "context \"%s\": block %u of its tail is damaged", ctx->name,
            (unsigned)i);
    return kv_txn_explain(snap->txn, st, err);
}

mb_status
mb_store_context_sum(struct mb_snapshot *snap,
    const struct mb_stored_context *ctx, uint32_t block,
    struct mb_stored_sum *out, struct mb_error *err)
{
    error_begin(err);
    return context_sum_read(snap->txn, ctx, block, out, err);
}
