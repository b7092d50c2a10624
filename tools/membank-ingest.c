/* SPDX-License-Identifier: Apache-2.0
 * tools/membank-ingest.c - put many documents into a collection.
 *
 * Documents are packed into batches; several batches are in flight at once, so
 * that reading, the daemon's analysis and its commits overlap. What the daemon
 * cannot take now (busy, no space, restarting) is sent again later; a batch
 * that it refuses is cut in halves until the bad document stands alone, is
 * reported, and the rest goes on. A request larger than the daemon takes would
 * end the connection: it is not sent, but cut like one that was refused.
 * Invariant: of two documents with one id, the later is sent only when the
 * earlier is stored, so that the last one of the input wins.
 * Threads: the main thread; signals only set a flag. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "display.h"
#include "json.h"
#include "progress.h"
#include "source.h"
#include "tool.h"
#include "walk.h"

#define MAX_IN_FLIGHT   64
#define MAX_BATCH_DOCS  4096
#define MAX_SHOWN       20 /* refused documents that are named */
#define ID_COUNTERS     65536u
#define FIRST_BACKOFF_S 0.05
#define MAX_BACKOFF_S   5.0
#define POLL_MS         100
#define WAIT_MS         (24u * 3600 * 1000) /* for dense search */

static const struct mb_cli_option options[] = {
    TOOL_CONNECT_OPTIONS,
    {"collection", 'c', "NAME", false,
        "collection to put into, made if it is absent", "default"},
    {"jsonl", 'j', "FILE", true,
        "read documents from lines of JSON; - is standard input", NULL},
    {"repair", 'r', NULL, false,
        "replace bytes that are not UTF-8 instead of refusing the document",
        NULL},
    {"wait", 'w', "STATE", false,
        "durable: all is on disk at the end; searchable: and found by dense "
        "search too",
        "durable"},
    {"language", 'l', "NAME", false,
        "for a new collection: Snowball stemmer, or none (english)", NULL},
    {"embedding", 0, "KIND", false,
        "for a new collection: lsa, client or none (lsa)", NULL},
    {"dim", 0, "N", false, "for a new collection: size of its vectors", NULL},
    {"batch", 'b', "BYTES", false, "text sent in one request", "1M"},
    {"in-flight", 'n', "N", false, "requests in flight at once", "6"},
    {"retry-for", 0, "SECONDS", false,
        "try again this long when the daemon is busy, full or away", "60"},
    {"json", 0, NULL, false, "print the summary as JSON", NULL},
    {"quiet", 'q', NULL, false, "no progress, no summary", NULL},
    {NULL, 0, NULL, false, NULL, NULL},
};

static const struct mb_cli_example examples[] = {
    {"membank-ingest -c notes docs/",
        "all .txt, .md and .html files below a folder"},
    {"membank-ingest -c wiki --jsonl wiki.jsonl.zst --wait searchable",
        "a packed file of documents; return when dense search finds them"},
    {"zcat dump.gz | membank-ingest -c dump --jsonl -",
        "documents from another program"},
    {"membank-ingest -c mails --language german mails.jsonl",
        "words of a new collection are stemmed as German"},
    {NULL, NULL},
};

static const struct mb_cli_program program = {
    .name = "membank-ingest",
    .summary = "put documents into a collection of membankd",
    .usage = "[OPTION]... [--jsonl FILE]... [PATH]...",
    .description =
        "Reads documents and stores them. A PATH is a file or a folder; in a "
        "folder all .txt, .md and .html files below it are taken, the text of "
        "pages without their markup. A file's id is its path, its title the "
        "first heading or its name; meta has path and format.\n\n"
        "A line of JSON is an object with text and, if wanted, id or _id "
        "(else FILE:LINE), title, meta (an object), and vector (for client "
        "vectors). All other keys are kept in meta too. Files packed by zstd "
        "or gzip are known by their first bytes. Files that end in .jsonl or "
        ".ndjson (.zst, .gz) may be given as PATH as well.\n\n"
        "A document whose id exists is replaced; one that has not changed "
        "costs nothing, so an interrupted run may simply be started again. A "
        "document that is refused is reported, the others are stored, and the "
        "exit status is 1.\n\n"
        "The default endpoint is ipc://$XDG_RUNTIME_DIR/membank.sock, or "
        "ipc:///tmp/membank-UID.sock where that is unset.",
    .options = options,
    .examples = examples,
};

