/* SPDX-License-Identifier: Apache-2.0
 * client/result.c - what came back, in the structs of membank.h.
 *
 * A list of documents or hits is one object: it takes the reply and keeps, in
 * the reply's own arena, an array of structs whose strings are copies with a
 * NUL behind them. Metadata goes back into msgpack, so that the caller gets
 * bytes that stand for themselves. What is missing in a reply reads as absent
 * (0, "", NULL, NaN); what has the wrong type is BAD_MESSAGE.
 * Threads: whoever holds the object. */
#include "result.h"

#include <math.h>
#include <string.h>

uint64_t
result_u64(const struct membank_reply *reply, const char *key)
{
    return membank_value_u64(
        membank_value_get(membank_reply_result(reply), key), 0);
}

/* A string of the result into a field of fixed size, cut if need be. */
static void
copy_str(
    const struct membank_reply *reply, const char *key, char *out, size_t size)
{
    size_t n = 0;
    const char *s = membank_value_str(
        membank_value_get(membank_reply_result(reply), key), &n);
    if (n >= size) {
        n = size - 1;
        // Not inside a UTF-8 sequence.
        while (n > 0 && ((uint8_t)s[n] & 0xc0) == 0x80)
            n--;
    }
    if (n > 0)
        memcpy(out, s, n);
    out[n] = '\0';
}

void
result_server(const struct membank_reply *reply, struct membank_server *out)
{
    *out = (struct membank_server){0};
    copy_str(reply, "version", out->version, sizeof out->version);
    copy_str(reply, "model", out->model, sizeof out->model);
    out->protocol = (uint32_t)result_u64(reply, "protocol");
    out->uptime_s = membank_value_f64(
        membank_value_get(membank_reply_result(reply), "uptime_s"), 0);
    out->max_message_bytes = result_u64(reply, "max_message_bytes");
}

void
result_put(const struct membank_reply *reply, struct membank_put_result *out)
{
    *out = (struct membank_put_result){
        .stored = result_u64(reply, "stored"),
        .replaced = result_u64(reply, "replaced"),
        .unchanged = result_u64(reply, "unchanged"),
        .segments = result_u64(reply, "segments"),
    };
}

/* ---- reading with one error for all ---- */

/* The first failure sticks, as with writers. */
struct reader {
    struct mb_arena *arena;
    mb_status status;
};

/* A string with a NUL behind it; `absent` if it is not there. */
static const char *
read_str(struct reader *r, const struct mb_value *map, const char *key,
    const char *absent, size_t *size)
{
    const struct mb_value *v = mb_value_get(map, key);
    if (size)
        *size = 0;
    if (!v || v->type == MB_TYPE_NIL)
        return absent;
    if (v->type != MB_TYPE_STR) {
        r->status = MB_ERR_BAD_MESSAGE;
        return absent;
    }
    char *copy = mb_arena_strndup(r->arena, (const char *)v->s.data, v->s.size);
    if (!copy)
        r->status = MB_ERR_NOMEM;
    else if (size)
        *size = v->s.size;
    return copy;
}

static uint64_t
read_u64(struct reader *r, const struct mb_value *map, const char *key)
{
    uint64_t n = 0;
    if (mb_arg_u64(map, key, 0, 0, UINT64_MAX, &n, NULL) != MB_OK)
        r->status = MB_ERR_BAD_MESSAGE;
    return n;
}

static double
read_f64(struct reader *r, const struct mb_value *map, const char *key)
{
    const struct mb_value *v = mb_value_get(map, key);
    if (!v || v->type == MB_TYPE_NIL)
        return NAN;
    if (v->type != MB_TYPE_FLOAT && v->type != MB_TYPE_INT)
        r->status = MB_ERR_BAD_MESSAGE;
    return v->type == MB_TYPE_FLOAT ? v->f : (double)v->i;
}

static struct membank_bytes
read_map(struct reader *r, const struct mb_value *map, const char *key)
{
    struct membank_bytes bytes = {0};
    const struct mb_value *v = mb_value_get(map, key);
    if (!v || v->type == MB_TYPE_NIL)
        return bytes;
    if (v->type != MB_TYPE_MAP) {
        r->status = MB_ERR_BAD_MESSAGE;
        return bytes;
    }
    struct mb_buffer buf;
    struct mb_writer w;
    mb_buffer_init(&buf, CLIENT_MAX_REQUEST);
    mb_writer_init(&w, &buf);
    mb_write_value(&w, v);
    void *copy =
        w.status == MB_OK ? mb_arena_dup(r->arena, buf.data, buf.size) : NULL;
    if (copy)
        bytes = (struct membank_bytes){copy, buf.size};
    else
        r->status = MB_ERR_NOMEM;
    mb_buffer_fini(&buf);
    return bytes;
}

