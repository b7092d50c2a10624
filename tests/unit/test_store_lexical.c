/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_store_lexical.c - postings, bounds and search of the lexical
 * index, against a twin that keeps everything in arrays and scores all.
 *
 * The index is driven as the writer drives it, over a bare kv store: a write
 * transaction by hand, lex_add and lex_remove, a flush, a commit or an abort. */
#include "mb_test.h"

#include <math.h>

#include "lexical_list.h"

#define ARENA_BYTES  (256u << 20)
#define MAX_SEGMENTS 40000u
#define MAX_TERMS    2000u
#define TERMS_EACH   40u

/* ---- the twin ---- */

struct twin_segment {
    uint32_t length; /* 0: not live */
    uint32_t n;
    uint16_t term[TERMS_EACH];
    uint16_t tf[TERMS_EACH];
};

struct fixture {
    struct mb_test_dir dir;
    struct kv *kv;
    struct lex_batch *batch;
    struct wtxn w;
    struct wcoll wc;
    struct mb_collection committed;
    struct twin_segment *segments; /* MAX_SEGMENTS */
    uint32_t n_segments;           /* numbers given */
    struct mb_arena *arena;
    struct mb_rng rng;
};

static void
setup(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    f->dir = mb_test_dir_begin();
    struct kv_options opt = {
        .create = true, .no_sync = true, .map_bytes = (uint64_t)4 << 30};
    struct mb_error err = {0};
    assert_status(MB_OK, kv_open(f->dir.path, &opt, &f->kv, &err), &err);
    assert_ok(lex_batch_new(&f->batch));
    f->wc.c.id = 7;
    f->wc.c.settings.k1 = 1.5f;
    f->wc.c.settings.b = 0.75f;
    f->committed = f->wc.c;
    f->segments = mb_calloc(MAX_SEGMENTS, sizeof *f->segments);
    assert_non_null(f->segments);
    f->arena = mb_arena_new(ARENA_BYTES);
    assert_non_null(f->arena);
    mb_rng_init(&f->rng, mb_test_seed());
}

static void
teardown(struct fixture *f)
{
    mb_arena_free(f->arena);
    mb_free(f->segments);
    lex_batch_free(f->batch);
    kv_close(f->kv);
    mb_test_dir_end(&f->dir);
}

static void
begin(struct fixture *f)
{
    struct mb_error err = {0};
    memset(&f->w, 0, sizeof f->w);
    f->w.lex = f->batch;
    assert_status(MB_OK, kv_begin(f->kv, true, &f->w.txn, &err), &err);
}

static void
commit(struct fixture *f)
{
    struct mb_error err = {0};
    assert_status(MB_OK, lex_flush(&f->w, &err), &err);
    assert_status(MB_OK, kv_commit(f->w.txn, &err), &err);
    lex_batch_keep(f->batch);
    f->committed = f->wc.c;
}

static void
undo(struct fixture *f)
{
    kv_abort(f->w.txn);
    lex_batch_reset(f->batch);
    f->wc.c = f->committed;
}

static struct mb_slice
term_name(uint32_t term, char name[16])
{
    snprintf(name, 16, "term%u", term);
    return mb_slice_cstr(name);
}

static uint32_t
term_id(struct fixture *f, uint32_t term)
{
    char name[16];
    struct mb_error err = {0};
    uint32_t id = 0;
    struct mb_slice s = term_name(term, name);
    assert_status(MB_OK,
        lex_term_id(&f->w, &f->wc, s, mb_hash64(s.data, s.size, 0), &id, &err),
        &err);
    return id;
}

/* Index what the twin has under segno. */
static void
index_segment(struct fixture *f, uint32_t segno)
{
    const struct twin_segment *s = &f->segments[segno];
    for (uint32_t i = 0; i < s->n; i++) {
        assert_ok(lex_add(
            &f->w, &f->wc, term_id(f, s->term[i]), segno, s->tf[i], s->length));
    }
    assert_ok(lex_set_length(&f->w, &f->wc, segno, s->length));
    f->wc.c.n_segments++;
    f->wc.c.next_segno = segno + 1;
}

