/* SPDX-License-Identifier: Apache-2.0
 * tools/train/score.c - held-out text and synthetic tasks, a batch at a time.
 *
 * Threads: the main thread; the judge has its own. */
#include "score.h"

#include <math.h>
#include <string.h>

#define BATCH 16

struct scorer {
    struct judge *judge;
    const struct windows *windows;
    size_t n_rows;
    struct window batch[BATCH];
    struct train_window views[BATCH];
    float *nll[BATCH];
    mb_token_id *best[BATCH];
};

static const char *const task_names[WINDOW_N_TASKS] = {
    "passkey", "lookup", "copy", "list", "repeat"};
static const char *const distance_names[SCORE_N_DISTANCES] = {
    "<64", "<128", "<256", "<384", "<512", ">=512"};
static const size_t distances[SCORE_N_DISTANCES] = {
    64, 128, 256, 384, 512, SIZE_MAX};

mb_status
scorer_new(struct judge *judge, const struct windows *windows, size_t n_rows,
    struct scorer **out, struct mb_error *err)
{
    struct scorer *s = mb_calloc(1, sizeof *s);
    if (!s)
        return mb_error_set(err, MB_ERR_NOMEM, "scorer");
    s->judge = judge;
    s->windows = windows;
    s->n_rows = n_rows;
    mb_status st = MB_OK;
    for (size_t i = 0; st == MB_OK && i < BATCH; i++) {
        st = window_init(&s->batch[i], n_rows, err);
        s->nll[i] = mb_calloc(n_rows, sizeof **s->nll);
        s->best[i] = mb_calloc(n_rows, sizeof **s->best);
        if (st == MB_OK && (!s->nll[i] || !s->best[i]))
            st = mb_error_set(err, MB_ERR_NOMEM, "scorer");
    }
    if (st != MB_OK) {
        scorer_free(s);
        return st;
    }
    *out = s;
    return MB_OK;
}

void
scorer_free(struct scorer *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < BATCH; i++) {
        window_fini(&s->batch[i]);
        mb_free(s->nll[i]);
        mb_free(s->best[i]);
    }
    mb_free(s);
}

static mb_status
judge_batch(struct scorer *s, size_t n, struct mb_error *err)
{
    for (size_t i = 0; i < n; i++)
        s->views[i] = s->batch[i].view;
    return judge_windows(s->judge, s->views, n, s->nll, s->best, err);
}

/* Rows [first, end) of window i of the batch; true if all targets are right. */
static bool
add_rows(const struct scorer *s, size_t i, size_t first, size_t end,
    struct score *to)
{
    const struct train_window *w = &s->views[i];
    size_t n_wrong = 0;
    for (size_t r = first; r < end; r++) {
        if (w->targets[r] < 0)
            continue;
        bool is_right = s->best[i][r] == w->targets[r];
        to->nats += (double)s->nll[i][r];
        to->n_targets++;
        to->n_right += is_right;
        n_wrong += !is_right;
    }
    return n_wrong == 0;
}

mb_status
score_text(struct scorer *s, const struct shard *shard, bool landmarks,
    size_t max_windows, struct score *out, struct mb_error *err)
{
    size_t all = windows_heldout_count(s->windows, shard);
    size_t n = max_windows < all ? max_windows : all;
    mb_status st = MB_OK;
    *out = (struct score){0};
    for (size_t i = 0; st == MB_OK && i < n && !train_is_stopped;) {
        size_t k = 0;
        for (; k < BATCH && i < n; i++, k++)
            windows_heldout(
                s->windows, shard, landmarks, i * all / n, &s->batch[k]);
        st = judge_batch(s, k, err);
        for (size_t j = 0; st == MB_OK && j < k; j++)
            (void)add_rows(s, j, 0, s->views[j].n, out);
        out->n_windows += k;
    }
    return st;
}

static void
add_answers(const struct scorer *s, size_t i, struct score *out)
{
    const struct window *w = &s->batch[i];
    for (size_t j = 0; j < w->n_spans; j++) {
        const struct window_answer *a = &w->spans[j];
        size_t d = 0;
        while (d + 1 < SCORE_N_DISTANCES && a->distance >= distances[d])
            d++;
        out[d].n_exact += add_rows(s, i, a->first, a->end, &out[d]);
        out[d].n_answers++;
    }
}

mb_status
score_task(struct scorer *s, window_kind kind, bool landmarks, size_t n_windows,
    struct score out[SCORE_N_DISTANCES], struct mb_error *err)
{
    mb_status st = MB_OK;
    memset(out, 0, SCORE_N_DISTANCES * sizeof *out);
    for (size_t i = 0; st == MB_OK && i < n_windows && !train_is_stopped;) {
        size_t k = 0;
        for (; st == MB_OK && k < BATCH && i < n_windows; i++, k++)
            st =
                windows_task(s->windows, kind, landmarks, i, &s->batch[k], err);
        if (st == MB_OK)
            st = judge_batch(s, k, err);
        for (size_t j = 0; st == MB_OK && j < k; j++)
            add_answers(s, j, out);
    }
    for (size_t d = 0; d < SCORE_N_DISTANCES; d++)
        out[d].n_windows = n_windows;
    return st;
}

const char *
score_task_name(window_kind kind)
{
    return task_names[kind];
}

const char *
score_distance_name(size_t i)
{
    return distance_names[i];
}

void
score_add(struct score *to, const struct score *from)
{
    to->nats += from->nats;
    to->n_windows = from->n_windows;
    to->n_targets += from->n_targets;
    to->n_right += from->n_right;
    to->n_answers += from->n_answers;
    to->n_exact += from->n_exact;
}

double
score_loss(const struct score *s)
{
    return s->n_targets > 0 ? s->nats / (double)s->n_targets : (double)NAN;
}

double
score_bits_per_byte(double loss, const struct shard *shard)
{
    // All tokens but the first are targets, but what follows each </s>.
    uint64_t n_targets = shard_n_tokens(shard) - shard_n_documents(shard);
    return loss / log(2) * (double)n_targets / (double)shard_text_bytes(shard);
}
