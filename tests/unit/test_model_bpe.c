/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_bpe.c - the gpt2 tokenizer: words, merges, prompts.
 *
 * Judges: token ids published with llama.cpp (where the vocabularies are), the
 * words that the published expressions give, written out by hand, and
 * naive_encode(), which merges a word pair by pair. */
#include "mb_test_gguf.h"
#include "mb_test_tokenizer.h"

#include "pretoken.h"
#include "unicode.h"

/* ---- a small vocabulary ---- */

static const char *const merges[] = {"h e", "l l", "he ll", "hell o", "w o",
    "r l", "wo rl", "worl d", "\u0120 world", "a b", "ab c", "b c",
    "\u010a \u010a", "\u0120 \u0120", "1 2", "\u00e4 \u00b8",
    "\u00e4\u00b8 \u0138"};
static const struct test_piece pieces[] = {{"<|im_start|>", 0, TEST_CONTROL},
    {"<tool>", 0, TEST_USER}, {"  ", 0, TEST_USER}, {"    ", 0, TEST_USER},
    {"xyz", 0, TEST_USER}, {"yzxyz", 0, TEST_USER},
    {"<|im_end|>", 0, TEST_USER}, {"<|endoftext|>", 0, TEST_CONTROL}};

#define N_MERGES (sizeof(merges) / sizeof(merges[0]))
#define N_PIECES (sizeof(pieces) / sizeof(pieces[0]))
#define PIECE    (TEST_FIRST_MERGE + (mb_token_id)N_MERGES)

static void
small_file(struct test_gguf *g, const char *pre)
{
    struct test_bpe v = {pre, merges, N_MERGES, pieces, N_PIECES};
    test_bpe_file(g, &v);
}

static struct mb_tokenizer *
small_tokenizer(const char *pre)
{
    struct test_gguf g;
    small_file(&g, pre);
    struct mb_tokenizer *tok = test_tokenizer_of(&g);
    test_gguf_free(&g);
    return tok;
}

/* ---- helpers ---- */

static void
check_ids(const struct mb_tokenizer *tok, const char *text,
    const mb_token_id *want, size_t n)
{
    struct mb_buffer out = encode(tok, NULL, mb_slice_cstr(text));
    assert_int_equal(n, n_tokens(&out));
    for (size_t i = 0; i < n; i++)
        assert_int_equal(want[i], token_at(&out, i).id);
    mb_buffer_fini(&out);
}

#define CHECK_IDS(tok, text, ...)                                              \
    check_ids((tok), (text), (const mb_token_id[]){__VA_ARGS__},               \
        sizeof((const mb_token_id[]){__VA_ARGS__}) / sizeof(mb_token_id))

static void
check_prompt(const struct mb_tokenizer *tok, struct mb_prompt prompt,
    const mb_token_id *want, size_t n)
{
    struct mb_buffer out;
    struct mb_error err;
    mb_buffer_init(&out, 1u << 16);
    assert_status(MB_OK,
        mb_tokenizer_encode_prompt(tok, NULL, &prompt, &out, &err), &err);
    assert_int_equal(n, out.size / sizeof(mb_token_id));
    assert_memory_equal(want, out.data, out.size);
    mb_buffer_fini(&out);
}

/* ---- published vectors ---- */

static const char separator[] = "\n__ggml_vocab_test__\n";

static size_t
check_vectors(const struct mb_tokenizer *tok, const char *inp, const char *out)
{
    size_t n = 0;
    for (const char *end = strstr(inp, separator); end;
         end = strstr(inp, separator)) {
        struct mb_slice text = mb_slice_of(inp, (size_t)(end - inp));
        struct mb_buffer got = encode(tok, NULL, text);
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
        mb_buffer_fini(&got);
        inp = end + strlen(separator);
        n++;
    }
    return n;
}

/* Vocabularies lie in MB_SHARED/models/vocab; two are published as
 * tokenizer.json only: support/make_vocab_gguf.py makes files of these for the
 * folder MB_VOCABS. */
static void
test_encode_when_published_vectors_then_equal(void **state)
{
    static const char *const names[] = {"gpt-2", "llama-bpe", "qwen2",
        "deepseek-coder", "deepseek-llm", "falcon", "mpt", "refact",
        "starcoder"};
    const char *shared = getenv("MB_SHARED");
    const char *more = getenv("MB_VOCABS");
    MB_TEST_UNUSED(state);
    if (!shared) {
        print_message("MB_SHARED is not set: no published vectors\n");
        skip();
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char base[MB_TEST_PATH];
        char path[MB_TEST_PATH + 8];
        size_t size = 0;
        snprintf(base, sizeof(base), "%s/models/vocab/ggml-vocab-%s.gguf",
            shared, names[i]);
        snprintf(path, sizeof(path), "%s.inp", base);
        char *inp = (char *)mb_test_read_file(path, &size);
        snprintf(path, sizeof(path), "%s.out", base);
        char *out = (char *)mb_test_read_file(path, &size);
        if (!mb_test_exists(base) && more)
            snprintf(
                base, sizeof(base), "%s/ggml-vocab-%s.gguf", more, names[i]);
        if (mb_test_exists(base)) {
            struct mb_tokenizer *tok = test_tokenizer_open(base);
            size_t n = check_vectors(tok, inp, out);
            print_message("%s: %zu texts\n", names[i], n);
            assert_true(n > 20);
            mb_tokenizer_free(tok);
        } else {
            print_message("%s: no vocabulary, not tested\n", names[i]);
        }
        mb_free(inp);
        mb_free(out);
    }
}

