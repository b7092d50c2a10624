/* SPDX-License-Identifier: Apache-2.0
 * daemon/bank_windows.c - what the blocks of one subtree are trained on.
 * Threads: the trainer's caller. */
#include "bank_windows.h"

#include <stdlib.h>
#include <string.h>

#define ARENA_BYTES ((size_t)64 << 20)
#define N_PHRASINGS 3
#define MAX_IDS     ((size_t)64 << 20)
#define MIN_HELD    4 /* windows of a leaf of which one is held out at least */

struct keyed {
    uint64_t key;
    uint32_t index;
    uint32_t leaf;
};

static int
compare_key(const void *a, const void *b)
{
    const struct keyed *x = a;
    const struct keyed *y = b;

    return x->key < y->key ? -1 : x->key > y->key;
}

static int
compare_leaf(const void *a, const void *b)
{
    const struct keyed *x = a;
    const struct keyed *y = b;

    if (x->leaf != y->leaf)
        return x->leaf < y->leaf ? -1 : 1;
    return compare_key(a, b);
}

static int
compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a;
    uint32_t y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

/* A segment and its document; STALE if they are gone. */
static mb_status
find(struct mb_snapshot *snap, const struct mb_collection *coll, mb_segno segno,
    struct mb_segment *seg, struct mb_document *doc, struct mb_error *err)
{
    mb_status st = mb_segment_get(snap, coll, segno, seg, err);

    if (st == MB_OK)
        st = mb_document_get(snap, coll, seg->docno, doc, err);
    if (st == MB_ERR_NOT_FOUND)
        st = mb_error_set(err, MB_ERR_STALE, "segment %u is gone", segno);
    return st;
}

/* ---- keys ---- */

static mb_status
make_key(struct mb_snapshot *snap, const struct mb_collection *coll,
    const struct bank_member *m, struct mb_arena *arena, uint64_t *out,
    struct mb_error *err)
{
    struct mb_document doc;
    struct mb_segment seg;
    struct mb_slice text;
    mb_status st = find(snap, coll, m->segno, &seg, &doc, err);

    mb_arena_reset(arena);
    if (st == MB_OK)
        st = mb_document_text(
            snap, coll, &doc, seg.start, seg.end, arena, &text, err);
    if (st == MB_OK)
        *out = mb_hash64(text.data, text.size,
            mb_hash64(doc.id.data, doc.id.size, seg.ordinal));
    return st;
}

/* Those of a leaf whose keys say so, or else the one with the lowest key. */
static void
hold_out(struct bank_windows *w, struct keyed *k, uint32_t one_in)
{
    qsort(k, w->n, sizeof *k, compare_leaf);
    for (size_t i = 0; i < w->n;) {
        size_t end = i;
        size_t held = 0;

        while (end < w->n && k[end].leaf == k[i].leaf) {
            end++;
        }
        for (size_t j = i; j < end && end - i >= MIN_HELD; j++) {
            if (k[j].key % one_in == 0 && held < (end - i) / 2) {
                w->items[k[j].index].is_held_out = true;
                held++;
            }
        }
        if (held == 0 && end - i >= MIN_HELD) {
            w->items[k[i].index].is_held_out = true;
            held++;
        }
        w->n_train += end - i - held;
        i = end;
    }
}

mb_status
bank_windows_make(struct bank_windows *w, struct mb_snapshot *snap,
    const struct mb_collection *coll, const struct mb_banks *bank,
    const struct bank_member *members, size_t n, struct mb_error *err)
{
    struct mb_arena *arena = mb_arena_new(ARENA_BYTES);
    struct keyed *k = mb_calloc(n + 1, sizeof *k);
    mb_status st = mb_token_cache_new(&w->cache);

    w->members = members;
    w->n = n;
    w->n_train = 0;
    w->window = bank->window;
    w->items = mb_calloc(n + 1, sizeof *w->items);
    w->by_key = mb_calloc(n + 1, sizeof *w->by_key);
    mb_buffer_init(&w->ids, MAX_IDS);
    if (st != MB_OK || arena == NULL || k == NULL || w->items == NULL ||
        w->by_key == NULL)
        st = mb_error_set(err, MB_ERR_NOMEM, "%zu windows", n);
    for (size_t i = 0; st == MB_OK && i < n; i++) {
        struct mb_bank_item *item = &w->items[i];

        st = make_key(snap, coll, &members[i], arena, &item->key, err);
        for (size_t l = 0; l < MB_BANK_MAX_LEVELS; l++) {
            item->path[l] =
                l < bank->n_levels ? members[i].path[l] : MB_BANK_NONE;
        }
        k[i] = (struct keyed){.key = item->key,
            .index = (uint32_t)i,
            .leaf = members[i].path[bank->n_levels - 1]};
    }
    if (st == MB_OK) {
        hold_out(w, k, bank->hold_out > 1 ? bank->hold_out : 2);
        qsort(k, n, sizeof *k, compare_key);
        for (size_t i = 0; i < n; i++) {
            w->by_key[i] = k[i].index;
        }
    }
    mb_free(k);
    mb_arena_free(arena);
    return st;
}

void
bank_windows_fini(struct bank_windows *w)
{
    const struct mb_tokenizer *tokenizer = w->tokenizer;

    mb_token_cache_free(w->cache);
    mb_buffer_fini(&w->ids);
    mb_free(w->items);
    mb_free(w->by_key);
    *w = (struct bank_windows){.tokenizer = tokenizer};
}

