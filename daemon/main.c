/* SPDX-License-Identifier: Apache-2.0
 * daemon/main.c - membankd: read the settings, serve, end on a signal.
 *
 * Signals are blocked here and in all threads that we start, and main takes
 * them one by one: SIGTERM and SIGINT end the daemon, SIGHUP reads the file
 * again and opens the log anew. Threads that a library (OpenBLAS) started
 * before main have them open; a handler there passes them on to main.
 * Threads: main waits for signals; the others are listed in README.md. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "daemon.h"
#include "log.h"
#include "notify.h"

#define WANTED_FILES 4096 /* clients, a file each, and our own */
#define DRAIN_LOG_MS 3600000

struct app {
    struct config_program *program;
    struct mb_cli *cli;
    struct log_sink *log;
    struct daemon *daemon;
};

/* Defaults, file, flags. *out is the caller's. */
static mb_status
read_config(const struct mb_cli *cli, struct config **out, struct mb_error *err)
{
    struct config *cfg = config_new();
    const char *path = mb_cli_str(cli, "config");
    mb_status st = MB_OK;

    if (cfg == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "settings");
    if (path != NULL)
        st = config_read_file(cfg, path, err);
    if (st == MB_OK)
        st = config_read_flags(cfg, cli, err);
    if (st == MB_OK)
        *out = cfg;
    else
        config_free(cfg);
    return st;
}

static mb_status
print_config(const struct config *cfg, bool sample, struct mb_error *err)
{
    struct mb_buffer out;
    mb_status st;

    mb_buffer_init(&out, 1u << 20);
    st = config_write(cfg, sample, &out);
    if (st == MB_OK && fwrite(out.data, 1, out.size, stdout) != out.size)
        st = MB_ERR_IO;
    mb_buffer_fini(&out);
    return st == MB_OK ? st : mb_error_set(err, st, "print settings");
}

/* Every client holds a file descriptor: take as many as the system lets. */
static void
raise_file_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    if (limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
        (void)getrlimit(RLIMIT_NOFILE, &limit);
    }
    if (limit.rlim_cur < WANTED_FILES)
        mb_log(MB_LOG_WARN, "daemon.few_files",
            "limit=%llu remedy=\"raise ulimit -n, LimitNOFILE=\"",
            (unsigned long long)limit.rlim_cur);
}

/* SIGHUP. What cannot be read leaves everything as it was. */
static void
reload(struct app *app)
{
    struct config *wanted = NULL;
    struct mb_error err = {0};
    size_t n_pending = 0;
    mb_status st = read_config(app->cli, &wanted, &err);

    notify_send("RELOADING=1");
    if (st == MB_OK)
        st = config_check(wanted, &err);
    if (st == MB_OK)
        st = log_reopen(
            app->log, wanted->log_file, (mb_log_level)wanted->log_level, &err);
    if (st == MB_OK)
        st = daemon_reload(app->daemon, wanted, &n_pending, &err);
    if (st == MB_OK)
        mb_log(MB_LOG_INFO, "daemon.reload", "need_restart=%zu", n_pending);
    else
        mb_log(MB_LOG_ERR, "daemon.reload", "cause=\"%s\"", err.text);
    config_free(wanted);
    notify_send("READY=1");
}

/* Serve until a signal ends it; returns that signal. */
static int
wait_for_end(struct app *app, const sigset_t *signals)
{
    uint64_t watchdog_ms = notify_watchdog_ms();
    uint64_t wait_ms = watchdog_ms > 0 ? watchdog_ms : DRAIN_LOG_MS;
    struct timespec ts = {
        (time_t)(wait_ms / 1000), (long)(wait_ms % 1000) * 1000000};

    for (;;) {
        int sig = sigtimedwait(signals, NULL, &ts);

        if (sig == SIGHUP)
            reload(app);
        else if (sig > 0)
            return sig;
        if (watchdog_ms > 0)
            notify_send("WATCHDOG=1");
    }
}

