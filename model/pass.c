/* SPDX-License-Identifier: Apache-2.0
 * model/pass.c - passes: room, checks, and the plan of one run.
 *
 * All that can fail happens here before anything is computed: arguments are
 * checked, sequences reserve their blocks, room grows. Then pass_layers.c
 * computes, and the sequences' lengths move. */
#include "pass.h"

#include <string.h>

/* Kernels read codes by 32 bytes: none of these then lie in two lines. */
#define CODE_ALIGN 64u

/* ---- room ---- */

static size_t
max_of(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* n floats, 64 bytes aligned as far as mb_alloc lets us; NULL when short. */
static float *
make_floats(struct mb_pass *pass, size_t rows, size_t width)
{
    size_t n = 0;
    size_t bytes = 0;
    if (!mb_size_mul(rows, width, &n) || !mb_size_mul(n, sizeof(float), &bytes))
        return NULL;
    pass->bytes += bytes;
    return mb_calloc(bytes > 0 ? bytes : 1, 1);
}

static void *
align_up(void *p, size_t align)
{
    return p ? (char *)p + (align - (uintptr_t)p % align) % align : NULL;
}

static bool
make_room(struct mb_pass *pass)
{
    const struct mb_decoder_info *info = &pass->decoder->info;
    size_t rows = pass->max_rows;
    size_t q_width = info->n_heads * info->head_dim;
    size_t kv_width = info->n_kv_heads * info->head_dim;
    size_t pairs = pass->decoder->rope.n_rot / 2;
    size_t widest = max_of(max_of(info->d_model, q_width), info->d_ff);
    size_t blocks = widest / ACT_BLOCK + 1;
    size_t members = team_size(pass->team);
    pass->room_floats = max_of(MUL_ROOM_FLOATS,
        ATTENTION_ROOM_FLOATS + ATTENTION_MAX_ROWS * (2 * info->head_dim + 2) +
            64);
    pass->room_floats = max_of(pass->room_floats,
        ATTENTION_ROOM_FLOATS + context_room_floats(info->head_dim));
    pass->x = make_floats(pass, rows, info->d_model);
    pass->normed = make_floats(pass, rows, info->d_model);
    pass->q = make_floats(pass, rows, q_width);
    pass->k = make_floats(pass, rows, kv_width);
    pass->v = make_floats(pass, rows, kv_width);
    pass->heads = make_floats(pass, rows, q_width);
    pass->gate = make_floats(pass, rows, info->d_ff);
    pass->up = make_floats(pass, rows, info->d_ff);
    pass->y = make_floats(pass, rows, info->d_model);
    pass->cosine = make_floats(pass, rows, pairs);
    pass->sine = make_floats(pass, rows, pairs);
    pass->code_room = make_floats(pass, rows, widest / 2 + CODE_ALIGN / 4);
    pass->codes = (int16_t *)align_up(pass->code_room, CODE_ALIGN);
    pass->scales = make_floats(pass, rows, blocks);
    pass->sums = make_floats(pass, rows, blocks);
    pass->out_rows = make_floats(pass, PASS_OUT_ROWS, info->d_model);
    pass->room = make_floats(pass, members, pass->room_floats + 16);
    pass->slices =
        mb_calloc(members * PASS_SPLIT_BLOCKS, sizeof(*pass->slices));
    pass->rows = mb_calloc(rows, sizeof(*pass->rows));
    return pass->x && pass->normed && pass->q && pass->k && pass->v &&
           pass->heads && pass->gate && pass->up && pass->y && pass->cosine &&
           pass->sine && pass->code_room && pass->scales && pass->sums &&
           pass->out_rows && pass->room && pass->slices && pass->rows;
}

mb_status
mb_pass_new(const struct mb_decoder *decoder, size_t max_rows,
    unsigned n_threads, struct mb_pass **out, struct mb_error *err)
{
    if (max_rows == 0 || max_rows > UINT32_MAX)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "pass: room for %zu rows", max_rows);
    struct mb_pass *pass = mb_calloc(1, sizeof(*pass));
    if (!pass)
        return mb_error_set(err, MB_ERR_NOMEM, "pass");
    pass->decoder = decoder;
    pass->attention = attention_best();
    pass->max_rows = max_rows;
    mb_status st =
        team_new(n_threads ? n_threads : mb_cpu_count(), &pass->team);
    if (st != MB_OK) {
        st = mb_error_set(err, st, "pass: cannot start threads");
    } else if (!make_room(pass)) {
        st = mb_error_set(err, MB_ERR_NOMEM,
            "pass: room for %zu rows takes %zu bytes", max_rows, pass->bytes);
    }
    if (st != MB_OK) {
        mb_pass_free(pass);
        return st;
    }
    *out = pass;
    return MB_OK;
}

