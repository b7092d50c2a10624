/* SPDX-License-Identifier: Apache-2.0
 * model/prompt.c - encoding of texts in which control tokens are written out.
 *
 * A chat template gives such a text: "<|im_start|>user\n...". Pieces of the
 * special set are found first; what lies between two of them is a text of its
 * own, encoded as one, so that a `llama` vocabulary puts a space in front of
 * each, as llama.cpp does. Stretches that a user wrote are told apart: there a
 * name is text, whatever it says.
 * Threads: any; the cache belongs to one. */
#include "special.h"
#include "tokenizer.h"
#include "vocab.h"

#include <string.h>

static mb_status
add_id(struct mb_buffer *out, mb_token_id id)
{
    return mb_buffer_append(out, &id, sizeof(id));
}

/* Ids of a text without control tokens; tokens is for use here. */
static mb_status
add_text(const struct mb_tokenizer *tok, struct mb_token_cache *work,
    struct mb_slice text, struct mb_buffer *tokens, struct mb_buffer *out)
{
    mb_buffer_clear(tokens);
    mb_status st = tok_encode(tok, work, text, tokens);
    for (size_t i = 0; st == MB_OK && i < tokens->size;
         i += sizeof(struct mb_token)) {
        struct mb_token t;
        memcpy(&t, tokens->data + i, sizeof(t));
        st = add_id(out, t.id);
    }
    return st;
}

/* A text, and the stretches of it in which no control token is looked for. */
struct source {
    const struct mb_tokenizer *tok;
    struct mb_slice text;
    const struct mb_span *plain;
    size_t n_plain;
    size_t next_plain;
    struct special_scan scan;
};

/* The first special piece at pos or later; *out is NULL if there is none. */
static mb_status
next_piece(struct source *s, size_t pos, const struct special_hit **out)
{
    *out = NULL;
    while (pos < s->text.size) {
        size_t end = s->text.size; // of the stretch to search
        if (s->next_plain < s->n_plain) {
            const struct mb_span *plain = &s->plain[s->next_plain];
            if (pos >= plain->start) {
                pos = plain->end > pos ? plain->end : pos;
                s->next_plain++;
                continue;
            }
            end = plain->start < end ? plain->start : end;
        }
        mb_status st = special_scan_next(&s->scan, &s->tok->special, s->tok,
            mb_slice_of(s->text.data, end), pos, end, out);
        if (st != MB_OK || *out)
            return st;
        pos = end;
    }
    return MB_OK;
}

static mb_status
add_parts(struct source *s, struct mb_token_cache *work,
    struct mb_buffer *tokens, struct mb_buffer *out)
{
    mb_status st = MB_OK;
    size_t pos = 0;
    while (st == MB_OK && pos < s->text.size) {
        const struct special_hit *hit = NULL;
        st = next_piece(s, pos, &hit);
        if (st != MB_OK)
            break;
        size_t end = hit ? hit->start : s->text.size;
        if (end > pos)
            st = add_text(s->tok, work,
                mb_slice_of(s->text.data + pos, end - pos), tokens, out);
        if (st == MB_OK && hit)
            st = add_id(out, hit->id);
        pos = hit ? hit->end : end;
    }
    special_scan_fini(&s->scan);
    return st;
}

mb_status
mb_tokenizer_encode_prompt(const struct mb_tokenizer *tok,
    struct mb_token_cache *cache, const struct mb_prompt *prompt,
    struct mb_buffer *out, struct mb_error *err)
{
    struct mb_slice text = prompt->text;
    unsigned flags = prompt->flags;
    struct source source = {.tok = tok,
        .text = text,
        .plain = prompt->plain,
        .n_plain = prompt->n_plain};
    struct mb_token_cache local = {0};
    struct mb_token_cache *work = cache ? cache : &local;
    struct mb_buffer tokens;
    size_t before = out->size;
    mb_status st = MB_OK;
    if (text.size > UINT32_MAX)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "tokenizer: text of %zu bytes, at most %lu can be encoded",
            text.size, (unsigned long)UINT32_MAX);
    mb_buffer_init(&tokens, SIZE_MAX);
    tok_begin(tok, work);
    if ((flags & MB_PROMPT_ENDS) && mb_tokenizer_adds_bos(tok))
        st = add_id(out, tok->bos);
    if (st == MB_OK && (flags & MB_PROMPT_SPECIAL))
        st = add_parts(&source, work, &tokens, out);
    else if (st == MB_OK)
        st = add_text(tok, work, text, &tokens, out);
    if (st == MB_OK && (flags & MB_PROMPT_ENDS) && mb_tokenizer_adds_eos(tok))
        st = add_id(out, tok->eos);
    tok_end(&local);
    mb_buffer_fini(&tokens);
    if (st != MB_OK) {
        out->size = before;
        mb_error_set(err, st, "tokenizer: prompt of %zu bytes: %s", text.size,
            mb_status_text(st));
    }
    return st;
}
