/* SPDX-License-Identifier: Apache-2.0
 * daemon/cmd_read.c - get, list, embed, and what replies have in common.
 * Threads: a worker or mb-io; each call in its own snapshot. */
#include "cmd_read.h"
#include "batch.h"

#include <string.h>

#define DEFAULT_LIMIT  100
#define MAX_TEXT_BYTES (1u << 20) /* of one text to embed */

/* ---- fields ---- */

static const char *const field_names[FIELD_N] = {"id", "segment", "score",
    "start", "end", "text", "title", "meta", "dense", "lexical", "segno",
    "segments", "tokens", "text_bytes", "added_ms"};

mb_status
fields_read(const struct mb_value *args, unsigned possible, unsigned always,
    unsigned def, unsigned *out, struct mb_error *err)
{
    const struct mb_value *list = mb_value_get(args, "fields");
    unsigned fields = always;

    if (list == NULL) {
        *out = def | always;
        return MB_OK;
    }
    for (size_t i = 0; i < list->array.n; i++) {
        const struct mb_value *v = &list->array.items[i];
        unsigned bit = 0;

        for (unsigned f = 0; f < FIELD_N; f++) {
            if (v->type == MB_TYPE_STR &&
                mb_slice_equal(v->s, mb_slice_cstr(field_names[f])))
                bit = 1u << f;
        }
        if ((bit & possible) == 0 && v->type == MB_TYPE_STR)
            return mb_error_set(err, MB_ERR_BAD_ARG, "no such field: %.*s",
                (int)(v->s.size < 40 ? v->s.size : 40),
                (const char *)v->s.data);
        if ((bit & possible) == 0)
            return mb_error_set(
                err, MB_ERR_BAD_ARG, "fields: item %zu is not a string", i);
        fields |= bit;
    }
    *out = fields;
    return MB_OK;
}

size_t
fields_count(unsigned fields)
{
    size_t n = 0;

    for (; fields != 0; fields &= fields - 1) {
        n++;
    }
    return n;
}

void
write_meta(struct mb_writer *w, struct mb_slice meta)
{
    mb_write_cstr(w, "meta");
    if (meta.size > 0)
        mb_write_raw(w, meta);
    else
        mb_write_map(w, 0);
}

/* ---- snapshots ---- */

mb_status
call_snapshot(
    struct call *c, struct mb_snapshot **snap, struct mb_collection *coll)
{
    struct mb_slice name;
    mb_status st = mb_arg_str(c->args, "collection", true, &name, &c->err);

    if (st != MB_OK)
        return st;
    st = mb_snapshot_begin(c->d->store, snap, &c->err);
    if (st != MB_OK)
        return st;
    st = mb_collection_get(*snap, name, coll, &c->err);
    if (st != MB_OK) {
        mb_snapshot_end(*snap);
        *snap = NULL;
    }
    return st;
}

/* ---- documents ---- */

#define DOCUMENT_FIELDS                                                        \
    (F(ID) | F(TITLE) | F(META) | F(SEGMENTS) | F(TOKENS) | F(TEXT_BYTES) |    \
        F(ADDED_MS))

/* What of a document's text is wanted. */
struct part {
    uint64_t start;
    uint64_t end;
};

static mb_status
write_document(struct call *c, struct mb_snapshot *snap,
    const struct mb_collection *coll, const struct mb_document *doc,
    unsigned fields, const struct part *part)
{
    struct mb_slice text = {0};
    struct mb_writer *w = &c->w;
    mb_status st = MB_OK;

    if ((fields & F(TEXT)) != 0)
        st = mb_document_text(
            snap, coll, doc, part->start, part->end, c->arena, &text, &c->err);
    if (st != MB_OK)
        return st;
    mb_write_map(w, fields_count(fields));
    if ((fields & F(ID)) != 0)
        mb_write_kv_str(w, "id", doc->id);
    if ((fields & F(TITLE)) != 0)
        mb_write_kv_str(w, "title", doc->title);
    if ((fields & F(TEXT)) != 0)
        mb_write_kv_str(w, "text", text);
    if ((fields & F(META)) != 0)
        write_meta(w, doc->meta);
    if ((fields & F(SEGMENTS)) != 0)
        mb_write_kv_uint(w, "segments", doc->n_segments);
    if ((fields & F(TOKENS)) != 0)
        mb_write_kv_uint(w, "tokens", doc->n_tokens);
    if ((fields & F(TEXT_BYTES)) != 0)
        mb_write_kv_uint(w, "text_bytes", doc->text_bytes);
    if ((fields & F(ADDED_MS)) != 0)
        mb_write_kv_uint(w, "added_ms", doc->added_ms);
    return MB_OK;
}

