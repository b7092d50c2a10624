/* SPDX-License-Identifier: Apache-2.0
 * store/lists.c - vector lists: append, remove, and chunks in place.
 *
 * Every change rewrites whole chunks: old rows are copied out first, since a
 * write may move what was read before it. Chunks that deletes have left nearly
 * empty are merged with the one before.
 * Invariants and threads: lists.h; bytes: FORMAT.md, lists. */
#include "lists.h"

#include <string.h>

#include "record.h"

#define LIST_VERSION 1

/* ---- sizes and keys ---- */

static size_t
row_bytes(size_t dim)
{
    return scan_stride(dim) + 8;
}

size_t
list_chunk_rows(size_t dim)
{
    // MB_MAX_DIM leaves room for seven rows.
    return (LIST_MAX_CHUNK - LIST_HEAD - RECORD_CHECKSUM) / row_bytes(dim);
}

size_t
list_tail_rows(size_t dim)
{
    return (LIST_MAX_TAIL - LIST_HEAD - RECORD_CHECKSUM) / row_bytes(dim);
}

void
list_key_prefix(struct kv_key *key, const struct list_id *id)
{
    kv_key_init(key);
    kv_key_u32(key, id->coll);
    kv_key_u32(key, id->generation);
    if (id->leaf != LIST_ALL_LEAVES) {
        kv_key_u32(key, id->leaf);
    }
}

static void
chunk_key(struct kv_key *key, const struct list_id *id, uint32_t chunk)
{
    list_key_prefix(key, id);
    kv_key_u32(key, chunk);
}

/* The chunk part of a list key. */
static uint32_t
chunk_of(struct mb_slice key)
{
    return mb_get_be32(key.data + key.size - 4);
}

mb_status
list_chunk_view(struct mb_slice value, size_t dim, struct list_chunk *out)
{
    size_t stride = scan_stride(dim);
    size_t n;

    if (value.size < LIST_HEAD + RECORD_CHECKSUM ||
        mb_get_le32(value.data) != LIST_VERSION ||
        mb_get_le32(value.data + 8) != dim) {
        return MB_ERR_CORRUPT;
    }
    n = mb_get_le32(value.data + 4);
    if (n == 0 || n > list_chunk_rows(dim) ||
        value.size != LIST_HEAD + n * row_bytes(dim) + RECORD_CHECKSUM) {
        return MB_ERR_CORRUPT;
    }
    out->n = n;
    out->codes = (const int8_t *)(value.data + LIST_HEAD);
    out->scales = value.data + LIST_HEAD + n * stride;
    out->segments = out->scales + 4 * n;
    return MB_OK;
}

/* ---- rows in memory ---- */

/* Rows copied out of chunks, in three arrays. */
struct row_set {
    size_t dim;
    size_t stride;
    size_t n;
    size_t capacity;
    int8_t *codes;
    uint8_t *scales;
    uint8_t *segments;
};

static mb_status
row_set_init(struct row_set *set, size_t dim, size_t capacity)
{
    uint8_t *p = mb_alloc(capacity * row_bytes(dim));

    if (p == NULL) {
        return MB_ERR_NOMEM;
    }
    *set = (struct row_set){.dim = dim,
        .stride = scan_stride(dim),
        .capacity = capacity,
        .codes = (int8_t *)p};
    set->scales = p + capacity * set->stride;
    set->segments = set->scales + 4 * capacity;
    return MB_OK;
}

static void
row_set_fini(struct row_set *set)
{
    mb_free(set->codes);
}

/* Add rows [from, from + n) of a chunk. */
static void
row_set_add(
    struct row_set *set, const struct list_chunk *chunk, size_t from, size_t n)
{
    MB_ASSERT(n <= set->capacity - set->n);
    memcpy(set->codes + set->n * set->stride, chunk->codes + from * set->stride,
        n * set->stride);
    memcpy(set->scales + 4 * set->n, chunk->scales + 4 * from, 4 * n);
    memcpy(set->segments + 4 * set->n, chunk->segments + 4 * from, 4 * n);
    set->n += n;
}

