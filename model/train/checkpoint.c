/* SPDX-License-Identifier: Apache-2.0
 * model/train/checkpoint.c - write and read the state of a run.
 *
 * A header of 64 bytes, then entries: kind, sizes, name, value, each entry and
 * each value aligned to 64 bytes, so that floats are read where they lie. The
 * header has a checksum of itself and of all that follows. Floats are written
 * as they lie in memory: little-endian machines only, which is asserted.
 * Invariant of an open checkpoint: all entries lie inside the map, names and
 * texts end with NUL.
 * Threads: see mb_checkpoint.h. */
#include "mb_checkpoint.h"

#include <string.h>

#include "mb_outfile.h"

#define CHECKPOINT_MAGIC   "MBTRAIN\x1a"
#define CHECKPOINT_VERSION 1u
#define HEADER_BYTES       64u
#define AT_VERSION         8u
#define AT_N_ENTRIES       16u
#define AT_BYTES           24u
#define AT_HASH            32u
#define AT_HEADER_HASH     56u

/* Before each entry's name and value. */
#define ENTRY_BYTES   32u
#define AT_KIND       0u
#define AT_NAME_BYTES 4u
#define AT_N_ROWS     8u
#define AT_N_COLS     16u
#define ALIGNMENT     64u
#define MAX_ENTRIES   100000u
#define MAX_NAME      256u

enum kind { KIND_FLOATS = 1, KIND_NUMBER = 2, KIND_TEXT = 3 };

/* ---- writing ---- */

struct checkpoint_writer {
    struct outfile *file;
    uint64_t n_entries;
};

mb_status
checkpoint_begin(
    const char *path, struct checkpoint_writer **out, struct mb_error *err)
{
    struct checkpoint_writer *w = mb_calloc(1, sizeof *w);
    if (!w)
        return mb_error_set(err, MB_ERR_NOMEM, "checkpoint %s", path);
    mb_status st = outfile_open(path, HEADER_BYTES, &w->file, err);
    if (st != MB_OK) {
        mb_free(w);
        return st;
    }
    *out = w;
    return MB_OK;
}

static void
add_entry(struct checkpoint_writer *w, enum kind kind, const char *name,
    uint64_t n_rows, uint64_t n_cols)
{
    uint8_t head[ENTRY_BYTES] = {0};
    size_t name_bytes = strlen(name) + 1;
    MB_ASSERT(name_bytes <= MAX_NAME);
    mb_put_le32(head + AT_KIND, (uint32_t)kind);
    mb_put_le32(head + AT_NAME_BYTES, (uint32_t)name_bytes);
    mb_put_le64(head + AT_N_ROWS, n_rows);
    mb_put_le64(head + AT_N_COLS, n_cols);
    outfile_write(w->file, head, sizeof head);
    outfile_write(w->file, name, name_bytes);
    outfile_pad(w->file, ALIGNMENT);
    w->n_entries++;
}

void
checkpoint_add_floats(struct checkpoint_writer *w, const char *name,
    const float *values, size_t n_rows, size_t n_cols)
{
    const uint32_t one = 1;
    uint8_t first;
    memcpy(&first, &one, 1);
    MB_ASSERT(first == 1);
    add_entry(w, KIND_FLOATS, name, n_rows, n_cols);
    outfile_write(w->file, values, n_rows * n_cols * sizeof *values);
    outfile_pad(w->file, ALIGNMENT);
}

void
checkpoint_add_number(
    struct checkpoint_writer *w, const char *name, uint64_t value)
{
    uint8_t bytes[8];
    add_entry(w, KIND_NUMBER, name, 1, 1);
    mb_put_le64(bytes, value);
    outfile_write(w->file, bytes, sizeof bytes);
    outfile_pad(w->file, ALIGNMENT);
}

void
checkpoint_add_text(
    struct checkpoint_writer *w, const char *name, const char *text)
{
    size_t bytes = strlen(text) + 1;
    add_entry(w, KIND_TEXT, name, 1, bytes);
    outfile_write(w->file, text, bytes);
    outfile_pad(w->file, ALIGNMENT);
}

