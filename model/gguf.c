/* SPDX-License-Identifier: Apache-2.0
 * model/gguf.c - reading GGUF v3 files.
 *
 * A GGUF file is a header, a list of typed metadata, a table of tensors and,
 * from an aligned offset on, their data. The file comes from outside, so one
 * pass at open walks every byte of the first three through a bounded reader
 * and checks each length against the bytes that are left before anything is
 * allocated or skipped. After that pass all getters trust what it has seen.
 *
 * Nothing is copied: names and values are views of the map. Keys and tensors
 * are found by binary search over sorted indices, whose making also finds
 * duplicates.
 *
 * Invariants: every slice held in struct mb_gguf lies inside `bytes`; a
 * value's slice has exactly the size of its type (arrays: of n elements).
 * A file that is cut short by someone else while it is mapped raises SIGBUS;
 * model files are not written in place.
 * Threads: immutable after open but for the fingerprint, which its first
 * caller fills. */
#include "gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define GGUF_VERSION       3u
#define GGUF_HEADER_BYTES  24u
#define GGUF_MAX_KEYS      65536u
#define GGUF_MAX_TENSORS   65536u
#define GGUF_MAX_KEY_BYTES 65535u
#define GGUF_MAX_NAME      64u
#define GGUF_MAX_DIMS      4u
#define GGUF_MAX_DEPTH     4u /* arrays in arrays */
#define GGUF_MAX_ALIGNMENT (1u << 20)
/* The least a key and a tensor take: they bound the counts by the file. */
#define GGUF_MIN_KEY_BYTES    13u /* length, type, one byte */
#define GGUF_MIN_TENSOR_BYTES 24u /* length, n_dims, type, offset */

struct kv {
    struct mb_slice key;
    mb_gguf_type type;
    mb_gguf_type element;  /* of an array */
    uint64_t n;            /* elements of an array */
    struct mb_slice value; /* string: its bytes; array: its elements */
};

struct mb_gguf {
    struct mb_slice bytes;
    void *map; /* what to unmap, or NULL */
    struct kv *keys;
    struct mb_gguf_tensor *tensors;
    uint32_t *key_order;    /* (n_keys) indices, sorted by key */
    uint32_t *tensor_order; /* (n_tensors) the same by name */
    size_t n_keys;
    size_t n_tensors;
    bool has_fingerprint;
    uint8_t fingerprint[16];
};

/* ---- type tables ---- */

static const struct value_type {
    const char *name;
    uint8_t size; /* 0: not fixed */
} value_types[] = {
    [MB_GGUF_U8] = {"u8", 1},
    [MB_GGUF_I8] = {"i8", 1},
    [MB_GGUF_U16] = {"u16", 2},
    [MB_GGUF_I16] = {"i16", 2},
    [MB_GGUF_U32] = {"u32", 4},
    [MB_GGUF_I32] = {"i32", 4},
    [MB_GGUF_F32] = {"f32", 4},
    [MB_GGUF_BOOL] = {"bool", 1},
    [MB_GGUF_STRING] = {"string", 0},
    [MB_GGUF_ARRAY] = {"array", 0},
    [MB_GGUF_U64] = {"u64", 8},
    [MB_GGUF_I64] = {"i64", 8},
    [MB_GGUF_F64] = {"f64", 8},
};

#define N_VALUE_TYPES (sizeof(value_types) / sizeof(value_types[0]))

/* ggml's numbers; rows are whole blocks of `block` values in `size` bytes.
 * Gaps are numbers that ggml has retired. */
