/* SPDX-License-Identifier: Apache-2.0
 * store/op_put.c - putting documents.
 *
 * The work is split so that the one writer has little of it: mb_op_put_new, on
 * any thread, checks, hashes, compresses and analyses; the body, inside the
 * transaction, gives numbers and writes rows. The terms of all documents of an
 * operation share one lexicon, so that the writer asks the store once for each
 * distinct term.
 * A title's terms count `title_weight` times in every segment of its document.
 * A client's vector belongs to the document's first segment: were it given to
 * all, one document would fill the results.
 * Invariants: an operation holds copies only; its arena dies with it.
 * Threads: new on any; body on the writer; the rest where the op is. */
#include <math.h>
#include <string.h>

#include "document.h"
#include "fields.h"
#include "lexicon.h"
#include "op.h"

/* All that one put may hold in memory. */
#define MAX_PUT_BYTES ((size_t)4 << 30)
/* Texts of a put together; the daemon's messages are smaller. */
#define MAX_PUT_TEXT ((size_t)1 << 30)
#define MAX_ANALYSIS ((size_t)1 << 30)
/* Postings and record of one term in one segment, in memory. */
#define POSTING_WEIGHT 8

struct op_put {
    struct mb_op base;
    struct op_name name;
    mb_collection_id coll;
    uint32_t title_weight;
    uint32_t generation; /* of the vectors; 0 without */
    struct mb_arena *arena;
    struct new_batch batch;
    struct lexicon lexicon;
    float *vectors; /* owned; batch.vectors points here */
    size_t largest; /* terms of the largest segment */
    struct mb_put_result result;
};

/* What one call of mb_op_put_new works with. */
struct maker {
    struct op_put *op;
    struct mb_analyzer *an;
    struct text_packer *packer;
    struct mb_arena *scratch; /* reset for each text */
    struct mb_error *err;
    uint32_t *title; /* numbers of the title's terms, and their counts */
    uint32_t *title_tf;
    size_t n_title;
};

static void
put_free(struct mb_op *base)
{
    struct op_put *op = (struct op_put *)base;
    mb_free(op->vectors);
    mb_free(op->batch.ids);
    mb_free(op->batch.tfs);
    mb_buffer_fini(&op->batch.record);
    lexicon_fini(&op->lexicon);
    mb_arena_free(op->arena);
    mb_free(op);
}

/* ---- the body ---- */

/* Vectors must fit what the collection serves now, before anything is done. A
 * client's vectors are the same whatever tree they are sorted into. */
static mb_status
check_vectors(const struct op_put *op, const struct mb_collection *c,
    struct mb_error *err)
{
    if (op->batch.vectors == NULL)
        return MB_OK;
    if (c->settings.embedding != MB_EMBED_CLIENT &&
        c->generation != op->generation) {
        return mb_error_set(err, MB_ERR_STALE,
            "vectors are of generation %u, collection \"%s\" serves %u",
            (unsigned)op->generation, c->name, (unsigned)c->generation);
    }
    if (c->dim != op->batch.dim) {
        return mb_error_set(err, MB_ERR_MISMATCH,
            "vectors have %zu dimensions, collection \"%s\" has %u",
            op->batch.dim, c->name, (unsigned)c->dim);
    }
    return MB_OK;
}

/* Put document i: leave it if it is there already, replace it if it differs. */
static mb_status
put_document(struct op_put *op, struct wtxn *w, struct wcoll *wc, size_t i,
    struct mb_error *err)
{
    const struct new_document *d = &op->batch.documents[i];
    mb_docno docno;
    uint8_t hash[16];
    mb_status st = document_lookup(w->txn, wc->c.id, d->id, &docno, hash, err);
    bool exists = st == MB_OK;
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return st;
    if (exists && memcmp(hash, d->hash, sizeof(hash)) == 0) {
        op->result.unchanged++;
        return MB_OK;
    }
    w->changed = true;
    if (exists) {
        st = document_erase(w, wc, docno, err);
        if (st != MB_OK)
            return st;
    }
    st = document_insert(w, wc, &op->batch, i, err);
    if (st != MB_OK)
        return st;
    if (exists)
        op->result.replaced++;
    else
        op->result.stored++;
    op->result.segments += d->n_spans;
    return MB_OK;
}

