/* SPDX-License-Identifier: Apache-2.0
 * model/context_memory.c - memory as a source of blocks. */
#include "mb_context.h"

#include <string.h>

/* Copies of a block's two records. */
struct kept {
    uint8_t *block;
    size_t block_size;
    uint8_t *sum;
    size_t sum_size;
    uint8_t *memory; /* of the segment that it ends, or NULL */
    size_t memory_size;
};

struct mb_context_memory {
    struct kept *kept; /* (n) by ordinal */
    size_t n;
    size_t capacity;
    size_t bytes;
};

mb_status
mb_context_memory_new(struct mb_context_memory **out, struct mb_error *err)
{
    struct mb_context_memory *m = mb_calloc(1, sizeof(*m));
    if (!m)
        return mb_error_set(err, MB_ERR_NOMEM, "context: memory");
    *out = m;
    return MB_OK;
}

/* Forget blocks from n on. */
static void
cut(struct mb_context_memory *m, size_t n)
{
    while (m->n > n) {
        struct kept *k = &m->kept[--m->n];
        m->bytes -= k->block_size + k->sum_size + k->memory_size;
        mb_free(k->block);
        mb_free(k->sum);
        mb_free(k->memory);
    }
}

void
mb_context_memory_free(struct mb_context_memory *m)
{
    if (!m)
        return;
    cut(m, 0);
    mb_free(m->kept);
    mb_free(m);
}

static uint8_t *
copy_of(struct mb_slice s)
{
    uint8_t *p = mb_alloc(s.size);
    if (p)
        memcpy(p, s.data, s.size);
    return p;
}

static mb_status
keep(struct mb_context_memory *m, struct mb_slice block, struct mb_slice sum,
    struct mb_slice memory)
{
    if (m->n == m->capacity) {
        size_t capacity = m->capacity > 0 ? 2 * m->capacity : 16;
        struct kept *kept = mb_realloc(m->kept, capacity * sizeof(*kept));
        if (!kept)
            return MB_ERR_NOMEM;
        m->kept = kept;
        m->capacity = capacity;
    }
    struct kept k = {.block = copy_of(block),
        .block_size = block.size,
        .sum = copy_of(sum),
        .sum_size = sum.size,
        .memory = memory.size > 0 ? copy_of(memory) : NULL,
        .memory_size = memory.size};
    if (!k.block || !k.sum || (memory.size > 0 && !k.memory)) {
        mb_free(k.block);
        mb_free(k.sum);
        mb_free(k.memory);
        return MB_ERR_NOMEM;
    }
    m->kept[m->n++] = k;
    m->bytes += block.size + sum.size + memory.size;
    return MB_OK;
}

static mb_status
memory_commit(
    void *arg, const struct mb_context_segment *segment, struct mb_error *err)
{
    struct mb_context_memory *m = arg;
    mb_status st = MB_OK;
    if (segment->first > m->n)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "context: block %llu behind %zu in memory",
            (unsigned long long)segment->first, m->n);
    cut(m, (size_t)segment->first);
    for (size_t i = 0; i < segment->n_blocks && st == MB_OK; i++)
        st = keep(m, segment->blocks[i], segment->sums[i],
            i + 1 == segment->n_blocks ? segment->memory
                                       : (struct mb_slice){0});
    if (st != MB_OK) {
        cut(m, (size_t)segment->first);
        return mb_error_set(err, st, "context: a segment in memory");
    }
    return MB_OK;
}

static mb_status
memory_fetch(
    void *arg, uint64_t ordinal, struct mb_slice *out, struct mb_error *err)
{
    const struct mb_context_memory *m = arg;
    if (ordinal >= m->n)
        return mb_error_set(err, MB_ERR_NOT_FOUND,
            "context: block %llu of %zu in memory", (unsigned long long)ordinal,
            m->n);
    *out = mb_slice_of(m->kept[ordinal].block, m->kept[ordinal].block_size);
    return MB_OK;
}

struct mb_context_source
mb_context_memory_source(struct mb_context_memory *memory)
{
    return (struct mb_context_source){
        .arg = memory,
        .fetch = memory_fetch,
        .commit = memory_commit,
    };
}

struct mb_slice
mb_context_memory_sum(const struct mb_context_memory *m, uint64_t ordinal)
{
    if (ordinal >= m->n)
        return mb_slice_of(NULL, 0);
    return mb_slice_of(m->kept[ordinal].sum, m->kept[ordinal].sum_size);
}

struct mb_slice
mb_context_memory_kept(const struct mb_context_memory *m, uint64_t ordinal)
{
    if (ordinal >= m->n)
        return mb_slice_of(NULL, 0);
    return mb_slice_of(m->kept[ordinal].memory, m->kept[ordinal].memory_size);
}

size_t
mb_context_memory_bytes(const struct mb_context_memory *m)
{
    return m->bytes;
}
