/* SPDX-License-Identifier: Apache-2.0
 * model/train/hmt_train.c - steps over samples of segments, see mb_hmt_train.h.
 *
 * Sample i is member i modulo their number's; each member has gradients of its
 * own, which are summed in order, so a step gives the same bits again. All
 * trained weights lie in one flat array, each on a new cache line; those that
 * are frozen are the import's. */
#include "mb_hmt_train.h"

#include "../blas.h"
#include "../team.h"
#include "hmt_graph.h"
#include "vector.h"
#include "weights.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define TAPE_MAX_BYTES ((size_t)16 << 30)
#define LINE_FLOATS    16u

/* Of the weights, in this order; then come the model's. */
enum { GAIN, SUMMARY, FIRST, QUERY, KEY, N_OWN };

struct member {
    struct tape_f32 *tape;
    float *grads; /* like values */
    struct graph_layer_f32 *layers;
    struct graph_model_f32 graph;
    struct hmt_model_f32 model;
    double flops;
    bool failed;
};

struct hmt_trainer {
    struct hmt_shape shape;
    struct hmt_train_options options;
    struct train_shape model_shape;
    const struct imported *imported;
    struct team *team;
    struct member *members;
    struct train_weight *weights; /* (n_weights) that are trained */
    char (*names)[WEIGHTS_MAX_NAME];
    size_t *offsets;
    double *squares_of; /* (n_weights) of the gradient */
    size_t n_weights;
    size_t n_floats;
    float *values;
    float *moments;
    float *squares;
    uint64_t n_steps;
    size_t bytes;

    /* The call that runs. */
    const struct hmt_sample *samples;
    size_t n_samples;
    hmt_mode mode;
    bool is_training;
    double weight;
    double *losses; /* (n_samples, HMT_MAX_DEPTH) */
    double *room;   /* the same, for steps */
    size_t room_samples;
    struct adam adam;
};

/* ---- weights ---- */

static void
add_weight(
    struct hmt_trainer *t, const char *name, size_t n_rows, size_t n_cols)
{
    size_t i = t->n_weights++;
    (void)snprintf(t->names[i], WEIGHTS_MAX_NAME, "%s", name);
    t->weights[i] = (struct train_weight){
        .name = t->names[i], .n_rows = n_rows, .n_cols = n_cols};
    t->offsets[i] = t->n_floats;
    t->n_floats +=
        (n_rows * n_cols + LINE_FLOATS - 1) / LINE_FLOATS * LINE_FLOATS;
}

static void
list_weights(struct hmt_trainer *t)
{
    size_t d = t->model_shape.d_model;
    add_weight(t, "hmt.gain", 1, 1);
    add_weight(t, "hmt.summary", 1, d);
    add_weight(t, "hmt.first", 1, d);
    add_weight(t, "hmt.query.weight", t->shape.d_key, d);
    add_weight(t, "hmt.key.weight", t->shape.d_key, d);
    for (size_t i = 0; t->options.trains_backbone && i < t->imported->n_weights;
         i++) {
        const struct export_weight *w = &t->imported->weights[i];
        add_weight(t, w->name, w->n_rows, w->n_cols);
    }
}

static float *
make_floats(struct hmt_trainer *t, size_t n)
{
    t->bytes += n * sizeof(float);
    return mb_calloc(n, sizeof(float));
}

