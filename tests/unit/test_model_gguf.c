/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_gguf.c - reading GGUF: values, tensors, bad files.
 *
 * Files are made in memory and handed over in allocations of their exact
 * size, so that the address sanitizer sees a read past the end. */
#include "mb_test_gguf.h"

/* A file with a value of every type and two tensors. */
static void
make_good(struct test_gguf *g)
{
    static const uint64_t dims[2] = {32, 2};
    static const uint64_t one[1] = {3};
    uint8_t data[68];
    memset(data, 0x5a, sizeof(data));
    test_gguf_begin(g);
    test_gguf_str(g, "s", "text");
    test_gguf_u32(g, "u32", 7);
    test_gguf_bool(g, "yes", true);
    test_gguf_key(g, "u8", MB_GGUF_U8);
    test_put_u8(&g->keys, 200);
    test_gguf_key(g, "i8", MB_GGUF_I8);
    test_put_u8(&g->keys, 0xff);
    test_gguf_key(g, "u16", MB_GGUF_U16);
    test_put(&g->keys, "\x34\x12", 2);
    test_gguf_key(g, "i16", MB_GGUF_I16);
    test_put(&g->keys, "\xfe\x7f", 2);
    test_gguf_key(g, "i32", MB_GGUF_I32);
    test_put_u32(&g->keys, 77);
    test_gguf_key(g, "u64", MB_GGUF_U64);
    test_put_u64(&g->keys, UINT64_MAX);
    test_gguf_key(g, "i64", MB_GGUF_I64);
    test_put_u64(&g->keys, (uint64_t)-5);
    test_gguf_key(g, "f32", MB_GGUF_F32);
    test_put_f32(&g->keys, 1.5f);
    test_gguf_key(g, "f64", MB_GGUF_F64);
    test_put_u64(&g->keys, 0x4000000000000000u); // 2.0
    test_gguf_array(g, "names", MB_GGUF_STRING, 3);
    test_put_string(&g->keys, mb_slice_cstr("a"));
    test_put_string(&g->keys, mb_slice_cstr(""));
    test_put_string(&g->keys, mb_slice_cstr("ccc"));
    test_gguf_array(g, "numbers", MB_GGUF_I32, 2);
    test_put_u32(&g->keys, 10);
    test_put_u32(&g->keys, 20);
    test_gguf_array(g, "nested", MB_GGUF_ARRAY, 1);
    test_put_u32(&g->keys, MB_GGUF_U8);
    test_put_u64(&g->keys, 2);
    test_put(&g->keys, "xy", 2);
    test_gguf_tensor(g, "w", 8, 2, dims, data, 68); // Q8_0: 2 blocks of 34
    test_gguf_tensor(g, "b", 0, 1, one, data, 12);  // F32
    test_gguf_end(g);
}

static struct mb_gguf *
open_good(struct test_gguf *g)
{
    struct mb_gguf *gguf = NULL;
    struct mb_error err;
    make_good(g);
    assert_status(MB_OK,
        mb_gguf_open_memory(mb_buffer_slice(&g->file), &gguf, &err), &err);
    return gguf;
}

/* Open a copy in an allocation of its exact size, and close it again. */
static mb_status
try_bytes(const uint8_t *data, size_t size, struct mb_error *err)
{
    uint8_t *copy = mb_alloc(size > 0 ? size : 1);
    struct mb_gguf *gguf = NULL;
    assert_non_null(copy);
    if (size > 0)
        memcpy(copy, data, size);
    mb_status st = mb_gguf_open_memory(mb_slice_of(copy, size), &gguf, err);
    if (st != MB_OK)
        assert_null(gguf);
    mb_gguf_close(gguf);
    mb_free(copy);
    return st;
}

/* ---- what is in a good file ---- */

static void
test_keys_when_good_then_listed_in_order(void **state)
{
    struct test_gguf g;
    struct mb_gguf *gguf = open_good(&g);
    MB_TEST_UNUSED(state);
    assert_int_equal(15, mb_gguf_n_keys(gguf));
    assert_slice_str("s", mb_gguf_key(gguf, 0));
    assert_slice_str("nested", mb_gguf_key(gguf, 14));
    assert_int_equal(0, mb_gguf_key(gguf, 15).size);
    mb_gguf_close(gguf);
    test_gguf_free(&g);
}

