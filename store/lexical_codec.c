/* SPDX-License-Identifier: Apache-2.0
 * store/lexical_codec.c - bytes of the lexical index.
 *
 * Blocks of postings with their bounds, chunk and head records, the length
 * table, forward indexes. Segment numbers are gaps as varints, the tf follow as
 * one byte each: gaps of frequent words are single bytes, which decode by
 * plain addition, and the tf of one posting is found without decoding others.
 * Invariants: every parse function checks all sizes before anything is used;
 * a block is self-contained, so that it moves between records as it is.
 * Threads: any; no state. */
#include "lexical.h"

#include <string.h>

#include "record.h"

/* ---- bounds ---- */

void
lex_front_clear(struct lex_front *front)
{
    front->max_tf = 0;
}

void
lex_front_add(struct lex_front *front, uint32_t tf, uint32_t length)
{
    while (front->max_tf < tf) {
        front->shortest[++front->max_tf] = UINT16_MAX;
    }
    if (length < front->shortest[tf])
        front->shortest[tf] = (uint16_t)length;
}

void
lex_front_add_points(
    struct lex_front *front, const struct lex_point points[LEX_POINTS])
{
    for (size_t i = 0; i < LEX_POINTS; i++) {
        if (points[i].tf > 0)
            lex_front_add(front, points[i].tf, points[i].length);
    }
}

/* BM25 without idf for segments of common size: only chooses which points to
 * join, any choice is safe. */
static float
reference_score(uint32_t tf, uint32_t length)
{
    float t = (float)tf;
    return t / (t + 0.375f + 1.125f * (float)length / 200.0f);
}

void
lex_front_points(
    const struct lex_front *front, struct lex_point points[LEX_POINTS])
{
    struct lex_point all[LEX_MAX_TF];
    size_t n = 0;
    uint32_t shortest = UINT32_MAX;
    for (uint32_t tf = front->max_tf; tf > 0; tf--) {
        if (front->shortest[tf] < shortest &&
            (front->shortest[tf] < UINT16_MAX || n == 0)) {
            shortest = front->shortest[tf];
            all[n++] = (struct lex_point){tf, shortest};
        }
    }
    while (n > LEX_POINTS) { // join the two neighbours that lose least
        size_t best = 0;
        float least = 2.0f;
        for (size_t i = 0; i + 1 < n; i++) {
            float joined = reference_score(all[i].tf, all[i + 1].length);
            float one = reference_score(all[i].tf, all[i].length);
            float two = reference_score(all[i + 1].tf, all[i + 1].length);
            float loss = joined - (one > two ? one : two);
            if (loss < least) {
                least = loss;
                best = i;
            }
        }
        all[best].length = all[best + 1].length;
        n--;
        memmove(&all[best + 1], &all[best + 2], (n - best - 1) * sizeof all[0]);
    }
    for (size_t i = 0; i < LEX_POINTS; i++) {
        points[i] = i < n ? all[i] : (struct lex_point){0, 0};
    }
}

/* ---- blocks ---- */

/* Reads a gap of more than one byte; NULL if it is cut or too long. */
static const uint8_t *
read_gap(const uint8_t *p, const uint8_t *end, uint32_t *out)
{
    uint32_t v = 0;
    for (unsigned shift = 0; shift < 35 && p < end; shift += 7) {
        uint32_t byte = *p++;
        v |= (byte & 127) << shift;
        if (byte < 128) {
            *out = v;
            return p;
        }
    }
    return NULL;
}

