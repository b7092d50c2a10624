/* SPDX-License-Identifier: Apache-2.0
 * model/companion.c - the weights that membank adds to a model.
 *
 * A GGUF file of the architecture `membank`, so that tools show it and other
 * programs refuse it by name.
 * Threads: see mb_companion.h. */
#include "mb_companion.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "mb_gguf_write.h"

#define VERSION   1u
#define MAX_BYTES ((size_t)1 << 34)
#define HASH_TEXT 33u
#define MAX_PATH  4096

static void
hash_text(const uint8_t hash[16], char out[HASH_TEXT])
{
    for (size_t i = 0; i < 16; i++)
        (void)snprintf(out + 2 * i, 3, "%02x", hash[i]);
}

/* Whole numbers of the file: key, where, and the largest that is taken. */
struct size_key {
    const char *key;
    size_t *to;
    size_t min;
    size_t max;
};

#define N_SIZES 6u

static void
list_sizes(struct companion *c, struct size_key out[N_SIZES])
{
    const struct size_key keys[N_SIZES] = {
        {"membank.hmt.width", &c->d_model, 1, COMPANION_MAX_WIDTH},
        {"membank.hmt.key_width", &c->d_key, 1, COMPANION_MAX_WIDTH},
        {"membank.hmt.segment", &c->n_segment, 1, COMPANION_MAX_TOKENS},
        {"membank.hmt.summary", &c->n_summary, 1, COMPANION_MAX_TOKENS},
        {"membank.hmt.sensory", &c->n_sensory, 0, COMPANION_MAX_SENSORY},
        {"membank.hmt.memories", &c->n_memories, 1, UINT32_MAX},
    };
    memcpy(out, keys, sizeof keys);
}

static mb_status
check_sizes(struct companion *c, mb_status bad, struct mb_error *err)
{
    struct size_key keys[N_SIZES];
    list_sizes(c, keys);
    for (size_t i = 0; i < N_SIZES; i++) {
        if (*keys[i].to < keys[i].min || *keys[i].to > keys[i].max)
            return mb_error_set(
                err, bad, "companion: %s is %zu", keys[i].key, *keys[i].to);
    }
    if (c->n_summary > c->n_segment || c->n_sensory > c->n_segment)
        return mb_error_set(err, bad,
            "companion: a summary of %zu and %zu sensory tokens of a segment "
            "of %zu",
            c->n_summary, c->n_sensory, c->n_segment);
    return MB_OK;
}

mb_status
companion_write(
    const char *path, const struct companion *c, struct mb_error *err)
{
    struct companion copy = *c;
    struct size_key keys[N_SIZES];
    struct gguf_writer *w = NULL;
    char hash[HASH_TEXT];
    mb_status st = check_sizes(&copy, MB_ERR_BAD_ARG, err);
    if (st == MB_OK)
        st = gguf_writer_new(&w, err);
    if (st != MB_OK)
        return st;
    hash_text(c->model, hash);
    gguf_writer_str(w, "general.architecture", mb_slice_cstr("membank"));
    gguf_writer_u32(w, "general.alignment", 32);
    gguf_writer_u32(w, "membank.version", VERSION);
    gguf_writer_str(w, "membank.model", mb_slice_cstr(hash));
    list_sizes(&copy, keys);
    for (size_t i = 0; i < N_SIZES; i++)
        gguf_writer_u32(w, keys[i].key, (uint32_t)*keys[i].to);
    gguf_writer_tensor(w, "hmt.gain", 1, 1, 1, &c->gain, GGUF_F32);
    gguf_writer_tensor(
        w, "hmt.summary", 1, 1, c->d_model, c->summary, GGUF_F32);
    gguf_writer_tensor(w, "hmt.first", 1, 1, c->d_model, c->first, GGUF_F32);
    gguf_writer_tensor(
        w, "hmt.query.weight", 2, c->d_key, c->d_model, c->query, GGUF_F32);
    gguf_writer_tensor(
        w, "hmt.key.weight", 2, c->d_key, c->d_model, c->key, GGUF_F32);
    return gguf_writer_finish(w, path, err);
}

/* ---- reading ---- */

static mb_status
read_tensor(const struct mb_gguf *gguf, const char *name, size_t rows,
    size_t cols, struct mb_arena *arena, const float **out,
    struct mb_error *err)
{
    const struct mb_gguf_tensor *t = mb_gguf_find_tensor(gguf, name);
    if (!t)
        return mb_error_set(
            err, MB_ERR_NOT_FOUND, "companion: tensor %s is missing", name);
    if (t->type != GGUF_F32 || t->dims[0] != cols || t->dims[1] != rows ||
        t->dims[2] != 1 || t->dims[3] != 1)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "companion: tensor %s is %s %llu x %llu, expected F32 %zu x %zu",
            name, t->type_name, (unsigned long long)t->dims[0],
            (unsigned long long)t->dims[1], cols, rows);
    float *x = mb_arena_alloc(arena, rows * cols * sizeof *x);
    if (!x)
        return mb_error_set(err, MB_ERR_NOMEM, "companion: tensor %s", name);
    for (size_t i = 0; i < rows * cols; i++) {
        x[i] = mb_get_lef32(t->data.data + 4 * i);
        if (!isfinite(x[i]))
            return mb_error_set(err, MB_ERR_CORRUPT,
                "companion: value %zu of %s is not finite", i, name);
    }
    *out = x;
    return MB_OK;
}

