/* SPDX-License-Identifier: Apache-2.0
 * daemon/bank_train.c - a bank's blocks trained on a collection's text.
 *
 * The plan: every segment is routed down the bank's tree; those of one subtree
 * of the first level make one job of the trainer (mb_bank_train.h). Windows are
 * known by a key made of the document's id, the place in it and the text, and
 * never by the store's numbers: so the same text makes the same job in every
 * store. Nothing holds the store still meanwhile. A deletion raises versions
 * (mb_banks.h), the next checkpoint is refused, and the job begins anew.
 * Threads: the caller's, and the trainer's own. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bank_space.h"
#include "bank_windows.h"
#include "mb_bank_train.h"

#define BATCH       1024
#define MAX_TRIES   4 /* of a subtree that loses text meanwhile */
#define ARENA_BYTES ((size_t)64 << 20)

/* One run. */
struct run {
    struct mb_banker_train *t;
    struct mb_router *router;
    const struct mb_banks *bank;
    struct mb_collection coll;
    struct bank_member *members; /* by subtree, then leaf */
    size_t n_members;
    struct mb_bank_trainer *trainer;
    uint64_t started_ns;
    /* The job at hand. */
    struct bank_windows windows;
    uint32_t top;
    uint64_t version;
    uint64_t job;
    struct mb_op *pending; /* states of a checkpoint */
    struct mb_buffer loaded;
    struct mb_buffer record; /* as it is served */
};

static mb_status
look(struct run *r, struct mb_snapshot **snap, struct mb_error *err)
{
    mb_status st = mb_snapshot_begin(r->t->store, snap, err);

    if (st == MB_OK)
        st = mb_collection_get(
            *snap, mb_slice_cstr(r->t->collection), &r->coll, err);
    return st;
}

static double
seconds_left(const struct run *r)
{
    double gone = (double)(mb_clock_ns() - r->started_ns) / 1e9;

    if (r->t->seconds <= 0)
        return 0;
    return r->t->seconds > gone ? r->t->seconds - gone : 1e-9;
}

static bool
is_over(const struct run *r)
{
    const struct mb_banker_train *t = r->t;

    return (t->seconds > 0 && seconds_left(r) < 1e-6) ||
           (t->tokens > 0 && t->at.n_tokens >= t->tokens) ||
           (t->is_stopped != NULL && t->is_stopped(t->arg));
}

static mb_status
new_edit(struct run *r, struct mb_op **op, struct mb_error *err)
{
    mb_status st = mb_op_banks_edit_new(
        mb_slice_cstr(r->t->collection), r->bank->bank, op, err);

    if (st == MB_OK)
        st = mb_banks_edit_expect(*op, r->top, r->version);
    return st;
}

/* Apply and free. */
static mb_status
apply(struct run *r, struct mb_op *op, struct mb_error *err)
{
    mb_status st = mb_store_apply(r->t->store, op, err);

    mb_op_free(op);
    return st;
}

/* ---- which segments go where ---- */

static int
compare_members(const void *a, const void *b)
{
    const struct bank_member *x = a;
    const struct bank_member *y = b;

    if (x->path[0] != y->path[0])
        return x->path[0] < y->path[0] ? -1 : 1;
    return x->segno < y->segno ? -1 : x->segno > y->segno;
}

static mb_status
route_all(struct run *r, struct mb_snapshot *snap, struct mb_error *err)
{
    struct bank_space space = {
        .lsa = router_lsa(r->router), .dim = r->bank->dim};
    struct mb_segment *segs = mb_calloc(BATCH, sizeof *segs);
    float vector[MB_MAX_DIM];
    size_t n = 1;
    mb_segno at = 0;
    mb_status st = MB_OK;

    r->members = mb_calloc(r->coll.n_segments + 1, sizeof *r->members);
    if (segs == NULL || r->members == NULL)
        st = mb_error_set(err, MB_ERR_NOMEM, "%llu segments",
            (unsigned long long)r->coll.n_segments);
    while (st == MB_OK && n > 0) {
        st = mb_segment_scan(snap, &r->coll, at, BATCH, segs, &n, err);
        for (size_t i = 0; st == MB_OK && i < n; i++) {
            struct bank_member *m = &r->members[r->n_members];
            struct mb_route route;

            at = segs[i].segno + 1;
            st = bank_space_vector(
                &space, snap, &r->coll, &segs[i], vector, err);
            if (st == MB_ERR_NOT_FOUND) {
                st = MB_OK;
                continue;
            }
            if (st != MB_OK)
                break;
            mb_router_vector(r->router, vector, &route);
            if (route.n != r->bank->n_levels)
                continue;
            m->segno = segs[i].segno;
            m->docno = segs[i].docno;
            for (size_t l = 0; l < route.n; l++) {
                m->path[l] = route.steps[l].node;
            }
            r->n_members++;
        }
    }
    space.lsa = NULL; // the router's
    bank_space_fini(&space);
    mb_free(segs);
    if (st == MB_OK)
        qsort(r->members, r->n_members, sizeof *r->members, compare_members);
    return st;
}

