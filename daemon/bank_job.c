/* SPDX-License-Identifier: Apache-2.0
 * daemon/bank_job.c - one job of a bank's training: begin, go on, publish.
 *
 * Windows are known by a key made of the document's id, the place in it and the
 * text, and never by the store's numbers: so the same text makes the same job
 * in every store. Nothing holds the store still meanwhile. A deletion raises
 * versions (mb_banks.h), the next commit is refused as STALE, and the run
 * begins the job anew. A snapshot is held for a look-up, never while the model
 * works.
 * Threads: the caller's, but on_gives_way. */
#include "bank_job.h"

#include <string.h>

static mb_status
new_edit(struct bank_run *r, struct mb_op **op, struct mb_error *err)
{
    mb_status st = mb_op_banks_edit_new(
        mb_slice_cstr(r->t->collection), r->bank->bank, op, err);

    if (st == MB_OK)
        st = mb_banks_edit_expect(*op, r->top, r->version);
    return st;
}

/* Apply and free. */
static mb_status
apply(struct bank_run *r, struct mb_op *op, struct mb_error *err)
{
    mb_status st = mb_store_apply(r->t->store, op, err);

    mb_op_free(op);
    return st;
}

/* A node's record; of a generic block that there is not yet, a fresh one. */
static mb_status
get_node(struct bank_run *r, struct mb_snapshot *snap, uint32_t node,
    struct mb_banks_node *out, struct mb_error *err)
{
    mb_status st =
        mb_banks_node_get(snap, &r->coll, r->bank->bank, node, out, err);

    if (st != MB_ERR_NOT_FOUND || node != MB_BANKS_GENERIC)
        return st;
    *out = (struct mb_banks_node){.node = node};
    return MB_OK;
}

/* ---- what the trainer asks ---- */

static mb_status
on_window(void *arg, const struct mb_bank_item *item, uint64_t epoch,
    mb_token_id *tokens, mb_token_id *targets, size_t *n, struct mb_error *err)
{
    struct bank_run *r = arg;

    return bank_windows_get(&r->windows, r->t->store, &r->coll, item->key,
        epoch, tokens, targets, n, err);
}

static mb_status
on_load(void *arg, uint64_t node, struct mb_slice *state,
    struct mb_slice *record, struct mb_error *err)
{
    struct bank_run *r = arg;
    struct mb_snapshot *snap = NULL;
    struct mb_slice view;
    mb_status st = bank_run_look(r, &snap, err);

    *state = mb_slice_of(NULL, 0);
    *record = mb_slice_of(NULL, 0);
    if (st == MB_OK) {
        st = mb_banks_state_get(
            snap, &r->coll, r->bank->bank, (uint32_t)node, &view, err);
        if (st == MB_OK) {
            mb_buffer_clear(&r->loaded);
            st = mb_buffer_append(&r->loaded, view.data, view.size);
            *state = mb_buffer_slice(&r->loaded);
        } else if (st == MB_ERR_NOT_FOUND) {
            st = MB_OK;
        }
    }
    mb_snapshot_end(snap);
    return st;
}

static mb_status
on_save(void *arg, uint64_t node, size_t level, struct mb_slice state,
    struct mb_error *err)
{
    struct bank_run *r = arg;
    mb_status st = MB_OK;

    (void)level;
    if (r->pending == NULL)
        st = new_edit(r, &r->pending, err);
    if (st == MB_OK)
        st = mb_banks_edit_state(r->pending, (uint32_t)node, state);
    return st;
}

/* What was used since the last commit goes from the run's budget. */
static mb_status
charge(struct bank_run *r, struct mb_op *op)
{
    uint64_t ms = (uint64_t)(bank_run_seconds(r) * 1e3);
    const struct mb_banks_run spent = {.asked = r->t->run_asked,
        .ms = ms - r->charged_ms,
        .tokens = r->t->at.n_tokens - r->charged_tokens};

    if (!r->t->charges_run)
        return MB_OK;
    r->charged_ms = ms;
    r->charged_tokens = r->t->at.n_tokens;
    return mb_banks_edit_run(op, MB_BANKS_RUN_SPEND, &spent);
}

static mb_status
on_commit(void *arg, struct mb_slice progress, struct mb_error *err)
{
    struct bank_run *r = arg;
    const struct mb_banks_job job = {.node = r->top,
        .job = r->job,
        .version = r->version,
        .progress = progress};
    mb_status st = MB_OK;
    struct mb_op *op;

    if (r->pending == NULL)
        st = new_edit(r, &r->pending, err);
    if (st == MB_OK)
        st = mb_banks_edit_job(r->pending, &job);
    if (st == MB_OK)
        st = charge(r, r->pending);
    if (st != MB_OK)
        return st;
    op = r->pending;
    r->pending = NULL;
    return apply(r, op, err);
}

