/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_analyze.c - which terms a text gives. */
#include "mb_test.h"

#include "mb_store.h"

#define ARENA_BYTES (64u << 20)

/* Terms of text, space between them, each with its count if above one. */
static void
check_with(struct mb_analyzer *an, const char *text, const char *want)
{
    struct mb_arena *arena = mb_arena_new(ARENA_BYTES);
    struct mb_term *terms;
    size_t n;
    assert_non_null(arena);
    assert_ok(mb_analyze(an, mb_slice_cstr(text), arena, &terms, &n, NULL));
    struct mb_buffer got;
    mb_buffer_init(&got, 1u << 20);
    for (size_t i = 0; i < n; i++) {
        assert_true(terms[i].bytes.size > 0 && terms[i].bytes.size <= 64);
        assert_true(mb_utf8_is_valid(terms[i].bytes, NULL));
        assert_true(terms[i].hash ==
                    mb_hash64(terms[i].bytes.data, terms[i].bytes.size, 0));
        assert_ok(mb_buffer_printf(&got, "%s%.*s", i > 0 ? " " : "",
            (int)terms[i].bytes.size, (const char *)terms[i].bytes.data));
        if (terms[i].tf > 1)
            assert_ok(mb_buffer_printf(&got, "*%u", terms[i].tf));
    }
    struct mb_slice slice = mb_buffer_slice(&got);
    assert_slice_str(want, slice);
    mb_buffer_fini(&got);
    mb_arena_free(arena);
}

static void
check(const char *language, const char *text, const char *want)
{
    struct mb_analyzer *an;
    struct mb_error err;
    assert_status(MB_OK, mb_analyzer_new(language, &an, &err), &err);
    check_with(an, text, want);
    check_with(an, text, want); // and again with a warm cache
    mb_analyzer_free(an);
}

static void
test_analyze_plain_words_then_folded_and_counted(void **state)
{
    MB_TEST_UNUSED(state);
    check("none", "The cat. THE Cat, the dog!", "the*3 cat*2 dog");
    check("none", "", "");
    check("none", " \t\n-- ... !? \"'\" @ # + /", "");
    check("", "Running runs run", "run*3"); // the default is English
    check("porter", "relational", "relat");
}

static void
test_analyze_apostrophes_then_inside_words_only(void **state)
{
    MB_TEST_UNUSED(state);
    check("none", "don't 'quoted' dogs' O'Brien", "don't quoted dogs o'brien");
    check("none", "don\xE2\x80\x99t don't", "don't*2");
    check("english", "the whale's whale", "the whale*2");
    check("french", "l'homme d\xE2\x80\x99hommes", "l homm*2 d");
}

static void
test_analyze_numbers_then_points_and_thousands_kept(void **state)
{
    MB_TEST_UNUSED(state);
    check("none", "pi 3.14, 3.14.", "pi 3.14*2");
    check("none", "v3.11.4", "3.11.4 3.11");
    check("none", "10.0.0.1", "10.0.0.1 10.0 10.0.0");
    check("none", "1,000,000 and 1000000", "1000000*2 and");
    check("none", "in 1990,200 men 1,2,3", "in 1990 200 men 1 2 3");
    check("none", "$1,234.50", "1234.50");
    check("none", "12:30 1/2", "12 30 1 2");
}

static void
test_analyze_mixed_tokens_then_as_people_search(void **state)
{
    MB_TEST_UNUSED(state);
    check("none", "error E1042: 0x1F", "error e1042 0x1f");
    check("none", "E-mail, email", "e mail email*2");
    check("none", "covid-19 covid19", "covid 19 covid19*2");
    check("none", "state-of-the-art", "state of the art");
    check("none", "well-known 1914-18", "well known 1914 18");
    check("none", "joe.b@example.com", "joe b example com");
    check("none", "max_connections=100", "max connections 100");
    check("none", "U.S.A. and u.s. e.g. end.Begin", "usa and us eg end begin");
    check("none", "C++ c# C i++;", "c*3 c++ c# i i++");
    check("none", "a+b c#5 C#x", "a b c*2 5 x");
    check("none", "AND OR NOT NEAR() \"x\" y* col:z",
        "and or not near x y col z");
}