/* ---- what the trainer asks ---- */

static mb_status
on_window(void *arg, const struct mb_bank_item *item, uint64_t epoch,
    mb_token_id *tokens, mb_token_id *targets, size_t *n, struct mb_error *err)
{
    struct run *r = arg;

    return bank_windows_get(&r->windows, r->t->store, &r->coll, item->key,
        epoch, tokens, targets, n, err);
}

static mb_status
on_load(void *arg, uint64_t node, struct mb_slice *state,
    struct mb_slice *record, struct mb_error *err)
{
    struct run *r = arg;
    struct mb_snapshot *snap = NULL;
    struct mb_slice view;
    mb_status st = look(r, &snap, err);

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
    struct run *r = arg;
    mb_status st = MB_OK;

    (void)level;
    if (r->pending == NULL)
        st = new_edit(r, &r->pending, err);
    if (st == MB_OK)
        st = mb_banks_edit_state(r->pending, (uint32_t)node, state);
    return st;
}

static mb_status
on_commit(void *arg, struct mb_slice progress, struct mb_error *err)
{
    struct run *r = arg;
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
    if (st != MB_OK)
        return st;
    op = r->pending;
    r->pending = NULL;
    return apply(r, op, err);
}

static bool
on_step(void *arg)
{
    struct run *r = arg;

    return r->t->is_stopped != NULL && r->t->is_stopped(r->t->arg);
}

/* ---- one subtree ---- */

/* Every node at or below the top, in any order. */
static mb_status
for_subtree(struct run *r, uint32_t top,
    mb_status (*fn)(struct run *r, struct mb_snapshot *snap, struct mb_op *op,
        uint32_t node, struct mb_error *err),
    struct mb_snapshot *snap, struct mb_op *op, struct mb_error *err)
{
    const struct mb_tree *tree = mb_router_tree(r->router);
    struct mb_node node;
    mb_status st = fn(r, snap, op, top, err);

    mb_tree_node(tree, top, &node);
    for (uint32_t i = 0; st == MB_OK && i < node.n_children; i++) {
        st = for_subtree(r, node.first_child + i, fn, snap, op, err);
    }
    return st;
}

static mb_status
drop_state(struct run *r, struct mb_snapshot *snap, struct mb_op *op,
    uint32_t node, struct mb_error *err)
{
    (void)r;
    (void)snap;
    (void)err;
    return mb_banks_edit_state(op, node, mb_slice_of(NULL, 0));
}

/* The training of a node begins: what was left of another one goes. */
static mb_status
begin_node(struct run *r, struct mb_snapshot *snap, struct mb_op *op,
    uint32_t node, struct mb_error *err)
{
    struct mb_banks_node n;
    mb_status st =
        mb_banks_node_get(snap, &r->coll, r->bank->bank, node, &n, err);

    if (st == MB_OK && n.state == MB_BANKS_FRESH) {
        n.state = MB_BANKS_TRAINING;
        st = mb_banks_edit_node(op, &n);
    }
    return st == MB_OK ? drop_state(r, snap, op, node, err) : st;
}

static mb_status
assign(struct run *r, struct mb_op *op)
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
take_up(struct run *r, struct mb_snapshot *snap, struct mb_buffer *progress,
    struct mb_error *err)
{
    struct mb_banks_job job;
    struct mb_op *op = NULL;
    mb_status st =
        mb_banks_job_get(snap, &r->coll, r->bank->bank, r->top, &job, err);

