/* SPDX-License-Identifier: Apache-2.0
 * daemon/server.c - messages in, messages out: the only user of ZeroMQ here.
 *
 * mb-io sleeps in zmq_poll on its sockets and on an eventfd by which other
 * threads announce replies. A message is [identity, envelope..., body]: REQ
 * clients and proxies put frames that end with an empty one before the body;
 * they are sent back in front of the reply.
 *
 * libzmq would queue replies without bound for a client that does not read, or
 * drop them silently at its high-water mark. Neither is wanted: the mark is
 * off, and every reply is counted from the moment its request comes in until
 * libzmq gives its bytes back, which it does when they have left for the kernel
 * (free_sent). So a client has at most max_client_requests of both together,
 * and loses nothing while it keeps to that.
 * Invariants: a struct client is in the table while anything of it is in
 * flight or unsent; only mb-io frees it.
 * Threads: mb-io runs everything but server_reply (queue under `lock`),
 * free_sent (libzmq's thread; atomics of client) and the counters. */
#include "server.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <zmq.h>

#include "server_clients.h"
#include "server_keys.h"

#define TICK_MS          1000
#define BATCH            32 /* messages of one socket before others have a turn */
#define MAX_ENVELOPE     512 /* bytes of frames before the body */
#define LINGER_MS        1000
#define HEARTBEAT_MS     10000
#define HEARTBEAT_END_MS 30000
#define RECEIVE_MARK     64 /* messages a client may have queued unread by us */
#define ZAP_ENDPOINT     "inproc://zeromq.zap.01"

struct request;

/* A message on its way to a client: a request's reply lies in the request, and
 * the request lives as long; parts before it stand for themselves. */
struct outgoing {
    struct outgoing *next; /* in the queue */
    struct request *rq;    /* of a part: NULL once it has been sent */
    struct client *client;
    struct mb_buffer data;
    bool is_part;
};

/* Why parts of a stream stopped. */
enum loss { LOSS_NONE, LOSS_GONE, LOSS_SLOW };

struct request {
    struct server_request pub; /* first: server_reply casts back */
    struct server *server;
    struct client *client;
    size_t charged;    /* bytes counted as pending */
    zmq_msg_t message; /* the body */
    bool has_message;
    struct outgoing reply;
    atomic_int loss;      /* enum loss; relaxed: mb-io sets it */
    size_t envelope_size; /* frames as u8 size, bytes; 0: no delimiter */
    uint8_t envelope[];
};

struct server {
    const struct config *cfg; /* valid during server_open only */
    struct server_handler handler;
    void *context;
    void *sockets[CONFIG_MAX_LIST];
    size_t n_sockets;
    void *zap; /* answers key checks; NULL without an allow list */
    int wake_fd;
    size_t max_message_bytes;
    struct client_table clients;
    pthread_t thread_id;
    struct mb_thread *thread;
    uint64_t last_tick_ns;
    struct key_list allowed; /* public keys of clients */

    atomic_uint_fast64_t max_client_requests; /* relaxed: limits, counters */
    atomic_uint_fast64_t max_client_bytes;
    atomic_uint_fast64_t max_pending_bytes;
    atomic_uint_fast64_t n_requests;
    atomic_uint_fast64_t n_replies;
    atomic_uint_fast64_t n_refused;
    atomic_uint_fast64_t n_dropped;
    atomic_uint_fast64_t bytes_in;
    atomic_uint_fast64_t bytes_out;
    atomic_uint_fast64_t pending_bytes;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    struct outgoing *outgoing; /* newest first */
    uint64_t n_in_flight;
    bool bound;
    bool started;
    bool stopping;
    mb_status start_status;
    struct mb_error start_error;
};

static uint64_t
load(const atomic_uint_fast64_t *v)
{
    return atomic_load_explicit(v, memory_order_relaxed);
}

static void
add(atomic_uint_fast64_t *v, uint64_t n)
{
    (void)atomic_fetch_add_explicit(v, n, memory_order_relaxed);
}

static void
sub(atomic_uint_fast64_t *v, uint64_t n)
{
    (void)atomic_fetch_sub_explicit(v, n, memory_order_relaxed);
}

/* ---- replies ---- */

