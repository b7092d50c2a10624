/* SPDX-License-Identifier: Apache-2.0
 * daemon/cmd_admin.c - ping, collections, stats, jobs, snapshot, verify, rebuild.
 *
 * stats as Prometheus text is made from the same numbers: one table of gauges
 * and counters below writes both.
 * Threads: a worker or mb-io. */
#include "anchor.h"
#include "cmd_read.h"
#include "contexts.h"

#include <stdio.h>
#include <string.h>

#define MAX_TEXT ((size_t)16 << 20)

static double
uptime_s(const struct daemon *d)
{
    return (double)(mb_clock_ns() - d->started_ns) / 1e9;
}

COMMAND_HANDLER(cmd_ping)
{
    (void)w;
    (void)later;
    mb_write_map(&c->w, 5);
    mb_write_kv_cstr(&c->w, "version", MB_VERSION);
    mb_write_kv_uint(&c->w, "protocol", DAEMON_PROTOCOL);
    mb_write_kv_cstr(&c->w, "model", reader_name(c->d->reader));
    mb_write_kv_f64(&c->w, "uptime_s", uptime_s(c->d));
    mb_write_kv_uint(
        &c->w, "max_message_bytes", daemon_config(c->d)->max_message_bytes);
    return MB_OK;
}

/* ---- collections ---- */

static void
write_settings(struct mb_writer *w, struct mb_snapshot *snap,
    const struct mb_collection *coll)
{
    static const char *const kinds[] = {"none", "lsa", "client", "anchor"};
    static const char *const notes[] = {"template", "passage"};
    const struct mb_collection_settings *s = &coll->settings;
    struct mb_slice text[2] = {{0}};
    size_t n_notes = 0;

    for (size_t i = 0; i < 2; i++) {
        if (mb_note_get(snap, coll, notes[i], &text[i], NULL) == MB_OK)
            n_notes++;
    }
    mb_write_cstr(w, "settings");
    mb_write_map(w, 5 + n_notes);
    mb_write_kv_cstr(w, "language", s->language);
    mb_write_cstr(w, "embedding");
    mb_write_map(w, 2);
    mb_write_kv_cstr(w, "kind", kinds[s->embedding]);
    mb_write_kv_uint(w, "dim", s->dim);
    mb_write_kv_f64(w, "k1", (double)s->k1);
    mb_write_kv_f64(w, "b", (double)s->b);
    mb_write_kv_uint(w, "title_weight", s->title_weight);
    for (size_t i = 0; i < 2; i++) {
        if (text[i].size > 0)
            mb_write_kv_str(w, notes[i], text[i]);
    }
}

/* Whose the vectors of a collection of kind anchor are. */
static void
write_owner(
    struct call *c, struct mb_snapshot *snap, const struct mb_collection *coll)
{
    struct mb_slice model = {0};
    anchor_state state;

    if (anchor_state_of(
            c->d->reader, snap, coll, c->arena, &state, &model, NULL) != MB_OK)
        state = ANCHOR_DORMANT;
    mb_write_kv_str(&c->w, "model", model);
    mb_write_kv_bool(&c->w, "dormant", state == ANCHOR_DORMANT);
}

static void
write_dense(
    struct call *c, struct mb_snapshot *snap, const struct mb_collection *coll)
{
    bool is_anchor = coll->settings.embedding == MB_EMBED_ANCHOR;
    struct mb_generation_info info = {0};
    struct mb_writer *w = &c->w;

    if (coll->generation != 0 && mb_generation_info_get(snap, coll,
                                     coll->generation, &info, NULL) != MB_OK)
        info = (struct mb_generation_info){0};
    mb_write_cstr(w, "dense");
    mb_write_map(w, is_anchor ? 11 : 9);
    mb_write_kv_uint(w, "generation", coll->generation);
    mb_write_kv_uint(w, "building", coll->building);
    mb_write_kv_uint(w, "dim", coll->dim);
    mb_write_kv_uint(w, "vectors", coll->n_vectors);
    mb_write_kv_uint(w, "fitted_segments", coll->fitted_segments);
    mb_write_kv_uint(w, "leaves", info.n_leaves);
    mb_write_kv_uint(w, "depth", info.depth);
    mb_write_kv_uint(w, "nprobe", info.probing.nprobe);
    mb_write_kv_f64(w, "recall", info.probing.recall);
    if (is_anchor)
        write_owner(c, snap, coll);
}

