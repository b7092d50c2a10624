/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/fetch.c - see fetch.h.
 *
 * A warm fetch is what the daemon does before each pass of a request: begin a
 * snapshot, find the records of the path's nodes, view them. That nothing is
 * copied is looked at: two snapshots must give the same addresses, those of
 * the map. Passes with and without blocks run in turns, so that both see the
 * same machine.
 * Threads: the main thread; passes have their own. */
#include "fetch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "bankfile.h"
#include "display.h"
#include "json.h"
#include "model.h"
#include "tiers.h"
#include "times.h"

#define FAN_OUT      16u /* that the sizes of blocks are made for */
#define TREE_FAN_OUT 8u  /* of the tree that is stored */
#define N_LEVELS     3u
#define N_COLD       50u
#define N_ROUNDS     41u
#define N_DECODED    32u
#define N_PREFILL    256u
#define N_BEFORE     64u /* rows before decoding */
#define N_TYPES      3u

#define LIMIT_WARM_US 100.0
#define LIMIT_DECODE  1.15
#define LIMIT_COLD    4.0

/* Times of one kind of fetch. */
struct fetches {
    const char *what;
    uint64_t bytes;
    uint64_t *ns;
    size_t n;
};

/* Microseconds a row. */
struct cost {
    mb_bank_type type;
    const char *what;
    double with;
    double without;
    double ratio; /* the median of the rounds' own */
};

struct fetch {
    const struct mb_cli *cli;
    const char *path;
    struct mb_gguf *gguf;
    struct mb_decoder *decoder;
    const struct mb_decoder_info *info;
    struct mb_cache *cache;
    struct mb_pass *pass;
    struct mb_sequence *seq;
    struct mb_bank_shape shape;
    struct bankfile bank;
    mb_token_id tokens[N_PREFILL];
    float *logits;
    uint64_t n_calls;
    uint64_t seed;
    uint64_t n_threads;
    uint64_t path_bytes;
    bool is_copied; /* a block did not lie in the map */
    uint64_t plain_ns;
    struct fetches fetches[1 + TIERS_N];
    struct cost costs[2 * N_TYPES];
    size_t n_costs;
};

static double
micros(const struct fetches *f, double part)
{
    size_t at = (size_t)(part * (double)f->n);

    return (double)f->ns[at < f->n ? at : f->n - 1] / 1e3;
}

/* ---- fetches ---- */

static mb_status
fetch_once(struct fetch *f, const uint32_t *nodes, size_t n,
    struct mb_bank_path *out, uint64_t *ns, struct mb_error *err)
{
    struct mb_snapshot *snap = NULL;
    uint64_t start = mb_clock_ns();
    mb_status st = mb_snapshot_begin(f->bank.store, &snap, err);

    if (st == MB_OK)
        st = bankfile_fetch(&f->bank, snap, nodes, n, out, err);
    *ns = mb_clock_ns() - start;
    mb_snapshot_end(snap);
    return st;
}

static mb_status
measure_warm(struct fetch *f, struct mb_error *err)
{
    struct fetches *to = &f->fetches[0];
    struct mb_rng rng;
    mb_status st = MB_OK;

    mb_rng_init(&rng, f->seed);
    for (size_t i = 0; st == MB_OK && i < f->n_calls; i++) {
        uint32_t nodes[MB_BANKS_MAX_LEVELS];
        struct mb_bank_path again;
        struct mb_bank_path path;
        uint64_t ns;
        size_t n = bankfile_draw(&f->bank, &rng, nodes);

        // The first call may read the file; the second is the warm one.
        st = fetch_once(f, nodes, n, &again, &ns, err);
        if (st == MB_OK)
            st = fetch_once(f, nodes, n, &path, &to->ns[i], err);
        for (size_t l = 0; st == MB_OK && l < n; l++)
            f->is_copied |= path.blocks[l].data != again.blocks[l].data;
    }
    to->what = "warm, from the store's map";
    to->bytes = f->path_bytes;
    to->n = f->n_calls;
    times_sort(to->ns, to->n);
    return st;
}

static mb_status
measure_cold(struct fetch *f, struct mb_error *err)
{
    static const char *const names[TIERS_N] = {"cold, levels at 4, 2, 0.5 GB/s",
        "first level held, rest at 0.5 GB/s", "cold, flat, 0.5 GB/s"};
    struct tiers t = {.n = f->shape.n_levels};
    uint64_t *ns[TIERS_N];

    for (size_t l = 0; l < t.n; l++)
        t.bytes[l] =
            mb_bank_record_bytes(&f->shape, f->shape.rows[l], f->bank.type);
    for (size_t i = 0; i < TIERS_N; i++)
        ns[i] = f->fetches[1 + i].ns;
    mb_status st =
        tiers_measure(&t, f->bank.folder, N_COLD, ns, &f->plain_ns, err);
    for (size_t i = 0; i < TIERS_N; i++) {
        struct fetches *to = &f->fetches[1 + i];

        to->what = names[i];
        to->bytes = f->path_bytes - (i == TIERS_HELD ? t.bytes[0] : 0);
        to->n = N_COLD;
        times_sort(to->ns, to->n);
    }
    return st;
}

