/* SPDX-License-Identifier: Apache-2.0
 * model/bpe.h - the merges of a `gpt2` vocabulary, by symbols.
 *
 * Such a vocabulary writes each byte of a text as a character that can be
 * seen, and merges pairs of strings in the order of a list. Here strings are
 * symbols: a token's id, or beyond the vocabulary a number for a string that
 * only merges know. So a merge is one look-up of two numbers. Private to this
 * folder. Threads: immutable once made. */
#ifndef MB_MODEL_BPE_H
#define MB_MODEL_BPE_H

#include "mb_model.h"
#include "pretoken.h"

struct bpe_pair {
    int32_t left; /* -1: empty */
    int32_t right;
    int32_t result;
    uint32_t rank;
};

struct bpe {
    const struct pretokenizer *pre;
    uint8_t *classes; /* unicode_fill_bmp() */
    struct bpe_pair *pairs;
    size_t pair_mask;
    int32_t byte_symbol[256];
};

static inline uint64_t
bpe_pair_hash(int32_t left, int32_t right)
{
    uint64_t h = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    h *= 0x9e3779b97f4a7c15u;
    return h ^ h >> 32;
}

/* The merge of two symbols, or NULL. */
static inline const struct bpe_pair *
bpe_find(const struct bpe *bpe, int32_t left, int32_t right)
{
    size_t i = bpe_pair_hash(left, right) & bpe->pair_mask;
    for (;; i = (i + 1) & bpe->pair_mask) {
        const struct bpe_pair *pair = &bpe->pairs[i];
        if (pair->left == left && pair->right == right)
            return pair;
        if (pair->left < 0)
            return NULL;
    }
}

/* Write the bytes that a piece stands for; returns how many, never more than
 * the piece has, or SIZE_MAX if a character of it stands for no byte. */
size_t bpe_plain_text(struct mb_slice piece, uint8_t *out);

/* Rule and merges of a file; tok has its tokens. *hash is of both. Errors:
 * NOT_IMPLEMENTED (rule, by name), NOT_FOUND, CORRUPT, TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status bpe_new(const struct mb_gguf *gguf,
    const struct mb_tokenizer *tok, struct bpe **out, uint64_t *hash,
    struct mb_error *err);
void bpe_free(struct bpe *bpe);

#endif
