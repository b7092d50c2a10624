/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/heat.c - see heat.h. */
#include "heat.h"

#include <stdio.h>
#include <string.h>

#define CELL_W 84
#define CELL_H 44
#define LEFT   90
#define TOP    48

void
heat_init(struct heat *h)
{
    *h = (struct heat){0};
}

void
heat_fini(struct heat *h)
{
    mb_free(h->columns);
    *h = (struct heat){0};
}

static struct heat_column *
column_of(struct heat *h, const char *name)
{
    for (size_t i = 0; i < h->n_columns; i++) {
        if (strcmp(h->columns[i].name, name) == 0)
            return &h->columns[i];
    }
    return NULL;
}

mb_status
heat_add(struct heat *h, const char *column, double at, double value,
    struct mb_error *err)
{
    struct heat_column *c = column_of(h, column);
    size_t row = at >= 1 ? HEAT_ROWS - 1 : (size_t)(at * HEAT_ROWS);

    if (h->columns == NULL)
        h->columns = mb_calloc(HEAT_MAX_COLUMNS, sizeof *h->columns);
    if (h->columns == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "heat map");
    if (c == NULL) {
        if (h->n_columns == HEAT_MAX_COLUMNS)
            return mb_error_set(err, MB_ERR_TOO_LARGE,
                "heat map of more than %u columns", HEAT_MAX_COLUMNS);
        c = &h->columns[h->n_columns++];
        (void)snprintf(c->name, sizeof c->name, "%s", column);
    }
    c->sum[row] += value;
    c->n[row]++;
    return MB_OK;
}

/* A cell's colour runs from red by yellow to green; its mean stands in it, so
 * that nobody needs the colour. */
static void
draw_cell(FILE *f, const struct heat_column *c, size_t column, size_t row)
{
    double x = LEFT + (double)column * CELL_W;
    double y = TOP + (double)row * CELL_H;
    double mean = c->n[row] > 0 ? c->sum[row] / (double)c->n[row] : 0;

    if (c->n[row] == 0)
        return;
    (void)fprintf(f,
        "<rect x=\"%.0f\" y=\"%.0f\" width=\"%d\" height=\"%d\" "
        "fill=\"hsl(%.0f 60%% 62%%)\"><title>%llu prompts</title></rect>\n"
        "<text x=\"%.0f\" y=\"%.0f\" text-anchor=\"middle\">%.0f</text>\n",
        x, y, CELL_W - 2, CELL_H - 2, 120 * mean, (unsigned long long)c->n[row],
        x + CELL_W / 2.0, y + CELL_H / 2.0 + 4, 100 * mean);
}

static void
draw(FILE *f, const struct heat *h, const char *title, const char *x,
    const char *y)
{
    int width = LEFT + (int)h->n_columns * CELL_W + 20;
    int height = TOP + (int)HEAT_ROWS * CELL_H + 50;

    if (width < 420)
        width = 420;
    (void)fprintf(f,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
        "font-family=\"sans-serif\" font-size=\"13\">\n"
        "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n"
        "<text x=\"%d\" y=\"26\" font-size=\"15\">%s (%%)</text>\n",
        width, height, LEFT, title);
    for (size_t r = 0; r < HEAT_ROWS; r++)
        (void)fprintf(f,
            "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%.1f - %.1f</text>\n",
            LEFT - 8, TOP + (int)r * CELL_H + CELL_H / 2 + 4,
            (double)r / HEAT_ROWS, (double)(r + 1) / HEAT_ROWS);
    for (size_t c = 0; c < h->n_columns; c++) {
        for (size_t r = 0; r < HEAT_ROWS; r++)
            draw_cell(f, &h->columns[c], c, r);
        (void)fprintf(f,
            "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s</text>\n",
            LEFT + (int)c * CELL_W + CELL_W / 2,
            TOP + (int)HEAT_ROWS * CELL_H + 18, h->columns[c].name);
    }
    (void)fprintf(f,
        "<text x=\"%d\" y=\"%d\">%s</text>\n"
        "<text x=\"12\" y=\"%d\">%s</text>\n</svg>\n",
        LEFT, height - 10, x, TOP - 8, y);
}

mb_status
heat_svg(const struct heat *h, const char *path, const char *title,
    const char *x, const char *y, struct mb_error *err)
{
    FILE *f = fopen(path, "w");
    bool failed;

    if (f == NULL)
        return mb_error_set(err, MB_ERR_IO, "write %s", path);
    draw(f, h, title, x, y);
    failed = ferror(f) != 0;
    if (fclose(f) != 0 || failed)
        return mb_error_set(err, MB_ERR_IO, "write %s", path);
    return MB_OK;
}
