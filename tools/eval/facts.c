/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/facts.c - see facts.h.
 *
 * One seed after another: the world, where texts lead, the trainings, each
 * judged when it is done, then the criteria. Numbers of criteria are those of
 * the paper's claims as the miniature tests them; what is missed is shown as
 * such. */
#include "facts.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "display.h"
#include "json.h"

#define MAX_CRITERIA 16u
#define N_RUNS       9u

typedef enum run_id {
    RUN_A1 = 0,
    RUN_A3,
    RUN_A3_GENERIC,
    RUN_A3_SMALL,
    RUN_A3_DENIED,
    RUN_A2,
    RUN_A2_DENIED,
    RUN_B,
    RUN_DENSE
} run_id;

/* Parts of all training that each takes, about. */
static const double shares[N_RUNS] = {
    0.09, 0.07, 0.07, 0.06, 0, 0.11, 0, 0.11, 0.49};

/* The prototype's small set-up: 0.94M parameters, and 2.6 times as many. */
static const struct train_shape anchor_shape = {.n_layers = 4,
    .d_model = 128,
    .n_heads = 4,
    .n_kv_heads = 4,
    .head_dim = 32,
    .d_ff = 352,
    .n_vocab = WORLD_VOCAB,
    .n_ctx = WORLD_ROWS,
    .rope_base = 10000,
    .norm_eps = 1e-5};
static const struct train_shape dense_shape = {.n_layers = 5,
    .d_model = 192,
    .n_heads = 6,
    .n_kv_heads = 6,
    .head_dim = 32,
    .d_ff = 528,
    .n_vocab = WORLD_VOCAB,
    .n_ctx = WORLD_ROWS,
    .rope_base = 10000,
    .norm_eps = 1e-5};
static const struct mb_bank_shape path_shape = {
    .d_model = 128, .n_layers = 4, .n_levels = 3, .rows = {32, 16, 8}};
static const struct mb_bank_shape small_shape = {
    .d_model = 128, .n_layers = 4, .n_levels = 3, .rows = {0, 0, 10}};

struct criterion {
    int number;
    const char *claim;
    char figures[96];
    const char *wanted;
    bool is_met;
};

struct outcome {
    struct facts_score runs[N_RUNS];
    struct facts_blocks blocks[N_RUNS];
    bool fresh_is_equal;
    uint64_t n_late_right;
    bool others_are_equal;
    double routed[WORLD_LEVELS]; /* part of mentions on their question's path */
    struct criterion criteria[MAX_CRITERIA];
    size_t n_criteria;
    size_t n_missed;
};

static double
ppl(const struct facts_score *s)
{
    return exp(s->nll);
}

static double
ppl_common(const struct facts_score *s)
{
    return exp(s->nll_common);
}

/* Show a run when it is judged: the whole takes long. */
static void
tell(struct facts *f, const struct facts_score *s)
{
    progress_clear(&f->progress);
    (void)fprintf(stderr,
        "%s: ppl %.3f, phrases %.3f, right %.1f / %.1f / %.1f / %.1f / %.1f, "
        "%.0f s\n",
        s->name, ppl(s), ppl_common(s), facts_bucket(s, 0), facts_bucket(s, 1),
        facts_bucket(s, 2), facts_bucket(s, 3), facts_bucket(s, 4), s->seconds);
}

/* ---- routing ---- */

/* How many of the documents that speak of an entity lie in the nodes that its
 * question leads to: the mean over entities. */
