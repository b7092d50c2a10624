/* SPDX-License-Identifier: Apache-2.0
 * store/context_trace.c - what was retrieved when, as bytes. See FORMAT.md. */
#include "context_rows.h"

#define TRACE_VERSION 1u
#define TRACE_HEAD    16u
#define TRACE_PICK    12u

static mb_status
put_u32(struct mb_buffer *out, uint32_t v)
{
    uint8_t bytes[4];

    mb_put_le32(bytes, v);
    return mb_buffer_append(out, bytes, sizeof bytes);
}

mb_status
context_trace_encode(const struct mb_stored_trace *t, struct mb_buffer *out)
{
    const uint32_t head[] = {
        TRACE_VERSION, t->n_tokens, t->step_tokens, (uint32_t)t->n};
    mb_status st = MB_OK;

    for (size_t i = 0; i < 4 && st == MB_OK; i++) {
        st = put_u32(out, head[i]);
    }
    for (size_t i = 0; i < t->n && st == MB_OK; i++) {
        st = put_u32(out, t->picks[i].step);
        if (st == MB_OK)
            st = put_u32(out, t->picks[i].block);
        if (st == MB_OK)
            st = put_u32(out, t->picks[i].count);
    }
    return st;
}

/* Of a row without its checksum. */
static mb_status
decode(
    struct mb_slice body, struct mb_arena *arena, struct mb_stored_trace *out)
{
    struct mb_stored_pick *picks;
    const uint8_t *at = body.data + TRACE_HEAD;
    uint32_t n;

    if (body.size < TRACE_HEAD || mb_get_le32(body.data) != TRACE_VERSION)
        return MB_ERR_CORRUPT;
    n = mb_get_le32(body.data + 12);
    if (n > MB_MAX_CONTEXT_PICKS ||
        body.size != TRACE_HEAD + (size_t)n * TRACE_PICK)
        return MB_ERR_CORRUPT;
    picks = mb_arena_calloc(arena, (size_t)n + 1, sizeof *picks);
    if (picks == NULL)
        return MB_ERR_NOMEM;
    for (uint32_t i = 0; i < n; i++, at += TRACE_PICK) {
        picks[i].step = mb_get_le32(at);
        picks[i].block = mb_get_le32(at + 4);
        picks[i].count = mb_get_le32(at + 8);
    }
    *out = (struct mb_stored_trace){
        .n_tokens = mb_get_le32(body.data + 4),
        .step_tokens = mb_get_le32(body.data + 8),
        .picks = picks,
        .n = n,
    };
    return MB_OK;
}

mb_status
mb_store_context_trace(struct mb_snapshot *snap,
    const struct mb_stored_context *ctx, struct mb_arena *arena,
    struct mb_stored_trace *out, struct mb_error *err)
{
    struct mb_slice val;
    struct kv_key key;

    error_begin(err);
    context_key(&key, ctx->id, CONTEXT_ROW_TRACE);
    mb_status st = kv_get(snap->txn, KV_CONTEXTS, kv_key_slice(&key), &val);
    if (st == MB_ERR_NOT_FOUND) {
        *out = (struct mb_stored_trace){0};
        return MB_OK;
    }
    if (st != MB_OK)
        return kv_txn_explain(snap->txn, st, err);
    st = record_is_sound(val)
             ? decode(mb_slice_of(val.data, val.size - RECORD_CHECKSUM), arena,
                   out)
             : MB_ERR_CORRUPT;
    return st == MB_OK ? MB_OK
                       : mb_error_set(err, st,
                             "context \"%s\": what was retrieved", ctx->name);
}
