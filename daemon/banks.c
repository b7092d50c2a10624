/* SPDX-License-Identifier: Apache-2.0
 * daemon/banks.c - memory banks at work: routers kept, blocks lent.
 * Threads: `lock` guards the list of routers and their references. */
#include "banks.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

#include "cmd_read.h"

#define ROUTE_HITS 4      /* segments that a text is routed by */
#define MAX_KEPT   8      /* routers that nobody uses */
#define USE_MS     60000u /* to which the time of last use is kept */

struct bank_entry {
    struct bank_entry *next; /* used last first */
    mb_collection_id coll;
    uint64_t created_ms; /* of the collection */
    uint32_t bank;
    unsigned n_refs;
    struct mb_router *router;
};

struct banks {
    struct daemon *d;
    pthread_mutex_t lock;
    struct bank_entry *newest;
};

struct bank_step {
    struct mb_tree_step at;
    mb_banks_state state;
    bool is_attached;
    uint64_t bytes;
    uint64_t used_ms; /* before */
};

struct bank_loan {
    struct daemon *d;
    struct bank_entry *entry;
    struct mb_collection coll;
    struct mb_route route;
    bool must;                /* also where it does not help */
    struct mb_snapshot *snap; /* while a pass runs */
    /* As it was when the loan was made. */
    struct bank_step steps[MB_BANKS_MAX_LEVELS];
    uint64_t bytes;
    uint64_t fetch_ns;
};

/* ---- routers ---- */

struct banks *
banks_new(struct daemon *d)
{
    struct banks *b = mb_calloc(1, sizeof *b);

    if (b == NULL)
        return NULL;
    b->d = d;
    (void)pthread_mutex_init(&b->lock, NULL);
    return b;
}

static void
entry_free(struct bank_entry *e)
{
    mb_router_free(e->router);
    mb_free(e);
}

void
banks_free(struct banks *b)
{
    if (b == NULL)
        return;
    while (b->newest != NULL) {
        struct bank_entry *next = b->newest->next;

        MB_ASSERT(b->newest->n_refs == 0);
        entry_free(b->newest);
        b->newest = next;
    }
    (void)pthread_mutex_destroy(&b->lock);
    mb_free(b);
}

/* Under the lock: forget those unused for longest. */
static void
trim(struct banks *b)
{
    size_t n = 0;

    for (struct bank_entry **at = &b->newest; *at != NULL;) {
        struct bank_entry *e = *at;

        if (e->n_refs == 0 && ++n > MAX_KEPT) {
            *at = e->next;
            entry_free(e);
        } else {
            at = &e->next;
        }
    }
}

/* Under the lock: the router of this bank, with one more reference. */
static struct bank_entry *
take(struct banks *b, const struct mb_collection *coll, uint32_t bank)
{
    for (struct bank_entry **at = &b->newest; *at != NULL; at = &(*at)->next) {
        struct bank_entry *e = *at;

        if (e->coll != coll->id || e->created_ms != coll->created_ms ||
            e->bank != bank)
            continue;
        *at = e->next;
        e->next = b->newest;
        b->newest = e;
        e->n_refs++;
        return e;
    }
    return NULL;
}

mb_status
banks_ref(struct banks *b, struct mb_snapshot *snap,
    const struct mb_collection *coll, struct bank_entry **out,
    struct mb_error *err)
{
    struct bank_entry *loaded;
    struct bank_entry *e;
    struct mb_banks bank;
    mb_status st = mb_banks_get(snap, coll, &bank, err);

