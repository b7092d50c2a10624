/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/landmarks.c - see landmarks.h. */
#include "landmarks.h"

#include <string.h>

/* The place of a name among n; n if it is none of them. */
static size_t
place_of(const char *name, const char *const *names, size_t n)
{
    size_t i = 0;

    while (i < n && strcmp(name, names[i]) != 0) {
        i++;
    }
    return i;
}

mb_status
landmarks_cache_type(
    const struct mb_cli *cli, mb_cache_type *out, struct mb_error *err)
{
    static const char *const names[] = {"f16", "q8_0", "f32"};
    const char *name = mb_cli_str(cli, "cache");
    size_t i = place_of(name, names, 3);

    if (i == 3)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "--cache %s: f16, q8_0 or f32", name);
    *out = (mb_cache_type)i;
    return MB_OK;
}

static mb_status
read_modes(struct landmarks *l, const struct mb_cli *cli, struct mb_error *err)
{
    static const char *const names[] = {"head", "group", "row", "chunk"};
    static const char *const tails[] = {"none", "moments", "landmark"};
    struct mb_context_modes *modes = &l->options.modes;
    uint64_t k = 0;
    uint64_t segment = 0;
    size_t i;
    size_t i_tail;
    mb_status st = mb_cli_u64(cli, "k", 0, MB_CONTEXT_MAX_K, &k, err);

    if (st == MB_OK)
        st = mb_cli_u64(
            cli, "segment", 1, MB_CONTEXT_MAX_SEGMENT, &segment, err);
    if (st != MB_OK)
        return st;
    l->select = mb_cli_str(cli, "select");
    l->tail = mb_cli_str(cli, "tail");
    i = place_of(l->select, names, 4);
    if (i == 4)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "--select %s: head, group, row or chunk", l->select);
    i_tail = place_of(l->tail, tails, 3);
    if (i_tail == 3)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "--tail %s: none, moments or landmark", l->tail);
    modes->tail = (mb_tail)i_tail;
    modes->k = k > 0 ? (size_t)k : MB_CONTEXT_NONE;
    modes->prefill = (mb_select)i;
    modes->decode = i == MB_SELECT_CHUNK ? MB_SELECT_ROW_HEAD : (mb_select)i;
    l->options.segment_blocks = (size_t)segment;
    return landmarks_cache_type(cli, &l->options.type, err);
}

bool
landmarks_is_kind(const char *kind)
{
    static const char *const names[] = {"landmark", "sensory", "hmt", "both"};

    return place_of(kind, names, 4) < 4;
}

/* What stands in front of each segment. */
static mb_status
open_memory(struct landmarks *l, const struct mb_cli *cli, struct mb_gguf *gguf,
    const struct mb_decoder *decoder, struct mb_error *err)
{
    const char *kind = mb_cli_str(cli, "context");
    bool is_hmt = strcmp(kind, "hmt") == 0;
    mb_status st;

    if (strcmp(kind, "sensory") == 0)
        l->options.memory = MB_MEMORY_SENSORY;
    else if (is_hmt || strcmp(kind, "both") == 0)
        l->options.memory = MB_MEMORY_HMT;
    if (l->options.memory == MB_MEMORY_NONE)
        return MB_OK;
    if (is_hmt)
        l->options.modes.k = MB_CONTEXT_NONE;
    st = companion_open(l->path, gguf, mb_decoder_info(decoder)->d_model,
        &l->companion, NULL, err);
    l->has_companion = st == MB_OK;
    l->options.companion = &l->companion;
    return st;
}

mb_status
landmarks_open(struct landmarks *l, const struct mb_cli *cli,
    struct mb_gguf *gguf, const struct mb_decoder *decoder,
    const struct mb_tokenizer *tokenizer, struct mb_error *err)
{
    struct mb_context_source source;
    mb_status st = read_modes(l, cli, err);

    l->options.landmark = mb_tokenizer_find(tokenizer, MB_LANDMARK_PIECE);
    if (st == MB_OK && l->options.landmark < 0)
        st = mb_error_set(err, MB_ERR_NOT_FOUND,
            "the model's vocabulary has no piece " MB_LANDMARK_PIECE);
    if (st == MB_OK)
        st = open_memory(l, cli, gguf, decoder, err);
    if (st == MB_OK)
        st = mb_context_memory_new(&l->memory, err);
    if (st != MB_OK)
        return st;
    mb_gguf_fingerprint(gguf, l->options.weights);
    source = mb_context_memory_source(l->memory);
    return mb_context_new(decoder, &l->options, &source, &l->ctx, err);
}

void
landmarks_close(struct landmarks *l)
{
    mb_context_free(l->ctx);
    mb_context_memory_free(l->memory);
    if (l->has_companion)
        companion_free(&l->companion);
}

size_t
landmarks_k(const struct landmarks *l)
{
    return l->options.modes.k == MB_CONTEXT_NONE ? 0 : l->options.modes.k;
}
