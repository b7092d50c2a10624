/* SPDX-License-Identifier: Apache-2.0
 * client/base/cli_help.c - the help and the man page of a program.
 *
 * One table, two renderings: plain text of 80 columns, and roff with the man
 * macros. They hold the same sentences in the same order, which a test
 * compares word by word. Text that the table holds once is never typed again.
 * Threads: the main thread. */
#include "cli.h"

#include <string.h>

#define HELP_WIDTH  80
#define HELP_COLUMN 26 /* where the help of an option begins */

/* Said of all programs. */
static const char exit_status[] = "0 success, 1 failure, 2 wrong usage.";

struct environment {
    const char *name;
    const char *what;
};

static const struct environment environment[] = {
    {"XDG_RUNTIME_DIR", "folder of the default endpoint, "
                        "ipc://$XDG_RUNTIME_DIR/membank.sock"},
    {"MEMBANK_ENDPOINT", "endpoint that the tools connect to if none is given"},
    {"NO_COLOR", "if set, nothing is coloured"},
    {NULL, NULL},
};

/* ---- text, wrapped ---- */

/* Print words of `s` (size bytes) from column `at` on, indented by `indent`
 * after a break. Ends without a line feed; returns the column. */
static size_t
wrap(FILE *out, const char *s, size_t size, size_t at, size_t indent)
{
    size_t i = 0;
    bool first = true;

    while (i < size) {
        size_t n = 0;

        while (i < size && (s[i] == ' ' || s[i] == '\n')) {
            i++;
        }
        while (i + n < size && s[i + n] != ' ' && s[i + n] != '\n') {
            n++;
        }
        if (n == 0)
            break;
        if (!first && at + 1 + n > HELP_WIDTH) {
            (void)fprintf(out, "\n%*s", (int)indent, "");
            at = indent;
        } else if (!first) {
            (void)fputc(' ', out);
            at++;
        }
        (void)fwrite(s + i, 1, n, out);
        at += n;
        i += n;
        first = false;
    }
    return at;
}

/* The next paragraph at *p: its size; *p moves behind it. 0 at the end. */
static size_t
next_paragraph(const char **p, const char **start)
{
    const char *s = *p;
    const char *end;

    while (*s == '\n') {
        s++;
    }
    *start = s;
    end = strstr(s, "\n\n");
    if (end == NULL)
        end = s + strlen(s);
    *p = end;
    return (size_t)(end - s);
}

static void
heading(FILE *out, bool bold, const char *text)
{
    (void)fprintf(
        out, "\n%s%s%s\n", bold ? "\033[1m" : "", text, bold ? "\033[0m" : "");
}

/* "  -k, --top N" and the like; returns the column after it. */
static size_t
help_option_name(FILE *out, const struct mb_cli_option *o)
{
    int n;

    if (o->letter != 0)
        n = fprintf(out, "  -%c, --%s", o->letter, o->name);
    else
        n = fprintf(out, "      --%s", o->name);
    if (o->value != NULL)
        n += fprintf(out, " %s%s", o->value, o->repeat ? " ..." : "");
    return n > 0 ? (size_t)n : 0;
}

static void
help_options(FILE *out, const struct mb_cli_option *options)
{
    for (const struct mb_cli_option *o = options; o->name != NULL; o++) {
        size_t at = help_option_name(out, o);

        if (at + 2 > HELP_COLUMN) {
            (void)fputc('\n', out);
            at = 0;
        }
        (void)fprintf(out, "%*s", (int)(HELP_COLUMN - at), "");
        at = wrap(out, o->help, strlen(o->help), HELP_COLUMN, HELP_COLUMN);
        if (o->def != NULL) {
            size_t more = strlen(o->def) + 12;

            if (at + more > HELP_WIDTH)
                (void)fprintf(out, "\n%*s", HELP_COLUMN, "");
            else
                (void)fputc(' ', out);
            (void)fprintf(out, "(default: %s)", o->def);
        }
        (void)fputc('\n', out);
    }
}

void
cli_write_help(const struct mb_cli_program *prog, FILE *out, bool bold)
{
    const char *p = prog->description;
    const char *para;
    size_t n;

    (void)fprintf(out, "Usage: %s %s\n", prog->name, prog->usage);
    (void)fprintf(out, "%s - %s\n", prog->name, prog->summary);
    while ((n = next_paragraph(&p, &para)) > 0) {
        (void)fputc('\n', out);
        if (para[0] == ' ')
            (void)fwrite(para, 1, n, out);
        else
            (void)wrap(out, para, n, 0, 0);
        (void)fputc('\n', out);
    }
    heading(out, bold, "Options:");
    help_options(out, prog->options);
    help_options(out, cli_common_options);
    heading(out, bold, "Examples:");
    for (const struct mb_cli_example *e = prog->examples; e->command != NULL;
         e++) {
        (void)fprintf(out, "  %s\n      ", e->command);
        (void)wrap(out, e->what, strlen(e->what), 6, 6);
        (void)fputc('\n', out);
    }
    heading(out, bold, "Environment:");
    for (const struct environment *e = environment; e->name != NULL; e++) {
        (void)fprintf(out, "  %-*s", HELP_COLUMN - 2, e->name);
        (void)wrap(out, e->what, strlen(e->what), HELP_COLUMN, HELP_COLUMN);
        (void)fputc('\n', out);
    }
    heading(out, bold, "Exit status:");
    (void)fprintf(out, "  %s\n", exit_status);
}