/* ---- words ---- */

static const struct {
    const char *rule;
    const char *words; /* the text, with | between words */
} cuts[] = {
    {"gpt-2", "Hello| world|'s| it|'re|'|LL| '|s|  | x|   "},
    {"gpt-2", "12345| 678|abc|12|...!?| --|\t\n\n \n| a"},
    {"gpt-2", "\u4e16\u754c| \u4e16|\u3002|\u00a0| \u00e9|\u0301|e"},
    {"starcoder", "a| |1|2| b|3|  |4|'s|...|\u0967"},
    {"smollm", "x| |1|  | y|\n\n"},
    {"falcon", "a|.|b| |...'|s| 12| | |123|45|  |`$|\u20ac"},
    {"default", "a|.|b| `| |12| | |123|45\u0661|'|re|$+"},
    {"llama-bpe", "Hello| world|'S|'ll| '|s|  | x|123|45|.\n\n|  \n| a\u4e16"},
    {"llama-bpe", "\tx|\n\n \n| | .|y| |12| | !\r\n| |12| "},
    {"qwen2", "a| |1|2|3|'Re|-b| ??\n\n|    "},
    {"qwen2", "(|\u00a0x|\u3000|\u3000ye|\u0301f|'s|\u01c5"},
    {"deepseek-coder", "ab| cd|  |\n|\n|1|2| |3|!?| .|\u4e16\u754c|x|\u3002|!"},
    {"deepseek-llm",
        "ab| cd|  |\n|12|\u0967| |\u4e16|Vi|\u1ec7|t|!?| :|\u3002"},
    {"deepseek-llm", "1|  \u00ac  \u00ac|  |\n|\u00ac|  | a|\u0915\u094d"},
};

/* Walk the text and put | between the words found. */
static void
cut_words(const struct pretokenizer *rule, const uint8_t *classes,
    struct mb_slice text, struct mb_buffer *out)
{
    struct pretoken_text t = {text.data, text.size, classes, false};
    for (size_t pos = 0; pos < text.size;) {
        size_t end = pretoken_end(rule, &t, pos);
        assert_true(end > pos && end <= text.size);
        if (pos > 0)
            test_put_u8(out, '|');
        test_put(out, text.data + pos, end - pos);
        pos = end;
    }
}

static void
test_pretoken_when_text_then_words(void **state)
{
    static uint8_t classes[UNICODE_BMP];
    struct mb_buffer text;
    struct mb_buffer got;
    size_t n_wrong = 0;
    MB_TEST_UNUSED(state);
    unicode_fill_bmp(classes);
    mb_buffer_init(&text, 1000);
    mb_buffer_init(&got, 1000);
    for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        const struct pretokenizer *rule =
            pretoken_find(mb_slice_cstr(cuts[i].rule));
        assert_non_null(rule);
        mb_buffer_clear(&text);
        mb_buffer_clear(&got);
        for (const char *c = cuts[i].words; *c; c++) {
            if (*c != '|')
                test_put_u8(&text, (uint8_t)*c);
        }
        cut_words(rule, classes, mb_buffer_slice(&text), &got);
        if (!mb_slice_equal(
                mb_slice_cstr(cuts[i].words), mb_buffer_slice(&got))) {
            print_error("%s: wanted \"%s\", got \"%.*s\"\n", cuts[i].rule,
                cuts[i].words, (int)got.size, (const char *)got.data);
            n_wrong++;
        }
    }
    assert_int_equal(0, n_wrong);
    mb_buffer_fini(&text);
    mb_buffer_fini(&got);
}

/* What pretoken.h promises, of every rule, over random text: a cut at the end
 * of a word changes no word after it, and not this one if no blank ends it. */
