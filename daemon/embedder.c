/* SPDX-License-Identifier: Apache-2.0
 * daemon/embedder.c - embeddings of collections, loaded when first needed.
 *
 * A list in order of use, newest first: there are few (a collection each, two
 * while a refit switches over). Loading happens outside the lock; if two
 * threads load the same one, the second throws its copy away.
 * Invariants: an entry with n_refs > 0 is in the list and not freed; a key
 * (collection, created_ms, generation) names one embedding for ever, even if
 * a collection is dropped and its number used again.
 * Threads: `lock` guards the list and all n_refs. */
#include "embedder.h"

#include <pthread.h>

#define MAX_MODEL_BYTES ((size_t)1 << 30)

struct embedding {
    struct embedding *next;
    mb_collection_id collection;
    uint64_t created_ms;
    uint32_t generation;
    unsigned n_refs;
    size_t bytes;
    struct mb_lsa *lsa;
};

struct embedder {
    pthread_mutex_t lock;
    struct embedding *newest;
    size_t max_bytes;
};

struct embedder *
embedder_new(size_t max_bytes)
{
    struct embedder *e = mb_calloc(1, sizeof *e);

    if (e == NULL)
        return NULL;
    (void)pthread_mutex_init(&e->lock, NULL);
    e->max_bytes = max_bytes;
    return e;
}

static void
embedding_free(struct embedding *emb)
{
    mb_lsa_close(emb->lsa);
    mb_free(emb);
}

void
embedder_free(struct embedder *e)
{
    if (e == NULL)
        return;
    while (e->newest != NULL) {
        struct embedding *next = e->newest->next;

        MB_ASSERT(e->newest->n_refs == 0);
        embedding_free(e->newest);
        e->newest = next;
    }
    (void)pthread_mutex_destroy(&e->lock);
    mb_free(e);
}

static bool
is_of(const struct embedding *emb, const struct mb_collection *coll)
{
    return emb->collection == coll->id && emb->created_ms == coll->created_ms &&
           emb->generation == coll->generation;
}

/* Find and move to the front, with a reference. Under the lock. */
static struct embedding *
take(struct embedder *e, const struct mb_collection *coll)
{
    for (struct embedding **at = &e->newest; *at; at = &(*at)->next) {
        struct embedding *emb = *at;

        if (!is_of(emb, coll))
            continue;
        *at = emb->next;
        emb->next = e->newest;
        e->newest = emb;
        emb->n_refs++;
        return emb;
    }
    return NULL;
}

/* Free those out of use past the limit, oldest first. Under the lock. */
static void
trim(struct embedder *e)
{
    size_t bytes = 0;

    for (struct embedding **at = &e->newest; *at;) {
        struct embedding *emb = *at;

        bytes += emb->bytes;
        if (bytes > e->max_bytes && emb->n_refs == 0) {
            *at = emb->next;
            bytes -= emb->bytes;
            embedding_free(emb);
        } else {
            at = &emb->next;
        }
    }
}

static mb_status
load(struct mb_snapshot *snap, const struct mb_collection *coll,
    struct embedding **out, struct mb_error *err)
{
    struct mb_arena *arena = mb_arena_new(MAX_MODEL_BYTES);
    struct embedding *emb = mb_calloc(1, sizeof *emb);
    struct mb_slice bytes;
    mb_status st;

    if (arena == NULL || emb == NULL) {
        st = mb_error_set(err, MB_ERR_NOMEM, "embedding of %s", coll->name);
        goto out;
    }
    st = mb_generation_embedding(
        snap, coll, coll->generation, arena, &bytes, err);
    if (st == MB_OK)
        st = mb_lsa_open(bytes, &emb->lsa, err);
    if (st != MB_OK)
        goto out;
    emb->collection = coll->id;
    emb->created_ms = coll->created_ms;
    emb->generation = coll->generation;
    emb->bytes = mb_lsa_bytes(emb->lsa);
    *out = emb;
    emb = NULL;
out:
    mb_free(emb);
    mb_arena_free(arena);
    return st;
}

mb_status
embedder_ref(struct embedder *e, struct mb_snapshot *snap,
    const struct mb_collection *coll, struct embedding **out,
    struct mb_error *err)
{
    struct embedding *loaded = NULL;
    struct embedding *emb;
    mb_status st;

    if (coll->settings.embedding != MB_EMBED_LSA || coll->generation == 0)
        return mb_error_set(err, MB_ERR_NOT_FOUND,
            "collection %s has no embedding yet", coll->name);
    (void)pthread_mutex_lock(&e->lock);
    emb = take(e, coll);
    (void)pthread_mutex_unlock(&e->lock);
    if (emb != NULL) {
        *out = emb;
        return MB_OK;
    }
    st = load(snap, coll, &loaded, err);
    if (st != MB_OK)
        return st;
    (void)pthread_mutex_lock(&e->lock);
    emb = take(e, coll);
    if (emb == NULL) {
        emb = loaded;
        loaded = NULL;
        emb->n_refs = 1;
        emb->next = e->newest;
        e->newest = emb;
        trim(e);
    }
    (void)pthread_mutex_unlock(&e->lock);
    if (loaded != NULL)
        embedding_free(loaded);
    *out = emb;
    return MB_OK;
}

void
embedder_unref(struct embedder *e, struct embedding *emb)
{
    if (emb == NULL)
        return;
    (void)pthread_mutex_lock(&e->lock);
    MB_ASSERT(emb->n_refs > 0);
    emb->n_refs--;
    // An older generation is of no more use once the last user lets go.
    if (emb->n_refs == 0)
        trim(e);
    (void)pthread_mutex_unlock(&e->lock);
}

const struct mb_lsa *
embedding_lsa(const struct embedding *emb)
{
    return emb->lsa;
}

void
embedder_set_max(struct embedder *e, size_t max_bytes)
{
    (void)pthread_mutex_lock(&e->lock);
    e->max_bytes = max_bytes;
    trim(e);
    (void)pthread_mutex_unlock(&e->lock);
}

void
embedder_stats(struct embedder *e, uint64_t *bytes, uint64_t *n)
{
    *bytes = 0;
    *n = 0;
    (void)pthread_mutex_lock(&e->lock);
    for (const struct embedding *emb = e->newest; emb; emb = emb->next) {
        *bytes += emb->bytes;
        *n += 1;
    }
    (void)pthread_mutex_unlock(&e->lock);
}
