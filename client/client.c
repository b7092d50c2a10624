/* SPDX-License-Identifier: Apache-2.0
 * client/client.c - the connection: requests out, replies in, time.
 *
 * A DEALER socket carries one msgpack map a message. Each request has a ticket,
 * the number that the daemon sends back as its id; the table of tickets says
 * which replies are still due and until when. A reply without a ticket in the
 * table came too late and is dropped.
 *
 * The socket queues only for a connection that stands (ZMQ_IMMEDIATE), so a
 * request never lies about to be carried out minutes later by a daemon that
 * was down: either it goes out within its time, or its caller knows that it
 * did not. A monitor tells when the connection breaks; whatever was due on it
 * will never come, and ends as UNREACHABLE at once instead of waiting for its
 * time. libzmq connects again by itself.
 *
 * Invariants: tickets rise, so the table is sorted; each ticket owns the
 * (empty) reply in which it will end, so that ending one cannot fail;
 * n_in_flight = tickets in the table + last replies not given out yet.
 * Threads: the client's own. Only libzmq's thread runs free_sent. */
#include "client.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <zmq.h>

#define DEFAULT_TIMEOUT_MS   30000
#define MAX_TIMEOUT_MS       86400000 /* that the daemon takes: a day */
#define DEFAULT_CONNECT_MS   5000
#define DEFAULT_REPLY_BYTES  ((size_t)256 << 20)
#define COPY_BELOW           ((size_t)32 << 10) /* larger requests move */
#define RECONNECT_MS         50
#define RECONNECT_MAX_MS     1000
#define HEARTBEAT_MS         10000 /* finds peers that vanished */
#define HEARTBEAT_TIMEOUT_MS 30000
#define MONITOR_ENDPOINT     "inproc://membank.monitor"
#define NEVER                UINT64_MAX

struct ticket {
    uint64_t id;
    uint64_t deadline_ns;
    struct membank_reply *reply; /* empty; becomes the last one */
};

struct membank {
    void *context;
    void *socket;
    void *monitor;
    char *endpoint;
    unsigned default_timeout_ms;
    unsigned timeout_ms;
    unsigned connect_timeout_ms;
    size_t max_reply_bytes;
    bool connected;
    bool denied;       /* the daemon refused our key */
    bool no_handshake; /* somebody is there, but speaks with other keys */
    uint64_t last_ticket;
    struct ticket *tickets; /* by id */
    size_t n_tickets;
    size_t capacity;
    size_t n_in_flight;
    struct membank_reply *ready; /* oldest first */
    struct membank_reply **ready_end;
    uint64_t wanted; /* ticket of the blocking call, 0 if none */
    struct membank_reply *wanted_reply;
    struct mb_buffer out; /* the request being written */
    atomic_uint n_moved;  /* requests given to libzmq; partner: free_sent */
};

const char *
membank_version(void)
{
    return MB_VERSION;
}

/* ---- tickets ---- */

/* Where the ticket is in the table, or n_tickets. */
static size_t
find_ticket(const struct membank *mb, uint64_t id)
{
    size_t low = 0;
    size_t high = mb->n_tickets;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (mb->tickets[mid].id < id)
            low = mid + 1;
        else
            high = mid;
    }
    return low < mb->n_tickets && mb->tickets[low].id == id ? low
                                                            : mb->n_tickets;
}

/* Make sure that add_ticket cannot fail: room in the table, and *reply. */
static membank_status
reserve_ticket(struct membank *mb, struct membank_reply **reply)
{
    if (mb->n_tickets == mb->capacity) {
        size_t capacity = mb->capacity ? mb->capacity * 2 : 16;
        size_t bytes;
        struct ticket *grown =
            mb_size_mul(capacity, sizeof *mb->tickets, &bytes)
                ? mb_realloc(mb->tickets, bytes)
                : NULL;
        if (!grown)
            return MEMBANK_ERR_NOMEM;
        mb->tickets = grown;
        mb->capacity = capacity;
    }
    *reply = mb_calloc(1, sizeof **reply);
    return *reply ? MEMBANK_OK : MEMBANK_ERR_NOMEM;
}

static void
add_ticket(
    struct membank *mb, uint64_t deadline_ns, struct membank_reply *reply)
{
    mb->last_ticket++;
    mb->tickets[mb->n_tickets++] = (struct ticket){
        .id = mb->last_ticket, .deadline_ns = deadline_ns, .reply = reply};
    mb->n_in_flight++;
}