bool
lex_block_decode(const struct lex_block *block, uint32_t segnos[LEX_BLOCK])
{
    const uint8_t *p = block->payload;
    const uint8_t *end = lex_block_tfs(block);
    uint32_t at = block->first;
    uint32_t n = block->n;
    segnos[0] = at;
    if ((size_t)(end - p) == n - 1) { // every gap is one byte
        for (uint32_t i = 1; i < n; i++) {
            at += p[i - 1];
            segnos[i] = at;
        }
        return at == block->last;
    }
    for (uint32_t i = 1; i < n; i++) {
        uint32_t gap;
        if (p < end && *p < 128) {
            gap = *p++;
        } else {
            p = read_gap(p, end, &gap);
            if (p == NULL)
                return false;
        }
        at += gap;
        segnos[i] = at;
    }
    return p == end && at == block->last;
}

size_t
lex_block_encode(
    const uint32_t *segnos, const uint8_t *tfs, uint32_t n, uint8_t *out)
{
    uint8_t *p = out;
    for (uint32_t i = 1; i < n; i++) {
        uint32_t gap = segnos[i] - segnos[i - 1];
        while (gap >= 128) {
            *p++ = (uint8_t)(gap | 128);
            gap >>= 7;
        }
        *p++ = (uint8_t)gap;
    }
    memcpy(p, tfs, n);
    return (size_t)(p - out) + n;
}

static void
put_points(const struct lex_point *points, size_t n, uint8_t *out)
{
    for (size_t i = 0; i < n; i++) {
        out[3 * i] = (uint8_t)points[i].tf;
        mb_put_le16(out + 3 * i + 1, (uint16_t)points[i].length);
    }
}

void
lex_entry_encode(const struct lex_block *block,
    const struct lex_point points[LEX_POINTS], uint8_t out[LEX_ENTRY_BYTES])
{
    mb_put_le32(out, block->first);
    mb_put_le32(out + 4, block->last);
    mb_put_le16(out + 8, (uint16_t)block->size);
    out[10] = (uint8_t)(block->n - 1);
    put_points(points, LEX_POINTS, out + 11);
}

/* ---- records ---- */

/* n entries and their payloads at p; *size bytes are there at most and are
 * really taken on return. */
static bool
parse_run(const uint8_t *p, size_t *size, uint32_t n, struct lex_run *out)
{
    if (*size < (size_t)n * LEX_ENTRY_BYTES)
        return false;
    size_t room = *size - (size_t)n * LEX_ENTRY_BYTES;
    size_t total = 0;
    uint32_t after = 0; // the last segno of the block before, plus one
    for (uint32_t i = 0; i < n; i++) {
        struct lex_block b = lex_run_block(p + i * LEX_ENTRY_BYTES, NULL);
        if (b.n > LEX_BLOCK || b.size < 2 * b.n - 1 || b.first < after ||
            b.last < b.first || b.last == UINT32_MAX)
            return false;
        after = b.last + 1;
        total += b.size;
    }
    if (total > room)
        return false;
    out->entries = p;
    out->payload = p + (size_t)n * LEX_ENTRY_BYTES;
    out->payload_size = total;
    out->n = n;
    *size = (size_t)n * LEX_ENTRY_BYTES + total;
    return true;
}

bool
lex_chunk_parse(struct mb_slice record, struct lex_run *out)
{
    if (record.size < 1 + RECORD_CHECKSUM || record.data[0] == 0)
        return false;
    size_t body = record.size - 1 - RECORD_CHECKSUM;
    size_t size = body;
    return parse_run(record.data + 1, &size, record.data[0], out) &&
           size == body;
}

size_t
lex_chunk_bytes(size_t n, size_t payload_size)
{
    return 1 + n * LEX_ENTRY_BYTES + payload_size + RECORD_CHECKSUM;
}

size_t
lex_chunk_encode(const struct lex_run *run, uint8_t *out)
{
    size_t entries = run->n * (size_t)LEX_ENTRY_BYTES;
    size_t size = lex_chunk_bytes(run->n, run->payload_size);
    MB_ASSERT(run->n < 256 && size <= LEX_MAX_RECORD);
    out[0] = (uint8_t)run->n;
    memcpy(out + 1, run->entries, entries);
    memcpy(out + 1 + entries, run->payload, run->payload_size);
    record_seal(out, size);
    return size;
}

