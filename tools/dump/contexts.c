/* SPDX-License-Identifier: Apache-2.0
 * tools/dump/contexts.c - long contexts: which there are, what one consists of,
 * and what was retrieved when over its last generation.
 *
 * The map of that has a line for each step (a few tokens that were generated)
 * and a column for each few blocks, from the oldest on the left; the darker, the
 * more often any layer, row and head chose them in that step.
 * Threads: the main thread. */
#include <stdio.h>
#include <string.h>

#include "display.h"
#include "dump.h"
#include "mb_store_context.h"

#define MAP_MARGIN  14 /* columns before the map */
#define MIN_COLUMNS 16u
#define MAX_COLUMNS 512u
#define MAX_STEPS   4096u

static const char *const kv_types[] = {"f16", "q8_0", "f32"};

/* ---- all ---- */

static void
json_context(struct json_writer *w, const struct mb_stored_context *c)
{
    char hex[33];

    for (size_t i = 0; i < 16; i++) {
        (void)snprintf(hex + 2 * i, 3, "%02x", c->shape.fingerprint[i]);
    }
    json_kv_cstr(w, "name", c->name);
    json_kv_u64(w, "id", c->id);
    json_kv_u64(w, "tokens", c->n_tokens);
    json_kv_u64(w, "blocks", c->n_blocks);
    json_kv_u64(w, "segments", c->n_segments);
    json_kv_u64(w, "tail_tokens", c->n_tail);
    json_kv_u64(w, "bytes", c->bytes);
    json_kv_u64(w, "quota", c->quota);
    json_kv_u64(w, "parent", c->parent);
    json_kv_u64(w, "fork_tokens", c->fork_tokens);
    json_kv_u64(w, "created_ms", c->created_ms);
    json_kv_u64(w, "changed_ms", c->changed_ms);
    json_kv_u64(w, "used_ms", c->used_ms);
    json_kv_cstr(w, "weights", hex);
    json_kv_cstr(
        w, "kv", c->shape.kv_type < 3 ? kv_types[c->shape.kv_type] : "?");
    json_kv_u64(w, "layers", c->shape.n_layers);
    json_kv_u64(w, "kv_heads", c->shape.n_kv_heads);
    json_kv_u64(w, "head_dim", c->shape.head_dim);
    json_kv_u64(w, "block_bytes", c->shape.kv_bytes);
    json_key(w, "settings");
    json_msgpack(w, c->settings);
}

mb_status
view_contexts(struct dump *d, const char *arg, struct mb_error *err)
{
    static const char *const heads[] = {
        "context", "tokens", "blocks", "bytes", "quota", "changed"};
    struct mb_stored_context *list;
    char when[DISPLAY_FIGURE];
    uint64_t total = 0;
    uint64_t count;
    size_t n;
    mb_status st = mb_store_context_list(d->snap, d->arena, &list, &n, err);

    (void)arg;
    if (st == MB_OK)
        st = mb_store_context_total(d->snap, &total, &count, err);
    for (size_t i = 0; st == MB_OK && d->json && i < n; i++) {
        json_object_begin(&d->w);
        json_context(&d->w, &list[i]);
        json_object_end(&d->w);
        st = dump_flush_json(d, err);
    }
    if (st != MB_OK || d->json)
        return st;
    struct table *t = table_new(6, heads, "lrrrrl");
    for (size_t i = 0; t != NULL && i < n; i++) {
        table_cell_slice(t, mb_slice_cstr(list[i].name));
        table_cell_count(t, list[i].n_tokens);
        table_cell_count(t, list[i].n_blocks);
        table_cell_bytes(t, list[i].bytes);
        if (list[i].quota > 0)
            table_cell_bytes(t, list[i].quota);
        else
            table_cell(t, "any");
        table_cell(t, "%s", show_time(when, list[i].changed_ms));
    }
    if (t != NULL && n > 0)
        table_print(t, stdout, 0);
    table_free(t);
    (void)printf("%zu contexts, %s of blocks, shared ones once\n", n,
        show_bytes(when, total));
    return MB_OK;
}

/* ---- what was retrieved when ---- */

static void
json_trace(struct json_writer *w, const struct mb_stored_trace *t)
{
    json_key(w, "retrieved");
    json_object_begin(w);
    json_kv_u64(w, "tokens", t->n_tokens);
    json_kv_u64(w, "step_tokens", t->step_tokens);
    json_key(w, "picks");
    json_array_begin(w);
    for (size_t i = 0; i < t->n; i++) {
        json_array_begin(w);
        json_u64(w, t->picks[i].step);
        json_u64(w, t->picks[i].block);
        json_u64(w, t->picks[i].count);
        json_array_end(w);
    }
    json_array_end(w);
    json_object_end(w);
}

