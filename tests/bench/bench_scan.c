/* SPDX-License-Identifier: Apache-2.0
 * tests/bench/bench_scan.c - how fast vectors are scanned, indexed and found.
 *
 *   bench_scan [--dir DIR] [--n N] [--dim N] [--queries N] [--leaf N]
 *              [--seed N] [--uniform]
 *
 * Three tables: kernels of each level (codes in cache and from memory), cost
 * of building an index, search with recall@10 against brute force, whole and
 * under filters. Data is made from the seed (tests/support/dense_data.h). The
 * store is written without sync; queries are warmed up by one round that is
 * not counted. Times: kernels best of 15, search wall clock of one thread. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dense_data.h"
#include "dense_rig.h"

#define K          10
#define MAX_SAMPLE 50000

struct options {
    const char *dir;
    size_t n;
    size_t dim;
    size_t n_queries;
    uint32_t leaf;
    uint64_t seed;
    bool uniform;
};

struct bench {
    struct options opt;
    struct dense_rig rig;
    struct mb_arena *arena;
    float *x;       /* (n + n_queries, dim) */
    mb_segno *best; /* (n_queries, K) by brute force, under the filter */
    float *scores;  /* (n) */
    double *took;   /* (n_queries) us */
    uint64_t *words;
    struct bitset filter;
};

static void
check(mb_status st, const struct mb_error *err, const char *what)
{
    if (st != MB_OK) {
        fprintf(stderr, "bench_scan: %s: %s %s\n", what, mb_status_name(st),
            err != NULL ? err->text : "");
        exit(1);
    }
}

static void *
need(void *p)
{
    check(p != NULL ? MB_OK : MB_ERR_NOMEM, NULL, "memory");
    return p;
}

/* ---- kernels ---- */

static double
best_ns(const struct scan_kernels *k, const int8_t *q, const int8_t *codes,
    size_t n, size_t stride, int32_t *out)
{
    double best = INFINITY;
    size_t repeat = 200000 / n + 1;

    for (int round = 0; round < 15; round++) {
        uint64_t start = mb_clock_ns();

        for (size_t r = 0; r < repeat; r++) {
            k->dot_i8(q, codes, n, stride, out);
        }
        double ns = (double)(mb_clock_ns() - start) / (double)(repeat * n);

        best = ns < best ? ns : best;
    }
    return best;
}

static void
bench_kernels(const struct options *opt)
{
    static const size_t sizes[] = {500, 20000, 200000};
    size_t stride = scan_stride(opt->dim);
    size_t most = sizes[2];
    int8_t *codes = need(mb_alloc(most * stride));
    int8_t *q = need(mb_alloc(stride));
    int32_t *out = need(mb_alloc(most * sizeof(*out)));
    struct mb_rng rng;

    mb_rng_init(&rng, opt->seed);
    for (size_t i = 0; i < most * stride; i++) {
        codes[i] = (int8_t)((int)mb_rng_below(&rng, 255) - 127);
    }
    memcpy(q, codes, stride);
    printf("\nint8 product, dim %zu, ns a vector\n", opt->dim);
    printf("%-14s %10s %10s %10s\n", "level", "500", "20000", "200000");
    for (int level = 0; level < SCAN_N_LEVELS; level++) {
        const struct scan_kernels *k = scan_at((scan_level)level);

        if (k == NULL) {
            continue;
        }
        printf("%-14s", k->name);
        for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
            printf(" %10.2f", best_ns(k, q, codes, sizes[s], stride, out));
        }
        printf("\n");
    }
    mb_free(out);
    mb_free(q);
    mb_free(codes);
}

/* ---- building ---- */

