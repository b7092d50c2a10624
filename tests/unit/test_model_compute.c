/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_compute.c - products of each level: close to the plain
 * ones, and the same bits whatever goes along. */
#include "mb_test.h"

#include <math.h>
#include <sys/mman.h>

#include "compute.h"
#include "tensor_data.h"

/* A sum of K products of floats in a dozen or so chains is off by a few units
 * in the last place of the sum of their sizes, which may be far larger than
 * the result; so are integers that are converted and scaled block by block.
 * All seen are below 3e-7. */
#define SUM_RTOL 1e-6
#define SUM_ATOL 1e-30

#define MAX_ROWS 21

/* Everything that a product needs, and its result. */
struct rig {
    struct tensor W;
    struct activations a;
    uint8_t *bytes; /* W's data with one byte in front: nothing is aligned */
    float *x;
    float *y;
    float *wanted;
    float *room;
    struct mb_rng rng;
};

static void *
need(size_t n, size_t size)
{
    void *p = mb_calloc(n + 16, size);
    assert_non_null(p);
    return p;
}

static uint64_t seed;

/* Rows of activations lie ld = n_cols + 3 apart. */
static struct rig
rig_begin(tensor_type type, size_t n_rows, size_t n_cols, size_t n)
{
    struct rig rig;
    size_t ld = n_cols + 3;
    size_t blocks = n_cols / ACT_BLOCK;
    mb_rng_init(&rig.rng, seed + n_rows + 1000 * n_cols);
    rig.bytes = need(tensor_bytes(type, n_rows, n_cols) + 1, 1);
    rig.W = tensor_make(type, n_rows, n_cols, rig.bytes + 1, &rig.rng);
    rig.x = need(n * ld, sizeof(float));
    for (size_t i = 0; i < n * ld; i++)
        rig.x[i] = tensor_random_float(&rig.rng);
    rig.a = (struct activations){
        .x = rig.x,
        .ld = ld,
        .n = n,
        .code = need(n * n_cols, sizeof(int16_t)),
        .scale = need(n * blocks, sizeof(float)),
        .sum = need(n * blocks, sizeof(float)),
    };
    rig.y = need(n * n_rows, sizeof(float));
    rig.wanted = need(n * n_rows, sizeof(float));
    rig.room = aligned_alloc(64, MUL_ROOM_FLOATS * sizeof(float));
    assert_non_null(rig.room);
    compute_at(COMPUTE_PLAIN)->quantize(&rig.a, n_cols / 32 * 32, 0, n);
    return rig;
}

static void
rig_end(struct rig *rig)
{
    mb_free(rig->bytes);
    mb_free(rig->x);
    mb_free(rig->a.code);
    mb_free(rig->a.scale);
    mb_free(rig->a.sum);
    mb_free(rig->y);
    mb_free(rig->wanted);
    free(rig->room);
}

/* Rows [row, row + n) of the activations. */
static struct activations
rows_of(const struct rig *rig, size_t row, size_t n)
{
    size_t n_cols = rig->W.n_cols / 32 * 32;
    struct activations a = rig->a;
    a.x += row * a.ld;
    a.n = n;
    a.code += row * n_cols;
    a.scale += row * (n_cols / ACT_BLOCK);
    a.sum += row * (n_cols / ACT_BLOCK);
    return a;
}

static void
multiply(const struct compute *c, bool is_many, const struct rig *rig,
    size_t first, size_t last, const struct activations *a, float *y)
{
    if (is_many)
        c->mul_many(&rig->W, first, last, a, y, rig->W.n_rows, rig->room);
    else
        c->mul_few(&rig->W, first, last, a, y, rig->W.n_rows);
}

/* Sum of the sizes of the products behind an output. */
static double
size_of_sum(const struct rig *rig, size_t row, size_t output)
{
    float *w = need(rig->W.n_cols, sizeof(float));
    double sum = 0;
    compute_at(COMPUTE_PLAIN)->row(&rig->W, output, w);
    for (size_t i = 0; i < rig->W.n_cols; i++)
        sum += fabs((double)w[i] * (double)rig->x[row * rig->a.ld + i]);
    mb_free(w);
    return sum;
}

/* The shapes of a type: whole panels and cut ones, one block and several
 * stretches of columns. */
struct shape {
    size_t n_rows;
    size_t n_cols;
};

static const struct shape float_shapes[] = {
    {1, 1}, {5, 7}, {16, 8}, {17, 33}, {37, 256}, {3, 1000}, {33, 2500}};
static const struct shape block_shapes[] = {
    {1, 32}, {3, 64}, {16, 96}, {17, 288}, {37, 576}, {5, 2336}};
