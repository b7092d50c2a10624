/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/own.h - a daemon of the evaluation's own, and other programs.
 *
 * What is measured is the product as a user has it: programs beside this one,
 * a daemon on a socket in a temporary folder.
 * Threads: the main thread. */
#ifndef EVAL_OWN_H
#define EVAL_OWN_H

#include "tool.h"

#include <signal.h>
#include <sys/types.h>

#define OWN_MAX_PATH 4096

/* Zero it before use. */
struct own {
    char tools[OWN_MAX_PATH];     /* folder of this program */
    char folder[TOOL_MAX_FOLDER]; /* temporary, the caller's */
    char endpoint[OWN_MAX_PATH];
    pid_t daemon; /* 0: not ours */
};

/* Set by a signal: what runs is to end. */
extern volatile sig_atomic_t own_is_stopped;

/* Where other programs are; else PATH is searched. */
void own_find_tools(struct own *e);
/* Start a program, its output thrown away, its errors shown unless quiet. */
MB_MUST_USE mb_status own_run(const struct own *e, const char *name,
    char *const *argv, bool quiet, pid_t *pid, struct mb_error *err);
/* Wait for its end. Errors: IO (it failed), CANCELLED. */
MB_MUST_USE mb_status own_finish(
    pid_t pid, const char *name, struct mb_error *err);
/* Start a daemon on a store in the folder; model NULL: the bundled one. */
MB_MUST_USE mb_status own_start(
    struct own *e, const char *model, struct mb_error *err);
void own_stop(struct own *e);
/* A client of the daemon, which is there; fails at once if ours has ended. */
MB_MUST_USE mb_status own_reach(
    struct own *e, struct membank **out, struct mb_error *err);

#endif