static void
bench_build(struct bench *b)
{
    const struct options *opt = &b->opt;
    const struct mb_tree_options tree_opt = {.leaf_target = opt->leaf,
        .n_total = opt->n,
        .flat_below = 1,
        .seed = opt->seed};
    struct mb_error err = {0};
    struct mb_tree *tree = NULL;
    uint32_t *leaf = need(mb_alloc(opt->n * sizeof(*leaf)));
    uint64_t start = mb_clock_cpu_ns();
    struct mb_probing probing;

    check(mb_tree_fit(b->x, opt->n < MAX_SAMPLE ? opt->n : MAX_SAMPLE, opt->dim,
              &tree_opt, &tree, &err),
        &err, "fit");
    printf("\nbuilding, seconds of CPU\n%-34s %8.2f   %u leaves\n",
        "fit the tree", (double)(mb_clock_cpu_ns() - start) / 1e9,
        mb_tree_n_leaves(tree));
    start = mb_clock_cpu_ns();
    mb_tree_route(tree, b->x, opt->n, leaf);
    printf("%-34s %8.2f\n", "route all",
        (double)(mb_clock_cpu_ns() - start) / 1e9);
    mb_tree_free(tree);
    mb_free(leaf);
    start = mb_clock_cpu_ns();
    check(
        rig_build(&b->rig, b->x, opt->n, opt->dim, &tree_opt, MAX_SAMPLE, &err),
        &err, "build");
    printf("%-34s %8.2f\n", "fit, route and store all",
        (double)(mb_clock_cpu_ns() - start) / 1e9);
    check(rig_read(&b->rig, &err), &err, "read");
    start = mb_clock_cpu_ns();
    check(mb_generation_measure(
              &b->rig.snap, &b->rig.wc.c, 1, 200, 0, opt->seed, &probing, &err),
        &err, "measure");
    printf("%-34s %8.2f   nprobe %u, gap %.3f, recall %.3f\n", "measure recall",
        (double)(mb_clock_cpu_ns() - start) / 1e9, probing.nprobe,
        (double)probing.gap, probing.recall);
    rig_end(&b->rig);
    check(rig_write(&b->rig, &err), &err, "write");
    check(dense_generation_tune(&b->rig.w, &b->rig.wc, 1, &probing, &err), &err,
        "tune");
    check(rig_commit(&b->rig, &err), &err, "commit");
}

/* ---- searching ---- */

/* The K best of each query that pass the filter, by plain scores. */
static void
brute_force(struct bench *b)
{
    const struct options *opt = &b->opt;

    for (size_t i = 0; i < opt->n_queries; i++) {
        mb_segno *best = b->best + i * K;
        size_t n = 0;

        scan_best()->dot_f32(
            b->x + (opt->n + i) * opt->dim, b->x, opt->n, opt->dim, b->scores);
        for (uint32_t s = 0; s < opt->n; s++) {
            size_t at = n;

            if (!bitset_has(&b->filter, s)) {
                continue;
            }
            while (at > 0 && b->scores[best[at - 1]] < b->scores[s]) {
                at--;
            }
            if (at == K) {
                continue;
            }
            n += n < K ? 1 : 0;
            memmove(best + at + 1, best + at, (n - 1 - at) * sizeof(*best));
            best[at] = s;
        }
        while (n < K) {
            best[n++] = MB_NO_SEGMENT;
        }
    }
}

static void
set_filter(struct bench *b, double part)
{
    struct mb_rng rng;

    mb_rng_init(&rng, b->opt.seed);
    memset(b->words, 0, (b->opt.n / 64 + 1) * sizeof(*b->words));
    b->filter = (struct bitset){b->words, b->opt.n, 0};
    for (size_t i = 0; i < b->opt.n; i++) {
        if (mb_rng_double(&rng) < part) {
            b->words[i / 64] |= (uint64_t)1 << (i % 64);
            b->filter.n_set++;
        }
    }
    brute_force(b);
}

static int
compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;

    return x < y ? -1 : x > y ? 1 : 0;
}

/* One row of the table: two rounds, the second counts. */
static void
bench_search(struct bench *b, const char *name, bool filtered, bool exact,
    uint32_t probe)
{
    const struct options *opt = &b->opt;
    struct mb_error err = {0};
    size_t found = 0;
    size_t wanted = 0;
    uint64_t scanned = 0;

    for (size_t i = 0; i < 2 * opt->n_queries; i++) {
        size_t at = i % opt->n_queries;
        struct dense_query q = {.vector = b->x + (opt->n + at) * opt->dim,
            .dim = opt->dim,
            .k = K,
            .exact = exact,
            .nprobe = probe,
            .filter = filtered ? &b->filter : NULL};
        struct dense_result r;
        uint64_t start = mb_clock_ns();

        mb_arena_reset(b->arena);
        check(dense_search(&b->rig.snap, &b->rig.wc.c, &q, b->arena, &r, &err),
            &err, "search");
        if (i < opt->n_queries) {
            continue;
        }
        b->took[at] = (double)(mb_clock_ns() - start) / 1e3;
        scanned += r.n_scanned;
        for (size_t j = 0; j < K; j++) {
            mb_segno want = b->best[at * K + j];

            wanted += want != MB_NO_SEGMENT ? 1 : 0;
            for (size_t h = 0; h < r.n; h++) {
                found += r.hits[h].segno == want ? 1 : 0;
            }
        }
    }
    qsort(b->took, opt->n_queries, sizeof(*b->took), compare_doubles);
    printf("%-22s %9.4f %9.0f %9.0f %10.0f\n", name,
        (double)found / (double)(wanted > 0 ? wanted : 1),
        b->took[opt->n_queries / 2], b->took[opt->n_queries * 99 / 100],
        (double)scanned / (double)opt->n_queries);
}

