/* SPDX-License-Identifier: Apache-2.0
 * client/base/mb_base.h - what every other module stands on.
 *
 * Status codes and errors, slices, checked sizes, memory (heap, arena, bounded
 * buffer), UTF-8, hashes, random numbers, log hook, clocks, threads. Nothing
 * here knows LMDB, ZeroMQ, msgpack or a model.
 *
 * Conventions that hold in all of membank:
 * - What can fail returns mb_status; 0 is MB_OK. Results go through
 *   out-parameters, which stay untouched on failure.
 * - `struct mb_error *err` may be NULL. The deepest function that knows the
 *   cause fills it, once.
 * - A mb_slice is borrowed; whoever made it says how long it lives.
 * - Ending halves (_free, _fini, _close, _end) take NULL and cannot fail.
 * Threads: functions are reentrant; objects belong to one thread at a time
 * unless their comment says otherwise. */
#ifndef MB_BASE_H
#define MB_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define MB_MUST_USE         __attribute__((warn_unused_result))
#define MB_PRINTF(fmt, arg) __attribute__((format(printf, fmt, arg)))
#define MB_NORETURN         __attribute__((noreturn))
#else
#define MB_MUST_USE
#define MB_PRINTF(fmt, arg)
#define MB_NORETURN
#endif

/* ---- status ---- */

/* The one table of what can go wrong: number on the wire and in logs, wire
 * name, text for people, and whether the same call may succeed later.
 * Numbers never change and are never reused. */
#define MB_STATUS_TABLE(X)                                                     \
    X(OK, 0, "ok", "success", false)                                           \
    X(ERR_INTERNAL, 1, "internal", "internal error", false)                    \
    X(ERR_NOMEM, 2, "no_memory", "out of memory", true)                        \
    X(ERR_BAD_ARG, 3, "bad_arg", "argument missing or out of range", false)    \
    X(ERR_BAD_MESSAGE, 4, "bad_message", "message is not well formed", false)  \
    X(ERR_BAD_VERSION, 5, "bad_version", "protocol version not spoken", false) \
    X(ERR_UNKNOWN_OP, 6, "unknown_op", "no such operation", false)             \
    X(ERR_NOT_IMPLEMENTED, 7, "not_implemented", "not implemented", false)     \
    X(ERR_NOT_FOUND, 8, "not_found", "not found", false)                       \
    X(ERR_EXISTS, 9, "exists", "exists already", false)                        \
    X(ERR_TOO_LARGE, 10, "too_large", "a limit was passed", false)             \
    X(ERR_BUSY, 11, "busy", "too many requests in flight", true)               \
    X(ERR_TIMEOUT, 12, "timeout", "deadline passed", true)                     \
    X(ERR_SHUTTING_DOWN, 13, "shutting_down", "daemon is ending", true)        \
    X(ERR_IO, 14, "io", "input or output failed", false)                       \
    X(ERR_NO_SPACE, 15, "no_space", "no space left", true)                     \
    X(ERR_READ_ONLY, 16, "read_only", "store is read-only", false)             \
    X(ERR_CORRUPT, 17, "corrupt", "stored bytes are damaged", false)           \
    X(ERR_FORMAT, 18, "format", "file format or version not known", false)     \
    X(ERR_BAD_TEXT, 19, "bad_text", "text is not valid UTF-8", false)          \
    X(ERR_STALE, 20, "stale", "index generation has changed", true)            \
    X(ERR_MISMATCH, 21, "mismatch", "embedding or model differs", false)       \
    X(ERR_LOCKED, 22, "locked", "in use by another process", true)             \
    X(ERR_UNREACHABLE, 23, "unreachable", "no daemon answers", true)           \
    X(ERR_CANCELLED, 24, "cancelled", "cancelled", true)                       \
    X(ERR_DENIED, 25, "denied", "not allowed", false)

typedef enum mb_status {

#define MB_X(name, number, wire, text, retry) MB_##name = (number),
    MB_STATUS_TABLE(MB_X)
#undef MB_X
} mb_status;

/* Wire name ("not_found"), text for people, and whether to try again. Static
 * strings; an unknown number gives those of MB_ERR_INTERNAL. */
const char *mb_status_name(mb_status st);
const char *mb_status_text(mb_status st);
bool mb_status_may_retry(mb_status st);
/* The status with this wire name, MB_ERR_INTERNAL if there is none. */
mb_status mb_status_from_name(const char *name);

#define MB_ERROR_TEXT 320

/* The cause of a failure: lower case, no full stop, the thing and figures. */
struct mb_error {
    mb_status status;
    char text[MB_ERROR_TEXT]; /* NUL-terminated, cut at a UTF-8 boundary */
};

/* Write the cause (err may be NULL) and return st, so that one can say
 * `return mb_error_set(err, MB_ERR_IO, "open %s: %s", path, why);`. */
mb_status mb_error_set(struct mb_error *err, mb_status st, const char *fmt, ...)
    MB_PRINTF(3, 4);

