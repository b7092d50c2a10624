/* SPDX-License-Identifier: Apache-2.0
 * tools/train/spm.c - SentencePiece's model file as a vocabulary in GGUF.
 *
 * The file is one protobuf message, of which four things are read: pieces
 * (field 1: text 1, score 2, type 3), the trainer's kind of model (field 2,
 * therein 3), its ids of <unk>, <s>, </s> (40 to 42), and the normalizer's
 * space in front (field 3, therein 3). GGUF numbers the types of pieces as
 * SentencePiece does.
 *
 * Everything is checked against the bytes left; nothing is allocated by a count
 * that the file states.
 * Threads: any. */
#include "spm.h"

#include <string.h>

#include "mb_gguf_write.h"

#define MAX_PIECES ((size_t)1 << 22)
#define SPM_BPE    2
#define NORMAL     1

/* Bytes of a message that are still to be read. */
struct reader {
    const uint8_t *start; /* of the file, for offsets */
    const uint8_t *at;
    const uint8_t *end;
    struct mb_error *err;
};

/* A field: varints in number, fixed ones and bytes in bytes. */
struct field {
    uint64_t id;
    uint64_t number;
    struct mb_slice bytes;
};

struct pieces {
    struct mb_slice *text;
    float *score;
    int32_t *type;
    size_t n;
    size_t room;
};

static mb_status
corrupt(const struct reader *r, const char *what)
{
    return mb_error_set(r->err, MB_ERR_FORMAT, "byte %zu: %s",
        (size_t)(r->at - r->start), what);
}

static mb_status
read_varint(struct reader *r, uint64_t *out)
{
    uint64_t x = 0;
    for (unsigned shift = 0; shift < 64 && r->at < r->end; shift += 7) {
        uint8_t byte = *r->at++;
        x |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *out = x;
            return MB_OK;
        }
    }
    return corrupt(r, "a number has no end");
}

static mb_status
read_field(struct reader *r, struct field *out)
{
    uint64_t key = 0;
    uint64_t size = 0;
    mb_status st = read_varint(r, &key);
    if (st != MB_OK)
        return st;
    *out = (struct field){.id = key >> 3};
    switch (key & 7) {
    case 0:
        return read_varint(r, &out->number);
    case 1:
        size = 8;
        break;
    case 2:
        st = read_varint(r, &size);
        break;
    case 5:
        size = 4;
        break;
    default:
        return corrupt(r, "a field of an unknown kind");
    }
    if (st == MB_OK && size > (uint64_t)(r->end - r->at))
        st = corrupt(r, "a field goes beyond its message");
    if (st == MB_OK) {
        out->bytes = mb_slice_of(r->at, (size_t)size);
        r->at += size;
    }
    return st;
}

static struct reader
inside(const struct reader *r, struct mb_slice bytes)
{
    return (struct reader){
        r->start, bytes.data, bytes.data + bytes.size, r->err};
}

/* ---- pieces ---- */

static mb_status
grow(struct pieces *p, struct mb_error *err)
{
    size_t room = p->room ? 2 * p->room : 1024;
    if (p->n < p->room)
        return MB_OK;
    if (p->n >= MAX_PIECES)
        return mb_error_set(
            err, MB_ERR_TOO_LARGE, "more than %zu pieces", MAX_PIECES);
    void *text = mb_realloc(p->text, room * sizeof *p->text);
    if (text)
        p->text = text;
    void *score = mb_realloc(p->score, room * sizeof *p->score);
    if (score)
        p->score = score;
    void *type = mb_realloc(p->type, room * sizeof *p->type);
    if (type)
        p->type = type;
    if (!text || !score || !type)
        return mb_error_set(err, MB_ERR_NOMEM, "%zu pieces", room);
    p->room = room;
    return MB_OK;
}

static mb_status
add_piece(struct pieces *p, struct reader r)
{
    struct field f;
    mb_status st = grow(p, r.err);
    if (st != MB_OK)
        return st;
    p->text[p->n] = mb_slice_of(r.at, 0);
    p->score[p->n] = 0;
    p->type[p->n] = NORMAL;
    while (st == MB_OK && r.at < r.end) {
        st = read_field(&r, &f);
        if (st == MB_OK && f.id == 1)
            p->text[p->n] = f.bytes;
        if (st == MB_OK && f.id == 2 && f.bytes.size == 4)
            p->score[p->n] = mb_get_lef32(f.bytes.data);
        if (st == MB_OK && f.id == 3)
            p->type[p->n] = (int32_t)(f.number & 0xff);
    }
    if (st == MB_OK && p->text[p->n].size == 0)
        return corrupt(&r, "a piece without text");
    p->n++;
    return st;
}

