/* SPDX-License-Identifier: Apache-2.0
 * store/context_verify.c - are long contexts whole?
 *
 * Names lead to records and back; every block of every run has both its rows,
 * with sound checksums, the sizes that the shape says and its own number; every
 * row is named by a run or noted for erasing; the sizes add up to the figures in
 * records and meta.
 * Threads: as the snapshot's. */
#include "context_rows.h"

#include "verify.h"

struct check {
    struct verify *v;
    struct mb_stored_context *all; /* (n) */
    size_t n;
    uint64_t bytes; /* of rows that are named */
};

static bool
is_named(const struct check *k, uint64_t strip, uint32_t block)
{
    for (size_t i = 0; i < k->n; i++) {
        const struct mb_stored_run *run = context_run_of(&k->all[i], block);

        if (run != NULL && run->strip == strip)
            return true;
    }
    return false;
}

/* A row of a block whose strip and number the key gives. */
static void
check_owner(struct check *k, enum kv_table table, struct mb_slice key,
    uint64_t strip, uint32_t block, size_t bytes)
{
    if (is_named(k, strip, block))
        k->bytes += bytes;
    else if (!context_row_is_erasing(k->v->snap->txn, strip, block))
        verify_broken(k->v, table, key, "block of no context");
}

static mb_status
check_kv(void *arg, struct mb_slice key, struct mb_slice val)
{
    struct check *k = arg;

    if (key.size != 12 || !record_is_sound(val)) {
        verify_broken(
            k->v, KV_BLOCKS, key, "damaged block: %zu bytes", val.size);
        return MB_OK;
    }
    check_owner(k, KV_BLOCKS, key, mb_get_be64(key.data),
        mb_get_be32(key.data + 8), val.size);
    return verify_step(k->v, 0.5, NULL);
}

static void
check_sum(struct check *k, struct mb_slice key, struct mb_slice val)
{
    struct mb_stored_sum sum;

    if (key.size != 13 || context_sum_decode(val, &sum) != MB_OK ||
        sum.block != mb_get_be32(key.data + 9)) {
        verify_broken(
            k->v, KV_CONTEXTS, key, "damaged block: %zu bytes", val.size);
        return;
    }
    check_owner(
        k, KV_CONTEXTS, key, mb_get_be64(key.data), sum.block, val.size);
}

static void
check_own(struct check *k, struct mb_slice key, struct mb_slice val)
{
    uint64_t id = mb_get_be64(key.data);
    const struct mb_stored_context *c = NULL;
    struct mb_slice kv;
    struct mb_slice sum;

    for (size_t i = 0; i < k->n; i++) {
        if (k->all[i].id == id)
            c = &k->all[i];
    }
    if (c == NULL)
        verify_broken(k->v, KV_CONTEXTS, key, "row of no context");
    else if (!record_is_sound(val))
        verify_broken(k->v, KV_CONTEXTS, key, "damaged: %zu bytes", val.size);
    else if (key.data[8] == CONTEXT_ROW_TAIL &&
             (key.size != 13 || mb_get_be32(key.data + 9) >= c->tail_blocks ||
                 !context_tail_decode(val, c, &kv, &sum)))
        verify_broken(k->v, KV_CONTEXTS, key,
            "block of a tail of %u, %zu bytes", (unsigned)c->tail_blocks,
            val.size);
}

static mb_status
check_context_row(void *arg, struct mb_slice key, struct mb_slice val)
{
    struct check *k = arg;

    if (key.size < 9 || key.data[8] > CONTEXT_ROW_TRACE)
        verify_broken(k->v, KV_CONTEXTS, key, "key of no kind of row");
    else if (key.data[8] == CONTEXT_ROW_SUM)
        check_sum(k, key, val);
    else
        check_own(k, key, val);
    return MB_OK;
}

/* Each block of c: are both rows there, of the right size? */
static mb_status
check_blocks(struct check *k, const struct mb_stored_context *c)
{
    struct kv_txn *txn = k->v->snap->txn;
    uint64_t bytes = 0;
    struct kv_key key;

    for (uint32_t block = 0; block < c->n_blocks; block++) {
        const struct mb_stored_run *run = context_run_of(c, block);
        struct mb_slice sum;
        struct mb_slice kv;

        context_sum_key(&key, run->strip, block);
        mb_status st = kv_get(txn, KV_CONTEXTS, kv_key_slice(&key), &sum);
        if (st == MB_OK) {
            context_kv_key(&key, run->strip, block);
            st = kv_get(txn, KV_BLOCKS, kv_key_slice(&key), &kv);
        }
        if (st == MB_ERR_NOT_FOUND) {
            verify_broken(k->v, KV_CONTEXTS, kv_key_slice(&key),
                "context %llu: block %u is missing", (unsigned long long)c->id,
                (unsigned)block);
            continue;
        }
        if (st != MB_OK)
            return st;
        bytes += sum.size + kv.size;
        if (kv.size != context_kv_row(c->shape.kv_bytes))
            verify_broken(k->v, KV_BLOCKS, kv_key_slice(&key),
                "%zu bytes, context %llu has blocks of %zu", kv.size,
                (unsigned long long)c->id, context_kv_row(c->shape.kv_bytes));
    }
    for (uint32_t i = 0; i < c->tail_blocks; i++) {
        struct mb_slice kv;

        context_tail_key(&key, c->id, i);
        mb_status st = kv_get(txn, KV_CONTEXTS, kv_key_slice(&key), &kv);
        if (st == MB_ERR_NOT_FOUND)
            verify_broken(k->v, KV_CONTEXTS, kv_key_slice(&key),
                "block %u of a tail is missing", (unsigned)i);
        else if (st != MB_OK)
            return st;
    }
    context_key(&key, c->id, CONTEXT_ROW_RECORD);
    if (bytes != c->bytes)
        verify_broken(k->v, KV_CONTEXTS, kv_key_slice(&key),
            "has %llu bytes, its record says %llu", (unsigned long long)bytes,
            (unsigned long long)c->bytes);
    return MB_OK;
}

