/* SPDX-License-Identifier: Apache-2.0
 * store/kv.c - LMDB behind kv.h; nothing of it leaves this file.
 *
 * One environment, KV_N_TABLES named databases opened once. Durability is
 * LMDB's default: data and meta page are synced before a commit returns. Pages
 * are written with pwrite, never through the map: a full disk is then an error
 * code, not a signal.
 *
 * The map is 1 TiB of address space, so that it practically never has to grow.
 * Where the system refuses so much it is halved, and when the map is full
 * kv_grow enlarges it: LMDB allows that only while this process has no
 * transaction, so begin waits at a gate while somebody grows.
 *
 * LMDB does not notice when its file is shorter than its last page number
 * (reading there is a SIGBUS), so kv_open does. A file may end before the last
 * page number legitimately, when the pages at its end were given back in the
 * transaction that took them; every commit of ours closes that gap.
 *
 * Invariants: n_txns counts the live transactions of this process; while
 * `growing` none begins.
 * Threads: see kv.h; the gate is the only lock. */
#include "kv.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <lmdb.h>

#include "folder.h"
#include "pages.h"

#define DEFAULT_MAP_BYTES ((uint64_t)1 << 40)
#define MIN_MAP_BYTES     ((uint64_t)1 << 24)
/* Snapshots that may be open at once, in all processes. */
#define MAX_READERS 1022
/* How long growing waits for this process's transactions to end. */
#define GROW_WAIT_MS 10000
#define FORMAT_KEY   "format"
/* The largest row that kv_rewrite takes. */
#define MAX_REWRITTEN_ROW ((size_t)1 << 20)

struct kv {
    MDB_env *env;
    MDB_dbi tables[KV_N_TABLES];
    struct folder folder;
    bool read_only;
    pthread_mutex_t gate;
    pthread_cond_t changed; /* n_txns or growing */
    size_t n_txns;
    bool growing;
    bool map_full; /* writer thread only */
};

struct kv_txn {
    struct kv *kv;
    MDB_txn *txn;
    bool write;
    int last_error; /* LMDB's code of the last failure */
};

struct kv_cursor {
    MDB_cursor *cursor;
    struct kv_txn *txn;
};

static const char *const table_names[KV_N_TABLES] = {
    [KV_META] = "meta",
    [KV_COLLECTIONS] = "collections",
    [KV_DOCUMENTS] = "documents",
    [KV_DOCUMENT_IDS] = "document_ids",
    [KV_TEXTS] = "texts",
    [KV_SEGMENTS] = "segments",
    [KV_EMBEDDINGS] = "embeddings",
    [KV_LISTS] = "lists",
    [KV_NODES] = "nodes",
    [KV_GENERATIONS] = "generations",
    [KV_MODELS] = "models",
    [KV_TERMS] = "terms",
    [KV_POSTINGS] = "postings",
    [KV_LENGTHS] = "lengths",
    [KV_FIELDS] = "fields",
    [KV_BLOCKS] = "blocks",
    [KV_BANKS] = "banks",
    [KV_BANK_TRAINING] = "bank_training",
    [KV_CONTEXTS] = "contexts",
    [KV_JOBS] = "jobs",
};

const char *
kv_table_name(enum kv_table table)
{
    return (unsigned)table < KV_N_TABLES ? table_names[table] : "?";
}

/* ---- errors ---- */

/* Our status for a code of LMDB or an errno. */
static mb_status
status_of(const struct kv *kv, int rc)
{
    switch (rc) {
    case MDB_SUCCESS:
        return MB_OK;
    case MDB_NOTFOUND:
        return MB_ERR_NOT_FOUND;
    case MDB_MAP_FULL:
        return MB_ERR_NO_SPACE;
    case MDB_TXN_FULL:
        return MB_ERR_TOO_LARGE;
    case MDB_READERS_FULL:
        return MB_ERR_BUSY;
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_PANIC:
        return MB_ERR_CORRUPT;
    case MDB_INVALID:
    case MDB_VERSION_MISMATCH:
        return MB_ERR_FORMAT;
    case EIO:
        // LMDB says EIO for a write that came out short.
        return kv != NULL && folder_is_full(kv->folder.path) ? MB_ERR_NO_SPACE
                                                             : MB_ERR_IO;
    default:
        if (rc < 0)
            return MB_ERR_INTERNAL;
        return folder_status(rc) == MB_ERR_NOT_FOUND ? MB_ERR_IO
                                                     : folder_status(rc);
    }
}

static const char *
text_of(mb_status st, int rc)
{
    if (rc == MDB_MAP_FULL)
        return "the map is full";
    return st == MB_ERR_NO_SPACE ? "no space left on the disk"
                                 : mdb_strerror(rc);
}

