/* SPDX-License-Identifier: Apache-2.0
 * client/wire/tree.c - from checked bytes to values in an arena.
 *
 * The scan has counted, so all array elements come from one block and all
 * pairs from another, both allocated before the first is filled; a container
 * takes its run of them when its head is read. What the scan could not see is
 * seen here: keys that come twice in one map. Small maps compare each with
 * each; larger ones use a table of hashes, seeded so that nobody outside can
 * choose keys that collide.
 * Threads: any. */
#include "head.h"

#include <string.h>

#define PAIRWISE_MAX 16 /* keys; 120 comparisons of a length at most */

/* A container that is being filled. */
struct fill {
    struct mb_value *items; /* one of the two is not NULL */
    struct mb_pair *pairs;
    size_t n;
    size_t done;
};

struct tree {
    struct mb_slice message;
    size_t at;
    struct mb_value *items; /* next free of each block */
    struct mb_pair *pairs;
    struct mb_arena *arena;
    uint64_t seed;
    size_t depth;
    struct fill fills[WIRE_DEPTH_CAP];
    struct mb_error *err;
};

static void
read_head(struct tree *t, struct head *h)
{
    size_t size = 0;
    head_result result =
        head_read(t->message.data + t->at, t->message.size - t->at, h, &size);
    MB_ASSERT(result == HEAD_OK);
    t->at += size;
}

static struct mb_slice
take_bytes(struct tree *t, const struct head *h)
{
    struct mb_slice s = mb_slice_of(t->message.data + t->at, (size_t)h->n);
    t->at += s.size;
    return s;
}

/* ---- keys that come twice ---- */

static mb_status
duplicate(struct tree *t, struct mb_slice key)
{
    size_t shown = key.size > 64 ? 64 : key.size;
    // Not cut inside a UTF-8 sequence.
    while (shown > 0 && shown < key.size && (key.data[shown] & 0xc0) == 0x80)
        shown--;
    return mb_error_set(t->err, MB_ERR_BAD_MESSAGE,
        "byte %zu: key comes twice in one map: %.*s",
        (size_t)(key.data - t->message.data), (int)shown,
        (const char *)key.data);
}

static mb_status
check_pairwise(struct tree *t, const struct fill *map)
{
    for (size_t i = 1; i < map->n; i++) {
        for (size_t j = 0; j < i; j++) {
            if (mb_slice_equal(map->pairs[i].key, map->pairs[j].key))
                return duplicate(t, map->pairs[i].key);
        }
    }
    return MB_OK;
}

static mb_status
check_by_table(struct tree *t, const struct fill *map)
{
    size_t size = 64;
    while (size < map->n * 2)
        size *= 2;
    // Slots hold the number of a pair plus one.
    uint32_t *slots = mb_calloc(size, sizeof *slots);
    if (!slots)
        return mb_error_set(t->err, MB_ERR_NOMEM, "%zu keys of a map", map->n);
    mb_status st = MB_OK;
    for (size_t i = 0; i < map->n && st == MB_OK; i++) {
        struct mb_slice key = map->pairs[i].key;
        size_t slot = mb_hash64(key.data, key.size, t->seed) & (size - 1);
        while (slots[slot] != 0 && st == MB_OK) {
            if (mb_slice_equal(map->pairs[slots[slot] - 1].key, key))
                st = duplicate(t, key);
            slot = (slot + 1) & (size - 1);
        }
        slots[slot] = (uint32_t)(i + 1);
    }
    mb_free(slots);
    return st;
}

static mb_status
check_keys(struct tree *t, const struct fill *map)
{
    return map->n <= PAIRWISE_MAX ? check_pairwise(t, map)
                                  : check_by_table(t, map);
}

/* ---- values ---- */

/* Read one value into *v; a container is opened, to be filled next. */
static void
read_value(struct tree *t, struct mb_value *v)
{
    struct head h;
    read_head(t, &h);
    v->type = h.type;
    size_t n = (size_t)h.n;
    switch (h.type) {
    case MB_TYPE_NIL:
        v->u = 0;
        break;
    case MB_TYPE_BOOL:
        v->b = h.b;
        break;
    case MB_TYPE_INT:
    case MB_TYPE_UINT:
        v->u = h.u;
        break;
    case MB_TYPE_FLOAT:
        v->f = h.f;
        break;
    case MB_TYPE_STR:
    case MB_TYPE_BIN:
        v->s = take_bytes(t, &h);
        break;
    case MB_TYPE_ARRAY:
        v->array.items = t->items;
        v->array.n = n;
        t->fills[t->depth++] = (struct fill){.items = t->items, .n = n};
        t->items += n;
        break;
    case MB_TYPE_MAP:
        v->map.pairs = t->pairs;
        v->map.n = n;
        t->fills[t->depth++] = (struct fill){.pairs = t->pairs, .n = n};
        t->pairs += n;
        break;
    }
}

/* Fill what read_value opened, innermost first. */
static mb_status
fill_all(struct tree *t)
{
    while (t->depth > 0) {
        struct fill *top = &t->fills[t->depth - 1];
        if (top->done < top->n) {
            size_t i = top->done++;
            if (!top->pairs) {
                read_value(t, &top->items[i]);
                continue;
            }
            struct head key;
            read_head(t, &key);
            top->pairs[i].key = take_bytes(t, &key);
            read_value(t, &top->pairs[i].value);
            continue;
        }
        mb_status st = top->pairs ? check_keys(t, top) : MB_OK;
        if (st != MB_OK)
            return st;
        t->depth--;
    }
    return MB_OK;
}

/* Memory for n structs of this size. */
static mb_status
take_block(
    struct tree *t, size_t n, size_t size, void **out, struct mb_error *err)
{
    size_t bytes;
    if (!mb_size_mul(n, size, &bytes) || bytes > mb_arena_room(t->arena))
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "%zu values need more memory than a request may take", n);
    *out = mb_arena_alloc(t->arena, bytes);
    if (!*out)
        return mb_error_set(err, MB_ERR_NOMEM, "%zu values", n);
    return MB_OK;
}

mb_status
tree_build(struct mb_slice message, const struct scan_counts *counts,
    struct mb_arena *arena, const struct mb_value **out, struct mb_error *err)
{
    struct tree t = {.message = message,
        .arena = arena,
        .seed = mb_clock_ns() ^ (uint64_t)(uintptr_t)&t,
        .err = err};
    void *items = NULL;
    void *pairs = NULL;
    mb_status st = take_block(
        &t, counts->n_items + 1, sizeof(struct mb_value), &items, err);
    if (st == MB_OK)
        st = take_block(
            &t, counts->n_pairs, sizeof(struct mb_pair), &pairs, err);
    if (st != MB_OK)
        return st;
    struct mb_value *root = items;
    t.items = root + 1;
    t.pairs = pairs;
    read_value(&t, root);
    st = fill_all(&t);
    if (st != MB_OK)
        return st;
    MB_ASSERT(t.at == message.size);
    *out = root;
    return MB_OK;
}