/* Take a ticket out of the table; its reply is the caller's. */
static struct membank_reply *
remove_ticket(struct membank *mb, size_t at)
{
    struct membank_reply *reply = mb->tickets[at].reply;
    mb->n_tickets--;
    memmove(&mb->tickets[at], &mb->tickets[at + 1],
        (mb->n_tickets - at) * sizeof *mb->tickets);
    return reply;
}

static void
hand_out(struct membank *mb, struct membank_reply *reply)
{
    if (reply->ticket == mb->wanted && reply->has_more) {
        membank_reply_free(reply); // a call keeps the last part only
    } else if (reply->ticket == mb->wanted) {
        mb->wanted_reply = reply;
    } else {
        reply->next = NULL;
        *mb->ready_end = reply;
        mb->ready_end = &reply->next;
    }
}

/* End a ticket by ourselves. */
static void
end_ticket(struct membank *mb, size_t at, membank_status st, const char *text)
{
    uint64_t id = mb->tickets[at].id;
    struct membank_reply *reply = remove_ticket(mb, at);
    reply->ticket = id;
    reply->status = st;
    snprintf(reply->error, sizeof reply->error, "%s", text);
    hand_out(mb, reply);
}

static void
end_all(struct membank *mb, membank_status st, const char *text)
{
    while (mb->n_tickets > 0)
        end_ticket(mb, 0, st, text);
}

static void
end_expired(struct membank *mb, uint64_t now_ns)
{
    for (size_t i = 0; i < mb->n_tickets;) {
        if (mb->tickets[i].deadline_ns <= now_ns)
            end_ticket(
                mb, i, MEMBANK_ERR_TIMEOUT, "no reply from the daemon in time");
        else
            i++;
    }
}

static uint64_t
earliest_deadline(const struct membank *mb)
{
    uint64_t earliest = NEVER;
    for (size_t i = 0; i < mb->n_tickets; i++) {
        if (mb->tickets[i].deadline_ns < earliest)
            earliest = mb->tickets[i].deadline_ns;
    }
    return earliest;
}

/* ---- replies in ---- */

static void
release_message(void *owner)
{
    zmq_msg_close(owner);
    mb_free(owner);
}

/* Give the parts of `got` to the reply that it belongs to. */
static void
accept_reply(struct membank *mb, struct membank_reply *got)
{
    size_t at = find_ticket(mb, got->ticket);
    if (got->ticket == 0 && mb->n_tickets == 1)
        at = 0; // the daemon could not read an id: it must be this one's
    if (at == mb->n_tickets) {
        reply_fini(got); // too late, or not ours
        return;
    }
    got->ticket = mb->tickets[at].id;
    struct membank_reply *reply;
    if (got->has_more)
        reply = mb_alloc(sizeof *reply);
    else
        reply = remove_ticket(mb, at);
    if (!reply) {
        reply_fini(got);
        end_ticket(mb, at, MEMBANK_ERR_NOMEM, "no memory for a reply");
        return;
    }
    *reply = *got;
    hand_out(mb, reply);
}

/* A whole message; takes the bytes of *message. */
static void
take_message(struct membank *mb, zmq_msg_t *message)
{
    zmq_msg_t *owner = mb_alloc(sizeof *owner);
    if (!owner) {
        end_all(mb, MEMBANK_ERR_NOMEM, "no memory for a reply");
        return;
    }
    zmq_msg_init(owner);
    zmq_msg_move(owner, message);
    struct membank_reply got = {
        .message = mb_slice_of(zmq_msg_data(owner), zmq_msg_size(owner)),
        .release = release_message,
        .owner = owner,
    };
    struct mb_error err;
    mb_status st = reply_read(&got, &err);
    if (st == MB_OK) {
        accept_reply(mb, &got);
        return;
    }
    release_message(owner);
    // Whose reply this was is not known. Who speaks like this once will do so
    // again, and memory that is short for one is short for all.
    end_all(mb, (membank_status)st, err.text);
}

/* Everything that has arrived. */
static void
receive_all(struct membank *mb)
{
    zmq_msg_t message;
    zmq_msg_init(&message);
    while (zmq_msg_recv(&message, mb->socket, ZMQ_DONTWAIT) >= 0) {
        // Parts before the last are an envelope, which says nothing to us.
        if (!zmq_msg_more(&message))
            take_message(mb, &message);
    }
    zmq_msg_close(&message);
}

/* ---- the monitor ---- */