static bool
make_arrays(struct hmt_trainer *t)
{
    size_t most = N_OWN + t->imported->n_weights;
    t->weights = mb_calloc(most, sizeof(*t->weights));
    t->names = mb_calloc(most, sizeof(*t->names));
    t->offsets = mb_calloc(most, sizeof(*t->offsets));
    t->squares_of = mb_calloc(most, sizeof(*t->squares_of));
    if (!t->weights || !t->names || !t->offsets || !t->squares_of)
        return false;
    list_weights(t);
    t->values = make_floats(t, t->n_floats);
    t->moments = make_floats(t, t->n_floats);
    t->squares = make_floats(t, t->n_floats);
    if (!t->values || !t->moments || !t->squares)
        return false;
    for (size_t i = 0; i < t->n_weights; i++) {
        t->weights[i].value = t->values + t->offsets[i];
        t->weights[i].moment = t->moments + t->offsets[i];
        t->weights[i].square = t->squares + t->offsets[i];
    }
    t->members = mb_calloc(team_size(t->team), sizeof(*t->members));
    for (unsigned m = 0; t->members && m < team_size(t->team); m++) {
        struct member *member = &t->members[m];
        member->tape = tape_new_f32(TAPE_MAX_BYTES);
        member->grads = make_floats(t, t->n_floats);
        member->layers =
            mb_calloc(t->model_shape.n_layers, sizeof(*member->layers));
        if (!member->tape || !member->grads || !member->layers)
            return false;
    }
    return t->members != NULL;
}

static double
rms_of(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum / (double)n);
}

static void
draw(struct hmt_trainer *t, size_t weight, double std)
{
    struct train_weight *w = &t->weights[weight];
    struct mb_rng rng;
    mb_rng_init(&rng, t->options.seed * 1000003u + weight);
    for (size_t i = 0; i < w->n_rows * w->n_cols; i++)
        w->value[i] = (float)(mb_rng_normal(&rng) * std);
}

/* T and M0 like rows of the embedding. Wq and Wk begin as one, such that scores
 * spread by about 1: so like recalls like. */
static void
draw_weights(struct hmt_trainer *t)
{
    const struct export_weight *table = &t->imported->weights[0];
    const struct export_weight *norm = &t->imported->weights[1];
    double d = (double)t->model_shape.d_model;
    double std = rms_of(table->value, table->n_rows * table->n_cols);
    struct train_weight *query = &t->weights[QUERY];
    t->weights[GAIN].value[0] = (float)std;
    draw(t, SUMMARY, std);
    draw(t, FIRST, std);
    draw(t, QUERY, 1 / (sqrt(d) * rms_of(norm->value, norm->n_cols)));
    memcpy(t->weights[KEY].value, query->value,
        query->n_rows * query->n_cols * sizeof(float));
    for (size_t i = N_OWN; i < t->n_weights; i++)
        memcpy(t->weights[i].value, t->imported->weights[i - N_OWN].value,
            t->weights[i].n_rows * t->weights[i].n_cols * sizeof(float));
}

/* ---- new and free ---- */

static mb_status
check_sizes(const struct imported *model, const struct hmt_shape *s,
    struct mb_error *err)
{
    bool is_in =
        s->landmark >= 0 && (size_t)s->landmark < model->shape.n_vocab &&
        s->n_segment > 0 && s->n_segment <= COMPANION_MAX_TOKENS &&
        s->n_summary > 0 && s->n_summary <= s->n_segment &&
        s->n_sensory <= s->n_segment && s->n_sensory <= COMPANION_MAX_SENSORY &&
        s->d_key > 0 && s->d_key <= COMPANION_MAX_WIDTH;
    if (is_in)
        return MB_OK;
    return mb_error_set(err, MB_ERR_BAD_ARG,
        "hmt: segments of %zu tokens, %zu summarised and %zu repeated, keys of "
        "%zu, landmark %d",
        s->n_segment, s->n_summary, s->n_sensory, s->d_key, (int)s->landmark);
}

static void
set_default(double *x, double value)
{
    if (*x == 0)
        *x = value;
}

