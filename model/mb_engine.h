/* SPDX-License-Identifier: Apache-2.0
 * model/mb_engine.h - one model at work for many: continuous batching.
 *
 * Requests come from any thread. One thread, mb-model, owns the cache and runs
 * passes: each takes a row of every text that is being generated and fills up
 * with rows of prompts, shared fairly among those that wait to be read. A
 * request is admitted when the cache has room for all that it may need, in the
 * order of arrival, so that none starves and none is thrown out again.
 *
 * A request gets the same bits as if it were alone: see mb_decoder.h.
 *
 * Life: mb_engine_new -> mb_engine_submit ... on_done ... -> mb_engine_free.
 * Threads: all functions from any; callbacks come on mb-model, must be quick,
 * and may submit and cancel, but not free the engine. */
#ifndef MB_ENGINE_H
#define MB_ENGINE_H

#include "mb_context.h"
#include "mb_sampler.h"

#define MB_ENGINE_MAX_STOPS     16  /* strings of a request */
#define MB_ENGINE_MAX_STOP_SIZE 256 /* bytes of one */

struct mb_engine;

/* Zero stands for the default in [ ]. */
struct mb_engine_options {
    unsigned n_threads;   /* of a pass [one for each CPU] */
    size_t max_rows;      /* of a pass while none generates [512] */
    size_t max_rows_busy; /* while some do: their wait for a token [128] */
    size_t max_running;   /* requests in the passes [64] */
    size_t max_queued;    /* that wait for admission [1,024] */
    size_t cache_rows;    /* in all [8 windows, 4,096 at least] */
    mb_cache_type cache_type;
};

/* decoder and tokenizer are borrowed. Errors: BAD_ARG, NOMEM, INTERNAL. */
MB_MUST_USE mb_status mb_engine_new(const struct mb_decoder *decoder,
    const struct mb_tokenizer *tokenizer,
    const struct mb_engine_options *options, struct mb_engine **out,
    struct mb_error *err);
/* End all requests with SHUTTING_DOWN, which those that come later get from
 * submit. All callbacks are over when it returns. Takes NULL. */
void mb_engine_stop(struct mb_engine *engine);
/* Stops it first. */
void mb_engine_free(struct mb_engine *engine);
/* Rows that one request can have at most: the model's window, or the cache if
 * that is smaller. */
size_t mb_engine_window(const struct mb_engine *engine);
size_t mb_engine_dim(const struct mb_engine *engine);

/* ---- requests ---- */

typedef enum mb_task {
    MB_TASK_GENERATE, /* go on from the tokens */
    MB_TASK_SCORE,    /* how likely is each token, given those before it? */
    MB_TASK_EMBED,    /* mean of the last hidden rows */
    MB_TASK_APPEND    /* read the tokens into a context, nothing else */
} mb_task;

typedef enum mb_finish {
    MB_FINISH_STOP,      /* a stop string, a stop token, the end of a text */
    MB_FINISH_LENGTH,    /* max_tokens */
    MB_FINISH_WINDOW,    /* the window is full */
    MB_FINISH_CANCELLED, /* by mb_engine_cancel */
    MB_FINISH_DEADLINE
} mb_finish;

/* "stop", "length", "window", "cancelled", "deadline". */
const char *mb_finish_name(mb_finish finish);

/* Text that has become sure, and the tokens chosen since the last delivery. A
 * token's text may come later than the token, or not at all. */
struct mb_engine_piece {
    struct mb_slice text;      /* whole UTF-8 characters; may be empty */
    const mb_token_id *tokens; /* (n) */
    const float *logprobs;     /* (n) see mb_sampler_pick */
    size_t n;
};

struct mb_engine_result {
    mb_status status; /* OK, also where finish is CANCELLED or DEADLINE */
    struct mb_error err;
    mb_finish finish;
    size_t n_read; /* rows of the request's tokens that were read */
    /* generate */
    struct mb_slice text;      /* valid UTF-8, up to a stop string */
    const mb_token_id *tokens; /* (n_tokens) without the stop token */
    const float *logprobs;     /* (n_tokens) */
    size_t n_tokens;
    /* score: of tokens [first, n) */
    const float *nll; /* (n - first) -log p, nats */
    size_t first;
    size_t n_scored;
    double sum;
    /* embed: unit length, or all zero if there was nothing to read */
    const float *vector; /* (dim) */
    uint64_t wait_us;    /* from submit to its first pass */
    uint64_t total_us;
};