/* A name: its record is there, and has this name. Those that are sound are
 * gathered in k->all. */
static mb_status
check_name(struct check *k, struct mb_arena *arena, struct mb_slice key,
    struct mb_slice val)
{
    size_t head = sizeof META_CONTEXT_PREFIX - 1;
    struct mb_slice name = mb_slice_of(key.data + head, key.size - head);
    struct mb_stored_context *c = &k->all[k->n];
    struct kv_key at;

    k->v->result->n_records++;
    if (val.size != 8) {
        verify_broken(k->v, KV_META, key, "name row has %zu bytes", val.size);
        return MB_OK;
    }
    uint64_t id = mb_get_le64(val.data);
    mb_status st = context_read_id(k->v->snap->txn, id, arena, c, NULL);
    context_key(&at, id, CONTEXT_ROW_RECORD);
    if (st == MB_ERR_NOT_FOUND)
        verify_broken(k->v, KV_META, key, "context %llu has no record",
            (unsigned long long)id);
    else if (st == MB_ERR_CORRUPT)
        verify_broken(k->v, KV_CONTEXTS, kv_key_slice(&at), "damaged record");
    else if (st == MB_OK && !mb_slice_equal(name, mb_slice_cstr(c->name)))
        verify_broken(k->v, KV_META, key, "context %llu has another name",
            (unsigned long long)id);
    else if (st == MB_OK)
        k->n++;
    return st == MB_ERR_NOT_FOUND || st == MB_ERR_CORRUPT ? MB_OK : st;
}

static mb_status
check_names(struct check *k, struct mb_arena *arena, struct kv_cursor *c)
{
    struct mb_slice prefix = mb_slice_cstr(META_CONTEXT_PREFIX);
    struct mb_slice key;
    struct mb_slice val;
    size_t n = 0;
    mb_status st = kv_cursor_seek(c, prefix, &key, &val);

    for (; st == MB_OK && kv_has_prefix(key, prefix); n++) {
        st = kv_cursor_next(c, &key, &val);
    }
    k->all = mb_arena_calloc(arena, n + 1, sizeof *k->all);
    if (k->all == NULL)
        return MB_ERR_NOMEM;
    st = kv_cursor_seek(c, prefix, &key, &val);
    while (st == MB_OK && kv_has_prefix(key, prefix)) {
        st = check_name(k, arena, key, val);
        if (st == MB_OK)
            st = kv_cursor_next(c, &key, &val);
    }
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
}

static mb_status
check_all(struct check *k, struct mb_error *err)
{
    struct mb_slice all = mb_slice_of(NULL, 0);
    mb_status st = MB_OK;
    uint64_t total;

    for (size_t i = 0; i < k->n && st == MB_OK; i++) {
        st = check_blocks(k, &k->all[i]);
    }
    if (st == MB_OK)
        st = verify_walk(k->v, KV_CONTEXTS, all, check_context_row, k, err);
    if (st == MB_OK)
        st = verify_walk(k->v, KV_BLOCKS, all, check_kv, k, err);
    if (st == MB_OK)
        st = context_meta_u64(k->v->snap->txn, META_CONTEXT_BYTES, &total);
    if (st == MB_OK && total != k->bytes)
        verify_broken(k->v, KV_META, mb_slice_cstr(META_CONTEXT_BYTES),
            "is %llu, blocks have %llu bytes", (unsigned long long)total,
            (unsigned long long)k->bytes);
    return st;
}

mb_status
context_verify(struct verify *v, struct mb_error *err)
{
    struct check k = {.v = v};
    struct mb_arena *arena = mb_arena_new(SIZE_MAX / 2);
    struct kv_cursor *c = NULL;
    mb_status st;

    if (arena == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "verify: out of memory");
    st = kv_cursor_open(v->snap->txn, KV_META, &c);
    if (st == MB_OK)
        st = check_names(&k, arena, c);
    kv_cursor_close(c);
    if (st == MB_OK)
        st = check_all(&k, err);
    mb_arena_free(arena);
    return kv_txn_explain(v->snap->txn, st, err);
}
