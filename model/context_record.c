/* SPDX-License-Identifier: Apache-2.0
 * model/context_record.c - blocks of contexts as bytes: see FORMAT.md.
 *
 * A record, little-endian: a header of 64 bytes, 63 token ids (u32, unused ones
 * 0) and 4 bytes of padding, then either
 *     block  a slice for each layer and key-value head, as cache.h lays it out
 *     sum    a landmark key (head_dim, fp16) for each layer and key-value head;
 *            in version 2 then statistics (3, head_dim, fp16) for each
 * Header: magic u32, version u32, weights 16 bytes, ordinal u64, type u8, 3
 * bytes 0, rows u16, tokens u16, layers u32, key-value heads u32, head_dim u32,
 * 4 bytes 0, checksum u64 over the other 56 bytes and all behind the header.
 *
 * Who attends to a block reads its header only; the checksum is for those who
 * verify a store. Keys that are not finite would spoil every row after them:
 * sums are checked for that whenever they are read, blocks in a deep check. */
#include "context.h"

#include <math.h>
#include <string.h>

#define BLOCK_MAGIC    0x4b4c424du /* "MBLK" */
#define SUM_MAGIC      0x4d53424du /* "MBSM" */
#define RECORD_VERSION 1u
#define TAIL_VERSION   2u /* of a sum with statistics */

enum {
    AT_VERSION = 4,
    AT_WEIGHTS = 8,
    AT_ORDINAL = 24,
    AT_TYPE = 32,
    AT_ROWS = 36,
    AT_TOKENS = 38,
    AT_LAYERS = 40,
    AT_KV_HEADS = 44,
    AT_HEAD_DIM = 48,
    AT_CHECKSUM = 56
};

/* ---- sizes ---- */

static size_t
n_keys(const struct context_shape *shape)
{
    return shape->n_layers * shape->n_kv_heads;
}

/* The decoder's bounds keep these products small. */
size_t
record_block_bytes(const struct context_shape *shape)
{
    return RECORD_FRONT +
           n_keys(shape) * cache_slice_bytes(shape->type, shape->head_dim);
}

size_t
record_sum_bytes(const struct context_shape *shape)
{
    size_t parts = shape->has_tail ? 1 + TAIL_PARTS : 1;
    return RECORD_FRONT + n_keys(shape) * shape->head_dim * 2 * parts;
}

/* ---- writing ---- */

static uint64_t
checksum_of(const uint8_t *record, size_t size)
{
    return mb_hash64(record + RECORD_HEADER, size - RECORD_HEADER,
        mb_hash64(record, AT_CHECKSUM, 0));
}

static void
write_front(uint8_t *record, uint32_t magic, const struct context_shape *shape,
    uint64_t ordinal, const mb_token_id *tokens, size_t n_tokens)
{
    memset(record, 0, RECORD_FRONT);
    mb_put_le32(record, magic);
    mb_put_le32(record + AT_VERSION,
        magic == SUM_MAGIC && shape->has_tail ? TAIL_VERSION : RECORD_VERSION);
    memcpy(record + AT_WEIGHTS, shape->weights, sizeof(shape->weights));
    mb_put_le64(record + AT_ORDINAL, ordinal);
    record[AT_TYPE] = (uint8_t)shape->type;
    mb_put_le16(record + AT_ROWS, MB_BLOCK_ROWS);
    mb_put_le16(record + AT_TOKENS, (uint16_t)n_tokens);
    mb_put_le32(record + AT_LAYERS, (uint32_t)shape->n_layers);
    mb_put_le32(record + AT_KV_HEADS, (uint32_t)shape->n_kv_heads);
    mb_put_le32(record + AT_HEAD_DIM, (uint32_t)shape->head_dim);
    for (size_t i = 0; i < n_tokens; i++)
        mb_put_le32(record + RECORD_HEADER + 4 * i, (uint32_t)tokens[i]);
}

void
record_seal_block(uint8_t *record, size_t size,
    const struct context_shape *shape, uint64_t ordinal,
    const mb_token_id *tokens, size_t n_tokens)
{
    write_front(record, BLOCK_MAGIC, shape, ordinal, tokens, n_tokens);
    mb_put_le64(record + AT_CHECKSUM, checksum_of(record, size));
}

