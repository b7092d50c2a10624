/* SPDX-License-Identifier: Apache-2.0
 * store/lexical_verify.c - checks terms, postings, lengths, and all of them
 * against the forward indexes.
 *
 * Each posting is folded to a number that is added to a sum of its segment;
 * each pair of a forward index is folded alike and subtracted. A sum that is
 * not 0 at the end says that the two do not hold the same, in whatever
 * direction, for one number a segment instead of a copy of the index.
 * The bounds matter too: a posting above the bound of its block would be passed
 * over by searches without anybody noticing.
 * Threads: as the snapshot's. */
#include "lexical.h"

#include <string.h>

#include "document.h"
#include "record.h"
#include "verify.h"

/* Rows between two looks at whether to go on. */
#define STEP_ROWS 4096

struct lexical_check {
    struct verify *v;
    const struct mb_collection *coll;
    struct mb_error *err;
    uint16_t *lengths; /* of segment numbers below n_segments */
    uint64_t *sums;    /* likewise: postings less forward pairs, folded */
    size_t n_segments; /* as many as the length table has room for */
    uint64_t n_terms;
    uint64_t n_rows; /* of the step at hand */
    double share;    /* of the step, in this whole check */
    double done;
    /* The term whose postings are being walked. */
    uint32_t id;
    bool open;      /* chunks were seen, their head was not yet */
    uint64_t df;    /* postings seen */
    uint64_t after; /* the next segno must be at least this */
    struct lex_front front;
};

static mb_status
step(struct lexical_check *c, double part)
{
    if (c->n_rows++ % STEP_ROWS != 0)
        return MB_OK;
    return verify_step(c->v, c->done + c->share * part, c->err);
}

/* ---- lengths ---- */

static mb_status
check_lengths_row(void *arg, struct mb_slice key, struct mb_slice val)
{
    struct lexical_check *c = arg;
    if (key.size != 8 || val.size != LEX_LENGTHS_BYTES ||
        !record_is_sound(val)) {
        verify_broken(c->v, KV_LENGTHS, key, "damaged: %zu bytes", val.size);
        return MB_OK;
    }
    size_t first = (size_t)mb_get_be32(key.data + 4) * LEX_LENGTHS;
    for (size_t i = 0; i < LEX_LENGTHS; i++) {
        uint32_t length = lex_le16(val.data + 2 * i);
        if (first + i < c->n_segments) {
            c->lengths[first + i] = (uint16_t)length;
        } else if (length != 0) {
            verify_broken(c->v, KV_LENGTHS, key,
                "segment %zu has a length but no number was given so high",
                first + i);
            break;
        }
    }
    return MB_OK;
}

/* Room for every segment number that the table knows. */
static mb_status
load_lengths(struct lexical_check *c, struct mb_slice prefix)
{
    struct kv_cursor *cursor;
    struct mb_slice k = {NULL, 0};
    mb_status st = kv_cursor_open(c->v->snap->txn, KV_LENGTHS, &cursor);
    if (st != MB_OK)
        return st;
    st = kv_cursor_last_of(cursor, prefix, &k, NULL);
    if (st == MB_OK && k.size == 8) {
        size_t room = ((size_t)mb_get_be32(k.data + 4) + 1) * LEX_LENGTHS;
        c->n_segments = room < c->coll->next_segno ? room : c->coll->next_segno;
    }
    kv_cursor_close(cursor);
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return st;
    c->lengths = mb_calloc(c->n_segments + 1, sizeof *c->lengths);
    c->sums = mb_calloc(c->n_segments + 1, sizeof *c->sums);
    if (c->lengths == NULL || c->sums == NULL)
        return MB_ERR_NOMEM;
    return verify_walk(c->v, KV_LENGTHS, prefix, check_lengths_row, c, c->err);
}

static void
check_length_counts(struct lexical_check *c, struct mb_slice prefix)
{
    uint64_t live = 0;
    uint64_t sum = 0;
    for (size_t i = 0; i < c->n_segments; i++) {
        live += c->lengths[i] != 0;
        sum += c->lengths[i];
    }
    if (live != c->coll->n_segments)
        verify_broken(c->v, KV_LENGTHS, prefix,
            "%llu segments live, the collection counts %llu",
            (unsigned long long)live, (unsigned long long)c->coll->n_segments);
    if (sum != c->coll->sum_lengths)
        verify_broken(c->v, KV_LENGTHS, prefix,
            "lengths sum to %llu, the collection says %llu",
            (unsigned long long)sum, (unsigned long long)c->coll->sum_lengths);
}

/* ---- postings ---- */

