/* SPDX-License-Identifier: Apache-2.0
 * model/train/windows.c - window i of a mixture of shards.
 *
 * From i to a window in four steps, none of which keeps a state: the round and
 * the place in it; by the shuffled places the source, and how many windows it
 * gave before; of these the epoch and, by a permutation of its own, which
 * stretch of the shard; then rows. The permutations are small Feistel networks
 * keyed by hashes, walked until they fall inside their range (Black and Rogaway
 * 2002, section 3): no table, whatever the size of a shard.
 *
 * Invariants: windows of one epoch of a source do not overlap; of each source's
 * and each task's windows the landmark part has landmarks, to within one.
 * Threads: see mb_windows.h. */
#include "mb_windows.h"

#include <math.h>
#include <string.h>

#include "tasks.h"

#define BLOCK_TOKENS (MB_BLOCK_ROWS - 1)
#define ARENA_BYTES  ((size_t)16 << 20)

/* What a hash is for. */
enum { FOR_ROUND = 1, FOR_ORDER, FOR_SHIFT, FOR_TASK, FOR_PLACE, FOR_TEST };

struct windows {
    struct windows_options options;
    struct windows_source *sources; /* (n_sources) */
    size_t *places;                 /* (n_sources + 1), tasks last */
    double *share;                  /* (n_sources) sums of text places */
    uint8_t *marks;                 /* (n_vocab) for the tasks */
    mb_token_id landmark;           /* -1: none */
    mb_token_id eos;
};

/* ---- chance without a state ---- */

static uint64_t
hash3(uint64_t seed, uint64_t what, uint64_t a, uint64_t b)
{
    uint8_t bytes[32];
    mb_put_le64(bytes, seed);
    mb_put_le64(bytes + 8, what);
    mb_put_le64(bytes + 16, a);
    mb_put_le64(bytes + 24, b);
    return mb_hash64(bytes, sizeof bytes, 0);
}

/* Where i < n goes in a permutation of [0, n) that the key chooses. */
static uint64_t
permute(uint64_t i, uint64_t n, uint64_t key)
{
    unsigned half_bits = 1;
    while (half_bits < 32 && UINT64_C(1) << (2 * half_bits) < n)
        half_bits++;
    uint64_t mask = (UINT64_C(1) << half_bits) - 1;
    do {
        uint64_t left = i >> half_bits;
        uint64_t right = i & mask;
        for (uint64_t round = 0; round < 4; round++) {
            uint64_t mixed = hash3(key, FOR_PLACE, round, right);
            uint64_t next = left ^ (mixed & mask);
            left = right;
            right = next;
        }
        i = left << half_bits | right;
    } while (i >= n);
    return i;
}

/* Whether the k-th of a row of windows is among the `part` of them: so many
 * of any first k are, to within one. */
static bool
is_in_part(uint64_t k, double part)
{
    return floor((double)(k + 1) * part) > floor((double)k * part);
}

/* ---- the mixture ---- */

/* Places for text by weight: whole numbers of this sum, at least one each, the
 * rests going to those that are owed most. */
static void
share_places(struct windows *w, size_t n_places)
{
    size_t n = w->options.n_sources;
    double sum = 0;
    size_t given = 0;
    for (size_t i = 0; i < n; i++)
        sum += w->sources[i].weight;
    for (size_t i = 0; i < n; i++) {
        double exact = (double)n_places * w->sources[i].weight / sum;
        w->places[i] = exact < 1 ? 1 : (size_t)exact;
        given += w->places[i];
    }
    while (given != n_places) {
        size_t best = 0;
        double most = -INFINITY;
        for (size_t i = 0; i < n; i++) {
            double exact = (double)n_places * w->sources[i].weight / sum;
            double owed = exact - (double)w->places[i];
            if (given > n_places)
                owed = w->places[i] > 1 ? -owed : -INFINITY;
            if (owed > most) {
                most = owed;
                best = i;
            }
        }
        if (given < n_places) {
            w->places[best]++;
            given++;
        } else {
            w->places[best]--;
            given--;
        }
    }
}

