/* SPDX-License-Identifier: Apache-2.0
 * tools/common/source.c - read files and lines, make documents of them.
 *
 * Every call makes progress, so that damage in one place cannot hold up the
 * rest: a bad line is left behind, a file that cannot be read is closed.
 * What is not UTF-8 is found here and not by the daemon, because only here the
 * place in the file is known.
 * Threads: one. */
#include "source.h"

#include <stdio.h>
#include <string.h>

#include "htmltext.h"
#include "json.h"
#include "lines.h"

#define DEFAULT_MAX_BYTES ((size_t)256 * 1024 * 1024)
#define MAX_TITLE         200 /* bytes of a title that we make up */

struct source {
    const struct walk_list *files;
    size_t next_file;
    struct source_options opt;
    struct lines *lines; /* of files[next_file - 1], NULL between files */
    uint64_t bytes_done; /* of files that are finished */
    uint64_t bytes_total;
    bool total_known;
    struct mb_arena *arena; /* the current document */
    struct mb_buffer raw;   /* a file */
    struct mb_buffer text;  /* the text of a page, or repaired bytes */
    struct mb_buffer title;
    struct mb_buffer packed;
    char id[64 + 20];
};

mb_status
source_new(const struct walk_list *files, const struct source_options *opt,
    struct source **out, struct mb_error *err)
{
    struct source *s = mb_calloc(1, sizeof *s);
    size_t max;

    if (s == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "reader of documents");
    s->files = files;
    s->opt = *opt;
    if (s->opt.max_document_bytes == 0)
        s->opt.max_document_bytes = DEFAULT_MAX_BYTES;
    max = s->opt.max_document_bytes;
    mb_buffer_init(&s->raw, max);
    // Repair makes at most three bytes of one.
    mb_buffer_init(&s->text, max * 3);
    mb_buffer_init(&s->title, max * 3);
    mb_buffer_init(&s->packed, max * 4);
    s->total_known = true;
    for (size_t i = 0; i < files->n; i++) {
        s->bytes_total += files->files[i].bytes;
        if (files->files[i].bytes == 0 &&
            strcmp(files->files[i].path, "-") == 0)
            s->total_known = false;
    }
    s->arena = mb_arena_new(max * 8);
    if (s->arena == NULL) {
        source_free(s);
        return mb_error_set(err, MB_ERR_NOMEM, "reader of documents");
    }
    *out = s;
    return MB_OK;
}

void
source_free(struct source *s)
{
    if (s == NULL)
        return;
    lines_close(s->lines);
    mb_buffer_fini(&s->raw);
    mb_buffer_fini(&s->text);
    mb_buffer_fini(&s->title);
    mb_buffer_fini(&s->packed);
    mb_arena_free(s->arena);
    mb_free(s);
}

uint64_t
source_bytes_read(const struct source *s)
{
    return s->bytes_done + (s->lines != NULL ? lines_bytes_read(s->lines) : 0);
}

uint64_t
source_bytes_total(const struct source *s)
{
    return s->total_known ? s->bytes_total : 0;
}

/* ---- where something went wrong ---- */

static const char *
shown_path(const struct source *s)
{
    const char *path = s->files->files[s->next_file - 1].path;

    return strcmp(path, "-") == 0 ? "standard input" : path;
}

/* Put the place in front of the cause. */
static mb_status
fail_here(
    struct source *s, mb_status st, const char *what, struct mb_error *err)
{
    if (s->lines == NULL)
        return mb_error_set(err, st, "%s: %s", shown_path(s), what);
    return mb_error_set(err, st, "%s, line %llu: %s", shown_path(s),
        (unsigned long long)lines_number(s->lines), what);
}

/* Bytes as UTF-8: themselves, or repaired into s->text. */
static mb_status
checked_utf8(struct source *s, struct mb_slice bytes, struct mb_slice *out,
    struct mb_error *err)
{
    size_t offset;
    char what[120];
    mb_status st;

    *out = bytes;
    if (mb_utf8_is_valid(bytes, &offset))
        return MB_OK;
    if (!s->opt.repair) {
        (void)snprintf(what, sizeof what,
            "byte %zu is not UTF-8; --repair replaces such bytes", offset + 1);
        return fail_here(s, MB_ERR_BAD_TEXT, what, err);
    }
    mb_buffer_clear(&s->text);
    st = mb_utf8_repair(bytes, &s->text);
    if (st != MB_OK)
        return fail_here(s, st, "repaired text", err);
    *out = mb_buffer_slice(&s->text);
    return MB_OK;
}

/* ---- lines of JSON ---- */

