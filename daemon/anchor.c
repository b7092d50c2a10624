/* SPDX-License-Identifier: Apache-2.0
 * daemon/anchor.c - embeddings made by the model that reads.
 *
 * Bytes of a generation's embedding: "mbanchor", u32 version, u32 dim, the 16
 * bytes of the model's fingerprint, its name.
 * Threads: anchor_state_of any, the rest mb-job. */
#include "anchor.h"

#include <string.h>

#include "batch.h"

#define MAGIC       "mbanchor"
#define VERSION     1u
#define HEAD        32 /* bytes before the name */
#define MAX_NAME    128
#define BATCH       64 /* segments that are embedded at a time */
#define ARENA_BYTES ((size_t)256 << 20)

/* ---- the generation's bytes ---- */

static mb_status
describe(struct reader *r, struct mb_buffer *out)
{
    const char *name = reader_name(r);
    uint8_t head[HEAD];
    mb_status st;

    memcpy(head, MAGIC, 8);
    mb_put_le32(head + 8, VERSION);
    mb_put_le32(head + 12, (uint32_t)mb_engine_dim(reader_engine(r)));
    reader_fingerprint(r, head + 16);
    st = mb_buffer_append(out, head, sizeof head);
    return st == MB_OK ? mb_buffer_append_str(out, name) : st;
}

mb_status
anchor_state_of(struct reader *r, struct mb_snapshot *snap,
    const struct mb_collection *coll, struct mb_arena *arena, anchor_state *out,
    struct mb_slice *name, struct mb_error *err)
{
    uint8_t fingerprint[READER_FINGERPRINT];
    struct mb_slice bytes;
    mb_status st;

    *out = ANCHOR_NONE;
    if (coll->generation == 0)
        return MB_OK;
    st = mb_generation_embedding(
        snap, coll, coll->generation, arena, &bytes, err);
    if (st != MB_OK)
        return st;
    if (bytes.size < HEAD || memcmp(bytes.data, MAGIC, 8) != 0)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "collection %s: its vectors do not say whose they are", coll->name);
    if (mb_get_le32(bytes.data + 8) != VERSION)
        return mb_error_set(err, MB_ERR_FORMAT,
            "collection %s: vectors of version %u, version %u is known",
            coll->name, mb_get_le32(bytes.data + 8), VERSION);
    if (name != NULL)
        *name = mb_slice_of(bytes.data + HEAD, bytes.size - HEAD);
    *out = ANCHOR_DORMANT;
    if (reader_absence(r) != NULL)
        return MB_OK;
    reader_fingerprint(r, fingerprint);
    if (memcmp(bytes.data + 16, fingerprint, sizeof fingerprint) == 0)
        *out = ANCHOR_LIVE;
    return MB_OK;
}

/* ---- making vectors ---- */

struct sync {
    struct anchor_sync *s;
    struct mb_arena *arena;
    struct mb_collection coll; /* as it is now */
    struct mb_segment segs[BATCH];
    mb_segno segnos[BATCH];
    double part;
};

static mb_status
apply(struct sync *k, struct mb_op *op, struct mb_error *err)
{
    mb_status st = mb_store_apply(k->s->store, op, err);

    mb_op_free(op);
    return st;
}

/* A snapshot and the collection as it is; NOT_FOUND if it was dropped. */
static mb_status
look(struct sync *k, struct mb_snapshot **snap, struct mb_error *err)
{
    struct mb_slice name = mb_slice_cstr(k->s->coll.name);
    mb_status st = mb_snapshot_begin(k->s->store, snap, err);

    if (st == MB_OK)
        st = mb_collection_get(*snap, name, &k->coll, err);
    if (st == MB_OK && (k->coll.id != k->s->coll.id ||
                           k->coll.created_ms != k->s->coll.created_ms))
        st = mb_error_set(err, MB_ERR_NOT_FOUND, "collection %s was dropped",
            k->s->coll.name);
    return st;
}

/* An empty flat generation of this model's, served at once: whatever is there
 * already is found by what is lexical until its vectors are made. */
static mb_status
make_generation(struct sync *k, struct mb_error *err)
{
    struct mb_slice name = mb_slice_cstr(k->coll.name);
    size_t dim = mb_engine_dim(reader_engine(k->s->reader));
    uint32_t generation = 0;
    struct mb_buffer bytes;
    struct mb_op *op;
    mb_status st = mb_op_generation_begin_new(name, &op, err);

    mb_buffer_init(&bytes, HEAD + MAX_NAME);
    if (st == MB_OK) {
        st = mb_store_apply(k->s->store, op, err);
        generation = st == MB_OK ? mb_op_generation_result(op) : 0;
        mb_op_free(op);
    }
    if (st == MB_OK)
        st = describe(k->s->reader, &bytes);
    if (st == MB_OK)
        st = mb_op_generation_model_new(
            name, generation, dim, mb_buffer_slice(&bytes), NULL, &op, err);
    if (st == MB_OK)
        st = apply(k, op, err);
    if (st == MB_OK)
        st = mb_op_generation_switch_new(
            name, generation, UINT32_MAX, 0, &op, err);
    if (st == MB_OK)
        st = apply(k, op, err);
    mb_buffer_fini(&bytes);
    return st;
}

