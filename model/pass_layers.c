/* SPDX-License-Identifier: Apache-2.0
 * model/pass_layers.c - the computation of a pass, as all members walk it.
 *
 * A layer is steps over outputs (matrices: tiles of outputs, all rows), over
 * pieces (attention) and over rows (norms, rotation, rounding). Members take
 * tiles until there are none, then meet. Steps over rows are tiny when there
 * are few rows: then whoever comes last to the barrier does them alone, which
 * saves a meeting.
 *
 * Every tile computes the same whoever takes it, and each output is written by
 * one tile: results do not depend on the number of members. */
#include "pass.h"

#include <string.h>

/* Up to this many rows, steps over rows are done at the barrier. */
#define ROWS_AT_BARRIER 2u

/* Rows of a tile of a step over rows. */
#define ROW_TILE 4u

/* Outputs of a tile: panels of mul_many, or enough weights to be worth a
 * counter's move. */
#define OUTPUT_TILE      64u
#define FEW_TILE_BYTES   16384u
#define FEW_TILE_OUTPUTS 16u
#define VOCABULARY_TILE  256u

#define ROOM_ALIGN 16u /* floats: 64 bytes */

/* A member on its way through a run. */
struct walk {
    struct mb_pass *pass;
    float *room;
    const uint8_t **slices;
    const struct layer *layer; /* that it is in */
    size_t layer_number;
    unsigned member;
};

/* ---- steps over rows ---- */

typedef void (*row_step)(const struct walk *walk, size_t first, size_t last);

struct step_call {
    const struct walk *walk;
    row_step step;
};

static void
run_step(void *arg)
{
    struct step_call *call = arg;
    call->step(call->walk, 0, call->walk->pass->n_rows);
}

/* Wait until all are here, do the step for all rows, and go on together. */
static void
over_rows(const struct walk *walk, row_step step)
{
    struct mb_pass *pass = walk->pass;
    struct step_call call = {walk, step};
    if (pass->n_rows <= ROWS_AT_BARRIER) {
        team_barrier_step(pass->team, run_step, &call);
        return;
    }
    team_barrier(pass->team);
    for (;;) {
        size_t first = team_next(pass->team) * ROW_TILE;
        if (first >= pass->n_rows)
            break;
        size_t last = first + ROW_TILE;
        step(walk, first, last < pass->n_rows ? last : pass->n_rows);
    }
    team_barrier(pass->team);
}

/* Rows of one kind of a matrix (n_rows of the pass, width), with room for
 * their rounded form. */
static struct activations
rows_of(const struct mb_pass *pass, const float *x, size_t width, bool is_many)
{
    size_t first = is_many ? 0 : pass->n_many;
    size_t blocks = width / ACT_BLOCK;
    return (struct activations){
        .x = x + first * width,
        .ld = width,
        .n = is_many ? pass->n_many : pass->n_rows - pass->n_many,
        .code = pass->codes + first * width,
        .scale = pass->scales + first * blocks,
        .sum = pass->sums + first * blocks,
    };
}

static bool
is_rounded(const struct tensor *W)
{
    return tensor_block_values(W->type) > 1;
}

/* Rows of both kinds, [first, last) of them to be rounded. */
static void
round_rows(struct mb_pass *pass, const float *x, size_t width, size_t first,
    size_t last)
{
    struct activations all = {
        .x = x,
        .ld = width,
        .n = pass->n_rows,
        .code = pass->codes,
        .scale = pass->scales,
        .sum = pass->sums,
    };
    if (width % ACT_BLOCK == 0)
        pass->decoder->compute->quantize(&all, width, first, last);
}

static void
step_embed(const struct walk *walk, size_t first, size_t last)
{
    struct mb_pass *pass = walk->pass;
    const struct mb_decoder *decoder = pass->decoder;
    size_t pairs = decoder->rope.n_rot / 2;
    for (size_t r = first; r < last; r++) {
        float *x = pass->x + r * decoder->info.d_model;
        if (pass->rows[r].input)
            memcpy(
                x, pass->rows[r].input, decoder->info.d_model * sizeof(float));
        else
            decoder->compute->row(
                &decoder->embedding, (size_t)pass->rows[r].token, x);
        rope_angles(&decoder->rope, pass->rows[r].position,
            pass->cosine + r * pairs, pass->sine + r * pairs);
    }
}

