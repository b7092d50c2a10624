/* SPDX-License-Identifier: Apache-2.0
 * store/lexical.c - terms, postings and lengths in a write transaction.
 *
 * Postings are gathered in memory in the order in which they come; the flush
 * (lexical_flush.c) sorts them by term and writes each touched term once.
 * Term rows and lengths are written at once: later operations of the same
 * transaction look them up.
 *
 * Numbers of terms are also remembered from one transaction to the next in a
 * bounded cache. What it learnt in a transaction is dropped unless that was
 * committed; a term that loses its last posting leaves it at once. Its tags
 * are made with a seed of this process, so that nobody can construct two terms
 * that it takes for one.
 * Invariants: between flushes the stored postings are those of the last flush;
 * a term row exists if and only if the term has a head with df above 0, once
 * flushed. Segment numbers never come twice.
 * Threads: the writer's. */
#include "lexical_batch.h"

#include <string.h>

#include "record.h"

#define CACHE_SLOTS (1u << 17) /* of 24 bytes */
#define CACHE_WAYS  4u
/* Bounds of what one transaction may gather. */
#define MAX_TOUCHED    (1u << 24)
#define MAX_TERM_BYTES (1u << 30)

/* ---- the batch ---- */

mb_status
lex_batch_new(struct lex_batch **out)
{
    struct lex_batch *b = mb_calloc(1, sizeof *b);
    if (b == NULL)
        return MB_ERR_NOMEM;
    mb_buffer_init(&b->terms, MAX_TERM_BYTES);
    b->n_table = 4096;
    b->table = mb_calloc(b->n_table, sizeof *b->table);
    b->known = mb_calloc(CACHE_SLOTS, sizeof *b->known);
    if (b->table == NULL || b->known == NULL) {
        lex_batch_free(b);
        return MB_ERR_NOMEM;
    }
    // Where the heap lies and when differs from one process to the next.
    uint64_t here[3] = {
        mb_clock_ns(), mb_clock_wall_ms(), (uint64_t)(uintptr_t)b};
    b->seed = mb_hash64(here, sizeof here, 0);
    *out = b;
    return MB_OK;
}

void
lex_batch_free(struct lex_batch *b)
{
    if (b == NULL)
        return;
    mb_buffer_fini(&b->terms);
    mb_free(b->touched.data);
    mb_free(b->adds.data);
    mb_free(b->removes.data);
    mb_free(b->learnt.data);
    mb_free(b->table);
    mb_free(b->known);
    mb_free(b);
}

void
lex_batch_clear(struct lex_batch *b)
{
    if (b->touched.n > 0)
        memset(b->table, 0, b->n_table * sizeof *b->table);
    b->touched.n = 0;
    b->adds.n = 0;
    b->removes.n = 0;
    mb_buffer_clear(&b->terms);
}

void
lex_batch_reset(struct lex_batch *b)
{
    const uint32_t *learnt = b->learnt.data;
    for (size_t i = 0; i < b->learnt.n; i++) {
        memset(&b->known[learnt[i]], 0, sizeof b->known[0]);
    }
    b->learnt.n = 0;
    lex_batch_clear(b);
}

void
lex_batch_keep(struct lex_batch *b)
{
    b->learnt.n = 0;
    lex_batch_clear(b);
}

/* Room for one more element of `size` bytes. */
static mb_status
array_grow(struct array *a, size_t size)
{
    if (a->n < a->max)
        return MB_OK;
    size_t max = a->max == 0 ? 1024 : a->max * 2;
    size_t bytes;
    if (!mb_size_mul(max, size, &bytes))
        return MB_ERR_NOMEM;
    void *data = mb_realloc(a->data, bytes);
    if (data == NULL)
        return MB_ERR_NOMEM;
    a->data = data;
    a->max = max;
    return MB_OK;
}

static size_t
touched_slot(const struct lex_batch *b, mb_collection_id coll, uint32_t id)
{
    uint64_t h = ((uint64_t)coll << 32 | id) * UINT64_C(0x9E3779B97F4A7C15);
    return (size_t)(h >> 32) & (b->n_table - 1);
}

static mb_status
grow_table(struct lex_batch *b)
{
    size_t n_table = b->n_table * 2;
    uint32_t *table = mb_calloc(n_table, sizeof *table);
    if (table == NULL)
        return MB_ERR_NOMEM;
    mb_free(b->table);
    b->table = table;
    b->n_table = n_table;
    const struct touched *all = b->touched.data;
    for (size_t i = 0; i < b->touched.n; i++) {
        size_t s = touched_slot(b, all[i].wc->c.id, all[i].id);
        while (table[s] != 0) {
            s = (s + 1) & (n_table - 1);
        }
        table[s] = (uint32_t)i + 1;
    }
    return MB_OK;
}

