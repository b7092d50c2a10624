/* SPDX-License-Identifier: Apache-2.0
 * model/train/trainer.c - weights, steps, optimizers.
 *
 * All members of a team walk a step together. First each takes its windows,
 * number i being member i modulo their number, and adds to gradients of its
 * own; then tiles of weights are summed over the members in order, and the
 * norm with them; then tiles (by AdamW) and whole matrices (by Muon) are moved.
 * Whatever is summed is summed in an order that the number of members fixes, so
 * a step gives the same bits again.
 *
 * Weights, moments and gradients are flat arrays, one weight behind the other,
 * each on a new cache line. */
#include "mb_train.h"

#include "../blas.h"
#include "../team.h"
#include "graph.h"
#include "muon.h"
#include "vector.h"
#include "weights.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define TILE_FLOATS    16384u
#define TAPE_MAX_BYTES ((size_t)16 << 30)
#define INIT_STD       0.02

/* One member's room. */
struct member {
    struct tape_f32 *tape;
    float *grads; /* like weights */
    struct graph_model_f32 model;
    struct graph_layer_f32 *layers;
    float *room; /* of Muon, or NULL */
    double flops;
    bool failed;
};

/* A piece of one weight. */
struct tile {
    uint32_t weight;
    size_t first; /* in the flat arrays */
    size_t n;
    double square; /* of the gradient, summed */
};

struct trainer {
    struct train_shape shape;
    struct train_options options;
    struct team *team;
    struct member *members;
    struct train_weight *weights;
    char (*names)[WEIGHTS_MAX_NAME];
    size_t *offsets; /* (n_weights) in the flat arrays */
    size_t n_weights;
    size_t n_params;
    size_t n_floats; /* of a flat array, with gaps */
    float *values;
    float *moments;
    float *squares;
    struct tile *tiles;
    size_t n_tiles;
    uint64_t n_steps;
    size_t bytes;

    /* The step that runs. */
    const struct train_window *windows;
    size_t n_windows;
    double *losses; /* (n_windows) */
    size_t losses_capacity;
    double weight; /* of a target's loss */
    struct adam adam;
    double rate;
    double norm;
    bool is_finite;
};

/* ---- weights ---- */

static void
name_weights(struct trainer *t)
{
    size_t n = weights_count(&t->shape);
    for (size_t i = 0; i < n; i++) {
        struct weight_shape w;
        weights_at(&t->shape, i, &w);
        (void)snprintf(t->names[i], WEIGHTS_MAX_NAME, "%s", w.name);
        t->weights[i] = (struct train_weight){
            .name = t->names[i],
            .n_rows = w.n_rows,
            .n_cols = w.n_cols,
            // Neither norms nor the embedding are.
            .is_decayed = i > 0 && w.n_rows > 1,
        };
        t->offsets[i] = t->n_floats;
        t->n_params += w.n_rows * w.n_cols;
        t->n_floats += (w.n_rows * w.n_cols + 15) / 16 * 16;
    }
    t->n_weights = n;
}

/* Sums into the residual stream start smaller, as there are two a layer
 * (Radford et al. 2019, section 2.3). */
static void
draw_weights(struct trainer *t)
{
    double into_stream = INIT_STD / sqrt(2.0 * (double)t->shape.n_layers);
    for (size_t i = 0; i < t->n_weights; i++) {
        struct train_weight *w = &t->weights[i];
        struct mb_rng rng;
        bool is_into = strstr(w->name, "attn_output") != NULL ||
                       strstr(w->name, "ffn_down") != NULL;
        double std = is_into ? into_stream : INIT_STD;
        mb_rng_init(&rng, t->options.seed * 1000003u + i);
        for (size_t j = 0; j < w->n_rows * w->n_cols; j++)
            w->value[j] =
                w->n_rows == 1 ? 1 : (float)(mb_rng_normal(&rng) * std);
    }
}

