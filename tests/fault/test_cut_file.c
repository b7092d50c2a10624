/* SPDX-License-Identifier: Apache-2.0
 * tests/fault/test_cut_file.c - data.mdb cut short, at every page and between.
 *
 * Reading a page that the file does not hold is a signal, not an error, so a
 * cut must be found at open. Only a cut that takes nothing but free pages may
 * be opened, and then everything is there. */
#include "mb_test_store.h"

#define N_DOCUMENTS 40
#define PAGE        4096

struct image {
    uint8_t *data;
    size_t size;
};

/* A store whose file ends in free pages, as bytes. */
static struct image
make_image(struct test_store *t)
{
    struct mb_rng rng;
    struct image image;
    char path[MB_TEST_PATH];
    char id[16];
    mb_rng_init(&rng, mb_test_seed());
    test_create(t, "notes", MB_EMBED_NONE, 0);
    for (int i = 0; i < N_DOCUMENTS; i++) {
        snprintf(id, sizeof(id), "d%d", i);
        struct mb_slice text = test_words(t->arena, &rng, 3000);
        test_put(t, "notes", id, "", (const char *)text.data);
    }
    struct mb_slice big = test_words(t->arena, &rng, 200000);
    test_put(t, "notes", "big", "", (const char *)big.data);
    assert_int_equal(1, test_delete(t, "notes", "big"));
    mb_store_close(t->store);
    t->store = NULL;
    image.data =
        mb_test_read_file(mb_test_path(&t->dir, "data.mdb", path), &image.size);
    return image;
}

/* True if the store opens with its first `size` bytes; it is whole then. */
static bool
opens_when_cut(struct test_store *t, const struct image *image, size_t size,
    bool read_only)
{
    const struct mb_store_options opt = {
        .read_only = read_only, .no_sync = true};
    char path[MB_TEST_PATH];
    mb_test_write_file(
        mb_test_path(&t->dir, "data.mdb", path), image->data, size);
    mb_status st = mb_store_open(t->dir.path, &opt, &t->store, &t->err);
    if (st != MB_OK) {
        if (st != MB_ERR_CORRUPT && st != MB_ERR_FORMAT)
            fail_msg("cut to %zu bytes: %s: %s", size, mb_status_name(st),
                t->err.text);
        assert_true(t->err.text[0] != '\0');
        return false;
    }
    assert_int_equal(N_DOCUMENTS, test_collection(t, "notes").n_documents);
    test_verify(t);
    if (!read_only) {
        test_put(t, "notes", "new", "", "written after the cut");
        test_verify(t);
    }
    mb_store_close(t->store);
    t->store = NULL;
    return true;
}

static void
test_open_when_cut_anywhere_then_corrupt_or_whole(void **state)
{
    struct test_store *t = *state;
    struct image image = make_image(t);
    struct mb_rng rng;
    size_t opened = 0;
    size_t refused = 0;
    mb_rng_init(&rng, 5);
    assert_true(opens_when_cut(t, &image, image.size, false));
    for (size_t page = 0; page < image.size / PAGE; page++) {
        size_t at = page * PAGE;
        // At the page's start, and once within it.
        for (int i = 0; i < 2; i++) {
            bool read_only = mb_rng_below(&rng, 2) == 0;
            if (opens_when_cut(t, &image, at, read_only))
                opened++;
            else
                refused++;
            at += 1 + (size_t)mb_rng_below(&rng, PAGE - 1);
        }
    }
    print_message("%zu lengths refused, %zu opened\n", refused, opened);
    assert_true(refused > 100);
    assert_true(opened > 0);
    mb_free(image.data);
}

static void
test_open_when_cut_to_nothing_then_refused_not_made_anew(void **state)
{
    struct test_store *t = *state;
    struct image image = make_image(t);
    static const size_t sizes[] = {0, 1, 100, PAGE, 2 * PAGE - 1, 2 * PAGE};
    const struct mb_store_options opt = {.create = true, .no_sync = true};
    char path[MB_TEST_PATH];
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        mb_test_write_file(
            mb_test_path(&t->dir, "data.mdb", path), image.data, sizes[i]);
        assert_status(MB_ERR_CORRUPT,
            mb_store_open(t->dir.path, &opt, &t->store, &t->err), &t->err);
    }
    mb_free(image.data);
}

int
main(void)
{
#define WITH_STORE(fn)                                                         \
    cmocka_unit_test_setup_teardown(fn, test_store_setup, test_store_teardown)
    const struct CMUnitTest tests[] = {
        WITH_STORE(test_open_when_cut_anywhere_then_corrupt_or_whole),
        WITH_STORE(test_open_when_cut_to_nothing_then_refused_not_made_anew),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
