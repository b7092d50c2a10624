/* SPDX-License-Identifier: Apache-2.0
 * daemon/cmd_query.c - query: one or several questions to one collection.
 *
 * text -> terms (analyzer) -> vector (embedding, unless one came with the
 * query) -> mb_search -> for each hit the fields asked for. All questions of a
 * request see the same snapshot.
 * Threads: a worker or mb-io. */
#include "finder.h"
#include "rerank.h"

#include <math.h>
#include <string.h>

#define DEFAULT_K 10

#define HIT_FIELDS                                                             \
    (F(ID) | F(SEGMENT) | F(SCORE) | F(START) | F(END) | F(TEXT) | F(TITLE) |  \
        F(META) | F(DENSE) | F(LEXICAL))

/* What all questions of a request share. */
struct session {
    struct finder f;
    struct call *c; /* f.c */
    unsigned fields;
    bool explain;
    size_t rerank; /* hits that the model judges; 0: none */
    bool asks;     /* the model is to be asked first */
};

struct question {
    struct mb_query q;
    struct mb_slice text;
    uint64_t start_ns;
    uint64_t analyzed_ns;
    uint64_t embedded_ns;
    uint64_t searched_ns;
};

/* ---- reading a question ---- */

/* Where an argument of a question stands: with it, or for all of them. */
static const struct mb_value *
holder(const struct session *s, const struct mb_value *item, const char *key)
{
    return mb_value_get(item, key) != NULL ? item : s->c->args;
}

static mb_status
read_options(
    const struct session *s, const struct mb_value *item, struct mb_query *q)
{
    uint64_t max_k = daemon_config(s->c->d)->max_k;
    struct mb_error *err = &s->c->err;
    uint64_t k = max_k < DEFAULT_K ? max_k : DEFAULT_K;
    uint64_t nprobe;
    mb_status st =
        finder_read_mode(holder(s, item, "mode"), &q->mode, &s->c->err);

    if (st == MB_OK)
        st = mb_arg_u64(holder(s, item, "k"), "k", k, 1, UINT32_MAX, &k, err);
    if (st == MB_OK && k > max_k)
        st = mb_error_set(err, MB_ERR_TOO_LARGE, "k %llu, max_k is %llu",
            (unsigned long long)k, (unsigned long long)max_k);
    if (st == MB_OK)
        st = mb_arg_map(
            holder(s, item, "filter"), "filter", false, &q->filter, err);
    if (st == MB_OK)
        st = mb_arg_bool(holder(s, item, "one_per_document"),
            "one_per_document", false, &q->one_per_document, err);
    if (st == MB_OK)
        st = mb_arg_bool(
            holder(s, item, "exact"), "exact", false, &q->exact, err);
    if (st == MB_OK)
        st = mb_arg_u64(holder(s, item, "nprobe"), "nprobe", 0, 0, UINT32_MAX,
            &nprobe, err);
    if (st != MB_OK)
        return st;
    q->k = (size_t)k;
    q->nprobe = (uint32_t)nprobe;
    return MB_OK;
}

mb_status
scale_to_unit(const float *in, size_t dim, const char *what,
    struct mb_arena *arena, const float **out, struct mb_error *err)
{
    float *unit = mb_arena_alloc(arena, dim * sizeof *unit);
    double sum = 0;

    if (unit == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "vector");
    for (size_t i = 0; i < dim; i++) {
        sum += (double)in[i] * (double)in[i];
    }
    if (!(sum > 0) || !isfinite(sum))
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "%s: all zero, it has no direction", what);
    for (size_t i = 0; i < dim; i++) {
        unit[i] = (float)((double)in[i] / sqrt(sum));
    }
    *out = unit;
    return MB_OK;
}

static mb_status
read_vector(
    const struct session *s, const struct mb_value *v, struct mb_query *q)
{
    size_t dim = s->f.coll.settings.embedding == MB_EMBED_CLIENT
                     ? s->f.coll.settings.dim
                     : s->f.coll.dim;
    struct call *c = s->c;
    const float *given;
    mb_status st;

    if (s->f.coll.settings.embedding == MB_EMBED_NONE || dim == 0)
        return mb_error_set(&c->err, MB_ERR_MISMATCH,
            "collection %s has no vectors to compare with", s->f.coll.name);
    st = mb_value_vector(v, "vector", dim, c->arena, &given, &q->dim, &c->err);
    if (st == MB_OK)
        st = scale_to_unit(
            given, q->dim, "vector", c->arena, &q->vector, &c->err);
    return st;
}

/* ---- answering one ---- */

static void
write_score(struct mb_writer *w, const char *key, float v)
{
    mb_write_cstr(w, key);
    if (isnan(v))
        mb_write_nil(w);
    else
        mb_write_f32(w, v);
}

