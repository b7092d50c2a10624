/* SPDX-License-Identifier: Apache-2.0
 * tests/support/train_steps.c - some training steps, for a script to repeat.
 *
 *     train_steps OUT N_STEPS N_WINDOWS ROWS N_THREADS LANDMARKS SHAPE...
 *
 * SHAPE is n_layers d_model n_heads n_kv_heads head_dim d_ff n_vocab. Writes
 * the first weights to OUT, all of them in the trainer's order as float32, and
 * prints one JSON object: names and shapes, losses, norms, tokens a second,
 * floating-point operations a second, and those of sgemm alone on as many
 * threads at the shapes of a step. Window i has token (i * 131 + r * r * 7 + r)
 * mod n_vocab at row r, the last vocabulary entry as a landmark in rows 40,
 * 104, ... if LANDMARKS is 1. */
#include "mb_train_speed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RATE          1e-3
#define SGEMM_SECONDS 1.0

static void
make_windows(struct train_window *w, size_t n, size_t rows, size_t n_vocab,
    bool has_landmarks)
{
    for (size_t i = 0; i < n; i++) {
        mb_token_id *tokens = mb_calloc(rows + 1, sizeof(*tokens));
        mb_token_id *targets = mb_calloc(rows, sizeof(*targets));
        bool *is_landmark = mb_calloc(rows, sizeof(*is_landmark));
        MB_ASSERT(tokens && targets && is_landmark);
        for (size_t r = 0; r <= rows; r++) {
            tokens[r] = (mb_token_id)((i * 131 + r * r * 7 + r) % n_vocab);
            if (has_landmarks && r % 64 == 40)
                tokens[r] = (mb_token_id)(n_vocab - 1);
        }
        for (size_t r = 0; r < rows; r++) {
            is_landmark[r] = has_landmarks && r % 64 == 40;
            bool is_before = has_landmarks && r % 64 == 39;
            targets[r] = is_landmark[r] ? -1 : tokens[r + 1];
            if (is_before)
                targets[r] = r + 2 <= rows ? tokens[r + 2] : -1;
        }
        w[i] = (struct train_window){
            rows, tokens, targets, has_landmarks ? is_landmark : NULL};
    }
}

static void
write_weights(struct trainer *t, const char *path)
{
    FILE *f = fopen(path, "wb");
    MB_ASSERT(f);
    printf("{\"weights\": [");
    for (size_t i = 0; i < trainer_n_weights(t); i++) {
        const struct train_weight *w = trainer_weight(t, i);
        size_t n = w->n_rows * w->n_cols;
        MB_ASSERT(fwrite(w->value, sizeof(float), n, f) == n);
        printf("%s[\"%s\", %zu, %zu]", i ? ", " : "", w->name, w->n_rows,
            w->n_cols);
    }
    MB_ASSERT(fclose(f) == 0);
    printf("]");
}

int
main(int argc, char **argv)
{
    size_t number[12];
    struct mb_error err;
    struct trainer *t = NULL;
    struct train_result r;
    double seconds = 0;
    double flops = 0;
    size_t rows = 0;
    MB_ASSERT(argc == 14);
    for (int i = 0; i < 12; i++)
        number[i] = strtoul(argv[i + 2], NULL, 10);
    struct train_shape shape = {number[5], number[6], number[7], number[8],
        number[9], number[10], number[11], number[2], 10000, 1e-5};
    struct train_options options = {
        .n_threads = (unsigned)number[3], .seed = 1, .decay = 0.1};
    if (trainer_new(&shape, &options, &t, &err) != MB_OK) {
        fprintf(stderr, "train_steps: %s\n", err.text);
        return 1;
    }
    struct train_window *windows = mb_calloc(number[1], sizeof(*windows));
    MB_ASSERT(windows);
    make_windows(windows, number[1], number[2], shape.n_vocab, number[4] == 1);
    write_weights(t, argv[1]);
    printf(", \"steps\": [");
    for (size_t i = 0; i < number[0]; i++) {
        uint64_t begin = mb_clock_ns();
        if (trainer_step(t, windows, number[1], RATE, &r, &err) != MB_OK) {
            fprintf(stderr, "train_steps: %s\n", err.text);
            return 1;
        }
        if (i > 0) { // the first makes room
            seconds += (double)(mb_clock_ns() - begin) * 1e-9;
            flops += r.flops;
            rows += r.n_rows;
        }
        printf("%s[%.9g, %.9g]", i ? ", " : "", r.loss, r.grad_norm);
    }
    double sgemm = 0;
    MB_ASSERT(train_sgemm_rate(&shape, number[2], options.n_threads,
                  SGEMM_SECONDS, &sgemm, NULL) == MB_OK);
    printf("], \"tokens_s\": %.1f, \"flops_s\": %.4g, \"sgemm_flops_s\": %.4g, "
           "\"bytes\": %zu}\n",
        (double)rows / seconds, flops / seconds, sgemm, trainer_bytes(t));
    trainer_free(t);
    for (size_t i = 0; i < number[1]; i++) {
        mb_free((void *)(uintptr_t)windows[i].tokens);
        mb_free((void *)(uintptr_t)windows[i].targets);
        mb_free((void *)(uintptr_t)windows[i].is_landmark);
    }
    mb_free(windows);
    return 0;
}
