/* SPDX-License-Identifier: Apache-2.0
 * daemon/context_state.c - a context between the store and the model.
 *
 * The last token of a context is carried: it is read together with what
 * follows, because the model says what comes next only about tokens that it
 * reads just then. All others are in the model's object. What is saved is the
 * window as blocks, of which only those are written that changed, and the
 * carried token; whole segments went to the store while they were read.
 * Invariants: after context_save, context_cut and context_fork nothing is
 * pending and stored is what the store has; whatever fails in between unloads,
 * so that memory is never ahead of a store that refused.
 * Threads: the owner's, never mb-model's but for the scratch. */
#include <string.h>

#include "context_open.h"

#define MAX_ARENA_BYTES ((size_t)256 << 20)

/* ---- loading ---- */

static void
print_hex(const uint8_t *bytes, size_t n, char *out)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    out[2 * n] = 0;
}

static mb_status
check_weights(const struct open_context *oc,
    const struct mb_context_options *opt, struct mb_error *err)
{
    const uint8_t *theirs = oc->stored.shape.fingerprint;
    char a[17];
    char b[17];

    if (memcmp(theirs, opt->weights, 16) == 0)
        return MB_OK;
    print_hex(theirs, 8, a);
    print_hex(opt->weights, 8, b);
    return mb_error_set(err, MB_ERR_MISMATCH,
        "context \"%s\" was read by weights %s..., model %s is %s...: serve "
        "the model that it was made with, or delete it and append its text "
        "anew",
        oc->name, a, reader_file(oc->cs->d->reader), b);
}

struct restore {
    struct open_context *oc;
    struct mb_error *err;
};

static mb_status
restore_block(void *arg, const struct mb_stored_sum *sum)
{
    struct restore *r = arg;
    mb_status st = mb_context_restore(r->oc->model, sum->sum, r->err);

    if (st == MB_OK && sum->memory.size > 0)
        st = mb_context_restore_memory(r->oc->model, sum->memory, r->err);
    return st;
}

static mb_status
restore(struct open_context *oc, struct mb_snapshot *snap, struct mb_error *err)
{
    struct restore r = {oc, err};
    mb_status st =
        mb_store_context_scan(snap, &oc->stored, 0, restore_block, &r, err);

    for (uint32_t i = 0; i < oc->stored.tail_blocks && st == MB_OK; i++) {
        struct mb_slice block;
        struct mb_slice sum;

        st = mb_store_context_tail(snap, &oc->stored, i, &block, &sum, err);
        if (st == MB_OK)
            st = mb_context_restore_tail(oc->model, block, sum, err);
    }
    oc->carry = oc->stored.carry;
    if (st == MB_OK && context_position(oc) != oc->stored.n_tokens)
        st = mb_error_set(err, MB_ERR_CORRUPT,
            "context \"%s\" has %llu tokens, its record says %llu", oc->name,
            (unsigned long long)context_position(oc),
            (unsigned long long)oc->stored.n_tokens);
    return st;
}

static mb_status
make_model(struct open_context *oc, struct mb_error *err)
{
    struct reader *r = oc->cs->d->reader;
    struct mb_context_source source = context_source(oc);
    struct mb_context_options opt;
    struct context_settings s;
    mb_status st =
        context_settings_parse(oc->stored.settings, oc->arena, &s, err);

    if (st == MB_OK)
        st = context_options(r, &s, &opt, err);
    if (st == MB_OK)
        st = check_weights(oc, &opt, err);
    if (st == MB_OK)
        st = mb_context_new(reader_decoder(r), &opt, &source, &oc->model, err);
    if (st != MB_OK)
        return st;
    oc->block_bytes = mb_context_block_bytes(reader_decoder(r), &opt);
    if (oc->block_bytes != oc->stored.shape.kv_bytes)
        return mb_error_set(err, MB_ERR_FORMAT,
            "context \"%s\" has blocks of %u bytes, this program makes them "
            "of %zu: delete it and append its text anew",
            oc->name, (unsigned)oc->stored.shape.kv_bytes, oc->block_bytes);
    // What its table will have: a little less than all sums.
    return contexts_make_room(oc,
        mb_context_bytes(oc->model) +
            oc->stored.n_blocks * mb_context_sum_bytes(reader_decoder(r), &opt),
        err);
}

static mb_status carry_last(struct open_context *oc, struct mb_error *err);

