/* SPDX-License-Identifier: Apache-2.0
 * model/tokenizer.c - encode and decode, unit by unit.
 *
 * `llama` (SentencePiece): a text is a row of characters; the adjacent pair
 * that makes the piece of the best score is merged (the leftmost of equals)
 * until no pair makes a piece. Characters that are no piece become one token
 * for each of their bytes. A space stands in front of every text (where the
 * vocabulary asks for that). `gpt2` (byte-level BPE): a rule cuts the text into
 * words, whose bytes are merged in the order of a list of pairs.
 *
 * Two ideas make `llama` fast and keep it exact:
 * - Everything works on the text's own bytes. Pieces write the space as U+2581;
 *   they are turned to plain spaces once, at load, and the text never changes.
 *   So the literal character U+2581 of a text is in no piece, goes through
 *   byte tokens, and decodes to itself.
 * - Two characters that stand side by side in no piece are never merged over.
 *   Between them a text falls into units whose tokens do not depend on each
 *   other: mostly words with the space before them. A bitmap of the pairs
 *   that do occur (exact for ASCII, hashed for others: a false hit only makes
 *   a longer unit) finds the places. This holds for every vocabulary, also for
 *   one whose pieces have spaces inside.
 * Units of `gpt2` are its words. For both a bounded table of units seen before
 * answers nineteen times in twenty.
 *
 * Where llama.cpp differs, `llama`: (1) a literal U+2581 is a space there, so
 * it cannot be told apart on the way back; (2) there, merges may run into
 * control and byte tokens ("<s>" in a text may become bos), here only normal,
 * unused and user-defined pieces are made from text; (3) a vocabulary without a
 * piece for the space gives the bytes of U+2581 there, and byte 0x20 here; (4)
 * after a user-defined piece it puts another space in front of the rest, which
 * decoding could not undo; here such a piece is one token and its surroundings
 * stay. `gpt2`: (5) bytes that are not UTF-8 become U+FFFD there and stay what
 * they are here; (6) its decoding may leave out the space before "," and the
 * like. prompt.c, for texts with control tokens, does as llama.cpp in (4).
 *
 * Invariants: sizes of the tokens of a text add up to its size.
 * Threads: a tokenizer is immutable; a mb_token_cache belongs to one thread. */
#include "tokenizer.h"
#include "vocab.h"

#include <string.h>

/* One unit seen before: a cache line. */
struct word {
    uint8_t size; /* 0: empty */
    uint8_t n_ids;
    uint8_t text[30];
    mb_token_id ids[8];
};

_Static_assert(sizeof(struct word) == 64, "a word fills one cache line");

#define WORD_TEXT sizeof(((struct word *)0)->text)
#define WORD_IDS  (sizeof(((struct word *)0)->ids) / sizeof(mb_token_id))
#define WORD_BITS 16 /* 65,536 words, 4 MiB */

struct symbol {
    uint32_t start;
    uint32_t size; /* 0: merged into the one before */
    int32_t prev;
    int32_t next;
    mb_token_id id; /* -1: no piece; of `gpt2` a symbol, see bpe.h */
};

struct merge {
    uint64_t key;  /* order among merges, then left symbol: least first */
    uint32_t size; /* of both when this was found; else it is stale */
    mb_token_id id;
};

/* ---- working memory ---- */

mb_status
mb_token_cache_new(struct mb_token_cache **out)
{
    struct mb_token_cache *cache = mb_calloc(1, sizeof(*cache));
    if (!cache)
        return MB_ERR_NOMEM;
    cache->words = mb_calloc((size_t)1 << WORD_BITS, sizeof(struct word));
    if (!cache->words) {
        mb_free(cache);
        return MB_ERR_NOMEM;
    }
    *out = cache;
    return MB_OK;
}

void
mb_token_cache_free(struct mb_token_cache *cache)
{
    if (!cache)
        return;
    tok_end(cache);
    mb_free(cache->words);
    mb_free(cache);
}

void
tok_begin(const struct mb_tokenizer *tok, struct mb_token_cache *work)
{
    size_t bytes = ((size_t)1 << WORD_BITS) * sizeof(struct word);
    work->scan.set = NULL; // another text may lie where the last one did
    if (!work->words)
        return;
    if (memcmp(work->owner, tok->fingerprint, sizeof(work->owner)) != 0)
        memset(work->words, 0, bytes);
    memcpy(work->owner, tok->fingerprint, sizeof(work->owner));
}

