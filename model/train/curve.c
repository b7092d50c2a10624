/* SPDX-License-Identifier: Apache-2.0
 * model/train/curve.c - CSV lines, and SVG by hand.
 *
 * All points stay in memory: a run has thousands of steps, not millions. The
 * picture shows training loss as means over bins, so that its size does not
 * grow with the run, and each held-out set as points joined by lines. The first
 * steps, where the loss falls from log(vocabulary), are cut off at the top.
 * Invariant: the file has exactly the lines of `points`, and a header.
 * Threads: one. */
#include "mb_curve.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mb_outfile.h"

#define HEADER    "step,tokens,seconds,set,loss,bits_per_byte,rate,grad_norm\n"
#define MAX_LINE  512
#define MAX_FILE  ((size_t)1 << 30)
#define FORGETS   50.0 /* steps that curve_smooth looks back, about */
#define MAX_BINS  400
#define MAX_SETS  16
#define WIDTH     900.0
#define HEIGHT    480.0
#define LEFT      64.0
#define RIGHT     884.0
#define TOP       48.0
#define BOTTOM    432.0
#define MAX_TICKS 12

struct curve {
    char *path;
    int fd; /* to append to */
    struct mb_buffer points;
    double smooth; /* sum of weighted losses */
    double weight; /* sum of weights */
};

/* ---- points ---- */

size_t
curve_n_points(const struct curve *c)
{
    return c->points.size / sizeof(struct curve_point);
}

const struct curve_point *
curve_at(const struct curve *c, size_t i)
{
    return (const struct curve_point *)(const void *)c->points.data + i;
}

const struct curve_point *
curve_last(const struct curve *c, const char *set)
{
    for (size_t i = curve_n_points(c); i > 0; i--) {
        if (strcmp(curve_at(c, i - 1)->set, set) == 0)
            return curve_at(c, i - 1);
    }
    return NULL;
}

static mb_status
keep(struct curve *c, const struct curve_point *p)
{
    mb_status st = mb_buffer_append(&c->points, p, sizeof *p);
    if (st == MB_OK && strcmp(p->set, CURVE_TRAIN) == 0) {
        c->smooth = c->smooth * (1 - 1 / FORGETS) + p->loss / FORGETS;
        c->weight = c->weight * (1 - 1 / FORGETS) + 1 / FORGETS;
    }
    return st;
}

double
curve_smooth(const struct curve *c)
{
    return c->weight > 0 ? c->smooth / c->weight : (double)NAN;
}

/* ---- lines ---- */

/* ",VALUE", or "," for what is not known. */
static int
format_cell(char *out, size_t size, double v, int digits)
{
    if (isnan(v))
        return snprintf(out, size, ",");
    return snprintf(out, size, ",%.*g", digits, v);
}

static size_t
format_line(const struct curve_point *p, char out[MAX_LINE])
{
    const double cells[4] = {p->loss, p->bits_per_byte, p->rate, p->grad_norm};
    int n = snprintf(out, MAX_LINE, "%llu,%llu,%.3f,%s",
        (unsigned long long)p->step, (unsigned long long)p->tokens, p->seconds,
        p->set);
    for (size_t i = 0; i < 4; i++)
        n += format_cell(
            out + n, MAX_LINE - (size_t)n, cells[i], i < 2 ? 10 : 6);
    n += snprintf(out + n, MAX_LINE - (size_t)n, "\n");
    return (size_t)n;
}

/* The cell at *at, ended by NUL; *at moves behind it. NULL at the end. */
static char *
next_cell(char **at)
{
    char *cell = *at;
    if (!cell)
        return NULL;
    char *comma = strchr(cell, ',');
    if (comma)
        *comma = '\0';
    *at = comma ? comma + 1 : NULL;
    return cell;
}

static bool
read_number(const char *cell, bool may_miss, double *out)
{
    char *end = NULL;
    if (!cell || (*cell == '\0' && !may_miss))
        return false;
    *out = *cell == '\0' ? (double)NAN : strtod(cell, &end);
    return *cell == '\0' || *end == '\0';
}

static bool
parse_line(char *line, struct curve_point *p)
{
    double step;
    double tokens;
    char *at = line;
    *p = (struct curve_point){0};
    if (!read_number(next_cell(&at), false, &step) ||
        !read_number(next_cell(&at), false, &tokens) ||
        !read_number(next_cell(&at), false, &p->seconds))
        return false;
    const char *set = next_cell(&at);
    if (!set || *set == '\0' || strlen(set) >= sizeof p->set ||
        !(step >= 0 && step < 9e15) || !(tokens >= 0 && tokens < 9e15))
        return false;
    memcpy(p->set, set, strlen(set) + 1);
    p->step = (uint64_t)step;
    p->tokens = (uint64_t)tokens;
    return read_number(next_cell(&at), false, &p->loss) &&
           read_number(next_cell(&at), true, &p->bits_per_byte) &&
           read_number(next_cell(&at), true, &p->rate) &&
           read_number(next_cell(&at), true, &p->grad_norm) && !at;
}

