/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/bars.h - groups of bars, drawn side by side.
 *
 * Each group has a bar for each of the same few kinds, in the order of their
 * first value; a line marks the value that means "no effect".
 * Threads: the main thread. */
#ifndef TOOLS_EVAL_BARS_H
#define TOOLS_EVAL_BARS_H

#include "mb_base.h"

#define BARS_NAME       32u
#define BARS_MAX_GROUPS 64u
#define BARS_MAX_KINDS  4u

struct bars {
    const char *const *kinds; /* borrowed */
    size_t n_kinds;
    size_t n_groups;
    char names[BARS_MAX_GROUPS][BARS_NAME];
    double values[BARS_MAX_GROUPS][BARS_MAX_KINDS];
};

void bars_init(struct bars *b, const char *const *kinds, size_t n_kinds);
/* Errors: TOO_LARGE. */
MB_MUST_USE mb_status bars_add(struct bars *b, const char *group, size_t kind,
    double value, struct mb_error *err);
/* Draw them. Texts must be plain. Errors: IO. */
MB_MUST_USE mb_status bars_svg(const struct bars *b, const char *path,
    const char *title, double mark, struct mb_error *err);

#endif
