/* SPDX-License-Identifier: Apache-2.0
 * model/pass_context.c - see pass_context.h. */
#include "pass_context.h"

#include <math.h>
#include <string.h>

#include "pass.h"

/* Distances of a query from the first row of a block that it sees, and one more
 * for what stands in front of a window. */
#define CONTEXT_TURNS                                                          \
    ((MB_CONTEXT_MAX_K + 2 + MB_CONTEXT_MAX_SEGMENT) * MB_BLOCK_ROWS)

/* Queries that are scored at a time where many choose together. */
#define SCORE_ROWS 16u

/* ---- checks ---- */

mb_status
context_check_item(const struct mb_pass *pass, const struct mb_rows *item,
    size_t i, struct mb_error *err)
{
    const struct mb_context *ctx = item->context;
    if (item->seq || ctx->decoder != pass->decoder)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            item->seq ? "pass: item %zu is of a sequence and of a context"
                      : "pass: the context of item %zu is of another model",
            i);
    if (ctx->part == CONTEXT_TEXT && item->n > mb_context_room(ctx))
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "pass: item %zu has %zu tokens, its context's window has room for "
            "%zu",
            i, item->n, mb_context_room(ctx));
    return MB_OK;
}

size_t
context_item_row(const struct mb_rows *item, size_t i)
{
    size_t before = item->context->n_tokens;
    if (item->context->part != CONTEXT_TEXT)
        return i; // no landmarks among them
    return context_rows_of(before + i) - context_rows_of(before);
}

size_t
context_item_rows(const struct mb_rows *item)
{
    return context_item_row(item, item->n);
}

/* ---- plan ---- */

static size_t
round_up(size_t n, size_t step)
{
    return (n + step - 1) / step * step;
}

static mb_status
grow(
    void **array, size_t *capacity, size_t n, size_t size, struct mb_error *err)
{
    if (n <= *capacity)
        return MB_OK;
    size_t want = n > 2 * *capacity ? n : 2 * *capacity;
    void *p = mb_realloc(*array, want * size);
    if (!p)
        return mb_error_set(
            err, MB_ERR_NOMEM, "pass: %zu choices of contexts", n);
    *array = p;
    *capacity = want;
    return MB_OK;
}

mb_status
context_plan_begin(struct mb_pass *pass, size_t n_items, struct mb_error *err)
{
    struct pass_contexts *c = &pass->contexts;
    void *items = c->items;
    c->n_items = c->n_sets = c->n_choices = 0;
    c->status = MB_OK;
    // Rows point to items: these must not move while they are added.
    mb_status st =
        grow(&items, &c->items_capacity, n_items, sizeof(*c->items), err);
    c->items = items;
    return st;
}

static mb_status
add_set(struct mb_pass *pass, struct context_set set, struct mb_error *err)
{
    struct pass_contexts *c = &pass->contexts;
    void *sets = c->sets;
    mb_status st =
        grow(&sets, &c->sets_capacity, c->n_sets + 1, sizeof(set), err);
    c->sets = sets;
    if (st == MB_OK)
        c->sets[c->n_sets++] = set;
    return st;
}

/* Heads of a set, and so choices of a row, by mode. */
static size_t
heads_of_set(const struct mb_pass *pass, mb_select select)
{
    const struct mb_decoder_info *info = &pass->decoder->info;
    if (select == MB_SELECT_ROW_GROUP)
        return info->n_heads / info->n_kv_heads;
    return select == MB_SELECT_ROW ? info->n_heads : 1;
}

/* The choice of a row (from the item's first) and head. */
static size_t
choice_of(const struct mb_pass *pass, const struct context_item *item,
    size_t row, size_t head)
{
    size_t n_heads = pass->decoder->info.n_heads;
    size_t width = heads_of_set(pass, item->select);
    if (item->select == MB_SELECT_CHUNK)
        row = 0;
    return item->choice + row * (n_heads / width) + head / width;
}