static mb_status
put_body(struct mb_op *base, struct wtxn *w, struct mb_error *err)
{
    struct op_put *op = (struct op_put *)base;
    struct wcoll *wc;
    memset(&op->result, 0, sizeof(op->result));
    mb_status st = wtxn_collection(w, op_name_get(&op->name), &wc, err);
    if (st != MB_OK)
        return st;
    if (wc->c.id != op->coll) {
        return mb_error_set(err, MB_ERR_NOT_FOUND,
            "collection \"%s\" was dropped and made again", wc->c.name);
    }
    st = check_vectors(op, &wc->c, err);
    if (st != MB_OK)
        return st;
    // Term numbers of an earlier run may have been undone with it.
    for (size_t t = 0; t < op->batch.n_terms; t++) {
        op->batch.terms[t].id = UINT32_MAX;
    }
    for (size_t i = 0; i < op->batch.n_documents; i++) {
        st = put_document(op, w, wc, i, err);
        if (st != MB_OK)
            return st;
    }
    return MB_OK;
}

/* ---- checking ---- */

static mb_status
check_spans(
    const struct mb_put_document *d, const char *name, struct mb_error *err)
{
    uint32_t at = 0;
    if (d->n_segments == 0 || d->n_segments >= UINT32_MAX) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "document \"%s\": has %zu segments", name, d->n_segments);
    }
    for (size_t i = 0; i < d->n_segments; i++) {
        const struct mb_span *s = &d->segments[i];
        if (s->start != at || s->end < s->start ||
            (s->end == s->start && d->text.size > 0)) {
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "document \"%s\": segment %zu is [%u, %u), should begin at %u",
                name, i, (unsigned)s->start, (unsigned)s->end, (unsigned)at);
        }
        at = s->end;
    }
    if (at != d->text.size) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "document \"%s\": segments end at %u, the text at %zu", name,
            (unsigned)at, d->text.size);
    }
    return MB_OK;
}

static mb_status
check_utf8(
    struct mb_slice s, const char *what, const char *name, struct mb_error *err)
{
    size_t offset;
    if (mb_utf8_is_valid(s, &offset))
        return MB_OK;
    return mb_error_set(err, MB_ERR_BAD_TEXT,
        "document \"%s\": %s is not valid UTF-8 at byte %zu", name, what,
        offset);
}

static mb_status
too_large(const char *name, const char *what, size_t size, size_t max,
    struct mb_error *err)
{
    return mb_error_set(err, MB_ERR_TOO_LARGE,
        "document \"%s\": %s has %zu bytes, at most %zu", name, what, size,
        max);
}

static mb_status
check_vector(const struct mb_put_document *d, const struct mb_collection *coll,
    const char *name, struct mb_error *err)
{
    if (d->vector == NULL)
        return MB_OK;
    if (coll->settings.embedding != MB_EMBED_CLIENT) {
        return mb_error_set(err, MB_ERR_MISMATCH,
            "document \"%s\": has a vector, but collection \"%s\" makes its "
            "own",
            name, coll->name);
    }
    for (uint32_t i = 0; i < coll->dim; i++) {
        if (!isfinite(d->vector[i])) {
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "document \"%s\": vector is not finite at %u", name,
                (unsigned)i);
        }
    }
    return MB_OK;
}

static mb_status
check_document(const struct mb_put_document *d,
    const struct mb_collection *coll, struct mb_error *err)
{
    char name[64];
    if (d->id.size == 0 || d->id.size > MB_MAX_DOCUMENT_ID) {
        return mb_error_set(err,
            d->id.size == 0 ? MB_ERR_BAD_ARG : MB_ERR_TOO_LARGE,
            "document id has %zu bytes, must have 1 to %d", d->id.size,
            MB_MAX_DOCUMENT_ID);
    }
    size_t shown = d->id.size < sizeof(name) ? d->id.size : sizeof(name) - 1;
    memcpy(name, d->id.data, shown);
    name[shown] = '\0';
    mb_status st = check_utf8(d->id, "id", "?", err);
    if (st == MB_OK)
        st = check_utf8(d->title, "title", name, err);
    if (st == MB_OK)
        st = check_utf8(d->text, "text", name, err);
    if (st != MB_OK)
        return st;
    if (d->title.size > MAX_TITLE_BYTES)
        return too_large(name, "title", d->title.size, MAX_TITLE_BYTES, err);
    if (d->meta.size > MAX_META_BYTES)
        return too_large(name, "meta", d->meta.size, MAX_META_BYTES, err);
    if (d->text.size > MAX_PUT_TEXT)
        return too_large(name, "text", d->text.size, MAX_PUT_TEXT, err);
    st = check_spans(d, name, err);
    if (st == MB_OK)
        st = check_vector(d, coll, name, err);
    if (st == MB_OK)
        st = fields_check(name, d->meta, err);
    return st;
}

