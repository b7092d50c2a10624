/* SPDX-License-Identifier: Apache-2.0
 * client/membank.h - talk to membankd, the daemon with a long memory.
 *
 * This header and libmembank are all that a program needs. Link with
 * `pkg-config --cflags --libs membank` or CMake's membank::membank.
 *
 *     struct membank *mb = NULL;
 *     struct membank_error err;
 *     struct membank_hits *hits = NULL;
 *     if (membank_open(NULL, &mb, &err) == MEMBANK_OK &&
 *         membank_query(mb,
 *             &(struct membank_query_options){
 *                 .collection = "notes", .text = "who wrote it?", .k = 3},
 *             &hits, &err) == MEMBANK_OK) {
 *         for (size_t i = 0; i < membank_hits_count(hits); i++)
 *             puts(membank_hits_at(hits, i)->text);
 *     } else {
 *         fprintf(stderr, "%s\n", err.text);
 *     }
 *     membank_hits_free(hits);
 *     membank_close(mb);
 *
 * Life: membank_open -> calls, or send and poll -> membank_close. Opening does
 * not wait for the daemon; a client outlives any number of its restarts and
 * connects again by itself.
 *
 * Errors: whatever can fail returns a membank_status, 0 is MEMBANK_OK. Results
 * go through out-parameters, which stay untouched on failure. `err` may be
 * NULL; on failure it gets the cause, for people: the daemon's own words, or
 * the library's. Only err->status is for programs.
 *
 * Time: a call ends when its reply is there or its time is up (TIMEOUT; the
 * default is 30 s). A reply that comes later is dropped: the daemon may have
 * done what was asked. A call that finds no daemon within 5 s (or its time, if
 * that is less) ends with UNREACHABLE and was never sent; one whose connection
 * breaks ends at once with UNREACHABLE, and may have been done. All operations but create may
 * simply be repeated: a put of the same document twice stores it once.
 *
 * Strings are UTF-8 and end with NUL, those that the library gives as well; a
 * text that may hold NUL comes with its size. msgpack values travel as
 * `struct membank_bytes`; membank_pack_* make them without another library.
 *
 * Threads: a client belongs to one thread at a time. Make one for each thread;
 * they are cheap and share nothing. A reply, and what is read from it, belongs
 * to whoever holds it and does not need its client any more. After fork() the
 * child must not touch the parent's clients.
 *
 * Binary interface (soname 0): functions stay; structs that the caller fills
 * have reserved fields, which must be zero (`= {0}` or an initialiser does
 * that); structs that the library fills may grow at their end. */
#ifndef MEMBANK_H
#define MEMBANK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define MEMBANK_API      __attribute__((visibility("default")))
#define MEMBANK_MUST_USE __attribute__((warn_unused_result))
#else
#define MEMBANK_API
#define MEMBANK_MUST_USE
#endif

/* "0.1.0" of the library that runs, not of this header. */
MEMBANK_API const char *membank_version(void);

/* ---- status ---- */

/* The numbers and names of the protocol; they never change. */
typedef enum membank_status {
    MEMBANK_OK = 0,
    MEMBANK_ERR_INTERNAL = 1,
    MEMBANK_ERR_NOMEM = 2,
    MEMBANK_ERR_BAD_ARG = 3,
    MEMBANK_ERR_BAD_MESSAGE = 4,
    MEMBANK_ERR_BAD_VERSION = 5,
    MEMBANK_ERR_UNKNOWN_OP = 6,
    MEMBANK_ERR_NOT_IMPLEMENTED = 7,
    MEMBANK_ERR_NOT_FOUND = 8,
    MEMBANK_ERR_EXISTS = 9,
    MEMBANK_ERR_TOO_LARGE = 10,
    MEMBANK_ERR_BUSY = 11,
    MEMBANK_ERR_TIMEOUT = 12,
    MEMBANK_ERR_SHUTTING_DOWN = 13,
    MEMBANK_ERR_IO = 14,
    MEMBANK_ERR_NO_SPACE = 15,
    MEMBANK_ERR_READ_ONLY = 16,
    MEMBANK_ERR_CORRUPT = 17,
    MEMBANK_ERR_FORMAT = 18,
    MEMBANK_ERR_BAD_TEXT = 19,
    MEMBANK_ERR_STALE = 20,
    MEMBANK_ERR_MISMATCH = 21,
    MEMBANK_ERR_LOCKED = 22,
    MEMBANK_ERR_UNREACHABLE = 23,
    MEMBANK_ERR_CANCELLED = 24,
    MEMBANK_ERR_DENIED = 25
} membank_status;

