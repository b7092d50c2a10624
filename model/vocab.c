/* SPDX-License-Identifier: Apache-2.0
 * model/vocab.c - a tokenizer's tables from the metadata of a GGUF file.
 *
 * Checks what the file says (counts that agree, types, finite scores, tokens
 * for bytes), copies it, and builds what encoding needs: a hash table of the
 * pieces that text can become, and the bitmaps of character pairs that occur
 * in them (tokenizer.c says what for), or the merges (bpe.c).
 * Threads: a tokenizer is immutable once made. */
#include "vocab.h"

#include <math.h>
#include <string.h>

#define MAX_VOCAB (1u << 22)

/* ---- pieces ---- */

static void
add_pair(struct mb_tokenizer *tok, uint32_t a, uint32_t b)
{
    if ((a | b) < 128) {
        tok->ascii_pairs[a][b >> 6] |= (uint64_t)1 << (b & 63);
        return;
    }
    uint32_t h = vocab_pair_hash(a, b);
    tok->pairs[h >> 6] |= (uint64_t)1 << (h & 63);
}

mb_token_id
vocab_find(const struct mb_tokenizer *tok, const uint8_t *text, size_t size)
{
    if (size > tok->max_piece)
        return -1;
    uint64_t h = mb_hash64(text, size, 0);
    uint32_t tag = (uint32_t)(h >> 32);
    for (size_t i = h & tok->slot_mask;; i = (i + 1) & tok->slot_mask) {
        const struct piece_slot *slot = &tok->slots[i];
        if (slot->id < 0)
            return -1;
        if (slot->tag != tag)
            continue;
        struct mb_slice piece = vocab_text(tok, slot->id);
        if (piece.size == size && memcmp(piece.data, text, size) == 0)
            return slot->id;
    }
}

/* Make a piece findable; of two with one text the later wins, as in
 * llama.cpp. */
static void
add_piece(struct mb_tokenizer *tok, mb_token_id id)
{
    struct mb_slice text = vocab_text(tok, id);
    uint64_t h = mb_hash64(text.data, text.size, 0);
    size_t i = h & tok->slot_mask;
    while (tok->slots[i].id >= 0 &&
           !mb_slice_equal(vocab_text(tok, tok->slots[i].id), text)) {
        i = (i + 1) & tok->slot_mask;
    }
    tok->slots[i].tag = (uint32_t)(h >> 32);
    tok->slots[i].id = id;
    if (text.size > tok->max_piece)
        tok->max_piece = (uint32_t)text.size;
    if (tok->is_bpe)
        return; // words are found by rule, not by pairs
    for (size_t p = 0; p < text.size;) {
        size_t n = char_size(text.data + p, text.size - p);
        size_t q = p + n;
        if (q < text.size) {
            size_t m = char_size(text.data + q, text.size - q);
            add_pair(
                tok, char_code(text.data + p, n), char_code(text.data + q, m));
        }
        p = q;
    }
}

/* ---- loading ---- */

