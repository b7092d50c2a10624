/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_client_connection.c - tickets, time, and lost connections.
 *
 * A peer in the test plays the daemon; blocking calls run in a second thread
 * where the peer has something to do meanwhile. */
#include "mb_test.h"

#include <poll.h>
#include <stdatomic.h>

#include "membank.h"
#include "peer.h"

static const struct membank_bytes no_args;

static void
empty_result(struct mb_writer *w)
{
    mb_write_map(w, 0);
}

static struct membank *
open_client(const char *endpoint, unsigned timeout_ms, unsigned connect_ms)
{
    struct membank *mb = NULL;
    struct membank_error err;
    const struct membank_options opt = {.endpoint = endpoint,
        .timeout_ms = timeout_ms,
        .connect_timeout_ms = connect_ms};
    if (membank_open(&opt, &mb, &err) != MEMBANK_OK)
        fail_msg("%s", err.text);
    return mb;
}

static uint64_t
send_ok(struct membank *mb, const char *op)
{
    uint64_t ticket = 0;
    struct membank_error err;
    if (membank_send(mb, op, no_args, &ticket, &err) != MEMBANK_OK)
        fail_msg("%s", err.text);
    return ticket;
}

/* The next reply within 20 s. */
static struct membank_reply *
poll_ok(struct membank *mb)
{
    struct membank_reply *reply = NULL;
    struct membank_error err;
    if (membank_poll(mb, 20000, &reply, &err) != MEMBANK_OK)
        fail_msg("%s", err.text);
    return reply;
}

/* ---- open ---- */

static void
test_open_when_options_are_bad_then_bad_arg(void **state)
{
    MB_TEST_UNUSED(state);
    struct membank *mb = NULL;
    struct membank_error err;
    struct membank_options opt = {.endpoint = "nonsense"};
    assert_int_equal(MEMBANK_ERR_BAD_ARG, membank_open(&opt, &mb, &err));
    assert_error_has(err, "nonsense");
    opt = (struct membank_options){.endpoint = "tcp://127.0.0.1:1",
        .server_key = "0123456789012345678901234567890123456789"};
    assert_int_equal(MEMBANK_ERR_BAD_ARG, membank_open(&opt, &mb, &err));
    assert_error_has(err, "public_key");
    assert_null(mb);
    membank_close(NULL);
}

static void
test_open_without_options_uses_the_default_endpoint(void **state)
{
    MB_TEST_UNUSED(state);
    struct membank *mb = NULL;
    setenv("XDG_RUNTIME_DIR", "/tmp/nowhere", 1);
    setenv("MEMBANK_ENDPOINT", "ipc:///tmp/elsewhere", 1);
    assert_int_equal(MEMBANK_OK, membank_open(NULL, &mb, NULL));
    assert_string_equal("ipc:///tmp/elsewhere", membank_endpoint(mb));
    membank_close(mb);
    unsetenv("MEMBANK_ENDPOINT");
    assert_int_equal(MEMBANK_OK, membank_open(NULL, &mb, NULL));
    assert_string_equal(
        "ipc:///tmp/nowhere/membank.sock", membank_endpoint(mb));
    membank_close(mb);
    unsetenv("XDG_RUNTIME_DIR");
    assert_int_equal(MEMBANK_OK, membank_open(NULL, &mb, NULL));
    assert_non_null(strstr(membank_endpoint(mb), "ipc:///tmp/membank-"));
    membank_close(mb);
}

/* ---- nobody there, nobody answers ---- */

static void
test_call_when_no_daemon_then_unreachable_in_time(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_test_dir dir = mb_test_dir_begin();
    char endpoint[MB_TEST_PATH];
    mb_test_endpoint(&dir, "none", endpoint);
    struct membank *mb = open_client(endpoint, 10000, 50);
    struct membank_error err;
    uint64_t start = mb_clock_ns();
    assert_int_equal(MEMBANK_ERR_UNREACHABLE, membank_ping(mb, NULL, &err));
    assert_error_has(err, endpoint);
    assert_in_range((mb_clock_ns() - start) / 1000000, 50, 5000);
    assert_int_equal(0, membank_in_flight(mb));
    // A shorter time of the call wins.
    membank_set_timeout(mb, 10);
    assert_int_equal(MEMBANK_ERR_UNREACHABLE, membank_ping(mb, NULL, &err));
    membank_close(mb);
    mb_test_dir_end(&dir);
}

