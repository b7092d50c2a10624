/* SPDX-License-Identifier: Apache-2.0
 * tools/train/train.h - what the commands of membank-train share.
 *
 * A run has a folder: `config` (the file it was started with), `checkpoint`,
 * `curve.csv`, `curve.svg`, `log`, and at its end `model-f32.gguf`,
 * `model-f16.gguf`, `model-q8_0.gguf`.
 * Threads: the main thread. */
#ifndef TRAIN_TRAIN_H
#define TRAIN_TRAIN_H

#include <signal.h>

#include "mb_checkpoint.h"
#include "mb_export.h"
#include "mb_windows.h"
#include "settings.h"
#include "tool.h"

#define TRAIN_MAX_PATH 4096

/* Set by SIGINT and SIGTERM: save and end. */
extern volatile sig_atomic_t train_is_stopped;

/* The commands. Errors are for main to show; BAD_ARG is wrong usage. */
MB_MUST_USE mb_status train_shards(
    const struct mb_cli *cli, struct mb_error *err);
MB_MUST_USE mb_status train_anchor(
    const struct mb_cli *cli, struct mb_error *err);
MB_MUST_USE mb_status train_export(
    const struct mb_cli *cli, struct mb_error *err);
MB_MUST_USE mb_status train_eval(
    const struct mb_cli *cli, struct mb_error *err);
MB_MUST_USE mb_status train_tokenizer(
    const struct mb_cli *cli, struct mb_error *err);

MB_MUST_USE mb_status train_bank(
    const struct mb_cli *cli, struct mb_error *err);
MB_MUST_USE mb_status train_hmt(const struct mb_cli *cli, struct mb_error *err);

/* "DIR/NAME". Errors: BAD_ARG (too long). */
MB_MUST_USE mb_status train_path(const char *dir, const char *name,
    char out[TRAIN_MAX_PATH], struct mb_error *err);
/* A tokenizer and the file that it is in. */
MB_MUST_USE mb_status train_open_vocab(const char *path, struct mb_gguf **gguf,
    struct mb_tokenizer **tok, struct mb_error *err);
/* The first n characters of valid UTF-8; 0: all. */
struct mb_slice train_first_chars(struct mb_slice text, uint64_t n);
/* Read and parse a config file. */
MB_MUST_USE mb_status train_read_config(const char *path, struct config *out,
    struct mb_buffer *text, struct mb_error *err);
/* "f32", "f16", "q8_0". Errors: BAD_ARG. */
MB_MUST_USE mb_status train_type_of(
    const char *name, gguf_tensor_type *out, struct mb_error *err);
/* The weights in a checkpoint without moments: an array of n that is the
 * caller's, whose names and values are the checkpoint's. NULL: no memory. */
struct export_weight *train_checkpoint_weights(
    const struct checkpoint *c, size_t *n);
/* Write DIR/model-TYPE.gguf of the run's checkpoint. */
MB_MUST_USE mb_status train_export_run(const char *dir,
    const struct config *config, const char *type, const char *to,
    struct mb_error *err);

#endif