static void
write_collection(
    struct call *c, struct mb_snapshot *snap, const struct mb_collection *coll)
{
    struct mb_writer *w = &c->w;

    mb_write_map(w, 10);
    mb_write_kv_cstr(w, "name", coll->name);
    write_settings(w, snap, coll);
    mb_write_kv_uint(w, "created_ms", coll->created_ms);
    mb_write_kv_uint(w, "documents", coll->n_documents);
    mb_write_kv_uint(w, "segments", coll->n_segments);
    mb_write_kv_uint(w, "tokens", coll->n_tokens);
    mb_write_kv_uint(w, "text_bytes", coll->text_bytes);
    mb_write_kv_uint(w, "terms", coll->n_terms);
    mb_write_kv_uint(w, "pending", jobs_pending(daemon_config(c->d), coll));
    write_dense(c, snap, coll);
}

/* The collection that args[key] names alone, or all. */
static mb_status
read_collections(struct call *c, const char *key, struct mb_snapshot *snap,
    struct mb_collection **list, size_t *n)
{
    struct mb_slice name = {0};
    mb_status st = mb_arg_str(c->args, key, false, &name, &c->err);

    if (st != MB_OK)
        return st;
    if (mb_value_get(c->args, key) == NULL)
        return mb_collection_list(snap, c->arena, list, n, &c->err);
    *list = mb_arena_alloc(c->arena, sizeof **list);
    if (*list == NULL)
        return mb_error_set(&c->err, MB_ERR_NOMEM, "collection");
    *n = 1;
    return mb_collection_get(snap, name, *list, &c->err);
}

static void
write_collections(struct call *c, struct mb_snapshot *snap,
    const struct mb_collection *list, size_t n)
{
    mb_write_cstr(&c->w, "collections");
    mb_write_array(&c->w, n);
    for (size_t i = 0; i < n; i++) {
        write_collection(c, snap, &list[i]);
    }
}

COMMAND_HANDLER(cmd_collections)
{
    struct mb_snapshot *snap = NULL;
    struct mb_collection *list;
    size_t n;
    mb_status st = mb_snapshot_begin(c->d->store, &snap, &c->err);

    (void)w;
    (void)later;
    if (st == MB_OK)
        st = read_collections(c, "name", snap, &list, &n);
    if (st == MB_OK) {
        mb_write_map(&c->w, 1);
        write_collections(c, snap, list, n);
    }
    mb_snapshot_end(snap);
    return st;
}

/* ---- stats ---- */

struct numbers {
    struct mb_store_stats store;
    struct server_stats server;
    struct mb_engine_stats model;
    struct contexts_stats contexts;
    uint64_t jobs_active;
    uint64_t jobs_failed;
    uint64_t embedding_bytes;
    uint64_t n_embeddings;
    uint64_t rss_bytes;
    uint64_t n_quick;
    uint64_t n_bulk;
    uint64_t uptime_s;
};

/* One figure: where it stands in the reply, its name in Prometheus. */
struct gauge {
    const char *group; /* map in the reply */
    const char *key;
    const char *metric; /* behind membank_ */
    bool counter;
    size_t offset;
    bool is_u32;
    const char *help;
};

#define N(field) offsetof(struct numbers, field)