static void
test_request_that_was_not_sent_is_not_sent_later(void **state)
{
    MB_TEST_UNUSED(state);
    struct peer peer;
    peer_begin(&peer);
    peer_unbind(&peer);
    struct membank *mb = open_client(peer.endpoint, 10000, 20);
    assert_int_equal(MEMBANK_ERR_UNREACHABLE, membank_drop(mb, "first", NULL));
    peer_bind(&peer);
    // Now there is a daemon: the first it hears of is the second request.
    membank_close(mb);
    mb = open_client(peer.endpoint, 10000, 10000);
    uint64_t ticket = send_ok(mb, "second");
    struct peer_request r;
    peer_receive(&peer, &r);
    assert_string_equal("second", r.op);
    assert_int_equal(ticket, r.id);
    peer_request_end(&r);
    membank_close(mb);
    peer_end(&peer);
}

static void
test_call_when_daemon_is_silent_then_timeout_and_late_reply_is_dropped(
    void **state)
{
    MB_TEST_UNUSED(state);
    struct peer peer;
    peer_begin(&peer);
    struct membank *mb = open_client(peer.endpoint, 5000, 5000);
    struct membank_error err;
    struct peer_request late;
    struct peer_request r;
    membank_set_timeout(mb, 100);
    assert_int_equal(MEMBANK_ERR_TIMEOUT, membank_ping(mb, NULL, &err));
    assert_int_equal(0, membank_in_flight(mb));
    peer_receive(&peer, &late);
    peer_reply(&peer, &late, empty_result);
    peer_reply(&peer, &late, empty_result); // and twice
    membank_set_timeout(mb, 0);
    uint64_t ticket = send_ok(mb, "next");
    peer_receive(&peer, &r);
    peer_reply(&peer, &r, empty_result);
    struct membank_reply *reply = poll_ok(mb);
    assert_int_equal(ticket, membank_reply_ticket(reply));
    assert_int_equal(MEMBANK_ERR_NOT_FOUND, membank_poll(mb, 0, &reply, &err));
    membank_reply_free(reply);
    peer_request_end(&late);
    peer_request_end(&r);
    membank_close(mb);
    peer_end(&peer);
}

static void
test_request_carries_its_time_limit(void **state)
{
    MB_TEST_UNUSED(state);
    struct peer peer;
    peer_begin(&peer);
    struct membank *mb = open_client(peer.endpoint, 5000, 5000);
    struct peer_request r;
    membank_set_timeout(mb, 1234);
    send_ok(mb, "x");
    peer_receive(&peer, &r);
    assert_int_equal(1234, mb_value_get(r.message, "timeout_ms")->i);
    peer_request_end(&r);
    membank_close(mb);
    peer_end(&peer);
}

/* ---- many at once ---- */

static void
test_tickets_when_answered_out_of_order_then_matched(void **state)
{
    MB_TEST_UNUSED(state);

    enum { N = 200 };
    struct peer peer;
    peer_begin(&peer);
    struct membank *mb = open_client(peer.endpoint, 20000, 20000);
    static struct peer_request r[N];
    uint64_t tickets[N];
    bool seen[N] = {false};
    for (size_t i = 0; i < N; i++)
        tickets[i] = send_ok(mb, "x");
    assert_int_equal(N, membank_in_flight(mb));
    for (size_t i = 0; i < N; i++)
        peer_receive(&peer, &r[i]);
    // The last first, every third as an error.
    for (size_t i = N; i-- > 0;)
        peer_reply_as(&peer, &r[i], r[i].id, false, i % 3 == 0 ? "busy" : NULL,
            empty_result);
    for (size_t i = 0; i < N; i++) {
        struct membank_reply *reply = poll_ok(mb);
        size_t at = 0;
        while (at < N && tickets[at] != membank_reply_ticket(reply))
            at++;
        assert_true(at < N && !seen[at]);
        seen[at] = true;
        assert_int_equal(at % 3 == 0 ? MEMBANK_ERR_BUSY : MEMBANK_OK,
            membank_reply_status(reply));
        assert_string_equal(
            at % 3 == 0 ? "the peer says so" : "", membank_reply_error(reply));
        membank_reply_free(reply);
    }
    assert_int_equal(0, membank_in_flight(mb));
    for (size_t i = 0; i < N; i++)
        peer_request_end(&r[i]);
    membank_close(mb);
    peer_end(&peer);
}