/* A segment of random terms, few of them frequent. */
static uint32_t
add_random(struct fixture *f)
{
    assert_true(f->n_segments < MAX_SEGMENTS);
    uint32_t segno = f->n_segments++;
    struct twin_segment *s = &f->segments[segno];
    memset(s, 0, sizeof *s);
    uint32_t n = 1 + (uint32_t)mb_rng_below(&f->rng, TERMS_EACH);
    for (uint32_t i = 0; i < n; i++) {
        double u = mb_rng_double(&f->rng);
        uint32_t term = (uint32_t)(pow(MAX_TERMS, u)) - 1;
        uint32_t j = 0;
        while (j < s->n && s->term[j] != term) {
            j++;
        }
        if (j == s->n)
            s->term[s->n++] = (uint16_t)term;
        // Counts are small, now and then past what is kept.
        uint32_t tf = mb_rng_below(&f->rng, 500) == 0
                          ? 200 + (uint32_t)mb_rng_below(&f->rng, 100)
                          : 1 + (uint32_t)mb_rng_below(&f->rng, 3);
        s->tf[j] = (uint16_t)(s->tf[j] + tf);
        s->length += tf;
    }
    index_segment(f, segno);
    return segno;
}

static void
remove_segment(struct fixture *f, uint32_t segno)
{
    struct twin_segment *s = &f->segments[segno];
    for (uint32_t i = 0; i < s->n; i++) {
        assert_ok(lex_remove(&f->w, &f->wc, term_id(f, s->term[i]), segno));
    }
    assert_ok(lex_set_length(&f->w, &f->wc, segno, 0));
    f->wc.c.n_segments--;
    s->length = 0;
}

static uint32_t
random_live(struct fixture *f)
{
    for (;;) {
        uint32_t s = (uint32_t)mb_rng_below(&f->rng, f->n_segments);
        if (f->segments[s].length > 0)
            return s;
    }
}

/* BM25 by its definition, in double precision. */
static double
twin_score(const struct fixture *f, const uint32_t *df, uint32_t segno,
    const struct mb_term *terms, const uint32_t *numbers, size_t n)
{
    const struct twin_segment *s = &f->segments[segno];
    const struct mb_collection *c = &f->wc.c;
    double average = (double)c->sum_lengths / (double)c->n_segments;
    double score = 0;
    for (size_t i = 0; i < n && s->length > 0; i++) {
        for (uint32_t j = 0; j < s->n; j++) {
            if (s->term[j] != numbers[i])
                continue;
            double d = df[numbers[i]];
            double idf = log(1 + ((double)c->n_segments - d + .5) / (d + .5));
            double tf = s->tf[j] > 255 ? 255 : s->tf[j];
            double k1 = c->settings.k1;
            double b = c->settings.b;
            score += terms[i].tf * idf * tf * (k1 + 1) /
                     (tf + k1 * (1 - b + b * s->length / average));
        }
    }
    return score;
}

static void
twin_df(const struct fixture *f, uint32_t df[MAX_TERMS])
{
    memset(df, 0, MAX_TERMS * sizeof df[0]);
    for (uint32_t s = 0; s < f->n_segments; s++) {
        for (uint32_t j = 0; f->segments[s].length > 0 && j < f->segments[s].n;
             j++) {
            df[f->segments[s].term[j]]++;
        }
    }
}

/* ---- comparing ---- */

struct query {
    uint32_t numbers[12];
    struct mb_term terms[12];
    char names[12][16];
    size_t n;
};

static void
random_query(struct fixture *f, struct query *q)
{
    q->n = 1 + (size_t)mb_rng_below(&f->rng, 12);
    for (size_t i = 0; i < q->n; i++) {
        double u = mb_rng_double(&f->rng);
        q->numbers[i] = (uint32_t)(pow(MAX_TERMS, u)) - 1;
        q->terms[i].bytes = term_name(q->numbers[i], q->names[i]);
        q->terms[i].tf = 1 + (uint32_t)mb_rng_below(&f->rng, 3);
    }
}

/* One query: lex_score of every segment agrees with the twin, lex_search gives
 * exactly the best of these. */
