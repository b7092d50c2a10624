/* SPDX-License-Identifier: Apache-2.0
 * tools/train/export.c - `membank-train export`: a run's weights as GGUF.
 *
 * Needs the run's folder alone: weights come from its checkpoint, shape and
 * names from its config, the vocabulary from the file that this names.
 * Threads: the main thread. */
#include "train.h"

#include <string.h>

#include "mb_checkpoint.h"

static const struct {
    const char *name;
    gguf_tensor_type type;
} types[] = {{"f32", GGUF_F32}, {"f16", GGUF_F16}, {"q8_0", GGUF_Q8_0}};

#define N_TYPES (sizeof types / sizeof *types)

mb_status
train_type_of(const char *name, gguf_tensor_type *out, struct mb_error *err)
{
    for (size_t i = 0; i < N_TYPES; i++) {
        if (strcmp(name, types[i].name) == 0) {
            *out = types[i].type;
            return MB_OK;
        }
    }
    return mb_error_set(
        err, MB_ERR_BAD_ARG, "--type %s: f32, f16 or q8_0 is wanted", name);
}

/* Moments stand beside the weights, as NAME.m and NAME.v. */
static bool
is_moment(const char *name)
{
    size_t n = strlen(name);
    return n > 2 &&
           (strcmp(name + n - 2, ".m") == 0 || strcmp(name + n - 2, ".v") == 0);
}

struct export_weight *
train_checkpoint_weights(const struct checkpoint *c, size_t *n)
{
    struct export_weight *weights =
        mb_calloc(checkpoint_n_arrays(c) + 1, sizeof *weights);
    *n = 0;
    for (size_t i = 0; weights && i < checkpoint_n_arrays(c); i++) {
        struct checkpoint_array a = checkpoint_array(c, i);
        if (!is_moment(a.name))
            weights[(*n)++] =
                (struct export_weight){a.name, a.n_rows, a.n_cols, a.values};
    }
    return weights;
}

static mb_status
export_checkpoint(const struct checkpoint *c, const struct config *config,
    gguf_tensor_type type, const char *to, struct mb_error *err)
{
    struct mb_gguf *vocab = NULL;
    struct mb_tokenizer *tok = NULL;
    size_t n = 0;
    struct export_weight *weights = train_checkpoint_weights(c, &n);
    if (!weights)
        return mb_error_set(err, MB_ERR_NOMEM, "weights");
    mb_status st = train_open_vocab(config->tokenizer, &vocab, &tok, err);
    if (st != MB_OK)
        goto out;
    const struct train_shape shape =
        config_shape(config, mb_tokenizer_n_vocab(tok));
    const struct export_options o = {
        .shape = &shape,
        .weights = weights,
        .n_weights = n,
        .vocab = vocab,
        .type = type,
        .name = config->name,
        .description =
            config->description[0] != '\0' ? config->description : NULL,
        .license = config->license[0] != '\0' ? config->license : NULL,
    };
    st = export_gguf(to, &o, err);
out:
    mb_tokenizer_free(tok);
    mb_gguf_close(vocab);
    mb_free(weights);
    return st;
}

mb_status
train_export_run(const char *dir, const struct config *config, const char *type,
    const char *to, struct mb_error *err)
{
    char path[TRAIN_MAX_PATH];
    char out[TRAIN_MAX_PATH];
    char file[32];
    gguf_tensor_type number = GGUF_F32;
    struct checkpoint *c = NULL;
    mb_status st = train_type_of(type, &number, err);
    (void)snprintf(file, sizeof file, "model-%s.gguf", type);
    if (st == MB_OK)
        st = train_path(dir, "checkpoint", path, err);
    if (st == MB_OK)
        st = train_path(dir, file, out, err);
    if (st == MB_OK)
        st = checkpoint_open(path, &c, err);
    if (st == MB_OK)
        st = export_checkpoint(c, config, number, to ? to : out, err);
    checkpoint_close(c);
    return st;
}

mb_status
train_export(const struct mb_cli *cli, struct mb_error *err)
{
    char path[TRAIN_MAX_PATH];
    struct config config;
    struct mb_buffer text;
    const char *type = mb_cli_str(cli, "type");
    const char *to = mb_cli_str(cli, "out");
    const char *dir = mb_cli_arg(cli, 1);
    if (mb_cli_n_args(cli) != 2)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "export wants the folder of a run: export DIR");
    if (to && !type)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "--out names one file: --type says which");
    mb_buffer_init(&text, CONFIG_MAX_FILE);
    mb_status st = train_path(dir, "config", path, err);
    if (st == MB_OK)
        st = train_read_config(path, &config, &text, err);
    for (size_t i = 0; st == MB_OK && i < N_TYPES; i++) {
        if (!type)
            st = train_export_run(dir, &config, types[i].name, NULL, err);
    }
    if (st == MB_OK && type)
        st = train_export_run(dir, &config, type, to, err);
    mb_buffer_fini(&text);
    return st;
}
