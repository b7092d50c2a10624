/* SPDX-License-Identifier: Apache-2.0
 * client/client.h - what the files of the client library share.
 *
 * client.c moves messages and keeps tickets, reply.c reads replies, pack.c
 * writes values, request.c and result.c turn calls into requests and replies
 * into results.
 * Threads: as in membank.h; nothing here is shared. */
#ifndef CLIENT_H
#define CLIENT_H

#include "mb_base.h"
#include "mb_wire.h"
#include "membank.h"

#define CLIENT_PROTOCOL    1
#define CLIENT_MAX_REQUEST ((size_t)1 << 30)

/* A reply, complete or still to come. */
struct membank_reply {
    struct membank_reply *next; /* in the list of those ready */
    uint64_t ticket;
    membank_status status;
    bool has_more;
    char error[MEMBANK_ERROR_TEXT];
    struct mb_slice message; /* the whole reply */
    struct mb_arena *arena;  /* of the tree */
    const struct mb_value *result;
    /* Gives the message back to whoever holds its bytes. */
    void (*release)(void *owner);
    void *owner;
};

/* Turn an error of ours into the caller's (err may be NULL); returns it. */
membank_status client_error(
    struct membank_error *err, const struct mb_error *e);
/* The same from a format. */
membank_status client_fail(struct membank_error *err, membank_status st,
    const char *fmt, ...) MB_PRINTF(3, 4);

/* Read a message of the protocol into reply (ticket, status, result...); the
 * fields message, release and owner are set already and stay.
 * Errors: BAD_MESSAGE, NOMEM: nothing is to be freed then. */
mb_status reply_read(struct membank_reply *reply, struct mb_error *err);
/* Free what a reply holds, and make it an empty one. */
void reply_fini(struct membank_reply *reply);

/* Bytes as a slice. */
struct mb_slice client_slice(struct membank_bytes bytes);
/* Is it one msgpack map, or nothing? Errors: BAD_ARG naming `what`. */
membank_status client_check_map(
    struct membank_bytes bytes, const char *what, struct membank_error *err);

/* A request whose args are being written: begin, write n pairs of args (plus
 * those of `extra`, which must have been checked), then call. */
struct request {
    struct membank *mb;
    struct mb_writer w;
};

void request_start(struct request *r, struct membank *mb, const char *op,
    size_t n_args, struct membank_bytes extra);
/* Send it and wait; out may be NULL. */
membank_status request_call(
    struct request *r, struct membank_reply **out, struct membank_error *err);

#endif