static void
norm_rows(struct mb_pass *pass, const float *weight, bool is_rounding,
    size_t first, size_t last)
{
    const struct mb_decoder *decoder = pass->decoder;
    size_t d = decoder->info.d_model;
    for (size_t r = first; r < last; r++)
        decoder->compute->rms_norm(pass->x + r * d, weight, d,
            decoder->norm_eps, pass->normed + r * d);
    if (is_rounding)
        round_rows(pass, pass->normed, d, first, last);
}

static void
step_attn_norm(const struct walk *walk, size_t first, size_t last)
{
    const struct layer *l = walk->layer;
    bool is_rounding =
        is_rounded(&l->q.W) || is_rounded(&l->k.W) || is_rounded(&l->v.W);
    norm_rows(walk->pass, l->attn_norm, is_rounding, first, last);
}

static void
step_ffn_norm(const struct walk *walk, size_t first, size_t last)
{
    const struct layer *l = walk->layer;
    norm_rows(walk->pass, l->ffn_norm,
        is_rounded(&l->gate.W) || is_rounded(&l->up.W) ||
            walk->pass->bank.has_codes,
        first, last);
}

/* Norm and rotate the n heads of one row. */
static void
turn_heads(const struct mb_pass *pass, size_t row, size_t n, const float *norm,
    float *x)
{
    const struct mb_decoder *decoder = pass->decoder;
    const struct rope *rope = &decoder->rope;
    const float *cosine = pass->cosine + row * (rope->n_rot / 2);
    const float *sine = pass->sine + row * (rope->n_rot / 2);
    for (size_t h = 0; h < n; h++, x += decoder->info.head_dim) {
        if (norm)
            decoder->compute->rms_norm(
                x, norm, decoder->info.head_dim, decoder->norm_eps, x);
        if (rope->is_halves)
            decoder->compute->rope_halves(x, rope->n_rot, cosine, sine);
        else
            decoder->compute->rope_pairs(x, rope->n_rot, cosine, sine);
    }
}

/* A row of a context: keys turn by their row in the block; queries stay, as
 * they will turn by their distance from each block. */
static void
turn_in_context(const struct walk *walk, size_t r)
{
    struct mb_pass *pass = walk->pass;
    const struct mb_decoder *decoder = pass->decoder;
    const struct mb_decoder_info *info = &decoder->info;
    const struct pass_row *row = &pass->rows[r];
    size_t dim = info->head_dim;
    float *q = pass->q + r * info->n_heads * dim;
    float *k = pass->k + r * info->n_kv_heads * dim;
    const float *v = pass->v + r * info->n_kv_heads * dim;
    for (size_t h = 0; h < info->n_heads && walk->layer->q_norm; h++)
        decoder->compute->rms_norm(q + h * dim, walk->layer->q_norm, dim,
            decoder->norm_eps, q + h * dim);
    turn_heads(pass, r, info->n_kv_heads, walk->layer->k_norm, k);
    for (size_t j = 0; j < info->n_heads * dim; j++)
        q[j] *= decoder->attn_scale;
    for (size_t h = 0; h < info->n_kv_heads; h++)
        context_store(row->context->ctx, row->in_window,
            walk->layer_number * info->n_kv_heads + h, k + h * dim,
            v + h * dim);
}

/* Rotate queries and keys; scale queries; store keys and values. */
static void
step_turn(const struct walk *walk, size_t first, size_t last)
{
    struct mb_pass *pass = walk->pass;
    const struct mb_decoder_info *info = &pass->decoder->info;
    size_t q_width = info->n_heads * info->head_dim;
    size_t kv_width = info->n_kv_heads * info->head_dim;
    for (size_t r = first; r < last; r++) {
        const struct pass_row *row = &pass->rows[r];
        if (row->context) {
            turn_in_context(walk, r);
            continue;
        }
        struct slice_shape shape = {row->seq->cache->type, info->head_dim};
        float *q = pass->q + r * q_width;
        float *k = pass->k + r * kv_width;
        const float *v = pass->v + r * kv_width;
        turn_heads(pass, r, info->n_heads, walk->layer->q_norm, q);
        turn_heads(pass, r, info->n_kv_heads, walk->layer->k_norm, k);
        for (size_t j = 0; j < q_width; j++)
            q[j] *= pass->decoder->attn_scale;
        for (size_t h = 0; h < info->n_kv_heads; h++)
            pass->attention->store(shape,
                sequence_slice(row->seq, row->position / MB_BLOCK_ROWS,
                    walk->layer_number, h),
                row->position % MB_BLOCK_ROWS, k + h * info->head_dim,
                v + h * info->head_dim);
    }
}

