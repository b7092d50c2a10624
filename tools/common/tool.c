/* SPDX-License-Identifier: Apache-2.0
 * tools/common/tool.c - reach the daemon, say what went wrong.
 *
 * Thin on purpose: the client library does the work. Keys come from a file,
 * since a command line is seen by every user of the machine.
 * Threads: see tool.h. */
#include "tool.h"

#include <errno.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "json.h"
#include "lines.h"

extern char **environ;

#define MAX_KEY_FILE 4096

mb_status
tool_error(const struct membank_error *from, struct mb_error *err)
{
    mb_status st = (mb_status)from->status;

    return mb_error_set(err, st, "%s",
        from->text[0] != 0 ? from->text : membank_status_text(from->status));
}

/* ---- connecting ---- */

struct keys {
    struct mb_buffer file;
    const char *server_key;
    const char *public_key;
    const char *secret_key;
};

static char *
skip_blanks(char *s)
{
    while (*s == ' ' || *s == '\t') {
        s++;
    }
    return s;
}

/* "name = value" with NUL at its end; false if it is none of ours. */
static bool
take_key(struct keys *keys, char *line)
{
    char *name = skip_blanks(line);
    char *equals = strchr(name, '=');
    char *value;
    size_t n;

    if (*name == 0 || *name == '#')
        return true;
    if (equals == NULL)
        return false;
    value = skip_blanks(equals + 1);
    for (n = strlen(value);
         n > 0 &&
         (value[n - 1] == ' ' || value[n - 1] == '\r' || value[n - 1] == '\t');
         n--) {
        value[n - 1] = 0;
    }
    for (; equals > name && (equals[-1] == ' ' || equals[-1] == '\t');
         equals--) {
    }
    *equals = 0;
    if (strcmp(name, "server_key") == 0)
        keys->server_key = value;
    else if (strcmp(name, "public_key") == 0)
        keys->public_key = value;
    else if (strcmp(name, "secret_key") == 0)
        keys->secret_key = value;
    else
        return false;
    return true;
}

static mb_status
read_keys(struct keys *keys, const char *path, struct mb_error *err)
{
    mb_status st = file_read(path, &keys->file, err);
    size_t at = 0;
    unsigned number = 0;

    if (st == MB_OK)
        st = mb_buffer_append(&keys->file, "\n", 1);
    while (st == MB_OK && at < keys->file.size) {
        char *line = (char *)keys->file.data + at;
        char *end = memchr(line, '\n', keys->file.size - at);

        *end = 0;
        at += (size_t)(end - line) + 1;
        number++;
        if (!take_key(keys, line))
            st = mb_error_set(err, MB_ERR_BAD_ARG,
                "%s, line %u: no server_key, public_key or secret_key = KEY",
                path, number);
    }
    return st;
}

mb_status
tool_connect(
    const struct mb_cli *cli, struct membank **out, struct mb_error *err)
{
    struct membank_options opt = {0};
    struct membank_error cause;
    struct keys keys = {0};
    double timeout = 60;
    mb_status st = mb_cli_double(cli, "timeout", 0.001, 86400, &timeout, err);

    mb_buffer_init(&keys.file, MAX_KEY_FILE);
    if (st == MB_OK && mb_cli_has(cli, "keys"))
        st = read_keys(&keys, mb_cli_str(cli, "keys"), err);
    if (st == MB_OK) {
        opt.endpoint = mb_cli_str(cli, "connect");
        if (opt.endpoint == NULL)
            opt.endpoint = getenv("MEMBANK_ENDPOINT");
        opt.timeout_ms = (unsigned)(timeout * 1000);
        opt.server_key = keys.server_key;
        opt.public_key = keys.public_key;
        opt.secret_key = keys.secret_key;
        if (membank_open(&opt, out, &cause) != MEMBANK_OK)
            st = tool_error(&cause, err);
    }
    mb_buffer_fini(&keys.file);
    return st;
}

/* ---- values ---- */

mb_status
tool_json_map(const struct mb_cli *cli, const char *name, struct mb_buffer *buf,
    struct mb_error *err)
{
    const char *text = mb_cli_str(cli, name);
    struct mb_arena *arena;
    const struct mb_value *v = NULL;
    struct mb_writer w;
    struct mb_error cause;
    mb_status st;

