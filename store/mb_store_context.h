/* SPDX-License-Identifier: Apache-2.0
 * store/mb_store_context.h - long contexts on disk.
 *
 * A context is a text that a model has read, kept as blocks. The small half of
 * a block (token ids, landmark keys, now and then the memory of a segment) is
 * read again when the context is opened; the large one (keys and values) one
 * block at a time, when it is wanted. Blocks come by whole segments. What lies
 * behind the last whole segment, the window, is kept as blocks too, its last
 * one partly filled: the tail.
 *
 *   mb_op_context_create_new        an empty context with a name
 *   mb_op_context_append_new        the blocks of a segment, in one commit
 *   mb_op_context_fork_new          another context with the same beginning
 *   mb_op_context_cut_new           forget what comes after a segment
 *   mb_op_context_delete_new        leave nothing of it in the file
 *
 * What a block holds is the model's affair; here bytes are kept, counted and
 * checked. A context belongs to the weights that made its blocks: whoever reads
 * it compares the fingerprint first.
 *
 * A fork shares the blocks of its origin: blocks never change, so both name the
 * same rows, and rows go when no context names them any more. A fork costs one
 * small record however long the context is, and a shared beginning is on disk
 * once.
 * Threads: as mb_store.h says for snapshots and operations. */
#ifndef MB_STORE_CONTEXT_H
#define MB_STORE_CONTEXT_H

#include "mb_store.h"

#define MB_MAX_CONTEXT_NAME     128   /* bytes */
#define MB_MAX_CONTEXT_SETTINGS 16384 /* bytes */
#define MB_MAX_CONTEXT_RUNS     4000  /* strips that a context is joined from */
#define MB_MAX_CONTEXT_TAIL     64    /* blocks */
#define MB_MAX_CONTEXT_PICKS    40000u /* of a trace */
#define MB_CONTEXT_NO_TOKEN     (-1)

/* What all blocks of a context have in common. */
struct mb_stored_shape {
    uint8_t fingerprint[16]; /* of the weights */
    uint32_t block_tokens;   /* tokens of a block: all blocks are full */
    uint32_t n_layers;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t kv_type;    /* 0 f16, 1 int8, 2 f32 */
    uint32_t memory_dim; /* of a segment's memory; 0: it has none */
    uint32_t kv_bytes;   /* of a block's keys and values */
};

/* Blocks [first, end) of a context lie in this strip under their numbers. */
struct mb_stored_run {
    uint64_t strip;
    uint32_t first;
    uint32_t end;
};

struct mb_stored_context {
    uint64_t id;
    char name[MB_MAX_CONTEXT_NAME + 1];
    struct mb_stored_shape shape;
    uint64_t epoch; /* grows with each change of its text */
    uint64_t created_ms;
    uint64_t used_ms;     /* opened or changed; to the minute */
    uint64_t changed_ms;  /* its text */
    uint64_t quota;       /* bytes; 0: none of its own */
    uint64_t bytes;       /* of its blocks, shared ones too */
    uint64_t parent;      /* id of the context it was forked from; 0: none */
    uint64_t fork_tokens; /* where */
    uint64_t n_tokens;    /* of blocks and tail, and the carried one */
    uint32_t n_blocks;
    uint32_t n_segments;
    uint32_t n_tail;      /* tokens of the tail's blocks */
    uint32_t tail_blocks; /* of the tail */
    int32_t carry; /* a last token that is in no block yet, or _NO_TOKEN */
    struct mb_slice settings;         /* the caller's own, kept as it is */
    const struct mb_stored_run *runs; /* (n_runs) in order, without gaps */
    size_t n_runs;
};

/* The small half of a block: views, not aligned. */
struct mb_stored_sum {
    uint32_t block;   /* its number in the context */
    uint32_t segment; /* number of the segment it belongs to */
    bool ends_segment;
    struct mb_slice sum;    /* the model's record */
    struct mb_slice memory; /* of the segment, with its last block; or empty */
};