static void
bench_searches(struct bench *b)
{
    static const uint32_t probes[] = {4, 8, 16, 24, 32, 48, 64};
    static const double parts[] = {0.5, 0.1, 0.01, 0.001};
    struct mb_error err = {0};
    char name[64];

    check(rig_read(&b->rig, &err), &err, "read");
    printf("\nsearch for %d\n%-22s %9s %9s %9s %10s\n", K, "how", "recall",
        "p50 us", "p99 us", "scanned");
    set_filter(b, 2);
    bench_search(b, "exact", false, true, 0);
    bench_search(b, "measured nprobe", false, false, 0);
    for (size_t i = 0; i < sizeof(probes) / sizeof(probes[0]); i++) {
        (void)snprintf(name, sizeof(name), "nprobe %u", probes[i]);
        bench_search(b, name, false, false, probes[i]);
    }
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        set_filter(b, parts[i]);
        (void)snprintf(name, sizeof(name), "filter %g%%", 100 * parts[i]);
        bench_search(b, name, true, false, 0);
    }
    rig_end(&b->rig);
}

/* ---- options ---- */

static uint64_t
number(const char *text, const char *name)
{
    char *end;
    unsigned long long v = strtoull(text, &end, 10);

    if (*end != '\0' || v == 0) {
        fprintf(stderr, "bench_scan: %s wants a number above 0\n", name);
        exit(2);
    }
    return v;
}

static struct options
parse(int argc, char **argv)
{
    struct options opt = {.dir = NULL,
        .n = 100000,
        .dim = 256,
        .n_queries = 500,
        .leaf = 0,
        .seed = 42};

    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";

        if (strcmp(argv[i], "--uniform") == 0) {
            opt.uniform = true;
            continue;
        }
        i++;
        if (strcmp(argv[i - 1], "--dir") == 0) {
            opt.dir = value;
        } else if (strcmp(argv[i - 1], "--n") == 0) {
            opt.n = (size_t)number(value, "--n");
        } else if (strcmp(argv[i - 1], "--dim") == 0) {
            opt.dim = (size_t)number(value, "--dim");
        } else if (strcmp(argv[i - 1], "--queries") == 0) {
            opt.n_queries = (size_t)number(value, "--queries");
        } else if (strcmp(argv[i - 1], "--leaf") == 0) {
            opt.leaf = (uint32_t)number(value, "--leaf");
        } else if (strcmp(argv[i - 1], "--seed") == 0) {
            opt.seed = number(value, "--seed");
        } else {
            fprintf(stderr, "bench_scan: unknown option %s\n", argv[i - 1]);
            exit(2);
        }
    }
    if (opt.dir == NULL) {
        fprintf(stderr, "bench_scan: --dir DIR: an empty folder, please\n");
        exit(2);
    }
    return opt;
}

int
main(int argc, char **argv)
{
    struct bench b = {.opt = parse(argc, argv)};
    const struct options *opt = &b.opt;
    struct mb_error err = {0};

    printf("membank %s, kernels %s, %u CPUs; %s, n %zu, dim %zu, %zu queries, "
           "seed %llu\n",
        MB_VERSION, scan_best()->name, mb_cpu_count(),
        opt->uniform ? "uniform" : "clustered", opt->n, opt->dim,
        opt->n_queries, (unsigned long long)opt->seed);
    bench_kernels(opt);
    b.x =
        need(opt->uniform
                 ? data_uniform(opt->n + opt->n_queries, opt->dim, opt->seed)
                 : data_clustered(opt->n, opt->n_queries, opt->dim, opt->seed));
    b.arena = need(mb_arena_new((size_t)1 << 30));
    b.best = need(mb_alloc((opt->n_queries + 1) * K * sizeof(*b.best)));
    b.scores = need(mb_alloc(opt->n * sizeof(*b.scores)));
    b.took = need(mb_alloc(opt->n_queries * sizeof(*b.took)));
    b.words = need(mb_alloc((opt->n / 64 + 1) * sizeof(*b.words)));
    check(rig_open(&b.rig, opt->dir, &err), &err, "open");
    bench_build(&b);
    bench_searches(&b);
    rig_close(&b.rig);
    mb_free(b.words);
    mb_free(b.took);
    mb_free(b.scores);
    mb_free(b.best);
    mb_arena_free(b.arena);
    mb_free(b.x);
    return 0;
}