/* Wire name ("not_found") and text for people; static strings. */
MEMBANK_API const char *membank_status_name(membank_status st);
MEMBANK_API const char *membank_status_text(membank_status st);
/* May the same call succeed later? */
MEMBANK_API bool membank_status_may_retry(membank_status st);

#define MEMBANK_ERROR_TEXT 320

struct membank_error {
    membank_status status;
    char text[MEMBANK_ERROR_TEXT]; /* ends with NUL */
};

/* ---- the client ---- */

struct membank;

/* Zero is the default everywhere. Strings are copied. */
struct membank_options {
    /* "ipc:///run/membank.sock", "tcp://127.0.0.1:7711". NULL: what
     * MEMBANK_ENDPOINT says, or the daemon's own default,
     * ipc://$XDG_RUNTIME_DIR/membank.sock, or ipc:///tmp/membank-UID.sock
     * where that is unset. */
    const char *endpoint;
    unsigned timeout_ms;         /* of each call; 0: 30,000 */
    unsigned connect_timeout_ms; /* of it, to find a daemon; 0: 5,000 */
    size_t max_reply_bytes;      /* a larger reply is refused; 0: 256 MiB */
    /* CURVE keys as Z85 text (40 characters): all three, or none. */
    const char *server_key;
    const char *public_key;
    const char *secret_key;
    void *reserved[8];
};

/* opt may be NULL. Errors: BAD_ARG (endpoint, keys), NOMEM, INTERNAL. */
MEMBANK_API MEMBANK_MUST_USE membank_status membank_open(
    const struct membank_options *opt, struct membank **out,
    struct membank_error *err);
/* Does not wait: requests that were not sent yet are dropped. Takes NULL. */
MEMBANK_API void membank_close(struct membank *mb);
/* For the calls from now on; 0: the default again. */
MEMBANK_API void membank_set_timeout(struct membank *mb, unsigned timeout_ms);
MEMBANK_API const char *membank_endpoint(const struct membank *mb);

/* ---- msgpack values in and out ---- */

/* Borrowed bytes: one msgpack value, or nothing (size 0). */
struct membank_bytes {
    const void *data;
    size_t size;
};

/* Writes one msgpack value. The first failure sticks and is told by
 * membank_pack_bytes. After array(n) write n values, after map(n) n times a
 * string and a value. */
struct membank_pack;
/* NULL when memory is short; all functions take NULL and then do nothing. */
MEMBANK_API struct membank_pack *membank_pack_new(void);
MEMBANK_API void membank_pack_free(struct membank_pack *p);
MEMBANK_API void membank_pack_clear(struct membank_pack *p);
MEMBANK_API void membank_pack_nil(struct membank_pack *p);
MEMBANK_API void membank_pack_bool(struct membank_pack *p, bool v);
MEMBANK_API void membank_pack_i64(struct membank_pack *p, int64_t v);
MEMBANK_API void membank_pack_u64(struct membank_pack *p, uint64_t v);
MEMBANK_API void membank_pack_f64(struct membank_pack *p, double v);
MEMBANK_API void membank_pack_str(struct membank_pack *p, const char *s);
MEMBANK_API void membank_pack_strn(
    struct membank_pack *p, const char *s, size_t size);
MEMBANK_API void membank_pack_bin(
    struct membank_pack *p, const void *data, size_t size);
MEMBANK_API void membank_pack_array(struct membank_pack *p, size_t n);
MEMBANK_API void membank_pack_map(struct membank_pack *p, size_t n);
/* A value that is msgpack already. */
MEMBANK_API void membank_pack_raw(
    struct membank_pack *p, struct membank_bytes value);
/* View of what was written; it ends with the next call on p.
 * Errors: NOMEM, TOO_LARGE (1 GiB), BAD_ARG (not one whole value). */
MEMBANK_API MEMBANK_MUST_USE membank_status membank_pack_bytes(
    const struct membank_pack *p, struct membank_bytes *out);

typedef enum membank_type {
    MEMBANK_TYPE_NIL = 0,
    MEMBANK_TYPE_BOOL = 1,
    MEMBANK_TYPE_INT = 2,
    MEMBANK_TYPE_UINT = 3, /* above INT64_MAX only */
    MEMBANK_TYPE_FLOAT = 4,
    MEMBANK_TYPE_STR = 5,
    MEMBANK_TYPE_BIN = 6,
    MEMBANK_TYPE_ARRAY = 7,
    MEMBANK_TYPE_MAP = 8
} membank_type;

