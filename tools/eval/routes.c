/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/routes.c - see routes.h.
 *
 * While the daemon runs it is asked where questions and held-out texts lead;
 * when it has ended, its store tells where each document went. */
#include "routes.h"

#include <stdio.h>
#include <string.h>

#include "mb_banker.h"

#define COLLECTION "facts"
#define BATCH      200u
#define ARENA      ((size_t)64 << 20)

struct job {
    const struct routes_options *o;
    struct routes *out;
    struct own own;
    struct membank *client;
    struct mb_buffer args;
};

static mb_status
call(struct job *j, const char *op, struct membank_reply **reply,
    struct mb_error *err)
{
    struct membank_error cause;

    if (own_is_stopped)
        return mb_error_set(err, MB_ERR_CANCELLED, "stopped");
    if (membank_call(j->client, op, tool_bytes(&j->args), reply, &cause) !=
        MEMBANK_OK)
        return tool_error(&cause, err);
    return MB_OK;
}

/* ---- documents into the daemon ---- */

static mb_status
put_batch(
    struct job *j, size_t first, size_t n, bool waits, struct mb_error *err)
{
    struct world_document d;
    struct mb_writer w;

    mb_buffer_clear(&j->args);
    mb_writer_init(&w, &j->args);
    mb_write_map(&w, waits ? 3 : 2);
    mb_write_kv_cstr(&w, "collection", COLLECTION);
    if (waits)
        mb_write_kv_cstr(&w, "wait", "searchable");
    mb_write_cstr(&w, "documents");
    mb_write_array(&w, n);
    for (size_t i = first; i < first + n; i++) {
        char id[32];

        (void)snprintf(id, sizeof id, "d%zu", i);
        world_document(j->o->world, j->o->stream, i, &d);
        mb_write_map(&w, 2);
        mb_write_kv_cstr(&w, "id", id);
        mb_write_kv_cstr(&w, "text", d.text);
    }
    if (w.status != MB_OK)
        return mb_error_set(err, w.status, "documents");
    return call(j, "put", NULL, err);
}

static mb_status
put_all(struct job *j, struct mb_error *err)
{
    struct membank_create_options opt = {.language = "none", .dim = j->o->dim};
    struct membank_error cause;
    mb_status st = MB_OK;

    if (membank_create(j->client, COLLECTION, &opt, &cause) != MEMBANK_OK)
        return tool_error(&cause, err);
    for (size_t i = 0; st == MB_OK && i < j->o->n_documents; i += BATCH) {
        size_t left = j->o->n_documents - i;

        st = put_batch(j, i, left < BATCH ? left : BATCH, false, err);
    }
    return st == MB_OK ? put_batch(j, 0, 0, true, err) : st;
}

static mb_status
build(struct job *j, struct mb_error *err)
{
    struct mb_writer w;

    mb_buffer_clear(&j->args);
    mb_writer_init(&w, &j->args);
    mb_write_map(&w, 2);
    mb_write_kv_cstr(&w, "collection", COLLECTION);
    mb_write_cstr(&w, "settings");
    mb_write_map(&w, 2);
    mb_write_kv_uint(&w, "fan_out", j->o->fan_out);
    mb_write_kv_uint(&w, "levels", WORLD_LEVELS);
    return call(j, "bank.build", NULL, err);
}

/* ---- questions ---- */

static mb_status
ask(struct job *j, const char *text, struct route *out, struct mb_error *err)
{
    struct membank_reply *reply = NULL;
    struct mb_writer w;

    mb_buffer_clear(&j->args);
    mb_writer_init(&w, &j->args);
    mb_write_map(&w, 2);
    mb_write_kv_cstr(&w, "collection", COLLECTION);
    mb_write_kv_cstr(&w, "text", text);
    mb_status st = call(j, "bank.path", &reply, err);
    if (st != MB_OK)
        return st;
    const struct membank_value *path =
        membank_value_get(membank_reply_result(reply), "path");
    for (size_t l = 0; l < WORLD_LEVELS; l++) {
        const struct membank_value *node = membank_value_get(
            membank_value_get(membank_value_at(path, l), "node"), "node");

        out->node[l] = (uint32_t)membank_value_u64(node, UINT32_MAX);
    }
    membank_reply_free(reply);
    return MB_OK;
}

static mb_status
ask_all(struct job *j, struct mb_error *err)
{
    struct routes *r = j->out;
    mb_status st = MB_OK;

    for (size_t i = 0; st == MB_OK && i < r->n_prompts; i++) {
        mb_token_id tokens[WORLD_PROMPT];
        char text[WORLD_MAX_TEXT];

        (void)world_prompt(j->o->world, i, tokens, text);
        st = ask(j, text, &r->prompts[i], err);
    }
    for (size_t i = 0; st == MB_OK && i < r->n_held_out; i++) {
        struct world_document d;

        world_document(j->o->world, j->o->held_out_stream, i, &d);
        st = ask(j, d.text, &r->held_out[i], err);
    }
    return st;
}

/* ---- where documents went ---- */

static mb_status
route_document(const struct mb_router *router, struct mb_snapshot *snap,
    const struct mb_collection *coll, size_t i, struct route *out,
    struct mb_error *err)
{
    struct mb_document doc;
    struct mb_segment seg;
    struct mb_route route;
    char id[32];