uint64_t
bank_windows_hash(const struct bank_windows *w, uint64_t seed)
{
    uint64_t h = seed;

    for (size_t i = 0; i < w->n; i++) {
        const struct mb_bank_item *item = &w->items[w->by_key[i]];
        uint64_t held = item->is_held_out;

        h = mb_hash64(&item->key, sizeof item->key, h);
        h = mb_hash64(item->path, sizeof item->path, h);
        h = mb_hash64(&held, sizeof held, h);
    }
    return h;
}

/* The member with this key; n if there is none. */
static size_t
index_of(const struct bank_windows *w, uint64_t key)
{
    size_t lo = 0;
    size_t hi = w->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;

        if (w->items[w->by_key[mid]].key < key)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < w->n && w->items[w->by_key[lo]].key == key ? w->by_key[lo]
                                                           : w->n;
}

uint64_t
bank_windows_documents(
    const struct bank_windows *w, const uint64_t *keys, size_t n)
{
    uint32_t *docs = mb_calloc(n + 1, sizeof *docs);
    uint64_t count = 0;

    if (docs == NULL)
        return 0;
    for (size_t i = 0; i < n; i++) {
        size_t m = index_of(w, keys[i]);

        docs[i] = m < w->n ? w->members[m].docno : 0;
    }
    qsort(docs, n, sizeof *docs, compare_u32);
    for (size_t i = 0; i < n; i++) {
        count += i == 0 || docs[i] != docs[i - 1];
    }
    mb_free(docs);
    return count;
}

/* ---- phrasings ---- */

/* To the next start of a character. */
static uint64_t
character_at(struct mb_slice text, uint64_t at)
{
    while (at < text.size && (text.data[at] & 0xc0) == 0x80) {
        at++;
    }
    return at;
}

/* The window's text in this epoch's phrasing, in arena. */
static mb_status
phrase(struct mb_snapshot *snap, const struct mb_collection *coll,
    const struct bank_member *m, uint64_t epoch, struct mb_arena *arena,
    struct mb_buffer *out, struct mb_error *err)
{
    static const char *const before[N_PHRASINGS] = {"", "", "What is "};
    static const char *const behind[N_PHRASINGS] = {"\n", "\n", "?\n"};
    uint64_t p = epoch % N_PHRASINGS;
    struct mb_document doc;
    struct mb_segment seg;
    struct mb_slice text;
    uint64_t size;
    uint64_t at = 0;
    mb_status st = find(snap, coll, m->segno, &seg, &doc, err);

    if (st != MB_OK)
        return st;
    size = seg.end - seg.start;
    st = mb_document_text(snap, coll, &doc, seg.start,
        seg.end + (p == 1 ? size / 2 : 0), arena, &text, err);
    if (st != MB_OK)
        return st;
    // Shifted by half, if there is enough text behind it.
    if (p == 1 && text.size > size)
        at = character_at(text, size / 2);
    if (doc.title.size > 0) {
        st = mb_buffer_append_str(out, before[p]);
        if (st == MB_OK)
            st = mb_buffer_append(out, doc.title.data, doc.title.size);
        if (st == MB_OK)
            st = mb_buffer_append_str(out, behind[p]);
    }
    if (st == MB_OK)
        st = mb_buffer_append(out, text.data + at, text.size - at);
    return st == MB_OK ? st : mb_error_set(err, st, "a window");
}

/* The text may end within a character: what a shift cuts off is left out. */
static struct mb_slice
whole_characters(struct mb_slice text)
{
    size_t offset;

    if (!mb_utf8_is_valid(text, &offset))
        text.size = offset;
    return text;
}

mb_status
bank_windows_get(struct bank_windows *w, struct mb_store *store,
    const struct mb_collection *coll, uint64_t key, uint64_t epoch,
    mb_token_id *tokens, mb_token_id *targets, size_t *n, struct mb_error *err)
{
    size_t i = index_of(w, key);
    mb_token_id bos = mb_tokenizer_bos(w->tokenizer);
    size_t n_head = bos >= 0 && mb_tokenizer_adds_bos(w->tokenizer) ? 1 : 0;
    struct mb_arena *arena = mb_arena_new(ARENA_BYTES);
    struct mb_snapshot *snap = NULL;
    struct mb_buffer text;
    size_t n_ids;
    mb_status st;

    if (i == w->n || arena == NULL) {
        mb_arena_free(arena);
        return mb_error_set(err, i == w->n ? MB_ERR_STALE : MB_ERR_NOMEM,
            "a window of %zu", w->n);
    }
    mb_buffer_init(&text, ARENA_BYTES);
    mb_buffer_clear(&w->ids);
    st = mb_snapshot_begin(store, &snap, err);
    if (st == MB_OK)
        st = phrase(snap, coll, &w->members[i], epoch, arena, &text, err);
    mb_snapshot_end(snap);
    if (st == MB_OK)
        st = mb_tokenizer_encode(w->tokenizer, w->cache,
            whole_characters(mb_buffer_slice(&text)), &w->ids, err);
    if (st == MB_OK) {
        const struct mb_token *ids = (const void *)w->ids.data;

        n_ids = w->ids.size / sizeof *ids;
        if (n_ids + n_head > w->window)
            n_ids = w->window - n_head;
        if (n_head > 0)
            tokens[0] = bos;
        for (size_t t = 0; t < n_ids; t++) {
            tokens[n_head + t] = ids[t].id;
        }
        *n = n_head + n_ids;
        for (size_t t = 0; t < *n; t++) {
            targets[t] = t + 1 < *n ? tokens[t + 1] : -1;
        }
        if (*n == 0)
            st = mb_error_set(err, MB_ERR_BAD_ARG, "an empty window");
    }
    mb_buffer_fini(&text);
    mb_arena_free(arena);
    return st;
}