static mb_status
check_options(const struct windows_options *o, struct mb_error *err)
{
    if (o->n_sources == 0)
        return mb_error_set(err, MB_ERR_BAD_ARG, "windows: no source");
    if (o->n_rows < WINDOWS_MIN_ROWS)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "windows: %zu rows, at least %d", o->n_rows, WINDOWS_MIN_ROWS);
    if (o->heldout_tokens > o->n_rows)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "windows: %zu held-out tokens in %zu rows", o->heldout_tokens,
            o->n_rows);
    if (!(o->landmark_part >= 0 && o->landmark_part <= 1))
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "windows: a part of %g with landmarks", o->landmark_part);
    if (!(o->task_part >= 0 && o->task_part <= 1))
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "windows: a part of %g tasks", o->task_part);
    if (!(o->repeat_part >= 0 && o->repeat_part <= 1))
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "windows: a part of %g repeats", o->repeat_part);
    for (size_t i = 0; i < o->n_sources; i++) {
        if (!(o->sources[i].weight > 0) || !isfinite(o->sources[i].weight))
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "windows: source %zu has weight %g", i, o->sources[i].weight);
        if (!shard_is_of(o->sources[i].shard, o->tok))
            return mb_error_set(err, MB_ERR_MISMATCH,
                "windows: source %zu is of another tokenizer", i);
        if (shard_n_tokens(o->sources[i].shard) < 2)
            return mb_error_set(
                err, MB_ERR_BAD_ARG, "windows: source %zu is empty", i);
    }
    return MB_OK;
}

static mb_status
make_mixture(struct windows *w, struct mb_error *err)
{
    size_t n = w->options.n_sources;
    size_t tasks = (size_t)(w->options.task_part * WINDOWS_ROUND + 0.5);
    size_t text = WINDOWS_ROUND - tasks;
    w->places[n] = tasks;
    if (text > 0 && text < n)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "windows: %zu sources for %zu places in a round", n, text);
    if (text > 0)
        share_places(w, text);
    double sum = 0;
    double part = 0;
    for (size_t i = 0; i < n; i++)
        sum += w->sources[i].weight;
    for (size_t i = 0; i < n; i++) {
        part += w->sources[i].weight / sum;
        w->share[i] = part;
    }
    return MB_OK;
}

mb_status
windows_new(const struct windows_options *options, struct windows **out,
    struct mb_error *err)
{
    mb_status st = check_options(options, err);
    if (st != MB_OK)
        return st;
    struct windows *w = mb_calloc(1, sizeof *w);
    if (!w)
        return mb_error_set(err, MB_ERR_NOMEM, "windows");
    size_t n = options->n_sources;
    w->options = *options;
    w->sources = mb_calloc(n, sizeof *w->sources);
    w->places = mb_calloc(n + 1, sizeof *w->places);
    w->share = mb_calloc(n, sizeof *w->share);
    w->marks = mb_calloc(mb_tokenizer_n_vocab(options->tok), 1);
    if (!w->sources || !w->places || !w->share || !w->marks) {
        st = mb_error_set(err, MB_ERR_NOMEM, "windows");
        goto out;
    }
    memcpy(w->sources, options->sources, n * sizeof *w->sources);
    w->options.sources = w->sources;
    w->eos = mb_tokenizer_eos(options->tok);
    w->landmark = mb_tokenizer_find(options->tok, MB_LANDMARK_PIECE);
    if (w->landmark < 0 && options->landmark_part > 0) {
        st = mb_error_set(err, MB_ERR_NOT_FOUND,
            "the vocabulary has no piece " MB_LANDMARK_PIECE);
        goto out;
    }
    task_mark(options->tok, w->marks);
    st = make_mixture(w, err);
    if (st != MB_OK)
        goto out;
    *out = w;
    w = NULL;
out:
    windows_free(w);
    return st;
}

void
windows_free(struct windows *w)
{
    if (!w)
        return;
    mb_free(w->sources);
    mb_free(w->places);
    mb_free(w->share);
    mb_free(w->marks);
    mb_free(w);
}

bool
windows_has_landmark(const struct windows *w)
{
    return w->landmark >= 0;
}

size_t
windows_places(const struct windows *w, size_t source)
{
    return w->places[source];
}

/* ---- rows ---- */

mb_status
window_init(struct window *win, size_t n_rows, struct mb_error *err)
{
    *win = (struct window){.n_rows = n_rows};
    win->tokens = mb_calloc(n_rows, sizeof *win->tokens);
    win->targets = mb_calloc(n_rows, sizeof *win->targets);
    win->is_landmark = mb_calloc(n_rows, sizeof *win->is_landmark);
    win->is_answer = mb_calloc(n_rows, sizeof *win->is_answer);
    win->ids = mb_calloc(n_rows + 1, sizeof *win->ids);
    win->wanted = mb_calloc(n_rows + 1, sizeof *win->wanted);
    win->arena = mb_arena_new(ARENA_BYTES);
    if (win->tokens && win->targets && win->is_landmark && win->is_answer &&
        win->ids && win->wanted && win->arena)
        return MB_OK;
    window_fini(win);
    return mb_error_set(err, MB_ERR_NOMEM, "window of %zu rows", n_rows);
}