    if (st == MB_OK && job.job == r->job && job.version == r->version)
        return mb_buffer_append(progress, job.progress.data, job.progress.size);
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return st;
    job = (struct mb_banks_job){
        .node = r->top, .job = r->job, .version = r->version};
    st = new_edit(r, &op, err);
    if (st == MB_OK)
        st = for_subtree(r, r->top, begin_node, snap, op, err);
    if (st == MB_OK)
        st = assign(r, op);
    if (st == MB_OK)
        st = mb_banks_edit_job(op, &job);
    return st == MB_OK ? apply(r, op, err) : (mb_op_free(op), st);
}

/* ---- publishing ---- */

/* Nothing was learnt there, or all of its text is gone. */
static mb_status
clear_node(struct run *r, struct mb_snapshot *snap, struct mb_op *op,
    uint32_t node, struct mb_error *err)
{
    struct mb_banks_node n;
    struct mb_banks_node fresh = {0};
    mb_status st =
        mb_banks_node_get(snap, &r->coll, r->bank->bank, node, &n, err);

    if (st != MB_OK)
        return st;
    fresh.node = n.node;
    fresh.level = n.level;
    fresh.is_disabled = n.is_disabled;
    memcpy(fresh.terms, n.terms, sizeof fresh.terms);
    st = mb_banks_edit_node(op, &fresh);
    if (st == MB_OK)
        st = mb_banks_edit_block(op, node, mb_slice_of(NULL, 0));
    return st == MB_OK ? drop_state(r, snap, op, node, err) : st;
}

struct publication {
    struct run *r;
    struct mb_snapshot *snap;
    struct mb_op *op;
};

static mb_status
on_gain(void *arg, const struct mb_bank_gain *gain, struct mb_error *err)
{
    struct publication *p = arg;
    struct run *r = p->r;
    mb_bank_type type = (mb_bank_type)r->bank->served_type;
    struct mb_bank_block block;
    struct mb_bank_shape shape;
    struct mb_banks_node n;
    size_t size;
    mb_status st = mb_banks_node_get(
        p->snap, &r->coll, r->bank->bank, (uint32_t)gain->node, &n, err);

    if (st == MB_OK)
        st = mb_bank_block_open(gain->record, &block, err);
    if (st != MB_OK)
        return st;
    mb_banker_shape(r->bank, &shape);
    size = mb_bank_record_bytes(&shape, block.rows, type);
    mb_buffer_clear(&r->record);
    st = mb_buffer_reserve(&r->record, size);
    if (st == MB_OK)
        st = mb_bank_convert(&block, type, r->record.data, size, err);
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
    n.block_bytes = size;
    st = mb_banks_edit_block(p->op, n.node, mb_slice_of(r->record.data, size));
    return st == MB_OK ? mb_banks_edit_node(p->op, &n) : st;
}

static mb_status
publish(struct run *r, struct mb_error *err)
{
    struct publication p = {.r = r};
    mb_status st = look(r, &p.snap, err);

    if (st == MB_OK)
        st = new_edit(r, &p.op, err);
    // Nodes that have no text any more are not told of: they end up clear.
    if (st == MB_OK)
        st = for_subtree(r, r->top, clear_node, p.snap, p.op, err);
    if (st == MB_OK)
        st = mb_bank_trainer_measure(r->trainer, on_gain, &p, err);
    if (st == MB_OK)
        st = mb_banks_edit_end_job(p.op, r->top);
    mb_snapshot_end(p.snap);
    if (st == MB_OK) {
        st = mb_store_apply(r->t->store, p.op, err);
    }
    mb_op_free(p.op);
    return st;
}

/* ---- the run ---- */

static void
tell(struct run *r, const struct mb_bank_progress *p, uint64_t tokens_before)
{
    struct mb_banker_progress *at = &r->t->at;

    at->node = r->top;
    at->step = p->step;
    at->n_steps = p->n_steps;
    at->n_tokens = tokens_before + p->n_tokens;
    at->loss = p->loss;
    at->seconds = (double)(mb_clock_ns() - r->started_ns) / 1e9;
    if (r->t->progress != NULL)
        r->t->progress(r->t->arg, at);
}