static void
connection_lost(struct membank *mb)
{
    // Replies that came before the end are still in the socket.
    receive_all(mb);
    if (mb->n_tickets > 0)
        end_all(mb, MEMBANK_ERR_UNREACHABLE,
            "the connection broke before the reply; the request may have been "
            "carried out");
    mb->connected = false;
}

static void
monitor_all(struct membank *mb)
{
    zmq_msg_t part;
    zmq_msg_init(&part);
    while (zmq_msg_recv(&part, mb->monitor, ZMQ_DONTWAIT) >= 0) {
        uint16_t event = 0;
        // Native byte order: this never leaves the process.
        if (zmq_msg_size(&part) >= sizeof event)
            memcpy(&event, zmq_msg_data(&part), sizeof event);
        while (zmq_msg_more(&part)) { // the address
            if (zmq_msg_recv(&part, mb->monitor, ZMQ_DONTWAIT) < 0)
                break;
        }
        if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) {
            mb->connected = true;
            mb->denied = false;
            mb->no_handshake = false;
        } else if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) {
            mb->denied = true;
        } else if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL ||
                   event == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL) {
            mb->no_handshake = true;
        } else if (event == ZMQ_EVENT_DISCONNECTED && mb->connected) {
            connection_lost(mb);
        }
    }
    zmq_msg_close(&part);
}

static void
pump(struct membank *mb)
{
    receive_all(mb);
    monitor_all(mb);
    if (mb->n_tickets > 0)
        end_expired(mb, mb_clock_ns());
}

/* Sleep until the socket or the monitor has something, or the time comes. */
static void
wait_until(struct membank *mb, short events, uint64_t deadline_ns)
{
    uint64_t now = mb_clock_ns();
    if (deadline_ns <= now)
        return;
    uint64_t ms = (deadline_ns - now + 999999) / 1000000;
    zmq_pollitem_t items[] = {
        {.socket = mb->socket, .events = events},
        {.socket = mb->monitor, .events = ZMQ_POLLIN},
    };
    // Errors (a signal) only wake us up: callers look again in any case.
    (void)zmq_poll(items, 2, ms > INT32_MAX ? INT32_MAX : (long)ms);
}

/* ---- requests out ---- */

/* libzmq is done with a request. Its own queues order this after what we wrote;
 * the counter says the same in terms that C (and a race detector) knows. */
static void
free_sent(void *data, void *hint)
{
    (void)atomic_load_explicit((atomic_uint *)hint, memory_order_acquire);
    mb_free(data);
}

/* The written request as a message: a large one moves, a small one is copied
 * and its buffer used again. */
static membank_status
make_message(struct membank *mb, zmq_msg_t *message)
{
    struct mb_buffer *out = &mb->out;
    int rc;
    if (out->size >= COPY_BELOW) {
        atomic_fetch_add_explicit(&mb->n_moved, 1, memory_order_release);
        rc = zmq_msg_init_data(
            message, out->data, out->size, free_sent, &mb->n_moved);
        if (rc == 0)
            mb_buffer_init(out, CLIENT_MAX_REQUEST);
    } else {
        rc = zmq_msg_init_size(message, out->size);
        if (rc == 0)
            memcpy(zmq_msg_data(message), out->data, out->size);
    }
    return rc == 0 ? MEMBANK_OK : MEMBANK_ERR_NOMEM;
}

static membank_status
not_sent(
    const struct membank *mb, uint64_t waited_ns, struct membank_error *err)
{
    unsigned long long ms = (unsigned long long)(waited_ns / 1000000);
    if (mb->denied)
        return client_fail(err, MEMBANK_ERR_DENIED,
            "the daemon at %s refuses this key", mb->endpoint);
    if (!mb->connected && mb->no_handshake)
        return client_fail(err, MEMBANK_ERR_UNREACHABLE,
            "%s listens, but no handshake succeeds: are keys missing, or are "
            "they others? (waited %llu ms)",
            mb->endpoint, ms);
    if (!mb->connected)
        return client_fail(err, MEMBANK_ERR_UNREACHABLE,
            "no daemon at %s (waited %llu ms)", mb->endpoint, ms);
    return client_fail(err, MEMBANK_ERR_TIMEOUT,
        "the daemon at %s takes no more requests (waited %llu ms)",
        mb->endpoint, ms);
}

