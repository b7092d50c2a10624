/* SPDX-License-Identifier: Apache-2.0
 * daemon/indexer.h - the way of a put: text in, operation out, commit, answer.
 *
 * Segments are cut by the model's tokenizer, the operation is prepared by the
 * store, vectors are folded in by the collection's embedding; then the writer
 * has it, and no worker waits. If another generation is served by the time it
 * is applied, the vectors are made anew and it is submitted again.
 * Threads: any worker prepares and submits; done comes from any thread. */
#ifndef DAEMON_INDEXER_H
#define DAEMON_INDEXER_H

#include "dispatch.h"
#include "embedder.h"

struct indexer;
struct put;

/* Called exactly once for each put that indexer_submit got. Quick, as it may
 * run on the writer's thread; the put is freed after it. */
typedef void (*indexer_done_fn)(
    void *arg, const struct put *put, mb_status st, const struct mb_error *err);

struct indexer_options {
    struct mb_store *store;
    const struct mb_tokenizer *tokenizer;
    struct embedder *embedder;
    struct dispatch *dispatch;
};

/* NULL when memory is short. */
struct indexer *indexer_new(const struct indexer_options *opt);
/* No put may be under way. */
void indexer_free(struct indexer *ix);

/* Prepare documents for coll, as read just now. docs[i].segments is filled in
 * here, from arena. Nothing is kept of docs or arena.
 * Errors: those of mb_segment_text and mb_op_put_new. */
MB_MUST_USE mb_status indexer_prepare(struct indexer *ix, struct worker *w,
    struct mb_arena *arena, const struct mb_collection *coll,
    struct mb_put_document *docs, size_t n, struct put **out,
    struct mb_error *err);
/* Takes put; done tells how it went. */
void indexer_submit(
    struct put *put, struct worker *w, indexer_done_fn done, void *arg);
void indexer_put_free(struct put *put);
void indexer_put_result(const struct put *put, struct mb_put_result *out);
/* The collection as it was when the put was prepared. */
const struct mb_collection *indexer_put_collection(const struct put *put);

/* Stop puts into a collection and wait until those under way are committed;
 * later ones are held back. For the moment in which generations switch, which
 * would not come while puts keep adding segments. */
void indexer_gate_close(struct indexer *ix, mb_collection_id coll);
/* Let them go on; those held back get vectors of this generation. */
void indexer_gate_open(
    struct indexer *ix, mb_collection_id coll, uint32_t generation);

#endif