/* ---- making ---- */

static mb_status
copy_slice(struct mb_arena *arena, struct mb_slice s, struct mb_slice *out)
{
    *out = mb_slice_of(NULL, 0);
    if (s.size == 0)
        return MB_OK;
    const void *copy = mb_arena_dup(arena, s.data, s.size);
    if (copy == NULL)
        return MB_ERR_NOMEM;
    *out = mb_slice_of(copy, s.size);
    return MB_OK;
}

/* Terms of a title, numbered; kept until the next document. */
static mb_status
analyze_title(struct maker *m, struct mb_slice title)
{
    struct mb_term *terms;
    size_t n;
    m->n_title = 0;
    if (title.size == 0 || m->op->title_weight == 0)
        return MB_OK;
    mb_arena_reset(m->scratch);
    mb_status st = mb_analyze(m->an, title, m->scratch, &terms, &n, m->err);
    if (st != MB_OK)
        return st;
    uint32_t *number = mb_realloc(m->title, (n + 1) * sizeof(*number));
    if (number == NULL)
        return MB_ERR_NOMEM;
    m->title = number;
    uint32_t *tf = mb_realloc(m->title_tf, (n + 1) * sizeof(*tf));
    if (tf == NULL)
        return MB_ERR_NOMEM;
    m->title_tf = tf;
    for (size_t i = 0; i < n; i++) {
        st = lexicon_add(&m->op->lexicon, &terms[i], &m->title[i]);
        if (st != MB_OK)
            return st;
        m->title_tf[i] = terms[i].tf * m->op->title_weight;
    }
    m->n_title = n;
    return MB_OK;
}

/* The bag of one segment: the title's terms, then its own, merged. */
struct bag {
    uint32_t *term;
    uint64_t *hash;
    float *tf;
    size_t n;
    uint64_t length;
    uint32_t stamp;
};

static void
bag_add(struct bag *bag, struct lexicon *lex, uint32_t number, uint32_t tf)
{
    bag->length += tf;
    if (lex->stamp[number] == bag->stamp) {
        bag->tf[lex->pos[number]] += (float)tf;
        return;
    }
    lex->stamp[number] = bag->stamp;
    lex->pos[number] = (uint32_t)bag->n;
    bag->term[bag->n] = number;
    bag->hash[bag->n] = lex->terms[number].hash;
    bag->tf[bag->n] = (float)tf;
    bag->n++;
}

/* Analyse segment number `at` of the operation. */
static mb_status
make_segment(struct maker *m, struct mb_slice text, size_t at)
{
    struct op_put *op = m->op;
    struct mb_term *terms;
    size_t n;
    mb_arena_reset(m->scratch);
    mb_status st = mb_analyze(m->an, text, m->scratch, &terms, &n, m->err);
    if (st != MB_OK)
        return st;
    size_t max = n + m->n_title + 1;
    struct bag bag = {
        .term = mb_arena_alloc(op->arena, max * sizeof(*bag.term)),
        .hash = mb_arena_alloc(op->arena, max * sizeof(*bag.hash)),
        .tf = mb_arena_alloc(op->arena, max * sizeof(*bag.tf)),
        .stamp = (uint32_t)at};
    if (bag.term == NULL || bag.hash == NULL || bag.tf == NULL)
        return MB_ERR_NOMEM;
    for (size_t i = 0; i < m->n_title; i++) {
        bag_add(&bag, &op->lexicon, m->title[i], m->title_tf[i]);
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t number;
        st = lexicon_add(&op->lexicon, &terms[i], &number);
        if (st != MB_OK)
            return st;
        bag_add(&bag, &op->lexicon, number, terms[i].tf);
    }
    struct new_segment *s = &op->batch.segments[at];
    s->term = bag.term;
    s->hash = bag.hash;
    s->tf = bag.tf;
    s->n = bag.n;
    // The length table has 16 bits, and 0 there means "gone".
    s->length = bag.length > MAX_SEGMENT_LENGTH ? MAX_SEGMENT_LENGTH
                : bag.length == 0               ? 1
                                                : (uint32_t)bag.length;
    if (bag.n > op->largest)
        op->largest = bag.n;
    op->base.bytes += bag.n * POSTING_WEIGHT;
    return MB_OK;
}

