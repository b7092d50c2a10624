/* SPDX-License-Identifier: Apache-2.0
 * tools/common/lines.c - read lines, unpacking zstd and gzip on the way.
 *
 * Three stages: raw bytes from the descriptor, a window of unpacked bytes, and
 * lines cut from it. A line that lies whole in the window is given out as a
 * view; one that crosses its end is gathered in a buffer.
 * Invariant: window[from, to) are unpacked bytes not given out yet.
 * Threads: one. */
#include "lines.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <zlib.h>
#include <zstd.h>

#define RAW_BYTES    ((size_t)256 * 1024)
#define WINDOW_BYTES ((size_t)1024 * 1024)

enum packing { PACK_NONE, PACK_ZSTD, PACK_GZIP };

struct lines {
    char *path;
    int fd;
    enum packing packing;
    ZSTD_DStream *zstd;
    z_stream gzip;
    bool gzip_ready;
    bool in_frame; /* compressed bytes stop in the middle of a frame */
    uint8_t *raw;
    size_t raw_at;
    size_t raw_size;
    bool raw_end;
    uint8_t *window;
    size_t from;
    size_t to;
    bool ended; /* nothing more will come into the window */
    size_t max_line;
    struct mb_buffer line; /* a line that crosses windows */
    uint64_t number;
    uint64_t bytes_read;  /* from the descriptor */
    uint64_t used_before; /* of these, before the window was filled */
    uint64_t used_after;
    uint64_t bytes_total;
};

static const char *
shown(const char *path)
{
    return strcmp(path, "-") == 0 ? "standard input" : path;
}

static mb_status
open_path(const char *path, int *fd, struct mb_error *err)
{
    if (strcmp(path, "-") == 0) {
        *fd = STDIN_FILENO;
        return MB_OK;
    }
    *fd = open(path, O_RDONLY | O_CLOEXEC);
    if (*fd >= 0)
        return MB_OK;
    return mb_error_set(err, errno == ENOENT ? MB_ERR_NOT_FOUND : MB_ERR_IO,
        "open %s: %s", path, strerror(errno));
}

uint64_t
file_size(const char *path)
{
    struct stat st;

    if (strcmp(path, "-") == 0 || stat(path, &st) != 0 || !S_ISREG(st.st_mode))
        return 0;
    return (uint64_t)st.st_size;
}

/* ---- raw bytes ---- */

