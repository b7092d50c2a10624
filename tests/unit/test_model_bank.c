/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_bank.c - memory blocks: sizes, records, kernels. */
#include "mb_test.h"

#include <math.h>

#include "bank_block.h"

/* Sums of up to 200 products in float against double. */
#define OUT_RTOL 1e-4
#define OUT_ATOL 1e-4

static const struct mb_bank_shape small = {.d_model = 64,
    .first_layer = 1,
    .n_layers = 2,
    .n_levels = 2,
    .rows = {8, 3}};

static const mb_bank_type types[] = {MB_BANK_F32, MB_BANK_BF16, MB_BANK_Q8_0};

struct record {
    uint8_t *bytes;
    size_t size;
};

static struct record
drawn(const struct mb_bank_shape *shape, struct mb_bank_draw draw)
{
    size_t rows =
        draw.level > 0 ? shape->rows[draw.level - 1] : mb_bank_path_rows(shape);
    struct record r = {NULL, mb_bank_record_bytes(shape, rows, MB_BANK_F32)};
    struct mb_error err;
    assert_true(r.size > 0);
    r.bytes = mb_calloc(r.size, 1);
    assert_non_null(r.bytes);
    assert_status(
        MB_OK, mb_bank_draw(shape, &draw, r.bytes, r.size, &err), &err);
    return r;
}

static struct mb_slice
slice_of(struct record r)
{
    return mb_slice_of(r.bytes, r.size);
}

static struct mb_bank_block
opened(struct record r)
{
    struct mb_bank_block b;
    struct mb_error err;
    assert_status(MB_OK, mb_bank_block_open(slice_of(r), &b, &err), &err);
    return b;
}

/* ---- sizes ---- */

static void
test_shape_when_made_then_as_the_paper_has_it(void **state)
{
    (void)state;

    static const struct {
        struct mb_bank_budget budget;
        size_t rows[3];
    } cases[] = {
        /* The paper's 160M and 410M models: (256, 64, 16), (512, 128, 32). */
        {{.d_model = 512,
             .n_layers = 35,
             .n_params = 163510016,
             .fan_out = 16,
             .n_levels = 3,
             .fetch = 0.1105},
            {256, 64, 16}},
        {{.d_model = 1024,
             .n_layers = 24,
             .n_params = 411665408,
             .fan_out = 16,
             .n_levels = 3,
             .fetch = 0.1204},
            {512, 128, 32}},
        /* The miniature: eight children halve the rows. */
        {{.d_model = 128,
             .n_layers = 4,
             .n_params = 940000,
             .fan_out = 8,
             .n_levels = 3,
             .fetch = 0.0915},
            {32, 16, 8}},
        /* Few children: the upper level is still twice the lower. */
        {{.d_model = 128,
             .n_layers = 4,
             .n_params = 940000,
             .fan_out = 4,
             .n_levels = 3,
             .fetch = 0.0915},
            {32, 16, 8}},
        /* Next to nothing: one row at least. */
        {{.d_model = 128,
             .n_layers = 4,
             .n_params = 940000,
             .fan_out = 8,
             .n_levels = 3,
             .fetch = 0.004},
            {1, 1, 1}},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct mb_bank_shape s;
        struct mb_error err;
        assert_status(
            MB_OK, mb_bank_shape_make(&cases[i].budget, &s, &err), &err);
        for (size_t l = 0; l < 3; l++)
            assert_int_equal(s.rows[l], cases[i].rows[l]);
        assert_int_equal(s.n_layers, cases[i].budget.n_layers);
    }
}

static void
test_shape_when_default_then_a_tenth_of_the_anchor(void **state)
{
    (void)state;
    for (size_t width = 64; width <= 4096; width *= 2) {
        struct mb_bank_budget b = {.d_model = width,
            .n_layers = 16,
            .n_params = 12 * width * width * 16 + 8000 * width,
            .fan_out = 16,
            .n_levels = 3,
            .first_layer = 4};
        struct mb_bank_shape s;
        assert_ok(mb_bank_shape_make(&b, &s, NULL));
        assert_int_equal(s.first_layer, 4);
        assert_int_equal(s.n_layers, 12);
        double part = (double)mb_bank_n_params(&s, mb_bank_path_rows(&s)) /
                      (double)b.n_params;
        assert_true(part > 0.09 && part < 0.12);
    }
}

