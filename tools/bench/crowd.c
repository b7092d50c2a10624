/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/crowd.c - many clients of one model: what each of them waits.
 *
 * Figures of passes say how much work is done, not for whom. Here the engine
 * that serves a daemon's clients runs them all, and what they see is timed: when
 * the first text comes, and how long it stands still between two deliveries.
 * Where one starves, the longest is far from the median, and the last client
 * ends long after the first.
 * Threads: callbacks come on mb-model, which alone writes the clients' figures;
 * the main thread waits until all are done. */
#include "crowd.h"

#include <pthread.h>

#include "times.h"

#define PROMPT     64 /* tokens; less where the window is small */
#define GENERATED  64
#define MIN_WINDOW 8

struct crowd;

struct client {
    struct crowd *crowd;
    uint64_t start_ns;
    uint64_t last_ns;  /* of the last delivery; 0: none yet */
    uint64_t first_ns; /* wait for the first */
    uint64_t total_ns;
    size_t n_tokens;
};

struct crowd {
    struct client *clients; /* (n) */
    size_t n;
    uint64_t *pauses; /* (max_pauses) of all clients */
    size_t n_pauses;
    size_t max_pauses;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t done;
    size_t n_done;
    struct mb_error err; /* of the first that failed */
};

static void
on_piece(void *arg, const struct mb_engine_piece *piece)
{
    struct client *c = arg;
    struct crowd *crowd = c->crowd;
    uint64_t now = mb_clock_ns();

    c->n_tokens += piece->n;
    if (c->last_ns == 0)
        c->first_ns = now - c->start_ns;
    else if (crowd->n_pauses < crowd->max_pauses)
        crowd->pauses[crowd->n_pauses++] = now - c->last_ns;
    c->last_ns = now;
}

static void
on_done(void *arg, const struct mb_engine_result *result)
{
    struct client *c = arg;
    struct crowd *crowd = c->crowd;

    c->total_ns = mb_clock_ns() - c->start_ns;
    c->n_tokens = result->n_tokens;
    (void)pthread_mutex_lock(&crowd->lock);
    if (result->status != MB_OK && crowd->err.status == MB_OK) {
        crowd->err = result->err;
        crowd->err.status = result->status;
    }
    crowd->n_done++;
    (void)pthread_cond_signal(&crowd->done);
    (void)pthread_mutex_unlock(&crowd->lock);
}

/* Ask for all clients; the number that were taken is waited for in any case. */
static mb_status
run(struct crowd *crowd, struct mb_engine *engine, size_t n_vocab,
    struct crowd_result *out, uint64_t seed, struct mb_error *err)
{
    mb_token_id tokens[PROMPT];
    size_t window = mb_engine_window(engine);
    size_t n_asked = 0;
    struct mb_rng rng;
    mb_status st = MB_OK;

    if (window < MIN_WINDOW)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "a window of %zu tokens is too small", window);
    out->prompt = window / 4 < PROMPT ? window / 4 : PROMPT;
    mb_rng_init(&rng, seed);
    for (; n_asked < crowd->n && st == MB_OK; n_asked++) {
        struct client *c = &crowd->clients[n_asked];
        struct mb_engine_request request = {.task = MB_TASK_GENERATE,
            .tokens = tokens,
            .n = out->prompt,
            .max_tokens = window / 2 < GENERATED ? window / 2 : GENERATED,
            .sampling = {.temperature = 1, .seed = seed + n_asked},
            .on_piece = on_piece,
            .on_done = on_done,
            .arg = c};
        uint64_t id;

        for (size_t i = 0; i < out->prompt; i++) {
            tokens[i] = (mb_token_id)mb_rng_below(&rng, n_vocab);
        }
        c->crowd = crowd;
        c->start_ns = mb_clock_ns();
        st = mb_engine_submit(engine, &request, &id, err);
    }
    n_asked -= st != MB_OK ? 1 : 0;
    (void)pthread_mutex_lock(&crowd->lock);
    while (crowd->n_done < n_asked) {
        (void)pthread_cond_wait(&crowd->done, &crowd->lock);
    }
    (void)pthread_mutex_unlock(&crowd->lock);
    if (st == MB_OK && crowd->err.status != MB_OK)
        st = mb_error_set(err, crowd->err.status, "%s", crowd->err.text);
    return st;
}

static void
sum_up(struct crowd *crowd, struct crowd_result *out)
{
    uint64_t first = 0;
    uint64_t fastest = UINT64_MAX;
    uint64_t slowest = 0;

    for (size_t i = 0; i < crowd->n; i++) {
        const struct client *c = &crowd->clients[i];

        out->n_tokens += c->n_tokens;
        first = c->first_ns > first ? c->first_ns : first;
        fastest = c->total_ns < fastest ? c->total_ns : fastest;
        slowest = c->total_ns > slowest ? c->total_ns : slowest;
    }
    out->seconds = (double)slowest / 1e9;
    out->fastest_s = (double)fastest / 1e9;
    out->first_s = (double)first / 1e9;
    if (crowd->n_pauses == 0)
        return;
    times_sort(crowd->pauses, crowd->n_pauses);
    out->median_s = (double)crowd->pauses[crowd->n_pauses / 2] / 1e9;
    out->pause_s = (double)crowd->pauses[crowd->n_pauses - 1] / 1e9;
}

mb_status
bench_crowd(const struct mb_decoder *decoder,
    const struct mb_tokenizer *tokenizer, const struct crowd_options *options,
    struct crowd_result *out, struct mb_error *err)
{
    const struct mb_engine_options engine_options = {
        .n_threads = options->n_threads,
        .cache_type = options->cache,
        .max_running = options->n_clients,
        // More than they need: it also bounds the window of one.
        .cache_rows =
            (options->n_clients + 4) * (PROMPT + GENERATED + MB_BLOCK_ROWS)};
    struct crowd crowd = {
        .n = options->n_clients, .max_pauses = options->n_clients * GENERATED};
    struct mb_engine *engine = NULL;
    mb_status st = MB_OK;

    *out = (struct crowd_result){0};
    (void)pthread_mutex_init(&crowd.lock, NULL);
    (void)pthread_cond_init(&crowd.done, NULL);
    crowd.clients = mb_calloc(crowd.n, sizeof *crowd.clients);
    crowd.pauses = mb_calloc(crowd.max_pauses, sizeof *crowd.pauses);
    if (crowd.clients == NULL || crowd.pauses == NULL)
        st = mb_error_set(err, MB_ERR_NOMEM, "clients");
    if (st == MB_OK)
        st = mb_engine_new(decoder, tokenizer, &engine_options, &engine, err);
    if (st == MB_OK)
        st = run(&crowd, engine, mb_decoder_info(decoder)->n_vocab, out,
            options->seed, err);
    mb_engine_free(engine);
    if (st == MB_OK)
        sum_up(&crowd, out);
    mb_free(crowd.clients);
    mb_free(crowd.pauses);
    (void)pthread_cond_destroy(&crowd.done);
    (void)pthread_mutex_destroy(&crowd.lock);
    return st;
}
