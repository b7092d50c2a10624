/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_daemon_keys.c - files of CURVE keys, good and bad. */
#include "mb_test.h"

#include "server_keys.h"

/* 40 digits, the first pair of RFC 27's example. */
#define KEY_A "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
#define KEY_B "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"

/* Read a file of this text as at most two keys. */
static mb_status
read_text(const char *text, char keys[2][KEY_TEXT + 1], size_t *n)
{
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    mb_status st;

    mb_test_path(&dir, "keys", path);
    mb_test_write_file(path, text, strlen(text));
    st = keys_read(path, 2, keys, n, NULL);
    mb_test_dir_end(&dir);
    return st;
}

static void
test_keys_when_good_then_all_are_read(void **state)
{
    MB_TEST_UNUSED(state);
    char keys[2][KEY_TEXT + 1];
    size_t n = 0;

    assert_ok(read_text("# who\r\n\n  " KEY_A " a name\r\n" KEY_B, keys, &n));
    assert_int_equal(2, n);
    assert_string_equal(KEY_A, keys[0]);
    assert_string_equal(KEY_B, keys[1]);
    // The largest value of five digits: 0xffffffff.
    assert_ok(read_text("%nSc0%nSc0%nSc0%nSc0%nSc0%nSc0%nSc0%nSc0", keys, &n));
}

static void
test_keys_when_bad_then_denied(void **state)
{
    MB_TEST_UNUSED(state);

    static const struct {
        const char *name;
        const char *text;
    } bad[] = {
        {"no key", "# none\n"},
        {"too short", "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hI\n"},
        {"too long", KEY_A "x\n"},
        {"no digit", "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{h~D\n"},
        {"group of more than 32 bits",
            "%nSc1%nSc0%nSc0%nSc0%nSc0%nSc0%nSc0%nSc0\n"},
        {"last group of more than 32 bits",
            "%nSc0%nSc0%nSc0%nSc0%nSc0%nSc0%nSc0%nSc1\n"},
        {"second bad", KEY_A "\nhello\n"},
        {"more than there is room for", KEY_A "\n" KEY_B "\n" KEY_A "\n"},
    };

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char keys[2][KEY_TEXT + 1];
        size_t n = 0;

        if (read_text(bad[i].text, keys, &n) != MB_ERR_DENIED)
            fail_msg("%s: not denied", bad[i].name);
    }
}

static void
test_list_when_new_file_is_bad_then_old_keys_stay(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct key_list list;

    key_list_init(&list);
    assert_false(key_list_has(&list, KEY_A));
    mb_test_path(&dir, "keys", path);
    mb_test_write_file(path, KEY_A, strlen(KEY_A));
    assert_ok(key_list_read(&list, path, NULL));
    mb_test_write_file(path, "oops", 4);
    assert_int_equal(MB_ERR_DENIED, key_list_read(&list, path, NULL));
    assert_int_equal(MB_ERR_IO, key_list_read(&list, "/nowhere/at", NULL));
    assert_true(key_list_has(&list, KEY_A));
    assert_false(key_list_has(&list, KEY_B));
    mb_test_write_file(path, KEY_B, strlen(KEY_B));
    assert_ok(key_list_read(&list, path, NULL));
    assert_false(key_list_has(&list, KEY_A));
    assert_true(key_list_has(&list, KEY_B));
    key_list_fini(&list);
    mb_test_dir_end(&dir);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys_when_good_then_all_are_read),
        cmocka_unit_test(test_keys_when_bad_then_denied),
        cmocka_unit_test(test_list_when_new_file_is_bad_then_old_keys_stay),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
