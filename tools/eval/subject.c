/* SPDX-License-Identifier: Apache-2.0
 * tools/eval/subject.c - see subject.h. */
#include "subject.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "source.h"
#include "tool.h"

#define PASS_ROWS 1100u /* a window of the largest segment */

static const char lines[] =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. "
    "There and back again.";

/* ---- the model ---- */

mb_status
subject_open(struct subject *s, const struct mb_cli *cli, struct mb_error *err)
{
    const char *path = mb_cli_str(cli, "model");
    uint64_t n_threads = 0;
    mb_status st = mb_cli_u64(cli, "threads", 0, 1024, &n_threads, err);

    s->cli = cli;
    mb_buffer_init(&s->encoded, SIZE_MAX / 2);
    if (path == NULL)
        path = access(MB_MODEL_INSTALLED, R_OK) == 0 ? MB_MODEL_INSTALLED
                                                     : MB_MODEL_SOURCE;
    if (st == MB_OK)
        st = mb_gguf_open(path, &s->gguf, err);
    if (st == MB_OK)
        st = mb_decoder_open(s->gguf, &s->decoder, err);
    if (st == MB_OK)
        st = mb_tokenizer_new(s->gguf, &s->tokenizer, err);
    if (st == MB_OK)
        st = mb_token_cache_new(&s->words);
    if (st == MB_OK)
        st = mb_pass_new(
            s->decoder, PASS_ROWS, (unsigned)n_threads, &s->pass, err);
    s->landmarks.path = path;
    return st == MB_OK ? landmarks_open(&s->landmarks, cli, s->gguf, s->decoder,
                             s->tokenizer, err)
                       : st;
}

void
subject_close(struct subject *s)
{
    landmarks_close(&s->landmarks);
    mb_pass_free(s->pass);
    mb_token_cache_free(s->words);
    mb_tokenizer_free(s->tokenizer);
    mb_decoder_close(s->decoder);
    mb_gguf_close(s->gguf);
    mb_buffer_fini(&s->encoded);
    mb_free(s->filler.ids);
}

mb_status
subject_read_numbers(const struct subject *s, const char *option, uint64_t min,
    uint64_t max, uint64_t out[SUBJECT_MAX_NUMBERS], size_t *n,
    struct mb_error *err)
{
    const char *at = mb_cli_str(s->cli, option);

    for (*n = 0;;) {
        char *end = NULL;
        unsigned long long v = strtoull(at, &end, 10);

        if (end == at || v < min || v > max || *n == SUBJECT_MAX_NUMBERS ||
            (*end != ',' && *end != '\0'))
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "--%s: up to %u numbers of tokens, %llu to %llu, with commas "
                "between",
                option, SUBJECT_MAX_NUMBERS, (unsigned long long)min,
                (unsigned long long)max);
        out[(*n)++] = v;
        if (*end == '\0')
            return MB_OK;
        at = end + 1;
    }
}

/* ---- texts ---- */

mb_status
subject_add_ids(
    struct tokens *to, const mb_token_id *ids, size_t n, struct mb_error *err)
{
    if (to->n + n > to->capacity) {
        size_t capacity =
            2 * to->capacity > to->n + n ? 2 * to->capacity : to->n + n;
        mb_token_id *more = mb_realloc(to->ids, capacity * sizeof *more);

        if (more == NULL)
            return mb_error_set(
                err, MB_ERR_NOMEM, "a text of %zu tokens", to->n + n);
        to->ids = more;
        to->capacity = capacity;
    }
    if (n > 0)
        memcpy(to->ids + to->n, ids, n * sizeof *ids);
    to->n += n;
    return MB_OK;
}

mb_status
subject_add_text(struct subject *s, struct tokens *to, struct mb_slice text,
    struct mb_error *err)
{
    mb_status st;

    mb_buffer_clear(&s->encoded);
    st = mb_tokenizer_encode(s->tokenizer, s->words, text, &s->encoded, err);
    for (size_t i = 0;
         st == MB_OK && i < s->encoded.size / sizeof(struct mb_token); i++) {
        struct mb_token token;

        memcpy(&token, s->encoded.data + i * sizeof token, sizeof token);
        st = subject_add_ids(to, &token.id, 1, err);
    }
    return st;
}

/* Natural text from a file, until there is as much as is wanted. */
static mb_status
read_file(struct subject *s, const char *path, uint64_t n, struct mb_error *err)
{
    struct source_options opt = {.repair = true};
    struct source_document doc;
    struct source *source = NULL;
    struct walk_list list;
    bool more = true;
    mb_status st;

    walk_list_init(&list);
    st = walk_add(&list, path, err);
    if (st == MB_OK)
        st = source_new(&list, &opt, &source, err);
    while (st == MB_OK && more && s->filler.n < n) {
        st = source_next(source, &doc, &more, err);
        if (st == MB_OK && more)
            st = subject_add_text(s, &s->filler,
                mb_wire_raw_str(mb_wire_find(doc.msgpack, "text")), err);
    }
    source_free(source);
    walk_list_fini(&list);
    if (st == MB_OK && s->filler.n == 0)
        st = mb_error_set(err, MB_ERR_NOT_FOUND, "%s: no text", path);
    return st;
}

mb_status
subject_read_filler(struct subject *s, uint64_t n, struct mb_error *err)
{
    const char *path = mb_cli_str(s->cli, "filler");

    if (path != NULL)
        return read_file(s, path, n, err);
    return subject_add_text(s, &s->filler, mb_slice_cstr(lines), err);
}

mb_status
subject_add_filler(struct subject *s, struct tokens *to, size_t *at, size_t n,
    struct mb_error *err)
{
    mb_status st = MB_OK;

    while (n > 0 && st == MB_OK) {
        size_t left = s->filler.n - *at;
        size_t part = n < left ? n : left;

        st = subject_add_ids(to, s->filler.ids + *at, part, err);
        *at = (*at + part) % s->filler.n;
        n -= part;
    }
    return st;
}
