/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/world.c - see world.h.
 *
 * Tokens: the beginning of text, seven words of statements, COMMON words of the
 * phrases, words of the topics of the first and second level, SYLLABLES of which
 * names and the words of leaves are made, CODES. Words are spelled so that no
 * two are alike and none has an ending that stemming would take. */
#include "world.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define BOS    0
#define CODE   1
#define OF     2
#define IS     3
#define STOP   4
#define ATOMIC 5
#define NUMBER 6
#define IN     7

#define COMMON      8u /* first of a stretch of tokens, and how many */
#define N_COMMON    240u
#define TOPIC1      (COMMON + N_COMMON)
#define PER_TOPIC   4u
#define TOPIC2      (TOPIC1 + 8u * PER_TOPIC)
#define PER_SECOND  2u
#define SYLLABLES   (TOPIC2 + 64u * PER_SECOND)
#define N_SYLLABLES 128u
#define CODES       (SYLLABLES + N_SYLLABLES)
#define N_CODES     45u

#define N_PHRASES    60u
#define PHRASE_WORDS 6u
#define LEAF_WORDS   2u
#define N_LATE       10u
#define TRIES        100000u

#define STREAM_LATE UINT64_MAX

static const uint32_t weights[WORLD_BUCKETS] = {1, 3, 9, 27, 81};

struct world {
    uint32_t fan_out;
    uint32_t n_leaves;
    uint64_t seed;
    mb_token_id phrases[N_PHRASES][PHRASE_WORDS];
    mb_token_id (*leaf_words)[LEAF_WORDS][2]; /* (n_leaves) */
    struct world_entity *entities;            /* by leaf, the late ones last */
    size_t n_entities;
    uint32_t *first; /* (n_leaves + 2) entities of a leaf; then the late */
};

/* A document as it grows. */
struct page {
    struct world_document *to;
    size_t n;
    size_t size; /* of the text */
};

/* ---- spelling ---- */

/* Letters of token `id`; words are these one after another. */
static void
spell(mb_token_id id, char out[8])
{
    static const char *const statement[] = {
        "", "code", "of", "is", ".", "atomic", "number", "in"};
    static const char consonants[] = "bdfgklmnprtv";
    static const char vowels[] = "aeiou";
    uint32_t v = (uint32_t)id;
    char kind = 'h';
    uint32_t n = 2; /* pairs of letters behind the kind */

    if (v < COMMON) {
        (void)snprintf(out, 8, "%s", statement[v]);
        return;
    }
    if (v >= CODES) {
        kind = 'z';
        v -= CODES;
        n = 1;
    } else if (v >= SYLLABLES) { // a consonant, a vowel, a consonant
        v -= SYLLABLES;
        out[0] = consonants[v % 12];
        out[1] = vowels[v / 12 % 5];
        out[2] = "lnr"[v / 60];
        out[3] = '\0';
        return;
    } else if (v >= TOPIC1) {
        kind = 'j';
        v -= TOPIC1;
    } else {
        v -= COMMON;
    }
    out[0] = kind;
    for (uint32_t i = 0; i < n; i++, v /= 60) {
        out[1 + 2 * i] = vowels[v % 5];
        out[2 + 2 * i] = consonants[v / 5 % 12];
    }
    out[1 + 2 * n] = '\0';
}

/* A word of n tokens; spelled is what stands for it if not its tokens. */
static void
add_word(struct page *p, const mb_token_id *tokens, size_t n, world_kind kind,
    const char *spelled)
{
    struct world_document *d = p->to;

    if (p->n + n > WORLD_ROWS)
        return;
    if (p->size > 0 && tokens[0] != STOP)
        d->text[p->size++] = ' ';
    for (size_t i = 0; i < n; i++) {
        char letters[8];

        d->tokens[p->n] = tokens[i];
        d->kinds[p->n++] = (uint8_t)kind;
        spell(tokens[i], letters);
        if (spelled != NULL)
            continue;
        for (size_t c = 0; letters[c] != '\0'; c++)
            d->text[p->size++] = letters[c];
    }
    for (size_t c = 0; spelled != NULL && spelled[c] != '\0'; c++)
        d->text[p->size++] = spelled[c];
    d->text[p->size] = '\0';
}

