/* SPDX-License-Identifier: Apache-2.0
 * store/vindex.c - clustering and coarse assignment: the only user of FAISS.
 *
 * FAISS is fast here as long as queries come in batches: from 20 on it
 * multiplies matrices through BLAS; below that its loops are plain C, so small
 * batches go through our own kernel instead. All vectors are of unit length
 * and so are centroids (spherical k-means): the largest inner product is the
 * nearest in L2 too.
 *
 * Balance follows spec/hierarchical-memories section 3: a cluster that takes
 * more than 1.5 times its fair share gives half of its members, drawn at
 * random, to the smallest; then the clustering goes on from there.
 * Threads: any, each call on its own data; inside, FAISS and BLAS use one. */
#include "vindex.h"

#include <math.h>
#include <string.h>

#include <cblas.h>
#include <faiss/c_api/Clustering_c.h>
#include <faiss/c_api/IndexFlat_c.h>
#include <faiss/c_api/error_c.h>

#include "faiss_shim.h"
#include "scan.h"

#define BLAS_BATCH_MIN   20   /* FAISS's own threshold for BLAS */
#define ASSIGN_BATCH     4096 /* vectors a FAISS call: its block of queries */
#define FIRST_ITERATIONS 8
#define NEXT_ITERATIONS  4
#define BALANCE_ROUNDS   4
#define FULL_SHARE       1.5 /* of n / k members: more is too many */

/* Two pools never multiply: parallel work is the caller's, by nodes. */
static void
use_one_thread(void)
{
    shim_set_openmp_threads(1);
    if (openblas_get_num_threads() != 1) {
        openblas_set_num_threads(1);
    }
}

static mb_status
faiss_failed(struct mb_error *err, const char *what)
{
    const char *text = faiss_get_last_error();

    if (text != NULL && strstr(text, "bad_alloc") != NULL) {
        return mb_error_set(err, MB_ERR_NOMEM, "%s: out of memory", what);
    }
    return mb_error_set(err, MB_ERR_INTERNAL, "%s: %s", what,
        text != NULL ? text : "unknown cause");
}

/* ---- assignment ---- */

static void
assign_few(const float *centroids, size_t k, const float *x, size_t n,
    size_t dim, uint32_t *label)
{
    const struct scan_kernels *kernels = scan_best();

    for (size_t i = 0; i < n; i++) {
        float best = -INFINITY;

        label[i] = 0;
        for (size_t c = 0; c < k; c++) {
            float s;

            kernels->dot_f32(x + i * dim, centroids + c * dim, 1, dim, &s);
            if (s > best) {
                best = s;
                label[i] = (uint32_t)c;
            }
        }
    }
}

/* Batches of n vectors through one flat index; scratch for ASSIGN_BATCH. */
static mb_status
assign_batches(FaissIndex *index, const float *x, size_t n, size_t dim,
    float *scores, idx_t *found, uint32_t *label, struct mb_error *err)
{
    for (size_t i = 0; i < n; i += ASSIGN_BATCH) {
        size_t m = n - i < ASSIGN_BATCH ? n - i : ASSIGN_BATCH;

        if (faiss_Index_search(
                index, (idx_t)m, x + i * dim, 1, scores, found) != 0) {
            return faiss_failed(err, "assign vectors");
        }
        for (size_t j = 0; j < m; j++) {
            // -1 stands for "none is nearest", which only NaN can cause.
            label[i + j] = found[j] < 0 ? 0 : (uint32_t)found[j];
        }
    }
    return MB_OK;
}

mb_status
vindex_assign(const float *centroids, size_t k, const float *x, size_t n,
    size_t dim, uint32_t *label, struct mb_error *err)
{
    size_t batch = n < ASSIGN_BATCH ? n : ASSIGN_BATCH;
    FaissIndexFlatIP *index = NULL;
    float *scores = NULL;
    idx_t *found = NULL;
    mb_status st = MB_OK;

    if (n < BLAS_BATCH_MIN) {
        assign_few(centroids, k, x, n, dim, label);
        return MB_OK;
    }
    use_one_thread();
    scores = mb_alloc(batch * sizeof(*scores));
    found = mb_alloc(batch * sizeof(*found));
    if (scores == NULL || found == NULL) {
        st = mb_error_set(err, MB_ERR_NOMEM, "assign %zu vectors", n);
        goto out;
    }
    if (faiss_IndexFlatIP_new_with(&index, (idx_t)dim) != 0 ||
        faiss_Index_add(index, (idx_t)k, centroids) != 0) {
        st = faiss_failed(err, "index centroids");
        goto out;
    }
    st = assign_batches(index, x, n, dim, scores, found, label, err);
out:
    faiss_Index_free(index);
    mb_free(found);
    mb_free(scores);
    return st;
}

/* ---- k-means ---- */

/* One clustering of one node, and its scratch. */
struct kmeans {
    const float *x; /* (n, dim) */
    size_t n;
    size_t dim;
    size_t k;
    struct mb_rng rng;
    float *centroids; /* (k, dim), the caller's */
    float *scores;    /* (n) */
    float *distance;  /* (n), squared, to the nearest centroid so far */
    uint32_t *label;  /* (n) */
    size_t *count;    /* (k) */
};

static void
normalize(float *v, size_t dim)
{
    double sum = 0;

    for (size_t d = 0; d < dim; d++) {
        sum += (double)v[d] * (double)v[d];
    }
    if (sum > 0) {
        float inverse = (float)(1.0 / sqrt(sum));

        for (size_t d = 0; d < dim; d++) {
            v[d] *= inverse;
        }
    }
}

/* k-means++: each next centroid is drawn with a chance that grows with the
 * squared distance from those before it. */
