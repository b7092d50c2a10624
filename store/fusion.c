/* SPDX-License-Identifier: Apache-2.0
 * store/fusion.c - hybrid search: how two scores become one.
 *
 * BM25 knows words, the embedding knows what they are about. On topical
 * questions the embedding helps much (Cranfield: nDCG@10 from 0.51 to 0.55);
 * on questions for one certain passage it mostly disturbs. No fixed weight
 * serves both, so the weight is made anew for each query, from what the
 * embedding itself shows of how far it can be trusted:
 *
 *   score  = z(lexical) + w z(dense)
 *   w      = min(1, 7 coverage^3 agreement words size depth), at least 0.001
 *
 *   z          the score less its mean over the core, by its deviation there.
 *              It keeps the gap of a hit that stands out, which ranks lose:
 *              rank fusion lost up to 0.21 on questions for one passage.
 *   coverage   |xV| / |x| of the query: how much of it the embedding sees. Rare
 *              names are not in it, and these are what such questions turn on.
 *              The strongest of the signs that were tried: its third power
 *              costs little where the embedding helps and halves the loss where
 *              it does not.
 *   agreement  dense score of the best lexical hit against the best dense score,
 *              0.5 and below is 0, 1 is 1: rankings with nothing in common.
 *   words      n / (n + 6): two words say little about a topic.
 *   size       segments of 150 tokens and more 1, shorter ones less: a sentence
 *              has too few words to place it.
 *   depth      (segments / dimensions - 2) / 2, from 0 to 1: with hardly more
 *              segments than dimensions nothing was drawn together, the
 *              embedding is but the words again.
 *   Vectors of the client's do not come from words: the last three are 1 then.
 *
 * At the least weight the dense score does no more than order what no word
 * tells apart. Where no word is found at all it decides alone.
 *
 * Short segments (turns of a conversation, sentences, abstracts) often lack the
 * words that their neighbours have. So both scores inherit from the better of
 * the two neighbours in order of segment number, that is, of arrival:
 *
 *   all(i) = own(i) + reach kinship' lack(i) max(own(i-1), own(i+1))
 *
 *   lack       1 - own(i) / the best own score. Neighbours stand in for what a
 *              segment lacks, as two signs of one thing do (1 - all = product of
 *              1 - sign): what has the words itself owes its place to no
 *              neighbour, and none is overtaken by the luck of an address.
 *              Without it, of 203 questions whose order changed on sentences of
 *              passages 81 lost, with it 53 of 154.
 *   reach      0.8 for segments of up to 100 tokens, falling to 0 at 200: a full
 *              segment has its own context. It is taken from the mean size of
 *              the best hits, not from each segment: that favoured the shorter.
 *   kinship'   measured for each query: do neighbours of its best hits, in
 *              other documents, score more than segments anywhere? In a shuffled
 *              collection they do not, and nothing is inherited.
 *   A neighbour in the same document gives 0.3 of that: its own parts are hits
 *   of the same document anyhow, and long documents would win by their length.
 *
 * Constants were chosen on collections of many kinds (abstracts, questions on
 * passages, sentences in order and shuffled, manuals, encyclopedia, textbook,
 * speeches, novels). Neighbouring values serve nearly as well. On 15 of them
 * (214 to 1,308 questions each) hybrid is above BM25 alone on 12, by up to
 * 0.037 nDCG@10, and at most 0.0015 below on three: shuffled sentences, articles
 * asked for by their first sentence or their title. That is within one standard
 * error there.
 * Threads: any; no state. */
#include "fusion.h"

#include <math.h>

#define WEIGHT_SCALE   7.0
#define WEIGHT_MOST    1.0
#define WEIGHT_LEAST   0.001
#define AGREEMENT_NONE 0.5
#define WORDS_HALF     6.0
#define SIZE_FULL      150.0
#define DEPTH_NONE     2.0
#define REACH_MOST     0.8
#define REACH_WHOLE    100.0
#define REACH_NONE     200.0
#define KINSHIP_NONE   0.05
#define KINSHIP_WHOLE  0.2
#define SAME_DOCUMENT  0.3

