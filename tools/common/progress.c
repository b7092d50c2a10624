/* SPDX-License-Identifier: Apache-2.0
 * tools/common/progress.c - draw the bar, estimate what is left.
 *
 * The time left comes from the rate of the last seconds, smoothed: an average
 * since the start would not notice that the second file is slower than the
 * first. Half of the weight is renewed every 8 seconds.
 * Threads: the main thread. */
#include "progress.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "display.h"
#include "mb_cli.h"

#define DRAW_NS  100000000u
#define PLAIN_NS 10000000000u
#define RATE_NS  500000000u /* between two looks at the rate */
#define HALF_S   8.0
#define FIRST_S  0.1 /* an average over less says nothing */
#define BAR_MAX  30u

void
progress_init(struct progress *p, FILE *out, bool quiet)
{
    const char *term = getenv("TERM");
    int fd = fileno(out);

    *p = (struct progress){.out = out, .quiet = quiet};
    p->terminal = isatty(fd) == 1 && term != NULL && strcmp(term, "dumb") != 0;
    p->width = mb_cli_width(fd);
    p->start_ns = mb_clock_ns();
    p->rate_ns = p->start_ns;
    // The first plain line comes after ten seconds, the bar at once.
    p->shown_ns = p->terminal ? 0 : p->start_ns;
}

void
progress_from(struct progress *p, double part)
{
    p->start_part = part;
    p->rate_part = part;
}

double
progress_elapsed(const struct progress *p)
{
    return (double)(mb_clock_ns() - p->start_ns) / 1e9;
}

static void
update_rate(struct progress *p, uint64_t now, double part)
{
    double seconds = (double)(now - p->rate_ns) / 1e9;
    double weight;
    double fresh;

    if (part < 0 || now - p->rate_ns < RATE_NS)
        return;
    fresh = (part - p->rate_part) / seconds;
    weight = p->rate > 0 ? 1 - exp2(-seconds / HALF_S) : 1;
    if (fresh < 0)
        fresh = 0;
    p->rate += weight * (fresh - p->rate);
    p->rate_ns = now;
    p->rate_part = part;
}

double
progress_left(const struct progress *p, double part)
{
    double seconds = progress_elapsed(p);
    double rate = p->rate;

    if (part >= 1)
        return 0;
    if (rate <= 0 && seconds >= FIRST_S)
        rate = (part - p->start_part) / seconds;
    return part < 0 || rate <= 0 ? -1 : (1 - part) / rate;
}

static void
draw(struct progress *p, double part, const char *text)
{
    char left[DISPLAY_FIGURE];
    char tail[256];
    unsigned room;
    unsigned bar;
    unsigned full;

    p->width = mb_cli_width(fileno(p->out)); // it may have changed
    if (part < 0) {
        (void)fputs("\r\033[K", p->out);
        display_print(p->out, mb_slice_cstr(text), p->width - 1);
        (void)fflush(p->out);
        return;
    }
    (void)snprintf(tail, sizeof tail, " %3.0f%%  %s  %s left",
        floor(part * 100), text, show_seconds(left, progress_left(p, part)));
    room =
        p->width > strlen(tail) + 4 ? p->width - (unsigned)strlen(tail) - 4 : 0;
    bar = room > BAR_MAX ? BAR_MAX : room;
    full = (unsigned)(part * bar);
    (void)fputs("\r\033[K", p->out);
    if (bar >= 5) {
        (void)fputc('[', p->out);
        for (unsigned i = 0; i < bar; i++) {
            (void)fputc(i < full ? '#' : '.', p->out);
        }
        (void)fputc(']', p->out);
    }
    display_print(p->out, mb_slice_cstr(tail), p->width - 1);
    (void)fflush(p->out);
}

void
progress_show(struct progress *p, double part, const char *text)
{
    uint64_t now;
    char left[DISPLAY_FIGURE];

    if (p->quiet)
        return;
    if (part > 1)
        part = 1;
    now = mb_clock_ns();
    update_rate(p, now, part);
    if (now - p->shown_ns < (p->terminal ? DRAW_NS : PLAIN_NS))
        return;
    p->shown_ns = now;
    if (p->terminal) {
        draw(p, part, text);
        p->drawn = true;
    } else if (part < 0) {
        (void)fprintf(p->out, "%s\n", text);
    } else {
        (void)fprintf(p->out, "%3.0f%%  %s  %s left\n", floor(part * 100), text,
            show_seconds(left, progress_left(p, part)));
    }
}

void
progress_end(struct progress *p, const char *text)
{
    if (p->quiet || !p->terminal)
        return;
    draw(p, 1, text);
    (void)fputc('\n', p->out);
    p->drawn = false;
    p->shown_ns = 0;
}

void
progress_clear(struct progress *p)
{
    if (!p->drawn)
        return;
    (void)fputs("\r\033[K", p->out);
    (void)fflush(p->out);
    p->drawn = false;
    p->shown_ns = 0;
}
