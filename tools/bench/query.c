/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/query.c - how long questions take.
 *
 * First the ping: what the way to the daemon and back costs alone. Then
 * questions of text in the three modes, from a file or made of pieces of stored
 * documents; then client vectors, in clusters as real ones lie, put into a
 * collection of their own, with recall@k against a scan in this process.
 * Threads: as bench.h says; texts and vectors are read-only once made. */
#include "bench.h"

#include <math.h>
#include <string.h>
#include <time.h>

#include "lines.h"
#include "progress.h"

#define WARM_UP        50u /* calls before each series */
#define MAX_QUESTIONS  100000u
#define QUESTION_WORDS 8u
#define SAMPLE_DOCS    200u
#define PUT_BATCH      500u
#define PUT_TRIES      50u
#define RECALL_QUERIES 300u
#define SPREAD         0.6 /* of a cluster, beside that of the centres */
#define ZIPF           0.7 /* how the clusters' sizes fall */
#define HYBRID_P50_MS  2.0
#define HYBRID_P99_MS  10.0
#define VECTOR_MS      0.25 /* above the ping */

/* ---- ping ---- */

static mb_status
ping(struct bench *b, struct mb_error *err)
{
    const struct row row = {.name = "ping", .recall = (double)NAN};
    struct mb_buffer none;
    struct series s = {0};
    uint64_t start = 0;
    mb_status st = MB_OK;

    mb_buffer_init(&none, 1);
    for (uint64_t i = 0; i < b->n + WARM_UP && st == MB_OK; i++) {
        uint64_t ns;

        if (i == WARM_UP)
            start = mb_clock_ns();
        st = bench_call(b->client, "ping", &none, &ns, NULL, err);
        if (st == MB_OK && i >= WARM_UP)
            st = series_add(&s, ns);
    }
    s.wall_s = (double)(mb_clock_ns() - start) / 1e9;
    if (st == MB_OK)
        st = bench_row(b, &s, &row, err);
    b->ping_ms = series_ms(&s, 0.5);
    series_fini(&s);
    return st;
}

/* ---- questions of text ---- */

struct questions {
    struct bench *b;
    const char *mode;
    struct mb_arena *arena;
    struct mb_slice *text;
    size_t n;
    size_t capacity;
};

static mb_status
add_question(struct questions *q, struct mb_slice text)
{
    void *copy;

    if (q->n == q->capacity) {
        size_t more = q->capacity == 0 ? 1024 : q->capacity * 2;
        struct mb_slice *to = mb_realloc(q->text, more * sizeof *to);

        if (to == NULL)
            return MB_ERR_NOMEM;
        q->text = to;
        q->capacity = more;
    }
    copy = mb_arena_dup(q->arena, text.data, text.size);
    if (copy == NULL)
        return MB_ERR_NOMEM;
    q->text[q->n++] = mb_slice_of(copy, text.size);
    return MB_OK;
}

static mb_status
read_questions(struct questions *q, const char *path, struct mb_error *err)
{
    struct mb_arena *arena = mb_arena_new(SIZE_MAX);
    struct lines *l = NULL;
    bool more = true;
    mb_status st = arena != NULL ? lines_open(path, 1 << 20, &l, err)
                                 : mb_error_set(err, MB_ERR_NOMEM, "questions");

    while (st == MB_OK && q->n < MAX_QUESTIONS) {
        const struct mb_value *v;
        struct mb_slice line = {0};

        st = lines_next(l, &line, &more, err);
        if (st != MB_OK || !more)
            break;
        if (line.size == 0)
            continue;
        mb_arena_reset(arena);
        st = json_parse(line, false, arena, &v, err);
        if (st == MB_OK && value_str(v, "text").size > 0)
            st = add_question(q, value_str(v, "text"));
    }
    lines_close(l);
    mb_arena_free(arena);
    return st;
}

/* A run of words from somewhere in a text. */
static struct mb_slice
piece_of(struct mb_slice text, struct mb_rng *rng)
{
    size_t at = (size_t)mb_rng_below(rng, text.size);
    size_t end;
    unsigned words = 0;

    while (at > 0 && text.data[at - 1] != ' ' && text.data[at - 1] != '\n') {
        at--;
    }
    for (end = at; end < text.size && end - at < 200; end++) {
        if (text.data[end] == ' ' && ++words == QUESTION_WORDS)
            break;
        if (text.data[end] == '\n')
            break;
    }
    // Never within a character.
    while (end > at && end < text.size && (text.data[end] & 0xC0) == 0x80) {
        end--;
    }
    return mb_slice_of(text.data + at, end - at);
}