static mb_status
read_head(const struct mb_gguf *gguf, struct companion *c, struct mb_error *err)
{
    struct size_key keys[N_SIZES];
    struct mb_slice text;
    uint64_t n = 0;
    if (mb_gguf_str(gguf, "general.architecture", &text, NULL) != MB_OK ||
        !mb_slice_equal(text, mb_slice_cstr("membank")))
        return mb_error_set(
            err, MB_ERR_FORMAT, "companion: no file of membank's weights");
    mb_status st = mb_gguf_u64(gguf, "membank.version", &n, err);
    if (st == MB_OK && n != VERSION)
        st = mb_error_set(err, MB_ERR_FORMAT,
            "companion: version %llu, %u is read here", (unsigned long long)n,
            VERSION);
    if (st == MB_OK)
        st = mb_gguf_str(gguf, "membank.model", &text, err);
    list_sizes(c, keys);
    for (size_t i = 0; st == MB_OK && i < N_SIZES; i++) {
        st = mb_gguf_u64(gguf, keys[i].key, &n, err);
        *keys[i].to = n > UINT32_MAX ? SIZE_MAX : (size_t)n;
    }
    if (st == MB_OK)
        st = check_sizes(c, MB_ERR_CORRUPT, err);
    for (size_t i = 0; st == MB_OK && i < 32; i++) {
        const char *digits = "0123456789abcdef";
        const char *at = i < text.size && text.data[i] != '\0'
                             ? strchr(digits, text.data[i])
                             : NULL;
        if (!at || text.size != 32)
            return mb_error_set(err, MB_ERR_CORRUPT,
                "companion: membank.model is no fingerprint");
        c->model[i / 2] =
            (uint8_t)(c->model[i / 2] << 4 | (uint8_t)(at - digits));
    }
    return st;
}

mb_status
companion_read(
    const struct mb_gguf *gguf, struct companion *out, struct mb_error *err)
{
    struct companion c = {0};
    const float *gain = NULL;
    mb_status st = read_head(gguf, &c, err);
    if (st != MB_OK)
        return st;
    c.arena = mb_arena_new(MAX_BYTES);
    if (!c.arena)
        return mb_error_set(err, MB_ERR_NOMEM, "companion");

    const struct {
        const char *name;
        size_t rows;
        size_t cols;
        const float **to;
    } tensors[] = {
        {"hmt.gain", 1, 1, &gain},
        {"hmt.summary", 1, c.d_model, &c.summary},
        {"hmt.first", 1, c.d_model, &c.first},
        {"hmt.query.weight", c.d_key, c.d_model, &c.query},
        {"hmt.key.weight", c.d_key, c.d_model, &c.key},
    };

    for (size_t i = 0; st == MB_OK && i < sizeof tensors / sizeof *tensors; i++)
        st = read_tensor(gguf, tensors[i].name, tensors[i].rows,
            tensors[i].cols, c.arena, tensors[i].to, err);
    if (st != MB_OK) {
        mb_arena_free(c.arena);
        return st;
    }
    c.gain = gain[0];
    *out = c;
    return MB_OK;
}

void
companion_free(struct companion *c)
{
    mb_arena_free(c->arena);
    *c = (struct companion){0};
}

mb_status
companion_check(const struct companion *c, const uint8_t model[16],
    size_t d_model, struct mb_error *err)
{
    char made_for[HASH_TEXT];
    char is[HASH_TEXT];
    hash_text(c->model, made_for);
    hash_text(model, is);
    if (memcmp(c->model, model, 16) != 0)
        return mb_error_set(err, MB_ERR_MISMATCH,
            "companion: made for the model %s, this one is %s", made_for, is);
    if (c->d_model != d_model)
        return mb_error_set(err, MB_ERR_MISMATCH,
            "companion: of width %zu, the model has %zu", c->d_model, d_model);
    return MB_OK;
}

/* ---- beside a model ---- */

mb_status
companion_open(const char *model_path, struct mb_gguf *model, size_t d_model,
    struct companion *out, uint8_t fingerprint[16], struct mb_error *err)
{
    static const char end[] = ".gguf";
    char path[MAX_PATH];
    uint8_t hash[16];
    struct mb_gguf *gguf = NULL;
    size_t size = strlen(model_path);
    size_t n = sizeof end - 1;
    if (size > n && strcmp(model_path + size - n, end) == 0)
        size -= n;
    if (size > sizeof path - 32)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "companion: a path of %zu bytes", size);
    (void)snprintf(
        path, sizeof path, "%.*s.membank.gguf", (int)size, model_path);
    mb_status st = mb_gguf_open(path, &gguf, err);
    if (st != MB_OK)
        return st;
    st = companion_read(gguf, out, err);
    if (st == MB_OK) {
        mb_gguf_fingerprint(model, hash);
        st = companion_check(out, hash, d_model, err);
        if (st != MB_OK)
            companion_free(out);
    }
    if (st == MB_OK && fingerprint)
        mb_gguf_fingerprint(gguf, fingerprint);
    mb_gguf_close(gguf);
    return st;
}
