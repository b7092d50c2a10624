/* SPDX-License-Identifier: Apache-2.0
 * model/bpe.c - the merges of a `gpt2` vocabulary, from its metadata.
 *
 * A merge is a line "left right". Its rank is its place in the list; of two
 * with the same sides the first counts. A line without two sides, or with a
 * character that stands for no byte, can never apply and is passed over, as
 * llama.cpp does. What a merge makes need not be a token: such strings get
 * symbols beyond the vocabulary, and if one is left at the end of a word it
 * becomes the tokens of its bytes.
 * Threads: immutable once made. */
#include "bpe.h"

#include <string.h>

#include "unicode.h"
#include "vocab.h"

#define MAX_MERGES (1u << 23)

/* ---- bytes as characters ---- */

/* The byte that a character stands for, or -1: those that can be seen in
 * Latin-1 stand for themselves, the others are U+0100 and on, in order. */
static int
byte_of(uint32_t code)
{
    if ((code >= 0x21 && code <= 0x7e) || (code >= 0xa1 && code <= 0xac) ||
        (code >= 0xae && code <= 0xff)) {
        return (int)code;
    }
    if (code >= 0x100 && code <= 0x120)
        return (int)code - 0x100; // 0x00 to 0x20
    if (code >= 0x121 && code <= 0x142)
        return (int)code - 0x121 + 0x7f; // 0x7f to 0xa0
    return code == 0x143 ? 0xad : -1;
}

size_t
bpe_plain_text(struct mb_slice piece, uint8_t *out)
{
    size_t n = 0;
    for (size_t i = 0; i < piece.size;) {
        uint32_t code = piece.data[i++];
        if (code >= 0xc2 && code <= 0xc5 && i < piece.size &&
            (piece.data[i] & 0xc0) == 0x80) {
            code = (code & 0x1f) << 6 | (piece.data[i++] & 0x3fu);
        } else if (code >= 0x80) {
            return SIZE_MAX;
        }
        int byte = byte_of(code);
        if (byte < 0)
            return SIZE_MAX;
        out[n++] = (uint8_t)byte;
    }
    return n;
}

/* ---- symbols of strings that are no token ---- */

struct names {
    const struct mb_tokenizer *tok;
    struct mb_buffer bytes; /* one after the other */
    size_t *at;             /* (n + 1) */
    size_t n;
    size_t room;
    uint32_t *slots; /* n + 1 of a string; 0: empty */
    size_t mask;
};

static struct mb_slice
name_of(const struct names *names, size_t i)
{
    return mb_slice_of(
        names->bytes.data + names->at[i], names->at[i + 1] - names->at[i]);
}

static void
place_name(struct names *names, size_t i)
{
    struct mb_slice s = name_of(names, i);
    size_t k = mb_hash64(s.data, s.size, 0) & names->mask;
    while (names->slots[k] > 0)
        k = (k + 1) & names->mask;
    names->slots[k] = (uint32_t)i + 1;
}

static mb_status
grow_names(struct names *names)
{
    size_t room = names->room > 0 ? 2 * names->room : 64;
    size_t *at = mb_realloc(names->at, (room + 1) * sizeof(*at));
    if (!at)
        return MB_ERR_NOMEM;
    if (names->room == 0)
        at[0] = 0;
    names->at = at;
    uint32_t *slots = mb_calloc(2 * room, sizeof(*slots));
    if (!slots)
        return MB_ERR_NOMEM;
    mb_free(names->slots);
    names->slots = slots;
    names->mask = 2 * room - 1;
    names->room = room;
    for (size_t i = 0; i < names->n; i++)
        place_name(names, i);
    return MB_OK;
}

/* The symbol of a string of bytes, a new one if it is met first. */
static mb_status
symbol_of(struct names *names, const uint8_t *text, size_t size, int32_t *out)
{
    *out = vocab_find(names->tok, text, size);
    if (*out >= 0)
        return MB_OK;
    if (names->room > 0) {
        size_t k = mb_hash64(text, size, 0) & names->mask;
        for (; names->slots[k] > 0; k = (k + 1) & names->mask) {
            size_t i = names->slots[k] - 1;
            if (mb_slice_equal(name_of(names, i), mb_slice_of(text, size))) {
                *out = (int32_t)(names->tok->n_vocab + i);
                return MB_OK;
            }
        }
    }
    mb_status st = names->n == names->room ? grow_names(names) : MB_OK;
    if (st == MB_OK)
        st = mb_buffer_append(&names->bytes, text, size);
    if (st != MB_OK)
        return st;
    *out = (int32_t)(names->tok->n_vocab + names->n);
    names->at[++names->n] = names->bytes.size;
    place_name(names, names->n - 1);
    return MB_OK;
}

/* ---- loading ---- */

static void
add_merge(struct bpe *bpe, const struct bpe_pair *merge)
{
    size_t i = bpe_pair_hash(merge->left, merge->right) & bpe->pair_mask;
    for (; bpe->pairs[i].left >= 0; i = (i + 1) & bpe->pair_mask) {
        if (bpe->pairs[i].left == merge->left &&
            bpe->pairs[i].right == merge->right) {
            return;
        }
    }
    bpe->pairs[i] = *merge;
}