void
record_write_sum(uint8_t *record, size_t size,
    const struct context_shape *shape, uint64_t ordinal,
    const mb_token_id *tokens, size_t n_tokens, const float *landmarks,
    const float *tails)
{
    size_t n = n_keys(shape) * shape->head_dim;
    write_front(record, SUM_MAGIC, shape, ordinal, tokens, n_tokens);
    for (size_t i = 0; i < n; i++)
        mb_put_le16(
            record + RECORD_FRONT + 2 * i, mb_half_from_float(landmarks[i]));
    for (size_t i = 0; shape->has_tail && i < TAIL_PARTS * n; i++)
        mb_put_le16(
            record + RECORD_FRONT + 2 * (n + i), mb_half_from_float(tails[i]));
    mb_put_le64(record + AT_CHECKSUM, checksum_of(record, size));
}

const uint8_t *
record_landmarks(struct mb_slice sum)
{
    return sum.data + RECORD_FRONT;
}

const uint8_t *
record_tails(const struct context_shape *shape, struct mb_slice sum)
{
    return record_landmarks(sum) + 2 * n_keys(shape) * shape->head_dim;
}

/* ---- reading ---- */

static mb_status
read_header(
    const uint8_t *p, struct mb_context_record *out, struct mb_error *err)
{
    uint32_t magic = mb_get_le32(p);
    uint32_t version = mb_get_le32(p + AT_VERSION);
    if (magic != BLOCK_MAGIC && magic != SUM_MAGIC)
        return mb_error_set(
            err, MB_ERR_FORMAT, "context: no record of a block");
    if (version != RECORD_VERSION &&
        !(magic == SUM_MAGIC && version == TAIL_VERSION))
        return mb_error_set(err, MB_ERR_FORMAT,
            "context: a record of version %u, version %u is read here",
            (unsigned)version, RECORD_VERSION);
    *out = (struct mb_context_record){
        .is_sum = magic == SUM_MAGIC,
        .ordinal = mb_get_le64(p + AT_ORDINAL),
        .type = (mb_cache_type)p[AT_TYPE],
        .block_rows = mb_get_le16(p + AT_ROWS),
        .n_tokens = mb_get_le16(p + AT_TOKENS),
        .n_layers = mb_get_le32(p + AT_LAYERS),
        .n_kv_heads = mb_get_le32(p + AT_KV_HEADS),
        .head_dim = mb_get_le32(p + AT_HEAD_DIM),
        .has_tail = version == TAIL_VERSION,
    };
    memcpy(out->weights, p + AT_WEIGHTS, sizeof(out->weights));
    if (cache_value_bytes(out->type) == 0 || out->block_rows != MB_BLOCK_ROWS ||
        out->n_tokens > BLOCK_TOKENS || out->n_layers == 0 ||
        out->n_layers > DECODER_MAX_LAYERS || out->n_kv_heads == 0 ||
        out->n_kv_heads > DECODER_MAX_HEADS || out->head_dim == 0 ||
        out->head_dim > DECODER_MAX_HEAD || out->head_dim % 8 != 0)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "context: block %llu has type %d, %u rows, %u tokens, %u layers, "
            "%u heads of %u",
            (unsigned long long)out->ordinal, (int)out->type,
            (unsigned)out->block_rows, (unsigned)out->n_tokens,
            (unsigned)out->n_layers, (unsigned)out->n_kv_heads,
            (unsigned)out->head_dim);
    return MB_OK;
}

static bool
is_half_finite(uint16_t h)
{
    return (h & 0x7c00) != 0x7c00;
}

/* Are n numbers of fp16 or float finite? */
static bool
are_finite(const uint8_t *p, size_t n, bool is_half)
{
    for (size_t i = 0; i < n; i++) {
        if (is_half ? !is_half_finite(mb_get_le16(p + 2 * i))
                    : !isfinite(mb_get_lef32(p + 4 * i)))
            return false;
    }
    return true;
}

/* Halves of all slices: numbers, or codes and their scales. */
static bool
is_block_finite(const struct mb_context_record *r, const uint8_t *slices)
{
    size_t values = MB_BLOCK_ROWS * (size_t)r->head_dim;
    size_t half = cache_slice_bytes(r->type, r->head_dim) / 2;
    size_t n = 2 * (size_t)r->n_layers * r->n_kv_heads;
    for (size_t i = 0; i < n; i++, slices += half) {
        bool is_finite =
            r->type == MB_CACHE_Q8_0
                ? are_finite(slices + values, MB_BLOCK_ROWS, false)
                : are_finite(slices, values, r->type == MB_CACHE_F16);
        if (!is_finite)
            return false;
    }
    return true;
}

