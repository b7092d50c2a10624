/* SPDX-License-Identifier: Apache-2.0
 * model/train/export.c - weights, shape and vocabulary in one GGUF file.
 *
 * Keys are those of llama.cpp's `llama` architecture, so that the file loads
 * there unchanged. Threads: any. */
#include "mb_export.h"

/* llama.cpp's numbers of what most weights are. */
static uint32_t
file_type(gguf_tensor_type type)
{
    switch (type) {
    case GGUF_F32:
        return 0;
    case GGUF_F16:
        return 1;
    default:
        return 7;
    }
}

static void
put_general(struct gguf_writer *w, const struct export_options *o)
{
    gguf_writer_str(w, "general.architecture", mb_slice_cstr("llama"));
    if (o->name)
        gguf_writer_str(w, "general.name", mb_slice_cstr(o->name));
    if (o->description)
        gguf_writer_str(
            w, "general.description", mb_slice_cstr(o->description));
    if (o->license)
        gguf_writer_str(w, "general.license", mb_slice_cstr(o->license));
    gguf_writer_u32(w, "general.alignment", 32);
    gguf_writer_u32(w, "general.file_type", file_type(o->type));
    gguf_writer_u32(w, "general.quantization_version", 2);
}

static void
put_shape(struct gguf_writer *w, const struct train_shape *s)
{
    const struct {
        const char *key;
        size_t value;
    } numbers[] = {
        {"llama.context_length", s->n_ctx},
        {"llama.embedding_length", s->d_model},
        {"llama.block_count", s->n_layers},
        {"llama.feed_forward_length", s->d_ff},
        {"llama.attention.head_count", s->n_heads},
        {"llama.attention.head_count_kv", s->n_kv_heads},
        {"llama.rope.dimension_count", s->head_dim},
        {"llama.vocab_size", s->n_vocab},
    };

    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        gguf_writer_u32(w, numbers[i].key, (uint32_t)numbers[i].value);
    // Heads as wide as the model's share are understood without these.
    if (s->head_dim * s->n_heads != s->d_model) {
        gguf_writer_u32(w, "llama.attention.key_length", (uint32_t)s->head_dim);
        gguf_writer_u32(
            w, "llama.attention.value_length", (uint32_t)s->head_dim);
    }
    gguf_writer_f32(
        w, "llama.attention.layer_norm_rms_epsilon", (float)s->norm_eps);
    gguf_writer_f32(w, "llama.rope.freq_base", (float)s->rope_base);
}

mb_status
export_gguf(
    const char *path, const struct export_options *o, struct mb_error *err)
{
    struct gguf_writer *w = NULL;
    mb_status st = gguf_writer_new(&w, err);
    if (st != MB_OK)
        return st;
    put_general(w, o);
    put_shape(w, o->shape);
    gguf_writer_copy(w, o->vocab, "tokenizer.");
    for (size_t i = 0; i < o->n_weights; i++) {
        const struct export_weight *x = &o->weights[i];
        bool is_norm = x->n_rows == 1;
        gguf_writer_tensor(w, x->name, is_norm ? 1 : 2, x->n_rows, x->n_cols,
            x->value, is_norm ? GGUF_F32 : o->type);
    }
    return gguf_writer_finish(w, path, err);
}