static void
test_str_when_asked_then_given(void **state)
{
    struct test_gguf g;
    struct mb_gguf *gguf = open_good(&g);
    struct mb_slice s = {0};
    struct mb_error err;
    MB_TEST_UNUSED(state);
    assert_ok(mb_gguf_str(gguf, "s", &s, NULL));
    assert_slice_str("text", s);
    assert_status(MB_ERR_NOT_FOUND, mb_gguf_str(gguf, "no", &s, &err), &err);
    assert_error_has(err, "no key no");
    assert_status(MB_ERR_BAD_ARG, mb_gguf_str(gguf, "u32", &s, &err), &err);
    assert_error_has(err, "key u32 is u32, not string");
    assert_slice_str("text", s);
    mb_gguf_close(gguf);
    test_gguf_free(&g);
}

static void
test_u64_when_any_integer_then_given(void **state)
{
    static const struct {
        const char *key;
        uint64_t want;
    } good[] = {{"u8", 200}, {"u16", 0x1234}, {"i16", 0x7ffe}, {"u32", 7},
        {"i32", 77}, {"u64", UINT64_MAX}};

    static const char *const bad[] = {"i8", "i64", "f32", "s", "names", "yes"};
    struct test_gguf g;
    struct mb_gguf *gguf = open_good(&g);
    uint64_t v = 0;
    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_ok(mb_gguf_u64(gguf, good[i].key, &v, NULL));
        assert_true(v == good[i].want);
    }
    v = 99;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_status(
            MB_ERR_BAD_ARG, mb_gguf_u64(gguf, bad[i], &v, NULL), NULL);
    }
    assert_int_equal(99, v);
    mb_gguf_close(gguf);
    test_gguf_free(&g);
}

static void
test_f64_and_bool_when_asked_then_given(void **state)
{
    struct test_gguf g;
    struct mb_gguf *gguf = open_good(&g);
    double d = 0.0;
    bool b = false;
    MB_TEST_UNUSED(state);
    assert_ok(mb_gguf_f64(gguf, "f32", &d, NULL));
    assert_true(d == 1.5);
    assert_ok(mb_gguf_f64(gguf, "f64", &d, NULL));
    assert_true(d == 2.0);
    assert_status(MB_ERR_BAD_ARG, mb_gguf_f64(gguf, "u32", &d, NULL), NULL);
    assert_ok(mb_gguf_bool(gguf, "yes", &b, NULL));
    assert_true(b);
    assert_status(MB_ERR_BAD_ARG, mb_gguf_bool(gguf, "u8", &b, NULL), NULL);
    mb_gguf_close(gguf);
    test_gguf_free(&g);
}

static void
test_arrays_when_asked_then_views(void **state)
{
    struct test_gguf g;
    struct mb_gguf *gguf = open_good(&g);
    struct mb_slice numbers = {0};
    struct mb_slice names[3];
    uint64_t n = 0;
    size_t count = 0;
    struct mb_error err;
    MB_TEST_UNUSED(state);
    assert_ok(mb_gguf_array(gguf, "numbers", MB_GGUF_I32, &numbers, &n, NULL));
    assert_int_equal(2, n);
    assert_int_equal(8, numbers.size);
    assert_int_equal(20, mb_get_le32(numbers.data + 4));
    assert_status(MB_ERR_BAD_ARG,
        mb_gguf_array(gguf, "numbers", MB_GGUF_F32, &numbers, &n, &err), &err);
    assert_error_has(err, "array of i32, not f32");
    assert_status(MB_ERR_BAD_ARG,
        mb_gguf_array(gguf, "names", MB_GGUF_STRING, &numbers, &n, &err), &err);
    assert_ok(mb_gguf_strings(gguf, "names", NULL, 0, &count, NULL));
    assert_int_equal(3, count);
    assert_ok(mb_gguf_strings(gguf, "names", names, 3, &count, NULL));
    assert_slice_str("ccc", names[2]);
    assert_int_equal(0, names[1].size);
    assert_status(MB_ERR_TOO_LARGE,
        mb_gguf_strings(gguf, "names", names, 2, &count, NULL), NULL);
    assert_status(MB_ERR_BAD_ARG,
        mb_gguf_strings(gguf, "numbers", names, 3, &count, NULL), NULL);
    mb_gguf_close(gguf);
    test_gguf_free(&g);
}