static void
row_set_add_new(struct row_set *set, const struct list_rows *rows)
{
    MB_ASSERT(rows->n <= set->capacity - set->n);
    memcpy(
        set->codes + set->n * set->stride, rows->codes, rows->n * set->stride);
    for (size_t i = 0; i < rows->n; i++) {
        mb_put_lef32(set->scales + 4 * (set->n + i), rows->scales[i]);
        mb_put_le32(set->segments + 4 * (set->n + i), rows->segments[i]);
    }
    set->n += rows->n;
}

/* Write rows [from, from + n) of the set as one chunk. */
static mb_status
write_chunk(struct kv_txn *txn, const struct list_id *id, uint32_t chunk,
    const struct row_set *set, size_t from, size_t n)
{
    size_t size = LIST_HEAD + n * row_bytes(set->dim) + RECORD_CHECKSUM;
    struct kv_key key;
    uint8_t *p;
    mb_status st;

    chunk_key(&key, id, chunk);
    st = kv_reserve(txn, KV_LISTS, kv_key_slice(&key), size, &p);
    if (st != MB_OK) {
        return st;
    }
    mb_put_le32(p, LIST_VERSION);
    mb_put_le32(p + 4, (uint32_t)n);
    mb_put_le32(p + 8, (uint32_t)set->dim);
    mb_put_le32(p + 12, 0);
    memcpy(p + LIST_HEAD, set->codes + from * set->stride, n * set->stride);
    memcpy(p + LIST_HEAD + n * set->stride, set->scales + 4 * from, 4 * n);
    memcpy(
        p + LIST_HEAD + n * (set->stride + 4), set->segments + 4 * from, 4 * n);
    record_seal(p, size);
    return MB_OK;
}

static mb_status
delete_chunk(struct kv_txn *txn, const struct list_id *id, uint32_t chunk)
{
    struct kv_key key;

    chunk_key(&key, id, chunk);
    return kv_del(txn, KV_LISTS, kv_key_slice(&key));
}

/* ---- append ---- */

/* The end of a list: its tail and its last chunk, views into the map. */
struct list_end {
    bool has_tail;
    bool has_last;
    uint32_t last_key;
    struct list_chunk tail;
    struct list_chunk last;
};

static mb_status
find_end(struct kv_cursor *c, const struct list_id *id, size_t dim,
    struct list_end *end)
{
    struct kv_key prefix;
    struct mb_slice key;
    struct mb_slice value;
    mb_status st;

    memset(end, 0, sizeof(*end));
    list_key_prefix(&prefix, id);
    st = kv_cursor_last_of(c, kv_key_slice(&prefix), &key, &value);
    if (st == MB_OK && chunk_of(key) == LIST_TAIL_KEY) {
        end->has_tail = true;
        st = list_chunk_view(value, dim, &end->tail);
        if (st != MB_OK) {
            return st;
        }
        st = kv_cursor_prev(c, &key, &value);
        if (st == MB_OK && !kv_has_prefix(key, kv_key_slice(&prefix))) {
            return MB_OK;
        }
    }
    if (st == MB_OK) {
        end->has_last = true;
        end->last_key = chunk_of(key);
        st = list_chunk_view(value, dim, &end->last);
    }
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
}

/* A key that no chunk has, for rows that begin with this segment. Rising
 * segments find theirs at once. */
static mb_status
free_key(
    struct kv_txn *txn, const struct list_id *id, uint32_t first, uint32_t *out)
{
    for (uint32_t chunk = first; chunk < LIST_TAIL_KEY; chunk++) {
        struct kv_key key;
        struct mb_slice value;
        mb_status st;

        chunk_key(&key, id, chunk);
        st = kv_get(txn, KV_LISTS, kv_key_slice(&key), &value);
        if (st == MB_ERR_NOT_FOUND) {
            *out = chunk;
            return MB_OK;
        }
        if (st != MB_OK) {
            return st;
        }
    }
    return MB_ERR_TOO_LARGE;
}

/* Cut the set (the last chunk's rows if it is open, tail, new rows) into
 * chunks; what is left over and small becomes the tail. */