mb_status
checkpoint_finish(struct checkpoint_writer *w, struct mb_error *err)
{
    uint8_t header[HEADER_BYTES] = {0};
    memcpy(header, CHECKPOINT_MAGIC, 8);
    mb_put_le32(header + AT_VERSION, CHECKPOINT_VERSION);
    mb_put_le64(header + AT_N_ENTRIES, w->n_entries);
    mb_put_le64(header + AT_HASH, outfile_hash(w->file));
    mb_put_le64(header + AT_BYTES, outfile_size(w->file));
    mb_put_le64(header + AT_HEADER_HASH, mb_hash64(header, AT_HEADER_HASH, 0));
    mb_status st = outfile_finish(w->file, header, err);
    mb_free(w);
    return st;
}

void
checkpoint_discard(struct checkpoint_writer *w)
{
    if (!w)
        return;
    outfile_discard(w->file);
    mb_free(w);
}

/* ---- reading ---- */

struct entry {
    enum kind kind;
    const char *name;
    size_t n_rows;
    size_t n_cols;
    const uint8_t *value;
};

struct checkpoint {
    struct mb_slice map;
    struct entry *entries;
    size_t n_entries;
    struct checkpoint_array *arrays;
    size_t n_arrays;
};

static mb_status
read_header(struct checkpoint *c, const char *path, struct mb_error *err)
{
    const uint8_t *h = c->map.data;
    if (c->map.size < HEADER_BYTES || memcmp(h, CHECKPOINT_MAGIC, 8) != 0)
        return mb_error_set(
            err, MB_ERR_FORMAT, "%s is no checkpoint of a training run", path);
    if (mb_get_le32(h + AT_VERSION) != CHECKPOINT_VERSION)
        return mb_error_set(err, MB_ERR_FORMAT,
            "checkpoint %s has version %u, known is %u", path,
            (unsigned)mb_get_le32(h + AT_VERSION), CHECKPOINT_VERSION);
    if (mb_hash64(h, AT_HEADER_HASH, 0) != mb_get_le64(h + AT_HEADER_HASH))
        return mb_error_set(
            err, MB_ERR_CORRUPT, "checkpoint %s: checksum of the header", path);
    if (mb_get_le64(h + AT_BYTES) != c->map.size)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "checkpoint %s has %zu bytes, its header says %llu", path,
            c->map.size, (unsigned long long)mb_get_le64(h + AT_BYTES));
    if (outfile_hash_of(h + HEADER_BYTES, c->map.size - HEADER_BYTES) !=
        mb_get_le64(h + AT_HASH))
        return mb_error_set(
            err, MB_ERR_CORRUPT, "checkpoint %s: checksum of the data", path);
    if (mb_get_le64(h + AT_N_ENTRIES) > MAX_ENTRIES)
        return mb_error_set(
            err, MB_ERR_CORRUPT, "checkpoint %s: too many entries", path);
    c->n_entries = (size_t)mb_get_le64(h + AT_N_ENTRIES);
    return MB_OK;
}