/* Send a message, waiting for a connection or for room in it. Takes it. */
static membank_status
send_message(struct membank *mb, zmq_msg_t *message, uint64_t deadline_ns,
    struct membank_error *err)
{
    uint64_t start = mb_clock_ns();
    uint64_t connect_by = start + (uint64_t)mb->connect_timeout_ms * 1000000;
    membank_status st = MEMBANK_OK;
    for (;;) {
        // First the news of a lost connection: what is due on it must not be
        // mistaken for what goes out on the next one.
        monitor_all(mb);
        if (zmq_msg_send(message, mb->socket, ZMQ_DONTWAIT) >= 0)
            return MEMBANK_OK;
        if (errno != EAGAIN && errno != EINTR) {
            st = client_fail(err, MEMBANK_ERR_INTERNAL, "send to %s: %s",
                mb->endpoint, zmq_strerror(errno));
            break;
        }
        uint64_t now = mb_clock_ns();
        uint64_t until = !mb->connected && connect_by < deadline_ns
                             ? connect_by
                             : deadline_ns;
        if (now >= until || mb->denied) {
            st = not_sent(mb, now - start, err);
            break;
        }
        wait_until(mb, ZMQ_POLLOUT | ZMQ_POLLIN, until);
        receive_all(mb);
    }
    zmq_msg_close(message);
    return st;
}

/* Send what was written, under the next ticket. */
static membank_status
send_request(struct request *r, membank_status written, uint64_t deadline_ns,
    struct membank_error *err)
{
    struct membank *mb = r->mb;
    membank_status st = written;
    struct membank_reply *reply = NULL;
    zmq_msg_t message;
    if (st == MEMBANK_OK)
        st = reserve_ticket(mb, &reply);
    if (st == MEMBANK_OK)
        st = make_message(mb, &message);
    if (st == MEMBANK_OK)
        st = send_message(mb, &message, deadline_ns, err);
    else
        client_fail(err, st,
            st == MEMBANK_ERR_TOO_LARGE ? "a request has at most 1 GiB"
                                        : "no memory for a request");
    if (st != MEMBANK_OK) {
        mb_free(reply);
        return st;
    }
    add_ticket(mb, deadline_ns, reply);
    return MEMBANK_OK;
}

static uint64_t
deadline_of(const struct membank *mb)
{
    return mb_clock_ns() + (uint64_t)mb->timeout_ms * 1000000;
}

void
request_start(struct request *r, struct membank *mb, const char *op,
    size_t n_args, struct membank_bytes extra)
{
    size_t n_extra = 0;
    struct mb_slice pairs = mb_slice_of(NULL, 0);
    if (extra.size > 0)
        pairs = mb_wire_map_body(client_slice(extra), &n_extra);
    mb_buffer_clear(&mb->out);
    r->mb = mb;
    mb_writer_init(&r->w, &mb->out);
    mb_write_map(&r->w, 5);
    mb_write_kv_uint(&r->w, "v", CLIENT_PROTOCOL);
    mb_write_kv_uint(&r->w, "id", mb->last_ticket + 1);
    mb_write_kv_cstr(&r->w, "op", op);
    // The daemon does not begin what nobody waits for any more.
    mb_write_kv_uint(&r->w, "timeout_ms",
        mb->timeout_ms < MAX_TIMEOUT_MS ? mb->timeout_ms : MAX_TIMEOUT_MS);
    mb_write_cstr(&r->w, "args");
    mb_write_map(&r->w, n_args + n_extra);
    mb_write_raw(&r->w, pairs);
}

/* Send, then wait for the reply to this ticket; others stay for poll. */
static membank_status
call_and_wait(
    struct request *r, struct membank_reply **out, struct membank_error *err)
{
    struct membank *mb = r->mb;
    membank_status st =
        send_request(r, (membank_status)r->w.status, deadline_of(mb), err);
    if (st != MEMBANK_OK)
        return st;
    mb->wanted = mb->last_ticket;
    for (;;) {
        pump(mb);
        if (mb->wanted_reply)
            break;
        wait_until(mb, ZMQ_POLLIN, earliest_deadline(mb));
    }
    *out = mb->wanted_reply;
    mb->wanted_reply = NULL;
    mb->wanted = 0;
    mb->n_in_flight--;
    return MEMBANK_OK;
}

membank_status
request_call(
    struct request *r, struct membank_reply **out, struct membank_error *err)
{
    struct membank_reply *reply = NULL;
    membank_status st = call_and_wait(r, &reply, err);
    if (st != MEMBANK_OK)
        return st;
    st = reply->status;
    if (st != MEMBANK_OK)
        client_fail(err, st, "%s", reply->error);
    if (st == MEMBANK_OK && out)
        *out = reply;
    else
        membank_reply_free(reply);
    return st;
}