/* What was retrieved over the last generation, for who looks. */
struct mb_stored_pick {
    uint32_t step;
    uint32_t block;
    uint32_t count; /* how often any layer, row and head chose it */
};

struct mb_stored_trace {
    uint32_t n_tokens;                  /* that were generated */
    uint32_t step_tokens;               /* of a step */
    const struct mb_stored_pick *picks; /* (n) */
    size_t n;
};

/* ---- reading ---- */

/* By name; settings and runs lie in arena. Errors: NOT_FOUND, CORRUPT. */
MB_MUST_USE mb_status mb_store_context_get(struct mb_snapshot *snap,
    struct mb_slice name, struct mb_arena *arena, struct mb_stored_context *out,
    struct mb_error *err);
/* All, by name; everything in arena. */
MB_MUST_USE mb_status mb_store_context_list(struct mb_snapshot *snap,
    struct mb_arena *arena, struct mb_stored_context **out, size_t *n,
    struct mb_error *err);
/* Bytes of all blocks, shared ones once; and how many contexts there are. */
MB_MUST_USE mb_status mb_store_context_total(struct mb_snapshot *snap,
    uint64_t *bytes, uint64_t *n, struct mb_error *err);
/* May ctx get `more` bytes of blocks, where all contexts have `total` and may
 * have max_total (0: no limit)? Errors: TOO_LARGE (its quota or max_total: the
 * text names it and what can be done). */
MB_MUST_USE mb_status mb_store_context_room(const struct mb_stored_context *ctx,
    uint64_t total, uint64_t more, uint64_t max_total, struct mb_error *err);

/* Stops the walk unless it is OK. Views end with the call. */
typedef mb_status (*mb_stored_sum_fn)(
    void *arg, const struct mb_stored_sum *sum);

/* fn for each block from number `from` on, in order; checksums are compared.
 * Errors: NOT_FOUND (from is past the end, and not the end), CORRUPT (a block
 * is missing or damaged), fn's. */
MB_MUST_USE mb_status mb_store_context_scan(struct mb_snapshot *snap,
    const struct mb_stored_context *ctx, uint32_t from, mb_stored_sum_fn fn,
    void *arg, struct mb_error *err);
/* Keys and values of one block, kv_bytes, 16-aligned: a view until the
 * snapshot's end. Its checksum is not looked at. Errors: NOT_FOUND (no such
 * block, or its context was cut or deleted), CORRUPT. */
MB_MUST_USE mb_status mb_store_context_kv(struct mb_snapshot *snap,
    const struct mb_stored_context *ctx, uint32_t block, struct mb_slice *out,
    struct mb_error *err);
/* A block of the tail, by its place in it: views, the keys and values 16-aligned.
 * Errors: NOT_FOUND, CORRUPT (checksum, too). */
MB_MUST_USE mb_status mb_store_context_tail(struct mb_snapshot *snap,
    const struct mb_stored_context *ctx, uint32_t i, struct mb_slice *kv,
    struct mb_slice *sum, struct mb_error *err);
/* Of one block, for who looks. Errors: NOT_FOUND, CORRUPT. */
MB_MUST_USE mb_status mb_store_context_sum(struct mb_snapshot *snap,
    const struct mb_stored_context *ctx, uint32_t block,
    struct mb_stored_sum *out, struct mb_error *err);
/* What mb_op_context_trace_new kept, in arena; n is 0 if nothing. Errors:
 * CORRUPT, NOMEM. */
MB_MUST_USE mb_status mb_store_context_trace(struct mb_snapshot *snap,
    const struct mb_stored_context *ctx, struct mb_arena *arena,
    struct mb_stored_trace *out, struct mb_error *err);

/* ---- writing ---- */