static void
test_shape_when_impossible_then_refused(void **state)
{
    (void)state;
    const struct mb_bank_budget good = {.d_model = 64,
        .n_layers = 4,
        .n_params = 1000000,
        .fan_out = 8,
        .n_levels = 3};
    struct mb_bank_budget bad[6];
    struct mb_bank_shape s;
    for (size_t i = 0; i < 6; i++)
        bad[i] = good;
    bad[0].d_model = 0;
    bad[1].n_layers = 0;
    bad[2].first_layer = 4;
    bad[3].fan_out = 1;
    bad[4].n_levels = MB_BANK_MAX_LEVELS + 1;
    bad[5].n_params = UINT64_MAX / 2;
    assert_ok(mb_bank_shape_make(&good, &s, NULL));
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(MB_ERR_BAD_ARG, mb_bank_shape_make(&bad[i], &s, NULL));
}

/* ---- records ---- */

static void
test_draw_when_fresh_then_down_is_zero(void **state)
{
    (void)state;
    struct record r =
        drawn(&small, (struct mb_bank_draw){.seed = 5, .node = 77, .level = 1});
    struct mb_bank_block b = opened(r);
    assert_int_equal(b.node, 77);
    assert_int_equal(b.level, 1);
    assert_int_equal(b.rows, 8);
    assert_int_equal(b.first_layer, 1);
    assert_int_equal(b.type, MB_BANK_F32);
    assert_ok(mb_bank_block_verify(slice_of(r), NULL));
    for (size_t l = 0; l < b.n_layers; l++) {
        struct mb_bank_norms n = mb_bank_block_norms(&b, l);
        /* 512 normals of deviation 1/8 have a norm near sqrt(8). */
        assert_true(fabs(n.gate - sqrt(8)) < 0.4);
        assert_true(fabs(n.up - sqrt(8)) < 0.4);
        assert_true(n.down == 0);
    }
    for (size_t i = 0; i < b.data_bytes; i += 4)
        assert_true(fabsf(mb_get_lef32(b.data + i)) <= 3.0f / 8 + 1e-6f);
    mb_free(r.bytes);
}

static void
test_draw_when_repeated_then_same_bytes(void **state)
{
    (void)state;
    const struct mb_bank_draw draw = {.seed = 1, .node = 2, .level = 2};
    struct record a = drawn(&small, draw);
    struct record b = drawn(&small, draw);
    assert_memory_equal(a.bytes, b.bytes, a.size);
    for (int i = 0; i < 2; i++) {
        struct mb_bank_draw other = draw;
        other.seed += i == 0;
        other.node += i == 1;
        mb_free(b.bytes);
        b = drawn(&small, other);
        assert_memory_not_equal(
            a.bytes + MB_BANK_HEADER, b.bytes + MB_BANK_HEADER, 64);
    }
    mb_free(a.bytes);
    mb_free(b.bytes);
}

static void
test_draw_when_room_is_wrong_then_refused(void **state)
{
    (void)state;
    uint8_t room[64];
    struct mb_bank_draw draw = {.level = 3};
    assert_int_equal(
        MB_ERR_BAD_ARG, mb_bank_draw(&small, &draw, room, sizeof(room), NULL));
    draw.level = 1;
    assert_int_equal(
        MB_ERR_BAD_ARG, mb_bank_draw(&small, &draw, room, sizeof(room), NULL));
}

/* The checksum of a changed header, so that only what is wrong is found. */
static void
seal_header(uint8_t *p)
{
    mb_put_le32(p + 76, (uint32_t)mb_hash64(p, 76, 0));
}

static void
test_open_when_record_is_hostile_then_refused(void **state)
{
    (void)state;

    static const struct {
        size_t at;
        uint8_t value;
        bool is_sealed;
        mb_status want;
        const char *part;
    } cases[] = {
        {0, 'X', true, MB_ERR_CORRUPT, "MBBK"},
        {4, 9, true, MB_ERR_NOT_IMPLEMENTED, "version 9"},
        {6, 3, true, MB_ERR_CORRUPT, "type"},
        {8, 1, false, MB_ERR_CORRUPT, "checksum"},
        {16, 200, true, MB_ERR_CORRUPT, "range"},
        {22, 255, true, MB_ERR_CORRUPT, "shape"},
        {20, 65, true, MB_ERR_CORRUPT, "its shape takes"},
        {27, 255, true, MB_ERR_CORRUPT, "range"},
        {30, 255, true, MB_ERR_CORRUPT, "shape"},
        {32, 0, true, MB_ERR_CORRUPT, "shape"},
        {35, 255, true, MB_ERR_CORRUPT, "shape"},
        {36, 1, true, MB_ERR_CORRUPT, "range"},
        {70, 1, true, MB_ERR_CORRUPT, "its shape takes"},
    };
    struct record r = drawn(&small, (struct mb_bank_draw){.level = 1});
    uint8_t *copy = mb_alloc(r.size);
    struct mb_bank_block b;
    struct mb_error err;
    assert_non_null(copy);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        memcpy(copy, r.bytes, r.size);
        copy[cases[i].at] = cases[i].value;
        if (cases[i].is_sealed)
            seal_header(copy);
        assert_status(cases[i].want,
            mb_bank_block_open(mb_slice_of(copy, r.size), &b, &err), &err);
        assert_error_has(err, cases[i].part);
    }
    for (size_t n = 0; n < r.size; n += n < 100 ? 1 : 97)
        assert_int_equal(MB_ERR_CORRUPT,
            mb_bank_block_open(mb_slice_of(r.bytes, n), &b, NULL));
    mb_free(copy);
    mb_free(r.bytes);
}

