/* SPDX-License-Identifier: Apache-2.0
 * store/tree_fit.c - grows the cluster tree from a sample.
 *
 * Level by level: a node whose share of the collection is well above
 * leaf_target is split by balanced k-means (vindex.c) on at most
 * TRAIN_PER_CENTROID members a centroid, then all its members are dealt out to
 * the children. The number of children is what its share needs, at most the
 * fan-out, so that leaves come out at about leaf_target whatever the size of
 * the collection. Nodes of one level are independent: a pool may split them
 * together, and each has its own seed, so the tree does not depend on it.
 * Threads: any; the pool's tasks touch their own split_job only. */
#include "tree_fit.h"

#include <math.h>
#include <string.h>

#include "tree.h"
#include "vindex.h"

#define DEFAULT_FANOUT     16
#define DEFAULT_DEPTH      3
#define MIN_LEAF_TARGET    256
#define MAX_FANOUT         1024
#define MAX_DEPTH          8
#define LEAF_SLACK         1.5 /* times leaf_target: not worth a split yet */
#define TRAIN_PER_CENTROID 128
#define SAMPLE_PER_CHILD   8  /* members a child must be able to have */
#define SPREAD_QUERIES     32 /* pairs that the spread of a leaf is taken from */
#define SPREAD_MEMBERS     32

/* The tree while it grows. */
struct fit {
    const float *sample; /* (n, dim) */
    size_t n;
    size_t dim;
    struct mb_tree_options opt;
    uint32_t *order; /* (n) sample rows, those of a node in one range */
    struct tree_node *nodes;
    float *centroids; /* (capacity, dim) */
    size_t *begin;    /* (capacity) range of each node in order */
    size_t *size;
    uint32_t n_nodes;
    uint32_t capacity;
};

/* One node to be split; result: k children and their sizes. */
struct split_job {
    const struct fit *fit;
    uint32_t node;
    uint32_t k;
    float *centroids; /* (k, dim) */
    size_t *count;    /* (k) */
    mb_status st;
    struct mb_error err;
};

/* ---- splitting ---- */

/* Rows of at most `max` members, drawn without repeats. */
static float *
draw_rows(const struct fit *f, const uint32_t *members, size_t n, size_t max,
    struct mb_rng *rng, size_t *n_rows)
{
    size_t m = n < max ? n : max;
    uint32_t *pick = mb_alloc(n * sizeof(*pick));
    float *rows = mb_alloc(m * f->dim * sizeof(*rows));

    if (pick == NULL || rows == NULL) {
        mb_free(pick);
        mb_free(rows);
        return NULL;
    }
    memcpy(pick, members, n * sizeof(*pick));
    for (size_t i = 0; i < m; i++) {
        size_t j = i + mb_rng_below(rng, n - i);
        uint32_t chosen = pick[j];

        pick[j] = pick[i];
        pick[i] = chosen;
        memcpy(rows + i * f->dim, f->sample + (size_t)chosen * f->dim,
            f->dim * sizeof(float));
    }
    mb_free(pick);
    *n_rows = m;
    return rows;
}

/* Children without members go. */
static void
drop_empty(struct split_job *job)
{
    size_t dim = job->fit->dim;
    uint32_t kept = 0;

    for (uint32_t c = 0; c < job->k; c++) {
        if (job->count[c] == 0) {
            continue;
        }
        if (kept != c) {
            job->count[kept] = job->count[c];
            memcpy(job->centroids + kept * dim, job->centroids + c * dim,
                dim * sizeof(float));
        }
        kept++;
    }
    job->k = kept;
}

static void
split_node(void *arg, size_t i)
{
    struct split_job *job = (struct split_job *)arg + i;
    const struct fit *f = job->fit;
    uint32_t *members = f->order + f->begin[job->node];
    size_t n = f->size[job->node];
    size_t n_rows = 0;
    float *rows;
    struct mb_rng rng;

    mb_rng_init(&rng, f->opt.seed + job->node);
    job->centroids = mb_alloc(job->k * f->dim * sizeof(float));
    job->count = mb_alloc(job->k * sizeof(*job->count));
    rows = draw_rows(
        f, members, n, (size_t)job->k * TRAIN_PER_CENTROID, &rng, &n_rows);
    if (job->centroids == NULL || job->count == NULL || rows == NULL) {
        job->st = mb_error_set(&job->err, MB_ERR_NOMEM, "split %zu vectors", n);
        goto out;
    }
    if (job->k == 1) {
        goto out;
    }
    job->st = vindex_kmeans(rows, n_rows, f->dim, job->k, mb_rng_u64(&rng),
        job->centroids, &job->err);
    if (job->st == MB_OK) {
        job->st = tree_partition(f->sample, f->dim, members, n, job->centroids,
            job->k, job->count, &job->err);
    }
    if (job->st == MB_OK) {
        drop_empty(job);
    }
out:
    mb_free(rows);
}