static mb_status
get_many(struct call *c, struct mb_snapshot *snap,
    const struct mb_collection *coll, const struct mb_value *ids,
    unsigned fields, const struct part *part)
{
    uint64_t max = daemon_config(c->d)->max_documents;
    mb_status st = MB_OK;

    if (ids->array.n > max)
        return mb_error_set(&c->err, MB_ERR_TOO_LARGE,
            "%zu ids, max_documents is %llu", ids->array.n,
            (unsigned long long)max);
    mb_write_map(&c->w, 1);
    mb_write_cstr(&c->w, "documents");
    mb_write_array(&c->w, ids->array.n);
    for (size_t i = 0; i < ids->array.n && st == MB_OK; i++) {
        const struct mb_value *id = &ids->array.items[i];
        struct mb_document doc;

        if (id->type != MB_TYPE_STR)
            return mb_error_set(
                &c->err, MB_ERR_BAD_ARG, "ids: item %zu is not a string", i);
        st = mb_document_find(snap, coll, id->s, &doc, &c->err);
        if (st == MB_OK) {
            st = write_document(c, snap, coll, &doc, fields, part);
        } else if (st == MB_ERR_NOT_FOUND) {
            mb_write_nil(&c->w);
            st = MB_OK;
        }
    }
    return st;
}

static mb_status
get(struct call *c, struct mb_snapshot *snap, const struct mb_collection *coll)
{
    const struct mb_value *id = mb_value_get(c->args, "id");
    const struct mb_value *ids = mb_value_get(c->args, "ids");
    struct mb_document doc;
    struct part part;
    unsigned fields;
    mb_status st;

    if ((id == NULL) == (ids == NULL))
        return mb_error_set(
            &c->err, MB_ERR_BAD_ARG, "get: wants either id or ids");
    st = fields_read(c->args, DOCUMENT_FIELDS | F(TEXT), F(ID),
        DOCUMENT_FIELDS | F(TEXT), &fields, &c->err);
    if (st == MB_OK)
        st = mb_arg_u64(
            c->args, "start", 0, 0, UINT32_MAX, &part.start, &c->err);
    if (st == MB_OK)
        st = mb_arg_u64(
            c->args, "end", UINT32_MAX, 0, UINT32_MAX, &part.end, &c->err);
    if (st == MB_OK && part.start > part.end)
        st = mb_error_set(&c->err, MB_ERR_BAD_ARG, "start lies behind end");
    if (st != MB_OK)
        return st;
    if (ids != NULL)
        return get_many(c, snap, coll, ids, fields, &part);
    st = mb_document_find(snap, coll, id->s, &doc, &c->err);
    return st == MB_OK ? write_document(c, snap, coll, &doc, fields, &part)
                       : st;
}

COMMAND_HANDLER(cmd_get)
{
    struct mb_snapshot *snap = NULL;
    struct mb_collection coll;
    mb_status st = call_snapshot(c, &snap, &coll);

    (void)w;
    (void)later;
    if (st == MB_OK)
        st = get(c, snap, &coll);
    mb_snapshot_end(snap);
    return st;
}

