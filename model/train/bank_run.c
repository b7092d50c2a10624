/* SPDX-License-Identifier: Apache-2.0
 * model/train/bank_run.c - windows through the frozen anchor with the blocks of
 * their paths.
 *
 * The blocks of a path are laid side by side as one, [layer][gate|up|down]
 * [rows][d_model], top first: larger products, and a prefix of the path is a
 * prefix of the rows. Only these get a gradient; the tape does no work for
 * parameters without one. A window runs on one thread, so what it gives does
 * not depend on how many there are. */
#include "bank_train.h"

#include "../blas.h"
#include "weights.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#define TAPE_MAX_BYTES ((size_t)16 << 30)
#define MOVE_FLOATS    65536u /* weights of a tile */

/* ---- the anchor ---- */

/* Weight i of the import, frozen: the tape never writes to it. */
static struct tape_var_f32
frozen(const struct bank_model *m, size_t i)
{
    const struct export_weight *w = &m->anchor.weights[i];
    return (struct tape_var_f32){
        w->n_rows, w->n_cols, (float *)(uintptr_t)w->value, NULL};
}

/* Weights come in the order of weights.h. */
static void
bind_anchor(struct bank_model *m)
{
    m->graph = (struct graph_model_f32){
        .shape = &m->shape,
        .layers = m->layers,
        .recompute = m->recompute,
    };
    for (size_t i = 0; i < m->anchor.n_weights; i++)
        *weights_slot(&m->graph, i) = frozen(m, i);
}

static mb_status
make_members(struct bank_model *m, unsigned n_threads, struct mb_error *err)
{
    size_t n = m->shape.n_layers;
    mb_status st = team_new(n_threads ? n_threads : mb_cpu_count(), &m->team);
    if (st != MB_OK)
        return mb_error_set(err, st, "train: cannot start threads");
    m->layers = mb_calloc(n, sizeof(*m->layers));
    m->members = mb_calloc(team_size(m->team), sizeof(*m->members));
    bool is_whole = m->layers && m->members;
    for (unsigned i = 0; is_whole && i < team_size(m->team); i++) {
        struct bank_member *member = &m->members[i];
        member->tape = tape_new_f32(TAPE_MAX_BYTES);
        member->layers = mb_calloc(n, sizeof(*member->layers));
        is_whole = member->tape && member->layers;
    }
    return is_whole ? MB_OK
                    : mb_error_set(err, MB_ERR_NOMEM, "train: %zu layers", n);
}

mb_status
bank_model_init(struct bank_model *m, const struct mb_gguf *gguf,
    const struct mb_bank_shape *bank,
    const struct mb_bank_train_options *options, struct mb_error *err)
{
    mb_status st = import_gguf(gguf, &m->anchor, err);
    if (st != MB_OK)
        return st;
    m->shape = m->anchor.shape;
    m->bank = *bank;
    m->recompute = options->recompute;
    if (bank->d_model != m->shape.d_model || bank->n_layers == 0 ||
        bank->first_layer >= m->shape.n_layers ||
        bank->n_layers > m->shape.n_layers - bank->first_layer)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "train: blocks of width %zu for layers %zu to %zu; the model has "
            "width %zu and %zu layers",
            bank->d_model, bank->first_layer,
            bank->first_layer + bank->n_layers, m->shape.d_model,
            m->shape.n_layers);
    blas_begin();
    st = make_members(m, options->n_threads, err);
    if (st == MB_OK)
        bind_anchor(m);
    return st;
}

void
bank_model_fini(struct bank_model *m)
{
    for (unsigned i = 0; m->members && i < team_size(m->team); i++) {
        tape_free_f32(m->members[i].tape);
        mb_free(m->members[i].layers);
    }
    team_free(m->team);
    mb_free(m->members);
    mb_free(m->layers);
    if (m->anchor.arena)
        imported_free(&m->anchor);
}

size_t
bank_model_bytes(const struct bank_model *m)
{
    size_t bytes = 0;
    for (size_t i = 0; i < m->anchor.n_weights; i++)
        bytes += m->anchor.weights[i].n_rows * m->anchor.weights[i].n_cols *
                 sizeof(float);
    for (unsigned i = 0; i < team_size(m->team); i++)
        bytes += tape_bytes_f32(m->members[i].tape);
    return bytes;
}

/* ---- passes ---- */

/* Matrix `part` of layer l of a path, its first rows. */
static struct tape_var_f32
path_var(const struct bank_pass *p, size_t d, size_t l, bank_part part)
{
    size_t at = (l * BANK_N_PARTS + part) * p->path_rows * d;
    return (struct tape_var_f32){p->rows, d, (float *)(uintptr_t)(p->path + at),
        p->grad ? p->grad + at : NULL};
}

static void
run_pass(
    const struct bank_model *m, struct bank_member *member, struct bank_pass *p)
{
    struct graph_model_f32 graph = m->graph;
    size_t n_layers = m->shape.n_layers;
    graph.layers = member->layers;
    memcpy(member->layers, m->layers, n_layers * sizeof(*m->layers));
    for (size_t i = 0; p->rows > 0 && i < m->bank.n_layers; i++) {
        struct graph_layer_f32 *l = &member->layers[m->bank.first_layer + i];
        l->memory_gate = path_var(p, m->bank.d_model, i, BANK_GATE);
        l->memory_up = path_var(p, m->bank.d_model, i, BANK_UP);
        l->memory_down = path_var(p, m->bank.d_model, i, BANK_DOWN);
    }
    tape_reset_f32(member->tape, p->grad != NULL);
    struct tape_var_f32 loss =
        graph_loss_f32(member->tape, &graph, &p->window, 1);
    if (p->grad)
        tape_backward_f32(member->tape, loss);
    member->flops += tape_flops_f32(member->tape);
    p->failed = tape_failed_f32(member->tape);
    p->loss = p->failed ? 0 : (double)loss.value[0];
}

