/* SPDX-License-Identifier: Apache-2.0
 * model/train/judge.c - the forward pass of training, to judge a model by.
 *
 * Each member of a team takes the next window and runs it on a tape of its own;
 * a window's result does not depend on who takes it. Activations of a layer are
 * given back when it is done, as nothing goes back through it. */
#include "mb_judge.h"

#include "../blas.h"
#include "../team.h"
#include "graph.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define MAX_NAME       48u
#define TAPE_MAX_BYTES ((size_t)16 << 30)

struct member {
    struct tape_f32 *tape;
    bool failed;
};

struct judge {
    struct train_shape shape;
    struct graph_model_f32 model;
    struct team *team;
    struct member *members;
    /* Of a call. */
    const struct train_window *windows;
    size_t n_windows;
    float *const *nll;
    mb_token_id *const *best;
};

/* ---- weights ---- */

struct weights {
    const struct export_weight *list;
    size_t n;
    struct mb_error *err;
};

static mb_status
find(const struct weights *w, const char *name, size_t rows, size_t cols,
    struct tape_var_f32 *out)
{
    for (size_t i = 0; i < w->n; i++) {
        const struct export_weight *x = &w->list[i];
        if (strcmp(x->name, name) != 0)
            continue;
        if (x->n_rows != rows || x->n_cols != cols)
            return mb_error_set(w->err, MB_ERR_MISMATCH,
                "weight %s is %zu x %zu, expected %zu x %zu", name, x->n_rows,
                x->n_cols, rows, cols);
        // Without a gradient nobody writes to it.
        *out = (struct tape_var_f32){
            rows, cols, (float *)(uintptr_t)x->value, NULL};
        return MB_OK;
    }
    return mb_error_set(w->err, MB_ERR_NOT_FOUND, "weight %s is missing", name);
}

static mb_status
bind_layer(struct judge *j, const struct weights *w, size_t layer)
{
    const struct train_shape *s = &j->shape;
    struct graph_layer_f32 *l = &j->model.layers[layer];
    size_t d = s->d_model;
    size_t q = s->n_heads * s->head_dim;
    size_t kv = s->n_kv_heads * s->head_dim;

    const struct {
        const char *name;
        size_t rows;
        size_t cols;
        struct tape_var_f32 *to;
    } parts[] = {
        {"attn_norm", 1, d, &l->attn_norm},
        {"attn_q", q, d, &l->q},
        {"attn_k", kv, d, &l->k},
        {"attn_v", kv, d, &l->v},
        {"attn_output", d, q, &l->o},
        {"ffn_norm", 1, d, &l->ffn_norm},
        {"ffn_gate", s->d_ff, d, &l->gate},
        {"ffn_up", s->d_ff, d, &l->up},
        {"ffn_down", d, s->d_ff, &l->down},
    };

    mb_status st = MB_OK;
    for (size_t i = 0; st == MB_OK && i < sizeof parts / sizeof *parts; i++) {
        char name[MAX_NAME];
        (void)snprintf(
            name, sizeof name, "blk.%zu.%s.weight", layer, parts[i].name);
        st = find(w, name, parts[i].rows, parts[i].cols, parts[i].to);
    }
    return st;
}

static mb_status
bind(struct judge *j, const struct weights *w)
{
    const struct train_shape *s = &j->shape;
    j->model = (struct graph_model_f32){
        .shape = s,
        .layers = mb_calloc(s->n_layers, sizeof *j->model.layers),
        .recompute = true,
    };
    if (!j->model.layers)
        return mb_error_set(w->err, MB_ERR_NOMEM, "model");
    mb_status st = find(
        w, "token_embd.weight", s->n_vocab, s->d_model, &j->model.embedding);
    if (st == MB_OK)
        st =
            find(w, "output_norm.weight", 1, s->d_model, &j->model.output_norm);
    for (size_t i = 0; st == MB_OK && i < s->n_layers; i++)
        st = bind_layer(j, w, i);
    return st;
}

