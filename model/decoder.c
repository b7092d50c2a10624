/* SPDX-License-Identifier: Apache-2.0
 * model/decoder.c - a GGUF file as a transformer: hyperparameters and tensors.
 *
 * Everything is checked here, once, so that a pass may trust every shape: each
 * tensor has the shape that the hyperparameters say and a type that the
 * kernels read, and the file has no tensor that we would leave out silently
 * (a model with experts or with norms of another kind would then give numbers
 * that look right and are not). */
#include "decoder.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_NAME    64
#define ARENA_BYTES ((size_t)1 << 30)

/* Room to count by type: TENSOR_BF16 has the largest number. */
#define N_TYPES (TENSOR_BF16 + 1u)

/* What differs between architectures that are else the same. */
static const struct arch {
    const char *name;
    bool rope_halves; /* how pairs lie in a head */
    bool has_qk_norm;
} archs[] = {
    {"llama", false, false},
    {"qwen2", true, false},
    {"qwen3", true, true},
};

#define N_ARCHS (sizeof(archs) / sizeof(archs[0]))

/* Loading: the file, the decoder that is being made, tensors taken so far. */
struct loader {
    const struct mb_gguf *gguf;
    const struct arch *arch;
    struct mb_decoder *decoder;
    size_t n_taken;
    uint64_t type_bytes[N_TYPES]; /* bytes of weights of each type */
    struct mb_error *err;
};

/* ---- hyperparameters ---- */

static mb_status
find_arch(
    const struct mb_gguf *gguf, const struct arch **out, struct mb_error *err)
{
    struct mb_slice name;
    mb_status st = mb_gguf_str(gguf, "general.architecture", &name, err);
    if (st != MB_OK)
        return st;
    for (size_t i = 0; i < N_ARCHS; i++) {
        if (mb_slice_equal(name, mb_slice_cstr(archs[i].name))) {
            *out = &archs[i];
            return MB_OK;
        }
    }
    return mb_error_set(err, MB_ERR_NOT_IMPLEMENTED,
        "model: architecture \"%.*s\" is not read here; llama, qwen2 and qwen3 "
        "are",
        (int)(name.size < 32 ? name.size : 32), (const char *)name.data);
}

/* The whole number `<arch>.<name>` within [min, max]. A key that is missing
 * gives `missing`, or NOT_FOUND if that is 0. */
static mb_status
read_size(struct loader *l, const char *name, size_t min, size_t max,
    size_t missing, size_t *out)
{
    char key[MAX_NAME];
    uint64_t v = 0;
    (void)snprintf(key, sizeof(key), "%s.%s", l->arch->name, name);
    mb_status st = mb_gguf_u64(l->gguf, key, &v, missing ? NULL : l->err);
    if (st == MB_ERR_NOT_FOUND && missing) {
        v = missing; // it may be out of range too: a quotient of two others
        st = MB_OK;
    }
    if (st == MB_ERR_BAD_ARG) // one number for each layer, or no number
        return mb_error_set(l->err, MB_ERR_NOT_IMPLEMENTED,
            "model: key %s is not one whole number", key);
    if (st != MB_OK)
        return st;
    if (v < min || v > max)
        return mb_error_set(l->err, MB_ERR_CORRUPT,
            "model: key %s is %llu, must be %zu to %zu", key,
            (unsigned long long)v, min, max);
    *out = (size_t)v;
    return MB_OK;
}

static mb_status
read_eps(struct loader *l)
{
    char key[MAX_NAME];
    double eps = 0;
    (void)snprintf(
        key, sizeof(key), "%s.attention.layer_norm_rms_epsilon", l->arch->name);
    mb_status st = mb_gguf_f64(l->gguf, key, &eps, l->err);
    if (st != MB_OK)
        return st;
    if (!(eps >= 0) || !(eps < 1))
        return mb_error_set(
            l->err, MB_ERR_CORRUPT, "model: key %s is %g", key, eps);
    l->decoder->norm_eps = (float)eps;
    return MB_OK;
}