static const struct tensor_type {
    const char *name;
    uint16_t block;
    uint16_t size;
} tensor_types[] = {
    [0] = {"F32", 1, 4},
    [1] = {"F16", 1, 2},
    [2] = {"Q4_0", 32, 18},
    [3] = {"Q4_1", 32, 20},
    [6] = {"Q5_0", 32, 22},
    [7] = {"Q5_1", 32, 24},
    [8] = {"Q8_0", 32, 34},
    [9] = {"Q8_1", 32, 36},
    [10] = {"Q2_K", 256, 84},
    [11] = {"Q3_K", 256, 110},
    [12] = {"Q4_K", 256, 144},
    [13] = {"Q5_K", 256, 176},
    [14] = {"Q6_K", 256, 210},
    [15] = {"Q8_K", 256, 292},
    [16] = {"IQ2_XXS", 256, 66},
    [17] = {"IQ2_XS", 256, 74},
    [18] = {"IQ3_XXS", 256, 98},
    [19] = {"IQ1_S", 256, 50},
    [20] = {"IQ4_NL", 32, 18},
    [21] = {"IQ3_S", 256, 110},
    [22] = {"IQ2_S", 256, 82},
    [23] = {"IQ4_XS", 256, 136},
    [24] = {"I8", 1, 1},
    [25] = {"I16", 1, 2},
    [26] = {"I32", 1, 4},
    [27] = {"I64", 1, 8},
    [28] = {"F64", 1, 8},
    [29] = {"IQ1_M", 256, 56},
    [30] = {"BF16", 1, 2},
    [34] = {"TQ1_0", 256, 54},
    [35] = {"TQ2_0", 256, 66},
    [39] = {"MXFP4", 32, 17},
};

#define N_TENSOR_TYPES (sizeof(tensor_types) / sizeof(tensor_types[0]))

/* ---- bounded reader ---- */

struct reader {
    struct mb_slice in;
    size_t pos; /* <= in.size, always */
    struct mb_error *err;
};

static size_t
left(const struct reader *r)
{
    return r->in.size - r->pos;
}

static mb_status
cut_short(const struct reader *r, const char *what, uint64_t need)
{
    return mb_error_set(r->err, MB_ERR_CORRUPT,
        "gguf: %s at offset %zu needs %llu bytes, %zu are left", what, r->pos,
        (unsigned long long)need, left(r));
}

static mb_status
read_bytes(struct reader *r, uint64_t n, const char *what, struct mb_slice *out)
{
    if (n > left(r))
        return cut_short(r, what, n);
    *out = mb_slice_of(r->in.data + r->pos, (size_t)n);
    r->pos += (size_t)n;
    return MB_OK;
}

static mb_status
read_u32(struct reader *r, const char *what, uint32_t *out)
{
    struct mb_slice b = {NULL, 0}; // some compilers do not see that it is set
    mb_status st = read_bytes(r, 4, what, &b);
    if (st == MB_OK)
        *out = mb_get_le32(b.data);
    return st;
}

static mb_status
read_u64(struct reader *r, const char *what, uint64_t *out)
{
    struct mb_slice b = {NULL, 0}; // some compilers do not see that it is set
    mb_status st = read_bytes(r, 8, what, &b);
    if (st == MB_OK)
        *out = mb_get_le64(b.data);
    return st;
}

static mb_status
read_string(struct reader *r, const char *what, struct mb_slice *out)
{
    uint64_t n = 0;
    mb_status st = read_u64(r, what, &n);
    if (st != MB_OK)
        return st;
    return read_bytes(r, n, what, out);
}

/* ---- metadata ---- */

static mb_status
read_type(struct reader *r, const char *what, mb_gguf_type *out)
{
    uint32_t t = 0;
    mb_status st = read_u32(r, what, &t);
    if (st != MB_OK)
        return st;
    if (t >= N_VALUE_TYPES)
        return mb_error_set(r->err, MB_ERR_CORRUPT,
            "gguf: %s at offset %zu has the unknown type %u", what, r->pos - 4,
            t);
    *out = (mb_gguf_type)t;
    return MB_OK;
}

/* Step over the n elements of an array. Recursion ends at GGUF_MAX_DEPTH; the
 * work is bounded by the file, as each element takes at least one byte. */