mb_status
hmt_trainer_new(const struct imported *model, const struct hmt_shape *shape,
    const struct hmt_train_options *options, struct hmt_trainer **out,
    struct mb_error *err)
{
    mb_status st = check_sizes(model, shape, err);
    if (st != MB_OK)
        return st;
    struct hmt_trainer *t = mb_calloc(1, sizeof(*t));
    if (!t)
        return mb_error_set(err, MB_ERR_NOMEM, "hmt: trainer");
    t->shape = *shape;
    t->options = *options;
    t->imported = model;
    t->model_shape = model->shape;
    set_default(&t->options.beta1, 0.9);
    set_default(&t->options.beta2, 0.95);
    set_default(&t->options.adam_eps, 1e-8);
    set_default(&t->options.clip, 1.0);
    set_default(&t->options.backbone_rate, 0.1);
    blas_begin();
    st = team_new(
        options->n_threads ? options->n_threads : mb_cpu_count(), &t->team);
    if (st != MB_OK)
        st = mb_error_set(err, st, "hmt: cannot start threads");
    else if (!make_arrays(t))
        st = mb_error_set(err, MB_ERR_NOMEM,
            "hmt: weights, moments and gradients take %zu bytes", t->bytes);
    if (st != MB_OK) {
        hmt_trainer_free(t);
        return st;
    }
    draw_weights(t);
    *out = t;
    return MB_OK;
}

void
hmt_trainer_free(struct hmt_trainer *t)
{
    if (!t)
        return;
    for (unsigned m = 0; t->members && m < team_size(t->team); m++) {
        tape_free_f32(t->members[m].tape);
        mb_free(t->members[m].grads);
        mb_free(t->members[m].layers);
    }
    team_free(t->team);
    mb_free(t->members);
    mb_free(t->weights);
    mb_free(t->names);
    mb_free(t->offsets);
    mb_free(t->squares_of);
    mb_free(t->values);
    mb_free(t->moments);
    mb_free(t->squares);
    mb_free(t->room);
    mb_free(t);
}

size_t
hmt_trainer_n_weights(const struct hmt_trainer *t)
{
    return t->n_weights;
}

struct train_weight *
hmt_trainer_weight(struct hmt_trainer *t, size_t i)
{
    return &t->weights[i];
}

uint64_t
hmt_trainer_n_steps(const struct hmt_trainer *t)
{
    return t->n_steps;
}

void
hmt_trainer_set_n_steps(struct hmt_trainer *t, uint64_t n)
{
    t->n_steps = n;
}

size_t
hmt_trainer_bytes(const struct hmt_trainer *t)
{
    size_t bytes = t->bytes;
    for (unsigned m = 0; m < team_size(t->team); m++)
        bytes += tape_bytes_f32(t->members[m].tape);
    return bytes;
}

void
hmt_trainer_companion(const struct hmt_trainer *t, struct companion *out)
{
    *out = (struct companion){
        .d_model = t->model_shape.d_model,
        .d_key = t->shape.d_key,
        .n_segment = t->shape.n_segment,
        .n_summary = t->shape.n_summary,
        .n_sensory = t->shape.n_sensory,
        .gain = t->weights[GAIN].value[0],
        .summary = t->weights[SUMMARY].value,
        .first = t->weights[FIRST].value,
        .query = t->weights[QUERY].value,
        .key = t->weights[KEY].value,
    };
}

/* ---- samples ---- */

static struct tape_var_f32
own_var(const struct hmt_trainer *t, const struct member *m, size_t i)
{
    const struct train_weight *w = &t->weights[i];
    return (struct tape_var_f32){w->n_rows, w->n_cols, w->value,
        w->is_frozen ? NULL : m->grads + t->offsets[i]};
}

/* Weight i of the model; one that is frozen is never written to. */
static struct tape_var_f32
model_var(const struct hmt_trainer *t, const struct member *m, size_t i)
{
    const struct export_weight *w = &t->imported->weights[i];
    if (t->options.trains_backbone)
        return own_var(t, m, N_OWN + i);
    return (struct tape_var_f32){
        w->n_rows, w->n_cols, (float *)(uintptr_t)w->value, NULL};
}

