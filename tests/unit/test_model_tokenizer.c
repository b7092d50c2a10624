/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_tokenizer.c - encode and decode of the llama tokenizer.
 *
 * Three judges: token ids published with llama.cpp, ids made by SentencePiece
 * for the bundled model, and naive_encode() below, which merges the whole text
 * pair by pair without units, heap, hash or cache. */
#include "mb_test_gguf.h"
#include "mb_test_tokenizer.h"

#include <math.h>

#define ANCHOR MB_SOURCE_DIR "/model/weights/anchor.gguf"
#define SPACE  "\u2581"

/* ---- helpers ---- */

/* The tokens of text must be these pieces, written one after the other with a
 * blank between. */
static void
check_pieces(const struct mb_tokenizer *tok, const char *text, const char *want)
{
    struct mb_buffer out = encode(tok, NULL, mb_slice_cstr(text));
    struct mb_buffer got;
    mb_buffer_init(&got, 1u << 16);
    for (size_t i = 0; i < n_tokens(&out); i++) {
        struct mb_slice piece = mb_tokenizer_piece(tok, token_at(&out, i).id);
        if (i > 0)
            test_put_u8(&got, ' ');
        test_put(&got, piece.data, piece.size);
    }
    assert_slice_str(want, mb_buffer_slice(&got));
    mb_buffer_fini(&got);
    mb_buffer_fini(&out);
}

/* ---- published vectors ---- */

static const char separator[] = "\n__ggml_vocab_test__\n";

/* Each text of `inp` must give the ids of its line of `out`. Returns how many
 * there were. */
static size_t
check_vectors(const struct mb_tokenizer *tok, const char *inp, const char *out)
{
    struct mb_token_cache *cache = NULL;
    size_t n = 0;
    assert_ok(mb_token_cache_new(&cache));
    for (const char *end = strstr(inp, separator); end;
         end = strstr(inp, separator)) {
        struct mb_slice text = mb_slice_of(inp, (size_t)(end - inp));
        struct mb_buffer got = encode(tok, cache, text);
        const char *line_end = strchr(out, '\n');
        assert_non_null(line_end);
        for (size_t i = 0; i < n_tokens(&got); i++) {
            char *after = NULL;
            assert_true(out < line_end);
            long id = strtol(out, &after, 10);
            if (id != token_at(&got, i).id || after > line_end)
                fail_msg("text %zu, token %zu: wanted %ld, got %d", n, i, id,
                    (int)token_at(&got, i).id);
            out = after;
        }
        while (*out == ' ')
            out++;
        if (out != line_end)
            fail_msg("text %zu: too few tokens", n);
        out = line_end + 1;
        check_round_trip(tok, cache, text);
        mb_buffer_fini(&got);
        inp = end + strlen(separator);
        n++;
    }
    mb_token_cache_free(cache);
    return n;
}

/* The same with the three files of a name; false if they are not there. */
static bool
check_files(const char *gguf, const char *inp_path, const char *out_path)
{
    size_t size = 0;
    if (!mb_test_exists(gguf) || !mb_test_exists(inp_path))
        return false;
    struct mb_tokenizer *tok = test_tokenizer_open(gguf);
    char *inp = (char *)mb_test_read_file(inp_path, &size);
    char *out = (char *)mb_test_read_file(out_path, &size);
    assert_true(check_vectors(tok, inp, out) > 20);
    mb_free(inp);
    mb_free(out);
    mb_tokenizer_free(tok);
    return true;
}

static void
test_encode_when_llama_vectors_then_equal(void **state)
{
    char gguf[MB_TEST_PATH];
    char inp[MB_TEST_PATH];
    char out[MB_TEST_PATH];
    MB_TEST_UNUSED(state);
    assert_true(check_files(mb_test_fixture("model/llama-spm.gguf", gguf),
        mb_test_fixture("model/llama-spm.inp", inp),
        mb_test_fixture("model/llama-spm.out", out)));
}

static void
test_encode_when_sentencepiece_vectors_then_equal(void **state)
{
    char inp[MB_TEST_PATH];
    char out[MB_TEST_PATH];
    MB_TEST_UNUSED(state);
    assert_true(check_files(ANCHOR, mb_test_fixture("model/anchor.inp", inp),
        mb_test_fixture("model/anchor.out", out)));
}

