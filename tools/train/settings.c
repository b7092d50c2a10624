/* SPDX-License-Identifier: Apache-2.0
 * tools/train/settings.c - keys of a training run.
 *
 * Threads: the main thread. */
#include "settings.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT_MAX 1e12

enum kind {
    KIND_TEXT,
    KIND_COUNT,
    KIND_REAL,
    KIND_SCHEDULE,
    KIND_OPTIMIZER,
    KIND_ACTIVATIONS
};

static const char *const schedules[] = {"cosine", "trapezoid", NULL};
static const char *const optimizers[] = {"adamw", "muon", NULL};
static const char *const activations[] = {"keep", "int8", "recompute", NULL};

/* Counts take k and M (thousands and millions). */
static const struct key {
    const char *name;
    enum kind kind;
    size_t offset;
    double min;
    double max;
    const char *def;
    const char *help;
} keys[] = {

#define KEY(field, kind, min, max, def, help)                                  \
    {                                                                          \
#field, kind, offsetof(struct config, field), min, max, def, help      \
    }
    KEY(name, KIND_TEXT, 0, 0, "anchor", "general.name of the result"),
    KEY(description, KIND_TEXT, 0, 0, "", "general.description"),
    KEY(license, KIND_TEXT, 0, 0, "", "general.license"),
    KEY(layers, KIND_COUNT, 1, 256, "8", "layers"),
    KEY(width, KIND_COUNT, 8, 16384, "256", "values of a row"),
    KEY(heads, KIND_COUNT, 1, 256, "8", "query heads"),
    KEY(kv_heads, KIND_COUNT, 1, 256, "4", "key and value heads"),
    KEY(head_dim, KIND_COUNT, 2, 512, "32", "values of a head"),
    KEY(ffn, KIND_COUNT, 8, 65536, "704", "hidden units of the feed-forward"),
    KEY(rope_base, KIND_REAL, 1, 1e9, "10000", "base of the rotary angles"),
    KEY(norm_eps, KIND_REAL, 1e-12, 1e-2, "1e-5", "of RMSNorm"),
    KEY(tokenizer, KIND_TEXT, 0, 0, NULL,
        "GGUF file whose vocabulary is used and copied"),
    KEY(rows, KIND_COUNT, 8, 65536, "640", "rows of a window"),
    KEY(landmarks, KIND_REAL, 0, 1, "0.5",
        "part of the windows that have landmark rows"),
    KEY(tasks, KIND_REAL, 0, 1, "0.08",
        "part of the windows that are synthetic tasks"),
    KEY(repeats, KIND_REAL, 0, 1, "0.2",
        "part of the tasks that are passages repeated"),
    KEY(tokens, KIND_COUNT, 1, COUNT_MAX, "80M", "rows to train on, in all"),
    KEY(batch, KIND_COUNT, 1, 65536, "32", "windows of a step"),
    KEY(rate, KIND_REAL, 1e-9, 1, "2e-3", "highest learning rate"),
    KEY(rate_end, KIND_REAL, 0, 1, "0.05", "part of the rate at the end"),
    KEY(warmup, KIND_COUNT, 0, COUNT_MAX, "100",
        "steps in which the rate rises from zero"),
    KEY(schedule, KIND_SCHEDULE, 0, 0, "cosine",
        "cosine, or trapezoid: level, then straight down"),
    KEY(decay_part, KIND_REAL, 0, 1, "0.2",
        "part of the steps in which a trapezoid falls"),
    KEY(optimizer, KIND_OPTIMIZER, 0, 0, "adamw",
        "adamw, or muon: muon for the matrices of the layers"),
    KEY(weight_decay, KIND_REAL, 0, 10, "0.1", "of matrices, not of norms"),
    KEY(clip, KIND_REAL, 1e-6, 1e6, "1", "largest norm of the gradient"),
    KEY(beta1, KIND_REAL, 1e-9, 0.999999, "0.9", "of AdamW"),
    KEY(beta2, KIND_REAL, 1e-9, 0.999999, "0.95", "of AdamW"),
    KEY(momentum, KIND_REAL, 1e-9, 0.999999, "0.95", "of Muon"),
    KEY(adam_eps, KIND_REAL, 1e-16, 1e-2, "1e-8", "of AdamW"),
    KEY(seed, KIND_COUNT, 0, COUNT_MAX, "1", "of weights and windows"),
    KEY(threads, KIND_COUNT, 0, 1024, "0",
        "0: one for each CPU; results depend on it in the last bits"),
    KEY(activations, KIND_ACTIVATIONS, 0, 0, "keep",
        "of a layer, for the way back: keep, int8 (less memory, gradients "
        "right to some thousandths) or recompute (least memory)"),
    KEY(heldout_steps, KIND_COUNT, 0, COUNT_MAX, "200",
        "steps between held-out losses; 0: only at the end"),
    KEY(heldout_windows, KIND_COUNT, 1, COUNT_MAX, "1M",
        "windows of each held-out text, evenly spread; fewer take less time"),
    KEY(checkpoint_minutes, KIND_REAL, 0, 1e6, "5",
        "minutes between checkpoints; 0: after every step"),
#undef KEY
};