/* What the keys of a line mean. */
struct line_parts {
    const struct mb_value *id;
    const struct mb_value *title;
    const struct mb_value *text;
    const struct mb_value *meta;
    const struct mb_value *vector;
    size_t n_others;
};

static bool
key_is(const struct mb_pair *pair, const char *key)
{
    return mb_slice_equal(pair->key, mb_slice_cstr(key));
}

/* The place of a key in the parts, NULL if it is one of the others. */
static const struct mb_value **
place_of(struct line_parts *parts, const struct mb_value *line,
    const struct mb_pair *pair)
{
    if (key_is(pair, "id") ||
        (key_is(pair, "_id") && mb_value_get(line, "id") == NULL))
        return &parts->id;
    if (key_is(pair, "title"))
        return &parts->title;
    if (key_is(pair, "text"))
        return &parts->text;
    if (key_is(pair, "meta") ||
        (key_is(pair, "metadata") && mb_value_get(line, "meta") == NULL))
        return &parts->meta;
    if (key_is(pair, "vector"))
        return &parts->vector;
    return NULL;
}

static bool
is_absent(const struct mb_value *v)
{
    return v == NULL || v->type == MB_TYPE_NIL;
}

/* True if the pair belongs into meta beside what meta has. */
static bool
is_other(struct line_parts *parts, const struct mb_value *line,
    const struct mb_pair *pair)
{
    struct line_parts unused = {0};

    if (place_of(&unused, line, pair) != NULL)
        return false;
    if (is_absent(parts->meta))
        return true;
    for (size_t i = 0; i < parts->meta->map.n; i++) {
        if (mb_slice_equal(parts->meta->map.pairs[i].key, pair->key))
            return false;
    }
    return true;
}

static mb_status
split_line(struct source *s, const struct mb_value *line,
    struct line_parts *parts, struct mb_error *err)
{
    *parts = (struct line_parts){0};
    if (line->type != MB_TYPE_MAP)
        return fail_here(s, MB_ERR_BAD_MESSAGE, "not a JSON object", err);
    for (size_t i = 0; i < line->map.n; i++) {
        const struct mb_value **place =
            place_of(parts, line, &line->map.pairs[i]);

        if (place != NULL)
            *place = &line->map.pairs[i].value;
    }
    if (is_absent(parts->text))
        return fail_here(s, MB_ERR_BAD_ARG, "the object has no \"text\"", err);
    if (parts->text->type != MB_TYPE_STR)
        return fail_here(s, MB_ERR_BAD_ARG, "\"text\" is not a string", err);
    if (!is_absent(parts->title) && parts->title->type != MB_TYPE_STR)
        return fail_here(s, MB_ERR_BAD_ARG, "\"title\" is not a string", err);
    if (!is_absent(parts->meta) && parts->meta->type != MB_TYPE_MAP)
        return fail_here(s, MB_ERR_BAD_ARG, "\"meta\" is not an object", err);
    for (size_t i = 0; i < line->map.n; i++) {
        parts->n_others += is_other(parts, line, &line->map.pairs[i]) ? 1 : 0;
    }
    return MB_OK;
}

/* The id as text; without one, file and line. */
static mb_status
line_id(struct source *s, const struct mb_value *id, struct mb_slice *out,
    struct mb_error *err)
{
    const char *path = shown_path(s);
    const char *slash = strrchr(path, '/');

    if (!is_absent(id) && id->type == MB_TYPE_STR) {
        *out = id->s;
        return MB_OK;
    }
    if (is_absent(id))
        (void)snprintf(s->id, sizeof s->id, "%.60s:%llu",
            slash != NULL ? slash + 1 : path,
            (unsigned long long)lines_number(s->lines));
    else if (id->type == MB_TYPE_INT)
        (void)snprintf(s->id, sizeof s->id, "%lld", (long long)id->i);
    else if (id->type == MB_TYPE_UINT)
        (void)snprintf(s->id, sizeof s->id, "%llu", (unsigned long long)id->u);
    else
        return fail_here(s, MB_ERR_BAD_ARG,
            "the id is neither a string nor a whole number", err);
    *out = mb_slice_cstr(s->id);
    return MB_OK;
}

static void
write_meta(
    struct mb_writer *w, struct line_parts *parts, const struct mb_value *line)
{
    size_t n = is_absent(parts->meta) ? 0 : parts->meta->map.n;

    mb_write_map(w, n + parts->n_others);
    for (size_t i = 0; i < n; i++) {
        mb_write_str(w, parts->meta->map.pairs[i].key);
        mb_write_value(w, &parts->meta->map.pairs[i].value);
    }
    for (size_t i = 0; i < line->map.n; i++) {
        if (!is_other(parts, line, &line->map.pairs[i]))
            continue;
        mb_write_str(w, line->map.pairs[i].key);
        mb_write_value(w, &line->map.pairs[i].value);
    }
}

