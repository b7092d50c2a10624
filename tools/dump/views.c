/* SPDX-License-Identifier: Apache-2.0
 * tools/dump/views.c - the views that list or show one thing each.
 *
 * Every view exists twice, for people and as JSON; JSON lists are one object a
 * line, so that any size can be read as a stream.
 * Threads: the main thread. */
#include "dump.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "display.h"
#include "progress.h"
#include "tool.h"

#define PAGE_DOCUMENTS 1000u /* read at once */
#define SHOWN_TERMS    24u

const char *
embedding_name(mb_embedding_kind kind)
{
    static const char *const names[] = {"none", "lsa", "client", "anchor"};

    return (size_t)kind < 4 ? names[kind] : "?";
}

mb_status
dump_flush_json(struct dump *d, struct mb_error *err)
{
    mb_status st = d->w.status;

    if (st != MB_OK)
        return mb_error_set(err, st, "JSON output");
    tool_put_line(&d->buf);
    mb_buffer_clear(&d->buf);
    json_writer_init(&d->w, &d->buf);
    return MB_OK;
}

/* ---- collections ---- */

static void
json_collection(struct json_writer *w, const struct mb_collection *c)
{
    json_object_begin(w);
    json_kv_cstr(w, "name", c->name);
    json_kv_cstr(w, "language", c->settings.language);
    json_kv_cstr(w, "embedding", embedding_name(c->settings.embedding));
    json_kv_u64(w, "dim", c->dim != 0 ? c->dim : c->settings.dim);
    json_kv_u64(w, "documents", c->n_documents);
    json_kv_u64(w, "segments", c->n_segments);
    json_kv_u64(w, "tokens", c->n_tokens);
    json_kv_u64(w, "text_bytes", c->text_bytes);
    json_kv_u64(w, "terms", c->n_terms);
    json_kv_u64(w, "vectors", c->n_vectors);
    json_kv_u64(w, "generation", c->generation);
    json_kv_u64(w, "building", c->building);
    json_kv_u64(w, "fitted_segments", c->fitted_segments);
    json_kv_u64(w, "created_ms", c->created_ms);
    json_object_end(w);
}

mb_status
view_collections(struct dump *d, const char *arg, struct mb_error *err)
{
    static const char *const heads[] = {"collection", "embedding", "language",
        "documents", "segments", "tokens", "text", "vectors", "created (UTC)"};
    struct table *t;
    char time[DISPLAY_FIGURE];
    mb_status st = MB_OK;

    (void)arg;
    if (d->json) {
        for (size_t i = 0; i < d->n_colls && st == MB_OK; i++) {
            json_collection(&d->w, &d->colls[i]);
            st = dump_flush_json(d, err);
        }
        return st;
    }
    t = table_new(9, heads, "lllrrrrrl");
    if (t == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "table");
    for (size_t i = 0; i < d->n_colls; i++) {
        const struct mb_collection *c = &d->colls[i];

        table_cell(t, "%s", c->name);
        table_cell(t, "%s %u", embedding_name(c->settings.embedding),
            c->dim != 0 ? c->dim : c->settings.dim);
        table_cell(t, "%s", c->settings.language);
        table_cell_count(t, c->n_documents);
        table_cell_count(t, c->n_segments);
        table_cell_count(t, c->n_tokens);
        table_cell_bytes(t, c->text_bytes);
        table_cell_count(t, c->n_vectors);
        table_cell(t, "%s", show_time(time, c->created_ms));
    }
    if (d->n_colls == 0)
        (void)printf("no collection yet\n");
    else
        table_print(t, stdout, 0);
    table_free(t);
    return MB_OK;
}

/* ---- documents ---- */

static void
json_document_fields(struct json_writer *w, const struct mb_document *doc)
{
    json_kv_str(w, "id", doc->id);
    json_kv_str(w, "title", doc->title);
    json_key(w, "meta");
    json_msgpack(w, doc->meta);
    json_kv_u64(w, "segments", doc->n_segments);
    json_kv_u64(w, "first_segment", doc->first_segment);
    json_kv_u64(w, "tokens", doc->n_tokens);
    json_kv_u64(w, "text_bytes", doc->text_bytes);
    json_kv_u64(w, "added_ms", doc->added_ms);
}