static void
request_free(struct request *rq)
{
    if (rq->has_message)
        (void)zmq_msg_close(&rq->message);
    mb_buffer_fini(&rq->reply.data);
    mb_free(rq);
}

static void
outgoing_free(struct outgoing *out)
{
    if (!out->is_part) {
        request_free(out->rq);
        return;
    }
    mb_buffer_fini(&out->data);
    mb_free(out);
}

/* Orders what mb-io wrote into a request before libzmq's thread reads it. The
 * queues of libzmq do that already; this says it in terms that C, and a race
 * detector, know. A count that nobody reads: it holds no state. */
static atomic_uint handed_over;

/* libzmq has passed the reply on or thrown it away. Its I/O thread. */
static void
free_sent(void *data, void *hint)
{
    // Acquire pairs with the release in send_reply.
    (void)atomic_load_explicit(&handed_over, memory_order_acquire);
    struct outgoing *out = hint;
    struct client *c = out->client;
    size_t size = out->data.size;

    (void)data;
    outgoing_free(out);
    sub(&c->unsent_bytes, size);
    // Release: after this mb-io may free the client.
    (void)atomic_fetch_sub_explicit(&c->n_unsent, 1, memory_order_release);
}

static bool
send_copy(void *socket, const void *data, size_t size, int flags)
{
    return zmq_send(socket, data, size, flags | ZMQ_DONTWAIT) >= 0;
}

/* Frames before the body: identity, envelope. False: the client is gone. */
static bool
send_head(void *socket, const struct request *rq)
{
    const struct client *c = rq->client;

    if (!send_copy(socket, c->identity, c->identity_size, ZMQ_SNDMORE))
        return false;
    for (size_t pos = 0; pos < rq->envelope_size;) {
        size_t size = rq->envelope[pos];

        if (!send_copy(socket, rq->envelope + pos + 1, size, ZMQ_SNDMORE))
            return false;
        pos += 1 + size;
    }
    return true;
}

/* Takes out. False: the client is gone. */
static bool
send_outgoing(struct server *s, struct outgoing *out, const struct request *rq)
{
    struct client *c = out->client;
    void *socket = s->sockets[c->socket];
    size_t size = out->data.size;
    zmq_msg_t body;

    // ROUTER_MANDATORY makes the first frame fail if the client is gone.
    if (size == 0 || !send_head(socket, rq) ||
        zmq_msg_init_data(&body, out->data.data, size, free_sent, out) != 0) {
        add(&s->n_dropped, 1);
        outgoing_free(out);
        return false;
    }
    add(&c->n_unsent, 1);
    add(&c->unsent_bytes, size);
    add(&s->n_replies, 1);
    add(&s->bytes_out, size);
    (void)atomic_fetch_add_explicit(&handed_over, 1, memory_order_release);
    if (zmq_msg_send(&body, socket, ZMQ_DONTWAIT) >= 0)
        return true;
    add(&s->n_dropped, 1);
    (void)zmq_msg_close(&body); // calls free_sent
    return false;
}

/* Takes the reply, and with it the request. */
static void
send_reply(struct server *s, struct request *rq)
{
    MB_ASSERT(rq->client->n_requests > 0);
    rq->client->n_requests--;
    sub(&s->pending_bytes, rq->charged);
    server_drop_body(&rq->pub);
    (void)send_outgoing(s, &rq->reply, rq);
    (void)pthread_mutex_lock(&s->lock);
    s->n_in_flight--;
    if (s->n_in_flight == 0)
        (void)pthread_cond_broadcast(&s->changed);
    (void)pthread_mutex_unlock(&s->lock);
}

/* Takes the part. A client that has twice as much unread as it may is slow: it
 * gets no more of this stream, as it would be kept in memory without bound. */
static void
send_part(struct server *s, struct outgoing *out)
{
    struct request *rq = out->rq;
    struct client *c = out->client;
    enum loss loss =
        (enum loss)atomic_load_explicit(&rq->loss, memory_order_relaxed);

    if (loss == LOSS_NONE &&
        (load(&c->n_unsent) >= 2 * load(&s->max_client_requests) ||
            load(&c->unsent_bytes) > load(&s->max_client_bytes)))
        loss = LOSS_SLOW;
    out->rq = NULL;
    if (loss != LOSS_NONE) {
        add(&s->n_dropped, 1);
        outgoing_free(out);
    } else if (!send_outgoing(s, out, rq)) {
        loss = LOSS_GONE;
    }
    atomic_store_explicit(&rq->loss, loss, memory_order_relaxed);
}

