/* SPDX-License-Identifier: Apache-2.0
 * model/lsa.c - a fitted LSA model: its bytes, and folding texts in.
 *
 * Folding in is the sum of log(1 + tf) * idf * v over the terms of a text,
 * v being a term's row of V, scaled to unit length. It is done for every
 * segment of a store and for every query, so rows are int8 with a scale each
 * (a quarter of the memory traffic; the error of a sum of a hundred rows is
 * far below what a cosine shows), and terms are found by open addressing.
 *
 * FORMAT.md says what the bytes are; they are sorted by hash, so that equal
 * models have equal bytes and a reader can see that no term is there twice.
 *
 * Invariants: code rows in memory are `width` bytes apart, a multiple of
 * KERNEL_WIDTH, zero beyond `dim`; each table has at least one empty place.
 * Threads: immutable once open. */
#include "kernels.h"
#include "mb_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC        "MBLSA\r\n\x1a" /* shows text-mode damage at once */
#define VERSION      1u
#define HEADER_BYTES 40u
#define TERM_BYTES   20u /* of arrays, without codes */
#define TAIL_BYTES   8u  /* checksum */
#define MAX_TERMS    (1u << 24)
/* Terms that are looked up before their rows are summed. */
#define BATCH 256

struct by_hash {
    uint64_t hash;
    uint32_t row; /* UINT32_MAX: empty */
};

struct by_id {
    uint32_t id;
    uint32_t row;
};

struct mb_lsa {
    size_t n_terms;
    size_t dim;
    size_t width;
    size_t mask; /* of both tables */
    float max_idf;
    const struct kernels *kernels;
    struct by_hash *by_hash;
    struct by_id *by_id;
    float *idf;    /* (n_terms) */
    float *scale;  /* (n_terms) idf times the scale of the codes */
    int8_t *codes; /* (n_terms, width) */
};

/* ---- bytes ---- */

static bool
model_bytes(size_t n_terms, size_t dim, size_t *out)
{
    size_t n = 0;
    return mb_size_add(dim, TERM_BYTES, &n) && mb_size_mul(n, n_terms, &n) &&
           mb_size_add(n, HEADER_BYTES + TAIL_BYTES, out);
}

static int
compare_by_hash(const void *a, const void *b)
{
    uint64_t x = ((const struct by_hash *)a)->hash;
    uint64_t y = ((const struct by_hash *)b)->hash;
    return (x > y) - (x < y);
}

/* One row of V as codes in [-127, 127]; the scale gives v back. */
static float
quantize(const float *v, size_t dim, uint8_t *codes)
{
    float largest = 0.0f;
    for (size_t j = 0; j < dim; j++) {
        float x = fabsf(v[j]);
        if (x > largest)
            largest = x;
    }
    float scale = largest / 127.0f;
    float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    if (!isfinite(inverse)) { // so small that it is nothing
        scale = 0.0f;
        inverse = 0.0f;
    }
    for (size_t j = 0; j < dim; j++)
        codes[j] = (uint8_t)(int8_t)lrintf(v[j] * inverse);
    return scale;
}

static mb_status
check_terms(size_t n_terms, size_t dim, const float *idf, const float *V,
    struct mb_error *err)
{
    if (n_terms == 0 || n_terms > MAX_TERMS || dim == 0 ||
        dim > MB_LSA_MAX_DIM) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "lsa: %zu terms of %zu dimensions, at most %u of %u", n_terms, dim,
            MAX_TERMS, MB_LSA_MAX_DIM);
    }
    for (size_t i = 0; i < n_terms; i++) {
        if (!isfinite(idf[i]) || idf[i] < 0.0f)
            return mb_error_set(
                err, MB_ERR_BAD_ARG, "lsa: idf of term %zu is no weight", i);
    }
    for (size_t i = 0; i < n_terms * dim; i++) {
        if (!isfinite(V[i]))
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "lsa: vector of term %zu is not finite", i / dim);
    }
    return MB_OK;
}