/* Set once, before any signal can be ours. */
static pthread_t main_thread;

/* Runs only in threads that others started: main and ours block these. */
static void
pass_to_main(int sig)
{
    (void)pthread_kill(main_thread, sig);
}

static void
take_signals(sigset_t *signals)
{
    struct sigaction action = {.sa_handler = pass_to_main};
    static const int wanted[] = {SIGTERM, SIGINT, SIGHUP};

    main_thread = pthread_self();
    action.sa_flags = SA_RESTART;
    (void)sigemptyset(&action.sa_mask);
    (void)sigemptyset(signals);
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        (void)sigaddset(signals, wanted[i]);
    }
    (void)pthread_sigmask(SIG_BLOCK, signals, NULL);
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        (void)sigaction(wanted[i], &action, NULL);
    }
    (void)signal(SIGPIPE, SIG_IGN);
}

static mb_status
serve(struct app *app, struct config *cfg, struct mb_error *err)
{
    uint64_t start = mb_clock_ns();
    sigset_t signals;
    mb_status st;
    int sig;

    take_signals(&signals);
    raise_file_limit();
    st = daemon_open(cfg, &app->daemon, err);
    if (st != MB_OK)
        return st;
    mb_log(MB_LOG_INFO, "daemon.ready", "version=%s protocol=%d ms=%.1f",
        MB_VERSION, DAEMON_PROTOCOL, (double)(mb_clock_ns() - start) / 1e6);
    notify_send("READY=1");
    sig = wait_for_end(app, &signals);
    start = mb_clock_ns();
    mb_log(MB_LOG_INFO, "daemon.stopping", "signal=%d", sig);
    notify_send("STOPPING=1");
    if (!daemon_stop(app->daemon)) {
        mb_log(MB_LOG_ERR, "daemon.late", "remedy=\"raise shutdown_ms\"");
        _exit(1);
    }
    daemon_close(app->daemon);
    mb_log(MB_LOG_INFO, "daemon.end", "ms=%.1f",
        (double)(mb_clock_ns() - start) / 1e6);
    return MB_OK;
}

/* What the command line asks for. */
static mb_status
run(struct app *app, struct mb_error *err)
{
    struct config *cfg = NULL;
    bool sample = mb_cli_has(app->cli, "sample-config");
    mb_status st;

    if (mb_cli_n_args(app->cli) > 0)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "unexpected argument: %s; a store is named with --store",
            mb_cli_arg(app->cli, 0));
    st = read_config(app->cli, &cfg, err);
    if (st != MB_OK)
        return st;
    if (sample || mb_cli_has(app->cli, "print-config")) {
        st = print_config(cfg, sample, err);
        goto out;
    }
    st = config_check(cfg, err);
    if (st == MB_OK)
        st = log_open(
            cfg->log_file, (mb_log_level)cfg->log_level, &app->log, err);
    if (st != MB_OK)
        goto out;
    st = serve(app, cfg, err);
    cfg = NULL;
    if (st != MB_OK)
        mb_log(MB_LOG_ERR, "daemon.failed", "cause=\"%s\"", err->text);
out:
    config_free(cfg);
    return st;
}

int
main(int argc, char **argv)
{
    struct app app = {.program = config_program_new()};
    struct mb_error err = {0};
    int code = 0;
    mb_status st;

    if (app.program == NULL)
        return 1;
    st = mb_cli_parse(&app.program->program, argc, argv, &app.cli, &err);
    if (st == MB_ERR_CANCELLED)
        code = 0;
    else if (st != MB_OK)
        code = mb_cli_usage(&app.program->program, &err);
    else if ((st = run(&app, &err)) == MB_ERR_BAD_ARG)
        code = mb_cli_usage(&app.program->program, &err);
    else if (st != MB_OK)
        code = mb_cli_fail(&app.program->program, &err);
    log_close(app.log);
    mb_cli_free(app.cli);
    config_program_free(app.program);
    return code;
}