static double
clamp(double v, double low, double high)
{
    return v < low ? low : v > high ? high : v;
}

/* The cosine as a score: none is 0, and so is the opposite. */
static double
dense_score_of(const struct fusion_row *row)
{
    return row->dense > 0 ? (double)row->dense : 0.0; // NaN is not above 0
}

static double
own_score(const struct fusion_row *row, bool dense)
{
    return dense ? dense_score_of(row) : (double)row->lexical;
}

/* ---- neighbours ---- */

double
fusion_reach(double tokens)
{
    double part = (REACH_NONE - tokens) / (REACH_NONE - REACH_WHOLE);

    return REACH_MOST * clamp(part, 0, 1);
}

/* Row of the segment right before (step -1) or after (1) row i, or NULL. */
static const struct fusion_row *
neighbour(const struct fusion_row *rows, size_t n, size_t i, int step)
{
    const struct fusion_row *other;

    if ((step < 0 && i == 0) || (step > 0 && i + 1 == n))
        return NULL;
    // Rows are sorted, so the neighbour is the next row or none.
    other = step < 0 ? &rows[i - 1] : &rows[i + 1];
    if ((other->roles & FUSION_IS_GONE) != 0 ||
        other->segno != rows[i].segno + (mb_segno)step)
        return NULL;
    return other;
}

double
fusion_kinship(const struct fusion_row *rows, size_t n, bool dense)
{
    unsigned probe = dense ? FUSION_IS_DENSE_PROBE : FUSION_IS_LEXICAL_PROBE;
    double common = 0, given = 0, own = 0;
    size_t n_control = 0;

    for (size_t i = 0; i < n; i++) {
        if ((rows[i].roles & (FUSION_IS_CONTROL | FUSION_IS_GONE)) ==
            FUSION_IS_CONTROL) {
            common += own_score(&rows[i], dense);
            n_control++;
        }
    }
    if (n_control == 0)
        return 0;
    common /= (double)n_control;
    for (size_t i = 0; i < n; i++) {
        if ((rows[i].roles & probe) == 0)
            continue;
        for (int step = -1; step <= 1; step += 2) {
            const struct fusion_row *other = neighbour(rows, n, i, step);

            if (other == NULL || other->docno == rows[i].docno)
                continue;
            given += own_score(other, dense) - common;
            own += own_score(&rows[i], dense) - common;
        }
    }
    return own > 1e-9 ? given / own : 0;
}

/* The better of the two neighbours' scores, as far as it is inherited. */
static double
inheritance(const struct fusion_row *rows, size_t n, size_t i, bool dense)
{
    double best = 0;

    for (int step = -1; step <= 1; step += 2) {
        const struct fusion_row *other = neighbour(rows, n, i, step);
        double score;

        if (other == NULL)
            continue;
        score = own_score(other, dense);
        if (other->docno == rows[i].docno)
            score *= SAME_DOCUMENT;
        if (score > best)
            best = score;
    }
    return best;
}

static double
best_own(const struct fusion_row *rows, size_t n, bool dense)
{
    double best = 0;

    for (size_t i = 0; i < n; i++) {
        double own = own_score(&rows[i], dense);

        if ((rows[i].roles & FUSION_IS_GONE) == 0 && own > best)
            best = own;
    }
    return best;
}

/* Own score and what neighbours add to it. */
static double
joined(const struct fusion_row *rows, size_t n, size_t i, bool dense,
    double part, double best)
{
    double own = own_score(&rows[i], dense);
    double lack = best > 0 ? 1 - own / best : 0;

    return lack > 0 ? own + part * lack * inheritance(rows, n, i, dense) : own;
}

