/* SPDX-License-Identifier: Apache-2.0
 * tools/dump/labels.h - which words say what a set of segments is about.
 *
 * A bag sums log(1 + tf) * idf of the terms of some segments. Its heaviest
 * terms, those above all that its parent's bag does not have as heavy, are the
 * label. The store keeps stems only ("economi"); the word to show for a stem is
 * the most frequent one in the texts that labels_learn has seen.
 * Threads: one. */
#ifndef DUMP_LABELS_H
#define DUMP_LABELS_H

#include "mb_store.h"

struct labels;
struct bag;

#define LABEL_WORD 40 /* bytes, with NUL */

struct label {
    char word[LABEL_WORD];
    float weight; /* part of the bag's heaviest, in (0, 1] */
};

/* Errors: BAD_ARG (language), NOMEM. coll and snap must outlive it. */
MB_MUST_USE mb_status labels_new(struct mb_snapshot *snap,
    const struct mb_collection *coll, struct labels **out,
    struct mb_error *err);
void labels_free(struct labels *l);
/* Remember which words the stems of this text stand for. */
MB_MUST_USE mb_status labels_learn(struct labels *l, struct mb_slice text);

struct bag *bag_new(void);
void bag_free(struct bag *b);
uint64_t bag_segments(const struct bag *b);
/* Add the terms of a segment. Errors: NOMEM. */
MB_MUST_USE mb_status bag_add_segment(
    struct bag *b, struct labels *l, const struct mb_segment *segment);
/* Add all of another. */
MB_MUST_USE mb_status bag_add(struct bag *b, const struct bag *other);
/* Keep the `keep` heaviest terms. */
MB_MUST_USE mb_status bag_prune(struct bag *b, size_t keep);

/* At most max labels, heaviest first; parent may be NULL. Returns how many. */
size_t bag_labels(const struct bag *b, const struct bag *parent,
    struct labels *l, struct label *out, size_t max);

#endif