static void
send_any(struct server *s, struct outgoing *out)
{
    if (out->is_part)
        send_part(s, out);
    else
        send_reply(s, out->rq);
}

void
server_drop_body(struct server_request *pub)
{
    struct request *rq = (struct request *)pub;

    if (rq->has_message)
        (void)zmq_msg_close(&rq->message);
    rq->has_message = false;
    pub->body = mb_slice_of(NULL, 0);
}

static void
wake(struct server *s)
{
    uint64_t one = 1;

    // The counter cannot overflow: mb-io resets it at each wake-up.
    if (write(s->wake_fd, &one, sizeof one) < 0)
        return;
}

/* Send now if this is mb-io, else queue. */
static void
submit(struct server *s, struct outgoing *out)
{
    bool was_empty;

    if (pthread_equal(pthread_self(), s->thread_id) != 0) {
        send_any(s, out);
        return;
    }
    (void)pthread_mutex_lock(&s->lock);
    was_empty = s->outgoing == NULL;
    out->next = s->outgoing;
    s->outgoing = out;
    (void)pthread_mutex_unlock(&s->lock);
    if (was_empty)
        wake(s);
}

void
server_reply(struct server_request *pub, struct mb_buffer *reply)
{
    struct request *rq = (struct request *)pub;

    rq->reply.rq = rq;
    rq->reply.client = rq->client;
    rq->reply.data = *reply;
    mb_buffer_init(reply, reply->max);
    submit(rq->server, &rq->reply);
}

bool
server_send_part(struct server_request *pub, struct mb_buffer *part)
{
    struct request *rq = (struct request *)pub;
    struct outgoing *out;

    if (server_lost(pub) != NULL)
        return false;
    out = mb_calloc(1, sizeof *out);
    if (out == NULL) {
        // A stream with a hole is worse than one that ends.
        atomic_store_explicit(&rq->loss, LOSS_SLOW, memory_order_relaxed);
        return false;
    }
    out->rq = rq;
    out->client = rq->client;
    out->is_part = true;
    out->data = *part;
    mb_buffer_init(part, part->max);
    submit(rq->server, out);
    return true;
}

const char *
server_lost(const struct server_request *pub)
{
    const struct request *rq = (const struct request *)pub;

    switch (atomic_load_explicit(&rq->loss, memory_order_relaxed)) {
    case LOSS_GONE:
        return "the client is gone";
    case LOSS_SLOW:
        return "the client does not read its stream";
    default:
        return NULL;
    }
}

