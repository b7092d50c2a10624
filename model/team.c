/* SPDX-License-Identifier: Apache-2.0
 * model/team.c - members, barriers, tiles.
 *
 * `phase` counts barriers passed. Arriving is an atomic add; the last to arrive
 * clears the counters and raises the phase, which the others wait for. A run
 * begins the same way: `run` holds a count of runs and how many members this
 * one has, in one word, so that a member who has no part in it and comes late
 * cannot mix two runs up. Those who have a part cannot be late: the run ends
 * with a barrier of theirs.
 * Sleepers wait on a condition variable. Whoever raises a word looks for
 * sleepers after it, a sleeper looks at the word after it is counted as one,
 * all in one total order: so either sees the other, and no wake-up is lost. */
#include "team.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

/* Looks at a word before going to sleep: some twenty microseconds. */
#define LOOKS 1000

#define MAX_MEMBERS  1023u
#define RUN_STEP     1024u /* run: count * RUN_STEP + members */
#define MEMBERS_MASK 1023u

struct member {
    struct team *team;
    struct mb_thread *thread; /* NULL for the caller */
    unsigned number;
};

/* What different members write lies in different cache lines. */
struct team {
    unsigned n_members;
    unsigned n_running; /* of this run; written before it begins */
    void (*fn)(void *arg, unsigned member);
    void *arg;
    bool ending;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    char pad0[64];
    atomic_uint run;
    char pad1[64];
    atomic_uint phase;
    char pad2[64];
    atomic_uint n_arrived;
    char pad3[64];
    atomic_size_t next_tile;
    char pad4[64];
    atomic_uint n_sleeping;
    char pad5[64];
    struct member members[]; /* n_members; 0 is the caller */
};

static inline void
relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait until *word is not `old`; returns what it is then. */
static unsigned
wait_change(struct team *team, atomic_uint *word, unsigned old)
{
    unsigned now = old;
    for (int i = 0; i < LOOKS; i++) {
        now = atomic_load_explicit(word, memory_order_acquire);
        if (now != old)
            return now;
        relax();
    }
    MB_ASSERT(pthread_mutex_lock(&team->lock) == 0);
    atomic_fetch_add(&team->n_sleeping, 1);
    while ((now = atomic_load(word)) == old)
        MB_ASSERT(pthread_cond_wait(&team->wake, &team->lock) == 0);
    atomic_fetch_sub(&team->n_sleeping, 1);
    MB_ASSERT(pthread_mutex_unlock(&team->lock) == 0);
    return now;
}

static void
set_word(struct team *team, atomic_uint *word, unsigned value)
{
    atomic_store(word, value);
    if (atomic_load(&team->n_sleeping) == 0)
        return;
    MB_ASSERT(pthread_mutex_lock(&team->lock) == 0);
    MB_ASSERT(pthread_cond_broadcast(&team->wake) == 0);
    MB_ASSERT(pthread_mutex_unlock(&team->lock) == 0);
}

void
team_barrier(struct team *team)
{
    team_barrier_step(team, NULL, NULL);
}

void
team_barrier_step(struct team *team, void (*step)(void *arg), void *arg)
{
    // Read before arriving: the next run may begin right after, and write it.
    unsigned n = team->n_running;
    unsigned phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
    unsigned arrived =
        atomic_fetch_add_explicit(&team->n_arrived, 1, memory_order_acq_rel);
    if (arrived + 1 < n) {
        (void)wait_change(team, &team->phase, phase);
        return;
    }
    if (step)
        step(arg);
    atomic_store_explicit(&team->n_arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&team->next_tile, 0, memory_order_relaxed);
    set_word(team, &team->phase, phase + 1);
}

size_t
team_next(struct team *team)
{
    if (team->n_running > 1)
        return atomic_fetch_add_explicit(
            &team->next_tile, 1, memory_order_relaxed);
    /* Alone: no locked instruction. */
    size_t tile = atomic_load_explicit(&team->next_tile, memory_order_relaxed);
    atomic_store_explicit(&team->next_tile, tile + 1, memory_order_relaxed);
    return tile;
}

static void
member_main(void *arg)
{
    struct member *self = arg;
    struct team *team = self->team;
    unsigned seen = 0;
    for (;;) {
        seen = wait_change(team, &team->run, seen);
        if (self->number >= (seen & MEMBERS_MASK))
            continue;
        if (team->ending)
            return;
        team->fn(team->arg, self->number);
        team_barrier(team);
    }
}

/* Begin a run of n members, the caller not yet in it. */
static void
begin_run(struct team *team, unsigned n)
{
    unsigned run = atomic_load_explicit(&team->run, memory_order_relaxed);
    team->n_running = n;
    set_word(team, &team->run, run / RUN_STEP * RUN_STEP + RUN_STEP + n);
}

void
team_run(struct team *team, unsigned n, void (*fn)(void *arg, unsigned member),
    void *arg)
{
    MB_ASSERT(n >= 1 && n <= team->n_members);
    team->fn = fn;
    team->arg = arg;
    if (n > 1)
        begin_run(team, n);
    else
        team->n_running = 1;
    fn(arg, 0);
    team_barrier(team);
}

mb_status
team_new(unsigned n_threads, struct team **out)
{
    if (n_threads == 0 || n_threads > MAX_MEMBERS)
        return MB_ERR_BAD_ARG;
    struct team *team =
        mb_calloc(1, sizeof(*team) + n_threads * sizeof(struct member));
    if (!team)
        return MB_ERR_NOMEM;
    if (pthread_mutex_init(&team->lock, NULL) != 0 ||
        pthread_cond_init(&team->wake, NULL) != 0) {
        mb_free(team);
        return MB_ERR_INTERNAL;
    }
    for (unsigned i = 0; i < n_threads; i++) {
        team->members[i] = (struct member){team, NULL, i};
        team->n_members = i + 1;
        if (i == 0)
            continue;
        char name[16];
        (void)snprintf(name, sizeof(name), "mb-model-%u", i % 1000);
        mb_status st = mb_thread_start(
            &team->members[i].thread, name, member_main, &team->members[i]);
        if (st != MB_OK) {
            team->n_members = i;
            team_free(team);
            return st;
        }
    }
    *out = team;
    return MB_OK;
}

void
team_free(struct team *team)
{
    if (!team)
        return;
    team->ending = true;
    if (team->n_members > 1)
        begin_run(team, team->n_members);
    for (unsigned i = 1; i < team->n_members; i++)
        mb_thread_join(team->members[i].thread);
    (void)pthread_cond_destroy(&team->wake);
    (void)pthread_mutex_destroy(&team->lock);
    mb_free(team);
}

unsigned
team_size(const struct team *team)
{
    return team->n_members;
}