/* The term's entry in this transaction, made if absent. */
static mb_status
touch(struct lex_batch *b, struct wcoll *wc, uint32_t id, uint32_t *index)
{
    struct touched *all = b->touched.data;
    size_t s = touched_slot(b, wc->c.id, id);
    for (; b->table[s] != 0; s = (s + 1) & (b->n_table - 1)) {
        uint32_t i = b->table[s] - 1;
        if (all[i].id == id && all[i].wc == wc) {
            *index = i;
            return MB_OK;
        }
    }
    if (b->touched.n >= MAX_TOUCHED)
        return MB_ERR_TOO_LARGE;
    mb_status st = array_grow(&b->touched, sizeof *all);
    if (st == MB_OK && 2 * b->touched.n >= b->n_table) {
        st = grow_table(b);
        s = touched_slot(b, wc->c.id, id);
        while (st == MB_OK && b->table[s] != 0) {
            s = (s + 1) & (b->n_table - 1);
        }
    }
    if (st != MB_OK)
        return st;
    all = b->touched.data;
    all[b->touched.n] = (struct touched){.wc = wc, .id = id};
    *index = (uint32_t)b->touched.n++;
    b->table[s] = *index + 1;
    return MB_OK;
}

/* ---- numbers of terms ---- */

static uint64_t
term_tag(const struct lex_batch *b, struct mb_slice bytes)
{
    uint64_t tag = mb_hash64(bytes.data, bytes.size, b->seed);
    return tag == 0 ? 1 : tag;
}

static struct known_term *
known_set(const struct lex_batch *b, mb_collection_id coll, uint64_t hash)
{
    uint64_t h = hash ^ (coll * UINT64_C(0x9E3779B97F4A7C15));
    return &b->known[(h >> 20) & (CACHE_SLOTS - CACHE_WAYS)];
}

static struct known_term *
known_find(const struct lex_batch *b, mb_collection_id coll, uint64_t hash,
    uint64_t tag)
{
    struct known_term *set = known_set(b, coll, hash);
    for (size_t i = 0; i < CACHE_WAYS; i++) {
        if (set[i].tag == tag && set[i].hash == hash && set[i].coll == coll)
            return &set[i];
    }
    return NULL;
}

void
lex_batch_forget(
    struct lex_batch *b, mb_collection_id coll, struct mb_slice term)
{
    struct known_term *known = known_find(
        b, coll, mb_hash64(term.data, term.size, 0), term_tag(b, term));
    if (known != NULL)
        known->tag = 0;
}

/* Remember a number until the transaction is undone or the room is needed. */
static void
known_add(struct lex_batch *b, const struct known_term *term)
{
    struct known_term *set = known_set(b, term->coll, term->hash);
    size_t way = 0;
    while (way + 1 < CACHE_WAYS && set[way].tag != 0) {
        way++;
    }
    if (set[way].tag != 0)
        way = (size_t)(term->tag >> 8) & (CACHE_WAYS - 1);
    if (array_grow(&b->learnt, sizeof(uint32_t)) != MB_OK)
        return; // then it is not remembered: only slower
    uint32_t *learnt = b->learnt.data;
    learnt[b->learnt.n++] = (uint32_t)(&set[way] - b->known);
    set[way] = *term;
}

static mb_status
make_term(struct wtxn *w, struct wcoll *wc, struct mb_slice bytes, uint32_t *id)
{
    struct lex_batch *b = w->lex;
    struct kv_key key;
    uint8_t row[4 + RECORD_CHECKSUM];
    if (wc->c.next_term == UINT32_MAX)
        return MB_ERR_TOO_LARGE;
    w->changed = true;
    mb_put_le32(row, wc->c.next_term);
    record_seal(row, sizeof row);
    lex_term_key(&key, wc->c.id, bytes);
    mb_status st = kv_put(
        w->txn, KV_TERMS, kv_key_slice(&key), mb_slice_of(row, sizeof row));
    if (st != MB_OK)
        return st;
    uint32_t index;
    uint32_t at = (uint32_t)b->terms.size;
    st = touch(b, wc, wc->c.next_term, &index);
    if (st == MB_OK)
        st = mb_buffer_append(&b->terms, bytes.data, bytes.size);
    if (st != MB_OK)
        return st;
    struct touched *t = (struct touched *)b->touched.data + index;
    t->term = at;
    t->term_size = (uint32_t)bytes.size;
    *id = wc->c.next_term++;
    wc->c.n_terms++;
    wc->dirty = true;
    return MB_OK;
}

