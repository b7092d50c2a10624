/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_windows.c - windows of shards, and synthetic tasks.
 *
 * Shards of counting tokens show where each row came from; shards of English,
 * in the bundled vocabulary, are what tasks are made of. */
#include "mb_test.h"

#include "mb_shard.h"
#include "mb_test_gguf.h"
#include "mb_windows.h"

#define ROWS  640
#define BLOCK 63

struct rig {
    struct mb_test_dir dir;
    struct mb_tokenizer *tok;
    struct shard *shards[3];
    struct windows_source sources[3];
    struct windows_options options;
    struct window win;
    mb_token_id landmark;
};

/* A shard of one document whose token i is first + i % period; 2 is </s>. */
static struct shard *
counting_shard(struct rig *rig, const char *name, size_t n, size_t documents)
{
    char path[MB_TEST_PATH];
    struct shard_writer *w = NULL;
    struct shard *s = NULL;
    struct mb_token *tokens = mb_calloc(n + 1, sizeof *tokens);
    assert_non_null(tokens);
    for (size_t i = 0; i < n; i++)
        tokens[i].id = (mb_token_id)(300 + i % 7001);
    mb_test_path(&rig->dir, name, path);
    assert_ok(shard_writer_new(path, rig->tok, &w, NULL));
    for (size_t d = 0; d < documents; d++)
        assert_ok(shard_writer_add(w, tokens, n, n, NULL));
    assert_ok(shard_writer_finish(w, NULL));
    assert_ok(shard_open(path, &s, NULL));
    mb_free(tokens);
    return s;
}

/* Sentences of the tree's own prose. */
static struct shard *
prose_shard(struct rig *rig, const char *name)
{
    char path[MB_TEST_PATH];
    struct shard_writer *w = NULL;
    struct shard *s = NULL;
    struct mb_buffer tokens;
    size_t size;
    uint8_t *text =
        mb_test_read_file(MB_SOURCE_DIR "/tools/sample/inaugural.jsonl", &size);
    mb_buffer_init(&tokens, SIZE_MAX);
    assert_ok(mb_tokenizer_encode(
        rig->tok, NULL, mb_slice_of(text, 60000), &tokens, NULL));
    mb_test_path(&rig->dir, name, path);
    assert_ok(shard_writer_new(path, rig->tok, &w, NULL));
    assert_ok(shard_writer_add(w, (const struct mb_token *)(void *)tokens.data,
        tokens.size / sizeof(struct mb_token), 60000, NULL));
    assert_ok(shard_writer_finish(w, NULL));
    assert_ok(shard_open(path, &s, NULL));
    mb_buffer_fini(&tokens);
    mb_free(text);
    return s;
}

static int
setup(void **state)
{
    struct rig *rig = mb_calloc(1, sizeof *rig);
    assert_non_null(rig);
    rig->dir = mb_test_dir_begin();
    rig->tok = test_tokenizer_open(MB_SOURCE_DIR "/model/weights/anchor.gguf");
    rig->landmark = 3;
    assert_slice_str("<landmark>", mb_tokenizer_piece(rig->tok, 3));
    rig->shards[0] = counting_shard(rig, "a", 20000, 1);
    rig->shards[1] = counting_shard(rig, "b", 50, 100);
    rig->shards[2] = prose_shard(rig, "c");
    for (size_t i = 0; i < 3; i++)
        rig->sources[i] = (struct windows_source){rig->shards[i], 1};
    rig->options = (struct windows_options){
        .tok = rig->tok,
        .sources = rig->sources,
        .n_sources = 3,
        .n_rows = ROWS,
        .landmark_part = 0.5,
        .task_part = 0.0625,
        .seed = mb_test_seed(),
    };
    assert_ok(window_init(&rig->win, ROWS, NULL));
    *state = rig;
    return 0;
}

static int
teardown(void **state)
{
    struct rig *rig = *state;
    window_fini(&rig->win);
    for (size_t i = 0; i < 3; i++)
        shard_close(rig->shards[i]);
    mb_tokenizer_free(rig->tok);
    mb_test_dir_end(&rig->dir);
    mb_free(rig);
    return 0;
}

static struct windows *
make(const struct windows_options *options)
{
    struct windows *w = NULL;
    struct mb_error err;
    assert_status(MB_OK, windows_new(options, &w, &err), &err);
    return w;
}