    if (st != MB_OK)
        return st;
    (void)pthread_mutex_lock(&b->lock);
    e = take(b, coll, bank.bank);
    (void)pthread_mutex_unlock(&b->lock);
    if (e != NULL) {
        *out = e;
        return MB_OK;
    }
    loaded = mb_calloc(1, sizeof *loaded);
    if (loaded == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "router");
    loaded->coll = coll->id;
    loaded->created_ms = coll->created_ms;
    loaded->bank = bank.bank;
    loaded->n_refs = 1;
    st = mb_router_new(snap, coll, &loaded->router, err);
    if (st != MB_OK) {
        entry_free(loaded);
        return st;
    }
    (void)pthread_mutex_lock(&b->lock);
    e = take(b, coll, bank.bank);
    if (e == NULL) {
        e = loaded;
        loaded = NULL;
        e->next = b->newest;
        b->newest = e;
        trim(b);
    }
    (void)pthread_mutex_unlock(&b->lock);
    if (loaded != NULL) // another thread was faster
        entry_free(loaded);
    *out = e;
    return MB_OK;
}

void
banks_unref(struct banks *b, struct bank_entry *entry)
{
    if (entry == NULL)
        return;
    (void)pthread_mutex_lock(&b->lock);
    MB_ASSERT(entry->n_refs > 0);
    entry->n_refs--;
    trim(b);
    (void)pthread_mutex_unlock(&b->lock);
}

const struct mb_router *
bank_entry_router(const struct bank_entry *entry)
{
    return entry->router;
}

/* ---- what may be attached ---- */

bool
banks_is_live(struct daemon *d, const struct mb_banks *bank)
{
    uint8_t fingerprint[READER_FINGERPRINT];

    if (reader_absence(d->reader) != NULL)
        return false;
    reader_fingerprint(d->reader, fingerprint);
    return memcmp(fingerprint, bank->anchor, sizeof fingerprint) == 0;
}

bool
banks_is_attached(struct daemon *d, const struct mb_banks *bank,
    const struct mb_banks_node *node)
{
    bool is_strict = daemon_config(d)->strict_delete;

    return !bank->is_disabled && !node->is_disabled && node->has_gained &&
           node->node != MB_BANKS_GENERIC && node->block_bytes > 0 &&
           (node->state == MB_BANKS_READY ||
               (node->state == MB_BANKS_STALE && !is_strict));
}

bool
banks_helps(const struct mb_banks_node *top)
{
    return top->n_held_out > 0 && top->after < top->before;
}

/* The sum of the vectors of segments that are found, each with its score; false
 * if there is none. A question says little, and a name in it may be one that
 * the embedding does not know: the texts that have it know where they belong. */
static mb_status
vector_of_hits(struct call *c, struct mb_snapshot *snap,
    const struct mb_collection *coll, const struct mb_router *r,
    const struct mb_term *terms, size_t n_terms, float *out, bool *found)
{
    const struct mb_query q = {.coll = coll,
        .mode = MB_SEARCH_LEXICAL,
        .k = ROUTE_HITS,
        .terms = terms,
        .n_terms = n_terms};
    size_t dim = mb_router_bank(r)->dim;
    float vector[MB_MAX_DIM];
    struct mb_hit *hits = NULL;
    size_t n = 0;
    mb_status st = mb_search(snap, &q, c->arena, &hits, &n, &c->err);

    *found = false;
    memset(out, 0, dim * sizeof *out);
    for (size_t i = 0; st == MB_OK && i < n; i++) {
        // The best one leads by far: a leaf is of one subject.
        float weight =
            hits[0].score > 0 ? powf(hits[i].score / hits[0].score, 8) : 0;
        struct mb_segment seg;

        st = mb_segment_get(snap, coll, hits[i].segno, &seg, &c->err);
        if (st == MB_OK)
            st = mb_router_segment_vector(r, snap, coll, &seg, vector, &c->err);
        if (st == MB_ERR_NOT_FOUND) {
            st = MB_OK;
            continue;
        }
        for (size_t d = 0; st == MB_OK && d < dim; d++) {
            out[d] += weight * vector[d];
        }
        *found = true;
    }
    return st;
}

