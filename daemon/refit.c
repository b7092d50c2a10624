/* SPDX-License-Identifier: Apache-2.0
 * daemon/refit.c - build the next generation of a collection's dense index.
 *
 * Steps as in mb_store.h. Snapshots are short, so that the store's file does
 * not grow while a refit of minutes runs. While segments are folded in, puts
 * go on and add more; when few are missing the collection's gate is closed,
 * the rest is added, the generation is switched to, and the gate opens: puts
 * wait for as long as one batch and two commits.
 * Invariants: an unfinished generation is erased, here or at the next start.
 * Threads: mb-job. */
#include "refit.h"

#include <string.h>

#include "refit_sample.h"

#define DEFAULT_DIM   256
#define DIM_STEP      16    /* dims are a multiple: kernels like that */
#define BATCH         8192  /* segments of one add */
#define MAX_TERMS     65536 /* of a segment; a title may be long */
#define CATCH_UP      4096  /* as few may be missing when the gate closes */
#define OUTGROWN      4     /* times what it was fitted on */
#define MAX_ROUNDS    8     /* of catching up before it closes anyway */
#define TREE_SAMPLE   50000 /* vectors that a tree of clients is fitted on */
#define MEASURE_WITH  200   /* queries that measure recall */
#define REFIT_SEED    20260131u
#define MAX_MODEL     ((size_t)1 << 30)
#define PART_SAMPLED  0.05 /* of all the work, when ... is done */
#define PART_FITTED   0.45
#define PART_TREE     0.55
#define PART_FOLDED   0.93
#define PART_MEASURED 0.97

/* One refit under way. */
struct build {
    struct refit *r;
    uint32_t old;      /* served before, 0 if none */
    uint64_t n_fitted; /* segments when the sample was drawn */
    size_t dim;
    struct mb_lsa *lsa; /* NULL: client vectors */
    struct mb_buffer model;
    struct mb_tree *tree;
    mb_segno at;             /* segments below are in */
    struct mb_segment *segs; /* (BATCH) */
    mb_segno *segnos;        /* (BATCH) */
    float *vectors;          /* (BATCH, dim) */
    uint32_t *ids;           /* (MAX_TERMS) of one segment */
    uint32_t *tfs;           /* (MAX_TERMS) */
};

static bool
stops(struct build *b, const char *phase, double part)
{
    return b->r->progress(b->r->arg, phase, part);
}

static mb_status
apply(struct build *b, struct mb_op *op, struct mb_error *err)
{
    mb_status st = mb_store_apply(b->r->store, op, err);

    mb_op_free(op);
    return st;
}

static struct mb_slice
name_of(const struct build *b)
{
    return mb_slice_cstr(b->r->coll.name);
}

/* A snapshot, with the collection as it is now; NOT_FOUND if it was dropped
 * (another of the same name does not count). */
static mb_status
look(struct build *b, struct mb_snapshot **snap, struct mb_collection *coll,
    struct mb_error *err)
{
    mb_status st = mb_snapshot_begin(b->r->store, snap, err);

    if (st != MB_OK)
        return st;
    st = mb_collection_get(*snap, name_of(b), coll, err);
    if (st == MB_OK && (coll->id != b->r->coll.id ||
                           coll->created_ms != b->r->coll.created_ms))
        st = mb_error_set(
            err, MB_ERR_NOT_FOUND, "collection %s was dropped", coll->name);
    if (st != MB_OK) {
        mb_snapshot_end(*snap);
        *snap = NULL;
    }
    return st;
}

/* ---- fitting ---- */

static bool
on_fit(void *arg, double part)
{
    return stops(
        arg, "fit", PART_SAMPLED + part * (PART_FITTED - PART_SAMPLED));
}

static size_t
choose_dim(const struct build *b, const struct sample *s)
{
    size_t dim = b->r->coll.settings.dim;
    size_t rank = s->n_rows < s->n_cols ? s->n_rows : s->n_cols;

    if (dim == 0)
        dim = DEFAULT_DIM;
    rank = (rank + DIM_STEP - 1) / DIM_STEP * DIM_STEP;
    return dim < rank ? dim : rank;
}