/* Train until it is finished, or the run is over. */
static mb_status
train(struct run *r, struct mb_slice progress, bool *finished,
    struct mb_error *err)
{
    uint64_t tokens = r->t->at.n_tokens;
    struct mb_bank_progress p = {0};
    mb_status st = mb_bank_trainer_begin(
        r->trainer, r->windows.items, r->windows.n, progress, err);

    while (st == MB_OK && !p.is_finished && !is_over(r)) {
        // A few steps at a time, so that progress can be told.
        st = mb_bank_trainer_run(r->trainer, 20, seconds_left(r), &p, err);
        if (st == MB_OK)
            tell(r, &p, tokens);
    }
    *finished = p.is_finished;
    return st;
}

/* What the trainer's result depends on. */
static uint64_t
job_hash(const struct run *r)
{
    const struct mb_banks *b = r->bank;
    uint64_t fixed[16] = {b->seed, b->epochs, b->window, b->d_model,
        b->first_layer, b->n_layers, b->served_type, b->n_levels};

    for (size_t i = 0; i < MB_BANKS_MAX_LEVELS; i++) {
        fixed[8 + i] = b->rows[i];
    }
    return bank_windows_hash(
        &r->windows, mb_hash64(b->anchor, sizeof b->anchor,
                         mb_hash64(fixed, sizeof fixed, 0)));
}

static mb_status
try_subtree(struct run *r, const struct bank_member *members, size_t n,
    bool *finished, struct mb_error *err)
{
    struct mb_snapshot *snap = NULL;
    struct mb_banks_node node;
    struct mb_buffer progress;
    mb_status st = look(r, &snap, err);

    *finished = false;
    mb_buffer_init(&progress, SIZE_MAX / 2);
    r->top = members[0].path[0];
    if (st == MB_OK)
        st = bank_windows_make(
            &r->windows, snap, &r->coll, r->bank, members, n, err);
    if (st == MB_OK)
        st = mb_banks_node_get(
            snap, &r->coll, r->bank->bank, r->top, &node, err);
    if (st == MB_OK) {
        r->version = node.version;
        r->job = job_hash(r);
        *finished = (node.state == MB_BANKS_READY && node.job == r->job) ||
                    r->windows.n_train == 0;
    }
    if (st == MB_OK && !*finished)
        st = take_up(r, snap, &progress, err);
    mb_snapshot_end(snap);
    if (st == MB_OK && !*finished) {
        st = train(r, mb_buffer_slice(&progress), finished, err);
        if (st == MB_OK && *finished)
            st = publish(r, err);
    }
    mb_op_free(r->pending);
    r->pending = NULL;
    mb_buffer_fini(&progress);
    bank_windows_fini(&r->windows);
    return st;
}

static bool
is_stale(struct run *r, struct mb_snapshot *snap, uint32_t top)
{
    struct mb_banks_node node;

    return mb_banks_node_get(snap, &r->coll, r->bank->bank, top, &node, NULL) ==
               MB_OK &&
           node.state == MB_BANKS_STALE;
}

/* Stale subtrees without any text. */
static mb_status
clear_empty(struct run *r, struct mb_error *err)
{
    const struct mb_tree *tree = mb_router_tree(r->router);
    struct mb_snapshot *snap = NULL;
    struct mb_node root;
    mb_status st = look(r, &snap, err);

    mb_tree_node(tree, 0, &root);
    for (uint32_t i = 0; st == MB_OK && i < root.n_children; i++) {
        uint32_t top = root.first_child + i;
        struct mb_banks_node n;
        struct mb_op *op = NULL;
        bool has_text = false;

        for (size_t m = 0; m < r->n_members && !has_text; m++) {
            has_text = r->members[m].path[0] == top;
        }
        st = mb_banks_node_get(snap, &r->coll, r->bank->bank, top, &n, err);
        if (st != MB_OK || has_text || n.state != MB_BANKS_STALE)
            continue;
        r->top = top;
        r->version = n.version;
        st = new_edit(r, &op, err);
        if (st == MB_OK)
            st = for_subtree(r, top, clear_node, snap, op, err);
        if (st == MB_OK)
            st = mb_store_apply(r->t->store, op, err);
        mb_op_free(op);
    }
    mb_snapshot_end(snap);
    return st;
}