mb_status
judge_new(const struct train_shape *shape, const struct export_weight *weights,
    size_t n_weights, unsigned n_threads, struct judge **out,
    struct mb_error *err)
{
    struct judge *j = mb_calloc(1, sizeof *j);
    const struct weights w = {weights, n_weights, err};
    if (!j)
        return mb_error_set(err, MB_ERR_NOMEM, "judge");
    j->shape = *shape;
    blas_begin();
    mb_status st = bind(j, &w);
    if (st == MB_OK) {
        st = team_new(n_threads ? n_threads : mb_cpu_count(), &j->team);
        if (st != MB_OK)
            (void)mb_error_set(err, st, "judge: cannot start threads");
    }
    if (st == MB_OK) {
        j->members = mb_calloc(team_size(j->team), sizeof *j->members);
        for (unsigned m = 0; j->members && m < team_size(j->team); m++)
            j->members[m].tape = tape_new_f32(TAPE_MAX_BYTES);
        for (unsigned m = 0; m < team_size(j->team); m++) {
            if (!j->members || !j->members[m].tape)
                st = mb_error_set(err, MB_ERR_NOMEM, "judge");
        }
    }
    if (st != MB_OK) {
        judge_free(j);
        return st;
    }
    *out = j;
    return MB_OK;
}

void
judge_free(struct judge *j)
{
    if (!j)
        return;
    for (unsigned m = 0; j->members && m < team_size(j->team); m++)
        tape_free_f32(j->members[m].tape);
    team_free(j->team);
    mb_free(j->members);
    mb_free(j->model.layers);
    mb_free(j);
}

/* ---- windows ---- */

static void
judge_one(struct judge *j, struct member *m, size_t i)
{
    const struct train_window *w = &j->windows[i];
    tape_reset_f32(m->tape, false);
    struct tape_var_f32 x = graph_hidden_f32(m->tape, &j->model, w);
    if (!tape_failed_f32(m->tape))
        (void)tape_cross_entropy_f32(
            m->tape, x, j->model.embedding, w->targets, 1, j->nll[i]);
    if (!tape_failed_f32(m->tape) && j->best)
        tape_best_f32(m->tape, x, j->model.embedding, j->best[i]);
    m->failed |= tape_failed_f32(m->tape);
}

static void
walk(void *arg, unsigned member)
{
    struct judge *j = arg;
    j->members[member].failed = false;
    for (size_t i = team_next(j->team); i < j->n_windows;
         i = team_next(j->team))
        judge_one(j, &j->members[member], i);
}

static mb_status
check_window(const struct judge *j, const struct train_window *w, size_t i,
    struct mb_error *err)
{
    for (size_t r = 0; r < w->n; r++) {
        if (w->tokens[r] < 0 || (size_t)w->tokens[r] >= j->shape.n_vocab ||
            w->targets[r] < -1 ||
            (w->targets[r] >= 0 && (size_t)w->targets[r] >= j->shape.n_vocab))
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "judge: window %zu row %zu has token %d and target %d, the "
                "vocabulary has %zu",
                i, r, (int)w->tokens[r], (int)w->targets[r], j->shape.n_vocab);
    }
    return MB_OK;
}

mb_status
judge_windows(struct judge *j, const struct train_window *windows, size_t n,
    float *const *nll, mb_token_id *const *best, struct mb_error *err)
{
    mb_status st = MB_OK;
    for (size_t i = 0; st == MB_OK && i < n; i++)
        st = check_window(j, &windows[i], i, err);
    if (st != MB_OK)
        return st;
    j->windows = windows;
    j->n_windows = n;
    j->nll = nll;
    j->best = best;
    team_run(j->team, team_size(j->team), walk, j);
    for (unsigned m = 0; m < team_size(j->team); m++) {
        if (j->members[m].failed)
            return mb_error_set(
                err, MB_ERR_NOMEM, "judge: activations of a window");
    }
    return MB_OK;
}