/* Keep the whole lines up to last_step of an old file. */
static mb_status
read_old(struct curve *c, uint64_t last_step, struct mb_error *err)
{
    struct mb_slice map;
    mb_status st = outfile_map(c->path, &map, err);
    if (st == MB_ERR_NOT_FOUND)
        return MB_OK;
    if (st != MB_OK)
        return st;
    size_t at = 0;
    for (size_t number = 1; st == MB_OK && at < map.size; number++) {
        char line[MAX_LINE];
        struct curve_point p;
        const uint8_t *end = memchr(map.data + at, '\n', map.size - at);
        if (!end)
            break; // the end of a run that was killed
        size_t size = (size_t)(end - map.data) - at;
        bool is_good = size < sizeof line;
        if (is_good) {
            memcpy(line, map.data + at, size);
            line[size] = '\0';
            is_good = number == 1 ? strncmp(line, HEADER, size) == 0 &&
                                        size == sizeof HEADER - 2
                                  : parse_line(line, &p);
        }
        if (!is_good)
            st = mb_error_set(err, MB_ERR_CORRUPT,
                "%s, line %zu: not a line of a loss curve", c->path, number);
        else if (number > 1 && p.step <= last_step)
            st = keep(c, &p);
        at += size + 1;
    }
    outfile_unmap(map);
    return st;
}

/* The file anew, with the points that are kept. */
static mb_status
rewrite(struct curve *c, struct mb_error *err)
{
    struct outfile *f = NULL;
    char line[MAX_LINE];
    mb_status st = outfile_open(c->path, 0, &f, err);
    if (st != MB_OK)
        return st;
    outfile_write(f, HEADER, sizeof HEADER - 1);
    for (size_t i = 0; i < curve_n_points(c); i++)
        outfile_write(f, line, format_line(curve_at(c, i), line));
    st = outfile_finish(f, NULL, err);
    if (st != MB_OK)
        return st;
    c->fd = open(c->path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (c->fd < 0)
        return mb_error_set(
            err, MB_ERR_IO, "open %s: %s", c->path, strerror(errno));
    return MB_OK;
}

mb_status
curve_open(const char *path, bool resume, uint64_t last_step,
    struct curve **out, struct mb_error *err)
{
    struct curve *c = mb_calloc(1, sizeof *c);
    mb_status st = MB_OK;
    if (!c)
        return mb_error_set(err, MB_ERR_NOMEM, "curve %s", path);
    c->fd = -1;
    mb_buffer_init(&c->points, MAX_FILE);
    c->path = mb_strndup(path, strlen(path));
    if (!c->path)
        st = mb_error_set(err, MB_ERR_NOMEM, "curve %s", path);
    if (st == MB_OK && resume)
        st = read_old(c, last_step, err);
    if (st == MB_OK)
        st = rewrite(c, err);
    if (st != MB_OK) {
        curve_close(c);
        return st;
    }
    *out = c;
    return MB_OK;
}

void
curve_close(struct curve *c)
{
    if (!c)
        return;
    if (c->fd >= 0)
        close(c->fd);
    mb_buffer_fini(&c->points);
    mb_free(c->path);
    mb_free(c);
}

mb_status
curve_add(
    struct curve *c, const struct curve_point *point, struct mb_error *err)
{
    char line[MAX_LINE];
    if (point->set[0] == '\0' || strpbrk(point->set, ",\n\r") != NULL)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "\"%s\" cannot name a curve", point->set);
    mb_status st = keep(c, point);
    if (st != MB_OK)
        return mb_error_set(err, st, "point of %s", c->path);
    size_t size = format_line(point, line);
    ssize_t n;
    do {
        n = write(c->fd, line, size);
    } while (n < 0 && errno == EINTR);
    if (n != (ssize_t)size)
        return mb_error_set(err,
            n >= 0 || errno == ENOSPC || errno == EFBIG ? MB_ERR_NO_SPACE
                                                        : MB_ERR_IO,
            "write %s: %s", c->path, n >= 0 ? "cut short" : strerror(errno));
    return MB_OK;
}

/* ---- the picture ---- */

/* Where values lie on the page. */
struct plane {
    double x_max; /* tokens */
    double y_min; /* loss */
    double y_max;
};

struct svg {
    struct mb_buffer buf;
    mb_status status;
};