/* Little-endian floats; a JSON array would take twice the bytes. */
static mb_status
write_vector(struct source *s, struct mb_writer *w, const struct mb_value *v,
    struct mb_error *err)
{
    struct mb_error cause;
    const float *vector = NULL;
    size_t dim = 0;
    uint8_t *bytes;
    mb_status st =
        mb_value_vector(v, "vector", 0, s->arena, &vector, &dim, &cause);

    if (st != MB_OK)
        return fail_here(s, st, cause.text, err);
    bytes = mb_arena_alloc(s->arena, dim * 4);
    if (bytes == NULL)
        return fail_here(s, MB_ERR_NOMEM, "vector", err);
    for (size_t i = 0; i < dim; i++) {
        mb_put_lef32(bytes + i * 4, vector[i]);
    }
    mb_write_cstr(w, "vector");
    mb_write_bin(w, mb_slice_of(bytes, dim * 4));
    return MB_OK;
}

static mb_status
pack_line(struct source *s, const struct mb_value *line,
    struct source_document *out, struct mb_error *err)
{
    struct line_parts parts;
    struct mb_writer w;
    bool has_title;
    bool has_meta;
    mb_status st = split_line(s, line, &parts, err);

    if (st == MB_OK)
        st = line_id(s, parts.id, &out->id, err);
    if (st != MB_OK)
        return st;
    has_title = !is_absent(parts.title) && parts.title->s.size > 0;
    has_meta =
        parts.n_others > 0 || (!is_absent(parts.meta) && parts.meta->map.n > 0);
    mb_writer_init(&w, &s->packed);
    mb_write_map(&w, 2u + (has_title ? 1u : 0u) + (has_meta ? 1u : 0u) +
                         (is_absent(parts.vector) ? 0u : 1u));
    mb_write_kv_str(&w, "id", out->id);
    if (has_title)
        mb_write_kv_str(&w, "title", parts.title->s);
    mb_write_kv_str(&w, "text", parts.text->s);
    if (has_meta) {
        mb_write_cstr(&w, "meta");
        write_meta(&w, &parts, line);
    }
    if (!is_absent(parts.vector))
        st = write_vector(s, &w, parts.vector, err);
    if (st == MB_OK && w.status != MB_OK)
        st = fail_here(s, w.status, "packed document", err);
    out->text_bytes = parts.text->s.size;
    return st;
}

static bool
is_blank(struct mb_slice line)
{
    for (size_t i = 0; i < line.size; i++) {
        if (line.data[i] != ' ' && line.data[i] != '\t')
            return false;
    }
    return true;
}

static void
end_file(struct source *s)
{
    lines_close(s->lines);
    s->lines = NULL;
    s->bytes_done += s->files->files[s->next_file - 1].bytes;
}

/* The next line that is not blank; *more false at the file's end. */
static mb_status
next_line(struct source *s, struct source_document *out, bool *more,
    struct mb_error *err)
{
    struct mb_slice line = {0};
    const struct mb_value *v;
    struct mb_error cause;
    mb_status st;

    do {
        st = lines_next(s->lines, &line, more, err);
        // Past a line that is too long we can go on, past damage not.
        if (st != MB_OK && st != MB_ERR_TOO_LARGE)
            end_file(s);
        if (st != MB_OK)
            return st;
    } while (*more && is_blank(line));
    if (!*more) {
        end_file(s);
        return MB_OK;
    }
    st = checked_utf8(s, line, &line, err);
    if (st != MB_OK)
        return st;
    st = json_parse(line, s->opt.repair, s->arena, &v, &cause);
    if (st != MB_OK)
        return fail_here(s, st, cause.text, err);
    out->line = lines_number(s->lines);
    return pack_line(s, v, out, err);
}

/* ---- whole files ---- */

/* The first line that is "# heading" or "heading\n====". */
static struct mb_slice
markdown_title(struct mb_slice text)
{
    for (size_t at = 0; at < text.size && at < 4096;) {
        const uint8_t *line = text.data + at;
        const uint8_t *feed = memchr(line, '\n', text.size - at);
        size_t n = feed != NULL ? (size_t)(feed - line) : text.size - at;
        size_t next = at + n + 1;
        size_t from = 0;

        if (n > 0 && next + 2 < text.size && text.data[next] == '=' &&
            text.data[next + 1] == '=')
            return mb_slice_of(line, n);
        while (from < n && line[from] == '#') {
            from++;
        }
        if (from > 0 && from < n && line[from] == ' ') {
            while (n > from && (line[n - 1] == '#' || line[n - 1] == ' ' ||
                                   line[n - 1] == '\r')) {
                n--;
            }
            return n > from + 1 ? mb_slice_of(line + from + 1, n - from - 1)
                                : mb_slice_of(NULL, 0);
        }
        at = next;
    }
    return mb_slice_of(NULL, 0);
}

