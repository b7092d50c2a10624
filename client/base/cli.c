/* SPDX-License-Identifier: Apache-2.0
 * client/base/cli.c - parse a command line against its program's table.
 *
 * Small on purpose: getopt_long is no part of POSIX, and the table must also
 * make the help and the man page (cli_help.c). Values are views of argv.
 * Errors name the option and what is near it, since most are slips of the
 * finger: a long option with one dash, letters swapped, a word cut short.
 * Invariants: an option's number is its position in the program's table;
 * numbers from CLI_COMMON on are those of cli_common_options.
 * Threads: the main thread. */
#include "cli.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define CLI_COMMON   0x10000u /* numbers of options every program has */
#define CLI_MAX_NAME 63       /* longer words are not compared */

struct given {
    size_t option;
    const char *value; /* NULL for a flag */
};

struct mb_cli {
    const struct mb_cli_program *prog;
    struct given *given; /* (argc) at most */
    size_t n_given;
    const char **args; /* (argc) at most */
    size_t n_args;
};

const struct mb_cli_option cli_common_options[] = {
    {"help", 'h', NULL, false, "show this help and exit", NULL},
    {"version", 'V', NULL, false, "show the version and exit", NULL},
    {NULL, 0, NULL, false, NULL, NULL},
};

/* ---- what is near ---- */

static size_t
min_of(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Edits (insert, delete, replace, swap of neighbours) from a to b: optimal
 * string alignment, row by row. */
static size_t
edit_distance(const char *a, const char *b)
{
    size_t n = strlen(a);
    size_t m = strlen(b);
    size_t rows[3][CLI_MAX_NAME + 1];

    if (n > CLI_MAX_NAME || m > CLI_MAX_NAME)
        return SIZE_MAX;
    for (size_t j = 0; j <= m; j++) {
        rows[0][j] = j;
    }
    for (size_t i = 1; i <= n; i++) {
        size_t *row = rows[i % 3];
        const size_t *up = rows[(i + 2) % 3];
        const size_t *up2 = rows[(i + 1) % 3];

        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t cost = a[i - 1] == b[j - 1] ? 0 : 1;

            row[j] = min_of(up[j - 1] + cost, min_of(up[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = min_of(row[j], up2[j - 2] + 1);
        }
    }
    return rows[n % 3][m];
}

static void
nearest_in(const struct mb_cli_option *options, const char *word,
    const char **best, size_t *best_distance)
{
    size_t size = strlen(word);

    for (; options->name != NULL; options++) {
        size_t d = edit_distance(word, options->name);

        // A word cut short is as near as one slip.
        if (size >= 2 && strncmp(word, options->name, size) == 0)
            d = 1;
        if (d < *best_distance) {
            *best = options->name;
            *best_distance = d;
        }
    }
}

/* The option that was probably meant, or NULL. */
static const char *
nearest_option(const struct mb_cli_program *prog, const char *word)
{
    const char *best = NULL;
    size_t distance = strlen(word) / 3 + 2;

    nearest_in(prog->options, word, &best, &distance);
    nearest_in(cli_common_options, word, &best, &distance);
    return best;
}

static mb_status
fail_unknown(const struct mb_cli_program *prog, const char *dashes,
    const char *word, struct mb_error *err)
{
    const char *near = nearest_option(prog, word);

    if (near == NULL)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "no such option: %s%s", dashes, word);
    return mb_error_set(err, MB_ERR_BAD_ARG,
        "no such option: %s%s; did you mean --%s?", dashes, word, near);
}

/* ---- parsing ---- */

/* Number of the option with this long name (size bytes), SIZE_MAX if none. */
static size_t
find_name(const struct mb_cli_option *options, const char *name, size_t size)
{
    for (size_t i = 0; options[i].name != NULL; i++) {
        if (strlen(options[i].name) == size &&
            memcmp(options[i].name, name, size) == 0)
            return i;
    }
    return SIZE_MAX;
}

static size_t
find_letter(const struct mb_cli_option *options, char letter)
{
    for (size_t i = 0; options[i].name != NULL; i++) {
        if (options[i].letter == letter)
            return i;
    }
    return SIZE_MAX;
}

/* The program's own options come first: it may take the letter h. */
static size_t
find_option(const struct mb_cli_program *prog, const char *name, size_t size,
    char letter)
{
    size_t i = name != NULL ? find_name(prog->options, name, size)
                            : find_letter(prog->options, letter);

    if (i != SIZE_MAX)
        return i;
    i = name != NULL ? find_name(cli_common_options, name, size)
                     : find_letter(cli_common_options, letter);
    return i == SIZE_MAX ? SIZE_MAX : CLI_COMMON + i;
}

static const struct mb_cli_option *
option_at(const struct mb_cli_program *prog, size_t i)
{
    return i >= CLI_COMMON ? &cli_common_options[i - CLI_COMMON]
                           : &prog->options[i];
}

static void
add_given(struct mb_cli *cli, size_t option, const char *value)
{
    cli->given[cli->n_given].option = option;
    cli->given[cli->n_given].value = value;
    cli->n_given++;
}

/* argv[*i] is "--name" or "--name=value"; takes the next one if it needs it. */
static mb_status
parse_long(
    struct mb_cli *cli, int argc, char **argv, int *i, struct mb_error *err)
{
    const char *name = argv[*i] + 2;
    const char *equals = strchr(name, '=');
    size_t size = equals != NULL ? (size_t)(equals - name) : strlen(name);
    size_t at = find_option(cli->prog, name, size, 0);
    const struct mb_cli_option *option;

    if (at == SIZE_MAX) {
        char word[CLI_MAX_NAME + 1];

        if (size > CLI_MAX_NAME)
            size = CLI_MAX_NAME;
        memcpy(word, name, size);
        word[size] = 0;
        return fail_unknown(cli->prog, "--", word, err);
    }
    option = option_at(cli->prog, at);
    if (option->value == NULL) {
        if (equals != NULL)
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "option --%s takes no value", option->name);
        add_given(cli, at, NULL);
        return MB_OK;
    }
    if (equals != NULL) {
        add_given(cli, at, equals + 1);
        return MB_OK;
    }
    if (*i + 1 >= argc)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "option --%s needs a value: %s", option->name, option->value);
    *i += 1;
    add_given(cli, at, argv[*i]);
    return MB_OK;
}

