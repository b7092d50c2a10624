/* SPDX-License-Identifier: Apache-2.0
 * tools/train/anchor.c - `membank-train anchor`: the loop over steps.
 *
 * A step: the next windows, the trainer, a point of the curve; now and then
 * held-out losses and a checkpoint. A signal ends the loop behind the step that
 * runs, saves and leaves. A checkpoint that cannot be written is told and tried
 * again later: the run is worth more than its copy.
 * Threads: the main thread; the trainer has its own. */
#include <math.h>
#include <string.h>

#include "mb_train_speed.h"
#include "progress.h"
#include "run.h"

#define LOG_STEPS     50
#define MAX_SKIPPED   10
#define SPEED_STEPS   3
#define SPEED_ROUNDS  3
#define SGEMM_SECONDS 1.0

struct meter {
    uint64_t from_ns; /* for the speed of late */
    uint64_t from_rows;
    double tokens_s;
};

/* ---- steps ---- */

static mb_status
one_step(struct run *r, struct train_result *result, struct mb_error *err)
{
    uint64_t step = trainer_n_steps(r->trainer);
    double rate = config_rate(&r->config, step);
    mb_status st = run_next_batch(r, err);
    if (st == MB_OK)
        st = trainer_step(
            r->trainer, r->views, (size_t)r->config.batch, rate, result, err);
    if (st != MB_OK)
        return st;
    r->n_rows += result->n_rows;
    struct curve_point p = {
        .step = step + 1,
        .tokens = r->n_rows,
        .seconds = run_seconds(r),
        .set = CURVE_TRAIN,
        .loss = result->loss,
        .bits_per_byte = (double)NAN,
        .rate = rate,
        .grad_norm = result->grad_norm,
    };
    return curve_add(r->curve, &p, err);
}

static void
measure(struct meter *m, const struct run *r)
{
    uint64_t now = mb_clock_ns();
    double seconds = (double)(now - m->from_ns) / 1e9;
    if (m->from_ns == 0 || seconds >= 5) {
        if (m->from_ns != 0)
            m->tokens_s = (double)(r->n_rows - m->from_rows) / seconds;
        m->from_ns = now;
        m->from_rows = r->n_rows;
    } else if (m->tokens_s <= 0 && seconds > 0) {
        m->tokens_s = (double)(r->n_rows - m->from_rows) / seconds;
    }
}

static void
tell(struct run *r, struct progress *progress, const struct meter *m,
    const struct train_result *result)
{
    char text[160];
    uint64_t step = trainer_n_steps(r->trainer);
    double part = (double)step / (double)r->n_steps;
    (void)snprintf(text, sizeof text,
        "step %llu of %llu  loss %.3f  %.1fk tokens/s",
        (unsigned long long)step, (unsigned long long)r->n_steps,
        curve_smooth(r->curve), m->tokens_s / 1e3);
    progress_show(progress, part, text);
    if (step % LOG_STEPS == 0 || step == r->n_steps)
        run_log(r,
            "ev=step step=%llu of=%llu tokens=%llu loss=%.4f smooth=%.4f "
            "rate=%.3g grad_norm=%.3g tokens_s=%.0f left_s=%.0f",
            (unsigned long long)step, (unsigned long long)r->n_steps,
            (unsigned long long)r->n_rows, result->loss, curve_smooth(r->curve),
            config_rate(&r->config, step - 1), result->grad_norm, m->tokens_s,
            m->tokens_s > 0 ? (double)(r->n_steps - step) *
                                  (double)result->n_rows / m->tokens_s
                            : 0);
}

/* Save; on failure say so and go on. */
static void
try_to_save(struct run *r, struct progress *progress)
{
    struct mb_error err;
    uint64_t begun = mb_clock_ns();
    if (run_save(r, &err) == MB_OK) {
        run_log(r, "ev=checkpoint step=%llu ms=%llu",
            (unsigned long long)trainer_n_steps(r->trainer),
            (unsigned long long)((mb_clock_ns() - begun) / 1000000));
        return;
    }
    progress_clear(progress);
    (void)fprintf(
        stderr, "membank-train: checkpoint: %s; the run goes on\n", err.text);
    run_log(r, "ev=checkpoint.failed cause=\"%s\"", err.text);
    r->saved_ns = mb_clock_ns(); // not again at once
}

static bool
is_heldout_due(const struct run *r)
{
    uint64_t step = trainer_n_steps(r->trainer);
    if (step == r->n_steps)
        return true;
    return r->config.heldout_steps > 0 && step > 0 &&
           step % r->config.heldout_steps == 0;
}