static const struct shape super_shapes[] = {
    {1, 256}, {16, 512}, {37, 768}, {5, 2560}};

static size_t
shapes_of(tensor_type type, const struct shape **out)
{
    size_t values = tensor_block_values(type);
    *out = values == 1    ? float_shapes
           : values == 32 ? block_shapes
                          : super_shapes;
    return values == 1    ? sizeof(float_shapes) / sizeof(float_shapes[0])
           : values == 32 ? sizeof(block_shapes) / sizeof(block_shapes[0])
                          : sizeof(super_shapes) / sizeof(super_shapes[0]);
}

typedef void (*visit_fn)(
    const struct compute *c, bool is_many, tensor_type type, struct shape s);

/* For each level that is here, both ways, all types and shapes. */
static void
for_each(visit_fn visit)
{
    for (int level = 0; level < COMPUTE_N_LEVELS; level++) {
        const struct compute *c = compute_at((compute_level)level);
        for (size_t t = 0; c && t < N_TENSOR_TYPES; t++) {
            const struct shape *shapes;
            size_t n = shapes_of(tensor_types[t], &shapes);
            for (size_t i = 0; i < 2 * n; i++)
                visit(c, i >= n, tensor_types[t], shapes[i % n]);
        }
    }
}

/* ---- close to the plain one ---- */

static void
check_close(
    const struct compute *c, bool is_many, tensor_type type, struct shape s)
{
    struct rig rig = rig_begin(type, s.n_rows, s.n_cols, MAX_ROWS);
    compute_at(COMPUTE_PLAIN)
        ->mul_few(&rig.W, 0, s.n_rows, &rig.a, rig.wanted, s.n_rows);
    multiply(c, is_many, &rig, 0, s.n_rows, &rig.a, rig.y);
    for (size_t i = 0; i < MAX_ROWS * s.n_rows; i++) {
        double size = size_of_sum(&rig, i / s.n_rows, i % s.n_rows);
        double error = fabs((double)rig.y[i] - (double)rig.wanted[i]);
        if (!(error <= SUM_ATOL + SUM_RTOL * size))
            fail_msg("%s %s %s (%zu, %zu) row %zu output %zu: %.9g, not %.9g, "
                     "of %.9g",
                c->name, is_many ? "many" : "few", tensor_type_name(type),
                s.n_rows, s.n_cols, i / s.n_rows, i % s.n_rows,
                (double)rig.y[i], (double)rig.wanted[i], size);
    }
    rig_end(&rig);
}

static void
test_products_of_each_level_when_multiplied_then_close_to_plain(void **state)
{
    MB_TEST_UNUSED(state);
    for_each(check_close);
}

/* The rounding of activations is apart: at most half a step of 32767 for each
 * value, of the largest of its block (here 1). */
static void
test_plain_products_when_quantised_then_close_to_unrounded(void **state)
{
    MB_TEST_UNUSED(state);
    for (size_t t = 0; t < N_TENSOR_TYPES; t++) {
        struct rig rig = rig_begin(tensor_types[t], 3, 512, 2);
        float w[512];
        compute_at(COMPUTE_PLAIN)->mul_few(&rig.W, 0, 3, &rig.a, rig.y, 3);
        for (size_t i = 0; i < 6; i++) {
            double sum = 0;
            double sizes = 0;
            compute_at(COMPUTE_PLAIN)->row(&rig.W, i % 3, w);
            for (size_t k = 0; k < 512; k++) {
                sum += (double)w[k] * (double)rig.x[i / 3 * rig.a.ld + k];
                sizes += fabs((double)w[k]);
            }
            double bound = 1e-6 * sizes + 0.5 / 32767 * sizes;
            assert_true(fabs(sum - (double)rig.y[i]) <= bound);
        }
        rig_end(&rig);
    }
}

/* ---- the same bits ---- */

static void
check_same(const struct rig *rig, size_t row, size_t n, size_t first,
    size_t last, const char *what)
{
    size_t n_rows = rig->W.n_rows;
    for (size_t i = 0; i < n; i++) {
        for (size_t o = first; o < last; o++) {
            if (memcmp(rig->y + i * n_rows + o,
                    rig->wanted + (row + i) * n_rows + o, sizeof(float)) != 0)
                fail_msg("%s %s (%zu, %zu): row %zu of %zu, output %zu differs",
                    what, tensor_type_name(rig->W.type), n_rows, rig->W.n_cols,
                    row + i, n, o);
        }
    }
}