/* argv[*i] is "-n", "-nVALUE", or flags and at most one value: "-vn5". */
static mb_status
parse_letters(
    struct mb_cli *cli, int argc, char **argv, int *i, struct mb_error *err)
{
    for (const char *p = argv[*i] + 1; *p != 0; p++) {
        size_t at = find_option(cli->prog, NULL, 0, *p);
        const struct mb_cli_option *option;

        if (at == SIZE_MAX) {
            // "-top" is more likely a long option with a dash too few.
            if (p == argv[*i] + 1 && p[1] != 0)
                return fail_unknown(cli->prog, "-", p, err);
            return mb_error_set(err, MB_ERR_BAD_ARG, "no such option: -%c", *p);
        }
        option = option_at(cli->prog, at);
        if (option->value == NULL) {
            add_given(cli, at, NULL);
            continue;
        }
        if (p[1] != 0) {
            add_given(cli, at, p + 1);
            return MB_OK;
        }
        if (*i + 1 >= argc)
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "option -%c (--%s) needs a value: %s", option->letter,
                option->name, option->value);
        *i += 1;
        add_given(cli, at, argv[*i]);
    }
    return MB_OK;
}

static mb_status
parse_all(struct mb_cli *cli, int argc, char **argv, struct mb_error *err)
{
    bool only_args = false;

    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        mb_status st = MB_OK;

        if (only_args || arg[0] != '-' || arg[1] == 0)
            cli->args[cli->n_args++] = arg;
        else if (strcmp(arg, "--") == 0)
            only_args = true;
        else if (arg[1] == '-')
            st = parse_long(cli, argc, argv, &i, err);
        else
            st = parse_letters(cli, argc, argv, &i, err);
        if (st != MB_OK)
            return st;
    }
    return MB_OK;
}

