/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_segment.c - cutting texts into segments.
 *
 * check_segments() holds every result against what mb_model.h promises; the
 * tests bring the texts, and look at where the cuts fall. */
#include "mb_test_gguf.h"

#define ANCHOR MB_SOURCE_DIR "/model/weights/anchor.gguf"

/* ---- helpers ---- */

struct fixture {
    struct mb_tokenizer *tok;
    struct mb_token_cache *cache;
    struct mb_buffer text;
    struct mb_buffer spans;
};

static void
fixture_begin(struct fixture *f, struct mb_tokenizer *tok)
{
    f->tok = tok ? tok : test_tokenizer_open(ANCHOR);
    assert_ok(mb_token_cache_new(&f->cache));
    mb_buffer_init(&f->text, 64u << 20);
    mb_buffer_init(&f->spans, 64u << 20);
}

static void
fixture_end(struct fixture *f)
{
    mb_buffer_fini(&f->text);
    mb_buffer_fini(&f->spans);
    mb_token_cache_free(f->cache);
    mb_tokenizer_free(f->tok);
}

static void
add(struct fixture *f, const char *text, size_t times)
{
    for (size_t i = 0; i < times; i++)
        test_put(&f->text, text, strlen(text));
}

static size_t
n_spans(const struct fixture *f)
{
    return f->spans.size / sizeof(struct mb_span);
}

static struct mb_span
span_at(const struct fixture *f, size_t i)
{
    struct mb_span s;
    assert_true(i < n_spans(f));
    memcpy(&s, f->spans.data + i * sizeof(s), sizeof(s));
    return s;
}

/* Segment f->text. The spans must cover it without gap or overlap, cut no
 * character, and have the tokens they say, 1 to MB_SEGMENT_TOKENS. */
static void
check_segments(struct fixture *f)
{
    struct mb_slice text = mb_buffer_slice(&f->text);
    struct mb_buffer tokens;
    struct mb_error err;
    size_t at = 0;
    mb_buffer_init(&tokens, 64u << 20);
    mb_buffer_clear(&f->spans);
    assert_status(
        MB_OK, mb_segment_text(f->tok, f->cache, text, &f->spans, &err), &err);
    for (size_t i = 0; i < n_spans(f); i++) {
        struct mb_span s = span_at(f, i);
        assert_int_equal(at, s.start);
        assert_true(s.end <= text.size);
        at = s.end;
        if (text.size == 0)
            break;
        assert_true(s.end > s.start);
        assert_true(s.end == text.size || (text.data[s.end] & 0xc0) != 0x80);
        mb_buffer_clear(&tokens);
        assert_ok(mb_tokenizer_encode(f->tok, f->cache,
            mb_slice_of(text.data + s.start, s.end - s.start), &tokens, NULL));
        assert_int_equal(s.n_tokens, tokens.size / sizeof(struct mb_token));
        assert_in_range(s.n_tokens, 1, MB_SEGMENT_TOKENS);
    }
    assert_int_equal(text.size, at);
    mb_buffer_fini(&tokens);
}

/* Every cut but the last must stand behind this text. */
static void
check_cuts_after(const struct fixture *f, const char *tail)
{
    size_t size = strlen(tail);
    assert_true(n_spans(f) > 1);
    for (size_t i = 0; i + 1 < n_spans(f); i++) {
        struct mb_span s = span_at(f, i);
        const char *end = (const char *)f->text.data + s.end - size;
        if (s.end < size || memcmp(end, tail, size) != 0)
            fail_msg("segment %zu ends with \"%.*s\", not \"%s\"", i, (int)size,
                end, tail);
    }
}

/* ---- small texts ---- */

static void
test_segment_when_empty_then_one_empty_span(void **state)
{
    struct fixture f;
    MB_TEST_UNUSED(state);
    fixture_begin(&f, NULL);
    check_segments(&f);
    assert_int_equal(1, n_spans(&f));
    assert_int_equal(0, span_at(&f, 0).end);
    assert_int_equal(0, span_at(&f, 0).n_tokens);
    fixture_end(&f);
}

static void
test_segment_when_short_then_one_span(void **state)
{
    static const char *const texts[] = {
        "a", " ", "\n", "\u4e16", "Hello, world.", "  two\n\nlines  "};
    struct fixture f;
    MB_TEST_UNUSED(state);
    fixture_begin(&f, NULL);
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        mb_buffer_clear(&f.text);
        add(&f, texts[i], 1);
        check_segments(&f);
        assert_int_equal(1, n_spans(&f));
    }
    fixture_end(&f);
}