/* Value of "<0xNN>", or -1. */
static int
byte_of_piece(struct mb_slice piece)
{
    int value = 0;
    if (piece.size != 6 || memcmp(piece.data, "<0x", 3) != 0 ||
        piece.data[5] != '>') {
        return -1;
    }
    for (size_t i = 3; i < 5; i++) {
        uint8_t c = piece.data[i];
        int digit = 0;
        if (c >= '0' && c <= '9')
            digit = c - '0';
        else if (c >= 'A' && c <= 'F')
            digit = c - 'A' + 10;
        else if (c >= 'a' && c <= 'f')
            digit = c - 'a' + 10;
        else
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* Write what a piece stands for: U+2581 becomes a space. Returns its size,
 * never more than the piece's. */
static size_t
plain_text(struct mb_slice piece, uint8_t *out)
{
    size_t n = 0;
    for (size_t i = 0; i < piece.size;) {
        if (piece.size - i >= 3 &&
            memcmp(piece.data + i, "\xe2\x96\x81", 3) == 0) {
            out[n++] = ' ';
            i += 3;
        } else {
            out[n++] = piece.data[i++];
        }
    }
    return n;
}

struct vocab_arrays {
    struct mb_slice *pieces; /* (n), views of the file */
    struct mb_slice scores;  /* none of a `gpt2` vocabulary */
    struct mb_slice types;
    size_t n;
};

static mb_status
read_arrays(const struct mb_gguf *gguf, bool is_bpe, struct vocab_arrays *v,
    struct mb_error *err)
{
    uint64_t n_scores = 0;
    uint64_t n_types = 0;
    mb_status st =
        mb_gguf_strings(gguf, "tokenizer.ggml.tokens", NULL, 0, &v->n, err);
    if (st != MB_OK)
        return st;
    if (v->n == 0 || v->n > MAX_VOCAB)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "tokenizer: %zu tokens, from 1 to %u can be used", v->n, MAX_VOCAB);
    v->pieces = mb_calloc(v->n, sizeof(*v->pieces));
    if (!v->pieces)
        return mb_error_set(err, MB_ERR_NOMEM, "tokenizer: no memory");
    st = mb_gguf_strings(
        gguf, "tokenizer.ggml.tokens", v->pieces, v->n, &v->n, err);
    if (st == MB_OK && is_bpe)
        n_scores = v->n;
    else if (st == MB_OK)
        st = mb_gguf_array(gguf, "tokenizer.ggml.scores", MB_GGUF_F32,
            &v->scores, &n_scores, err);
    if (st == MB_OK)
        st = mb_gguf_array(gguf, "tokenizer.ggml.token_type", MB_GGUF_I32,
            &v->types, &n_types, err);
    if (st == MB_OK && (n_scores != v->n || n_types != v->n))
        st = mb_error_set(err, MB_ERR_CORRUPT,
            "tokenizer: %zu tokens, but %llu scores and %llu types", v->n,
            (unsigned long long)n_scores, (unsigned long long)n_types);
    return st;
}

static mb_status
alloc_tables(struct mb_tokenizer *tok, size_t piece_bytes, struct mb_error *err)
{
    size_t n_slots = 16;
    while (n_slots < 2 * tok->n_vocab)
        n_slots *= 2;
    tok->slot_mask = n_slots - 1;
    tok->type = mb_calloc(tok->n_vocab, 1);
    tok->score = mb_calloc(tok->n_vocab, sizeof(float));
    tok->pieces = mb_calloc(piece_bytes + 1, 1);
    tok->piece_at = mb_calloc(tok->n_vocab + 1, sizeof(uint32_t));
    tok->texts = mb_calloc(piece_bytes + 1, 1);
    tok->text_at = mb_calloc(tok->n_vocab + 1, sizeof(uint32_t));
    tok->text_size = mb_calloc(tok->n_vocab, sizeof(uint32_t));
    tok->slots = mb_alloc(n_slots * sizeof(*tok->slots));
    tok->pairs = mb_calloc((size_t)1 << (PAIR_BITS - 6), sizeof(uint64_t));
    if (!tok->type || !tok->score || !tok->pieces || !tok->piece_at ||
        !tok->texts || !tok->text_at || !tok->text_size || !tok->slots ||
        !tok->pairs) {
        return mb_error_set(err, MB_ERR_NOMEM, "tokenizer: no memory");
    }
    for (size_t i = 0; i < n_slots; i++)
        tok->slots[i] = (struct piece_slot){0, -1};
    for (size_t i = 0; i < 256; i++)
        tok->byte_id[i] = -1;
    return MB_OK;
}

/* Write what a token of a type stands for in a text; returns its size, or
 * SIZE_MAX if a byte token is not written as one. */
static size_t
token_text(struct mb_tokenizer *tok, mb_token_id id, uint32_t type,
    struct mb_slice piece, uint8_t *text)
{
    bool is_plain = type == TYPE_NORMAL || type == TYPE_UNUSED;
    if (type == TYPE_BYTE) {
        int value = byte_of_piece(piece);
        if (value < 0)
            return SIZE_MAX;
        tok->byte_id[value] = id;
        text[0] = (uint8_t)value;
        return 1;
    }
    if (!is_plain && type != TYPE_USER)
        return 0;
    if (!tok->is_bpe)
        return plain_text(piece, text);
    if (is_plain) {
        size_t size = bpe_plain_text(piece, text);
        if (size != SIZE_MAX)
            return size;
        tok->type[id] = TYPE_UNDEFINED; // no text can become it
    }
    if (piece.size > 0)
        memcpy(text, piece.data, piece.size);
    return piece.size;
}

/* Take in token i: its piece, what it stands for, and its place among those
 * that text can become. */
static mb_status
load_token(struct mb_tokenizer *tok, const struct vocab_arrays *v, size_t i,
    struct mb_error *err)
{
    struct mb_slice piece = v->pieces[i];
    uint32_t type = mb_get_le32(v->types.data + 4 * i);
    float score = tok->is_bpe ? 0.0f : mb_get_lef32(v->scores.data + 4 * i);
    if (type > TYPE_BYTE)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "tokenizer: token %zu has the unknown type %u", i, type);
    if (!isfinite(score))
        return mb_error_set(err, MB_ERR_CORRUPT,
            "tokenizer: score of token %zu is not finite", i);
    if (type != TYPE_UNKNOWN && special_is_control(piece))
        type = TYPE_CONTROL; // some files have them as user-defined
    tok->type[i] = (uint8_t)type;
    tok->score[i] = score;
    uint32_t at = tok->piece_at[i];
    if (piece.size > 0)
        memcpy(tok->pieces + at, piece.data, piece.size);
    tok->piece_at[i + 1] = at + (uint32_t)piece.size;

    size_t size = token_text(
        tok, (mb_token_id)i, type, piece, tok->texts + tok->text_at[i]);
    if (size == SIZE_MAX)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "tokenizer: byte token %zu is not written <0xNN>", i);
    tok->text_at[i + 1] = tok->text_at[i] + (uint32_t)size;
    tok->text_size[i] = (uint32_t)size;
    return MB_OK;
}