static mb_status
plan_sets(struct mb_pass *pass, struct context_item *item, struct mb_error *err)
{
    struct pass_contexts *c = &pass->contexts;
    size_t n_heads = pass->decoder->info.n_heads;
    size_t width = heads_of_set(pass, item->select);
    size_t rows = item->select == MB_SELECT_CHUNK ? item->n : 1;
    void *choices = c->choices;
    item->choice = c->n_choices;
    item->n_choices = item->n / rows * (n_heads / width);
    mb_status st = grow(&choices, &c->choices_capacity,
        c->n_choices + item->n_choices, sizeof(*c->choices), err);
    c->choices = choices;
    c->n_choices += item->n_choices;
    for (size_t r = 0; r < item->n; r += rows) {
        for (size_t h = 0; h < n_heads && st == MB_OK; h += width)
            st = add_set(pass,
                (struct context_set){.item = (size_t)(item - c->items),
                    .choice = choice_of(pass, item, r, h),
                    .row = item->row + r,
                    .n_rows = rows,
                    .head = h,
                    .n_heads = width},
                err);
    }
    return st;
}

static void
plan_rows(struct mb_pass *pass, const struct mb_rows *rows,
    const struct context_item *item)
{
    bool is_text = item->ctx->part == CONTEXT_TEXT;
    size_t first = item->ctx->part == CONTEXT_FRONT
                       ? context_front_row(item->ctx)
                       : context_rows_of(item->ctx->n_tokens);
    size_t token = 0;
    for (size_t i = 0; i < item->n; i++) {
        size_t in_window = first + i;
        bool is_landmark = is_text && in_window % MB_BLOCK_ROWS == BLOCK_TOKENS;
        struct pass_row row = {
            .context = item,
            .in_window = in_window,
            .position = in_window % MB_BLOCK_ROWS, // keys turn by it
            .token = item->ctx->options.landmark,
            .input = i == 0 ? item->ctx->edge : NULL,
        };
        if (!is_landmark) {
            row.token = rows->tokens[token];
            if (rows->hidden)
                row.hidden = rows->hidden + token * pass->decoder->info.d_model;
            token++;
        }
        pass->rows[item->row + i] = row;
    }
}

mb_status
context_plan_add(struct mb_pass *pass, const struct mb_rows *rows, size_t row,
    struct mb_error *err)
{
    struct pass_contexts *c = &pass->contexts;
    const struct mb_context_modes *modes = &rows->context->options.modes;
    struct context_item *item = &c->items[c->n_items++];
    *item = (struct context_item){
        .ctx = rows->context,
        .tokens = rows->tokens,
        .n_tokens = rows->n,
        .row = row,
        .n = context_item_rows(rows),
        .k = rows->context->part == CONTEXT_TEXT ? context_k(rows->context) : 0,
        .select =
            rows->kind == MB_ROWS_PREFILL ? modes->prefill : modes->decode,
    };
    plan_rows(pass, rows, item);
    return item->k > 0 ? plan_sets(pass, item, err) : MB_OK;
}

static bool
make_turns(struct mb_pass *pass)
{
    const struct rope *rope = &pass->decoder->rope;
    size_t pairs = rope->n_rot / 2;
    float *turns = mb_alloc(2 * CONTEXT_TURNS * pairs * sizeof(float));
    if (!turns)
        return false;
    for (size_t i = 0; i < CONTEXT_TURNS; i++)
        rope_angles(
            rope, i, turns + 2 * i * pairs, turns + (2 * i + 1) * pairs);
    pass->contexts.turns = turns;
    pass->bytes += 2 * CONTEXT_TURNS * pairs * sizeof(float);
    return true;
}

/* Scores of an item's sets: of one query, or of SCORE_ROWS and their best. */
static size_t
score_floats(const struct context_item *item)
{
    size_t n = round_up(item->ctx->table.n, MB_BLOCK_ROWS);
    return item->select == MB_SELECT_ROW_HEAD ? n : (SCORE_ROWS + 1) * n;
}