/* clang-format off */
static const struct gauge gauges[] = {
    {"store", "file_bytes", "store_file_bytes", false, N(store.file_bytes),
        false, "Size of the store's file."},
    {"store", "used_bytes", "store_used_bytes", false, N(store.used_bytes),
        false, "Bytes of pages in use."},
    {"store", "free_bytes", "store_free_bytes", false, N(store.free_bytes),
        false, "Bytes of pages that will be used again."},
    {"store", "map_bytes", "store_map_bytes", false, N(store.map_bytes),
        false, "Address space of the store."},
    {"store", "commits", "store_commits_total", true, N(store.n_commits),
        false, "Commits since the start."},
    {"store", "ops", "store_operations_total", true, N(store.n_ops), false,
        "Write operations since the start."},
    {"store", "last_commit_us", "store_last_commit_us", false,
        N(store.last_commit_us), false, "Duration of the last commit."},
    {"store", "queued_ops", "store_queued_operations", false,
        N(store.queued_ops), false, "Operations that wait for the writer."},
    {"store", "readers", "store_readers", false, N(store.n_readers), true,
        "Open snapshots, of other processes too."},
    {"store", "oldest_reader_lag", "store_oldest_reader_lag", false,
        N(store.oldest_reader_lag), false,
        "Commits since the oldest snapshot began; it keeps pages from use."},
    {"store", "last_txn", "store_transaction", true, N(store.last_txn), false,
        "Number of the last transaction."},
    {"server", "requests", "requests_total", true, N(server.n_requests),
        false, "Requests received."},
    {"server", "replies", "replies_total", true, N(server.n_replies), false,
        "Replies sent."},
    {"server", "refused", "requests_refused_total", true,
        N(server.n_refused), false, "Busy, too large, or badly framed."},
    {"server", "dropped", "messages_dropped_total", true,
        N(server.n_dropped), false, "Client gone, or not reading."},
    {"server", "bytes_in", "received_bytes_total", true, N(server.bytes_in),
        false, "Bytes of requests."},
    {"server", "bytes_out", "sent_bytes_total", true, N(server.bytes_out),
        false, "Bytes of replies."},
    {"server", "in_flight", "requests_in_flight", false,
        N(server.n_in_flight), false, "Requests not answered yet."},
    {"server", "pending_bytes", "requests_pending_bytes", false,
        N(server.pending_bytes), false, "Bytes of requests in flight."},
    {"server", "clients", "clients_active", false, N(server.n_clients),
        false, "Clients with something in flight or unread."},
    {"server", "quick_queue", "queue_quick", false, N(n_quick), false,
        "Reads that wait for a worker."},
    {"server", "bulk_queue", "queue_bulk", false, N(n_bulk), false,
        "Puts that wait for a worker."},
    {"process", "rss_bytes", "process_resident_bytes", false, N(rss_bytes),
        false, "Resident memory, maps aside."},
    {"process", "embedding_bytes", "embedding_bytes", false,
        N(embedding_bytes), false, "Memory of loaded embeddings."},
    {"process", "embeddings", "embeddings", false, N(n_embeddings), false,
        "Loaded embeddings."},
    {"process", "uptime_s", "uptime_seconds", false, N(uptime_s), false,
        "Time since the start."},
    {"engine", "requests", "model_requests_total", true, N(model.n_requests),
        false, "Requests to the model."},
    {"engine", "done", "model_requests_done_total", true, N(model.n_done),
        false, "Of these, done."},
    {"engine", "cancelled", "model_requests_cancelled_total", true,
        N(model.n_cancelled), false, "Of these, cancelled or late."},
    {"engine", "running", "model_requests_running", false, N(model.n_running),
        false, "Requests that the model works on."},
    {"engine", "queued", "model_requests_queued", false, N(model.n_queued),
        false, "Requests that wait for the model."},
    {"engine", "passes", "model_passes_total", true, N(model.n_passes), false,
        "Passes through the model."},
    {"engine", "tokens_in", "model_tokens_in_total", true, N(model.rows_in),
        false, "Tokens read."},
    {"engine", "tokens_out", "model_tokens_out_total", true, N(model.rows_out),
        false, "Tokens generated."},
    {"engine", "busy_us", "model_busy_us_total", true, N(model.busy_us), false,
        "Time spent in passes."},
    {"engine", "longest_wait_us", "model_longest_wait_us", false,
        N(model.longest_wait_us), false,
        "Longest time from a request to its first pass."},
    {"engine", "cache_bytes", "model_cache_bytes", false, N(model.cache_bytes),
        false, "Memory of keys and values, taken so far."},
    {"engine", "cache_max_bytes", "model_cache_max_bytes", false,
        N(model.cache_max_bytes), false, "The same at most."},
    {"engine", "cache_used_blocks", "model_cache_used_blocks", false,
        N(model.cache_used_blocks), false, "Blocks of 64 rows in use."},
    {"engine", "cache_max_blocks", "model_cache_max_blocks", false,
        N(model.cache_max_blocks), false, "Blocks that there may be."},
    {"engine", "pass_bytes", "model_pass_bytes", false, N(model.pass_bytes),
        false, "Memory of buffers for passes."},
    {"contexts", "open", "contexts_open", false, N(contexts.n_open), false,
        "Long contexts in memory."},
    {"contexts", "bytes", "contexts_bytes", false, N(contexts.bytes), false,
        "Memory of their windows and tables of landmarks."},
    {"contexts", "max_bytes", "contexts_max_bytes", false,
        N(contexts.max_bytes), false, "The same at most (context_memory)."},
    {"contexts", "opened", "contexts_opened_total", true,
        N(contexts.n_opened), false, "Read from the store since the start."},
    {"contexts", "evicted", "contexts_evicted_total", true,
        N(contexts.n_closed), false, "Closed to make room."},
    {"jobs", "active", "jobs_active", false, N(jobs_active), false,
        "Jobs that run or wait."},
    {"jobs", "failed", "jobs_failed_total", true, N(jobs_failed), false,
        "Jobs that failed since the start."},
};
/* clang-format on */

