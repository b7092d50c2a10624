/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/verbatim.c - see verbatim.h.
 *
 * A path is a way by which the second list may know of the first: a context
 * that is read with some options, or a short text that is made of the long one
 * (what was found in it, or nothing) before the end is read. Whatever has
 * another way adds a line to `paths`.
 * The first noun of a list does not count: nothing can tell it. */
#include "verbatim.h"

#include <stdio.h>
#include <string.h>

#include "bars.h"
#include "json.h"
#include "progress.h"
#include "subject.h"
#include "tool.h"

#define MAX_WORDS    16u
#define MAX_DISTANCE ((uint64_t)1 << 24)
#define N_KINDS      3u
#define MAX_LINE     400u
#define LEAD         60u  /* tokens of filler before the first list */
#define SEGMENT      252u /* tokens of what search gives back */
#define NEAR         40u  /* tokens before the second list, for who searches */
#define SHORT_BLOCKS 10u  /* of a window for a text made of a longer one */

static const char *const nouns[] = {"apple", "bridge", "candle", "doctor",
    "engine", "feather", "garden", "hammer", "island", "jacket", "kitchen",
    "ladder", "mirror", "needle", "orange", "pencil", "queen", "river",
    "sailor", "table", "uncle", "village", "window", "yard", "basket", "castle",
    "dragon", "eagle", "farmer", "glass", "horse", "iron", "jewel", "king",
    "lamp", "market", "nurse", "ocean", "paper", "rabbit", "school", "tiger",
    "valley", "wagon", "anchor", "bottle", "church", "desert"};
#define N_NOUNS (sizeof nouns / sizeof *nouns)

static const char *const kinds[N_KINDS] = {"repeated", "permuted", "novel"};

static const char first_cue[] = "Mary wrote down a list of words:";
static const char second_cue[] = "Later Mary read her list of words again:";

/* How the beginning of a text is known at its end. */
enum way {
    WAY_WINDOW,   /* a context that retrieves nothing */
    WAY_LANDMARK, /* a context as options ask for it */
    WAY_SEARCH,   /* the segment that has most words of the cue, pasted */
    WAY_NONE      /* only what stands near */
};

static const struct path {
    const char *name;
    enum way way;
} paths[] = {
    {"none", WAY_NONE},
    {"window", WAY_WINDOW},
    {"landmark", WAY_LANDMARK},
    {"retrieval", WAY_SEARCH},
};

#define N_PATHS (sizeof paths / sizeof *paths)

/* One text with both lists. Rows count tokens. */
struct trial {
    size_t words[2][MAX_WORDS];
    size_t start[2][MAX_WORDS]; /* first token of each noun */
    size_t end[2][MAX_WORDS];
    size_t second; /* token that its sentence begins with */
};

struct sums {
    double nll[2];
    uint64_t n;
};

struct verbatim {
    struct subject subject;
    struct mb_context_memory *memory; /* of `plain` */
    struct mb_context *plain;         /* retrieves nothing */
    struct mb_context *brief;         /* one long window */
    uint64_t distances[SUBJECT_MAX_NUMBERS];
    size_t n_distances;
    uint64_t n_prompts;
    uint64_t n_words;
    uint64_t seed;
    struct tokens text;
    struct tokens shortened;
    struct tokens targets;
    float *nll;
    size_t nll_capacity;
    FILE *csv;
    struct bars bars;
    struct progress progress;
};

/* ---- opening ---- */

static mb_status
open_contexts(struct verbatim *v, struct mb_error *err)
{
    struct mb_context_options o = v->subject.landmarks.options;
    struct mb_context_source source;
    mb_status st = mb_context_memory_new(&v->memory, err);

    if (st != MB_OK)
        return st;
    source = mb_context_memory_source(v->memory);
    o.modes = (struct mb_context_modes){.k = MB_CONTEXT_NONE};
    st = mb_context_new(v->subject.decoder, &o, &source, &v->plain, err);
    o.segment_blocks = SHORT_BLOCKS;
    if (st == MB_OK)
        st = mb_context_new(v->subject.decoder, &o, NULL, &v->brief, err);
    return st;
}