/* The larger vocabularies are not in the tree: MB_SHARED names a folder that
 * holds models/vocab/. */
static void
test_encode_when_phi3_vectors_then_equal(void **state)
{
    static const char name[] = "models/vocab/ggml-vocab-phi-3.gguf";
    const char *shared = getenv("MB_SHARED");
    char gguf[MB_TEST_PATH];
    char inp[MB_TEST_PATH];
    char out[MB_TEST_PATH];
    MB_TEST_UNUSED(state);
    if (!shared) {
        print_message("MB_SHARED is not set: phi-3 is not tested\n");
        skip();
    }
    snprintf(gguf, sizeof(gguf), "%s/%s", shared, name);
    snprintf(inp, sizeof(inp), "%s/%s.inp", shared, name);
    snprintf(out, sizeof(out), "%s/%s.out", shared, name);
    if (!check_files(gguf, inp, out)) {
        print_message("no %s: phi-3 is not tested\n", gguf);
        skip();
    }
}

/* ---- against the naive way ---- */

#define NAIVE_MAX 512

struct naive {
    const struct test_piece *pieces;
    size_t n;
};

static int
naive_find(const struct naive *v, const char *text, size_t size)
{
    for (size_t i = v->n; i-- > 0;) {
        if (strlen(v->pieces[i].text) == size &&
            memcmp(v->pieces[i].text, text, size) == 0) {
            return (int)i;
        }
    }
    return -1;
}

/* Ids of a text in which spaces are written U+2581: merge the best adjacent
 * pair of the whole text until there is none. */
static size_t
naive_encode(const struct naive *v, const char *text, mb_token_id *ids)
{
    size_t start[NAIVE_MAX + 1];
    size_t n = 0;
    size_t size = strlen(text);
    for (size_t i = 0; i < size; i++) {
        if (((unsigned char)text[i] & 0xc0) != 0x80)
            start[n++] = i;
    }
    start[n] = size;
    for (;;) {
        size_t best = SIZE_MAX;
        float score = -INFINITY;
        for (size_t i = 0; i + 1 < n; i++) {
            int id = naive_find(v, text + start[i], start[i + 2] - start[i]);
            if (id >= 0 && v->pieces[id].score > score) {
                best = i;
                score = v->pieces[id].score;
            }
        }
        if (best == SIZE_MAX)
            break;
        memmove(start + best + 1, start + best + 2,
            (n - best - 1) * sizeof(start[0]));
        n--;
    }
    size_t n_ids = 0;
    for (size_t i = 0; i < n; i++) {
        int id = naive_find(v, text + start[i], start[i + 1] - start[i]);
        for (size_t k = start[i]; id < 0 && k < start[i + 1]; k++)
            ids[n_ids++] = TEST_FIRST_BYTE + (unsigned char)text[k];
        if (id >= 0)
            ids[n_ids++] = TEST_FIRST_PIECE + id;
    }
    return n_ids;
}

/* A random string of n characters of a small alphabet, into out. */
static void
random_string(struct mb_rng *rng, size_t n, char *out)
{
    static const char *const alphabet[] = {
        SPACE, "a", "b", "c", "\n", "\u00e9", "\u4e16", "A"};
    out[0] = '\0';
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        const char *c = alphabet[mb_rng_below(rng, 8)];
        memcpy(out + at, c, strlen(c) + 1);
        at += strlen(c);
    }
}

/* "\u2581a\u2581b" to "a b": without the space in front, with plain ones. */
static void
plain_of(const char *spaced, struct mb_buffer *out)
{
    mb_buffer_clear(out);
    for (spaced += strlen(SPACE); *spaced;) {
        if (strncmp(spaced, SPACE, strlen(SPACE)) == 0) {
            test_put_u8(out, ' ');
            spaced += strlen(SPACE);
        } else {
            test_put_u8(out, (uint8_t)*spaced++);
        }
    }
}