/* ---- spread ---- */

/* Mean over queries of the variance of their cosine with rows (n, dim). */
static double
variance_of(const struct scan_kernels *kernels, const float *queries,
    size_t n_queries, const float *rows, size_t n, size_t dim)
{
    float score[SPREAD_MEMBERS];
    double total = 0;

    for (size_t q = 0; q < n_queries; q++) {
        double sum = 0;
        double squares = 0;

        kernels->dot_f32(queries + q * dim, rows, n, dim, score);
        for (size_t i = 0; i < n; i++) {
            sum += (double)score[i];
            squares += (double)score[i] * (double)score[i];
        }
        total += squares / (double)n - sum / (double)n * (sum / (double)n);
    }
    return total > 0 ? total / (double)n_queries : 0;
}

/* Fill in the spread of all leaves, from members drawn at random. */
static mb_status
measure_spread(struct fit *f)
{
    const struct scan_kernels *kernels = scan_best();
    size_t n_queries = 0;
    float *queries;
    struct mb_rng rng;

    mb_rng_init(&rng, f->opt.seed);
    queries = draw_rows(f, f->order, f->n, SPREAD_QUERIES, &rng, &n_queries);
    if (queries == NULL) {
        return MB_ERR_NOMEM;
    }
    for (uint32_t i = 0; i < f->n_nodes; i++) {
        size_t n = 0;
        float *rows;

        if (f->nodes[i].n_children > 0) {
            continue;
        }
        rows = draw_rows(
            f, f->order + f->begin[i], f->size[i], SPREAD_MEMBERS, &rng, &n);
        if (rows == NULL) {
            mb_free(queries);
            return MB_ERR_NOMEM;
        }
        f->nodes[i].spread =
            (float)variance_of(kernels, queries, n_queries, rows, n, f->dim);
        mb_free(rows);
    }
    mb_free(queries);
    return MB_OK;
}

/* ---- growing ---- */

static mb_status
reserve_nodes(struct fit *f, uint32_t more)
{
    uint32_t capacity = f->capacity == 0 ? 64 : f->capacity;
    void *p;

    if (more > TREE_MAX_NODES - f->n_nodes) {
        return MB_ERR_TOO_LARGE;
    }
    while (capacity < f->n_nodes + more) {
        capacity *= 2;
    }
    if (capacity == f->capacity) {
        return MB_OK;
    }
    if ((p = mb_realloc(f->nodes, capacity * sizeof(*f->nodes))) == NULL) {
        return MB_ERR_NOMEM;
    }
    f->nodes = p;
    p = mb_realloc(f->centroids, capacity * f->dim * sizeof(float));
    if (p == NULL) {
        return MB_ERR_NOMEM;
    }
    f->centroids = p;
    if ((p = mb_realloc(f->begin, capacity * sizeof(*f->begin))) == NULL) {
        return MB_ERR_NOMEM;
    }
    f->begin = p;
    if ((p = mb_realloc(f->size, capacity * sizeof(*f->size))) == NULL) {
        return MB_ERR_NOMEM;
    }
    f->size = p;
    f->capacity = capacity;
    return MB_OK;
}