static void
test_tensors_when_good_then_placed(void **state)
{
    struct test_gguf g;
    struct mb_gguf *gguf = open_good(&g);
    MB_TEST_UNUSED(state);
    assert_int_equal(2, mb_gguf_n_tensors(gguf));
    const struct mb_gguf_tensor *w = mb_gguf_find_tensor(gguf, "w");
    assert_non_null(w);
    assert_ptr_equal(w, mb_gguf_tensor(gguf, 0));
    assert_string_equal("Q8_0", w->type_name);
    assert_int_equal(2, w->n_dims);
    assert_int_equal(32, w->dims[0]);
    assert_int_equal(1, w->dims[3]);
    assert_int_equal(68, w->data.size);
    assert_int_equal(0x5a, w->data.data[67]);
    const struct mb_gguf_tensor *b = mb_gguf_find_tensor(gguf, "b");
    assert_non_null(b);
    assert_ptr_equal(w->data.data + 96, b->data.data);
    assert_null(mb_gguf_find_tensor(gguf, "c"));
    assert_null(mb_gguf_tensor(gguf, 2));
    mb_gguf_close(gguf);
    test_gguf_free(&g);
}

static void
test_tensor_when_type_unknown_then_listed_without_data(void **state)
{
    static const uint64_t dims[1] = {5};
    struct test_gguf g;
    struct mb_gguf *gguf = NULL;
    MB_TEST_UNUSED(state);
    test_gguf_begin(&g);
    test_gguf_tensor(&g, "future", 4000, 1, dims, "abc", 3);
    test_gguf_end(&g);
    assert_ok(mb_gguf_open_memory(mb_buffer_slice(&g.file), &gguf, NULL));
    assert_string_equal("?", mb_gguf_tensor(gguf, 0)->type_name);
    assert_int_equal(0, mb_gguf_tensor(gguf, 0)->data.size);
    mb_gguf_close(gguf);
    test_gguf_free(&g);
}

static void
test_fingerprint_when_a_byte_differs_then_differs(void **state)
{
    struct test_gguf g;
    struct mb_gguf *gguf = open_good(&g);
    uint8_t first[16];
    uint8_t again[16];
    uint8_t other[16];
    MB_TEST_UNUSED(state);
    mb_gguf_fingerprint(gguf, first);
    mb_gguf_fingerprint(gguf, again);
    assert_memory_equal(first, again, 16);
    mb_gguf_close(gguf);
    g.file.data[g.file.size - 1] ^= 1;
    assert_ok(mb_gguf_open_memory(mb_buffer_slice(&g.file), &gguf, NULL));
    mb_gguf_fingerprint(gguf, other);
    assert_memory_not_equal(first, other, 16);
    mb_gguf_close(gguf);
    test_gguf_free(&g);
}

/* ---- bad files, by name of the defect ---- */

static void
bad_magic(struct test_gguf *g)
{
    g->file.data[3] = 'X';
}

static void
old_version(struct test_gguf *g)
{
    mb_put_le32(g->file.data + 4, 2);
}

static void
big_endian(struct test_gguf *g)
{
    mb_put_be32(g->file.data + 4, 3);
}

static void
endless_tensors(struct test_gguf *g)
{
    mb_put_le64(g->file.data + 8, UINT64_MAX);
}

static void
more_tensors(struct test_gguf *g)
{
    mb_put_le64(g->file.data + 8, 60000);
}

static void
endless_keys(struct test_gguf *g)
{
    mb_put_le64(g->file.data + 16, UINT64_MAX / 2);
}

static void
more_keys(struct test_gguf *g)
{
    mb_put_le64(g->file.data + 16, 60000);
}

static void
one_key_too_many(struct test_gguf *g)
{
    mb_put_le64(g->file.data + 16, g->n_keys + 1);
}

static void
long_key(struct test_gguf *g)
{
    mb_put_le64(g->file.data + 24, UINT64_MAX - 8);
}

static void
empty_key(struct test_gguf *g)
{
    g->keys.size = 0;
    g->n_keys = 0;
    test_gguf_u32(g, "", 1);
    test_gguf_end(g);
}

static void
unknown_type(struct test_gguf *g)
{
    test_gguf_key(g, "new", (mb_gguf_type)13);
    test_put_u64(&g->keys, 0);
    test_gguf_end(g);
}

