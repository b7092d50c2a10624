/* SPDX-License-Identifier: Apache-2.0
 * model/train/cotrain.c - see mb_cotrain.h.
 *
 * Blocks, paths and their optimizer are those of bank_train.h; what is added is
 * a gradient for the anchor's weights. Windows go through in chunks, number i
 * of a chunk on member i modulo their number; the anchor's gradient is summed
 * over the members, the blocks' window by window, each in a fixed order.
 * Threads: the caller's, and the model's team. */
#include "mb_cotrain.h"

#include "bank_train.h"
#include "weights.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* One window of a chunk. */
struct room {
    float *path; /* (n_layers, 3, path_rows, d_model) */
    float *grad; /* same */
    const struct mb_cotrain_window *window;
    struct bank_slot *slots[MB_BANK_MAX_LEVELS];
    size_t n_blocks;
    size_t rows; /* of them */
    size_t n_targets;
    double loss;
    bool failed;
};

struct mb_cotrainer {
    struct bank_model model;
    struct mb_bank_train_options bank; /* what bank_model_move reads */
    struct mb_cotrain_options options;
    struct mb_bank_draw draw;
    size_t *offsets; /* (n_weights) in the arrays below */
    size_t n_floats; /* of all weights */
    float *moments;
    float *squares;
    float **grads; /* (members) */
    uint64_t n_steps;
    struct bank_slot **slots; /* in order of first use */
    size_t n_slots;
    size_t slots_capacity;
    /* Of a step. */
    struct bank_slot **touched; /* (slots_capacity) */
    size_t n_touched;
    struct room rooms[BANK_CHUNK];
    size_t n_rooms; /* in use */
    size_t path_rows;
    size_t path_floats;
};

/* ---- life ---- */

static bool
make_arrays(struct mb_cotrainer *t)
{
    const struct imported *a = &t->model.anchor;
    unsigned n = team_size(t->model.team);
    t->path_rows = mb_bank_path_rows(&t->model.bank);
    t->path_floats = (size_t)mb_bank_n_params(&t->model.bank, t->path_rows);
    t->offsets = mb_calloc(a->n_weights, sizeof(*t->offsets));
    t->grads = mb_calloc(n, sizeof(*t->grads));
    if (!t->offsets || !t->grads)
        return false;
    for (size_t i = 0; i < a->n_weights; i++) {
        t->offsets[i] = t->n_floats;
        t->n_floats += a->weights[i].n_rows * a->weights[i].n_cols;
    }
    t->moments = mb_calloc(t->n_floats, sizeof(float));
    t->squares = mb_calloc(t->n_floats, sizeof(float));
    bool is_whole = t->moments && t->squares;
    for (unsigned i = 0; i < n && is_whole; i++) {
        t->grads[i] = mb_calloc(t->n_floats, sizeof(float));
        is_whole = t->grads[i] != NULL;
    }
    for (size_t i = 0; i < BANK_CHUNK && is_whole; i++) {
        t->rooms[i].path = mb_calloc(t->path_floats, sizeof(float));
        t->rooms[i].grad = mb_calloc(t->path_floats, sizeof(float));
        is_whole = t->rooms[i].path && t->rooms[i].grad;
    }
    return is_whole;
}

static void
set_default(double *x, double value)
{
    if (*x == 0)
        *x = value;
}

mb_status
mb_cotrainer_new(const struct mb_gguf *gguf, const struct mb_bank_shape *shape,
    const struct mb_cotrain_options *options, struct mb_cotrainer **out,
    struct mb_error *err)
{
    struct mb_cotrainer *t = mb_calloc(1, sizeof(*t));
    if (!t)
        return mb_error_set(err, MB_ERR_NOMEM, "train: trainer");
    t->options = *options;
    set_default(&t->options.beta1, 0.9);
    set_default(&t->options.beta2, 0.95);
    set_default(&t->options.adam_eps, 1e-8);
    set_default(&t->options.memory_decay, 1e-3);
    set_default(&t->options.clip, 1.0);
    t->bank = (struct mb_bank_train_options){.n_threads = options->n_threads,
        .beta1 = t->options.beta1,
        .beta2 = t->options.beta2,
        .adam_eps = t->options.adam_eps,
        .decay = t->options.memory_decay};
    t->draw.seed = options->seed;
    mb_gguf_fingerprint((struct mb_gguf *)(uintptr_t)gguf, t->draw.anchor);
    mb_status st = bank_model_init(&t->model, gguf, shape, &t->bank, err);
    if (st == MB_OK && !make_arrays(t))
        st = mb_error_set(err, MB_ERR_NOMEM,
            "train: gradients and moments of %zu weights", t->n_floats);
    if (st != MB_OK) {
        mb_cotrainer_free(t);
        return st;
    }
    *out = t;
    return MB_OK;
}

