/* SPDX-License-Identifier: Apache-2.0
 * daemon/indexer.c - the way of a put: text in, operation out, commit, answer.
 *
 * Vectors are of one generation, and the store refuses (STALE) those of
 * another. It cannot refuse a put without vectors that was prepared before the
 * first generation was served: its segments would never be found by dense
 * search. So each collection has a gate that knows the generation served last
 * and through which all puts pass; the job that switches generations closes
 * it, waits for the puts inside, switches, and opens it. Puts behind the gate
 * are then folded in with the new generation.
 * Invariants: a put is either in the hands of one thread, or parked at a gate,
 * or queued at the writer or at dispatch; done is called once.
 * Threads: `lock` guards gates and their lists; no store call under it. */
#include "indexer.h"

#include <pthread.h>
#include <string.h>

#define MAX_ATTEMPTS 16 /* to submit one put, far more than can happen */

struct put {
    struct dispatch_task task; /* to fold it in again */
    struct indexer *ix;
    struct mb_op *op;
    struct mb_collection coll;
    uint32_t generation; /* its vectors are of this one */
    unsigned n_attempts;
    indexer_done_fn done;
    void *arg;
    struct put *next; /* at a gate */
};

struct gate {
    struct gate *next;
    mb_collection_id coll;
    uint64_t n_inside;   /* submitted, not done */
    uint32_t generation; /* newest that is known to be served */
    bool closed;
    struct put *parked;
};

struct indexer {
    struct indexer_options opt;
    pthread_mutex_t lock;
    pthread_cond_t empty; /* some n_inside became 0 */
    struct gate *gates;
};

struct indexer *
indexer_new(const struct indexer_options *opt)
{
    struct indexer *ix = mb_calloc(1, sizeof *ix);

    if (ix == NULL)
        return NULL;
    ix->opt = *opt;
    (void)pthread_mutex_init(&ix->lock, NULL);
    (void)pthread_cond_init(&ix->empty, NULL);
    return ix;
}

void
indexer_free(struct indexer *ix)
{
    if (ix == NULL)
        return;
    while (ix->gates != NULL) {
        struct gate *next = ix->gates->next;

        MB_ASSERT(ix->gates->n_inside == 0 && ix->gates->parked == NULL);
        mb_free(ix->gates);
        ix->gates = next;
    }
    (void)pthread_cond_destroy(&ix->empty);
    (void)pthread_mutex_destroy(&ix->lock);
    mb_free(ix);
}

void
indexer_put_free(struct put *put)
{
    if (put == NULL)
        return;
    mb_op_free(put->op);
    mb_free(put);
}

void
indexer_put_result(const struct put *put, struct mb_put_result *out)
{
    mb_op_put_result(put->op, out);
}

const struct mb_collection *
indexer_put_collection(const struct put *put)
{
    return &put->coll;
}

/* ---- preparing ---- */

static mb_status
cut_segments(struct indexer *ix, struct worker *w, struct mb_arena *arena,
    struct mb_put_document *doc, struct mb_error *err)
{
    mb_status st;

    mb_buffer_clear(&w->spans);
    st = mb_segment_text(
        ix->opt.tokenizer, w->tokens, doc->text, &w->spans, err);
    if (st != MB_OK)
        return st;
    doc->segments = mb_arena_dup(arena, w->spans.data, w->spans.size);
    if (doc->segments == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "segments of a document");
    doc->n_segments = w->spans.size / sizeof(struct mb_span);
    return MB_OK;
}

mb_status
indexer_prepare(struct indexer *ix, struct worker *w, struct mb_arena *arena,
    const struct mb_collection *coll, struct mb_put_document *docs, size_t n,
    struct put **out, struct mb_error *err)
{
    struct mb_analyzer *analyzer;
    struct put *put = mb_calloc(1, sizeof *put);
    mb_status st;

    if (put == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "put");
    put->ix = ix;
    put->coll = *coll;
    st = worker_analyzer(w, coll->settings.language, &analyzer, err);
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        st = cut_segments(ix, w, arena, &docs[i], err);
    }
    if (st == MB_OK)
        st = mb_op_put_new(coll, analyzer, docs, n, &put->op, err);
    if (st == MB_OK) {
        *out = put;
        put = NULL;
    }
    indexer_put_free(put);
    return st;
}