static void
test_encode_when_random_vocabulary_then_as_naive(void **state)
{
    enum { N_PIECES = 60 };
    struct mb_rng rng;
    struct mb_buffer text;
    MB_TEST_UNUSED(state);
    mb_rng_init(&rng, mb_test_seed());
    mb_buffer_init(&text, 1u << 16);
    for (int round = 0; round < 60; round++) {
        static char texts[N_PIECES][32];
        struct test_piece pieces[N_PIECES];
        struct test_gguf g;
        struct mb_token_cache *cache = NULL;
        for (size_t i = 0; i < N_PIECES; i++) {
            random_string(&rng, 2 + mb_rng_below(&rng, 3), texts[i]);
            if (i < 3)
                random_string(&rng, 1, texts[i]);
            pieces[i] =
                (struct test_piece){texts[i], -(float)mb_rng_below(&rng, 9), 0};
        }
        snprintf(texts[3], sizeof(texts[3]), "%s", SPACE);
        test_vocab_file(&g, pieces, N_PIECES, true);
        struct mb_tokenizer *tok = test_tokenizer_of(&g);
        struct naive naive = {pieces, N_PIECES};
        assert_ok(mb_token_cache_new(&cache));
        for (int i = 0; i < 40; i++) {
            char spaced[4 * NAIVE_MAX] = SPACE;
            mb_token_id want[4 * NAIVE_MAX];
            random_string(
                &rng, 1 + mb_rng_below(&rng, 50), spaced + strlen(SPACE));
            plain_of(spaced, &text);
            size_t n = naive_encode(&naive, spaced, want);
            struct mb_buffer got = encode(tok, cache, mb_buffer_slice(&text));
            assert_int_equal(n, n_tokens(&got));
            for (size_t k = 0; k < n; k++)
                assert_int_equal(want[k], token_at(&got, k).id);
            mb_buffer_fini(&got);
        }
        mb_token_cache_free(cache);
        mb_tokenizer_free(tok);
        test_gguf_free(&g);
    }
    mb_buffer_fini(&text);
}

/* ---- round trips ---- */

static void
test_decode_when_random_text_then_the_same(void **state)
{
    struct mb_tokenizer *tok = test_tokenizer_open(ANCHOR);
    struct mb_token_cache *cache = NULL;
    struct mb_buffer text;
    struct mb_rng rng;
    MB_TEST_UNUSED(state);
    mb_rng_init(&rng, mb_test_seed());
    mb_buffer_init(&text, 1u << 20);
    assert_ok(mb_token_cache_new(&cache));
    for (size_t i = 0; i < 400; i++) {
        mb_buffer_clear(&text);
        test_random_text(&rng, i, &text);
        check_round_trip(tok, cache, mb_buffer_slice(&text));
    }
    mb_buffer_fini(&text);
    mb_token_cache_free(cache);
    mb_tokenizer_free(tok);
}

static void
test_decode_when_every_character_then_the_same(void **state)
{
    struct mb_tokenizer *tok = test_tokenizer_open(ANCHOR);
    struct mb_token_cache *cache = NULL;
    struct mb_buffer text;
    MB_TEST_UNUSED(state);
    mb_buffer_init(&text, 8u << 20);
    assert_ok(mb_token_cache_new(&cache));
    for (uint32_t c = 0; c < 0x110000; c++) {
        if (c >= 0xd800 && c < 0xe000)
            continue;
        if (c < 0x80) {
            test_put_u8(&text, (uint8_t)c);
        } else if (c < 0x800) {
            test_put_u8(&text, (uint8_t)(0xc0 | c >> 6));
            test_put_u8(&text, (uint8_t)(0x80 | (c & 63)));
        } else if (c < 0x10000) {
            test_put_u8(&text, (uint8_t)(0xe0 | c >> 12));
            test_put_u8(&text, (uint8_t)(0x80 | (c >> 6 & 63)));
            test_put_u8(&text, (uint8_t)(0x80 | (c & 63)));
        } else {
            test_put_u8(&text, (uint8_t)(0xf0 | c >> 18));
            test_put_u8(&text, (uint8_t)(0x80 | (c >> 12 & 63)));
            test_put_u8(&text, (uint8_t)(0x80 | (c >> 6 & 63)));
            test_put_u8(&text, (uint8_t)(0x80 | (c & 63)));
        }
    }
    check_round_trip(tok, cache, mb_buffer_slice(&text));
    mb_buffer_fini(&text);
    mb_token_cache_free(cache);
    mb_tokenizer_free(tok);
}

static const struct test_piece small[] = {
    {SPACE, -9, 0},
    {"a", -8, 0},
    {"b", -8, 0},
    {"ab", -1, 0},
    {SPACE "a", -2, 0},
    {SPACE "ab", -3, 0},
    {SPACE SPACE, -4, 0},
    {"<", -8, 0},
    {"s", -8, 0},
    {">", -8, 0},
    {"s>", -1, 0},
    {"\u2581\u00e9", -1, 0},
};