#define N_GAUGES (sizeof gauges / sizeof gauges[0])

static uint64_t
gauge_value(const struct numbers *x, const struct gauge *g)
{
    const uint8_t *at = (const uint8_t *)x + g->offset;

    return g->is_u32 ? *(const uint32_t *)(const void *)at
                     : *(const uint64_t *)(const void *)at;
}

static mb_status
gather(struct call *c, struct numbers *x)
{
    struct daemon *d = c->d;
    size_t n_quick;
    size_t n_bulk;
    mb_status st = mb_store_stats(d->store, &x->store, &c->err);

    if (st != MB_OK)
        return st;
    server_stats(d->server, &x->server);
    if (reader_absence(d->reader) == NULL)
        mb_engine_stats(reader_engine(d->reader), &x->model);
    contexts_stats(d->contexts, &x->contexts);
    jobs_counts(d->jobs, &x->jobs_active, &x->jobs_failed);
    embedder_stats(d->embedder, &x->embedding_bytes, &x->n_embeddings);
    dispatch_depth(d->dispatch, &n_quick, &n_bulk);
    x->n_quick = n_quick;
    x->n_bulk = n_bulk;
    x->rss_bytes = mb_process_rss_bytes();
    x->uptime_s = (uint64_t)uptime_s(d);
    return MB_OK;
}

static void
write_gauges(struct mb_writer *w, const struct numbers *x)
{
    for (size_t i = 0; i < N_GAUGES;) {
        const char *group = gauges[i].group;
        size_t n = 0;

        while (i + n < N_GAUGES && strcmp(gauges[i + n].group, group) == 0) {
            n++;
        }
        mb_write_cstr(w, group);
        mb_write_map(w, n);
        for (size_t end = i + n; i < end; i++) {
            mb_write_kv_uint(w, gauges[i].key, gauge_value(x, &gauges[i]));
        }
    }
}