/* Room for what argv may hold: a word of letters is as many flags. */
static mb_status
reserve(struct mb_cli *cli, int argc, char **argv, struct mb_error *err)
{
    size_t n = 1;

    for (int i = 1; i < argc; i++) {
        n += strlen(argv[i]) + 1;
    }
    cli->given = mb_calloc(n, sizeof *cli->given);
    cli->args = mb_calloc((size_t)argc + 1, sizeof *cli->args);
    if (cli->given == NULL || cli->args == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "%zu bytes of arguments", n);
    return MB_OK;
}

/* True if argv asks for the man page: it is made at build time, when nothing
 * else on the line could matter. */
static bool
wants_man(int argc, char **argv)
{
    return argc == 2 && strcmp(argv[1], "--man") == 0;
}

mb_status
mb_cli_parse(const struct mb_cli_program *prog, int argc, char **argv,
    struct mb_cli **out, struct mb_error *err)
{
    struct mb_cli *cli;
    mb_status st;

    if (wants_man(argc, argv)) {
        cli_write_man(prog, stdout);
        return MB_ERR_CANCELLED;
    }
    cli = mb_calloc(1, sizeof *cli);
    if (cli == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "arguments");
    cli->prog = prog;
    st = reserve(cli, argc, argv, err);
    if (st == MB_OK)
        st = parse_all(cli, argc, argv, err);
    if (st != MB_OK)
        goto out;
    for (size_t i = 0; i < cli->n_given && st == MB_OK; i++) {
        if (cli->given[i].option == CLI_COMMON) {
            cli_write_help(prog, stdout, mb_cli_has_color(STDOUT_FILENO));
            st = MB_ERR_CANCELLED;
        } else if (cli->given[i].option == CLI_COMMON + 1) {
            (void)printf("%s %s\n", prog->name, MB_VERSION);
            st = MB_ERR_CANCELLED;
        }
    }
    if (st == MB_OK) {
        *out = cli;
        cli = NULL;
    }
out:
    mb_cli_free(cli);
    return st;
}

void
mb_cli_free(struct mb_cli *cli)
{
    if (cli == NULL)
        return;
    mb_free(cli->given);
    mb_free((void *)cli->args);
    mb_free(cli);
}

/* ---- what was given ---- */

/* A name that the table lacks is a slip of ours, not of the user. */
static size_t
own_option(const struct mb_cli *cli, const char *name)
{
    size_t at = find_name(cli->prog->options, name, strlen(name));

    MB_ASSERT(at != SIZE_MAX);
    return at;
}

size_t
mb_cli_count(const struct mb_cli *cli, const char *name)
{
    size_t at = own_option(cli, name);
    size_t n = 0;

    for (size_t i = 0; i < cli->n_given; i++) {
        n += cli->given[i].option == at ? 1 : 0;
    }
    return n;
}

bool
mb_cli_has(const struct mb_cli *cli, const char *name)
{
    return mb_cli_count(cli, name) > 0;
}

const char *
mb_cli_nth(const struct mb_cli *cli, const char *name, size_t i)
{
    size_t at = own_option(cli, name);

    for (size_t j = 0; j < cli->n_given; j++) {
        if (cli->given[j].option != at)
            continue;
        if (i == 0)
            return cli->given[j].value;
        i--;
    }
    return NULL;
}

const char *
mb_cli_str(const struct mb_cli *cli, const char *name)
{
    size_t n = mb_cli_count(cli, name);

    if (n == 0)
        return cli->prog->options[own_option(cli, name)].def;
    return mb_cli_nth(cli, name, n - 1);
}

size_t
mb_cli_n_args(const struct mb_cli *cli)
{
    return cli->n_args;
}

const char *
mb_cli_arg(const struct mb_cli *cli, size_t i)
{
    return i < cli->n_args ? cli->args[i] : NULL;
}

/* ---- numbers ---- */

/* log2 of what a suffix multiplies by; -1 if it is none. */
static int
suffix_shift(const char *s)
{
    if (s[0] == 0)
        return 0;
    if (s[1] != 0)
        return -1;
    switch (s[0]) {
    case 'k':
    case 'K':
        return 10;
    case 'm':
    case 'M':
        return 20;
    case 'g':
    case 'G':
        return 30;
    default:
        return -1;
    }
}