/* Merge the partials of decoding rows, in order, into their heads; round. */
static void
step_merge(const struct walk *walk, size_t first, size_t last)
{
    struct mb_pass *pass = walk->pass;
    const struct mb_decoder_info *info = &pass->decoder->info;
    size_t dim = info->head_dim;
    size_t group = info->n_heads / info->n_kv_heads;
    size_t width = info->n_heads * dim;
    for (size_t r = first > pass->n_many ? first : pass->n_many; r < last;
         r++) {
        size_t p = pass->rows[r].first_partial;
        if (pass->rows[r].context) // whole already
            continue;
        for (size_t h = 0; h < info->n_kv_heads; h++) {
            struct partial to = {pass->partials.m + p, pass->partials.l + p,
                pass->partials.o + p * dim};
            for (size_t s = 1; s < pass->rows[r].n_splits; s++) {
                size_t other = p + s * group;
                struct partial from = {pass->partials.m + other,
                    pass->partials.l + other, pass->partials.o + other * dim};
                partial_merge(&to, &from, group, dim);
            }
            partial_finish(
                &to, group, dim, pass->heads + r * width + h * group * dim);
            p += pass->rows[r].n_splits * group;
        }
    }
    if (is_rounded(&walk->layer->o.W))
        round_rows(pass, pass->heads, width, first, last);
}

static void
step_round_gate(const struct walk *walk, size_t first, size_t last)
{
    struct mb_pass *pass = walk->pass;
    if (is_rounded(&walk->layer->down.W))
        round_rows(pass, pass->gate, pass->decoder->info.d_ff, first, last);
}

/* The last norm of rows whose hidden row is wanted. */
static void
step_hidden(const struct walk *walk, size_t first, size_t last)
{
    struct mb_pass *pass = walk->pass;
    const struct mb_decoder *decoder = pass->decoder;
    size_t d = decoder->info.d_model;
    for (size_t r = first; r < last; r++) {
        if (pass->rows[r].hidden)
            decoder->compute->rms_norm(pass->x + r * d, decoder->output_norm, d,
                decoder->norm_eps, pass->rows[r].hidden);
    }
}

/* ---- matrices ---- */

/* Outputs that a tile of W has. */
static size_t
tile_of(const struct mb_pass *pass, const struct tensor *W)
{
    if (pass->n_many > 0)
        return OUTPUT_TILE;
    size_t n = FEW_TILE_BYTES / W->row_bytes / FEW_TILE_OUTPUTS;
    return (n > 0 ? n : 1) * FEW_TILE_OUTPUTS;
}

/* y (n_rows, W.n_rows) = x W^T + bias, outputs [first, last). */
static void
multiply(const struct walk *walk, const struct linear *l, const float *x,
    float *y, size_t first, size_t last)
{
    struct mb_pass *pass = walk->pass;
    const struct compute *compute = pass->decoder->compute;
    size_t ldy = l->W.n_rows;
    struct activations many = rows_of(pass, x, l->W.n_cols, true);
    struct activations few = rows_of(pass, x, l->W.n_cols, false);
    if (many.n > 0)
        compute->mul_many(&l->W, first, last, &many, y, ldy, walk->room);
    if (few.n > 0)
        compute->mul_few(&l->W, first, last, &few, y + pass->n_many * ldy, ldy);
    if (!l->bias)
        return;
    for (size_t r = 0; r < pass->n_rows; r++)
        compute->add(y + r * ldy + first, l->bias + first, last - first);
}

