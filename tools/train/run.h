/* SPDX-License-Identifier: Apache-2.0
 * tools/train/run.h - the parts of one training run, and its folder.
 *
 * Private to membank-train. Threads: the main thread. */
#ifndef TRAIN_RUN_H
#define TRAIN_RUN_H

#include "mb_curve.h"
#include "train.h"

struct run {
    struct config config;
    struct mb_buffer config_text;
    char dir[TRAIN_MAX_PATH]; /* empty: no folder, nothing is kept */
    struct mb_gguf *vocab;
    struct mb_tokenizer *tok;
    struct shard *sources[CONFIG_MAX_SOURCES];
    struct shard *heldout[CONFIG_MAX_HELDOUT];
    struct windows *windows;
    struct trainer *trainer;
    struct curve *curve;
    struct window *batch;       /* (config.batch) */
    struct train_window *views; /* (config.batch) of them */
    FILE *log;                  /* NULL without a folder */
    uint64_t n_steps;           /* of the whole run */
    uint64_t n_windows;         /* used so far */
    uint64_t n_rows;            /* the same in rows */
    double seconds;             /* spent in former sittings */
    uint64_t begun_ns;          /* of this sitting */
    uint64_t saved_ns;
};

/* Read the config, open all files, make the trainer. `dir` may be NULL.
 * resume: take the state from dir/checkpoint. On failure run_close is still to
 * be called. Errors: those of the parts; LOCKED (another run has the folder),
 * EXISTS (the folder has a checkpoint, and resume is not wanted). */
MB_MUST_USE mb_status run_open(struct run *r, const char *config_path,
    const char *dir, bool resume, struct mb_error *err);
void run_close(struct run *r);

double run_seconds(const struct run *r);
/* A line of the log, with the time before it. */
void run_log(struct run *r, const char *fmt, ...) MB_PRINTF(2, 3);
/* Fill the batch with the next windows; they count as used. */
MB_MUST_USE mb_status run_next_batch(struct run *r, struct mb_error *err);
/* Loss of every held-out text and of the tasks, into curve and log. */
MB_MUST_USE mb_status run_heldout(struct run *r, struct mb_error *err);
/* Write checkpoint and picture. Errors: NO_SPACE, ... (the old ones stay). */
MB_MUST_USE mb_status run_save(struct run *r, struct mb_error *err);

#endif
