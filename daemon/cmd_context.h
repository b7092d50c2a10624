/* SPDX-License-Identifier: Apache-2.0
 * daemon/cmd_context.h - what the commands on contexts share. */
#ifndef DAEMON_CMD_CONTEXT_H
#define DAEMON_CMD_CONTEXT_H

#include "commands.h"
#include "contexts.h"

/* Own the context that args.name names; *later: the call is parked. Errors:
 * NOT_IMPLEMENTED (no model that reads), BAD_ARG. */
MB_MUST_USE mb_status context_enter(
    struct call *c, struct open_context **out, bool *later);
/* One context as a map. */
void context_write(struct call *c, const struct mb_stored_context *s);

#endif
