/* SPDX-License-Identifier: Apache-2.0
 * daemon/config.c - the table of settings, and all that is made from it.
 *
 * A setting is one line here; its parser, flag, help, sample line and check
 * follow. Text is parsed and printed by type, so that what --print-config
 * writes is read back as the same configuration (a test holds that).
 * Invariants: names are unique; a default passes its own range; offsets point
 * to a field of the option's type.
 * Threads: the main thread, before others start and on SIGHUP. */
#include "config.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_MAX_FILE (1u << 20)

#define AT(field) offsetof(struct config, field)
#define KIB       1024.0
#define MIB       (1024.0 * KIB)
#define GIB       (1024.0 * MIB)

/* clang-format off */
const struct config_option config_options[] = {
    {"store", CONFIG_TEXT, AT(store), 0, 0, "DIR", "", false,
        "folder of the store; made if absent"},
    {"model", CONFIG_TEXT, AT(model), 0, 0, "FILE", "", false,
        "GGUF model that reads; empty: the one that comes with membank"},
    {"listen", CONFIG_LIST, AT(listen), 0, 0, "ENDPOINT", "", false,
        "where clients connect: ipc:///path or tcp://host:port"},
    {"insecure", CONFIG_BOOL, AT(insecure), 0, 0, NULL, "no", false,
        "serve other machines without keys"},
    {"ipc_mode", CONFIG_OCTAL, AT(ipc_mode), 0, 0777, "MODE", "0600", false,
        "file mode of ipc sockets"},
    {"curve_secret_key_file", CONFIG_TEXT, AT(curve_secret_key_file), 0, 0,
        "FILE", "", false, "file with the daemon's CURVE secret key (Z85)"},
    {"curve_allow_file", CONFIG_TEXT, AT(curve_allow_file), 0, 0, "FILE", "",
        false,
        "file with the public keys of clients (Z85, one a line); SIGHUP reads "
        "it again"},
    {"log_level", CONFIG_CHOICE, AT(log_level), 0, 0, "err|warn|info|debug",
        "info", true, "least important events that are logged"},
    {"log_file", CONFIG_TEXT, AT(log_file), 0, 0, "FILE", "", true,
        "where events go; empty: stderr"},
    {"workers", CONFIG_U64, AT(workers), 0, 256, "THREADS", "0", false,
        "threads that answer requests; 0: one more than processors"},
    {"map_bytes", CONFIG_BYTES, AT(map_bytes), 0, 64 * 1024 * GIB, "BYTES",
        "0", false, "address space for the store; 0: as the system lets"},
    {"max_embedding_bytes", CONFIG_BYTES, AT(max_embedding_bytes), 0,
        1024 * GIB, "BYTES", "512M", true,
        "memory for embeddings of collections not in use just now"},
    {"inline_us", CONFIG_U64, AT(inline_us), 0, 1e6, "US", "3000", true,
        "reads expected to be quicker run without a hand-over; 0: none"},
    {"shutdown_ms", CONFIG_U64, AT(shutdown_ms), 100, 600000, "MS", "8000",
        true, "time to answer what is in flight at the end"},
    {"model_threads", CONFIG_U64, AT(model_threads), 0, 256, "THREADS", "0",
        false, "threads of the model; 0: one for each processor"},
    {"model_rows", CONFIG_U64, AT(model_rows), 16, 65536, "ROWS", "512", false,
        "tokens that the model reads in one go"},
    {"model_rows_busy", CONFIG_U64, AT(model_rows_busy), 1, 65536, "ROWS",
        "128", false, "the same while it generates: bounds the pauses"},
    {"model_requests", CONFIG_U64, AT(model_requests), 1, 1024, "N", "64",
        false, "requests that the model works on at once"},
    {"model_queue", CONFIG_U64, AT(model_queue), 1, 1e6, "N", "1024", false,
        "requests that wait for the model"},
    {"model_timeout", CONFIG_U64, AT(model_timeout), 1, 86400, "SECONDS",
        "600", true, "longest that the model works on a request"},
    {"cache_rows", CONFIG_U64, AT(cache_rows), 0, 1073741824, "ROWS", "0",
        false, "tokens whose keys and values are kept; 0: eight windows"},
    {"cache_type", CONFIG_CHOICE, AT(cache_type), 0, 0, "f16|q8_0|f32", "f16",
        false, "type of kept keys and values"},
    {"context_memory", CONFIG_BYTES, AT(context_memory), 0, 64 * 1024 * GIB,
        "BYTES", "1G", true,
        "memory of open contexts; those unused for longest are closed"},
    {"context_quota", CONFIG_BYTES, AT(context_quota), 0, 64 * 1024 * GIB,
        "BYTES", "0", true,
        "largest context on disk, unless it is opened with a quota; 0: any"},
    {"context_bytes", CONFIG_BYTES, AT(context_bytes), 0, 64 * 1024 * GIB,
        "BYTES", "0", true, "all contexts on disk together; 0: any"},
    {"max_message_bytes", CONFIG_BYTES, AT(max_message_bytes), 4096, 1 * GIB,
        "BYTES", "32M", false,
        "largest request; twice that ends the connection"},
    {"max_client_requests", CONFIG_U64, AT(max_client_requests), 1, 1e6, "N",
        "256", true, "requests in flight and replies unread, a client"},
    {"max_client_bytes", CONFIG_BYTES, AT(max_client_bytes), 64 * KIB,
        64 * GIB, "BYTES", "64M", true,
        "replies a client may leave unread before it is told busy"},
    {"max_pending_bytes", CONFIG_BYTES, AT(max_pending_bytes), 1 * MIB,
        1024 * GIB, "BYTES", "256M", true,
        "requests taken in and not answered yet, of all clients"},
    {"max_documents", CONFIG_U64, AT(max_documents), 1, 1e6, "N", "10000",
        true, "documents in a put, ids in a get or delete"},
    {"max_k", CONFIG_U64, AT(max_k), 1, 1e6, "N", "1000", true,
        "hits of a query"},
    {"max_queries", CONFIG_U64, AT(max_queries), 1, 1e6, "N", "256", true,
        "queries in one request"},
    {"max_list", CONFIG_U64, AT(max_list), 1, 1e6, "N", "1000", true,
        "documents in the reply to list"},
    {"max_texts", CONFIG_U64, AT(max_texts), 1, 1e6, "N", "1024", true,
        "texts in one embed"},
    {"refit", CONFIG_BOOL, AT(refit), 0, 0, NULL, "yes", true,
        "fit embeddings and build trees in the background"},
    {"strict_delete", CONFIG_BOOL, AT(strict_delete), 0, 0, NULL, "no", true,
        "attach no memory block that was trained on a deleted text"},
    {"bank_threads", CONFIG_U64, AT(bank_threads), 1, 1024, "N", "1", true,
        "threads that train memory banks while no request is under way"},
    {"bank_nice", CONFIG_U64, AT(bank_nice), 0, 19, "N", "19", false,
        "their priority as nice(1) has it; 19: the lowest"},
    {"bank_checkpoint", CONFIG_U64, AT(bank_checkpoint), 1, 86400, "SECONDS",
        "60", true, "from one save of such a training to the next"},
    {"refit_min_segments", CONFIG_U64, AT(refit_min_segments), 2, 1e9,
        "SEGMENTS", "64", true, "size of a collection at its first fit"},
    {"refit_quiet_ms", CONFIG_U64, AT(refit_quiet_ms), 0, 3600000, "MS",
        "1000", true, "quiet time after puts before a refit"},
    {"refit_sample", CONFIG_U64, AT(refit_sample), 64, 1e7, "SEGMENTS",
        "30000", true, "segments that an embedding is fitted on"},
    {"refit_terms", CONFIG_U64, AT(refit_terms), 64, 1e7, "TERMS", "65536",
        true, "most frequent terms that an embedding knows"},
    {"flat_below", CONFIG_U64, AT(flat_below), 0, 4e9, "VECTORS", "20000",
        true, "collections with fewer vectors are scanned whole"},
    {"recall_target", CONFIG_DOUBLE, AT(recall_target), 0.5, 1, "RECALL",
        "0.955", true, "recall@10 that a tree's search is set for"},
    {"snapshot_dir", CONFIG_TEXT, AT(snapshot_dir), 0, 0, "DIR", "", true,
        "where snapshots go; empty: STORE.snapshots"},
    {"snapshot_anywhere", CONFIG_BOOL, AT(snapshot_anywhere), 0, 0, NULL, "no",
        true, "clients may name any folder for a snapshot"},
    {NULL, CONFIG_TEXT, 0, 0, 0, NULL, NULL, false, NULL},
};