static mb_status
skip_elements(
    struct reader *r, mb_gguf_type element, uint64_t n, unsigned depth)
{
    struct mb_slice ignored;
    if (value_types[element].size > 0) {
        if (n > left(r) / value_types[element].size)
            return cut_short(r, "array", n);
        return read_bytes(r, n * value_types[element].size, "array", &ignored);
    }
    if (depth >= GGUF_MAX_DEPTH)
        return mb_error_set(r->err, MB_ERR_CORRUPT,
            "gguf: arrays nested deeper than %u at offset %zu", GGUF_MAX_DEPTH,
            r->pos);
    for (uint64_t i = 0; i < n; i++) {
        mb_status st = MB_OK;
        if (element == MB_GGUF_STRING) {
            st = read_string(r, "string in an array", &ignored);
        } else {
            mb_gguf_type inner = MB_GGUF_U8;
            uint64_t count = 0;
            st = read_type(r, "array in an array", &inner);
            if (st == MB_OK)
                st = read_u64(r, "array in an array", &count);
            if (st == MB_OK)
                st = skip_elements(r, inner, count, depth + 1);
        }
        if (st != MB_OK)
            return st;
    }
    return MB_OK;
}

static mb_status
read_array(struct reader *r, struct kv *kv)
{
    mb_status st = read_type(r, "array", &kv->element);
    if (st != MB_OK)
        return st;
    st = read_u64(r, "array", &kv->n);
    if (st != MB_OK)
        return st;
    size_t start = r->pos;
    st = skip_elements(r, kv->element, kv->n, 1);
    if (st == MB_OK)
        kv->value = mb_slice_of(r->in.data + start, r->pos - start);
    return st;
}

static mb_status
read_kv(struct reader *r, struct kv *kv)
{
    size_t start = r->pos;
    mb_status st = read_string(r, "key", &kv->key);
    if (st != MB_OK)
        return st;
    if (kv->key.size == 0 || kv->key.size > GGUF_MAX_KEY_BYTES)
        return mb_error_set(r->err, MB_ERR_CORRUPT,
            "gguf: key at offset %zu has %zu bytes", start, kv->key.size);
    st = read_type(r, "value", &kv->type);
    if (st != MB_OK)
        return st;
    if (kv->type == MB_GGUF_STRING)
        return read_string(r, "string", &kv->value);
    if (kv->type == MB_GGUF_ARRAY)
        return read_array(r, kv);
    st = read_bytes(r, value_types[kv->type].size, "value", &kv->value);
    if (st == MB_OK && kv->type == MB_GGUF_BOOL && kv->value.data[0] > 1)
        return mb_error_set(r->err, MB_ERR_CORRUPT,
            "gguf: bool at offset %zu is %u", r->pos - 1, kv->value.data[0]);
    return st;
}

/* ---- tensors ---- */

/* Bytes of a tensor, from its dimensions and type. False if they make no
 * sense: a row that is no whole number of blocks, or an overflow. */
static bool
tensor_bytes(const struct mb_gguf_tensor *t, uint64_t *out)
{
    const struct tensor_type *type = &tensor_types[t->type];
    uint64_t n = t->dims[0];
    if (n % type->block != 0)
        return false;
    n = n / type->block;
    for (size_t i = 1; i < GGUF_MAX_DIMS; i++) {
        if (t->dims[i] != 0 && n > UINT64_MAX / t->dims[i])
            return false;
        n *= t->dims[i];
    }
    if (n > UINT64_MAX / type->size)
        return false;
    *out = n * type->size;
    return true;
}

/* Reads one entry of the table; its offset waits in data.size until the start
 * of the data is known. */
