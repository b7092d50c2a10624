/* SPDX-License-Identifier: Apache-2.0
 * tools/membank-dump.c - look into a store, live or copied, without a daemon.
 *
 * Opens the store read-only, takes one snapshot, and prints one view of it. The
 * views lie in dump/.
 * Threads: the main thread. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "display.h"
#include "dump.h"
#include "tool.h"

static const struct mb_cli_option options[] = {
    {"store", 's', "DIR", false, "folder of the store", NULL},
    {"collection", 'c', "NAME", false,
        "collection to look at; not needed if there is only one", NULL},
    {"limit", 'n', "N", false, "documents or segments listed at most; 0: all",
        "1000"},
    {"depth", 'd', "N", false, "levels of the tree shown below its root", "16"},
    {"text", 0, NULL, false, "with document: print its text alone", NULL},
    {"max-text", 0, "BYTES", false, "with html: text put into the page at most",
        "4M"},
    {"json", 0, NULL, false, "print JSON, one object a line", NULL},
    {NULL, 0, NULL, false, NULL, NULL},
};

static const struct mb_cli_example examples[] = {
    {"membank-dump --store db stats", "sizes, tables, collections"},
    {"membank-dump --store db -c notes tree --depth 1",
        "the top of the cluster tree with its terms"},
    {"membank-dump --store db -c notes document README.md --text",
        "the text of a document"},
    {"membank-dump --store db -c notes banks",
        "memory blocks of a collection, and how much they help"},
    {"membank-dump --store db context book",
        "what a context is made of, and what its last answer looked at"},
    {"membank-dump --store db verify",
        "check every record; exit status 1 if one is broken"},
    {"membank-dump --store db html store.html",
        "a page to walk through the store in a browser"},
    {NULL, NULL},
};

static const struct mb_cli_program program = {
    .name = "membank-dump",
    .summary = "look into a store of membank",
    .usage = "--store DIR [OPTION]... VIEW [ARGUMENT]",
    .description =
        "Reads a store directly, while a daemon serves it or from a copy, and "
        "never changes it. The views:\n\n"
        "  collections      names, settings and sizes\n"
        "  tree             clusters of a collection with their top terms\n"
        "  node ID          one cluster: children, or segments of a leaf\n"
        "  documents        ids, titles and sizes\n"
        "  document ID      metadata, segments, text\n"
        "  segment N        text, terms, vector\n"
        "  block N          a token block of a collection (none are kept yet)\n"
        "  banks            memory banks: blocks as a tree, what each "
        "gained\n"
        "  bank NODE        one memory block (a number, or generic): losses, "
        "weights\n"
        "  contexts         long contexts and their sizes\n"
        "  context NAME     one: blocks, bytes, what was retrieved when\n"
        "  stats            sizes of file and tables\n"
        "  verify           check every record, name the broken ones\n"
        "  html OUT.html    a page that shows collections, clusters, "
        "segments, banks\n\n"
        "The page is one file without references to others. It holds the text "
        "of a sample of segments of each cluster, --max-text bytes at most, "
        "and says how many are left out.",
    .options = options,
    .examples = examples,
};

struct view {
    const char *name;
    const char *arg; /* what it wants, NULL: nothing */
    dump_view_fn show;
};

static const struct view views[] = {
    {"collections", NULL, view_collections},
    {"tree", NULL, view_tree},
    {"node", "ID", view_node},
    {"documents", NULL, view_documents},
    {"document", "ID", view_document},
    {"segment", "N", view_segment},
    {"block", "N", view_block},
    {"banks", NULL, view_banks},
    {"bank", "NODE", view_bank},
    {"contexts", NULL, view_contexts},
    {"context", "NAME", view_context},
    {"stats", NULL, view_stats},
    {"verify", NULL, view_verify},
    {"html", "OUT.html", view_html},
};

mb_status
dump_collection(
    struct dump *d, const struct mb_collection **out, struct mb_error *err)
{
    const char *name = mb_cli_str(d->cli, "collection");
    char names[200] = "";
    size_t at = 0;