/* clang-format on */

/* ---- values ---- */

static void *
field_of(struct config *cfg, const struct config_option *opt)
{
    return (uint8_t *)cfg + opt->offset;
}

static const void *
const_field_of(const struct config *cfg, const struct config_option *opt)
{
    return (const uint8_t *)cfg + opt->offset;
}

static mb_status
fail_range(
    const struct config_option *opt, const char *value, struct mb_error *err)
{
    if (opt->type == CONFIG_OCTAL)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "%s: %s is not an octal mode from 0 to %o", opt->name, value,
            (unsigned)opt->max);
    return mb_error_set(err, MB_ERR_BAD_ARG,
        "%s: %s is not a %s from %.15g to %.15g", opt->name, value,
        opt->type == CONFIG_DOUBLE ? "number" : "whole number", opt->min,
        opt->max);
}

/* A suffix as a shift: "" 0, k 10, M 20, G 30, T 40; -1 if it is none. */
static int
suffix_shift(const char *s)
{
    static const char letters[] = "kKmMgGtT";
    const char *at;

    if (s[0] == 0)
        return 0;
    if (s[1] != 0)
        return -1;
    at = strchr(letters, s[0]);
    return at == NULL ? -1 : 10 * (int)((at - letters) / 2 + 1);
}

static mb_status
set_whole(uint64_t *field, const struct config_option *opt, const char *value,
    struct mb_error *err)
{
    unsigned long long v;
    char *end;
    int shift;