static mb_status
check_shape(struct loader *l)
{
    struct mb_decoder_info *info = &l->decoder->info;
    size_t value_dim = 0;
    uint64_t n_experts = 0;
    char key[MAX_NAME];
    mb_status st = read_size(l, "attention.value_length", 1, DECODER_MAX_HEAD,
        info->head_dim, &value_dim);
    if (st != MB_OK)
        return st;
    (void)snprintf(key, sizeof(key), "%s.expert_count", l->arch->name);
    st = mb_gguf_u64(l->gguf, key, &n_experts, NULL);
    if (st != MB_ERR_NOT_FOUND && (st != MB_OK || n_experts != 0))
        return mb_error_set(l->err, MB_ERR_NOT_IMPLEMENTED,
            "model: mixtures of experts (%s is %llu) are not read", key,
            (unsigned long long)n_experts);
    if (info->n_heads % info->n_kv_heads != 0)
        return mb_error_set(l->err, MB_ERR_CORRUPT,
            "model: %zu heads do not share %zu key-value heads evenly",
            info->n_heads, info->n_kv_heads);
    if (value_dim != info->head_dim || info->head_dim % 8 != 0)
        return mb_error_set(l->err, MB_ERR_NOT_IMPLEMENTED,
            "model: heads with keys of %zu and values of %zu; both must be the "
            "same multiple of 8",
            info->head_dim, value_dim);
    return MB_OK;
}

static mb_status
read_shape(struct loader *l)
{
    struct mb_decoder_info *info = &l->decoder->info;
    mb_status st =
        read_size(l, "block_count", 1, DECODER_MAX_LAYERS, 0, &info->n_layers);
    if (st == MB_OK)
        st = read_size(
            l, "embedding_length", 8, DECODER_MAX_WIDTH, 0, &info->d_model);
    if (st == MB_OK)
        st = read_size(
            l, "attention.head_count", 1, DECODER_MAX_HEADS, 0, &info->n_heads);
    if (st == MB_OK)
        st = read_size(l, "attention.head_count_kv", 1, info->n_heads,
            info->n_heads, &info->n_kv_heads);
    if (st == MB_OK)
        st = read_size(l, "attention.key_length", 1, DECODER_MAX_HEAD,
            info->d_model / info->n_heads, &info->head_dim);
    if (st == MB_OK)
        st = read_size(
            l, "feed_forward_length", 1, DECODER_MAX_FF, 0, &info->d_ff);
    if (st == MB_OK)
        st = read_size(
            l, "context_length", 1, DECODER_MAX_CONTEXT, 0, &info->n_ctx);
    if (st == MB_OK)
        st = read_eps(l);
    return st == MB_OK ? check_shape(l) : st;
}

/* ---- tensors ---- */

/* Find a tensor; NULL without an error if it may be missing. */
static mb_status
find_tensor(struct loader *l, const char *name, bool is_optional,
    const struct mb_gguf_tensor **out)
{
    *out = mb_gguf_find_tensor(l->gguf, name);
    if (*out)
        l->n_taken++;
    else if (!is_optional)
        return mb_error_set(
            l->err, MB_ERR_NOT_FOUND, "model: tensor %s is missing", name);
    return MB_OK;
}

static mb_status
wrong_shape(
    struct loader *l, const struct mb_gguf_tensor *t, size_t cols, size_t rows)
{
    return mb_error_set(l->err, MB_ERR_CORRUPT,
        "model: tensor %.*s is %llu x %llu, expected %zu x %zu",
        (int)(t->name.size < MAX_NAME ? t->name.size : MAX_NAME),
        (const char *)t->name.data, (unsigned long long)t->dims[0],
        (unsigned long long)t->dims[1], cols, rows);
}

