/* SPDX-License-Identifier: Apache-2.0
 * daemon/finder.c - from the text of a question to what mb_search wants.
 * Threads: as its call. */
#include "finder.h"

#include "batch.h"

const char *const finder_modes[3] = {"hybrid", "dense", "lexical"};

mb_status
finder_begin(struct finder *f, struct call *c, struct worker *w)
{
    mb_status st;

    *f = (struct finder){.c = c, .w = w};
    st = call_snapshot(c, &f->snap, &f->coll);
    if (st == MB_OK && f->coll.settings.embedding == MB_EMBED_LSA &&
        f->coll.generation != 0)
        st = embedder_ref(c->d->embedder, f->snap, &f->coll, &f->emb, &c->err);
    if (st == MB_OK && f->coll.settings.embedding == MB_EMBED_ANCHOR)
        st = anchor_state_of(c->d->reader, f->snap, &f->coll, c->arena,
            &f->anchor, &f->model, &c->err);
    return st;
}

static uint64_t
key_of(struct mb_slice text)
{
    return mb_hash64(text.data, text.size, 0);
}

mb_status
finder_ask(struct finder *f, const struct mb_slice *texts, size_t n, bool *asks)
{
    struct call *c = f->c;
    struct call_answers *a = &c->vectors;
    mb_status st;

    *asks = false;
    if (f->coll.settings.embedding != MB_EMBED_ANCHOR ||
        f->anchor != ANCHOR_LIVE || a->batch != NULL || n == 0)
        return MB_OK;
    st = batch_new(c->d->reader, MB_TASK_EMBED, call_model_deadline(c),
        &a->batch, &c->err);
    a->keys = mb_calloc(n, sizeof *a->keys);
    if (st == MB_OK && a->keys == NULL)
        st = mb_error_set(&c->err, MB_ERR_NOMEM, "%zu questions", n);
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        a->keys[i] = key_of(texts[i]);
        st = batch_add(a->batch, mb_slice_of(NULL, 0), texts[i], &c->err);
    }
    *asks = st == MB_OK;
    return st;
}

/* The vector that the model made of this text, if it was asked. */
static void
take_vector(const struct finder *f, struct mb_slice text, struct mb_query *q)
{
    const struct call_answers *a = &f->c->vectors;
    size_t i = call_answer(a, key_of(text));

    if (f->anchor != ANCHOR_LIVE || i == SIZE_MAX)
        return;
    q->vector = batch_vector(a->batch, i);
    q->dim = mb_engine_dim(reader_engine(f->c->d->reader));
    // Between the two runs another generation may have come.
    if (q->dim != f->coll.dim)
        q->vector = NULL;
    // Mean hidden rows all point about the same way, so that nothing in the
    // scores tells whether they mean anything; and measured, they find far less
    // than words do. In the fusion they order what words leave equal.
    q->coverage = 0;
}

void
finder_end(struct finder *f)
{
    embedder_unref(f->c->d->embedder, f->emb);
    mb_snapshot_end(f->snap);
}

mb_status
finder_prepare(const struct finder *f, struct mb_slice text, struct mb_query *q,
    uint64_t *analyzed_ns)
{
    struct call *c = f->c;
    struct mb_analyzer *an;
    struct mb_term *terms;
    float *vector;
    size_t dim;
    mb_status st = MB_OK;

    q->coll = &f->coll;
    // Answered on mb-io: nobody else waits.
    q->helped = f->w == &f->c->d->io_worker;
    q->coverage = 1;
    if (text.size > FINDER_MAX_TEXT)
        return mb_error_set(&c->err, MB_ERR_TOO_LARGE,
            "text of %zu bytes, a question has at most %d", text.size,
            FINDER_MAX_TEXT);
    if (text.size > 0) {
        st = worker_analyzer(f->w, f->coll.settings.language, &an, &c->err);
        if (st == MB_OK)
            st = mb_analyze(an, text, c->arena, &terms, &q->n_terms, &c->err);
        if (st == MB_OK)
            q->terms = terms;
    }
    if (analyzed_ns != NULL)
        *analyzed_ns = mb_clock_ns();
    if (st != MB_OK || text.size == 0 || q->vector != NULL ||
        q->mode == MB_SEARCH_LEXICAL)
        return st;
    if (f->coll.settings.embedding == MB_EMBED_ANCHOR)
        take_vector(f, text, q);
    if (f->emb == NULL)
        return MB_OK;
    dim = mb_lsa_dim(embedding_lsa(f->emb));
    vector = mb_arena_alloc(c->arena, dim * sizeof *vector);
    if (vector == NULL)
        return mb_error_set(&c->err, MB_ERR_NOMEM, "vector");
    st = embed_terms(embedding_lsa(f->emb), terms, q->n_terms, c->arena, vector,
        &q->coverage, &c->err);
    q->vector = vector;
    q->dim = dim;
    return st;
}

mb_status
finder_read_mode(
    const struct mb_value *args, mb_search_mode *out, struct mb_error *err)
{
    struct mb_slice name = mb_slice_cstr(finder_modes[0]);
    struct mb_slice given = {0};
    mb_status st = mb_arg_str(args, "mode", false, &given, err);

    if (st != MB_OK)
        return st;
    if (given.size > 0)
        name = given;
    for (int i = 0; i < 3; i++) {
        if (mb_slice_equal(name, mb_slice_cstr(finder_modes[i]))) {
            *out = (mb_search_mode)i;
            return MB_OK;
        }
    }
    return mb_error_set(
        err, MB_ERR_BAD_ARG, "mode is not hybrid, dense or lexical");
}