/* End the process after a line on stderr; for broken invariants of our own. */
MB_NORETURN void mb_panic(const char *file, int line, const char *what);
#define MB_ASSERT(cond) ((cond) ? (void)0 : mb_panic(__FILE__, __LINE__, #cond))

/* ---- slices and sizes ---- */

/* Borrowed bytes; data may be NULL only if size is 0. */
struct mb_slice {
    const uint8_t *data;
    size_t size;
};

struct mb_slice mb_slice_of(const void *data, size_t size);
struct mb_slice mb_slice_cstr(const char *s);
bool mb_slice_equal(struct mb_slice a, struct mb_slice b);
/* Order of memcmp, shorter first on a tie. */
int mb_slice_compare(struct mb_slice a, struct mb_slice b);

/* A segment of a document: bytes [start, end) of its text, and its size in
 * tokens of the store's tokenizer. */
struct mb_span {
    uint32_t start;
    uint32_t end;
    uint32_t n_tokens;
};

/* a + b and a * b; false on overflow, *out untouched then. */
MB_MUST_USE bool mb_size_add(size_t a, size_t b, size_t *out);
MB_MUST_USE bool mb_size_mul(size_t a, size_t b, size_t *out);

/* Little-endian and big-endian fields in byte strings, any alignment. The two
 * that stand in every search's inner loops are inline. */
static inline uint16_t
mb_get_le16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t
mb_get_le32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
           (uint32_t)p[3] << 24;
}

void mb_put_le16(uint8_t *p, uint16_t v);
void mb_put_le32(uint8_t *p, uint32_t v);
void mb_put_le64(uint8_t *p, uint64_t v);
uint64_t mb_get_le64(const uint8_t *p);
void mb_put_be32(uint8_t *p, uint32_t v);
void mb_put_be64(uint8_t *p, uint64_t v);
uint32_t mb_get_be32(const uint8_t *p);
uint64_t mb_get_be64(const uint8_t *p);
void mb_put_lef32(uint8_t *p, float v);
float mb_get_lef32(const uint8_t *p);

/* IEEE 754 binary16. To float is exact; from float rounds to nearest, ties to
 * even, to infinity past the largest; NaN stays NaN. */
float mb_half_to_float(uint16_t h);
uint16_t mb_half_from_float(float f);
/* Whether this CPU converts binary16 itself (F16C of x86-64). */
bool mb_cpu_has_f16c(void);

#define MB_VARINT_MAX 10
/* LEB128: writes at most MB_VARINT_MAX bytes, returns how many. */
size_t mb_put_varint(uint8_t *p, uint64_t v);
/* Reads one number from [*pos, size); advances *pos; false if it is cut or too
 * long (*pos untouched). */
MB_MUST_USE bool mb_get_varint(
    const uint8_t *p, size_t size, size_t *pos, uint64_t *out);

/* ---- memory ---- */

/* malloc and friends; NULL when memory is short. mb_free takes NULL. */
void *mb_alloc(size_t size);
void *mb_calloc(size_t count, size_t size);
void *mb_realloc(void *p, size_t size);
void mb_free(void *p);
/* Copy of n bytes and a NUL after them. */
char *mb_strndup(const char *s, size_t n);
/* Tests only: the n-th allocation from now on (1 = the next) and all after it
 * fail in this process; 0 switches that off. */
void mb_alloc_fail_after(uint64_t n);

/* Memory that is given back all at once. One thread at a time. */
struct mb_arena;
/* max_bytes bounds what it may hold in all; NULL when memory is short. */
struct mb_arena *mb_arena_new(size_t max_bytes);
void mb_arena_free(struct mb_arena *arena);
/* Forget everything, keep the first chunk. */
void mb_arena_reset(struct mb_arena *arena);
/* size bytes aligned to 16, not cleared; NULL past the maximum or when memory
 * is short. They live until reset or free. */
void *mb_arena_alloc(struct mb_arena *arena, size_t size);
void *mb_arena_calloc(struct mb_arena *arena, size_t count, size_t size);
/* Copies of bytes; the second adds a NUL. */
void *mb_arena_dup(struct mb_arena *arena, const void *data, size_t size);
char *mb_arena_strndup(struct mb_arena *arena, const char *s, size_t n);
/* Handed out, and what may still be: each allocation counts rounded up to 16. */
size_t mb_arena_bytes(const struct mb_arena *arena);
size_t mb_arena_room(const struct mb_arena *arena);

/* Growing bytes with a maximum. Fields may be read; data moves on growth. */
struct mb_buffer {
    uint8_t *data;
    size_t size;
    size_t capacity;
    size_t max;
};