void
tok_end(struct mb_token_cache *work)
{
    mb_free(work->unit);
    mb_free(work->symbols);
    mb_free(work->heap);
    mb_free(work->ids);
    special_scan_fini(&work->scan);
    work->unit = NULL;
    work->symbols = NULL;
    work->heap = NULL;
    work->ids = NULL;
    work->unit_room = 0;
    work->symbols_room = 0;
    work->heap_room = 0;
    work->ids_room = 0;
}

/* Room for n elements in an array that grows by halves; NULL if it cannot be
 * had (the old one stays). */
static void *
grow(void *array, size_t *room, size_t n, size_t element)
{
    size_t want = n;
    size_t bytes = 0;
    if (!mb_size_add(n, n / 2 + 64, &want) ||
        !mb_size_mul(want, element, &bytes)) {
        return NULL;
    }
    void *p = mb_realloc(array, bytes);
    if (p)
        *room = want;
    return p;
}

/* Room for a unit of n bytes: that many symbols and ids; each symbol puts one
 * pair on the heap at first and each merge at most one more than it takes. */
static mb_status
make_room(struct mb_token_cache *work, size_t n)
{
    if (n > work->symbols_room) {
        void *p =
            grow(work->symbols, &work->symbols_room, n, sizeof(struct symbol));
        if (!p)
            return MB_ERR_NOMEM;
        work->symbols = p;
    }
    if (2 * n > work->heap_room) {
        void *p =
            grow(work->heap, &work->heap_room, 2 * n, sizeof(struct merge));
        if (!p)
            return MB_ERR_NOMEM;
        work->heap = p;
    }
    if (n > work->ids_room) {
        void *p = grow(work->ids, &work->ids_room, n, sizeof(mb_token_id));
        if (!p)
            return MB_ERR_NOMEM;
        work->ids = p;
    }
    return MB_OK;
}

/* ---- merging ---- */

static void
heap_push(struct merge *heap, size_t *n, struct merge m)
{
    size_t i = (*n)++;
    while (i > 0 && m.key < heap[(i - 1) / 2].key) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = m;
}

static struct merge
heap_pop(struct merge *heap, size_t *n)
{
    struct merge top = heap[0];
    struct merge last = heap[--(*n)];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= *n)
            break;
        if (child + 1 < *n && heap[child + 1].key < heap[child].key)
            child++;
        if (heap[child].key >= last.key)
            break;
        heap[i] = heap[child];
        i = child;
    }
    if (*n > 0)
        heap[i] = last;
    return top;
}

/* Numbers that rise as scores fall. */
static uint32_t
rank_of_score(float score)
{
    uint8_t bytes[4];
    mb_put_lef32(bytes, score + 0.0f); // of two zeros one
    uint32_t bits = mb_get_le32(bytes);
    return bits >> 31 ? bits : ~bits ^ 0x80000000u;
}

/* If the symbol and its right neighbour can be merged, put that on the heap. */
static void
consider(const struct mb_tokenizer *tok, const uint8_t *text,
    const struct symbol *sym, int32_t left, struct merge *heap, size_t *n_heap)
{
    if (left < 0 || sym[left].next < 0)
        return;
    const struct symbol *l = &sym[left];
    const struct symbol *r = &sym[l->next];
    struct merge m = {(uint32_t)left, l->size + r->size, -1};
    if (tok->is_bpe) {
        const struct bpe_pair *pair = bpe_find(tok->bpe, l->id, r->id);
        if (!pair)
            return;
        m.id = pair->result;
        m.key |= (uint64_t)pair->rank << 32;
    } else {
        m.id = vocab_find(tok, text + l->start, m.size);
        if (m.id < 0)
            return;
        m.key |= (uint64_t)rank_of_score(tok->score[m.id]) << 32;
    }
    heap_push(heap, n_heap, m);
}

/* The row of single bytes. */
static size_t
make_byte_symbols(
    const struct mb_tokenizer *tok, struct mb_slice unit, struct symbol *sym)
{
    for (size_t i = 0; i < unit.size; i++) {
        sym[i] = (struct symbol){(uint32_t)i, 1, (int32_t)i - 1, (int32_t)i + 1,
            tok->bpe->byte_symbol[unit.data[i]]};
    }
    sym[unit.size - 1].next = -1;
    return unit.size;
}

/* The row of characters. */
static size_t
make_symbols(
    const struct mb_tokenizer *tok, struct mb_slice unit, struct symbol *sym)
{
    size_t n = 0;
    for (size_t p = 0; p < unit.size; n++) {
        size_t size = char_size(unit.data + p, unit.size - p);
        mb_token_id id = -1;
        if (size > 1)
            id = vocab_find(tok, unit.data + p, size);
        else if (unit.data[p] < 128)
            id = tok->ascii_id[unit.data[p]];
        sym[n] = (struct symbol){
            (uint32_t)p, (uint32_t)size, (int32_t)n - 1, (int32_t)n + 1, id};
        p += size;
    }
    sym[n - 1].next = -1;
    return n;
}