static void
get(const struct windows *w, uint64_t i, struct window *win)
{
    struct mb_error err;
    assert_status(MB_OK, windows_get(w, i, win, &err), &err);
}

/* ---- rows ---- */

/* A text window against the rules, worked out from the shard alone. */
static void
check_text(const struct rig *rig, const struct window *win)
{
    const struct train_window *v = &win->view;
    const struct shard *s = rig->shards[win->source];
    uint64_t at = win->start;
    for (size_t r = 0; r < v->n; r++) {
        // A landmark follows each 63rd token of the shard, and nothing else.
        bool want = v->is_landmark && r > 0 && at % BLOCK == 0 &&
                    !v->is_landmark[r - 1];
        mb_token_id next[2];
        assert_int_equal(want, v->is_landmark && v->is_landmark[r]);
        if (want) {
            assert_int_equal(rig->landmark, v->tokens[r]);
            assert_int_equal(-1, v->targets[r]);
            continue;
        }
        shard_read(s, at, 2, next);
        assert_int_equal(next[0], v->tokens[r]);
        assert_int_equal(next[0] == 2 ? -1 : next[1], v->targets[r]);
        at++;
    }
}

static void
test_get_when_text_then_rows_keep_the_rules(void **state)
{
    struct rig *rig = *state;
    struct windows *w = make(&rig->options);
    size_t seen[2] = {0};
    bool phases[BLOCK] = {false};
    for (uint64_t i = 0; i < 2000; i++) {
        get(w, i, &rig->win);
        if (rig->win.kind != WINDOW_TEXT)
            continue;
        assert_int_equal(ROWS, rig->win.view.n);
        check_text(rig, &rig->win);
        seen[rig->win.view.is_landmark ? 1 : 0]++;
        phases[rig->win.start % BLOCK] = true;
    }
    assert_true(seen[0] > 500 && seen[1] > 500);
    // The first block is cut anywhere.
    for (size_t i = 0; i < BLOCK; i++)
        assert_true(phases[i]);
    windows_free(w);
}

static void
test_get_when_window_cuts_blocks_then_each_has_64_rows(void **state)
{
    struct rig *rig = *state;
    struct windows *w = make(&rig->options);
    for (uint64_t i = 0; i < 300; i++) {
        get(w, i, &rig->win);
        const bool *lm = rig->win.view.is_landmark;
        size_t last = SIZE_MAX;
        for (size_t r = 0; lm && r < rig->win.view.n; r++) {
            if (!lm[r])
                continue;
            if (last != SIZE_MAX)
                assert_int_equal(MB_BLOCK_ROWS, r - last);
            else
                assert_in_range(r, 1, MB_BLOCK_ROWS - 1);
            last = r;
        }
        if (lm)
            assert_true(rig->win.view.n - last <= MB_BLOCK_ROWS);
    }
    windows_free(w);
}

static void
test_get_when_shard_is_short_then_window_is_shorter(void **state)
{
    struct rig *rig = *state;
    struct windows_options o = rig->options;
    struct shard *s = counting_shard(rig, "short", 100, 1);
    struct windows_source source = {s, 1};
    o.sources = &source;
    o.n_sources = 1;
    o.task_part = 0;
    struct windows *w = make(&o);
    size_t rows[2] = {0};
    for (uint64_t i = 0; i < 4; i++) {
        get(w, i, &rig->win);
        rows[rig->win.view.is_landmark ? 1 : 0] = rig->win.view.n;
        assert_int_equal(0, rig->win.start);
    }
    // 102 tokens with <s> and </s>: 101 rows, one landmark.
    assert_int_equal(101, rows[0]);
    assert_int_equal(102, rows[1]);
    windows_free(w);
    shard_close(s);
}

/* ---- the mixture ---- */