/* Send all that other threads have queued, oldest first. */
static void
send_queued(struct server *s)
{
    struct outgoing *newest;
    struct outgoing *oldest = NULL;

    (void)pthread_mutex_lock(&s->lock);
    newest = s->outgoing;
    s->outgoing = NULL;
    (void)pthread_mutex_unlock(&s->lock);
    while (newest != NULL) {
        struct outgoing *next = newest->next;

        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    while (oldest != NULL) {
        struct outgoing *next = oldest->next;

        send_any(s, oldest);
        oldest = next;
    }
}

/* ---- requests ---- */

static mb_status
refuse(struct request *rq, mb_status st, const char *what, uint64_t limit)
{
    (void)snprintf(rq->pub.why, sizeof rq->pub.why, "%s %llu", what,
        (unsigned long long)limit);
    return st;
}

/* May this request be worked on? */
static mb_status
judge(struct server *s, struct request *rq)
{
    const struct client *c = rq->client;
    uint64_t max_requests = load(&s->max_client_requests);
    uint64_t max_bytes = load(&s->max_client_bytes);
    uint64_t max_pending = load(&s->max_pending_bytes);

    if (rq->pub.body.size > s->max_message_bytes)
        return refuse(rq, MB_ERR_TOO_LARGE,
            "message larger than max_message_bytes", s->max_message_bytes);
    if (c->n_requests + load(&c->n_unsent) >= max_requests)
        return refuse(rq, MB_ERR_BUSY,
            "in flight and unread: more than max_client_requests",
            max_requests);
    if (load(&c->unsent_bytes) > max_bytes)
        return refuse(rq, MB_ERR_BUSY,
            "unread bytes: more than max_client_bytes", max_bytes);
    // One request is always taken, however large.
    if (load(&s->pending_bytes) > 0 &&
        load(&s->pending_bytes) + rq->pub.body.size > max_pending)
        return refuse(rq, MB_ERR_BUSY,
            "pending of all clients: more than max_pending_bytes", max_pending);
    return MB_OK;
}

/* A message as its frames come in. */
struct frames {
    uint8_t identity[MAX_IDENTITY];
    size_t identity_size;
    uint8_t envelope[MAX_ENVELOPE];
    size_t envelope_size;
    zmq_msg_t last; /* the newest frame; the body at the end */
    size_t n;       /* frames after the identity */
    bool last_empty_before;
    bool bad;
};

/* The newest frame is not the body, as another follows: keep its bytes. */
static void
keep_envelope(struct frames *f)
{
    size_t size = zmq_msg_size(&f->last);

    f->last_empty_before = size == 0;
    if (size > UINT8_MAX || f->envelope_size + 1 + size > sizeof f->envelope) {
        f->bad = true;
        return;
    }
    f->envelope[f->envelope_size] = (uint8_t)size;
    if (size > 0)
        memcpy(
            f->envelope + f->envelope_size + 1, zmq_msg_data(&f->last), size);
    f->envelope_size += 1 + size;
}

/* Receive one whole message; false if there is none. Frames arrive together,
 * so that only the first receive may find nothing. */
static bool
receive(void *socket, struct frames *f)
{
    zmq_msg_t identity;

    (void)zmq_msg_init(&identity);
    (void)zmq_msg_init(&f->last);
    if (zmq_msg_recv(&identity, socket, ZMQ_DONTWAIT) < 0) {
        (void)zmq_msg_close(&identity);
        return false;
    }
    f->identity_size = zmq_msg_size(&identity);
    f->n = 0;
    f->envelope_size = 0;
    f->last_empty_before = false;
    f->bad = f->identity_size > MAX_IDENTITY;
    if (!f->bad)
        memcpy(f->identity, zmq_msg_data(&identity), f->identity_size);
    while (zmq_msg_more(f->n == 0 ? &identity : &f->last) != 0) {
        if (f->n > 0)
            keep_envelope(f);
        if (zmq_msg_recv(&f->last, socket, 0) < 0)
            break;
        f->n++;
    }
    (void)zmq_msg_close(&identity);
    // Frames before the body end with an empty one.
    if (f->n == 0 || (f->n > 1 && !f->last_empty_before))
        f->bad = true;
    return true;
}

static struct request *
request_new(struct server *s, struct client *c, struct frames *f)
{
    size_t envelope_size = f->bad ? 0 : f->envelope_size;
    struct request *rq = mb_alloc(sizeof *rq + envelope_size);

    if (rq == NULL)
        return NULL;
    memset(rq, 0, sizeof *rq);
    rq->server = s;
    rq->client = c;
    rq->envelope_size = envelope_size;
    memcpy(rq->envelope, f->envelope, envelope_size);
    (void)zmq_msg_init(&rq->message);
    (void)zmq_msg_move(&rq->message, &f->last);
    rq->has_message = true;
    rq->pub.body =
        mb_slice_of(zmq_msg_data(&rq->message), zmq_msg_size(&rq->message));
    rq->pub.arrived_ns = mb_clock_ns();
    if (f->bad)
        rq->pub.verdict = refuse(rq, MB_ERR_BAD_MESSAGE,
            "frames: one body after at most an envelope of bytes",
            MAX_ENVELOPE);
    else
        rq->pub.verdict = judge(s, rq);
    return rq;
}

/* Take one message in. Returns false if none was there. */
static bool
accept_one(struct server *s, size_t socket)
{
    struct frames f;
    struct request *rq = NULL;
    struct client *c = NULL;

    if (!receive(s->sockets[socket], &f))
        return false;
    add(&s->n_requests, 1);
    add(&s->bytes_in, zmq_msg_size(&f.last));
    if (f.identity_size <= MAX_IDENTITY)
        c = clients_find(&s->clients, socket, f.identity, f.identity_size);
    // A client this far past its limit does not read what it is told.
    if (c != NULL &&
        c->n_requests + load(&c->n_unsent) < 2 * load(&s->max_client_requests))
        rq = request_new(s, c, &f);
    (void)zmq_msg_close(&f.last);
    if (rq == NULL) {
        add(&s->n_dropped, 1);
        return true;
    }
    if (rq->pub.verdict != MB_OK)
        add(&s->n_refused, 1);
    c->n_requests++;
    rq->charged = rq->pub.verdict == MB_OK ? rq->pub.body.size : 0;
    add(&s->pending_bytes, rq->charged);
    (void)pthread_mutex_lock(&s->lock);
    s->n_in_flight++;
    (void)pthread_mutex_unlock(&s->lock);
    s->handler.on_request(s->handler.arg, &rq->pub);
    return true;
}

bool
server_has_waiting(struct server *s)
{
    for (size_t i = 0; i < s->n_sockets; i++) {
        int events = 0;
        size_t size = sizeof events;

        if (zmq_getsockopt(s->sockets[i], ZMQ_EVENTS, &events, &size) == 0 &&
            (events & ZMQ_POLLIN) != 0)
            return true;
    }
    return false;
}

/* ---- keys: RFC 27/ZAP ---- */

/* Answer one question of libzmq: may this public key come in? */
static void
answer_zap(struct server *s)
{
    enum { VERSION, ID, DOMAIN, ADDRESS, PEER, MECHANISM, KEY, N };

    uint8_t frames[N][64];
    int sizes[N] = {0};
    char text[KEY_TEXT + 1] = "";
    bool ok = false;
    int more = 1;
    size_t more_size = sizeof more;

    for (size_t i = 0; more != 0; i++) {
        uint8_t rest[64];
        int n = zmq_recv(s->zap, i < N ? frames[i] : rest, 64, 0);

        if (n < 0)
            return;
        if (i < N)
            sizes[i] = n > 64 ? 64 : n;
        (void)zmq_getsockopt(s->zap, ZMQ_RCVMORE, &more, &more_size);
    }
    if (sizes[MECHANISM] == 5 && memcmp(frames[MECHANISM], "CURVE", 5) == 0 &&
        sizes[KEY] == 32 && zmq_z85_encode(text, frames[KEY], 32) != NULL)
        ok = key_list_has(&s->allowed, text);
    if (!ok)
        mb_log(MB_LOG_WARN, "server.denied", "key=%s", text);
    (void)zmq_send(s->zap, "1.0", 3, ZMQ_SNDMORE);
    (void)zmq_send(s->zap, frames[ID], (size_t)sizes[ID], ZMQ_SNDMORE);
    (void)zmq_send(s->zap, ok ? "200" : "400", 3, ZMQ_SNDMORE);
    (void)zmq_send(s->zap, ok ? "OK" : "no", 2, ZMQ_SNDMORE);
    (void)zmq_send(s->zap, "", 0, ZMQ_SNDMORE);
    (void)zmq_send(s->zap, "", 0, 0);
}

mb_status
server_reload_allowed(struct server *s, const char *path, struct mb_error *err)
{
    return s->zap != NULL ? key_list_read(&s->allowed, path, err) : MB_OK;
}

static mb_status
open_zap(struct server *s, struct mb_error *err)
{
    mb_status st;

    if (s->cfg->curve_allow_file[0] == 0)
        return MB_OK;
    st = key_list_read(&s->allowed, s->cfg->curve_allow_file, err);
    if (st != MB_OK)
        return st;
    s->zap = zmq_socket(s->context, ZMQ_REP);
    if (s->zap == NULL || zmq_bind(s->zap, ZAP_ENDPOINT) != 0)
        return mb_error_set(
            err, MB_ERR_IO, "key check: %s", zmq_strerror(zmq_errno()));
    return MB_OK;
}

/* ---- sockets ---- */

static bool
set_int(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof value) == 0;
}

