/* SPDX-License-Identifier: Apache-2.0
 * model/train/tasks.h - synthetic tasks that want what stands far back.
 *
 * Private to this folder. */
#ifndef MB_TRAIN_TASKS_H
#define MB_TRAIN_TASKS_H

#include "mb_windows.h"

/* What tasks are made of. */
struct task_world {
    const struct mb_tokenizer *tok;
    const struct windows_source *sources; /* of the natural text */
    const double *share;                  /* (n_sources), rising to 1 */
    size_t n_sources;
    const uint8_t *marks; /* (n_vocab) TASK_* */
    mb_token_id bos;
    mb_token_id eos;
};

#define TASK_ENDS_SENTENCE 1u
#define TASK_STARTS_WORD   2u
#define TASK_BARE_SPACE    4u

/* Marks of every token into marks (n_vocab). */
void task_mark(const struct mb_tokenizer *tok, uint8_t *marks);

/* Why a token is learnt. */
enum { TASK_NOT_WANTED = 0, TASK_PROSE = 1, TASK_ANSWER = 2 };

/* A task: tokens, why each is learnt, and where its questions are answered
 * (first and end are tokens here), in the order of the text. */
struct task_result {
    mb_token_id *ids;              /* (n) room of the caller */
    uint8_t *wanted;               /* (n) the same */
    struct window_answer *answers; /* (WINDOW_MAX_ANSWERS) the same */
    size_t n_answers;
};

/* Fill exactly n tokens with a task. arena is for the way there.
 * Errors: NOMEM, TOO_LARGE. */
MB_MUST_USE mb_status task_make(const struct task_world *world,
    window_kind kind, struct mb_rng *rng, size_t n, struct mb_arena *arena,
    struct task_result *out);

#endif