#define N_SMALL (sizeof(small) / sizeof(small[0]))

static struct mb_tokenizer *
small_tokenizer(bool add_space_prefix)
{
    struct test_gguf g;
    test_vocab_file(&g, small, N_SMALL, add_space_prefix);
    struct mb_tokenizer *tok = test_tokenizer_of(&g);
    test_gguf_free(&g);
    return tok;
}

static void
test_encode_when_text_has_u2581_then_bytes(void **state)
{
    struct mb_tokenizer *tok = small_tokenizer(true);
    MB_TEST_UNUSED(state);
    check_pieces(tok, "a" SPACE "a", SPACE "a <0xE2> <0x96> <0x81> a");
    check_round_trip(tok, NULL, mb_slice_cstr(SPACE));
    check_round_trip(tok, NULL, mb_slice_cstr(SPACE " " SPACE SPACE "a "));
    mb_tokenizer_free(tok);
}

static void
test_encode_when_text_names_a_control_token_then_plain(void **state)
{
    struct mb_tokenizer *tok = small_tokenizer(true);
    MB_TEST_UNUSED(state);
    check_pieces(tok, "<s>", SPACE " < s>");
    mb_tokenizer_free(tok);
}

static void
test_encode_when_no_prefix_then_none(void **state)
{
    struct mb_tokenizer *tok = small_tokenizer(false);
    MB_TEST_UNUSED(state);
    check_pieces(tok, "ab ab", "ab " SPACE "ab");
    check_round_trip(tok, NULL, mb_slice_cstr(" a"));
    check_round_trip(tok, NULL, mb_slice_cstr("  "));
    mb_tokenizer_free(tok);
}

static void
test_encode_when_prefix_stands_alone_then_size_zero(void **state)
{
    struct mb_tokenizer *tok = small_tokenizer(true);
    struct mb_buffer out = encode(tok, NULL, mb_slice_cstr("b"));
    MB_TEST_UNUSED(state);
    assert_int_equal(2, n_tokens(&out));
    assert_int_equal(0, token_at(&out, 0).size);
    assert_int_equal(0, token_at(&out, 1).start);
    assert_int_equal(1, token_at(&out, 1).size);
    mb_buffer_fini(&out);
    mb_tokenizer_free(tok);
}

static void
test_encode_when_empty_then_nothing(void **state)
{
    struct mb_tokenizer *tok = small_tokenizer(true);
    struct mb_buffer out = encode(tok, NULL, mb_slice_cstr(""));
    MB_TEST_UNUSED(state);
    assert_int_equal(0, out.size);
    mb_buffer_fini(&out);
    mb_tokenizer_free(tok);
}

static void
test_encode_when_no_piece_for_space_then_its_byte(void **state)
{
    static const struct test_piece pieces[] = {{"a", 0, 0}};
    struct test_gguf g;
    MB_TEST_UNUSED(state);
    test_vocab_file(&g, pieces, 1, true);
    struct mb_tokenizer *tok = test_tokenizer_of(&g);
    check_pieces(tok, "a a", "<0x20> a <0x20> a");
    check_round_trip(tok, NULL, mb_slice_cstr("  a  "));
    mb_tokenizer_free(tok);
    test_gguf_free(&g);
}

static void
test_encode_when_user_defined_piece_then_whole(void **state)
{
    static const struct test_piece pieces[] = {{SPACE, -9, 0}, {"a", -8, 0},
        {"x", -8, 0}, {"a<", -1, 0}, {"<eot>", 0, TEST_USER},
        {"<eot>x", 0, TEST_USER}, {"two words", 0, TEST_USER}};
    struct test_gguf g;
    MB_TEST_UNUSED(state);
    test_vocab_file(&g, pieces, sizeof(pieces) / sizeof(pieces[0]), true);
    struct mb_tokenizer *tok = test_tokenizer_of(&g);
    check_pieces(tok, "a<eot>a", SPACE " a <eot> a");
    check_pieces(tok, "<eot>xx", "<eot>x x");
    check_pieces(tok, "atwo words", SPACE " a two words");
    check_round_trip(tok, NULL, mb_slice_cstr("<eot> a"));
    check_round_trip(tok, NULL, mb_slice_cstr("<eot>"));
    check_round_trip(tok, NULL, mb_slice_cstr(" <eot><eot>x <eo"));
    mb_tokenizer_free(tok);
    test_gguf_free(&g);
}