static mb_status
open_all(struct verbatim *v, const struct mb_cli *cli, struct mb_error *err)
{
    const char *path = mb_cli_str(cli, "csv");
    mb_status st = subject_open(&v->subject, cli, err);

    if (st == MB_OK)
        st = subject_read_numbers(&v->subject, "distances", 1, MAX_DISTANCE,
            v->distances, &v->n_distances, err);
    if (st == MB_OK)
        st = mb_cli_u64(cli, "prompts", 1, 100000, &v->n_prompts, err);
    if (st == MB_OK)
        st = mb_cli_u64(cli, "words", 2, MAX_WORDS, &v->n_words, err);
    if (st == MB_OK)
        st = mb_cli_u64(cli, "seed", 0, UINT64_MAX, &v->seed, err);
    if (st == MB_OK)
        st = open_contexts(v, err);
    if (st == MB_OK)
        st = subject_read_filler(
            &v->subject, 4 * v->distances[v->n_distances - 1], err);
    if (st != MB_OK || path == NULL)
        return st;
    v->csv = fopen(path, "w");
    if (v->csv == NULL ||
        fprintf(v->csv, "path,distance,kind,prompt,first_nll,second_nll\n") < 0)
        return mb_error_set(err, MB_ERR_IO, "write %s", path);
    return MB_OK;
}

static void
close_all(struct verbatim *v)
{
    mb_context_free(v->plain);
    mb_context_free(v->brief);
    mb_context_memory_free(v->memory);
    subject_close(&v->subject);
    mb_free(v->text.ids);
    mb_free(v->shortened.ids);
    mb_free(v->targets.ids);
    mb_free(v->nll);
    if (v->csv != NULL)
        (void)fclose(v->csv);
}

/* ---- texts ---- */

static void
shuffle(struct mb_rng *rng, size_t *x, size_t n)
{
    for (size_t i = n; i > 1; i--) {
        size_t j = (size_t)mb_rng_below(rng, i);
        size_t t = x[i - 1];

        x[i - 1] = x[j];
        x[j] = t;
    }
}

/* Words of both lists of a kind. Two prompts have the same two lists, the other
 * way round: nouns that are easy count as often in the first as in the second
 * place. */
static void
draw(const struct verbatim *v, struct mb_rng *rng, size_t kind, bool is_swapped,
    struct trial *t)
{
    size_t all[N_NOUNS];
    size_t n = (size_t)v->n_words;

    for (size_t i = 0; i < N_NOUNS; i++) {
        all[i] = i;
    }
    shuffle(rng, all, N_NOUNS);
    memcpy(t->words[0], is_swapped ? all + n : all, n * sizeof *all);
    memcpy(t->words[1], is_swapped != (kind == 2) ? all + n : all,
        n * sizeof *all);
    while (
        kind == 1 && memcmp(t->words[0], t->words[1], n * sizeof *all) == 0) {
        shuffle(rng, t->words[1], n);
    }
}

static mb_status
add_list(struct verbatim *v, const char *cue, struct trial *t, size_t which,
    struct mb_error *err)
{
    mb_status st =
        subject_add_text(&v->subject, &v->text, mb_slice_cstr(cue), err);

    for (size_t i = 0; i < v->n_words && st == MB_OK; i++) {
        char line[MAX_LINE];

        (void)snprintf(line, sizeof line, "%s%s", nouns[t->words[which][i]],
            i + 1 < v->n_words ? "," : ".");
        t->start[which][i] = v->text.n;
        st = subject_add_text(&v->subject, &v->text, mb_slice_cstr(line), err);
        t->end[which][i] = v->text.n - 1; // without the sign
    }
    return st;
}

static mb_status
write_text(struct verbatim *v, size_t at, uint64_t distance, struct trial *t,
    struct mb_error *err)
{
    mb_token_id bos = mb_tokenizer_bos(v->subject.tokenizer);
    mb_status st = MB_OK;

    v->text.n = 0;
    if (bos >= 0)
        st = subject_add_ids(&v->text, &bos, 1, err);
    if (st == MB_OK)
        st = subject_add_filler(&v->subject, &v->text, &at, LEAD, err);
    if (st == MB_OK)
        st = add_list(v, first_cue, t, 0, err);
    if (st == MB_OK)
        st = subject_add_filler(
            &v->subject, &v->text, &at, (size_t)distance, err);
    t->second = v->text.n;
    return st == MB_OK ? add_list(v, second_cue, t, 1, err) : st;
}

/* ---- paths ---- */

/* Losses of all tokens of a text by a context; nll[i] is that of token i. */
static mb_status
read_text(struct verbatim *v, struct mb_context *ctx, const struct tokens *text,
    struct mb_error *err)
{
    mb_status st = mb_context_truncate(ctx, 0, err);
    struct mb_context_rows rows = {.tokens = text->ids, .n = text->n};

