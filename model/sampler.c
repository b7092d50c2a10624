/* SPDX-License-Identifier: Apache-2.0
 * model/sampler.c - choosing the next token from a row of logits.
 *
 * top_k and top_p want the most likely tokens in order, which are few of many:
 * a heap of all ids is made in linear time and as many are popped as are
 * needed. min_p compares with the best alone, and needs no order.
 * Invariants: room->seen is all zero between calls; whatever filters are on,
 * at least one token is left, the best.
 * Threads: as mb_sampler.h says. */
#include "mb_sampler.h"

#include <math.h>
#include <string.h>

#include "compute.h"

#define DEFAULT_WINDOW 64u

struct mb_sampler_room {
    size_t n_vocab;
    float *logits; /* (n_vocab) after the penalty */
    uint32_t *ids; /* (n_vocab) heap, then the chosen ones at the end */
    uint8_t *seen; /* (n_vocab) in the window already */
};

mb_status
mb_sampler_room_new(
    size_t n_vocab, struct mb_sampler_room **out, struct mb_error *err)
{
    struct mb_sampler_room *room;

    if (n_vocab == 0 || n_vocab > INT32_MAX)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "a vocabulary of %zu tokens", n_vocab);
    room = mb_calloc(1, sizeof *room);
    if (room != NULL) {
        room->n_vocab = n_vocab;
        room->logits = mb_calloc(n_vocab, sizeof *room->logits);
        room->ids = mb_calloc(n_vocab, sizeof *room->ids);
        room->seen = mb_calloc(n_vocab, sizeof *room->seen);
    }
    if (room == NULL || room->logits == NULL || room->ids == NULL ||
        room->seen == NULL) {
        mb_sampler_room_free(room);
        return mb_error_set(err, MB_ERR_NOMEM, "room to choose tokens");
    }
    *out = room;
    return MB_OK;
}

void
mb_sampler_room_free(struct mb_sampler_room *room)
{
    if (room == NULL)
        return;
    mb_free(room->logits);
    mb_free(room->ids);
    mb_free(room->seen);
    mb_free(room);
}

/* ---- options ---- */

static mb_status
check(const char *name, float value, float max, struct mb_error *err)
{
    // Written so that NaN is refused, too.
    if (value >= 0 && value <= max)
        return MB_OK;
    return mb_error_set(err, MB_ERR_BAD_ARG, "%s is %g, it may be 0 to %g",
        name, (double)value, (double)max);
}

mb_status
mb_sampler_init(struct mb_sampler *s, const struct mb_sampling *options,
    struct mb_error *err)
{
    mb_status st = check(
        "temperature", options->temperature, MB_SAMPLER_MAX_TEMPERATURE, err);

    if (st == MB_OK)
        st = check("top_p", options->top_p, 1, err);
    if (st == MB_OK)
        st = check("min_p", options->min_p, 1, err);
    if (st == MB_OK)
        st = check("repeat_penalty", options->repeat_penalty, 100, err);
    // A smaller one could make logits overflow.
    if (st == MB_OK && options->repeat_penalty > 0 &&
        options->repeat_penalty < 0.01f)
        st = mb_error_set(err, MB_ERR_BAD_ARG,
            "repeat_penalty is %g, it may be 0, or 0.01 to 100",
            (double)options->repeat_penalty);
    if (st == MB_OK && options->repeat_window > MB_SAMPLER_MAX_WINDOW)
        st = mb_error_set(err, MB_ERR_BAD_ARG,
            "repeat_window is %u, it may be 0 to %u", options->repeat_window,
            MB_SAMPLER_MAX_WINDOW);
    if (st != MB_OK)
        return st;
    s->options = *options;
    if (s->options.repeat_window == 0)
        s->options.repeat_window = DEFAULT_WINDOW;
    if (s->options.repeat_penalty == 0)
        s->options.repeat_penalty = 1;
    if (s->options.top_p == 0)
        s->options.top_p = 1;
    mb_rng_init(&s->rng, options->seed);
    s->n_window = 0;
    s->next = 0;
    return MB_OK;
}

void
mb_sampler_accept(struct mb_sampler *s, mb_token_id id)
{
    s->window[s->next] = id;
    s->next = (s->next + 1) % s->options.repeat_window;
    if (s->n_window < s->options.repeat_window)
        s->n_window++;
}

/* ---- penalty ---- */

/* Keskar et al. 2019, as llama.cpp has it: once for each token of the window,
 * however often it stands there; a negative logit is multiplied. */
static void
penalise(const struct mb_sampler *s, struct mb_sampler_room *room)
{
    float penalty = s->options.repeat_penalty;

    for (uint32_t i = 0; i < s->n_window; i++) {
        size_t id = (size_t)s->window[i];

        if (s->window[i] < 0 || id >= room->n_vocab || room->seen[id] != 0)
            continue;
        room->seen[id] = 1;
        if (room->logits[id] <= 0)
            room->logits[id] *= penalty;
        else
            room->logits[id] /= penalty;
    }
    for (uint32_t i = 0; i < s->n_window; i++) {
        if (s->window[i] >= 0 && (size_t)s->window[i] < room->n_vocab)
            room->seen[s->window[i]] = 0;
    }
}

/* ---- order ---- */

