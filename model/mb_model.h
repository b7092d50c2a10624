/* SPDX-License-Identifier: Apache-2.0
 * model/mb_model.h - model files, tokenizer, segments, and the LSA embedding.
 *
 * The model side of membank knows nothing of the store. Here are: GGUF files
 * (metadata and tensor table), the `llama` (SentencePiece) or `gpt2`
 * (byte-level BPE) tokenizer they carry, the cutting of text into segments of
 * at most MB_SEGMENT_TOKENS tokens, and latent semantic analysis, the built-in
 * embedding.
 *
 * Life: mb_gguf_open -> mb_tokenizer_new -> encode, decode, segment -> free.
 * Threads: gguf, tokenizer and lsa objects are immutable once made and may be
 * shared; a mb_token_cache belongs to one thread. */
#ifndef MB_MODEL_H
#define MB_MODEL_H

#include "mb_base.h"

/* ---- GGUF ---- */

typedef enum mb_gguf_type {
    MB_GGUF_U8 = 0,
    MB_GGUF_I8 = 1,
    MB_GGUF_U16 = 2,
    MB_GGUF_I16 = 3,
    MB_GGUF_U32 = 4,
    MB_GGUF_I32 = 5,
    MB_GGUF_F32 = 6,
    MB_GGUF_BOOL = 7,
    MB_GGUF_STRING = 8,
    MB_GGUF_ARRAY = 9,
    MB_GGUF_U64 = 10,
    MB_GGUF_I64 = 11,
    MB_GGUF_F64 = 12
} mb_gguf_type;

/* A mapped file. All names and values are views of the map. */
struct mb_gguf;

struct mb_gguf_tensor {
    struct mb_slice name;
    uint32_t n_dims;
    uint64_t dims[4];      /* fastest first, 1 where unused */
    uint32_t type;         /* ggml type number: 0 F32, 1 F16, 8 Q8_0, ... */
    const char *type_name; /* static; "?" for a number not known */
    struct mb_slice data;  /* in the map; size checked against dims and type */
};

/* Map and check a whole file: magic, version 3, every length and offset.
 * Errors: IO, FORMAT (not GGUF, another version), CORRUPT (with offset),
 * TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status mb_gguf_open(
    const char *path, struct mb_gguf **out, struct mb_error *err);
/* The same over bytes in memory, which must outlive the object. */
MB_MUST_USE mb_status mb_gguf_open_memory(
    struct mb_slice bytes, struct mb_gguf **out, struct mb_error *err);
void mb_gguf_close(struct mb_gguf *gguf);

size_t mb_gguf_n_keys(const struct mb_gguf *gguf);
struct mb_slice mb_gguf_key(const struct mb_gguf *gguf, size_t i);
/* Typed metadata. Errors: NOT_FOUND, BAD_ARG (other type; err names both). */
MB_MUST_USE mb_status mb_gguf_str(const struct mb_gguf *gguf, const char *key,
    struct mb_slice *out, struct mb_error *err);
/* Any integer type that fits. */
MB_MUST_USE mb_status mb_gguf_u64(const struct mb_gguf *gguf, const char *key,
    uint64_t *out, struct mb_error *err);
MB_MUST_USE mb_status mb_gguf_f64(const struct mb_gguf *gguf, const char *key,
    double *out, struct mb_error *err);
MB_MUST_USE mb_status mb_gguf_bool(const struct mb_gguf *gguf, const char *key,
    bool *out, struct mb_error *err);
/* Array of numbers: view of n elements of `type`, unaligned little-endian. */
MB_MUST_USE mb_status mb_gguf_array(const struct mb_gguf *gguf, const char *key,
    mb_gguf_type type, struct mb_slice *out, uint64_t *n, struct mb_error *err);
/* Array of strings: fills out[0..n), views; *n is the count. out may be NULL
 * to ask for the count alone. Errors: also TOO_LARGE if more than max. */
MB_MUST_USE mb_status mb_gguf_strings(const struct mb_gguf *gguf,
    const char *key, struct mb_slice *out, size_t max, size_t *n,
    struct mb_error *err);
size_t mb_gguf_n_tensors(const struct mb_gguf *gguf);
const struct mb_gguf_tensor *mb_gguf_tensor(
    const struct mb_gguf *gguf, size_t i);
const struct mb_gguf_tensor *mb_gguf_find_tensor(
    const struct mb_gguf *gguf, const char *name);
/* XXH3-128 of the whole file, made at first call: the model's fingerprint. */
void mb_gguf_fingerprint(struct mb_gguf *gguf, uint8_t out[16]);

