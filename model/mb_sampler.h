/* SPDX-License-Identifier: Apache-2.0
 * model/mb_sampler.h - choosing the next token from a row of logits.
 *
 * The filters stand in the order of llama.cpp's default chain:
 *
 *   repetition penalty -> top_k -> top_p -> min_p -> temperature -> draw
 *
 * so top_p and min_p look at the probabilities of temperature 1, and top_p at
 * those of the top_k tokens alone. Temperature 0 is greedy: the largest logit
 * after the penalty. Of equal logits the lowest token id comes first,
 * everywhere. The same seed, options and logits give the same tokens.
 *
 * Life: mb_sampler_room_new (one a thread), mb_sampler_init (one a text) ->
 * mb_sampler_accept for each token of the prompt, mb_sampler_pick for each new
 * one -> mb_sampler_room_free. A sampler holds no memory of its own.
 * Threads: a sampler and a room belong to one thread at a time. */
#ifndef MB_SAMPLER_H
#define MB_SAMPLER_H

#include "mb_model.h"

#define MB_SAMPLER_MAX_WINDOW      1024u
#define MB_SAMPLER_MAX_TEMPERATURE 100.0f

/* Zero is greedy without a penalty. */
struct mb_sampling {
    float temperature;      /* 0 to 100; 0: greedy */
    uint32_t top_k;         /* as many of the most likely; 0: all */
    float top_p;            /* fewest that have this mass; 0 or 1: all */
    float min_p;            /* this part of the best one's or more; 0: all */
    float repeat_penalty;   /* 0.01 to 100; 0 or 1: none; above 1 discourages */
    uint32_t repeat_window; /* last tokens that it looks at; 0: 64 */
    uint64_t seed;
};

struct mb_sampler {
    struct mb_sampling options;
    struct mb_rng rng;
    uint32_t n_window; /* tokens in the ring */
    uint32_t next;     /* where the next one goes */
    mb_token_id window[MB_SAMPLER_MAX_WINDOW];
};

/* Memory to choose with, 9 bytes for each token of the vocabulary. */
struct mb_sampler_room;

MB_MUST_USE mb_status mb_sampler_room_new(
    size_t n_vocab, struct mb_sampler_room **out, struct mb_error *err);
void mb_sampler_room_free(struct mb_sampler_room *room);

/* Errors: BAD_ARG (an option out of its range: names both). */
MB_MUST_USE mb_status mb_sampler_init(struct mb_sampler *s,
    const struct mb_sampling *options, struct mb_error *err);
/* A token of the text so far, for the penalty. */
void mb_sampler_accept(struct mb_sampler *s, mb_token_id id);
/* Choose from logits (n_vocab of the room) and accept the choice. *logprob: its
 * natural log probability under the plain softmax of the logits, before any
 * filter; NULL if it is not wanted, which saves a pass over the logits. -inf means impossible. Errors: CORRUPT (a logit that is NaN or +inf,
 * or all are -inf: a damaged model). */
MB_MUST_USE mb_status mb_sampler_pick(struct mb_sampler *s,
    struct mb_sampler_room *room, const float *logits, mb_token_id *id,
    float *logprob, struct mb_error *err);

#endif