    errno = 0;
    v = strtoull(value, &end, opt->type == CONFIG_OCTAL ? 8 : 10);
    shift =
        opt->type == CONFIG_OCTAL ? (*end == 0 ? 0 : -1) : suffix_shift(end);
    // strtoull takes signs and blanks, which we do not.
    if (value[0] < '0' || value[0] > '9' || shift < 0 || errno != 0 ||
        v > UINT64_MAX >> shift)
        return fail_range(opt, value, err);
    v <<= shift;
    if ((double)v < opt->min || (double)v > opt->max)
        return fail_range(opt, value, err);
    *field = v;
    return MB_OK;
}

static mb_status
set_double(double *field, const struct config_option *opt, const char *value,
    struct mb_error *err)
{
    char *end;
    double v = strtod(value, &end);

    if (value[0] == 0 || *end != 0 || !isfinite(v) || v < opt->min ||
        v > opt->max)
        return fail_range(opt, value, err);
    *field = v;
    return MB_OK;
}

static mb_status
set_bool(bool *field, const struct config_option *opt, const char *value,
    struct mb_error *err)
{
    if (strcmp(value, "yes") == 0 || strcmp(value, "true") == 0)
        *field = true;
    else if (strcmp(value, "no") == 0 || strcmp(value, "false") == 0)
        *field = false;
    else
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "%s: %s is not yes or no", opt->name, value);
    return MB_OK;
}

static mb_status
set_choice(uint64_t *field, const struct config_option *opt, const char *value,
    struct mb_error *err)
{
    const char *word = opt->unit;
    size_t size = strlen(value);
    uint64_t position = 0;

