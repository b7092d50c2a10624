/* SPDX-License-Identifier: Apache-2.0
 * daemon/cmd_write.c - create, drop, put, delete: what changes the store.
 *
 * Each becomes an operation for the store's writer, and the worker goes on:
 * the reply is sent when the commit is done.
 * Threads: a worker prepares, the writer's thread replies. */
#include "cmd_read.h"
#include "memory.h"

#include <string.h>

/* ---- create, drop ---- */

static mb_status
read_kind(
    const struct mb_value *v, mb_embedding_kind *out, struct mb_error *err)
{
    if (mb_slice_equal(v->s, mb_slice_cstr("lsa")))
        *out = MB_EMBED_LSA;
    else if (mb_slice_equal(v->s, mb_slice_cstr("client")))
        *out = MB_EMBED_CLIENT;
    else if (mb_slice_equal(v->s, mb_slice_cstr("none")))
        *out = MB_EMBED_NONE;
    else if (mb_slice_equal(v->s, mb_slice_cstr("anchor")))
        *out = MB_EMBED_ANCHOR;
    else
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "embedding: kind is not lsa, client, anchor or none");
    return MB_OK;
}

/* embedding: a kind by name, or {"kind": ..., "dim": ...}. */
static mb_status
read_embedding(const struct mb_value *v, struct mb_collection_settings *s,
    struct mb_error *err)
{
    const struct mb_value *kind = v;
    uint64_t dim = 0;
    mb_status st = MB_OK;

    if (v->type == MB_TYPE_MAP) {
        kind = mb_value_get(v, "kind");
        st = mb_arg_u64(v, "dim", 0, 0, MB_MAX_DIM, &dim, err);
    }
    if (st != MB_OK)
        return st;
    if (kind == NULL || kind->type != MB_TYPE_STR)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "embedding is neither a kind nor a map with kind and dim");
    s->dim = (uint32_t)dim;
    return read_kind(kind, &s->embedding, err);
}

static mb_status
read_settings(const struct mb_value *map, struct mb_collection_settings *s,
    struct mb_error *err)
{
    const struct mb_value *embedding = mb_value_get(map, "embedding");
    struct mb_slice language = {0};
    uint64_t title_weight;
    double k1;
    double b;
    mb_status st = mb_arg_str(map, "language", false, &language, err);

    if (st == MB_OK && language.size >= sizeof s->language)
        st = mb_error_set(err, MB_ERR_BAD_ARG, "language: no such language");
    if (st == MB_OK)
        st = mb_arg_double(map, "k1", 0, 0, 10, &k1, err);
    if (st == MB_OK)
        st = mb_arg_double(map, "b", -1, 0, 1, &b, err);
    if (st == MB_OK)
        st = mb_arg_u64(
            map, "title_weight", s->title_weight, 0, 16, &title_weight, err);
    if (st != MB_OK)
        return st;
    if (language.size > 0) {
        memcpy(s->language, language.data, language.size);
        s->language[language.size] = 0;
    }
    if (mb_value_get(map, "k1") != NULL)
        s->k1 = (float)k1;
    if (mb_value_get(map, "b") != NULL)
        s->b = (float)b;
    s->title_weight = (uint32_t)title_weight;
    if (embedding != NULL)
        st = read_embedding(embedding, s, err);
    return st == MB_OK ? mb_collection_settings_check(s, err) : st;
}

static void
write_state(struct call *c, const char *state)
{
    mb_write_map(&c->w, 1);
    mb_write_kv_bool(&c->w, state, true);
}

static void
write_dropped(struct call *c, const struct mb_op *op)
{
    (void)op;
    write_state(c, "dropped");
}

/* Hand op over to the writer; the reply follows its commit. */
static mb_status
hand_over(struct call *c, struct mb_op *op,
    void (*write_result)(struct call *c, const struct mb_op *op), bool *later)
{
    mb_status st;

    c->write_result = write_result;
    *later = true;
    st = call_submit(c, op);
    if (st != MB_OK) {
        *later = false;
        mb_op_free(op);
    }
    return st;
}

/* True if the collection is there; for exist_ok without settings. */
static bool
exists(struct call *c, struct mb_slice name)
{
    struct mb_snapshot *snap;
    struct mb_collection coll;
    bool found;

    if (mb_snapshot_begin(c->d->store, &snap, NULL) != MB_OK)
        return false;
    found = mb_collection_get(snap, name, &coll, NULL) == MB_OK;
    mb_snapshot_end(snap);
    return found;
}

