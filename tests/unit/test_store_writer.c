/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_writer.c - group commit, its failures, the full map and
 * the full queue, a drop that a crash interrupts. Operations of the test's own
 * stand in the queue: one that holds the writer until the others are queued,
 * and some that write a row, then fail as told. */
#include "mb_test_store.h"

#include <pthread.h>
#include <sys/wait.h>

#include "op.h"

/* ---- operations of the test ---- */

/* Guards what the writer and the test share; a gate is open once. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

struct row_op {
    struct mb_op base;
    const char *key;
    bool write;    /* the row, before it returns `answer` */
    bool hold;     /* wait in the body until `open` */
    bool entered;  /* under lock: the body has begun */
    bool open;     /* under lock */
    unsigned runs; /* of the body */
    mb_status answer;
    bool done;        /* under lock, as are the two below */
    mb_status status; /* what done was told */
    struct mb_error error;
};

static mb_status
row_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct row_op *op = (struct row_op *)base;
    mb_status st = MB_OK;
    op->runs++;
    if (op->hold) {
        pthread_mutex_lock(&lock);
        op->entered = true;
        pthread_cond_broadcast(&changed);
        while (!op->open) {
            pthread_cond_wait(&changed, &lock);
        }
        pthread_mutex_unlock(&lock);
    }
    if (op->write) {
        w->changed = true;
        st = kv_put(w->txn, KV_JOBS, mb_slice_cstr(op->key),
            mb_slice_cstr("a row of a test"));
    }
    if (st == MB_OK && op->answer != MB_OK)
        st = mb_error_set(err, op->answer, "row %s fails", op->key);
    return st;
}

static void
row_free(struct mb_op *op)
{
    mb_free(op);
}

static const struct op_class row_class = {"row", row_body, row_free};

static struct row_op *
row_new(const char *key, bool write, mb_status answer)
{
    struct row_op *op = op_new(&row_class, sizeof(*op));
    assert_non_null(op);
    op->key = key;
    op->write = write;
    op->answer = answer;
    return op;
}