static mb_status
read_tensor(struct reader *r, struct mb_gguf_tensor *t, uint64_t *offset)
{
    size_t start = r->pos;
    mb_status st = read_string(r, "tensor name", &t->name);
    if (st != MB_OK)
        return st;
    if (t->name.size == 0 || t->name.size > GGUF_MAX_NAME)
        return mb_error_set(r->err, MB_ERR_CORRUPT,
            "gguf: tensor name at offset %zu has %zu bytes", start,
            t->name.size);
    st = read_u32(r, "tensor", &t->n_dims);
    if (st != MB_OK)
        return st;
    if (t->n_dims > GGUF_MAX_DIMS)
        return mb_error_set(r->err, MB_ERR_CORRUPT,
            "gguf: tensor at offset %zu has %u dimensions", start, t->n_dims);
    for (size_t i = 0; i < GGUF_MAX_DIMS; i++) {
        t->dims[i] = 1;
        if (i < t->n_dims)
            st = read_u64(r, "tensor", &t->dims[i]);
        if (st != MB_OK)
            return st;
    }
    st = read_u32(r, "tensor", &t->type);
    if (st != MB_OK)
        return st;
    bool is_known =
        t->type < N_TENSOR_TYPES && tensor_types[t->type].name != NULL;
    t->type_name = is_known ? tensor_types[t->type].name : "?";
    return read_u64(r, "tensor", offset);
}

/* Point t->data into the map. The data of an unknown type has no known size:
 * its slice is empty, so that a newer file can still be listed. */
static mb_status
place_tensor(const struct reader *r, struct mb_gguf_tensor *t, uint64_t offset,
    size_t data_start, uint32_t alignment)
{
    uint64_t size = 0;
    size_t room = r->in.size - data_start;
    bool is_known =
        t->type < N_TENSOR_TYPES && tensor_types[t->type].name != NULL;
    if (is_known && !tensor_bytes(t, &size))
        return mb_error_set(r->err, MB_ERR_CORRUPT,
            "gguf: tensor %.*s has impossible dimensions for %s",
            (int)t->name.size, (const char *)t->name.data, t->type_name);
    if (offset % alignment != 0)
        return mb_error_set(r->err, MB_ERR_CORRUPT,
            "gguf: tensor %.*s at offset %llu is not aligned to %u",
            (int)t->name.size, (const char *)t->name.data,
            (unsigned long long)offset, alignment);
    if (offset > room || size > room - offset)
        return mb_error_set(r->err, MB_ERR_CORRUPT,
            "gguf: tensor %.*s: %llu bytes at offset %llu, data has %zu",
            (int)t->name.size, (const char *)t->name.data,
            (unsigned long long)size, (unsigned long long)offset, room);
    t->data = mb_slice_of(r->in.data + data_start + offset, (size_t)size);
    return MB_OK;
}

/* ---- sorted indices ---- */

/* qsort has no context argument, so each entry carries what it is sorted by. */
struct named {
    struct mb_slice name;
    uint32_t index;
};

static int
compare_named(const void *a, const void *b)
{
    const struct named *x = a;
    const struct named *y = b;
    return mb_slice_compare(x->name, y->name);
}

/* Sort `names` and hand their order out; two equal names are CORRUPT. */
static mb_status
order_names(
    struct named *names, size_t n, uint32_t *order, struct mb_error *err)
{
    qsort(names, n, sizeof(*names), compare_named);
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && mb_slice_equal(names[i - 1].name, names[i].name))
            return mb_error_set(err, MB_ERR_CORRUPT,
                "gguf: %.*s is there twice", (int)names[i].name.size,
                (const char *)names[i].name.data);
        order[i] = names[i].index;
    }
    return MB_OK;
}