    if (text->n + 1 > v->nll_capacity) {
        float *more = mb_realloc(v->nll, 2 * text->n * sizeof *more);

        if (more == NULL)
            return mb_error_set(err, MB_ERR_NOMEM, "losses");
        v->nll = more;
        v->nll_capacity = 2 * text->n;
    }
    v->targets.n = 0;
    if (st == MB_OK)
        st = subject_add_ids(&v->targets, text->ids + 1, text->n - 1, err);
    if (st == MB_OK)
        st = subject_add_ids(&v->targets, &(mb_token_id){-1}, 1, err);
    rows.targets = v->targets.ids;
    rows.nll = v->nll + 1;
    v->nll[0] = 0;
    return st == MB_OK ? mb_context_read(ctx, v->subject.pass, &rows, err) : st;
}

static double
list_nll(
    const struct verbatim *v, const struct trial *t, size_t which, size_t shift)
{
    double sum = 0;

    for (size_t i = 1; i < v->n_words; i++) {
        for (size_t k = t->start[which][i]; k < t->end[which][i]; k++) {
            sum += (double)v->nll[k - shift];
        }
    }
    return sum;
}

static bool
has_token(const mb_token_id *ids, size_t n, mb_token_id id)
{
    for (size_t i = 0; i < n; i++) {
        if (ids[i] == id)
            return true;
    }
    return false;
}

/* The segment before the near end of the text with most tokens of the cue. */
static size_t
search(const struct verbatim *v, const struct trial *t)
{
    const mb_token_id *cue = v->text.ids + t->second;
    size_t n_cue = t->start[1][0] - t->second;
    size_t best = 0;
    size_t most = 0;

    for (size_t at = 0; at + NEAR < t->second; at += SEGMENT) {
        size_t left = t->second - at;
        size_t found = 0;

        for (size_t i = 0; i < n_cue; i++) {
            found += has_token(
                v->text.ids + at, left < SEGMENT ? left : SEGMENT, cue[i]);
        }
        if (found > most) {
            most = found;
            best = at;
        }
    }
    return best;
}

/* A short text: bos, what was found, what stands near, the second list. *shift
 * is how much earlier the second list stands in it. */
static mb_status
shorten(struct verbatim *v, const struct trial *t, bool finds, size_t *shift,
    struct mb_error *err)
{
    size_t from = t->second > NEAR ? t->second - NEAR : 0;
    size_t found = finds ? search(v, t) : 0;
    size_t n = found + SEGMENT < from ? SEGMENT : from - found;
    mb_status st;

    v->shortened.n = 0;
    st = subject_add_ids(&v->shortened, v->text.ids, 1, err);
    if (st == MB_OK && finds && found < from)
        st = subject_add_ids(&v->shortened, v->text.ids + found, n, err);
    *shift = from - v->shortened.n;
    if (st == MB_OK)
        st = subject_add_ids(
            &v->shortened, v->text.ids + from, v->text.n - from, err);
    return st;
}

/* Losses of both lists by a path. */
static mb_status
score(struct verbatim *v, enum way way, const struct trial *t, double out[2],
    struct mb_error *err)
{
    size_t shift = 0;
    mb_status st =
        read_text(v, way == WAY_LANDMARK ? v->subject.landmarks.ctx : v->plain,
            &v->text, err);

    if (st != MB_OK)
        return st;
    out[0] = list_nll(v, t, 0, 0);
    if (way == WAY_SEARCH || way == WAY_NONE) {
        st = shorten(v, t, way == WAY_SEARCH, &shift, err);
        if (st == MB_OK)
            st = read_text(v, v->brief, &v->shortened, err);
    }
    out[1] = st == MB_OK ? list_nll(v, t, 1, shift) : 0;
    return st;
}

/* ---- results ---- */

static double
percent(const struct sums *s)
{
    return s->nll[0] > 0 ? 100 * s->nll[1] / s->nll[0] : 0;
}

static mb_status
print_json(const struct verbatim *v, const struct path *path, uint64_t distance,
    const struct sums sums[N_KINDS])
{
    struct mb_buffer buf;
    struct json_writer w;

    mb_buffer_init(&buf, SIZE_MAX / 2);
    json_writer_init(&w, &buf);
    json_object_begin(&w);
    json_kv_cstr(&w, "path", path->name);
    json_kv_u64(&w, "distance", distance);
    json_kv_u64(&w, "prompts", sums[0].n);
    json_kv_u64(&w, "words", v->n_words);
    json_kv_u64(&w, "k", landmarks_k(&v->subject.landmarks));
    for (size_t k = 0; k < N_KINDS; k++) {
        json_kv_f64(&w, kinds[k], percent(&sums[k]));
    }
    json_object_end(&w);
    if (w.status == MB_OK)
        tool_put_line(&buf);
    mb_buffer_fini(&buf);
    return w.status;
}