static mb_status
make_document(struct maker *m, const struct mb_put_document *in, size_t dim,
    struct new_document *d)
{
    struct op_put *op = m->op;
    struct text_block *blocks;
    mb_status st = copy_slice(op->arena, in->id, &d->id);
    if (st == MB_OK)
        st = copy_slice(op->arena, in->title, &d->title);
    if (st == MB_OK)
        st = copy_slice(op->arena, in->meta, &d->meta);
    if (st == MB_OK) {
        d->spans = mb_arena_dup(
            op->arena, in->segments, in->n_segments * sizeof(*in->segments));
        d->n_spans = in->n_segments;
        if (d->spans == NULL)
            st = MB_ERR_NOMEM;
    }
    if (st == MB_OK) {
        st = text_pack(m->packer, in->text, in->segments, in->n_segments,
            op->arena, &blocks, &d->n_blocks);
    }
    if (st == MB_OK)
        st = analyze_title(m, in->title);
    if (st != MB_OK)
        return st;
    d->blocks = blocks;
    d->text_bytes = in->text.size;
    content_hash(in->title, in->text, in->meta,
        mb_slice_of(in->vector, in->vector != NULL ? dim * sizeof(float) : 0),
        d->hash);
    for (size_t b = 0; b < d->n_blocks; b++) {
        op->base.bytes += blocks[b].record.size;
    }
    op->base.bytes += in->id.size + in->title.size + in->meta.size;
    for (size_t s = 0; s < d->n_spans; s++) {
        struct mb_slice text = mb_slice_of(
            in->text.size > 0 ? in->text.data + d->spans[s].start : NULL,
            d->spans[s].end - d->spans[s].start);
        st = make_segment(m, text, d->first_segment + s);
        if (st != MB_OK)
            return st;
    }
    return MB_OK;
}

/* Which documents count: of those with the same id, the last. last[i] says. */
static mb_status
find_last(const struct mb_put_document *docs, size_t n, bool *last)
{
    size_t n_slots = 16;
    while (n_slots < 2 * n) {
        n_slots *= 2;
    }
    size_t *slots = mb_calloc(n_slots, sizeof(*slots)); // index + 1
    if (slots == NULL)
        return MB_ERR_NOMEM;
    for (size_t i = n; i-- > 0;) {
        size_t at =
            mb_hash64(docs[i].id.data, docs[i].id.size, 0) & (n_slots - 1);
        last[i] = true;
        for (; slots[at] != 0; at = (at + 1) & (n_slots - 1)) {
            if (mb_slice_equal(docs[slots[at] - 1].id, docs[i].id)) {
                last[i] = false;
                break;
            }
        }
        if (last[i])
            slots[at] = i + 1;
    }
    mb_free(slots);
    return MB_OK;
}

static mb_status
take_client_vectors(struct op_put *op, const struct mb_collection *coll,
    const struct mb_put_document *docs, const bool *last, size_t n,
    struct mb_error *err)
{
    size_t dim = coll->dim;
    size_t k = 0;
    bool any = false;
    if (coll->settings.embedding != MB_EMBED_CLIENT)
        return MB_OK;
    float *rows = mb_calloc(op->batch.n_segments * dim + 1, sizeof(*rows));
    if (rows == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "put: out of memory");
    for (size_t i = 0; i < n; i++) {
        if (!last[i])
            continue;
        if (docs[i].vector != NULL) {
            memcpy(rows + op->batch.documents[k].first_segment * dim,
                docs[i].vector, dim * sizeof(*rows));
            any = true;
        }
        k++;
    }
    mb_status st =
        any ? mb_op_put_set_vectors(&op->base, coll->generation, dim, rows)
            : MB_OK;
    mb_free(rows);
    return st;
}

/* Room for the documents that count and their segments. */
static mb_status
make_tables(struct op_put *op, const struct mb_put_document *docs,
    const bool *last, size_t n)
{
    size_t n_documents = 0;
    size_t n_segments = 0;
    for (size_t i = 0; i < n; i++) {
        if (last[i]) {
            n_documents++;
            n_segments += docs[i].n_segments;
        }
    }
    struct new_batch *b = &op->batch;
    b->documents =
        mb_arena_calloc(op->arena, n_documents + 1, sizeof(*b->documents));
    b->segments =
        mb_arena_calloc(op->arena, n_segments + 1, sizeof(*b->segments));
    b->n_documents = n_documents;
    b->n_segments = n_segments;
    return b->documents != NULL && b->segments != NULL ? MB_OK : MB_ERR_NOMEM;
}

