/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/measure.h - judgements, runs, and how well the one meets the other.
 *
 * Judgements are a qrels.tsv of the BEIR layout: a header, then lines of
 * query-id, document-id, grade. A run is what `membank-query --trec` writes:
 * the documents of each query, best first.
 * Threads: the main thread. */
#ifndef TOOLS_EVAL_MEASURE_H
#define TOOLS_EVAL_MEASURE_H

#include "mb_base.h"

struct judgements;

struct measures {
    size_t n_queries; /* with a relevant document; means are over these */
    double ndcg10;    /* gain = grade, discount log2(rank + 1) */
    double recall100; /* part of the relevant documents in the first 100 */
    double mrr;       /* 1 / rank of the first relevant document */
};

/* Errors: NOT_FOUND, IO, BAD_ARG (names file and line), NOMEM. */
MB_MUST_USE mb_status judgements_load(
    const char *path, struct judgements **out, struct mb_error *err);
void judgements_free(struct judgements *j);
/* Queries that the run lacks count as found nothing. Errors: as above. */
MB_MUST_USE mb_status judgements_measure(const struct judgements *j,
    const char *run_path, struct measures *out, struct mb_error *err);

#endif
