/* SPDX-License-Identifier: Apache-2.0
 * tools/dump/labels.c - bags of weighted terms, and words for stems.
 *
 * Both tables are open-addressing hashes with linear probing, at most half
 * full. Bags are pruned to a few hundred terms once filled, so that a tree of
 * thousands of nodes fits in a few megabytes.
 * Invariant: a bag's slot is used if its weight is above 0.
 * Threads: one. */
#include "labels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LEARN_BYTES 65536 /* of one text */

/* ---- words for stems ---- */

struct word {
    uint64_t hash; /* of the word; 0: free */
    uint64_t term; /* hash of its stem */
    uint32_t count;
    char text[LABEL_WORD];
};

/* stem -> its most frequent word, as a position in words. */
struct best {
    uint64_t term; /* 0: free */
    uint32_t word;
};

struct labels {
    struct mb_snapshot *snap;
    const struct mb_collection *coll;
    struct mb_analyzer *analyzer;
    struct mb_arena *arena; /* for one word */
    float *idf;             /* (n_idf) by term id; negative: not looked up */
    size_t n_idf;
    struct word *words;
    struct best *best;
    size_t n_words;
    size_t n_slots; /* of both tables, a power of two */
};

mb_status
labels_new(struct mb_snapshot *snap, const struct mb_collection *coll,
    struct labels **out, struct mb_error *err)
{
    struct labels *l = mb_calloc(1, sizeof *l);
    mb_status st;

    if (l == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "labels");
    l->snap = snap;
    l->coll = coll;
    l->n_idf = coll->next_term;
    st = mb_analyzer_new(coll->settings.language, &l->analyzer, err);
    if (st != MB_OK) {
        labels_free(l);
        return st;
    }
    l->arena = mb_arena_new(1 << 20);
    l->idf = mb_calloc(l->n_idf + 1, sizeof *l->idf);
    l->n_slots = 1024;
    l->words = mb_calloc(l->n_slots, sizeof *l->words);
    l->best = mb_calloc(l->n_slots, sizeof *l->best);
    if (l->arena == NULL || l->idf == NULL || l->words == NULL ||
        l->best == NULL) {
        labels_free(l);
        return mb_error_set(err, MB_ERR_NOMEM, "labels");
    }
    for (size_t i = 0; i < l->n_idf; i++) {
        l->idf[i] = -1;
    }
    *out = l;
    return MB_OK;
}

void
labels_free(struct labels *l)
{
    if (l == NULL)
        return;
    mb_analyzer_free(l->analyzer);
    mb_arena_free(l->arena);
    mb_free(l->idf);
    mb_free(l->words);
    mb_free(l->best);
    mb_free(l);
}

static size_t
word_slot(const struct labels *l, uint64_t hash)
{
    size_t i = hash & (l->n_slots - 1);

    while (l->words[i].hash != 0 && l->words[i].hash != hash) {
        i = (i + 1) & (l->n_slots - 1);
    }
    return i;
}

static size_t
best_slot(const struct labels *l, uint64_t term)
{
    size_t i = term & (l->n_slots - 1);

    while (l->best[i].term != 0 && l->best[i].term != term) {
        i = (i + 1) & (l->n_slots - 1);
    }
    return i;
}

static void
note_best(struct labels *l, size_t word)
{
    struct best *b;

    if (l->words[word].term == 0)
        return;
    b = &l->best[best_slot(l, l->words[word].term)];
    if (b->term == 0 || l->words[word].count > l->words[b->word].count) {
        b->term = l->words[word].term;
        b->word = (uint32_t)word;
    }
}

static mb_status
grow_words(struct labels *l)
{
    struct word *old = l->words;
    size_t n_old = l->n_slots;
    struct word *words = mb_calloc(n_old * 2, sizeof *words);
    struct best *best = mb_calloc(n_old * 2, sizeof *best);

    if (words == NULL || best == NULL) {
        mb_free(words);
        mb_free(best);
        return MB_ERR_NOMEM;
    }
    mb_free(l->best);
    l->words = words;
    l->best = best;
    l->n_slots = n_old * 2;
    for (size_t i = 0; i < n_old; i++) {
        size_t to;

        if (old[i].hash == 0)
            continue;
        to = word_slot(l, old[i].hash);
        l->words[to] = old[i];
        note_best(l, to);
    }
    mb_free(old);
    return MB_OK;
}