/* One document within a batch, so that it can be sent again alone. */
struct item {
    size_t start; /* in the batch's bytes */
    size_t end;
    size_t text_bytes;
    uint64_t id_hash;
    const char *path;
    uint64_t line;
};

struct batch {
    struct mb_buffer docs; /* documents, one msgpack map behind the other */
    struct item *items;    /* (MAX_BATCH_DOCS) */
    size_t n;
    size_t text_bytes;
    uint64_t source_bytes; /* of the input, that its documents came from */
    uint64_t ticket;
    bool sent;
};

struct totals {
    uint64_t stored;
    uint64_t replaced;
    uint64_t unchanged;
    uint64_t refused;
    uint64_t segments;
    uint64_t text_bytes;
};

struct ingest {
    struct mb_cli *cli;
    struct membank *client;
    const char *collection;
    bool json;
    bool quiet;
    bool wait_searchable;
    uint64_t batch_bytes;
    uint64_t max_in_flight;
    uint64_t max_message; /* bytes that the daemon takes; 0: not known */
    double retry_s;
    struct walk_list files;
    struct source *source;
    struct batch *filling;
    struct batch *flying[MAX_IN_FLIGHT];
    size_t n_flying;
    struct mb_buffer request;
    uint32_t *ids; /* (ID_COUNTERS) documents under way by hash of the id */
    struct totals totals;
    uint64_t bytes_read;  /* of the input, that documents so far came from */
    uint64_t bytes_done;  /* of these, acknowledged */
    uint64_t bytes_total; /* of the input; 0: not known */
    struct progress progress;
    double backoff_s;
    uint64_t trouble_ns; /* since when nothing was taken; 0: all is well */
    struct mb_buffer refusals; /* JSON objects, comma between */
};

static volatile sig_atomic_t interrupted;

static void
on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

static void
catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};

    (void)sigemptyset(&action.sa_mask);
    // A second one ends the program at once.
    action.sa_flags = (int)SA_RESETHAND;
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
}

/* ---- batches ---- */

static void
batch_free(struct batch *b)
{
    if (b == NULL)
        return;
    mb_buffer_fini(&b->docs);
    mb_free(b->items);
    mb_free(b);
}

static struct batch *
batch_new(void)
{
    struct batch *b = mb_calloc(1, sizeof *b);

    if (b == NULL)
        return NULL;
    mb_buffer_init(&b->docs, SIZE_MAX / 2);
    b->items = mb_calloc(MAX_BATCH_DOCS, sizeof *b->items);
    if (b->items == NULL) {
        batch_free(b);
        return NULL;
    }
    return b;
}

static mb_status
batch_add(struct batch *b, struct mb_slice msgpack, struct item item)
{
    mb_status st;

    item.start = b->docs.size;
    st = mb_buffer_append(&b->docs, msgpack.data, msgpack.size);
    if (st != MB_OK)
        return st;
    item.end = b->docs.size;
    b->items[b->n++] = item;
    b->text_bytes += item.text_bytes;
    return MB_OK;
}

/* ---- ids under way ---- */

static uint32_t *
id_counter(struct ingest *g, uint64_t hash)
{
    return &g->ids[hash % ID_COUNTERS];
}

static bool
batch_has_id(const struct batch *b, uint64_t hash)
{
    for (size_t i = 0; i < b->n; i++) {
        if (b->items[i].id_hash == hash)
            return true;
    }
    return false;
}

/* True if a document of this id is in a batch that was sent. The counters
 * answer nearly always; only on a hit the batches are looked through. */
static bool
id_is_flying(struct ingest *g, uint64_t hash)
{
    if (*id_counter(g, hash) == 0)
        return false;
    for (size_t i = 0; i < g->n_flying; i++) {
        if (batch_has_id(g->flying[i], hash))
            return true;
    }
    return false;
}

static void
count_ids(struct ingest *g, const struct batch *b, bool add)
{
    for (size_t i = 0; i < b->n; i++) {
        *id_counter(g, b->items[i].id_hash) += add ? 1u : UINT32_MAX;
    }
}