static bool
on_stopped(void *arg)
{
    return bank_run_is_over(arg);
}

/* On any thread of the trainer's. */
static bool
on_gives_way(void *arg)
{
    struct bank_run *r = arg;
    uint64_t start = mb_clock_ns();
    bool stop = r->t->gives_way(r->t->arg);
    unsigned n = r->t->n_threads > 0 ? r->t->n_threads : mb_cpu_count();

    (void)atomic_fetch_add_explicit(
        &r->waited_ns, (mb_clock_ns() - start) / n, memory_order_relaxed);
    return stop;
}

static void
on_step(void *arg, const struct mb_bank_progress *p)
{
    struct bank_run *r = arg;
    struct mb_banker_progress *at = &r->t->at;

    at->node = r->top;
    at->step = p->step;
    at->n_steps = p->n_steps;
    at->n_tokens = r->tokens_before + p->n_run_tokens;
    at->loss = p->loss;
    at->seconds = bank_run_seconds(r);
    if (r->t->progress != NULL)
        r->t->progress(r->t->arg, at);
}

struct mb_bank_io
bank_job_io(struct bank_run *r)
{
    return (struct mb_bank_io){
        .window = on_window,
        .load = on_load,
        .save = on_save,
        .commit = on_commit,
        .is_stopped = on_stopped,
        .gives_way = r->t->gives_way != NULL ? on_gives_way : NULL,
        .on_step = on_step,
        .arg = r,
    };
}

/* ---- nodes of a job ---- */

/* The top and every node below it, in any order. */
static mb_status
for_nodes(struct bank_run *r, uint32_t top,
    mb_status (*fn)(struct bank_run *r, struct mb_snapshot *snap,
        struct mb_op *op, uint32_t node, struct mb_error *err),
    struct mb_snapshot *snap, struct mb_op *op, struct mb_error *err)
{
    const struct mb_tree *tree = mb_router_tree(r->router);
    struct mb_node node = {0};
    mb_status st = fn(r, snap, op, top, err);

    if (top != MB_BANKS_GENERIC)
        mb_tree_node(tree, top, &node);
    for (uint32_t i = 0; st == MB_OK && i < node.n_children; i++) {
        st = for_nodes(r, node.first_child + i, fn, snap, op, err);
    }
    return st;
}

static mb_status
drop_state(struct mb_op *op, uint32_t node)
{
    return mb_banks_edit_state(op, node, mb_slice_of(NULL, 0));
}

/* The training of a node begins: what was left of another one goes. */
static mb_status
begin_node(struct bank_run *r, struct mb_snapshot *snap, struct mb_op *op,
    uint32_t node, struct mb_error *err)
{
    struct mb_banks_node n;
    mb_status st = get_node(r, snap, node, &n, err);

    if (st == MB_OK && n.state == MB_BANKS_FRESH) {
        n.state = MB_BANKS_TRAINING;
        st = mb_banks_edit_node(op, &n);
    }
    return st == MB_OK ? drop_state(op, node) : st;
}

/* Nothing was learnt there, or all of its text is gone. */
static mb_status
clear_node(struct bank_run *r, struct mb_snapshot *snap, struct mb_op *op,
    uint32_t node, struct mb_error *err)
{
    struct mb_banks_node n;
    struct mb_banks_node fresh = {0};
    mb_status st = get_node(r, snap, node, &n, err);

    if (st != MB_OK)
        return st;
    fresh.node = n.node;
    fresh.level = n.level;
    memcpy(fresh.terms, n.terms, sizeof fresh.terms);
    st = mb_banks_edit_node(op, &fresh);
    if (st == MB_OK)
        st = mb_banks_edit_block(op, node, mb_slice_of(NULL, 0));
    return st == MB_OK ? drop_state(op, node) : st;
}

mb_status
bank_job_clear(struct bank_run *r, uint32_t top, struct mb_error *err)
{
    struct mb_snapshot *snap = NULL;
    struct mb_op *op = NULL;
    struct mb_banks_node node;
    mb_status st = bank_run_look(r, &snap, err);

    r->top = top;
    if (st == MB_OK)
        st = get_node(r, snap, top, &node, err);
    if (st == MB_OK) {
        r->version = node.version;
        st = new_edit(r, &op, err);
    }
    if (st == MB_OK)
        st = for_nodes(r, top, clear_node, snap, op, err);
    if (st == MB_OK)
        st = mb_banks_edit_end_job(op, top);
    mb_snapshot_end(snap);
    return st == MB_OK ? apply(r, op, err) : (mb_op_free(op), st);
}

