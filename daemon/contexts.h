/* SPDX-License-Identifier: Apache-2.0
 * daemon/contexts.h - long contexts: those that are open, and who uses them.
 *
 * A context lies in the store. While it is used a model's object stands for it
 * in memory: the window that is being read, and a table of landmark keys that
 * grows with the text. Those that were used last stay open as long as all of
 * them fit into context_memory; others are closed, which loses nothing, and
 * opened again when they are asked for. Where those in use leave no room,
 * another one is not opened; one alone always is.
 *
 * A context serves one request at a time. contexts_enter makes a call its
 * owner, or parks the call, which then begins again once the context is free.
 *
 * Life: contexts_new -> contexts_enter ... contexts_leave -> contexts_free.
 * Threads: any; an open context belongs to its owner: a worker, or mb-model
 * from mb_engine_submit until on_done. */
#ifndef DAEMON_CONTEXTS_H
#define DAEMON_CONTEXTS_H

#include "call.h"
#include "mb_context.h"
#include "mb_store_context.h"

struct contexts;
struct open_context;

/* How a context is read; kept with it for ever. */
struct context_settings {
    uint64_t k;       /* blocks that are retrieved; 0: none */
    uint64_t segment; /* blocks of a window */
    mb_cache_type type;
    mb_select prefill;
    mb_select decode;
    mb_tail tail;
    mb_memory memory;
    char companion[2 * READER_FINGERPRINT + 1]; /* whose memories; "": none */
};

struct contexts_stats {
    uint64_t n_open;
    uint64_t bytes;     /* of those that are open: windows and tables */
    uint64_t max_bytes; /* setting context_memory */
    uint64_t n_opened;  /* read from the store since the start */
    uint64_t n_closed;  /* to make room */
};

/* daemon is borrowed. Errors: NULL when memory is short. */
struct contexts *contexts_new(struct daemon *d);
void contexts_free(struct contexts *cs);
void contexts_stats(struct contexts *cs, struct contexts_stats *out);

/* Make c the owner of the context with this name, whether it exists or not.
 * *parked: somebody else owns it; c is handed over and will be run again, its
 * handler returns with *later set. Errors: NOMEM. */
MB_MUST_USE mb_status contexts_enter(struct contexts *cs, struct call *c,
    struct mb_slice name, struct open_context **out, bool *parked);
/* The owner is done. What is kept open is shut if there is too much of it. */
void contexts_leave(struct open_context *oc);

/* ---- the owner's ---- */

/* Have the model's object, made from the store if it is not there. Errors:
 * NOT_FOUND, MISMATCH (other weights: the text names both), BUSY (others in use
 * have all of context_memory), CORRUPT, NOMEM, ... */
MB_MUST_USE mb_status context_load(
    struct open_context *oc, struct mb_error *err);
/* Forget the object. */
void context_unload(struct open_context *oc);
/* These may be asked when it is loaded. */
struct mb_context *context_model(const struct open_context *oc);
const struct mb_stored_context *context_stored(const struct open_context *oc);
/* After a touch of the store's: its quota and time of use. */
void context_note_touch(
    struct open_context *oc, const struct mb_stored_context *touched);
/* Tokens, the carried one included. */
uint64_t context_position(const struct open_context *oc);
/* The last token, which is read together with what follows it;
 * MB_CONTEXT_NO_TOKEN if the context is empty. */
mb_token_id context_carry(const struct open_context *oc);
void context_set_carry(struct open_context *oc, mb_token_id id);
/* Keep in memory, and forget at the end, what is read from now on. */
void context_begin_scratch(struct open_context *oc);
/* Go back to where it was then. On failure it is unloaded. */
MB_MUST_USE mb_status context_end_scratch(
    struct open_context *oc, struct mb_error *err);
/* Have on disk what was read. On failure it is unloaded and the next load goes
 * on from what is there. Not on mb-model. Errors: TOO_LARGE (quota), NO_SPACE,
 * STALE, IO, ... */
MB_MUST_USE mb_status context_save(
    struct open_context *oc, struct mb_error *err);
/* Cut to `position` tokens, in memory and on disk. Errors: BAD_ARG. */
MB_MUST_USE mb_status context_cut(
    struct open_context *oc, uint64_t position, struct mb_error *err);
/* The first `position` tokens as a new context of the store. */
MB_MUST_USE mb_status context_fork(struct open_context *oc,
    struct mb_slice name, uint64_t position, const uint64_t *quota,
    struct mb_error *err);

/* ---- settings ---- */

/* What a model is best read with: a window and as many blocks as it was trained
 * on rows for. */
void context_settings_default(
    const struct reader *r, struct context_settings *out);
/* Read args.settings over *out. Errors: BAD_ARG. */
MB_MUST_USE mb_status context_settings_read(const struct mb_value *map,
    struct context_settings *out, struct mb_error *err);
void context_settings_write(
    struct mb_writer *w, const struct context_settings *s);
/* Errors: CORRUPT. */
MB_MUST_USE mb_status context_settings_parse(struct mb_slice msgpack,
    struct mb_arena *arena, struct context_settings *out, struct mb_error *err);
/* Note which companion its memories are of. Errors: NOT_IMPLEMENTED (the model
 * has none), MISMATCH (they are of another). */
MB_MUST_USE mb_status context_settings_bind(
    struct reader *r, struct context_settings *s, struct mb_error *err);
/* The model's options for them. Errors: NOT_IMPLEMENTED (a model without a
 * landmark, or without a companion), MISMATCH (another companion). */
MB_MUST_USE mb_status context_options(struct reader *r,
    const struct context_settings *s, struct mb_context_options *out,
    struct mb_error *err);
/* What the store is to know of blocks that they make. */
void context_shape(struct reader *r, const struct mb_context_options *opt,
    struct mb_stored_shape *out);

#endif