/* What opens a message is no text, even where the file calls it user-defined:
 * else a user's text could open one. */
static void
test_encode_when_user_defined_opener_then_text_but_in_prompts(void **state)
{
    static const char *const openers[] = {"<|im_start|>", "<|start_header_id|>",
        "<|end_header_id|>", "<|begin_of_text|>", "<|system|>", "<|user|>",
        "<|assistant|>"};
    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < sizeof(openers) / sizeof(openers[0]); i++) {
        const struct test_piece pieces[] = {
            {"a", -8, 0}, {openers[i], 0, TEST_USER}};
        struct mb_prompt prompt = {.text = mb_slice_cstr(openers[i])};
        struct mb_buffer tokens;
        struct test_gguf g;
        test_vocab_file(&g, pieces, 2, false);
        struct mb_tokenizer *tok = test_tokenizer_of(&g);
        mb_token_id opener = (mb_token_id)mb_tokenizer_n_vocab(tok) - 1;
        mb_buffer_init(&tokens, 4096);
        for (int special = 0; special < 2; special++) {
            prompt.flags = special ? MB_PROMPT_SPECIAL : 0;
            mb_buffer_clear(&tokens);
            assert_ok(
                mb_tokenizer_encode_prompt(tok, NULL, &prompt, &tokens, NULL));
            const mb_token_id *ids = (const void *)tokens.data;
            size_t n = tokens.size / sizeof(*ids);
            assert_int_equal(special, n == 1 && ids[0] == opener);
        }
        mb_buffer_fini(&tokens);
        mb_tokenizer_free(tok);
        test_gguf_free(&g);
    }
}

static void
test_encode_when_text_is_not_utf8_then_no_harm(void **state)
{
    static const uint8_t bad[] = {'a', 0xff, 0xc3, 0xe2, 0x96, 0xf0, 0x9f};
    struct mb_tokenizer *tok = small_tokenizer(true);
    MB_TEST_UNUSED(state);
    for (size_t n = 0; n <= sizeof(bad); n++) {
        uint8_t *copy = mb_alloc(n + 1);
        assert_non_null(copy);
        memcpy(copy, bad + sizeof(bad) - n, n);
        check_round_trip(tok, NULL, mb_slice_of(copy, n));
        mb_free(copy);
    }
    mb_tokenizer_free(tok);
}

static void
test_encode_when_cache_changes_owner_then_right(void **state)
{
    struct mb_tokenizer *anchor = test_tokenizer_open(ANCHOR);
    struct mb_tokenizer *tok = small_tokenizer(true);
    struct mb_token_cache *cache = NULL;
    MB_TEST_UNUSED(state);
    assert_ok(mb_token_cache_new(&cache));
    for (int i = 0; i < 3; i++) {
        check_round_trip(anchor, cache, mb_slice_cstr("ab ab abab"));
        check_round_trip(tok, cache, mb_slice_cstr("ab ab abab"));
    }
    mb_token_cache_free(cache);
    mb_tokenizer_free(tok);
    mb_tokenizer_free(anchor);
}

/* A unit of a million characters: the heap must hold, in good time. */
static void
test_encode_when_text_has_no_seam_then_done(void **state)
{
    const size_t n = 1000000;
    struct mb_tokenizer *tok = test_tokenizer_open(ANCHOR);
    struct mb_buffer text;
    MB_TEST_UNUSED(state);
    mb_buffer_init(&text, n);
    for (size_t i = 0; i < n; i++)
        test_put_u8(&text, (uint8_t)("etaoin"[i * i % 7 % 6]));
    struct mb_buffer out = encode(tok, NULL, mb_buffer_slice(&text));
    size_t sum = 0;
    for (size_t i = 0; i < n_tokens(&out); i++)
        sum += token_at(&out, i).size;
    assert_int_equal(n, sum);
    mb_buffer_fini(&out);
    mb_buffer_fini(&text);
    mb_tokenizer_free(tok);
}

/* ---- errors ---- */

