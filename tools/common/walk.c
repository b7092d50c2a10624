/* SPDX-License-Identifier: Apache-2.0
 * tools/common/walk.c - folders to sorted lists of files.
 *
 * Each folder is read whole, its names sorted by bytes, then visited in that
 * order. Paths are kept as given, because a document's id is made from them and
 * must be the same in the next run.
 * Threads: any. */
#include "walk.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "lines.h"

#define WALK_MAX_DEPTH 64
#define WALK_MAX_PATH  4096

struct ending {
    const char *text;
    walk_kind kind;
};

static const struct ending endings[] = {
    {".txt", WALK_TEXT},
    {".text", WALK_TEXT},
    {".md", WALK_MARKDOWN},
    {".markdown", WALK_MARKDOWN},
    {".html", WALK_HTML},
    {".htm", WALK_HTML},
    {".xhtml", WALK_HTML},
    {".jsonl", WALK_JSONL},
    {".ndjson", WALK_JSONL},
    {".jsonl.zst", WALK_JSONL},
    {".jsonl.gz", WALK_JSONL},
    {".ndjson.zst", WALK_JSONL},
    {".ndjson.gz", WALK_JSONL},
    {NULL, WALK_TEXT},
};

const char *
walk_kind_name(walk_kind kind)
{
    static const char *const names[] = {"text", "markdown", "html", "jsonl"};

    return names[kind];
}

static char
lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool
ends_with(const char *name, const char *ending)
{
    size_t n = strlen(name);
    size_t k = strlen(ending);

    if (n <= k)
        return false;
    for (size_t i = 0; i < k; i++) {
        if (lower(name[n - k + i]) != ending[i])
            return false;
    }
    return true;
}

/* False if the name's ending is none of ours; *kind is text then. */
static bool
kind_of(const char *name, walk_kind *kind)
{
    *kind = WALK_TEXT;
    for (const struct ending *e = endings; e->text != NULL; e++) {
        if (ends_with(name, e->text)) {
            *kind = e->kind;
            return true;
        }
    }
    return false;
}

void
walk_list_init(struct walk_list *list)
{
    *list = (struct walk_list){0};
}

void
walk_list_fini(struct walk_list *list)
{
    if (list == NULL)
        return;
    for (size_t i = 0; i < list->n; i++) {
        mb_free(list->files[i].path);
    }
    mb_free(list->files);
    walk_list_init(list);
}

/* Copy of path without "./" at its start, "//" and a slash at its end. */
static char *
clean_path(const char *path)
{
    char *out = mb_alloc(strlen(path) + 2);
    size_t n = 0;

    if (out == NULL)
        return NULL;
    while (path[0] == '.' && path[1] == '/') {
        path += 2;
        while (*path == '/') {
            path++;
        }
    }
    for (; *path != 0; path++) {
        if (*path == '/' && n > 0 && out[n - 1] == '/')
            continue;
        out[n++] = *path;
    }
    if (n > 1 && out[n - 1] == '/')
        n--;
    if (n == 0)
        out[n++] = '.';
    out[n] = 0;
    return out;
}

static mb_status
add_file(struct walk_list *list, const char *path, walk_kind kind,
    struct mb_error *err)
{
    struct walk_file *f;

    if (list->n == list->capacity) {
        size_t more = list->capacity == 0 ? 64 : list->capacity * 2;
        struct walk_file *files = mb_realloc(list->files, more * sizeof *files);

        if (files == NULL)
            return mb_error_set(err, MB_ERR_NOMEM, "list of %zu files", more);
        list->files = files;
        list->capacity = more;
    }
    f = &list->files[list->n];
    f->path = clean_path(path);
    if (f->path == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "path of a file");
    f->kind = kind;
    f->bytes = file_size(path);
    list->n++;
    return MB_OK;
}

/* ---- folders ---- */

struct names {
    char **name;
    size_t n;
    size_t capacity;
};

static void
names_fini(struct names *names)
{
    for (size_t i = 0; i < names->n; i++) {
        mb_free(names->name[i]);
    }
    mb_free((void *)names->name);
}

static int
compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static mb_status
names_add(struct names *names, const char *name)
{
    if (names->n == names->capacity) {
        size_t more = names->capacity == 0 ? 64 : names->capacity * 2;
        char **to = mb_realloc((void *)names->name, more * sizeof *to);

        if (to == NULL)
            return MB_ERR_NOMEM;
        names->name = to;
        names->capacity = more;
    }
    names->name[names->n] = mb_strndup(name, strlen(name));
    if (names->name[names->n] == NULL)
        return MB_ERR_NOMEM;
    names->n++;
    return MB_OK;
}

/* All visible names in a folder, sorted. */
static mb_status
names_read(struct names *names, const char *path, struct mb_error *err)
{
    DIR *dir = opendir(path);
    struct dirent *entry;
    mb_status st = MB_OK;

    if (dir == NULL)
        return mb_error_set(
            err, MB_ERR_IO, "open folder %s: %s", path, strerror(errno));
    while (st == MB_OK && (entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] != '.')
            st = names_add(names, entry->d_name);
    }
    (void)closedir(dir);
    if (st != MB_OK)
        return mb_error_set(err, st, "names in %s", path);
    if (names->n > 1)
        qsort(
            (void *)names->name, names->n, sizeof *names->name, compare_names);
    return MB_OK;
}

static mb_status
walk_folder(struct walk_list *list, const char *path, unsigned depth,
    struct mb_error *err)
{
    struct names names = {0};
    mb_status st = MB_OK;

    if (depth > WALK_MAX_DEPTH)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "%s: folders nested deeper than %d", path, WALK_MAX_DEPTH);
    st = names_read(&names, path, err);
    for (size_t i = 0; i < names.n && st == MB_OK; i++) {
        char below[WALK_MAX_PATH];
        struct stat info;
        walk_kind kind;

        int n = snprintf(below, sizeof below, "%s/%s", path, names.name[i]);

        if (n < 0 || (size_t)n >= sizeof below) {
            st = mb_error_set(err, MB_ERR_TOO_LARGE,
                "%s: path of more than %d bytes", names.name[i], WALK_MAX_PATH);
            break;
        }
        if (lstat(below, &info) != 0)
            continue;
        if (S_ISDIR(info.st_mode))
            st = walk_folder(list, below, depth + 1, err);
        else if (S_ISREG(info.st_mode) && kind_of(below, &kind) &&
                 kind != WALK_JSONL)
            st = add_file(list, below, kind, err);
    }
    names_fini(&names);
    return st;
}

mb_status
walk_add(struct walk_list *list, const char *path, struct mb_error *err)
{
    struct stat info;
    walk_kind kind;

    if (strcmp(path, "-") == 0)
        return walk_add_jsonl(list, path, err);
    if (stat(path, &info) != 0)
        return mb_error_set(err,
            errno == ENOENT || errno == ENOTDIR ? MB_ERR_NOT_FOUND : MB_ERR_IO,
            "open %s: %s", path, strerror(errno));
    if (S_ISDIR(info.st_mode))
        return walk_folder(list, path, 0, err);
    (void)kind_of(path, &kind);
    return add_file(list, path, kind, err);
}

mb_status
walk_add_jsonl(struct walk_list *list, const char *path, struct mb_error *err)
{
    return add_file(list, path, WALK_JSONL, err);
}
