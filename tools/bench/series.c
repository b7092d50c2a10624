/* SPDX-License-Identifier: Apache-2.0
 * tools/bench/series.c - time calls, one after another or from many clients.
 * Threads: as bench.h says. */
#include "bench.h"

#include <math.h>
#include <string.h>

#include "times.h"

mb_status
series_add(struct series *s, uint64_t ns)
{
    if (s->n == s->capacity) {
        size_t more = s->capacity == 0 ? 1024 : s->capacity * 2;
        uint64_t *to = mb_realloc(s->ns, more * sizeof *to);

        if (to == NULL)
            return MB_ERR_NOMEM;
        s->ns = to;
        s->capacity = more;
    }
    s->ns[s->n++] = ns;
    return MB_OK;
}

mb_status
series_join(struct series *s, const struct series *other)
{
    mb_status st = MB_OK;

    for (size_t i = 0; i < other->n && st == MB_OK; i++) {
        st = series_add(s, other->ns[i]);
    }
    return st;
}

void
series_fini(struct series *s)
{
    mb_free(s->ns);
    *s = (struct series){0};
}

double
series_ms(const struct series *s, double q)
{
    size_t at;

    if (s->n == 0)
        return (double)NAN;
    at = (size_t)(q * (double)s->n);
    return (double)s->ns[at < s->n ? at : s->n - 1] / 1e6;
}

/* "met", or which limit is not; "" without limits. */
static const char *
verdict(const struct series *s, const struct row *row)
{
    if (row->limit_p50 <= 0 && row->limit_p99 <= 0)
        return "";
    if (row->limit_p50 > 0 && series_ms(s, 0.5) > row->limit_p50)
        return "p50 over";
    if (row->limit_p99 > 0 && series_ms(s, 0.99) > row->limit_p99)
        return "p99 over";
    return "met";
}

static void
json_row(struct bench *b, const struct series *s, const struct row *row,
    double per_s)
{
    struct json_writer w;

    json_writer_init(&w, &b->rows);
    w.comma = b->rows.size > 0;
    json_object_begin(&w);
    json_kv_cstr(&w, "name", row->name);
    json_kv_u64(&w, "calls", s->n);
    json_kv_f64(&w, "p50_ms", series_ms(s, 0.5));
    json_kv_f64(&w, "p90_ms", series_ms(s, 0.9));
    json_kv_f64(&w, "p99_ms", series_ms(s, 0.99));
    json_kv_f64(&w, "max_ms", series_ms(s, 1));
    json_kv_f64(&w, "per_s", per_s);
    json_key(&w, "recall");
    json_f64(&w, row->recall);
    if (row->bytes > 0)
        json_kv_f64(&w, "mb_per_s", (double)row->bytes / 1e6 / s->wall_s);
    if (row->limit_p50 > 0)
        json_kv_f64(&w, "limit_p50_ms", row->limit_p50);
    if (row->limit_p99 > 0)
        json_kv_f64(&w, "limit_p99_ms", row->limit_p99);
    if (verdict(s, row)[0] != 0)
        json_kv_bool(&w, "met", strcmp(verdict(s, row), "met") == 0);
    json_object_end(&w);
}

mb_status
bench_row(struct bench *b, struct series *s, const struct row *row,
    struct mb_error *err)
{
    uint64_t items = row->items > 0 ? row->items : s->n;
    double per_s = s->wall_s > 0 ? (double)items / s->wall_s : 0;
    char limit[64] = "";

