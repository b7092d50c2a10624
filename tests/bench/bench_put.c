/* SPDX-License-Identifier: Apache-2.0
 * tests/bench/bench_put.c - how fast text becomes a store: preparing a put
 * (hash, compress, analyse: any thread) and applying it (the writer).
 *
 *   bench_put --text FILE [--dir DIR] [--segment BYTES] [--document BYTES]
 *             [--batch MB] [--dim N] [--single N]
 *
 * The file is cut into documents and these into segments (820 bytes are about
 * 250 tokens). With --dim each segment has a random vector of N dimensions (a
 * client collection whose documents have one segment each). --single N puts N
 * small documents one by one afterwards, each with its own sync. Times are wall
 * clock; prepare and apply do not overlap here. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mb_store.h"

struct options {
    const char *text;
    const char *dir;
    size_t segment_bytes;
    size_t document_bytes;
    size_t batch_bytes;
    size_t dim;
    size_t n_single;
};

struct bench {
    struct options opt;
    struct mb_store *store;
    struct mb_analyzer *an;
    struct mb_rng rng;
    uint8_t *text;
    size_t size;
    uint64_t prepare_ns;
    uint64_t apply_ns;
    uint64_t slowest_ns;
    uint64_t n_documents;
    uint64_t n_segments;
};

static void
check(mb_status st, const struct mb_error *err, const char *what)
{
    if (st == MB_OK)
        return;
    fprintf(
        stderr, "bench_put: %s: %s %s\n", what, mb_status_name(st), err->text);
    exit(1);
}

static void
read_text(struct bench *b)
{
    FILE *f = fopen(b->opt.text, "rb");
    if (f == NULL || fseek(f, 0, SEEK_END) != 0) {
        fprintf(stderr, "bench_put: cannot read %s\n", b->opt.text);
        exit(1);
    }
    b->size = (size_t)ftell(f);
    rewind(f);
    b->text = mb_alloc(b->size + 1);
    if (b->text == NULL || fread(b->text, 1, b->size, f) != b->size)
        exit(1);
    fclose(f);
}

/* End of a piece of about `want` bytes from `at`: behind a space. */
static size_t
cut(const struct bench *b, size_t at, size_t want, size_t end)
{
    if (end - at <= want)
        return end;
    size_t to = at + want;
    while (to > at + want / 2 && b->text[to - 1] != ' ' &&
           b->text[to - 1] != '\n') {
        to--;
    }
    while (to < end && (b->text[to] & 0xc0) == 0x80) {
        to++;
    }
    return to;
}

struct batch {
    struct mb_arena *arena;
    struct mb_put_document *docs;
    size_t n;
    size_t bytes;
};

static void
add_document(struct bench *b, struct batch *batch, size_t at, size_t end)
{
    size_t max = (end - at) / (b->opt.segment_bytes / 2) + 2;
    struct mb_span *spans = mb_arena_alloc(batch->arena, max * sizeof(*spans));
    char *id = mb_arena_alloc(batch->arena, 32);
    size_t n = 0;
    for (size_t from = at; from < end; n++) {
        size_t to = cut(b, from, b->opt.segment_bytes, end);
        spans[n] = (struct mb_span){(uint32_t)(from - at), (uint32_t)(to - at),
            (uint32_t)((to - from) * 10 / 33 + 1)};
        from = to;
    }
    float *vector = NULL;
    if (b->opt.dim > 0) {
        vector = mb_arena_alloc(batch->arena, b->opt.dim * sizeof(*vector));
        for (size_t i = 0; i < b->opt.dim; i++) {
            vector[i] = (float)mb_rng_normal(&b->rng);
        }
    }
    snprintf(id, 32, "doc-%llu", (unsigned long long)b->n_documents++);
    batch->docs[batch->n++] = (struct mb_put_document){.id = mb_slice_cstr(id),
        .title = mb_slice_cstr("A title of some words"),
        .text = mb_slice_of(b->text + at, end - at),
        .segments = spans,
        .n_segments = n,
        .vector = vector};
    b->n_segments += n;
    batch->bytes += end - at;
}