static mb_status
set_error(const struct kv *kv, int rc, const char *what, struct mb_error *err)
{
    mb_status st = status_of(kv, rc);
    return mb_error_set(
        err, st, "%s %s: %s", what, kv->folder.path, text_of(st, rc));
}

/* A failure inside a transaction: remember the code for kv_txn_explain. */
static mb_status
txn_status(struct kv_txn *txn, int rc)
{
    if (rc == MDB_SUCCESS)
        return MB_OK;
    if (rc == MDB_NOTFOUND)
        return MB_ERR_NOT_FOUND;
    txn->last_error = rc;
    if (rc == MDB_MAP_FULL)
        txn->kv->map_full = true;
    return status_of(txn->kv, rc);
}

mb_status
kv_txn_explain(const struct kv_txn *txn, mb_status st, struct mb_error *err)
{
    if (st == MB_OK || err == NULL || err->text[0] != '\0')
        return st;
    if (txn->last_error != 0) {
        return mb_error_set(err, st, "store %s: %s", txn->kv->folder.path,
            text_of(st, txn->last_error));
    }
    return mb_error_set(err, st, "%s", mb_status_text(st));
}

/* ---- open and close ---- */

/* LMDB's own open with a map as large as the system lets. */
static mb_status
open_env(struct kv *kv, const struct kv_options *opt, struct mb_error *err)
{
    uint64_t bytes = opt->map_bytes != 0 ? opt->map_bytes : DEFAULT_MAP_BYTES;
    unsigned flags = MDB_NOTLS;
    if (opt->read_only)
        flags |= MDB_RDONLY;
    if (kv->folder.no_lock)
        flags |= MDB_NOLOCK;
    if (opt->no_sync)
        flags |= MDB_NOSYNC;
    for (;;) {
        int rc = mdb_env_create(&kv->env);
        if (rc == 0)
            rc = mdb_env_set_maxdbs(kv->env, KV_N_TABLES);
        if (rc == 0)
            rc = mdb_env_set_maxreaders(kv->env, MAX_READERS);
        if (rc == 0)
            rc = mdb_env_set_mapsize(kv->env, (size_t)bytes);
        if (rc == 0)
            rc = mdb_env_open(kv->env, kv->folder.path, flags, 0666);
        if (rc == 0)
            return MB_OK;
        mdb_env_close(kv->env);
        kv->env = NULL;
        if (rc != ENOMEM || bytes / 2 < MIN_MAP_BYTES)
            return set_error(kv, rc, "open store", err);
        bytes /= 2;
    }
}

struct tail {
    uint64_t from; /* first page that the file does not hold */
    uint64_t n_free;
};

static mb_status
count_tail(void *arg, uint64_t txn, uint64_t page)
{
    struct tail *tail = arg;
    (void)txn;
    tail->n_free += page >= tail->from;
    return MB_OK;
}

/* Are all pages behind the end of the file free? Then it is whole, and a crash
 * came before the commit's padding. Reads the file, not the map. */
static bool
is_free_behind(const struct kv *kv, uint64_t file_bytes, uint64_t last_page)
{
    struct pages *pages = NULL;
    struct pages_meta metas[2];
    struct tail tail = {0};
    mb_status st = pages_open(kv->folder.path, &pages);
    if (st == MB_OK)
        st = pages_metas(pages, metas);
    if (st == MB_OK) {
        tail.from = file_bytes / pages_size(pages);
        st = pages_free_list(pages, &metas[1], count_tail, &tail);
    }
    pages_close(pages);
    return st == MB_OK && metas[1].last_page == last_page &&
           tail.n_free == last_page + 1 - tail.from;
}

/* The file must hold every page that a tree may point at. */
static mb_status
check_size(struct kv *kv, struct mb_error *err)
{
    MDB_envinfo info;
    MDB_stat stat;
    struct stat sb;
    int fd;
    int rc = mdb_env_info(kv->env, &info);
    if (rc == 0)
        rc = mdb_env_stat(kv->env, &stat);
    if (rc == 0)
        rc = mdb_env_get_fd(kv->env, &fd);
    if (rc == 0 && fstat(fd, &sb) != 0)
        rc = errno;
    if (rc != 0)
        return set_error(kv, rc, "look at store", err);
    uint64_t want = ((uint64_t)info.me_last_pgno + 1) * stat.ms_psize;
    if ((uint64_t)sb.st_size < want &&
        !is_free_behind(kv, (uint64_t)sb.st_size, info.me_last_pgno)) {
        return mb_error_set(err, MB_ERR_CORRUPT,
            "store %s: data.mdb is cut: %llu bytes of %llu", kv->folder.path,
            (unsigned long long)sb.st_size, (unsigned long long)want);
    }
    return MB_OK;
}

