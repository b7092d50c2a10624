/* SPDX-License-Identifier: Apache-2.0
 * daemon/memory.c - what args.memory asks for, packed into what a model reads.
 *
 * The number of tokens of a whole is not the sum of those of its parts, as
 * words may merge across borders. So passages are chosen by their own counts,
 * and if the whole turns out too large the worst is dropped until it fits.
 * Threads: as its call. */
#include "memory.h"

#include <string.h>

#include "banks.h"
#include "finder.h"

#define MAX_PROMPT ((size_t)64 << 20)

/* ---- templates ---- */

/* The value whose name tmpl has at `at`; NULL if there is none. */
static const struct memory_value *
name_at(struct mb_slice tmpl, size_t at, const struct memory_value *values,
    size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t size = strlen(values[i].name);

        if (tmpl.size - at >= size &&
            memcmp(tmpl.data + at, values[i].name, size) == 0)
            return &values[i];
    }
    return NULL;
}

/* Is [at, end) of tmpl made of names alone, at least one, all empty? */
static bool
is_empty_line(struct mb_slice tmpl, size_t at, size_t end,
    const struct memory_value *values, size_t n)
{
    if (at == end)
        return false;
    while (at < end) {
        const struct memory_value *v = name_at(tmpl, at, values, n);

        if (v == NULL || v->value.size > 0)
            return false;
        at += strlen(v->name);
    }
    return true;
}

mb_status
memory_render(struct mb_slice tmpl, const struct memory_value *values, size_t n,
    struct mb_buffer *out)
{
    mb_status st = MB_OK;
    size_t at = 0;

    while (at < tmpl.size && st == MB_OK) {
        const uint8_t *nl = memchr(tmpl.data + at, '\n', tmpl.size - at);
        size_t end = nl != NULL ? (size_t)(nl - tmpl.data) + 1 : tmpl.size;

        if (nl != NULL && is_empty_line(tmpl, at, end - 1, values, n)) {
            at = end;
            continue;
        }
        while (at < end && st == MB_OK) {
            const struct memory_value *v = name_at(tmpl, at, values, n);

            if (v != NULL) {
                st = mb_buffer_append(out, v->value.data, v->value.size);
                at += strlen(v->name);
            } else {
                st = mb_buffer_append(out, tmpl.data + at++, 1);
            }
        }
    }
    return st;
}

/* ---- what is asked for ---- */

/* Forms that are known by name and come later. */
static mb_status
check_later_forms(const struct mb_value *map, struct mb_error *err)
{
    static const char *const later[] = {"landmark", "hmt"};

    for (size_t i = 0; i < sizeof later / sizeof later[0]; i++) {
        const struct mb_value *v = mb_value_get(map, later[i]);

        if (v == NULL || (v->type == MB_TYPE_BOOL && !v->b) ||
            (v->type == MB_TYPE_INT && v->i == 0))
            continue;
        return mb_error_set(err, MB_ERR_NOT_IMPLEMENTED,
            "memory: %s is not implemented yet", later[i]);
    }
    return MB_OK;
}

/* "bank": absent: where it helps. */
static mb_status
read_bank(struct call *c, const struct mb_value *map, struct memory *out)
{
    bool wanted;
    mb_status st = mb_arg_bool(map, "bank", false, &wanted, &c->err);

    if (st != MB_OK || mb_value_get(map, "bank") == NULL)
        return st;
    if (wanted && mb_value_get(c->args, "collection") == NULL)
        return mb_error_set(
            &c->err, MB_ERR_BAD_ARG, "memory: bank wants a collection");
    out->bank = wanted ? MEMORY_BANK_ON : MEMORY_BANK_OFF;
    return MB_OK;
}

