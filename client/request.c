/* SPDX-License-Identifier: Apache-2.0
 * client/request.c - the calls of membank.h, as requests of the protocol.
 *
 * Each call writes the arguments that its op knows into the client's buffer
 * and hands them to client.c; result.c reads what comes back. Arguments that
 * have their default are left out, so that an older daemon is not asked for
 * what it does not know.
 * Invariants: maps that the caller gives are checked before anything is
 * written; what is counted in request_start is written after it.
 * Threads: the client's own. */
#include "client.h"

#include <string.h>

#include "result.h"

struct mb_slice
client_slice(struct membank_bytes bytes)
{
    return mb_slice_of(bytes.data, bytes.size);
}

membank_status
client_check_map(
    struct membank_bytes bytes, const char *what, struct membank_error *err)
{
    if (bytes.size == 0)
        return MEMBANK_OK;
    struct mb_wire_limits limits = {.max_depth = 64, .max_values = SIZE_MAX};
    struct mb_error cause;
    // Text that is not UTF-8 is the daemon's to refuse, or to repair.
    if (mb_wire_check(client_slice(bytes), &limits, true, &cause) != MB_OK)
        return client_fail(
            err, MEMBANK_ERR_BAD_ARG, "%s: %s", what, cause.text);
    if (!mb_wire_is_map(client_slice(bytes)))
        return client_fail(
            err, MEMBANK_ERR_BAD_ARG, "%s must be a msgpack map", what);
    return MEMBANK_OK;
}

/* For counting arguments that may be absent. */
static size_t
one_if(bool present)
{
    return present ? 1 : 0;
}

static membank_status
need(const void *p, const char *what, struct membank_error *err)
{
    if (p)
        return MEMBANK_OK;
    return client_fail(err, MEMBANK_ERR_BAD_ARG, "%s is missing", what);
}

/* A text with its size, or up to its NUL where that is 0. */
static struct mb_slice
text_slice(const char *text, size_t size)
{
    return mb_slice_of(text, size ? size : strlen(text));
}

/* A vector as little-endian f32. */
static void
write_vector(struct mb_writer *w, const float *vector, size_t dim)
{
    struct mb_buffer bytes;
    mb_buffer_init(&bytes, CLIENT_MAX_REQUEST);
    size_t size;
    mb_status st = mb_size_mul(dim, 4, &size) ? mb_buffer_reserve(&bytes, size)
                                              : MB_ERR_TOO_LARGE;
    if (st == MB_OK) {
        for (size_t i = 0; i < dim; i++)
            mb_put_lef32(bytes.data + 4 * i, vector[i]);
        mb_write_bin(w, mb_slice_of(bytes.data, size));
    } else if (w->status == MB_OK) {
        w->status = st;
    }
    mb_buffer_fini(&bytes);
}

/* ---- ping, collections ---- */

static const struct membank_bytes no_bytes;

membank_status
membank_ping(
    struct membank *mb, struct membank_server *out, struct membank_error *err)
{
    struct request r;
    request_start(&r, mb, "ping", 0, no_bytes);
    struct membank_reply *reply = NULL;
    membank_status st = request_call(&r, &reply, err);
    if (st != MEMBANK_OK)
        return st;
    if (out)
        result_server(reply, out);
    membank_reply_free(reply);
    return MEMBANK_OK;
}

static const char *
embedding_name(membank_embedding kind)
{
    switch (kind) {
    case MEMBANK_EMBED_DEFAULT:
        return NULL;
    case MEMBANK_EMBED_NONE:
        return "none";
    case MEMBANK_EMBED_LSA:
        return "lsa";
    case MEMBANK_EMBED_CLIENT:
        return "client";
    }
    return NULL;
}

static void
write_embedding(struct mb_writer *w, const char *kind, uint32_t dim)
{
    mb_write_cstr(w, "embedding");
    mb_write_map(w, one_if(kind != NULL) + one_if(dim > 0));
    if (kind)
        mb_write_kv_cstr(w, "kind", kind);
    if (dim)
        mb_write_kv_uint(w, "dim", dim);
}