static mb_status
fit_embedding(struct build *b, const struct sample *s, struct mb_error *err)
{
    struct mb_lsa_options opt = {
        .dim = choose_dim(b, s),
        .seed = REFIT_SEED,
        .n_power = 2,
        .oversample = 32,
        .progress = on_fit,
        .progress_arg = b,
    };
    float *V = mb_calloc(s->n_cols * opt.dim, sizeof *V);
    float *sigma = mb_calloc(opt.dim, sizeof *sigma);
    size_t rank;
    mb_status st;

    if (V == NULL || sigma == NULL)
        st = mb_error_set(
            err, MB_ERR_NOMEM, "%zu terms x %zu", s->n_cols, opt.dim);
    else
        st = mb_lsa_fit(&s->csr, &opt, V, sigma, &rank, err);
    if (st == MB_OK)
        st = mb_lsa_encode(s->n_cols, opt.dim, s->col_hash, s->col_term, s->idf,
            V, &b->model, err);
    mb_free(V);
    mb_free(sigma);
    if (st == MB_OK)
        st = mb_lsa_open(mb_buffer_slice(&b->model), &b->lsa, err);
    b->dim = opt.dim;
    b->r->n_terms = s->n_cols;
    return st;
}

static bool
is_zero(const float *v, size_t dim)
{
    for (size_t i = 0; i < dim; i++) {
        if (v[i] != 0)
            return false;
    }
    return true;
}

static mb_status
fit_tree(struct build *b, const float *rows, size_t n, struct mb_error *err)
{
    struct mb_tree_options opt = {
        .n_total = b->r->coll.n_segments,
        .flat_below = b->r->cfg->flat_below > 0 ? b->r->cfg->flat_below : 1,
        .recall_target = b->r->cfg->recall_target,
        .seed = REFIT_SEED,
    };

    if (stops(b, "tree", PART_FITTED))
        return MB_ERR_CANCELLED;
    return mb_tree_fit(rows, n, b->dim, &opt, &b->tree, err);
}

/* The tree is fitted on the rows that the embedding was fitted on. */
static mb_status
fit_tree_of_sample(
    struct build *b, const struct sample *s, struct mb_error *err)
{
    float *rows = mb_calloc(s->n_rows, b->dim * sizeof *rows);
    size_t n = 0;
    mb_status st;

    if (rows == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "%zu vectors", s->n_rows);
    for (size_t i = 0; i < s->n_rows; i++) {
        size_t start = s->row_start[i];

        mb_lsa_fold_ids(b->lsa, s->term_id + start, s->tf + start,
            s->row_start[i + 1] - start, rows + n * b->dim);
        if (!is_zero(rows + n * b->dim, b->dim))
            n++;
    }
    st = n > 0 ? fit_tree(b, rows, n, err)
               : mb_error_set(err, MB_ERR_BAD_ARG, "no vectors");
    mb_free(rows);
    return st;
}

static mb_status
fit_lsa(struct build *b, struct mb_error *err)
{
    struct mb_snapshot *snap = NULL;
    struct mb_collection coll;
    struct sample s = {0};
    mb_status st = look(b, &snap, &coll, err);

    if (st == MB_OK)
        b->n_fitted = coll.n_segments;
    if (st == MB_OK)
        st = sample_draw(snap, &coll, b->r->cfg->refit_sample,
            b->r->cfg->refit_terms, &s, err);
    mb_snapshot_end(snap);
    if (st == MB_OK && stops(b, "fit", PART_SAMPLED))
        st = MB_ERR_CANCELLED;
    if (st == MB_OK)
        st = fit_embedding(b, &s, err);
    if (st == MB_OK)
        st = fit_tree_of_sample(b, &s, err);
    sample_free(&s);
    return st;
}

/* Bytes that the served generation keeps go over to the next one: they say
 * which model its vectors are of. */
