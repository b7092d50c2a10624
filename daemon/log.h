/* SPDX-License-Identifier: Apache-2.0
 * daemon/log.h - events of all modules, one logfmt line each.
 *
 * Life: log_open installs the hook of mb_base.h; log_reopen follows rotation;
 * log_close at the very end, when no thread logs any more.
 * Threads: lines come from any thread; open, reopen and close from main. */
#ifndef DAEMON_LOG_H
#define DAEMON_LOG_H

#include "mb_base.h"

struct log_sink;

/* path empty: stderr. Errors: IO, NOMEM. */
MB_MUST_USE mb_status log_open(const char *path, mb_log_level level,
    struct log_sink **out, struct mb_error *err);
/* Open the file again (it may have been renamed) with another level or path;
 * on failure the old one stays. Errors: IO. */
MB_MUST_USE mb_status log_reopen(struct log_sink *sink, const char *path,
    mb_log_level level, struct mb_error *err);
void log_close(struct log_sink *sink);

#endif
