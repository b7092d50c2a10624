/* SPDX-License-Identifier: Apache-2.0
 * daemon/embedder.h - embeddings of collections, loaded when first needed.
 *
 * A generation's embedding never changes, so it is loaded once and shared by
 * reference. What nobody uses stays as long as all of it fits into a limit.
 * Threads: any. */
#ifndef DAEMON_EMBEDDER_H
#define DAEMON_EMBEDDER_H

#include "mb_model.h"
#include "mb_store.h"

struct embedder;
struct embedding; /* one generation's, shared */

/* NULL when memory is short. max_bytes is for embeddings not in use. */
struct embedder *embedder_new(size_t max_bytes);
/* All embeddings must have been given back. */
void embedder_free(struct embedder *e);
void embedder_set_max(struct embedder *e, size_t max_bytes);

/* The embedding of the generation that coll serves; give it back with
 * embedder_unref. Errors: NOT_FOUND (none is served yet, or the collection
 * has no embedding of ours), CORRUPT, NOMEM. */
MB_MUST_USE mb_status embedder_ref(struct embedder *e, struct mb_snapshot *snap,
    const struct mb_collection *coll, struct embedding **out,
    struct mb_error *err);
void embedder_unref(struct embedder *e, struct embedding *emb);
const struct mb_lsa *embedding_lsa(const struct embedding *emb);

/* Bytes held, and how many embeddings. */
void embedder_stats(struct embedder *e, uint64_t *bytes, uint64_t *n);

#endif