/* Head: df u32, term bytes u8, full blocks u8, rest postings u8, numbers of
 * points u8 (rest | all << 4), last chunk u16; points; term; full blocks; first
 * segno of rest u32 and its payload; checksum. */
#define HEAD_FIXED 10

static size_t
count_points(const struct lex_point points[LEX_POINTS])
{
    size_t n = 0;
    while (n < LEX_POINTS && points[n].tf > 0) {
        n++;
    }
    return n;
}

static void
get_points(const uint8_t *p, size_t n, struct lex_point points[LEX_POINTS])
{
    for (size_t i = 0; i < LEX_POINTS; i++) {
        points[i] = (struct lex_point){0, 0};
        if (i < n) {
            points[i].tf = p[3 * i];
            points[i].length = lex_le16(p + 3 * i + 1);
        }
    }
}

bool
lex_head_parse(struct mb_slice record, struct lex_head *out)
{
    const uint8_t *p = record.data;
    if (record.size < HEAD_FIXED + RECORD_CHECKSUM)
        return false;
    size_t left = record.size - HEAD_FIXED - RECORD_CHECKSUM;
    uint32_t n_rest = p[6];
    size_t n_rest_points = p[7] & 15;
    size_t n_points = p[7] >> 4;
    size_t fixed = 3 * (n_rest_points + n_points) + p[4];
    if (p[4] > LEX_MAX_TERM || n_rest >= LEX_BLOCK ||
        n_rest_points > LEX_POINTS || n_points > LEX_POINTS || left < fixed)
        return false;
    left -= fixed;
    out->df = lex_le32(p);
    out->last_chunk_bytes = lex_le16(p + 8);
    const uint8_t *points = p + HEAD_FIXED;
    get_points(points, n_rest_points, out->rest_points);
    if (n_points > 0) {
        get_points(points + 3 * n_rest_points, n_points, out->points);
    } else { // nothing but rest: the same points
        memcpy(out->points, out->rest_points, sizeof out->points);
    }
    const uint8_t *q = points + 3 * (n_rest_points + n_points);
    out->term = mb_slice_of(q, p[4]);
    q += p[4];
    size_t taken = left;
    if (!parse_run(q, &taken, p[5], &out->full))
        return false;
    q += taken;
    left -= taken;
    out->rest = (struct lex_block){0};
    if (n_rest == 0)
        return left == 0;
    if (left < 4 + 2 * (size_t)n_rest - 1 || left > 4 + (size_t)LEX_BLOCK_BYTES)
        return false;
    out->rest.first = lex_le32(q);
    out->rest.n = n_rest;
    out->rest.payload = q + 4;
    out->rest.size = left - 4;
    // The last segno is not stored: add the gaps up.
    uint32_t at = out->rest.first;
    const uint8_t *gap = out->rest.payload;
    const uint8_t *end = lex_block_tfs(&out->rest);
    while (gap != NULL && gap < end) {
        uint32_t v;
        gap = read_gap(gap, end, &v);
        at += gap != NULL ? v : 0;
    }
    out->rest.last = at;
    return gap != NULL;
}

