/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_companion.c - weights beside a model: what is written
 * comes back, what does not fit is refused. */
#include "mb_test.h"

#include "mb_companion.h"
#include "mb_gguf_write.h"
#include "mb_test_gguf.h"

#include <math.h>

#define D   24u
#define KEY 16u

struct rig {
    struct mb_test_dir dir;
    char path[MB_TEST_PATH];
    float values[2 * D + 2 * KEY * D];
    struct companion c;
};

static int
setup(void **state)
{
    struct rig *rig = mb_calloc(1, sizeof *rig);
    struct mb_rng rng;
    assert_non_null(rig);
    rig->dir = mb_test_dir_begin();
    mb_test_path(&rig->dir, "a.membank.gguf", rig->path);
    mb_rng_init(&rng, 1);
    for (size_t i = 0; i < sizeof rig->values / sizeof *rig->values; i++)
        rig->values[i] = (float)mb_rng_normal(&rng);
    rig->c = (struct companion){
        .d_model = D,
        .d_key = KEY,
        .n_segment = 222,
        .n_summary = 111,
        .n_sensory = 32,
        .n_memories = 300,
        .gain = 0.25f,
        .summary = rig->values,
        .first = rig->values + D,
        .query = rig->values + 2 * D,
        .key = rig->values + 2 * D + KEY * D,
    };
    for (size_t i = 0; i < 16; i++)
        rig->c.model[i] = (uint8_t)(i * 37);
    *state = rig;
    return 0;
}

static int
teardown(void **state)
{
    struct rig *rig = *state;
    mb_test_dir_end(&rig->dir);
    mb_free(rig);
    return 0;
}

/* Status of writing and reading it back. */
static mb_status
turn_round(const struct rig *rig, struct companion *out, struct mb_error *err)
{
    struct mb_gguf *g = NULL;
    mb_status st = companion_write(rig->path, &rig->c, err);
    if (st == MB_OK)
        st = mb_gguf_open(rig->path, &g, err);
    if (st == MB_OK)
        st = companion_read(g, out, err);
    mb_gguf_close(g);
    return st;
}

static void
test_companion_when_written_then_read_back(void **state)
{
    struct rig *rig = *state;
    struct companion c;
    struct mb_error err;
    assert_status(MB_OK, turn_round(rig, &c, &err), &err);
    assert_memory_equal(rig->c.model, c.model, 16);
    assert_int_equal(D, c.d_model);
    assert_int_equal(KEY, c.d_key);
    assert_int_equal(222, c.n_segment);
    assert_int_equal(111, c.n_summary);
    assert_int_equal(32, c.n_sensory);
    assert_int_equal(300, c.n_memories);
    assert_true(c.gain == 0.25f);
    assert_memory_equal(rig->c.summary, c.summary, D * sizeof(float));
    assert_memory_equal(rig->c.first, c.first, D * sizeof(float));
    assert_memory_equal(rig->c.query, c.query, KEY * D * sizeof(float));
    assert_memory_equal(rig->c.key, c.key, KEY * D * sizeof(float));
    assert_ok(companion_check(&c, rig->c.model, D, NULL));
    assert_status(
        MB_ERR_MISMATCH, companion_check(&c, rig->c.model, D + 1, &err), &err);
    rig->c.model[15] ^= 1;
    assert_status(
        MB_ERR_MISMATCH, companion_check(&c, rig->c.model, D, &err), &err);
    companion_free(&c);
}

static void
test_write_when_a_size_is_out_of_range_then_refused(void **state)
{
    struct rig *rig = *state;
    size_t *const sizes[] = {&rig->c.d_model, &rig->c.d_key, &rig->c.n_segment,
        &rig->c.n_summary, &rig->c.n_memories};
    struct mb_error err;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t kept = *sizes[i];
        *sizes[i] = 0;
        assert_status(
            MB_ERR_BAD_ARG, companion_write(rig->path, &rig->c, &err), &err);
        *sizes[i] = kept;
    }
    rig->c.n_sensory = 223;
    assert_status(
        MB_ERR_BAD_ARG, companion_write(rig->path, &rig->c, &err), &err);
}

/* The file with its bytes at the first place of `from` made `to`. */
static mb_status
read_changed(const struct rig *rig, const char *from, const char *to, size_t n)
{
    size_t size = 0;
    uint8_t *bytes = mb_test_read_file(rig->path, &size);
    struct mb_gguf *g = NULL;
    struct companion c;
    bool is_found = false;
    for (size_t i = 0; !is_found && i + n <= size; i++) {
        is_found = memcmp(bytes + i, from, n) == 0;
        if (is_found)
            memcpy(bytes + i, to, n);
    }
    assert_true(is_found);
    assert_ok(mb_gguf_open_memory(mb_slice_of(bytes, size), &g, NULL));
    mb_status st = companion_read(g, &c, NULL);
    if (st == MB_OK)
        companion_free(&c);
    mb_gguf_close(g);
    mb_free(bytes);
    return st;
}

static void
test_read_when_a_file_is_wrong_then_refused(void **state)
{
    struct rig *rig = *state;
    struct companion c;
    struct mb_error err;
    float nan = NAN;
    // Values of a key follow its name and the number of their type.
    static const char version[] = "membank.version\4\0\0\0\1";
    static const char version2[] = "membank.version\4\0\0\0\2";
    static const char segment[] = "hmt.segment\4\0\0\0\336\0";
    static const char segment0[] = "hmt.segment\4\0\0\0\0\0";
    static const char segment1[] = "hmt.segment\4\0\0\0\1\0";
    assert_status(MB_OK, turn_round(rig, &c, &err), &err);
    companion_free(&c);
    assert_int_equal(MB_OK, read_changed(rig, "GGUF", "GGUF", 4));
    assert_int_equal(MB_ERR_FORMAT, read_changed(rig, "\7\0\0\0\0\0\0\0membank",
                                        "\7\0\0\0\0\0\0\0nothing", 15));
    assert_int_equal(MB_ERR_FORMAT, read_changed(rig, version, version2, 20));
    assert_int_equal(MB_ERR_CORRUPT, read_changed(rig, segment, segment0, 17));
    assert_int_equal(MB_ERR_CORRUPT, read_changed(rig, segment, segment1, 17));
    assert_int_equal(
        MB_ERR_NOT_FOUND, read_changed(rig, "hmt.segment", "hmt.sediment", 11));
    assert_int_equal(
        MB_ERR_NOT_FOUND, read_changed(rig, "hmt.query.", "hmt.quest.", 10));
    assert_int_equal(
        MB_ERR_CORRUPT, read_changed(rig, "00254a6f", "00254A6f", 8));
    assert_int_equal(MB_ERR_CORRUPT,
        read_changed(rig, (const char *)rig->c.key, (const char *)&nan, 4));
    // A tensor of another shape: fewer keys than are said.
    static const char keys[] = "hmt.key_width\4\0\0\0\20";
    static const char keys1[] = "hmt.key_width\4\0\0\0\17";
    assert_int_equal(MB_ERR_CORRUPT, read_changed(rig, keys, keys1, 18));
}

static mb_status
write_and_read(void *arg)
{
    struct companion c;
    mb_status st = turn_round(arg, &c, NULL);
    if (st == MB_OK)
        companion_free(&c);
    return st;
}

static void
test_companion_when_memory_is_short_then_no_memory(void **state)
{
    mb_test_each_allocation(write_and_read, *state);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_companion_when_written_then_read_back),
        TEST(test_write_when_a_size_is_out_of_range_then_refused),
        TEST(test_read_when_a_file_is_wrong_then_refused),
        TEST(test_companion_when_memory_is_short_then_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