static void
bind(const struct hmt_trainer *t, struct member *m)
{
    m->graph = (struct graph_model_f32){.shape = &t->model_shape,
        .layers = m->layers,
        .recompute = t->options.recompute};
    for (size_t i = 0; i < t->imported->n_weights; i++)
        *weights_slot(&m->graph, i) = model_var(t, m, i);
    m->model = (struct hmt_model_f32){.graph = &m->graph,
        .shape = &t->shape,
        .gain = own_var(t, m, GAIN),
        .summary = own_var(t, m, SUMMARY),
        .first = own_var(t, m, FIRST),
        .query = own_var(t, m, QUERY),
        .key = own_var(t, m, KEY)};
}

static void
walk_samples(void *arg, unsigned member)
{
    struct hmt_trainer *t = arg;
    struct member *m = &t->members[member];
    bind(t, m);
    m->flops = 0;
    m->failed = false;
    if (t->is_training)
        memset(m->grads, 0, t->n_floats * sizeof(float));
    for (size_t i = member; i < t->n_samples && !m->failed;
         i += team_size(t->team))
        m->failed =
            !hmt_run_f32(m->tape, &m->model, &t->samples[i], t->mode, t->weight,
                t->is_training, t->losses + i * HMT_MAX_DEPTH, &m->flops);
}

size_t
hmt_n_targets(
    const struct hmt_shape *shape, const struct hmt_sample *sample, size_t j)
{
    const mb_token_id *text = sample->tokens + j * shape->n_segment;
    size_t n = 0;
    for (size_t i = 0; i < shape->n_segment; i++)
        n += text[i] != shape->eos;
    return n;
}

static mb_status
check_sample(const struct hmt_trainer *t, const struct hmt_sample *s, size_t i,
    struct mb_error *err)
{
    if (s->depth == 0 || s->depth > HMT_MAX_DEPTH)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "hmt: sample %zu has %zu segments, 1 to %d are possible", i,
            s->depth, HMT_MAX_DEPTH);
    for (size_t r = 0; r <= s->depth * t->shape.n_segment; r++) {
        if (s->tokens[r] < 0 || (size_t)s->tokens[r] >= t->model_shape.n_vocab)
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "hmt: sample %zu has token %d, the vocabulary %zu", i,
                (int)s->tokens[r], t->model_shape.n_vocab);
    }
    return MB_OK;
}

/* Run all samples. Errors: those of a step but CORRUPT. */
static mb_status
run_samples(struct hmt_trainer *t, const struct hmt_sample *samples, size_t n,
    hmt_mode mode, double *losses, struct mb_error *err)
{
    mb_status st = MB_OK;
    for (size_t i = 0; i < n && st == MB_OK; i++)
        st = check_sample(t, &samples[i], i, err);
    if (st != MB_OK)
        return st;
    t->samples = samples;
    t->n_samples = n;
    t->mode = mode;
    t->losses = losses;
    memset(losses, 0, n * HMT_MAX_DEPTH * sizeof(*losses));
    team_run(t->team, team_size(t->team), walk_samples, t);
    for (unsigned m = 0; m < team_size(t->team); m++) {
        if (t->members[m].failed)
            return mb_error_set(err, MB_ERR_NOMEM,
                "hmt: no room for the activations of a segment; all of "
                "training takes %zu bytes",
                hmt_trainer_bytes(t));
    }
    return MB_OK;
}

mb_status
hmt_trainer_judge(struct hmt_trainer *t, const struct hmt_sample *samples,
    size_t n, hmt_mode mode, double *losses, struct mb_error *err)
{
    t->is_training = false;
    t->weight = 1;
    return run_samples(t, samples, n, mode, losses, err);
}

/* ---- steps ---- */