/* Questions from stored documents, as many as there are calls. */
static mb_status
sample_questions(struct questions *q, struct mb_error *err)
{
    struct membank_documents *list = NULL;
    struct membank_error cause;
    struct mb_rng rng;
    size_t n_docs;
    mb_status st = MB_OK;

    mb_rng_init(&rng, q->b->seed);
    if (membank_list(q->b->client, q->b->collection, NULL, SAMPLE_DOCS,
            (struct membank_bytes){0}, &list, &cause) != MEMBANK_OK)
        return tool_error(&cause, err);
    n_docs = membank_documents_count(list);
    for (size_t i = 0; i < n_docs && st == MB_OK; i++) {
        struct membank_documents *one = NULL;
        const struct membank_stored *doc;
        struct mb_slice text;

        if (membank_get(q->b->client, q->b->collection,
                membank_documents_at(list, i)->id, &one,
                &cause) != MEMBANK_OK) {
            st = tool_error(&cause, err);
            break;
        }
        doc = membank_documents_at(one, 0);
        text = doc != NULL ? mb_slice_of(doc->text, doc->text_size)
                           : mb_slice_of(NULL, 0);
        for (size_t j = 0;
             j <= q->b->n / n_docs && text.size > 0 && st == MB_OK; j++) {
            struct mb_slice piece = piece_of(text, &rng);

            if (piece.size > 8)
                st = add_question(q, piece);
        }
        membank_documents_free(one);
    }
    membank_documents_free(list);
    if (st == MB_OK && q->n == 0)
        st = mb_error_set(err, MB_ERR_NOT_FOUND,
            "collection %s has no text to ask about", q->b->collection);
    return st;
}

static mb_status
pack_question(void *arg, uint64_t c, uint64_t i, struct mb_buffer *args)
{
    const struct questions *q = arg;
    struct mb_writer w;

    // Each client begins elsewhere.
    i += c * 7919;
    mb_writer_init(&w, args);
    mb_write_map(&w, 4);
    mb_write_kv_cstr(&w, "collection", q->b->collection);
    mb_write_kv_str(&w, "text", q->text[i % q->n]);
    mb_write_kv_cstr(&w, "mode", q->mode);
    mb_write_kv_uint(&w, "k", q->b->k);
    return w.status;
}

/* One client, one call after another, in one mode. */
static mb_status
ask_in_turn(struct questions *q, struct mb_error *err)
{
    bool hybrid = strcmp(q->mode, "hybrid") == 0;
    char name[32];
    struct row row = {.name = name,
        .recall = (double)NAN,
        .limit_p50 = hybrid ? HYBRID_P50_MS : 0,
        .limit_p99 = hybrid ? HYBRID_P99_MS : 0};
    struct mb_buffer args;
    struct series s = {0};
    uint64_t start = 0;
    mb_status st = MB_OK;

    (void)snprintf(name, sizeof name, "text %s", q->mode);
    mb_buffer_init(&args, 1 << 24);
    for (uint64_t i = 0; i < q->b->n + WARM_UP && st == MB_OK; i++) {
        uint64_t ns;

        if (i == WARM_UP)
            start = mb_clock_ns();
        mb_buffer_clear(&args);
        st = pack_question(q, 0, i, &args);
        if (st == MB_OK)
            st = bench_call(q->b->client, "query", &args, &ns, NULL, err);
        if (st == MB_OK && i >= WARM_UP)
            st = series_add(&s, ns);
    }
    s.wall_s = (double)(mb_clock_ns() - start) / 1e9;
    if (st == MB_OK)
        st = bench_row(q->b, &s, &row, err);
    series_fini(&s);
    mb_buffer_fini(&args);
    return st;
}