/* ---- the whole ---- */

struct spm {
    struct pieces pieces;
    uint64_t kind; /* SentencePiece's number; 1, unigram, if not said */
    uint64_t unk;
    uint64_t bos;
    uint64_t eos;
    bool has_space; /* in front of a text */
};

static mb_status
read_trainer(struct spm *m, struct reader r)
{
    struct field f;
    mb_status st = MB_OK;
    while (st == MB_OK && r.at < r.end) {
        st = read_field(&r, &f);
        if (st != MB_OK)
            break;
        if (f.id == 3)
            m->kind = f.number;
        else if (f.id == 40)
            m->unk = f.number;
        else if (f.id == 41)
            m->bos = f.number;
        else if (f.id == 42)
            m->eos = f.number;
    }
    return st;
}

static mb_status
read_normalizer(struct spm *m, struct reader r)
{
    struct field f;
    mb_status st = MB_OK;
    while (st == MB_OK && r.at < r.end) {
        st = read_field(&r, &f);
        if (st == MB_OK && f.id == 3)
            m->has_space = f.number != 0;
    }
    return st;
}

static mb_status
read_model(struct spm *m, struct reader *r)
{
    struct field f;
    mb_status st = MB_OK;
    while (st == MB_OK && r->at < r->end) {
        st = read_field(r, &f);
        if (st == MB_OK && f.id == 1)
            st = add_piece(&m->pieces, inside(r, f.bytes));
        else if (st == MB_OK && f.id == 2)
            st = read_trainer(m, inside(r, f.bytes));
        else if (st == MB_OK && f.id == 3)
            st = read_normalizer(m, inside(r, f.bytes));
    }
    if (st != MB_OK)
        return st;
    if (m->pieces.n == 0 || m->kind != SPM_BPE)
        return mb_error_set(r->err, MB_ERR_FORMAT,
            "no BPE model of SentencePiece: %zu pieces, kind %llu", m->pieces.n,
            (unsigned long long)m->kind);
    return MB_OK;
}

static void
put_id(struct gguf_writer *w, const char *key, uint64_t id, size_t n)
{
    if (id < n) // -1 stands for none
        gguf_writer_u32(w, key, (uint32_t)id);
}

static mb_status
write_gguf(const struct spm *m, const char *path, struct mb_error *err)
{
    struct gguf_writer *w = NULL;
    const struct pieces *p = &m->pieces;
    mb_status st = gguf_writer_new(&w, err);
    if (st != MB_OK)
        return st;
    gguf_writer_str(w, "general.architecture", mb_slice_cstr("llama"));
    gguf_writer_u32(w, "general.alignment", 32);
    gguf_writer_str(w, "tokenizer.ggml.model", mb_slice_cstr("llama"));
    gguf_writer_strings(w, "tokenizer.ggml.tokens", p->text, p->n);
    gguf_writer_f32s(w, "tokenizer.ggml.scores", p->score, p->n);
    gguf_writer_i32s(w, "tokenizer.ggml.token_type", p->type, p->n);
    put_id(w, "tokenizer.ggml.bos_token_id", m->bos, p->n);
    put_id(w, "tokenizer.ggml.eos_token_id", m->eos, p->n);
    put_id(w, "tokenizer.ggml.unknown_token_id", m->unk, p->n);
    gguf_writer_bool(w, "tokenizer.ggml.add_bos_token", true);
    gguf_writer_bool(w, "tokenizer.ggml.add_eos_token", false);
    gguf_writer_bool(w, "tokenizer.ggml.add_space_prefix", m->has_space);
    return gguf_writer_finish(w, path, err);
}

mb_status
spm_to_gguf(struct mb_slice model, const char *path, struct mb_error *err)
{
    struct spm m = {.kind = 1, .unk = 0, .bos = 1, .eos = 2, .has_space = true};
    struct reader r = {model.data, model.data, model.data + model.size, err};
    mb_status st = read_model(&m, &r);
    if (st == MB_OK)
        st = write_gguf(&m, path, err);
    mb_free(m.pieces.text);
    mb_free(m.pieces.score);
    mb_free(m.pieces.type);
    return st;
}