/* libzmq takes a path over without asking: see first that nobody listens
 * there, and that it is no file of another kind. */
static mb_status
check_path(const char *path, struct mb_error *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    size_t size = strlen(path);
    struct stat info;
    bool taken;
    int fd;

    if (size >= sizeof addr.sun_path)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "listen ipc://%s: %zu bytes, a socket's path has at most %zu", path,
            size, sizeof addr.sun_path - 1);
    if (lstat(path, &info) != 0)
        return MB_OK;
    if (!S_ISSOCK(info.st_mode))
        return mb_error_set(err, MB_ERR_EXISTS,
            "listen ipc://%s: a file of that name is there", path);
    memcpy(addr.sun_path, path, size);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0)
        return mb_error_set(err, MB_ERR_IO, "socket: %s", strerror(errno));
    taken = connect(fd, (const struct sockaddr *)&addr, sizeof addr) == 0;
    (void)close(fd);
    if (taken)
        return mb_error_set(err, MB_ERR_LOCKED,
            "listen ipc://%s: another process listens there", path);
    return MB_OK;
}

static mb_status
set_keys(struct server *s, void *socket, struct mb_error *err)
{
    char key[1][KEY_TEXT + 1];
    size_t n = 0;
    mb_status st;

    if (s->cfg->curve_secret_key_file[0] == 0)
        return MB_OK;
    st = keys_read(s->cfg->curve_secret_key_file, 1, key, &n, err);
    if (st != MB_OK)
        return st;
    if (!set_int(socket, ZMQ_CURVE_SERVER, 1) ||
        zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, key[0], KEY_TEXT + 1) != 0)
        st = mb_error_set(err, MB_ERR_DENIED, "secret key %s: %s",
            s->cfg->curve_secret_key_file, zmq_strerror(zmq_errno()));
    memset(key, 0, sizeof key);
    return st;
}