static membank_status
bad_result(mb_status st, const char *what, struct membank_error *err)
{
    return st == MB_ERR_NOMEM
               ? client_fail(err, MEMBANK_ERR_NOMEM, "no memory for %s", what)
               : client_fail(err, MEMBANK_ERR_BAD_MESSAGE,
                     "the reply's %s are not of the protocol", what);
}

/* An object that keeps a reply and n structs made from an array in it. */
struct list {
    struct membank_reply *reply;
    struct mb_arena *arena;
    const struct mb_value *items; /* n of them, in the reply */
    void *structs;                /* n of them, zeroed at first */
    size_t n;
};

static void
list_fini(struct list *list)
{
    mb_arena_free(list->arena);
    membank_reply_free(list->reply);
}

/* Takes the reply, also on failure. The array lies under key; without a key
 * the result itself is the only element. */
static mb_status
list_init(struct list *list, struct membank_reply *reply, const char *key,
    size_t struct_size)
{
    *list = (struct list){.reply = reply};
    const struct mb_value *found = reply->result;
    if (!found ||
        (key && mb_arg_array(found, key, true, &found, NULL) != MB_OK))
        return MB_ERR_BAD_MESSAGE;
    size_t n = key ? found->array.n : 1;
    // Bounded by the reply, which is bounded itself.
    list->arena = mb_arena_new(SIZE_MAX);
    if (list->arena)
        list->structs = mb_arena_calloc(list->arena, n, struct_size);
    if (!list->structs)
        return MB_ERR_NOMEM;
    list->items = key ? found->array.items : found;
    list->n = n;
    return MB_OK;
}

/* ---- documents ---- */

struct membank_documents {
    struct list list;
};

static void
read_document(
    struct reader *r, const struct mb_value *v, struct membank_stored *out)
{
    if (v->type != MB_TYPE_MAP)
        r->status = MB_ERR_BAD_MESSAGE;
    out->id = read_str(r, v, "id", "", NULL);
    out->title = read_str(r, v, "title", "", NULL);
    out->text = read_str(r, v, "text", NULL, &out->text_size);
    out->meta = read_map(r, v, "meta");
    out->n_segments = read_u64(r, v, "segments");
    out->n_tokens = read_u64(r, v, "tokens");
    out->text_bytes = read_u64(r, v, "text_bytes");
    out->added_ms = read_u64(r, v, "added_ms");
}

static membank_status
make_documents(struct membank_reply *reply, const char *key,
    struct membank_documents **out, struct membank_error *err)
{
    struct membank_documents *d = mb_calloc(1, sizeof *d);
    if (!d) {
        membank_reply_free(reply);
        return bad_result(MB_ERR_NOMEM, "documents", err);
    }
    struct membank_stored *docs;
    mb_status st = list_init(&d->list, reply, key, sizeof *docs);
    docs = d->list.structs;
    struct reader r = {.arena = d->list.arena, .status = st};
    for (size_t i = 0; i < d->list.n && r.status == MB_OK; i++)
        read_document(&r, &d->list.items[i], &docs[i]);
    if (r.status != MB_OK) {
        membank_documents_free(d);
        return bad_result(r.status, "documents", err);
    }
    *out = d;
    return MEMBANK_OK;
}

membank_status
result_document(struct membank_reply *reply, struct membank_documents **out,
    struct membank_error *err)
{
    return make_documents(reply, NULL, out, err);
}

membank_status
result_documents(struct membank_reply *reply, struct membank_documents **out,
    struct membank_error *err)
{
    return make_documents(reply, "documents", out, err);
}

size_t
membank_documents_count(const struct membank_documents *d)
{
    return d ? d->list.n : 0;
}

const struct membank_stored *
membank_documents_at(const struct membank_documents *d, size_t i)
{
    const struct membank_stored *docs = d ? d->list.structs : NULL;
    return d && i < d->list.n ? &docs[i] : NULL;
}