mb_status
mb_cli_u64(const struct mb_cli *cli, const char *name, uint64_t min,
    uint64_t max, uint64_t *out, struct mb_error *err)
{
    const char *s = mb_cli_str(cli, name);
    unsigned long long v;
    char *end;
    int shift;

    if (s == NULL)
        return MB_OK;
    errno = 0;
    v = strtoull(s, &end, 10);
    shift = suffix_shift(end);
    // strtoull takes signs and blanks, which we do not.
    if (s[0] < '0' || s[0] > '9' || shift < 0)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "--%s %s: not a whole number", name, s);
    if (errno != 0 || v > UINT64_MAX >> shift || v << shift < min ||
        v << shift > max)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "--%s %s: not between %llu and %llu", name, s,
            (unsigned long long)min, (unsigned long long)max);
    *out = v << shift;
    return MB_OK;
}

mb_status
mb_cli_double(const struct mb_cli *cli, const char *name, double min,
    double max, double *out, struct mb_error *err)
{
    const char *s = mb_cli_str(cli, name);
    char *end;
    double v;

    if (s == NULL)
        return MB_OK;
    v = strtod(s, &end);
    if (s[0] == 0 || *end != 0 || !isfinite(v))
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "--%s %s: not a number", name, s);
    if (v < min || v > max)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "--%s %s: not between %g and %g", name, s, min, max);
    *out = v;
    return MB_OK;
}

/* ---- surroundings ---- */

void
mb_cli_default_endpoint(char *out, size_t size)
{
    const char *dir = getenv("XDG_RUNTIME_DIR");

    if (dir != NULL && dir[0] == '/')
        (void)snprintf(out, size, "ipc://%s/membank.sock", dir);
    else
        (void)snprintf(
            out, size, "ipc:///tmp/membank-%lu.sock", (unsigned long)getuid());
}

bool
mb_cli_has_color(int fd)
{
    const char *no_color = getenv("NO_COLOR");
    const char *term = getenv("TERM");

    if (no_color != NULL && no_color[0] != 0)
        return false;
    if (term == NULL || term[0] == 0 || strcmp(term, "dumb") == 0)
        return false;
    return isatty(fd) == 1;
}

unsigned
mb_cli_width(int fd)
{
    struct winsize size;

    if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col >= 20)
        return size.ws_col;
    return 80;
}

/* ---- failing ---- */

/* What the user can do about it, or NULL. */
static const char *
remedy_of(mb_status st)
{
    switch (st) {
    case MB_ERR_UNREACHABLE:
        return "start it with: membankd --store DIR, or name its endpoint";
    case MB_ERR_NO_SPACE:
        return "free space on the disk that holds it and try again";
    case MB_ERR_LOCKED:
        return "end the other process, or use another place";
    case MB_ERR_BUSY:
    case MB_ERR_SHUTTING_DOWN:
    case MB_ERR_TIMEOUT:
        return "try again in a moment";
    case MB_ERR_CORRUPT:
        return "membank-dump verify lists what is damaged; restore a snapshot";
    case MB_ERR_BAD_TEXT:
        return "convert it to UTF-8, or have it repaired";
    case MB_ERR_DENIED:
        return "check the daemon's keys and allow list";
    default:
        return NULL;
    }
}

static void
print_cause(const struct mb_cli_program *prog, const struct mb_error *err)
{
    (void)fflush(stdout);
    (void)fprintf(stderr, "%s: %s\n", prog->name,
        err->text[0] != 0 ? err->text : mb_status_text(err->status));
}

int
mb_cli_fail(const struct mb_cli_program *prog, const struct mb_error *err)
{
    const char *remedy = remedy_of(err->status);

    print_cause(prog, err);
    if (remedy != NULL)
        (void)fprintf(stderr, "%s: %s\n", prog->name, remedy);
    return 1;
}

int
mb_cli_usage(const struct mb_cli_program *prog, const struct mb_error *err)
{
    print_cause(prog, err);
    (void)fprintf(stderr, "usage: %s %s\n", prog->name, prog->usage);
    (void)fprintf(stderr, "%s --help says more\n", prog->name);
    return 2;
}