/* The file's name without folders and ending. */
static struct mb_slice
name_title(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    const char *dot = strrchr(name, '.');

    return mb_slice_of(
        name, dot != NULL && dot > name ? (size_t)(dot - name) : strlen(name));
}

static struct mb_slice
cut_title(struct mb_slice title)
{
    while (title.size > 0 && title.data[title.size - 1] == ' ') {
        title.size--;
    }
    if (title.size <= MAX_TITLE)
        return title;
    title.size = MAX_TITLE;
    while (title.size > 0 && (title.data[title.size] & 0xC0) == 0x80) {
        title.size--;
    }
    return title;
}

static mb_status
file_text(struct source *s, const struct walk_file *file, struct mb_slice *text,
    struct mb_slice *title, struct mb_error *err)
{
    mb_status st = file_read(file->path, &s->raw, err);

    if (st != MB_OK)
        return st;
    *text = mb_buffer_slice(&s->raw);
    if (text->size >= 3 && memcmp(text->data, "\xEF\xBB\xBF", 3) == 0)
        *text = mb_slice_of(text->data + 3, text->size - 3);
    if (file->kind == WALK_HTML) {
        struct mb_buffer page;

        mb_buffer_init(&page, s->text.max);
        st = html_to_text(*text, &page, &s->title);
        if (st != MB_OK) {
            mb_buffer_fini(&page);
            return fail_here(s, st, "text of a page", err);
        }
        // The page's text takes the file's place.
        mb_buffer_fini(&s->raw);
        s->raw = page;
        *text = mb_buffer_slice(&s->raw);
        *title = mb_buffer_slice(&s->title);
    }
    st = checked_utf8(s, *text, text, err);
    if (file->kind == WALK_MARKDOWN)
        *title = markdown_title(*text);
    if (title->size == 0 || !mb_utf8_is_valid(*title, NULL))
        *title = name_title(file->path);
    return st;
}

static mb_status
whole_file(struct source *s, const struct walk_file *file,
    struct source_document *out, struct mb_error *err)
{
    struct mb_slice text = {0};
    struct mb_slice title = {0};
    struct mb_writer w;
    mb_status st = file_text(s, file, &text, &title, err);

    if (st != MB_OK)
        return st;
    if (!mb_utf8_is_valid(mb_slice_cstr(file->path), NULL))
        return fail_here(
            s, MB_ERR_BAD_TEXT, "its name is not UTF-8: rename it", err);
    mb_writer_init(&w, &s->packed);
    mb_write_map(&w, 4);
    out->id = mb_slice_cstr(file->path);
    mb_write_kv_str(&w, "id", out->id);
    mb_write_kv_str(&w, "title", cut_title(title));
    mb_write_kv_str(&w, "text", text);
    mb_write_cstr(&w, "meta");
    mb_write_map(&w, 2);
    mb_write_kv_cstr(&w, "path", file->path);
    mb_write_kv_cstr(&w, "format", walk_kind_name(file->kind));
    out->text_bytes = text.size;
    if (w.status != MB_OK)
        return fail_here(s, w.status, "packed document", err);
    return MB_OK;
}

/* ---- the stream ---- */

mb_status
source_next(struct source *s, struct source_document *out, bool *more,
    struct mb_error *err)
{
    const struct walk_file *file;
    mb_status st;

    for (;;) {
        mb_arena_reset(s->arena);
        mb_buffer_clear(&s->raw);
        mb_buffer_clear(&s->title);
        mb_buffer_clear(&s->packed);
        *out = (struct source_document){0};
        *more = true;
        if (s->lines == NULL) {
            if (s->next_file == s->files->n) {
                *more = false;
                return MB_OK;
            }
            file = &s->files->files[s->next_file++];
            out->path = file->path;
            if (file->kind != WALK_JSONL) {
                st = whole_file(s, file, out, err);
                s->bytes_done += file->bytes;
                break;
            }
            st = lines_open(
                file->path, s->opt.max_document_bytes, &s->lines, err);
            if (st != MB_OK) {
                s->bytes_done += file->bytes;
                return st;
            }
        }
        out->path = s->files->files[s->next_file - 1].path;
        st = next_line(s, out, more, err);
        if (st != MB_OK || *more)
            break;
    }
    *more = true;
    out->msgpack = mb_buffer_slice(&s->packed);
    return st;
}
