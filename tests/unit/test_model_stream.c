/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_stream.c - text from bytes: characters, stop strings.
 *
 * The rule that all tests rest on: however the bytes are cut, the same text
 * comes out, each delivery is whole characters, and nothing delivered is ever
 * taken back. */
#include "mb_test.h"

#include "stream.h"

#define MAX_STOPS 4

/* A stream over bytes with stop strings, all as C strings. */
struct rig {
    struct mb_slice stops[MAX_STOPS];
    struct stream s;
};

static void
rig_begin(struct rig *r, const char *const *stops)
{
    size_t n = 0;

    while (stops[n] != NULL) {
        r->stops[n] = mb_slice_cstr(stops[n]);
        n++;
    }
    stream_init(&r->s, r->stops, n, 4096);
}

/* Feed in pieces of at most `step` bytes (0: random sizes), then end. */
static void
feed(struct stream *s, struct mb_slice bytes, size_t step, struct mb_rng *rng)
{
    size_t pos = 0;
    size_t delivered = 0;

    while (pos < bytes.size) {
        size_t n = step > 0 ? step : 1 + mb_rng_below(rng, 7);

        if (n > bytes.size - pos)
            n = bytes.size - pos;
        assert_ok(stream_feed(s, mb_slice_of(bytes.data + pos, n)));
        pos += n;
        assert_true(s->text.size >= delivered);
        assert_true(mb_utf8_is_valid(
            mb_slice_of(s->text.data + delivered, s->text.size - delivered),
            NULL));
        delivered = s->text.size;
    }
    assert_ok(stream_end(s));
}

static void
check(const char *const *stops, const char *bytes, const char *want,
    bool want_stop)
{
    struct mb_slice in = mb_slice_cstr(bytes);

    for (size_t step = 1; step <= in.size + 1; step++) {
        struct rig r;

        rig_begin(&r, stops);
        feed(&r.s, in, step, NULL);
        assert_slice_str(want, mb_buffer_slice(&r.s.text));
        assert_int_equal(want_stop, r.s.is_stopped);
        stream_fini(&r.s);
    }
}

static void
test_feed_then_text_ends_before_stop_string(void **state)
{
    static const char *const none[] = {NULL};
    static const char *const line[] = {"\n", NULL};
    static const char *const word[] = {"STOP", NULL};
    static const char *const two[] = {"abcd", "bc", NULL};
    static const char *const same_end[] = {"c", "bc", NULL};
    static const char *const repeat[] = {"aab", NULL};
    static const char *const euro[] = {"\xe2\x82\xac", NULL};
    MB_TEST_UNUSED(state);

    check(none, "hello", "hello", false);
    check(none, "", "", false);
    check(line, "one\ntwo", "one", true);
    check(line, "\n", "", true);
    check(word, "don't STOP now", "don't ", true);
    check(word, "don't STO", "don't STO", false);
    check(word, "STSTOP", "ST", true);
    check(word, "SSTOSTOPX", "SSTO", true);
    check(two, "xabcd", "xa", true);
    check(same_end, "xbc", "x", true);
    check(repeat, "aaaab", "aa", true);
    check(repeat, "aaaa", "aaaa", false);
    check(euro, "5 \xe2\x82\xac", "5 ", true);
    check(euro, "5 \xe2\x82\xad", "5 \xe2\x82\xad", false);
}

#define BAD "\xef\xbf\xbd"

static void
test_feed_when_not_utf8_then_repaired(void **state)
{
    static const char *const none[] = {NULL};
    static const char *const stop[] = {"\x82", NULL};
    MB_TEST_UNUSED(state);

    check(none, "\xc3\xa9t\xc3\xa9", "\xc3\xa9t\xc3\xa9", false);
    check(none, "a\xffz", "a" BAD "z", false);
    check(none, "a\xe2\x82", "a" BAD, false);
    check(none, "a\xe2\x82zz", "a" BAD "zz", false);
    check(none, "\xf0\x9f\x98\x80!", "\xf0\x9f\x98\x80!", false);
    check(none, "\xf0\x9f\x98", BAD, false);
    check(none, "\xe0\x80\x80", BAD BAD BAD, false);
    check(none, "\x80\x80\x80\x80", BAD BAD BAD BAD, false);
    // Stop strings are bytes: one may end a text within a character.
    check(stop, "a\xe2\x82\xac", "a" BAD, true);
}

