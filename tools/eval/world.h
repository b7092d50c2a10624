/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/world.h - a made-up world of facts with a long tail.
 *
 * Topics make a tree of three levels. Each leaf has ten entities with a unique
 * name, two in each of five classes of how often they are spoken of (weights 1,
 * 3, 9, 27, 81, as in Zipf's law), and each entity has a code of two tokens that
 * nothing tells but the text. The 118 chemical elements live in the first
 * leaves, with their atomic numbers for codes and made-up frequencies. A
 * document is a window of WORLD_ROWS tokens about one leaf: four facts among
 * phrases that all documents share (common knowledge) and words of its topics.
 *
 * A word is one token or several syllables: the model reads tokens, whoever
 * routes reads words. Everything follows from the seed.
 * Threads: immutable once made. */
#ifndef EVAL_WORLD_H
#define EVAL_WORLD_H

#include "mb_model.h"

#define WORLD_ROWS     64u
#define WORLD_VOCAB    1024u
#define WORLD_LEVELS   3u
#define WORLD_BUCKETS  5u
#define WORLD_PER_LEAF 10u
#define WORLD_ELEMENTS 118u
#define WORLD_MAX_TEXT 640u /* bytes of a document's text */
#define WORLD_MAX_NAME 16u
#define WORLD_FACTS    4u /* of a document at most */
#define WORLD_NAME     3u /* tokens of a name */
#define WORLD_PROMPT   8u /* tokens of a question at most */

/* What a token of a document is part of. */
typedef enum world_kind {
    WORLD_COMMON = 0, /* a phrase that all share, beyond its first word */
    WORLD_TOPIC = 1,
    WORLD_FACT = 2,
    WORLD_CODE = 3, /* what a fact says */
    WORLD_START = 4 /* of a phrase: could be any */
} world_kind;

struct world_entity {
    char name[WORLD_MAX_NAME];
    mb_token_id tokens[WORLD_NAME];
    mb_token_id code[2];
    uint32_t leaf;
    uint32_t bucket; /* 0: spoken of least */
    bool is_element;
    bool is_late; /* no document but world_late_document's speaks of it */
    uint32_t weight;
};

struct world;

/* fan_out: topics below a topic, 2 to 8. Errors: BAD_ARG, NOMEM. */
MB_MUST_USE mb_status world_new(
    uint32_t fan_out, uint64_t seed, struct world **out, struct mb_error *err);
void world_free(struct world *w);
uint32_t world_n_leaves(const struct world *w);
/* Those of documents first, then the late ones. */
size_t world_n_entities(const struct world *w);
size_t world_n_late(const struct world *w);
const struct world_entity *world_entity(const struct world *w, size_t i);

struct world_document {
    mb_token_id tokens[WORLD_ROWS];
    uint8_t kinds[WORLD_ROWS]; /* world_kind of each token */
    uint32_t leaf;
    uint32_t n_facts;
    uint32_t facts[WORLD_FACTS]; /* entities that are spoken of */
    char text[WORLD_MAX_TEXT];
};

/* Document i of a stream; streams of other numbers are other texts. */
void world_document(const struct world *w, uint64_t stream, uint64_t i,
    struct world_document *out);
/* The same about the late entities, which are the text's only facts. */
void world_late_document(
    const struct world *w, uint64_t i, struct world_document *out);
/* The question for an entity's code: tokens into out, its words into text;
 * returns how many tokens. */
size_t world_prompt(const struct world *w, size_t entity,
    mb_token_id out[WORLD_PROMPT], char text[WORLD_MAX_TEXT]);

/* Symbol and name of the element of atomic number z, 1 to 118. */
struct element {
    const char *symbol;
    const char *name;
};

const struct element *element_of(uint32_t z);

#endif
