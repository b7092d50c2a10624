/* SPDX-License-Identifier: Apache-2.0
 * tests/integration/test_protocol.c - a real membankd, spoken to in bytes.
 *
 * The examples of PROTOCOL.md are sent in order and their replies compared;
 * then bad messages, clients of all sorts, the end and a new start. */
#include "mb_test.h"

#include <signal.h>
#include <sys/wait.h>

#include <zmq.h>

#include "mb_vectors.h"
#include "mb_wire.h"

struct fixture {
    struct mb_test_dir dir;
    char endpoint[MB_TEST_PATH];
    pid_t pid;
    void *context;
    void *dealer;
};

static void
start(struct fixture *f)
{
    char store[MB_TEST_PATH];
    char log[MB_TEST_PATH];

    mb_test_path(&f->dir, "store", store);
    mb_test_path(&f->dir, "log", log);
    f->pid = fork();
    assert_true(f->pid >= 0);
    if (f->pid == 0) {
        execl(MB_BINARY_DIR "/daemon/membankd", "membankd", "--store", store,
            "--listen", f->endpoint, "--log-file", log, "--max-message-bytes",
            "4M", "--refit-min-segments", "2", (char *)NULL);
        _exit(127);
    }
}

static int
stop(struct fixture *f, int sig)
{
    int status = -1;

    assert_int_equal(0, kill(f->pid, sig));
    assert_int_equal(f->pid, waitpid(f->pid, &status, 0));
    return status;
}

static void *
client(struct fixture *f, int type)
{
    void *socket = zmq_socket(f->context, type);
    int timeout = 20000;
    int linger = 0;

    assert_non_null(socket);
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &timeout, sizeof timeout);
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    assert_int_equal(0, zmq_connect(socket, f->endpoint));
    return socket;
}

static int
setup(void **state)
{
    struct fixture *f = mb_calloc(1, sizeof *f);

    f->dir = mb_test_dir_begin();
    mb_test_endpoint(&f->dir, "s", f->endpoint);
    f->context = zmq_ctx_new();
    zmq_ctx_set(f->context, ZMQ_MAX_SOCKETS, 4096);
    start(f);
    f->dealer = client(f, ZMQ_DEALER);
    *state = f;
    return 0;
}

static int
teardown(void **state)
{
    struct fixture *f = *state;

    zmq_close(f->dealer);
    zmq_ctx_term(f->context);
    if (f->pid > 0)
        (void)stop(f, SIGKILL);
    mb_test_dir_end(&f->dir);
    mb_free(f);
    return 0;
}

/* Receive one reply and parse it; frees nothing before the arena goes. */
static const struct mb_value *
receive(void *socket, struct mb_arena *arena)
{
    const struct mb_value *v;
    zmq_msg_t msg;

    zmq_msg_init(&msg);
    if (zmq_msg_recv(&msg, socket, 0) < 0)
        fail_msg("no reply: %s", zmq_strerror(zmq_errno()));
    size_t size = zmq_msg_size(&msg);
    void *bytes = mb_arena_dup(arena, zmq_msg_data(&msg), size);
    zmq_msg_close(&msg);
    assert_ok(
        mb_wire_parse(mb_slice_of(bytes, size), NULL, false, arena, &v, NULL));
    return v;
}

static const char ping[] = "\x83\xa1v\x01\xa2id\x07\xa2op\xa4ping";

static void
assert_alive(void *socket)
{
    struct mb_arena *arena = mb_arena_new(1u << 20);

    assert_true(zmq_send(socket, ping, sizeof ping - 1, 0) > 0);
    const struct mb_value *v = receive(socket, arena);
    assert_true(mb_value_get(v, "ok")->b);
    assert_int_equal(7, mb_value_get(v, "id")->i);
    mb_arena_free(arena);
}

static void
assert_error(const struct mb_value *reply, const char *code)
{
    assert_false(mb_value_get(reply, "ok")->b);
    assert_slice_str(
        code, mb_value_get(mb_value_get(reply, "error"), "code")->s);
}

/* ---- the document ---- */

static void
send_example(const struct mb_vector *v, void *arg)
{
    struct fixture *f = arg;
    struct mb_arena *arena = mb_arena_new(1u << 20);
    const struct mb_value *want;
    const struct mb_value *got;

    if (strstr(v->columns[0], " request") != NULL) {
        assert_true(zmq_send(f->dealer, v->bytes, v->size, 0) >= 0);
        mb_arena_free(arena);
        return;
    }
    got = receive(f->dealer, arena);
    assert_ok(mb_wire_parse(
        mb_slice_of(v->bytes, v->size), NULL, false, arena, &want, NULL));
    assert_int_equal(mb_value_get(want, "id")->i, mb_value_get(got, "id")->i);
    if (mb_value_get(want, "ok")->b != mb_value_get(got, "ok")->b)
        fail_msg("%s: ok differs", v->columns[0]);
    // Times differ from run to run; errors do not.
    const struct mb_value *error = mb_value_get(want, "error");
    if (error != NULL) {
        const struct mb_value *now = mb_value_get(got, "error");

        assert_true(mb_slice_equal(
            mb_value_get(error, "code")->s, mb_value_get(now, "code")->s));
        assert_true(mb_slice_equal(mb_value_get(error, "message")->s,
            mb_value_get(now, "message")->s));
    } else {
        const struct mb_value *a = mb_value_get(want, "result");
        const struct mb_value *b = mb_value_get(got, "result");

        assert_int_equal(a->map.n, b->map.n);
        for (size_t i = 0; i < a->map.n; i++) {
            assert_true(
                mb_slice_equal(a->map.pairs[i].key, b->map.pairs[i].key));
        }
    }
    mb_arena_free(arena);
}

