/* SPDX-License-Identifier: Apache-2.0
 * model/mb_gguf_write.h - writing GGUF v3 files.
 *
 *     gguf_writer_new(&w, err);
 *     gguf_writer_str(w, "general.architecture", "llama");
 *     gguf_writer_copy(w, other, "tokenizer.");
 *     gguf_writer_tensor(w, "token_embd.weight", 2, 8192, 256, E, GGUF_Q8_0);
 *     gguf_writer_finish(w, path, err);      // takes w, whatever it returns
 *
 * A failure on the way is kept and given by finish. The file appears whole or
 * not at all. Threads: a writer belongs to one. */
#ifndef MB_GGUF_WRITE_H
#define MB_GGUF_WRITE_H

#include "mb_model.h"

/* ggml's numbers of the types that can be written. */
typedef enum gguf_tensor_type {
    GGUF_F32 = 0,
    GGUF_F16 = 1,
    GGUF_Q8_0 = 8 /* blocks of 32: a scale in F16, and int8 codes */
} gguf_tensor_type;

struct gguf_writer;

/* Errors: NOMEM. */
MB_MUST_USE mb_status gguf_writer_new(
    struct gguf_writer **out, struct mb_error *err);
void gguf_writer_free(struct gguf_writer *w);
void gguf_writer_str(
    struct gguf_writer *w, const char *key, struct mb_slice value);
void gguf_writer_u32(struct gguf_writer *w, const char *key, uint32_t value);
void gguf_writer_f32(struct gguf_writer *w, const char *key, float value);
void gguf_writer_bool(struct gguf_writer *w, const char *key, bool value);
/* An array of strings, of floats, of int32. */
void gguf_writer_strings(struct gguf_writer *w, const char *key,
    const struct mb_slice *values, size_t n);
void gguf_writer_f32s(
    struct gguf_writer *w, const char *key, const float *values, size_t n);
void gguf_writer_i32s(
    struct gguf_writer *w, const char *key, const int32_t *values, size_t n);
/* All keys of a file that begin with prefix, as they are. */
void gguf_writer_copy(
    struct gguf_writer *w, const struct mb_gguf *from, const char *prefix);
/* A tensor of (n_rows, n_cols) values, row-major, or with n_dims 1 of n_cols.
 * The values are borrowed until finish. Q8_0 wants n_cols to be a multiple of
 * 32. */
void gguf_writer_tensor(struct gguf_writer *w, const char *name,
    unsigned n_dims, size_t n_rows, size_t n_cols, const float *values,
    gguf_tensor_type type);
/* Errors: BAD_ARG (columns, too long a name), NOMEM, IO, NO_SPACE, READ_ONLY,
 * NOT_FOUND (folder). */
MB_MUST_USE mb_status gguf_writer_finish(
    struct gguf_writer *w, const char *path, struct mb_error *err);

/* n values (a multiple of 32) as Q8_0, n / 32 * 34 bytes, just as ggml's
 * reference quantizer makes them: scale = largest / 127 in F16, each code
 * round(x * 127 / largest), halves away from zero, by the scale before its
 * rounding. */
void gguf_quantize_q8_0(const float *x, size_t n, uint8_t *out);

#endif
