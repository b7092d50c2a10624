/* SPDX-License-Identifier: Apache-2.0
 * model/outfile.c - write beside, sync, rename.
 *
 * Writes are gathered in a buffer of a MiB, which is also the step of the
 * checksum. The temporary name is PATH.tmp-PID: two processes that write the
 * same file do not meet, and what a killed one leaves is plain to see.
 * Invariant: bytes [0, written) are in the file, the next `fill` in buffer.
 * Threads: one for each outfile. */
#include "mb_outfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER_BYTES ((size_t)1 << 20)
#define MAX_PATH     4096

struct outfile {
    char path[MAX_PATH];
    char temporary[MAX_PATH];
    int fd;
    size_t header_bytes;
    uint64_t written;
    size_t fill;
    uint8_t *buffer;
    uint64_t hash;
    int error; /* errno of the first failure, 0 for none */
};

static mb_status
status_of(int error)
{
    switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return MB_ERR_NO_SPACE;
    case EACCES:
    case EPERM:
    case EROFS:
        return MB_ERR_READ_ONLY;
    case ENOENT:
    case ENOTDIR:
        return MB_ERR_NOT_FOUND;
    case ENOMEM:
        return MB_ERR_NOMEM;
    default:
        return MB_ERR_IO;
    }
}

static mb_status
fail(const char *what, const char *path, int error, struct mb_error *err)
{
    return mb_error_set(
        err, status_of(error), "%s %s: %s", what, path, strerror(error));
}

/* All of it at an offset; errno of the failure, or 0. */
static int
write_at(int fd, const uint8_t *data, size_t size, uint64_t offset)
{
    while (size > 0) {
        ssize_t n = pwrite(fd, data, size, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno;
        data += n;
        size -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

mb_status
outfile_open(const char *path, size_t header_bytes, struct outfile **out,
    struct mb_error *err)
{
    struct outfile *f = mb_calloc(1, sizeof *f);
    mb_status st = MB_OK;
    if (f)
        f->fd = -1;
    if (f)
        f->buffer = mb_alloc(BUFFER_BYTES);
    if (!f || !f->buffer) {
        st = mb_error_set(err, MB_ERR_NOMEM, "write %s: no memory", path);
        goto out;
    }
    int n = snprintf(f->path, sizeof f->path, "%s", path);
    int m = snprintf(
        f->temporary, sizeof f->temporary, "%s.tmp-%ld", path, (long)getpid());
    if (n < 0 || m < 0 || (size_t)m >= sizeof f->temporary) {
        f->temporary[0] = '\0';
        st = mb_error_set(err, MB_ERR_IO, "path of %d bytes is too long", n);
        goto out;
    }
    f->fd = open(f->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (f->fd < 0) {
        st = fail("write", path, errno, err);
        goto out;
    }
    f->header_bytes = header_bytes;
    f->written = header_bytes;
    *out = f;
    f = NULL;
out:
    outfile_discard(f);
    return st;
}

static void
flush(struct outfile *f)
{
    if (f->fill == 0 || f->error != 0)
        return;
    f->hash = mb_hash64(f->buffer, f->fill, f->hash);
    f->error = write_at(f->fd, f->buffer, f->fill, f->written);
    f->written += f->fill;
    f->fill = 0;
}

void
outfile_write(struct outfile *f, const void *data, size_t size)
{
    const uint8_t *p = data;
    while (size > 0 && f->error == 0) {
        size_t n = BUFFER_BYTES - f->fill;
        n = n < size ? n : size;
        memcpy(f->buffer + f->fill, p, n);
        f->fill += n;
        p += n;
        size -= n;
        if (f->fill == BUFFER_BYTES)
            flush(f);
    }
}

void
outfile_pad(struct outfile *f, size_t alignment)
{
    static const uint8_t zeros[64];
    size_t n = (size_t)((alignment - outfile_size(f) % alignment) % alignment);
    for (; n > sizeof zeros; n -= sizeof zeros)
        outfile_write(f, zeros, sizeof zeros);
    outfile_write(f, zeros, n);
}

uint64_t
outfile_size(const struct outfile *f)
{
    return f->written + f->fill;
}

uint64_t
outfile_hash(struct outfile *f)
{
    flush(f);
    return f->hash;
}

/* The rename itself must survive a power cut, too. */
static int
sync_folder_of(const char *path)
{
    char folder[MAX_PATH];
    (void)snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash == folder)
        slash++;
    if (slash)
        *slash = '\0';
    int fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int error = fsync(fd) == 0 ? 0 : errno;
    close(fd);
    return error;
}

mb_status
outfile_finish(struct outfile *f, const void *header, struct mb_error *err)
{
    mb_status st = MB_OK;
    flush(f);
    if (f->error == 0 && f->header_bytes > 0)
        f->error = write_at(f->fd, header, f->header_bytes, 0);
    if (f->error == 0 && fsync(f->fd) != 0)
        f->error = errno;
    if (f->error == 0 && close(f->fd) != 0)
        f->error = errno;
    else if (f->error != 0)
        close(f->fd);
    f->fd = -1;
    if (f->error == 0 && rename(f->temporary, f->path) != 0)
        f->error = errno;
    if (f->error == 0) {
        f->temporary[0] = '\0';
        f->error = sync_folder_of(f->path);
    }
    if (f->error != 0)
        st = fail("write", f->path, f->error, err);
    outfile_discard(f);
    return st;
}

void
outfile_discard(struct outfile *f)
{
    if (!f)
        return;
    if (f->fd >= 0)
        close(f->fd);
    if (f->temporary[0] != '\0')
        (void)unlink(f->temporary);
    mb_free(f->buffer);
    mb_free(f);
}

mb_status
outfile_put(
    const char *path, const void *data, size_t size, struct mb_error *err)
{
    struct outfile *f = NULL;
    mb_status st = outfile_open(path, 0, &f, err);
    if (st != MB_OK)
        return st;
    outfile_write(f, data, size);
    return outfile_finish(f, NULL, err);
}

/* ---- reading ---- */

uint64_t
outfile_hash_of(const void *data, size_t size)
{
    const uint8_t *p = data;
    uint64_t hash = 0;
    while (size > 0) {
        size_t n = size < BUFFER_BYTES ? size : BUFFER_BYTES;
        hash = mb_hash64(p, n, hash);
        p += n;
        size -= n;
    }
    return hash;
}

mb_status
outfile_map(const char *path, struct mb_slice *out, struct mb_error *err)
{
    struct stat sb;
    void *map = NULL;
    int error = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &sb) != 0)
        error = errno;
    else if (!S_ISREG(sb.st_mode))
        error = EISDIR;
    else if (sb.st_size > 0)
        map = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        error = errno;
    if (fd >= 0)
        close(fd);
    if (error != 0)
        return mb_error_set(err, error == ENOENT ? MB_ERR_NOT_FOUND : MB_ERR_IO,
            "open %s: %s", path, strerror(error));
    *out = mb_slice_of(map, (size_t)sb.st_size);
    return MB_OK;
}

void
outfile_unmap(struct mb_slice map)
{
    if (map.size > 0)
        (void)munmap((void *)(uintptr_t)map.data, map.size);
}
