/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/own.c - see own.h. */
#include "own.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

volatile sig_atomic_t own_is_stopped;

void
own_find_tools(struct own *e)
{
    ssize_t n = readlink("/proc/self/exe", e->tools, sizeof e->tools - 1);
    char *slash;

    e->tools[n > 0 ? n : 0] = '\0';
    slash = strrchr(e->tools, '/');
    if (slash != NULL)
        *slash = '\0';
    else
        e->tools[0] = '\0';
}

/* Path of a program: beside this one, in the daemon's folder of a build tree,
 * or its name alone, for PATH. */
static void
find_program(const struct own *e, const char *name, char out[OWN_MAX_PATH])
{
    static const char *const places[] = {"", "/../daemon", "/../sbin"};

    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        int n =
            snprintf(out, OWN_MAX_PATH, "%s%s/%s", e->tools, places[i], name);

        if (n > 0 && n < OWN_MAX_PATH && access(out, X_OK) == 0)
            return;
    }
    (void)snprintf(out, OWN_MAX_PATH, "%s", name);
}

mb_status
own_run(const struct own *e, const char *name, char *const *argv, bool quiet,
    pid_t *pid, struct mb_error *err)
{
    char path[OWN_MAX_PATH];
    posix_spawn_file_actions_t actions;
    int rc = posix_spawn_file_actions_init(&actions);

    find_program(e, name, path);
    if (rc == 0)
        rc = posix_spawn_file_actions_addopen(
            &actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    if (rc == 0 && quiet)
        rc = posix_spawn_file_actions_addopen(
            &actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    if (rc == 0)
        rc = posix_spawnp(pid, path, &actions, NULL, argv, environ);
    (void)posix_spawn_file_actions_destroy(&actions);
    return rc == 0 ? MB_OK
                   : mb_error_set(
                         err, MB_ERR_IO, "start %s: %s", path, strerror(rc));
}

mb_status
own_finish(pid_t pid, const char *name, struct mb_error *err)
{
    int status = 0;

    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR)
            return mb_error_set(
                err, MB_ERR_IO, "wait for %s: %s", name, strerror(errno));
        if (own_is_stopped)
            (void)kill(pid, SIGTERM);
    }
    if (own_is_stopped)
        return mb_error_set(err, MB_ERR_CANCELLED, "stopped");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return mb_error_set(err, MB_ERR_IO, "%s failed", name);
    return MB_OK;
}

mb_status
own_start(struct own *e, const char *model, struct mb_error *err)
{
    char store[OWN_MAX_PATH + 8];
    char *argv[8] = {(char *)"membankd", (char *)"--store", store,
        (char *)"--listen", e->endpoint};

    if (model != NULL) {
        argv[5] = (char *)"--model";
        argv[6] = (char *)model;
    }
    (void)snprintf(store, sizeof store, "%s/store", e->folder);
    (void)snprintf(
        e->endpoint, sizeof e->endpoint, "ipc://%s/socket", e->folder);
    return own_run(e, "membankd", argv, true, &e->daemon, err);
}

void
own_stop(struct own *e)
{
    if (e->daemon == 0)
        return;
    (void)kill(e->daemon, SIGTERM);
    while (waitpid(e->daemon, NULL, 0) < 0 && errno == EINTR)
        continue;
    e->daemon = 0;
}

mb_status
own_reach(struct own *e, struct membank **out, struct mb_error *err)
{
    struct membank_error cause;
    struct membank_options opt = {.endpoint = e->endpoint};
    struct membank_server server;

    if (membank_open(&opt, out, &cause) != MEMBANK_OK)
        return tool_error(&cause, err);
    if (membank_ping(*out, &server, &cause) == MEMBANK_OK)
        return MB_OK;
    membank_close(*out);
    *out = NULL;
    if (e->daemon > 0 && waitpid(e->daemon, NULL, WNOHANG) == e->daemon) {
        e->daemon = 0;
        return mb_error_set(err, MB_ERR_UNREACHABLE,
            "membankd ended at once: try membankd --store DIR by hand");
    }
    return tool_error(&cause, err);
}