mb_status
context_plan_end(struct mb_pass *pass, struct mb_error *err)
{
    struct pass_contexts *c = &pass->contexts;
    size_t members = team_size(pass->team);
    size_t queries = SCORE_ROWS * pass->decoder->info.head_dim;
    size_t most = 0;
    if (c->n_items == 0)
        return MB_OK;
    if (!c->turns && !make_turns(pass))
        return mb_error_set(err, MB_ERR_NOMEM, "pass: angles of contexts");
    for (size_t i = 0; i < c->n_items; i++) {
        size_t n = c->items[i].k > 0 ? score_floats(&c->items[i]) : 0;
        most = n > most ? n : most;
    }
    c->room_floats = round_up(queries + most, MB_BLOCK_ROWS);
    if (members * c->room_floats <= c->room_capacity)
        return MB_OK;
    size_t want = members * c->room_floats * 5 / 4; // texts grow
    float *room = mb_alloc(want * sizeof(float));
    if (!room)
        return mb_error_set(
            err, MB_ERR_NOMEM, "pass: scores of %zu landmarks", most);
    mb_free(c->room);
    pass->bytes += (want - c->room_capacity) * sizeof(float);
    c->room = room;
    c->room_capacity = want;
    return MB_OK;
}

void
context_plan_free(struct mb_pass *pass)
{
    struct pass_contexts *c = &pass->contexts;
    mb_free(c->items);
    mb_free(c->sets);
    mb_free(c->choices);
    mb_free(c->turns);
    mb_free(c->room);
}

mb_status
context_end_run(struct mb_pass *pass, mb_status st, struct mb_error *err)
{
    struct pass_contexts *c = &pass->contexts;
    if (st == MB_OK && c->status != MB_OK) {
        st = c->status;
        if (err)
            *err = c->err;
    }
    for (size_t i = 0; i < c->n_items; i++) {
        const struct context_item *item = &c->items[i];
        context_release(item->ctx);
        if (st == MB_OK && item->ctx->part == CONTEXT_TEXT)
            context_took(item->ctx, item->tokens, item->n_tokens);
    }
    c->n_items = 0;
    return st;
}

/* ---- queries ---- */

static float
dot(const float *a, const float *b, size_t n)
{
    float sum = 0;
    for (size_t j = 0; j < n; j++)
        sum += a[j] * b[j];
    return sum;
}

/* out (head_dim) = the query of a row and head, turned by its distance from
 * the first row of a block. */
static void
turn(const struct mb_pass *pass, const float *q, size_t distance, float *out)
{
    const struct rope *rope = &pass->decoder->rope;
    const struct compute *compute = pass->decoder->compute;
    size_t pairs = rope->n_rot / 2;
    const float *cosine = pass->contexts.turns + 2 * distance * pairs;
    memcpy(out, q, pass->decoder->info.head_dim * sizeof(float));
    if (rope->is_halves)
        compute->rope_halves(out, rope->n_rot, cosine, cosine + pairs);
    else
        compute->rope_pairs(out, rope->n_rot, cosine, cosine + pairs);
}

static const float *
query_of(const struct mb_pass *pass, size_t row, size_t head)
{
    const struct mb_decoder_info *info = &pass->decoder->info;
    return pass->q + (row * info->n_heads + head) * info->head_dim;
}

/* Rows from the first row of a slot's block to the segment's first row: what
 * stands in front of it lies between. */
static size_t
slot_distance(const struct context_item *item, size_t slot)
{
    return (item->k + 1 - slot) * MB_BLOCK_ROWS + item->ctx->n_front;
}

/* ---- choosing ---- */

/* Logits of n rows of the pass and a head with all landmarks, each at the slot
 * where it is scored. */