/* A collection on its way: the operation that makes it, then its notes. */
struct creation {
    struct call *c;
    struct mb_op *notes[2]; /* NULL where there is nothing more to note */
    size_t next;
};

static void
creation_free(struct creation *cr)
{
    for (size_t i = 0; i < 2; i++) {
        mb_op_free(cr->notes[i]);
    }
    mb_free(cr);
}

/* On the writer's thread, after each of the operations. */
static void
on_created(
    void *arg, struct mb_op *op, mb_status st, const struct mb_error *err)
{
    struct creation *cr = arg;
    struct call *c = cr->c;
    struct mb_error why = {0};

    if (st != MB_OK)
        why = *err;
    mb_op_free(op); // err lies in it
    while (cr->next < 2 && cr->notes[cr->next] == NULL) {
        cr->next++;
    }
    if (st == MB_OK && cr->next < 2) {
        op = cr->notes[cr->next];
        cr->notes[cr->next] = NULL;
        st = mb_store_submit(c->d->store, op, on_created, cr, &why);
        if (st == MB_OK)
            return;
        mb_op_free(op);
    }
    if (st == MB_OK) {
        call_begin(c);
        write_state(c, "created");
    }
    call_finish(c, st, &why);
    creation_free(cr);
}

/* Templates that came with the settings, as notes. */
static mb_status
read_templates(struct creation *cr, struct mb_slice name,
    const struct mb_value *settings, struct mb_error *err)
{
    static const char *const keys[2] = {"template", "passage"};
    mb_status st = MB_OK;

    for (size_t i = 0; i < 2 && st == MB_OK; i++) {
        struct mb_slice text = {0};

        if (settings == NULL || mb_value_get(settings, keys[i]) == NULL)
            continue;
        st = mb_arg_str(settings, keys[i], true, &text, err);
        if (st == MB_OK && text.size > MEMORY_MAX_TEMPLATE)
            st = mb_error_set(err, MB_ERR_TOO_LARGE,
                "%s of %zu bytes, at most %d are possible", keys[i], text.size,
                MEMORY_MAX_TEMPLATE);
        if (st == MB_OK)
            st = mb_op_note_new(name, keys[i], text, &cr->notes[i], err);
    }
    return st;
}

/* Hand over to the writer, with the templates. */
static mb_status
create(struct call *c, struct mb_slice name, const struct mb_value *settings,
    struct mb_op *op, bool *later)
{
    struct creation *cr = mb_calloc(1, sizeof *cr);
    struct mb_error err = {0};
    mb_status st;

    if (cr == NULL) {
        mb_op_free(op);
        return mb_error_set(&c->err, MB_ERR_NOMEM, "create");
    }
    cr->c = c;
    st = read_templates(cr, name, settings, &err);
    *later = st == MB_OK;
    if (st == MB_OK)
        st = mb_store_submit(c->d->store, op, on_created, cr, &err);
    if (st != MB_OK) {
        *later = false;
        c->err = err;
        creation_free(cr);
        mb_op_free(op);
    }
    return st;
}

COMMAND_HANDLER(cmd_create)
{
    const struct mb_value *settings = mb_value_get(c->args, "settings");
    struct mb_collection_settings s = {0};
    struct mb_slice name;
    struct mb_op *op;
    bool exist_ok;
    mb_status st;

    (void)w;
    mb_collection_settings_default(&s);
    st = mb_arg_str(c->args, "name", true, &name, &c->err);
    if (st == MB_OK)
        st = mb_arg_bool(c->args, "exist_ok", false, &exist_ok, &c->err);
    if (st == MB_OK && settings != NULL)
        st = read_settings(settings, &s, &c->err);
    if (st == MB_OK && s.embedding == MB_EMBED_ANCHOR)
        st = reader_check(c->d->reader, "embedding anchor", &c->err);
    if (st != MB_OK)
        return st;
    // Whoever names no settings takes the collection as it is.
    if (exist_ok && settings == NULL && exists(c, name)) {
        mb_write_map(&c->w, 1);
        mb_write_kv_bool(&c->w, "created", false);
        return MB_OK;
    }
    st = mb_op_create_new(name, &s, exist_ok, &op, &c->err);
    return st == MB_OK ? create(c, name, settings, op, later) : st;
}