static void
test_poll_when_nothing_is_due_then_not_found_or_timeout(void **state)
{
    MB_TEST_UNUSED(state);
    struct peer peer;
    peer_begin(&peer);
    struct membank *mb = open_client(peer.endpoint, 20000, 20000);
    struct membank_reply *reply = NULL;
    assert_int_equal(
        MEMBANK_ERR_NOT_FOUND, membank_poll(mb, 1000, &reply, NULL));
    send_ok(mb, "x");
    assert_int_equal(MEMBANK_ERR_TIMEOUT, membank_poll(mb, 0, &reply, NULL));
    assert_int_equal(MEMBANK_ERR_TIMEOUT, membank_poll(mb, 20, &reply, NULL));
    assert_int_equal(1, membank_in_flight(mb));
    assert_null(reply);
    membank_close(mb); // with a ticket open
    peer_end(&peer);
}

static void
test_ticket_when_its_time_is_up_then_one_timeout_reply(void **state)
{
    MB_TEST_UNUSED(state);
    struct peer peer;
    peer_begin(&peer);
    struct membank *mb = open_client(peer.endpoint, 20000, 20000);
    membank_set_timeout(mb, 20000);
    uint64_t slow = send_ok(mb, "slow");
    membank_set_timeout(mb, 30);
    uint64_t quick = send_ok(mb, "quick");
    struct membank_reply *reply = poll_ok(mb);
    assert_int_equal(quick, membank_reply_ticket(reply));
    assert_int_equal(MEMBANK_ERR_TIMEOUT, membank_reply_status(reply));
    assert_null(membank_reply_result(reply));
    assert_int_equal(0, membank_reply_bytes(reply).size);
    membank_reply_free(reply);
    struct peer_request r;
    peer_receive(&peer, &r);
    assert_int_equal(slow, r.id);
    peer_reply(&peer, &r, empty_result);
    reply = poll_ok(mb);
    assert_int_equal(slow, membank_reply_ticket(reply));
    membank_reply_free(reply);
    peer_request_end(&r);
    membank_close(mb);
    peer_end(&peer);
}

static void
test_stream_gives_each_part_and_one_end(void **state)
{
    MB_TEST_UNUSED(state);
    struct peer peer;
    peer_begin(&peer);
    struct membank *mb = open_client(peer.endpoint, 20000, 20000);
    uint64_t ticket = send_ok(mb, "generate");
    struct peer_request r;
    peer_receive(&peer, &r);
    peer_reply_as(&peer, &r, r.id, true, NULL, empty_result);
    peer_reply_as(&peer, &r, r.id, true, NULL, empty_result);
    peer_reply_as(&peer, &r, r.id, false, NULL, empty_result);
    for (size_t i = 0; i < 3; i++) {
        struct membank_reply *reply = poll_ok(mb);
        assert_int_equal(ticket, membank_reply_ticket(reply));
        assert_int_equal(i < 2, membank_reply_has_more(reply));
        assert_int_equal(i < 2 ? 1 : 0, membank_in_flight(mb));
        membank_reply_free(reply);
    }
    peer_request_end(&r);
    membank_close(mb);
    peer_end(&peer);
}

static void
test_fd_becomes_readable_when_a_reply_comes(void **state)
{
    MB_TEST_UNUSED(state);
    struct peer peer;
    peer_begin(&peer);
    struct membank *mb = open_client(peer.endpoint, 20000, 20000);
    struct membank_reply *reply = NULL;
    struct peer_request r;
    send_ok(mb, "x");
    assert_int_equal(MEMBANK_ERR_TIMEOUT, membank_poll(mb, 0, &reply, NULL));
    peer_receive(&peer, &r);
    peer_reply(&peer, &r, empty_result);
    membank_status st = MEMBANK_ERR_TIMEOUT;
    while (st == MEMBANK_ERR_TIMEOUT) {
        struct pollfd fd = {.fd = membank_fd(mb), .events = POLLIN};
        assert_int_equal(1, poll(&fd, 1, 20000));
        st = membank_poll(mb, 0, &reply, NULL);
    }
    assert_int_equal(MEMBANK_OK, st);
    membank_reply_free(reply);
    peer_request_end(&r);
    membank_close(mb);
    peer_end(&peer);
}