static void
check_rows(
    const struct compute *c, bool is_many, tensor_type type, struct shape s)
{
    struct rig rig = rig_begin(type, s.n_rows, s.n_cols, MAX_ROWS);
    multiply(c, is_many, &rig, 0, s.n_rows, &rig.a, rig.wanted);
    for (size_t n = 1; n <= MAX_ROWS; n++) {
        for (size_t row = 0; row + n <= MAX_ROWS; row += n < 5 ? 1 : 3) {
            struct activations a = rows_of(&rig, row, n);
            multiply(c, is_many, &rig, 0, s.n_rows, &a, rig.y);
            check_same(&rig, row, n, 0, s.n_rows, c->name);
        }
    }
    rig_end(&rig);
}

static void
test_rows_when_in_other_company_then_same_bits(void **state)
{
    MB_TEST_UNUSED(state);
    for_each(check_rows);
}

static void
check_ranges(
    const struct compute *c, bool is_many, tensor_type type, struct shape s)
{
    struct rig rig = rig_begin(type, s.n_rows, s.n_cols, 7);
    multiply(c, is_many, &rig, 0, s.n_rows, &rig.a, rig.wanted);
    for (size_t first = 0; first < s.n_rows; first++) {
        for (size_t last = first; last <= s.n_rows; last += 1 + last / 4) {
            for (size_t i = 0; i < 7 * s.n_rows; i++)
                rig.y[i] = 12345;
            multiply(c, is_many, &rig, first, last, &rig.a, rig.y);
            check_same(&rig, 0, 7, first, last, c->name);
            for (size_t i = 0; i < 7 * s.n_rows; i++) {
                size_t o = i % s.n_rows;
                if (o < first || o >= last)
                    assert_true(rig.y[i] == 12345);
            }
        }
    }
    rig_end(&rig);
}

static void
test_outputs_when_range_is_cut_then_same_bits_and_none_beside(void **state)
{
    MB_TEST_UNUSED(state);
    for_each(check_ranges);
}

/* AVX-512 only computes more lanes at a time. */
static void
check_avx512(
    const struct compute *c, bool is_many, tensor_type type, struct shape s)
{
    const struct compute *wide = compute_at(COMPUTE_AVX512);
    struct rig rig = rig_begin(type, s.n_rows, s.n_cols, MAX_ROWS);
    if (wide && c == compute_at(COMPUTE_AVX2)) {
        multiply(c, is_many, &rig, 0, s.n_rows, &rig.a, rig.wanted);
        multiply(wide, is_many, &rig, 0, s.n_rows, &rig.a, rig.y);
        check_same(&rig, 0, MAX_ROWS, 0, s.n_rows, wide->name);
    }
    rig_end(&rig);
}

static void
test_products_when_avx512_then_same_bits_as_avx2(void **state)
{
    MB_TEST_UNUSED(state);
    for_each(check_avx512);
}

/* ---- hostile weights ---- */

static void
check_hostile(
    const struct compute *c, bool is_many, tensor_type type, struct shape s)
{
    struct rig rig = rig_begin(type, s.n_rows, s.n_cols, 5);
    size_t bytes = tensor_bytes(type, s.n_rows, s.n_cols);
    for (int round = 0; round < 4; round++) {
        for (size_t i = 0; i < bytes; i++)
            rig.bytes[i + 1] = round == 0 ? 0xff
                               : round == 1
                                   ? 0x7c // infinity as a binary16
                                   : (uint8_t)mb_rng_below(&rig.rng, 256);
        multiply(c, is_many, &rig, 0, s.n_rows, &rig.a, rig.y);
        c->row(&rig.W, s.n_rows - 1, rig.x);
    }
    rig_end(&rig);
}

static void
test_weights_when_any_bytes_then_no_crash(void **state)
{
    MB_TEST_UNUSED(state);
    for_each(check_hostile);
}

/* Nothing may be read behind a tensor, which ends where its file may end: there
 * a page follows that must not be touched. */
static void
check_edge(
    const struct compute *c, bool is_many, tensor_type type, struct shape s)
{
    struct rig rig = rig_begin(type, s.n_rows, s.n_cols, 5);
    float *row = need(s.n_cols, sizeof(float));
    size_t bytes = tensor_bytes(type, s.n_rows, s.n_cols);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t room = (bytes + page - 1) / page * page;
    int zeros = open("/dev/zero", O_RDONLY);
    uint8_t *map =
        mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE, zeros, 0);
    assert_true(map != MAP_FAILED);
    assert_int_equal(0, mprotect(map + room, page, PROT_NONE));
    rig.W.data = memcpy(map + room - bytes, rig.W.data, bytes);
    multiply(c, is_many, &rig, 0, s.n_rows, &rig.a, rig.y);
    c->row(&rig.W, s.n_rows - 1, row);
    assert_int_equal(0, munmap(map, room + page));
    (void)close(zeros);
    mb_free(row);
    rig_end(&rig);
}