void
window_fini(struct window *win)
{
    mb_free(win->tokens);
    mb_free(win->targets);
    mb_free(win->is_landmark);
    mb_free(win->is_answer);
    mb_free(win->ids);
    mb_free(win->wanted);
    mb_arena_free(win->arena);
    *win = (struct window){0};
}

/* Does a landmark follow the token that is number `at` of its text? */
static bool
closes_block(uint64_t at)
{
    return (at + 1) % BLOCK_TOKENS == 0;
}

/* Tokens that rows take whose first is number `at` of its text. */
static size_t
tokens_of_rows(size_t n_rows, uint64_t at, bool landmarks)
{
    size_t n = 0;
    for (size_t rows = 0; rows < n_rows; rows++, n++) {
        if (landmarks && closes_block(at + n) && rows + 1 < n_rows)
            rows++;
    }
    return n;
}

/* Rows of the first n of win->ids, of which there are n + 1: the last is a
 * target alone. win->spans become rows instead of tokens. */
static void
lay_rows(const struct windows *w, struct window *win, size_t n, uint64_t at,
    bool landmarks, bool all_wanted)
{
    struct window_answer tokens[WINDOW_MAX_ANSWERS];
    memcpy(tokens, win->spans, win->n_spans * sizeof *tokens);
    size_t row = 0;
    size_t span = 0;
    win->n_answers = 0;
    for (size_t i = 0; i < n && row < win->n_rows; i++) {
        uint8_t wanted = all_wanted ? TASK_PROSE : win->wanted[i + 1];
        if (win->ids[i] == w->eos)
            wanted = TASK_NOT_WANTED;
        win->tokens[row] = win->ids[i];
        win->targets[row] = wanted != TASK_NOT_WANTED ? win->ids[i + 1] : -1;
        win->is_answer[row] = wanted == TASK_ANSWER;
        win->n_answers += wanted == TASK_ANSWER ? 1 : 0;
        if (span < win->n_spans && i + 1 == tokens[span].first)
            win->spans[span].first = row;
        if (span < win->n_spans && i + 2 == tokens[span].end)
            win->spans[span++].end = row + 1;
        win->is_landmark[row++] = false;
        if (landmarks && closes_block(at + i) && row < win->n_rows) {
            win->tokens[row] = w->landmark;
            win->targets[row] = -1;
            win->is_answer[row] = false;
            win->is_landmark[row++] = true;
        }
    }
    win->n_spans = span;
    win->view = (struct train_window){
        .n = row,
        .tokens = win->tokens,
        .targets = win->targets,
        .is_landmark = landmarks ? win->is_landmark : NULL,
    };
}

/* ---- text ---- */

/* How a shard is cut: `n` windows that lie anywhere within `slack`. */
struct cut {
    uint64_t n;
    uint64_t slack;
};

static struct cut
cut_shard(const struct shard *s, size_t n_rows)
{
    uint64_t usable = shard_n_tokens(s) - 1;
    uint64_t whole = usable / n_rows;
    // One window less than would fit leaves room for any shift.
    if (whole < 2)
        return (struct cut){1, whole == 0 ? 0 : usable - n_rows};
    return (struct cut){whole - 1, usable - (whole - 1) * n_rows};
}

/* The k-th window that a source gives. */
static void
text_window(
    const struct windows *w, size_t source, uint64_t k, struct window *win)
{
    const struct shard *s = w->sources[source].shard;
    size_t n_rows = w->options.n_rows;
    uint64_t seed = w->options.seed;
    struct cut cut = cut_shard(s, n_rows);
    uint64_t epoch = k / cut.n;
    uint64_t j =
        permute(k % cut.n, cut.n, hash3(seed, FOR_ORDER, source, epoch));
    uint64_t shift = hash3(seed, FOR_SHIFT, source, epoch) % (cut.slack + 1);
    bool landmarks = is_in_part(k, w->options.landmark_part);
    uint64_t start = j * n_rows + shift;
    size_t n = tokens_of_rows(n_rows, start, landmarks);
    if (n > shard_n_tokens(s) - 1 - start)
        n = (size_t)(shard_n_tokens(s) - 1 - start);
    win->kind = WINDOW_TEXT;
    win->n_spans = 0;
    win->source = source;
    win->start = start;
    shard_read(s, start, n + 1, win->ids);
    lay_rows(w, win, n, start, landmarks, true);
}