static size_t
aligned(size_t at)
{
    return (at + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* Bytes that the value takes; false if its sizes make no sense. */
static bool
value_bytes(enum kind kind, uint64_t n_rows, uint64_t n_cols, size_t *out)
{
    size_t each = kind == KIND_FLOATS ? 4 : kind == KIND_NUMBER ? 8 : 1;
    size_t n;
    if (kind != KIND_FLOATS && kind != KIND_NUMBER && kind != KIND_TEXT)
        return false;
    if (kind != KIND_FLOATS && n_rows != 1)
        return false;
    if ((kind == KIND_NUMBER && n_cols != 1) || n_cols == 0)
        return false;
    return mb_size_mul((size_t)n_rows, (size_t)n_cols, &n) &&
           mb_size_mul(n, each, out);
}

/* The entry at *at, which moves behind it; false if it does not fit. */
static bool
read_entry(struct mb_slice map, size_t *at, struct entry *e)
{
    const uint8_t *p = map.data + *at;
    size_t left = map.size - *at;
    size_t bytes = 0;
    if (left < ENTRY_BYTES)
        return false;
    size_t name_bytes = mb_get_le32(p + AT_NAME_BYTES);
    uint64_t n_rows = mb_get_le64(p + AT_N_ROWS);
    uint64_t n_cols = mb_get_le64(p + AT_N_COLS);
    e->kind = (enum kind)mb_get_le32(p + AT_KIND);
    size_t start = aligned(ENTRY_BYTES + name_bytes);
    if (name_bytes == 0 || name_bytes > MAX_NAME || start > left ||
        p[ENTRY_BYTES + name_bytes - 1] != 0 ||
        !value_bytes(e->kind, n_rows, n_cols, &bytes) || bytes > left - start)
        return false;
    e->name = (const char *)p + ENTRY_BYTES;
    e->n_rows = (size_t)n_rows;
    e->n_cols = (size_t)n_cols;
    e->value = p + start;
    if (e->kind == KIND_TEXT && e->value[bytes - 1] != 0)
        return false;
    size_t all = aligned(start + bytes);
    *at += all < left ? all : left;
    return true;
}

static mb_status
read_entries(struct checkpoint *c, const char *path, struct mb_error *err)
{
    size_t at = HEADER_BYTES;
    c->entries = mb_calloc(c->n_entries + 1, sizeof *c->entries);
    c->arrays = mb_calloc(c->n_entries + 1, sizeof *c->arrays);
    if (!c->entries || !c->arrays)
        return mb_error_set(err, MB_ERR_NOMEM, "checkpoint %s", path);
    for (size_t i = 0; i < c->n_entries; i++) {
        struct entry *e = &c->entries[i];
        size_t start = at;
        if (!read_entry(c->map, &at, e))
            return mb_error_set(err, MB_ERR_CORRUPT,
                "checkpoint %s: entry %zu at byte %zu", path, i, start);
        if (e->kind != KIND_FLOATS)
            continue;
        // Values are aligned within the file, and so in the map.
        c->arrays[c->n_arrays++] = (struct checkpoint_array){e->name, e->n_rows,
            e->n_cols, (const float *)(const void *)e->value};
    }
    return MB_OK;
}

mb_status
checkpoint_open(const char *path, struct checkpoint **out, struct mb_error *err)
{
    struct checkpoint *c = mb_calloc(1, sizeof *c);
    if (!c)
        return mb_error_set(err, MB_ERR_NOMEM, "checkpoint %s", path);
    mb_status st = outfile_map(path, &c->map, err);
    if (st == MB_OK)
        st = read_header(c, path, err);
    if (st == MB_OK)
        st = read_entries(c, path, err);
    if (st != MB_OK) {
        checkpoint_close(c);
        return st;
    }
    *out = c;
    return MB_OK;
}

void
checkpoint_close(struct checkpoint *c)
{
    if (!c)
        return;
    outfile_unmap(c->map);
    mb_free(c->entries);
    mb_free(c->arrays);
    mb_free(c);
}

size_t
checkpoint_n_arrays(const struct checkpoint *c)
{
    return c->n_arrays;
}

struct checkpoint_array
checkpoint_array(const struct checkpoint *c, size_t i)
{
    return c->arrays[i];
}

static const struct entry *
find(const struct checkpoint *c, enum kind kind, const char *name)
{
    for (size_t i = 0; i < c->n_entries; i++) {
        if (c->entries[i].kind == kind && strcmp(c->entries[i].name, name) == 0)
            return &c->entries[i];
    }
    return NULL;
}

mb_status
checkpoint_floats(const struct checkpoint *c, const char *name, float *out,
    size_t n_rows, size_t n_cols, struct mb_error *err)
{
    const struct entry *e = find(c, KIND_FLOATS, name);
    if (!e)
        return mb_error_set(
            err, MB_ERR_NOT_FOUND, "checkpoint: no array %s", name);
    if (e->n_rows != n_rows || e->n_cols != n_cols)
        return mb_error_set(err, MB_ERR_MISMATCH,
            "checkpoint: %s is %zu x %zu, the model has %zu x %zu", name,
            e->n_rows, e->n_cols, n_rows, n_cols);
    memcpy(out, e->value, n_rows * n_cols * sizeof *out);
    return MB_OK;
}

mb_status
checkpoint_number(const struct checkpoint *c, const char *name, uint64_t *out,
    struct mb_error *err)
{
    const struct entry *e = find(c, KIND_NUMBER, name);
    if (!e)
        return mb_error_set(
            err, MB_ERR_NOT_FOUND, "checkpoint: no number %s", name);
    *out = mb_get_le64(e->value);
    return MB_OK;
}

const char *
checkpoint_text(const struct checkpoint *c, const char *name)
{
    const struct entry *e = find(c, KIND_TEXT, name);
    return e ? (const char *)e->value : NULL;
}