/* Grow the file to its last page number, see the top. Failing is harmless. */
static void
pad_file(struct kv *kv)
{
    MDB_envinfo info;
    MDB_stat stat;
    struct stat sb;
    int fd;
    if (mdb_env_info(kv->env, &info) != 0 ||
        mdb_env_stat(kv->env, &stat) != 0 ||
        mdb_env_get_fd(kv->env, &fd) != 0 || fstat(fd, &sb) != 0)
        return;
    uint64_t want = ((uint64_t)info.me_last_pgno + 1) * stat.ms_psize;
    if ((uint64_t)sb.st_size < want && ftruncate(fd, (off_t)want) != 0)
        mb_log(MB_LOG_WARN, "store.pad", "error=%d", errno);
}

/* Format number, in its own record so that any version can read it. */
static mb_status
check_format(struct kv *kv, MDB_txn *txn, struct mb_error *err)
{
    MDB_val key = {sizeof(FORMAT_KEY) - 1, FORMAT_KEY};
    MDB_val val;
    int rc = mdb_get(txn, kv->tables[KV_META], &key, &val);
    if (rc == MDB_NOTFOUND || (rc == 0 && val.mv_size != 4)) {
        return mb_error_set(err, MB_ERR_FORMAT,
            "store %s: not a membank store (no format number)",
            kv->folder.path);
    }
    if (rc != 0)
        return set_error(kv, rc, "read format of store", err);
    uint32_t format = mb_get_le32(val.mv_data);
    if (format != KV_FORMAT) {
        return mb_error_set(err, MB_ERR_FORMAT,
            "store %s: has format %u, this program knows %u", kv->folder.path,
            (unsigned)format, (unsigned)KV_FORMAT);
    }
    return MB_OK;
}

static int
write_format(struct kv *kv, MDB_txn *txn)
{
    uint8_t bytes[4];
    MDB_val key = {sizeof(FORMAT_KEY) - 1, FORMAT_KEY};
    MDB_val val = {sizeof(bytes), bytes};
    mb_put_le32(bytes, KV_FORMAT);
    return mdb_put(txn, kv->tables[KV_META], &key, &val, 0);
}

/* Handles of all tables; makes them in an empty environment. */
static mb_status
open_tables(struct kv *kv, bool create, struct mb_error *err)
{
    MDB_txn *txn;
    MDB_stat stat;
    mb_status st = MB_OK;
    bool fresh = false;
    int rc = mdb_env_stat(kv->env, &stat);
    if (rc == 0)
        rc = mdb_txn_begin(kv->env, NULL, kv->read_only ? MDB_RDONLY : 0, &txn);
    if (rc != 0)
        return set_error(kv, rc, "read store", err);
    if (stat.ms_entries == 0) {
        if (kv->folder.complete) {
            st = mb_error_set(err, MB_ERR_CORRUPT,
                "store %s: all tables are gone", kv->folder.path);
        } else if (kv->read_only || !create) {
            st = mb_error_set(err, MB_ERR_FORMAT,
                "store %s: an LMDB file without tables", kv->folder.path);
        }
        fresh = true;
    }
    for (unsigned i = 0; st == MB_OK && i < KV_N_TABLES; i++) {
        rc = mdb_dbi_open(
            txn, table_names[i], fresh ? MDB_CREATE : 0, &kv->tables[i]);
        if (rc == MDB_NOTFOUND) {
            st = mb_error_set(err, MB_ERR_FORMAT,
                "store %s: not a membank store (no table %s)", kv->folder.path,
                table_names[i]);
        } else if (rc != 0) {
            st = set_error(kv, rc, "open tables of store", err);
        }
    }
    if (st == MB_OK && fresh) {
        rc = write_format(kv, txn);
        if (rc != 0)
            st = set_error(kv, rc, "create store", err);
    } else if (st == MB_OK) {
        st = check_format(kv, txn, err);
    }
    if (st != MB_OK) {
        mdb_txn_abort(txn);
        return st;
    }
    rc = mdb_txn_commit(txn); // also of a reader: that keeps the handles
    if (rc != 0)
        return set_error(kv, rc, "create store", err);
    return MB_OK;
}

static mb_status
init_gate(struct kv *kv)
{
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr) != 0)
        return MB_ERR_NOMEM;
    int rc = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    if (rc == 0)
        rc = pthread_cond_init(&kv->changed, &attr);
    pthread_condattr_destroy(&attr);
    if (rc != 0)
        return MB_ERR_NOMEM;
    if (pthread_mutex_init(&kv->gate, NULL) != 0) {
        pthread_cond_destroy(&kv->changed);
        return MB_ERR_NOMEM;
    }
    return MB_OK;
}