/* ---- a blocking call beside tickets ---- */

struct blocking {
    struct membank *mb;
    membank_status status;
    struct membank_reply *reply;
    struct membank_error err;
};

static void
run_call(void *arg)
{
    struct blocking *b = arg;
    b->status = membank_call(b->mb, "call", no_args, &b->reply, &b->err);
}

static void
test_call_beside_tickets_leaves_their_replies(void **state)
{
    MB_TEST_UNUSED(state);
    struct peer peer;
    peer_begin(&peer);
    struct blocking b = {.mb = open_client(peer.endpoint, 20000, 20000)};
    struct mb_thread *thread = NULL;
    struct peer_request first;
    struct peer_request call;
    uint64_t ticket = send_ok(b.mb, "first");
    assert_ok(mb_thread_start(&thread, "mb-call", run_call, &b));
    peer_receive(&peer, &first);
    peer_receive(&peer, &call);
    assert_string_equal("call", call.op);
    peer_reply(&peer, &first, empty_result);
    peer_reply_as(&peer, &call, call.id, true, NULL, empty_result);
    peer_reply(&peer, &call, empty_result);
    mb_thread_join(thread);
    assert_int_equal(MEMBANK_OK, b.status);
    assert_int_equal(call.id, membank_reply_ticket(b.reply));
    assert_false(membank_reply_has_more(b.reply));
    membank_reply_free(b.reply);
    assert_int_equal(1, membank_in_flight(b.mb));
    struct membank_reply *reply = poll_ok(b.mb);
    assert_int_equal(ticket, membank_reply_ticket(reply));
    membank_reply_free(reply);
    peer_request_end(&first);
    peer_request_end(&call);
    membank_close(b.mb);
    peer_end(&peer);
}

/* ---- a peer that answers by itself ---- */

/* A peer in its own thread that answers {} to all, without our heap. */
struct echo {
    struct peer *peer;
    atomic_bool ending;
};

static void
run_echo(void *arg)
{
    struct echo *echo = arg;
    int timeout = 5;
    zmq_setsockopt(echo->peer->socket, ZMQ_RCVTIMEO, &timeout, sizeof timeout);
    while (!atomic_load(&echo->ending)) {
        uint8_t who[256];
        uint8_t body[4096];
        static const uint8_t head[] = {0x84, 0xa1, 'v', 1, 0xa2, 'o', 'k', 0xc3,
            0xa6, 'r', 'e', 's', 'u', 'l', 't', 0x81, 0xa4, 'h', 'i', 't', 's',
            0x91, 0x81, 0xa2, 'i', 'd', 0xa1, 'x', 0xa2, 'i', 'd'};
        int n = zmq_recv(echo->peer->socket, who, sizeof who, 0);
        if (n < 0)
            continue;
        int size = zmq_recv(echo->peer->socket, body, sizeof body, 0);
        struct mb_slice id =
            mb_wire_find(mb_slice_of(body, size > 0 ? (size_t)size : 0), "id");
        uint8_t reply[64];
        memcpy(reply, head, sizeof head);
        if (id.size == 0 || id.size > 9)
            continue;
        memcpy(reply + sizeof head, id.data, id.size);
        zmq_send(echo->peer->socket, who, (size_t)n, ZMQ_SNDMORE);
        zmq_send(echo->peer->socket, reply, sizeof head + id.size, 0);
    }
}

/* ---- lost connections ---- */

static void
test_connection_when_lost_then_unreachable_at_once(void **state)
{
    MB_TEST_UNUSED(state);
    struct peer peer;
    peer_begin(&peer);
    // The time limit is far away: only the loss can end it.
    struct blocking b = {.mb = open_client(peer.endpoint, 600000, 20000)};
    struct mb_thread *thread = NULL;
    struct peer_request r;
    uint64_t ticket = send_ok(b.mb, "ticket");
    assert_ok(mb_thread_start(&thread, "mb-call", run_call, &b));
    peer_receive(&peer, &r);
    peer_request_end(&r);
    peer_receive(&peer, &r);
    peer_request_end(&r);
    peer_unbind(&peer);
    mb_thread_join(thread);
    assert_int_equal(MEMBANK_ERR_UNREACHABLE, b.status);
    assert_error_has(b.err, "connection broke");
    struct membank_reply *reply = poll_ok(b.mb);
    assert_int_equal(ticket, membank_reply_ticket(reply));
    assert_int_equal(MEMBANK_ERR_UNREACHABLE, membank_reply_status(reply));
    membank_reply_free(reply);
    membank_close(b.mb);
    peer_end(&peer);
}

