/* SPDX-License-Identifier: Apache-2.0
 * store/lexical_flush.c - gathered postings into the tables.
 *
 * The changes of a transaction are sorted by term; then each touched term is
 * read, changed and written once, in key order through one cursor. So the cost
 * of a commit goes with its distinct terms, not with its postings. New postings
 * go to the head; its full blocks move to chunks when they are many, into the
 * newest chunk while that has room. A removal rewrites the block it touches and
 * nothing else; bounds stay as they were, which is safe.
 * Invariants: a term with df 0 leaves neither head nor chunk nor row; chunks
 * hold postings older than all in the head; blocks rise.
 * Threads: the writer's. */
#include "lexical_batch.h"

#include <stdlib.h>
#include <string.h>

#include "record.h"

/* ---- the changes sorted by term ---- */

/* An added posting of one term; segno rising. */
struct change {
    uint32_t segno;
    uint16_t length;
    uint8_t tf; /* 0: added and removed again */
};

struct order {
    uint64_t key; /* coll, id */
    uint32_t touched;
};

/* The touched terms in key order; their adds and removes lie one term after
 * another in the same order. */
struct sorted {
    struct order *order;
    size_t n;
    struct change *adds;
    uint32_t *removes;
};

static int
compare_order(const void *a, const void *b)
{
    uint64_t x = ((const struct order *)a)->key;
    uint64_t y = ((const struct order *)b)->key;
    return x < y ? -1 : x > y;
}

