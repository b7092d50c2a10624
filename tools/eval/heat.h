/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/heat.h - means over a grid, drawn as a heat map.
 *
 * Columns have names and come in the order of their first value; rows are five
 * equal parts of [0, 1].
 * Threads: the main thread. */
#ifndef TOOLS_EVAL_HEAT_H
#define TOOLS_EVAL_HEAT_H

#include "mb_base.h"

#define HEAT_ROWS        5u
#define HEAT_MAX_COLUMNS 64u

struct heat_column {
    char name[32];
    double sum[HEAT_ROWS];
    uint64_t n[HEAT_ROWS];
};

struct heat {
    struct heat_column *columns;
    size_t n_columns;
};

void heat_init(struct heat *h);
void heat_fini(struct heat *h);
/* A value in [0, 1] at `at` in [0, 1] of a column. Errors: TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status heat_add(struct heat *h, const char *column, double at,
    double value, struct mb_error *err);
/* Draw it. Texts must be plain. Errors: IO. */
MB_MUST_USE mb_status heat_svg(const struct heat *h, const char *path,
    const char *title, const char *x, const char *y, struct mb_error *err);

#endif