void
fusion_inherit(struct fusion_row *rows, size_t n, double reach, double kinship)
{
    double best_lexical = best_own(rows, n, false);
    double best_dense = best_own(rows, n, true);
    double part =
        reach *
        clamp((kinship - KINSHIP_NONE) / (KINSHIP_WHOLE - KINSHIP_NONE), 0, 1);

    for (size_t i = 0; i < n; i++) {
        double lexical = own_score(&rows[i], false);
        double dense = own_score(&rows[i], true);

        if (part > 0 && (rows[i].roles & FUSION_IS_CANDIDATE) != 0) {
            lexical = joined(rows, n, i, false, part, best_lexical);
            dense = joined(rows, n, i, true, part, best_dense);
        }
        rows[i].lexical_all = (float)lexical;
        rows[i].dense_all = (float)dense;
    }
}

/* ---- one score ---- */

static float
all_score(const struct fusion_row *row, bool dense)
{
    return dense ? row->dense_all : row->lexical_all;
}

/* Mean of one score over the core, and 1 / deviation (0 if all are equal). */
struct scale {
    double mean;
    double factor;
};

static struct scale
scale_of(const struct fusion_row *rows, size_t n, bool dense)
{
    struct scale s = {0, 0};
    double sum = 0, squares = 0;
    size_t n_core = 0;

    for (size_t i = 0; i < n; i++) {
        if ((rows[i].roles & FUSION_IS_CORE) != 0) {
            sum += (double)all_score(&rows[i], dense);
            n_core++;
        }
    }
    if (n_core == 0)
        return s;
    s.mean = sum / (double)n_core;
    for (size_t i = 0; i < n; i++) {
        if ((rows[i].roles & FUSION_IS_CORE) != 0) {
            double d = (double)all_score(&rows[i], dense) - s.mean;

            squares += d * d;
        }
    }
    squares /= (double)n_core;
    if (squares > 1e-18)
        s.factor = 1 / sqrt(squares);
    return s;
}

double
fusion_weight(
    const struct fusion_row *rows, size_t n, const struct fusion_query *q)
{
    const struct fusion_row *best = NULL;
    double most = 0, agreement, words, size, depth, coverage;

    for (size_t i = 0; i < n; i++) {
        if ((rows[i].roles & FUSION_IS_CORE) == 0)
            continue;
        if (best == NULL || rows[i].lexical_all > best->lexical_all)
            best = &rows[i];
        if ((double)rows[i].dense_all > most)
            most = (double)rows[i].dense_all;
    }
    if (best == NULL || most <= 0)
        return WEIGHT_LEAST;
    agreement = clamp(((double)best->dense_all / most - AGREEMENT_NONE) /
                          (1 - AGREEMENT_NONE),
        0, 1);
    coverage = clamp((double)q->coverage, 0, 1);
    words = size = depth = 1;
    if (q->is_folded) {
        words = (double)q->n_terms / ((double)q->n_terms + WORDS_HALF);
        size = clamp(q->segment_tokens / SIZE_FULL, 0, 1);
        depth = clamp((q->depth - DEPTH_NONE) / DEPTH_NONE, 0, 1);
    }
    return clamp(
        WEIGHT_SCALE * pow(coverage, 3) * agreement * words * size * depth,
        WEIGHT_LEAST, WEIGHT_MOST);
}

void
fusion_score(struct fusion_row *rows, size_t n, const struct fusion_query *q)
{
    struct scale lexical = scale_of(rows, n, false);
    struct scale dense = scale_of(rows, n, true);
    double weight = !q->has_dense     ? 0
                    : !q->has_lexical ? 1
                                      : fusion_weight(rows, n, q);

    for (size_t i = 0; i < n; i++) {
        double zl =
            ((double)rows[i].lexical_all - lexical.mean) * lexical.factor;
        double zd = ((double)rows[i].dense_all - dense.mean) * dense.factor;

        rows[i].score = (float)(zl + weight * zd);
    }
}