membank_status
membank_create(struct membank *mb, const char *name,
    const struct membank_create_options *opt, struct membank_error *err)
{
    static const struct membank_create_options defaults;
    if (!opt)
        opt = &defaults;
    membank_status st = need(name, "name", err);
    if (st == MEMBANK_OK)
        st = client_check_map(opt->extra, "extra", err);
    if (st != MEMBANK_OK)
        return st;
    const char *kind = embedding_name(opt->embedding);
    bool embedding = kind || opt->dim;
    size_t n_extra = 0;
    struct mb_slice extra = mb_slice_of(NULL, 0);
    if (opt->extra.size > 0)
        extra = mb_wire_map_body(client_slice(opt->extra), &n_extra);
    struct request r;
    request_start(&r, mb, "create", 2 + one_if(opt->exist_ok), no_bytes);
    mb_write_kv_cstr(&r.w, "name", name);
    if (opt->exist_ok)
        mb_write_kv_bool(&r.w, "exist_ok", true);
    mb_write_cstr(&r.w, "settings");
    mb_write_map(
        &r.w, one_if(opt->language != NULL) + one_if(embedding) + n_extra);
    if (opt->language)
        mb_write_kv_cstr(&r.w, "language", opt->language);
    if (embedding)
        write_embedding(&r.w, kind, opt->dim);
    mb_write_raw(&r.w, extra);
    return request_call(&r, NULL, err);
}

membank_status
membank_drop(struct membank *mb, const char *name, struct membank_error *err)
{
    membank_status st = need(name, "name", err);
    if (st != MEMBANK_OK)
        return st;
    struct request r;
    request_start(&r, mb, "drop", 1, no_bytes);
    mb_write_kv_cstr(&r.w, "name", name);
    return request_call(&r, NULL, err);
}

membank_status
membank_collections(
    struct membank *mb, struct membank_reply **out, struct membank_error *err)
{
    struct request r;
    request_start(&r, mb, "collections", 0, no_bytes);
    return request_call(&r, out, err);
}

membank_status
membank_stats(struct membank *mb, const char *collection,
    struct membank_reply **out, struct membank_error *err)
{
    struct request r;
    request_start(&r, mb, "stats", one_if(collection != NULL), no_bytes);
    if (collection)
        mb_write_kv_cstr(&r.w, "collection", collection);
    return request_call(&r, out, err);
}

/* ---- put ---- */

static void
write_fields(struct mb_writer *w, const struct membank_field *fields, size_t n)
{
    mb_write_map(w, n);
    for (size_t i = 0; i < n; i++) {
        mb_write_cstr(w, fields[i].key);
        switch (fields[i].kind) {
        case MEMBANK_FIELD_STR:
            mb_write_cstr(w, fields[i].value.s);
            break;
        case MEMBANK_FIELD_INT:
            mb_write_int(w, fields[i].value.i);
            break;
        case MEMBANK_FIELD_FLOAT:
            mb_write_f64(w, fields[i].value.f);
            break;
        case MEMBANK_FIELD_BOOL:
            mb_write_bool(w, fields[i].value.b);
            break;
        }
    }
}

static membank_status
check_document(const struct membank_document *doc, size_t number,
    struct membank_error *err)
{
    if (!doc->id || !doc->text)
        return client_fail(err, MEMBANK_ERR_BAD_ARG, "document %zu has no %s",
            number, doc->id ? "text" : "id");
    if (doc->meta.size > 0 && doc->n_fields > 0)
        return client_fail(err, MEMBANK_ERR_BAD_ARG,
            "document %zu has both meta and fields", number);
    for (size_t i = 0; i < doc->n_fields; i++) {
        const struct membank_field *f = &doc->fields[i];
        if (!f->key || (f->kind == MEMBANK_FIELD_STR && !f->value.s))
            return client_fail(err, MEMBANK_ERR_BAD_ARG,
                "document %zu: field %zu has no %s", number, i,
                f->key ? "value" : "key");
    }
    return client_check_map(doc->meta, "meta", err);
}

static void
write_document(struct mb_writer *w, const struct membank_document *doc)
{
    bool has_meta = doc->meta.size > 0 || doc->n_fields > 0;
    mb_write_map(w, 2 + one_if(doc->title != NULL) + one_if(has_meta) +
                        one_if(doc->vector != NULL));
    mb_write_kv_cstr(w, "id", doc->id);
    if (doc->title)
        mb_write_kv_cstr(w, "title", doc->title);
    mb_write_kv_str(w, "text", text_slice(doc->text, doc->text_size));
    if (has_meta)
        mb_write_cstr(w, "meta");
    if (doc->meta.size > 0)
        mb_write_raw(w, client_slice(doc->meta));
    else if (has_meta)
        write_fields(w, doc->fields, doc->n_fields);
    if (doc->vector) {
        mb_write_cstr(w, "vector");
        write_vector(w, doc->vector, doc->dim);
    }
}

