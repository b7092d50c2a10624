/* SPDX-License-Identifier: Apache-2.0
 * model/tokenizer.c - the `llama` tokenizer: SentencePiece BPE by scores.
 *
 * A text is a row of characters; the adjacent pair that makes the piece of the
 * best score is merged (the leftmost of equals) until no pair makes a piece.
 * Characters that are no piece become one token for each of their bytes. A
 * space stands in front of every text (where the vocabulary asks for that).
 *
 * Two ideas make it fast and keep it exact:
 * - Everything works on the text's own bytes. Pieces write the space as U+2581;
 *   they are turned to plain spaces once, at load, and the text never changes.
 *   So the literal character U+2581 of a text is in no piece, goes through
 *   byte tokens, and decodes to itself.
 * - Two characters that stand side by side in no piece are never merged over.
 *   Between them a text falls into units whose tokens do not depend on each
 *   other: mostly words with the space before them, so that a bounded table of
 *   units seen before answers nineteen times in twenty. A bitmap of the pairs
 *   that do occur (exact for ASCII, hashed for others: a false hit only makes
 *   a longer unit) finds the places. This holds for every vocabulary, also for
 *   one whose pieces have spaces inside.
 *
 * Where llama.cpp differs: (1) a literal U+2581 is a space there, so it cannot
 * be told apart on the way back; (2) there, merges may run into control and
 * byte tokens ("<s>" in a text may become bos), here only normal, unused and
 * user-defined pieces are made from text; (3) a vocabulary without a piece for
 * the space gives the bytes of U+2581 there, and byte 0x20 here; (4) after a
 * user-defined piece (phi-3's "</s>") it puts another space in front of the
 * rest and may strip blanks, which decoding could not undo; here such a piece
 * is one token and its surroundings stay.
 *
 * Invariants: every one of the 256 byte tokens exists; sizes of the tokens of
 * a text add up to its size.
 * Threads: a tokenizer is immutable; a mb_token_cache belongs to one thread. */
#include "tokenizer.h"

#include <math.h>
#include <string.h>

#define MAX_VOCAB (1u << 22)

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
    mb_token_id bos;
    mb_token_id eos;
    uint8_t fingerprint[16];
    uint8_t *type;       /* (n_vocab) */
    float *score;        /* (n_vocab) */
    uint8_t *pieces;     /* as in the file, one after the other */
    uint32_t *piece_at;  /* (n_vocab + 1) */
    uint8_t *texts;      /* what a token stands for: spaces, bytes */
    uint32_t *text_at;   /* (n_vocab + 1) */
    uint32_t *text_size; /* (n_vocab), 0 for control tokens */
    struct piece_slot *slots;
    size_t slot_mask;
    uint32_t max_piece; /* longest text of a piece that merges make */
    mb_token_id byte_id[256];
    mb_token_id ascii_id[128]; /* of one ASCII character; a byte's if none */
    uint64_t ascii_pairs[128][2];
    uint64_t *pairs; /* hashed, for pairs that are not both ASCII */
    /* User-defined pieces, longest first. */
    mb_token_id *user;
    size_t n_user;
    bool user_first[256];
};

/* One unit seen before: a cache line. */
struct word {
    uint8_t size; /* 0: empty */
    uint8_t n_ids;
    uint8_t text[30];
    mb_token_id ids[8];
};

_Static_assert(sizeof(struct word) == 64, "a word fills one cache line");

#define WORD_TEXT sizeof(((struct word *)0)->text)
#define WORD_IDS  (sizeof(((struct word *)0)->ids) / sizeof(mb_token_id))
#define WORD_BITS 16 /* 65,536 words, 4 MiB */

struct symbol {
    uint32_t start;
    uint32_t size; /* 0: merged into the one before */
    int32_t prev;
    int32_t next;
    mb_token_id id; /* -1: no piece */
};

struct merge {
    float score;
    uint32_t left;
    uint32_t size; /* of both when this was found; else it is stale */
    mb_token_id id;
};

/* ---- characters ---- */

/* Bytes of the character at p, by its first byte; never past the end. Only
 * valid UTF-8 is promised to us, but nothing here relies on it. */
