/* SPDX-License-Identifier: Apache-2.0
 * daemon/rerank.c - order hits by how likely they make the question.
 * Threads: as its call. */
#include "rerank.h"

#include <stdlib.h>

#include "batch.h"
#include "memory.h"

#define MAX_PASSAGE ((size_t)4 << 20)

static mb_status
add(const struct finder *f, struct mb_slice question, const struct mb_hit *hit,
    struct mb_buffer *room)
{
    struct call *c = f->c;
    struct mb_segment segment;
    struct mb_document doc;
    struct mb_slice text;
    mb_status st =
        mb_segment_get(f->snap, &f->coll, hit->segno, &segment, &c->err);

    if (st == MB_OK)
        st = mb_document_get(f->snap, &f->coll, hit->docno, &doc, &c->err);
    if (st == MB_OK)
        st = mb_document_text(f->snap, &f->coll, &doc, segment.start,
            segment.end, c->arena, &text, &c->err);
    if (st != MB_OK)
        return st;
    const struct memory_value values[] = {
        {"{title}", doc.title},
        {"{passage}", text},
    };

    mb_buffer_clear(room);
    st = memory_render(mb_slice_cstr(MEMORY_PASSAGE_TEMPLATE), values, 2, room);
    if (st != MB_OK)
        return mb_error_set(&c->err, st, "passage");
    return batch_add(c->scores.batch, mb_buffer_slice(room), question, &c->err);
}

mb_status
rerank_prepare(const struct finder *f, struct mb_slice question,
    const struct mb_hit *hits, size_t n)
{
    struct call *c = f->c;
    struct call_answers *a = &c->scores;
    struct mb_buffer room;
    mb_status st = reader_check(c->d->reader, "rerank", &c->err);

    mb_buffer_init(&room, MAX_PASSAGE);
    if (st == MB_OK)
        st = batch_new(c->d->reader, MB_TASK_SCORE, call_model_deadline(c),
            &a->batch, &c->err);
    if (st == MB_OK) {
        a->keys = mb_calloc(n + 1, sizeof *a->keys);
        if (a->keys == NULL)
            st = mb_error_set(&c->err, MB_ERR_NOMEM, "%zu passages", n);
    }
    for (size_t i = 0; i < n && st == MB_OK; i++) {
        a->keys[i] = hits[i].segno;
        st = add(f, question, &hits[i], &room);
    }
    mb_buffer_fini(&room);
    return st;
}

static int
compare(const void *a, const void *b)
{
    const struct mb_hit *x = a;
    const struct mb_hit *y = b;

    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->segno < y->segno ? -1 : x->segno > y->segno ? 1 : 0;
}

size_t
rerank_order(const struct finder *f, struct mb_hit *hits, size_t n)
{
    const struct call_answers *a = &f->c->scores;
    size_t kept = 0;

    for (size_t i = 0; i < n; i++) {
        size_t at = call_answer(a, hits[i].segno);
        size_t n_tokens;
        double nll;

        if (at == SIZE_MAX)
            continue;
        batch_nll(a->batch, at, &nll, &n_tokens);
        hits[kept] = hits[i];
        hits[kept++].score =
            n_tokens > 0 ? (float)(-nll / (double)n_tokens) : 0;
    }
    qsort(hits, kept, sizeof *hits, compare);
    return kept;
}