mb_status
kv_open(const char *path, const struct kv_options *opt, struct kv **out,
    struct mb_error *err)
{
    struct kv *kv = mb_calloc(1, sizeof(*kv));
    if (kv == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "open store: out of memory");
    kv->read_only = opt->read_only;
    mb_status st = init_gate(kv);
    if (st != MB_OK) {
        mb_free(kv);
        return mb_error_set(err, st, "open store: no lock to be had");
    }
    st = folder_open(&kv->folder, path, opt->read_only, opt->create, err);
    if (st != MB_OK)
        goto out;
    bool existed = kv->folder.has_data;
    st = open_env(kv, opt, err);
    if (st == MB_OK && existed)
        st = check_size(kv, err);
    if (st == MB_OK && !kv->folder.no_lock)
        (void)mdb_reader_check(kv->env, NULL);
    if (st == MB_OK)
        st = open_tables(kv, opt->create, err);
    if (st == MB_OK && !kv->read_only) {
        pad_file(kv);
        st = folder_mark_open(&kv->folder, err);
    }
    if (st != MB_OK)
        goto out;
    *out = kv;
    kv = NULL;
out:
    kv_close(kv);
    return st;
}

void
kv_close(struct kv *kv)
{
    if (kv == NULL)
        return;
    MB_ASSERT(kv->n_txns == 0);
    if (kv->env != NULL)
        mdb_env_close(kv->env);
    folder_close(&kv->folder);
    pthread_cond_destroy(&kv->changed);
    pthread_mutex_destroy(&kv->gate);
    mb_free(kv);
}

bool
kv_is_read_only(const struct kv *kv)
{
    return kv->read_only;
}

const char *
kv_path(const struct kv *kv)
{
    return kv->folder.path;
}

bool
kv_was_shut(const struct kv *kv)
{
    return kv->folder.was_shut;
}

void
kv_mark_shut(struct kv *kv)
{
    folder_mark_shut(&kv->folder);
}

/* ---- the gate and the map ---- */

static void
gate_enter(struct kv *kv)
{
    pthread_mutex_lock(&kv->gate);
    while (kv->growing) {
        pthread_cond_wait(&kv->changed, &kv->gate);
    }
    kv->n_txns++;
    pthread_mutex_unlock(&kv->gate);
}

static void
gate_leave(struct kv *kv)
{
    pthread_mutex_lock(&kv->gate);
    MB_ASSERT(kv->n_txns > 0);
    kv->n_txns--;
    if (kv->growing && kv->n_txns == 0)
        pthread_cond_broadcast(&kv->changed);
    pthread_mutex_unlock(&kv->gate);
}

/* Set the map's size (0: take over what another process set) while no
 * transaction of ours is open. */
static mb_status
resize_map(struct kv *kv, size_t bytes, struct mb_error *err)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += GROW_WAIT_MS / 1000;
    int rc = 0;
    pthread_mutex_lock(&kv->gate);
    while (kv->growing) {
        pthread_cond_wait(&kv->changed, &kv->gate);
    }
    kv->growing = true;
    while (kv->n_txns > 0 && rc == 0) {
        rc = pthread_cond_timedwait(&kv->changed, &kv->gate, &until);
    }
    mb_status st = MB_OK;
    if (kv->n_txns > 0) {
        st = mb_error_set(err, MB_ERR_BUSY,
            "store %s: map cannot change its size: %zu readers for %d ms",
            kv->folder.path, kv->n_txns, GROW_WAIT_MS);
    } else {
        rc = mdb_env_set_mapsize(kv->env, bytes);
        if (rc != 0) {
            st = mb_error_set(err, MB_ERR_NO_SPACE,
                "store %s: map cannot grow to %zu bytes: %s", kv->folder.path,
                bytes, mdb_strerror(rc));
        }
    }
    kv->growing = false;
    pthread_cond_broadcast(&kv->changed);
    pthread_mutex_unlock(&kv->gate);
    return st;
}

bool
kv_map_is_full(const struct kv *kv)
{
    return kv->map_full;
}

mb_status
kv_grow(struct kv *kv, struct mb_error *err)
{
    MDB_envinfo info;
    size_t bytes;
    int rc = mdb_env_info(kv->env, &info);
    if (rc != 0)
        return set_error(kv, rc, "look at store", err);
    kv->map_full = false;
    if (!mb_size_mul(info.me_mapsize, 2, &bytes))
        return mb_error_set(err, MB_ERR_NO_SPACE, "address space is used up");
    mb_status st = resize_map(kv, bytes, err);
    if (st == MB_OK)
        mb_log(MB_LOG_INFO, "store.grow", "map_bytes=%zu", bytes);
    return st;
}