static mb_status
take_matrix(struct loader *l, const char *name, size_t rows, size_t cols,
    struct tensor *out)
{
    const struct mb_gguf_tensor *t = NULL;
    mb_status st = find_tensor(l, name, false, &t);
    if (st != MB_OK)
        return st;
    size_t block = tensor_block_values((tensor_type)t->type);
    if (block == 0)
        return mb_error_set(l->err, MB_ERR_NOT_IMPLEMENTED,
            "model: tensor %s has type %s (%u); F32, F16, BF16, Q8_0, Q5_0, "
            "Q4_0, Q4_K and Q6_K are read",
            name, t->type_name, (unsigned)t->type);
    if (t->dims[0] != cols || t->dims[1] != rows || t->dims[2] != 1 ||
        t->dims[3] != 1)
        return wrong_shape(l, t, cols, rows);
    if (cols % block != 0)
        return mb_error_set(l->err, MB_ERR_CORRUPT,
            "model: tensor %s has rows of %zu values, no whole blocks of %s",
            name, cols, t->type_name);
    out->data = t->data.data;
    out->type = (tensor_type)t->type;
    out->n_rows = rows;
    out->n_cols = cols;
    out->row_bytes = cols / block * tensor_block_bytes(out->type);
    l->decoder->info.n_params += (uint64_t)rows * cols;
    l->decoder->info.weight_bytes += t->data.size;
    l->type_bytes[t->type] += t->data.size;
    return MB_OK;
}

/* n floats, copied so that they are aligned. */
static mb_status
take_vector(struct loader *l, const char *name, size_t n, bool is_optional,
    const float **out)
{
    const struct mb_gguf_tensor *t = NULL;
    mb_status st = find_tensor(l, name, is_optional, &t);
    if (st != MB_OK || !t)
        return st;
    if (t->type != TENSOR_F32)
        return mb_error_set(l->err, MB_ERR_NOT_IMPLEMENTED,
            "model: tensor %s has type %s, expected F32", name, t->type_name);
    if (t->dims[0] != n || t->dims[1] != 1 || t->dims[2] != 1 ||
        t->dims[3] != 1)
        return wrong_shape(l, t, n, 1);
    float *copy = mb_arena_alloc(l->decoder->arena, n * sizeof(float));
    if (!copy)
        return mb_error_set(l->err, MB_ERR_NOMEM, "model: tensor %s", name);
    for (size_t i = 0; i < n; i++)
        copy[i] = mb_get_lef32(t->data.data + 4 * i);
    l->decoder->info.n_params += n;
    l->decoder->info.weight_bytes += t->data.size;
    *out = copy;
    return MB_OK;
}

static mb_status
take_linear(struct loader *l, size_t layer, const char *name, size_t rows,
    size_t cols, struct linear *out)
{
    char full[MAX_NAME];
    (void)snprintf(full, sizeof(full), "blk.%zu.%s.weight", layer, name);
    mb_status st = take_matrix(l, full, rows, cols, &out->W);
    if (st != MB_OK)
        return st;
    (void)snprintf(full, sizeof(full), "blk.%zu.%s.bias", layer, name);
    return take_vector(l, full, rows, true, &out->bias);
}

static mb_status
take_norm(struct loader *l, size_t layer, const char *name, size_t n,
    const float **out)
{
    char full[MAX_NAME];
    (void)snprintf(full, sizeof(full), "blk.%zu.%s.weight", layer, name);
    return take_vector(l, full, n, false, out);
}

static mb_status
take_layer(struct loader *l, size_t i, struct layer *layer)
{
    const struct mb_decoder_info *info = &l->decoder->info;
    size_t d = info->d_model;
    size_t q_width = info->n_heads * info->head_dim;
    size_t kv_width = info->n_kv_heads * info->head_dim;
    mb_status st = take_norm(l, i, "attn_norm", d, &layer->attn_norm);
    if (st == MB_OK)
        st = take_linear(l, i, "attn_q", q_width, d, &layer->q);
    if (st == MB_OK)
        st = take_linear(l, i, "attn_k", kv_width, d, &layer->k);
    if (st == MB_OK)
        st = take_linear(l, i, "attn_v", kv_width, d, &layer->v);
    if (st == MB_OK)
        st = take_linear(l, i, "attn_output", d, q_width, &layer->o);
    if (st == MB_OK && l->arch->has_qk_norm)
        st = take_norm(l, i, "attn_q_norm", info->head_dim, &layer->q_norm);
    if (st == MB_OK && l->arch->has_qk_norm)
        st = take_norm(l, i, "attn_k_norm", info->head_dim, &layer->k_norm);
    if (st == MB_OK)
        st = take_norm(l, i, "ffn_norm", d, &layer->ffn_norm);
    if (st == MB_OK)
        st = take_linear(l, i, "ffn_gate", info->d_ff, d, &layer->gate);
    if (st == MB_OK)
        st = take_linear(l, i, "ffn_up", info->d_ff, d, &layer->up);
    if (st == MB_OK)
        st = take_linear(l, i, "ffn_down", d, info->d_ff, &layer->down);
    return st;
}