static void
test_client_when_daemon_comes_back_then_goes_on(void **state)
{
    MB_TEST_UNUSED(state);
    struct peer peer;
    peer_begin(&peer);
    struct membank *mb = open_client(peer.endpoint, 20000, 20000);
    for (size_t round = 0; round < 3; round++) {
        struct echo echo = {.peer = &peer};
        struct mb_thread *thread = NULL;
        assert_ok(mb_thread_start(&thread, "mb-echo", run_echo, &echo));
        // One that went out on the dying connection may be lost, no more.
        membank_status st = membank_ping(mb, NULL, NULL);
        if (round > 0 && st == MEMBANK_ERR_UNREACHABLE)
            st = membank_ping(mb, NULL, NULL);
        atomic_store(&echo.ending, true);
        mb_thread_join(thread);
        assert_int_equal(MEMBANK_OK, st);
        peer_unbind(&peer);
        peer_bind(&peer);
    }
    membank_close(mb);
    peer_end(&peer);
}

/* ---- replies that are none ---- */

static void
test_reply_when_not_of_the_protocol_then_bad_message(void **state)
{
    MB_TEST_UNUSED(state);

    const struct {
        const char *bytes;
        size_t size;
    } cases[] = {
        {"", 0}, {"hello", 5}, {"\xdd\x07\xff\xff\xff\x01", 6}, {"\x80", 1},
        {"\x83\xa1v\x01\xa2id\x01\xa2ok\x07", 13}, // ok is no bool
        {"\x83\xa1v\x02\xa2id\x01\xa2ok\xc3", 13}, // version 2
        {"\x83\xa1v\x01\xa2id\x01\xa2ok\xc2", 13}, // no error
    };
    struct peer peer;
    peer_begin(&peer);
    struct membank *mb = open_client(peer.endpoint, 20000, 20000);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct peer_request r;
        send_ok(mb, "x");
        peer_receive(&peer, &r);
        peer_send_raw(&peer, &r, mb_slice_of(cases[i].bytes, cases[i].size));
        struct membank_reply *reply = poll_ok(mb);
        assert_int_equal(MEMBANK_ERR_BAD_MESSAGE, membank_reply_status(reply));
        assert_true(strlen(membank_reply_error(reply)) > 0);
        membank_reply_free(reply);
        peer_request_end(&r);
    }
    membank_close(mb);
    peer_end(&peer);
}

static void
test_error_when_code_is_unknown_then_internal(void **state)
{
    MB_TEST_UNUSED(state);
    struct peer peer;
    peer_begin(&peer);
    struct membank *mb = open_client(peer.endpoint, 20000, 20000);
    const char *const codes[] = {"of_a_newer_daemon", "ok", ""};
    for (size_t i = 0; i < 3; i++) {
        struct peer_request r;
        send_ok(mb, "x");
        peer_receive(&peer, &r);
        peer_reply_as(&peer, &r, r.id, false, codes[i], NULL);
        struct membank_reply *reply = poll_ok(mb);
        assert_int_equal(MEMBANK_ERR_INTERNAL, membank_reply_status(reply));
        membank_reply_free(reply);
        peer_request_end(&r);
    }
    membank_close(mb);
    peer_end(&peer);
}

static void
test_error_without_a_readable_id_goes_to_the_only_ticket(void **state)
{
    MB_TEST_UNUSED(state);
    struct peer peer;
    peer_begin(&peer);
    struct membank *mb = open_client(peer.endpoint, 20000, 20000);
    struct peer_request r;
    uint64_t ticket = send_ok(mb, "x");
    peer_receive(&peer, &r);
    peer_reply_as(&peer, &r, 0, false, "bad_message", NULL);
    struct membank_reply *reply = poll_ok(mb);
    assert_int_equal(ticket, membank_reply_ticket(reply));
    assert_int_equal(MEMBANK_ERR_BAD_MESSAGE, membank_reply_status(reply));
    membank_reply_free(reply);
    peer_request_end(&r);
    membank_close(mb);
    peer_end(&peer);
}

