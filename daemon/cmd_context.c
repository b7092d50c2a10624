/* SPDX-License-Identifier: Apache-2.0
 * daemon/cmd_context.c - contexts: open, fork, truncate, list, close, delete.
 *
 * What reads a text through the model is in cmd_context_model.c. All but list
 * own the context that they are about while they run.
 * Threads: a worker. */
#include "cmd_context.h"

#include <string.h>

#define MAX_CONTEXT_QUOTA (UINT64_C(1) << 62)

/* ---- a context as a client sees it ---- */

void
context_write(struct call *c, const struct mb_stored_context *s)
{
    struct mb_writer *w = &c->w;
    uint8_t fingerprint[READER_FINGERPRINT] = {0};
    bool is_dormant = true;

    if (reader_absence(c->d->reader) == NULL) {
        reader_fingerprint(c->d->reader, fingerprint);
        is_dormant =
            memcmp(fingerprint, s->shape.fingerprint, sizeof fingerprint) != 0;
    }
    mb_write_map(w, 12);
    mb_write_kv_cstr(w, "name", s->name);
    mb_write_cstr(w, "settings");
    mb_write_raw(w, s->settings);
    mb_write_kv_uint(w, "tokens", s->n_tokens);
    mb_write_kv_uint(w, "blocks", s->n_blocks);
    mb_write_kv_uint(w, "segments", s->n_segments);
    mb_write_kv_uint(w, "bytes", s->bytes);
    mb_write_kv_uint(w, "quota", s->quota);
    mb_write_kv_uint(w, "fork_tokens", s->fork_tokens);
    mb_write_kv_uint(w, "created_ms", s->created_ms);
    mb_write_kv_uint(w, "changed_ms", s->changed_ms);
    mb_write_kv_uint(w, "used_ms", s->used_ms);
    mb_write_kv_bool(w, "dormant", is_dormant);
}

mb_status
context_enter(struct call *c, struct open_context **out, bool *later)
{
    struct mb_slice name;
    struct mb_error *err = &c->err;
    mb_status st = reader_check(c->d->reader, c->command->name, err);

    if (st == MB_OK)
        st = mb_arg_str(c->args, "name", true, &name, err);
    return st == MB_OK ? contexts_enter(c->d->contexts, c, name, out, later)
                       : st;
}

/* ---- open ---- */

static mb_status
apply(struct call *c, struct mb_op *op)
{
    mb_status st = mb_store_apply(c->d->store, op, &c->err);

    mb_op_free(op);
    return st;
}

/* Its settings as args have them, packed in the call's arena. */
static mb_status
pack_settings(struct call *c, struct context_settings *s, struct mb_slice *out)
{
    struct mb_buffer bytes;
    const struct mb_value *map;
    struct mb_writer w;
    mb_status st = mb_arg_map(c->args, "settings", false, &map, &c->err);

    context_settings_default(c->d->reader, s);
    if (st == MB_OK && map != NULL)
        st = context_settings_read(map, s, &c->err);
    if (st == MB_OK)
        st = context_settings_bind(c->d->reader, s, &c->err);
    if (st != MB_OK)
        return st;
    mb_buffer_init(&bytes, MB_MAX_CONTEXT_SETTINGS);
    mb_writer_init(&w, &bytes);
    context_settings_write(&w, s);
    const uint8_t *copy = w.status == MB_OK
                              ? mb_arena_dup(c->arena, bytes.data, bytes.size)
                              : NULL;
    *out = mb_slice_of(copy, bytes.size);
    mb_buffer_fini(&bytes);
    return copy != NULL ? MB_OK
                        : mb_error_set(&c->err, MB_ERR_NOMEM, "settings");
}

static mb_status
read_quota(struct call *c, uint64_t *quota, bool *is_given)
{
    *is_given = mb_value_get(c->args, "quota") != NULL;
    return mb_arg_u64(c->args, "quota", daemon_config(c->d)->context_quota, 0,
        MAX_CONTEXT_QUOTA, quota, &c->err);
}

