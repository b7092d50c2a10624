/* SPDX-License-Identifier: Apache-2.0
 * model/train/mb_export.h - trained weights as a GGUF file that others read.
 * Threads: any. */
#ifndef MB_EXPORT_H
#define MB_EXPORT_H

#include "mb_gguf_write.h"
#include "mb_train.h"

struct export_weight {
    const char *name; /* as trainer_weight names it */
    size_t n_rows;
    size_t n_cols;
    const float *value;
};

struct export_options {
    const struct train_shape *shape;
    const struct export_weight *weights;
    size_t n_weights;
    const struct mb_gguf *vocab; /* its tokenizer.* keys are copied */
    gguf_tensor_type type;       /* of matrices; norms stay F32 */
    const char *name;            /* general.name; NULL: none */
    const char *description;     /* NULL: none */
    const char *license;         /* NULL: none */
};

/* Write a model of the `llama` architecture. Without a weight output.weight
 * the output is tied to the embedding, as readers take it. Errors: BAD_ARG
 * (Q8_0 of a width that is no multiple of 32), and those of
 * gguf_writer_finish. */
MB_MUST_USE mb_status export_gguf(const char *path,
    const struct export_options *options, struct mb_error *err);

#endif