static void
row_done(void *arg, struct mb_op *base, mb_status st, const struct mb_error *e)
{
    struct row_op *op = arg;
    MB_TEST_UNUSED(base);
    pthread_mutex_lock(&lock);
    op->status = st;
    op->error = *e;
    op->done = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void
row_submit(struct test_store *t, struct row_op *op)
{
    assert_status(MB_OK,
        mb_store_submit(t->store, &op->base, row_done, op, &t->err), &t->err);
}

static void
row_wait(struct row_op *op)
{
    pthread_mutex_lock(&lock);
    while (!op->done) {
        pthread_cond_wait(&changed, &lock);
    }
    pthread_mutex_unlock(&lock);
}

/* An operation that holds the writer; what is submitted until let_go() waits
 * in the queue and is then one batch. */
static struct row_op *
hold_writer(struct test_store *t)
{
    struct row_op *op = row_new("hold", false, MB_OK);
    op->hold = true;
    row_submit(t, op);
    pthread_mutex_lock(&lock);
    while (!op->entered) {
        pthread_cond_wait(&changed, &lock);
    }
    pthread_mutex_unlock(&lock);
    return op;
}

static void
let_go(struct row_op *op)
{
    pthread_mutex_lock(&lock);
    op->open = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    row_wait(op);
    mb_op_free(&op->base);
}

static bool
row_is_there(struct test_store *t, const char *key)
{
    struct mb_snapshot *snap;
    struct mb_slice val;
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    mb_status st = kv_get(snap->txn, KV_JOBS, mb_slice_cstr(key), &val);
    mb_snapshot_end(snap);
    return st == MB_OK;
}

static uint64_t
n_commits(struct test_store *t)
{
    struct mb_store_stats stats;
    assert_ok(mb_store_stats(t->store, &stats, NULL));
    return stats.n_commits;
}

/* ---- batches ---- */

static void
test_batch_when_all_succeed_then_one_commit(void **state)
{
    struct test_store *t = *state;
    static const char *const keys[] = {"a", "b", "c", "d"};
    struct row_op *ops[4];
    uint64_t before = n_commits(t);
    struct row_op *hold = hold_writer(t);
    for (int i = 0; i < 4; i++) {
        ops[i] = row_new(keys[i], true, MB_OK);
        row_submit(t, ops[i]);
    }
    let_go(hold);
    for (int i = 0; i < 4; i++) {
        row_wait(ops[i]);
        assert_int_equal(MB_OK, ops[i]->status);
        assert_int_equal(1, ops[i]->runs);
        assert_true(row_is_there(t, keys[i]));
        mb_op_free(&ops[i]->base);
    }
    assert_int_equal(before + 1, n_commits(t));
}

static void
test_batch_when_one_refuses_then_it_alone_fails(void **state)
{
    struct test_store *t = *state;
    uint64_t before = n_commits(t);
    struct row_op *hold = hold_writer(t);
    struct row_op *a = row_new("a", true, MB_OK);
    struct row_op *b = row_new("b", false, MB_ERR_NOT_FOUND);
    struct row_op *c = row_new("c", true, MB_OK);
    row_submit(t, a);
    row_submit(t, b);
    row_submit(t, c);
    let_go(hold);
    row_wait(c);
    assert_int_equal(MB_OK, a->status);
    assert_int_equal(MB_ERR_NOT_FOUND, b->status);
    assert_string_equal("row b fails", b->error.text);
    assert_int_equal(MB_OK, c->status);
    // Nothing was undone for it.
    assert_int_equal(1, a->runs);
    assert_int_equal(1, c->runs);
    assert_int_equal(before + 1, n_commits(t));
    assert_true(row_is_there(t, "a"));
    assert_true(row_is_there(t, "c"));
    mb_op_free(&a->base);
    mb_op_free(&b->base);
    mb_op_free(&c->base);
}

static void
test_batch_when_one_fails_after_writing_then_the_rest_is_kept(void **state)
{
    struct test_store *t = *state;
    uint64_t before = n_commits(t);
    struct row_op *hold = hold_writer(t);
    struct row_op *a = row_new("a", true, MB_OK);
    struct row_op *b = row_new("b", true, MB_ERR_CORRUPT);
    struct row_op *c = row_new("c", true, MB_OK);
    row_submit(t, a);
    row_submit(t, b);
    row_submit(t, c);
    let_go(hold);
    row_wait(c);
    assert_int_equal(MB_OK, a->status);
    assert_int_equal(MB_ERR_CORRUPT, b->status);
    assert_string_equal("row b fails", b->error.text);
    assert_int_equal(MB_OK, c->status);
    // The batch was undone at b; then each ran in a transaction of its own.
    assert_int_equal(2, a->runs);
    assert_int_equal(2, b->runs);
    assert_int_equal(1, c->runs);
    assert_int_equal(before + 2, n_commits(t));
    assert_true(row_is_there(t, "a"));
    assert_false(row_is_there(t, "b"));
    assert_true(row_is_there(t, "c"));
    mb_op_free(&a->base);
    mb_op_free(&b->base);
    mb_op_free(&c->base);
}

/* Puts share a commit with an operation that has it undone: numbers, terms and
 * counters gathered in memory must be forgotten with it. */
static void
test_batch_when_undone_with_puts_then_store_is_sound(void **state)
{
    struct test_store *t = *state;
    static const char *const ids[] = {"one", "two", "three"};
    test_create(t, "notes", MB_EMBED_NONE, 0);
    struct mb_collection c = test_collection(t, "notes");
    struct row_op *hold = hold_writer(t);
    struct row_op *bad = row_new("bad", true, MB_ERR_IO);
    struct row_op *puts[3];
    struct mb_op *ops[3];
    for (int i = 0; i < 3; i++) {
        // Told as a row is: only the callback's argument is used.
        puts[i] = row_new(ids[i], false, MB_OK);
        ops[i] = test_put_op(t, &c, ids[i], "", mb_slice_cstr("same words"),
            mb_slice_of(NULL, 0), NULL);
        assert_ok(mb_store_submit(t->store, ops[i], row_done, puts[i], NULL));
    }
    row_submit(t, bad);
    let_go(hold);
    row_wait(bad);
    assert_int_equal(MB_ERR_IO, bad->status);
    for (int i = 0; i < 3; i++) {
        struct mb_put_result result;
        row_wait(puts[i]);
        assert_int_equal(MB_OK, puts[i]->status);
        mb_op_put_result(ops[i], &result);
        assert_int_equal(1, result.stored);
        assert_string_equal("same words", test_text(t, "notes", ids[i]));
        mb_op_free(ops[i]);
        mb_op_free(&puts[i]->base);
    }
    assert_int_equal(3, test_collection(t, "notes").n_documents);
    test_verify(t);
    mb_op_free(&bad->base);
}

/* ---- the queue ---- */

static void
test_submit_when_queue_is_full_then_busy_and_op_is_kept(void **state)
{
    struct test_store *t = *state;
    const struct mb_store_options opt = {
        .create = true, .no_sync = true, .max_queued_ops = 2};
    mb_store_close(t->store);
    assert_ok(mb_store_open(t->dir.path, &opt, &t->store, NULL));
    struct row_op *hold = hold_writer(t);
    struct row_op *a = row_new("a", true, MB_OK);
    struct row_op *b = row_new("b", true, MB_OK);
    struct row_op *c = row_new("c", true, MB_OK);
    row_submit(t, a);
    row_submit(t, b);
    assert_status(MB_ERR_BUSY,
        mb_store_submit(t->store, &c->base, row_done, c, &t->err), &t->err);
    assert_error_has(t->err, "2 operations are queued");
    let_go(hold);
    row_wait(b);
    row_submit(t, c); // still ours, and welcome now
    row_wait(c);
    assert_int_equal(MB_OK, c->status);
    assert_true(row_is_there(t, "c"));
    mb_op_free(&a->base);
    mb_op_free(&b->base);
    mb_op_free(&c->base);
}

static void
test_submit_when_read_only_then_refused(void **state)
{
    struct test_store *t = *state;
    const struct mb_store_options opt = {.read_only = true};
    mb_store_close(t->store);
    assert_ok(mb_store_open(t->dir.path, &opt, &t->store, NULL));
    struct row_op *a = row_new("a", true, MB_OK);
    assert_status(MB_ERR_READ_ONLY,
        mb_store_submit(t->store, &a->base, row_done, a, &t->err), &t->err);
    mb_op_free(&a->base);
}

/* ---- the map ---- */

static void
test_put_when_map_is_full_then_it_grows(void **state)
{
    struct test_store *t = *state;
    const struct mb_store_options opt = {
        .create = true, .no_sync = true, .map_bytes = (uint64_t)1 << 20};
    struct mb_store_stats stats;
    struct mb_rng rng;
    char id[16];
    mb_rng_init(&rng, mb_test_seed());
    mb_store_close(t->store);
    assert_ok(mb_store_open(t->dir.path, &opt, &t->store, NULL));
    test_create(t, "notes", MB_EMBED_NONE, 0);
    for (int i = 0; i < 60; i++) {
        snprintf(id, sizeof(id), "d%d", i);
        struct mb_slice text = test_words(t->arena, &rng, 50000);
        test_put(t, "notes", id, "", (const char *)text.data);
    }
    assert_ok(mb_store_stats(t->store, &stats, NULL));
    assert_true(stats.file_bytes > opt.map_bytes);
    assert_true(stats.map_bytes >= stats.file_bytes);
    assert_int_equal(60, test_collection(t, "notes").n_documents);
    test_verify(t);

    // One that needs several doublings at once, and erasing in a full map.
    struct mb_op *op;
    assert_ok(mb_op_drop_new(mb_slice_cstr("notes"), &op, NULL));
    assert_ok(test_apply(t, op));
    test_create(t, "notes", MB_EMBED_NONE, 0);
    test_put(t, "notes", "again", "", "words");
    test_verify(t);
}

/* ---- a drop ---- */

static uint64_t
rows_of(struct test_store *t, const char *table)
{
    struct mb_snapshot *snap;
    const char *name;
    uint64_t rows;
    uint64_t bytes;
    uint64_t out = UINT64_MAX;
    assert_ok(mb_snapshot_begin(t->store, &snap, NULL));
    for (size_t i = 0; mb_store_table_stats(snap, i, &name, &rows, &bytes);
         i++) {
        if (strcmp(name, table) == 0)
            out = rows;
    }
    mb_snapshot_end(snap);
    return out;
}

static bool
all_rows_are_gone(void *arg)
{
    static const char *const tables[] = {"documents", "document_ids", "texts",
        "segments", "terms", "postings", "lengths", "fields"};
    for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
        if (rows_of(arg, tables[i]) != 0)
            return false;
    }
    return true;
}