/* A value inside a reply; lives as long as the reply. All functions take NULL
 * and values of any type: they answer "nothing" then, so that look-ups chain:
 * membank_value_i64(membank_value_get(membank_reply_result(r), "n"), 0). */
struct membank_value;
MEMBANK_API membank_type membank_value_type(const struct membank_value *v);
/* What a map has under key; NULL if it lacks it. */
MEMBANK_API const struct membank_value *membank_value_get(
    const struct membank_value *v, const char *key);
/* Elements of an array, pairs of a map, bytes of a str or bin; else 0. */
MEMBANK_API size_t membank_value_size(const struct membank_value *v);
/* Element i of an array, or value i of a map; NULL outside. */
MEMBANK_API const struct membank_value *membank_value_at(
    const struct membank_value *v, size_t i);
/* Key i of a map, with its size; not NUL-terminated. NULL outside. */
MEMBANK_API const char *membank_value_key(
    const struct membank_value *v, size_t i, size_t *size);
/* Numbers convert, fractions are cut off; what does not fit, or is no number
 * (no bool), gives `def`. */
MEMBANK_API bool membank_value_bool(const struct membank_value *v, bool def);
MEMBANK_API int64_t membank_value_i64(
    const struct membank_value *v, int64_t def);
MEMBANK_API uint64_t membank_value_u64(
    const struct membank_value *v, uint64_t def);
MEMBANK_API double membank_value_f64(const struct membank_value *v, double def);
/* Bytes of a str or bin with their size; not NUL-terminated. NULL for other
 * types. */
MEMBANK_API const char *membank_value_str(
    const struct membank_value *v, size_t *size);

/* ---- any operation: one call, or many at once ---- */

/* One reply. */
struct membank_reply;
MEMBANK_API void membank_reply_free(struct membank_reply *reply);
MEMBANK_API uint64_t membank_reply_ticket(const struct membank_reply *reply);
/* OK, what the daemon answered, or TIMEOUT, UNREACHABLE by the library. */
MEMBANK_API membank_status membank_reply_status(
    const struct membank_reply *reply);
/* The cause, "" if the status is OK. */
MEMBANK_API const char *membank_reply_error(const struct membank_reply *reply);
/* More replies to the same ticket follow (streams only). */
MEMBANK_API bool membank_reply_has_more(const struct membank_reply *reply);
/* The result: as a value, NULL if there is none, and as msgpack bytes. */
MEMBANK_API const struct membank_value *membank_reply_result(
    const struct membank_reply *reply);
MEMBANK_API struct membank_bytes membank_reply_bytes(
    const struct membank_reply *reply);

/* Any operation of the protocol: args is a msgpack map, or empty. On OK *out
 * (may be NULL) is the caller's. Of a stream only the last reply is kept.
 * Errors: what the daemon answers; BAD_ARG (args is no map), TOO_LARGE,
 * TIMEOUT, UNREACHABLE, BAD_MESSAGE (a reply that is not of the protocol),
 * NOMEM. All calls below add nothing to these but what they say. */
MEMBANK_API MEMBANK_MUST_USE membank_status membank_call(struct membank *mb,
    const char *op, struct membank_bytes args, struct membank_reply **out,
    struct membank_error *err);

/* Send a request and go on: *ticket names it from now on. Each ticket gets
 * exactly one last reply from membank_poll: the daemon's, or TIMEOUT after the
 * time that membank_set_timeout gave, or UNREACHABLE. Waits only for a
 * connection, or while the daemon takes no more.
 * Errors: TIMEOUT, UNREACHABLE (not sent), BAD_ARG, TOO_LARGE, NOMEM. */
MEMBANK_API MEMBANK_MUST_USE membank_status membank_send(struct membank *mb,
    const char *op, struct membank_bytes args, uint64_t *ticket,
    struct membank_error *err);
/* The next reply to any ticket; replies come in the order in which the daemon
 * is done. On OK *out is the caller's, and membank_reply_status() says how the
 * request went. timeout_ms 0 does not wait.
 * Errors: TIMEOUT (no reply yet; tickets live on), NOT_FOUND (no request is in
 * flight), NOMEM. */
MEMBANK_API MEMBANK_MUST_USE membank_status membank_poll(struct membank *mb,
    unsigned timeout_ms, struct membank_reply **out, struct membank_error *err);
/* Requests sent whose last reply was not given out yet. */
MEMBANK_API size_t membank_in_flight(const struct membank *mb);
/* A descriptor to wait on (poll, epoll) beside others: when it becomes
 * readable, call membank_poll with timeout 0 until it says TIMEOUT or
 * NOT_FOUND. It signals edges, so do that after each send as well. Never read
 * from it. */