static void say(struct svg *s, const char *fmt, ...) MB_PRINTF(2, 3);

static void
say(struct svg *s, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    if (s->status != MB_OK)
        return;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    s->status = mb_buffer_append_str(&s->buf, text);
}

/* Text where < > & and quotes are written out; control characters are left
 * out. */
static void
say_escaped(struct svg *s, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '<')
            say(s, "&lt;");
        else if (*text == '>')
            say(s, "&gt;");
        else if (*text == '&')
            say(s, "&amp;");
        else if ((unsigned char)*text >= 0x20)
            say(s, "%c", *text);
    }
}

static double
x_of(const struct plane *p, double tokens)
{
    return LEFT + (RIGHT - LEFT) * tokens / p->x_max;
}

static double
y_of(const struct plane *p, double loss)
{
    double part = (loss - p->y_min) / (p->y_max - p->y_min);
    part = part < 0 ? 0 : part > 1 ? 1 : part;
    return BOTTOM - (BOTTOM - TOP) * part;
}

/* 1, 2 or 5 times a power of ten, so that at most MAX_TICKS fit in range. */
static double
tick_step(double range)
{
    double step = pow(10, floor(log10(range / MAX_TICKS)));
    static const double factors[] = {1, 2, 5, 10};
    for (size_t i = 0; i < 4; i++) {
        if (range / (step * factors[i]) <= MAX_TICKS)
            return step * factors[i];
    }
    return step * 10;
}

static struct plane
make_plane(const struct curve *c)
{
    struct plane p = {1, INFINITY, -INFINITY};
    size_t n = curve_n_points(c);
    for (size_t i = 0; i < n; i++) {
        if ((double)curve_at(c, i)->tokens > p.x_max)
            p.x_max = (double)curve_at(c, i)->tokens;
    }
    for (size_t i = 0; i < n; i++) {
        const struct curve_point *q = curve_at(c, i);
        if (!isfinite(q->loss))
            continue;
        p.y_min = q->loss < p.y_min ? q->loss : p.y_min;
        // The first fall would press all the rest flat.
        if ((double)q->tokens >= p.x_max * 0.03)
            p.y_max = q->loss > p.y_max ? q->loss : p.y_max;
    }
    if (!isfinite(p.y_min))
        p.y_min = 0;
    p.y_min -= 0.05;
    if (!(p.y_max > p.y_min + 0.1))
        p.y_max = p.y_min + 0.1;
    return p;
}

static void
draw_axes(struct svg *s, const struct plane *p)
{
    double step = tick_step(p->y_max - p->y_min);
    for (double y = ceil(p->y_min / step) * step; y <= p->y_max; y += step) {
        say(s,
            "<line x1=\"%g\" y1=\"%.1f\" x2=\"%g\" y2=\"%.1f\" "
            "stroke=\"#ddd\"/>\n",
            LEFT, y_of(p, y), RIGHT, y_of(p, y));
        say(s, "<text x=\"%g\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
            LEFT - 6, y_of(p, y) + 4, round(y * 1e6) / 1e6);
    }
    step = tick_step(p->x_max);
    for (double x = 0; x <= p->x_max; x += step) {
        say(s,
            "<line x1=\"%.1f\" y1=\"%g\" x2=\"%.1f\" y2=\"%g\" "
            "stroke=\"#ddd\"/>\n",
            x_of(p, x), TOP, x_of(p, x), BOTTOM);
        say(s, "<text x=\"%.1f\" y=\"%g\" text-anchor=\"middle\">%g%s</text>\n",
            x_of(p, x), BOTTOM + 16, p->x_max >= 1e6 ? x / 1e6 : x / 1e3,
            p->x_max >= 1e6 ? "M" : "k");
    }
    say(s, "<text x=\"%g\" y=\"%g\" text-anchor=\"middle\">tokens</text>\n",
        (LEFT + RIGHT) / 2, BOTTOM + 36);
    say(s,
        "<text transform=\"translate(16 %g) rotate(-90)\" "
        "text-anchor=\"middle\">loss, nats a token</text>\n",
        (TOP + BOTTOM) / 2);
}