static void
test_analyze_unicode_words_then_folded(void **state)
{
    MB_TEST_UNUSED(state);
    // Case folding beyond ASCII, sharp s, final sigma.
    check("none", "\xC3\x89T\xC3\x89 \xC3\xA9t\xC3\xA9 ete", "ete*3");
    check("none", "Stra\xC3\x9F\x65 STRASSE", "strasse*2");
    check("none", "\xCE\xA3\xCE\xBF\xCF\x86\xCF\x8C\xCF\x82",
        "\xCF\x83\xCE\xBF\xCF\x86\xCE\xBF\xCF\x83");
    // Composed and decomposed, full-width, ligature, superscript.
    check("none", "caf\xC3\xA9 cafe\xCC\x81 CAFE", "cafe*3");
    check("none", "\xEF\xBC\xA1\xEF\xBC\xA2\xEF\xBC\xA3 abc", "abc*2");
    check("none", "\xEF\xAC\x81sh m\xC2\xB2", "fish m2");
    // Soft hyphen and joiners are not there.
    check("none", "co\xC2\xADop", "coop");
    // Cyrillic keeps its short i; Russian stems.
    check("none", "\xD0\x9C\xD0\x9E\xD0\x99", "\xD0\xBC\xD0\xBE\xD0\xB9");
    check("russian",
        "\xD0\xBA\xD0\xBD\xD0\xB8\xD0\xB3\xD0\xB0 "
        "\xD0\xBA\xD0\xBD\xD0\xB8\xD0\xB3\xD0\xB8",
        "\xD0\xBA\xD0\xBD\xD0\xB8\xD0\xB3*2");
}

static void
test_analyze_languages_with_letters_of_their_own_then_kept(void **state)
{
    MB_TEST_UNUSED(state);
    check("swedish", "\xC3\xB6l", "\xC3\xB6l");
    check("none", "\xC3\xB8l \xC5\x81\xC3\xB3\x64\xC5\xBA \xC3\xA6",
        "ol lodz ae");
    // Turkish: I and dotless i, dotted I and i.
    check("turkish", "IRAK \xC4\xB1rak \xC4\xB0Z iz", "\xC4\xB1rak*2 iz*2");
    check("turkish", "3.11 c++", "3.11 c c++");
}

static void
test_analyze_scripts_without_spaces_then_bigrams(void **state)
{
    MB_TEST_UNUSED(state);
    // Three Han characters: two bigrams; one alone: itself.
    check("none", "\xE4\xB8\xAD\xE5\x9B\xBD\xE4\xBA\xBA",
        "\xE4\xB8\xAD\xE5\x9B\xBD \xE5\x9B\xBD\xE4\xBA\xBA");
    check("none", "\xE4\xB8\xAD", "\xE4\xB8\xAD");
    check("none", "iPhone\xE6\x89\x8B\xE6\x9C\xBA",
        "iphone "
        "\xE6\x89\x8B\xE6\x9C\xBA");
    // Punctuation ends a run.
    check("none", "\xE4\xB8\xAD\xE3\x80\x82\xE5\x9B\xBD",
        "\xE4\xB8\xAD \xE5\x9B\xBD");
    // Hiragana and Han in one run; half-width Katakana meets full-width.
    check("none", "\xE9\xA3\x9F\xE3\x81\xB9\xE3\x82\x8B",
        "\xE9\xA3\x9F\xE3\x81\xB9 \xE3\x81\xB9\xE3\x82\x8B");
    check("none", "\xEF\xBD\xB1\xEF\xBD\xB2 \xE3\x82\xA2\xE3\x82\xA4",
        "\xE3\x82\xA2\xE3\x82\xA4*2");
    // Hangul: the noun is found in the noun with its particle.
    check("none",
        "\xED\x95\x9C\xEA\xB5\xAD\xEC\x9D\x80 "
        "\xED\x95\x9C\xEA\xB5\xAD",
        "\xED\x95\x9C\xEA\xB5\xAD*2 \xEA\xB5\xAD\xEC\x9D\x80");
    // Thai: consonant with its marks is one unit.
    check("none", "\xE0\xB8\x97\xE0\xB8\xB5\xE0\xB9\x88\xE0\xB8\x99",
        "\xE0\xB8\x97\xE0\xB8\xB5\xE0\xB9\x88\xE0\xB8\x99");
}