/* Can merges, or a match, make this token from text? A piece for merges of a
 * `llama` vocabulary that has a plain space cannot: in those a space is
 * U+2581. */
static bool
is_text_piece(const struct mb_tokenizer *tok, size_t i)
{
    struct mb_slice piece = mb_tokenizer_piece(tok, (mb_token_id)i);
    uint8_t type = tok->type[i];
    bool is_plain = type == TYPE_NORMAL || type == TYPE_UNUSED;
    if (piece.size == 0 || (!is_plain && type != TYPE_USER))
        return false;
    if (tok->is_bpe)
        return true;
    if (!mb_utf8_is_valid(piece, NULL))
        return false;
    return !is_plain || memchr(piece.data, ' ', piece.size) == NULL;
}

/* Make pieces findable: those for merges by vocab_find, the others in their
 * sets. ids has room for all tokens. */
static mb_status
index_pieces(struct mb_tokenizer *tok, mb_token_id *ids)
{
    size_t n_user = 0;
    for (size_t i = 0; i < tok->n_vocab; i++) {
        if (!is_text_piece(tok, i))
            continue;
        if (tok->type[i] == TYPE_USER)
            ids[n_user++] = (mb_token_id)i;
        else
            add_piece(tok, (mb_token_id)i);
    }
    mb_status st = special_set_init(&tok->user, tok, ids, n_user);
    if (st != MB_OK)
        return st;
    size_t n = n_user;
    for (size_t i = 0; i < tok->n_vocab; i++) {
        uint8_t type = tok->type[i];
        if ((type == TYPE_CONTROL || type == TYPE_UNKNOWN) &&
            mb_tokenizer_piece(tok, (mb_token_id)i).size > 0) {
            ids[n++] = (mb_token_id)i;
        }
    }
    return special_set_init(&tok->special, tok, ids, n);
}

