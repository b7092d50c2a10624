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
#include "weights.h"

#include <stddef.h>
#include <string.h>

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
find(const struct train_shape *shape, const struct weights *w, size_t i,
    struct tape_var_f32 *out)
{
    struct weight_shape want;
    weights_at(shape, i, &want);
    for (size_t k = 0; k < w->n; k++) {
        const struct export_weight *x = &w->list[k];
        if (strcmp(x->name, want.name) != 0)
            continue;
        if (x->n_rows != want.n_rows || x->n_cols != want.n_cols)
            return mb_error_set(w->err, MB_ERR_MISMATCH,
                "weight %s is %zu x %zu, expected %zu x %zu", want.name,
                x->n_rows, x->n_cols, want.n_rows, want.n_cols);
        // Without a gradient nobody writes to it.
        *out = (struct tape_var_f32){
            x->n_rows, x->n_cols, (float *)(uintptr_t)x->value, NULL};
        return MB_OK;
    }
    return mb_error_set(
        w->err, MB_ERR_NOT_FOUND, "weight %s is missing", want.name);
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
    mb_status st = MB_OK;
    for (size_t i = 0; st == MB_OK && i < weights_count(s); i++)
        st = find(s, w, i, weights_slot(&j->model, i));
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

mb_status
judge_windows(struct judge *j, const struct train_window *windows, size_t n,
    float *const *nll, mb_token_id *const *best, struct mb_error *err)
{
    mb_status st = MB_OK;
    for (size_t i = 0; st == MB_OK && i < n; i++)
        st = weights_check_tokens(&j->shape, &windows[i], i, err);
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