/* Means of the training loss over bins of tokens, as one line. */
static void
draw_train(struct svg *s, const struct curve *c, const struct plane *p,
    size_t n_bins, const char *style)
{
    double sum[MAX_BINS] = {0};
    double tokens[MAX_BINS] = {0};
    size_t count[MAX_BINS] = {0};
    for (size_t i = 0; i < curve_n_points(c); i++) {
        const struct curve_point *q = curve_at(c, i);
        if (strcmp(q->set, CURVE_TRAIN) != 0 || !isfinite(q->loss))
            continue;
        size_t bin =
            (size_t)((double)q->tokens / p->x_max * (double)(n_bins - 1));
        sum[bin] += q->loss;
        tokens[bin] += (double)q->tokens;
        count[bin]++;
    }
    say(s, "<polyline fill=\"none\" %s points=\"", style);
    for (size_t i = 0; i < n_bins; i++) {
        double n = (double)count[i];
        if (count[i] > 0)
            say(s, "%.1f,%.1f ", x_of(p, tokens[i] / n), y_of(p, sum[i] / n));
    }
    say(s, "\"/>\n");
}

static void
draw_set(struct svg *s, const struct curve *c, const struct plane *p,
    const char *set, const char *colour)
{
    say(s, "<polyline fill=\"none\" stroke=\"%s\" points=\"", colour);
    for (size_t i = 0; i < curve_n_points(c); i++) {
        const struct curve_point *q = curve_at(c, i);
        if (strcmp(q->set, set) == 0 && isfinite(q->loss))
            say(s, "%.1f,%.1f ", x_of(p, (double)q->tokens), y_of(p, q->loss));
    }
    say(s, "\"/>\n");
    const struct curve_point *last = curve_last(c, set);
    say(s, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n",
        x_of(p, (double)last->tokens), y_of(p, last->loss), colour);
}

static void
draw_legend(struct svg *s, const struct curve *c, const char *set,
    const char *colour, size_t row)
{
    double y = TOP + 16 + 16 * (double)row;
    double x = RIGHT - 300;
    say(s, "<rect x=\"%g\" y=\"%g\" width=\"12\" height=\"4\" fill=\"%s\"/>\n",
        x, y - 6, colour);
    say(s, "<text x=\"%g\" y=\"%g\">", x + 18, y);
    say_escaped(s, set);
    if (strcmp(set, CURVE_TRAIN) == 0)
        say(s, " %.3f", curve_smooth(c));
    else
        say(s, " %.3f", curve_last(c, set)->loss);
    if (!isnan(curve_last(c, set)->bits_per_byte))
        say(s, " (%.3f bits a byte)", curve_last(c, set)->bits_per_byte);
    say(s, "</text>\n");
}

/* Names of the held-out sets, in order of their first points. */
static size_t
find_sets(const struct curve *c, const char *sets[MAX_SETS])
{
    size_t n = 0;
    for (size_t i = 0; i < curve_n_points(c) && n < MAX_SETS; i++) {
        const char *set = curve_at(c, i)->set;
        bool is_known = strcmp(set, CURVE_TRAIN) == 0;
        for (size_t j = 0; j < n; j++)
            is_known = is_known || strcmp(sets[j], set) == 0;
        if (!is_known)
            sets[n++] = set;
    }
    return n;
}

mb_status
curve_svg(const struct curve *c, const char *path, const char *title,
    struct mb_error *err)
{
    static const char *const colours[] = {"#c0392b", "#2471a3", "#1e8449",
        "#b9770e", "#7d3c98", "#117a65", "#5d6d7e", "#a04000"};
    const size_t n_colours = sizeof colours / sizeof *colours;
    const char *sets[MAX_SETS];
    struct svg s = {.status = MB_OK};
    struct plane p = make_plane(c);
    size_t n = find_sets(c, sets);
    mb_buffer_init(&s.buf, MAX_FILE);
    say(&s,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" "
        "font-family=\"sans-serif\" font-size=\"12\">\n"
        "<rect width=\"%g\" height=\"%g\" fill=\"white\"/>\n"
        "<text x=\"%g\" y=\"28\" font-size=\"16\">",
        WIDTH, HEIGHT, WIDTH, HEIGHT, LEFT);
    say_escaped(&s, title);
    say(&s, "</text>\n");
    draw_axes(&s, &p);
    draw_train(&s, c, &p, MAX_BINS, "stroke=\"#ccc\"");
    draw_train(&s, c, &p, MAX_BINS / 5, "stroke=\"#333\" stroke-width=\"1.5\"");
    if (curve_last(c, CURVE_TRAIN))
        draw_legend(&s, c, CURVE_TRAIN, "#333", 0);
    for (size_t i = 0; i < n; i++) {
        draw_set(&s, c, &p, sets[i], colours[i % n_colours]);
        draw_legend(&s, c, sets[i], colours[i % n_colours], i + 1);
    }
    say(&s, "</svg>\n");
    mb_status st = s.status;
    if (st != MB_OK)
        (void)mb_error_set(err, st, "picture %s", path);
    else
        st = outfile_put(path, s.buf.data, s.buf.size, err);
    mb_buffer_fini(&s.buf);
    return st;
}