static void
test_feed_then_whole_characters_as_soon_as_they_are_sure(void **state)
{
    static const char *const stops[] = {"END", NULL};
    struct rig r;
    MB_TEST_UNUSED(state);

    rig_begin(&r, stops);
    assert_ok(stream_feed(&r.s, mb_slice_cstr("ab\xe2\x82")));
    assert_slice_str("ab", mb_buffer_slice(&r.s.text));
    assert_ok(stream_feed(&r.s, mb_slice_cstr("\xac"
                                              "E")));
    assert_slice_str("ab\xe2\x82\xac", mb_buffer_slice(&r.s.text));
    assert_ok(stream_feed(&r.s, mb_slice_cstr("NE")));
    assert_slice_str("ab\xe2\x82\xac"
                     "EN",
        mb_buffer_slice(&r.s.text));
    assert_ok(stream_feed(&r.s, mb_slice_cstr("ND")));
    assert_slice_str("ab\xe2\x82\xac"
                     "EN",
        mb_buffer_slice(&r.s.text));
    assert_true(r.s.is_stopped);
    assert_ok(stream_feed(&r.s, mb_slice_cstr("more")));
    assert_ok(stream_end(&r.s));
    assert_slice_str("ab\xe2\x82\xac"
                     "EN",
        mb_buffer_slice(&r.s.text));
    stream_fini(&r.s);
}

/* Random bytes of few kinds, random stops, random cuts: as in one piece, and
 * as a plain search of the whole says. */
static void
test_feed_when_random_then_as_in_one_piece(void **state)
{
    static const char alphabet[] = "aab\xe2\x82\xac\xf0\x9f\x98\x80\xc3";
    struct mb_rng rng;
    MB_TEST_UNUSED(state);

    mb_rng_init(&rng, mb_test_seed());
    for (int round = 0; round < 3000; round++) {
        char bytes[40];
        char stop_text[2][5];
        const char *stops[3] = {stop_text[0], stop_text[1], NULL};
        struct mb_slice in;
        struct rig whole;
        struct rig cut;
        size_t n = mb_rng_below(&rng, sizeof bytes - 1);

        for (size_t i = 0; i < n; i++)
            bytes[i] = alphabet[mb_rng_below(&rng, sizeof alphabet - 1)];
        for (int i = 0; i < 2; i++) {
            size_t size = 2 + mb_rng_below(&rng, 3);

            for (size_t j = 0; j < size; j++)
                stop_text[i][j] =
                    alphabet[mb_rng_below(&rng, sizeof alphabet - 1)];
            stop_text[i][size] = 0;
        }
        in = mb_slice_of(bytes, n);
        rig_begin(&whole, stops);
        rig_begin(&cut, stops);
        feed(&whole.s, in, n + 1, NULL);
        feed(&cut.s, in, 0, &rng);
        assert_true(mb_slice_equal(
            mb_buffer_slice(&whole.s.text), mb_buffer_slice(&cut.s.text)));
        assert_int_equal(whole.s.is_stopped, cut.s.is_stopped);
        stream_fini(&whole.s);
        stream_fini(&cut.s);
    }
}

static void
test_feed_when_too_large_then_error(void **state)
{
    struct stream s;
    MB_TEST_UNUSED(state);

    stream_init(&s, NULL, 0, 4);
    assert_ok(stream_feed(&s, mb_slice_cstr("\xff\xff\xff\xff")));
    assert_status(
        MB_ERR_TOO_LARGE, stream_feed(&s, mb_slice_cstr("abcde")), NULL);
    stream_fini(&s);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_feed_then_text_ends_before_stop_string),
        cmocka_unit_test(test_feed_when_not_utf8_then_repaired),
        cmocka_unit_test(
            test_feed_then_whole_characters_as_soon_as_they_are_sure),
        cmocka_unit_test(test_feed_when_random_then_as_in_one_piece),
        cmocka_unit_test(test_feed_when_too_large_then_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