static void
test_verify_when_weights_changed_then_corrupt(void **state)
{
    (void)state;
    struct record r = drawn(&small, (struct mb_bank_draw){.level = 1});
    struct mb_bank_block b;
    struct mb_error err;
    r.bytes[r.size - 1] ^= 1;
    assert_ok(mb_bank_block_open(slice_of(r), &b, NULL));
    assert_status(
        MB_ERR_CORRUPT, mb_bank_block_verify(slice_of(r), &err), &err);
    assert_error_has(err, "checksum");
    mb_put_lef32(r.bytes + r.size - 4, NAN);
    bank_seal(b, r.bytes);
    assert_status(
        MB_ERR_CORRUPT, mb_bank_block_verify(slice_of(r), &err), &err);
    assert_error_has(err, "finite");
    mb_free(r.bytes);
}

/* ---- conversion ---- */

static void
fill(struct record r, uint64_t seed)
{
    struct mb_bank_block b = opened(r);
    struct mb_rng rng;
    mb_rng_init(&rng, seed);
    for (size_t at = MB_BANK_HEADER; at < r.size; at += 4)
        mb_put_lef32(r.bytes + at, (float)mb_rng_normal(&rng));
    bank_seal(b, r.bytes);
}

static struct record
converted(struct record r, mb_bank_type type)
{
    struct mb_bank_block b = opened(r);
    struct mb_bank_shape s = {.d_model = b.d_model, .n_layers = b.n_layers};
    struct record out = {NULL, mb_bank_record_bytes(&s, b.rows, type)};
    struct mb_error err;
    out.bytes = mb_calloc(out.size, 1);
    assert_non_null(out.bytes);
    assert_status(
        MB_OK, mb_bank_convert(&b, type, out.bytes, out.size, &err), &err);
    assert_status(MB_OK, mb_bank_block_verify(slice_of(out), &err), &err);
    return out;
}

static void
test_convert_when_back_in_f32_then_near(void **state)
{
    (void)state;
    static const double step[] = {0, 1.0 / 256, 1.0 / 127};
    struct record f32 =
        drawn(&small, (struct mb_bank_draw){.node = 9, .level = 1});
    fill(f32, 3);
    for (size_t t = 0; t < 3; t++) {
        struct record there = converted(f32, types[t]);
        struct record back = converted(there, MB_BANK_F32);
        assert_int_equal(opened(there).type, types[t]);
        assert_int_equal(opened(back).node, 9);
        assert_int_equal(back.size, f32.size);
        for (size_t i = MB_BANK_HEADER; i < f32.size; i += 4) {
            double want = (double)mb_get_lef32(f32.bytes + i);
            double got = (double)mb_get_lef32(back.bytes + i);
            /* BF16 rounds each by a part of itself, Q8_0 all by half a step of
             * the largest of 32, which is below 5 here. */
            double most = t == 2 ? 5 : fabs(want);
            assert_true(fabs(got - want) <= step[t] * most);
        }
        mb_free(there.bytes);
        mb_free(back.bytes);
    }
    mb_free(f32.bytes);
}

static void
test_convert_when_width_has_no_blocks_then_refused(void **state)
{
    (void)state;
    struct mb_bank_shape odd = small;
    uint8_t room[4096];
    odd.d_model = 40;
    assert_int_equal(0, mb_bank_record_bytes(&odd, 8, MB_BANK_Q8_0));
    struct record r = drawn(&odd, (struct mb_bank_draw){.level = 1});
    struct mb_bank_block b = opened(r);
    assert_int_equal(MB_ERR_BAD_ARG,
        mb_bank_convert(&b, MB_BANK_Q8_0, room, sizeof(room), NULL));
    mb_free(r.bytes);
}

/* ---- kernels ---- */