/* The ids of the symbols that are left: of a symbol that is no token those of
 * its bytes. */
static size_t
take_ids(const struct mb_tokenizer *tok, struct mb_slice unit,
    const struct symbol *sym, mb_token_id *ids)
{
    size_t n = 0;
    for (int32_t i = 0; i >= 0; i = sym[i].next) {
        if (sym[i].id >= 0 && (size_t)sym[i].id < tok->n_vocab) {
            ids[n++] = sym[i].id;
            continue;
        }
        for (uint32_t k = 0; k < sym[i].size; k++) {
            mb_token_id id = tok->byte_id[unit.data[sym[i].start + k]];
            if (id >= 0) // else the vocabulary has no way to say it
                ids[n++] = id;
        }
    }
    return n;
}

/* Byte pair encoding of one unit into work->ids; *n of them. */
static mb_status
merge_unit(const struct mb_tokenizer *tok, struct mb_token_cache *work,
    struct mb_slice unit, size_t *n_ids)
{
    if (unit.size > INT32_MAX / 2)
        return MB_ERR_TOO_LARGE;
    mb_status st = make_room(work, unit.size);
    if (st != MB_OK)
        return st;
    struct symbol *sym = work->symbols;
    struct merge *heap = work->heap;
    size_t n_heap = 0;
    size_t n_sym = tok->is_bpe ? make_byte_symbols(tok, unit, sym)
                               : make_symbols(tok, unit, sym);
    for (size_t i = 0; i < n_sym; i++)
        consider(tok, unit.data, sym, (int32_t)i, heap, &n_heap);
    while (n_heap > 0) {
        struct merge m = heap_pop(heap, &n_heap);
        uint32_t left = (uint32_t)m.key;
        struct symbol *l = &sym[left];
        if (l->size == 0 || l->next < 0 ||
            l->size + sym[l->next].size != m.size) {
            continue; // one of the two has been merged since
        }
        struct symbol *r = &sym[l->next];
        l->size = m.size;
        l->id = m.id;
        l->next = r->next;
        r->size = 0;
        if (l->next >= 0)
            sym[l->next].prev = (int32_t)left;
        consider(tok, unit.data, sym, l->prev, heap, &n_heap);
        consider(tok, unit.data, sym, (int32_t)left, heap, &n_heap);
    }
    *n_ids = take_ids(tok, unit, sym, work->ids);
    return MB_OK;
}

/* ---- units ---- */

/* Cut a unit at the last character that begins within max_size bytes. */
static size_t
cut_unit(struct mb_slice text, size_t pos, size_t max_size)
{
    size_t end = pos + max_size;
    while (end > pos && (text.data[end] & 0xc0) == 0x80)
        end--;
    return end > pos ? end : pos + char_size(text.data + pos, text.size - pos);
}

/* A unit is a user-defined piece, or a word of what lies between two. Neither
 * is known before some text behind it was seen: a window grows until the rule
 * did not look beyond it. */
static mb_status
bpe_unit_end(const struct mb_tokenizer *tok, struct mb_token_cache *work,
    struct mb_slice text, size_t pos, size_t max_size, size_t *end,
    bool *is_forced)
{
    size_t room = text.size - pos;
    for (size_t window = 256;; window *= 2) {
        const struct special_hit *hit = NULL;
        size_t limit = window < room ? pos + window : text.size;
        if (tok->user.n > 0) {
            mb_status st = special_scan_next(
                &work->scan, &tok->user, tok, text, pos, limit, &hit);
            if (st != MB_OK)
                return st;
            if (hit && hit->start == pos) {
                *end = hit->end;
                return MB_OK;
            }
        }
        struct pretoken_text part = {.data = text.data,
            .size = hit ? hit->start : limit,
            .classes = tok->bpe->classes};
        *end = pretoken_end(tok->bpe->pre, &part, pos);
        if (*end - pos > max_size) {
            *is_forced = true;
            *end = cut_unit(text, pos, max_size);
            return MB_OK;
        }
        if (hit || limit == text.size || !part.reached)
            return MB_OK;
    }
}