static void
test_decode_when_id_out_of_range_then_bad_arg(void **state)
{
    static const mb_token_id ids[2][2] = {
        {TEST_FIRST_PIECE, TEST_FIRST_PIECE + N_SMALL}, {TEST_FIRST_PIECE, -1}};
    struct mb_tokenizer *tok = small_tokenizer(true);
    struct mb_buffer out;
    struct mb_error err;
    MB_TEST_UNUSED(state);
    mb_buffer_init(&out, 100);
    for (size_t i = 0; i < 2; i++) {
        assert_status(MB_ERR_BAD_ARG,
            mb_tokenizer_decode(tok, ids[i], 2, &out, &err), &err);
        assert_error_has(err, "at 1");
        assert_int_equal(0, out.size);
    }
    assert_int_equal(TEST_FIRST_BYTE + 10, mb_tokenizer_find(tok, "<0x0A>"));
    assert_int_equal(-1, mb_tokenizer_find(tok, "<0x0"));
    assert_int_equal(0, mb_tokenizer_piece(tok, -1).size);
    assert_int_equal(
        0, mb_tokenizer_piece(tok, TEST_FIRST_PIECE + N_SMALL).size);
    mb_buffer_fini(&out);
    mb_tokenizer_free(tok);
}

static void
test_decode_when_control_token_then_no_text(void **state)
{
    static const mb_token_id ids[4] = {1, TEST_FIRST_PIECE + 4, 0, 2};
    struct mb_tokenizer *tok = small_tokenizer(true);
    struct mb_buffer out;
    MB_TEST_UNUSED(state);
    mb_buffer_init(&out, 100);
    assert_ok(mb_tokenizer_decode(tok, ids, 4, &out, NULL));
    assert_slice_str("a", mb_buffer_slice(&out));
    mb_buffer_fini(&out);
    mb_tokenizer_free(tok);
}

static void
test_encode_when_buffer_is_full_then_too_large(void **state)
{
    struct mb_tokenizer *tok = small_tokenizer(true);
    struct mb_buffer out;
    struct mb_error err;
    MB_TEST_UNUSED(state);
    mb_buffer_init(&out, 3 * sizeof(struct mb_token));
    assert_ok(mb_buffer_append(&out, "x", 1));
    assert_status(MB_ERR_TOO_LARGE,
        mb_tokenizer_encode(tok, NULL, mb_slice_cstr("bbb"), &out, &err), &err);
    assert_int_equal(1, out.size);
    mb_buffer_fini(&out);
    mb_tokenizer_free(tok);
}

static mb_status
encode_once(void *arg)
{
    struct test_gguf *g = arg;
    struct mb_gguf *gguf = NULL;
    struct mb_tokenizer *tok = NULL;
    struct mb_token_cache *cache = NULL;
    struct mb_buffer out;
    mb_buffer_init(&out, 1u << 20);
    mb_status st = mb_gguf_open_memory(mb_buffer_slice(&g->file), &gguf, NULL);
    if (st == MB_OK)
        st = mb_tokenizer_new(gguf, &tok, NULL);
    if (st == MB_OK)
        st = mb_token_cache_new(&cache);
    if (st == MB_OK)
        st = mb_tokenizer_encode(
            tok, cache, mb_slice_cstr("ab ab<eot>ba"), &out, NULL);
    if (st == MB_OK)
        st = mb_tokenizer_encode(
            tok, NULL, mb_slice_cstr("a new text"), &out, NULL);
    mb_buffer_fini(&out);
    mb_token_cache_free(cache);
    mb_tokenizer_free(tok);
    mb_gguf_close(gguf);
    return st;
}

static void
test_encode_when_memory_is_short_then_no_memory(void **state)
{
    struct test_gguf g;
    MB_TEST_UNUSED(state);
    test_vocab_file(&g, small, N_SMALL, true);
    mb_test_each_allocation(encode_once, &g);
    test_gguf_free(&g);
}

/* ---- vocabularies that are refused ---- */

/* Bytes of a file changed: the first place where `from` stands becomes `to`. */
static void
replace_first(struct test_gguf *g, const char *from, const char *to)
{
    size_t size = strlen(from);
    for (size_t i = 0; i + size <= g->file.size; i++) {
        if (memcmp(g->file.data + i, from, size) == 0) {
            memcpy(g->file.data + i, to, size);
            return;
        }
    }
    fail_msg("%s is not in the file", from);
}

