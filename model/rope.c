/* SPDX-License-Identifier: Apache-2.0
 * model/rope.c - the frequencies of rotary positions. */
#include "rope.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_KEY 64

/* Turns of a pair within the original context: above the one it is not scaled,
 * below the other it is scaled whole. Files may name others, but llama.cpp does
 * not read those for the architectures that we have: nor do we. */
#define YARN_FAST_TURNS 32.0
#define YARN_SLOW_TURNS 1.0

/* What scalings need to know; defaults are those of llama.cpp. */
struct scaling {
    struct mb_slice type; /* "none", "linear", "yarn", "llama3" */
    double factor;        /* how many times longer than the original */
    double original_context;
    double magnitude; /* of all types */
};

/* Optional number, float or integer; *out stays as it is without the key. */
static mb_status
read_number(const struct mb_gguf *gguf, const char *arch, const char *name,
    double *out, struct mb_error *err)
{
    char key[MAX_KEY];
    uint64_t whole = 0;
    double v = 0;
    (void)snprintf(key, sizeof(key), "%s.rope.%s", arch, name);
    mb_status st = mb_gguf_f64(gguf, key, &v, NULL);
    if (st == MB_ERR_BAD_ARG) {
        st = mb_gguf_u64(gguf, key, &whole, err);
        v = (double)whole;
    }
    if (st == MB_ERR_NOT_FOUND)
        return MB_OK;
    if (st != MB_OK)
        return st;
    if (!isfinite(v) || v < 0)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "model: key %s is %g, not a number from 0 on", key, v);
    *out = v;
    return MB_OK;
}

static bool
is_word(struct mb_slice s, const char *word)
{
    return mb_slice_equal(s, mb_slice_cstr(word));
}

static mb_status
read_scaling(const struct mb_gguf *gguf, const char *arch, struct scaling *s,
    struct mb_error *err)
{
    char key[MAX_KEY];
    *s = (struct scaling){mb_slice_cstr("linear"), 0, 0, 1};
    (void)snprintf(key, sizeof(key), "%s.rope.scaling.type", arch);
    mb_status st = mb_gguf_str(gguf, key, &s->type, err);
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return st;
    // Files of 2023 have this name of the factor.
    st = read_number(gguf, arch, "scale_linear", &s->factor, err);
    if (st == MB_OK)
        st = read_number(gguf, arch, "scaling.factor", &s->factor, err);
    if (st == MB_OK)
        st = read_number(gguf, arch, "scaling.original_context_length",
            &s->original_context, err);
    if (st == MB_OK)
        st = read_number(gguf, arch, "scaling.attn_factor", &s->magnitude, err);
    if (s->factor == 0) // no factor is no scaling
        s->factor = 1;
    return st;
}

/* The pair that turns `turns` times within the original context. */
static double
pair_of_turns(size_t n_rot, double context, double turns, double base)
{
    return (double)n_rot * log(context / (turns * 2 * 3.14159265358979323846)) /
           (2 * log(base));
}

/* Peng et al. 2023, "NTK-by-parts": pairs that turn often keep their frequency,
 * slow ones are interpolated, with a ramp between; attention is sharpened by
 * 0.1 ln(factor) + 1. */
static void
scale_yarn(struct rope *rope, const struct scaling *s, double base)
{
    double last = (double)rope->n_rot - 1;
    double low = floor(
        pair_of_turns(rope->n_rot, s->original_context, YARN_FAST_TURNS, base));
    double high = ceil(
        pair_of_turns(rope->n_rot, s->original_context, YARN_SLOW_TURNS, base));
    low = fmax(0, low);
    high = fmin(last, high);
    for (size_t i = 0; i < rope->n_rot / 2; i++) {
        double ramp = ((double)i - low) / fmax(0.001, high - low);
        double keep = 1 - fmin(1, fmax(0, ramp));
        rope->frequency[i] *= keep + (1 - keep) / s->factor;
    }
    rope->magnitude = (float)(s->magnitude * (1 + 0.1 * log(s->factor)));
}

