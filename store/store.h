/* SPDX-License-Identifier: Apache-2.0
 * store/store.h - the store object, for the files that work on all of it. */
#ifndef STORE_STORE_H
#define STORE_STORE_H

#include "internal.h"
#include "text.h"

struct writer; /* writer.h */

#define STORE_MAX_UNPACKERS 64 /* kept for reuse */

struct mb_store {
    struct kv *kv;
    struct writer *writer; /* NULL when read-only */
    struct dense_cache *dense;
    struct store_pool *pool; /* idle unpackers */
    struct mb_pool *helper;  /* one thread, or NULL */
};

/* A zstd context for a snapshot, from the idle ones or new; given back when
 * the snapshot ends. Any thread. Errors: NOMEM. */
MB_MUST_USE mb_status store_unpacker_take(
    struct mb_store *store, struct text_unpacker **out);
void store_unpacker_give(struct mb_store *store, struct text_unpacker *u);

#endif