struct product {
    struct tensor W;
    float *h; /* (n, rows) */
    float *y; /* (n, cols) */
    size_t n;
};

static void
run(bank_out_fn fn, const struct product *p, size_t first, size_t last,
    size_t row, size_t n, float *y)
{
    static float room[BANK_ROOM_FLOATS];
    fn(&p->W, first, last, p->h + row * p->W.n_rows, p->W.n_rows, n,
        y + row * p->W.n_cols, p->W.n_cols, room);
}

/* Against the twin; and the same bits for each row alone, and in two tiles. */
static void
check_product(const struct product *p)
{
    size_t cols = p->W.n_cols;
    size_t size = p->n * cols;
    size_t middle = cols / 16 * 8;
    float *want = mb_alloc(size * sizeof(float));
    float *got = mb_alloc(size * sizeof(float));
    float *cut = mb_alloc(size * sizeof(float));
    assert_true(want && got && cut);
    memcpy(want, p->y, size * sizeof(float));
    memcpy(got, p->y, size * sizeof(float));
    memcpy(cut, p->y, size * sizeof(float));
    run(bank_out_plain, p, 0, cols, 0, p->n, want);
    run(bank_out_best(), p, 0, cols, 0, p->n, got);
    for (size_t r = 0; r < p->n; r++) {
        run(bank_out_best(), p, 0, middle, r, 1, cut);
        run(bank_out_best(), p, middle, cols, r, 1, cut);
    }
    for (size_t i = 0; i < size; i++) {
        double w = (double)want[i];
        if (!(fabs((double)got[i] - w) <= OUT_ATOL + OUT_RTOL * fabs(w)))
            fail_msg("type %d, (%zu, %zu), %zu rows: value %zu is %g, not %g",
                (int)p->W.type, p->W.n_rows, cols, p->n, i, (double)got[i], w);
    }
    assert_memory_equal(got, cut, size * sizeof(float));
    mb_free(want);
    mb_free(got);
    mb_free(cut);
}

static void
test_out_when_compared_then_near_plain_and_same_bits(void **state)
{
    (void)state;
    static const size_t rows[] = {1, 5, 16, 200, 2500};
    static const size_t widths[] = {32, 64, 160, 40, 20};
    static const size_t ns[] = {1, 2, 4, 5, 7, 33};
    for (size_t t = 0; t < 3; t++) {
        for (size_t i = 0; i < 5; i++) {
            struct mb_bank_shape s = {.d_model = widths[i],
                .n_layers = 1,
                .n_levels = 1,
                .rows = {rows[i]}};
            if (mb_bank_record_bytes(&s, rows[i], types[t]) == 0)
                continue;
            struct record f32 = drawn(&s, (struct mb_bank_draw){.level = 1});
            fill(f32, 10 + i);
            struct record r = converted(f32, types[t]);
            struct mb_bank_block b = opened(r);
            struct product p = {.W = bank_matrix(&b, 0, BANK_DOWN)};
            struct mb_rng rng;
            p.h = mb_alloc(33 * rows[i] * sizeof(float));
            p.y = mb_alloc(33 * widths[i] * sizeof(float));
            assert_true(p.h && p.y);
            mb_rng_init(&rng, i);
            for (size_t j = 0; j < 33 * rows[i]; j++)
                p.h[j] = (float)(mb_rng_normal(&rng) / sqrt((double)rows[i]));
            for (size_t j = 0; j < 33 * widths[i]; j++)
                p.y[j] = (float)mb_rng_normal(&rng);
            for (size_t j = 0; j < 6; j++) {
                p.n = ns[j];
                check_product(&p);
            }
            mb_free(p.h);
            mb_free(p.y);
            mb_free(r.bytes);
            mb_free(f32.bytes);
        }
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shape_when_made_then_as_the_paper_has_it),
        cmocka_unit_test(test_shape_when_default_then_a_tenth_of_the_anchor),
        cmocka_unit_test(test_shape_when_impossible_then_refused),
        cmocka_unit_test(test_draw_when_fresh_then_down_is_zero),
        cmocka_unit_test(test_draw_when_repeated_then_same_bytes),
        cmocka_unit_test(test_draw_when_room_is_wrong_then_refused),
        cmocka_unit_test(test_open_when_record_is_hostile_then_refused),
        cmocka_unit_test(test_verify_when_weights_changed_then_corrupt),
        cmocka_unit_test(test_convert_when_back_in_f32_then_near),
        cmocka_unit_test(test_convert_when_width_has_no_blocks_then_refused),
        cmocka_unit_test(test_out_when_compared_then_near_plain_and_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
