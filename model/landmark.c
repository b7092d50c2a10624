/* SPDX-License-Identifier: Apache-2.0
 * model/landmark.c - see landmark.h. */
#include "landmark.h"

#include <math.h>
#include <string.h>

#define PANEL_BLOCKS 64u

void
landmark_init(struct landmark_table *t, size_t n_tables, size_t head_dim)
{
    *t = (struct landmark_table){.n_tables = n_tables, .head_dim = head_dim};
}

void
landmark_fini(struct landmark_table *t)
{
    for (size_t i = 0; i < t->n_panels; i++)
        mb_free(t->panels[i]);
    mb_free(t->panels);
    *t = (struct landmark_table){0};
}

static size_t
panel_bytes(const struct landmark_table *t)
{
    return t->n_tables * t->head_dim * PANEL_BLOCKS * 2;
}

size_t
landmark_bytes(const struct landmark_table *t)
{
    return t->n_panels * panel_bytes(t) + t->capacity * sizeof(uint8_t *);
}

mb_status
landmark_reserve(struct landmark_table *t, size_t n)
{
    size_t want = (n + PANEL_BLOCKS - 1) / PANEL_BLOCKS;
    if (want > t->capacity) {
        size_t capacity = t->capacity > 0 ? 2 * t->capacity : 4;
        if (capacity < want)
            capacity = want;
        uint8_t **panels = mb_realloc(t->panels, capacity * sizeof(uint8_t *));
        if (!panels)
            return MB_ERR_NOMEM;
        t->panels = panels;
        t->capacity = capacity;
    }
    for (; t->n_panels < want; t->n_panels++) {
        t->panels[t->n_panels] = mb_calloc(panel_bytes(t), 1);
        if (!t->panels[t->n_panels])
            return MB_ERR_NOMEM;
    }
    return MB_OK;
}

/* Where component 0 of a block's key lies; the others follow in steps of 64. */
static uint8_t *
key_at(const struct landmark_table *t, size_t table, size_t block)
{
    return t->panels[block / PANEL_BLOCKS] +
           2 * (table * t->head_dim * PANEL_BLOCKS + block % PANEL_BLOCKS);
}

const uint8_t *
landmark_panel(const struct landmark_table *t, size_t table, size_t first)
{
    return key_at(t, table, first);
}

void
landmark_append(struct landmark_table *t, const uint8_t *keys)
{
    MB_ASSERT(t->n < t->n_panels * PANEL_BLOCKS);
    for (size_t i = 0; i < t->n_tables; i++) {
        uint8_t *to = key_at(t, i, t->n);
        for (size_t j = 0; j < t->head_dim; j++, keys += 2)
            memcpy(to + 2 * j * PANEL_BLOCKS, keys, 2);
    }
    t->n++;
}

void
landmark_truncate(struct landmark_table *t, size_t n)
{
    MB_ASSERT(n <= t->n);
    t->n = n;
    while (t->n_panels > (n + PANEL_BLOCKS - 1) / PANEL_BLOCKS)
        mb_free(t->panels[--t->n_panels]);
}

void
landmark_copy(
    struct landmark_table *to, const struct landmark_table *from, size_t n)
{
    MB_ASSERT(to->n == 0 && n <= from->n && n <= to->n_panels * PANEL_BLOCKS);
    for (size_t b = 0; b < n; b += PANEL_BLOCKS)
        memcpy(to->panels[b / PANEL_BLOCKS], from->panels[b / PANEL_BLOCKS],
            panel_bytes(to));
    to->n = n;
}

void
landmark_key(
    const struct landmark_table *t, size_t table, size_t block, float *out)
{
    const uint8_t *key = key_at(t, table, block);
    for (size_t j = 0; j < t->head_dim; j++)
        out[j] = mb_half_to_float(mb_get_le16(key + 2 * j * PANEL_BLOCKS));
}

void
landmark_scores(const struct landmark_table *t,
    const struct attention *attention, size_t table, const float *q, size_t n,
    size_t n_blocks, float *z, size_t ldz, float *room)
{
    for (size_t b = 0; b < n_blocks; b += PANEL_BLOCKS)
        attention->scores(
            t->head_dim, key_at(t, table, b), q, n, z + b, ldz, room);
}

/* ---- choosing ---- */

void
landmark_choose(const float *z, size_t n, size_t k, struct landmark_choice *out)
{
    uint32_t best[LANDMARK_MAX_K]; // by score, falling
    size_t have = 0;
    float least = -INFINITY; // score of the last one, once there are k
    MB_ASSERT(k <= LANDMARK_MAX_K);
    for (size_t b = 0; b < n && k > 0; b++) {
        if (have == k ? !(z[b] > least) : isnan(z[b]))
            continue;
        size_t at = have < k ? have++ : k - 1;
        for (; at > 0 && z[best[at - 1]] < z[b]; at--)
            best[at] = best[at - 1];
        best[at] = (uint32_t)b;
        least = z[best[have - 1]];
    }
    out->n = 0;
    for (size_t i = 0; i < have; i++) { // rising ordinals, by insertion
        size_t at = out->n++;
        for (; at > 0 && out->ordinals[at - 1] > best[i]; at--)
            out->ordinals[at] = out->ordinals[at - 1];
        out->ordinals[at] = best[i];
    }
}

void
landmark_share(
    const struct compute *compute, const float *z, size_t n, float *best)
{
    float log_sum = compute->log_sum_exp(z, n);
    for (size_t b = 0; b < n; b++) {
        float share = z[b] - log_sum;
        best[b] = share > best[b] ? share : best[b];
    }
}
