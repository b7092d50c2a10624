/* SPDX-License-Identifier: Apache-2.0
 * tests/support/mb_test_engine.h - an engine on the bundled model, its results.
 *
 *     struct rig r = rig_begin(&(struct mb_engine_options){.n_threads = 1});
 *     struct job j = {.request = {.task = MB_TASK_SCORE, ...}};
 *     job_submit(&r, &j);
 *     job_wait(&j);          // j has copies of all results
 *     job_free(&j);
 *     rig_end(&r);
 *
 * Threads: callbacks fill a job on mb-model; asserts run on the main thread. */
#ifndef MB_TEST_ENGINE_H
#define MB_TEST_ENGINE_H

#include "mb_test.h"

#include <pthread.h>

#include "mb_engine.h"

#define TEST_ANCHOR  MB_SOURCE_DIR "/model/weights/anchor.gguf"
#define TEST_TEXT    65536
#define TEST_WAIT_NS 60000000000u

struct rig {
    struct mb_gguf *gguf;
    struct mb_tokenizer *tokenizer;
    struct mb_decoder *decoder;
    struct mb_engine *engine;
};

static inline struct rig
rig_begin(const struct mb_engine_options *opt)
{
    struct rig r;
    struct mb_error err;

    assert_status(MB_OK, mb_gguf_open(TEST_ANCHOR, &r.gguf, &err), &err);
    assert_status(MB_OK, mb_tokenizer_new(r.gguf, &r.tokenizer, &err), &err);
    assert_status(MB_OK, mb_decoder_open(r.gguf, &r.decoder, &err), &err);
    assert_status(MB_OK,
        mb_engine_new(r.decoder, r.tokenizer, opt, &r.engine, &err), &err);
    return r;
}

static inline void
rig_end(struct rig *r)
{
    mb_engine_free(r->engine);
    mb_decoder_close(r->decoder);
    mb_tokenizer_free(r->tokenizer);
    mb_gguf_close(r->gguf);
}

/* Tokens of a text behind a bos; returns how many. */
static inline size_t
rig_tokens(const struct rig *r, const char *text, mb_token_id *out, size_t max)
{
    struct mb_buffer buf;
    const struct mb_token *t;
    size_t n;

    mb_buffer_init(&buf, 1u << 24);
    assert_ok(mb_tokenizer_encode(
        r->tokenizer, NULL, mb_slice_cstr(text), &buf, NULL));
    n = buf.size / sizeof *t;
    assert_true(n + 1 <= max);
    t = (const struct mb_token *)(const void *)buf.data;
    out[0] = mb_tokenizer_bos(r->tokenizer);
    for (size_t i = 0; i < n; i++)
        out[i + 1] = t[i].id;
    mb_buffer_fini(&buf);
    return n + 1;
}

/* ---- jobs ---- */

struct job {
    struct mb_engine_request request; /* callbacks are set by job_submit */
    uint64_t id;
    void (*on_piece)(struct job *j); /* on mb-model, after it was added */
    void *arg;

    struct mb_engine_result result; /* its pointers lead to copies */
    size_t n_pieces;
    size_t n_bad_pieces; /* not whole characters */
    size_t text_size;
    size_t n_tokens; /* of pieces */
    char *text;      /* (TEST_TEXT) of pieces */
    mb_token_id *tokens;
    size_t order; /* which to be done, from 1 */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool done;
};

static size_t job_order; /* written on mb-model */

static inline void
job_on_piece(void *arg, const struct mb_engine_piece *piece)
{
    struct job *j = arg;

    j->n_pieces++;
    if (!mb_utf8_is_valid(piece->text, NULL) ||
        j->text_size + piece->text.size > TEST_TEXT ||
        j->n_tokens + piece->n > TEST_TEXT) {
        j->n_bad_pieces++;
        return;
    }
    if (piece->text.size > 0)
        memcpy(j->text + j->text_size, piece->text.data, piece->text.size);
    j->text_size += piece->text.size;
    if (piece->n > 0)
        memcpy(
            j->tokens + j->n_tokens, piece->tokens, piece->n * sizeof(int32_t));
    j->n_tokens += piece->n;
    if (j->on_piece != NULL)
        j->on_piece(j);
}

static inline void *
job_copy(const void *data, size_t size)
{
    void *copy = mb_calloc(1, size + 1);

    if (copy != NULL && size > 0)
        memcpy(copy, data, size);
    return copy;
}

static inline void
job_on_done(void *arg, const struct mb_engine_result *result)
{
    struct job *j = arg;
    struct mb_engine_result *out = &j->result;

    (void)pthread_mutex_lock(&j->lock);
    *out = *result;
    out->text.data = job_copy(result->text.data, result->text.size);
    out->tokens =
        job_copy(result->tokens, result->n_tokens * sizeof *result->tokens);
    out->logprobs =
        job_copy(result->logprobs, result->n_tokens * sizeof *result->logprobs);
    out->nll = job_copy(result->nll, result->n_scored * sizeof *result->nll);
    // The dimension of the bundled model.
    out->vector = job_copy(
        result->vector, j->request.task == MB_TASK_EMBED && result->vector
                            ? (size_t)(uintptr_t)j->arg * sizeof *result->vector
                            : 0);
    j->order = ++job_order;
    j->done = true;
    (void)pthread_cond_broadcast(&j->changed);
    (void)pthread_mutex_unlock(&j->lock);
}

/* The status of submit. A job may be submitted once. */
static inline mb_status
job_try(struct rig *r, struct job *j, struct mb_error *err)
{
    mb_status st;

    (void)pthread_mutex_init(&j->lock, NULL);
    (void)pthread_cond_init(&j->changed, NULL);
    j->text = mb_calloc(TEST_TEXT, 1);
    j->tokens = mb_calloc(TEST_TEXT, sizeof *j->tokens);
    assert_true(j->text && j->tokens);
    j->request.on_piece = job_on_piece;
    j->request.logprobs = true;
    j->request.on_done = job_on_done;
    j->request.arg = j;
    if (j->request.task == MB_TASK_EMBED)
        j->arg = (void *)(uintptr_t)mb_engine_dim(r->engine);
    st = mb_engine_submit(r->engine, &j->request, &j->id, err);
    if (st != MB_OK) {
        mb_free(j->text);
        mb_free(j->tokens);
    }
    return st;
}

static inline void
job_submit(struct rig *r, struct job *j)
{
    struct mb_error err;

    assert_status(MB_OK, job_try(r, j, &err), &err);
}

static inline void
job_wait(struct job *j)
{
    struct timespec until;
    int rc = 0;

    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)(TEST_WAIT_NS / 1000000000u);
    (void)pthread_mutex_lock(&j->lock);
    while (!j->done && rc == 0)
        rc = pthread_cond_timedwait(&j->changed, &j->lock, &until);
    (void)pthread_mutex_unlock(&j->lock);
    if (rc != 0)
        fail_msg("a request was not done in time");
}

static inline void
job_free(struct job *j)
{
    mb_free((void *)j->result.text.data);
    mb_free((void *)j->result.tokens);
    mb_free((void *)j->result.logprobs);
    mb_free((void *)j->result.nll);
    mb_free((void *)j->result.vector);
    mb_free(j->text);
    mb_free(j->tokens);
    (void)pthread_cond_destroy(&j->changed);
    (void)pthread_mutex_destroy(&j->lock);
}

/* Submit, wait; j has the results. */
static inline void
job_run(struct rig *r, struct job *j)
{
    job_submit(r, j);
    job_wait(j);
    assert_status(MB_OK, j->result.status, &j->result.err);
}

#endif
