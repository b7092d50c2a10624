/* SPDX-License-Identifier: Apache-2.0
 * daemon/context_settings.c - how a context is read.
 *
 * Settings are chosen when a context is made and kept with it as a msgpack map:
 * its blocks are what they are because of them. One table of words makes the
 * parser and the writer.
 * Threads: any. */
#include <string.h>

#include "contexts.h"

static const char *const types[] = {"f16", "q8_0", "f32", NULL};
static const char *const selects[] = {
    "row_head", "row_group", "row", "chunk", NULL};
static const char *const tails[] = {"none", "moments", "landmark", NULL};
static const char *const memories[] = {"none", "sensory", "hmt", NULL};

#define DEFAULT_K       4
#define DEFAULT_SEGMENT 4

void
context_settings_default(const struct reader *r, struct context_settings *out)
{
    size_t rows = reader_info(r)->n_ctx;
    struct mb_context_options o = {
        .modes = {.k = DEFAULT_K}, .segment_blocks = DEFAULT_SEGMENT};

    // Positions beyond those of the training are noise to the model.
    while (mb_context_span(&o) > rows && o.modes.k > 1) {
        if (o.segment_blocks > o.modes.k)
            o.segment_blocks--;
        else
            o.modes.k--;
    }
    *out =
        (struct context_settings){.k = o.modes.k, .segment = o.segment_blocks};
}

static mb_status
read_word(const struct mb_value *map, const char *key, const char *const *words,
    unsigned *out, struct mb_error *err)
{
    struct mb_slice word;
    mb_status st;

    if (mb_value_get(map, key) == NULL)
        return MB_OK;
    st = mb_arg_str(map, key, true, &word, err);
    for (unsigned i = 0; st == MB_OK && words[i] != NULL; i++) {
        if (mb_slice_equal(word, mb_slice_cstr(words[i]))) {
            *out = i;
            return MB_OK;
        }
    }
    return st != MB_OK
               ? st
               : mb_error_set(err, MB_ERR_BAD_ARG,
                     "settings: %s may be %s, %s, %s%s%s", key, words[0],
                     words[1], words[2], words[3] != NULL ? ", " : "",
                     words[3] != NULL ? words[3] : "");
}

/* false, or how blocks that are not chosen count. */
static mb_status
read_tail(const struct mb_value *map, unsigned *out, struct mb_error *err)
{
    const struct mb_value *v = mb_value_get(map, "tail");

    if (v != NULL && v->type == MB_TYPE_BOOL && !v->b) {
        *out = MB_TAIL_NONE;
        return MB_OK;
    }
    return read_word(map, "tail", tails, out, err);
}

/* The companion of the memories: as it was written. */
static mb_status
read_companion(const struct mb_value *map, struct context_settings *out,
    struct mb_error *err)
{
    struct mb_slice word;
    mb_status st = MB_OK;

    if (mb_value_get(map, "companion") == NULL)
        return MB_OK;
    st = mb_arg_str(map, "companion", true, &word, err);
    if (st == MB_OK && word.size != sizeof out->companion - 1)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "settings: companion has %zu bytes, must have %zu", word.size,
            sizeof out->companion - 1);
    if (st == MB_OK)
        memcpy(out->companion, word.data, word.size);
    return st;
}

mb_status
context_settings_read(const struct mb_value *map, struct context_settings *out,
    struct mb_error *err)
{
    unsigned type = (unsigned)out->type;
    unsigned prefill = (unsigned)out->prefill;
    unsigned decode = (unsigned)out->decode;
    unsigned tail = (unsigned)out->tail;
    unsigned memory = (unsigned)out->memory;
    mb_status st =
        mb_arg_u64(map, "k", out->k, 0, MB_CONTEXT_MAX_K, &out->k, err);

    if (st == MB_OK)
        st = mb_arg_u64(map, "segment", out->segment, 1, MB_CONTEXT_MAX_SEGMENT,
            &out->segment, err);
    if (st == MB_OK)
        st = read_tail(map, &tail, err);
    if (st == MB_OK)
        st = read_word(map, "memory", memories, &memory, err);
    if (st == MB_OK)
        st = read_companion(map, out, err);
    if (st == MB_OK)
        st = read_word(map, "kv", types, &type, err);
    if (st == MB_OK)
        st = read_word(map, "prefill", selects, &prefill, err);
    if (st == MB_OK)
        st = read_word(map, "decode", selects, &decode, err);
    out->type = (mb_cache_type)type;
    out->prefill = (mb_select)prefill;
    out->decode = (mb_select)decode;
    out->tail = (mb_tail)tail;
    out->memory = (mb_memory)memory;
    return st;
}

