/* SPDX-License-Identifier: Apache-2.0
 * tests/support/mb_test_gguf.h - small GGUF files made in memory.
 *
 *     struct test_gguf g;
 *     test_gguf_begin(&g);
 *     test_gguf_str(&g, "general.architecture", "llama");
 *     test_gguf_tensor(&g, "t", 0, 2, dims, bytes, size);
 *     test_gguf_end(&g);              // g.file holds the file
 *     test_gguf_free(&g);
 *
 * and whole vocabularies: test_vocab_file() of the llama tokenizer,
 * test_bpe_file() of gpt2.
 * Threads: the main thread. */
#ifndef MB_TEST_GGUF_H
#define MB_TEST_GGUF_H

#include "mb_model.h"
#include "mb_test.h"

struct test_gguf {
    struct mb_buffer keys;
    struct mb_buffer tensors;
    struct mb_buffer data;
    struct mb_buffer file;
    uint64_t n_keys;
    uint64_t n_tensors;
};

static inline void
test_gguf_begin(struct test_gguf *g)
{
    const size_t max = 64u << 20;
    mb_buffer_init(&g->keys, max);
    mb_buffer_init(&g->tensors, max);
    mb_buffer_init(&g->data, max);
    mb_buffer_init(&g->file, max);
    g->n_keys = 0;
    g->n_tensors = 0;
}

static inline void
test_gguf_free(struct test_gguf *g)
{
    mb_buffer_fini(&g->keys);
    mb_buffer_fini(&g->tensors);
    mb_buffer_fini(&g->data);
    mb_buffer_fini(&g->file);
}

/* ---- fields ---- */

static inline void
test_put(struct mb_buffer *b, const void *data, size_t size)
{
    if (size > 0)
        assert_ok(mb_buffer_append(b, data, size));
}

static inline void
test_put_u8(struct mb_buffer *b, uint8_t v)
{
    test_put(b, &v, 1);
}

static inline void
test_put_u32(struct mb_buffer *b, uint32_t v)
{
    uint8_t p[4];
    mb_put_le32(p, v);
    test_put(b, p, 4);
}

static inline void
test_put_u64(struct mb_buffer *b, uint64_t v)
{
    uint8_t p[8];
    mb_put_le64(p, v);
    test_put(b, p, 8);
}

static inline void
test_put_f32(struct mb_buffer *b, float v)
{
    uint8_t p[4];
    mb_put_lef32(p, v);
    test_put(b, p, 4);
}

static inline void
test_put_string(struct mb_buffer *b, struct mb_slice s)
{
    test_put_u64(b, s.size);
    test_put(b, s.data, s.size);
}

/* ---- metadata ---- */

/* A key and the type of its value; the value goes to g->keys after it. */
static inline void
test_gguf_key(struct test_gguf *g, const char *key, mb_gguf_type type)
{
    test_put_string(&g->keys, mb_slice_cstr(key));
    test_put_u32(&g->keys, (uint32_t)type);
    g->n_keys++;
}

static inline void
test_gguf_array(
    struct test_gguf *g, const char *key, mb_gguf_type element, uint64_t n)
{
    test_gguf_key(g, key, MB_GGUF_ARRAY);
    test_put_u32(&g->keys, (uint32_t)element);
    test_put_u64(&g->keys, n);
}

static inline void
test_gguf_str(struct test_gguf *g, const char *key, const char *value)
{
    test_gguf_key(g, key, MB_GGUF_STRING);
    test_put_string(&g->keys, mb_slice_cstr(value));
}

static inline void
test_gguf_u32(struct test_gguf *g, const char *key, uint32_t value)
{
    test_gguf_key(g, key, MB_GGUF_U32);
    test_put_u32(&g->keys, value);
}

static inline void
test_gguf_bool(struct test_gguf *g, const char *key, bool value)
{
    test_gguf_key(g, key, MB_GGUF_BOOL);
    test_put_u8(&g->keys, value);
}

/* ---- tensors and the file ---- */

static inline void
test_pad(struct mb_buffer *b, size_t alignment)
{
    while (b->size % alignment != 0)
        test_put_u8(b, 0);
}