membank_status
membank_put(struct membank *mb, const char *collection,
    const struct membank_document *docs, size_t n,
    const struct membank_put_options *opt, struct membank_put_result *out,
    struct membank_error *err)
{
    static const struct membank_put_options defaults;
    if (!opt)
        opt = &defaults;
    membank_status st = need(collection, "collection", err);
    if (st == MEMBANK_OK)
        st = client_check_map(opt->extra, "extra", err);
    for (size_t i = 0; i < n && st == MEMBANK_OK; i++)
        st = check_document(&docs[i], i, err);
    if (st != MEMBANK_OK)
        return st;
    struct request r;
    size_t n_args = 2 + one_if(opt->wait_searchable) + one_if(opt->repair_utf8);
    request_start(&r, mb, "put", n_args, opt->extra);
    mb_write_kv_cstr(&r.w, "collection", collection);
    if (opt->wait_searchable)
        mb_write_kv_cstr(&r.w, "wait", "searchable");
    if (opt->repair_utf8)
        mb_write_kv_bool(&r.w, "repair", true);
    mb_write_cstr(&r.w, "documents");
    mb_write_array(&r.w, n);
    for (size_t i = 0; i < n; i++)
        write_document(&r.w, &docs[i]);
    struct membank_reply *reply = NULL;
    st = request_call(&r, &reply, err);
    if (st != MEMBANK_OK)
        return st;
    if (out)
        result_put(reply, out);
    membank_reply_free(reply);
    return MEMBANK_OK;
}

/* ---- get, list, delete ---- */

membank_status
membank_get(struct membank *mb, const char *collection, const char *id,
    struct membank_documents **out, struct membank_error *err)
{
    membank_status st = need(collection, "collection", err);
    if (st == MEMBANK_OK)
        st = need(id, "id", err);
    if (st != MEMBANK_OK)
        return st;
    struct request r;
    request_start(&r, mb, "get", 2, no_bytes);
    mb_write_kv_cstr(&r.w, "collection", collection);
    mb_write_kv_cstr(&r.w, "id", id);
    struct membank_reply *reply = NULL;
    st = request_call(&r, &reply, err);
    return st == MEMBANK_OK ? result_document(reply, out, err) : st;
}

membank_status
membank_list(struct membank *mb, const char *collection, const char *after,
    size_t limit, struct membank_bytes filter, struct membank_documents **out,
    struct membank_error *err)
{
    membank_status st = need(collection, "collection", err);
    if (st == MEMBANK_OK)
        st = client_check_map(filter, "filter", err);
    if (st != MEMBANK_OK)
        return st;
    struct request r;
    request_start(&r, mb, "list",
        1 + one_if(after != NULL) + one_if(limit > 0) + one_if(filter.size > 0),
        no_bytes);
    mb_write_kv_cstr(&r.w, "collection", collection);
    if (after)
        mb_write_kv_cstr(&r.w, "after", after);
    if (limit)
        mb_write_kv_uint(&r.w, "limit", limit);
    if (filter.size > 0) {
        mb_write_cstr(&r.w, "filter");
        mb_write_raw(&r.w, client_slice(filter));
    }
    struct membank_reply *reply = NULL;
    st = request_call(&r, &reply, err);
    return st == MEMBANK_OK ? result_documents(reply, out, err) : st;
}

static membank_status
call_delete(struct request *r, uint64_t *n_deleted, struct membank_error *err)
{
    struct membank_reply *reply = NULL;
    membank_status st = request_call(r, &reply, err);
    if (st != MEMBANK_OK)
        return st;
    if (n_deleted)
        *n_deleted = result_u64(reply, "deleted");
    membank_reply_free(reply);
    return MEMBANK_OK;
}

membank_status
membank_delete(struct membank *mb, const char *collection,
    const char *const *ids, size_t n, uint64_t *n_deleted,
    struct membank_error *err)
{
    membank_status st = need(collection, "collection", err);
    for (size_t i = 0; i < n && st == MEMBANK_OK; i++)
        st = need(ids[i], "id", err);
    if (st != MEMBANK_OK)
        return st;
    struct request r;
    request_start(&r, mb, "delete", 2, no_bytes);
    mb_write_kv_cstr(&r.w, "collection", collection);
    mb_write_cstr(&r.w, "ids");
    mb_write_array(&r.w, n);
    for (size_t i = 0; i < n; i++)
        mb_write_cstr(&r.w, ids[i]);
    return call_delete(&r, n_deleted, err);
}

