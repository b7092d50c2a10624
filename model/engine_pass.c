/* SPDX-License-Identifier: Apache-2.0
 * model/engine_pass.c - what goes into a pass, and running it.
 *
 * First a row for each text that is being generated: they wait for every
 * token. The rest of the rows is for texts to read, in equal shares; what one
 * cannot use goes to the others, and who comes first changes from turn to
 * turn. While texts are generated a pass is kept shorter, as its time is the
 * time to their next token.
 * Invariants: each text that is generated gets its row in every turn. A turn
 * that has 16 rows for each text to read serves all of them; a shorter one as
 * many as it can, and the next goes on behind the last one served. So of R
 * texts to read, S of which find rows, each is served within R / S turns,
 * rounded up. The end of a request moves those behind it up, by which some may
 * be passed over: they wait for one more round.
 * Threads: mb-model. */
#include "engine.h"

#define MIN_SHARE 16 /* rows: below, reading the weights is what costs */

/* Put n rows of r into the pass, behind `first` others. */
static void
add_item(struct mb_engine *e, struct request *r, size_t first, size_t n)
{
    size_t i = e->n_items++;

    e->shares[i] = (struct share){r, first, n};
    request_fill(e, r, n, e->row_tokens + first, e->targets + first,
        e->nll + first, e->hidden + first * e->dim, e->logits + i * e->n_vocab,
        &e->items[i]);
}

static size_t
least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* How many rows each of the texts to read gets: given (n_running), zero for
 * those that decode. */
static void
share_out(struct mb_engine *e, size_t n_reading, size_t budget, size_t *given)
{
    size_t share = budget / n_reading;
    size_t first = e->turn;
    size_t n_served = 0;

    if (share < MIN_SHARE)
        share = MIN_SHARE;
    // Once in equal shares, once to take what others left.
    for (int round = 0; round < 2 && budget > 0; round++) {
        for (size_t k = 0; k < e->n_running && budget > 0; k++) {
            size_t i = (first + k) % e->n_running;
            const struct request *r = e->running[i];
            size_t n;

            if (r->decoding)
                continue;
            n = request_rows_left(r) - given[i];
            if (round == 0) {
                n = least(n, share);
                e->turn = i + 1;
                n_served++;
            }
            n = least(n, budget);
            given[i] += n;
            budget -= n;
        }
    }
    // Where all are served another one comes first.
    if (n_served == n_reading)
        e->turn = first % e->n_running + 1;
}

/* Choose the rows of the next pass; given: room for n_running numbers. */
static void
plan(struct mb_engine *e, size_t *given)
{
    size_t n_decoding = 0;
    size_t limit;
    size_t rows = 0;

    e->n_items = 0;
    for (size_t i = 0; i < e->n_running; i++) {
        given[i] = 0;
        n_decoding += e->running[i]->decoding ? 1 : 0;
    }
    limit = n_decoding > 0 ? e->opt.max_rows_busy : e->opt.max_rows;
    // Those that read go on even if generating alone would fill the pass.
    if (limit < n_decoding + MIN_SHARE)
        limit = least(n_decoding + MIN_SHARE, e->opt.max_rows);
    if (n_decoding < e->n_running)
        share_out(e, e->n_running - n_decoding, limit - n_decoding, given);
    for (size_t i = 0; i < e->n_running; i++) {
        if (e->running[i]->decoding)
            add_item(e, e->running[i], rows++, 1);
    }
    for (size_t i = 0; i < e->n_running; i++) {
        if (given[i] > 0)
            add_item(e, e->running[i], rows, given[i]);
        rows += given[i];
    }
}

/* The request ends with this turn. */
static void
mark_ended(const struct mb_engine *e, const struct request *r, bool *ended)
{
    for (size_t k = 0; k < e->n_running; k++) {
        if (e->running[k] == r)
            ended[k] = true;
    }
}