static mb_status
ask_together(struct questions *q, struct mb_error *err)
{
    char name[48];
    const struct row row = {.name = name, .recall = (double)NAN};
    struct series s = {0};
    mb_status st;

    q->mode = "hybrid";
    (void)snprintf(name, sizeof name, "text hybrid, %llu clients",
        (unsigned long long)q->b->clients);
    st = bench_clients(q->b, "query", pack_question, q, &s, err);
    if (st == MB_OK)
        st = bench_row(q->b, &s, &row, err);
    series_fini(&s);
    return st;
}

static mb_status
ask_text(struct bench *b, struct mb_error *err)
{
    static const char *const modes[] = {"hybrid", "dense", "lexical"};
    const char *path = mb_cli_str(b->cli, "queries");
    struct questions q = {.b = b, .arena = mb_arena_new(SIZE_MAX)};
    mb_status st =
        q.arena != NULL ? MB_OK : mb_error_set(err, MB_ERR_NOMEM, "questions");

    if (st == MB_OK)
        st = path != NULL ? read_questions(&q, path, err)
                          : sample_questions(&q, err);
    if (st == MB_OK && q.n == 0)
        st = mb_error_set(
            err, MB_ERR_NOT_FOUND, "no question with \"text\" in %s", path);
    for (size_t i = 0; i < 3 && st == MB_OK; i++) {
        q.mode = modes[i];
        st = ask_in_turn(&q, err);
    }
    if (st == MB_OK && b->clients > 1)
        st = ask_together(&q, err);
    mb_free(q.text);
    mb_arena_free(q.arena);
    return st;
}

/* ---- client vectors ---- */

struct vectors {
    struct bench *b;
    char collection[64];
    size_t n;
    size_t dim;
    size_t n_centres;
    float *centres; /* (n_centres, dim) row-major */
    float *rows;    /* (n, dim) */
    float *queries; /* (n_queries, dim) */
    size_t n_queries;
};

static void
scale(float *v, size_t dim)
{
    double sum = 0;

    for (size_t i = 0; i < dim; i++) {
        sum += (double)v[i] * (double)v[i];
    }
    for (size_t i = 0; i < dim; i++) {
        v[i] = (float)((double)v[i] / sqrt(sum));
    }
}

/* Add normal numbers whose size falls along the dimensions, as the spectrum of
 * real embeddings does. */
static void
add_normal(float *v, size_t dim, double size, struct mb_rng *rng)
{
    for (size_t i = 0; i < dim; i++) {
        v[i] += (float)(size * mb_rng_normal(rng) / sqrt(1 + (double)i / 8));
    }
}

/* A fixed rotation (signs, then butterflies), so that no dimension is larger
 * than the others; products of two rows stay as they are. */
static void
rotate(float *v, size_t dim)
{
    for (uint32_t i = 0; i < dim; i++) {
        if ((mb_hash64(&i, sizeof i, 1) & 1) != 0)
            v[i] = -v[i];
    }
    for (size_t step = 1; step < dim; step *= 2) {
        for (size_t i = 0; i + step < dim; i++) {
            float x = v[i];
            float y = v[i + step];

            if ((i & step) != 0)
                continue;
            v[i] = (x + y) * 0.70710678f;
            v[i + step] = (x - y) * 0.70710678f;
        }
    }
}

/* A point near some centre; early centres are chosen more often. */
static void
random_near(const struct vectors *x, float *v, struct mb_rng *rng)
{
    double u = pow(mb_rng_double(rng), 1 / (1 - ZIPF));
    size_t centre = (size_t)(u * (double)x->n_centres);

    memcpy(v, x->centres + centre * x->dim, x->dim * sizeof *v);
    add_normal(v, x->dim, SPREAD, rng);
    rotate(v, x->dim);
    scale(v, x->dim);
}