static mb_status
write_end(struct kv_txn *txn, const struct list_id *id,
    const struct row_set *set, bool reuse_last, uint32_t last_key,
    bool had_tail)
{
    size_t chunk_rows = list_chunk_rows(set->dim);
    size_t tail_rows = list_tail_rows(set->dim);
    bool keeps_tail = false;

    for (size_t from = 0; from < set->n;) {
        size_t n = set->n - from;
        uint32_t key = last_key;
        mb_status st = MB_OK;

        n = n < chunk_rows ? n : chunk_rows;
        if (!(reuse_last && from == 0)) {
            keeps_tail = n <= tail_rows && from + n == set->n;
            key = LIST_TAIL_KEY;
            if (!keeps_tail) {
                st = free_key(
                    txn, id, mb_get_le32(set->segments + 4 * from), &key);
            }
        }
        if (st == MB_OK) {
            st = write_chunk(txn, id, key, set, from, n);
        }
        if (st != MB_OK) {
            return st;
        }
        from += n;
    }
    return had_tail && !keeps_tail ? delete_chunk(txn, id, LIST_TAIL_KEY)
                                   : MB_OK;
}

mb_status
list_append(struct kv_txn *txn, const struct list_id *id, size_t dim,
    const struct list_rows *rows, struct mb_error *err)
{
    struct kv_cursor *c = NULL;
    struct row_set set = {0};
    struct list_end end;
    bool reuse_last;
    size_t n;
    mb_status st;

    if (rows->n == 0) {
        return MB_OK;
    }
    st = kv_cursor_open(txn, KV_LISTS, &c);
    if (st == MB_OK) {
        st = find_end(c, id, dim, &end);
    }
    if (st != MB_OK) {
        goto out;
    }
    n = end.tail.n + rows->n;
    reuse_last = n > list_tail_rows(dim) && end.has_last &&
                 end.last.n < list_chunk_rows(dim);
    st = row_set_init(&set, dim, n + (reuse_last ? end.last.n : 0));
    if (st != MB_OK) {
        goto out;
    }
    if (reuse_last) {
        row_set_add(&set, &end.last, 0, end.last.n);
    }
    if (end.has_tail) {
        row_set_add(&set, &end.tail, 0, end.tail.n);
    }
    row_set_add_new(&set, rows);
    st = write_end(txn, id, &set, reuse_last, end.last_key, end.has_tail);
out:
    row_set_fini(&set);
    kv_cursor_close(c);
    if (st != MB_OK) {
        return mb_error_set(err, st, "append to list %u of generation %u",
            id->leaf, id->generation);
    }
    return MB_OK;
}

/* ---- remove ---- */

/* Where a segment is. */
struct list_place {
    uint32_t key;
    struct list_chunk chunk;
    size_t row;
};

static bool
find_row(const struct list_chunk *chunk, mb_segno segno, size_t *row)
{
    for (size_t i = 0; i < chunk->n; i++) {
        if (list_segment(chunk, i) == segno) {
            *row = i;
            return true;
        }
    }
    return false;
}

/* Look into the chunk the cursor is on; NOT_FOUND if it is another list's or
 * has not the segment. */
static mb_status
look_into(struct mb_slice prefix, size_t dim, struct mb_slice key,
    struct mb_slice value, mb_segno segno, struct list_place *place)
{
    mb_status st;

    if (!kv_has_prefix(key, prefix)) {
        return MB_ERR_NOT_FOUND;
    }
    place->key = chunk_of(key);
    st = list_chunk_view(value, dim, &place->chunk);
    if (st == MB_OK && !find_row(&place->chunk, segno, &place->row)) {
        st = MB_ERR_NOT_FOUND;
    }
    return st;
}

/* The chunk that a segment is in if segments came in order: the last one with
 * a key not above it, or the tail. */
static mb_status
find_in_order(struct kv_cursor *c, const struct list_id *id, size_t dim,
    mb_segno segno, struct list_place *place)
{
    struct kv_key prefix;
    struct kv_key wanted;
    struct mb_slice key;
    struct mb_slice value;
    mb_status st;

    list_key_prefix(&prefix, id);
    chunk_key(&wanted, id, segno);
    st = kv_cursor_seek(c, kv_key_slice(&wanted), &key, &value);
    if (st == MB_OK && !mb_slice_equal(key, kv_key_slice(&wanted))) {
        st = kv_cursor_prev(c, &key, &value);
    } else if (st == MB_ERR_NOT_FOUND) {
        st = kv_cursor_last(c, &key, &value);
    }
    if (st == MB_OK) {
        st = look_into(kv_key_slice(&prefix), dim, key, value, segno, place);
    }
    if (st == MB_ERR_NOT_FOUND) {
        st = kv_cursor_last_of(c, kv_key_slice(&prefix), &key, &value);
        if (st == MB_OK) {
            st =
                look_into(kv_key_slice(&prefix), dim, key, value, segno, place);
        }
    }
    return st;
}