    for (;;) {
        const char *bar = strchr(word, '|');
        size_t word_size = bar != NULL ? (size_t)(bar - word) : strlen(word);

        if (word_size == size && memcmp(word, value, size) == 0) {
            *field = position;
            return MB_OK;
        }
        if (bar == NULL)
            break;
        word = bar + 1;
        position++;
    }
    return mb_error_set(err, MB_ERR_BAD_ARG, "%s: %s is not one of %s",
        opt->name, value, opt->unit);
}

static mb_status
set_text(char *field, const struct config_option *opt, const char *value,
    struct mb_error *err)
{
    size_t size = strlen(value);

    if (size >= CONFIG_MAX_TEXT)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "%s: %zu bytes, at most %d are possible", opt->name, size,
            CONFIG_MAX_TEXT - 1);
    memcpy(field, value, size + 1);
    return MB_OK;
}

static mb_status
add_text(struct config_list *list, const struct config_option *opt,
    const char *value, struct mb_error *err)
{
    if (value[0] == 0)
        return MB_OK;
    if (list->n == CONFIG_MAX_LIST)
        return mb_error_set(err, MB_ERR_BAD_ARG, "%s: given more than %d times",
            opt->name, CONFIG_MAX_LIST);
    mb_status st = set_text(list->items[list->n], opt, value, err);
    if (st == MB_OK)
        list->n++;
    return st;
}

static mb_status
set_option(struct config *cfg, const struct config_option *opt,
    const char *value, struct mb_error *err)
{
    void *field = field_of(cfg, opt);

    switch (opt->type) {
    case CONFIG_TEXT:
        return set_text(field, opt, value, err);
    case CONFIG_LIST:
        return add_text(field, opt, value, err);
    case CONFIG_BOOL:
        return set_bool(field, opt, value, err);
    case CONFIG_DOUBLE:
        return set_double(field, opt, value, err);
    case CONFIG_CHOICE:
        return set_choice(field, opt, value, err);
    case CONFIG_U64:
    case CONFIG_BYTES:
    case CONFIG_OCTAL:
        break;
    }
    return set_whole(field, opt, value, err);
}

static const struct config_option *
find_option(const char *name)
{
    for (const struct config_option *o = config_options; o->name; o++) {
        if (strcmp(o->name, name) == 0)
            return o;
    }
    return NULL;
}

/* The option whose name shares the longest start with `name`. */
static const char *
nearest_name(const char *name)
{
    const char *best = config_options[0].name;
    size_t best_size = 0;

    for (const struct config_option *o = config_options; o->name; o++) {
        size_t size = 0;

        while (name[size] != 0 && name[size] == o->name[size]) {
            size++;
        }
        if (size > best_size) {
            best = o->name;
            best_size = size;
        }
    }
    return best;
}

mb_status
config_set(struct config *cfg, const char *name, const char *value,
    struct mb_error *err)
{
    const struct config_option *opt = find_option(name);

    if (opt == NULL)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "no such option: %.64s (nearest: %s)", name, nearest_name(name));
    return set_option(cfg, opt, value, err);
}

struct config *
config_new(void)
{
    struct config *cfg = mb_calloc(1, sizeof *cfg);

    if (cfg == NULL)
        return NULL;
    for (const struct config_option *o = config_options; o->name; o++) {
        MB_ASSERT(set_option(cfg, o, o->def, NULL) == MB_OK);
    }
    return cfg;
}

void
config_free(struct config *cfg)
{
    mb_free(cfg);
}

/* ---- files ---- */