/* ---- saying what happens ---- */

#define STATE_TEXT (4 * DISPLAY_FIGURE + 32)

/* How far it is: of the input as it lies on disk, which may be packed; the rate
 * is that of the text in it. */
static const char *
state_text(struct ingest *g, uint64_t done, char text[STATE_TEXT])
{
    char docs[DISPLAY_FIGURE];
    char bytes[DISPLAY_FIGURE];
    char total[DISPLAY_FIGURE];
    char rate[DISPLAY_FIGURE];
    double seconds = progress_elapsed(&g->progress);
    uint64_t n = g->totals.stored + g->totals.replaced + g->totals.unchanged;

    (void)show_count(docs, n);
    (void)show_bytes(rate,
        seconds > 0 ? (uint64_t)((double)g->totals.text_bytes / seconds) : 0);
    if (g->bytes_total > 0)
        (void)snprintf(text, STATE_TEXT, "%s of %s  %s docs  %s/s of text",
            show_bytes(bytes, done), show_bytes(total, g->bytes_total), docs,
            rate);
    else
        (void)snprintf(text, STATE_TEXT, "%s of text  %s docs  %s/s",
            show_bytes(bytes, g->totals.text_bytes), docs, rate);
    return text;
}

static void
show_progress(struct ingest *g)
{
    char text[STATE_TEXT];
    double part = g->bytes_total > 0
                      ? (double)g->bytes_done / (double)g->bytes_total
                      : -1;

    if (!g->progress.quiet)
        progress_show(&g->progress, part, state_text(g, g->bytes_done, text));
}

/* All was read and acknowledged. */
static void
end_progress(struct ingest *g)
{
    char text[STATE_TEXT];

    if (g->bytes_total > 0)
        progress_end(&g->progress, state_text(g, g->bytes_total, text));
    else
        progress_clear(&g->progress);
}

/* One document that is not stored; keeps its cause for the summary. */
static void
report_refused(struct ingest *g, const char *text, mb_status st)
{
    struct json_writer w;

    g->totals.refused++;
    if (g->totals.refused > MAX_SHOWN)
        return;
    progress_clear(&g->progress);
    (void)fprintf(stderr, "%s: %s\n", program.name, text);
    if (g->totals.refused == MAX_SHOWN)
        (void)fprintf(
            stderr, "%s: further ones are only counted\n", program.name);
    json_writer_init(&w, &g->refusals);
    w.comma = g->refusals.size > 0;
    json_object_begin(&w);
    json_kv_cstr(&w, "code", mb_status_name(st));
    json_kv_cstr(&w, "message", text);
    json_object_end(&w);
}

static void
report_item(
    struct ingest *g, const struct item *item, const struct mb_error *cause)
{
    char text[MB_ERROR_TEXT + 256];

    if (item->line > 0)
        (void)snprintf(text, sizeof text, "%s, line %llu: %s", item->path,
            (unsigned long long)item->line, cause->text);
    else
        (void)snprintf(text, sizeof text, "%s: %s", item->path, cause->text);
    report_refused(g, text, cause->status);
}

/* ---- sending ---- */

static void
pause_s(double seconds)
{
    struct timespec t = {
        (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};

    (void)nanosleep(&t, NULL);
}

/* Ask for the limit; without an answer, what was known stays. */
static void
learn_limits(struct ingest *g)
{
    struct membank_server server;

    if (membank_ping(g->client, &server, NULL) == MEMBANK_OK)
        g->max_message = server.max_message_bytes;
}

/* Request of items [from, to) of a batch, in g->request. Errors: TOO_LARGE for
 * this daemon, as it would answer (if it still could); NOMEM. */
static mb_status
pack_request(struct ingest *g, const struct batch *b, size_t from, size_t to,
    struct mb_error *err)
{
    char size[DISPLAY_FIGURE];
    char max[DISPLAY_FIGURE];
    struct mb_writer w;
    size_t start = b->items[from].start;
    mb_status st;

    mb_buffer_clear(&g->request);
    mb_writer_init(&w, &g->request);
    mb_write_map(&w, 3);
    mb_write_kv_cstr(&w, "collection", g->collection);
    mb_write_kv_cstr(&w, "wait", "durable");
    mb_write_cstr(&w, "documents");
    mb_write_array(&w, to - from);
    st = w.status;
    if (st == MB_OK)
        st = mb_buffer_append(
            &g->request, b->docs.data + start, b->items[to - 1].end - start);
    if (st != MB_OK)
        return mb_error_set(err, st, "request of %zu documents", to - from);
    if (g->max_message > 0 && g->request.size > g->max_message)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "%s as a message, the daemon takes %s: raise its "
            "max_message_bytes, or cut the document up",
            show_bytes(size, g->request.size), show_bytes(max, g->max_message));
    return MB_OK;
}