void
mb_cotrainer_free(struct mb_cotrainer *t)
{
    if (!t)
        return;
    for (unsigned i = 0; t->grads && i < team_size(t->model.team); i++)
        mb_free(t->grads[i]);
    for (size_t i = 0; i < t->n_slots; i++) {
        bank_slot_drop(t->slots[i]);
        mb_free(t->slots[i]);
    }
    for (size_t i = 0; i < BANK_CHUNK; i++) {
        mb_free(t->rooms[i].path);
        mb_free(t->rooms[i].grad);
    }
    bank_model_fini(&t->model);
    mb_free(t->offsets);
    mb_free(t->moments);
    mb_free(t->squares);
    mb_free(t->grads);
    mb_free(t->slots);
    mb_free(t->touched);
    mb_free(t);
}

/* ---- blocks ---- */

static struct bank_slot *
find(const struct mb_cotrainer *t, uint64_t node)
{
    for (size_t i = 0; i < t->n_slots; i++) {
        if (t->slots[i]->node == node)
            return t->slots[i];
    }
    return NULL;
}

static bool
grow(struct mb_cotrainer *t)
{
    if (t->n_slots < t->slots_capacity)
        return true;
    size_t more = t->slots_capacity ? 2 * t->slots_capacity : 64;
    void *slots = mb_realloc(t->slots, more * sizeof(*t->slots));
    if (slots)
        t->slots = slots;
    void *touched =
        slots ? mb_realloc(t->touched, more * sizeof(*t->touched)) : NULL;
    if (!touched)
        return false;
    t->touched = touched;
    t->slots_capacity = more;
    return true;
}

/* The node's block, fresh at its first use. level 0: generic. */
static mb_status
need(struct mb_cotrainer *t, uint64_t node, size_t level,
    struct bank_slot **out, struct mb_error *err)
{
    const struct mb_slice none = {NULL, 0};
    *out = find(t, node);
    if (*out)
        return MB_OK;
    struct bank_slot *s = grow(t) ? mb_calloc(1, sizeof(*s)) : NULL;
    if (!s)
        return mb_error_set(err, MB_ERR_NOMEM, "train: a block");
    *s = (struct bank_slot){.node = node,
        .level = level,
        .rows = level ? t->model.bank.rows[level - 1] : t->path_rows};
    t->draw.node = node;
    t->draw.level = level;
    mb_status st = bank_slot_load(s, &t->model.bank, &t->draw, none, none, err);
    if (st != MB_OK) {
        mb_free(s);
        return st;
    }
    t->slots[t->n_slots++] = s;
    *out = s;
    return MB_OK;
}

static mb_status
lay_path(struct mb_cotrainer *t, struct room *r, struct mb_error *err)
{
    const struct mb_bank_shape *shape = &t->model.bank;
    const uint64_t *path = r->window->path;
    bool is_generic = path[0] == MB_BANK_GENERIC;
    size_t n_levels = is_generic ? 1 : shape->n_levels;
    mb_status st = MB_OK;
    r->n_blocks = 0;
    r->rows = 0;
    for (size_t l = 0; l < n_levels && path[l] != MB_BANK_NONE; l++) {
        struct bank_slot *s = NULL;
        if (!is_generic && shape->rows[l] == 0)
            continue;
        st = need(t, path[l], is_generic ? 0 : l + 1, &s, err);
        if (st != MB_OK)
            return st;
        // A node at another level than before has other rows.
        if (s->rows > t->path_rows - r->rows)
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "train: a path of more than %zu rows", t->path_rows);
        bank_path_put(shape, s, r->path, t->path_rows, r->rows);
        r->rows += s->rows;
        r->slots[r->n_blocks++] = s;
    }
    memset(r->grad, 0, t->path_floats * sizeof(float));
    return MB_OK;
}

/* ---- a chunk ---- */

