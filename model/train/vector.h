/* SPDX-License-Identifier: Apache-2.0
 * model/train/vector.h - loops of training that need exponentials, and the
 * optimizer's, for each CPU; each with a plain twin.
 * Private to model/. Threads: stateless, call from any. */
#ifndef MB_TRAIN_VECTOR_H
#define MB_TRAIN_VECTOR_H

#include "mb_base.h"

/* AdamW with what does not change within a step: w -= rate * (m' / (sqrt(v') +
 * eps) + decay * w), m' and v' corrected for their start (Loshchilov and Hutter
 * 2019, algorithm 2). */
struct adam {
    float rate;
    float beta1;
    float beta2;
    float eps;
    float decay;
    float scale; /* of the gradient: clipping */
    float fix1;  /* 1 / (1 - beta1^t) */
    float fix2;  /* 1 / (1 - beta2^t) */
};

struct vector {
    const char *name;
    /* x becomes exp(x - shift); returns the sum of it. */
    float (*exp_sum)(float *x, size_t n, float shift);
    /* The way back of compute.h's swiglu: adds to dgate and dup, each of which
     * may be NULL. */
    void (*swiglu_back)(const float *gate, const float *up, const float *dy,
        size_t n, float *dgate, float *dup);
    /* One step of n weights; g is read. */
    void (*adam)(const struct adam *a, float *w, const float *g, float *m,
        float *v, size_t n);
};

const struct vector *vector_best(void);
const struct vector *vector_plain(void);

#endif
