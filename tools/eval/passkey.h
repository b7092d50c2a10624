/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/passkey.h - does a context bring back what stands far back?
 *
 * A number hides in a long text; at its end the model is asked for it.
 * (Mohtashami and Jaggi 2023, section 4.2.) The text around it is five
 * sentences over and over, or natural text; beside the key that is asked for
 * there may be others with names (decoys), which the question must tell apart.
 * Depths are spread evenly over a length: prompt i of n hides its key in the
 * i-th of n parts.
 * Threads: the main thread; passes have their own. */
#ifndef TOOLS_EVAL_PASSKEY_H
#define TOOLS_EVAL_PASSKEY_H

#include "mb_base.h"
#include "mb_cli.h"

/* Options of the program's table that are read here: model, threads, lengths,
 * prompts, decoys, digits, filler, seed, csv, svg, json, and those of landmarks.h.
 * Prints a line for each length. Errors: those of files and the model,
 * BAD_ARG. */
MB_MUST_USE mb_status passkey_run(
    const struct mb_cli *cli, struct mb_error *err);

#endif
