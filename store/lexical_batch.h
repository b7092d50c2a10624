/* SPDX-License-Identifier: Apache-2.0
 * store/lexical_batch.h - what a write transaction gathered for the index.
 *
 * lexical.c fills it, lexical_flush.c writes it to the tables.
 * Threads: the writer's. */
#ifndef STORE_LEXICAL_BATCH_H
#define STORE_LEXICAL_BATCH_H

#include "lexical.h"

/* A term touched in this transaction. */
struct touched {
    struct wcoll *wc;
    uint32_t id;
    uint32_t n_adds;
    uint32_t n_removes;
    uint32_t term;      /* new ones: where their bytes are */
    uint32_t term_size; /* 0: not new */
};

struct gathered_add {
    uint32_t touched;
    uint32_t segno;
    uint16_t length;
    uint8_t tf;
};

struct gathered_remove {
    uint32_t touched;
    uint32_t segno;
};

struct known_term {
    uint64_t hash;
    uint64_t tag; /* 0: empty */
    uint32_t coll;
    uint32_t id;
};

/* A growing array; n and max count elements. */
struct array {
    void *data;
    size_t n;
    size_t max;
};

struct lex_batch {
    struct array touched; /* struct touched */
    uint32_t *table;      /* coll, id -> index + 1 into touched */
    size_t n_table;
    struct array adds;      /* struct gathered_add */
    struct array removes;   /* struct gathered_remove */
    struct mb_buffer terms; /* bytes of new terms */
    struct known_term *known;
    struct array learnt; /* uint32_t: entries of known from this transaction */
    uint64_t seed;
};

/* Forget the number of a term: its last posting is gone. */
void lex_batch_forget(
    struct lex_batch *b, mb_collection_id coll, struct mb_slice term);
/* Forget what was gathered: it is written, or void. */
void lex_batch_clear(struct lex_batch *b);

#endif