static bool
make_tiles(struct trainer *t)
{
    size_t most = t->n_floats / TILE_FLOATS + t->n_weights;
    t->tiles = mb_calloc(most, sizeof(*t->tiles));
    if (!t->tiles)
        return false;
    for (size_t i = 0; i < t->n_weights; i++) {
        size_t size = t->weights[i].n_rows * t->weights[i].n_cols;
        for (size_t first = 0; first < size; first += TILE_FLOATS) {
            size_t n = size - first < TILE_FLOATS ? size - first : TILE_FLOATS;
            t->tiles[t->n_tiles++] =
                (struct tile){(uint32_t)i, t->offsets[i] + first, n, 0};
        }
    }
    return true;
}

static float *
make_floats(struct trainer *t, size_t n)
{
    t->bytes += n * sizeof(float);
    return mb_calloc(n, sizeof(float));
}

/* Is it moved as a whole, by Muon? The embedding is a table of rows that are
 * not mixed, norms are scales. */
static bool
is_matrix(const struct trainer *t, size_t weight)
{
    return t->options.optimizer == TRAIN_MUON && weight >= 2 &&
           t->weights[weight].n_rows > 1;
}

/* Room for the largest matrix that Muon moves. */
static size_t
count_room(const struct trainer *t)
{
    size_t most = 0;
    for (size_t i = 0; i < t->n_weights; i++) {
        size_t n = muon_room(t->weights[i].n_rows, t->weights[i].n_cols);
        if (is_matrix(t, i) && n > most)
            most = n;
    }
    return most;
}

static bool
make_arrays(struct trainer *t)
{
    size_t n = weights_count(&t->shape);
    t->weights = mb_calloc(n, sizeof(*t->weights));
    t->names = mb_calloc(n, sizeof(*t->names));
    t->offsets = mb_calloc(n, sizeof(*t->offsets));
    if (!t->weights || !t->names || !t->offsets)
        return false;
    name_weights(t);
    t->values = make_floats(t, t->n_floats);
    t->moments = make_floats(t, t->n_floats);
    t->squares = make_floats(t, t->n_floats);
    if (!t->values || !t->moments || !t->squares || !make_tiles(t))
        return false;
    for (size_t i = 0; i < n; i++) {
        t->weights[i].value = t->values + t->offsets[i];
        t->weights[i].moment = t->moments + t->offsets[i];
        t->weights[i].square = t->squares + t->offsets[i];
    }
    t->members = mb_calloc(team_size(t->team), sizeof(*t->members));
    for (unsigned m = 0; t->members && m < team_size(t->team); m++) {
        struct member *member = &t->members[m];
        member->tape = tape_new_f32(TAPE_MAX_BYTES);
        member->grads = make_floats(t, t->n_floats);
        member->layers = mb_calloc(t->shape.n_layers, sizeof(*member->layers));
        if (!member->tape || !member->grads || !member->layers)
            return false;
        if (t->options.optimizer == TRAIN_MUON) {
            member->room = make_floats(t, count_room(t));
            if (!member->room)
                return false;
        }
    }
    return t->members != NULL;
}

/* ---- new and free ---- */

static mb_status
check_shape(const struct train_shape *s, struct mb_error *err)
{
    if (s->n_layers == 0 || s->n_layers > 1024 || s->d_model == 0 ||
        s->d_model > 65536 || s->n_heads == 0 || s->n_kv_heads == 0 ||
        s->n_heads % s->n_kv_heads != 0 || s->n_heads > 512 ||
        s->head_dim == 0 || s->head_dim % 2 != 0 || s->head_dim > 512 ||
        s->d_ff == 0 || s->d_ff > 1u << 20 || s->n_vocab < 2 ||
        s->n_vocab > INT32_MAX || s->n_ctx == 0 || s->n_ctx > 1u << 20 ||
        !(s->rope_base > 0) || !(s->norm_eps >= 0))
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "train: no model of %zu layers, width %zu, %zu heads and %zu "
            "key-value heads of %zu, feed-forward %zu, vocabulary %zu, context "
            "%zu",
            s->n_layers, s->d_model, s->n_heads, s->n_kv_heads, s->head_dim,
            s->d_ff, s->n_vocab, s->n_ctx);
    return MB_OK;
}