/* A weight's gradient, summed over the members into the first's. */
static void
walk_sum(void *arg, unsigned member)
{
    struct hmt_trainer *t = arg;
    (void)member;
    for (size_t i = team_next(t->team); i < t->n_weights;
         i = team_next(t->team)) {
        size_t n = t->weights[i].n_rows * t->weights[i].n_cols;
        float *to = t->members[0].grads + t->offsets[i];
        double sum = 0;
        for (unsigned m = 1; m < team_size(t->team); m++) {
            const float *from = t->members[m].grads + t->offsets[i];
            for (size_t j = 0; j < n; j++)
                to[j] += from[j];
        }
        for (size_t j = 0; j < n; j++)
            sum += (double)to[j] * (double)to[j];
        t->squares_of[i] = sum;
    }
}

static void
walk_move(void *arg, unsigned member)
{
    struct hmt_trainer *t = arg;
    (void)member;
    for (size_t i = team_next(t->team); i < t->n_weights;
         i = team_next(t->team)) {
        const struct train_weight *w = &t->weights[i];
        struct adam adam = t->adam;
        if (w->is_frozen)
            continue;
        if (i >= N_OWN)
            adam.rate *= (float)t->options.backbone_rate;
        vector_best()->adam(&adam, w->value,
            t->members[0].grads + t->offsets[i], w->moment, w->square,
            w->n_rows * w->n_cols);
    }
}

static void
set_adam(struct hmt_trainer *t, double rate, double norm)
{
    const struct hmt_train_options *o = &t->options;
    double n = (double)(t->n_steps + 1);
    t->adam = (struct adam){
        .rate = (float)rate,
        .beta1 = (float)o->beta1,
        .beta2 = (float)o->beta2,
        .eps = (float)o->adam_eps,
        .scale = (float)(norm > o->clip ? o->clip / norm : 1),
        .fix1 = (float)(1 / (1 - pow(o->beta1, n))),
        .fix2 = (float)(1 / (1 - pow(o->beta2, n))),
    };
}

static mb_status
make_room(struct hmt_trainer *t, size_t n, struct mb_error *err)
{
    if (n <= t->room_samples)
        return MB_OK;
    double *room = mb_realloc(t->room, n * HMT_MAX_DEPTH * sizeof(*room));
    if (!room)
        return mb_error_set(err, MB_ERR_NOMEM, "hmt: %zu samples", n);
    t->room = room;
    t->room_samples = n;
    return MB_OK;
}

mb_status
hmt_trainer_step(struct hmt_trainer *t, const struct hmt_sample *samples,
    size_t n, hmt_mode mode, double rate, struct train_result *out,
    struct mb_error *err)
{
    double square = 0;
    mb_status st = make_room(t, n, err);
    *out = (struct train_result){0};
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < samples[i].depth; j++)
            out->n_targets += hmt_n_targets(&t->shape, &samples[i], j);
        out->n_rows += samples[i].depth * t->shape.n_segment;
    }
    if (st == MB_OK && out->n_targets == 0)
        st = mb_error_set(err, MB_ERR_BAD_ARG, "hmt: no row has a target");
    if (st != MB_OK)
        return st;
    t->is_training = true;
    t->weight = 1 / (double)out->n_targets;
    st = run_samples(t, samples, n, mode, t->room, err);
    if (st != MB_OK)
        return st;
    for (size_t i = 0; i < n * HMT_MAX_DEPTH; i++)
        out->loss += t->room[i] * t->weight;
    for (unsigned m = 0; m < team_size(t->team); m++)
        out->flops += t->members[m].flops;
    team_run(t->team, team_size(t->team), walk_sum, t);
    for (size_t i = 0; i < t->n_weights; i++)
        square += t->squares_of[i];
    out->grad_norm = sqrt(square);
    if (!isfinite(out->loss) || !isfinite(out->grad_norm))
        return mb_error_set(err, MB_ERR_CORRUPT,
            "hmt: step %llu has loss %g, norm of the gradient %g",
            (unsigned long long)(t->n_steps + 1), out->loss, out->grad_norm);
    set_adam(t, rate, out->grad_norm);
    team_run(t->team, team_size(t->team), walk_move, t);
    t->n_steps++;
    return MB_OK;
}