static mb_status
keep_embedding(struct build *b, struct mb_snapshot *snap,
    const struct mb_collection *coll, struct mb_error *err)
{
    struct mb_arena *arena;
    struct mb_slice bytes;
    mb_status st;

    if (coll->settings.embedding != MB_EMBED_ANCHOR)
        return MB_OK;
    arena = mb_arena_new(MAX_MODEL);
    if (arena == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "embedding");
    st = mb_generation_embedding(
        snap, coll, coll->generation, arena, &bytes, err);
    if (st == MB_OK)
        st = mb_buffer_append(&b->model, bytes.data, bytes.size);
    mb_arena_free(arena);
    return st;
}

/* Vectors made elsewhere: a tree over a sample of them. */
static mb_status
fit_client(struct build *b, struct mb_error *err)
{
    struct mb_snapshot *snap = NULL;
    struct mb_collection coll;
    float *rows = NULL;
    size_t n = 0;
    mb_status st = look(b, &snap, &coll, err);

    if (st != MB_OK)
        return st;
    b->dim = coll.dim;
    b->n_fitted = coll.n_vectors;
    st = keep_embedding(b, snap, &coll, err);
    rows = mb_calloc(TREE_SAMPLE, b->dim * sizeof *rows);
    if (st == MB_OK && rows == NULL)
        st = mb_error_set(err, MB_ERR_NOMEM, "%d vectors", TREE_SAMPLE);
    for (size_t i = 0; i < TREE_SAMPLE && st == MB_OK; i++) {
        // Evenly over all numbers; those without a vector are left out.
        uint64_t segno = (uint64_t)coll.next_segno * i / TREE_SAMPLE;

        if (i > 0 && segno == (uint64_t)coll.next_segno * (i - 1) / TREE_SAMPLE)
            continue;
        st =
            mb_vector_get(snap, &coll, (mb_segno)segno, rows + n * b->dim, err);
        if (st == MB_OK)
            n++;
        else if (st == MB_ERR_NOT_FOUND)
            st = MB_OK;
    }
    mb_snapshot_end(snap);
    if (st == MB_OK && n == 0)
        st = mb_error_set(err, MB_ERR_BAD_ARG, "no vectors");
    if (st == MB_OK)
        st = fit_tree(b, rows, n, err);
    mb_free(rows);
    return st;
}

static mb_status
store_model(struct build *b, struct mb_error *err)
{
    struct mb_op *op;
    mb_status st = mb_op_generation_model_new(name_of(b), b->r->generation,
        b->dim, mb_buffer_slice(&b->model), b->tree, &op, err);

    return st == MB_OK ? apply(b, op, err) : st;
}

/* ---- filling ---- */

/* Vector of one segment; zero if it has none. */
static mb_status
vector_of(struct build *b, struct mb_snapshot *snap,
    const struct mb_collection *coll, const struct mb_segment *seg, float *out,
    struct mb_error *err)
{
    size_t pos = 0;
    size_t n = 0;
    mb_status st;

    if (b->lsa != NULL) {
        while (n < MAX_TERMS &&
               mb_forward_next(seg->forward, &pos, &b->ids[n], &b->tfs[n])) {
            n++;
        }
        mb_lsa_fold_ids(b->lsa, b->ids, b->tfs, n, out);
        return MB_OK;
    }
    st = mb_vector_get(snap, coll, seg->segno, out, err);
    if (st != MB_ERR_NOT_FOUND)
        return st;
    memset(out, 0, b->dim * sizeof *out);
    return MB_OK;
}

/* Vectors of the next segments; *n of them have one, *more if there may be
 * further segments. */
static mb_status
gather(struct build *b, struct mb_snapshot *snap,
    const struct mb_collection *coll, size_t *n, bool *more,
    struct mb_error *err)
{
    size_t n_segs;
    mb_status st =
        mb_segment_scan(snap, coll, b->at, BATCH, b->segs, &n_segs, err);