static mb_status
run_subtree(
    struct run *r, size_t from, size_t to, bool *finished, struct mb_error *err)
{
    mb_status st = MB_ERR_STALE;

    for (int i = 0; i < MAX_TRIES && st == MB_ERR_STALE; i++) {
        st = try_subtree(r, r->members + from, to - from, finished, err);
    }
    if (st == MB_OK && *finished)
        r->t->at.done++;
    return st;
}

/* All subtrees, stale ones first. */
static mb_status
run_all(struct run *r, struct mb_error *err)
{
    size_t n_finished = 0;
    mb_status st = clear_empty(r, err);

    for (int round = 0; round < 2 && st == MB_OK; round++) {
        for (size_t i = 0; st == MB_OK && i < r->n_members;) {
            struct mb_snapshot *snap = NULL;
            size_t end = i;
            bool stale = false;
            bool finished = false;

            while (end < r->n_members &&
                   r->members[end].path[0] == r->members[i].path[0]) {
                end++;
            }
            if (round == 0) {
                r->t->at.n_subtrees++;
                st = look(r, &snap, err);
                stale = st == MB_OK && is_stale(r, snap, r->members[i].path[0]);
                mb_snapshot_end(snap);
            }
            if (st == MB_OK && (stale || round == 1) && !is_over(r)) {
                st = run_subtree(r, i, end, &finished, err);
                n_finished += round == 1 && finished;
            }
            i = end;
        }
        r->t->at.done = 0;
    }
    r->t->at.done = n_finished;
    r->t->is_finished = n_finished == r->t->at.n_subtrees;
    return st;
}

static mb_status
open_run(struct run *r, struct mb_error *err)
{
    struct mb_snapshot *snap = NULL;
    mb_status st = look(r, &snap, err);

    if (st == MB_OK)
        st = mb_router_new(snap, &r->coll, &r->router, err);
    if (st == MB_OK) {
        r->bank = mb_router_bank(r->router);
        if (memcmp(r->bank->anchor, r->t->fingerprint, 16) != 0)
            st = mb_error_set(err, MB_ERR_MISMATCH,
                "the memory bank of collection %s belongs to another model: %s",
                r->t->collection, r->bank->model);
    }
    if (st == MB_OK)
        st = route_all(r, snap, err);
    mb_snapshot_end(snap);
    return st;
}

static mb_status
open_trainer(struct run *r, struct mb_error *err)
{
    const struct mb_banker_train *t = r->t;
    const struct mb_bank_train_options options = {
        .n_threads = t->n_threads,
        .seed = r->bank->seed,
        .epochs = r->bank->epochs,
        .n_ctx = r->bank->window,
        .resident_bytes = t->resident_bytes,
        .checkpoint_steps = t->checkpoint_steps,
    };
    const struct mb_bank_io io = {
        .window = on_window,
        .load = on_load,
        .save = on_save,
        .commit = on_commit,
        .is_stopped = on_step,
        .arg = r,
    };
    struct mb_bank_shape shape;

    mb_banker_shape(r->bank, &shape);
    return mb_bank_trainer_new(
        t->gguf, &shape, &options, &io, &r->trainer, err);
}

mb_status
mb_banker_train(struct mb_banker_train *t, struct mb_error *err)
{
    struct run r = {.t = t, .started_ns = mb_clock_ns()};
    mb_status st;

    t->at = (struct mb_banker_progress){0};
    t->is_finished = false;
    mb_buffer_init(&r.loaded, SIZE_MAX / 2);
    mb_buffer_init(&r.record, SIZE_MAX / 2);
    r.windows.tokenizer = t->tokenizer;
    st = open_run(&r, err);
    if (st == MB_OK)
        st = open_trainer(&r, err);
    if (st == MB_OK)
        st = run_all(&r, err);
    t->at.seconds = (double)(mb_clock_ns() - r.started_ns) / 1e9;
    mb_bank_trainer_free(r.trainer);
    mb_router_free(r.router);
    mb_free(r.members);
    mb_buffer_fini(&r.loaded);
    mb_buffer_fini(&r.record);
    return st;
}