static void
put_model(uint8_t *p, size_t n_terms, size_t dim, const struct by_hash *order,
    const uint32_t *term_id, const float *idf, const float *V)
{
    uint8_t *start = p;
    size_t size = 0;
    MB_ASSERT(model_bytes(n_terms, dim, &size));
    uint8_t *hashes = p + HEADER_BYTES;
    uint8_t *ids = hashes + 8 * n_terms;
    uint8_t *idfs = ids + 4 * n_terms;
    uint8_t *scales = idfs + 4 * n_terms;
    uint8_t *codes = scales + 4 * n_terms;
    memcpy(p, MAGIC, 8);
    mb_put_le32(p + 8, VERSION);
    mb_put_le32(p + 12, 0);
    mb_put_le32(p + 16, (uint32_t)n_terms);
    mb_put_le32(p + 20, (uint32_t)dim);
    mb_put_le64(p + 24, size);
    mb_put_le64(p + 32, 0);
    for (size_t i = 0; i < n_terms; i++) {
        size_t row = order[i].row;
        mb_put_le64(hashes + 8 * i, order[i].hash);
        mb_put_le32(ids + 4 * i, term_id[row]);
        mb_put_lef32(idfs + 4 * i, idf[row]);
        mb_put_lef32(
            scales + 4 * i, quantize(V + row * dim, dim, codes + i * dim));
    }
    mb_put_le64(
        start + size - TAIL_BYTES, mb_hash64(start, size - TAIL_BYTES, 0));
}

mb_status
mb_lsa_encode(size_t n_terms, size_t dim, const uint64_t *hash,
    const uint32_t *term_id, const float *idf, const float *V,
    struct mb_buffer *out, struct mb_error *err)
{
    size_t size = 0;
    struct by_hash *order = NULL;
    mb_status st = check_terms(n_terms, dim, idf, V, err);
    if (st != MB_OK)
        return st;
    MB_ASSERT(model_bytes(n_terms, dim, &size));
    order = mb_calloc(n_terms, sizeof(*order));
    st = order ? mb_buffer_reserve(out, size) : MB_ERR_NOMEM;
    if (st != MB_OK) {
        mb_error_set(
            err, st, "lsa: model of %zu bytes: %s", size, mb_status_text(st));
        goto out;
    }
    for (size_t i = 0; i < n_terms; i++)
        order[i] = (struct by_hash){hash[i], (uint32_t)i};
    qsort(order, n_terms, sizeof(*order), compare_by_hash);
    for (size_t i = 1; i < n_terms; i++) {
        if (order[i].hash == order[i - 1].hash) {
            st = mb_error_set(err, MB_ERR_BAD_ARG,
                "lsa: terms %u and %u have the same hash", order[i - 1].row,
                order[i].row);
            goto out;
        }
    }
    put_model(out->data + out->size, n_terms, dim, order, term_id, idf, V);
    out->size += size;
out:
    mb_free(order);
    return st;
}

/* ---- open ---- */

/* Everything about the bytes but the values in them. */
static mb_status
check_bytes(
    struct mb_slice b, size_t *n_terms, size_t *dim, struct mb_error *err)
{
    size_t size = 0;
    if (b.size < HEADER_BYTES + TAIL_BYTES)
        return mb_error_set(
            err, MB_ERR_CORRUPT, "lsa: model of %zu bytes", b.size);
    if (memcmp(b.data, MAGIC, 8) != 0)
        return mb_error_set(err, MB_ERR_FORMAT, "lsa: not an lsa model");
    if (mb_get_le32(b.data + 8) != VERSION)
        return mb_error_set(err, MB_ERR_FORMAT,
            "lsa: model of version %u, this program reads %u",
            mb_get_le32(b.data + 8), VERSION);
    *n_terms = mb_get_le32(b.data + 16);
    *dim = mb_get_le32(b.data + 20);
    if (*n_terms == 0 || *n_terms > MAX_TERMS || *dim == 0 ||
        *dim > MB_LSA_MAX_DIM || !model_bytes(*n_terms, *dim, &size) ||
        size != b.size || mb_get_le64(b.data + 24) != b.size) {
        return mb_error_set(err, MB_ERR_CORRUPT,
            "lsa: %zu terms of %zu dimensions in %zu bytes", *n_terms, *dim,
            b.size);
    }
    uint64_t sum = mb_hash64(b.data, b.size - TAIL_BYTES, 0);
    if (sum != mb_get_le64(b.data + b.size - TAIL_BYTES))
        return mb_error_set(err, MB_ERR_CORRUPT, "lsa: checksum is wrong");
    return MB_OK;
}

static size_t
place_of_id(const struct mb_lsa *lsa, uint32_t id)
{
    return (id * (uint64_t)0x9e3779b97f4a7c15u >> 32) & lsa->mask;
}

