/* SPDX-License-Identifier: Apache-2.0
 * model/rope.h - rotary positions (Su et al. 2021) and their scalings.
 *
 * Pair i of a head turns by position * frequency[i]. A scaling changes the
 * frequencies when the model is loaded, so that a pass only multiplies:
 * linear (Chen et al. 2023), yarn (Peng et al. 2023, section 3), and llama3
 * (factors for each pair that the file carries).
 * Private to this folder. Immutable after rope_load. Threads: any. */
#ifndef MB_MODEL_ROPE_H
#define MB_MODEL_ROPE_H

#include "mb_model.h"

#define ROPE_MAX_PAIRS 256u

struct rope {
    size_t n_rot;    /* values of a head that turn, even */
    bool is_halves;  /* pairs (i, i + n_rot/2), else (2i, 2i+1) */
    float magnitude; /* cosines and sines are scaled by it */
    double frequency[ROPE_MAX_PAIRS]; /* radians a position (n_rot / 2) */
};

/* From `<arch>.rope.*` and the tensor rope_freqs.weight. Errors:
 * NOT_IMPLEMENTED (another scaling, by name), CORRUPT, BAD_ARG. */
MB_MUST_USE mb_status rope_load(const struct mb_gguf *gguf, const char *arch,
    size_t head_dim, bool is_halves, struct rope *out, struct mb_error *err);

/* Cosines and sines (n_rot / 2 each) of one position, in float, computed in
 * double. */
void rope_angles(
    const struct rope *rope, size_t position, float *cosine, float *sine);

#endif