MEMBANK_API int membank_fd(const struct membank *mb);

/* ---- ping, collections ---- */

struct membank_server {
    char version[32]; /* of the daemon */
    uint32_t protocol;
    char model[128];
    double uptime_s;
    uint64_t max_message_bytes; /* of a request; 0: the daemon does not say */
    void *reserved[7];
};

/* out may be NULL. */
MEMBANK_API MEMBANK_MUST_USE membank_status membank_ping(
    struct membank *mb, struct membank_server *out, struct membank_error *err);

typedef enum membank_embedding {
    MEMBANK_EMBED_DEFAULT = 0, /* lsa */
    MEMBANK_EMBED_NONE = 1,    /* lexical search only */
    MEMBANK_EMBED_LSA = 2,     /* made by the daemon from the texts */
    MEMBANK_EMBED_CLIENT = 3   /* vectors come with put and query */
} membank_embedding;

struct membank_create_options {
    const char *language; /* Snowball's name; NULL: "english"; "none" */
    membank_embedding embedding;
    uint32_t dim;               /* needed for client vectors; 0: default */
    bool exist_ok;              /* equal settings: OK instead of EXISTS */
    struct membank_bytes extra; /* a map of further settings, or empty */
    void *reserved[8];
};

/* opt may be NULL. Errors: EXISTS, MISMATCH (exists with other settings). */
MEMBANK_API MEMBANK_MUST_USE membank_status membank_create(struct membank *mb,
    const char *name, const struct membank_create_options *opt,
    struct membank_error *err);
/* Errors: NOT_FOUND. */
MEMBANK_API MEMBANK_MUST_USE membank_status membank_drop(
    struct membank *mb, const char *name, struct membank_error *err);
/* The result has "collections", an array of maps. */
MEMBANK_API MEMBANK_MUST_USE membank_status membank_collections(
    struct membank *mb, struct membank_reply **out, struct membank_error *err);
/* collection may be NULL: the whole daemon. */
MEMBANK_API MEMBANK_MUST_USE membank_status membank_stats(struct membank *mb,
    const char *collection, struct membank_reply **out,
    struct membank_error *err);

/* ---- documents ---- */

typedef enum membank_field_kind {
    MEMBANK_FIELD_STR = 0,
    MEMBANK_FIELD_INT = 1,
    MEMBANK_FIELD_FLOAT = 2,
    MEMBANK_FIELD_BOOL = 3
} membank_field_kind;

/* One key and value of a document's metadata. */
struct membank_field {
    const char *key;
    membank_field_kind kind;

    union {
        const char *s;
        int64_t i;
        double f;
        bool b;
    } value;
};

/* A document to put; everything is borrowed until the call returns. */
struct membank_document {
    const char *id;
    const char *title; /* may be NULL */
    const char *text;
    size_t text_size; /* 0: up to the NUL */
    /* Metadata: one msgpack map, or fields, or neither. */
    struct membank_bytes meta;
    const struct membank_field *fields;
    size_t n_fields;
    const float *vector; /* (dim); client embedding only, else NULL */
    size_t dim;
    void *reserved[4];
};

struct membank_put_options {
    bool wait_searchable;       /* return when search finds them, dense too */
    bool repair_utf8;           /* replace bad bytes instead of BAD_TEXT */
    struct membank_bytes extra; /* a map of further arguments, or empty */
    void *reserved[8];
};

struct membank_put_result {
    uint64_t stored;    /* new documents */
    uint64_t replaced;  /* had other content under the same id */
    uint64_t unchanged; /* had the same content: nothing was written */
    uint64_t segments;  /* written */
    uint64_t reserved[4];
};

/* Store documents; durable when it returns. opt and out may be NULL.
 * Errors: NOT_FOUND (collection), BAD_ARG, BAD_TEXT (with the offset),
 * TOO_LARGE (names the limit), NO_SPACE, MISMATCH (vector's dim). */
MEMBANK_API MEMBANK_MUST_USE membank_status membank_put(struct membank *mb,
    const char *collection, const struct membank_document *docs, size_t n,
    const struct membank_put_options *opt, struct membank_put_result *out,
    struct membank_error *err);

/* What the daemon keeps of a document. */
struct membank_stored {
    const char *id;
    const char *title; /* "" if it has none */
    const char *text;  /* NULL in lists */
    size_t text_size;
    struct membank_bytes meta; /* one msgpack map, or empty */
    uint64_t n_segments;
    uint64_t n_tokens;
    uint64_t text_bytes;
    uint64_t added_ms; /* since 1970, UTC */
};