static void
put_batch(
    struct bench *b, const struct mb_collection *coll, struct batch *batch)
{
    struct mb_error err = {.status = MB_OK};
    struct mb_op *op = NULL;
    uint64_t start = mb_clock_ns();
    check(mb_op_put_new(coll, b->an, batch->docs, batch->n, &op, &err), &err,
        "put");
    uint64_t prepared = mb_clock_ns();
    check(mb_store_apply(b->store, op, &err), &err, "apply");
    uint64_t done = mb_clock_ns();
    mb_op_free(op);
    b->prepare_ns += prepared - start;
    b->apply_ns += done - prepared;
    if (done - prepared > b->slowest_ns)
        b->slowest_ns = done - prepared;
    printf("%8.1f MB  prepare %6.3f s/8MB  apply %6.3f s/8MB\n",
        (double)batch->bytes / 1e6,
        (double)(prepared - start) / 1e9 * 8e6 / (double)batch->bytes,
        (double)(done - prepared) / 1e9 * 8e6 / (double)batch->bytes);
    mb_arena_reset(batch->arena);
    batch->n = 0;
    batch->bytes = 0;
}

static struct mb_collection
read_collection(struct bench *b)
{
    struct mb_error err = {.status = MB_OK};
    struct mb_snapshot *snap = NULL;
    struct mb_collection c;
    check(mb_snapshot_begin(b->store, &snap, &err), &err, "snapshot");
    check(mb_collection_get(snap, mb_slice_cstr("bench"), &c, &err), &err,
        "collection");
    mb_snapshot_end(snap);
    return c;
}

static void
create(struct bench *b)
{
    struct mb_error err = {.status = MB_OK};
    struct mb_collection_settings s;
    struct mb_op *op = NULL;
    mb_collection_settings_default(&s);
    s.embedding = b->opt.dim > 0 ? MB_EMBED_CLIENT : MB_EMBED_LSA;
    s.dim = (uint32_t)b->opt.dim;
    check(mb_op_create_new(mb_slice_cstr("bench"), &s, false, &op, &err), &err,
        "create");
    check(mb_store_apply(b->store, op, &err), &err, "create");
    mb_op_free(op);
}

static void
put_all(struct bench *b)
{
    struct mb_collection coll = read_collection(b);
    struct batch batch = {.arena = mb_arena_new((size_t)4 << 30)};
    size_t max = b->opt.batch_bytes / (b->opt.document_bytes / 2) + 2;
    batch.docs = mb_calloc(max, sizeof(*batch.docs));
    for (size_t at = 0; at < b->size;) {
        size_t to = cut(b, at, b->opt.document_bytes, b->size);
        add_document(b, &batch, at, to);
        at = to;
        if (batch.bytes >= b->opt.batch_bytes || batch.n == max)
            put_batch(b, &coll, &batch);
    }
    if (batch.n > 0)
        put_batch(b, &coll, &batch);
    mb_free(batch.docs);
    mb_arena_free(batch.arena);
}

static void
put_single(struct bench *b)
{
    struct mb_collection coll = read_collection(b);
    struct mb_error err = {.status = MB_OK};
    uint64_t start = mb_clock_ns();
    for (size_t i = 0; i < b->opt.n_single; i++) {
        char id[32];
        size_t at = (size_t)mb_rng_below(&b->rng, b->size - 400);
        while ((b->text[at] & 0xc0) == 0x80) {
            at++;
        }
        size_t end = cut(b, at, 200, b->size);
        struct mb_span span = {0, (uint32_t)(end - at), 50};
        snprintf(id, sizeof(id), "single-%zu", i);
        struct mb_put_document doc = {.id = mb_slice_cstr(id),
            .text = mb_slice_of(b->text + at, end - at),
            .segments = &span,
            .n_segments = 1};
        struct mb_op *op = NULL;
        check(mb_op_put_new(&coll, b->an, &doc, 1, &op, &err), &err, "put");
        check(mb_store_apply(b->store, op, &err), &err, "apply");
        mb_op_free(op);
    }
    printf("single puts: %zu, %.1f us each\n", b->opt.n_single,
        (double)(mb_clock_ns() - start) / 1e3 / (double)b->opt.n_single);
}