static mb_status
list(struct call *c, struct mb_snapshot *snap, const struct mb_collection *coll)
{
    const struct part whole = {0, UINT32_MAX};
    uint64_t max = daemon_config(c->d)->max_list;
    struct mb_slice after = {0};
    struct mb_document *docs;
    uint64_t limit;
    unsigned fields;
    size_t n = 0;
    mb_status st = fields_read(c->args, DOCUMENT_FIELDS | F(TEXT), F(ID),
        DOCUMENT_FIELDS, &fields, &c->err);

    if (st == MB_OK)
        st = mb_arg_str(c->args, "after", false, &after, &c->err);
    if (st == MB_OK)
        st = mb_arg_u64(c->args, "limit",
            max < DEFAULT_LIMIT ? max : DEFAULT_LIMIT, 1, max, &limit, &c->err);
    if (st == MB_OK)
        st =
            mb_document_list(snap, coll, after, mb_value_get(c->args, "filter"),
                limit, c->arena, &docs, &n, &c->err);
    if (st != MB_OK)
        return st;
    mb_write_map(&c->w, 2);
    mb_write_cstr(&c->w, "documents");
    mb_write_array(&c->w, n);
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        st = write_document(c, snap, coll, &docs[i], fields, &whole);
    }
    if (st != MB_OK)
        return st;
    mb_write_cstr(&c->w, "next");
    if (n == limit)
        mb_write_str(&c->w, docs[n - 1].id);
    else
        mb_write_nil(&c->w);
    return MB_OK;
}

COMMAND_HANDLER(cmd_list)
{
    struct mb_snapshot *snap = NULL;
    struct mb_collection coll;
    mb_status st = call_snapshot(c, &snap, &coll);

    (void)w;
    (void)later;
    if (st == MB_OK)
        st = list(c, snap, &coll);
    mb_snapshot_end(snap);
    return st;
}

/* ---- embed ---- */

mb_status
embed_terms(const struct mb_lsa *lsa, const struct mb_term *terms, size_t n,
    struct mb_arena *arena, float *out, float *coverage, struct mb_error *err)
{
    uint64_t *hash = mb_arena_alloc(arena, (n + 1) * sizeof *hash);
    float *tf = mb_arena_alloc(arena, (n + 1) * sizeof *tf);

    if (hash == NULL || tf == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "%zu terms", n);
    for (size_t i = 0; i < n; i++) {
        hash[i] = terms[i].hash;
        tf[i] = (float)terms[i].tf;
    }
    mb_lsa_fold(lsa, hash, tf, n, out, coverage);
    return MB_OK;
}

static mb_status
check_text(struct call *c, const struct mb_value *text, size_t i)
{
    if (text->type != MB_TYPE_STR)
        return mb_error_set(
            &c->err, MB_ERR_BAD_ARG, "texts: item %zu is not a string", i);
    if (text->s.size > MAX_TEXT_BYTES)
        return mb_error_set(&c->err, MB_ERR_TOO_LARGE,
            "texts: item %zu has %zu bytes, at most %u are possible", i,
            text->s.size, MAX_TEXT_BYTES);
    return MB_OK;
}

static mb_status
write_vector(struct call *c, const float *vector, size_t dim)
{
    uint8_t *bytes = mb_arena_alloc(c->arena, 4 * dim);

    if (bytes == NULL)
        return mb_error_set(&c->err, MB_ERR_NOMEM, "vector");
    for (size_t j = 0; j < dim; j++) {
        mb_put_lef32(bytes + 4 * j, vector[j]);
    }
    mb_write_bin(&c->w, mb_slice_of(bytes, 4 * dim));
    return MB_OK;
}

static mb_status
embed_text(struct call *c, const struct mb_lsa *lsa, struct mb_analyzer *an,
    const struct mb_value *text, size_t i)
{
    size_t dim = mb_lsa_dim(lsa);
    float *vector = mb_arena_alloc(c->arena, dim * sizeof *vector);
    struct mb_term *terms;
    size_t n;
    mb_status st = check_text(c, text, i);

    if (st == MB_OK && vector == NULL)
        st = mb_error_set(&c->err, MB_ERR_NOMEM, "vector");
    if (st == MB_OK)
        st = mb_analyze(an, text->s, c->arena, &terms, &n, &c->err);
    if (st == MB_OK)
        st = embed_terms(lsa, terms, n, c->arena, vector, NULL, &c->err);
    return st == MB_OK ? write_vector(c, vector, dim) : st;
}