static void
score(const struct mb_pass *pass, const struct context_item *item, size_t layer,
    size_t row, size_t n, size_t head, float *q, float *z, size_t ldz,
    float *room)
{
    const struct mb_decoder_info *info = &pass->decoder->info;
    const struct landmark_table *t = &item->ctx->table;
    size_t group = info->n_heads / info->n_kv_heads;
    size_t table = layer * info->n_kv_heads + head / group;
    size_t dim = info->head_dim;
    size_t old = t->n - item->k;
    float key[ATTENTION_MAX_HEAD];
    for (size_t i = 0; i < n; i++)
        turn(pass, query_of(pass, row + i, head),
            pass->rows[row + i].in_window + slot_distance(item, 0),
            q + i * dim);
    landmark_scores(t, pass->attention, table, q, n, old, z, ldz, room);
    for (size_t block = old; block < t->n; block++) {
        size_t slot = landmark_scored_slot(t->n, item->k, block);
        landmark_key(t, table, block, key);
        for (size_t i = 0; i < n; i++) {
            turn(pass, query_of(pass, row + i, head),
                pass->rows[row + i].in_window + slot_distance(item, slot), q);
            z[i * ldz + block] = dot(q, key, dim);
        }
    }
}

/* Scores of a set of more than one row or head: shares, and of these the
 * largest. */
static const float *
score_set(const struct mb_pass *pass, const struct context_set *set,
    size_t layer, float *q, float *z, float *room)
{
    const struct context_item *item = &pass->contexts.items[set->item];
    size_t n = item->ctx->table.n;
    size_t ldz = round_up(n, MB_BLOCK_ROWS);
    float *best = z + SCORE_ROWS * ldz;
    for (size_t b = 0; b < n; b++)
        best[b] = -INFINITY;
    for (size_t h = 0; h < set->n_heads; h++) {
        for (size_t r = 0; r < set->n_rows; r += SCORE_ROWS) {
            size_t left = set->n_rows - r;
            size_t rows = left < SCORE_ROWS ? left : SCORE_ROWS;
            score(pass, item, layer, set->row + r, rows, set->head + h, q, z,
                ldz, room);
            for (size_t i = 0; i < rows; i++)
                landmark_share(pass->decoder->compute, z + i * ldz, n, best);
        }
    }
    return best;
}

static void
choose(const struct mb_pass *pass, const struct context_set *set, size_t layer,
    float *q, float *z, float *room)
{
    const struct context_item *item = &pass->contexts.items[set->item];
    struct landmark_choice *choice = &pass->contexts.choices[set->choice];
    size_t n = item->ctx->table.n;
    const float *scores = z;
    if (item->k == n) { // all of them
        choice->n = (uint32_t)n;
        for (size_t b = 0; b < n; b++)
            choice->ordinals[b] = (uint32_t)b;
        return;
    }
    if (item->select == MB_SELECT_ROW_HEAD)
        score(pass, item, layer, set->row, 1, set->head, q, z, 0, room);
    else
        scores = score_set(pass, set, layer, q, z, room);
    landmark_choose(scores, n, item->k, choice);
}

void
context_choose(struct mb_pass *pass, size_t layer, unsigned member, float *room)
{
    struct pass_contexts *c = &pass->contexts;
    float *q = c->room + member * c->room_floats;
    float *z = q + SCORE_ROWS * pass->decoder->info.head_dim;
    for (size_t i = team_next(pass->team); i < c->n_sets;
         i = team_next(pass->team))
        choose(pass, &c->sets[i], layer, q, z, room);
}

void
context_fetch_chosen(void *arg)
{
    struct mb_pass *pass = arg;
    struct pass_contexts *c = &pass->contexts;
    for (size_t i = 0; i < c->n_items; i++) {
        const struct context_item *item = &c->items[i];
        for (size_t k = 0; k < item->n_choices; k++) {
            const struct landmark_choice *choice =
                &c->choices[item->choice + k];
            for (size_t b = 0; b < choice->n && c->status == MB_OK; b++) {
                item->ctx->hits[choice->ordinals[b]]++;
                c->status =
                    context_fetch(item->ctx, choice->ordinals[b], &c->err);
            }
        }
    }
}