static void
test_segment_when_appended_then_spans_before_stay(void **state)
{
    struct fixture f;
    MB_TEST_UNUSED(state);
    fixture_begin(&f, NULL);
    add(&f, "text", 1);
    check_segments(&f);
    assert_ok(mb_segment_text(
        f.tok, NULL, mb_slice_cstr("other text"), &f.spans, NULL));
    assert_int_equal(2, n_spans(&f));
    assert_int_equal(4, span_at(&f, 0).end);
    assert_int_equal(10, span_at(&f, 1).end);
    fixture_end(&f);
}

/* ---- where the cuts fall ---- */

static void
test_segment_when_paragraphs_then_cut_there(void **state)
{
    struct fixture f;
    MB_TEST_UNUSED(state);
    fixture_begin(&f, NULL);
    for (size_t i = 0; i < 40; i++) {
        add(&f, "One sentence stands here. And a second one.\nA line. ", 2);
        add(&f, "The end of it.\n\n", 1);
    }
    check_segments(&f);
    check_cuts_after(&f, "The end of it.\n\n");
    fixture_end(&f);
}

static void
test_segment_when_lines_end_then_cut_there(void **state)
{
    struct fixture f;
    MB_TEST_UNUSED(state);
    fixture_begin(&f, NULL);
    for (size_t i = 0; i < 100; i++) {
        add(&f, "    if (x) { first. Second(a, b); }\n", 1);
        add(&f, "    return y. Or not;\n", 1);
    }
    check_segments(&f);
    check_cuts_after(&f, "\n");
    fixture_end(&f);
}

static void
test_segment_when_lines_are_wrapped_then_cut_at_sentences(void **state)
{
    struct fixture f;
    MB_TEST_UNUSED(state);
    fixture_begin(&f, NULL);
    add(&f,
        "This is a sentence that goes on over the\n"
        "end of its line, as those of books do, and\n"
        "ends here. Mr J. Smith said so to the editor\n"
        "of the paper, ",
        60);
    check_segments(&f);
    check_cuts_after(&f, "ends here. ");
    fixture_end(&f);
}

static void
test_segment_when_sentences_then_cut_there(void **state)
{
    struct fixture f;
    MB_TEST_UNUSED(state);
    fixture_begin(&f, NULL);
    add(&f, "He asked: \"Is it there, at 3.5 miles, by e.g. the sea?\" ", 90);
    check_segments(&f);
    check_cuts_after(&f, "sea?\" ");
    fixture_end(&f);
}

static void
test_segment_when_words_only_then_cut_after_blanks(void **state)
{
    struct fixture f;
    MB_TEST_UNUSED(state);
    fixture_begin(&f, NULL);
    add(&f, "words without any mark between them ", 200);
    check_segments(&f);
    check_cuts_after(&f, " ");
    fixture_end(&f);
}

static void
test_segment_when_chinese_then_cut_after_full_stops(void **state)
{
    struct fixture f;
    MB_TEST_UNUSED(state);
    fixture_begin(&f, NULL);
    add(&f,
        "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u3002",
        60);
    check_segments(&f);
    check_cuts_after(&f, "\u3002");
    fixture_end(&f);
}

/* A text of any length: no segment of two is tiny, most are well filled. */
static void
test_segment_when_short_rest_then_balanced(void **state)
{
    struct fixture f;
    MB_TEST_UNUSED(state);
    fixture_begin(&f, NULL);
    for (size_t words = 240; words < 600; words += 3) {
        mb_buffer_clear(&f.text);
        add(&f, "word ", words);
        check_segments(&f);
        size_t n = n_spans(&f);
        for (size_t i = 0; n > 1 && i < n; i++)
            assert_true(span_at(&f, i).n_tokens > MB_SEGMENT_TOKENS / 3);
    }
    fixture_end(&f);
}

/* ---- hostile texts ---- */

static void
test_segment_when_random_then_sound(void **state)
{
    struct fixture f;
    struct mb_rng rng;
    MB_TEST_UNUSED(state);
    fixture_begin(&f, NULL);
    mb_rng_init(&rng, mb_test_seed());
    for (size_t i = 0; i < 60; i++) {
        mb_buffer_clear(&f.text);
        test_random_text(&rng, i * 100, &f.text);
        check_segments(&f);
    }
    fixture_end(&f);
}

/* No seam anywhere: time must grow with the size, not with its square. */
static void
test_segment_when_no_seam_then_sound(void **state)
{
    static const char *const parts[] = {
        "e", " ", "\n", "etaoinshrdlu", "\u4e16\u754c", "\u2581", "aaab"};
    struct fixture f;
    MB_TEST_UNUSED(state);
    fixture_begin(&f, NULL);
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        mb_buffer_clear(&f.text);
        add(&f, parts[i], 200000 / strlen(parts[i]));
        check_segments(&f);
    }
    fixture_end(&f);
}