static void
test_pretoken_when_cut_at_a_word_then_the_same_words(void **state)
{
    static const char *const rules[] = {"gpt-2", "starcoder", "falcon",
        "default", "llama-bpe", "qwen2", "deepseek-coder", "deepseek-llm"};
    static uint8_t classes[UNICODE_BMP];
    struct mb_buffer text;
    struct mb_rng rng;
    MB_TEST_UNUSED(state);
    unicode_fill_bmp(classes);
    mb_rng_init(&rng, mb_test_seed());
    mb_buffer_init(&text, 1000);
    for (int round = 0; round < 4000; round++) {
        const struct pretokenizer *rule =
            pretoken_find(mb_slice_cstr(rules[round % 8]));
        mb_buffer_clear(&text);
        test_random_text(&rng, 1 + mb_rng_below(&rng, 60), &text);
        struct pretoken_text whole = {text.data, text.size, classes, false};
        size_t ends[200];
        size_t n = 0;
        for (size_t pos = 0; pos < text.size; pos = ends[n++])
            ends[n] = pretoken_end(rule, &whole, pos);
        for (size_t k = 0; k < n; k++) {
            struct pretoken_text head = {text.data, ends[k], classes, false};
            size_t pos = k > 0 ? ends[k - 1] : 0;
            if (text.data[ends[k] - 1] > ' ' && text.data[ends[k] - 1] < 128)
                assert_int_equal(ends[k], pretoken_end(rule, &head, pos));
            struct pretoken_text tail = {
                text.data + ends[k], text.size - ends[k], classes, false};
            for (size_t at = 0, i = k + 1; at < tail.size; i++) {
                at = pretoken_end(rule, &tail, at);
                assert_int_equal(ends[i] - ends[k], at);
            }
        }
    }
    mb_buffer_fini(&text);
}

static void
test_unicode_when_code_point_then_class(void **state)
{
    static const struct {
        uint32_t code;
        enum unicode_class class;
    } known[] = {{0, UNICODE_OTHER}, {'A', UNICODE_LETTER}, {'z', 1},
        {'0', UNICODE_NUMBER}, {'!', UNICODE_PUNCTUATION},
        {'$', UNICODE_SYMBOL}, {' ', UNICODE_SPACE}, {'\n', UNICODE_SPACE},
        {0x85, UNICODE_SPACE}, {0xa0, UNICODE_SPACE}, {0x301, UNICODE_MARK},
        {0x4e00, UNICODE_LETTER}, {0x9fff, UNICODE_LETTER},
        {0x3000, UNICODE_SPACE}, {0x200b, UNICODE_OTHER},
        {0xd800, UNICODE_OTHER}, {0xffff, UNICODE_OTHER},
        {0x1f999, UNICODE_SYMBOL}, {0x20000, UNICODE_LETTER},
        {0x2ebf0, UNICODE_LETTER}, {0x10ffff, UNICODE_OTHER},
        {0x110000, UNICODE_OTHER}, {UINT32_MAX, UNICODE_OTHER}};

    static uint8_t classes[UNICODE_BMP];
    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        assert_int_equal(known[i].class, unicode_class_of(known[i].code));
    unicode_fill_bmp(classes);
    for (uint32_t code = 0; code < UNICODE_BMP; code++)
        assert_int_equal(unicode_class_of(code), classes[code]);
}

/* ---- merges ---- */

static void
test_encode_when_small_vocabulary_then_ids(void **state)
{
    struct mb_tokenizer *tok = small_tokenizer("gpt-2");
    MB_TEST_UNUSED(state);
    /* hello, " world": merges 3 and 8. */
    CHECK_IDS(tok, "hello world", 259, 264);
    /* "ab c" comes before "b c" has a chance; of "bc" alone it is made. */
    CHECK_IDS(tok, "abcbc", 266, 267);
    CHECK_IDS(tok, "worl", 262);
    CHECK_IDS(tok, "\n\n\n", 268, '\n');
    CHECK_IDS(tok, "\u4e16", 272);
    CHECK_IDS(tok, "\u4e17", 271, 0x97);
    mb_tokenizer_free(tok);
}

static void
test_encode_when_rule_ignores_merges_then_whole_words(void **state)
{
    static const struct test_piece word[] = {{"hellohello", 0, 0}};
    struct test_bpe v = {"llama-bpe", merges, N_MERGES, word, 1};
    struct test_gguf g;
    MB_TEST_UNUSED(state);
    test_bpe_file(&g, &v);
    struct mb_tokenizer *tok = test_tokenizer_of(&g);
    CHECK_IDS(tok, "hellohello", PIECE);
    CHECK_IDS(tok, "hellohellohello", 259, 259, 259);
    mb_tokenizer_free(tok);
    test_gguf_free(&g);
}

#define NAIVE_MAX 400

/* Merge the pair of the lowest rank, the leftmost of equals, until there is
 * none. Strings are spans of the text; bytes are letters. */
static size_t
naive_merge(
    const char *const *list, size_t n_list, const char *text, size_t *start)
{
    size_t n = strlen(text);
    for (size_t i = 0; i <= n; i++)
        start[i] = i;
    for (;;) {
        size_t best = SIZE_MAX;
        size_t rank = n_list;
        for (size_t i = 0; i + 1 < n; i++) {
            size_t left = start[i + 1] - start[i];
            size_t right = start[i + 2] - start[i + 1];
            for (size_t k = 0; k < rank; k++) {
                const char *space = strchr(list[k], ' ');
                if ((size_t)(space - list[k]) == left &&
                    strlen(space + 1) == right &&
                    memcmp(list[k], text + start[i], left) == 0 &&
                    memcmp(space + 1, text + start[i + 1], right) == 0) {
                    best = i;
                    rank = k;
                }
            }
        }
        if (best == SIZE_MAX)
            return n;
        memmove(start + best + 1, start + best + 2,
            (n - best - 1) * sizeof(start[0]));
        n--;
    }
}