static mb_status
list_documents(struct dump *d, const struct mb_collection *coll, uint64_t limit,
    struct table *t, uint64_t *n_shown, struct mb_error *err)
{
    struct mb_buffer after;
    mb_status st = MB_OK;

    mb_buffer_init(&after, MB_MAX_DOCUMENT_ID);
    while (st == MB_OK && *n_shown < limit) {
        uint64_t left = limit - *n_shown;
        struct mb_document *docs = NULL;
        size_t n = 0;

        mb_arena_reset(d->arena);
        st = mb_document_list(d->snap, coll, mb_buffer_slice(&after), NULL,
            left < PAGE_DOCUMENTS ? (size_t)left : PAGE_DOCUMENTS, d->arena,
            &docs, &n, err);
        for (size_t i = 0; i < n && st == MB_OK; i++) {
            if (d->json) {
                json_object_begin(&d->w);
                json_document_fields(&d->w, &docs[i]);
                json_object_end(&d->w);
                st = dump_flush_json(d, err);
                continue;
            }
            table_cell_slice(t, docs[i].id);
            table_cell_count(t, docs[i].n_segments);
            table_cell_count(t, docs[i].n_tokens);
            table_cell_bytes(t, docs[i].text_bytes);
            table_cell_slice(t, docs[i].title);
        }
        *n_shown += n;
        if (st != MB_OK || n == 0)
            break;
        mb_buffer_clear(&after);
        st = mb_buffer_append(&after, docs[n - 1].id.data, docs[n - 1].id.size);
    }
    mb_buffer_fini(&after);
    return st;
}

mb_status
view_documents(struct dump *d, const char *arg, struct mb_error *err)
{
    static const char *const heads[] = {
        "id", "segments", "tokens", "text", "title"};
    const struct mb_collection *coll;
    struct table *t = NULL;
    uint64_t limit = 0;
    uint64_t n = 0;
    mb_status st = mb_cli_u64(d->cli, "limit", 0, UINT64_MAX, &limit, err);

    (void)arg;
    if (st == MB_OK)
        st = dump_collection(d, &coll, err);
    if (st != MB_OK)
        return st;
    if (limit == 0)
        limit = UINT64_MAX;
    if (!d->json) {
        t = table_new(5, heads, "lrrrl");
        if (t == NULL)
            return mb_error_set(err, MB_ERR_NOMEM, "table");
    }
    st = list_documents(d, coll, limit, t, &n, err);
    if (st == MB_OK && t != NULL) {
        table_print(t, stdout, isatty(STDOUT_FILENO) == 1 ? d->width : 0);
        if (n < coll->n_documents)
            (void)printf("%llu of %llu documents; --limit 0 shows all\n",
                (unsigned long long)n, (unsigned long long)coll->n_documents);
    }
    table_free(t);
    return st;
}

static mb_status
segments_of(struct dump *d, const struct mb_collection *coll,
    const struct mb_document *doc, struct mb_error *err)
{
    static const char *const heads[] = {"segment", "bytes", "tokens", "text"};
    struct table *t = d->json ? NULL : table_new(4, heads, "rrrl");
    mb_status st = MB_OK;

    for (uint32_t i = 0; i < doc->n_segments && st == MB_OK; i++) {
        struct mb_slice text = {0};
        struct mb_segment s;

        st = mb_segment_get(d->snap, coll, doc->first_segment + i, &s, err);
        if (st == MB_OK && t != NULL)
            st = mb_document_text(
                d->snap, coll, doc, s.start, s.end, d->arena, &text, err);
        if (st != MB_OK)
            break;
        if (t != NULL) {
            table_cell(t, "%u", s.segno);
            table_cell(t, "%u-%u", s.start, s.end);
            table_cell(t, "%u", s.n_tokens);
            table_cell_slice(
                t, mb_slice_of(text.data, text.size < 400 ? text.size : 400));
            continue;
        }
        json_object_begin(&d->w);
        json_kv_u64(&d->w, "segno", s.segno);
        json_kv_u64(&d->w, "start", s.start);
        json_kv_u64(&d->w, "end", s.end);
        json_kv_u64(&d->w, "tokens", s.n_tokens);
        json_object_end(&d->w);
    }
    if (st == MB_OK && t != NULL)
        table_print(t, stdout, d->width);
    table_free(t);
    return st;
}