static void
set_default(double *x, double value)
{
    if (*x == 0)
        *x = value;
}

mb_status
trainer_new(const struct train_shape *shape,
    const struct train_options *options, struct trainer **out,
    struct mb_error *err)
{
    mb_status st = check_shape(shape, err);
    if (st != MB_OK)
        return st;
    struct trainer *t = mb_calloc(1, sizeof(*t));
    if (!t)
        return mb_error_set(err, MB_ERR_NOMEM, "train: trainer");
    t->shape = *shape;
    t->options = *options;
    set_default(&t->options.beta1, 0.9);
    set_default(&t->options.beta2, 0.95);
    set_default(&t->options.momentum, 0.95);
    set_default(&t->options.adam_eps, 1e-8);
    set_default(&t->options.clip, 1.0);
    blas_begin();
    st = team_new(
        options->n_threads ? options->n_threads : mb_cpu_count(), &t->team);
    if (st != MB_OK)
        st = mb_error_set(err, st, "train: cannot start threads");
    else if (!make_arrays(t))
        st = mb_error_set(err, MB_ERR_NOMEM,
            "train: weights, moments and gradients take %zu bytes", t->bytes);
    if (st != MB_OK) {
        trainer_free(t);
        return st;
    }
    draw_weights(t);
    *out = t;
    return MB_OK;
}

void
trainer_free(struct trainer *t)
{
    if (!t)
        return;
    for (unsigned m = 0; t->members && m < team_size(t->team); m++) {
        tape_free_f32(t->members[m].tape);
        mb_free(t->members[m].grads);
        mb_free(t->members[m].layers);
        mb_free(t->members[m].room);
    }
    team_free(t->team);
    mb_free(t->members);
    mb_free(t->weights);
    mb_free(t->names);
    mb_free(t->offsets);
    mb_free(t->values);
    mb_free(t->moments);
    mb_free(t->squares);
    mb_free(t->tiles);
    mb_free(t->losses);
    mb_free(t);
}

const struct train_shape *
trainer_shape(const struct trainer *t)
{
    return &t->shape;
}

size_t
trainer_n_weights(const struct trainer *t)
{
    return t->n_weights;
}

struct train_weight *
trainer_weight(struct trainer *t, size_t i)
{
    return &t->weights[i];
}

size_t
trainer_n_params(const struct trainer *t)
{
    return t->n_params;
}

uint64_t
trainer_n_steps(const struct trainer *t)
{
    return t->n_steps;
}

void
trainer_set_n_steps(struct trainer *t, uint64_t n)
{
    t->n_steps = n;
}

size_t
trainer_bytes(const struct trainer *t)
{
    size_t bytes = t->bytes;
    for (unsigned m = 0; m < team_size(t->team); m++)
        bytes += tape_bytes_f32(t->members[m].tape);
    return bytes;
}

/* ---- windows ---- */

static struct tape_var_f32
var_of(const struct trainer *t, const struct member *m, size_t i)
{
    const struct train_weight *w = &t->weights[i];
    return (struct tape_var_f32){w->n_rows, w->n_cols, w->value,
        w->is_frozen ? NULL : m->grads + t->offsets[i]};
}

/* The model with this member's gradients. */
static void
bind_model(const struct trainer *t, struct member *m)
{
    m->model = (struct graph_model_f32){
        .shape = &t->shape,
        .layers = m->layers,
        .recompute = t->options.activations != TRAIN_KEEP_ALL,
        .keeps_bytes = t->options.activations == TRAIN_KEEP_BYTES,
    };
    for (size_t i = 0; i < t->n_weights; i++)
        *weights_slot(&m->model, i) = var_of(t, m, i);
}