/* ---- attending ---- */

/* A tile on its way: queries [head][row], n of them. */
struct tile {
    struct mb_pass *pass;
    const struct context_item *item;
    size_t table;
    size_t row; /* of the pass */
    size_t n_rows;
    size_t first_head;
    size_t n_heads;
    bool is_many;
    float *turned;         /* (n, dim) */
    struct partial inside; /* of one block */
    struct partial all;
    uint8_t seen[ATTENTION_MAX_ROWS];
    float *room;
};

size_t
context_room_floats(size_t head_dim)
{
    return ATTENTION_MAX_ROWS * (3 * head_dim + 4) + tail_room_floats(head_dim);
}

static struct partial
partial_at(struct partial p, size_t i, size_t dim)
{
    return (struct partial){p.m + i, p.l + i, p.o + i * dim};
}

/* Partials of queries [i, i + n) over the rows of a slice that they see. */
static void
look_into(struct tile *tile, const uint8_t *slice, size_t i, size_t n)
{
    const struct mb_pass *pass = tile->pass;
    size_t dim = pass->decoder->info.head_dim;
    struct slice_shape shape = {tile->item->ctx->shape.type, dim};
    struct partial to = partial_at(tile->inside, i, dim);
    const float *q = tile->turned + i * dim;
    partial_clear(&to, n, dim);
    if (tile->is_many)
        pass->attention->many(
            shape, slice, q, tile->seen + i, n, &to, tile->room);
    else
        pass->attention->few(shape, &slice, 1, tile->seen[i], q, n, &to);
}

/* Take what query i saw inside a block along: as one row behind its landmark,
 * whose key is given, or row by row (NULL). */
static void
take_block(struct tile *tile, size_t i, const float *landmark)
{
    size_t dim = tile->pass->decoder->info.head_dim;
    struct partial from = partial_at(tile->inside, i, dim);
    struct partial to = partial_at(tile->all, i, dim);
    if (landmark) {
        partial_finish(&from, 1, dim, from.o);
        *from.m = dot(tile->turned + i * dim, landmark, dim);
        *from.l = 1;
    }
    partial_merge(&to, &from, 1, dim);
}

/* Rows in front of the window: the text's see them all, each of them those
 * before it. All are merged row by row. */
static void
attend_front(struct tile *tile)
{
    const struct mb_pass *pass = tile->pass;
    const struct mb_context *ctx = tile->item->ctx;
    size_t front = context_front_row(ctx);
    size_t n = tile->n_rows * tile->n_heads;
    bool is_front = ctx->part == CONTEXT_FRONT;
    for (size_t i = 0; i < n; i++) {
        size_t row = tile->row + i % tile->n_rows;
        size_t at = pass->rows[row].in_window;
        size_t distance = is_front ? at - front : at + ctx->n_front;
        tile->seen[i] = (uint8_t)(is_front ? distance + 1 : ctx->n_front);
        turn(pass, query_of(pass, row, tile->first_head + i / tile->n_rows),
            distance, tile->turned + i * pass->decoder->info.head_dim);
    }
    look_into(
        tile, context_slice(ctx, front / MB_BLOCK_ROWS, tile->table), 0, n);
    for (size_t i = 0; i < n; i++)
        take_block(tile, i, NULL);
}