    *n = 0;
    for (size_t i = 0; st == MB_OK && i < n_segs; i++) {
        float *row = b->vectors + *n * b->dim;

        st = vector_of(b, snap, coll, &b->segs[i], row, err);
        if (st == MB_OK && !is_zero(row, b->dim))
            b->segnos[(*n)++] = b->segs[i].segno;
    }
    if (st != MB_OK)
        return st;
    *more = n_segs == BATCH;
    b->at = n_segs > 0 ? b->segs[n_segs - 1].segno + 1 : coll->next_segno;
    return MB_OK;
}

/* Add one batch. */
static mb_status
add_batch(struct build *b, bool *more, struct mb_error *err)
{
    struct mb_snapshot *snap = NULL;
    struct mb_collection coll;
    struct mb_op *op;
    size_t n = 0;
    mb_status st = look(b, &snap, &coll, err);

    if (st != MB_OK)
        return st;
    // A generation fitted on a quarter of what is there now would be replaced
    // at once: rather begin again. That can happen log4(n) times at most.
    if (b->lsa != NULL && coll.n_segments >= OUTGROWN * b->n_fitted)
        st = mb_error_set(err, MB_ERR_STALE, "outgrown: %llu segments of %llu",
            (unsigned long long)b->n_fitted,
            (unsigned long long)coll.n_segments);
    else
        st = gather(b, snap, &coll, &n, more, err);
    mb_snapshot_end(snap);
    if (st != MB_OK || n == 0)
        return st;
    st = mb_op_generation_add_new(name_of(b), b->r->generation, b->dim,
        b->segnos, b->vectors, NULL, n, &op, err);
    if (st == MB_OK)
        st = apply(b, op, err);
    b->r->n_vectors += n;
    return st;
}

/* Add what is missing now; new segments may come meanwhile. */
static mb_status
add_all(struct build *b, struct mb_error *err)
{
    bool more = true;
    mb_status st = MB_OK;

    while (st == MB_OK && more) {
        double end = (double)b->r->coll.next_segno + 1;
        double part = (double)b->at / end;

        if (part > 1)
            part = 1;
        if (stops(b, "fold", PART_TREE + part * (PART_FOLDED - PART_TREE)))
            return MB_ERR_CANCELLED;
        st = add_batch(b, &more, err);
    }
    return st;
}

/* Until few segments are missing, or new ones come as fast as we add. */
static mb_status
catch_up(struct build *b, struct mb_error *err)
{
    mb_status st = MB_OK;

    for (int i = 0; i < MAX_ROUNDS && st == MB_OK; i++) {
        struct mb_snapshot *snap = NULL;
        struct mb_collection coll;

        st = look(b, &snap, &coll, err);
        mb_snapshot_end(snap);
        if (st == MB_OK && i > 0 && coll.next_segno - b->at < CATCH_UP)
            break;
        if (st == MB_OK)
            st = add_all(b, err);
    }
    return st;
}

static mb_status
measure(struct build *b, struct mb_error *err)
{
    struct refit *r = b->r;
    struct mb_snapshot *snap = NULL;
    struct mb_collection coll;
    struct mb_op *op;
    mb_status st;

    r->n_leaves = mb_tree_n_leaves(b->tree);
    r->probing = (struct mb_probing){.nprobe = 1, .recall = 1};
    if (r->n_leaves <= 1)
        return MB_OK;
    if (stops(b, "measure", PART_FOLDED))
        return MB_ERR_CANCELLED;
    st = look(b, &snap, &coll, err);
    if (st == MB_OK)
        st = mb_generation_measure(snap, &coll, r->generation, MEASURE_WITH,
            r->cfg->recall_target, REFIT_SEED, &r->probing, err);
    mb_snapshot_end(snap);
    if (st == MB_OK)
        st = mb_op_generation_tune_new(
            name_of(b), r->generation, &r->probing, &op, err);
    return st == MB_OK ? apply(b, op, err) : st;
}