/* ---- arguments ---- */

static void
test_args_when_no_map_then_refused_before_sending(void **state)
{
    MB_TEST_UNUSED(state);
    struct membank *mb = open_client("ipc:///tmp/mb-nobody", 100, 10);
    struct membank_error err;
    struct membank_documents *docs = NULL;
    struct membank_hits *hits = NULL;
    uint64_t ticket = 0;
    const struct membank_bytes array = {"\x90", 1};
    const struct membank_bytes cut = {"\x81", 1};
    assert_int_equal(
        MEMBANK_ERR_BAD_ARG, membank_call(mb, "x", array, NULL, &err));
    assert_error_has(err, "args must be a msgpack map");
    assert_int_equal(
        MEMBANK_ERR_BAD_ARG, membank_send(mb, "x", cut, &ticket, &err));
    assert_int_equal(MEMBANK_ERR_BAD_ARG,
        membank_list(mb, "c", NULL, 0, array, &docs, &err));
    assert_error_has(err, "filter");
    assert_int_equal(MEMBANK_ERR_BAD_ARG,
        membank_delete_where(mb, "c", no_args, NULL, &err));
    assert_int_equal(
        MEMBANK_ERR_BAD_ARG, membank_get(mb, "c", NULL, &docs, &err));
    assert_error_has(err, "id is missing");
    assert_int_equal(MEMBANK_ERR_BAD_ARG,
        membank_query(mb, &(struct membank_query_options){.collection = "c"},
            &hits, &err));
    assert_error_has(err, "text or vector");
    assert_int_equal(MEMBANK_ERR_BAD_ARG, membank_query(mb, NULL, &hits, &err));
    assert_int_equal(MEMBANK_ERR_BAD_ARG, membank_drop(mb, NULL, &err));
    assert_int_equal(0, membank_in_flight(mb));
    membank_close(mb);
}

static void
test_put_when_a_document_is_incomplete_then_its_number_is_named(void **state)
{
    MB_TEST_UNUSED(state);
    struct membank *mb = open_client("ipc:///tmp/mb-nobody", 100, 10);
    struct membank_error err;
    const struct membank_field nameless[] = {{.key = NULL}};
    const struct membank_field field[] = {{"k", MEMBANK_FIELD_INT, {.i = 1}}};
    struct membank_document docs[] = {{.id = "1", .text = "one"}, {.id = "2"}};
    assert_int_equal(
        MEMBANK_ERR_BAD_ARG, membank_put(mb, "c", docs, 2, NULL, NULL, &err));
    assert_error_has(err, "document 1 has no text");
    docs[1] = (struct membank_document){.text = "two"};
    assert_int_equal(
        MEMBANK_ERR_BAD_ARG, membank_put(mb, "c", docs, 2, NULL, NULL, &err));
    assert_error_has(err, "document 1 has no id");
    docs[1] = (struct membank_document){
        .id = "2", .text = "two", .fields = nameless, .n_fields = 1};
    assert_int_equal(
        MEMBANK_ERR_BAD_ARG, membank_put(mb, "c", docs, 2, NULL, NULL, &err));
    assert_error_has(err, "document 1: field 0 has no key");
    docs[1] = (struct membank_document){.id = "2",
        .text = "two",
        .fields = field,
        .n_fields = 1,
        .meta = {"\x80", 1}};
    assert_int_equal(
        MEMBANK_ERR_BAD_ARG, membank_put(mb, "c", docs, 2, NULL, NULL, &err));
    assert_error_has(err, "both");
    membank_close(mb);
}

/* ---- large requests ---- */

struct large_put {
    struct membank *mb;
    char *text;
    membank_status status;
};

static void
run_large_put(void *arg)
{
    struct large_put *put = arg;
    const struct membank_document doc = {.id = "1", .text = put->text};
    put->status = membank_put(put->mb, "c", &doc, 1, NULL, NULL, NULL);
}

