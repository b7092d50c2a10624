/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_base_threads.c - threads, the pool, clocks, the platform. */
#include "mb_test.h"

#include <pthread.h>
#include <stdatomic.h>

/* ---- threads ---- */

struct told {
    char name[32];
    int *value;
};

static void
tell_name(void *arg)
{
    struct told *told = arg;
    snprintf(told->name, sizeof told->name, "%s", mb_thread_name());
    *told->value = 7;
}

static void
test_thread_runs_under_its_name(void **state)
{
    MB_TEST_UNUSED(state);
    int value = 0;
    struct told told = {.value = &value};
    struct mb_thread *thread = NULL;
    assert_string_equal("main", mb_thread_name());
    assert_ok(mb_thread_start(&thread, "mb-test", tell_name, &told));
    mb_thread_join(thread);
    assert_string_equal("mb-test", told.name);
    assert_int_equal(7, value);
    mb_thread_join(NULL);
}

static void
test_thread_name_when_long_then_cut(void **state)
{
    MB_TEST_UNUSED(state);
    int value = 0;
    struct told told = {.value = &value};
    struct mb_thread *thread = NULL;
    assert_ok(
        mb_thread_start(&thread, "mb-a-very-long-name", tell_name, &told));
    mb_thread_join(thread);
    assert_string_equal("mb-a-very-long-", told.name);
}

static void
lower_own_priority(void *arg)
{
    mb_thread_set_background();
    *(bool *)arg = true;
}

static void
test_thread_in_the_background_still_runs(void **state)
{
    MB_TEST_UNUSED(state);
    bool ran = false;
    struct mb_thread *thread = NULL;
    assert_ok(mb_thread_start(&thread, "mb-low", lower_own_priority, &ran));
    mb_thread_join(thread);
    assert_true(ran);
}

static void
test_thread_when_memory_is_short_then_nomem(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_thread *thread = NULL;
    mb_alloc_fail_after(1);
    mb_status st = mb_thread_start(&thread, "mb-test", tell_name, NULL);
    mb_alloc_fail_after(0);
    assert_int_equal(MB_ERR_NOMEM, st);
    assert_null(thread);
}

/* ---- pool ---- */

static void
count_one(void *arg)
{
    atomic_fetch_add((atomic_size_t *)arg, 1);
}

static void
test_pool_free_runs_all_that_was_queued(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_pool *pool = NULL;
    atomic_size_t n = 0;
    assert_ok(mb_pool_new(&pool, "mb-work", 3, 1000));
    for (size_t i = 0; i < 1000; i++) {
        // The workers may be slower than we are: then wait for room.
        while (mb_pool_submit(pool, count_one, &n) == MB_ERR_BUSY)
            ;
    }
    mb_pool_free(pool);
    assert_int_equal(1000, atomic_load(&n));
    mb_pool_free(NULL);
}

/* A task that stays in its worker until told to go. */
struct gate {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned n_inside;
    bool open;
};

static void
gate_init(struct gate *gate)
{
    *gate = (struct gate){0};
    pthread_mutex_init(&gate->lock, NULL);
    pthread_cond_init(&gate->changed, NULL);
}

