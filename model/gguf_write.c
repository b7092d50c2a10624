/* SPDX-License-Identifier: Apache-2.0
 * model/gguf_write.c - make a GGUF v3 file of keys and float matrices.
 *
 * Keys and the tensor table are gathered in memory, the data of the tensors is
 * converted a row at a time on its way to the file.
 * Invariant: table entries and `tensors` are in the same order; the offset of a
 * tensor is the padded size of all before it.
 * Threads: one for each writer. */
#include "mb_gguf_write.h"

#include <math.h>
#include <string.h>

#include "gguf.h"
#include "mb_outfile.h"

#define ALIGNMENT    32u
#define MAX_NAME     63u
#define MAX_HEAD     ((size_t)1 << 30)
#define Q8_VALUES    32u
#define Q8_BYTES     34u
#define GGUF_VERSION 3u

struct tensor_entry {
    const float *values;
    size_t n_rows;
    size_t n_cols;
    gguf_tensor_type type;
};

struct gguf_writer {
    struct mb_buffer keys;
    struct mb_buffer table;
    struct mb_buffer tensors; /* struct tensor_entry each */
    uint64_t n_keys;
    uint64_t n_tensors;
    uint64_t data_bytes; /* of the tensors so far, padded */
    mb_status status;    /* the first failure */
    char failed[96];     /* what it was about */
};

mb_status
gguf_writer_new(struct gguf_writer **out, struct mb_error *err)
{
    struct gguf_writer *w = mb_calloc(1, sizeof *w);
    if (!w)
        return mb_error_set(err, MB_ERR_NOMEM, "gguf writer");
    mb_buffer_init(&w->keys, MAX_HEAD);
    mb_buffer_init(&w->table, MAX_HEAD);
    mb_buffer_init(&w->tensors, MAX_HEAD);
    *out = w;
    return MB_OK;
}

void
gguf_writer_free(struct gguf_writer *w)
{
    if (!w)
        return;
    mb_buffer_fini(&w->keys);
    mb_buffer_fini(&w->table);
    mb_buffer_fini(&w->tensors);
    mb_free(w);
}

/* ---- fields ---- */

static void
keep_failure(struct gguf_writer *w, mb_status st, const char *what)
{
    if (st == MB_OK || w->status != MB_OK)
        return;
    w->status = st;
    size_t n = strnlen(what, sizeof w->failed - 1);
    memcpy(w->failed, what, n);
    w->failed[n] = '\0';
}

static void
put(struct gguf_writer *w, struct mb_buffer *to, const void *data, size_t size)
{
    if (w->status == MB_OK)
        keep_failure(w, mb_buffer_append(to, data, size), "head of the file");
}

static void
put_u32(struct gguf_writer *w, struct mb_buffer *to, uint32_t v)
{
    uint8_t bytes[4];
    mb_put_le32(bytes, v);
    put(w, to, bytes, sizeof bytes);
}

static void
put_u64(struct gguf_writer *w, struct mb_buffer *to, uint64_t v)
{
    uint8_t bytes[8];
    mb_put_le64(bytes, v);
    put(w, to, bytes, sizeof bytes);
}

static void
put_string(struct gguf_writer *w, struct mb_buffer *to, struct mb_slice s)
{
    put_u64(w, to, s.size);
    put(w, to, s.data, s.size);
}

/* ---- keys ---- */

static void
put_key(struct gguf_writer *w, const char *key, mb_gguf_type type)
{
    put_string(w, &w->keys, mb_slice_cstr(key));
    put_u32(w, &w->keys, (uint32_t)type);
    w->n_keys++;
}

static void
put_array(
    struct gguf_writer *w, const char *key, mb_gguf_type element, size_t n)
{
    put_key(w, key, MB_GGUF_ARRAY);
    put_u32(w, &w->keys, (uint32_t)element);
    put_u64(w, &w->keys, n);
}

void
gguf_writer_str(struct gguf_writer *w, const char *key, struct mb_slice value)
{
    put_key(w, key, MB_GGUF_STRING);
    put_string(w, &w->keys, value);
}

void
gguf_writer_u32(struct gguf_writer *w, const char *key, uint32_t value)
{
    put_key(w, key, MB_GGUF_U32);
    put_u32(w, &w->keys, value);
}

static void
put_f32(struct gguf_writer *w, float value)
{
    uint8_t bytes[4];
    mb_put_lef32(bytes, value);
    put(w, &w->keys, bytes, sizeof bytes);
}

void
gguf_writer_f32(struct gguf_writer *w, const char *key, float value)
{
    put_key(w, key, MB_GGUF_F32);
    put_f32(w, value);
}

void
gguf_writer_bool(struct gguf_writer *w, const char *key, bool value)
{
    uint8_t byte = value ? 1 : 0;
    put_key(w, key, MB_GGUF_BOOL);
    put(w, &w->keys, &byte, 1);
}

void
gguf_writer_strings(struct gguf_writer *w, const char *key,
    const struct mb_slice *values, size_t n)
{
    put_array(w, key, MB_GGUF_STRING, n);
    for (size_t i = 0; i < n; i++)
        put_string(w, &w->keys, values[i]);
}

void
gguf_writer_f32s(
    struct gguf_writer *w, const char *key, const float *values, size_t n)
{
    put_array(w, key, MB_GGUF_F32, n);
    for (size_t i = 0; i < n; i++)
        put_f32(w, values[i]);
}