/* Count a word; at its first time find out its stem. */
static mb_status
learn_word(struct labels *l, const char *text, size_t size)
{
    uint64_t hash = mb_hash64(text, size, 0) | 1;
    size_t at = word_slot(l, hash);
    struct mb_term *terms;
    size_t n;
    mb_status st;

    if (l->words[at].hash == 0) {
        if (l->n_words * 2 >= l->n_slots) {
            st = grow_words(l);
            if (st != MB_OK)
                return st;
            at = word_slot(l, hash);
        }
        mb_arena_reset(l->arena);
        st = mb_analyze(
            l->analyzer, mb_slice_of(text, size), l->arena, &terms, &n, NULL);
        if (st != MB_OK)
            return st;
        l->words[at].hash = hash;
        // A word of several terms (CJK bigrams) stands for none of them.
        l->words[at].term = n == 1 ? terms[0].hash : 0;
        memcpy(l->words[at].text, text, size);
        l->words[at].text[size] = 0;
        l->n_words++;
    }
    l->words[at].count++;
    note_best(l, at);
    return MB_OK;
}

static bool
is_word_byte(uint8_t c)
{
    return c >= 0x80 || (c >= '0' && c <= '9') ||
           ((c | 32) >= 'a' && (c | 32) <= 'z');
}

mb_status
labels_learn(struct labels *l, struct mb_slice text)
{
    size_t end = text.size < LEARN_BYTES ? text.size : LEARN_BYTES;
    mb_status st = MB_OK;

    for (size_t i = 0; i < end && st == MB_OK;) {
        char word[LABEL_WORD];
        size_t n = 0;

        for (; i + n < text.size && is_word_byte(text.data[i + n]); n++) {
            uint8_t c = text.data[i + n];

            if (n < sizeof word)
                word[n] = (char)(c >= 'A' && c <= 'Z' ? c | 32 : c);
        }
        if (n > 2 && n < sizeof word &&
            mb_utf8_is_valid(mb_slice_of(word, n), NULL))
            st = learn_word(l, word, n);
        i += n > 0 ? n : 1;
    }
    return st;
}

/* ---- bags ---- */

struct weight {
    uint32_t term;
    float w; /* 0: free */
};

struct bag {
    struct weight *slots; /* (n_slots), a power of two */
    size_t n_slots;
    size_t n;
    uint64_t n_segments;
};

struct bag *
bag_new(void)
{
    struct bag *b = mb_calloc(1, sizeof *b);

    if (b == NULL)
        return NULL;
    b->n_slots = 64;
    b->slots = mb_calloc(b->n_slots, sizeof *b->slots);
    if (b->slots == NULL) {
        mb_free(b);
        return NULL;
    }
    return b;
}

void
bag_free(struct bag *b)
{
    if (b == NULL)
        return;
    mb_free(b->slots);
    mb_free(b);
}

uint64_t
bag_segments(const struct bag *b)
{
    return b->n_segments;
}

static struct weight *
bag_slot(const struct bag *b, uint32_t term)
{
    // Fibonacci hashing: term ids are dense and would cluster.
    size_t i = (size_t)(term * 2654435769u) & (b->n_slots - 1);

    while (b->slots[i].w > 0 && b->slots[i].term != term) {
        i = (i + 1) & (b->n_slots - 1);
    }
    return &b->slots[i];
}

static mb_status
bag_resize(struct bag *b, size_t n_slots)
{
    struct weight *old = b->slots;
    size_t n_old = b->n_slots;
    struct weight *slots = mb_calloc(n_slots, sizeof *slots);

    if (slots == NULL)
        return MB_ERR_NOMEM;
    b->slots = slots;
    b->n_slots = n_slots;
    for (size_t i = 0; i < n_old; i++) {
        if (old[i].w > 0)
            *bag_slot(b, old[i].term) = old[i];
    }
    mb_free(old);
    return MB_OK;
}

static mb_status
bag_put(struct bag *b, uint32_t term, float w)
{
    struct weight *slot = bag_slot(b, term);

    if (!(w > 0))
        return MB_OK;
    if (slot->w > 0) {
        slot->w += w;
        return MB_OK;
    }
    if (b->n * 2 >= b->n_slots) {
        mb_status st = bag_resize(b, b->n_slots * 2);

        if (st != MB_OK)
            return st;
        slot = bag_slot(b, term);
    }
    slot->term = term;
    slot->w = w;
    b->n++;
    return MB_OK;
}

/* True for what tells nothing as a label: numbers and very short words. */
static bool
is_dull(struct mb_slice term)
{
    bool digits = true;

    for (size_t i = 0; i < term.size; i++) {
        digits = digits && term.data[i] >= '0' && term.data[i] <= '9';
    }
    return digits || (term.size < 3 && term.data[0] < 0x80);
}