/* ---- transactions ---- */

mb_status
kv_begin(struct kv *kv, bool write, struct kv_txn **out, struct mb_error *err)
{
    struct kv_txn *txn = mb_calloc(1, sizeof(*txn));
    if (txn == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "begin: out of memory");
    txn->kv = kv;
    txn->write = write;
    for (bool again = true;; again = false) {
        gate_enter(kv);
        int rc =
            mdb_txn_begin(kv->env, NULL, write ? 0 : MDB_RDONLY, &txn->txn);
        if (rc == 0)
            break;
        gate_leave(kv);
        mb_status st;
        if (rc == MDB_MAP_RESIZED && again) {
            st = resize_map(kv, 0, err);
        } else if (rc == MDB_READERS_FULL && again) {
            // Slots of readers that died are free again after a check.
            st = mdb_reader_check(kv->env, NULL) == 0 ? MB_OK : MB_ERR_BUSY;
        } else {
            st = set_error(kv, rc, "begin transaction in", err);
        }
        if (st != MB_OK) {
            mb_free(txn);
            return st;
        }
    }
    *out = txn;
    return MB_OK;
}

mb_status
kv_begin_twin(const struct kv_txn *txn, struct kv_txn **out)
{
    struct kv *kv = txn->kv;
    struct kv_txn *twin = mb_calloc(1, sizeof(*twin));
    if (twin == NULL)
        return MB_ERR_NOMEM;
    twin->kv = kv;
    // Who grows the map waits for txn to end: waiting for him would be for ever.
    pthread_mutex_lock(&kv->gate);
    mb_status st = kv->growing ? MB_ERR_BUSY : MB_OK;
    if (st == MB_OK)
        kv->n_txns++;
    pthread_mutex_unlock(&kv->gate);
    if (st != MB_OK) {
        mb_free(twin);
        return st;
    }
    if (mdb_txn_begin(kv->env, NULL, MDB_RDONLY, &twin->txn) != 0) {
        mb_free(twin);
        gate_leave(kv);
        return MB_ERR_BUSY;
    }
    if (kv_txn_id(twin) != kv_txn_id(txn)) {
        kv_abort(twin);
        return MB_ERR_STALE;
    }
    *out = twin;
    return MB_OK;
}

mb_status
kv_commit(struct kv_txn *txn, struct mb_error *err)
{
    struct kv *kv = txn->kv;
    mb_status st = MB_OK;
    int rc = mdb_txn_commit(txn->txn);
    if (rc != 0) {
        if (rc == MDB_MAP_FULL)
            kv->map_full = true;
        st = set_error(kv, rc, "commit to", err);
    } else if (txn->write) {
        pad_file(kv);
    }
    mb_free(txn);
    gate_leave(kv);
    return st;
}

void
kv_abort(struct kv_txn *txn)
{
    if (txn == NULL)
        return;
    struct kv *kv = txn->kv;
    mdb_txn_abort(txn->txn);
    mb_free(txn);
    gate_leave(kv);
}

uint64_t
kv_txn_id(const struct kv_txn *txn)
{
    return mdb_txn_id(txn->txn);
}

/* ---- keys ---- */

void
kv_key_init(struct kv_key *key)
{
    key->size = 0;
}

void
kv_key_bytes(struct kv_key *key, struct mb_slice s)
{
    MB_ASSERT(s.size <= (size_t)KV_MAX_KEY - key->size);
    if (s.size > 0)
        memcpy(key->bytes + key->size, s.data, s.size);
    key->size = (uint16_t)(key->size + s.size);
}

void
kv_key_u8(struct kv_key *key, uint8_t v)
{
    kv_key_bytes(key, mb_slice_of(&v, 1));
}

void
kv_key_u32(struct kv_key *key, uint32_t v)
{
    uint8_t bytes[4];
    mb_put_be32(bytes, v);
    kv_key_bytes(key, mb_slice_of(bytes, sizeof(bytes)));
}

void
kv_key_u64(struct kv_key *key, uint64_t v)
{
    uint8_t bytes[8];
    mb_put_be64(bytes, v);
    kv_key_bytes(key, mb_slice_of(bytes, sizeof(bytes)));
}

struct mb_slice
kv_key_slice(const struct kv_key *key)
{
    return mb_slice_of(key->bytes, key->size);
}

bool
kv_has_prefix(struct mb_slice key, struct mb_slice prefix)
{
    return key.size >= prefix.size &&
           (prefix.size == 0 ||
               memcmp(key.data, prefix.data, prefix.size) == 0);
}

