/* SPDX-License-Identifier: Apache-2.0
 * tests/support/peer.h - a daemon that says what the test wants.
 *
 * A ROUTER socket on an endpoint of its own. The test receives requests and
 * answers them by hand, late, twice, or not at all.
 * Threads: the test's main thread. */
#ifndef PEER_H
#define PEER_H

#include "mb_test.h"

#include <zmq.h>

#include "mb_render.h"
#include "mb_wire.h"

struct peer {
    struct mb_test_dir dir;
    char endpoint[MB_TEST_PATH];
    void *context;
    void *socket;
};

struct peer_request {
    uint8_t identity[256];
    size_t identity_size;
    struct mb_buffer body;
    struct mb_arena *arena;
    const struct mb_value *message;
    uint64_t id;
    char op[64];
    char args[8192]; /* see mb_render.h */
};

static inline void
peer_bind(struct peer *peer)
{
    int zero = 0;
    peer->context = zmq_ctx_new();
    peer->socket = zmq_socket(peer->context, ZMQ_ROUTER);
    assert_non_null(peer->socket);
    zmq_setsockopt(peer->socket, ZMQ_LINGER, &zero, sizeof zero);
    if (zmq_bind(peer->socket, peer->endpoint) != 0)
        fail_msg("bind %s: %s", peer->endpoint, zmq_strerror(zmq_errno()));
}

static inline void
peer_begin(struct peer *peer)
{
    peer->dir = mb_test_dir_begin();
    mb_test_endpoint(&peer->dir, "peer", peer->endpoint);
    peer_bind(peer);
}

/* Go away; connections break. */
static inline void
peer_unbind(struct peer *peer)
{
    if (peer->socket)
        zmq_close(peer->socket);
    if (peer->context)
        zmq_ctx_term(peer->context);
    peer->socket = NULL;
    peer->context = NULL;
}

static inline void
peer_end(struct peer *peer)
{
    peer_unbind(peer);
    mb_test_dir_end(&peer->dir);
}

static inline void
peer_request_parse(struct peer_request *r)
{
    struct mb_error err;
    assert_status(MB_OK,
        mb_wire_parse(
            mb_buffer_slice(&r->body), NULL, true, r->arena, &r->message, &err),
        &err);
    uint64_t version = 0;
    struct mb_slice op;
    assert_ok(mb_arg_u64(r->message, "v", 0, 0, 99, &version, NULL));
    assert_int_equal(1, version);
    assert_ok(mb_arg_u64(r->message, "id", 0, 1, UINT64_MAX, &r->id, NULL));
    assert_ok(mb_arg_str(r->message, "op", true, &op, NULL));
    snprintf(r->op, sizeof r->op, "%.*s", (int)op.size, (const char *)op.data);
    struct mb_buffer text;
    mb_buffer_init(&text, sizeof r->args - 1);
    const struct mb_value *args = mb_value_get(r->message, "args");
    assert_non_null(args);
    r->args[0] = '\0';
    if (r->body.size < sizeof r->args / 4) {
        mb_render(&text, args);
        snprintf(r->args, sizeof r->args, "%.*s", (int)text.size,
            (const char *)text.data);
    }
    mb_buffer_fini(&text);
}

/* The next request, waiting up to 20 s for it. */
static inline void
peer_receive(struct peer *peer, struct peer_request *r)
{
    int timeout = 20000;
    zmq_setsockopt(peer->socket, ZMQ_RCVTIMEO, &timeout, sizeof timeout);
    zmq_msg_t part;
    zmq_msg_init(&part);
    *r = (struct peer_request){0};
    mb_buffer_init(&r->body, (size_t)128 << 20);
    r->arena = mb_arena_new((size_t)256 << 20);
    if (zmq_msg_recv(&part, peer->socket, 0) < 0)
        fail_msg("no request came");
    r->identity_size = zmq_msg_size(&part);
    assert_true(r->identity_size <= sizeof r->identity);
    memcpy(r->identity, zmq_msg_data(&part), r->identity_size);
    // One part follows: clients of this library send no delimiter.
    assert_true(zmq_msg_more(&part));
    assert_true(zmq_msg_recv(&part, peer->socket, 0) >= 0);
    assert_false(zmq_msg_more(&part));
    assert_ok(
        mb_buffer_append(&r->body, zmq_msg_data(&part), zmq_msg_size(&part)));
    zmq_msg_close(&part);
    peer_request_parse(r);
}

static inline void
peer_request_end(struct peer_request *r)
{
    mb_arena_free(r->arena);
    mb_buffer_fini(&r->body);
}

/* Any bytes to whoever sent r. */
static inline void
peer_send_raw(
    struct peer *peer, const struct peer_request *r, struct mb_slice bytes)
{
    assert_true(zmq_send(peer->socket, r->identity, r->identity_size,
                    ZMQ_SNDMORE) >= 0);
    assert_true(zmq_send(peer->socket, bytes.data, bytes.size, 0) >= 0);
}

/* A reply with these parts; result may be NULL for an error of `code`. */
static inline void
peer_reply_as(struct peer *peer, const struct peer_request *r, uint64_t id,
    bool more, const char *code, void (*result)(struct mb_writer *w))
{
    struct mb_buffer buf;
    struct mb_writer w;
    mb_buffer_init(&buf, (size_t)128 << 20);
    mb_writer_init(&w, &buf);
    mb_write_map(&w, more ? 5 : 4);
    mb_write_kv_uint(&w, "v", 1);
    mb_write_kv_uint(&w, "id", id);
    mb_write_kv_bool(&w, "ok", code == NULL);
    if (more)
        mb_write_kv_bool(&w, "more", true);
    if (code) {
        mb_write_cstr(&w, "error");
        mb_write_map(&w, 3);
        mb_write_kv_cstr(&w, "code", code);
        mb_write_kv_cstr(&w, "message", "the peer says so");
        mb_write_kv_bool(&w, "retry", false);
    } else {
        mb_write_cstr(&w, "result");
        result(&w);
    }
    assert_int_equal(MB_OK, w.status);
    peer_send_raw(peer, r, mb_buffer_slice(&buf));
    mb_buffer_fini(&buf);
}

static inline void
peer_reply(struct peer *peer, const struct peer_request *r,
    void (*result)(struct mb_writer *w))
{
    peer_reply_as(peer, r, r->id, false, NULL, result);
}

#endif
