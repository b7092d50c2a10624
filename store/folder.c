/* SPDX-License-Identifier: Apache-2.0
 * store/folder.c - see folder.h.
 *
 * Why a lock file of our own: LMDB lets several processes write in turn, which
 * membank does not want (one writer thread owns caches of what is stored), and
 * its own lock blocks instead of answering.
 * A store that may not be written to (another user's, a read-only disk) can
 * still be read: LMDB then works without its reader table, which is safe only
 * while nobody writes. A shared flock proves that, if the file is there.
 * Threads: open and close from one; folder_is_full from any. */
#include "folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define LOCK_NAME  "membank.lock"
#define DATA_NAME  "data.mdb"
#define MARK_TEXT  "membank store\n"
#define OPEN_TEXT  "open\n"
#define SHUT_TEXT  "shut\n"
#define MARK_BYTES (sizeof(MARK_TEXT) - 1)
/* Two meta pages: less than that is no LMDB file. */
#define MIN_DATA_BYTES (2 * 4096)
/* Less room than this counts as full: a commit writes many pages. */
#define FULL_BYTES (1u << 20)

mb_status
folder_status(int error)
{
    switch (error) {
    case ENOENT:
    case ENOTDIR:
        return MB_ERR_NOT_FOUND;
    case EACCES:
    case EPERM:
    case EROFS:
        return MB_ERR_READ_ONLY;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return MB_ERR_NO_SPACE;
    case ENOMEM:
        return MB_ERR_NOMEM;
    case EEXIST:
        return MB_ERR_EXISTS;
    default:
        return MB_ERR_IO;
    }
}

mb_status
folder_join(const char *path, const char *name, char *out, struct mb_error *err)
{
    int n = snprintf(out, FOLDER_MAX_PATH, "%s/%s", path, name);
    if (n < 0 || n >= FOLDER_MAX_PATH) {
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "path of the store is longer than %d bytes", FOLDER_MAX_PATH - 1);
    }
    return MB_OK;
}

static mb_status
sync_folder(const char *path, struct mb_error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0) {
        int error = errno;
        if (fd >= 0)
            close(fd);
        return mb_error_set(err, folder_status(error), "sync folder %s: %s",
            path, strerror(error));
    }
    close(fd);
    return MB_OK;
}

/* The folder itself. A missing one is made if `create`. */
static mb_status
check_folder(const char *path, bool create, struct mb_error *err)
{
    struct stat sb;
    if (stat(path, &sb) == 0) {
        if (!S_ISDIR(sb.st_mode)) {
            return mb_error_set(
                err, MB_ERR_FORMAT, "store %s: not a folder", path);
        }
        return MB_OK;
    }
    int error = errno;
    if (error != ENOENT || !create) {
        return mb_error_set(err, folder_status(error), "store %s: %s", path,
            error == ENOENT ? "no such folder" : strerror(error));
    }
    if (mkdir(path, 0777) != 0) {
        error = errno;
        return mb_error_set(err, folder_status(error), "make folder %s: %s",
            path, strerror(error));
    }
    return MB_OK;
}

static bool
has_text(int fd, const char *text, size_t at)
{
    char found[32];
    size_t size = strlen(text);
    return size <= sizeof(found) &&
           pread(fd, found, size, (off_t)at) == (ssize_t)size &&
           memcmp(found, text, size) == 0;
}

static bool
has_mark(int fd)
{
    return has_text(fd, MARK_TEXT, 0);
}