static mb_status
create(struct call *c, struct mb_slice name)
{
    struct mb_context_options opt;
    struct mb_stored_shape shape;
    struct context_settings s;
    struct mb_slice settings;
    struct mb_op *op = NULL;
    uint64_t quota;
    bool is_given;
    mb_status st = pack_settings(c, &s, &settings);

    if (st == MB_OK)
        st = read_quota(c, &quota, &is_given);
    if (st == MB_OK)
        st = context_options(c->d->reader, &s, &opt, &c->err);
    if (st != MB_OK)
        return st;
    context_shape(c->d->reader, &opt, &shape);
    st = mb_op_context_create_new(name, &shape, settings, quota, &op, &c->err);
    return st == MB_OK ? apply(c, op) : st;
}

/* One that is there: are its settings those that are asked for? Its quota and
 * the time of its use. */
static mb_status
use_existing(struct call *c, struct mb_slice name, struct open_context *oc)
{
    struct context_settings s;
    struct mb_slice settings;
    struct mb_op *op = NULL;
    uint64_t quota;
    bool is_given;
    mb_status st = pack_settings(c, &s, &settings);

    if (st == MB_OK && mb_value_get(c->args, "settings") != NULL &&
        !mb_slice_equal(settings, context_stored(oc)->settings))
        st = mb_error_set(&c->err, MB_ERR_MISMATCH,
            "context \"%.*s\" exists with other settings: open it without, or "
            "under another name",
            (int)name.size, (const char *)name.data);
    if (st == MB_OK)
        st = read_quota(c, &quota, &is_given);
    if (st == MB_OK)
        st = mb_op_context_touch_new(
            name, is_given ? &quota : NULL, &op, &c->err);
    if (st != MB_OK)
        return st;
    st = mb_store_apply(c->d->store, op, &c->err);
    if (st == MB_OK)
        context_note_touch(oc, mb_op_context_result(op));
    mb_op_free(op);
    return st;
}

static mb_status
open_it(struct call *c, struct open_context *oc)
{
    struct mb_slice name;
    bool is_made = false;
    bool may_make;
    mb_status st = mb_arg_bool(c->args, "create", true, &may_make, &c->err);

    if (st == MB_OK)
        st = mb_arg_str(c->args, "name", true, &name, &c->err);
    if (st == MB_OK)
        st = context_load(oc, &c->err);
    if (st == MB_ERR_NOT_FOUND && may_make) {
        is_made = true;
        st = create(c, name);
        if (st == MB_OK)
            st = context_load(oc, &c->err);
    } else if (st == MB_OK) {
        st = use_existing(c, name, oc);
    }
    if (st != MB_OK)
        return st;
    mb_write_map(&c->w, 2);
    mb_write_kv_bool(&c->w, "created", is_made);
    mb_write_cstr(&c->w, "context");
    context_write(c, context_stored(oc));
    return MB_OK;
}

/* ---- the commands ---- */

/* fn on the context that args.name names. */
static mb_status
with_context(struct call *c,
    mb_status (*fn)(struct call *c, struct open_context *oc), bool *later)
{
    struct open_context *oc = NULL;
    mb_status st = context_enter(c, &oc, later);

    if (st != MB_OK || *later)
        return st;
    st = fn(c, oc);
    contexts_leave(oc);
    return st;
}

COMMAND_HANDLER(cmd_context_open)
{
    (void)w;
    return with_context(c, open_it, later);
}

static mb_status
fork_it(struct call *c, struct open_context *oc)
{
    struct mb_stored_context made;
    struct mb_snapshot *snap;
    struct mb_slice to;
    uint64_t at;
    uint64_t quota;
    bool is_given;
    mb_status st = mb_arg_str(c->args, "to", true, &to, &c->err);

    if (st == MB_OK)
        st = context_load(oc, &c->err);
    if (st == MB_OK)
        st = mb_arg_u64(
            c->args, "at", context_position(oc), 0, UINT64_MAX, &at, &c->err);
    if (st == MB_OK)
        st = read_quota(c, &quota, &is_given);
    if (st == MB_OK)
        st = context_fork(oc, to, at, is_given ? &quota : NULL, &c->err);
    if (st != MB_OK)
        return st;
    st = mb_snapshot_begin(c->d->store, &snap, &c->err);
    if (st != MB_OK)
        return st;
    st = mb_store_context_get(snap, to, c->arena, &made, &c->err);
    mb_snapshot_end(snap);
    if (st != MB_OK)
        return st;
    mb_write_map(&c->w, 1);
    mb_write_cstr(&c->w, "context");
    context_write(c, &made);
    return MB_OK;
}

