/* SPDX-License-Identifier: Apache-2.0
 * tools/common/progress.h - how far a long task is, and how long it will take.
 *
 * On a terminal one line is drawn again and again: a bar, the part done, what
 * the caller says, the time left. Elsewhere a plain line appears every ten
 * seconds, so that log files stay short.
 * Threads: the main thread. */
#ifndef TOOLS_PROGRESS_H
#define TOOLS_PROGRESS_H

#include "mb_base.h"

#include <stdio.h>

struct progress {
    FILE *out;
    bool terminal;
    bool quiet;
    bool drawn; /* a line stands on the terminal that must be cleared */
    unsigned width;
    uint64_t start_ns;
    uint64_t shown_ns;
    double start_part;
    /* For the time left: the rate of late, part of the whole a second. */
    uint64_t rate_ns;
    double rate_part;
    double rate;
};

/* Shown on `out` (standard error as a rule); quiet shows nothing. */
void progress_init(struct progress *p, FILE *out, bool quiet);
/* The task goes on from `part`, done earlier: it says nothing of the rate. */
void progress_from(struct progress *p, double part);
/* part in [0, 1], or negative if it is not known; text: figures of the caller.
 * Cheap: draws at most ten times a second. */
void progress_show(struct progress *p, double part, const char *text);
/* Seconds left by the rate of late, at first by the average; negative if that is
 * not known yet. */
double progress_left(const struct progress *p, double part);
double progress_elapsed(const struct progress *p);
/* All is done: draw a last time, now, and leave the line standing. Without a
 * terminal nothing: a summary follows. */
void progress_end(struct progress *p, const char *text);
/* Clear the line, so that other text may be printed. */
void progress_clear(struct progress *p);

#endif