/* Take tiles of up to three matrices with the same input. */
static void
over_outputs(const struct walk *walk, const struct linear *const *matrices,
    float *const *outputs, size_t n, const float *x)
{
    struct mb_pass *pass = walk->pass;
    size_t tile = team_next(pass->team);
    size_t before = 0; // tiles of the matrices in front
    for (size_t i = 0; i < n; i++) {
        size_t rows = matrices[i]->W.n_rows;
        size_t size = tile_of(pass, &matrices[i]->W);
        size_t n_tiles = (rows + size - 1) / size;
        for (; tile < before + n_tiles; tile = team_next(pass->team)) {
            size_t first = (tile - before) * size;
            size_t last = first + size < rows ? first + size : rows;
            multiply(walk, matrices[i], x, outputs[i], first, last);
        }
        before += n_tiles;
    }
}

/* x += y W^T of the layer's o or down, and of memory blocks beside down; y is
 * the result's room. */
static void
over_residual(const struct walk *walk, const struct linear *l,
    const float *input, bool has_bank)
{
    struct mb_pass *pass = walk->pass;
    size_t d = l->W.n_rows;
    size_t size = tile_of(pass, &l->W);
    if (has_bank && size < OUTPUT_TILE)
        size = OUTPUT_TILE; // whole lines of the blocks' rows
    for (;;) {
        size_t first = team_next(pass->team) * size;
        if (first >= d)
            return;
        size_t last = first + size < d ? first + size : d;
        multiply(walk, l, input, pass->y, first, last);
        if (has_bank)
            bank_out(pass, walk->layer_number, first, last, walk->room);
        for (size_t r = 0; r < pass->n_rows; r++)
            pass->decoder->compute->add(
                pass->x + r * d + first, pass->y + r * d + first, last - first);
    }
}

/* gate = silu(gate x) * (up x), tile by tile; memory blocks' behind. */
static void
over_gate(const struct walk *walk)
{
    struct mb_pass *pass = walk->pass;
    const struct layer *l = walk->layer;
    size_t d_ff = pass->decoder->info.d_ff;
    size_t size = tile_of(pass, &l->gate.W);
    size_t n_tiles = (d_ff + size - 1) / size;
    size_t tile = team_next(pass->team);
    for (; tile < n_tiles; tile = team_next(pass->team)) {
        size_t first = tile * size;
        size_t last = first + size < d_ff ? first + size : d_ff;
        multiply(walk, &l->gate, pass->normed, pass->gate, first, last);
        multiply(walk, &l->up, pass->normed, pass->up, first, last);
        for (size_t r = 0; r < pass->n_rows; r++) {
            float *gate = pass->gate + r * d_ff + first;
            pass->decoder->compute->swiglu(
                gate, pass->up + r * d_ff + first, last - first, gate);
        }
    }
    bank_in(pass, walk->layer_number, tile, n_tiles, walk->room);
}

/* ---- attention ---- */

/* A tile of prefill: rows [row, row + n) and the heads of one group. Queries
 * are gathered, as heads of other groups lie between them. */
static void
attend_many(const struct walk *walk, const struct pass_piece *piece,
    size_t first_head, size_t n_heads)
{
    struct mb_pass *pass = walk->pass;
    const struct mb_decoder_info *info = &pass->decoder->info;
    const struct pass_row *row = &pass->rows[piece->row];
    size_t dim = info->head_dim;
    size_t width = info->n_heads * dim;
    size_t n = piece->n * n_heads;
    struct slice_shape shape = {row->seq->cache->type, dim};
    float *q = walk->room + ATTENTION_ROOM_FLOATS;
    float *o = q + n * dim;
    struct partial p = {o + n * dim, o + n * dim + n, o};
    uint8_t seen[ATTENTION_MAX_ROWS];
    for (size_t i = 0; i < piece->n; i++)
        memcpy(q + i * n_heads * dim,
            pass->q + (piece->row + i) * width + first_head * dim,
            n_heads * dim * sizeof(float));
    partial_clear(&p, n, dim);
    size_t end = row->position + piece->n; // rows that the last one sees
    for (size_t b = 0; b * MB_BLOCK_ROWS < end; b++) {
        for (size_t i = 0; i < n; i++) {
            size_t sees = row->position + i / n_heads + 1;
            size_t from = b * MB_BLOCK_ROWS;
            size_t here = sees > from ? sees - from : 0;
            seen[i] = (uint8_t)(here < MB_BLOCK_ROWS ? here : MB_BLOCK_ROWS);
        }
        pass->attention->many(shape,
            sequence_slice(row->seq, b, walk->layer_number, piece->head), q,
            seen, n, &p, walk->room);
    }
    partial_finish(&p, n, dim, q);
    for (size_t i = 0; i < piece->n; i++)
        memcpy(pass->heads + (piece->row + i) * width + first_head * dim,
            q + i * n_heads * dim, n_heads * dim * sizeof(float));
}

