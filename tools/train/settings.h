/* SPDX-License-Identifier: Apache-2.0
 * tools/train/settings.h - a training run in one file.
 *
 * Lines of `key = value`, # begins a comment. One table makes the reader, the
 * defaults and `--print-config`.
 * Threads: the main thread. */
#ifndef TRAIN_SETTINGS_H
#define TRAIN_SETTINGS_H

#include "mb_train.h"

#define CONFIG_MAX_TEXT    512
#define CONFIG_MAX_SOURCES 32
#define CONFIG_MAX_HELDOUT 8
#define CONFIG_MAX_FILE    65536

typedef enum config_schedule {
    SCHEDULE_COSINE = 0,
    SCHEDULE_TRAPEZOID = 1
} config_schedule;

struct config_source {
    char path[CONFIG_MAX_TEXT];
    double weight;
};

struct config_heldout {
    char name[40];
    char path[CONFIG_MAX_TEXT];
};

struct config {
    char name[CONFIG_MAX_TEXT];
    char description[CONFIG_MAX_TEXT];
    char license[CONFIG_MAX_TEXT];
    /* Shape. */
    uint64_t layers;
    uint64_t width;
    uint64_t heads;
    uint64_t kv_heads;
    uint64_t head_dim;
    uint64_t ffn;
    double rope_base;
    double norm_eps;
    /* Data. */
    char tokenizer[CONFIG_MAX_TEXT];
    struct config_source sources[CONFIG_MAX_SOURCES];
    size_t n_sources;
    struct config_heldout heldout[CONFIG_MAX_HELDOUT];
    size_t n_heldout;
    uint64_t rows;
    double landmarks;
    double tasks;
    double repeats;
    /* Steps. */
    uint64_t tokens;
    uint64_t batch;
    double rate;
    double rate_end;
    uint64_t warmup;
    uint64_t schedule; /* config_schedule */
    double decay_part;
    uint64_t optimizer; /* train_optimizer */
    double weight_decay;
    double clip;
    double beta1;
    double beta2;
    double momentum;
    double adam_eps;
    /* The run. */
    uint64_t seed;
    uint64_t threads;
    uint64_t activations; /* train_activations */
    uint64_t heldout_steps;
    uint64_t heldout_windows;
    double checkpoint_minutes;
};

/* Defaults. */
void config_init(struct config *c);
/* Read the text of a file; `path` is for messages. Errors: BAD_ARG (unknown
 * key, value out of range, a key twice: with file and line; or what is missing
 * in the whole). */
MB_MUST_USE mb_status config_parse(struct config *c, struct mb_slice text,
    const char *path, struct mb_error *err);
/* All keys with their defaults and what they mean, as a file. */
void config_print(void);

struct train_shape config_shape(const struct config *c, size_t n_vocab);
/* Steps of the whole run. */
uint64_t config_n_steps(const struct config *c);
/* Learning rate of step number `step`, from 0. */
double config_rate(const struct config *c, uint64_t step);

#endif