/* Blocks of the window, up to the own one of each row. */
static void
attend_window(struct tile *tile)
{
    const struct mb_pass *pass = tile->pass;
    const struct mb_context *ctx = tile->item->ctx;
    size_t dim = pass->decoder->info.head_dim;
    size_t n = tile->n_rows * tile->n_heads;
    size_t last = pass->rows[tile->row + tile->n_rows - 1].in_window;
    for (size_t b = 0; b <= last / MB_BLOCK_ROWS; b++) {
        for (size_t i = 0; i < n; i++) {
            size_t row = tile->row + i % tile->n_rows;
            size_t at = pass->rows[row].in_window;
            size_t from = b * MB_BLOCK_ROWS;
            size_t sees = at < from ? 0 : at - from + 1;
            tile->seen[i] =
                (uint8_t)(sees < BLOCK_TOKENS ? sees : BLOCK_TOKENS);
            turn(pass, query_of(pass, row, tile->first_head + i / tile->n_rows),
                sees > 0 ? at - from : 0, tile->turned + i * dim);
        }
        look_into(tile, context_slice(ctx, b, tile->table), 0, n);
        for (size_t i = 0; i < n; i++) {
            size_t at = pass->rows[tile->row + i % tile->n_rows].in_window;
            bool is_own = at / MB_BLOCK_ROWS == b;
            if (tile->seen[i] > 0)
                take_block(tile, i,
                    is_own ? NULL : context_landmark(ctx, b, tile->table));
        }
    }
}

/* The blocks that queries [i, i + n) chose together. */
static void
attend_chosen(
    struct tile *tile, const struct landmark_choice *choice, size_t i, size_t n)
{
    const struct mb_pass *pass = tile->pass;
    const struct mb_context *ctx = tile->item->ctx;
    size_t dim = pass->decoder->info.head_dim;
    size_t k = tile->item->k;
    float key[ATTENTION_MAX_HEAD];
    for (size_t s = 0; s < choice->n; s++) {
        size_t block = choice->ordinals[s];
        size_t slot = landmark_used_slot(ctx->table.n, k, block, s);
        if (!ctx->fetched[block])
            return; // the pass has failed
        for (size_t j = i; j < i + n; j++) {
            size_t row = tile->row + j % tile->n_rows;
            tile->seen[j] = BLOCK_TOKENS;
            turn(pass, query_of(pass, row, tile->first_head + j / tile->n_rows),
                pass->rows[row].in_window + slot_distance(tile->item, slot),
                tile->turned + j * dim);
        }
        look_into(tile,
            ctx->fetched[block] + RECORD_FRONT + tile->table * ctx->slice_bytes,
            i, n);
        landmark_key(&ctx->table, tile->table, block, key);
        for (size_t j = i; j < i + n; j++)
            take_block(tile, j, key);
    }
}

/* Queries that chose together lie side by side where a whole chunk did, or all
 * heads of a single row; else each goes alone. */
static void
attend_retrieved(struct tile *tile)
{
    const struct mb_pass *pass = tile->pass;
    const struct context_item *item = tile->item;
    size_t n = tile->n_rows * tile->n_heads;
    size_t step = 1;
    if (item->select == MB_SELECT_CHUNK)
        step = tile->n_rows;
    else if (tile->n_rows == 1 && item->select != MB_SELECT_ROW_HEAD)
        step = n;
    for (size_t i = 0; i < n; i += step) {
        size_t choice =
            choice_of(pass, item, tile->row + i % tile->n_rows - item->row,
                tile->first_head + i / tile->n_rows);
        attend_chosen(tile, &pass->contexts.choices[choice], i, step);
    }
}

/* What a query chose; NULL: nothing. */
static const struct landmark_choice *
chosen_by(const struct tile *tile, size_t i)
{
    const struct context_item *item = tile->item;
    if (item->k == 0)
        return NULL;
    return &tile->pass->contexts.choices[choice_of(tile->pass, item,
        tile->row + i % tile->n_rows - item->row,
        tile->first_head + i / tile->n_rows)];
}

static bool
has_chosen(const struct landmark_choice *choice, size_t block)
{
    for (size_t c = 0; choice && c < choice->n; c++) {
        if (choice->ordinals[c] == block)
            return true;
    }
    return false;
}