/* ---- passes ---- */

static mb_status
run_rows(struct fetch *f, size_t n, mb_rows_kind kind,
    const struct mb_bank_path *path, struct mb_error *err)
{
    struct mb_rows rows = {.seq = f->seq,
        .tokens = f->tokens,
        .n = n,
        .kind = kind,
        .logits = f->logits,
        .bank = path};

    return mb_pass_run(f->pass, &rows, 1, err);
}

/* Microseconds a row. */
static mb_status
time_rows(struct fetch *f, mb_rows_kind kind, const struct mb_bank_path *path,
    double *out, struct mb_error *err)
{
    bool is_prefill = kind == MB_ROWS_PREFILL;
    size_t n = is_prefill ? 1 : N_DECODED;
    mb_status st = MB_OK;

    mb_sequence_truncate(f->seq, is_prefill ? 0 : N_BEFORE);
    uint64_t start = mb_clock_ns();
    for (size_t i = 0; st == MB_OK && i < n; i++)
        st = run_rows(f, is_prefill ? N_PREFILL : 1, kind, path, err);
    *out = (double)(mb_clock_ns() - start) / 1e3 /
           (double)(is_prefill ? N_PREFILL : N_DECODED);
    return st;
}

static int
compare_real(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;

    return (x > y) - (x < y);
}

static double
median(double *x)
{
    qsort(x, N_ROUNDS, sizeof *x, compare_real);
    return x[N_ROUNDS / 2];
}

static mb_status
measure_type(struct fetch *f, mb_bank_type type, struct mb_error *err)
{
    static const char *const names[] = {"prefill", "decode"};
    struct mb_slice records[MB_BANK_MAX_LEVELS];
    struct mb_bank_path path = {.n_blocks = f->shape.n_levels};
    struct mb_arena *arena = mb_arena_new((size_t)4 << 30);
    double with[2][N_ROUNDS];
    double without[2][N_ROUNDS];
    mb_status st = MB_ERR_NOMEM;

    if (arena != NULL)
        st = bankfile_records(&f->shape, type, f->seed, arena, records, err);
    for (size_t l = 0; st == MB_OK && l < path.n_blocks; l++)
        st = mb_bank_block_open(records[l], &path.blocks[l], err);
    // The prefill of a round is what its decoding goes on from.
    for (size_t i = 0; st == MB_OK && i < N_ROUNDS; i++) {
        for (int kind = 0; st == MB_OK && kind < 2; kind++) {
            st = time_rows(f, (mb_rows_kind)kind, NULL, &without[kind][i], err);
            if (st == MB_OK)
                st = time_rows(
                    f, (mb_rows_kind)kind, &path, &with[kind][i], err);
        }
    }
    for (int kind = 0; st == MB_OK && kind < 2; kind++) {
        double ratio[N_ROUNDS];

        for (size_t i = 0; i < N_ROUNDS; i++)
            ratio[i] = with[kind][i] / without[kind][i];
        f->costs[f->n_costs++] = (struct cost){type, names[kind],
            median(with[kind]), median(without[kind]), median(ratio)};
    }
    mb_arena_free(arena);
    return st;
}

/* ---- result ---- */

static double
part_of_model(const struct fetch *f)
{
    return (double)mb_bank_n_params(&f->shape, mb_bank_path_rows(&f->shape)) /
           (double)f->info->n_params;
}

static double
times_faster(const struct fetch *f, tiers_case kind)
{
    return micros(&f->fetches[1 + TIERS_FLAT], 0.5) /
           micros(&f->fetches[1 + kind], 0.5);
}

static void
json_series(const struct fetch *f, struct json_writer *w)
{
    json_key(w, "fetches");
    json_array_begin(w);
    for (size_t i = 0; i < 1 + TIERS_N; i++) {
        json_object_begin(w);
        json_kv_cstr(w, "what", f->fetches[i].what);
        json_kv_u64(w, "bytes", f->fetches[i].bytes);
        json_kv_u64(w, "calls", f->fetches[i].n);
        json_kv_f64(w, "p50_us", micros(&f->fetches[i], 0.5));
        json_kv_f64(w, "p99_us", micros(&f->fetches[i], 0.99));
        json_object_end(w);
    }
    json_array_end(w);
    json_key(w, "passes");
    json_array_begin(w);
    for (size_t i = 0; i < f->n_costs; i++) {
        json_object_begin(w);
        json_kv_cstr(w, "what", f->costs[i].what);
        json_kv_cstr(w, "type", mb_bank_type_name(f->costs[i].type));
        json_kv_f64(w, "us_with", f->costs[i].with);
        json_kv_f64(w, "us_without", f->costs[i].without);
        json_kv_f64(w, "ratio", f->costs[i].ratio);
        json_object_end(w);
    }
    json_array_end(w);
}