static size_t
char_size(const uint8_t *p, size_t room)
{
    static const uint8_t size[16] = {
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4};
    size_t n = size[p[0] >> 4];
    return n < room ? n : room;
}

/* A character as a number (its bytes packed). */
static uint32_t
char_code(const uint8_t *p, size_t n)
{
    uint32_t code = 0;
    for (size_t i = 0; i < n; i++)
        code = code << 8 | p[i];
    return code;
}

static uint32_t
pair_hash(uint32_t a, uint32_t b)
{
    uint64_t h = (uint64_t)a << 32 | b;
    h *= 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
    h *= 0xbf58476d1ce4e5b9u;
    return (uint32_t)(h >> (64 - PAIR_BITS));
}

static bool
has_pair(const struct mb_tokenizer *tok, uint32_t a, uint32_t b)
{
    if ((a | b) < 128)
        return tok->ascii_pairs[a][b >> 6] >> (b & 63) & 1;
    uint32_t h = pair_hash(a, b);
    return tok->pairs[h >> 6] >> (h & 63) & 1;
}

static void
add_pair(struct mb_tokenizer *tok, uint32_t a, uint32_t b)
{
    if ((a | b) < 128) {
        tok->ascii_pairs[a][b >> 6] |= (uint64_t)1 << (b & 63);
        return;
    }
    uint32_t h = pair_hash(a, b);
    tok->pairs[h >> 6] |= (uint64_t)1 << (h & 63);
}

/* ---- pieces ---- */

static struct mb_slice
text_of(const struct mb_tokenizer *tok, mb_token_id id)
{
    uint32_t start = tok->text_at[id];
    return mb_slice_of(tok->texts + start, tok->text_at[id + 1] - start);
}

/* The piece with this text, or -1. */
static mb_token_id
find_piece(const struct mb_tokenizer *tok, const uint8_t *text, size_t size)
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
        struct mb_slice piece = text_of(tok, slot->id);
        if (piece.size == size && memcmp(piece.data, text, size) == 0)
            return slot->id;
    }
}

/* Make a piece findable; of two with one text the later wins, as in
 * llama.cpp. */
static void
add_piece(struct mb_tokenizer *tok, mb_token_id id)
{
    struct mb_slice text = text_of(tok, id);
    uint64_t h = mb_hash64(text.data, text.size, 0);
    size_t i = h & tok->slot_mask;
    while (tok->slots[i].id >= 0 &&
           !mb_slice_equal(text_of(tok, tok->slots[i].id), text)) {
        i = (i + 1) & tok->slot_mask;
    }
    tok->slots[i].tag = (uint32_t)(h >> 32);
    tok->slots[i].id = id;
    if (text.size > tok->max_piece)
        tok->max_piece = (uint32_t)text.size;
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
    struct mb_slice scores;
    struct mb_slice types;
    size_t n;
};

static mb_status
read_arrays(
    const struct mb_gguf *gguf, struct vocab_arrays *v, struct mb_error *err)
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
    if (st == MB_OK)
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
    tok->user = mb_calloc(tok->n_vocab, sizeof(*tok->user));
    if (!tok->type || !tok->score || !tok->pieces || !tok->piece_at ||
        !tok->texts || !tok->text_at || !tok->text_size || !tok->slots ||
        !tok->pairs || !tok->user) {
        return mb_error_set(err, MB_ERR_NOMEM, "tokenizer: no memory");
    }
    for (size_t i = 0; i < n_slots; i++)
        tok->slots[i] = (struct piece_slot){0, -1};
    for (size_t i = 0; i < 256; i++)
        tok->byte_id[i] = -1;
    return MB_OK;
}

/* Take in token i: its piece, what it stands for, and its place among those
 * that text can become. */