struct membank_documents;
MEMBANK_API size_t membank_documents_count(const struct membank_documents *d);
/* NULL outside; lives as long as d. */
MEMBANK_API const struct membank_stored *membank_documents_at(
    const struct membank_documents *d, size_t i);
MEMBANK_API void membank_documents_free(struct membank_documents *d);

/* One document with its text. Errors: NOT_FOUND. */
MEMBANK_API MEMBANK_MUST_USE membank_status membank_get(struct membank *mb,
    const char *collection, const char *id, struct membank_documents **out,
    struct membank_error *err);
/* Documents in order of id, those after `after` (NULL: from the start), at
 * most limit (0: the daemon's default), and if filter is not empty only those
 * that match it. Fewer than asked for means the end. */
MEMBANK_API MEMBANK_MUST_USE membank_status membank_list(struct membank *mb,
    const char *collection, const char *after, size_t limit,
    struct membank_bytes filter, struct membank_documents **out,
    struct membank_error *err);
/* By id (ids that are absent are skipped), or by filter. *n_deleted may be
 * NULL. */
MEMBANK_API MEMBANK_MUST_USE membank_status membank_delete(struct membank *mb,
    const char *collection, const char *const *ids, size_t n,
    uint64_t *n_deleted, struct membank_error *err);
MEMBANK_API MEMBANK_MUST_USE membank_status membank_delete_where(
    struct membank *mb, const char *collection, struct membank_bytes filter,
    uint64_t *n_deleted, struct membank_error *err);

/* ---- search ---- */

typedef enum membank_mode {
    MEMBANK_MODE_HYBRID = 0,
    MEMBANK_MODE_DENSE = 1,
    MEMBANK_MODE_LEXICAL = 2
} membank_mode;

struct membank_query_options {
    const char *collection;
    const char *text;    /* or NULL */
    size_t text_size;    /* 0: up to the NUL */
    const float *vector; /* (dim), or NULL */
    size_t dim;
    unsigned k; /* 0: 10 */
    membank_mode mode;
    struct membank_bytes filter; /* a map, or empty */
    /* Names of what hits shall hold; NULL: everything. id, segment and score
     * always come. */
    const char *const *fields;
    size_t n_fields;
    struct membank_bytes extra; /* a map of further arguments, or empty */
    void *reserved[8];
};

struct membank_hit {
    const char *id;   /* of the document */
    uint64_t segment; /* number of the passage in its document */
    double score;     /* what the order is by */
    double dense;     /* NaN if the passage has no vector */
    double lexical;
    uint64_t start; /* bytes of the document's text */
    uint64_t end;
    const char *text; /* of the passage; NULL if not asked for */
    size_t text_size;
    const char *title;         /* NULL if not asked for */
    struct membank_bytes meta; /* one msgpack map, or empty */
};

struct membank_hits;
MEMBANK_API size_t membank_hits_count(const struct membank_hits *hits);
/* Best first. NULL outside; lives as long as hits. */
MEMBANK_API const struct membank_hit *membank_hits_at(
    const struct membank_hits *hits, size_t i);
/* Time that the daemon took, in microseconds. */
MEMBANK_API uint64_t membank_hits_took_us(const struct membank_hits *hits);
MEMBANK_API void membank_hits_free(struct membank_hits *hits);

/* Errors: NOT_FOUND (collection), BAD_ARG (neither text nor vector, filter),
 * MISMATCH (vector's dim), TOO_LARGE (k). */
MEMBANK_API MEMBANK_MUST_USE membank_status membank_query(struct membank *mb,
    const struct membank_query_options *opt, struct membank_hits **out,
    struct membank_error *err);

/* Vectors of texts by a collection's embedding. */
struct membank_vectors;
MEMBANK_API size_t membank_vectors_count(const struct membank_vectors *v);
MEMBANK_API size_t membank_vectors_dim(const struct membank_vectors *v);
/* Row i (dim), NULL outside. All zero: the text says nothing to it. */
MEMBANK_API const float *membank_vectors_row(
    const struct membank_vectors *v, size_t i);
MEMBANK_API void membank_vectors_free(struct membank_vectors *v);

MEMBANK_API MEMBANK_MUST_USE membank_status membank_embed(struct membank *mb,
    const char *collection, const char *const *texts, size_t n,
    struct membank_vectors **out, struct membank_error *err);

#ifdef __cplusplus
}
#endif

#endif