/* A run of blocks for one row of decoding. */
static void
attend_few(const struct walk *walk, const struct pass_piece *piece)
{
    struct mb_pass *pass = walk->pass;
    const struct mb_decoder_info *info = &pass->decoder->info;
    const struct pass_row *row = &pass->rows[piece->row];
    size_t dim = info->head_dim;
    size_t group = info->n_heads / info->n_kv_heads;
    size_t rows = row->position + 1 - piece->first * MB_BLOCK_ROWS;
    size_t in_front = (piece->n - 1) * MB_BLOCK_ROWS;
    struct slice_shape shape = {row->seq->cache->type, dim};
    const float *q =
        pass->q + (piece->row * info->n_heads + piece->head * group) * dim;
    struct partial p = {pass->partials.m + piece->partial,
        pass->partials.l + piece->partial,
        pass->partials.o + piece->partial * dim};
    for (size_t b = 0; b < piece->n; b++)
        walk->slices[b] = sequence_slice(
            row->seq, piece->first + b, walk->layer_number, piece->head);
    partial_clear(&p, group, dim);
    size_t last = rows - in_front;
    pass->attention->few(shape, walk->slices, piece->n,
        last < MB_BLOCK_ROWS ? last : MB_BLOCK_ROWS, q, group, &p);
}

static void
over_pieces(const struct walk *walk)
{
    struct mb_pass *pass = walk->pass;
    const struct mb_decoder_info *info = &pass->decoder->info;
    size_t group = info->n_heads / info->n_kv_heads;
    for (;;) {
        size_t i = team_next(pass->team);
        if (i >= pass->n_pieces)
            return;
        const struct pass_piece *piece = &pass->pieces[i];
        bool is_context = pass->rows[piece->row].context != NULL;
        if (piece->row >= pass->n_many && !is_context) {
            attend_few(walk, piece);
            continue;
        }
        for (size_t h = 0; h < group; h += ATTENTION_MAX_ROWS) {
            size_t n =
                group - h < ATTENTION_MAX_ROWS ? group - h : ATTENTION_MAX_ROWS;
            size_t head = piece->head * group + h;
            if (is_context)
                context_attend(
                    pass, walk->layer_number, piece, head, n, walk->room);
            else
                attend_many(walk, piece, head, n);
        }
    }
}

/* ---- outputs ---- */

/* Rows that are scored go the way of prefill, those that are sampled from the
 * way of decoding. */
static bool
is_scored(const struct pass_out *out)
{
    return out->nll != NULL;
}

static struct activations
out_rows_of(const struct mb_pass *pass)
{
    return (struct activations){
        .x = pass->out_rows,
        .ld = pass->decoder->info.d_model,
        .n = pass->n_out_rows,
        .code = pass->codes,
        .scale = pass->scales,
        .sum = pass->sums,
    };
}

/* Choose the next rows whose logits are wanted: a run of one kind, at most
 * PASS_OUT_ROWS; their last norm, rounded where they will need it. */
static void
step_outs(void *arg)
{
    struct mb_pass *pass = arg;
    const struct mb_decoder *decoder = pass->decoder;
    size_t d = decoder->info.d_model;
    size_t first = pass->first_out + pass->n_out_rows;
    size_t n = 0;
    while (first + n < pass->n_outs && n < PASS_OUT_ROWS &&
           is_scored(&pass->outs[first + n]) == is_scored(&pass->outs[first]))
        n++;
    pass->first_out = first;
    pass->n_out_rows = n;
    for (size_t i = 0; i < n; i++)
        decoder->compute->rms_norm(pass->x + pass->outs[first + i].row * d,
            decoder->output_norm, d, decoder->norm_eps, pass->out_rows + i * d);
    if (n > 0 && is_rounded(&decoder->output)) {
        struct activations a = out_rows_of(pass);
        decoder->compute->quantize(&a, d, 0, n);
    }
}