/* The daemon could not take it now: wait a little, longer each time. Gives up
 * (the cause in err) when nothing was taken for retry_s. */
static mb_status
back_off(struct ingest *g, const struct mb_error *cause, struct mb_error *err)
{
    uint64_t now = mb_clock_ns();

    if (g->trouble_ns == 0)
        g->trouble_ns = now;
    if ((double)(now - g->trouble_ns) / 1e9 >= g->retry_s || interrupted) {
        *err = *cause; // may be one and the same
        return cause->status;
    }
    pause_s(g->backoff_s);
    // It may come back with other limits.
    if (cause->status == MB_ERR_UNREACHABLE)
        learn_limits(g);
    g->backoff_s *= 2;
    if (g->backoff_s > MAX_BACKOFF_S)
        g->backoff_s = MAX_BACKOFF_S;
    return MB_OK;
}

/* The fault of one document, so that the others may still be stored. */
static bool
is_documents_fault(mb_status st)
{
    return st == MB_ERR_BAD_ARG || st == MB_ERR_BAD_TEXT ||
           st == MB_ERR_TOO_LARGE || st == MB_ERR_BAD_MESSAGE ||
           st == MB_ERR_MISMATCH;
}

static void
take_result(struct ingest *g, const struct membank_reply *reply)
{
    const struct membank_value *v = membank_reply_result(reply);

    g->totals.stored += membank_value_u64(membank_value_get(v, "stored"), 0);
    g->totals.replaced +=
        membank_value_u64(membank_value_get(v, "replaced"), 0);
    g->totals.unchanged +=
        membank_value_u64(membank_value_get(v, "unchanged"), 0);
    g->totals.segments +=
        membank_value_u64(membank_value_get(v, "segments"), 0);
    g->trouble_ns = 0;
    g->backoff_s = FIRST_BACKOFF_S;
}

static mb_status
reply_error(const struct membank_reply *reply, struct mb_error *err)
{
    membank_status st = membank_reply_status(reply);
    const char *text = membank_reply_error(reply);

    if (st == MEMBANK_OK)
        return MB_OK;
    return mb_error_set(err, (mb_status)st, "%s",
        text[0] != 0 ? text : membank_status_text(st));
}

/* Send items [from, to) and wait for the answer, again and again while there
 * is hope. */
static mb_status
put_now(struct ingest *g, const struct batch *b, size_t from, size_t to,
    struct mb_error *err)
{
    for (;;) {
        struct membank_reply *reply = NULL;
        struct membank_error cause;
        struct mb_error error;
        mb_status st = pack_request(g, b, from, to, err);

        if (st != MB_OK)
            return st;
        if (membank_call(g->client, "put", tool_bytes(&g->request), &reply,
                &cause) == MEMBANK_OK) {
            take_result(g, reply);
            membank_reply_free(reply);
            return MB_OK;
        }
        membank_reply_free(reply);
        st = tool_error(&cause, &error);
        if (mb_status_may_retry(st))
            st = back_off(g, &error, &error);
        if (st != MB_OK)
            return mb_error_set(err, st, "%s", error.text);
    }
}

/* Store what can be stored of items [from, to), halving around the bad ones.
 * Errors: those that are no document's fault. */
static mb_status
put_halves(struct ingest *g, const struct batch *b, size_t from, size_t to,
    struct mb_error *err)
{
    size_t middle = from + (to - from) / 2;
    mb_status st = put_now(g, b, from, to, err);

