/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_note.c - notes of collections; vectors that come late.
 */
#include "mb_test.h"

#include "mb_test_store.h"

static mb_status
set_note(
    struct test_store *t, const char *coll, const char *name, const char *text)
{
    struct mb_op *op = NULL;
    mb_status st = mb_op_note_new(
        mb_slice_cstr(coll), name, mb_slice_cstr(text), &op, &t->err);

    if (st == MB_OK)
        st = mb_store_apply(t->store, op, &t->err);
    mb_op_free(op);
    return st;
}

/* The note's text, NULL if there is none. */
static const char *
note(struct test_store *t, const char *coll, const char *name)
{
    struct mb_snapshot *snap;
    struct mb_collection c;
    struct mb_slice text;
    const char *out = NULL;

    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_ok(mb_collection_get(snap, mb_slice_cstr(coll), &c, NULL));
    mb_status st = mb_note_get(snap, &c, name, &text, &t->err);
    if (st == MB_OK)
        out = mb_arena_strndup(t->arena, (const char *)text.data, text.size);
    else
        assert_status(MB_ERR_NOT_FOUND, st, &t->err);
    mb_snapshot_end(snap);
    return out;
}

static uint64_t
broken(struct test_store *t)
{
    struct mb_verify_result r;
    struct mb_snapshot *snap;

    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    assert_ok(mb_store_verify(snap, NULL, NULL, NULL, &r, NULL));
    mb_snapshot_end(snap);
    return r.n_broken;
}

static void
test_note_when_set_then_kept_and_changed(void **state)
{
    struct test_store *t = *state;

    test_create(t, "a", MB_EMBED_NONE, 0);
    test_create(t, "b", MB_EMBED_NONE, 0);
    assert_null(note(t, "a", "template"));
    assert_ok(set_note(t, "a", "template", "one"));
    assert_ok(set_note(t, "a", "temp", "other"));
    assert_ok(set_note(t, "b", "template", "of b"));
    assert_string_equal("one", note(t, "a", "template"));
    assert_ok(set_note(t, "a", "template", "a longer one"));
    test_store_reopen(t);
    assert_string_equal("a longer one", note(t, "a", "template"));
    assert_string_equal("other", note(t, "a", "temp"));
    assert_string_equal("of b", note(t, "b", "template"));
    assert_int_equal(0, broken(t));
    assert_ok(set_note(t, "a", "template", ""));
    assert_ok(set_note(t, "a", "never", ""));
    assert_null(note(t, "a", "template"));
    assert_string_equal("of b", note(t, "b", "template"));
}

static void
test_note_when_collection_is_dropped_then_gone(void **state)
{
    struct test_store *t = *state;
    struct mb_op *op;

    test_create(t, "a", MB_EMBED_NONE, 0);
    assert_ok(set_note(t, "a", "template", "one"));
    assert_ok(mb_op_drop_new(mb_slice_cstr("a"), &op, NULL));
    assert_ok(mb_store_apply(t->store, op, NULL));
    mb_op_free(op);
    assert_int_equal(0, broken(t));
    test_create(t, "a", MB_EMBED_NONE, 0);
    assert_null(note(t, "a", "template"));
}

static void
test_note_when_wrong_then_refused(void **state)
{
    struct test_store *t = *state;
    static uint8_t large[MB_MAX_NOTE + 1];
    struct mb_op *op;

    test_create(t, "a", MB_EMBED_NONE, 0);
    assert_status(MB_ERR_NOT_FOUND, set_note(t, "none", "n", "x"), NULL);
    assert_status(MB_ERR_TOO_LARGE,
        mb_op_note_new(mb_slice_cstr("a"), "n",
            mb_slice_of(large, sizeof large), &op, NULL),
        NULL);
    assert_status(MB_ERR_TOO_LARGE,
        mb_op_note_new(mb_slice_cstr("a"),
            "a name of more than 32 bytes, it is", mb_slice_cstr("x"), &op,
            NULL),
        NULL);
    assert_status(MB_ERR_TOO_LARGE,
        mb_op_note_new(mb_slice_cstr("a"), "", mb_slice_cstr("x"), &op, NULL),
        NULL);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            test_note_when_set_then_kept_and_changed, test_store_setup,
            test_store_teardown),
        cmocka_unit_test_setup_teardown(
            test_note_when_collection_is_dropped_then_gone, test_store_setup,
            test_store_teardown),
        cmocka_unit_test_setup_teardown(test_note_when_wrong_then_refused,
            test_store_setup, test_store_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