static mb_status
make_vectors(struct vectors *x, struct mb_error *err)
{
    struct mb_rng rng;

    x->n_centres = (size_t)(3 * sqrt((double)x->n)) + 1;
    x->n_queries = RECALL_QUERIES;
    x->centres = mb_calloc(x->n_centres * x->dim, sizeof(float));
    x->rows = mb_calloc(x->n * x->dim, sizeof(float));
    x->queries = mb_calloc(x->n_queries * x->dim, sizeof(float));
    if (x->centres == NULL || x->rows == NULL || x->queries == NULL)
        return mb_error_set(
            err, MB_ERR_NOMEM, "%zu vectors of %zu", x->n, x->dim);
    mb_rng_init(&rng, x->b->seed);
    for (size_t i = 0; i < x->n_centres; i++) {
        add_normal(x->centres + i * x->dim, x->dim, 1, &rng);
    }
    for (size_t i = 0; i < x->n; i++) {
        random_near(x, x->rows + i * x->dim, &rng);
    }
    for (size_t i = 0; i < x->n_queries; i++) {
        random_near(x, x->queries + i * x->dim, &rng);
    }
    return MB_OK;
}

static void
write_vector(struct mb_writer *w, const float *v, size_t dim)
{
    uint8_t bytes[4 * 4096];

    for (size_t i = 0; i < dim; i++) {
        mb_put_lef32(bytes + 4 * i, v[i]);
    }
    mb_write_bin(w, mb_slice_of(bytes, 4 * dim));
}

static void
rest(void)
{
    struct timespec t = {0, 200000000};

    (void)nanosleep(&t, NULL);
}

/* Busy, or a tree that was just exchanged: the daemon asks to try again. */
static mb_status
put_rows(struct vectors *x, size_t from, size_t to, struct mb_buffer *args,
    struct mb_error *err)
{
    struct mb_writer w;
    uint64_t ns;
    mb_status st = MB_OK;

    mb_buffer_clear(args);
    mb_writer_init(&w, args);
    mb_write_map(&w, 2);
    mb_write_kv_cstr(&w, "collection", x->collection);
    mb_write_cstr(&w, "documents");
    mb_write_array(&w, to - from);
    for (size_t i = from; i < to; i++) {
        char id[32];

        (void)snprintf(id, sizeof id, "%zu", i);
        mb_write_map(&w, 3);
        mb_write_kv_cstr(&w, "id", id);
        mb_write_kv_cstr(&w, "text", "");
        mb_write_cstr(&w, "vector");
        write_vector(&w, x->rows + i * x->dim, x->dim);
    }
    if (w.status != MB_OK)
        return mb_error_set(err, w.status, "request");
    for (unsigned i = 0; i < PUT_TRIES; i++) {
        st = bench_call(x->b->client, "put", args, &ns, NULL, err);
        if (st == MB_OK || !mb_status_may_retry(st))
            break;
        rest();
    }
    return st;
}

/* True once no job of the daemon runs or waits. */
static mb_status
jobs_are_done(struct vectors *x, bool *done, struct mb_error *err)
{
    struct membank_reply *reply = NULL;
    struct mb_buffer none;
    const struct membank_value *jobs;
    uint64_t ns;
    mb_status st;

    mb_buffer_init(&none, 1);
    st = bench_call(x->b->client, "jobs", &none, &ns, &reply, err);
    if (st != MB_OK)
        return st;
    *done = true;
    jobs = membank_value_get(membank_reply_result(reply), "jobs");
    for (size_t i = 0; i < membank_value_size(jobs); i++) {
        size_t n = 0;
        const char *state = membank_value_str(
            membank_value_get(membank_value_at(jobs, i), "state"), &n);

        if (n == 7 && (memcmp(state, "running", 7) == 0 ||
                          memcmp(state, "waiting", 7) == 0))
            *done = false;
    }
    membank_reply_free(reply);
    return MB_OK;
}

/* Ask for a tree over the vectors and wait until it serves. */
static mb_status
build_tree(struct vectors *x, struct progress *progress, struct mb_error *err)
{
    struct mb_buffer args;
    struct mb_writer w;
    bool done = false;
    uint64_t ns;
    uint64_t quiet = 0;
    mb_status st;

    mb_buffer_init(&args, 4096);
    mb_writer_init(&w, &args);
    mb_write_map(&w, 1);
    mb_write_kv_cstr(&w, "collection", x->collection);
    st = bench_call(x->b->client, "rebuild", &args, &ns, NULL, err);
    mb_buffer_fini(&args);
    // Done three times in a row: the job may not have begun at the first look.
    while (st == MB_OK && quiet < 3) {
        progress_show(progress, -1, "waiting for the tree ...");
        rest();
        st = jobs_are_done(x, &done, err);
        quiet = done ? quiet + 1 : 0;
    }
    return st;
}