static void
add_token(struct page *p, mb_token_id token, world_kind kind)
{
    add_word(p, &token, 1, kind, NULL);
}

/* ---- making ---- */

/* A word of n syllables that nobody has yet. */
static bool
draw_word(struct mb_rng *rng, uint8_t *taken, mb_token_id *out, size_t n)
{
    for (size_t tries = 0; tries < TRIES; tries++) {
        size_t number = 0;

        for (size_t i = 0; i < n; i++) {
            uint64_t s = mb_rng_below(rng, N_SYLLABLES);

            out[i] = (mb_token_id)(SYLLABLES + s);
            number = number * N_SYLLABLES + (size_t)s;
        }
        if (taken[number / 8] & (1u << number % 8))
            continue;
        taken[number / 8] |= (uint8_t)(1u << number % 8);
        return true;
    }
    return false;
}

static bool
draw_name(struct mb_rng *rng, uint8_t *taken, struct world_entity *e)
{
    if (!draw_word(rng, taken, e->tokens, WORLD_NAME))
        return false;
    for (size_t i = 0; i < WORLD_NAME; i++) {
        char letters[8];

        spell(e->tokens[i], letters);
        memcpy(e->name + 3 * i, letters, 4);
    }
    return true;
}

static void
draw_code(struct mb_rng *rng, struct world_entity *e)
{
    for (size_t i = 0; i < 2; i++)
        e->code[i] = (mb_token_id)(CODES + mb_rng_below(rng, N_CODES));
}

static bool
make_element(struct mb_rng *rng, uint8_t *taken, uint32_t z, uint32_t leaf,
    struct world_entity *e)
{
    const char *name = element_of(z)->name;

    e->leaf = leaf;
    e->is_element = true;
    e->bucket = (uint32_t)mb_rng_below(rng, WORLD_BUCKETS);
    e->weight = weights[e->bucket];
    if (!draw_name(rng, taken, e))
        return false;
    for (size_t i = 0; i + 1 < WORLD_MAX_NAME; i++) {
        e->name[i] = (char)tolower((unsigned char)name[i]);
        if (name[i] == '\0')
            break;
    }
    e->code[0] = (mb_token_id)(CODES + z / N_CODES);
    e->code[1] = (mb_token_id)(CODES + z % N_CODES);
    return true;
}

/* Entities of a leaf, its share of the elements behind them. */
static bool
make_leaf(struct world *w, struct mb_rng *rng, uint8_t *taken, uint32_t leaf)
{
    uint32_t share = (WORLD_ELEMENTS + w->n_leaves - 1) / w->n_leaves;
    uint32_t z = leaf * (share < 10 ? 10 : share) + 1;
    uint32_t end = z + (share < 10 ? 10 : share);

    w->first[leaf] = (uint32_t)w->n_entities;
    for (uint32_t i = 0; i < WORLD_PER_LEAF; i++) {
        struct world_entity *e = &w->entities[w->n_entities++];

        e->leaf = leaf;
        e->bucket = i % WORLD_BUCKETS;
        e->weight = weights[e->bucket];
        draw_code(rng, e);
        if (!draw_name(rng, taken, e))
            return false;
    }
    for (; z < end && z <= WORLD_ELEMENTS; z++) {
        if (!make_element(rng, taken, z, leaf, &w->entities[w->n_entities++]))
            return false;
    }
    return true;
}

static bool
make_late(struct world *w, struct mb_rng *rng, uint8_t *taken)
{
    w->first[w->n_leaves] = (uint32_t)w->n_entities;
    for (uint32_t i = 0; i < N_LATE; i++) {
        struct world_entity *e = &w->entities[w->n_entities++];

        e->is_late = true;
        e->weight = 1;
        draw_code(rng, e);
        if (!draw_name(rng, taken, e))
            return false;
    }
    w->first[w->n_leaves + 1] = (uint32_t)w->n_entities;
    return true;
}