COMMAND_HANDLER(cmd_drop)
{
    struct mb_slice name;
    struct mb_op *op;
    mb_status st = mb_arg_str(c->args, "name", true, &name, &c->err);

    (void)w;
    if (st == MB_OK)
        st = mb_op_drop_new(name, &op, &c->err);
    return st == MB_OK ? hand_over(c, op, write_dropped, later) : st;
}

/* ---- delete ---- */

static void
write_deleted(struct call *c, const struct mb_op *op)
{
    mb_write_map(&c->w, 1);
    mb_write_kv_uint(&c->w, "deleted", mb_op_delete_result(op));
    jobs_note_change(c->d->jobs);
}

static mb_status
read_ids(struct call *c, const struct mb_value *list, struct mb_slice **out)
{
    uint64_t max = daemon_config(c->d)->max_documents;
    size_t n = list->array.n;
    struct mb_slice *ids = NULL;

    if (n > max)
        return mb_error_set(&c->err, MB_ERR_TOO_LARGE,
            "%zu ids, max_documents is %llu", n, (unsigned long long)max);
    ids = mb_arena_alloc(c->arena, (n + 1) * sizeof *ids);
    if (ids == NULL)
        return mb_error_set(&c->err, MB_ERR_NOMEM, "%zu ids", n);
    for (size_t i = 0; i < n; i++) {
        if (list->array.items[i].type != MB_TYPE_STR)
            return mb_error_set(
                &c->err, MB_ERR_BAD_ARG, "ids: item %zu is not a string", i);
        ids[i] = list->array.items[i].s;
    }
    *out = ids;
    return MB_OK;
}

COMMAND_HANDLER(cmd_delete)
{
    const struct mb_value *list = mb_value_get(c->args, "ids");
    const struct mb_value *filter = mb_value_get(c->args, "filter");
    struct mb_slice collection;
    struct mb_slice *ids = NULL;
    struct mb_op *op;
    mb_status st =
        mb_arg_str(c->args, "collection", true, &collection, &c->err);

    (void)w;
    if (st == MB_OK && (list == NULL) == (filter == NULL))
        st = mb_error_set(
            &c->err, MB_ERR_BAD_ARG, "delete: wants either ids or filter");
    if (st != MB_OK)
        return st;
    if (list != NULL) {
        st = read_ids(c, list, &ids);
        if (st == MB_OK)
            st = mb_op_delete_new(collection, ids, list->array.n, &op, &c->err);
    } else {
        st = mb_op_delete_where_new(collection, filter, &op, &c->err);
    }
    return st == MB_OK ? hand_over(c, op, write_deleted, later) : st;
}

/* ---- put ---- */

struct put_args {
    const struct mb_value *documents;
    struct mb_collection coll;
    bool searchable;
    bool repair;
};

/* A string as it is to be stored: valid UTF-8, made so if repair is asked. */
static mb_status
read_text(
    struct call *c, bool repair, size_t i, const char *key, struct mb_slice *s)
{
    struct mb_buffer fixed;
    size_t offset;
    mb_status st;

    if (mb_utf8_is_valid(*s, &offset))
        return MB_OK;
    if (!repair)
        return mb_error_set(&c->err, MB_ERR_BAD_TEXT,
            "document %zu: %s is not valid UTF-8 at byte %zu; \"repair\": true "
            "would replace it",
            i, key, offset);
    // Each bad byte becomes three at most.
    mb_buffer_init(&fixed, 3 * s->size + 16);
    st = mb_utf8_repair(*s, &fixed);
    if (st == MB_OK) {
        s->data = mb_arena_dup(c->arena, fixed.data, fixed.size);
        s->size = fixed.size;
        if (s->data == NULL)
            st = MB_ERR_NOMEM;
    }
    mb_buffer_fini(&fixed);
    return st == MB_OK
               ? st
               : mb_error_set(&c->err, st, "document %zu: repair %s", i, key);
}