/* Fill a collection of its own, unless an earlier run has. */
static mb_status
load_vectors(struct vectors *x, struct mb_error *err)
{
    struct membank_create_options opt = {
        .embedding = MEMBANK_EMBED_CLIENT, .dim = (uint32_t)x->dim};
    struct membank_error cause;
    struct progress progress;
    struct mb_buffer args;
    char text[64];
    mb_status st = MB_OK;

    (void)snprintf(x->collection, sizeof x->collection, "bench-%zux%zu-%llu",
        x->n, x->dim, (unsigned long long)x->b->seed);
    progress_init(&progress, stderr, false);
    if (membank_create(x->b->client, x->collection, &opt, &cause) != MEMBANK_OK)
        return cause.status == MEMBANK_ERR_EXISTS
                   ? build_tree(x, &progress, err)
                   : tool_error(&cause, err);
    mb_buffer_init(&args, SIZE_MAX / 2);
    for (size_t at = 0; at < x->n && st == MB_OK; at += PUT_BATCH) {
        st = put_rows(
            x, at, at + PUT_BATCH < x->n ? at + PUT_BATCH : x->n, &args, err);
        (void)snprintf(text, sizeof text, "putting %zu vectors", x->n);
        progress_show(&progress, (double)at / (double)x->n, text);
    }
    mb_buffer_fini(&args);
    if (st == MB_OK)
        st = build_tree(x, &progress, err);
    progress_clear(&progress);
    return st;
}

/* Dot product; eight sums, so that the compiler may use vector registers. */
static float
dot(const float *a, const float *b, size_t dim)
{
    float sum[8] = {0};
    float total = 0;
    size_t i = 0;

    for (; i + 8 <= dim; i += 8) {
        for (size_t j = 0; j < 8; j++) {
            sum[j] += a[i + j] * b[i + j];
        }
    }
    for (size_t j = 0; j < 8; j++) {
        total += sum[j];
    }
    for (; i < dim; i++) {
        total += a[i] * b[i];
    }
    return total;
}

/* Score of the k-th best row by a plain scan: a hit at or above is right. */
static float
kth_best(const struct vectors *x, const float *query, size_t k, float *best)
{
    size_t n = 0;

    for (size_t i = 0; i < x->n; i++) {
        float s = dot(query, x->rows + i * x->dim, x->dim);
        size_t at;

        if (n == k && s <= best[n - 1])
            continue;
        if (n < k)
            n++;
        for (at = n - 1; at > 0 && best[at - 1] < s; at--) {
            best[at] = best[at - 1];
        }
        best[at] = s;
    }
    return n > 0 ? best[n - 1] : 0;
}

static mb_status
pack_vector(void *arg, uint64_t c, uint64_t i, struct mb_buffer *args)
{
    const struct vectors *x = arg;
    struct mb_writer w;

    i += c * 37;
    mb_writer_init(&w, args);
    mb_write_map(&w, 5);
    mb_write_kv_cstr(&w, "collection", x->collection);
    mb_write_cstr(&w, "vector");
    write_vector(&w, x->queries + i % x->n_queries * x->dim, x->dim);
    mb_write_kv_cstr(&w, "mode", "dense");
    mb_write_kv_uint(&w, "k", x->b->k);
    mb_write_cstr(&w, "fields");
    mb_write_array(&w, 0);
    return w.status;
}

/* Hits of a reply that are among the best k of all. */
static size_t
count_right(const struct vectors *x, const struct membank_reply *reply,
    const float *query, float bound)
{
    const struct membank_value *hits =
        membank_value_get(membank_reply_result(reply), "hits");
    size_t right = 0;

    for (size_t i = 0; i < membank_value_size(hits); i++) {
        size_t size = 0;
        const char *id = membank_value_str(
            membank_value_get(membank_value_at(hits, i), "id"), &size);
        size_t row = 0;

        for (size_t j = 0; j < size; j++) {
            row = row * 10 + (size_t)(id[j] - '0');
        }
        if (row < x->n &&
            dot(query, x->rows + row * x->dim, x->dim) >= bound - 1e-6f)
            right++;
    }
    return right;
}

