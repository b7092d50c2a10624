/* SPDX-License-Identifier: Apache-2.0
 * model/special.c - pieces that are found in a text before all else.
 *
 * A set keeps its texts in a hash table, and for each first byte the sizes
 * that occur, so that a place costs one look at a byte, or a few hashes.
 * Threads: a set is immutable; a scan belongs to one thread. */
#include "special.h"

#include <stdlib.h>
#include <string.h>

#include "vocab.h"

/* ---- names ---- */

/* As llama.cpp knows them; of many models, none of which says all in its
 * metadata. Behind its control names stand those that open a message in the
 * templates of chat.c. */
static const char *const end_names[] = {"</s>", "<eos>", "<EOT>", "_<EOT>",
    "[EOT]", "[EOS]", "<|end|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>",
    "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<|endoftext|>",
    "<|end_of_text|>", "<end_of_turn>", "<end_of_utterance>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|fim_pad|>", "<fim-pad>",
    "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>",
    "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"};
static const char *const control_names[] = {"<|fim_prefix|>", "<fim-prefix>",
    "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>", "\u2581<PRE>",
    "<|code_prefix|>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>",
    "<\uff5cfim\u2581hole\uff5c>", "<SUF>", "\u2581<SUF>", "<|code_suffix|>",
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>",
    "<\uff5cfim\u2581end\uff5c>", "<MID>", "\u2581<MID>", "<|code_middle|>",
    "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|begin_of_text|>", "<|system|>", "<|user|>", "<|assistant|>"};

static bool
is_in(const char *const *names, size_t n, struct mb_slice piece)
{
    for (size_t i = 0; i < n; i++) {
        if (mb_slice_equal(piece, mb_slice_cstr(names[i])))
            return true;
    }
    return false;
}

bool
special_is_end(struct mb_slice piece)
{
    return is_in(end_names, sizeof(end_names) / sizeof(end_names[0]), piece);
}

bool
special_is_control(struct mb_slice piece)
{
    /* Nearly all pieces are told by their last byte. */
    if (piece.size < 5 || piece.size > 40 ||
        (piece.data[piece.size - 1] != '>' &&
            piece.data[piece.size - 1] != ']')) {
        return false;
    }
    return special_is_end(piece) ||
           is_in(control_names,
               sizeof(control_names) / sizeof(control_names[0]), piece);
}

/* ---- sets ---- */

struct mb_slice
special_text(const struct mb_tokenizer *tok, mb_token_id id)
{
    if (tok->type[id] == TYPE_USER)
        return vocab_text(tok, id);
    return mb_tokenizer_piece(tok, id);
}

mb_token_id
special_find(const struct special_set *set, const struct mb_tokenizer *tok,
    const uint8_t *text, size_t size)
{
    if (set->n == 0)
        return -1;
    uint64_t h = mb_hash64(text, size, 0);
    for (size_t i = h & set->slot_mask;; i = (i + 1) & set->slot_mask) {
        const struct piece_slot *slot = &set->slots[i];
        if (slot->id < 0)
            return -1;
        if (slot->tag == (uint32_t)(h >> 32)) {
            struct mb_slice s = special_text(tok, slot->id);
            if (s.size == size && memcmp(s.data, text, size) == 0)
                return slot->id;
        }
    }
}

static void
add_text(
    struct special_set *set, const struct mb_tokenizer *tok, mb_token_id id)
{
    struct mb_slice text = special_text(tok, id);
    uint64_t h = mb_hash64(text.data, text.size, 0);
    size_t i = h & set->slot_mask;
    while (set->slots[i].id >= 0 &&
           !mb_slice_equal(special_text(tok, set->slots[i].id), text)) {
        i = (i + 1) & set->slot_mask;
    }
    set->slots[i] = (struct piece_slot){(uint32_t)(h >> 32), id};
    uint64_t *pairs = set->pairs[text.data[0]];
    if (text.size > 1)
        pairs[text.data[1] >> 6] |= (uint64_t)1 << (text.data[1] & 63);
    else
        memset(pairs, 0xff, sizeof(set->pairs[0]));
}

