/* SPDX-License-Identifier: Apache-2.0
 * client/base/mb_cli.h - command lines from a table.
 *
 * Each program describes itself once, in a struct mb_cli_program; parsing,
 * --help, --version, --man (the man page as roff, made at build time) and the
 * test that compares them come from that table.
 * Options: --name VALUE, --name=VALUE, -n VALUE, -nVALUE; flags; `--` ends
 * options; "-" is an argument. Exit codes: 0 success, 1 failure, 2 usage.
 * Threads: the main thread. */
#ifndef MB_CLI_H
#define MB_CLI_H

#include "mb_base.h"

struct mb_cli_option {
    const char *name;  /* long name without dashes */
    char letter;       /* 0: none */
    const char *value; /* placeholder ("DIR"); NULL for a flag */
    bool repeat;       /* may be given several times */
    const char *help;  /* one line, lower case, no full stop */
    const char *def;   /* default as shown in help, or NULL */
};

struct mb_cli_example {
    const char *command;
    const char *what;
};

struct mb_cli_program {
    const char *name;        /* "membank-query" */
    const char *summary;     /* one line */
    const char *usage;       /* what follows the name: "[OPTION]... TEXT" */
    const char *description; /* paragraphs, blank line between */
    const struct mb_cli_option *options;   /* ends with name NULL */
    const struct mb_cli_example *examples; /* ends with command NULL */
};

struct mb_cli; /* a parsed command line */

/* Parse argv, which must outlive the result. A description's lines that begin
 * with a space are shown as they are; other paragraphs are wrapped. Programs
 * without a dash in their name are daemons: their man page is in section 8, the
 * others' in section 1. Prints help, version or man page and returns CANCELLED if asked
 * for them. Errors: BAD_ARG (names the option and says what is near it). */
MB_MUST_USE mb_status mb_cli_parse(const struct mb_cli_program *prog, int argc,
    char **argv, struct mb_cli **out, struct mb_error *err);
void mb_cli_free(struct mb_cli *cli);

bool mb_cli_has(const struct mb_cli *cli, const char *name);
/* The last value given, or the option's default, or NULL. */
const char *mb_cli_str(const struct mb_cli *cli, const char *name);
size_t mb_cli_count(const struct mb_cli *cli, const char *name);
const char *mb_cli_nth(const struct mb_cli *cli, const char *name, size_t i);
/* Numbers with a range; accepts 64k, 2M, 1G for sizes (k is 1,024). Without a
 * value and a default *out stays untouched. Errors: BAD_ARG. */
MB_MUST_USE mb_status mb_cli_u64(const struct mb_cli *cli, const char *name,
    uint64_t min, uint64_t max, uint64_t *out, struct mb_error *err);
MB_MUST_USE mb_status mb_cli_double(const struct mb_cli *cli, const char *name,
    double min, double max, double *out, struct mb_error *err);
size_t mb_cli_n_args(const struct mb_cli *cli);
const char *mb_cli_arg(const struct mb_cli *cli, size_t i);

/* The default endpoint: ipc://$XDG_RUNTIME_DIR/membank.sock, or in /tmp with
 * the user's number when unset. out has at least 256 bytes. */
void mb_cli_default_endpoint(char *out, size_t size);

/* True if fd is a terminal that takes colours and NO_COLOR is unset or empty.
 */
bool mb_cli_has_color(int fd);
/* Columns of the terminal at fd; 80 where it is none or does not say. */
unsigned mb_cli_width(int fd);

/* For main: "name: cause" and the remedy on stderr; returns the exit code. */
int mb_cli_fail(const struct mb_cli_program *prog, const struct mb_error *err);
int mb_cli_usage(const struct mb_cli_program *prog, const struct mb_error *err);

#endif