static struct tape_var_f32
memory_of(const struct mb_cotrainer *t, const struct room *r, size_t layer,
    bank_part part)
{
    size_t d = t->model.bank.d_model;
    size_t at = (layer * BANK_N_PARTS + part) * t->path_rows * d;
    return (struct tape_var_f32){r->rows, d, r->path + at, r->grad + at};
}

static void
run_room(struct mb_cotrainer *t, unsigned member, struct room *r)
{
    struct bank_model *m = &t->model;
    struct bank_member *me = &m->members[member];
    struct graph_model_f32 graph = m->graph;
    graph.layers = me->layers;
    memcpy(me->layers, m->layers, m->shape.n_layers * sizeof(*m->layers));
    for (size_t i = 0; i < m->anchor.n_weights; i++)
        weights_slot(&graph, i)->grad = t->grads[member] + t->offsets[i];
    for (size_t i = 0; r->rows > 0 && i < m->bank.n_layers; i++) {
        struct graph_layer_f32 *l = &me->layers[m->bank.first_layer + i];
        l->memory_gate = memory_of(t, r, i, BANK_GATE);
        l->memory_up = memory_of(t, r, i, BANK_UP);
        l->memory_down = memory_of(t, r, i, BANK_DOWN);
    }
    tape_reset_f32(me->tape, true);
    struct tape_var_f32 loss =
        graph_loss_f32(me->tape, &graph, &r->window->rows, 1);
    tape_backward_f32(me->tape, loss);
    me->flops += tape_flops_f32(me->tape);
    r->failed = tape_failed_f32(me->tape);
    r->loss = r->failed ? 0 : (double)loss.value[0];
}

static void
walk_rooms(void *arg, unsigned member)
{
    struct mb_cotrainer *t = arg;
    for (size_t i = member; i < t->n_rooms; i += team_size(t->model.team))
        run_room(t, member, &t->rooms[i]);
}

/* A room's gradients to its blocks. */
static mb_status
take_blocks(struct mb_cotrainer *t, struct room *r, struct mb_error *err)
{
    size_t row = 0;
    for (size_t l = 0; l < r->n_blocks && r->n_targets > 0; l++) {
        struct bank_slot *s = r->slots[l];
        if (!s->grad) {
            s->grad = mb_calloc(bank_slot_n(s, &t->model.bank), sizeof(float));
            if (!s->grad)
                return mb_error_set(
                    err, MB_ERR_NOMEM, "train: gradient of a block");
            t->touched[t->n_touched++] = s;
        }
        bank_path_take(&t->model.bank, s, r->grad, t->path_rows, row);
        s->n_targets += r->n_targets;
        row += s->rows;
    }
    return MB_OK;
}

static mb_status
run_chunk(struct mb_cotrainer *t, const struct mb_cotrain_window *windows,
    size_t n, struct train_result *sum, struct mb_error *err)
{
    mb_status st = MB_OK;
    t->n_rooms = n;
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        struct room *r = &t->rooms[i];
        r->window = &windows[i];
        r->n_targets = 0;
        for (size_t k = 0; k < windows[i].rows.n; k++)
            r->n_targets += windows[i].rows.targets[k] >= 0;
        st = weights_check_tokens(&t->model.shape, &windows[i].rows, i, err);
        if (st == MB_OK)
            st = lay_path(t, r, err);
    }
    if (st != MB_OK)
        return st;
    team_run(t->model.team, team_size(t->model.team), walk_rooms, t);
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        const struct room *r = &t->rooms[i];
        if (r->failed)
            return mb_error_set(
                err, MB_ERR_NOMEM, "train: no room for activations");
        sum->loss += r->loss;
        sum->n_targets += r->n_targets;
        sum->n_rows += r->window->rows.n;
        st = take_blocks(t, &t->rooms[i], err);
    }
    return st;
}

/* ---- the optimizer ---- */

static double
square_of(const float *x, size_t n)
{
    double square = 0;
    for (size_t i = 0; i < n; i++)
        square += (double)x[i] * (double)x[i];
    return square;
}

/* Sum the members' gradients into the first's; its norm, of the mean loss. */
static double
sum_anchor(struct mb_cotrainer *t, size_t n_targets)
{
    for (unsigned m = 1; m < team_size(t->model.team); m++) {
        for (size_t i = 0; i < t->n_floats; i++)
            t->grads[0][i] += t->grads[m][i];
    }
    return sqrt(square_of(t->grads[0], t->n_floats)) / (double)n_targets;
}