/* The id of a string: of two tokens with one text the later. */
static mb_token_id
naive_id(const struct mb_tokenizer *tok, const char *text, size_t size)
{
    for (size_t i = mb_tokenizer_n_vocab(tok); i-- > 0;) {
        if (mb_slice_equal(mb_tokenizer_piece(tok, (mb_token_id)i),
                mb_slice_of(text, size)))
            return (mb_token_id)i;
    }
    return -1;
}

static void
random_letters(struct mb_rng *rng, size_t n, char *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (char)('a' + mb_rng_below(rng, 4));
    out[n] = '\0';
}

static void
test_encode_when_random_merges_then_as_naive(void **state)
{
    enum { N = 60 };
    struct mb_rng rng;
    MB_TEST_UNUSED(state);
    mb_rng_init(&rng, mb_test_seed());
    for (int round = 0; round < 60; round++) {
        static char lines[N][32];
        const char *list[N];
        struct test_bpe v = {"gpt-2", list, N, NULL, 0};
        struct test_gguf g;
        struct mb_token_cache *cache = NULL;
        for (size_t i = 0; i < N; i++) {
            /* Some merges lean on what no merge makes: they never apply. */
            char left[8];
            char right[8];
            random_letters(&rng, 1 + mb_rng_below(&rng, 3), left);
            random_letters(&rng, 1 + mb_rng_below(&rng, 3), right);
            snprintf(lines[i], sizeof(lines[i]), "%s %s", left, right);
            list[i] = lines[i];
        }
        test_bpe_file(&g, &v);
        struct mb_tokenizer *tok = test_tokenizer_of(&g);
        assert_ok(mb_token_cache_new(&cache));
        for (int i = 0; i < 40; i++) {
            char text[NAIVE_MAX];
            size_t start[NAIVE_MAX + 1];
            random_letters(&rng, 1 + mb_rng_below(&rng, 60), text);
            size_t n = naive_merge(list, N, text, start);
            struct mb_buffer got = encode(tok, cache, mb_slice_cstr(text));
            assert_int_equal(n, n_tokens(&got));
            for (size_t k = 0; k < n; k++)
                assert_int_equal(
                    naive_id(tok, text + start[k], start[k + 1] - start[k]),
                    token_at(&got, k).id);
            mb_buffer_fini(&got);
        }
        mb_token_cache_free(cache);
        mb_tokenizer_free(tok);
        test_gguf_free(&g);
    }
}

/* A result that is no token goes on merging, and falls back to its bytes. */
static void
test_encode_when_result_is_no_token_then_bytes(void **state)
{
    struct test_gguf g;
    MB_TEST_UNUSED(state);
    small_file(&g, "gpt-2");
    for (size_t i = 0; i + 12 < g.file.size; i++) {
        /* The token "ab" (its length before it) becomes "a_". */
        if (memcmp(g.file.data + i, "\2\0\0\0\0\0\0\0ab", 10) == 0) {
            g.file.data[i + 9] = '_';
            break;
        }
    }
    struct mb_tokenizer *tok = test_tokenizer_of(&g);
    CHECK_IDS(tok, "ab", 'a', 'b');
    CHECK_IDS(tok, "abc", 266);
    check_round_trip(tok, NULL, mb_slice_cstr("ab abc abcab"));
    mb_tokenizer_free(tok);
    test_gguf_free(&g);
}

static void
test_new_when_merges_are_odd_then_passed_over(void **state)
{
    static const char *const odd[] = {"", " ", "ab", " x", "x ", "  x", "a b",
        "a b", "x \u4e16", "\u0144 a", "a b c", "q\u0120 \u0120"};
    struct test_bpe v = {"gpt-2", odd, sizeof(odd) / sizeof(odd[0]), NULL, 0};
    struct test_gguf g;
    MB_TEST_UNUSED(state);
    test_bpe_file(&g, &v);
    struct mb_tokenizer *tok = test_tokenizer_of(&g);
    /* Of the tokens "ab" the last is found. */
    CHECK_IDS(tok, "ab!", TEST_FIRST_MERGE + 7, '!');
    check_round_trip(tok, NULL, mb_slice_cstr("ab x \u4e16 a b c"));
    mb_tokenizer_free(tok);
    test_gguf_free(&g);
}

