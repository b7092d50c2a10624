/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/bars.c - see bars.h. */
#include "bars.h"

#include <stdio.h>
#include <string.h>

#define BAR_W  22
#define GAP    24
#define LEFT   56
#define TOP    64
#define PLOT_H 240
#define LEGEND 110

static const char *const colours[BARS_MAX_KINDS] = {
    "#3b6fb6", "#e0a030", "#999999", "#8a4fa0"};

void
bars_init(struct bars *b, const char *const *kinds, size_t n_kinds)
{
    MB_ASSERT(n_kinds <= BARS_MAX_KINDS);
    *b = (struct bars){.kinds = kinds, .n_kinds = n_kinds};
}

mb_status
bars_add(struct bars *b, const char *group, size_t kind, double value,
    struct mb_error *err)
{
    size_t i = 0;

    while (i < b->n_groups && strcmp(b->names[i], group) != 0) {
        i++;
    }
    if (i == BARS_MAX_GROUPS)
        return mb_error_set(
            err, MB_ERR_TOO_LARGE, "more than %u groups", BARS_MAX_GROUPS);
    if (i == b->n_groups)
        (void)snprintf(b->names[b->n_groups++], BARS_NAME, "%s", group);
    b->values[i][kind] = value;
    return MB_OK;
}

static double
largest(const struct bars *b, double mark)
{
    double most = mark;

    for (size_t i = 0; i < b->n_groups; i++) {
        for (size_t k = 0; k < b->n_kinds; k++) {
            most = b->values[i][k] > most ? b->values[i][k] : most;
        }
    }
    return most > 0 ? most * 1.1 : 1;
}

static void
draw_group(FILE *f, const struct bars *b, size_t i, double x, double scale)
{
    for (size_t k = 0; k < b->n_kinds; k++) {
        double h = b->values[i][k] * scale;
        double left = x + (double)k * BAR_W;

        (void)fprintf(f,
            "<rect x=\"%.0f\" y=\"%.1f\" width=\"%d\" height=\"%.1f\" "
            "fill=\"%s\"><title>%s %s: %.1f</title></rect>\n"
            "<text x=\"%.0f\" y=\"%.1f\" text-anchor=\"middle\" "
            "font-size=\"9\">%.0f</text>\n",
            left, TOP + PLOT_H - h, BAR_W - 2, h, colours[k], b->names[i],
            b->kinds[k], b->values[i][k], left + BAR_W / 2.0 - 1,
            TOP + PLOT_H - h - 3, b->values[i][k]);
    }
    (void)fprintf(f,
        "<text x=\"%.0f\" y=\"%d\" text-anchor=\"middle\" "
        "font-size=\"10\">%s</text>\n",
        x + (double)b->n_kinds * BAR_W / 2, TOP + PLOT_H + 16, b->names[i]);
}

static void
draw(FILE *f, const struct bars *b, const char *title, double mark)
{
    double step = (double)b->n_kinds * BAR_W + GAP;
    double width = LEFT + (double)b->n_groups * step + 20;
    double scale = PLOT_H / largest(b, mark);

    if (width < 480)
        width = 480;
    (void)fprintf(f,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" "
        "height=\"%d\" font-family=\"sans-serif\" font-size=\"13\">\n"
        "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n"
        "<text x=\"%d\" y=\"24\" font-size=\"15\">%s</text>\n",
        width, TOP + PLOT_H + 34, LEFT, title);
    for (size_t k = 0; k < b->n_kinds; k++)
        (void)fprintf(f,
            "<rect x=\"%d\" y=\"34\" width=\"12\" height=\"12\" "
            "fill=\"%s\"/>\n<text x=\"%d\" y=\"45\">%s</text>\n",
            LEFT + (int)k * LEGEND, colours[k], LEFT + (int)k * LEGEND + 18,
            b->kinds[k]);
    for (size_t i = 0; i < b->n_groups; i++)
        draw_group(f, b, i, LEFT + (double)i * step, scale);
    (void)fprintf(f,
        "<line x1=\"%d\" x2=\"%.0f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"black\" "
        "stroke-dasharray=\"4 3\"/>\n<text x=\"%d\" y=\"%.1f\" "
        "text-anchor=\"end\">%.0f</text>\n</svg>\n",
        LEFT - 6, width - 10, TOP + PLOT_H - mark * scale,
        TOP + PLOT_H - mark * scale, LEFT - 8, TOP + PLOT_H - mark * scale + 4,
        mark);
}

mb_status
bars_svg(const struct bars *b, const char *path, const char *title, double mark,
    struct mb_error *err)
{
    FILE *f = fopen(path, "w");
    bool failed;

    if (f == NULL)
        return mb_error_set(err, MB_ERR_IO, "write %s", path);
    draw(f, b, title, mark);
    failed = ferror(f) != 0;
    if (fclose(f) != 0 || failed)
        return mb_error_set(err, MB_ERR_IO, "write %s", path);
    return MB_OK;
}
