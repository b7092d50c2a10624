/* SPDX-License-Identifier: Apache-2.0
 * daemon/cmd_bank.c - bank.build, .status, .path, .disable, .reset.
 * bank.train and its like: cmd_bank_train.c.
 * Threads: a worker. */
#include <string.h>

#include "banks.h"
#include "cmd_read.h"

/* ---- build ---- */

static mb_status
read_u32(const struct mb_value *map, const char *key, uint32_t min,
    uint32_t max, uint32_t *out, struct mb_error *err)
{
    uint64_t v;
    mb_status st =
        mb_arg_u64(map, key, *out, *out < min ? *out : min, max, &v, err);

    if (st == MB_OK)
        *out = (uint32_t)v;
    return st;
}

static mb_status
read_settings(struct call *c, struct mb_banker_settings *out)
{
    static const char *const types[] = {"f32", "bf16", "q8_0"};
    const struct mb_value *map = NULL;
    struct mb_error *err = &c->err;
    struct mb_slice type = {0};
    mb_status st = mb_arg_map(c->args, "settings", false, &map, err);

    *out = (struct mb_banker_settings){0};
    if (st != MB_OK || map == NULL)
        return st;
    st = read_u32(map, "fan_out", 2, 256, &out->fan_out, err);
    if (st == MB_OK)
        st = read_u32(map, "levels", 1, MB_BANKS_MAX_LEVELS, &out->levels, err);
    if (st == MB_OK)
        st = read_u32(map, "leaf", 2, 1000000, &out->leaf, err);
    if (st == MB_OK)
        st = read_u32(map, "first_layer", 0, 4096, &out->first_layer, err);
    if (st == MB_OK)
        st = read_u32(map, "epochs", 1, 1000, &out->epochs, err);
    if (st == MB_OK)
        st = read_u32(map, "window", 16, 4096, &out->window, err);
    if (st == MB_OK)
        st = read_u32(map, "hold_out", 2, 1000, &out->hold_out, err);
    if (st == MB_OK)
        st = mb_arg_u64(map, "seed", 0, 0, UINT64_MAX, &out->seed, err);
    if (st == MB_OK)
        st = mb_arg_double(map, "fetch", 0, 0, 10, &out->fetch, err);
    if (st == MB_OK)
        st = mb_arg_str(map, "type", false, &type, err);
    for (uint32_t i = 0; st == MB_OK && type.size > 0 && i < 3; i++) {
        if (mb_slice_equal(type, mb_slice_cstr(types[i])))
            out->served_type = i + 1;
    }
    if (st == MB_OK && type.size > 0 && out->served_type == 0)
        st = mb_error_set(err, MB_ERR_BAD_ARG, "type is not f32, bf16 or q8_0");
    return st;
}

/* Rows of banks that are not the collection's any more. */
static mb_status
purge(struct call *c, struct mb_slice collection)
{
    bool done = false;
    mb_status st = MB_OK;

    while (st == MB_OK && !done) {
        struct mb_op *op;

        st = mb_op_banks_purge_new(collection, &op, &c->err);
        if (st != MB_OK)
            break;
        st = mb_store_apply(c->d->store, op, &c->err);
        done = st == MB_OK && mb_op_banks_purge_is_done(op);
        mb_op_free(op);
    }
    return st;
}

static void
write_shape(struct mb_writer *w, const struct mb_banks *b)
{
    mb_write_cstr(w, "rows");
    mb_write_array(w, b->n_levels);
    for (size_t i = 0; i < b->n_levels; i++) {
        mb_write_uint(w, b->rows[i]);
    }
    mb_write_kv_uint(w, "levels", b->n_levels);
    mb_write_kv_uint(w, "fan_out", b->fan_out);
    mb_write_kv_uint(w, "nodes", b->n_nodes - 1);
    mb_write_kv_uint(w, "leaves", b->n_leaves);
}

