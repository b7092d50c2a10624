/* SPDX-License-Identifier: Apache-2.0
 * tests/fuzz/fuzz_gguf.c - arbitrary bytes as a model file.
 *
 * Opens the input as GGUF; asks every key by every getter; reads the ends of
 * every tensor's data; and if the file carries a usable vocabulary, encodes,
 * decodes and segments a line with it, which must come back unchanged.
 * Corpus: tests/fuzz/corpus/gguf, made by tests/fuzz/make_gguf_corpus.py.
 * Threads: one. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "mb_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char line[] =
    "  A line, with \xe2\x96\x81 and \xc3\xa9\xe4\xb8\x96\n\n<s> 42\tab abab";

/* The first strings of an array, if it is one. */
static void
read_strings(const struct mb_gguf *gguf, const char *key)
{
    struct mb_slice out[8];
    size_t n = 0;
    if (mb_gguf_strings(gguf, key, NULL, 0, &n, NULL) != MB_OK || n > 8)
        return;
    MB_ASSERT(mb_gguf_strings(gguf, key, out, 8, &n, NULL) == MB_OK);
    for (size_t i = 0; i < n; i++)
        (void)mb_utf8_is_valid(out[i], NULL);
}

static void
read_keys(const struct mb_gguf *gguf)
{
    for (size_t i = 0; i < mb_gguf_n_keys(gguf); i++) {
        struct mb_slice key = mb_gguf_key(gguf, i);
        struct mb_slice value = {0};
        struct mb_error err;
        uint64_t u = 0;
        double d = 0.0;
        bool b = false;
        char *name = mb_strndup((const char *)key.data, key.size);
        if (!name)
            return;
        if (mb_gguf_str(gguf, name, &value, &err) == MB_OK)
            (void)mb_utf8_is_valid(value, NULL);
        (void)!mb_gguf_u64(gguf, name, &u, &err);
        (void)!mb_gguf_f64(gguf, name, &d, &err);
        (void)!mb_gguf_bool(gguf, name, &b, &err);
        for (int type = MB_GGUF_U8; type <= MB_GGUF_F64; type++) {
            if (mb_gguf_array(gguf, name, (mb_gguf_type)type, &value, &u,
                    &err) == MB_OK) {
                (void)mb_hash64(value.data, value.size, 0);
            }
        }
        read_strings(gguf, name);
        mb_free(name);
    }
}

static void
read_tensors(const struct mb_gguf *gguf)
{
    volatile uint8_t sink = 0;
    for (size_t i = 0; i < mb_gguf_n_tensors(gguf); i++) {
        const struct mb_gguf_tensor *t = mb_gguf_tensor(gguf, i);
        if (t->data.size > 0)
            sink = (uint8_t)(t->data.data[0] ^ t->data.data[t->data.size - 1]);
    }
    (void)sink;
}

static void
use_tokenizer(const struct mb_tokenizer *tok)
{
    struct mb_slice text = mb_slice_of(line, sizeof(line) - 1);
    struct mb_buffer tokens;
    struct mb_buffer back;
    struct mb_buffer spans;
    mb_token_id ids[sizeof(line) + 1];
    mb_buffer_init(&tokens, 1u << 16);
    mb_buffer_init(&back, 1u << 16);
    mb_buffer_init(&spans, 1u << 16);
    MB_ASSERT(mb_tokenizer_encode(tok, NULL, text, &tokens, NULL) == MB_OK);
    size_t n = tokens.size / sizeof(struct mb_token);
    MB_ASSERT(n <= sizeof(ids) / sizeof(ids[0]));
    for (size_t i = 0; i < n; i++) {
        struct mb_token t;
        memcpy(&t, tokens.data + i * sizeof(t), sizeof(t));
        ids[i] = t.id;
    }
    MB_ASSERT(mb_tokenizer_decode(tok, ids, n, &back, NULL) == MB_OK);
    MB_ASSERT(mb_slice_equal(text, mb_buffer_slice(&back)));
    MB_ASSERT(mb_segment_text(tok, NULL, text, &spans, NULL) == MB_OK);
    mb_buffer_fini(&tokens);
    mb_buffer_fini(&back);
    mb_buffer_fini(&spans);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct mb_gguf *gguf = NULL;
    struct mb_tokenizer *tok = NULL;
    struct mb_error err;
    if (mb_gguf_open_memory(mb_slice_of(data, size), &gguf, &err) != MB_OK)
        return 0;
    read_keys(gguf);
    read_tensors(gguf);
    if (mb_tokenizer_new(gguf, &tok, &err) == MB_OK)
        use_tokenizer(tok);
    mb_tokenizer_free(tok);
    mb_gguf_close(gguf);
    return 0;
}
