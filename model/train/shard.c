/* SPDX-License-Identifier: Apache-2.0
 * model/train/shard.c - write and read token shards.
 *
 * Layout, little-endian (model/FORMAT.md has the table): a header of 128 bytes,
 * the tokens as u16 or u32, zeros up to a multiple of 8, then n_documents + 1
 * starts as u64. The header ends with a checksum of itself and has one of all
 * that follows, so that no flipped bit reaches a training run.
 * Invariant of an open shard: starts rise from 0 to n_tokens, and every token
 * is below the vocabulary's size.
 * Threads: see mb_shard.h. */
#include "mb_shard.h"

#include <string.h>

#include "mb_outfile.h"

#define SHARD_MAGIC    "MBTOKENS"
#define SHARD_VERSION  1u
#define HEADER_BYTES   128u
#define AT_VERSION     8u
#define AT_TOKEN_BYTES 12u
#define AT_TOKENIZER   16u
#define AT_N_TOKENS    32u
#define AT_N_DOCUMENTS 40u
#define AT_TEXT_BYTES  48u
#define AT_N_VOCAB     56u
#define AT_HASH        64u
#define AT_HEADER_HASH 120u
#define MAX_TOKENS     (UINT64_C(1) << 40)
#define MAX_DOCUMENTS  (UINT64_C(1) << 32)

/* ---- writing ---- */

struct shard_writer {
    struct outfile *file;
    size_t n_vocab;
    size_t token_bytes;
    mb_token_id bos;
    mb_token_id eos;
    uint8_t tokenizer[16];
    uint64_t n_tokens;
    uint64_t text_bytes;
    struct mb_buffer starts; /* u64 each, little-endian */
};

mb_status
shard_writer_new(const char *path, const struct mb_tokenizer *tok,
    struct shard_writer **out, struct mb_error *err)
{
    struct shard_writer *w = mb_calloc(1, sizeof *w);
    if (!w)
        return mb_error_set(err, MB_ERR_NOMEM, "shard %s: no memory", path);
    mb_buffer_init(&w->starts, SIZE_MAX / 2);
    w->n_vocab = mb_tokenizer_n_vocab(tok);
    w->token_bytes = w->n_vocab <= 65536 ? 2 : 4;
    w->bos = mb_tokenizer_bos(tok);
    w->eos = mb_tokenizer_eos(tok);
    mb_tokenizer_fingerprint(tok, w->tokenizer);
    mb_status st = outfile_open(path, HEADER_BYTES, &w->file, err);
    if (st != MB_OK) {
        shard_writer_free(w);
        return st;
    }
    *out = w;
    return MB_OK;
}

static void
put_token(struct shard_writer *w, mb_token_id id)
{
    uint8_t bytes[4];
    mb_put_le32(bytes, (uint32_t)id); // the low two bytes come first
    outfile_write(w->file, bytes, w->token_bytes);
    w->n_tokens++;
}

mb_status
shard_writer_add(struct shard_writer *w, const struct mb_token *tokens,
    size_t n, uint64_t text_bytes, struct mb_error *err)
{
    uint8_t start[8];
    for (size_t i = 0; i < n; i++) {
        if (tokens[i].id < 0 || (size_t)tokens[i].id >= w->n_vocab)
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "shard: token %ld, vocabulary of %zu", (long)tokens[i].id,
                w->n_vocab);
    }
    mb_put_le64(start, w->n_tokens);
    mb_status st = mb_buffer_append(&w->starts, start, sizeof start);
    if (st != MB_OK)
        return mb_error_set(err, st, "shard: documents");
    if (w->bos >= 0)
        put_token(w, w->bos);
    for (size_t i = 0; i < n; i++)
        put_token(w, tokens[i].id);
    if (w->eos >= 0)
        put_token(w, w->eos);
    w->text_bytes += text_bytes;
    return MB_OK;
}

mb_status
shard_writer_finish(struct shard_writer *w, struct mb_error *err)
{
    uint8_t header[HEADER_BYTES] = {0};
    uint8_t end[8];
    outfile_pad(w->file, 8);
    outfile_write(w->file, w->starts.data, w->starts.size);
    mb_put_le64(end, w->n_tokens);
    outfile_write(w->file, end, sizeof end);
    memcpy(header, SHARD_MAGIC, 8);
    mb_put_le32(header + AT_VERSION, SHARD_VERSION);
    mb_put_le32(header + AT_TOKEN_BYTES, (uint32_t)w->token_bytes);
    memcpy(header + AT_TOKENIZER, w->tokenizer, 16);
    mb_put_le64(header + AT_N_TOKENS, w->n_tokens);
    mb_put_le64(header + AT_N_DOCUMENTS, w->starts.size / 8);
    mb_put_le64(header + AT_TEXT_BYTES, w->text_bytes);
    mb_put_le64(header + AT_N_VOCAB, w->n_vocab);
    mb_put_le64(header + AT_HASH, outfile_hash(w->file));
    mb_put_le64(header + AT_HEADER_HASH, mb_hash64(header, AT_HEADER_HASH, 0));
    mb_status st = outfile_finish(w->file, header, err);
    w->file = NULL;
    shard_writer_free(w);
    return st;
}

void
shard_writer_free(struct shard_writer *w)
{
    if (!w)
        return;
    outfile_discard(w->file);
    mb_buffer_fini(&w->starts);
    mb_free(w);
}

/* ---- reading ---- */

struct shard {
    struct mb_slice map;
    const uint8_t *tokens; /* (n_tokens) */
    const uint8_t *starts; /* (n_documents + 1) */
    size_t token_bytes;
    uint64_t n_tokens;
    uint64_t n_documents;
    uint64_t text_bytes;
    uint64_t n_vocab;
    uint8_t tokenizer[16];
};