static void
move_anchor(struct mb_cotrainer *t, double rate, double norm, size_t n_targets)
{
    const struct mb_cotrain_options *o = &t->options;
    double n = (double)++t->n_steps;
    double kept = norm > o->clip ? o->clip / norm : 1;
    struct adam adam = {.rate = (float)rate,
        .beta1 = (float)o->beta1,
        .beta2 = (float)o->beta2,
        .eps = (float)o->adam_eps,
        .scale = (float)(kept / (double)n_targets),
        .fix1 = (float)(1 / (1 - pow(o->beta1, n))),
        .fix2 = (float)(1 / (1 - pow(o->beta2, n)))};
    for (size_t i = 0; i < t->model.anchor.n_weights; i++) {
        const struct export_weight *w = &t->model.anchor.weights[i];
        // Neither norms nor the embedding decay, as in trainer.c.
        adam.decay = i > 0 && w->n_rows > 1 ? (float)o->decay : 0;
        vector_best()->adam(&adam, (float *)(uintptr_t)w->value,
            t->grads[0] + t->offsets[i], t->moments + t->offsets[i],
            t->squares + t->offsets[i], w->n_rows * w->n_cols);
    }
}

static bool
blocks_are_finite(const struct mb_cotrainer *t)
{
    for (size_t i = 0; i < t->n_touched; i++) {
        const struct bank_slot *s = t->touched[i];
        double square = square_of(s->grad, bank_slot_n(s, &t->model.bank));
        if (!(square <= (double)FLT_MAX)) // NaN is refused, too
            return false;
    }
    return true;
}

static void
forget_gradients(struct mb_cotrainer *t)
{
    for (size_t i = 0; i < t->n_touched; i++) {
        mb_free(t->touched[i]->grad);
        t->touched[i]->grad = NULL;
        t->touched[i]->n_targets = 0;
    }
}

mb_status
mb_cotrainer_step(struct mb_cotrainer *t,
    const struct mb_cotrain_window *windows, size_t n, double rate,
    double memory_rate, struct train_result *out, struct mb_error *err)
{
    struct train_result sum = {0};
    mb_status st = MB_OK;
    t->n_touched = 0;
    for (unsigned m = 0; m < team_size(t->model.team); m++) {
        memset(t->grads[m], 0, t->n_floats * sizeof(float));
        t->model.members[m].flops = 0;
    }
    for (size_t i = 0; i < n && st == MB_OK; i += BANK_CHUNK)
        st = run_chunk(
            t, windows + i, n - i < BANK_CHUNK ? n - i : BANK_CHUNK, &sum, err);
    if (st == MB_OK && sum.n_targets == 0)
        st = mb_error_set(err, MB_ERR_BAD_ARG, "train: no targets");
    if (st == MB_OK) {
        sum.grad_norm = sum_anchor(t, sum.n_targets);
        sum.loss /= (double)sum.n_targets;
        if (!isfinite(sum.loss) || !isfinite(sum.grad_norm) ||
            !blocks_are_finite(t))
            st = mb_error_set(err, MB_ERR_CORRUPT,
                "train: step %llu: loss %g, gradient %g",
                (unsigned long long)t->n_steps, sum.loss, sum.grad_norm);
    }
    if (st != MB_OK) {
        forget_gradients(t);
        return st;
    }
    if (rate > 0)
        move_anchor(t, rate, sum.grad_norm, sum.n_targets);
    bank_model_move(&t->model, t->touched, t->n_touched, &t->bank, memory_rate);
    for (unsigned m = 0; m < team_size(t->model.team); m++)
        sum.flops += t->model.members[m].flops;
    *out = sum;
    return MB_OK;
}

/* ---- what came of it ---- */

const struct export_weight *
mb_cotrainer_weights(const struct mb_cotrainer *t, size_t *n)
{
    *n = t->model.anchor.n_weights;
    return t->model.anchor.weights;
}

const struct train_shape *
mb_cotrainer_shape(const struct mb_cotrainer *t)
{
    return &t->model.shape;
}

mb_status
mb_cotrainer_record(struct mb_cotrainer *t, uint64_t node, struct mb_slice *out,
    struct mb_error *err)
{
    struct bank_slot *s = find(t, node);
    if (!s)
        return mb_error_set(err, MB_ERR_NOT_FOUND,
            "train: no window had node %llu", (unsigned long long)node);
    return mb_bank_state_record(
        bank_slot_seal(s, &t->model.bank), out, NULL, err);
}
