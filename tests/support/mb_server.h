/* SPDX-License-Identifier: Apache-2.0
 * tests/support/mb_server.h - the real membankd, in a temporary folder.
 *
 *     struct mb_server server;
 *     mb_server_begin(&server, NULL);      // new folder, empty store
 *     struct membank *mb = mb_server_connect(&server);
 *     mb_server_kill(&server);             // as a crash would
 *     mb_server_start(&server, NULL);      // the same store again
 *     mb_server_end(&server);              // SIGTERM, exit 0, folder removed
 *
 * Its log is FOLDER/log and is printed when it does not start or end well.
 * Include after mb_test.h. Threads: the main thread. */
#ifndef MB_SERVER_H
#define MB_SERVER_H

#include "mb_test.h"

#include <signal.h>
#include <sys/wait.h>

#include "membank.h"

#define MB_SERVER_MAX_ARGS 16

struct mb_server {
    struct mb_test_dir dir;
    char endpoint[MB_TEST_PATH];
    pid_t pid; /* 0: not running */
};

static inline void
mb_server_print_log(const struct mb_server *server)
{
    char path[MB_TEST_PATH];
    size_t size;
    char *log = (char *)mb_test_read_file(
        mb_test_path(&server->dir, "log", path), &size);
    print_error("%s", log);
    mb_free(log);
}

/* In the child: become membankd. */
static inline void
mb_server_exec(struct mb_server *server, const char *const *more)
{
    char store[MB_TEST_PATH];
    char log[MB_TEST_PATH];
    const char *args[MB_SERVER_MAX_ARGS + 8] = {"membankd", "--store",
        mb_test_path(&server->dir, "store", store), "--listen",
        server->endpoint};
    size_t n = 5;
    for (size_t i = 0; more && more[i] && i < MB_SERVER_MAX_ARGS; i++)
        args[n++] = more[i];
    int fd = open(mb_test_path(&server->dir, "log", log),
        O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0)
        _exit(126);
    // execv does not write through its arguments.
    execv(MB_BINARY_DIR "/daemon/membankd", (char *const *)(uintptr_t)args);
    _exit(127);
}

struct mb_server_try {
    struct membank *mb;
    struct mb_server *server;
    bool ended;
};

static inline bool
mb_server_answers(void *arg)
{
    struct mb_server_try *t = arg;
    int status;
    t->ended = waitpid(t->server->pid, &status, WNOHANG) == t->server->pid;
    return t->ended || membank_ping(t->mb, NULL, NULL) == MEMBANK_OK;
}

static inline struct membank *
mb_server_connect(const struct mb_server *server)
{
    struct membank *mb = NULL;
    struct membank_error err;
    const struct membank_options opt = {.endpoint = server->endpoint};
    if (membank_open(&opt, &mb, &err) != MEMBANK_OK)
        fail_msg("%s", err.text);
    return mb;
}

/* Start it on the folder's store, wait until it answers. `more` are further
 * arguments, NULL at the end, or NULL. */
static inline void
mb_server_start(struct mb_server *server, const char *const *more)
{
    server->pid = fork();
    if (server->pid == 0)
        mb_server_exec(server, more);
    assert_true(server->pid > 0);
    struct mb_server_try t = {.server = server};
    const struct membank_options opt = {
        .endpoint = server->endpoint, .timeout_ms = 200};
    assert_int_equal(MEMBANK_OK, membank_open(&opt, &t.mb, NULL));
    bool answers = mb_test_wait(mb_server_answers, &t, 30000);
    membank_close(t.mb);
    if (!answers || t.ended) {
        if (t.ended)
            server->pid = 0;
        mb_server_print_log(server);
        fail_msg("membankd did not start");
    }
}

static inline void
mb_server_begin(struct mb_server *server, const char *const *more)
{
    server->dir = mb_test_dir_begin();
    mb_test_endpoint(&server->dir, "s", server->endpoint);
    mb_server_start(server, more);
}

/* As a crash or a power cut would end it. */
static inline void
mb_server_kill(struct mb_server *server)
{
    int status;
    assert_int_equal(0, kill(server->pid, SIGKILL));
    assert_int_equal(server->pid, waitpid(server->pid, &status, 0));
    server->pid = 0;
}

/* SIGTERM; it must end by itself, with exit code 0. */
static inline void
mb_server_stop(struct mb_server *server)
{
    int status = 0;
    assert_int_equal(0, kill(server->pid, SIGTERM));
    assert_int_equal(server->pid, waitpid(server->pid, &status, 0));
    server->pid = 0;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        mb_server_print_log(server);
        fail_msg("membankd ended with status %#x", (unsigned)status);
    }
}

static inline void
mb_server_end(struct mb_server *server)
{
    if (server->pid > 0)
        mb_server_stop(server);
    mb_test_dir_end(&server->dir);
}

#endif