    if (s->n == 0)
        return mb_error_set(err, MB_ERR_INTERNAL, "%s: no call", row->name);
    times_sort(s->ns, s->n);
    json_row(b, s, row, per_s);
    if (row->limit_p50 > 0 && row->limit_p99 > 0)
        (void)snprintf(limit, sizeof limit, "p50 %.3g, p99 %.3g: %s",
            row->limit_p50, row->limit_p99, verdict(s, row));
    else if (row->limit_p50 > 0)
        (void)snprintf(limit, sizeof limit, "p50 %.3f: %s", row->limit_p50,
            verdict(s, row));
    table_cell(b->table, "%s", row->name);
    table_cell_count(b->table, s->n);
    table_cell(b->table, "%.3f", series_ms(s, 0.5));
    table_cell(b->table, "%.3f", series_ms(s, 0.9));
    table_cell(b->table, "%.3f", series_ms(s, 0.99));
    table_cell(b->table, "%.3f", series_ms(s, 1));
    table_cell_count(b->table, (uint64_t)per_s);
    if (isnan(row->recall))
        table_cell(b->table, "%s", "");
    else
        table_cell(b->table, "%.3f", row->recall);
    if (row->bytes > 0)
        table_cell(b->table, "%.2f MB/s", (double)row->bytes / 1e6 / s->wall_s);
    else
        table_cell(b->table, "%s", limit);
    return MB_OK;
}

mb_status
bench_call(struct membank *client, const char *op, const struct mb_buffer *args,
    uint64_t *ns, struct membank_reply **reply, struct mb_error *err)
{
    struct membank_reply *got = NULL;
    struct membank_error cause;
    uint64_t start = mb_clock_ns();
    membank_status ms =
        membank_call(client, op, tool_bytes(args), &got, &cause);

    *ns = mb_clock_ns() - start;
    if (ms != MEMBANK_OK)
        return tool_error(&cause, err);
    if (reply != NULL)
        *reply = got;
    else
        membank_reply_free(got);
    return MB_OK;
}

/* ---- many clients ---- */

struct caller {
    struct bench *b;
    const char *op;
    bench_pack_fn pack;
    void *arg;
    uint64_t number;
    uint64_t end_ns;
    struct series series;
    struct mb_thread *thread;
    mb_status status;
    struct mb_error err;
};

static void
call_on(void *arg)
{
    struct caller *c = arg;
    struct membank *client = NULL;
    struct mb_buffer args;
    mb_status st = tool_connect(c->b->cli, &client, &c->err);

    mb_buffer_init(&args, SIZE_MAX / 2);
    for (uint64_t i = 0; st == MB_OK && mb_clock_ns() < c->end_ns; i++) {
        uint64_t ns;

        mb_buffer_clear(&args);
        st = c->pack(c->arg, c->number, i, &args);
        if (st == MB_OK)
            st = bench_call(client, c->op, &args, &ns, NULL, &c->err);
        if (st == MB_OK)
            st = series_add(&c->series, ns);
    }
    c->status = st;
    mb_buffer_fini(&args);
    membank_close(client);
}

mb_status
bench_clients(struct bench *b, const char *op, bench_pack_fn pack, void *arg,
    struct series *out, struct mb_error *err)
{
    struct caller *callers = mb_calloc(b->clients, sizeof *callers);
    uint64_t start = mb_clock_ns();
    uint64_t n = 0;
    mb_status st = callers != NULL ? MB_OK : MB_ERR_NOMEM;

    for (; n < b->clients && st == MB_OK; n++) {
        struct caller *c = &callers[n];

        *c = (struct caller){.b = b,
            .op = op,
            .pack = pack,
            .arg = arg,
            .number = n,
            .end_ns = start + (uint64_t)(b->seconds * 1e9)};
        st = mb_thread_start(&c->thread, "mb-client", call_on, c);
    }
    for (uint64_t i = 0; i < n; i++) {
        mb_thread_join(callers[i].thread);
        if (st == MB_OK && callers[i].status != MB_OK)
            st =
                mb_error_set(err, callers[i].status, "%s", callers[i].err.text);
        if (st == MB_OK)
            st = series_join(out, &callers[i].series);
        series_fini(&callers[i].series);
    }
    out->wall_s = (double)(mb_clock_ns() - start) / 1e9;
    mb_free(callers);
    return st;
}
