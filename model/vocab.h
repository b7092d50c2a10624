/* SPDX-License-Identifier: Apache-2.0
 * model/vocab.h - a tokenizer's tables, made by vocab.c, read by tokenizer.c.
 *
 * Pieces are kept twice: as the file has them, and as the text they stand for,
 * where U+2581 has become a space and "<0x0A>" the byte (`llama`), or each
 * character the byte it is written for (`gpt2`). What depends on text goes by
 * the second. Private to this folder.
 * Invariants: a piece that merges can make is found by vocab_find. Of `llama`
 * alone: all 256 bytes have a token, such pieces are valid UTF-8, and each two
 * characters that are neighbours in one are found by vocab_has_pair.
 * Threads: immutable once made. */
#ifndef MB_MODEL_VOCAB_H
#define MB_MODEL_VOCAB_H

#include "bpe.h"
#include "mb_model.h"
#include "special.h"

/* Types of tokens as GGUF numbers them. */
enum {
    TYPE_UNDEFINED = 0,
    TYPE_NORMAL = 1,
    TYPE_UNKNOWN = 2,
    TYPE_CONTROL = 3,
    TYPE_USER = 4,
    TYPE_UNUSED = 5,
    TYPE_BYTE = 6,
};

#define PAIR_BITS 18 /* of the hashed bitmap: 32 KiB */

struct piece_slot {
    uint32_t tag;   /* upper half of the hash */
    mb_token_id id; /* -1: empty */
};

struct mb_tokenizer {
    size_t n_vocab;
    bool add_space;
    bool add_bos;
    bool add_eos;
    mb_token_id bos;
    mb_token_id eos;
    uint8_t fingerprint[16];
    bool is_bpe;         /* a `gpt2` vocabulary, not a `llama` one */
    struct bpe *bpe;     /* NULL if it is not */
    uint8_t *type;       /* (n_vocab) */
    float *score;        /* (n_vocab) */
    uint8_t *pieces;     /* as in the file, one after the other */
    uint32_t *piece_at;  /* (n_vocab + 1) */
    uint8_t *texts;      /* what a token stands for: spaces, bytes */
    uint32_t *text_at;   /* (n_vocab + 1) */
    uint32_t *text_size; /* (n_vocab), 0 for control tokens */
    struct piece_slot *slots;
    size_t slot_mask;
    uint32_t max_piece;        /* longest text of a piece that merges make */
    mb_token_id byte_id[256];  /* -1: none, of `gpt2` alone */
    mb_token_id ascii_id[128]; /* of one ASCII character; a byte's if none */
    uint64_t ascii_pairs[128][2];
    uint64_t *pairs;            /* hashed, for pairs that are not both ASCII */
    struct special_set user;    /* user-defined pieces */
    struct special_set special; /* these, control tokens and unknown ones */
    mb_token_id *ends;          /* (n_ends) tokens that end a generation */
    size_t n_ends;
};

/* Bytes of the character at p, by its first byte; never past the end. Only
 * valid UTF-8 is promised to us, but nothing here relies on it. */
static inline size_t
char_size(const uint8_t *p, size_t room)
{
    static const uint8_t size[16] = {
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4};
    size_t n = size[p[0] >> 4];
    return n < room ? n : room;
}

/* A character as a number (its bytes packed). */
static inline uint32_t
char_code(const uint8_t *p, size_t n)
{
    uint32_t code = 0;
    for (size_t i = 0; i < n; i++)
        code = code << 8 | p[i];
    return code;
}

static inline uint32_t
vocab_pair_hash(uint32_t a, uint32_t b)
{
    uint64_t h = (uint64_t)a << 32 | b;
    h *= 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
    h *= 0xbf58476d1ce4e5b9u;
    return (uint32_t)(h >> (64 - PAIR_BITS));
}

/* May the two characters be neighbours in a piece? Exact for ASCII. */
static inline bool
vocab_has_pair(const struct mb_tokenizer *tok, uint32_t a, uint32_t b)
{
    if ((a | b) < 128)
        return tok->ascii_pairs[a][b >> 6] >> (b & 63) & 1;
    uint32_t h = vocab_pair_hash(a, b);
    return tok->pairs[h >> 6] >> (h & 63) & 1;
}

/* What a token stands for; nothing for control tokens. */
static inline struct mb_slice
vocab_text(const struct mb_tokenizer *tok, mb_token_id id)
{
    uint32_t start = tok->text_at[id];
    return mb_slice_of(tok->texts + start, tok->text_at[id + 1] - start);
}

/* The piece that merges can make with this text, or -1. */
mb_token_id vocab_find(
    const struct mb_tokenizer *tok, const uint8_t *text, size_t size);

#endif
