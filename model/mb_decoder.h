/* SPDX-License-Identifier: Apache-2.0
 * model/mb_decoder.h - the transformer: a GGUF model, its cache, its passes.
 *
 * Decoder-only models of the `llama`, `qwen2` and `qwen3` architectures. The
 * weights stay in the file's map. A sequence is a text that the model has read
 * so far: its keys and values lie in blocks of MB_BLOCK_ROWS rows that a cache
 * lends. A pass takes rows of several sequences through all layers at once.
 *
 * Life: mb_gguf_open -> mb_decoder_open -> mb_cache_new, mb_pass_new ->
 * mb_sequence_new -> mb_pass_run ... -> free in the opposite order.
 *
 * The numbers that a row gets depend on its own sequence and on its kind
 * (MB_ROWS_PREFILL or MB_ROWS_DECODE) alone, bit for bit: not on what else is
 * in the pass, on how a text is cut into passes, or on the number of threads.
 * The two kinds differ by rounding, as their sums run in another order. Where
 * weights are quantised both round activations to int16. Of rows of both kinds,
 * logits are made the way of decoding and nll the way of prefill. Another CPU
 * level rounds otherwise. A model whose weights make NaN may spoil rows of the
 * same sequence with it.
 *
 * Threads: decoders are immutable and shared. A cache with its sequences and
 * its passes belongs to one thread at a time. */
#ifndef MB_DECODER_H
#define MB_DECODER_H

#include "mb_bank.h"

/* ---- decoder ---- */

struct mb_decoder;

struct mb_decoder_info {
    char arch[16];    /* "llama", "qwen2", "qwen3" */
    char name[64];    /* general.name, cut; empty if the file has none */
    char weights[16]; /* type that most weight bytes have: "Q8_0" */
    size_t n_layers;
    size_t d_model; /* width of a row */
    size_t n_heads;
    size_t n_kv_heads;
    size_t head_dim;
    size_t d_ff;
    size_t n_vocab;
    size_t n_ctx; /* rows that it was trained for */
    uint64_t n_params;
    uint64_t weight_bytes; /* of all tensors, in the map */
    uint64_t decode_bytes; /* read for one row: all but the embedding table */
};

/* Reads hyperparameters and finds every tensor; gguf is borrowed and must
 * outlive the decoder. Errors: NOT_IMPLEMENTED (another architecture, tensor
 * type, RoPE scaling, or a tensor that this architecture does not know: by
 * name), NOT_FOUND (a key or tensor is missing), CORRUPT (a shape that does not
 * fit), NOMEM. */
MB_MUST_USE mb_status mb_decoder_open(
    const struct mb_gguf *gguf, struct mb_decoder **out, struct mb_error *err);
void mb_decoder_close(struct mb_decoder *decoder);
const struct mb_decoder_info *mb_decoder_info(const struct mb_decoder *decoder);

/* ---- cache and sequences ---- */

typedef enum mb_cache_type {
    MB_CACHE_F16 = 0,
    MB_CACHE_Q8_0 = 1, /* int8, a scale a row and head */
    MB_CACHE_F32 = 2   /* for tests and reference figures */
} mb_cache_type;

struct mb_cache;
struct mb_sequence;
struct mb_context;

/* A cache that lends at most max_rows rows (rounded up to whole blocks). Memory
 * is taken as blocks are first used and kept for the next sequence.
 * Errors: BAD_ARG, NOMEM. */
MB_MUST_USE mb_status mb_cache_new(const struct mb_decoder *decoder,
    mb_cache_type type, size_t max_rows, struct mb_cache **out,
    struct mb_error *err);
/* All its sequences must be freed before. */
void mb_cache_free(struct mb_cache *cache);
/* Bytes of one block; blocks that exist, are lent, and may exist at most. */
size_t mb_cache_block_bytes(const struct mb_cache *cache);
size_t mb_cache_n_blocks(const struct mb_cache *cache);
size_t mb_cache_n_used(const struct mb_cache *cache);
size_t mb_cache_max_blocks(const struct mb_cache *cache);

/* An empty sequence. */
MB_MUST_USE mb_status mb_sequence_new(
    struct mb_cache *cache, struct mb_sequence **out, struct mb_error *err);
void mb_sequence_free(struct mb_sequence *seq);
/* Rows read so far. */
size_t mb_sequence_length(const struct mb_sequence *seq);
/* Forget all rows from n on; n may not be more than there are. */
void mb_sequence_truncate(struct mb_sequence *seq, size_t n);

/* ---- passes ---- */

typedef enum mb_rows_kind {
    MB_ROWS_PREFILL = 0, /* many rows of a text: bound by arithmetic */
    MB_ROWS_DECODE = 1   /* one row, or a few: bound by reading weights */
} mb_rows_kind;

/* Rows to append to one sequence, or tokens to one context (mb_context.h), and
 * what is wanted of them. Pointers belong to the caller. A sequence or context
 * may stand in a pass once. Landmarks that a context inserts are rows of the
 * pass, but of no array here. */
struct mb_rows {
    struct mb_sequence *seq;
    struct mb_context *context; /* instead of seq, which is NULL then */
    const mb_token_id *tokens;  /* (n) */
    size_t n;
    mb_rows_kind kind;
    float *logits;              /* (n_vocab) of the last row, or NULL */
    const mb_token_id *targets; /* (n) what follows each row; -1: no matter */
    float *nll;                 /* (n) -log p(target) in nats; 0 where -1 */
    float *hidden;              /* (n, d_model) after the last norm, or NULL */
    /* Memory blocks that these rows go through, or NULL; records are read in
     * place and must stay as they are until the pass ends. */
    const struct mb_bank_path *bank;
};

struct mb_pass;

/* Room and threads to run passes of at most max_rows rows with, on n_threads
 * threads, the caller's included (0: one for each CPU). Errors: NOMEM,
 * BAD_ARG. */
MB_MUST_USE mb_status mb_pass_new(const struct mb_decoder *decoder,
    size_t max_rows, unsigned n_threads, struct mb_pass **out,
    struct mb_error *err);
void mb_pass_free(struct mb_pass *pass);
size_t mb_pass_bytes(const struct mb_pass *pass);

/* Take all rows through the model and append them to their sequences. On
 * failure no sequence has changed. Errors: BAD_ARG (a token out of range, no
 * rows, a memory block of another shape), TOO_LARGE (more than max_rows rows, or
 * more than the cache lends: the text says which), NOMEM. */
MB_MUST_USE mb_status mb_pass_run(struct mb_pass *pass,
    const struct mb_rows *items, size_t n_items, struct mb_error *err);

#endif