/* A posting as a number whose sums are as good as unique. */
static uint64_t
fold(uint32_t id, uint32_t tf)
{
    uint64_t x = ((uint64_t)id << 8 | tf) + UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

static bool
is_covered(
    const struct lex_point points[LEX_POINTS], uint32_t tf, uint32_t length)
{
    bool covered = false;
    for (size_t i = 0; i < LEX_POINTS; i++) {
        covered |= points[i].tf >= tf && points[i].length <= length;
    }
    return covered;
}

/* One block: rising segments, all live, all covered by the points. Says what
 * is wrong first, or NULL. */
static const char *
check_block(struct lexical_check *c, const struct lex_block *block,
    const struct lex_point points[LEX_POINTS])
{
    uint32_t segnos[LEX_BLOCK];
    const uint8_t *tfs = lex_block_tfs(block);
    const char *wrong = NULL;
    if (!lex_block_decode(block, segnos))
        return "block does not unpack";
    for (uint32_t i = 0; i < block->n; i++) {
        uint32_t s = segnos[i];
        if (s < c->after)
            return "segments do not rise";
        c->after = (uint64_t)s + 1;
        c->df++;
        if (tfs[i] == 0) {
            wrong = "a posting has no count";
            continue;
        }
        if (s >= c->n_segments || c->lengths[s] == 0) {
            wrong = "a posting of a segment that is gone";
            continue;
        }
        if (!is_covered(points, tfs[i], c->lengths[s]))
            wrong = "a posting is above the bound of its block";
        lex_front_add(&c->front, tfs[i], c->lengths[s]);
        c->sums[s] += fold(c->id, tfs[i]);
    }
    return wrong;
}

static const char *
check_run(struct lexical_check *c, const struct lex_run *run)
{
    const char *wrong = NULL;
    const uint8_t *payload = run->payload;
    for (uint32_t i = 0; i < run->n; i++) {
        struct lex_point points[LEX_POINTS];
        const uint8_t *entry = run->entries + i * LEX_ENTRY_BYTES;
        struct lex_block block = lex_run_block(entry, payload);
        payload += block.size;
        lex_entry_points(entry, points);
        const char *w = check_block(c, &block, points);
        wrong = wrong != NULL ? wrong : w;
    }
    return wrong;
}

static const char *
check_chunk(struct lexical_check *c, uint32_t key_last, struct mb_slice val)
{
    struct lex_run run;
    if (!record_is_sound(val) || !lex_chunk_parse(val, &run))
        return "chunk damaged";
    const char *wrong = check_run(c, &run);
    if (wrong == NULL && c->after > (uint64_t)key_last + 1)
        wrong = "segments above the chunk's key";
    c->after = (uint64_t)key_last + 1;
    return wrong;
}

static const char *
check_head(struct lexical_check *c, struct mb_slice val)
{
    struct lex_head head;
    uint32_t id;
    if (!record_is_sound(val) || !lex_head_parse(val, &head))
        return "head damaged";
    const char *wrong = check_run(c, &head.full);
    if (head.rest.n > 0) {
        const char *w = check_block(c, &head.rest, head.rest_points);
        wrong = wrong != NULL ? wrong : w;
    }
    if (wrong != NULL)
        return wrong;
    if (c->df == 0 || c->df != head.df)
        return "not as many postings as the head says";
    // The postings themselves, not points made of them: those may be rounded
    // up beyond every posting, and another way than the stored ones were.
    for (uint32_t tf = 1; tf <= c->front.max_tf; tf++) {
        uint32_t shortest = c->front.shortest[tf];
        if ((shortest < UINT16_MAX || tf == c->front.max_tf) &&
            !is_covered(head.points, tf, shortest))
            return "postings above the bound of the term";
    }
    mb_status st = lex_term_find(c->v->snap->txn, c->coll->id, head.term, &id);
    if (st != MB_OK || id != c->id)
        return "its term does not lead to it";
    return NULL;
}

/* The term whose chunks were walked has no head. */
static void
close_term(struct lexical_check *c)
{
    if (c->open) {
        struct kv_key key;
        lex_posting_key(&key, c->coll->id, c->id, LEX_HEAD);
        verify_broken(
            c->v, KV_POSTINGS, kv_key_slice(&key), "chunks without a head");
    }
    c->open = false;
    c->df = 0;
    c->after = 0;
    lex_front_clear(&c->front);
}

static mb_status
check_posting_row(void *arg, struct mb_slice key, struct mb_slice val)
{
    struct lexical_check *c = arg;
    if (key.size != 12) {
        verify_broken(c->v, KV_POSTINGS, key, "key has %zu bytes", key.size);
        return MB_OK;
    }
    uint32_t id = mb_get_be32(key.data + 4);
    uint32_t chunk = mb_get_be32(key.data + 8);
    if (!c->open || id != c->id)
        close_term(c);
    c->id = id;
    const char *wrong = id >= c->coll->next_term ? "no term was numbered so"
                        : chunk == LEX_HEAD      ? check_head(c, val)
                                                 : check_chunk(c, chunk, val);
    c->open = chunk != LEX_HEAD;
    if (wrong != NULL)
        verify_broken(c->v, KV_POSTINGS, key, "term %u: %s", id, wrong);
    return step(c, (double)id / ((double)c->coll->next_term + 1));
}

/* ---- terms ---- */

static mb_status
check_term_row(void *arg, struct mb_slice key, struct mb_slice val)
{
    struct lexical_check *c = arg;
    struct kv_key head_key;
    struct mb_slice v;
    struct lex_head head;
    c->n_terms++;
    if (val.size != 4 + RECORD_CHECKSUM || !record_is_sound(val) ||
        key.size > 4 + LEX_MAX_TERM) {
        verify_broken(c->v, KV_TERMS, key, "damaged: %zu bytes", val.size);
        return MB_OK;
    }
    uint32_t id = lex_le32(val.data);
    struct mb_slice term = mb_slice_of(key.data + 4, key.size - 4);
    lex_posting_key(&head_key, c->coll->id, id, LEX_HEAD);
    mb_status st =
        kv_get(c->v->snap->txn, KV_POSTINGS, kv_key_slice(&head_key), &v);
    if (st == MB_ERR_NOT_FOUND) {
        verify_broken(c->v, KV_TERMS, key, "term %u has no head", id);
    } else if (st == MB_OK && lex_head_parse(v, &head) &&
               !mb_slice_equal(head.term, term)) {
        verify_broken(c->v, KV_TERMS, key, "term %u is another one", id);
    }
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return st;
    return step(c, (double)c->n_terms / ((double)c->coll->n_terms + 1));
}

/* ---- forward indexes ---- */

static mb_status
check_segment_row(void *arg, struct mb_slice key, struct mb_slice val)
{
    struct lexical_check *c = arg;
    struct mb_segment seg;
    // A damaged row is reported by document_verify.
    if (key.size != 8 || segment_decode(val, &seg) != MB_OK)
        return MB_OK;
    uint32_t segno = mb_get_be32(key.data + 4);
    if (segno >= c->n_segments || c->lengths[segno] != seg.length) {
        verify_broken(c->v, KV_SEGMENTS, key,
            "length %u, the length table says %u", seg.length,
            segno < c->n_segments ? c->lengths[segno] : 0u);
        return MB_OK;
    }
    size_t pos = 0;
    uint32_t id;
    uint32_t tf;
    while (mb_forward_next(seg.forward, &pos, &id, &tf)) {
        c->sums[segno] -= fold(id, tf);
    }
    if (pos < seg.forward.size) {
        verify_broken(c->v, KV_SEGMENTS, key, "forward index is damaged");
    } else if (c->sums[segno] != 0) {
        verify_broken(c->v, KV_SEGMENTS, key,
            "forward index and postings do not hold the same");
    }
    c->sums[segno] = 0;
    c->lengths[segno] = 0; // seen
    return step(c, (double)segno / ((double)c->n_segments + 1));
}

/* Segments of the length table that have no row. */
static void
check_left_over(struct lexical_check *c)
{
    for (size_t i = 0; i < c->n_segments; i++) {
        if (c->lengths[i] == 0)
            continue;
        struct kv_key key;
        segment_key(&key, c->coll->id, (mb_segno)i);
        verify_broken(c->v, KV_LENGTHS, kv_key_slice(&key),
            "segment %zu is live but has no sound row", i);
    }
}

/* ---- all ---- */

mb_status
lex_verify(
    struct verify *v, const struct mb_collection *coll, struct mb_error *err)
{
    struct lexical_check *c = mb_calloc(1, sizeof *c);
    if (c == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "verify: out of memory");
    c->v = v;
    c->coll = coll;
    c->err = err;
    struct kv_key key;
    kv_key_init(&key);
    kv_key_u32(&key, coll->id);
    struct mb_slice prefix = kv_key_slice(&key);
    mb_status st = load_lengths(c, prefix);
    if (st != MB_OK)
        goto out;
    check_length_counts(c, prefix);
    c->share = 0.6;
    st = verify_walk(v, KV_POSTINGS, prefix, check_posting_row, c, err);
    if (st != MB_OK)
        goto out;
    close_term(c);
    c->done = 0.6;
    c->share = 0.2;
    st = verify_walk(v, KV_TERMS, prefix, check_term_row, c, err);
    if (st != MB_OK)
        goto out;
    if (c->n_terms != coll->n_terms)
        verify_broken(v, KV_TERMS, prefix,
            "%llu terms, the collection counts %llu",
            (unsigned long long)c->n_terms, (unsigned long long)coll->n_terms);
    c->done = 0.8;
    // These rows are counted by document_verify.
    uint64_t n_records = v->result->n_records;
    st = verify_walk(v, KV_SEGMENTS, prefix, check_segment_row, c, err);
    v->result->n_records = n_records;
    if (st == MB_OK)
        check_left_over(c);
out:
    mb_free(c->lengths);
    mb_free(c->sums);
    mb_free(c);
    return kv_txn_explain(v->snap->txn, st, err);
}