static bool
make_words(struct world *w, struct mb_rng *rng)
{
    uint8_t *taken =
        mb_calloc(1, (size_t)N_SYLLABLES * N_SYLLABLES * N_SYLLABLES / 8);
    uint8_t *pairs = mb_calloc(1, (size_t)N_SYLLABLES * N_SYLLABLES / 8);
    bool ok = taken != NULL && pairs != NULL;

    for (size_t i = 0; i < N_PHRASES; i++) {
        for (size_t k = 0; k < PHRASE_WORDS; k++)
            w->phrases[i][k] =
                k == 0 ? (mb_token_id)(COMMON + i)
                       : (mb_token_id)(COMMON + mb_rng_below(rng, N_COMMON));
    }
    for (uint32_t l = 0; ok && l < w->n_leaves; l++) {
        for (size_t i = 0; ok && i < LEAF_WORDS; i++)
            ok = draw_word(rng, pairs, w->leaf_words[l][i], 2);
        ok = ok && make_leaf(w, rng, taken, l);
    }
    ok = ok && make_late(w, rng, taken);
    mb_free(taken);
    mb_free(pairs);
    return ok;
}

mb_status
world_new(
    uint32_t fan_out, uint64_t seed, struct world **out, struct mb_error *err)
{
    struct world *w = mb_calloc(1, sizeof *w);
    struct mb_rng rng;

    if (w == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "world");
    if (fan_out < 2 || fan_out > 8) {
        world_free(w);
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "--fan-out %u: must be 2 to 8", fan_out);
    }
    w->fan_out = fan_out;
    w->n_leaves = fan_out * fan_out * fan_out;
    w->seed = seed;
    w->leaf_words = mb_calloc(w->n_leaves, sizeof *w->leaf_words);
    w->first = mb_calloc(w->n_leaves + 2, sizeof *w->first);
    w->entities = mb_calloc(
        (size_t)w->n_leaves * WORLD_PER_LEAF + WORLD_ELEMENTS + N_LATE,
        sizeof *w->entities);
    mb_rng_init(&rng, seed);
    if (w->leaf_words == NULL || w->first == NULL || w->entities == NULL ||
        !make_words(w, &rng)) {
        world_free(w);
        return mb_error_set(err, MB_ERR_NOMEM, "world of %u topics", fan_out);
    }
    *out = w;
    return MB_OK;
}

void
world_free(struct world *w)
{
    if (w == NULL)
        return;
    mb_free(w->leaf_words);
    mb_free(w->first);
    mb_free(w->entities);
    mb_free(w);
}

uint32_t
world_n_leaves(const struct world *w)
{
    return w->n_leaves;
}

size_t
world_n_entities(const struct world *w)
{
    return w->n_entities;
}

size_t
world_n_late(const struct world *w)
{
    (void)w;
    return N_LATE;
}

const struct world_entity *
world_entity(const struct world *w, size_t i)
{
    return &w->entities[i];
}

/* ---- documents ---- */

static void
add_phrase(const struct world *w, struct page *p, struct mb_rng *rng)
{
    // Low numbers more often, as words are.
    double u = mb_rng_double(rng);
    const mb_token_id *words = w->phrases[(size_t)(u * u * N_PHRASES)];

    for (size_t i = 0; i < PHRASE_WORDS; i++)
        add_token(p, words[i], i == 0 ? WORLD_START : WORLD_COMMON);
}

static void
add_topic(const struct world *w, struct page *p, struct mb_rng *rng,
    uint32_t leaf, bool is_deep)
{
    uint32_t first = leaf / (w->fan_out * w->fan_out);
    uint32_t second = leaf / w->fan_out;

    add_token(p, IN, WORLD_TOPIC);
    if (is_deep) {
        add_word(p, w->leaf_words[leaf][mb_rng_below(rng, LEAF_WORDS)], 2,
            WORLD_TOPIC, NULL);
    } else {
        add_token(p,
            (mb_token_id)(TOPIC1 + first * PER_TOPIC +
                          mb_rng_below(rng, PER_TOPIC)),
            WORLD_TOPIC);
        add_token(p,
            (mb_token_id)(TOPIC2 + second * PER_SECOND +
                          mb_rng_below(rng, PER_SECOND)),
            WORLD_TOPIC);
    }
    add_token(p, STOP, WORLD_TOPIC);
}