/* Texts of the next segments that have no vector; *n of them. */
static mb_status
gather(struct sync *k, struct mb_snapshot *snap, struct batch *b, size_t *n,
    bool *more, struct mb_error *err)
{
    float vector[MB_MAX_DIM];
    size_t n_segs;
    mb_status st = mb_segment_scan(
        snap, &k->coll, k->s->done_to, BATCH, k->segs, &n_segs, err);

    *n = 0;
    for (size_t i = 0; i < n_segs && st == MB_OK; i++) {
        const struct mb_segment *seg = &k->segs[i];
        struct mb_document doc;
        struct mb_slice text;

        st = mb_vector_get(snap, &k->coll, seg->segno, vector, err);
        if (st != MB_ERR_NOT_FOUND)
            continue;
        st = mb_document_get(snap, &k->coll, seg->docno, &doc, err);
        if (st == MB_OK)
            st = mb_document_text(snap, &k->coll, &doc, seg->start, seg->end,
                k->arena, &text, err);
        if (st == MB_OK)
            st = batch_add(b, mb_slice_of(NULL, 0), text, err);
        k->segnos[*n] = seg->segno;
        *n += 1;
    }
    if (st != MB_OK)
        return st;
    *more = n_segs == BATCH;
    // Kept apart from done_to: these are not stored yet.
    k->segs[0].segno =
        n_segs > 0 ? k->segs[n_segs - 1].segno + 1 : k->coll.next_segno;
    return MB_OK;
}

static bool
stops(void *arg)
{
    struct sync *k = arg;

    return k->s->progress(k->s->arg, "embed", k->part);
}

/* Vectors of the next segments, stored. */
static mb_status
add_some(struct sync *k, bool *more, struct mb_error *err)
{
    struct mb_snapshot *snap = NULL;
    struct batch *b = NULL;
    struct mb_op *op;
    mb_segno next = 0;
    size_t n = 0;
    mb_status st = look(k, &snap, err);

    mb_arena_reset(k->arena);
    if (st == MB_OK)
        st = batch_new(k->s->reader, MB_TASK_EMBED, 0, &b, err);
    if (st == MB_OK)
        st = gather(k, snap, b, &n, more, err);
    mb_snapshot_end(snap);
    next = k->segs[0].segno;
    if (st == MB_OK && n > 0)
        st = batch_wait(b, stops, k, err);
    if (st == MB_OK && n > 0)
        st = mb_op_generation_add_new(mb_slice_cstr(k->coll.name),
            k->coll.generation, mb_engine_dim(reader_engine(k->s->reader)),
            k->segnos, batch_vector(b, 0), NULL, n, &op, err);
    if (st == MB_OK && n > 0)
        st = apply(k, op, err);
    batch_free(b);
    if (st == MB_OK) {
        k->s->done_to = next;
        k->s->n_added += n;
    }
    return st;
}

static mb_status
prepare(struct sync *k, struct mb_error *err)
{
    struct mb_snapshot *snap = NULL;
    mb_status st = look(k, &snap, err);

    if (st == MB_OK)
        st = anchor_state_of(
            k->s->reader, snap, &k->coll, k->arena, &k->s->state, NULL, err);
    mb_snapshot_end(snap);
    if (st != MB_OK || k->s->state == ANCHOR_LIVE ||
        reader_absence(k->s->reader) != NULL)
        return st;
    if (k->s->state == ANCHOR_DORMANT && !k->s->renew)
        return MB_OK;
    k->s->replaced = k->coll.generation;
    k->s->done_to = 0;
    st = make_generation(k, err);
    if (st == MB_OK)
        k->s->state = ANCHOR_LIVE;
    return st;
}

mb_status
anchor_sync_run(struct anchor_sync *s, struct mb_error *err)
{
    struct sync *k = mb_calloc(1, sizeof *k);
    bool more = true;
    mb_status st;

    s->done_to = s->from;
    s->n_added = 0;
    s->replaced = 0;
    if (k == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "vectors");
    k->s = s;
    k->arena = mb_arena_new(ARENA_BYTES);
    st = k->arena != NULL ? prepare(k, err)
                          : mb_error_set(err, MB_ERR_NOMEM, "vectors");
    while (st == MB_OK && s->state == ANCHOR_LIVE && more) {
        k->part = (double)s->done_to / ((double)k->coll.next_segno + 1);
        if (stops(k))
            st = mb_error_set(err, MB_ERR_CANCELLED, "cancelled");
        else
            st = add_some(k, &more, err);
    }
    mb_arena_free(k->arena);
    mb_free(k);
    return st;
}