/* ---- rows ---- */

/* LMDB takes pointers to non-const; it does not write through them. */
static MDB_val
val_of(struct mb_slice s)
{
    MDB_val v = {s.size, (void *)(uintptr_t)s.data};
    return v;
}

/* A key for writing, copied: it may view the page that the write rearranges. */
static MDB_val
own_key(struct mb_slice key, uint8_t room[KV_MAX_KEY])
{
    MB_ASSERT(key.size <= KV_MAX_KEY);
    memcpy(room, key.data, key.size);
    MDB_val v = {key.size, room};
    return v;
}

mb_status
kv_get(struct kv_txn *txn, enum kv_table table, struct mb_slice key,
    struct mb_slice *val)
{
    MDB_val k = val_of(key);
    MDB_val v;
    int rc = mdb_get(txn->txn, txn->kv->tables[table], &k, &v);
    if (rc == 0)
        *val = mb_slice_of(v.mv_data, v.mv_size);
    return txn_status(txn, rc);
}

mb_status
kv_put(struct kv_txn *txn, enum kv_table table, struct mb_slice key,
    struct mb_slice val)
{
    uint8_t room[KV_MAX_KEY];
    MDB_val k = own_key(key, room);
    MDB_val v = val_of(val);
    return txn_status(
        txn, mdb_put(txn->txn, txn->kv->tables[table], &k, &v, 0));
}

mb_status
kv_reserve(struct kv_txn *txn, enum kv_table table, struct mb_slice key,
    size_t size, uint8_t **out)
{
    uint8_t room[KV_MAX_KEY];
    MDB_val k = own_key(key, room);
    MDB_val v = {size, NULL};
    int rc = mdb_put(txn->txn, txn->kv->tables[table], &k, &v, MDB_RESERVE);
    if (rc == 0)
        *out = v.mv_data;
    return txn_status(txn, rc);
}

mb_status
kv_del(struct kv_txn *txn, enum kv_table table, struct mb_slice key)
{
    MDB_val k = val_of(key);
    return txn_status(txn, mdb_del(txn->txn, txn->kv->tables[table], &k, NULL));
}

/* ---- cursors ---- */

mb_status
kv_cursor_open(struct kv_txn *txn, enum kv_table table, struct kv_cursor **out)
{
    struct kv_cursor *c = mb_calloc(1, sizeof(*c));
    if (c == NULL)
        return MB_ERR_NOMEM;
    c->txn = txn;
    int rc = mdb_cursor_open(txn->txn, txn->kv->tables[table], &c->cursor);
    if (rc != 0) {
        mb_free(c);
        return txn_status(txn, rc);
    }
    *out = c;
    return MB_OK;
}

void
kv_cursor_close(struct kv_cursor *c)
{
    if (c == NULL)
        return;
    mdb_cursor_close(c->cursor);
    mb_free(c);
}

static mb_status
cursor_move(struct kv_cursor *c, MDB_cursor_op op, MDB_val *key,
    struct mb_slice *k, struct mb_slice *v)
{
    MDB_val val;
    int rc = mdb_cursor_get(c->cursor, key, &val, op);
    if (rc != 0)
        return txn_status(c->txn, rc);
    if (k != NULL)
        *k = mb_slice_of(key->mv_data, key->mv_size);
    if (v != NULL)
        *v = mb_slice_of(val.mv_data, val.mv_size);
    return MB_OK;
}

mb_status
kv_cursor_seek(struct kv_cursor *c, struct mb_slice key, struct mb_slice *k,
    struct mb_slice *v)
{
    MDB_val at = val_of(key);
    // LMDB takes no empty key to seek.
    return cursor_move(c, key.size == 0 ? MDB_FIRST : MDB_SET_RANGE, &at, k, v);
}

mb_status
kv_cursor_find(struct kv_cursor *c, struct mb_slice key, struct mb_slice *v)
{
    MDB_val at = val_of(key);
    return cursor_move(c, MDB_SET, &at, NULL, v);
}

mb_status
kv_cursor_next(struct kv_cursor *c, struct mb_slice *k, struct mb_slice *v)
{
    MDB_val at;
    return cursor_move(c, MDB_NEXT, &at, k, v);
}

mb_status
kv_cursor_prev(struct kv_cursor *c, struct mb_slice *k, struct mb_slice *v)
{
    MDB_val at;
    return cursor_move(c, MDB_PREV, &at, k, v);
}

mb_status
kv_cursor_last(struct kv_cursor *c, struct mb_slice *k, struct mb_slice *v)
{
    MDB_val at;
    return cursor_move(c, MDB_LAST, &at, k, v);
}