void
mb_pass_free(struct mb_pass *pass)
{
    if (!pass)
        return;
    team_free(pass->team);
    mb_free(pass->x);
    mb_free(pass->normed);
    mb_free(pass->q);
    mb_free(pass->k);
    mb_free(pass->v);
    mb_free(pass->heads);
    mb_free(pass->gate);
    mb_free(pass->up);
    mb_free(pass->y);
    mb_free(pass->cosine);
    mb_free(pass->sine);
    mb_free(pass->code_room);
    mb_free(pass->scales);
    mb_free(pass->sums);
    mb_free(pass->out_rows);
    mb_free(pass->out_logits);
    mb_free(pass->room);
    mb_free(pass->slices);
    mb_free(pass->partials.m);
    mb_free(pass->partials.l);
    mb_free(pass->partials.o);
    bank_plan_free(pass);
    context_plan_free(pass);
    mb_free(pass->rows);
    mb_free(pass->pieces);
    mb_free(pass->outs);
    mb_free(pass);
}

size_t
mb_pass_bytes(const struct mb_pass *pass)
{
    return pass->bytes;
}

/* ---- checks ---- */

static mb_status
check_item(const struct mb_pass *pass, const struct mb_rows *item, size_t i,
    struct mb_error *err)
{
    size_t n_vocab = pass->decoder->info.n_vocab;
    const struct mb_cache *cache = item->seq ? item->seq->cache : NULL;
    if (item->n == 0 || (!item->seq && !item->context))
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "pass: item %zu has no rows", i);
    if (item->context) {
        mb_status st = context_check_item(pass, item, i, err);
        if (st != MB_OK)
            return st;
    } else if (cache->n_layers != pass->decoder->info.n_layers ||
               cache->n_kv_heads != pass->decoder->info.n_kv_heads ||
               cache->head_dim != pass->decoder->info.head_dim)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "pass: the cache of item %zu is of another model", i);
    for (size_t r = 0; r < item->n; r++) {
        if (item->tokens[r] < 0 || (size_t)item->tokens[r] >= n_vocab)
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "pass: token %d of item %zu, the vocabulary has %zu",
                (int)item->tokens[r], i, n_vocab);
        if (item->nll && item->targets &&
            (item->targets[r] < -1 ||
                (item->targets[r] >= 0 && (size_t)item->targets[r] >= n_vocab)))
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "pass: target %d of item %zu, the vocabulary has %zu",
                (int)item->targets[r], i, n_vocab);
    }
    mb_status st = MB_OK;
    for (size_t b = 0; item->bank && b < item->bank->n_blocks && st == MB_OK;
         b++)
        st = bank_check_fits(&item->bank->blocks[b],
            pass->decoder->info.d_model, pass->decoder->info.n_layers, err);
    return st;
}

/* Rows of the pass; those of a context are more than its tokens. */
static size_t
rows_of_item(const struct mb_rows *item)
{
    return item->context ? context_item_rows(item) : item->n;
}

static mb_status
check_items(const struct mb_pass *pass, const struct mb_rows *items, size_t n,
    struct mb_error *err)
{
    size_t rows = 0;
    if (n == 0)
        return mb_error_set(err, MB_ERR_BAD_ARG, "pass: no items");
    for (size_t i = 0; i < n; i++) {
        mb_status st = check_item(pass, &items[i], i, err);
        if (st != MB_OK)
            return st;
        size_t more = rows_of_item(&items[i]);
        if (more > pass->max_rows - rows)
            return mb_error_set(err, MB_ERR_TOO_LARGE,
                "pass: more than the %zu rows that it has room for",
                pass->max_rows);
        rows += more;
    }
    return MB_OK;
}

/* ---- plan ---- */

/* Make room for n elements of an array of the plan. */
static mb_status
grow(void **array, size_t *capacity, size_t n, size_t size, const char *what,
    struct mb_error *err)
{
    if (n <= *capacity)
        return MB_OK;
    size_t want = max_of(n, *capacity * 2);
    void *p = mb_realloc(*array, want * size);
    if (!p)
        return mb_error_set(err, MB_ERR_NOMEM, "pass: %zu %s", n, what);
    *array = p;
    *capacity = want;
    return MB_OK;
}