static void
print_meta(struct dump *d, struct mb_slice meta)
{
    json_msgpack(&d->w, meta);
    (void)printf("meta      ");
    display_print(stdout, mb_buffer_slice(&d->buf), 0);
    (void)fputc('\n', stdout);
    mb_buffer_clear(&d->buf);
    json_writer_init(&d->w, &d->buf);
}

static void
print_line(const char *name, struct mb_slice value)
{
    (void)printf("%-9s ", name);
    display_print(stdout, value, 0);
    (void)fputc('\n', stdout);
}

static mb_status
json_document(struct dump *d, const struct mb_collection *coll,
    const struct mb_document *doc, struct mb_slice text, struct mb_error *err)
{
    mb_status st;

    json_object_begin(&d->w);
    json_document_fields(&d->w, doc);
    json_key(&d->w, "spans");
    json_array_begin(&d->w);
    st = segments_of(d, coll, doc, err);
    json_array_end(&d->w);
    json_kv_str(&d->w, "text", text);
    json_object_end(&d->w);
    return st == MB_OK ? dump_flush_json(d, err) : st;
}

mb_status
view_document(struct dump *d, const char *arg, struct mb_error *err)
{
    const struct mb_collection *coll;
    struct mb_document doc;
    struct mb_slice text;
    char time[DISPLAY_FIGURE];
    mb_status st = dump_collection(d, &coll, err);

    if (st == MB_OK)
        st = mb_document_find(d->snap, coll, mb_slice_cstr(arg), &doc, err);
    if (st == MB_OK)
        st = mb_document_text(
            d->snap, coll, &doc, 0, UINT64_MAX, d->arena, &text, err);
    if (st != MB_OK)
        return st;
    if (mb_cli_has(d->cli, "text")) {
        (void)fwrite(text.data, 1, text.size, stdout);
        return MB_OK;
    }
    if (d->json)
        return json_document(d, coll, &doc, text, err);
    print_line("id", doc.id);
    print_line("title", doc.title);
    print_meta(d, doc.meta);
    (void)printf("added     %s UTC\nsize      %llu bytes, %u tokens, %u "
                 "segments\n\n",
        show_time(time, doc.added_ms), (unsigned long long)doc.text_bytes,
        doc.n_tokens, doc.n_segments);
    st = segments_of(d, coll, &doc, err);
    if (st == MB_OK)
        (void)printf("\n--text prints the whole text\n");
    return st;
}

/* ---- segment ---- */

struct segment_term {
    struct mb_slice bytes;
    uint32_t tf;
    uint32_t df;
    double weight;
};

static int
by_weight(const void *a, const void *b)
{
    const struct segment_term *x = a;
    const struct segment_term *y = b;

    return x->weight < y->weight ? 1 : x->weight > y->weight ? -1 : 0;
}

/* Terms of a segment, the most telling first; list in the arena. */
static mb_status
terms_of(struct dump *d, const struct mb_collection *coll,
    const struct mb_segment *s, struct segment_term **out, size_t *n,
    struct mb_error *err)
{
    struct segment_term *list;
    size_t pos = 0;
    size_t count = 0;
    uint32_t id;
    uint32_t tf;

    while (mb_forward_next(s->forward, &pos, &id, &tf)) {
        count++;
    }
    list = mb_arena_calloc(d->arena, count + 1, sizeof *list);
    if (list == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "%zu terms", count);
    *n = 0;
    for (pos = 0; mb_forward_next(s->forward, &pos, &id, &tf);) {
        struct segment_term *t = &list[*n];
        mb_status st = mb_term_get(d->snap, coll, id, &t->bytes, &t->df, err);

        if (st != MB_OK)
            return st;
        t->tf = tf;
        t->weight = log(1 + (double)tf) *
                    log(1 + (double)coll->n_segments / (1 + (double)t->df));
        *n += 1;
    }
    qsort(list, *n, sizeof *list, by_weight);
    *out = list;
    return MB_OK;
}