static mb_status
judge_routes(const struct facts *f, struct outcome *o, struct mb_error *err)
{
    size_t n = f->routes.n_prompts;
    uint32_t(*hits)[WORLD_LEVELS + 1] = mb_calloc(n, sizeof *hits);
    size_t n_spoken = 0;

    if (hits == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "routes");
    for (size_t i = 0; i < f->routes.n_documents; i++) {
        struct world_document d;

        world_document(f->world, FACTS_STREAM_BANK, i, &d);
        for (size_t k = 0; k < d.n_facts; k++) {
            uint32_t *h = hits[d.facts[k]];

            h[WORLD_LEVELS]++;
            for (size_t l = 0; l < WORLD_LEVELS; l++)
                h[l] += f->routes.prompts[d.facts[k]].node[l] ==
                        f->routes.documents[i].node[l];
        }
    }
    for (size_t i = 0; i < n; i++) {
        if (hits[i][WORLD_LEVELS] == 0)
            continue;
        n_spoken++;
        for (size_t l = 0; l < WORLD_LEVELS; l++)
            o->routed[l] += (double)hits[i][l] / (double)hits[i][WORLD_LEVELS];
    }
    for (size_t l = 0; l < WORLD_LEVELS && n_spoken > 0; l++)
        o->routed[l] *= 100.0 / (double)n_spoken;
    mb_free(hits);
    return MB_OK;
}

/* For each route another's, in another subtree of the first level. */
static mb_status
deny(const struct route *routes, size_t n, struct route **out,
    struct mb_error *err)
{
    struct route *denied = mb_calloc(n, sizeof *denied);

    if (denied == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "routes");
    for (size_t i = 0; i < n; i++) {
        size_t k = (i + n / 2) % n;

        for (size_t tries = 0;
             tries < n && routes[k].node[0] == routes[i].node[0]; tries++)
            k = (k + 1) % n;
        denied[i] = routes[k];
    }
    *out = denied;
    return MB_OK;
}

/* ---- runs ---- */

static struct facts_attached
attached_to(const struct facts *f, const struct facts_blocks *blocks)
{
    return (struct facts_attached){.blocks = blocks,
        .prompts = f->routes.prompts,
        .held_out = f->routes.held_out};
}

static mb_status
run_dense(struct facts *f, struct outcome *o, run_id id,
    const struct train_shape *shape, uint64_t n_tokens, const char *name,
    struct mb_error *err)
{
    const struct facts_attached none = {.blocks = NULL};

    f->share = shares[id];
    mb_status st =
        facts_train_dense(f, shape, n_tokens, name, &o->runs[id], err);
    if (st == MB_OK)
        st = facts_judge(f, name, &none, &o->runs[id], err);
    if (st == MB_OK)
        tell(f, &o->runs[id]);
    return st;
}

static mb_status
run_bank(struct facts *f, struct outcome *o, run_id id,
    const struct mb_bank_shape *shape, const char *name, struct mb_error *err)
{
    struct facts_blocks *blocks = &o->blocks[id];
    struct facts_attached a = attached_to(f, blocks);
    bool is_generic = id == RUN_A3_GENERIC;

    f->share = shares[id];
    a.is_generic = is_generic;
    mb_status st = facts_blocks_init(blocks, f->routes.n_nodes, err);
    if (st == MB_OK)
        st = facts_train_bank(
            f, "A1", shape, is_generic, blocks, &o->runs[id], err);
    if (st == MB_OK)
        st = facts_judge(f, "A1", &a, &o->runs[id], err);
    o->runs[id].name = name;
    o->runs[id].n_params += mb_bank_n_params(shape, mb_bank_path_rows(shape));
    if (st == MB_OK)
        tell(f, &o->runs[id]);
    return st;
}

static mb_status
run_both(struct facts *f, struct outcome *o, run_id id, const char *name,
    struct mb_error *err)
{
    struct facts_blocks *blocks = &o->blocks[id];
    struct facts_attached a = attached_to(f, blocks);

    f->share = shares[id];
    a.is_generic = id == RUN_B;
    mb_status st = facts_blocks_init(blocks, f->routes.n_nodes, err);
    if (st == MB_OK)
        st = facts_train_both(f, "A1", &path_shape, a.is_generic, name, blocks,
            &o->runs[id], err);
    if (st == MB_OK)
        st = facts_judge(f, name, &a, &o->runs[id], err);
    o->runs[id].n_params +=
        mb_bank_n_params(&path_shape, mb_bank_path_rows(&path_shape));
    if (st == MB_OK)
        tell(f, &o->runs[id]);
    return st;
}