/* Ends the process on the writer thread, after the commit and before any row
 * is erased. */
static void
die(void *arg, struct mb_op *op, mb_status st, const struct mb_error *err)
{
    MB_TEST_UNUSED(arg);
    MB_TEST_UNUSED(op);
    MB_TEST_UNUSED(err);
    _exit(st == MB_OK ? 42 : 1);
}

/* In a child: drop the collection and die at once. */
static void
drop_and_die(const char *path, const char *name)
{
    const struct mb_store_options opt = {.no_sync = true};
    struct mb_store *store;
    struct mb_op *op;
    if (mb_store_open(path, &opt, &store, NULL) != MB_OK ||
        mb_op_drop_new(mb_slice_cstr(name), &op, NULL) != MB_OK ||
        mb_store_submit(store, op, die, NULL, NULL) != MB_OK)
        _exit(2);
    for (;;) {
        pause();
    }
}

static void
test_drop_when_interrupted_then_next_open_goes_on(void **state)
{
    struct test_store *t = *state;
    char id[16];
    int status;
    test_create(t, "notes", MB_EMBED_NONE, 0);
    for (int i = 0; i < 100; i++) {
        snprintf(id, sizeof(id), "d%d", i);
        test_put(t, "notes", id, "", "several plain words");
    }
    mb_store_close(t->store);
    t->store = NULL;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        drop_and_die(t->dir.path, "notes");
    assert_int_equal(child, waitpid(child, &status, 0));
    assert_true(WIFEXITED(status));
    assert_int_equal(42, WEXITSTATUS(status));

    // Nobody erases while it is read only: the rows are still there, and no
    // damage.
    const struct mb_store_options look = {.read_only = true};
    assert_ok(mb_store_open(t->dir.path, &look, &t->store, NULL));
    assert_int_equal(100, rows_of(t, "documents"));
    test_verify(t);
    mb_store_close(t->store);

    test_store_open(t);
    assert_true(mb_test_wait(all_rows_are_gone, t, 20000));
    test_verify(t);
    test_create(t, "notes", MB_EMBED_NONE, 0);
    assert_null(test_text(t, "notes", "d1"));
}

int
main(void)
{
#define WITH_STORE(fn)                                                         \
    cmocka_unit_test_setup_teardown(fn, test_store_setup, test_store_teardown)
    const struct CMUnitTest tests[] = {
        WITH_STORE(test_batch_when_all_succeed_then_one_commit),
        WITH_STORE(test_batch_when_one_refuses_then_it_alone_fails),
        WITH_STORE(
            test_batch_when_one_fails_after_writing_then_the_rest_is_kept),
        WITH_STORE(test_batch_when_undone_with_puts_then_store_is_sound),
        WITH_STORE(test_submit_when_queue_is_full_then_busy_and_op_is_kept),
        WITH_STORE(test_submit_when_read_only_then_refused),
        WITH_STORE(test_put_when_map_is_full_then_it_grows),
        WITH_STORE(test_drop_when_interrupted_then_next_open_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
