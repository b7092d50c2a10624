/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/bankfile.c - see bankfile.h. */
#include "bankfile.h"

#include <math.h>

#define NAME      "bench"
#define DIM       16u /* of the vectors that the tree is fitted on */
#define PER_LEAF  8u  /* such vectors for each leaf */
#define BATCH     64u /* blocks of one operation */
#define DEVIATION 0.02f

/* ---- records ---- */

static mb_status
make_record(const struct mb_bank_shape *s, size_t level, mb_bank_type type,
    struct mb_rng *rng, struct mb_arena *arena, struct mb_slice *out,
    struct mb_error *err)
{
    struct mb_bank_draw draw = {.node = level, .level = level};
    struct mb_bank_block block;
    size_t rows = s->rows[level - 1];
    size_t size = mb_bank_record_bytes(s, rows, MB_BANK_F32);
    size_t served = mb_bank_record_bytes(s, rows, type);
    uint8_t *f32 = mb_alloc(size);
    uint8_t *record = mb_arena_alloc(arena, served);
    mb_status st = MB_OK;

    if (f32 == NULL || record == NULL)
        st = mb_error_set(err, MB_ERR_NOMEM, "a block of %zu bytes", size);
    if (st == MB_OK)
        st = mb_bank_draw(s, &draw, f32, size, err);
    for (size_t at = MB_BANK_HEADER; st == MB_OK && at < size; at += 4)
        mb_put_lef32(f32 + at, (float)mb_rng_normal(rng) * DEVIATION);
    if (st == MB_OK)
        st = mb_bank_block_open(mb_slice_of(f32, size), &block, err);
    if (st == MB_OK)
        st = mb_bank_convert(&block, type, record, served, err);
    mb_free(f32);
    if (st == MB_OK)
        *out = mb_slice_of(record, served);
    return st;
}

mb_status
bankfile_records(const struct mb_bank_shape *shape, mb_bank_type type,
    uint64_t seed, struct mb_arena *arena,
    struct mb_slice out[MB_BANK_MAX_LEVELS], struct mb_error *err)
{
    struct mb_rng rng;
    mb_status st = MB_OK;

    mb_rng_init(&rng, seed);
    for (size_t l = 1; st == MB_OK && l <= shape->n_levels; l++)
        st = make_record(shape, l, type, &rng, arena, &out[l - 1], err);
    return st;
}

/* ---- the tree ---- */

static void
random_unit(struct mb_rng *rng, float out[DIM])
{
    double square = 0;

    for (size_t d = 0; d < DIM; d++) {
        out[d] = (float)mb_rng_normal(rng);
        square += (double)out[d] * (double)out[d];
    }
    for (size_t d = 0; d < DIM; d++)
        out[d] = (float)(out[d] / sqrt(square));
}

static mb_status
fit_tree(
    struct bankfile *b, uint32_t fan_out, uint64_t seed, struct mb_error *err)
{
    size_t n = PER_LEAF;
    struct mb_rng rng;
    mb_status st;

    for (size_t l = 0; l < b->shape.n_levels; l++)
        n *= fan_out;
    float *rows = mb_alloc(n * DIM * sizeof *rows);
    if (rows == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "%zu vectors", n);
    mb_rng_init(&rng, seed);
    for (size_t i = 0; i < n; i++)
        random_unit(&rng, rows + i * DIM);
    const struct mb_tree_options opt = {.fanout = fan_out,
        .max_depth = (uint32_t)b->shape.n_levels,
        .leaf_target = PER_LEAF / 2,
        .n_total = n,
        .flat_below = 1,
        .seed = seed,
        .even_depth = true};
    st = mb_tree_fit(rows, n, DIM, &opt, &b->tree, err);
    mb_free(rows);
    return st;
}

/* ---- the store ---- */

static mb_status
apply(struct bankfile *b, struct mb_op *op, struct mb_error *err)
{
    mb_status st = mb_store_apply(b->store, op, err);

    mb_op_free(op);
    return st;
}

static mb_status
make_collection(struct bankfile *b, struct mb_error *err)
{
    const struct mb_store_options opt = {.create = true, .no_sync = true};
    struct mb_collection_settings settings;
    struct mb_op *op = NULL;
    mb_status st = mb_store_open(b->folder, &opt, &b->store, err);

    mb_collection_settings_default(&settings);
    settings.embedding = MB_EMBED_CLIENT;
    settings.dim = DIM;
    if (st == MB_OK)
        st = mb_op_create_new(mb_slice_cstr(NAME), &settings, false, &op, err);
    return st == MB_OK ? apply(b, op, err) : st;
}