COMMAND_HANDLER(cmd_bank_build)
{
    struct reader *r = c->d->reader;
    struct mb_banker_settings settings;
    struct mb_banker_model model;
    struct mb_snapshot *snap = NULL;
    struct mb_collection coll;
    struct mb_banks bank;
    uint32_t number;
    mb_status st = reader_check(r, "bank.build", &c->err);

    (void)w;
    (void)later;
    if (st == MB_OK)
        st = read_settings(c, &settings);
    if (st == MB_OK)
        st = call_snapshot(c, &snap, &coll);
    mb_snapshot_end(snap);
    if (st != MB_OK)
        return st;
    model.info = reader_info(r);
    model.name = reader_name(r);
    reader_fingerprint(r, model.fingerprint);
    st = mb_banker_build(c->d->store, coll.name, &settings, &model, NULL, NULL,
        &number, &c->err);
    if (st == MB_OK)
        st = purge(c, mb_slice_cstr(coll.name));
    snap = NULL;
    if (st == MB_OK)
        jobs_train_again(c->d->jobs, &coll);
    if (st == MB_OK)
        st = call_snapshot(c, &snap, &coll);
    if (st == MB_OK)
        st = mb_banks_get(snap, &coll, &bank, &c->err);
    if (st == MB_OK) {
        mb_write_map(&c->w, 6);
        mb_write_kv_uint(&c->w, "bank", bank.bank);
        write_shape(&c->w, &bank);
    }
    mb_snapshot_end(snap);
    return st;
}

/* ---- status ---- */

struct totals {
    uint64_t n_by_state[4];
    uint64_t n_disabled;
    uint64_t n_attached;
    uint64_t bytes;
    /* Over the nodes of the first level: every held-out token once. */
    uint64_t n_held_out;
    uint64_t n_tokens;
    double before;
    double after;
    const struct mb_banks_node *generic; /* NULL: none was trained */
};

static void
add_up(struct daemon *d, const struct mb_banks *bank,
    const struct mb_banks_node *nodes, size_t n, struct totals *t)
{
    for (size_t i = 0; i < n; i++) {
        const struct mb_banks_node *k = &nodes[i];

        t->bytes += k->block_bytes;
        if (k->node == MB_BANKS_GENERIC) {
            t->generic = k;
            continue;
        }
        t->n_by_state[k->state]++;
        t->n_disabled += k->is_disabled;
        t->n_attached += banks_is_attached(d, bank, k);
        if (k->level != 1)
            continue;
        t->n_held_out += k->n_held_out;
        t->n_tokens += k->n_tokens;
        t->before += k->before * (double)k->n_held_out;
        t->after += k->after * (double)k->n_held_out;
    }
    if (t->n_held_out > 0) {
        t->before /= (double)t->n_held_out;
        t->after /= (double)t->n_held_out;
    }
}

static void
write_node(
    struct call *c, const struct mb_banks *bank, const struct mb_banks_node *n)
{
    struct mb_writer *w = &c->w;

    mb_write_map(w, 16);
    mb_write_kv_uint(w, "node", n->node);
    mb_write_kv_uint(w, "level", n->level);
    mb_write_kv_cstr(w, "state", mb_banks_state_name(n->state));
    mb_write_kv_bool(w, "disabled", n->is_disabled);
    mb_write_kv_bool(w, "attached", banks_is_attached(c->d, bank, n));
    mb_write_kv_cstr(w, "terms", n->terms);
    mb_write_kv_uint(w, "segments", n->n_segments);
    mb_write_kv_uint(w, "tokens", n->n_tokens);
    mb_write_kv_uint(w, "held_out", n->n_held_out);
    mb_write_kv_f64(w, "before", n->before);
    mb_write_kv_f64(w, "without", n->without);
    mb_write_kv_f64(w, "with", n->with);
    mb_write_kv_f64(w, "after", n->after);
    mb_write_kv_uint(w, "trained_ms", n->trained_ms);
    mb_write_kv_uint(w, "used_ms", n->used_ms);
    mb_write_kv_uint(w, "bytes", n->block_bytes);
}

/* The control: a block as large as a path, the same for every text. */
static void
write_generic(struct mb_writer *w, const struct mb_banks_node *n)
{
    mb_write_cstr(w, "generic");
    if (n == NULL) {
        mb_write_nil(w);
        return;
    }
    mb_write_map(w, 7);
    mb_write_kv_cstr(w, "state", mb_banks_state_name(n->state));
    mb_write_kv_uint(w, "tokens", n->n_tokens);
    mb_write_kv_uint(w, "held_out", n->n_held_out);
    mb_write_kv_f64(w, "before", n->before);
    mb_write_kv_f64(w, "after", n->after);
    mb_write_kv_uint(w, "trained_ms", n->trained_ms);
    mb_write_kv_uint(w, "bytes", n->block_bytes);
}

static void
write_left(struct mb_writer *w, const char *key, uint64_t left, double scale)
{
    mb_write_cstr(w, key);
    if (left == UINT64_MAX)
        mb_write_nil(w);
    else
        mb_write_f64(w, (double)left * scale);
}

