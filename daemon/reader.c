/* SPDX-License-Identifier: Apache-2.0
 * daemon/reader.c - the model that reads: decoder, tokenizer, engine.
 * Invariants: engine, decoder and tokenizer are there, or absence says why not.
 * Threads: immutable after open but for fingerprint and companion (`lock`) and
 * `stopped`.
 */
#include "reader.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define MAX_TOKEN_BYTES ((size_t)1 << 30)

struct reader {
    char path[CONFIG_MAX_TEXT];
    char name[128];
    struct mb_gguf *gguf;
    struct mb_tokenizer *tokenizer;
    struct mb_decoder *decoder;
    struct mb_engine *engine;
    char absence[MB_ERROR_TEXT]; /* "": it can read */
    size_t n_head;
    struct mb_chat chat;
    char no_chat[MB_ERROR_TEXT]; /* "": chat is there */
    mb_token_id eos;             /* -1: none */
    atomic_bool stopped;         /* relaxed: refuse what is new */
    pthread_mutex_t lock;
    bool has_fingerprint;
    uint8_t fingerprint[READER_FINGERPRINT];
    bool has_companion;
    struct companion companion;
    uint8_t companion_fingerprint[READER_FINGERPRINT];
};

static void
read_name(struct reader *r)
{
    struct mb_slice name;

    if (mb_gguf_str(r->gguf, "general.name", &name, NULL) != MB_OK ||
        !mb_utf8_is_valid(name, NULL))
        name = mb_slice_cstr("unnamed");
    (void)snprintf(r->name, sizeof r->name, "%.*s",
        (int)(name.size < 120 ? name.size : 120), (const char *)name.data);
}

static void
open_chat(struct reader *r)
{
    struct mb_error err = {0};
    mb_status st = mb_chat_open(r->gguf, r->tokenizer, &r->chat, &err);

    if (st != MB_OK)
        (void)snprintf(r->no_chat, sizeof r->no_chat, "%s",
            err.text[0] != 0 ? err.text : mb_status_text(st));
}

/* What makes it more than a file. */
static mb_status
open_engine(struct reader *r, const struct config *cfg, struct mb_error *err)
{
    const struct mb_engine_options opt = {
        .n_threads = (unsigned)cfg->model_threads,
        .max_rows = (size_t)cfg->model_rows,
        .max_rows_busy = (size_t)cfg->model_rows_busy,
        .max_running = (size_t)cfg->model_requests,
        .max_queued = (size_t)cfg->model_queue,
        .cache_rows = (size_t)cfg->cache_rows,
        .cache_type = (mb_cache_type)cfg->cache_type,
    };
    mb_status st = mb_tokenizer_new(r->gguf, &r->tokenizer, err);

    if (st == MB_OK)
        r->n_head = mb_tokenizer_adds_bos(r->tokenizer) &&
                            mb_tokenizer_bos(r->tokenizer) >= 0
                        ? 1
                        : 0;
    if (st == MB_OK)
        open_chat(r);
    if (st == MB_OK)
        st = mb_decoder_open(r->gguf, &r->decoder, err);
    if (st == MB_OK)
        st = mb_engine_new(r->decoder, r->tokenizer, &opt, &r->engine, err);
    return st;
}

mb_status
reader_open(const struct config *cfg, const char *path, struct reader **out,
    struct mb_error *err)
{
    struct reader *r = mb_calloc(1, sizeof *r);
    struct mb_error why = {0};
    mb_status st;

    if (r == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "model");
    (void)pthread_mutex_init(&r->lock, NULL);
    (void)snprintf(r->path, sizeof r->path, "%s", path);
    st = mb_gguf_open(path, &r->gguf, err);
    if (st != MB_OK) {
        reader_close(r);
        return st;
    }
    read_name(r);
    if (open_engine(r, cfg, &why) != MB_OK) {
        (void)snprintf(r->absence, sizeof r->absence, "%s",
            why.text[0] != 0 ? why.text : "unknown cause");
        mb_log(MB_LOG_WARN, "model.unusable",
            "path=\"%s\" name=\"%s\" cause=\"%s\"", r->path, r->name,
            r->absence);
    } else {
        const struct mb_decoder_info *info = mb_decoder_info(r->decoder);

        mb_log(MB_LOG_INFO, "model.open",
            "path=\"%s\" name=\"%s\" arch=%s weights=%s layers=%zu width=%zu "
            "vocabulary=%zu window=%zu",
            r->path, r->name, info->arch, info->weights, info->n_layers,
            info->d_model, info->n_vocab, mb_engine_window(r->engine));
    }
    *out = r;
    return MB_OK;
}

void
reader_stop(struct reader *r)
{
    atomic_store_explicit(&r->stopped, true, memory_order_relaxed);
    mb_engine_stop(r->engine);
}

void
reader_close(struct reader *r)
{
    if (r == NULL)
        return;
    mb_engine_free(r->engine);
    companion_free(&r->companion);
    mb_decoder_close(r->decoder);
    mb_tokenizer_free(r->tokenizer);
    mb_gguf_close(r->gguf);
    (void)pthread_mutex_destroy(&r->lock);
    mb_free(r);
}