static void
insert(struct mb_lsa *lsa, uint64_t hash, uint32_t id, uint32_t row)
{
    size_t i = hash & lsa->mask;
    while (lsa->by_hash[i].row != UINT32_MAX)
        i = (i + 1) & lsa->mask;
    lsa->by_hash[i] = (struct by_hash){hash, row};
    i = place_of_id(lsa, id);
    while (lsa->by_id[i].row != UINT32_MAX)
        i = (i + 1) & lsa->mask;
    lsa->by_id[i] = (struct by_id){id, row};
}

static mb_status
alloc_model(struct mb_lsa *lsa, struct mb_error *err)
{
    size_t slots = 16;
    while (slots < 2 * lsa->n_terms)
        slots *= 2;
    lsa->mask = slots - 1;
    lsa->by_hash = mb_alloc(slots * sizeof(*lsa->by_hash));
    lsa->by_id = mb_alloc(slots * sizeof(*lsa->by_id));
    lsa->idf = mb_calloc(lsa->n_terms, sizeof(float));
    lsa->scale = mb_calloc(lsa->n_terms, sizeof(float));
    lsa->codes = mb_calloc(lsa->n_terms, lsa->width);
    if (!lsa->by_hash || !lsa->by_id || !lsa->idf || !lsa->scale ||
        !lsa->codes) {
        return mb_error_set(err, MB_ERR_NOMEM,
            "lsa: no memory for %zu terms of %zu", lsa->n_terms, lsa->dim);
    }
    for (size_t i = 0; i < slots; i++) {
        lsa->by_hash[i] = (struct by_hash){0, UINT32_MAX};
        lsa->by_id[i] = (struct by_id){0, UINT32_MAX};
    }
    return MB_OK;
}

static mb_status
load(struct mb_lsa *lsa, const uint8_t *p, struct mb_error *err)
{
    size_t n = lsa->n_terms;
    const uint8_t *hashes = p + HEADER_BYTES;
    const uint8_t *ids = hashes + 8 * n;
    const uint8_t *idfs = ids + 4 * n;
    const uint8_t *scales = idfs + 4 * n;
    const uint8_t *codes = scales + 4 * n;
    uint64_t before = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t hash = mb_get_le64(hashes + 8 * i);
        float idf = mb_get_lef32(idfs + 4 * i);
        float scale = mb_get_lef32(scales + 4 * i);
        if (i > 0 && hash <= before)
            return mb_error_set(
                err, MB_ERR_CORRUPT, "lsa: term %zu is out of order", i);
        if (!isfinite(idf) || idf < 0.0f || !isfinite(scale) ||
            !isfinite(idf * scale) || scale < 0.0f) {
            return mb_error_set(
                err, MB_ERR_CORRUPT, "lsa: weights of term %zu", i);
        }
        lsa->idf[i] = idf;
        lsa->scale[i] = idf * scale;
        if (idf > lsa->max_idf)
            lsa->max_idf = idf;
        memcpy(lsa->codes + i * lsa->width, codes + i * lsa->dim, lsa->dim);
        insert(lsa, hash, mb_get_le32(ids + 4 * i), (uint32_t)i);
        before = hash;
    }
    return MB_OK;
}

mb_status
mb_lsa_open(struct mb_slice bytes, struct mb_lsa **out, struct mb_error *err)
{
    size_t n_terms = 0;
    size_t dim = 0;
    mb_status st = check_bytes(bytes, &n_terms, &dim, err);
    if (st != MB_OK)
        return st;
    struct mb_lsa *lsa = mb_calloc(1, sizeof(*lsa));
    if (!lsa)
        return mb_error_set(err, MB_ERR_NOMEM, "lsa: no memory");
    lsa->n_terms = n_terms;
    lsa->dim = dim;
    lsa->width = (dim + KERNEL_WIDTH - 1) / KERNEL_WIDTH * KERNEL_WIDTH;
    lsa->kernels = kernels_best();
    st = alloc_model(lsa, err);
    if (st == MB_OK)
        st = load(lsa, bytes.data, err);
    if (st != MB_OK) {
        mb_lsa_close(lsa);
        return st;
    }
    *out = lsa;
    return MB_OK;
}

void
mb_lsa_close(struct mb_lsa *lsa)
{
    if (!lsa)
        return;
    mb_free(lsa->by_hash);
    mb_free(lsa->by_id);
    mb_free(lsa->idf);
    mb_free(lsa->scale);
    mb_free(lsa->codes);
    mb_free(lsa);
}

size_t
mb_lsa_dim(const struct mb_lsa *lsa)
{
    return lsa->dim;
}