static mb_status
embed(struct call *c, struct worker *w, const struct mb_collection *coll,
    const struct mb_lsa *lsa)
{
    const struct mb_value *texts = mb_value_get(c->args, "texts");
    uint64_t max = daemon_config(c->d)->max_texts;
    struct mb_analyzer *an;
    mb_status st;

    if (texts->array.n > max)
        return mb_error_set(&c->err, MB_ERR_TOO_LARGE,
            "%zu texts, max_texts is %llu", texts->array.n,
            (unsigned long long)max);
    st = worker_analyzer(w, coll->settings.language, &an, &c->err);
    if (st != MB_OK)
        return st;
    mb_write_map(&c->w, 3);
    mb_write_kv_uint(&c->w, "dim", mb_lsa_dim(lsa));
    mb_write_kv_uint(&c->w, "generation", coll->generation);
    mb_write_cstr(&c->w, "vectors");
    mb_write_array(&c->w, texts->array.n);
    for (size_t i = 0; i < texts->array.n && st == MB_OK; i++) {
        st = embed_text(c, lsa, an, &texts->array.items[i], i);
    }
    return st;
}

/* By the model: it is asked first, then its vectors are written. */
static mb_status
embed_by_model(struct call *c, uint32_t generation, bool *asks)
{
    const struct mb_value *texts = mb_value_get(c->args, "texts");
    uint64_t max = daemon_config(c->d)->max_texts;
    struct call_answers *a = &c->vectors;
    size_t n = texts->array.n;
    size_t dim;
    mb_status st = reader_check(c->d->reader, "embed", &c->err);

    if (st == MB_OK && n > max)
        st = mb_error_set(&c->err, MB_ERR_TOO_LARGE,
            "%zu texts, max_texts is %llu", n, (unsigned long long)max);
    *asks = a->batch == NULL;
    if (st == MB_OK && *asks)
        st = batch_new(c->d->reader, MB_TASK_EMBED, call_model_deadline(c),
            &a->batch, &c->err);
    for (size_t i = 0; i < n && st == MB_OK && *asks; i++) {
        st = check_text(c, &texts->array.items[i], i);
        if (st == MB_OK)
            st = batch_add(a->batch, mb_slice_of(NULL, 0),
                texts->array.items[i].s, &c->err);
    }
    if (st != MB_OK || *asks)
        return st;
    dim = mb_engine_dim(reader_engine(c->d->reader));
    mb_write_map(&c->w, 3);
    mb_write_kv_uint(&c->w, "dim", dim);
    mb_write_kv_uint(&c->w, "generation", generation);
    mb_write_cstr(&c->w, "vectors");
    mb_write_array(&c->w, n);
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        st = write_vector(c, batch_vector(a->batch, i), dim);
    }
    return st;
}

COMMAND_HANDLER(cmd_embed)
{
    struct mb_snapshot *snap = NULL;
    struct embedding *emb = NULL;
    struct mb_collection coll = {.settings.embedding = MB_EMBED_ANCHOR};
    bool asks = false;
    mb_status st = MB_OK;

    if (mb_value_get(c->args, "collection") != NULL)
        st = call_snapshot(c, &snap, &coll);
    if (st == MB_OK && coll.settings.embedding == MB_EMBED_ANCHOR) {
        st = embed_by_model(c, coll.generation, &asks);
    } else if (st == MB_OK && coll.settings.embedding != MB_EMBED_LSA) {
        st = mb_error_set(&c->err, MB_ERR_MISMATCH,
            "collection %s has no embedding of the daemon's", coll.name);
    } else if (st == MB_OK) {
        st = embedder_ref(c->d->embedder, snap, &coll, &emb, &c->err);
        if (st == MB_OK)
            st = embed(c, w, &coll, embedding_lsa(emb));
    }
    embedder_unref(c->d->embedder, emb);
    mb_snapshot_end(snap);
    *later = st == MB_OK && asks;
    if (*later)
        call_ask(c, &c->vectors);
    return st;
}