/* Falling. */
static int
compare_keys(const void *a, const void *b)
{
    uint64_t x = 0;
    uint64_t y = 0;
    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Fill the lists of sizes. keys has room for n numbers. */
static void
list_sizes(struct special_set *set, const struct mb_tokenizer *tok,
    const mb_token_id *ids, size_t n, uint64_t *keys)
{
    for (size_t i = 0; i < n; i++) {
        struct mb_slice text = special_text(tok, ids[i]);
        /* Falling by key is rising by first byte. */
        keys[i] = (uint64_t)(255 - text.data[0]) << 32 | (uint32_t)text.size;
    }
    qsort(keys, n, sizeof(*keys), compare_keys);
    uint32_t at = 0;
    size_t byte = 0;
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && keys[i] == keys[i - 1])
            continue;
        for (; byte <= 255 - (keys[i] >> 32); byte++)
            set->sizes_at[byte] = at;
        set->sizes[at++] = (uint32_t)keys[i];
    }
    for (; byte <= 256; byte++)
        set->sizes_at[byte] = at;
    for (size_t i = 0; i < n; i++)
        keys[i] = (uint32_t)keys[i];
    qsort(keys, n, sizeof(*keys), compare_keys);
    for (size_t i = 0; i < n; i++) {
        if (i == 0 || keys[i] != keys[i - 1])
            set->all_sizes[set->n_sizes++] = (uint32_t)keys[i];
    }
}

mb_status
special_set_init(struct special_set *set, const struct mb_tokenizer *tok,
    const mb_token_id *ids, size_t n_ids)
{
    size_t n_slots = 16;
    *set = (struct special_set){0};
    if (n_ids == 0)
        return MB_OK;
    while (n_slots < 2 * n_ids)
        n_slots *= 2;
    uint64_t *keys = mb_calloc(n_ids, sizeof(*keys));
    set->slots = mb_alloc(n_slots * sizeof(*set->slots));
    set->sizes = mb_calloc(n_ids, sizeof(*set->sizes));
    set->all_sizes = mb_calloc(n_ids, sizeof(*set->all_sizes));
    if (!keys || !set->slots || !set->sizes || !set->all_sizes) {
        mb_free(keys);
        special_set_fini(set);
        return MB_ERR_NOMEM;
    }
    set->n = n_ids;
    set->slot_mask = n_slots - 1;
    for (size_t i = 0; i < n_slots; i++)
        set->slots[i] = (struct piece_slot){0, -1};
    for (size_t i = 0; i < n_ids; i++)
        add_text(set, tok, ids[i]);
    list_sizes(set, tok, ids, n_ids, keys);
    mb_free(keys);
    return MB_OK;
}

void
special_set_fini(struct special_set *set)
{
    mb_free(set->slots);
    mb_free(set->sizes);
    mb_free(set->all_sizes);
    *set = (struct special_set){0};
}

mb_token_id
special_longest(const struct special_set *set, const struct mb_tokenizer *tok,
    struct mb_slice text, size_t pos)
{
    uint8_t first = text.data[pos];
    uint8_t second = text.size - pos > 1 ? text.data[pos + 1] : 0;
    if (!(set->pairs[first][second >> 6] >> (second & 63) & 1) &&
        text.size - pos > 1) {
        return -1;
    }
    for (size_t i = set->sizes_at[first]; i < set->sizes_at[first + 1]; i++) {
        if (set->sizes[i] > text.size - pos)
            continue;
        mb_token_id id = special_find(set, tok, text.data + pos, set->sizes[i]);
        if (id >= 0)
            return id;
    }
    return -1;
}

/* ---- scans ---- */

void
special_scan_fini(struct special_scan *scan)
{
    mb_free(scan->hits);
    *scan = (struct special_scan){0};
}

static mb_status
add_hit(struct special_scan *scan, struct special_hit hit)
{
    if (scan->n_hits == scan->room) {
        size_t room = scan->room + scan->room / 2 + 16;
        size_t bytes = 0;
        struct special_hit *p = NULL;
        if (mb_size_mul(room, sizeof(*p), &bytes))
            p = mb_realloc(scan->hits, bytes);
        if (!p)
            return MB_ERR_NOMEM;
        scan->hits = p;
        scan->room = room;
    }
    scan->hits[scan->n_hits++] = hit;
    return MB_OK;
}