static bool
is_blank(uint8_t c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

static struct mb_slice
trim(struct mb_slice s)
{
    while (s.size > 0 && is_blank(s.data[0])) {
        s.data++;
        s.size--;
    }
    while (s.size > 0 && is_blank(s.data[s.size - 1])) {
        s.size--;
    }
    return s;
}

/* One "name = value" line into NUL-terminated halves; false if it is none. */
static bool
split_line(struct mb_slice line, char *name, char *value)
{
    const uint8_t *equals = memchr(line.data, '=', line.size);
    struct mb_slice a;
    struct mb_slice b;

    if (equals == NULL)
        return false;
    a = trim(mb_slice_of(line.data, (size_t)(equals - line.data)));
    b = trim(
        mb_slice_of(equals + 1, line.size - (size_t)(equals + 1 - line.data)));
    if (a.size == 0 || a.size >= CONFIG_MAX_TEXT || b.size >= CONFIG_MAX_TEXT ||
        memchr(line.data, 0, line.size) != NULL)
        return false;
    memcpy(name, a.data, a.size);
    name[a.size] = 0;
    if (b.size > 0)
        memcpy(value, b.data, b.size);
    value[b.size] = 0;
    return true;
}

mb_status
config_read_text(struct config *cfg, const char *path, struct mb_slice text,
    struct mb_error *err)
{
    char name[CONFIG_MAX_TEXT];
    char value[CONFIG_MAX_TEXT];
    unsigned number = 0;
    size_t pos = 0;

    while (pos < text.size) {
        const uint8_t *start = text.data + pos;
        const uint8_t *end = memchr(start, '\n', text.size - pos);
        size_t size = end != NULL ? (size_t)(end - start) : text.size - pos;
        struct mb_slice line = trim(mb_slice_of(start, size));
        struct mb_error cause;

        number++;
        pos += size + 1;
        if (line.size == 0 || line.data[0] == '#')
            continue;
        if (!split_line(line, name, value))
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "%s:%u: a line is 'name = value' or begins with #", path,
                number);
        if (config_set(cfg, name, value, &cause) != MB_OK)
            return mb_error_set(
                err, MB_ERR_BAD_ARG, "%s:%u: %s", path, number, cause.text);
    }
    return MB_OK;
}

mb_status
config_read_file(struct config *cfg, const char *path, struct mb_error *err)
{
    FILE *f = fopen(path, "rb");
    uint8_t *bytes = NULL;
    mb_status st;
    size_t n;

    if (f == NULL)
        return mb_error_set(err, errno == ENOENT ? MB_ERR_NOT_FOUND : MB_ERR_IO,
            "open %s: %s", path, strerror(errno));
    bytes = mb_alloc(CONFIG_MAX_FILE);
    if (bytes == NULL) {
        st = mb_error_set(err, MB_ERR_NOMEM, "read %s", path);
        goto out;
    }
    n = fread(bytes, 1, CONFIG_MAX_FILE, f);
    if (ferror(f) != 0)
        st = mb_error_set(err, MB_ERR_IO, "read %s: %s", path, strerror(errno));
    else if (n == CONFIG_MAX_FILE)
        st = mb_error_set(err, MB_ERR_BAD_ARG, "%s: larger than %u bytes", path,
            CONFIG_MAX_FILE);
    else
        st = config_read_text(cfg, path, mb_slice_of(bytes, n), err);
out:
    mb_free(bytes);
    (void)fclose(f);
    return st;
}

/* ---- flags ---- */

static void
flag_name(const char *name, char *out, size_t size)
{
    (void)snprintf(out, size, "%s", name);
    for (char *p = out; *p != 0; p++) {
        if (*p == '_')
            *p = '-';
    }
}

/* Options of the command line that are no settings. */
static const struct mb_cli_option own_options[] = {
    {"config", 'C', "FILE", false, "read settings from this file", NULL},
    {"print-config", 0, NULL, false,
        "write the settings in force as a file, and exit", NULL},
    {"sample-config", 0, NULL, false,
        "write a sample file of all settings, and exit", NULL},
    {NULL, 0, NULL, false, NULL, NULL},
};

