/* SPDX-License-Identifier: Apache-2.0
 * model/engine.h - what the parts of the engine share.
 *
 *   engine.c      threads: submit, cancel, admission, the end of requests
 *   engine_pass.c what goes into a pass, and running it
 *   engine_task.c one request: its windows of rows, what it makes of results
 *
 * Private to this folder. A request belongs to mb-model from admission on; only
 * `cancelled` is set by others. */
#ifndef MB_MODEL_ENGINE_H
#define MB_MODEL_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "context.h"
#include "mb_engine.h"
#include "stream.h"

/* One request, with room for all that it will ever give: submit is the only
 * place where memory for it can be short, but for its text. */
struct request {
    struct request *next;       /* in the queue */
    struct mb_engine_request q; /* its pointers lead into `room` */
    uint64_t id;
    uint64_t submitted_ns;
    uint64_t first_ns;     /* its first pass; 0: none yet */
    atomic_bool cancelled; /* relaxed: looked at before each pass */
    size_t n_blocks;       /* of the cache, reserved */
    struct mb_sequence *seq;
    size_t n_read;

    /* Rows of the window that is being read: tokens [0, n_head), then
     * [start, end). */
    size_t start;
    size_t end;
    size_t n_window; /* rows of it */
    size_t pos;      /* rows of it that are read */

    /* generate */
    bool decoding; /* `last` is the next row */
    mb_token_id last;
    struct mb_sampler sampler;
    struct stream stream;
    size_t n_out;
    size_t n_sent;    /* of these, delivered */
    size_t text_sent; /* bytes */
    mb_token_id *out; /* (max_tokens) */
    float *logprobs;  /* (max_tokens) */
    /* score */
    float *nll;        /* (n) by token; 0 for those not scored */
    size_t next_score; /* the first token not scored yet */
    /* embed */
    double *sum;   /* (dim) */
    float *vector; /* (dim) */

    mb_status status; /* how it ended */
    mb_finish finish;
    struct mb_error err;
    max_align_t room[];
};

/* Rows of one request in the pass. */
struct share {
    struct request *r;
    size_t first; /* row of row_tokens, targets, nll, hidden */
    size_t n;
};

struct mb_engine {
    const struct mb_decoder *decoder;
    const struct mb_tokenizer *tokenizer;
    struct mb_engine_options opt;
    size_t n_vocab;
    size_t dim;
    size_t window;
    mb_token_id glue;  /* a token with text, to decode others behind */
    size_t glue_bytes; /* of its text */

    /* mb-model's own */
    struct mb_cache *cache;
    struct mb_pass *pass;
    struct mb_sampler_room *room;
    size_t n_reserved;     /* blocks of the cache, by all that run */
    size_t turn;           /* which request is first to get rows */
    struct share *shares;  /* (max_running) */
    size_t *given;         /* (max_running) rows of each in the next pass */
    bool *ended;           /* (max_running) */
    struct mb_rows *items; /* (max_running) */
    struct mb_bank_path *paths; /* (max_running) lent for the pass */
    size_t n_items;
    mb_token_id *row_tokens; /* (max_rows) */
    mb_token_id *targets;    /* (max_rows) */
    float *nll;              /* (max_rows) */
    float *hidden;           /* (max_rows, dim) */
    float *logits;           /* (max_running, n_vocab) */
    struct mb_buffer bytes;  /* of one token */

    /* relaxed: figures */
    atomic_uint_fast64_t n_done;
    atomic_uint_fast64_t n_cancelled;
    atomic_uint_fast64_t n_passes;
    atomic_uint_fast64_t rows_in;
    atomic_uint_fast64_t rows_out;
    atomic_uint_fast64_t busy_us;
    atomic_uint_fast64_t longest_wait_us;
    atomic_uint_fast64_t cache_bytes;
    atomic_uint_fast64_t cache_used_blocks;
    atomic_uint_fast64_t pass_bytes;

    struct mb_thread *thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake;
    bool stopping;
    uint64_t next_id;
    struct request *queue; /* oldest first */
    struct request **queue_end;
    size_t n_queued;
    struct request **running; /* (max_running); written by mb-model alone */
    size_t n_running;
};

/* ---- engine_task.c ---- */

/* A checked copy. Errors: as mb_engine_submit. */
MB_MUST_USE mb_status request_new(const struct mb_engine *e,
    const struct mb_engine_request *q, struct request **out,
    struct mb_error *err);
void request_free(struct request *r);
/* Set up its first window. False if there is nothing to read. */
bool request_begin(const struct mb_engine *e, struct request *r);
/* Rows that it can put into the next pass, landmarks of contexts included. */
size_t request_rows_left(const struct request *r);
/* Describe its next n rows in item; row_tokens, targets, nll and hidden are
 * room for n rows, logits for one. */
void request_fill(const struct mb_engine *e, struct request *r, size_t n,
    mb_token_id *row_tokens, mb_token_id *targets, float *nll, float *hidden,
    float *logits, struct mb_rows *item);
/* Take the results of these rows; true once it is done: r->status and
 * r->finish are set. */
bool request_took(
    struct mb_engine *e, struct request *r, const struct mb_rows *item);
/* Deliver what is left and call on_done. */
void request_finish(struct mb_engine *e, struct request *r);

/* ---- engine_pass.c ---- */

/* One pass for those that run. Those that are done are left in `running` with
 * ended[i] set (n_running flags). */
void engine_turn(struct mb_engine *e, bool *ended);

static inline void
count(atomic_uint_fast64_t *figure, uint64_t n)
{
    (void)atomic_fetch_add_explicit(figure, n, memory_order_relaxed);
}

#endif
