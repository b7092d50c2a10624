/* SPDX-License-Identifier: Apache-2.0
 * store/text.c - see text.h.
 *
 * Record of a block: u8 kind (0 raw, 1 zstd), u32 size of the text in it, the
 * payload, checksum.
 * How much text fills a page is not known before compression, so the ratio
 * of the block before is taken as a guess; a block that comes out too large is
 * packed once more with what the first try taught. Missing the goal costs a
 * part of a page, nothing else.
 * Invariants: blocks follow one another without gaps and begin where a segment
 * begins; readers check the checksum of a record before they believe its size.
 * Threads: a packer or unpacker belongs to one at a time. */
#include "text.h"

#include <string.h>

#include <zstd.h>

#include "record.h"

#define KIND_RAW    0
#define KIND_ZSTD   1
#define HEADER      5
#define LEVEL       3
#define FRAME       (HEADER + RECORD_CHECKSUM)
#define FIRST_RATIO 0.45

struct text_packer {
    ZSTD_CCtx *zstd;
    double ratio; /* packed / raw of the last block */
};

struct text_unpacker {
    ZSTD_DCtx *zstd;
};

mb_status
text_packer_new(struct text_packer **out)
{
    struct text_packer *p = mb_calloc(1, sizeof(*p));
    if (p == NULL)
        return MB_ERR_NOMEM;
    p->zstd = ZSTD_createCCtx();
    p->ratio = FIRST_RATIO;
    if (p->zstd == NULL) {
        mb_free(p);
        return MB_ERR_NOMEM;
    }
    *out = p;
    return MB_OK;
}

void
text_packer_free(struct text_packer *p)
{
    if (p == NULL)
        return;
    ZSTD_freeCCtx(p->zstd);
    mb_free(p);
}

/* First span behind those that should make one block from `first` on. */
static size_t
choose_end(
    const struct mb_span *spans, size_t n_spans, size_t first, double ratio)
{
    double want = (TEXT_BLOCK_PACKED - FRAME) / ratio;
    size_t raw_max = want < TEXT_BLOCK_BYTES ? (size_t)want : TEXT_BLOCK_BYTES;
    size_t end = first + 1;
    while (end < n_spans && spans[end].end - spans[first].start <= raw_max) {
        end++;
    }
    return end;
}

/* Pack raw into a record at out, which has room for it. */
static size_t
pack_block(
    struct text_packer *p, struct mb_slice raw, uint8_t *out, size_t room)
{
    size_t n = 0;
    out[0] = KIND_ZSTD;
    if (raw.size >= 64) {
        n = ZSTD_compressCCtx(
            p->zstd, out + HEADER, room - FRAME, raw.data, raw.size, LEVEL);
        if (ZSTD_isError(n))
            n = 0;
    }
    if (n == 0 || n >= raw.size) {
        out[0] = KIND_RAW;
        memcpy(out + HEADER, raw.data, raw.size);
        n = raw.size;
    }
    mb_put_le32(out + 1, (uint32_t)raw.size);
    record_seal(out, n + FRAME);
    return n + FRAME;
}

/* Segments [first, *end) become one block. */
static mb_status
make_block(struct text_packer *p, struct mb_slice text,
    const struct mb_span *spans, size_t n_spans, size_t first, size_t *end,
    struct mb_arena *arena, struct text_block *block)
{
    size_t last = choose_end(spans, n_spans, first, p->ratio);
    size_t start = spans[first].start;
    size_t raw_size = spans[last - 1].end - start;
    size_t room = ZSTD_compressBound(raw_size) + FRAME;
    uint8_t *record = mb_alloc(room);
    if (record == NULL)
        return MB_ERR_NOMEM;
    size_t size =
        pack_block(p, mb_slice_of(text.data + start, raw_size), record, room);
    p->ratio = (double)(size - FRAME) / (double)raw_size;
    if (size > TEXT_BLOCK_PACKED && last - first > 1) {
        size_t again = choose_end(spans, n_spans, first, p->ratio * 1.02);
        if (again < last) {
            last = again;
            raw_size = spans[last - 1].end - start;
            size = pack_block(
                p, mb_slice_of(text.data + start, raw_size), record, room);
        }
    }
    block->start = (uint32_t)start;
    block->record = mb_slice_of(mb_arena_dup(arena, record, size), size);
    mb_free(record);
    *end = last;
    return block->record.data == NULL ? MB_ERR_NOMEM : MB_OK;
}

mb_status
text_pack(struct text_packer *p, struct mb_slice text,
    const struct mb_span *spans, size_t n_spans, struct mb_arena *arena,
    struct text_block **blocks, size_t *n_blocks)
{
    size_t n = 0;
    *blocks = NULL;
    *n_blocks = 0;
    if (text.size == 0)
        return MB_OK;
    struct text_block *list = mb_alloc(n_spans * sizeof(*list));
    if (list == NULL)
        return MB_ERR_NOMEM;
    mb_status st = MB_OK;
    for (size_t at = 0; st == MB_OK && at < n_spans; n++) {
        size_t end = at + 1;
        st = make_block(p, text, spans, n_spans, at, &end, arena, &list[n]);
        at = end;
    }
    if (st == MB_OK) {
        *blocks = mb_arena_dup(arena, list, n * sizeof(*list));
        *n_blocks = n;
        if (*blocks == NULL)
            st = MB_ERR_NOMEM;
    }
    mb_free(list);
    return st;
}

/* ---- reading ---- */

mb_status
text_unpacker_new(struct text_unpacker **out)
{
    struct text_unpacker *u = mb_calloc(1, sizeof(*u));
    if (u == NULL)
        return MB_ERR_NOMEM;
    u->zstd = ZSTD_createDCtx();
    if (u->zstd == NULL) {
        mb_free(u);
        return MB_ERR_NOMEM;
    }
    *out = u;
    return MB_OK;
}

void
text_unpacker_free(struct text_unpacker *u)
{
    if (u == NULL)
        return;
    ZSTD_freeDCtx(u->zstd);
    mb_free(u);
}

mb_status
text_block_size(struct mb_slice record, size_t *size)
{
    if (record.size < FRAME || record.data[0] > KIND_ZSTD)
        return MB_ERR_CORRUPT;
    size_t raw = mb_get_le32(record.data + 1);
    size_t packed = record.size - FRAME;
    unsigned long long claimed =
        record.data[0] == KIND_RAW
            ? packed
            : ZSTD_getFrameContentSize(record.data + HEADER, packed);
    if (claimed != raw)
        return MB_ERR_CORRUPT;
    *size = raw;
    return MB_OK;
}

mb_status
text_unpack(
    struct text_unpacker *u, struct mb_slice record, uint8_t *out, size_t size)
{
    size_t want;
    mb_status st = text_block_size(record, &want);
    if (st != MB_OK || want != size)
        return MB_ERR_CORRUPT;
    const uint8_t *payload = record.data + HEADER;
    if (record.data[0] == KIND_RAW) {
        memcpy(out, payload, size);
        return MB_OK;
    }
    size_t n =
        ZSTD_decompressDCtx(u->zstd, out, size, payload, record.size - FRAME);
    return !ZSTD_isError(n) && n == size ? MB_OK : MB_ERR_CORRUPT;
}