/* Words of a million bytes: fast, and in good time where all merge. */
static void
test_encode_when_word_is_long_then_done(void **state)
{
    static const char *const doubling[] = {"a a", "aa aa", "aaaa aaaa", "b c"};
    struct test_bpe v = {"gpt-2", doubling, 4, NULL, 0};
    const size_t n = 1000000;
    struct test_gguf g;
    struct mb_buffer text;
    MB_TEST_UNUSED(state);
    test_bpe_file(&g, &v);
    struct mb_tokenizer *tok = test_tokenizer_of(&g);
    mb_buffer_init(&text, n);
    for (size_t i = 0; i < n; i++)
        test_put_u8(&text, 'a');
    uint64_t start = mb_clock_cpu_ns();
    struct mb_buffer out = encode(tok, NULL, mb_buffer_slice(&text));
    uint64_t ms = (mb_clock_cpu_ns() - start) / 1000000;
    print_message("a million letters: %llu ms\n", (unsigned long long)ms);
    assert_int_equal(n / 8, n_tokens(&out));
    assert_true(ms < 20000); // a quadratic way takes hours
    mb_buffer_fini(&out);
    mb_buffer_fini(&text);
    mb_tokenizer_free(tok);
    test_gguf_free(&g);
}

/* No rule may look at a long run again for each word in it. */
static void
test_segment_when_runs_are_long_then_done(void **state)
{
    static const char *const rules[] = {"gpt-2", "starcoder", "falcon",
        "default", "llama-bpe", "qwen2", "deepseek-coder", "deepseek-llm"};
    static const char *const runs[] = {"a", "1", " ", "\n", "\u4e16", "\u0967",
        ".", "\u0301", "\n ", "1 ", "\u00ac ", "'s", "xyz", "\U0001f999"};
    struct mb_buffer text;
    struct mb_buffer spans;
    MB_TEST_UNUSED(state);
    mb_buffer_init(&text, 1u << 20);
    mb_buffer_init(&spans, 1u << 24);
    uint64_t start = mb_clock_cpu_ns();
    for (size_t i = 0; i < 8; i++) {
        struct mb_tokenizer *tok = small_tokenizer(rules[i]);
        for (size_t k = 0; k < sizeof(runs) / sizeof(runs[0]); k++) {
            mb_buffer_clear(&text);
            mb_buffer_clear(&spans);
            while (text.size < 40000)
                test_put(&text, runs[k], strlen(runs[k]));
            struct mb_buffer out = encode(tok, NULL, mb_buffer_slice(&text));
            assert_ok(mb_segment_text(
                tok, NULL, mb_buffer_slice(&text), &spans, NULL));
            mb_buffer_fini(&out);
        }
        mb_tokenizer_free(tok);
    }
    uint64_t ms = (mb_clock_cpu_ns() - start) / 1000000;
    print_message("%llu ms\n", (unsigned long long)ms);
    assert_true(ms < 60000); // one quadratic case alone takes longer
    mb_buffer_fini(&text);
    mb_buffer_fini(&spans);
}

/* ---- round trips ---- */

static void
test_decode_when_random_text_then_the_same(void **state)
{
    static const char *const rules[] = {"gpt-2", "llama-bpe", "qwen2", "falcon",
        "default", "starcoder", "deepseek-coder", "deepseek-llm"};
    struct mb_token_cache *cache = NULL;
    struct mb_buffer text;
    struct mb_rng rng;
    MB_TEST_UNUSED(state);
    mb_rng_init(&rng, mb_test_seed());
    mb_buffer_init(&text, 1u << 20);
    assert_ok(mb_token_cache_new(&cache));
    for (size_t r = 0; r < 8; r++) {
        struct mb_tokenizer *tok = small_tokenizer(rules[r]);
        for (int i = 0; i < 300; i++) {
            mb_buffer_clear(&text);
            test_random_text(&rng, mb_rng_below(&rng, 400), &text);
            check_round_trip(tok, cache, mb_buffer_slice(&text));
        }
        mb_tokenizer_free(tok);
    }
    mb_token_cache_free(cache);
    mb_buffer_fini(&text);
}

static void
test_encode_when_text_is_not_utf8_then_its_bytes(void **state)
{
    struct mb_tokenizer *tok = small_tokenizer("qwen2");
    struct mb_rng rng;
    MB_TEST_UNUSED(state);
    mb_rng_init(&rng, mb_test_seed());
    for (int i = 0; i < 2000; i++) {
        size_t n = mb_rng_below(&rng, 30);
        uint8_t *copy = mb_alloc(n + 1);
        assert_non_null(copy);
        for (size_t k = 0; k < n; k++)
            copy[k] = (uint8_t)(mb_rng_below(&rng, 3) == 0
                                    ? mb_rng_below(&rng, 128)
                                    : 0xc0 + mb_rng_below(&rng, 64));
        check_round_trip(tok, NULL, mb_slice_of(copy, n));
        mb_free(copy);
    }
    mb_tokenizer_free(tok);
}