static mb_status
apply_scaling(struct rope *rope, const struct scaling *s, double base,
    double context, struct mb_error *err)
{
    struct scaling full = *s;
    rope->magnitude = (float)s->magnitude;
    if (is_word(s->type, "none") || is_word(s->type, "llama3"))
        return MB_OK; // llama3 comes as factors
    if (is_word(s->type, "linear")) {
        for (size_t i = 0; i < rope->n_rot / 2; i++)
            rope->frequency[i] /= s->factor;
        return MB_OK;
    }
    if (!is_word(s->type, "yarn"))
        return mb_error_set(err, MB_ERR_NOT_IMPLEMENTED,
            "model: rope scaling \"%.*s\" is not read here; none, linear, yarn "
            "and llama3 are",
            (int)(s->type.size < 32 ? s->type.size : 32),
            (const char *)s->type.data);
    if (full.original_context == 0)
        full.original_context = context;
    if (!(full.original_context >= 1) || !(base > 1) || s->factor < 1)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "model: yarn with base %g, factor %g, original context %g", base,
            s->factor, full.original_context);
    scale_yarn(rope, &full, base);
    return MB_OK;
}

/* Frequencies are divided by the factors that llama3 files carry. */
static mb_status
apply_factors(
    const struct mb_gguf *gguf, struct rope *rope, struct mb_error *err)
{
    const struct mb_gguf_tensor *t =
        mb_gguf_find_tensor(gguf, "rope_freqs.weight");
    if (!t)
        return MB_OK;
    if (t->type != 0 || t->dims[0] != rope->n_rot / 2 || t->dims[1] != 1 ||
        t->dims[2] != 1 || t->dims[3] != 1)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "model: rope_freqs.weight is %s with %llu values, expected F32 "
            "with %zu",
            t->type_name, (unsigned long long)t->dims[0], rope->n_rot / 2);
    for (size_t i = 0; i < rope->n_rot / 2; i++) {
        double factor = (double)mb_get_lef32(t->data.data + 4 * i);
        if (!isfinite(factor) || factor <= 0)
            return mb_error_set(err, MB_ERR_CORRUPT,
                "model: rope_freqs.weight has %g at %zu", factor, i);
        rope->frequency[i] /= factor;
    }
    return MB_OK;
}

mb_status
rope_load(const struct mb_gguf *gguf, const char *arch, size_t head_dim,
    bool is_halves, struct rope *out, struct mb_error *err)
{
    char key[MAX_KEY];
    struct rope rope = {0};
    struct scaling scaling;
    double base = 10000;
    double n_rot = (double)head_dim;
    uint64_t context = 0;
    mb_status st = read_number(gguf, arch, "freq_base", &base, err);
    if (st == MB_OK)
        st = read_number(gguf, arch, "dimension_count", &n_rot, err);
    if (st == MB_OK)
        st = read_scaling(gguf, arch, &scaling, err);
    (void)snprintf(key, sizeof(key), "%s.context_length", arch);
    if (st == MB_OK)
        st = mb_gguf_u64(gguf, key, &context, err);
    if (st != MB_OK)
        return st;
    if (!(n_rot >= 2) || n_rot > (double)head_dim ||
        n_rot > 2.0 * ROPE_MAX_PAIRS || fmod(n_rot, 2) != 0 || base <= 0)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "model: rope turns %g values of heads of %zu, base %g", n_rot,
            head_dim, base);
    rope.n_rot = (size_t)n_rot;
    rope.is_halves = is_halves;
    for (size_t i = 0; i < rope.n_rot / 2; i++)
        rope.frequency[i] = pow(base, -2.0 * (double)i / n_rot);
    st = apply_scaling(&rope, &scaling, base, (double)context, err);
    if (st == MB_OK)
        st = apply_factors(gguf, &rope, err);
    if (st == MB_OK)
        *out = rope;
    return st;
}

void
rope_angles(
    const struct rope *rope, size_t position, float *cosine, float *sine)
{
    double magnitude = (double)rope->magnitude;
    for (size_t i = 0; i < rope->n_rot / 2; i++) {
        double angle = (double)position * rope->frequency[i];
        cosine[i] = (float)(cos(angle) * magnitude);
        sine[i] = (float)(sin(angle) * magnitude);
    }
}