static mb_status
set_options(struct server *s, void *socket, bool is_tcp, struct mb_error *err)
{
    int64_t max_bytes = (int64_t)(2 * s->max_message_bytes);
    // HANDOVER: a client that comes back with the identity of its dead
    // connection gets its place at once.
    bool ok = set_int(socket, ZMQ_ROUTER_MANDATORY, 1) &&
              set_int(socket, ZMQ_ROUTER_HANDOVER, 1) &&
              set_int(socket, ZMQ_SNDHWM, 0) &&
              set_int(socket, ZMQ_RCVHWM, RECEIVE_MARK) &&
              set_int(socket, ZMQ_LINGER, LINGER_MS) &&
              set_int(socket, ZMQ_BACKLOG, 1024) &&
              set_int(socket, ZMQ_IPV6, 1) &&
              zmq_setsockopt(
                  socket, ZMQ_MAXMSGSIZE, &max_bytes, sizeof max_bytes) == 0;

    if (ok && is_tcp)
        ok = set_int(socket, ZMQ_HEARTBEAT_IVL, HEARTBEAT_MS) &&
             set_int(socket, ZMQ_HEARTBEAT_TIMEOUT, HEARTBEAT_END_MS);
    if (!ok)
        return mb_error_set(
            err, MB_ERR_IO, "socket option: %s", zmq_strerror(zmq_errno()));
    // Files are guarded by their mode; keys are for networks.
    return is_tcp ? set_keys(s, socket, err) : MB_OK;
}

static mb_status
bind_socket(
    struct server *s, void *socket, const char *endpoint, struct mb_error *err)
{
    const char *path =
        strncmp(endpoint, "ipc://", 6) == 0 ? endpoint + 6 : NULL;
    char bound[CONFIG_MAX_TEXT] = "";
    size_t size = sizeof bound;
    mb_status st = path != NULL ? check_path(path, err) : MB_OK;
    mode_t mask;
    int rc;

    if (st != MB_OK)
        return st;
    // Nobody else may come in between bind and chmod. The mask belongs to the
    // process; at this point no other thread makes files.
    mask = umask(0177);
    rc = zmq_bind(socket, endpoint);
    (void)umask(mask);
    if (rc != 0)
        return mb_error_set(err,
            zmq_errno() == EADDRINUSE ? MB_ERR_LOCKED : MB_ERR_IO,
            "listen %s: %s", endpoint, zmq_strerror(zmq_errno()));
    if (path != NULL && chmod(path, (mode_t)s->cfg->ipc_mode) != 0)
        return mb_error_set(
            err, MB_ERR_IO, "chmod %s: %s", path, strerror(errno));
    (void)zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, bound, &size);
    mb_log(MB_LOG_INFO, "server.listen", "endpoint=%s", bound);
    return MB_OK;
}