mb_status
lex_term_id(struct wtxn *w, struct wcoll *wc, struct mb_slice bytes,
    uint64_t hash, uint32_t *id, struct mb_error *err)
{
    struct lex_batch *b = w->lex;
    MB_ASSERT(bytes.size > 0 && bytes.size <= LEX_MAX_TERM);
    uint64_t tag = term_tag(b, bytes);
    const struct known_term *known = known_find(b, wc->c.id, hash, tag);
    if (known != NULL) {
        *id = known->id;
        return MB_OK;
    }
    uint32_t found = 0;
    mb_status st = lex_term_find(w->txn, wc->c.id, bytes, &found);
    if (st == MB_ERR_NOT_FOUND)
        st = make_term(w, wc, bytes, &found);
    if (st != MB_OK) {
        st = kv_txn_explain(w->txn, st, err);
        return st;
    }
    known_add(b, &(struct known_term){hash, tag, wc->c.id, found});
    *id = found;
    return MB_OK;
}

/* ---- gathering ---- */

mb_status
lex_add(struct wtxn *w, struct wcoll *wc, uint32_t id, mb_segno segno,
    uint32_t tf, uint32_t length)
{
    struct lex_batch *b = w->lex;
    uint32_t index;
    MB_ASSERT(tf > 0);
    if (segno >= LEX_MAX_SEGNO)
        return MB_ERR_TOO_LARGE;
    w->changed = true;
    mb_status st = touch(b, wc, id, &index);
    if (st == MB_OK)
        st = array_grow(&b->adds, sizeof(struct gathered_add));
    if (st != MB_OK)
        return st;
    ((struct touched *)b->touched.data)[index].n_adds++;
    ((struct gathered_add *)b->adds.data)[b->adds.n++] = (struct gathered_add){
        .touched = index,
        .segno = segno,
        .length = (uint16_t)(length > LEX_MAX_LENGTH ? LEX_MAX_LENGTH : length),
        .tf = (uint8_t)(tf > LEX_MAX_TF ? LEX_MAX_TF : tf)};
    return MB_OK;
}

mb_status
lex_remove(struct wtxn *w, struct wcoll *wc, uint32_t id, mb_segno segno)
{
    struct lex_batch *b = w->lex;
    uint32_t index;
    w->changed = true;
    mb_status st = touch(b, wc, id, &index);
    if (st == MB_OK)
        st = array_grow(&b->removes, sizeof(struct gathered_remove));
    if (st != MB_OK)
        return st;
    ((struct touched *)b->touched.data)[index].n_removes++;
    ((struct gathered_remove *)b->removes.data)[b->removes.n++] =
        (struct gathered_remove){index, segno};
    return MB_OK;
}

/* No segment of this row is live: it need not be kept. (The newest row may be
 * made again when the next segment comes.) */
static bool
lengths_all_gone(const uint8_t row[LEX_LENGTHS_BYTES])
{
    for (size_t i = 0; i < 2 * LEX_LENGTHS; i++) {
        if (row[i] != 0)
            return false;
    }
    return true;
}

mb_status
lex_set_length(
    struct wtxn *w, struct wcoll *wc, mb_segno segno, uint32_t length)
{
    uint8_t row[LEX_LENGTHS_BYTES];
    const uint8_t *stored;
    uint32_t chunk = segno / LEX_LENGTHS;
    size_t at = 2 * (size_t)(segno % LEX_LENGTHS);
    if (segno >= LEX_MAX_SEGNO)
        return MB_ERR_TOO_LARGE;
    if (length > LEX_MAX_LENGTH)
        length = LEX_MAX_LENGTH;
    mb_status st = lex_lengths_row(w->txn, wc->c.id, chunk, &stored);
    if (st != MB_OK)
        return st;
    if (stored != NULL) {
        memcpy(row, stored, sizeof row);
    } else {
        memset(row, 0, sizeof row);
    }
    uint32_t before = lex_le16(row + at);
    mb_put_le16(row + at, (uint16_t)length);
    record_seal(row, sizeof row);
    struct kv_key key;
    kv_key_init(&key);
    kv_key_u32(&key, wc->c.id);
    kv_key_u32(&key, chunk);
    w->changed = true;
    if (length == 0 && lengths_all_gone(row)) {
        st = stored != NULL ? kv_del(w->txn, KV_LENGTHS, kv_key_slice(&key))
                            : MB_OK;
    } else {
        st = kv_put(w->txn, KV_LENGTHS, kv_key_slice(&key),
            mb_slice_of(row, sizeof row));
    }
    if (st == MB_OK) {
        wc->c.sum_lengths = wc->c.sum_lengths - before + length;
        wc->dirty = true;
    }
    return st;
}