static const struct mb_cli_example examples[] = {
    {"membankd --store ./demo", "serve on the default local endpoint"},
    {"membankd --store ./demo --listen tcp://127.0.0.1:7777",
        "serve local programs over TCP"},
    {"membankd --config /etc/membank/membankd.conf --print-config",
        "check a file and see what is in force"},
    {NULL, NULL},
};

static char
letter_of(const char *name)
{
    return strcmp(name, "store") == 0    ? 's'
           : strcmp(name, "listen") == 0 ? 'l'
           : strcmp(name, "model") == 0  ? 'm'
                                         : 0;
}

static bool
is_switch(const struct config_option *o)
{
    return o->type == CONFIG_BOOL && strcmp(o->def, "no") == 0;
}

struct config_program *
config_program_new(void)
{
    size_t n_own = sizeof own_options / sizeof own_options[0];
    struct config_program *p = mb_calloc(1, sizeof *p);
    size_t n = 0;

    if (p == NULL)
        return NULL;
    while (config_options[n].name != NULL) {
        n++;
    }
    p->options = mb_calloc(n + n_own, sizeof *p->options);
    p->names = mb_calloc(n, sizeof *p->names);
    if (p->options == NULL || p->names == NULL) {
        config_program_free(p);
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        const struct config_option *o = &config_options[i];

        flag_name(o->name, p->names[i], sizeof p->names[i]);
        p->options[i].name = p->names[i];
        p->options[i].letter = letter_of(o->name);
        // What is off by default is switched on by its bare name.
        p->options[i].value = o->type != CONFIG_BOOL ? o->unit
                              : is_switch(o)         ? NULL
                                                     : "yes|no";
        p->options[i].repeat = o->type == CONFIG_LIST;
        p->options[i].help = o->help;
        p->options[i].def = o->def[0] != 0 && !is_switch(o) ? o->def : NULL;
    }
    memcpy(p->options + n, own_options, sizeof own_options);
    p->program = (struct mb_cli_program){
        .name = "membankd",
        .summary = "long-term memory that programs can talk to",
        .usage = "--store DIR [OPTION]...",
        .description =
            "Serves one store to clients over ZeroMQ, until SIGTERM or "
            "SIGINT. SIGHUP reads the file again and opens the log anew.\n\n"
            "Settings come from defaults, then the file, then the command "
            "line. In files they are written as 'name = value', with "
            "underscores for dashes.",
        .options = p->options,
        .examples = examples,
    };
    return p;
}

void
config_program_free(struct config_program *p)
{
    if (p == NULL)
        return;
    mb_free(p->options);
    mb_free(p->names);
    mb_free(p);
}

mb_status
config_read_flags(
    struct config *cfg, const struct mb_cli *cli, struct mb_error *err)
{
    char name[48];

    for (const struct config_option *o = config_options; o->name; o++) {
        size_t n;

        flag_name(o->name, name, sizeof name);
        n = mb_cli_count(cli, name);
        // Endpoints on the command line stand for those in the file.
        if (n > 0 && o->type == CONFIG_LIST)
            ((struct config_list *)field_of(cfg, o))->n = 0;
        for (size_t i = 0; i < n; i++) {
            const char *value = is_switch(o) ? "yes" : mb_cli_nth(cli, name, i);
            struct mb_error cause;

            if (set_option(cfg, o, value, &cause) != MB_OK)
                return mb_error_set(err, MB_ERR_BAD_ARG, "--%s", cause.text);
        }
    }
    return MB_OK;
}

/* ---- checks ---- */