/* As run `of`, but no block of the question's subtree of the first level. */
static mb_status
run_denied(struct facts *f, struct outcome *o, run_id id, run_id of,
    const char *model, const char *name, struct mb_error *err)
{
    struct route *prompts = NULL;
    struct route *held_out = NULL;
    mb_status st = deny(f->routes.prompts, f->routes.n_prompts, &prompts, err);

    if (st == MB_OK)
        st = deny(f->routes.held_out, f->routes.n_held_out, &held_out, err);
    const struct facts_attached a = {
        .blocks = &o->blocks[of], .prompts = prompts, .held_out = held_out};
    if (st == MB_OK)
        st = facts_judge(f, model, &a, &o->runs[id], err);
    o->runs[id].name = name;
    o->runs[id].n_params = o->runs[of].n_params;
    o->runs[id].n_tokens = o->runs[of].n_tokens;
    mb_free(prompts);
    mb_free(held_out);
    if (st == MB_OK)
        tell(f, &o->runs[id]);
    return st;
}

/* New facts into a path of their own: all other bytes stay. */
static mb_status
run_late(struct facts *f, struct outcome *o, struct mb_error *err)
{
    struct facts_blocks *b = &o->blocks[RUN_A3];
    uint64_t *before = mb_calloc(b->n_nodes, sizeof *before);
    mb_status st = before != NULL
                       ? MB_OK
                       : mb_error_set(err, MB_ERR_NOMEM, "hashes of blocks");

    for (size_t i = 0; st == MB_OK && i < b->n_nodes; i++)
        before[i] = mb_hash64(b->state[i].data, b->state[i].size, 0);
    if (st == MB_OK)
        st = facts_train_late(f, "A1", &path_shape, b, err);
    if (st == MB_OK)
        st = facts_judge_late(f, "A1", b, &o->n_late_right, err);
    o->others_are_equal = true;
    for (size_t i = 0; st == MB_OK && i < b->n_nodes; i++)
        o->others_are_equal &=
            before[i] == mb_hash64(b->state[i].data, b->state[i].size, 0);
    mb_free(before);
    return st;
}

static mb_status
run_all(struct facts *f, struct outcome *o, struct mb_error *err)
{
    mb_status st =
        run_dense(f, o, RUN_A1, &anchor_shape, f->n_tokens, "A1", err);

    if (st == MB_OK)
        st = facts_judge_fresh(f, "A1", &path_shape, &o->fresh_is_equal, err);
    if (st == MB_OK)
        st = run_bank(f, o, RUN_A3, &path_shape, "A3", err);
    if (st == MB_OK)
        st = run_denied(
            f, o, RUN_A3_DENIED, RUN_A3, "A1", "A3, subtree denied", err);
    if (st == MB_OK)
        st = run_late(f, o, err);
    if (st == MB_OK)
        st = run_both(f, o, RUN_A2, "A2", err);
    if (st == MB_OK)
        st = run_denied(
            f, o, RUN_A2_DENIED, RUN_A2, "A2", "A2, subtree denied", err);
    if (st == MB_OK)
        st = run_both(f, o, RUN_B, "B", err);
    if (st == MB_OK)
        st = run_bank(
            f, o, RUN_A3_GENERIC, &path_shape, "A3, generic block", err);
    if (st == MB_OK)
        st = run_bank(f, o, RUN_A3_SMALL, &small_shape, "A3, small", err);
    if (st == MB_OK)
        st = run_dense(
            f, o, RUN_DENSE, &dense_shape, 2 * f->n_tokens, "dense", err);
    return st;
}

/* ---- criteria ---- */

/* Percent that `a` is above `b`. */
static double
above(double a, double b)
{
    return 100 * (a / b - 1);
}

static void MB_PRINTF(6, 7) add(struct outcome *o, int number,
    const char *claim, const char *wanted, bool is_met, const char *fmt, ...)
{
    struct criterion *c = &o->criteria[o->n_criteria++];
    va_list args;

    MB_ASSERT(o->n_criteria <= MAX_CRITERIA);
    *c = (struct criterion){
        .number = number, .claim = claim, .wanted = wanted, .is_met = is_met};
    va_start(args, fmt);
    (void)vsnprintf(c->figures, sizeof c->figures, fmt, args);
    va_end(args);
    o->n_missed += !is_met;
}