static mb_status
find_by_walk(struct kv_cursor *c, const struct list_id *id, size_t dim,
    mb_segno segno, struct list_place *place)
{
    struct kv_key prefix;
    struct mb_slice key;
    struct mb_slice value;
    mb_status st;

    list_key_prefix(&prefix, id);
    st = kv_cursor_seek(c, kv_key_slice(&prefix), &key, &value);
    while (st == MB_OK && kv_has_prefix(key, kv_key_slice(&prefix))) {
        st = look_into(kv_key_slice(&prefix), dim, key, value, segno, place);
        if (st != MB_ERR_NOT_FOUND) {
            return st;
        }
        st = kv_cursor_next(c, &key, &value);
    }
    return st == MB_OK ? MB_ERR_NOT_FOUND : st;
}

/* If a chunk got small and the one before has room, put both there. The cursor
 * is not on a chunk any more: the set holds all rows of `key`. */
static mb_status
merge_or_write(struct kv_txn *txn, struct kv_cursor *c,
    const struct list_id *id, uint32_t key, struct row_set *set)
{
    size_t chunk_rows = list_chunk_rows(set->dim);
    struct row_set joined;
    struct list_chunk before;
    struct kv_key own;
    struct kv_key prefix;
    struct mb_slice k;
    struct mb_slice v;
    uint32_t before_key;
    mb_status st;

    list_key_prefix(&prefix, id);
    chunk_key(&own, id, key);
    if (key == LIST_TAIL_KEY || set->n >= chunk_rows / 4 ||
        kv_cursor_seek(c, kv_key_slice(&own), &k, &v) != MB_OK ||
        kv_cursor_prev(c, &k, &v) != MB_OK ||
        !kv_has_prefix(k, kv_key_slice(&prefix))) {
        return write_chunk(txn, id, key, set, 0, set->n);
    }
    before_key = chunk_of(k);
    st = list_chunk_view(v, set->dim, &before);
    if (st != MB_OK) {
        return st;
    }
    if (before.n + set->n > chunk_rows * 3 / 4) {
        return write_chunk(txn, id, key, set, 0, set->n);
    }
    st = row_set_init(&joined, set->dim, before.n + set->n);
    if (st != MB_OK) {
        return st;
    }
    row_set_add(&joined, &before, 0, before.n);
    row_set_add(&joined,
        &(struct list_chunk){.n = set->n,
            .codes = set->codes,
            .scales = set->scales,
            .segments = set->segments},
        0, set->n);
    st = write_chunk(txn, id, before_key, &joined, 0, joined.n);
    if (st == MB_OK) {
        st = delete_chunk(txn, id, key);
    }
    row_set_fini(&joined);
    return st;
}

mb_status
list_remove(struct kv_txn *txn, const struct list_id *id, size_t dim,
    mb_segno segno, struct mb_error *err)
{
    struct kv_cursor *c = NULL;
    struct row_set set = {0};
    struct list_place place;
    mb_status st = kv_cursor_open(txn, KV_LISTS, &c);

    if (st == MB_OK) {
        st = find_in_order(c, id, dim, segno, &place);
    }
    if (st == MB_ERR_NOT_FOUND) {
        st = find_by_walk(c, id, dim, segno, &place);
    }
    if (st != MB_OK) {
        goto out;
    }
    if (place.chunk.n == 1) {
        st = delete_chunk(txn, id, place.key);
        goto out;
    }
    st = row_set_init(&set, dim, place.chunk.n - 1);
    if (st == MB_OK) {
        row_set_add(&set, &place.chunk, 0, place.row);
        row_set_add(
            &set, &place.chunk, place.row + 1, place.chunk.n - place.row - 1);
        st = merge_or_write(txn, c, id, place.key, &set);
    }
out:
    row_set_fini(&set);
    kv_cursor_close(c);
    if (st != MB_OK) {
        return mb_error_set(err, st,
            "remove segment %u from list %u of generation %u", segno, id->leaf,
            id->generation);
    }
    return MB_OK;
}