typedef void (*mb_engine_piece_fn)(
    void *arg, const struct mb_engine_piece *piece);
/* The result and all it points to end with the call. */
typedef void (*mb_engine_done_fn)(
    void *arg, const struct mb_engine_result *result);

/* All pointers are copied but arg. */
struct mb_engine_request {
    mb_task task;
    const mb_token_id *tokens; /* (n) at least one */
    size_t n;
    /* The tokens are appended to this context and read through it: all tasks
     * but embed. Generated tokens are appended as well, but for the last, which
     * the next request may begin with. n_head and stride stand for nothing, and
     * no window limits n or max_tokens. mb-model uses the context, and calls
     * its source, from submit until on_done returns; a context serves one
     * request at a time, a second one gets BUSY. Segments that are full are
     * committed before on_done; a request that fails or is cancelled has read
     * n_read tokens. Where blocks are chosen for whole chunks, figures depend
     * on how passes cut the tokens, and so on other requests. NULL: the
     * text stands alone. */
    struct mb_context *context;
    /* Memory blocks that all rows of the request go through: asked for before
     * each pass that has some. begin NULL: none. */
    struct mb_bank_lender bank;
    /* The first n_head tokens (a bos) stand in front of each window, if the
     * text is longer than one; they are counted in n_context. */
    size_t n_head;
    /* score, embed: the first n_context tokens are read but not counted. The
     * very first token has nothing before it and is never scored. */
    size_t n_context;
    /* score: a text longer than the window is read in several, each beginning
     * `stride` tokens after the one before [half a window]. Every token is
     * scored once, by the first window that has it. */
    size_t stride;
    /* generate */
    size_t max_tokens; /* at least one */
    struct mb_sampling sampling;
    bool logprobs;                /* are wanted; else all are 0 */
    const struct mb_slice *stops; /* (n_stops) end the text before themselves */
    size_t n_stops;
    const mb_token_id *stop_tokens; /* (n_stop_tokens) such as eos */
    size_t n_stop_tokens;
    uint64_t deadline_ns;        /* of mb_clock_ns; 0: none */
    mb_engine_piece_fn on_piece; /* generate; may be NULL */
    mb_engine_done_fn on_done;   /* exactly once if submit was OK */
    void *arg;
};

/* *id names the request for cancel; callbacks may come before this returns.
 * Errors: BAD_ARG (no tokens, one out of range, options), TOO_LARGE (it can
 * never fit: a prompt that fills the window), BUSY (max_queued), NOMEM. */
MB_MUST_USE mb_status mb_engine_submit(struct mb_engine *engine,
    const struct mb_engine_request *request, uint64_t *id,
    struct mb_error *err);
/* End a request soon, with what it has by then. One that is unknown, or done,
 * is passed over. */
void mb_engine_cancel(struct mb_engine *engine, uint64_t id);

/* ---- figures ---- */

struct mb_engine_stats {
    uint64_t n_requests; /* submitted since the start */
    uint64_t n_done;
    uint64_t n_cancelled; /* of these: cancelled, or late */
    uint64_t n_running;
    uint64_t n_queued;
    uint64_t n_passes;
    uint64_t rows_in;         /* read: of prompts, scored and embedded texts */
    uint64_t rows_out;        /* chosen by the sampler */
    uint64_t busy_us;         /* in passes */
    uint64_t longest_wait_us; /* from submit to the first pass */
    uint64_t cache_bytes;     /* taken from the system so far */
    uint64_t cache_max_bytes;
    uint64_t cache_used_blocks; /* lent just now */
    uint64_t cache_max_blocks;
    uint64_t pass_bytes; /* buffers of the passes */
};

void mb_engine_stats(struct mb_engine *engine, struct mb_engine_stats *out);

#endif