mb_status
memory_read(struct call *c, struct memory *out)
{
    const struct mb_value *map = mb_value_get(c->args, "memory");
    uint64_t max_k = daemon_config(c->d)->max_k;
    struct mb_error *err = &c->err;
    uint64_t k;
    uint64_t tokens;
    mb_status st;

    *out = (struct memory){0};
    if (mb_value_get(c->args, "collection") == NULL)
        out->bank = MEMORY_BANK_OFF;
    if (map == NULL)
        return MB_OK;
    st = check_later_forms(map, err);
    if (st == MB_OK)
        st = read_bank(c, map, out);
    if (st == MB_OK)
        st = mb_arg_u64(map, "retrieve", 0, 0, UINT32_MAX, &k, err);
    if (st == MB_OK && k > max_k)
        st = mb_error_set(err, MB_ERR_TOO_LARGE,
            "memory: retrieve %llu, max_k is %llu", (unsigned long long)k,
            (unsigned long long)max_k);
    if (st == MB_OK)
        st = mb_arg_u64(map, "tokens", 0, 0, UINT32_MAX, &tokens, err);
    if (st == MB_OK)
        st = mb_arg_str(map, "query", false, &out->query, err);
    if (st == MB_OK)
        st = finder_read_mode(map, &out->mode, err);
    if (st == MB_OK)
        st = mb_arg_map(map, "filter", false, &out->filter, err);
    if (st == MB_OK && k > 0 && mb_value_get(c->args, "collection") == NULL)
        st = mb_error_set(
            err, MB_ERR_BAD_ARG, "memory: retrieve wants a collection");
    if (st != MB_OK)
        return st;
    out->n_retrieve = (size_t)k;
    out->max_tokens = (size_t)tokens;
    return MB_OK;
}

/* ---- packing ---- */

/* What one packing works with. */
struct packer {
    struct memory_packing *p;
    struct finder f;
    struct mb_slice prompt_template;
    struct mb_slice passage_template;
    struct mb_buffer text;   /* as it is put together */
    struct mb_buffer tokens; /* counted */
};

/* A rendered copy in the call's arena. */
static mb_status
render(struct packer *k, struct mb_slice tmpl,
    const struct memory_value *values, size_t n, struct mb_slice *out)
{
    struct call *c = k->p->c;
    mb_status st;

    mb_buffer_clear(&k->text);
    st = memory_render(tmpl, values, n, &k->text);
    if (st == MB_OK) {
        out->data = mb_arena_dup(c->arena, k->text.data, k->text.size);
        out->size = k->text.size;
        st = out->data != NULL ? MB_OK : MB_ERR_NOMEM;
    }
    return st == MB_OK ? st : mb_error_set(&c->err, st, "prompt");
}

/* The prompt with the n passages of `used`, and its tokens in k->tokens. */
static mb_status
put_together(struct packer *k, const struct memory_passage *used, size_t n)
{
    struct memory_packing *p = k->p;
    struct mb_buffer passages;
    mb_status st = MB_OK;

    mb_buffer_init(&passages, MAX_PROMPT);
    for (size_t i = n; i > 0 && st == MB_OK; i--) {
        st = mb_buffer_append(
            &passages, used[i - 1].packed.data, used[i - 1].packed.size);
    }
    if (st == MB_OK) {
        const struct memory_value values[] = {
            {"{passages}", mb_buffer_slice(&passages)},
            {"{prompt}", p->prompt},
        };

        st = render(k, k->prompt_template, values, 2, &p->text);
    } else {
        (void)mb_error_set(&p->c->err, st, "%zu passages", n);
    }
    mb_buffer_fini(&passages);
    mb_buffer_clear(&k->tokens);
    if (st == MB_OK)
        st = p->encode(p->arg, p->text, &k->tokens, &p->c->err);
    return st;
}

static size_t
n_tokens(const struct packer *k)
{
    return k->tokens.size / sizeof(mb_token_id);
}