mb_status
bank_job_is_stale(struct bank_run *r, uint32_t top, bool *stale, bool *half,
    struct mb_error *err)
{
    struct mb_snapshot *snap = NULL;
    struct mb_banks_node node;
    struct mb_banks_job job;
    mb_status st = bank_run_look(r, &snap, err);

    *stale = *half = false;
    if (st == MB_OK)
        st = get_node(r, snap, top, &node, err);
    if (st == MB_OK) {
        *stale = node.state == MB_BANKS_STALE;
        st = mb_banks_job_get(snap, &r->coll, r->bank->bank, top, &job, err);
        *half = st == MB_OK && job.version != node.version;
        if (st == MB_ERR_NOT_FOUND)
            st = MB_OK;
    }
    mb_snapshot_end(snap);
    return st;
}

/* ---- beginning ---- */

static mb_status
assign(struct bank_run *r, struct mb_op *op)
{
    mb_status st = MB_OK;

    for (size_t i = 0; st == MB_OK && i < r->windows.n; i++) {
        const struct bank_member *m = &r->windows.members[i];

        st = mb_banks_edit_assign(
            op, &m->segno, 1, m->path[r->bank->n_levels - 1]);
    }
    return st;
}

/* Mark the job as begun, or find out how far it is. */
static mb_status
take_up(struct bank_run *r, struct mb_snapshot *snap,
    struct mb_buffer *progress, struct mb_op **op, struct mb_error *err)
{
    struct mb_banks_job job;
    mb_status st =
        mb_banks_job_get(snap, &r->coll, r->bank->bank, r->top, &job, err);

    if (st == MB_OK && job.job == r->job && job.version == r->version)
        return mb_buffer_append(progress, job.progress.data, job.progress.size);
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return st;
    job = (struct mb_banks_job){
        .node = r->top, .job = r->job, .version = r->version};
    st = new_edit(r, op, err);
    if (st == MB_OK)
        st = for_nodes(r, r->top, begin_node, snap, *op, err);
    if (st == MB_OK)
        st = assign(r, *op);
    if (st == MB_OK)
        st = mb_banks_edit_job(*op, &job);
    return st;
}

/* What the trainer's result depends on. */
static uint64_t
job_hash(const struct bank_run *r)
{
    const struct mb_banks *b = r->bank;
    uint64_t fixed[16] = {b->seed, b->epochs, b->window, b->d_model,
        b->first_layer, b->n_layers, b->served_type, b->n_levels};
    uint64_t seed = r->top == MB_BANKS_GENERIC;

    for (size_t i = 0; i < MB_BANKS_MAX_LEVELS; i++) {
        fixed[8 + i] = b->rows[i];
    }
    return bank_windows_hash(
        &r->windows, mb_hash64(b->anchor, sizeof b->anchor,
                         mb_hash64(fixed, sizeof fixed, seed)));
}

/* ---- publishing ---- */

static mb_status
to_served(
    struct bank_run *r, const struct mb_bank_gain *gain, struct mb_error *err)
{
    mb_bank_type type = (mb_bank_type)r->bank->served_type;
    struct mb_bank_block block;
    struct mb_bank_shape shape;
    size_t size;
    mb_status st = mb_bank_block_open(gain->record, &block, err);

    if (st != MB_OK)
        return st;
    mb_banker_shape(r->bank, &shape);
    size = mb_bank_record_bytes(&shape, block.rows, type);
    mb_buffer_clear(&r->record);
    st = mb_buffer_reserve(&r->record, size);
    if (st == MB_OK)
        st = mb_bank_convert(&block, type, r->record.data, size, err);
    if (st == MB_OK)
        r->record.size = size;
    return st;
}

/* r->pending is what will be published. */
static mb_status
on_gain(void *arg, const struct mb_bank_gain *gain, struct mb_error *err)
{
    struct bank_run *r = arg;
    struct mb_snapshot *snap = NULL;
    struct mb_banks_node n;
    mb_status st = bank_run_look(r, &snap, err);

    if (st == MB_OK)
        st = get_node(r, snap, (uint32_t)gain->node, &n, err);
    mb_snapshot_end(snap);
    if (st == MB_OK)
        st = to_served(r, gain, err);
    if (st != MB_OK)
        return st;
    n.state = MB_BANKS_READY;
    n.has_gained = gain->n_held_out > 0 && gain->with < gain->without;
    n.n_segments = gain->n_windows;
    n.n_documents =
        bank_windows_documents(&r->windows, gain->keys, gain->n_keys);
    n.n_tokens = gain->n_tokens;
    n.n_held_out = gain->n_held_out;
    n.before = gain->before;
    n.without = gain->without;
    n.with = gain->with;
    n.after = gain->after;
    n.trained_ms = mb_clock_wall_ms();
    n.job = r->job;
    n.block_bytes = r->record.size;
    st = mb_banks_edit_block(r->pending, n.node, mb_buffer_slice(&r->record));
    return st == MB_OK ? mb_banks_edit_node(r->pending, &n) : st;
}