static void
add_gains(struct outcome *o)
{
    const struct facts_score *r = o->runs;
    double change = above(ppl(&r[RUN_A3]), ppl(&r[RUN_A3_GENERIC]));
    double a3 = facts_accuracy(&r[RUN_A3]);
    double generic = facts_accuracy(&r[RUN_A3_GENERIC]);
    double common = above(ppl_common(&r[RUN_A3]), ppl_common(&r[RUN_A1]));
    double tail = facts_bucket(&r[RUN_A2], 2);
    double dense_tail = facts_bucket(&r[RUN_B], 2);
    double top = facts_bucket(&r[RUN_A2], 4);
    double dense_top = facts_bucket(&r[RUN_B], 4);

    add(o, 1, "fresh blocks change nothing", "logits bit-equal",
        o->fresh_is_equal, "%s", o->fresh_is_equal ? "equal" : "not equal");
    add(o, 2, "fetched beats generic, frozen", "ppl -20%, +20 points",
        change <= -20 && a3 >= generic + 20,
        "ppl %+.1f%%, %.1f to %.1f%% right", change, generic, a3);
    add(o, 3, "common knowledge kept, frozen", "ppl of phrases +-2%",
        fabs(common) <= 2, "%+.2f%% (%.3f to %.3f)", common,
        ppl_common(&r[RUN_A1]), ppl_common(&r[RUN_A3]));
    add(o, 4, "long tail: A2 over B, middle bucket",
        "2 times, +30 points, top not lower",
        tail >= 2 * dense_tail && tail >= dense_tail + 30 && top >= dense_top,
        "%.1f to %.1f%%; top %.1f to %.1f%%", dense_tail, tail, dense_top, top);
    add(o, 5, "co-training beats freezing", "more right, lower ppl",
        facts_accuracy(&r[RUN_A2]) > a3 && ppl(&r[RUN_A2]) < ppl(&r[RUN_A3]),
        "%.1f to %.1f%%, ppl %.3f to %.3f", a3, facts_accuracy(&r[RUN_A2]),
        ppl(&r[RUN_A3]), ppl(&r[RUN_A2]));
}

static void
add_costs(const struct facts *f, struct outcome *o)
{
    const struct facts_score *r = o->runs;
    double a1 = facts_accuracy(&r[RUN_A1]);
    double a2 = facts_accuracy(&r[RUN_A2]);
    double a3 = facts_accuracy(&r[RUN_A3]);
    double dense = facts_accuracy(&r[RUN_DENSE]);
    double small = facts_accuracy(&r[RUN_A3_SMALL]);
    double part = a3 > a1 ? 100 * (small - a1) / (a3 - a1) : 0;
    uint64_t n_late = world_n_late(f->world);
    double late = 100.0 * (double)o->n_late_right / (double)n_late;

    add(o, 7, "matches a dense model of 2.6 times the size",
        "not fewer right, ppl not higher",
        a2 >= dense && ppl(&r[RUN_A2]) <= ppl(&r[RUN_DENSE]),
        "%.1f v. %.1f%%, ppl %.3f v. %.3f", a2, dense, ppl(&r[RUN_A2]),
        ppl(&r[RUN_DENSE]));
    add(o, 10, "a small fetch helps already", "40% of the gain", part >= 40,
        "%.0f%% (%.1f of %.1f%%, from %.1f)", part, small, a3, a1);
    for (int co = 0; co < 2; co++) {
        const struct facts_score *whole = &r[co ? RUN_A2 : RUN_A3];
        const struct facts_score *denied =
            &r[co ? RUN_A2_DENIED : RUN_A3_DENIED];
        double change = above(ppl_common(denied), ppl_common(whole));

        add(o, 13, co ? "denying the subtree, A2" : "denying the subtree, A3",
            "0.35 times, phrases +-2%",
            facts_accuracy(whole) > 0 &&
                facts_accuracy(denied) <= 0.35 * facts_accuracy(whole) &&
                fabs(change) <= 2,
            "%.1f to %.1f%%, phrases %+.2f%%", facts_accuracy(whole),
            facts_accuracy(denied), change);
    }
    add(o, 14, "new knowledge into new blocks",
        "90% right, other blocks byte-equal", late >= 90 && o->others_are_equal,
        "%.0f%%, others %s", late, o->others_are_equal ? "equal" : "changed");
    add(o, 17, "questions lead where their texts are", "95% at each level",
        o->routed[0] >= 95 && o->routed[1] >= 95 && o->routed[2] >= 95,
        "%.1f, %.1f, %.1f%%", o->routed[0], o->routed[1], o->routed[2]);
}