static void
test_get_when_same_number_then_same_window(void **state)
{
    struct rig *rig = *state;
    struct windows *one = make(&rig->options);
    struct windows *two = make(&rig->options);
    rig->options.seed++;
    struct windows *other = make(&rig->options);
    struct window win;
    size_t n_same = 0;
    assert_ok(window_init(&win, ROWS, NULL));
    for (uint64_t i = 500; i > 0; i--) {
        size_t bytes = ROWS * sizeof *win.tokens;
        get(one, i * 977, &rig->win);
        get(two, (i + 3) % 500, &win); // what came before does not matter
        get(two, i * 977, &win);
        assert_int_equal(rig->win.view.n, win.view.n);
        assert_memory_equal(rig->win.tokens, win.tokens, bytes);
        assert_memory_equal(rig->win.targets, win.targets, bytes);
        assert_int_equal(
            rig->win.view.is_landmark != NULL, win.view.is_landmark != NULL);
        get(other, i * 977, &win);
        n_same += memcmp(rig->win.tokens, win.tokens, bytes) == 0;
    }
    assert_in_range(n_same, 0, 20);
    window_fini(&win);
    windows_free(one);
    windows_free(two);
    windows_free(other);
}

/* Hashes of the first n windows of nothing but tasks. */
static void
hash_tasks(const struct rig *rig, uint64_t seed, size_t n, uint64_t *out)
{
    struct windows_options o = rig->options;
    struct window win;
    o.task_part = 1;
    o.seed = seed;
    struct windows *w = make(&o);
    assert_ok(window_init(&win, ROWS, NULL));
    for (uint64_t i = 0; i < n; i++) {
        get(w, i, &win);
        assert_true(win.kind != WINDOW_TEXT);
        out[i] = mb_hash64(win.tokens, ROWS * sizeof *win.tokens, 0);
    }
    window_fini(&win);
    windows_free(w);
}

static void
test_get_when_seed_differs_then_other_tasks(void **state)
{
    struct rig *rig = *state;
    static uint64_t one[WINDOWS_ROUND];
    static uint64_t two[WINDOWS_ROUND];
    hash_tasks(rig, 1, WINDOWS_ROUND, one);
    hash_tasks(rig, 2, WINDOWS_ROUND, two);
    for (size_t i = 0; i < 64; i++) {
        for (size_t j = 0; j < WINDOWS_ROUND; j++) {
            assert_true(one[i] != two[j]);
            assert_true(i == j || one[i] != one[j]);
        }
    }
}

static void
test_get_when_weights_differ_then_places_follow(void **state)
{
    struct rig *rig = *state;
    rig->sources[0].weight = 5;
    rig->sources[1].weight = 3;
    rig->sources[2].weight = 0.001;
    struct windows *w = make(&rig->options);
    // 64 places are tasks; of 960 the third source is owed less than one.
    assert_int_equal(64, windows_places(w, 3));
    assert_int_equal(1, windows_places(w, 2));
    assert_in_range(windows_places(w, 0), 598, 600);
    assert_in_range(windows_places(w, 1), 359, 361);
    size_t count[4] = {0};
    size_t landmarks[4] = {0};
    for (uint64_t i = 0; i < 3 * WINDOWS_ROUND; i++) {
        get(w, i, &rig->win);
        size_t of = rig->win.kind == WINDOW_TEXT ? rig->win.source : 3;
        count[of]++;
        landmarks[of] += rig->win.view.is_landmark ? 1 : 0;
    }
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(3 * windows_places(w, i), count[i]);
        assert_in_range(landmarks[i], count[i] / 2 - (i == 3 ? 2 : 0),
            count[i] / 2 + (i == 3 ? 2 : 1));
    }
    windows_free(w);
}

static void
test_get_when_epoch_ends_then_all_text_was_seen(void **state)
{
    struct rig *rig = *state;
    struct windows_options o = rig->options;
    o.n_sources = 1;
    o.task_part = 0;
    o.landmark_part = 0;
    struct windows *w = make(&o);
    // 20,002 tokens: 31 whole windows fit, 30 are cut, so that they may shift.
    static size_t hits[20002];
    for (uint64_t i = 0; i < WINDOWS_ROUND; i++) {
        get(w, i, &rig->win);
        for (size_t r = 0; r < ROWS; r++)
            hits[rig->win.start + r]++;
    }
    // 34 epochs: in the middle each token was read in all of them.
    for (size_t t = 1400; t < 20002 - 1400; t++)
        assert_in_range(hits[t], 34, 35);
    assert_true(hits[0] < 34);
    windows_free(w);
}

