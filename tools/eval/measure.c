/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/measure.c - see measure.h.
 *
 * Judgements lie in one array sorted by query, then document; a query is a
 * range of it. Ranks of a run are counted line by line, as its lines of one
 * query stand together.
 * Invariants: ids are compared as runs write them, with blanks as %XX. */
#include "measure.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lines.h"

#define MAX_LINE   65536
#define NDCG_DEPTH 10
#define DEPTH      100

struct judgement {
    char *query;
    char *doc;
    double grade;
};

struct judgements {
    struct judgement *rows; /* sorted by query, document */
    size_t n;
    size_t capacity;
};

/* What a run brought for one query. */
struct found {
    double gain;
    size_t n_relevant; /* among the first DEPTH */
    double reciprocal;
    size_t rank; /* lines so far */
};

static int
compare(const void *a, const void *b)
{
    const struct judgement *x = a, *y = b;
    int order = strcmp(x->query, y->query);

    return order != 0 ? order : strcmp(x->doc, y->doc);
}

/* A copy in which blanks and controls are %XX; NULL without memory. */
static char *
encode_id(const char *s, size_t n)
{
    static const char hex[] = "0123456789ABCDEF";
    char *out = mb_alloc(3 * n + 1);
    size_t at = 0;

    for (size_t i = 0; out != NULL && i < n; i++) {
        unsigned char c = (unsigned char)s[i];

        if (c > ' ') {
            out[at++] = s[i];
        } else {
            out[at++] = '%';
            out[at++] = hex[c >> 4];
            out[at++] = hex[c & 15];
        }
    }
    if (out != NULL)
        out[at] = '\0';
    return out;
}

void
judgements_free(struct judgements *j)
{
    if (j == NULL)
        return;
    for (size_t i = 0; i < j->n; i++) {
        mb_free(j->rows[i].query);
        mb_free(j->rows[i].doc);
    }
    mb_free(j->rows);
    mb_free(j);
}

static mb_status
add_row(struct judgements *j, const char *query, size_t query_size,
    const char *doc, size_t doc_size, double grade)
{
    struct judgement row = {.grade = grade};

    if (j->n == j->capacity) {
        size_t more = j->capacity == 0 ? 1024 : 2 * j->capacity;
        void *rows = mb_realloc(j->rows, more * sizeof *j->rows);

        if (rows == NULL)
            return MB_ERR_NOMEM;
        j->rows = rows;
        j->capacity = more;
    }
    row.query = encode_id(query, query_size);
    row.doc = encode_id(doc, doc_size);
    if (row.query == NULL || row.doc == NULL) {
        mb_free(row.query);
        mb_free(row.doc);
        return MB_ERR_NOMEM;
    }
    j->rows[j->n++] = row;
    return MB_OK;
}

/* query TAB document TAB grade; grades of 0 and less are not relevant. */
static mb_status
read_row(struct judgements *j, const char *path, uint64_t number,
    struct mb_slice line, struct mb_error *err)
{
    const char *s = (const char *)line.data;
    const char *end = s + line.size;
    const char *doc = line.size > 0 ? memchr(s, '\t', line.size) : NULL;
    const char *tab =
        doc != NULL ? memchr(doc + 1, '\t', (size_t)(end - doc - 1)) : NULL;
    char text[32] = {0};
    char *rest = text;
    double grade = NAN;

    if (tab != NULL && (size_t)(end - tab - 1) < sizeof text) {
        memcpy(text, tab + 1, (size_t)(end - tab - 1));
        grade = strtod(text, &rest);
    }
    if (rest == text || *rest != '\0' || !isfinite(grade))
        return number == 1 ? MB_OK // the header
                           : mb_error_set(err, MB_ERR_BAD_ARG,
                                 "%s, line %llu: not query, document, grade",
                                 path, (unsigned long long)number);
    if (grade <= 0)
        return MB_OK;
    if (add_row(j, s, (size_t)(doc - s), doc + 1, (size_t)(tab - doc - 1),
            grade) != MB_OK)
        return mb_error_set(err, MB_ERR_NOMEM, "%s: out of memory", path);
    return MB_OK;
}

mb_status
judgements_load(const char *path, struct judgements **out, struct mb_error *err)
{
    struct judgements *j = mb_calloc(1, sizeof *j);
    struct lines *lines = NULL;
    struct mb_slice line;
    bool more = true;
    mb_status st = MB_ERR_NOMEM;

    if (j == NULL)
        return mb_error_set(err, st, "%s: out of memory", path);
    st = lines_open(path, MAX_LINE, &lines, err);
    while (st == MB_OK) {
        st = lines_next(lines, &line, &more, err);
        if (st != MB_OK || !more)
            break;
        if (line.size > 0)
            st = read_row(j, path, lines_number(lines), line, err);
    }
    lines_close(lines);
    if (st == MB_OK && j->n == 0)
        st =
            mb_error_set(err, MB_ERR_BAD_ARG, "%s: no relevant document", path);
    if (st != MB_OK) {
        judgements_free(j);
        return st;
    }
    qsort(j->rows, j->n, sizeof *j->rows, compare);
    *out = j;
    return MB_OK;
}