/* Copy a value with its strings made valid. Depth is bounded by the parser. */
static mb_status
repair_value(struct call *c, const struct put_args *a, size_t i,
    const struct mb_value *in, struct mb_value *out)
{
    mb_status st = MB_OK;

    *out = *in;
    if (in->type == MB_TYPE_STR)
        return read_text(c, a->repair, i, "meta", &out->s);
    if (in->type == MB_TYPE_ARRAY) {
        struct mb_value *items =
            mb_arena_calloc(c->arena, in->array.n + 1, sizeof *items);

        if (items == NULL)
            return mb_error_set(&c->err, MB_ERR_NOMEM, "meta");
        for (size_t j = 0; j < in->array.n && st == MB_OK; j++) {
            st = repair_value(c, a, i, &in->array.items[j], &items[j]);
        }
        out->array.items = items;
    } else if (in->type == MB_TYPE_MAP) {
        struct mb_pair *pairs =
            mb_arena_calloc(c->arena, in->map.n + 1, sizeof *pairs);

        if (pairs == NULL)
            return mb_error_set(&c->err, MB_ERR_NOMEM, "meta");
        for (size_t j = 0; j < in->map.n && st == MB_OK; j++) {
            pairs[j].key = in->map.pairs[j].key;
            st = read_text(c, a->repair, i, "meta", &pairs[j].key);
            if (st == MB_OK)
                st = repair_value(
                    c, a, i, &in->map.pairs[j].value, &pairs[j].value);
        }
        out->map.pairs = pairs;
    }
    return st;
}

#define MAX_META_BYTES ((size_t)1 << 20)

static mb_status
read_meta(struct call *c, const struct put_args *a, size_t i,
    const struct mb_value *doc, struct mb_slice *out)
{
    const struct mb_value *meta = mb_value_get(doc, "meta");
    struct mb_value fixed;
    struct mb_buffer packed;
    struct mb_writer w;
    mb_status st;

    if (meta == NULL)
        return MB_OK;
    if (meta->type != MB_TYPE_MAP)
        return mb_error_set(
            &c->err, MB_ERR_BAD_ARG, "document %zu: meta is not a map", i);
    if (meta->map.n == 0)
        return MB_OK;
    st = repair_value(c, a, i, meta, &fixed);
    if (st != MB_OK)
        return st;
    mb_buffer_init(&packed, MAX_META_BYTES);
    mb_writer_init(&w, &packed);
    mb_write_value(&w, &fixed);
    if (w.status != MB_OK)
        st = mb_error_set(&c->err, w.status,
            "document %zu: meta of more than %zu bytes", i, MAX_META_BYTES);
    else if ((out->data = mb_arena_dup(c->arena, packed.data, packed.size)) ==
             NULL)
        st = mb_error_set(&c->err, MB_ERR_NOMEM, "meta");
    out->size = packed.size;
    mb_buffer_fini(&packed);
    return st;
}

static mb_status
read_vector(struct call *c, const struct put_args *a, size_t i,
    const struct mb_value *doc, const float **out)
{
    const struct mb_value *v = mb_value_get(doc, "vector");
    const struct mb_collection *coll = &a->coll;
    const float *given;
    size_t dim;
    mb_status st;

    if (v == NULL)
        return MB_OK;
    if (coll->settings.embedding != MB_EMBED_CLIENT)
        return mb_error_set(&c->err, MB_ERR_MISMATCH,
            "document %zu: collection %s takes no vectors", i, coll->name);
    st = mb_value_vector(
        v, "vector", coll->settings.dim, c->arena, &given, &dim, &c->err);
    if (st == MB_OK)
        st = scale_to_unit(given, dim, "vector", c->arena, out, &c->err);
    return st;
}

static mb_status
read_string(struct call *c, const struct put_args *a, size_t i,
    const struct mb_value *doc, const char *key, bool required,
    struct mb_slice *out)
{
    const struct mb_value *v = mb_value_get(doc, key);

    if (v == NULL && !required)
        return MB_OK;
    if (v == NULL || v->type != MB_TYPE_STR)
        return mb_error_set(&c->err, MB_ERR_BAD_ARG, "document %zu: %s is %s",
            i, key, v == NULL ? "missing" : "not a string");
    *out = v->s;
    return read_text(c, a->repair, i, key, out);
}

static mb_status
read_document(struct call *c, const struct put_args *a, size_t i,
    struct mb_put_document *out)
{
    const struct mb_value *doc = &a->documents->array.items[i];
    mb_status st;

