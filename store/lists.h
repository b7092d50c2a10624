/* SPDX-License-Identifier: Apache-2.0
 * store/lists.h - private to the store: vector lists, in chunks.
 *
 * A leaf's list is a row of chunks, each one value of KV_LISTS that a scan
 * reads in place. Vectors come into a small tail first; a full tail moves into
 * the last chunk. So one vector costs a small write, and a scan sees few
 * chunks. A chunk's key is the first segment it was made with: segments come
 * with rising numbers, so that one is found again by a seek (if not, by a walk
 * over the list: order is a shortcut, never a condition).
 * Invariant: a segment is in at most one list of a generation, once.
 * Threads: append and remove from the writer; views as their transaction. */
#ifndef STORE_LISTS_H
#define STORE_LISTS_H

#include "internal.h"
#include "scan.h"

#define LIST_MAX_CHUNK 32752u /* 8 pages of LMDB less its header: no waste */
#define LIST_MAX_TAIL  4080u  /* one page less its header */
#define LIST_TAIL_KEY  UINT32_MAX
#define LIST_HEAD      16 /* bytes before the codes */
#define LIST_KEY_SIZE  16 /* collection, generation, leaf, chunk */

/* Which list. */
struct list_id {
    mb_collection_id coll;
    uint32_t generation;
    uint32_t leaf;
};

/* A chunk in place: n rows of scan_stride(dim) codes, n scales, n segments. */
struct list_chunk {
    size_t n;
    const int8_t *codes;
    const uint8_t *scales;   /* little-endian f32 */
    const uint8_t *segments; /* little-endian u32 */
};

/* Inline, since a filtered scan does little else. */
static inline mb_segno
list_segment(const struct list_chunk *chunk, size_t i)
{
    const uint8_t *p = chunk->segments + 4 * i;

    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
           (uint32_t)p[3] << 24;
}

/* Rows that fit a chunk; at least 7. */
size_t list_chunk_rows(size_t dim);
/* Rows that fit a tail; may be 0. */
size_t list_tail_rows(size_t dim);

/* Errors: CORRUPT if the sizes do not agree. The checksum is not looked at. */
MB_MUST_USE mb_status list_chunk_view(
    struct mb_slice value, size_t dim, struct list_chunk *out);

/* Key prefix of a list; LIST_ALL_LEAVES: of all lists of the generation. */
#define LIST_ALL_LEAVES UINT32_MAX
void list_key_prefix(struct kv_key *key, const struct list_id *id);

/* Rows to append: codes (n, scan_stride(dim)), scales (n), segments (n). */
struct list_rows {
    size_t n;
    const int8_t *codes;
    const float *scales;
    const mb_segno *segments;
};

/* Errors: NOMEM, CORRUPT, those of kv_put. */
MB_MUST_USE mb_status list_append(struct kv_txn *txn, const struct list_id *id,
    size_t dim, const struct list_rows *rows, struct mb_error *err);
/* Errors: NOT_FOUND, NOMEM, CORRUPT, those of kv_put. */
MB_MUST_USE mb_status list_remove(struct kv_txn *txn, const struct list_id *id,
    size_t dim, mb_segno segno, struct mb_error *err);

#endif