static void
wait_inside(void *arg)
{
    struct gate *gate = arg;
    pthread_mutex_lock(&gate->lock);
    gate->n_inside++;
    pthread_cond_broadcast(&gate->changed);
    while (!gate->open)
        pthread_cond_wait(&gate->changed, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
}

static void
gate_wait_for(struct gate *gate, unsigned n)
{
    pthread_mutex_lock(&gate->lock);
    while (gate->n_inside < n)
        pthread_cond_wait(&gate->changed, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
}

static void
gate_open(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    gate->open = true;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->lock);
}

static void
test_pool_submit_when_queue_is_full_then_busy(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_pool *pool = NULL;
    struct gate gate;
    gate_init(&gate);
    atomic_size_t n = 0;
    assert_ok(mb_pool_new(&pool, "mb-work", 1, 2));
    assert_ok(mb_pool_submit(pool, wait_inside, &gate));
    gate_wait_for(&gate, 1);
    mb_status a = mb_pool_submit(pool, count_one, &n);
    mb_status b = mb_pool_submit(pool, count_one, &n);
    mb_status c = mb_pool_submit(pool, count_one, &n);
    gate_open(&gate);
    mb_pool_free(pool);
    assert_int_equal(MB_OK, a);
    assert_int_equal(MB_OK, b);
    assert_int_equal(MB_ERR_BUSY, c);
    assert_int_equal(2, atomic_load(&n));
}

struct visits {
    atomic_size_t n[1000];
};

static void
visit(void *arg, size_t i)
{
    struct visits *visits = arg;
    atomic_fetch_add_explicit(&visits->n[i], 1, memory_order_relaxed);
}

static void
check_visits(struct visits *visits, size_t n)
{
    for (size_t i = 0; i < 1000; i++)
        assert_int_equal(i < n ? 1 : 0, atomic_load(&visits->n[i]));
}

static void
test_pool_for_when_workers_are_busy_then_caller_does_all(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_pool *pool = NULL;
    struct gate gate;
    gate_init(&gate);
    struct visits visits = {0};
    assert_ok(mb_pool_new(&pool, "mb-work", 2, 4));
    assert_ok(mb_pool_submit(pool, wait_inside, &gate));
    assert_ok(mb_pool_submit(pool, wait_inside, &gate));
    gate_wait_for(&gate, 2);
    // The gate is shut: this returns only if the loop waits for no worker.
    mb_pool_for(pool, 10, visit, &visits);
    gate_open(&gate);
    mb_pool_free(pool);
    check_visits(&visits, 10);
}

static void
test_pool_for_visits_each_index_once(void **state)
{
    MB_TEST_UNUSED(state);
    const size_t sizes[] = {0, 1, 2, 3, 999, 1000};
    struct mb_pool *pool = NULL;
    assert_ok(mb_pool_new(&pool, "mb-work", 3, 4));
    for (size_t round = 0; round < 300; round++) {
        size_t n = sizes[round % 6];
        static struct visits visits;
        memset(&visits, 0, sizeof visits);
        mb_pool_for(round % 7 == 0 ? NULL : pool, n, visit, &visits);
        check_visits(&visits, n);
    }
    mb_pool_free(pool);
}

/* Indices that wait for one another: they must run at the same time. */
static void
meet(void *arg, size_t i)
{
    MB_TEST_UNUSED(i);
    struct gate *gate = arg;
    pthread_mutex_lock(&gate->lock);
    gate->n_inside++;
    pthread_cond_broadcast(&gate->changed);
    while (gate->n_inside < 3)
        pthread_cond_wait(&gate->changed, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
}

static void
test_pool_for_uses_workers_and_caller(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_pool *pool = NULL;
    assert_ok(mb_pool_new(&pool, "mb-work", 2, 4));
    for (size_t round = 0; round < 50; round++) {
        struct gate gate;
        gate_init(&gate);
        mb_pool_for(pool, 3, meet, &gate); // hangs if anyone is missing
        assert_int_equal(3, gate.n_inside);
    }
    mb_pool_free(pool);
}

struct looper {
    struct mb_pool *pool;
    struct visits visits[20];
};

static void
run_loops(void *arg)
{
    struct looper *looper = arg;
    for (size_t i = 0; i < 20; i++)
        mb_pool_for(looper->pool, 100, visit, &looper->visits[i]);
}

static void
test_pool_for_from_several_threads_at_once(void **state)
{
    MB_TEST_UNUSED(state);
    static struct looper loopers[4];
    memset(loopers, 0, sizeof loopers);
    struct mb_thread *threads[4] = {NULL};
    struct mb_pool *pool = NULL;
    atomic_size_t n = 0;
    assert_ok(mb_pool_new(&pool, "mb-work", 2, 100));
    for (size_t i = 0; i < 4; i++) {
        loopers[i].pool = pool;
        assert_ok(
            mb_thread_start(&threads[i], "mb-loop", run_loops, &loopers[i]));
    }
    for (size_t i = 0; i < 50; i++)
        assert_ok(mb_pool_submit(pool, count_one, &n));
    for (size_t i = 0; i < 4; i++)
        mb_thread_join(threads[i]);
    mb_pool_free(pool);
    assert_int_equal(50, atomic_load(&n));
    for (size_t i = 0; i < 4; i++) {
        for (size_t j = 0; j < 20; j++)
            check_visits(&loopers[i].visits[j], 100);
    }
}

static void
test_pool_while_idle_uses_no_processor(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_pool *pool = NULL;
    assert_ok(mb_pool_new(&pool, "mb-work", 4, 4));
    struct visits visits = {0};
    mb_pool_for(pool, 100, visit, &visits);
    uint64_t cpu = mb_clock_cpu_ns();
    nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
    cpu = mb_clock_cpu_ns() - cpu;
    mb_pool_free(pool);
    // Four spinning workers would have used hundreds of milliseconds.
    assert_true(cpu < 50000000);
}

static mb_status
make_pool(void *arg)
{
    MB_TEST_UNUSED(arg);
    struct mb_pool *pool = NULL;
    mb_status st = mb_pool_new(&pool, "mb-work", 3, 10);
    mb_pool_free(pool);
    return st;
}

static void
test_pool_when_memory_is_short_then_nomem(void **state)
{
    MB_TEST_UNUSED(state);
    mb_test_each_allocation(make_pool, NULL);
}

static void
test_pool_without_threads_is_refused(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_pool *pool = NULL;
    assert_status(MB_ERR_BAD_ARG, mb_pool_new(&pool, "mb-work", 0, 1), NULL);
    assert_ok(mb_pool_new(&pool, "mb-work", 1, 0));
    assert_status(MB_ERR_BUSY, mb_pool_submit(pool, count_one, NULL), NULL);
    mb_pool_free(pool);
}

/* ---- clocks and the platform ---- */

static void
test_clocks_move_forward(void **state)
{
    MB_TEST_UNUSED(state);
    uint64_t t = mb_clock_ns();
    uint64_t cpu = mb_clock_cpu_ns();
    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    assert_true(mb_clock_ns() - t >= 5000000);
    assert_true(mb_clock_cpu_ns() >= cpu);
    assert_true(mb_clock_wall_ms() > UINT64_C(1700000000000)); // November 2023
}

static void
test_resident_memory_follows_what_we_touch(void **state)
{
    MB_TEST_UNUSED(state);

    enum { BYTES = 64 << 20 };

    uint64_t before = mb_process_rss_bytes();
    char *p = mb_alloc(BYTES);
    assert_non_null(p);
    memset(p, 1, BYTES);
    uint64_t after = mb_process_rss_bytes();
    mb_free(p);
    assert_true(before > 0);
    assert_true(after >= before + BYTES * 9 / 10);
    assert_true(mb_cpu_count() >= 1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_thread_runs_under_its_name),
        cmocka_unit_test(test_thread_name_when_long_then_cut),
        cmocka_unit_test(test_thread_in_the_background_still_runs),
        cmocka_unit_test(test_thread_when_memory_is_short_then_nomem),
        cmocka_unit_test(test_pool_free_runs_all_that_was_queued),
        cmocka_unit_test(test_pool_submit_when_queue_is_full_then_busy),
        cmocka_unit_test(
            test_pool_for_when_workers_are_busy_then_caller_does_all),
        cmocka_unit_test(test_pool_for_visits_each_index_once),
        cmocka_unit_test(test_pool_for_uses_workers_and_caller),
        cmocka_unit_test(test_pool_for_from_several_threads_at_once),
        cmocka_unit_test(test_pool_while_idle_uses_no_processor),
        cmocka_unit_test(test_pool_when_memory_is_short_then_nomem),
        cmocka_unit_test(test_pool_without_threads_is_refused),
        cmocka_unit_test(test_clocks_move_forward),
        cmocka_unit_test(test_resident_memory_follows_what_we_touch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