static void
run_windows(struct trainer *t, unsigned member)
{
    struct member *m = &t->members[member];
    bind_model(t, m);
    m->flops = 0;
    m->failed = false;
    memset(m->grads, 0, t->n_floats * sizeof(float));
    for (size_t i = member; i < t->n_windows; i += team_size(t->team)) {
        tape_reset_f32(m->tape, true);
        struct tape_var_f32 loss =
            graph_loss_f32(m->tape, &m->model, &t->windows[i], t->weight);
        tape_backward_f32(m->tape, loss);
        m->flops += tape_flops_f32(m->tape);
        if (tape_failed_f32(m->tape)) {
            m->failed = true;
            return;
        }
        t->losses[i] = (double)loss.value[0];
    }
}

/* ---- the optimizer ---- */

/* Sum a tile's gradient over the members into the first's. */
static void
sum_tile(const struct trainer *t, struct tile *tile)
{
    float *to = t->members[0].grads + tile->first;
    tile->square = 0;
    if (t->weights[tile->weight].is_frozen)
        return;
    for (unsigned m = 1; m < team_size(t->team); m++) {
        const float *from = t->members[m].grads + tile->first;
        for (size_t i = 0; i < tile->n; i++)
            to[i] += from[i];
    }
    for (size_t i = 0; i < tile->n; i++)
        tile->square += (double)to[i] * (double)to[i];
}

/* Between sum and move: the norm, and how much of the gradient is taken. */
static void
decide(void *arg)
{
    struct trainer *t = arg;
    const struct train_options *o = &t->options;
    double square = 0;
    double loss = 0;
    bool failed = false;
    for (size_t i = 0; i < t->n_tiles; i++)
        square += t->tiles[i].square;
    for (size_t i = 0; i < t->n_windows; i++)
        loss += t->losses[i];
    for (unsigned m = 0; m < team_size(t->team); m++)
        failed |= t->members[m].failed;
    double n = (double)(t->n_steps + 1);
    t->norm = sqrt(square);
    t->is_finite = !failed && isfinite(t->norm) && isfinite(loss);
    t->adam = (struct adam){
        .rate = (float)t->rate,
        .beta1 = (float)o->beta1,
        .beta2 = (float)o->beta2,
        .eps = (float)o->adam_eps,
        .scale = (float)(t->norm > o->clip ? o->clip / t->norm : 1),
        .fix1 = (float)(1 / (1 - pow(o->beta1, n))),
        .fix2 = (float)(1 / (1 - pow(o->beta2, n))),
    };
}

static void
move_tile(const struct trainer *t, const struct tile *tile)
{
    const struct train_weight *w = &t->weights[tile->weight];
    struct adam adam = t->adam;
    if (w->is_frozen || is_matrix(t, tile->weight))
        return;
    adam.decay = w->is_decayed ? (float)t->options.decay : 0;
    vector_best()->adam(&adam, t->values + tile->first,
        t->members[0].grads + tile->first, t->moments + tile->first,
        t->squares + tile->first, tile->n);
}

static void
move_matrix(const struct trainer *t, size_t weight, float *room)
{
    const struct train_weight *w = &t->weights[weight];
    const struct muon muon = {
        .rate = (float)t->rate,
        .decay = w->is_decayed ? (float)t->options.decay : 0,
        .momentum = (float)t->options.momentum,
        .scale = t->adam.scale,
    };
    if (w->is_frozen || !is_matrix(t, weight))
        return;
    muon_step(&muon, w->value, t->members[0].grads + t->offsets[weight],
        w->moment, w->n_rows, w->n_cols, room);
}