/* ---- roff ---- */

/* Text with what roff would take as its own made harmless. */
static void
man_text(FILE *out, const char *s, size_t size)
{
    bool at_start = true;

    for (size_t i = 0; i < size; i++) {
        if (at_start && (s[i] == '.' || s[i] == '\''))
            (void)fputs("\\&", out);
        if (s[i] == '\\')
            (void)fputs("\\e", out);
        else if (s[i] == '-')
            (void)fputs("\\-", out);
        else if (s[i] == '\'')
            (void)fputs("\\(aq", out);
        else if (s[i] == '^' || s[i] == '~')
            (void)fprintf(out, "\\(%s", s[i] == '^' ? "ha" : "ti");
        else
            (void)fputc(s[i], out);
        at_start = s[i] == '\n';
    }
}

static void
man_str(FILE *out, const char *s)
{
    man_text(out, s, strlen(s));
}

static void
man_options(FILE *out, const struct mb_cli_option *options)
{
    for (const struct mb_cli_option *o = options; o->name != NULL; o++) {
        (void)fputs(".TP\n", out);
        if (o->letter != 0)
            (void)fprintf(out, "\\fB\\-%c\\fR, ", o->letter);
        (void)fputs("\\fB\\-\\-", out);
        man_str(out, o->name);
        (void)fputs("\\fR", out);
        if (o->value != NULL) {
            (void)fputs(" \\fI", out);
            man_str(out, o->value);
            (void)fprintf(out, "\\fR%s", o->repeat ? " ..." : "");
        }
        (void)fputc('\n', out);
        man_str(out, o->help);
        if (o->def != NULL) {
            (void)fputs(" (default: ", out);
            man_str(out, o->def);
            (void)fputc(')', out);
        }
        (void)fputc('\n', out);
    }
}

static void
man_description(FILE *out, const char *p)
{
    const char *para;
    size_t n;

    (void)fputs(".SH DESCRIPTION\n", out);
    for (bool first = true; (n = next_paragraph(&p, &para)) > 0;
         first = false) {
        bool as_is = para[0] == ' ';

        if (!first)
            (void)fputs(".PP\n", out);
        if (as_is)
            (void)fputs(".nf\n", out);
        man_text(out, para, n);
        (void)fprintf(out, "\n%s", as_is ? ".fi\n" : "");
    }
}

static void
man_examples(FILE *out, const struct mb_cli_example *e)
{
    (void)fputs(".SH EXAMPLES\n", out);
    for (; e->command != NULL; e++) {
        (void)fputs(".TP\n\\fB", out);
        man_str(out, e->command);
        (void)fputs("\\fR\n", out);
        man_str(out, e->what);
        (void)fputc('\n', out);
    }
}

static void
man_title(FILE *out, const struct mb_cli_program *prog)
{
    int section = strchr(prog->name, '-') == NULL ? 8 : 1;

    (void)fputs(".TH ", out);
    for (const char *c = prog->name; *c != 0; c++) {
        if (*c == '-')
            (void)fputs("\\-", out);
        else
            (void)fputc(*c >= 'a' && *c <= 'z' ? *c - 'a' + 'A' : *c, out);
    }
    (void)fprintf(out, " %d \"\" \"membank %s\" \"membank manual\"\n", section,
        MB_VERSION);
}

void
cli_write_man(const struct mb_cli_program *prog, FILE *out)
{
    man_title(out, prog);
    (void)fputs(".SH NAME\n", out);
    man_str(out, prog->name);
    (void)fputs(" \\- ", out);
    man_str(out, prog->summary);
    (void)fputs("\n.SH SYNOPSIS\n\\fB", out);
    man_str(out, prog->name);
    (void)fputs("\\fR ", out);
    man_str(out, prog->usage);
    (void)fputc('\n', out);
    man_description(out, prog->description);
    (void)fputs(".SH OPTIONS\n", out);
    man_options(out, prog->options);
    man_options(out, cli_common_options);
    man_examples(out, prog->examples);
    (void)fputs(".SH ENVIRONMENT\n", out);
    for (const struct environment *e = environment; e->name != NULL; e++) {
        (void)fputs(".TP\n", out);
        man_str(out, e->name);
        (void)fputc('\n', out);
        man_str(out, e->what);
        (void)fputc('\n', out);
    }
    (void)fputs(".SH EXIT STATUS\n", out);
    man_str(out, exit_status);
    (void)fputc('\n', out);
}
