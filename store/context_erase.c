/* SPDX-License-Identifier: Apache-2.0
 * store/context_erase.c - blocks that no context names any more.
 *
 * What a context loses is compared with the runs of all that are left. The rest
 * is noted in meta in the same transaction, and the writer erases it in slices
 * when it has nothing better to do: a context of a million tokens has four
 * gigabytes. A noted range is erased from its end, so that its first row stays
 * until all are gone: whoever looks whether a place is free sees it taken.
 * Invariants: a noted range is named by no context, and all its rows are there.
 * Threads: writer, but for the looks. */
#include "context_rows.h"

/* ---- what is left of a range ---- */

struct release {
    struct wtxn *w;
    const struct mb_stored_context *all; /* (n) */
    size_t n;
    uint64_t bytes; /* released */
};

/* Note [first, end) of a strip, which nobody names. */
static mb_status
note_range(struct release *r, uint64_t strip, uint32_t first, uint32_t end)
{
    uint8_t val[4];
    struct kv_key key;

    for (uint32_t block = first; block < end; block++) {
        uint64_t bytes;
        mb_status st = context_row_bytes(r->w->txn, strip, block, &bytes);

        if (st != MB_OK)
            return st;
        r->bytes += bytes;
    }
    mb_put_le32(val, end);
    context_erase_key(&key, strip, first);
    r->w->erased = true;
    r->w->dropped = true;
    return kv_put(
        r->w->txn, KV_META, kv_key_slice(&key), mb_slice_of(val, sizeof val));
}

/* The first part of [first, end) that somebody names; false if nobody does. */
static bool
find_named(const struct release *r, uint64_t strip, uint32_t first,
    uint32_t end, struct mb_stored_run *out)
{
    bool found = false;

    for (size_t i = 0; i < r->n; i++) {
        for (size_t k = 0; k < r->all[i].n_runs; k++) {
            struct mb_stored_run run = r->all[i].runs[k];

            if (run.strip != strip || run.first >= end || run.end <= first)
                continue;
            if (run.first < first)
                run.first = first;
            if (run.end > end)
                run.end = end;
            if (!found || run.first < out->first)
                *out = run;
            found = true;
        }
    }
    return found;
}

static mb_status
release_run(struct release *r, const struct mb_stored_run *lost)
{
    uint32_t first = lost->first;
    mb_status st = MB_OK;

    while (first < lost->end && st == MB_OK) {
        struct mb_stored_run named = {lost->strip, lost->end, lost->end};

        (void)find_named(r, lost->strip, first, lost->end, &named);
        if (named.first > first)
            st = note_range(r, lost->strip, first, named.first);
        first = named.end;
    }
    return st;
}

mb_status
context_rows_release(struct wtxn *w, const struct mb_stored_run *lost,
    size_t n_lost, const struct mb_stored_context *all, size_t n)
{
    struct release r = {.w = w, .all = all, .n = n};
    mb_status st = MB_OK;
    uint64_t total;
    uint8_t val[8];

    for (size_t i = 0; i < n_lost && st == MB_OK; i++) {
        st = release_run(&r, &lost[i]);
    }
    if (st == MB_OK)
        st = context_meta_u64(w->txn, META_CONTEXT_BYTES, &total);
    if (st != MB_OK || r.bytes == 0)
        return st;
    mb_put_le64(val, total > r.bytes ? total - r.bytes : 0);
    return kv_put(w->txn, KV_META, mb_slice_cstr(META_CONTEXT_BYTES),
        mb_slice_of(val, sizeof val));
}

/* ---- erasing ---- */

struct range {
    uint64_t strip;
    uint32_t first;
    uint32_t end;
};

static bool
parse_range(struct mb_slice key, struct mb_slice val, struct range *out)
{
    size_t head = sizeof META_ERASE_PREFIX - 1;

    if (key.size != head + 12 || val.size != 4)
        return false;
    out->strip = mb_get_be64(key.data + head);
    out->first = mb_get_be32(key.data + head + 8);
    out->end = mb_get_le32(val.data);
    return true;
}

/* The first range that is noted. Errors: NOT_FOUND, CORRUPT. */
static mb_status
first_range(struct kv_txn *txn, struct range *out)
{
    struct mb_slice prefix = mb_slice_cstr(META_ERASE_PREFIX);
    struct mb_slice key;
    struct mb_slice val;
    struct kv_cursor *c;
    mb_status st = kv_cursor_open(txn, KV_META, &c);

    if (st != MB_OK)
        return st;
    st = kv_cursor_seek(c, prefix, &key, &val);
    if (st == MB_OK && !kv_has_prefix(key, prefix))
        st = MB_ERR_NOT_FOUND;
    if (st == MB_OK && !parse_range(key, val, out))
        st = MB_ERR_CORRUPT;
    kv_cursor_close(c);
    return st;
}

mb_status
context_is_erasing(struct kv_txn *txn, bool *out)
{
    struct range range;
    mb_status st = first_range(txn, &range);

    *out = st == MB_OK;
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
}

bool
context_row_is_erasing(struct kv_txn *txn, uint64_t strip, uint32_t block)
{
    struct kv_key at;
    struct mb_slice key;
    struct mb_slice val;
    struct kv_cursor *c;
    struct range range = {0, 0, 0};

    // The last range that begins at or before the block.
    context_erase_key(&at, strip, block);
    if (kv_cursor_open(txn, KV_META, &c) != MB_OK)
        return false;
    mb_status st = kv_cursor_seek(c, kv_key_slice(&at), &key, &val);
    if (st == MB_OK && !mb_slice_equal(key, kv_key_slice(&at)))
        st = kv_cursor_prev(c, &key, &val);
    else if (st == MB_ERR_NOT_FOUND)
        st = kv_cursor_last(c, &key, &val);
    bool is = st == MB_OK &&
              kv_has_prefix(key, mb_slice_cstr(META_ERASE_PREFIX)) &&
              parse_range(key, val, &range) && range.strip == strip &&
              block >= range.first && block < range.end;
    kv_cursor_close(c);
    return is;
}

static mb_status
erase_block(struct wtxn *w, uint64_t strip, uint32_t block)
{
    struct kv_key key;

    context_sum_key(&key, strip, block);
    mb_status st = kv_del(w->txn, KV_CONTEXTS, kv_key_slice(&key));
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return st;
    context_kv_key(&key, strip, block);
    st = kv_del(w->txn, KV_BLOCKS, kv_key_slice(&key));
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
}

mb_status
context_erase_slice(struct wtxn *w, size_t max, bool *done)
{
    struct range range;
    struct kv_key key;
    uint8_t val[4];

    *done = false;
    for (;;) {
        mb_status st = first_range(w->txn, &range);
        if (st == MB_ERR_NOT_FOUND) {
            *done = true;
            return MB_OK;
        }
        if (st != MB_OK || max == 0)
            return st;
        w->changed = true;
        w->erased = true;
        for (; max > 0 && range.end > range.first; max--) {
            st = erase_block(w, range.strip, --range.end);
            if (st != MB_OK)
                return st;
        }
        context_erase_key(&key, range.strip, range.first);
        mb_put_le32(val, range.end);
        st = range.end > range.first
                 ? kv_put(w->txn, KV_META, kv_key_slice(&key),
                       mb_slice_of(val, sizeof val))
                 : kv_del(w->txn, KV_META, kv_key_slice(&key));
        if (st != MB_OK)
            return st;
    }
}
