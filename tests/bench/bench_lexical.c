/* SPDX-License-Identifier: Apache-2.0
 * tests/bench/bench_lexical.c - how fast text becomes postings, and how fast
 * questions are answered from them.
 *
 *   bench_lexical [--dir DIR] [--segments N] [--seed N] [--k N]
 *                 [--text FILE] [--questions FILE]
 *
 * Without --text the segments are synthetic: 250 tokens by Zipf's law (exponent
 * 1) over 400,000 words, questions of 5 to 10 words drawn alike (so most have
 * stop words). With --text the file is cut at about 820 bytes a segment (250
 * tokens of our tokenizer) and analysed in English; questions are the lines of
 * a file, or the "text" fields of JSON lines. Writes go in commits of 10,000
 * segments with sync. Prints a table; times are wall clock of one thread. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define TOKENS          250
#define WORDS           400000u
#define SEGMENT_BYTES   820
#define SEGMENTS_COMMIT 10000
#define N_SYNTHETIC     2000

struct options {
    const char *dir;
    const char *text;
    const char *questions;
    size_t n_segments;
    size_t k;
    uint64_t seed;
};

struct bench {
    struct options opt;
    struct kv *kv;
    struct lex_batch *batch;
    struct wtxn w;
    struct wcoll wc;
    struct mb_rng rng;
    struct mb_arena *arena;
    struct mb_analyzer *analyzer;
    uint64_t analyze_ns;
    uint64_t add_ns;
    uint64_t flush_ns;
    uint64_t commit_ns;
    uint64_t slowest_flush_ns;
    uint64_t n_postings;
    uint64_t text_bytes;
};

static void
check(mb_status st, const struct mb_error *err, const char *what)
{
    if (st == MB_OK)
        return;
    fprintf(stderr, "bench_lexical: %s: %s %s\n", what, mb_status_name(st),
        err != NULL ? err->text : "");
    exit(1);
}

/* ---- input ---- */

static char *
read_file(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL || fseek(f, 0, SEEK_END) != 0) {
        fprintf(stderr, "bench_lexical: cannot read %s\n", path);
        exit(1);
    }
    long n = ftell(f);
    char *data = n >= 0 ? mb_alloc((size_t)n + 1) : NULL;
    rewind(f);
    if (data == NULL || fread(data, 1, (size_t)n, f) != (size_t)n) {
        fprintf(stderr, "bench_lexical: cannot read %s\n", path);
        exit(1);
    }
    (void)fclose(f);
    data[n] = '\0';
    *size = (size_t)n;
    return data;
}

/* Zipf with exponent 1 by inversion of the continuous law. */
static uint32_t
zipf(struct mb_rng *rng)
{
    return (uint32_t)exp(mb_rng_double(rng) * log((double)WORDS + 1.0)) - 1;
}

static void
append_words(struct bench *b, struct mb_buffer *out, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        check(mb_buffer_printf(out, "w%ux ", (unsigned)zipf(&b->rng)), NULL,
            "words");
    }
}

/* ---- writing ---- */

static void
begin(struct bench *b)
{
    struct mb_error err = {0};
    memset(&b->w, 0, sizeof b->w);
    b->w.lex = b->batch;
    check(kv_begin(b->kv, true, &b->w.txn, &err), &err, "begin");
}

static void
commit(struct bench *b)
{
    struct mb_error err = {0};
    uint64_t t0 = mb_clock_ns();
    check(lex_flush(&b->w, &err), &err, "flush");
    uint64_t t1 = mb_clock_ns();
    check(kv_commit(b->w.txn, &err), &err, "commit");
    b->commit_ns += mb_clock_ns() - t1;
    b->flush_ns += t1 - t0;
    if (t1 - t0 > b->slowest_flush_ns)
        b->slowest_flush_ns = t1 - t0;
    lex_batch_keep(b->batch);
}

static void
index_text(struct bench *b, struct mb_slice text)
{
    struct mb_error err = {0};
    struct mb_term *terms;
    size_t n;
    uint32_t length = 0;
    mb_segno segno = b->wc.c.next_segno++;
    uint64_t t0 = mb_clock_ns();
    check(mb_analyze(b->analyzer, text, b->arena, &terms, &n, &err), &err,
        "analyze");
    uint64_t t1 = mb_clock_ns();
    for (size_t i = 0; i < n; i++) {
        length += terms[i].tf;
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t id = 0;
        check(lex_term_id(
                  &b->w, &b->wc, terms[i].bytes, terms[i].hash, &id, &err),
            &err, "term");
        check(lex_add(&b->w, &b->wc, id, segno, terms[i].tf, length), NULL,
            "add");
    }
    check(lex_set_length(&b->w, &b->wc, segno, length > 0 ? length : 1), NULL,
        "length");
    b->wc.c.n_segments++;
    b->n_postings += n;
    b->text_bytes += text.size;
    b->analyze_ns += t1 - t0;
    b->add_ns += mb_clock_ns() - t1;
    mb_arena_reset(b->arena);
}

