/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/ppl.h - perplexity of texts under a model.
 *
 * Each document is preceded by the vocabulary's bos and followed by its eos,
 * where it has them; both count as tokens, and all but the first are predicted.
 * A document is read in windows: each begins `stride` tokens after the one
 * before and scores what that one did not. With stride = window nothing is read
 * twice, and tokens early in a window are predicted from little.
 * With landmarks a document is one context instead: segment by segment, each
 * token predicted from its segment and from the blocks that it retrieves. With
 * k = 0 segments are windows that lie side by side, with landmarks in them.
 * Threads: the main thread; passes have their own. */
#ifndef TOOLS_EVAL_PPL_H
#define TOOLS_EVAL_PPL_H

#include "mb_base.h"
#include "mb_cli.h"

/* Options of the program's table that are read here: model, window, stride,
 * threads, cache, context, k, segment, select, json. Arguments from `first` on
 * are files. Prints a line for each file. Errors: those of the files and the
 * model, BAD_ARG. */
MB_MUST_USE mb_status ppl_run(
    const struct mb_cli *cli, size_t first, struct mb_error *err);

#endif