mb_status
banks_route(struct call *c, struct worker *w, struct mb_snapshot *snap,
    const struct mb_collection *coll, const struct bank_entry *entry,
    struct mb_slice text, struct mb_route *out)
{
    const struct mb_router *r = entry->router;
    float vector[MB_MAX_DIM];
    bool found = false;
    struct mb_analyzer *an;
    struct mb_term *terms = NULL;
    size_t n = 0;
    mb_status st = worker_analyzer(w, coll->settings.language, &an, &c->err);

    if (st == MB_OK)
        st = mb_analyze(an, text, c->arena, &terms, &n, &c->err);
    if (st == MB_OK && n > 0)
        st = vector_of_hits(c, snap, coll, r, terms, n, vector, &found);
    if (st != MB_OK)
        return st;
    if (!found)
        return mb_router_terms(r, terms, n, out, &c->err);
    mb_router_vector(r, vector, out);
    return MB_OK;
}

/* ---- loans ---- */

static void
loan_end(void *arg)
{
    struct bank_loan *loan = arg;

    mb_snapshot_end(loan->snap);
    loan->snap = NULL;
}

/* Look the path's blocks up. Steps (may be NULL) are told what became of them.
 */
static mb_status
fetch(struct bank_loan *loan, struct bank_step *steps, struct mb_bank_path *out,
    struct mb_error *err)
{
    const struct mb_banks *made = mb_router_bank(loan->entry->router);
    struct mb_banks bank;
    bool helps = true;
    mb_status st = mb_banks_get(loan->snap, &loan->coll, &bank, err);

    out->n_blocks = 0;
    // Dropped, or replaced since: there is nothing to attach any more.
    if (st == MB_ERR_NOT_FOUND || (st == MB_OK && bank.bank != made->bank))
        return MB_OK;
    for (size_t i = 0; st == MB_OK && i < loan->route.n; i++) {
        uint32_t number = loan->route.steps[i].node;
        struct mb_banks_node node;
        struct mb_slice record;
        bool attach;

        st = mb_banks_node_get(
            loan->snap, &loan->coll, bank.bank, number, &node, err);
        if (st != MB_OK)
            break;
        if (i == 0)
            helps = loan->must || banks_helps(&node);
        attach = helps && banks_is_attached(loan->d, &bank, &node);
        if (attach)
            st = mb_banks_block(
                loan->snap, &loan->coll, bank.bank, number, &record, err);
        if (st == MB_OK && attach)
            st = mb_bank_block_open(record, &out->blocks[out->n_blocks++], err);
        if (steps != NULL)
            steps[i] = (struct bank_step){.at = loan->route.steps[i],
                .state = node.state,
                .is_attached = attach,
                .bytes = attach ? record.size : 0,
                .used_ms = node.used_ms};
    }
    return st;
}

static mb_status
loan_begin(void *arg, struct mb_bank_path *out, struct mb_error *err)
{
    struct bank_loan *loan = arg;
    mb_status st = mb_snapshot_begin(loan->d->store, &loan->snap, err);

    if (st == MB_OK)
        st = fetch(loan, NULL, out, err);
    if (st != MB_OK)
        loan_end(loan);
    return st;
}

/* Nothing to lend, which is an error only for those who insist. */
static mb_status
nothing(struct call *c, bool must, mb_status st)
{
    if (must || (st != MB_ERR_NOT_FOUND && st != MB_ERR_MISMATCH))
        return st;
    c->err = (struct mb_error){0};
    return MB_OK;
}

static mb_status
loan_fill(struct bank_loan *loan, struct call *c, struct worker *w,
    struct mb_slice text)
{
    const struct mb_banks *bank;
    struct mb_bank_path path;
    uint64_t start;
    mb_status st = call_snapshot(c, &loan->snap, &loan->coll);