void mb_buffer_init(struct mb_buffer *buf, size_t max_bytes);
void mb_buffer_fini(struct mb_buffer *buf);
void mb_buffer_clear(struct mb_buffer *buf);
/* Room for `more` bytes after size. Errors: TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status mb_buffer_reserve(struct mb_buffer *buf, size_t more);
MB_MUST_USE mb_status mb_buffer_append(
    struct mb_buffer *buf, const void *data, size_t size);
MB_MUST_USE mb_status mb_buffer_append_str(
    struct mb_buffer *buf, const char *s);
MB_MUST_USE mb_status mb_buffer_printf(
    struct mb_buffer *buf, const char *fmt, ...) MB_PRINTF(2, 3);
struct mb_slice mb_buffer_slice(const struct mb_buffer *buf);

/* ---- UTF-8 ---- */

/* True if valid (no surrogates, no overlong forms, at most U+10FFFF); else
 * *offset is the first bad byte. Offset may be NULL. */
bool mb_utf8_is_valid(struct mb_slice text, size_t *offset);
/* Append text with every bad sequence replaced by U+FFFD (one for each maximal
 * ill-formed subpart). Errors: those of mb_buffer_reserve. */
MB_MUST_USE mb_status mb_utf8_repair(
    struct mb_slice text, struct mb_buffer *out);

/* ---- hashes and random numbers ---- */

/* XXH3: 64 and 128 bits. Stable over versions: the store keeps them. */
uint64_t mb_hash64(const void *data, size_t size, uint64_t seed);
void mb_hash128(const void *data, size_t size, uint8_t out[16]);

/* xoshiro256** from a seed; same seed, same numbers, everywhere. */
struct mb_rng {
    uint64_t s[4];
};

void mb_rng_init(struct mb_rng *rng, uint64_t seed);
uint64_t mb_rng_u64(struct mb_rng *rng);
/* In [0, n), n > 0, without modulo bias. */
uint64_t mb_rng_below(struct mb_rng *rng, uint64_t n);
/* In [0, 1). */
double mb_rng_double(struct mb_rng *rng);
/* Standard normal. */
double mb_rng_normal(struct mb_rng *rng);

/* ---- log ---- */

typedef enum mb_log_level {
    MB_LOG_ERR = 0,  /* someone must act */
    MB_LOG_WARN = 1, /* odd, we go on */
    MB_LOG_INFO = 2, /* life cycle */
    MB_LOG_DEBUG = 3
} mb_log_level;

/* Gets one event: `ev` is a stable name ("store.open"), `fields` is logfmt
 * ("path=/x ms=3"), without time, level and thread. Called from any thread. */
typedef void (*mb_log_fn)(
    void *arg, mb_log_level level, const char *ev, const char *fields);

/* Silent until set; set once before threads start. NULL silences again. */
void mb_log_set_hook(mb_log_fn fn, void *arg, mb_log_level max_level);
/* Change the level while other threads log; no effect without a hook. */
void mb_log_set_level(mb_log_level max_level);
bool mb_log_is_on(mb_log_level level);
void mb_log(mb_log_level level, const char *ev, const char *fmt, ...)
    MB_PRINTF(3, 4);
/* Append `s` as a logfmt value, quoted and escaped if it needs that. */
MB_MUST_USE mb_status mb_log_quote(struct mb_buffer *out, struct mb_slice s);

/* ---- clocks ---- */

uint64_t mb_clock_ns(void);      /* monotonic */
uint64_t mb_clock_wall_ms(void); /* since 1970, UTC */
uint64_t mb_clock_cpu_ns(void);  /* CPU time of this process, all threads */

/* ---- threads ---- */

/* A named thread (at most 15 bytes of name). Errors: NOMEM, INTERNAL. */
struct mb_thread;
MB_MUST_USE mb_status mb_thread_start(
    struct mb_thread **out, const char *name, void (*fn)(void *arg), void *arg);
/* Waits for its end and frees it; takes NULL. */
void mb_thread_join(struct mb_thread *thread);
/* Lowest CPU and I/O priority for the calling thread, if the system lets us. */
void mb_thread_set_background(void);
/* The same with a CPU priority as nice(1) has it, 0 to 19; a thread that has a
 * lower one keeps that. */
void mb_thread_set_nice(int nice);
const char *mb_thread_name(void); /* of the caller; static or thread storage */
unsigned mb_cpu_count(void);      /* that this process may use, at least 1 */
uint64_t mb_process_rss_bytes(void); /* anonymous resident memory, maps aside */

/* Workers that sleep on a bounded queue. Submit and free from any thread. */
struct mb_pool;
typedef void (*mb_task_fn)(void *arg);

MB_MUST_USE mb_status mb_pool_new(struct mb_pool **out, const char *name,
    unsigned n_threads, size_t max_queued);
/* Runs all queued tasks, then ends the workers. */
void mb_pool_free(struct mb_pool *pool);
/* Errors: BUSY when the queue is full. Never blocks. */
MB_MUST_USE mb_status mb_pool_submit(
    struct mb_pool *pool, mb_task_fn fn, void *arg);
/* fn(arg, i) for i in [0, n), on the workers and the caller; returns when all
 * are done. pool may be NULL: the caller does all. Not from inside a task of
 * the same pool. */
void mb_pool_for(
    struct mb_pool *pool, size_t n, void (*fn)(void *arg, size_t i), void *arg);

#endif
