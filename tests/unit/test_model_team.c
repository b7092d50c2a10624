/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_team.c - members meet at barriers and share tiles. */
#include "mb_test.h"

#include "team.h"

#include <stdatomic.h>

#define MAX_MEMBERS 5u
#define STEPS       200u
#define TILES       37u

/* Each step writes what the step before it must have written whole. */
struct work {
    struct team *team;
    unsigned n;
    unsigned values[2][TILES]; /* of this step and of the one before */
    atomic_uint n_wrong;
    atomic_uint n_members;
    unsigned n_steps; /* counted by the last to arrive */
};

static void
count_step(void *arg)
{
    struct work *w = arg;
    w->n_steps++;
}

static void
walk(void *arg, unsigned member)
{
    struct work *w = arg;
    (void)member;
    atomic_fetch_add(&w->n_members, 1);
    for (unsigned step = 1; step <= STEPS; step++) {
        unsigned *now = w->values[step % 2];
        const unsigned *before = w->values[(step - 1) % 2];
        for (size_t i = team_next(w->team); i < TILES; i = team_next(w->team)) {
            for (size_t j = 0; j < TILES; j++) {
                if (before[j] != step - 1)
                    atomic_fetch_add(&w->n_wrong, 1);
            }
            now[i] = step;
        }
        team_barrier_step(w->team, count_step, w);
    }
}

static void
check_run(struct team *team, unsigned n)
{
    struct work w = {.team = team, .n = n};
    team_run(team, n, walk, &w);
    assert_int_equal(atomic_load(&w.n_wrong), 0);
    assert_int_equal(atomic_load(&w.n_members), n);
    assert_int_equal(w.n_steps, STEPS);
    for (size_t i = 0; i < TILES; i++)
        assert_int_equal(w.values[STEPS % 2][i], STEPS);
}

static void
test_team_when_run_then_steps_are_ordered(void **state)
{
    (void)state;
    for (unsigned size = 1; size <= MAX_MEMBERS; size++) {
        struct team *team = NULL;
        assert_int_equal(team_new(size, &team), MB_OK);
        assert_int_equal(team_size(team), size);
        for (unsigned n = 1; n <= size; n++)
            check_run(team, n);
        team_free(team);
    }
}

/* Members without a part sleep through runs and take part in later ones. */
static void
test_team_when_sizes_alternate_then_nobody_is_lost(void **state)
{
    (void)state;
    struct team *team = NULL;
    assert_int_equal(team_new(MAX_MEMBERS, &team), MB_OK);
    for (unsigned i = 0; i < 60; i++)
        check_run(team, 1 + i * 7 % MAX_MEMBERS);
    team_free(team);
}

static void
test_team_when_no_members_then_refused(void **state)
{
    (void)state;
    struct team *team = NULL;
    assert_int_equal(team_new(0, &team), MB_ERR_BAD_ARG);
    assert_int_equal(team_new(5000, &team), MB_ERR_BAD_ARG);
    assert_null(team);
    team_free(NULL);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_team_when_run_then_steps_are_ordered),
        cmocka_unit_test(test_team_when_sizes_alternate_then_nobody_is_lost),
        cmocka_unit_test(test_team_when_no_members_then_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