static mb_status
make_orders(struct mb_gguf *g, struct mb_error *err)
{
    size_t most = g->n_keys > g->n_tensors ? g->n_keys : g->n_tensors;
    struct named *names = mb_calloc(most + 1, sizeof(*names));
    g->key_order = mb_calloc(g->n_keys + 1, sizeof(uint32_t));
    g->tensor_order = mb_calloc(g->n_tensors + 1, sizeof(uint32_t));
    mb_status st = MB_OK;
    if (!names || !g->key_order || !g->tensor_order) {
        st = mb_error_set(err, MB_ERR_NOMEM, "gguf: no memory for indices");
        goto out;
    }
    for (size_t i = 0; i < g->n_keys; i++)
        names[i] = (struct named){g->keys[i].key, (uint32_t)i};
    st = order_names(names, g->n_keys, g->key_order, err);
    if (st != MB_OK)
        goto out;
    for (size_t i = 0; i < g->n_tensors; i++)
        names[i] = (struct named){g->tensors[i].name, (uint32_t)i};
    st = order_names(names, g->n_tensors, g->tensor_order, err);
out:
    mb_free(names);
    return st;
}

/* ---- open and close ---- */

static mb_status
read_header(struct reader *r, uint64_t *n_tensors, uint64_t *n_keys)
{
    uint32_t version = 0;
    if (r->in.size < 4 || memcmp(r->in.data, "GGUF", 4) != 0)
        return mb_error_set(
            r->err, MB_ERR_FORMAT, "gguf: the file does not begin with GGUF");
    r->pos = 4;
    mb_status st = read_u32(r, "header", &version);
    if (st != MB_OK)
        return st;
    if (version != GGUF_VERSION)
        return mb_error_set(r->err, MB_ERR_FORMAT,
            "gguf: version %u%s, this program reads version %u", version,
            version == 0x03000000u ? " (big-endian)" : "", GGUF_VERSION);
    st = read_u64(r, "header", n_tensors);
    if (st == MB_OK)
        st = read_u64(r, "header", n_keys);
    if (st != MB_OK)
        return st;
    if (*n_keys > GGUF_MAX_KEYS || *n_tensors > GGUF_MAX_TENSORS)
        return mb_error_set(r->err, MB_ERR_TOO_LARGE,
            "gguf: %llu keys and %llu tensors, at most %u and %u are read",
            (unsigned long long)*n_keys, (unsigned long long)*n_tensors,
            GGUF_MAX_KEYS, GGUF_MAX_TENSORS);
    if (*n_keys > left(r) / GGUF_MIN_KEY_BYTES)
        return cut_short(r, "metadata", *n_keys * GGUF_MIN_KEY_BYTES);
    if (*n_tensors > left(r) / GGUF_MIN_TENSOR_BYTES)
        return cut_short(r, "tensor table", *n_tensors * GGUF_MIN_TENSOR_BYTES);
    return MB_OK;
}

static mb_status
find_alignment(
    const struct mb_gguf *g, struct mb_error *err, uint32_t *alignment)
{
    *alignment = 32;
    for (size_t i = 0; i < g->n_keys; i++) {
        const struct kv *kv = &g->keys[i];
        if (!mb_slice_equal(kv->key, mb_slice_cstr("general.alignment")))
            continue;
        uint32_t v = 0;
        if (kv->type == MB_GGUF_U32)
            v = mb_get_le32(kv->value.data);
        if (v == 0 || (v & (v - 1)) != 0 || v > GGUF_MAX_ALIGNMENT)
            return mb_error_set(err, MB_ERR_CORRUPT,
                "gguf: general.alignment %u of type %s is no power of two", v,
                value_types[kv->type].name);
        *alignment = v;
    }
    return MB_OK;
}

static mb_status
read_tensors(struct reader *r, struct mb_gguf *g, uint64_t *offset)
{
    uint32_t alignment = 0;
    mb_status st = find_alignment(g, r->err, &alignment);
    if (st != MB_OK)
        return st;
    for (size_t i = 0; i < g->n_tensors; i++) {
        st = read_tensor(r, &g->tensors[i], &offset[i]);
        if (st != MB_OK)
            return st;
    }
    if (g->n_tensors == 0)
        return MB_OK;
    size_t start = 0;
    if (!mb_size_add(r->pos, alignment - 1, &start))
        return cut_short(r, "tensor data", alignment);
    start &= ~((size_t)alignment - 1);
    if (start > r->in.size)
        return cut_short(r, "tensor data", start - r->pos);
    for (size_t i = 0; i < g->n_tensors; i++) {
        st = place_tensor(r, &g->tensors[i], offset[i], start, alignment);
        if (st != MB_OK)
            return st;
    }
    return MB_OK;
}