static void
print_json(const struct fetch *f)
{
    struct mb_buffer buf;
    struct json_writer w;

    mb_buffer_init(&buf, SIZE_MAX / 2);
    json_writer_init(&w, &buf);
    json_object_begin(&w);
    json_kv_cstr(&w, "measured", "fetch");
    json_kv_cstr(&w, "model", f->path);
    json_kv_u64(&w, "parameters", f->info->n_params);
    json_key(&w, "rows");
    json_array_begin(&w);
    for (size_t l = 0; l < f->shape.n_levels; l++)
        json_u64(&w, f->shape.rows[l]);
    json_array_end(&w);
    json_kv_f64(&w, "part", part_of_model(f));
    json_kv_u64(&w, "blocks", f->bank.n_blocks);
    json_kv_u64(&w, "bank_bytes", f->bank.bytes);
    json_kv_u64(&w, "threads", f->n_threads);
    json_kv_u64(&w, "cpus", mb_cpu_count());
    json_kv_bool(&w, "copied", f->is_copied);
    json_kv_f64(&w, "plain_read_us", (double)f->plain_ns / 1e3);
    json_kv_f64(&w, "cold_times_faster", times_faster(f, TIERS_COLD));
    json_kv_f64(&w, "held_times_faster", times_faster(f, TIERS_HELD));
    json_series(f, &w);
    json_object_end(&w);
    tool_put_line(&buf);
    mb_buffer_fini(&buf);
}

static const char *
verdict(bool is_met)
{
    return is_met ? "met" : "missed";
}

static mb_status
print_fetches(const struct fetch *f)
{
    static const char *const heads[] = {
        "fetch", "bytes", "calls", "p50 us", "p99 us", "flat by it", "limit"};
    struct table *t = table_new(7, heads, "lrrrrrl");

    if (t == NULL)
        return MB_ERR_NOMEM;
    for (size_t i = 0; i < 1 + TIERS_N; i++) {
        const struct fetches *x = &f->fetches[i];
        bool is_cold = i == 1 + TIERS_COLD;

        table_cell(t, "%s", x->what);
        table_cell(t, "%llu", (unsigned long long)x->bytes);
        table_cell(t, "%zu", x->n);
        table_cell(t, "%.1f", micros(x, 0.5));
        table_cell(t, "%.1f", micros(x, 0.99));
        table_cell(t, i == 0 ? "" : "%.2f",
            i == 0 ? 0.0 : times_faster(f, (tiers_case)(i - 1)));
        if (i == 0)
            table_cell(t, "%.0f us: %s", LIMIT_WARM_US,
                verdict(micros(x, 0.5) <= LIMIT_WARM_US && !f->is_copied));
        else if (is_cold)
            table_cell(t, "%.1f times: %s", LIMIT_COLD,
                verdict(times_faster(f, TIERS_COLD) >= LIMIT_COLD));
        else
            table_cell(t, "%s", "");
    }
    table_print(t, stdout, 0);
    table_free(t);
    return MB_OK;
}

static mb_status
print_passes(const struct fetch *f)
{
    static const char *const heads[] = {
        "pass", "blocks in", "us a row", "without", "ratio", "limit"};
    struct table *t = table_new(6, heads, "llrrrl");

    if (t == NULL)
        return MB_ERR_NOMEM;
    for (size_t i = 0; i < f->n_costs; i++) {
        const struct cost *c = &f->costs[i];

        table_cell(t, "%s", c->what);
        table_cell(t, "%s", mb_bank_type_name(c->type));
        table_cell(t, "%.1f", c->with);
        table_cell(t, "%.1f", c->without);
        table_cell(t, "%.3f", c->ratio);
        if (i % 2 == MB_ROWS_DECODE)
            table_cell(
                t, "%.2f: %s", LIMIT_DECODE, verdict(c->ratio <= LIMIT_DECODE));
        else
            table_cell(t, "%s", "");
    }
    table_print(t, stdout, 0);
    table_free(t);
    return MB_OK;
}

