/* SPDX-License-Identifier: Apache-2.0
 * model/train/import.c - a GGUF model as weights in F32.
 *
 * Rows are unpacked by the decoder's own kernels, so what is read is what it
 * would compute with. Threads: any. */
#include "mb_import.h"

#include "../compute.h"
#include "../rope.h"
#include "weights.h"

#include <math.h>
#include <string.h>

#define MAX_BYTES ((size_t)64 << 30)

struct reading {
    const struct mb_gguf *gguf;
    struct imported *out;
    struct mb_error *err;
};

static mb_status
number(struct reading *r, const char *key, size_t max, size_t *out)
{
    uint64_t n = 0;
    mb_status st = mb_gguf_u64(r->gguf, key, &n, r->err);
    if (st != MB_OK)
        return st;
    if (n == 0 || n > max)
        return mb_error_set(r->err, MB_ERR_CORRUPT, "model: %s is %llu", key,
            (unsigned long long)n);
    *out = (size_t)n;
    return MB_OK;
}

static double
real_or(const struct reading *r, const char *key, double otherwise)
{
    double x = otherwise;
    return mb_gguf_f64(r->gguf, key, &x, NULL) == MB_OK ? x : otherwise;
}

/* What the trainer's attention takes for granted. */
static mb_status
check_heads(struct reading *r)
{
    const struct train_shape *s = &r->out->shape;
    struct rope rope;
    if (s->n_heads % s->n_kv_heads != 0)
        return mb_error_set(r->err, MB_ERR_CORRUPT,
            "model: %zu heads do not share %zu key-value heads evenly",
            s->n_heads, s->n_kv_heads);
    mb_status st =
        rope_load(r->gguf, "llama", s->head_dim, false, &rope, r->err);
    if (st != MB_OK)
        return st;
    bool is_plain = rope.n_rot == s->head_dim && rope.magnitude == 1;
    for (size_t i = 0; is_plain && i < rope.n_rot / 2; i++)
        is_plain = rope.frequency[i] ==
                   pow(s->rope_base, -2.0 * (double)i / (double)rope.n_rot);
    if (!is_plain)
        return mb_error_set(r->err, MB_ERR_NOT_IMPLEMENTED,
            "model: only plain RoPE of whole heads is read here");
    return MB_OK;
}

static mb_status
read_shape(struct reading *r)
{
    struct train_shape *s = &r->out->shape;
    struct mb_slice arch;
    const struct mb_gguf_tensor *embedding =
        mb_gguf_find_tensor(r->gguf, "token_embd.weight");

    const struct {
        const char *key;
        size_t max;
        size_t *to;
    } numbers[] = {
        {"llama.block_count", 1024, &s->n_layers},
        {"llama.embedding_length", 65536, &s->d_model},
        {"llama.attention.head_count", 512, &s->n_heads},
        {"llama.attention.head_count_kv", 512, &s->n_kv_heads},
        {"llama.feed_forward_length", 1u << 20, &s->d_ff},
        {"llama.context_length", 1u << 24, &s->n_ctx},
    };

    mb_status st = mb_gguf_str(r->gguf, "general.architecture", &arch, r->err);
    if (st != MB_OK)
        return st;
    if (!mb_slice_equal(arch, mb_slice_cstr("llama")) ||
        mb_gguf_find_tensor(r->gguf, "output.weight"))
        return mb_error_set(r->err, MB_ERR_NOT_IMPLEMENTED,
            "model: %.*s; only llama with tied output is read here",
            (int)arch.size, (const char *)arch.data);
    for (size_t i = 0; st == MB_OK && i < sizeof numbers / sizeof *numbers; i++)
        st = number(r, numbers[i].key, numbers[i].max, numbers[i].to);
    if (st != MB_OK)
        return st;
    if (!embedding)
        return mb_error_set(r->err, MB_ERR_NOT_FOUND,
            "model: tensor token_embd.weight is missing");
    s->n_vocab = (size_t)embedding->dims[1];
    s->head_dim = s->d_model / s->n_heads;
    if (number(&(struct reading){r->gguf, r->out, NULL},
            "llama.attention.key_length", 512, &s->head_dim) != MB_OK)
        s->head_dim = s->d_model / s->n_heads;
    s->rope_base = real_or(r, "llama.rope.freq_base", 10000);
    s->norm_eps = real_or(r, "llama.attention.layer_norm_rms_epsilon", 1e-5);
    if (!(s->norm_eps >= 0 && s->norm_eps < 1))
        return mb_error_set(r->err, MB_ERR_CORRUPT,
            "model: epsilon of the norms is %g", s->norm_eps);
    return check_heads(r);
}

/* The tensor of weight i, as floats. */
static mb_status
add(struct reading *r, size_t i)
{
    struct weight_shape want;
    weights_at(&r->out->shape, i, &want);
    const char *name = want.name;
    size_t rows = want.n_rows;
    size_t cols = want.n_cols;
    const struct mb_gguf_tensor *t = mb_gguf_find_tensor(r->gguf, name);
    if (!t)
        return mb_error_set(
            r->err, MB_ERR_NOT_FOUND, "model: tensor %s is missing", name);
    if (t->dims[0] != cols || t->dims[1] != rows || t->dims[2] != 1 ||
        t->dims[3] != 1)
        return mb_error_set(r->err, MB_ERR_MISMATCH,
            "model: tensor %s is %llu x %llu, expected %zu x %zu", name,
            (unsigned long long)t->dims[0], (unsigned long long)t->dims[1],
            cols, rows);
    struct tensor W = {.data = t->data.data,
        .n_rows = rows,
        .n_cols = cols,
        .type = (tensor_type)t->type};
    size_t block = tensor_block_values(W.type);
    if (block == 0 || cols % block != 0)
        return mb_error_set(r->err, MB_ERR_NOT_IMPLEMENTED,
            "model: tensor %s has type %s", name, t->type_name);
    W.row_bytes = cols / block * tensor_block_bytes(W.type);
    size_t size = 0;
    char *kept = mb_arena_strndup(r->out->arena, name, strlen(name));
    float *value = NULL;
    if (kept && mb_size_mul(rows, cols, &size) &&
        mb_size_mul(size, sizeof *value, &size))
        value = mb_arena_alloc(r->out->arena, size);
    if (!value)
        return mb_error_set(r->err, MB_ERR_NOMEM, "model: tensor %s", name);
    for (size_t row = 0; row < rows; row++)
        compute_best()->row(&W, row, value + row * cols);
    r->out->weights[r->out->n_weights++] =
        (struct export_weight){kept, rows, cols, value};
    return MB_OK;
}

mb_status
import_gguf(
    const struct mb_gguf *gguf, struct imported *out, struct mb_error *err)
{
    struct imported m = {.arena = mb_arena_new(MAX_BYTES)};
    struct reading r = {gguf, &m, err};
    if (!m.arena)
        return mb_error_set(err, MB_ERR_NOMEM, "model");
    mb_status st = read_shape(&r);
    if (st == MB_OK) {
        m.weights = mb_arena_alloc(
            m.arena, weights_count(&m.shape) * sizeof *m.weights);
        if (!m.weights)
            st = mb_error_set(err, MB_ERR_NOMEM, "model");
    }
    for (size_t i = 0; st == MB_OK && i < weights_count(&m.shape); i++)
        st = add(&r, i);
    if (st != MB_OK) {
        mb_arena_free(m.arena);
        return st;
    }
    *out = m;
    return MB_OK;
}

void
imported_free(struct imported *m)
{
    mb_arena_free(m->arena);
    *m = (struct imported){0};
}