struct segment_view {
    const struct mb_collection *coll;
    struct mb_segment s;
    struct mb_document doc;
    struct mb_slice text;
    struct segment_term *terms;
    size_t n_terms;
    float *vector; /* NULL: it has none */
};

static mb_status
load_segment(struct dump *d, uint32_t segno, struct segment_view *v,
    struct mb_error *err)
{
    mb_status st = mb_segment_get(d->snap, v->coll, segno, &v->s, err);

    if (st == MB_OK)
        st = mb_document_get(d->snap, v->coll, v->s.docno, &v->doc, err);
    if (st == MB_OK)
        st = mb_document_text(d->snap, v->coll, &v->doc, v->s.start, v->s.end,
            d->arena, &v->text, err);
    if (st == MB_OK)
        st = terms_of(d, v->coll, &v->s, &v->terms, &v->n_terms, err);
    if (st != MB_OK || v->coll->generation == 0)
        return st;
    v->vector = mb_arena_calloc(d->arena, v->coll->dim + 1u, sizeof *v->vector);
    if (v->vector == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "vector");
    st = mb_vector_get(d->snap, v->coll, segno, v->vector, err);
    if (st == MB_ERR_NOT_FOUND) {
        v->vector = NULL;
        st = MB_OK;
    }
    return st;
}

static void
json_segment(struct json_writer *w, const struct segment_view *v)
{
    json_object_begin(w);
    json_kv_u64(w, "segno", v->s.segno);
    json_kv_str(w, "document", v->doc.id);
    json_kv_str(w, "title", v->doc.title);
    json_kv_u64(w, "segment", v->s.ordinal);
    json_kv_u64(w, "start", v->s.start);
    json_kv_u64(w, "end", v->s.end);
    json_kv_u64(w, "tokens", v->s.n_tokens);
    json_kv_u64(w, "length", v->s.length);
    json_key(w, "terms");
    json_array_begin(w);
    for (size_t i = 0; i < v->n_terms; i++) {
        json_object_begin(w);
        json_kv_str(w, "term", v->terms[i].bytes);
        json_kv_u64(w, "tf", v->terms[i].tf);
        json_kv_u64(w, "df", v->terms[i].df);
        json_object_end(w);
    }
    json_array_end(w);
    json_key(w, "vector");
    if (v->vector == NULL) {
        json_null(w);
    } else {
        json_array_begin(w);
        for (uint32_t i = 0; i < v->coll->dim; i++) {
            json_f32(w, v->vector[i]);
        }
        json_array_end(w);
    }
    json_kv_str(w, "text", v->text);
    json_object_end(w);
}

static void
print_segment(struct dump *d, const struct segment_view *v)
{
    struct display_layout layout = {.width = d->width < 100 ? d->width : 100};

    (void)printf(
        "segment   %u, number %u of document ", v->s.segno, v->s.ordinal);
    display_print(stdout, v->doc.id, 0);
    (void)fputc('\n', stdout);
    print_line("title", v->doc.title);
    (void)printf("bytes     %u-%u\ntokens    %u\nterms     %u, %zu distinct: ",
        v->s.start, v->s.end, v->s.n_tokens, v->s.length, v->n_terms);
    for (size_t i = 0; i < v->n_terms && i < SHOWN_TERMS; i++) {
        if (i > 0)
            (void)fputs(", ", stdout);
        display_print(stdout, v->terms[i].bytes, 0);
        (void)printf(" %u/%u", v->terms[i].tf, v->terms[i].df);
    }
    (void)printf("%s (times here/segments with it)\nvector    ",
        v->n_terms > SHOWN_TERMS ? ", ..." : "");
    if (v->vector == NULL) {
        (void)printf("none");
    } else {
        (void)printf("%u dimensions:", v->coll->dim);
        for (uint32_t i = 0; i < v->coll->dim && i < 8; i++) {
            (void)printf(" %.3f", (double)v->vector[i]);
        }
        (void)printf(" ...");
    }
    (void)printf("\n\n");
    display_wrap(stdout, v->text, &layout);
}