struct run_call {
    struct bank_model *model;
    struct bank_pass *passes;
    size_t n;
    atomic_bool is_given_up; /* relaxed: the end of the team's run orders it */
};

static bool
gives_way(struct run_call *call)
{
    struct bank_model *m = call->model;
    if (!m->gives_way || !m->gives_way(m->arg))
        return false;
    atomic_store_explicit(&call->is_given_up, true, memory_order_relaxed);
    return true;
}

static void
walk_passes(void *arg, unsigned member)
{
    struct run_call *call = arg;
    struct bank_model *m = call->model;
    m->members[member].flops = 0;
    for (size_t i = team_next(m->team); i < call->n && !gives_way(call);
         i = team_next(m->team))
        run_pass(m, &m->members[member], &call->passes[i]);
}

mb_status
bank_model_run(struct bank_model *m, struct bank_pass *passes, size_t n,
    double *flops, struct mb_error *err)
{
    struct run_call call = {.model = m, .passes = passes, .n = n};
    team_run(m->team, team_size(m->team), walk_passes, &call);
    for (unsigned i = 0; i < team_size(m->team); i++)
        *flops += m->members[i].flops;
    if (atomic_load_explicit(&call.is_given_up, memory_order_relaxed))
        return mb_error_set(err, MB_ERR_CANCELLED, "train: stopped");
    for (size_t i = 0; i < n; i++) {
        if (passes[i].failed)
            return mb_error_set(err, MB_ERR_NOMEM,
                "train: no room for the activations of a window; training "
                "takes %zu bytes",
                bank_model_bytes(m));
        if (!isfinite(passes[i].loss))
            return mb_error_set(err, MB_ERR_CORRUPT,
                "train: a window of %zu rows has loss %g", passes[i].window.n,
                passes[i].loss);
    }
    return MB_OK;
}

/* ---- paths ---- */

void
bank_path_put(const struct mb_bank_shape *shape, const struct bank_slot *slot,
    float *path, size_t path_rows, size_t row)
{
    const float *from = bank_slot_weights(slot);
    size_t n = slot->rows * shape->d_model;
    for (size_t i = 0; i < shape->n_layers * BANK_N_PARTS; i++)
        memcpy(path + (i * path_rows + row) * shape->d_model, from + i * n,
            n * sizeof(float));
}

void
bank_path_take(const struct mb_bank_shape *shape, struct bank_slot *slot,
    const float *grad, size_t path_rows, size_t row)
{
    size_t n = slot->rows * shape->d_model;
    for (size_t i = 0; i < shape->n_layers * BANK_N_PARTS; i++) {
        const float *from = grad + (i * path_rows + row) * shape->d_model;
        float *to = slot->grad + i * n;
        for (size_t j = 0; j < n; j++)
            to[j] += from[j];
    }
}

/* ---- the optimizer ---- */

struct move_call {
    struct bank_model *model;
    struct bank_slot *const *slots;
    size_t n;
    struct adam adam;
    double beta1;
    double beta2;
};

/* Tile of a slot: lazy Adam counts the slot's own steps. */
static void
move_tile(const struct move_call *call, const struct bank_slot *s, size_t first)
{
    size_t n = bank_slot_n(s, &call->model->bank) - first;
    double t = (double)(s->n_steps + 1);
    struct adam adam = call->adam;
    adam.scale = (float)(1 / (double)s->n_targets);
    adam.fix1 = (float)(1 / (1 - pow(call->beta1, t)));
    adam.fix2 = (float)(1 / (1 - pow(call->beta2, t)));
    vector_best()->adam(&adam, bank_slot_weights(s) + first, s->grad + first,
        bank_slot_moments(s) + first, bank_slot_squares(s) + first,
        n < MOVE_FLOATS ? n : MOVE_FLOATS);
}

static void
walk_move(void *arg, unsigned member)
{
    struct move_call *call = arg;
    struct team *team = call->model->team;
    size_t tile = team_next(team);
    size_t before = 0;
    (void)member;
    for (size_t i = 0; i < call->n; i++) {
        size_t n = bank_slot_n(call->slots[i], &call->model->bank);
        size_t n_tiles = (n + MOVE_FLOATS - 1) / MOVE_FLOATS;
        for (; tile < before + n_tiles; tile = team_next(team))
            move_tile(call, call->slots[i], (tile - before) * MOVE_FLOATS);
        before += n_tiles;
    }
}

void
bank_model_move(struct bank_model *m, struct bank_slot *const *slots, size_t n,
    const struct mb_bank_train_options *o, double rate)
{
    struct move_call call = {
        .model = m,
        .slots = slots,
        .n = n,
        .adam = {.rate = (float)rate,
            .beta1 = (float)o->beta1,
            .beta2 = (float)o->beta2,
            .eps = (float)o->adam_eps,
            .decay = (float)o->decay},
        .beta1 = o->beta1,
        .beta2 = o->beta2,
    };
    team_run(m->team, team_size(m->team), walk_move, &call);
    for (size_t i = 0; i < n; i++) {
        slots[i]->n_steps++;
        slots[i]->n_tokens += slots[i]->n_targets;
        slots[i]->n_targets = 0;
        slots[i]->is_dirty = true;
        mb_free(slots[i]->grad);
        slots[i]->grad = NULL;
    }
}