static void
bool_of_two(struct test_gguf *g)
{
    test_gguf_key(g, "two", MB_GGUF_BOOL);
    test_put_u8(&g->keys, 2);
    test_gguf_end(g);
}

static void
double_key(struct test_gguf *g)
{
    test_gguf_u32(g, "s", 1);
    test_gguf_end(g);
}

static void
endless_array(struct test_gguf *g)
{
    test_gguf_array(g, "big", MB_GGUF_U64, UINT64_MAX / 4);
    test_gguf_end(g);
}

static void
endless_strings(struct test_gguf *g)
{
    test_gguf_array(g, "big", MB_GGUF_STRING, UINT64_MAX);
    test_gguf_end(g);
}

static void
array_of_unknown(struct test_gguf *g)
{
    test_gguf_array(g, "odd", (mb_gguf_type)99, 0);
    test_gguf_end(g);
}

static void
deep_arrays(struct test_gguf *g)
{
    test_gguf_array(g, "deep", MB_GGUF_ARRAY, 1);
    for (int i = 0; i < 10000; i++) {
        test_put_u32(&g->keys, MB_GGUF_ARRAY);
        test_put_u64(&g->keys, 1);
    }
    test_gguf_end(g);
}

static void
odd_alignment(struct test_gguf *g)
{
    test_gguf_u32(g, "general.alignment", 24);
    test_gguf_end(g);
}

static void
zero_alignment(struct test_gguf *g)
{
    test_gguf_u32(g, "general.alignment", 0);
    test_gguf_end(g);
}

static void
text_alignment(struct test_gguf *g)
{
    test_gguf_str(g, "general.alignment", "32");
    test_gguf_end(g);
}

/* One more tensor of this shape at the end of the table. */
static void
add_tensor(struct test_gguf *g, const char *name, uint32_t type,
    uint32_t n_dims, uint64_t dim, uint64_t offset)
{
    test_put_string(&g->tensors, mb_slice_cstr(name));
    test_put_u32(&g->tensors, n_dims);
    for (uint32_t i = 0; i < n_dims && i < 16; i++)
        test_put_u64(&g->tensors, dim);
    test_put_u32(&g->tensors, type);
    test_put_u64(&g->tensors, offset);
    g->n_tensors++;
    test_gguf_end(g);
}

static void
five_dimensions(struct test_gguf *g)
{
    add_tensor(g, "t", 0, 5, 1, 0);
}

static void
endless_dimensions(struct test_gguf *g)
{
    add_tensor(g, "t", 0, UINT32_MAX, 1, 0);
}

static void
overflowing_dimensions(struct test_gguf *g)
{
    add_tensor(g, "t", 0, 4, 1u << 16, 0);
}

static void
overflowing_bytes(struct test_gguf *g)
{
    add_tensor(g, "t", 0, 1, UINT64_MAX / 2, 0);
}

static void
half_a_block(struct test_gguf *g)
{
    add_tensor(g, "t", 8, 1, 33, 0);
}

static void
tensor_past_end(struct test_gguf *g)
{
    add_tensor(g, "t", 0, 1, 1, 1u << 20);
}

static void
tensor_over_end(struct test_gguf *g)
{
    add_tensor(g, "t", 0, 1, 1000, 32);
}

static void
tensor_at_the_last_address(struct test_gguf *g)
{
    add_tensor(g, "t", 0, 1, 8, UINT64_MAX - 31);
}

static void
tensor_not_aligned(struct test_gguf *g)
{
    add_tensor(g, "t", 0, 1, 1, 4);
}

static void
double_tensor(struct test_gguf *g)
{
    add_tensor(g, "w", 0, 1, 1, 0);
}

static void
tensor_without_name(struct test_gguf *g)
{
    add_tensor(g, "", 0, 1, 1, 0);
}

static void
tensor_with_long_name(struct test_gguf *g)
{
    add_tensor(g,
        "a.name.of.more.than.sixty-four.bytes.which.is.the.most.that.is.read",
        0, 1, 1, 0);
}

static void
no_data(struct test_gguf *g)
{
    g->data.size = 0;
    test_gguf_end(g);
}

