/* SPDX-License-Identifier: Apache-2.0
 * client/base/status.c - status codes, causes, and the end of the process.
 *
 * All facts about a status stand in one table, MB_STATUS_TABLE in mb_base.h;
 * here it becomes look-ups. The numbers have gaps for nobody: the table is
 * dense, so a status indexes it, and whatever lies outside is an internal
 * error by definition.
 * Invariants: every number has a name; an error text is valid UTF-8 as long as
 * its arguments are, however long they were.
 * Threads: any. */
#include "mb_base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"

struct status_row {
    const char *name;
    const char *text;
    bool may_retry;
};

static const struct status_row status_rows[] = {
#define MB_X(name, number, wire, text, retry) [number] = {wire, text, retry},
    MB_STATUS_TABLE(MB_X)
#undef MB_X
};

static const struct status_row *
status_row_of(mb_status st)
{
    size_t n = sizeof status_rows / sizeof status_rows[0];
    size_t i = (size_t)st;
    return &status_rows[i < n ? i : (size_t)MB_ERR_INTERNAL];
}

const char *
mb_status_name(mb_status st)
{
    return status_row_of(st)->name;
}

const char *
mb_status_text(mb_status st)
{
    return status_row_of(st)->text;
}

bool
mb_status_may_retry(mb_status st)
{
    return status_row_of(st)->may_retry;
}

mb_status
mb_status_from_name(const char *name)
{
    for (size_t i = 0; i < sizeof status_rows / sizeof status_rows[0]; i++) {
        if (strcmp(status_rows[i].name, name) == 0)
            return (mb_status)i;
    }
    return MB_ERR_INTERNAL;
}

mb_status
mb_error_set(struct mb_error *err, mb_status st, const char *fmt, ...)
{
    if (!err)
        return st;
    err->status = st;
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(err->text, sizeof err->text, fmt, args);
    va_end(args);
    if (n < 0)
        err->text[0] = '\0';
    else if ((size_t)n >= sizeof err->text)
        bytes_cut_utf8(err->text, sizeof err->text - 1);
    return st;
}

void
mb_panic(const char *file, int line, const char *what)
{
    fprintf(stderr, "membank: %s:%d: broken invariant: %s\n", file, line, what);
    abort();
}