    if (st == MB_OK) {
        for (size_t i = from; i < to; i++) {
            g->totals.text_bytes += b->items[i].text_bytes;
        }
        return MB_OK;
    }
    if (!is_documents_fault(st))
        return st;
    if (to - from == 1) {
        report_item(g, &b->items[from], err);
        return MB_OK;
    }
    st = put_halves(g, b, from, middle, err);
    return st != MB_OK ? st : put_halves(g, b, middle, to, err);
}

static mb_status send_batch(
    struct ingest *g, struct batch *b, struct mb_error *err);

/* Take a batch out of those in flight and see how it went. */
static mb_status
settle(struct ingest *g, size_t at, const struct membank_reply *reply,
    struct mb_error *err)
{
    struct batch *b = g->flying[at];
    struct mb_error cause;
    mb_status st = reply_error(reply, &cause);

    g->flying[at] = g->flying[--g->n_flying];
    count_ids(g, b, false);
    if (st == MB_OK) {
        take_result(g, reply);
        g->totals.text_bytes += b->text_bytes;
    } else if (is_documents_fault(st)) {
        st = b->n == 1 ? put_halves(g, b, 0, 1, err)
                       : put_halves(g, b, 0, b->n / 2, err);
        if (st == MB_OK && b->n > 1)
            st = put_halves(g, b, b->n / 2, b->n, err);
    } else if (mb_status_may_retry(st)) {
        st = back_off(g, &cause, err);
        if (st == MB_OK)
            return send_batch(g, b, err);
    } else {
        st = mb_error_set(err, st, "%s", cause.text);
    }
    g->bytes_done += b->source_bytes;
    batch_free(b);
    return st;
}

/* Wait for one reply (or a moment) and deal with it. */
static mb_status
take_reply(struct ingest *g, struct mb_error *err)
{
    struct membank_reply *reply = NULL;
    struct membank_error cause;
    membank_status ms = membank_poll(g->client, POLL_MS, &reply, &cause);
    mb_status st = MB_OK;

    show_progress(g);
    if (ms == MEMBANK_ERR_TIMEOUT)
        return MB_OK;
    if (ms != MEMBANK_OK)
        return tool_error(&cause, err);
    for (size_t i = 0; i < g->n_flying; i++) {
        if (g->flying[i]->ticket == membank_reply_ticket(reply)) {
            st = settle(g, i, reply, err);
            break;
        }
    }
    membank_reply_free(reply);
    return st;
}

static mb_status
drain(struct ingest *g, struct mb_error *err)
{
    mb_status st = MB_OK;

    while (st == MB_OK && g->n_flying > 0) {
        st = take_reply(g, err);
    }
    return st;
}

/* Takes b. */
static mb_status
send_batch(struct ingest *g, struct batch *b, struct mb_error *err)
{
    struct membank_error cause;
    struct mb_error error;
    membank_status ms;
    mb_status st = MB_OK;

    while (st == MB_OK && g->n_flying >= g->max_in_flight) {
        st = take_reply(g, err);
    }
    while (st == MB_OK) {
        st = pack_request(g, b, 0, b->n, &error);
        if (st == MB_OK) {
            ms = membank_send(
                g->client, "put", tool_bytes(&g->request), &b->ticket, &cause);
            if (ms == MEMBANK_OK) {
                count_ids(g, b, true);
                g->flying[g->n_flying++] = b;
                return MB_OK;
            }
            st = tool_error(&cause, &error);
        }
        if (is_documents_fault(st)) {
            st = put_halves(g, b, 0, b->n, err);
            g->bytes_done += b->source_bytes;
            break;
        }
        st = mb_status_may_retry(st) ? back_off(g, &error, err)
                                     : mb_error_set(err, st, "%s", error.text);
    }
    batch_free(b);
    return st;
}

static mb_status
flush(struct ingest *g, struct mb_error *err)
{
    struct batch *b = g->filling;

    g->filling = NULL;
    if (b == NULL || b->n == 0) {
        batch_free(b);
        return MB_OK;
    }
    return send_batch(g, b, err);
}

static mb_status
add_document(
    struct ingest *g, const struct source_document *doc, struct mb_error *err)
{
    struct item item = {.text_bytes = doc->text_bytes,
        .id_hash = mb_hash64(doc->id.data, doc->id.size, 0),
        .path = doc->path,
        .line = doc->line};
    mb_status st = MB_OK;