/* ---- tokenizer ---- */

typedef int32_t mb_token_id;

/* What closes a block in a model that was trained with landmarks. */
#define MB_LANDMARK_PIECE "<landmark>"

/* One token and the bytes of the text it stands for. */
struct mb_token {
    mb_token_id id;
    uint32_t start; /* byte offset into the text */
    uint32_t size;  /* 0 for the space that the tokenizer puts in front */
};

struct mb_tokenizer;
/* Words seen before and their tokens: makes encoding several times faster.
 * Bounded; one thread. */
struct mb_token_cache;

/* From tokenizer.ggml.* of a file: SentencePiece BPE ("llama") or byte-level
 * BPE ("gpt2"). Copies what it needs, the file may be closed after.
 * Errors: NOT_IMPLEMENTED (another model, or another pre-tokenizer: by name),
 * CORRUPT, NOT_FOUND (key), TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status mb_tokenizer_new(const struct mb_gguf *gguf,
    struct mb_tokenizer **out, struct mb_error *err);
void mb_tokenizer_free(struct mb_tokenizer *tok);
size_t mb_tokenizer_n_vocab(const struct mb_tokenizer *tok);
/* XXH3-128 over model name, flags, pieces, scores and types, and merges. */
void mb_tokenizer_fingerprint(const struct mb_tokenizer *tok, uint8_t out[16]);
/* -1 if the vocabulary has none. */
mb_token_id mb_tokenizer_bos(const struct mb_tokenizer *tok);
mb_token_id mb_tokenizer_eos(const struct mb_tokenizer *tok);
/* Does the file want bos before, eos after what the model reads? */
bool mb_tokenizer_adds_bos(const struct mb_tokenizer *tok);
bool mb_tokenizer_adds_eos(const struct mb_tokenizer *tok);
/* The *n tokens that end a generation (eos, end of turn, ...), in order; a view
 * that lives as long as the tokenizer. NULL if there are none. */
const mb_token_id *mb_tokenizer_ends(const struct mb_tokenizer *tok, size_t *n);
/* The raw piece ("\xe2\x96\x81the", "<0x0A>"); a view that lives as long as
 * the tokenizer. Empty slice for an id out of range. */
struct mb_slice mb_tokenizer_piece(
    const struct mb_tokenizer *tok, mb_token_id id);
/* The first token whose raw piece this is; -1 if none has it. Looks at all. */
mb_token_id mb_tokenizer_find(
    const struct mb_tokenizer *tok, const char *piece);

MB_MUST_USE mb_status mb_token_cache_new(struct mb_token_cache **out);
void mb_token_cache_free(struct mb_token_cache *cache);

/* Tokens of text (valid UTF-8, at most UINT32_MAX bytes), no bos or eos, text
 * that looks like a control token is plain text. Appends `struct mb_token`s to
 * out (element type mb_token). cache may be NULL. Errors: TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status mb_tokenizer_encode(const struct mb_tokenizer *tok,
    struct mb_token_cache *cache, struct mb_slice text, struct mb_buffer *out,
    struct mb_error *err);
#define MB_PROMPT_SPECIAL 1u /* names of control tokens are these tokens */
#define MB_PROMPT_ENDS    2u /* with bos and eos, where the file wants them */

/* What a model is to read. Pointers belong to the caller. */
struct mb_prompt {
    struct mb_slice text;
    unsigned flags;
    /* Stretches of text that are plain in spite of MB_PROMPT_SPECIAL: what a
     * user wrote into a template. In order, without overlap. */
    const struct mb_span *plain; /* (n_plain) */
    size_t n_plain;
};

/* Ids of a prompt: as encode, with what the flags ask for. Appends
 * mb_token_id's to out. Errors: TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status mb_tokenizer_encode_prompt(const struct mb_tokenizer *tok,
    struct mb_token_cache *cache, const struct mb_prompt *prompt,
    struct mb_buffer *out, struct mb_error *err);
/* Bytes of n tokens, appended to out. decode(encode(text)) == text for every
 * valid UTF-8 text (the space in front is taken away again), but for bytes that
 * a gpt2 vocabulary has no token for: encode leaves those out.
 * Errors: BAD_ARG (id out of range), TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status mb_tokenizer_decode(const struct mb_tokenizer *tok,
    const mb_token_id *ids, size_t n, struct mb_buffer *out,
    struct mb_error *err);

/* ---- segments ---- */

#define MB_BLOCK_ROWS     64
#define MB_SEGMENT_TOKENS 252 /* 4 blocks of 63 tokens */