mb_status
context_load(struct open_context *oc, struct mb_error *err)
{
    struct mb_snapshot *snap = NULL;
    uint64_t start = mb_clock_ns();
    mb_status st = MB_OK;

    oc->max_total = daemon_config(oc->cs->d)->context_bytes;
    if (oc->model != NULL)
        return MB_OK;
    oc->is_broken = false;
    oc->arena = mb_arena_new(MAX_ARENA_BYTES);
    if (oc->arena == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "context \"%s\"", oc->name);
    st = mb_snapshot_begin(oc->cs->d->store, &snap, err);
    if (st == MB_OK)
        st = mb_store_context_get(snap, mb_slice_of(oc->name, oc->name_size),
            oc->arena, &oc->stored, err);
    if (st == MB_OK)
        st = make_model(oc, err);
    if (st == MB_OK)
        st = restore(oc, snap, err);
    mb_snapshot_end(snap);
    // An append that was cut off left whole segments alone.
    if (st == MB_OK && oc->carry == MB_CONTEXT_NO_TOKEN &&
        mb_context_length(oc->model) > 0)
        st = carry_last(oc, err);
    if (st != MB_OK) {
        context_unload(oc);
        return st;
    }
    mb_log(MB_LOG_INFO, "context.open", "id=%llu blocks=%u ms=%llu",
        (unsigned long long)oc->stored.id, (unsigned)oc->stored.n_blocks,
        (unsigned long long)((mb_clock_ns() - start) / 1000000));
    return MB_OK;
}

void
context_unload(struct open_context *oc)
{
    context_finish(oc);
    mb_snapshot_end(oc->snap);
    oc->snap = NULL;
    context_drop_scratch(oc);
    oc->is_scratch = false;
    mb_context_free(oc->model);
    oc->model = NULL;
    mb_arena_free(oc->arena);
    oc->arena = NULL;
    mb_buffer_clear(&oc->runs);
    memset(&oc->stored, 0, sizeof oc->stored);
}

/* ---- looking ---- */

struct mb_context *
context_model(const struct open_context *oc)
{
    return oc->model;
}

const struct mb_stored_context *
context_stored(const struct open_context *oc)
{
    return &oc->stored;
}

void
context_note_touch(
    struct open_context *oc, const struct mb_stored_context *touched)
{
    oc->stored.quota = touched->quota;
    oc->stored.used_ms = touched->used_ms;
}

uint64_t
context_position(const struct open_context *oc)
{
    return mb_context_length(oc->model) +
           (oc->carry != MB_CONTEXT_NO_TOKEN ? 1 : 0);
}

mb_token_id
context_carry(const struct open_context *oc)
{
    return oc->carry;
}

void
context_set_carry(struct open_context *oc, mb_token_id id)
{
    oc->carry = id;
}

/* ---- scratch ---- */

void
context_begin_scratch(struct open_context *oc)
{
    oc->is_scratch = true;
    oc->scratch_length = mb_context_length(oc->model);
}

static void
end_fetches(struct open_context *oc)
{
    mb_snapshot_end(oc->snap);
    oc->snap = NULL;
}

mb_status
context_end_scratch(struct open_context *oc, struct mb_error *err)
{
    mb_status st = mb_context_truncate(oc->model, oc->scratch_length, err);

    end_fetches(oc);
    context_drop_scratch(oc);
    oc->is_scratch = false;
    // A window that is full, for want of room on disk, went to the scratch
    // whole and does not come back: it is in the store as a tail.
    if (st != MB_OK || mb_context_n_blocks(oc->model) != oc->stored.n_blocks)
        context_unload(oc);
    return st;
}

/* ---- saving ---- */

/* The tail of a model's object, from block `first` on. */
static mb_status
tail_of(struct mb_context *model, mb_token_id carry, uint32_t first,
    struct mb_stored_tail *out, struct mb_error *err)
{
    struct mb_context_segment seg;
    size_t n_tokens;
    mb_status st;

    // First, as asking for the window ends views of the tail.
    (void)mb_context_window(model, &n_tokens);
    st = mb_context_tail(model, &seg, err);
    if (st != MB_OK)
        return st;
    if (first > seg.n_blocks)
        first = 0;
    *out = (struct mb_stored_tail){
        .first = first,
        .kv = seg.blocks + first,
        .sum = seg.sums + first,
        .n = (uint32_t)(seg.n_blocks - first),
        .n_tokens = (uint32_t)n_tokens,
        .carry = carry,
    };
    return MB_OK;
}

/* Apply op, take its result over. */
static mb_status
apply(struct open_context *oc, struct mb_op *op, struct mb_error *err)
{
    struct mb_slice settings = oc->stored.settings;
    mb_status st = mb_store_apply(oc->cs->d->store, op, err);

    if (st == MB_OK) {
        oc->stored = *mb_op_context_result(op);
        oc->stored.settings = settings;
        st = context_take_runs(oc, mb_op_context_result(op));
    }
    mb_op_free(op);
    return st;
}

