/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/put.c - how fast documents become durable.
 *
 * Documents of about --bytes bytes of made-up text: single puts one after
 * another (each waits for its commit), batches, and single puts of several
 * clients at once, whose commits the daemon joins.
 * Threads: as bench.h says. */
#include "bench.h"

#include <math.h>
#include <string.h>

#define BATCH      100u
#define N_WORDS    20000u /* of the made-up language */
#define COLLECTION "bench-put"

struct putting {
    struct bench *b;
    uint64_t run; /* so that no run repeats the ids of another */
    size_t bytes;
    size_t per_put;
};

/* Text of words whose frequency falls as in real ones (Zipf). */
static void
make_text(struct mb_rng *rng, char *out, size_t size)
{
    size_t at = 0;

    while (at < size) {
        double u = mb_rng_double(rng);
        uint64_t word = (uint64_t)exp(u * log(N_WORDS));
        uint64_t v = mb_hash64(&word, sizeof word, 7);

        for (size_t n = 3 + v % 6; n > 0 && at < size; n--, v /= 26) {
            out[at++] = (char)('a' + v % 26);
        }
        if (at < size)
            out[at++] = ' ';
    }
}

static mb_status
pack_put(void *arg, uint64_t c, uint64_t i, struct mb_buffer *args)
{
    const struct putting *p = arg;
    struct mb_writer w;
    struct mb_rng rng;
    char *text = mb_alloc(p->bytes + 1);

    if (text == NULL)
        return MB_ERR_NOMEM;
    mb_writer_init(&w, args);
    mb_write_map(&w, 2);
    mb_write_kv_cstr(&w, "collection", COLLECTION);
    mb_write_cstr(&w, "documents");
    mb_write_array(&w, p->per_put);
    for (size_t j = 0; j < p->per_put; j++) {
        char id[80];

        (void)snprintf(id, sizeof id, "%llx-%llu-%llu-%zu",
            (unsigned long long)p->run, (unsigned long long)c,
            (unsigned long long)i, j);
        mb_rng_init(&rng, mb_hash64(id, strlen(id), p->b->seed));
        make_text(&rng, text, p->bytes);
        mb_write_map(&w, 2);
        mb_write_kv_cstr(&w, "id", id);
        mb_write_kv_str(&w, "text", mb_slice_of(text, p->bytes));
    }
    mb_free(text);
    return w.status;
}

static mb_status
put_in_turn(
    struct putting *p, const char *name, uint64_t n, struct mb_error *err)
{
    struct row row = {.name = name,
        .recall = (double)NAN,
        .bytes = n * p->per_put * p->bytes,
        .items = n * p->per_put};
    struct mb_buffer args;
    struct series s = {0};
    mb_status st = MB_OK;

    p->run = mb_clock_ns();
    mb_buffer_init(&args, SIZE_MAX / 2);
    for (uint64_t i = 0; i < n && st == MB_OK; i++) {
        uint64_t ns;

        mb_buffer_clear(&args);
        st = pack_put(p, 0, i, &args);
        if (st == MB_OK)
            st = bench_call(p->b->client, "put", &args, &ns, NULL, err);
        if (st == MB_OK)
            st = series_add(&s, ns);
        // The making of the text is not the daemon's time.
        s.wall_s += (double)ns / 1e9;
    }
    if (st == MB_OK)
        st = bench_row(p->b, &s, &row, err);
    series_fini(&s);
    mb_buffer_fini(&args);
    return st;
}

static mb_status
put_together(struct putting *p, struct mb_error *err)
{
    char name[48];
    struct row row = {.name = name, .recall = (double)NAN};
    struct series s = {0};
    mb_status st;

    p->run = mb_clock_ns();
    (void)snprintf(name, sizeof name, "single puts, %llu clients",
        (unsigned long long)p->b->clients);
    st = bench_clients(p->b, "put", pack_put, p, &s, err);
    row.bytes = s.n * p->bytes;
    if (st == MB_OK)
        st = bench_row(p->b, &s, &row, err);
    series_fini(&s);
    return st;
}

mb_status
bench_put(struct bench *b, struct mb_error *err)
{
    struct membank_create_options opt = {.exist_ok = true};
    struct membank_error cause;
    struct putting p = {.b = b, .per_put = 1};
    uint64_t bytes = 1024;
    mb_status st = mb_cli_u64(b->cli, "bytes", 1, 1 << 20, &bytes, err);

    if (st != MB_OK)
        return st;
    p.bytes = (size_t)bytes;
    if (membank_create(b->client, COLLECTION, &opt, &cause) != MEMBANK_OK)
        return tool_error(&cause, err);
    st = put_in_turn(&p, "single puts", b->n, err);
    if (st == MB_OK && b->clients > 1)
        st = put_together(&p, err);
    p.per_put = BATCH;
    if (st == MB_OK)
        st = put_in_turn(&p, "puts of 100", b->n / BATCH + 10, err);
    if (st == MB_OK && mb_cli_has(b->cli, "drop") &&
        membank_drop(b->client, COLLECTION, &cause) != MEMBANK_OK)
        st = tool_error(&cause, err);
    return st;
}