static void
check_query(struct fixture *f, struct mb_snapshot *snap, const uint32_t *df,
    const struct query *q, const struct bitset *filter, size_t k)
{
    struct mb_error err = {0};
    size_t n = f->n_segments;
    mb_segno *segnos = mb_arena_calloc(f->arena, n + 1, sizeof *segnos);
    float *scores = mb_arena_calloc(f->arena, n + 1, sizeof *scores);
    assert_non_null(segnos);
    assert_non_null(scores);
    for (size_t i = 0; i < n; i++) { // not in order
        segnos[i] = (mb_segno)((i * 7919 + 13) % n);
    }
    assert_status(MB_OK,
        lex_score(
            snap, &f->wc.c, q->terms, q->n, segnos, n, f->arena, scores, &err),
        &err);
    float *by_segno = mb_arena_calloc(f->arena, n + 1, sizeof *by_segno);
    assert_non_null(by_segno);
    for (size_t i = 0; i < n; i++) {
        by_segno[segnos[i]] = scores[i];
    }
    size_t n_match = 0;
    for (uint32_t s = 0; s < n; s++) {
        double want = twin_score(f, df, s, q->terms, q->numbers, q->n);
        // Each of at most 12 parts is cut at 2^-23 of the sum of weights,
        // which is below 12 terms * 3 times * idf 10 * 2.5.
        if (fabs(want - (double)by_segno[s]) > 1e-5 * want + 12 * 900 / 8e6)
            fail_msg("segment %u: wanted %.9g, got %.9g", s, want,
                (double)by_segno[s]);
        n_match += by_segno[s] > 0 && (!filter || bitset_has(filter, s));
    }
    struct candidate *hits;
    size_t n_hits;
    assert_status(MB_OK,
        lex_search(snap, &f->wc.c, q->terms, q->n, filter, k, f->arena, &hits,
            &n_hits, &err),
        &err);
    assert_int_equal(n_hits, n_match < k ? n_match : k);
    for (size_t i = 0; i < n_hits; i++) {
        uint32_t s = hits[i].segno;
        assert_true(s < n && (!filter || bitset_has(filter, s)));
        assert_true(hits[i].score == by_segno[s]);
        if (i > 0 &&
            (hits[i].score > hits[i - 1].score ||
                (hits[i].score == hits[i - 1].score && s <= hits[i - 1].segno)))
            fail_msg("hit %zu is out of order", i);
        by_segno[s] = -1.0f; // taken
    }
    for (uint32_t s = 0; n_hits > 0 && n_hits == k && s < n; s++) {
        if (filter && !bitset_has(filter, s))
            continue;
        const struct candidate *worst = &hits[n_hits - 1];
        if (by_segno[s] > worst->score ||
            (by_segno[s] == worst->score && s < worst->segno))
            fail_msg(
                "segment %u of score %.9g is missing", s, (double)by_segno[s]);
    }
}

static struct bitset
random_filter(struct fixture *f, double part)
{
    struct bitset b = {.n_bits = f->n_segments};
    b.words = mb_arena_calloc(f->arena, f->n_segments / 64 + 1, 8);
    assert_non_null(b.words);
    for (uint32_t s = 0; s < f->n_segments; s++) {
        if (mb_rng_double(&f->rng) < part) {
            b.words[s >> 6] |= (uint64_t)1 << (s & 63);
            b.n_set++;
        }
    }
    return b;
}

static void
check_queries(struct fixture *f, int n_queries)
{
    static uint32_t df[MAX_TERMS];
    struct mb_error err = {0};
    struct mb_snapshot snap = {0};
    twin_df(f, df);
    assert_status(MB_OK, kv_begin(f->kv, false, &snap.txn, &err), &err);
    for (int i = 0; i < n_queries; i++) {
        struct query q;
        random_query(f, &q);
        static const size_t ks[] = {1, 3, 10, 100, 1000};
        size_t k = ks[mb_rng_below(&f->rng, 5)];
        check_query(f, &snap, df, &q, NULL, k);
        static const double parts[] = {0.0, 0.001, 0.02, 0.5};
        struct bitset filter =
            random_filter(f, parts[mb_rng_below(&f->rng, 4)]);
        check_query(f, &snap, df, &q, &filter, k);
        mb_arena_reset(f->arena);
    }
    kv_abort(snap.txn);
}

/* df, bytes and existence of every term agree with the twin. */
static void
check_terms(struct fixture *f)
{
    static uint32_t df[MAX_TERMS];
    struct mb_error err = {0};
    struct mb_snapshot snap = {0};
    uint64_t n_terms = 0;
    twin_df(f, df);
    assert_status(MB_OK, kv_begin(f->kv, false, &snap.txn, &err), &err);
    for (uint32_t t = 0; t < MAX_TERMS; t++) {
        char name[16];
        uint32_t id;
        uint32_t got = 0;
        struct mb_slice bytes;
        mb_status st =
            lex_term_find(snap.txn, f->wc.c.id, term_name(t, name), &id);
        assert_status(df[t] > 0 ? MB_OK : MB_ERR_NOT_FOUND, st, NULL);
        if (st != MB_OK)
            continue;
        n_terms++;
        assert_status(
            MB_OK, mb_term_get(&snap, &f->wc.c, id, &bytes, &got, &err), &err);
        assert_slice_str(name, bytes);
        assert_int_equal(got, df[t]);
    }
    assert_int_equal(n_terms, f->wc.c.n_terms);
    kv_abort(snap.txn);
}