static mb_status
parse(struct mb_gguf *g, struct mb_error *err)
{
    struct reader r = {g->bytes, 0, err};
    uint64_t n_tensors = 0;
    uint64_t n_keys = 0;
    uint64_t *offset = NULL;
    mb_status st = read_header(&r, &n_tensors, &n_keys);
    if (st != MB_OK)
        return st;
    g->n_tensors = (size_t)n_tensors;
    g->n_keys = (size_t)n_keys;
    /* One more than needed, as an allocation of nothing may give NULL. */
    g->keys = mb_calloc(g->n_keys + 1, sizeof(*g->keys));
    g->tensors = mb_calloc(g->n_tensors + 1, sizeof(*g->tensors));
    offset = mb_calloc(g->n_tensors + 1, sizeof(*offset));
    if (!g->keys || !g->tensors || !offset) {
        st = mb_error_set(err, MB_ERR_NOMEM, "gguf: no memory for the tables");
        goto out;
    }
    for (size_t i = 0; i < g->n_keys; i++) {
        st = read_kv(&r, &g->keys[i]);
        if (st != MB_OK)
            goto out;
    }
    st = read_tensors(&r, g, offset);
    if (st == MB_OK)
        st = make_orders(g, err);
out:
    mb_free(offset);
    return st;
}

mb_status
mb_gguf_open_memory(
    struct mb_slice bytes, struct mb_gguf **out, struct mb_error *err)
{
    struct mb_gguf *g = mb_calloc(1, sizeof(*g));
    if (!g)
        return mb_error_set(err, MB_ERR_NOMEM, "gguf: no memory");
    g->bytes = bytes;
    mb_status st = parse(g, err);
    if (st != MB_OK) {
        mb_gguf_close(g);
        return st;
    }
    *out = g;
    return MB_OK;
}

/* Map a regular file whole. */
static mb_status
map_file(const char *path, void **map, size_t *size, struct mb_error *err)
{
    struct stat info;
    mb_status st = MB_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return mb_error_set(
            err, MB_ERR_IO, "open %s: %s", path, strerror(errno));
    if (fstat(fd, &info) != 0) {
        st = mb_error_set(err, MB_ERR_IO, "stat %s: %s", path, strerror(errno));
        goto out;
    }
    if (!S_ISREG(info.st_mode)) {
        st = mb_error_set(err, MB_ERR_IO, "open %s: not a regular file", path);
        goto out;
    }
    if (info.st_size < (off_t)GGUF_HEADER_BYTES ||
        (uintmax_t)info.st_size > SIZE_MAX) {
        st = mb_error_set(err, MB_ERR_FORMAT, "%s: %jd bytes are no gguf file",
            path, (intmax_t)info.st_size);
        goto out;
    }
    void *p = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED) {
        st = mb_error_set(err, errno == ENOMEM ? MB_ERR_NOMEM : MB_ERR_IO,
            "map %s: %s", path, strerror(errno));
        goto out;
    }
    *map = p;
    *size = (size_t)info.st_size;
out:
    close(fd);
    return st;
}

mb_status
mb_gguf_open(const char *path, struct mb_gguf **out, struct mb_error *err)
{
    void *map = NULL;
    size_t size = 0;
    struct mb_gguf *g = NULL;
    mb_status st = map_file(path, &map, &size, err);
    if (st != MB_OK)
        return st;
    st = mb_gguf_open_memory(mb_slice_of(map, size), &g, err);
    if (st != MB_OK) {
        munmap(map, size);
        return st;
    }
    g->map = map;
    *out = g;
    return MB_OK;
}