#define N_KEYS (sizeof keys / sizeof *keys)

static const char source_help[] =
    "SHARD WEIGHT: text to learn; any number of lines";
static const char heldout_help[] =
    "NAME SHARD: text to be judged by; any number of lines";

/* ---- values ---- */

/* A number with k or M behind it if `scaled`; NAN if it is none. */
static double
number_of(const char *text, bool scaled)
{
    char *end = NULL;
    double v = strtod(text, &end);
    if (end == text)
        return (double)NAN;
    if (scaled && (*end == 'k' || *end == 'M'))
        v *= *end++ == 'k' ? 1e3 : 1e6;
    return *end == '\0' && isfinite(v) ? v : (double)NAN;
}

/* Store the number of the choice that `text` is; NULL ends them. */
static bool
set_choice(uint8_t *at, const char *const *choices, const char *text)
{
    for (uint64_t i = 0; choices[i]; i++) {
        if (strcmp(text, choices[i]) == 0) {
            memcpy(at, &i, sizeof i);
            return true;
        }
    }
    return false;
}

/* Errors are texts: what is wanted instead. */
static const char *
set_value(struct config *c, const struct key *k, const char *text)
{
    static char wanted[96];
    uint8_t *at = (uint8_t *)c + k->offset;
    double v = 0;
    uint64_t count;
    switch (k->kind) {
    case KIND_TEXT:
        if (strlen(text) >= CONFIG_MAX_TEXT)
            return "a shorter text";
        memcpy(at, text, strlen(text) + 1);
        return NULL;
    case KIND_SCHEDULE:
        return set_choice(at, schedules, text) ? NULL : "cosine or trapezoid";
    case KIND_OPTIMIZER:
        return set_choice(at, optimizers, text) ? NULL : "adamw or muon";
    case KIND_ACTIVATIONS:
        return set_choice(at, activations, text) ? NULL
                                                 : "keep, int8 or recompute";
    default:
        break;
    }
    v = number_of(text, k->kind == KIND_COUNT);
    if (!(v >= k->min && v <= k->max) ||
        (k->kind == KIND_COUNT && v != floor(v))) {
        (void)snprintf(wanted, sizeof wanted, "a %s from %g to %g",
            k->kind == KIND_COUNT ? "whole number" : "number", k->min, k->max);
        return wanted;
    }
    count = (uint64_t)v;
    if (k->kind == KIND_COUNT)
        memcpy(at, &count, sizeof count);
    else
        memcpy(at, &v, sizeof v);
    return NULL;
}

/* Cut `text` at its last blank (or first): two words; NULL if it is one. */
static char *
split_words(char *text, bool at_last)
{
    char *at = at_last ? strrchr(text, ' ') : strchr(text, ' ');
    if (!at)
        return NULL;
    char *second = at + 1;
    while (*second == ' ')
        second++;
    while (at > text && at[-1] == ' ')
        at--;
    *at = '\0';
    return *second != '\0' ? second : NULL;
}

static const char *
add_source(struct config *c, char *text)
{
    char *weight = split_words(text, true);
    double v = weight ? number_of(weight, false) : (double)NAN;
    if (!(v > 0) || strlen(text) >= CONFIG_MAX_TEXT)
        return "SHARD WEIGHT, as in: source = books.mbtok 2.5";
    if (c->n_sources == CONFIG_MAX_SOURCES)
        return "fewer sources";
    struct config_source *s = &c->sources[c->n_sources++];
    memcpy(s->path, text, strlen(text) + 1);
    s->weight = v;
    return NULL;
}

static const char *
add_heldout(struct config *c, char *text)
{
    char *path = split_words(text, false);
    if (!path || strlen(text) >= sizeof c->heldout[0].name ||
        strlen(path) >= CONFIG_MAX_TEXT || strchr(text, ',') != NULL)
        return "NAME SHARD, as in: heldout = books-dev books-dev.mbtok";
    if (c->n_heldout == CONFIG_MAX_HELDOUT)
        return "fewer held-out texts";
    struct config_heldout *h = &c->heldout[c->n_heldout++];
    memcpy(h->name, text, strlen(text) + 1);
    memcpy(h->path, path, strlen(path) + 1);
    return NULL;
}

/* ---- the file ---- */

static char *
trim(char *s)
{
    while (*s == ' ' || *s == '\t')
        s++;
    size_t n = strlen(s);
    while (n > 0 && strchr(" \t\r", s[n - 1]) != NULL)
        s[--n] = '\0';
    return s;
}

struct place {
    const char *path;
    unsigned line;
    bool seen[N_KEYS];
};