static int
compare_segno(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a;
    uint32_t y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void
sorted_fini(struct sorted *s)
{
    mb_free(s->order);
    mb_free(s->adds);
    mb_free(s->removes);
}

/* Counting sort of what was gathered, stable, so that segments stay rising.
 * add_at and remove_at have room for one number a touched term. */
static void
sort_changes(struct sorted *s, const struct lex_batch *b, uint32_t *add_at,
    uint32_t *remove_at)
{
    const struct touched *all = b->touched.data;
    for (size_t i = 0; i < s->n; i++) {
        s->order[i].key = (uint64_t)all[i].wc->c.id << 32 | all[i].id;
        s->order[i].touched = (uint32_t)i;
    }
    qsort(s->order, s->n, sizeof *s->order, compare_order);
    uint32_t adds = 0;
    uint32_t removes = 0;
    for (size_t i = 0; i < s->n; i++) {
        uint32_t t = s->order[i].touched;
        add_at[t] = adds;
        remove_at[t] = removes;
        adds += all[t].n_adds;
        removes += all[t].n_removes;
    }
    const struct gathered_add *add = b->adds.data;
    for (size_t i = 0; i < b->adds.n; i++) {
        s->adds[add_at[add[i].touched]++] =
            (struct change){add[i].segno, add[i].length, add[i].tf};
    }
    const struct gathered_remove *remove = b->removes.data;
    for (size_t i = 0; i < b->removes.n; i++) {
        s->removes[remove_at[remove[i].touched]++] = remove[i].segno;
    }
}

static mb_status
sorted_init(struct sorted *s, const struct lex_batch *b)
{
    size_t n = b->touched.n;
    mb_status st = MB_ERR_NOMEM;
    *s = (struct sorted){.n = n};
    uint32_t *add_at = mb_calloc(n + 1, sizeof *add_at);
    uint32_t *remove_at = mb_calloc(n + 1, sizeof *remove_at);
    s->order = mb_calloc(n + 1, sizeof *s->order);
    s->adds = mb_alloc((b->adds.n + 1) * sizeof *s->adds);
    s->removes = mb_alloc((b->removes.n + 1) * sizeof *s->removes);
    if (add_at != NULL && remove_at != NULL && s->order != NULL &&
        s->adds != NULL && s->removes != NULL) {
        sort_changes(s, b, add_at, remove_at);
        st = MB_OK;
    } else {
        sorted_fini(s);
    }
    mb_free(add_at);
    mb_free(remove_at);
    return st;
}

/* Undo adds that were removed later in the same transaction. Returns how many
 * removes are left, for stored postings, rising. */
static size_t
cancel(struct change *adds, size_t n_adds, uint32_t *removes, size_t n_removes)
{
    size_t left = 0;
    qsort(removes, n_removes, sizeof *removes, compare_segno);
    for (size_t i = 0, a = 0; i < n_removes; i++) {
        while (a < n_adds && adds[a].segno < removes[i]) {
            a++;
        }
        if (a < n_adds && adds[a].segno == removes[i]) {
            adds[a].tf = 0;
        } else if (left == 0 || removes[left - 1] != removes[i]) {
            removes[left++] = removes[i];
        }
    }
    return left;
}

/* ---- blocks under construction ---- */

struct blocks {
    struct mb_buffer entries;
    struct mb_buffer payload;
};

static uint32_t
n_blocks(const struct blocks *b)
{
    return (uint32_t)(b->entries.size / LEX_ENTRY_BYTES);
}

static void
blocks_clear(struct blocks *b)
{
    mb_buffer_clear(&b->entries);
    mb_buffer_clear(&b->payload);
}

static void
blocks_swap(struct blocks *a, struct blocks *b)
{
    struct blocks t = *a;
    *a = *b;
    *b = t;
}

static struct lex_run
blocks_run(const struct blocks *b)
{
    return (struct lex_run){.entries = b->entries.data,
        .payload = b->payload.data,
        .payload_size = b->payload.size,
        .n = n_blocks(b)};
}

static mb_status
blocks_append(struct blocks *b, const struct lex_block *block,
    const struct lex_point points[LEX_POINTS])
{
    uint8_t entry[LEX_ENTRY_BYTES];
    lex_entry_encode(block, points, entry);
    mb_status st = mb_buffer_append(&b->entries, entry, sizeof entry);
    if (st == MB_OK)
        st = mb_buffer_append(&b->payload, block->payload, block->size);
    return st;
}

static mb_status
blocks_append_run(struct blocks *b, const struct lex_run *run)
{
    if (run->n == 0)
        return MB_OK;
    mb_status st = mb_buffer_append(
        &b->entries, run->entries, run->n * (size_t)LEX_ENTRY_BYTES);
    if (st == MB_OK)
        st = mb_buffer_append(&b->payload, run->payload, run->payload_size);
    return st;
}

/* ---- one term: its head ---- */

/* The term at hand, and what the flush keeps from term to term. */
struct flush {
    struct wtxn *w;
    struct kv_cursor *cursor; /* KV_POSTINGS */
    struct blocks full;       /* full blocks of the head */
    struct blocks scratch;
    struct lex_front front;      /* of all postings */
    struct lex_front rest_front; /* of those not in a full block */
    uint32_t segnos[LEX_BLOCK];  /* the rest */
    uint8_t tfs[LEX_BLOCK];
    uint32_t n_rest;
    uint32_t df;
    uint32_t last_chunk_bytes;
    uint8_t term[LEX_MAX_TERM];
    size_t term_size;
    bool stored; /* the head exists */
};

static mb_status
take_head(struct flush *f, struct mb_slice record)
{
    struct lex_head head;
    if (!record_is_sound(record) || !lex_head_parse(record, &head))
        return MB_ERR_CORRUPT;
    f->df = head.df;
    f->last_chunk_bytes = head.last_chunk_bytes;
    f->term_size = head.term.size;
    memcpy(f->term, head.term.data, head.term.size);
    lex_front_add_points(&f->front, head.points);
    lex_front_add_points(&f->rest_front, head.rest_points);
    f->n_rest = head.rest.n;
    if (f->n_rest > 0) {
        if (!lex_block_decode(&head.rest, f->segnos))
            return MB_ERR_CORRUPT;
        memcpy(f->tfs, lex_block_tfs(&head.rest), f->n_rest);
    }
    return blocks_append_run(&f->full, &head.full);
}

/* Read a term into f; an empty one if it is new. NOT_FOUND: no such term. */
static mb_status
load_head(struct flush *f, const struct touched *t)
{
    struct kv_key key;
    struct mb_slice k;
    struct mb_slice v;
    blocks_clear(&f->full);
    lex_front_clear(&f->front);
    lex_front_clear(&f->rest_front);
    f->n_rest = 0;
    f->df = 0;
    f->last_chunk_bytes = 0;
    lex_posting_key(&key, t->wc->c.id, t->id, LEX_HEAD);
    mb_status st = kv_cursor_seek(f->cursor, kv_key_slice(&key), &k, &v);
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return st;
    f->stored = st == MB_OK && mb_slice_equal(k, kv_key_slice(&key));
    if (f->stored)
        return take_head(f, v);
    if (t->term_size == 0)
        return MB_ERR_NOT_FOUND;
    f->term_size = t->term_size;
    memcpy(f->term, f->w->lex->terms.data + t->term, t->term_size);
    return MB_OK;
}

static mb_status
store_head(struct flush *f, const struct touched *t)
{
    uint8_t bytes[LEX_MAX_RECORD];
    uint8_t rest[LEX_BLOCK_BYTES];
    struct lex_head head = {.df = f->df,
        .last_chunk_bytes = f->last_chunk_bytes,
        .term = mb_slice_of(f->term, f->term_size),
        .full = blocks_run(&f->full)};
    if (f->n_rest > 0) {
        head.rest = (struct lex_block){.first = f->segnos[0],
            .last = f->segnos[f->n_rest - 1],
            .n = f->n_rest,
            .payload = rest,
            .size = lex_block_encode(f->segnos, f->tfs, f->n_rest, rest)};
    }
    lex_front_points(&f->rest_front, head.rest_points);
    lex_front_add_points(&f->front, head.rest_points);
    lex_front_points(&f->front, head.points);
    size_t size = lex_head_encode(&head, bytes);
    struct kv_key key;
    lex_posting_key(&key, t->wc->c.id, t->id, LEX_HEAD);
    return kv_cursor_put(
        f->cursor, kv_key_slice(&key), mb_slice_of(bytes, size));
}

/* The term has no posting left: erase its row and head, forget its number. */
static mb_status
erase_term(struct flush *f, const struct touched *t)
{
    struct mb_slice term = mb_slice_of(f->term, f->term_size);
    struct kv_key key;
    lex_term_key(&key, t->wc->c.id, term);
    mb_status st = kv_del(f->w->txn, KV_TERMS, kv_key_slice(&key));
    if (st == MB_OK) {
        t->wc->c.n_terms -= t->wc->c.n_terms > 0;
        t->wc->dirty = true;
    }
    if (st == MB_ERR_NOT_FOUND)
        st = MB_OK;
    if (st == MB_OK && f->stored) {
        lex_posting_key(&key, t->wc->c.id, t->id, LEX_HEAD);
        st = kv_del(f->w->txn, KV_POSTINGS, kv_key_slice(&key));
    }
    lex_batch_forget(f->w->lex, t->wc->c.id, term);
    return st;
}

/* ---- one term: removes ---- */

/* Segments to take away, rising. */
struct removes {
    const uint32_t *segnos;
    size_t n;
};

static void
skip_below(struct removes *r, uint32_t segno)
{
    while (r->n > 0 && r->segnos[0] < segno) {
        r->segnos++;
        r->n--;
    }
}

/* Keep what is not to be removed; returns how many of the n are left. */
static uint32_t
filter_postings(struct removes *r, uint32_t *segnos, uint8_t *tfs, uint32_t n)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        skip_below(r, segnos[i]);
        if (r->n > 0 && r->segnos[0] == segnos[i])
            continue;
        segnos[kept] = segnos[i];
        tfs[kept++] = tfs[i];
    }
    return kept;
}