/* A hit as a passage: rendered and counted. */
static mb_status
make_passage(
    struct packer *k, const struct mb_hit *hit, struct memory_passage *out)
{
    struct call *c = k->p->c;
    struct mb_segment segment;
    struct mb_document doc;
    struct mb_slice text;
    mb_status st =
        mb_segment_get(k->f.snap, &k->f.coll, hit->segno, &segment, &c->err);

    if (st == MB_OK)
        st = mb_document_get(k->f.snap, &k->f.coll, hit->docno, &doc, &c->err);
    if (st == MB_OK)
        st = mb_document_text(k->f.snap, &k->f.coll, &doc, segment.start,
            segment.end, c->arena, &text, &c->err);
    if (st != MB_OK)
        return st;
    const struct memory_value values[] = {
        {"{title}", doc.title},
        {"{passage}", text},
    };

    // Views of the snapshot end before the reply is written.
    out->id = (struct mb_slice){
        mb_arena_dup(c->arena, doc.id.data, doc.id.size), doc.id.size};
    if (out->id.data == NULL)
        return mb_error_set(&c->err, MB_ERR_NOMEM, "passage");
    out->segment = segment.ordinal;
    out->start = segment.start;
    out->end = segment.end;
    out->score = hit->score;
    st = render(k, k->passage_template, values, 2, &out->packed);
    mb_buffer_clear(&k->tokens);
    if (st == MB_OK)
        st = reader_encode(
            c->d->reader, false, out->packed, &k->tokens, &c->err);
    out->n_tokens = n_tokens(k);
    return st;
}

/* Take hits, best first, while they fit beside a prompt of `base` tokens. */
static mb_status
choose(struct packer *k, const struct mb_hit *hits, size_t n, size_t base)
{
    struct memory_packing *p = k->p;
    size_t left = p->room > base ? p->room - base : 0;
    mb_status st = MB_OK;

    if (p->memory->max_tokens > 0 && p->memory->max_tokens < left)
        left = p->memory->max_tokens;
    for (size_t i = 0; i < n && left > 0 && st == MB_OK; i++) {
        struct memory_passage *next = &p->used[p->n_used];

        st = make_passage(k, &hits[i], next);
        // A shorter one of lower rank may fit still.
        if (st == MB_OK && next->n_tokens <= left) {
            left -= next->n_tokens;
            p->n_used++;
        }
    }
    return st;
}

/* What is looked for: a question is short, and of a long prompt the end is
 * what counts. */
static struct mb_slice
question_of(const struct memory *m, struct mb_slice prompt)
{
    struct mb_slice text = m->query.size > 0 ? m->query : prompt;
    size_t cut = 0;

    if (text.size > FINDER_MAX_TEXT)
        cut = text.size - FINDER_MAX_TEXT;
    while (cut > 0 && cut < text.size && (text.data[cut] & 0xc0) == 0x80) {
        cut++;
    }
    return mb_slice_of(text.data + cut, text.size - cut);
}

mb_status
memory_ask(struct call *c, struct worker *w, const struct memory *m,
    struct mb_slice prompt, bool *asks)
{
    struct mb_slice text = question_of(m, prompt);
    struct finder f;
    mb_status st;

    *asks = false;
    if (m->n_retrieve == 0 || m->mode == MB_SEARCH_LEXICAL || text.size == 0)
        return MB_OK;
    st = finder_begin(&f, c, w);
    if (st == MB_OK)
        st = finder_ask(&f, &text, 1, asks);
    finder_end(&f);
    return st;
}

static mb_status
find(struct packer *k, struct mb_hit **hits, size_t *n)
{
    const struct memory *m = k->p->memory;
    struct mb_query q = {
        .mode = m->mode, .k = m->n_retrieve, .filter = m->filter};
    struct mb_slice text = question_of(m, k->p->prompt);
    struct call *c = k->p->c;
    mb_status st;

    *n = 0;
    st = finder_prepare(&k->f, text, &q, NULL);
    if (st == MB_OK && (q.mode != MB_SEARCH_DENSE || k->f.coll.generation != 0))
        st = mb_search(k->f.snap, &q, c->arena, hits, n, &c->err);
    return st;
}

