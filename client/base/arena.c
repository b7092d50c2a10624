/* SPDX-License-Identifier: Apache-2.0
 * client/base/arena.c - memory that is given back all at once.
 *
 * A list of chunks, the newest in front; an allocation moves the end of the
 * front chunk. Chunks double from 8 KiB to 1 MiB, so that a small request
 * costs one heap call and a large one few. A request larger than a chunk gets
 * one of its own, put behind the front so that the rest there is not lost.
 * Under the address sanitizer every allocation is a chunk of exactly its size:
 * what runs over its end is then found.
 * Invariants: handed-out bytes (each rounded up to 16) never pass max_bytes.
 * Threads: one at a time. */
#include "mb_base.h"

#include <stdalign.h>
#include <string.h>

#define ARENA_FIRST_CHUNK ((size_t)8 << 10)
#define ARENA_LAST_CHUNK  ((size_t)1 << 20)
#define ARENA_ALIGN       16

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ARENA_ISOLATES true
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define ARENA_ISOLATES true
#endif
#ifndef ARENA_ISOLATES
#define ARENA_ISOLATES false
#endif

struct chunk {
    alignas(ARENA_ALIGN) struct chunk *next;
    size_t size;
    size_t used;
    alignas(ARENA_ALIGN) uint8_t data[];
};

struct mb_arena {
    struct chunk *front;
    size_t max_bytes;
    size_t bytes;      /* handed out, rounded up */
    size_t next_chunk; /* size of the next ordinary chunk */
};

struct mb_arena *
mb_arena_new(size_t max_bytes)
{
    struct mb_arena *arena = mb_alloc(sizeof *arena);
    if (!arena)
        return NULL;
    *arena = (struct mb_arena){
        .max_bytes = max_bytes, .next_chunk = ARENA_FIRST_CHUNK};
    return arena;
}

static void
free_chunks(struct chunk *chunk)
{
    while (chunk) {
        struct chunk *next = chunk->next;
        mb_free(chunk);
        chunk = next;
    }
}

void
mb_arena_free(struct mb_arena *arena)
{
    if (!arena)
        return;
    free_chunks(arena->front);
    mb_free(arena);
}

void
mb_arena_reset(struct mb_arena *arena)
{
    struct chunk *front = arena->front;
    arena->bytes = 0;
    arena->next_chunk = ARENA_FIRST_CHUNK;
    if (!front)
        return;
    // The first chunk made is the last of the list; it stays if it is an
    // ordinary one, so that an arena that once held much does not keep it.
    struct chunk *keep = NULL;
    while (front) {
        struct chunk *next = front->next;
        if (!next && front->size <= ARENA_LAST_CHUNK && !ARENA_ISOLATES)
            keep = front;
        else
            mb_free(front);
        front = next;
    }
    if (keep)
        keep->used = 0;
    arena->front = keep;
}

static struct chunk *
add_chunk(struct mb_arena *arena, size_t size)
{
    bool own = ARENA_ISOLATES || size > arena->next_chunk / 2;
    size_t room = own ? size : arena->next_chunk;
    size_t total;
    if (!mb_size_add(room, sizeof(struct chunk), &total))
        return NULL;
    struct chunk *chunk = mb_alloc(total);
    if (!chunk)
        return NULL;
    chunk->size = room;
    chunk->used = 0;
    if (own && arena->front) {
        chunk->next = arena->front->next;
        arena->front->next = chunk;
        return chunk;
    }
    chunk->next = arena->front;
    arena->front = chunk;
    if (!own && arena->next_chunk < ARENA_LAST_CHUNK)
        arena->next_chunk *= 2;
    return chunk;
}

void *
mb_arena_alloc(struct mb_arena *arena, size_t size)
{
    size_t rounded;
    if (!mb_size_add(size, ARENA_ALIGN - 1, &rounded))
        return NULL;
    rounded &= ~(size_t)(ARENA_ALIGN - 1);
    if (rounded > arena->max_bytes - arena->bytes)
        return NULL;
    size_t taken = ARENA_ISOLATES ? size : rounded;
    struct chunk *chunk = arena->front;
    if (ARENA_ISOLATES || !chunk || taken > chunk->size - chunk->used) {
        chunk = add_chunk(arena, taken);
        if (!chunk)
            return NULL;
    }
    void *p = chunk->data + chunk->used;
    chunk->used += taken;
    arena->bytes += rounded;
    return p;
}

void *
mb_arena_calloc(struct mb_arena *arena, size_t count, size_t size)
{
    size_t total;
    if (!mb_size_mul(count, size, &total))
        return NULL;
    void *p = mb_arena_alloc(arena, total);
    if (p)
        memset(p, 0, total);
    return p;
}

void *
mb_arena_dup(struct mb_arena *arena, const void *data, size_t size)
{
    void *p = mb_arena_alloc(arena, size);
    if (p && size > 0)
        memcpy(p, data, size);
    return p;
}

char *
mb_arena_strndup(struct mb_arena *arena, const char *s, size_t n)
{
    size_t size;
    if (!mb_size_add(n, 1, &size))
        return NULL;
    char *copy = mb_arena_alloc(arena, size);
    if (!copy)
        return NULL;
    if (n > 0)
        memcpy(copy, s, n);
    copy[n] = '\0';
    return copy;
}

size_t
mb_arena_bytes(const struct mb_arena *arena)
{
    return arena->bytes;
}

size_t
mb_arena_room(const struct mb_arena *arena)
{
    return arena->max_bytes - arena->bytes;
}