/* Matrices first, as they take longest. */
static void
move_weights(struct trainer *t, unsigned member)
{
    size_t end = t->n_weights + t->n_tiles;
    for (size_t i = team_next(t->team); i < end; i = team_next(t->team)) {
        if (i < t->n_weights)
            move_matrix(t, i, t->members[member].room);
        else
            move_tile(t, &t->tiles[i - t->n_weights]);
    }
}

static void
walk_step(void *arg, unsigned member)
{
    struct trainer *t = arg;
    run_windows(t, member);
    team_barrier(t->team);
    for (size_t i = team_next(t->team); i < t->n_tiles; i = team_next(t->team))
        sum_tile(t, &t->tiles[i]);
    team_barrier_step(t->team, decide, t);
    if (t->is_finite)
        move_weights(t, member);
}

/* ---- calls ---- */

static mb_status
check_window(const struct trainer *t, const struct train_window *w, size_t i,
    struct mb_error *err)
{
    if (w->n == 0 || w->n > t->shape.n_ctx)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "train: window %zu has %zu rows, must be 1 to %zu", i, w->n,
            t->shape.n_ctx);
    return weights_check_tokens(&t->shape, w, i, err);
}

static mb_status
begin(struct trainer *t, const struct train_window *windows, size_t n,
    struct train_result *out, struct mb_error *err)
{
    *out = (struct train_result){0};
    for (size_t i = 0; i < n; i++) {
        mb_status st = check_window(t, &windows[i], i, err);
        if (st != MB_OK)
            return st;
        for (size_t r = 0; r < windows[i].n; r++)
            out->n_targets += windows[i].targets[r] >= 0;
        out->n_rows += windows[i].n;
    }
    if (out->n_targets == 0)
        return mb_error_set(err, MB_ERR_BAD_ARG, "train: no row has a target");
    if (n > t->losses_capacity) {
        double *losses = mb_realloc(t->losses, n * sizeof(*losses));
        if (!losses)
            return mb_error_set(err, MB_ERR_NOMEM, "train: %zu windows", n);
        t->losses = losses;
        t->losses_capacity = n;
    }
    memset(t->losses, 0, n * sizeof(*t->losses));
    t->windows = windows;
    t->n_windows = n;
    t->weight = 1 / (double)out->n_targets;
    return MB_OK;
}

/* Which weight's gradient is not finite. */
static mb_status
not_finite(const struct trainer *t, double loss, struct mb_error *err)
{
    const char *name = "none";
    for (size_t i = 0; i < t->n_tiles; i++) {
        if (!isfinite(t->tiles[i].square)) {
            name = t->weights[t->tiles[i].weight].name;
            break;
        }
    }
    return mb_error_set(err, MB_ERR_CORRUPT,
        "train: step %llu has loss %g, norm of the gradient %g, first weight "
        "whose gradient is not finite: %s",
        (unsigned long long)(t->n_steps + 1), loss, t->norm, name);
}

static mb_status
finish(struct trainer *t, struct train_result *out, struct mb_error *err)
{
    for (unsigned m = 0; m < team_size(t->team); m++) {
        if (t->members[m].failed)
            return mb_error_set(err, MB_ERR_NOMEM,
                "train: no room for the activations of a window; all of "
                "training takes %zu bytes",
                trainer_bytes(t));
        out->flops += t->members[m].flops;
    }
    for (size_t i = 0; i < t->n_windows; i++)
        out->loss += t->losses[i];
    return MB_OK;
}

mb_status
trainer_step(struct trainer *t, const struct train_window *windows, size_t n,
    double rate, struct train_result *out, struct mb_error *err)
{
    mb_status st = begin(t, windows, n, out, err);
    if (st != MB_OK)
        return st;
    t->rate = rate;
    team_run(t->team, team_size(t->team), walk_step, t);
    st = finish(t, out, err);
    if (st != MB_OK)
        return st;
    out->grad_norm = t->norm;
    if (!t->is_finite)
        return not_finite(t, out->loss, err);
    t->n_steps++;
    return MB_OK;
}