/* 0 for terms in more than one segment of five: they tell nothing either. */
static float
term_idf(struct labels *l, uint32_t term)
{
    struct mb_slice bytes;
    double n = (double)l->coll->n_segments;
    uint32_t df = 0;

    if (term >= l->n_idf)
        return 0;
    if (l->idf[term] >= 0)
        return l->idf[term];
    l->idf[term] = 0;
    if (mb_term_get(l->snap, l->coll, term, &bytes, &df, NULL) == MB_OK &&
        df > 0 && !is_dull(bytes) && (double)df * 5 <= n + 10)
        l->idf[term] = (float)log(1 + (n - df + 0.5) / (df + 0.5));
    return l->idf[term];
}

mb_status
bag_add_segment(
    struct bag *b, struct labels *l, const struct mb_segment *segment)
{
    size_t pos = 0;
    uint32_t term;
    uint32_t tf;
    mb_status st = MB_OK;

    while (st == MB_OK && mb_forward_next(segment->forward, &pos, &term, &tf)) {
        st = bag_put(b, term, logf(1 + (float)tf) * term_idf(l, term));
    }
    b->n_segments++;
    return st;
}

mb_status
bag_add(struct bag *b, const struct bag *other)
{
    mb_status st = MB_OK;

    for (size_t i = 0; i < other->n_slots && st == MB_OK; i++) {
        if (other->slots[i].w > 0)
            st = bag_put(b, other->slots[i].term, other->slots[i].w);
    }
    b->n_segments += other->n_segments;
    return st;
}

static int
heavier(const void *a, const void *b)
{
    const struct weight *x = a;
    const struct weight *y = b;

    if (x->w != y->w)
        return x->w < y->w ? 1 : -1;
    return x->term < y->term ? -1 : x->term > y->term ? 1 : 0;
}

/* All terms, heaviest first; NULL when memory is short. */
static struct weight *
bag_sorted(const struct bag *b)
{
    struct weight *list = mb_calloc(b->n + 1, sizeof *list);
    size_t n = 0;

    if (list == NULL)
        return NULL;
    for (size_t i = 0; i < b->n_slots; i++) {
        if (b->slots[i].w > 0)
            list[n++] = b->slots[i];
    }
    qsort(list, n, sizeof *list, heavier);
    return list;
}

mb_status
bag_prune(struct bag *b, size_t keep)
{
    struct weight *list;
    struct weight *slots;
    size_t n_slots = 64;

    if (b->n <= keep)
        return MB_OK;
    while (n_slots < keep * 2 + 2) {
        n_slots *= 2;
    }
    list = bag_sorted(b);
    slots = mb_calloc(n_slots, sizeof *slots);
    if (list == NULL || slots == NULL) {
        mb_free(list);
        mb_free(slots);
        return MB_ERR_NOMEM;
    }
    mb_free(b->slots);
    b->slots = slots;
    b->n_slots = n_slots;
    b->n = keep;
    for (size_t i = 0; i < keep; i++) {
        *bag_slot(b, list[i].term) = list[i];
    }
    mb_free(list);
    return MB_OK;
}

/* The word to show for a stem. */
static void
show_term(struct labels *l, uint32_t term, char out[LABEL_WORD])
{
    struct mb_slice bytes = {0};
    const struct best *best;
    uint32_t df;
    size_t n;

    out[0] = 0;
    if (mb_term_get(l->snap, l->coll, term, &bytes, &df, NULL) != MB_OK)
        return;
    best = &l->best[best_slot(l, mb_hash64(bytes.data, bytes.size, 0))];
    if (best->term != 0) {
        memcpy(out, l->words[best->word].text, LABEL_WORD);
        return;
    }
    n = bytes.size < LABEL_WORD - 1 ? bytes.size : LABEL_WORD - 1;
    while (n > 0 && n < bytes.size && (bytes.data[n] & 0xC0) == 0x80) {
        n--;
    }
    memcpy(out, bytes.data, n);
    out[n] = 0;
}

size_t
bag_labels(const struct bag *b, const struct bag *parent, struct labels *l,
    struct label *out, size_t max)
{
    struct weight *list = bag_sorted(b);
    size_t n = 0;

    if (list == NULL)
        return 0;
    // What sets a node apart: its mean weight, raised where it is above the
    // parent's.
    for (size_t i = 0; i < b->n && parent != NULL && b->n_segments > 0; i++) {
        float mine = list[i].w / (float)b->n_segments;
        float theirs =
            bag_slot(parent, list[i].term)->w / (float)(parent->n_segments + 1);

        list[i].w = mine * sqrtf(mine / (theirs + 0.02f));
    }
    qsort(list, b->n, sizeof *list, heavier);
    for (size_t i = 0; i < b->n && n < max; i++) {
        show_term(l, list[i].term, out[n].word);
        out[n].weight = list[i].w / list[0].w;
        n += out[n].word[0] != 0 ? 1 : 0;
    }
    mb_free(list);
    return n;
}