static size_t
div_up(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

/* Heads that share a key-value head. */
static size_t
group_of(const struct mb_pass *pass)
{
    return pass->decoder->info.n_heads / pass->decoder->info.n_kv_heads;
}

static mb_status
add_piece(struct mb_pass *pass, struct pass_piece piece, struct mb_error *err)
{
    void *array = pass->pieces;
    mb_status st = grow(&array, &pass->pieces_capacity, pass->n_pieces + 1,
        sizeof(piece), "pieces of attention", err);
    pass->pieces = array;
    if (st == MB_OK)
        pass->pieces[pass->n_pieces++] = piece;
    return st;
}

/* Attention of n rows of prefill from `row` on: tiles of queries. */
static mb_status
plan_many(struct mb_pass *pass, size_t row, size_t n, struct mb_error *err)
{
    size_t step = max_of(1, ATTENTION_MAX_ROWS / group_of(pass));
    mb_status st = MB_OK;
    /* The last tiles see most: they go first. */
    for (size_t t = div_up(n, step); t-- > 0 && st == MB_OK;) {
        size_t first = t * step;
        size_t rows = n - first < step ? n - first : step;
        for (size_t h = 0; h < pass->decoder->info.n_kv_heads && st == MB_OK;
             h++)
            st = add_piece(
                pass, (struct pass_piece){row + first, h, 0, rows, 0}, err);
    }
    return st;
}

/* Attention of a row of decoding: runs of blocks. */
static mb_status
plan_few(struct mb_pass *pass, size_t row, struct mb_error *err)
{
    struct pass_row *r = &pass->rows[row];
    if (r->context) // one piece a head: it sees a bounded number of rows
        return plan_many(pass, row, 1, err);
    size_t blocks = r->position / MB_BLOCK_ROWS + 1;
    mb_status st = MB_OK;
    r->first_partial = pass->n_partials;
    r->n_splits = div_up(blocks, PASS_SPLIT_BLOCKS);
    for (size_t h = 0; h < pass->decoder->info.n_kv_heads; h++) {
        for (size_t b = 0; b < blocks && st == MB_OK; b += PASS_SPLIT_BLOCKS) {
            size_t n =
                blocks - b < PASS_SPLIT_BLOCKS ? blocks - b : PASS_SPLIT_BLOCKS;
            st = add_piece(
                pass, (struct pass_piece){row, h, b, n, pass->n_partials}, err);
            pass->n_partials += group_of(pass);
        }
    }
    return st;
}

static mb_status
plan_outs(struct mb_pass *pass, const struct mb_rows *item, size_t row,
    struct mb_error *err)
{
    bool is_scored = item->nll && item->targets;
    void *array = pass->outs;
    mb_status st = grow(&array, &pass->outs_capacity,
        pass->n_outs + item->n + 1, sizeof(*pass->outs), "outputs", err);
    pass->outs = array;
    if (st != MB_OK)
        return st;
    for (size_t i = 0; i < item->n; i++) {
        size_t r = row + (item->context ? context_item_row(item, i) : i);
        if (is_scored && item->targets[i] >= 0)
            pass->outs[pass->n_outs++] =
                (struct pass_out){r, NULL, &item->nll[i], item->targets[i]};
        else if (is_scored)
            item->nll[i] = 0;
    }
    /* Apart from the last row's score: they go different ways. */
    size_t last = item->n - 1;
    if (item->context)
        last = context_item_row(item, last);
    if (item->logits)
        pass->outs[pass->n_outs++] =
            (struct pass_out){row + last, item->logits, NULL, -1};
    return MB_OK;
}

static void
plan_rows(struct mb_pass *pass, const struct mb_rows *item)
{
    for (size_t i = 0; i < item->n; i++) {
        pass->rows[pass->n_rows++] = (struct pass_row){
            .seq = item->seq,
            .position = item->seq->length + i,
            .token = item->tokens[i],
            .hidden = item->hidden
                          ? item->hidden + i * pass->decoder->info.d_model
                          : NULL,
        };
    }
}

static mb_status
plan_item(
    struct mb_pass *pass, const struct mb_rows *item, struct mb_error *err)
{
    size_t first = pass->n_rows;
    size_t n = rows_of_item(item);
    mb_status st = MB_OK;
    if (item->context) {
        st = context_plan_add(pass, item, first, err);
        pass->n_rows += n;
    } else {
        plan_rows(pass, item);
    }
    if (item->kind == MB_ROWS_PREFILL && st == MB_OK) {
        st = plan_many(pass, first, n, err);
        pass->n_many = pass->n_rows;
    }
    for (size_t i = 0; item->kind != MB_ROWS_PREFILL && i < n && st == MB_OK;
         i++)
        st = plan_few(pass, first + i, err);
    if (item->bank && st == MB_OK)
        st = bank_plan_add(pass, item->bank, first, n, err);
    return st == MB_OK ? plan_outs(pass, item, first, err) : st;
}

/* Room for the partials of decoding and for logits. */
static mb_status
grow_results(struct mb_pass *pass, struct mb_error *err)
{
    size_t dim = pass->decoder->info.head_dim;
    size_t n_vocab = pass->decoder->info.n_vocab;
    if (pass->n_outs > 0 && !pass->out_logits) {
        pass->out_logits = make_floats(pass, PASS_OUT_ROWS, n_vocab);
        if (!pass->out_logits)
            return mb_error_set(err, MB_ERR_NOMEM,
                "pass: %u rows of %zu logits", PASS_OUT_ROWS, n_vocab);
    }
    if (pass->n_partials <= pass->partials_capacity)
        return MB_OK;
    size_t want = max_of(pass->n_partials, 2 * pass->partials_capacity);
    struct partial old = pass->partials;
    struct partial p = {mb_alloc(want * sizeof(float)),
        mb_alloc(want * sizeof(float)), mb_alloc(want * dim * sizeof(float))};
    bool is_whole = p.m && p.l && p.o;
    pass->partials = is_whole ? p : old;
    if (is_whole) {
        pass->bytes += (want - pass->partials_capacity) * (dim + 2) * 4;
        pass->partials_capacity = want;
        p = old;
    }
    mb_free(p.m);
    mb_free(p.l);
    mb_free(p.o);
    return is_whole ? MB_OK
                    : mb_error_set(err, MB_ERR_NOMEM,
                          "pass: %zu partial sums of attention", want);
}

static mb_status
plan(struct mb_pass *pass, const struct mb_rows *items, size_t n_items,
    struct mb_error *err)
{
    mb_status st = context_plan_begin(pass, n_items, err);
    pass->n_rows = pass->n_many = 0;
    pass->n_pieces = pass->n_outs = pass->n_partials = 0;
    bank_plan_begin(pass);
    for (int kind = MB_ROWS_PREFILL; kind <= MB_ROWS_DECODE; kind++) {
        for (size_t i = 0; i < n_items && st == MB_OK; i++) {
            if (items[i].kind == (mb_rows_kind)kind)
                st = plan_item(pass, &items[i], err);
        }
    }
    if (st == MB_OK)
        st = bank_plan_end(pass, err);
    if (st == MB_OK)
        st = context_plan_end(pass, err);
    return st == MB_OK ? grow_results(pass, err) : st;
}

/* Where an item's mark lies by which doubles are found. */
static bool *
mark_of(const struct mb_rows *item)
{
    return item->context ? &item->context->is_in_pass : &item->seq->is_in_pass;
}

/* Blocks for all rows; a sequence or context that stands twice is found by its
 * mark. */
static mb_status
reserve(const struct mb_rows *items, size_t n_items, struct mb_error *err)
{
    mb_status st = MB_OK;
    for (size_t i = 0; i < n_items && st == MB_OK; i++) {
        bool *mark = mark_of(&items[i]);
        if (*mark) {
            st = mb_error_set(err, MB_ERR_BAD_ARG,
                "pass: the %s of item %zu stands in it twice",
                items[i].context ? "context" : "sequence", i);
            break;
        }
        if (items[i].seq)
            st = sequence_reserve(items[i].seq, items[i].n, err);
        *mark = st == MB_OK;
    }
    for (size_t j = 0; j < n_items; j++)
        *mark_of(&items[j]) = false;
    return st;
}

mb_status
mb_pass_run(struct mb_pass *pass, const struct mb_rows *items, size_t n_items,
    struct mb_error *err)
{
    mb_status st = check_items(pass, items, n_items, err);
    bool is_checked = st == MB_OK;
    pass->contexts.n_items = 0;
    if (st == MB_OK)
        st = reserve(items, n_items, err);
    if (st == MB_OK)
        st = plan(pass, items, n_items, err);
    if (st == MB_OK)
        pass_compute(pass);
    st = context_end_run(pass, st, err);
    for (size_t i = 0; i < n_items && is_checked; i++) {
        if (st == MB_OK && items[i].seq)
            items[i].seq->length += items[i].n;
        else if (items[i].seq)
            sequence_trim(items[i].seq);
    }
    return st;
}