/* ---- output ---- */

static mb_status
print_runs(const struct facts *f, const struct outcome *o)
{
    static const char *const heads[] = {"run", "parameters", "tokens", "ppl",
        "phrases", "right by bucket, rare to frequent", "all", "elements", "s"};
    struct table *t = table_new(9, heads, "lrrrrrrrr");

    if (t == NULL)
        return MB_ERR_NOMEM;
    (void)printf(
        "seed %llu, fan-out %u, %llu tokens a training, routed by %s\n",
        (unsigned long long)f->seed, f->fan_out,
        (unsigned long long)f->n_tokens,
        f->is_oracle ? "the oracle" : "the product");
    for (size_t i = 0; i < N_RUNS; i++) {
        const struct facts_score *s = &o->runs[i];
        uint64_t n = 0;
        uint64_t right = 0;

        for (size_t b = 0; b < WORLD_BUCKETS; b++) {
            n += s->n[1][b];
            right += s->n_right[1][b];
        }
        table_cell(t, "%s", s->name);
        table_cell_count(t, s->n_params);
        table_cell_count(t, s->n_tokens);
        table_cell(t, "%.3f", ppl(s));
        table_cell(t, "%.3f", ppl_common(s));
        table_cell(t, "%.1f / %.1f / %.1f / %.1f / %.1f", facts_bucket(s, 0),
            facts_bucket(s, 1), facts_bucket(s, 2), facts_bucket(s, 3),
            facts_bucket(s, 4));
        table_cell(t, "%.1f", facts_accuracy(s));
        table_cell(t, "%.1f", n > 0 ? 100.0 * (double)right / (double)n : 0.0);
        table_cell(t, "%.0f", s->seconds);
    }
    table_print(t, stdout, 0);
    table_free(t);
    return MB_OK;
}

static mb_status
print_criteria(const struct outcome *o)
{
    static const char *const heads[] = {"", "claim", "measured", "wanted", ""};
    struct table *t = table_new(5, heads, "rllll");

    if (t == NULL)
        return MB_ERR_NOMEM;
    for (size_t i = 0; i < o->n_criteria; i++) {
        const struct criterion *c = &o->criteria[i];

        table_cell(t, "%d", c->number);
        table_cell(t, "%s", c->claim);
        table_cell(t, "%s", c->figures);
        table_cell(t, "%s", c->wanted);
        table_cell(t, "%s", c->is_met ? "met" : "missed");
    }
    (void)printf("\n");
    table_print(t, stdout, 0);
    (void)printf(
        "%zu of %zu met\n\n", o->n_criteria - o->n_missed, o->n_criteria);
    table_free(t);
    return fflush(stdout) == 0 ? MB_OK : MB_ERR_IO;
}

static void
json_run(struct json_writer *w, const struct facts_score *s)
{
    json_object_begin(w);
    json_kv_cstr(w, "name", s->name);
    json_kv_u64(w, "parameters", s->n_params);
    json_kv_u64(w, "tokens", s->n_tokens);
    json_kv_f64(w, "seconds", s->seconds);
    json_kv_f64(w, "ppl", ppl(s));
    json_kv_f64(w, "ppl_phrases", ppl_common(s));
    json_kv_f64(w, "right", facts_accuracy(s));
    json_key(w, "buckets");
    json_array_begin(w);
    for (size_t b = 0; b < WORLD_BUCKETS; b++)
        json_f64(w, facts_bucket(s, b));
    json_array_end(w);
    json_object_end(w);
}