static void
test_new_when_options_are_wrong_then_refused(void **state)
{
    struct rig *rig = *state;
    struct windows *w = NULL;
    struct mb_error err;
    struct windows_options o = rig->options;
    o.n_sources = 0;
    assert_status(MB_ERR_BAD_ARG, windows_new(&o, &w, &err), &err);
    o = rig->options;
    o.n_rows = WINDOWS_MIN_ROWS - 1;
    assert_status(MB_ERR_BAD_ARG, windows_new(&o, &w, &err), &err);
    o = rig->options;
    o.landmark_part = 1.01;
    assert_status(MB_ERR_BAD_ARG, windows_new(&o, &w, &err), &err);
    o = rig->options;
    o.task_part = -0.1;
    assert_status(MB_ERR_BAD_ARG, windows_new(&o, &w, &err), &err);
    o.task_part = 1023.0 / WINDOWS_ROUND;
    assert_status(MB_ERR_BAD_ARG, windows_new(&o, &w, &err), &err);
    rig->sources[1].weight = 0;
    assert_status(MB_ERR_BAD_ARG, windows_new(&rig->options, &w, &err), &err);
    rig->sources[1].weight = 1;

    // Another tokenizer, and one without landmarks.
    struct test_gguf g;
    test_vocab_file(&g, NULL, 0, true);
    struct mb_tokenizer *bare = test_tokenizer_of(&g);
    test_gguf_free(&g);
    o = rig->options;
    o.tok = bare;
    assert_status(MB_ERR_MISMATCH, windows_new(&o, &w, &err), &err);
    struct mb_tokenizer *kept = rig->tok;
    rig->tok = bare;
    char path[MB_TEST_PATH];
    struct shard_writer *sw = NULL;
    struct shard *s = NULL;
    struct mb_token tokens[2] = {{70, 0, 1}, {71, 1, 1}};
    assert_ok(shard_writer_new(
        mb_test_path(&rig->dir, "bare", path), bare, &sw, NULL));
    assert_ok(shard_writer_add(sw, tokens, 2, 2, NULL));
    assert_ok(shard_writer_finish(sw, NULL));
    assert_ok(shard_open(path, &s, NULL));
    rig->tok = kept;
    struct windows_source source = {s, 1};
    o.sources = &source;
    o.n_sources = 1;
    assert_status(MB_ERR_NOT_FOUND, windows_new(&o, &w, &err), &err);
    o.landmark_part = 0;
    assert_status(MB_OK, windows_new(&o, &w, &err), &err);
    windows_free(w);
    shard_close(s);
    mb_tokenizer_free(bare);
}

/* ---- held-out text ---- */

static void
test_heldout_when_counted_then_each_target_once(void **state)
{
    struct rig *rig = *state;
    struct windows *w = make(&rig->options);
    for (size_t form = 0; form < 2; form++) {
        const struct shard *s = rig->shards[1]; // 100 documents of 52 tokens
        size_t n = windows_heldout_count(w, s);
        size_t n_targets = 0;
        uint64_t at = 0;
        assert_int_equal((5200 - 1 + 629) / 630, n);
        for (size_t j = 0; j < n; j++) {
            windows_heldout(w, s, form == 1, j, &rig->win);
            const struct train_window *v = &rig->win.view;
            assert_int_equal(form == 1, v->is_landmark != NULL);
            assert_int_equal(at, rig->win.start);
            rig->win.source = 1;
            check_text(rig, &rig->win);
            for (size_t r = 0; r < v->n; r++) {
                n_targets += v->targets[r] >= 0;
                at += !(v->is_landmark && v->is_landmark[r]);
            }
            if (j + 1 < n)
                assert_int_equal(form == 1 ? 640 : 630, v->n);
        }
        // All tokens but the first are targets, but those after </s>.
        assert_int_equal(5200 - 1 - 99, n_targets);
    }
    windows_free(w);
}

static void
test_heldout_when_its_tokens_are_given_then_windows_have_these(void **state)
{
    struct rig *rig = *state;
    struct windows_options o = rig->options;
    struct windows *w = NULL;
    struct mb_error err;
    o.heldout_tokens = 512;
    w = make(&o);
    assert_int_equal(
        (5200 - 1 + 511) / 512, windows_heldout_count(w, rig->shards[1]));
    windows_heldout(w, rig->shards[1], false, 1, &rig->win);
    assert_int_equal(512, rig->win.start);
    assert_int_equal(512, rig->win.view.n);
    windows_heldout(w, rig->shards[1], true, 1, &rig->win);
    assert_int_equal(512 + 8, rig->win.view.n);
    windows_free(w);
    o.heldout_tokens = ROWS + 1;
    assert_status(MB_ERR_BAD_ARG, windows_new(&o, &w, &err), &err);
}