/* Take in line `rank`; text has room for its bytes. */
static mb_status
load_merge(struct bpe *bpe, struct names *names, struct mb_slice line,
    uint32_t rank, uint8_t *text)
{
    struct bpe_pair merge = {.rank = rank};
    const uint8_t *space =
        line.size > 1 ? memchr(line.data + 1, ' ', line.size - 1) : NULL;
    if (!space)
        return MB_OK;
    size_t at = (size_t)(space - line.data);
    size_t left = bpe_plain_text(mb_slice_of(line.data, at), text);
    if (left == SIZE_MAX || left == 0)
        return MB_OK;
    size_t right =
        bpe_plain_text(mb_slice_of(space + 1, line.size - at - 1), text + left);
    if (right == SIZE_MAX || right == 0)
        return MB_OK;
    mb_status st = symbol_of(names, text, left, &merge.left);
    if (st == MB_OK)
        st = symbol_of(names, text + left, right, &merge.right);
    if (st == MB_OK)
        st = symbol_of(names, text, left + right, &merge.result);
    if (st == MB_OK)
        add_merge(bpe, &merge);
    return st;
}

static mb_status
load_merges(struct bpe *bpe, struct names *names, const struct mb_slice *lines,
    size_t n)
{
    size_t longest = 1;
    for (size_t i = 0; i < n; i++)
        longest = lines[i].size > longest ? lines[i].size : longest;
    uint8_t *text = mb_alloc(longest);
    mb_status st = text ? MB_OK : MB_ERR_NOMEM;
    for (unsigned i = 0; st == MB_OK && i < 256; i++) {
        uint8_t byte = (uint8_t)i;
        st = symbol_of(names, &byte, 1, &bpe->byte_symbol[i]);
    }
    for (size_t i = 0; st == MB_OK && i < n; i++)
        st = load_merge(bpe, names, lines[i], (uint32_t)i, text);
    mb_free(text);
    return st;
}

static mb_status
find_rule(const struct mb_gguf *gguf, struct bpe *bpe, struct mb_error *err)
{
    struct mb_slice name = mb_slice_cstr("default");
    mb_status st = mb_gguf_str(gguf, "tokenizer.ggml.pre", &name, err);
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return st;
    bpe->pre = pretoken_find(name);
    if (!bpe->pre)
        return mb_error_set(err, MB_ERR_NOT_IMPLEMENTED,
            "tokenizer: pre-tokenizer %.*s is not implemented",
            (int)(name.size < 64 ? name.size : 64), (const char *)name.data);
    return MB_OK;
}

static mb_status
read_lines(const struct mb_gguf *gguf, struct mb_slice **out, size_t *n,
    struct mb_error *err)
{
    static const char key[] = "tokenizer.ggml.merges";
    mb_status st = mb_gguf_strings(gguf, key, NULL, 0, n, err);
    if (st != MB_OK)
        return st;
    if (*n > MAX_MERGES)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "tokenizer: %zu merges, at most %u can be used", *n, MAX_MERGES);
    *out = mb_calloc(*n + 1, sizeof(**out));
    if (!*out)
        return mb_error_set(err, MB_ERR_NOMEM, "tokenizer: no memory");
    return mb_gguf_strings(gguf, key, *out, *n, n, err);
}

static mb_status
alloc_bpe(struct bpe *bpe, size_t n_merges)
{
    size_t n_pairs = 16;
    while (n_pairs < 2 * n_merges)
        n_pairs *= 2;
    bpe->pair_mask = n_pairs - 1;
    bpe->pairs = mb_alloc(n_pairs * sizeof(*bpe->pairs));
    bpe->classes = mb_alloc(UNICODE_BMP);
    if (!bpe->pairs || !bpe->classes)
        return MB_ERR_NOMEM;
    for (size_t i = 0; i < n_pairs; i++)
        bpe->pairs[i] = (struct bpe_pair){-1, -1, -1, 0};
    unicode_fill_bmp(bpe->classes);
    return MB_OK;
}

mb_status
bpe_new(const struct mb_gguf *gguf, const struct mb_tokenizer *tok,
    struct bpe **out, uint64_t *hash, struct mb_error *err)
{
    struct names names = {.tok = tok};
    struct mb_slice *lines = NULL;
    size_t n = 0;
    struct bpe *bpe = mb_calloc(1, sizeof(*bpe));
    mb_buffer_init(&names.bytes, INT32_MAX);
    if (!bpe)
        return mb_error_set(err, MB_ERR_NOMEM, "tokenizer: no memory");
    mb_status st = find_rule(gguf, bpe, err);
    if (st == MB_OK)
        st = read_lines(gguf, &lines, &n, err);
    if (st != MB_OK)
        goto out;
    st = alloc_bpe(bpe, n);
    if (st == MB_OK)
        st = load_merges(bpe, &names, lines, n);
    if (st != MB_OK) {
        mb_error_set(
            err, st, "tokenizer: %zu merges: %s", n, mb_status_text(st));
        goto out;
    }
    *hash = mb_hash64(bpe->pre->name, strlen(bpe->pre->name), 0);
    for (size_t i = 0; i < n; i++)
        *hash = mb_hash64(lines[i].data, lines[i].size, *hash);
    *out = bpe;
    bpe = NULL;
out:
    mb_free(lines);
    mb_free(names.at);
    mb_free(names.slots);
    mb_buffer_fini(&names.bytes);
    bpe_free(bpe);
    return st;
}

void
bpe_free(struct bpe *bpe)
{
    if (!bpe)
        return;
    mb_free(bpe->pairs);
    mb_free(bpe->classes);
    mb_free(bpe);
}
