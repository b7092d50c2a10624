/* SPDX-License-Identifier: Apache-2.0
 * model/train/mb_windows.h - what a trainer reads: windows cut from shards.
 *
 * Window number i is a function of the options and of i alone, so that a run
 * resumes exactly by knowing how many windows it has used.
 *
 * The mixture is exact, not drawn: windows come in rounds of WINDOWS_ROUND, in
 * each of which every source and the synthetic tasks have their whole number of
 * places, in an order shuffled by the seed. Each source is read through without
 * repetition, its windows shuffled, before it is read again with the windows
 * shifted by a random number of tokens.
 *
 * A window is plain text, or has a landmark row after every 63 tokens, counted
 * over the shard's tokens from its start: so the first block of a window is
 * usually short (Mohtashami and Jaggi 2023, section 3.1). The target of a row
 * is the next token; that of the token before a landmark is the token after
 * the landmark. Landmark rows and </s> rows have no target.
 *
 * Synthetic tasks put facts among natural text and ask for them later in the
 * same window: pass keys, values under keys, passages to copy, lists of nouns.
 * The tokens of the answers and of the natural text are targets, those of the
 * facts, which nobody could foresee, are not. A window of repeats is passages of
 * prose or of random words, parts of which come again and again: nearly every
 * token is an answer, so that attention to what followed last time (Olsson et
 * al. 2022, induction heads), on which all other tasks rest, is learnt early.
 *
 * Threads: `struct windows` is immutable and shared; a window belongs to one
 * thread. */
#ifndef MB_WINDOWS_H
#define MB_WINDOWS_H

#include "mb_shard.h"
#include "mb_train.h"

#define WINDOWS_ROUND      1024
#define WINDOWS_MIN_ROWS   8
#define WINDOW_MAX_ANSWERS 96

struct windows_source {
    const struct shard *shard; /* outlives the windows */
    double weight;             /* share of the text windows, of any sum */
};

struct windows_options {
    const struct mb_tokenizer *tok; /* outlives the windows */
    const struct windows_source *sources;
    size_t n_sources;
    size_t n_rows;        /* of a window */
    double landmark_part; /* of the windows, in [0, 1] */
    double task_part;     /* of the windows, in [0, 1] */
    double repeat_part;   /* of the tasks: repeats; the rest are equal parts */
    uint64_t seed;
    /* Tokens of a held-out window; 0: 63 for each 64 rows, so that a window
     * has as many with landmarks as without. */
    size_t heldout_tokens;
};

typedef enum window_kind {
    WINDOW_PASSKEY = 0,
    WINDOW_LOOKUP = 1,
    WINDOW_COPY = 2,
    WINDOW_LIST = 3,
    WINDOW_REPEAT = 4,
    WINDOW_N_TASKS = 5,
    WINDOW_TEXT = 5
} window_kind;

/* The answer to a question: the targets of rows [first, end), but of those that
 * are landmarks. The fact that gives it begins `distance` tokens before. */
struct window_answer {
    size_t first;
    size_t end;
    size_t distance;
};

/* A window and its room. Fields may be read. */
struct window {
    struct train_window view; /* of the arrays below; n <= n_rows */
    window_kind kind;
    size_t source;    /* of a text window */
    uint64_t start;   /* place of its first token in the shard */
    size_t n_answers; /* of a task: rows whose target is an answer */
    size_t n_spans;   /* of a task: questions that are answered whole */
    struct window_answer spans[WINDOW_MAX_ANSWERS];
    size_t n_rows;
    mb_token_id *tokens;
    mb_token_id *targets;
    bool *is_landmark;
    bool *is_answer; /* whether the row's target is part of an answer */
    /* Private. */
    mb_token_id *ids; /* (n_rows + 1) tokens as they stand in the text */
    uint8_t *wanted;  /* (n_rows + 1) why each of them is learnt */
    struct mb_arena *arena;
};

struct windows;

/* Errors: BAD_ARG (a part out of range, too few rows, no source, more sources
 * than places), MISMATCH (a shard of another tokenizer), NOT_FOUND (the
 * vocabulary has no <landmark>, and some windows want it), NOMEM. */
MB_MUST_USE mb_status windows_new(const struct windows_options *options,
    struct windows **out, struct mb_error *err);
void windows_free(struct windows *w);
/* Has the vocabulary a token for landmark rows? */
bool windows_has_landmark(const struct windows *w);
/* Places of a source, or of the tasks (source = n_sources), in a round. */
size_t windows_places(const struct windows *w, size_t source);
/* Window i. Errors: NOMEM, TOO_LARGE. */
MB_MUST_USE mb_status windows_get(const struct windows *w, uint64_t i,
    struct window *out, struct mb_error *err);
/* A task of this kind, for tests of a model; the same (kind, landmarks, i)
 * gives the same window, and none that windows_get gives. */
MB_MUST_USE mb_status windows_task(const struct windows *w, window_kind kind,
    bool landmarks, uint64_t i, struct window *out, struct mb_error *err);

/* Held-out text: a shard from its start in windows of heldout_tokens without
 * overlap. Every target lies in exactly one window. With landmarks the rows
 * must suffice for tokens and landmarks. */
size_t windows_heldout_count(const struct windows *w, const struct shard *s);
void windows_heldout(const struct windows *w, const struct shard *s,
    bool landmarks, size_t j, struct window *out);

MB_MUST_USE mb_status window_init(
    struct window *win, size_t n_rows, struct mb_error *err);
void window_fini(struct window *win);

#endif