static mb_status
print_line(struct verbatim *v, const struct path *path, uint64_t distance,
    const struct sums sums[N_KINDS], struct mb_error *err)
{
    char group[BARS_NAME];
    mb_status st = MB_OK;

    (void)snprintf(group, sizeof group, "%s %llu", path->name,
        (unsigned long long)distance);
    for (size_t k = 0; k < N_KINDS && st == MB_OK; k++) {
        st = bars_add(&v->bars, group, k, percent(&sums[k]), err);
    }
    progress_clear(&v->progress);
    if (st != MB_OK)
        return st;
    if (mb_cli_has(v->subject.cli, "json"))
        return print_json(v, path, distance, sums);
    (void)printf("%-10s %9llu  %8.1f %%  %8.1f %%  %8.1f %%\n", path->name,
        (unsigned long long)distance, percent(&sums[0]), percent(&sums[1]),
        percent(&sums[2]));
    (void)fflush(stdout);
    return MB_OK;
}

/* ---- the whole ---- */

static mb_status
run_prompt(struct verbatim *v, const struct path *path, uint64_t distance,
    uint64_t i, struct sums sums[N_KINDS], struct mb_error *err)
{
    mb_status st = MB_OK;

    for (size_t k = 0; k < N_KINDS && st == MB_OK; k++) {
        struct trial t = {0};
        struct mb_rng rng; // lists and filler are those of the other paths
        double nll[2] = {0};

        mb_rng_init(&rng, v->seed ^ (distance << 24) ^ i / 2);
        size_t at = (size_t)mb_rng_below(&rng, v->subject.filler.n);
        draw(v, &rng, k, i % 2 == 1, &t);
        st = write_text(v, at, distance, &t, err);
        if (st == MB_OK)
            st = score(v, path->way, &t, nll, err);
        sums[k].nll[0] += nll[0];
        sums[k].nll[1] += nll[1];
        sums[k].n++;
        if (st == MB_OK && v->csv != NULL &&
            fprintf(v->csv, "%s,%llu,%s,%llu,%.4f,%.4f\n", path->name,
                (unsigned long long)distance, kinds[k], (unsigned long long)i,
                nll[0], nll[1]) < 0)
            st = mb_error_set(err, MB_ERR_IO, "write --csv");
    }
    return st;
}

static mb_status
run_all(struct verbatim *v, struct mb_error *err)
{
    size_t n_all = N_PATHS * v->n_distances;
    mb_status st = MB_OK;

    if (!mb_cli_has(v->subject.cli, "json"))
        (void)printf("%-10s %9s  %10s  %10s  %10s\n", "path", "distance",
            kinds[0], kinds[1], kinds[2]);
    for (size_t j = 0; j < n_all && st == MB_OK; j++) {
        const struct path *path = &paths[j / v->n_distances];
        uint64_t distance = v->distances[j % v->n_distances];
        struct sums sums[N_KINDS] = {{{0}, 0}};

        progress_show(&v->progress, (double)j / (double)n_all, path->name);
        for (uint64_t i = 0; i < v->n_prompts && st == MB_OK; i++) {
            st = run_prompt(v, path, distance, i, sums, err);
        }
        if (st == MB_OK)
            st = print_line(v, path, distance, sums, err);
    }
    progress_clear(&v->progress);
    return st;
}

mb_status
verbatim_run(const struct mb_cli *cli, struct mb_error *err)
{
    struct verbatim v = {.csv = NULL};
    const char *svg = mb_cli_str(cli, "svg");
    mb_status st;

    bars_init(&v.bars, kinds, N_KINDS);
    progress_init(&v.progress, stderr, false);
    st = open_all(&v, cli, err);
    if (st == MB_OK)
        st = run_all(&v, err);
    if (v.csv != NULL && fclose(v.csv) != 0 && st == MB_OK)
        st = mb_error_set(err, MB_ERR_IO, "write --csv");
    v.csv = NULL;
    if (st == MB_OK && svg != NULL)
        st = bars_svg(&v.bars, svg, "Surprise of a second list, % of the first",
            100, err);
    close_all(&v);
    return st;
}