static void
turn_to_slot(struct tile *tile, size_t i, size_t slot)
{
    const struct mb_pass *pass = tile->pass;
    size_t row = tile->row + i % tile->n_rows;
    turn(pass, query_of(pass, row, tile->first_head + i / tile->n_rows),
        pass->rows[row].in_window + slot_distance(tile->item, slot),
        tile->turned + i * pass->decoder->info.head_dim);
}

/* All blocks that were not chosen, by their statistics. Old ones stand in slot
 * 0, the newest k each in its own, as when they are scored. */
static void
attend_tail(struct tile *tile, float *more)
{
    const struct mb_context *ctx = tile->item->ctx;
    size_t dim = tile->pass->decoder->info.head_dim;
    size_t n = tile->n_rows * tile->n_heads;
    size_t old = ctx->table.n - tile->item->k;
    const struct landmark_choice *skip[ATTENTION_MAX_ROWS];
    const struct tail_view view = {&ctx->tails, &ctx->table,
        tile->pass->attention, tile->table, ctx->options.modes.tail};
    for (size_t i = 0; i < n; i++) {
        skip[i] = chosen_by(tile, i);
        turn_to_slot(tile, i, 0);
    }
    tail_attend(
        &view, tile->turned, n, old, skip, &tile->all, tile->room, more);
    for (size_t b = old; b < ctx->table.n; b++) {
        for (size_t i = 0; i < n; i++) {
            struct partial from = partial_at(tile->inside, i, dim);
            struct partial to = partial_at(tile->all, i, dim);
            if (has_chosen(skip[i], b))
                continue;
            turn_to_slot(
                tile, i, landmark_scored_slot(ctx->table.n, tile->item->k, b));
            *from.m = tail_block(&view, tile->turned + i * dim, b, from.o);
            *from.l = 1;
            partial_merge(&to, &from, 1, dim);
        }
    }
}

void
context_attend(struct mb_pass *pass, size_t layer,
    const struct pass_piece *piece, size_t first_head, size_t n_heads,
    float *room)
{
    const struct mb_decoder_info *info = &pass->decoder->info;
    size_t dim = info->head_dim;
    size_t n = piece->n * n_heads;
    float *p = room + ATTENTION_ROOM_FLOATS;
    struct tile tile = {
        .pass = pass,
        .item = pass->rows[piece->row].context,
        .table = layer * info->n_kv_heads + piece->head,
        .row = piece->row,
        .n_rows = piece->n,
        .first_head = first_head,
        .n_heads = n_heads,
        .is_many = piece->row < pass->n_many,
        .turned = p,
        .inside = {p + 3 * n * dim, p + 3 * n * dim + n, p + n * dim},
        .all = {p + 3 * n * dim + 2 * n, p + 3 * n * dim + 3 * n,
            p + 2 * n * dim},
        .room = room,
    };
    MB_ASSERT(n <= ATTENTION_MAX_ROWS);
    partial_clear(&tile.all, n, dim);
    if (tile.item->ctx->n_front > 0)
        attend_front(&tile);
    if (tile.item->ctx->part != CONTEXT_FRONT)
        attend_window(&tile);
    if (tile.item->k > 0)
        attend_retrieved(&tile);
    if (tile.item->ctx->shape.has_tail &&
        tile.item->ctx->part == CONTEXT_TEXT &&
        tile.item->ctx->table.n > tile.item->k)
        attend_tail(&tile, p + 3 * n * dim + 4 * n);
    partial_finish(&tile.all, n, dim, tile.turned);
    for (size_t i = 0; i < n; i++) {
        size_t row = piece->row + i % piece->n;
        size_t head = first_head + i / piece->n;
        memcpy(pass->heads + (row * info->n_heads + head) * dim,
            tile.turned + i * dim, dim * sizeof(float));
    }
}
