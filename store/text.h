/* SPDX-License-Identifier: Apache-2.0
 * store/text.h - texts in compressed blocks: the only face of zstd.
 *
 * A document's text is cut into blocks of whole segments, so that a passage is
 * read by unpacking one block (about 18 KiB), not a whole book. A block is
 * made to fill one page of the file after compression. Blocks in which zstd
 * gains nothing are kept raw. */
#ifndef STORE_TEXT_H
#define STORE_TEXT_H

#include "mb_base.h"

/* Largest text of one block before compression; a single segment above it (it
 * may have up to 252 tokens of any length) makes a block by itself. */
#define TEXT_BLOCK_BYTES 12288
/* Payload that fills one page: 4096 - 16 of LMDB's header. Two pages would
 * pack a tenth better, but unpacking ten hits is a part of every query. */
#define TEXT_BLOCK_PACKED (4096 - 16)

struct text_block {
    uint32_t start;         /* first byte of the text in it */
    struct mb_slice record; /* as stored */
};

struct text_packer; /* a zstd context; one thread */
struct text_unpacker;

MB_MUST_USE mb_status text_packer_new(struct text_packer **out);
void text_packer_free(struct text_packer *p);
/* Cut and pack text, whose segments are spans; *blocks and their bytes live in
 * arena. An empty text has no block. Errors: NOMEM. */
MB_MUST_USE mb_status text_pack(struct text_packer *p, struct mb_slice text,
    const struct mb_span *spans, size_t n_spans, struct mb_arena *arena,
    struct text_block **blocks, size_t *n_blocks);

MB_MUST_USE mb_status text_unpacker_new(struct text_unpacker **out);
void text_unpacker_free(struct text_unpacker *u);
/* Bytes of the text in a stored block. Errors: CORRUPT. */
MB_MUST_USE mb_status text_block_size(struct mb_slice record, size_t *size);
/* Unpack a whole block into out, which has size bytes. Errors: CORRUPT. */
MB_MUST_USE mb_status text_unpack(
    struct text_unpacker *u, struct mb_slice record, uint8_t *out, size_t size);

#endif