/* "reader": what the model file is, or why it is of no use. */
static void
write_reader(struct mb_writer *w, const struct reader *r)
{
    const char *absence = reader_absence(r);
    const struct mb_decoder_info *info;

    mb_write_cstr(w, "reader");
    mb_write_map(w, absence != NULL ? 3 : 11);
    mb_write_kv_cstr(w, "file", reader_file(r));
    mb_write_kv_bool(w, "usable", absence == NULL);
    if (absence != NULL) {
        mb_write_kv_cstr(w, "cause", absence);
        return;
    }
    info = reader_info(r);
    mb_write_kv_cstr(w, "arch", info->arch);
    mb_write_kv_cstr(w, "weights", info->weights);
    mb_write_kv_uint(w, "layers", info->n_layers);
    mb_write_kv_uint(w, "width", info->d_model);
    mb_write_kv_uint(w, "vocabulary", info->n_vocab);
    mb_write_kv_uint(w, "trained_window", info->n_ctx);
    mb_write_kv_uint(w, "window", mb_engine_window(reader_engine(r)));
    mb_write_kv_uint(w, "parameters", info->n_params);
    mb_write_kv_uint(w, "weight_bytes", info->weight_bytes);
}

static size_t
n_groups(void)
{
    size_t n = 1;

    for (size_t i = 1; i < N_GAUGES; i++) {
        n += strcmp(gauges[i].group, gauges[i - 1].group) != 0 ? 1 : 0;
    }
    return n;
}

static uint64_t
counter(const atomic_uint_fast64_t *v)
{
    return atomic_load_explicit(v, memory_order_relaxed);
}

static void
write_commands(struct mb_writer *w, const struct stats *s)
{
    size_t n = 0;

    for (size_t i = 0; i < s->n; i++) {
        n += counter(&s->counters[i].n) > 0 ? 1 : 0;
    }
    mb_write_cstr(w, "commands");
    mb_write_map(w, n);
    for (size_t i = 0; i < s->n && n > 0; i++) {
        const struct stats_counter *k = &s->counters[i];
        uint64_t runs = counter(&k->n);

        // One that ran for the first time just now comes with the next reply.
        if (runs == 0)
            continue;
        n--;
        mb_write_cstr(w, commands[i].name);
        mb_write_map(w, 6);
        mb_write_kv_uint(w, "n", runs);
        mb_write_kv_uint(w, "errors", counter(&k->n_errors));
        mb_write_kv_f64(
            w, "mean_us", (double)counter(&k->sum_us) / (double)runs);
        mb_write_kv_f64(w, "p50_us", stats_quantile_us(k, 0.5));
        mb_write_kv_f64(w, "p99_us", stats_quantile_us(k, 0.99));
        mb_write_kv_uint(w, "max_us", counter(&k->max_us));
    }
}

static void
write_tables(struct mb_writer *w, struct mb_snapshot *snap)
{
    const char *name;
    uint64_t rows;
    uint64_t bytes;
    size_t n = 0;

    while (mb_store_table_stats(snap, n, &name, &rows, &bytes)) {
        n++;
    }
    mb_write_cstr(w, "tables");
    mb_write_map(w, n);
    for (size_t i = 0; i < n; i++) {
        (void)mb_store_table_stats(snap, i, &name, &rows, &bytes);
        mb_write_cstr(w, name);
        mb_write_map(w, 2);
        mb_write_kv_uint(w, "rows", rows);
        mb_write_kv_uint(w, "bytes", bytes);
    }
}

/* ---- Prometheus ---- */

/* A label's value, as the text format wants it. */
static mb_status
label(struct mb_buffer *out, const char *s)
{
    mb_status st = MB_OK;

    for (; *s != 0 && st == MB_OK; s++) {
        if (*s == '\n')
            st = mb_buffer_append_str(out, "\\n");
        else if (*s == '"' || *s == '\\')
            st = mb_buffer_printf(out, "\\%c", *s);
        else
            st = mb_buffer_append(out, s, 1);
    }
    return st;
}

static mb_status
head(struct mb_buffer *out, const char *metric, bool is_counter,
    const char *help)
{
    return mb_buffer_printf(out, "# HELP membank_%s %s\n# TYPE membank_%s %s\n",
        metric, help, metric, is_counter ? "counter" : "gauge");
}

