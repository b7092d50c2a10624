/* SPDX-License-Identifier: Apache-2.0
 * tests/bench/bench_delete.c - how long the delete of one document takes.
 *
 *   bench_delete STORE COLLECTION [N [PAUSE_MS]]
 *
 * Deletes N documents of a store, each alone and after a pause: take a copy.
 * A document is chosen by a random segment, so that long ones come first. Time
 * is what the caller waits for, the sync in it; what the scrub does afterwards
 * shows without a pause, when the next delete waits for it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "mb_store.h"

#define MAX_DELETES 10000

struct bench {
    struct mb_store *store;
    struct mb_slice collection;
    struct mb_rng rng;
    double ms[MAX_DELETES];
    size_t n;
};

static void
check(mb_status st, const struct mb_error *err, const char *what)
{
    if (st == MB_OK)
        return;
    fprintf(stderr, "bench_delete: %s: %s %s\n", what, mb_status_name(st),
        err->text);
    exit(1);
}

/* Id and number of segments of a document; false if none is left. */
static bool
choose(struct bench *b, char id[MB_MAX_DOCUMENT_ID], size_t *size,
    uint32_t *n_segments)
{
    struct mb_snapshot *snap;
    struct mb_collection c;
    struct mb_segment segment;
    struct mb_document doc;
    struct mb_error err = {0};
    check(mb_snapshot_begin(b->store, &snap, &err), &err, "read");
    check(mb_collection_get(snap, b->collection, &c, &err), &err, "read");
    mb_status st = MB_ERR_NOT_FOUND;
    while (c.n_documents > 0 && st == MB_ERR_NOT_FOUND) {
        mb_segno at = (mb_segno)mb_rng_below(&b->rng, c.next_segno);
        st = mb_segment_get(snap, &c, at, &segment, &err);
    }
    if (st == MB_OK) {
        check(mb_document_get(snap, &c, segment.docno, &doc, &err), &err,
            "document");
        memcpy(id, doc.id.data, doc.id.size);
        *size = doc.id.size;
        *n_segments = doc.n_segments;
    }
    mb_snapshot_end(snap);
    return st == MB_OK;
}

static bool
delete_one(struct bench *b)
{
    char id[MB_MAX_DOCUMENT_ID];
    size_t size;
    uint32_t n_segments;
    struct mb_error err = {0};
    struct mb_op *op;
    if (!choose(b, id, &size, &n_segments))
        return false;
    struct mb_slice name = mb_slice_of(id, size);
    check(mb_op_delete_new(b->collection, &name, 1, &op, &err), &err, "delete");
    uint64_t start = mb_clock_ns();
    check(mb_store_apply(b->store, op, &err), &err, "delete");
    b->ms[b->n] = (double)(mb_clock_ns() - start) / 1e6;
    mb_op_free(op);
    printf("%8.2f ms  %6u segments  %.*s\n", b->ms[b->n], (unsigned)n_segments,
        (int)size, id);
    b->n++;
    return true;
}

static int
compare(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

int
main(int argc, char **argv)
{
    static struct bench b;
    const struct mb_store_options opt = {0};
    struct mb_error err = {0};
    unsigned long n = argc > 3 ? strtoul(argv[3], NULL, 10) : 20;
    unsigned long ms = argc > 4 ? strtoul(argv[4], NULL, 10) : 0;
    const struct timespec pause = {
        (time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    if (argc < 3 || n == 0 || n > MAX_DELETES) {
        fprintf(stderr, "usage: bench_delete STORE COLLECTION [N [PAUSE_MS]]\n"
                        "It deletes: give it a copy.\n");
        return 2;
    }
    mb_rng_init(&b.rng, 7);
    b.collection = mb_slice_cstr(argv[2]);
    check(mb_store_open(argv[1], &opt, &b.store, &err), &err, argv[1]);
    while (b.n < n && delete_one(&b))
        (void)nanosleep(&pause, NULL);
    mb_store_close(b.store);
    if (b.n == 0)
        return 1;
    qsort(b.ms, b.n, sizeof b.ms[0], compare);
    printf("%zu deletes: median %.2f ms, p90 %.2f ms, slowest %.2f ms\n", b.n,
        b.ms[b.n / 2], b.ms[b.n * 9 / 10], b.ms[b.n - 1]);
    return 0;
}