/* ---- tasks ---- */

/* The text of tokens [0, n) of a window's stream, landmarks left out. */
static size_t
stream_of(const struct window *win, mb_token_id *ids, bool *is_answer)
{
    size_t n = 0;
    for (size_t r = 0; r < win->view.n; r++) {
        if (win->view.is_landmark && win->view.is_landmark[r])
            continue;
        ids[n] = win->view.tokens[r];
        is_answer[n++] = win->is_answer[r];
    }
    return n;
}

/* Where the answer tokens [from, to) stand a first time; false if nowhere. */
static bool
stands_before(const mb_token_id *ids, size_t from, size_t to)
{
    for (size_t at = 0; at + (to - from) <= from; at++) {
        if (memcmp(ids + at, ids + from, (to - from) * sizeof *ids) == 0)
            return true;
    }
    return false;
}

static void
check_task(const struct rig *rig, const struct window *win, bool landmarks)
{
    mb_token_id ids[ROWS + 1];
    bool is_answer[ROWS + 1];
    size_t n = stream_of(win, ids, is_answer);
    size_t n_answers = 0;
    assert_int_equal(ROWS, win->view.n);
    assert_int_equal(landmarks, win->view.is_landmark != NULL);
    assert_int_equal(mb_tokenizer_bos(rig->tok), ids[0]);
    size_t first = 0;
    for (size_t i = 0; i < n; i++) {
        n_answers += is_answer[i];
        if (is_answer[i] && (i == 0 || !is_answer[i - 1]))
            first = i + 1;
        // Row i's target is token i + 1: an answer ends at i + 1.
        if (is_answer[i] && i + 2 < n && !is_answer[i + 1]) {
            size_t end = i + 2;
            // Punctuation behind an answer need not stand before.
            if (!stands_before(ids, first, end - 1))
                fail_msg("kind %d: an answer of %zu tokens at %zu is new",
                    (int)win->kind, end - first, first);
        }
    }
    assert_int_equal(n_answers, win->n_answers);
    assert_true(n_answers > 0);
    for (size_t r = 0; r < win->view.n; r++) {
        if (win->is_answer[r])
            assert_true(win->view.targets[r] >= 0);
    }
}

/* Spans against the rows: whole runs of answers, the fact in front. */
static void
check_spans(const struct window *win)
{
    assert_true(win->n_spans > 0 && win->n_spans <= WINDOW_MAX_ANSWERS);
    for (size_t i = 0; i < win->n_spans; i++) {
        const struct window_answer *a = &win->spans[i];
        mb_token_id first = win->view.targets[a->first];
        size_t back = 0; // tokens before the answer's first
        bool is_found = false;
        assert_true(i == 0 || a->first >= win->spans[i - 1].end);
        assert_true(a->first < a->end && a->end <= win->view.n);
        assert_true(win->is_answer[a->first] && win->is_answer[a->end - 1]);
        for (size_t r = a->first; r < a->end; r++)
            assert_true(win->is_answer[r] ||
                        (win->view.is_landmark && win->view.is_landmark[r]));
        assert_false(a->end < win->view.n && win->is_answer[a->end]);
        // What is asked for begins within the fact.
        for (size_t r = a->first + 1; r-- > 0;) {
            if (win->view.is_landmark && win->view.is_landmark[r])
                continue;
            back++;
            is_found = is_found ||
                       (back <= a->distance && win->view.tokens[r] == first);
        }
        assert_true(a->distance > 0 && a->distance <= back);
        assert_true(is_found);
    }
}