static void
other_model(struct test_gguf *g)
{
    replace_first(g, "llama", "gpt2x");
}

static void
no_model(struct test_gguf *g)
{
    replace_first(g, "ggml.model", "ggml.mode1");
}

static void
no_pieces(struct test_gguf *g)
{
    replace_first(g, "ggml.tokens", "ggml.t0kens");
}

static void
no_scores(struct test_gguf *g)
{
    replace_first(g, "ggml.scores", "ggml.sc0res");
}

static void
no_types(struct test_gguf *g)
{
    replace_first(g, "token_type", "token_typo");
}

static void
no_byte(struct test_gguf *g)
{
    replace_first(g, "<0x41>", "<0x40>");
}

static void
no_number(struct test_gguf *g)
{
    replace_first(g, "<0x41>", "<0xG1>");
}

static void
nan_score(struct test_gguf *g)
{
    static const char key[] = "tokenizer.ggml.scores";
    for (size_t i = 0; i + sizeof(key) < g->file.size; i++) {
        if (memcmp(g->file.data + i, key, sizeof(key) - 1) == 0) {
            mb_put_lef32(g->file.data + i + sizeof(key) - 1 + 16 + 4 * 5, NAN);
            return;
        }
    }
    fail();
}

static void
type_nine(struct test_gguf *g)
{
    static const char key[] = "tokenizer.ggml.token_type";
    for (size_t i = 0; i + sizeof(key) < g->file.size; i++) {
        if (memcmp(g->file.data + i, key, sizeof(key) - 1) == 0) {
            mb_put_le32(g->file.data + i + sizeof(key) - 1 + 16, 9);
            return;
        }
    }
    fail();
}

static void
bos_out_of_range(struct test_gguf *g)
{
    replace_first(g, "bos_token_id", "b0s_token_id");
    mb_buffer_clear(&g->keys);
    test_put(&g->keys, g->file.data + 24, g->file.size - 24);
    test_gguf_u32(g, "tokenizer.ggml.bos_token_id", 100000);
    test_gguf_end(g);
}

static void
fewer_scores(struct test_gguf *g)
{
    replace_first(g, "ggml.scores", "ggml.sc0res");
    mb_buffer_clear(&g->keys);
    test_put(&g->keys, g->file.data + 24, g->file.size - 24);
    test_gguf_array(g, "tokenizer.ggml.scores", MB_GGUF_F32, 1);
    test_put_f32(&g->keys, 0.0f);
    test_gguf_end(g);
}

static void
scores_of_text(struct test_gguf *g)
{
    replace_first(g, "ggml.scores", "ggml.sc0res");
    mb_buffer_clear(&g->keys);
    test_put(&g->keys, g->file.data + 24, g->file.size - 24);
    test_gguf_str(g, "tokenizer.ggml.scores", "high");
    test_gguf_end(g);
}

static const struct defect {
    const char *name;
    void (*make)(struct test_gguf *g);
    mb_status status;
    const char *text;
} defects[] = {
    {"model gpt2x", other_model, MB_ERR_NOT_IMPLEMENTED, "gpt2x"},
    {"no model", no_model, MB_ERR_NOT_FOUND, "tokenizer.ggml.model"},
    {"no pieces", no_pieces, MB_ERR_NOT_FOUND, "tokenizer.ggml.tokens"},
    {"no scores", no_scores, MB_ERR_NOT_FOUND, "tokenizer.ggml.scores"},
    {"no types", no_types, MB_ERR_NOT_FOUND, "tokenizer.ggml.token_type"},
    {"no byte 0x41", no_byte, MB_ERR_CORRUPT, "no byte token <0x41>"},
    {"byte 0xG1", no_number, MB_ERR_CORRUPT, "not written <0xNN>"},
    {"score NaN", nan_score, MB_ERR_CORRUPT, "score of token"},
    {"type 9", type_nine, MB_ERR_CORRUPT, "unknown type 9"},
    {"bos out of range", bos_out_of_range, MB_ERR_CORRUPT, "bos_token_id"},
    {"fewer scores", fewer_scores, MB_ERR_CORRUPT, "1 scores"},
    {"scores of text", scores_of_text, MB_ERR_CORRUPT, "is string"},
};