static void
index_synthetic(struct bench *b)
{
    struct mb_buffer text;
    mb_buffer_init(&text, 1u << 20);
    for (size_t i = 0; i < b->opt.n_segments; i++) {
        if (i % SEGMENTS_COMMIT == 0)
            begin(b);
        mb_buffer_clear(&text);
        append_words(b, &text, TOKENS);
        index_text(b, mb_buffer_slice(&text));
        if (i % SEGMENTS_COMMIT == SEGMENTS_COMMIT - 1 ||
            i + 1 == b->opt.n_segments)
            commit(b);
    }
    mb_buffer_fini(&text);
}

static void
index_file(struct bench *b)
{
    size_t size;
    char *data = read_file(b->opt.text, &size);
    size_t n = 0;
    for (size_t at = 0; at < size && n < b->opt.n_segments; n++) {
        size_t end = at + SEGMENT_BYTES < size ? at + SEGMENT_BYTES : size;
        while (end < size && data[end] != ' ' && data[end] != '\n') {
            end++;
        }
        if (n % SEGMENTS_COMMIT == 0)
            begin(b);
        index_text(b, mb_slice_of(data + at, end - at));
        if (n % SEGMENTS_COMMIT == SEGMENTS_COMMIT - 1 || end == size ||
            n + 1 == b->opt.n_segments)
            commit(b);
        at = end;
    }
    mb_free(data);
}

/* ---- asking ---- */

struct times {
    double *us;
    size_t n;
    size_t max;
};

static int
compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void
print_times(const char *what, struct times *t)
{
    if (t->n == 0)
        return;
    double sum = 0;
    qsort(t->us, t->n, sizeof *t->us, compare_doubles);
    for (size_t i = 0; i < t->n; i++) {
        sum += t->us[i];
    }
    printf("%-28s p50 %8.1f us  p90 %8.1f  p99 %8.1f  max %8.1f  mean %8.1f\n",
        what, t->us[t->n / 2], t->us[t->n * 90 / 100], t->us[t->n * 99 / 100],
        t->us[t->n - 1], sum / (double)t->n);
}

struct asking {
    struct mb_snapshot snap;
    struct times search;
    struct times score;
    uint64_t n_terms;
    uint64_t n_hits;
};

static void
ask(struct bench *b, struct asking *a, struct mb_slice text)
{
    struct mb_error err = {0};
    struct mb_term *terms;
    struct candidate *hits;
    mb_segno segnos[200];
    float scores[200];
    size_t n;
    size_t n_hits;
    if (a->search.n == a->search.max)
        return;
    check(mb_analyze(b->analyzer, text, b->arena, &terms, &n, &err), &err,
        "analyze");
    uint64_t t0 = mb_clock_ns();
    check(lex_search(&a->snap, &b->wc.c, terms, n, NULL, b->opt.k, b->arena,
              &hits, &n_hits, &err),
        &err, "search");
    uint64_t t1 = mb_clock_ns();
    for (size_t i = 0; i < 200; i++) {
        segnos[i] = (mb_segno)mb_rng_below(&b->rng, b->wc.c.next_segno);
    }
    uint64_t t2 = mb_clock_ns();
    check(lex_score(&a->snap, &b->wc.c, terms, n, segnos, 200, b->arena, scores,
              &err),
        &err, "score");
    a->search.us[a->search.n++] = (double)(t1 - t0) / 1e3;
    a->score.us[a->score.n++] = (double)(mb_clock_ns() - t2) / 1e3;
    a->n_terms += n;
    a->n_hits += n_hits;
    mb_arena_reset(b->arena);
}

/* A line, or the string after "text": in it (escapes stay: they are rare). */
static struct mb_slice
question_of(const char *line, size_t size)
{
    static const char field[] = "\"text\": \"";
    for (size_t i = 0; line[0] == '{' && i + sizeof field < size; i++) {
        if (memcmp(line + i, field, sizeof field - 1) != 0)
            continue;
        const char *start = line + i + sizeof field - 1;
        const char *end = memchr(start, '"', size - (size_t)(start - line));
        if (end != NULL)
            return mb_slice_of(start, (size_t)(end - start));
    }
    return mb_slice_of(line, size);
}

static void
ask_all(struct bench *b, struct asking *a)
{
    if (b->opt.questions == NULL) {
        struct mb_buffer text;
        mb_buffer_init(&text, 1u << 16);
        for (size_t i = 0; i < N_SYNTHETIC; i++) {
            mb_buffer_clear(&text);
            append_words(b, &text, 5 + (size_t)mb_rng_below(&b->rng, 6));
            ask(b, a, mb_buffer_slice(&text));
        }
        mb_buffer_fini(&text);
        return;
    }
    size_t size;
    char *data = read_file(b->opt.questions, &size);
    for (size_t at = 0; at < size;) {
        const char *end = memchr(data + at, '\n', size - at);
        size_t n = end != NULL ? (size_t)(end - data) - at : size - at;
        if (n > 0)
            ask(b, a, question_of(data + at, n));
        at += n + 1;
    }
    mb_free(data);
}