static void
test_task_when_made_then_answers_stand_in_facts(void **state)
{
    struct rig *rig = *state;
    struct windows_options o = rig->options;
    // Prose alone, whose tokens are words.
    o.sources = rig->sources + 2;
    o.n_sources = 1;
    struct windows *w = make(&o);
    for (int kind = 0; kind < WINDOW_N_TASKS; kind++) {
        size_t farthest = 0;
        size_t prose = 0;
        for (uint64_t i = 0; i < 300; i++) {
            struct mb_error err;
            assert_status(MB_OK,
                windows_task(
                    w, (window_kind)kind, i % 2 == 1, i, &rig->win, &err),
                &err);
            assert_int_equal(kind, rig->win.kind);
            check_task(rig, &rig->win, i % 2 == 1);
            check_spans(&rig->win);
            for (size_t r = 0; r < ROWS; r++) {
                if (rig->win.is_answer[r])
                    farthest = r > farthest ? r : farthest;
                else
                    prose += rig->win.view.targets[r] >= 0;
            }
        }
        // Answers reach to the window's end, and natural text fills most.
        assert_true(farthest > 620);
        assert_true(kind == WINDOW_REPEAT || prose > 300 * ROWS / 3);
    }
    windows_free(w);
}

static void
test_task_when_a_fact_is_random_then_no_target(void **state)
{
    struct rig *rig = *state;
    struct windows_options o = rig->options;
    o.sources = rig->sources + 2;
    o.n_sources = 1;
    struct windows *w = make(&o);
    size_t n_digits = 0;
    for (uint64_t i = 0; i < 200; i++) {
        mb_token_id ids[ROWS + 1];
        bool is_answer[ROWS + 1];
        assert_ok(windows_task(w, WINDOW_PASSKEY, false, i, &rig->win, NULL));
        size_t n = stream_of(&rig->win, ids, is_answer);
        // Five digits in a row: a key. The first time it stands it is no
        // target; each time again it is an answer.
        for (size_t k = 1; k + 5 < n; k++) {
            bool is_key = true;
            for (size_t d = 0; d < 5; d++) {
                struct mb_slice p = mb_tokenizer_piece(rig->tok, ids[k + d]);
                is_key = is_key && p.size == 1 && p.data[0] >= '0' &&
                         p.data[0] <= '9';
            }
            if (!is_key)
                continue;
            bool again = stands_before(ids, k, k + 5);
            assert_int_equal(again, is_answer[k]);
            if (!again)
                assert_int_equal(-1, rig->win.view.targets[k]);
            n_digits++;
            k += 5;
        }
    }
    assert_true(n_digits > 400);
    windows_free(w);
}

static void
test_task_when_looking_up_then_questions_differ(void **state)
{
    struct rig *rig = *state;
    struct windows_options o = rig->options;
    o.sources = rig->sources + 2;
    o.n_sources = 1;
    struct windows *w = make(&o);
    size_t n_different = 0;
    for (uint64_t i = 0; i < 100; i++) {
        mb_token_id ids[ROWS + 1];
        bool is_answer[ROWS + 1];
        mb_token_id first[2] = {-1, -1}; // of the first answer
        bool differs = false;
        assert_ok(windows_task(w, WINDOW_LOOKUP, false, i, &rig->win, NULL));
        size_t n = stream_of(&rig->win, ids, is_answer);
        for (size_t k = 1; k + 2 < n; k++) {
            if (!is_answer[k] || is_answer[k - 1])
                continue;
            if (first[0] < 0)
                memcpy(first, ids + k + 1, sizeof first);
            differs = differs || memcmp(first, ids + k + 1, sizeof first) != 0;
        }
        n_different += differs;
    }
    assert_true(n_different > 90);
    windows_free(w);
}

static void
test_task_when_repeats_then_most_is_an_answer(void **state)
{
    struct rig *rig = *state;
    struct windows_options o = rig->options;
    o.sources = rig->sources + 2;
    o.n_sources = 1;
    struct windows *w = make(&o);
    size_t n_answers = 0;
    size_t n_spans = 0;
    for (uint64_t i = 0; i < 200; i++) {
        assert_ok(
            windows_task(w, WINDOW_REPEAT, i % 2 == 1, i, &rig->win, NULL));
        n_answers += rig->win.n_answers;
        n_spans += rig->win.n_spans;
        // A repeat begins two tokens before its answer, and the fact is as
        // far before that.
        mb_token_id ids[ROWS + 1];
        size_t token_of[ROWS + 1];
        size_t n = 0;
        for (size_t r = 0; r < ROWS; r++) {
            token_of[r] = n;
            if (!rig->win.view.is_landmark || !rig->win.view.is_landmark[r])
                ids[n++] = rig->win.view.tokens[r];
        }
        for (size_t k = 0; k < rig->win.n_spans; k++) {
            const struct window_answer *a = &rig->win.spans[k];
            size_t first = token_of[a->first] + 1; // the target's own place
            size_t end = token_of[a->end - 1] + 1;
            for (size_t t = first; t < end && t < n; t++)
                assert_int_equal(ids[t - (a->distance - 2)], ids[t]);
        }
    }
    assert_true(n_answers > 200 * ROWS / 3);
    assert_true(n_spans > 200 * 3);
    windows_free(w);
}