static void
test_new_when_defect_then_its_error(void **state)
{
    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < sizeof(defects) / sizeof(defects[0]); i++) {
        const struct defect *d = &defects[i];
        struct mb_gguf *gguf = NULL;
        struct mb_tokenizer *tok = NULL;
        struct mb_error err = {0};
        struct test_gguf g;
        test_vocab_file(&g, small, N_SMALL, true);
        d->make(&g);
        assert_ok(mb_gguf_open_memory(mb_buffer_slice(&g.file), &gguf, NULL));
        mb_status st = mb_tokenizer_new(gguf, &tok, &err);
        if (st != d->status || !strstr(err.text, d->text))
            fail_msg("%s: got %s: %s", d->name, mb_status_name(st), err.text);
        assert_null(tok);
        mb_gguf_close(gguf);
        test_gguf_free(&g);
    }
}

/* ---- facts about a tokenizer ---- */

static void
test_new_when_good_then_facts(void **state)
{
    struct mb_tokenizer *tok = small_tokenizer(true);
    MB_TEST_UNUSED(state);
    assert_int_equal(TEST_FIRST_PIECE + N_SMALL, mb_tokenizer_n_vocab(tok));
    assert_int_equal(1, mb_tokenizer_bos(tok));
    assert_int_equal(2, mb_tokenizer_eos(tok));
    assert_slice_str("<0x0A>", mb_tokenizer_piece(tok, TEST_FIRST_BYTE + 10));
    assert_slice_str(SPACE "ab", mb_tokenizer_piece(tok, TEST_FIRST_PIECE + 5));
    mb_tokenizer_free(tok);
    mb_tokenizer_free(NULL);
    mb_token_cache_free(NULL);
}

static void
test_fingerprint_when_vocabulary_differs_then_differs(void **state)
{
    struct test_piece pieces[] = {{"a", -1, 0}, {"bc", -2, 0}};
    uint8_t prints[4][16];
    struct test_gguf g;
    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < 4; i++) {
        if (i == 2)
            pieces[1].score = -3;
        test_vocab_file(&g, pieces, 2, i != 3);
        struct mb_tokenizer *tok = test_tokenizer_of(&g);
        mb_tokenizer_fingerprint(tok, prints[i]);
        mb_tokenizer_free(tok);
        test_gguf_free(&g);
    }
    assert_memory_equal(prints[0], prints[1], 16);
    assert_memory_not_equal(prints[1], prints[2], 16);
    assert_memory_not_equal(prints[2], prints[3], 16);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encode_when_llama_vectors_then_equal),
        cmocka_unit_test(test_encode_when_sentencepiece_vectors_then_equal),
        cmocka_unit_test(test_encode_when_phi3_vectors_then_equal),
        cmocka_unit_test(test_encode_when_random_vocabulary_then_as_naive),
        cmocka_unit_test(test_decode_when_random_text_then_the_same),
        cmocka_unit_test(test_decode_when_every_character_then_the_same),
        cmocka_unit_test(test_encode_when_text_has_u2581_then_bytes),
        cmocka_unit_test(
            test_encode_when_text_names_a_control_token_then_plain),
        cmocka_unit_test(test_encode_when_no_prefix_then_none),
        cmocka_unit_test(test_encode_when_prefix_stands_alone_then_size_zero),
        cmocka_unit_test(test_encode_when_empty_then_nothing),
        cmocka_unit_test(test_encode_when_no_piece_for_space_then_its_byte),
        cmocka_unit_test(test_encode_when_user_defined_piece_then_whole),
        cmocka_unit_test(
            test_encode_when_user_defined_opener_then_text_but_in_prompts),
        cmocka_unit_test(test_encode_when_text_is_not_utf8_then_no_harm),
        cmocka_unit_test(test_encode_when_cache_changes_owner_then_right),
        cmocka_unit_test(test_encode_when_text_has_no_seam_then_done),
        cmocka_unit_test(test_decode_when_id_out_of_range_then_bad_arg),
        cmocka_unit_test(test_decode_when_control_token_then_no_text),
        cmocka_unit_test(test_encode_when_buffer_is_full_then_too_large),
        cmocka_unit_test(test_encode_when_memory_is_short_then_no_memory),
        cmocka_unit_test(test_new_when_defect_then_its_error),
        cmocka_unit_test(test_new_when_good_then_facts),
        cmocka_unit_test(test_fingerprint_when_vocabulary_differs_then_differs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