static uint64_t
n_rows(struct fixture *f, enum kv_table table)
{
    struct kv_txn *txn;
    uint64_t rows = 0;
    uint64_t bytes = 0;
    assert_ok(kv_begin(f->kv, false, &txn, NULL));
    assert_ok(kv_table_stats(txn, table, &rows, &bytes));
    kv_abort(txn);
    return rows;
}

/* ---- tests ---- */

static void
test_search_when_adds_only_then_as_the_twin(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    setup(&f);
    for (int round = 0; round < 6; round++) {
        begin(&f);
        for (int i = 0; i < (round < 3 ? 40 : 3000); i++) {
            add_random(&f);
        }
        commit(&f);
        check_terms(&f);
        check_queries(&f, 15);
    }
    teardown(&f);
}

/* Puts, deletes and replaces in one transaction, commits and aborts. */
static void
test_search_when_mixed_changes_then_as_the_twin(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    setup(&f);
    struct twin_segment *saved = mb_calloc(MAX_SEGMENTS, sizeof *saved);
    assert_non_null(saved);
    for (int round = 0; round < 40; round++) {
        memcpy(saved, f.segments, MAX_SEGMENTS * sizeof *saved);
        uint32_t n_saved = f.n_segments;
        begin(&f);
        int n = 1 + (int)mb_rng_below(&f.rng, 400);
        for (int i = 0; i < n; i++) {
            uint64_t dice = mb_rng_below(&f.rng, 10);
            if (f.wc.c.n_segments == 0 || dice < 6) {
                add_random(&f);
            } else if (dice < 9) {
                remove_segment(&f, random_live(&f));
            } else { // replace
                remove_segment(&f, random_live(&f));
                add_random(&f);
            }
            if (mb_rng_below(&f.rng, 100) == 0) // flushed in the middle
                assert_ok(lex_flush(&f.w, NULL));
        }
        if (mb_rng_below(&f.rng, 4) == 0) {
            undo(&f);
            memcpy(f.segments, saved, MAX_SEGMENTS * sizeof *saved);
            f.n_segments = n_saved;
        } else {
            commit(&f);
        }
        check_terms(&f);
        if (round % 4 == 3 && f.n_segments > 0)
            check_queries(&f, 4);
    }
    mb_free(saved);
    teardown(&f);
}

static void
test_remove_all_then_nothing_is_left(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    setup(&f);
    begin(&f);
    for (int i = 0; i < 6000; i++) {
        add_random(&f);
    }
    commit(&f);
    assert_true(n_rows(&f, KV_POSTINGS) > n_rows(&f, KV_TERMS)); // chunks
    while (f.wc.c.n_segments > 0) {
        begin(&f);
        for (int i = 0; i < 700 && f.wc.c.n_segments > 0; i++) {
            remove_segment(&f, random_live(&f));
        }
        commit(&f);
    }
    assert_int_equal(n_rows(&f, KV_POSTINGS), 0);
    assert_int_equal(n_rows(&f, KV_TERMS), 0);
    assert_int_equal(f.wc.c.n_terms, 0);
    assert_int_equal(f.wc.c.sum_lengths, 0);
    // A term that comes back gets a new number and is found again.
    begin(&f);
    for (int i = 0; i < 300; i++) {
        add_random(&f);
    }
    commit(&f);
    check_terms(&f);
    check_queries(&f, 10);
    teardown(&f);
}

static void
test_add_and_remove_in_one_transaction_then_nothing_is_left(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    setup(&f);
    begin(&f);
    for (int i = 0; i < 50; i++) {
        remove_segment(&f, add_random(&f));
    }
    (void)term_id(&f, 99); // asked for, never used
    commit(&f);
    assert_int_equal(n_rows(&f, KV_POSTINGS), 0);
    assert_int_equal(n_rows(&f, KV_TERMS), 0);
    assert_int_equal(f.wc.c.n_terms, 0);
    teardown(&f);
}

