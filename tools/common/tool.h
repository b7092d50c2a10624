/* SPDX-License-Identifier: Apache-2.0
 * tools/common/tool.h - what the tools that speak to a daemon share.
 *
 * The options to reach it, errors from the client library in the shape of the
 * command line, requests made of wire values, and output that is checked.
 * Threads: the main thread, but tool_connect and tool_call: any, each with a
 * client of its own. */
#ifndef TOOLS_TOOL_H
#define TOOLS_TOOL_H

#include "mb_base.h"
#include "mb_cli.h"
#include "mb_wire.h"
#include "membank.h"

#include <stdio.h>

/* Rows for the option table of each tool that speaks to the daemon. */
#define TOOL_CONNECT_OPTIONS                                                   \
    {"connect", 'e', "ENDPOINT", false,                                        \
        "where the daemon listens (MEMBANK_ENDPOINT, or the default below)",   \
        NULL},                                                                 \
        {"timeout", 't', "SECONDS", false, "wait this long for each answer",   \
            "60"},                                                             \
    {                                                                          \
        "keys", 0, "FILE", false,                                              \
            "CURVE keys, lines of server_key, public_key, secret_key = KEY",   \
            NULL                                                               \
    }

/* A client by the options above. Does not wait for the daemon.
 * Errors: BAD_ARG, IO (file of keys), NOMEM, INTERNAL. */
MB_MUST_USE mb_status tool_connect(
    const struct mb_cli *cli, struct membank **out, struct mb_error *err);
/* The library's error as ours; returns its status. */
mb_status tool_error(const struct membank_error *from, struct mb_error *err);

/* Parse a JSON option (a filter) into one msgpack map in buf; nothing if the
 * option was not given. Errors: BAD_ARG (names the option). */
MB_MUST_USE mb_status tool_json_map(const struct mb_cli *cli, const char *name,
    struct mb_buffer *buf, struct mb_error *err);
struct membank_bytes tool_bytes(const struct mb_buffer *buf);

/* The result of a reply as a tree in arena, which must end before the reply.
 * Errors: BAD_MESSAGE, NOMEM. */
MB_MUST_USE mb_status tool_result(const struct membank_reply *reply,
    struct mb_arena *arena, const struct mb_value **out, struct mb_error *err);

/* Number under a key of a map; def if it is absent or no number. */
uint64_t value_u64(const struct mb_value *map, const char *key, uint64_t def);
double value_f64(const struct mb_value *map, const char *key, double def);
struct mb_slice value_str(const struct mb_value *map, const char *key);

/* Room for the path of a temporary folder. */
#define TOOL_MAX_FOLDER 256
/* Make a new empty folder PROGRAM-XXXXXX in TMPDIR, or in /tmp; it is the
 * caller's to remove. On failure out is empty. Errors: IO. */
MB_MUST_USE mb_status tool_temp_folder(
    const char *program, char out[TOOL_MAX_FOLDER], struct mb_error *err);
/* Remove such a folder with all that is in it, as far as that can be done. */
void tool_remove_folder(const char *path);

/* Write buf and a line feed to standard output. */
void tool_put_line(const struct mb_buffer *buf);
/* At the end of main: exit code, 1 if standard output could not be written. */
int tool_finish(const struct mb_cli_program *prog, int code);
/* What main does with the status of mb_cli_parse: the exit code. */
int tool_parse_failed(const struct mb_cli_program *prog, mb_status st,
    const struct mb_error *err);

#endif
