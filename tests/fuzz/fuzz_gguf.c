/* SPDX-License-Identifier: Apache-2.0
 * tests/fuzz/fuzz_gguf.c - arbitrary bytes as a model file.
 *
 * Opens the input as GGUF; asks every key by every getter; reads the ends of
 * every tensor's data; and if the file carries a usable vocabulary, encodes,
 * decodes and segments a line with it, which must come back unchanged (but for
 * bytes that a gpt2 vocabulary has no token for), and does the same with a
 * prompt by its chat template.
 * Corpus: tests/fuzz/corpus/gguf, made by tests/fuzz/make_gguf_corpus.py.
 * Threads: one. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "mb_chat.h"
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
use_chat(const struct mb_gguf *gguf, const struct mb_tokenizer *tok)
{
    static const char answer[] = "<think>\n\nab</think></think>\n <s>";
    const struct mb_chat_message messages[] = {
        {mb_slice_cstr("user"), mb_slice_of(line, sizeof(line) - 1)},
        {mb_slice_cstr("assistant"), mb_slice_cstr(answer)}};
    struct mb_chat_options opt = {.no_thinking = true};
    struct mb_chat chat;
    struct mb_buffer text;
    struct mb_buffer plain;
    struct mb_buffer ids;
    if (mb_chat_open(gguf, tok, &chat, NULL) != MB_OK)
        return;
    mb_buffer_init(&text, 1u << 16);
    mb_buffer_init(&plain, 1u << 16);
    mb_buffer_init(&ids, 1u << 20);
    /* The names of bos and eos may be longer than the room. */
    if (mb_chat_render(&chat, messages, 2, &opt, &text, &plain, NULL) ==
        MB_OK) {
        struct mb_prompt prompt = {mb_buffer_slice(&text),
            MB_PROMPT_SPECIAL | MB_PROMPT_ENDS,
            (const struct mb_span *)(const void *)plain.data,
            plain.size / sizeof(struct mb_span)};
        MB_ASSERT(mb_tokenizer_encode_prompt(tok, NULL, &prompt, &ids, NULL) ==
                  MB_OK);
    }
    mb_buffer_fini(&text);
    mb_buffer_fini(&plain);
    mb_buffer_fini(&ids);
}

static void
use_tokenizer(const struct mb_tokenizer *tok, bool may_lose)
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
    MB_ASSERT(back.size <= text.size);
    if (!may_lose || back.size == text.size)
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
    if (mb_tokenizer_new(gguf, &tok, &err) == MB_OK) {
        struct mb_slice model = {0};
        MB_ASSERT(
            mb_gguf_str(gguf, "tokenizer.ggml.model", &model, NULL) == MB_OK);
        use_tokenizer(tok, mb_slice_equal(model, mb_slice_cstr("gpt2")));
        use_chat(gguf, tok);
    }
    mb_tokenizer_free(tok);
    mb_gguf_close(gguf);
    return 0;
}