size_t
lex_head_encode(const struct lex_head *head, uint8_t *out)
{
    size_t n_rest_points = count_points(head->rest_points);
    bool same = n_rest_points > 0 && memcmp(head->points, head->rest_points,
                                         sizeof head->points) == 0;
    size_t n_points = same ? 0 : count_points(head->points);
    mb_put_le32(out, head->df);
    out[4] = (uint8_t)head->term.size;
    out[5] = (uint8_t)head->full.n;
    out[6] = (uint8_t)head->rest.n;
    out[7] = (uint8_t)(n_rest_points | n_points << 4);
    mb_put_le16(out + 8, (uint16_t)head->last_chunk_bytes);
    uint8_t *p = out + HEAD_FIXED;
    put_points(head->rest_points, n_rest_points, p);
    p += 3 * n_rest_points;
    put_points(head->points, n_points, p);
    p += 3 * n_points;
    memcpy(p, head->term.data, head->term.size);
    p += head->term.size;
    if (head->full.n > 0) {
        memcpy(p, head->full.entries, head->full.n * (size_t)LEX_ENTRY_BYTES);
        p += head->full.n * (size_t)LEX_ENTRY_BYTES;
        memcpy(p, head->full.payload, head->full.payload_size);
        p += head->full.payload_size;
    }
    if (head->rest.n > 0) {
        mb_put_le32(p, head->rest.first);
        memcpy(p + 4, head->rest.payload, head->rest.size);
        p += 4 + head->rest.size;
    }
    size_t size = (size_t)(p - out) + RECORD_CHECKSUM;
    MB_ASSERT(size <= LEX_MAX_RECORD);
    record_seal(out, size);
    return size;
}

/* ---- keys and small rows ---- */

void
lex_posting_key(
    struct kv_key *key, mb_collection_id coll, uint32_t id, uint32_t chunk)
{
    kv_key_init(key);
    kv_key_u32(key, coll);
    kv_key_u32(key, id);
    kv_key_u32(key, chunk);
}

void
lex_term_key(struct kv_key *key, mb_collection_id coll, struct mb_slice term)
{
    kv_key_init(key);
    kv_key_u32(key, coll);
    kv_key_bytes(key, term);
}

mb_status
lex_term_find(struct kv_txn *txn, mb_collection_id coll, struct mb_slice term,
    uint32_t *id)
{
    struct kv_key key;
    struct mb_slice v;
    lex_term_key(&key, coll, term);
    mb_status st = kv_get(txn, KV_TERMS, kv_key_slice(&key), &v);
    if (st != MB_OK)
        return st;
    if (v.size != 4 + RECORD_CHECKSUM || !record_is_sound(v))
        return MB_ERR_CORRUPT;
    *id = lex_le32(v.data);
    return MB_OK;
}

mb_status
mb_term_get(struct mb_snapshot *snap, const struct mb_collection *coll,
    uint32_t term_id, struct mb_slice *bytes, uint32_t *df,
    struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice v;
    struct lex_head head;
    lex_posting_key(&key, coll->id, term_id, LEX_HEAD);
    mb_status st = kv_get(snap->txn, KV_POSTINGS, kv_key_slice(&key), &v);
    if (st == MB_ERR_NOT_FOUND)
        return mb_error_set(err, st, "term %u: not found", term_id);
    if (st != MB_OK)
        return kv_txn_explain(snap->txn, st, err);
    if (!lex_head_parse(v, &head))
        return mb_error_set(
            err, MB_ERR_CORRUPT, "term %u: head damaged", term_id);
    *bytes = head.term;
    *df = head.df;
    return MB_OK;
}

/* ---- lengths ---- */

mb_status
lex_lengths_row(struct kv_txn *txn, mb_collection_id coll, uint32_t chunk,
    const uint8_t **lengths)
{
    struct kv_key key;
    struct mb_slice v;
    kv_key_init(&key);
    kv_key_u32(&key, coll);
    kv_key_u32(&key, chunk);
    mb_status st = kv_get(txn, KV_LENGTHS, kv_key_slice(&key), &v);
    if (st == MB_ERR_NOT_FOUND) {
        *lengths = NULL;
        return MB_OK;
    }
    if (st != MB_OK)
        return st;
    if (v.size != LEX_LENGTHS_BYTES)
        return MB_ERR_CORRUPT;
    *lengths = v.data;
    return MB_OK;
}