size_t
mb_lsa_n_terms(const struct mb_lsa *lsa)
{
    return lsa->n_terms;
}

size_t
mb_lsa_bytes(const struct mb_lsa *lsa)
{
    size_t slots = lsa->mask + 1;
    return sizeof(*lsa) +
           slots * (sizeof(*lsa->by_hash) + sizeof(*lsa->by_id)) +
           lsa->n_terms * (2 * sizeof(float) + lsa->width);
}

/* ---- folding in ---- */

static uint32_t
row_of_hash(const struct mb_lsa *lsa, uint64_t hash)
{
    size_t i = hash & lsa->mask;
    while (lsa->by_hash[i].row != UINT32_MAX && lsa->by_hash[i].hash != hash)
        i = (i + 1) & lsa->mask;
    return lsa->by_hash[i].row;
}

static uint32_t
row_of_id(const struct mb_lsa *lsa, uint32_t id)
{
    size_t i = place_of_id(lsa, id);
    while (lsa->by_id[i].row != UINT32_MAX && lsa->by_id[i].id != id)
        i = (i + 1) & lsa->mask;
    return lsa->by_id[i].row;
}

/* log(1 + tf); nearly all are 1. What is no positive number weighs nothing. */
static float
weight_of(float tf)
{
    if (tf == 1.0f)
        return 0.69314718f;
    return tf > 0.0f && isfinite(tf) ? log1pf(tf) : 0.0f;
}

/* Rows and weights found so far, and the sum that they go to. */
struct sum {
    const struct mb_lsa *lsa;
    size_t n;
    uint32_t row[BATCH];
    float weight[BATCH];
    float out[MB_LSA_MAX_DIM];
};

static void
sum_begin(struct sum *s, const struct mb_lsa *lsa)
{
    s->lsa = lsa;
    s->n = 0;
    memset(s->out, 0, lsa->width * sizeof(float));
}

static void
sum_flush(struct sum *s)
{
    const struct mb_lsa *lsa = s->lsa;
    lsa->kernels->fold(s->row, s->weight, s->n, lsa->codes, lsa->width, s->out);
    s->n = 0;
}

static void
sum_add(struct sum *s, uint32_t row, float weight)
{
    s->row[s->n] = row;
    s->weight[s->n] = weight * s->lsa->scale[row];
    s->n++;
    if (s->n == BATCH)
        sum_flush(s);
}

/* The sum at unit length, or zero if it vanishes. Returns its own length. */
static double
sum_end(struct sum *s, float *out)
{
    double square = 0.0;
    size_t dim = s->lsa->dim;
    sum_flush(s);
    for (size_t j = 0; j < dim; j++)
        square += (double)s->out[j] * (double)s->out[j];
    float factor = 0.0f;
    if (isfinite(square) && square > 1e-30)
        factor = (float)(1.0 / sqrt(square));
    for (size_t j = 0; j < dim; j++)
        out[j] = factor > 0.0f ? s->out[j] * factor : 0.0f;
    return factor > 0.0f ? sqrt(square) : 0.0;
}

void
mb_lsa_fold(const struct mb_lsa *lsa, const uint64_t *hash, const float *tf,
    size_t n, float *out, float *coverage)
{
    struct sum s;
    double square = 0.0; /* of the bag's own length */
    double length;
    sum_begin(&s, lsa);
    for (size_t i = 0; i < n; i++) {
        float weight = weight_of(tf[i]);
        uint32_t row = row_of_hash(lsa, hash[i]);
        /* Not known means rare: it weighs as the rarest that is known. */
        bool known = row != UINT32_MAX;
        double full = (double)(weight * (known ? lsa->idf[row] : lsa->max_idf));
        square += full * full;
        if (known)
            sum_add(&s, row, weight);
    }
    length = sum_end(&s, out);
    if (coverage) {
        /* V is orthonormal but for the rounding of its codes. */
        double part = square > 0.0 ? length / sqrt(square) : 0.0;
        *coverage = part < 1.0 ? (float)part : 1.0f;
    }
}

void
mb_lsa_fold_ids(const struct mb_lsa *lsa, const uint32_t *term_id,
    const uint32_t *tf, size_t n, float *out)
{
    struct sum s;
    sum_begin(&s, lsa);
    for (size_t i = 0; i < n; i++) {
        uint32_t row = row_of_id(lsa, term_id[i]);
        if (row != UINT32_MAX)
            sum_add(&s, row, weight_of((float)tf[i]));
    }
    (void)sum_end(&s, out);
}