    (void)snprintf(id, sizeof id, "d%zu", i);
    mb_status st = mb_document_find(snap, coll, mb_slice_cstr(id), &doc, err);
    if (st == MB_OK)
        st = mb_segment_get(snap, coll, doc.first_segment, &seg, err);
    if (st == MB_OK)
        st = mb_router_segment(router, snap, coll, &seg, &route, err);
    if (st == MB_OK && route.n != WORLD_LEVELS)
        st = mb_error_set(err, MB_ERR_CORRUPT,
            "document %zu has a path of %zu nodes", i, route.n);
    for (size_t l = 0; st == MB_OK && l < WORLD_LEVELS; l++)
        out->node[l] = route.steps[l].node;
    return st;
}

static mb_status
read_store(struct job *j, struct mb_error *err)
{
    const struct mb_store_options opt = {.read_only = true};
    struct mb_store *store = NULL;
    struct mb_snapshot *snap = NULL;
    struct mb_router *router = NULL;
    struct mb_collection coll;
    char path[TOOL_MAX_FOLDER + 8];

    (void)snprintf(path, sizeof path, "%s/store", j->own.folder);
    mb_status st = mb_store_open(path, &opt, &store, err);
    if (st == MB_OK)
        st = mb_snapshot_begin(store, &snap, err);
    if (st == MB_OK)
        st = mb_collection_get(snap, mb_slice_cstr(COLLECTION), &coll, err);
    if (st == MB_OK)
        st = mb_router_new(snap, &coll, &router, err);
    if (st == MB_OK)
        j->out->n_nodes = mb_tree_n_nodes(mb_router_tree(router));
    for (size_t i = 0; st == MB_OK && i < j->out->n_documents; i++)
        st = route_document(router, snap, &coll, i, &j->out->documents[i], err);
    mb_router_free(router);
    mb_snapshot_end(snap);
    mb_store_close(store);
    return st;
}

static mb_status
by_product(
    const struct routes_options *o, struct routes *out, struct mb_error *err)
{
    struct job j = {.o = o, .out = out};
    mb_status st = tool_temp_folder("membank-eval", j.own.folder, err);

    mb_buffer_init(&j.args, ARENA);
    own_find_tools(&j.own);
    if (st == MB_OK)
        st = own_start(&j.own, NULL, err);
    if (st == MB_OK)
        st = own_reach(&j.own, &j.client, err);
    if (st == MB_OK)
        st = put_all(&j, err);
    if (st == MB_OK)
        st = build(&j, err);
    if (st == MB_OK)
        st = ask_all(&j, err);
    membank_close(j.client);
    own_stop(&j.own);
    if (st == MB_OK)
        st = read_store(&j, err);
    if (j.own.folder[0] != '\0')
        tool_remove_folder(j.own.folder);
    mb_buffer_fini(&j.args);
    return st;
}

/* ---- the oracle ---- */

/* Level by level, a topic's node after another. */
static struct route
route_of_leaf(uint32_t leaf, uint32_t fan_out)
{
    uint32_t k2 = fan_out * fan_out;

    return (struct route){
        {1 + leaf / k2, 1 + fan_out + leaf / fan_out, 1 + fan_out + k2 + leaf}};
}

static void
by_oracle(const struct routes_options *o, struct routes *out)
{
    struct world_document d;

    out->n_nodes = 1 + o->fan_out * (1 + o->fan_out * (1 + o->fan_out));
    for (size_t i = 0; i < out->n_documents; i++) {
        world_document(o->world, o->stream, i, &d);
        out->documents[i] = route_of_leaf(d.leaf, o->fan_out);
    }
    for (size_t i = 0; i < out->n_prompts; i++)
        out->prompts[i] =
            route_of_leaf(world_entity(o->world, i)->leaf, o->fan_out);
    for (size_t i = 0; i < out->n_held_out; i++) {
        world_document(o->world, o->held_out_stream, i, &d);
        out->held_out[i] = route_of_leaf(d.leaf, o->fan_out);
    }
}

/* ---- the whole ---- */

mb_status
routes_make(
    const struct routes_options *o, struct routes *out, struct mb_error *err)
{
    *out = (struct routes){.n_documents = o->n_documents,
        .n_prompts = world_n_entities(o->world) - world_n_late(o->world),
        .n_held_out = o->n_held_out};
    out->documents = mb_calloc(out->n_documents, sizeof *out->documents);
    out->prompts = mb_calloc(out->n_prompts, sizeof *out->prompts);
    out->held_out = mb_calloc(out->n_held_out, sizeof *out->held_out);
    if (out->documents == NULL || out->prompts == NULL || out->held_out == NULL)
        return mb_error_set(
            err, MB_ERR_NOMEM, "paths of %zu documents", o->n_documents);
    if (!o->is_oracle)
        return by_product(o, out, err);
    by_oracle(o, out);
    return MB_OK;
}

void
routes_fini(struct routes *r)
{
    mb_free(r->documents);
    mb_free(r->prompts);
    mb_free(r->held_out);
    *r = (struct routes){0};
}