mb_status
view_segment(struct dump *d, const char *arg, struct mb_error *err)
{
    struct segment_view v = {0};
    uint32_t segno;
    mb_status st = dump_number(arg, "segment", &segno, err);

    if (st == MB_OK)
        st = dump_collection(d, &v.coll, err);
    if (st == MB_OK)
        st = load_segment(d, segno, &v, err);
    if (st == MB_ERR_NOT_FOUND)
        return mb_error_set(err, st, "collection %s has no segment %u",
            v.coll != NULL ? v.coll->name : "?", segno);
    if (st != MB_OK)
        return st;
    if (d->json) {
        json_segment(&d->w, &v);
        return dump_flush_json(d, err);
    }
    print_segment(d, &v);
    return MB_OK;
}

/* ---- what is not kept yet ---- */

/* Rows of a table by its name. */
static uint64_t
table_rows(struct dump *d, const char *wanted)
{
    const char *name;
    uint64_t rows;
    uint64_t bytes;

    for (size_t i = 0; mb_store_table_stats(d->snap, i, &name, &rows, &bytes);
         i++) {
        if (strcmp(name, wanted) == 0)
            return rows;
    }
    return 0;
}

static mb_status
say_none(
    struct dump *d, const char *table, const char *why, struct mb_error *err)
{
    uint64_t rows = table_rows(d, table);

    if (!d->json) {
        (void)printf("%llu %s: %s\n", (unsigned long long)rows, table, why);
        return MB_OK;
    }
    json_object_begin(&d->w);
    json_kv_u64(&d->w, table, rows);
    json_kv_cstr(&d->w, "note", why);
    json_object_end(&d->w);
    return dump_flush_json(d, err);
}

mb_status
view_block(struct dump *d, const char *arg, struct mb_error *err)
{
    uint32_t block;
    mb_status st = dump_number(arg, "block", &block, err);

    return st == MB_OK
               ? say_none(d, "blocks",
                     "collections keep none; `context NAME` shows those of one",
                     err)
               : st;
}

/* ---- stats ---- */

static mb_status
json_stats(struct dump *d, const struct mb_store_stats *s, struct mb_error *err)
{
    struct json_writer *w = &d->w;
    const char *name;
    uint64_t rows;
    uint64_t bytes;

    json_object_begin(w);
    json_kv_u64(w, "file_bytes", s->file_bytes);
    json_kv_u64(w, "used_bytes", s->used_bytes);
    json_kv_u64(w, "free_bytes", s->free_bytes);
    json_kv_u64(w, "map_bytes", s->map_bytes);
    json_kv_u64(w, "last_txn", s->last_txn);
    json_kv_u64(w, "readers", s->n_readers);
    json_kv_u64(w, "oldest_reader_lag", s->oldest_reader_lag);
    json_kv_bool(w, "scrub_pending", s->scrub_pending);
    json_key(w, "tables");
    json_array_begin(w);
    for (size_t i = 0; mb_store_table_stats(d->snap, i, &name, &rows, &bytes);
         i++) {
        json_object_begin(w);
        json_kv_cstr(w, "name", name);
        json_kv_u64(w, "rows", rows);
        json_kv_u64(w, "bytes", bytes);
        json_object_end(w);
    }
    json_array_end(w);
    json_key(w, "collections");
    json_array_begin(w);
    for (size_t i = 0; i < d->n_colls; i++) {
        json_collection(w, &d->colls[i]);
    }
    json_array_end(w);
    json_object_end(w);
    return dump_flush_json(d, err);
}

static void
print_tables(struct dump *d, uint64_t used_bytes)
{
    static const char *const heads[] = {"table", "rows", "bytes", "part"};
    struct table *t = table_new(4, heads, "lrrr");
    const char *name;
    uint64_t rows;
    uint64_t bytes;

    for (size_t i = 0;
         t != NULL && mb_store_table_stats(d->snap, i, &name, &rows, &bytes);
         i++) {
        if (rows == 0)
            continue;
        table_cell(t, "%s", name);
        table_cell_count(t, rows);
        table_cell_bytes(t, bytes);
        table_cell(t, "%.1f%%",
            used_bytes > 0 ? 100.0 * (double)bytes / (double)used_bytes : 0.0);
    }
    if (t != NULL)
        table_print(t, stdout, 0);
    table_free(t);
}