void
mb_gguf_close(struct mb_gguf *gguf)
{
    if (!gguf)
        return;
    if (gguf->map)
        munmap(gguf->map, gguf->bytes.size);
    mb_free(gguf->keys);
    mb_free(gguf->tensors);
    mb_free(gguf->key_order);
    mb_free(gguf->tensor_order);
    mb_free(gguf);
}

/* ---- getters ---- */

size_t
mb_gguf_n_keys(const struct mb_gguf *gguf)
{
    return gguf->n_keys;
}

struct mb_slice
mb_gguf_key(const struct mb_gguf *gguf, size_t i)
{
    if (i >= gguf->n_keys)
        return (struct mb_slice){NULL, 0};
    return gguf->keys[i].key;
}

struct mb_slice
gguf_raw_value(const struct mb_gguf *gguf, size_t i)
{
    const struct kv *kv = &gguf->keys[i];
    const uint8_t *start = kv->key.data + kv->key.size;
    const uint8_t *end = kv->value.data + kv->value.size;
    return mb_slice_of(start, (size_t)(end - start));
}

static mb_status
find_key(const struct mb_gguf *g, const char *key, const struct kv **out,
    struct mb_error *err)
{
    struct mb_slice name = mb_slice_cstr(key);
    size_t low = 0;
    size_t high = g->n_keys;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const struct kv *kv = &g->keys[g->key_order[mid]];
        int order = mb_slice_compare(kv->key, name);
        if (order == 0) {
            *out = kv;
            return MB_OK;
        }
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return mb_error_set(err, MB_ERR_NOT_FOUND, "gguf: no key %s", key);
}

static mb_status
wrong_type(const struct kv *kv, const char *wanted, struct mb_error *err)
{
    bool is_array = kv->type == MB_GGUF_ARRAY;
    return mb_error_set(err, MB_ERR_BAD_ARG, "gguf: key %.*s is %s%s, not %s",
        (int)kv->key.size, (const char *)kv->key.data,
        is_array ? "array of " : "",
        value_types[is_array ? kv->element : kv->type].name, wanted);
}

mb_status
mb_gguf_str(const struct mb_gguf *gguf, const char *key, struct mb_slice *out,
    struct mb_error *err)
{
    const struct kv *kv = NULL;
    mb_status st = find_key(gguf, key, &kv, err);
    if (st != MB_OK)
        return st;
    if (kv->type != MB_GGUF_STRING)
        return wrong_type(kv, "string", err);
    *out = kv->value;
    return MB_OK;
}

/* The value of a whole number, or false if it is none or negative. */
static bool
unsigned_of(const struct kv *kv, uint64_t *out)
{
    const uint8_t *p = kv->value.data;
    int64_t v = 0;
    switch (kv->type) {
    case MB_GGUF_U8:
        *out = p[0];
        return true;
    case MB_GGUF_U16:
        *out = mb_get_le16(p);
        return true;
    case MB_GGUF_U32:
        *out = mb_get_le32(p);
        return true;
    case MB_GGUF_U64:
        *out = mb_get_le64(p);
        return true;
    case MB_GGUF_I8:
        v = (int8_t)p[0];
        break;
    case MB_GGUF_I16:
        v = (int16_t)mb_get_le16(p);
        break;
    case MB_GGUF_I32:
        v = (int32_t)mb_get_le32(p);
        break;
    case MB_GGUF_I64:
        v = (int64_t)mb_get_le64(p);
        break;
    default:
        return false;
    }
    if (v < 0)
        return false;
    *out = (uint64_t)v;
    return true;
}

mb_status
mb_gguf_u64(const struct mb_gguf *gguf, const char *key, uint64_t *out,
    struct mb_error *err)
{
    const struct kv *kv = NULL;
    uint64_t v = 0;
    mb_status st = find_key(gguf, key, &kv, err);
    if (st != MB_OK)
        return st;
    if (!unsigned_of(kv, &v))
        return wrong_type(kv, "a whole number from 0 on", err);
    *out = v;
    return MB_OK;
}

