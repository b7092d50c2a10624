/* SPDX-License-Identifier: Apache-2.0
 * model/team.h - threads that go through a computation side by side.
 *
 * A pass through a transformer is a hundred short steps, each of which needs
 * what the one before it made. A pool that hands over each step costs a wake-up
 * a step; here all members run the whole pass and meet at barriers. A member
 * that comes early waits awake for a bounded time, about as long as it takes to
 * put a thread to sleep and wake it, then sleeps: on a busy machine nobody
 * burns the processor that the late one needs.
 *
 * The steps divide their work by team_next: whoever is free takes the next
 * tile. What a tile computes must not depend on who takes it.
 * Private to this folder. Threads: one caller at a time, who is member 0. */
#ifndef MB_MODEL_TEAM_H
#define MB_MODEL_TEAM_H

#include "mb_base.h"

struct team;

/* n_threads members, the caller included. Errors: NOMEM, INTERNAL. */
MB_MUST_USE mb_status team_new(unsigned n_threads, struct team **out);
void team_free(struct team *team);
unsigned team_size(const struct team *team);

/* fn(arg, member) on members 0 .. n - 1, n at most the size; returns when all
 * are done. */
void team_run(struct team *team, unsigned n,
    void (*fn)(void *arg, unsigned member), void *arg);

/* Within fn: wait for the others that run. What they wrote before is seen
 * after. Resets the counter of team_next. */
void team_barrier(struct team *team);
/* The same, but whoever comes last runs `step` before anybody goes on: for work
 * too small to divide. All members give the same step. */
void team_barrier_step(struct team *team, void (*step)(void *arg), void *arg);
/* Within fn: the next of the tiles 0, 1, 2, ... since the last barrier. */
size_t team_next(struct team *team);

#endif