/* Was it stopped before the held-out losses of its last step were known? */
static bool
is_heldout_missing(const struct run *r)
{
    uint64_t step = trainer_n_steps(r->trainer);
    size_t n = curve_n_points(r->curve);
    return step > 0 && is_heldout_due(r) &&
           (n == 0 || curve_at(r->curve, n - 1)->step != step ||
               strcmp(curve_at(r->curve, n - 1)->set, CURVE_TRAIN) == 0);
}

static mb_status
loop(struct run *r, uint64_t max_steps, bool quiet, struct mb_error *err)
{
    struct progress progress;
    struct meter meter = {0};
    struct train_result result = {0};
    uint64_t last = trainer_n_steps(r->trainer);
    mb_status st = MB_OK;
    last = max_steps < r->n_steps - last ? last + max_steps : r->n_steps;
    progress_init(&progress, stderr, quiet);
    progress_from(
        &progress, (double)trainer_n_steps(r->trainer) / (double)r->n_steps);
    if (is_heldout_missing(r))
        st = run_heldout(r, err);
    while (st == MB_OK && trainer_n_steps(r->trainer) < last &&
           !train_is_stopped) {
        if (meter.from_ns == 0)
            measure(&meter, r);
        st = one_step(r, &result, err);
        if (st != MB_OK)
            break;
        measure(&meter, r);
        tell(r, &progress, &meter, &result);
        if (is_heldout_due(r)) {
            st = run_heldout(r, err);
            meter.from_ns = 0; // its time is not the steps'
        }
        double since = (double)(mb_clock_ns() - r->saved_ns) / 60e9;
        if (st == MB_OK && since >= r->config.checkpoint_minutes)
            try_to_save(r, &progress);
    }
    progress_clear(&progress);
    return st;
}

/* ---- the end ---- */

static mb_status
export_all(const struct run *r, struct mb_error *err)
{
    static const char *const types[] = {"f32", "f16", "q8_0"};
    mb_status st = MB_OK;
    for (size_t i = 0; st == MB_OK && i < 3; i++) {
        // Blocks of 32 columns: a tiny model may have no Q8_0.
        if (i == 2 && (r->config.width % 32 != 0 || r->config.ffn % 32 != 0 ||
                          r->config.heads * r->config.head_dim % 32 != 0))
            break;
        st = train_export_run(r->dir, &r->config, types[i], NULL, err);
    }
    return st;
}

static void
print_summary(const struct run *r, bool json)
{
    uint64_t step = trainer_n_steps(r->trainer);
    for (size_t i = 0; json && i < curve_n_points(r->curve); i++) {
        const struct curve_point *p = curve_at(r->curve, i);
        if (p->step == step)
            (void)printf("{\"set\":\"%s\",\"step\":%llu,\"tokens\":%llu,"
                         "\"loss\":%.6f}\n",
                p->set, (unsigned long long)p->step,
                (unsigned long long)p->tokens, p->loss);
    }
    if (json)
        return;
    (void)printf("step %llu of %llu, %.2fM tokens, %.0f s, loss %.4f\n",
        (unsigned long long)step, (unsigned long long)r->n_steps,
        (double)r->n_rows / 1e6, run_seconds(r), curve_smooth(r->curve));
    for (size_t i = 0; i < curve_n_points(r->curve); i++) {
        const struct curve_point *p = curve_at(r->curve, i);
        if (p->step != step || strcmp(p->set, CURVE_TRAIN) == 0)
            continue;
        (void)printf("  %-32s %.4f nats a token", p->set, p->loss);
        if (!isnan(p->bits_per_byte))
            (void)printf(", %.4f bits a byte", p->bits_per_byte);
        (void)printf("\n");
    }
    if (step < r->n_steps)
        (void)printf(
            "to go on: membank-train anchor --resume --out %s\n", r->dir);
    else
        (void)printf("models: %s/model-*.gguf\n", r->dir);
}