static void
test_term_id_when_undone_then_not_remembered(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    setup(&f);
    begin(&f);
    assert_int_equal(term_id(&f, 1), 0);
    assert_int_equal(term_id(&f, 2), 1);
    assert_int_equal(term_id(&f, 1), 0);
    undo(&f);
    begin(&f);
    assert_int_equal(term_id(&f, 2), 0); // not 1
    assert_ok(lex_add(&f.w, &f.wc, 0, 0, 1, 5));
    commit(&f);
    begin(&f);
    assert_int_equal(term_id(&f, 2), 0);
    assert_int_equal(term_id(&f, 3), 1);
    undo(&f);
    teardown(&f);
}

static void
test_remove_when_not_there_then_ignored(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    setup(&f);
    begin(&f);
    uint32_t id = term_id(&f, 1);
    for (uint32_t s = 0; s < 3000; s += 2) {
        assert_ok(lex_add(&f.w, &f.wc, id, s, 1, 5));
    }
    commit(&f);
    begin(&f);
    assert_ok(lex_remove(&f.w, &f.wc, id, 1));    // in a chunk's range
    assert_ok(lex_remove(&f.w, &f.wc, id, 2995)); // in the head's
    assert_ok(lex_remove(&f.w, &f.wc, id, 9999));
    assert_ok(lex_remove(&f.w, &f.wc, 55, 1)); // no such term
    commit(&f);
    struct mb_snapshot snap = {0};
    struct mb_slice bytes;
    uint32_t df = 0;
    assert_ok(kv_begin(f.kv, false, &snap.txn, NULL));
    assert_ok(mb_term_get(&snap, &f.wc.c, id, &bytes, &df, NULL));
    assert_int_equal(df, 1500);
    assert_status(MB_ERR_NOT_FOUND,
        mb_term_get(&snap, &f.wc.c, 55, &bytes, &df, NULL), NULL);
    kv_abort(snap.txn);
    teardown(&f);
}

static void
test_add_when_segments_fall_then_internal(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    struct mb_error err = {0};
    setup(&f);
    begin(&f);
    uint32_t id = term_id(&f, 1);
    assert_ok(lex_add(&f.w, &f.wc, id, 5, 1, 5));
    assert_ok(lex_add(&f.w, &f.wc, id, 5, 1, 5));
    assert_status(MB_ERR_INTERNAL, lex_flush(&f.w, &err), NULL);
    assert_error_has(err, "rise");
    undo(&f);
    teardown(&f);
}

static void
test_length_when_set_then_live_and_summed(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    setup(&f);
    begin(&f);
    assert_ok(lex_set_length(&f.w, &f.wc, 3, 10));
    assert_ok(lex_set_length(&f.w, &f.wc, 5000, 100000)); // cut
    assert_int_equal(f.wc.c.sum_lengths, 10 + 65535);
    uint64_t words[100] = {0};
    assert_ok(lex_live(f.w.txn, 7, words, 6400, NULL)); // before the commit
    assert_true(words[0] == 8);
    assert_true(words[5000 / 64] == (uint64_t)1 << (5000 % 64));
    assert_ok(lex_set_length(&f.w, &f.wc, 3, 0));
    assert_int_equal(f.wc.c.sum_lengths, 65535);
    memset(words, 0, sizeof words);
    assert_ok(lex_live(f.w.txn, 7, words, 4999, NULL));
    for (size_t i = 0; i < 100; i++) {
        assert_true(words[i] == 0);
    }
    assert_status(
        MB_ERR_TOO_LARGE, lex_set_length(&f.w, &f.wc, UINT32_MAX - 1, 1), NULL);
    undo(&f);
    teardown(&f);
}