static mb_status
write_hit(const struct session *s, const struct mb_hit *hit)
{
    struct call *c = s->c;
    struct mb_writer *w = &c->w;
    unsigned fields = s->fields;
    struct mb_segment segment;
    struct mb_document doc;
    struct mb_slice text = {0};
    mb_status st =
        mb_segment_get(s->f.snap, &s->f.coll, hit->segno, &segment, &c->err);

    if (st == MB_OK)
        st = mb_document_get(s->f.snap, &s->f.coll, hit->docno, &doc, &c->err);
    if (st == MB_OK && (fields & F(TEXT)) != 0)
        st = mb_document_text(s->f.snap, &s->f.coll, &doc, segment.start,
            segment.end, c->arena, &text, &c->err);
    if (st != MB_OK)
        return st;
    mb_write_map(w, fields_count(fields));
    mb_write_kv_str(w, "id", doc.id);
    mb_write_kv_uint(w, "segment", segment.ordinal);
    write_score(w, "score", hit->score);
    if ((fields & F(START)) != 0)
        mb_write_kv_uint(w, "start", segment.start);
    if ((fields & F(END)) != 0)
        mb_write_kv_uint(w, "end", segment.end);
    if ((fields & F(TEXT)) != 0)
        mb_write_kv_str(w, "text", text);
    if ((fields & F(TITLE)) != 0)
        mb_write_kv_str(w, "title", doc.title);
    if ((fields & F(META)) != 0)
        write_meta(w, doc.meta);
    if ((fields & F(DENSE)) != 0)
        write_score(w, "dense", hit->dense);
    if ((fields & F(LEXICAL)) != 0)
        write_score(w, "lexical", hit->lexical);
    if ((fields & F(SEGNO)) != 0)
        mb_write_kv_uint(w, "segno", hit->segno);
    if ((fields & F(TOKENS)) != 0)
        mb_write_kv_uint(w, "tokens", segment.n_tokens);
    return MB_OK;
}

static void
write_explanation(const struct session *s, const struct question *x)
{
    struct mb_writer *w = &s->c->w;

    mb_write_cstr(w, "explain");
    mb_write_map(w, 8);
    mb_write_kv_cstr(w, "mode", finder_modes[x->q.mode]);
    mb_write_kv_uint(w, "terms", x->q.n_terms);
    mb_write_kv_f64(w, "coverage", (double)x->q.coverage);
    mb_write_kv_uint(w, "dim", x->q.dim);
    mb_write_kv_uint(w, "analyze_us", (x->analyzed_ns - x->start_ns) / 1000);
    mb_write_kv_uint(w, "embed_us", (x->embedded_ns - x->analyzed_ns) / 1000);
    mb_write_kv_uint(w, "search_us", (x->searched_ns - x->embedded_ns) / 1000);
    mb_write_kv_uint(w, "fetch_us", (mb_clock_ns() - x->searched_ns) / 1000);
}

/* {"hits": [...], "generation", "took_us", "explain"?} */
static mb_status
answer(struct session *s, struct question *x)
{
    struct call *c = s->c;
    struct mb_hit *hits = NULL;
    size_t n = 0;
    size_t k = x->q.k;
    mb_status st = finder_prepare(&s->f, x->text, &x->q, &x->analyzed_ns);

    if (st != MB_OK)
        return st;
    x->embedded_ns = mb_clock_ns();
    if (s->rerank > k)
        x->q.k = s->rerank;
    // Without a generation there is nothing dense to search yet.
    if (x->q.mode != MB_SEARCH_DENSE || s->f.coll.generation != 0)
        st = mb_search(s->f.snap, &x->q, c->arena, &hits, &n, &c->err);
    x->searched_ns = mb_clock_ns();
    if (st == MB_OK && s->rerank > 0 && n > 0) {
        if (n > s->rerank)
            n = s->rerank;
        if (c->scores.batch == NULL) {
            s->asks = true;
            return rerank_prepare(&s->f, x->text, hits, n);
        }
        n = rerank_order(&s->f, hits, n);
        n = n < k ? n : k;
    }
    if (st != MB_OK)
        return st;
    mb_write_map(&c->w, s->explain ? 4 : 3);
    mb_write_cstr(&c->w, "hits");
    mb_write_array(&c->w, n);
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        st = write_hit(s, &hits[i]);
    }
    mb_write_kv_uint(&c->w, "generation", s->f.coll.generation);
    if (s->explain)
        write_explanation(s, x);
    mb_write_kv_uint(&c->w, "took_us", (mb_clock_ns() - x->start_ns) / 1000);
    return st;
}

/* Can the texts of questions be compared with vectors? */
static mb_status
check_dense(const struct session *s)
{
    const struct finder *f = &s->f;

    if (f->coll.settings.embedding != MB_EMBED_ANCHOR)
        return mb_error_set(&s->c->err, MB_ERR_BAD_ARG,
            "collection %s wants a vector for dense search", f->coll.name);
    if (f->anchor != ANCHOR_DORMANT)
        return MB_OK;
    return mb_error_set(&s->c->err, MB_ERR_MISMATCH,
        "vectors of collection %s are of model %.*s, %s reads now",
        f->coll.name, (int)f->model.size, (const char *)f->model.data,
        reader_name(s->c->d->reader));
}

