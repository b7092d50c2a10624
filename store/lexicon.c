/* SPDX-License-Identifier: Apache-2.0
 * store/lexicon.c - see lexicon.h. */
#include "lexicon.h"

#include <string.h>

#define FIRST_CAPACITY 256

static mb_status
grow_arrays(struct lexicon *lex)
{
    size_t capacity = lex->capacity == 0 ? FIRST_CAPACITY : lex->capacity * 2;
    void *terms = mb_realloc(lex->terms, capacity * sizeof(*lex->terms));
    if (terms == NULL)
        return MB_ERR_NOMEM;
    lex->terms = terms;
    void *stamp = mb_realloc(lex->stamp, capacity * sizeof(*lex->stamp));
    if (stamp == NULL)
        return MB_ERR_NOMEM;
    lex->stamp = stamp;
    void *pos = mb_realloc(lex->pos, capacity * sizeof(*lex->pos));
    if (pos == NULL)
        return MB_ERR_NOMEM;
    lex->pos = pos;
    lex->capacity = capacity;
    return MB_OK;
}

/* A table twice as large as the arrays. */
static mb_status
grow_slots(struct lexicon *lex)
{
    size_t n_slots = lex->capacity * 2;
    uint32_t *slots = mb_calloc(n_slots, sizeof(*slots));
    if (slots == NULL)
        return MB_ERR_NOMEM;
    for (size_t i = 0; i < lex->n; i++) {
        size_t at = lex->terms[i].hash & (n_slots - 1);
        while (slots[at] != 0) {
            at = (at + 1) & (n_slots - 1);
        }
        slots[at] = (uint32_t)i + 1;
    }
    mb_free(lex->slots);
    lex->slots = slots;
    lex->n_slots = n_slots;
    return MB_OK;
}

mb_status
lexicon_init(struct lexicon *lex, struct mb_arena *arena)
{
    memset(lex, 0, sizeof(*lex));
    lex->arena = arena;
    mb_status st = grow_arrays(lex);
    if (st == MB_OK)
        st = grow_slots(lex);
    if (st != MB_OK)
        lexicon_fini(lex);
    return st;
}

void
lexicon_fini(struct lexicon *lex)
{
    if (lex == NULL)
        return;
    mb_free(lex->terms);
    mb_free(lex->stamp);
    mb_free(lex->pos);
    mb_free(lex->slots);
    memset(lex, 0, sizeof(*lex));
}

mb_status
lexicon_add(struct lexicon *lex, const struct mb_term *term, uint32_t *number)
{
    size_t at = term->hash & (lex->n_slots - 1);
    for (; lex->slots[at] != 0; at = (at + 1) & (lex->n_slots - 1)) {
        uint32_t i = lex->slots[at] - 1;
        const struct new_term *t = &lex->terms[i];
        if (t->hash == term->hash && t->size == term->bytes.size &&
            memcmp(t->bytes, term->bytes.data, t->size) == 0) {
            *number = i;
            return MB_OK;
        }
    }
    if (lex->n == lex->capacity) {
        mb_status st = grow_arrays(lex);
        if (st == MB_OK)
            st = grow_slots(lex);
        if (st != MB_OK)
            return st;
        at = term->hash & (lex->n_slots - 1);
        while (lex->slots[at] != 0) {
            at = (at + 1) & (lex->n_slots - 1);
        }
    }
    const uint8_t *bytes =
        mb_arena_dup(lex->arena, term->bytes.data, term->bytes.size);
    if (bytes == NULL)
        return MB_ERR_NOMEM;
    lex->terms[lex->n] = (struct new_term){.hash = term->hash,
        .bytes = bytes,
        .size = (uint32_t)term->bytes.size,
        .id = UINT32_MAX};
    lex->stamp[lex->n] = UINT32_MAX;
    lex->pos[lex->n] = 0;
    *number = (uint32_t)lex->n++;
    lex->slots[at] = *number + 1;
    return MB_OK;
}