mb_status
mb_context_record_read(struct mb_slice bytes, bool is_deep,
    struct mb_context_record *out, struct mb_error *err)
{
    struct mb_context_record r;
    if (bytes.size < RECORD_FRONT)
        return mb_error_set(
            err, MB_ERR_CORRUPT, "context: a record of %zu bytes", bytes.size);
    mb_status st = read_header(bytes.data, &r, err);
    if (st != MB_OK)
        return st;
    struct context_shape shape = {
        .n_layers = r.n_layers,
        .n_kv_heads = r.n_kv_heads,
        .head_dim = r.head_dim,
        .type = r.type,
        .has_tail = r.has_tail,
    };
    size_t want =
        r.is_sum ? record_sum_bytes(&shape) : record_block_bytes(&shape);
    if (bytes.size != want)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "context: block %llu has %zu bytes, expected %zu",
            (unsigned long long)r.ordinal, bytes.size, want);
    if (is_deep && mb_get_le64(bytes.data + AT_CHECKSUM) !=
                       checksum_of(bytes.data, bytes.size))
        return mb_error_set(err, MB_ERR_CORRUPT,
            "context: checksum of block %llu", (unsigned long long)r.ordinal);
    if (r.is_sum ? !are_finite(
                       record_landmarks(bytes), (want - RECORD_FRONT) / 2, true)
                 : is_deep && !is_block_finite(&r, bytes.data + RECORD_FRONT))
        return mb_error_set(err, MB_ERR_CORRUPT,
            "context: block %llu has keys that are no numbers",
            (unsigned long long)r.ordinal);
    r.tokens = mb_slice_of(bytes.data + RECORD_HEADER, 4 * (size_t)r.n_tokens);
    *out = r;
    return MB_OK;
}

mb_status
record_check(const struct context_shape *shape, struct mb_slice bytes,
    bool is_sum, uint64_t ordinal, bool is_deep, struct mb_context_record *out,
    struct mb_error *err)
{
    struct mb_context_record r;
    mb_status st = mb_context_record_read(bytes, is_deep, &r, err);
    if (st != MB_OK)
        return st;
    if (r.is_sum != is_sum || r.ordinal != ordinal)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "context: %s of block %llu where that of block %llu belongs",
            r.is_sum ? "landmarks" : "keys and values",
            (unsigned long long)r.ordinal, (unsigned long long)ordinal);
    if (memcmp(r.weights, shape->weights, sizeof(r.weights)) != 0)
        return mb_error_set(err, MB_ERR_MISMATCH,
            "context: block %llu was made with other weights",
            (unsigned long long)ordinal);
    if (r.type != shape->type || r.n_layers != shape->n_layers ||
        r.n_kv_heads != shape->n_kv_heads || r.head_dim != shape->head_dim)
        return mb_error_set(err, MB_ERR_MISMATCH,
            "context: block %llu has %u layers, %u heads of %u, type %d",
            (unsigned long long)ordinal, (unsigned)r.n_layers,
            (unsigned)r.n_kv_heads, (unsigned)r.head_dim, (int)r.type);
    if (r.is_sum && r.has_tail != shape->has_tail)
        return mb_error_set(err, MB_ERR_MISMATCH,
            "context: block %llu was kept %s statistics for a tail",
            (unsigned long long)ordinal, r.has_tail ? "with" : "without");
    if (out)
        *out = r;
    return MB_OK;
}

mb_status
mb_context_check_block(const struct mb_context *ctx, struct mb_slice bytes,
    uint64_t ordinal, bool is_deep, struct mb_error *err)
{
    return record_check(&ctx->shape, bytes, false, ordinal, is_deep, NULL, err);
}

mb_status
mb_context_check_sum(const struct mb_context *ctx, struct mb_slice bytes,
    uint64_t ordinal, bool is_deep, struct mb_error *err)
{
    return record_check(&ctx->shape, bytes, true, ordinal, is_deep, NULL, err);
}