/* ---- tasks ---- */

static mb_status
task_window(const struct windows *w, window_kind kind, bool landmarks,
    uint64_t key, struct window *win, struct mb_error *err)
{
    struct task_world world = {
        .tok = w->options.tok,
        .sources = w->sources,
        .share = w->share,
        .n_sources = w->options.n_sources,
        .marks = w->marks,
        .bos = mb_tokenizer_bos(w->options.tok),
        .eos = w->eos,
    };
    struct mb_rng rng;
    mb_rng_init(&rng, key);
    // A text of its own begins anywhere in a block, as those of shards do.
    uint64_t at = mb_rng_below(&rng, BLOCK_TOKENS);
    size_t n = tokens_of_rows(w->options.n_rows, at, landmarks);
    mb_arena_reset(win->arena);
    win->kind = kind;
    win->source = 0;
    win->start = 0;
    struct task_result task = {win->ids, win->wanted, win->spans, 0};
    mb_status st = task_make(&world, kind, &rng, n + 1, win->arena, &task);
    if (st != MB_OK)
        return mb_error_set(err, st, "window of a synthetic task");
    win->n_spans = task.n_answers;
    lay_rows(w, win, n, at, landmarks, false);
    return MB_OK;
}

/* What the k-th task is: repeats are spread evenly, the others take turns. */
static window_kind
task_kind(const struct windows *w, uint64_t k)
{
    double part = w->options.repeat_part;
    if (is_in_part(k, part))
        return WINDOW_REPEAT;
    uint64_t before = (uint64_t)floor((double)k * part);
    return (window_kind)((k - before) % WINDOW_REPEAT);
}

mb_status
windows_get(const struct windows *w, uint64_t i, struct window *out,
    struct mb_error *err)
{
    MB_ASSERT(out->n_rows >= w->options.n_rows);
    uint64_t round = i / WINDOWS_ROUND;
    size_t n = w->options.n_sources;
    uint64_t place = permute(i % WINDOWS_ROUND, WINDOWS_ROUND,
        hash3(w->options.seed, FOR_ROUND, round, 0));
    size_t source = 0;
    while (source < n && place >= w->places[source])
        place -= w->places[source++];
    uint64_t k = round * w->places[source] + place;
    if (source < n) {
        text_window(w, source, k, out);
        return MB_OK;
    }
    return task_window(w, task_kind(w, k),
        is_in_part(k / WINDOW_N_TASKS, w->options.landmark_part),
        hash3(w->options.seed, FOR_TASK, k, 0), out, err);
}

mb_status
windows_task(const struct windows *w, window_kind kind, bool landmarks,
    uint64_t i, struct window *out, struct mb_error *err)
{
    MB_ASSERT(kind < WINDOW_N_TASKS && out->n_rows >= w->options.n_rows);
    return task_window(w, kind, landmarks && w->landmark >= 0,
        hash3(w->options.seed, FOR_TEST, i, (uint64_t)kind), out, err);
}

/* ---- held-out text ---- */

static size_t
heldout_tokens(const struct windows *w)
{
    size_t blocks = w->options.n_rows / MB_BLOCK_ROWS;
    if (w->options.heldout_tokens > 0)
        return w->options.heldout_tokens;
    // Fewer rows than a block meet one landmark at most.
    return blocks > 0 ? blocks * BLOCK_TOKENS : w->options.n_rows - 1;
}

size_t
windows_heldout_count(const struct windows *w, const struct shard *s)
{
    size_t step = heldout_tokens(w);
    uint64_t usable = shard_n_tokens(s);
    return usable < 2 ? 0 : (size_t)((usable - 1 + step - 1) / step);
}

void
windows_heldout(const struct windows *w, const struct shard *s, bool landmarks,
    size_t j, struct window *out)
{
    MB_ASSERT(out->n_rows >= w->options.n_rows);
    size_t step = heldout_tokens(w);
    uint64_t start = (uint64_t)j * step;
    uint64_t left = shard_n_tokens(s) - 1 - start;
    size_t n = left < step ? (size_t)left : step;
    out->kind = WINDOW_TEXT;
    out->n_spans = 0;
    out->source = 0;
    out->start = start;
    shard_read(s, start, n + 1, out->ids);
    lay_rows(w, out, n, start, landmarks && w->landmark >= 0, true);
}
