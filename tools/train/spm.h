/* SPDX-License-Identifier: Apache-2.0
 * tools/train/spm.h - SentencePiece's model file as a vocabulary in GGUF.
 *
 * Private to membank-train. Threads: any. */
#ifndef TRAIN_SPM_H
#define TRAIN_SPM_H

#include "train.h"

/* Write the pieces, scores and types of a BPE model as tokenizer.* keys of a
 * GGUF file without tensors. Errors: FORMAT (no such file, with the offset, or
 * another model than BPE), TOO_LARGE, NOMEM, and those of gguf_writer_finish. */
MB_MUST_USE mb_status spm_to_gguf(
    struct mb_slice model, const char *path, struct mb_error *err);

#endif