static mb_status
read_and_answer(struct session *s, const struct mb_value *item)
{
    struct question x = {.start_ns = mb_clock_ns()};
    const struct mb_value *vector = mb_value_get(item, "vector");
    struct mb_error *err = &s->c->err;
    mb_status st = mb_arg_str(item, "text", false, &x.text, err);

    if (st != MB_OK)
        return st;
    if (mb_value_get(item, "text") == NULL && vector == NULL)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "query: wants text, vector or queries");
    st = read_options(s, item, &x.q);
    if (st == MB_OK && vector != NULL)
        st = read_vector(s, vector, &x.q);
    if (st == MB_OK && x.q.mode == MB_SEARCH_DENSE && vector == NULL &&
        s->f.coll.settings.embedding != MB_EMBED_LSA)
        st = check_dense(s);
    return st == MB_OK ? answer(s, &x) : st;
}

static mb_status
answer_many(struct session *s, const struct mb_value *queries)
{
    uint64_t max = daemon_config(s->c->d)->max_queries;
    uint64_t start = mb_clock_ns();
    struct call *c = s->c;
    mb_status st = MB_OK;

    if (queries->array.n > max)
        return mb_error_set(&c->err, MB_ERR_TOO_LARGE,
            "%zu queries, max_queries is %llu", queries->array.n,
            (unsigned long long)max);
    mb_write_map(&c->w, 2);
    mb_write_cstr(&c->w, "results");
    mb_write_array(&c->w, queries->array.n);
    for (size_t i = 0; i < queries->array.n && st == MB_OK; i++) {
        const struct mb_value *item = &queries->array.items[i];

        if (item->type != MB_TYPE_MAP)
            return mb_error_set(
                &c->err, MB_ERR_BAD_ARG, "queries: item %zu is not a map", i);
        if (c->deadline_ns != 0 && mb_clock_ns() > c->deadline_ns)
            return mb_error_set(
                &c->err, MB_ERR_TIMEOUT, "after %zu of the queries", i);
        st = read_and_answer(s, item);
    }
    mb_write_kv_uint(&c->w, "took_us", (mb_clock_ns() - start) / 1000);
    return st;
}

/* Texts of all questions, for a collection whose vectors the model makes. */
static mb_status
ask_vectors(struct session *s, const struct mb_value *queries)
{
    struct call *c = s->c;
    size_t n = queries != NULL ? queries->array.n : 1;
    struct mb_slice *texts = mb_arena_calloc(c->arena, n + 1, sizeof *texts);
    size_t n_texts = 0;
    mb_search_mode mode;
    mb_status st = MB_OK;

    if (texts == NULL)
        return mb_error_set(&c->err, MB_ERR_NOMEM, "%zu queries", n);
    if (n > daemon_config(c->d)->max_queries)
        return MB_OK; // refused later, by name
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        const struct mb_value *item =
            queries != NULL ? &queries->array.items[i] : c->args;
        const struct mb_value *text = mb_value_get(item, "text");

        if (text == NULL || text->type != MB_TYPE_STR ||
            mb_value_get(item, "vector") != NULL)
            continue;
        st = finder_read_mode(holder(s, item, "mode"), &mode, &c->err);
        if (st == MB_OK && mode != MB_SEARCH_LEXICAL &&
            text->s.size <= FINDER_MAX_TEXT)
            texts[n_texts++] = text->s;
    }
    return st == MB_OK ? finder_ask(&s->f, texts, n_texts, &s->asks) : st;
}

static mb_status
query(struct session *s)
{
    struct call *c = s->c;
    const struct mb_value *queries = mb_value_get(c->args, "queries");
    uint64_t max_k = daemon_config(c->d)->max_k;
    uint64_t rerank = 0;
    mb_status st = fields_read(c->args, HIT_FIELDS | F(SEGNO) | F(TOKENS),
        F(ID) | F(SEGMENT) | F(SCORE), HIT_FIELDS, &s->fields, &c->err);

    if (st == MB_OK)
        st = mb_arg_bool(c->args, "explain", false, &s->explain, &c->err);
    if (st == MB_OK)
        st = mb_arg_u64(c->args, "rerank", 0, 0, max_k, &rerank, &c->err);
    if (st == MB_OK && rerank > 0 && mb_value_get(c->args, "text") == NULL)
        st = mb_error_set(
            &c->err, MB_ERR_BAD_ARG, "rerank goes with one query of a text");
    s->rerank = (size_t)rerank;
    if (st == MB_OK)
        st = ask_vectors(s, queries);
    if (st != MB_OK || s->asks)
        return st;
    return queries != NULL ? answer_many(s, queries)
                           : read_and_answer(s, c->args);
}

COMMAND_HANDLER(cmd_query)
{
    struct session s = {.c = c};
    bool has_vectors = c->vectors.batch != NULL;
    mb_status st = finder_begin(&s.f, c, w);

    if (st == MB_OK)
        st = query(&s);
    finder_end(&s.f);
    *later = st == MB_OK && s.asks;
    if (*later) {
        bool asks_vectors = !has_vectors && c->vectors.batch != NULL;

        call_ask(c, asks_vectors ? &c->vectors : &c->scores);
    }
    return st;
}
