/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/tiers.c - see tiers.h. */
#include "tiers.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "times.h"

#define N_PATHS 8u /* in the file, read in turn */

/* Bytes a second of each level's tier; deeper ones are on the last. */
static const double rates[] = {4e9, 2e9, 0.5e9};

#define N_RATES (sizeof(rates) / sizeof(rates)[0])

struct reader {
    int fd;
    off_t at;
    uint8_t *room;
};

static size_t
bytes_of_all(const struct tiers *t)
{
    size_t bytes = 0;

    for (size_t l = 0; l < t->n; l++)
        bytes += t->bytes[l];
    return bytes;
}

static mb_status
make_file(
    struct reader *r, const char *folder, size_t bytes, struct mb_error *err)
{
    char path[512];

    (void)snprintf(path, sizeof path, "%s/tiers-XXXXXX", folder);
    r->fd = mkstemp(path);
    if (r->fd < 0)
        return mb_error_set(
            err, MB_ERR_IO, "make %s: %s", path, strerror(errno));
    (void)unlink(path);
    memset(r->room, 1, bytes);
    for (size_t i = 0; i < N_PATHS; i++) {
        size_t done = 0;

        while (done < bytes) {
            ssize_t n = write(r->fd, r->room + done, bytes - done);

            if (n <= 0)
                return mb_error_set(
                    err, MB_ERR_IO, "write %s: %s", path, strerror(errno));
            done += (size_t)n;
        }
    }
    return MB_OK;
}

/* Read bytes from where the reader is; rate 0: as fast as it goes. */
static mb_status
read_bytes(struct reader *r, size_t bytes, double rate, struct mb_error *err)
{
    uint64_t start = mb_clock_ns();
    size_t done = 0;

    while (done < bytes) {
        ssize_t n = pread(r->fd, r->room + done, bytes - done, r->at);

        if (n <= 0)
            return mb_error_set(
                err, MB_ERR_IO, "read a block: %s", strerror(errno));
        done += (size_t)n;
        r->at += (off_t)n;
    }
    double want = rate > 0 ? (double)bytes / rate * 1e9 : 0;
    double left = want - (double)(mb_clock_ns() - start);
    if (left > 200e3) { // the system wakes us late: the rest is waited for
        double ns = left - 100e3;
        struct timespec pause = {
            (time_t)(ns / 1e9), (long)(ns - 1e9 * (double)(time_t)(ns / 1e9))};

        (void)nanosleep(&pause, NULL);
    }
    while ((double)(mb_clock_ns() - start) < want)
        continue;
    return MB_OK;
}

static mb_status
fetch(struct reader *r, const struct tiers *t, tiers_case kind,
    struct mb_error *err)
{
    double slowest = rates[N_RATES - 1];
    mb_status st = MB_OK;

    if (kind == TIERS_N)
        return read_bytes(r, bytes_of_all(t), 0, err);
    if (kind == TIERS_FLAT)
        return read_bytes(r, bytes_of_all(t), slowest, err);
    for (size_t l = kind == TIERS_HELD; st == MB_OK && l < t->n; l++) {
        double rate = l < N_RATES ? rates[l] : slowest;

        st = read_bytes(
            r, t->bytes[l], kind == TIERS_HELD ? slowest : rate, err);
    }
    return st;
}

static mb_status
measure_case(struct reader *r, const struct tiers *t, tiers_case kind,
    size_t n_calls, uint64_t *ns, struct mb_error *err)
{
    mb_status st = MB_OK;

    for (size_t i = 0; st == MB_OK && i < n_calls; i++) {
        uint64_t start = mb_clock_ns();

        r->at = (off_t)(i % N_PATHS * bytes_of_all(t));
        st = fetch(r, t, kind, err);
        ns[i] = mb_clock_ns() - start;
    }
    return st;
}

mb_status
tiers_measure(const struct tiers *t, const char *folder, size_t n_calls,
    uint64_t *const ns[TIERS_N], uint64_t *plain_ns, struct mb_error *err)
{
    size_t bytes = bytes_of_all(t);
    struct reader r = {.fd = -1, .room = mb_alloc(bytes)};
    uint64_t *plain = mb_calloc(n_calls, sizeof *plain);
    mb_status st = MB_OK;

    if (r.room == NULL || plain == NULL)
        st = mb_error_set(err, MB_ERR_NOMEM, "a path of %zu bytes", bytes);
    if (st == MB_OK)
        st = make_file(&r, folder, bytes, err);
    if (st == MB_OK)
        st = measure_case(&r, t, TIERS_N, n_calls, plain, err);
    for (int kind = 0; st == MB_OK && kind < TIERS_N; kind++)
        st = measure_case(&r, t, (tiers_case)kind, n_calls, ns[kind], err);
    if (st == MB_OK) {
        times_sort(plain, n_calls);
        *plain_ns = plain[n_calls / 2];
    }
    if (r.fd >= 0)
        (void)close(r.fd);
    mb_free(r.room);
    mb_free(plain);
    return st;
}