static mb_status
print_commands(struct mb_buffer *out, const struct stats *s)
{
    mb_status st = head(out, "command_us_total", true,
        "Time from arrival to reply, summed, by command.");

    for (size_t i = 0; i < s->n && st == MB_OK; i++) {
        if (counter(&s->counters[i].n) > 0)
            st = mb_buffer_printf(out,
                "membank_command_us_total{command=\"%s\"} %llu\n",
                commands[i].name,
                (unsigned long long)counter(&s->counters[i].sum_us));
    }
    if (st == MB_OK)
        st = head(out, "command_total", true, "Requests by command.");
    for (size_t i = 0; i < s->n && st == MB_OK; i++) {
        if (counter(&s->counters[i].n) > 0)
            st = mb_buffer_printf(out,
                "membank_command_total{command=\"%s\"} %llu\n",
                commands[i].name,
                (unsigned long long)counter(&s->counters[i].n));
    }
    return st;
}

static mb_status
print_collections(struct mb_buffer *out, const struct config *cfg,
    const struct mb_collection *list, size_t n)
{
    static const char *const metrics[] = {
        "documents", "segments", "vectors", "pending_segments"};
    mb_status st = MB_OK;

    for (size_t m = 0; m < 4 && st == MB_OK; m++) {
        st = head(out, metrics[m], false, "By collection.");
        for (size_t i = 0; i < n && st == MB_OK; i++) {
            const uint64_t values[] = {list[i].n_documents, list[i].n_segments,
                list[i].n_vectors, jobs_pending(cfg, &list[i])};

            st = mb_buffer_printf(out, "membank_%s{collection=\"", metrics[m]);
            if (st == MB_OK)
                st = label(out, list[i].name);
            if (st == MB_OK)
                st = mb_buffer_printf(
                    out, "\"} %llu\n", (unsigned long long)values[m]);
        }
    }
    return st;
}

static mb_status
write_prometheus(struct call *c, const struct numbers *x,
    const struct mb_collection *list, size_t n)
{
    struct mb_buffer out;
    mb_status st = MB_OK;

    mb_buffer_init(&out, MAX_TEXT);
    for (size_t i = 0; i < N_GAUGES && st == MB_OK; i++) {
        const struct gauge *g = &gauges[i];

        st = head(&out, g->metric, g->counter, g->help);
        if (st == MB_OK)
            st = mb_buffer_printf(&out, "membank_%s %llu\n", g->metric,
                (unsigned long long)gauge_value(x, g));
    }
    if (st == MB_OK)
        st = print_commands(&out, c->d->stats);
    if (st == MB_OK)
        st = print_collections(&out, daemon_config(c->d), list, n);
    if (st == MB_OK) {
        mb_write_map(&c->w, 1);
        mb_write_kv_str(&c->w, "text", mb_buffer_slice(&out));
    } else {
        (void)mb_error_set(&c->err, st, "text of %zu bytes", out.size);
    }
    mb_buffer_fini(&out);
    return st;
}

static mb_status
stats(struct call *c, struct mb_snapshot *snap)
{
    struct mb_slice format = {0};
    struct mb_collection *list;
    struct numbers x = {0};
    bool prometheus;
    size_t n;
    mb_status st = mb_arg_str(c->args, "format", false, &format, &c->err);

    prometheus = mb_slice_equal(format, mb_slice_cstr("prometheus"));
    if (st == MB_OK && !prometheus && mb_value_get(c->args, "format") != NULL)
        st = mb_error_set(
            &c->err, MB_ERR_BAD_ARG, "format: only prometheus is known");
    if (st == MB_OK)
        st = read_collections(c, "collection", snap, &list, &n);
    if (st == MB_OK)
        st = gather(c, &x);
    if (st != MB_OK)
        return st;
    if (prometheus)
        return write_prometheus(c, &x, list, n);
    mb_write_map(&c->w, 7 + n_groups());
    mb_write_kv_cstr(&c->w, "version", MB_VERSION);
    mb_write_kv_cstr(&c->w, "model", reader_name(c->d->reader));
    write_reader(&c->w, c->d->reader);
    mb_write_kv_bool(&c->w, "scrub_pending", x.store.scrub_pending);
    write_gauges(&c->w, &x);
    write_commands(&c->w, c->d->stats);
    write_tables(&c->w, snap);
    write_collections(c, snap, list, n);
    return MB_OK;
}