static void
test_analyze_emoji_then_a_term(void **state)
{
    MB_TEST_UNUSED(state);
    check("none",
        "yes \xF0\x9F\x8E\x89\xF0\x9F\x8E\x89 \xE2\x9D\xA4\xEF\xB8\x8F",
        "yes \xF0\x9F\x8E\x89*2 \xE2\x9D\xA4");
}

static void
test_analyze_long_words_then_cut_at_64_bytes(void **state)
{
    MB_TEST_UNUSED(state);
    char text[5001];
    char want[65];
    memset(text, 'a', 5000);
    text[5000] = '\0';
    memset(want, 'a', 64);
    want[64] = '\0';
    check("none", text, want);
    // Two-byte letters: 32 of them, none torn.
    for (size_t i = 0; i < 5000; i += 2) {
        memcpy(text + i, "\xD0\xB1", 2);
    }
    for (size_t i = 0; i < 64; i += 2) {
        memcpy(want + i, "\xD0\xB1", 2);
    }
    check("none", text, want);
}

static void
test_analyze_many_terms_then_table_grows(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_buffer text;
    mb_buffer_init(&text, 64u << 20);
    for (unsigned i = 0; i < 100000; i++) {
        assert_ok(mb_buffer_printf(&text, "w%ux W%uX ", i, i));
    }
    struct mb_analyzer *an;
    assert_ok(mb_analyzer_new("none", &an, NULL));
    struct mb_arena *arena = mb_arena_new(ARENA_BYTES);
    assert_non_null(arena);
    struct mb_term *terms;
    size_t n;
    for (int round = 0; round < 3; round++) {
        assert_ok(
            mb_analyze(an, mb_buffer_slice(&text), arena, &terms, &n, NULL));
        assert_int_equal(n, 100000);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(terms[i].tf, 2);
        }
        assert_slice_str("w99999x", terms[n - 1].bytes);
        mb_arena_reset(arena);
    }
    mb_arena_free(arena);
    mb_analyzer_free(an);
    mb_buffer_fini(&text);
}

/* Any valid text gives valid terms, the same from a fresh analyzer and from
 * one that has seen much, and never reads past the end (the sanitizer sees). */
static void
test_analyze_random_text_then_the_same_cold_and_warm(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_rng rng;
    mb_rng_init(&rng, mb_test_seed());
    static const char *const parts[] = {"a", "B", "7", ".", ",", "-", "'", "+",
        "#", " ", "\xC3\xA9", "\xCC\x81", "\xE2\x80\x99", "\xC2\xAD",
        "\xE4\xB8\xAD", "\xED\x95\x9C", "\xF0\x9F\x8E\x89", "\xEF\xB7\xBA",
        "\xC4\xB0", "I", "000", "\xE0\xB8\x97", "\xE2\x82\xAC", "word"};
    static const char *const names[] = {"english", "none", "turkish", "french"};
    struct mb_arena *arena = mb_arena_new(ARENA_BYTES);
    assert_non_null(arena);
    for (size_t l = 0; l < 4; l++) {
        struct mb_analyzer *warm;
        assert_ok(mb_analyzer_new(names[l], &warm, NULL));
        for (int round = 0; round < 400; round++) {
            struct mb_buffer text;
            mb_buffer_init(&text, 1u << 16);
            size_t n_parts = (size_t)mb_rng_below(&rng, 60);
            for (size_t i = 0; i < n_parts; i++) {
                size_t part =
                    (size_t)mb_rng_below(&rng, sizeof parts / sizeof parts[0]);
                assert_ok(mb_buffer_append_str(&text, parts[part]));
            }
            // Exactly the text in the heap, so that one byte too far is seen.
            uint8_t *copy = mb_alloc(text.size + (text.size == 0));
            assert_non_null(copy);
            if (text.size > 0)
                memcpy(copy, text.data, text.size);
            struct mb_analyzer *cold;
            struct mb_term *a;
            struct mb_term *b;
            size_t na;
            size_t nb;
            struct mb_slice s = mb_slice_of(copy, text.size);
            assert_ok(mb_analyzer_new(names[l], &cold, NULL));
            assert_ok(mb_analyze(cold, s, arena, &a, &na, NULL));
            assert_ok(mb_analyze(warm, s, arena, &b, &nb, NULL));
            assert_int_equal(na, nb);
            for (size_t i = 0; i < na; i++) {
                assert_true(mb_slice_equal(a[i].bytes, b[i].bytes));
                assert_int_equal(a[i].tf, b[i].tf);
                assert_true(mb_utf8_is_valid(a[i].bytes, NULL));
                assert_true(a[i].bytes.size > 0 && a[i].bytes.size <= 64);
            }
            mb_analyzer_free(cold);
            mb_free(copy);
            mb_buffer_fini(&text);
            mb_arena_reset(arena);
        }
        mb_analyzer_free(warm);
    }
    mb_arena_free(arena);
}