static void
choose_start(struct kmeans *km)
{
    const struct scan_kernels *kernels = scan_best();
    size_t chosen = mb_rng_below(&km->rng, km->n);

    for (size_t c = 0; c < km->k; c++) {
        double total = 0;
        double mark;

        memcpy(km->centroids + c * km->dim, km->x + chosen * km->dim,
            km->dim * sizeof(float));
        kernels->dot_f32(
            km->centroids + c * km->dim, km->x, km->n, km->dim, km->scores);
        for (size_t i = 0; i < km->n; i++) {
            float d = 2.0f - 2.0f * km->scores[i];

            d = d > 0 ? d : 0;
            if (c == 0 || d < km->distance[i]) {
                km->distance[i] = d;
            }
            total += (double)km->distance[i];
        }
        mark = mb_rng_double(&km->rng) * total;
        chosen = mb_rng_below(&km->rng, km->n); // if all distances are 0
        for (size_t i = 0; i < km->n && total > 0; i++) {
            mark -= (double)km->distance[i];
            if (mark < 0) {
                chosen = i;
                break;
            }
        }
    }
}

static mb_status
train(struct kmeans *km, int iterations, struct mb_error *err)
{
    FaissClusteringParameters params;
    FaissClustering *clustering = NULL;
    FaissIndexFlatIP *index = NULL;
    float *trained;
    size_t size;
    mb_status st = MB_OK;

    faiss_ClusteringParameters_init(&params);
    params.niter = iterations;
    params.spherical = 1;
    params.seed = (int)mb_rng_below(&km->rng, INT32_MAX);
    params.min_points_per_centroid = 1;         // no warnings on stderr
    params.max_points_per_centroid = INT32_MAX; // our caller has sampled
    if (faiss_Clustering_new_with_params(
            &clustering, (int)km->dim, (int)km->k, &params) != 0 ||
        shim_Clustering_set_centroids(clustering, km->centroids) != 0 ||
        faiss_IndexFlatIP_new_with(&index, (idx_t)km->dim) != 0 ||
        faiss_Clustering_train(clustering, (idx_t)km->n, km->x, index) != 0) {
        st = faiss_failed(err, "cluster vectors");
        goto out;
    }
    faiss_Clustering_centroids(clustering, &trained, &size);
    MB_ASSERT(size == km->k * km->dim);
    memcpy(km->centroids, trained, size * sizeof(float));
out:
    faiss_Index_free(index);
    faiss_Clustering_free(clustering);
    return st;
}

/* Centroid c becomes the direction of its members' mean. */
static void
update_centroid(struct kmeans *km, uint32_t c)
{
    float *mean = km->centroids + c * km->dim;

    if (km->count[c] == 0) {
        return;
    }
    memset(mean, 0, km->dim * sizeof(float));
    for (size_t i = 0; i < km->n; i++) {
        if (km->label[i] == c) {
            for (size_t d = 0; d < km->dim; d++) {
                mean[d] += km->x[i * km->dim + d];
            }
        }
    }
    normalize(mean, km->dim);
}

/* Halve each overfull cluster in favour of the smallest; false if none was. */
static bool
share_out(struct kmeans *km)
{
    double limit = FULL_SHARE * (double)km->n / (double)km->k;
    bool changed = false;

    for (uint32_t c = 0; c < km->k; c++) {
        uint32_t smallest = 0;

        if ((double)km->count[c] <= limit) {
            continue;
        }
        for (uint32_t s = 1; s < km->k; s++) {
            if (km->count[s] < km->count[smallest]) {
                smallest = s;
            }
        }
        for (size_t i = 0; i < km->n; i++) {
            if (km->label[i] == c && (mb_rng_u64(&km->rng) & 1u) != 0) {
                km->label[i] = smallest;
                km->count[c]--;
                km->count[smallest]++;
            }
        }
        update_centroid(km, c);
        update_centroid(km, smallest);
        changed = true;
    }
    return changed;
}

static mb_status
cluster(struct kmeans *km, struct mb_error *err)
{
    mb_status st;

    choose_start(km);
    st = train(km, FIRST_ITERATIONS, err);
    for (int round = 0; st == MB_OK && round < BALANCE_ROUNDS; round++) {
        st = vindex_assign(
            km->centroids, km->k, km->x, km->n, km->dim, km->label, err);
        if (st != MB_OK) {
            break;
        }
        memset(km->count, 0, km->k * sizeof(*km->count));
        for (size_t i = 0; i < km->n; i++) {
            km->count[km->label[i]]++;
        }
        if (!share_out(km)) {
            break;
        }
        st = train(km, NEXT_ITERATIONS, err);
    }
    return st;
}

mb_status
vindex_kmeans(const float *x, size_t n, size_t dim, size_t k, uint64_t seed,
    float *centroids, struct mb_error *err)
{
    struct kmeans km = {
        .x = x, .n = n, .dim = dim, .k = k, .centroids = centroids};
    mb_status st;

    MB_ASSERT(k >= 2 && k <= n);
    mb_rng_init(&km.rng, seed);
    use_one_thread();
    km.scores = mb_alloc(n * sizeof(*km.scores));
    km.distance = mb_alloc(n * sizeof(*km.distance));
    km.label = mb_alloc(n * sizeof(*km.label));
    km.count = mb_alloc(k * sizeof(*km.count));
    if (km.scores == NULL || km.distance == NULL || km.label == NULL ||
        km.count == NULL) {
        st = mb_error_set(err, MB_ERR_NOMEM, "cluster %zu vectors", n);
    } else {
        st = cluster(&km, err);
    }
    mb_free(km.count);
    mb_free(km.label);
    mb_free(km.distance);
    mb_free(km.scores);
    return st;
}