static size_t
llama_unit_end(const struct mb_tokenizer *tok, struct mb_slice text, size_t pos,
    size_t max_size, bool *is_forced)
{
    const uint8_t *p = text.data;
    bool has_user = tok->user.n > 0;
    if (has_user) {
        mb_token_id id = special_longest(&tok->user, tok, text, pos);
        if (id >= 0)
            return pos + tok->text_size[id];
    }
    size_t size = char_size(p + pos, text.size - pos);
    size_t start = pos;
    uint32_t before = char_code(p + pos, size);
    for (pos += size; pos < text.size; pos += size) {
        uint32_t code = p[pos];
        size = 1;
        if (code >= 128) {
            size = char_size(p + pos, text.size - pos);
            code = char_code(p + pos, size);
        }
        if (!vocab_has_pair(tok, before, code))
            return pos;
        if (has_user && special_longest(&tok->user, tok, text, pos) >= 0)
            return pos;
        if (pos + size - start > max_size) {
            *is_forced = true;
            return pos;
        }
        before = code;
    }
    return pos;
}

mb_status
tok_unit_end(const struct mb_tokenizer *tok, struct mb_token_cache *work,
    struct mb_slice text, size_t pos, size_t max_size, size_t *end,
    bool *is_forced)
{
    *is_forced = false;
    if (tok->is_bpe)
        return bpe_unit_end(tok, work, text, pos, max_size, end, is_forced);
    *end = llama_unit_end(tok, text, pos, max_size, is_forced);
    return MB_OK;
}

/* Find the unit in the table, or merge it and put it there. */
static mb_status
encode_word(const struct mb_tokenizer *tok, struct mb_token_cache *work,
    struct mb_slice unit, const mb_token_id **ids, size_t *n)
{
    mb_status st = MB_OK;
    struct word *slot = NULL;
    if (work->words && unit.size <= WORD_TEXT) {
        uint64_t h = mb_hash64(unit.data, unit.size, 0);
        size_t at = h >> (64 - WORD_BITS);
        /* A pair of places holds two words. A new one takes a place that is
         * empty, or one of the two as its hash has it. */
        slot = &work->words[at ^ (h & 1)];
        for (size_t way = 0; way < 2; way++) {
            struct word *w = &work->words[at ^ way];
            if (w->size == unit.size &&
                memcmp(w->text, unit.data, unit.size) == 0) {
                *ids = w->ids;
                *n = w->n_ids;
                return MB_OK;
            }
            if (w->size == 0)
                slot = w;
        }
    }
    mb_token_id whole = -1;
    if (tok->is_bpe && tok->bpe->pre->ignore_merges)
        whole = vocab_find(tok, unit.data, unit.size);
    if (whole >= 0) {
        st = make_room(work, 1);
        *n = 1;
    } else {
        st = merge_unit(tok, work, unit, n);
    }
    if (st != MB_OK)
        return st;
    if (whole >= 0)
        work->ids[0] = whole;
    *ids = work->ids;
    if (slot && *n <= WORD_IDS) {
        slot->size = (uint8_t)unit.size;
        slot->n_ids = (uint8_t)*n;
        memcpy(slot->text, unit.data, unit.size);
        memcpy(slot->ids, work->ids, *n * sizeof(mb_token_id));
    }
    return MB_OK;
}

mb_status
tok_unit_encode(const struct mb_tokenizer *tok, struct mb_token_cache *work,
    struct mb_slice unit, bool at_start, const mb_token_id **ids, size_t *n)
{
    if (tok->user.n > 0) {
        mb_token_id id = special_find(&tok->user, tok, unit.data, unit.size);
        if (id >= 0) {
            mb_status st = make_room(work, 1);
            if (st != MB_OK)
                return st;
            work->ids[0] = id;
            *ids = work->ids;
            *n = 1;
            return MB_OK;
        }
    }
    if (at_start && tok->add_space) {
        size_t size = unit.size + 1; // a unit is no longer than UINT32_MAX
        if (size > work->unit_room) {
            void *p = grow(work->unit, &work->unit_room, size, 1);
            if (!p)
                return MB_ERR_NOMEM;
            work->unit = p;
        }
        work->unit[0] = ' ';
        memcpy(work->unit + 1, unit.data, unit.size);
        unit = mb_slice_of(work->unit, size);
    }
    if (unit.size == 1 && unit.data[0] < 128) {
        *ids = &tok->ascii_id[unit.data[0]];
        *n = **ids >= 0;
        return MB_OK;
    }
    return encode_word(tok, work, unit, ids, n);
}

bool
tok_looks_ahead(const struct mb_tokenizer *tok)
{
    return tok->is_bpe;
}

bool
tok_has_user_pieces(const struct mb_tokenizer *tok)
{
    return tok->user.n > 0;
}