COMMAND_HANDLER(cmd_context_fork)
{
    (void)w;
    return with_context(c, fork_it, later);
}

static mb_status
truncate_it(struct call *c, struct open_context *oc)
{
    uint64_t at;
    mb_status st = mb_arg_u64(c->args, "at", 0, 0, UINT64_MAX, &at, &c->err);

    if (st == MB_OK)
        st = context_load(oc, &c->err);
    if (st == MB_OK)
        st = context_cut(oc, at, &c->err);
    if (st != MB_OK)
        return st;
    mb_write_map(&c->w, 1);
    mb_write_cstr(&c->w, "context");
    context_write(c, context_stored(oc));
    return MB_OK;
}

COMMAND_HANDLER(cmd_context_truncate)
{
    (void)w;
    return with_context(c, truncate_it, later);
}

static mb_status
close_it(struct call *c, struct open_context *oc)
{
    bool is_open = context_model(oc) != NULL;

    context_unload(oc);
    mb_write_map(&c->w, 1);
    mb_write_kv_bool(&c->w, "closed", is_open);
    return MB_OK;
}

COMMAND_HANDLER(cmd_context_close)
{
    (void)w;
    return with_context(c, close_it, later);
}

/* A context of other weights is deleted like any. */
COMMAND_HANDLER(cmd_context_delete)
{
    struct open_context *oc = NULL;
    struct mb_op *op = NULL;
    struct mb_slice name;
    mb_status st = mb_arg_str(c->args, "name", true, &name, &c->err);

    (void)w;
    if (st == MB_OK)
        st = contexts_enter(c->d->contexts, c, name, &oc, later);
    if (st != MB_OK || *later)
        return st;
    context_unload(oc);
    st = mb_op_context_delete_new(name, &op, &c->err);
    if (st == MB_OK)
        st = apply(c, op);
    contexts_leave(oc);
    if (st != MB_OK)
        return st;
    mb_write_map(&c->w, 1);
    mb_write_kv_bool(&c->w, "deleted", true);
    return MB_OK;
}

COMMAND_HANDLER(cmd_context_list)
{
    struct mb_stored_context *list;
    struct mb_snapshot *snap;
    struct mb_slice name;
    uint64_t total = 0;
    uint64_t n_all;
    size_t n = 1;
    bool all = mb_value_get(c->args, "name") == NULL;
    mb_status st = mb_arg_str(c->args, "name", false, &name, &c->err);

    (void)w;
    (void)later;
    if (st == MB_OK)
        st = mb_snapshot_begin(c->d->store, &snap, &c->err);
    if (st != MB_OK)
        return st;
    if (all) {
        st = mb_store_context_list(snap, c->arena, &list, &n, &c->err);
    } else {
        list = mb_arena_calloc(c->arena, 1, sizeof *list);
        st = list != NULL
                 ? mb_store_context_get(snap, name, c->arena, list, &c->err)
                 : mb_error_set(&c->err, MB_ERR_NOMEM, "a context");
    }
    if (st == MB_OK)
        st = mb_store_context_total(snap, &total, &n_all, &c->err);
    mb_snapshot_end(snap);
    if (st != MB_OK)
        return st;
    mb_write_map(&c->w, 2);
    mb_write_kv_uint(&c->w, "bytes", total);
    mb_write_cstr(&c->w, "contexts");
    mb_write_array(&c->w, n);
    for (size_t i = 0; i < n; i++) {
        context_write(c, &list[i]);
    }
    return MB_OK;
}
