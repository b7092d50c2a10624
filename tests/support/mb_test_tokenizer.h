/* SPDX-License-Identifier: Apache-2.0
 * tests/support/mb_test_tokenizer.h - encoding in one line, and the round trip
 * that holds for every tokenizer.
 * Threads: the main thread. */
#ifndef MB_TEST_TOKENIZER_H
#define MB_TEST_TOKENIZER_H

#include "mb_model.h"
#include "mb_test.h"

/* Tokens of text; free with mb_buffer_fini. */
static inline struct mb_buffer
encode(const struct mb_tokenizer *tok, struct mb_token_cache *cache,
    struct mb_slice text)
{
    struct mb_buffer out;
    struct mb_error err;
    mb_buffer_init(&out, 64u << 20);
    assert_status(
        MB_OK, mb_tokenizer_encode(tok, cache, text, &out, &err), &err);
    return out;
}

static inline size_t
n_tokens(const struct mb_buffer *b)
{
    return b->size / sizeof(struct mb_token);
}

static inline struct mb_token
token_at(const struct mb_buffer *b, size_t i)
{
    struct mb_token t;
    memcpy(&t, b->data + i * sizeof(t), sizeof(t));
    return t;
}

/* Encode with and without a cache, decode, and check that sizes add up and the
 * text comes back. */
static inline void
check_round_trip(const struct mb_tokenizer *tok, struct mb_token_cache *cache,
    struct mb_slice text)
{
    struct mb_buffer plain = encode(tok, NULL, text);
    struct mb_buffer cached = encode(tok, cache, text);
    struct mb_buffer back;
    size_t n = n_tokens(&plain);
    size_t at = 0;
    mb_token_id *ids = mb_calloc(n + 1, sizeof(*ids));
    assert_non_null(ids);
    assert_true(
        mb_slice_equal(mb_buffer_slice(&plain), mb_buffer_slice(&cached)));
    for (size_t i = 0; i < n; i++) {
        struct mb_token t = token_at(&plain, i);
        assert_int_equal(at, t.start);
        at += t.size;
        ids[i] = t.id;
    }
    assert_int_equal(text.size, at);
    mb_buffer_init(&back, 64u << 20);
    assert_ok(mb_tokenizer_decode(tok, ids, n, &back, NULL));
    assert_true(mb_slice_equal(text, mb_buffer_slice(&back)));
    mb_buffer_fini(&back);
    mb_buffer_fini(&plain);
    mb_buffer_fini(&cached);
    mb_free(ids);
}

#endif