static void
add_question(struct page *p, const struct world_entity *e)
{
    if (e->is_element) {
        add_token(p, ATOMIC, WORLD_FACT);
        add_token(p, NUMBER, WORLD_FACT);
    } else {
        add_token(p, CODE, WORLD_FACT);
    }
    add_token(p, OF, WORLD_FACT);
    add_word(p, e->tokens, WORLD_NAME, WORLD_FACT, e->name);
    add_token(p, IS, WORLD_FACT);
}

static void
add_fact(const struct world *w, struct page *p, struct mb_rng *rng,
    uint32_t place, uint32_t end)
{
    uint64_t sum = 0;
    size_t i = place;

    for (uint32_t k = place; k < end; k++)
        sum += w->entities[k].weight;
    uint64_t left = mb_rng_below(rng, sum);
    for (; left >= w->entities[i].weight; i++)
        left -= w->entities[i].weight;
    const struct world_entity *e = &w->entities[i];
    if (p->n + 10 > WORLD_ROWS) // the longest statement
        return;
    add_question(p, e);
    p->to->facts[p->to->n_facts++] = (uint32_t)i;
    add_token(p, e->code[0], WORLD_CODE);
    add_token(p, e->code[1], WORLD_CODE);
    add_token(p, STOP, WORLD_FACT);
}

static void
make_document(const struct world *w, uint64_t stream, uint64_t number,
    uint32_t place, uint32_t end, struct world_document *out)
{
    enum { FACT, PHRASE, TOPIC, LEAF };

    uint8_t pieces[] = {
        FACT, FACT, FACT, FACT, PHRASE, PHRASE, PHRASE, TOPIC, LEAF};
    const uint64_t key[] = {w->seed, stream, number};
    struct page page = {.to = out};
    struct mb_rng rng;

    mb_rng_init(&rng, mb_hash64(key, sizeof key, 1));
    for (size_t i = sizeof pieces; i > 1; i--) {
        size_t j = (size_t)mb_rng_below(&rng, i);
        uint8_t kept = pieces[i - 1];

        pieces[i - 1] = pieces[j];
        pieces[j] = kept;
    }
    add_token(&page, BOS, WORLD_COMMON);
    for (size_t i = 0; i < sizeof pieces; i++) {
        if (pieces[i] == FACT)
            add_fact(w, &page, &rng, place, end);
        else if (pieces[i] == PHRASE)
            add_phrase(w, &page, &rng);
        else
            add_topic(w, &page, &rng, out->leaf, pieces[i] == LEAF);
    }
    while (page.n < WORLD_ROWS)
        add_phrase(w, &page, &rng);
}

void
world_document(const struct world *w, uint64_t stream, uint64_t i,
    struct world_document *out)
{
    const uint64_t key[] = {w->seed, stream, i};
    uint32_t leaf = (uint32_t)(mb_hash64(key, sizeof key, 2) % w->n_leaves);

    *out = (struct world_document){.leaf = leaf};
    make_document(w, stream, i, w->first[leaf], w->first[leaf + 1], out);
}

void
world_late_document(
    const struct world *w, uint64_t i, struct world_document *out)
{
    *out = (struct world_document){.leaf = 0};
    make_document(w, STREAM_LATE, i, w->first[w->n_leaves],
        w->first[w->n_leaves + 1], out);
}

size_t
world_prompt(const struct world *w, size_t entity,
    mb_token_id out[WORLD_PROMPT], char text[WORLD_MAX_TEXT])
{
    struct world_document d = {.leaf = 0};
    struct page page = {.to = &d};

    add_token(&page, BOS, WORLD_COMMON);
    add_question(&page, &w->entities[entity]);
    memcpy(out, d.tokens, page.n * sizeof *out);
    memcpy(text, d.text, sizeof d.text);
    return page.n;
}