static bool
has_prefix(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

/* Of 127.0.0.0/8, as digits: not a name that begins like one. */
static bool
is_loopback_v4(const char *endpoint)
{
    const char *host = endpoint + strlen("tcp://");

    return has_prefix(endpoint, "tcp://127.") &&
           host[strspn(host, "0123456789.")] == ':';
}

bool
config_endpoint_is_open(const char *endpoint)
{
    return !has_prefix(endpoint, "ipc://") && !is_loopback_v4(endpoint) &&
           !has_prefix(endpoint, "tcp://localhost:") &&
           !has_prefix(endpoint, "tcp://[::1]:");
}

static mb_status
check_endpoint(
    const struct config *cfg, const char *endpoint, struct mb_error *err)
{
    if (!has_prefix(endpoint, "ipc://") && !has_prefix(endpoint, "tcp://"))
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "listen %s: endpoints begin with ipc:// or tcp://", endpoint);
    if (has_prefix(endpoint, "ipc://") && endpoint[6] != '/')
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "listen %s: ipc:// is followed by an absolute path", endpoint);
    if (config_endpoint_is_open(endpoint) && !cfg->insecure &&
        cfg->curve_secret_key_file[0] == 0)
        return mb_error_set(err, MB_ERR_DENIED,
            "listen %s: other machines could connect; give "
            "--curve-secret-key-file, or --insecure if that is meant",
            endpoint);
    return MB_OK;
}

mb_status
config_check(struct config *cfg, struct mb_error *err)
{
    mb_status st = MB_OK;

    if (cfg->store[0] == 0)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "no store named: give --store DIR");
    if (cfg->curve_allow_file[0] != 0 && cfg->curve_secret_key_file[0] == 0)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "curve_allow_file needs curve_secret_key_file");
    if (cfg->listen.n == 0) {
        mb_cli_default_endpoint(
            cfg->listen.items[0], sizeof cfg->listen.items[0]);
        cfg->listen.n = 1;
    }
    for (size_t i = 0; i < cfg->listen.n && st == MB_OK; i++) {
        st = check_endpoint(cfg, cfg->listen.items[i], err);
    }
    return st;
}

/* ---- writing ---- */

static void
choice_word(const char *words, uint64_t position, char *out, size_t size)
{
    const char *bar;

    for (; position > 0; position--) {
        bar = strchr(words, '|');
        MB_ASSERT(bar != NULL);
        words = bar + 1;
    }
    bar = strchr(words, '|');
    (void)snprintf(out, size, "%.*s",
        (int)(bar != NULL ? (size_t)(bar - words) : strlen(words)), words);
}

/* With the largest suffix that loses nothing. */
static void
bytes_word(uint64_t v, char *out, size_t size)
{
    static const char suffixes[] = "\0kMGT";
    unsigned power = 0;

    while (power < 4 && v != 0 && (v & 1023) == 0) {
        v >>= 10;
        power++;
    }
    (void)snprintf(out, size, "%llu%.1s", (unsigned long long)v,
        power > 0 ? &suffixes[power] : "");
}

void
config_value(const struct config *cfg, const struct config_option *opt,
    size_t i, char *out, size_t size)
{
    const void *field = const_field_of(cfg, opt);
    const struct config_list *list = field;

    switch (opt->type) {
    case CONFIG_TEXT:
        (void)snprintf(out, size, "%s", (const char *)field);
        break;
    case CONFIG_LIST:
        (void)snprintf(out, size, "%s", i < list->n ? list->items[i] : "");
        break;
    case CONFIG_U64:
        (void)snprintf(
            out, size, "%llu", (unsigned long long)*(const uint64_t *)field);
        break;
    case CONFIG_BYTES:
        bytes_word(*(const uint64_t *)field, out, size);
        break;
    case CONFIG_OCTAL:
        (void)snprintf(out, size, "%04o", (unsigned)*(const uint64_t *)field);
        break;
    case CONFIG_BOOL:
        (void)snprintf(out, size, "%s", *(const bool *)field ? "yes" : "no");
        break;
    case CONFIG_DOUBLE:
        (void)snprintf(out, size, "%.15g", *(const double *)field);
        break;
    case CONFIG_CHOICE:
        choice_word(opt->unit, *(const uint64_t *)field, out, size);
        break;
    }
}

