/* SPDX-License-Identifier: Apache-2.0
 * client/base/cli.h - what the two files of the command line share.
 *
 * cli.c parses and fails, cli_help.c writes --help and the man page. Both texts
 * come from one struct mb_cli_program, so that they cannot disagree.
 * Threads: the main thread. */
#ifndef BASE_CLI_H
#define BASE_CLI_H

#include "mb_cli.h"

#include <stdio.h>

/* Options every program has; ends with name NULL. `--man` is not among them. */
extern const struct mb_cli_option cli_common_options[];

/* The help as text of at most 80 columns; bold headings if asked for. */
void cli_write_help(const struct mb_cli_program *prog, FILE *out, bool bold);
/* The man page as roff (man macros). */
void cli_write_man(const struct mb_cli_program *prog, FILE *out);

#endif