static mb_status
take_line(struct config *c, char *line, struct place *at, struct mb_error *err)
{
    char *comment = strchr(line, '#');
    if (comment)
        *comment = '\0';
    line = trim(line);
    if (*line == '\0')
        return MB_OK;
    char *value = strchr(line, '=');
    if (!value)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "%s, line %u: not of the form key = value", at->path, at->line);
    *value++ = '\0';
    char *name = trim(line);
    value = trim(value);
    const char *wanted = NULL;
    size_t k = 0;
    while (k < N_KEYS && strcmp(name, keys[k].name) != 0)
        k++;
    if (strcmp(name, "source") == 0)
        wanted = add_source(c, value);
    else if (strcmp(name, "heldout") == 0)
        wanted = add_heldout(c, value);
    else if (k == N_KEYS)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "%s, line %u: no key %s; --print-config shows all", at->path,
            at->line, name);
    else if (at->seen[k])
        return mb_error_set(err, MB_ERR_BAD_ARG, "%s, line %u: %s stands twice",
            at->path, at->line, name);
    else
        wanted = set_value(c, &keys[k], value);
    if (k < N_KEYS)
        at->seen[k] = true;
    if (wanted)
        return mb_error_set(err, MB_ERR_BAD_ARG, "%s, line %u: %s wants %s",
            at->path, at->line, name, wanted);
    return MB_OK;
}

static mb_status
check_whole(const struct config *c, const char *path, struct mb_error *err)
{
    const char *what = NULL;
    if (c->tokenizer[0] == '\0')
        what = "tokenizer = GGUF is missing";
    else if (c->n_sources == 0)
        what = "no source = SHARD WEIGHT";
    else if (c->heads % c->kv_heads != 0)
        what = "heads is no multiple of kv_heads";
    else if (c->head_dim % 2 != 0)
        what = "head_dim is odd";
    if (what)
        return mb_error_set(err, MB_ERR_BAD_ARG, "%s: %s", path, what);
    return MB_OK;
}

void
config_init(struct config *c)
{
    *c = (struct config){0};
    for (size_t i = 0; i < N_KEYS; i++) {
        if (keys[i].def)
            MB_ASSERT(set_value(c, &keys[i], keys[i].def) == NULL);
    }
}

mb_status
config_parse(struct config *c, struct mb_slice text, const char *path,
    struct mb_error *err)
{
    struct place at = {.path = path};
    mb_status st = MB_OK;
    size_t from = 0;
    config_init(c);
    while (st == MB_OK && from < text.size) {
        char line[2 * CONFIG_MAX_TEXT + 64];
        const uint8_t *p = text.data + from;
        const uint8_t *end = memchr(p, '\n', text.size - from);
        size_t n = end ? (size_t)(end - p) : text.size - from;
        at.line++;
        if (n >= sizeof line || memchr(p, 0, n) != NULL)
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "%s, line %u: too long, or not text", path, at.line);
        memcpy(line, p, n);
        line[n] = '\0';
        st = take_line(c, line, &at, err);
        from += n + 1;
    }
    return st == MB_OK ? check_whole(c, path, err) : st;
}

void
config_print(void)
{
    (void)printf("# A run of membank-train anchor. Paths are as on the command "
                 "line. Counts take k and M.\n");
    for (size_t i = 0; i < N_KEYS; i++) {
        const char *def = keys[i].def ? keys[i].def : "";
        (void)printf("%s%s = %-*s # %s\n", keys[i].def ? "" : "# ",
            keys[i].name, (int)(22 - strlen(keys[i].name)), def, keys[i].help);
        if (strcmp(keys[i].name, "tokenizer") == 0) {
            (void)printf("# source =                 # %s\n", source_help);
            (void)printf("# heldout =                # %s\n", heldout_help);
        }
    }
}

/* ---- what follows from it ---- */

struct train_shape
config_shape(const struct config *c, size_t n_vocab)
{
    return (struct train_shape){
        .n_layers = (size_t)c->layers,
        .d_model = (size_t)c->width,
        .n_heads = (size_t)c->heads,
        .n_kv_heads = (size_t)c->kv_heads,
        .head_dim = (size_t)c->head_dim,
        .d_ff = (size_t)c->ffn,
        .n_vocab = n_vocab,
        .n_ctx = (size_t)c->rows,
        .rope_base = c->rope_base,
        .norm_eps = c->norm_eps,
    };
}

uint64_t
config_n_steps(const struct config *c)
{
    uint64_t rows = c->batch * c->rows;
    return (c->tokens + rows - 1) / rows;
}

double
config_rate(const struct config *c, uint64_t step)
{
    const double pi = 3.14159265358979323846;
    uint64_t n = config_n_steps(c);
    if (step < c->warmup)
        return c->rate * (double)(step + 1) / (double)c->warmup;
    double left = step < n ? (double)(n - step) : 0;
    double part; // of the way from the end of the run
    if (c->schedule == SCHEDULE_TRAPEZOID) {
        double fall = c->decay_part * (double)n;
        part = left < fall ? left / fall : 1;
    } else {
        double all = n > c->warmup ? (double)(n - c->warmup) : 1;
        part = 0.5 * (1 - cos(pi * left / all));
    }
    return c->rate * (c->rate_end + (1 - c->rate_end) * part);
}