static int
compare_hits(const void *a, const void *b)
{
    const struct special_hit *x = a;
    const struct special_hit *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

/* Hits of one size in [start, end), which no longer one covers. */
static mb_status
sweep(struct special_scan *scan, const struct mb_tokenizer *tok, size_t start,
    size_t end, uint32_t size)
{
    for (size_t p = start; p + size <= end;) {
        const uint8_t *at = scan->text.data + p;
        mb_token_id id = -1;
        if (scan->set->sizes_at[*at] < scan->set->sizes_at[*at + 1])
            id = special_find(scan->set, tok, at, size);
        if (id < 0) {
            p++;
            continue;
        }
        mb_status st = add_hit(scan, (struct special_hit){p, p + size, id});
        if (st != MB_OK)
            return st;
        p += size;
    }
    return MB_OK;
}

/* Choose among the overlapping pieces of [start, end): size by size, falling,
 * in what is left between the hits so far. */
static mb_status
resolve(struct special_scan *scan, const struct mb_tokenizer *tok, size_t start,
    size_t end)
{
    size_t base = scan->n_hits;
    for (size_t i = 0; i < scan->set->n_sizes; i++) {
        uint32_t size = scan->set->all_sizes[i];
        size_t n = scan->n_hits;
        size_t from = start;
        if (size > end - start)
            continue;
        for (size_t k = base; k <= n; k++) {
            size_t upto = k < n ? scan->hits[k].start : end;
            mb_status st = sweep(scan, tok, from, upto, size);
            if (st != MB_OK)
                return st;
            if (k < n)
                from = scan->hits[k].end;
        }
        if (scan->n_hits > n)
            qsort(scan->hits + base, scan->n_hits - base, sizeof(*scan->hits),
                compare_hits);
    }
    return MB_OK;
}

/* Take the region that begins at `start`, where a piece does. */
static mb_status
take_region(
    struct special_scan *scan, const struct mb_tokenizer *tok, size_t start)
{
    mb_token_id first = special_longest(scan->set, tok, scan->text, start);
    size_t end = start + special_text(tok, first).size;
    size_t n = 1;
    for (size_t p = start + 1; p < end; p++) {
        mb_token_id id = special_longest(scan->set, tok, scan->text, p);
        if (id < 0)
            continue;
        size_t stop = p + special_text(tok, id).size;
        end = stop > end ? stop : end;
        n++;
    }
    scan->scanned = end;
    if (n == 1)
        return add_hit(scan, (struct special_hit){start, end, first});
    return resolve(scan, tok, start, end);
}

mb_status
special_scan_next(struct special_scan *scan, const struct special_set *set,
    const struct mb_tokenizer *tok, struct mb_slice text, size_t pos,
    size_t upto, const struct special_hit **out)
{
    *out = NULL;
    if (scan->set != set || scan->text.data != text.data ||
        scan->text.size != text.size || pos < scan->from ||
        pos > scan->scanned) {
        scan->set = set;
        scan->text = text;
        scan->from = pos;
        scan->scanned = pos;
        scan->n_hits = 0;
        scan->first = 0;
    }
    while (scan->first > 0 && scan->hits[scan->first - 1].start >= pos)
        scan->first--;
    for (;;) {
        while (
            scan->first < scan->n_hits && scan->hits[scan->first].start < pos) {
            scan->first++;
        }
        if (scan->first < scan->n_hits) {
            const struct special_hit *hit = &scan->hits[scan->first];
            *out = hit->start < upto ? hit : NULL;
            return MB_OK;
        }
        scan->from = scan->scanned;
        scan->n_hits = 0;
        scan->first = 0;
        size_t p = scan->scanned;
        while (
            p < text.size && p < upto && special_longest(set, tok, text, p) < 0)
            p++;
        scan->scanned = p;
        if (p >= text.size || p >= upto)
            return MB_OK;
        mb_status st = take_region(scan, tok, p);
        if (st != MB_OK)
            return st;
    }
}