static void
report(struct bench *b)
{
    struct mb_error err = {.status = MB_OK};
    struct mb_store_stats stats;
    struct mb_snapshot *snap = NULL;
    const char *name;
    uint64_t rows;
    uint64_t bytes;
    double mb = (double)b->size / 1e6;
    printf("\ntext %.1f MB, %llu documents, %llu segments\n", mb,
        (unsigned long long)b->n_documents, (unsigned long long)b->n_segments);
    printf("prepare %.2f MB/s, apply %.2f MB/s, slowest commit %.0f ms\n",
        mb / ((double)b->prepare_ns / 1e9), mb / ((double)b->apply_ns / 1e9),
        (double)b->slowest_ns / 1e6);
    check(mb_store_stats(b->store, &stats, &err), &err, "stats");
    printf("file %.1f MB (%.2f x text), used %.1f MB, resident %.0f MB\n",
        (double)stats.file_bytes / 1e6, (double)stats.file_bytes / 1e6 / mb,
        (double)stats.used_bytes / 1e6, (double)mb_process_rss_bytes() / 1e6);
    check(mb_snapshot_begin(b->store, &snap, &err), &err, "snapshot");
    for (size_t i = 0; mb_store_table_stats(snap, i, &name, &rows, &bytes);
         i++) {
        if (rows > 0) {
            printf("  %-14s %9llu rows %9.1f MB\n", name,
                (unsigned long long)rows, (double)bytes / 1e6);
        }
    }
    mb_snapshot_end(snap);
}

static void
parse(struct options *opt, int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *v = argv[i + 1];
        size_t n = (size_t)strtoull(v, NULL, 10);
        if (strcmp(argv[i], "--text") == 0)
            opt->text = v;
        else if (strcmp(argv[i], "--dir") == 0)
            opt->dir = v;
        else if (strcmp(argv[i], "--segment") == 0)
            opt->segment_bytes = n;
        else if (strcmp(argv[i], "--document") == 0)
            opt->document_bytes = n;
        else if (strcmp(argv[i], "--batch") == 0)
            opt->batch_bytes = n << 20;
        else if (strcmp(argv[i], "--dim") == 0)
            opt->dim = n;
        else if (strcmp(argv[i], "--single") == 0)
            opt->n_single = n;
    }
    if (opt->text == NULL || opt->segment_bytes < 16 ||
        opt->document_bytes < 16) {
        fprintf(stderr, "usage: bench_put --text FILE [OPTION VALUE]...\n");
        exit(2);
    }
}

int
main(int argc, char **argv)
{
    struct bench b = {.opt = {.dir = "/tmp/bench_put",
                          .segment_bytes = 820,
                          .document_bytes = 40000,
                          .batch_bytes = (size_t)8 << 20}};
    struct mb_error err = {.status = MB_OK};
    const struct mb_store_options opt = {.create = true};
    parse(&b.opt, argc, argv);
    mb_rng_init(&b.rng, 1);
    read_text(&b);
    check(mb_analyzer_new("english", &b.an, &err), &err, "analyzer");
    check(mb_store_open(b.opt.dir, &opt, &b.store, &err), &err, "open");
    create(&b);
    put_all(&b);
    if (b.opt.n_single > 0)
        put_single(&b);
    report(&b);
    mb_store_close(b.store);
    uint64_t start = mb_clock_ns();
    check(mb_store_open(b.opt.dir, &opt, &b.store, &err), &err, "open again");
    printf("open again: %.2f ms\n", (double)(mb_clock_ns() - start) / 1e6);
    mb_store_close(b.store);
    mb_analyzer_free(b.an);
    mb_free(b.text);
    return 0;
}