static void
test_search_when_nothing_to_find_then_empty(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    setup(&f);
    struct mb_snapshot snap = {0};
    struct mb_term term = {.bytes = mb_slice_cstr("term1"), .tf = 1};
    struct candidate *hits;
    size_t n = 1;
    assert_ok(kv_begin(f.kv, false, &snap.txn, NULL));
    assert_ok(lex_search(
        &snap, &f.wc.c, &term, 1, NULL, 10, f.arena, &hits, &n, NULL));
    assert_int_equal(n, 0);
    kv_abort(snap.txn);
    begin(&f);
    add_random(&f);
    commit(&f);
    assert_ok(kv_begin(f.kv, false, &snap.txn, NULL));
    term.bytes = mb_slice_cstr("not there");
    assert_ok(lex_search(
        &snap, &f.wc.c, &term, 1, NULL, 10, f.arena, &hits, &n, NULL));
    assert_int_equal(n, 0);
    assert_ok(lex_search(
        &snap, &f.wc.c, NULL, 0, NULL, 10, f.arena, &hits, &n, NULL));
    assert_int_equal(n, 0);
    mb_segno segno = 77; // past the end
    float score = 1;
    assert_ok(
        lex_score(&snap, &f.wc.c, &term, 1, &segno, 1, f.arena, &score, NULL));
    assert_true(score == 0);
    kv_abort(snap.txn);
    teardown(&f);
}

static void
test_search_when_many_terms_then_the_heaviest_count(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    setup(&f);
    begin(&f);
    static struct mb_term terms[1000];
    static char names[1000][16];
    for (uint32_t s = 0; s < 1000; s++) {
        assert_ok(lex_add(&f.w, &f.wc, term_id(&f, s), s, 1, 1));
        assert_ok(lex_set_length(&f.w, &f.wc, s, 1));
        terms[s].bytes = term_name(s, names[s]);
        terms[s].tf = s % 2 == 0 && s < 400 ? 2 : 1;
    }
    f.wc.c.n_segments = 1000;
    f.wc.c.next_segno = 1000;
    commit(&f);
    struct mb_snapshot snap = {0};
    struct candidate *hits;
    size_t n;
    assert_ok(kv_begin(f.kv, false, &snap.txn, NULL));
    assert_ok(lex_search(
        &snap, &f.wc.c, terms, 1000, NULL, 1000, f.arena, &hits, &n, NULL));
    assert_int_equal(n, LEX_MAX_LISTS);
    for (size_t i = 0; i < 200; i++) { // those asked for twice come first
        assert_int_equal(hits[i].segno, 2 * i);
    }
    kv_abort(snap.txn);
    teardown(&f);
}

/* ---- codec ---- */

static void
test_forward_when_encoded_then_walked_back(void **state)
{
    MB_TEST_UNUSED(state);
    uint32_t ids[6] = {70000, 3, 0, 500, UINT32_MAX, 499};
    uint32_t tfs[6] = {1, 2, 1, 300, 255, 256};
    static const uint32_t want_ids[6] = {0, 3, 499, 500, 70000, UINT32_MAX};
    static const uint32_t want_tfs[6] = {1, 2, 255, 255, 1, 255};
    struct mb_buffer out;
    mb_buffer_init(&out, 1000);
    assert_ok(lex_forward_encode(ids, tfs, 6, &out));
    struct mb_slice forward = mb_buffer_slice(&out);
    size_t pos = 0;
    uint32_t id[7];
    uint32_t tf[7];
    size_t n = 0;
    while (mb_forward_next(forward, &pos, &id[n], &tf[n])) {
        assert_true(n < 6);
        assert_int_equal(id[n], want_ids[n]);
        assert_int_equal(tf[n], want_tfs[n]);
        n++;
    }
    assert_int_equal(n, 6);
    assert_int_equal(pos, forward.size);
    // Cut anywhere inside a pair: damage, told apart from the end.
    size_t n_clean = 0;
    for (size_t cut = 0; cut < forward.size; cut++) {
        struct mb_slice part = mb_slice_of(forward.data, cut);
        pos = 0;
        while (mb_forward_next(part, &pos, &id[0], &tf[0])) {
        }
        assert_true(pos <= cut);
        n_clean += pos == cut;
    }
    assert_int_equal(n_clean, 6); // between pairs
    mb_buffer_fini(&out);
}