void
gguf_writer_i32s(
    struct gguf_writer *w, const char *key, const int32_t *values, size_t n)
{
    put_array(w, key, MB_GGUF_I32, n);
    for (size_t i = 0; i < n; i++)
        put_u32(w, &w->keys, (uint32_t)values[i]);
}

void
gguf_writer_copy(
    struct gguf_writer *w, const struct mb_gguf *from, const char *prefix)
{
    size_t size = strlen(prefix);
    for (size_t i = 0; i < mb_gguf_n_keys(from); i++) {
        struct mb_slice key = mb_gguf_key(from, i);
        struct mb_slice value = gguf_raw_value(from, i);
        if (key.size < size || memcmp(key.data, prefix, size) != 0)
            continue;
        put_string(w, &w->keys, key);
        put(w, &w->keys, value.data, value.size);
        w->n_keys++;
    }
}

/* ---- tensors ---- */

static size_t
row_bytes(const struct tensor_entry *t)
{
    switch (t->type) {
    case GGUF_F32:
        return t->n_cols * 4;
    case GGUF_F16:
        return t->n_cols * 2;
    default:
        return t->n_cols / Q8_VALUES * Q8_BYTES;
    }
}

void
gguf_writer_tensor(struct gguf_writer *w, const char *name, unsigned n_dims,
    size_t n_rows, size_t n_cols, const float *values, gguf_tensor_type type)
{
    struct tensor_entry t = {values, n_rows, n_cols, type};
    if (strlen(name) > MAX_NAME || n_dims < 1 || n_dims > 2 ||
        (n_dims == 1 && n_rows != 1) || n_rows == 0 || n_cols == 0 ||
        (type == GGUF_Q8_0 && n_cols % Q8_VALUES != 0)) {
        keep_failure(w, MB_ERR_BAD_ARG, name);
        return;
    }
    put_string(w, &w->table, mb_slice_cstr(name));
    put_u32(w, &w->table, n_dims);
    put_u64(w, &w->table, n_cols); // the fastest dimension first
    if (n_dims == 2)
        put_u64(w, &w->table, n_rows);
    put_u32(w, &w->table, (uint32_t)type);
    put_u64(w, &w->table, w->data_bytes);
    put(w, &w->tensors, &t, sizeof t);
    w->n_tensors++;
    uint64_t bytes = (uint64_t)row_bytes(&t) * n_rows;
    w->data_bytes += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

void
gguf_quantize_q8_0(const float *x, size_t n, uint8_t *out)
{
    for (; n > 0; n -= Q8_VALUES, x += Q8_VALUES, out += Q8_BYTES) {
        float largest = 0;
        for (size_t i = 0; i < Q8_VALUES; i++)
            largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
        float scale = largest / 127.0f;
        float inverse = scale > 0 ? 1.0f / scale : 0;
        mb_put_le16(out, mb_half_from_float(scale));
        for (size_t i = 0; i < Q8_VALUES; i++) {
            int8_t code = (int8_t)roundf(x[i] * inverse);
            out[2 + i] = (uint8_t)code;
        }
    }
}

/* A row of values as it is stored. */
static void
convert(const float *x, const struct tensor_entry *t, uint8_t *out)
{
    if (t->type == GGUF_Q8_0) {
        gguf_quantize_q8_0(x, t->n_cols, out);
        return;
    }
    for (size_t i = 0; i < t->n_cols; i++) {
        if (t->type == GGUF_F32)
            mb_put_lef32(out + i * 4, x[i]);
        else
            mb_put_le16(out + i * 2, mb_half_from_float(x[i]));
    }
}

static mb_status
write_tensors(struct gguf_writer *w, struct outfile *f)
{
    const struct tensor_entry *tensors =
        (const struct tensor_entry *)(void *)w->tensors.data;
    struct mb_buffer row;
    mb_status st = MB_OK;
    mb_buffer_init(&row, SIZE_MAX);
    for (uint64_t i = 0; st == MB_OK && i < w->n_tensors; i++) {
        const struct tensor_entry *t = &tensors[i];
        mb_buffer_clear(&row);
        st = mb_buffer_reserve(&row, row_bytes(t));
        for (size_t r = 0; st == MB_OK && r < t->n_rows; r++) {
            convert(t->values + r * t->n_cols, t, row.data);
            outfile_write(f, row.data, row_bytes(t));
        }
        outfile_pad(f, ALIGNMENT);
    }
    mb_buffer_fini(&row);
    return st;
}

mb_status
gguf_writer_finish(
    struct gguf_writer *w, const char *path, struct mb_error *err)
{
    struct outfile *f = NULL;
    uint8_t head[24] = {'G', 'G', 'U', 'F'};
    mb_status st = w->status;
    if (st != MB_OK) {
        (void)mb_error_set(err, st, "gguf %s: cannot write %s (%s)", path,
            w->failed, mb_status_text(st));
        goto out;
    }
    st = outfile_open(path, 0, &f, err);
    if (st != MB_OK)
        goto out;
    mb_put_le32(head + 4, GGUF_VERSION);
    mb_put_le64(head + 8, w->n_tensors);
    mb_put_le64(head + 16, w->n_keys);
    outfile_write(f, head, sizeof head);
    outfile_write(f, w->keys.data, w->keys.size);
    outfile_write(f, w->table.data, w->table.size);
    outfile_pad(f, ALIGNMENT);
    st = write_tensors(w, f);
    if (st != MB_OK) {
        (void)mb_error_set(err, st, "gguf %s: no memory for a row", path);
        goto out;
    }
    st = outfile_finish(f, NULL, err);
    f = NULL;
out:
    outfile_discard(f);
    gguf_writer_free(w);
    return st;
}
