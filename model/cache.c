/* SPDX-License-Identifier: Apache-2.0
 * model/cache.c - lends blocks of keys and values to sequences. */
#include "cache.h"

#include "decoder.h"

#include <string.h>

#define BLOCK_ALIGN 64u

size_t
cache_value_bytes(mb_cache_type type)
{
    switch (type) {
    case MB_CACHE_F16:
        return 2;
    case MB_CACHE_Q8_0:
        return 1;
    case MB_CACHE_F32:
        return 4;
    }
    return 0;
}

size_t
cache_slice_bytes(mb_cache_type type, size_t head_dim)
{
    size_t half = MB_BLOCK_ROWS * head_dim * cache_value_bytes(type);
    if (type == MB_CACHE_Q8_0)
        half += MB_BLOCK_ROWS * sizeof(float);
    return 2 * half; // head_dim is a multiple of 8: so is 64 of this
}

mb_status
mb_cache_new(const struct mb_decoder *decoder, mb_cache_type type,
    size_t max_rows, struct mb_cache **out, struct mb_error *err)
{
    const struct mb_decoder_info *info = &decoder->info;
    if (cache_value_bytes(type) == 0 || max_rows == 0 ||
        max_rows > SIZE_MAX - MB_BLOCK_ROWS)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "cache: type %d with room for %zu rows", (int)type, max_rows);
    struct mb_cache *cache = mb_calloc(1, sizeof(*cache));
    if (!cache)
        return mb_error_set(err, MB_ERR_NOMEM, "cache");
    cache->type = type;
    cache->n_layers = info->n_layers;
    cache->n_kv_heads = info->n_kv_heads;
    cache->head_dim = info->head_dim;
    cache->slice_bytes = cache_slice_bytes(type, info->head_dim);
    cache->block_bytes = cache->slice_bytes * info->n_layers * info->n_kv_heads;
    cache->max_blocks = (max_rows + MB_BLOCK_ROWS - 1) / MB_BLOCK_ROWS;
    *out = cache;
    return MB_OK;
}

/* ---- blocks ---- */

/* What stands in front of a block: where its memory began, the next free one. */
struct block_head {
    void *memory;
    uint8_t *next_free;
};

static struct block_head *
head_of(uint8_t *block)
{
    return (struct block_head *)(void *)(block - BLOCK_ALIGN);
}

static uint8_t *
make_block(struct mb_cache *cache)
{
    uint8_t *memory = mb_alloc(cache->block_bytes + 2 * BLOCK_ALIGN);
    if (!memory)
        return NULL;
    size_t skip = BLOCK_ALIGN - (uintptr_t)memory % BLOCK_ALIGN;
    uint8_t *block = memory + skip + BLOCK_ALIGN;
    head_of(block)->memory = memory;
    cache->n_blocks++;
    return block;
}

static uint8_t *
lend_block(struct mb_cache *cache)
{
    uint8_t *block = cache->free_list;
    if (block)
        cache->free_list = head_of(block)->next_free;
    else
        block = make_block(cache);
    if (block) {
        memset(block, 0, cache->block_bytes);
        cache->n_used++;
    }
    return block;
}

static void
return_block(struct mb_cache *cache, uint8_t *block)
{
    head_of(block)->next_free = cache->free_list;
    cache->free_list = block;
    cache->n_used--;
}

void
mb_cache_free(struct mb_cache *cache)
{
    if (!cache)
        return;
    MB_ASSERT(cache->n_sequences == 0);
    for (uint8_t *block = cache->free_list; block;) {
        uint8_t *next = head_of(block)->next_free;
        mb_free(head_of(block)->memory);
        block = next;
    }
    mb_free(cache);
}

size_t
mb_cache_block_bytes(const struct mb_cache *cache)
{
    return cache->block_bytes;
}

size_t
mb_cache_n_blocks(const struct mb_cache *cache)
{
    return cache->n_blocks;
}

size_t
mb_cache_n_used(const struct mb_cache *cache)
{
    return cache->n_used;
}

size_t
mb_cache_max_blocks(const struct mb_cache *cache)
{
    return cache->max_blocks;
}

/* ---- sequences ---- */

mb_status
mb_sequence_new(
    struct mb_cache *cache, struct mb_sequence **out, struct mb_error *err)
{
    struct mb_sequence *seq = mb_calloc(1, sizeof(*seq));
    if (!seq)
        return mb_error_set(err, MB_ERR_NOMEM, "cache: sequence");
    seq->cache = cache;
    cache->n_sequences++;
    *out = seq;
    return MB_OK;
}

void
mb_sequence_free(struct mb_sequence *seq)
{
    if (!seq)
        return;
    mb_sequence_truncate(seq, 0);
    seq->cache->n_sequences--;
    mb_free(seq->blocks);
    mb_free(seq);
}

size_t
mb_sequence_length(const struct mb_sequence *seq)
{
    return seq->length;
}

void
mb_sequence_truncate(struct mb_sequence *seq, size_t n)
{
    MB_ASSERT(n <= seq->length);
    seq->length = n;
    sequence_trim(seq);
}

void
sequence_trim(struct mb_sequence *seq)
{
    size_t needed = (seq->length + MB_BLOCK_ROWS - 1) / MB_BLOCK_ROWS;
    while (seq->n_blocks > needed)
        return_block(seq->cache, seq->blocks[--seq->n_blocks]);
}

static mb_status
grow_table(struct mb_sequence *seq, size_t needed, struct mb_error *err)
{
    size_t capacity = seq->capacity > 0 ? seq->capacity : 8;
    while (capacity < needed)
        capacity *= 2;
    if (capacity == seq->capacity)
        return MB_OK;
    uint8_t **blocks = mb_realloc(seq->blocks, capacity * sizeof(*seq->blocks));
    if (!blocks)
        return mb_error_set(err, MB_ERR_NOMEM, "cache: %zu blocks", capacity);
    seq->blocks = blocks;
    seq->capacity = capacity;
    return MB_OK;
}

mb_status
sequence_reserve(struct mb_sequence *seq, size_t n, struct mb_error *err)
{
    struct mb_cache *cache = seq->cache;
    size_t needed = (seq->length + n + MB_BLOCK_ROWS - 1) / MB_BLOCK_ROWS;
    size_t more = needed > seq->n_blocks ? needed - seq->n_blocks : 0;
    if (more > cache->max_blocks - cache->n_used)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "cache: %zu more blocks of %d rows wanted, %zu of %zu are free",
            more, MB_BLOCK_ROWS, cache->max_blocks - cache->n_used,
            cache->max_blocks);
    mb_status st = grow_table(seq, needed, err);
    while (st == MB_OK && seq->n_blocks < needed) {
        uint8_t *block = lend_block(cache);
        if (block)
            seq->blocks[seq->n_blocks++] = block;
        else
            st = mb_error_set(err, MB_ERR_NOMEM, "cache: block of %zu bytes",
                cache->block_bytes);
    }
    if (st != MB_OK)
        sequence_trim(seq);
    return st;
}
