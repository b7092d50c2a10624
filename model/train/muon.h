/* SPDX-License-Identifier: Apache-2.0
 * model/train/muon.h - Muon: momentum, made orthogonal, for weight matrices.
 *
 * AdamW moves each weight by its own gradient's scale. A matrix's gradient has
 * few strong directions and many weak ones that matter too; Muon gives all of
 * them the same length: the step is U V^T of the momentum's singular value
 * decomposition U S V^T, which five Newton-Schulz iterations approximate
 * (Jordan et al. 2024, "Muon: An optimizer for hidden layers"). Steps are
 * scaled so that an element's root mean square is 0.2, about AdamW's, whence
 * the two share rate and decay (Liu et al. 2025, "Muon is scalable for LLM
 * training", section 2.2).
 *
 * Private to model/. Threads: stateless, call from any with room of its own. */
#ifndef MB_TRAIN_MUON_H
#define MB_TRAIN_MUON_H

#include "mb_base.h"

struct muon {
    float rate;
    float decay;
    float momentum; /* the part of the last step's that is kept */
    float scale;    /* of the gradient: clipping */
};

/* Floats of room that a step of a matrix (rows, cols) needs. */
size_t muon_room(size_t rows, size_t cols);

/* x (rows, cols), not zero, becomes about U V^T of its decomposition U S V^T:
 * singular values come to lie between about 0.7 and 1.2. */
void muon_orthogonalise(float *x, size_t rows, size_t cols, float *room);

/* One step of w (rows, cols) by its gradient g; m is the momentum. */
void muon_step(const struct muon *muon, float *w, const float *g, float *m,
    size_t rows, size_t cols, float *room);

#endif