/* The least key above all that begin with prefix; false if there is none. */
static bool
key_after(struct mb_slice prefix, struct kv_key *out)
{
    kv_key_init(out);
    kv_key_bytes(out, prefix);
    while (out->size > 0) {
        if (++out->bytes[out->size - 1] != 0)
            return true;
        out->size--;
    }
    return false;
}

mb_status
kv_cursor_last_of(struct kv_cursor *c, struct mb_slice prefix,
    struct mb_slice *k, struct mb_slice *v)
{
    struct kv_key after;
    struct mb_slice key;
    struct mb_slice val;
    mb_status st = MB_ERR_NOT_FOUND;
    if (key_after(prefix, &after)) {
        st = kv_cursor_seek(c, kv_key_slice(&after), &key, &val);
        if (st == MB_OK)
            st = kv_cursor_prev(c, &key, &val);
        else if (st == MB_ERR_NOT_FOUND)
            st = kv_cursor_last(c, &key, &val);
    } else {
        st = kv_cursor_last(c, &key, &val);
    }
    if (st != MB_OK)
        return st;
    if (!kv_has_prefix(key, prefix))
        return MB_ERR_NOT_FOUND;
    if (k != NULL)
        *k = key;
    if (v != NULL)
        *v = val;
    return MB_OK;
}

mb_status
kv_cursor_put(struct kv_cursor *c, struct mb_slice key, struct mb_slice val)
{
    uint8_t room[KV_MAX_KEY];
    MDB_val k = own_key(key, room);
    MDB_val v = val_of(val);
    return txn_status(c->txn, mdb_cursor_put(c->cursor, &k, &v, 0));
}

mb_status
kv_cursor_del(struct kv_cursor *c)
{
    return txn_status(c->txn, mdb_cursor_del(c->cursor, 0));
}

mb_status
kv_del_prefix(struct kv_txn *txn, enum kv_table table, struct mb_slice prefix,
    size_t max, size_t *n)
{
    struct kv_cursor *c;
    struct mb_slice key;
    size_t done = 0;
    mb_status st = kv_cursor_open(txn, table, &c);
    if (st != MB_OK)
        return st;
    st = kv_cursor_seek(c, prefix, &key, NULL);
    while (st == MB_OK && done < max && kv_has_prefix(key, prefix)) {
        st = kv_cursor_del(c);
        if (st != MB_OK)
            break;
        done++;
        st = kv_cursor_next(c, &key, NULL);
    }
    kv_cursor_close(c);
    *n = done;
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
}

/* Take rows out into `rows`: u32 sizes of key and value, then both. */
static mb_status
take_rows(struct kv_txn *txn, enum kv_table table, struct mb_slice from,
    size_t bytes, struct mb_buffer *rows)
{
    struct kv_cursor *c;
    struct mb_slice key;
    struct mb_slice val;
    mb_status st = kv_cursor_open(txn, table, &c);
    if (st != MB_OK)
        return st;
    st = kv_cursor_seek(c, from, &key, &val);
    while (st == MB_OK && rows->size < bytes) {
        uint8_t sizes[8];
        mb_put_le32(sizes, (uint32_t)key.size);
        mb_put_le32(sizes + 4, (uint32_t)val.size);
        st = mb_buffer_append(rows, sizes, sizeof(sizes));
        if (st == MB_OK)
            st = mb_buffer_append(rows, key.data, key.size);
        if (st == MB_OK)
            st = mb_buffer_append(rows, val.data, val.size);
        if (st == MB_OK)
            st = kv_cursor_del(c);
        if (st == MB_OK)
            st = kv_cursor_next(c, &key, &val);
    }
    kv_cursor_close(c);
    return st == MB_ERR_NOT_FOUND ? MB_OK : st;
}

mb_status
kv_rewrite(
    struct kv_txn *txn, enum kv_table table, struct mb_slice from, size_t bytes)
{
    struct mb_buffer rows;
    mb_buffer_init(&rows, bytes + MAX_REWRITTEN_ROW);
    mb_status st = take_rows(txn, table, from, bytes, &rows);
    for (size_t at = 0; st == MB_OK && at < rows.size;) {
        const uint8_t *p = rows.data + at;
        size_t key = mb_get_le32(p);
        size_t val = mb_get_le32(p + 4);
        st = kv_put(
            txn, table, mb_slice_of(p + 8, key), mb_slice_of(p + 8 + key, val));
        at += 8 + key + val;
    }
    mb_buffer_fini(&rows);
    return st;
}

/* ---- figures and copy ---- */

struct reader_count {
    uint32_t n;
    uint64_t oldest;
};

/* LMDB tells its readers only as text: "pid thread txnid" a line, "-" where a
 * slot is idle. */