static void
fail(struct mb_engine *e, struct request *r, mb_status st,
    const struct mb_error *err, bool *ended)
{
    r->status = st;
    r->err = *err;
    mark_ended(e, r, ended);
}

/* Take the results of item i. */
static void
take(struct mb_engine *e, size_t i, bool *ended)
{
    struct request *r = e->shares[i].r;

    if (request_took(e, r, &e->items[i]))
        mark_ended(e, r, ended);
    if (r->q.context != NULL) {
        struct mb_error err = {0};

        // A segment is kept before its last token is answered.
        mb_status st = mb_context_prepare(r->q.context, e->pass, &err);
        if (st != MB_OK)
            fail(e, r, st, &err, ended);
    }
}

/* Borrow memory blocks for the pass. Requests that get none end, and their rows
 * leave the pass. */
static void
borrow_paths(struct mb_engine *e, bool *ended)
{
    size_t kept = 0;

    for (size_t i = 0; i < e->n_items; i++) {
        struct request *r = e->shares[i].r;
        const struct mb_bank_lender *lender = &r->q.bank;
        struct mb_error err = {0};
        mb_status st = MB_OK;

        e->shares[kept] = e->shares[i];
        e->items[kept] = e->items[i];
        if (lender->begin != NULL) {
            e->paths[kept].n_blocks = 0;
            st = lender->begin(lender->arg, &e->paths[kept], &err);
            e->items[kept].bank = &e->paths[kept];
        }
        if (st == MB_OK)
            kept++;
        else
            fail(e, r, st, &err, ended);
    }
    e->n_items = kept;
}

static void
return_paths(struct mb_engine *e)
{
    for (size_t i = 0; i < e->n_items; i++) {
        const struct mb_bank_lender *lender = &e->shares[i].r->q.bank;

        if (lender->begin != NULL)
            lender->end(lender->arg);
    }
}

/* Run the pass; results are taken when nothing is borrowed any more. */
static void
run_items(struct mb_engine *e, bool *ended)
{
    struct mb_error err = {0};
    mb_status st = mb_pass_run(e->pass, e->items, e->n_items, &err);
    bool is_done = st == MB_OK;

    count(&e->n_passes, 1);
    // Whom does it come from? A pass that fails has changed nothing.
    for (size_t i = 0; i < e->n_items && !is_done; i++) {
        if (e->n_items > 1)
            st = mb_pass_run(e->pass, &e->items[i], 1, &err);
        if (st != MB_OK)
            fail(e, e->shares[i].r, st, &err, ended);
    }
    return_paths(e);
    for (size_t i = 0; i < e->n_items; i++) {
        if (e->shares[i].r->status == MB_OK)
            take(e, i, ended);
    }
}

static void
note_first(struct mb_engine *e, uint64_t now)
{
    for (size_t i = 0; i < e->n_items; i++) {
        struct request *r = e->shares[i].r;
        uint64_t wait_us = (now - r->submitted_ns) / 1000;

        if (r->first_ns != 0)
            continue;
        r->first_ns = now;
        if (wait_us >
            atomic_load_explicit(&e->longest_wait_us, memory_order_relaxed))
            atomic_store_explicit(
                &e->longest_wait_us, wait_us, memory_order_relaxed);
    }
}

void
engine_turn(struct mb_engine *e, bool *ended)
{
    size_t *given = e->given;
    uint64_t start = mb_clock_ns();

    plan(e, given);
    note_first(e, start);
    borrow_paths(e, ended);
    if (e->n_items > 0)
        run_items(e, ended);
    count(&e->busy_us, (mb_clock_ns() - start) / 1000);
    atomic_store_explicit(&e->cache_bytes,
        mb_cache_n_blocks(e->cache) * mb_cache_block_bytes(e->cache),
        memory_order_relaxed);
    atomic_store_explicit(
        &e->pass_bytes, mb_pass_bytes(e->pass), memory_order_relaxed);
}