    if (doc->type != MB_TYPE_MAP)
        return mb_error_set(
            &c->err, MB_ERR_BAD_ARG, "document %zu is not a map", i);
    st = read_string(c, a, i, doc, "id", true, &out->id);
    if (st == MB_OK)
        st = read_string(c, a, i, doc, "text", true, &out->text);
    if (st == MB_OK)
        st = read_string(c, a, i, doc, "title", false, &out->title);
    if (st == MB_OK)
        st = read_meta(c, a, i, doc, &out->meta);
    if (st == MB_OK)
        st = read_vector(c, a, i, doc, &out->vector);
    return st;
}

static mb_status
read_put(struct call *c, struct put_args *a)
{
    struct mb_snapshot *snap = NULL;
    struct mb_slice wait = mb_slice_cstr("durable");
    uint64_t max = daemon_config(c->d)->max_documents;
    mb_status st = call_snapshot(c, &snap, &a->coll);

    mb_snapshot_end(snap);
    if (st == MB_OK)
        st = mb_arg_bool(c->args, "repair", false, &a->repair, &c->err);
    if (st == MB_OK && mb_value_get(c->args, "wait") != NULL)
        st = mb_arg_str(c->args, "wait", false, &wait, &c->err);
    if (st != MB_OK)
        return st;
    a->searchable = mb_slice_equal(wait, mb_slice_cstr("searchable"));
    if (!a->searchable && !mb_slice_equal(wait, mb_slice_cstr("durable")))
        return mb_error_set(
            &c->err, MB_ERR_BAD_ARG, "wait is not durable or searchable");
    a->documents = mb_value_get(c->args, "documents");
    if (a->documents->array.n > max)
        return mb_error_set(&c->err, MB_ERR_TOO_LARGE,
            "%zu documents, max_documents is %llu", a->documents->array.n,
            (unsigned long long)max);
    return MB_OK;
}

static void
write_put_result(struct call *c, const struct mb_put_result *r)
{
    mb_write_map(&c->w, 4);
    mb_write_kv_uint(&c->w, "stored", r->stored);
    mb_write_kv_uint(&c->w, "replaced", r->replaced);
    mb_write_kv_uint(&c->w, "unchanged", r->unchanged);
    mb_write_kv_uint(&c->w, "segments", r->segments);
}

/* On the writer's thread, or where a put failed. */
static void
on_put_durable(
    void *arg, const struct put *put, mb_status st, const struct mb_error *err)
{
    struct mb_put_result result;
    struct call *c = arg;

    if (st == MB_OK) {
        indexer_put_result(put, &result);
        call_begin(c);
        write_put_result(c, &result);
        jobs_note_change(c->d->jobs);
    }
    call_finish(c, st, err);
}

static void
on_put_searchable(
    void *arg, const struct put *put, mb_status st, const struct mb_error *err)
{
    struct mb_put_result result;
    struct call *c = arg;

    if (st != MB_OK) {
        call_finish(c, st, err);
        return;
    }
    indexer_put_result(put, &result);
    call_begin(c);
    write_put_result(c, &result);
    jobs_finish_when_searchable(c->d->jobs, c, indexer_put_collection(put));
}

COMMAND_HANDLER(cmd_put)
{
    struct put_args a = {0};
    struct mb_put_document *docs = NULL;
    struct put *put = NULL;
    size_t n = 0;
    mb_status st = read_put(c, &a);

    if (st == MB_OK) {
        n = a.documents->array.n;
        docs = mb_arena_calloc(c->arena, n + 1, sizeof *docs);
        if (docs == NULL)
            st = mb_error_set(&c->err, MB_ERR_NOMEM, "%zu documents", n);
    }
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        st = read_document(c, &a, i, &docs[i]);
    }
    if (st == MB_OK && n > 0)
        st = indexer_prepare(
            c->d->indexer, w, c->arena, &a.coll, docs, n, &put, &c->err);
    if (st != MB_OK)
        return st;
    *later = n > 0 || a.searchable;
    if (n == 0) {
        write_put_result(c, &(struct mb_put_result){0});
        c->is_barrier = true;
        if (a.searchable)
            jobs_finish_when_searchable(c->d->jobs, c, &a.coll);
        return MB_OK;
    }
    server_drop_body(c->rq);
    indexer_submit(
        put, w, a.searchable ? on_put_searchable : on_put_durable, c);
    return MB_OK;
}