    if (id_is_flying(g, item.id_hash))
        st = drain(g, err);
    if (st == MB_OK && g->filling == NULL) {
        g->filling = batch_new();
        if (g->filling == NULL)
            st = mb_error_set(err, MB_ERR_NOMEM, "batch");
    }
    if (st != MB_OK)
        return st;
    st = batch_add(g->filling, doc->msgpack, item);
    if (st != MB_OK)
        return mb_error_set(
            err, st, "batch of %zu bytes", g->filling->docs.size);
    g->filling->source_bytes += source_bytes_read(g->source) - g->bytes_read;
    g->bytes_read = source_bytes_read(g->source);
    if (g->filling->docs.size >= g->batch_bytes ||
        g->filling->n == MAX_BATCH_DOCS)
        return flush(g, err);
    return MB_OK;
}

static mb_status
put_all(struct ingest *g, struct mb_error *err)
{
    bool more = true;
    mb_status st = MB_OK;

    while (st == MB_OK && more && !interrupted) {
        struct source_document doc;
        struct mb_error cause;

        if (source_next(g->source, &doc, &more, &cause) != MB_OK)
            report_refused(g, cause.text, cause.status);
        else if (more)
            st = add_document(g, &doc, err);
        show_progress(g);
    }
    if (st == MB_OK)
        st = flush(g, err);
    return st != MB_OK ? st : drain(g, err);
}

/* ---- before and after ---- */

static mb_status
embedding_of(const char *kind, membank_embedding *out, struct mb_error *err)
{
    if (kind == NULL)
        return MB_OK;
    if (strcmp(kind, "lsa") == 0)
        *out = MEMBANK_EMBED_LSA;
    else if (strcmp(kind, "client") == 0)
        *out = MEMBANK_EMBED_CLIENT;
    else if (strcmp(kind, "none") == 0)
        *out = MEMBANK_EMBED_NONE;
    else
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "--embedding %s: lsa, client or none", kind);
    return MB_OK;
}

/* Make the collection. Without settings one that exists is taken as it is;
 * with settings they must agree. */
static mb_status
make_collection(struct ingest *g, struct mb_error *err)
{
    struct membank_create_options opt = {0};
    struct membank_error cause;
    uint64_t dim = 0;
    bool has_settings = mb_cli_has(g->cli, "language") ||
                        mb_cli_has(g->cli, "embedding") ||
                        mb_cli_has(g->cli, "dim");
    mb_status st =
        embedding_of(mb_cli_str(g->cli, "embedding"), &opt.embedding, err);

    if (st == MB_OK)
        st = mb_cli_u64(g->cli, "dim", 1, 4096, &dim, err);
    if (st != MB_OK)
        return st;
    opt.language = mb_cli_str(g->cli, "language");
    opt.dim = (uint32_t)dim;
    opt.exist_ok = has_settings;
    for (;;) {
        struct mb_error error;

        if (membank_create(g->client, g->collection, &opt, &cause) ==
                MEMBANK_OK ||
            (!has_settings && cause.status == MEMBANK_ERR_EXISTS))
            return MB_OK;
        st = tool_error(&cause, &error);
        // Away is an answer here: nothing was begun yet.
        if (mb_status_may_retry(st) && st != MB_ERR_UNREACHABLE)
            st = back_off(g, &error, err);
        else
            return mb_error_set(err, st, "%s", error.text);
        if (st != MB_OK)
            return st;
    }
}

/* Wait until dense search knows all that was put: an empty put that waits. It
 * may take minutes, so that the usual time limit does not hold. */
