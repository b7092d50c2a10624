/* SPDX-License-Identifier: Apache-2.0
 * daemon/cmd_read.h - what the reading commands have in common.
 * Threads: a worker or mb-io. */
#ifndef DAEMON_CMD_READ_H
#define DAEMON_CMD_READ_H

#include "commands.h"

/* Fields of hits and documents, as `fields` names them. */
enum field {
    FIELD_ID,
    FIELD_SEGMENT,
    FIELD_SCORE,
    FIELD_START,
    FIELD_END,
    FIELD_TEXT,
    FIELD_TITLE,
    FIELD_META,
    FIELD_DENSE,
    FIELD_LEXICAL,
    FIELD_SEGNO,
    FIELD_SEGMENTS,
    FIELD_TOKENS,
    FIELD_TEXT_BYTES,
    FIELD_ADDED_MS,
    FIELD_N
};

#define F(name) (1u << FIELD_##name)

/* The set that args.fields names, `def` if it is absent; `always` is in it in
 * any case. Errors: BAD_ARG (not in `possible`). */
MB_MUST_USE mb_status fields_read(const struct mb_value *args,
    unsigned possible, unsigned always, unsigned def, unsigned *out,
    struct mb_error *err);
size_t fields_count(unsigned fields);
/* "meta": the map, empty if there is none. */
void write_meta(struct mb_writer *w, struct mb_slice meta);

/* A snapshot and the collection that args.collection names; the caller ends
 * the snapshot. Errors: NOT_FOUND. */
MB_MUST_USE mb_status call_snapshot(
    struct call *c, struct mb_snapshot **snap, struct mb_collection *coll);

/* Fold terms in: out (dim of lsa). Errors: NOMEM. */
MB_MUST_USE mb_status embed_terms(const struct mb_lsa *lsa,
    const struct mb_term *terms, size_t n, struct mb_arena *arena, float *out,
    float *coverage, struct mb_error *err);
/* *out: `in` scaled to unit length, in arena. Errors: BAD_ARG (all zero; names
 * `what`), NOMEM. */
MB_MUST_USE mb_status scale_to_unit(const float *in, size_t dim,
    const char *what, struct mb_arena *arena, const float **out,
    struct mb_error *err);

#endif