static mb_status
read_header(struct shard *s, const char *path, struct mb_error *err)
{
    const uint8_t *h = s->map.data;
    if (s->map.size < HEADER_BYTES || memcmp(h, SHARD_MAGIC, 8) != 0)
        return mb_error_set(
            err, MB_ERR_FORMAT, "%s is not a token shard", path);
    if (mb_get_le32(h + AT_VERSION) != SHARD_VERSION)
        return mb_error_set(err, MB_ERR_FORMAT,
            "shard %s has version %u, known is %u", path,
            (unsigned)mb_get_le32(h + AT_VERSION), SHARD_VERSION);
    if (mb_hash64(h, AT_HEADER_HASH, 0) != mb_get_le64(h + AT_HEADER_HASH))
        return mb_error_set(
            err, MB_ERR_CORRUPT, "shard %s: checksum of the header", path);
    s->token_bytes = mb_get_le32(h + AT_TOKEN_BYTES);
    memcpy(s->tokenizer, h + AT_TOKENIZER, 16);
    s->n_tokens = mb_get_le64(h + AT_N_TOKENS);
    s->n_documents = mb_get_le64(h + AT_N_DOCUMENTS);
    s->text_bytes = mb_get_le64(h + AT_TEXT_BYTES);
    s->n_vocab = mb_get_le64(h + AT_N_VOCAB);
    if ((s->token_bytes != 2 && s->token_bytes != 4) ||
        s->n_tokens > MAX_TOKENS || s->n_documents > MAX_DOCUMENTS)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "shard %s: impossible figures in the header", path);
    return MB_OK;
}

static mb_status
check_body(struct shard *s, const char *path, struct mb_error *err)
{
    uint64_t tokens_bytes = (s->n_tokens * s->token_bytes + 7) / 8 * 8;
    uint64_t want = HEADER_BYTES + tokens_bytes + (s->n_documents + 1) * 8;
    const uint8_t *body = s->map.data + HEADER_BYTES;
    if (want != s->map.size)
        return mb_error_set(err, MB_ERR_CORRUPT,
            "shard %s has %zu bytes, its header says %llu", path, s->map.size,
            (unsigned long long)want);
    if (outfile_hash_of(body, s->map.size - HEADER_BYTES) !=
        mb_get_le64(s->map.data + AT_HASH))
        return mb_error_set(
            err, MB_ERR_CORRUPT, "shard %s: checksum of the tokens", path);
    s->tokens = body;
    s->starts = body + tokens_bytes;
    for (uint64_t i = 0; i <= s->n_documents; i++) {
        uint64_t start = shard_document(s, i);
        uint64_t last = i > 0 ? shard_document(s, i - 1) : 0;
        if (start < last || start > s->n_tokens || (i == 0 && start != 0) ||
            (i == s->n_documents && start != s->n_tokens))
            return mb_error_set(err, MB_ERR_CORRUPT,
                "shard %s: document %llu begins at token %llu", path,
                (unsigned long long)i, (unsigned long long)start);
    }
    for (uint64_t i = 0; i < s->n_tokens; i++) {
        mb_token_id id;
        shard_read(s, i, 1, &id);
        if (id < 0 || (uint64_t)id >= s->n_vocab)
            return mb_error_set(err, MB_ERR_CORRUPT,
                "shard %s: token %llu is %ld, vocabulary of %llu", path,
                (unsigned long long)i, (long)id,
                (unsigned long long)s->n_vocab);
    }
    return MB_OK;
}

mb_status
shard_open(const char *path, struct shard **out, struct mb_error *err)
{
    struct shard *s = mb_calloc(1, sizeof *s);
    if (!s)
        return mb_error_set(err, MB_ERR_NOMEM, "shard %s: no memory", path);
    mb_status st = outfile_map(path, &s->map, err);
    if (st == MB_OK)
        st = read_header(s, path, err);
    if (st == MB_OK)
        st = check_body(s, path, err);
    if (st != MB_OK) {
        shard_close(s);
        return st;
    }
    *out = s;
    return MB_OK;
}

void
shard_close(struct shard *s)
{
    if (!s)
        return;
    outfile_unmap(s->map);
    mb_free(s);
}

bool
shard_is_of(const struct shard *s, const struct mb_tokenizer *tok)
{
    uint8_t fingerprint[16];
    mb_tokenizer_fingerprint(tok, fingerprint);
    return s->n_vocab == mb_tokenizer_n_vocab(tok) &&
           memcmp(fingerprint, s->tokenizer, 16) == 0;
}

uint64_t
shard_n_tokens(const struct shard *s)
{
    return s->n_tokens;
}

uint64_t
shard_n_documents(const struct shard *s)
{
    return s->n_documents;
}

uint64_t
shard_text_bytes(const struct shard *s)
{
    return s->text_bytes;
}

uint64_t
shard_document(const struct shard *s, uint64_t i)
{
    return mb_get_le64(s->starts + i * 8);
}

void
shard_read(const struct shard *s, uint64_t from, size_t n, mb_token_id *out)
{
    MB_ASSERT(from <= s->n_tokens && n <= s->n_tokens - from);
    const uint8_t *p = s->tokens + from * s->token_bytes;
    for (size_t i = 0; i < n; i++) {
        out[i] = s->token_bytes == 2 ? (mb_token_id)mb_get_le16(p + i * 2)
                                     : (mb_token_id)mb_get_le32(p + i * 4);
    }
}
