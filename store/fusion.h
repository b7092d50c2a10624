/* SPDX-License-Identifier: Apache-2.0
 * store/fusion.h - one score out of two; see fusion.c for the formula.
 *
 * Works on rows in memory alone: search.c reads, this computes. */
#ifndef STORE_FUSION_H
#define STORE_FUSION_H

#include "internal.h"

/* Best segments of each index that fix the scale of a query's scores. More are
 * taken where more hits are wanted, but the scale stays, so that the first ten
 * are the same whether ten are asked for or a hundred. */
#define FUSION_CORE 100
/* Best segments of each index whose neighbours become candidates. */
#define FUSION_SPREAD 25
/* Best segments of each index at which neighbours are compared. */
#define FUSION_PROBE 50
/* Segments spread evenly over the collection that say what score is common. */
#define FUSION_CONTROL 64
/* Best segments of each index whose size decides about inheritance. */
#define FUSION_SIZED 16

enum fusion_role {
    FUSION_IS_CANDIDATE = 1u << 0,
    FUSION_IS_CORE = 1u << 1,
    FUSION_IS_LEXICAL_PROBE = 1u << 2,
    FUSION_IS_DENSE_PROBE = 1u << 3,
    FUSION_IS_CONTROL = 1u << 4,
    FUSION_IS_GONE = 1u << 5 /* no such segment; not to be looked at */
};

struct fusion_row {
    mb_segno segno;
    unsigned roles;
    mb_docno docno; /* set where inheritance is possible */
    float lexical;  /* BM25 */
    float dense;    /* cosine, NaN without a vector */
    /* What fusion_inherit makes of them; dense not below 0 here. */
    float lexical_all;
    float dense_all;
    float score;
};

/* What is known of the query besides its rows. */
struct fusion_query {
    bool has_lexical; /* some segment has a term of the query */
    bool has_dense;   /* there is a vector to compare with */
    bool is_folded;   /* the vector is made of the query's terms (LSA) */
    float coverage;
    size_t n_terms;
    double segment_tokens; /* mean of the collection */
    double depth;          /* its segments for each dimension of the vector */
};

/* How much a neighbour could give, by the size in tokens of the segments in
 * question: 0 for full segments. */
double fusion_reach(double tokens);
/* How much more a neighbour of a good segment scores than any segment does, as
 * a part of what the good segment does itself: about 0 if neighbours have
 * nothing to do with each other, 0.2 and more in a conversation. Rows are
 * sorted by segno; those in question have docno. */
double fusion_kinship(const struct fusion_row *rows, size_t n, bool dense);
/* Fill lexical_all and dense_all. reach 0: they are the row's own. */
void fusion_inherit(
    struct fusion_row *rows, size_t n, double reach, double kinship);
/* Weight of the dense score against 1 for the lexical one. */
double fusion_weight(
    const struct fusion_row *rows, size_t n, const struct fusion_query *q);
/* Fill score of all candidates. */
void fusion_score(
    struct fusion_row *rows, size_t n, const struct fusion_query *q);

#endif
