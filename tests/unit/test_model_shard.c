/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_shard.c - token shards: round trip, and bad files. */
#include "mb_test.h"

#include "mb_shard.h"
#include "mb_test_gguf.h"

#define HEADER 128

static struct mb_tokenizer *
tokenizer(bool add_space)
{
    struct test_gguf g;
    const struct test_piece pieces[] = {{"ab", -1, 0}, {"cd", -2, 0}};
    test_vocab_file(&g, pieces, 2, add_space);
    struct mb_tokenizer *tok = test_tokenizer_of(&g);
    test_gguf_free(&g);
    return tok;
}

/* Three documents, one of them empty, as a shard at path. */
static void
write_shard(const char *path, const struct mb_tokenizer *tok)
{
    struct mb_token tokens[5] = {
        {259, 0, 2}, {260, 2, 2}, {5, 4, 1}, {259, 5, 2}, {259, 7, 2}};
    struct shard_writer *w = NULL;
    struct mb_error err;
    assert_status(MB_OK, shard_writer_new(path, tok, &w, &err), &err);
    assert_status(MB_OK, shard_writer_add(w, tokens, 3, 5, &err), &err);
    assert_status(MB_OK, shard_writer_add(w, tokens, 0, 0, &err), &err);
    assert_status(MB_OK, shard_writer_add(w, tokens + 3, 2, 4, &err), &err);
    assert_status(MB_OK, shard_writer_finish(w, &err), &err);
}

static void
test_open_when_written_then_same_tokens(void **state)
{
    MB_TEST_UNUSED(state);
    // 1 and 2 are <s> and </s>, round every document.
    const mb_token_id want[] = {1, 259, 260, 5, 2, 1, 2, 1, 259, 259, 2};
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct shard *s = NULL;
    struct mb_error err;
    mb_token_id got[11];
    struct mb_tokenizer *tok = tokenizer(true);
    struct mb_tokenizer *other = tokenizer(false);
    write_shard(mb_test_path(&dir, "s", path), tok);
    assert_status(MB_OK, shard_open(path, &s, &err), &err);
    assert_int_equal(11, shard_n_tokens(s));
    assert_int_equal(3, shard_n_documents(s));
    assert_int_equal(9, shard_text_bytes(s));
    assert_int_equal(0, shard_document(s, 0));
    assert_int_equal(5, shard_document(s, 1));
    assert_int_equal(7, shard_document(s, 2));
    assert_int_equal(11, shard_document(s, 3));
    shard_read(s, 0, 11, got);
    assert_memory_equal(want, got, sizeof want);
    shard_read(s, 7, 2, got);
    assert_memory_equal(want + 7, got, 2 * sizeof *got);
    assert_true(shard_is_of(s, tok));
    assert_false(shard_is_of(s, other));
    shard_close(s);
    mb_tokenizer_free(tok);
    mb_tokenizer_free(other);
    mb_test_dir_end(&dir);
}

static void
test_add_when_token_is_unknown_then_bad_arg(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct shard_writer *w = NULL;
    struct mb_error err;
    struct mb_tokenizer *tok = tokenizer(true);
    struct mb_token bad[2] = {{-1, 0, 1}, {261, 0, 1}};
    mb_test_path(&dir, "s", path);
    assert_ok(shard_writer_new(path, tok, &w, &err));
    assert_status(MB_ERR_BAD_ARG, shard_writer_add(w, bad, 1, 1, &err), &err);
    assert_status(
        MB_ERR_BAD_ARG, shard_writer_add(w, bad + 1, 1, 1, &err), &err);
    shard_writer_free(w);
    assert_false(mb_test_exists(path));
    assert_status(MB_ERR_NOT_FOUND,
        shard_writer_new("/nonexistent/x/s", tok, &w, &err), &err);
    mb_tokenizer_free(tok);
    mb_test_dir_end(&dir);
}