static mb_status
write_help(const struct config_option *o, struct mb_buffer *out)
{
    mb_status st = mb_buffer_printf(out, "# %s", o->help);

    if (st != MB_OK)
        return st;
    switch (o->type) {
    case CONFIG_TEXT:
    case CONFIG_LIST:
        st = mb_buffer_printf(out, " [%s%s]", o->unit,
            o->type == CONFIG_LIST ? ", may be repeated" : "");
        break;
    case CONFIG_BOOL:
        st = mb_buffer_append_str(out, " [yes or no]");
        break;
    case CONFIG_CHOICE:
        st = mb_buffer_printf(out, " [%s]", o->unit);
        break;
    case CONFIG_OCTAL:
        st = mb_buffer_append_str(out, " [octal]");
        break;
    case CONFIG_U64:
    case CONFIG_BYTES:
    case CONFIG_DOUBLE:
        st = mb_buffer_printf(
            out, " [%s, %.15g to %.15g]", o->unit, o->min, o->max);
        break;
    }
    if (st == MB_OK && o->live)
        st = mb_buffer_append_str(out, " (SIGHUP)");
    return st == MB_OK ? mb_buffer_append_str(out, "\n") : st;
}

static mb_status
write_option(const struct config *cfg, const struct config_option *o,
    bool sample, struct mb_buffer *out)
{
    const struct config_list *list = const_field_of(cfg, o);
    size_t n = o->type == CONFIG_LIST && !sample ? list->n : 1;
    mb_status st = write_help(o, out);

    for (size_t i = 0; i < n && st == MB_OK; i++) {
        char value[CONFIG_MAX_TEXT];

        if (sample)
            (void)snprintf(value, sizeof value, "%s", o->def);
        else
            config_value(cfg, o, i, value, sizeof value);
        st = mb_buffer_printf(out, "%s%s =%s%s\n", sample ? "#" : "", o->name,
            value[0] != 0 ? " " : "", value);
    }
    return st == MB_OK ? mb_buffer_append_str(out, "\n") : st;
}

mb_status
config_write(const struct config *cfg, bool sample, struct mb_buffer *out)
{
    mb_status st = mb_buffer_append_str(out,
        "# membankd settings: name = value, one a line. The command line\n"
        "# stands above this file. (SIGHUP): changes while running.\n\n");

    for (const struct config_option *o = config_options; o->name; o++) {
        if (st == MB_OK)
            st = write_option(cfg, o, sample, out);
    }
    return st;
}

/* ---- reload ---- */

static size_t
field_size(const struct config_option *o)
{
    switch (o->type) {
    case CONFIG_TEXT:
        return CONFIG_MAX_TEXT;
    case CONFIG_LIST:
        return sizeof(struct config_list);
    case CONFIG_BOOL:
        return sizeof(bool);
    case CONFIG_DOUBLE:
        return sizeof(double);
    default:
        return sizeof(uint64_t);
    }
}

/* By value as written: what lies behind the NUL of a text does not count. */
static bool
is_same(const struct config *a, const struct config *b,
    const struct config_option *o)
{
    char x[CONFIG_MAX_TEXT];
    char y[CONFIG_MAX_TEXT];

    for (size_t i = 0; i < (o->type == CONFIG_LIST ? CONFIG_MAX_LIST : 1);
         i++) {
        config_value(a, o, i, x, sizeof x);
        config_value(b, o, i, y, sizeof y);
        if (strcmp(x, y) != 0)
            return false;
    }
    return true;
}

struct config *
config_reload(const struct config *current, const struct config *wanted,
    size_t *n_pending)
{
    struct config *cfg = mb_calloc(1, sizeof *cfg);

    if (cfg == NULL)
        return NULL;
    *cfg = *current;
    *n_pending = 0;
    for (const struct config_option *o = config_options; o->name; o++) {
        if (is_same(current, wanted, o))
            continue;
        if (o->live)
            memcpy(field_of(cfg, o), const_field_of(wanted, o), field_size(o));
        else
            *n_pending += 1;
    }
    return cfg;
}