static mb_status
save(struct open_context *oc, struct mb_error *err)
{
    uint64_t n_blocks = mb_context_n_blocks(oc->model);
    bool is_cut = n_blocks < oc->stored.n_blocks;
    struct mb_stored_tail tail;
    struct mb_stored_append a = {.ctx = &oc->stored, .tail = &tail};
    struct mb_op *op = NULL;
    uint32_t first =
        is_cut ? 0 : oc->stored.n_tail / oc->stored.shape.block_tokens;
    mb_status st = context_wait(oc, err);

    if (st == MB_OK && !is_cut && oc->carry == oc->stored.carry &&
        context_position(oc) == oc->stored.n_tokens)
        return MB_OK;
    if (st == MB_OK)
        st = tail_of(oc->model, oc->carry, first, &tail, err);
    if (st == MB_OK)
        st = is_cut ? mb_op_context_cut_new(
                          &oc->stored, (uint32_t)n_blocks, &tail, &op, err)
                    : mb_op_context_append_new(&a, &op, err);
    return st == MB_OK ? apply(oc, op, err) : st;
}

mb_status
context_save(struct open_context *oc, struct mb_error *err)
{
    mb_status st = save(oc, err);

    if (st != MB_OK)
        context_unload(oc);
    return st;
}

/* ---- cutting and forking ---- */

static mb_status
check_position(
    const struct open_context *oc, uint64_t position, struct mb_error *err)
{
    uint64_t n = context_position(oc);

    if (position <= n)
        return MB_OK;
    return mb_error_set(err, MB_ERR_BAD_ARG,
        "at: is %llu, context \"%s\" has %llu tokens",
        (unsigned long long)position, oc->name, (unsigned long long)n);
}

/* The token at a position that the model's object has read. */
static mb_status
token_at(struct open_context *oc, uint64_t position, mb_token_id *out,
    struct mb_error *err)
{
    uint64_t length = mb_context_length(oc->model);
    struct mb_context_record record;
    struct mb_stored_sum sum;
    struct mb_snapshot *snap;
    const mb_token_id *window;
    size_t n;
    mb_status st;

    window = mb_context_window(oc->model, &n);
    if (position >= length - n) {
        *out = window[position - (length - n)];
        return MB_OK;
    }
    st = mb_snapshot_begin(oc->cs->d->store, &snap, err);
    if (st != MB_OK)
        return st;
    st = mb_store_context_sum(snap, &oc->stored,
        (uint32_t)(position / MB_CONTEXT_BLOCK_TOKENS), &sum, err);
    if (st == MB_OK)
        st = mb_context_record_read(sum.sum, false, &record, err);
    if (st == MB_OK)
        *out = (mb_token_id)mb_get_le32(
            record.tokens.data + position % MB_CONTEXT_BLOCK_TOKENS * 4);
    mb_snapshot_end(snap);
    return st;
}

/* Have as many tokens as `position` says, the last of them carried, in memory
 * and on disk. */
static mb_status
cut(struct open_context *oc, uint64_t position, struct mb_error *err)
{
    struct mb_stored_tail tail;
    struct mb_op *op = NULL;
    mb_status st = MB_OK;

    oc->carry = MB_CONTEXT_NO_TOKEN;
    if (position > 0)
        st = token_at(oc, --position, &oc->carry, err);
    if (st == MB_OK)
        st = mb_context_truncate(oc->model, position, err);
    end_fetches(oc);
    if (st == MB_OK)
        st = tail_of(oc->model, oc->carry, 0, &tail, err);
    if (st == MB_OK)
        st = mb_op_context_cut_new(&oc->stored,
            (uint32_t)mb_context_n_blocks(oc->model), &tail, &op, err);
    return st == MB_OK ? apply(oc, op, err) : st;
}

static mb_status
carry_last(struct open_context *oc, struct mb_error *err)
{
    return cut(oc, mb_context_length(oc->model), err);
}

mb_status
context_cut(struct open_context *oc, uint64_t position, struct mb_error *err)
{
    mb_status st = check_position(oc, position, err);

    if (st != MB_OK || position == context_position(oc))
        return st;
    st = cut(oc, position, err);
    if (st != MB_OK)
        context_unload(oc);
    return st;
}

mb_status
context_fork(struct open_context *oc, struct mb_slice name, uint64_t position,
    const uint64_t *quota, struct mb_error *err)
{
    struct mb_context_source source = context_source(oc);
    struct mb_context *copy = NULL;
    mb_token_id carry = oc->carry;
    struct mb_stored_tail tail;
    struct mb_op *op = NULL;
    mb_status st = check_position(oc, position, err);

    if (st != MB_OK)
        return st;
    if (position == context_position(oc)) {
        position = mb_context_length(oc->model);
    } else {
        carry = MB_CONTEXT_NO_TOKEN;
        if (position > 0)
            st = token_at(oc, --position, &carry, err);
    }
    if (st == MB_OK)
        st = mb_context_fork(oc->model, position, &source, &copy, err);
    end_fetches(oc);
    if (st == MB_OK)
        st = tail_of(copy, carry, 0, &tail, err);
    if (st == MB_OK)
        st = mb_op_context_fork_new(&oc->stored, name,
            (uint32_t)mb_context_n_blocks(copy), &tail, quota, &op, err);
    if (st == MB_OK)
        st = mb_store_apply(oc->cs->d->store, op, err);
    mb_op_free(op);
    mb_context_free(copy);
    return st;
}