/* What open says of bytes that are not as they were written. */
static mb_status
open_changed(
    const char *path, const uint8_t *data, size_t size, struct mb_error *err)
{
    struct shard *s = NULL;
    mb_test_write_file(path, data, size);
    mb_status st = shard_open(path, &s, err);
    assert_true(st == MB_OK || s == NULL);
    shard_close(s);
    return st;
}

/* The header with a field changed and its checksum made right again. */
static mb_status
open_header(const char *path, const uint8_t *data, size_t size, size_t at,
    uint64_t value, struct mb_error *err)
{
    uint8_t copy[512];
    memcpy(copy, data, size);
    mb_put_le64(copy + at, value);
    mb_put_le64(copy + 120, mb_hash64(copy, 120, 0));
    return open_changed(path, copy, size, err);
}

/* The fingerprint is of what tokens say, and a padded vocabulary says no more.
 */
static void
test_shard_when_vocabulary_has_another_size_then_not_of_it(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct shard *s = NULL;
    struct mb_error err;
    struct mb_tokenizer *tok = tokenizer(true);
    size_t size;
    write_shard(mb_test_path(&dir, "s", path), tok);
    uint8_t *data = mb_test_read_file(path, &size);
    mb_put_le64(data + 56, mb_get_le64(data + 56) + 1);
    mb_put_le64(data + 120, mb_hash64(data, 120, 0));
    mb_test_write_file(path, data, size);
    assert_status(MB_OK, shard_open(path, &s, &err), &err);
    assert_false(shard_is_of(s, tok));
    shard_close(s);
    mb_free(data);
    mb_tokenizer_free(tok);
    mb_test_dir_end(&dir);
}

static void
test_open_when_bytes_are_damaged_then_refused(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char path[MB_TEST_PATH];
    struct mb_error err;
    struct mb_tokenizer *tok = tokenizer(true);
    size_t size;
    write_shard(mb_test_path(&dir, "s", path), tok);
    uint8_t *data = mb_test_read_file(path, &size);
    assert_int_equal(HEADER + 24 + 32, size);
    assert_status(MB_OK, open_changed(path, data, size, &err), &err);
    for (size_t i = 0; i < size; i++) {
        data[i] ^= 4;
        mb_status st = open_changed(path, data, size, &err);
        data[i] ^= 4;
        if (st != (i < 12 ? MB_ERR_FORMAT : MB_ERR_CORRUPT))
            fail_msg("byte %zu flipped: %s", i, mb_status_name(st));
    }
    for (size_t n = 0; n < size; n++) {
        mb_status st = open_changed(path, data, n, &err);
        if (st != (n < HEADER ? MB_ERR_FORMAT : MB_ERR_CORRUPT))
            fail_msg("cut to %zu bytes: %s", n, mb_status_name(st));
    }
    // Fields that lie, with a checksum that is right.
    const size_t fields[] = {32, 40, 56};
    for (size_t i = 0; i < 3; i++) {
        assert_status(MB_ERR_CORRUPT,
            open_header(path, data, size, fields[i], 2, &err), &err);
        assert_status(MB_ERR_CORRUPT,
            open_header(
                path, data, size, fields[i], i < 2 ? UINT64_MAX : 260, &err),
            &err);
    }
    assert_status(MB_ERR_CORRUPT,
        open_header(path, data, size, 8, UINT64_C(3) << 32 | 1, &err), &err);
    // A document that begins before the one before it; checksums are right.
    mb_put_le64(data + HEADER + 24 + 16, 3);
    mb_put_le64(data + 64, mb_hash64(data + HEADER, size - HEADER, 0));
    assert_status(
        MB_ERR_CORRUPT, open_header(path, data, size, 48, 9, &err), &err);
    assert_error_has(err, "document 2");
    mb_free(data);
    mb_tokenizer_free(tok);
    mb_test_dir_end(&dir);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_when_written_then_same_tokens),
        cmocka_unit_test(test_add_when_token_is_unknown_then_bad_arg),
        cmocka_unit_test(
            test_shard_when_vocabulary_has_another_size_then_not_of_it),
        cmocka_unit_test(test_open_when_bytes_are_damaged_then_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
