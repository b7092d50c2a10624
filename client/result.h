/* SPDX-License-Identifier: Apache-2.0
 * client/result.h - replies read into the structs of membank.h.
 *
 * Those that make an object take the reply: it lives in the object, or is
 * freed on failure.
 * Threads: whoever holds the reply. */
#ifndef RESULT_H
#define RESULT_H

#include "client.h"

/* The number under key of the result, 0 if it has none. */
uint64_t result_u64(const struct membank_reply *reply, const char *key);
void result_server(
    const struct membank_reply *reply, struct membank_server *out);
void result_put(
    const struct membank_reply *reply, struct membank_put_result *out);
/* Errors of all: BAD_MESSAGE, NOMEM. The first takes a result that is one
 * document, the second one with an array of them. */
membank_status result_document(struct membank_reply *reply,
    struct membank_documents **out, struct membank_error *err);
membank_status result_documents(struct membank_reply *reply,
    struct membank_documents **out, struct membank_error *err);
membank_status result_hits(struct membank_reply *reply,
    struct membank_hits **out, struct membank_error *err);
membank_status result_vectors(struct membank_reply *reply,
    struct membank_vectors **out, struct membank_error *err);

#endif