static mb_status
take_embedding(struct loader *l)
{
    struct mb_decoder *decoder = l->decoder;
    const struct mb_gguf_tensor *t =
        mb_gguf_find_tensor(l->gguf, "token_embd.weight");
    if (t && (t->dims[1] < 2 || t->dims[1] > INT32_MAX))
        return mb_error_set(l->err, MB_ERR_CORRUPT,
            "model: token_embd.weight has %llu rows",
            (unsigned long long)t->dims[1]);
    decoder->info.n_vocab = t ? (size_t)t->dims[1] : 0;
    mb_status st = take_matrix(l, "token_embd.weight", decoder->info.n_vocab,
        decoder->info.d_model, &decoder->embedding);
    if (st != MB_OK)
        return st;
    decoder->output = decoder->embedding;
    if (mb_gguf_find_tensor(l->gguf, "output.weight")) {
        st = take_matrix(l, "output.weight", decoder->info.n_vocab,
            decoder->info.d_model, &decoder->output);
    }
    if (st == MB_OK)
        st = take_vector(l, "output_norm.weight", decoder->info.d_model, false,
            &decoder->output_norm);
    return st;
}

/* Whether a name is one that some architecture's layers have: "blk.N." with N
 * below the number of layers, then a known part. */
static bool
is_layer_name(struct mb_slice name, size_t n_layers)
{
    static const char *const parts[] = {"attn_norm.weight", "attn_q.weight",
        "attn_q.bias", "attn_k.weight", "attn_k.bias", "attn_v.weight",
        "attn_v.bias", "attn_output.weight", "attn_output.bias",
        "attn_q_norm.weight", "attn_k_norm.weight", "ffn_norm.weight",
        "ffn_gate.weight", "ffn_gate.bias", "ffn_up.weight", "ffn_up.bias",
        "ffn_down.weight", "ffn_down.bias"};
    size_t i = 4;
    size_t number = 0;
    if (name.size < i || memcmp(name.data, "blk.", i) != 0)
        return false;
    for (; i < name.size && name.data[i] >= '0' && name.data[i] <= '9'; i++) {
        number = number * 10 + (size_t)(name.data[i] - '0');
        if (number >= n_layers)
            return false;
    }
    if (i == 4 || i == name.size || name.data[i] != '.')
        return false;
    struct mb_slice part = {name.data + i + 1, name.size - i - 1};
    for (size_t j = 0; j < sizeof(parts) / sizeof(parts[0]); j++) {
        if (mb_slice_equal(part, mb_slice_cstr(parts[j])))
            return true;
    }
    return false;
}

/* A tensor that nobody took changes the result: refuse it by name. */
static mb_status
check_all_taken(struct loader *l)
{
    static const char *const names[] = {"token_embd.weight", "output.weight",
        "output_norm.weight", "rope_freqs.weight"};
    if (mb_gguf_find_tensor(l->gguf, "rope_freqs.weight"))
        l->n_taken++;
    if (l->n_taken == mb_gguf_n_tensors(l->gguf))
        return MB_OK;
    for (size_t i = 0; i < mb_gguf_n_tensors(l->gguf); i++) {
        struct mb_slice name = mb_gguf_tensor(l->gguf, i)->name;
        bool is_known = is_layer_name(name, l->decoder->info.n_layers);
        for (size_t j = 0; j < sizeof(names) / sizeof(names[0]); j++)
            is_known |= mb_slice_equal(name, mb_slice_cstr(names[j]));
        if (!is_known)
            return mb_error_set(l->err, MB_ERR_NOT_IMPLEMENTED,
                "model: tensor %.*s belongs to no %s model that is read here",
                (int)(name.size < MAX_NAME ? name.size : MAX_NAME),
                (const char *)name.data, l->arch->name);
    }
    return mb_error_set(l->err, MB_ERR_NOT_IMPLEMENTED,
        "model: norms of queries and keys do not belong to %s models",
        l->arch->name);
}