mb_status
view_stats(struct dump *d, const char *arg, struct mb_error *err)
{
    struct mb_store_stats s;
    char a[DISPLAY_FIGURE];
    char b[DISPLAY_FIGURE];
    char c[DISPLAY_FIGURE];
    uint64_t text = 0;
    mb_status st = mb_store_stats(d->store, &s, err);

    (void)arg;
    if (st != MB_OK)
        return st;
    if (d->json)
        return json_stats(d, &s, err);
    for (size_t i = 0; i < d->n_colls; i++) {
        text += d->colls[i].text_bytes;
    }
    (void)printf("file      %s, %s used, %s free to be used again\n",
        show_bytes(a, s.file_bytes), show_bytes(b, s.used_bytes),
        show_bytes(c, s.free_bytes));
    (void)printf("text      %s", show_bytes(a, text));
    if (text > 0)
        (void)printf(", the file is %.2f times as large",
            (double)s.file_bytes / (double)text);
    (void)printf("\nreaders   %u, the oldest %llu transactions behind\n",
        s.n_readers, (unsigned long long)s.oldest_reader_lag);
    if (s.scrub_pending)
        (void)printf("erasing   deleted bytes wait to be overwritten\n");
    (void)printf(
        "last      transaction %llu\n\n", (unsigned long long)s.last_txn);
    st = view_collections(d, NULL, err);
    (void)fputc('\n', stdout);
    print_tables(d, s.used_bytes);
    return st;
}

/* ---- verify ---- */

struct verifying {
    struct dump *d;
    struct progress progress;
    uint64_t n_shown;
    mb_status status; /* of the output */
};

#define MAX_BROKEN 1000u /* that are printed */

static void
on_broken(void *arg, const char *table, const char *key_hex, const char *what)
{
    struct verifying *v = arg;
    struct mb_error err;

    if (v->n_shown++ >= MAX_BROKEN)
        return;
    progress_clear(&v->progress);
    if (!v->d->json) {
        (void)printf("%s %s: %s\n", table, key_hex, what);
        return;
    }
    json_object_begin(&v->d->w);
    json_kv_cstr(&v->d->w, "table", table);
    json_kv_cstr(&v->d->w, "key", key_hex);
    json_kv_cstr(&v->d->w, "what", what);
    json_object_end(&v->d->w);
    v->status = dump_flush_json(v->d, &err);
}

static bool
on_progress(void *arg, double part)
{
    struct verifying *v = arg;

    progress_show(&v->progress, part, "verifying");
    return false;
}

mb_status
view_verify(struct dump *d, const char *arg, struct mb_error *err)
{
    struct verifying v = {.d = d};
    struct mb_verify_result result = {0};
    char n[DISPLAY_FIGURE];
    mb_status st;

    (void)arg;
    progress_init(&v.progress, stderr, false);
    st = mb_store_verify(d->snap, on_broken, on_progress, &v, &result, err);
    progress_clear(&v.progress);
    if (st != MB_OK)
        return st;
    if (v.status != MB_OK)
        return mb_error_set(err, v.status, "JSON output");
    if (d->json) {
        json_object_begin(&d->w);
        json_kv_u64(&d->w, "records", result.n_records);
        json_kv_u64(&d->w, "broken", result.n_broken);
        json_object_end(&d->w);
        st = dump_flush_json(d, err);
    } else if (result.n_broken == 0) {
        (void)printf("%s records, all sound (%.1f s)\n",
            show_count(n, result.n_records), progress_elapsed(&v.progress));
    }
    if (st == MB_OK && result.n_broken > 0)
        st =
            mb_error_set(err, MB_ERR_CORRUPT, "%llu of %llu records are broken",
                (unsigned long long)result.n_broken,
                (unsigned long long)result.n_records);
    return st;
}