/* Errors: BAD_ARG, BAD_TEXT (name), TOO_LARGE; on apply EXISTS. */
MB_MUST_USE mb_status mb_op_context_create_new(struct mb_slice name,
    const struct mb_stored_shape *shape, struct mb_slice settings,
    uint64_t quota, struct mb_op **out, struct mb_error *err);

/* A block to append; everything is copied. */
struct mb_stored_block {
    struct mb_slice sum;
    struct mb_slice kv;     /* (kv_bytes) */
    struct mb_slice memory; /* of the segment that the block ends; or empty */
};

/* The tail as it is to be: blocks before `first` are those that are there
 * already (it has as many), then come n more, and no others. */
struct mb_stored_tail {
    uint32_t first;
    const struct mb_slice *kv;  /* (n) of kv_bytes each */
    const struct mb_slice *sum; /* (n) */
    uint32_t n;
    uint32_t n_tokens; /* of all its blocks */
    int32_t carry;
};

struct mb_stored_append {
    const struct mb_stored_context *ctx;  /* as it was when last read */
    const struct mb_stored_block *blocks; /* (n) one segment; n may be 0 */
    size_t n;
    const struct mb_stored_tail
        *tail;          /* NULL: with n > 0 no tail, else as is */
    uint64_t max_total; /* bytes of all contexts; 0: no limit */
};

/* All or nothing, in one commit. Errors: BAD_ARG (sizes that are not those of
 * the shape), TOO_LARGE, NOMEM; on apply NOT_FOUND (deleted), STALE (it is not
 * in the state `ctx` any more), TOO_LARGE (a quota: the text names it and what
 * can be done). */
MB_MUST_USE mb_status mb_op_context_append_new(
    const struct mb_stored_append *a, struct mb_op **out, struct mb_error *err);
/* What ctx will be once this operation is applied: for who goes on before that.
 * out->runs are not those. */
void mb_op_context_append_expect(
    const struct mb_op *op, struct mb_stored_context *out);

/* The first n_blocks of ctx (the end of a segment) and a tail, all of it given,
 * as a new context `name`. quota NULL: as ctx has it. Errors: BAD_ARG, BAD_TEXT;
 * on apply NOT_FOUND, EXISTS, STALE, BAD_ARG (no end of a segment). */
MB_MUST_USE mb_status mb_op_context_fork_new(
    const struct mb_stored_context *ctx, struct mb_slice name,
    uint32_t n_blocks, const struct mb_stored_tail *tail, const uint64_t *quota,
    struct mb_op **out, struct mb_error *err);
/* The same of ctx itself: forget all other blocks. Errors: on apply NOT_FOUND,
 * STALE, BAD_ARG. */
MB_MUST_USE mb_status mb_op_context_cut_new(const struct mb_stored_context *ctx,
    uint32_t n_blocks, const struct mb_stored_tail *tail, struct mb_op **out,
    struct mb_error *err);
/* Gone at once; rows that no other context needs are erased in slices between
 * other operations and overwritten in the file. Errors: on apply NOT_FOUND. */
MB_MUST_USE mb_status mb_op_context_delete_new(
    struct mb_slice name, struct mb_op **out, struct mb_error *err);
/* Say that it is used now; and change its quota unless that is NULL.
 * Errors: on apply NOT_FOUND. */
MB_MUST_USE mb_status mb_op_context_touch_new(struct mb_slice name,
    const uint64_t *quota, struct mb_op **out, struct mb_error *err);
/* Keep a copy of what was retrieved, in the place of what was kept before; n 0:
 * take that away. It goes when the context is cut or deleted.
 * Errors: TOO_LARGE, NOMEM; on apply NOT_FOUND. */
MB_MUST_USE mb_status mb_op_context_trace_new(struct mb_slice name,
    const struct mb_stored_trace *trace, struct mb_op **out,
    struct mb_error *err);
/* The context as an operation that was applied left it (not delete). Valid as
 * long as op. */
const struct mb_stored_context *mb_op_context_result(const struct mb_op *op);

#endif