/* ---- open and close ---- */

static void
fill_info(struct loader *l)
{
    struct mb_decoder_info *info = &l->decoder->info;
    struct mb_slice name = {0};
    size_t best = 0;
    (void)snprintf(info->arch, sizeof(info->arch), "%s", l->arch->name);
    if (mb_gguf_str(l->gguf, "general.name", &name, NULL) == MB_OK) {
        size_t n =
            name.size < sizeof(info->name) ? name.size : sizeof(info->name) - 1;
        while (n > 0 && n < name.size && (name.data[n] & 0xC0) == 0x80)
            n--; // at a character's border
        if (mb_utf8_is_valid((struct mb_slice){name.data, n}, NULL) && n > 0)
            memcpy(info->name, name.data, n);
    }
    for (size_t i = 0; i < sizeof(l->type_bytes) / sizeof(l->type_bytes[0]);
         i++) {
        if (l->type_bytes[i] > l->type_bytes[best])
            best = i;
    }
    (void)snprintf(info->weights, sizeof(info->weights), "%s",
        tensor_type_name((tensor_type)best));
    info->decode_bytes = info->weight_bytes;
    if (l->decoder->output.data != l->decoder->embedding.data)
        info->decode_bytes -= (uint64_t)l->decoder->embedding.n_rows *
                              l->decoder->embedding.row_bytes;
}

static mb_status
load(struct loader *l)
{
    struct mb_decoder *decoder = l->decoder;
    mb_status st = read_shape(l);
    if (st == MB_OK)
        st = rope_load(l->gguf, l->arch->name, decoder->info.head_dim,
            l->arch->rope_halves, &decoder->rope, l->err);
    if (st == MB_OK)
        st = take_embedding(l);
    if (st != MB_OK)
        return st;
    decoder->layers = mb_arena_calloc(
        decoder->arena, decoder->info.n_layers, sizeof(struct layer));
    if (!decoder->layers)
        return mb_error_set(
            l->err, MB_ERR_NOMEM, "model: %zu layers", decoder->info.n_layers);
    for (size_t i = 0; i < decoder->info.n_layers && st == MB_OK; i++)
        st = take_layer(l, i, &decoder->layers[i]);
    if (st == MB_OK)
        st = check_all_taken(l);
    if (st != MB_OK)
        return st;
    decoder->compute = compute_best();
    decoder->attn_scale = 1.0f / sqrtf((float)decoder->info.head_dim);
    fill_info(l);
    return MB_OK;
}

mb_status
mb_decoder_open(
    const struct mb_gguf *gguf, struct mb_decoder **out, struct mb_error *err)
{
    struct loader l = {.gguf = gguf, .err = err};
    mb_status st = find_arch(gguf, &l.arch, err);
    if (st != MB_OK)
        return st;
    struct mb_decoder *decoder = mb_calloc(1, sizeof(*decoder));
    if (decoder)
        decoder->arena = mb_arena_new(ARENA_BYTES);
    if (!decoder || !decoder->arena) {
        mb_decoder_close(decoder);
        return mb_error_set(err, MB_ERR_NOMEM, "model: decoder");
    }
    l.decoder = decoder;
    st = load(&l);
    if (st != MB_OK) {
        mb_decoder_close(decoder);
        return st;
    }
    *out = decoder;
    return MB_OK;
}

void
mb_decoder_close(struct mb_decoder *decoder)
{
    if (!decoder)
        return;
    mb_arena_free(decoder->arena);
    mb_free(decoder);
}

const struct mb_decoder_info *
mb_decoder_info(const struct mb_decoder *decoder)
{
    return &decoder->info;
}