static void
test_segment_when_no_cache_then_same(void **state)
{
    struct fixture f;
    struct mb_buffer other;
    struct mb_rng rng;
    MB_TEST_UNUSED(state);
    fixture_begin(&f, NULL);
    mb_rng_init(&rng, mb_test_seed());
    test_random_text(&rng, 20000, &f.text);
    check_segments(&f);
    mb_buffer_init(&other, 1u << 20);
    assert_ok(
        mb_segment_text(f.tok, NULL, mb_buffer_slice(&f.text), &other, NULL));
    assert_true(
        mb_slice_equal(mb_buffer_slice(&f.spans), mb_buffer_slice(&other)));
    mb_buffer_fini(&other);
    fixture_end(&f);
}

/* ---- other vocabularies ---- */

/* User-defined pieces must stay whole or be counted as what is left of them;
 * pieces with spaces inside make units of many words. */
static void
test_segment_when_odd_vocabulary_then_sound(void **state)
{
    static const struct test_piece pieces[] = {
        {"\u2581", -9, 0},
        {"a", -8, 0},
        {"b", -8, 0},
        {"b\u2581", -3, 0},
        {"b\u2581a", -2, 0},
        {"a\u2581", -4, 0},
        {"ab", -5, 0},
        {"<eot>", 0, TEST_USER},
        {"a b<", 0, TEST_USER},
        {"\n\n", 0, TEST_USER},
    };
    static const char *const parts[] = {
        "a", "b", " ", "<eot>", "<eo", "a b<", "\n", "\u00e9", "ab"};
    struct fixture f;
    struct test_gguf g;
    struct mb_rng rng;
    MB_TEST_UNUSED(state);
    mb_rng_init(&rng, mb_test_seed());
    for (size_t n = 7; n <= 10; n += 3) { // without and with user pieces
        test_vocab_file(&g, pieces, n, n == 7);
        fixture_begin(&f, test_tokenizer_of(&g));
        for (size_t i = 0; i < 40; i++) {
            mb_buffer_clear(&f.text);
            while (f.text.size < i * 150)
                add(&f, parts[mb_rng_below(&rng, 9)], 1);
            check_segments(&f);
        }
        fixture_end(&f);
        test_gguf_free(&g);
    }
}

/* ---- errors ---- */

static void
test_segment_when_buffer_is_full_then_too_large(void **state)
{
    struct fixture f;
    struct mb_buffer out;
    struct mb_error err;
    MB_TEST_UNUSED(state);
    fixture_begin(&f, NULL);
    add(&f, "word ", 1000);
    mb_buffer_init(&out, 2 * sizeof(struct mb_span));
    assert_status(MB_ERR_TOO_LARGE,
        mb_segment_text(f.tok, f.cache, mb_buffer_slice(&f.text), &out, &err),
        &err);
    assert_error_has(err, "5000 bytes");
    assert_int_equal(0, out.size);
    mb_buffer_fini(&out);
    fixture_end(&f);
}

static mb_status
segment_once(void *arg)
{
    struct fixture *f = arg;
    struct mb_buffer out;
    mb_buffer_init(&out, 1u << 20);
    mb_status st =
        mb_segment_text(f->tok, NULL, mb_buffer_slice(&f->text), &out, NULL);
    mb_buffer_fini(&out);
    return st;
}

static void
test_segment_when_memory_is_short_then_no_memory(void **state)
{
    struct fixture f;
    MB_TEST_UNUSED(state);
    fixture_begin(&f, NULL);
    add(&f, "Words and sentences. ", 200);
    mb_test_each_allocation(segment_once, &f);
    fixture_end(&f);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_segment_when_empty_then_one_empty_span),
        cmocka_unit_test(test_segment_when_short_then_one_span),
        cmocka_unit_test(test_segment_when_appended_then_spans_before_stay),
        cmocka_unit_test(test_segment_when_paragraphs_then_cut_there),
        cmocka_unit_test(test_segment_when_lines_end_then_cut_there),
        cmocka_unit_test(
            test_segment_when_lines_are_wrapped_then_cut_at_sentences),
        cmocka_unit_test(test_segment_when_sentences_then_cut_there),
        cmocka_unit_test(test_segment_when_words_only_then_cut_after_blanks),
        cmocka_unit_test(test_segment_when_chinese_then_cut_after_full_stops),
        cmocka_unit_test(test_segment_when_short_rest_then_balanced),
        cmocka_unit_test(test_segment_when_random_then_sound),
        cmocka_unit_test(test_segment_when_no_seam_then_sound),
        cmocka_unit_test(test_segment_when_no_cache_then_same),
        cmocka_unit_test(test_segment_when_odd_vocabulary_then_sound),
        cmocka_unit_test(test_segment_when_buffer_is_full_then_too_large),
        cmocka_unit_test(test_segment_when_memory_is_short_then_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