static void
test_block_when_encoded_then_decoded(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_rng rng;
    mb_rng_init(&rng, mb_test_seed());
    for (int round = 0; round < 2000; round++) {
        uint32_t segnos[LEX_BLOCK];
        uint32_t got[LEX_BLOCK];
        uint8_t tfs[LEX_BLOCK];
        uint8_t bytes[LEX_BLOCK_BYTES];
        uint32_t n = 1 + (uint32_t)mb_rng_below(&rng, LEX_BLOCK);
        uint32_t bits = (uint32_t)mb_rng_below(&rng, 25);
        uint32_t at = 0;
        for (uint32_t i = 0; i < n; i++) {
            at += 1 + (uint32_t)mb_rng_below(&rng, (uint64_t)1 << bits);
            segnos[i] = at;
            tfs[i] = (uint8_t)(1 + mb_rng_below(&rng, 255));
        }
        struct lex_block b = {.first = segnos[0],
            .last = at,
            .n = n,
            .payload = bytes,
            .size = lex_block_encode(segnos, tfs, n, bytes)};
        assert_true(b.size <= LEX_BLOCK_BYTES);
        assert_true(lex_block_decode(&b, got));
        assert_memory_equal(got, segnos, n * sizeof got[0]);
        assert_memory_equal(lex_block_tfs(&b), tfs, n);
        b.last++;
        assert_false(lex_block_decode(&b, got)); // gaps do not add up
    }
}

/* Points cover every posting, whatever was joined. */
static void
test_front_when_many_points_then_each_posting_is_covered(void **state)
{
    MB_TEST_UNUSED(state);
    struct mb_rng rng;
    mb_rng_init(&rng, mb_test_seed());
    for (int round = 0; round < 3000; round++) {
        uint32_t tf[LEX_BLOCK];
        uint32_t length[LEX_BLOCK];
        uint32_t n = 1 + (uint32_t)mb_rng_below(&rng, LEX_BLOCK);
        struct lex_front front;
        struct lex_point points[LEX_POINTS];
        lex_front_clear(&front);
        for (uint32_t i = 0; i < n; i++) {
            tf[i] =
                1 + (uint32_t)mb_rng_below(&rng, 1 + mb_rng_below(&rng, 255));
            length[i] = (uint32_t)mb_rng_below(&rng, 65536);
            lex_front_add(&front, tf[i], length[i]);
        }
        lex_front_points(&front, points);
        for (uint32_t i = 0; i < n; i++) {
            bool covered = false;
            for (size_t p = 0; p < LEX_POINTS; p++) {
                covered |=
                    points[p].tf >= tf[i] && points[p].length <= length[i];
            }
            assert_true(covered);
        }
    }
}

/* Every record with one byte changed or cut off is refused or read within its
 * bounds (the sanitizer watches), and a head survives its round trip. */
static void
test_records_when_damaged_then_parsed_within_bounds(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    setup(&f);
    begin(&f);
    for (int i = 0; i < 3000; i++) {
        add_random(&f);
    }
    commit(&f);
    struct kv_txn *txn;
    struct kv_cursor *c;
    struct mb_slice k;
    struct mb_slice v;
    size_t n_heads = 0;
    size_t n_chunks = 0;
    assert_ok(kv_begin(f.kv, false, &txn, NULL));
    assert_ok(kv_cursor_open(txn, KV_POSTINGS, &c));
    mb_status st = kv_cursor_seek(c, mb_slice_of(NULL, 0), &k, &v);
    for (; st == MB_OK; st = kv_cursor_next(c, &k, &v)) {
        bool is_head = mb_get_be32(k.data + 8) == LEX_HEAD;
        size_t *n = is_head ? &n_heads : &n_chunks;
        if ((*n)++ > 30)
            continue;
        assert_true(v.size <= LEX_MAX_RECORD);
        for (size_t round = 0; round < 2 * v.size; round++) {
            size_t size = round < v.size ? v.size : round - v.size;
            uint8_t *copy = mb_alloc(size + 1);
            assert_non_null(copy);
            memcpy(copy, v.data, size);
            if (round < v.size)
                copy[round] ^= (uint8_t)(1 + mb_rng_below(&f.rng, 255));
            copy = mb_realloc(copy, size + (size == 0));
            assert_non_null(copy);
            uint32_t segnos[LEX_BLOCK];
            struct lex_head head;
            struct lex_run run = {0};
            struct mb_slice record = mb_slice_of(copy, size);
            bool good = is_head ? lex_head_parse(record, &head)
                                : lex_chunk_parse(record, &run);
            if (good && is_head) {
                run = head.full;
                if (head.rest.n > 0)
                    (void)!lex_block_decode(&head.rest, segnos);
            }
            const uint8_t *payload = run.payload;
            for (uint32_t b = 0; good && b < run.n; b++) {
                struct lex_block block =
                    lex_run_block(run.entries + b * LEX_ENTRY_BYTES, payload);
                payload += block.size;
                (void)!lex_block_decode(&block, segnos);
            }
            mb_free(copy);
        }
        if (is_head) {
            struct lex_head head;
            uint8_t again[LEX_MAX_RECORD];
            assert_true(lex_head_parse(v, &head));
            assert_int_equal(lex_head_encode(&head, again), v.size);
            assert_memory_equal(again, v.data, v.size);
        }
    }
    assert_true(n_heads > 30 && n_chunks > 5);
    kv_cursor_close(c);
    kv_abort(txn);
    teardown(&f);
}

