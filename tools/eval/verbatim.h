/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/verbatim.h - what does each memory keep of a list of words?
 *
 * A text names a list of nouns, goes on about other things for a distance, and
 * names a second list: the same nouns (repeated), the same in another order
 * (permuted), or others (novel). How surprising is the second list, in percent
 * of the first? Who remembers words and their order finds a repeated list
 * easier than a permuted one, and that easier than a novel one; without memory
 * all are about 100. (Armeni, Honey and Linzen 2022.)
 * Threads: the main thread; passes have their own. */
#ifndef TOOLS_EVAL_VERBATIM_H
#define TOOLS_EVAL_VERBATIM_H

#include "mb_base.h"
#include "mb_cli.h"

/* Options of the program's table that are read here: model, threads, distances,
 * paths, words, prompts, filler, seed, csv, svg, json, and those of landmarks.h.
 * Prints a line for each path and distance. Errors: those of files and the
 * model, BAD_ARG. */
MB_MUST_USE mb_status verbatim_run(
    const struct mb_cli *cli, struct mb_error *err);

#endif
