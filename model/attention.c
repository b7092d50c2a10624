/* SPDX-License-Identifier: Apache-2.0
 * model/attention.c - merging partials, and the choice of kernels. */
#include "attention.h"

#include <math.h>

#include "attention_x86.h"

const struct attention *
attention_at(compute_level level)
{
    if (level == COMPUTE_PLAIN)
        return &attention_plain;
    return attention_x86_at(level);
}

const struct attention *
attention_best(void)
{
    for (int level = COMPUTE_N_LEVELS - 1; level > COMPUTE_PLAIN; level--) {
        const struct attention *a = attention_at((compute_level)level);
        if (a)
            return a;
    }
    return &attention_plain;
}

void
partial_clear(struct partial *p, size_t n, size_t head_dim)
{
    for (size_t i = 0; i < n; i++) {
        p->m[i] = -INFINITY;
        p->l[i] = 0;
    }
    for (size_t i = 0; i < n * head_dim; i++)
        p->o[i] = 0;
}

/* exp(a - b) where a may be -inf, and b too if a is. */
static float
rescale(float a, float b)
{
    return a == -INFINITY ? 0.0f : expf(a - b);
}

void
partial_merge(
    struct partial *to, const struct partial *from, size_t n, size_t head_dim)
{
    for (size_t i = 0; i < n; i++) {
        /* A NaN on either side must come through: no fmaxf. */
        float m = from->m[i] <= to->m[i] ? to->m[i] : from->m[i];
        float a = rescale(to->m[i], m);
        float b = rescale(from->m[i], m);
        float *o = to->o + i * head_dim;
        const float *other = from->o + i * head_dim;
        to->m[i] = m;
        to->l[i] = a * to->l[i] + b * from->l[i];
        for (size_t j = 0; j < head_dim; j++)
            o[j] = a * o[j] + b * other[j];
    }
}

void
partial_finish(const struct partial *p, size_t n, size_t head_dim, float *out)
{
    for (size_t i = 0; i < n; i++) {
        float factor = p->l[i] == 0 ? 0 : 1 / p->l[i];
        for (size_t j = 0; j < head_dim; j++)
            out[i * head_dim + j] = p->o[i * head_dim + j] * factor;
    }
}
