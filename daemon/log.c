/* SPDX-License-Identifier: Apache-2.0
 * daemon/log.c - events of all modules, one logfmt line each.
 *
 * ts=2026-01-31T12:00:00.123Z level=info thread=mb-io ev=store.open path=...
 * A line is built on the stack and written with one write(2), so that lines of
 * threads and of other processes do not mix. An event that comes more often
 * than LOG_BURST times in a second is held back; a line then says how many were
 * (errors are never held back).
 * Invariants: nothing here allocates, so that it also works without memory.
 * Threads: `lock` guards the rate table and the descriptor. */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LOG_MAX_LINE 2048
#define LOG_BURST    20 /* lines of one event in a second */
#define LOG_EVENTS   64 /* slots of the rate table */

struct rate {
    uint64_t hash; /* of the event's name; 0: free */
    uint64_t second;
    unsigned n_lines;
    unsigned n_held;
};

struct log_sink {
    pthread_mutex_t lock;
    int fd;
    bool owns_fd;
    struct rate rates[LOG_EVENTS];
};

static const char *const level_names[] = {"err", "warn", "info", "debug"};

static void
write_line(int fd, mb_log_level level, const char *ev, const char *fields)
{
    char line[LOG_MAX_LINE];
    uint64_t now_ms = mb_clock_wall_ms();
    time_t seconds = (time_t)(now_ms / 1000);
    struct tm tm;
    char stamp[32] = "-";
    int n;

    if (gmtime_r(&seconds, &tm) != NULL)
        (void)strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &tm);
    n = snprintf(line, sizeof line - 1,
        "ts=%s.%03uZ level=%s thread=%s ev=%s%s%s", stamp,
        (unsigned)(now_ms % 1000), level_names[level], mb_thread_name(), ev,
        fields[0] != 0 ? " " : "", fields);
    if (n < 0)
        return;
    if ((size_t)n > sizeof line - 2)
        n = (int)sizeof line - 2;
    line[n] = '\n';
    // A log that cannot be written has nowhere to say so.
    if (write(fd, line, (size_t)n + 1) < 0)
        return;
}

/* False if this line is one too many in this second; *n_held is how many were
 * held back before it. Under the lock. */
static bool
admit(struct log_sink *sink, const char *ev, unsigned *n_held)
{
    uint64_t hash = mb_hash64(ev, strlen(ev), 0) | 1;
    uint64_t second = mb_clock_ns() / 1000000000u;
    struct rate *r = &sink->rates[hash % LOG_EVENTS];

    *n_held = 0;
    if (r->hash != hash || r->second != second) {
        if (r->hash == hash)
            *n_held = r->n_held;
        *r = (struct rate){.hash = hash, .second = second};
    }
    if (r->n_lines >= LOG_BURST) {
        r->n_held++;
        return false;
    }
    r->n_lines++;
    return true;
}

static void
on_event(void *arg, mb_log_level level, const char *ev, const char *fields)
{
    struct log_sink *sink = arg;
    unsigned n_held = 0;

    (void)pthread_mutex_lock(&sink->lock);
    if (level == MB_LOG_ERR || admit(sink, ev, &n_held)) {
        if (n_held > 0) {
            char held[96];

            (void)snprintf(held, sizeof held, "of=%s n=%u", ev, n_held);
            write_line(sink->fd, MB_LOG_WARN, "log.held_back", held);
        }
        write_line(sink->fd, level, ev, fields);
    }
    (void)pthread_mutex_unlock(&sink->lock);
}

static mb_status
open_file(const char *path, int *fd, bool *owns, struct mb_error *err)
{
    if (path[0] == 0) {
        *fd = STDERR_FILENO;
        *owns = false;
        return MB_OK;
    }
    int new_fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
    if (new_fd < 0)
        return mb_error_set(
            err, MB_ERR_IO, "open log %s: %s", path, strerror(errno));
    *fd = new_fd;
    *owns = true;
    return MB_OK;
}

mb_status
log_open(const char *path, mb_log_level level, struct log_sink **out,
    struct mb_error *err)
{
    struct log_sink *sink = mb_calloc(1, sizeof *sink);
    mb_status st;

    if (sink == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "log");
    (void)pthread_mutex_init(&sink->lock, NULL);
    st = open_file(path, &sink->fd, &sink->owns_fd, err);
    if (st != MB_OK) {
        (void)pthread_mutex_destroy(&sink->lock);
        mb_free(sink);
        return st;
    }
    mb_log_set_hook(on_event, sink, level);
    *out = sink;
    return MB_OK;
}

mb_status
log_reopen(struct log_sink *sink, const char *path, mb_log_level level,
    struct mb_error *err)
{
    bool owns = false;
    int fd = -1;
    mb_status st = open_file(path, &fd, &owns, err);

    if (st != MB_OK)
        return st;
    (void)pthread_mutex_lock(&sink->lock);
    if (sink->owns_fd)
        (void)close(sink->fd);
    sink->fd = fd;
    sink->owns_fd = owns;
    (void)pthread_mutex_unlock(&sink->lock);
    mb_log_set_level(level);
    return MB_OK;
}

void
log_close(struct log_sink *sink)
{
    if (sink == NULL)
        return;
    mb_log_set_hook(NULL, NULL, MB_LOG_ERR);
    if (sink->owns_fd)
        (void)close(sink->fd);
    (void)pthread_mutex_destroy(&sink->lock);
    mb_free(sink);
}