static mb_status
make_all(struct maker *m, const struct mb_collection *coll,
    const struct mb_put_document *docs, const bool *last, size_t n)
{
    struct new_batch *b = &m->op->batch;
    mb_status st = make_tables(m->op, docs, last, n);
    size_t k = 0;
    size_t segment = 0;
    for (size_t i = 0; st == MB_OK && i < n; i++) {
        if (!last[i])
            continue;
        b->documents[k].first_segment = segment;
        segment += docs[i].n_segments;
        st = make_document(m, &docs[i], coll->dim, &b->documents[k]);
        k++;
    }
    if (st != MB_OK)
        return st;
    b->terms = m->op->lexicon.terms;
    b->n_terms = m->op->lexicon.n;
    b->ids = mb_alloc((m->op->largest + 1) * sizeof(*b->ids));
    b->tfs = mb_alloc((m->op->largest + 1) * sizeof(*b->tfs));
    if (b->ids == NULL || b->tfs == NULL)
        return MB_ERR_NOMEM;
    return take_client_vectors(m->op, coll, docs, last, n, m->err);
}

/* The empty operation and the maker's tools. */
static mb_status
begin_making(struct maker *m, const struct mb_collection *coll)
{
    static const struct op_class cls = {"put", put_body, put_free};
    struct op_put *op = op_new(&cls, sizeof(*op));
    if (op == NULL)
        return MB_ERR_NOMEM;
    m->op = op;
    mb_buffer_init(&op->batch.record, MAX_PUT_BYTES);
    op->coll = coll->id;
    op->title_weight = coll->settings.title_weight;
    op->arena = mb_arena_new(MAX_PUT_BYTES);
    m->scratch = mb_arena_new(MAX_ANALYSIS);
    if (op->arena == NULL || m->scratch == NULL)
        return MB_ERR_NOMEM;
    mb_status st = lexicon_init(&op->lexicon, op->arena);
    if (st == MB_OK)
        st = op_name_set(&op->name, mb_slice_cstr(coll->name), m->err);
    if (st == MB_OK)
        st = text_packer_new(&m->packer);
    return st;
}

mb_status
mb_op_put_new(const struct mb_collection *coll, struct mb_analyzer *an,
    const struct mb_put_document *docs, size_t n, struct mb_op **out,
    struct mb_error *err)
{
    struct mb_error inner = {.status = MB_OK};
    struct maker m = {.an = an, .err = &inner};
    bool *last = NULL;
    mb_status st = MB_OK;
    for (size_t i = 0; st == MB_OK && i < n; i++) {
        st = check_document(&docs[i], coll, &inner);
    }
    if (st == MB_OK)
        st = begin_making(&m, coll);
    if (st == MB_OK) {
        last = mb_calloc(n + 1, sizeof(*last));
        st = last != NULL ? find_last(docs, n, last) : MB_ERR_NOMEM;
    }
    if (st == MB_OK)
        st = make_all(&m, coll, docs, last, n);
    mb_free(last);
    mb_free(m.title);
    mb_free(m.title_tf);
    text_packer_free(m.packer);
    mb_arena_free(m.scratch);
    if (st == MB_OK) {
        *out = &m.op->base;
        return MB_OK;
    }
    if (m.op != NULL)
        mb_op_free(&m.op->base);
    return mb_error_set(err, st, "%s",
        inner.text[0] != '\0' ? inner.text : "put: out of memory");
}

/* ---- looking at one ---- */

size_t
mb_op_put_segments(const struct mb_op *op)
{
    return ((const struct op_put *)op)->batch.n_segments;
}

void
mb_op_put_terms(const struct mb_op *base, size_t i, const uint64_t **hash,
    const float **tf, size_t *n)
{
    const struct op_put *op = (const struct op_put *)base;
    MB_ASSERT(i < op->batch.n_segments);
    const struct new_segment *s = &op->batch.segments[i];
    *hash = s->hash;
    *tf = s->tf;
    *n = s->n;
}

mb_status
mb_op_put_set_vectors(
    struct mb_op *base, uint32_t generation, size_t dim, const float *vectors)
{
    struct op_put *op = (struct op_put *)base;
    size_t size;
    if (!mb_size_mul(op->batch.n_segments, dim, &size) ||
        !mb_size_mul(size, sizeof(float), &size))
        return MB_ERR_TOO_LARGE;
    float *copy = mb_alloc(size + 1);
    if (copy == NULL)
        return MB_ERR_NOMEM;
    if (size > 0)
        memcpy(copy, vectors, size);
    mb_free(op->vectors);
    op->vectors = copy;
    op->batch.vectors = copy;
    op->batch.dim = dim;
    op->generation = generation;
    op->base.bytes += size;
    return MB_OK;
}

void
mb_op_put_result(const struct mb_op *op, struct mb_put_result *out)
{
    *out = ((const struct op_put *)op)->result;
}