/* Does token a come before token b? */
static bool
is_better(const float *logits, uint32_t a, uint32_t b)
{
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

static void
sift_down(const float *logits, uint32_t *heap, size_t n, size_t at)
{
    uint32_t id = heap[at];

    for (size_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n && is_better(logits, heap[child + 1], heap[child]))
            child++;
        if (!is_better(logits, heap[child], id))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = id;
}

/* Move the best of a heap of n behind its end, which is n - 1 then. */
static uint32_t
pop(const float *logits, uint32_t *heap, size_t n)
{
    uint32_t best = heap[0];

    heap[0] = heap[n - 1];
    heap[n - 1] = best;
    sift_down(logits, heap, n - 1, 0);
    return best;
}

static double
sum_exp(const float *logits, size_t n, float max)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++) {
        sum += exp((double)logits[i] - (double)max);
    }
    return sum;
}

/* The tokens that top_k and top_p leave: their ids end up in room->ids, best
 * first from the end backwards. Returns how many. */
static size_t
take_best(
    const struct mb_sampling *opt, struct mb_sampler_room *room, float max)
{
    const float *logits = room->logits;
    size_t n = room->n_vocab;
    size_t k = opt->top_k > 0 && opt->top_k < n ? opt->top_k : n;
    double mass = 0;
    double total = 0;
    size_t taken = 0;
    size_t kept = 0;

    for (size_t i = 0; i < n; i++) {
        room->ids[i] = (uint32_t)i;
    }
    for (size_t i = n / 2; i > 0; i--) {
        sift_down(logits, room->ids, n, i - 1);
    }
    if (opt->top_p >= 1 || k < n) {
        while (taken < k) {
            uint32_t id = pop(logits, room->ids, n - taken++);

            total += exp((double)logits[id] - (double)max);
        }
        if (opt->top_p >= 1)
            return k;
    } else {
        total = sum_exp(logits, n, max);
    }
    // Popped or not, the best come first from the end.
    while (kept < k && (kept == 0 || mass < (double)opt->top_p * total)) {
        uint32_t id;

        if (kept == taken)
            (void)pop(logits, room->ids, n - taken++);
        id = room->ids[n - 1 - kept++];
        mass += exp((double)logits[id] - (double)max);
    }
    return kept;
}

/* ---- drawing ---- */

/* Weight of a token in the draw; 0 if min_p leaves it out. */
static double
weight_of(const struct mb_sampling *opt, float logit, float max)
{
    double below = (double)logit - (double)max;

    if (opt->min_p > 0 && below < log((double)opt->min_p))
        return 0;
    return exp(below / (double)opt->temperature);
}

static uint32_t
draw(struct mb_sampler *s, struct mb_sampler_room *room, float max)
{
    const struct mb_sampling *opt = &s->options;
    size_t n = room->n_vocab;
    bool ordered = opt->top_p < 1 || (opt->top_k > 0 && opt->top_k < n);
    size_t n_kept = ordered ? take_best(opt, room, max) : n;
    double total = 0;
    double left;
    uint32_t last = 0;

    for (size_t i = 0; i < n_kept; i++) {
        uint32_t id = ordered ? room->ids[n - 1 - i] : (uint32_t)i;

        total += weight_of(opt, room->logits[id], max);
    }
    left = mb_rng_double(&s->rng) * total;
    for (size_t i = 0; i < n_kept; i++) {
        uint32_t id = ordered ? room->ids[n - 1 - i] : (uint32_t)i;
        double weight = weight_of(opt, room->logits[id], max);

        if (weight <= 0)
            continue;
        last = id;
        left -= weight;
        if (left < 0)
            break;
    }
    return last; // rounding may leave a rest behind the last one
}

/* ---- picking ---- */

/* The best token. Errors: CORRUPT. */
static mb_status
find_best(const float *logits, size_t n, uint32_t *best, struct mb_error *err)
{
    *best = 0;
    for (size_t i = 0; i < n; i++) {
        if (isnan(logits[i]) || (isinf(logits[i]) && logits[i] > 0))
            return mb_error_set(err, MB_ERR_CORRUPT,
                "logit of token %zu is not a number: the model is damaged", i);
        if (logits[i] > logits[*best])
            *best = (uint32_t)i;
    }
    if (isinf(logits[*best]))
        return mb_error_set(
            err, MB_ERR_CORRUPT, "no token is possible: the model is damaged");
    return MB_OK;
}

mb_status
mb_sampler_pick(struct mb_sampler *s, struct mb_sampler_room *room,
    const float *logits, mb_token_id *id, float *logprob, struct mb_error *err)
{
    size_t n = room->n_vocab;
    uint32_t best;
    mb_status st = find_best(logits, n, &best, err);

    if (st != MB_OK)
        return st;
    memcpy(room->logits, logits, n * sizeof *logits);
    if (s->options.repeat_penalty != 1.0f) {
        penalise(s, room);
        st = find_best(room->logits, n, &best, err);
        if (st != MB_OK)
            return st;
    }
    if (s->options.temperature > 0)
        best = draw(s, room, room->logits[best]);
    *id = (mb_token_id)best;
    if (logprob != NULL)
        *logprob = (float)((double)logits[best] -
                           (double)compute_best()->log_sum_exp(logits, n));
    mb_sampler_accept(s, *id);
    return MB_OK;
}