void
context_settings_write(struct mb_writer *w, const struct context_settings *s)
{
    mb_write_map(w, s->memory == MB_MEMORY_NONE ? 6 : 8);
    mb_write_kv_uint(w, "k", s->k);
    mb_write_kv_uint(w, "segment", s->segment);
    mb_write_kv_cstr(w, "kv", types[s->type]);
    if (s->tail == MB_TAIL_NONE)
        mb_write_kv_bool(w, "tail", false);
    else
        mb_write_kv_cstr(w, "tail", tails[s->tail]);
    mb_write_kv_cstr(w, "prefill", selects[s->prefill]);
    mb_write_kv_cstr(w, "decode", selects[s->decode]);
    if (s->memory == MB_MEMORY_NONE)
        return;
    mb_write_kv_cstr(w, "memory", memories[s->memory]);
    mb_write_kv_cstr(w, "companion", s->companion);
}

mb_status
context_settings_parse(struct mb_slice msgpack, struct mb_arena *arena,
    struct context_settings *out, struct mb_error *err)
{
    const struct mb_value *map;
    mb_status st = mb_wire_parse(msgpack, NULL, true, arena, &map, err);

    memset(out, 0, sizeof *out);
    out->segment = DEFAULT_SEGMENT;
    if (st == MB_OK && map->type != MB_TYPE_MAP)
        st = mb_error_set(err, MB_ERR_CORRUPT, "settings are no map");
    return st == MB_OK ? context_settings_read(map, out, err) : st;
}

static mb_status
find_companion(struct reader *r, const struct context_settings *s,
    const struct companion **out, char name[2 * READER_FINGERPRINT + 1],
    struct mb_error *err)
{
    static const char digits[] = "0123456789abcdef";
    uint8_t bytes[READER_FINGERPRINT];
    mb_status st = reader_companion(r, out, bytes, err);

    if (st != MB_OK)
        return st;
    for (size_t i = 0; i < sizeof bytes; i++) {
        name[2 * i] = digits[bytes[i] >> 4];
        name[2 * i + 1] = digits[bytes[i] & 15];
    }
    name[2 * sizeof bytes] = 0;
    if (s->companion[0] == 0 || strcmp(s->companion, name) == 0)
        return MB_OK;
    return mb_error_set(err, MB_ERR_MISMATCH,
        "memory: made by the companion %.8s..., model %s has %.8s... now: "
        "delete the context and append its text anew",
        s->companion, reader_file(r), name);
}

mb_status
context_settings_bind(
    struct reader *r, struct context_settings *s, struct mb_error *err)
{
    const struct companion *c;
    char name[sizeof s->companion] = "";
    mb_status st = MB_OK;

    if (s->memory != MB_MEMORY_NONE)
        st = find_companion(r, s, &c, name, err);
    memcpy(s->companion, name, sizeof name);
    return st;
}

mb_status
context_options(struct reader *r, const struct context_settings *s,
    struct mb_context_options *out, struct mb_error *err)
{
    char name[sizeof s->companion];
    mb_token_id landmark =
        mb_tokenizer_find(reader_tokenizer(r), MB_LANDMARK_PIECE);

    if (landmark < 0)
        return mb_error_set(err, MB_ERR_NOT_IMPLEMENTED,
            "context: model %s has no token " MB_LANDMARK_PIECE
            ": contexts need a model that was trained with landmarks",
            reader_file(r));
    *out = (struct mb_context_options){
        .landmark = landmark,
        .type = s->type,
        .segment_blocks = (size_t)s->segment,
        .modes = {.k = s->k == 0 ? MB_CONTEXT_NONE : (size_t)s->k,
            .prefill = s->prefill,
            .decode = s->decode,
            .tail = s->tail},
    };
    reader_fingerprint(r, out->weights);
    out->memory = s->memory;
    return s->memory == MB_MEMORY_NONE
               ? MB_OK
               : find_companion(r, s, &out->companion, name, err);
}

void
context_shape(struct reader *r, const struct mb_context_options *opt,
    struct mb_stored_shape *out)
{
    const struct mb_decoder_info *info = reader_info(r);

    *out = (struct mb_stored_shape){
        .block_tokens = MB_CONTEXT_BLOCK_TOKENS,
        .n_layers = (uint32_t)info->n_layers,
        .n_kv_heads = (uint32_t)info->n_kv_heads,
        .head_dim = (uint32_t)info->head_dim,
        .kv_type = (uint32_t)opt->type,
        .kv_bytes = (uint32_t)mb_context_block_bytes(reader_decoder(r), opt),
        .memory_dim =
            opt->memory == MB_MEMORY_HMT ? (uint32_t)info->d_model : 0,
    };
    memcpy(out->fingerprint, opt->weights, sizeof out->fingerprint);
}