mb_status
mb_gguf_f64(const struct mb_gguf *gguf, const char *key, double *out,
    struct mb_error *err)
{
    const struct kv *kv = NULL;
    mb_status st = find_key(gguf, key, &kv, err);
    if (st != MB_OK)
        return st;
    if (kv->type == MB_GGUF_F32) {
        *out = (double)mb_get_lef32(kv->value.data);
        return MB_OK;
    }
    if (kv->type != MB_GGUF_F64)
        return wrong_type(kv, "f32 or f64", err);
    uint64_t bits = mb_get_le64(kv->value.data);
    memcpy(out, &bits, sizeof(*out));
    return MB_OK;
}

mb_status
mb_gguf_bool(const struct mb_gguf *gguf, const char *key, bool *out,
    struct mb_error *err)
{
    const struct kv *kv = NULL;
    mb_status st = find_key(gguf, key, &kv, err);
    if (st != MB_OK)
        return st;
    if (kv->type != MB_GGUF_BOOL)
        return wrong_type(kv, "bool", err);
    *out = kv->value.data[0] != 0;
    return MB_OK;
}

mb_status
mb_gguf_array(const struct mb_gguf *gguf, const char *key, mb_gguf_type type,
    struct mb_slice *out, uint64_t *n, struct mb_error *err)
{
    const struct kv *kv = NULL;
    mb_status st = find_key(gguf, key, &kv, err);
    if (st != MB_OK)
        return st;
    if ((size_t)type >= N_VALUE_TYPES || value_types[type].size == 0)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "gguf: arrays of type %d are not numbers", (int)type);
    if (kv->type != MB_GGUF_ARRAY || kv->element != type)
        return wrong_type(kv, value_types[type].name, err);
    *out = kv->value;
    *n = kv->n;
    return MB_OK;
}

mb_status
mb_gguf_strings(const struct mb_gguf *gguf, const char *key,
    struct mb_slice *out, size_t max, size_t *n, struct mb_error *err)
{
    const struct kv *kv = NULL;
    mb_status st = find_key(gguf, key, &kv, err);
    if (st != MB_OK)
        return st;
    if (kv->type != MB_GGUF_ARRAY || kv->element != MB_GGUF_STRING)
        return wrong_type(kv, "array of string", err);
    if (out && kv->n > max)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "gguf: key %s has %llu strings, room for %zu", key,
            (unsigned long long)kv->n, max);
    struct reader r = {kv->value, 0, err};
    for (size_t i = 0; out && i < kv->n; i++) {
        st = read_string(&r, "string in an array", &out[i]);
        if (st != MB_OK)
            return st;
    }
    *n = (size_t)kv->n;
    return MB_OK;
}

size_t
mb_gguf_n_tensors(const struct mb_gguf *gguf)
{
    return gguf->n_tensors;
}

const struct mb_gguf_tensor *
mb_gguf_tensor(const struct mb_gguf *gguf, size_t i)
{
    return i < gguf->n_tensors ? &gguf->tensors[i] : NULL;
}

const struct mb_gguf_tensor *
mb_gguf_find_tensor(const struct mb_gguf *gguf, const char *name)
{
    struct mb_slice wanted = mb_slice_cstr(name);
    size_t low = 0;
    size_t high = gguf->n_tensors;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const struct mb_gguf_tensor *t =
            &gguf->tensors[gguf->tensor_order[mid]];
        int order = mb_slice_compare(t->name, wanted);
        if (order == 0)
            return t;
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}

void
mb_gguf_fingerprint(struct mb_gguf *gguf, uint8_t out[16])
{
    if (!gguf->has_fingerprint) {
        mb_hash128(gguf->bytes.data, gguf->bytes.size, gguf->fingerprint);
        gguf->has_fingerprint = true;
    }
    memcpy(out, gguf->fingerprint, 16);
}