mb_status
lex_live(struct kv_txn *txn, mb_collection_id coll, uint64_t *words,
    size_t n_bits, struct mb_error *err)
{
    for (size_t first = 0; first < n_bits; first += LEX_LENGTHS) {
        const uint8_t *lengths;
        uint32_t chunk = (uint32_t)(first / LEX_LENGTHS);
        mb_status st = lex_lengths_row(txn, coll, chunk, &lengths);
        if (st != MB_OK)
            return mb_error_set(
                err, st, "lengths %u: %s", chunk, mb_status_text(st));
        if (lengths == NULL)
            continue;
        for (size_t i = 0; i < LEX_LENGTHS && first + i < n_bits; i++) {
            uint64_t live = lex_le16(lengths + 2 * i) != 0;
            words[(first + i) >> 6] |= live << ((first + i) & 63);
        }
    }
    return MB_OK;
}

/* ---- forward index ---- */

/* A pair is varint(gap of id << 1 | tf is above 1), then tf - 2 as a byte if it
 * is: most tf are 1 and cost nothing. */

static void
sift_down(uint32_t *ids, uint32_t *tfs, size_t root, size_t n)
{
    for (;;) {
        size_t child = 2 * root + 1;
        if (child >= n)
            return;
        if (child + 1 < n && ids[child + 1] > ids[child])
            child++;
        if (ids[root] >= ids[child])
            return;
        uint32_t id = ids[root];
        uint32_t tf = tfs[root];
        ids[root] = ids[child];
        tfs[root] = tfs[child];
        ids[child] = id;
        tfs[child] = tf;
        root = child;
    }
}

/* Heap sort of the two arrays by id: in place, no worst case. */
static void
sort_pairs(uint32_t *ids, uint32_t *tfs, size_t n)
{
    for (size_t i = n / 2; i-- > 0;) {
        sift_down(ids, tfs, i, n);
    }
    for (size_t end = n; end-- > 1;) {
        uint32_t id = ids[0];
        uint32_t tf = tfs[0];
        ids[0] = ids[end];
        tfs[0] = tfs[end];
        ids[end] = id;
        tfs[end] = tf;
        sift_down(ids, tfs, 0, end);
    }
}

mb_status
lex_forward_encode(
    uint32_t *ids, uint32_t *tfs, size_t n, struct mb_buffer *out)
{
    sort_pairs(ids, tfs, n);
    mb_status st = mb_buffer_reserve(out, n * (MB_VARINT_MAX + 1));
    if (st != MB_OK)
        return st;
    uint8_t *p = out->data + out->size;
    uint32_t before = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t tf = tfs[i] > LEX_MAX_TF ? LEX_MAX_TF : tfs[i];
        uint64_t gap = ids[i] - before;
        before = ids[i];
        p += mb_put_varint(p, gap << 1 | (tf > 1));
        if (tf > 1)
            *p++ = (uint8_t)(tf - 2);
    }
    out->size = (size_t)(p - out->data);
    return MB_OK;
}

/* The id before travels in the upper half of *pos: gaps need it, and the
 * caller's *term_id may be another variable each time. */
bool
mb_forward_next(
    struct mb_slice forward, size_t *pos, uint32_t *term_id, uint32_t *tf)
{
    size_t start = (size_t)(uint32_t)*pos;
    size_t at = start;
    uint32_t before = (uint32_t)((uint64_t)*pos >> 32);
    uint64_t pair = 0;
    uint8_t byte = 128;
    *pos = start;
    for (unsigned shift = 0; byte >= 128; shift += 7) {
        if (at >= forward.size || shift > 35)
            return false;
        byte = forward.data[at++];
        pair |= (uint64_t)(byte & 127) << shift;
    }
    if ((pair >> 1) > UINT32_MAX - before)
        return false;
    if ((pair & 1) != 0 && at == forward.size)
        return false;
    *term_id = before + (uint32_t)(pair >> 1);
    *tf = (pair & 1) != 0 ? forward.data[at++] + 2u : 1;
    *pos = (size_t)((uint64_t)*term_id << 32 | at);
    return true;
}