uint32_t
tok_text_size(const struct mb_tokenizer *tok, mb_token_id id)
{
    return tok->text_size[id];
}

/* ---- encode and decode ---- */

/* Append the tokens of a unit, which follow what is covered up to *start. */
static mb_status
add_tokens(const struct mb_tokenizer *tok, const mb_token_id *ids, size_t n,
    size_t *start, struct mb_buffer *out)
{
    size_t bytes = n * sizeof(struct mb_token);
    if (out->capacity - out->size < bytes) {
        mb_status st = mb_buffer_reserve(out, bytes);
        if (st != MB_OK)
            return st;
    }
    for (size_t i = 0; i < n; i++) {
        struct mb_token t = {ids[i], (uint32_t)*start, tok->text_size[ids[i]]};
        /* The space in front is no byte of the text. It is there unless the
         * text begins with a user-defined piece. */
        if (*start == 0 && i == 0 && tok->add_space &&
            tok->type[ids[0]] != TYPE_USER) {
            t.size--;
        }
        *start += t.size;
        memcpy(out->data + out->size, &t, sizeof(t));
        out->size += sizeof(t);
    }
    return MB_OK;
}

/* Let the last token, if there is one, stand for the text up to `end`, too:
 * bytes that have no token. */
static void
stretch_last(struct mb_buffer *out, size_t before, size_t end)
{
    struct mb_token t;
    if (out->size == before)
        return;
    uint8_t *last = out->data + out->size - sizeof(t);
    memcpy(&t, last, sizeof(t));
    t.size = (uint32_t)end - t.start;
    memcpy(last, &t, sizeof(t));
}

mb_status
tok_encode(const struct mb_tokenizer *tok, struct mb_token_cache *work,
    struct mb_slice text, struct mb_buffer *out)
{
    size_t before = out->size;
    size_t pos = 0;
    while (pos < text.size) {
        const mb_token_id *ids = NULL;
        size_t n = 0;
        bool is_forced = false;
        size_t end = pos;
        size_t start = pos;
        mb_status st =
            tok_unit_end(tok, work, text, pos, SIZE_MAX, &end, &is_forced);
        if (st != MB_OK)
            return st;
        struct mb_slice unit = mb_slice_of(text.data + pos, end - pos);
        st = tok_unit_encode(tok, work, unit, pos == 0, &ids, &n);
        if (st == MB_OK)
            st = add_tokens(tok, ids, n, &start, out);
        if (st != MB_OK)
            return st;
        if (start != end)
            stretch_last(out, before, end);
        pos = end;
    }
    return MB_OK;
}

mb_status
mb_tokenizer_encode(const struct mb_tokenizer *tok,
    struct mb_token_cache *cache, struct mb_slice text, struct mb_buffer *out,
    struct mb_error *err)
{
    struct mb_token_cache local = {0};
    struct mb_token_cache *work = cache ? cache : &local;
    size_t before = out->size;
    if (text.size > UINT32_MAX)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "tokenizer: text of %zu bytes, at most %lu can be encoded",
            text.size, (unsigned long)UINT32_MAX);
    tok_begin(tok, work);
    mb_status st = tok_encode(tok, work, text, out);
    tok_end(&local);
    if (st != MB_OK) {
        out->size = before;
        mb_error_set(err, st, "tokenizer: text of %zu bytes: %s", text.size,
            mb_status_text(st));
    }
    return st;
}

mb_status
mb_tokenizer_decode(const struct mb_tokenizer *tok, const mb_token_id *ids,
    size_t n, struct mb_buffer *out, struct mb_error *err)
{
    size_t before = out->size;
    bool strip = tok->add_space;
    mb_status st = MB_OK;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (size_t)ids[i] >= tok->n_vocab) {
            st = mb_error_set(err, MB_ERR_BAD_ARG,
                "tokenizer: token %d at %zu, the vocabulary has %zu",
                (int)ids[i], i, tok->n_vocab);
            goto out;
        }
        struct mb_slice text = vocab_text(tok, ids[i]);
        if (text.size == 0)
            continue; // control tokens stand for no text
        if (strip && tok->type[ids[i]] != TYPE_USER && text.data[0] == ' ') {
            text.data++;
            text.size--;
        }
        strip = false;
        st = mb_buffer_append(out, text.data, text.size);
        if (st != MB_OK) {
            mb_error_set(err, st, "tokenizer: decode %zu tokens: %s", n,
                mb_status_text(st));
            goto out;
        }
    }
out:
    if (st != MB_OK)
        out->size = before;
    return st;
}
