/* SPDX-License-Identifier: Apache-2.0
 * daemon/commands.h - the operations that clients can ask for.
 *
 * One table: name, handler, kind, arguments. A test compares it with
 * PROTOCOL.md. An argument's type is checked before the handler runs; ranges
 * are the handler's.
 * Threads: handlers run on a worker, or on mb-io when they are quick. */
#ifndef DAEMON_COMMANDS_H
#define DAEMON_COMMANDS_H

#include "call.h"

typedef enum command_kind {
    COMMAND_READ,  /* may run on mb-io */
    COMMAND_WRITE, /* changes state; small */
    COMMAND_BULK,  /* changes state; may be large */
    COMMAND_SLOW,  /* hands over to a job */
    COMMAND_MODEL  /* hands over to the model */
} command_kind;

/* Bits: what an argument may be. */
enum {
    ARG_STR = 1,
    ARG_INT = 2,
    ARG_NUM = 4, /* float or integer */
    ARG_BOOL = 8,
    ARG_MAP = 16,
    ARG_ARRAY = 32,
    ARG_BIN = 64
};

struct command_arg {
    const char *name;
    unsigned types;
    bool required;
};

#define COMMAND_MAX_ARGS 16

/* A handler writes its result to c->w and returns MB_OK; or sets *later, after
 * which the call is no longer its own once it was handed on; or returns an
 * error, with c->err filled. */
typedef mb_status (*command_fn)(struct call *c, struct worker *w, bool *later);

struct command {
    const char *name;
    command_fn fn; /* NULL: not implemented yet */
    command_kind kind;
    struct command_arg args[COMMAND_MAX_ARGS]; /* ends with name NULL */
};

/* The table; ends with name NULL. */
extern const struct command commands[];
size_t commands_count(void);
const struct command *commands_find(struct mb_slice name);

/* The server's handler. arg: struct daemon. */
void commands_on_request(void *arg, struct server_request *rq);

/* ---- handlers ---- */

#define COMMAND_HANDLER(name)                                                  \
    mb_status name(struct call *c, struct worker *w, bool *later)

COMMAND_HANDLER(cmd_ping);
COMMAND_HANDLER(cmd_collections);
COMMAND_HANDLER(cmd_stats);
COMMAND_HANDLER(cmd_jobs);
COMMAND_HANDLER(cmd_snapshot);
COMMAND_HANDLER(cmd_verify);
COMMAND_HANDLER(cmd_rebuild);
COMMAND_HANDLER(cmd_create);
COMMAND_HANDLER(cmd_drop);
COMMAND_HANDLER(cmd_put);
COMMAND_HANDLER(cmd_delete);
COMMAND_HANDLER(cmd_get);
COMMAND_HANDLER(cmd_list);
COMMAND_HANDLER(cmd_query);
COMMAND_HANDLER(cmd_embed);
COMMAND_HANDLER(cmd_score);
COMMAND_HANDLER(cmd_generate);
COMMAND_HANDLER(cmd_bank_build);
COMMAND_HANDLER(cmd_bank_train);
COMMAND_HANDLER(cmd_bank_pause);
COMMAND_HANDLER(cmd_bank_purge);
COMMAND_HANDLER(cmd_bank_status);
COMMAND_HANDLER(cmd_bank_path);
COMMAND_HANDLER(cmd_bank_disable);
COMMAND_HANDLER(cmd_bank_reset);
COMMAND_HANDLER(cmd_context_open);
COMMAND_HANDLER(cmd_context_append);
COMMAND_HANDLER(cmd_context_score);
COMMAND_HANDLER(cmd_context_generate);
COMMAND_HANDLER(cmd_context_fork);
COMMAND_HANDLER(cmd_context_truncate);
COMMAND_HANDLER(cmd_context_list);
COMMAND_HANDLER(cmd_context_close);
COMMAND_HANDLER(cmd_context_delete);

#endif