void
membank_documents_free(struct membank_documents *d)
{
    if (!d)
        return;
    list_fini(&d->list);
    mb_free(d);
}

/* ---- hits ---- */

struct membank_hits {
    struct list list;
    uint64_t took_us;
};

static void
read_hit(struct reader *r, const struct mb_value *v, struct membank_hit *out)
{
    if (v->type != MB_TYPE_MAP)
        r->status = MB_ERR_BAD_MESSAGE;
    out->id = read_str(r, v, "id", "", NULL);
    out->segment = read_u64(r, v, "segment");
    out->score = read_f64(r, v, "score");
    out->dense = read_f64(r, v, "dense");
    out->lexical = read_f64(r, v, "lexical");
    out->start = read_u64(r, v, "start");
    out->end = read_u64(r, v, "end");
    out->text = read_str(r, v, "text", NULL, &out->text_size);
    out->title = read_str(r, v, "title", NULL, NULL);
    out->meta = read_map(r, v, "meta");
}

membank_status
result_hits(struct membank_reply *reply, struct membank_hits **out,
    struct membank_error *err)
{
    struct membank_hits *hits = mb_calloc(1, sizeof *hits);
    if (!hits) {
        membank_reply_free(reply);
        return bad_result(MB_ERR_NOMEM, "hits", err);
    }
    hits->took_us = result_u64(reply, "took_us");
    struct membank_hit *structs;
    mb_status st = list_init(&hits->list, reply, "hits", sizeof *structs);
    structs = hits->list.structs;
    struct reader r = {.arena = hits->list.arena, .status = st};
    for (size_t i = 0; i < hits->list.n && r.status == MB_OK; i++)
        read_hit(&r, &hits->list.items[i], &structs[i]);
    if (r.status != MB_OK) {
        membank_hits_free(hits);
        return bad_result(r.status, "hits", err);
    }
    *out = hits;
    return MEMBANK_OK;
}

size_t
membank_hits_count(const struct membank_hits *hits)
{
    return hits ? hits->list.n : 0;
}

const struct membank_hit *
membank_hits_at(const struct membank_hits *hits, size_t i)
{
    const struct membank_hit *structs = hits ? hits->list.structs : NULL;
    return hits && i < hits->list.n ? &structs[i] : NULL;
}

uint64_t
membank_hits_took_us(const struct membank_hits *hits)
{
    return hits ? hits->took_us : 0;
}

void
membank_hits_free(struct membank_hits *hits)
{
    if (!hits)
        return;
    list_fini(&hits->list);
    mb_free(hits);
}

/* ---- vectors ---- */

struct membank_vectors {
    struct list list; /* of pointers to rows */
    size_t dim;
};

membank_status
result_vectors(struct membank_reply *reply, struct membank_vectors **out,
    struct membank_error *err)
{
    struct membank_vectors *v = mb_calloc(1, sizeof *v);
    if (!v) {
        membank_reply_free(reply);
        return bad_result(MB_ERR_NOMEM, "vectors", err);
    }
    v->dim = (size_t)result_u64(reply, "dim");
    const float **rows;
    mb_status st = list_init(&v->list, reply, "vectors", sizeof *rows);
    rows = v->list.structs;
    if (st == MB_OK && v->dim == 0 && v->list.n > 0)
        st = MB_ERR_BAD_MESSAGE;
    for (size_t i = 0; i < v->list.n && st == MB_OK; i++)
        st = mb_value_vector(&v->list.items[i], "vector", v->dim, v->list.arena,
            &rows[i], NULL, NULL);
    if (st != MB_OK) {
        membank_vectors_free(v);
        return bad_result(st, "vectors", err);
    }
    *out = v;
    return MEMBANK_OK;
}

size_t
membank_vectors_count(const struct membank_vectors *v)
{
    return v ? v->list.n : 0;
}

size_t
membank_vectors_dim(const struct membank_vectors *v)
{
    return v ? v->dim : 0;
}

const float *
membank_vectors_row(const struct membank_vectors *v, size_t i)
{
    const float **rows = v ? v->list.structs : NULL;
    return v && i < v->list.n ? rows[i] : NULL;
}

void
membank_vectors_free(struct membank_vectors *v)
{
    if (!v)
        return;
    list_fini(&v->list);
    mb_free(v);
}