static mb_status
open_socket(struct server *s, const char *endpoint, struct mb_error *err)
{
    void *socket = zmq_socket(s->context, ZMQ_ROUTER);
    mb_status st;

    if (socket == NULL)
        return mb_error_set(
            err, MB_ERR_IO, "socket: %s", zmq_strerror(zmq_errno()));
    s->sockets[s->n_sockets++] = socket;
    st = set_options(s, socket, strncmp(endpoint, "tcp://", 6) == 0, err);
    return st == MB_OK ? bind_socket(s, socket, endpoint, err) : st;
}

static mb_status
open_sockets(struct server *s, struct mb_error *err)
{
    mb_status st = open_zap(s, err);

    for (size_t i = 0; i < s->cfg->listen.n && st == MB_OK; i++) {
        st = open_socket(s, s->cfg->listen.items[i], err);
    }
    return st;
}

/* ---- the thread ---- */

static bool
is_stopping(struct server *s)
{
    bool stopping;

    (void)pthread_mutex_lock(&s->lock);
    stopping = s->stopping;
    (void)pthread_mutex_unlock(&s->lock);
    return stopping;
}

static void
tick(struct server *s)
{
    uint64_t now = mb_clock_ns();

    if (now - s->last_tick_ns < TICK_MS * 1000000ull)
        return;
    s->last_tick_ns = now;
    clients_sweep(&s->clients);
    if (s->handler.on_tick != NULL)
        s->handler.on_tick(s->handler.arg, now);
}

static void
serve(struct server *s)
{
    zmq_pollitem_t items[CONFIG_MAX_LIST + 2];
    int n_items = 0;

    items[n_items++] = (zmq_pollitem_t){.fd = s->wake_fd, .events = ZMQ_POLLIN};
    for (size_t i = 0; i < s->n_sockets; i++) {
        items[n_items++] =
            (zmq_pollitem_t){.socket = s->sockets[i], .events = ZMQ_POLLIN};
    }
    if (s->zap != NULL)
        items[n_items++] =
            (zmq_pollitem_t){.socket = s->zap, .events = ZMQ_POLLIN};
    while (!is_stopping(s)) {
        uint64_t count;

        if (zmq_poll(items, n_items, TICK_MS) < 0 && zmq_errno() != EINTR)
            break;
        if ((items[0].revents & ZMQ_POLLIN) != 0 &&
            read(s->wake_fd, &count, sizeof count) > 0)
            send_queued(s);
        for (size_t i = 0; i < s->n_sockets; i++) {
            int n = 0;

            if ((items[1 + i].revents & ZMQ_POLLIN) == 0)
                continue;
            while (n < BATCH && accept_one(s, i)) {
                n++;
            }
        }
        if (s->zap != NULL && (items[n_items - 1].revents & ZMQ_POLLIN) != 0)
            answer_zap(s);
        tick(s);
    }
    send_queued(s);
}

static void
run(void *arg)
{
    struct server *s = arg;
    struct mb_error err = {0};
    mb_status st;

    s->thread_id = pthread_self();
    st = open_sockets(s, &err);
    (void)pthread_mutex_lock(&s->lock);
    s->bound = true;
    s->start_status = st;
    s->start_error = err;
    s->cfg = NULL;
    (void)pthread_cond_broadcast(&s->changed);
    while (!s->started && !s->stopping) {
        (void)pthread_cond_wait(&s->changed, &s->lock);
    }
    (void)pthread_mutex_unlock(&s->lock);
    if (st == MB_OK)
        serve(s);
    for (size_t i = 0; i < s->n_sockets; i++) {
        (void)zmq_close(s->sockets[i]);
    }
    if (s->zap != NULL)
        (void)zmq_close(s->zap);
}

/* ---- life ---- */

