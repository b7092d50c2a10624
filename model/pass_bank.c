/* SPDX-License-Identifier: Apache-2.0
 * model/pass_bank.c - memory blocks beside the feed-forward part of a layer.
 *
 * The way in is two small matrices and goes the way that the layer's own go;
 * the way out is added to the layer's result before it goes into the residual
 * stream. What a row gets depends on its own path alone: kernels promise that
 * for the rows of a product, and spans are added in the order of the path.
 * Threads: see pass_bank.h. */
#include "pass.h"

/* Hidden units of a tile. */
#define TILE 64u

/* Spans that are looked through for one to share. */
#define LOOK_BACK 64u

/* ---- plan ---- */

void
bank_plan_begin(struct mb_pass *pass)
{
    pass->bank.n_spans = 0;
    pass->bank.width = 0;
    pass->bank.has_codes = false;
    pass->bank.out = bank_out_best();
}

/* The first span from *from on that these rows only lengthen: the same block at
 * the same place of the row in front, which is of the same kind. *from goes
 * behind it. NULL: there is none among the last few. */
static struct bank_span *
find_span(
    struct pass_bank *bank, struct bank_span span, size_t n_many, size_t *from)
{
    for (size_t i = *from; i < bank->n_spans; i++) {
        struct bank_span *s = &bank->spans[i];
        if (s->block->data == span.block->data &&
            s->block->rows == span.block->rows && s->column == span.column &&
            s->row + s->n == span.row &&
            (s->row < n_many) == (span.row < n_many)) {
            *from = i + 1;
            return s;
        }
    }
    return NULL;
}

static mb_status
add_span(struct pass_bank *bank, struct bank_span span, struct mb_error *err)
{
    if (bank->n_spans == bank->spans_capacity) {
        size_t capacity = 2 * bank->spans_capacity + MB_BANK_MAX_LEVELS;
        void *spans = mb_realloc(bank->spans, capacity * sizeof(*bank->spans));
        if (!spans)
            return mb_error_set(
                err, MB_ERR_NOMEM, "pass: %zu memory blocks", capacity);
        bank->spans = spans;
        bank->spans_capacity = capacity;
    }
    bank->spans[bank->n_spans++] = span;
    return MB_OK;
}

mb_status
bank_plan_add(struct mb_pass *pass, const struct mb_bank_path *path, size_t row,
    size_t n, struct mb_error *err)
{
    struct pass_bank *bank = &pass->bank;
    size_t from = bank->n_spans > LOOK_BACK ? bank->n_spans - LOOK_BACK : 0;
    size_t column = 0;
    bool is_shared = true;
    for (size_t i = 0; i < path->n_blocks; i++) {
        struct bank_span span = {&path->blocks[i], row, n, column};
        struct bank_span *s = NULL;
        mb_status st = MB_OK;
        /* Behind the first block that is not shared none may be: a row's blocks
         * are summed in the order of the spans. */
        if (is_shared)
            s = find_span(bank, span, pass->n_many, &from);
        is_shared = s != NULL;
        if (s)
            s->n += n;
        else
            st = add_span(bank, span, err);
        if (st != MB_OK)
            return st;
        column += span.block->rows;
        bank->has_codes |= span.block->type == MB_BANK_Q8_0;
    }
    if (column > bank->width)
        bank->width = column;
    return MB_OK;
}

mb_status
bank_plan_end(struct mb_pass *pass, struct mb_error *err)
{
    struct pass_bank *bank = &pass->bank;
    size_t n = pass->n_rows * bank->width;
    if (n <= bank->capacity)
        return MB_OK;
    float *gate = mb_alloc(n * sizeof(*gate));
    float *up = mb_alloc(n * sizeof(*up));
    if (!gate || !up) {
        mb_free(gate);
        mb_free(up);
        return mb_error_set(
            err, MB_ERR_NOMEM, "pass: %zu hidden units of memory blocks", n);
    }
    mb_free(bank->gate);
    mb_free(bank->up);
    pass->bytes += 2 * (n - bank->capacity) * sizeof(float);
    bank->gate = gate;
    bank->up = up;
    bank->capacity = n;
    return MB_OK;
}

void
bank_plan_free(struct mb_pass *pass)
{
    mb_free(pass->bank.spans);
    mb_free(pass->bank.gate);
    mb_free(pass->bank.up);
}

/* ---- computation ---- */

static bool
is_in_layer(const struct bank_span *s, size_t layer)
{
    return layer >= s->block->first_layer &&
           layer - s->block->first_layer < s->block->n_layers;
}

/* Units [first, last) of a span, for all its rows. */
static void
take_units(const struct mb_pass *pass, const struct bank_span *s, size_t layer,
    size_t first, size_t last, float *room)
{
    const struct compute *compute = pass->decoder->compute;
    const struct pass_bank *bank = &pass->bank;
    size_t d = pass->decoder->info.d_model;
    size_t l = layer - s->block->first_layer;
    struct tensor gate = bank_matrix(s->block, l, BANK_GATE);
    struct tensor up = bank_matrix(s->block, l, BANK_UP);
    struct activations a = {
        .x = pass->normed + s->row * d,
        .ld = d,
        .n = s->n,
        .code = pass->codes + s->row * d,
        .scale = pass->scales + s->row * (d / ACT_BLOCK),
        .sum = pass->sums + s->row * (d / ACT_BLOCK),
    };
    size_t at = s->row * bank->width + s->column;
    float *g = bank->gate + at;
    float *u = bank->up + at;
    if (s->row < pass->n_many) {
        compute->mul_many(&gate, first, last, &a, g, bank->width, room);
        compute->mul_many(&up, first, last, &a, u, bank->width, room);
    } else {
        compute->mul_few(&gate, first, last, &a, g, bank->width);
        compute->mul_few(&up, first, last, &a, u, bank->width);
    }
    for (size_t r = 0; r < s->n; r++) {
        float *h = g + r * bank->width + first;
        compute->swiglu(h, u + r * bank->width + first, last - first, h);
    }
}

void
bank_in(const struct mb_pass *pass, size_t layer, size_t tile, size_t before,
    float *room)
{
    for (size_t i = 0; i < pass->bank.n_spans; i++) {
        const struct bank_span *s = &pass->bank.spans[i];
        size_t rows = s->block->rows;
        if (!is_in_layer(s, layer))
            continue;
        size_t n_tiles = (rows + TILE - 1) / TILE;
        while (tile < before + n_tiles) {
            size_t first = (tile - before) * TILE;
            size_t last = first + TILE < rows ? first + TILE : rows;
            take_units(pass, s, layer, first, last, room);
            tile = team_next(pass->team);
        }
        before += n_tiles;
    }
}

void
bank_out(const struct mb_pass *pass, size_t layer, size_t first, size_t last,
    float *room)
{
    const struct pass_bank *bank = &pass->bank;
    size_t d = pass->decoder->info.d_model;
    for (size_t i = 0; i < bank->n_spans; i++) {
        const struct bank_span *s = &bank->spans[i];
        if (!is_in_layer(s, layer))
            continue;
        struct tensor down =
            bank_matrix(s->block, layer - s->block->first_layer, BANK_DOWN);
        bank->out(&down, first, last,
            bank->gate + s->row * bank->width + s->column, bank->width, s->n,
            pass->y + s->row * d, d, room);
    }
}