    if (st == MB_OK)
        st = banks_ref(
            c->d->banks, loan->snap, &loan->coll, &loan->entry, &c->err);
    if (st != MB_OK)
        return st;
    bank = mb_router_bank(loan->entry->router);
    if (!banks_is_live(c->d, bank))
        return mb_error_set(&c->err, MB_ERR_MISMATCH,
            "the memory bank of collection %s belongs to another model: %s",
            loan->coll.name, bank->model);
    st = banks_route(
        c, w, loan->snap, &loan->coll, loan->entry, text, &loan->route);
    start = mb_clock_ns();
    if (st == MB_OK)
        st = fetch(loan, loan->steps, &path, &c->err);
    loan->fetch_ns = mb_clock_ns() - start;
    for (size_t i = 0; st == MB_OK && i < loan->route.n; i++) {
        loan->bytes += loan->steps[i].bytes;
    }
    return st;
}

static void
on_noted(void *arg, struct mb_op *op, mb_status st, const struct mb_error *err)
{
    (void)arg;
    (void)st; // whoever looks sees an older time, that is all
    (void)err;
    mb_op_free(op);
}

/* Note when the blocks were used, once in USE_MS, without waiting for it. */
static void
note_use(const struct bank_loan *loan)
{
    uint64_t now = mb_clock_wall_ms();
    struct mb_op *op = NULL;
    mb_status st = MB_OK;

    for (size_t i = 0; st == MB_OK && i < loan->route.n; i++) {
        const struct bank_step *s = &loan->steps[i];

        if (!s->is_attached || now < s->used_ms + USE_MS)
            continue;
        if (op == NULL)
            st = mb_op_banks_edit_new(mb_slice_cstr(loan->coll.name),
                mb_router_bank(loan->entry->router)->bank, &op, NULL);
        if (st == MB_OK)
            st = mb_banks_edit_used(op, s->at.node, now);
    }
    if (op == NULL)
        return;
    if (st != MB_OK ||
        mb_store_submit(loan->d->store, op, on_noted, NULL, NULL) != MB_OK)
        mb_op_free(op);
}

mb_status
bank_loan_new(struct call *c, struct worker *w, bool must, struct mb_slice text,
    struct bank_loan **out)
{
    struct bank_loan *loan;
    mb_status st;

    *out = NULL;
    loan = mb_calloc(1, sizeof *loan);
    if (loan == NULL)
        return mb_error_set(&c->err, MB_ERR_NOMEM, "bank");
    loan->d = c->d;
    loan->must = must;
    st = loan_fill(loan, c, w, text);
    loan_end(loan);
    if (st == MB_OK)
        note_use(loan);
    if (st != MB_OK) {
        bank_loan_free(loan);
        return nothing(c, must, st);
    }
    *out = loan;
    return MB_OK;
}

void
bank_loan_free(struct bank_loan *loan)
{
    if (loan == NULL)
        return;
    MB_ASSERT(loan->snap == NULL);
    banks_unref(loan->d->banks, loan->entry);
    mb_free(loan);
}

struct mb_bank_lender
bank_loan_lender(struct bank_loan *loan)
{
    return loan != NULL ? (struct mb_bank_lender){loan_begin, loan_end, loan}
                        : (struct mb_bank_lender){0};
}

void
bank_loan_write(struct mb_writer *w, const struct bank_loan *loan)
{
    mb_write_cstr(w, "bank");
    mb_write_map(w, 3);
    mb_write_cstr(w, "path");
    mb_write_array(w, loan->route.n);
    for (size_t i = 0; i < loan->route.n; i++) {
        const struct bank_step *s = &loan->steps[i];

        mb_write_map(w, 5);
        mb_write_kv_uint(w, "node", s->at.node);
        mb_write_cstr(w, "cosine");
        mb_write_f32(w, s->at.cosine);
        mb_write_kv_cstr(w, "state", mb_banks_state_name(s->state));
        mb_write_kv_bool(w, "attached", s->is_attached);
        mb_write_kv_uint(w, "bytes", s->bytes);
    }
    mb_write_kv_uint(w, "bytes", loan->bytes);
    mb_write_kv_f64(w, "fetch_us", (double)loan->fetch_ns / 1e3);
}