static mb_status
pack(struct packer *k)
{
    struct memory_packing *p = k->p;
    struct mb_hit *hits = NULL;
    size_t n = 0;
    mb_status st = find(k, &hits, &n);

    if (st == MB_OK) {
        p->used = mb_arena_calloc(p->c->arena, n + 1, sizeof *p->used);
        if (p->used == NULL)
            st = mb_error_set(&p->c->err, MB_ERR_NOMEM, "%zu passages", n);
    }
    if (st == MB_OK)
        st = put_together(k, NULL, 0);
    if (st == MB_OK)
        st = choose(k, hits, n, n_tokens(k));
    if (st == MB_OK)
        st = put_together(k, p->used, p->n_used);
    while (st == MB_OK && n_tokens(k) > p->room && p->n_used > 0) {
        st = put_together(k, p->used, --p->n_used);
    }
    if (st == MB_OK) {
        st = mb_buffer_append(p->tokens, k->tokens.data, k->tokens.size);
        if (st != MB_OK)
            (void)mb_error_set(&p->c->err, st, "prompt");
    }
    return st;
}

/* A template of the collection's own, or the default. */
static mb_status
read_template(
    struct packer *k, const char *name, const char *def, struct mb_slice *out)
{
    mb_status st = mb_note_get(k->f.snap, &k->f.coll, name, out, &k->p->c->err);

    if (st != MB_ERR_NOT_FOUND)
        return st;
    *out = mb_slice_cstr(def);
    return MB_OK;
}

static mb_status
read_templates(struct packer *k)
{
    mb_status st = read_template(
        k, "template", MEMORY_PROMPT_TEMPLATE, &k->prompt_template);

    if (st == MB_OK)
        st = read_template(
            k, "passage", MEMORY_PASSAGE_TEMPLATE, &k->passage_template);
    return st;
}

mb_status
memory_pack(struct memory_packing *p)
{
    struct packer k = {.p = p};
    mb_status st;

    p->n_used = 0;
    p->text = p->prompt;
    if (p->memory->n_retrieve == 0)
        return p->encode(p->arg, p->prompt, p->tokens, &p->c->err);
    mb_buffer_init(&k.text, MAX_PROMPT);
    mb_buffer_init(&k.tokens, MAX_PROMPT);
    st = finder_begin(&k.f, p->c, p->w);
    if (st == MB_OK)
        st = read_templates(&k);
    if (st == MB_OK)
        st = pack(&k);
    finder_end(&k.f);
    mb_buffer_fini(&k.text);
    mb_buffer_fini(&k.tokens);
    return st;
}

mb_status
memory_lend(struct call *c, struct worker *w, const struct memory *m,
    struct mb_slice prompt, struct bank_loan **loan)
{
    *loan = NULL;
    if (m->bank == MEMORY_BANK_OFF)
        return MB_OK;
    return bank_loan_new(
        c, w, m->bank == MEMORY_BANK_ON, question_of(m, prompt), loan);
}

void
memory_write_used(struct mb_writer *w, const struct memory_passage *used,
    size_t n, const struct bank_loan *loan)
{
    mb_write_cstr(w, "used");
    mb_write_map(w, loan != NULL ? 2 : 1);
    if (loan != NULL)
        bank_loan_write(w, loan);
    mb_write_cstr(w, "segments");
    mb_write_array(w, n);
    for (size_t i = 0; i < n; i++) {
        mb_write_map(w, 6);
        mb_write_kv_str(w, "id", used[i].id);
        mb_write_kv_uint(w, "segment", used[i].segment);
        mb_write_kv_uint(w, "start", used[i].start);
        mb_write_kv_uint(w, "end", used[i].end);
        mb_write_cstr(w, "score");
        mb_write_f32(w, used[i].score);
        mb_write_kv_uint(w, "tokens", used[i].n_tokens);
    }
}
