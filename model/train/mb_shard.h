/* SPDX-License-Identifier: Apache-2.0
 * model/train/mb_shard.h - token shards: texts as a trainer reads them.
 *
 * A shard holds the tokens of documents one after the other, each with <s>
 * before and </s> behind it (where the vocabulary has these), so that a window
 * may begin anywhere. It names the tokenizer by its fingerprint: tokens of
 * another one are refused where it matters. Written once, whole or not at all;
 * read through a map. Bytes: model/FORMAT.md.
 * Threads: a shard is immutable and shared; a writer belongs to one thread. */
#ifndef MB_SHARD_H
#define MB_SHARD_H

#include "mb_model.h"

/* ---- writing ---- */

struct shard_writer;

/* Errors: IO, NO_SPACE, READ_ONLY, NOT_FOUND (folder), NOMEM. */
MB_MUST_USE mb_status shard_writer_new(const char *path,
    const struct mb_tokenizer *tok, struct shard_writer **out,
    struct mb_error *err);
/* One document: n tokens as mb_tokenizer_encode gives them, from text_bytes of
 * text. A failure to write waits for finish. Errors: NOMEM, BAD_ARG (a token
 * that the tokenizer does not have). */
MB_MUST_USE mb_status shard_writer_add(struct shard_writer *w,
    const struct mb_token *tokens, size_t n, uint64_t text_bytes,
    struct mb_error *err);
/* Makes the file. Takes w, whatever it returns. Errors: those of new. */
MB_MUST_USE mb_status shard_writer_finish(
    struct shard_writer *w, struct mb_error *err);
/* Give up; takes NULL. */
void shard_writer_free(struct shard_writer *w);

/* ---- reading ---- */

struct shard;

/* Map and check a whole shard. Errors: NOT_FOUND, IO, FORMAT (no shard, or
 * another version), CORRUPT (what and where), NOMEM. */
MB_MUST_USE mb_status shard_open(
    const char *path, struct shard **out, struct mb_error *err);
void shard_close(struct shard *s);
/* True if its tokens are this tokenizer's. */
bool shard_is_of(const struct shard *s, const struct mb_tokenizer *tok);
uint64_t shard_n_tokens(const struct shard *s); /* <s> and </s> included */
uint64_t shard_n_documents(const struct shard *s);
uint64_t shard_text_bytes(const struct shard *s);
/* Where document i begins (its <s>); i = n_documents gives n_tokens. */
uint64_t shard_document(const struct shard *s, uint64_t i);
/* Tokens [from, from + n) to out; must lie inside. */
void shard_read(
    const struct shard *s, uint64_t from, size_t n, mb_token_id *out);

#endif