/* ---- vectors ---- */

/* The put's collection as it is now; another of the same name is not it. */
static mb_status
look_again(struct put *put, struct mb_snapshot *snap, struct mb_error *err)
{
    struct mb_collection now;
    mb_status st =
        mb_collection_get(snap, mb_slice_cstr(put->coll.name), &now, err);

    if (st == MB_OK && now.id != put->coll.id)
        st = mb_error_set(err, MB_ERR_NOT_FOUND,
            "collection \"%s\" was dropped and made again", now.name);
    if (st == MB_OK)
        put->coll = now;
    return st;
}

/* Fold all segments of the put in by the embedding that its collection serves
 * now. None served: the put goes without vectors. */
static mb_status
fold(struct put *put, struct worker *w, struct mb_error *err)
{
    struct indexer *ix = put->ix;
    struct mb_snapshot *snap = NULL;
    struct embedding *emb = NULL;
    size_t n = mb_op_put_segments(put->op);
    size_t dim;
    mb_status st;

    if (put->coll.settings.embedding != MB_EMBED_LSA)
        return MB_OK;
    st = mb_snapshot_begin(ix->opt.store, &snap, err);
    if (st != MB_OK)
        return st;
    st = look_again(put, snap, err);
    put->generation = put->coll.generation;
    if (st != MB_OK || put->generation == 0)
        goto out;
    st = embedder_ref(ix->opt.embedder, snap, &put->coll, &emb, err);
    if (st != MB_OK)
        goto out;
    dim = mb_lsa_dim(embedding_lsa(emb));
    mb_buffer_clear(&w->vectors);
    st = mb_buffer_reserve(&w->vectors, n * dim * sizeof(float));
    if (st != MB_OK) {
        (void)mb_error_set(err, st, "vectors of %zu segments", n);
        goto out;
    }
    // Buffers come from malloc: aligned for floats.
    float *rows = (float *)(void *)w->vectors.data;
    for (size_t i = 0; i < n; i++) {
        const uint64_t *hash;
        const float *tf;
        size_t n_terms;

        mb_op_put_terms(put->op, i, &hash, &tf, &n_terms);
        mb_lsa_fold(
            embedding_lsa(emb), hash, tf, n_terms, rows + i * dim, NULL);
    }
    st = mb_op_put_set_vectors(put->op, put->generation, dim, rows);
out:
    embedder_unref(ix->opt.embedder, emb);
    mb_snapshot_end(snap);
    return st;
}

/* ---- gates ---- */

/* The gate of a collection, made if need be; NULL without memory. Under the
 * lock. */
static struct gate *
gate_of(struct indexer *ix, mb_collection_id coll)
{
    struct gate *g;

    for (g = ix->gates; g != NULL; g = g->next) {
        if (g->coll == coll)
            return g;
    }
    g = mb_calloc(1, sizeof *g);
    if (g == NULL)
        return NULL;
    g->coll = coll;
    g->next = ix->gates;
    ix->gates = g;
    return g;
}

enum passage { PASSED, PARKED, BEHIND, FAILED };

/* Go in through the gate, wait at it, or learn that the vectors are old. */
static enum passage
gate_enter(struct put *put)
{
    struct indexer *ix = put->ix;
    enum passage passage = PASSED;
    struct gate *g;

    (void)pthread_mutex_lock(&ix->lock);
    g = gate_of(ix, put->coll.id);
    if (g == NULL) {
        passage = FAILED;
    } else if (g->closed) {
        put->next = g->parked;
        g->parked = put;
        passage = PARKED;
    } else if (put->generation < g->generation &&
               put->coll.settings.embedding == MB_EMBED_LSA) {
        passage = BEHIND;
    } else {
        g->n_inside++;
    }
    (void)pthread_mutex_unlock(&ix->lock);
    return passage;
}