static mb_status
publish(struct bank_run *r, struct mb_error *err)
{
    struct mb_snapshot *snap = NULL;
    struct mb_op *op;
    mb_status st = bank_run_look(r, &snap, err);

    if (st == MB_OK)
        st = new_edit(r, &r->pending, err);
    // Nodes that have no text any more are not told of: they end up clear.
    if (st == MB_OK)
        st = for_nodes(r, r->top, clear_node, snap, r->pending, err);
    mb_snapshot_end(snap);
    if (st == MB_OK)
        st = mb_bank_trainer_measure(r->trainer, on_gain, r, err);
    if (st == MB_OK)
        st = mb_banks_edit_end_job(r->pending, r->top);
    if (st == MB_OK)
        st = charge(r, r->pending);
    if (st != MB_OK)
        return st;
    op = r->pending;
    r->pending = NULL;
    return apply(r, op, err);
}

/* ---- the job ---- */

/* A trainer for subtrees, or for the generic block. */
static mb_status
need_trainer(struct bank_run *r, bool generic, struct mb_error *err)
{
    const struct mb_banker_train *t = r->t;
    const struct mb_bank_train_options options = {
        .n_threads = t->n_threads,
        .seed = r->bank->seed,
        .epochs = r->bank->epochs,
        .n_ctx = r->bank->window,
        .resident_bytes = t->resident_bytes,
        .checkpoint_steps = t->checkpoint_steps,
        .checkpoint_seconds = t->checkpoint_seconds,
        .is_generic = generic,
    };
    const struct mb_bank_io io = bank_job_io(r);
    struct mb_bank_shape shape;

    if (r->trainer != NULL && r->trains_generic == generic)
        return MB_OK;
    mb_bank_trainer_free(r->trainer);
    r->trainer = NULL;
    r->trains_generic = generic;
    mb_banker_shape(r->bank, &shape);
    return mb_bank_trainer_new(
        t->gguf, &shape, &options, &io, &r->trainer, err);
}

/* Train until it is finished, or the run is over. */
static mb_status
train(struct bank_run *r, struct mb_slice progress, bool *finished,
    struct mb_error *err)
{
    struct mb_bank_progress p = {0};
    mb_status st;

    r->tokens_before = r->t->at.n_tokens;
    st = mb_bank_trainer_begin(
        r->trainer, r->windows.items, r->windows.n, progress, err);
    if (st == MB_OK)
        st = mb_bank_trainer_run(r->trainer, 0, 0, &p, err);
    *finished = p.is_finished;
    return st;
}

mb_status
bank_job_run(struct bank_run *r, bool generic,
    const struct bank_member *members, size_t n, bool *finished,
    struct mb_error *err)
{
    struct mb_snapshot *snap = NULL;
    struct mb_banks_node node;
    struct mb_buffer progress;
    struct mb_op *op = NULL;
    mb_status st = bank_run_look(r, &snap, err);

    *finished = false;
    mb_buffer_init(&progress, SIZE_MAX / 2);
    r->top = generic ? MB_BANKS_GENERIC : members[0].path[0];
    if (st == MB_OK)
        st = bank_windows_make(
            &r->windows, snap, &r->coll, r->bank, members, n, err);
    if (st == MB_OK)
        st = get_node(r, snap, r->top, &node, err);
    if (st == MB_OK) {
        r->version = node.version;
        r->job = job_hash(r);
        *finished = node.state == MB_BANKS_READY && node.job == r->job;
    }
    if (st == MB_OK && !*finished)
        st = take_up(r, snap, &progress, &op, err);
    mb_snapshot_end(snap);
    if (st == MB_OK && op != NULL) {
        st = apply(r, op, err);
        op = NULL;
    }
    if (st == MB_OK && !*finished)
        st = need_trainer(r, generic, err);
    if (st == MB_OK && !*finished) {
        st = train(r, mb_buffer_slice(&progress), finished, err);
        if (st == MB_OK && *finished) {
            st = publish(r, err);
            *finished = st == MB_OK;
        }
    }
    mb_op_free(op);
    mb_op_free(r->pending);
    r->pending = NULL;
    mb_buffer_fini(&progress);
    bank_windows_fini(&r->windows);
    return st;
}
