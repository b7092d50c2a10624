/* SPDX-License-Identifier: Apache-2.0
 * daemon/reader.h - the model that reads: decoder, tokenizer, engine.
 *
 * The store's segments are measured by the bundled model's tokenizer, whatever
 * model reads. So any GGUF file may be the reader, another one at each start;
 * and one that cannot be used as a decoder leaves everything but generate,
 * score and embeddings by the model at work.
 * Life: reader_open -> ... -> reader_stop -> reader_close.
 * Threads: any, but open, stop and close. */
#ifndef DAEMON_READER_H
#define DAEMON_READER_H

#include "config.h"
#include "mb_chat.h"
#include "mb_companion.h"
#include "mb_engine.h"

#define READER_FINGERPRINT 16

struct reader;

/* Errors: those of mb_gguf_open. A file that is no decoder for us is none. */
MB_MUST_USE mb_status reader_open(const struct config *cfg, const char *path,
    struct reader **out, struct mb_error *err);
/* End all requests; their callbacks come before it returns. */
void reader_stop(struct reader *r);
void reader_close(struct reader *r);

/* OK if it can read. NOT_IMPLEMENTED: names `what` (an operation), the file and
 * why it cannot. SHUTTING_DOWN after reader_stop. */
MB_MUST_USE mb_status reader_check(
    const struct reader *r, const char *what, struct mb_error *err);
/* NULL if it can. */
const char *reader_absence(const struct reader *r);
const char *reader_name(const struct reader *r); /* of the model */
const char *reader_path(const struct reader *r);
const char *reader_file(const struct reader *r); /* the last part of it */
/* These may be asked only of one that can read. */
const struct mb_gguf *reader_gguf(const struct reader *r);
const struct mb_decoder *reader_decoder(const struct reader *r);
const struct mb_decoder_info *reader_info(const struct reader *r);
const struct mb_tokenizer *reader_tokenizer(const struct reader *r);
struct mb_engine *reader_engine(const struct reader *r);
/* 1 if the model wants a bos in front of what it reads, else 0. */
size_t reader_n_head(const struct reader *r);
/* The *n tokens that end a text. */
const mb_token_id *reader_ends(const struct reader *r, size_t *n);
/* Of the whole file. Slow for a large file when asked for the first time. */
void reader_fingerprint(struct reader *r, uint8_t out[READER_FINGERPRINT]);

/* What membank adds to the model (mb_companion.h), read when it is asked for
 * first; valid as long as r; and its own fingerprint. Errors: NOT_IMPLEMENTED
 * (there is none that fits: names the model and why). */
MB_MUST_USE mb_status reader_companion(struct reader *r,
    const struct companion **out, uint8_t fingerprint[READER_FINGERPRINT],
    struct mb_error *err);

/* The template of conversations. Errors: NOT_IMPLEMENTED (the file has none, or
 * one that is not known). */
MB_MUST_USE mb_status reader_chat(
    const struct reader *r, const struct mb_chat **out, struct mb_error *err);

/* Append the ids of text, with the head in front if `head`.
 * Errors: TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status reader_encode(const struct reader *r, bool head,
    struct mb_slice text, struct mb_buffer *out, struct mb_error *err);
/* The same of a context and a text as one, so that words merge as they would
 * when read. *n_context: ids, the head's included, that are the context's
 * alone; one that belongs to both is the text's. Errors: TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status reader_encode_both(const struct reader *r,
    struct mb_slice context, struct mb_slice text, struct mb_buffer *ids,
    size_t *n_context, struct mb_error *err);

#endif