static mb_status
print_json(const struct facts *f, const struct outcome *o)
{
    struct mb_buffer buf;
    struct json_writer w;

    mb_buffer_init(&buf, SIZE_MAX / 2);
    json_writer_init(&w, &buf);
    json_object_begin(&w);
    json_kv_cstr(&w, "measured", "facts");
    json_kv_u64(&w, "seed", f->seed);
    json_kv_u64(&w, "fan_out", f->fan_out);
    json_kv_u64(&w, "tokens", f->n_tokens);
    json_kv_cstr(&w, "route", f->is_oracle ? "oracle" : "product");
    json_key(&w, "routed");
    json_array_begin(&w);
    for (size_t l = 0; l < WORLD_LEVELS; l++)
        json_f64(&w, o->routed[l]);
    json_array_end(&w);
    json_key(&w, "runs");
    json_array_begin(&w);
    for (size_t i = 0; i < N_RUNS; i++)
        json_run(&w, &o->runs[i]);
    json_array_end(&w);
    json_key(&w, "criteria");
    json_array_begin(&w);
    for (size_t i = 0; i < o->n_criteria; i++) {
        json_object_begin(&w);
        json_kv_u64(&w, "number", (uint64_t)o->criteria[i].number);
        json_kv_cstr(&w, "claim", o->criteria[i].claim);
        json_kv_cstr(&w, "measured", o->criteria[i].figures);
        json_kv_cstr(&w, "wanted", o->criteria[i].wanted);
        json_kv_bool(&w, "met", o->criteria[i].is_met);
        json_object_end(&w);
    }
    json_array_end(&w);
    json_object_end(&w);
    if (w.status == MB_OK)
        tool_put_line(&buf);
    mb_buffer_fini(&buf);
    return w.status;
}

/* A line a run, kind of entity and bucket. */
static mb_status
write_csv(const struct facts *f, const struct outcome *o, FILE *csv,
    struct mb_error *err)
{
    for (size_t i = 0; i < N_RUNS; i++) {
        const struct facts_score *s = &o->runs[i];

        for (size_t b = 0; b < 2 * WORLD_BUCKETS; b++) {
            size_t kind = b / WORLD_BUCKETS;

            (void)fprintf(csv, "%llu,\"%s\",%s,%zu,%llu,%llu,%.6f,%.6f\n",
                (unsigned long long)f->seed, s->name,
                kind ? "element" : "entity", b % WORLD_BUCKETS,
                (unsigned long long)s->n[kind][b % WORLD_BUCKETS],
                (unsigned long long)s->n_right[kind][b % WORLD_BUCKETS], ppl(s),
                ppl_common(s));
        }
    }
    return fflush(csv) == 0
               ? MB_OK
               : mb_error_set(err, MB_ERR_IO, "write the csv file");
}

/* ---- the whole ---- */

static mb_status
run_seed(struct facts *f, FILE *csv, struct mb_error *err)
{
    struct routes_options o = {
        .fan_out = f->fan_out,
        .stream = FACTS_STREAM_BANK,
        .n_documents = f->n_tokens / WORLD_ROWS,
        .held_out_stream = FACTS_STREAM_HELD,
        .n_held_out = FACTS_N_HELD,
        .is_oracle = f->is_oracle,
    };
    struct outcome *out = mb_calloc(1, sizeof *out);
    mb_status st = out != NULL ? world_new(f->fan_out, f->seed, &f->world, err)
                               : mb_error_set(err, MB_ERR_NOMEM, "outcome");

    f->done = 0;
    o.world = f->world;
    if (st == MB_OK) {
        progress_show(&f->progress, 0, "documents");
        st = routes_make(&o, &f->routes, err);
    }
    if (st == MB_OK)
        st = judge_routes(f, out, err);
    if (st == MB_OK)
        st = run_all(f, out, err);
    progress_clear(&f->progress);
    if (st == MB_OK) {
        add_gains(out);
        add_costs(f, out);
        if (mb_cli_has(f->cli, "json")) {
            st = print_json(f, out);
        } else {
            st = print_runs(f, out);
            if (st == MB_OK)
                st = print_criteria(out);
        }
    }
    if (st == MB_OK && csv != NULL)
        st = write_csv(f, out, csv, err);
    for (size_t i = 0; out != NULL && i < N_RUNS; i++)
        facts_blocks_fini(&out->blocks[i]);
    mb_free(out);
    routes_fini(&f->routes);
    world_free(f->world);
    f->world = NULL;
    return st;
}