static void
test_analyze_when_arena_is_full_then_no_memory(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_analyzer *an;
    assert_ok(mb_analyzer_new("none", &an, NULL));
    struct mb_arena *arena = mb_arena_new(64);
    assert_non_null(arena);
    struct mb_term *terms;
    size_t n;
    struct mb_error err;
    assert_status(MB_ERR_NOMEM,
        mb_analyze(
            an, mb_slice_cstr("a b c d e f g h"), arena, &terms, &n, &err),
        NULL);
    assert_error_has(err, "arena");
    mb_arena_free(arena);
    check_with(an, "still works", "still works");
    mb_analyzer_free(an);
}

static void
test_analyzer_new_when_language_unknown_then_bad_arg(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_analyzer *an;
    struct mb_error err;
    assert_status(MB_ERR_BAD_ARG, mb_analyzer_new("klingon", &an, &err), NULL);
    assert_error_has(err, "klingon");
    mb_analyzer_free(NULL);
}

static void
test_analyzer_languages_then_each_can_be_made(void **state)
{
    MB_TEST_UNUSED(state);
    const char *const *names = mb_analyzer_languages();
    size_t n = 0;
    for (; names[n] != NULL; n++) {
        struct mb_analyzer *an;
        struct mb_error err;
        assert_status(MB_OK, mb_analyzer_new(names[n], &an, &err), &err);
        check_with(an, "2024", "2024");
        mb_analyzer_free(an);
    }
    assert_true(n > 25);
}

static void
test_analyzer_new_when_memory_is_short_then_no_memory(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_analyzer *an;
    uint64_t n = 1;
    for (;; n++) {
        mb_alloc_fail_after(n);
        mb_status st = mb_analyzer_new("english", &an, NULL);
        mb_alloc_fail_after(0);
        if (st == MB_OK)
            break;
        assert_status(MB_ERR_NOMEM, st, NULL);
    }
    assert_true(n > 4);
    check_with(an, "whole again", "whole again");
    mb_analyzer_free(an);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_analyze_plain_words_then_folded_and_counted),
        cmocka_unit_test(test_analyze_apostrophes_then_inside_words_only),
        cmocka_unit_test(test_analyze_numbers_then_points_and_thousands_kept),
        cmocka_unit_test(test_analyze_mixed_tokens_then_as_people_search),
        cmocka_unit_test(test_analyze_unicode_words_then_folded),
        cmocka_unit_test(
            test_analyze_languages_with_letters_of_their_own_then_kept),
        cmocka_unit_test(test_analyze_scripts_without_spaces_then_bigrams),
        cmocka_unit_test(test_analyze_emoji_then_a_term),
        cmocka_unit_test(test_analyze_long_words_then_cut_at_64_bytes),
        cmocka_unit_test(test_analyze_many_terms_then_table_grows),
        cmocka_unit_test(test_analyze_random_text_then_the_same_cold_and_warm),
        cmocka_unit_test(test_analyze_when_arena_is_full_then_no_memory),
        cmocka_unit_test(test_analyzer_new_when_language_unknown_then_bad_arg),
        cmocka_unit_test(test_analyzer_languages_then_each_can_be_made),
        cmocka_unit_test(test_analyzer_new_when_memory_is_short_then_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