/* What was asked for, and how far it is; run NULL: nothing was. */
static void
write_training(
    struct call *c, const char *collection, const struct mb_banks_run *run)
{
    struct mb_writer *w = &c->w;
    struct mb_banker_progress at = {0};
    bool gives_way = false;
    uint64_t job = jobs_training(c->d->jobs, collection, &at, &gives_way);

    mb_write_cstr(w, "training");
    if (run == NULL) {
        mb_write_nil(w);
        return;
    }
    mb_write_map(w, 14);
    mb_write_kv_bool(w, "purge", run->is_purge);
    mb_write_kv_bool(w, "paused", run->is_paused);
    mb_write_kv_bool(w, "generic", run->is_generic);
    write_left(w, "seconds_left", run->ms, 1e-3);
    write_left(w, "tokens_left", run->tokens, 1);
    mb_write_kv_uint(w, "job", job);
    mb_write_kv_bool(w, "gives_way", gives_way);
    mb_write_kv_uint(w, "subtrees", at.n_subtrees);
    mb_write_kv_uint(w, "done", at.done);
    mb_write_kv_uint(w, "step", at.step);
    mb_write_kv_uint(w, "steps", at.n_steps);
    mb_write_kv_uint(w, "tokens", at.n_tokens);
    mb_write_kv_f64(w, "loss", at.loss);
    mb_write_kv_f64(w, "seconds", at.seconds);
}

static void
write_status(struct call *c, const struct mb_banks *bank,
    const struct mb_collection *coll, uint64_t n_trained,
    const struct totals *t, const struct mb_banks_run *run)
{
    struct mb_writer *w = &c->w;

    mb_write_kv_uint(w, "bank", bank->bank);
    write_shape(w, bank);
    mb_write_kv_cstr(w, "model", bank->model);
    mb_write_kv_bool(w, "dormant", !banks_is_live(c->d, bank));
    mb_write_kv_bool(w, "disabled", bank->is_disabled);
    mb_write_cstr(w, "states");
    mb_write_map(w, 6);
    for (unsigned s = 0; s < 4; s++) {
        mb_write_kv_uint(
            w, mb_banks_state_name((mb_banks_state)s), t->n_by_state[s]);
    }
    mb_write_kv_uint(w, "disabled", t->n_disabled);
    mb_write_kv_uint(w, "attached", t->n_attached);
    mb_write_kv_uint(w, "segments", coll->n_segments);
    mb_write_kv_uint(w, "trained_segments", n_trained);
    mb_write_kv_uint(w, "tokens", t->n_tokens);
    mb_write_kv_uint(w, "held_out", t->n_held_out);
    mb_write_kv_f64(w, "before", t->before);
    mb_write_kv_f64(w, "after", t->after);
    mb_write_kv_bool(w, "helps", t->n_held_out > 0 && t->after < t->before);
    mb_write_kv_uint(w, "bytes", t->bytes);
    write_generic(w, t->generic);
    write_training(c, coll->name, run);
}

static void
write_nodes(struct call *c, const struct mb_banks *bank,
    const struct mb_banks_node *nodes, size_t n)
{
    mb_write_cstr(&c->w, "node_list");
    mb_write_array(&c->w, n);
    for (size_t i = 0; i < n; i++) {
        write_node(c, bank, &nodes[i]);
    }
}

COMMAND_HANDLER(cmd_bank_status)
{
    struct mb_snapshot *snap = NULL;
    struct mb_collection coll;
    struct mb_banks_node *nodes = NULL;
    struct mb_banks bank;
    struct mb_banks_run run;
    struct totals t = {0};
    uint64_t n_trained = 0;
    size_t n = 0;
    bool with_nodes;
    bool has_run = false;
    mb_status st = mb_arg_bool(c->args, "nodes", false, &with_nodes, &c->err);

    (void)w;
    (void)later;
    if (st == MB_OK)
        st = call_snapshot(c, &snap, &coll);
    if (st == MB_OK)
        st = mb_banks_get(snap, &coll, &bank, &c->err);
    if (st == MB_OK)
        st = mb_banks_nodes(
            snap, &coll, bank.bank, c->arena, &nodes, &n, &c->err);
    if (st == MB_OK)
        st = mb_banks_n_trained(snap, &coll, bank.bank, &n_trained, &c->err);
    if (st == MB_OK) {
        st = mb_banks_run_get(snap, &coll, bank.bank, &run, &c->err);
        has_run = st == MB_OK;
        if (st == MB_ERR_NOT_FOUND)
            st = MB_OK;
    }
    if (st == MB_OK) {
        add_up(c->d, &bank, nodes, n, &t);
        mb_write_map(&c->w, with_nodes ? 21 : 20);
        write_status(c, &bank, &coll, n_trained, &t, has_run ? &run : NULL);
        if (with_nodes)
            write_nodes(c, &bank, nodes, n);
    }
    mb_snapshot_end(snap);
    return st;
}