static mb_status
read_options(struct facts *f, uint64_t *n_seeds, struct mb_error *err)
{
    const char *route = mb_cli_str(f->cli, "route");
    uint64_t fan_out = 0;
    uint64_t batch = 0;
    uint64_t threads = 0;
    mb_status st = mb_cli_u64(f->cli, "fan-out", 2, 8, &fan_out, err);

    if (st == MB_OK)
        st = mb_cli_u64(f->cli, "batch", 1, 256, &batch, err);
    if (st == MB_OK)
        st = mb_cli_u64(f->cli, "tokens", batch * WORLD_ROWS, (uint64_t)1 << 32,
            &f->n_tokens, err);
    if (st == MB_OK)
        st = mb_cli_u64(f->cli, "seed", 0, UINT64_MAX, &f->seed, err);
    if (st == MB_OK)
        st = mb_cli_u64(f->cli, "seeds", 1, 100, n_seeds, err);
    if (st == MB_OK)
        st = mb_cli_u64(f->cli, "threads", 0, 1024, &threads, err);
    if (st != MB_OK)
        return st;
    f->is_oracle = strcmp(route, "oracle") == 0;
    if (!f->is_oracle && strcmp(route, "product") != 0)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "--route %s: product or oracle", route);
    f->fan_out = (uint32_t)fan_out;
    f->batch = (size_t)batch;
    f->n_threads = (unsigned)threads;
    // Whole steps, so that all runs see the same documents.
    f->n_tokens -= f->n_tokens % (batch * WORLD_ROWS);
    return MB_OK;
}

static mb_status
open_csv(const struct facts *f, FILE **out, struct mb_error *err)
{
    const char *path = mb_cli_str(f->cli, "csv");

    if (path == NULL)
        return MB_OK;
    *out = fopen(path, "w");
    if (*out == NULL)
        return mb_error_set(err, MB_ERR_IO, "cannot write %s", path);
    (void)fprintf(
        *out, "seed,run,kind,bucket,questions,right,ppl,ppl_phrases\n");
    return MB_OK;
}

mb_status
facts_run(const struct mb_cli *cli, struct mb_error *err)
{
    struct facts f = {.cli = cli};
    FILE *csv = NULL;
    uint64_t n_seeds = 0;
    mb_status st = read_options(&f, &n_seeds, err);

    progress_init(&f.progress, stderr, false);
    if (st == MB_OK)
        st = mb_gguf_open(access(MB_MODEL_INSTALLED, R_OK) == 0
                              ? MB_MODEL_INSTALLED
                              : MB_MODEL_SOURCE,
            &f.vocab, err);
    if (st == MB_OK)
        st = tool_temp_folder("membank-eval", f.folder, err);
    if (st == MB_OK)
        st = open_csv(&f, &csv, err);
    for (uint64_t i = 0; st == MB_OK && i < n_seeds; i++, f.seed++)
        st = run_seed(&f, csv, err);
    progress_clear(&f.progress);
    if (csv != NULL && fclose(csv) != 0 && st == MB_OK)
        st = mb_error_set(err, MB_ERR_IO, "write the csv file");
    if (f.folder[0] != '\0')
        tool_remove_folder(f.folder);
    mb_gguf_close(f.vocab);
    return st;
}