/* Copy run to out without the segments in r; *removed counts those that were
 * there. Blocks that lose nothing are copied as they are. */
static mb_status
remove_from_run(const struct lex_run *run, struct removes *r,
    struct blocks *out, uint32_t *removed)
{
    const uint8_t *payload = run->payload;
    mb_status st = MB_OK;
    blocks_clear(out);
    for (uint32_t i = 0; i < run->n && st == MB_OK; i++) {
        uint32_t segnos[LEX_BLOCK];
        uint8_t tfs[LEX_BLOCK];
        uint8_t bytes[LEX_BLOCK_BYTES];
        struct lex_point points[LEX_POINTS];
        const uint8_t *entry = run->entries + i * LEX_ENTRY_BYTES;
        struct lex_block block = lex_run_block(entry, payload);
        payload += block.size;
        lex_entry_points(entry, points);
        skip_below(r, block.first);
        if (r->n > 0 && r->segnos[0] <= block.last) {
            if (!lex_block_decode(&block, segnos))
                return MB_ERR_CORRUPT;
            memcpy(tfs, lex_block_tfs(&block), block.n);
            uint32_t kept = filter_postings(r, segnos, tfs, block.n);
            *removed += block.n - kept;
            if (kept == 0)
                continue;
            block = (struct lex_block){.first = segnos[0],
                .last = segnos[kept - 1],
                .n = kept,
                .payload = bytes,
                .size = lex_block_encode(segnos, tfs, kept, bytes)};
        }
        st = blocks_append(out, &block, points);
    }
    return st;
}