/* First row behind those of the query at `first`. */
static size_t
query_end(const struct judgements *j, size_t first)
{
    size_t end = first + 1;

    while (end < j->n && strcmp(j->rows[end].query, j->rows[first].query) == 0)
        end++;
    return end;
}

static int
falling(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x > y ? -1 : x < y;
}

/* Gain of the best order of the rows [first, end). */
static mb_status
best_gain(const struct judgements *j, size_t first, size_t end, double *out)
{
    double *grades = mb_alloc((end - first) * sizeof *grades);
    double gain = 0;

    if (grades == NULL)
        return MB_ERR_NOMEM;
    for (size_t i = first; i < end; i++)
        grades[i - first] = j->rows[i].grade;
    qsort(grades, end - first, sizeof *grades, falling);
    for (size_t i = 0; i < end - first && i < NDCG_DEPTH; i++)
        gain += grades[i] / log2((double)i + 2);
    mb_free(grades);
    *out = gain;
    return MB_OK;
}

/* One line of the run: "query Q0 document rank score tag". found has a place a
 * row of j; that of a query's first row is used. */
static mb_status
count_line(const struct judgements *j, struct found *found, char *line)
{
    char *save = NULL;
    char *query = strtok_r(line, " ", &save);
    char *q0 = strtok_r(NULL, " ", &save);
    char *doc = strtok_r(NULL, " ", &save);
    struct judgement key = {.query = query, .doc = doc};
    const struct judgement *row;
    struct found *f;
    size_t low = 0, high = j->n;

    if (q0 == NULL || doc == NULL)
        return MB_ERR_BAD_ARG;
    while (low < high) { // the query's first row
        size_t middle = low + (high - low) / 2;

        if (strcmp(j->rows[middle].query, query) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == j->n || strcmp(j->rows[low].query, query) != 0)
        return MB_OK; // nobody judged it
    f = &found[low];
    f->rank++;
    row = bsearch(&key, j->rows, j->n, sizeof *j->rows, compare);
    if (row == NULL)
        return MB_OK;
    if (f->rank <= NDCG_DEPTH)
        f->gain += row->grade / log2((double)f->rank + 1);
    if (f->rank <= DEPTH)
        f->n_relevant++;
    if (f->reciprocal == 0)
        f->reciprocal = 1.0 / (double)f->rank;
    return MB_OK;
}

static mb_status
read_run(const struct judgements *j, const char *path, struct found *found,
    struct mb_error *err)
{
    struct lines *lines = NULL;
    struct mb_slice line;
    bool more = true;
    mb_status st = lines_open(path, MAX_LINE, &lines, err);

    while (st == MB_OK) {
        char *copy;

        st = lines_next(lines, &line, &more, err);
        if (st != MB_OK || !more)
            break;
        copy = mb_strndup((const char *)line.data, line.size);
        st = copy != NULL ? count_line(j, found, copy) : MB_ERR_NOMEM;
        mb_free(copy);
        if (st != MB_OK)
            (void)mb_error_set(err, st, "%s, line %llu: not a line of a run",
                path, (unsigned long long)lines_number(lines));
    }
    lines_close(lines);
    return st;
}

mb_status
judgements_measure(const struct judgements *j, const char *run_path,
    struct measures *out, struct mb_error *err)
{
    struct found *found = mb_calloc(j->n, sizeof *found);
    struct measures m = {0};
    mb_status st;

    if (found == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "%s: out of memory", run_path);
    st = read_run(j, run_path, found, err);
    for (size_t first = 0, end; st == MB_OK && first < j->n; first = end) {
        const struct found *f = &found[first];
        double best = 0;

        end = query_end(j, first);
        st = best_gain(j, first, end, &best);
        if (st != MB_OK) {
            (void)mb_error_set(err, st, "%s: out of memory", run_path);
            break;
        }
        m.n_queries++;
        m.ndcg10 += f->gain / best;
        m.recall100 += (double)f->n_relevant / (double)(end - first);
        m.mrr += f->reciprocal;
    }
    mb_free(found);
    if (st != MB_OK)
        return st;
    m.ndcg10 /= (double)m.n_queries;
    m.recall100 /= (double)m.n_queries;
    m.mrr /= (double)m.n_queries;
    *out = m;
    return MB_OK;
}
