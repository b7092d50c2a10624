/* SPDX-License-Identifier: Apache-2.0
 * tests/fuzz/fuzz_model.c - arbitrary bytes as a transformer.
 *
 * Opens the input as GGUF and as a decoder; if it is one, and small, reads a
 * few tokens by prefill and by decoding, with every kind of cache and of
 * result. Weights may be anything, so results may be NaN; they must be made
 * without reading or writing elsewhere, and twice the same.
 * Corpus: tests/fuzz/corpus/model, made by tests/fuzz/make_model_corpus.py.
 * Threads: one. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "mb_decoder.h"

/* Larger ones are slow and show nothing new. */
#define MAX_PARAMS 400000u
#define N_TOKENS   5u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct room {
    float *logits;
    float *again;
    float *hidden;
    float nll[N_TOKENS];
};

static void
read_tokens(const struct mb_decoder *decoder, struct mb_pass *pass,
    mb_cache_type type, mb_rows_kind kind, struct room *room, float *logits)
{
    size_t n_vocab = mb_decoder_info(decoder)->n_vocab;
    struct mb_cache *cache = NULL;
    struct mb_sequence *seq = NULL;
    mb_token_id tokens[N_TOKENS];
    for (size_t i = 0; i < N_TOKENS; i++)
        tokens[i] = (mb_token_id)(i * 7 % n_vocab);
    MB_ASSERT(mb_cache_new(decoder, type, 64, &cache, NULL) == MB_OK);
    MB_ASSERT(mb_sequence_new(cache, &seq, NULL) == MB_OK);
    struct mb_rows rows = {.seq = seq,
        .tokens = tokens,
        .n = N_TOKENS,
        .kind = kind,
        .logits = logits,
        .targets = tokens,
        .nll = room->nll,
        .hidden = room->hidden};
    MB_ASSERT(mb_pass_run(pass, &rows, 1, NULL) == MB_OK);
    mb_sequence_free(seq);
    mb_cache_free(cache);
}

static void
use_decoder(const struct mb_decoder *decoder)
{
    const struct mb_decoder_info *info = mb_decoder_info(decoder);
    struct mb_pass *pass = NULL;
    struct room room = {
        mb_calloc(info->n_vocab, sizeof(float)),
        mb_calloc(info->n_vocab, sizeof(float)),
        mb_calloc(N_TOKENS * info->d_model, sizeof(float)),
        {0},
    };
    if (room.logits && room.again && room.hidden &&
        mb_pass_new(decoder, N_TOKENS, 1, &pass, NULL) == MB_OK) {
        for (int type = MB_CACHE_F16; type <= MB_CACHE_F32; type++) {
            for (int kind = MB_ROWS_PREFILL; kind <= MB_ROWS_DECODE; kind++) {
                read_tokens(decoder, pass, (mb_cache_type)type,
                    (mb_rows_kind)kind, &room, room.logits);
                read_tokens(decoder, pass, (mb_cache_type)type,
                    (mb_rows_kind)kind, &room, room.again);
                MB_ASSERT(memcmp(room.logits, room.again,
                              info->n_vocab * sizeof(float)) == 0);
            }
        }
    }
    mb_pass_free(pass);
    mb_free(room.logits);
    mb_free(room.again);
    mb_free(room.hidden);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct mb_gguf *gguf = NULL;
    struct mb_decoder *decoder = NULL;
    struct mb_error err;
    if (mb_gguf_open_memory(mb_slice_of(data, size), &gguf, &err) != MB_OK)
        return 0;
    if (mb_decoder_open(gguf, &decoder, &err) == MB_OK &&
        mb_decoder_info(decoder)->n_params <= MAX_PARAMS)
        use_decoder(decoder);
    mb_decoder_close(decoder);
    mb_gguf_close(gguf);
    return 0;
}