static const struct defect {
    const char *name;
    void (*make)(struct test_gguf *g);
    mb_status status;
    const char *text; /* part of the cause */
} defects[] = {
    {"bad magic", bad_magic, MB_ERR_FORMAT, "does not begin with GGUF"},
    {"version 2", old_version, MB_ERR_FORMAT, "version 2"},
    {"big-endian", big_endian, MB_ERR_FORMAT, "big-endian"},
    {"2^64 tensors", endless_tensors, MB_ERR_TOO_LARGE, "tensors"},
    {"more tensors than bytes", more_tensors, MB_ERR_CORRUPT, "tensor table"},
    {"2^63 keys", endless_keys, MB_ERR_TOO_LARGE, "keys"},
    {"more keys than bytes", more_keys, MB_ERR_CORRUPT, "metadata"},
    {"one key too many", one_key_too_many, MB_ERR_CORRUPT, "at offset"},
    {"key of 2^64 bytes", long_key, MB_ERR_CORRUPT, "key at offset"},
    {"key of no bytes", empty_key, MB_ERR_CORRUPT, "0 bytes"},
    {"value of type 13", unknown_type, MB_ERR_CORRUPT, "unknown type 13"},
    {"bool of 2", bool_of_two, MB_ERR_CORRUPT, "bool at offset"},
    {"key twice", double_key, MB_ERR_CORRUPT, "s is there twice"},
    {"array of 2^62 numbers", endless_array, MB_ERR_CORRUPT, "array at"},
    {"array of 2^64 strings", endless_strings, MB_ERR_CORRUPT, "in an array"},
    {"array of type 99", array_of_unknown, MB_ERR_CORRUPT, "unknown type 99"},
    {"arrays 10,000 deep", deep_arrays, MB_ERR_CORRUPT, "nested deeper"},
    {"alignment 24", odd_alignment, MB_ERR_CORRUPT, "general.alignment 24"},
    {"alignment 0", zero_alignment, MB_ERR_CORRUPT, "general.alignment 0"},
    {"alignment as text", text_alignment, MB_ERR_CORRUPT, "type string"},
    {"5 dimensions", five_dimensions, MB_ERR_CORRUPT, "5 dimensions"},
    {"2^32 dimensions", endless_dimensions, MB_ERR_CORRUPT, "dimensions"},
    {"2^64 elements", overflowing_dimensions, MB_ERR_CORRUPT, "impossible"},
    {"2^65 bytes", overflowing_bytes, MB_ERR_CORRUPT, "impossible"},
    {"half a block", half_a_block, MB_ERR_CORRUPT, "impossible dimensions"},
    {"tensor past the end", tensor_past_end, MB_ERR_CORRUPT, "data has"},
    {"tensor over the end", tensor_over_end, MB_ERR_CORRUPT, "data has"},
    {"tensor at 2^64", tensor_at_the_last_address, MB_ERR_CORRUPT, "data has"},
    {"tensor not aligned", tensor_not_aligned, MB_ERR_CORRUPT, "not aligned"},
    {"tensor twice", double_tensor, MB_ERR_CORRUPT, "w is there twice"},
    {"tensor without name", tensor_without_name, MB_ERR_CORRUPT, "0 bytes"},
    {"tensor with long name", tensor_with_long_name, MB_ERR_CORRUPT, "name"},
    {"no data", no_data, MB_ERR_CORRUPT, "data has 0"},
};

static void
test_open_when_defect_then_its_error(void **state)
{
    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < sizeof(defects) / sizeof(defects[0]); i++) {
        const struct defect *d = &defects[i];
        struct test_gguf g;
        struct mb_error err = {0};
        make_good(&g);
        d->make(&g);
        mb_status st = try_bytes(g.file.data, g.file.size, &err);
        if (st != d->status || !strstr(err.text, d->text))
            fail_msg("%s: got %s: %s", d->name, mb_status_name(st), err.text);
        test_gguf_free(&g);
    }
}

static void
test_open_when_cut_anywhere_then_refused(void **state)
{
    struct test_gguf g;
    MB_TEST_UNUSED(state);
    make_good(&g);
    assert_ok(try_bytes(g.file.data, g.file.size, NULL));
    for (size_t size = 0; size < g.file.size; size++) {
        mb_status st = try_bytes(g.file.data, size, NULL);
        if (st != MB_ERR_CORRUPT && st != MB_ERR_FORMAT)
            fail_msg("cut at %zu: got %s", size, mb_status_name(st));
    }
    test_gguf_free(&g);
}