/* Removes from the chunk that the cursor is on. Its key stays: it is an upper
 * bound of its segments. */
static mb_status
remove_from_chunk(struct flush *f, struct mb_slice key, struct mb_slice record,
    struct removes r)
{
    struct lex_run run;
    uint8_t bytes[LEX_MAX_RECORD];
    uint8_t key_bytes[12];
    uint32_t removed = 0;
    if (key.size != sizeof key_bytes || !record_is_sound(record) ||
        !lex_chunk_parse(record, &run))
        return MB_ERR_CORRUPT;
    memcpy(key_bytes, key.data, sizeof key_bytes);
    mb_status st = remove_from_run(&run, &r, &f->scratch, &removed);
    if (st != MB_OK || removed == 0)
        return st;
    f->df -= removed;
    run = blocks_run(&f->scratch);
    if (run.n == 0)
        return kv_cursor_del(f->cursor);
    size_t size = lex_chunk_encode(&run, bytes);
    return kv_cursor_put(f->cursor, mb_slice_of(key_bytes, sizeof key_bytes),
        mb_slice_of(bytes, size));
}

/* r lies before all that the head holds. */
static mb_status
remove_from_chunks(struct flush *f, const struct touched *t, struct removes r)
{
    struct kv_key key;
    struct mb_slice k;
    struct mb_slice v;
    while (r.n > 0) {
        lex_posting_key(&key, t->wc->c.id, t->id, r.segnos[0]);
        mb_status st = kv_cursor_seek(f->cursor, kv_key_slice(&key), &k, &v);
        if (st == MB_ERR_NOT_FOUND)
            return MB_OK;
        if (st != MB_OK)
            return st;
        if (k.size != 12 || !kv_has_prefix(k, mb_slice_of(key.bytes, 8)))
            return MB_OK;
        uint32_t last = mb_get_be32(k.data + 8);
        if (last == LEX_HEAD)
            return MB_OK;
        struct removes here = {r.segnos, 0};
        while (here.n < r.n && r.segnos[here.n] <= last) {
            here.n++;
        }
        st = remove_from_chunk(f, k, v, here);
        if (st != MB_OK)
            return st;
        r.segnos += here.n;
        r.n -= here.n;
    }
    return MB_OK;
}

/* Take stored postings away. One that is not there is no failure: a damaged
 * index must not keep a document from being deleted. */
static mb_status
apply_removes(struct flush *f, const struct touched *t, struct removes r)
{
    uint32_t head_first = UINT32_MAX; // of all that the head holds
    if (n_blocks(&f->full) > 0) {
        head_first = lex_le32(f->full.entries.data);
    } else if (f->n_rest > 0) {
        head_first = f->segnos[0];
    }
    struct removes older = {r.segnos, 0};
    while (older.n < r.n && r.segnos[older.n] < head_first) {
        older.n++;
    }
    mb_status st = remove_from_chunks(f, t, older);
    r.segnos += older.n;
    r.n -= older.n;
    if (st == MB_OK && r.n > 0 && n_blocks(&f->full) > 0) {
        struct lex_run run = blocks_run(&f->full);
        uint32_t removed = 0;
        st = remove_from_run(&run, &r, &f->scratch, &removed);
        blocks_swap(&f->full, &f->scratch);
        f->df -= removed;
    }
    if (st != MB_OK || r.n == 0)
        return st;
    uint32_t kept = filter_postings(&r, f->segnos, f->tfs, f->n_rest);
    f->df -= f->n_rest - kept;
    f->n_rest = kept;
    if (kept == 0)
        lex_front_clear(&f->rest_front);
    return st;
}