/* Tokens of single bytes. Many `gpt2` vocabularies lack those of bytes that
 * were not in what they were made from: control characters, say. */
static mb_status
index_bytes(struct mb_tokenizer *tok, struct mb_error *err)
{
    for (size_t i = 0; i < 256; i++) {
        uint8_t c = (uint8_t)i;
        mb_token_id id = vocab_find(tok, &c, 1);
        if (tok->is_bpe && id >= 0)
            tok->byte_id[i] = id;
        if (tok->byte_id[i] < 0 && !tok->is_bpe)
            return mb_error_set(
                err, MB_ERR_CORRUPT, "tokenizer: no byte token <0x%02zX>", i);
        if (i < 128)
            tok->ascii_id[i] = id >= 0 ? id : tok->byte_id[i];
    }
    return MB_OK;
}

static mb_status
load_vocab(struct mb_tokenizer *tok, const struct vocab_arrays *v,
    struct mb_error *err)
{
    size_t bytes = 0;
    for (size_t i = 0; i < v->n; i++) {
        if (!mb_size_add(bytes, v->pieces[i].size, &bytes) ||
            bytes > INT32_MAX) {
            return mb_error_set(err, MB_ERR_TOO_LARGE,
                "tokenizer: pieces of more than %d bytes", INT32_MAX);
        }
    }
    tok->n_vocab = v->n;
    mb_status st = alloc_tables(tok, bytes, err);
    for (size_t i = 0; st == MB_OK && i < v->n; i++)
        st = load_token(tok, v, i, err);
    if (st != MB_OK)
        return st;
    mb_token_id *ids = mb_calloc(v->n, sizeof(*ids));
    st = ids ? index_pieces(tok, ids) : MB_ERR_NOMEM;
    mb_free(ids);
    if (st != MB_OK)
        return mb_error_set(err, st, "tokenizer: no memory");
    return index_bytes(tok, err);
}

/* A token id from the metadata; -1 if the key is not there. */
static mb_status
read_id(const struct mb_gguf *gguf, const char *key, size_t n_vocab,
    mb_token_id *out, struct mb_error *err)
{
    uint64_t v = 0;
    mb_status st = mb_gguf_u64(gguf, key, &v, NULL);
    *out = -1;
    if (st == MB_ERR_NOT_FOUND)
        return MB_OK;
    if (st != MB_OK || v >= n_vocab)
        return mb_error_set(
            err, MB_ERR_CORRUPT, "tokenizer: %s is no token", key);
    *out = (mb_token_id)v;
    return MB_OK;
}

static mb_status
read_flag(const struct mb_gguf *gguf, const char *key, bool *out,
    struct mb_error *err)
{
    mb_status st = mb_gguf_bool(gguf, key, out, NULL);
    if (st == MB_OK || st == MB_ERR_NOT_FOUND)
        return MB_OK;
    return mb_error_set(err, MB_ERR_CORRUPT, "tokenizer: %s is no bool", key);
}

/* The tokens that end a generation: those of the metadata, and those that are
 * known by name. */