static int
count_reader(const char *line, void *arg)
{
    struct reader_count *count = arg;
    char *end;
    (void)strtoul(line, &end, 10);
    if (end == line)
        return 0;
    const char *p = end;
    (void)strtoul(p, &end, 16);
    if (end == p)
        return 0;
    p = end;
    unsigned long long id = strtoull(p, &end, 10);
    if (end == p)
        return 0;
    count->n++;
    if (id < count->oldest)
        count->oldest = id;
    return 0;
}

/* Pages on the free list: each record of LMDB's table 0 begins with a count. */
static int
count_free_pages(struct kv *kv, MDB_txn *txn, uint64_t *pages)
{
    MDB_cursor *c;
    MDB_val key;
    MDB_val val;
    uint64_t n = 0;
    (void)kv;
    int rc = mdb_cursor_open(txn, 0, &c);
    if (rc != 0)
        return rc;
    while ((rc = mdb_cursor_get(c, &key, &val, MDB_NEXT)) == 0) {
        size_t count;
        if (val.mv_size < sizeof(count))
            continue;
        memcpy(&count, val.mv_data, sizeof(count));
        n += count;
    }
    mdb_cursor_close(c);
    *pages = n;
    return rc == MDB_NOTFOUND ? 0 : rc;
}

uint64_t
kv_oldest_reader(struct kv *kv)
{
    struct reader_count readers = {0, UINT64_MAX};
    if (!kv->folder.no_lock)
        (void)mdb_reader_list(kv->env, count_reader, &readers);
    return readers.oldest;
}

mb_status
kv_stats(struct kv *kv, struct kv_stats *out, struct mb_error *err)
{
    MDB_envinfo info;
    MDB_stat stat;
    struct stat sb;
    struct kv_txn *txn;
    uint64_t free_pages = 0;
    int fd;
    struct reader_count readers = {0, UINT64_MAX};
    if (!kv->folder.no_lock)
        (void)mdb_reader_list(kv->env, count_reader, &readers);
    mb_status st = kv_begin(kv, false, &txn, err);
    if (st != MB_OK)
        return st;
    int rc = count_free_pages(kv, txn->txn, &free_pages);
    kv_abort(txn);
    if (rc == 0)
        rc = mdb_env_info(kv->env, &info);
    if (rc == 0)
        rc = mdb_env_stat(kv->env, &stat);
    if (rc == 0)
        rc = mdb_env_get_fd(kv->env, &fd);
    if (rc == 0 && fstat(fd, &sb) != 0)
        rc = errno;
    if (rc != 0)
        return set_error(kv, rc, "look at store", err);
    memset(out, 0, sizeof(*out));
    out->file_bytes = (uint64_t)sb.st_size;
    out->map_bytes = info.me_mapsize;
    out->free_bytes = free_pages * stat.ms_psize;
    uint64_t all = ((uint64_t)info.me_last_pgno + 1) * stat.ms_psize;
    out->used_bytes = all > out->free_bytes ? all - out->free_bytes : 0;
    out->last_txn = info.me_last_txnid;
    out->n_readers = readers.n;
    if (readers.n > 0 && readers.oldest < out->last_txn)
        out->oldest_reader_lag = out->last_txn - readers.oldest;
    return MB_OK;
}

mb_status
kv_table_stats(
    struct kv_txn *txn, enum kv_table table, uint64_t *rows, uint64_t *bytes)
{
    MDB_stat stat;
    int rc = mdb_stat(txn->txn, txn->kv->tables[table], &stat);
    if (rc == 0) {
        *rows = stat.ms_entries;
        *bytes = (uint64_t)stat.ms_psize *
                 ((uint64_t)stat.ms_branch_pages + stat.ms_leaf_pages +
                     stat.ms_overflow_pages);
    }
    return txn_status(txn, rc);
}

mb_status
kv_copy(struct kv *kv, const char *to, struct mb_error *err)
{
    char data[FOLDER_MAX_PATH];
    mb_status st = folder_join(to, "data.mdb", data, err);
    if (st == MB_OK)
        st = folder_make_empty(to, err);
    if (st != MB_OK)
        return st;
    gate_enter(kv); // LMDB opens a snapshot of its own
    int rc = mdb_env_copy2(kv->env, to, MDB_CP_COMPACT);
    gate_leave(kv);
    if (rc != 0) {
        st = status_of(NULL, rc);
        if (rc == EIO && folder_is_full(to))
            st = MB_ERR_NO_SPACE;
        (void)unlink(data);
        return mb_error_set(err, st, "copy store %s to %s: %s", kv->folder.path,
            to, text_of(st, rc));
    }
    return folder_finish_copy(to, err);
}
