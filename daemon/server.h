/* SPDX-License-Identifier: Apache-2.0
 * daemon/server.h - messages in, messages out: the only user of ZeroMQ here.
 *
 * One thread, mb-io, owns a ROUTER socket for each endpoint. It hands every
 * message that arrives to on_request and sends the replies. Exactly one
 * server_reply (from any thread, at any time) ends each request.
 * Life: server_open -> server_start -> on_request, server_reply ... -> server_drain ->
 * server_close.
 * What a client costs is bounded: requests in flight and replies it has not
 * read are counted together; past the limit the request comes with verdict
 * BUSY, and past twice the limit messages of that client are thrown away. */
#ifndef DAEMON_SERVER_H
#define DAEMON_SERVER_H

#include "config.h"
#include "mb_base.h"

struct server;

/* A request on its way. Fields may be read by whoever handles it. */
struct server_request {
    struct mb_slice body; /* valid until server_drop_body or server_reply */
    uint64_t arrived_ns;
    /* MB_OK, or why it must be refused: BUSY, TOO_LARGE, BAD_MESSAGE. */
    mb_status verdict;
    char why[96]; /* the cause, if refused */
};

struct server_handler {
    /* On mb-io, once for each message. Must be quick, or hand it on. */
    void (*on_request)(void *arg, struct server_request *rq);
    /* On mb-io, about once a second. */
    void (*on_tick)(void *arg, uint64_t now_ns);
    void *arg;
};

/* What may change while running. */
struct server_limits {
    uint64_t max_client_requests;
    uint64_t max_client_bytes;
    uint64_t max_pending_bytes;
};

/* Bind all endpoints of cfg; messages wait until server_start. handler->arg must
 * outlive the server. Errors: LOCKED (another process listens there), BAD_ARG, IO,
 * DENIED (keys), NOMEM. */
MB_MUST_USE mb_status server_open(const struct config *cfg,
    const struct server_handler *handler, struct server **out,
    struct mb_error *err);
/* Begin to receive. */
void server_start(struct server *s);
/* Any thread. */
void server_set_limits(struct server *s, const struct server_limits *limits);
/* Read the public keys of clients again; those who are in stay in until their
 * connection ends. Without an allow list at the start there is none now. On
 * failure the old list stays. Any thread. Errors: DENIED (not a list of keys),
 * IO, NOMEM. */
MB_MUST_USE mb_status server_reload_allowed(
    struct server *s, const char *path, struct mb_error *err);
/* Wait until nothing is in flight, at most timeout_ms; false if time ran out.
 * Not from mb-io. */
bool server_drain(struct server *s, uint64_t timeout_ms);
/* Sends what is queued (waiting at most a second for slow clients), closes the
 * sockets. Takes NULL. No request may be replied to after it. */
void server_close(struct server *s);

/* Send `reply` (its bytes are taken, the buffer is left empty) and free rq.
 * Any thread; from mb-io it is sent at once. */
void server_reply(struct server_request *rq, struct mb_buffer *reply);
/* Send a message that belongs to rq before its reply; bytes are taken likewise.
 * Messages leave in the order in which one thread sends them. False: the client
 * is gone, or reads too slowly, and nothing more of rq will reach it; but for
 * the reply, which must be sent still. It may take some messages until that is
 * seen. Any thread. */
bool server_send_part(struct server_request *rq, struct mb_buffer *part);
/* What server_send_part found: NULL, or why the client is lost. */
const char *server_lost(const struct server_request *rq);
/* Give the message's memory back before the reply; body becomes empty. */
void server_drop_body(struct server_request *rq);
/* True if more messages are waiting to be received. mb-io only. */
bool server_has_waiting(struct server *s);

struct server_stats {
    uint64_t n_requests;
    uint64_t n_replies;
    uint64_t n_refused; /* busy, too large, bad framing */
    uint64_t n_dropped; /* client gone, or not reading */
    uint64_t bytes_in;
    uint64_t bytes_out;
    uint64_t n_in_flight;
    uint64_t pending_bytes;
    uint64_t n_clients; /* with something in flight or unread just now */
};

void server_stats(struct server *s, struct server_stats *out);

#endif