static void
gate_leave(struct put *put)
{
    struct indexer *ix = put->ix;
    struct gate *g;

    (void)pthread_mutex_lock(&ix->lock);
    g = gate_of(ix, put->coll.id);
    MB_ASSERT(g != NULL && g->n_inside > 0);
    g->n_inside--;
    if (g->n_inside == 0)
        (void)pthread_cond_broadcast(&ix->empty);
    (void)pthread_mutex_unlock(&ix->lock);
}

void
indexer_gate_close(struct indexer *ix, mb_collection_id coll)
{
    struct gate *g;

    (void)pthread_mutex_lock(&ix->lock);
    g = gate_of(ix, coll);
    if (g != NULL) {
        g->closed = true;
        while (g->n_inside > 0) {
            (void)pthread_cond_wait(&ix->empty, &ix->lock);
        }
    }
    (void)pthread_mutex_unlock(&ix->lock);
}

static void fold_again(void *arg, struct worker *w);

void
indexer_gate_open(
    struct indexer *ix, mb_collection_id coll, uint32_t generation)
{
    struct put *parked = NULL;
    struct gate *g;

    (void)pthread_mutex_lock(&ix->lock);
    g = gate_of(ix, coll);
    if (g != NULL) {
        g->closed = false;
        if (generation > g->generation)
            g->generation = generation;
        parked = g->parked;
        g->parked = NULL;
    }
    (void)pthread_mutex_unlock(&ix->lock);
    while (parked != NULL) {
        struct put *next = parked->next;

        parked->task.fn = fold_again;
        parked->task.arg = parked;
        dispatch_post(ix->opt.dispatch, true, &parked->task);
        parked = next;
    }
}

/* ---- submitting ---- */

static void
finish(struct put *put, mb_status st, const struct mb_error *err)
{
    put->done(put->arg, put, st, err);
    indexer_put_free(put);
}

/* That generations change is our business: no client hears of it. */
static void
give_up(struct put *put)
{
    struct mb_error err = {0};
    mb_status st = mb_error_set(&err, MB_ERR_BUSY,
        "the embedding of \"%s\" changed %d times meanwhile", put->coll.name,
        MAX_ATTEMPTS);

    finish(put, st, &err);
}

/* On the writer's thread. */
static void
on_applied(
    void *arg, struct mb_op *op, mb_status st, const struct mb_error *err)
{
    struct put *put = arg;

    MB_ASSERT(op == put->op);
    gate_leave(put);
    if (st != MB_ERR_STALE) {
        finish(put, st, err);
    } else if (put->n_attempts < MAX_ATTEMPTS) {
        put->task.fn = fold_again;
        put->task.arg = put;
        dispatch_post(put->ix->opt.dispatch, true, &put->task);
    } else {
        give_up(put);
    }
}

static void
fold_again(void *arg, struct worker *w)
{
    struct put *put = arg;
    struct mb_error err = {0};
    mb_status st = fold(put, w, &err);

    if (st != MB_OK)
        finish(put, st, &err);
    else
        indexer_submit(put, w, put->done, put->arg);
}

void
indexer_submit(
    struct put *put, struct worker *w, indexer_done_fn done, void *arg)
{
    struct mb_error err = {0};
    mb_status st = MB_OK;
    enum passage passage;

    put->done = done;
    put->arg = arg;
    if (put->n_attempts == 0)
        st = fold(put, w, &err);
    for (passage = BEHIND; st == MB_OK && passage == BEHIND;) {
        put->n_attempts++;
        passage = gate_enter(put);
        if (passage == PARKED)
            return;
        if (passage == BEHIND && put->n_attempts >= MAX_ATTEMPTS) {
            give_up(put);
            return;
        }
        if (passage == FAILED)
            st = mb_error_set(&err, MB_ERR_NOMEM, "put");
        else if (passage == BEHIND)
            st = fold(put, w, &err);
    }
    if (st == MB_OK) {
        st =
            mb_store_submit(put->ix->opt.store, put->op, on_applied, put, &err);
        if (st == MB_OK)
            return;
        gate_leave(put);
    }
    finish(put, st, &err);
}