static void
test_large_requests_arrive_whole(void **state)
{
    MB_TEST_UNUSED(state);

    enum { BYTES = 8 << 20 };
    struct peer peer;
    peer_begin(&peer);
    struct large_put put = {
        .mb = open_client(peer.endpoint, 60000, 20000),
        .text = mb_alloc(BYTES + 1),
    };
    memset(put.text, 'x', BYTES);
    put.text[BYTES] = '\0';
    for (size_t round = 0; round < 3; round++) {
        struct mb_thread *thread = NULL;
        struct peer_request r;
        assert_ok(mb_thread_start(&thread, "mb-put", run_large_put, &put));
        peer_receive(&peer, &r);
        const struct mb_value *docs =
            mb_value_get(mb_value_get(r.message, "args"), "documents");
        struct mb_slice text = mb_value_get(&docs->array.items[0], "text")->s;
        assert_int_equal(BYTES, text.size);
        assert_memory_equal(put.text, text.data, BYTES);
        peer_reply(&peer, &r, empty_result);
        mb_thread_join(thread);
        assert_int_equal(MEMBANK_OK, put.status);
        peer_request_end(&r);
    }
    mb_free(put.text);
    membank_close(put.mb);
    peer_end(&peer);
}

/* ---- memory ---- */

static mb_status
whole_session(void *arg)
{
    struct peer *peer = arg;
    struct membank *mb = NULL;
    struct membank_hits *hits = NULL;
    const struct membank_options opt = {
        .endpoint = peer->endpoint, .timeout_ms = 20000};
    const float vector[] = {1.0f};
    membank_status st = membank_open(&opt, &mb, NULL);
    if (st == MEMBANK_OK)
        st = membank_query(mb,
            &(struct membank_query_options){
                .collection = "c", .text = "x", .vector = vector, .dim = 1},
            &hits, NULL);
    membank_hits_free(hits);
    uint64_t ticket;
    struct membank_reply *reply = NULL;
    if (st == MEMBANK_OK)
        st = membank_send(mb, "x", no_args, &ticket, NULL);
    if (st == MEMBANK_OK)
        st = membank_poll(mb, 20000, &reply, NULL);
    if (st == MEMBANK_OK)
        st = membank_reply_status(reply);
    membank_reply_free(reply);
    membank_close(mb);
    return (mb_status)st;
}

static void
test_session_when_memory_is_short_then_nomem_and_no_leak(void **state)
{
    MB_TEST_UNUSED(state);
    struct peer peer;
    peer_begin(&peer);
    struct echo echo = {.peer = &peer};
    struct mb_thread *thread = NULL;
    assert_ok(mb_thread_start(&thread, "mb-echo", run_echo, &echo));
    mb_test_each_allocation(whole_session, &peer);
    atomic_store(&echo.ending, true);
    mb_thread_join(thread);
    peer_end(&peer);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_when_options_are_bad_then_bad_arg),
        cmocka_unit_test(test_open_without_options_uses_the_default_endpoint),
        cmocka_unit_test(test_call_when_no_daemon_then_unreachable_in_time),
        cmocka_unit_test(test_request_that_was_not_sent_is_not_sent_later),
        cmocka_unit_test(
            test_call_when_daemon_is_silent_then_timeout_and_late_reply_is_dropped),
        cmocka_unit_test(test_request_carries_its_time_limit),
        cmocka_unit_test(test_tickets_when_answered_out_of_order_then_matched),
        cmocka_unit_test(
            test_poll_when_nothing_is_due_then_not_found_or_timeout),
        cmocka_unit_test(
            test_ticket_when_its_time_is_up_then_one_timeout_reply),
        cmocka_unit_test(test_stream_gives_each_part_and_one_end),
        cmocka_unit_test(test_fd_becomes_readable_when_a_reply_comes),
        cmocka_unit_test(test_call_beside_tickets_leaves_their_replies),
        cmocka_unit_test(test_connection_when_lost_then_unreachable_at_once),
        cmocka_unit_test(test_client_when_daemon_comes_back_then_goes_on),
        cmocka_unit_test(test_reply_when_not_of_the_protocol_then_bad_message),
        cmocka_unit_test(test_error_when_code_is_unknown_then_internal),
        cmocka_unit_test(
            test_error_without_a_readable_id_goes_to_the_only_ticket),
        cmocka_unit_test(test_args_when_no_map_then_refused_before_sending),
        cmocka_unit_test(
            test_put_when_a_document_is_incomplete_then_its_number_is_named),
        cmocka_unit_test(test_large_requests_arrive_whole),
        cmocka_unit_test(
            test_session_when_memory_is_short_then_nomem_and_no_leak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