/* Sums of picks in cells of the map: (n_steps, n_columns). */
static uint64_t
fill_map(const struct mb_stored_trace *t, uint32_t n_blocks, uint64_t *cells,
    uint32_t n_steps, uint32_t n_columns)
{
    uint64_t most = 0;

    for (size_t i = 0; i < t->n; i++) {
        const struct mb_stored_pick *p = &t->picks[i];

        if (p->step >= n_steps || p->block >= n_blocks)
            continue;
        uint64_t column = (uint64_t)p->block * n_columns / n_blocks;
        uint64_t *cell = &cells[p->step * n_columns + column];
        *cell += p->count;
        if (*cell > most)
            most = *cell;
    }
    return most;
}

static mb_status
print_map(struct dump *d, const struct mb_stored_context *c,
    const struct mb_stored_trace *t, struct mb_error *err)
{
    static const char shades[] = " .:-=+*#%@";
    uint32_t n_steps = 0;
    uint32_t n_columns =
        d->width > MAP_MARGIN + MIN_COLUMNS ? d->width - MAP_MARGIN - 2 : 64;

    for (size_t i = 0; i < t->n; i++) {
        uint32_t step = t->picks[i].step;

        if (step < MAX_STEPS && step >= n_steps)
            n_steps = step + 1;
    }
    if (n_columns > MAX_COLUMNS)
        n_columns = MAX_COLUMNS;
    if (n_columns > c->n_blocks)
        n_columns = c->n_blocks;
    if (n_steps == 0 || n_columns == 0)
        return MB_OK;
    uint64_t *cells =
        mb_arena_calloc(d->arena, (size_t)n_steps * n_columns, sizeof *cells);
    if (cells == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "map of %u steps", n_steps);
    uint64_t most = fill_map(t, c->n_blocks, cells, n_steps, n_columns);
    (void)printf("\nretrieved over the last generation: %u tokens, blocks 0 to "
                 "%u from left to right\n",
        (unsigned)t->n_tokens, (unsigned)c->n_blocks - 1);
    for (uint32_t step = 0; step < n_steps; step++) {
        (void)printf(
            "%*u |", MAP_MARGIN - 3, (unsigned)(step * t->step_tokens));
        for (uint32_t k = 0; k < n_columns; k++) {
            uint64_t v = cells[step * n_columns + k];
            size_t shade = v == 0 ? 0 : 1 + (size_t)(v * 8 / most);

            (void)fputc(shades[shade], stdout);
        }
        (void)printf("|\n");
    }
    return MB_OK;
}

/* ---- one ---- */

static void
print_context(const struct mb_stored_context *c)
{
    char a[DISPLAY_FIGURE];
    char b[DISPLAY_FIGURE];

    (void)printf("name      %s\n", c->name);
    (void)printf("tokens    %s, of them %u in the window\n",
        show_count(a, c->n_tokens), (unsigned)c->n_tail);
    (void)printf("blocks    %s in %u segments, %u tokens each\n",
        show_count(a, c->n_blocks), (unsigned)c->n_segments,
        (unsigned)c->shape.block_tokens);
    (void)printf("bytes     %s", show_bytes(a, c->bytes));
    if (c->quota > 0)
        (void)printf(" of a quota of %s", show_bytes(b, c->quota));
    (void)printf(", %s a block\n", show_bytes(a, c->shape.kv_bytes));
    (void)printf("model     %u layers, %u key-value heads of %u, weights ",
        (unsigned)c->shape.n_layers, (unsigned)c->shape.n_kv_heads,
        (unsigned)c->shape.head_dim);
    for (size_t i = 0; i < 8; i++) {
        (void)printf("%02x", c->shape.fingerprint[i]);
    }
    (void)printf("...\nkv        %s\n",
        c->shape.kv_type < 3 ? kv_types[c->shape.kv_type] : "?");
    if (c->parent != 0)
        (void)printf("fork      of context %llu at token %s\n",
            (unsigned long long)c->parent, show_count(a, c->fork_tokens));
    (void)printf("changed   %s\n", show_time(a, c->changed_ms));
    for (size_t i = 0; i < c->n_runs; i++) {
        (void)printf("%s%u to %u in strip %llu", i == 0 ? "rows      " : ", ",
            (unsigned)c->runs[i].first, (unsigned)c->runs[i].end - 1,
            (unsigned long long)c->runs[i].strip);
    }
    if (c->n_runs > 0)
        (void)printf("\n");
}

mb_status
view_context(struct dump *d, const char *arg, struct mb_error *err)
{
    struct mb_stored_context c;
    struct mb_stored_trace t = {0};
    mb_status st =
        mb_store_context_get(d->snap, mb_slice_cstr(arg), d->arena, &c, err);

    if (st == MB_OK)
        st = mb_store_context_trace(d->snap, &c, d->arena, &t, err);
    if (st != MB_OK)
        return st;
    bool has_trace = t.n > 0;
    if (d->json) {
        json_object_begin(&d->w);
        json_context(&d->w, &c);
        if (has_trace)
            json_trace(&d->w, &t);
        json_object_end(&d->w);
        return dump_flush_json(d, err);
    }
    print_context(&c);
    if (!has_trace) {
        (void)printf(
            "\nno blocks were retrieved: nothing was generated from it, or its "
            "window had all\n");
        return MB_OK;
    }
    return print_map(d, &c, &t, err);
}