/* A node with its range; there is room. centroid NULL: the mean's direction. */
static void
add_node(struct fit *f, uint32_t parent, uint32_t level, size_t begin,
    size_t size, const float *centroid)
{
    uint32_t number = f->n_nodes++;
    struct tree_node *node = &f->nodes[number];
    float *mean = f->centroids + (size_t)number * f->dim;
    double norm = 0;

    memset(node, 0, sizeof(*node));
    node->parent = parent;
    node->level = level;
    node->share = (float)((double)size / (double)f->n);
    f->begin[number] = begin;
    f->size[number] = size;
    memset(mean, 0, f->dim * sizeof(float));
    for (size_t i = 0; i < size; i++) {
        const float *x = f->sample + (size_t)f->order[begin + i] * f->dim;

        for (size_t d = 0; d < f->dim; d++) {
            mean[d] += x[d];
        }
    }
    for (size_t d = 0; d < f->dim; d++) {
        norm += (double)mean[d] * (double)mean[d];
    }
    norm = sqrt(norm);
    node->mean_norm = (float)(norm / (double)size);
    if (centroid != NULL) {
        memcpy(mean, centroid, f->dim * sizeof(float));
    } else {
        for (size_t d = 0; norm > 0 && d < f->dim; d++) {
            mean[d] = (float)((double)mean[d] / norm);
        }
    }
}

/* How many children node i should have; 0: it stays a leaf. */
static uint32_t
wanted_children(const struct fit *f, uint32_t i)
{
    double expected =
        (double)f->opt.n_total * (double)f->size[i] / (double)f->n;
    double k = ceil(expected / f->opt.leaf_target);
    size_t supported = f->size[i] / SAMPLE_PER_CHILD;

    if (f->nodes[i].level >= f->opt.max_depth) {
        return 0;
    }
    if (expected <= LEAF_SLACK * f->opt.leaf_target) {
        return f->opt.even_depth ? 1 : 0;
    }
    k = k > f->opt.fanout ? f->opt.fanout : k;
    k = k > (double)supported ? (double)supported : k;
    return k < 2 ? (f->opt.even_depth ? 1 : 0) : (uint32_t)k;
}

static void
free_jobs(struct split_job *jobs, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        mb_free(jobs[i].centroids);
        mb_free(jobs[i].count);
    }
    mb_free(jobs);
}

/* Hang the children of finished jobs into the tree, in the order of nodes. */
static mb_status
take_children(struct fit *f, const struct split_job *jobs, size_t n_jobs,
    struct mb_error *err)
{
    for (size_t j = 0; j < n_jobs; j++) {
        const struct split_job *job = &jobs[j];
        size_t begin = f->begin[job->node];
        mb_status st = job->st;

        if (st != MB_OK) {
            return mb_error_set(err, st, "%s", job->err.text);
        }
        if (job->k < 2 && !f->opt.even_depth) {
            continue; // all members are alike: a leaf after all
        }
        if (job->k < 2) { // one child, so that each way down is as long
            st = reserve_nodes(f, 1);
            if (st != MB_OK) {
                return mb_error_set(err, st, "tree of %u nodes", f->n_nodes);
            }
            f->nodes[job->node].first_child = f->n_nodes;
            f->nodes[job->node].n_children = 1;
            add_node(f, job->node, f->nodes[job->node].level + 1, begin,
                f->size[job->node], f->centroids + (size_t)job->node * f->dim);
            continue;
        }
        st = reserve_nodes(f, job->k);
        if (st != MB_OK) {
            return mb_error_set(err, st, "tree of %u nodes", f->n_nodes);
        }
        f->nodes[job->node].first_child = f->n_nodes;
        f->nodes[job->node].n_children = job->k;
        for (uint32_t c = 0; c < job->k; c++) {
            add_node(f, job->node, f->nodes[job->node].level + 1, begin,
                job->count[c], job->centroids + c * f->dim);
            begin += job->count[c];
        }
    }
    return MB_OK;
}

/* Split what needs it among nodes [from, to), all of one level. */
static mb_status
grow_level(struct fit *f, uint32_t from, uint32_t to, struct mb_error *err)
{
    struct split_job *jobs = mb_calloc(to - from, sizeof(*jobs));
    size_t n_jobs = 0;
    mb_status st;

    if (jobs == NULL) {
        return mb_error_set(err, MB_ERR_NOMEM, "tree of %u nodes", f->n_nodes);
    }
    for (uint32_t i = from; i < to; i++) {
        uint32_t k = wanted_children(f, i);

        if (k > 0) {
            jobs[n_jobs++] = (struct split_job){.fit = f, .node = i, .k = k};
        }
    }
    mb_pool_for(f->opt.pool, n_jobs, split_node, jobs);
    st = take_children(f, jobs, n_jobs, err);
    free_jobs(jobs, n_jobs);
    return st;
}