static void
test_products_when_the_file_ends_at_the_tensor_then_no_read_behind(void **state)
{
    MB_TEST_UNUSED(state);
    for_each(check_edge);
}

/* The largest codes and activations, all of one sign: integers must hold. */
static void
check_extremes(
    const struct compute *c, bool is_many, tensor_type type, struct shape s)
{
    struct rig rig = rig_begin(type, s.n_rows, s.n_cols, 5);
    size_t bytes = tensor_block_bytes(type);
    if (tensor_block_values(type) == 1) {
        rig_end(&rig);
        return;
    }
    for (size_t i = 0; i < tensor_bytes(type, s.n_rows, s.n_cols); i++) {
        size_t at = i % bytes;
        uint8_t b = 0xff; // largest nibbles, scales and offsets
        if (type == TENSOR_Q8_0)
            b = 0x80; // -128
        if (type == TENSOR_Q6_K)
            b = at < 192 ? 0 : 0x80; // codes of -32, scales of -128
        rig.bytes[i + 1] = b;
    }
    for (size_t i = 0; i < tensor_bytes(type, s.n_rows, s.n_cols); i += bytes) {
        uint8_t *block = rig.bytes + 1 + i;
        mb_put_le16(block + (type == TENSOR_Q6_K ? 208 : 0), 0x3c00);
        if (type == TENSOR_Q4_K)
            mb_put_le16(block + 2, 0);
    }
    for (size_t i = 0; i < 5 * rig.a.ld; i++)
        rig.x[i] = -3;
    compute_at(COMPUTE_PLAIN)->quantize(&rig.a, s.n_cols, 0, 5);
    compute_at(COMPUTE_PLAIN)
        ->mul_few(&rig.W, 0, s.n_rows, &rig.a, rig.wanted, s.n_rows);
    multiply(c, is_many, &rig, 0, s.n_rows, &rig.a, rig.y);
    for (size_t i = 0; i < 5 * s.n_rows; i++) {
        double want = (double)rig.wanted[i];
        if (!(fabs((double)rig.y[i] - want) <= SUM_RTOL * fabs(want)))
            fail_msg("%s %s %s (%zu, %zu): %g, not %g", c->name,
                is_many ? "many" : "few", tensor_type_name(type), s.n_rows,
                s.n_cols, (double)rig.y[i], want);
    }
    rig_end(&rig);
}

static void
test_products_when_all_are_largest_then_no_overflow(void **state)
{
    MB_TEST_UNUSED(state);
    for_each(check_extremes);
}

/* An activation that is no number makes its row no number, no other. */
static void
check_nan(
    const struct compute *c, bool is_many, tensor_type type, struct shape s)
{
    struct rig rig = rig_begin(type, s.n_rows, s.n_cols, 6);
    rig.x[2 * rig.a.ld] = NAN;
    rig.x[3 * rig.a.ld] = INFINITY;
    c->quantize(&rig.a, s.n_cols / 32 * 32, 0, 6);
    multiply(c, is_many, &rig, 0, s.n_rows, &rig.a, rig.y);
    for (size_t i = 0; i < 6 * s.n_rows; i++) {
        size_t row = i / s.n_rows;
        if (isfinite(rig.y[i]) != (row != 2 && row != 3))
            fail_msg("%s %s %s: row %zu is %g", c->name,
                is_many ? "many" : "few", tensor_type_name(type), row,
                (double)rig.y[i]);
    }
    rig_end(&rig);
}

static void
test_activations_when_nan_or_infinite_then_only_their_rows(void **state)
{
    MB_TEST_UNUSED(state);
    for_each(check_nan);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_products_of_each_level_when_multiplied_then_close_to_plain),
        cmocka_unit_test(
            test_plain_products_when_quantised_then_close_to_unrounded),
        cmocka_unit_test(test_rows_when_in_other_company_then_same_bits),
        cmocka_unit_test(
            test_outputs_when_range_is_cut_then_same_bits_and_none_beside),
        cmocka_unit_test(test_products_when_avx512_then_same_bits_as_avx2),
        cmocka_unit_test(test_weights_when_any_bytes_then_no_crash),
        cmocka_unit_test(
            test_products_when_the_file_ends_at_the_tensor_then_no_read_behind),
        cmocka_unit_test(test_products_when_all_are_largest_then_no_overflow),
        cmocka_unit_test(
            test_activations_when_nan_or_infinite_then_only_their_rows),
    };
    seed = mb_test_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