/* Fill raw when it is used up; raw_size 0 and raw_end at the end. */
static mb_status
read_raw(struct lines *l, struct mb_error *err)
{
    ssize_t n;

    if (l->raw_at < l->raw_size || l->raw_end)
        return MB_OK;
    do {
        n = read(l->fd, l->raw, RAW_BYTES);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return mb_error_set(
            err, MB_ERR_IO, "read %s: %s", shown(l->path), strerror(errno));
    l->raw_at = 0;
    l->raw_size = (size_t)n;
    l->raw_end = n == 0;
    l->bytes_read += (uint64_t)n;
    return MB_OK;
}

/* ---- unpacking ---- */

static mb_status
damaged(struct lines *l, const char *what, struct mb_error *err)
{
    return mb_error_set(err, MB_ERR_CORRUPT, "%s, after line %llu: %s",
        shown(l->path), (unsigned long long)l->number, what);
}

static mb_status
unpack_none(struct lines *l)
{
    size_t n = l->raw_size - l->raw_at;

    if (n > WINDOW_BYTES - l->to)
        n = WINDOW_BYTES - l->to;
    memcpy(l->window + l->to, l->raw + l->raw_at, n);
    l->to += n;
    l->raw_at += n;
    return MB_OK;
}

static mb_status
unpack_zstd(struct lines *l, struct mb_error *err)
{
    ZSTD_inBuffer in = {l->raw, l->raw_size, l->raw_at};
    ZSTD_outBuffer out = {l->window, WINDOW_BYTES, l->to};
    size_t left = ZSTD_decompressStream(l->zstd, &out, &in);

    if (ZSTD_isError(left))
        return damaged(l, ZSTD_getErrorName(left), err);
    l->in_frame = left != 0;
    l->raw_at = in.pos;
    l->to = out.pos;
    return MB_OK;
}

static mb_status
unpack_gzip(struct lines *l, struct mb_error *err)
{
    int rc;

    l->gzip.next_in = l->raw + l->raw_at;
    l->gzip.avail_in = (unsigned)(l->raw_size - l->raw_at);
    l->gzip.next_out = l->window + l->to;
    l->gzip.avail_out = (unsigned)(WINDOW_BYTES - l->to);
    rc = inflate(&l->gzip, Z_NO_FLUSH);
    l->raw_at = l->raw_size - l->gzip.avail_in;
    l->to = WINDOW_BYTES - l->gzip.avail_out;
    l->in_frame = rc != Z_STREAM_END;
    // Members may follow one another.
    if (rc == Z_STREAM_END)
        rc = inflateReset(&l->gzip);
    if (rc != Z_OK && rc != Z_BUF_ERROR)
        return damaged(l, l->gzip.msg != NULL ? l->gzip.msg : "bad gzip", err);
    return MB_OK;
}

/* More unpacked bytes at the window's start; `ended` if there are none. */
static mb_status
fill_window(struct lines *l, struct mb_error *err)
{
    mb_status st = MB_OK;

    l->from = 0;
    l->to = 0;
    l->used_before = l->used_after;
    while (st == MB_OK && l->to == 0) {
        size_t before;

        st = read_raw(l, err);
        if (st != MB_OK)
            return st;
        before = l->raw_at;
        if (l->packing == PACK_NONE)
            st = unpack_none(l);
        else if (l->raw_at == l->raw_size && !l->in_frame)
            st = MB_OK; // between frames there is nothing to unpack
        else if (l->packing == PACK_ZSTD)
            st = unpack_zstd(l, err);
        else
            st = unpack_gzip(l, err);
        if (st == MB_OK && l->to == 0 && l->raw_end && l->raw_at == before) {
            if (l->in_frame)
                return damaged(l, "it ends within compressed data", err);
            l->ended = true;
            break;
        }
    }
    l->used_after = l->bytes_read - (l->raw_size - l->raw_at);
    return st;
}

/* ---- opening ---- */

static mb_status
start_unpacking(struct lines *l, struct mb_error *err)
{
    const uint8_t *p = l->raw;
    mb_status st = read_raw(l, err);

    if (st != MB_OK)
        return st;
    if (l->raw_size >= 4 && mb_get_le32(p) == ZSTD_MAGICNUMBER) {
        l->packing = PACK_ZSTD;
        l->zstd = ZSTD_createDStream();
        if (l->zstd == NULL)
            return mb_error_set(err, MB_ERR_NOMEM, "zstd stream");
    } else if (l->raw_size >= 2 && p[0] == 0x1F && p[1] == 0x8B) {
        l->packing = PACK_GZIP;
        // 15 bits of window, and 16 to expect a gzip header.
        if (inflateInit2(&l->gzip, 15 + 16) != Z_OK)
            return mb_error_set(err, MB_ERR_NOMEM, "gzip stream");
        l->gzip_ready = true;
    }
    st = fill_window(l, err);
    if (st == MB_OK && l->to >= 3 && memcmp(l->window, "\xEF\xBB\xBF", 3) == 0)
        l->from = 3;
    return st;
}

mb_status
lines_open(
    const char *path, size_t max_line, struct lines **out, struct mb_error *err)
{
    struct lines *l = mb_calloc(1, sizeof *l);
    struct stat info;
    mb_status st;

    if (l == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "reader");
    l->fd = -1;
    l->max_line = max_line;
    mb_buffer_init(&l->line, max_line);
    st = open_path(path, &l->fd, err);
    if (st != MB_OK)
        goto out;
    l->path = mb_strndup(path, strlen(path));
    l->raw = mb_alloc(RAW_BYTES);
    l->window = mb_alloc(WINDOW_BYTES);
    if (l->path == NULL || l->raw == NULL || l->window == NULL) {
        st = mb_error_set(err, MB_ERR_NOMEM, "buffers of a reader");
        goto out;
    }
    if (fstat(l->fd, &info) == 0 && S_ISREG(info.st_mode))
        l->bytes_total = (uint64_t)info.st_size;
    st = start_unpacking(l, err);
    if (st != MB_OK)
        goto out;
    *out = l;
    l = NULL;
out:
    lines_close(l);
    return st;
}

void
lines_close(struct lines *l)
{
    if (l == NULL)
        return;
    if (l->fd > STDIN_FILENO)
        (void)close(l->fd);
    (void)ZSTD_freeDStream(l->zstd);
    if (l->gzip_ready)
        (void)inflateEnd(&l->gzip);
    mb_buffer_fini(&l->line);
    mb_free(l->window);
    mb_free(l->raw);
    mb_free(l->path);
    mb_free(l);
}

/* ---- lines ---- */

static struct mb_slice
without_end(const uint8_t *data, size_t size)
{
    if (size > 0 && data[size - 1] == '\n')
        size--;
    if (size > 0 && data[size - 1] == '\r')
        size--;
    return mb_slice_of(data, size);
}

static mb_status
line_too_long(struct lines *l, struct mb_error *err)
{
    mb_buffer_clear(&l->line);
    return mb_error_set(err, MB_ERR_TOO_LARGE,
        "%s, line %llu: longer than %zu bytes", shown(l->path),
        (unsigned long long)l->number, l->max_line);
}

mb_status
lines_next(
    struct lines *l, struct mb_slice *line, bool *more, struct mb_error *err)
{
    bool too_long = false;
    bool begun = false;
    mb_status st;

    mb_buffer_clear(&l->line);
    l->number++;
    for (;;) {
        uint8_t *start;
        uint8_t *feed;
        size_t n;

        if (l->from == l->to && !l->ended) {
            st = fill_window(l, err);
            if (st != MB_OK)
                return st;
        }
        if (l->ended)
            break;
        begun = true;
        start = l->window + l->from;
        feed = memchr(start, '\n', l->to - l->from);
        n = feed != NULL ? (size_t)(feed + 1 - start) : l->to - l->from;
        l->from += n;
        if (feed != NULL && l->line.size == 0 && !too_long) {
            if (n > l->max_line)
                return line_too_long(l, err);
            *line = without_end(start, n);
            *more = true;
            return MB_OK;
        }
        if (!too_long && n > l->max_line - l->line.size)
            too_long = true;
        if (!too_long) {
            st = mb_buffer_append(&l->line, start, n);
            if (st != MB_OK)
                return mb_error_set(err, st, "%s, line %llu: no memory",
                    shown(l->path), (unsigned long long)l->number);
        }
        if (feed != NULL)
            break;
    }
    if (too_long)
        return line_too_long(l, err);
    if (!begun)
        l->number--;
    *more = begun;
    if (begun)
        *line = without_end(l->line.data, l->line.size);
    return MB_OK;
}

uint64_t
lines_number(const struct lines *l)
{
    return l->number;
}

uint64_t
lines_bytes_read(const struct lines *l)
{
    // What waits in the window is not read yet; packed, by its share.
    double part = l->to > 0 ? (double)l->from / (double)l->to : 1;

    return l->used_before +
           (uint64_t)((double)(l->used_after - l->used_before) * part);
}

uint64_t
lines_bytes_total(const struct lines *l)
{
    return l->bytes_total;
}

/* ---- whole files ---- */

mb_status
file_read(const char *path, struct mb_buffer *out, struct mb_error *err)
{
    mb_status st;
    ssize_t n;
    int fd;

    st = open_path(path, &fd, err);
    if (st != MB_OK)
        return st;
    do {
        st = mb_buffer_reserve(out, RAW_BYTES);
        // Near the maximum smaller steps may still fit.
        if (st == MB_ERR_TOO_LARGE && out->size < out->max)
            st = mb_buffer_reserve(out, out->max - out->size);
        if (st != MB_OK) {
            (void)mb_error_set(
                err, st, "%s: larger than %zu bytes", shown(path), out->max);
            break;
        }
        n = read(fd, out->data + out->size, out->capacity - out->size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            st = mb_error_set(
                err, MB_ERR_IO, "read %s: %s", shown(path), strerror(errno));
        else
            out->size += (size_t)n;
    } while (st == MB_OK && n != 0);
    if (fd != STDIN_FILENO)
        (void)close(fd);
    return st;
}