static void
run_questions(struct bench *b)
{
    struct mb_error err = {0};
    struct asking a = {0};
    a.search.max = 20000;
    a.search.us = mb_calloc(a.search.max, sizeof(double));
    a.score.us = mb_calloc(a.search.max, sizeof(double));
    if (a.search.us == NULL || a.score.us == NULL)
        check(MB_ERR_NOMEM, NULL, "questions");
    check(kv_begin(b->kv, false, &a.snap.txn, &err), &err, "snapshot");
    for (int round = 0; round < 2; round++) { // the first warms up
        a.search.n = 0;
        a.score.n = 0;
        a.n_terms = 0;
        a.n_hits = 0;
        ask_all(b, &a);
    }
    printf("questions: %zu, terms each %.1f, hits each %.1f\n", a.search.n,
        (double)a.n_terms / (double)a.search.n,
        (double)a.n_hits / (double)a.search.n);
    char what[64];
    snprintf(what, sizeof what, "search, top %zu", b->opt.k);
    print_times(what, &a.search);
    print_times("score 200 random segments", &a.score);
    kv_abort(a.snap.txn);
    mb_free(a.search.us);
    mb_free(a.score.us);
}

/* ---- main ---- */

static struct options
parse(int argc, char **argv)
{
    struct options o = {.dir = "bench_lexical.store",
        .n_segments = 170000,
        .k = 100,
        .seed = 1};
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *v = argv[i + 1];
        if (strcmp(argv[i], "--dir") == 0)
            o.dir = v;
        else if (strcmp(argv[i], "--text") == 0)
            o.text = v;
        else if (strcmp(argv[i], "--questions") == 0)
            o.questions = v;
        else if (strcmp(argv[i], "--segments") == 0)
            o.n_segments = (size_t)strtoull(v, NULL, 10);
        else if (strcmp(argv[i], "--k") == 0)
            o.k = (size_t)strtoull(v, NULL, 10);
        else if (strcmp(argv[i], "--seed") == 0)
            o.seed = strtoull(v, NULL, 10);
        else
            fprintf(stderr, "bench_lexical: %s: not known\n", argv[i]);
    }
    return o;
}

static void
print_writes(const struct bench *b)
{
    double n_commits =
        ceil((double)b->wc.c.n_segments / (double)SEGMENTS_COMMIT);
    uint64_t rows = 0;
    uint64_t bytes = 0;
    struct kv_txn *txn;
    printf("version " MB_VERSION ", seed %llu, segments %llu, terms %llu, "
           "postings %llu, mean length %.1f\n",
        (unsigned long long)b->opt.seed, (unsigned long long)b->wc.c.n_segments,
        (unsigned long long)b->wc.c.n_terms, (unsigned long long)b->n_postings,
        (double)b->wc.c.sum_lengths / (double)b->wc.c.n_segments);
    printf("analyze %.1f MB/s; per commit: term ids and adds %.0f ms, flush "
           "%.0f ms (slowest %.0f), commit %.0f ms\n",
        (double)b->text_bytes / 1e6 / ((double)b->analyze_ns / 1e9),
        (double)b->add_ns / 1e6 / n_commits,
        (double)b->flush_ns / 1e6 / n_commits,
        (double)b->slowest_flush_ns / 1e6,
        (double)b->commit_ns / 1e6 / n_commits);

    static const enum kv_table tables[] = {KV_TERMS, KV_POSTINGS, KV_LENGTHS};

    check(kv_begin(b->kv, false, &txn, NULL), NULL, "stats");
    for (size_t i = 0; i < 3; i++) {
        check(kv_table_stats(txn, tables[i], &rows, &bytes), NULL, "stats");
        printf("table %-10s %9llu rows %8.1f MB\n", kv_table_name(tables[i]),
            (unsigned long long)rows, (double)bytes / 1e6);
    }
    kv_abort(txn);
}

int
main(int argc, char **argv)
{
    static struct bench b;
    struct mb_error err = {0};
    struct kv_options opt = {.create = true};
    b.opt = parse(argc, argv);
    mb_rng_init(&b.rng, b.opt.seed);
    b.wc.c.id = 1;
    b.wc.c.settings.k1 = 1.5f;
    b.wc.c.settings.b = 0.75f;
    b.arena = mb_arena_new(256u << 20);
    if (b.arena == NULL)
        check(MB_ERR_NOMEM, NULL, "arena");
    check(kv_open(b.opt.dir, &opt, &b.kv, &err), &err, "open");
    check(lex_batch_new(&b.batch), NULL, "batch");
    check(mb_analyzer_new(
              b.opt.text != NULL ? "english" : "none", &b.analyzer, &err),
        &err, "analyzer");
    if (b.opt.text != NULL)
        index_file(&b);
    else
        index_synthetic(&b);
    print_writes(&b);
    run_questions(&b);
    mb_analyzer_free(b.analyzer);
    lex_batch_free(b.batch);
    kv_close(b.kv);
    mb_arena_free(b.arena);
    return 0;
}