static void
test_open_when_any_byte_changes_then_no_harm(void **state)
{
    static const uint8_t values[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
    struct test_gguf g;
    MB_TEST_UNUSED(state);
    make_good(&g);
    for (size_t at = 0; at < g.file.size; at++) {
        uint8_t before = g.file.data[at];
        for (size_t i = 0; i < sizeof(values); i++) {
            g.file.data[at] = values[i];
            mb_status st = try_bytes(g.file.data, g.file.size, NULL);
            assert_true(st == MB_OK || st == MB_ERR_CORRUPT ||
                        st == MB_ERR_FORMAT || st == MB_ERR_TOO_LARGE);
        }
        g.file.data[at] = before;
    }
    test_gguf_free(&g);
}

static mb_status
open_once(void *arg)
{
    struct test_gguf *g = arg;
    struct mb_gguf *gguf = NULL;
    mb_status st = mb_gguf_open_memory(mb_buffer_slice(&g->file), &gguf, NULL);
    mb_gguf_close(gguf);
    return st;
}

static void
test_open_when_memory_is_short_then_no_memory(void **state)
{
    struct test_gguf g;
    MB_TEST_UNUSED(state);
    make_good(&g);
    mb_test_each_allocation(open_once, &g);
    test_gguf_free(&g);
}

/* ---- files ---- */

static void
test_open_when_no_file_then_io(void **state)
{
    struct mb_test_dir dir = mb_test_dir_begin();
    struct mb_gguf *gguf = NULL;
    struct mb_error err;
    char path[MB_TEST_PATH];
    MB_TEST_UNUSED(state);
    mb_test_path(&dir, "none.gguf", path);
    assert_status(MB_ERR_IO, mb_gguf_open(path, &gguf, &err), &err);
    assert_error_has(err, "none.gguf");
    assert_status(MB_ERR_IO, mb_gguf_open(dir.path, &gguf, &err), &err);
    assert_error_has(err, "not a regular file");
    mb_test_write_file(path, "GGUF", 4);
    assert_status(MB_ERR_FORMAT, mb_gguf_open(path, &gguf, &err), &err);
    mb_test_write_file(path, "", 0);
    assert_status(MB_ERR_FORMAT, mb_gguf_open(path, &gguf, &err), &err);
    assert_null(gguf);
    mb_test_dir_end(&dir);
}

static void
test_open_when_bundled_model_then_all_there(void **state)
{
    struct mb_gguf *gguf = NULL;
    struct mb_slice s = {0};
    uint64_t width = 0;
    struct mb_error err;
    MB_TEST_UNUSED(state);
    assert_status(MB_OK,
        mb_gguf_open(MB_SOURCE_DIR "/model/weights/anchor.gguf", &gguf, &err),
        &err);
    assert_ok(mb_gguf_str(gguf, "general.architecture", &s, NULL));
    assert_slice_str("llama", s);
    assert_ok(mb_gguf_u64(gguf, "llama.embedding_length", &width, NULL));
    const struct mb_gguf_tensor *t =
        mb_gguf_find_tensor(gguf, "token_embd.weight");
    assert_non_null(t);
    assert_int_equal(width, t->dims[0]);
    assert_int_equal(t->dims[0] / 32 * 34 * t->dims[1], t->data.size);
    mb_gguf_close(gguf);
}

static void
test_close_when_null_then_nothing(void **state)
{
    MB_TEST_UNUSED(state);
    mb_gguf_close(NULL);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys_when_good_then_listed_in_order),
        cmocka_unit_test(test_str_when_asked_then_given),
        cmocka_unit_test(test_u64_when_any_integer_then_given),
        cmocka_unit_test(test_f64_and_bool_when_asked_then_given),
        cmocka_unit_test(test_arrays_when_asked_then_views),
        cmocka_unit_test(test_tensors_when_good_then_placed),
        cmocka_unit_test(
            test_tensor_when_type_unknown_then_listed_without_data),
        cmocka_unit_test(test_fingerprint_when_a_byte_differs_then_differs),
        cmocka_unit_test(test_open_when_defect_then_its_error),
        cmocka_unit_test(test_open_when_cut_anywhere_then_refused),
        cmocka_unit_test(test_open_when_any_byte_changes_then_no_harm),
        cmocka_unit_test(test_open_when_memory_is_short_then_no_memory),
        cmocka_unit_test(test_open_when_no_file_then_io),
        cmocka_unit_test(test_open_when_bundled_model_then_all_there),
        cmocka_unit_test(test_close_when_null_then_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