/* Cut text into segments of at most MB_SEGMENT_TOKENS tokens: in the last
 * third of a segment a paragraph's end is preferred, then a line's, a
 * sentence's, a word's; never inside a UTF-8 sequence. A short rest is
 * balanced with the segment before it. Appends `struct mb_span`s to out: they
 * follow one another without gap or overlap and cover the text whole, each has
 * 1..MB_SEGMENT_TOKENS tokens; an empty text gives one empty span of none.
 * Errors: those of encode. */
MB_MUST_USE mb_status mb_segment_text(const struct mb_tokenizer *tok,
    struct mb_token_cache *cache, struct mb_slice text, struct mb_buffer *out,
    struct mb_error *err);

/* ---- latent semantic analysis ----
 * Deerwester et al. 1990: rows are segments, columns terms, weight
 * log(1 + tf) * idf, rows scaled to unit length, truncated SVD. A new text
 * is folded in: x V, scaled to unit length. */

/* Sparse rows (CSR), n_rows x n_cols. */
struct mb_csr {
    size_t n_rows;
    size_t n_cols;
    const size_t *row_start; /* (n_rows + 1) */
    const uint32_t *col;     /* (row_start[n_rows]) */
    const float *val;        /* same */
};

#define MB_LSA_NO_POWER UINT32_MAX
#define MB_LSA_MAX_DIM  1024u

/* Zero stands for the default in [ ]. */
struct mb_lsa_options {
    size_t dim;        /* wanted rank; fewer if the matrix has less */
    unsigned n_power;  /* power iterations [3]; MB_LSA_NO_POWER for none */
    size_t oversample; /* extra columns of the range finder [32] */
    uint64_t seed;
    struct mb_pool *pool; /* NULL: the caller's thread alone */
    /* Called now and then with the part done in [0, 1]; true stops the fit
     * (CANCELLED). May be NULL. */
    bool (*progress)(void *arg, double part);
    void *progress_arg;
};

/* Randomized truncated SVD (Halko, Martinsson, Tropp 2011, algorithms 4.4 and
 * 5.1). Fills V (n_cols x dim, row-major, caller's) with right singular
 * vectors and sigma (dim) with singular values, falling; columns beyond the
 * rank are zero. *rank says how many are not.
 * Errors: BAD_ARG (dim 0, empty matrix, NaN), NOMEM, CANCELLED. */
MB_MUST_USE mb_status mb_lsa_fit(const struct mb_csr *a,
    const struct mb_lsa_options *opt, float *V, float *sigma, size_t *rank,
    struct mb_error *err);

/* A fitted model in memory: term vectors as int8 rows with a scale each, found
 * by the term's hash (mb_hash64 of its bytes, as the store's analyzer gives).
 * Immutable, shared by threads. */
struct mb_lsa;

/* Bytes of a model of n_terms x dim, as stored: little-endian header, hashes
 * u64, term ids u32, idf f32, scale f32, codes i8; see model/FORMAT.md.
 * hash and term_id (n_terms) need no order; V as made by fit. Appends to out. */
MB_MUST_USE mb_status mb_lsa_encode(size_t n_terms, size_t dim,
    const uint64_t *hash, const uint32_t *term_id, const float *idf,
    const float *V, struct mb_buffer *out, struct mb_error *err);
/* Copies what it needs. Errors: CORRUPT, FORMAT, NOMEM. */
MB_MUST_USE mb_status mb_lsa_open(
    struct mb_slice bytes, struct mb_lsa **out, struct mb_error *err);
void mb_lsa_close(struct mb_lsa *lsa);
size_t mb_lsa_dim(const struct mb_lsa *lsa);
size_t mb_lsa_n_terms(const struct mb_lsa *lsa);
size_t mb_lsa_bytes(const struct mb_lsa *lsa);
/* Fold in a bag of terms: out (dim), unit length, or all zero if no term is
 * known or their sum vanishes. *coverage (may be NULL): how much of the bag the
 * embedding sees, in [0, 1]: |x V| / |x|, where x also has the terms that are
 * not known, each with the largest idf of the model. A search gives the
 * embedding weight by the square of it. */
void mb_lsa_fold(const struct mb_lsa *lsa, const uint64_t *hash,
    const float *tf, size_t n, float *out, float *coverage);
/* The same by the store's term ids (as in forward indexes). */
void mb_lsa_fold_ids(const struct mb_lsa *lsa, const uint32_t *term_id,
    const uint32_t *tf, size_t n, float *out);

#endif