static mb_status
measure_recall(struct vectors *x, double *recall, struct mb_error *err)
{
    float *best = mb_calloc(x->b->k, sizeof *best);
    struct mb_buffer args;
    size_t right = 0;
    mb_status st = best != NULL ? MB_OK : mb_error_set(err, MB_ERR_NOMEM, "k");

    mb_buffer_init(&args, 1 << 20);
    for (size_t i = 0; i < x->n_queries && st == MB_OK; i++) {
        const float *query = x->queries + i * x->dim;
        struct membank_reply *reply = NULL;
        uint64_t ns;

        mb_buffer_clear(&args);
        st = pack_vector(x, 0, i, &args);
        if (st == MB_OK)
            st = bench_call(x->b->client, "query", &args, &ns, &reply, err);
        if (st == MB_OK)
            right +=
                count_right(x, reply, query, kth_best(x, query, x->b->k, best));
        membank_reply_free(reply);
    }
    *recall = (double)right / (double)(x->n_queries * x->b->k);
    mb_buffer_fini(&args);
    mb_free(best);
    return st;
}

static mb_status
ask_vectors_in_turn(struct vectors *x, double recall, struct mb_error *err)
{
    char name[48];
    const struct row row = {
        .name = name, .recall = recall, .limit_p50 = x->b->ping_ms + VECTOR_MS};
    struct mb_buffer args;
    struct series s = {0};
    uint64_t start = 0;
    mb_status st = MB_OK;

    (void)snprintf(name, sizeof name, "vector %zu x %zu", x->n, x->dim);
    mb_buffer_init(&args, 1 << 20);
    for (uint64_t i = 0; i < x->b->n + WARM_UP && st == MB_OK; i++) {
        uint64_t ns;

        if (i == WARM_UP)
            start = mb_clock_ns();
        mb_buffer_clear(&args);
        st = pack_vector(x, 0, i, &args);
        if (st == MB_OK)
            st = bench_call(x->b->client, "query", &args, &ns, NULL, err);
        if (st == MB_OK && i >= WARM_UP)
            st = series_add(&s, ns);
    }
    s.wall_s = (double)(mb_clock_ns() - start) / 1e9;
    if (st == MB_OK)
        st = bench_row(x->b, &s, &row, err);
    series_fini(&s);
    mb_buffer_fini(&args);
    return st;
}

static mb_status
ask_vectors(struct bench *b, size_t n, size_t dim, struct mb_error *err)
{
    struct vectors x = {.b = b, .n = n, .dim = dim};
    struct series s = {0};
    char name[48];
    double recall = 0;
    mb_status st = make_vectors(&x, err);

    if (st == MB_OK)
        st = load_vectors(&x, err);
    if (st == MB_OK)
        st = measure_recall(&x, &recall, err);
    if (st == MB_OK)
        st = ask_vectors_in_turn(&x, recall, err);
    if (st == MB_OK && b->clients > 1) {
        const struct row row = {.name = name, .recall = recall};

        (void)snprintf(name, sizeof name, "vector, %llu clients",
            (unsigned long long)b->clients);
        st = bench_clients(b, "query", pack_vector, &x, &s, err);
        if (st == MB_OK)
            st = bench_row(b, &s, &row, err);
    }
    if (st == MB_OK && mb_cli_has(b->cli, "drop")) {
        struct membank_error cause;

        if (membank_drop(b->client, x.collection, &cause) != MEMBANK_OK)
            st = tool_error(&cause, err);
    }
    series_fini(&s);
    mb_free(x.centres);
    mb_free(x.rows);
    mb_free(x.queries);
    return st;
}

mb_status
bench_query(struct bench *b, struct mb_error *err)
{
    uint64_t n_vectors = 0;
    uint64_t dim = 0;
    mb_status st = mb_cli_u64(b->cli, "vectors", 0, 10000000, &n_vectors, err);

    if (st == MB_OK)
        st = mb_cli_u64(b->cli, "dim", 2, 4096, &dim, err);
    if (st == MB_OK)
        st = ping(b, err);
    if (st == MB_OK && b->collection != NULL)
        st = ask_text(b, err);
    if (st == MB_OK && n_vectors > 0)
        st = ask_vectors(b, (size_t)n_vectors, (size_t)dim, err);
    return st;
}