    for (size_t i = 0; i < d->n_colls; i++) {
        int n;

        if (name != NULL ? strcmp(name, d->colls[i].name) == 0
                         : d->n_colls == 1) {
            *out = &d->colls[i];
            return MB_OK;
        }
        n = snprintf(names + at, sizeof names - at, "%s%s", i > 0 ? ", " : "",
            d->colls[i].name);
        if (n > 0 && at + (size_t)n < sizeof names)
            at += (size_t)n;
    }
    if (d->n_colls == 0)
        return mb_error_set(
            err, MB_ERR_NOT_FOUND, "the store has no collection yet");
    if (name == NULL)
        return mb_error_set(err, MB_ERR_NOT_FOUND,
            "which collection? --collection NAME, one of: %s", names);
    return mb_error_set(
        err, MB_ERR_NOT_FOUND, "no collection %s; there are: %s", name, names);
}

mb_status
dump_number(
    const char *arg, const char *what, uint32_t *out, struct mb_error *err)
{
    char *end;
    unsigned long long v;

    errno = 0;
    v = strtoull(arg, &end, 10);
    if (arg[0] < '0' || arg[0] > '9' || *end != 0 || errno != 0 ||
        v > UINT32_MAX)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "%s %s: not a number", what, arg);
    *out = (uint32_t)v;
    return MB_OK;
}

/* The view that the arguments ask for. Errors: BAD_ARG. */
static mb_status
find_view(
    const struct mb_cli *cli, const struct view **out, struct mb_error *err)
{
    const char *name = mb_cli_arg(cli, 0);
    size_t n = mb_cli_n_args(cli);

    if (!mb_cli_has(cli, "store"))
        return mb_error_set(err, MB_ERR_BAD_ARG, "--store DIR is missing");
    if (name == NULL)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "no view named: collections, tree, documents, stats, verify, ...");
    for (size_t i = 0; i < sizeof views / sizeof views[0]; i++) {
        if (strcmp(name, views[i].name) != 0)
            continue;
        if (n != (views[i].arg != NULL ? 2u : 1u))
            return mb_error_set(err, MB_ERR_BAD_ARG,
                views[i].arg != NULL ? "%s needs one argument: %s"
                                     : "%s takes no argument%s",
                name, views[i].arg != NULL ? views[i].arg : "");
        *out = &views[i];
        return MB_OK;
    }
    return mb_error_set(err, MB_ERR_BAD_ARG, "no such view: %s", name);
}

static mb_status
open_store(struct dump *d, struct mb_error *err)
{
    const struct mb_store_options opt = {.read_only = true};
    struct mb_collection *colls = NULL;
    size_t n = 0;
    mb_status st =
        mb_store_open(mb_cli_str(d->cli, "store"), &opt, &d->store, err);

    if (st == MB_OK)
        st = mb_snapshot_begin(d->store, &d->snap, err);
    if (st == MB_OK)
        st = mb_collection_list(d->snap, d->arena, &colls, &n, err);
    if (st != MB_OK)
        return st;
    // Views reset the arena; this list outlives that.
    d->colls = mb_calloc(n + 1, sizeof *d->colls);
    if (d->colls == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "%zu collections", n);
    if (n > 0)
        memcpy(d->colls, colls, n * sizeof *colls);
    d->n_colls = n;
    return MB_OK;
}

static int
run(struct dump *d)
{
    const struct view *view = NULL;
    struct mb_error err;
    mb_status st = find_view(d->cli, &view, &err);

    if (st != MB_OK)
        return mb_cli_usage(&program, &err);
    d->json = mb_cli_has(d->cli, "json");
    d->width = mb_cli_width(STDOUT_FILENO);
    d->arena = mb_arena_new(SIZE_MAX);
    st = d->arena != NULL ? open_store(d, &err)
                          : mb_error_set(&err, MB_ERR_NOMEM, "arena");
    if (st == MB_OK)
        st = view->show(d, mb_cli_arg(d->cli, 1), &err);
    if (st == MB_OK)
        return 0;
    return st == MB_ERR_BAD_ARG ? mb_cli_usage(&program, &err)
                                : mb_cli_fail(&program, &err);
}

int
main(int argc, char **argv)
{
    struct dump d = {.prog = &program};
    struct mb_error err;
    mb_status st = mb_cli_parse(&program, argc, argv, &d.cli, &err);
    int code;

    if (st != MB_OK)
        return tool_parse_failed(&program, st, &err);
    mb_buffer_init(&d.buf, SIZE_MAX / 2);
    json_writer_init(&d.w, &d.buf);
    code = run(&d);
    mb_free(d.colls);
    mb_arena_free(d.arena);
    mb_snapshot_end(d.snap);
    mb_store_close(d.store);
    mb_buffer_fini(&d.buf);
    mb_cli_free(d.cli);
    return tool_finish(&program, code);
}