/* Some vocabularies have no token for a control character. */
static void
test_encode_when_byte_has_no_token_then_left_out(void **state)
{
    struct test_gguf g;
    struct mb_buffer back;
    MB_TEST_UNUSED(state);
    small_file(&g, "gpt-2");
    for (size_t i = 0; i + 10 < g.file.size; i++) {
        if (memcmp(g.file.data + i, "\2\0\0\0\0\0\0\0\u0101", 10) == 0) {
            g.file.data[i + 9] = 0xbf; // byte 1 is now a character of no byte
            break;
        }
    }
    struct mb_tokenizer *tok = test_tokenizer_of(&g);
    CHECK_IDS(tok, "x\x01y", 'x', 'y');
    struct mb_buffer out = encode(tok, NULL, mb_slice_cstr("\x01\x01xyab\x01"));
    size_t sum = 0;
    for (size_t i = 0; i < n_tokens(&out); i++) {
        struct mb_token t = token_at(&out, i);
        assert_true(i == 0 || t.start == sum + 2);
        sum += t.size;
    }
    assert_int_equal(5, sum);
    mb_buffer_fini(&out);
    out = encode(tok, NULL, mb_slice_cstr("\x01"));
    assert_int_equal(0, out.size);
    mb_buffer_init(&back, 10);
    assert_ok(mb_tokenizer_decode(
        tok, (const mb_token_id[]){'x', 'y'}, 2, &back, NULL));
    assert_slice_str("xy", mb_buffer_slice(&back));
    mb_buffer_fini(&back);
    mb_buffer_fini(&out);
    mb_tokenizer_free(tok);
    test_gguf_free(&g);
}

/* ---- special pieces ---- */

static void
test_encode_when_user_pieces_then_longest_first(void **state)
{
    struct mb_tokenizer *tok = small_tokenizer("gpt-2");
    MB_TEST_UNUSED(state);
    CHECK_IDS(tok, "a<tool>b", 'a', PIECE + 1, 'b');
    CHECK_IDS(tok, "xyzxyz", 'x', PIECE + 5);
    CHECK_IDS(tok, "xyzyzx", PIECE + 4, 'y', 'z', 'x');
    /* Seven blanks: four, two, and one that goes with what follows. */
    CHECK_IDS(tok, "       world", PIECE + 3, PIECE + 2, 264);
    /* A piece ends the text before it: both blanks are one word. */
    CHECK_IDS(tok, "\t\t<tool>", '\t', '\t', PIECE + 1);
    check_round_trip(tok, NULL, mb_slice_cstr("xyzxyzxyz   <tool<tool>>    "));
    mb_tokenizer_free(tok);
}

static void
test_encode_when_text_names_a_control_token_then_plain(void **state)
{
    struct mb_tokenizer *tok = small_tokenizer("gpt-2");
    MB_TEST_UNUSED(state);
    /* <|im_end|> ends a message, whatever type the file gives it. */
    CHECK_IDS(
        tok, "<|im_end|>", '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>');
    mb_tokenizer_free(tok);
}

static void
test_encode_prompt_when_special_then_control_tokens(void **state)
{
    static const mb_token_id want[] = {
        PIECE, 'u', 'x', '\n', 259, PIECE + 6, PIECE + 1};
    static const mb_token_id plain[] = {
        '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>'};
    static const char text[] = "<|im_start|>ux\nhello<|im_end|><tool>";
    struct mb_tokenizer *tok = small_tokenizer("gpt-2");
    struct mb_prompt prompt = {mb_slice_cstr(text), MB_PROMPT_SPECIAL, NULL, 0};
    MB_TEST_UNUSED(state);
    check_prompt(tok, prompt, want, 7);
    prompt.text = mb_slice_cstr("<|im_end|>");
    check_prompt(tok, prompt, want + 5, 1);
    prompt.flags = 0;
    check_prompt(tok, prompt, plain, 10);
    prompt.text = mb_slice_cstr("");
    prompt.flags = MB_PROMPT_SPECIAL | MB_PROMPT_ENDS;
    check_prompt(tok, prompt, NULL, 0);
    mb_tokenizer_free(tok);
}

/* What a user wrote may name control tokens; words go on over its borders. */
static void
test_encode_prompt_when_plain_spans_then_text_there(void **state)
{
    static const char text[] = "<|im_start|>hel"
                               "lo<|im_end|>a"
                               "bc<|im_end|>";
    static const struct mb_span spans[] = {{15, 28, 0}};
    static const mb_token_id want[] = {PIECE, 259, '<', '|', 'i', 'm', '_', 'e',
        'n', 'd', '|', '>', 266, PIECE + 6};
    struct mb_tokenizer *tok = small_tokenizer("gpt-2");
    struct mb_prompt prompt = {
        mb_slice_cstr(text), MB_PROMPT_SPECIAL, spans, 1};
    MB_TEST_UNUSED(state);
    check_prompt(tok, prompt, want, sizeof(want) / sizeof(want[0]));
    mb_tokenizer_free(tok);
}