static mb_status
load_token(struct mb_tokenizer *tok, const struct vocab_arrays *v, size_t i,
    struct mb_error *err)
{
    struct mb_slice piece = v->pieces[i];
    uint32_t type = mb_get_le32(v->types.data + 4 * i);
    float score = mb_get_lef32(v->scores.data + 4 * i);
    if (type > TYPE_BYTE)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "tokenizer: token %zu has the unknown type %u", i, type);
    if (!isfinite(score))
        return mb_error_set(err, MB_ERR_CORRUPT,
            "tokenizer: score of token %zu is not finite", i);
    tok->type[i] = (uint8_t)type;
    tok->score[i] = score;
    uint32_t at = tok->piece_at[i];
    if (piece.size > 0)
        memcpy(tok->pieces + at, piece.data, piece.size);
    tok->piece_at[i + 1] = at + (uint32_t)piece.size;

    uint8_t *text = tok->texts + tok->text_at[i];
    size_t size = 0;
    if (type == TYPE_BYTE) {
        int value = byte_of_piece(piece);
        if (value < 0)
            return mb_error_set(err, MB_ERR_CORRUPT,
                "tokenizer: byte token %zu is not written <0xNN>", i);
        tok->byte_id[value] = (mb_token_id)i;
        text[0] = (uint8_t)value;
        size = 1;
    } else if (type == TYPE_NORMAL || type == TYPE_USER ||
               type == TYPE_UNUSED) {
        size = plain_text(piece, text);
    }
    tok->text_at[i + 1] = tok->text_at[i] + (uint32_t)size;
    tok->text_size[i] = (uint32_t)size;
    return MB_OK;
}

/* Can merges, or a match, make this token from text? A piece with a plain
 * space cannot: in pieces a space is U+2581. */
static bool
is_text_piece(const struct mb_tokenizer *tok, size_t i)
{
    struct mb_slice piece = mb_tokenizer_piece(tok, (mb_token_id)i);
    uint8_t type = tok->type[i];
    return (type == TYPE_NORMAL || type == TYPE_UNUSED || type == TYPE_USER) &&
           piece.size > 0 && memchr(piece.data, ' ', piece.size) == NULL &&
           mb_utf8_is_valid(piece, NULL);
}

/* Put a user-defined piece where its length belongs: the longest is tried
 * first. There are few. */
static void
add_user_piece(struct mb_tokenizer *tok, mb_token_id id)
{
    struct mb_slice text = text_of(tok, id);
    size_t at = tok->n_user++;
    while (at > 0 && tok->text_size[tok->user[at - 1]] < text.size) {
        tok->user[at] = tok->user[at - 1];
        at--;
    }
    tok->user[at] = id;
    tok->user_first[text.data[0]] = true;
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
    for (size_t i = 0; i < v->n; i++) {
        if (!is_text_piece(tok, i))
            continue;
        if (tok->type[i] == TYPE_USER)
            add_user_piece(tok, (mb_token_id)i);
        else
            add_piece(tok, (mb_token_id)i);
    }
    for (size_t i = 0; i < 256; i++) {
        if (tok->byte_id[i] < 0)
            return mb_error_set(
                err, MB_ERR_CORRUPT, "tokenizer: no byte token <0x%02zX>", i);
    }
    for (size_t i = 0; i < 128; i++) {
        uint8_t c = (uint8_t)i;
        mb_token_id id = find_piece(tok, &c, 1);
        tok->ascii_id[i] = id >= 0 ? id : tok->byte_id[i];
    }
    return MB_OK;
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
make_fingerprint(
    struct mb_tokenizer *tok, struct mb_slice model, struct mb_error *err)
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
    if (st == MB_OK)
        mb_hash128(buf.data, buf.size, tok->fingerprint);
    else
        mb_error_set(err, st, "tokenizer: fingerprint: no memory");
    mb_buffer_fini(&buf);
    return st;
}

static mb_status
check_model(
    const struct mb_gguf *gguf, struct mb_slice *model, struct mb_error *err)
{
    mb_status st = mb_gguf_str(gguf, "tokenizer.ggml.model", model, err);
    if (st != MB_OK)
        return st == MB_ERR_BAD_ARG ? MB_ERR_CORRUPT : st;
    if (!mb_slice_equal(*model, mb_slice_cstr("llama")))
        return mb_error_set(err, MB_ERR_NOT_IMPLEMENTED,
            "tokenizer: model %.*s is not implemented, only llama is",
            (int)(model->size < 64 ? model->size : 64),
            (const char *)model->data);
    return MB_OK;
}