static mb_status
wait_searchable(struct ingest *g, struct mb_error *err)
{
    double start_s = progress_elapsed(&g->progress);
    char waited[DISPLAY_FIGURE];
    char text[DISPLAY_FIGURE + 32];
    struct membank_error cause;
    struct mb_writer w;
    uint64_t ticket;

    mb_buffer_clear(&g->request);
    mb_writer_init(&w, &g->request);
    mb_write_map(&w, 3);
    mb_write_kv_cstr(&w, "collection", g->collection);
    mb_write_kv_cstr(&w, "wait", "searchable");
    mb_write_cstr(&w, "documents");
    mb_write_array(&w, 0);
    if (w.status != MB_OK)
        return mb_error_set(err, w.status, "request");
    membank_set_timeout(g->client, WAIT_MS);
    if (membank_send(g->client, "put", tool_bytes(&g->request), &ticket,
            &cause) != MEMBANK_OK)
        return tool_error(&cause, err);
    while (!interrupted) {
        struct membank_reply *reply = NULL;
        membank_status ms = membank_poll(g->client, POLL_MS, &reply, &cause);
        mb_status st;

        (void)snprintf(text, sizeof text, "waiting for dense search  %s",
            show_seconds(waited, progress_elapsed(&g->progress) - start_s));
        progress_show(&g->progress, -1, text);
        if (ms == MEMBANK_ERR_TIMEOUT)
            continue;
        if (ms != MEMBANK_OK)
            return tool_error(&cause, err);
        st = reply_error(reply, err);
        membank_reply_free(reply);
        return st;
    }
    return MB_OK;
}

static void
print_json(struct ingest *g, const struct mb_error *error, double seconds)
{
    struct mb_buffer buf;
    struct json_writer w;
    const struct totals *t = &g->totals;

    mb_buffer_init(&buf, SIZE_MAX);
    json_writer_init(&w, &buf);
    json_object_begin(&w);
    json_kv_cstr(&w, "collection", g->collection);
    json_kv_u64(&w, "documents", t->stored + t->replaced + t->unchanged);
    json_kv_u64(&w, "stored", t->stored);
    json_kv_u64(&w, "replaced", t->replaced);
    json_kv_u64(&w, "unchanged", t->unchanged);
    json_kv_u64(&w, "refused", t->refused);
    json_kv_u64(&w, "segments", t->segments);
    json_kv_u64(&w, "bytes", t->text_bytes);
    json_kv_f64(&w, "seconds", seconds);
    json_kv_f64(&w, "mb_per_s",
        seconds > 0 ? (double)t->text_bytes / 1e6 / seconds : 0);
    json_kv_bool(&w, "complete", error == NULL && !interrupted);
    if (error != NULL) {
        json_key(&w, "error");
        json_object_begin(&w);
        json_kv_cstr(&w, "code", mb_status_name(error->status));
        json_kv_cstr(&w, "message", error->text);
        json_object_end(&w);
    }
    if (g->refusals.size > 0) {
        json_key(&w, "errors");
        json_array_begin(&w);
        if (w.status == MB_OK)
            w.status =
                mb_buffer_append(&buf, g->refusals.data, g->refusals.size);
        json_array_end(&w);
    }
    json_object_end(&w);
    tool_put_line(&buf);
    mb_buffer_fini(&buf);
}

static void
print_summary(struct ingest *g, double seconds)
{
    const struct totals *t = &g->totals;
    char a[DISPLAY_FIGURE];
    char b[DISPLAY_FIGURE];
    char c[DISPLAY_FIGURE];
    char d[DISPLAY_FIGURE];

    (void)printf("%s documents (%s replaced",
        show_count(a, t->stored + t->replaced + t->unchanged),
        show_count(b, t->replaced));
    (void)printf(", %s unchanged, %s refused), %s of text, %s segments\n",
        show_count(a, t->unchanged), show_count(b, t->refused),
        show_bytes(c, t->text_bytes), show_count(d, t->segments));
    (void)printf("%.2f s, %s/s\n", seconds,
        show_bytes(
            a, seconds > 0 ? (uint64_t)((double)t->text_bytes / seconds) : 0));
}

/* What the arguments say. Errors: BAD_ARG is a matter of usage. */
static mb_status
read_options(struct ingest *g, struct mb_error *err)
{
    const char *wait = mb_cli_str(g->cli, "wait");
    mb_status st;

    g->collection = mb_cli_str(g->cli, "collection");
    g->json = mb_cli_has(g->cli, "json");
    g->quiet = mb_cli_has(g->cli, "quiet");
    g->backoff_s = FIRST_BACKOFF_S;
    if (strcmp(wait, "searchable") == 0)
        g->wait_searchable = true;
    else if (strcmp(wait, "durable") != 0)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "--wait %s: durable or searchable", wait);
    st = mb_cli_u64(
        g->cli, "batch", 1, 512u * 1024 * 1024, &g->batch_bytes, err);
    if (st == MB_OK)
        st = mb_cli_u64(
            g->cli, "in-flight", 1, MAX_IN_FLIGHT, &g->max_in_flight, err);
    if (st == MB_OK)
        st = mb_cli_double(g->cli, "retry-for", 0, 1e6, &g->retry_s, err);
    if (st == MB_OK && mb_cli_n_args(g->cli) == 0 &&
        !mb_cli_has(g->cli, "jsonl"))
        st = mb_error_set(err, MB_ERR_BAD_ARG,
            "nothing to read: name files, folders, or --jsonl FILE");
    return st;
}