static void
test_encode_prompt_when_file_wants_ends_then_there(void **state)
{
    struct mb_tokenizer *tok = small_tokenizer("llama-bpe");
    struct mb_tokenizer *other = small_tokenizer("gpt-2");
    struct mb_prompt prompt = {mb_slice_cstr("hello"), MB_PROMPT_ENDS, NULL, 0};
    MB_TEST_UNUSED(state);
    check_prompt(tok, prompt, (const mb_token_id[]){PIECE + 7, 259}, 2);
    check_prompt(other, prompt, (const mb_token_id[]){259}, 1);
    assert_true(mb_tokenizer_adds_bos(tok));
    assert_false(mb_tokenizer_adds_bos(other));
    assert_false(mb_tokenizer_adds_eos(tok));
    mb_tokenizer_free(tok);
    mb_tokenizer_free(other);
}

static void
test_ends_when_named_then_listed(void **state)
{
    struct mb_tokenizer *tok = small_tokenizer("gpt-2");
    size_t n = 0;
    const mb_token_id *ends = mb_tokenizer_ends(tok, &n);
    MB_TEST_UNUSED(state);
    assert_int_equal(2, n);
    assert_int_equal(PIECE + 6, ends[0]);
    assert_int_equal(PIECE + 7, ends[1]);
    mb_tokenizer_free(tok);
}

static void
test_decode_when_special_then_its_text_or_none(void **state)
{
    static const mb_token_id ids[] = {
        PIECE, 259, PIECE + 1, PIECE + 6, PIECE + 7, 264};
    struct mb_tokenizer *tok = small_tokenizer("gpt-2");
    struct mb_buffer out;
    MB_TEST_UNUSED(state);
    mb_buffer_init(&out, 100);
    assert_ok(mb_tokenizer_decode(tok, ids, 6, &out, NULL));
    assert_slice_str("hello<tool> world", mb_buffer_slice(&out));
    mb_buffer_fini(&out);
    mb_tokenizer_free(tok);
}

/* ---- segments ---- */

static void
test_segment_when_gpt2_then_counts_hold(void **state)
{
    static const char *const rules[] = {
        "gpt-2", "llama-bpe", "deepseek-llm", "default"};
    struct mb_buffer text;
    struct mb_buffer spans;
    struct mb_rng rng;
    MB_TEST_UNUSED(state);
    mb_rng_init(&rng, mb_test_seed());
    mb_buffer_init(&text, 1u << 20);
    mb_buffer_init(&spans, 1u << 20);
    for (int round = 0; round < 40; round++) {
        struct mb_tokenizer *tok = small_tokenizer(rules[round % 4]);
        uint32_t at = 0;
        mb_buffer_clear(&text);
        mb_buffer_clear(&spans);
        test_random_text(&rng, mb_rng_below(&rng, 8000), &text);
        assert_ok(
            mb_segment_text(tok, NULL, mb_buffer_slice(&text), &spans, NULL));
        for (size_t i = 0; i < spans.size; i += sizeof(struct mb_span)) {
            struct mb_span s;
            memcpy(&s, spans.data + i, sizeof(s));
            assert_int_equal(at, s.start);
            at = s.end;
            struct mb_buffer alone = encode(
                tok, NULL, mb_slice_of(text.data + s.start, s.end - s.start));
            assert_int_equal(s.n_tokens, n_tokens(&alone));
            assert_true(s.n_tokens <= MB_SEGMENT_TOKENS);
            mb_buffer_fini(&alone);
        }
        assert_int_equal(text.size, at);
        mb_tokenizer_free(tok);
    }
    mb_buffer_fini(&text);
    mb_buffer_fini(&spans);
}

/* ---- errors ---- */

static mb_status
encode_once(void *arg)
{
    static const char text[] = "<|im_start|>hello  world xyzxyzxyz";
    struct test_gguf *g = arg;
    struct mb_gguf *gguf = NULL;
    struct mb_tokenizer *tok = NULL;
    struct mb_prompt prompt = {mb_slice_cstr(text), MB_PROMPT_SPECIAL, NULL, 0};
    struct mb_buffer out;
    mb_buffer_init(&out, 1u << 20);
    mb_status st = mb_gguf_open_memory(mb_buffer_slice(&g->file), &gguf, NULL);
    if (st == MB_OK)
        st = mb_tokenizer_new(gguf, &tok, NULL);
    if (st == MB_OK)
        st = mb_tokenizer_encode_prompt(tok, NULL, &prompt, &out, NULL);
    if (st == MB_OK)
        st = mb_tokenizer_encode(tok, NULL, mb_slice_cstr(text), &out, NULL);
    mb_buffer_fini(&out);
    mb_tokenizer_free(tok);
    mb_gguf_close(gguf);
    return st;
}

static void
test_encode_when_memory_is_short_then_no_memory(void **state)
{
    static const char *const odd[] = {"a b", "x y", "xy z", "p q"};
    struct test_bpe v = {"gpt-2", odd, 4, pieces, N_PIECES};
    struct test_gguf g;
    MB_TEST_UNUSED(state);
    test_bpe_file(&g, &v);
    for (size_t i = 0; i + 10 < g.file.size; i++) {
        /* The token "xy" becomes another, so that strings need symbols. */
        if (memcmp(g.file.data + i, "\2\0\0\0\0\0\0\0xy", 10) == 0) {
            g.file.data[i + 9] = '!';
            break;
        }
    }
    mb_test_each_allocation(encode_once, &g);
    test_gguf_free(&g);
}