/* ---- any operation ---- */

membank_status
membank_call(struct membank *mb, const char *op, struct membank_bytes args,
    struct membank_reply **out, struct membank_error *err)
{
    membank_status st = client_check_map(args, "args", err);
    if (st != MEMBANK_OK)
        return st;
    struct request r;
    request_start(&r, mb, op, 0, args);
    return request_call(&r, out, err);
}

membank_status
membank_send(struct membank *mb, const char *op, struct membank_bytes args,
    uint64_t *ticket, struct membank_error *err)
{
    membank_status st = client_check_map(args, "args", err);
    if (st != MEMBANK_OK)
        return st;
    struct request r;
    request_start(&r, mb, op, 0, args);
    st = send_request(&r, (membank_status)r.w.status, deadline_of(mb), err);
    if (st == MEMBANK_OK)
        *ticket = mb->last_ticket;
    return st;
}

membank_status
membank_poll(struct membank *mb, unsigned timeout_ms,
    struct membank_reply **out, struct membank_error *err)
{
    uint64_t until = mb_clock_ns() + (uint64_t)timeout_ms * 1000000;
    while (!mb->ready) {
        if (mb->n_in_flight == 0)
            return client_fail(
                err, MEMBANK_ERR_NOT_FOUND, "no request is in flight");
        pump(mb);
        if (mb->ready)
            break;
        if (mb_clock_ns() >= until)
            return client_fail(
                err, MEMBANK_ERR_TIMEOUT, "no reply within %u ms", timeout_ms);
        uint64_t earliest = earliest_deadline(mb);
        wait_until(mb, ZMQ_POLLIN, earliest < until ? earliest : until);
    }
    struct membank_reply *reply = mb->ready;
    mb->ready = reply->next;
    if (!mb->ready)
        mb->ready_end = &mb->ready;
    reply->next = NULL;
    if (!reply->has_more)
        mb->n_in_flight--;
    *out = reply;
    return MEMBANK_OK;
}

size_t
membank_in_flight(const struct membank *mb)
{
    return mb->n_in_flight;
}

int
membank_fd(const struct membank *mb)
{
    int fd = -1;
    size_t size = sizeof fd;
    (void)zmq_getsockopt(mb->socket, ZMQ_FD, &fd, &size);
    return fd;
}

/* ---- open and close ---- */

/* As membank.h says; the tools and the daemon have the same default. */
static void
default_endpoint(char *out, size_t size)
{
    const char *named = getenv("MEMBANK_ENDPOINT");
    const char *dir = getenv("XDG_RUNTIME_DIR");
    if (named && named[0])
        snprintf(out, size, "%s", named);
    else if (dir && dir[0] == '/')
        snprintf(out, size, "ipc://%s/membank.sock", dir);
    else
        snprintf(
            out, size, "ipc:///tmp/membank-%lu.sock", (unsigned long)getuid());
}

static bool
set_int(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof value) == 0;
}

static membank_status
set_keys(struct membank *mb, const struct membank_options *opt,
    struct membank_error *err)
{
    if (!opt->server_key && !opt->public_key && !opt->secret_key)
        return MEMBANK_OK;

    const struct {
        int option;
        const char *key;
        const char *name;
    } keys[] = {
        {ZMQ_CURVE_SERVERKEY, opt->server_key, "server_key"},
        {ZMQ_CURVE_PUBLICKEY, opt->public_key, "public_key"},
        {ZMQ_CURVE_SECRETKEY, opt->secret_key, "secret_key"},
    };

    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        // With its NUL: libzmq takes that as Z85 text.
        if (!keys[i].key || strlen(keys[i].key) != 40 ||
            zmq_setsockopt(mb->socket, keys[i].option, keys[i].key, 41) != 0)
            return client_fail(err, MEMBANK_ERR_BAD_ARG,
                "%s must be a CURVE key of 40 characters", keys[i].name);
    }
    return MEMBANK_OK;
}