mb_status
mb_tokenizer_new(
    const struct mb_gguf *gguf, struct mb_tokenizer **out, struct mb_error *err)
{
    struct vocab_arrays v = {0};
    struct mb_slice model = {0};
    struct mb_tokenizer *tok = NULL;
    mb_status st = check_model(gguf, &model, err);
    if (st != MB_OK)
        return st;
    tok = mb_calloc(1, sizeof(*tok));
    if (!tok)
        return mb_error_set(err, MB_ERR_NOMEM, "tokenizer: no memory");
    st = read_arrays(gguf, &v, err);
    if (st == MB_OK)
        st = load_vocab(tok, &v, err);
    if (st == MB_OK)
        st = read_id(gguf, "tokenizer.ggml.bos_token_id", v.n, &tok->bos, err);
    if (st == MB_OK)
        st = read_id(gguf, "tokenizer.ggml.eos_token_id", v.n, &tok->eos, err);
    if (st != MB_OK)
        goto out;
    tok->add_space = true;
    st = mb_gguf_bool(
        gguf, "tokenizer.ggml.add_space_prefix", &tok->add_space, NULL);
    if (st != MB_OK && st != MB_ERR_NOT_FOUND) {
        st = mb_error_set(err, MB_ERR_CORRUPT,
            "tokenizer: tokenizer.ggml.add_space_prefix is no bool");
        goto out;
    }
    st = make_fingerprint(tok, model, err);
out:
    mb_free(v.pieces);
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
    mb_free(tok->user);
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

/* ---- working memory ---- */

mb_status
mb_token_cache_new(struct mb_token_cache **out)
{
    struct mb_token_cache *cache = mb_calloc(1, sizeof(*cache));
    if (!cache)
        return MB_ERR_NOMEM;
    cache->words = mb_calloc((size_t)1 << WORD_BITS, sizeof(struct word));
    if (!cache->words) {
        mb_free(cache);
        return MB_ERR_NOMEM;
    }
    *out = cache;
    return MB_OK;
}

void
mb_token_cache_free(struct mb_token_cache *cache)
{
    if (!cache)
        return;
    tok_end(cache);
    mb_free(cache->words);
    mb_free(cache);
}

void
tok_begin(const struct mb_tokenizer *tok, struct mb_token_cache *work)
{
    size_t bytes = ((size_t)1 << WORD_BITS) * sizeof(struct word);
    if (!work->words)
        return;
    if (memcmp(work->owner, tok->fingerprint, sizeof(work->owner)) != 0)
        memset(work->words, 0, bytes);
    memcpy(work->owner, tok->fingerprint, sizeof(work->owner));
}

void
tok_end(struct mb_token_cache *work)
{
    mb_free(work->unit);
    mb_free(work->symbols);
    mb_free(work->heap);
    mb_free(work->ids);
    work->unit = NULL;
    work->symbols = NULL;
    work->heap = NULL;
    work->ids = NULL;
    work->unit_room = 0;
    work->symbols_room = 0;
    work->heap_room = 0;
    work->ids_room = 0;
}

/* Room for n elements in an array that grows by halves; NULL if it cannot be
 * had (the old one stays). */
static void *
grow(void *array, size_t *room, size_t n, size_t element)
{
    size_t want = n;
    size_t bytes = 0;
    if (!mb_size_add(n, n / 2 + 64, &want) ||
        !mb_size_mul(want, element, &bytes)) {
        return NULL;
    }
    void *p = mb_realloc(array, bytes);
    if (p)
        *room = want;
    return p;
}

/* Room for a unit of n bytes: that many symbols and ids; each symbol puts one
 * pair on the heap at first and each merge at most one more than it takes. */
static mb_status
make_room(struct mb_token_cache *work, size_t n)
{
    if (n > work->symbols_room) {
        void *p =
            grow(work->symbols, &work->symbols_room, n, sizeof(struct symbol));
        if (!p)
            return MB_ERR_NOMEM;
        work->symbols = p;
    }
    if (2 * n > work->heap_room) {
        void *p =
            grow(work->heap, &work->heap_room, 2 * n, sizeof(struct merge));
        if (!p)
            return MB_ERR_NOMEM;
        work->heap = p;
    }
    if (n > work->ids_room) {
        void *p = grow(work->ids, &work->ids_room, n, sizeof(mb_token_id));
        if (!p)
            return MB_ERR_NOMEM;
        work->ids = p;
    }
    return MB_OK;
}

/* ---- merging ---- */

static bool
is_better(const struct merge *a, const struct merge *b)
{
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

static void
heap_push(struct merge *heap, size_t *n, struct merge m)
{
    size_t i = (*n)++;
    while (i > 0 && is_better(&m, &heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = m;
}

static struct merge
heap_pop(struct merge *heap, size_t *n)
{
    struct merge top = heap[0];
    struct merge last = heap[--(*n)];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= *n)
            break;
        if (child + 1 < *n && is_better(&heap[child + 1], &heap[child]))
            child++;
        if (!is_better(&heap[child], &last))
            break;
        heap[i] = heap[child];
        i = child;
    }
    if (*n > 0)
        heap[i] = last;
    return top;
}

/* If the symbol and its right neighbour make a piece, put that on the heap. */
static void
consider(const struct mb_tokenizer *tok, const uint8_t *text,
    const struct symbol *sym, int32_t left, struct merge *heap, size_t *n_heap)
{
    if (left < 0 || sym[left].next < 0)
        return;
    uint32_t size = sym[left].size + sym[sym[left].next].size;
    mb_token_id id = find_piece(tok, text + sym[left].start, size);
    if (id >= 0)
        heap_push(heap, n_heap,
            (struct merge){tok->score[id], (uint32_t)left, size, id});
}

static size_t
make_symbols(
    const struct mb_tokenizer *tok, struct mb_slice unit, struct symbol *sym)
{
    size_t n = 0;
    for (size_t p = 0; p < unit.size; n++) {
        size_t size = char_size(unit.data + p, unit.size - p);
        mb_token_id id = -1;
        if (size > 1)
            id = find_piece(tok, unit.data + p, size);
        else if (unit.data[p] < 128)
            id = tok->ascii_id[unit.data[p]];
        sym[n] = (struct symbol){
            (uint32_t)p, (uint32_t)size, (int32_t)n - 1, (int32_t)n + 1, id};
        p += size;
    }
    sym[n - 1].next = -1;
    return n;
}

/* Byte pair encoding of one unit into work->ids; *n of them. */
static mb_status
merge_unit(const struct mb_tokenizer *tok, struct mb_token_cache *work,
    struct mb_slice unit, size_t *n_ids)
{
    if (unit.size > INT32_MAX / 2)
        return MB_ERR_TOO_LARGE;
    mb_status st = make_room(work, unit.size);
    if (st != MB_OK)
        return st;
    struct symbol *sym = work->symbols;
    struct merge *heap = work->heap;
    size_t n_heap = 0;
    size_t n_sym = make_symbols(tok, unit, sym);
    for (size_t i = 0; i < n_sym; i++)
        consider(tok, unit.data, sym, (int32_t)i, heap, &n_heap);
    while (n_heap > 0) {
        struct merge m = heap_pop(heap, &n_heap);
        struct symbol *l = &sym[m.left];
        if (l->size == 0 || l->next < 0 ||
            l->size + sym[l->next].size != m.size) {
            continue; // one of the two has been merged since
        }
        struct symbol *r = &sym[l->next];
        l->size = m.size;
        l->id = m.id;
        l->next = r->next;
        r->size = 0;
        if (l->next >= 0)
            sym[l->next].prev = (int32_t)m.left;
        consider(tok, unit.data, sym, l->prev, heap, &n_heap);
        consider(tok, unit.data, sym, (int32_t)m.left, heap, &n_heap);
    }
    size_t n = 0;
    for (int32_t i = 0; i >= 0; i = sym[i].next) {
        if (sym[i].id >= 0) {
            work->ids[n++] = sym[i].id;
            continue;
        }
        for (uint32_t k = 0; k < sym[i].size; k++)
            work->ids[n++] = tok->byte_id[unit.data[sym[i].start + k]];
    }
    *n_ids = n;
    return MB_OK;
}

/* ---- units ---- */

/* The longest user-defined piece that stands at text[pos], or -1. */
static mb_token_id
match_user(const struct mb_tokenizer *tok, struct mb_slice text, size_t pos)
{
    if (!tok->user_first[text.data[pos]])
        return -1;
    for (size_t i = 0; i < tok->n_user; i++) {
        struct mb_slice piece = text_of(tok, tok->user[i]);
        if (piece.size <= text.size - pos &&
            memcmp(piece.data, text.data + pos, piece.size) == 0) {
            return tok->user[i];
        }
    }
    return -1;
}

size_t
tok_unit_end(const struct mb_tokenizer *tok, struct mb_slice text, size_t pos,
    size_t max_size, bool *is_forced)
{
    const uint8_t *p = text.data;
    *is_forced = false;
    if (tok->n_user > 0) {
        mb_token_id id = match_user(tok, text, pos);
        if (id >= 0)
            return pos + tok->text_size[id];
    }
    size_t size = char_size(p + pos, text.size - pos);
    size_t start = pos;
    uint32_t before = char_code(p + pos, size);
    for (pos += size; pos < text.size; pos += size) {
        uint32_t code = p[pos];
        size = 1;
        if (code >= 128) {
            size = char_size(p + pos, text.size - pos);
            code = char_code(p + pos, size);
        }
        if (!has_pair(tok, before, code))
            return pos;
        if (tok->n_user > 0 && match_user(tok, text, pos) >= 0)
            return pos;
        if (pos + size - start > max_size) {
            *is_forced = true;
            return pos;
        }
        before = code;
    }
    return pos;
}

/* Find the unit in the table, or merge it and put it there. */
static mb_status
encode_word(const struct mb_tokenizer *tok, struct mb_token_cache *work,
    struct mb_slice unit, const mb_token_id **ids, size_t *n)
{
    mb_status st = MB_OK;
    struct word *slot = NULL;
    if (work->words && unit.size <= WORD_TEXT) {
        uint64_t h = mb_hash64(unit.data, unit.size, 0);
        size_t at = h >> (64 - WORD_BITS);
        /* A pair of places holds two words. A new one takes a place that is
         * empty, or one of the two as its hash has it. */
        slot = &work->words[at ^ (h & 1)];
        for (size_t way = 0; way < 2; way++) {
            struct word *w = &work->words[at ^ way];
            if (w->size == unit.size &&
                memcmp(w->text, unit.data, unit.size) == 0) {
                *ids = w->ids;
                *n = w->n_ids;
                return MB_OK;
            }
            if (w->size == 0)
                slot = w;
        }
    }
    st = merge_unit(tok, work, unit, n);
    if (st != MB_OK)
        return st;
    *ids = work->ids;
    if (slot && *n <= WORD_IDS) {
        slot->size = (uint8_t)unit.size;
        slot->n_ids = (uint8_t)*n;
        memcpy(slot->text, unit.data, unit.size);
        memcpy(slot->ids, work->ids, *n * sizeof(mb_token_id));
    }
    return MB_OK;
}

mb_status
tok_unit_encode(const struct mb_tokenizer *tok, struct mb_token_cache *work,
    struct mb_slice unit, bool at_start, const mb_token_id **ids, size_t *n)
{
    if (tok->n_user > 0) {
        mb_token_id id = match_user(tok, unit, 0);
        if (id >= 0 && tok->text_size[id] == unit.size) {
            mb_status st = make_room(work, 1);
            if (st != MB_OK)
                return st;
            work->ids[0] = id;
            *ids = work->ids;
            *n = 1;
            return MB_OK;
        }
    }
    if (at_start && tok->add_space) {
        size_t size = unit.size + 1; // a unit is no longer than UINT32_MAX
        if (size > work->unit_room) {
            void *p = grow(work->unit, &work->unit_room, size, 1);
            if (!p)
                return MB_ERR_NOMEM;
            work->unit = p;
        }
        work->unit[0] = ' ';
        memcpy(work->unit + 1, unit.data, unit.size);
        unit = mb_slice_of(work->unit, size);
    }
    if (unit.size == 1 && unit.data[0] < 128) {
        *ids = &tok->ascii_id[unit.data[0]];
        *n = 1;
        return MB_OK;
    }
    return encode_word(tok, work, unit, ids, n);
}

bool
tok_has_user_pieces(const struct mb_tokenizer *tok)
{
    return tok->n_user > 0;
}

uint32_t
tok_text_size(const struct mb_tokenizer *tok, mb_token_id id)
{
    return tok->text_size[id];
}

/* ---- encode and decode ---- */

static mb_status
encode_units(const struct mb_tokenizer *tok, struct mb_token_cache *work,
    struct mb_slice text, struct mb_buffer *out)
{
    size_t pos = 0;
    while (pos < text.size) {
        const mb_token_id *ids = NULL;
        size_t n = 0;
        bool is_forced = false;
        size_t end = tok_unit_end(tok, text, pos, SIZE_MAX, &is_forced);
        struct mb_slice unit = mb_slice_of(text.data + pos, end - pos);
        mb_status st = tok_unit_encode(tok, work, unit, pos == 0, &ids, &n);
        if (st != MB_OK)
            return st;
        size_t bytes = n * sizeof(struct mb_token);
        if (out->capacity - out->size < bytes) {
            st = mb_buffer_reserve(out, bytes);
            if (st != MB_OK)
                return st;
        }
        size_t start = pos;
        for (size_t i = 0; i < n; i++) {
            struct mb_token t = {
                ids[i], (uint32_t)start, tok->text_size[ids[i]]};
            /* The space in front is no byte of the text. It is there unless
             * the text begins with a user-defined piece. */
            if (start == 0 && i == 0 && tok->add_space &&
                tok->type[ids[0]] != TYPE_USER) {
                t.size--;
            }
            start += t.size;
            memcpy(out->data + out->size, &t, sizeof(t));
            out->size += sizeof(t);
        }
        pos = end;
    }
    return MB_OK;
}

mb_status
mb_tokenizer_encode(const struct mb_tokenizer *tok,
    struct mb_token_cache *cache, struct mb_slice text, struct mb_buffer *out,
    struct mb_error *err)
{
    struct mb_token_cache local = {0};
    struct mb_token_cache *work = cache ? cache : &local;
    size_t before = out->size;
    if (text.size > UINT32_MAX)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "tokenizer: text of %zu bytes, at most %lu can be encoded",
            text.size, (unsigned long)UINT32_MAX);
    tok_begin(tok, work);
    mb_status st = encode_units(tok, work, text, out);
    tok_end(&local);
    if (st != MB_OK) {
        out->size = before;
        mb_error_set(err, st, "tokenizer: text of %zu bytes: %s", text.size,
            mb_status_text(st));
    }
    return st;
}

mb_status
mb_tokenizer_decode(const struct mb_tokenizer *tok, const mb_token_id *ids,
    size_t n, struct mb_buffer *out, struct mb_error *err)
{
    size_t before = out->size;
    bool strip = tok->add_space;
    mb_status st = MB_OK;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (size_t)ids[i] >= tok->n_vocab) {
            st = mb_error_set(err, MB_ERR_BAD_ARG,
                "tokenizer: token %d at %zu, the vocabulary has %zu",
                (int)ids[i], i, tok->n_vocab);
            goto out;
        }
        struct mb_slice text = text_of(tok, ids[i]);
        if (text.size == 0)
            continue; // control tokens stand for no text
        if (strip && tok->type[ids[i]] != TYPE_USER && text.data[0] == ' ') {
            text.data++;
            text.size--;
        }
        strip = false;
        st = mb_buffer_append(out, text.data, text.size);
        if (st != MB_OK) {
            mb_error_set(err, st, "tokenizer: decode %zu tokens: %s", n,
                mb_status_text(st));
            goto out;
        }
    }
out:
    if (st != MB_OK)
        out->size = before;
    return st;
}