/* ---- one term: adds ---- */

/* Make a block of the 128 postings in rest. */
static mb_status
close_block(struct flush *f)
{
    uint8_t bytes[LEX_BLOCK_BYTES];
    struct lex_point points[LEX_POINTS];
    struct lex_block block = {.first = f->segnos[0],
        .last = f->segnos[f->n_rest - 1],
        .n = f->n_rest,
        .payload = bytes,
        .size = lex_block_encode(f->segnos, f->tfs, f->n_rest, bytes)};
    lex_front_points(&f->rest_front, points);
    lex_front_add_points(&f->front, points);
    lex_front_clear(&f->rest_front);
    f->n_rest = 0;
    return blocks_append(&f->full, &block, points);
}

static mb_status
append_adds(struct flush *f, const struct change *adds, size_t n)
{
    uint32_t after = 0; // segments must rise
    if (f->n_rest > 0) {
        after = f->segnos[f->n_rest - 1] + 1;
    } else if (n_blocks(&f->full) > 0) {
        const uint8_t *end = f->full.entries.data + f->full.entries.size;
        after = lex_le32(end - LEX_ENTRY_BYTES + 4) + 1;
    }
    for (size_t i = 0; i < n; i++) {
        if (adds[i].tf == 0)
            continue;
        if (adds[i].segno < after)
            return MB_ERR_INTERNAL;
        after = adds[i].segno + 1;
        f->segnos[f->n_rest] = adds[i].segno;
        f->tfs[f->n_rest++] = adds[i].tf;
        lex_front_add(&f->rest_front, adds[i].tf, adds[i].length);
        f->df++;
        if (f->n_rest == LEX_BLOCK) {
            mb_status st = close_block(f);
            if (st != MB_OK)
                return st;
        }
    }
    return MB_OK;
}

/* The newest chunk goes before f->full if there is room in it, and is
 * erased: it is written again with more blocks. */
static mb_status
take_last_chunk(struct flush *f, const struct touched *t)
{
    struct kv_key key;
    struct mb_slice k;
    struct mb_slice v;
    struct lex_run run;
    lex_posting_key(&key, t->wc->c.id, t->id, LEX_HEAD);
    struct mb_slice prefix = mb_slice_of(key.bytes, 8);
    mb_status st = kv_cursor_seek(f->cursor, kv_key_slice(&key), NULL, NULL);
    if (st == MB_OK)
        st = kv_cursor_prev(f->cursor, &k, &v);
    if (st == MB_ERR_NOT_FOUND)
        return MB_OK;
    if (st != MB_OK || !kv_has_prefix(k, prefix))
        return st;
    if (!record_is_sound(v) || !lex_chunk_parse(v, &run))
        return MB_ERR_CORRUPT;
    size_t first = lex_le16(f->full.entries.data + 8);
    if (lex_chunk_bytes(run.n + 1, run.payload_size + first) > LEX_MAX_RECORD)
        return MB_OK;
    blocks_clear(&f->scratch);
    st = blocks_append_run(&f->scratch, &run);
    run = blocks_run(&f->full);
    if (st == MB_OK)
        st = blocks_append_run(&f->scratch, &run);
    if (st != MB_OK)
        return st;
    blocks_swap(&f->full, &f->scratch);
    return kv_cursor_del(f->cursor);
}

/* As many blocks from the beginning of all as a chunk takes. */
static struct lex_run
next_chunk(const struct lex_run *all)
{
    struct lex_run run = {.entries = all->entries, .payload = all->payload};
    while (run.n < all->n) {
        const uint8_t *entry = all->entries + run.n * LEX_ENTRY_BYTES;
        size_t size = run.payload_size + lex_le16(entry + 8);
        if (lex_chunk_bytes(run.n + 1, size) > LEX_MAX_RECORD)
            break;
        run.n++;
        run.payload_size = size;
    }
    return run;
}