/* A tensor whose data is the given bytes; aligned to 32. */
static inline void
test_gguf_tensor(struct test_gguf *g, const char *name, uint32_t type,
    uint32_t n_dims, const uint64_t *dims, const void *data, size_t size)
{
    test_pad(&g->data, 32);
    test_put_string(&g->tensors, mb_slice_cstr(name));
    test_put_u32(&g->tensors, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        test_put_u64(&g->tensors, dims[i]);
    test_put_u32(&g->tensors, type);
    test_put_u64(&g->tensors, g->data.size);
    test_put(&g->data, data, size);
    g->n_tensors++;
}

/* Put header, metadata, table and data together in g->file. */
static inline void
test_gguf_end(struct test_gguf *g)
{
    mb_buffer_clear(&g->file);
    test_put(&g->file, "GGUF", 4);
    test_put_u32(&g->file, 3);
    test_put_u64(&g->file, g->n_tensors);
    test_put_u64(&g->file, g->n_keys);
    test_put(&g->file, g->keys.data, g->keys.size);
    test_put(&g->file, g->tensors.data, g->tensors.size);
    if (g->n_tensors > 0)
        test_pad(&g->file, 32);
    test_put(&g->file, g->data.data, g->data.size);
}

/* ---- vocabularies ---- */

/* Types of tokens, as GGUF numbers them. */
enum {
    TEST_NORMAL = 1,
    TEST_UNKNOWN = 2,
    TEST_CONTROL = 3,
    TEST_USER = 4,
    TEST_BYTE = 6,
};

struct test_piece {
    const char *text;
    float score;
    uint32_t type; /* 0 stands for TEST_NORMAL */
};

/* Ids of test_vocab_file(): <unk> <s> </s>, 256 bytes, then the pieces. */
#define TEST_FIRST_BYTE  3
#define TEST_FIRST_PIECE 259

/* A llama vocabulary of these pieces. */
static inline void
test_vocab_file(struct test_gguf *g, const struct test_piece *pieces, size_t n,
    bool add_space_prefix)
{
    static const char *const special[3] = {"<unk>", "<s>", "</s>"};
    test_gguf_begin(g);
    test_gguf_str(g, "tokenizer.ggml.model", "llama");
    test_gguf_array(
        g, "tokenizer.ggml.tokens", MB_GGUF_STRING, TEST_FIRST_PIECE + n);
    for (size_t i = 0; i < 3; i++)
        test_put_string(&g->keys, mb_slice_cstr(special[i]));
    for (unsigned i = 0; i < 256; i++) {
        char text[8];
        snprintf(text, sizeof(text), "<0x%02X>", i);
        test_put_string(&g->keys, mb_slice_cstr(text));
    }
    for (size_t i = 0; i < n; i++)
        test_put_string(&g->keys, mb_slice_cstr(pieces[i].text));
    test_gguf_array(
        g, "tokenizer.ggml.scores", MB_GGUF_F32, TEST_FIRST_PIECE + n);
    for (size_t i = 0; i < TEST_FIRST_PIECE; i++)
        test_put_f32(&g->keys, 0.0f);
    for (size_t i = 0; i < n; i++)
        test_put_f32(&g->keys, pieces[i].score);
    test_gguf_array(
        g, "tokenizer.ggml.token_type", MB_GGUF_I32, TEST_FIRST_PIECE + n);
    test_put_u32(&g->keys, TEST_UNKNOWN);
    test_put_u32(&g->keys, TEST_CONTROL);
    test_put_u32(&g->keys, TEST_CONTROL);
    for (unsigned i = 0; i < 256; i++)
        test_put_u32(&g->keys, TEST_BYTE);
    for (size_t i = 0; i < n; i++)
        test_put_u32(
            &g->keys, pieces[i].type > 0 ? pieces[i].type : TEST_NORMAL);
    test_gguf_u32(g, "tokenizer.ggml.bos_token_id", 1);
    test_gguf_u32(g, "tokenizer.ggml.eos_token_id", 2);
    test_gguf_bool(g, "tokenizer.ggml.add_space_prefix", add_space_prefix);
    test_gguf_end(g);
}

/* A gpt2 vocabulary: token i < 256 is byte i, then come the results of the
 * merges ("a b" gives "ab"; bytes are written as GPT-2 does), then the pieces.
 * bos and eos are the last piece, if there are any. */
struct test_bpe {
    const char *pre; /* name of the rule; NULL: no key */
    const char *const *merges;
    size_t n_merges;
    const struct test_piece *pieces;
    size_t n_pieces;
};

#define TEST_FIRST_MERGE 256

/* The character that GPT-2 writes a byte as. */
static inline void
test_put_byte_char(struct mb_buffer *out, unsigned byte)
{
    static const char visible[] = "!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHI"
                                  "JKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrs"
                                  "tuvwxyz{|}~";
    unsigned code = byte;
    if (byte < 128 && byte > 0 && strchr(visible, (int)byte)) {
        test_put_u8(out, (uint8_t)byte);
        return;
    }
    if (byte <= 0x20)
        code = 0x100 + byte;
    else if (byte >= 0x7f && byte <= 0xa0)
        code = 0x121 + byte - 0x7f;
    else if (byte == 0xad)
        code = 0x143;
    test_put_u8(out, (uint8_t)(0xc0 | code >> 6));
    test_put_u8(out, (uint8_t)(0x80 | (code & 0x3f)));
}

static inline void
test_put_bpe_tokens(struct test_gguf *g, const struct test_bpe *v)
{
    struct mb_buffer text;
    mb_buffer_init(&text, 1u << 20);
    test_gguf_array(g, "tokenizer.ggml.tokens", MB_GGUF_STRING,
        TEST_FIRST_MERGE + v->n_merges + v->n_pieces);
    for (unsigned i = 0; i < 256; i++) {
        mb_buffer_clear(&text);
        test_put_byte_char(&text, i);
        test_put_string(&g->keys, mb_buffer_slice(&text));
    }
    for (size_t i = 0; i < v->n_merges; i++) {
        mb_buffer_clear(&text);
        for (const char *c = v->merges[i]; *c; c++) {
            if (*c != ' ')
                test_put_u8(&text, (uint8_t)*c);
        }
        test_put_string(&g->keys, mb_buffer_slice(&text));
    }
    for (size_t i = 0; i < v->n_pieces; i++)
        test_put_string(&g->keys, mb_slice_cstr(v->pieces[i].text));
    mb_buffer_fini(&text);
}

static inline void
test_bpe_file(struct test_gguf *g, const struct test_bpe *v)
{
    size_t n = TEST_FIRST_MERGE + v->n_merges + v->n_pieces;
    test_gguf_begin(g);
    test_gguf_str(g, "tokenizer.ggml.model", "gpt2");
    if (v->pre)
        test_gguf_str(g, "tokenizer.ggml.pre", v->pre);
    test_put_bpe_tokens(g, v);
    test_gguf_array(g, "tokenizer.ggml.token_type", MB_GGUF_I32, n);
    for (size_t i = 0; i < n; i++) {
        size_t first = n - v->n_pieces;
        uint32_t type = i < first ? 0 : v->pieces[i - first].type;
        test_put_u32(&g->keys, type > 0 ? type : TEST_NORMAL);
    }
    test_gguf_array(g, "tokenizer.ggml.merges", MB_GGUF_STRING, v->n_merges);
    for (size_t i = 0; i < v->n_merges; i++)
        test_put_string(&g->keys, mb_slice_cstr(v->merges[i]));
    if (v->n_pieces > 0) {
        test_gguf_u32(g, "tokenizer.ggml.bos_token_id", (uint32_t)n - 1);
        test_gguf_u32(g, "tokenizer.ggml.eos_token_id", (uint32_t)n - 1);
    }
    test_gguf_end(g);
}

/* The tokenizer of a file in memory. */
static inline struct mb_tokenizer *
test_tokenizer_of(const struct test_gguf *g)
{
    struct mb_gguf *gguf = NULL;
    struct mb_tokenizer *tok = NULL;
    struct mb_error err;
    assert_status(MB_OK,
        mb_gguf_open_memory(mb_buffer_slice(&g->file), &gguf, &err), &err);
    assert_status(MB_OK, mb_tokenizer_new(gguf, &tok, &err), &err);
    mb_gguf_close(gguf);
    return tok;
}

/* The same of a file by its path. */
static inline struct mb_tokenizer *
test_tokenizer_open(const char *path)
{
    struct mb_gguf *gguf = NULL;
    struct mb_tokenizer *tok = NULL;
    struct mb_error err;
    assert_status(MB_OK, mb_gguf_open(path, &gguf, &err), &err);
    assert_status(MB_OK, mb_tokenizer_new(gguf, &tok, &err), &err);
    mb_gguf_close(gguf);
    return tok;
}

/* ---- texts ---- */

/* Append a random valid text of about n bytes: words, spaces, control
 * characters, U+2581, and characters of all lengths. */
static inline void
test_random_text(struct mb_rng *rng, size_t n, struct mb_buffer *out)
{
    static const char *const parts[] = {" ", "  ", "\n", "\t", "the", "ing",
        "a", "b", "ab", "\u2581", "<s>", "<0x0A>", "\u00e9", "\u4e16\u754c",
        "\U0001f999", "1", "42", ".", "\x01", "\x7f", "\u00a0", "e\u0301"};
    size_t end = out->size + n;
    while (out->size < end) {
        uint64_t k = mb_rng_below(rng, 24);
        if (k < 22) {
            test_put(out, parts[k], strlen(parts[k]));
        } else if (k == 22) {
            test_put_u8(out, (uint8_t)mb_rng_below(rng, 128));
        } else { // any character of three bytes that is no surrogate
            uint32_t c = 0x800 + (uint32_t)mb_rng_below(rng, 0xd000);
            test_put_u8(out, (uint8_t)(0xe0 | c >> 12));
            test_put_u8(out, (uint8_t)(0x80 | (c >> 6 & 0x3f)));
            test_put_u8(out, (uint8_t)(0x80 | (c & 0x3f)));
        }
    }
}

#endif