/* With the gate closed: the rest, and the switch. */
static mb_status
add_rest_and_switch(struct build *b, struct mb_error *err)
{
    struct mb_snapshot *snap = NULL;
    struct mb_collection coll;
    struct mb_op *op;
    mb_status st = add_all(b, err);

    if (st == MB_OK)
        st = look(b, &snap, &coll, err);
    mb_snapshot_end(snap);
    if (st == MB_OK)
        st = mb_op_generation_switch_new(name_of(b), b->r->generation,
            coll.next_segno, b->n_fitted, &op, err);
    return st == MB_OK ? apply(b, op, err) : st;
}

static mb_status
fill_and_switch(struct build *b, struct mb_error *err)
{
    struct refit *r = b->r;
    mb_status st;

    r->dim = b->dim;
    b->segs = mb_calloc(BATCH, sizeof *b->segs);
    b->segnos = mb_calloc(BATCH, sizeof *b->segnos);
    b->vectors = mb_calloc(BATCH, b->dim * sizeof *b->vectors);
    b->ids = mb_calloc(MAX_TERMS, sizeof *b->ids);
    b->tfs = mb_calloc(MAX_TERMS, sizeof *b->tfs);
    if (b->segs == NULL || b->segnos == NULL || b->vectors == NULL ||
        b->ids == NULL || b->tfs == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "a batch of vectors");
    st = catch_up(b, err);
    if (st == MB_OK)
        st = measure(b, err);
    if (st == MB_OK && stops(b, "switch", PART_MEASURED))
        st = MB_ERR_CANCELLED;
    if (st != MB_OK)
        return st;
    indexer_gate_close(r->indexer, r->coll.id);
    st = add_rest_and_switch(b, err);
    indexer_gate_open(r->indexer, r->coll.id, st == MB_OK ? r->generation : 0);
    return st;
}

/* ---- all of it ---- */

mb_status
refit_purge(struct refit *r, uint32_t generation, struct mb_error *err)
{
    bool done = false;
    mb_status st = MB_OK;

    while (st == MB_OK && !done) {
        struct mb_op *op;

        if (r->progress(r->arg, "purge", PART_MEASURED))
            return MB_ERR_CANCELLED;
        st = mb_op_generation_purge_new(
            mb_slice_cstr(r->coll.name), generation, &op, err);
        if (st != MB_OK)
            return st;
        st = mb_store_apply(r->store, op, err);
        if (st == MB_OK)
            done = mb_op_generation_purge_is_done(op);
        mb_op_free(op);
    }
    return st;
}

static mb_status
begin(struct build *b, struct mb_error *err)
{
    struct mb_op *op;
    mb_status st = mb_op_generation_begin_new(name_of(b), &op, err);

    if (st != MB_OK)
        return st;
    st = mb_store_apply(b->r->store, op, err);
    if (st == MB_OK)
        b->r->generation = mb_op_generation_result(op);
    mb_op_free(op);
    return st;
}

mb_status
refit_run(struct refit *r, struct mb_error *err)
{
    struct build b = {.r = r, .old = r->coll.generation};
    bool is_lsa = r->coll.settings.embedding == MB_EMBED_LSA;
    mb_status st;

    mb_buffer_init(&b.model, MAX_MODEL);
    st = begin(&b, err);
    if (st != MB_OK)
        return st;
    st = is_lsa ? fit_lsa(&b, err) : fit_client(&b, err);
    if (st == MB_OK)
        st = store_model(&b, err);
    if (st == MB_OK)
        st = fill_and_switch(&b, err);
    mb_lsa_close(b.lsa);
    mb_tree_free(b.tree);
    mb_buffer_fini(&b.model);
    mb_free(b.segs);
    mb_free(b.segnos);
    mb_free(b.vectors);
    mb_free(b.ids);
    mb_free(b.tfs);
    // Either the old one or the new one is of no use now.
    if (st != MB_OK) {
        if (refit_purge(r, r->generation, NULL) != MB_OK)
            mb_log(MB_LOG_INFO, "job.left", "generation=%u until=restart",
                r->generation);
    } else if (b.old != 0 && refit_purge(r, b.old, NULL) != MB_OK) {
        mb_log(MB_LOG_INFO, "job.left", "generation=%u until=restart", b.old);
    }
    return st;
}