static mb_status
grow(struct fit *f, struct mb_error *err)
{
    uint32_t from = 0;
    mb_status st = MB_OK;

    if (reserve_nodes(f, 1) != MB_OK ||
        (f->order = mb_alloc(f->n * sizeof(*f->order))) == NULL) {
        return mb_error_set(err, MB_ERR_NOMEM, "tree of %zu vectors", f->n);
    }
    for (size_t i = 0; i < f->n; i++) {
        f->order[i] = (uint32_t)i;
    }
    add_node(f, TREE_NO_NODE, 0, 0, f->n, NULL);
    while (st == MB_OK && from < f->n_nodes) {
        uint32_t to = f->n_nodes;

        st = grow_level(f, from, to, err);
        from = to;
    }
    if (st == MB_OK && measure_spread(f) != MB_OK) {
        st = mb_error_set(err, MB_ERR_NOMEM, "tree of %u nodes", f->n_nodes);
    }
    return st;
}

/* ---- public ---- */

/* A query scores all leaf centroids and then some leaves: both cost the same
 * where leaves are as large as they are many. */
static uint32_t
default_leaf_target(uint64_t n_total)
{
    double target = 0.8 * sqrt((double)n_total);

    return target < MIN_LEAF_TARGET ? MIN_LEAF_TARGET : (uint32_t)target;
}

static mb_status
take_options(
    struct fit *f, const struct mb_tree_options *opt, struct mb_error *err)
{
    f->opt = *opt;
    f->opt.fanout = opt->fanout == 0 ? DEFAULT_FANOUT : opt->fanout;
    f->opt.max_depth = opt->max_depth == 0 ? DEFAULT_DEPTH : opt->max_depth;
    f->opt.flat_below =
        opt->flat_below == 0 ? TREE_FLAT_BELOW : opt->flat_below;
    f->opt.n_total = opt->n_total < f->n ? f->n : opt->n_total;
    if (f->opt.leaf_target == 0) {
        f->opt.leaf_target = default_leaf_target(f->opt.n_total);
    }
    if (f->opt.fanout < 2 || f->opt.fanout > MAX_FANOUT) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "fan-out %u is not within 2 to %d", f->opt.fanout, MAX_FANOUT);
    }
    if (f->opt.max_depth > MAX_DEPTH) {
        return mb_error_set(err, MB_ERR_BAD_ARG, "depth %u is above %d",
            f->opt.max_depth, MAX_DEPTH);
    }
    return MB_OK;
}

static mb_status
tree_of_fit(const struct fit *f, struct mb_tree **out, struct mb_error *err)
{
    struct mb_tree *tree;
    mb_status st = tree_new(f->dim, f->n_nodes, &tree);

    if (st != MB_OK) {
        return mb_error_set(err, st, "tree of %u nodes", f->n_nodes);
    }
    memcpy(tree->nodes, f->nodes, f->n_nodes * sizeof(*f->nodes));
    memcpy(tree->centroids, f->centroids,
        (size_t)f->n_nodes * f->dim * sizeof(float));
    st = tree_finish(tree, err);
    if (st != MB_OK) {
        mb_tree_free(tree);
        return st;
    }
    *out = tree;
    return MB_OK;
}

mb_status
mb_tree_fit(const float *sample, size_t n, size_t dim,
    const struct mb_tree_options *opt, struct mb_tree **out,
    struct mb_error *err)
{
    struct fit f = {.sample = sample, .n = n, .dim = dim};
    mb_status st;

    if (dim == 0 || dim > MB_MAX_DIM || n >= UINT32_MAX) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "tree of %zu vectors of %zu dimensions", n, dim);
    }
    st = take_options(&f, opt, err);
    if (st != MB_OK) {
        return st;
    }
    if (n == 0) {
        st = tree_flat_new(dim, out);
        return st == MB_OK ? st : mb_error_set(err, st, "flat tree");
    }
    if (f.opt.n_total < f.opt.flat_below) {
        f.opt.max_depth = 0;
    }
    st = grow(&f, err);
    if (st == MB_OK) {
        st = tree_of_fit(&f, out, err);
    }
    mb_free(f.size);
    mb_free(f.begin);
    mb_free(f.centroids);
    mb_free(f.nodes);
    mb_free(f.order);
    return st;
}