/* The first place where `from` stands becomes `to`. */
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

static const struct {
    const char *name;
    const char *from;
    const char *to;
    mb_status status;
    const char *text;
} defects[] = {
    {"model bert", "gpt2", "bert", MB_ERR_NOT_IMPLEMENTED, "model bert"},
    {"model rwkv", "gpt2", "rwkv", MB_ERR_NOT_IMPLEMENTED, "model rwkv"},
    {"rule", "qwen2", "tekke", MB_ERR_NOT_IMPLEMENTED, "pre-tokenizer tekke"},
    {"no merges", "ggml.merges", "ggml.merged", MB_ERR_NOT_FOUND, "merges"},
    {"no types", "token_type", "token_typo", MB_ERR_NOT_FOUND, "token_type"},
    {"no tokens", "ggml.tokens", "ggml.t0kens", MB_ERR_NOT_FOUND, "tokens"},
};

static void
test_new_when_defect_then_its_error(void **state)
{
    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < sizeof(defects) / sizeof(defects[0]); i++) {
        struct mb_gguf *gguf = NULL;
        struct mb_tokenizer *tok = NULL;
        struct mb_error err = {0};
        struct test_gguf g;
        small_file(&g, "qwen2");
        replace_first(&g, defects[i].from, defects[i].to);
        assert_ok(mb_gguf_open_memory(mb_buffer_slice(&g.file), &gguf, NULL));
        mb_status st = mb_tokenizer_new(gguf, &tok, &err);
        if (st != defects[i].status || !strstr(err.text, defects[i].text))
            fail_msg("%s: got %s: %s", defects[i].name, mb_status_name(st),
                err.text);
        assert_null(tok);
        mb_gguf_close(gguf);
        test_gguf_free(&g);
    }
}

static void
test_fingerprint_when_merges_or_rule_differ_then_differs(void **state)
{
    static const char *const lists[][2] = {
        {"a b", "c d"}, {"a b", "c d"}, {"c d", "a b"}, {"a b", "c d"}};
    uint8_t prints[4][16];
    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < 4; i++) {
        struct test_bpe v = {i < 3 ? "gpt-2" : "qwen2", lists[i], 2, NULL, 0};
        struct test_gguf g;
        test_bpe_file(&g, &v);
        struct mb_tokenizer *tok = test_tokenizer_of(&g);
        mb_tokenizer_fingerprint(tok, prints[i]);
        mb_tokenizer_free(tok);
        test_gguf_free(&g);
    }
    assert_memory_equal(prints[0], prints[1], 16);
    assert_memory_not_equal(prints[1], prints[2], 16);
    assert_memory_not_equal(prints[1], prints[3], 16);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encode_when_published_vectors_then_equal),
        cmocka_unit_test(test_pretoken_when_text_then_words),
        cmocka_unit_test(test_pretoken_when_cut_at_a_word_then_the_same_words),
        cmocka_unit_test(test_unicode_when_code_point_then_class),
        cmocka_unit_test(test_encode_when_small_vocabulary_then_ids),
        cmocka_unit_test(test_encode_when_rule_ignores_merges_then_whole_words),
        cmocka_unit_test(test_encode_when_random_merges_then_as_naive),
        cmocka_unit_test(test_encode_when_result_is_no_token_then_bytes),
        cmocka_unit_test(test_new_when_merges_are_odd_then_passed_over),
        cmocka_unit_test(test_encode_when_word_is_long_then_done),
        cmocka_unit_test(test_segment_when_runs_are_long_then_done),
        cmocka_unit_test(test_decode_when_random_text_then_the_same),
        cmocka_unit_test(test_encode_when_text_is_not_utf8_then_its_bytes),
        cmocka_unit_test(test_encode_when_byte_has_no_token_then_left_out),
        cmocka_unit_test(test_encode_when_user_pieces_then_longest_first),
        cmocka_unit_test(
            test_encode_when_text_names_a_control_token_then_plain),
        cmocka_unit_test(test_encode_prompt_when_special_then_control_tokens),
        cmocka_unit_test(test_encode_prompt_when_plain_spans_then_text_there),
        cmocka_unit_test(test_encode_prompt_when_file_wants_ends_then_there),
        cmocka_unit_test(test_ends_when_named_then_listed),
        cmocka_unit_test(test_decode_when_special_then_its_text_or_none),
        cmocka_unit_test(test_segment_when_gpt2_then_counts_hold),
        cmocka_unit_test(test_encode_when_memory_is_short_then_no_memory),
        cmocka_unit_test(test_new_when_defect_then_its_error),
        cmocka_unit_test(
            test_fingerprint_when_merges_or_rule_differ_then_differs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