static mb_status
print_tables(const struct fetch *f)
{
    char params[DISPLAY_FIGURE], bytes[DISPLAY_FIGURE];

    (void)printf("%s: %s, %s parameters, %u processors, %llu threads\n",
        f->path, f->info->weights, show_count(params, f->info->n_params),
        mb_cpu_count(), (unsigned long long)f->n_threads);
    (void)printf("a path has %zu + %zu + %zu rows a layer, %.1f%% of the "
                 "parameters; %llu blocks are stored in %s, %s\n\n",
        f->shape.rows[0], f->shape.rows[1], f->shape.rows[2],
        100 * part_of_model(f), (unsigned long long)f->bank.n_blocks,
        show_bytes(bytes, f->bank.bytes), mb_bank_type_name(f->bank.type));
    mb_status st = print_fetches(f);
    (void)printf("%s; a path is read in %.1f us where nothing holds it "
                 "back\n\n",
        f->is_copied ? "blocks were copied" : "no weight was copied",
        (double)f->plain_ns / 1e3);
    return st == MB_OK ? print_passes(f) : st;
}

/* ---- the whole ---- */

static mb_status
open_model(struct fetch *f, mb_cache_type cache, struct mb_error *err)
{
    mb_status st;

    f->path = mb_cli_str(f->cli, "model");
    if (f->path == NULL)
        f->path = access(MB_MODEL_INSTALLED, R_OK) == 0 ? MB_MODEL_INSTALLED
                                                        : MB_MODEL_SOURCE;
    st = mb_gguf_open(f->path, &f->gguf, err);
    if (st == MB_OK)
        st = mb_decoder_open(f->gguf, &f->decoder, err);
    if (st == MB_OK)
        st = mb_cache_new(f->decoder, cache, 1024, &f->cache, err);
    if (st == MB_OK)
        st = mb_pass_new(
            f->decoder, N_PREFILL, (unsigned)f->n_threads, &f->pass, err);
    if (st == MB_OK)
        st = mb_sequence_new(f->cache, &f->seq, err);
    if (st != MB_OK)
        return st;
    f->info = mb_decoder_info(f->decoder);
    f->logits = mb_calloc(f->info->n_vocab, sizeof *f->logits);
    if (f->logits == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "logits");
    for (size_t i = 0; i < N_PREFILL; i++)
        f->tokens[i] = (mb_token_id)(i * 37 % f->info->n_vocab);
    return mb_bank_shape_make(
        &(struct mb_bank_budget){.d_model = f->info->d_model,
            .n_layers = f->info->n_layers,
            .n_params = f->info->n_params,
            .fan_out = FAN_OUT,
            .n_levels = N_LEVELS},
        &f->shape, err);
}

static mb_status
make_room(struct fetch *f, struct mb_error *err)
{
    for (size_t l = 0; l < f->shape.n_levels; l++)
        f->path_bytes +=
            mb_bank_record_bytes(&f->shape, f->shape.rows[l], MB_BANK_BF16);
    for (size_t i = 0; i < 1 + TIERS_N; i++) {
        f->fetches[i].ns =
            mb_calloc(i == 0 ? f->n_calls : N_COLD, sizeof(uint64_t));
        if (f->fetches[i].ns == NULL)
            return mb_error_set(err, MB_ERR_NOMEM, "times of fetches");
    }
    return MB_OK;
}

static mb_status
measure(struct fetch *f, struct mb_error *err)
{
    mb_status st = make_room(f, err);

    if (st == MB_OK)
        st = bankfile_init(
            &f->bank, &f->shape, TREE_FAN_OUT, MB_BANK_BF16, f->seed, err);
    if (st == MB_OK)
        st = measure_warm(f, err);
    if (st == MB_OK)
        st = measure_cold(f, err);
    for (int type = 0; st == MB_OK && type < (int)N_TYPES; type++)
        st = measure_type(f, (mb_bank_type)type, err);
    return st;
}

mb_status
bench_fetch(const struct mb_cli *cli, struct mb_error *err)
{
    struct fetch f = {.cli = cli};
    mb_cache_type cache = MB_CACHE_F16;
    mb_status st = bench_cache_type(cli, &cache, err);

    if (st == MB_OK)
        st = mb_cli_u64(cli, "threads", 0, 1024, &f.n_threads, err);
    if (st == MB_OK)
        st = mb_cli_u64(cli, "calls", 1, 10000000, &f.n_calls, err);
    if (st == MB_OK)
        st = mb_cli_u64(cli, "seed", 0, UINT64_MAX, &f.seed, err);
    if (f.n_threads == 0)
        f.n_threads = mb_cpu_count();
    if (st == MB_OK)
        st = open_model(&f, cache, err);
    if (st == MB_OK)
        st = measure(&f, err);
    if (st == MB_OK && mb_cli_has(cli, "json"))
        print_json(&f);
    else if (st == MB_OK)
        st = print_tables(&f);
    bankfile_fini(&f.bank);
    for (size_t i = 0; i < 1 + TIERS_N; i++)
        mb_free(f.fetches[i].ns);
    mb_free(f.logits);
    mb_sequence_free(f.seq);
    mb_pass_free(f.pass);
    mb_cache_free(f.cache);
    mb_decoder_close(f.decoder);
    mb_gguf_close(f.gguf);
    return st;
}