static mb_status
lock_for_writing(struct folder *f, const char *lock, struct mb_error *err)
{
    f->lock_fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (f->lock_fd < 0) {
        int error = errno;
        return mb_error_set(err, folder_status(error),
            "store %s: cannot write: %s; open it read-only", f->path,
            strerror(error));
    }
    if (flock(f->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        int error = errno;
        if (error == EWOULDBLOCK) {
            return mb_error_set(err, MB_ERR_LOCKED,
                "store %s: another process writes it", f->path);
        }
        return mb_error_set(
            err, folder_status(error), "lock %s: %s", lock, strerror(error));
    }
    f->complete = has_mark(f->lock_fd);
    f->was_shut = !f->complete || has_text(f->lock_fd, SHUT_TEXT, MARK_BYTES);
    return MB_OK;
}

/* May LMDB's reader table be used? If not, be sure that nobody writes. */
static mb_status
lock_for_reading(struct folder *f, const char *lock, struct mb_error *err)
{
    char table[FOLDER_MAX_PATH];
    mb_status st = folder_join(f->path, "lock.mdb", table, err);
    if (st != MB_OK)
        return st;
    int fd = open(lock, O_RDONLY | O_CLOEXEC);
    f->complete = fd >= 0 && has_mark(fd);
    int table_fd = open(table, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (table_fd >= 0) {
        close(table_fd);
        if (fd >= 0)
            close(fd);
        return MB_OK;
    }
    f->no_lock = true;
    if (fd < 0)
        return MB_OK;
    if (flock(fd, LOCK_SH | LOCK_NB) != 0) {
        close(fd);
        return mb_error_set(err, MB_ERR_LOCKED,
            "store %s: being written, and lock.mdb may not be used here",
            f->path);
    }
    f->lock_fd = fd;
    return MB_OK;
}

mb_status
folder_open(struct folder *f, const char *path, bool read_only, bool create,
    struct mb_error *err)
{
    char lock[FOLDER_MAX_PATH];
    char data[FOLDER_MAX_PATH];
    struct stat sb;

    memset(f, 0, sizeof(*f));
    f->lock_fd = -1;
    mb_status st = folder_join(path, LOCK_NAME, lock, err);
    if (st == MB_OK)
        st = folder_join(path, DATA_NAME, data, err);
    if (st == MB_OK)
        st = check_folder(path, create && !read_only, err);
    if (st != MB_OK)
        return st;
    (void)snprintf(f->path, sizeof(f->path), "%s", path);
    bool exists = stat(data, &sb) == 0;
    if (!exists && (read_only || !create)) {
        return mb_error_set(
            err, MB_ERR_NOT_FOUND, "no store in %s: no data.mdb", path);
    }
    st = read_only ? lock_for_reading(f, lock, err)
                   : lock_for_writing(f, lock, err);
    if (st != MB_OK) {
        folder_close(f);
        return st;
    }
    f->has_data = exists && sb.st_size >= MIN_DATA_BYTES;
    if (f->has_data)
        return MB_OK;
    if (f->complete || read_only || (exists && !create)) {
        st = mb_error_set(err, MB_ERR_CORRUPT,
            "store %s: data.mdb has %lld bytes", path,
            exists ? (long long)sb.st_size : 0LL);
        folder_close(f);
        return st;
    }
    // A creation that was cut off before its first commit: begin again.
    if (exists && unlink(data) != 0) {
        int error = errno;
        folder_close(f);
        return mb_error_set(
            err, folder_status(error), "remove %s: %s", data, strerror(error));
    }
    return MB_OK;
}

void
folder_close(struct folder *f)
{
    if (f != NULL && f->lock_fd >= 0) {
        close(f->lock_fd);
        f->lock_fd = -1;
    }
}

static mb_status
write_text(
    int fd, const char *text, size_t at, const char *path, struct mb_error *err)
{
    size_t size = strlen(text);
    if (pwrite(fd, text, size, (off_t)at) != (ssize_t)size || fsync(fd) != 0) {
        int error = errno;
        return mb_error_set(err, folder_status(error), "write %s/%s: %s", path,
            LOCK_NAME, strerror(error));
    }
    return MB_OK;
}

mb_status
folder_mark_open(struct folder *f, struct mb_error *err)
{
    mb_status st = MB_OK;
    if (!f->complete) {
        st = write_text(f->lock_fd, MARK_TEXT, 0, f->path, err);
        if (st == MB_OK)
            st = sync_folder(f->path, err);
    }
    if (st == MB_OK && f->was_shut)
        st = write_text(f->lock_fd, OPEN_TEXT, MARK_BYTES, f->path, err);
    if (st == MB_OK)
        f->complete = true;
    return st;
}

void
folder_mark_shut(struct folder *f)
{
    (void)write_text(f->lock_fd, SHUT_TEXT, MARK_BYTES, f->path, NULL);
}

mb_status
folder_make_empty(const char *path, struct mb_error *err)
{
    mb_status st = check_folder(path, true, err);
    if (st != MB_OK)
        return st;
    DIR *dir = opendir(path);
    if (dir == NULL) {
        int error = errno;
        return mb_error_set(err, folder_status(error), "open folder %s: %s",
            path, strerror(error));
    }
    const struct dirent *entry;
    bool is_empty = true;
    while ((entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            is_empty = false;
    }
    closedir(dir);
    if (!is_empty) {
        return mb_error_set(err, MB_ERR_EXISTS, "folder %s is not empty", path);
    }
    return MB_OK;
}

mb_status
folder_finish_copy(const char *path, struct mb_error *err)
{
    char name[FOLDER_MAX_PATH];
    mb_status st = folder_join(path, DATA_NAME, name, err);
    if (st != MB_OK)
        return st;
    int fd = open(name, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0) {
        int error = errno;
        if (fd >= 0)
            close(fd);
        return mb_error_set(
            err, folder_status(error), "sync %s: %s", name, strerror(error));
    }
    close(fd);
    st = folder_join(path, LOCK_NAME, name, err);
    if (st != MB_OK)
        return st;
    fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) {
        int error = errno;
        return mb_error_set(
            err, folder_status(error), "make %s: %s", name, strerror(error));
    }
    st = write_text(fd, MARK_TEXT, 0, path, err);
    close(fd);
    return st == MB_OK ? sync_folder(path, err) : st;
}

bool
folder_is_full(const char *path)
{
    char name[FOLDER_MAX_PATH];
    struct statvfs fs;
    struct rlimit limit;
    struct stat sb;

    if (statvfs(path, &fs) == 0 &&
        (uint64_t)fs.f_bavail * (uint64_t)fs.f_frsize < FULL_BYTES)
        return true;
    return folder_join(path, DATA_NAME, name, NULL) == MB_OK &&
           getrlimit(RLIMIT_FSIZE, &limit) == 0 &&
           limit.rlim_cur != RLIM_INFINITY && stat(name, &sb) == 0 &&
           (uint64_t)sb.st_size + 64 * (uint64_t)FULL_BYTES >=
               (uint64_t)limit.rlim_cur;
}