COMMAND_HANDLER(cmd_stats)
{
    struct mb_snapshot *snap = NULL;
    mb_status st = mb_snapshot_begin(c->d->store, &snap, &c->err);

    (void)w;
    (void)later;
    if (st == MB_OK)
        st = stats(c, snap);
    mb_snapshot_end(snap);
    return st;
}

/* ---- jobs ---- */

COMMAND_HANDLER(cmd_jobs)
{
    (void)w;
    (void)later;
    mb_write_map(&c->w, 1);
    mb_write_cstr(&c->w, "jobs");
    jobs_write(c->d->jobs, &c->w);
    return MB_OK;
}

/* Queue a task; the reply comes at its end, or at once with its number. */
static mb_status
submit_task(struct call *c, job_kind kind, const char *path, bool *later)
{
    uint64_t id;
    bool wait;
    mb_status st = mb_arg_bool(c->args, "wait", true, &wait, &c->err);

    if (st != MB_OK)
        return st;
    *later = wait;
    // With wait the call may be gone as soon as it is queued.
    struct mb_error err = {0};
    st = jobs_submit(c->d->jobs, kind, path, wait ? c : NULL, &id, &err);
    if (st != MB_OK) {
        *later = false;
        c->err = err;
        return st;
    }
    if (wait)
        return MB_OK;
    mb_write_map(&c->w, 1);
    mb_write_kv_uint(&c->w, "job", id);
    return MB_OK;
}

/* A folder name without tricks: no slash, no dots at its start, no NUL. */
static bool
is_plain_name(struct mb_slice s)
{
    return s.size > 0 && s.data[0] != '.' &&
           memchr(s.data, '/', s.size) == NULL &&
           memchr(s.data, 0, s.size) == NULL;
}

COMMAND_HANDLER(cmd_snapshot)
{
    const struct config *cfg = daemon_config(c->d);
    char path[CONFIG_MAX_TEXT];
    struct mb_slice to;
    mb_status st = mb_arg_str(c->args, "to", true, &to, &c->err);
    int n;

    (void)w;
    if (st != MB_OK)
        return st;
    if (is_plain_name(to) && cfg->snapshot_dir[0] != 0)
        n = snprintf(path, sizeof path, "%s/%.*s", cfg->snapshot_dir,
            (int)to.size, (const char *)to.data);
    else if (is_plain_name(to))
        n = snprintf(path, sizeof path, "%s.snapshots/%.*s", cfg->store,
            (int)to.size, (const char *)to.data);
    else if (cfg->snapshot_anywhere && to.size > 0 && to.data[0] == '/' &&
             memchr(to.data, 0, to.size) == NULL)
        n = snprintf(
            path, sizeof path, "%.*s", (int)to.size, (const char *)to.data);
    else
        return mb_error_set(&c->err, MB_ERR_DENIED,
            "to is not a plain name; paths need snapshot_anywhere");
    if (n < 0 || (size_t)n >= sizeof path)
        return mb_error_set(&c->err, MB_ERR_TOO_LARGE, "to is too long");
    return submit_task(c, JOB_SNAPSHOT, path, later);
}

COMMAND_HANDLER(cmd_verify)
{
    (void)w;
    return submit_task(c, JOB_VERIFY, NULL, later);
}

COMMAND_HANDLER(cmd_rebuild)
{
    struct mb_snapshot *snap = NULL;
    struct mb_collection coll;
    mb_status st = call_snapshot(c, &snap, &coll);

    (void)w;
    (void)later;
    mb_snapshot_end(snap);
    if (st == MB_OK && coll.settings.embedding == MB_EMBED_NONE)
        st = mb_error_set(&c->err, MB_ERR_MISMATCH,
            "collection %s has no embedding", coll.name);
    if (st != MB_OK)
        return st;
    jobs_want_refit(c->d->jobs, coll.id);
    mb_write_map(&c->w, 1);
    mb_write_kv_bool(&c->w, "queued", true);
    return MB_OK;
}