membank_status
membank_delete_where(struct membank *mb, const char *collection,
    struct membank_bytes filter, uint64_t *n_deleted, struct membank_error *err)
{
    membank_status st = need(collection, "collection", err);
    if (st == MEMBANK_OK)
        st = client_check_map(filter, "filter", err);
    // An empty filter must not come to mean all by accident.
    if (st == MEMBANK_OK && filter.size == 0)
        st = client_fail(err, MEMBANK_ERR_BAD_ARG, "filter is missing");
    if (st != MEMBANK_OK)
        return st;
    struct request r;
    request_start(&r, mb, "delete", 2, no_bytes);
    mb_write_kv_cstr(&r.w, "collection", collection);
    mb_write_cstr(&r.w, "filter");
    mb_write_raw(&r.w, client_slice(filter));
    return call_delete(&r, n_deleted, err);
}

/* ---- search ---- */

static const char *
mode_name(membank_mode mode)
{
    switch (mode) {
    case MEMBANK_MODE_HYBRID:
        return "hybrid";
    case MEMBANK_MODE_DENSE:
        return "dense";
    case MEMBANK_MODE_LEXICAL:
        return "lexical";
    }
    return "unknown"; // the daemon refuses it by name
}

static membank_status
check_query(const struct membank_query_options *opt, struct membank_error *err)
{
    membank_status st = need(opt, "query", err);
    if (st == MEMBANK_OK)
        st = need(opt->collection, "collection", err);
    if (st == MEMBANK_OK && !opt->text && !opt->vector)
        st = client_fail(
            err, MEMBANK_ERR_BAD_ARG, "a query needs text or vector");
    if (st == MEMBANK_OK)
        st = client_check_map(opt->filter, "filter", err);
    if (st == MEMBANK_OK)
        st = client_check_map(opt->extra, "extra", err);
    return st;
}

static void
write_query(struct mb_writer *w, const struct membank_query_options *opt)
{
    mb_write_kv_cstr(w, "collection", opt->collection);
    mb_write_kv_cstr(w, "mode", mode_name(opt->mode));
    if (opt->text)
        mb_write_kv_str(w, "text", text_slice(opt->text, opt->text_size));
    if (opt->vector) {
        mb_write_cstr(w, "vector");
        write_vector(w, opt->vector, opt->dim);
    }
    if (opt->k)
        mb_write_kv_uint(w, "k", opt->k);
    if (opt->filter.size > 0) {
        mb_write_cstr(w, "filter");
        mb_write_raw(w, client_slice(opt->filter));
    }
    if (opt->fields) {
        mb_write_cstr(w, "fields");
        mb_write_array(w, opt->n_fields);
        for (size_t i = 0; i < opt->n_fields; i++)
            mb_write_cstr(w, opt->fields[i]);
    }
}

membank_status
membank_query(struct membank *mb, const struct membank_query_options *opt,
    struct membank_hits **out, struct membank_error *err)
{
    membank_status st = check_query(opt, err);
    if (st != MEMBANK_OK)
        return st;
    size_t n_args = 2 + one_if(opt->text != NULL) +
                    one_if(opt->vector != NULL) + one_if(opt->k > 0) +
                    one_if(opt->filter.size > 0) + one_if(opt->fields != NULL);
    struct request r;
    request_start(&r, mb, "query", n_args, opt->extra);
    write_query(&r.w, opt);
    struct membank_reply *reply = NULL;
    st = request_call(&r, &reply, err);
    return st == MEMBANK_OK ? result_hits(reply, out, err) : st;
}

membank_status
membank_embed(struct membank *mb, const char *collection,
    const char *const *texts, size_t n, struct membank_vectors **out,
    struct membank_error *err)
{
    membank_status st = need(collection, "collection", err);
    for (size_t i = 0; i < n && st == MEMBANK_OK; i++)
        st = need(texts[i], "text", err);
    if (st != MEMBANK_OK)
        return st;
    struct request r;
    request_start(&r, mb, "embed", 2, no_bytes);
    mb_write_kv_cstr(&r.w, "collection", collection);
    mb_write_cstr(&r.w, "texts");
    mb_write_array(&r.w, n);
    for (size_t i = 0; i < n; i++)
        mb_write_cstr(&r.w, texts[i]);
    struct membank_reply *reply = NULL;
    st = request_call(&r, &reply, err);
    return st == MEMBANK_OK ? result_vectors(reply, out, err) : st;
}