/* Move all full blocks to chunks. */
static mb_status
spill(struct flush *f, const struct touched *t)
{
    mb_status st = MB_OK;
    size_t first = lex_le16(f->full.entries.data + 8);
    if (f->last_chunk_bytes > 0 &&
        f->last_chunk_bytes + LEX_ENTRY_BYTES + first <= LEX_MAX_RECORD)
        st = take_last_chunk(f, t);
    struct lex_run all = blocks_run(&f->full);
    while (all.n > 0 && st == MB_OK) {
        uint8_t bytes[LEX_MAX_RECORD];
        struct kv_key key;
        struct lex_run run = next_chunk(&all);
        size_t entries = run.n * (size_t)LEX_ENTRY_BYTES;
        uint32_t last = lex_le32(run.entries + entries - LEX_ENTRY_BYTES + 4);
        f->last_chunk_bytes = (uint32_t)lex_chunk_encode(&run, bytes);
        lex_posting_key(&key, t->wc->c.id, t->id, last);
        st = kv_cursor_put(f->cursor, kv_key_slice(&key),
            mb_slice_of(bytes, f->last_chunk_bytes));
        all.entries += entries;
        all.payload += run.payload_size;
        all.payload_size -= run.payload_size;
        all.n -= run.n;
    }
    blocks_clear(&f->full);
    return st;
}

static mb_status
flush_term(struct flush *f, const struct touched *t, struct change *adds,
    uint32_t *removes)
{
    mb_status st = load_head(f, t);
    if (st == MB_ERR_NOT_FOUND) // removing from a lost term is no failure
        return t->n_adds > 0 ? MB_ERR_CORRUPT : MB_OK;
    if (st == MB_OK && t->n_removes > 0) {
        size_t left = cancel(adds, t->n_adds, removes, t->n_removes);
        st = apply_removes(f, t, (struct removes){removes, left});
    }
    if (st == MB_OK)
        st = append_adds(f, adds, t->n_adds);
    if (st == MB_OK &&
        f->full.entries.size + f->full.payload.size > LEX_TAIL_BYTES)
        st = spill(f, t);
    if (st != MB_OK)
        return st;
    return f->df > 0 ? store_head(f, t) : erase_term(f, t);
}

/* ---- all terms ---- */

static mb_status
flush_terms(struct flush *f, const struct sorted *s, struct mb_error *err)
{
    struct change *adds = s->adds;
    uint32_t *removes = s->removes;
    const struct touched *all = f->w->lex->touched.data;
    for (size_t i = 0; i < s->n; i++) {
        const struct touched *t = &all[s->order[i].touched];
        mb_status st = flush_term(f, t, adds, removes);
        if (st == MB_ERR_CORRUPT || st == MB_ERR_INTERNAL)
            return mb_error_set(err, st,
                "postings of term %u in collection %u: %s", t->id, t->wc->c.id,
                st == MB_ERR_CORRUPT ? "damaged" : "segments do not rise");
        if (st != MB_OK)
            return kv_txn_explain(f->w->txn, st, err);
        adds += t->n_adds;
        removes += t->n_removes;
    }
    return MB_OK;
}

mb_status
lex_flush(struct wtxn *w, struct mb_error *err)
{
    struct lex_batch *b = w->lex;
    struct sorted sorted;
    if (b->touched.n == 0)
        return MB_OK;
    struct flush *f = mb_calloc(1, sizeof *f);
    if (f == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "postings: out of memory");
    f->w = w;
    struct mb_buffer *buffers[] = {&f->full.entries, &f->full.payload,
        &f->scratch.entries, &f->scratch.payload};
    for (size_t i = 0; i < 4; i++) {
        mb_buffer_init(buffers[i], UINT32_MAX);
    }
    mb_status st = sorted_init(&sorted, b);
    if (st != MB_OK) {
        mb_error_set(err, st, "postings: out of memory");
        goto out;
    }
    st = kv_cursor_open(w->txn, KV_POSTINGS, &f->cursor);
    if (st == MB_OK) {
        st = flush_terms(f, &sorted, err);
        kv_cursor_close(f->cursor);
    }
    sorted_fini(&sorted);
    if (st == MB_OK)
        lex_batch_clear(b);
out:
    for (size_t i = 0; i < 4; i++) {
        mb_buffer_fini(buffers[i]);
    }
    mb_free(f);
    return st;
}