static mb_status
make_bank(struct bankfile *b, uint32_t fan_out, struct mb_error *err)
{
    const struct mb_bank_shape *s = &b->shape;
    struct mb_banks record = {.embedding = MB_EMBED_CLIENT,
        .fan_out = fan_out,
        .model = NAME,
        .d_model = (uint32_t)s->d_model,
        .first_layer = (uint32_t)s->first_layer,
        .n_layers = (uint32_t)s->n_layers,
        .served_type = (uint32_t)b->type};
    struct mb_op *op = NULL;

    for (size_t l = 0; l < s->n_levels; l++)
        record.rows[l] = (uint32_t)s->rows[l];
    mb_status st = mb_op_banks_build_new(mb_slice_cstr(NAME), &record,
        mb_slice_of(NULL, 0), b->tree, NULL, &op, err);
    if (st == MB_OK)
        st = mb_store_apply(b->store, op, err);
    if (st == MB_OK)
        b->bank = mb_op_banks_build_result(op);
    mb_op_free(op);
    return st;
}

static mb_status
put_block(struct bankfile *b, struct mb_op *op, const struct mb_node *at,
    uint32_t number, struct mb_slice record, struct mb_error *err)
{
    struct mb_banks_node node = {.node = number,
        .level = at->level,
        .state = MB_BANKS_READY,
        .has_gained = true,
        .block_bytes = record.size};
    mb_status st = mb_banks_edit_node(op, &node);

    if (st == MB_OK)
        st = mb_banks_edit_block(op, number, record);
    if (st != MB_OK)
        return mb_error_set(err, st, "a block of %zu bytes", record.size);
    b->n_blocks++;
    b->bytes += record.size;
    return MB_OK;
}

static mb_status
put_blocks(struct bankfile *b, const struct mb_slice *records, uint32_t first,
    uint32_t end, struct mb_error *err)
{
    struct mb_op *op = NULL;
    mb_status st = mb_op_banks_edit_new(mb_slice_cstr(NAME), b->bank, &op, err);

    for (uint32_t i = first; st == MB_OK && i < end; i++) {
        struct mb_node at;

        mb_tree_node(b->tree, i, &at);
        if (at.level > 0) // the root has no block
            st = put_block(b, op, &at, i, records[at.level - 1], err);
    }
    if (st == MB_OK)
        return apply(b, op, err);
    mb_op_free(op);
    return st;
}

mb_status
bankfile_init(struct bankfile *b, const struct mb_bank_shape *shape,
    uint32_t fan_out, mb_bank_type type, uint64_t seed, struct mb_error *err)
{
    struct mb_slice records[MB_BANK_MAX_LEVELS];
    struct mb_arena *arena = mb_arena_new((size_t)4 << 30);
    mb_status st = MB_OK;

    *b = (struct bankfile){.shape = *shape, .type = type};
    if (arena == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "blocks");
    st = tool_temp_folder("membank-bench", b->folder, err);
    if (st == MB_OK)
        st = fit_tree(b, fan_out, seed, err);
    if (st == MB_OK)
        st = make_collection(b, err);
    if (st == MB_OK)
        st = make_bank(b, fan_out, err);
    if (st == MB_OK)
        st = bankfile_records(shape, type, seed, arena, records, err);
    uint32_t n = st == MB_OK ? mb_tree_n_nodes(b->tree) : 0;
    for (uint32_t i = 0; st == MB_OK && i < n; i += BATCH)
        st = put_blocks(b, records, i, i + BATCH < n ? i + BATCH : n, err);
    mb_arena_free(arena);
    return st;
}

void
bankfile_fini(struct bankfile *b)
{
    mb_store_close(b->store);
    mb_tree_free(b->tree);
    if (b->folder[0] != '\0')
        tool_remove_folder(b->folder);
    *b = (struct bankfile){0};
}

/* ---- fetching ---- */

size_t
bankfile_draw(const struct bankfile *b, struct mb_rng *rng,
    uint32_t out[MB_BANKS_MAX_LEVELS])
{
    struct mb_tree_step steps[MB_BANKS_MAX_LEVELS];
    float vector[DIM];

    random_unit(rng, vector);
    size_t n = mb_tree_path(b->tree, vector, steps, MB_BANKS_MAX_LEVELS, NULL);
    for (size_t i = 0; i < n; i++)
        out[i] = steps[i].node;
    return n;
}

mb_status
bankfile_fetch(const struct bankfile *b, struct mb_snapshot *snap,
    const uint32_t *nodes, size_t n, struct mb_bank_path *out,
    struct mb_error *err)
{
    struct mb_collection coll;
    struct mb_banks bank;
    mb_status st = mb_collection_get(snap, mb_slice_cstr(NAME), &coll, err);

    out->n_blocks = 0;
    if (st == MB_OK)
        st = mb_banks_get(snap, &coll, &bank, err);
    for (size_t i = 0; st == MB_OK && i < n; i++) {
        struct mb_banks_node node;
        struct mb_slice record;

        st = mb_banks_node_get(snap, &coll, b->bank, nodes[i], &node, err);
        if (st == MB_OK)
            st = mb_banks_block(snap, &coll, b->bank, nodes[i], &record, err);
        if (st == MB_OK)
            st = mb_bank_block_open(record, &out->blocks[out->n_blocks++], err);
    }
    return st;
}