/* Start the thread and wait until it has bound its sockets. */
static mb_status
start_thread(struct server *s, struct mb_error *err)
{
    mb_status st = mb_thread_start(&s->thread, "mb-io", run, s);

    if (st != MB_OK)
        return mb_error_set(err, st, "start thread mb-io");
    (void)pthread_mutex_lock(&s->lock);
    while (!s->bound) {
        (void)pthread_cond_wait(&s->changed, &s->lock);
    }
    st = s->start_status;
    if (st != MB_OK && err != NULL)
        *err = s->start_error;
    (void)pthread_mutex_unlock(&s->lock);
    return st;
}

mb_status
server_open(const struct config *cfg, const struct server_handler *handler,
    struct server **out, struct mb_error *err)
{
    struct server_limits limits = {cfg->max_client_requests,
        cfg->max_client_bytes, cfg->max_pending_bytes};
    struct server *s = mb_calloc(1, sizeof *s);
    pthread_condattr_t attr;
    mb_status st;

    if (s == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "server");
    (void)pthread_mutex_init(&s->lock, NULL);
    key_list_init(&s->allowed);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&s->changed, &attr);
    (void)pthread_condattr_destroy(&attr);
    s->cfg = cfg;
    s->handler = *handler;
    s->max_message_bytes = cfg->max_message_bytes;
    server_set_limits(s, &limits);
    s->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    s->context = zmq_ctx_new();
    if (s->wake_fd < 0 || s->context == NULL)
        st = mb_error_set(err, MB_ERR_IO, "server: %s", strerror(errno));
    else
        st = start_thread(s, err);
    if (st == MB_OK) {
        *out = s;
        s = NULL;
    }
    server_close(s);
    return st;
}

void
server_start(struct server *s)
{
    (void)pthread_mutex_lock(&s->lock);
    s->started = true;
    (void)pthread_cond_broadcast(&s->changed);
    (void)pthread_mutex_unlock(&s->lock);
}

void
server_set_limits(struct server *s, const struct server_limits *limits)
{
    atomic_store_explicit(&s->max_client_requests, limits->max_client_requests,
        memory_order_relaxed);
    atomic_store_explicit(
        &s->max_client_bytes, limits->max_client_bytes, memory_order_relaxed);
    atomic_store_explicit(
        &s->max_pending_bytes, limits->max_pending_bytes, memory_order_relaxed);
}

bool
server_drain(struct server *s, uint64_t timeout_ms)
{
    uint64_t until = mb_clock_ns() + timeout_ms * 1000000u;
    struct timespec ts = {
        (time_t)(until / 1000000000u), (long)(until % 1000000000u)};
    int rc = 0;
    bool empty;

    (void)pthread_mutex_lock(&s->lock);
    while (s->n_in_flight > 0 && rc == 0) {
        rc = pthread_cond_timedwait(&s->changed, &s->lock, &ts);
    }
    empty = s->n_in_flight == 0;
    (void)pthread_mutex_unlock(&s->lock);
    return empty;
}

void
server_close(struct server *s)
{
    if (s == NULL)
        return;
    if (s->thread != NULL) {
        (void)pthread_mutex_lock(&s->lock);
        s->stopping = true;
        (void)pthread_cond_broadcast(&s->changed);
        (void)pthread_mutex_unlock(&s->lock);
        wake(s);
        mb_thread_join(s->thread);
    }
    // Ends when all replies are sent or have lingered long enough; every
    // reply's memory has come back then.
    if (s->context != NULL)
        (void)zmq_ctx_term(s->context);
    clients_fini(&s->clients);
    if (s->wake_fd >= 0)
        (void)close(s->wake_fd);
    key_list_fini(&s->allowed);
    (void)pthread_cond_destroy(&s->changed);
    (void)pthread_mutex_destroy(&s->lock);
    mb_free(s);
}

void
server_stats(struct server *s, struct server_stats *out)
{
    out->n_requests = load(&s->n_requests);
    out->n_replies = load(&s->n_replies);
    out->n_refused = load(&s->n_refused);
    out->n_dropped = load(&s->n_dropped);
    out->bytes_in = load(&s->bytes_in);
    out->bytes_out = load(&s->bytes_out);
    out->pending_bytes = load(&s->pending_bytes);
    out->n_clients = load(&s->clients.n);
    (void)pthread_mutex_lock(&s->lock);
    out->n_in_flight = s->n_in_flight;
    (void)pthread_mutex_unlock(&s->lock);
}