static mb_status
train(struct run *r, const struct mb_cli *cli, struct mb_error *err)
{
    uint64_t max_steps = UINT64_MAX / 2;
    mb_status st = mb_cli_u64(cli, "steps", 1, max_steps, &max_steps, err);
    if (st != MB_OK)
        return st;
    uint64_t step = trainer_n_steps(r->trainer);
    if (step > r->n_steps)
        r->n_steps = step;
    run_log(r, "ev=begin step=%llu of=%llu params=%zu bytes=%zu seed=%llu",
        (unsigned long long)step, (unsigned long long)r->n_steps,
        trainer_n_params(r->trainer), trainer_bytes(r->trainer),
        (unsigned long long)r->config.seed);
    st = loop(r, max_steps, mb_cli_has(cli, "quiet"), err);
    if (st != MB_OK) {
        run_log(r, "ev=failed cause=\"%s\"", err->text);
        return st;
    }
    st = run_save(r, err);
    if (st == MB_OK && trainer_n_steps(r->trainer) == r->n_steps)
        st = export_all(r, err);
    if (st == MB_OK) {
        run_log(r, "ev=end step=%llu signal=%d",
            (unsigned long long)trainer_n_steps(r->trainer),
            (int)train_is_stopped);
        print_summary(r, mb_cli_has(cli, "json"));
    }
    return st;
}

/* ---- speed ---- */

static mb_status
time_steps(struct run *r, double *seconds, struct train_result *sum,
    struct mb_error *err)
{
    mb_status st = MB_OK;
    uint64_t begun = mb_clock_ns();
    *sum = (struct train_result){0};
    for (int i = 0; st == MB_OK && i < SPEED_STEPS; i++) {
        struct train_result result;
        st = run_next_batch(r, err);
        if (st == MB_OK)
            st = trainer_step(r->trainer, r->views, (size_t)r->config.batch,
                1e-6, &result, err);
        if (st == MB_OK) {
            sum->flops += result.flops;
            sum->n_rows += result.n_rows;
        }
    }
    *seconds = (double)(mb_clock_ns() - begun) / 1e9;
    return st;
}

/* Steps and plain sgemm by turns, so that a busy machine is so for both. */
static mb_status
show_speed(struct run *r, bool json, struct mb_error *err)
{
    const struct config *c = &r->config;
    struct train_result result;
    double seconds = 0;
    double sgemm = 0;
    mb_status st = time_steps(r, &seconds, &result, err); // warm-up
    if (st == MB_OK && !json)
        (void)printf("%zu parameters, %llu windows of %llu rows a step, %.0f "
                     "MB held\n\n%12s  %12s  %12s  %8s\n",
            trainer_n_params(r->trainer), (unsigned long long)c->batch,
            (unsigned long long)c->rows,
            (double)trainer_bytes(r->trainer) / 1e6, "tokens/s", "GFLOP/s",
            "sgemm GFLOP/s", "ratio");
    for (int i = 0; st == MB_OK && i < SPEED_ROUNDS; i++) {
        st = time_steps(r, &seconds, &result, err);
        if (st == MB_OK)
            st = train_sgemm_rate(trainer_shape(r->trainer), (size_t)c->rows,
                (unsigned)c->threads, SGEMM_SECONDS, &sgemm, err);
        if (st != MB_OK)
            break;
        double rate = result.flops / seconds;
        (void)printf(json ? "{\"tokens_s\":%.0f,\"gflops\":%.2f,"
                            "\"sgemm_gflops\":%.2f,\"ratio\":%.4f}\n"
                          : "%12.0f  %12.1f  %13.1f  %8.3f\n",
            (double)result.n_rows / seconds, rate / 1e9, sgemm / 1e9,
            rate / sgemm);
        (void)fflush(stdout);
    }
    if (st == MB_OK && !json)
        (void)printf("\nFLOP: multiplications and additions of all matrix "
                     "products and of attention, forward\nand backward, as "
                     "they are done. sgemm: the layers' products and that of "
                     "the vocabulary,\nforward, by input and by weight, on as "
                     "many threads, each with matrices of its own.\n");
    return st;
}

mb_status
train_anchor(const struct mb_cli *cli, struct mb_error *err)
{
    struct run r;
    bool resume = mb_cli_has(cli, "resume");
    bool speed = mb_cli_has(cli, "speed");
    const char *config = mb_cli_str(cli, "config");
    const char *out = mb_cli_str(cli, "out");
    if (mb_cli_n_args(cli) != 1)
        return mb_error_set(err, MB_ERR_BAD_ARG, "anchor takes no arguments");
    if (!config && !resume)
        return mb_error_set(err, MB_ERR_BAD_ARG, "anchor wants --config FILE");
    if (!out && (!speed || resume))
        return mb_error_set(err, MB_ERR_BAD_ARG, "anchor wants --out DIR");
    mb_status st = run_open(&r, config, speed ? NULL : out, resume, err);
    if (st == MB_OK && speed)
        st = show_speed(&r, mb_cli_has(cli, "json"), err);
    else if (st == MB_OK)
        st = train(&r, cli, err);
    run_close(&r);
    return st;
}