/* ---- path ---- */

COMMAND_HANDLER(cmd_bank_path)
{
    struct mb_snapshot *snap = NULL;
    struct bank_entry *entry = NULL;
    struct mb_collection coll;
    struct mb_route route = {0};
    struct mb_slice text;
    mb_status st = mb_arg_str(c->args, "text", true, &text, &c->err);

    (void)later;
    if (st == MB_OK)
        st = call_snapshot(c, &snap, &coll);
    if (st == MB_OK)
        st = banks_ref(c->d->banks, snap, &coll, &entry, &c->err);
    if (st == MB_OK)
        st = banks_route(c, w, snap, &coll, entry, text, &route);
    if (st == MB_OK) {
        const struct mb_banks *bank = mb_router_bank(bank_entry_router(entry));

        mb_write_map(&c->w, 2);
        mb_write_kv_uint(&c->w, "bank", bank->bank);
        mb_write_cstr(&c->w, "path");
        mb_write_array(&c->w, route.n);
        for (size_t i = 0; st == MB_OK && i < route.n; i++) {
            struct mb_banks_node node;

            st = mb_banks_node_get(
                snap, &coll, bank->bank, route.steps[i].node, &node, &c->err);
            if (st != MB_OK)
                break;
            mb_write_map(&c->w, 2);
            mb_write_cstr(&c->w, "cosine");
            mb_write_f32(&c->w, route.steps[i].cosine);
            mb_write_cstr(&c->w, "node");
            write_node(c, bank, &node);
        }
    }
    banks_unref(c->d->banks, entry);
    mb_snapshot_end(snap);
    return st;
}

/* ---- disable and reset ---- */

/* The edit that disables a node, or all. */
static mb_status
make_disable(struct call *c, struct mb_snapshot *snap,
    const struct mb_collection *coll, bool disable, struct mb_op **op)
{
    struct mb_banks bank;
    uint64_t number;
    mb_status st =
        mb_arg_u64(c->args, "node", 0, 0, UINT32_MAX, &number, &c->err);

    if (st == MB_OK)
        st = mb_banks_get(snap, coll, &bank, &c->err);
    if (st == MB_OK)
        st = mb_op_banks_edit_new(
            mb_slice_cstr(coll->name), bank.bank, op, &c->err);
    if (st != MB_OK)
        return st;
    st = mb_banks_edit_disable(*op, (uint32_t)number, disable);
    return st == MB_OK ? st : mb_error_set(&c->err, st, "bank.disable");
}

COMMAND_HANDLER(cmd_bank_disable)
{
    struct mb_snapshot *snap = NULL;
    struct mb_collection coll;
    struct mb_op *op = NULL;
    bool disable;
    mb_status st = mb_arg_bool(c->args, "disable", true, &disable, &c->err);

    (void)w;
    (void)later;
    if (st == MB_OK)
        st = call_snapshot(c, &snap, &coll);
    if (st == MB_OK)
        st = make_disable(c, snap, &coll, disable, &op);
    mb_snapshot_end(snap);
    if (st == MB_OK)
        st = mb_store_apply(c->d->store, op, &c->err);
    mb_op_free(op);
    if (st == MB_OK) {
        mb_write_map(&c->w, 1);
        mb_write_kv_bool(&c->w, "disabled", disable);
    }
    return st;
}

COMMAND_HANDLER(cmd_bank_reset)
{
    struct mb_snapshot *snap = NULL;
    struct mb_collection coll;
    struct mb_op *op = NULL;
    mb_status st = call_snapshot(c, &snap, &coll);

    (void)w;
    (void)later;
    mb_snapshot_end(snap);
    if (st == MB_OK)
        st = mb_op_banks_reset_new(mb_slice_cstr(coll.name), &op, &c->err);
    if (st == MB_OK)
        st = mb_store_apply(c->d->store, op, &c->err);
    mb_op_free(op);
    if (st == MB_OK)
        jobs_train_again(c->d->jobs, &coll);
    if (st == MB_OK)
        st = purge(c, mb_slice_cstr(coll.name));
    if (st == MB_OK)
        mb_write_map(&c->w, 0);
    return st;
}