/* Of every 1000 tasks 300 are repeats, the others take turns. */
static void
test_task_when_parts_are_given_then_kept(void **state)
{
    struct rig *rig = *state;
    struct windows_options o = rig->options;
    o.sources = rig->sources + 2;
    o.n_sources = 1;
    o.task_part = 1;
    o.repeat_part = 0.3;
    struct windows *w = make(&o);
    size_t n[WINDOW_N_TASKS] = {0};
    for (uint64_t i = 0; i < WINDOWS_ROUND; i++) {
        assert_ok(windows_get(w, i, &rig->win, NULL));
        n[rig->win.kind]++;
    }
    assert_int_equal(307, n[WINDOW_REPEAT]);
    for (int kind = 0; kind < WINDOW_REPEAT; kind++)
        assert_in_range(n[kind], 179, 180);
    windows_free(w);
    o.repeat_part = 1.5;
    struct mb_error err;
    assert_status(MB_ERR_BAD_ARG, windows_new(&o, &w, &err), &err);
}

static void
test_task_when_window_is_tiny_then_still_whole(void **state)
{
    struct rig *rig = *state;
    struct windows_options o = rig->options;
    o.task_part = 1;
    o.n_sources = 2; // tokens that end no sentence
    struct window win;
    for (size_t rows = WINDOWS_MIN_ROWS; rows < 200; rows += 31) {
        o.n_rows = rows;
        struct windows *w = make(&o);
        assert_ok(window_init(&win, rows, NULL));
        for (uint64_t i = 0; i < 200; i++) {
            struct mb_error err;
            assert_status(MB_OK, windows_get(w, i, &win, &err), &err);
            assert_int_equal(rows, win.view.n);
        }
        window_fini(&win);
        windows_free(w);
    }
}

static mb_status
make_and_get(void *arg)
{
    struct rig *rig = arg;
    struct windows *w = NULL;
    struct window win;
    mb_status st = windows_new(&rig->options, &w, NULL);
    if (st != MB_OK)
        return st;
    st = window_init(&win, ROWS, NULL);
    if (st == MB_OK) {
        for (uint64_t i = 0; st == MB_OK && i < WINDOW_N_TASKS; i++)
            st = windows_task(w, (window_kind)i, true, 1, &win, NULL);
        window_fini(&win);
    }
    windows_free(w);
    return st;
}

static void
test_get_when_memory_is_short_then_no_memory(void **state)
{
    mb_test_each_allocation(make_and_get, *state);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_get_when_text_then_rows_keep_the_rules),
        TEST(test_get_when_window_cuts_blocks_then_each_has_64_rows),
        TEST(test_get_when_shard_is_short_then_window_is_shorter),
        TEST(test_get_when_same_number_then_same_window),
        TEST(test_get_when_seed_differs_then_other_tasks),
        TEST(test_get_when_weights_differ_then_places_follow),
        TEST(test_get_when_epoch_ends_then_all_text_was_seen),
        TEST(test_new_when_options_are_wrong_then_refused),
        TEST(test_heldout_when_counted_then_each_target_once),
        TEST(test_heldout_when_its_tokens_are_given_then_windows_have_these),
        TEST(test_task_when_made_then_answers_stand_in_facts),
        TEST(test_task_when_a_fact_is_random_then_no_target),
        TEST(test_task_when_looking_up_then_questions_differ),
        TEST(test_task_when_repeats_then_most_is_an_answer),
        TEST(test_task_when_parts_are_given_then_kept),
        TEST(test_task_when_window_is_tiny_then_still_whole),
        TEST(test_get_when_memory_is_short_then_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