static mb_status
open_inputs(struct ingest *g, struct mb_error *err)
{
    struct source_options opt = {.repair = mb_cli_has(g->cli, "repair")};
    mb_status st = MB_OK;

    for (size_t i = 0; i < mb_cli_count(g->cli, "jsonl") && st == MB_OK; i++) {
        st = walk_add_jsonl(&g->files, mb_cli_nth(g->cli, "jsonl", i), err);
    }
    for (size_t i = 0; i < mb_cli_n_args(g->cli) && st == MB_OK; i++) {
        st = walk_add(&g->files, mb_cli_arg(g->cli, i), err);
    }
    if (st == MB_OK && g->files.n == 0)
        st = mb_error_set(err, MB_ERR_NOT_FOUND,
            "no .txt, .md or .html file in %s", mb_cli_arg(g->cli, 0));
    if (st == MB_OK)
        st = source_new(&g->files, &opt, &g->source, err);
    if (st == MB_OK)
        g->bytes_total = source_bytes_total(g->source);
    g->ids = mb_calloc(ID_COUNTERS, sizeof *g->ids);
    if (st == MB_OK && g->ids == NULL)
        st = mb_error_set(err, MB_ERR_NOMEM, "table of ids");
    return st;
}

static int
run(struct ingest *g)
{
    struct mb_error err;
    mb_status st = open_inputs(g, &err);
    double seconds;

    if (st == MB_OK)
        st = tool_connect(g->cli, &g->client, &err);
    if (st == MB_OK)
        st = make_collection(g, &err);
    if (st == MB_OK)
        learn_limits(g);
    progress_init(&g->progress, stderr, g->quiet);
    if (st == MB_OK)
        st = put_all(g, &err);
    if (st == MB_OK && !interrupted)
        end_progress(g);
    if (st == MB_OK && g->wait_searchable && !interrupted)
        st = wait_searchable(g, &err);
    progress_clear(&g->progress);
    seconds = progress_elapsed(&g->progress);
    if (g->json)
        print_json(g, st != MB_OK ? &err : NULL, seconds);
    else if (!g->quiet && g->client != NULL)
        print_summary(g, seconds);
    if (st != MB_OK)
        return mb_cli_fail(&program, &err);
    if (interrupted)
        (void)fprintf(stderr,
            "%s: interrupted; the same command goes on where this one ended\n",
            program.name);
    return interrupted || g->totals.refused > 0 ? 1 : 0;
}

static void
finish(struct ingest *g)
{
    batch_free(g->filling);
    for (size_t i = 0; i < g->n_flying; i++) {
        batch_free(g->flying[i]);
    }
    source_free(g->source);
    walk_list_fini(&g->files);
    mb_buffer_fini(&g->request);
    mb_buffer_fini(&g->refusals);
    mb_free(g->ids);
    membank_close(g->client);
    mb_cli_free(g->cli);
}

int
main(int argc, char **argv)
{
    struct ingest g = {0};
    struct mb_error err;
    mb_status st = mb_cli_parse(&program, argc, argv, &g.cli, &err);
    int code;

    if (st != MB_OK)
        return tool_parse_failed(&program, st, &err);
    mb_buffer_init(&g.request, SIZE_MAX / 2);
    mb_buffer_init(&g.refusals, SIZE_MAX / 2);
    walk_list_init(&g.files);
    st = read_options(&g, &err);
    if (st == MB_OK) {
        catch_signals();
        code = run(&g);
    } else {
        code = mb_cli_usage(&program, &err);
    }
    finish(&g);
    return tool_finish(&program, code);
}