mb_status
reader_check(const struct reader *r, const char *what, struct mb_error *err)
{
    if (r->absence[0] != 0)
        return mb_error_set(err, MB_ERR_NOT_IMPLEMENTED,
            "%s: model %s cannot be used: %s", what, r->path, r->absence);
    if (atomic_load_explicit(&r->stopped, memory_order_relaxed))
        return mb_error_set(err, MB_ERR_SHUTTING_DOWN, "the daemon is ending");
    return MB_OK;
}

const char *
reader_absence(const struct reader *r)
{
    return r->absence[0] != 0 ? r->absence : NULL;
}

const char *
reader_name(const struct reader *r)
{
    return r->name;
}

const char *
reader_path(const struct reader *r)
{
    return r->path;
}

const char *
reader_file(const struct reader *r)
{
    const char *slash = strrchr(r->path, '/');

    return slash != NULL ? slash + 1 : r->path;
}

const struct mb_gguf *
reader_gguf(const struct reader *r)
{
    return r->gguf;
}

const struct mb_decoder *
reader_decoder(const struct reader *r)
{
    return r->decoder;
}

const struct mb_decoder_info *
reader_info(const struct reader *r)
{
    return mb_decoder_info(r->decoder);
}

const struct mb_tokenizer *
reader_tokenizer(const struct reader *r)
{
    return r->tokenizer;
}

struct mb_engine *
reader_engine(const struct reader *r)
{
    return r->engine;
}

size_t
reader_n_head(const struct reader *r)
{
    return r->n_head;
}

const mb_token_id *
reader_ends(const struct reader *r, size_t *n)
{
    return mb_tokenizer_ends(r->tokenizer, n);
}

void
reader_fingerprint(struct reader *r, uint8_t out[READER_FINGERPRINT])
{
    (void)pthread_mutex_lock(&r->lock);
    if (!r->has_fingerprint)
        mb_gguf_fingerprint(r->gguf, r->fingerprint);
    r->has_fingerprint = true;
    memcpy(out, r->fingerprint, READER_FINGERPRINT);
    (void)pthread_mutex_unlock(&r->lock);
}

mb_status
reader_companion(struct reader *r, const struct companion **out,
    uint8_t fingerprint[READER_FINGERPRINT], struct mb_error *err)
{
    struct mb_error why = {0};
    mb_status st = MB_OK;

    (void)pthread_mutex_lock(&r->lock);
    if (!r->has_companion) {
        // Looked for again each time: it may come while the daemon runs.
        st = companion_open(r->path, r->gguf, reader_info(r)->d_model,
            &r->companion, r->companion_fingerprint, &why);
        r->has_companion = st == MB_OK;
    }
    memcpy(fingerprint, r->companion_fingerprint, READER_FINGERPRINT);
    (void)pthread_mutex_unlock(&r->lock);
    *out = &r->companion;
    return st == MB_OK
               ? MB_OK
               : mb_error_set(err, MB_ERR_NOT_IMPLEMENTED,
                     "memory: model %s has no weights for it (membank-train "
                     "hmt makes them): %s",
                     reader_file(r), why.text);
}

mb_status
reader_chat(
    const struct reader *r, const struct mb_chat **out, struct mb_error *err)
{
    if (r->no_chat[0] != 0)
        return mb_error_set(err, MB_ERR_NOT_IMPLEMENTED,
            "messages: model %s has no template for them: %s", r->path,
            r->no_chat);
    *out = &r->chat;
    return MB_OK;
}

mb_status
reader_encode_both(const struct reader *r, struct mb_slice context,
    struct mb_slice text, struct mb_buffer *ids, size_t *n_context,
    struct mb_error *err)
{
    mb_token_id bos = mb_tokenizer_bos(r->tokenizer);
    struct mb_buffer both;
    struct mb_buffer tokens;
    mb_status st;

    mb_buffer_init(&both, MAX_TOKEN_BYTES);
    mb_buffer_init(&tokens, MAX_TOKEN_BYTES);
    *n_context = r->n_head;
    st = mb_buffer_append(&both, context.data, context.size);
    if (st == MB_OK)
        st = mb_buffer_append(&both, text.data, text.size);
    if (st == MB_OK && r->n_head > 0)
        st = mb_buffer_append(ids, &bos, sizeof bos);
    if (st == MB_OK)
        st = mb_tokenizer_encode(
            r->tokenizer, NULL, mb_buffer_slice(&both), &tokens, err);
    for (size_t at = 0; at < tokens.size && st == MB_OK;
         at += sizeof(struct mb_token)) {
        struct mb_token t;

        memcpy(&t, tokens.data + at, sizeof t);
        st = mb_buffer_append(ids, &t.id, sizeof t.id);
        if (context.size > 0 && (size_t)t.start + t.size <= context.size)
            *n_context += 1;
    }
    mb_buffer_fini(&both);
    mb_buffer_fini(&tokens);
    return st == MB_OK
               ? st
               : mb_error_set(err, st, "tokens of %zu bytes", text.size);
}

mb_status
reader_encode(const struct reader *r, bool head, struct mb_slice text,
    struct mb_buffer *out, struct mb_error *err)
{
    const struct mb_prompt prompt = {.text = text};
    mb_token_id bos = mb_tokenizer_bos(r->tokenizer);
    mb_status st = MB_OK;

    if (head && r->n_head > 0)
        st = mb_buffer_append(out, &bos, sizeof bos);
    if (st != MB_OK)
        return mb_error_set(err, st, "tokens of %zu bytes", text.size);
    return mb_tokenizer_encode_prompt(r->tokenizer, NULL, &prompt, out, err);
}