static void
test_examples_when_sent_then_answered_as_written(void **state)
{
    assert_true(
        mb_vectors_read("wire/protocol.hex", send_example, *state) >= 50);
}

/* ---- bad messages ---- */

static void
send_bad(const struct mb_vector *v, void *arg)
{
    struct fixture *f = arg;
    struct mb_arena *arena = mb_arena_new(1u << 20);

    assert_true(zmq_send(f->dealer, v->bytes, v->size, 0) >= 0);
    const struct mb_value *reply = receive(f->dealer, arena);
    assert_false(mb_value_get(reply, "ok")->b);
    // What its neighbours are told: the daemon lives on.
    assert_alive(f->dealer);
    mb_arena_free(arena);
}

static void
test_bad_messages_when_sent_then_refused_and_alive(void **state)
{
    assert_true(mb_vectors_read("wire/bad.hex", send_bad, *state) > 20);
}

static void
test_arguments_when_wrong_then_named(void **state)
{
    static const struct {
        const char *bytes;
        const char *code;
    } bad[] = {
        {"\x83\xa1v\x01\xa2op\xa4ping\xa4"
         "args\x05",
            "bad_arg"},
        {"\x82\xa2op\xa4ping\xa2id\x01", "bad_message"},
        {"\x82\xa1v\x01\xa2id\x01", "bad_arg"},
        {"\x83\xa1v\x01\xa2op\x05\xa2id\x01", "bad_arg"},
        {"\x82\xa1v\x01\xa2op\xa5query", "bad_arg"},
        {"\x82\xa1v\x01\xa2op\xa8generate", "bad_arg"},
        {"\x82\xa1v\x01\xa2op\xaa"
         "bank.train",
            "bad_arg"},
        {"\x82\xa1v\x01\xa2op\xa4what", "unknown_op"},
        {"\x82\xa1v\x09\xa2op\xa4ping", "bad_version"},
    };
    struct fixture *f = *state;

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct mb_arena *arena = mb_arena_new(1u << 20);

        assert_true(
            zmq_send(f->dealer, bad[i].bytes, strlen(bad[i].bytes), 0) >= 0);
        assert_error(receive(f->dealer, arena), bad[i].code);
        mb_arena_free(arena);
    }
    assert_alive(f->dealer);
}

static void
test_message_when_too_large_then_told_or_cut_off(void **state)
{
    struct fixture *f = *state;
    struct mb_arena *arena = mb_arena_new(1u << 20);
    size_t size = 9u << 20;
    uint8_t *bytes = mb_calloc(size, 1);

    memcpy(bytes, ping, sizeof ping - 1);
    // Up to twice the limit (4 MiB here) there is a reply.
    assert_true(zmq_send(f->dealer, bytes, 5u << 20, 0) > 0);
    assert_error(receive(f->dealer, arena), "too_large");
    // Beyond it the connection ends; others do not notice.
    void *huge = client(f, ZMQ_DEALER);
    assert_true(zmq_send(huge, bytes, size, 0) > 0);
    assert_alive(f->dealer);
    zmq_close(huge);
    mb_free(bytes);
    mb_arena_free(arena);
}

/* ---- clients ---- */

static void
test_req_when_asking_then_answered(void **state)
{
    struct fixture *f = *state;
    void *req = client(f, ZMQ_REQ);

    assert_alive(req);
    assert_alive(req);
    zmq_close(req);
}

static void
test_clients_when_a_thousand_idle_then_others_served(void **state)
{
    enum { N = 1000 };

    struct fixture *f = *state;
    void **idle = mb_calloc(N, sizeof *idle);

    for (int i = 0; i < N; i++) {
        idle[i] = client(f, ZMQ_DEALER);
    }
    // The last to connect is served, so all before it are in.
    assert_alive(idle[N - 1]);
    assert_alive(f->dealer);
    for (int i = 0; i < N; i++) {
        zmq_close(idle[i]);
    }
    mb_free(idle);
}

static void
test_client_when_it_never_reads_then_others_served(void **state)
{
    struct fixture *f = *state;
    void *deaf = zmq_socket(f->context, ZMQ_DEALER);
    int mark = 1;
    int zero = 0;

    zmq_setsockopt(deaf, ZMQ_RCVHWM, &mark, sizeof mark);
    zmq_setsockopt(deaf, ZMQ_LINGER, &zero, sizeof zero);
    assert_int_equal(0, zmq_connect(deaf, f->endpoint));
    for (int i = 0; i < 20000; i++) {
        (void)zmq_send(deaf, ping, sizeof ping - 1, ZMQ_DONTWAIT);
        if (i % 1000 == 0)
            assert_alive(f->dealer);
    }
    assert_alive(f->dealer);
    zmq_close(deaf);
}

/* ---- the end ---- */

static void
test_term_when_running_then_clean_end_and_new_start(void **state)
{
    struct fixture *f = *state;
    uint64_t began;
    int status;

    assert_alive(f->dealer);
    assert_int_equal(0, kill(f->pid, SIGHUP));
    assert_alive(f->dealer);
    began = mb_clock_ns();
    status = stop(f, SIGTERM);
    // A plain 0: ended by itself, and said that all went well.
    assert_int_equal(0, status);
    assert_true(mb_clock_ns() - began < 10000000000u);
    start(f);
    assert_alive(f->dealer);
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_examples_when_sent_then_answered_as_written),
        TEST(test_bad_messages_when_sent_then_refused_and_alive),
        TEST(test_arguments_when_wrong_then_named),
        TEST(test_message_when_too_large_then_told_or_cut_off),
        TEST(test_req_when_asking_then_answered),
        TEST(test_clients_when_a_thousand_idle_then_others_served),
        TEST(test_client_when_it_never_reads_then_others_served),
        TEST(test_term_when_running_then_clean_end_and_new_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