static mb_status
find_ends(
    const struct mb_gguf *gguf, struct mb_tokenizer *tok, struct mb_error *err)
{
    static const char *const keys[] = {
        "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    mb_token_id ids[3] = {tok->eos, -1, -1};
    for (size_t i = 0; i < 2; i++) {
        mb_status st = read_id(gguf, keys[i], tok->n_vocab, &ids[i + 1], err);
        if (st != MB_OK)
            return st;
    }
    for (int pass = 0; pass < 2; pass++) {
        size_t n = 0;
        for (size_t i = 0; i < tok->n_vocab; i++) {
            mb_token_id id = (mb_token_id)i;
            if (id != ids[0] && id != ids[1] && id != ids[2] &&
                !(tok->type[i] == TYPE_CONTROL &&
                    special_is_end(mb_tokenizer_piece(tok, id)))) {
                continue;
            }
            if (pass == 1)
                tok->ends[n] = id;
            n++;
        }
        if (pass == 0 && n > 0) {
            tok->ends = mb_calloc(n, sizeof(*tok->ends));
            if (!tok->ends)
                return mb_error_set(err, MB_ERR_NOMEM, "tokenizer: no memory");
        }
        tok->n_ends = n;
    }
    return MB_OK;
}

/* Ids and flags of the metadata. */
static mb_status
read_settings(
    const struct mb_gguf *gguf, struct mb_tokenizer *tok, struct mb_error *err)
{
    bool ignored = false;
    tok->add_space = !tok->is_bpe;
    tok->add_bos = tok->is_bpe ? tok->bpe->pre->add_bos : true;
    mb_status st = read_id(
        gguf, "tokenizer.ggml.bos_token_id", tok->n_vocab, &tok->bos, err);
    if (st == MB_OK)
        st = read_id(
            gguf, "tokenizer.ggml.eos_token_id", tok->n_vocab, &tok->eos, err);
    if (st == MB_OK)
        st = read_flag(gguf, "tokenizer.ggml.add_space_prefix",
            tok->is_bpe ? &ignored : &tok->add_space, err);
    if (st == MB_OK)
        st =
            read_flag(gguf, "tokenizer.ggml.add_bos_token", &tok->add_bos, err);
    if (st == MB_OK)
        st =
            read_flag(gguf, "tokenizer.ggml.add_eos_token", &tok->add_eos, err);
    return st == MB_OK ? find_ends(gguf, tok, err) : st;
}

static mb_status
make_fingerprint(struct mb_tokenizer *tok, struct mb_slice model,
    uint64_t merges, struct mb_error *err)
{
    struct mb_buffer buf;
    uint8_t number[8];
    size_t pieces = tok->piece_at[tok->n_vocab];
    mb_buffer_init(&buf, pieces + 16 * tok->n_vocab + model.size + 64);
    mb_status st = mb_buffer_append(&buf, model.data, model.size);
    mb_put_le32(number, tok->add_space);
    mb_put_le32(number + 4, (uint32_t)tok->n_vocab);
    if (st == MB_OK)
        st = mb_buffer_append(&buf, number, sizeof(number));
    for (size_t i = 0; st == MB_OK && i < tok->n_vocab; i++) {
        struct mb_slice piece = mb_tokenizer_piece(tok, (mb_token_id)i);
        mb_put_lef32(number, tok->score[i]);
        mb_put_le32(
            number + 4, (uint32_t)piece.size << 3 | (uint32_t)tok->type[i]);
        st = mb_buffer_append(&buf, number, sizeof(number));
        if (st == MB_OK && piece.size > 0)
            st = mb_buffer_append(&buf, piece.data, piece.size);
    }
    mb_put_le64(number, merges);
    if (st == MB_OK && tok->is_bpe)
        st = mb_buffer_append(&buf, number, sizeof(number));
    if (st == MB_OK)
        mb_hash128(buf.data, buf.size, tok->fingerprint);
    else
        mb_error_set(err, st, "tokenizer: fingerprint: no memory");
    mb_buffer_fini(&buf);
    return st;
}

static mb_status
read_model(const struct mb_gguf *gguf, struct mb_slice *model, bool *is_bpe,
    struct mb_error *err)
{
    mb_status st = mb_gguf_str(gguf, "tokenizer.ggml.model", model, err);
    if (st != MB_OK)
        return st;
    *is_bpe = mb_slice_equal(*model, mb_slice_cstr("gpt2"));
    if (!*is_bpe && !mb_slice_equal(*model, mb_slice_cstr("llama")))
        return mb_error_set(err, MB_ERR_NOT_IMPLEMENTED,
            "tokenizer: model %.*s is not implemented, only llama and gpt2 are",
            (int)(model->size < 64 ? model->size : 64),
            (const char *)model->data);
    return MB_OK;
}

static mb_status
load(const struct mb_gguf *gguf, struct mb_tokenizer *tok, struct mb_error *err)
{
    struct vocab_arrays v = {0};
    struct mb_slice model = {0};
    uint64_t merges = 0;
    mb_status st = read_model(gguf, &model, &tok->is_bpe, err);
    if (st == MB_OK)
        st = read_arrays(gguf, tok->is_bpe, &v, err);
    if (st == MB_OK)
        st = load_vocab(tok, &v, err);
    mb_free(v.pieces);
    if (st == MB_OK && tok->is_bpe)
        st = bpe_new(gguf, tok, &tok->bpe, &merges, err);
    if (st == MB_OK)
        st = read_settings(gguf, tok, err);
    return st == MB_OK ? make_fingerprint(tok, model, merges, err) : st;
}

mb_status
mb_tokenizer_new(
    const struct mb_gguf *gguf, struct mb_tokenizer **out, struct mb_error *err)
{
    struct mb_tokenizer *tok = mb_calloc(1, sizeof(*tok));
    if (!tok)
        return mb_error_set(err, MB_ERR_NOMEM, "tokenizer: no memory");
    mb_status st = load(gguf, tok, err);
    if (st != MB_OK) {
        mb_tokenizer_free(tok);
        /* A key of the wrong type is the file's fault, not the caller's. */
        return st == MB_ERR_BAD_ARG ? MB_ERR_CORRUPT : st;
    }
    *out = tok;
    return MB_OK;
}

void
mb_tokenizer_free(struct mb_tokenizer *tok)
{
    if (!tok)
        return;
    mb_free(tok->type);
    mb_free(tok->score);
    mb_free(tok->pieces);
    mb_free(tok->piece_at);
    mb_free(tok->texts);
    mb_free(tok->text_at);
    mb_free(tok->text_size);
    mb_free(tok->slots);
    mb_free(tok->pairs);
    mb_free(tok->ends);
    special_set_fini(&tok->user);
    special_set_fini(&tok->special);
    bpe_free(tok->bpe);
    mb_free(tok);
}

size_t
mb_tokenizer_n_vocab(const struct mb_tokenizer *tok)
{
    return tok->n_vocab;
}

void
mb_tokenizer_fingerprint(const struct mb_tokenizer *tok, uint8_t out[16])
{
    memcpy(out, tok->fingerprint, 16);
}

mb_token_id
mb_tokenizer_bos(const struct mb_tokenizer *tok)
{
    return tok->bos;
}

mb_token_id
mb_tokenizer_eos(const struct mb_tokenizer *tok)
{
    return tok->eos;
}

struct mb_slice
mb_tokenizer_piece(const struct mb_tokenizer *tok, mb_token_id id)
{
    if (id < 0 || (size_t)id >= tok->n_vocab)
        return (struct mb_slice){NULL, 0};
    uint32_t start = tok->piece_at[id];
    return mb_slice_of(tok->pieces + start, tok->piece_at[id + 1] - start);
}

mb_token_id
mb_tokenizer_find(const struct mb_tokenizer *tok, const char *piece)
{
    struct mb_slice wanted = mb_slice_cstr(piece);
    for (size_t i = 0; i < tok->n_vocab; i++) {
        if (mb_slice_equal(mb_tokenizer_piece(tok, (mb_token_id)i), wanted))
            return (mb_token_id)i;
    }
    return -1;
}

bool
mb_tokenizer_adds_bos(const struct mb_tokenizer *tok)
{
    return tok->add_bos && tok->bos >= 0;
}

bool
mb_tokenizer_adds_eos(const struct mb_tokenizer *tok)
{
    return tok->add_eos && tok->eos >= 0;
}

const mb_token_id *
mb_tokenizer_ends(const struct mb_tokenizer *tok, size_t *n)
{
    *n = tok->n_ends;
    return tok->ends;
}