static void
test_search_when_a_head_is_damaged_then_corrupt(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    struct mb_error err = {0};
    setup(&f);
    begin(&f);
    for (int i = 0; i < 100; i++) {
        add_random(&f);
    }
    commit(&f);
    struct kv_key key;
    char name[16];
    uint32_t id;
    begin(&f);
    assert_ok(lex_term_find(f.w.txn, 7, term_name(0, name), &id));
    lex_posting_key(&key, 7, id, LEX_HEAD);
    uint8_t junk[40] = {9, 0, 0, 0, 5, 9, 9, 9, 9, 9};
    assert_ok(kv_put(f.w.txn, KV_POSTINGS, kv_key_slice(&key),
        mb_slice_of(junk, sizeof junk)));
    commit(&f);
    struct mb_snapshot snap = {0};
    struct mb_term term = {.bytes = term_name(0, name), .tf = 1};
    struct candidate *hits;
    size_t n;
    assert_ok(kv_begin(f.kv, false, &snap.txn, NULL));
    assert_status(MB_ERR_CORRUPT,
        lex_search(&snap, &f.wc.c, &term, 1, NULL, 5, f.arena, &hits, &n, &err),
        NULL);
    kv_abort(snap.txn);
    begin(&f); // and writing to it does not make it worse
    assert_ok(lex_add(&f.w, &f.wc, id, 1000, 1, 5));
    assert_status(MB_ERR_CORRUPT, lex_flush(&f.w, &err), NULL);
    undo(&f);
    teardown(&f);
}

static void
test_batch_when_memory_is_short_then_no_memory_and_retry_works(void **state)
{
    MB_TEST_UNUSED(state);
    struct fixture f;
    setup(&f);
    uint64_t n = 1;
    for (bool done = false; !done; n++) {
        begin(&f);
        mb_alloc_fail_after(n);
        mb_status st = MB_OK;
        for (uint32_t t = 0; t < 300 && st == MB_OK; t++) {
            char name[16];
            uint32_t id;
            struct mb_slice s = term_name(t, name);
            st = lex_term_id(
                &f.w, &f.wc, s, mb_hash64(s.data, s.size, 0), &id, NULL);
            if (st == MB_OK)
                st = lex_add(&f.w, &f.wc, id, 1, 1, 300);
        }
        if (st == MB_OK)
            st = lex_flush(&f.w, NULL);
        mb_alloc_fail_after(0);
        done = st == MB_OK;
        if (!done)
            assert_status(MB_ERR_NOMEM, st, NULL);
        undo(&f);
    }
    assert_true(n > 8);
    teardown(&f);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_search_when_adds_only_then_as_the_twin),
        cmocka_unit_test(test_search_when_mixed_changes_then_as_the_twin),
        cmocka_unit_test(test_remove_all_then_nothing_is_left),
        cmocka_unit_test(
            test_add_and_remove_in_one_transaction_then_nothing_is_left),
        cmocka_unit_test(test_term_id_when_undone_then_not_remembered),
        cmocka_unit_test(test_remove_when_not_there_then_ignored),
        cmocka_unit_test(test_add_when_segments_fall_then_internal),
        cmocka_unit_test(test_length_when_set_then_live_and_summed),
        cmocka_unit_test(test_search_when_nothing_to_find_then_empty),
        cmocka_unit_test(test_search_when_many_terms_then_the_heaviest_count),
        cmocka_unit_test(test_forward_when_encoded_then_walked_back),
        cmocka_unit_test(test_block_when_encoded_then_decoded),
        cmocka_unit_test(
            test_front_when_many_points_then_each_posting_is_covered),
        cmocka_unit_test(test_records_when_damaged_then_parsed_within_bounds),
        cmocka_unit_test(test_search_when_a_head_is_damaged_then_corrupt),
        cmocka_unit_test(
            test_batch_when_memory_is_short_then_no_memory_and_retry_works),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