    if (text == NULL)
        return MB_OK;
    arena = mb_arena_new(SIZE_MAX);
    if (arena == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "--%s", name);
    st = json_parse(mb_slice_cstr(text), false, arena, &v, &cause);
    if (st != MB_OK)
        st = mb_error_set(err, MB_ERR_BAD_ARG, "--%s: %s", name, cause.text);
    else if (v->type != MB_TYPE_MAP)
        st = mb_error_set(err, MB_ERR_BAD_ARG,
            "--%s: an object is wanted, like {\"year\": {\"$gte\": 1900}}",
            name);
    if (st == MB_OK) {
        mb_writer_init(&w, buf);
        mb_write_value(&w, v);
        st = w.status;
        if (st != MB_OK)
            (void)mb_error_set(err, st, "--%s", name);
    }
    mb_arena_free(arena);
    return st;
}

struct membank_bytes
tool_bytes(const struct mb_buffer *buf)
{
    return (struct membank_bytes){buf->data, buf->size};
}

mb_status
tool_result(const struct membank_reply *reply, struct mb_arena *arena,
    const struct mb_value **out, struct mb_error *err)
{
    struct membank_bytes bytes = membank_reply_bytes(reply);

    return mb_wire_parse(
        mb_slice_of(bytes.data, bytes.size), NULL, true, arena, out, err);
}

uint64_t
value_u64(const struct mb_value *map, const char *key, uint64_t def)
{
    const struct mb_value *v = mb_value_get(map, key);

    if (v == NULL)
        return def;
    if (v->type == MB_TYPE_INT && v->i >= 0)
        return (uint64_t)v->i;
    if (v->type == MB_TYPE_UINT)
        return v->u;
    return def;
}

double
value_f64(const struct mb_value *map, const char *key, double def)
{
    const struct mb_value *v = mb_value_get(map, key);

    if (v == NULL)
        return def;
    if (v->type == MB_TYPE_FLOAT)
        return v->f;
    if (v->type == MB_TYPE_INT)
        return (double)v->i;
    return v->type == MB_TYPE_UINT ? (double)v->u : def;
}

struct mb_slice
value_str(const struct mb_value *map, const char *key)
{
    const struct mb_value *v = mb_value_get(map, key);

    return v != NULL && v->type == MB_TYPE_STR ? v->s : mb_slice_of(NULL, 0);
}

/* ---- files ---- */

mb_status
tool_temp_folder(
    const char *program, char out[TOOL_MAX_FOLDER], struct mb_error *err)
{
    const char *base = getenv("TMPDIR");
    if (!base || *base == '\0')
        base = "/tmp";
    int n = snprintf(out, TOOL_MAX_FOLDER, "%s/%s-XXXXXX", base, program);
    mb_status st = MB_OK;
    if (n < 0 || n >= TOOL_MAX_FOLDER)
        st = mb_error_set(
            err, MB_ERR_IO, "make a temporary folder: TMPDIR is too long");
    else if (!mkdtemp(out))
        st = mb_error_set(err, MB_ERR_IO, "make a temporary folder in %s: %s",
            base, strerror(errno));
    if (st != MB_OK)
        out[0] = '\0';
    return st;
}

void
tool_remove_folder(const char *path)
{
    char *argv[] = {
        (char *)"rm", (char *)"-rf", (char *)"--", (char *)path, NULL};
    pid_t pid;

    if (posix_spawnp(&pid, "rm", NULL, NULL, argv, environ) != 0)
        return;
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        continue;
}

/* ---- output ---- */

void
tool_put_line(const struct mb_buffer *buf)
{
    (void)fwrite(buf->data, 1, buf->size, stdout);
    (void)fputc('\n', stdout);
}

int
tool_finish(const struct mb_cli_program *prog, int code)
{
    // A full disk or a closed pipe shows only now.
    if (fflush(stdout) == 0 && ferror(stdout) == 0)
        return code;
    if (errno != EPIPE)
        (void)fprintf(stderr, "%s: write standard output: %s\n", prog->name,
            strerror(errno));
    return code != 0 ? code : 1;
}

int
tool_parse_failed(
    const struct mb_cli_program *prog, mb_status st, const struct mb_error *err)
{
    if (st == MB_ERR_CANCELLED)
        return tool_finish(prog, 0);
    return mb_cli_usage(prog, err);
}