static membank_status
open_sockets(struct membank *mb, const struct membank_options *opt,
    struct membank_error *err)
{
    mb->context = zmq_ctx_new();
    if (mb->context)
        mb->socket = zmq_socket(mb->context, ZMQ_DEALER);
    if (!mb->socket)
        return client_fail(
            err, MEMBANK_ERR_INTERNAL, "new socket: %s", zmq_strerror(errno));
    int64_t max_bytes = (int64_t)mb->max_reply_bytes;
    bool ok =
        set_int(mb->socket, ZMQ_LINGER, 0) &&
        set_int(mb->socket, ZMQ_IMMEDIATE, 1) &&
        set_int(mb->socket, ZMQ_IPV6, 1) &&
        set_int(mb->socket, ZMQ_RECONNECT_IVL, RECONNECT_MS) &&
        set_int(mb->socket, ZMQ_RECONNECT_IVL_MAX, RECONNECT_MAX_MS) &&
        set_int(mb->socket, ZMQ_HEARTBEAT_IVL, HEARTBEAT_MS) &&
        set_int(mb->socket, ZMQ_HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS) &&
        zmq_setsockopt(
            mb->socket, ZMQ_MAXMSGSIZE, &max_bytes, sizeof max_bytes) == 0;
    int events = ZMQ_EVENT_HANDSHAKE_SUCCEEDED |
                 ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                 ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                 ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_DISCONNECTED;
    ok = ok && zmq_socket_monitor(mb->socket, MONITOR_ENDPOINT, events) == 0;
    if (ok)
        mb->monitor = zmq_socket(mb->context, ZMQ_PAIR);
    ok = ok && mb->monitor && set_int(mb->monitor, ZMQ_LINGER, 0) &&
         zmq_connect(mb->monitor, MONITOR_ENDPOINT) == 0;
    if (!ok)
        return client_fail(err, MEMBANK_ERR_INTERNAL, "set up a socket: %s",
            zmq_strerror(errno));
    membank_status st = set_keys(mb, opt, err);
    if (st != MEMBANK_OK)
        return st;
    if (zmq_connect(mb->socket, mb->endpoint) != 0)
        return client_fail(err, MEMBANK_ERR_BAD_ARG, "endpoint %s: %s",
            mb->endpoint, zmq_strerror(errno));
    return MEMBANK_OK;
}

membank_status
membank_open(const struct membank_options *opt, struct membank **out,
    struct membank_error *err)
{
    static const struct membank_options defaults;
    if (!opt)
        opt = &defaults;
    struct membank *mb = mb_calloc(1, sizeof *mb);
    if (!mb)
        return client_fail(err, MEMBANK_ERR_NOMEM, "no memory for a client");
    mb->default_timeout_ms =
        opt->timeout_ms ? opt->timeout_ms : DEFAULT_TIMEOUT_MS;
    mb->timeout_ms = mb->default_timeout_ms;
    mb->connect_timeout_ms =
        opt->connect_timeout_ms ? opt->connect_timeout_ms : DEFAULT_CONNECT_MS;
    mb->max_reply_bytes =
        opt->max_reply_bytes ? opt->max_reply_bytes : DEFAULT_REPLY_BYTES;
    if (mb->max_reply_bytes > INT64_MAX)
        mb->max_reply_bytes = INT64_MAX;
    mb->ready_end = &mb->ready;
    mb_buffer_init(&mb->out, CLIENT_MAX_REQUEST);
    char endpoint[256];
    default_endpoint(endpoint, sizeof endpoint);
    const char *wanted = opt->endpoint ? opt->endpoint : endpoint;
    mb->endpoint = mb_strndup(wanted, strlen(wanted));
    membank_status st = mb->endpoint ? open_sockets(mb, opt, err)
                                     : client_fail(err, MEMBANK_ERR_NOMEM,
                                           "no memory for a client");
    if (st != MEMBANK_OK) {
        membank_close(mb);
        return st;
    }
    *out = mb;
    return MEMBANK_OK;
}

void
membank_close(struct membank *mb)
{
    if (!mb)
        return;
    for (size_t i = 0; i < mb->n_tickets; i++)
        mb_free(mb->tickets[i].reply);
    while (mb->ready) {
        struct membank_reply *next = mb->ready->next;
        membank_reply_free(mb->ready);
        mb->ready = next;
    }
    if (mb->socket)
        (void)zmq_socket_monitor(mb->socket, NULL, 0);
    if (mb->monitor)
        zmq_close(mb->monitor);
    if (mb->socket)
        zmq_close(mb->socket);
    if (mb->context)
        zmq_ctx_term(mb->context);
    mb_buffer_fini(&mb->out);
    mb_free(mb->tickets);
    mb_free(mb->endpoint);
    mb_free(mb);
}

void
membank_set_timeout(struct membank *mb, unsigned timeout_ms)
{
    mb->timeout_ms = timeout_ms ? timeout_ms : mb->default_timeout_ms;
}

const char *
membank_endpoint(const struct membank *mb)
{
    return mb->endpoint;
}