/* Hand out what was computed of one row. */
static void
finish_out(const struct mb_pass *pass, size_t i)
{
    const struct pass_out *out = &pass->outs[pass->first_out + i];
    size_t n_vocab = pass->decoder->info.n_vocab;
    const float *logits = pass->out_logits + i * n_vocab;
    if (out->logits)
        memcpy(out->logits, logits, n_vocab * sizeof(float));
    else
        *out->nll = pass->decoder->compute->log_sum_exp(logits, n_vocab) -
                    logits[out->target];
}

static void
over_vocabulary(const struct walk *walk)
{
    struct mb_pass *pass = walk->pass;
    const struct compute *compute = pass->decoder->compute;
    const struct tensor *W = &pass->decoder->output;
    struct activations a = out_rows_of(pass);
    bool is_many = is_scored(&pass->outs[pass->first_out]);
    for (;;) {
        size_t first = team_next(pass->team) * VOCABULARY_TILE;
        if (first >= W->n_rows)
            return;
        size_t last = first + VOCABULARY_TILE;
        if (last > W->n_rows)
            last = W->n_rows;
        if (is_many)
            compute->mul_many(
                W, first, last, &a, pass->out_logits, W->n_rows, walk->room);
        else
            compute->mul_few(W, first, last, &a, pass->out_logits, W->n_rows);
    }
}

static void
walk_outs(const struct walk *walk)
{
    struct mb_pass *pass = walk->pass;
    for (;;) {
        team_barrier_step(pass->team, step_outs, pass);
        if (pass->n_out_rows == 0)
            return;
        over_vocabulary(walk);
        team_barrier(pass->team);
        for (size_t i = team_next(pass->team); i < pass->n_out_rows;
             i = team_next(pass->team))
            finish_out(pass, i);
    }
}

/* ---- the walk ---- */

static void
walk_layer(const struct walk *walk)
{
    struct mb_pass *pass = walk->pass;
    const struct layer *l = walk->layer;
    const struct linear *qkv[] = {&l->q, &l->k, &l->v};
    float *outputs[] = {pass->q, pass->k, pass->v};
    over_rows(walk, step_attn_norm);
    over_outputs(walk, qkv, outputs, 3, pass->normed);
    over_rows(walk, step_turn);
    if (pass->contexts.n_sets > 0) {
        context_choose(pass, walk->layer_number, walk->member, walk->room);
        team_barrier_step(pass->team, context_fetch_chosen, pass);
    }
    over_pieces(walk);
    over_rows(walk, step_merge);
    over_residual(walk, &l->o, pass->heads, false);
    over_rows(walk, step_ffn_norm);
    over_gate(walk);
    over_rows(walk, step_round_gate);
    over_residual(walk, &l->down, pass->gate, pass->bank.n_spans > 0);
}

static void
walk_pass(void *arg, unsigned member)
{
    struct mb_pass *pass = arg;
    const struct mb_decoder *decoder = pass->decoder;
    float *room = pass->room + member * (pass->room_floats + ROOM_ALIGN);
    room += (ROOM_ALIGN - (uintptr_t)room / sizeof(float) % ROOM_ALIGN) %
            ROOM_ALIGN;
    struct walk walk = {
        .pass = pass,
        .room = room,
        .slices = pass->slices + member * PASS_SPLIT_BLOCKS,
        .member = member,
    };
    over_rows(&walk, step_embed);
    for (size_t i = 0; i < decoder->info.n_layers; i++) {
        walk.layer = &decoder->layers[i];
        walk.layer_number = i;
        walk_layer(&walk);
    }
    over_rows(&walk, step_hidden);
    if (pass->n_outs > 0)
        walk_outs(&walk);
}

void
pass_compute(struct mb_pass *pass)
{
    pass->first_out = 0;
    pass->n_out_rows = 0;
    team_run(pass->team, team_size(pass->team), walk_pass, pass);
}
